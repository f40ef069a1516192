#include "model/network_private.h"

#include <stdlib.h>

enum { FEW = 4 };

/* Level i has channels dim << i and is height >> i by width >> i. Level 0's map is the decoder's: 2 * dim
 * channels, whose upper half is the encoder's, so that the concatenation of decoder level 1 costs nothing. The
 * lower half, free until then, takes what levels 1 and 2 are upsampled to before their skip joins it. */
struct rsm_plan {
    rsm_network *net;
    rsm_device *device;
    rsm_env *env;
    const rsm_config *config;
    size_t height, width;
    size_t slices, used;         /* that there is room for; that are in the maps */
    rsm_buffer *input, *level0, *skip[LEVELS], *scratch, *small;
    size_t scratch_count, pooled_offset;
};

/* ---- The plan: how many rows each operation takes at once --------------------------------------------------- */

/* DOWN, UP: the convolutions between levels, whose results are stored at half or twice the size. */
typedef enum operation { ATTENTION, FEED_FORWARD, CONVOLUTION, DOWN, UP, FUSION } operation;

static rsm_order order_of(operation what)
{
    return what == DOWN ? RSM_UNSHUFFLE : what == UP ? RSM_SHUFFLE : RSM_PLAIN;
}

/* The plane of a map in scratch: a little more than its elements where these are a multiple of 1024, for channels that lie
 * so far apart compete for the same few lines of a cache. */
static size_t spread(size_t count)
{
    return count % 1024 == 0 ? count + 32 : count;
}

/* Scratch (elements of fp32) that an operation needs for a number of whole slices at once. a, b: as below. */
static size_t whole_need(const rsm_network *net, operation what, size_t a, size_t b, size_t pixels, size_t slices)
{
    size_t plane = spread(slices * pixels);

    if (what == ATTENTION)       /* normalised; expanded and convolved q, k and v; partial sums */
        return taken(net->storage, 7 * a * plane) + slices * rsm_attention_scratch(a, b, pixels);
    return taken(net->storage, (a + 3 * b) * plane);   /* normalised, expanded, gated */
}

/* How many slices, up to `most`, whose scratch stays within `limit` elements an operation takes whole and at once, which
 * takes the fewest launches; 0: bands of a slice are what there is room for. */
static size_t slices_at_once(const rsm_network *net, operation what, size_t a, size_t b, size_t pixels, size_t most, size_t limit)
{
    size_t count = most, groups;

    while (count > 0 && whole_need(net, what, a, b, pixels, count) > limit) count--;
    if (count == 0) return 0;
    groups = (most + count - 1) / count;
    return (most + groups - 1) / groups;       /* as equal as they can be */
}

/* Scratch (elements of fp32) that `rows` rows of an operation need. a, b: channels and hidden (feed-forward), channels and heads
 * (attention), channels in and out (convolutions); a: channels (fusion and reduction). */
static size_t scratch_need(const rsm_network *net, operation what, size_t a, size_t b, size_t width, size_t rows)
{
    rsm_storage storage = net->storage;

    switch (what) {
    case ATTENTION:              /* normalised and expanded q, k with their halo; q, k; partial sums */
        return taken(storage, 3 * a * spread((rows + 2) * width) + 2 * a * spread(rows * width)) +
               rsm_attention_scratch(a, b, rows * width);
    case FEED_FORWARD:           /* normalised, expanded, gated */
        return taken(storage, (a + 2 * b) * spread((rows + 2) * width) + b * spread(rows * width));
    case CONVOLUTION:
    case DOWN:
    case UP:
        return rsm_conv3x3_scratch(net->device, a, b, rows * width, order_of(what));
    case FUSION:                 /* in fp32 */
        return a * rows * width;
    }
    return 0;
}

/* Rows of a map (an even number, or all of them) whose scratch stays within `limit` elements, at least 2: as few bands as that
 * allows, as equal as they can be. */
static size_t band_rows(const rsm_network *net, operation what, size_t a, size_t b, size_t height, size_t width, size_t limit)
{
    size_t rows = height, bands;

    if (scratch_need(net, what, a, b, width, rows) <= limit) return rows;
    for (rows &= ~(size_t)1; rows > 2 && scratch_need(net, what, a, b, width, rows) > limit; rows -= 2) continue;
    if (rows < 2) return height;
    bands = (height + rows - 1) / rows;
    return ((height + bands - 1) / bands + 1) & ~(size_t)1;
}

static size_t band_need(const rsm_network *net, operation what, size_t a, size_t b, size_t height, size_t width, size_t limit)
{
    return scratch_need(net, what, a, b, width, band_rows(net, what, a, b, height, width, limit));
}

