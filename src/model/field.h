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
 * / Σ w before² under a Gaussian window of 2 shrunken pixels, w = 1 where before > threshold; bilinear;
 * 1 where there is no foreground at all. */
resmap_status rsm_apply_field(rsm_env *env, float *slice, size_t height, size_t width, const float *before,
                              const float *after, size_t small_height, size_t small_width, double threshold);

/* The same field on the shrunken grid. */
resmap_status rsm_field_ratio(rsm_env *env, const float *before, const float *after, size_t small_height,
                              size_t small_width, double threshold, double *ratio);

/* ---- One field for a volume -----------------------------------------------------------------------------
 * Slices' fields are estimated one by one, and none tells how bright it should be. A volume's field is smooth
 * in three dimensions, and by definition of mean 1 over the foreground: what multiplies the volume is
 * exp P * mean of exp -P, with P the polynomial of total degree <= order in the array coordinates ([-1, 1] from
 * first to last voxel centre) that fits the logarithms of the slices' ratios best over the foreground (least
 * squares; products of Legendre polynomials, their coefficients damped by 1e-6 of the number of samples, for a
 * volume of few slices leaves some undetermined). The slices' ratios and exp P are kept within [0.1, 10]. */
enum { RSM_FIELD_ORDER = 6, RSM_FIELD_TERMS = 84 };
/* Further passes are made where the first pass's field has this spread: a network finds a strong field only in part, and what
 * it finds beside a faint one may be the scan's own shading. */
#define RSM_FIELD_STRONG 0.15
/* What counts for no field at all, of a field's spread within slices. */
#define RSM_FIELD_LEAST 1e-3

double rsm_field_limited(double factor);

typedef struct rsm_volume_field {
    size_t order, slices, height, width, small_height, small_width;
    double coefficients[RSM_FIELD_TERMS];
    double factor;               /* mean of exp -P */
    double spread;               /* standard deviation of the field's logarithm over the foreground */
    double within;               /* the same about the means of the slices: what slices show of it, however few there are */
} rsm_volume_field;

/* Fits `field`, whose order (1 to RSM_FIELD_ORDER) and sizes are set. ratios: slices x small_height x
 * small_width, 0 where there is no foreground; without any the field is 1. */
resmap_status rsm_volume_field_fit(rsm_env *env, rsm_volume_field *field, const double *ratios);
/* Multiplies slice s of `field` (height x width) less lo by the field; with a mask only where that is
 * above 0.5. */
void rsm_volume_field_apply(const rsm_volume_field *field, size_t s, double lo, const float *mask,
                            float *slice);

#endif
