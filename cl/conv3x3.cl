/* 3x3 convolution with zero padding, the columns of im2col.cl never stored:
 * y[o][r][p] = sum over c, i, j of w[o][c][i][j] x[c][first_row + r + i - 1][p + j - 1].
 *
 * x: channel c, row r, column p at x_offset + c * x_plane + r * width + p, `height` rows. w: dense. y: by ORDER
 *   PLAIN      as x, `rows` rows;
 *   SHUFFLE    y[o][r][p] at channel o / 4, row 2 r + o / 2 % 2, column 2 p + o % 2, rows of 2 width: twice
 *              the size (pixel shuffle by 2; CHANNELS and the output channels in fours);
 *   UNSHUFFLE  y[o][r][p] at channel 4 o + 2 (r % 2) + p % 2, row r / 2, column p / 2, rows of width / 2: its
 *              inverse (`width` even).
 * A work-item computes CHANNELS output channels of ROWS rows at one vector of columns at a time; these sums
 * are held in registers. Sums run over the input channels in ascending order, the same every time.
 *
 * conv3x3_tile (CPUs): id 0 is a run of ROWS rows, of which an item takes all columns, id 1 a run of
 * item_channels output channels. Work-groups of one. The inputs of a vector of columns are first copied,
 * DEPTH channels at a time, to a private array, which stays in the first-level cache: the rows themselves
 * lie so far apart, often by powers of two, that they would push each other out. width >= VECTOR.
 *
 * conv3x3_pixel (others, VECTOR 1): id 0 is a column, id 1 a run of ROWS rows, id 2 a run of CHANNELS output
 * channels. Any work-group that is 1 wide in ids 1 and 2. */
#ifndef CHANNELS
#define CHANNELS 8
#endif
#ifndef ROWS
#define ROWS 3
#endif
#ifndef ORDER
#define ORDER PLAIN
#endif
#define PLAIN 0
#define SHUFFLE 1
#define UNSHUFFLE 2
#if ORDER == SHUFFLE && CHANNELS % 4 != 0
#error "shuffling takes channels in fours"
#endif
#define DEPTH 32
#define INPUTS (3 * (ROWS + 2))

/* to[3 i + j] = row `row` + i at the columns p + j - 1. */
vec_inline void load_inputs(vec to[INPUTS], __global const float *x, int row, int height, int width, int p)
{
#pragma unroll
    for (int i = 0; i < ROWS + 2; i++) {
        vec left = 0.0f, centre = 0.0f, right = 0.0f;
        if (row + i >= 0 && row + i < height) {
            __global const float *from = x + (row + i) * width;
            left = vec_load_before(float, from, p);
            centre = vec_load(float, from + p);
            right = vec_load_after(float, from, p, width);
        }
        to[3 * i] = left;
        to[3 * i + 1] = centre;
        to[3 * i + 2] = right;
    }
}

/* Adds one input channel. w[o]: its nine numbers for output channel o. */
vec_inline void multiply(vec sum[CHANNELS][ROWS], const vec x[INPUTS],
                         __global const float *const w[CHANNELS])
{
#pragma unroll
    for (int t = 0; t < 9; t++) {
#pragma unroll
        for (int o = 0; o < CHANNELS; o++) {
            const vec weight = w[o][t];
#pragma unroll
            for (int k = 0; k < ROWS; k++) sum[o][k] += weight * x[3 * k + t];
        }
    }
}

#if ORDER == UNSHUFFLE
/* Stores the even lanes at one place, the odd ones at another, and loads them so; a single one, which is element
 * p of its row, at the place of its parity. */
#if VECTOR == 16
#define vec_halves 8
#elif VECTOR == 8
#define vec_halves 4
#else
#define vec_halves 2
#endif
#define VEC_HALVES(name) VEC_WIDE(name, vec_halves)

vec_inline void store_split(vec v, __global float *even, __global float *odd, int p)
{
#if VECTOR == 1
    *(p % 2 ? odd : even) = v;
#else
    VEC_HALVES(vstore)(v.even, 0, even);
    VEC_HALVES(vstore)(v.odd, 0, odd);
#endif
}

vec_inline vec load_split(__global const float *even, __global const float *odd, int p)
{
#if VECTOR == 1
    return *(p % 2 ? odd : even);
#else
    vec v;
    v.even = VEC_HALVES(vload)(0, even);
    v.odd = VEC_HALVES(vload)(0, odd);
    return v;
#endif
}
#endif

/* Stores the sums of output channels o0 to o0 + CHANNELS - 1, rows r to r + ROWS - 1, those that there are; with
 * `add` they are added to what is there. */