static size_t stage_need(const rsm_network *net, const stage *s, size_t height, size_t width, size_t slices, size_t limit)
{
    const block *b = s->blocks;
    size_t need, pixels = height * width, together;

    if (s->count == 0) return 0;
    need = maximum(band_need(net, ATTENTION, b->channels, b->heads, height, width, limit),
                   band_need(net, FEED_FORWARD, b->channels, b->hidden, height, width, limit));
    if (slices == 1) return need;
    together = slices_at_once(net, ATTENTION, b->channels, b->heads, pixels, slices, limit);
    if (together > 0) need = maximum(need, whole_need(net, ATTENTION, b->channels, b->heads, pixels, together));
    together = slices_at_once(net, FEED_FORWARD, b->channels, b->hidden, pixels, slices, limit);
    if (together > 0) need = maximum(need, whole_need(net, FEED_FORWARD, b->channels, b->hidden, pixels, together));
    return need;
}

/* Scratch elements of the whole network when no operation shall take more than `limit`, as far as two rows allow. */
static size_t network_need(const rsm_network *net, size_t height, size_t width, size_t slices, size_t limit)
{
    size_t dim = net->config->dim;
    size_t need = band_need(net, CONVOLUTION, 1, dim, height, width, limit);

    need = maximum(need, band_need(net, CONVOLUTION, 2 * dim, 1, height, width, limit));
    need = maximum(need, stage_need(net, &net->decoder[0], height, width, slices, limit));
    need = maximum(need, stage_need(net, &net->refinement, height, width, slices, limit));
    for (int i = 0; i < LEVELS; i++) {
        size_t channels = level_channels(net, i), h = height >> i, w = width >> i;
        need = maximum(need, stage_need(net, &net->encoder[i], h, w, slices, limit));
        if (i == 3) continue;
        need = maximum(need, band_need(net, DOWN, channels, channels / 2, h, w, limit));
        need = maximum(need, band_need(net, UP, 2 * channels, 4 * channels, h / 2, w / 2, limit));
        need = maximum(need, stage_need(net, &net->decoder[i], h, w, slices, limit));
        need = maximum(need, band_need(net, FUSION, 2 * channels, 0, slices * (h / 2), w / 2, limit));
        if (net->config->arch == RSM_ARCH_RESMAP) {
            stage s = {1, (block *)&net->fusion[i].block};
            need = maximum(need, stage_need(net, &s, h / 2, w / 2, slices, limit));
        }
    }
    return need;
}

/* Elements of `small`: the largest attention's sums, its matrix, and the scratch to make it, of every slice; and the pooled
 * latents. */
typedef struct small_layout {
    size_t sums, matrix, scratch, end;
} small_layout;

static small_layout small_of(size_t channels, size_t heads, size_t slices)
{
    small_layout s;

    s.sums = 0;
    s.matrix = aligned(slices * rsm_attention_sums_count(channels, heads));
    s.scratch = s.matrix + aligned(slices * channels * channels);
    s.end = s.scratch + aligned(slices * channels * (channels / heads));
    return s;
}

static size_t small_need(const stage *s, size_t slices)
{
    return s->count == 0 ? 0 : small_of(s->blocks->channels, s->blocks->heads, slices).end;
}

static void clear_plan(rsm_plan *plan)
{
    rsm_buffer **buffers[] = {&plan->input, &plan->level0, &plan->scratch, &plan->small};

    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        rsm_buffer_free(*buffers[i]);
        *buffers[i] = NULL;
    }
    for (int i = 0; i < LEVELS; i++) {
        rsm_buffer_free(plan->skip[i]);
        plan->skip[i] = NULL;
    }
}

static resmap_status allocate(rsm_plan *plan, size_t scratch)
{
    rsm_device *device = plan->device;
    size_t dim = plan->config->dim, pixels = plan->slices * plan->height * plan->width;
    size_t pooled = plan->slices * rsm_network_pooled_count(plan->net);

    RSM_TRY(rsm_buffer_create(device, pixels, &plan->input));
    RSM_TRY(rsm_buffer_create(device, 2 * dim * pixels, &plan->level0));
    for (int i = 1; i < LEVELS; i++)
        RSM_TRY(rsm_buffer_create(device, level_channels(plan->net, i) * (pixels >> (2 * i)), &plan->skip[i]));
    plan->pooled_offset = small_need(&plan->net->refinement, plan->slices);
    for (int i = 0; i < LEVELS; i++)
        plan->pooled_offset = maximum(plan->pooled_offset, small_need(&plan->net->encoder[i], plan->slices));
    for (int i = 0; i < 3; i++) plan->pooled_offset = maximum(plan->pooled_offset, small_need(&plan->net->decoder[i], plan->slices));
    RSM_TRY(rsm_buffer_create(device, plan->pooled_offset + pooled, &plan->small));
    RSM_TRY(rsm_buffer_create(device, scratch + plan->width, &plan->scratch));   /* with zeros_of behind it */
    plan->scratch_count = scratch;
    return RESMAP_OK;
}

/* What a driver that allocates on first use says when a buffer is first used: lack of memory may be called by another name
 * (CL_OUT_OF_RESOURCES) than when buffers are made, and can be mended in the same way. */
