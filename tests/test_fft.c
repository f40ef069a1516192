/* rsm_fft on the reference and on every device, against sums in float64: lengths that clFFT has and lengths
 * that it lacks, every axis, there and back, and untouched surroundings. */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/device_private.h"
#include "tests/run.h"

#define PI 3.14159265358979323846

static rsm_env env;

#define OK(call) ck_assert_msg((call) == RESMAP_OK, "%s", env.error)

static uint32_t state = 1;
static float number(void)
{
    state = state * 1664525u + 1013904223u;
    return (float)((double)(state >> 8) / 8388608.0 - 1.0);
}

/* The transform's definition along one axis; `inner` numbers lie between neighbours. */
static void sums(double *values, size_t n, size_t inner, size_t total, int direction)
{
    double *pencil = malloc(2 * n * sizeof *pencil);
    double *cosine = malloc(n * sizeof *cosine), *sine = malloc(n * sizeof *sine);
    ck_assert(pencil && cosine && sine);
    for (size_t j = 0; j < n; j++) {
        cosine[j] = cos(2 * PI * (double)j / (double)n);
        sine[j] = direction * sin(2 * PI * (double)j / (double)n);
    }
    for (size_t q = 0; q < total / n; q++) {
        double *first = values + 2 * (q % inner + q / inner * inner * n);
        for (size_t k = 0; k < n; k++) {
            double re = 0, im = 0;
            for (size_t j = 0; j < n; j++) {
                const double *x = first + 2 * j * inner;
                size_t turn = j * k % n;
                re += x[0] * cosine[turn] - x[1] * sine[turn];
                im += x[0] * sine[turn] + x[1] * cosine[turn];
            }
            pencil[2 * k] = direction < 0 ? re : re / (double)n;
            pencil[2 * k + 1] = direction < 0 ? im : im / (double)n;
        }
        for (size_t k = 0; k < n; k++) {
            first[2 * k * inner] = pencil[2 * k];
            first[2 * k * inner + 1] = pencil[2 * k + 1];
        }
    }
    free(pencil);
    free(cosine);
    free(sine);
}

static double largest_difference(const float *a, const double *b, size_t count, double *size)
{
    double largest = 0;
    *size = 0;
    for (size_t i = 0; i < count; i++) {
        double difference = fabs(a[i] - b[i]);
        if (!(difference <= largest)) largest = difference;
        if (fabs(b[i]) > *size) *size = fabs(b[i]);
    }
    return largest;
}

/* Both directions against the sums, and back again. bound: of the largest error over the largest number. */
static void one(rsm_device *device, size_t nx, size_t ny, size_t nz, unsigned axes, size_t offset,
                double bound)
{
    const size_t shape[3] = {nx, ny, nz}, total = nx * ny * nz, behind = 7;
    size_t count = offset + 2 * total + behind, inner;
    float *start = malloc(count * sizeof *start), *now = malloc(count * sizeof *now);
    double *exact = malloc(2 * total * sizeof *exact), size;
    rsm_buffer *buffer;
    ck_assert(start && now && exact);
    OK(rsm_buffer_create(device, count, &buffer));
    for (size_t i = 0; i < count; i++) start[i] = i < offset || i >= offset + 2 * total ? NAN : number();
    for (int direction = -1; direction <= 1; direction += 2) {
        for (size_t i = 0; i < 2 * total; i++) exact[i] = start[offset + i];
        inner = 1;
        for (int axis = 0; axis < 3; inner *= shape[axis++]) {
            if (axes >> axis & 1) sums(exact, shape[axis], inner, total, direction);
        }
        OK(rsm_buffer_write(device, buffer, 0, start, count));
        OK(rsm_fft(device, buffer, offset, shape, axes, direction < 0 ? RSM_FORWARD : RSM_BACKWARD));
        OK(rsm_buffer_read(device, buffer, 0, now, count));
        double error = largest_difference(now + offset, exact, 2 * total, &size);
        ck_assert_msg(error <= bound * size, "%zu x %zu x %zu, axes %u, direction %d: error %g of %g", nx, ny,
                      nz, axes, direction, error, size);
        for (size_t i = 0; i < count; i++) {
            if (i < offset || i >= offset + 2 * total) {
                ck_assert_msg(isnan(now[i]), "%zu x %zu x %zu: written outside", nx, ny, nz);
            }
        }
        OK(rsm_fft(device, buffer, offset, shape, axes, direction < 0 ? RSM_BACKWARD : RSM_FORWARD));
        OK(rsm_buffer_read(device, buffer, 0, now, count));
        for (size_t i = 0; i < 2 * total; i++) exact[i] = start[offset + i];
        error = largest_difference(now + offset, exact, 2 * total, &size);
        ck_assert_msg(error <= bound * size, "%zu x %zu x %zu, axes %u: there and back: error %g", nx, ny, nz,
                      axes, error);
    }
    rsm_buffer_free(buffer);
    free(start);
    free(now);
    free(exact);
}

