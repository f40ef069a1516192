/* What every layer needs to report: the text of the last error, the log, progress and cancelling. One per
 * context; used by one thread at a time. */
#ifndef RSM_ENV_H
#define RSM_ENV_H

#include "resmap.h"

typedef struct rsm_env {
    char error[5120];            /* a reason after the longest path */
    resmap_log_fn log;
    void *log_data;
    resmap_progress_fn progress;
    void *progress_data;
    char what[64];               /* how far it was last, for rsm_poll */
    size_t done, total;
    int cache_refused;           /* a warning that was given */
} rsm_env;

#if defined(__GNUC__)
#define RSM_PRINTF(f, a) __attribute__((format(printf, f, a)))
#else
#define RSM_PRINTF(f, a)
#endif

/* Keeps "WHAT: WHY" as the context's error (control characters and line breaks made spaces) and returns
 * `status`:
 *     return rsm_fail(env, RESMAP_BAD_FILE, "%s: not a NIfTI file", path); */
resmap_status rsm_fail(rsm_env *env, resmap_status status, const char *format, ...) RSM_PRINTF(3, 4);
/* rsm_fail for a failed malloc of `bytes`. */
resmap_status rsm_no_memory(rsm_env *env, size_t bytes);
void rsm_log(rsm_env *env, resmap_log_level level, const char *format, ...) RSM_PRINTF(3, 4);
/* Tells the caller's progress callback; RESMAP_CANCELLED when it wants to stop, else RESMAP_OK. */
resmap_status rsm_progress(rsm_env *env, const char *what, size_t done, size_t total);
/* Asks the callback whether to stop, by repeating what it was told last: for amid a piece of work that may take long. */
resmap_status rsm_poll(rsm_env *env);

/* Makes `env` the env of something that works for `leader`'s owner: it has errors of its own, and passes
 * what it logs and how far it is on to `leader`, which must outlive it. */
void rsm_env_follow(rsm_env *env, rsm_env *leader);

/* Leaves the function with the status of a failed call. */
#define RSM_TRY(call)                                       \
    do {                                                    \
        resmap_status rsm_try_status = (call);              \
        if (rsm_try_status != RESMAP_OK) return rsm_try_status; \
    } while (0)
/* The same for functions that keep `status` and clean up at `done`. */
#define RSM_CHECK(call)                                     \
    do {                                                    \
        status = (call);                                    \
        if (status != RESMAP_OK) goto done;                 \
    } while (0)

/* n * size, or 0 when that overflows (malloc-like callers then fail). */
size_t rsm_bytes(size_t n, size_t size);
/* Seconds of a monotonic clock. */
double rsm_seconds(void);
/* strdup and a printf into fresh memory; NULL when memory runs out. */
char *rsm_strdup(const char *text);
char *rsm_format(const char *format, ...) RSM_PRINTF(1, 2);
/* $RESMAP_CACHE ("off" or a folder), else $XDG_CACHE_HOME/resmap, else $HOME/.cache/resmap, made with mode
 * 0700; refused (NULL, with a log line) when it belongs to somebody else, others may write there, or HOME is
 * hidden (setuid). Fresh memory. */
char *rsm_cache_folder(rsm_env *env);
/* SHA-256 of `size` bytes as 64 lower-case hex digits and a NUL. */
void rsm_sha256_hex(const void *bytes, size_t size, char hex[65]);

#endif
