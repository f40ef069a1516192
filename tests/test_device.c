/* Devices, buffers and kernels on every device present; two threads at once; no platform at all. */
#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "device/device_private.h"
#include "tests/run.h"

static rsm_env env;

#define OK(call) ck_assert_msg((call) == RESMAP_OK, "%s", env.error)

static resmap_status open_index(rsm_env *of, int index, rsm_device **device)
{
    char specification[24];
    snprintf(specification, sizeof specification, "%d", index);
    return rsm_device_open(of, specification, device);
}

START_TEST(listing)
{
    rsm_device_list *list;
    rsm_device *device;
    size_t count, chosen = 0, usable = 0;
    OK(rsm_device_list_create(&env, &list));
    const resmap_device *items = rsm_device_list_items(list, &count);
    for (size_t i = 0; i < count; i++) {
        ck_assert_int_eq(items[i].index, (int)i);
        ck_assert(items[i].name[0] && items[i].platform[0] && items[i].reason[0] && items[i].type[0]);
        ck_assert(!items[i].chosen || items[i].usable);
        usable += items[i].usable != 0;
        if (!items[i].chosen) continue;
        chosen++;
        OK(rsm_device_open(&env, "auto", &device));
        ck_assert_str_eq(rsm_device_info(device)->name, items[i].name);
        ck_assert_int_eq(rsm_device_info(device)->index, items[i].index);
        ck_assert(rsm_device_limit(device) > 0 && rsm_device_limit(device) <= items[i].memory_bytes);
        ck_assert(rsm_device_max_allocation(device) > 0);
        ck_assert_ptr_nonnull(strstr(rsm_device_identity(device), items[i].driver));
        rsm_device_close(device);
    }
    ck_assert_uint_eq(chosen, usable > 0);
    ck_assert_int_eq(rsm_device_open(&env, "no such device", &device), RESMAP_NO_DEVICE);
    rsm_device_list_free(list);
}
END_TEST

START_TEST(buffers)
{
    enum { N = 1000 };
    rsm_device *device;
    rsm_buffer *a, *b, *c = NULL;
    float start[N], got[N];
    OK(open_index(&env, _i, &device));
    OK(rsm_buffer_create(device, N, &a));
    OK(rsm_buffer_create(device, N, &b));
    ck_assert_ptr_null(rsm_buffer_host(a));
    ck_assert_uint_eq(rsm_device_bytes(device), 2 * N * sizeof(float));
    for (int i = 0; i < N; i++) start[i] = (float)i;
    OK(rsm_buffer_write(device, a, 0, start, N));
    OK(rsm_buffer_write(device, b, 0, start, N));

    /* Rows between buffers, then within one, interleaved. */
    OK(rsm_buffer_copy(device, b, 1, 50, a, 7, 13, 10, 20));
    OK(rsm_buffer_read(device, b, 0, got, N));
    for (size_t i = 0; i < N; i++) {
        size_t row = i > 0 ? (i - 1) / 50 : 0, column = i > 0 ? (i - 1) % 50 : N;
        ck_assert_msg((size_t)got[i] == (column < 10 ? 7 + row * 13 + column : i), "number %zu is %g", i,
                      (double)got[i]);
    }
    OK(rsm_buffer_copy(device, a, 5, 10, a, 0, 10, 5, 100));
    OK(rsm_buffer_read(device, a, 0, got, N));
    for (size_t i = 0; i < N; i++) ck_assert_uint_eq((size_t)got[i], i % 10 < 5 ? i : i - 5);
    OK(rsm_buffer_copy(device, b, 0, N / 2, a, N / 2, N / 2, N / 2, 1));
    OK(rsm_buffer_read(device, b, 3, got, 2));
    ck_assert_uint_eq((size_t)got[0], N / 2 + 3);

    ck_assert_int_eq(rsm_buffer_write(device, a, 1, start, N), RESMAP_INTERNAL);
    ck_assert_int_eq(rsm_buffer_read(device, a, N + 1, got, 1), RESMAP_INTERNAL);
    ck_assert_int_eq(rsm_buffer_copy(device, a, 0, 10, b, 1, 10, 10, 100), RESMAP_INTERNAL);
    rsm_device_set_limit(device, 2 * N * sizeof(float) + 10);
    ck_assert_int_eq(rsm_buffer_create(device, 3, &c), RESMAP_NO_DEVICE_MEMORY);
    OK(rsm_buffer_create(device, 2, &c));
    rsm_buffer_free(c);
    c = NULL;
    rsm_device_set_limit(device, 0);
    ck_assert_int_eq(rsm_buffer_create(device, (size_t)1 << 31, &c), RESMAP_NO_DEVICE_MEMORY);
    ck_assert_ptr_null(c);
    rsm_buffer_free(a);
    rsm_buffer_free(b);
    ck_assert_uint_eq(rsm_device_bytes(device), 0);
    ck_assert_uint_eq(rsm_device_bytes_peak(device), 2 * N * sizeof(float) + 8);
    OK(rsm_device_finish(device));
    rsm_device_close(device);
}
END_TEST

