/* A folder of their own for tests that write files. */
#ifndef TESTS_SCRATCH_H
#define TESTS_SCRATCH_H

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Makes a folder under TMPDIR, or /tmp, and writes its path, which a test removes; 0 where that fails. */
static inline int make_scratch(char folder[256])
{
    const char *base = getenv("TMPDIR");

    if (snprintf(folder, 256, "%s/resmap-test-XXXXXX", base && *base ? base : "/tmp") >= 256) return 0;
    return mkdtemp(folder) != NULL;
}

/* How many files lie in the folder; removes them. */
static inline int clean_scratch(const char *folder)
{
    int count = 0;
    DIR *dir = opendir(folder);

    if (!dir) exit(99);          /* called outside tests, too, where Check's own words are not allowed */
    for (struct dirent *entry; (entry = readdir(dir));) {
        char name[600];

        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        snprintf(name, sizeof name, "%s/%s", folder, entry->d_name);
        if (unlink(name) != 0) rmdir(name);
        count++;
    }
    closedir(dir);
    return count;
}

static inline void remove_scratch(const char *folder)
{
    clean_scratch(folder);
    rmdir(folder);
}

/* FOLDER/name; a few may be in use at a time. */
static inline const char *in_scratch(const char *folder, const char *name)
{
    static char paths[4][600];
    static int next;

    next = (next + 1) % 4;
    snprintf(paths[next], sizeof paths[next], "%s/%s", folder, name);
    return paths[next];
}

#endif
