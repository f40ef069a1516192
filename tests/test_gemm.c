/* rsm_gemm on every device, by every kernel that it can run, against sums in float64: odd shapes, offsets,
 * padded strides, matrices that end with their buffers, and NaN all around them. */
#define _GNU_SOURCE              /* RTLD_NEXT */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/device_private.h"
#include "tests/real.h"
#include "tests/run.h"
#include "tests/storage.h"

static rsm_env env;

#define OK(call) ck_assert_msg((call) == RESMAP_OK, "%s", env.error)

/* ---- A driver that gives kernels few work-items ---- */

static size_t most_items;        /* 0: as many as it has */
static size_t largest_group;     /* that was launched */

cl_int clGetKernelWorkGroupInfo(cl_kernel kernel, cl_device_id device, cl_kernel_work_group_info what, size_t size,
                                void *value, size_t *needed)
{
    cl_int (*function)(cl_kernel, cl_device_id, cl_kernel_work_group_info, size_t, void *, size_t *);
    *(void **)&function = real("clGetKernelWorkGroupInfo");
    cl_int code = function(kernel, device, what, size, value, needed);
    if (most_items > 0 && what == CL_KERNEL_WORK_GROUP_SIZE && value && *(size_t *)value > most_items)
        *(size_t *)value = most_items;
    return code;
}

cl_int clEnqueueNDRangeKernel(cl_command_queue queue, cl_kernel kernel, cl_uint dims, const size_t *offset,
                              const size_t *global, const size_t *local, cl_uint waits, const cl_event *wait,
                              cl_event *event)
{
    cl_int (*function)(cl_command_queue, cl_kernel, cl_uint, const size_t *, const size_t *, const size_t *,
                       cl_uint, const cl_event *, cl_event *);
    size_t group = 1;
    *(void **)&function = real("clEnqueueNDRangeKernel");
    for (cl_uint i = 0; local && i < dims; i++) group *= local[i];
    if (most_items > 0 && group > most_items) return CL_INVALID_WORK_GROUP_SIZE;
    if (group > largest_group) largest_group = group;
    return function(queue, kernel, dims, offset, global, local, waits, wait, event);
}

/* Numbers in [-1, 1) from a linear congruential generator, the same everywhere. */
static uint32_t state;
static float number(void)
{
    state = state * 1664525u + 1013904223u;
    return (float)((double)(state >> 8) / 8388608.0 - 1.0);
}

typedef struct layout {
    size_t offset, pad, behind;      /* elements before, between rows, after */
} layout;

/* Large products are checked in every so many rows. */
static size_t row_step(size_t m, size_t n, size_t k)
{
    return (double)m * (double)n * (double)k > 1e8 ? 53 : 1;
}

static size_t elements(size_t rows, size_t columns, layout where)
{
    return where.offset + (rows - 1) * (columns + where.pad) + columns + where.behind;
}

/* A buffer of `rows` x `columns` in the middle of `outside`; the host's copy goes to *values. */
static rsm_matrix make(rsm_device *device, rsm_storage storage, size_t rows, size_t columns, layout where,
                       float outside, int fill, float **values)
{
    rsm_matrix matrix = {NULL, where.offset, columns + where.pad, storage};
    size_t count = elements(rows, columns, where);
    *values = malloc(count * sizeof **values);
    ck_assert_ptr_nonnull(*values);
    for (size_t i = 0; i < count; i++) (*values)[i] = outside;
    for (size_t r = 0; r < rows; r++) {
        for (size_t c = 0; c < columns; c++) {
            (*values)[where.offset + r * matrix.stride + c] = fill ? number() : NAN;
        }
    }
    matrix.buffer = storage_make(device, storage, *values, count);
    return matrix;
}

static rsm_storage b_storage, c_storage;

