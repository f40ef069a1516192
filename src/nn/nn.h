/* The operations of the network, one a file: each checks its device and runs its OpenCL kernel (cl/) or its plain-C
 * reference in float64. All enqueue only.
 *
 * A map holds channels as planes: element i of channel c is at offset + c * plane + i. A slice's map has plane >= rows *
 * width; that of several slices has them one after the other in each channel; a band of rows, or one of the slices, is the same
 * map with a larger offset and fewer elements. Row-wise operations name
 * `rows` and `width`, the others `count` elements a channel. Weights are dense, in PyTorch's order.
 *
 * Maps are fp32, except where an operation says "of either storage": there each may be fp16, too.
 *
 * References: Restormer (Zamir et al., CVPR 2022) for the blocks, ResMAP (Tang et al.) for the fusion. */
#ifndef RSM_NN_H
#define RSM_NN_H

#include "device/device.h"

typedef struct rsm_map {
    rsm_buffer *buffer;
    size_t offset, plane;
    rsm_storage storage;
} rsm_map;

/* Weights, sums: a dense tensor inside a buffer, fp32. */
typedef struct rsm_vector {
    rsm_buffer *buffer;
    size_t offset;
} rsm_vector;

/* y[o] = Σ_c w[o, c] x[c], added to y when `accumulate`; w has `w_stride` elements a row (>= c_in), so that half of a
 * matrix can be used. x and y of either storage. y may not overlap x. */
resmap_status rsm_conv1x1(rsm_device *device, rsm_vector w, size_t w_stride, rsm_map x, rsm_map y, size_t c_in, size_t c_out,
                          size_t count, int accumulate);

/* Per element over the channels: WithBias (bias.buffer not NULL) (x - mean) / sqrt(var + 1e-5) * w + b; BiasFree x /
 * sqrt(var + 1e-5) * w, var about the mean all the same, x not centred. Biased variance. y of either storage; it may be x. */
resmap_status rsm_layer_norm(rsm_device *device, rsm_map x, rsm_vector weight, rsm_vector bias, rsm_map y, size_t channels,
                             size_t count);

/* y = w layer_norm(x), a 1x1 convolution of the layer norm, in one step where the device's products can; else by way of
 * `normal` (c_in channels). w: [c_out, c_in]. y and normal may not overlap x. */
resmap_status rsm_norm_conv1x1(rsm_device *device, rsm_vector weight, rsm_vector bias, rsm_vector w, rsm_map x, rsm_map normal,
                               rsm_map y, size_t c_in, size_t c_out, size_t count);

/* What a depthwise convolution works on: `slices` slices of rows x width, one after the other in each channel, each with
 * zeros around it; or a band of one slice, of which x has the row above (below), too, before its offset (after its rows). */
typedef struct rsm_rows {
    size_t slices, rows, width;
    int above, below;
} rsm_rows;

/* Depthwise 3x3. w: [channels, 3, 3]. x and y of either storage. zeros: `width` of them, in x's storage, to be read where a
 * slice ends. y may not overlap x. */
resmap_status rsm_depthwise3x3(rsm_device *device, rsm_map x, rsm_vector w, rsm_map y, rsm_map zeros, size_t channels,
                               rsm_rows size);

/* The gate of the feed-forward (GDFN): y[c] = gelu(d[c]) * d[c + hidden], d = depthwise 3x3 of the 2 * hidden channels of x
 * (as above), gelu by erf. x and y of either storage. */
resmap_status rsm_depthwise3x3_gate(rsm_device *device, rsm_map x, rsm_vector w, rsm_map y, rsm_map zeros, size_t hidden,
                                    rsm_rows size);

/* Attention statistics (MDTA): for each slice, each head h and its c = channels / heads channels, adds to `sums` (slices *
 * heads blocks of c * c + 2 * c: Q K^T row-major, then Σq², then Σk²) the sums over the slice's `count` elements of q and k; the
 * slices lie one after the other in each channel. sums is overwritten when !accumulate. `scratch`: a buffer region of at
 * least rsm_attention_scratch(...) elements for each slice. Fixed summation order. q and k of either storage, the same. */
