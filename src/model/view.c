#include "model/view.h"

#include <stdlib.h>
#include <string.h>

#include "image/image.h"

struct rsm_view {
    rsm_network *net;
    rsm_env *env;
    rsm_plan *plan;
    size_t height, width, padded_height, padded_width;
    size_t tile_height, tile_width;   /* the plan's size; the padded slice's when not tiled */
    size_t slices, used;              /* that there is room for, one when tiled; that were encoded last */
    float *padded, *result;           /* padded slices; decoded slices */
    float *tile, *weight;             /* one tile; the sum of the blending weights (NULL when not tiled) */
};

enum { GRAIN = 8, OVERLAP = 32, SMALLEST_TILE = 16 };

static size_t round_up(size_t n)
{
    return (n + GRAIN - 1) / GRAIN * GRAIN;
}

/* Pixels that neighbouring tiles share, at least: a multiple of 8, as the network's grid is, about a third of
 * a small tile. */
static size_t tile_overlap(size_t tile)
{
    return tile >= 3 * OVERLAP ? OVERLAP : round_up(tile / 4);
}

static size_t tile_step(size_t tile)
{
    return tile - tile_overlap(tile);
}

static size_t tile_count(size_t length, size_t tile)
{
    return length <= tile ? 1 : (length - tile + tile_step(tile) - 1) / tile_step(tile) + 1;
}

/* The last tile ends with the axis. */
static size_t tile_start(size_t index, size_t length, size_t tile)
{
    size_t start = index * tile_step(tile);

    return start + tile > length ? length - tile : start;
}

static rsm_view *empty_view(rsm_network *net, size_t height, size_t width, size_t slices)
{
    rsm_view *view = calloc(1, sizeof *view);

    if (view == NULL) return NULL;
    view->net = net;
    view->env = rsm_device_env(rsm_network_device(net));
    view->height = height;
    view->width = width;
    view->padded_height = view->tile_height = round_up(height);
    view->padded_width = view->tile_width = round_up(width);
    view->slices = view->used = slices;
    return view;
}

/* The host's memory of a view that has its plan. */
static resmap_status equip(rsm_view *view)
{
    size_t count = rsm_bytes(view->slices * view->padded_height * view->padded_width, sizeof *view->padded);

    view->padded = malloc(count);
    view->result = malloc(count);
    if (view->padded == NULL || view->result == NULL) return rsm_no_memory(view->env, count);
    if (!rsm_view_tiled(view)) return RESMAP_OK;
    view->tile = malloc(rsm_bytes(view->tile_height * view->tile_width, sizeof *view->tile));
    view->weight = malloc(count);
    return view->tile == NULL || view->weight == NULL ? rsm_no_memory(view->env, count) : RESMAP_OK;
}

resmap_status rsm_view_create(rsm_network *net, size_t height, size_t width, size_t slices, rsm_view **result)
{
    rsm_view *view = empty_view(net, height, width, slices);
    resmap_status status;

    if (view == NULL) return rsm_no_memory(rsm_device_env(rsm_network_device(net)), sizeof *view);
    for (;;) {
        status = rsm_plan_create(net, view->tile_height, view->tile_width, view->slices, &view->plan);
        if (view->slices > 1 && (status == RESMAP_NO_DEVICE_MEMORY ||
                                 (status == RESMAP_OK && rsm_plan_band_rows(view->plan) < view->tile_height))) {
            rsm_plan_free(view->plan);
            view->plan = NULL;
            view->slices = view->used = view->slices / 2;     /* fewer slices rather than parts of them */
            continue;
        }
        if (status != RESMAP_NO_DEVICE_MEMORY) break;
        if (view->tile_height <= SMALLEST_TILE && view->tile_width <= SMALLEST_TILE) break;
        if (view->tile_height >= view->tile_width) view->tile_height = round_up(view->tile_height / 2);
        else view->tile_width = round_up(view->tile_width / 2);
    }
    if (status == RESMAP_OK) status = equip(view);
    if (status != RESMAP_OK) rsm_view_free(view);
    else *result = view;
    return status;
}

resmap_status rsm_view_share(const rsm_view *view, rsm_network *net, rsm_view **shared)
{
    rsm_view *second = empty_view(net, view->height, view->width, view->slices);
    resmap_status status;

    if (second == NULL) return rsm_no_memory(rsm_device_env(rsm_network_device(net)), sizeof *second);
    second->tile_height = view->tile_height;
    second->tile_width = view->tile_width;
    status = rsm_plan_share(view->plan, net, &second->plan);
    if (status == RESMAP_OK) status = equip(second);
    if (status != RESMAP_OK) rsm_view_free(second);
    else *shared = second;
    return status;
}

void rsm_view_free(rsm_view *view)
{
    if (view == NULL) return;
    rsm_plan_free(view->plan);
    free(view->padded);
    free(view->result);
    free(view->tile);
    free(view->weight);
    free(view);
}

size_t rsm_view_slices(const rsm_view *view)
{
    return view->slices;
}

int rsm_view_tiled(const rsm_view *view)
{
    return view->tile_height < view->padded_height || view->tile_width < view->padded_width;
}

