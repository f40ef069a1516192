/* The parts of the device layer that need no OpenCL: choosing a device, program binaries on disk, the plain-C
 * reference. */
#include <check.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "device/device_private.h"
#include "tests/run.h"
#include "tests/scratch.h"

static rsm_env env;

#define OK(call) ck_assert_msg((call) == RESMAP_OK, "%s", env.error)

/* ---- Choosing ---- */

enum { DEVICES = 5 };
static resmap_device items[DEVICES] = {
    {.index = 0, .platform = "Portable Computing Language", .name = "pthread-CPU", .type = "cpu",
     .usable = 1},
    {.index = 1, .platform = "Clover", .name = "Old Radeon", .type = "gpu", .usable = 0,
     .reason = "computes wrongly"},
    {.index = 2, .platform = "Vendor OpenCL", .name = "Small GPU", .type = "gpu", .usable = 1},
    {.index = 3, .platform = "Vendor OpenCL", .name = "Large GPU", .type = "gpu", .usable = 1},
    {.index = 4, .platform = "Vendor OpenCL", .name = "Accelerator 4000", .type = "accelerator", .usable = 0,
     .reason = "the driver has no compiler"},
};
static rsm_candidate candidates[DEVICES] = {
    {.can_work = 1, .score = 1e9}, {.can_work = 1, .score = 9e9}, {.can_work = 1, .score = 3e9},
    {.can_work = 1, .score = 3.5e9}, {.can_work = 0, .score = 2e9},
};

/* The index taken from the first `count` devices, or minus the status. */
static int taken(size_t count, const char *specification)
{
    const rsm_device_list list = {count, items, candidates, NULL};
    size_t index = 99;
    resmap_status status = rsm_device_list_select(&env, &list, specification, &index);
    return status == RESMAP_OK ? (int)index : -(int)status;
}

START_TEST(choosing)
{
    ck_assert_int_eq(taken(DEVICES, NULL), 3);
    ck_assert_int_eq(taken(DEVICES, "auto"), 3);
    ck_assert_int_eq(taken(DEVICES, "gpu"), 3);
    ck_assert_int_eq(taken(DEVICES, "cpu"), 0);
    ck_assert_int_eq(taken(3, "auto"), 2);
    ck_assert_int_eq(taken(2, "auto"), 0);           /* Clover is not taken by itself */
    ck_assert_int_eq(taken(2, "gpu"), -RESMAP_NO_DEVICE);
    ck_assert_int_eq(taken(2, "1"), 1);              /* but when named */
    ck_assert_int_eq(taken(2, "radeon"), 1);
    ck_assert_int_eq(taken(DEVICES, "2"), 2);
    ck_assert_int_eq(taken(DEVICES, "small g"), 2);
    ck_assert_int_eq(taken(DEVICES, "GPU "), -RESMAP_NO_DEVICE);
    ck_assert_int_eq(taken(DEVICES, "portable"), 0); /* a platform's name */
    ck_assert_int_eq(taken(DEVICES, "a"), 3);        /* of several, the best usable */
    ck_assert_int_eq(taken(DEVICES, "5"), -RESMAP_NO_DEVICE);
    ck_assert_int_eq(taken(DEVICES, "99999999999999999999999"), -RESMAP_NO_DEVICE);
    ck_assert_int_eq(taken(DEVICES, "-1"), -RESMAP_NO_DEVICE);
    ck_assert_int_eq(taken(DEVICES, ""), -RESMAP_NO_DEVICE);
    ck_assert_int_eq(taken(DEVICES, "voodoo"), -RESMAP_NO_DEVICE);
    ck_assert_int_eq(taken(DEVICES, "accelerator"), -RESMAP_NO_DEVICE);
    ck_assert_ptr_nonnull(strstr(env.error, "no compiler"));
    ck_assert_int_eq(taken(DEVICES, "4"), -RESMAP_NO_DEVICE);
    ck_assert_int_eq(taken(0, "auto"), -RESMAP_NO_DEVICE);
}
END_TEST

