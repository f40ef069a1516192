#include <math.h>
#include <stdlib.h>

#include "synth/synth.h"

/* Coordinate of voxel i on an axis of n: -1 at the first centre, 1 at the last. */
static double coordinate(size_t i, size_t n)
{
    return n > 1 ? 2.0 * (double)i / (double)(n - 1) - 1.0 : 0.0;
}

/* The log of the field along row (j, k) as a polynomial in X: row[a], a = 0 … order. */
static void row_polynomial(const rsm_bias *bias, const size_t shape[3], size_t j, size_t k, double row[])
{
    const double y = coordinate(j, shape[1]), z = coordinate(k, shape[2]);
    const double *c = bias->coefficients;
    for (int a = 0; a <= bias->order; a++) {
        double yb = 1.0;
        row[a] = 0.0;
        for (int b = 0; a + b <= bias->order; b++) {
            double zd = 1.0;
            for (int d = 0; a + b + d <= bias->order; d++) {
                row[a] += *c++ * yb * zd;
                zd *= z;
            }
            yb *= y;
        }
    }
}

static double evaluate(const double row[], int order, double x)
{
    double sum = row[order];
    for (int a = order - 1; a >= 0; a--) sum = sum * x + row[a];
    return sum;
}

/* A double as the sum of two floats, 48 bits of it. */
static void split(double value, float pair[2])
{
    pair[0] = (float)value;
    pair[1] = (float)(value - pair[0]);
}

/* Device tables for the kernels: the row polynomials less `log_mean`, and the powers of X, all split. */
static resmap_status make_tables(rsm_device *device, const rsm_bias *bias, const size_t shape[3],
                                 double log_mean, rsm_buffer **rows, rsm_buffer **powers)
{
    const size_t terms = (size_t)bias->order + 1, row_count = shape[1] * shape[2];
    const size_t most = row_count > shape[0] ? row_count : shape[0];
    const size_t bytes = rsm_bytes(rsm_bytes(most, 2 * terms), sizeof(float));
    float *table = bytes != 0 ? malloc(bytes) : NULL;
    resmap_status status = table ? RESMAP_OK : rsm_no_memory(rsm_device_env(device), bytes);
    if (status != RESMAP_OK) return status;

    for (size_t r = 0; r < row_count; r++) {
        double row[RSM_MAX_BIAS_ORDER + 1];
        row_polynomial(bias, shape, r % shape[1], r / shape[1], row);
        row[0] -= log_mean;
        for (size_t a = 0; a < terms; a++) split(row[a], table + 2 * (r * terms + a));
    }
    RSM_CHECK(rsm_buffer_create(device, 2 * terms * row_count, rows));
    RSM_CHECK(rsm_buffer_write(device, *rows, 0, table, 2 * terms * row_count));
    for (size_t i = 0; i < shape[0]; i++) {
        double power = 1.0;
        for (size_t a = 0; a < terms; a++, power *= coordinate(i, shape[0]))
            split(power, table + 2 * (i * terms + a));
    }
    RSM_CHECK(rsm_buffer_create(device, 2 * terms * shape[0], powers));
    RSM_CHECK(rsm_buffer_write(device, *powers, 0, table, 2 * terms * shape[0]));
done:
    free(table);
    return status;
}

/* log(sum of exp) is kept as a maximum and a sum relative to it, so that no field overflows. */
typedef struct log_sum {
    double most, sum;
} log_sum;

static void log_sum_add(log_sum *s, double most, double sum)
{
    if (sum == 0.0) return;
    if (most <= s->most) s->sum += sum * exp(most - s->most);
    else {
        s->sum = s->sum * exp(s->most - most) + sum;
        s->most = most;
    }
}