size_t rsm_attention_sums_count(size_t channels, size_t heads);      /* of a slice */
size_t rsm_attention_scratch(size_t channels, size_t heads, size_t count);
resmap_status rsm_attention_sums(rsm_device *device, rsm_map q, rsm_map k, size_t channels, size_t heads, size_t slices,
                                 size_t count, rsm_vector sums, rsm_vector scratch, int accumulate);

/* out[C, C] = w[C, C] * blockdiag over heads of softmax_row(temperature[h] * QK^T / (max(|q|, 1e-12) max(|k|, 1e-12))), for
 * each slice: the attention and the output projection as one matrix to be applied to its v. `scratch`: C * (C / heads)
 * elements for each. */
resmap_status rsm_attention_matrix(rsm_device *device, rsm_vector sums, rsm_vector temperature, rsm_vector w, rsm_vector out,
                                   rsm_vector scratch, size_t channels, size_t heads, size_t slices);

/* How a convolution's result is stored: as it is, or pixel-shuffled by 2 (below) or unshuffled. */
typedef enum rsm_order { RSM_PLAIN, RSM_SHUFFLE, RSM_UNSHUFFLE } rsm_order;

/* 3x3 convolution, zero padding, of the rows first_row … first_row + rows - 1 of an image of `height` x `width` whose whole
 * map is x: y (count = rows * width elements for each of the c_out channels, in that order), which may not overlap x. w: [c_out,
 * c_in, 3, 3]. RSM_SHUFFLE: c_out in fours; RSM_UNSHUFFLE: rows and width even. scratch: rsm_conv3x3_scratch(...) elements, which the
 * variant taken decides. */
rsm_tunable rsm_conv3x3_tunable(size_t c_in, size_t c_out);
size_t rsm_conv3x3_scratch(const rsm_device *device, size_t c_in, size_t c_out, size_t count, rsm_order order);
resmap_status rsm_conv3x3(rsm_device *device, rsm_map x, rsm_vector w, rsm_map y, rsm_order order, rsm_vector scratch,
                          size_t c_in, size_t c_out, size_t height, size_t width, size_t first_row, size_t rows);

/* y[c, 2r + i, 2s + j] = x[4c + 2i + j, r, s], i, j in 0, 1: x has 4 * channels channels of rows x width, y `channels` of
 * 2 rows x 2 width. y: plane and offset as any map's. */
resmap_status rsm_pixel_shuffle(rsm_device *device, rsm_map x, rsm_map y, size_t channels, size_t rows, size_t width);
/* The inverse: x has `channels` channels of rows x width (both even), y 4 * channels of half of both. */
resmap_status rsm_pixel_unshuffle(rsm_device *device, rsm_map x, rsm_map y, size_t channels, size_t rows, size_t width);

/* y[c, i] = value[c]. */
resmap_status rsm_fill_channels(rsm_device *device, rsm_vector value, rsm_map y, size_t channels, size_t count);
/* y = 0, of either storage. */
resmap_status rsm_fill_zero(rsm_device *device, rsm_map y, size_t channels, size_t count);
/* y += x. */
resmap_status rsm_add(rsm_device *device, rsm_map x, rsm_map y, size_t channels, size_t count);
/* y = x, each of either storage; regions must not overlap. */
resmap_status rsm_copy(rsm_device *device, rsm_map x, rsm_map y, size_t channels, size_t count);

/* mean[c] of x[c] over count elements, in a fixed order. */
resmap_status rsm_channel_mean(rsm_device *device, rsm_map x, rsm_vector mean, size_t channels, size_t count);
/* rms[c]: the root mean square, likewise. */
resmap_status rsm_channel_rms(rsm_device *device, rsm_map x, rsm_vector rms, size_t channels, size_t count);

/* max |a - b| / max |b|; infinite where anything is not finite. */
double rsm_difference(const float *a, const float *b, size_t count);
/* Runs a tunable operation (not RSM_TUNE_BANDS, which changes no kernel) on a small task of odd sizes, on the device and on
 * the reference. with_bias: layer norms' kind. *error: their difference. */
resmap_status rsm_check_operation(rsm_device *device, rsm_device *reference, rsm_tunable what, int with_bias,
                                  double *error);

#endif
