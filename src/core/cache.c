#include "core/env.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The folder's path, whether or not it exists; NULL: no cache (for a reason that is logged, or because it is
 * off). */
static char *cache_path(rsm_env *env)
{
    /* In a setuid program the environment is the attacker's. */
    if (getuid() != geteuid() || getgid() != getegid()) {
        rsm_log(env, RESMAP_LOG_INFO, "cache: off in setuid programs");
        return NULL;
    }
    const char *own = getenv("RESMAP_CACHE"), *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    char *path = NULL;
    if (own && *own) {
        if (strcmp(own, "off") == 0) return NULL;
        path = rsm_strdup(own);
    } else if (xdg && *xdg == '/') {   /* the XDG specification: relative paths are to be ignored */
        path = rsm_format("%s/resmap", xdg);
    } else if (home && *home == '/') {
        path = rsm_format("%s/.cache/resmap", home);
    } else {
        rsm_log(env, RESMAP_LOG_INFO, "cache: off, neither HOME nor XDG_CACHE_HOME names a folder");
        return NULL;
    }
    if (!path) rsm_log(env, RESMAP_LOG_WARNING, "cache: out of memory");
    return path;
}

/* mkdir -p with mode 0700; 0 or errno. */
static int make_folders(char *path)
{
    for (char *slash = path + 1; ; slash++) {
        if (*slash != '/' && *slash != '\0') continue;
        char kept = *slash;
        *slash = '\0';
        int failed = mkdir(path, 0700) != 0 && errno != EEXIST ? errno : 0;
        /* Folders above may exist without our being allowed to make them (EROFS, EACCES). */
        struct stat info;
        if (failed && stat(path, &info) == 0) failed = 0;
        *slash = kept;
        if (failed || kept == '\0') return failed;
    }
}

char *rsm_cache_folder(rsm_env *env)
{
    char *path = cache_path(env);
    if (!path) return NULL;
    struct stat info;
    const char *why = NULL;
    int failed = make_folders(path);
    if (failed) why = strerror(failed);
    else if (stat(path, &info) != 0) why = strerror(errno);
    else if (!S_ISDIR(info.st_mode)) why = "not a folder";
    else if (info.st_uid != geteuid()) why = "belongs to another user";
    else if (info.st_mode & (S_IWGRP | S_IWOTH)) why = "others may write there";
    if (!why) return path;
    if (!env->cache_refused) rsm_log(env, RESMAP_LOG_WARNING, "cache: %s is not used: %s", path, why);
    env->cache_refused = 1;          /* said once */
    free(path);
    return NULL;
}
