/* A scan during which the head moves: lines of k-space come from a still and from moved copies of the object.
 *
 * Only the phase axis must be in k-space to pick lines, so the volume is held in hybrid space (synth.h). A
 * moved copy is sampled and transformed slab by slab, and only the lines that it owns are kept. Its
 * translation is a phase ramp over all three axes of k-space; for that each owned line (a plane) goes to
 * k-space and back. So beside the volume one complex one is all that is held, however many copies. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "synth/synth.h"

static const double PI = 3.14159265358979323846;

/* Complex numbers of a slab: 64 MB in float64. */
enum { SLAB = 1 << 22 };

/* What one call works with. */
typedef struct motion_work {
    rsm_device *device;
    const size_t *shape;
    rsm_hybrid *hybrid;
    size_t slab_rows, slabs;     /* rows a slab, the last may be partly empty */
    rsm_buffer *slab;            /* [row][column][line] */
    rsm_buffer *owner;           /* for each line of the DFT the copy that it comes from; 0: the still one */
    int *owner_host;
    /* Where the voxels of a moved copy come from: for index i of array axis c the three terms that it adds to
     * the position. Entry (first[c] + i) has 3 doubles; on the device 6 floats: floors, then fractions. */
    size_t first[3], entries;
    double *position;
    rsm_buffer *position_device;
    /* exp(-2 pi i f t), complex: columns, then rows, then lines. */
    double *ramp;
    rsm_buffer *ramp_device;
    float *upload;               /* room for the larger table in float32 */
    size_t done, total;          /* progress */
} motion_work;

void rsm_motion_protected(size_t n, size_t *first, size_t *count)
{
    *count = (size_t)ceil(0.07 * (double)n);
    *first = n / 2 - *count / 2;
}

void rsm_hybrid_clear(rsm_hybrid *hybrid)
{
    rsm_buffer_free(hybrid->values);
    *hybrid = (rsm_hybrid){0};
}

static void work_clear(motion_work *w)
{
    rsm_buffer_free(w->slab);
    rsm_buffer_free(w->owner);
    rsm_buffer_free(w->position_device);
    rsm_buffer_free(w->ramp_device);
    free(w->owner_host);
    free(w->position);
    free(w->ramp);
    free(w->upload);
}

static resmap_status slab_create(motion_work *w)
{
    const rsm_hybrid *h = w->hybrid;
    const size_t row = h->columns * h->lines;
    w->slab_rows = SLAB / row > 0 ? SLAB / row : 1;
    if (w->slab_rows > h->rows) w->slab_rows = h->rows;
    w->slabs = (h->rows + w->slab_rows - 1) / w->slab_rows;
    return rsm_buffer_create(w->device, 2 * w->slab_rows * row, &w->slab);
}

/* ---- Sampling a moved copy ---- */

/* R = Rx Ry Rz, the object's rotation in physical axes. */
static void rotation(const double degrees[3], double r[3][3])
{
    double c[3], s[3];
    for (int i = 0; i < 3; i++) {
        c[i] = cos(degrees[i] * PI / 180.0);
        s[i] = sin(degrees[i] * PI / 180.0);
    }
    r[0][0] = c[1] * c[2];
    r[0][1] = -c[1] * s[2];
    r[0][2] = s[1];
    r[1][0] = c[0] * s[2] + s[0] * s[1] * c[2];
    r[1][1] = c[0] * c[2] - s[0] * s[1] * s[2];
    r[1][2] = -s[0] * c[1];
    r[2][0] = s[0] * s[2] - c[0] * s[1] * c[2];
    r[2][1] = s[0] * c[2] + c[0] * s[1] * s[2];
    r[2][2] = c[0] * c[1];
}

/* Fills the position table for moved(p) = x(R^T p), p in mm from the volume's centre. */
static resmap_status set_positions(motion_work *w, const double degrees[3], const double voxel_mm[3])
{
    double r[3][3];
    rotation(degrees, r);
    for (int c = 0; c < 3; c++)
        for (size_t i = 0; i < w->shape[c]; i++)
            for (int to = 0; to < 3; to++) {
                const double centre = ((double)w->shape[c] - 1.0) / 2.0;
                double p = r[c][to] * (voxel_mm[c] / voxel_mm[to]) * ((double)i - centre);
                w->position[3 * (w->first[c] + i) + (size_t)to] = c == to ? p + centre : p;
            }
    if (!w->position_device) return RESMAP_OK;
    for (size_t e = 0; e < w->entries; e++)
        for (size_t to = 0; to < 3; to++) {
            const double p = w->position[3 * e + to];
            w->upload[6 * e + to] = (float)floor(p);
            w->upload[6 * e + 3 + to] = (float)(p - floor(p));
        }
    return rsm_buffer_write(w->device, w->position_device, 0, w->upload, 6 * w->entries);
}

