/* Drawing the artifacts' parameters, and their record as JSON.
 *
 * Random numbers come from Philox4x32-10 with the key (seed low 32 bits, seed high) and the counter (index
 * low, index high, stream, frame). Parameters take the indexes 0, 1, 2, … of their artifact's stream in the
 * order in which they are drawn below; the noise of a voxel takes its number in storage order in stream 0.
 * The training code draws the same numbers (weights/train/artifacts.py). */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/json.h"
#include "core/philox.h"
#include "synth/synth.h"

enum { STREAM_NOISE = 1, STREAM_BIAS = 2, STREAM_MOTION = 3 };

static const double PI = 3.14159265358979323846;

/* Limits of what is accepted: far beyond use, near enough to keep all numbers finite and the work bounded. */
static const double MAX_SIGMA = 1000.0, MAX_BLUR = 100.0, MAX_COEFFICIENT = 10.0, MAX_MM = 1000.0,
                    MAX_DEG = 180.0;
static const double MAX_MOVE = 1e4;      /* mm or degrees of one drawn move: above 6.7 standard deviations */

/* ---- Random numbers ---- */

static void random_words(uint64_t index, uint64_t seed, uint32_t stream, uint32_t frame, uint32_t words[4])
{
    const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    const uint32_t counter[4] = {(uint32_t)index, (uint32_t)(index >> 32), stream, frame};
    rsm_philox(key, counter, words);
}

void rsm_normal_pair(uint64_t index, uint64_t seed, uint32_t stream, uint32_t frame, double pair[2])
{
    uint32_t words[4];
    random_words(index, seed, stream, frame, words);
    double radius = sqrt(-2.0 * log((words[0] + 1.0) * 0x1p-32)), angle = 2.0 * PI * (words[1] * 0x1p-32);
    pair[0] = radius * cos(angle);
    pair[1] = radius * sin(angle);
}

typedef struct draws {
    uint64_t seed, index;
    uint32_t stream, frame;
} draws;

static double draw_uniform(draws *d, double low, double high)
{
    uint32_t words[4];
    random_words(d->index++, d->seed, d->stream, d->frame, words);
    return low + (high - low) * (words[0] * 0x1p-32);
}

static double draw_normal(draws *d, double sigma)
{
    double pair[2];
    rsm_normal_pair(d->index++, d->seed, d->stream, d->frame, pair);
    return sigma * pair[0];
}

/* low … high, both included. */
static int draw_integer(draws *d, int low, int high)
{
    int offset = (int)(draw_uniform(d, 0.0, 1.0) * (high - low + 1));
    return low + (offset < high - low ? offset : high - low);
}

/* ---- What to draw ---- */

typedef struct range {
    double low, high;            /* equal: a fixed number, and nothing is drawn */
} range;

/* The options, or the preset's values. */
typedef struct settings {
    range sigma, blur;
    int rician;
    int order_low, order_high;
    double low, bound;
    const double *coefficients;
    double motion_mm, motion_deg;
    range percent;
} settings;

static double draw_range(draws *d, range r)
{
    return r.low < r.high ? draw_uniform(d, r.low, r.high) : r.low;
}

static int within(double value, double low, double high)
{
    return value >= low && value <= high;        /* false for NaN */
}

static const struct preset {
    const char *name;
    settings values;
} presets[] = {
    {"paper", {{0.0, 0.06}, {0.0, 1.0}, 0, 1, 3, 0.0, 1.0, NULL, 10.0, 10.0, {15.0, 20.0}}},
    {"mild", {{0.02, 0.02}, {0.0, 0.0}, 0, 3, 3, -0.25, 0.25, NULL, 2.0, 2.0, {20.0, 20.0}}},
    {"moderate", {{0.05, 0.05}, {0.3, 0.3}, 0, 3, 3, -0.5, 0.5, NULL, 5.0, 5.0, {30.0, 30.0}}},
    {"severe", {{0.10, 0.10}, {0.6, 0.6}, 0, 3, 3, -0.9, 0.9, NULL, 10.0, 10.0, {40.0, 40.0}}},
};

/* NULL: there is none of that name. */
static const struct preset *preset_named(const char *name)
{
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++)
        if (strcmp(name, presets[i].name) == 0) return &presets[i];
    return NULL;
}