static void one(rsm_device *device, size_t m, size_t n, size_t k, layout la, layout lb, layout lc,
                int accumulate)
{
    float *a, *b, *before, *after;
    state = (uint32_t)(m * 1000003 + n * 1009 + k);
    rsm_matrix ma = make(device, RSM_FP32, m, k, la, NAN, 1, &a);
    rsm_matrix mb = make(device, b_storage, k, n, lb, NAN, 1, &b);
    rsm_matrix mc = make(device, c_storage, m, n, lc, 12345.0f, accumulate, &before);
    size_t count = elements(m, n, lc);
    after = malloc(count * sizeof *after);
    ck_assert_ptr_nonnull(after);
    OK(rsm_gemm(device, m, n, k, ma, mb, mc, accumulate));
    storage_read(device, mc.buffer, c_storage, after, count);

    for (size_t i = 0; i < m; i++) {
        for (size_t j = 0; j < n; j++) {
            size_t at = mc.offset + i * mc.stride + j;
            if (i % row_step(m, n, k) != 0 && i != m - 1) {
                after[at] = before[at];
                continue;
            }
            double sum = accumulate ? before[at] : 0, size = fabs(sum);
            for (size_t p = 0; p < k; p++) {
                double product = (double)a[ma.offset + i * ma.stride + p] * b[mb.offset + p * mb.stride + j];
                sum += product;
                size += fabs(product);
            }
            /* The bound that holds for every order of summation in float32, and one rounding to C's storage. */
            double bound = ((double)k + 3) * ldexp(1, -24) * size;
            bound += storage_rounding(c_storage, fabs(sum) + bound);
            ck_assert_msg(fabs(after[at] - sum) <= bound,
                          "%zu x %zu x %zu, offsets %zu %zu %zu, strides +%zu +%zu +%zu, "
                          "accumulate %d, storage %d %d: C[%zu, %zu] is %.9g, not %.9g", m, n, k, la.offset, lb.offset,
                          lc.offset, la.pad, lb.pad, lc.pad, accumulate, (int)b_storage, (int)c_storage, i, j, (double)after[at], sum);
            after[at] = before[at];
        }
    }
    ck_assert_msg(memcmp(before, after, count * sizeof *after) == 0, "%zu x %zu x %zu: written outside of C",
                  m, n, k);
    rsm_buffer_free(ma.buffer);
    rsm_buffer_free(mb.buffer);
    rsm_buffer_free(mc.buffer);
    free(a);
    free(b);
    free(before);
    free(after);
}

static const size_t shapes[][3] = {   /* m, n, k: the small ones first */
    {1, 1, 1}, {3, 5, 7}, {8, 48, 3}, {9, 49, 17}, {5, 47, 1}, {2, 50, 130}, {64, 64, 16}, {17, 97, 129},
    {65, 130, 33}, {100, 3, 260}, {7, 1000, 5}, {144, 385, 48}, {9, 61, 1030},
};

static void shapes_of(rsm_device *device, size_t count)
{
    const layout none = {0, 0, 0};
    for (size_t i = 0; i < count; i++) {
        size_t m = shapes[i][0], n = shapes[i][1], k = shapes[i][2];
        one(device, m, n, k, none, none, none, 0);
        one(device, m, n, k, (layout){3, 1, 0}, (layout){64, 0, 0}, (layout){7, 5, 9 * (n + 5)}, 0);
        one(device, m, n, k, (layout){0, 9, 1}, (layout){5, 31, 1}, (layout){0, 16, 0}, 1);
    }
}

/* All pairs of storage for the device's own vectors, else what the network uses most. */
static void own_kernels(rsm_device *device, size_t count, int all)
{
    for (int pair = 0; pair < 4; pair++) {
        b_storage = pair % 2 ? RSM_FP16 : RSM_FP32;
        c_storage = pair / 2 ? RSM_FP16 : RSM_FP32;
        if (all || pair == 0 || pair == 3) shapes_of(device, count);
    }
    b_storage = c_storage = RSM_FP32;
}

/* CLBlast's copies are counted while they are there, are given up for other buffers, and where there is no room for them our
 * own kernel makes the product. */
