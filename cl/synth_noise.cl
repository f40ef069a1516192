/* Noise of the synthesizer (synth/noise.c): Philox4x32-10 random numbers, one counter a voxel, and the blur after it.
 *
 * volume, in, out: dense, `count` voxels, axis 0 fastest; the voxels of a line along an axis of `length` lie `stride`
 * apart, the product of the lengths of the axes before it. in and out are two buffers. The key is the seed, voxel i's
 * counter (i, 0, 0, frame).
 * Work-items: global id 0 is a voxel. Any work-group; items beyond the end do nothing. */

/* log(u) for u = (r + 1) / 2^32, exact near u = 1 too, where log(float(u)) would lose all digits. */
static float log_of_uniform(uint r)
{
    return r >= 0x80000000u ? log1p(-(float)(~r) * 0x1p-32f) : log(((float)r + 1.0f) * 0x1p-32f);
}

/* volume[i] += sigma * n1, or with rician: the magnitude of that and sigma * n2. */
__kernel void synth_noise(__global float *volume, int count, float sigma, int rician, int seed_low,
                          int seed_high, int frame)
{
    const int i = get_global_id(0);
    if (i >= count) return;
    uint k0 = (uint)seed_low, k1 = (uint)seed_high;
    uint c0 = (uint)i, c1 = 0, c2 = 0, c3 = (uint)frame;
    for (int round = 0; round < 10; round++) {
        const uint h0 = mul_hi(0xD2511F53u, c0), l0 = 0xD2511F53u * c0;
        const uint h1 = mul_hi(0xCD9E8D57u, c2), l1 = 0xCD9E8D57u * c2;
        c0 = h1 ^ c1 ^ k0;
        c1 = l1;
        c2 = h0 ^ c3 ^ k1;
        c3 = l0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    const float radius = sqrt(-2.0f * log_of_uniform(c0));
    /* The angle 2 pi c1 / 2^32 as a quarter turn and a rest within an eighth, which keeps all digits of the
     * rest. */
    const uint quarter = (c1 + 0x20000000u) >> 30;
    const float rest = (float)(int)(c1 - (quarter << 30)) * 0x1p-31f;
    const float c = cospi(rest), s = sinpi(rest);
    const float cosine = quarter == 0 ? c : quarter == 1 ? -s : quarter == 2 ? -c : s;
    const float sine = quarter == 0 ? s : quarter == 1 ? c : quarter == 2 ? -s : -c;
    const float y = volume[i] + sigma * (radius * cosine);
    volume[i] = rician ? hypot(y, sigma * (radius * sine)) : y;
}

/* Convolves lines of `length` voxels, `stride` apart, with the window weights[0 … 2 radius]; edges reflected,
 * the edge voxel repeated. */
__kernel void synth_blur(__global const float *in, __global float *out, __global const float *weights,
                         int radius, int length, int stride, int count)
{
    const int i = get_global_id(0);
    if (i >= count) return;
    const int position = i / stride % length, first = i - position * stride, period = 2 * length;
    float sum = 0.0f;
    for (int t = -radius; t <= radius; t++) {
        int j = (position + t) % period;
        if (j < 0) j += period;
        if (j >= length) j = period - 1 - j;
        sum += weights[radius + t] * in[first + j * stride];
    }
    out[i] = sum;
}