static resmap_status first_use(resmap_status status)
{
    return status == RESMAP_DEVICE_FAILED ? RESMAP_NO_DEVICE_MEMORY : status;
}

/* Drivers may allocate on first use only: use everything now, so that lack of memory shows while it can be mended. It also
 * makes zeros_of zero. */
static resmap_status touch(rsm_plan *plan)
{
    rsm_buffer *buffers[] = {plan->input, plan->level0, plan->skip[1], plan->skip[2], plan->skip[3], plan->small, plan->scratch};

    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++) {
        rsm_map all = {buffers[i], 0, rsm_buffer_count(buffers[i]), RSM_FP32};
        RSM_TRY(first_use(rsm_fill_zero(plan->device, all, 1, all.plane)));
    }
    return first_use(rsm_device_finish(plan->device));
}

static rsm_plan *empty_plan(rsm_network *net, size_t height, size_t width, size_t slices)
{
    rsm_plan *plan = calloc(1, sizeof *plan);

    if (plan == NULL) return NULL;
    plan->net = net;
    plan->device = net->device;
    plan->env = net->env;
    plan->config = net->config;
    plan->height = height;
    plan->width = width;
    plan->slices = plan->used = slices;
    return plan;
}

resmap_status rsm_plan_share(const rsm_plan *plan, rsm_network *net, rsm_plan **shared)
{
    rsm_plan *second = empty_plan(net, plan->height, plan->width, plan->slices);
    resmap_status status;

    if (second == NULL) return rsm_no_memory(net->env, sizeof *second);
    status = allocate(second, plan->scratch_count);
    if (status == RESMAP_OK) status = touch(second);
    if (status == RESMAP_OK) *shared = second;
    else rsm_plan_free(second);
    return status;
}

resmap_status rsm_plan_create(rsm_network *net, size_t height, size_t width, size_t slices, rsm_plan **result)
{
    /* Enough work in each launch, and few rows copied from band to band; on CPUs what the caches hold from one
     * operation to the next counts for more, but bands of fewer than eight rows would be copied as often as
     * computed. */
    size_t preferred = (rsm_device_is_cpu(net->device) ? (size_t)2 : (size_t)64) << 20;
    const rsm_variant *tuned = rsm_tuned(net->device, RSM_TUNE_BANDS);
    const block *widest = net->refinement.blocks;
    size_t scratch, smaller;
    uint64_t largest;
    rsm_plan *plan = empty_plan(net, height, width, slices);
    resmap_status status;

    if (plan == NULL) return rsm_no_memory(net->env, sizeof *plan);
    largest = rsm_device_max_allocation(net->device);
    if (largest > rsm_device_limit(net->device)) largest = rsm_device_limit(net->device);
    if (height > largest / sizeof(float) / (2 * net->config->dim) / width / slices) {
        free(plan);              /* at once: finding bands for a slice of 10^8 rows would take minutes */
        return rsm_fail(net->env, RESMAP_NO_DEVICE_MEMORY, "device %s: a map of %zu x %zu x %zu x %zu: at most %llu bytes",
                        rsm_device_info(net->device)->name, 2 * net->config->dim, slices, height, width, (unsigned long long)largest);
    }
    if (tuned != NULL) preferred = ((size_t)tuned->values[0] << 20) / sizeof(float);
    preferred = taken(net->storage, preferred);   /* as many rows in half the memory */
    preferred = maximum(preferred, scratch_need(net, FEED_FORWARD, widest->channels, widest->hidden, width, 8));
    if (slices > 1) {            /* a few slices at full resolution, all of them at the others, fill a device */
        size_t few = FEW * whole_need(net, FEED_FORWARD, widest->channels, widest->hidden, height * width, 1);
        if (few < preferred) preferred = few;
    }
    for (;;) {
        scratch = network_need(net, height, width, slices, preferred);
        status = allocate(plan, scratch);
        if (status == RESMAP_OK) status = touch(plan);
        if (status == RESMAP_OK) break;
        /* What is queued still holds its buffers. */
        if (status == RESMAP_NO_DEVICE_MEMORY) rsm_device_finish(plan->device);
        clear_plan(plan);
        if (status != RESMAP_NO_DEVICE_MEMORY) break;
        do {                     /* smaller bands, until two rows is all there is */
            preferred /= 2;
            smaller = network_need(net, height, width, slices, preferred);
        } while (smaller == scratch && preferred > 0);
        if (smaller >= scratch) break;
    }
    if (status == RESMAP_OK) *result = plan;
    else free(plan);
    return status;
}

void rsm_plan_free(rsm_plan *plan)
{
    if (plan == NULL) return;
    clear_plan(plan);
    free(plan);
}

size_t rsm_plan_band_rows(const rsm_plan *plan)
{
    const block *b = plan->net->refinement.blocks;

    if (slices_at_once(plan->net, FEED_FORWARD, b->channels, b->hidden, plan->height * plan->width, 1, plan->scratch_count) == 1)
        return plan->height;
    return band_rows(plan->net, FEED_FORWARD, b->channels, b->hidden, plan->height, plan->width, plan->scratch_count);
}

