#include "model/tune.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/json.h"
#include "core/share.h"
#include "model/selfcheck.h"
#include "model/timing.h"
#include "nn/nn.h"

/* What a variant's small task may be off by. The network as a whole may be off by RSM_SELF_CHECK_BOUND. */
#define MOST_ERROR 1e-5

/* How much is tried. Measuring errs, the more so on a busy machine, and the rule was chosen with more care than a
 * quick tuning takes: it gives way only to what is clearly faster. */
typedef struct effort {
    const char *name;
    unsigned flags;              /* that a variant must have */
    double least_share;          /* of the network's time that an operation must take */
    double least_speedup;
    int turns;                   /* of the rule and the variant, at most MOST_TURNS */
    double run;                  /* seconds that a run may take, else half the slice must do */
    double seconds;              /* after which no second variant of an operation is begun */
    int fp16_on_cpus;            /* whether fp16 is tried there */
    double workers_seconds;      /* that measuring several workers may take, else it is left */
} effort;

static const effort full = {"full", 0, 0.003, 1.02, 5, INFINITY, INFINITY, 1, INFINITY};
static const effort quick = {"quick", RSM_QUICK, 0.05, 1.05, 2, 0.4, 2, 1, 4};
/* Quick, and unasked: all kernels are built anew for fp16, which takes PoCL's compiler longer than all the rest, and there
 * is little to be gained on CPUs. */
static const effort first_use = {"quick", RSM_QUICK, 0.05, 1.05, 2, 0.4, 2, 0, 4};
enum { MOST_TURNS = 5 };
/* Of fp16 over fp32, which is exacter. */
static const double LEAST_FP16_SPEEDUP = 1.05;
/* Of twice as many workers, which take more memory. Each turn gives every one of them so many slices. */
static const double LEAST_WORKERS_SPEEDUP = 1.05;
enum { WORKER_SLICES = 2 };
/* As many as can be preferred. */
static const struct {
    size_t count;
    const char *name;
} worker_counts[] = {{1, "1"}, {2, "2"}, {4, "4"}, {RSM_MOST_WORKERS, "8"}};
enum { WORKER_COUNTS = sizeof worker_counts / sizeof worker_counts[0] };

/* A variant on its way; those of one operation follow one another, the rule's first. */
typedef struct trial {
    rsm_tunable what;
    const rsm_variant *variant;  /* NULL: the rule */
    resmap_trial *result;
} trial;

typedef struct tuner {
    rsm_network *net, *fp16;     /* fp16: NULL unless it was preferred */
    rsm_device *device, *reference;
    rsm_env *env;
    const effort *effort;
    double begun;                /* trying variants */
    rsm_bench bench;
    int halved;                  /* its slice is half of what was asked for */
    float *expected;             /* the network's output by rule */
    resmap_tuning *result;
    trial *trials;
    size_t count;
    size_t first[RSM_TUNABLES], number[RSM_TUNABLES];   /* trials of each operation; none: number 0 */
    rsm_preference preference;   /* network "": none was measured */
    size_t done, total;          /* steps, for the progress callback */
} tuner;

/* Before the variants number i of the operations. */
static int out_of_time(const tuner *t, size_t i)
{
    return i > 1 && rsm_seconds() - t->begun > t->effort->seconds;
}

static resmap_status step(tuner *t)
{
    if (t->done < t->total) t->done++;
    return rsm_progress(t->env, "tuning", t->done, t->total);
}

/* Whether tuning as a whole must end with this failure; others are a variant's. */
static int is_fatal(resmap_status status)
{
    return status == RESMAP_CANCELLED || status == RESMAP_NO_MEMORY;
}

static void take_rules(rsm_device *device)
{
    for (int i = 0; i < RSM_TUNABLES; i++) rsm_tuned_set(device, (rsm_tunable)i, NULL);
}

/* ---- Where the time goes ---- */

/* The operation that a row of a profile is about; RSM_TUNABLES: none that is tuned. */
static int tunable_of(const rsm_profile_row *row)
{
    static const struct {
        const char *name;
        rsm_tunable what;
    } names[] = {{"depthwise3x3", RSM_TUNE_DEPTHWISE},      {"depthwise3x3_gate", RSM_TUNE_GATE},
                 {"layer_norm", RSM_TUNE_LAYER_NORM},       {"attention_partial", RSM_TUNE_ATTENTION},
                 {"attention_total", RSM_TUNE_ATTENTION},   {"attention_softmax", RSM_TUNE_ATTENTION},
                 {"attention_fold", RSM_TUNE_ATTENTION},
                 {"pixel_shuffle", RSM_TUNE_CONV},          {"pixel_unshuffle", RSM_TUNE_CONV}};   /* after products */

    if (strcmp(row->name, "conv3x3") == 0) return rsm_conv3x3_tunable(row->columns, row->rows);
    if (strcmp(row->name, "gemm") == 0 || strcmp(row->name, "gemm_norm") == 0)
        return rsm_gemm_tunable(row->rows, row->columns);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(row->name, names[i].name) == 0) return names[i].what;
    return RSM_TUNABLES;
}

