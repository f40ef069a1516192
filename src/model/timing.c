#include "model/timing.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/json.h"
#include "core/philox.h"
#include "nn/nn.h"

/* ---- Runs of the network ---- */

/* Prompts are the same work whatever they say. */
static resmap_status set_prompt(rsm_network *net)
{
    const struct resmap_model *model = rsm_network_model(net);
    float *prompt;
    resmap_status status;

    if (model->config.arch != RSM_ARCH_RESMAP) return RESMAP_OK;
    prompt = malloc(rsm_bytes(model->config.text_dim, sizeof *prompt));
    if (prompt == NULL)
        return rsm_no_memory(rsm_device_env(rsm_network_device(net)),
                             model->config.text_dim * sizeof *prompt);
    rsm_model_some_prompt(model, prompt);
    status = rsm_network_set_prompt(net, prompt);
    free(prompt);
    return status;
}

resmap_status rsm_bench_create(rsm_network *net, size_t height, size_t width, rsm_bench *b)
{
    rsm_env *env = rsm_device_env(rsm_network_device(net));
    const uint32_t key[2] = {0, 0};
    size_t pixels;

    memset(b, 0, sizeof *b);
    b->network = net;
    b->height = (height + 7) / 8 * 8;
    b->width = (width + 7) / 8 * 8;
    pixels = b->height * b->width;
    b->slice = malloc(rsm_bytes(pixels, sizeof *b->slice));
    b->output = malloc(rsm_bytes(pixels, sizeof *b->output));
    b->pooled = malloc(rsm_bytes(rsm_network_pooled_count(net), sizeof *b->pooled));
    if (!b->slice || !b->output || !b->pooled) return rsm_no_memory(env, pixels * sizeof *b->slice);
    for (size_t i = 0; i < pixels; i++) {
        uint32_t random[4];
        rsm_philox(key, (const uint32_t[4]){(uint32_t)i, 0, 0, 0}, random);
        b->slice[i] = (float)(random[0] >> 8) / 16777216.0f;
    }
    RSM_TRY(set_prompt(net));
    return rsm_plan_create(net, b->height, b->width, 1, &b->plan);
}

void rsm_bench_clear(rsm_bench *b)
{
    rsm_plan_free(b->plan);
    free(b->slice);
    free(b->output);
    free(b->pooled);
    memset(b, 0, sizeof *b);
}

resmap_status rsm_bench_run(const rsm_bench *b, double *seconds)
{
    double start = rsm_seconds();

    RSM_TRY(rsm_plan_encode(b->plan, b->slice, 1, b->pooled));
    RSM_TRY(rsm_plan_decode(b->plan, b->output));
    *seconds = rsm_seconds() - start;
    return RESMAP_OK;
}

resmap_status rsm_bench_profile(const rsm_bench *b, rsm_profile_row **rows, size_t *count)
{
    rsm_device *device = rsm_network_device(b->network);
    resmap_status status, ended;
    double seconds;

    RSM_TRY(rsm_profile_begin(device));
    status = rsm_bench_run(b, &seconds);
    ended = rsm_profile_end(device, rows, count);
    if (status == RESMAP_OK) return ended;
    if (ended == RESMAP_OK) free(*rows);
    *rows = NULL;
    return status;
}

static int compare_doubles(const void *a, const void *b)
{
    double left = *(const double *)a, right = *(const double *)b;

    return left < right ? -1 : left > right;
}

static double median(const double *values, size_t count, double *sorted)
{
    memcpy(sorted, values, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, compare_doubles);
    return (sorted[(count - 1) / 2] + sorted[count / 2]) / 2;
}

/* Copies the profile into the timing: a row for each name, or for each shape too. */
static resmap_status keep_kernels(rsm_env *env, const rsm_profile_row *rows, size_t count, int by_shape,
                                  resmap_timing *t)
{
    double total = 0;

    if (count == 0) return RESMAP_OK;
    t->kernels = calloc(count, sizeof *t->kernels);
    if (t->kernels == NULL) return rsm_no_memory(env, count * sizeof *t->kernels);
    for (size_t i = 0; i < count; i++) {
        resmap_kernel_time *k = t->kernels, *end = k + t->kernel_count;

        while (k < end && (by_shape || strcmp(k->name, rows[i].name) != 0)) k++;
        if (k == end) {
            memcpy(k->name, rows[i].name, sizeof k->name);
            if (by_shape) {
                k->rows = rows[i].rows;
                k->columns = rows[i].columns;
            }
            t->kernel_count++;
        }
        k->calls += rows[i].calls;
        k->seconds += rows[i].seconds;
        k->flop += rows[i].flop;
        k->bytes += rows[i].bytes;
        total += rows[i].seconds;
    }
    for (size_t i = 0; i < t->kernel_count; i++)
        if (total > 0) t->kernels[i].share = t->kernels[i].seconds / total;
    return RESMAP_OK;
}

static int compare_kernels(const void *a, const void *b)
{
    const resmap_kernel_time *left = a, *right = b;

    return left->seconds > right->seconds ? -1 : left->seconds < right->seconds;
}

