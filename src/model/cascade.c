#include "model/cascade.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/field.h"
#include "model/view.h"

/* Most host memory in which slices' encodings wait for the volume's decision; beyond it slices are encoded again. */
static const uint64_t HOST_CAP = (uint64_t)2 << 30;

enum { DEFAULT_STEPS = 3 };

/* Where encodings wait, in order of preference. */
typedef enum place { ON_DEVICE, ON_HOST, NOWHERE } place;

typedef struct cascade {
    rsm_env *env;
    rsm_network *net;
    const rsm_config *config;
    const resmap_options *options;
    rsm_slicing slicing;
    const size_t *shape;
    const float *mask;           /* of one volume, or NULL */
    const char *input_name;
    int steps, forced_count, forced[RESMAP_MAX_STEPS];
    int prompt_class;            /* of the prompt set last by centroid, -1: none */

    rsm_view *full, *shrunken;   /* shrunken: NULL unless the model asks for it */
    size_t shrunken_pixels, shrunken_height, shrunken_width;
    float *slice, *slice_mask, *small, *small_result, *result, *pooled, *prompt;

    /* One volume. */
    float *volume;               /* the frame being restored, in place */
    rsm_scale scale;
    size_t *foreground;          /* voxels above the mean, for each slice */
    double *probabilities;       /* slices x classes, of this step */
    rsm_encoding *encodings;     /* slices x 2: full, shrunken */
    place worst_place;
    uint64_t device_bytes, host_bytes;
} cascade;

resmap_status rsm_cascade_order(rsm_env *env, const rsm_config *config, const char *order, int classes[RESMAP_MAX_STEPS],
                                int *count)
{
    *count = 0;
    if (config->arch == RSM_ARCH_RESTORMER)
        return rsm_fail(env, RESMAP_BAD_ARGUMENT, "order: a restormer model has no classes");
    for (const char *at = order;; at++) {
        size_t length = strcspn(at, ",");
        char name[64] = "";
        int index = -1;
        if (length < sizeof name) {
            memcpy(name, at, length);
            index = rsm_config_class(config, name);
        }
        if (index < 0) return rsm_fail(env, RESMAP_BAD_ARGUMENT, "order: no class '%.*s' in this model", (int)length, at);
        if (index == config->clean) return rsm_fail(env, RESMAP_BAD_ARGUMENT, "order: 'clean' is nothing to restore");
        if (*count == RESMAP_MAX_STEPS)
            return rsm_fail(env, RESMAP_BAD_ARGUMENT, "order: more than %d steps", RESMAP_MAX_STEPS);
        classes[(*count)++] = index;
        at += length;
        if (*at == '\0') return RESMAP_OK;
    }
}

/* ---- Slices in network units -------------------------------------------------------------------------------- */

static size_t slice_pixels(const cascade *c)
{
    return c->slicing.height * c->slicing.width;
}

/* The slice as the network sees it: scaled, excluded voxels as lo. */
static void load_slice(cascade *c, size_t s)
{
    size_t count = slice_pixels(c);
    double lo = c->scale.lo, width = c->scale.hi - c->scale.lo;

    rsm_slice_get(&c->slicing, c->shape, c->volume, s, c->slice);
    if (c->mask != NULL) rsm_slice_get(&c->slicing, c->shape, c->mask, s, c->slice_mask);
    for (size_t i = 0; i < count; i++) {
        int inside = c->mask == NULL || c->slice_mask[i] > 0.5f;
        c->slice[i] = inside ? (float)(((double)c->slice[i] - lo) / width) : 0;
    }
}