static void work_space(rsm_device *device)
{
    size_t count;
    const rsm_variant *sets = rsm_variants(RSM_TUNE_CLBLAST, &count);
    const layout odd = {3, 1, 0};
    const uint64_t limit = rsm_device_limit(device), before = rsm_device_bytes(device);
    const rsm_gemm_kind own = device->cpu ? RSM_GEMM_VECTOR : RSM_GEMM_GROUP;
    device->gemm = own;
    rsm_device_reset_peak(device);
    one(device, 257, 300, 130, odd, odd, odd, 0);
    const uint64_t matrices = rsm_device_bytes_peak(device) - before;
    device->gemm = RSM_GEMM_CLBLAST;
    rsm_tuned_set(device, RSM_TUNE_CLBLAST, &sets[count - 1]);       /* copies for every size */
    one(device, 257, 300, 130, odd, odd, odd, 0);
    if (device->gemm == RSM_GEMM_CLBLAST && rsm_tuned(device, RSM_TUNE_CLBLAST)) {
        const uint64_t kept = rsm_device_bytes(device) - before;
        ck_assert_uint_gt(kept, 0);
        one(device, 257, 300, 130, odd, odd, odd, 1);
        ck_assert_uint_eq(rsm_device_bytes(device) - before, kept);
        rsm_device_set_limit(device, before + matrices);
        one(device, 257, 300, 130, odd, odd, odd, 0);
        ck_assert_uint_eq(rsm_device_bytes(device), before);
        ck_assert_int_eq(device->gemm, RSM_GEMM_CLBLAST);
        rsm_device_set_limit(device, limit);
        one(device, 257, 300, 130, odd, odd, odd, 0);
        ck_assert_uint_eq(rsm_device_bytes(device) - before, kept);
    }
    rsm_tuned_set(device, RSM_TUNE_CLBLAST, NULL);
}

static void every_kind(rsm_device *device)
{
    int small = getenv("RESMAP_TEST_SMALL") != NULL;
    size_t count = small ? 4 : sizeof shapes / sizeof shapes[0];
    static const int widths[] = {4, 8, 16};
    device->gemm = RSM_GEMM_VECTOR;
    const int own_vector = device->vector;
    for (size_t i = 0; i < 3; i++) {
        device->vector = widths[i];
        own_kernels(device, count, widths[i] == own_vector);
    }
    device->gemm = RSM_GEMM_GROUP;
    own_kernels(device, count, 1);
    size_t group = device->info.max_work_group;
    device->info.max_work_group = group < 64 ? group : 64;
    shapes_of(device, small ? 2 : count);
    device->info.max_work_group = group;
    /* Fewer for this kernel than the device has. */
    for (most_items = 100; most_items >= 25; most_items /= 4) {
        largest_group = 0;
        shapes_of(device, 2);
        ck_assert_uint_le(largest_group, most_items);
        ck_assert_uint_ge(largest_group, 16);
    }
    most_items = 0;
    for (unsigned size = 8; size <= 32; size *= 2) {
        if (!(device->sub_groups & size)) continue;
        const rsm_variant variant = {"sub-groups", 0, {RSM_GEMM_SUB_GROUP, (int)size}};
        printf("# sub-groups of %u\n", size);
        for (int what = 0; what <= RSM_TUNE_GEMM_DEEP; what++)
            rsm_tuned_set(device, (rsm_tunable)what, &variant);
        own_kernels(device, count, size == 16);
        for (int what = 0; what <= RSM_TUNE_GEMM_DEEP; what++) rsm_tuned_set(device, (rsm_tunable)what, NULL);
    }
    if (small) return;
    /* CLBlast: its direct kernel, then the one for large matrices, which copies those that do not suit it. */
    device->gemm = RSM_GEMM_CLBLAST;
    shapes_of(device, 9);
    work_space(device);
    device->gemm = RSM_GEMM_CLBLAST;
    /* Not for fp16. */
    b_storage = RSM_FP16;
    one(device, 40, 50, 60, (layout){0, 0, 0}, (layout){0, 0, 0}, (layout){0, 0, 0}, 0);
    ck_assert(device->gemm == RSM_GEMM_CLBLAST);
    b_storage = RSM_FP32;
    const layout none = {0, 0, 0};
    one(device, 256, 256, 256, none, (layout){65536, 0, 0}, none, 0);
    one(device, 768, 1024, 1024, none, (layout){65536, 0, 0}, none, 0);
    rsm_device_reset_peak(device);
    one(device, 513, 2049, 700, (layout){256, 4, 0}, (layout){0, 64, 0}, (layout){512, 7, 4000}, 1);
    uint64_t matrices = 4 * (256 + 512 * 704 + 700 + 699 * 2113 + 2049 + 512 + 512 * 2056 + 2049 + 4000);
    /* Where CLBlast fails its place is taken; PoCL's is known to work, unless its work-groups are made
     * small. */
    if (device->gemm != RSM_GEMM_CLBLAST) {
        ck_assert(!(device->quirks & RSM_QUIRK_NO_BINARIES) || device->info.max_work_group < 256);
        printf("# CLBlast fails\n");
        return;
    }
    printf("# CLBlast took %s for a large product\n",
           rsm_device_bytes_peak(device) > matrices ? "temporary memory" : "no temporary memory");
}

