/* Tunings on disk: a text file a device in the folder "tuning" of the cache folder, to be read, edited and
 * deleted by people. It is believed only when every line is understood and it was made on this device, with this
 * driver and these kernels. What a device cannot do (lines "fails") is kept apart from what it is fastest with
 * (lines "use", and for networks of one shape "precision" and "workers"). */
#include "device/device_private.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "device/kernels.h"

#define FIRST_LINE "resmap tuning 3"
/* 1 knew no preferences, 2 no workers. */
static const char *const first_lines[] = {FIRST_LINE, "resmap tuning 2", "resmap tuning 1"};
enum { MOST_BYTES = 1 << 16 };

struct rsm_tuning_file {
    rsm_device *device;
    int lock;                    /* of the folder: one process tunes at a time, or none measures well */
    FILE *stream;                /* the new file under a temporary name */
    char *temporary;
};

/* ---- Keys ---- */

/* 16 hex digits over all kernels: a variant may mean something else in others. */
static resmap_status kernels_key(rsm_env *env, char key[65])
{
    const char *texts[64];
    size_t count = 0, length;
    for (const char *name; count < 64 && (name = rsm_kernel_program(count)) != NULL;)
        texts[count++] = rsm_kernel_source(name, &length);
    RSM_TRY(rsm_binaries_key(env, texts, count, key));
    key[16] = '\0';
    return RESMAP_OK;
}

/* As many units as the driver is given: those of a part of a CPU are another device. */
static char *device_key(const rsm_device *device)
{
    return rsm_format("%s; %d units", device->identity, device->info.compute_units);
}

/* "pthread-Intel-R-Xeon-R-0123456789abcdef.txt"; fresh memory. */
static char *file_name(const rsm_device *device, const char *key)
{
    char name[48], hex[65];
    size_t length = 0;
    /* Parts of a device that have as many units are the same. */
    const char *end = strstr(device->info.name, ", part ");
    for (const char *c = device->info.name; *c && c != end && length < sizeof name - 1; c++) {
        if (isalnum((unsigned char)*c)) name[length++] = *c;
        else if (length > 0 && name[length - 1] != '-') name[length++] = '-';
    }
    name[length] = '\0';
    rsm_sha256_hex(key, strlen(key), hex);
    return rsm_format("%s-%.16s.txt", length > 0 ? name : "device", hex);
}

/* ---- Reading ---- */

/* The whole file with a NUL behind it, or NULL and *why; *why "" : there is none. */
static char *slurp(const char *path, const char **why)
{
    struct stat status;
    char *text = NULL;
    ssize_t got = -1;
    int file = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    *why = "";
    if (file < 0) {
        if (errno != ENOENT && errno != ENOTDIR) *why = strerror(errno);
        return NULL;
    }
    if (fstat(file, &status) != 0) *why = strerror(errno);
    else if (!S_ISREG(status.st_mode)) *why = "not a file";
    else if (status.st_uid != geteuid()) *why = "belongs to another user";
    else if (status.st_size > MOST_BYTES) *why = "too long";
    else text = malloc((size_t)status.st_size + 1);
    if (text) {
        got = read(file, text, (size_t)status.st_size);
        if (got == (ssize_t)status.st_size) {
            text[got] = '\0';
        } else {
            free(text);
            text = NULL;
        }
    }
    close(file);
    if (!text && !(*why)[0]) *why = "cannot be read";
    if (text && strlen(text) != (size_t)got) {
        free(text);
        text = NULL;
        *why = "not text";
    }
    return text;
}

/* The operation `name` and its variant, *variant NULL for "default"; 0: there is none, or not for such devices. */
static int find(const rsm_device *device, const char *name, const char *variant_name, int *what,
                const rsm_variant **variant)
{
    for (*what = 0; *what < RSM_TUNABLES; ++*what)
        if (strcmp(rsm_tunable_name((rsm_tunable)*what), name) == 0) break;
    if (*what == RSM_TUNABLES) return 0;
    *variant = NULL;
    if (strcmp(variant_name, "default") == 0) return 1;
    size_t count;
    const rsm_variant *variants = rsm_variants((rsm_tunable)*what, &count);
    for (size_t i = 0; i < count; i++)
        if (strcmp(variants[i].name, variant_name) == 0 && rsm_variant_suits(device, &variants[i])) {
            *variant = &variants[i];
            return 1;
        }
    return 0;
}