/* *s is all zero on entry. */
static resmap_status settings_fill(rsm_env *env, const resmap_synth_options *o, settings *s)
{
    if (o->seed > INT64_MAX) return rsm_fail(env, RESMAP_BAD_ARGUMENT, "seed: above 2^63 - 1");
    if (o->artifacts == 0) return rsm_fail(env, RESMAP_BAD_ARGUMENT, "artifacts: none asked for");
    if ((o->artifacts & ~(RESMAP_MOTION | RESMAP_BIAS | RESMAP_NOISE)) != 0)
        return rsm_fail(env, RESMAP_BAD_ARGUMENT, "artifacts: unknown bits");
    if (o->preset) {
        const struct preset *preset = preset_named(o->preset);
        if (preset) {
            *s = preset->values;
            s->rician = o->rician != 0;
            return RESMAP_OK;
        }
        return rsm_fail(env, RESMAP_BAD_ARGUMENT, "preset %s: not one of paper, mild, moderate, severe",
                        o->preset);
    }
    if (o->artifacts & RESMAP_NOISE) {
        if (!within(o->noise_sigma, 0.0, MAX_SIGMA))
            return rsm_fail(env, RESMAP_BAD_ARGUMENT, "noise: the standard deviation must lie in 0…%g",
                            MAX_SIGMA);
        if (!within(o->noise_blur, 0.0, MAX_BLUR))
            return rsm_fail(env, RESMAP_BAD_ARGUMENT, "noise: the blur must lie in 0…%g voxels", MAX_BLUR);
        s->sigma = (range){o->noise_sigma, o->noise_sigma};
        s->blur = (range){o->noise_blur, o->noise_blur};
        s->rician = o->rician != 0;
    }
    if (o->artifacts & RESMAP_BIAS) {
        if (o->bias_order < 1 || o->bias_order > RSM_MAX_BIAS_ORDER)
            return rsm_fail(env, RESMAP_BAD_ARGUMENT, "bias: the order must lie in 1…%d", RSM_MAX_BIAS_ORDER);
        for (size_t i = 0; o->bias_coefficients && i < rsm_bias_terms(o->bias_order); i++)
            if (!within(o->bias_coefficients[i], -MAX_COEFFICIENT, MAX_COEFFICIENT))
                return rsm_fail(env, RESMAP_BAD_ARGUMENT, "bias: the coefficients must lie in ±%g",
                                MAX_COEFFICIENT);
        if (!o->bias_coefficients && !within(o->bias_bound, 0.0, MAX_COEFFICIENT))
            return rsm_fail(env, RESMAP_BAD_ARGUMENT, "bias: the bound of the coefficients must lie in 0…%g",
                            MAX_COEFFICIENT);
        s->order_low = s->order_high = o->bias_order;
        s->low = -o->bias_bound;
        s->bound = o->bias_bound;
        s->coefficients = o->bias_coefficients;
    }
    if (o->artifacts & RESMAP_MOTION) {
        if (!within(o->motion_mm, 0.0, MAX_MM))
            return rsm_fail(env, RESMAP_BAD_ARGUMENT,
                            "motion: the translations' standard deviation must lie in 0…%g mm", MAX_MM);
        if (!within(o->motion_deg, 0.0, MAX_DEG))
            return rsm_fail(env, RESMAP_BAD_ARGUMENT,
                            "motion: the rotations' standard deviation must lie in 0…%g degrees", MAX_DEG);
        if (o->motion_percent < 0.0) s->percent = (range){15.0, 20.0};
        else if (within(o->motion_percent, 0.0, 100.0))
            s->percent = (range){o->motion_percent, o->motion_percent};
        else
            return rsm_fail(env, RESMAP_BAD_ARGUMENT,
                            "motion: the share of moved lines must lie in 0…100 percent");
        s->motion_mm = o->motion_mm;
        s->motion_deg = o->motion_deg;
    }
    return RESMAP_OK;
}

resmap_status rsm_synth_options_check(rsm_env *env, const resmap_synth_options *options)
{
    settings s = {0};
    return settings_fill(env, options, &s);
}

/* ---- Drawing ---- */

size_t rsm_bias_terms(int order)
{
    return (size_t)((order + 1) * (order + 2) * (order + 3) / 6);
}

