/* The picture of a restoration: slices before, after and their difference. */
#include <errno.h>
#include <math.h>
#include <png.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>

#include "image/image.h"

enum {
    SIDE = 288,                  /* pixels of a panel's longer side */
    GAP = 8,                     /* pixels between things */
    LETTER_WIDTH = 6, LETTER_HEIGHT = 7,
    LARGE = 2,                   /* letters of headings and caption are enlarged so */
    LINE = LETTER_HEIGHT * LARGE + 6,
    LABEL = LETTER_HEIGHT * LARGE + 4,
    LEAST_WIDTH = 560,           /* room for the caption's lines */
    PAPER = 255, INK = 0, MOST_ROWS = 3
};

/* Letters from ' ' to '~': seven rows of five dots, the highest bit leftmost. */
static const unsigned char letters['~' - ' ' + 1][LETTER_HEIGHT] = {
    {0, 0, 0, 0, 0, 0, 0}, {4, 4, 4, 4, 4, 0, 4}, {10, 10, 10, 0, 0, 0, 0}, {10, 10, 31, 10, 31, 10, 10},
    {4, 15, 20, 14, 5, 30, 4}, {24, 25, 2, 4, 8, 19, 3}, {12, 18, 20, 8, 21, 18, 13}, {4, 4, 8, 0, 0, 0, 0},
    {2, 4, 8, 8, 8, 4, 2}, {8, 4, 2, 2, 2, 4, 8}, {0, 4, 21, 14, 21, 4, 0}, {0, 4, 4, 31, 4, 4, 0},
    {0, 0, 0, 0, 12, 4, 8}, {0, 0, 0, 31, 0, 0, 0}, {0, 0, 0, 0, 0, 12, 12}, {0, 1, 2, 4, 8, 16, 0},
    {14, 17, 19, 21, 25, 17, 14}, {4, 12, 4, 4, 4, 4, 14}, {14, 17, 1, 2, 4, 8, 31},
    {31, 2, 4, 2, 1, 17, 14}, {2, 6, 10, 18, 31, 2, 2}, {31, 16, 30, 1, 1, 17, 14},
    {6, 8, 16, 30, 17, 17, 14}, {31, 1, 2, 4, 8, 8, 8}, {14, 17, 17, 14, 17, 17, 14},
    {14, 17, 17, 15, 1, 2, 12}, {0, 12, 12, 0, 12, 12, 0}, {0, 12, 12, 0, 12, 4, 8}, {2, 4, 8, 16, 8, 4, 2},
    {0, 0, 31, 0, 31, 0, 0}, {8, 4, 2, 1, 2, 4, 8}, {14, 17, 1, 2, 4, 0, 4}, {14, 17, 1, 13, 21, 21, 14},
    {4, 10, 17, 17, 31, 17, 17}, {30, 17, 17, 30, 17, 17, 30}, {14, 17, 16, 16, 16, 17, 14},
    {28, 18, 17, 17, 17, 18, 28}, {31, 16, 16, 30, 16, 16, 31}, {31, 16, 16, 30, 16, 16, 16},
    {14, 17, 16, 23, 17, 17, 15}, {17, 17, 17, 31, 17, 17, 17}, {14, 4, 4, 4, 4, 4, 14},
    {7, 2, 2, 2, 2, 18, 12}, {17, 18, 20, 24, 20, 18, 17}, {16, 16, 16, 16, 16, 16, 31},
    {17, 27, 21, 21, 17, 17, 17}, {17, 17, 25, 21, 19, 17, 17}, {14, 17, 17, 17, 17, 17, 14},
    {30, 17, 17, 30, 16, 16, 16}, {14, 17, 17, 17, 21, 18, 13}, {30, 17, 17, 30, 20, 18, 17},
    {15, 16, 16, 14, 1, 1, 30}, {31, 4, 4, 4, 4, 4, 4}, {17, 17, 17, 17, 17, 17, 14},
    {17, 17, 17, 17, 17, 10, 4}, {17, 17, 17, 21, 21, 21, 10}, {17, 17, 10, 4, 10, 17, 17},
    {17, 17, 17, 10, 4, 4, 4}, {31, 1, 2, 4, 8, 16, 31}, {14, 8, 8, 8, 8, 8, 14}, {0, 16, 8, 4, 2, 1, 0},
    {14, 2, 2, 2, 2, 2, 14}, {4, 10, 17, 0, 0, 0, 0}, {0, 0, 0, 0, 0, 0, 31}, {8, 4, 2, 0, 0, 0, 0},
    {0, 0, 14, 1, 15, 17, 15}, {16, 16, 22, 25, 17, 17, 30}, {0, 0, 14, 16, 16, 17, 14},
    {1, 1, 13, 19, 17, 17, 15}, {0, 0, 14, 17, 31, 16, 14}, {6, 9, 8, 28, 8, 8, 8},
    {0, 15, 17, 17, 15, 1, 14}, {16, 16, 22, 25, 17, 17, 17}, {4, 0, 12, 4, 4, 4, 14},
    {2, 0, 6, 2, 2, 18, 12}, {16, 16, 18, 20, 24, 20, 18}, {12, 4, 4, 4, 4, 4, 14},
    {0, 0, 26, 21, 21, 17, 17}, {0, 0, 22, 25, 17, 17, 17}, {0, 0, 14, 17, 17, 17, 14},
    {0, 0, 30, 17, 30, 16, 16}, {0, 0, 13, 19, 15, 1, 1}, {0, 0, 22, 25, 16, 16, 16},
    {0, 0, 14, 16, 14, 1, 30}, {8, 8, 28, 8, 8, 9, 6}, {0, 0, 17, 17, 17, 19, 13},
    {0, 0, 17, 17, 17, 10, 4}, {0, 0, 17, 17, 21, 21, 10}, {0, 0, 17, 10, 4, 10, 17},
    {0, 0, 17, 17, 15, 1, 14}, {0, 0, 31, 2, 4, 8, 31}, {2, 4, 4, 8, 4, 4, 2}, {4, 4, 4, 4, 4, 4, 4},
    {8, 4, 4, 2, 4, 4, 8}, {0, 0, 8, 21, 2, 0, 0},
};

