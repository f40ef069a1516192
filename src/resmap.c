/* The public functions that tie the layers together. */
#include "resmap.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "context.h"
#include "core/share.h"
#include "image/image.h"
#include "image/metrics.h"
#include "model/cascade.h"
#include "model/selfcheck.h"
#include "model/timing.h"
#include "model/tune.h"
#include "synth/synth.h"

const char *resmap_status_text(resmap_status status)
{
    switch (status) {
    case RESMAP_OK: return "no error";
    case RESMAP_BAD_ARGUMENT: return "bad argument";
    case RESMAP_BAD_FILE: return "bad file";
    case RESMAP_IO: return "cannot write";
    case RESMAP_NO_MEMORY: return "out of memory";
    case RESMAP_NO_DEVICE: return "no such device";
    case RESMAP_NO_DEVICE_MEMORY: return "out of device memory";
    case RESMAP_BUILD_FAILED: return "kernel build failure";
    case RESMAP_DEVICE_FAILED: return "device failure";
    case RESMAP_SELF_CHECK_FAILED: return "self-check failed";
    case RESMAP_CANCELLED: return "cancelled";
    case RESMAP_INTERNAL: return "internal error";
    }
    return "unknown status";
}

void resmap_text_free(char *text)
{
    free(text);
}

/* ---- Context ---- */

resmap_status resmap_context_create(resmap_context **context)
{
    resmap_context *c = calloc(1, sizeof *c);

    if (c == NULL) return RESMAP_NO_MEMORY;
    *context = c;
    return RESMAP_OK;
}

static void drop_networks(resmap_context *context)
{
    for (size_t i = 0; i < context->network_count; i++) rsm_network_free(context->networks[i]);
    free(context->networks);
    context->networks = NULL;
    context->network_count = 0;
    context->network_model = NULL;
}

void resmap_context_free(resmap_context *context)
{
    if (context == NULL) return;
    drop_networks(context);
    rsm_devices_close(context->opened, context->opened_count);
    rsm_device_list_free(context->devices);
    free(context->precision_reason);
    free(context->cache_folder);
    free(context);
}

const char *resmap_error(const resmap_context *context)
{
    return context->env.error;
}

void resmap_set_log(resmap_context *context, resmap_log_fn log, void *data)
{
    context->env.log = log;
    context->env.log_data = data;
}

void resmap_set_progress(resmap_context *context, resmap_progress_fn progress, void *data)
{
    context->env.progress = progress;
    context->env.progress_data = data;
}

/* Looked for on first use, not in resmap_context_create: only now is there a log for what is wrong with it. */
const char *resmap_cache_folder(resmap_context *context)
{
    if (!context->cache_sought) context->cache_folder = rsm_cache_folder(&context->env);
    context->cache_sought = 1;
    return context->cache_folder;
}

/* ---- Devices ---- */

resmap_status resmap_list_devices(resmap_context *context, const resmap_device **list, size_t *count)
{
    rsm_device_list *devices;

    RSM_TRY(rsm_device_list_create(&context->env, &devices));
    rsm_device_list_free(context->devices);
    context->devices = devices;
    *list = rsm_device_list_items(devices, count);
    return RESMAP_OK;
}

resmap_status resmap_open_device(resmap_context *context, const char *specification)
{
    double start = rsm_seconds();
    rsm_device **devices;
    size_t count;

    RSM_TRY(rsm_devices_open(&context->env, specification, &devices, &count));
    drop_networks(context);
    context->fp16_refused = NULL;
    rsm_devices_close(context->opened, context->opened_count);
    context->opened = devices;
    context->opened_count = count;
    context->seconds_opening += rsm_seconds() - start;
    return RESMAP_OK;
}

const resmap_device *resmap_opened_device(const resmap_context *context, size_t index)
{
    return index < context->opened_count ? rsm_device_info(context->opened[index]) : NULL;
}

void resmap_device_bytes(const resmap_context *context, uint64_t *now, uint64_t *peak)
{
    *now = *peak = 0;
    for (size_t i = 0; i < context->opened_count; i++) {
        *now += rsm_device_bytes(context->opened[i]);
        *peak += rsm_device_bytes_peak(context->opened[i]);
    }
}

/* ---- Images ---- */

resmap_status resmap_image_create(resmap_context *context, const float *data, const size_t shape[4],
                                  const double voxel_to_world[12], resmap_image **image)
{
    return rsm_image_create(&context->env, data, shape, voxel_to_world, image);
}