static void draw_noise(draws d, const settings *s, int slice_axis, rsm_noise *noise)
{
    d.stream = STREAM_NOISE;
    noise->sigma = draw_range(&d, s->sigma);
    noise->blur = draw_range(&d, s->blur);
    noise->rician = s->rician;
    noise->seed = d.seed;
    noise->axis = slice_axis;
}

static void draw_bias(draws d, const settings *s, rsm_bias *bias)
{
    d.stream = STREAM_BIAS;
    bias->order = s->order_low < s->order_high ? draw_integer(&d, s->order_low, s->order_high) : s->order_low;
    bias->drawn = s->coefficients == NULL;
    bias->low = s->low;
    bias->bound = s->bound;
    for (size_t i = 0; i < rsm_bias_terms(bias->order); i++)
        bias->coefficients[i] = s->coefficients ? s->coefficients[i] : draw_uniform(&d, s->low, s->bound);
}

/* Cuts `total` into whole parts in proportion to `parts`. */
static void cut(size_t total, const double *parts, int count, size_t *pieces)
{
    double whole = 0.0, sum = 0.0;
    size_t end = 0;
    for (int i = 0; i < count; i++) whole += parts[i];
    if (whole == 0.0) whole = 1.0;
    for (int i = 0; i < count; i++) {
        sum += parts[i];
        size_t next = (size_t)floor((double)total * sum / whole + 0.5);
        if (next > total) next = total;
        pieces[i] = next - end;
        end = next;
    }
}

static int axes_longer_than_one(const size_t shape[3], int axes[3])
{
    int count = 0;
    for (int i = 0; i < 3; i++)
        if (shape[i] > 1) axes[count++] = i;
    return count;
}

static resmap_status draw_motion(rsm_env *env, draws d, const settings *s, const size_t shape[3],
                                 rsm_motion *motion)
{
    int axes[3], count = axes_longer_than_one(shape, axes);
    d.stream = STREAM_MOTION;
    if (count < 2)
        return rsm_fail(env, RESMAP_BAD_FILE, "motion: needs an image with two axes longer than 1");
    const int frequency = axes[draw_integer(&d, 0, count - 1)];
    const int a = frequency == 0 ? 1 : 0, b = frequency == 2 ? 1 : 2, phase = shape[b] > shape[a] ? b : a;
    const size_t n = shape[phase];
    motion->sigma_mm = s->motion_mm;
    motion->sigma_deg = s->motion_deg;
    motion->frequency_axis = frequency;
    motion->phase_axis = phase;
    motion->percent = draw_range(&d, s->percent);
    const size_t moved = (size_t)floor(motion->percent / 100.0 * (double)n + 0.5);
    const int runs = draw_integer(&d, 1, RSM_MAX_RUNS);

    double parts[RSM_MAX_RUNS + 1];
    size_t counts[RSM_MAX_RUNS], still[RSM_MAX_RUNS + 1], at = 0;
    for (int i = 0; i < runs; i++) parts[i] = draw_uniform(&d, 0.0, 1.0);
    cut(moved, parts, runs, counts);
    for (int i = 0; i <= runs; i++) parts[i] = draw_uniform(&d, 0.0, 1.0);
    cut(n - moved, parts, runs + 1, still);

    for (int i = 0; i < runs; i++) {
        rsm_run run = {.start = at += still[i], .count = counts[i]};
        for (int c = 0; c < 3; c++) run.translation_mm[c] = draw_normal(&d, s->motion_mm);
        for (int c = 0; c < 3; c++) run.rotation_deg[c] = draw_normal(&d, s->motion_deg);
        for (int flat = 0; flat < 3; flat++)     /* a 2-D image moves in its plane */
            if (shape[flat] == 1) {
                run.translation_mm[flat] = 0.0;
                for (int c = 0; c < 3; c++)
                    if (c != flat) run.rotation_deg[c] = 0.0;
            }
        at += counts[i];
        if (counts[i] > 0) motion->runs[motion->run_count++] = run;
    }
    return RESMAP_OK;
}