typedef struct canvas {
    size_t width, height;
    unsigned char *pixels;
} canvas;

static void fill(canvas *c, size_t x, size_t y, size_t width, size_t height, unsigned char grey)
{
    for (size_t j = y; j < y + height && j < c->height; j++)
        for (size_t i = x; i < x + width && i < c->width; i++) c->pixels[j * c->width + i] = grey;
}

static void write_text(canvas *c, size_t x, size_t y, size_t zoom, unsigned char grey, const char *text, size_t length)
{
    for (size_t k = 0; k < length; k++) {
        unsigned char letter = (unsigned char)text[k];
        if ((letter & 0xc0) == 0x80) continue;   /* the rest of a UTF-8 letter, shown as one question mark */
        if (letter < ' ' || letter > '~') letter = '?';
        for (size_t j = 0; j < LETTER_HEIGHT; j++)
            for (size_t i = 0; i < 5; i++)
                if (letters[letter - ' '][j] >> (4 - i) & 1) fill(c, x + i * zoom, y + j * zoom, zoom, zoom, grey);
        x += LETTER_WIDTH * zoom;
    }
}

/* Light letters on a dark ground, readable on any picture. */
static void write_label(canvas *c, size_t x, size_t y, const char *text)
{
    size_t length = strlen(text);
    fill(c, x, y, length * LETTER_WIDTH * LARGE + 2, LABEL, 0);
    write_text(c, x + 2, y + 2, LARGE, 255, text, length);
}

/* How many letters of `text` go on a line of `most`: broken at the last space. */
static size_t line_length(const char *text, size_t most)
{
    size_t n = strcspn(text, "\n");
    if (n <= most) return n;
    for (size_t i = most; i > 0; i--)
        if (text[i] == ' ') return i;
    return most;
}

/* Writes `text` in lines from y on (only counts them when c has no pixels); the height used. */
static size_t write_lines(canvas *c, size_t y, const char *text)
{
    size_t most = (c->width - 2 * GAP) / (LETTER_WIDTH * LARGE), used = 0;
    while (*text) {
        size_t n = line_length(text, most);
        if (c->pixels) write_text(c, GAP, y + used, LARGE, INK, text, n);
        used += LINE;
        text += n;
        if (*text == ' ' || *text == '\n') text++;
    }
    return used;
}

