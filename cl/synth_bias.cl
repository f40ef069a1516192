/* Bias field of the synthesizer: exp of a polynomial. Its log reaches tens, where a float's last digit is no
 * longer small in the exponent; so it is computed as an unevaluated sum of two floats.
 *
 * volume, clean: dense, voxel i of row r at r * width + i, the rows (j, k) counted with j fastest. rows: order + 1
 * coefficients in X for each row; powers: X^0 … X^order for each i; both as pairs (high, low).
 * Work-items: global id 0 is a voxel (synth_bias) or a row (synth_bias_rows). Any work-group; items beyond the end do
 * nothing. */
#pragma OPENCL FP_CONTRACT OFF

static float2 log_field(__global const float2 *row, __global const float2 *power, int order)
{
    float2 sum = (float2)(0.0f, 0.0f);
    for (int a = 0; a <= order; a++) {
        const float2 c = row[a], x = power[a];
        const float product = c.x * x.x;
        const float rest = fma(c.x, x.x, -product) + c.x * x.y + c.y * x.x;
        const float total = sum.x + product, part = total - sum.x;
        sum.y += (sum.x - (total - part)) + (product - part) + rest;
        sum.x = total;
    }
    return sum;
}

/* volume *= field. Voxels are in one dimension: some GPUs take no more than 65535 groups along a second. */
__kernel void synth_bias(__global float *volume, __global const float2 *rows, __global const float2 *powers,
                         int order, int width, int count)
{
    const int at = get_global_id(0), i = at % width, r = at / width;
    if (at >= count) return;
    const float2 e = log_field(rows + r * (order + 1), powers + i * (order + 1), order);
    volume[at] *= exp(e.x) * (1.0f + e.y);
}

/* For each row the largest log of the field over the voxels above `threshold`, the sum of exp(log - largest),
 * and their number: three floats of `sums`. */
__kernel void synth_bias_rows(__global const float *clean, __global const float2 *rows,
                              __global const float2 *powers, __global float *sums, int order, float threshold,
                              int width, int row_count)
{
    const int r = get_global_id(0);
    if (r >= row_count) return;
    __global const float *x = clean + r * width;
    __global const float2 *row = rows + r * (order + 1);
    float most = -FLT_MAX, sum = 0.0f, rest = 0.0f;
    int inside = 0;
    for (int i = 0; i < width; i++)
        if (x[i] > threshold) {
            most = fmax(most, log_field(row, powers + i * (order + 1), order).x);
            inside++;
        }
    for (int i = 0; i < width; i++)
        if (x[i] > threshold) {
            const float2 e = log_field(row, powers + i * (order + 1), order);
            const float term = exp(e.x - most) * (1.0f + e.y);
            const float total = sum + term, part = total - sum;     /* compensated sum */
            rest += (sum - (total - part)) + (term - part);
            sum = total;
        }
    sums[3 * r] = inside > 0 ? most : 0.0f;
    sums[3 * r + 1] = sum + rest;
    sums[3 * r + 2] = (float)inside;
}