/* Puts a restored slice (network units) back into the volume; excluded voxels stay. load_slice must have run for s. */
static resmap_status store_slice(cascade *c, size_t s, float *restored)
{
    size_t count = slice_pixels(c);
    double lo = c->scale.lo, width = c->scale.hi - c->scale.lo;

    rsm_slice_get(&c->slicing, c->shape, c->volume, s, c->slice);
    for (size_t i = 0; i < count; i++) {
        if (c->mask != NULL && !(c->slice_mask[i] > 0.5f)) {
            restored[i] = c->slice[i];
            continue;
        }
        restored[i] = (float)((double)restored[i] * width + lo);
        if (!isfinite(restored[i]))
            return rsm_fail(c->env, RESMAP_DEVICE_FAILED, "%s: slice %zu comes out of the network with values that are not finite",
                            c->input_name, s);
    }
    rsm_slice_put(&c->slicing, c->shape, c->volume, s, restored);
    return RESMAP_OK;
}

/* The foreground's threshold in network units. */
static double threshold(const cascade *c)
{
    return (c->scale.mean - c->scale.lo) / (c->scale.hi - c->scale.lo);
}

/* ---- Encoding, classifying, decoding a slice ---------------------------------------------------------------- */

static int uses_shrunken(const cascade *c, int class_index)
{
    return class_index >= 0 && c->config->class_pixels[class_index] > 0;
}

/* Encodes the loaded slice in the views that classifying needs, and fills in its probabilities. */
static resmap_status classify_slice(cascade *c, double *probabilities)
{
    size_t count = rsm_network_pooled_count(c->net), classes = c->config->class_count;
    double logits[RESMAP_MAX_CLASSES], most, sum = 0;

    if (c->config->classifier_views == 2) {
        rsm_shrink(c->slice, c->slicing.height, c->slicing.width, c->small, c->shrunken_height, c->shrunken_width);
        RSM_TRY(rsm_view_encode(c->shrunken, c->small, c->pooled + count));
    }
    RSM_TRY(rsm_view_encode(c->full, c->slice, c->pooled));
    rsm_network_classify(c->net, c->pooled, logits);
    most = logits[0];
    for (size_t k = 1; k < classes; k++) most = fmax(most, logits[k]);
    for (size_t k = 0; k < classes; k++) sum += probabilities[k] = exp(logits[k] - most);
    for (size_t k = 0; k < classes; k++) probabilities[k] /= sum;
    if (!isfinite(sum)) return rsm_fail(c->env, RESMAP_DEVICE_FAILED, "classifier: probabilities are not finite");
    return RESMAP_OK;
}

static int argmax(const double *values, size_t count)
{
    size_t best = 0;

    for (size_t i = 1; i < count; i++)
        if (values[i] > values[best]) best = i;
    return (int)best;
}

/* Sets the prompt of a class. A drawn prompt depends on the seed, the frame, the step and (deciding by slice) the slice. */
static resmap_status set_prompt(cascade *c, int class_index, size_t frame, int step, size_t slice)
{
    uint64_t draw = ((uint64_t)frame * RESMAP_MAX_STEPS + (uint64_t)step) * (c->slicing.slices + 1) + slice;

    if (class_index < 0) return RESMAP_OK;
    if (!c->options->prompt_sample && c->prompt_class == class_index) return RESMAP_OK;
    rsm_model_prompt(rsm_network_model(c->net), class_index, c->options->prompt_sample, c->options->prompt_seed, draw, c->prompt);
    RSM_TRY(rsm_network_set_prompt(c->net, c->prompt));
    c->prompt_class = class_index;
    return RESMAP_OK;
}

/* Restores the loaded slice as class_index says, into c->result. kept: its two encodings, or NULL; `encoded`: the full view
 * (shrunken view) holds its encoding already. */
static resmap_status restore_slice(cascade *c, int class_index, const rsm_encoding *kept, int encoded)
{
    int small = uses_shrunken(c, class_index);
    rsm_view *view = small ? c->shrunken : c->full;
    size_t height = c->slicing.height, width = c->slicing.width;
    const rsm_encoding *encoding = kept == NULL ? NULL : &kept[small];

    if (small) {
        rsm_shrink(c->slice, height, width, c->small, c->shrunken_height, c->shrunken_width);
        encoded = encoded && c->config->classifier_views == 2;
    }
    if (encoding != NULL && (encoding->device != NULL || encoding->host != NULL)) RSM_TRY(rsm_view_load(view, encoding));
    else if (!encoded) RSM_TRY(rsm_view_encode(view, small ? c->small : c->slice, NULL));
    if (!small) return rsm_view_decode(view, c->result);
    RSM_TRY(rsm_view_decode(view, c->small_result));
    memcpy(c->result, c->slice, slice_pixels(c) * sizeof *c->result);
    return rsm_apply_field(c->env, c->result, height, width, c->small, c->small_result, c->shrunken_height, c->shrunken_width,
                           threshold(c));
}

