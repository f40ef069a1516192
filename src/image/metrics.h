/* Comparing two images: PSNR, SSIM, NRMSE (float64, plain C). */
#ifndef RSM_METRICS_H
#define RSM_METRICS_H

#include "core/env.h"

/* As resmap_evaluate; names: of the reference, the test and the mask, for messages. */
resmap_status rsm_evaluate(rsm_env *env, const resmap_image *reference, const resmap_image *test,
                           const resmap_image *mask, const char *const names[3], resmap_plane plane,
                           resmap_metrics **metrics);

#endif