resmap_status resmap_image_read(resmap_context *context, const char *path, resmap_image **image)
{
    return rsm_image_read(&context->env, path, image);
}

resmap_status resmap_image_write(resmap_context *context, const resmap_image *image, const char *path, int overwrite)
{
    rsm_outputs *outputs;
    FILE *stream;
    resmap_status status;

    RSM_TRY(rsm_image_check_name(&context->env, path));
    RSM_TRY(rsm_outputs_create(&context->env, overwrite, &outputs));
    status = rsm_outputs_claim(outputs, path);
    if (status == RESMAP_OK) status = rsm_outputs_open(outputs, path, &stream);
    if (status == RESMAP_OK) status = rsm_image_write_stream(&context->env, image, path, stream);
    if (status == RESMAP_OK) status = rsm_outputs_commit(outputs);
    rsm_outputs_free(outputs);
    return status;
}

/* ---- Models ---- */

/* Counts the seconds since `start` as opening, and gives the status of what was opened. */
static resmap_status opened_since(double start, resmap_context *context, resmap_status status)
{
    context->seconds_opening += rsm_seconds() - start;
    return status;
}

resmap_status resmap_model_open(resmap_context *context, const char *name, resmap_model **model)
{
    double start = rsm_seconds();

    return opened_since(start, context, rsm_model_open(&context->env, name, model));
}

resmap_status resmap_model_from_memory(resmap_context *context, const void *bytes, size_t size, const char *name,
                                       resmap_model **model)
{
    double start = rsm_seconds();
    unsigned char *copy = malloc(size > 0 ? size : 1);

    if (copy == NULL) return rsm_no_memory(&context->env, size);
    if (size > 0) memcpy(copy, bytes, size);
    return opened_since(start, context, rsm_model_create(&context->env, name, copy, size, model));
}

void resmap_model_free(resmap_model *model)
{
    resmap_context *context;

    if (model == NULL) return;
    context = (resmap_context *)model->env;   /* its first member */
    if (context->network_model == model) drop_networks(context);
    if (context->fp16_refused == model) context->fp16_refused = NULL;   /* another may get its address */
    rsm_model_free(model);
}

const char *resmap_model_name(const resmap_model *model)
{
    return model->name;
}

const char *resmap_model_sha256(const resmap_model *model)
{
    return model->file.sha256;
}

size_t resmap_model_class_count(const resmap_model *model)
{
    return model->config.class_count;
}

const char *resmap_model_class(const resmap_model *model, size_t index)
{
    return index < model->config.class_count ? model->config.classes[index] : NULL;
}

resmap_status resmap_model_describe(resmap_context *context, const resmap_model *model, int json, char **text)
{
    return rsm_model_describe(&context->env, model, json, text);
}

/* ---- Restoring ---- */

void resmap_options_init(resmap_options *options)
{
    memset(options, 0, sizeof *options);
    options->steps = -1;
}

resmap_status resmap_report_json(resmap_context *context, const resmap_report *report, int classify, char **text)
{
    return rsm_report_json(&context->env, report, classify, text);
}

/* After a failure on one of several devices, `others` of which are left: goes on without it when it is the
 * device's. */
static resmap_status leave_out(resmap_context *context, const rsm_device *device, resmap_status failure,
                               size_t others)
{
    rsm_fail(&context->env, failure, "%s", rsm_device_env(device)->error);
    if (others == 0 || !rsm_is_device_failure(failure)) return failure;
    rsm_log(&context->env, RESMAP_LOG_WARNING, "%s; its work goes to others", context->env.error);
    return RESMAP_OK;
}

static rsm_storage storage_of(resmap_precision precision)
{
    return precision == RESMAP_PRECISION_FP16 ? RSM_FP16 : RSM_FP32;
}

static resmap_status give_reason(resmap_context *context, char *why)
{
    free(context->precision_reason);
    context->precision_reason = why;
    return why != NULL ? RESMAP_OK : rsm_no_memory(&context->env, 256);
}

/* What "auto" takes of fp32 and fp16 on one device, and why. */
static char *storage_on(const rsm_device *device, const resmap_model *model, rsm_storage *storage)
{
    const char *name = rsm_device_info(device)->name;
    const rsm_preference *preference;
    char shape[RSM_SHAPE_LENGTH];

    rsm_config_shape(&model->config, shape);
    preference = rsm_preferred(device, shape);
    if (preference != NULL && preference->fp16_percent == 0) preference = NULL;
    *storage = preference != NULL ? preference->storage : RSM_FP32;
    if (rsm_device_is_reference(device)) return rsm_strdup("the reference computes in float64");
    if (preference == NULL) return rsm_format("fp16 was not measured with such a network on %s", name);
    return rsm_format("fp16 was measured to have %d%% of fp32's speed on %s", preference->fp16_percent, name);
}