/* ---- Running ------------------------------------------------------------------------------------------------ */

/* A level's map: `slices` slices of height x width, one after the other in each channel. */
typedef struct level_map {
    rsm_map map;
    size_t slices, height, width;
} level_map;

static level_map feature_of(rsm_plan *plan, rsm_buffer *buffer, int level)
{
    size_t height = plan->height >> level, width = plan->width >> level;

    return (level_map){{buffer, 0, plan->slices * height * width, RSM_FP32}, plan->used, height, width};
}

/* `count` of its slices. */
static level_map slices_of(level_map f, size_t first, size_t count)
{
    f.map.offset += first * f.height * f.width;
    f.slices = count;
    return f;
}

static rsm_map rows_of(rsm_map map, size_t width, size_t row)
{
    map.offset += row * width;
    return map;
}

static rsm_map channels_of(rsm_map map, size_t channel)
{
    map.offset += channel * map.plane;
    return map;
}

static rsm_vector part_of(rsm_vector vector, size_t offset)
{
    vector.offset += offset;
    return vector;
}

/* A map within scratch, `offset` elements of the network's storage from its start. */
static rsm_map scratch_map(const rsm_plan *plan, size_t offset, size_t plane)
{
    return (rsm_map){plan->scratch, offset, plane, plan->net->storage};
}

/* The fp32 part of scratch that follows `offset` elements of the network's storage. */
static rsm_vector scratch_after(const rsm_plan *plan, size_t offset)
{
    return (rsm_vector){plan->scratch, taken(plan->net->storage, offset)};
}

/* A row of zeros, in the network's storage, behind the scratch. */
static rsm_map zeros_of(const rsm_plan *plan)
{
    size_t offset = plan->net->storage == RSM_FP16 ? 2 * plan->scratch_count : plan->scratch_count;

    return scratch_map(plan, offset, plan->width);
}

/* Makes the `count` weights from `first` on ready for use and points the vectors to them: kernels read fp32. Weights made
 * ready before are gone. */
static resmap_status ready(rsm_plan *plan, size_t first, size_t count, rsm_vector *const *vectors, size_t vector_count)
{
    const rsm_network *net = plan->net;

    if (net->storage == RSM_FP32) return RESMAP_OK;
    for (size_t i = 0; i < vector_count; i++)
        if (vectors[i]->buffer != NULL) *vectors[i] = (rsm_vector){net->expanded, vectors[i]->offset - first};
    return rsm_copy(plan->device, (rsm_map){net->weights, first, count, RSM_FP16},
                    (rsm_map){net->expanded, 0, count, RSM_FP32}, 1, count);
}

static resmap_status ready_tensor(rsm_plan *plan, rsm_vector *weight, size_t count)
{
    return ready(plan, weight->offset, count, &weight, 1);
}

static resmap_status ready_block(rsm_plan *plan, block *b)
{
    rsm_vector *const vectors[] = {&b->norm1_weight, &b->norm1_bias, &b->temperature, &b->qkv, &b->qkv_depthwise,
                                   &b->attention_out, &b->norm2_weight, &b->norm2_bias, &b->ffn_in, &b->ffn_depthwise,
                                   &b->ffn_out};

    return ready(plan, b->first, b->count, vectors, sizeof vectors / sizeof *vectors);
}

/* A band of rows on its way through norm, 1x1 expansion and a 3x3 depthwise convolution, which needs one expanded row above
 * and below. The blocks change their map in place from top to bottom, so the row above is taken from the band before, not
 * computed anew from rows already changed. */
typedef struct row_band {
    rsm_map x;                   /* the map */
    size_t height, width;
    size_t first, rows;          /* the rows of this band */
    size_t previous_rows;        /* of the band before; 0: this is the first */
    rsm_map normal, expanded;    /* (rows + 2) rows each; row 0 is the one above */
} row_band;

/* What the depthwise convolution works on: the rows of `expanded` from 1 on. */
static rsm_rows rows_of_band(const row_band *b)
{
    return (rsm_rows){1, b->rows, b->width, b->previous_rows > 0, b->first + b->rows < b->height};
}

static resmap_status expand(rsm_plan *plan, const row_band *b, size_t channels, rsm_vector norm_weight, rsm_vector norm_bias,
                            rsm_vector weight, size_t c_out)
{
    size_t w = b->width;
    int at_end = b->first + b->rows == b->height;
    size_t from = b->previous_rows > 0 ? 2 : 1, to = b->rows + (at_end ? 1 : 2);   /* band rows to compute: [from, to) */

    if (b->previous_rows > 0) RSM_TRY(rsm_copy(plan->device, rows_of(b->expanded, w, b->previous_rows), b->expanded, c_out, 2 * w));
    if (to <= from) return RESMAP_OK;
    return rsm_norm_conv1x1(plan->device, norm_weight, norm_bias, weight, rows_of(b->x, w, b->first + from - 1),
                            rows_of(b->normal, w, from), rows_of(b->expanded, w, from), channels, c_out, (to - from) * w);
}

