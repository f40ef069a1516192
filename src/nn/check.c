/* Comparing with the reference: results, and a tunable operation on a small task of odd sizes. */
#include <math.h>
#include <stdlib.h>

#include "core/philox.h"
#include "nn/nn.h"

/* Sizes of the tasks: nothing is a multiple of a vector, a tile or a work-group; loops run more than once. */
enum {
    COLUMNS = 403,
    MOST_NORM = 301,
    CHANNELS = 5, ROWS = 37, WIDTH = 93,
    NORM_CHANNELS = 37,
    CONV_IN = 35, CONV_OUT = 13, CONV_THIN = 3,
    HEADS = 2, HEAD = 23, PIXELS = 2777
};

/* Numbers that an operation reads (x, w), writes (y), and works with. The first `part` of y are compared on
 * their own scale. */
typedef struct counts {
    size_t x, w, y, scratch, part;
} counts;

/* M and K of a product. */
static void product_of(rsm_tunable what, size_t *m, size_t *k)
{
    *m = what == RSM_TUNE_GEMM_FEW ? 3 : 101;
    *k = what == RSM_TUNE_GEMM_SHALLOW ? 47 : what == RSM_TUNE_GEMM_DEEP ? 1037 : 211;
}

static size_t conv_out(rsm_tunable what)
{
    return what == RSM_TUNE_CONV_THIN ? CONV_THIN : CONV_OUT;
}

static counts counts_of(rsm_tunable what)
{
    size_t m, k, n, sums, input = (ROWS + 2) * WIDTH, output = ROWS * WIDTH;

    switch (what) {
    case RSM_TUNE_GEMM_FEW:
    case RSM_TUNE_GEMM_SHALLOW:
    case RSM_TUNE_GEMM_MIDDLE:
    case RSM_TUNE_GEMM_DEEP:
    case RSM_TUNE_CLBLAST:       /* a plain product, then one of a layer norm */
        product_of(what, &m, &k);
        return (counts){k * COLUMNS, m * k + 2 * k, 2 * m * COLUMNS, k * COLUMNS, m * COLUMNS};
    case RSM_TUNE_DEPTHWISE: return (counts){CHANNELS * input, 9 * CHANNELS, CHANNELS * output, WIDTH, 0};
    case RSM_TUNE_GATE: return (counts){2 * CHANNELS * input, 2 * 9 * CHANNELS, CHANNELS * output, WIDTH, 0};
    case RSM_TUNE_LAYER_NORM:
        return (counts){NORM_CHANNELS * COLUMNS, 2 * NORM_CHANNELS, NORM_CHANNELS * COLUMNS, 0, 0};
    case RSM_TUNE_ATTENTION:     /* the sums, then the matrix */
        n = HEADS * HEAD;
        sums = rsm_attention_sums_count(n, HEADS);
        return (counts){2 * n * PIXELS, HEADS + n * n, sums + n * n,
                        n * HEAD + rsm_attention_scratch(n, HEADS, PIXELS), sums};
    case RSM_TUNE_CONV_THIN:
    case RSM_TUNE_CONV:
        n = conv_out(what);
        return (counts){CONV_IN * input, 9 * CONV_IN * n, n * output, 9 * CONV_IN * output, 0};
    case RSM_TUNE_BANDS:
    case RSM_TUNABLES: break;
    }
    return (counts){0, 0, 0, 0, 0};
}

