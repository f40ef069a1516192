#include "nn/map.h"

static void reference_columns(rsm_map x, double *col, size_t c_in, size_t height, size_t width,
                              size_t first_row, size_t rows)
{
    for (size_t c = 0; c < c_in; c++)
        for (size_t i = 0; i < 3; i++)
            for (size_t j = 0; j < 3; j++)
                for (size_t r = 0; r < rows; r++)
                    for (size_t p = 0; p < width; p++) {
                        /* Both one higher than the pixel meant. */
                        const size_t row = first_row + r + i, column = p + j;
                        const int inside = row >= 1 && row <= height && column >= 1 && column <= width;
                        *col++ = inside ? rsm_map_host(x, c)[(row - 1) * width + column - 1] : 0;
                    }
}

resmap_status rsm_conv3x3(rsm_device *device, rsm_map x, rsm_vector w, rsm_map y, rsm_vector scratch,
                          size_t c_in, size_t c_out, size_t height, size_t width, size_t first_row,
                          size_t rows)
{
    if (c_in == 0 || c_out == 0 || rows == 0 || width == 0) return RESMAP_OK;
    if (first_row > height || rows > height - first_row) {
        return rsm_fail(rsm_device_env(device), RESMAP_INTERNAL, "convolution: rows %zu to %zu of %zu",
                        first_row, first_row + rows, height);
    }
    const size_t count = rows * width;
    RSM_TRY(rsm_check_fp32(device, "convolution", x, c_in, height * width));
    RSM_TRY(rsm_check_fp32(device, "convolution", y, c_out, count));
    RSM_TRY(rsm_check_vector(device, "convolution", w, c_out * c_in * 9));
    RSM_TRY(rsm_check_vector(device, "convolution", scratch, c_in * 9 * count));
    RSM_TRY(rsm_profile_next(device, "im2col", c_in, 0, 0, 10 * (double)c_in * (double)count));
    if (rsm_device_is_reference(device)) {
        reference_columns(x, rsm_vector_host(scratch), c_in, height, width, first_row, rows);
    } else {
        rsm_kernel *kernel;
        const rsm_cut cut = rsm_cut_rows(device, width);
        const size_t global[3] = {cut.columns, rows, c_in};
        RSM_TRY(rsm_cut_kernel(device, "im2col", "im2col", &cut, "", &kernel));
        RSM_TRY(RSM_RUN(device, kernel, 3, global, cut.local, RSM_MAP(x), RSM_VECTOR(scratch),
                        RSM_INT(height), RSM_INT(width), RSM_INT(first_row), RSM_INT(rows)));
    }
    return rsm_gemm(device, c_out, count, c_in * 9, (rsm_matrix){w.buffer, w.offset, c_in * 9, RSM_FP32},
                    (rsm_matrix){scratch.buffer, scratch.offset, count, RSM_FP32}, rsm_map_matrix(y, count), 0);
}
