/* The whole library on a driver that computes wrongly, runs out of memory, or fails: a wrong device is refused before it writes
 * anything, little memory means smaller bands, and every failure is an error, never a half-made result or a leak.
 *
 * The driver's calls are caught by defining them here: the linker prefers the program's own definitions to libOpenCL's. */
#define _GNU_SOURCE 1                            /* RTLD_NEXT */
#include <CL/cl.h>
#include <check.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "device/device_private.h"
#include "model/model.h"
#include "model/selfcheck.h"
#include "tests/paths.h"
#include "tests/real.h"
#include "tests/run.h"
#include "tests/scratch.h"

static int wrong_reads;                          /* results come back 1 % too large */
static size_t largest_buffer;                    /* bytes; 0: no limit */
static long calls, failing_call;                 /* failing_call 0: none fails */
static cl_int failing_code;
static int breaks;                               /* that call's queue fails from then on */
static cl_command_queue broken;
static int memories;                             /* alive */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *devices = "auto";
static int slices = 2;                           /* SLICES or MANY_SLICES */
static int steps = 2;
static uint64_t memory_mib;                      /* 0: no limit */
static int cancel_after = -1;                    /* reports of progress; -1: never */

/* queue: the call's, or NULL. */
static int fails(cl_command_queue queue)
{
    int result;

    pthread_mutex_lock(&lock);
    result = ++calls == failing_call;
    if (result && breaks) broken = queue;
    result |= queue != NULL && queue == broken;
    pthread_mutex_unlock(&lock);
    return result;
}

static void count_memories(int more)
{
    pthread_mutex_lock(&lock);
    memories += more;
    pthread_mutex_unlock(&lock);
}

cl_mem clCreateBuffer(cl_context context, cl_mem_flags flags, size_t size, void *host, cl_int *error)
{
    cl_mem (*function)(cl_context, cl_mem_flags, size_t, void *, cl_int *);
    cl_mem made;

    *(void **)&function = real("clCreateBuffer");
    if (fails(NULL) || (largest_buffer > 0 && size > largest_buffer)) {
        if (error != NULL) *error = CL_MEM_OBJECT_ALLOCATION_FAILURE;
        return NULL;
    }
    made = function(context, flags, size, host, error);
    if (made != NULL) count_memories(1);
    return made;
}

cl_int clReleaseMemObject(cl_mem memory)
{
    cl_int (*function)(cl_mem);

    *(void **)&function = real("clReleaseMemObject");
    count_memories(-1);
    return function(memory);
}

cl_int clEnqueueReadBuffer(cl_command_queue queue, cl_mem buffer, cl_bool blocking, size_t offset, size_t size, void *target,
                           cl_uint waits, const cl_event *wait, cl_event *event)
{
    cl_int (*function)(cl_command_queue, cl_mem, cl_bool, size_t, size_t, void *, cl_uint, const cl_event *, cl_event *);
    cl_int status;

    if (fails(queue)) return failing_code;
    *(void **)&function = real("clEnqueueReadBuffer");
    status = function(queue, buffer, blocking, offset, size, target, waits, wait, event);
    if (wrong_reads)
        for (size_t i = 0; i < size / sizeof(float); i++) ((float *)target)[i] *= 1.01f;
    return status;
}

cl_int clEnqueueNDRangeKernel(cl_command_queue queue, cl_kernel kernel, cl_uint dims, const size_t *offset, const size_t *global,
                              const size_t *local, cl_uint waits, const cl_event *wait, cl_event *event)
{
    cl_int (*function)(cl_command_queue, cl_kernel, cl_uint, const size_t *, const size_t *, const size_t *, cl_uint,
                       const cl_event *, cl_event *);

    if (fails(queue)) return failing_code;
    *(void **)&function = real("clEnqueueNDRangeKernel");
    return function(queue, kernel, dims, offset, global, local, waits, wait, event);
}

/* ---- A GPU that lists itself and is not to be had ---- */

static int pretending;                           /* PoCL's "basic" device calls itself a GPU, and has no context for us */

static int is_pretender(cl_device_id device)
{
    cl_int (*function)(cl_device_id, cl_device_info, size_t, void *, size_t *);
    char name[256] = "";

    *(void **)&function = real("clGetDeviceInfo");
    return pretending && function(device, CL_DEVICE_NAME, sizeof name, name, NULL) == CL_SUCCESS && strncmp(name, "basic", 5) == 0;
}