/* Seconds that each operation takes in a run; [RSM_TUNABLES]: all others. */
static resmap_status measure(const tuner *t, double seconds[RSM_TUNABLES + 1])
{
    rsm_profile_row *rows = NULL;
    size_t count = 0;

    RSM_TRY(rsm_bench_profile(&t->bench, &rows, &count));
    for (int i = 0; i <= RSM_TUNABLES; i++) seconds[i] = 0;
    for (size_t i = 0; i < count; i++) seconds[tunable_of(&rows[i])] += rows[i].seconds;
    free(rows);
    return RESMAP_OK;
}

/* Whether the last run gave what the rules give. */
static int output_is_right(const tuner *t)
{
    const size_t pixels = t->bench.height * t->bench.width;

    return rsm_difference(t->bench.output, t->expected, pixels) <= RSM_SELF_CHECK_BOUND;
}

/* ---- Turns ---- */

/* Seconds of the rule and of a variant, taken in turns, since a machine may get busier while we measure. */
typedef struct turns {
    double rule[MOST_TURNS], own[MOST_TURNS];
    int count;
} turns;

static double least(const double *values, int count)
{
    double value = values[0];

    for (int i = 1; i < count; i++) value = fmin(value, values[i]);
    return value;
}

/* The median of the turns' ratios, the lower one of two; 0 without turns. */
static double speedup_of(const turns *t)
{
    double ratios[MOST_TURNS];

    if (t->count == 0) return 0;
    for (int i = 0; i < t->count; i++) {
        double ratio = t->own[i] > 0 ? t->rule[i] / t->own[i] : 0;
        int at = i;
        for (; at > 0 && ratios[at - 1] > ratio; at--) ratios[at] = ratios[at - 1];
        ratios[at] = ratio;
    }
    return ratios[(t->count - 1) / 2];
}

static void note_turns(const turns *t, resmap_trial *rule, resmap_trial *own)
{
    const double seconds = least(t->rule, t->count);

    own->seconds = least(t->own, t->count);
    own->speedup = speedup_of(t);
    rule->seconds = rule->seconds > 0 ? fmin(rule->seconds, seconds) : seconds;
    rule->speedup = 1;
}

/* ---- Trials ---- */

static resmap_trial *add_result(tuner *t, const char *operation, const char *variant)
{
    resmap_trial *r = &t->result->trials[t->result->trial_count++];

    r->operation = operation;
    r->variant = variant;
    r->error = NAN;
    return r;
}

static void add_trial(tuner *t, rsm_tunable what, const rsm_variant *variant)
{
    resmap_trial *r = add_result(t, rsm_tunable_name(what), variant ? variant->name : "default");

    if (t->number[what]++ == 0) t->first[what] = t->count;
    t->trials[t->count++] = (trial){what, variant, r};
}

/* Whether to try the variant. */
static int is_candidate(const tuner *t, rsm_tunable what, const rsm_variant *variant)
{
    const unsigned flags = t->effort->flags;

    return (variant->flags & flags) == flags && rsm_variant_suits(t->device, variant) &&
           !(what == RSM_TUNE_BANDS && t->halved) &&
           !(what <= RSM_TUNE_GEMM_DEEP && rsm_gemm_is_rule(t->device, what, variant));
}

static int tries_fp16(const tuner *t)
{
    return t->effort->fp16_on_cpus || !rsm_device_is_cpu(t->device);
}

/* The variants of every operation that takes enough of the time. */
static resmap_status list_trials(tuner *t, const double seconds[RSM_TUNABLES + 1])
{
    double all = 0;
    size_t most = 2 + WORKER_COUNTS;    /* both precisions, one worker and several */

    t->total = (size_t)tries_fp16(t) + WORKER_COUNTS - 1;
    for (int i = 0; i <= RSM_TUNABLES; i++) all += seconds[i];
    for (int i = 0; i < RSM_TUNABLES; i++) {
        size_t count;
        rsm_variants((rsm_tunable)i, &count);
        most += count + 1;
    }
    t->trials = calloc(most, sizeof *t->trials);
    t->result->trials = calloc(most, sizeof *t->result->trials);
    if (!t->trials || !t->result->trials) return rsm_no_memory(t->env, most * sizeof *t->result->trials);
    for (int i = 0; i < RSM_TUNABLES; i++) {
        size_t count;
        const rsm_variant *variants = rsm_variants((rsm_tunable)i, &count);
        /* Bands and CLBlast's parameters have no time of their own. */
        if (i < RSM_TUNE_BANDS && seconds[i] < t->effort->least_share * all) continue;
        for (size_t k = 0; k < count; k++) {
            if (!is_candidate(t, (rsm_tunable)i, &variants[k])) continue;
            if (t->number[i] == 0) add_trial(t, (rsm_tunable)i, NULL);
            add_trial(t, (rsm_tunable)i, &variants[k]);
            t->total += i == RSM_TUNE_BANDS ? 1 : 2;
        }
    }
    return RESMAP_OK;
}

