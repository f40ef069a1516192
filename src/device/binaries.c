/* Program binaries on disk: one file a program, named by its key, in a folder that only the user may enter. A
 * file is believed only when its checksum is right, since drivers crash on damaged binaries. */
#include "device/device_private.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The file: magic, format, key, length of the payload, SHA-256 of the payload (both hex), payload. Integers
 * little-endian. */
#define MAGIC "resmapCL"
#define FORMAT 1u
enum { AT_FORMAT = 8, AT_KEY = 12, AT_LENGTH = 76, AT_SUM = 84, AT_PAYLOAD = 148 };
#define MOST_PAYLOAD ((uint64_t)64 << 20)

static void put(unsigned char *at, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++) at[i] = (unsigned char)(value >> (8 * i));
}

static uint64_t get(const unsigned char *at, int bytes)
{
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++) value |= (uint64_t)at[i] << (8 * i);
    return value;
}

char *rsm_binaries_folder(rsm_env *env)
{
    char *parent = rsm_cache_folder(env);
    if (!parent) return NULL;
    char *folder = rsm_format("%s/cl", parent);
    free(parent);
    if (!folder) return NULL;
    struct stat status;
    if (mkdir(folder, 0700) != 0 && errno != EEXIST) {
        free(folder);
        return NULL;
    }
    if (lstat(folder, &status) != 0 || !S_ISDIR(status.st_mode) || status.st_uid != geteuid()
        || (status.st_mode & (S_IWGRP | S_IWOTH))) {
        rsm_log(env, RESMAP_LOG_WARNING, "%s: not used: it is not yours alone", folder);
        free(folder);
        return NULL;
    }
    return folder;
}

resmap_status rsm_binaries_key(rsm_env *env, const char *const *fields, size_t count, char key[65])
{
    size_t total = 0;
    for (size_t i = 0; i < count; i++) total += 8 + strlen(fields[i]);
    unsigned char *bytes = malloc(total + 4), *at = bytes;
    if (!bytes) return rsm_no_memory(env, total + 4);
    put(at, FORMAT, 4);
    at += 4;
    for (size_t i = 0; i < count; i++) {
        size_t length = strlen(fields[i]);
        put(at, length, 8);
        memcpy(at + 8, fields[i], length);
        at += 8 + length;
    }
    rsm_sha256_hex(bytes, total + 4, key);
    free(bytes);
    return RESMAP_OK;
}

static char *file_of(const char *folder, const char *key)
{
    return rsm_format("%s/%s.bin", folder, key);
}

void rsm_binaries_remove(const char *folder, const char *key)
{
    char *path = file_of(folder, key);
    if (path) unlink(path);
    free(path);
}

/* Reads all of an open file of `size` bytes. */
static int read_all(int file, unsigned char *bytes, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t got = read(file, bytes + done, size - done);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return 0;
        done += (size_t)got;
    }
    return 1;
}

static int write_all(int file, const unsigned char *bytes, size_t size)
{
    for (size_t done = 0; done < size;) {
        ssize_t put_now = write(file, bytes + done, size - done);
        if (put_now < 0 && errno == EINTR) continue;
        if (put_now <= 0) return 0;
        done += (size_t)put_now;
    }
    return 1;
}

