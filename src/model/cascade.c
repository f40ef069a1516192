#include "model/cascade.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/share.h"
#include "model/field.h"
#include "model/view.h"

/* Most host memory in which slices' encodings wait for the volume's decision; beyond it slices are encoded again. */
static const uint64_t HOST_CAP = (uint64_t)2 << 30;

/* Most shrunken views that go through the network at once: one of them keeps few devices busy. At least so many batches
 * are made, for as many workers; how many workers there are decides nothing, as their number must not show in the output. */
enum { MOST_TOGETHER = 16, LEAST_BATCHES = RSM_MOST_WORKERS };

enum { DEFAULT_STEPS = 3, NOBODY = -1 };

/* How far below zero, as a share of bright tissue, the median of what is darker than the mean lies in no magnitude image: in noisy ones
 * it is air's, or above. */
static const double NEGATIVE_AIR = 0.05;

/* Where encodings wait, in order of preference. */
typedef enum place { ON_DEVICE, ON_HOST, NOWHERE } place;

/* A device, or a further worker on one, with what it needs to work on a slice. One thread at a time
 * uses it. */
typedef struct worker {
    struct cascade *cascade;
    size_t first;                /* the number of its device's first worker */
    rsm_env *env;                /* the device's */
    rsm_network *net;
    rsm_view *full, *shrunken;   /* shrunken: NULL unless the model asks for it */
    float *slice, *slice_mask, *result, *pooled, *prompt;
    float *small, *small_result; /* of a batch */
    size_t restored;             /* slices, in batches */
    int prompt_class, prompt_sample;     /* of the prompt set last; class -1: none */
    uint64_t prompt_draw;
    place worst_place;
    uint64_t device_bytes, host_bytes;   /* in encodings kept */
    double seconds;              /* in the network, with its transfers and copies */
} worker;

