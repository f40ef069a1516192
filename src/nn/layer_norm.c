#include "nn/map.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>

#define EPSILON 1e-5
/* Vectors of pixels that a work-item of a CPU takes (BLOCK of the kernel): long enough runs of memory a
 * channel, while mean and variance stay in registers or the first-level cache. */
#define CPU_BLOCK 8

static void reference(rsm_map x, rsm_vector weight, rsm_vector bias, rsm_map y, size_t channels, size_t count)
{
    const double *w = rsm_vector_host(weight);
    const double *b = bias.buffer ? rsm_vector_host(bias) : NULL;
    for (size_t i = 0; i < count; i++) {
        double mean = 0, variance = 0;
        for (size_t c = 0; c < channels; c++) mean += rsm_map_host(x, c)[i];
        mean /= (double)channels;
        for (size_t c = 0; c < channels; c++) {
            const double d = rsm_map_host(x, c)[i] - mean;
            variance += d * d;
        }
        const double scale = 1 / sqrt(variance / (double)channels + EPSILON);
        for (size_t c = 0; c < channels; c++) {
            const double value = rsm_map_host(x, c)[i];
            rsm_map_host(y, c)[i] = b ? (value - mean) * scale * w[c] + b[c] : value * scale * w[c];
        }
    }
}

resmap_status rsm_layer_norm(rsm_device *device, rsm_map x, rsm_vector weight, rsm_vector bias, rsm_map y,
                             size_t channels, size_t count)
{
    RSM_TRY(rsm_check_fp32(device, "layer norm", x, channels, count));
    RSM_TRY(rsm_check_map(device, "layer norm", y, channels, count));
    RSM_TRY(rsm_check_vector(device, "layer norm", weight, channels));
    if (bias.buffer) RSM_TRY(rsm_check_vector(device, "layer norm", bias, channels));
    if (channels == 0 || count == 0) return RESMAP_OK;
    /* Sum; difference, square, sum; two products. */
    RSM_TRY(rsm_profile_next(device, "layer_norm", channels, 0, 6 * (double)channels * (double)count,
                             rsm_map_size(x, channels, count) + rsm_map_size(y, channels, count)));
    if (rsm_device_is_reference(device)) {
        reference(x, weight, bias, y, channels, count);
        return RESMAP_OK;
    }

    rsm_kernel *kernel;
    const rsm_variant *tuned = rsm_tuned(device, RSM_TUNE_LAYER_NORM);
    const rsm_cut cut = rsm_cut_tuned(device, tuned, SIZE_MAX);
    const size_t block = tuned && tuned->values[2] ? (size_t)tuned->values[2] : cut.vector > 1 ? CPU_BLOCK : 1;
    const size_t pixels = block * (size_t)cut.vector;
    const size_t global[1] = {(count + pixels - 1) / pixels};
    char options[64];
    snprintf(options, sizeof options, "-DBLOCK=%d -DWITH_BIAS=%d -DY_TYPE=%s", (int)block, bias.buffer != NULL,
             rsm_storage_type(y.storage));
    RSM_TRY(rsm_cut_kernel(device, "layer_norm", "layer_norm", &cut, options, &kernel));
    return RSM_RUN(device, kernel, 1, global, cut.local, RSM_MAP(x), RSM_VECTOR(weight),
                   RSM_VECTOR(bias.buffer ? bias : weight), RSM_MAP(y), RSM_INT(channels), RSM_INT(count));
}