/* What parsing has found so far. */
typedef struct reading {
    const rsm_device *device;
    const char *key, *kernels;
    const rsm_variant *tuned[RSM_TUNABLES];
    int seen[RSM_TUNABLES], key_seen, kernels_seen, ended;
    rsm_preference preferences[RSM_PREFERENCES];
    size_t preference_count;
    int stale;                   /* 1: nobody's fault, resmap has changed */
    char made[1024];
} reading;

static size_t find_preference(const rsm_preference *preferences, size_t count, const char *network)
{
    size_t i = 0;
    while (i < count && strcmp(preferences[i].network, network) != 0) i++;
    return i;
}

/* The preference of a network, perhaps a new one; NULL: there is no room. */
static rsm_preference *preference_of(reading *r, const char *network)
{
    size_t i = find_preference(r->preferences, r->preference_count, network);
    if (i == RSM_PREFERENCES) return NULL;
    if (i == r->preference_count) {
        memset(&r->preferences[i], 0, sizeof r->preferences[i]);
        snprintf(r->preferences[i].network, sizeof r->preferences[i].network, "%s", network);
        r->preference_count++;
    }
    return &r->preferences[i];
}

/* "NETWORK fp16 131%" or "NETWORK 2 112%" */
static const char *take_preference(reading *r, const char *text, int about_workers)
{
    rsm_preference *p;
    char network[128], what[8], percent_sign, more;
    int percent;
    /* Whole numbers: the decimal point depends on the locale. */
    if (sscanf(text, "%127s %7s %5d%c%c", network, what, &percent, &percent_sign, &more) != 4
        || percent_sign != '%' || percent <= 0) return "not understood";
    p = preference_of(r, network);
    if (!p) return "too many networks";
    if (about_workers) {
        if (what[0] < '1' || what[0] > '0' + RSM_MOST_WORKERS || what[1] != '\0') return "no such number";
        if (p->workers_percent > 0) return "a network twice";
        p->workers = what[0] - '0';
        p->workers_percent = percent;
    } else {
        if (strcmp(what, "fp16") != 0 && strcmp(what, "fp32") != 0) return "no such precision";
        if (p->fp16_percent > 0) return "a network twice";
        p->storage = strcmp(what, "fp16") == 0 ? RSM_FP16 : RSM_FP32;
        p->fp16_percent = percent;
    }
    return NULL;
}

static int is_first_line(const char *line)
{
    for (size_t i = 0; i < sizeof first_lines / sizeof first_lines[0]; i++)
        if (strcmp(line, first_lines[i]) == 0) return 1;
    return 0;
}

/* One line after the first; NULL, or what is wrong with it. */
static const char *take_line(reading *r, char *line)
{
    int what;
    const rsm_variant *variant;
    char name[64], variant_name[64];
    if (line[0] == '#' || line[0] == '\0') return NULL;
    if (r->ended) return "more after the end";
    if (strcmp(line, "end") == 0) {
        r->ended = 1;
    } else if (strncmp(line, "device ", 7) == 0) {
        if (strcmp(line + 7, r->key) != 0) return "made on another device, or with another driver";
        r->key_seen = 1;
    } else if (strncmp(line, "kernels ", 8) == 0) {
        r->stale = strcmp(line + 8, r->kernels) != 0;
        if (r->stale) return "made with other kernels";
        r->kernels_seen = 1;
    } else if (strncmp(line, "made ", 5) == 0) {
        snprintf(r->made, sizeof r->made, "%s", line + 5);
    } else if (sscanf(line, "use %63s %63s", name, variant_name) == 2) {
        if (!find(r->device, name, variant_name, &what, &variant)) return "no such operation or variant here";
        if (r->seen[what]) return "an operation twice";
        r->seen[what] = 1;
        r->tuned[what] = variant;
    } else if (strncmp(line, "precision ", 10) == 0) {
        return take_preference(r, line + 10, 0);
    } else if (strncmp(line, "workers ", 8) == 0) {
        return take_preference(r, line + 8, 1);
    } else if (sscanf(line, "fails %63s %63s", name, variant_name) == 2) {
        if (!find(r->device, name, variant_name, &what, &variant)) return "no such operation or variant here";
    } else {
        return "not understood";
    }
    return NULL;
}