static int stop(void *data, const char *what, size_t done, size_t total)
{
    (void)data;
    (void)done;
    (void)total;
    ck_assert(what[0]);
    return 1;
}

START_TEST(kernels)
{
    rsm_device *device;
    rsm_kernel *kernel = NULL, *again = NULL;
    rsm_buffer *buffer;
    OK(open_index(&env, _i, &device));
    OK(rsm_buffer_create(device, 64, &buffer));
    ck_assert_int_eq(rsm_kernel_get(device, "no_such_program", "x", "", &kernel), RESMAP_INTERNAL);
    int provoke = getenv("RESMAP_TEST_SMALL") == NULL;   /* Oclgrind counts what is refused as an error */
    if (provoke) {
        ck_assert_int_eq(rsm_kernel_get(device, "fft", "no_such_kernel", "", &kernel), RESMAP_DEVICE_FAILED);
    }
    if (provoke) {
        ck_assert_int_eq(rsm_kernel_get(device, "fft", "fft_convolve", "-Dget_global_id=no_such_function",
                                        &kernel), RESMAP_BUILD_FAILED);
        ck_assert_msg(strstr(env.error, "fft.cl") && strstr(env.error, rsm_device_info(device)->name), "%s",
                      env.error);
    }
    env.progress = stop;   /* before each program, which may take a driver seconds */
    ck_assert_int_eq(rsm_kernel_get(device, "fft", "fft_convolve", "-DSTOPPED", &kernel), RESMAP_CANCELLED);
    env.progress = NULL;
    ck_assert_ptr_null(kernel);
    OK(rsm_kernel_get(device, "fft", "fft_convolve", "", &kernel));
    OK(rsm_kernel_get(device, "fft", "fft_convolve", "", &again));
    ck_assert_ptr_eq(kernel, again);
    OK(rsm_kernel_get(device, "fft", "fft_gather", "", &again));
    ck_assert_ptr_ne(kernel, again);

    float values[64];
    for (int i = 0; i < 64; i++) values[i] = (float)(i % 2 ? 0 : i);
    OK(rsm_buffer_write(device, buffer, 0, values, 64));
    const size_t global[2] = {5, 3}, local[2] = {4, 2}, none[2] = {5, 0};
    OK(RSM_RUN(device, kernel, 2, none, NULL, RSM_BUFFER(buffer), RSM_INT(5), RSM_INT(3),
               RSM_BUFFER(buffer)));
    /* Squares the first 15; the rounded-up rest is left alone. */
    OK(RSM_RUN(device, kernel, 2, global, local, RSM_BUFFER(buffer), RSM_INT(15), RSM_INT(1),
               RSM_BUFFER(buffer)));
    OK(rsm_buffer_read(device, buffer, 0, values, 64));
    for (int i = 0; i < 64; i += 2) ck_assert_int_eq((int)values[i], i < 16 ? i * i : i);

    ck_assert_int_eq(RSM_RUN(device, kernel, 2, global, local, RSM_BUFFER(NULL), RSM_INT(5), RSM_INT(3),
                             RSM_BUFFER(buffer)), RESMAP_INTERNAL);
    ck_assert_int_eq(RSM_RUN(device, kernel, 4, global, local, RSM_BUFFER(buffer)), RESMAP_INTERNAL);
    if (provoke) {
        const size_t large[2] = {1 << 20, 1};
        ck_assert_int_eq(RSM_RUN(device, kernel, 2, global, local, RSM_BUFFER(buffer), RSM_INT(5), RSM_INT(3),
                                 RSM_BUFFER(buffer), RSM_INT(1)), RESMAP_INTERNAL);
        ck_assert_int_eq(RSM_RUN(device, kernel, 2, large, large, RSM_BUFFER(buffer), RSM_INT(5), RSM_INT(3),
                                 RSM_BUFFER(buffer)), RESMAP_DEVICE_FAILED);
    }
    rsm_buffer_free(buffer);
    rsm_device_close(device);
}
END_TEST