/* What "auto" takes: fp16 where it is preferred on every device, for devices that share a volume should give the same. */
static resmap_status choose_storage(resmap_context *context, const resmap_model *model, rsm_storage *storage)
{
    if (context->opened_count == 0) return rsm_fail(&context->env, RESMAP_NO_DEVICE, "device: none is opened");
    *storage = context->fp16_refused == model ? RSM_FP32 : RSM_FP16;
    if (*storage == RSM_FP32) return give_reason(context, rsm_strdup("fp16 was tried, and failed"));
    for (size_t i = 0; i < context->opened_count && *storage == RSM_FP16; i++)
        RSM_TRY(give_reason(context, storage_on(context->opened[i], model, storage)));
    return RESMAP_OK;
}

resmap_status resmap_auto_precision(resmap_context *context, const resmap_model *model, resmap_precision *precision,
                                    const char **why)
{
    rsm_storage storage;

    RSM_TRY(choose_storage(context, model, &storage));
    *precision = storage == RSM_FP16 ? RESMAP_PRECISION_FP16 : RESMAP_PRECISION_FP32;
    *why = context->precision_reason;
    return RESMAP_OK;
}

/* Puts the model's network on every opened device. */
static resmap_status load_networks(resmap_context *context, const resmap_model *model, rsm_storage storage)
{
    size_t count = context->opened_count;

    if (count == 0) return rsm_fail(&context->env, RESMAP_NO_DEVICE, "device: none is opened");
    if (context->network_model == model && context->network_storage == storage) return RESMAP_OK;
    drop_networks(context);
    context->networks = calloc(count, sizeof *context->networks);
    if (context->networks == NULL) return rsm_no_memory(&context->env, count * sizeof *context->networks);
    for (size_t i = 0; i < count; i++) {
        rsm_network **network = &context->networks[context->network_count];
        resmap_status status = rsm_network_create(context->opened[i], model, storage, network);
        if (status == RESMAP_OK) context->network_count++;
        else RSM_TRY(leave_out(context, context->opened[i], status, context->network_count + count - 1 - i));
    }
    context->network_model = model;
    context->network_storage = storage;
    return RESMAP_OK;
}

/* The same, each tuned and checked once for its device and model. */
static resmap_status prepare_networks(resmap_context *context, const resmap_model *model, rsm_storage storage)
{
    RSM_TRY(load_networks(context, model, storage));
    for (size_t i = 0; i < context->network_count;) {
        rsm_device *device = rsm_network_device(context->networks[i]);
        resmap_status status = RESMAP_OK;
        if (!rsm_device_is_reference(device)) {
            /* Tuning is for both storages, and measured in one. */
            if (context->network_storage == RSM_FP32)
                status = rsm_tune_once(context->networks[i], resmap_cache_folder(context));
            if (status == RESMAP_OK)
                status = rsm_self_check_once(context->networks[i], resmap_cache_folder(context));
        }
        if (status == RESMAP_OK) {
            i++;
            continue;
        }
        RSM_TRY(leave_out(context, device, status, context->network_count - 1));
        rsm_network_free(context->networks[i]);
        context->networks[i] = context->networks[--context->network_count];
    }
    return RESMAP_OK;
}

/* The networks with the precision asked for, or with what "auto" takes: fp16 on all devices or on none. */
static resmap_status use_networks(resmap_context *context, const resmap_model *model, resmap_precision precision)
{
    rsm_storage storage = storage_of(precision);
    resmap_status status;

    if (precision != RESMAP_PRECISION_AUTO) {
        RSM_TRY(give_reason(context, rsm_strdup("asked for")));
        return prepare_networks(context, model, storage);
    }
    RSM_TRY(choose_storage(context, model, &storage));
    if (storage == RSM_FP32) {
        RSM_TRY(prepare_networks(context, model, RSM_FP32));
        RSM_TRY(choose_storage(context, model, &storage));   /* a tuning may have been made */
        if (storage == RSM_FP32) return RESMAP_OK;
    }
    status = prepare_networks(context, model, RSM_FP16);
    if (status == RESMAP_OK && context->network_count == context->opened_count) return RESMAP_OK;
    if (status == RESMAP_CANCELLED || status == RESMAP_NO_MEMORY) return status;
    rsm_log(&context->env, RESMAP_LOG_WARNING, "fp32 is taken, for fp16 fails: %s", context->env.error);
    context->fp16_refused = model;
    RSM_TRY(choose_storage(context, model, &storage));
    return prepare_networks(context, model, RSM_FP32);
}