/* x += project_out(attention(norm1(x))), of whole slices. */
static resmap_status attend_whole(rsm_plan *plan, const block *b, level_map f)
{
    size_t c = b->channels, pixels = f.height * f.width, plane = spread(f.slices * pixels);
    small_layout small = small_of(c, b->heads, f.slices);
    rsm_vector sums = {plan->small, small.sums}, matrix = {plan->small, small.matrix}, temporary = {plan->small, small.scratch};
    rsm_map normal = scratch_map(plan, 0, plane), expanded = scratch_map(plan, c * plane, plane);
    rsm_map qkv = scratch_map(plan, 4 * c * plane, plane), v = channels_of(qkv, 2 * c);
    rsm_vector partial = scratch_after(plan, 7 * c * plane);
    rsm_rows all = {f.slices, f.height, f.width, 0, 0};

    RSM_TRY(rsm_norm_conv1x1(plan->device, b->norm1_weight, b->norm1_bias, b->qkv, f.map, normal, expanded, c, 3 * c, f.slices * pixels));
    RSM_TRY(rsm_depthwise3x3(plan->device, expanded, b->qkv_depthwise, qkv, zeros_of(plan), 3 * c, all));
    RSM_TRY(rsm_attention_sums(plan->device, qkv, channels_of(qkv, c), c, b->heads, f.slices, pixels, sums, partial, 0));
    RSM_TRY(rsm_attention_matrix(plan->device, sums, b->temperature, b->attention_out, matrix, temporary, c, b->heads, f.slices));
    for (size_t s = 0; s < f.slices; s++)
        RSM_TRY(rsm_conv1x1(plan->device, part_of(matrix, s * c * c), c, rows_of(v, pixels, s), rows_of(f.map, pixels, s), c, c, pixels, 1));
    return RESMAP_OK;
}

/* The same of one slice in bands. One pass over them sums the attention's statistics from q and k; a second one applies the
 * softmax matrix, folded with the output projection, to v. */
static resmap_status attend_in_bands(rsm_plan *plan, const block *b, level_map f)
{
    size_t c = b->channels, w = f.width;
    size_t rows = band_rows(plan->net, ATTENTION, c, b->heads, f.height, w, plan->scratch_count);
    size_t halo_plane = spread((rows + 2) * w), plane = spread(rows * w);
    small_layout small = small_of(c, b->heads, 1);
    rsm_vector sums = {plan->small, small.sums}, matrix = {plan->small, small.matrix}, temporary = {plan->small, small.scratch};
    row_band band = {f.map, f.height, w, 0, 0, 0, scratch_map(plan, 0, halo_plane),
                     scratch_map(plan, c * halo_plane, halo_plane)};
    rsm_map qk = scratch_map(plan, 3 * c * halo_plane, plane);
    rsm_vector partial = scratch_after(plan, qk.offset + 2 * c * plane);

    for (size_t first = 0; first < f.height; first += rows) {
        band.previous_rows = first == 0 ? 0 : band.rows;
        band.first = first;
        band.rows = f.height - first < rows ? f.height - first : rows;
        RSM_TRY(expand(plan, &band, c, b->norm1_weight, b->norm1_bias, b->qkv, 2 * c));
        RSM_TRY(rsm_depthwise3x3(plan->device, rows_of(band.expanded, w, 1), b->qkv_depthwise, qk, zeros_of(plan), 2 * c, rows_of_band(&band)));
        RSM_TRY(rsm_attention_sums(plan->device, qk, channels_of(qk, c), c, b->heads, 1, band.rows * w, sums, partial, first > 0));
    }
    RSM_TRY(rsm_attention_matrix(plan->device, sums, b->temperature, b->attention_out, matrix, temporary, c, b->heads, 1));
    for (size_t first = 0; first < f.height; first += rows) {
        band.previous_rows = first == 0 ? 0 : band.rows;
        band.first = first;
        band.rows = f.height - first < rows ? f.height - first : rows;
        RSM_TRY(expand(plan, &band, c, b->norm1_weight, b->norm1_bias, part_of(b->qkv, 2 * c * c), c));
        RSM_TRY(rsm_depthwise3x3(plan->device, rows_of(band.expanded, w, 1), part_of(b->qkv_depthwise, 2 * c * 9), qk, zeros_of(plan), c,
                                 rows_of_band(&band)));
        RSM_TRY(rsm_conv1x1(plan->device, matrix, c, qk, rows_of(f.map, w, first), c, c, band.rows * w, 1));
    }
    return RESMAP_OK;
}