/* Trilinear, every neighbour outside counting as 0. */
static double sample(const double *x, const size_t shape[3], const double position[3])
{
    double base[3], weight[3][2], sum = 0.0;
    for (int a = 0; a < 3; a++) {
        if (!(position[a] > -1.0 && position[a] < (double)shape[a])) return 0.0;
        base[a] = floor(position[a]);
        weight[a][1] = position[a] - base[a];
        weight[a][0] = 1.0 - weight[a][1];
    }
    const ptrdiff_t i0 = (ptrdiff_t)base[0], j0 = (ptrdiff_t)base[1], k0 = (ptrdiff_t)base[2];
    const ptrdiff_t n0 = (ptrdiff_t)shape[0], n1 = (ptrdiff_t)shape[1], n2 = (ptrdiff_t)shape[2];
    for (int dk = 0; dk < 2; dk++) {
        if (k0 + dk < 0 || k0 + dk >= n2 || weight[2][dk] == 0.0) continue;
        for (int dj = 0; dj < 2; dj++) {
            if (j0 + dj < 0 || j0 + dj >= n1 || weight[1][dj] == 0.0) continue;
            const double *line = x + ((k0 + dk) * n1 + j0 + dj) * n0;
            const double w = weight[2][dk] * weight[1][dj];
            if (i0 >= 0) sum += w * weight[0][0] * line[i0];
            if (i0 + 1 < n0) sum += w * weight[0][1] * line[i0 + 1];
        }
    }
    return sum;
}

static resmap_status sample_slab(motion_work *w, rsm_buffer *volume, size_t first_row)
{
    const rsm_hybrid *h = w->hybrid;
    const size_t of_column = w->first[h->column_axis], of_row = w->first[h->row_axis],
                 of_line = w->first[h->phase_axis];
    double *slab = rsm_buffer_host(w->slab);
    if (slab) {
        const double *x = rsm_buffer_host(volume);
        for (size_t b = 0; b < w->slab_rows; b++)
            for (size_t a = 0; a < h->columns; a++)
                for (size_t p = 0; p < h->lines; p++, slab += 2) {
                    slab[0] = slab[1] = 0.0;
                    if (first_row + b >= h->rows) continue;
                    const double *ta = w->position + 3 * (of_column + a);
                    const double *tb = w->position + 3 * (of_row + first_row + b),
                                 *tp = w->position + 3 * (of_line + p);
                    const double position[3] = {ta[0] + tb[0] + tp[0], ta[1] + tb[1] + tp[1],
                                                ta[2] + tb[2] + tp[2]};
                    slab[0] = sample(x, w->shape, position);
                }
        return RESMAP_OK;
    }
    const size_t global[3] = {h->lines, h->columns, w->slab_rows};
    rsm_kernel *kernel;
    RSM_TRY(rsm_kernel_get(w->device, "synth_motion", "synth_sample", "", &kernel));
    return RSM_RUN(w->device, kernel, 3, global, NULL, RSM_BUFFER(volume), RSM_BUFFER(w->slab),
                   RSM_BUFFER(w->position_device), RSM_INT(of_column), RSM_INT(of_row), RSM_INT(of_line),
                   RSM_INT(w->shape[0]), RSM_INT(w->shape[1]), RSM_INT(w->shape[2]), RSM_INT(h->lines),
                   RSM_INT(h->columns), RSM_INT(h->rows), RSM_INT(w->slab_rows), RSM_INT(first_row));
}

/* ---- Between slabs and hybrid space ---- */

/* Moves the lines of the slab that `copy` owns into hybrid space. */
static resmap_status keep_lines(motion_work *w, size_t first_row, int copy)
{
    const rsm_hybrid *h = w->hybrid;
    const size_t rows = h->rows - first_row < w->slab_rows ? h->rows - first_row : w->slab_rows;
    const double *slab = rsm_buffer_host(w->slab);
    if (slab) {
        double *k = rsm_buffer_host(h->values);
        for (size_t p = 0; p < h->lines; p++) {
            if (w->owner_host[p] != copy) continue;
            for (size_t b = 0; b < rows; b++)
                for (size_t a = 0; a < h->columns; a++)
                    memcpy(k + 2 * ((p * h->rows + first_row + b) * h->columns + a),
                           slab + 2 * ((b * h->columns + a) * h->lines + p), 2 * sizeof *k);
        }
        return RESMAP_OK;
    }
    const size_t global[3] = {h->columns, rows, h->lines};
    rsm_kernel *kernel;
    RSM_TRY(rsm_kernel_get(w->device, "synth_motion", "synth_keep", "", &kernel));
    return RSM_RUN(w->device, kernel, 3, global, NULL, RSM_BUFFER(w->slab), RSM_BUFFER(h->values),
                   RSM_BUFFER(w->owner), RSM_INT(copy), RSM_INT(h->lines), RSM_INT(h->columns),
                   RSM_INT(h->rows), RSM_INT(rows), RSM_INT(first_row));
}

