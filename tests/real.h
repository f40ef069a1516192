/* For tests that stand in for calls of the driver: the functions behind them. Wants _GNU_SOURCE. */
#ifndef TESTS_REAL_H
#define TESTS_REAL_H

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

static inline void *real(const char *name)
{
    void *function = dlsym(RTLD_NEXT, name);

    if (function == NULL) {
        fprintf(stderr, "%s is missing\n", name);
        abort();
    }
    return function;
}

#endif
