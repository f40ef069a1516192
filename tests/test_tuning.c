/* Tuning: the table of variants, the file (kept, cut, damaged, foreign, stale), that the winners are what runs,
 * and that a variant which computes wrongly, or fails, never wins however fast it is.
 *
 * The driver's calls are caught by defining them here: the linker prefers the program's own definitions to
 * libOpenCL's. */
#define _GNU_SOURCE 1                            /* RTLD_NEXT */
#include <check.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "device/device_private.h"
#include "nn/nn.h"
#include "tests/paths.h"
#include "tests/real.h"
#include "tests/run.h"
#include "tests/scratch.h"

static const char *const MODEL = TOP_SRCDIR "/tests/vectors/cascade.safetensors";
static char folder[256];
static rsm_env env;
static int warnings, notes;

#define OK(call) ck_assert_msg((call) == RESMAP_OK, "%s", env.error)

/* ---- A driver that spoils one variant ---- */

static enum { SOUND, IDLE, IDLE_WHEN_LARGE, REFUSED, UNBUILT } fault;
static char spoiled[48];                         /* the options of the programs that it is about */
static cl_program spoiled_programs[64];
static cl_kernel spoiled_kernels[64];
static size_t spoiled_program_count, spoiled_kernel_count, idled;

cl_int clBuildProgram(cl_program program, cl_uint count, const cl_device_id *devices, const char *options,
                      void (*notify)(cl_program, void *), void *data)
{
    cl_int (*function)(cl_program, cl_uint, const cl_device_id *, const char *, void (*)(cl_program, void *),
                       void *);

    *(void **)&function = real("clBuildProgram");
    if (fault != SOUND && strstr(options, spoiled) != NULL && spoiled_program_count < 64) {
        spoiled_programs[spoiled_program_count++] = program;
        if (fault == UNBUILT) return CL_BUILD_PROGRAM_FAILURE;
    }
    return function(program, count, devices, options, notify, data);
}

cl_kernel clCreateKernel(cl_program program, const char *name, cl_int *error)
{
    cl_kernel (*function)(cl_program, const char *, cl_int *);
    cl_kernel made;

    *(void **)&function = real("clCreateKernel");
    made = function(program, name, error);
    for (size_t i = 0; i < spoiled_program_count; i++)
        if (spoiled_programs[i] == program && spoiled_kernel_count < 64)
            spoiled_kernels[spoiled_kernel_count++] = made;
    return made;
}

/* Whether the driver bears several workers; IDLES: it does, and waits a while at every launch once there are two. */
static enum { BEARS, MIXES_UP, NO_SECOND_QUEUE, BREAKS, IDLES } threads_fault;
static pthread_t caller;
static cl_command_queue second_queue;                  /* the last context's */

cl_int clEnqueueNDRangeKernel(cl_command_queue queue, cl_kernel kernel, cl_uint dims, const size_t *offset,
                              const size_t *global, const size_t *local, cl_uint waits, const cl_event *wait,
                              cl_event *event)
{
    cl_int (*function)(cl_command_queue, cl_kernel, cl_uint, const size_t *, const size_t *, const size_t *,
                       cl_uint, const cl_event *, cl_event *);

    *(void **)&function = real("clEnqueueNDRangeKernel");
    for (size_t i = 0; i < spoiled_kernel_count; i++) {
        if (spoiled_kernels[i] != kernel) continue;
        if (fault == REFUSED) return CL_OUT_OF_RESOURCES;
        if (fault == IDLE_WHEN_LARGE && global[0] < 300) continue;   /* as the small tasks are */
        idled++;
        return clEnqueueMarkerWithWaitList(queue, waits, wait, event);
    }
    if (threads_fault == IDLES && second_queue != NULL) usleep(200);
    return function(queue, kernel, dims, offset, global, local, waits, wait, event);
}

/* ---- A driver that does not bear several workers ---- */


cl_command_queue clCreateCommandQueue(cl_context context, cl_device_id device,
                                      cl_command_queue_properties properties, cl_int *error)
{
    cl_command_queue (*function)(cl_context, cl_device_id, cl_command_queue_properties, cl_int *);
    static cl_context last;
    cl_command_queue made;
    const int again = context == last && !(properties & CL_QUEUE_PROFILING_ENABLE);

    *(void **)&function = real("clCreateCommandQueue");
    if (again && threads_fault == NO_SECOND_QUEUE) {
        *error = CL_OUT_OF_RESOURCES;
        return NULL;
    }
    made = function(context, device, properties, error);
    if (again) second_queue = made;
    last = context;
    return made;
}

