/* Depthwise 3x3 convolution, and with the gate of the feed-forward behind it.
 *
 * x: slice s, channel c, row r, column p at x_offset + c * x_plane + (s * rows + r) * width + p. Zeros stand left and right
 * of a row, and above the first and below the last row of a slice, where the `width` zeros at `zeros` are read, unless
 * `above` (`below`) says that x goes on there: then there is one slice, a band of rows. w: 9 numbers a channel. y: as x.
 * Work-items: global id 0 takes every get_global_size(0)-th vector of columns (CPUs start one work-item,
 * others one for every column), id 1 is a run of item_rows rows of a slice, the slices one after the other, id 2 an output
 * channel. Any work-group that is 1 wide in ids 1 and 2. width >= VECTOR. ROWS rows are held in registers at a time. */
#ifndef ROWS
#define ROWS 4
#endif

/* sum[k] = the output row k of ROWS at column p; x: the input row of the first of them, of which `left` are left;
 * `above`: the one above it, `below`: the one below the last; what rows further down would give is not stored. inside: the
 * columns do not touch the ends of the row, which saves the tests. */
vec_inline void convolve(vec sum[ROWS], __global const X_TYPE *above, __global const X_TYPE *x, __global const X_TYPE *below,
                         __global const float *w, int left, int width, int p, const int inside)
{
#pragma unroll
    for (int k = 0; k < ROWS; k++) sum[k] = 0.0f;
#pragma unroll
    for (int i = 0; i < ROWS + 2; i++) {
        __global const X_TYPE *row = i == 0 ? above : i <= left ? x + (i - 1) * width : below;
        const vec before = inside ? vec_load(X_TYPE, row + p - 1) : vec_load_before(X_TYPE, row, p);
        const vec centre = vec_load(X_TYPE, row + p);
        const vec after = inside ? vec_load(X_TYPE, row + p + 1) : vec_load_after(X_TYPE, row, p, width);
#pragma unroll
        for (int k = 0; k < ROWS; k++) {
            const int j = i - k;
            if (j >= 0 && j < 3) {
                sum[k] += before * w[3 * j];
                sum[k] += centre * w[3 * j + 1];
                sum[k] += after * w[3 * j + 2];
            }
        }
    }
}

__kernel void depthwise3x3(__global const X_TYPE *x, const int x_offset, const int x_plane,
                           __global const float *w, const int w_offset, __global Y_TYPE *y,
                           const int y_offset, const int y_plane, __global const X_TYPE *zeros, const int zeros_offset,
                           const int rows, const int width, const int above, const int below, const int item_rows)
{
    const int channel = get_global_id(2);
    const int items = (rows + item_rows - 1) / item_rows, slice = (int)get_global_id(1) / items;
    const int first = (int)get_global_id(1) % items * item_rows;
    const int last = min(first + item_rows, rows);
    x += x_offset + channel * x_plane + slice * rows * width;
    y += y_offset + channel * y_plane + slice * rows * width;
    w += w_offset + channel * 9;
    zeros += zeros_offset;
    __global const X_TYPE *end = below ? x + rows * width : zeros;
    for (int r = first; r < last; r += ROWS) {
        __global const X_TYPE *from = x + r * width, *over = r > 0 || above ? from - width : zeros;
        for (int i = get_global_id(0); i < vec_number(width); i += get_global_size(0)) {
            const int p = vec_begin(i, width);
            const int inside = p > 0 && p + VECTOR < width;
            vec sum[ROWS];
            if (inside) convolve(sum, over, from, end, w, rows - r, width, p, 1);
            else convolve(sum, over, from, end, w, rows - r, width, p, 0);
#pragma unroll
            for (int k = 0; k < ROWS; k++)
                if (r + k < last) vec_store(Y_TYPE, sum[k], y + (r + k) * width + p);
        }
    }
}

/* x / 2 * (1 + erf(x / sqrt(2))), erf to 2e-7: x times a polynomial in x^2, which is moved to -1...1,
 * fitted to the least greatest error. From 5.374 on erf is 1 to 8e-8; on the other side that would be
 * multiplied by any x, and is made 0. */
