/* Intensities: what counts as foreground, and the two numbers that map a volume to about 0…1, contract §4. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "image/image.h"

/* Floats as integers of the same order. */
static uint32_t to_key(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits & UINT32_C(0x80000000) ? ~bits : bits | UINT32_C(0x80000000);
}

static float from_key(uint32_t key)
{
    uint32_t bits = key & UINT32_C(0x80000000) ? key & UINT32_C(0x7fffffff) : ~key;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Whether voxel i is looked at: inside the mask, above < v < below. Infinite bounds leave out exactly the
 * non-finite. */
static inline int taken(const float *data, const float *mask, size_t i, double above, double below)
{
    return (!mask || mask[i] > 0.5f) && data[i] > above && data[i] < below;
}

enum { BINS = 1 << 16 };

/* Moves *rank into the bin that holds it. */
static size_t find_bin(const size_t *bins, size_t *rank)
{
    size_t b = 0;
    while (*rank >= bins[b]) *rank -= bins[b++];
    return b;
}

/* Selection by counting: a histogram of the upper 16 bits of each value finds the bins of the two
 * neighbouring ranks, a second one of the lower 16 bits the values. Two passes over the data, exact, and no
 * copy of them. */
resmap_status rsm_percentile(rsm_env *env, const float *data, const float *mask, size_t count, double above,
                             double below, double percent, double *value)
{
    size_t *bins = calloc(3 * (size_t)BINS, sizeof *bins);
    if (!bins) return rsm_no_memory(env, 3 * (size_t)BINS * sizeof *bins);
    size_t n = 0;
    for (size_t i = 0; i < count; i++)
        if (taken(data, mask, i, above, below)) {
            bins[to_key(data[i]) >> 16]++;
            n++;
        }
    if (n == 0) {
        free(bins);
        return rsm_fail(env, RESMAP_BAD_FILE, "percentile: no voxels to take it from");
    }
    /* NumPy's "linear": between ranks k and k + 1 */
    double position = percent / 100 * (double)(n - 1);
    size_t k = (size_t)position;
    if (k > n - 1) k = n - 1;
    double part = position - (double)k;
    size_t rank[2] = {k, k + 1 < n ? k + 1 : k}, high[2];
    float found[2];
    for (int i = 0; i < 2; i++) high[i] = find_bin(bins, &rank[i]);
    for (size_t i = 0; i < count; i++) {
        if (!taken(data, mask, i, above, below)) continue;
        uint32_t key = to_key(data[i]);
        for (int r = 0; r < 2; r++)
            if (key >> 16 == high[r]) bins[(size_t)(r + 1) * BINS + (key & 0xffff)]++;
    }
    for (int i = 0; i < 2; i++) {
        size_t low = find_bin(bins + (size_t)(i + 1) * BINS, &rank[i]);
        found[i] = from_key((uint32_t)(high[i] << 16 | low));
    }
    free(bins);
    double a = found[0], b = found[1];
    *value = part < 0.5 ? a + (b - a) * part : b - (b - a) * (1 - part);
    return RESMAP_OK;
}

resmap_status rsm_scale_mean(rsm_env *env, const char *what, const float *data, const float *mask,
                             size_t count, double *mean, int *constant)
{
    double sum = 0, least = INFINITY, most = -INFINITY;
    size_t n = 0;
    for (size_t i = 0; i < count; i++) {
        if (!taken(data, mask, i, -INFINITY, INFINITY)) continue;
        sum += data[i];
        if (data[i] < least) least = data[i];
        if (data[i] > most) most = data[i];
        n++;
    }
    int same = n > 0 && least == most;
    if (constant) *constant = same;
    if (n == 0)
        return rsm_fail(env, RESMAP_BAD_FILE, "%s: no finite voxel%s", what, mask ? " inside the mask" : "");
    if (same)
        return rsm_fail(env, RESMAP_BAD_FILE, "%s: constant: every voxel%s is %g", what,
                        mask ? " inside the mask" : "", most);
    *mean = sum / (double)n;
    return RESMAP_OK;
}

resmap_status rsm_scale_measure(rsm_env *env, const char *what, const float *data, const float *mask,
                                size_t count, rsm_scale *scale, int *constant)
{
    rsm_scale s;
    double lowest;
    RSM_TRY(rsm_scale_mean(env, what, data, mask, count, &s.mean, constant));
    RSM_TRY(rsm_percentile(env, data, mask, count, s.mean, INFINITY, 99.5, &s.hi));
    RSM_TRY(rsm_percentile(env, data, mask, count, -INFINITY, INFINITY, 0.1, &lowest));
    s.lo = 0;
    if (lowest < -0.5 * s.hi) RSM_TRY(rsm_percentile(env, data, mask, count, -INFINITY, s.mean, 50, &s.lo));
    if (!(s.hi > s.lo))
        return rsm_fail(env, RESMAP_BAD_FILE, "%s: no contrast: foreground at %g", what, s.hi);
    *scale = s;
    return RESMAP_OK;
}
