#include "device/fft_host.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct complex_number {
    double re, im;
} complex_number;

enum { MAX_FACTORS = 64 };

/* The mixed-radix transform of a smooth length. */
typedef struct smooth_plan {
    size_t n;
    int factors[MAX_FACTORS], factor_count;
    complex_number *roots;       /* exp(-2 pi i k / n) */
} smooth_plan;

struct rsm_fft_plan {
    size_t n;
    smooth_plan smooth;          /* of n, or of Bluestein's longer convolution */
    complex_number *chirp;       /* exp(-pi i k^2 / n); NULL: n is smooth */
    complex_number *filter;      /* transform of the conjugate chirp, divided by the convolution's length */
};

static inline complex_number times(complex_number a, complex_number b)
{
    return (complex_number){a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

/* Splits n into the radices, and returns how many there are; -1 where a prime is too large. */
static int factorize(size_t n, int factors[MAX_FACTORS])
{
    static const int radices[] = {4, 2, 3, 5, 7, 11, 13};
    int count = 0;
    for (size_t i = 0; i < sizeof radices / sizeof *radices; i++)
        while (n % (size_t)radices[i] == 0) {
            factors[count++] = radices[i];
            n /= (size_t)radices[i];
        }
    return n == 1 ? count : -1;
}

static int smooth_plan_init(smooth_plan *plan, size_t n)
{
    plan->n = n;
    plan->factor_count = factorize(n, plan->factors);
    plan->roots = n <= SIZE_MAX / sizeof *plan->roots ? malloc(n * sizeof *plan->roots) : NULL;
    if (!plan->roots) return 0;
    for (size_t k = 0; k < n; k++) {
        double angle = -2.0 * acos(-1.0) * ((double)k / (double)n);
        plan->roots[k] = (complex_number){cos(angle), sin(angle)};
    }
    return 1;
}

/* One step of Stockham's algorithm: transforms of length m * radix, `stride` of them interleaved, become
 * transforms of length m, stride * radix interleaved. */
static void step(const smooth_plan *plan, int radix, size_t m, size_t stride, const complex_number *in,
                 complex_number *out)
{
    const complex_number *roots = plan->roots;
    for (size_t p = 0; p < m; p++) {
        const complex_number *x = in + stride * p;
        complex_number *y = out + stride * (size_t)radix * p;
        const size_t hop = stride * m;
        if (radix == 2) {
            const complex_number w = roots[p * stride];
            for (size_t q = 0; q < stride; q++) {
                complex_number a = x[q], b = x[q + hop];
                y[q] = (complex_number){a.re + b.re, a.im + b.im};
                y[q + stride] = times((complex_number){a.re - b.re, a.im - b.im}, w);
            }
        } else if (radix == 3) {
            const complex_number w1 = roots[p * stride], w2 = roots[2 * p * stride];
            const double half_root3 = 0.86602540378443864676;
            for (size_t q = 0; q < stride; q++) {
                complex_number a = x[q], b = x[q + hop], c = x[q + 2 * hop];
                complex_number sum = {b.re + c.re, b.im + c.im};
                complex_number mid = {a.re - 0.5 * sum.re, a.im - 0.5 * sum.im};
                complex_number side = {half_root3 * (b.im - c.im), -half_root3 * (b.re - c.re)};
                y[q] = (complex_number){a.re + sum.re, a.im + sum.im};
                y[q + stride] = times((complex_number){mid.re + side.re, mid.im + side.im}, w1);
                y[q + 2 * stride] = times((complex_number){mid.re - side.re, mid.im - side.im}, w2);
            }
        } else if (radix == 4) {
            const complex_number w1 = roots[p * stride], w2 = roots[2 * p * stride],
                                 w3 = roots[3 * p * stride];
            for (size_t q = 0; q < stride; q++) {
                complex_number a = x[q], b = x[q + hop], c = x[q + 2 * hop], d = x[q + 3 * hop];
                complex_number ac = {a.re + c.re, a.im + c.im}, bd = {b.re + d.re, b.im + d.im};
                complex_number am = {a.re - c.re, a.im - c.im};
                complex_number bm = {b.im - d.im, d.re - b.re};      /* (b - d) times -i */
                y[q] = (complex_number){ac.re + bd.re, ac.im + bd.im};
                y[q + stride] = times((complex_number){am.re + bm.re, am.im + bm.im}, w1);
                y[q + 2 * stride] = times((complex_number){ac.re - bd.re, ac.im - bd.im}, w2);
                y[q + 3 * stride] = times((complex_number){am.re - bm.re, am.im - bm.im}, w3);
            }
        } else {
            const size_t r = (size_t)radix, unit = plan->n / r;
            for (size_t q = 0; q < stride; q++) {
                for (size_t u = 0; u < r; u++) {
                    complex_number sum = x[q];
                    for (size_t t = 1; t < r; t++) {
                        complex_number v = times(x[q + t * hop], roots[t * u % r * unit]);
                        sum.re += v.re;
                        sum.im += v.im;
                    }
                    y[q + u * stride] = times(sum, roots[u * p * stride]);
                }
            }
        }
    }
}

/* Forward, in place; work: n complex numbers. */
static void smooth_run(const smooth_plan *plan, complex_number *data, complex_number *work)
{
    complex_number *in = data, *out = work;
    size_t m = plan->n, stride = 1;
    for (int i = 0; i < plan->factor_count; i++) {
        m /= (size_t)plan->factors[i];
        step(plan, plan->factors[i], m, stride, in, out);
        stride *= (size_t)plan->factors[i];
        complex_number *swap = in;
        in = out;
        out = swap;
    }
    if (in != data) memcpy(data, in, plan->n * sizeof *data);
}

/* Smallest length >= n made of 2 and 3, whose steps are the fastest; 0 on overflow. */
static size_t next_smooth(size_t n)
{
    for (; n != 0; n++) {
        size_t rest = n;
        while (rest % 2 == 0) rest /= 2;
        while (rest % 3 == 0) rest /= 3;
        if (rest == 1) return n;
    }
    return 0;
}

rsm_fft_plan *rsm_fft_plan_create(size_t n)
{
    int factors[MAX_FACTORS];
    rsm_fft_plan *plan = n > 0 && n <= SIZE_MAX / 256 ? calloc(1, sizeof *plan) : NULL;
    if (!plan) return NULL;
    plan->n = n;
    if (factorize(n, factors) >= 0) {
        if (smooth_plan_init(&plan->smooth, n)) return plan;
        goto fail;
    }

    /* Bluestein: jk = (j^2 + k^2 - (k-j)^2) / 2 makes the transform a convolution with a chirp. */
    const size_t m = next_smooth(2 * n - 1);
    if (m == 0 || !smooth_plan_init(&plan->smooth, m)) goto fail;
    plan->chirp = malloc(n * sizeof *plan->chirp);
    plan->filter = calloc(m, sizeof *plan->filter);
    complex_number *work = malloc(m * sizeof *work);
    if (!plan->chirp || !plan->filter || !work) {
        free(work);
        goto fail;
    }
    size_t square = 0;           /* k^2 mod 2n, which keeps the angle exact */
    for (size_t k = 0; k < n; k++) {
        double angle = -acos(-1.0) * ((double)square / (double)n);
        plan->chirp[k] = (complex_number){cos(angle), sin(angle)};
        square = (square + 2 * k + 1) % (2 * n);
    }
    for (size_t k = 0; k < n; k++) {
        complex_number c = {plan->chirp[k].re / (double)m, -plan->chirp[k].im / (double)m};
        plan->filter[k] = c;
        if (k > 0) plan->filter[m - k] = c;
    }
    smooth_run(&plan->smooth, plan->filter, work);
    free(work);
    return plan;
fail:
    rsm_fft_plan_free(plan);
    return NULL;
}

void rsm_fft_plan_free(rsm_fft_plan *plan)
{
    if (!plan) return;
    free(plan->smooth.roots);
    free(plan->chirp);
    free(plan->filter);
    free(plan);
}

size_t rsm_fft_plan_work(const rsm_fft_plan *plan)
{
    return (plan->chirp ? 4 : 2) * plan->smooth.n;
}

static void forward(const rsm_fft_plan *plan, complex_number *data, complex_number *work)
{
    if (!plan->chirp) {
        smooth_run(&plan->smooth, data, work);
        return;
    }
    const size_t n = plan->n, m = plan->smooth.n;
    complex_number *a = work, *rest = work + m;
    for (size_t k = 0; k < n; k++) a[k] = times(data[k], plan->chirp[k]);
    memset(a + n, 0, (m - n) * sizeof *a);
    smooth_run(&plan->smooth, a, rest);
    /* The conjugate makes the next forward transform a backward one; the filter holds its 1/m. */
    for (size_t k = 0; k < m; k++) {
        a[k] = times(a[k], plan->filter[k]);
        a[k].im = -a[k].im;
    }
    smooth_run(&plan->smooth, a, rest);
    for (size_t k = 0; k < n; k++) data[k] = times((complex_number){a[k].re, -a[k].im}, plan->chirp[k]);
}

void rsm_fft_plan_run(const rsm_fft_plan *plan, double *interleaved, rsm_direction direction, double *work)
{
    const size_t n = plan->n;
    complex_number *data = (complex_number *)interleaved;
    if (direction == RSM_FORWARD) {
        forward(plan, data, (complex_number *)work);
        return;
    }
    for (size_t k = 0; k < n; k++) data[k].im = -data[k].im;
    forward(plan, data, (complex_number *)work);
    for (size_t k = 0; k < n; k++)
        data[k] = (complex_number){data[k].re / (double)n, -data[k].im / (double)n};
}
