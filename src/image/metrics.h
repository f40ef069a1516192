/* Comparing two images: PSNR, SSIM, NRMSE (float64, plain C). */
#ifndef RSM_METRICS_H
#define RSM_METRICS_H

#include "core/env.h"

/* As resmap_evaluate. */
resmap_status rsm_evaluate(rsm_env *env, const resmap_image *reference, const resmap_image *test,
                           const resmap_image *mask, resmap_plane plane, resmap_metrics **metrics);
/* As resmap_metrics_json. */
resmap_status rsm_metrics_json(rsm_env *env, const resmap_metrics *metrics, char **text);

#endif