typedef struct cascade {
    rsm_env *env;
    const struct resmap_model *model;
    const rsm_config *config;
    const resmap_options *options;
    rsm_slicing slicing;
    const size_t *shape;
    const float *mask;           /* of one volume, or NULL */
    const char *input_name;
    int steps, forced_count, forced[RESMAP_MAX_STEPS];
    size_t shrunken_pixels, shrunken_height, shrunken_width;
    size_t worker_count;
    worker *workers;
    rsm_sharer *sharers;         /* the same, as share.c sees them at work on slices; */
    rsm_sharer *batch_sharers;   /* and on batches, which take another time */

    /* One volume. Workers write what belongs to the slice they have, and nothing else. */
    float *volume;               /* the frame being restored, in place */
    rsm_scale scale;
    size_t *foreground;          /* voxels above the mean, for each slice */
    double *probabilities;       /* slices x classes, of this step */
    rsm_encoding *encodings;     /* of the full views */
    int *owners;                 /* the first worker on the device that has them; NOBODY: there are none */
    unsigned char *stopped;      /* deciding by slice: slices found clean */
    size_t most_together;        /* shrunken views that all devices have room for at once */
    size_t *listed, listed_count, batches; /* slices of this round's batches, in order; how many batches */
    float *shrunken_pooled;      /* slices x pooled: of the shrunken views */
    int *shrunken_classes;       /* what this step restores of slices by their shrunken views; -1: of others */
    double *ratios;              /* slices x shrunken pixels: this pass's fields, 0 off the foreground; or NULL */
    int field_class;             /* the class that the volume's field tells from "clean", -1: none; */
    double evidence;             /* and what is added to the logarithm of its odds */

    /* One step. */
    size_t frame;
    int step, class_index, keep; /* class_index: to restore; keep: encodings wait for the decision */
    int passes;                  /* over the slices that changed them */
    int by_slice;                /* a decision for each, and a draw of prompts */
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

static size_t shrunken_count(const cascade *c)
{
    return c->shrunken_height * c->shrunken_width;
}

/* The slice as the network sees it: scaled, excluded voxels as lo. */
static void load_slice(worker *w, size_t s)
{
    const cascade *c = w->cascade;
    size_t count = slice_pixels(c);
    double lo = c->scale.lo, width = c->scale.hi - c->scale.lo;

    rsm_slice_get(&c->slicing, c->shape, c->volume, s, w->slice);
    if (c->mask != NULL) rsm_slice_get(&c->slicing, c->shape, c->mask, s, w->slice_mask);
    for (size_t i = 0; i < count; i++) {
        int inside = c->mask == NULL || w->slice_mask[i] > 0.5f;
        w->slice[i] = inside ? (float)(((double)w->slice[i] - lo) / width) : 0;
    }
}

/* Where values have become infinite. */
static const char *advice(const worker *w)
{
    return rsm_network_storage(w->net) == RSM_FP16 ? "; fp16 may be too narrow for the model, use fp32" : "";
}

static resmap_status not_finite(const worker *w, size_t s)
{
    return rsm_fail(w->env, RESMAP_DEVICE_FAILED,
                    "%s: slice %zu comes out of the network with values that are not finite%s",
                    w->cascade->input_name, s, advice(w));
}

/* Puts a restored slice (network units) back into the volume; excluded voxels stay. load_slice must have run for s. */
static resmap_status store_slice(worker *w, size_t s)
{
    const cascade *c = w->cascade;
    size_t count = slice_pixels(c);
    double lo = c->scale.lo, width = c->scale.hi - c->scale.lo;
    float *restored = w->result;

    rsm_slice_get(&c->slicing, c->shape, c->volume, s, w->slice);
    for (size_t i = 0; i < count; i++) {
        if (c->mask != NULL && !(w->slice_mask[i] > 0.5f)) {
            restored[i] = w->slice[i];
            continue;
        }
        restored[i] = (float)((double)restored[i] * width + lo);
        if (!isfinite(restored[i])) return not_finite(w, s);
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

static resmap_status encode(worker *w, rsm_view *view, const float *slices, size_t count, float *pooled)
{
    double start = rsm_seconds();
    resmap_status status = rsm_view_encode(view, slices, count, pooled);

    w->seconds += rsm_seconds() - start;
    return status;
}

static resmap_status load(worker *w, rsm_view *view, const rsm_encoding *encoding)
{
    double start = rsm_seconds();
    resmap_status status = rsm_view_load(view, encoding);

    w->seconds += rsm_seconds() - start;
    return status;
}

static resmap_status decode(worker *w, rsm_view *view, float *output)
{
    double start = rsm_seconds();
    resmap_status status = rsm_view_decode(view, output);

    w->seconds += rsm_seconds() - start;
    return status;
}

/* What the volume's field says, which no slice alone shows: it moves its class's odds against "clean". Their joint probability stays,
 * so that other artifacts are recognised as before. */
static void hear_field(const cascade *c, double *probabilities)
{
    double *field = &probabilities[c->field_class], *clean = &probabilities[c->config->clean], both = *field + *clean;

    if (!(both > 0)) return;
    *field = both / (1 + exp(-(log(*field / *clean) + c->evidence)));
    *clean = both - *field;
}

/* Encodes loaded slice s, whose shrunken view has been (encode_shrunken), and fills in its probabilities. */
static resmap_status classify_slice(worker *w, size_t s)
{
    const cascade *c = w->cascade;
    size_t count = rsm_network_pooled_count(w->net), classes = c->config->class_count;
    double logits[RESMAP_MAX_CLASSES], most, sum = 0, *probabilities = c->probabilities + s * classes;

    if (c->config->classifier_views == 2) memcpy(w->pooled + count, c->shrunken_pooled + s * count, count * sizeof *w->pooled);
    RSM_TRY(encode(w, w->full, w->slice, 1, w->pooled));
    rsm_network_classify(w->net, w->pooled, logits);
    most = logits[0];
    for (size_t k = 1; k < classes; k++) most = fmax(most, logits[k]);
    for (size_t k = 0; k < classes; k++) sum += probabilities[k] = exp(logits[k] - most);
    for (size_t k = 0; k < classes; k++) probabilities[k] /= sum;
    if (!isfinite(sum))
        return rsm_fail(w->env, RESMAP_DEVICE_FAILED, "%s: the probabilities of its classes are not finite%s", w->cascade->input_name,
                        advice(w));
    if (c->field_class >= 0) hear_field(c, probabilities);
    return RESMAP_OK;
}

static int argmax(const double *values, size_t count)
{
    size_t best = 0;

    for (size_t i = 1; i < count; i++)
        if (values[i] > values[best]) best = i;
    return (int)best;
}

/* Sets a prompt of a class: its mean, or the one drawn as number `draw`. */
static resmap_status set_prompt(worker *w, int class_index, int sample, uint64_t draw)
{
    const cascade *c = w->cascade;

    if (class_index < 0) return RESMAP_OK;
    if (w->prompt_class == class_index && w->prompt_sample == sample && (!sample || w->prompt_draw == draw)) return RESMAP_OK;
    rsm_model_prompt(c->model, class_index, sample, c->options->prompt_seed, draw, w->prompt);
    RSM_TRY(rsm_network_set_prompt(w->net, w->prompt));
    w->prompt_class = class_index;
    w->prompt_sample = sample;
    w->prompt_draw = draw;
    return RESMAP_OK;
}

/* That of a step, as the options ask. A drawn one depends on the seed, the frame, the step and (deciding by slice) the slice. */
static resmap_status set_step_prompt(worker *w, int class_index, size_t slice)
{
    const cascade *c = w->cascade;
    uint64_t draw = (uint64_t)c->frame * RESMAP_MAX_STEPS + (uint64_t)c->step;

    return set_prompt(w, class_index, c->options->prompt_sample, draw * (c->slicing.slices + 1) + slice);
}

/* Restores the loaded slice by the prompt that is set, into w->result. kept: its encoding, or NULL; `encoded`: the view holds it
 * already. */
static resmap_status restore_slice(worker *w, const rsm_encoding *kept, int encoded)
{
    if (kept != NULL && (kept->device != NULL || kept->host != NULL)) RSM_TRY(load(w, w->full, kept));
    else if (!encoded) RSM_TRY(encode(w, w->full, w->slice, 1, NULL));
    return decode(w, w->full, w->result);
}

/* ---- Encodings that wait for the volume's decision ---------------------------------------------------------- */

static void drop_encodings(cascade *c)
{
    for (size_t s = 0; c->encodings != NULL && s < c->slicing.slices; s++) {
        rsm_encoding_clear(&c->encodings[s]);
        c->owners[s] = NOBODY;
    }
    for (size_t i = 0; i < c->worker_count; i++) c->workers[i].device_bytes = c->workers[i].host_bytes = 0;
}

/* The host's memory is shared by the workers. */
static uint64_t host_cap(const worker *w)
{
    return HOST_CAP / w->cascade->worker_count;
}

/* Device memory for waiting encodings: half of what is left under the limit and by the device's other
 * workers; some devices' memory is the host's. */
static uint64_t device_cap(const worker *w)
{
    rsm_device *device = rsm_network_device(w->net);
    uint64_t limit = rsm_device_limit(device), used = rsm_device_bytes(device) - w->device_bytes;
    uint64_t cap = limit > used ? (limit - used) / 2 : 0;

    return rsm_device_uses_host_memory(device) && cap > host_cap(w) ? host_cap(w) : cap;
}

/* Keeps what classifying slice s has left in the full view. */
static resmap_status keep_encoding(worker *w, size_t s)
{
    cascade *c = w->cascade;
    uint64_t bytes = rsm_view_encoding_bytes(w->full);
    place where = bytes == 0 ? NOWHERE
                  : w->device_bytes + bytes <= device_cap(w) ? ON_DEVICE
                  : w->host_bytes + bytes <= host_cap(w) ? ON_HOST : NOWHERE;
    double start = rsm_seconds();
    resmap_status status = RESMAP_OK;

    if (where == ON_DEVICE) {
        status = rsm_view_save(w->full, 0, &c->encodings[s]);
        if (status == RESMAP_OK) w->device_bytes += bytes;
        else if (status == RESMAP_NO_DEVICE_MEMORY) where = ON_HOST;
    }
    if (where == ON_HOST) {
        status = rsm_view_save(w->full, 1, &c->encodings[s]);
        if (status == RESMAP_OK) w->host_bytes += bytes;
        else if (status == RESMAP_NO_MEMORY) {
            where = NOWHERE;
            status = RESMAP_OK;
        }
    }
    if (where > w->worst_place) w->worst_place = where;
    w->seconds += rsm_seconds() - start;
    if (status == RESMAP_OK) c->owners[s] = (int)w->first;      /* else the slice may go to another */
    return status;
}

/* ---- A volume ----------------------------------------------------------------------------------------------- */

static resmap_status measure(cascade *c, int *constant)
{
    worker *w = &c->workers[0];  /* its slice is free */
    size_t count = c->shape[0] * c->shape[1] * c->shape[2], used = 0;

    if (c->options->no_scale) {
        RSM_TRY(rsm_scale_mean(c->env, c->input_name, c->volume, c->mask, count, &c->scale.mean, constant));
        c->scale.lo = 0;
        c->scale.hi = 1;
    } else {
        RSM_TRY(rsm_scale_measure(c->env, c->input_name, c->volume, c->mask, count, &c->scale, constant));
    }
    for (size_t s = 0; s < c->slicing.slices; s++) {
        size_t above = 0;
        rsm_slice_get(&c->slicing, c->shape, c->volume, s, w->slice);
        if (c->mask != NULL) rsm_slice_get(&c->slicing, c->shape, c->mask, s, w->slice_mask);
        for (size_t i = 0; i < slice_pixels(c); i++)
            above += (c->mask == NULL || w->slice_mask[i] > 0.5f) && (double)w->slice[i] > c->scale.mean;
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

/* Does `run` on every slice whose rank is not negative. */
static resmap_status each_slice(cascade *c, const char *what, resmap_status (*run)(void *, size_t, size_t),
                                int (*rank)(const void *, size_t, size_t))
{
    char text[64];
    rsm_work work = {text, c->slicing.slices, 1, run, rank, c};

    snprintf(text, sizeof text, "step %d: %s", c->step + 1, what);
    return rsm_share(c->env, &work, c->sharers, c->worker_count);
}

/* Fits one field to what the slices of this pass have noted. */
static resmap_status fit_volume_field(const cascade *c, rsm_volume_field *field)
{
    *field = (rsm_volume_field){.order = c->config->field_order, .slices = c->slicing.slices,
                                .height = c->slicing.height, .width = c->slicing.width,
                                .small_height = c->shrunken_height, .small_width = c->shrunken_width};
    return rsm_volume_field_fit(c->env, field, c->ratios);
}

/* Multiplies the slices of this pass by the field fitted to them. *spread: how much it varies; NULL: nobody asks. */
static resmap_status apply_volume_field(cascade *c, double *spread)
{
    worker *w = &c->workers[0];  /* its slices are free */
    float *slice = w->slice, *mask = c->mask != NULL ? w->slice_mask : NULL;
    size_t count = shrunken_count(c);
    rsm_volume_field field;

    RSM_TRY(fit_volume_field(c, &field));
    if (spread != NULL) *spread = field.spread;
    for (size_t s = 0; s < c->slicing.slices; s++) {
        size_t noted = 0;
        while (noted < count && !(c->ratios[s * count + noted] > 0)) noted++;
        if (noted == count) continue;
        rsm_slice_get(&c->slicing, c->shape, c->volume, s, slice);
        if (mask != NULL) rsm_slice_get(&c->slicing, c->shape, c->mask, s, mask);
        rsm_volume_field_apply(&field, s, c->scale.lo, mask, slice);
        rsm_slice_put(&c->slicing, c->shape, c->volume, s, slice);
    }
    return RESMAP_OK;
}

/* ---- Shrunken views, in batches ----------------------------------------------------------------------------- */

static const char RESTORE_SHRUNKEN[] = "restore shrunken slices";

/* Does `run` on batches of the slices whose rank is not negative. */
static resmap_status each_batch(cascade *c, const char *what, resmap_status (*run)(void *, size_t, size_t),
                                int (*rank)(const void *, size_t, size_t))
{
    char text[64];
    rsm_work work = {text, 0, 0, run, rsm_any_piece, c};
    resmap_status status;

    c->listed_count = 0;
    for (size_t s = 0; s < c->slicing.slices; s++)
        if (rank(c, 0, s) >= 0) c->listed[c->listed_count++] = s;
    if (c->listed_count == 0) return RESMAP_OK;
    c->batches = (c->listed_count + c->most_together - 1) / c->most_together;
    if (c->batches < LEAST_BATCHES) c->batches = LEAST_BATCHES;
    if (c->batches > c->listed_count) c->batches = c->listed_count;
    work.pieces = c->batches;
    work.units = (double)c->listed_count / (double)c->batches;
    snprintf(text, sizeof text, "step %d: %s", c->step + 1, what);
    for (size_t i = 0; i < c->worker_count; i++) c->batch_sharers[i].lost = c->sharers[i].lost;
    status = rsm_share(c->env, &work, c->batch_sharers, c->worker_count);
    for (size_t i = 0; i < c->worker_count; i++) c->sharers[i].lost = c->batch_sharers[i].lost;
    return status;
}

/* The slices of a batch; *count: how many, alike within one for all batches. */
static const size_t *batch_of(const cascade *c, size_t piece, size_t *count)
{
    size_t first = c->listed_count * piece / c->batches;

    *count = c->listed_count * (piece + 1) / c->batches - first;
    return c->listed + first;
}

/* Loads a slice, and its shrunken view as number k of the batch. */
static void load_shrunken(worker *w, size_t s, size_t k)
{
    const cascade *c = w->cascade;

    load_slice(w, s);
    rsm_shrink(w->slice, c->slicing.height, c->slicing.width, w->small + k * shrunken_count(c), c->shrunken_height, c->shrunken_width);
}

/* Does the step multiply the volume by one field, when all its slices are done? */
static int fits_field(const cascade *c)
{
    return c->ratios != NULL;
}

/* What the step found for the volume's field in slice s, number k of the batch; the slice stays as it is. */
static resmap_status note_field(worker *w, size_t s, size_t k)
{
    const cascade *c = w->cascade;
    size_t count = shrunken_count(c);
    const float *before = w->small + k * count, *after = w->small_result + k * count;
    double *ratio = c->ratios + s * count;

    RSM_TRY(rsm_field_ratio(w->env, before, after, c->shrunken_height, c->shrunken_width, threshold(c), ratio));
    for (size_t p = 0; p < count; p++) ratio[p] = (double)before[p] > threshold(c) ? rsm_field_limited(ratio[p]) : 0;
    return RESMAP_OK;
}

/* Decodes a batch that has been encoded, by the prompt that is set. */
static resmap_status decode_batch(worker *w, const size_t *slices, size_t count)
{
    size_t pixels = shrunken_count(w->cascade);

    RSM_TRY(decode(w, w->shrunken, w->small_result));
    for (size_t k = 0; k < count; k++)
        for (size_t p = 0; p < pixels; p++)                      /* clamping a field would hide it */
            if (!isfinite(w->small_result[k * pixels + p])) return not_finite(w, slices[k]);
    return RESMAP_OK;
}

static resmap_status encode_batch(void *data, size_t i, size_t piece)
{
    cascade *c = data;
    worker *w = &c->workers[i];
    size_t count, pooled = rsm_network_pooled_count(w->net);
    const size_t *slices = batch_of(c, piece, &count);
    int seen = c->config->classifier_views == 2;

    for (size_t k = 0; k < count; k++) load_shrunken(w, slices[k], k);
    RSM_TRY(encode(w, w->shrunken, w->small, count, seen ? w->pooled : NULL));
    for (size_t k = 0; seen && k < count; k++)
        memcpy(c->shrunken_pooled + slices[k] * pooled, w->pooled + k * pooled, pooled * sizeof *w->pooled);
    if (c->field_class < 0) return RESMAP_OK;
    RSM_TRY(set_prompt(w, c->field_class, 0, 0));
    RSM_TRY(decode_batch(w, slices, count));
    for (size_t k = 0; k < count; k++) RSM_TRY(note_field(w, slices[k], k));
    return RESMAP_OK;
}

/* What the classifier needs of the shrunken views of every slice whose rank is not negative. */
static resmap_status encode_shrunken(cascade *c, int (*rank)(const void *, size_t, size_t))
{
    rsm_volume_field field;

    if (c->config->classifier_views < 2 && c->field_class < 0) return RESMAP_OK;
    if (c->field_class >= 0) memset(c->ratios, 0, c->slicing.slices * shrunken_count(c) * sizeof *c->ratios);
    RSM_TRY(each_batch(c, "classify shrunken slices", encode_batch, rank));
    if (c->field_class < 0) return RESMAP_OK;
    RSM_TRY(fit_volume_field(c, &field));
    rsm_log(c->env, RESMAP_LOG_INFO, "step %d: the field that a step of %s would take varies by %.4f within slices", c->step + 1,
            c->config->classes[c->field_class], field.within);
    c->evidence = c->config->evidence_weight * log(fmax(field.within, RSM_FIELD_LEAST) / c->config->evidence_spread);
    return RESMAP_OK;
}

/* Multiplies slice s by the field of its own that the step found. */
static resmap_status apply_own_field(worker *w, size_t s, size_t k)
{
    const cascade *c = w->cascade;
    size_t count = shrunken_count(c);

    load_slice(w, s);
    memcpy(w->result, w->slice, slice_pixels(c) * sizeof *w->result);
    RSM_TRY(rsm_apply_field(w->env, w->result, c->slicing.height, c->slicing.width, w->small + k * count, w->small_result + k * count,
                            c->shrunken_height, c->shrunken_width, threshold(c)));
    RSM_TRY(store_slice(w, s));
    c->shrunken_classes[s] = -1;     /* done, should the rest of the batch have to go to another worker */
    return RESMAP_OK;
}

/* Restores slices of one class, one prompt. */
static resmap_status restore_together(worker *w, const size_t *slices, size_t count)
{
    const cascade *c = w->cascade;

    RSM_TRY(set_step_prompt(w, c->shrunken_classes[slices[0]], c->by_slice ? slices[0] : 0));
    for (size_t k = 0; k < count; k++) load_shrunken(w, slices[k], k);
    RSM_TRY(encode(w, w->shrunken, w->small, count, NULL));
    RSM_TRY(decode_batch(w, slices, count));
    for (size_t k = 0; k < count; k++)
        RSM_TRY(fits_field(c) ? note_field(w, slices[k], k) : apply_own_field(w, slices[k], k));
    return RESMAP_OK;
}

static resmap_status restore_batch(void *data, size_t i, size_t piece)
{
    cascade *c = data;
    size_t count, together;
    const size_t *slices = batch_of(c, piece, &count);
    int own_prompts = c->by_slice && c->options->prompt_sample;

    for (size_t k = 0; k < count; k += together) {
        together = 1;
        if (c->shrunken_classes[slices[k]] < 0) continue;
        while (!own_prompts && k + together < count && c->shrunken_classes[slices[k + together]] == c->shrunken_classes[slices[k]])
            together++;
        RSM_TRY(restore_together(&c->workers[i], slices + k, together));
    }
    c->workers[i].restored += count;
    return RESMAP_OK;
}

static int by_shrunken(const void *data, size_t i, size_t s)
{
    const cascade *c = data;

    (void)i;
    return c->shrunken_classes[s] < 0 ? -1 : 0;
}

/* The restorations of the slices that shrunken_classes names. What is left of a strong field, which a network finds only in
 * part, is looked for again. */
static resmap_status restore_shrunken(cascade *c)
{
    double spread;

    if (!fits_field(c)) return each_batch(c, RESTORE_SHRUNKEN, restore_batch, by_shrunken);
    memset(c->ratios, 0, c->slicing.slices * shrunken_count(c) * sizeof *c->ratios);
    RSM_TRY(each_batch(c, RESTORE_SHRUNKEN, restore_batch, by_shrunken));
    if (c->listed_count == 0) return RESMAP_OK;
    RSM_TRY(apply_volume_field(c, &spread));
    for (; spread >= RSM_FIELD_STRONG && c->passes < (int)c->config->field_passes; c->passes++) {
        RSM_TRY(measure(c, NULL));
        RSM_TRY(each_batch(c, RESTORE_SHRUNKEN, restore_batch, by_shrunken));
        RSM_TRY(apply_volume_field(c, NULL));
    }
    return RESMAP_OK;
}

/* ---- The cascade -------------------------------------------------------------------------------------------- */

static resmap_status classify_one(void *data, size_t i, size_t s)
{
    cascade *c = data;
    worker *w = &c->workers[i];

    load_slice(w, s);
    RSM_TRY(classify_slice(w, s));
    return c->keep ? keep_encoding(w, s) : RESMAP_OK;
}

static resmap_status classify_volume(cascade *c, int keep)
{
    c->keep = keep;
    RSM_TRY(encode_shrunken(c, rsm_any_piece));
    return each_slice(c, "classify", classify_one, rsm_any_piece);
}

static void note_restored(resmap_slice_report *slice, int class_index)
{
    if (slice->step_count < RESMAP_MAX_STEPS) slice->steps[slice->step_count++] = class_index;
}

/* Encodings cannot leave their device: a worker takes its device's slices first, and those of others last, to
 * encode them anew. */
static int own_first(const void *data, size_t i, size_t s)
{
    const cascade *c = data;

    return c->owners[s] == (int)c->workers[i].first ? 0 : c->owners[s] == NOBODY ? 1 : 2;
}

static resmap_status restore_one(void *data, size_t i, size_t s)
{
    cascade *c = data;
    worker *w = &c->workers[i];
    rsm_encoding *own = c->owners[s] == (int)w->first ? &c->encodings[s] : NULL;

    RSM_TRY(set_step_prompt(w, c->class_index, 0));
    load_slice(w, s);
    RSM_TRY(restore_slice(w, own, 0));
    RSM_TRY(store_slice(w, s));
    if (own != NULL) rsm_encoding_clear(own);
    return RESMAP_OK;
}

static resmap_status restore_volume(cascade *c, int class_index, resmap_volume_report *report)
{
    c->class_index = class_index;
    c->passes = 1;
    if (uses_shrunken(c, class_index)) {
        drop_encodings(c);
        for (size_t s = 0; s < c->slicing.slices; s++) c->shrunken_classes[s] = class_index;
        RSM_TRY(restore_shrunken(c));
    } else {
        RSM_TRY(each_slice(c, "restore", restore_one, own_first));
        drop_encodings(c);
    }
    for (size_t s = 0; s < c->slicing.slices; s++) note_restored(&report->slices[s], class_index);
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

/* Says so where many slices would not have been left alone: a patient may have moved during some slices only. */
static void tell_other_slices(const cascade *c)
{
    size_t classes = c->config->class_count, votes[RESMAP_MAX_CLASSES] = {0}, looked_at = 0;

    for (size_t s = 0; s < c->slicing.slices; s++) {
        if (c->foreground[s] == 0) continue;
        votes[argmax(c->probabilities + s * classes, classes)]++;
        looked_at++;
    }
    for (size_t k = 0; k < classes; k++)
        if ((int)k != c->config->clean && votes[k] >= 2 && 4 * votes[k] >= looked_at)
            rsm_log(c->env, c->shape[3] > 1 ? RESMAP_LOG_INFO : RESMAP_LOG_WARNING, "%s: %zu of %zu slices look like %s, though the whole is called clean and left; deciding by slice "
                    "would restore them", c->input_name, votes[k], looked_at, c->config->classes[k]);
}

/* One decision a step for the whole volume, or none under a forced order. */
static resmap_status cascade_by_volume(cascade *c, resmap_volume_report *report)
{
    for (c->step = 0; c->step < c->steps; c->step++) {
        double mean[RESMAP_MAX_CLASSES];
        int class_index = -1, forced = c->forced_count > 0 || c->config->class_count == 0;
        if (c->step > 0) RSM_TRY(measure(c, NULL));
        if (forced) {
            if (c->forced_count > 0) class_index = c->forced[c->step];
        } else {
            RSM_TRY(classify_volume(c, 1));
            volume_probabilities(c, mean);
            class_index = argmax(mean, c->config->class_count);
        }
        note_step(report, class_index, forced ? NULL : mean, c->config->class_count,
                  class_index < 0 || class_index != c->config->clean);
        if (!forced && class_index == c->config->clean) {
            drop_encodings(c);
            tell_other_slices(c);
            report->stopped = "clean";
            return RESMAP_OK;
        }
        RSM_TRY(restore_volume(c, class_index, report));
        report->steps[report->step_count - 1].passes = c->passes;
    }
    return RESMAP_OK;
}

static int still_running(const void *data, size_t i, size_t s)
{
    const cascade *c = data;

    (void)i;
    return c->stopped[s] ? -1 : 0;
}

/* Classifies a slice and restores it, where that is not left to its shrunken view; its encoding is decoded where it is. */
static resmap_status step_one(void *data, size_t i, size_t s)
{
    cascade *c = data;
    worker *w = &c->workers[i];
    int class_index;

    load_slice(w, s);
    RSM_TRY(classify_slice(w, s));
    class_index = argmax(c->probabilities + s * c->config->class_count, c->config->class_count);
    if (uses_shrunken(c, class_index)) c->shrunken_classes[s] = class_index;
    if (class_index == c->config->clean || uses_shrunken(c, class_index)) return RESMAP_OK;
    RSM_TRY(set_step_prompt(w, class_index, s));
    RSM_TRY(restore_slice(w, NULL, 1));
    return store_slice(w, s);
}

/* One decision a step for every slice (the paper's way). */
static resmap_status cascade_by_slice(cascade *c, resmap_volume_report *report)
{
    size_t classes = c->config->class_count, running = c->slicing.slices;

    memset(c->stopped, 0, running);
    for (c->step = 0; c->step < c->steps && running > 0; c->step++) {
        double mean[RESMAP_MAX_CLASSES] = {0}, votes[RESMAP_MAX_CLASSES] = {0};
        size_t classified = running;
        int majority;
        resmap_step *step;
        if (c->step > 0) RSM_TRY(measure(c, NULL));
        for (size_t s = 0; s < c->slicing.slices; s++) c->shrunken_classes[s] = -1;
        c->passes = 1;
        RSM_TRY(encode_shrunken(c, still_running));
        RSM_TRY(each_slice(c, "restore", step_one, still_running));
        RSM_TRY(restore_shrunken(c));
        for (size_t s = 0; s < c->slicing.slices; s++) {
            const double *p = c->probabilities + s * classes;
            int class_index = argmax(p, classes);
            if (c->stopped[s]) continue;
            votes[class_index]++;
            for (size_t k = 0; k < classes; k++) mean[k] += p[k];
            if (class_index == c->config->clean) {
                c->stopped[s] = 1;
                running--;
            } else {
                note_restored(&report->slices[s], class_index);
            }
        }
        for (size_t k = 0; k < classes; k++) mean[k] /= (double)classified;
        majority = argmax(votes, classes);
        step = note_step(report, majority, mean, classes, majority != c->config->clean);
        step->passes = c->config->clean < 0 || votes[c->config->clean] < (double)classified ? c->passes : 0;
    }
    if (running == 0) report->stopped = "clean";
    return RESMAP_OK;
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
    c->frame = report->frame;
    c->step = 0;
    if (classify_only) {
        double mean[RESMAP_MAX_CLASSES];
        RSM_TRY(classify_volume(c, 0));
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
    c->by_slice = c->options->decide_by_slice && c->forced_count == 0 && classes > 0;
    if (c->by_slice) return cascade_by_slice(c, report);
    return cascade_by_volume(c, report);
}

/* ---- Setting up --------------------------------------------------------------------------------------------- */

static resmap_status equip(worker *w)
{
    const cascade *c = w->cascade;
    size_t pixels = slice_pixels(c), small = c->most_together * shrunken_count(c);

    w->slice = malloc(rsm_bytes(pixels, sizeof(float)));
    w->slice_mask = malloc(rsm_bytes(pixels, sizeof(float)));
    w->result = malloc(rsm_bytes(pixels, sizeof(float)));
    w->small = malloc(rsm_bytes(small + 1, sizeof(float)));
    w->small_result = malloc(rsm_bytes(small + 1, sizeof(float)));
    w->pooled = malloc(rsm_bytes((1 + c->most_together) * rsm_network_pooled_count(w->net), sizeof(float)));   /* of a batch, or two views */
    w->prompt = malloc(rsm_bytes(c->config->text_dim + 1, sizeof(float)));
    if (w->slice == NULL || w->slice_mask == NULL || w->result == NULL || w->small == NULL ||
        w->small_result == NULL || w->pooled == NULL || w->prompt == NULL)
        return rsm_no_memory(c->env, pixels * sizeof(float));
    return RESMAP_OK;
}

static resmap_status allocate(cascade *c)
{
    size_t slices = c->slicing.slices, classes = c->config->class_count, pooled = rsm_network_pooled_count(c->workers[0].net);

    for (size_t i = 0; i < c->worker_count; i++) RSM_TRY(equip(&c->workers[i]));
    c->foreground = calloc(slices, sizeof *c->foreground);
    c->probabilities = calloc(slices * (classes + 1), sizeof *c->probabilities);
    c->owners = calloc(slices, sizeof *c->owners);
    c->stopped = calloc(slices, sizeof *c->stopped);
    if (c->foreground == NULL || c->probabilities == NULL || c->owners == NULL || c->stopped == NULL)
        return rsm_no_memory(c->env, slices * sizeof *c->foreground);
    c->listed = calloc(slices, sizeof *c->listed);
    c->shrunken_classes = calloc(slices, sizeof *c->shrunken_classes);
    c->shrunken_pooled = malloc(rsm_bytes(slices * pooled, sizeof *c->shrunken_pooled));
    if (c->listed == NULL || c->shrunken_classes == NULL || c->shrunken_pooled == NULL)
        return rsm_no_memory(c->env, slices * pooled * sizeof *c->shrunken_pooled);
    if (c->config->field_order > 0) {
        size_t ratios = slices * shrunken_count(c);
        c->ratios = malloc(rsm_bytes(ratios, sizeof *c->ratios));
        if (c->ratios == NULL) return rsm_no_memory(c->env, ratios * sizeof *c->ratios);
    }
    c->encodings = calloc(slices, sizeof *c->encodings);
    if (c->encodings == NULL) return rsm_no_memory(c->env, slices * sizeof *c->encodings);
    drop_encodings(c);
    return RESMAP_OK;
}

static void clear(cascade *c)
{
    drop_encodings(c);
    for (size_t i = 0; i < c->worker_count; i++) {
        worker *w = &c->workers[i];
        rsm_view_free(w->full);
        rsm_view_free(w->shrunken);
        free(w->slice);
        free(w->slice_mask);
        free(w->small);
        free(w->small_result);
        free(w->result);
        free(w->pooled);
        free(w->prompt);
    }
    free(c->workers);
    free(c->sharers);
    free(c->batch_sharers);
    free(c->foreground);
    free(c->probabilities);
    free(c->encodings);
    free(c->owners);
    free(c->stopped);
    free(c->listed);
    free(c->shrunken_pooled);
    free(c->shrunken_classes);
    free(c->ratios);
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
                    return rsm_fail(c->env, RESMAP_BAD_FILE, "%s: voxel (%zu, %zu, %zu) is not a finite number in float32 (a mask may exclude it)",
                                    c->input_name, x, y, z);
    return RESMAP_OK;
}

static size_t tile_pixels(const rsm_view *view)
{
    size_t height, width;

    rsm_view_tile(view, &height, &width);
    return height * width;
}

static resmap_status make_views(worker *w)
{
    const cascade *c = w->cascade;
    size_t tile;
    resmap_status status;

    if (c->shrunken_pixels > 0) RSM_TRY(rsm_view_create(w->net, c->shrunken_height, c->shrunken_width, 1, &w->shrunken));
    RSM_TRY(rsm_view_create(w->net, c->slicing.height, c->slicing.width, 1, &w->full));
    if (w->shrunken == NULL || c->most_together == 1) return RESMAP_OK;
    tile = tile_pixels(w->shrunken);
    rsm_view_free(w->shrunken);  /* batches may have what the others have left */
    w->shrunken = NULL;
    status = rsm_view_create(w->net, c->shrunken_height, c->shrunken_width, c->most_together, &w->shrunken);
    if (status == RESMAP_OK && tile_pixels(w->shrunken) == tile) return RESMAP_OK;
    if (status != RESMAP_OK && status != RESMAP_NO_DEVICE_MEMORY) return status;
    /* What fitted alone does not any more. Smaller tiles than other devices' would give another result, which nobody expects. */
    return rsm_fail(w->env, RESMAP_DEVICE_FAILED, "device %s: has less free memory than a moment ago",
                    rsm_device_info(rsm_network_device(w->net))->name);
}

/* Leaves a device out: `why` it cannot take part. */
static void leave_out(cascade *c, size_t i, const char *why)
{
    rsm_log(c->env, RESMAP_LOG_WARNING, "%s; its work goes to others", why);
    c->sharers[i].lost = 1;
}

/* Says what the failed allocation cannot know. */
static resmap_status explain_memory(const worker *w, resmap_status status)
{
    const cascade *c = w->cascade;

    if (status != RESMAP_NO_DEVICE_MEMORY) return status;
    return rsm_fail(w->env, status,
                    "%s: slices of %zu x %zu do not fit into device memory, not even in the smallest tiles "
                    "(%s)", c->input_name, c->slicing.width, c->slicing.height, w->env->error);
}

static int is_first(const cascade *c, size_t i)
{
    return c->workers[i].first == i;
}

/* A further worker's views: as the first one's, else the result would depend on who takes which slice. */
static resmap_status share_views(worker *w)
{
    const worker *first = &w->cascade->workers[w->first];

    if (first->shrunken != NULL) RSM_TRY(rsm_view_share(first->shrunken, w->net, &w->shrunken));
    return rsm_view_share(first->full, w->net, &w->full);
}

static void free_views(worker *w)
{
    rsm_view_free(w->full);
    rsm_view_free(w->shrunken);
    w->full = w->shrunken = NULL;
}

/* The views of further workers, which come behind all first ones. One that does not fit is done without: its
 * device works as it would have without it. */
static resmap_status make_further_views(cascade *c)
{
    for (size_t i = c->worker_count; i-- > 0 && !is_first(c, i);) {
        worker *w = &c->workers[i];
        resmap_status made = c->sharers[w->first].lost
            ? rsm_fail(w->env, RESMAP_DEVICE_FAILED, "its device is left out") : share_views(w);
        if (made == RESMAP_OK) continue;
        if (!rsm_is_device_failure(made)) return rsm_fail(c->env, made, "%s", w->env->error);
        rsm_log(c->env, RESMAP_LOG_INFO, "done without a further worker: %s", w->env->error);
        free_views(w);
        c->worker_count--;
        c->workers[i] = c->workers[c->worker_count];
        c->sharers[i] = c->sharers[c->worker_count];
        c->batch_sharers[i] = c->batch_sharers[c->worker_count];
    }
    return RESMAP_OK;
}

/* The views of all workers. A device that has no room for them is left out where others have; so is one
 * that needs smaller tiles than others, as the result would depend on who takes which slice. */
static resmap_status make_all_views(cascade *c)
{
    size_t height = c->slicing.height, width = c->slicing.width, largest = 0;
    resmap_status status = RESMAP_OK;
    worker *last = NULL;

    for (size_t k = 0; k < c->config->class_count && c->shrunken_pixels == 0; k++)
        c->shrunken_pixels = c->config->class_pixels[k];
    if (c->shrunken_pixels > 0)
        rsm_shrunken_size(height, width, c->shrunken_pixels, &c->shrunken_height, &c->shrunken_width);
    c->most_together = (c->slicing.slices + LEAST_BATCHES - 1) / LEAST_BATCHES;
    if (c->most_together > MOST_TOGETHER) c->most_together = MOST_TOGETHER;
    for (size_t i = 0; i < c->worker_count && is_first(c, i); i++) {
        worker *w = &c->workers[i];
        resmap_status made = explain_memory(w, make_views(w));
        if (made != RESMAP_OK) {
            if (!rsm_is_device_failure(made)) return rsm_fail(c->env, made, "%s", w->env->error);
            free_views(w);
            last = w;
            status = made;
        } else if (tile_pixels(w->full) > largest) {
            largest = tile_pixels(w->full);
        }
    }
    if (largest == 0) return rsm_fail(c->env, status, "%s", last->env->error);
    for (size_t i = 0; i < c->worker_count && is_first(c, i); i++) {
        worker *w = &c->workers[i];
        if (w->full == NULL) {
            leave_out(c, i, w->env->error);
        } else if (tile_pixels(w->full) < largest) {
            rsm_fail(w->env, RESMAP_NO_DEVICE_MEMORY,
                     "device %s: has no memory for tiles as large as others'",
                     rsm_device_info(rsm_network_device(w->net))->name);
            leave_out(c, i, w->env->error);
        } else if (w->shrunken != NULL && rsm_view_slices(w->shrunken) < c->most_together) {
            c->most_together = rsm_view_slices(w->shrunken);
        }
    }
    return make_further_views(c);
}

/* The first worker that takes part; the others are cut alike. */
static const worker *first_worker(const cascade *c)
{
    size_t i = 0;

    while (c->sharers[i].lost) i++;
    return &c->workers[i];
}

static resmap_status describe_devices(const cascade *c, resmap_report *report)
{
    report->devices = calloc(c->worker_count, sizeof *report->devices);
    if (report->devices == NULL) return rsm_no_memory(c->env, c->worker_count * sizeof *report->devices);
    for (size_t i = 0; i < c->worker_count; i++)
        report->devices[c->workers[i].first].workers += !c->sharers[i].lost;
    for (size_t i = 0; i < c->worker_count && is_first(c, i); i++) {
        resmap_device_report *d = &report->devices[report->device_count++];
        const rsm_device *device = rsm_network_device(c->workers[i].net);
        const resmap_device *info = rsm_device_info(device);
        d->name = rsm_strdup(info->name);
        d->platform = rsm_strdup(info->platform);
        d->driver = rsm_strdup(info->driver);
        d->precision = rsm_network_precision(c->workers[i].net);
        if (d->name == NULL || d->platform == NULL || d->driver == NULL)
            return rsm_no_memory(c->env, sizeof *d);
    }
    return RESMAP_OK;
}

static resmap_status describe(const cascade *c, resmap_report *report)
{
    const resmap_options *o = c->options;
    const worker *w = first_worker(c);

    report->plane = c->slicing.plane;
    report->decide = o->decide_by_slice ? "slice" : "volume";
    report->prompt = o->prompt_sample ? rsm_format("sample:%" PRIu64, o->prompt_seed) : rsm_strdup("centroid");
    report->tiled = rsm_view_tiled(w->full);
    report->band_rows = rsm_view_band_rows(w->full);
    for (size_t k = 0; k < c->config->class_count; k++) {
        report->classes[k] = rsm_strdup(c->config->classes[k]);
        if (report->classes[k] == NULL) return rsm_no_memory(c->env, sizeof *report);
        report->class_count++;
    }
    return report->prompt == NULL ? rsm_no_memory(c->env, sizeof *report) : RESMAP_OK;
}

/* Standardised scans have dark air below zero, but not so far that contract §4 takes them for signed data: steps that multiply
 * would take it for negative signal. */
static resmap_status tell_negative_air(const cascade *c, size_t voxels, int *told)
{
    double dark;

    if (*told || c->options->no_scale || c->scale.lo != 0) return RESMAP_OK;
    RSM_TRY(rsm_percentile(c->env, c->volume, c->mask, voxels, -INFINITY, c->scale.mean, 50, &dark));
    *told = dark < -NEGATIVE_AIR * c->scale.hi;
    if (*told)
        rsm_log(c->env, RESMAP_LOG_WARNING, "%s: what is dark lies at %.3g, with bright tissue at %.3g: no magnitude image. Results will be wrong, "
                "unless its lowest value is subtracted first", c->input_name, dark, c->scale.hi);
    return RESMAP_OK;
}

static resmap_status run_frames(cascade *c, const struct resmap_image *input, int classify_only, struct resmap_image *output,
                                resmap_report *report)
{
    size_t voxels = c->shape[0] * c->shape[1] * c->shape[2], frames = c->shape[3], constant_frames = 0;
    int told = 0;
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
        RSM_CHECK(tell_negative_air(c, voxels, &told));
        RSM_CHECK(run_volume(c, classify_only, volume));
    }
    for (size_t f = 0; f < frames; f++)
        if (report->volumes[f].constant)
            rsm_log(c->env, RESMAP_LOG_WARNING, "%s: frame %zu is constant%s", c->input_name, f,
                    classify_only ? "" : " and stays as it is");
done:
    free(copy);
    return status;
}

/* Where encodings waited at worst, and what each device has done. */
static void describe_work(const cascade *c, int classify_only, resmap_report *report)
{
    static const char *const places[] = {"device", "host", "recomputed"};
    place worst = ON_DEVICE;
    size_t workers = 0;          /* that worked */

    for (size_t i = 0; i < report->device_count; i++) workers += report->devices[i].workers;
    for (size_t i = 0; i < c->worker_count; i++) {
        resmap_device_report *d = &report->devices[c->workers[i].first];
        d->slices += c->sharers[i].done + c->workers[i].restored;
        if (d->workers > 0) d->seconds += c->workers[i].seconds / (double)d->workers;
        if (workers > 0) report->seconds_network += c->workers[i].seconds / (double)workers;
        if (c->workers[i].worst_place > worst) worst = c->workers[i].worst_place;
    }
    if (!classify_only && c->steps > 0)
        report->encodings = c->options->decide_by_slice || c->forced_count > 0 ? "reused" : places[worst];
}

static resmap_status make_workers(cascade *c, rsm_network *const *networks, size_t count)
{
    c->workers = calloc(count, sizeof *c->workers);
    c->sharers = calloc(count, sizeof *c->sharers);
    c->batch_sharers = calloc(count, sizeof *c->batch_sharers);
    if (c->workers == NULL || c->sharers == NULL || c->batch_sharers == NULL) return rsm_no_memory(c->env, count * sizeof *c->workers);
    c->worker_count = count;
    for (size_t i = 0; i < count; i++) {
        worker *w = &c->workers[i];
        w->cascade = c;
        w->net = networks[i];
        while (w->first < i && networks[w->first] != rsm_network_owner(w->net)) w->first++;
        w->env = c->sharers[i].env = c->batch_sharers[i].env = rsm_device_env(rsm_network_device(w->net));
        w->prompt_class = -1;
    }
    return RESMAP_OK;
}

/* The class that the volume's field speaks for. */
static int field_class(const rsm_config *config)
{
    size_t k = 0;

    if (!(config->evidence_weight > 0)) return -1;
    while (config->class_pixels[k] == 0) k++;
    return (int)k;
}

resmap_status rsm_cascade_run(rsm_env *env, rsm_network *const *networks, size_t count,
                              const struct resmap_image *input, const struct resmap_image *mask,
                              const resmap_options *options, int classify_only, struct resmap_image *output,
                              resmap_report *report)
{
    cascade c = {0};
    resmap_status status;

    c.env = env;
    c.model = rsm_network_model(networks[0]);
    c.config = &c.model->config;
    c.options = options;
    c.shape = input->shape;
    c.input_name = input->path != NULL ? input->path : "image";
    c.field_class = field_class(c.config);
    RSM_CHECK(choose_steps(&c));
    if (classify_only && c.config->class_count == 0) {
        status = rsm_fail(c.env, RESMAP_BAD_ARGUMENT, "%s: a restormer model does not classify",
                          c.model->name);
        goto done;
    }
    if (mask != NULL) {
        RSM_CHECK(rsm_image_check_mask(c.env, mask, input, c.input_name));
        c.mask = mask->data;
    }
    RSM_CHECK(rsm_slicing_choose(c.env, input, options->plane, &c.slicing));
    RSM_CHECK(make_workers(&c, networks, count));
    RSM_CHECK(make_all_views(&c));
    RSM_CHECK(allocate(&c));
    RSM_CHECK(describe(&c, report));
    RSM_CHECK(describe_devices(&c, report));
    if (report->tiled) {
        size_t height, width;
        rsm_view_tile(first_worker(&c)->full, &height, &width);
        rsm_log(c.env, RESMAP_LOG_WARNING,
                "%s: device memory is too small for whole slices: independent tiles of %zu x %zu are used, "
                "which changes the result", c.input_name, width, height);
    }
    status = run_frames(&c, input, classify_only, output, report);
    describe_work(&c, classify_only, report);
done:
    clear(&c);
    return status;
}
