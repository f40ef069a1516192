#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "synth/synth.h"

enum { STREAM_VOXELS = 0 };

/* Position j of a line of n voxels, reflected with the edge voxel repeated: d c b a | a b c d | d c b a. */
static size_t reflect(ptrdiff_t j, size_t n)
{
    const ptrdiff_t period = 2 * (ptrdiff_t)n;
    j %= period;
    if (j < 0) j += period;
    return (size_t)(j < (ptrdiff_t)n ? j : period - 1 - j);
}

static void add_noise(const rsm_noise *noise, size_t count, size_t frame, double *y)
{
    for (size_t i = 0; i < count; i++) {
        double n[2];
        rsm_normal_pair(i, noise->seed, STREAM_VOXELS, (uint32_t)frame, n);
        y[i] += noise->sigma * n[0];
        if (noise->rician) y[i] = hypot(y[i], noise->sigma * n[1]);
    }
}

/* weights[0 … 2 radius]: the window. */
static void blur_axis(const double *in, double *out, const size_t shape[3], int axis, const double *weights,
                      int radius)
{
    const size_t n = shape[axis];
    size_t stride = 1;
    for (int a = 0; a < axis; a++) stride *= shape[a];
    const size_t outer = shape[0] * shape[1] * shape[2] / (n * stride);
    for (size_t o = 0; o < outer; o++) {
        const double *line = in + o * n * stride;
        for (size_t i = 0; i < n; i++) {
            double *target = out + (o * n + i) * stride;
            memset(target, 0, stride * sizeof *target);
            for (int t = -radius; t <= radius; t++) {
                const double *source = line + reflect((ptrdiff_t)i + t, n) * stride, w = weights[radius + t];
                for (size_t k = 0; k < stride; k++) target[k] += w * source[k];
            }
        }
    }
}

resmap_status rsm_noise_apply(rsm_device *device, const rsm_noise *noise, const size_t shape[3], size_t frame,
                              rsm_buffer *volume)
{
    const size_t count = shape[0] * shape[1] * shape[2];
    const int radius = (int)(4.0 * noise->blur + 0.5);
    double *y = rsm_buffer_host(volume);
    rsm_kernel *kernel;
    resmap_status status = RESMAP_OK;

    if (y) add_noise(noise, count, frame, y);
    else {
        RSM_TRY(rsm_kernel_get(device, "synth_noise", "synth_noise", "", &kernel));
        RSM_TRY(RSM_RUN(device, kernel, 1, &count, NULL, RSM_BUFFER(volume), RSM_INT(count),
                        RSM_FLOAT(noise->sigma), RSM_INT(noise->rician), RSM_INT((uint32_t)noise->seed),
                        RSM_INT(noise->seed >> 32), RSM_INT((uint32_t)frame)));
    }
    if (radius == 0) return RESMAP_OK;

    rsm_buffer *spare = NULL, *device_weights = NULL;
    const size_t taps = 2 * (size_t)radius + 1;
    double *weights = malloc(taps * sizeof *weights), sum = 0.0;
    float *weights32 = malloc(taps * sizeof *weights32);
    if (!weights || !weights32) {
        status = rsm_no_memory(rsm_device_env(device), taps * sizeof *weights);
        goto done;
    }
    for (size_t t = 0; t < taps; t++) {
        const double offset = (double)t - radius;
        weights[t] = exp(-0.5 * offset * offset / (noise->blur * noise->blur));
        sum += weights[t];
    }
    for (size_t t = 0; t < taps; t++) {
        weights[t] /= sum;
        weights32[t] = (float)weights[t];
    }
    RSM_CHECK(rsm_buffer_create(device, count, &spare));
    rsm_buffer *from = volume, *to = spare;
    if (!y) {
        RSM_CHECK(rsm_buffer_create(device, taps, &device_weights));
        RSM_CHECK(rsm_buffer_write(device, device_weights, 0, weights32, taps));
        RSM_CHECK(rsm_kernel_get(device, "synth_noise", "synth_blur", "", &kernel));
    }
    for (int axis = 0; axis < 3; axis++) {
        if (axis == noise->axis) continue;
        size_t stride = 1;
        for (int a = 0; a < axis; a++) stride *= shape[a];
        if (y) blur_axis(rsm_buffer_host(from), rsm_buffer_host(to), shape, axis, weights, radius);
        else
            RSM_CHECK(RSM_RUN(device, kernel, 1, &count, NULL, RSM_BUFFER(from), RSM_BUFFER(to),
                              RSM_BUFFER(device_weights), RSM_INT(radius), RSM_INT(shape[axis]),
                              RSM_INT(stride), RSM_INT(count)));
        rsm_buffer *swap = from;
        from = to;
        to = swap;
    }
    /* Two axes were blurred, so the result is back in `volume`. */
done:
    rsm_buffer_free(spare);
    rsm_buffer_free(device_weights);
    free(weights);
    free(weights32);
    return status;
}