static resmap_status open_index(int index, rsm_device **device)
{
    char specification[24] = "reference";
    if (index >= 0) snprintf(specification, sizeof specification, "%d", index);
    return rsm_device_open(&env, specification, device);
}

START_TEST(lengths)
{
    rsm_device *device;
    OK(open_index(_i, &device));
    /* The reference computes in float64, but is read as float32. */
    double bound = rsm_device_is_reference(device) ? 1e-7 : 2e-6;
    printf("# %s\n", rsm_device_identity(device));
    /* Oclgrind finds uninitialised values, falsely, in clFFT's kernels for other lengths than 64. */
    one(device, 64, 3, 1, 1, 0, bound);
    one(device, 3, 17, 2, 2, 1, bound);
    one(device, 2, 3, 31, 4, 5, bound);
    if (!getenv("RESMAP_TEST_SMALL")) {
        one(device, 8, 3, 1, 1, 0, bound);
        one(device, 3, 5, 2, 2, 1, bound);
        one(device, 1, 1, 1, 7, 0, bound);
        one(device, 2, 3, 17, 4, 5, bound);
        one(device, 17, 4, 1, 1, 3, bound);
        one(device, 211, 6, 1, 1, 0, bound);
        one(device, 3, 218, 2, 2, 0, bound);
        one(device, 311, 5, 1, 1, 2, bound);
        one(device, 2, 1, 311, 4, 0, bound);
        one(device, 11, 17, 13, 7, 0, bound);
        one(device, 260, 311, 1, 3, 6, bound);
        one(device, 1009, 3, 1, 1, 0, bound);
    }
    rsm_device_close(device);
}
END_TEST

/* Every length from 8 to 512 in plain C. */
START_TEST(reference_lengths)
{
    rsm_device *device;
    OK(open_index(-1, &device));
    for (size_t n = 8; n <= 512; n++) one(device, n, 1, 1, 1, 0, 1e-7);
    rsm_device_close(device);
}
END_TEST

/* More pencils than are gathered at a time; checked by a signal whose transform is known. */
START_TEST(many_pencils)
{
    enum { N = 17, PENCILS = 300000 };
    rsm_device *device;
    OK(open_index(_i, &device));
    const size_t shape[3] = {PENCILS, N, 1};
    float *values = calloc((size_t)2 * N * PENCILS, sizeof *values);
    rsm_buffer *buffer;
    ck_assert_ptr_nonnull(values);
    for (size_t q = 0; q < PENCILS; q++) values[2 * (q % N * PENCILS + q)] = 1;   /* an impulse at q mod N */
    OK(rsm_buffer_create(device, (size_t)2 * N * PENCILS, &buffer));
    OK(rsm_buffer_write(device, buffer, 0, values, (size_t)2 * N * PENCILS));
    OK(rsm_fft(device, buffer, 0, shape, 2, RSM_FORWARD));
    OK(rsm_buffer_read(device, buffer, 0, values, (size_t)2 * N * PENCILS));
    for (size_t k = 0; k < N; k++) {
        for (size_t q = 0; q < PENCILS; q++) {
            double angle = -2 * PI * (double)(k * (q % N) % N) / N;
            const float *at = values + 2 * (k * PENCILS + q);
            if (!(fabs(at[0] - cos(angle)) < 1e-5 && fabs(at[1] - sin(angle)) < 1e-5)) {
                ck_abort_msg("pencil %zu, number %zu: %g %g", q, k, (double)at[0], (double)at[1]);
            }
        }
    }
    rsm_buffer_free(buffer);
    rsm_device_close(device);
    free(values);
}
END_TEST

