/* Pixel shuffle by 2 and its inverse. `fine` has `channels` channels of 2 rows x 2 width, `coarse`
 * 4 * channels of rows x width: fine[c][2 r + i][2 p + j] = coarse[4 c + 2 i + j][r][p].
 *
 * Work-items: global id 0 takes every get_global_size(0)-th vector of coarse columns (CPUs start one
 * work-item, others one for every column), id 1 is a coarse row, id 2 a fine channel. Any work-group that
 * is 1 wide in ids 1 and 2. width >= VECTOR. */

/* Stores even[0], odd[0], even[1], ... and loads them so. */
vec_inline void store_pairs(vec even, vec odd, __global float *p)
{
#if VECTOR == 1
    p[0] = even;
    p[1] = odd;
#elif VECTOR == 16
    float16 pairs;
    pairs.even = even.lo;
    pairs.odd = odd.lo;
    vstore16(pairs, 0, p);
    pairs.even = even.hi;
    pairs.odd = odd.hi;
    vstore16(pairs, 1, p);
#elif VECTOR == 8
    float16 pairs;
    pairs.even = even;
    pairs.odd = odd;
    vstore16(pairs, 0, p);
#else
    float8 pairs;
    pairs.even = even;
    pairs.odd = odd;
    vstore8(pairs, 0, p);
#endif
}

vec_inline void load_pairs(vec *even, vec *odd, __global const float *p)
{
#if VECTOR == 1
    *even = p[0];
    *odd = p[1];
#elif VECTOR == 16
    const float16 low = vload16(0, p), high = vload16(1, p);
    *even = (vec)(low.even, high.even);
    *odd = (vec)(low.odd, high.odd);
#elif VECTOR == 8
    const float16 pairs = vload16(0, p);
    *even = pairs.even;
    *odd = pairs.odd;
#else
    const float8 pairs = vload8(0, p);
    *even = pairs.even;
    *odd = pairs.odd;
#endif
}

__kernel void pixel_shuffle(__global const float *coarse, const int coarse_offset, const int coarse_plane,
                            __global float *fine, const int fine_offset, const int fine_plane,
                            const int width)
{
    const int r = get_global_id(1);
    const int channel = get_global_id(2);
    coarse += coarse_offset + channel * 4 * coarse_plane + r * width;
    fine += fine_offset + channel * fine_plane + 4 * r * width;
    for (int i = get_global_id(0); i < vec_number(width); i += get_global_size(0)) {
        const int p = vec_begin(i, width);
        for (int j = 0; j < 2; j++) {
            const vec even = vec_load(float, coarse + 2 * j * coarse_plane + p);
            const vec odd = vec_load(float, coarse + (2 * j + 1) * coarse_plane + p);
            store_pairs(even, odd, fine + 2 * j * width + 2 * p);
        }
    }
}

__kernel void pixel_unshuffle(__global const float *fine, const int fine_offset, const int fine_plane,
                              __global float *coarse, const int coarse_offset, const int coarse_plane,
                              const int width)
{
    const int r = get_global_id(1);
    const int channel = get_global_id(2);
    coarse += coarse_offset + channel * 4 * coarse_plane + r * width;
    fine += fine_offset + channel * fine_plane + 4 * r * width;
    for (int i = get_global_id(0); i < vec_number(width); i += get_global_size(0)) {
        const int p = vec_begin(i, width);
        for (int j = 0; j < 2; j++) {
            vec even, odd;
            load_pairs(&even, &odd, fine + 2 * j * width + 2 * p);
            vec_store(float, even, coarse + 2 * j * coarse_plane + p);
            vec_store(float, odd, coarse + (2 * j + 1) * coarse_plane + p);
        }
    }
}
