#include "nn/map.h"

#include <stdio.h>
#include <stdlib.h>

#define GROUP 64

static resmap_status outside(rsm_device *device, const char *what)
{
    return rsm_fail(rsm_device_env(device), RESMAP_INTERNAL, "%s: a region outside its buffer", what);
}

resmap_status rsm_check_map(rsm_device *device, const char *what, rsm_map map, size_t channels, size_t count)
{
    if (!map.buffer) return outside(device, what);
    const size_t size = rsm_buffer_capacity(map.buffer, map.storage);
    if (channels == 0 || count == 0) return RESMAP_OK;
    if (map.offset > size || count > size - map.offset) return outside(device, what);
    if (channels == 1) return RESMAP_OK;
    if (map.plane < count || map.plane > (size - map.offset - count) / (channels - 1))
        return outside(device, what);
    return RESMAP_OK;
}

resmap_status rsm_check_fp32(rsm_device *device, const char *what, rsm_map map, size_t channels, size_t count)
{
    if (map.storage != RSM_FP32)
        return rsm_fail(rsm_device_env(device), RESMAP_INTERNAL, "%s: a map that is not fp32", what);
    return rsm_check_map(device, what, map, channels, count);
}

resmap_status rsm_check_vector(rsm_device *device, const char *what, rsm_vector vector, size_t count)
{
    return rsm_check_map(device, what, (rsm_map){vector.buffer, vector.offset, count, RSM_FP32}, 1, count);
}

double rsm_map_size(rsm_map map, size_t channels, size_t count)
{
    return rsm_storage_size(map.storage) * (double)channels * (double)count;
}

rsm_matrix rsm_map_matrix(rsm_map map, size_t count)
{
    /* The plane of a single channel may be anything. */
    return (rsm_matrix){map.buffer, map.offset, map.plane > count ? map.plane : count, map.storage};
}

double *rsm_map_host(rsm_map map, size_t c)
{
    return rsm_buffer_host(map.buffer) + map.offset + c * map.plane;
}

double *rsm_vector_host(rsm_vector vector)
{
    return rsm_buffer_host(vector.buffer) + vector.offset;
}

rsm_cut rsm_cut_rows(const rsm_device *device, size_t width)
{
    return rsm_cut_tuned(device, NULL, width);
}

rsm_cut rsm_cut_tuned(const rsm_device *device, const rsm_variant *variant, size_t width)
{
    rsm_cut cut = {.vector = 1, .local = {1, 1, 1}, .columns = 1};
    int widest = rsm_device_vector(device);
    const char *forced = getenv("RESMAP_VECTOR");
    if (forced && forced[0]) widest = atoi(forced);
    if (variant && variant->values[0]) widest = variant->values[0];
    if (widest > 1) {
        cut.vector = widest >= 16 ? 16 : widest >= 8 ? 8 : 4;
        while (cut.vector > 1 && (size_t)cut.vector > width)
            cut.vector = cut.vector == 4 ? 1 : cut.vector / 2;
    } else {
        const size_t most = rsm_device_info(device)->max_work_group;
        const size_t group = variant && variant->values[1] ? (size_t)variant->values[1] : GROUP;
        cut.local[0] = most < group ? most : group;
        cut.columns = width;
    }
    snprintf(cut.options, sizeof cut.options, "-DVECTOR=%d", cut.vector);
    return cut;
}

resmap_status rsm_cut_kernel(rsm_device *device, const char *program, const char *name, const rsm_cut *cut,
                             const char *options, rsm_kernel **kernel)
{
    char all[160];
    snprintf(all, sizeof all, "%s%s%s", cut->options, options[0] ? " " : "", options);
    return rsm_kernel_get(device, program, name, all, kernel);
}