resmap_status rsm_record_draw(rsm_env *env, const resmap_synth_options *options, const size_t shape[4],
                              int slice_axis, rsm_record *record)
{
    settings s = {0};
    RSM_TRY(settings_fill(env, options, &s));
    size_t most = rsm_bytes(shape[3], 3);
    rsm_record drawn = {.seed = options->seed};
    drawn.artifacts =
        rsm_bytes(most, sizeof *drawn.artifacts) != 0 ? calloc(most, sizeof *drawn.artifacts) : NULL;
    if (!drawn.artifacts) return rsm_no_memory(env, rsm_bytes(most, sizeof *drawn.artifacts));
    if (options->preset) strncpy(drawn.preset, options->preset, sizeof drawn.preset - 1);
    for (size_t frame = 0; frame < shape[3]; frame++) {
        const draws d = {.seed = options->seed, .frame = (uint32_t)frame};
        const rsm_artifact next = {.frame = frame, .every_frame = shape[3] == 1};
        if (options->artifacts & RESMAP_MOTION) {
            rsm_artifact *a = &drawn.artifacts[drawn.count++];
            *a = next;
            a->kind = RSM_ARTIFACT_MOTION;
            resmap_status status = draw_motion(env, d, &s, shape, &a->of.motion);
            if (status != RESMAP_OK) {
                rsm_record_clear(&drawn);
                return status;
            }
        }
        if (options->artifacts & RESMAP_BIAS) {
            rsm_artifact *a = &drawn.artifacts[drawn.count++];
            *a = next;
            a->kind = RSM_ARTIFACT_BIAS;
            draw_bias(d, &s, &a->of.bias);
        }
        if (options->artifacts & RESMAP_NOISE) {
            rsm_artifact *a = &drawn.artifacts[drawn.count++];
            *a = next;
            a->kind = RSM_ARTIFACT_NOISE;
            draw_noise(d, &s, slice_axis, &a->of.noise);
        }
    }
    *record = drawn;
    return RESMAP_OK;
}

void rsm_record_clear(rsm_record *record)
{
    free(record->artifacts);
    *record = (rsm_record){0};
}

int rsm_artifact_idle(const rsm_artifact *artifact)
{
    if (artifact->kind == RSM_ARTIFACT_NOISE) {
        const rsm_noise *n = &artifact->of.noise;
        return n->sigma == 0.0 && n->blur == 0.0 && !n->rician;
    }
    if (artifact->kind == RSM_ARTIFACT_BIAS) {
        for (size_t i = 1; i < rsm_bias_terms(artifact->of.bias.order); i++) /* the constant term cancels */
            if (artifact->of.bias.coefficients[i] != 0.0) return 0;
        return 1;
    }
    for (int i = 0; i < artifact->of.motion.run_count; i++)
        for (int c = 0; c < 3; c++)
            if (artifact->of.motion.runs[i].translation_mm[c] != 0.0
                || artifact->of.motion.runs[i].rotation_deg[c] != 0.0)
                return 0;
    return 1;
}

/* ---- Writing ---- */

static const char *const KINDS[] = {"motion", "bias", "noise"};

/* json_object_set_new that remembers failures; a NULL object or value is one. */
static void put(json_t *object, const char *key, json_t *value, int *failed)
{
    if (json_object_set_new(object, key, value) != 0) *failed = 1;
}

static json_t *numbers(const double *values, size_t count, int *failed)
{
    json_t *array = json_array();
    for (size_t i = 0; i < count; i++)
        if (json_array_append_new(array, json_real(values[i])) != 0) *failed = 1;
    return array;
}

