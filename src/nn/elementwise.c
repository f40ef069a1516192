#include "nn/map.h"

#include <stdint.h>
#include <stdio.h>

/* Elements that a work-item of a CPU works through. */
#define CPU_RUN 4096

/* The kernel of cl/elementwise.cl, its elements a work-item and its global size. */
static resmap_status prepare(rsm_device *device, const char *name, rsm_storage x, rsm_storage y,
                             size_t channels, size_t count, rsm_cut *cut, rsm_kernel **kernel,
                             size_t *elements, size_t global[2])
{
    char options[48];
    snprintf(options, sizeof options, "-DX_TYPE=%s -DY_TYPE=%s", rsm_storage_type(x), rsm_storage_type(y));
    *cut = rsm_cut_rows(device, SIZE_MAX);
    *elements = cut->vector > 1 ? CPU_RUN : 1;
    global[0] = (count + *elements - 1) / *elements;
    global[1] = channels;
    return rsm_cut_kernel(device, "elementwise", name, cut, options, kernel);
}

resmap_status rsm_fill_channels(rsm_device *device, rsm_vector value, rsm_map y, size_t channels,
                                size_t count)
{
    rsm_cut cut;
    rsm_kernel *kernel;
    size_t elements, global[2];
    if (channels == 0 || count == 0) return RESMAP_OK;
    RSM_TRY(rsm_check_vector(device, "fill", value, channels));
    RSM_TRY(rsm_check_fp32(device, "fill", y, channels, count));
    RSM_TRY(rsm_profile_next(device, "fill_channels", channels, 0, 0, (double)channels * (double)count));
    if (rsm_device_is_reference(device)) {
        for (size_t c = 0; c < channels; c++)
            for (size_t i = 0; i < count; i++) rsm_map_host(y, c)[i] = rsm_vector_host(value)[c];
        return RESMAP_OK;
    }
    RSM_TRY(prepare(device, "fill_channels", RSM_FP32, RSM_FP32, channels, count, &cut, &kernel, &elements, global));
    return RSM_RUN(device, kernel, 2, global, cut.local, RSM_VECTOR(value), RSM_MAP(y), RSM_INT(count),
                   RSM_INT(elements));
}

resmap_status rsm_fill_zero(rsm_device *device, rsm_map y, size_t channels, size_t count)
{
    rsm_cut cut;
    rsm_kernel *kernel;
    size_t elements, global[2];
    if (channels == 0 || count == 0) return RESMAP_OK;
    RSM_TRY(rsm_check_map(device, "fill", y, channels, count));
    RSM_TRY(rsm_profile_next(device, "fill", channels, 0, 0, rsm_map_size(y, channels, count)));
    if (rsm_device_is_reference(device)) {
        for (size_t c = 0; c < channels; c++)
            for (size_t i = 0; i < count; i++) rsm_map_host(y, c)[i] = 0;
        return RESMAP_OK;
    }
    RSM_TRY(prepare(device, "fill", y.storage, y.storage, channels, count, &cut, &kernel, &elements, global));
    return RSM_RUN(device, kernel, 2, global, cut.local, RSM_FLOAT(0), RSM_MAP(y), RSM_INT(count),
                   RSM_INT(elements));
}

resmap_status rsm_add(rsm_device *device, rsm_map x, rsm_map y, size_t channels, size_t count)
{
    rsm_cut cut;
    rsm_kernel *kernel;
    size_t elements, global[2];
    if (channels == 0 || count == 0) return RESMAP_OK;
    RSM_TRY(rsm_check_fp32(device, "add", x, channels, count));
    RSM_TRY(rsm_check_fp32(device, "add", y, channels, count));
    RSM_TRY(rsm_profile_next(device, "add", channels, 0, (double)channels * (double)count,
                             3 * (double)channels * (double)count));
    if (rsm_device_is_reference(device)) {
        for (size_t c = 0; c < channels; c++)
            for (size_t i = 0; i < count; i++) rsm_map_host(y, c)[i] += rsm_map_host(x, c)[i];
        return RESMAP_OK;
    }
    RSM_TRY(prepare(device, "add", RSM_FP32, RSM_FP32, channels, count, &cut, &kernel, &elements, global));
    return RSM_RUN(device, kernel, 2, global, cut.local, RSM_MAP(x), RSM_MAP(y), RSM_INT(count),
                   RSM_INT(elements));
}

resmap_status rsm_copy(rsm_device *device, rsm_map x, rsm_map y, size_t channels, size_t count)
{
    if (channels == 0 || count == 0) return RESMAP_OK;
    RSM_TRY(rsm_check_map(device, "copy", x, channels, count));
    RSM_TRY(rsm_check_map(device, "copy", y, channels, count));
    if (rsm_device_is_reference(device)) {
        /* One channel: whatever its plane says. */
        const size_t from = channels > 1 ? x.plane : count, to = channels > 1 ? y.plane : count;
        return rsm_buffer_copy(device, y.buffer, y.offset, to, x.buffer, x.offset, from, count, channels);
    }
    rsm_cut cut;
    rsm_kernel *kernel;
    size_t elements, global[2];
    RSM_TRY(rsm_profile_next(device, "copy", channels, 0, 0,
                             rsm_map_size(x, channels, count) + rsm_map_size(y, channels, count)));
    RSM_TRY(prepare(device, "copy", x.storage, y.storage, channels, count, &cut, &kernel, &elements, global));
    return RSM_RUN(device, kernel, 2, global, cut.local, RSM_MAP(x), RSM_MAP(y), RSM_INT(count),
                   RSM_INT(elements));
}