resmap_status rsm_bias_measure(rsm_device *device, const rsm_bias *bias, const size_t shape[3],
                               rsm_buffer *clean, double threshold, double *log_mean)
{
    const size_t row_count = shape[1] * shape[2];
    const double *x = rsm_buffer_host(clean);
    log_sum total = {-INFINITY, 0.0};
    double inside = 0.0;
    if (x) {
        for (size_t r = 0; r < row_count; r++) {
            double row[RSM_MAX_BIAS_ORDER + 1];
            row_polynomial(bias, shape, r % shape[1], r / shape[1], row);
            for (size_t i = 0; i < shape[0]; i++) {
                if (!(x[r * shape[0] + i] > threshold)) continue;
                log_sum_add(&total, evaluate(row, bias->order, coordinate(i, shape[0])), 1.0);
                inside += 1.0;
            }
        }
    } else {
        rsm_buffer *rows = NULL, *powers = NULL, *sums = NULL;
        rsm_kernel *kernel;
        resmap_status status;
        const size_t bytes = rsm_bytes(row_count, 3 * sizeof(float));
        float *host = bytes != 0 ? malloc(bytes) : NULL;
        if (!host) return rsm_no_memory(rsm_device_env(device), bytes);
        RSM_CHECK(make_tables(device, bias, shape, 0.0, &rows, &powers));
        RSM_CHECK(rsm_buffer_create(device, 3 * row_count, &sums));
        RSM_CHECK(rsm_kernel_get(device, "synth_bias", "synth_bias_rows", "", &kernel));
        RSM_CHECK(RSM_RUN(device, kernel, 1, &row_count, NULL, RSM_BUFFER(clean), RSM_BUFFER(rows),
                          RSM_BUFFER(powers), RSM_BUFFER(sums), RSM_INT(bias->order), RSM_FLOAT(threshold),
                          RSM_INT(shape[0]), RSM_INT(row_count)));
        RSM_CHECK(rsm_buffer_read(device, sums, 0, host, 3 * row_count));
        for (size_t r = 0; r < row_count; r++) {
            log_sum_add(&total, host[3 * r], host[3 * r + 1]);
            inside += host[3 * r + 2];
        }
done:
        rsm_buffer_free(rows);
        rsm_buffer_free(powers);
        rsm_buffer_free(sums);
        free(host);
        if (status != RESMAP_OK) return status;
    }
    if (inside == 0.0)
        return rsm_fail(rsm_device_env(device), RESMAP_BAD_FILE, "bias: the image has no foreground");
    *log_mean = total.most + log(total.sum / inside);
    return RESMAP_OK;
}

double rsm_bias_most(const rsm_bias *bias, const size_t shape[3], double log_mean)
{
    double most = -INFINITY;
    for (size_t r = 0; r < shape[1] * shape[2]; r++) {
        double row[RSM_MAX_BIAS_ORDER + 1];
        row_polynomial(bias, shape, r % shape[1], r / shape[1], row);
        for (size_t i = 0; i < shape[0]; i++) most = fmax(most, evaluate(row, bias->order, coordinate(i, shape[0])));
    }
    return exp(most - log_mean);
}

resmap_status rsm_bias_apply(rsm_device *device, const rsm_bias *bias, const size_t shape[3], double log_mean,
                             rsm_buffer *volume)
{
    const size_t row_count = shape[1] * shape[2];
    double *y = rsm_buffer_host(volume);
    if (y) {
        for (size_t r = 0; r < row_count; r++) {
            double row[RSM_MAX_BIAS_ORDER + 1];
            row_polynomial(bias, shape, r % shape[1], r / shape[1], row);
            row[0] -= log_mean;
            for (size_t i = 0; i < shape[0]; i++)
                y[r * shape[0] + i] *= exp(evaluate(row, bias->order, coordinate(i, shape[0])));
        }
        return RESMAP_OK;
    }
    rsm_buffer *rows = NULL, *powers = NULL;
    rsm_kernel *kernel;
    const size_t count = shape[0] * row_count;
    resmap_status status;
    RSM_CHECK(make_tables(device, bias, shape, log_mean, &rows, &powers));
    RSM_CHECK(rsm_kernel_get(device, "synth_bias", "synth_bias", "", &kernel));
    RSM_CHECK(RSM_RUN(device, kernel, 1, &count, NULL, RSM_BUFFER(volume), RSM_BUFFER(rows),
                      RSM_BUFFER(powers), RSM_INT(bias->order), RSM_INT(shape[0]), RSM_INT(count)));
done:
    rsm_buffer_free(rows);
    rsm_buffer_free(powers);
    return status;
}