static json_t *artifact_json(const rsm_artifact *a, int *failed)
{
    json_t *o = json_object();
    put(o, "kind", json_string(KINDS[a->kind]), failed);
    if (!a->every_frame) put(o, "frame", json_integer((json_int_t)a->frame), failed);
    if (a->kind == RSM_ARTIFACT_NOISE) {
        const rsm_noise *n = &a->of.noise;
        put(o, "sigma", json_real(n->sigma), failed);
        put(o, "blur", json_real(n->blur), failed);
        put(o, "rician", json_boolean(n->rician), failed);
        put(o, "seed", json_integer((json_int_t)n->seed), failed);
        put(o, "axis", json_integer(n->axis), failed);
    } else if (a->kind == RSM_ARTIFACT_BIAS) {
        const rsm_bias *b = &a->of.bias;
        put(o, "order", json_integer(b->order), failed);
        if (b->drawn) {
            put(o, "low", json_real(b->low), failed);
            put(o, "bound", json_real(b->bound), failed);
        }
        put(o, "coefficients", numbers(b->coefficients, rsm_bias_terms(b->order), failed), failed);
    } else {
        const rsm_motion *m = &a->of.motion;
        json_t *runs = json_array();
        for (int i = 0; i < m->run_count; i++) {
            json_t *run = json_object();
            put(run, "start", json_integer((json_int_t)m->runs[i].start), failed);
            put(run, "count", json_integer((json_int_t)m->runs[i].count), failed);
            put(run, "translation_mm", numbers(m->runs[i].translation_mm, 3, failed), failed);
            put(run, "rotation_deg", numbers(m->runs[i].rotation_deg, 3, failed), failed);
            if (json_array_append_new(runs, run) != 0) *failed = 1;
        }
        put(o, "sigma_mm", json_real(m->sigma_mm), failed);
        put(o, "sigma_deg", json_real(m->sigma_deg), failed);
        put(o, "percent", json_real(m->percent), failed);
        put(o, "frequency_axis", json_integer(m->frequency_axis), failed);
        put(o, "phase_axis", json_integer(m->phase_axis), failed);
        put(o, "runs", runs, failed);
    }
    return o;
}

resmap_status rsm_record_write(rsm_env *env, const rsm_record *record, char **text)
{
    int failed = 0;
    json_t *root = json_object(), *artifacts = json_array();
    put(root, "seed", json_integer((json_int_t)record->seed), &failed);
    put(root, "preset", record->preset[0] ? json_string(record->preset) : json_null(), &failed);
    for (size_t i = 0; i < record->count; i++)
        if (json_array_append_new(artifacts, artifact_json(&record->artifacts[i], &failed)) != 0) failed = 1;
    put(root, "artifacts", artifacts, &failed);
    if (failed) {
        json_decref(root);
        root = NULL;
    }
    return rsm_json_text(env, root, text);
}

/* ---- Reading ---- */

/* The record being read, for messages: "WHAT: artifacts[1].blur: WHY". */
typedef struct reader {
    rsm_env *env;
    const char *what;
    size_t artifact;
} reader;

static resmap_status refuse(const reader *r, const char *key, const char *why)
{
    return rsm_fail(r->env, RESMAP_BAD_FILE, "%s: artifacts[%zu].%s: %s", r->what, r->artifact, key, why);
}

static resmap_status read_number(const reader *r, const json_t *object, const char *key, double low,
                                 double high, double *value)
{
    const json_t *v = json_object_get(object, key);
    if (!json_is_number(v)) return refuse(r, key, "not a number");
    *value = json_number_value(v);
    if (!within(*value, low, high)) return refuse(r, key, "out of range");
    return RESMAP_OK;
}

static resmap_status read_integer(const reader *r, const json_t *object, const char *key, json_int_t low,
                                  json_int_t high, json_int_t *value)
{
    const json_t *v = json_object_get(object, key);
    if (!json_is_integer(v)) return refuse(r, key, "not an integer");
    *value = json_integer_value(v);
    if (*value < low || *value > high) return refuse(r, key, "out of range");
    return RESMAP_OK;
}

static resmap_status read_numbers(const reader *r, const json_t *object, const char *key, double limit,
                                  size_t count, double *values)
{
    const json_t *array = json_object_get(object, key);
    if (!json_is_array(array) || json_array_size(array) != count)
        return refuse(r, key, "not a list of the right length");
    for (size_t i = 0; i < count; i++) {
        const json_t *v = json_array_get(array, i);
        if (!json_is_number(v)) return refuse(r, key, "not numbers");
        values[i] = json_number_value(v);
        if (!within(values[i], -limit, limit)) return refuse(r, key, "out of range");
    }
    return RESMAP_OK;
}