/* ---- Encodings that wait for the volume's decision ---------------------------------------------------------- */

static void drop_encodings(cascade *c)
{
    for (size_t i = 0; c->encodings != NULL && i < 2 * c->slicing.slices; i++) rsm_encoding_clear(&c->encodings[i]);
    c->device_bytes = c->host_bytes = 0;
}

/* Device memory for waiting encodings: half of what is left under the limit; a CPU device's memory is the host's. */
static uint64_t device_cap(const cascade *c)
{
    rsm_device *device = rsm_network_device(c->net);
    uint64_t limit = rsm_device_limit(device), used = rsm_device_bytes(device) - c->device_bytes;
    uint64_t cap = limit > used ? (limit - used) / 2 : 0;

    return rsm_device_is_cpu(device) && cap > HOST_CAP ? HOST_CAP : cap;
}

static resmap_status keep_encoding(cascade *c, rsm_view *view, rsm_encoding *encoding)
{
    uint64_t bytes = rsm_view_encoding_bytes(view);
    place where = bytes == 0 ? NOWHERE
                  : c->device_bytes + bytes <= device_cap(c) ? ON_DEVICE
                  : c->host_bytes + bytes <= HOST_CAP ? ON_HOST : NOWHERE;
    resmap_status status = RESMAP_OK;

    if (where == ON_DEVICE) {
        status = rsm_view_save(view, 0, encoding);
        if (status == RESMAP_OK) c->device_bytes += bytes;
        else if (status == RESMAP_NO_DEVICE_MEMORY) where = ON_HOST;
    }
    if (where == ON_HOST) {
        status = rsm_view_save(view, 1, encoding);
        if (status == RESMAP_OK) c->host_bytes += bytes;
        else if (status == RESMAP_NO_MEMORY) {
            where = NOWHERE;
            status = RESMAP_OK;
        }
    }
    if (where > c->worst_place) c->worst_place = where;
    return status;
}

/* ---- A volume ----------------------------------------------------------------------------------------------- */

static resmap_status measure(cascade *c, int *constant)
{
    size_t count = c->shape[0] * c->shape[1] * c->shape[2], used = 0;

    RSM_TRY(rsm_scale_measure(c->env, c->input_name, c->volume, c->mask, count, &c->scale, constant));
    if (c->options->no_scale) {
        c->scale.lo = 0;
        c->scale.hi = 1;
    }
    for (size_t s = 0; s < c->slicing.slices; s++) {
        size_t above = 0;
        rsm_slice_get(&c->slicing, c->shape, c->volume, s, c->slice);
        if (c->mask != NULL) rsm_slice_get(&c->slicing, c->shape, c->mask, s, c->slice_mask);
        for (size_t i = 0; i < slice_pixels(c); i++)
            above += (c->mask == NULL || c->slice_mask[i] > 0.5f) && (double)c->slice[i] > c->scale.mean;
        c->foreground[s] = above;
        used += above;
    }
    return used > 0 ? RESMAP_OK : rsm_fail(c->env, RESMAP_INTERNAL, "%s: no foreground", c->input_name);
}

/* The volume's probabilities: the slices' mean, weighted by their foreground voxels. */
static void volume_probabilities(const cascade *c, double *mean)
{
    size_t classes = c->config->class_count;
    double total = 0;

    for (size_t k = 0; k < classes; k++) mean[k] = 0;
    for (size_t s = 0; s < c->slicing.slices; s++) {
        double weight = (double)c->foreground[s];
        for (size_t k = 0; k < classes; k++) mean[k] += weight * c->probabilities[s * classes + k];
        total += weight;
    }
    for (size_t k = 0; k < classes; k++) mean[k] /= total;
}

