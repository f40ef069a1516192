#include "nn/map.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>

static resmap_status channel_mean(rsm_device *device, rsm_map x, rsm_vector mean, size_t channels, size_t count, int rms)
{
    if (channels == 0 || count == 0) return RESMAP_OK;
    RSM_TRY(rsm_check_fp32(device, "channel mean", x, channels, count));
    RSM_TRY(rsm_check_vector(device, "channel mean", mean, channels));
    RSM_TRY(rsm_profile_next(device, "channel_mean", channels, 0, (double)channels * (double)count * (1 + rms),
                             (double)channels * (double)count));
    if (rsm_device_is_reference(device)) {
        for (size_t c = 0; c < channels; c++) {
            double sum = 0;
            for (size_t i = 0; i < count; i++) {
                const double value = rsm_map_host(x, c)[i];
                sum += rms ? value * value : value;
            }
            rsm_vector_host(mean)[c] = rms ? sqrt(sum / (double)count) : sum / (double)count;
        }
        return RESMAP_OK;
    }
    rsm_kernel *kernel;
    char options[32];
    const rsm_cut cut = rsm_cut_rows(device, SIZE_MAX);
    const size_t global[1] = {channels * cut.local[0]};
    snprintf(options, sizeof options, "-DLANES=%d -DRMS=%d", (int)cut.local[0], rms);
    RSM_TRY(rsm_cut_kernel(device, "channel_mean", "channel_mean", &cut, options, &kernel));
    return RSM_RUN(device, kernel, 1, global, cut.local, RSM_MAP(x), RSM_VECTOR(mean), RSM_INT(count));
}

resmap_status rsm_channel_mean(rsm_device *device, rsm_map x, rsm_vector mean, size_t channels, size_t count)
{
    return channel_mean(device, x, mean, channels, count, 0);
}

resmap_status rsm_channel_rms(rsm_device *device, rsm_map x, rsm_vector rms, size_t channels, size_t count)
{
    return channel_mean(device, x, rms, channels, count, 1);
}
