/* Files that appear whole or not at all: written under another name beside their place, renamed when all are complete. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "image/image.h"

typedef struct staged {
    char *path;                  /* as the caller named it, for messages */
    char *target;                /* absolute, links followed: a link stays and its file is replaced */
    char *temporary;             /* NULL: not made, or renamed already */
    char *backup;                /* second name of the file to be replaced; NULL: none */
    FILE *stream;
    int renamed;
    int replaces;                /* a file that is there, with these permissions */
    mode_t permissions;
} staged;

struct rsm_outputs {
    rsm_env *env;
    int overwrite;
    size_t count;
    staged *files;
    size_t spared_count;
    struct stat *spared;         /* of files that are read */
};

resmap_status rsm_outputs_create(rsm_env *env, int overwrite, rsm_outputs **outputs)
{
    rsm_outputs *made = calloc(1, sizeof *made);
    if (!made) return rsm_no_memory(env, sizeof *made);
    made->env = env;
    made->overwrite = overwrite;
    *outputs = made;
    return RESMAP_OK;
}

/* The absolute path behind `path`, whose last part need not exist. Fresh memory; NULL with errno. */
static char *resolve(const char *path)
{
    struct stat st;
    if (lstat(path, &st) == 0) return realpath(path, NULL);
    if (errno != ENOENT) return NULL;
    const char *slash = strrchr(path, '/');
    const char *name = slash ? slash + 1 : path;
    if (*name == '\0') {
        errno = *path ? EISDIR : ENOENT;
        return NULL;
    }
    char *folder = slash ? rsm_format("%.*s/", (int)(slash - path), path) : rsm_strdup(".");
    char *absolute = folder ? realpath(folder, NULL) : NULL;
    char *target = absolute ? rsm_format("%s/%s", strcmp(absolute, "/") == 0 ? "" : absolute, name) : NULL;
    int saved = !folder || (absolute && !target) ? ENOMEM : errno;
    free(folder);
    free(absolute);
    errno = saved;
    return target;
}

/* Refuses targets that exist (unless to be overwritten) or cannot be replaced by a file. A scan that only its owner may read
 * stays so: what replaces a file has its permissions. */
static resmap_status check_target(const rsm_outputs *outputs, staged *file)
{
    struct stat st;
    if (lstat(file->target, &st) != 0) {
        if (errno == ENOENT) return RESMAP_OK;
        return rsm_fail(outputs->env, RESMAP_IO, "%s: %s", file->path, strerror(errno));
    }
    if (S_ISDIR(st.st_mode)) return rsm_fail(outputs->env, RESMAP_IO, "%s: is a folder", file->path);
    if (!S_ISREG(st.st_mode))
        return rsm_fail(outputs->env, RESMAP_IO, "%s: exists and is not a regular file", file->path);
    if (!outputs->overwrite)
        return rsm_fail(outputs->env, RESMAP_IO, "%s: exists already (--force overwrites)", file->path);
    /* Told now rather than by the rename at the end; and no second name of it is made that could not be removed again. */
    char *folder = rsm_format("%.*s", (int)(strrchr(file->target, '/') - file->target + 1), file->target);
    struct stat around;
    if (!folder) return rsm_no_memory(outputs->env, strlen(file->target));
    int kept = geteuid() != 0 && st.st_uid != geteuid() && stat(folder, &around) == 0 && (around.st_mode & S_ISVTX)
               && around.st_uid != geteuid();
    free(folder);
    if (kept) return rsm_fail(outputs->env, RESMAP_IO, "%s: another user's file, in a folder where only they can replace it", file->path);
    file->replaces = 1;
    file->permissions = st.st_mode & 0777;
    return RESMAP_OK;
}

/* A name beside the target that nobody has: ".NAME.resmap-XXXXXX". Fresh memory. */
static char *name_beside(const char *target, unsigned attempt)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyz0123456789";
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t x = (uint64_t)now.tv_nsec ^ (uint64_t)now.tv_sec << 30 ^ (uint64_t)getpid() << 14 ^ (uintptr_t)target;
    x += attempt;
    char tail[7] = "";
    for (int i = 0; i < 6; i++) {
        x = (x ^ x >> 29) * UINT64_C(0xbf58476d1ce4e5b9);
        tail[i] = letters[(x >> 32) % (sizeof letters - 1)];
    }
    const char *name = strrchr(target, '/') + 1;
    /* 255 is the longest name of most file systems */
    return rsm_format("%.*s.%.230s.resmap-%s", (int)(name - target), target, name, tail);
}

/* Makes a file that nobody has, and its stream. */
static resmap_status open_temporary(rsm_env *env, staged *file)
{
    for (unsigned attempt = 0; attempt < 100; attempt++) {
        char *name = name_beside(file->target, attempt);
        if (!name) return rsm_no_memory(env, strlen(file->target));
        int fd = open(name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, file->replaces ? 0600 : 0666);
        if (fd < 0) {
            int saved = errno;
            free(name);
            if (saved == EEXIST) continue;
            return rsm_fail(env, RESMAP_IO, "%s: cannot write here: %s", file->path, strerror(saved));
        }
        file->temporary = name;
        if (file->replaces && fchmod(fd, file->permissions) != 0)
            rsm_log(env, RESMAP_LOG_INFO, "%s: keeps no permissions here: %s", file->path, strerror(errno));
        file->stream = fdopen(fd, "wb");
        if (file->stream) return RESMAP_OK;
        close(fd);
        return rsm_no_memory(env, BUFSIZ);
    }
    return rsm_fail(env, RESMAP_IO, "%s: no free temporary name beside it", file->path);
}

