#include "nn/map.h"

#include <math.h>
#include <stdio.h>

/* Rows that a kernel holds in registers (ROWS of the kernel), and a work-item of a CPU works through. The
 * gate, which reads two channels, goes row by row on CPUs: a cache fetches few streams ahead. */
#define ROWS 4
#define CPU_GATE_ROWS 1
#define CPU_ITEM_ROWS 16

/* x: the slice; row r of it. */
static double convolve(const double *x, const double *w, rsm_rows size, size_t r, size_t p)
{
    const size_t width = size.width;
    double sum = 0;
    for (size_t i = 0; i < 3; i++) {
        if ((r + i == 0 && !size.above) || (r + i == size.rows + 1 && !size.below)) continue;
        const double *row = x + r * width + i * width - width;
        if (p > 0) sum += row[p - 1] * w[3 * i];
        sum += row[p] * w[3 * i + 1];
        if (p + 1 < width) sum += row[p + 1] * w[3 * i + 2];
    }
    return sum;
}

static void reference(rsm_map x, rsm_vector w, rsm_map y, size_t channels, rsm_rows size)
{
    const size_t width = size.width, pixels = size.rows * width;
    for (size_t c = 0; c < channels; c++)
        for (size_t s = 0; s < size.slices; s++) {
            const double *from = rsm_map_host(x, c) + s * pixels;
            double *to = rsm_map_host(y, c) + s * pixels;
            for (size_t i = 0; i < pixels; i++) to[i] = convolve(from, rsm_vector_host(w) + 9 * c, size, i / width, i % width);
        }
}

static void reference_gate(rsm_map x, rsm_vector w, rsm_map y, size_t hidden, rsm_rows size)
{
    const size_t width = size.width, pixels = size.rows * width;
    for (size_t c = 0; c < hidden; c++)
        for (size_t s = 0; s < size.slices; s++) {
            const size_t other = c + hidden;
            const double *from = rsm_map_host(x, c) + s * pixels, *other_from = rsm_map_host(x, other) + s * pixels;
            double *to = rsm_map_host(y, c) + s * pixels;
            for (size_t i = 0; i < pixels; i++) {
                const double gate = convolve(from, rsm_vector_host(w) + 9 * c, size, i / width, i % width);
                const double value = convolve(other_from, rsm_vector_host(w) + 9 * other, size, i / width, i % width);
                to[i] = 0.5 * gate * (1 + erf(gate / sqrt(2.0))) * value;
            }
        }
}

static resmap_status check(rsm_device *device, const char *what, rsm_map x, rsm_vector w, rsm_map y, rsm_map zeros,
                           size_t c_in, size_t c_out, rsm_rows size)
{
    const size_t count = size.slices * size.rows * size.width;
    const size_t above = size.above ? size.width : 0, below = size.below ? size.width : 0;
    rsm_map all = x;
    if ((above + below > 0 && size.slices > 1) || x.offset < above || zeros.storage != x.storage)
        return rsm_fail(rsm_device_env(device), RESMAP_INTERNAL,
                        "%s: slices that go on, rows before the buffer, or zeros of another storage", what);
    all.offset -= above;
    RSM_TRY(rsm_check_map(device, what, all, c_in, above + count + below));
    RSM_TRY(rsm_check_map(device, what, y, c_out, count));
    RSM_TRY(rsm_check_map(device, what, zeros, 1, size.width));
    return rsm_check_vector(device, what, w, 9 * c_in);
}

/* *cut, *item_rows, the global size and the kernel. cpu_rows: ROWS on CPUs. */
static resmap_status prepare(rsm_device *device, rsm_tunable tunable, const char *name, size_t channels,
                             rsm_rows size, int cpu_rows, rsm_cut *cut, size_t *item_rows,
                             size_t global[3], rsm_storage x, rsm_storage y, rsm_kernel **kernel)
{
    char options[64];
    const rsm_variant *tuned = rsm_tuned(device, tunable);
    *cut = rsm_cut_tuned(device, tuned, size.width);
    const int cpu = cut->columns == 1;
    const int held = tuned && tuned->values[2] ? tuned->values[2] : cpu ? cpu_rows : ROWS;
    *item_rows = cpu ? tuned && tuned->values[3] ? (size_t)tuned->values[3] : CPU_ITEM_ROWS : (size_t)held;
    global[0] = cut->columns;
    global[1] = size.slices * ((size.rows + *item_rows - 1) / *item_rows);
    global[2] = channels;
    snprintf(options, sizeof options, "-DROWS=%d -DX_TYPE=%s -DY_TYPE=%s", held, rsm_storage_type(x),
             rsm_storage_type(y));
    return rsm_cut_kernel(device, "depthwise3x3", name, cut, options, kernel);
}

resmap_status rsm_depthwise3x3(rsm_device *device, rsm_map x, rsm_vector w, rsm_map y, rsm_map zeros, size_t channels,
                               rsm_rows size)
{
    rsm_cut cut;
    rsm_kernel *kernel;
    size_t item_rows, global[3], count = size.slices * size.rows * size.width;
    if (channels == 0 || count == 0) return RESMAP_OK;
    RSM_TRY(check(device, "depthwise convolution", x, w, y, zeros, channels, channels, size));
    RSM_TRY(rsm_profile_next(device, "depthwise3x3", channels, 0, 18 * (double)channels * (double)count,
                             rsm_map_size(x, channels, count) + rsm_map_size(y, channels, count)));
    if (rsm_device_is_reference(device)) {
        reference(x, w, y, channels, size);
        return RESMAP_OK;
    }
    RSM_TRY(prepare(device, RSM_TUNE_DEPTHWISE, "depthwise3x3", channels, size, ROWS, &cut, &item_rows,
                    global, x.storage, y.storage, &kernel));
    return RSM_RUN(device, kernel, 3, global, cut.local, RSM_MAP(x), RSM_VECTOR(w), RSM_MAP(y), RSM_VECTOR(zeros),
                   RSM_INT(size.rows), RSM_INT(size.width), RSM_INT(size.above), RSM_INT(size.below), RSM_INT(item_rows));
}

resmap_status rsm_depthwise3x3_gate(rsm_device *device, rsm_map x, rsm_vector w, rsm_map y, rsm_map zeros, size_t hidden,
                                    rsm_rows size)
{
    rsm_cut cut;
    rsm_kernel *kernel;
    size_t item_rows, global[3], count = size.slices * size.rows * size.width;
    if (hidden == 0 || count == 0) return RESMAP_OK;
    RSM_TRY(check(device, "gate", x, w, y, zeros, 2 * hidden, hidden, size));
    RSM_TRY(rsm_profile_next(device, "depthwise3x3_gate", hidden, 0, 36 * (double)hidden * (double)count,
                             rsm_map_size(x, 2 * hidden, count) + rsm_map_size(y, hidden, count)));
    if (rsm_device_is_reference(device)) {
        reference_gate(x, w, y, hidden, size);
        return RESMAP_OK;
    }
    RSM_TRY(prepare(device, RSM_TUNE_GATE, "depthwise3x3_gate", hidden, size, CPU_GATE_ROWS, &cut,
                    &item_rows, global, x.storage, y.storage, &kernel));
    return RSM_RUN(device, kernel, 3, global, cut.local, RSM_MAP(x), RSM_VECTOR(w), RSM_MAP(y), RSM_VECTOR(zeros),
                   RSM_INT(hidden), RSM_INT(size.rows), RSM_INT(size.width), RSM_INT(size.above), RSM_INT(size.below),
                   RSM_INT(item_rows));
}
