/* Trust, but verify: before a device's first image with a model, a small slice goes through the whole network there and on the
 * plain-C reference. Drivers do compute wrongly, and a wrong scan is worse than none. */
#ifndef RSM_SELFCHECK_H
#define RSM_SELFCHECK_H

#include "model/network.h"

/* Bound of max |a - b| / max |b| over the pooled latent and the output. */
#define RSM_SELF_CHECK_BOUND 1e-4
/* With fp16 of rms(a - b) / max |b|: half of what a PSNR of 60 dB allows, for other slices may be harder. Few models do
 * not stay within it; they are refused too. */
#define RSM_SELF_CHECK_BOUND_FP16 5e-4

/* Runs it, and where CLBlast makes products of fp32 one as large as scans have. *error: the figure measured on the slice
 * (infinite when not finite). RESMAP_SELF_CHECK_FAILED when above the bound, or that product is wrong. */
resmap_status rsm_self_check(rsm_network *network, double *error);
/* Runs it unless cache_folder (may be NULL) remembers that this device, driver, model, library version and tuning
 * passed. */
resmap_status rsm_self_check_once(rsm_network *network, const char *cache_folder);

#endif
