#include "model/field.h"

#include <math.h>
#include <stdlib.h>

static const double WINDOW = 2, LEAST = 0.1, MOST = 10;

void rsm_shrunken_size(size_t height, size_t width, size_t pixels, size_t *small_height, size_t *small_width)
{
    size_t longer = height > width ? height : width;

    *small_height = height;
    *small_width = width;
    if (longer <= pixels) return;
    *small_height = (size_t)floor((double)height * (double)pixels / (double)longer + 0.5);
    *small_width = (size_t)floor((double)width * (double)pixels / (double)longer + 0.5);
    if (*small_height == 0) *small_height = 1;
    if (*small_width == 0) *small_width = 1;
}

/* How much of source pixel `s` lies in target pixel `t`, as a share of the target. */
static double coverage(size_t s, size_t t, double scale)
{
    double from = fmax((double)s, (double)t * scale), to = fmin((double)s + 1, ((double)t + 1) * scale);

    return to > from ? (to - from) / scale : 0;
}

void rsm_shrink(const float *slice, size_t height, size_t width, float *small, size_t small_height,
                size_t small_width)
{
    double scale_y = (double)height / (double)small_height, scale_x = (double)width / (double)small_width;

    for (size_t y = 0; y < small_height; y++)
        for (size_t x = 0; x < small_width; x++) {
            double sum = 0;
            for (size_t sy = (size_t)((double)y * scale_y);
                 sy < height && (double)sy < (double)(y + 1) * scale_y; sy++)
                for (size_t sx = (size_t)((double)x * scale_x);
                     sx < width && (double)sx < (double)(x + 1) * scale_x; sx++)
                    sum += coverage(sy, y, scale_y) * coverage(sx, x, scale_x)
                           * (double)slice[sy * width + sx];
            small[y * small_width + x] = (float)sum;
        }
}

/* Filters rows (stride 1) or columns of an image with the whole Gaussian, without cut-off, so that the field
 * reaches the background from the nearest foreground. Not normalised: the field is a ratio. */
static void smooth_axis(const double *from, double *to, size_t lines, size_t line_stride, size_t length,
                        size_t stride)
{
    for (size_t i = 0; i < length; i++) {
        for (size_t l = 0; l < lines; l++) to[l * line_stride + i * stride] = 0;
        for (size_t k = 0; k < length; k++) {
            double distance = ((double)k - (double)i) / WINDOW, weight = exp(-0.5 * distance * distance);
            for (size_t l = 0; l < lines; l++)
                to[l * line_stride + i * stride] += weight * from[l * line_stride + k * stride];
        }
    }
}

static void smooth(double *image, double *temporary, size_t height, size_t width)
{
    smooth_axis(image, temporary, height, width, width, 1);
    smooth_axis(temporary, image, width, 1, height, width);
}

/* Position of full-resolution pixel centre i on the shrunken grid, clamped to its pixel centres. */
static double shrunken_position(size_t i, size_t length, size_t small)
{
    double at = ((double)i + 0.5) * (double)small / (double)length - 0.5;

    return fmin(fmax(at, 0), (double)small - 1);
}

resmap_status rsm_apply_field(rsm_env *env, float *slice, size_t height, size_t width, const float *before,
                              const float *after, size_t small_height, size_t small_width, double threshold)
{
    size_t count = small_height * small_width;
    double *product = malloc(rsm_bytes(3 * count, sizeof *product)), *square, *temporary;
    int foreground = 0;

    if (product == NULL) return rsm_no_memory(env, 3 * count * sizeof *product);
    square = product + count;
    temporary = square + count;
    for (size_t i = 0; i < count; i++) {
        double in = (double)before[i], w = in > threshold ? 1 : 0;
        product[i] = w * in * (double)after[i];
        square[i] = w * in * in;
        foreground |= w > 0;
    }
    if (foreground) {
        smooth(product, temporary, small_height, small_width);
        smooth(square, temporary, small_height, small_width);
        for (size_t i = 0; i < count; i++) {
            /* 0: further away than the Gaussian reaches */
            double ratio = square[i] > 0 ? product[i] / square[i] : 1;
            product[i] = fmin(fmax(ratio, LEAST), MOST);
        }
        for (size_t y = 0; y < height; y++) {
            double at_y = shrunken_position(y, height, small_height), fy = at_y - floor(at_y);
            size_t y0 = (size_t)at_y, y1 = y0 + 1 < small_height ? y0 + 1 : y0;
            for (size_t x = 0; x < width; x++) {
                double at_x = shrunken_position(x, width, small_width), fx = at_x - floor(at_x);
                size_t x0 = (size_t)at_x, x1 = x0 + 1 < small_width ? x0 + 1 : x0;
                const double *upper = product + y0 * small_width, *lower = product + y1 * small_width;
                double above = upper[x0] * (1 - fx) + upper[x1] * fx;
                double below = lower[x0] * (1 - fx) + lower[x1] * fx;
                double factor = above * (1 - fy) + below * fy;
                slice[y * width + x] = (float)((double)slice[y * width + x] * factor);
            }
        }
    }
    free(product);
    return RESMAP_OK;
}
