/* The end of every test program that opens OpenCL devices. */
#ifndef TESTS_RUN_H
#define TESTS_RUN_H

#include <check.h>

/* Runs a suite in this process, since OpenCL does not survive fork(), and frees it; gives how many tests failed. */
static inline int run_suite(Suite *suite)
{
    SRunner *runner = srunner_create(suite);
    int failed;

    srunner_set_fork_status(runner, CK_NOFORK);
    srunner_run_all(runner, CK_ENV);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed;
}

#endif