cl_int clGetDeviceInfo(cl_device_id device, cl_device_info what, size_t size, void *value, size_t *actual)
{
    cl_int (*function)(cl_device_id, cl_device_info, size_t, void *, size_t *);
    cl_int status;

    *(void **)&function = real("clGetDeviceInfo");
    status = function(device, what, size, value, actual);
    if (what == CL_DEVICE_TYPE && value != NULL && is_pretender(device)) *(cl_device_type *)value = CL_DEVICE_TYPE_GPU;
    return status;
}

cl_context clCreateContext(const cl_context_properties *properties, cl_uint count, const cl_device_id *ids,
                           void (CL_CALLBACK *notify)(const char *, const void *, size_t, void *), void *data, cl_int *error)
{
    cl_context (*function)(const cl_context_properties *, cl_uint, const cl_device_id *,
                           void (CL_CALLBACK *)(const char *, const void *, size_t, void *), void *, cl_int *);

    if (is_pretender(ids[0])) {
        *error = CL_OUT_OF_HOST_MEMORY;          /* what ROCm calls any trouble */
        return NULL;
    }
    *(void **)&function = real("clCreateContext");
    return function(properties, count, ids, notify, data, error);
}

static int warnings;

static void count_warnings(void *data, resmap_log_level level, const char *text)
{
    (void)data;
    if (level == RESMAP_LOG_WARNING && strstr(text, "done without") != NULL) warnings++;
}

/* In a process of its own, for drivers look at the environment once: 0 when all is as it should be, 77 without such a driver. */
static int with_pretender(void)
{
    const char *const specifications[] = {"auto", "all"};
    const resmap_device *list;
    resmap_context *context;
    size_t count;
    char other[256];

    pretending = 1;
    setenv("POCL_DEVICES", "basic pthread", 1);
    setenv("RESMAP_TUNING", "off", 1);
    if (resmap_context_create(&context) != RESMAP_OK) return 1;
    resmap_set_log(context, count_warnings, NULL);
    if (resmap_list_devices(context, &list, &count) != RESMAP_OK) return 3;
    if (count != 2 || strcmp(list[0].type, list[1].type) == 0 || !list[0].usable || !list[1].usable) return 77;
    snprintf(other, sizeof other, "%s", list[list[0].chosen].name);
    if (resmap_open_device(context, "gpu") != RESMAP_DEVICE_FAILED || warnings != 0) return 2;
    for (int i = 0; i < 2; i++) {
        if (resmap_open_device(context, specifications[i]) != RESMAP_OK) return 10 + i;
        if (resmap_opened_device(context, 1) != NULL) return 20 + i;
        if (strcmp(resmap_opened_device(context, 0)->name, other) != 0) return 25 + i;
        if (warnings != i + 1) return 30 + i;
    }
    resmap_context_free(context);
    return 0;
}

static int pretender_result;

START_TEST(one_that_cannot_be_opened)
{
    if (pretender_result == 77) printf("# no driver that offers two devices here\n");
    else ck_assert_int_eq(pretender_result, 0);
}
END_TEST

/* ---- A device without a clock ---- */

static int no_timed_queue, no_times;

cl_command_queue clCreateCommandQueue(cl_context context, cl_device_id device, cl_command_queue_properties properties, cl_int *error)
{
    cl_command_queue (*function)(cl_context, cl_device_id, cl_command_queue_properties, cl_int *);

    if (no_timed_queue && properties & CL_QUEUE_PROFILING_ENABLE) {
        *error = CL_INVALID_QUEUE_PROPERTIES;
        return NULL;
    }
    *(void **)&function = real("clCreateCommandQueue");
    return function(context, device, properties, error);
}

cl_int clGetEventProfilingInfo(cl_event event, cl_profiling_info what, size_t size, void *value, size_t *actual)
{
    cl_int (*function)(cl_event, cl_profiling_info, size_t, void *, size_t *);

    if (no_times) return CL_PROFILING_INFO_NOT_AVAILABLE;
    *(void **)&function = real("clGetEventProfilingInfo");
    return function(event, what, size, value, actual);
}

/* ---- A CLBlast that does nothing and calls it success ---- */

static int products;

