/* The OpenCL programs of cl/, embedded by build-aux/embed-cl.sh. */
#ifndef RSM_KERNELS_H
#define RSM_KERNELS_H

#include <stddef.h>

/* Text of cl/`program`.cl with a NUL after its `length` bytes, static; NULL when there is none such. */
const char *rsm_kernel_source(const char *program, size_t *length);
/* The name of program number i, static; NULL past the last. */
const char *rsm_kernel_program(size_t i);

#endif