/* How a slice is turned to be looked at, radiological convention: anterior up and the patient's right on the left in axial
 * slices, superior up in the others, anterior left in sagittal ones. */
typedef struct view {
    int transposed;              /* the slice's columns run down the picture */
    int flip_across, flip_down;
    const char *left;            /* what lies to the left; "" when oblique */
    size_t width, height;        /* pixels of a panel */
} view;

static view choose_view(const struct resmap_image *image, const rsm_slicing *slicing)
{
    const double *m = image->voxel_to_world, *mm = image->voxel_mm;
    int axial = strcmp(slicing->plane, "axial") == 0, sagittal = strcmp(slicing->plane, "sagittal") == 0;
    int up = axial ? 1 : 2, left = sagittal ? 1 : 0;   /* world axes */
    int row = slicing->row_axis, column = slicing->column_axis;
    view v;
    v.transposed = fabs(m[4 * up + column]) / mm[column] > fabs(m[4 * up + row]) / mm[row];
    int down = v.transposed ? column : row, across = v.transposed ? row : column;
    v.flip_down = m[4 * up + down] > 0;
    v.flip_across = m[4 * left + across] > 0;
    v.left = fabs(m[4 * left + across]) / mm[across] > 0.7 ? (sagittal ? "A" : "R") : "";
    double wide = mm[across] * (double)image->shape[across], high = mm[down] * (double)image->shape[down];
    double longer = wide > high ? wide : high;
    v.width = (size_t)(SIDE * wide / longer + 0.5);
    v.height = (size_t)(SIDE * high / longer + 0.5);
    if (v.width < GAP) v.width = GAP;
    if (v.height < GAP) v.height = GAP;
    return v;
}

/* Neighbours along one axis and the weight of the second, for pixel p of `pixels` over `length` voxels. */
static void locate(size_t p, size_t pixels, size_t length, int flip, size_t index[2], double *weight)
{
    double at = ((double)p + 0.5) * (double)length / (double)pixels - 0.5;
    if (flip) at = (double)(length - 1) - at;
    if (at < 0) at = 0;
    if (at > (double)(length - 1)) at = (double)(length - 1);
    index[0] = (size_t)at;
    index[1] = index[0] + 1 < length ? index[0] + 1 : index[0];
    *weight = at - (double)index[0];
}

/* Draws a slice at (x, y), bilinearly enlarged; black is lo, white hi; what is not finite is black. */
static void draw_slice(canvas *c, size_t x, size_t y, const view *v, const rsm_slicing *slicing, const float *slice,
                       double lo, double hi)
{
    size_t across = v->transposed ? slicing->height : slicing->width;
    size_t down = v->transposed ? slicing->width : slicing->height;
    size_t step_across = v->transposed ? slicing->width : 1, step_down = v->transposed ? 1 : slicing->width;
    for (size_t j = 0; j < v->height; j++) {
        size_t rows[2], columns[2];
        double wy, wx;
        locate(j, v->height, down, v->flip_down, rows, &wy);
        for (size_t i = 0; i < v->width; i++) {
            locate(i, v->width, across, v->flip_across, columns, &wx);
            const float *upper = slice + rows[0] * step_down, *lower = slice + rows[1] * step_down;
            double top = (1 - wx) * upper[columns[0] * step_across] + wx * upper[columns[1] * step_across];
            double bottom = (1 - wx) * lower[columns[0] * step_across] + wx * lower[columns[1] * step_across];
            double grey = ((1 - wy) * top + wy * bottom - lo) / (hi - lo) * 255 + 0.5;
            c->pixels[(y + j) * c->width + x + i] = grey >= 255 ? 255 : grey > 0 ? (unsigned char)grey : 0;
        }
    }
}

/* Chooses the slices a quarter, half and three quarters through those with content: at least a tenth of the foreground of
 * the fullest. Returns how many there are. */