/* ---- The device's roof ---- */

enum { TRIES = 5 };

/* Best of some runs of a product, in flop a second. The first does not count: it builds the kernel. */
static resmap_status product_rate(rsm_device *device, rsm_buffer *a, rsm_buffer *b, rsm_buffer *c, size_t m,
                                  size_t n, size_t k, double *rate)
{
    for (int i = 0; i <= TRIES; i++) {
        double start = rsm_seconds(), seconds;

        RSM_TRY(rsm_gemm(device, m, n, k, (rsm_matrix){a, 0, k, RSM_FP32}, (rsm_matrix){b, 0, n, RSM_FP32},
                         (rsm_matrix){c, 0, n, RSM_FP32},
                         0));
        RSM_TRY(rsm_device_finish(device));
        seconds = rsm_seconds() - start;
        if (i > 0 && seconds > 0) *rate = fmax(*rate, 2.0 * (double)m * (double)n * (double)k / seconds);
    }
    return RESMAP_OK;
}

/* Best of copying (a command that some drivers run on one core) and of y += x, in bytes a second. */
static resmap_status copy_rate(rsm_device *device, rsm_buffer *x, rsm_buffer *y, size_t count, double *rate)
{
    /* Rows enough for every core. */
    const size_t rows = 256;
    const rsm_map from = {x, 0, count / rows, RSM_FP32}, to = {y, 0, count / rows, RSM_FP32};

    for (int i = 0; i <= 2 * TRIES + 1; i++) {
        double start = rsm_seconds(), seconds, streams = i % 2 ? 2 : 3;

        if (i % 2)
            RSM_TRY(rsm_copy(device, from, to, rows, count / rows));
        else
            RSM_TRY(rsm_add(device, from, to, rows, count / rows));
        RSM_TRY(rsm_device_finish(device));
        seconds = rsm_seconds() - start;
        if (i > 1 && seconds > 0) *rate = fmax(*rate, streams * (double)count * sizeof(float) / seconds);
    }
    return RESMAP_OK;
}

static resmap_status measure_roof(rsm_device *device, resmap_timing *t)
{
    /* M, N, K: a square one and the network's kinds. */
    static const size_t shapes[][3] = {{1024, 1024, 1024}, {384, 4096, 384}, {288, 16384, 96}};
    const int reference = rsm_device_is_reference(device);
    /* 64 MiB, more than caches hold; a few on the reference, which is not about speed. */
    const size_t count = (size_t)(reference ? 1 : 16) << 20;
    rsm_buffer *buffers[3] = {NULL, NULL, NULL};
    resmap_status status = RESMAP_OK;

    for (int i = 0; i < 3; i++) {
        size_t size = i < 2 ? count : 288 * 16384;   /* the largest C below */

        RSM_CHECK(rsm_buffer_create(device, size, &buffers[i]));
        RSM_CHECK(rsm_fill_zero(device, (rsm_map){buffers[i], 0, size, RSM_FP32}, 1, size));
    }
    if (reference) {
        RSM_CHECK(product_rate(device, buffers[0], buffers[1], buffers[2], 128, 256, 128, &t->roof_flops));
    } else {
        for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++)
            RSM_CHECK(product_rate(device, buffers[0], buffers[1], buffers[2], shapes[i][0], shapes[i][1],
                                   shapes[i][2], &t->roof_flops));
    }
    RSM_CHECK(copy_rate(device, buffers[0], buffers[1], count, &t->roof_bytes));
    if (reference) t->roof_bytes *= sizeof(double) / sizeof(float);
done:
    for (int i = 0; i < 3; i++) rsm_buffer_free(buffers[i]);
    return status;
}

/* Each kernel against what the roof allows. */
static void compare_with_roof(resmap_timing *t)
{
    for (size_t i = 0; i < t->kernel_count; i++) {
        resmap_kernel_time *k = &t->kernels[i];
        double least = 0;

        if (t->roof_flops > 0) least = k->flop / t->roof_flops;
        if (t->roof_bytes > 0) least = fmax(least, k->bytes / t->roof_bytes);
        if (k->seconds > 0) k->roof = least / k->seconds;
    }
}

/* ---- All of it ---- */

