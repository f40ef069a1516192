/* Around the one-dimensional transforms of clFFT, which know neither offsets nor more than one stride: pencils
 * are gathered to a dense array of `count` rows of m complex numbers, transformed there, and scattered back. Only
 * forward transforms are used: the backward one is the forward one between two conjugations.
 *
 * Lengths n that clFFT lacks go by Bluestein's algorithm, with w[j] = exp(-i pi j^2 / n): X = w (u * v), u = x w,
 * v = conj(w) at lags -(n - 1) ... n - 1, the convolution being cyclic over m >= 2 n - 1 numbers. `spectrum` is
 * the transform of v over m; the product's inverse transform again is a forward one between conjugations.
 *
 * Element j of pencil q is complex number (q % inner) + (q / inner) * inner * n + j * inner behind `offset`. Rows are
 * dense: number j of row r is complex number r * m + j; row r is pencil first + r. Complex numbers are pairs of floats.
 * Work-items: global id 0 is a number j of a row, id 1 a row. Any work-group; items beyond either end do nothing.
 * CLFFT_PROBE: clfft_probe is there too, which is built to see whether clFFT's kernels could be, and never run. */

float2 multiply(const float2 a, const float2 b)
{
    return (float2)(a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x);
}

/* Work-items: (m, count). sign: 1 forward, -1 backward. chirp is w, not read when n == m. */
__kernel void fft_gather(__global const float *source, const int offset, const int inner, const int n,
                         __global float *target, const int m, const int first, const int count,
                         const float sign, __global const float *chirp)
{
    const int j = (int)get_global_id(0), row = (int)get_global_id(1);
    if (j >= m || row >= count) return;
    float2 value = (float2)(0.0f, 0.0f);
    if (j < n) {
        const int q = first + row;
        value = vload2(q % inner + (q / inner) * inner * n + j * inner, source + offset);
        value.y *= sign;
        if (n < m) value = multiply(value, vload2(j, chirp));
    }
    vstore2(value, row * m + j, target);
}

/* Work-items: (m, count). values = conj(values * spectrum). */
__kernel void fft_convolve(__global float *values, const int m, const int count,
                           __global const float *spectrum)
{
    const int j = (int)get_global_id(0), row = (int)get_global_id(1);
    if (j >= m || row >= count) return;
    const float2 product = multiply(vload2(row * m + j, values), vload2(j, spectrum));
    vstore2((float2)(product.x, -product.y), row * m + j, values);
}

/* Work-items: (n, count). */
__kernel void fft_scatter(__global const float *source, const int m, __global float *target, const int offset,
                          const int inner, const int n, const int first, const int count, const float sign,
                          const float scale, __global const float *chirp)
{
    const int j = (int)get_global_id(0), row = (int)get_global_id(1);
    if (j >= n || row >= count) return;
    float2 value = vload2(row * m + j, source);
    if (n < m) value = multiply((float2)(value.x, -value.y), vload2(j, chirp));
    value.y *= sign;
    const int q = first + row;
    vstore2(value * scale, q % inner + (q / inner) * inner * n + j * inner, target + offset);
}

#ifdef CLFFT_PROBE

/* Compiles only where clFFT's kernels do, which assign pointers of other types without a cast: an error since
 * Clang 16. */
__kernel void clfft_probe(__global float2 *values)
{
    __global float4 *pairs = values;
    pairs[0] = (float4)(0.0f);
}

#endif
