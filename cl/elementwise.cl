/* y = value, y[c] = value[c], y += x, y = x, element by element. Maps: channel c, element i at
 * offset + c * plane + i.
 * Work-items: global id 0 is a run of `run` elements, id 1 a channel. Any work-group that is 1 wide in
 * id 1. */
__kernel void fill(const float value, __global Y_TYPE *y, const int y_offset, const int y_plane,
                   const int count, const int run)
{
    const int first = (int)get_global_id(0) * run;
    const int last = min(first + run, count);
    y += y_offset + (int)get_global_id(1) * y_plane;
    for (int i = first; i < last; i += VECTOR) vec_store_part(Y_TYPE, value, y + i, last - i);
}

__kernel void fill_channels(__global const float *value, const int value_offset, __global float *y,
                            const int y_offset, const int y_plane, const int count, const int run)
{
    const int first = (int)get_global_id(0) * run;
    const int last = min(first + run, count);
    y += y_offset + (int)get_global_id(1) * y_plane;
    const float channel_value = value[value_offset + get_global_id(1)];
    for (int i = first; i < last; i += VECTOR) vec_store_part(float, channel_value, y + i, last - i);
}

__kernel void add(__global const float *x, const int x_offset, const int x_plane, __global float *y,
                  const int y_offset, const int y_plane, const int count, const int run)
{
    const int first = (int)get_global_id(0) * run;
    const int last = min(first + run, count);
    x += x_offset + (int)get_global_id(1) * x_plane;
    y += y_offset + (int)get_global_id(1) * y_plane;
    for (int i = first; i < last; i += VECTOR) {
        const vec sum = vec_load_part(float, y + i, last - i) + vec_load_part(float, x + i, last - i);
        vec_store_part(float, sum, y + i, last - i);
    }
}

__kernel void copy(__global const X_TYPE *x, const int x_offset, const int x_plane, __global Y_TYPE *y,
                   const int y_offset, const int y_plane, const int count, const int run)
{
    const int first = (int)get_global_id(0) * run;
    const int last = min(first + run, count);
    x += x_offset + (int)get_global_id(1) * x_plane;
    y += y_offset + (int)get_global_id(1) * y_plane;
    for (int i = first; i < last; i += VECTOR)
        vec_store_part(Y_TYPE, vec_load_part(X_TYPE, x + i, last - i), y + i, last - i);
}