/* ---- Two threads ---- */

typedef struct work {
    rsm_env env;
    int index, rounds;
    size_t n;
    const char *failed;
} work;

/* Opens a device, multiplies by a matrix of ones by CLBlast (and by our own kernel), transforms an impulse;
 * several times. */
static void *compute(void *data)
{
    work *w = data;
    size_t n = w->n;
    float *values = malloc(n * n * sizeof *values);
    for (int round = 0; round < w->rounds && !w->failed; round++) {
        rsm_device *device;
        rsm_buffer *a, *b, *c;
        if (!values || open_index(&w->env, w->index, &device) != RESMAP_OK) {
            w->failed = "open";
            break;
        }
        if (rsm_buffer_create(device, n * n, &a) || rsm_buffer_create(device, n * n, &b)
            || rsm_buffer_create(device, n * n, &c)) {
            w->failed = "create";
            break;
        }
        for (size_t i = 0; i < n * n; i++) values[i] = 1;
        if (rsm_buffer_write(device, a, 0, values, n * n) || rsm_buffer_write(device, b, 0, values, n * n)) {
            w->failed = "write";
        }
        rsm_matrix ma = {a, 0, n, RSM_FP32}, mb = {b, 0, n, RSM_FP32}, mc = {c, 0, n, RSM_FP32};
        for (int kind = 0; kind < 2 && !w->failed; kind++) {
            device->gemm = kind ? RSM_GEMM_CLBLAST : device->cpu ? RSM_GEMM_VECTOR : RSM_GEMM_GROUP;
            if (rsm_gemm(device, n, n, n, ma, mb, mc, 0) || rsm_buffer_read(device, c, 0, values, n * n)) {
                w->failed = "product";
            }
            for (size_t i = 0; i < n * n && !w->failed; i++) {
                if (values[i] != (float)n) w->failed = "wrong product";
            }
        }
        for (size_t i = 0; i < n * n; i++) values[i] = i == 0;
        if (rsm_buffer_write(device, a, 0, values, n * n)
            || rsm_fft(device, a, 0, (const size_t[]){n / 2, n, 1}, 3, RSM_FORWARD)
            || rsm_buffer_read(device, a, 0, values, n * n)) w->failed = "transform";
        for (size_t i = 0; i < n * n && !w->failed; i++) {
            if (!(values[i] - (i % 2 == 0) < 1e-4f && values[i] - (i % 2 == 0) > -1e-4f)) {
                w->failed = "wrong transform";
            }
        }
        rsm_buffer_free(a);
        rsm_buffer_free(b);
        rsm_buffer_free(c);
        rsm_device_close(device);
    }
    free(values);
    return NULL;
}

START_TEST(two_threads)
{
    static work both[2];
    pthread_t threads[2];
    for (int i = 0; i < 2; i++) {
        memset(&both[i], 0, sizeof both[i]);
        both[i].index = _i;
        both[i].rounds = 3;
        both[i].n = i ? 34 : 30;
        ck_assert_int_eq(pthread_create(&threads[i], NULL, compute, &both[i]), 0);
    }
    for (int i = 0; i < 2; i++) ck_assert_int_eq(pthread_join(threads[i], NULL), 0);
    for (int i = 0; i < 2; i++) {
        ck_assert_msg(!both[i].failed, "thread %d: %s: %s", i, both[i].failed, both[i].env.error);
    }
}
END_TEST