/* Called with a product's arguments, which it ignores. */
int CLBlastSgemmWithTempBuffer(void);
int CLBlastSgemmWithTempBuffer(void)
{
    products++;
    return 0;
}

/* ---- What is run ---- */

/* Large enough that scratch memory outweighs the weights. */
enum { WIDTH = 88, HEIGHT = 64, SLICES = 2, MANY_SLICES = 17 };

static const char *const MODEL = TOP_SRCDIR "/tests/vectors/cascade.safetensors";
/* Random weights that magnify rounding so little that fp16 suits them. */
static const char *const STEADY_MODEL = TOP_SRCDIR "/tests/vectors/resmap_withbias.safetensors";
static char cache[256];

static int cancel(void *data, const char *what, size_t done, size_t total)
{
    (void)data;
    (void)what;
    (void)done;
    (void)total;
    return cancel_after >= 0 && cancel_after-- == 0;
}

typedef struct session {
    resmap_context *context;
    resmap_model *model;
    resmap_image *input, *output;
    resmap_report *report;
} session;

/* Opens the first device and runs the cascade, as far as it goes. */
static resmap_status run_as(session *s, const char *model, resmap_precision precision)
{
    static float data[WIDTH * HEIGHT * MANY_SLICES];
    const size_t shape[4] = {WIDTH, HEIGHT, (size_t)slices, 1};
    resmap_options options;
    resmap_status status;

    for (size_t i = 0; i < WIDTH * HEIGHT * MANY_SLICES; i++) data[i] = (float)(i % WIDTH < 60 ? 100 + i * 37 % 61 : i % 7);
    memset(s, 0, sizeof *s);
    resmap_options_init(&options);
    options.steps = steps;
    options.precision = precision;
    options.memory_mib = memory_mib;
    ck_assert_int_eq(resmap_context_create(&s->context), RESMAP_OK);
    resmap_set_progress(s->context, cancel, NULL);
    status = resmap_open_device(s->context, devices);
    if (status == RESMAP_OK) status = resmap_model_open(s->context, model, &s->model);
    if (status == RESMAP_OK) status = resmap_image_create(s->context, data, shape, NULL, &s->input);
    if (status == RESMAP_OK) status = resmap_restore(s->context, s->model, s->input, NULL, &options, &s->output, &s->report);
    return status;
}

static resmap_status run(session *s)
{
    return run_as(s, MODEL, RESMAP_PRECISION_AUTO);
}

static void end(session *s)
{
    resmap_report_free(s->report);
    resmap_image_free(s->output);
    resmap_image_free(s->input);
    resmap_model_free(s->model);
    resmap_context_free(s->context);
    ck_assert_msg(memories == 0, "%d buffers left", memories);
    wrong_reads = 0;
    largest_buffer = 0;
    failing_call = calls = 0;
    breaks = 0;
    broken = NULL;
    cancel_after = -1;
}

START_TEST(wrong_device_is_refused)
{
    session s;

    setenv("RESMAP_CACHE", "off", 1);            /* no check remembered */
    wrong_reads = 1;
    ck_assert_int_eq(run(&s), RESMAP_SELF_CHECK_FAILED);
    ck_assert_ptr_nonnull(strstr(resmap_error(s.context), "computes wrongly"));
    ck_assert_ptr_null(s.output);
    end(&s);
    ck_assert_int_eq(run(&s), RESMAP_OK);
    end(&s);
}
END_TEST

/* fp16 has a check of its own. */
START_TEST(wrong_fp16_is_refused)
{
    session s;

    setenv("RESMAP_CACHE", "off", 1);
    wrong_reads = 1;
    ck_assert_int_eq(run_as(&s, STEADY_MODEL, RESMAP_PRECISION_FP16), RESMAP_SELF_CHECK_FAILED);
    ck_assert_ptr_nonnull(strstr(resmap_error(s.context), "fp16"));
    ck_assert_ptr_null(s.output);
    end(&s);
    ck_assert_int_eq(run_as(&s, STEADY_MODEL, RESMAP_PRECISION_FP16), RESMAP_OK);
    ck_assert_str_eq(s.report->devices[0].precision, "fp16");
    end(&s);
}
END_TEST

