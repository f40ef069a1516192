/* Motion of the synthesizer (synth/motion.c). Layouts, fastest last, all dense:
 *   slab    [row of the slab][column][line]    complex
 *   hybrid  [line][row][column]                complex
 *   volume  [k][j][i]                          real
 * Lines lie along the phase axis; columns and rows are the two other axes. Row b of a slab is row first_row + b.
 * Work-items: global ids 0, 1, 2 are what each kernel names, in that order. Any work-group; items beyond an end do nothing. */

static float voxel(__global const float *x, int i, int j, int k, int n0, int n1, int n2)
{
    return i >= 0 && i < n0 && j >= 0 && j < n1 && k >= 0 && k < n2 ? x[(k * n1 + j) * n0 + i] : 0.0f;
}

/* Between voxel i and the next along axis 0, the part u of the way. */
static float between(__global const float *x, int i, int j, int k, float u, int n0, int n1, int n2)
{
    return (1.0f - u) * voxel(x, i, j, k, n0, n1, n2) + u * voxel(x, i + 1, j, k, n0, n1, n2);
}

/* Fills the slab with a moved copy of x (n0 x n1 x n2, i fastest): trilinear, 0 outside. A position is the
 * sum of three table entries, each 3 floors and 3 fractions, so that whole voxels and parts of one are never
 * added in one float. Work-items: (line, column, row of the slab). */
__kernel void synth_sample(__global const float *x, __global float2 *slab, __global const float *position,
                           int of_column, int of_row, int of_line, int n0, int n1, int n2, int lines,
                           int columns, int rows, int slab_rows, int first_row)
{
    const int p = get_global_id(0), a = get_global_id(1), b = get_global_id(2);
    if (p >= lines || a >= columns || b >= slab_rows) return;
    float sum = 0.0f;
    if (first_row + b < rows) {
        __global const float *ta = position + 6 * (of_column + a);
        __global const float *tb = position + 6 * (of_row + first_row + b);
        __global const float *tp = position + 6 * (of_line + p);
        const float fi = ta[3] + tb[3] + tp[3], fj = ta[4] + tb[4] + tp[4], fk = ta[5] + tb[5] + tp[5];
        const int i = (int)(ta[0] + tb[0] + tp[0] + floor(fi));
        const int j = (int)(ta[1] + tb[1] + tp[1] + floor(fj));
        const int k = (int)(ta[2] + tb[2] + tp[2] + floor(fk));
        const float u = fi - floor(fi), v = fj - floor(fj), w = fk - floor(fk);
        const float near = (1.0f - v) * between(x, i, j, k, u, n0, n1, n2)
            + v * between(x, i, j + 1, k, u, n0, n1, n2);
        const float far = (1.0f - v) * between(x, i, j, k + 1, u, n0, n1, n2)
            + v * between(x, i, j + 1, k + 1, u, n0, n1, n2);
        sum = (1.0f - w) * near + w * far;
    }
    slab[(b * columns + a) * lines + p] = (float2)(sum, 0.0f);
}

/* Copies the lines that `copy` owns from the slab into hybrid space. Work-items: (column, row of the slab,
 * line). */
__kernel void synth_keep(__global const float2 *slab, __global float2 *hybrid, __global const float *owner,
                         int copy, int lines, int columns, int rows, int slab_rows, int first_row)
{
    const int a = get_global_id(0), b = get_global_id(1), p = get_global_id(2);
    if (a >= columns || b >= slab_rows || p >= lines) return;
    if ((int)owner[p] == copy)
        hybrid[(p * rows + first_row + b) * columns + a] = slab[(b * columns + a) * lines + p];
}

/* The other way, all lines; rows that do not exist become 0. Work-items: (line, column, row of the slab). */
__kernel void synth_gather(__global const float2 *hybrid, __global float2 *slab, int lines, int columns,
                           int rows, int slab_rows, int first_row)
{
    const int p = get_global_id(0), a = get_global_id(1), b = get_global_id(2);
    if (p >= lines || a >= columns || b >= slab_rows) return;
    slab[(b * columns + a) * lines + p] =
        first_row + b < rows ? hybrid[(p * rows + first_row + b) * columns + a] : (float2)(0.0f, 0.0f);
}

static float2 times(float2 x, float2 y)
{
    return (float2)(x.x * y.x - x.y * y.y, x.x * y.y + x.y * y.x);
}

/* Multiplies the plane of `line` by three phase ramps, stored one after another: columns, rows, lines.
 * Work-items: (column, row). */
__kernel void synth_ramp(__global float2 *hybrid, __global const float2 *ramp, int columns, int rows,
                         int line)
{
    const int a = get_global_id(0), b = get_global_id(1);
    if (a >= columns || b >= rows) return;
    __global float2 *value = hybrid + (line * rows + b) * columns + a;
    *value = times(times(*value, ramp[a]), times(ramp[columns + b], ramp[columns + rows + line]));
}

/* Absolute values of the slab's first `slab_rows` rows into the volume, whose strides are by_…. Work-items:
 * (line, column, row of the slab). */
__kernel void synth_magnitude(__global const float2 *slab, __global float *volume, int lines, int columns,
                              int slab_rows, int first_row, int by_column, int by_row, int by_line)
{
    const int p = get_global_id(0), a = get_global_id(1), b = get_global_id(2);
    if (p >= lines || a >= columns || b >= slab_rows) return;
    const float2 v = slab[(b * columns + a) * lines + p];
    volume[a * by_column + (first_row + b) * by_row + p * by_line] = hypot(v.x, v.y);
}