/* Plans come and go: more lengths than are kept, the first again at last. */
START_TEST(many_lengths)
{
    rsm_device *device;
    OK(open_index(_i, &device));
    for (size_t n = 2; n < 11; n++) one(device, n, 2, 1, 1, 0, 2e-6);
    one(device, 2, 2, 1, 1, 0, 2e-6);
    rsm_device_close(device);
}
END_TEST

/* What is done where clFFT fails. PoCL's is known to work, and to fail there would mean that nothing above
 * tested it. */
START_TEST(on_the_host)
{
    rsm_device *device;
    OK(open_index(_i, &device));
    one(device, 15, 3, 1, 1, 1, 2e-6);
    if (device->ffts) {
        if (device->quirks & RSM_QUIRK_NO_BINARIES && device->info.max_work_group >= 64) {
            ck_assert_ptr_nonnull(device->ffts->plan);
        }
        if (!device->ffts->plan) printf("# clFFT fails on %s\n", device->info.name);
        rsm_clfft_free(device->ffts->plan);
        device->ffts->plan = NULL;
        one(device, 15, 3, 1, 1, 1, 2e-6);
        ck_assert_ptr_null(device->ffts->plan);
    }
    rsm_device_close(device);
}
END_TEST

START_TEST(refusals)
{
    rsm_device *device;
    rsm_buffer *buffer;
    OK(open_index(_i, &device));
    OK(rsm_buffer_create(device, 128, &buffer));
    ck_assert_int_eq(rsm_fft(device, buffer, 1, (const size_t[]){8, 8, 1}, 3, RSM_FORWARD), RESMAP_INTERNAL);
    ck_assert_int_eq(rsm_fft(device, buffer, 0, (const size_t[]){8, 0, 1}, 3, RSM_FORWARD),
                     RESMAP_BAD_ARGUMENT);
    ck_assert_int_eq(rsm_fft(device, buffer, 0, (const size_t[]){1u << 20, 1u << 20, 1u << 30}, 3,
                             RSM_FORWARD), RESMAP_BAD_ARGUMENT);
    rsm_buffer_free(buffer);
    ck_assert_uint_eq(rsm_device_bytes(device), 0);
    rsm_device_close(device);
}
END_TEST

int main(void)
{
    rsm_device_list *list;
    size_t count;
    if (rsm_device_list_create(&env, &list) != RESMAP_OK) {
        printf("%s\n", env.error);
        return 99;
    }
    const resmap_device *items = rsm_device_list_items(list, &count);
    Suite *suite = suite_create("fft");
    TCase *tcase = tcase_create("devices");
    tcase_set_timeout(tcase, 0);
    for (int i = -1; i < (int)count; i++) {
        if (i >= 0 && !items[i].usable) {
            printf("# %s left out: %s\n", items[i].name, items[i].reason);
            continue;
        }
        tcase_add_loop_test(tcase, lengths, i, i + 1);
        tcase_add_loop_test(tcase, refusals, i, i + 1);
        if (getenv("RESMAP_TEST_SMALL")) continue;
        tcase_add_loop_test(tcase, many_pencils, i, i + 1);
        tcase_add_loop_test(tcase, many_lengths, i, i + 1);
        tcase_add_loop_test(tcase, on_the_host, i, i + 1);
    }
    tcase_add_test(tcase, reference_lengths);
    if (count == 0) printf("# no OpenCL device: the reference only\n");
    rsm_device_list_free(list);
    suite_add_tcase(suite, tcase);
    return run_suite(suite) ? 1 : 0;
}