/* Removes it again. */
static void drop_temporary(staged *file)
{
    if (file->stream) fclose(file->stream);
    if (file->temporary) unlink(file->temporary);
    free(file->temporary);
    file->stream = NULL;
    file->temporary = NULL;
}

static void staged_clear(staged *file)
{
    drop_temporary(file);
    if (file->backup) unlink(file->backup);
    free(file->backup);
    free(file->target);
    free(file->path);
}

static resmap_status stage(const rsm_outputs *outputs, const char *path, staged *file)
{
    rsm_env *env = outputs->env;
    if (!(file->path = rsm_strdup(path))) return rsm_no_memory(env, strlen(path));
    if (!(file->target = resolve(path))) return rsm_fail(env, RESMAP_IO, "%s: cannot write here: %s", path, strerror(errno));
    for (size_t i = 0; i < outputs->count; i++)
        if (strcmp(outputs->files[i].target, file->target) == 0)
            return rsm_fail(env, RESMAP_BAD_ARGUMENT, "%s: two outputs have the same name", path);
    struct stat st;
    int there = outputs->spared_count > 0 && stat(file->target, &st) == 0;
    for (size_t i = 0; there && i < outputs->spared_count; i++)
        if (outputs->spared[i].st_dev == st.st_dev && outputs->spared[i].st_ino == st.st_ino)
            return rsm_fail(env, RESMAP_BAD_ARGUMENT, "%s: is to be read, and to be written over", path);
    RSM_TRY(check_target(outputs, file));
    RSM_TRY(open_temporary(env, file));
    drop_temporary(file);
    return RESMAP_OK;
}

resmap_status rsm_outputs_spare(rsm_outputs *outputs, const char *path)
{
    struct stat st;
    if (!path || stat(path, &st) != 0) return RESMAP_OK;     /* what is not there cannot be written over */
    size_t bytes = (outputs->spared_count + 1) * sizeof *outputs->spared;
    struct stat *spared = realloc(outputs->spared, bytes);
    if (!spared) return rsm_no_memory(outputs->env, bytes);
    outputs->spared = spared;
    spared[outputs->spared_count++] = st;
    return RESMAP_OK;
}

resmap_status rsm_outputs_claim(rsm_outputs *outputs, const char *path)
{
    size_t bytes = (outputs->count + 1) * sizeof *outputs->files;
    staged *files = realloc(outputs->files, bytes);
    if (!files) return rsm_no_memory(outputs->env, bytes);
    outputs->files = files;
    staged file = {0};
    resmap_status status = stage(outputs, path, &file);
    if (status != RESMAP_OK) {
        staged_clear(&file);
        return status;
    }
    files[outputs->count++] = file;
    return RESMAP_OK;
}

resmap_status rsm_outputs_open(rsm_outputs *outputs, const char *path, FILE **stream)
{
    size_t i = 0;
    while (i < outputs->count && strcmp(outputs->files[i].path, path) != 0) i++;
    if (i == outputs->count) return rsm_fail(outputs->env, RESMAP_INTERNAL, "%s: not claimed", path);
    RSM_TRY(open_temporary(outputs->env, &outputs->files[i]));
    *stream = outputs->files[i].stream;
    return RESMAP_OK;
}

/* Undoes the renames: every file is again what it was before. */
static void roll_back(rsm_outputs *outputs)
{
    for (size_t i = 0; i < outputs->count; i++) {
        staged *file = &outputs->files[i];
        if (!file->renamed) continue;
        if (!file->backup) unlink(file->target);
        else if (rename(file->backup, file->target) != 0)
            rsm_log(outputs->env, RESMAP_LOG_WARNING, "%s: cannot be put back: %s; what it was is in %s", file->path,
                    strerror(errno), file->backup);
        free(file->backup);          /* the name; where it could not be put back the file is the user's only one */
        file->backup = NULL;
        file->renamed = 0;
    }
}

resmap_status rsm_outputs_commit(rsm_outputs *outputs)
{
    rsm_env *env = outputs->env;
    /* Every file complete before the first takes its place. */
    for (size_t i = 0; i < outputs->count; i++) {
        staged *file = &outputs->files[i];
        FILE *stream = file->stream;
        if (!stream) continue;
        file->stream = NULL;
        errno = 0;
        int bad = fflush(stream) != 0 || ferror(stream);
        int saved = errno;
        if (fclose(stream) != 0 && !bad) {
            bad = 1;
            saved = errno;
        }
        if (bad)
            return rsm_fail(env, RESMAP_IO, "%s: cannot write: %s", file->path, saved ? strerror(saved) : "failed before");
    }
    for (size_t i = 0; i < outputs->count; i++) RSM_TRY(check_target(outputs, &outputs->files[i]));
    /* A file to be replaced keeps a second name until all renames have succeeded; a file system without hard links
     * does without. */
    for (size_t i = 0; i < outputs->count && outputs->overwrite && outputs->count > 1; i++) {
        staged *file = &outputs->files[i];
        char *name = name_beside(file->target, 0);
        if (name && link(file->target, name) == 0) file->backup = name;
        else free(name);
    }
    for (size_t i = 0; i < outputs->count; i++) {
        staged *file = &outputs->files[i];
        if (!file->temporary) continue;
        if (rename(file->temporary, file->target) != 0) {
            int saved = errno;
            roll_back(outputs);
            return rsm_fail(env, RESMAP_IO, "%s: cannot write: %s", file->path, strerror(saved));
        }
        free(file->temporary);
        file->temporary = NULL;
        file->renamed = 1;
    }
    return RESMAP_OK;
}

void rsm_outputs_free(rsm_outputs *outputs)
{
    if (!outputs) return;
    for (size_t i = 0; i < outputs->count; i++) staged_clear(&outputs->files[i]);
    free(outputs->spared);
    free(outputs->files);
    free(outputs);
}