static resmap_status single_device(resmap_context *context, const char *what, rsm_device **device)
{
    if (context->opened_count > 1)
        return rsm_fail(&context->env, RESMAP_BAD_ARGUMENT, "device: %s takes a single one, not %zu", what,
                        context->opened_count);
    *device = context->opened_count == 0 ? NULL : context->opened[0];
    return RESMAP_OK;
}

/* The options and the model that every use of a network takes; sets the memory limit. */
static resmap_status accept(resmap_context *context, const resmap_model *model, resmap_precision precision,
                            uint64_t memory_mib)
{
    rsm_env *env = &context->env;

    if (model->env != env) return rsm_fail(env, RESMAP_BAD_ARGUMENT, "%s: a model of another context", model->name);
    if (precision != RESMAP_PRECISION_AUTO && precision != RESMAP_PRECISION_FP32 && precision != RESMAP_PRECISION_FP16)
        return rsm_fail(env, RESMAP_BAD_ARGUMENT, "precision: %d is none", (int)precision);
    if (memory_mib > UINT64_MAX >> 20)
        return rsm_fail(env, RESMAP_BAD_ARGUMENT, "memory: %" PRIu64 " MiB is too much", memory_mib);
    for (size_t i = 0; i < context->opened_count; i++) {
        if (precision == RESMAP_PRECISION_FP16 && rsm_device_is_reference(context->opened[i]))
            return rsm_fail(env, RESMAP_NO_DEVICE, "precision: the reference has no fp16, it computes in float64");
        rsm_device_set_limit(context->opened[i], memory_mib << 20);
    }
    return RESMAP_OK;
}

resmap_status resmap_self_check(resmap_context *context, resmap_model *model, resmap_precision precision, double *error)
{
    rsm_device *device;

    RSM_TRY(single_device(context, "a self-check", &device));
    RSM_TRY(accept(context, model, precision, 0));
    RSM_TRY(load_networks(context, model, storage_of(precision)));
    return rsm_self_check(context->networks[0], error);
}

static resmap_status fill_report(resmap_context *context, const resmap_model *model, resmap_report *report)
{
    report->model_name = rsm_strdup(model->name);
    report->model_sha256 = rsm_strdup(model->file.sha256);
    report->precision_reason = rsm_strdup(context->precision_reason);
    if (report->model_name == NULL || report->model_sha256 == NULL || report->precision_reason == NULL)
        return rsm_no_memory(&context->env, sizeof *report);
    return RESMAP_OK;
}

/* The networks that a volume is given to: the context's, and behind them those of further workers. */
typedef struct team {
    rsm_network **networks;
    size_t count, first_count;   /* first_count: the context's */
} team;

static void dismiss(team *t)
{
    while (t->count > t->first_count) {
        rsm_network *network = t->networks[--t->count];
        rsm_device *worker = rsm_network_device(network);
        rsm_network_free(network);
        rsm_device_close(worker);
    }
    free(t->networks);
}

/* How many workers an opened device should have with such a model. One opened twice, or in parts, has several. */
static int workers_wanted(const resmap_context *context, const rsm_device *device, const resmap_model *model)
{
    char shape[RSM_SHAPE_LENGTH];

    for (size_t k = 0; k < context->opened_count; k++)
        if (context->opened[k] != device &&
            rsm_device_info(context->opened[k])->index == rsm_device_info(device)->index) return 1;
    rsm_config_shape(&model->config, shape);
    return rsm_device_is_reference(device) ? 1 : rsm_preferred_workers(device, shape);
}

int resmap_auto_workers(const resmap_context *context, const resmap_model *model, size_t index)
{
    return index < context->opened_count ? workers_wanted(context, context->opened[index], model) : 0;
}

static resmap_status hire_one(rsm_network *network, team *t)
{
    rsm_device *worker;
    resmap_status status;

    RSM_TRY(rsm_device_share(rsm_network_device(network), &worker));
    status = rsm_network_share(network, worker, &t->networks[t->count]);
    if (status == RESMAP_OK) {
        t->count++;
        return RESMAP_OK;
    }
    rsm_fail(rsm_device_env(rsm_network_device(network)), status, "%s", rsm_device_env(worker)->error);
    rsm_device_close(worker);
    return status;
}