/* A passed check is remembered for this device and model, a failed one never. */
START_TEST(checks_are_remembered)
{
    session s;
    long first;

    setenv("RESMAP_CACHE", cache, 1);
    wrong_reads = 1;
    ck_assert_int_eq(run(&s), RESMAP_SELF_CHECK_FAILED);
    end(&s);
    ck_assert_int_eq(run(&s), RESMAP_OK);
    first = calls;
    end(&s);
    ck_assert_int_eq(run(&s), RESMAP_OK);
    ck_assert_msg(calls < first, "%ld calls with the check, %ld without", first, calls);
    end(&s);
}
END_TEST

/* Bands get smaller until the buffers fit, which changes nothing; at last there is no way. */
START_TEST(little_memory)
{
    static float expected[WIDTH * HEIGHT * SLICES];
    session s;
    size_t rows;
    int smaller = 0, refused = 0;

    setenv("RESMAP_CACHE", cache, 1);
    steps = 1;                                   /* these random weights would magnify rounding in a second */
    ck_assert_int_eq(run(&s), RESMAP_OK);
    memcpy(expected, resmap_image_data_const(s.output), sizeof expected);
    rows = s.report->band_rows;
    end(&s);
    for (size_t limit = 3000000; limit > 50000; limit = limit * 3 / 5) {
        resmap_status status;
        largest_buffer = limit;
        status = run(&s);
        if (status != RESMAP_OK) {
            ck_assert_int_eq(status, RESMAP_NO_DEVICE_MEMORY);
            ck_assert_ptr_null(s.output);
            refused++;
        } else if (s.report->band_rows < rows && !s.report->tiled) {
            double most = 0;
            for (size_t i = 0; i < WIDTH * HEIGHT * SLICES; i++)
                most = fmax(most, fabs((double)resmap_image_data_const(s.output)[i] - (double)expected[i]));
            ck_assert_msg(most <= 160 * 1e-5, "bands of %zu rows differ by %g", s.report->band_rows, most);
            smaller++;
        }
        end(&s);
    }
    steps = 2;
    ck_assert_int_gt(smaller, 0);
    ck_assert_int_gt(refused, 0);
}
END_TEST

/* Call number 1, 2, 3, 5, 8 … fails: in the middle of planning, encoding, decoding, reading back. */
START_TEST(every_failure_is_an_error)
{
    static const cl_int codes[] = {CL_OUT_OF_RESOURCES, CL_MEM_OBJECT_ALLOCATION_FAILURE, CL_INVALID_COMMAND_QUEUE};
    session s;
    long total, before = 1, next = 1;
    int seen = 0;

    setenv("RESMAP_CACHE", cache, 1);
    ck_assert_int_eq(run(&s), RESMAP_OK);
    total = calls;
    end(&s);
    while (next < total) {
        long number = next;
        resmap_status status;
        failing_code = codes[seen++ % 3];
        failing_call = number;
        status = run(&s);
        if (status == RESMAP_OK) {               /* memory found by smaller bands, or kept elsewhere */
            ck_assert_ptr_nonnull(s.output);
            for (size_t i = 0; i < WIDTH * HEIGHT * SLICES; i++) ck_assert(isfinite(resmap_image_data_const(s.output)[i]));
        } else {
            printf("call %ld: %s\n", number, resmap_error(s.context));
            ck_assert_ptr_null(s.output);
            ck_assert_ptr_null(s.report);
            ck_assert_str_ne(resmap_error(s.context), "");
        }
        end(&s);
        next = before + number;
        before = number;
    }
    ck_assert_int_gt(seen, 8);
}
END_TEST

/* The bytes of the output that one device gives, and how many calls it takes to set up two, which `devices` are from then on. */
static long prepare_two(float *expected)
{
    session s;
    long calls_of_setup;

    setenv("RESMAP_CACHE", cache, 1);
    ck_assert_int_eq(run(&s), RESMAP_OK);
    memcpy(expected, resmap_image_data_const(s.output), sizeof *expected * WIDTH * HEIGHT * (size_t)slices);
    end(&s);
    devices = "auto,auto";
    steps = 0;
    ck_assert_int_eq(run(&s), RESMAP_OK);
    calls_of_setup = calls;
    end(&s);
    steps = 2;
    return calls_of_setup;
}

/* One of two devices breaks, early or late, while both work: the other does everything, with the same
 * result. */