/* Makers count units differently: a GPU with memory of its own comes before a wider one that has the host's. */
START_TEST(scored)
{
    const resmap_device wide = {.type = "gpu", .compute_units = 96, .clock_mhz = 1300};
    const resmap_device narrow = {.type = "gpu", .compute_units = 28, .clock_mhz = 1777};
    const resmap_device processor = {.type = "cpu", .compute_units = 128, .clock_mhz = 4000};
    const rsm_candidate own = {.host_memory = 0}, shared = {.host_memory = 1};
    ck_assert(rsm_device_score(&narrow, &own) > rsm_device_score(&wide, &shared));
    ck_assert(rsm_device_score(&wide, &own) > rsm_device_score(&narrow, &own));
    ck_assert(rsm_device_score(&narrow, &shared) > rsm_device_score(&processor, &shared));
}
END_TEST

/* What "auto" tries, should the best not open. */
START_TEST(ranking)
{
    const rsm_device_list list = {DEVICES, items, candidates, NULL}, unusable = {1, items + 1, candidates + 1, NULL};
    size_t *indices, count;
    OK(rsm_device_list_ranked(&env, &list, &indices, &count));
    ck_assert_uint_eq(count, 3);
    ck_assert(indices[0] == 3 && indices[1] == 2 && indices[2] == 0);
    free(indices);
    ck_assert_int_eq(rsm_device_list_ranked(&env, &unusable, &indices, &count), RESMAP_NO_DEVICE);
}
END_TEST

/* "all": the usable ones, and one driver for the CPU and for a slot. */
START_TEST(choosing_all)
{
    const rsm_device_list list = {DEVICES, items, candidates, NULL};
    size_t *indices = NULL, count = 99;
    OK(rsm_device_list_all(&env, &list, &indices, &count));
    ck_assert_uint_eq(count, 3);
    ck_assert(indices[0] == 0 && indices[1] == 2 && indices[2] == 3);
    free(indices);

    resmap_device two[2] = {items[0], items[0]};
    rsm_candidate scores[2] = {candidates[0], candidates[0]};
    const rsm_device_list cpus = {2, two, scores, NULL};
    scores[1].score *= 2;
    OK(rsm_device_list_all(&env, &cpus, &indices, &count));
    ck_assert(count == 1 && indices[0] == 1);
    free(indices);
    two[0] = two[1] = items[2];                  /* one GPU by two drivers, then two in two slots, then in no slot */
    scores[0] = scores[1] = (rsm_candidate){.can_work = 1, .score = 3e9, .slot = {1, 0, 3, 0, 0}};
    OK(rsm_device_list_all(&env, &cpus, &indices, &count));
    ck_assert_uint_eq(count, 2);                 /* parts of one board, which one driver lists as several */
    free(indices);
    scores[1].platform = (cl_platform_id)&scores;
    OK(rsm_device_list_all(&env, &cpus, &indices, &count));
    ck_assert(count == 1 && indices[0] == 0);
    free(indices);
    scores[1].slot[2] = 4;
    OK(rsm_device_list_all(&env, &cpus, &indices, &count));
    ck_assert_uint_eq(count, 2);
    free(indices);
    scores[0].slot[0] = scores[1].slot[0] = 0;
    scores[1].slot[2] = 3;
    OK(rsm_device_list_all(&env, &cpus, &indices, &count));
    ck_assert_uint_eq(count, 2);
    free(indices);
    two[0].usable = two[1].usable = 0;
    ck_assert_int_eq(rsm_device_list_all(&env, &cpus, &indices, &count), RESMAP_NO_DEVICE);
    ck_assert_ptr_nonnull(strstr(env.error, "no usable"));
}
END_TEST

static int heard;
static void hear(void *data, resmap_log_level level, const char *text)
{
    (void)data;
    (void)level;
    (void)text;
    heard++;
}