static resmap_status progress(cascade *c, const char *what, int step, size_t slice)
{
    char text[64];

    snprintf(text, sizeof text, "step %d: %s", step + 1, what);
    return rsm_progress(c->env, text, slice, c->slicing.slices);
}

static resmap_status classify_volume(cascade *c, int step, int keep)
{
    for (size_t s = 0; s < c->slicing.slices; s++) {
        RSM_TRY(progress(c, "classify", step, s));
        load_slice(c, s);
        RSM_TRY(classify_slice(c, c->probabilities + s * c->config->class_count));
        if (!keep) continue;
        RSM_TRY(keep_encoding(c, c->full, &c->encodings[2 * s]));
        if (c->config->classifier_views == 2) RSM_TRY(keep_encoding(c, c->shrunken, &c->encodings[2 * s + 1]));
    }
    return RESMAP_OK;
}

static void note_restored(resmap_slice_report *slice, int class_index)
{
    if (slice->step_count < RESMAP_MAX_STEPS) slice->steps[slice->step_count++] = class_index;
}

static resmap_status restore_volume(cascade *c, int class_index, int step, resmap_volume_report *report)
{
    RSM_TRY(set_prompt(c, class_index, report->frame, step, 0));
    for (size_t s = 0; s < c->slicing.slices; s++) {
        RSM_TRY(progress(c, "restore", step, s));
        load_slice(c, s);
        RSM_TRY(restore_slice(c, class_index, &c->encodings[2 * s], 0));
        RSM_TRY(store_slice(c, s, c->result));
        rsm_encoding_clear(&c->encodings[2 * s]);
        rsm_encoding_clear(&c->encodings[2 * s + 1]);
        note_restored(&report->slices[s], class_index);
    }
    drop_encodings(c);
    return RESMAP_OK;
}

/* Writes down step `report->step_count`. probabilities: NULL under a forced order. */
static resmap_step *note_step(resmap_volume_report *report, int class_index, const double *probabilities, size_t classes, int restored)
{
    resmap_step *step = &report->steps[report->step_count++];

    step->class_index = class_index;
    step->restored = restored;
    step->has_probabilities = probabilities != NULL;
    if (probabilities != NULL) memcpy(step->probabilities, probabilities, classes * sizeof *probabilities);
    return step;
}

/* One decision a step for the whole volume, or none under a forced order. */
static resmap_status cascade_by_volume(cascade *c, resmap_volume_report *report)
{
    for (int step = 0; step < c->steps; step++) {
        double mean[RESMAP_MAX_CLASSES];
        int class_index = -1, forced = c->forced_count > 0 || c->config->class_count == 0;
        if (step > 0) RSM_TRY(measure(c, NULL));
        if (forced) {
            if (c->forced_count > 0) class_index = c->forced[step];
        } else {
            RSM_TRY(classify_volume(c, step, 1));
            volume_probabilities(c, mean);
            class_index = argmax(mean, c->config->class_count);
        }
        note_step(report, class_index, forced ? NULL : mean, c->config->class_count, class_index < 0 || class_index != c->config->clean);
        if (!forced && class_index == c->config->clean) {
            drop_encodings(c);
            report->stopped = "clean";
            return RESMAP_OK;
        }
        RSM_TRY(restore_volume(c, class_index, step, report));
    }
    return RESMAP_OK;
}

