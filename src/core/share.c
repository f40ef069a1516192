#include "core/share.h"

#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>

typedef enum state { WAITING, TAKEN, DONE } state;

/* What the threads share, under `lock`; the callbacks of the caller's env, too. */
typedef struct pool {
    rsm_env *env;                /* the caller's, or what stands for it while a sharer has that */
    const rsm_work *work;
    rsm_sharer *sharers;
    size_t count;
    state *states;
    size_t left, taken;          /* pieces waiting, pieces being worked on */
    size_t working;              /* sharers not at their end */
    int stop;
    resmap_status status;        /* of the last failure */
    const rsm_env *culprit;      /* whose error it is */
    pthread_mutex_t lock;
    pthread_cond_t changed;
} pool;

typedef struct thread {
    pool *pool;
    size_t sharer;
    pthread_t id;
} thread;

int rsm_is_device_failure(resmap_status status)
{
    return status == RESMAP_NO_DEVICE_MEMORY || status == RESMAP_BUILD_FAILED ||
           status == RESMAP_DEVICE_FAILED || status == RESMAP_SELF_CHECK_FAILED;
}

int rsm_any_piece(const void *data, size_t sharer, size_t piece)
{
    (void)data;
    (void)sharer;
    (void)piece;
    return 0;
}

int rsm_share_worth(const rsm_sharer *sharers, size_t count, size_t sharer, size_t left)
{
    const rsm_sharer *self = &sharers[sharer];
    double rate = 0, quickest = INFINITY;

    if (self->done == 0) return 1;
    for (size_t i = 0; i < count; i++) {
        if (i == sharer || sharers[i].lost || sharers[i].done == 0 || sharers[i].quickest <= 0) continue;
        rate += 1 / sharers[i].quickest;
        quickest = fmin(quickest, sharers[i].quickest);
    }
    if (rate <= 0) return 1;
    /* The others are halfway through a piece now, on average. The quickest of all takes one in any case. */
    return self->quickest <= fmax((double)left / rate, quickest) + quickest / 2;
}

/* The piece that a sharer takes next; work->pieces: none now. */
static size_t choose(const pool *p, size_t sharer)
{
    const rsm_work *w = p->work;
    size_t best = w->pieces;
    int lowest = 0;

    if (p->left == 0 || !rsm_share_worth(p->sharers, p->count, sharer, p->left)) return w->pieces;
    for (size_t i = 0; i < w->pieces; i++) {
        int rank;
        if (p->states[i] != WAITING) continue;
        rank = w->rank(w->data, sharer, i);
        if (best < w->pieces && rank >= lowest) continue;
        best = i;
        lowest = rank;
    }
    return best;
}

static void finish(rsm_sharer *sharer, double seconds, double units)
{
    if (sharer->done++ == 0 || seconds / units < sharer->quickest) sharer->quickest = seconds / units;
}

static void fail(pool *p, resmap_status status, const rsm_env *culprit)
{
    if (p->stop) return;
    p->status = status;
    p->culprit = culprit;
    p->stop = !rsm_is_device_failure(status);
}

static void lose(pool *p, rsm_sharer *sharer)
{
    size_t others = 0;

    sharer->lost = 1;
    for (size_t i = 0; i < p->count; i++) others += !p->sharers[i].lost;
    if (others > 0) rsm_log(p->env, RESMAP_LOG_WARNING, "%s; its work goes to others", sharer->env->error);
}

