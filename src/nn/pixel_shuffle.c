#include "nn/map.h"

/* fine[c][2 r + i][2 p + j] and coarse[4 c + 2 i + j][r][p] are the same pixel. */
static void reference(rsm_map coarse, rsm_map fine, size_t channels, size_t rows, size_t width, int to_fine)
{
    for (size_t c = 0; c < channels; c++)
        for (size_t i = 0; i < 2; i++)
            for (size_t j = 0; j < 2; j++)
                for (size_t r = 0; r < rows; r++)
                    for (size_t p = 0; p < width; p++) {
                        double *a = rsm_map_host(fine, c) + (2 * r + i) * 2 * width + 2 * p + j;
                        double *b = rsm_map_host(coarse, 4 * c + 2 * i + j) + r * width + p;
                        if (to_fine) *a = *b;
                        else *b = *a;
                    }
}

/* rows, width: of the coarse map. */
static resmap_status run(rsm_device *device, const char *name, rsm_map coarse, rsm_map fine,
                         size_t channels, size_t rows, size_t width, int to_fine)
{
    if (channels == 0 || rows == 0 || width == 0) return RESMAP_OK;
    RSM_TRY(rsm_check_fp32(device, name, coarse, 4 * channels, rows * width));
    RSM_TRY(rsm_check_fp32(device, name, fine, channels, 4 * rows * width));
    RSM_TRY(rsm_profile_next(device, name, channels, 0, 0,
                             8 * (double)channels * (double)rows * (double)width));
    if (rsm_device_is_reference(device)) {
        reference(coarse, fine, channels, rows, width, to_fine);
        return RESMAP_OK;
    }
    rsm_kernel *kernel;
    const rsm_cut cut = rsm_cut_rows(device, width);
    const size_t global[3] = {cut.columns, rows, channels};
    RSM_TRY(rsm_cut_kernel(device, "pixel_shuffle", name, &cut, "", &kernel));
    const rsm_map x = to_fine ? coarse : fine, y = to_fine ? fine : coarse;
    return RSM_RUN(device, kernel, 3, global, cut.local, RSM_MAP(x), RSM_MAP(y), RSM_INT(width));
}

resmap_status rsm_pixel_shuffle(rsm_device *device, rsm_map x, rsm_map y, size_t channels, size_t rows,
                                size_t width)
{
    return run(device, "pixel_shuffle", x, y, channels, rows, width, 1);
}

resmap_status rsm_pixel_unshuffle(rsm_device *device, rsm_map x, rsm_map y, size_t channels, size_t rows,
                                  size_t width)
{
    if (rows % 2 != 0 || width % 2 != 0) {
        return rsm_fail(rsm_device_env(device), RESMAP_INTERNAL, "pixel_unshuffle: %zu rows of %zu", rows,
                        width);
    }
    return run(device, "pixel_unshuffle", y, x, channels, rows / 2, width / 2, 0);
}