/* Notes why the variant cannot win: the context's error, unless it says better. */
static resmap_status reject(tuner *t, resmap_trial *x, const char *why)
{
    if (x->problem) return RESMAP_OK;
    x->problem = rsm_strdup(why);
    if (!x->problem) return rsm_no_memory(t->env, strlen(why));
    rsm_log(t->env, RESMAP_LOG_INFO, "tuning: %s %s: %s", x->operation, x->variant, why);
    return RESMAP_OK;
}

/* The variant's small task against the reference. */
static resmap_status check(tuner *t, trial *x)
{
    char text[64];
    double error = NAN;
    resmap_status status;

    rsm_tuned_set(t->device, x->what, x->variant);
    status = rsm_check_operation(t->device, t->reference, x->what,
                                 rsm_network_model(t->net)->config.norm_with_bias, &error);
    if (is_fatal(status)) return status;
    if (status != RESMAP_OK) return reject(t, x->result, t->env->error);
    /* CLBlast, where it fails, is put aside for good. */
    if (rsm_tuned(t->device, x->what) != x->variant) return reject(t, x->result, "fails here");
    x->result->error = error;
    if (error <= MOST_ERROR) return RESMAP_OK;
    snprintf(text, sizeof text, "wrong: error %.2g", error);
    return reject(t, x->result, text);
}

static trial *trial_of(tuner *t, int what, size_t i)
{
    return i < t->number[what] ? &t->trials[t->first[what] + i] : NULL;
}

/* Whether the trial has passed so far. */
static int is_good(const trial *x)
{
    return x && !x->result->problem && isfinite(x->result->error);
}

/* Variant number i of every operation, in turns with the rules, in runs of the whole network: there each works on
 * the shapes and finds the caches that it will. */
static resmap_status measure_variants(tuner *t, size_t i)
{
    turns taken[RSM_TUNABLES] = {{{0}, {0}, 0}};
    double rule[RSM_TUNABLES + 1], own[RSM_TUNABLES + 1];
    int right = 1, some = 0;
    resmap_status status = RESMAP_OK;

    for (int what = 0; what < RSM_TUNABLES; what++) some |= is_good(trial_of(t, what, i));
    for (int turn = 0; some && right && turn < t->effort->turns; turn++) {
        take_rules(t->device);
        RSM_TRY(measure(t, rule));
        for (int what = 0; what < RSM_TUNABLES; what++) {
            const trial *x = trial_of(t, what, i);
            if (is_good(x)) rsm_tuned_set(t->device, x->what, x->variant);
        }
        status = measure(t, own);
        if (is_fatal(status)) return status;
        if (status != RESMAP_OK) break;
        right = output_is_right(t);
        for (int what = 0; what < RSM_TUNABLES; what++) {
            taken[what].rule[turn] = rule[what];
            taken[what].own[turn] = own[what];
            taken[what].count++;
        }
    }
    for (int what = 0; what < RSM_TUNABLES; what++) {
        trial *x = trial_of(t, what, i);
        if (!x) continue;
        /* One of them is to blame, and it is not known which. */
        if (is_good(x) && status != RESMAP_OK) RSM_TRY(reject(t, x->result, t->env->error));
        if (is_good(x) && !right) RSM_TRY(reject(t, x->result, "the network's result is wrong with it"));
        if (is_good(x)) note_turns(&taken[what], trial_of(t, what, 0)->result, x->result);
        RSM_TRY(step(t));
    }
    return RESMAP_OK;
}

static resmap_status try_kernels(tuner *t)
{
    size_t most = 0;

    for (int what = 0; what < RSM_TUNABLES; what++)
        if (what < RSM_TUNE_BANDS && t->number[what] > most) most = t->number[what];
    for (size_t i = 1; i < most; i++) {
        for (int what = 0; what < RSM_TUNABLES && !out_of_time(t, i); what++) {
            trial *x = what < RSM_TUNE_BANDS ? trial_of(t, what, i) : NULL;
            if (!x) continue;
            RSM_TRY(step(t));
            RSM_TRY(check(t, x));
        }
        if (out_of_time(t, i)) break;
        RSM_TRY(measure_variants(t, i));
    }
    return RESMAP_OK;
}

/* Takes each operation's best, where it is enough better. */
static void choose(tuner *t, int what)
{
    const rsm_variant *best = NULL;
    double speedup = t->effort->least_speedup;

    for (size_t i = 1; i < t->number[what]; i++) {
        const trial *x = trial_of(t, what, i);
        if (x->result->problem || x->result->speedup < speedup) continue;
        best = x->variant;
        speedup = x->result->speedup;
    }
    rsm_tuned_set(t->device, (rsm_tunable)what, best);
}