static void *drive(void *argument)
{
    thread *t = argument;
    pool *p = t->pool;
    rsm_sharer *self = &p->sharers[t->sharer];

    pthread_mutex_lock(&p->lock);
    while (!p->stop && !self->lost && (p->left > 0 || p->taken > 0)) {
        size_t piece = choose(p, t->sharer);
        double start;
        resmap_status status;
        if (piece == p->work->pieces) {          /* one that is taken may come back */
            pthread_cond_wait(&p->changed, &p->lock);
            continue;
        }
        p->states[piece] = TAKEN;
        p->left--;
        p->taken++;
        pthread_mutex_unlock(&p->lock);
        start = rsm_seconds();
        status = p->work->run(p->work->data, t->sharer, piece);
        pthread_mutex_lock(&p->lock);
        p->taken--;
        if (status == RESMAP_OK) {
            p->states[piece] = DONE;
            finish(self, rsm_seconds() - start, p->work->units);
        } else {
            p->states[piece] = WAITING;
            p->left++;
            fail(p, status, self->env);
            if (rsm_is_device_failure(status)) lose(p, self);
        }
        pthread_cond_broadcast(&p->changed);
    }
    p->working--;
    pthread_cond_broadcast(&p->changed);
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static void log_of_thread(void *data, resmap_log_level level, const char *text)
{
    pool *p = data;

    pthread_mutex_lock(&p->lock);
    rsm_log(p->env, level, "%s", text);
    pthread_mutex_unlock(&p->lock);
}

/* What a sharer that polls is told. */
static int is_stopped(void *data, const char *what, size_t done, size_t total)
{
    pool *p = data;
    int stop;

    (void)what;
    (void)done;
    (void)total;
    pthread_mutex_lock(&p->lock);
    stop = p->stop;
    pthread_mutex_unlock(&p->lock);
    return stop;
}

/* Waits for the threads in the caller's, which alone may call its progress callback. */
static void watch(pool *p)
{
    const long patience = 50 * 1000 * 1000;      /* ns that a wish to cancel may wait to be seen */

    pthread_mutex_lock(&p->lock);
    while (p->working > 0) {
        struct timespec until;
        if (!p->stop) {
            size_t done = p->work->pieces - p->left - p->taken;
            resmap_status status = rsm_progress(p->env, p->work->what, done, p->work->pieces);
            if (status != RESMAP_OK) fail(p, status, p->env);
            if (p->stop) pthread_cond_broadcast(&p->changed);
        }
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += patience;
        if (until.tv_nsec >= 1000000000) {
            until.tv_nsec -= 1000000000;
            until.tv_sec++;
        }
        pthread_cond_timedwait(&p->changed, &p->lock, &until);
    }
    pthread_mutex_unlock(&p->lock);
}

static resmap_status run_threads(pool *p, thread *threads)
{
    sigset_t all, before;
    size_t started = 0;
    int failed = 0;

    /* Signals are the caller's thread's. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_mutex_lock(&p->lock);
    for (size_t i = 0; i < p->count && !failed; i++) {
        if (p->sharers[i].lost) continue;
        threads[started] = (thread){.pool = p, .sharer = i};
        failed = pthread_create(&threads[started].id, NULL, drive, &threads[started]) != 0;
        if (!failed) started++;
    }
    p->working = started;
    if (failed)
        fail(p, rsm_fail(p->env, RESMAP_NO_MEMORY, "threads: one cannot be started"), p->env);
    else if (started == 0)
        fail(p, rsm_fail(p->env, RESMAP_INTERNAL, "%s: all devices failed before", p->work->what), p->env);
    pthread_mutex_unlock(&p->lock);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    watch(p);
    for (size_t i = 0; i < started; i++) pthread_join(threads[i].id, NULL);
    /* Quick threads may have ended before the caller's saw what the last ones did. */
    if (!p->stop && p->left == 0)
        return rsm_progress(p->env, p->work->what, p->work->pieces, p->work->pieces);
    return p->culprit == p->env ? p->status : rsm_fail(p->env, p->status, "%s", p->culprit->error);
}

static resmap_status run_alone(rsm_env *env, const rsm_work *work, rsm_sharer *sharer)
{
    for (size_t i = 0; i < work->pieces; i++) {
        resmap_status status;
        if (work->rank(work->data, 0, i) < 0) continue;
        RSM_TRY(rsm_progress(env, work->what, i, work->pieces));
        status = work->run(work->data, 0, i);
        /* the last one left of several has an env of its own */
        if (status != RESMAP_OK && sharer->env != env) return rsm_fail(env, status, "%s", sharer->env->error);
        RSM_TRY(status);
        sharer->done++;
    }
    return rsm_progress(env, work->what, work->pieces, work->pieces);
}

/* The sharers' envs while their threads run. */
static void lead(pool *p)
{
    for (size_t i = 0; i < p->count; i++) {
        rsm_env *env = p->sharers[i].env;
        env->log = log_of_thread;
        env->progress = is_stopped;  /* the caller's thread alone calls the caller's */
        env->log_data = env->progress_data = p;
    }
}

resmap_status rsm_share(rsm_env *env, const rsm_work *work, rsm_sharer *sharers, size_t count)
{
    rsm_env caller = *env;           /* a sharer may have `env` itself, and leave its errors there */
    pool p = {.env = &caller, .work = work, .sharers = sharers, .count = count, .culprit = &caller};
    thread *threads;
    resmap_status status;

    if (count == 1) return run_alone(env, work, &sharers[0]);
    threads = calloc(count, sizeof *threads);
    p.states = calloc(work->pieces, sizeof *p.states);
    if (threads == NULL || p.states == NULL) {
        status = rsm_no_memory(env, count * sizeof *threads + work->pieces * sizeof *p.states);
        goto done;
    }
    for (size_t i = 0; i < work->pieces; i++) {
        p.states[i] = work->rank(work->data, 0, i) < 0 ? DONE : WAITING;
        p.left += p.states[i] == WAITING;
    }
    pthread_mutex_init(&p.lock, NULL);
    pthread_cond_init(&p.changed, NULL);
    lead(&p);
    status = run_threads(&p, threads);
    *env = caller;
    for (size_t i = 0; i < count; i++)
        if (sharers[i].env != env) rsm_env_follow(sharers[i].env, env);
    pthread_cond_destroy(&p.changed);
    pthread_mutex_destroy(&p.lock);
done:
    free(threads);
    free(p.states);
    return status;
}