unsigned char *rsm_binaries_load(const char *folder, const char *key, size_t *size)
{
    *size = 0;
    char *path = file_of(folder, key);
    if (!path) return NULL;
    unsigned char header[AT_PAYLOAD], *payload = NULL;
    char sum[65];
    int good = 0;
    int file = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (file < 0) {
        free(path);
        return NULL;
    }
    struct stat status;
    uint64_t length = 0;
    if (fstat(file, &status) == 0 && S_ISREG(status.st_mode) && status.st_uid == geteuid()
        && read_all(file, header, sizeof header)) {
        length = get(header + AT_LENGTH, 8);
        if (memcmp(header, MAGIC, 8) == 0 && get(header + AT_FORMAT, 4) == FORMAT
            && memcmp(header + AT_KEY, key, 64) == 0 && length > 0 && length <= MOST_PAYLOAD
            && (uint64_t)status.st_size == AT_PAYLOAD + length) {
            payload = malloc((size_t)length);
        }
        if (payload && read_all(file, payload, (size_t)length)) {
            rsm_sha256_hex(payload, (size_t)length, sum);
            good = memcmp(sum, header + AT_SUM, 64) == 0;
        }
    }
    if (good) futimens(file, NULL);              /* used just now: among the last to go */
    close(file);
    if (!good) {
        unlink(path);
        free(payload);
        payload = NULL;
    }
    free(path);
    if (payload) *size = (size_t)length;
    return payload;
}

typedef struct entry {
    char *path;
    struct timespec used;
    uint64_t size;
} entry;

static int older(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    if (x->used.tv_sec != y->used.tv_sec) return x->used.tv_sec < y->used.tv_sec ? -1 : 1;
    if (x->used.tv_nsec != y->used.tv_nsec) return x->used.tv_nsec < y->used.tv_nsec ? -1 : 1;
    return strcmp(x->path, y->path);
}

/* Removes the files used longest ago until at most `cap` bytes are left. */
static void trim(const char *folder, uint64_t cap)
{
    DIR *stream = opendir(folder);
    if (!stream) return;
    entry *entries = NULL;
    size_t count = 0;
    uint64_t total = 0;
    for (struct dirent *found = readdir(stream); found; found = readdir(stream)) {
        struct stat status;
        if (found->d_name[0] == '.' && (found->d_name[1] == '\0' || strcmp(found->d_name, "..") == 0)) {
            continue;
        }
        char *path = rsm_format("%s/%s", folder, found->d_name);
        entry *grown = path ? realloc(entries, (count + 1) * sizeof *entries) : NULL;
        if (grown) entries = grown;
        if (!grown || lstat(path, &status) != 0 || !S_ISREG(status.st_mode)) {
            free(path);
            continue;
        }
        entries[count].path = path;
        entries[count].used = status.st_mtim;
        entries[count].size = (uint64_t)status.st_size;
        total += entries[count++].size;
    }
    closedir(stream);
    if (count > 0) qsort(entries, count, sizeof *entries, older);
    for (size_t i = 0; i < count; i++) {
        if (total > cap && unlink(entries[i].path) == 0) total -= entries[i].size;
        free(entries[i].path);
    }
    free(entries);
}

void rsm_binaries_store(const char *folder, const char *key, const void *payload, size_t size, uint64_t cap)
{
    if (size == 0 || size > MOST_PAYLOAD || size > cap) return;
    unsigned char header[AT_PAYLOAD] = {0};
    char sum[65];
    memcpy(header, MAGIC, 8);
    put(header + AT_FORMAT, FORMAT, 4);
    memcpy(header + AT_KEY, key, 64);
    put(header + AT_LENGTH, size, 8);
    rsm_sha256_hex(payload, size, sum);
    memcpy(header + AT_SUM, sum, 64);

    /* Two contexts of one process may store the same program at once. */
    int file = -1;
    char *temporary = NULL;
    for (int attempt = 0; file < 0 && attempt < 100; attempt++) {
        free(temporary);
        temporary = rsm_format("%s/.%s.%ld.%d", folder, key, (long)getpid(), attempt);
        if (!temporary) return;
        file = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (file < 0 && errno != EEXIST) break;
    }
    if (file < 0) {
        free(temporary);
        return;
    }
    char *path = file_of(folder, key);
    int good = path && write_all(file, header, sizeof header) && write_all(file, payload, size);
    if (close(file) != 0) good = 0;
    if (!good || rename(temporary, path) != 0) unlink(temporary);
    free(path);
    free(temporary);
    trim(folder, cap);
}