/* x += project_out(gate(project_in(norm2(x)))), of whole slices. */
static resmap_status feed_forward_whole(rsm_plan *plan, const block *b, level_map f)
{
    size_t c = b->channels, count = f.slices * f.height * f.width, plane = spread(count);
    rsm_map normal = scratch_map(plan, 0, plane), expanded = scratch_map(plan, c * plane, plane);
    rsm_map gated = scratch_map(plan, (c + 2 * b->hidden) * plane, plane);
    rsm_rows all = {f.slices, f.height, f.width, 0, 0};

    RSM_TRY(rsm_norm_conv1x1(plan->device, b->norm2_weight, b->norm2_bias, b->ffn_in, f.map, normal, expanded, c, 2 * b->hidden, count));
    RSM_TRY(rsm_depthwise3x3_gate(plan->device, expanded, b->ffn_depthwise, gated, zeros_of(plan), b->hidden, all));
    return rsm_conv1x1(plan->device, b->ffn_out, b->hidden, gated, f.map, b->hidden, c, count, 1);
}

/* The same of one slice in bands. */
static resmap_status feed_forward_in_bands(rsm_plan *plan, const block *b, level_map f)
{
    size_t c = b->channels, w = f.width;
    size_t rows = band_rows(plan->net, FEED_FORWARD, c, b->hidden, f.height, w, plan->scratch_count);
    size_t halo_plane = spread((rows + 2) * w);
    row_band band = {f.map, f.height, w, 0, 0, 0, scratch_map(plan, 0, halo_plane),
                     scratch_map(plan, c * halo_plane, halo_plane)};
    rsm_map gated = scratch_map(plan, (c + 2 * b->hidden) * halo_plane, spread(rows * w));

    for (size_t first = 0; first < f.height; first += rows) {
        band.previous_rows = first == 0 ? 0 : band.rows;
        band.first = first;
        band.rows = f.height - first < rows ? f.height - first : rows;
        RSM_TRY(expand(plan, &band, c, b->norm2_weight, b->norm2_bias, b->ffn_in, 2 * b->hidden));
        RSM_TRY(rsm_depthwise3x3_gate(plan->device, rows_of(band.expanded, w, 1), b->ffn_depthwise, gated, zeros_of(plan), b->hidden,
                                      rows_of_band(&band)));
        RSM_TRY(rsm_conv1x1(plan->device, b->ffn_out, b->hidden, gated, rows_of(f.map, w, first), b->hidden, c, band.rows * w, 1));
    }
    return RESMAP_OK;
}

/* Runs one half of a block on all slices, as many at once as there is room for. */
static resmap_status run_half(rsm_plan *plan, const block *b, level_map f, operation what, size_t second,
                              resmap_status (*whole)(rsm_plan *, const block *, level_map),
                              resmap_status (*in_bands)(rsm_plan *, const block *, level_map))
{
    size_t together = slices_at_once(plan->net, what, b->channels, second, f.height * f.width, f.slices, plan->scratch_count);
    size_t step = together > 0 ? together : 1;

    for (size_t s = 0; s < f.slices; s += step) {
        level_map part = slices_of(f, s, f.slices - s < step ? f.slices - s : step);
        RSM_TRY(together > 0 ? whole(plan, b, part) : in_bands(plan, b, part));
    }
    return RESMAP_OK;
}

static resmap_status run_block(rsm_plan *plan, const block *b, level_map f)
{
    block weights = *b;

    RSM_TRY(rsm_poll(rsm_device_env(plan->device)));   /* a large slice takes the reference minutes */
    RSM_TRY(ready_block(plan, &weights));
    RSM_TRY(run_half(plan, &weights, f, ATTENTION, b->heads, attend_whole, attend_in_bands));
    return run_half(plan, &weights, f, FEED_FORWARD, b->hidden, feed_forward_whole, feed_forward_in_bands);
}

static resmap_status run_stage(rsm_plan *plan, const stage *s, level_map f)
{
    for (size_t i = 0; i < s->count; i++) RSM_TRY(run_block(plan, &s->blocks[i], f));
    return RESMAP_OK;
}

/* y = 3x3 convolution of x: of the same size, or one level down or up, by pixel-unshuffle or -shuffle. */
static resmap_status convolve(rsm_plan *plan, operation what, rsm_vector weight, level_map x, level_map y, size_t c_in, size_t c_out)
{
    rsm_vector scratch = {plan->scratch, 0};
    size_t rows = band_rows(plan->net, what, c_in, c_out, x.height, x.width, plan->scratch_count);

    RSM_TRY(ready_tensor(plan, &weight, 9 * c_in * c_out));
    for (size_t s = 0; s < x.slices; s++)
        for (size_t first = 0; first < x.height; first += rows) {
            size_t count = x.height - first < rows ? x.height - first : rows;
            rsm_map to = rows_of(slices_of(y, s, 1).map, y.width, first * y.height / x.height);
            RSM_TRY(rsm_conv3x3(plan->device, slices_of(x, s, 1).map, weight, to, order_of(what), scratch, c_in, c_out, x.height,
                                x.width, first, count));
        }
    return RESMAP_OK;
}

