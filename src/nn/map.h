/* What the operations share: checks of the regions they are given, and how their kernels cut the work.
 * Included by the files of nn/ only. */
#ifndef RSM_MAP_H
#define RSM_MAP_H

#include "nn/nn.h"

/* How kernels take them. */
#define RSM_MAP(m) RSM_BUFFER((m).buffer), RSM_INT((m).offset), RSM_INT((m).plane)
#define RSM_VECTOR(v) RSM_BUFFER((v).buffer), RSM_INT((v).offset)

/* RESMAP_INTERNAL, naming the operation `what`, when the region leaves its buffer or channels overlap, or when a map that
 * has to be fp32 is not. */
resmap_status rsm_check_map(rsm_device *device, const char *what, rsm_map map, size_t channels, size_t count);
resmap_status rsm_check_fp32(rsm_device *device, const char *what, rsm_map map, size_t channels, size_t count);
resmap_status rsm_check_vector(rsm_device *device, const char *what, rsm_vector vector, size_t count);

/* `channels` channels of `count` elements as rsm_profile_next counts them. */
double rsm_map_size(rsm_map map, size_t channels, size_t count);
/* Channels as rows, for rsm_gemm. */
rsm_matrix rsm_map_matrix(rsm_map map, size_t count);

/* Element 0 of channel c, on the reference. */
double *rsm_map_host(rsm_map map, size_t c);
double *rsm_vector_host(rsm_vector vector);

typedef struct rsm_cut {
    int vector;                  /* pixels a work-item takes at once: -DVECTOR, see cl/vector.cl */
    size_t local[3];             /* one work-item a group on CPUs, else a row of them along the pixels */
    size_t columns;              /* work-items that share the vectors of a row: one on CPUs, else one each */
    char options[64];
} rsm_cut;

/* For rows of `width` elements, in which a vector must fit; SIZE_MAX where the kernel handles any number.
 * $RESMAP_VECTOR (1, 4, 8, 16) sets the vector in tests: 1 is how devices other than CPUs work. */
rsm_cut rsm_cut_rows(const rsm_device *device, size_t width);
/* The same with the vector and the work-group of a tuned variant, values[0] and values[1], where they are not 0;
 * variant may be NULL. */
rsm_cut rsm_cut_tuned(const rsm_device *device, const rsm_variant *variant, size_t width);

/* The kernel `name` of cl/`program`.cl for this cut, with further options ("" for none). */
resmap_status rsm_cut_kernel(rsm_device *device, const char *program, const char *name, const rsm_cut *cut,
                             const char *options, rsm_kernel **kernel);

#endif
