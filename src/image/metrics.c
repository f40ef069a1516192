#include "image/metrics.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/json.h"
#include "image/image.h"

/* The windows of SSIM. `unbiased` turns the population covariance of the window into the sample's. */
#define MAX_TAPS 11
typedef struct ssim_window {
    int taps;
    double weights[MAX_TAPS], unbiased;
} ssim_window;

static void window_wang(ssim_window *window)
{
    double sum = 0.0;
    window->taps = 11;
    window->unbiased = 1.0;
    for (int i = 0; i < 11; i++) {
        double d = (i - 5) / 1.5;
        window->weights[i] = exp(-0.5 * d * d);
        sum += window->weights[i];
    }
    for (int i = 0; i < 11; i++) window->weights[i] /= sum;
}

static void window_skimage(ssim_window *window)
{
    window->taps = 7;
    window->unbiased = 49.0 / 48.0;
    for (int i = 0; i < 7; i++) window->weights[i] = 1.0 / 7.0;
}

/* Everything that one slice needs; all arrays have height * width elements, `rows` and `line` five times that
 * and five times the width. */
typedef struct slice_work {
    size_t height, width;
    float *raw;
    double *reference, *test;
    unsigned char *inside;
    double *rows, *line;
} slice_work;

static void slice_work_clear(slice_work *w)
{
    free(w->raw);
    free(w->reference);
    free(w->test);
    free(w->inside);
    free(w->rows);
    free(w->line);
    *w = (slice_work){0};
}

static resmap_status slice_work_init(rsm_env *env, slice_work *w, size_t height, size_t width)
{
    size_t count = rsm_bytes(height, width);
    *w = (slice_work){.height = height, .width = width};
    if (count != 0 && rsm_bytes(count, 5 * sizeof(double)) != 0) {
        w->raw = malloc(count * sizeof(float));
        w->reference = malloc(count * sizeof(double));
        w->test = malloc(count * sizeof(double));
        w->inside = malloc(count);
        w->rows = malloc(count * 5 * sizeof(double));
        w->line = malloc(width * 5 * sizeof(double));
    }
    if (w->raw && w->reference && w->test && w->inside && w->rows && w->line) return RESMAP_OK;
    slice_work_clear(w);
    return rsm_no_memory(env, rsm_bytes(count, 5 * sizeof(double)));
}

/* Mean SSIM (K1 0.01, K2 0.03, range 1) over the pixels inside whose whole window lies in the slice; NaN when
 * there is none. */
static double ssim(slice_work *w, const ssim_window *window)
{
    const double c1 = 0.01 * 0.01, c2 = 0.03 * 0.03;
    const int taps = window->taps, half = taps / 2;
    if (w->height < (size_t)taps || w->width < (size_t)taps) return NAN;
    const size_t width = w->width, valid = width - (size_t)taps + 1, plane = w->height * width;
    double sum = 0.0;
    size_t count = 0;

    /* Along the rows: windowed sums of x, y, xx, yy, xy. */
    for (size_t r = 0; r < w->height; r++) {
        const double *x = w->reference + r * width, *y = w->test + r * width;
        double *o = w->rows + r * width;
        for (size_t c = 0; c < valid; c++) {
            double sx = 0, sy = 0, sxx = 0, syy = 0, sxy = 0;
            for (int t = 0; t < taps; t++) {
                double g = window->weights[t], a = x[c + (size_t)t], b = y[c + (size_t)t];
                sx += g * a;
                sy += g * b;
                sxx += g * a * a;
                syy += g * b * b;
                sxy += g * a * b;
            }
            o[c] = sx;
            o[plane + c] = sy;
            o[2 * plane + c] = sxx;
            o[3 * plane + c] = syy;
            o[4 * plane + c] = sxy;
        }
    }
    /* Across them. */
    for (size_t r = 0; r + (size_t)taps <= w->height; r++) {
        const unsigned char *inside = w->inside + (r + (size_t)half) * width + half;
        memset(w->line, 0, 5 * width * sizeof(double));
        for (int m = 0; m < 5; m++)
            for (int t = 0; t < taps; t++) {
                const double *in = w->rows + (size_t)m * plane + (r + (size_t)t) * width;
                double *out = w->line + (size_t)m * width, g = window->weights[t];
                for (size_t c = 0; c < valid; c++) out[c] += g * in[c];
            }
        for (size_t c = 0; c < valid; c++) {
            if (!inside[c]) continue;
            double ux = w->line[c], uy = w->line[width + c];
            double vx = window->unbiased * (w->line[2 * width + c] - ux * ux);
            double vy = window->unbiased * (w->line[3 * width + c] - uy * uy);
            double vxy = window->unbiased * (w->line[4 * width + c] - ux * uy);
            sum += (2 * ux * uy + c1) * (2 * vxy + c2) / ((ux * ux + uy * uy + c1) * (vx + vy + c2));
            count++;
        }
    }
    return count > 0 ? sum / (double)count : NAN;
}

/* Range 1; infinite for equal data, NaN for none. */
static double psnr(double squares, double count)
{
    if (!(count > 0)) return NAN;
    return squares > 0 ? -10.0 * log10(squares / count) : INFINITY;
}