/* Reads the text, which it changes. NULL, or what is wrong; *line: where (0: nowhere). */
static const char *parse(reading *r, char *text, int *line)
{
    *line = 0;
    while (*text) {
        char *end = text + strcspn(text, "\n");
        const char *wrong;
        /* A line cut short may still make sense. */
        if (*end == '\0') return "cut short";
        *end = '\0';
        ++*line;
        if (*line > 1) {
            wrong = take_line(r, text);
        } else {
            wrong = is_first_line(text) ? NULL : "not a tuning file of this version";
            r->stale = wrong && strncmp(text, "resmap tuning ", 14) == 0;
        }
        if (wrong) return wrong;
        text = end + 1;
    }
    *line = 0;
    if (!r->ended) return "cut short";
    if (!r->key_seen || !r->kernels_seen) return "does not say what it was made on";
    for (int i = 0; i < RSM_TUNABLES; i++)
        if (!r->seen[i]) return "an operation is missing";
    return NULL;
}

static void set_state(rsm_device *device, char *state)
{
    free(device->tuning_state);
    device->tuning_state = state;
}

/* Takes what is in the file; its absence and its faults are no errors. told: faults that need not be told again. */
static void read_file(rsm_device *device, const char *key, const char *kernels, const char *told)
{
    const char *wrong;
    char *text = slurp(device->tuning_path, &wrong);
    int line = 0;
    reading r = {.device = device, .key = key, .kernels = kernels};
    if (text) wrong = parse(&r, text, &line);
    free(text);
    if (!wrong) {
        memcpy(device->tuned, r.tuned, sizeof device->tuned);
        memcpy(device->preferences, r.preferences, sizeof device->preferences);
        device->preference_count = r.preference_count;
        device->tuning_missing = 0;
        set_state(device, rsm_format("%s%s%s", device->tuning_path, r.made[0] ? ": " : "", r.made));
        rsm_log(device->env, strstr(r.made, "by rule, for tuning") ? RESMAP_LOG_INFO : RESMAP_LOG_DEBUG, "tuning: %s",
                device->tuning_state ? device->tuning_state : device->tuning_path);
        return;
    }
    if (!wrong[0]) return;
    if (line > 0) set_state(device, rsm_format("ignored: %s: line %d: %s", device->tuning_path, line, wrong));
    else set_state(device, rsm_format("ignored: %s: %s", device->tuning_path, wrong));
    if (device->tuning_state && strcmp(device->tuning_state, told) != 0)
        rsm_log(device->env, r.stale ? RESMAP_LOG_INFO : RESMAP_LOG_WARNING, "tuning %s",
                device->tuning_state);
}

void rsm_tuning_close(rsm_device *device)
{
    free(device->tuning_path);
    free(device->tuning_state);
    device->tuning_path = device->tuning_state = NULL;
    device->tuning_missing = 0;
}

/* told: as of read_file; not the device's own state, which is made anew. */
static resmap_status load(rsm_device *device, const char *told)
{
    static const char *const forcing[] = {"RESMAP_GEMM", "RESMAP_VECTOR"};
    const char *asked = getenv("RESMAP_TUNING");
    char kernels[65], *folder = NULL, *key = NULL, *name = NULL;
    resmap_status status = RESMAP_OK;
    rsm_tuning_close(device);
    memset(device->tuned, 0, sizeof device->tuned);
    device->preference_count = 0;
    if (device->reference) goto done;
    if (asked && strcmp(asked, "off") == 0) {
        set_state(device, rsm_strdup("off: RESMAP_TUNING says so"));
        goto done;
    }
    for (size_t i = 0; i < sizeof forcing / sizeof forcing[0]; i++)
        if (getenv(forcing[i])) {
            set_state(device, rsm_format("off: %s is set", forcing[i]));
            goto done;
        }
    folder = rsm_cache_folder(device->env);
    if (!folder) {
        set_state(device, rsm_strdup("none: no folder to keep it in"));
        goto done;
    }
    RSM_CHECK(kernels_key(device->env, kernels));
    key = device_key(device);
    name = key ? file_name(device, key) : NULL;
    device->tuning_path = name ? rsm_format("%s/tuning/%s", folder, name) : NULL;
    if (!device->tuning_path) RSM_CHECK(rsm_no_memory(device->env, strlen(folder) + 128));
    device->tuning_missing = 1;
    set_state(device, rsm_strdup("none yet"));
    read_file(device, key, kernels, told);
done:
    free(folder);
    free(key);
    free(name);
    return status;
}

resmap_status rsm_tuning_load(rsm_device *device)
{
    return load(device, "");
}

resmap_status rsm_tuning_reload(rsm_device *device)
{
    char *told = rsm_strdup(rsm_tuning_state(device));
    if (!told) return rsm_no_memory(device->env, strlen(rsm_tuning_state(device)));
    resmap_status status = load(device, told);
    free(told);
    return status;
}

const char *rsm_tuning_state(const rsm_device *device)
{
    return device->tuning_state ? device->tuning_state : "none";
}