static resmap_status read_noise(const reader *r, const json_t *object, rsm_noise *noise)
{
    json_int_t seed, axis;
    const json_t *rician = json_object_get(object, "rician");
    RSM_TRY(read_number(r, object, "sigma", 0.0, MAX_SIGMA, &noise->sigma));
    RSM_TRY(read_number(r, object, "blur", 0.0, MAX_BLUR, &noise->blur));
    if (rician && !json_is_boolean(rician)) return refuse(r, "rician", "not true or false");
    noise->rician = json_is_true(rician);
    RSM_TRY(read_integer(r, object, "seed", 0, INT64_MAX, &seed));
    RSM_TRY(read_integer(r, object, "axis", 0, 2, &axis));
    noise->seed = (uint64_t)seed;
    noise->axis = (int)axis;
    return RESMAP_OK;
}

static resmap_status read_bias(const reader *r, const json_t *object, rsm_bias *bias)
{
    json_int_t order;
    RSM_TRY(read_integer(r, object, "order", 1, RSM_MAX_BIAS_ORDER, &order));
    bias->order = (int)order;
    bias->drawn = json_object_get(object, "bound") != NULL;
    if (bias->drawn) {
        RSM_TRY(read_number(r, object, "low", -MAX_COEFFICIENT, MAX_COEFFICIENT, &bias->low));
        RSM_TRY(read_number(r, object, "bound", -MAX_COEFFICIENT, MAX_COEFFICIENT, &bias->bound));
    }
    return read_numbers(r, object, "coefficients", MAX_COEFFICIENT, rsm_bias_terms(bias->order),
                        bias->coefficients);
}

static resmap_status read_motion(const reader *r, const json_t *object, const size_t shape[3],
                                 rsm_motion *motion)
{
    json_int_t frequency, phase;
    RSM_TRY(read_number(r, object, "sigma_mm", 0.0, MAX_MM, &motion->sigma_mm));
    RSM_TRY(read_number(r, object, "sigma_deg", 0.0, MAX_DEG, &motion->sigma_deg));
    RSM_TRY(read_number(r, object, "percent", 0.0, 100.0, &motion->percent));
    RSM_TRY(read_integer(r, object, "frequency_axis", 0, 2, &frequency));
    RSM_TRY(read_integer(r, object, "phase_axis", 0, 2, &phase));
    if (frequency == phase || shape[frequency] < 2 || shape[phase] < 2)
        return refuse(r, "phase_axis", "does not fit the image");
    motion->frequency_axis = (int)frequency;
    motion->phase_axis = (int)phase;

    const json_t *runs = json_object_get(object, "runs");
    if (!json_is_array(runs) || json_array_size(runs) > RSM_MAX_RUNS)
        return refuse(r, "runs", "not a list of up to 7");
    const json_int_t n = (json_int_t)shape[phase];
    json_int_t end = 0;
    motion->run_count = (int)json_array_size(runs);
    for (int i = 0; i < motion->run_count; i++) {
        const json_t *object_run = json_array_get(runs, (size_t)i);
        rsm_run *run = &motion->runs[i];
        json_int_t start, count;
        if (!json_is_object(object_run)) return refuse(r, "runs", "not objects");
        RSM_TRY(read_integer(r, object_run, "start", end, n, &start));
        RSM_TRY(read_integer(r, object_run, "count", 1, n - start, &count));
        RSM_TRY(read_numbers(r, object_run, "translation_mm", MAX_MOVE, 3, run->translation_mm));
        RSM_TRY(read_numbers(r, object_run, "rotation_deg", MAX_MOVE, 3, run->rotation_deg));
        run->start = (size_t)start;
        run->count = (size_t)count;
        end = start + count;
        for (int flat = 0; flat < 3; flat++) {
            if (shape[flat] > 1) continue;
            if (run->translation_mm[flat] != 0.0)
                return refuse(r, "runs", "a 2-D image moves in its plane only");
            for (int c = 0; c < 3; c++)
                if (c != flat && run->rotation_deg[c] != 0.0)
                    return refuse(r, "runs", "a 2-D image moves in its plane only");
        }
    }
    return RESMAP_OK;
}