/* A mean that leaves out NaN and infinities; `equal` counts the infinities: only they, and the mean is
 * infinite. */
typedef struct mean_of {
    double sum;
    size_t count, equal;
} mean_of;

static void mean_add(mean_of *m, double value)
{
    if (isinf(value)) m->equal++;
    else if (!isnan(value)) m->sum += value, m->count++;
}

static double mean_value(const mean_of *m)
{
    if (m->count > 0) return m->sum / (double)m->count;
    return m->equal > 0 ? INFINITY : NAN;
}

static resmap_status check_finite(rsm_env *env, const float *data, const float *mask, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (!isfinite(data[i]) && (!mask || mask[i] > 0.5f))
            return rsm_fail(env, RESMAP_BAD_FILE, "%s: a voxel%s is not finite in float32", name, mask ? " inside the mask" : "");
    return RESMAP_OK;
}

/* Slice s of a frame, scaled; voxels that are not finite, all outside the mask, become 0. Whether the reference has foreground
 * here. */
static int slice_load(slice_work *w, const rsm_slicing *slicing, const size_t shape[4],
                      const float *reference, const float *test, const float *mask, size_t s,
                      const rsm_scale *scale)
{
    const size_t count = w->height * w->width;
    const double range = scale->hi - scale->lo;
    int content = 0;
    if (mask) {
        rsm_slice_get(slicing, shape, mask, s, w->raw);
        for (size_t i = 0; i < count; i++) w->inside[i] = w->raw[i] > 0.5f;
    } else memset(w->inside, 1, count);
    rsm_slice_get(slicing, shape, reference, s, w->raw);
    for (size_t i = 0; i < count; i++) {
        if (isfinite(w->raw[i]) && w->raw[i] > scale->mean) content = 1;
        w->reference[i] = isfinite(w->raw[i]) ? (w->raw[i] - scale->lo) / range : 0.0;
    }
    rsm_slice_get(slicing, shape, test, s, w->raw);
    for (size_t i = 0; i < count; i++)
        w->test[i] = isfinite(w->raw[i]) ? (w->raw[i] - scale->lo) / range : 0.0;
    return content;
}

/* What is compared, and what has come of it so far. */
typedef struct evaluation {
    rsm_env *env;
    const resmap_image *reference, *test;
    const float *mask;           /* of one frame; NULL: everything is inside */
    const char *names[3];        /* of the reference, the test and the mask */
    rsm_slicing slicing;
    slice_work work;
    ssim_window wang, uniform;
    mean_of psnr, psnr_slices, ssim, ssim_skimage, nrmse;
    size_t compared;             /* frames */
    resmap_metrics *metrics;
} evaluation;

/* Compares a frame; a constant one of several is left out. */
static resmap_status evaluate_frame(evaluation *e, size_t frame)
{
    rsm_env *env = e->env;
    const rsm_slicing *slicing = &e->slicing;
    const size_t *shape = e->reference->shape, voxels = shape[0] * shape[1] * shape[2];
    const float *x = e->reference->data + frame * voxels, *y = e->test->data + frame * voxels;
    slice_work *w = &e->work;
    resmap_metrics *m = e->metrics;
    rsm_scale scale;
    int constant = 0;
    const resmap_status measured = rsm_scale_measure(env, e->names[0], x, NULL, voxels, &scale, &constant);
    const int left_out = measured != RESMAP_OK && constant && shape[3] > 1;
    if (measured != RESMAP_OK && !left_out) return measured;
    RSM_TRY(check_finite(env, x, e->mask, voxels, e->names[0]));
    RSM_TRY(check_finite(env, y, e->mask, voxels, e->names[1]));
    if (left_out) return RESMAP_OK;
    e->compared++;

    double squares = 0, reference_squares = 0, count = 0;
    for (size_t s = 0; s < slicing->slices; s++) {
        RSM_TRY(rsm_progress(env, "evaluate", frame * slicing->slices + s, shape[3] * slicing->slices));
        const int content = slice_load(w, slicing, shape, x, y, e->mask, s, &scale);
        double slice_squares = 0, slice_reference = 0, slice_count = 0;
        for (size_t i = 0; i < slicing->height * slicing->width; i++) {
            if (!w->inside[i]) continue;
            double d = w->test[i] - w->reference[i];
            slice_squares += d * d;
            slice_reference += w->reference[i] * w->reference[i];
            slice_count += 1;
        }
        squares += slice_squares;
        reference_squares += slice_reference;
        count += slice_count;
        double similarity = NAN;
        if (content && slice_count > 0) {
            /* Below 11 pixels neither index is computed, so that both are means over the same slices. */
            similarity = ssim(w, &e->wang);
            resmap_slice_metrics *slice = &m->slices[m->slice_count++];
            slice->frame = frame;
            slice->index = s;
            slice->psnr = psnr(slice_squares, slice_count);
            slice->ssim = similarity;
            mean_add(&e->psnr_slices, slice->psnr);
        }
        if (isnan(similarity)) m->slices_left_out++;
        else {
            mean_add(&e->ssim, similarity);
            mean_add(&e->ssim_skimage, ssim(w, &e->uniform));
        }
    }
    if (count == 0) return rsm_fail(env, RESMAP_BAD_FILE, "%s: no voxel is inside", e->names[2]);
    mean_add(&e->psnr, psnr(squares, count));
    mean_add(&e->nrmse, reference_squares > 0 ? sqrt(squares / reference_squares) : NAN);
    return RESMAP_OK;
}

