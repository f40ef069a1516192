/* mean[c] of `count` elements of every channel, or their root mean square (RMS 1): x[x_offset + c * x_plane + i].
 * A work-group of LANES items takes a channel (group id 0): item l sums every LANES-th vector, item 0 adds
 * the items up, in order. */
#ifndef LANES
#define LANES 1
#endif
#ifndef RMS
#define RMS 0
#endif

__kernel __attribute__((reqd_work_group_size(LANES, 1, 1)))
void channel_mean(__global const float *x, const int x_offset, const int x_plane, __global float *mean,
                  const int mean_offset, const int count)
{
    const int channel = get_group_id(0);
    const int lane = get_local_id(0);
    x += x_offset + channel * x_plane;
    vec sum = 0.0f;
    for (int i = lane * VECTOR; i < count; i += LANES * VECTOR) {
        const vec value = vec_load_part(float, x + i, count - i);
#if RMS
        sum += value * value;
#else
        sum += value;
#endif
    }
    float total = vec_sum(sum);
#if LANES > 1
    __local float lanes[LANES];
    lanes[lane] = total;
    barrier(CLK_LOCAL_MEM_FENCE);
    if (lane == 0)
        for (int l = 1; l < LANES; l++) total += lanes[l];
#endif
    total /= (float)count;
    if (lane == 0) mean[mean_offset + channel] = RMS ? sqrt(total) : total;
}
