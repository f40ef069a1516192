/* Matrix products: the reference, our own kernels (cl/gemm.cl), and the choice between them and CLBlast. */
#include "device/device_private.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* As in cl/gemm.cl. */
#define VECTOR_COLUMNS 3
#define DEPTH 512
#define SUB_ROWS 8

static rsm_gemm_kind own_kind(const rsm_device *device)
{
    return device->cpu ? RSM_GEMM_VECTOR : RSM_GEMM_GROUP;
}

rsm_gemm_kind rsm_gemm_choose(const rsm_device *device)
{
    rsm_gemm_kind own = own_kind(device);
    const char *asked = getenv("RESMAP_GEMM");
    if (asked && strcmp(asked, "clblast") == 0) return RSM_GEMM_CLBLAST;
    if (asked && strcmp(asked, "own") == 0) return own;
    return device->cpu || device->quirks & RSM_QUIRK_OWN_GEMM ? own : RSM_GEMM_CLBLAST;
}

/* Whether the matrix lies inside its buffer, its stride being enough for a row. */
static int fits(const rsm_matrix *matrix, size_t rows, size_t columns)
{
    if (!matrix->buffer || matrix->stride < columns || matrix->stride > RSM_MAX_ELEMENTS
        || rows > RSM_MAX_ELEMENTS) {
        return 0;
    }
    uint64_t size = (uint64_t)(rows - 1) * matrix->stride + columns;
    size_t capacity = rsm_buffer_capacity(matrix->buffer, matrix->storage);
    return matrix->offset <= capacity && size <= capacity - matrix->offset;
}

/* Columns in runs whose sums stay in the first-level cache. */
static void reference(size_t m, size_t n, size_t k, const double *a, size_t a_stride, const double *b,
                      size_t b_stride, double *c, size_t c_stride, int accumulate)
{
    enum { RUN = 64 };
    double sum[RUN];
    for (size_t column = 0; column < n; column += RUN) {
        size_t width = n - column < RUN ? n - column : RUN;
        for (size_t i = 0; i < m; i++) {
            for (size_t j = 0; j < width; j++) sum[j] = 0;
            for (size_t p = 0; p < k; p++) {
                double value = a[i * a_stride + p];
                const double *row = b + p * b_stride + column;
                /* With a constant count compilers use vectors. */
                if (width == RUN) for (size_t j = 0; j < RUN; j++) sum[j] += value * row[j];
                else for (size_t j = 0; j < width; j++) sum[j] += value * row[j];
            }
            double *to = c + i * c_stride + column;
            for (size_t j = 0; j < width; j++) to[j] = accumulate ? to[j] + sum[j] : sum[j];
        }
    }
}

rsm_tunable rsm_gemm_tunable(size_t m, size_t k)
{
    if (m <= 4) return RSM_TUNE_GEMM_FEW;
    return k <= 64 ? RSM_TUNE_GEMM_SHALLOW : k <= 256 ? RSM_TUNE_GEMM_MIDDLE : RSM_TUNE_GEMM_DEEP;
}

/* What most devices of the kind are fastest with. own: not CLBlast. */
static rsm_variant by_rule(const rsm_device *device, rsm_tunable what, int own)
{
    const rsm_gemm_kind kind = own && device->gemm == RSM_GEMM_CLBLAST ? own_kind(device) : device->gemm;
    rsm_variant rule = {"default", 0, {(int)kind}};
    size_t most = device->info.max_work_group;
    if (kind == RSM_GEMM_VECTOR) {
        /* Rows held in registers: with three vectors a row, 8 fill the 32 registers of AVX-512, 4 the 16 of
         * AVX2 and SSE. */
        rule.values[1] = device->vector;
        rule.values[2] = what == RSM_TUNE_GEMM_FEW ? 2 : device->vector == 16 ? 8 : 4;
    } else if (kind == RSM_GEMM_GROUP) {
        rule.values[1] = most >= 256 ? 16 : most >= 64 ? 8 : 4;
    }
    return rule;
}

static rsm_variant choose(const rsm_device *device, rsm_tunable what, int own)
{
    const rsm_variant *tuned = rsm_tuned(device, what);
    return tuned ? *tuned : by_rule(device, what, own);
}

int rsm_gemm_takes_clblast(const rsm_device *device)
{
    if (device->reference) return 0;
    for (int what = 0; what <= RSM_TUNE_GEMM_DEEP; what++)
        if (choose(device, (rsm_tunable)what, 0).values[0] == RSM_GEMM_CLBLAST) return 1;
    return 0;
}

int rsm_gemm_refuse_clblast(rsm_device *device)
{
    const char *asked = getenv("RESMAP_GEMM");
    if (!rsm_gemm_takes_clblast(device) || (asked && strcmp(asked, "clblast") == 0)) return 0;
    rsm_tuned_set(device, RSM_TUNE_CLBLAST, NULL);
    rsm_clblast_drop_work(device);
    device->gemm = own_kind(device);
    return 1;
}

