/* The end of every test program. */
#ifndef TESTS_RUN_H
#define TESTS_RUN_H

#include <check.h>

/* Runs a suite and frees it; gives how many tests failed. */
static inline int run_forking(Suite *suite, enum fork_status how)
{
    SRunner *runner = srunner_create(suite);
    int failed;

    srunner_set_fork_status(runner, how);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}

/* Of a program that opens OpenCL devices: in this process, since OpenCL does not survive fork(). */
static inline int run_suite(Suite *suite)
{
    return run_forking(suite, CK_NOFORK);
}

/* Of any other: a process a test, unless $CK_FORK says no. */
static inline int run_host_suite(Suite *suite)
{
    return run_forking(suite, CK_FORK_GETENV);
}

#endif