/* A further worker that a device has no memory or queue for is done without. On failure, too, *t is to be
 * dismissed. */
static resmap_status hire(resmap_context *context, team *t)
{
    rsm_env *env = &context->env;
    size_t most = context->network_count * RSM_MOST_WORKERS;

    t->networks = calloc(most, sizeof *t->networks);
    if (t->networks == NULL) return rsm_no_memory(env, most * sizeof *t->networks);
    t->count = t->first_count = context->network_count;
    memcpy(t->networks, context->networks, t->count * sizeof *t->networks);
    for (size_t i = 0; i < t->first_count; i++) {
        const rsm_device *device = rsm_network_device(t->networks[i]);
        const rsm_env *own = rsm_device_env(device);
        resmap_status status = RESMAP_OK;
        for (int k = workers_wanted(context, device, rsm_network_model(t->networks[i])); k > 1 && status == RESMAP_OK; k--)
            status = hire_one(t->networks[i], t);
        if (status == RESMAP_OK) continue;
        if (!rsm_is_device_failure(status)) return rsm_fail(env, status, "%s", own->error);
        rsm_log(env, RESMAP_LOG_INFO, "done without a further worker: %s", own->error);
    }
    return RESMAP_OK;
}

/* Restores or (output NULL) classifies; *report is made here, and freed on failure. */
static resmap_status run_cascade(resmap_context *context, resmap_model *model, const resmap_image *input,
                                 const resmap_image *mask, const resmap_options *options, resmap_image **output,
                                 resmap_report **result)
{
    rsm_env *env = &context->env;
    double start = rsm_seconds(), ready;
    resmap_image *restored = NULL;
    resmap_report *report = calloc(1, sizeof *report);
    team t = {NULL, 0, 0};
    uint64_t now;
    resmap_status status;

    if (report == NULL) return rsm_no_memory(env, sizeof *report);
    RSM_CHECK(accept(context, model, options->precision, options->memory_mib));
    for (size_t i = 0; i < context->opened_count; i++) rsm_device_reset_peak(context->opened[i]);
    RSM_CHECK(use_networks(context, model, options->precision));
    RSM_CHECK(fill_report(context, model, report));
    ready = rsm_seconds();
    if (output != NULL) RSM_CHECK(rsm_image_like(env, input, &restored));
    RSM_CHECK(hire(context, &t));
    RSM_CHECK(rsm_cascade_run(env, t.networks, t.count, input, mask, options, output == NULL, restored,
                              report));
    report->seconds_setup = context->seconds_opening + ready - start;
    context->seconds_opening = 0;
    report->seconds_compute = rsm_seconds() - ready;
    report->seconds_total = report->seconds_setup + report->seconds_compute;
    resmap_device_bytes(context, &now, &report->device_bytes_peak);
    *result = report;
    if (output != NULL) *output = restored;
done:
    dismiss(&t);
    if (status == RESMAP_OK) return RESMAP_OK;
    resmap_image_free(restored);
    resmap_report_free(report);
    return status;
}

resmap_status resmap_restore(resmap_context *context, resmap_model *model, const resmap_image *input, const resmap_image *mask,
                             const resmap_options *options, resmap_image **output, resmap_report **report)
{
    resmap_report *made;

    if (output == NULL) return rsm_fail(&context->env, RESMAP_BAD_ARGUMENT, "output: none to restore to");
    RSM_TRY(run_cascade(context, model, input, mask, options, output, &made));
    if (report != NULL) *report = made;
    else resmap_report_free(made);
    return RESMAP_OK;
}

resmap_status resmap_classify(resmap_context *context, resmap_model *model, const resmap_image *input, const resmap_image *mask,
                              const resmap_options *options, resmap_report **report)
{
    return run_cascade(context, model, input, mask, options, NULL, report);
}

/* "noise (80%) > bias (61%) > clean (97%)", of the first frame. */
static char *steps_text(const resmap_report *report)
{
    const resmap_volume_report *volume = report->volumes;
    char *text = rsm_strdup("");

    for (int s = 0; text != NULL && s < volume->step_count; s++) {
        const resmap_step *step = &volume->steps[s];
        const char *name = step->class_index < 0 ? "restored" : report->classes[step->class_index];
        char *longer = rsm_format(step->has_probabilities ? "%s%s%s (%.0f%%)" : "%s%s%s", text, s == 0 ? "" : " > ", name,
                                  step->class_index < 0 ? 0.0 : 100 * step->probabilities[step->class_index]);
        free(text);
        text = longer;
    }
    return text;
}