/* One run with new bands. */
static resmap_status run_with_bands(tuner *t, const rsm_variant *variant, double *seconds)
{
    rsm_bench *b = &t->bench;

    rsm_plan_free(b->plan);
    b->plan = NULL;
    rsm_tuned_set(t->device, RSM_TUNE_BANDS, variant);
    RSM_TRY(rsm_plan_create(t->net, b->height, b->width, 1, &b->plan));
    return rsm_bench_run(b, seconds);
}

static resmap_status try_bands(tuner *t)
{
    double seconds;

    for (size_t i = 1; i < t->number[RSM_TUNE_BANDS] && !out_of_time(t, i); i++) {
        trial *rule = trial_of(t, RSM_TUNE_BANDS, 0), *x = trial_of(t, RSM_TUNE_BANDS, i);
        turns taken = {{0}, {0}, 0};
        while (!x->result->problem && taken.count < t->effort->turns) {
            resmap_status status;
            RSM_TRY(run_with_bands(t, NULL, &taken.rule[taken.count]));
            status = run_with_bands(t, x->variant, &taken.own[taken.count]);
            if (is_fatal(status)) return status;
            if (status != RESMAP_OK) RSM_TRY(reject(t, x->result, t->env->error));
            else if (!output_is_right(t)) RSM_TRY(reject(t, x->result, "the network's result is wrong with it"));
            taken.count++;
        }
        if (!x->result->problem) note_turns(&taken, rule->result, x->result);
        RSM_TRY(step(t));
    }
    /* The last one may have failed. */
    return t->bench.plan ? RESMAP_OK : run_with_bands(t, NULL, &seconds);
}

/* Least seconds of all products. */
static resmap_status measure_products(const tuner *t, double *least_seconds)
{
    double seconds[RSM_TUNABLES + 1];

    *least_seconds = INFINITY;
    for (int turn = 0; turn < t->effort->turns; turn++) {
        double sum = 0;
        RSM_TRY(measure(t, seconds));
        for (int what = 0; what <= RSM_TUNE_GEMM_DEEP; what++) sum += seconds[what];
        *least_seconds = fmin(*least_seconds, sum);
    }
    return RESMAP_OK;
}

/* CLBlast's parameters, where it won products. Last of all, and not in turns: there is no way back to its own. */
static resmap_status try_clblast(tuner *t)
{
    double rule;

    if (t->number[RSM_TUNE_CLBLAST] == 0 || !rsm_gemm_takes_clblast(t->device)) return RESMAP_OK;
    RSM_TRY(measure_products(t, &rule));
    trial_of(t, RSM_TUNE_CLBLAST, 0)->result->seconds = rule;
    trial_of(t, RSM_TUNE_CLBLAST, 0)->result->speedup = 1;
    for (size_t i = 1; i < t->number[RSM_TUNE_CLBLAST]; i++) {
        trial *x = trial_of(t, RSM_TUNE_CLBLAST, i);
        resmap_status status = RESMAP_OK;
        RSM_TRY(step(t));
        RSM_TRY(check(t, x));
        if (is_good(x)) status = measure_products(t, &x->result->seconds);
        if (is_fatal(status)) return status;
        if (status != RESMAP_OK) RSM_TRY(reject(t, x->result, t->env->error));
        else if (is_good(x) && rsm_tuned(t->device, x->what) != x->variant) RSM_TRY(reject(t, x->result, "fails here"));
        else if (is_good(x) && !output_is_right(t)) RSM_TRY(reject(t, x->result, "the network's result is wrong with it"));
        if (is_good(x)) x->result->speedup = rule / x->result->seconds;
        RSM_TRY(step(t));
    }
    choose(t, RSM_TUNE_CLBLAST);
    return RESMAP_OK;
}

/* The winners together against the rules; where they are no gain the rules stay. */
static resmap_status compare_all(tuner *t)
{
    const rsm_variant *winners[RSM_TUNABLES];
    turns taken = {{0}, {0}, 0};
    int some = 0;

    for (int i = 0; i < RSM_TUNABLES; i++) {
        winners[i] = rsm_tuned(t->device, (rsm_tunable)i);
        some |= winners[i] != NULL;
    }
    for (; taken.count < t->effort->turns; taken.count++) {
        take_rules(t->device);
        RSM_TRY(run_with_bands(t, NULL, &taken.rule[taken.count]));
        for (int i = 0; i < RSM_TUNABLES; i++) rsm_tuned_set(t->device, (rsm_tunable)i, winners[i]);
        if (some) RSM_TRY(run_with_bands(t, winners[RSM_TUNE_BANDS], &taken.own[taken.count]));
    }
    t->result->seconds_default = t->result->seconds_tuned = least(taken.rule, taken.count);
    t->result->speedup = 1;
    if (some && speedup_of(&taken) > 1 && output_is_right(t)) {
        t->result->seconds_tuned = least(taken.own, taken.count);
        t->result->speedup = speedup_of(&taken);
    } else if (some) {
        rsm_log(t->env, RESMAP_LOG_INFO, "tuning: the winners together are no gain, and not taken");
        take_rules(t->device);
    }
    return RESMAP_OK;
}