int rsm_gemm_is_rule(const rsm_device *device, rsm_tunable what, const rsm_variant *variant)
{
    const rsm_variant rule = by_rule(device, what, 0);
    return memcmp(rule.values, variant->values, sizeof rule.values) == 0;
}

static resmap_status vector_gemm(rsm_device *device, const rsm_variant *variant, size_t m, size_t n, size_t k,
                                 rsm_matrix a, rsm_matrix b, rsm_matrix c, int accumulate,
                                 const rsm_column_norm *norm)
{
    char options[128];
    rsm_kernel *kernel;
    size_t width = (size_t)variant->values[1], high = (size_t)variant->values[2];
    /* Sums are not to be rounded to half on their way. */
    size_t depth = c.storage == RSM_FP16 ? (k + DEPTH - 1) / DEPTH * DEPTH : DEPTH;
    snprintf(options, sizeof options, "-DWIDTH=%d -DROWS=%d -DDEPTH=%d -DB_TYPE=%s -DC_TYPE=%s -DNORM=%d",
             (int)width, (int)high, (int)depth, rsm_storage_type(b.storage), rsm_storage_type(c.storage),
             !norm ? 0 : norm->bias ? 2 : 1);
    RSM_TRY(rsm_kernel_get(device, "gemm", "gemm_vector", options, &kernel));

    /* Every run of rows copies its columns of B anew, so runs are as long as leaves enough of them for all
     * cores. */
    size_t tile = width * VECTOR_COLUMNS;
    size_t tiles = (n + tile - 1) / tile, blocks = (m + high - 1) / high;
    size_t wanted = 8 * (size_t)(device->info.compute_units > 0 ? device->info.compute_units : 1);
    size_t runs = tiles >= wanted ? 1 : (wanted + tiles - 1) / tiles;
    if (runs > (blocks + 3) / 4) runs = (blocks + 3) / 4;
    size_t rows = (blocks + runs - 1) / runs * high;
    const size_t global[2] = {tiles, (m + rows - 1) / rows}, local[2] = {1, 1};
    return RSM_RUN(device, kernel, 2, global, local, RSM_INT(m), RSM_INT(n), RSM_INT(k), RSM_BUFFER(a.buffer),
                   RSM_INT(a.offset), RSM_INT(a.stride), RSM_BUFFER(b.buffer), RSM_INT(b.offset),
                   RSM_INT(b.stride), RSM_BUFFER(c.buffer), RSM_INT(c.offset), RSM_INT(c.stride),
                   RSM_INT(accumulate), RSM_INT(rows), RSM_BUFFER(norm ? norm->weight : a.buffer),
                   RSM_INT(norm ? norm->weight_offset : 0),
                   RSM_BUFFER(norm && norm->bias ? norm->bias : a.buffer), RSM_INT(norm ? norm->bias_offset : 0));
}

static resmap_status group_gemm(rsm_device *device, const rsm_variant *variant, size_t m, size_t n, size_t k,
                                rsm_matrix a, rsm_matrix b, rsm_matrix c, int accumulate)
{
    size_t group = (size_t)variant->values[1];
    char options[64];
    rsm_kernel *kernel;
    /* Mobile GPUs give a kernel that takes many registers fewer work-items than they have. */
    for (;; group /= 2) {
        snprintf(options, sizeof options, "-DGROUP=%d -DB_TYPE=%s -DC_TYPE=%s", (int)group, rsm_storage_type(b.storage),
                 rsm_storage_type(c.storage));
        const int smallest = group <= 4;             /* that it does not fit running it will tell */
        const resmap_status status = rsm_kernel_get(device, "gemm", "gemm_group", options, &kernel);
        if (status == RESMAP_OK && (smallest || rsm_kernel_most_items(device, kernel) >= group * group)) break;
        if (status != RESMAP_OK && (smallest || status != RESMAP_BUILD_FAILED)) return status;
    }
    const size_t side = 4 * group;
    const size_t local[2] = {group, group};
    const size_t global[2] = {(n + side - 1) / side * group, (m + side - 1) / side * group};
    return RSM_RUN(device, kernel, 2, global, local, RSM_INT(m), RSM_INT(n), RSM_INT(k), RSM_BUFFER(a.buffer),
                   RSM_INT(a.offset), RSM_INT(a.stride), RSM_BUFFER(b.buffer), RSM_INT(b.offset),
                   RSM_INT(b.stride), RSM_BUFFER(c.buffer), RSM_INT(c.offset), RSM_INT(c.stride),
                   RSM_INT(accumulate));
}