/* One decision a step for every slice (the paper's way); encodings are decoded where they are. */
static resmap_status cascade_by_slice(cascade *c, resmap_volume_report *report)
{
    size_t classes = c->config->class_count, running = c->slicing.slices;
    unsigned char *stopped = calloc(running, 1);
    resmap_status status = RESMAP_OK;

    if (stopped == NULL) return rsm_no_memory(c->env, running);
    for (int step = 0; step < c->steps && running > 0; step++) {
        double mean[RESMAP_MAX_CLASSES] = {0}, votes[RESMAP_MAX_CLASSES] = {0};
        size_t classified = 0;
        int majority;
        if (step > 0) RSM_CHECK(measure(c, NULL));
        for (size_t s = 0; s < c->slicing.slices; s++) {
            double *p = c->probabilities + s * classes;
            int class_index;
            if (stopped[s]) continue;
            RSM_CHECK(progress(c, "restore", step, s));
            load_slice(c, s);
            RSM_CHECK(classify_slice(c, p));
            class_index = argmax(p, classes);
            classified++;
            votes[class_index]++;
            for (size_t k = 0; k < classes; k++) mean[k] += p[k];
            if (class_index == c->config->clean) {
                stopped[s] = 1;
                running--;
                continue;
            }
            RSM_CHECK(set_prompt(c, class_index, report->frame, step, s));
            RSM_CHECK(restore_slice(c, class_index, NULL, 1));
            RSM_CHECK(store_slice(c, s, c->result));
            note_restored(&report->slices[s], class_index);
        }
        for (size_t k = 0; k < classes; k++) mean[k] /= (double)classified;
        majority = argmax(votes, classes);
        note_step(report, majority, mean, classes, majority != c->config->clean);
    }
    if (running == 0) report->stopped = "clean";
done:
    free(stopped);
    return status;
}

static resmap_status run_volume(cascade *c, int classify_only, resmap_volume_report *report)
{
    size_t classes = c->config->class_count;

    report->slices = calloc(c->slicing.slices, sizeof *report->slices);
    if (report->slices == NULL) return rsm_no_memory(c->env, c->slicing.slices * sizeof *report->slices);
    report->slice_count = c->slicing.slices;
    for (size_t s = 0; s < c->slicing.slices; s++) {
        report->slices[s].index = s;
        report->slices[s].class_index = -1;
    }
    if (classify_only) {
        double mean[RESMAP_MAX_CLASSES];
        RSM_TRY(classify_volume(c, 0, 0));
        volume_probabilities(c, mean);
        note_step(report, argmax(mean, classes), mean, classes, 0);
        for (size_t s = 0; s < c->slicing.slices; s++) {
            resmap_slice_report *slice = &report->slices[s];
            memcpy(slice->probabilities, c->probabilities + s * classes, classes * sizeof(double));
            slice->class_index = argmax(slice->probabilities, classes);
        }
        return RESMAP_OK;
    }
    report->stopped = c->forced_count > 0 || classes == 0 ? "forced" : "max-steps";
    if (c->options->decide_by_slice && c->forced_count == 0 && classes > 0) return cascade_by_slice(c, report);
    return cascade_by_volume(c, report);
}

/* ---- Setting up --------------------------------------------------------------------------------------------- */

static resmap_status allocate(cascade *c)
{
    size_t pixels = slice_pixels(c), slices = c->slicing.slices, classes = c->config->class_count;
    size_t small = c->shrunken_height * c->shrunken_width;

    c->slice = malloc(rsm_bytes(pixels, sizeof(float)));
    c->slice_mask = malloc(rsm_bytes(pixels, sizeof(float)));
    c->result = malloc(rsm_bytes(pixels, sizeof(float)));
    c->small = malloc(rsm_bytes(small + 1, sizeof(float)));
    c->small_result = malloc(rsm_bytes(small + 1, sizeof(float)));
    c->pooled = malloc(rsm_bytes(2 * rsm_network_pooled_count(c->net), sizeof(float)));
    c->prompt = malloc(rsm_bytes(c->config->text_dim + 1, sizeof(float)));
    c->foreground = calloc(slices, sizeof *c->foreground);
    c->probabilities = calloc(slices * (classes + 1), sizeof *c->probabilities);
    c->encodings = calloc(2 * slices, sizeof *c->encodings);
    if (c->slice == NULL || c->slice_mask == NULL || c->result == NULL || c->small == NULL || c->small_result == NULL ||
        c->pooled == NULL || c->prompt == NULL || c->foreground == NULL || c->probabilities == NULL || c->encodings == NULL)
        return rsm_no_memory(c->env, pixels * sizeof(float));
    return RESMAP_OK;
}