/* The network with fp16 in turns with fp32, both with the winners. What fails here is fp16's fault. */
static resmap_status compare_precisions(tuner *t, rsm_network *net, resmap_trial *fp32, resmap_trial *fp16,
                                        const char *cache_folder)
{
    rsm_bench bench = {0};
    turns taken = {{0}, {0}, 0};
    double once;
    resmap_status status;

    RSM_CHECK(rsm_bench_create(net, t->bench.height, t->bench.width, &bench));
    RSM_CHECK(rsm_bench_run(&bench, &once));     /* builds the kernels */
    for (; taken.count < t->effort->turns; taken.count++) {
        RSM_CHECK(rsm_bench_run(&t->bench, &taken.rule[taken.count]));
        RSM_CHECK(rsm_bench_run(&bench, &taken.own[taken.count]));
    }
    note_turns(&taken, fp32, fp16);
    rsm_config_shape(&rsm_network_model(net)->config, t->preference.network);
    t->preference.storage = RSM_FP32;
    t->preference.fp16_percent = (int)fmin(fmax(100 * fp16->speedup, 1), 99999);
    if (fp16->speedup < LEAST_FP16_SPEEDUP) goto done;
    /* It is asked for again at every use, since another model may have the same shape. */
    RSM_CHECK(rsm_self_check_once(net, cache_folder));
    t->preference.storage = RSM_FP16;
done:
    rsm_bench_clear(&bench);
    return status;
}

static resmap_status try_precision(tuner *t, const char *cache_folder)
{
    rsm_network *net = NULL;
    resmap_trial *fp32, *fp16;
    double once;
    resmap_status status;

    if (!tries_fp16(t)) return RESMAP_OK;
    fp32 = add_result(t, "precision", "fp32");
    fp16 = add_result(t, "precision", "fp16");
    RSM_TRY(step(t));
    /* The plan is that of what was tried last. */
    RSM_TRY(run_with_bands(t, rsm_tuned(t->device, RSM_TUNE_BANDS), &once));
    status = rsm_network_create(t->device, rsm_network_model(t->net), RSM_FP16, &net);
    if (status == RESMAP_OK) status = compare_precisions(t, net, fp32, fp16, cache_folder);
    fp16->chosen = t->preference.storage == RSM_FP16;
    fp32->chosen = !fp16->chosen;
    if (fp16->chosen) t->fp16 = net;
    else rsm_network_free(net);
    if (is_fatal(status)) return status;
    if (status != RESMAP_OK) RSM_TRY(reject(t, fp16, t->env->error));
    return RESMAP_OK;
}

/* ---- Several workers ---- */

/* Workers on one device, the first one the device itself, each with a slice of its own. */
typedef struct benches {
    size_t count;
    rsm_device *further[RSM_MOST_WORKERS];   /* [0]: NULL */
    rsm_network *networks[RSM_MOST_WORKERS];
    rsm_bench bench[RSM_MOST_WORKERS];
    float *alone[RSM_MOST_WORKERS];          /* what each gives while the others rest */
    rsm_sharer sharers[RSM_MOST_WORKERS];
} benches;

static void clear_benches(benches *all)
{
    for (size_t i = 0; i < all->count; i++) {
        rsm_bench_clear(&all->bench[i]);
        free(all->alone[i]);
        if (i == 0) continue;
        rsm_network_free(all->networks[i]);
        rsm_device_close(all->further[i]);
    }
}

/* A run by worker i alone, which makes its kernels. */
static resmap_status run_alone(const tuner *t, benches *all, size_t i, double *seconds)
{
    size_t pixels = t->result->height * t->result->width;
    rsm_bench *b = &all->bench[i];

    all->alone[i] = malloc(rsm_bytes(pixels, sizeof(float)));
    if (!all->alone[i]) return rsm_no_memory(t->env, pixels * sizeof(float));
    for (size_t k = 0; k < pixels; k++) b->slice[k] += 0.125f * (float)i;
    RSM_TRY(rsm_bench_run(b, seconds));
    memcpy(all->alone[i], b->output, pixels * sizeof(float));
    return RESMAP_OK;
}

/* Adds workers until there are `count`; networks[0] is the first one's. *seconds: that a slice takes the last one, alone. */
static resmap_status add_benches(const tuner *t, benches *all, size_t count, double *seconds)
{
    while (all->count < count) {
        size_t i = all->count++;
        resmap_status status = RESMAP_OK;
        if (i > 0) {
            RSM_TRY(rsm_device_share(t->device, &all->further[i]));
            status = rsm_network_share(all->networks[0], all->further[i], &all->networks[i]);
        }
        if (status == RESMAP_OK)
            status = rsm_bench_create(all->networks[i], t->result->height, t->result->width, &all->bench[i]);
        if (status == RESMAP_OK) status = run_alone(t, all, i, seconds);
        if (status != RESMAP_OK && i > 0) return rsm_fail(t->env, status, "%s", rsm_device_env(all->further[i])->error);
        RSM_TRY(status);
    }
    return RESMAP_OK;
}

