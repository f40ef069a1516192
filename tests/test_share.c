/* Sharing work among sharers, without any device: who takes what, what happens when some of them fail, how
 * it is stopped. */
#include <check.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/share.h"
#include "tests/run.h"

enum { SHARERS = 4, PIECES = 40 };

typedef struct job {
    rsm_env env, own[SHARERS];
    rsm_sharer sharers[SHARERS];
    size_t count;
    /* Set by tests. */
    long microseconds[SHARERS];  /* that a piece takes */
    long slow_start;             /* and how much longer sharer 0 takes for its first */
    int polls_on;                /* a piece takes until its sharer is told to stop */
    size_t fails_at[SHARERS];    /* after so many pieces; 0: never */
    resmap_status failure;
    int by_owner;                /* piece i is sharer i % count's first */
    int cancel_after;            /* so many reports of progress; 0: never */
    double units;                /* of a piece */
    /* Written without a lock: each only by one thread at a time, or the sharing is wrong and
     * -fsanitize=thread says so. */
    size_t taken[SHARERS];
    int times[PIECES], by[PIECES];
    size_t last_done, reports, logs;
    char last_log[128];
    pthread_t caller;
} job;

static resmap_status run(void *data, size_t sharer, size_t piece)
{
    job *j = data;
    struct timespec time = {0, 1000 * j->microseconds[sharer]};

    if (sharer == 0 && j->sharers[0].done == 0) time.tv_nsec += 1000 * j->slow_start;
    nanosleep(&time, NULL);
    if (j->fails_at[sharer] > 0 && ++j->taken[sharer] > j->fails_at[sharer])
        return rsm_fail(j->sharers[sharer].env, j->failure, "sharer %zu: broken", sharer);
    while (j->polls_on) {
        RSM_TRY(rsm_poll(j->sharers[sharer].env));
        nanosleep(&time, NULL);
    }
    /* The callback, which is for the caller's thread, is not asked; only whether all is to stop. */
    if (j->count > 1) RSM_TRY(rsm_poll(j->sharers[sharer].env));
    j->times[piece]++;
    j->by[piece] = (int)sharer;
    rsm_log(j->sharers[sharer].env, RESMAP_LOG_DEBUG, "piece %zu", piece);
    return RESMAP_OK;
}

/* Piece 7 is not to be done. */
static int rank(const void *data, size_t sharer, size_t piece)
{
    const job *j = data;

    if (piece == 7) return -1;
    return j->by_owner && piece % j->count != sharer;
}

static int progress(void *data, const char *what, size_t done, size_t total)
{
    job *j = data;

    ck_assert_str_eq(what, "work");
    ck_assert_uint_eq(total, PIECES);
    ck_assert_uint_ge(done, j->last_done);
    ck_assert_uint_le(done, PIECES);
    ck_assert(pthread_equal(pthread_self(), j->caller));
    j->last_done = done;
    j->reports++;
    return j->cancel_after > 0 && j->reports >= (size_t)j->cancel_after;
}

static void log_line(void *data, resmap_log_level level, const char *text)
{
    job *j = data;

    j->logs++;
    if (level == RESMAP_LOG_WARNING) strncpy(j->last_log, text, sizeof j->last_log - 1);
}

static void begin(job *j, size_t count)
{
    memset(j, 0, sizeof *j);
    j->count = count;
    j->caller = pthread_self();
    j->failure = RESMAP_DEVICE_FAILED;
    j->units = 1;
    j->env.log = log_line;
    j->env.progress = progress;
    j->env.log_data = j->env.progress_data = j;
    for (size_t i = 0; i < count; i++) {
        j->sharers[i].env = count == 1 ? &j->env : &j->own[i];
        if (count > 1) rsm_env_follow(&j->own[i], &j->env);
    }
}

static resmap_status share(job *j)
{
    const rsm_work work = {"work", PIECES, j->units, run, rank, j};

    return rsm_share(&j->env, &work, j->sharers, j->count);
}

/* As `begin`, sharer 0 having the caller's env. */
static void begin_with_caller(job *j, size_t count)
{
    begin(j, count);
    j->sharers[0].env = &j->env;
}

/* Every piece once, but for number 7; the counts add up. */
static void check_done(const job *j)
{
    size_t done = 0;

    for (int i = 0; i < PIECES; i++)
        ck_assert_msg(j->times[i] == (i != 7), "piece %d: %d times", i, j->times[i]);
    for (size_t i = 0; i < j->count; i++) done += j->sharers[i].done;
    ck_assert_uint_eq(done, PIECES - 1);
}

START_TEST(everything_once)
{
    static job j;

    for (size_t count = 1; count <= SHARERS; count++) {
        begin(&j, count);
        ck_assert_int_eq(share(&j), RESMAP_OK);
        check_done(&j);
        ck_assert_uint_eq(j.logs, PIECES - 1);
        ck_assert_uint_gt(j.reports, 0);
        ck_assert_uint_eq(j.last_done, PIECES);
        /* Afterwards they log and report to the caller as before. */
        rsm_log(j.sharers[count - 1].env, RESMAP_LOG_WARNING, "after");
        ck_assert_str_eq(j.last_log, "after");
    }
}
END_TEST

