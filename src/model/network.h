/* The network of one model on one device (weights, uploaded once) and plans: the memory to run it on slices of one size, one
 * or a few at a time.
 *
 * Layers: patch embedding, three encoder levels, latent, three decoder levels with a Textual Prompt Fusion block before each
 * upsampling (paper §2.2), refinement, output convolution plus input.
 *
 * Memory: every level has one map that its blocks change in place; whatever is wider than the map (the qkv and feed-forward
 * expansions) is made in bands of rows inside one scratch buffer, so peak memory is chosen, not suffered. Bands leave
 * the result unchanged but for the order of the sums over pixels in the attention statistics.
 *
 * Several small slices share the launches of most kernels, where scratch has room: a device that one of them does not
 * fill would wait more than it computes. They lie one after the other in each channel of a map. */
#ifndef RSM_NETWORK_H
#define RSM_NETWORK_H

#include "device/device.h"
#include "model/model.h"

typedef struct rsm_network rsm_network;
typedef struct rsm_plan rsm_plan;

/* Uploads the weights. storage: of the weights, and of the maps within a block, most of what is read and written; the
 * maps that blocks add to, 3x3 convolutions and all sums are fp32. The model must outlive the network. */
resmap_status rsm_network_create(rsm_device *device, const struct resmap_model *model, rsm_storage storage,
                                 rsm_network **network);
void rsm_network_free(rsm_network *network);
/* The same network for a further worker (rsm_device_share) on its device: with the weights of `network`,
 * which must outlive it, and a prompt of its own. */
resmap_status rsm_network_share(rsm_network *network, rsm_device *worker, rsm_network **shared);
/* Whose weights it has; NULL: its own. */
rsm_network *rsm_network_owner(const rsm_network *network);
rsm_device *rsm_network_device(const rsm_network *network);
const struct resmap_model *rsm_network_model(const rsm_network *network);
rsm_storage rsm_network_storage(const rsm_network *network);
/* For reports: "fp32", "fp16"; "fp64" on the reference. */
const char *rsm_network_precision(const rsm_network *network);
/* Sets the prompt feature (text_dim floats) of later decodings; models of arch resmap only. */
resmap_status rsm_network_set_prompt(rsm_network *network, const float *prompt);
/* How many pooled numbers rsm_plan_encode makes of a slice. */
size_t rsm_network_pooled_count(const rsm_network *network);
/* The classifier (paper §2.1): what rsm_plan_encode pooled, of every view, to one logit a class; on the host, in float64. */
void rsm_network_classify(const rsm_network *network, const float *pooled, double *logits);

/* Allocates maps and scratch for up to `slices` slices of height x width (multiples of 8) at a time, with smaller bands where
 * memory is short. RESMAP_NO_DEVICE_MEMORY when bands of two rows do not fit. Freed before the network. */
resmap_status rsm_plan_create(rsm_network *network, size_t height, size_t width, size_t slices, rsm_plan **plan);
/* The same plan for a network that shares the plan's, so that both give the same bits:
 * RESMAP_NO_DEVICE_MEMORY where there is no room for as large bands. */
resmap_status rsm_plan_share(const rsm_plan *plan, rsm_network *network, rsm_plan **shared);
void rsm_plan_free(rsm_plan *plan);
/* Rows a band at full resolution. */
size_t rsm_plan_band_rows(const rsm_plan *plan);

/* Runs the encoder on `count` dense slices, [count, height, width], at most the plan's; the encodings stay in the plan's
 * maps. pooled: for every slice the means of the latent's channels over their pixels, and with four classifier_levels the root
 * mean squares of those of levels 1 to 3, [count, rsm_network_pooled_count]; or NULL. */
resmap_status rsm_plan_encode(rsm_plan *plan, const float *slices, size_t count, float *pooled);
/* Runs the decoder on the present encodings, which it destroys, and adds the slices encoded. output: [count, height, width]. */
resmap_status rsm_plan_decode(rsm_plan *plan, float *output);

/* A copy of the encoding of a plan for one slice, so that slices can wait for the volume's decision. */
typedef struct rsm_encoding {
    rsm_buffer *device;          /* either here */
    float *host;                 /* or here; both NULL: none kept */
} rsm_encoding;
/* Elements of an encoding. */
size_t rsm_plan_encoding_count(const rsm_plan *plan);
/* Keeps the present encoding on the device or the host. A plan that shares this one may load it, too, from
 * another thread, once the call has returned. */
resmap_status rsm_plan_save(rsm_plan *plan, int on_host, rsm_encoding *encoding);
resmap_status rsm_plan_load(rsm_plan *plan, const rsm_encoding *encoding);
void rsm_encoding_clear(rsm_encoding *encoding);

#endif