/* skip = reduce([x ; skip]): 1x1 convolution of the concatenation, as the sum of its halves. */
static resmap_status reduce(rsm_plan *plan, rsm_vector weight, level_map x, level_map skip, size_t channels)
{
    size_t w = x.width, height = x.slices * x.height, rows = band_rows(plan->net, FUSION, channels, 0, height, w, plan->scratch_count);
    rsm_map sum = {plan->scratch, 0, rows * w, RSM_FP32};

    RSM_TRY(ready_tensor(plan, &weight, 2 * channels * channels));
    for (size_t first = 0; first < height; first += rows) {
        size_t count = (height - first < rows ? height - first : rows) * w;
        rsm_map band = rows_of(skip.map, w, first);
        RSM_TRY(rsm_conv1x1(plan->device, weight, 2 * channels, rows_of(x.map, w, first), sum, channels, channels, count, 0));
        RSM_TRY(rsm_conv1x1(plan->device, part_of(weight, channels), 2 * channels, band, sum, channels, channels, count, 1));
        RSM_TRY(rsm_copy(plan->device, sum, band, channels, count));
    }
    return RESMAP_OK;
}

/* Textual Prompt Fusion (paper eq. 2): x = Block(Conv1x1[x ; Conv1x1(t)]). */
static resmap_status fuse(rsm_plan *plan, const fusion *t, level_map x)
{
    size_t c = t->block.channels, w = x.width, height = x.slices * x.height;
    size_t rows = band_rows(plan->net, FUSION, c, 0, height, w, plan->scratch_count);
    rsm_map sum = {plan->scratch, 0, rows * w, RSM_FP32};
    rsm_vector weight = t->fuse;

    RSM_TRY(ready_tensor(plan, &weight, 2 * c * c));
    for (size_t first = 0; first < height; first += rows) {
        size_t count = (height - first < rows ? height - first : rows) * w;
        rsm_map band = rows_of(x.map, w, first);
        RSM_TRY(rsm_fill_channels(plan->device, t->bias, sum, c, count));
        RSM_TRY(rsm_conv1x1(plan->device, weight, 2 * c, band, sum, c, c, count, 1));
        RSM_TRY(rsm_copy(plan->device, sum, band, c, count));
    }
    return run_block(plan, &t->block, x);
}

/* The encoder's full-resolution map: the upper half of level 0. */
static level_map encoder0(rsm_plan *plan)
{
    level_map f = feature_of(plan, plan->level0, 0);
    f.map = channels_of(f.map, plan->config->dim);
    return f;
}

resmap_status rsm_plan_encode(rsm_plan *plan, const float *slices, size_t count, float *pooled)
{
    size_t pooled_count = rsm_network_pooled_count(plan->net);
    rsm_vector mean = {plan->small, plan->pooled_offset};
    level_map level;

    if (count == 0 || count > plan->slices)
        return rsm_fail(plan->env, RESMAP_INTERNAL, "network: %zu slices in a plan for %zu", count, plan->slices);
    plan->used = count;
    level = encoder0(plan);
    RSM_TRY(rsm_buffer_write(plan->device, plan->input, 0, slices, count * plan->height * plan->width));
    RSM_TRY(convolve(plan, CONVOLUTION, plan->net->patch_embed, feature_of(plan, plan->input, 0), level, 1, plan->config->dim));
    RSM_TRY(run_stage(plan, &plan->net->encoder[0], level));
    for (int i = 0; i < 3; i++) {
        level_map next = feature_of(plan, plan->skip[i + 1], i + 1);
        size_t channels = level_channels(plan->net, i);
        RSM_TRY(convolve(plan, DOWN, plan->net->down[i], level, next, channels, channels / 2));
        RSM_TRY(run_stage(plan, &plan->net->encoder[i + 1], next));
        level = next;
    }
    if (pooled == NULL) return RESMAP_OK;
    for (size_t s = 0; s < count; s++) {
        rsm_vector to = part_of(mean, s * pooled_count);
        level = slices_of(feature_of(plan, plan->skip[3], 3), s, 1);
        RSM_TRY(rsm_channel_mean(plan->device, level.map, to, 8 * plan->config->dim, level.height * level.width));
        to = part_of(to, 8 * plan->config->dim);
        for (int i = 0; i + 1 < (int)plan->config->classifier_levels; i++) {
            size_t channels = level_channels(plan->net, i);
            level = slices_of(i == 0 ? encoder0(plan) : feature_of(plan, plan->skip[i], i), s, 1);
            RSM_TRY(rsm_channel_rms(plan->device, level.map, to, channels, level.height * level.width));
            to = part_of(to, channels);
        }
    }
    return rsm_buffer_read(plan->device, plan->small, mean.offset, pooled, count * pooled_count);
}