START_TEST(one_of_two_breaks)
{
    static float expected[WIDTH * HEIGHT * SLICES];
    session s;
    const long calls_of_setup = prepare_two(expected);
    long total;
    int lost = 0;

    ck_assert_int_eq(run(&s), RESMAP_OK);
    total = calls;
    ck_assert_uint_eq(s.report->device_count, 2);
    ck_assert_mem_eq(resmap_image_data_const(s.output), expected, sizeof expected);
    end(&s);
    for (int i = 0; i < 8; i++) {
        resmap_status status;
        failing_call = calls_of_setup + 1 + (total - calls_of_setup) * i / 8;
        failing_code = i % 2 ? CL_OUT_OF_RESOURCES : CL_MEM_OBJECT_ALLOCATION_FAILURE;
        breaks = 1;
        status = run(&s);
        ck_assert_msg(status == RESMAP_OK, "call %ld: %s", failing_call, resmap_error(s.context));
        ck_assert_mem_eq(resmap_image_data_const(s.output), expected, sizeof expected);
        lost += broken != NULL;
        end(&s);
    }
    ck_assert_int_gt(lost, 4);                   /* else it was a buffer that can be done without */
    devices = "auto";
}
END_TEST

/* One of two devices cannot make all its views, of which that of a batch comes last: it is left out from the start, and the
 * other does everything, with the same result. */
START_TEST(one_of_two_is_not_ready)
{
    static float expected[WIDTH * HEIGHT * MANY_SLICES];
    session s;
    long calls_of_setup;
    int left_out = 0;

    slices = MANY_SLICES;
    calls_of_setup = prepare_two(expected);
    for (long i = 1; i <= calls_of_setup; i++) {
        resmap_status status;
        failing_call = i;
        failing_code = i % 2 ? CL_OUT_OF_RESOURCES : CL_MEM_OBJECT_ALLOCATION_FAILURE;
        breaks = 1;
        status = run(&s);
        if (status == RESMAP_OK) {
            ck_assert_mem_eq(resmap_image_data_const(s.output), expected, sizeof expected);
            for (size_t k = 0; k < s.report->device_count; k++) {
                left_out += s.report->devices[k].slices == 0;
                if (s.report->devices[k].workers == 0)       /* nor does it count where means are told */
                    ck_assert_double_eq_tol(s.report->seconds_network, s.report->devices[1 - k].seconds, 1e-9);
            }
        } else {
            printf("setup's call %ld: %s\n", i, resmap_error(s.context));
            ck_assert_ptr_null(s.output);
        }
        end(&s);
    }
    printf("of %ld calls, %d left a device out\n", calls_of_setup, left_out);
    ck_assert_int_gt(left_out, 4);
    slices = SLICES;
    devices = "auto";
}
END_TEST

/* The host's clock then tells where the time goes. */
START_TEST(no_clock)
{
    resmap_timing_options options;
    resmap_context *context;
    resmap_model *model;

    resmap_timing_options_init(&options);
    options.height = options.width = 32;
    options.repeat = 1;
    setenv("RESMAP_TUNING", "off", 1);
    ck_assert_int_eq(resmap_context_create(&context), RESMAP_OK);
    ck_assert_int_eq(resmap_open_device(context, "auto"), RESMAP_OK);
    ck_assert_int_eq(resmap_model_open(context, MODEL, &model), RESMAP_OK);
    for (int i = 0; i < 2; i++) {
        resmap_timing *timing;
        no_timed_queue = i == 0;
        no_times = 1;
        ck_assert_msg(resmap_time(context, model, &options, &timing) == RESMAP_OK, "%s", resmap_error(context));
        ck_assert_uint_gt(timing->kernel_count, 5);
        for (size_t k = 0; k < timing->kernel_count; k++)
            ck_assert_msg(timing->kernels[k].seconds > 0 && timing->kernels[k].seconds < 60, "%s: %g s", timing->kernels[k].name,
                          timing->kernels[k].seconds);
        resmap_timing_free(timing);
    }
    no_timed_queue = no_times = 0;
    resmap_model_free(model);
    resmap_context_free(context);
}
END_TEST

/* Where CLBlast computes wrongly resmap's own products are taken, and later runs know, whatever their storage; not where CLBlast
 * is asked for. */