/* One of them has the caller's own env: its errors and its log are told apart all the same, and afterwards
 * the caller's env is as it was. */
START_TEST(with_the_callers_env)
{
    static job j;

    begin_with_caller(&j, 3);
    j.microseconds[0] = j.microseconds[1] = j.microseconds[2] = 300;
    ck_assert_int_eq(share(&j), RESMAP_OK);
    check_done(&j);
    ck_assert_uint_eq(j.logs, PIECES - 1);
    ck_assert_uint_eq(j.last_done, PIECES);
    ck_assert(j.env.log == log_line && j.env.progress == progress);
    ck_assert(j.env.log_data == &j && j.env.progress_data == &j);
    for (size_t broken = 0; broken < 2; broken++) {
        begin_with_caller(&j, 2);
        j.microseconds[1 - broken] = 5000;
        j.fails_at[broken] = 1;
        ck_assert_int_eq(share(&j), RESMAP_OK);
        check_done(&j);
        ck_assert(j.sharers[broken].lost && !j.sharers[1 - broken].lost);
        ck_assert_ptr_nonnull(strstr(j.last_log, "broken; its work goes to others"));
        begin_with_caller(&j, 2);
        j.microseconds[1 - broken] = 5000;
        j.fails_at[broken] = 1;
        j.failure = RESMAP_NO_MEMORY;
        ck_assert_int_eq(share(&j), RESMAP_NO_MEMORY);
        ck_assert_str_eq(j.env.error, broken ? "sharer 1: broken" : "sharer 0: broken");
    }
    begin_with_caller(&j, 2);
    j.microseconds[0] = j.microseconds[1] = 2000;
    j.cancel_after = 3;
    ck_assert_int_eq(share(&j), RESMAP_CANCELLED);
    ck_assert_str_eq(j.env.error, "work: cancelled");
}
END_TEST

/* A stop is seen amid a piece. */
START_TEST(cancelled_amid_a_piece)
{
    static job j;

    begin_with_caller(&j, 2);
    j.microseconds[0] = j.microseconds[1] = 1000;
    j.polls_on = 1;
    j.cancel_after = 2;
    ck_assert_int_eq(share(&j), RESMAP_CANCELLED);
    ck_assert_str_eq(j.env.error, "work: cancelled");
    ck_assert_uint_eq(j.last_done, 1);           /* number 7 */
}
END_TEST

START_TEST(quick_ones_take_more)
{
    static job j;

    begin(&j, 2);
    j.microseconds[0] = 40000;
    j.microseconds[1] = 1000;
    ck_assert_int_eq(share(&j), RESMAP_OK);
    check_done(&j);
    ck_assert_uint_gt(j.sharers[1].done, 4 * j.sharers[0].done);
}
END_TEST

/* Building kernels for its first piece does not make a device a slow one. */
START_TEST(slow_start)
{
    static job j;

    begin(&j, 2);
    j.microseconds[0] = j.microseconds[1] = 10000;
    j.slow_start = 60000;
    ck_assert_int_eq(share(&j), RESMAP_OK);
    check_done(&j);
    ck_assert_uint_gt(j.sharers[0].done, 2);
}
END_TEST

/* With pieces of one's own there is work for both; who has none left takes the other's. */
START_TEST(own_pieces_first)
{
    static job j;
    size_t stolen = 0;

    begin(&j, 2);
    j.by_owner = 1;
    j.microseconds[0] = 20000;
    j.microseconds[1] = 1000;
    ck_assert_int_eq(share(&j), RESMAP_OK);
    check_done(&j);
    for (int i = 0; i < PIECES; i++) {
        if (i == 7) continue;
        if (i % 2 == 1) ck_assert_int_eq(j.by[i], 1);
        stolen += i % 2 == 0 && j.by[i] == 1;
    }
    ck_assert_uint_gt(stolen, 0);
}
END_TEST

START_TEST(others_step_in)
{
    static job j;

    begin(&j, 3);
    for (int i = 0; i < 3; i++) j.microseconds[i] = 500;
    j.fails_at[0] = 3;
    j.fails_at[2] = 1;
    ck_assert_int_eq(share(&j), RESMAP_OK);
    check_done(&j);
    ck_assert(j.sharers[0].lost && !j.sharers[1].lost && j.sharers[2].lost);
    ck_assert_uint_eq(j.sharers[0].done, 3);
    ck_assert_uint_eq(j.sharers[2].done, 1);
    ck_assert_ptr_nonnull(strstr(j.last_log, "broken; its work goes to others"));
    /* Lost ones stay away from the next work. */
    memset(j.times, 0, sizeof j.times);
    j.last_done = 0;
    ck_assert_int_eq(share(&j), RESMAP_OK);
    ck_assert_uint_eq(j.sharers[0].done, 3);
    for (int i = 0; i < PIECES; i++) ck_assert_int_eq(j.times[i], i != 7);
}
END_TEST

