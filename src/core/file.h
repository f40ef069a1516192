/* Reading files that a caller named. Errors are RESMAP_BAD_FILE, "PATH: WHY". */
#ifndef RSM_FILE_H
#define RSM_FILE_H

#include <stdint.h>

#include "core/env.h"

/* Opens a regular file of *size bytes; others are refused rather than waited for, as pipes would be. The caller closes *file. */
resmap_status rsm_file_open(rsm_env *env, const char *path, int *file, uint64_t *size);
/* The whole of a regular file of at most `most` bytes, in fresh memory. */
resmap_status rsm_file_read(rsm_env *env, const char *path, uint64_t most, unsigned char **bytes, size_t *size);

#endif