static resmap_status read_artifact(const reader *r, const json_t *object, const size_t shape[4],
                                   rsm_artifact *artifact)
{
    const char *kind = json_string_value(json_object_get(object, "kind"));
    int known = -1;
    for (int i = 0; kind && i < 3; i++)
        if (strcmp(kind, KINDS[i]) == 0) known = i;
    if (known < 0) return refuse(r, "kind", "not motion, bias or noise");
    artifact->kind = (rsm_artifact_kind)known;
    artifact->every_frame = json_object_get(object, "frame") == NULL;
    if (!artifact->every_frame) {
        json_int_t frame;
        RSM_TRY(read_integer(r, object, "frame", 0, (json_int_t)shape[3] - 1, &frame));
        artifact->frame = (size_t)frame;
    }
    if (artifact->kind == RSM_ARTIFACT_NOISE) return read_noise(r, object, &artifact->of.noise);
    if (artifact->kind == RSM_ARTIFACT_BIAS) return read_bias(r, object, &artifact->of.bias);
    return read_motion(r, object, shape, &artifact->of.motion);
}

/* In each frame the kinds must come in physical order, each once. */
static resmap_status check_order(const reader *r, const rsm_record *record, size_t frames)
{
    int *last = malloc(frames * sizeof *last);
    resmap_status status = last ? RESMAP_OK : rsm_no_memory(r->env, frames * sizeof *last);
    for (size_t f = 0; last && f < frames; f++) last[f] = -1;
    for (size_t i = 0; status == RESMAP_OK && i < record->count; i++) {
        const rsm_artifact *a = &record->artifacts[i];
        const size_t from = a->every_frame ? 0 : a->frame, to = a->every_frame ? frames : a->frame + 1;
        for (size_t f = from; f < to; f++) {
            if ((int)a->kind <= last[f]) {
                status = rsm_fail(r->env, RESMAP_BAD_FILE,
                                  "%s: artifacts[%zu]: in a frame the order is motion, bias, noise, "
                                  "each once",
                                  r->what, i);
                break;
            }
            last[f] = (int)a->kind;
        }
    }
    free(last);
    return status;
}

resmap_status rsm_record_read(rsm_env *env, const char *what, const char *text, size_t size,
                              const size_t shape[4], rsm_record *record)
{
    reader r = {env, what, 0};
    rsm_record read = {0};
    resmap_status status = RESMAP_OK;
    json_error_t error;
    json_t *root = json_loadb(text, size, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        return json_error_code(&error) == json_error_out_of_memory
            ? rsm_no_memory(env, size) : rsm_fail(env, RESMAP_BAD_FILE, "%s: not JSON: %s", what, error.text);

    const json_t *seed = json_object_get(root, "seed"), *preset = json_object_get(root, "preset");
    const json_t *artifacts = json_object_get(root, "artifacts");
    if (!json_is_integer(seed) || json_integer_value(seed) < 0) {
        status = rsm_fail(env, RESMAP_BAD_FILE, "%s: seed: not an integer from 0 to 2^63 - 1", what);
        goto done;
    }
    if (preset && !json_is_null(preset) && (!json_is_string(preset) || !preset_named(json_string_value(preset)))) {
        status = rsm_fail(env, RESMAP_BAD_FILE, "%s: preset: not the name of one", what);
        goto done;
    }
    /* Three kinds a frame at most, so the number is bounded by the image. */
    if (!json_is_array(artifacts) || json_array_size(artifacts) == 0
        || json_array_size(artifacts) / 3 > shape[3]) {
        status = rsm_fail(env, RESMAP_BAD_FILE, "%s: artifacts: not a list of 1 to %zu", what, 3 * shape[3]);
        goto done;
    }
    read.seed = (uint64_t)json_integer_value(seed);
    if (json_is_string(preset)) strcpy(read.preset, json_string_value(preset));
    read.count = json_array_size(artifacts);
    read.artifacts =
        rsm_bytes(read.count, sizeof *read.artifacts) ? calloc(read.count, sizeof *read.artifacts) : NULL;
    if (!read.artifacts) {
        status = rsm_no_memory(env, rsm_bytes(read.count, sizeof *read.artifacts));
        goto done;
    }
    for (r.artifact = 0; r.artifact < read.count; r.artifact++)
        RSM_CHECK(
            read_artifact(&r, json_array_get(artifacts, r.artifact), shape, &read.artifacts[r.artifact]));
    RSM_CHECK(check_order(&r, &read, shape[3]));
    *record = read;
    read = (rsm_record){0};
done:
    rsm_record_clear(&read);
    json_decref(root);
    return status;
}
