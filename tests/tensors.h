/* Reads the expected values in tests/vectors: safetensors files of F32, F64, I32 and I64, everything as
 * double. Written apart from the library's reader, which serves weights and knows no F64. Fails the running
 * test when something is missing. */
#ifndef TESTS_TENSORS_H
#define TESTS_TENSORS_H

#include <stddef.h>

typedef struct tensors tensors;
typedef struct tensor {
    size_t dims, shape[8], count;
    double *values;
} tensor;

/* tests/vectors/NAME.safetensors */
tensors *tensors_open(const char *name);
void tensors_close(tensors *file);
/* The tensor of that name (printf-like), values owned by the file. */
const tensor *tensors_get(tensors *file, const char *format, ...);
int tensors_has(tensors *file, const char *format, ...);
/* The entry of the file's metadata, owned by the file. */
const char *tensors_metadata(tensors *file, const char *name);
/* max |a - b| / max |b|, infinite when anything is not finite. */
double relative_error(const float *a, const double *b, size_t count);

#endif
