/* The columns of a 3x3 convolution with zero padding:
 * col[c * 9 + 3 i + j][r][p] = x[c][first_row + r + i - 1][p + j - 1].
 *
 * x: channel c, row r, column p at x_offset + c * x_plane + r * width + p, `height` rows. col: dense,
 * `rows` rows.
 * Work-items: global id 0 takes every get_global_size(0)-th vector of columns (CPUs start one work-item,
 * others one for every column), id 1 is a row, id 2 a channel. Any work-group that is 1 wide in ids 1 and 2.
 * width >= VECTOR. */
__kernel void im2col(__global const float *x, const int x_offset, const int x_plane, __global float *col,
                     const int col_offset, const int height, const int width, const int first_row,
                     const int rows)
{
    const int r = get_global_id(1);
    const int channel = get_global_id(2);
    const int plane = rows * width;
    x += x_offset + channel * x_plane;
    col += col_offset + channel * 9 * plane + r * width;
    for (int i = get_global_id(0); i < vec_number(width); i += get_global_size(0)) {
        const int p = vec_begin(i, width);
        for (int j = 0; j < 3; j++) {
            const int source = first_row + r + j - 1;
            vec left = 0.0f, centre = 0.0f, right = 0.0f;
            if (source >= 0 && source < height) {
                __global const float *row = x + source * width;
                left = vec_load_before(float, row, p);
                centre = vec_load(float, row + p);
                right = vec_load_after(float, row, p, width);
            }
            vec_store(float, left, col + (3 * j) * plane + p);
            vec_store(float, centre, col + (3 * j + 1) * plane + p);
            vec_store(float, right, col + (3 * j + 2) * plane + p);
        }
    }
}
