/* The cascade (paper §2.3): classify, take the class's prompt, restore, again, until "clean" or the last step. */
#ifndef RSM_CASCADE_H
#define RSM_CASCADE_H

#include "image/image.h"
#include "model/network.h"

/* Restores (or, with classify_only, classifies) every frame of `input` on the devices of the `count`
 * networks of one model, which share the slices; those of further workers (rsm_network_share) come last. Each
 * has another env, `env` itself or one that follows it (rsm_env_follow). output: an image of input's shape
 * whose data is overwritten, or NULL with classify_only. Fills in of the report: plane, decide,
 * prompt, encodings, tiled, band_rows, classes, volumes, devices, seconds_network; what is there when a call
 * fails is the caller's all the same (resmap_report_free). */
resmap_status rsm_cascade_run(rsm_env *env, rsm_network *const *networks, size_t count,
                              const struct resmap_image *input, const struct resmap_image *mask,
                              const resmap_options *options, int classify_only, struct resmap_image *output,
                              resmap_report *report);

/* Parses --order: class indices, none of them "clean". RESMAP_BAD_ARGUMENT with the reason. */
resmap_status rsm_cascade_order(rsm_env *env, const rsm_config *config, const char *order, int classes[RESMAP_MAX_STEPS],
                                int *count);

#endif