static resmap_status sub_group_gemm(rsm_device *device, const rsm_variant *variant, size_t m, size_t n,
                                    size_t k, rsm_matrix a, rsm_matrix b, rsm_matrix c, int accumulate)
{
    size_t size = (size_t)variant->values[1];
    char options[64];
    rsm_kernel *kernel;
    snprintf(options, sizeof options, "-DSUB_GROUP=%d -DB_TYPE=%s -DC_TYPE=%s", (int)size,
             rsm_storage_type(b.storage), rsm_storage_type(c.storage));
    RSM_TRY(rsm_kernel_get(device, "gemm", "gemm_sub_group", options, &kernel));
    const size_t local[2] = {size, 1};
    const size_t global[2] = {(n + 4 * size - 1) / (4 * size) * size, (m + SUB_ROWS - 1) / SUB_ROWS};
    return RSM_RUN(device, kernel, 2, global, local, RSM_INT(m), RSM_INT(n), RSM_INT(k), RSM_BUFFER(a.buffer),
                   RSM_INT(a.offset), RSM_INT(a.stride), RSM_BUFFER(b.buffer), RSM_INT(b.offset),
                   RSM_INT(b.stride), RSM_BUFFER(c.buffer), RSM_INT(c.offset), RSM_INT(c.stride),
                   RSM_INT(accumulate));
}

int rsm_gemm_can_norm(const rsm_device *device, size_t m, size_t k)
{
    return !device->reference && k <= DEPTH && choose(device, rsm_gemm_tunable(m, k), 0).values[0] == RSM_GEMM_VECTOR;
}

/* Takes the tuned parameters off CLBlast, or where there are none CLBlast off the device. */
static void leave_clblast(rsm_device *device)
{
    if (rsm_tuned(device, RSM_TUNE_CLBLAST)) rsm_tuned_set(device, RSM_TUNE_CLBLAST, NULL);
    else device->gemm = own_kind(device);
}

static resmap_status product(rsm_device *device, size_t m, size_t n, size_t k, rsm_matrix a, rsm_matrix b,
                             rsm_matrix c, int accumulate, const rsm_column_norm *norm)
{
    if (m == 0 || n == 0) return RESMAP_OK;
    if (k == 0 || a.storage != RSM_FP32 || !fits(&a, m, k) || !fits(&b, k, n) || !fits(&c, m, n)) {
        return rsm_fail(device->env, RESMAP_INTERNAL,
                        "device %s: a product of %zu x %zu x %zu: a matrix leaves its buffer",
                        device->info.name, m, n, k);
    }
    if (norm && (!rsm_gemm_can_norm(device, m, k) || !rsm_buffer_holds(norm->weight, norm->weight_offset, k)
                 || (norm->bias && !rsm_buffer_holds(norm->bias, norm->bias_offset, k)))) {
        return rsm_fail(device->env, RESMAP_INTERNAL, "device %s: a product of %zu x %zu x %zu: no such norm",
                        device->info.name, m, n, k);
    }
    RSM_TRY(rsm_profile_next(device, norm ? "gemm_norm" : "gemm", m, k,
                             (2.0 * (double)m + (norm ? 6 : 0)) * (double)n * (double)k,
                             (double)m * (double)k + rsm_storage_size(b.storage) * (double)k * (double)n
                             + rsm_storage_size(c.storage) * (accumulate ? 2.0 : 1.0) * (double)m * (double)n));
    if (device->reference) {
        reference(m, n, k, a.buffer->host + a.offset, a.stride, b.buffer->host + b.offset, b.stride,
                  c.buffer->host + c.offset, c.stride, accumulate);
        return RESMAP_OK;
    }
    /* CLBlast wants all three in one storage, and sums in that. */
    const int own = b.storage == RSM_FP16 || c.storage == RSM_FP16;
    rsm_tunable tunable = rsm_gemm_tunable(m, k);
    rsm_variant variant = choose(device, tunable, own);
    if (variant.values[0] == RSM_GEMM_CLBLAST) {
        resmap_status status = rsm_clblast_gemm(device, m, n, k, a, b, c, accumulate);
        if (status != RESMAP_DEVICE_FAILED && status != RESMAP_BUILD_FAILED && status != RESMAP_NO_DEVICE_MEMORY) return status;
        /* Its kernels do not suit the device, or there is no room for its copies of this product's matrices, which no plan
         * counts. C is as it was. */
        rsm_log(device->env, RESMAP_LOG_INFO, "%s; our own kernel is taken", device->env->error);
        if (status != RESMAP_NO_DEVICE_MEMORY) leave_clblast(device);      /* else other products may fit */
        variant = choose(device, tunable, 1);
    }
    if (variant.values[0] == RSM_GEMM_VECTOR)
        return vector_gemm(device, &variant, m, n, k, a, b, c, accumulate, norm);
    if (variant.values[0] == RSM_GEMM_SUB_GROUP)
        return sub_group_gemm(device, &variant, m, n, k, a, b, c, accumulate);
    return group_gemm(device, &variant, m, n, k, a, b, c, accumulate);
}

resmap_status rsm_gemm(rsm_device *device, size_t m, size_t n, size_t k, rsm_matrix a, rsm_matrix b,
                       rsm_matrix c, int accumulate)
{
    return product(device, m, n, k, a, b, c, accumulate, NULL);
}

resmap_status rsm_gemm_norm(rsm_device *device, size_t m, size_t n, size_t k, rsm_matrix a, rsm_matrix b,
                            rsm_matrix c, const rsm_column_norm *norm)
{
    return product(device, m, n, k, a, b, c, 0, norm);
}