static resmap_status run(rsm_device *device, rsm_tunable what, int with_bias, rsm_buffer *x, rsm_buffer *w,
                         rsm_buffer *y, rsm_buffer *scratch)
{
    const rsm_map input = {x, 0, (ROWS + 2) * WIDTH, RSM_FP32}, output = {y, 0, ROWS * WIDTH, RSM_FP32};
    const rsm_map in = {x, 0, COLUMNS, RSM_FP32}, out = {y, 0, COLUMNS, RSM_FP32};
    const rsm_map normal = {scratch, 0, COLUMNS, RSM_FP32};
    const rsm_map q = {x, 0, PIXELS, RSM_FP32}, k_map = {x, HEADS * HEAD * PIXELS, PIXELS, RSM_FP32};
    const rsm_vector weight = {w, 0}, none = {NULL, 0};
    const rsm_map zeros = {scratch, 0, WIDTH, RSM_FP32}, band = {x, WIDTH, (ROWS + 2) * WIDTH, RSM_FP32};
    const rsm_rows rows = {1, ROWS, WIDTH, 1, 0};
    size_t m, k, n = HEADS * HEAD, sums = rsm_attention_sums_count(n, HEADS);

    switch (what) {
    case RSM_TUNE_GEMM_FEW:
    case RSM_TUNE_GEMM_SHALLOW:
    case RSM_TUNE_GEMM_MIDDLE:
    case RSM_TUNE_GEMM_DEEP:
    case RSM_TUNE_CLBLAST:
        product_of(what, &m, &k);
        for (int accumulate = 0; accumulate < 2; accumulate++)
            RSM_TRY(rsm_conv1x1(device, weight, k, in, out, k, m, COLUMNS, accumulate));
        return rsm_norm_conv1x1(device, (rsm_vector){w, m * k}, with_bias ? (rsm_vector){w, m * k + k} : none,
                                weight, in, normal, (rsm_map){y, m * COLUMNS, COLUMNS, RSM_FP32},
                                k < MOST_NORM ? k : MOST_NORM, m, COLUMNS);
    case RSM_TUNE_DEPTHWISE:
        RSM_TRY(rsm_fill_zero(device, zeros, 1, WIDTH));
        return rsm_depthwise3x3(device, band, weight, output, zeros, CHANNELS, rows);
    case RSM_TUNE_GATE:
        RSM_TRY(rsm_fill_zero(device, zeros, 1, WIDTH));
        return rsm_depthwise3x3_gate(device, band, weight, output, zeros, CHANNELS, rows);
    case RSM_TUNE_LAYER_NORM:
        return rsm_layer_norm(device, in, weight, with_bias ? (rsm_vector){w, NORM_CHANNELS} : none, out,
                              NORM_CHANNELS, COLUMNS);
    case RSM_TUNE_ATTENTION:
        RSM_TRY(rsm_attention_sums(device, q, k_map, n, HEADS, 1, PIXELS, (rsm_vector){y, 0},
                                   (rsm_vector){scratch, n * HEAD}, 0));
        return rsm_attention_matrix(device, (rsm_vector){y, 0}, weight, (rsm_vector){w, HEADS},
                                    (rsm_vector){y, sums}, (rsm_vector){scratch, 0}, n, HEADS, 1);
    case RSM_TUNE_CONV_THIN:
    case RSM_TUNE_CONV:
        return rsm_conv3x3(device, input, weight, output, RSM_PLAIN, (rsm_vector){scratch, 0}, CONV_IN, conv_out(what),
                           ROWS + 2, WIDTH, 1, ROWS);
    case RSM_TUNE_BANDS:
    case RSM_TUNABLES: break;
    }
    return RESMAP_OK;
}

/* Runs it on fresh buffers; y holds NaN before, the result afterwards. */
static resmap_status run_on(rsm_device *device, rsm_tunable what, int with_bias, counts c, const float *x,
                            const float *w, float *y)
{
    const size_t sizes[4] = {c.x, c.w, c.y, c.scratch};
    rsm_buffer *buffers[4] = {NULL, NULL, NULL, NULL};
    resmap_status status = RESMAP_OK;

    for (size_t i = 0; i < c.y; i++) y[i] = NAN;
    for (int i = 0; i < 4; i++) RSM_CHECK(rsm_buffer_create(device, sizes[i], &buffers[i]));
    RSM_CHECK(rsm_buffer_write(device, buffers[0], 0, x, c.x));
    RSM_CHECK(rsm_buffer_write(device, buffers[1], 0, w, c.w));
    RSM_CHECK(rsm_buffer_write(device, buffers[2], 0, y, c.y));
    RSM_CHECK(run(device, what, with_bias, buffers[0], buffers[1], buffers[2], buffers[3]));
    RSM_CHECK(rsm_buffer_read(device, buffers[2], 0, y, c.y));
done:
    for (int i = 0; i < 4; i++) rsm_buffer_free(buffers[i]);
    return status;
}

/* Uniform in [-1, 1). */
static void fill(float *values, size_t count, uint32_t stream)
{
    const uint32_t key[2] = {stream, 0};

    for (size_t i = 0; i < count; i++) {
        uint32_t random[4];
        rsm_philox(key, (const uint32_t[4]){(uint32_t)i, 0, 0, 0}, random);
        values[i] = (float)((double)(random[0] >> 8) / 8388608.0 - 1.0);
    }
}

double rsm_difference(const float *a, const float *b, size_t count)
{
    double most = 0, scale = 0;

    for (size_t i = 0; i < count; i++) {
        const double difference = fabs((double)a[i] - (double)b[i]);
        if (!isfinite(difference)) return INFINITY;
        most = fmax(most, difference);
        scale = fmax(scale, fabs((double)b[i]));
    }
    return scale > 0 ? most / scale : most;
}

resmap_status rsm_check_operation(rsm_device *device, rsm_device *reference, rsm_tunable what, int with_bias,
                                  double *error)
{
    const counts c = counts_of(what);
    float *memory = malloc(rsm_bytes(c.x + c.w + 2 * c.y + 1, sizeof *memory));
    float *x = memory, *w, *y, *expected;
    resmap_status status;

    if (!memory) return rsm_no_memory(rsm_device_env(device), (c.x + c.w + 2 * c.y) * sizeof *memory);
    w = x + c.x;
    y = w + c.w;
    expected = y + c.y;
    fill(x, c.x, 1);
    fill(w, c.w, 2);
    RSM_CHECK(run_on(device, what, with_bias, c, x, w, y));
    RSM_CHECK(run_on(reference, what, with_bias, c, x, w, expected));
    *error = fmax(rsm_difference(y, expected, c.part),
                  rsm_difference(y + c.part, expected + c.part, c.y - c.part));
done:
    free(memory);
    return status;
}
