/* A folder of their own for tests that write files. */
#ifndef TESTS_SCRATCH_H
#define TESTS_SCRATCH_H

#include <stdio.h>
#include <stdlib.h>

/* Makes a folder under TMPDIR, or /tmp, and writes its path, which a test removes; 0 where that fails. */
static inline int make_scratch(char folder[256])
{
    const char *base = getenv("TMPDIR");

    if (snprintf(folder, 256, "%s/resmap-test-XXXXXX", base && *base ? base : "/tmp") >= 256) return 0;
    return mkdtemp(folder) != NULL;
}

#endif
