/* Measuring the variants of operations (device/variants.c) on a device, in the network. */
#ifndef RSM_TUNE_H
#define RSM_TUNE_H

#include "model/network.h"

/* Tunes the network's device and keeps the file. Fills in everything of `tuning` but the names of model and device, which are
 * the caller's; what it allocates is freed by resmap_tuning_free, on failure too. Then the device is as it was. */
resmap_status rsm_tune(rsm_network *network, const resmap_tune_options *options, const char *cache_folder,
                       resmap_tuning *tuning);
/* A quick tuning, where the device has no tuning and should have one. What goes wrong is logged; fails only when
 * cancelled. */
resmap_status rsm_tune_once(rsm_network *network, const char *cache_folder);
resmap_status rsm_tuning_text(rsm_env *env, const resmap_tuning *tuning, char **text);

#endif