/* Several devices: an env each, which speaks through the caller's, and a share of the memory. */
START_TEST(several)
{
    rsm_device **devices, *one;
    size_t count;
    OK(rsm_devices_open(&env, "reference", &devices, &count));
    ck_assert_uint_eq(count, 1);
    ck_assert_ptr_eq(rsm_device_env(devices[0]), &env);
    uint64_t limit = rsm_device_limit(devices[0]);
    rsm_devices_close(devices, count);

    OK(rsm_devices_open(&env, "reference,reference,reference", &devices, &count));
    ck_assert_uint_eq(count, 3);
    for (size_t i = 0; i < count; i++) ck_assert_uint_eq(rsm_device_limit(devices[i]), limit / 3);
    ck_assert_ptr_ne(rsm_device_env(devices[0]), rsm_device_env(devices[1]));
    rsm_buffer *buffer = NULL;
    env.error[0] = '\0';
    ck_assert_int_eq(rsm_buffer_create(devices[1], SIZE_MAX / 2, &buffer), RESMAP_NO_DEVICE_MEMORY);
    ck_assert_str_eq(env.error, "");
    ck_assert_str_ne(rsm_device_env(devices[1])->error, "");
    env.log = hear;
    rsm_log(rsm_device_env(devices[2]), RESMAP_LOG_INFO, "hello");
    env.log = NULL;
    ck_assert_int_eq(heard, 1);
    rsm_devices_close(devices, count);
    rsm_devices_close(NULL, 0);
    ck_assert_int_eq(rsm_devices_open(&env, "reference,no such", &devices, &count), RESMAP_NO_DEVICE);
    ck_assert_int_eq(rsm_devices_open(&env, "reference/2", &devices, &count), RESMAP_BAD_ARGUMENT);
    ck_assert_int_eq(rsm_device_open(&env, "reference,reference", &one), RESMAP_NO_DEVICE);
}
END_TEST

START_TEST(words)
{
    ck_assert(rsm_has_word("cl_khr_fp16 cl_khr_fp64", "cl_khr_fp16"));
    ck_assert(rsm_has_word("cl_a cl_khr_fp16", "cl_khr_fp16"));
    ck_assert(!rsm_has_word("cl_khr_fp16_more x_cl_khr_fp16", "cl_khr_fp16"));
    ck_assert(rsm_has_word("cl_khr_fp16_more cl_khr_fp16", "cl_khr_fp16"));
    ck_assert(!rsm_has_word("", "cl_khr_fp16"));
}
END_TEST

/* ---- Program binaries ---- */

static char folder[256];
static char key[65], other_key[65];
static const char payload[] = "a program, as a driver would give it";

static void make_folder(void)
{
    ck_assert(make_scratch(folder));
    rsm_sha256_hex("a", 1, key);
    rsm_sha256_hex("b", 1, other_key);
}

static void remove_folder(void)
{
    char command[300];
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    ck_assert_int_eq(system(command), 0);
}

static char *path_of(const char *of)
{
    char *path = rsm_format("%s/%s.bin", folder, of);
    ck_assert_ptr_nonnull(path);
    return path;
}

static int exists(const char *of)
{
    char *path = path_of(of);
    int there = access(path, F_OK) == 0;
    free(path);
    return there;
}

static void write_file(const char *of, const void *bytes, size_t size)
{
    char *path = path_of(of);
    FILE *file = fopen(path, "wb");
    ck_assert_ptr_nonnull(file);
    ck_assert_uint_eq(fwrite(bytes, 1, size, file), size);
    ck_assert_int_eq(fclose(file), 0);
    free(path);
}

static size_t read_file(const char *of, unsigned char *bytes, size_t most)
{
    char *path = path_of(of);
    FILE *file = fopen(path, "rb");
    ck_assert_ptr_nonnull(file);
    size_t size = fread(bytes, 1, most, file);
    fclose(file);
    free(path);
    return size;
}