static size_t choose_slices(const rsm_slicing *slicing, const size_t shape[4], const float *data, const float *mask, double mean,
                            float *slices, size_t *counts, size_t chosen[MOST_ROWS])
{
    size_t most = 0, with = 0, rows = 0, area = slicing->width * slicing->height;
    float *slice = slices, *inside = slices + area;
    for (size_t s = 0; s < slicing->slices; s++) {
        rsm_slice_get(slicing, shape, data, s, slice);
        if (mask) rsm_slice_get(slicing, shape, mask, s, inside);
        counts[s] = 0;
        for (size_t i = 0; i < area; i++) counts[s] += slice[i] > mean && (!mask || inside[i] > 0.5f);
        if (counts[s] > most) most = counts[s];
    }
    for (size_t s = 0; s < slicing->slices; s++) with += counts[s] * 10 >= most;
    for (size_t s = 0, k = 0; s < slicing->slices; s++) {
        if (counts[s] * 10 < most) continue;
        if (k == with / 4 || k == with / 2 || k == with * 3 / 4) chosen[rows++] = s;
        k++;
    }
    return rows;
}

/* What is shown of one frame: slices in three columns, before, after and their difference. */
typedef struct content {
    size_t frame, rows, chosen[MOST_ROWS];
    float *columns[3];           /* `rows` slices each; the first is the memory of all, owned */
    rsm_scale scale;             /* of the frame before: black and white of the first two columns */
    double range;                /* that nearly all differences are within; 0: nearly all are 0 */
} content;

/* Finds the first frame that is worth a picture and its scale. */
static resmap_status choose_frame(rsm_env *env, const struct resmap_image *before, const float *mask, const char *path,
                                  content *shown)
{
    const size_t *shape = before->shape, voxels = shape[0] * shape[1] * shape[2];
    resmap_status status = RESMAP_OK;
    int constant = 1;
    for (size_t frame = 0; frame < shape[3]; frame++) {   /* constant frames of 4-D files pass through: not worth a picture */
        const float *data = before->data + frame * voxels;
        shown->frame = frame;
        status = rsm_scale_measure(env, path, data, mask, voxels, &shown->scale, &constant);
        if (status != RESMAP_BAD_FILE) break;
        if (constant) continue;
        /* Without contrast it was restored as it is, and is shown so. */
        shown->scale.lo = 0;
        shown->scale.hi = 1;
        return rsm_scale_mean(env, path, data, mask, voxels, &shown->scale.mean, NULL);
    }
    return status;
}

/* Fills in what is shown. */
static resmap_status gather(rsm_env *env, const struct resmap_image *before, const struct resmap_image *after, const float *mask,
                            const rsm_slicing *slicing, const char *path, content *shown)
{
    const size_t *shape = before->shape, voxels = shape[0] * shape[1] * shape[2], area = slicing->width * slicing->height;
    float **columns = shown->columns;
    resmap_status status;

    /* three slices of each column */
    size_t bytes = rsm_bytes(3 * MOST_ROWS, rsm_bytes(area, sizeof(float)));
    size_t *counts = malloc(slicing->slices * sizeof *counts);
    columns[0] = bytes ? malloc(bytes) : NULL;
    if (!columns[0] || !counts) {
        status = rsm_no_memory(env, bytes);
        goto done;
    }
    columns[1] = columns[0] + MOST_ROWS * area;
    columns[2] = columns[1] + MOST_ROWS * area;
    RSM_CHECK(choose_frame(env, before, mask, path, shown));
    const float *from[2] = {before->data + shown->frame * voxels, after->data + shown->frame * voxels};
    shown->rows = choose_slices(slicing, shape, from[0], mask, shown->scale.mean, columns[0], counts, shown->chosen);
    for (size_t r = 0; r < shown->rows; r++) {
        for (int k = 0; k < 2; k++) rsm_slice_get(slicing, shape, from[k], shown->chosen[r], columns[k] + r * area);
        for (size_t i = r * area; i < (r + 1) * area; i++) {
            for (int k = 0; k < 2; k++)
                if (!isfinite(columns[k][i])) columns[k][i] = 0;      /* excluded, and the same in both */
            columns[2][i] = fabsf(columns[0][i] - columns[1][i]);
        }
    }
    RSM_CHECK(rsm_percentile(env, columns[2], NULL, shown->rows * area, -1, INFINITY, 99.5, &shown->range));
    for (size_t i = 0; i < shown->rows * area; i++) columns[2][i] = columns[0][i] - columns[1][i];
done:
    free(counts);
    return status;
}