/* What threads saw that were the process's first to use OpenCL, all at once. */
enum { FIRST = 8 };
static struct first {
    rsm_env env;
    resmap_status status;
    size_t count;
} firsts[FIRST];

static void *list_first(void *data)
{
    struct first *first = data;
    rsm_device_list *list;
    first->status = rsm_device_list_create(&first->env, &list);
    if (first->status != RESMAP_OK) return NULL;
    rsm_device_list_items(list, &first->count);
    rsm_device_list_free(list);
    return NULL;
}

START_TEST(first_use)
{
    for (int i = 0; i < FIRST; i++) {
        ck_assert_msg(firsts[i].status == RESMAP_OK, "thread %d: %s", i, firsts[i].env.error);
        ck_assert_uint_eq(firsts[i].count, firsts[0].count);
    }
}
END_TEST

/* Run in a process of its own, before anything else uses OpenCL: 0 when a system without platforms is
 * handled. */
static int without_platform(void)
{
    rsm_device_list *list;
    rsm_device *device;
    size_t count = 99;
    if (setenv("OCL_ICD_VENDORS", "/nonexistent", 1) != 0) return 1;
    if (rsm_device_list_create(&env, &list) != RESMAP_OK) return 2;
    rsm_device_list_items(list, &count);
    rsm_device_list_free(list);
    if (count != 0) return 77;                       /* another loader (Oclgrind's) brings its own */
    if (rsm_device_open(&env, "auto", &device) != RESMAP_NO_DEVICE) return 3;
    if (!strstr(env.error, "no device")) return 7;
    if (rsm_device_open(&env, "0", &device) != RESMAP_NO_DEVICE) return 4;
    if (rsm_device_open(&env, "gpu", &device) != RESMAP_NO_DEVICE) return 5;
    if (rsm_device_open(&env, "reference", &device) != RESMAP_OK) return 6;
    rsm_device_close(device);
    return 0;
}

static int without_platform_result;

START_TEST(no_platform)
{
    if (without_platform_result == 77) printf("# this OpenCL loader cannot be told to find nothing\n");
    else ck_assert_int_eq(without_platform_result, 0);
}
END_TEST

int main(void)
{
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) _exit(without_platform());
    int status;
    int ended = child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status);
    without_platform_result = ended ? WEXITSTATUS(status) : 98;
    pthread_t threads[FIRST];
    for (int i = 0; i < FIRST; i++)
        if (pthread_create(&threads[i], NULL, list_first, &firsts[i]) != 0) return 99;
    for (int i = 0; i < FIRST; i++) pthread_join(threads[i], NULL);

    rsm_device_list *list;
    size_t count;
    if (rsm_device_list_create(&env, &list) != RESMAP_OK) {
        printf("%s\n", env.error);
        return 99;
    }
    const resmap_device *items = rsm_device_list_items(list, &count);
    Suite *suite = suite_create("device");
    TCase *tcase = tcase_create("devices");
    tcase_set_timeout(tcase, 0);
    tcase_add_test(tcase, no_platform);
    tcase_add_test(tcase, first_use);
    tcase_add_test(tcase, listing);
    for (int i = 0; i < (int)count; i++) {
        printf("# %d: %s, %s: %s\n", i, items[i].platform, items[i].name, items[i].reason);
        if (!items[i].usable) continue;
        tcase_add_loop_test(tcase, buffers, i, i + 1);
        tcase_add_loop_test(tcase, kernels, i, i + 1);
        if (!getenv("RESMAP_TEST_SMALL")) tcase_add_loop_test(tcase, two_threads, i, i + 1);
    }
    if (count == 0) printf("# no OpenCL device\n");
    rsm_device_list_free(list);
    suite_add_tcase(suite, tcase);
    return run_suite(suite) ? 1 : 0;
}