/* The other way, all lines; rows that do not exist become 0. */
static resmap_status gather_lines(motion_work *w, size_t first_row)
{
    const rsm_hybrid *h = w->hybrid;
    double *slab = rsm_buffer_host(w->slab);
    if (slab) {
        const double *k = rsm_buffer_host(h->values);
        const size_t rows = h->rows - first_row < w->slab_rows ? h->rows - first_row : w->slab_rows;
        memset(slab, 0, 2 * w->slab_rows * h->columns * h->lines * sizeof *slab);
        for (size_t p = 0; p < h->lines; p++)
            for (size_t b = 0; b < rows; b++)
                for (size_t a = 0; a < h->columns; a++)
                    memcpy(slab + 2 * ((b * h->columns + a) * h->lines + p),
                           k + 2 * ((p * h->rows + first_row + b) * h->columns + a), 2 * sizeof *k);
        return RESMAP_OK;
    }
    const size_t global[3] = {h->lines, h->columns, w->slab_rows};
    rsm_kernel *kernel;
    RSM_TRY(rsm_kernel_get(w->device, "synth_motion", "synth_gather", "", &kernel));
    return RSM_RUN(w->device, kernel, 3, global, NULL, RSM_BUFFER(h->values), RSM_BUFFER(w->slab),
                   RSM_INT(h->lines), RSM_INT(h->columns), RSM_INT(h->rows), RSM_INT(w->slab_rows),
                   RSM_INT(first_row));
}

static resmap_status transform_slab(motion_work *w, rsm_direction direction)
{
    const size_t shape[3] = {w->hybrid->lines, w->hybrid->columns * w->slab_rows, 1};
    return rsm_fft(w->device, w->slab, 0, shape, 1u, direction);
}

/* ---- Translations ---- */

/* The ramps exp(-2 pi i f t) of one axis, f = frequency of the DFT / edge in cycles a mm, the Nyquist term of
 * an even length included at -1/2. */
static void set_ramp(double *ramp, size_t n, double edge, double translation)
{
    for (size_t k = 0; k < n; k++) {
        const double index = k <= (n - 1) / 2 ? (double)k : (double)k - (double)n;
        const double angle = -2.0 * PI * (index / ((double)n * edge)) * translation;
        ramp[2 * k] = cos(angle);
        ramp[2 * k + 1] = sin(angle);
    }
}

static resmap_status set_ramps(motion_work *w, const double translation[3], const double voxel_mm[3])
{
    const rsm_hybrid *h = w->hybrid;
    const int axes[3] = {h->column_axis, h->row_axis, h->phase_axis};
    size_t at = 0;
    for (int i = 0; i < 3; i++) {
        set_ramp(w->ramp + 2 * at, w->shape[axes[i]], voxel_mm[axes[i]], translation[axes[i]]);
        at += w->shape[axes[i]];
    }
    if (!w->ramp_device) return RESMAP_OK;
    for (size_t i = 0; i < 2 * at; i++) w->upload[i] = (float)w->ramp[i];
    return rsm_buffer_write(w->device, w->ramp_device, 0, w->upload, 2 * at);
}

static void times(double *value, const double *factor)
{
    const double re = value[0] * factor[0] - value[1] * factor[1];
    value[1] = value[0] * factor[1] + value[1] * factor[0];
    value[0] = re;
}