const char *rsm_tuning_path(const rsm_device *device)
{
    return device->tuning_path;
}

int rsm_tuning_missing(const rsm_device *device)
{
    return device->tuning_missing;
}

char *rsm_tuning_choices(const rsm_device *device)
{
    char *text = rsm_strdup("");
    for (int i = 0; text && i < RSM_TUNABLES; i++) {
        char *longer;
        if (!device->tuned[i]) continue;
        longer = rsm_format("%s%s %s\n", text, rsm_tunable_name((rsm_tunable)i), device->tuned[i]->name);
        free(text);
        text = longer;
    }
    return text;
}

const rsm_preference *rsm_preferred(const rsm_device *device, const char *network)
{
    size_t i = find_preference(device->preferences, device->preference_count, network);
    return i < device->preference_count ? &device->preferences[i] : NULL;
}

/* Several only where that was measured, on GPUs too: the self-check runs alone, so it is the measuring that
 * finds out whether a driver computes rightly while two queues are busy; and few devices come to a volume
 * untuned. */
int rsm_preferred_workers(const rsm_device *device, const char *network)
{
    const rsm_preference *p = rsm_preferred(device, network);
    return p && p->workers_percent > 0 ? p->workers : 1;
}

/* ---- Writing ---- */

/* A new file, to take the place of the kept one. */
static resmap_status open_temporary(rsm_tuning_file *t)
{
    rsm_env *env = t->device->env;
    char *path = rsm_format("%s.XXXXXX", t->device->tuning_path);
    if (!path) return rsm_no_memory(env, strlen(t->device->tuning_path) + 8);
    int file = mkstemp(path);
    if (file < 0) {
        rsm_fail(env, RESMAP_IO, "%s: %s", path, strerror(errno));
        free(path);
        return RESMAP_IO;
    }
    t->temporary = path;
    t->stream = fdopen(file, "w");
    if (t->stream) return RESMAP_OK;
    close(file);
    return rsm_no_memory(env, BUFSIZ);
}