/* Results that another thread than the caller's reads from the second queue are slightly wrong, or cannot be
 * read. */
cl_int clEnqueueReadBuffer(cl_command_queue queue, cl_mem buffer, cl_bool blocking, size_t offset,
                           size_t size, void *target, cl_uint waits, const cl_event *wait, cl_event *event)
{
    cl_int (*function)(cl_command_queue, cl_mem, cl_bool, size_t, size_t, void *, cl_uint, const cl_event *,
                       cl_event *);
    cl_int code;

    *(void **)&function = real("clEnqueueReadBuffer");
    if (queue != second_queue || pthread_equal(pthread_self(), caller) ||
        (threads_fault != MIXES_UP && threads_fault != BREAKS))
        return function(queue, buffer, blocking, offset, size, target, waits, wait, event);
    if (threads_fault == BREAKS) return CL_OUT_OF_RESOURCES;
    code = function(queue, buffer, blocking, offset, size, target, waits, wait, event);
    ((float *)target)[size / sizeof(float) - 1] += 1e-6f;
    return code;
}

/* ---- Helpers ---- */

static void count_log(void *data, resmap_log_level level, const char *text)
{
    (void)data;
    if (strstr(text, "tuning ignored") == NULL) return;
    if (level == RESMAP_LOG_WARNING) warnings++;
    if (level == RESMAP_LOG_INFO) notes++;
}

static rsm_device *open_device(void)
{
    rsm_device *device;

    env.log = count_log;
    warnings = notes = 0;
    OK(rsm_device_open(&env, "auto", &device));
    return device;
}

/* A variant of the operation for this device; number: of those that suit it. */
static const rsm_variant *variant_of(const rsm_device *device, rsm_tunable what, size_t number)
{
    size_t count;
    const rsm_variant *variants = rsm_variants(what, &count);

    for (size_t i = 0; i < count; i++)
        if (rsm_variant_suits(device, &variants[i]) && number-- == 0) return &variants[i];
    ck_abort_msg("%s: too few variants", rsm_tunable_name(what));
    return NULL;
}

/* Keeps a file that names two variants; its text in fresh memory. */
static char *keep(rsm_device *device)
{
    const rsm_tuning_failure failure = {RSM_TUNE_GATE, variant_of(device, RSM_TUNE_GATE, 0),
                                        "wrong:\nerror 0.3"};
    const rsm_preference preference = {"resmap-dim8", RSM_FP16, 131, 2, 112};
    rsm_tuning_file *file;
    char *text = calloc(1, 1 << 14);
    FILE *stream;

    rsm_tuned_set(device, RSM_TUNE_GEMM_DEEP, variant_of(device, RSM_TUNE_GEMM_DEEP, 1));
    rsm_tuned_set(device, RSM_TUNE_LAYER_NORM, variant_of(device, RSM_TUNE_LAYER_NORM, 0));
    OK(rsm_tuning_begin(device, &file));
    OK(rsm_tuning_keep(file, "for a test", &preference, &failure, 1));
    rsm_tuning_end(file);
    stream = fopen(rsm_tuning_path(device), "r");
    ck_assert(text && stream);
    ck_assert_uint_gt(fread(text, 1, (1 << 14) - 1, stream), 200);
    fclose(stream);
    return text;
}

static void write_file(const char *path, const char *text, size_t size)
{
    FILE *stream = fopen(path, "w");

    ck_assert_ptr_nonnull(stream);
    ck_assert_uint_eq(fwrite(text, 1, size, stream), size);
    ck_assert_int_eq(fclose(stream), 0);
}

/* Loads what is in the file now; whether it was taken. Either all of it is, or nothing. */
static int load(rsm_device *device)
{
    int some = 0;

    warnings = notes = 0;
    OK(rsm_tuning_load(device));
    for (int i = 0; i < RSM_TUNABLES; i++) some |= rsm_tuned(device, (rsm_tunable)i) != NULL;
    ck_assert_int_eq(warnings + notes, strncmp(rsm_tuning_state(device), "ignored: ", 9) == 0);
    ck_assert_int_eq(warnings + notes,
                     rsm_tuning_missing(device) && access(rsm_tuning_path(device), F_OK) == 0);
    some |= rsm_preferred(device, "resmap-dim8") != NULL;
    some |= rsm_preferred_workers(device, "resmap-dim8") != 1;
    if (rsm_tuning_missing(device)) ck_assert_int_eq(some, 0);
    return !rsm_tuning_missing(device);
}

