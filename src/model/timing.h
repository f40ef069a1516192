/* How long the network takes on a device, and where the time goes. */
#ifndef RSM_TIMING_H
#define RSM_TIMING_H

#include "model/network.h"

/* Fills in everything of `timing` but the names of model and device and the precision, which are the
 * caller's; what it allocates is freed by resmap_timing_free, on failure too. Options are in range. */
resmap_status rsm_timing_run(rsm_network *network, const resmap_timing_options *options,
                             resmap_timing *timing);
resmap_status rsm_timing_json(rsm_env *env, const resmap_timing *timing, char **text);

#endif