static resmap_status write_residual(rsm_env *env, const resmap_image *input, const resmap_image *restored,
                                    const resmap_image *mask, const char *path, FILE *stream)
{
    size_t voxels = input->shape[0] * input->shape[1] * input->shape[2];
    resmap_image *residual;
    resmap_status status;

    RSM_TRY(rsm_image_like(env, input, &residual));
    /* Excluded voxels stayed as they were; infinite ones would give NaN. */
    for (size_t i = 0; i < voxels * input->shape[3]; i++)
        residual->data[i] = mask == NULL || mask->data[i % voxels] > 0.5f ? input->data[i] - restored->data[i] : 0;
    status = rsm_image_write_stream(env, residual, path, stream);
    resmap_image_free(residual);
    return status;
}

static resmap_status write_figure(rsm_env *env, const resmap_image *input, const resmap_image *restored,
                                  const resmap_image *mask, const resmap_options *options, const resmap_report *report, const char *path,
                                  FILE *stream)
{
    rsm_slicing slicing;
    char *steps, *caption;
    resmap_status status;

    RSM_TRY(rsm_slicing_choose(env, input, options->plane, &slicing));
    steps = steps_text(report);
    caption = steps == NULL ? NULL
                            : rsm_format("%s: %s [%s, resmap %s]", report->volume_count > 1 ? "frame 0" : "steps",
                                         steps[0] == '\0' ? "none" : steps, report->model_name, resmap_version());
    status = caption == NULL ? rsm_no_memory(env, 256)
                             : rsm_figure_write(env, input, restored, mask == NULL ? NULL : mask->data, &slicing, caption, path, stream);
    free(steps);
    free(caption);
    return status;
}

static resmap_status write_report(resmap_context *context, const resmap_report *report, const char *path, FILE *stream)
{
    char *text;
    resmap_status status = RESMAP_OK;

    RSM_TRY(resmap_report_json(context, report, 0, &text));
    if (fputs(text, stream) < 0) status = rsm_fail(&context->env, RESMAP_IO, "%s: cannot be written", path);
    free(text);
    return status;
}

/* What is wrong whatever the files hold is told before any is read. */
static resmap_status check_arguments(rsm_env *env, const resmap_model *model, const resmap_files *files, const resmap_options *options)
{
    int classes[RESMAP_MAX_STEPS], count;

    if (options->order != NULL) RSM_TRY(rsm_cascade_order(env, &model->config, options->order, classes, &count));
    if (files->residual != NULL && rsm_image_check_name(env, files->residual) != RESMAP_OK)
        return RESMAP_BAD_ARGUMENT;                  /* an option's value, not an operand */
    return rsm_image_check_name(env, files->output);
}

/* Claims every name before the work: an output that cannot be written should not cost a restoration. */
static resmap_status claim(const resmap_model *model, const resmap_files *files, rsm_outputs *outputs)
{
    RSM_TRY(rsm_outputs_spare(outputs, files->mask));
    RSM_TRY(rsm_outputs_spare(outputs, model->path));
    RSM_TRY(rsm_outputs_claim(outputs, files->output));
    RSM_TRY(rsm_outputs_spare(outputs, files->input));      /* its restoration may replace it, nothing else */
    if (files->residual != NULL) RSM_TRY(rsm_outputs_claim(outputs, files->residual));
    if (files->figure != NULL) RSM_TRY(rsm_outputs_claim(outputs, files->figure));
    if (files->report != NULL) RSM_TRY(rsm_outputs_claim(outputs, files->report));
    return RESMAP_OK;
}