static void clear(cascade *c)
{
    drop_encodings(c);
    rsm_view_free(c->full);
    rsm_view_free(c->shrunken);
    free(c->slice);
    free(c->slice_mask);
    free(c->result);
    free(c->small);
    free(c->small_result);
    free(c->pooled);
    free(c->prompt);
    free(c->foreground);
    free(c->probabilities);
    free(c->encodings);
}

static resmap_status choose_steps(cascade *c)
{
    int steps = c->options->steps;

    if (steps < -1 || steps > RESMAP_MAX_STEPS)
        return rsm_fail(c->env, RESMAP_BAD_ARGUMENT, "steps: %d is not within 0 and %d", steps, RESMAP_MAX_STEPS);
    if (c->options->order != NULL)
        RSM_TRY(rsm_cascade_order(c->env, c->config, c->options->order, c->forced, &c->forced_count));
    c->steps = steps >= 0 ? steps : c->forced_count > 0 ? c->forced_count : DEFAULT_STEPS;
    if (c->forced_count > 0 && c->forced_count < c->steps) c->steps = c->forced_count;
    if (c->config->class_count == 0 && c->steps > 1) c->steps = 1;   /* a restormer restores once */
    return RESMAP_OK;
}

/* Voxels that are not finite are the caller's business only where the mask excludes them. */
static resmap_status check_finite(const cascade *c, const float *volume)
{
    for (size_t z = 0, i = 0; z < c->shape[2]; z++)
        for (size_t y = 0; y < c->shape[1]; y++)
            for (size_t x = 0; x < c->shape[0]; x++, i++)
                if (!isfinite(volume[i]) && (c->mask == NULL || c->mask[i] > 0.5f))
                    return rsm_fail(c->env, RESMAP_BAD_FILE, "%s: voxel (%zu, %zu, %zu) is not a finite number (a mask may exclude it)",
                                    c->input_name, x, y, z);
    return RESMAP_OK;
}

static resmap_status make_views(cascade *c)
{
    size_t height = c->slicing.height, width = c->slicing.width;

    for (size_t k = 0; k < c->config->class_count && c->shrunken_pixels == 0; k++) c->shrunken_pixels = c->config->class_pixels[k];
    if (c->shrunken_pixels > 0) {
        rsm_shrunken_size(height, width, c->shrunken_pixels, &c->shrunken_height, &c->shrunken_width);
        RSM_TRY(rsm_view_create(c->net, c->shrunken_height, c->shrunken_width, &c->shrunken));
    }
    return rsm_view_create(c->net, height, width, &c->full);
}

/* Says what the failed allocation cannot know. */
static resmap_status explain_memory(const cascade *c, resmap_status status)
{
    char why[sizeof c->env->error];

    if (status != RESMAP_NO_DEVICE_MEMORY) return status;
    memcpy(why, c->env->error, sizeof why);
    return rsm_fail(c->env, status, "%s: slices of %zu x %zu do not fit into device memory, not even in the smallest tiles (%s)",
                    c->input_name, c->slicing.width, c->slicing.height, why);
}

static resmap_status describe(const cascade *c, resmap_report *report)
{
    const resmap_options *o = c->options;

    report->plane = c->slicing.plane;
    report->decide = o->decide_by_slice ? "slice" : "volume";
    report->prompt = o->prompt_sample ? rsm_format("sample:%" PRIu64, o->prompt_seed) : rsm_strdup("centroid");
    report->tiled = rsm_view_tiled(c->full);
    report->band_rows = rsm_view_band_rows(c->full);
    for (size_t k = 0; k < c->config->class_count; k++) {
        report->classes[k] = rsm_strdup(c->config->classes[k]);
        if (report->classes[k] == NULL) return rsm_no_memory(c->env, sizeof *report);
        report->class_count++;
    }
    return report->prompt == NULL ? rsm_no_memory(c->env, sizeof *report) : RESMAP_OK;
}

