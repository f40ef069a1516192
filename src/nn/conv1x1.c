#include "nn/map.h"

resmap_status rsm_conv1x1(rsm_device *device, rsm_vector w, size_t w_stride, rsm_map x, rsm_map y,
                          size_t c_in, size_t c_out, size_t count, int accumulate)
{
    if (c_out == 0 || c_in == 0 || count == 0) return RESMAP_OK;
    RSM_TRY(rsm_check_map(device, "conv1x1", (rsm_map){w.buffer, w.offset, w_stride, RSM_FP32}, c_out, c_in));
    RSM_TRY(rsm_check_map(device, "conv1x1", x, c_in, count));
    RSM_TRY(rsm_check_map(device, "conv1x1", y, c_out, count));
    return rsm_gemm(device, c_out, count, c_in, (rsm_matrix){w.buffer, w.offset, w_stride, RSM_FP32},
                    rsm_map_matrix(x, count), rsm_map_matrix(y, count), accumulate);
}

resmap_status rsm_norm_conv1x1(rsm_device *device, rsm_vector weight, rsm_vector bias, rsm_vector w, rsm_map x,
                               rsm_map normal, rsm_map y, size_t c_in, size_t c_out, size_t count)
{
    const rsm_column_norm norm = {weight.buffer, bias.buffer, weight.offset, bias.offset};
    if (!rsm_gemm_can_norm(device, c_out, c_in)) {
        RSM_TRY(rsm_layer_norm(device, x, weight, bias, normal, c_in, count));
        return rsm_conv1x1(device, w, c_in, normal, y, c_in, c_out, count, 0);
    }
    if (c_out == 0 || c_in == 0 || count == 0) return RESMAP_OK;
    RSM_TRY(rsm_check_vector(device, "norm", weight, c_in));
    RSM_TRY(rsm_check_map(device, "conv1x1", x, c_in, count));
    RSM_TRY(rsm_check_map(device, "conv1x1", y, c_out, count));
    return rsm_gemm_norm(device, c_out, count, c_in, (rsm_matrix){w.buffer, w.offset, c_in, RSM_FP32},
                         rsm_map_matrix(x, count), rsm_map_matrix(y, count), &norm);
}