/* Whether the payload comes back under `of`. */
static int loads(const char *of)
{
    size_t size = 99;
    unsigned char *loaded = rsm_binaries_load(folder, of, &size);
    if (!loaded) {
        ck_assert_uint_eq(size, 0);
        return 0;
    }
    int same = size == sizeof payload && memcmp(loaded, payload, size) == 0;
    free(loaded);
    ck_assert(same);
    return 1;
}

START_TEST(damaged_binaries)
{
    unsigned char good[512], bad[513];
    rsm_binaries_store(folder, key, payload, sizeof payload, 1 << 20);
    ck_assert(loads(key));
    ck_assert(!loads(other_key));
    size_t size = read_file(key, good, sizeof good);
    ck_assert_uint_eq(size, 148 + sizeof payload);
    for (size_t length = 0; length < size; length++) {
        write_file(key, good, length);
        ck_assert_msg(!loads(key), "cut to %zu of %zu bytes", length, size);
        ck_assert(!exists(key));
    }
    for (size_t at = 0; at < size; at++) {
        for (int bit = 0; bit < 8; bit++) {
            memcpy(bad, good, size);
            bad[at] ^= (unsigned char)(1 << bit);
            write_file(key, bad, size);
            ck_assert_msg(!loads(key), "bit %d of byte %zu flipped", bit, at);
        }
    }
    memcpy(bad, good, size);
    bad[size] = 0;
    write_file(key, bad, size + 1);
    ck_assert(!loads(key));
    write_file(other_key, good, size);               /* another program's file under this name */
    ck_assert(!loads(other_key));
    write_file(key, good, size);
    ck_assert(loads(key));
    char *path = path_of(key), *link = path_of(other_key);
    ck_assert_int_eq(symlink(path, link), 0);
    ck_assert(!loads(other_key));
    free(path);
    free(link);
}
END_TEST

START_TEST(oldest_binaries_go)
{
    char keys[4][65];
    struct timespec times[2];
    for (int i = 0; i < 4; i++) rsm_sha256_hex(&i, sizeof i, keys[i]);
    for (int i = 0; i < 3; i++) {
        rsm_binaries_store(folder, keys[i], payload, sizeof payload, 1 << 20);
        char *path = path_of(keys[i]);
        times[0].tv_sec = times[1].tv_sec = 1000 + i;
        times[0].tv_nsec = times[1].tv_nsec = 0;
        ck_assert_int_eq(utimensat(AT_FDCWD, path, times, 0), 0);
        free(path);
    }
    ck_assert(loads(keys[0]));                       /* used: now the newest of the three */
    rsm_binaries_store(folder, keys[3], payload, sizeof payload, 3 * (148 + sizeof payload));
    ck_assert(exists(keys[0]));
    ck_assert(!exists(keys[1]));
    ck_assert(exists(keys[2]));
    ck_assert(exists(keys[3]));
    /* Larger than all that may be kept. */
    rsm_binaries_store(folder, key, payload, sizeof payload, sizeof payload - 1);
    ck_assert(!exists(key));
    rsm_binaries_remove(folder, keys[3]);
    ck_assert(!exists(keys[3]));
    rsm_binaries_store("/nonexistent/folder", key, payload, sizeof payload, 1 << 20);
    /* No temporary files are left. */
    char *command = rsm_format("test \"$(ls -A %s | wc -l)\" -eq 2", folder);
    ck_assert_int_eq(system(command), 0);
    free(command);
}
END_TEST

