#include "nn/map.h"

#include <math.h>
#include <stdio.h>

/* Rows that a kernel holds in registers (ROWS of the kernel), and a work-item of a CPU works through. The
 * gate, which reads two channels, goes row by row on CPUs: a cache fetches few streams ahead. */
#define ROWS 4
#define CPU_GATE_ROWS 1
#define CPU_ITEM_ROWS 16

static double convolve(const double *x, const double *w, size_t width, size_t r, size_t p)
{
    double sum = 0;
    for (size_t i = 0; i < 3; i++) {
        const double *row = x + (r + i) * width;
        if (p > 0) sum += row[p - 1] * w[3 * i];
        sum += row[p] * w[3 * i + 1];
        if (p + 1 < width) sum += row[p + 1] * w[3 * i + 2];
    }
    return sum;
}

static void reference(rsm_map x, rsm_vector w, rsm_map y, size_t channels, size_t rows, size_t width)
{
    for (size_t c = 0; c < channels; c++)
        for (size_t r = 0; r < rows; r++)
            for (size_t p = 0; p < width; p++)
                rsm_map_host(y, c)[r * width + p] =
                    convolve(rsm_map_host(x, c), rsm_vector_host(w) + 9 * c, width, r, p);
}

static void reference_gate(rsm_map x, rsm_vector w, rsm_map y, size_t hidden, size_t rows, size_t width)
{
    for (size_t c = 0; c < hidden; c++)
        for (size_t r = 0; r < rows; r++)
            for (size_t p = 0; p < width; p++) {
                const size_t other = c + hidden;
                const double gate = convolve(rsm_map_host(x, c), rsm_vector_host(w) + 9 * c, width, r, p);
                const double value =
                    convolve(rsm_map_host(x, other), rsm_vector_host(w) + 9 * other, width, r, p);
                rsm_map_host(y, c)[r * width + p] = 0.5 * gate * (1 + erf(gate / sqrt(2.0))) * value;
            }
}

static resmap_status check(rsm_device *device, const char *what, rsm_map x, rsm_vector w, rsm_map y,
                           size_t c_in, size_t c_out, size_t rows, size_t width)
{
    rsm_map last = x;
    last.offset += (c_in - 1) * x.plane;
    RSM_TRY(rsm_check_map(device, what, x, c_in, (rows + 1) * width));
    RSM_TRY(rsm_check_map(device, what, last, 1, (rows + 2) * width));
    RSM_TRY(rsm_check_map(device, what, y, c_out, rows * width));
    return rsm_check_vector(device, what, w, 9 * c_in);
}

/* *cut, *item_rows, the global size and the kernel. cpu_rows: ROWS on CPUs. */
static resmap_status prepare(rsm_device *device, rsm_tunable tunable, const char *name, size_t channels,
                             size_t rows, size_t width, int cpu_rows, rsm_cut *cut, size_t *item_rows,
                             size_t global[3], rsm_storage x, rsm_storage y, rsm_kernel **kernel)
{
    char options[64];
    const rsm_variant *tuned = rsm_tuned(device, tunable);
    *cut = rsm_cut_tuned(device, tuned, width);
    const int cpu = cut->columns == 1;
    const int held = tuned && tuned->values[2] ? tuned->values[2] : cpu ? cpu_rows : ROWS;
    *item_rows = cpu ? tuned && tuned->values[3] ? (size_t)tuned->values[3] : CPU_ITEM_ROWS : (size_t)held;
    global[0] = cut->columns;
    global[1] = (rows + *item_rows - 1) / *item_rows;
    global[2] = channels;
    snprintf(options, sizeof options, "-DROWS=%d -DX_TYPE=%s -DY_TYPE=%s", held, rsm_storage_type(x),
             rsm_storage_type(y));
    return rsm_cut_kernel(device, "depthwise3x3", name, cut, options, kernel);
}

resmap_status rsm_depthwise3x3(rsm_device *device, rsm_map x, rsm_vector w, rsm_map y, size_t channels,
                               size_t rows, size_t width)
{
    rsm_cut cut;
    rsm_kernel *kernel;
    size_t item_rows, global[3];
    if (channels == 0 || rows == 0 || width == 0) return RESMAP_OK;
    RSM_TRY(check(device, "depthwise convolution", x, w, y, channels, channels, rows, width));
    RSM_TRY(rsm_profile_next(device, "depthwise3x3", channels, 0,
                             18 * (double)channels * (double)rows * (double)width,
                             rsm_map_size(x, channels, (rows + 2) * width)
                             + rsm_map_size(y, channels, rows * width)));
    if (rsm_device_is_reference(device)) {
        reference(x, w, y, channels, rows, width);
        return RESMAP_OK;
    }
    RSM_TRY(prepare(device, RSM_TUNE_DEPTHWISE, "depthwise3x3", channels, rows, width, ROWS, &cut, &item_rows,
                    global, x.storage, y.storage, &kernel));
    return RSM_RUN(device, kernel, 3, global, cut.local, RSM_MAP(x), RSM_VECTOR(w), RSM_MAP(y), RSM_INT(rows),
                   RSM_INT(width), RSM_INT(item_rows));
}

resmap_status rsm_depthwise3x3_gate(rsm_device *device, rsm_map x, rsm_vector w, rsm_map y, size_t hidden,
                                    size_t rows, size_t width)
{
    rsm_cut cut;
    rsm_kernel *kernel;
    size_t item_rows, global[3];
    if (hidden == 0 || rows == 0 || width == 0) return RESMAP_OK;
    RSM_TRY(check(device, "gate", x, w, y, 2 * hidden, hidden, rows, width));
    RSM_TRY(rsm_profile_next(device, "depthwise3x3_gate", hidden, 0,
                             36 * (double)hidden * (double)rows * (double)width,
                             rsm_map_size(x, 2 * hidden, (rows + 2) * width)
                             + rsm_map_size(y, hidden, rows * width)));
    if (rsm_device_is_reference(device)) {
        reference_gate(x, w, y, hidden, rows, width);
        return RESMAP_OK;
    }
    RSM_TRY(prepare(device, RSM_TUNE_GATE, "depthwise3x3_gate", hidden, rows, width, CPU_GATE_ROWS, &cut,
                    &item_rows, global, x.storage, y.storage, &kernel));
    return RSM_RUN(device, kernel, 3, global, cut.local, RSM_MAP(x), RSM_VECTOR(w), RSM_MAP(y),
                   RSM_INT(hidden), RSM_INT(rows), RSM_INT(width), RSM_INT(item_rows));
}