vec_inline vec gelu(vec x)
{
    const vec a = min(max(x, -5.3740115f), 5.3740115f);
    const vec s = a * a * 0.06925208f - 1.0f;
    /* In halves, quarters, ...: a chain of 15 steps would be waited for. */
    const vec s2 = s * s, s4 = s2 * s2, s8 = s4 * s4;
    const vec p0 = (-7.862715423e-02f * s + 9.739737958e-02f) * s2 + (-1.312679797e-01f * s + 2.631198168e-01f);
    const vec p1 = (-2.795570903e-02f * s + 3.903067112e-02f) * s2 + (-5.119375139e-02f * s + 6.421346217e-02f);
    const vec p2 = (-3.864097875e-03f * s + 7.537579630e-03f) * s2 + (-1.186400093e-02f * s + 1.856103726e-02f);
    const vec p3 = (-3.047437058e-04f * s + 8.445305866e-04f) * s2 + (-8.244572091e-04f * s + 1.278136391e-03f);
    const vec p = (p3 * s4 + p2) * s8 + (p1 * s4 + p0);
    const vec y = 0.5f * x * (1.0f + p * a);
    return select(y, (vec)0.0f, x < -5.3740115f);
}

/* ROWS rows at one vector of columns. above, x, below, left: of both channels, as above. y: the first output row; last: how
 * many are to be stored. */
vec_inline void gate(__global const X_TYPE *above[2], __global const X_TYPE *x[2], __global const X_TYPE *below[2],
                     __global const float *w, int other_w, __global Y_TYPE *y, int last, int left, int width, int p,
                     const int inside)
{
    vec gate[ROWS], sum[ROWS];
    convolve(gate, above[0], x[0], below[0], w, left, width, p, inside);
    convolve(sum, above[1], x[1], below[1], w + other_w, left, width, p, inside);
#pragma unroll
    for (int k = 0; k < ROWS; k++)
        if (k < last) vec_store(Y_TYPE, gelu(gate[k]) * sum[k], y + k * width + p);
}

/* y[c] = gelu(d[c]) * d[c + hidden], d the convolution of the 2 * hidden channels of x. */
__kernel void depthwise3x3_gate(__global const X_TYPE *x, const int x_offset, const int x_plane,
                                __global const float *w, const int w_offset, __global Y_TYPE *y,
                                const int y_offset, const int y_plane, __global const X_TYPE *zeros, const int zeros_offset,
                                const int hidden, const int rows, const int width, const int above, const int below,
                                const int item_rows)
{
    const int channel = get_global_id(2);
    const int items = (rows + item_rows - 1) / item_rows, slice = (int)get_global_id(1) / items;
    const int first = (int)get_global_id(1) % items * item_rows;
    const int last = min(first + item_rows, rows), other = hidden * x_plane;
    x += x_offset + channel * x_plane + slice * rows * width;
    y += y_offset + channel * y_plane + slice * rows * width;
    w += w_offset + channel * 9;
    zeros += zeros_offset;
    __global const X_TYPE *after = x + rows * width;
    __global const X_TYPE *end[2] = {below ? after : zeros, below ? after + other : zeros};
    for (int r = first; r < last; r += ROWS) {
        __global const X_TYPE *from[2] = {x + r * width, x + other + r * width};
        __global const X_TYPE *over[2] = {r > 0 || above ? from[0] - width : zeros, r > 0 || above ? from[1] - width : zeros};
        for (int i = get_global_id(0); i < vec_number(width); i += get_global_size(0)) {
            const int p = vec_begin(i, width);
            __global Y_TYPE *to = y + r * width;
            if (p > 0 && p + VECTOR < width) gate(over, from, end, w, hidden * 9, to, last - r, rows - r, width, p, 1);
            else gate(over, from, end, w, hidden * 9, to, last - r, rows - r, width, p, 0);
        }
    }
}
