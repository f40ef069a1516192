/* A view: slices of one size through the network, padded to multiples of 8 and, only where device memory
 * leaves no other way, cut into independent tiles. */
#ifndef RSM_VIEW_H
#define RSM_VIEW_H

#include "model/network.h"

typedef struct rsm_view rsm_view;

/* For slices of height x width, any from 1 x 1 up, up to `slices` at a time, fewer where there is no
 * room for that and for operations on whole slices. Freed before the network. */
resmap_status rsm_view_create(rsm_network *network, size_t height, size_t width, size_t slices, rsm_view **view);
/* The same view for a network that shares the view's: RESMAP_NO_DEVICE_MEMORY where there is no room for as
 * large bands and tiles. */
resmap_status rsm_view_share(const rsm_view *view, rsm_network *network, rsm_view **shared);
void rsm_view_free(rsm_view *view);
/* How many it takes at a time. */
size_t rsm_view_slices(const rsm_view *view);
/* Whether slices are cut into independent tiles (blended where they overlap), which changes the result. */
int rsm_view_tiled(const rsm_view *view);
/* Size of the tiles; of the padded slice when not tiled. */
void rsm_view_tile(const rsm_view *view, size_t *height, size_t *width);
size_t rsm_view_band_rows(const rsm_view *view);

/* Encodes `count` dense slices, [count, height, width] in network units; pooled as rsm_plan_encode's, tiles averaged. */
resmap_status rsm_view_encode(rsm_view *view, const float *slices, size_t count, float *pooled);
/* Decodes what was encoded or loaded last, with the network's prompt. output: [count, height, width]. */
resmap_status rsm_view_decode(rsm_view *view, float *output);

/* Bytes of a kept encoding, of views that take one slice at a time; 0: encodings cannot be kept (tiles), encode again. */
uint64_t rsm_view_encoding_bytes(const rsm_view *view);
resmap_status rsm_view_save(rsm_view *view, int on_host, rsm_encoding *encoding);
resmap_status rsm_view_load(rsm_view *view, const rsm_encoding *encoding);

#endif