/* Draws it, with the caption below, on a canvas made here. */
static resmap_status draw(rsm_env *env, const struct resmap_image *before, const rsm_slicing *slicing, const content *shown,
                          const char *caption, canvas *c)
{
    static const char *const headings[3] = {"before", "after", "difference"};
    const view v = choose_view(before, slicing);
    const rsm_scale *scale = &shown->scale;
    double range = shown->range;
    char *note = range > 0 ? rsm_format("difference (before - after): black %.3g, mid grey 0, white +%.3g", -range, range)
                           : rsm_format("difference: none (99.5 %% of the voxels shown are unchanged)");
    if (!note) return rsm_no_memory(env, 80);
    if (!(range > 0)) range = scale->hi - scale->lo;

    c->width = 3 * v.width + 4 * GAP;
    if (c->width < LEAST_WIDTH) c->width = LEAST_WIDTH;
    size_t pitch = (c->width - GAP) / 3, below = GAP + LINE + shown->rows * (v.height + GAP);
    c->height = below + write_lines(c, 0, note) + write_lines(c, 0, caption) + GAP / 2;
    if (!(c->pixels = malloc(c->width * c->height))) {   /* at most some 900 x 1000 and the caption's lines */
        free(note);
        return rsm_no_memory(env, c->width * c->height);
    }
    fill(c, 0, 0, c->width, c->height, PAPER);
    for (size_t k = 0; k < 3; k++) {
        size_t x = GAP + k * pitch;
        write_text(c, x, GAP, LARGE, INK, headings[k], strlen(headings[k]));
        for (size_t r = 0; r < shown->rows; r++) {
            size_t y = GAP + LINE + r * (v.height + GAP);
            draw_slice(c, x, y, &v, slicing, shown->columns[k] + r * slicing->width * slicing->height,
                       k < 2 ? scale->lo : -range, k < 2 ? scale->hi : range);
            if (k > 0) continue;
            char label[80];
            snprintf(label, sizeof label, before->shape[3] > 1 ? "%s %zu, frame %zu" : "%s %zu", slicing->plane, shown->chosen[r],
                     shown->frame);
            if (v.height >= 3 * LABEL) write_label(c, x, y + v.height - LABEL, label);
            if (*v.left && v.height >= 5 * LABEL) write_label(c, x, y + v.height / 2 - LABEL / 2, v.left);
        }
    }
    below += write_lines(c, below, note);
    write_lines(c, below, caption);
    free(note);
    return RESMAP_OK;
}

/* ---- PNG ---- */

static void png_failed(png_structp png, png_const_charp text)
{
    (void)text;                  /* libpng's own handler would print */
    png_longjmp(png, 1);
}

static void png_warned(png_structp png, png_const_charp text)
{
    (void)png;
    (void)text;
}

static resmap_status write_png(rsm_env *env, const canvas *c, const char *path, FILE *stream)
{
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, png_failed, png_warned);
    if (!png) return rsm_no_memory(env, (size_t)1 << 16);
    png_infop info = png_create_info_struct(png);
    if (!info) {
        png_destroy_write_struct(&png, NULL);
        return rsm_no_memory(env, (size_t)1 << 10);
    }
    errno = 0;
    if (setjmp(png_jmpbuf(png))) {
        resmap_status status = rsm_fail(env, RESMAP_IO, "%s: cannot write: %s", path,
                                        errno ? strerror(errno) : "libpng failed");
        png_destroy_write_struct(&png, &info);
        return status;
    }
    png_init_io(png, stream);
    png_set_IHDR(png, info, (png_uint_32)c->width, (png_uint_32)c->height, 8, PNG_COLOR_TYPE_GRAY, PNG_INTERLACE_NONE,
                 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    png_write_info(png, info);
    for (size_t y = 0; y < c->height; y++) png_write_row(png, c->pixels + y * c->width);
    png_write_end(png, NULL);
    png_destroy_write_struct(&png, &info);
    return RESMAP_OK;
}

resmap_status rsm_figure_write(rsm_env *env, const struct resmap_image *before, const struct resmap_image *after,
                               const float *mask, const rsm_slicing *slicing, const char *caption, const char *path,
                               FILE *stream)
{
    content shown = {0};
    canvas c = {0};
    resmap_status status;

    RSM_CHECK(gather(env, before, after, mask, slicing, path, &shown));
    RSM_CHECK(draw(env, before, slicing, &shown, caption, &c));
    status = write_png(env, &c, path, stream);
done:
    free(c.pixels);
    free(shown.columns[0]);
    return status;
}