resmap_status resmap_restore_file(resmap_context *context, resmap_model *model, const resmap_files *files,
                                  const resmap_options *options, resmap_report **result)
{
    rsm_env *env = &context->env;
    resmap_image *input = NULL, *mask = NULL, *restored = NULL;
    resmap_report *report = NULL;
    rsm_outputs *outputs = NULL;
    FILE *stream;
    double start = rsm_seconds(), read, written;
    resmap_status status;

    RSM_CHECK(check_arguments(env, model, files, options));
    RSM_CHECK(rsm_image_read(env, files->input, &input));
    if (files->mask != NULL) RSM_CHECK(rsm_image_read(env, files->mask, &mask));
    read = rsm_seconds() - start;
    RSM_CHECK(rsm_outputs_create(env, files->overwrite, &outputs));
    RSM_CHECK(claim(model, files, outputs));
    RSM_CHECK(run_cascade(context, model, input, mask, options, &restored, &report));
    written = rsm_seconds();
    report->input = rsm_strdup(files->input);
    report->output = rsm_strdup(files->output);
    if (report->input == NULL || report->output == NULL) {
        status = rsm_no_memory(env, strlen(files->input) + strlen(files->output));
        goto done;
    }
    RSM_CHECK(rsm_outputs_open(outputs, files->output, &stream));
    RSM_CHECK(rsm_image_write_stream(env, restored, files->output, stream));
    if (files->residual != NULL) {
        RSM_CHECK(rsm_outputs_open(outputs, files->residual, &stream));
        RSM_CHECK(write_residual(env, input, restored, mask, files->residual, stream));
    }
    if (files->figure != NULL) {
        RSM_CHECK(rsm_outputs_open(outputs, files->figure, &stream));
        RSM_CHECK(write_figure(env, input, restored, mask, options, report, files->figure, stream));
    }
    report->seconds_read = read;
    report->seconds_write = rsm_seconds() - written;
    report->seconds_total += report->seconds_read + report->seconds_write;
    if (files->report != NULL) {
        RSM_CHECK(rsm_outputs_open(outputs, files->report, &stream));
        RSM_CHECK(write_report(context, report, files->report, stream));
    }
    RSM_CHECK(rsm_outputs_commit(outputs));
    if (result != NULL) {
        *result = report;
        report = NULL;
    }
done:
    rsm_outputs_free(outputs);
    resmap_image_free(input);
    resmap_image_free(mask);
    resmap_image_free(restored);
    resmap_report_free(report);
    return status;
}

/* ---- Timing ---- */

resmap_status resmap_model_paper(resmap_context *context, resmap_model **model)
{
    double start = rsm_seconds();

    return opened_since(start, context, rsm_model_paper(&context->env, model));
}

void resmap_timing_options_init(resmap_timing_options *options)
{
    memset(options, 0, sizeof *options);
    options->height = options->width = 256;
    options->repeat = 5;
}

resmap_status resmap_timing_json(resmap_context *context, const resmap_timing *timing, char **text)
{
    return rsm_timing_json(&context->env, timing, text);
}

static resmap_status check_size(rsm_env *env, size_t height, size_t width)
{
    if (height >= 1 && height <= 16384 && width >= 1 && width <= 16384) return RESMAP_OK;
    return rsm_fail(env, RESMAP_BAD_ARGUMENT, "size: %zu x %zu is not within 1 to 16384", height, width);
}

/* Copies of what the model and the device are called. */
static resmap_status copy_names(rsm_env *env, const resmap_model *model, const resmap_device *device, char **model_name,
                                char **device_name, char **platform, char **driver)
{
    *model_name = rsm_strdup(model->name);
    *device_name = rsm_strdup(device->name);
    *platform = rsm_strdup(device->platform);
    *driver = rsm_strdup(device->driver);
    if (*model_name == NULL || *device_name == NULL || *platform == NULL || *driver == NULL)
        return rsm_no_memory(env, strlen(device->name) + 1);
    return RESMAP_OK;
}

resmap_status resmap_time(resmap_context *context, resmap_model *model, const resmap_timing_options *options,
                          resmap_timing **timing)
{
    rsm_env *env = &context->env;
    rsm_device *timed = NULL;
    resmap_timing *t;
    resmap_status status;

    RSM_TRY(check_size(env, options->height, options->width));
    if (options->repeat < 1 || options->repeat > 1000)
        return rsm_fail(env, RESMAP_BAD_ARGUMENT, "repeat: %d is not within 1 to 1000", options->repeat);
    RSM_TRY(single_device(context, "timing", &timed));
    RSM_TRY(accept(context, model, options->precision, options->memory_mib));
    t = calloc(1, sizeof *t);
    if (t == NULL) return rsm_no_memory(env, sizeof *t);
    RSM_CHECK(use_networks(context, model, options->precision));
    RSM_CHECK(copy_names(env, model, rsm_device_info(timed), &t->model_name, &t->device_name, &t->device_platform,
                         &t->device_driver));
    t->precision = rsm_network_precision(context->networks[0]);
    t->precision_reason = rsm_strdup(context->precision_reason);
    if (t->precision_reason == NULL) RSM_CHECK(rsm_no_memory(env, sizeof *t));
    RSM_CHECK(rsm_timing_run(context->networks[0], options, t));
    *timing = t;
    return RESMAP_OK;
done:
    resmap_timing_free(t);
    return status;
}

