/* Pixel shuffle by 2 and its inverse. `fine` has `channels` channels of 2 rows x 2 width, `coarse`
 * 4 * channels of rows x width: fine[c][2 r + i][2 p + j] = coarse[4 c + 2 i + j][r][p].
 *
 * For products by im2col.cl; conv3x3.cl stores its results so itself.
 * Work-items: global id 0 takes every get_global_size(0)-th vector of coarse columns (CPUs start one
 * work-item, others one for every column), id 1 is a coarse row, id 2 a fine channel. Any work-group that
 * is 1 wide in ids 1 and 2. width >= VECTOR. */

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
            vec_store_pairs(even, odd, fine + 2 * j * width + 2 * p);
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
            vec_load_pairs(&even, &odd, fine + 2 * j * width + 2 * p);
            vec_store(float, even, coarse + 2 * j * coarse_plane + p);
            vec_store(float, odd, coarse + (2 * j + 1) * coarse_plane + p);
        }
    }
}