/* Replaces the first `from` of the text by `to`, and loads; the text is left as it was. */
static int load_with(rsm_device *device, const char *text, const char *from, const char *to)
{
    const char *at = strstr(text, from);
    char *changed = malloc(strlen(text) + strlen(to) + 1);
    int taken;

    ck_assert_msg(at && changed, "no '%s' in the file", from);
    sprintf(changed, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    write_file(rsm_tuning_path(device), changed, strlen(changed));
    free(changed);
    taken = load(device);
    return taken;
}

/* ---- Tests ---- */

START_TEST(the_table)
{
    for (int i = 0; i < RSM_TUNABLES; i++) {
        size_t count;
        const rsm_variant *variants = rsm_variants((rsm_tunable)i, &count);
        ck_assert_ptr_null(strpbrk(rsm_tunable_name((rsm_tunable)i), " \t\n#"));
        for (int k = 0; k < i; k++)
            ck_assert_str_ne(rsm_tunable_name((rsm_tunable)i), rsm_tunable_name((rsm_tunable)k));
        for (size_t k = 0; k < count; k++) {
            ck_assert_ptr_null(strpbrk(variants[k].name, " \t\n"));
            ck_assert_str_ne(variants[k].name, "default");
            ck_assert(variants[k].flags & (RSM_ON_CPU | RSM_ON_GPU));
            for (size_t j = 0; j < k; j++) ck_assert_str_ne(variants[k].name, variants[j].name);
        }
    }
}
END_TEST

START_TEST(kept_and_read_again)
{
    rsm_device *device = open_device(), *again;
    char *text, *choices;

    ck_assert_str_eq(rsm_tuning_state(device), "none yet");
    ck_assert(rsm_tuning_missing(device));
    text = keep(device);
    ck_assert_ptr_nonnull(strstr(text, "\nfails depthwise3x3-gate "));
    ck_assert_ptr_nonnull(strstr(text, " wrong: error 0.3\n"));
    ck_assert(!rsm_tuning_missing(device));
    again = open_device();
    ck_assert(!rsm_tuning_missing(again));
    for (int i = 0; i < RSM_TUNABLES; i++)
        ck_assert_ptr_eq(rsm_tuned(again, (rsm_tunable)i), rsm_tuned(device, (rsm_tunable)i));
    ck_assert_ptr_nonnull(rsm_tuned(again, RSM_TUNE_GEMM_DEEP));
    ck_assert_ptr_nonnull(strstr(rsm_tuning_state(again), ".txt: for a test"));
    ck_assert_ptr_nonnull(strstr(text, "\nprecision resmap-dim8 fp16 131%\n"));
    ck_assert_int_eq(rsm_preferred(again, "resmap-dim8")->storage, RSM_FP16);
    ck_assert_int_eq(rsm_preferred(again, "resmap-dim8")->fp16_percent, 131);
    ck_assert_ptr_nonnull(strstr(text, "\nworkers resmap-dim8 2 112%\n"));
    ck_assert_int_eq(rsm_preferred(again, "resmap-dim8")->workers_percent, 112);
    ck_assert_int_eq(rsm_preferred_workers(again, "resmap-dim8"), 2);
    ck_assert_int_eq(rsm_preferred_workers(again, "resmap-dim"), 1);
    ck_assert_ptr_null(rsm_preferred(again, "resmap-dim"));
    choices = rsm_tuning_choices(again);
    ck_assert_ptr_nonnull(strstr(choices, "gemm-deep "));
    ck_assert_ptr_nonnull(strstr(choices, "layer-norm "));
    ck_assert_ptr_null(strstr(choices, "bands"));
    free(choices);
    free(text);
    rsm_device_close(again);
    rsm_device_close(device);
}
END_TEST

/* Wherever it is cut, and whichever byte is spoiled: taken only when it still makes sense. */
START_TEST(damaged)
{
    rsm_device *device = open_device();
    char *text = keep(device), *uses = strstr(text, "\nuse ");
    size_t size = strlen(text);
    int taken = 0;

    for (size_t cut = 0; cut < size; cut++) {
        write_file(rsm_tuning_path(device), text, cut);
        ck_assert_msg(!load(device), "taken with %zu of %zu bytes", cut, size);
    }
    for (size_t at = 0; at < size; at++) {
        char kept = text[at];
        text[at] = (char)(kept ^ 4);
        write_file(rsm_tuning_path(device), text, size);
        text[at] = kept;
        taken += load(device);
    }
    /* Comments, how it was made, why something fails: nobody else's business. */
    ck_assert_int_gt(taken, 0);
    ck_assert_int_lt(taken, (int)size / 2);
    text[uses - text + 20] = '\0';
    write_file(rsm_tuning_path(device), text, size);
    ck_assert(!load(device));
    free(text);
    rsm_device_close(device);
}
END_TEST

START_TEST(foreign_and_stale)
{
    rsm_device *device = open_device();
    char *text = keep(device), *longer, path[512], other[520];
    static const char *const broken[] = {
        " fp16 0%\n", " fp16 -131%\n", " fp16 131\n", " fp16 131%%\n", " fp16 131% 2\n", " fp16 fast\n", " fp16\n",
        " fp64 131%\n", " 131%\n", "\n", " fp16 131%\nprecision resmap-dim8 fp16 131%\n"};
    static const char *const broken_workers[] = {
        " 2 0%\n", " 2 -112%\n", " 2 112\n", " 2 112% 2\n", " 2\n", " 0 112%\n", " 9 112%\n", " 22 112%\n",
        " two 112%\n", " 112%\n", "\n", " 2 112%\nworkers resmap-dim8 2 112%\n"};

    snprintf(path, sizeof path, "%s", rsm_tuning_path(device));   /* loading makes a new one */

    ck_assert(load_with(device, text, "\nmade ", "\nmade by hand "));
    ck_assert(load_with(device, text, "tuning 3\n", "tuning 1\n"));   /* older ones */
    ck_assert(load_with(device, text, "tuning 3\n", "tuning 2\n"));
    ck_assert(!load_with(device, text, "tuning 3\n", "tuning 4\n"));
    ck_assert_int_eq(notes, 1);
    /* Either may be there without the other. */
    ck_assert(load_with(device, text, "\nprecision ", "\n# precision "));
    ck_assert_int_eq(rsm_preferred(device, "resmap-dim8")->fp16_percent, 0);
    ck_assert_int_eq(rsm_preferred_workers(device, "resmap-dim8"), 2);
    ck_assert(load_with(device, text, "\nworkers ", "\n# workers "));
    ck_assert_int_eq(rsm_preferred(device, "resmap-dim8")->fp16_percent, 131);
    ck_assert_int_eq(rsm_preferred_workers(device, "resmap-dim8"), 1);
    for (size_t i = 0; i < sizeof broken_workers / sizeof broken_workers[0]; i++) {
        ck_assert_msg(!load_with(device, text, " 2 112%\n", broken_workers[i]), "taken: %s",
                      broken_workers[i]);
        ck_assert_int_eq(warnings, 1);
    }
    for (size_t i = 0; i < sizeof broken / sizeof broken[0]; i++) {
        ck_assert_msg(!load_with(device, text, " fp16 131%\n", broken[i]), "taken: %s", broken[i]);
        ck_assert_int_eq(warnings, 1);
    }
    ck_assert(!load_with(device, text, "\nkernels ", "\nkernels 0"));
    ck_assert_int_eq(notes, 1);
    ck_assert(!load_with(device, text, "\nkernels ", "\n# kernels "));
    ck_assert_int_eq(warnings, 1);
    ck_assert(!load_with(device, text, "\ndevice ", "\ndevice another "));
    ck_assert_int_eq(warnings, 1);
    ck_assert_ptr_nonnull(strstr(rsm_tuning_state(device), "line 4: made on another device"));
    ck_assert(!load_with(device, text, "\ndevice ", "\n# device "));
    ck_assert(!load_with(device, text, "use bands default", "use bands 3-MiB"));
    ck_assert(!load_with(device, text, "use bands default", "use ribbons default"));
    ck_assert(!load_with(device, text, "use bands default", "use attention default"));
    ck_assert(!load_with(device, text, "use bands default", ""));
    ck_assert(!load_with(device, text, "use bands default", "use bands"));
    ck_assert(!load_with(device, text, "\nend\n", "\nend\nuse bands default\n"));
    ck_assert(!load_with(device, text, "\nend\n", "\nhello\nend\n"));
    /* A variant for the other kind of device. */
    ck_assert(!load_with(device, text, "use gemm-middle default",
                         device->cpu ? "use gemm-middle group-8" : "use gemm-middle vector-8x8"));
    longer = malloc(1 << 17);
    ck_assert_ptr_nonnull(longer);
    memset(longer, '#', 1 << 17);
    write_file(path, longer, 1 << 17);
    ck_assert(!load(device));
    free(longer);
    /* Things that are no files of ours. */
    write_file(path, text, strlen(text));
    ck_assert(load(device));
    snprintf(other, sizeof other, "%s.link", path);
    ck_assert_int_eq(rename(path, other), 0);
    ck_assert_int_eq(symlink(other, path), 0);
    ck_assert(!load(device));
    unlink(path);
    unlink(other);
    ck_assert_int_eq(mkdir(path, 0700), 0);
    ck_assert(!load(device));
    rmdir(path);
    ck_assert(!load(device));
    ck_assert_str_eq(rsm_tuning_state(device), "none yet");
    free(text);
    rsm_device_close(device);
}
END_TEST

/* Those of other networks stay; of one network there is one, and in all the latest 32. */
START_TEST(preferences_of_many_networks)
{
    rsm_device *device = open_device();
    rsm_tuning_file *file;
    char name[32];

    free(keep(device));
    for (int i = 0; i < RSM_PREFERENCES + 1; i++) {
        rsm_preference preference = {"", RSM_FP32, 90, 0, 0};
        snprintf(preference.network, sizeof preference.network, "network-%d", i);
        for (int again = 0; again < 2; again++) {
            preference.fp16_percent += i;
            OK(rsm_tuning_begin(device, &file));
            OK(rsm_tuning_keep(file, "for a test", &preference, NULL, 0));
            rsm_tuning_end(file);
            if (i == RSM_PREFERENCES - 1 && again == 0) ck_assert(load(device));
        }
        if (i == 7) ck_assert_int_eq(rsm_preferred(device, "resmap-dim8")->fp16_percent, 131);
    }
    ck_assert(load(device));
    ck_assert_ptr_null(rsm_preferred(device, "resmap-dim8"));
    ck_assert_ptr_null(rsm_preferred(device, "network-0"));
    for (int i = 1; i < RSM_PREFERENCES + 1; i++) {
        snprintf(name, sizeof name, "network-%d", i);
        ck_assert_ptr_nonnull(rsm_preferred(device, name));
        ck_assert_int_eq(rsm_preferred(device, name)->fp16_percent, 90 + 2 * i);
    }
    OK(rsm_tuning_begin(device, &file));
    OK(rsm_tuning_keep(file, "for a test", NULL, NULL, 0));
    rsm_tuning_end(file);
    ck_assert(load(device));
    ck_assert_ptr_nonnull(rsm_preferred(device, "network-1"));
    /* What is not measured anew stays as it was measured. */
    for (int i = 0; i < 2; i++) {
        const rsm_preference only[] = {{"network-1", RSM_FP16, 0, 3, 150},
                                       {"network-1", RSM_FP16, 120, 1, 0}};
        OK(rsm_tuning_begin(device, &file));
        OK(rsm_tuning_keep(file, "for a test", &only[i], NULL, 0));
        rsm_tuning_end(file);
        ck_assert(load(device));
        ck_assert_int_eq(rsm_preferred(device, "network-1")->storage, i == 0 ? RSM_FP32 : RSM_FP16);
        ck_assert_int_eq(rsm_preferred(device, "network-1")->fp16_percent, i == 0 ? 92 : 120);
        ck_assert_int_eq(rsm_preferred(device, "network-1")->workers_percent, 150);
        ck_assert_int_eq(rsm_preferred_workers(device, "network-1"), 3);
    }
    rsm_device_close(device);
}
END_TEST

START_TEST(turned_off)
{
    rsm_device *device = open_device();

    free(keep(device));
    ck_assert(load(device));
    for (int i = 0; i < 2; i++) {
        static const char *const names[] = {"RESMAP_TUNING", "RESMAP_GEMM"}, *const values[] = {"off", "own"};
        rsm_tuning_file *file;
        setenv(names[i], values[i], 1);
        OK(rsm_tuning_load(device));
        ck_assert_ptr_null(rsm_tuned(device, RSM_TUNE_GEMM_DEEP));
        ck_assert(!rsm_tuning_missing(device));
        ck_assert_int_eq(strncmp(rsm_tuning_state(device), "off: ", 5), 0);
        ck_assert_ptr_nonnull(strstr(rsm_tuning_state(device), names[i]));
        ck_assert_int_eq(rsm_tuning_begin(device, &file), RESMAP_IO);
        unsetenv(names[i]);
    }
    ck_assert(load(device));
    rsm_device_close(device);
}
END_TEST

START_TEST(nowhere_to_keep_it)
{
    rsm_device *device;
    rsm_tuning_file *file, *second;
    char path[400];

    setenv("RESMAP_CACHE", "off", 1);
    device = open_device();
    ck_assert(!rsm_tuning_missing(device));
    ck_assert_int_eq(rsm_tuning_begin(device, &file), RESMAP_IO);
    rsm_device_close(device);
    snprintf(path, sizeof path, "%s/blocked", folder);
    ck_assert_int_eq(mkdir(path, 0700), 0);
    setenv("RESMAP_CACHE", path, 1);
    snprintf(path, sizeof path, "%s/blocked/tuning", folder);
    write_file(path, "", 0);
    device = open_device();
    ck_assert_int_eq(rsm_tuning_begin(device, &file), RESMAP_IO);
    ck_assert_ptr_nonnull(strstr(env.error, "blocked/tuning"));
    rsm_device_close(device);
    setenv("RESMAP_CACHE", folder, 1);
    /* Who comes second while another one is tuning. */
    device = open_device();
    OK(rsm_tuning_begin(device, &file));
    ck_assert_int_eq(rsm_tuning_begin(device, &second), RESMAP_IO);
    ck_assert_ptr_nonnull(strstr(env.error, "another process"));
    rsm_tuning_end(file);                        /* without a file: nothing is left behind */
    OK(rsm_tuning_begin(device, &file));
    rsm_tuning_end(file);
    snprintf(path, sizeof path, "test -z \"$(ls %s/tuning | grep -v -e '[.]txt$' -e '^lock$')\"", folder);
    ck_assert_int_eq(system(path), 0);
    rsm_device_close(device);
}
END_TEST

/* Options of programs built for the kernels of gemm.cl. */
static int built(const rsm_device *device, const char *options)
{
    for (const rsm_program *p = device->programs; p; p = p->next)
        if (strcmp(p->file, "gemm") == 0 && strstr(p->options, options)) return 1;
    return 0;
}

START_TEST(winners_are_used)
{
    rsm_device *device = open_device(), *reference;
    const char *options;
    char *text;
    double error;

    OK(rsm_device_open(&env, "reference", &reference));
    text = keep(device);
    options = device->cpu ? "-DWIDTH=4 -DROWS=4" : "-DGROUP=8";
    ck_assert(load_with(device, text, "use gemm-middle default",
                        device->cpu ? "use gemm-middle vector-4x4" : "use gemm-middle group-8"));
    OK(rsm_check_operation(device, reference, RSM_TUNE_GEMM_SHALLOW, 0, &error));
    ck_assert(!built(device, options));
    OK(rsm_check_operation(device, reference, RSM_TUNE_GEMM_MIDDLE, 1, &error));
    ck_assert(built(device, options));
    ck_assert_double_le(error, 1e-5);
    free(text);
    rsm_device_close(reference);
    rsm_device_close(device);
}
END_TEST

/* All tasks by rule; $RESMAP_TEST_VARIANTS: every variant, too, which takes a while to build. */
START_TEST(every_variant)
{
    rsm_device *device = open_device(), *reference;

    OK(rsm_device_open(&env, "reference", &reference));
    for (int i = 0; i < RSM_TUNABLES; i++) {
        size_t count, most = getenv("RESMAP_TEST_VARIANTS") ? SIZE_MAX : 0;
        const rsm_variant *variants = rsm_variants((rsm_tunable)i, &count);
        /* CLBlast's parameters, on CPUs too. */
        const int clblast = i == RSM_TUNE_CLBLAST && most > 0;
        if (clblast) device->gemm = RSM_GEMM_CLBLAST;
        for (size_t k = 0; i != RSM_TUNE_BANDS && k <= count && k <= most; k++) {
            double error = -1;
            if (k > 0 && !clblast && !rsm_variant_suits(device, &variants[k - 1])) continue;
            rsm_tuned_set(device, (rsm_tunable)i, k > 0 ? &variants[k - 1] : NULL);
            OK(rsm_check_operation(device, reference, (rsm_tunable)i, k % 2 != 0, &error));
            ck_assert_msg(error >= 0 && error <= 1e-5, "%s %s: error %g", rsm_tunable_name((rsm_tunable)i),
                          k > 0 ? variants[k - 1].name : "default", error);
            ck_assert_ptr_eq(rsm_tuned(device, (rsm_tunable)i), k > 0 ? &variants[k - 1] : NULL);
            if (clblast) ck_assert_int_eq(device->gemm, RSM_GEMM_CLBLAST);
        }
        rsm_tuned_set(device, (rsm_tunable)i, NULL);
    }
    rsm_device_close(reference);
    rsm_device_close(device);
}
END_TEST

/* Tunes quickly with one variant spoiled: it is tried, found out, and not chosen. */
START_TEST(a_spoiled_variant_never_wins)
{
    static const struct {
        int fault;
        const char *problem;
    } cases[] = {{IDLE, "wrong: error"},
                 {IDLE_WHEN_LARGE, "the network's result is wrong"},
                 {REFUSED, "CL_OUT_OF_RESOURCES"},
                 {UNBUILT, "building gemm.cl"}};
    const resmap_tune_options options = {136, 136, 1};
    resmap_context *context;
    resmap_model *model;
    resmap_tuning *tuning;
    char name[32], use[64];
    int width, rows, tried = 0;
    FILE *stream;
    rsm_device *device = open_device();

    /* The first variant that a quick tuning tries in place of the rule's. */
    width = device->vector == 16 ? 8 : 16;
    rows = device->vector == 16 ? 4 : 8;
    snprintf(name, sizeof name, device->cpu ? "vector-%dx%d" : "group-8", width, rows);
    snprintf(spoiled, sizeof spoiled, device->cpu ? "-DWIDTH=%d -DROWS=%d" : "-DGROUP=8", width, rows);
    rsm_device_close(device);
    fault = cases[_i].fault;
    idled = 0;
    ck_assert_int_eq(resmap_context_create(&context), RESMAP_OK);
    ck_assert_int_eq(resmap_open_device(context, "auto"), RESMAP_OK);
    ck_assert_int_eq(resmap_model_open(context, MODEL, &model), RESMAP_OK);
    ck_assert_msg(resmap_tune(context, model, &options, &tuning) == RESMAP_OK, "%s", resmap_error(context));
    for (size_t i = 0; i < tuning->trial_count; i++) {
        const resmap_trial *x = &tuning->trials[i];
        if (strncmp(x->operation, "gemm-", 5) != 0 || strcmp(x->variant, name) != 0) continue;
        ck_assert(!x->chosen);
        ck_assert(!(x->speedup > 0));
        /* As a second variant of its operation it may have come too late to be tried. */
        if (!x->problem) continue;
        tried++;
        ck_assert_msg(strstr(x->problem, cases[_i].problem), "%s: %s", x->operation, x->problem);
    }
    ck_assert_int_gt(tried, 0);
    if (cases[_i].fault == IDLE || cases[_i].fault == IDLE_WHEN_LARGE) ck_assert_uint_gt(idled, 0);
    /* The file says what fails, apart from what is used. */
    stream = fopen(tuning->path, "r");
    ck_assert_ptr_nonnull(stream);
    snprintf(use, sizeof use, "%s ", name);
    tried = 0;
    for (char line[512]; fgets(line, sizeof line, stream);) {
        if (strncmp(line, "use ", 4) == 0) ck_assert_ptr_null(strstr(line, name));
        tried += strncmp(line, "fails ", 6) == 0 && strstr(line, use) && strstr(line, cases[_i].problem);
    }
    fclose(stream);
    ck_assert_int_gt(tried, 0);
    resmap_tuning_free(tuning);
    resmap_model_free(model);
    resmap_context_free(context);
    fault = SOUND;
    spoiled_program_count = spoiled_kernel_count = 0;
}
END_TEST

/* Where two workers give another result than one, or fail, one is taken; where launches wait, many; what is kept says so. */
START_TEST(spoiled_workers_never_win)
{
    static const char *const problems[] = {NULL, "the network's result is wrong", "another queue",
                                           "workers failed", NULL};
    /* Large enough that both workers get slices on a busy machine; small enough for eight within a quick tuning's time. */
    const size_t side = _i == IDLES ? 32 : 160;
    const resmap_tune_options options = {side, side, 1};
    resmap_context *context;
    resmap_model *model;
    resmap_tuning *tuning;
    const resmap_trial *one, *two, *last;
    char command[600];
    int kept;

    ck_assert_int_eq(resmap_context_create(&context), RESMAP_OK);
    ck_assert_int_eq(resmap_open_device(context, "auto"), RESMAP_OK);
    ck_assert_int_eq(resmap_model_open(context, MODEL, &model), RESMAP_OK);
    snprintf(command, sizeof command, "rm -f %s/tuning/*.txt", folder);
    ck_assert_int_eq(system(command), 0);
    ck_assert_int_eq(resmap_open_device(context, "auto"), RESMAP_OK);
    caller = pthread_self();
    threads_fault = _i;
    ck_assert_msg(resmap_tune(context, model, &options, &tuning) == RESMAP_OK, "%s", resmap_error(context));
    last = &tuning->trials[tuning->trial_count - 1];
    for (one = last; strcmp(one->variant, "1") != 0; one--) ck_assert_str_eq(one->operation, "workers");
    two = one + 1;
    ck_assert_str_eq(two->variant, "2");
    const char *number = NULL;
    for (const resmap_trial *x = one; x <= last; x++) {
        if (!x->chosen) continue;
        ck_assert_ptr_null(number);
        number = x->variant;
    }
    ck_assert_ptr_nonnull(number);
    snprintf(command, sizeof command, "grep -q '^workers .* %s [0-9]*%%$' '%s'", number, tuning->path);
    kept = system(command) == 0;
    if (problems[_i] == NULL) {
        ck_assert_msg(two->problem == NULL, "%s", two->problem);
        ck_assert(two->speedup > 0 && one->chosen == (two->speedup < 1.05) && kept);
        /* Twice as many were tried as long as that paid. */
        for (const resmap_trial *x = two; x <= last; x++)
            ck_assert(x->problem || x->speedup == 0 || x == last || x->speedup >= 1.05 * x[-1].speedup);
        if (threads_fault == IDLES) ck_assert_int_ge(atoi(number), 4);
    } else {
        ck_assert_ptr_nonnull(two->problem);
        ck_assert_msg(strstr(two->problem, problems[_i]) != NULL, "%s", two->problem);
        ck_assert(one->chosen && !kept);
    }
    threads_fault = BEARS;
    resmap_tuning_free(tuning);
    resmap_model_free(model);
    resmap_context_free(context);
}
END_TEST

/* Cancelled at any time: no file, nothing left behind, and the device as it was. */
static int cancel_after;
static int cancel(void *data, const char *what, size_t done, size_t total)
{
    (void)data;
    (void)done;
    (void)total;
    return strcmp(what, "tuning") == 0 && cancel_after-- == 0;
}

START_TEST(cancelled)
{
    resmap_tune_options options;
    resmap_context *context;
    resmap_model *model;
    resmap_tuning *tuning = NULL;
    char command[600];

    snprintf(command, sizeof command, "rm -f %s/tuning/*.txt", folder);
    ck_assert_int_eq(system(command), 0);
    resmap_tune_options_init(&options);
    options.quick = 1;
    options.height = options.width = 64;
    ck_assert_int_eq(resmap_context_create(&context), RESMAP_OK);
    ck_assert_int_eq(resmap_open_device(context, "auto"), RESMAP_OK);
    ck_assert_int_eq(resmap_model_open(context, MODEL, &model), RESMAP_OK);
    resmap_set_progress(context, cancel, NULL);
    for (int i = 0; i < 3; i++) {
        cancel_after = i;
        ck_assert_int_eq(resmap_tune(context, model, &options, &tuning), RESMAP_CANCELLED);
        ck_assert_ptr_null(tuning);
        ck_assert_str_eq(resmap_tuning_state(context, 0), "none yet");
    }
    snprintf(command, sizeof command, "test \"$(ls %s/tuning)\" = lock", folder);
    ck_assert_int_eq(system(command), 0);
    options.height = 0;
    ck_assert_int_eq(resmap_tune(context, model, &options, &tuning), RESMAP_BAD_ARGUMENT);
    options.height = 64;
    ck_assert_int_eq(resmap_open_device(context, "reference"), RESMAP_OK);
    ck_assert_int_eq(resmap_tune(context, model, &options, &tuning), RESMAP_NO_DEVICE);
    resmap_model_free(model);
    resmap_context_free(context);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("tuning");
    TCase *tests = tcase_create("tuning");
    rsm_device *device;
    char command[300];
    int failed;

    unsetenv("RESMAP_TUNING");
    unsetenv("RESMAP_GEMM");
    unsetenv("RESMAP_VECTOR");
    if (!make_scratch(folder)) return 99;
    setenv("RESMAP_CACHE", folder, 1);
    if (rsm_device_open(&env, "auto", &device) != RESMAP_OK) {
        printf("skipped: %s\n", env.error);
        rmdir(folder);
        return 77;
    }
    rsm_device_close(device);

    tcase_set_timeout(tests, 0);
    tcase_add_test(tests, the_table);
    tcase_add_test(tests, kept_and_read_again);
    tcase_add_test(tests, damaged);
    tcase_add_test(tests, foreign_and_stale);
    tcase_add_test(tests, preferences_of_many_networks);
    tcase_add_test(tests, turned_off);
    tcase_add_test(tests, nowhere_to_keep_it);
    tcase_add_test(tests, winners_are_used);
    tcase_add_test(tests, every_variant);
    tcase_add_loop_test(tests, a_spoiled_variant_never_wins, 0, 4);
    tcase_add_loop_test(tests, spoiled_workers_never_win, 0, 5);
    tcase_add_test(tests, cancelled);
    suite_add_tcase(suite, tests);
    failed = run_suite(suite);
    snprintf(command, sizeof command, "rm -rf '%s'", folder);
    if (system(command) != 0) failed++;
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