vec_inline void store(vec sum[CHANNELS][ROWS], const int add, __global float *y, const int plane, const int o0,
                      const int channels, const int r, const int rows, const int width, const int p)
{
#if ORDER == SHUFFLE
#pragma unroll
    for (int o = 0; o < CHANNELS; o += 2) {
#pragma unroll
        for (int k = 0; k < ROWS; k++) {
            if (o0 + o >= channels || r + k >= rows) continue;
            __global float *to = y + (o0 + o) / 4 * plane + (2 * (r + k) + o / 2 % 2) * 2 * width + 2 * p;
            if (add) {
                vec even, odd;
                vec_load_pairs(&even, &odd, to);
                sum[o][k] += even;
                sum[o + 1][k] += odd;
            }
            vec_store_pairs(sum[o][k], sum[o + 1][k], to);
        }
    }
#else
#pragma unroll
    for (int o = 0; o < CHANNELS; o++) {
#pragma unroll
        for (int k = 0; k < ROWS; k++) {
            if (o0 + o >= channels || r + k >= rows) continue;
#if ORDER == UNSHUFFLE
            __global float *to = y + (4 * (o0 + o) + (r + k) % 2 * 2) * plane + (r + k) / 2 * (width / 2)
                                 + p / 2;
            if (add) sum[o][k] += load_split(to, to + plane, p);
            store_split(sum[o][k], to, to + plane, p);
#else
            __global float *to = y + (o0 + o) * plane + (r + k) * width + p;
            if (add) sum[o][k] += vec_load(float, to);
            vec_store(float, sum[o][k], to);
#endif
        }
    }
#endif
}

__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void conv3x3_tile(__global const float *x, const int x_offset, const int x_plane, __global const float *w,
                  const int w_offset, __global float *y, const int y_offset, const int y_plane,
                  const int c_in, const int c_out, const int height, const int width, const int first_row,
                  const int rows, const int item_channels)
{
    vec inputs[DEPTH * INPUTS];
    const int r = (int)get_global_id(0) * ROWS;
    const int first = (int)get_global_id(1) * item_channels;
    const int last = min(first + item_channels, c_out);
    x += x_offset;
    w += w_offset;
    y += y_offset;
    for (int i = 0; i < vec_number(width); i++) {
        const int p = vec_begin(i, width);
        for (int c0 = 0; c0 < c_in; c0 += DEPTH) {
            const int depth = min(c_in - c0, DEPTH);
            for (int c = 0; c < depth; c++)
                load_inputs(inputs + c * INPUTS, x + (c0 + c) * x_plane, first_row + r - 1, height, width,
                            p);
            for (int o0 = first; o0 < last; o0 += CHANNELS) {
                /* Channels past the last are computed from the last, and not stored. */
                __global const float *of[CHANNELS];
                vec sum[CHANNELS][ROWS];
#pragma unroll
                for (int o = 0; o < CHANNELS; o++) {
                    of[o] = w + (min(o0 + o, last - 1) * c_in + c0) * 9;
#pragma unroll
                    for (int k = 0; k < ROWS; k++) sum[o][k] = 0.0f;
                }
                for (int c = 0; c < depth; c++) {
                    multiply(sum, inputs + c * INPUTS, of);
#pragma unroll
                    for (int o = 0; o < CHANNELS; o++) of[o] += 9;
                }
                store(sum, c0 > 0, y, y_plane, o0, last, r, rows, width, p);
            }
        }
    }
}

__kernel void conv3x3_pixel(__global const float *x, const int x_offset, const int x_plane,
                            __global const float *w, const int w_offset, __global float *y,
                            const int y_offset, const int y_plane, const int c_in, const int c_out,
                            const int height, const int width, const int first_row, const int rows)
{
    const int p = get_global_id(0);
    const int r = (int)get_global_id(1) * ROWS;
    const int o0 = (int)get_global_id(2) * CHANNELS;
    __global const float *of[CHANNELS];
    vec sum[CHANNELS][ROWS];
    if (p >= width) return;
    x += x_offset;
#pragma unroll
    for (int o = 0; o < CHANNELS; o++) {
        of[o] = w + w_offset + min(o0 + o, c_out - 1) * c_in * 9;
#pragma unroll
        for (int k = 0; k < ROWS; k++) sum[o][k] = 0.0f;
    }
    for (int c = 0; c < c_in; c++) {
        vec inputs[INPUTS];
        load_inputs(inputs, x + c * x_plane, first_row + r - 1, height, width, p);
        multiply(sum, inputs, of);
#pragma unroll
        for (int o = 0; o < CHANNELS; o++) of[o] += 9;
    }
    store(sum, 0, y + y_offset, y_plane, o0, c_out, r, rows, width, p);
}