/* Multiplies the plane of line p, now in k-space, by the three ramps. */
static resmap_status apply_ramps(motion_work *w, size_t p)
{
    const rsm_hybrid *h = w->hybrid;
    double *plane = rsm_buffer_host(h->values);
    if (plane) {
        plane += 2 * p * h->rows * h->columns;
        for (size_t b = 0; b < h->rows; b++) {
            double factor[2] = {w->ramp[2 * (h->columns + b)], w->ramp[2 * (h->columns + b) + 1]};
            times(factor, w->ramp + 2 * (h->columns + h->rows + p));
            for (size_t a = 0; a < h->columns; a++, plane += 2) {
                times(plane, factor);
                times(plane, w->ramp + 2 * a);
            }
        }
        return RESMAP_OK;
    }
    const size_t global[2] = {h->columns, h->rows};
    rsm_kernel *kernel;
    RSM_TRY(rsm_kernel_get(w->device, "synth_motion", "synth_ramp", "", &kernel));
    return RSM_RUN(w->device, kernel, 2, global, NULL, RSM_BUFFER(h->values), RSM_BUFFER(w->ramp_device),
                   RSM_INT(h->columns), RSM_INT(h->rows), RSM_INT(p));
}

static resmap_status translate_line(motion_work *w, size_t p)
{
    const rsm_hybrid *h = w->hybrid;
    const size_t shape[3] = {h->columns, h->rows, 1}, offset = 2 * p * h->rows * h->columns;
    const unsigned axes = (h->columns > 1 ? 1u : 0u) | (h->rows > 1 ? 2u : 0u);
    if (axes != 0) RSM_TRY(rsm_fft(w->device, h->values, offset, shape, axes, RSM_FORWARD));
    RSM_TRY(apply_ramps(w, p));
    if (axes != 0) RSM_TRY(rsm_fft(w->device, h->values, offset, shape, axes, RSM_BACKWARD));
    return RESMAP_OK;
}

/* ---- The whole ---- */

static int any(const double v[3])
{
    return v[0] != 0.0 || v[1] != 0.0 || v[2] != 0.0;
}

/* Which copy each line of the DFT comes from; returns how many lines are not the still copy's. */
static size_t choose_owners(const rsm_motion *motion, size_t n, int *owner)
{
    size_t first, kept, moved = 0;
    rsm_motion_protected(n, &first, &kept);
    memset(owner, 0, n * sizeof *owner);
    for (int r = 0; r < motion->run_count; r++) {
        const rsm_run *run = &motion->runs[r];
        if (!any(run->translation_mm) && !any(run->rotation_deg)) continue;
        for (size_t i = run->start; i < run->start + run->count; i++)
            if (i < first || i >= first + kept) {
                owner[(i + n - n / 2) % n] = r + 1;
                moved++;
            }
    }
    return moved;
}

static resmap_status step_progress(motion_work *w)
{
    return rsm_progress(rsm_device_env(w->device), "synth", w->done++, w->total);
}

static resmap_status assemble_copy(motion_work *w, int copy, const double translation[3],
                                   const double degrees[3], const double voxel_mm[3], rsm_buffer *volume)
{
    const rsm_hybrid *h = w->hybrid;
    RSM_TRY(set_positions(w, degrees, voxel_mm));
    for (size_t s = 0; s < w->slabs; s++) {
        RSM_TRY(step_progress(w));
        RSM_TRY(sample_slab(w, volume, s * w->slab_rows));
        RSM_TRY(transform_slab(w, RSM_FORWARD));
        RSM_TRY(keep_lines(w, s * w->slab_rows, copy));
    }
    if (!any(translation)) return RESMAP_OK;
    RSM_TRY(set_ramps(w, translation, voxel_mm));
    for (size_t p = 0; p < h->lines; p++)
        if (w->owner_host[p] == copy) {
            RSM_TRY(step_progress(w));
            RSM_TRY(translate_line(w, p));
        }
    return RESMAP_OK;
}

