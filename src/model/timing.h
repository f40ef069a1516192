/* How long the network takes on a device, and where the time goes. */
#ifndef RSM_TIMING_H
#define RSM_TIMING_H

#include "model/network.h"

/* A random slice and the memory to run the network on it, again and again. */
typedef struct rsm_bench {
    rsm_network *network;
    size_t height, width;        /* multiples of 8 */
    rsm_plan *plan;
    float *slice, *output, *pooled;
} rsm_bench;
/* *bench is freed by rsm_bench_clear, on failure too. */
resmap_status rsm_bench_create(rsm_network *network, size_t height, size_t width, rsm_bench *bench);
void rsm_bench_clear(rsm_bench *bench);
/* One run: slice in, encoder, decoder with a prompt, slice out. */
resmap_status rsm_bench_run(const rsm_bench *bench, double *seconds);
/* One with rsm_profile_begin and _end. */
resmap_status rsm_bench_profile(const rsm_bench *bench, rsm_profile_row **rows, size_t *count);

/* Fills in everything of `timing` but the names of model and device and the precision, which are the
 * caller's; what it allocates is freed by resmap_timing_free, on failure too. Options are in range. */
resmap_status rsm_timing_run(rsm_network *network, const resmap_timing_options *options,
                             resmap_timing *timing);
resmap_status rsm_timing_json(rsm_env *env, const resmap_timing *timing, char **text);

#endif