void rsm_view_tile(const rsm_view *view, size_t *height, size_t *width)
{
    *height = view->tile_height;
    *width = view->tile_width;
}

size_t rsm_view_band_rows(const rsm_view *view)
{
    return rsm_plan_band_rows(view->plan);
}

/* Tile number t, in row-major order; returns 0 after the last. */
static int tile_at(const rsm_view *view, size_t t, size_t *top, size_t *left)
{
    size_t across = tile_count(view->padded_width, view->tile_width);

    if (t >= across * tile_count(view->padded_height, view->tile_height)) return 0;
    *top = tile_start(t / across, view->padded_height, view->tile_height);
    *left = tile_start(t % across, view->padded_width, view->tile_width);
    return 1;
}

static resmap_status encode_tile(rsm_view *view, size_t top, size_t left, float *pooled)
{
    for (size_t y = 0; y < view->tile_height; y++)
        memcpy(view->tile + y * view->tile_width, view->padded + (top + y) * view->padded_width + left,
               view->tile_width * sizeof *view->tile);
    return rsm_plan_encode(view->plan, view->tile, 1, pooled);
}

resmap_status rsm_view_encode(rsm_view *view, const float *slices, size_t slice_count, float *pooled)
{
    size_t count = rsm_network_pooled_count(view->net), pixels = view->padded_height * view->padded_width, top, left, t;
    float *one;
    resmap_status status = RESMAP_OK;

    if (slice_count == 0 || slice_count > view->slices)
        return rsm_fail(view->env, RESMAP_INTERNAL, "network: %zu slices in a view of %zu", slice_count, view->slices);
    view->used = slice_count;
    for (size_t s = 0; s < slice_count; s++)
        rsm_slice_pad(slices + s * view->height * view->width, view->height, view->width, view->padded + s * pixels,
                      view->padded_height, view->padded_width);
    if (!rsm_view_tiled(view)) return rsm_plan_encode(view->plan, view->padded, slice_count, pooled);
    if (pooled == NULL) return RESMAP_OK;   /* decoding encodes tile by tile */
    one = malloc(rsm_bytes(count, sizeof *one));
    if (one == NULL) return rsm_no_memory(view->env, count * sizeof *one);
    memset(pooled, 0, count * sizeof *pooled);
    for (t = 0; tile_at(view, t, &top, &left); t++) {
        RSM_CHECK(encode_tile(view, top, left, one));
        for (size_t i = 0; i < count; i++) pooled[i] += one[i];
    }
    for (size_t i = 0; i < count; i++) pooled[i] /= (float)t;
done:
    free(one);
    return status;
}

/* Blending weight of a pixel `at` of `tile` along one axis: a ramp over the overlap, full at the ends of the
 * slice. */
static float ramp(size_t at, size_t start, size_t tile, size_t length)
{
    size_t overlap = tile_overlap(tile), edge = overlap;

    if (start > 0 && at + 1 < edge) edge = at + 1;
    if (start + tile < length && tile - at < edge) edge = tile - at;
    return (float)edge / (float)overlap;
}

static resmap_status decode_tiles(rsm_view *view)
{
    size_t width = view->padded_width, count = view->padded_height * width, top, left;

    memset(view->result, 0, count * sizeof *view->result);
    memset(view->weight, 0, count * sizeof *view->weight);
    for (size_t t = 0; tile_at(view, t, &top, &left); t++) {
        RSM_TRY(encode_tile(view, top, left, NULL));
        RSM_TRY(rsm_plan_decode(view->plan, view->tile));
        for (size_t y = 0; y < view->tile_height; y++)
            for (size_t x = 0; x < view->tile_width; x++) {
                size_t at = (top + y) * width + left + x;
                float w = ramp(y, top, view->tile_height, view->padded_height) *
                          ramp(x, left, view->tile_width, width);
                view->result[at] += w * view->tile[y * view->tile_width + x];
                view->weight[at] += w;
            }
    }
    for (size_t i = 0; i < count; i++) view->result[i] /= view->weight[i];
    return RESMAP_OK;
}

resmap_status rsm_view_decode(rsm_view *view, float *output)
{
    RSM_TRY(rsm_view_tiled(view) ? decode_tiles(view) : rsm_plan_decode(view->plan, view->result));
    for (size_t s = 0; s < view->used; s++)
        for (size_t y = 0; y < view->height; y++)
            memcpy(output + (s * view->height + y) * view->width, view->result + (s * view->padded_height + y) * view->padded_width,
                   view->width * sizeof *output);
    return RESMAP_OK;
}

uint64_t rsm_view_encoding_bytes(const rsm_view *view)
{
    return rsm_view_tiled(view) ? 0 : (uint64_t)rsm_plan_encoding_count(view->plan) * sizeof(float);
}

resmap_status rsm_view_save(rsm_view *view, int on_host, rsm_encoding *encoding)
{
    return rsm_plan_save(view->plan, on_host, encoding);
}

resmap_status rsm_view_load(rsm_view *view, const rsm_encoding *encoding)
{
    return rsm_plan_load(view->plan, encoding);
}