START_TEST(private_folder)
{
    ck_assert_int_eq(setenv("RESMAP_CACHE", folder, 1), 0);
    char *binaries = rsm_binaries_folder(&env), *expected = rsm_format("%s/cl", folder);
    struct stat info;
    ck_assert_ptr_nonnull(binaries);
    ck_assert_str_eq(binaries, expected);
    ck_assert_int_eq(stat(binaries, &info), 0);
    ck_assert_int_eq(info.st_mode & 0777, 0700);
    free(binaries);
    ck_assert_int_eq(chmod(expected, 0770), 0);
    ck_assert_ptr_null(rsm_binaries_folder(&env));
    ck_assert_int_eq(rmdir(expected), 0);
    ck_assert_int_eq(symlink("/tmp", expected), 0);
    ck_assert_ptr_null(rsm_binaries_folder(&env));
    ck_assert_int_eq(setenv("RESMAP_CACHE", "off", 1), 0);
    ck_assert_ptr_null(rsm_binaries_folder(&env));
    ck_assert_int_eq(unsetenv("RESMAP_CACHE"), 0);
    free(expected);
}
END_TEST

START_TEST(keys)
{
    char a[65], b[65];
    OK(rsm_binaries_key(&env, (const char *[]){"ab", "c"}, 2, a));
    OK(rsm_binaries_key(&env, (const char *[]){"a", "bc"}, 2, b));
    ck_assert_str_ne(a, b);
    OK(rsm_binaries_key(&env, (const char *[]){"ab", "c", ""}, 3, b));
    ck_assert_str_ne(a, b);
    OK(rsm_binaries_key(&env, (const char *[]){"ab", "c"}, 2, b));
    ck_assert_str_eq(a, b);
    ck_assert_uint_eq(strlen(a), 64);
}
END_TEST

/* ---- The reference ---- */

START_TEST(reference)
{
    rsm_device *device;
    rsm_buffer *a, *b;
    OK(rsm_device_open(&env, "reference", &device));
    ck_assert(rsm_device_is_reference(device));
    ck_assert(rsm_device_is_cpu(device));
    ck_assert_str_eq(rsm_device_info(device)->name, "reference");
    ck_assert_str_eq(rsm_device_info(device)->platform, "plain C");
    OK(rsm_buffer_create(device, 10, &a));
    OK(rsm_buffer_create(device, 20, &b));
    ck_assert_ptr_nonnull(rsm_buffer_host(a));
    ck_assert_uint_eq(rsm_device_bytes(device), 240);

    const float start[10] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};
    float got[20];
    for (int i = 0; i < 20; i++) rsm_buffer_host(b)[i] = -1;
    OK(rsm_buffer_write(device, a, 0, start, 10));
    OK(rsm_buffer_copy(device, b, 1, 5, a, 2, 3, 2, 3));
    OK(rsm_buffer_read(device, b, 0, got, 20));
    static const float expected[20] = {-1, 2, 3, -1, -1, -1, 5, 6, -1, -1, -1, 8, 9, -1, -1, -1, -1, -1, -1,
                                       -1};
    ck_assert_mem_eq(got, expected, sizeof got);
    ck_assert_int_eq(rsm_buffer_copy(device, b, 0, 5, a, 3, 3, 2, 3), RESMAP_INTERNAL);
    ck_assert_int_eq(rsm_buffer_write(device, a, 1, start, 10), RESMAP_INTERNAL);
    ck_assert_int_eq(rsm_buffer_read(device, a, 11, got, 0), RESMAP_INTERNAL);
    ck_assert_int_eq(rsm_buffer_read(device, a, SIZE_MAX, got, 2), RESMAP_INTERNAL);

    rsm_device_set_limit(device, 300);
    rsm_buffer *c = NULL;
    ck_assert_int_eq(rsm_buffer_create(device, 8, &c), RESMAP_NO_DEVICE_MEMORY);
    ck_assert_ptr_null(c);
    OK(rsm_buffer_create(device, 7, &c));
    ck_assert_uint_eq(rsm_device_bytes(device), 296);
    rsm_buffer_free(c);
    rsm_buffer_free(a);
    rsm_device_set_limit(device, 0);
    ck_assert_uint_gt(rsm_device_limit(device), 300);
    ck_assert_uint_eq(rsm_device_bytes(device), 160);
    ck_assert_uint_eq(rsm_device_bytes_peak(device), 296);
    rsm_device_reset_peak(device);
    ck_assert_uint_eq(rsm_device_bytes_peak(device), 160);
    ck_assert_int_eq(rsm_buffer_create(device, SIZE_MAX / 2, &c), RESMAP_NO_DEVICE_MEMORY);
    rsm_buffer_free(b);
    rsm_buffer_free(NULL);
    rsm_kernel *kernel;
    ck_assert_int_eq(rsm_kernel_get(device, "gemm", "gemm_vector", "", &kernel), RESMAP_INTERNAL);
    OK(rsm_device_finish(device));
    rsm_device_close(device);
    rsm_device_close(NULL);
}
END_TEST

