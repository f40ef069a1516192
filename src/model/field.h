/* Restoring a smooth multiplicative field on a shrunken slice (`class_pixels`, contract of the weights
 * format): the network sees the slice area-averaged to a few pixels, and the smoothed ratio of its output to
 * its input multiplies the slice at full resolution. It cannot invent anatomy, and costs a fraction. All on
 * the host, in float64. */
#ifndef RSM_FIELD_H
#define RSM_FIELD_H

#include "core/env.h"

/* The size of a height x width slice shrunk to `pixels` on its longer side; never a larger one. */
void rsm_shrunken_size(size_t height, size_t width, size_t pixels, size_t *small_height, size_t *small_width);
/* Area average of a slice on a grid of small_height x small_width. */
void rsm_shrink(const float *slice, size_t height, size_t width, float *small, size_t small_height,
                size_t small_width);
/* Multiplies `slice` (height x width) by the field between `before` and `after` (shrunken): Σ w after before
 * / Σ w before² under a Gaussian window of 2 shrunken pixels, w = 1 where before > threshold; bilinear,
 * clamped to [0.1, 10]; 1 where there is no foreground at all. */
resmap_status rsm_apply_field(rsm_env *env, float *slice, size_t height, size_t width, const float *before,
                              const float *after, size_t small_height, size_t small_width, double threshold);

#endif
