#include "model/field.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double WINDOW = 2;

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

resmap_status rsm_field_ratio(rsm_env *env, const float *before, const float *after, size_t small_height,
                              size_t small_width, double threshold, double *ratio)
{
    size_t count = small_height * small_width;
    double *square = malloc(rsm_bytes(2 * count, sizeof *square)), *temporary;
    int foreground = 0;

    if (square == NULL) return rsm_no_memory(env, 2 * count * sizeof *square);
    temporary = square + count;
    for (size_t i = 0; i < count; i++) {
        double in = (double)before[i], w = in > threshold ? 1 : 0;
        ratio[i] = w * in * (double)after[i];
        square[i] = w * in * in;
        foreground |= w > 0;
    }
    if (foreground) {
        smooth(ratio, temporary, small_height, small_width);
        smooth(square, temporary, small_height, small_width);
    }
    /* 0: further away than the Gaussian reaches */
    for (size_t i = 0; i < count; i++) ratio[i] = foreground && square[i] > 0 ? ratio[i] / square[i] : 1;
    free(square);
    return RESMAP_OK;
}

resmap_status rsm_apply_field(rsm_env *env, float *slice, size_t height, size_t width, const float *before,
                              const float *after, size_t small_height, size_t small_width, double threshold)
{
    size_t count = small_height * small_width;
    double *ratio = malloc(rsm_bytes(count, sizeof *ratio));
    resmap_status status;

    if (ratio == NULL) return rsm_no_memory(env, count * sizeof *ratio);
    RSM_CHECK(rsm_field_ratio(env, before, after, small_height, small_width, threshold, ratio));
    for (size_t y = 0; y < height; y++) {
        double at_y = shrunken_position(y, height, small_height), fy = at_y - floor(at_y);
        size_t y0 = (size_t)at_y, y1 = y0 + 1 < small_height ? y0 + 1 : y0;
        for (size_t x = 0; x < width; x++) {
            double at_x = shrunken_position(x, width, small_width), fx = at_x - floor(at_x);
            size_t x0 = (size_t)at_x, x1 = x0 + 1 < small_width ? x0 + 1 : x0;
            const double *upper = ratio + y0 * small_width, *lower = ratio + y1 * small_width;
            double above = upper[x0] * (1 - fx) + upper[x1] * fx;
            double below = lower[x0] * (1 - fx) + lower[x1] * fx;
            double factor = above * (1 - fy) + below * fy;
            slice[y * width + x] = (float)((double)slice[y * width + x] * factor);
        }
    }
done:
    free(ratio);
    return status;
}

double rsm_field_limited(double factor)
{
    return fmin(fmax(factor, 0.1), 10);
}

/* ---- One field for a volume ----------------------------------------------------------------------------- */

static const double DAMPING = 1e-6;

/* Position i of an axis, in [-1, 1] from its first voxel's centre to its last one's. */
static double coordinate(double i, size_t length)
{
    return length > 1 ? 2 * i / (double)(length - 1) - 1 : 0;
}

static double small_coordinate(size_t i, size_t small, size_t length)
{
    return coordinate(((double)i + 0.5) * (double)length / (double)small - 0.5, length);
}

/* Legendre polynomials of degree 0 to `order` at t. */
static void legendre(double t, size_t order, double *p)
{
    p[0] = 1;
    p[1] = t;
    for (size_t k = 2; k <= order; k++)
        p[k] = ((double)(2 * k - 1) * t * p[k - 1] - (double)(k - 1) * p[k - 2]) / (double)k;
}

/* All products whose degrees sum to `order` at most: slices' degree first, then rows', then columns'. Returns
 * how many. */
static size_t products(size_t order, const double *z, const double *y, const double *x, double *p)
{
    size_t n = 0;

    for (size_t a = 0; a <= order; a++)
        for (size_t b = 0; a + b <= order; b++)
            for (size_t c = 0; a + b + c <= order; c++) p[n++] = z[a] * y[b] * x[c];
    return n;
}

/* Solves the n equations of a symmetric positive definite matrix (its lower triangle), which becomes its
 * Cholesky factor; v becomes the solution. */
static void solve(double (*m)[RSM_FIELD_TERMS], double *v, size_t n)
{
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j <= i; j++) {
            double sum = m[i][j];
            for (size_t k = 0; k < j; k++) sum -= m[i][k] * m[j][k];
            m[i][j] = i == j ? sqrt(sum) : sum / m[j][j];
        }
    for (size_t i = 0; i < n; i++) {
        for (size_t k = 0; k < i; k++) v[i] -= m[i][k] * v[k];
        v[i] /= m[i][i];
    }
    for (size_t i = n; i-- > 0;) {
        for (size_t k = i + 1; k < n; k++) v[i] -= m[k][i] * v[k];
        v[i] /= m[i][i];
    }
}