START_TEST(reference_product)
{
    enum { M = 5, N = 300, K = 9, PAD = 3 };
    rsm_device *device;
    OK(rsm_device_open(&env, "reference", &device));
    rsm_matrix a = {NULL, 2, K + PAD, RSM_FP32}, b = {NULL, 1, N + PAD, RSM_FP32},
               c = {NULL, 4, N + PAD, RSM_FP32};
    OK(rsm_buffer_create(device, a.offset + M * a.stride, &a.buffer));
    OK(rsm_buffer_create(device, b.offset + K * b.stride, &b.buffer));
    OK(rsm_buffer_create(device, c.offset + M * c.stride, &c.buffer));
    double *x = rsm_buffer_host(a.buffer), *y = rsm_buffer_host(b.buffer), *z = rsm_buffer_host(c.buffer);
    for (size_t i = 0; i < rsm_buffer_count(a.buffer); i++) x[i] = NAN;
    for (size_t i = 0; i < rsm_buffer_count(b.buffer); i++) y[i] = NAN;
    for (size_t i = 0; i < rsm_buffer_count(c.buffer); i++) z[i] = 7;
    for (size_t i = 0; i < M; i++) {
        for (size_t p = 0; p < K; p++) x[a.offset + i * a.stride + p] = sin((double)(i * K + p));
    }
    for (size_t p = 0; p < K; p++) {
        for (size_t j = 0; j < N; j++) y[b.offset + p * b.stride + j] = cos((double)(p * N + j));
    }
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        OK(rsm_gemm(device, M, N, K, a, b, c, accumulate));
        for (size_t i = 0; i < M; i++) {
            for (size_t j = 0; j < N + PAD; j++) {
                double sum = 0;
                for (size_t p = 0; p < K && j < N; p++) {
                    sum += sin((double)(i * K + p)) * cos((double)(p * N + j));
                }
                double expected = j < N ? sum * (1 + accumulate) : 7;
                ck_assert_msg(fabs(z[c.offset + i * c.stride + j] - expected) < 1e-13, "C[%zu, %zu]", i, j);
            }
        }
    }
    rsm_buffer_free(a.buffer);
    rsm_buffer_free(b.buffer);
    rsm_buffer_free(c.buffer);
    rsm_device_close(device);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("device, without OpenCL");
    TCase *tcase = tcase_create("choosing and reference");
    tcase_add_test(tcase, choosing);
    tcase_add_test(tcase, scored);
    tcase_add_test(tcase, ranking);
    tcase_add_test(tcase, choosing_all);
    tcase_add_test(tcase, several);
    tcase_add_test(tcase, words);
    tcase_add_test(tcase, reference);
    tcase_add_test(tcase, reference_product);
    suite_add_tcase(suite, tcase);
    tcase = tcase_create("program binaries");
    tcase_add_checked_fixture(tcase, make_folder, remove_folder);
    tcase_add_test(tcase, damaged_binaries);
    tcase_add_test(tcase, oldest_binaries_go);
    tcase_add_test(tcase, private_folder);
    tcase_add_test(tcase, keys);
    suite_add_tcase(suite, tcase);
    return run_host_suite(suite) ? 1 : 0;
}