static resmap_status run_one(void *data, size_t sharer, size_t piece)
{
    benches *all = data;
    double seconds;

    (void)piece;
    return rsm_bench_run(&all->bench[sharer], &seconds);
}

/* Seconds that the first `count` workers take for `slices`. */
static resmap_status run_benches(const tuner *t, benches *all, size_t count, size_t slices, double *seconds)
{
    const rsm_work work = {"tuning: workers", slices, 1, run_one, rsm_any_piece, all};
    double start = rsm_seconds();

    for (size_t i = 0; i < count; i++)
        all->sharers[i] = (rsm_sharer){.env = rsm_device_env(rsm_network_device(all->networks[i]))};
    RSM_TRY(rsm_share(t->env, &work, all->sharers, count));
    *seconds = rsm_seconds() - start;
    /* One that failed has left its work to the others. */
    for (size_t i = 0; i < count; i++)
        if (all->sharers[i].lost)
            return rsm_fail(t->env, RESMAP_DEVICE_FAILED, "one of %zu workers failed", count);
    return RESMAP_OK;
}

/* Whether all have given the very bytes that they give alone. */
static int benches_are_right(const benches *all)
{
    for (size_t i = 0; i < all->count; i++) {
        const rsm_bench *b = &all->bench[i];
        if (memcmp(b->output, all->alone[i], b->height * b->width * sizeof(float)) != 0) return 0;
    }
    return 1;
}

/* One worker and `count` in turns. */
static resmap_status compare_workers(tuner *t, benches *all, size_t count, resmap_trial *one, resmap_trial *several)
{
    size_t slices = WORKER_SLICES * count;
    turns taken = {{0}, {0}, 0};
    double once;

    RSM_TRY(add_benches(t, all, count, &once));
    if (2 * (double)t->effort->turns * (double)slices * once > t->effort->workers_seconds) return RESMAP_OK;
    for (; taken.count < t->effort->turns; taken.count++) {
        RSM_TRY(run_benches(t, all, 1, slices, &taken.rule[taken.count]));
        RSM_TRY(run_benches(t, all, count, slices, &taken.own[taken.count]));
        if (!benches_are_right(all)) return reject(t, several, "the network's result is wrong with them");
    }
    note_turns(&taken, one, several);
    return RESMAP_OK;
}

/* A volume by one worker and by several in turns, in the precision that will be taken: twice as many as long as that pays. */
static resmap_status try_workers(tuner *t)
{
    resmap_trial *one = add_result(t, "workers", worker_counts[0].name);    /* [i]: of worker_counts[i] */
    const resmap_trial *told;
    rsm_preference *p = &t->preference;
    benches all = {.networks = {t->fp16 ? t->fp16 : t->net}};
    resmap_status status = RESMAP_OK;
    int best = 0;

    rsm_bench_clear(&t->bench);                  /* makes room */
    for (int i = 1; i < WORKER_COUNTS && status == RESMAP_OK; i++) {
        resmap_trial *several = add_result(t, "workers", worker_counts[i].name);
        status = step(t);
        if (status == RESMAP_OK) status = compare_workers(t, &all, worker_counts[i].count, one, several);
        if (is_fatal(status)) break;
        if (status != RESMAP_OK) status = reject(t, several, t->env->error);
        if (several->problem || several->speedup <= 0) break;
        if (several->speedup < LEAST_WORKERS_SPEEDUP * one[best].speedup) break;
        best = i;
    }
    told = &one[best > 0 ? best : 1];
    if (told->speedup > 0) {
        rsm_config_shape(&rsm_network_model(t->net)->config, p->network);
        p->workers = (int)worker_counts[best].count;
        p->workers_percent = (int)fmin(fmax(100 * told->speedup, 1), 99999);
    }
    one[best].chosen = 1;
    clear_benches(&all);
    return status;
}

static resmap_status find_winners(tuner *t, size_t height, size_t width, const char *cache_folder)
{
    double seconds[RSM_TUNABLES + 1], once;
    size_t pixels;

    RSM_TRY(rsm_progress(t->env, "tuning", 0, 0));
    RSM_TRY(rsm_device_open(t->env, "reference", &t->reference));
    RSM_TRY(rsm_bench_create(t->net, (height + 1) / 2, (width + 1) / 2, &t->bench));
    RSM_TRY(rsm_bench_run(&t->bench, &once));    /* builds the kernels */
    RSM_TRY(rsm_bench_run(&t->bench, &once));
    t->halved = 4 * once > t->effort->run;
    if (!t->halved) {
        rsm_bench_clear(&t->bench);
        RSM_TRY(rsm_bench_create(t->net, height, width, &t->bench));
        RSM_TRY(rsm_bench_run(&t->bench, &once));
    }
    t->result->height = t->bench.height;
    t->result->width = t->bench.width;
    pixels = t->bench.height * t->bench.width;
    t->expected = malloc(rsm_bytes(pixels, sizeof *t->expected));
    if (!t->expected) return rsm_no_memory(t->env, pixels * sizeof *t->expected);
    memcpy(t->expected, t->bench.output, pixels * sizeof *t->expected);
    RSM_TRY(measure(t, seconds));
    RSM_TRY(list_trials(t, seconds));
    t->begun = rsm_seconds();
    RSM_TRY(try_bands(t));
    RSM_TRY(try_kernels(t));
    for (int i = 0; i <= RSM_TUNE_BANDS; i++) choose(t, i);
    RSM_TRY(compare_all(t));
    RSM_TRY(try_clblast(t));
    RSM_TRY(try_precision(t, cache_folder));
    return try_workers(t);
}