resmap_status rsm_evaluate(rsm_env *env, const resmap_image *reference, const resmap_image *test,
                           const resmap_image *mask, resmap_plane plane, resmap_metrics **metrics)
{
    evaluation e = {.env = env, .reference = reference, .test = test, .mask = mask ? mask->data : NULL,
                    .names = {reference->path ? reference->path : "reference", test->path ? test->path : "test",
                              mask && mask->path ? mask->path : "mask"}};
    const size_t *shape = reference->shape;
    for (int a = 0; a < 4; a++)
        if (shape[a] != test->shape[a])
            return rsm_fail(env, RESMAP_BAD_FILE,
                            "%s: %zu x %zu x %zu x %zu voxels, but %s has %zu x %zu x %zu x %zu", e.names[1],
                            test->shape[0], test->shape[1], test->shape[2], test->shape[3], e.names[0],
                            shape[0], shape[1], shape[2], shape[3]);
    if (mask) RSM_TRY(rsm_image_check_mask(env, mask, reference, e.names[0]));
    RSM_TRY(rsm_slicing_choose(env, reference, plane, &e.slicing));
    resmap_status status = RESMAP_OK;
    resmap_metrics *m = e.metrics = calloc(1, sizeof *m);
    size_t most = rsm_bytes(e.slicing.slices, shape[3]);
    if (m)
        m->slices =
            most != 0 && rsm_bytes(most, sizeof *m->slices) != 0 ? calloc(most, sizeof *m->slices) : NULL;
    if (!m || !m->slices) {
        status = rsm_no_memory(env, rsm_bytes(most, sizeof(resmap_slice_metrics)));
        goto done;
    }
    RSM_CHECK(slice_work_init(env, &e.work, e.slicing.height, e.slicing.width));
    m->plane = e.slicing.plane;
    window_wang(&e.wang);
    window_skimage(&e.uniform);

    for (size_t frame = 0; frame < shape[3]; frame++) RSM_CHECK(evaluate_frame(&e, frame));
    if (e.compared == 0) {
        status = rsm_fail(env, RESMAP_BAD_FILE, "%s: constant: every frame is", e.names[0]);
        goto done;
    }
    if (!rsm_image_same_grid(reference, test))
        rsm_log(env, RESMAP_LOG_WARNING, "%s: lies elsewhere in space than %s; compared voxel by voxel",
                e.names[1], e.names[0]);
    if (e.compared < shape[3])
        rsm_log(env, RESMAP_LOG_WARNING, "%s: constant frames are left out: %zu of %zu", e.names[0], shape[3] - e.compared,
                shape[3]);
    m->psnr = mean_value(&e.psnr);
    m->psnr_slices = mean_value(&e.psnr_slices);
    m->ssim = mean_value(&e.ssim);
    m->ssim_skimage = mean_value(&e.ssim_skimage);
    m->nrmse = mean_value(&e.nrmse);
    *metrics = m;
    m = NULL;
done:
    slice_work_clear(&e.work);
    resmap_metrics_free(m);
    return status;
}

/* ---- Public functions ---- */

void resmap_metrics_free(resmap_metrics *metrics)
{
    if (!metrics) return;
    free(metrics->slices);
    free(metrics);
}

resmap_status rsm_metrics_json(rsm_env *env, const resmap_metrics *m, char **text)
{
    json_t *slices = json_array();
    size_t frames = 0;
    int failed = 0;
    for (size_t i = 0; i < m->slice_count; i++)
        if (m->slices[i].frame > 0) frames = 1;
    for (size_t i = 0; i < m->slice_count; i++) {
        const resmap_slice_metrics *s = &m->slices[i];
        json_t *slice = json_pack("{sI}", "index", (json_int_t)s->index);
        if (frames && json_object_set_new(slice, "frame", json_integer((json_int_t)s->frame)) != 0)
            failed = 1;
        if (json_object_set_new(slice, "psnr", rsm_json_number(s->psnr)) != 0
            || json_object_set_new(slice, "ssim", rsm_json_number(s->ssim)) != 0
            || json_array_append_new(slices, slice) != 0)
            failed = 1;
    }
    json_t *root =
        failed ? NULL
               : json_pack("{so so so so so ss so sI}", "psnr", rsm_json_number(m->psnr), "psnr_slices",
                           rsm_json_number(m->psnr_slices), "ssim", rsm_json_number(m->ssim), "ssim_skimage",
                           rsm_json_number(m->ssim_skimage), "nrmse", rsm_json_number(m->nrmse), "plane",
                           m->plane, "slices", slices, "slices_left_out", (json_int_t)m->slices_left_out);
    if (failed) json_decref(slices);
    return rsm_json_text(env, root, text);
}
