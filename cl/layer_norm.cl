/* Layer norm over the channels of every pixel. Reads x twice: first for mean and variance, by Welford's
 * update on the distances from channel 0, which keeps what a large common level would drown; then to write
 * y. y may be x where
 * Y_TYPE is float.
 *
 * x, y: channel c of pixel i at offset + c * plane + i. weight, bias: one number a channel (bias unused
 * without WITH_BIAS).
 * Work-items: global id 0 is a block of BLOCK vectors of pixels. Any work-group.
 * WITH_BIAS 1: (x - mean) / sqrt(var + 1e-5) * weight + bias; 0: x / sqrt(var + 1e-5) * weight. */
#ifndef BLOCK
#define BLOCK 1
#endif
#ifndef WITH_BIAS
#define WITH_BIAS 0
#endif

#define LOAD(p, b)                                                                                  \
    (whole ? vec_load(float, (p) + (b) * VECTOR)                                                    \
           : vec_load_part(float, (p) + (b) * VECTOR, rest - (b) * VECTOR))

/* `rest` pixels are left from x on; `whole`: at least a block. */
vec_inline void norm(__global const float *x, int x_plane, __global const float *weight,
                     __global const float *bias, __global Y_TYPE *y, int y_plane, int channels, int rest,
                     const int whole)
{
    vec shift[BLOCK], mean[BLOCK], squares[BLOCK];
    for (int b = 0; b < BLOCK; b++) {
        shift[b] = LOAD(x, b);
        mean[b] = 0.0f;
        squares[b] = 0.0f;
    }
    for (int c = 1; c < channels; c++) {
        __global const float *from = x + c * x_plane;
        const float share = 1.0f / (float)(c + 1);
        for (int b = 0; b < BLOCK; b++) {
            const vec value = LOAD(from, b) - shift[b];
            const vec delta = value - mean[b];
            mean[b] += delta * share;
            squares[b] += delta * (value - mean[b]);
        }
    }
    for (int b = 0; b < BLOCK; b++) squares[b] = 1.0f / sqrt(squares[b] / (float)channels + 1e-5f);
    for (int c = 0; c < channels; c++) {
        __global const float *from = x + c * x_plane;
        __global Y_TYPE *to = y + c * y_plane;
        for (int b = 0; b < BLOCK; b++) {
#if WITH_BIAS
            const vec value = (LOAD(from, b) - shift[b] - mean[b]) * squares[b] * weight[c] + bias[c];
#else
            const vec value = LOAD(from, b) * squares[b] * weight[c];
#endif
            if (whole) vec_store(Y_TYPE, value, to + b * VECTOR);
            else vec_store_part(Y_TYPE, value, to + b * VECTOR, rest - b * VECTOR);
        }
    }
}

__kernel void layer_norm(__global const float *x, const int x_offset, const int x_plane,
                         __global const float *weight, const int weight_offset, __global const float *bias,
                         const int bias_offset, __global Y_TYPE *y, const int y_offset, const int y_plane,
                         const int channels, const int count)
{
    const int first = (int)get_global_id(0) * (BLOCK * VECTOR);
    const int rest = count - first;
    x += x_offset + first;
    y += y_offset + first;
    weight += weight_offset;
    bias += bias_offset;
    if (rest >= BLOCK * VECTOR) norm(x, x_plane, weight, bias, y, y_plane, channels, rest, 1);
    else if (rest > 0) norm(x, x_plane, weight, bias, y, y_plane, channels, rest, 0);
}