/* ---- The file ---- */

/* "2026-11-30 12:00 UTC, ", or "". */
static void today(char date[32])
{
    time_t now = time(NULL);
    struct tm utc;

    date[0] = '\0';
    if (gmtime_r(&now, &utc)) strftime(date, 32, "%Y-%m-%d %H:%M UTC, ", &utc);
}

static resmap_status keep(const tuner *t, rsm_tuning_file *file)
{
    rsm_tuning_failure *failures = calloc(t->count + 1, sizeof *failures);
    resmap_tuning *result = t->result;
    size_t count = 0;
    char date[32], made[256];
    resmap_status status;

    if (!failures) return rsm_no_memory(t->env, t->count * sizeof *failures);
    for (size_t i = 0; i < t->count; i++) {
        const trial *x = &t->trials[i];
        if (x->result->problem)
            failures[count++] = (rsm_tuning_failure){x->what, x->variant, x->result->problem};
    }
    today(date);
    snprintf(made, sizeof made, "%s%s, %s at %zu x %zu, %.2f times as fast as by rule", date, t->effort->name,
             rsm_network_model(t->net)->name, result->height, result->width,
             result->speedup);
    status = rsm_tuning_keep(file, made, t->preference.network[0] ? &t->preference : NULL, failures, count);
    free(failures);
    return status;
}

static resmap_status tune(rsm_network *net, const effort *chosen, const resmap_tune_options *options,
                          const char *cache_folder, rsm_tuning_file *file, resmap_tuning *result)
{
    tuner t = {.net = net, .effort = chosen, .result = result};
    double start = rsm_seconds();
    const rsm_variant *before[RSM_TUNABLES];
    resmap_status status;

    t.device = rsm_network_device(net);
    t.env = rsm_device_env(t.device);
    for (int i = 0; i < RSM_TUNABLES; i++) before[i] = rsm_tuned(t.device, (rsm_tunable)i);
    take_rules(t.device);
    result->quick = options->quick;
    result->path = rsm_strdup(rsm_tuning_path(t.device));
    if (!result->path) RSM_CHECK(rsm_no_memory(t.env, strlen(rsm_tuning_path(t.device))));
    /* What variants are compared with is to be right. */
    RSM_CHECK(rsm_self_check_once(net, cache_folder));
    RSM_CHECK(find_winners(&t, options->height, options->width, cache_folder));
    /* Once more, by the winners; it remembers what passed. */
    RSM_CHECK(rsm_self_check_once(net, cache_folder));
    for (size_t i = 0; i < t.count; i++)
        t.trials[i].result->chosen = rsm_tuned(t.device, t.trials[i].what) == t.trials[i].variant;
    RSM_CHECK(keep(&t, file));
    result->seconds = rsm_seconds() - start;
done:
    if (status != RESMAP_OK)
        for (int i = 0; i < RSM_TUNABLES; i++) rsm_tuned_set(t.device, (rsm_tunable)i, before[i]);
    rsm_bench_clear(&t.bench);
    rsm_network_free(t.fp16);
    rsm_device_close(t.reference);
    free(t.expected);
    free(t.trials);
    return status;
}

resmap_status rsm_tune(rsm_network *net, const resmap_tune_options *options, const char *cache_folder,
                       resmap_tuning *result)
{
    rsm_tuning_file *file = NULL;
    resmap_status status;

    RSM_TRY(rsm_tuning_begin(rsm_network_device(net), &file));
    status = tune(net, options->quick ? &quick : &full, options, cache_folder, file, result);
    rsm_tuning_end(file);
    return status;
}

/* A file by which everything goes by rule. */
static resmap_status keep_rules(rsm_env *env, rsm_tuning_file *file, const char *why)
{
    char date[32], *made;
    resmap_status status;

    today(date);
    made = rsm_format("%sby rule, for tuning at first use %s; resmap tune tries again", date, why);
    status = made ? rsm_tuning_keep(file, made, NULL, NULL, 0) : rsm_no_memory(env, strlen(why));
    free(made);
    return status;
}