resmap_status rsm_plan_decode(rsm_plan *plan, float *output)
{
    level_map level = feature_of(plan, plan->skip[3], 3), whole = feature_of(plan, plan->level0, 0);
    level_map input = feature_of(plan, plan->input, 0), result = feature_of(plan, plan->skip[1], 0);   /* free by then */
    size_t pixels = plan->used * plan->height * plan->width;

    if (plan->config->arch == RSM_ARCH_RESMAP && !plan->net->has_prompt)
        return rsm_fail(plan->env, RESMAP_INTERNAL, "network: decoding without a prompt");
    for (int i = 2; i >= 0; i--) {
        level_map next = feature_of(plan, plan->level0, i);
        size_t channels = level_channels(plan->net, i);
        if (plan->config->arch == RSM_ARCH_RESMAP) RSM_TRY(fuse(plan, &plan->net->fusion[i], level));
        RSM_TRY(convolve(plan, UP, plan->net->up[i], level, next, 2 * channels, 4 * channels));
        if (i > 0) {
            level_map skip = feature_of(plan, plan->skip[i], i);
            RSM_TRY(reduce(plan, plan->net->reduce[i], next, skip, channels));
            next = skip;
        }
        RSM_TRY(run_stage(plan, &plan->net->decoder[i], next));
        level = next;
    }
    RSM_TRY(run_stage(plan, &plan->net->refinement, whole));
    RSM_TRY(convolve(plan, CONVOLUTION, plan->net->output_conv, whole, result, 2 * plan->config->dim, 1));
    RSM_TRY(rsm_add(plan->device, input.map, result.map, 1, pixels));
    return rsm_buffer_read(plan->device, result.map.buffer, 0, output, pixels);
}

/* ---- Keeping encodings -------------------------------------------------------------------------------------- */

/* The parts of an encoding: the slice, the encoder's half of level 0, the skips and the latent. */
typedef struct part {
    rsm_buffer *buffer;
    size_t offset, count;
} part;

enum { PARTS = 5 };

static void encoding_parts(const rsm_plan *plan, part parts[PARTS])
{
    size_t pixels = plan->height * plan->width, half = plan->config->dim * pixels;

    parts[0] = (part){plan->input, 0, pixels};
    parts[1] = (part){plan->level0, half, half};
    for (int i = 1; i < LEVELS; i++)
        parts[i + 1] = (part){plan->skip[i], 0, level_channels(plan->net, i) * (pixels >> (2 * i))};
}

size_t rsm_plan_encoding_count(const rsm_plan *plan)
{
    part parts[PARTS];
    size_t count = 0;

    encoding_parts(plan, parts);
    for (int i = 0; i < PARTS; i++) count += parts[i].count;
    return count;
}

static resmap_status check_single(const rsm_plan *plan)
{
    return plan->slices == 1 ? RESMAP_OK : rsm_fail(plan->env, RESMAP_INTERNAL, "network: an encoding of several slices cannot be kept");
}

resmap_status rsm_plan_save(rsm_plan *plan, int on_host, rsm_encoding *encoding)
{
    part parts[PARTS];
    size_t at = 0, count = rsm_plan_encoding_count(plan);
    rsm_encoding saved = {NULL, NULL};
    resmap_status status = RESMAP_OK;

    RSM_TRY(check_single(plan));
    encoding_parts(plan, parts);
    if (on_host) {
        saved.host = malloc(rsm_bytes(count, sizeof *saved.host));
        if (saved.host == NULL) return rsm_no_memory(plan->env, count * sizeof *saved.host);
    } else {
        RSM_TRY(rsm_buffer_create(plan->device, count, &saved.device));
    }
    for (int i = 0; i < PARTS; i++) {
        const part *p = &parts[i];
        if (on_host) RSM_CHECK(rsm_buffer_read(plan->device, p->buffer, p->offset, saved.host + at, p->count));
        else RSM_CHECK(first_use(rsm_buffer_copy(plan->device, saved.device, at, p->count, p->buffer, p->offset, p->count, p->count, 1)));
        at += p->count;
    }
    /* Others have queues of their own. */
    RSM_CHECK(on_host ? RESMAP_OK : first_use(rsm_device_finish(plan->device)));
    *encoding = saved;
    return RESMAP_OK;
done:
    rsm_encoding_clear(&saved);
    return status;
}

resmap_status rsm_plan_load(rsm_plan *plan, const rsm_encoding *encoding)
{
    part parts[PARTS];
    size_t at = 0;

    RSM_TRY(check_single(plan));
    encoding_parts(plan, parts);
    for (int i = 0; i < PARTS; i++) {
        const part *p = &parts[i];
        if (encoding->host != NULL) RSM_TRY(rsm_buffer_write(plan->device, p->buffer, p->offset, encoding->host + at, p->count));
        else RSM_TRY(rsm_buffer_copy(plan->device, p->buffer, p->offset, p->count, encoding->device, at, p->count, p->count, 1));
        at += p->count;
    }
    return RESMAP_OK;
}

void rsm_encoding_clear(rsm_encoding *encoding)
{
    rsm_buffer_free(encoding->device);
    free(encoding->host);
    encoding->device = NULL;
    encoding->host = NULL;
}
