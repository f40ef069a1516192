#include "core/env.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "config.h"

const char *resmap_version(void)
{
    return PACKAGE_VERSION;
}

/* One line of text: file names and driver messages may carry line breaks and escape codes. */
static void make_one_line(char *text)
{
    for (unsigned char *c = (unsigned char *)text; *c; c++)
        if (*c < 0x20 || *c == 0x7f) *c = ' ';
    size_t length = strlen(text);
    while (length > 0 && text[length - 1] == ' ') text[--length] = '\0';
}

resmap_status rsm_fail(rsm_env *env, resmap_status status, const char *format, ...)
{
    /* The old text may be among the arguments. */
    char text[sizeof env->error];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    make_one_line(text);
    memcpy(env->error, text, sizeof text);
    return status;
}

resmap_status rsm_no_memory(rsm_env *env, size_t bytes)
{
    if (bytes == 0)
        return rsm_fail(env, RESMAP_NO_MEMORY, "memory: more bytes asked for than can be counted");
    return rsm_fail(env, RESMAP_NO_MEMORY, "memory: no %zu bytes to be had", bytes);
}

void rsm_log(rsm_env *env, resmap_log_level level, const char *format, ...)
{
    if (!env->log) return;
    char text[sizeof env->error];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    make_one_line(text);
    env->log(env->log_data, level, text);
}

resmap_status rsm_progress(rsm_env *env, const char *what, size_t done, size_t total)
{
    if (!env->progress) return RESMAP_OK;
    snprintf(env->what, sizeof env->what, "%s", what);
    env->done = done;
    env->total = total;
    if (env->progress(env->progress_data, what, done, total) != 0)
        return rsm_fail(env, RESMAP_CANCELLED, "%s: cancelled", what);
    return RESMAP_OK;
}

static void pass_log(void *leader, resmap_log_level level, const char *text)
{
    rsm_log(leader, level, "%s", text);
}

static int pass_progress(void *leader, const char *what, size_t done, size_t total)
{
    return rsm_progress(leader, what, done, total) != RESMAP_OK;
}

resmap_status rsm_poll(rsm_env *env)
{
    const rsm_env *told = env->progress == pass_progress ? env->progress_data : env;
    char what[sizeof told->what];
    snprintf(what, sizeof what, "%s", told->what[0] ? told->what : "begin");
    return rsm_progress(env, what, told->done, told->total);
}

void rsm_env_follow(rsm_env *env, rsm_env *leader)
{
    env->log = pass_log;
    env->progress = pass_progress;
    env->log_data = env->progress_data = leader;
}

size_t rsm_bytes(size_t n, size_t size)
{
    return size != 0 && n > SIZE_MAX / size ? 0 : n * size;
}

double rsm_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

char *rsm_strdup(const char *text)
{
    size_t size = strlen(text) + 1;
    char *copy = malloc(size);
    if (copy) memcpy(copy, text, size);
    return copy;
}

char *rsm_format(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(NULL, 0, format, arguments);
    va_end(arguments);
    if (length < 0) return NULL;
    char *text = malloc((size_t)length + 1);
    if (!text) return NULL;
    va_start(arguments, format);
    vsnprintf(text, (size_t)length + 1, format, arguments);
    va_end(arguments);
    return text;
}