/* Until it has ended the file goes by rule: a driver that crashes on a variant, hangs or fails would otherwise do so in every
 * run. */
static resmap_status tune_first(rsm_network *net, const char *cache_folder, rsm_tuning_file *file, resmap_tuning *result)
{
    const resmap_tune_options options = {256, 256, 1};
    rsm_env *env = rsm_device_env(rsm_network_device(net));
    char *cause, *why;
    resmap_status status;

    RSM_TRY(keep_rules(env, file, "was begun and did not end"));
    status = tune(net, &first_use, &options, cache_folder, file, result);
    if (status == RESMAP_OK) return status;
    cause = rsm_strdup(env->error);
    why = cause ? rsm_format("failed: %s", cause) : NULL;
    /* another time it may have room */
    if (is_fatal(status) || status == RESMAP_NO_DEVICE_MEMORY || !why || keep_rules(env, file, why) != RESMAP_OK)
        rsm_tuning_forget(file);
    rsm_fail(env, status, "%s", cause ? cause : "no memory");
    free(cause);
    free(why);
    return status;
}

resmap_status rsm_tune_once(rsm_network *net, const char *cache_folder)
{
    rsm_device *device = rsm_network_device(net);
    rsm_env *env = rsm_device_env(device);
    rsm_tuning_file *file = NULL;
    resmap_tuning *result;
    resmap_status status;

    /* The file is for every run: what this one is allowed must not be in it. */
    if (!rsm_tuning_missing(device) || rsm_device_is_limited(device)) return RESMAP_OK;
    /* Whether the device computes rightly by rule is not for the tuning to find out; the caller will. */
    status = rsm_self_check_once(net, cache_folder);
    if (status != RESMAP_OK) return status == RESMAP_CANCELLED ? status : RESMAP_OK;
    result = calloc(1, sizeof *result);
    if (!result) return rsm_no_memory(env, sizeof *result);
    status = rsm_tuning_begin(device, &file);
    /* Another process, or another part of the device, may have tuned since this one was opened. */
    if (status == RESMAP_OK) status = rsm_tuning_reload(device);
    if (status == RESMAP_OK && rsm_tuning_missing(device)) {
        status = tune_first(net, cache_folder, file, result);
        if (status == RESMAP_OK)
            rsm_log(env, RESMAP_LOG_INFO, "tuned %s in %.1f s: %.2f times as fast as by rule", rsm_device_info(device)->name,
                    result->seconds, result->speedup);
    }
    if (status != RESMAP_OK && status != RESMAP_CANCELLED) rsm_log(env, RESMAP_LOG_INFO, "not tuned: %s", env->error);
    rsm_tuning_end(file);
    resmap_tuning_free(result);
    return status == RESMAP_CANCELLED ? status : RESMAP_OK;
}

/* ---- JSON ---- */

/* A number measured, or null. */
static json_t *measured(double value)
{
    return value > 0 ? rsm_json_number(value) : json_null();
}

static json_t *trial_json(const resmap_trial *x)
{
    return json_pack("{s:s, s:s, s:o, s:o, s:o, s:b, s:o}", "operation", x->operation, "variant", x->variant,
                     "error", rsm_json_number(x->error), "seconds", measured(x->seconds), "speedup",
                     measured(x->speedup), "chosen", x->chosen, "problem", rsm_json_string(x->problem));
}

void resmap_tuning_free(resmap_tuning *tuning)
{
    if (tuning == NULL) return;
    free(tuning->model_name);
    free(tuning->device_name);
    free(tuning->device_platform);
    free(tuning->device_driver);
    free(tuning->path);
    for (size_t i = 0; i < tuning->trial_count; i++) free(tuning->trials[i].problem);
    free(tuning->trials);
    free(tuning);
}

resmap_status rsm_tuning_text(rsm_env *env, const resmap_tuning *t, char **text)
{
    json_t *trials = json_array(), *root;
    int failed = 0;

    for (size_t i = 0; i < t->trial_count; i++)
        failed |= json_array_append_new(trials, trial_json(&t->trials[i]));
    root = json_pack("{s:s, s:o, s:{s:o, s:o, s:o}, s:o, s:I, s:I, s:b, s:o, s:o, s:o, s:o, s:o}", "resmap",
                     resmap_version(), "model", rsm_json_string(t->model_name), "device", "name",
                     rsm_json_string(t->device_name), "platform", rsm_json_string(t->device_platform),
                     "driver", rsm_json_string(t->device_driver), "path", rsm_json_string(t->path), "height",
                     (json_int_t)t->height, "width", (json_int_t)t->width, "quick", t->quick, "seconds",
                     rsm_json_number(t->seconds), "seconds_default", rsm_json_number(t->seconds_default),
                     "seconds_tuned", rsm_json_number(t->seconds_tuned), "speedup",
                     rsm_json_number(t->speedup), "trials", trials);
    if (failed) {
        json_decref(root);
        root = NULL;
    }
    return rsm_json_text(env, root, text);
}