resmap_status rsm_motion_assemble(rsm_device *device, const rsm_motion *motion, const size_t shape[3],
                                  const double voxel_mm[3], rsm_buffer *volume, rsm_hybrid *hybrid)
{
    static const double still[3] = {0.0, 0.0, 0.0};
    const int p = motion->phase_axis, a = p == 0 ? 1 : 0, b = p == 2 ? 1 : 2;
    const int on_host = rsm_device_is_reference(device);
    resmap_status status = RESMAP_OK;
    rsm_hybrid h = {.lines = shape[p], .rows = shape[b], .columns = shape[a],
                    .phase_axis = p, .row_axis = b, .column_axis = a};
    motion_work w = {.device = device, .shape = shape, .hybrid = &h};

    w.first[1] = shape[0];
    w.first[2] = shape[0] + shape[1];
    w.entries = shape[0] + shape[1] + shape[2];
    w.owner_host = malloc(h.lines * sizeof *w.owner_host);
    w.position = malloc(w.entries * 3 * sizeof *w.position);
    w.ramp = malloc(w.entries * 2 * sizeof *w.ramp);
    w.upload = malloc(w.entries * 6 * sizeof *w.upload);
    if (!w.owner_host || !w.position || !w.ramp || !w.upload) {
        status = rsm_no_memory(rsm_device_env(device), w.entries * 3 * sizeof *w.position);
        goto done;
    }
    RSM_CHECK(rsm_buffer_create(device, 2 * shape[0] * shape[1] * shape[2], &h.values));
    RSM_CHECK(slab_create(&w));
    w.total = w.slabs * (size_t)(motion->run_count + 1) + choose_owners(motion, h.lines, w.owner_host);
    if (!on_host) {
        RSM_CHECK(rsm_buffer_create(device, 6 * w.entries, &w.position_device));
        RSM_CHECK(rsm_buffer_create(device, 2 * w.entries, &w.ramp_device));
        RSM_CHECK(rsm_buffer_create(device, h.lines, &w.owner));
        for (size_t i = 0; i < h.lines; i++) w.upload[i] = (float)w.owner_host[i];
        RSM_CHECK(rsm_buffer_write(device, w.owner, 0, w.upload, h.lines));
    }
    RSM_CHECK(assemble_copy(&w, 0, still, still, voxel_mm, volume));
    for (int r = 0; r < motion->run_count; r++) {
        int owns = 0;
        for (size_t i = 0; i < h.lines; i++) owns |= w.owner_host[i] == r + 1;
        if (owns)
            RSM_CHECK(assemble_copy(&w, r + 1, motion->runs[r].translation_mm, motion->runs[r].rotation_deg,
                                    voxel_mm, volume));
    }
    *hybrid = h;
    h.values = NULL;
done:
    rsm_buffer_free(h.values);
    work_clear(&w);
    return status;
}

/* Absolute values of the slab into the volume. */
static resmap_status put_magnitude(motion_work *w, size_t first_row, rsm_buffer *volume)
{
    const rsm_hybrid *h = w->hybrid;
    const size_t rows = h->rows - first_row < w->slab_rows ? h->rows - first_row : w->slab_rows;
    const size_t strides[3] = {1, w->shape[0], w->shape[0] * w->shape[1]};
    const size_t by_column = strides[h->column_axis], by_row = strides[h->row_axis],
                 by_line = strides[h->phase_axis];
    double *y = rsm_buffer_host(volume);
    if (y) {
        const double *slab = rsm_buffer_host(w->slab);
        for (size_t b = 0; b < rows; b++)
            for (size_t a = 0; a < h->columns; a++)
                for (size_t p = 0; p < h->lines; p++, slab += 2)
                    y[a * by_column + (first_row + b) * by_row + p * by_line] = hypot(slab[0], slab[1]);
        return RESMAP_OK;
    }
    const size_t global[3] = {h->lines, h->columns, rows};
    rsm_kernel *kernel;
    RSM_TRY(rsm_kernel_get(w->device, "synth_motion", "synth_magnitude", "", &kernel));
    return RSM_RUN(w->device, kernel, 3, global, NULL, RSM_BUFFER(w->slab), RSM_BUFFER(volume),
                   RSM_INT(h->lines), RSM_INT(h->columns), RSM_INT(rows), RSM_INT(first_row),
                   RSM_INT(by_column), RSM_INT(by_row), RSM_INT(by_line));
}

resmap_status rsm_motion_image(rsm_device *device, const size_t shape[3], const rsm_hybrid *hybrid,
                               rsm_buffer *volume)
{
    rsm_hybrid h = *hybrid;
    motion_work w = {.device = device, .shape = shape, .hybrid = &h};
    resmap_status status;
    RSM_CHECK(slab_create(&w));
    w.total = w.slabs;
    for (size_t s = 0; s < w.slabs; s++) {
        RSM_CHECK(step_progress(&w));
        RSM_CHECK(gather_lines(&w, s * w.slab_rows));
        RSM_CHECK(transform_slab(&w, RSM_BACKWARD));
        RSM_CHECK(put_magnitude(&w, s * w.slab_rows, volume));
    }
done:
    work_clear(&w);
    return status;
}

resmap_status rsm_motion_apply(rsm_device *device, const rsm_motion *motion, const size_t shape[3],
                               const double voxel_mm[3], rsm_buffer *volume)
{
    rsm_hybrid hybrid = {0};
    RSM_TRY(rsm_motion_assemble(device, motion, shape, voxel_mm, volume, &hybrid));
    resmap_status status = rsm_motion_image(device, shape, &hybrid, volume);
    rsm_hybrid_clear(&hybrid);
    return status;
}