static resmap_status open_index(size_t index, rsm_device **device)
{
    char specification[24];
    snprintf(specification, sizeof specification, "%zu", index);
    return rsm_device_open(&env, specification, device);
}

static size_t device_count;

START_TEST(products)
{
    rsm_device *device;
    OK(open_index((size_t)_i, &device));
    printf("# %s\n", rsm_device_identity(device));
    every_kind(device);
    rsm_device_close(device);
}
END_TEST

START_TEST(the_same_every_time)
{
    enum { M = 40, N = 500, K = 300 };
    rsm_device *device;
    float *first = malloc(M * N * sizeof *first), *again = malloc(M * N * sizeof *again), *a, *b, *c;
    ck_assert(first && again);
    OK(open_index((size_t)_i, &device));
    const layout none = {0, 0, 0};
    rsm_matrix ma = make(device, RSM_FP32, M, K, none, 0, 1, &a), mb = make(device, RSM_FP32, K, N, none, 0, 1, &b);
    rsm_matrix mc = make(device, RSM_FP32, M, N, none, 0, 0, &c);
    for (int run = 0; run < 3; run++) {
        OK(rsm_gemm(device, M, N, K, ma, mb, mc, 0));
        OK(rsm_buffer_read(device, mc.buffer, 0, run ? again : first, M * N));
        if (run) ck_assert_mem_eq(first, again, M * N * sizeof *first);
    }
    rsm_buffer_free(ma.buffer);
    rsm_buffer_free(mb.buffer);
    rsm_buffer_free(mc.buffer);
    rsm_device_close(device);
    free(a);
    free(b);
    free(c);
    free(first);
    free(again);
}
END_TEST

START_TEST(refusals)
{
    rsm_device *device;
    OK(open_index((size_t)_i, &device));
    rsm_buffer *buffer;
    OK(rsm_buffer_create(device, 100, &buffer));
    rsm_matrix good = {buffer, 0, 10, RSM_FP32}, late = {buffer, 1, 10, RSM_FP32}, narrow = {buffer, 0, 9, RSM_FP32};
    rsm_matrix wide = {buffer, 0, 12, RSM_FP32};
    ck_assert_int_eq(rsm_gemm(device, 10, 10, 10, late, good, good, 0), RESMAP_INTERNAL);
    ck_assert_int_eq(rsm_gemm(device, 10, 10, 10, good, narrow, good, 0), RESMAP_INTERNAL);
    ck_assert_int_eq(rsm_gemm(device, 10, 10, 10, good, good, wide, 0), RESMAP_INTERNAL);
    rsm_matrix half = {buffer, 0, 10, RSM_FP16}, half_past = {buffer, 101, 10, RSM_FP16};
    ck_assert_int_eq(rsm_gemm(device, 10, 10, 10, half, good, good, 0), RESMAP_INTERNAL);
    ck_assert_int_eq(rsm_gemm(device, 10, 10, 10, good, half_past, good, 0), RESMAP_INTERNAL);
    ck_assert_int_eq(rsm_gemm(device, 0, 10, 10, good, good, wide, 0), RESMAP_OK);
    rsm_buffer_free(buffer);
    rsm_device_close(device);
}
END_TEST

int main(void)
{
    rsm_device_list *list;
    if (rsm_device_list_create(&env, &list) != RESMAP_OK) {
        printf("%s\n", env.error);
        return 99;
    }
    const resmap_device *items = rsm_device_list_items(list, &device_count);
    Suite *suite = suite_create("gemm");
    TCase *tcase = tcase_create("devices");
    tcase_set_timeout(tcase, 0);
    size_t usable = 0;
    for (size_t i = 0; i < device_count; i++) {
        if (!items[i].usable) {
            printf("# %s left out: %s\n", items[i].name, items[i].reason);
            continue;
        }
        usable++;
        tcase_add_loop_test(tcase, products, (int)i, (int)i + 1);
        tcase_add_loop_test(tcase, the_same_every_time, (int)i, (int)i + 1);
        tcase_add_loop_test(tcase, refusals, (int)i, (int)i + 1);
    }
    rsm_device_list_free(list);
    if (usable == 0) {
        printf("skipped: no OpenCL device\n");
        return 77;
    }
    suite_add_tcase(suite, tcase);
    return run_suite(suite) ? 1 : 0;
}