START_TEST(all_fail)
{
    static job j;

    begin(&j, 2);
    j.fails_at[0] = 5;
    j.fails_at[1] = 2;
    ck_assert_int_eq(share(&j), RESMAP_DEVICE_FAILED);
    ck_assert_ptr_nonnull(strstr(j.env.error, "broken"));
    ck_assert(j.sharers[0].lost && j.sharers[1].lost);
    /* Nobody to start with. */
    ck_assert_int_eq(share(&j), RESMAP_INTERNAL);
}
END_TEST

/* The last one left of several: what it says reaches the caller. */
START_TEST(one_left)
{
    static job j;

    begin(&j, 2);
    j.count = 1;
    j.fails_at[0] = 2;
    snprintf(j.env.error, sizeof j.env.error, "sharer 1: left out before");
    ck_assert_int_eq(share(&j), RESMAP_DEVICE_FAILED);
    ck_assert_str_eq(j.env.error, "sharer 0: broken");
}
END_TEST

/* What a sharer is known to take is for a unit, so that pieces of another size later on can be compared. */
START_TEST(units)
{
    static job j;

    begin(&j, 2);
    j.microseconds[0] = j.microseconds[1] = 8000;
    j.units = 4;
    ck_assert_int_eq(share(&j), RESMAP_OK);
    for (int i = 0; i < 2; i++) ck_assert(j.sharers[i].done == 0 || (j.sharers[i].quickest >= 0.002 && j.sharers[i].quickest < 0.008));
    ck_assert(j.sharers[0].done + j.sharers[1].done == PIECES - 1);
}
END_TEST

/* What is no device's fault would fail everywhere. */
START_TEST(hopeless_failure)
{
    static job j;
    size_t done = 0;

    begin(&j, 2);
    j.microseconds[0] = j.microseconds[1] = 1000;
    j.fails_at[0] = 1;
    j.failure = RESMAP_NO_MEMORY;
    ck_assert_int_eq(share(&j), RESMAP_NO_MEMORY);
    ck_assert_str_eq(j.env.error, "sharer 0: broken");
    ck_assert(!j.sharers[0].lost);
    for (int i = 0; i < PIECES; i++) done += (size_t)j.times[i];
    ck_assert_uint_lt(done, PIECES - 1);
}
END_TEST

START_TEST(cancelled)
{
    static job j;

    for (size_t count = 1; count <= 2; count++) {
        begin(&j, count);
        j.microseconds[0] = j.microseconds[1] = 2000;
        j.cancel_after = 3;
        ck_assert_int_eq(share(&j), RESMAP_CANCELLED);
        ck_assert_str_eq(j.env.error, "work: cancelled");
        ck_assert_uint_lt(j.last_done, PIECES);
    }
}
END_TEST

START_TEST(worth)
{
    /* The last has not begun. */
    rsm_sharer s[4] = {{NULL, 0, 10, 1}, {NULL, 0, 1, 10}, {NULL, 0, 10, 1.2}, {NULL, 0, 0, 0}};

    ck_assert(rsm_share_worth(s, 1, 0, 1));
    for (size_t left = 1; left < 100; left++) {
        ck_assert(rsm_share_worth(s, 4, 0, left));       /* the quickest always */
        ck_assert(rsm_share_worth(s, 4, 2, left));       /* the first is free and done with one in 1.5 s */
        ck_assert(rsm_share_worth(s, 4, 3, left));
    }
    ck_assert(!rsm_share_worth(s, 2, 1, 1));             /* the quick one does 9 in less than 10 s */
    ck_assert(!rsm_share_worth(s, 2, 1, 9));
    ck_assert(rsm_share_worth(s, 2, 1, 10));
    s[0].lost = 1;
    ck_assert(rsm_share_worth(s, 2, 1, 1));              /* nobody else is left */
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("share");
    TCase *tests = tcase_create("share");

    tcase_add_test(tests, everything_once);
    tcase_add_test(tests, with_the_callers_env);
    tcase_add_test(tests, cancelled_amid_a_piece);
    tcase_add_test(tests, quick_ones_take_more);
    tcase_add_test(tests, slow_start);
    tcase_add_test(tests, own_pieces_first);
    tcase_add_test(tests, others_step_in);
    tcase_add_test(tests, all_fail);
    tcase_add_test(tests, one_left);
    tcase_add_test(tests, units);
    tcase_add_test(tests, hopeless_failure);
    tcase_add_test(tests, cancelled);
    tcase_add_test(tests, worth);
    suite_add_tcase(suite, tests);
    return run_host_suite(suite) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