START_TEST(wrong_clblast_is_done_without)
{
    static rsm_env env;
    rsm_device *device;
    resmap_model *model;
    rsm_network *net;
    int before = 0;

    unsetenv("RESMAP_GEMM");
    ck_assert_int_eq(rsm_model_open(&env, STEADY_MODEL, &model), RESMAP_OK);
    for (int i = 0; i < 4; i++) {
        if (i == 3) setenv("RESMAP_GEMM", "clblast", 1);
        ck_assert_int_eq(rsm_device_open(&env, "auto", &device), RESMAP_OK);
        device->gemm = RSM_GEMM_CLBLAST;         /* as GPUs have it by rule */
        ck_assert_int_eq(rsm_network_create(device, model, i == 1 ? RSM_FP16 : RSM_FP32, &net), RESMAP_OK);
        if (i < 3) ck_assert_msg(rsm_self_check_once(net, cache) == RESMAP_OK, "%s", env.error);
        else ck_assert_int_eq(rsm_self_check_once(net, cache), RESMAP_SELF_CHECK_FAILED);
        ck_assert_int_eq(rsm_gemm_takes_clblast(device), i == 3);
        ck_assert(i == 1 || i == 2 ? products == before : products > before);
        before = products;
        rsm_network_free(net);
        rsm_device_close(device);
    }
    unsetenv("RESMAP_GEMM");
    rsm_model_free(model);
}
END_TEST

/* A tuning that takes everything by rule, and so many workers for a volume. */
static void prefer(int workers)
{
    static rsm_env env;
    rsm_preference preference = {.workers = workers, .workers_percent = 100};
    rsm_device *device;
    resmap_model *model;
    rsm_tuning_file *file;

    unsetenv("RESMAP_TUNING");
    setenv("RESMAP_CACHE", cache, 1);
    ck_assert_int_eq(rsm_model_open(&env, MODEL, &model), RESMAP_OK);
    rsm_config_shape(&model->config, preference.network);
    rsm_model_free(model);
    ck_assert_int_eq(rsm_device_open(&env, "auto", &device), RESMAP_OK);
    ck_assert_msg(rsm_tuning_begin(device, &file) == RESMAP_OK, "%s", env.error);
    ck_assert_int_eq(rsm_tuning_keep(file, "for a test", &preference, NULL, 0), RESMAP_OK);
    rsm_tuning_end(file);
    rsm_device_close(device);
}

static float one_gives[WIDTH * HEIGHT * SLICES];

static void check_as_one(const session *s, const char *what, long number)
{
    ck_assert_msg(memcmp(resmap_image_data_const(s->output), one_gives, sizeof one_gives) == 0,
                  "%s %ld: two workers give other bytes than one", what, number);
}

/* Two workers on one device give the bytes of one, however often; a device named twice has no further one. */
START_TEST(two_workers)
{
    session s;
    uint64_t peak;

    prefer(1);
    ck_assert_int_eq(run(&s), RESMAP_OK);
    memcpy(one_gives, resmap_image_data_const(s.output), sizeof one_gives);
    ck_assert_uint_eq(s.report->devices[0].workers, 1);
    peak = s.report->device_bytes_peak;
    end(&s);
    prefer(2);
    for (long i = 0; i < 5; i++) {
        ck_assert_int_eq(run(&s), RESMAP_OK);
        check_as_one(&s, "run", i);
        ck_assert_uint_eq(s.report->device_count, 1);
        ck_assert_uint_eq(s.report->devices[0].workers, 2);
        ck_assert_uint_eq(s.report->devices[0].slices, 2 * 2 * SLICES);
        ck_assert_uint_gt(s.report->device_bytes_peak, peak);
        ck_assert_uint_lt(s.report->device_bytes_peak, 2 * peak);   /* the weights are there once */
        end(&s);
    }
    devices = "auto,auto";
    ck_assert_int_eq(run(&s), RESMAP_OK);
    check_as_one(&s, "named twice", 0);
    ck_assert_uint_eq(s.report->device_count, 2);
    for (int i = 0; i < 2; i++) ck_assert_uint_eq(s.report->devices[i].workers, 1);
    end(&s);
    devices = "auto";
}
END_TEST

