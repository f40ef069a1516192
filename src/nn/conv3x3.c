#include "nn/map.h"

#include <stdio.h>

/* Output channels and rows of each that a work-item holds in registers: 16 sums hide how long an addition
 * takes, and leave room; 12 where a CPU has 16 registers only. */
#define CHANNELS 4
#define ROWS 4
#define ROWS_FEW_REGISTERS 3
/* Fewer channels, in or out, make no product that is worth its columns. */
#define THIN 4

rsm_tunable rsm_conv3x3_tunable(size_t c_in, size_t c_out)
{
    return c_in <= THIN || c_out <= THIN ? RSM_TUNE_CONV_THIN : RSM_TUNE_CONV;
}

/* The variant tuned, or the rule: im2col only on GPUs, whose matrix products are tuned far better. */
static rsm_variant choose(const rsm_device *device, size_t c_in, size_t c_out)
{
    const rsm_tunable what = rsm_conv3x3_tunable(c_in, c_out);
    const rsm_variant *tuned = rsm_tuned(device, what);
    const int vector = rsm_device_vector(device);
    rsm_variant rule = {"default", 0, {0, 0, 0, 0}};
    if (tuned) return *tuned;
    if (!rsm_device_is_cpu(device) && what == RSM_TUNE_CONV) return rule;
    rule.values[2] = CHANNELS;
    rule.values[3] = vector == 4 || vector == 8 ? ROWS_FEW_REGISTERS : ROWS;
    return rule;
}

static int takes_columns(const rsm_device *device, size_t c_in, size_t c_out)
{
    return !rsm_device_is_reference(device) && choose(device, c_in, c_out).values[2] == 0;
}

/* Products and the reference store plainly; what they made is reordered afterwards. */
static int stores_in(const rsm_device *device, size_t c_in, size_t c_out, rsm_order order)
{
    return order == RSM_PLAIN || (!rsm_device_is_reference(device) && !takes_columns(device, c_in, c_out));
}

size_t rsm_conv3x3_scratch(const rsm_device *device, size_t c_in, size_t c_out, size_t count, rsm_order order)
{
    const size_t columns = takes_columns(device, c_in, c_out) ? 9 * c_in * count : 0;
    return columns + (stores_in(device, c_in, c_out, order) ? 0 : c_out * count);
}

/* y[p] += the row x convolved with three numbers. */
static void add_row(const double *x, const double *w, double *y, size_t width)
{
    for (size_t p = 1; p < width; p++) y[p] += w[0] * x[p - 1];
    for (size_t p = 0; p < width; p++) y[p] += w[1] * x[p];
    for (size_t p = 1; p < width; p++) y[p - 1] += w[2] * x[p];
}

static void reference(rsm_map x, rsm_vector w, rsm_map y, size_t c_in, size_t c_out, size_t height,
                      size_t width, size_t first_row, size_t rows)
{
    for (size_t o = 0; o < c_out; o++)
        for (size_t r = 0; r < rows; r++) {
            double *to = rsm_map_host(y, o) + r * width;
            for (size_t p = 0; p < width; p++) to[p] = 0;
            for (size_t c = 0; c < c_in; c++)
                for (size_t i = 0; i < 3; i++) {
                    const size_t row = first_row + r + i;   /* one more than the row meant */
                    if (row == 0 || row > height) continue;
                    add_row(rsm_map_host(x, c) + (row - 1) * width,
                            rsm_vector_host(w) + ((o * c_in + c) * 3 + i) * 3, to, width);
                }
        }
}

static resmap_status direct(rsm_device *device, const rsm_variant *variant, rsm_map x, rsm_vector w,
                            rsm_map y, rsm_order order, size_t c_in, size_t c_out, size_t height, size_t width,
                            size_t first_row, size_t rows)
{
    static const char *const orders[] = {"PLAIN", "SHUFFLE", "UNSHUFFLE"};
    char options[64];
    rsm_kernel *kernel;
    const rsm_cut cut = rsm_cut_tuned(device, variant, width);
    const size_t held = (size_t)variant->values[3];
    const size_t channels = c_out < (size_t)variant->values[2] ? c_out : (size_t)variant->values[2];
    const size_t tiles = (rows + held - 1) / held, blocks = (c_out + channels - 1) / channels;
    snprintf(options, sizeof options, "-DCHANNELS=%d -DROWS=%d -DORDER=%s", (int)channels, (int)held, orders[order]);
    if (cut.columns > 1) {
        const size_t global[3] = {cut.columns, tiles, blocks};
        RSM_TRY(rsm_cut_kernel(device, "conv3x3", "conv3x3_pixel", &cut, options, &kernel));
        return RSM_RUN(device, kernel, 3, global, cut.local, RSM_MAP(x), RSM_VECTOR(w), RSM_MAP(y),
                       RSM_INT(c_in), RSM_INT(c_out), RSM_INT(height), RSM_INT(width), RSM_INT(first_row),
                       RSM_INT(rows));
    }
    /* Every run of channels copies its inputs anew, so runs are as long as leaves enough of them for all
     * cores. */
    const size_t wanted = 8 * (size_t)rsm_device_info(device)->compute_units;
    size_t runs = tiles >= wanted ? 1 : (wanted + tiles - 1) / tiles;
    if (runs > (blocks + 3) / 4) runs = (blocks + 3) / 4;
    const size_t item_channels = (blocks + runs - 1) / runs * channels;
    const size_t global[2] = {tiles, (c_out + item_channels - 1) / item_channels}, local[2] = {1, 1};
    RSM_TRY(rsm_cut_kernel(device, "conv3x3", "conv3x3_tile", &cut, options, &kernel));
    return RSM_RUN(device, kernel, 2, global, local, RSM_MAP(x), RSM_VECTOR(w), RSM_MAP(y), RSM_INT(c_in),
                   RSM_INT(c_out), RSM_INT(height), RSM_INT(width), RSM_INT(first_row), RSM_INT(rows),
                   RSM_INT(item_channels));
}