static resmap_status run_frames(cascade *c, const struct resmap_image *input, int classify_only, struct resmap_image *output,
                                resmap_report *report)
{
    size_t voxels = c->shape[0] * c->shape[1] * c->shape[2], frames = c->shape[3], constant_frames = 0;
    float *copy = NULL;
    resmap_status status = RESMAP_OK;

    report->volumes = calloc(frames, sizeof *report->volumes);
    if (report->volumes == NULL) return rsm_no_memory(c->env, frames * sizeof *report->volumes);
    report->volume_count = frames;
    if (classify_only) {         /* there is no output to work in */
        copy = malloc(rsm_bytes(voxels, sizeof *copy));
        if (copy == NULL) return rsm_no_memory(c->env, voxels * sizeof *copy);
    }
    for (size_t f = 0; f < frames; f++) {
        resmap_volume_report *volume = &report->volumes[f];
        int constant = 0;
        volume->frame = f;
        c->volume = classify_only ? copy : output->data + f * voxels;
        memcpy(c->volume, input->data + f * voxels, voxels * sizeof *c->volume);
        RSM_CHECK(check_finite(c, c->volume));
        status = measure(c, &constant);
        if (status != RESMAP_OK && constant && frames > 1) {
            volume->constant = 1;
            volume->stopped = "clean";
            constant_frames++;
            if (constant_frames == frames) goto done;
            status = RESMAP_OK;
            continue;
        }
        RSM_CHECK(status);
        RSM_CHECK(run_volume(c, classify_only, volume));
    }
    for (size_t f = 0; f < frames; f++)
        if (report->volumes[f].constant)
            rsm_log(c->env, RESMAP_LOG_WARNING, "%s: frame %zu is constant and stays as it is", c->input_name, f);
done:
    free(copy);
    return status;
}

resmap_status rsm_cascade_run(rsm_network *net, const struct resmap_image *input, const struct resmap_image *mask,
                              const resmap_options *options, int classify_only, struct resmap_image *output,
                              resmap_report *report)
{
    static const char *const places[] = {"device", "host", "recomputed"};
    cascade c = {0};
    resmap_status status;

    c.env = rsm_device_env(rsm_network_device(net));
    c.net = net;
    c.config = &rsm_network_model(net)->config;
    c.options = options;
    c.shape = input->shape;
    c.input_name = input->path != NULL ? input->path : "image";
    c.prompt_class = -1;
    RSM_CHECK(choose_steps(&c));
    if (classify_only && c.config->class_count == 0) {
        status = rsm_fail(c.env, RESMAP_BAD_ARGUMENT, "%s: a restormer model does not classify", rsm_network_model(net)->name);
        goto done;
    }
    if (mask != NULL) {
        if (!rsm_image_same_grid(input, mask) || mask->shape[3] != 1) {
            status = rsm_fail(c.env, RESMAP_BAD_FILE, "%s: not on the grid of %s", mask->path != NULL ? mask->path : "mask", c.input_name);
            goto done;
        }
        c.mask = mask->data;
    }
    RSM_CHECK(rsm_slicing_choose(c.env, input, options->plane, &c.slicing));
    RSM_CHECK(explain_memory(&c, make_views(&c)));
    RSM_CHECK(allocate(&c));
    RSM_CHECK(describe(&c, report));
    if (report->tiled) {
        size_t height, width;
        rsm_view_tile(c.full, &height, &width);
        rsm_log(c.env, RESMAP_LOG_WARNING, "%s: device memory is too small for whole slices: independent tiles of %zu x %zu are used, "
                "which changes the result", c.input_name, width, height);
    }
    status = run_frames(&c, input, classify_only, output, report);
    if (!classify_only && c.steps > 0)
        report->encodings = options->decide_by_slice || c.forced_count > 0 ? "reused" : places[c.worst_place];
done:
    clear(&c);
    return status;
}