/* Under a limit the further worker is there where it has room, and changes neither bands nor bytes. */
START_TEST(two_workers_and_little_memory)
{
    session s;
    int seen[3] = {0, 0, 0};

    for (memory_mib = 1; memory_mib < 16; memory_mib++) {
        resmap_status status;
        size_t rows = 0;
        prefer(1);
        status = run(&s);
        if (status == RESMAP_OK) {
            memcpy(one_gives, resmap_image_data_const(s.output), sizeof one_gives);
            rows = s.report->band_rows;
        }
        end(&s);
        prefer(2);
        ck_assert_int_eq(run(&s), status);
        if (status == RESMAP_OK) {
            check_as_one(&s, "MiB", (long)memory_mib);
            ck_assert_uint_eq(s.report->band_rows, rows);
            ck_assert_uint_le(s.report->device_bytes_peak, memory_mib << 20);
            seen[s.report->devices[0].workers]++;
        }
        end(&s);
    }
    memory_mib = 0;
    ck_assert_msg(seen[1] > 0 && seen[2] > 0, "%d times one, %d times two", seen[1], seen[2]);
}
END_TEST

/* Any call fails, once or with all later ones of its queue: what comes out is an error, or what one gives. */
START_TEST(two_workers_fail)
{
    session s;
    long total;
    size_t rows;
    int lost = 0, single = 0, compared = 0;

    prefer(1);
    ck_assert_int_eq(run(&s), RESMAP_OK);
    memcpy(one_gives, resmap_image_data_const(s.output), sizeof one_gives);
    rows = s.report->band_rows;
    end(&s);
    prefer(2);
    ck_assert_int_eq(run(&s), RESMAP_OK);
    total = calls;
    end(&s);
    for (long i = 0; i < 40; i++) {
        resmap_status status;
        failing_call = 1 + total * i / 40;
        failing_code = i % 3 ? CL_OUT_OF_RESOURCES : CL_MEM_OBJECT_ALLOCATION_FAILURE;
        breaks = i % 2;
        status = run(&s);
        if (status == RESMAP_OK) {
            if (s.report->band_rows == rows) {       /* else a buffer of the first one's was refused */
                check_as_one(&s, "call", failing_call);
                compared++;
            }
            lost += broken != NULL;
            single += s.report->devices[0].workers == 1;
        } else {
            ck_assert_ptr_null(s.output);
            ck_assert_str_ne(resmap_error(s.context), "");
        }
        end(&s);
    }
    printf("two workers: %d times one broke, %d times there was one from the start\n", lost, single);
    ck_assert_int_gt(lost, 4);                   /* the other has done everything */
    ck_assert_int_gt(compared, lost);
    for (int i = 0; i < 6; i++) {
        cancel_after = 1 + i;
        ck_assert_int_eq(run(&s), RESMAP_CANCELLED);
        ck_assert_ptr_null(s.output);
        end(&s);
    }
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("driver");
    TCase *tests = tcase_create("driver");
    resmap_context *context;
    int failed, ended;
    pid_t child;
    resmap_status status;

    fflush(NULL);
    child = fork();
    if (child == 0) _exit(with_pretender());
    pretender_result = child > 0 && waitpid(child, &ended, 0) == child && WIFEXITED(ended) ? WEXITSTATUS(ended) : 98;
    if (resmap_context_create(&context) != RESMAP_OK) return 99;
    status = resmap_open_device(context, "auto");
    if (status != RESMAP_OK) printf("skipped: %s\n", resmap_error(context));
    resmap_context_free(context);
    if (status != RESMAP_OK) return 77;
    if (!make_scratch(cache)) return 99;

    tcase_set_timeout(tests, 0);
    tcase_add_test(tests, one_that_cannot_be_opened);
    tcase_add_test(tests, wrong_device_is_refused);
    tcase_add_test(tests, no_clock);
    tcase_add_test(tests, wrong_fp16_is_refused);
    tcase_add_test(tests, wrong_clblast_is_done_without);
    tcase_add_test(tests, checks_are_remembered);
    tcase_add_test(tests, little_memory);
    tcase_add_test(tests, every_failure_is_an_error);
    tcase_add_test(tests, one_of_two_breaks);
    tcase_add_test(tests, one_of_two_is_not_ready);
    tcase_add_test(tests, two_workers);
    tcase_add_test(tests, two_workers_and_little_memory);
    tcase_add_test(tests, two_workers_fail);
    suite_add_tcase(suite, tests);
    failed = run_suite(suite);
    {
        char command[300];
        snprintf(command, sizeof command, "rm -rf '%s'", cache);
        if (system(command) != 0) failed++;
    }
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
