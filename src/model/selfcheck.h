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

/* Runs it. *error: the figure measured (infinite when not finite). RESMAP_SELF_CHECK_FAILED when above the bound.
 * Where products are CLBlast's, a small one and one as large as scans have are checked first: where they are wrong the device
 * goes on without CLBlast, with a warning; RESMAP_SELF_CHECK_FAILED where RESMAP_GEMM asks for it. */
resmap_status rsm_self_check(rsm_network *network, double *error);
/* Runs it unless cache_folder (may be NULL) remembers that this device, driver, model, library version and tuning
 * passed; so it does of CLBlast, whatever came of it. */
resmap_status rsm_self_check_once(rsm_network *network, const char *cache_folder);

#endif