/* ---- Tuning ---- */

void resmap_tune_options_init(resmap_tune_options *options)
{
    memset(options, 0, sizeof *options);
    options->height = options->width = 256;
}

resmap_status resmap_tuning_json(resmap_context *context, const resmap_tuning *tuning, char **text)
{
    return rsm_tuning_text(&context->env, tuning, text);
}

const char *resmap_tuning_state(const resmap_context *context, size_t index)
{
    return index < context->opened_count ? rsm_tuning_state(context->opened[index]) : NULL;
}

resmap_status resmap_tune(resmap_context *context, resmap_model *model, const resmap_tune_options *options,
                          resmap_tuning **tuning)
{
    rsm_env *env = &context->env;
    rsm_device *tuned = NULL;
    resmap_tuning *t;
    resmap_status status;

    RSM_TRY(check_size(env, options->height, options->width));
    RSM_TRY(single_device(context, "tuning", &tuned));
    RSM_TRY(accept(context, model, RESMAP_PRECISION_AUTO, 0));
    RSM_TRY(load_networks(context, model, RSM_FP32));
    if (rsm_device_is_reference(tuned))
        return rsm_fail(env, RESMAP_NO_DEVICE, "tuning: the reference has nothing to be tuned");
    t = calloc(1, sizeof *t);
    if (t == NULL) return rsm_no_memory(env, sizeof *t);
    RSM_CHECK(copy_names(env, model, rsm_device_info(tuned), &t->model_name, &t->device_name, &t->device_platform,
                         &t->device_driver));
    RSM_CHECK(rsm_tune(context->networks[0], options, resmap_cache_folder(context), t));
    if (tuning != NULL) *tuning = t;
    else resmap_tuning_free(t);
    return RESMAP_OK;
done:
    resmap_tuning_free(t);
    return status;
}

/* ---- Comparing ---- */

resmap_status resmap_evaluate(resmap_context *context, const resmap_image *reference,
                              const resmap_image *test, const resmap_image *mask, resmap_plane plane,
                              resmap_metrics **metrics)
{
    return rsm_evaluate(&context->env, reference, test, mask, plane, metrics);
}

resmap_status resmap_evaluate_file(resmap_context *context, const char *reference, const char *test,
                                   const char *mask, resmap_plane plane, resmap_metrics **metrics)
{
    const char *const names[3] = {reference, test, mask};
    resmap_image *images[3] = {NULL, NULL, NULL};
    resmap_status status = RESMAP_OK;
    for (int i = 0; i < 3; i++)
        if (names[i]) RSM_CHECK(rsm_image_read(&context->env, names[i], &images[i]));
    status = rsm_evaluate(&context->env, images[0], images[1], images[2], plane, metrics);
done:
    for (int i = 0; i < 3; i++) resmap_image_free(images[i]);
    return status;
}

resmap_status resmap_metrics_json(resmap_context *context, const resmap_metrics *metrics, char **text)
{
    return rsm_metrics_json(&context->env, metrics, text);
}

/* ---- Synthesis ---- */

resmap_status resmap_synth(resmap_context *context, const resmap_image *clean,
                           const resmap_synth_options *options, resmap_image **corrupted, char **record)
{
    rsm_device *device = NULL;

    RSM_TRY(single_device(context, "synthesis", &device));
    return rsm_synth(&context->env, device, clean, options, NULL, 0, NULL, corrupted, record);
}

resmap_status resmap_synth_repeat(resmap_context *context, const resmap_image *clean, const char *record,
                                  resmap_image **corrupted)
{
    rsm_device *device = NULL;

    RSM_TRY(single_device(context, "synthesis", &device));
    return rsm_synth(&context->env, device, clean, NULL, record, strlen(record), "record", corrupted,
                     NULL);
}

resmap_status resmap_synth_file(resmap_context *context, const resmap_synth_files *files,
                                const resmap_synth_options *options)
{
    rsm_device *device = NULL;

    RSM_TRY(single_device(context, "synthesis", &device));
    return rsm_synth_file(&context->env, device, files, options);
}
