#include "core/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

resmap_status rsm_file_open(rsm_env *env, const char *path, int *file, uint64_t *size)
{
    /* O_NONBLOCK: a pipe without a writer must give the message below, not wait */
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    struct stat st;
    const char *reason = NULL;

    if (fd < 0) return rsm_fail(env, RESMAP_BAD_FILE, "%s: %s", path, strerror(errno));
    if (fstat(fd, &st) != 0) reason = strerror(errno);
    else if (S_ISDIR(st.st_mode)) reason = "is a folder";
    else if (!S_ISREG(st.st_mode)) reason = "not a regular file";
    if (reason) {
        close(fd);
        return rsm_fail(env, RESMAP_BAD_FILE, "%s: %s", path, reason);
    }
    *file = fd;
    *size = (uint64_t)st.st_size;
    return RESMAP_OK;
}

resmap_status rsm_file_read(rsm_env *env, const char *path, uint64_t most, unsigned char **bytes, size_t *size)
{
    resmap_status status = RESMAP_OK;
    unsigned char *block = NULL;
    uint64_t total = 0;
    size_t done = 0;
    int file;

    RSM_TRY(rsm_file_open(env, path, &file, &total));
    if (total > most || total >= SIZE_MAX) {
        status = rsm_fail(env, RESMAP_BAD_FILE, "%s: of %llu bytes, more than the %llu that such a file may have", path,
                          (unsigned long long)total, (unsigned long long)most);
        goto out;
    }
    block = malloc(total ? (size_t)total : 1);
    if (!block) {
        status = rsm_no_memory(env, (size_t)total);
        goto out;
    }
    while (done < total) {
        ssize_t got = read(file, block + done, (size_t)total - done);

        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            status = rsm_fail(env, RESMAP_BAD_FILE, "%s: %s", path,
                              got < 0 ? strerror(errno) : "became shorter while it was read");
            goto out;
        }
        done += (size_t)got;
    }
    *bytes = block;
    *size = (size_t)total;
    block = NULL;
out:
    free(block);
    close(file);
    return status;
}