resmap_status rsm_tuning_begin(rsm_device *device, rsm_tuning_file **result)
{
    rsm_env *env = device->env;
    char *folder = NULL, *lock = NULL;
    resmap_status status = RESMAP_OK;
    rsm_tuning_file *t = calloc(1, sizeof *t);
    if (!t) return rsm_no_memory(env, sizeof *t);
    t->device = device;
    t->lock = -1;
    if (!device->tuning_path)
        RSM_CHECK(rsm_fail(env, RESMAP_IO, "tuning: cannot be kept (%s)", rsm_tuning_state(device)));
    folder = rsm_strdup(device->tuning_path);
    if (folder) *strrchr(folder, '/') = '\0';
    lock = folder ? rsm_format("%s/lock", folder) : NULL;
    if (!lock) RSM_CHECK(rsm_no_memory(env, 2 * strlen(device->tuning_path)));
    if (mkdir(folder, 0700) != 0 && errno != EEXIST)
        RSM_CHECK(rsm_fail(env, RESMAP_IO, "%s: %s", folder, strerror(errno)));
    t->lock = open(lock, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (t->lock < 0) RSM_CHECK(rsm_fail(env, RESMAP_IO, "%s: %s", lock, strerror(errno)));
    /* Some network file systems have no locks. */
    if (flock(t->lock, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK)
        RSM_CHECK(rsm_fail(env, RESMAP_IO, "tuning: another process is tuning at the moment"));
    RSM_CHECK(open_temporary(t));
done:
    free(folder);
    free(lock);
    if (status == RESMAP_OK) *result = t;
    else rsm_tuning_end(t);
    return status;
}

static void write_line(FILE *stream, const char *format, ...) RSM_PRINTF(2, 3);
static void write_line(FILE *stream, const char *format, ...)
{
    char line[4096];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    for (char *c = line; *c; c++)
        if (iscntrl((unsigned char)*c)) *c = ' ';
    fprintf(stream, "%s\n", line);
}

/* Puts what it says in the place of what was said of such networks, or last, where there is no room in the
 * place of the oldest. */
static size_t add_preference(rsm_preference *preferences, size_t count, const rsm_preference *added)
{
    size_t at = find_preference(preferences, count, added->network);
    rsm_preference merged = *added;
    if (at == RSM_PREFERENCES) {
        memmove(preferences, preferences + 1, (RSM_PREFERENCES - 1) * sizeof *preferences);
        at = --count;
    }
    if (at < count && added->fp16_percent == 0) {
        merged.storage = preferences[at].storage;
        merged.fp16_percent = preferences[at].fp16_percent;
    }
    if (at < count && added->workers_percent == 0) {
        merged.workers = preferences[at].workers;
        merged.workers_percent = preferences[at].workers_percent;
    }
    preferences[at] = merged;
    return at == count ? count + 1 : count;
}

static void write_preference(FILE *stream, const rsm_preference *p)
{
    if (p->fp16_percent > 0)
        write_line(stream, "precision %s %s %d%%", p->network, p->storage == RSM_FP16 ? "fp16" : "fp32",
                   p->fp16_percent);
    if (p->workers_percent > 0)
        write_line(stream, "workers %s %d %d%%", p->network, p->workers, p->workers_percent);
}

/* Ends the temporary file, and puts it in the place of the kept one. */
static resmap_status put_in_place(rsm_tuning_file *t)
{
    const char *path = t->device->tuning_path;
    int written = !ferror(t->stream) && fflush(t->stream) == 0 && fsync(fileno(t->stream)) == 0;
    int why = errno;
    if (fclose(t->stream) != 0 && written) {
        written = 0;
        why = errno;
    }
    t->stream = NULL;
    if (written && rename(t->temporary, path) != 0) {
        written = 0;
        why = errno;
    }
    if (!written) unlink(t->temporary);
    free(t->temporary);
    t->temporary = NULL;
    return written ? RESMAP_OK : rsm_fail(t->device->env, RESMAP_IO, "%s: %s", path, strerror(why));
}

resmap_status rsm_tuning_keep(rsm_tuning_file *t, const char *made, const rsm_preference *preference,
                              const rsm_tuning_failure *failures, size_t failure_count)
{
    rsm_device *device = t->device;
    rsm_preference preferences[RSM_PREFERENCES];
    size_t preference_count = device->preference_count;
    char kernels[65], *key = device_key(device);
    resmap_status status = kernels_key(device->env, kernels);
    memcpy(preferences, device->preferences, sizeof preferences);
    if (preference) preference_count = add_preference(preferences, preference_count, preference);
    if (status == RESMAP_OK && !key) status = rsm_no_memory(device->env, strlen(device->identity));
    if (status == RESMAP_OK && !t->stream) status = open_temporary(t);
    if (status == RESMAP_OK) {
        fprintf(t->stream, FIRST_LINE "\n"
                "# Written by resmap. The variants: see src/device/variants.c; \"default\": by rule.\n"
                "# It may be edited, and deleted: then a short tuning is made at the device's next use.\n");
        write_line(t->stream, "device %s", key);
        write_line(t->stream, "kernels %s", kernels);
        write_line(t->stream, "made %s", made);
        fprintf(t->stream, "# What was fastest.\n");
        for (int i = 0; i < RSM_TUNABLES; i++)
            write_line(t->stream, "use %s %s", rsm_tunable_name((rsm_tunable)i),
                       device->tuned[i] ? device->tuned[i]->name : "default");
        if (preference_count > 0)
            fprintf(t->stream,
                    "# For networks of one shape: what \"auto\" takes, fp16's speed, fp32's being 100%%;\n"
                    "# slices of a volume worked on side by side, that speed (of two where one is taken), one's being 100%%.\n");
        for (size_t i = 0; i < preference_count; i++) write_preference(t->stream, &preferences[i]);
        if (failure_count > 0) fprintf(t->stream, "# What the device cannot do, or does wrongly.\n");
        for (size_t i = 0; i < failure_count; i++)
            write_line(t->stream, "fails %s %s %s", rsm_tunable_name(failures[i].what),
                       failures[i].variant ? failures[i].variant->name : "default", failures[i].why);
        fprintf(t->stream, "end\n");
        status = put_in_place(t);
    }
    if (status == RESMAP_OK) {
        device->tuning_missing = 0;
        memcpy(device->preferences, preferences, sizeof preferences);
        device->preference_count = preference_count;
        set_state(device, rsm_format("%s: %s", device->tuning_path, made));
    }
    free(key);
    return status;
}

void rsm_tuning_end(rsm_tuning_file *t)
{
    if (!t) return;
    if (t->stream) fclose(t->stream);
    if (t->temporary) unlink(t->temporary);
    free(t->temporary);
    if (t->lock >= 0) close(t->lock);
    free(t);
}

void rsm_tuning_forget(rsm_tuning_file *t)
{
    unlink(t->device->tuning_path);
    t->device->tuning_missing = 1;
    set_state(t->device, rsm_strdup("none yet"));
}