resmap_status rsm_timing_run(rsm_network *net, const resmap_timing_options *options, resmap_timing *t)
{
    rsm_device *device = rsm_network_device(net);
    rsm_env *env = rsm_device_env(device);
    size_t repeat = (size_t)options->repeat, total = repeat + (options->only_seconds ? 1 : 3), row_count = 0;
    rsm_profile_row *rows = NULL;
    rsm_bench b = {0};
    double warm, *sorted = malloc(rsm_bytes(repeat, sizeof *sorted));
    resmap_status status;

    t->run_seconds = malloc(rsm_bytes(repeat, sizeof *t->run_seconds));
    if (!sorted || !t->run_seconds) {
        status = rsm_no_memory(env, repeat * sizeof *sorted);
        goto done;
    }
    rsm_device_reset_peak(device);
    RSM_CHECK(rsm_bench_create(net, options->height, options->width, &b));
    t->height = b.height;
    t->width = b.width;
    t->band_rows = rsm_plan_band_rows(b.plan);
    RSM_CHECK(rsm_progress(env, "bench", 0, total));
    /* The work is the same in every run: where kernels are not timed, the run that warms up counts it. */
    if (options->only_seconds)
        RSM_CHECK(rsm_bench_profile(&b, &rows, &row_count));
    else
        RSM_CHECK(rsm_bench_run(&b, &warm));
    for (size_t i = 0; i < repeat; i++) {
        RSM_CHECK(rsm_progress(env, "bench", i + 1, total));
        RSM_CHECK(rsm_bench_run(&b, &t->run_seconds[i]));
        t->run_count++;
    }
    t->seconds = median(t->run_seconds, repeat, sorted);
    t->device_bytes_peak = rsm_device_bytes_peak(device);
    if (!options->only_seconds) {
        RSM_CHECK(rsm_progress(env, "bench", repeat + 1, total));
        RSM_CHECK(rsm_bench_profile(&b, &rows, &row_count));
    }
    for (size_t i = 0; i < row_count; i++) t->flop += rows[i].flop;
    rsm_bench_clear(&b);
    if (!options->only_seconds) {
        RSM_CHECK(rsm_progress(env, "bench", repeat + 2, total));
        RSM_CHECK(keep_kernels(env, rows, row_count, options->by_shape, t));
        qsort(t->kernels, t->kernel_count, sizeof *t->kernels, compare_kernels);
        status = measure_roof(device, t);
        if (status == RESMAP_NO_DEVICE_MEMORY)       /* what was measured of the network stands without it */
            t->roof_flops = t->roof_bytes = 0;
        else
            RSM_CHECK(status);
        compare_with_roof(t);
    }
    RSM_CHECK(rsm_progress(env, "bench", total, total));
done:
    rsm_bench_clear(&b);
    free(sorted);
    free(rows);
    return status;
}

/* ---- JSON ---- */

static json_t *kernel_json(const resmap_kernel_time *k)
{
    json_t *object =
        json_pack("{s:s, s:o, s:I, s:o, s:I, s:o, s:o}", "name", k->name, "seconds",
                  rsm_json_number(k->seconds), "calls", (json_int_t)k->calls, "gflops",
                  rsm_json_number(k->seconds > 0 ? 1e-9 * k->flop / k->seconds : 0), "bytes",
                  (json_int_t)k->bytes, "share", rsm_json_number(k->share), "roof", rsm_json_number(k->roof));
    int failed = 0;

    if (k->rows > 0) failed |= json_object_set_new(object, "rows", json_integer((json_int_t)k->rows));
    if (k->columns > 0)
        failed |= json_object_set_new(object, "columns", json_integer((json_int_t)k->columns));
    if (!failed) return object;
    json_decref(object);
    return NULL;
}

resmap_status rsm_timing_json(rsm_env *env, const resmap_timing *t, char **text)
{
    json_t *runs = json_array(), *kernels = json_array(), *root;
    int failed = 0;

    for (size_t i = 0; i < t->run_count; i++)
        failed |= json_array_append_new(runs, rsm_json_number(t->run_seconds[i]));
    for (size_t i = 0; i < t->kernel_count; i++)
        failed |= json_array_append_new(kernels, kernel_json(&t->kernels[i]));
    root = json_pack("{s:s, s:o, s:{s:o, s:o, s:o, s:s, s:o}, s:I, s:I, s:I, s:o, s:o, s:o, s:o, s:I, s:o, s:o}",
                     "resmap", resmap_version(), "model", rsm_json_string(t->model_name), "device", "name",
                     rsm_json_string(t->device_name), "platform", rsm_json_string(t->device_platform),
                     "driver", rsm_json_string(t->device_driver), "precision", t->precision, "precision_reason",
                     rsm_json_string(t->precision_reason), "height", (json_int_t)t->height, "width", (json_int_t)t->width, "band_rows",
                     (json_int_t)t->band_rows, "runs", runs, "seconds", rsm_json_number(t->seconds), "gflops",
                     rsm_json_number(t->seconds > 0 ? 1e-9 * t->flop / t->seconds : 0), "flop",
                     rsm_json_number(t->flop), "device_bytes_peak", (json_int_t)t->device_bytes_peak, "roof",
                     t->kernel_count > 0
                         ? json_pack("{s:o, s:o}", "gflops", rsm_json_number(1e-9 * t->roof_flops),
                                     "bytes_per_second", rsm_json_number(t->roof_bytes))
                         : json_null(),
                     "kernels", kernels);
    if (failed) {
        json_decref(root);
        root = NULL;
    }
    return rsm_json_text(env, root, text);
}

void resmap_timing_free(resmap_timing *timing)
{
    if (timing == NULL) return;
    free(timing->model_name);
    free(timing->device_name);
    free(timing->device_platform);
    free(timing->device_driver);
    free(timing->precision_reason);
    free(timing->run_seconds);
    free(timing->kernels);
    free(timing);
}