static resmap_status by_columns(rsm_device *device, rsm_map x, rsm_vector w, rsm_map y, rsm_vector scratch,
                                size_t c_in, size_t c_out, size_t height, size_t width, size_t first_row,
                                size_t rows)
{
    rsm_kernel *kernel;
    const rsm_cut cut = rsm_cut_rows(device, width);
    const size_t count = rows * width, global[3] = {cut.columns, rows, c_in};
    RSM_TRY(rsm_check_vector(device, "convolution", scratch, 9 * c_in * count));
    RSM_TRY(rsm_cut_kernel(device, "im2col", "im2col", &cut, "", &kernel));
    RSM_TRY(RSM_RUN(device, kernel, 3, global, cut.local, RSM_MAP(x), RSM_VECTOR(scratch), RSM_INT(height),
                    RSM_INT(width), RSM_INT(first_row), RSM_INT(rows)));
    return rsm_gemm(device, c_out, count, 9 * c_in, (rsm_matrix){w.buffer, w.offset, 9 * c_in, RSM_FP32},
                    (rsm_matrix){scratch.buffer, scratch.offset, count, RSM_FP32},
                    rsm_map_matrix(y, count), 0);
}

/* What is wrong with the sizes; NULL: nothing. */
static const char *bad_size(rsm_order order, size_t c_out, size_t height, size_t width, size_t first_row, size_t rows)
{
    if (first_row > height || rows > height - first_row) return "no such rows";
    if (order == RSM_SHUFFLE && c_out % 4 != 0) return "channels that are not in fours cannot be shuffled";
    if (order == RSM_UNSHUFFLE && (rows % 2 != 0 || width % 2 != 0)) return "odd sizes cannot be unshuffled";
    return NULL;
}

/* The result, made plainly after the scratch that making it takes, then reordered. */
static resmap_status reordered(rsm_device *device, rsm_map x, rsm_vector w, rsm_map y, rsm_order order, rsm_vector scratch,
                               size_t c_in, size_t c_out, size_t height, size_t width, size_t first_row, size_t rows)
{
    const size_t count = rows * width;
    const rsm_map plain = {scratch.buffer, scratch.offset + rsm_conv3x3_scratch(device, c_in, c_out, count, RSM_PLAIN), count,
                           RSM_FP32};
    RSM_TRY(rsm_conv3x3(device, x, w, plain, RSM_PLAIN, scratch, c_in, c_out, height, width, first_row, rows));
    return order == RSM_SHUFFLE ? rsm_pixel_shuffle(device, plain, y, c_out / 4, rows, width)
                                : rsm_pixel_unshuffle(device, plain, y, c_out, rows, width);
}

resmap_status rsm_conv3x3(rsm_device *device, rsm_map x, rsm_vector w, rsm_map y, rsm_order order, rsm_vector scratch,
                          size_t c_in, size_t c_out, size_t height, size_t width, size_t first_row, size_t rows)
{
    const double weights = 9 * (double)c_in * (double)c_out;
    const size_t count = rows * width;
    const size_t y_channels = order == RSM_SHUFFLE ? c_out / 4 : order == RSM_UNSHUFFLE ? 4 * c_out : c_out;
    const char *bad = bad_size(order, c_out, height, width, first_row, rows);
    resmap_status status = RESMAP_OK;
    if (bad) {
        return rsm_fail(rsm_device_env(device), RESMAP_INTERNAL, "convolution to %zu channels, rows %zu to %zu of %zu x %zu: %s",
                        c_out, first_row, first_row + rows, height, width, bad);
    }
    if (c_in == 0 || c_out == 0 || rows == 0 || width == 0) return RESMAP_OK;
    RSM_TRY(rsm_check_fp32(device, "convolution", x, c_in, height * width));
    RSM_TRY(rsm_check_fp32(device, "convolution", y, y_channels, c_out * count / y_channels));
    RSM_TRY(rsm_check_vector(device, "convolution", w, 9 * c_in * c_out));
    if (!stores_in(device, c_in, c_out, order))
        return reordered(device, x, w, y, order, scratch, c_in, c_out, height, width, first_row, rows);
    RSM_TRY(rsm_profile_next(device, "conv3x3", c_out, c_in, 2 * weights * (double)count,
                             weights + rsm_map_size(x, c_in, count) + rsm_map_size(y, c_out, count)));
    if (rsm_device_is_reference(device)) {
        reference(x, w, y, c_in, c_out, height, width, first_row, rows);
    } else if (takes_columns(device, c_in, c_out)) {
        rsm_profile_hold(device, 1);
        status = by_columns(device, x, w, y, scratch, c_in, c_out, height, width, first_row, rows);
        rsm_profile_hold(device, 0);
    } else {
        const rsm_variant variant = choose(device, c_in, c_out);
        status = direct(device, &variant, x, w, y, order, c_in, c_out, height, width, first_row, rows);
    }
    return status;
}