/* Calls `use` with every foreground sample: its slice, its products and its ratio. */
static size_t each_sample(const rsm_volume_field *f, const double *ratios,
                          void (*use)(void *, size_t, const double *, size_t, double), void *data)
{
    double z[RSM_FIELD_ORDER + 1], y[RSM_FIELD_ORDER + 1], x[RSM_FIELD_ORDER + 1], p[RSM_FIELD_TERMS];
    size_t samples = 0;

    for (size_t s = 0; s < f->slices; s++) {
        legendre(coordinate((double)s, f->slices), f->order, z);
        for (size_t i = 0; i < f->small_height; i++) {
            legendre(small_coordinate(i, f->small_height, f->height), f->order, y);
            for (size_t j = 0; j < f->small_width; j++) {
                double ratio = ratios[(s * f->small_height + i) * f->small_width + j];
                if (!(ratio > 0)) continue;
                legendre(small_coordinate(j, f->small_width, f->width), f->order, x);
                use(data, s, p, products(f->order, z, y, x, p), ratio);
                samples++;
            }
        }
    }
    return samples;
}

typedef struct equations {
    size_t terms;
    double matrix[RSM_FIELD_TERMS][RSM_FIELD_TERMS], right[RSM_FIELD_TERMS];
} equations;

static void add_equation(void *data, size_t s, const double *p, size_t terms, double ratio)
{
    equations *e = data;
    double value = log(ratio);

    (void)s;
    e->terms = terms;
    for (size_t i = 0; i < terms; i++) {
        e->right[i] += p[i] * value;
        for (size_t j = 0; j <= i; j++) e->matrix[i][j] += p[i] * p[j];
    }
}

typedef struct mean_field {
    const double *coefficients;
    double sum, logs, squares;   /* of reciprocals, of logarithms and of their squares */
    size_t slice, count;         /* the slice that the samples have come to, how many of them are in it, */
    double slice_logs;           /* and the sum of their logarithms */
    double means;                /* of the slices before: the sum of count * mean² */
} mean_field;

static double field_of(double exponent)
{
    return rsm_field_limited(exp(exponent));
}

static void end_slice(mean_field *m)
{
    if (m->count > 0) m->means += m->slice_logs * m->slice_logs / (double)m->count;
    m->count = 0;
    m->slice_logs = 0;
}

static void add_field(void *data, size_t s, const double *p, size_t terms, double ratio)
{
    mean_field *m = data;
    double exponent = 0, value, logarithm;

    (void)ratio;
    if (s != m->slice) end_slice(m);
    m->slice = s;
    for (size_t i = 0; i < terms; i++) exponent += m->coefficients[i] * p[i];
    value = field_of(exponent);
    m->sum += 1 / value;
    logarithm = log(value);
    m->logs += logarithm;
    m->squares += logarithm * logarithm;
    m->count++;
    m->slice_logs += logarithm;
}

resmap_status rsm_volume_field_fit(rsm_env *env, rsm_volume_field *f, const double *ratios)
{
    equations *e = calloc(1, sizeof *e);
    mean_field mean = {.coefficients = f->coefficients};
    size_t samples;

    if (e == NULL) return rsm_no_memory(env, sizeof *e);
    samples = each_sample(f, ratios, add_equation, e);
    for (size_t i = 0; i < e->terms; i++) e->matrix[i][i] += DAMPING * (double)samples;
    solve(e->matrix, e->right, e->terms);
    memset(f->coefficients, 0, sizeof f->coefficients);
    memcpy(f->coefficients, e->right, e->terms * sizeof *e->right);
    free(e);
    each_sample(f, ratios, add_field, &mean);
    end_slice(&mean);
    f->factor = samples > 0 ? mean.sum / (double)samples : 1;
    f->spread = f->within = 0;
    if (samples > 0) {
        double n = (double)samples, log_mean = mean.logs / n;
        f->spread = sqrt(fmax(mean.squares / n - log_mean * log_mean, 0));
        f->within = sqrt(fmax((mean.squares - mean.means) / n, 0));
    }
    return RESMAP_OK;
}

void rsm_volume_field_apply(const rsm_volume_field *f, size_t s, double lo, const float *mask,
                            float *slice)
{
    double z[RSM_FIELD_ORDER + 1], y[RSM_FIELD_ORDER + 1], x[RSM_FIELD_ORDER + 1];

    legendre(coordinate((double)s, f->slices), f->order, z);
    for (size_t i = 0; i < f->height; i++) {
        double along[RSM_FIELD_ORDER + 1] = {0};   /* the row's coefficients of x's polynomials */
        size_t n = 0;
        legendre(coordinate((double)i, f->height), f->order, y);
        for (size_t a = 0; a <= f->order; a++)
            for (size_t b = 0; a + b <= f->order; b++)
                for (size_t c = 0; a + b + c <= f->order; c++) along[c] += f->coefficients[n++] * z[a] * y[b];
        for (size_t j = 0; j < f->width; j++) {
            float *v = &slice[i * f->width + j];
            double exponent = 0;
            if (mask != NULL && !(mask[i * f->width + j] > 0.5f)) continue;
            legendre(coordinate((double)j, f->width), f->order, x);
            for (size_t c = 0; c <= f->order; c++) exponent += along[c] * x[c];
            *v = (float)(((double)*v - lo) * (field_of(exponent) * f->factor) + lo);
        }
    }
}
