/* Operations, networks and the cascade against what an independent PyTorch model computed in float64 (tests/vectors, by
 * make_network.py), on the plain-C reference and on every OpenCL device. */
#include <check.h>
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/cascade.h"
#include "model/field.h"
#include "model/selfcheck.h"
#include "model/view.h"
#include "nn/nn.h"
#include "tests/devices.h"
#include "tests/paths.h"
#include "tests/run.h"
#include "tests/tensors.h"

static rsm_env env;
static test_device *devices;
static int device_count;

#define OK(call) ck_assert_msg((call) == RESMAP_OK, "%s: %s", #call, env.error)

/* The contract allows 1e-4; this is what fp32 with careful sums reaches. The reference computes in float64 and loses only the
 * rounding of what is handed in and out. */
static double bound(int d)
{
    return d == 0 ? 1e-6 : 1e-5;
}

static const double FLOAT_ROUNDING = 6e-8;

#define CHECK_CLOSE(d, values, expected, count, ...)                                                              \
    do {                                                                                                          \
        double error_ = relative_error((values), (expected), (count));                                            \
        char what_[128];                                                                                          \
        snprintf(what_, sizeof what_, __VA_ARGS__);                                                               \
        ck_assert_msg(error_ <= bound(d), "%s on device %s: error %.3g", what_, devices[d].specification, error_); \
    } while (0)

static float *floats(const double *values, size_t count)
{
    float *f = malloc((count + 1) * sizeof *f);

    for (size_t i = 0; i < count; i++) f[i] = (float)values[i];
    return f;
}

static int all_devices(void)
{
    device_count = test_devices_open(&env, &devices);
    return device_count;
}

/* ---- Single operations -------------------------------------------------------------------------------------- */

static rsm_buffer *upload(rsm_device *device, const double *values, size_t count)
{
    rsm_buffer *buffer;
    float *f = floats(values, count);

    OK(rsm_buffer_create(device, count, &buffer));
    OK(rsm_buffer_write(device, buffer, 0, f, count));
    free(f);
    return buffer;
}

static rsm_buffer *upload_tensor(rsm_device *device, tensors *file, const char *name, const char *part)
{
    const tensor *t = tensors_get(file, "%s.%s", name, part);

    return upload(device, t->values, t->count);
}

static rsm_buffer *empty(rsm_device *device, size_t count)
{
    rsm_buffer *buffer;

    OK(rsm_buffer_create(device, count, &buffer));
    return buffer;
}

static void check_buffer(int d, rsm_buffer *buffer, const tensor *expected, const char *name)
{
    float *values = malloc((expected->count + 1) * sizeof *values);

    OK(rsm_buffer_read(devices[d].device, buffer, 0, values, expected->count));
    CHECK_CLOSE(d, values, expected->values, expected->count, "%s", name);
    free(values);
}

#define MAP(buffer, plane) ((rsm_map){(buffer), 0, (plane), RSM_FP32})
#define VECTOR_OF(buffer) ((rsm_vector){(buffer), 0})

START_TEST(layer_norms)
{
    tensors *weights = tensors_open("ops"), *io = tensors_open("ops.io");

    for (int d = 0; d < all_devices(); d++) {
        rsm_device *device = devices[d].device;
        for (int with_bias = 0; with_bias < 2; with_bias++) {
            const char *name = with_bias ? "layernorm_withbias" : "layernorm_biasfree";
            const tensor *input = tensors_get(io, "%s.input", name);
            size_t pixels = input->shape[1] * input->shape[2];
            rsm_buffer *x = upload(device, input->values, input->count), *y = empty(device, input->count);
            rsm_buffer *w = upload_tensor(device, weights, name, "body.weight");
            rsm_buffer *b = with_bias ? upload_tensor(device, weights, name, "body.bias") : NULL;
            OK(rsm_layer_norm(device, MAP(x, pixels), VECTOR_OF(w), VECTOR_OF(b), MAP(y, pixels), input->shape[0], pixels));
            check_buffer(d, y, tensors_get(io, "%s.output", name), name);
            rsm_buffer_free(x);
            rsm_buffer_free(y);
            rsm_buffer_free(w);
            rsm_buffer_free(b);
        }
    }
    tensors_close(weights);
    tensors_close(io);
}
END_TEST

/* What a slice ends in. */
static rsm_buffer *zeros(rsm_device *device, size_t width)
{
    rsm_buffer *row = empty(device, width);

    OK(rsm_fill_zero(device, MAP(row, width), 1, width));
    return row;
}

START_TEST(attention)
{
    static const struct { const char *name; size_t heads; } cases[] = {{"mdta_1head", 1}, {"mdta_4heads", 4}, {"mdta_one_pixel", 2}};
    tensors *weights = tensors_open("ops"), *io = tensors_open("ops.io");

    for (int d = 0; d < all_devices(); d++) {
        rsm_device *device = devices[d].device;
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            const char *name = cases[i].name;
            const tensor *input = tensors_get(io, "%s.input", name);
            size_t c = input->shape[0], h = input->shape[1], w = input->shape[2], n = h * w, heads = cases[i].heads;
            rsm_buffer *x = upload(device, input->values, input->count), *y = empty(device, c * n);
            rsm_buffer *qkv = upload_tensor(device, weights, name, "qkv.weight");
            rsm_buffer *depthwise = upload_tensor(device, weights, name, "qkv_dwconv.weight");
            rsm_buffer *out = upload_tensor(device, weights, name, "project_out.weight");
            rsm_buffer *temperature = upload_tensor(device, weights, name, "temperature");
            rsm_buffer *wide = empty(device, 3 * c * n), *all = empty(device, 3 * c * n), *none = zeros(device, w);
            rsm_buffer *sums = empty(device, rsm_attention_sums_count(c, heads));
            rsm_buffer *partial = empty(device, rsm_attention_scratch(c, heads, n));
            rsm_buffer *matrix = empty(device, c * c), *temporary = empty(device, c * c);
            OK(rsm_conv1x1(device, VECTOR_OF(qkv), c, MAP(x, n), MAP(wide, n), c, 3 * c, n, 0));
            OK(rsm_depthwise3x3(device, MAP(wide, n), VECTOR_OF(depthwise), MAP(all, n), MAP(none, w), 3 * c, (rsm_rows){1, h, w, 0, 0}));
            OK(rsm_attention_sums(device, MAP(all, n), (rsm_map){all, c * n, n, RSM_FP32}, c, heads, 1, n, VECTOR_OF(sums),
                                  VECTOR_OF(partial), 0));
            OK(rsm_attention_matrix(device, VECTOR_OF(sums), VECTOR_OF(temperature), VECTOR_OF(out), VECTOR_OF(matrix),
                                    VECTOR_OF(temporary), c, heads, 1));
            OK(rsm_conv1x1(device, VECTOR_OF(matrix), c, (rsm_map){all, 2 * c * n, n, RSM_FP32}, MAP(y, n), c, c, n, 0));
            check_buffer(d, y, tensors_get(io, "%s.output", name), name);
            {
                rsm_buffer *used[] = {x, y, qkv, depthwise, out, temperature, wide, all, none, sums, partial, matrix, temporary};
                for (size_t k = 0; k < sizeof used / sizeof *used; k++) rsm_buffer_free(used[k]);
            }
        }
    }
    tensors_close(weights);
    tensors_close(io);
}
END_TEST

START_TEST(feed_forward)
{
    static const char *const cases[] = {"gdfn", "gdfn_24"};
    tensors *weights = tensors_open("ops"), *io = tensors_open("ops.io");

    for (int d = 0; d < all_devices(); d++) {
        rsm_device *device = devices[d].device;
        for (size_t i = 0; i < 2; i++) {
            const char *name = cases[i];
            const tensor *input = tensors_get(io, "%s.input", name);
            size_t c = input->shape[0], h = input->shape[1], w = input->shape[2], n = h * w;
            size_t hidden = tensors_get(weights, "%s.project_out.weight", name)->shape[1];
            rsm_buffer *x = upload(device, input->values, input->count), *y = empty(device, c * n);
            rsm_buffer *in = upload_tensor(device, weights, name, "project_in.weight");
            rsm_buffer *depthwise = upload_tensor(device, weights, name, "dwconv.weight");
            rsm_buffer *out = upload_tensor(device, weights, name, "project_out.weight");
            rsm_buffer *wide = empty(device, 2 * hidden * n), *gated = empty(device, hidden * n), *none = zeros(device, w);
            OK(rsm_conv1x1(device, VECTOR_OF(in), c, MAP(x, n), MAP(wide, n), c, 2 * hidden, n, 0));
            OK(rsm_depthwise3x3_gate(device, MAP(wide, n), VECTOR_OF(depthwise), MAP(gated, n), MAP(none, w), hidden,
                                     (rsm_rows){1, h, w, 0, 0}));
            OK(rsm_conv1x1(device, VECTOR_OF(out), hidden, MAP(gated, n), MAP(y, n), hidden, c, n, 0));
            check_buffer(d, y, tensors_get(io, "%s.output", name), name);
            {
                rsm_buffer *used[] = {x, y, in, depthwise, out, wide, gated, none};
                for (size_t k = 0; k < sizeof used / sizeof *used; k++) rsm_buffer_free(used[k]);
            }
        }
    }
    tensors_close(weights);
    tensors_close(io);
}
END_TEST

START_TEST(convolutions)
{
    static const struct { const char *name, *weight; rsm_order order; } cases[] = {
        {"down", "body.0.weight", RSM_UNSHUFFLE}, {"up", "body.0.weight", RSM_SHUFFLE}, {"patch_embed", "proj.weight", RSM_PLAIN},
        {"output_conv", "weight", RSM_PLAIN}};
    tensors *weights = tensors_open("ops"), *io = tensors_open("ops.io");

    for (int d = 0; d < all_devices(); d++) {
        rsm_device *device = devices[d].device;
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            const char *name = cases[i].name;
            const tensor *input = tensors_get(io, "%s.input", name), *output = tensors_get(io, "%s.output", name);
            const tensor *weight = tensors_get(weights, "%s.%s", name, cases[i].weight);
            size_t c_in = weight->shape[1], c_out = weight->shape[0], h = input->shape[1], w = input->shape[2], n = h * w;
            rsm_buffer *x = upload(device, input->values, input->count), *k = upload(device, weight->values, weight->count);
            rsm_order order = cases[i].order;
            rsm_buffer *y = empty(device, output->count), *scratch = empty(device, rsm_conv3x3_scratch(device, c_in, c_out, n, order) + 1);
            size_t plane = order == RSM_UNSHUFFLE ? n / 4 : order == RSM_SHUFFLE ? 4 * n : n;
            OK(rsm_conv3x3(device, MAP(x, n), VECTOR_OF(k), MAP(y, plane), order, VECTOR_OF(scratch), c_in, c_out, h, w, 0, h));
            check_buffer(d, y, output, name);
            rsm_buffer_free(x);
            rsm_buffer_free(k);
            rsm_buffer_free(y);
            rsm_buffer_free(scratch);
        }
    }
    tensors_close(weights);
    tensors_close(io);
}
END_TEST

/* ---- Networks ----------------------------------------------------------------------------------------------- */

/* A model of tests/vectors, or "/NAME": of weights. */
static resmap_model *open_model(const char *name)
{
    char path[512];
    resmap_model *model;

    snprintf(path, sizeof path, "%s/%s/%s.safetensors", TOP_SRCDIR, name[0] == '/' ? "weights" : "tests/vectors",
             name[0] == '/' ? name + 1 : name);
    OK(rsm_model_open(&env, path, &model));
    return model;
}

/* Encodes, decodes with every prompt, and compares what there is to compare. */
static void check_network(int d, rsm_network *net, tensors *io, const char *suffix, const char *name)
{
    const tensor *input = tensors_get(io, "input%s", suffix);
    size_t h = input->shape[0], w = input->shape[1], pooled_count = rsm_network_pooled_count(net);
    float *slice = floats(input->values, input->count), *output = malloc(h * w * sizeof *output);
    float *pooled = malloc(2 * pooled_count * sizeof *pooled);
    rsm_view *view;

    OK(rsm_view_create(net, h, w, 1, &view));
    ck_assert(!rsm_view_tiled(view));
    if (tensors_has(io, "network%s", suffix)) {
        const tensor *expected = tensors_get(io, "network%s", suffix), *prompts = tensors_get(io, "prompt");
        for (size_t c = 0; c < expected->shape[0]; c++) {
            float *prompt = floats(prompts->values + c * prompts->shape[1], prompts->shape[1]);
            OK(rsm_view_encode(view, slice, 1, pooled));
            OK(rsm_network_set_prompt(net, prompt));
            OK(rsm_view_decode(view, output));
            CHECK_CLOSE(d, output, expected->values + c * h * w, h * w, "%s%s prompt %zu", name, suffix, c);
            free(prompt);
        }
        /* The full view's pooled latent leads; the shrunken one's is checked through the cascade. */
        expected = tensors_get(io, "pooled%s", suffix);
        CHECK_CLOSE(d, pooled, expected->values, pooled_count, "%s%s pooled", name, suffix);
        if (rsm_network_model(net)->config.classifier_views == 1) {
            double logits[RESMAP_MAX_CLASSES];
            float values[RESMAP_MAX_CLASSES];
            expected = tensors_get(io, "logits%s", suffix);
            rsm_network_classify(net, pooled, logits);
            for (size_t c = 0; c < expected->count; c++) values[c] = (float)logits[c];
            CHECK_CLOSE(d, values, expected->values, expected->count, "%s%s logits", name, suffix);
        }
    } else {
        const tensor *expected = tensors_get(io, "output%s", suffix);
        OK(rsm_view_encode(view, slice, 1, NULL));
        OK(rsm_view_decode(view, output));
        CHECK_CLOSE(d, output, expected->values, h * w, "%s%s", name, suffix);
    }
    rsm_view_free(view);
    free(slice);
    free(output);
    free(pooled);
}

static const char *const suffixes[] = {"", "_2", "_3", "_4"};

START_TEST(networks)
{
    static const char *const names[] = {"restormer_biasfree", "restormer_withbias", "restormer_rgb",
                                        "resmap_biasfree", "resmap_withbias", "resmap_views"};
    const char *name = names[_i];
    resmap_model *model = open_model(name);
    char io_name[64];
    tensors *io;

    snprintf(io_name, sizeof io_name, "%s.io", name);
    io = tensors_open(io_name);
    for (int d = 0; d < all_devices(); d++) {
        rsm_network *net;
        OK(rsm_network_create(devices[d].device, model, RSM_FP32, &net));
        for (size_t s = 0; s < 4; s++)
            if (tensors_has(io, "input%s", suffixes[s])) check_network(d, net, io, suffixes[s], name);
        rsm_network_free(net);
        ck_assert_msg(rsm_device_bytes(devices[d].device) == 0, "device memory leaks");
    }
    tensors_close(io);
    rsm_model_free(model);
}
END_TEST

/* A corner that only the first tile covers must be what the network makes of that tile alone; the rest must be blended
 * without holes. */
static void check_tiles(int d, const struct resmap_model *model, const rsm_view *tiled, const float *slice, const float *output,
                        size_t h, size_t w)
{
    rsm_device *device = devices[d].device;
    uint64_t limit = rsm_device_limit(device);
    size_t tile_h, tile_w;
    float *tile, *expected;
    rsm_network *net;
    rsm_view *view;

    rsm_view_tile(tiled, &tile_h, &tile_w);
    tile = malloc(tile_h * tile_w * sizeof *tile);
    expected = malloc(tile_h * tile_w * sizeof *expected);
    for (size_t y = 0; y < tile_h; y++) memcpy(tile + y * tile_w, slice + y * w, tile_w * sizeof *tile);
    rsm_device_set_limit(device, 0);
    OK(rsm_network_create(device, model, RSM_FP32, &net));
    OK(rsm_view_create(net, tile_h, tile_w, 1, &view));
    ck_assert(!rsm_view_tiled(view));
    OK(rsm_view_encode(view, tile, 1, NULL));
    OK(rsm_view_decode(view, expected));
    for (size_t y = 0; y < 8; y++)
        for (size_t x = 0; x < 8; x++) ck_assert_float_eq_tol(output[y * w + x], expected[y * tile_w + x], 1e-4f);
    for (size_t i = 0; i < h * w; i++) ck_assert(isfinite(output[i]));
    rsm_view_free(view);
    rsm_network_free(net);
    rsm_device_set_limit(device, limit);
    free(tile);
    free(expected);
}

/* Less and less memory: bands get narrower, the result stays; then independent tiles, which say so; then a plain error. */
START_TEST(memory_limits)
{
    resmap_model *model = open_model("restormer_biasfree");
    tensors *io = tensors_open("restormer_biasfree.io");
    const tensor *input = tensors_get(io, "input"), *expected = tensors_get(io, "output");
    size_t h = input->shape[0], w = input->shape[1];
    float *slice = floats(input->values, input->count), *output = malloc(h * w * sizeof *output);

    for (int d = 0; d < all_devices(); d++) {
        rsm_device *device = devices[d].device;
        rsm_network *net;
        rsm_view *view;
        uint64_t limit;
        size_t whole = 0, banded = 0, tiled = 0, least_rows = h;
        resmap_status status = RESMAP_OK;
        OK(rsm_network_create(device, model, RSM_FP32, &net));
        OK(rsm_view_create(net, h, w, 1, &view));
        limit = rsm_device_bytes(device);
        rsm_view_free(view);
        for (; limit > 0; limit -= limit / 30 + 1) {
            rsm_device_set_limit(device, limit);
            status = rsm_view_create(net, h, w, 1, &view);
            if (status != RESMAP_OK) break;
            ck_assert_uint_le(rsm_device_bytes(device), limit);
            OK(rsm_view_encode(view, slice, 1, NULL));
            OK(rsm_view_decode(view, output));
            if (rsm_view_tiled(view)) {
                check_tiles(d, model, view, slice, output, h, w);
                tiled++;
            } else {
                CHECK_CLOSE(d, output, expected->values, h * w, "bands of %zu rows", rsm_view_band_rows(view));
                if (rsm_view_band_rows(view) == h) whole++;
                else banded++;
                if (rsm_view_band_rows(view) < least_rows) least_rows = rsm_view_band_rows(view);
            }
            rsm_view_free(view);
        }
        ck_assert_int_eq(status, RESMAP_NO_DEVICE_MEMORY);
        ck_assert_uint_eq(least_rows, 2);
        ck_assert_msg(whole > 0 && banded > 0 && tiled > 0, "%zu whole, %zu banded, %zu tiled", whole, banded, tiled);
        rsm_device_set_limit(device, 0);
        rsm_network_free(net);
        ck_assert_uint_eq(rsm_device_bytes(device), 0);
    }
    free(slice);
    free(output);
    tensors_close(io);
    rsm_model_free(model);
}
END_TEST

/* Several slices at a time, of every number and with less and less memory, give what each gives alone. */
START_TEST(slices_together)
{
    enum { MOST = 4 };
    resmap_model *model = open_model("resmap_withbias");
    tensors *io = tensors_open("resmap_withbias.io");
    const tensor *input = tensors_get(io, "input"), *prompts = tensors_get(io, "prompt");
    size_t h = input->shape[0], w = input->shape[1], n = h * w;
    float *slices = malloc(MOST * n * sizeof *slices), *output = malloc(MOST * n * sizeof *output);
    float *prompt = floats(prompts->values, prompts->shape[1]);

    for (size_t i = 0; i < n; i++) {
        slices[i] = (float)input->values[i];
        slices[n + i] = (float)input->values[n - 1 - i];
        slices[2 * n + i] = 0;
        slices[3 * n + i] = 3 * (float)input->values[i] - 0.5f;
    }
    for (int d = 0; d < all_devices(); d++) {
        rsm_device *device = devices[d].device;
        rsm_network *net;
        rsm_view *view;
        size_t together = 0, fewer = 0;
        resmap_status status = RESMAP_OK;
        OK(rsm_network_create(device, model, RSM_FP32, &net));
        OK(rsm_network_set_prompt(net, prompt));
        size_t pooled_count = rsm_network_pooled_count(net);
        float *pooled = malloc(MOST * pooled_count * sizeof *pooled), *alone_pooled = malloc(MOST * pooled_count * sizeof *pooled);
        float *alone = malloc(MOST * n * sizeof *alone);
        double *expected = malloc(MOST * n * sizeof *expected), *expected_pooled = malloc(MOST * pooled_count * sizeof *expected);
        OK(rsm_view_create(net, h, w, 1, &view));
        for (size_t s = 0; s < MOST; s++) {
            OK(rsm_view_encode(view, slices + s * n, 1, alone_pooled + s * pooled_count));
            OK(rsm_view_decode(view, alone + s * n));
        }
        ck_assert_int_eq(rsm_view_encode(view, slices, 2, NULL), RESMAP_INTERNAL);
        rsm_view_free(view);
        for (size_t i = 0; i < MOST * n; i++) expected[i] = alone[i];
        for (size_t i = 0; i < MOST * pooled_count; i++) expected_pooled[i] = alone_pooled[i];
        OK(rsm_view_create(net, h, w, MOST, &view));
        uint64_t limit = rsm_device_bytes(device);
        rsm_view_free(view);
        for (; limit > 0; limit -= limit / 12 + 1) {
            rsm_device_set_limit(device, limit);
            status = rsm_view_create(net, h, w, MOST, &view);
            if (status != RESMAP_OK || rsm_view_tiled(view)) break;
            for (size_t count = rsm_view_slices(view); count > 0; count--) {
                const size_t first = MOST - count;
                OK(rsm_view_encode(view, slices + first * n, count, pooled));
                OK(rsm_view_decode(view, output));
                for (size_t s = 0; s < count; s++) {
                    CHECK_CLOSE(d, output + s * n, expected + (first + s) * n, n, "slice %zu of %zu", s, count);
                    CHECK_CLOSE(d, pooled + s * pooled_count, expected_pooled + (first + s) * pooled_count, pooled_count,
                                "slice %zu of %zu, pooled", s, count);
                }
            }
            if (rsm_view_slices(view) == MOST) together++;
            else fewer++;
            rsm_view_free(view);
        }
        if (status == RESMAP_OK) rsm_view_free(view);
        ck_assert_msg(together > 1 && fewer > 1, "%zu together, %zu fewer", together, fewer);
        rsm_device_set_limit(device, 0);
        rsm_network_free(net);
        ck_assert_uint_eq(rsm_device_bytes(device), 0);
        free(pooled);
        free(alone_pooled);
        free(alone);
        free(expected);
        free(expected_pooled);
    }
    free(slices);
    free(output);
    free(prompt);
    tensors_close(io);
    rsm_model_free(model);
}
END_TEST

/* An encoding that waited on the device or the host decodes to the very same bits; so does a second run. */
/* Stops at the second question. */
static int stop_amid(void *data, const char *what, size_t done, size_t total)
{
    (void)what;
    (void)done;
    (void)total;
    return ++*(int *)data == 2;
}

START_TEST(encodings)
{
    resmap_model *model = open_model("resmap_biasfree");
    tensors *io = tensors_open("resmap_biasfree.io");
    const tensor *input = tensors_get(io, "input"), *prompts = tensors_get(io, "prompt");
    size_t h = input->shape[0], w = input->shape[1], bytes = h * w * sizeof(float);
    float *slice = floats(input->values, input->count), *prompt = floats(prompts->values, prompts->shape[1]);
    float *other = calloc(h * w, sizeof *other), *first = malloc(bytes), *again = malloc(bytes);

    for (int d = 0; d < all_devices(); d++) {
        rsm_network *net;
        rsm_view *view;
        OK(rsm_network_create(devices[d].device, model, RSM_FP32, &net));
        OK(rsm_network_set_prompt(net, prompt));
        OK(rsm_view_create(net, h, w, 1, &view));
        OK(rsm_view_encode(view, slice, 1, NULL));
        OK(rsm_view_decode(view, first));
        int asked = 0;
        env.progress = stop_amid;
        env.progress_data = &asked;
        ck_assert_int_eq(rsm_view_encode(view, other, 1, NULL), RESMAP_CANCELLED);
        env.progress = NULL;
        OK(rsm_view_encode(view, slice, 1, NULL));
        OK(rsm_view_decode(view, again));
        ck_assert_msg(memcmp(first, again, bytes) == 0, "two runs differ on device %s", devices[d].specification);
        for (int on_host = 0; on_host < 2; on_host++) {
            rsm_encoding kept = {NULL, NULL};
            OK(rsm_view_encode(view, slice, 1, NULL));
            OK(rsm_view_save(view, on_host, &kept));
            OK(rsm_view_encode(view, other, 1, NULL));
            OK(rsm_view_decode(view, again));
            OK(rsm_view_load(view, &kept));
            OK(rsm_view_decode(view, again));
            /* The reference's doubles are rounded on their way to the host. */
            if (d == 0 && on_host) {
                for (size_t i = 0; i < h * w; i++) ck_assert_float_eq_tol(first[i], again[i], 1e-5f);
            } else {
                ck_assert_msg(memcmp(first, again, bytes) == 0, "kept encoding differs on device %s", devices[d].specification);
            }
            rsm_encoding_clear(&kept);
        }
        rsm_view_free(view);
        rsm_network_free(net);
    }
    free(slice);
    free(prompt);
    free(other);
    free(first);
    free(again);
    tensors_close(io);
    rsm_model_free(model);
}
END_TEST

/* ---- Workers on one device ---- */

enum { WORKERS = 3, ROUNDS = 4 };

/* One with its own slice and prompt, and what it gives while the others rest. */
typedef struct network_worker {
    rsm_device *device;          /* further ones' own */
    rsm_network *net;
    rsm_view *view;
    float *slice, *prompt, *output, *pooled, *expected, *expected_pooled;
    size_t pixels, pooled_count;
    rsm_encoding kept;           /* of its slice, made by its neighbour's view */
    resmap_status status;
    int wrong;
} network_worker;

static resmap_status run_worker(network_worker *w, float *output, float *pooled)
{
    for (size_t i = 0; i < w->pixels; i++) output[i] = NAN;
    for (size_t i = 0; i < w->pooled_count; i++) pooled[i] = NAN;
    RSM_TRY(rsm_network_set_prompt(w->net, w->prompt));
    RSM_TRY(rsm_view_encode(w->view, w->slice, 1, pooled));
    return rsm_view_decode(w->view, output);
}

static int is_expected(const network_worker *w)
{
    return memcmp(w->output, w->expected, w->pixels * sizeof(float)) == 0 &&
           memcmp(w->pooled, w->expected_pooled, w->pooled_count * sizeof(float)) == 0;
}

static void *drive_worker(void *data)
{
    network_worker *w = data;

    for (int round = 0; round < ROUNDS && w->status == RESMAP_OK; round++) {
        w->status = run_worker(w, w->output, w->pooled);
        if (w->status == RESMAP_OK && !is_expected(w)) w->wrong++;
    }
    return NULL;
}

static void *decode_kept(void *data)
{
    network_worker *w = data;

    for (size_t i = 0; i < w->pixels; i++) w->output[i] = NAN;
    w->status = rsm_view_load(w->view, &w->kept);
    if (w->status == RESMAP_OK) w->status = rsm_view_decode(w->view, w->output);
    if (w->status == RESMAP_OK && !is_expected(w)) w->wrong++;
    return NULL;
}

/* All at once, each in a thread of its own. */
static void all_workers(network_worker *workers, void *(*drive)(void *), const char *what)
{
    pthread_t threads[WORKERS];

    for (int i = 0; i < WORKERS; i++)
        ck_assert_int_eq(pthread_create(&threads[i], NULL, drive, &workers[i]), 0);
    for (int i = 0; i < WORKERS; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < WORKERS; i++) {
        ck_assert_msg(workers[i].status == RESMAP_OK, "%s: worker %d: %s", what, i,
                      rsm_device_env(rsm_network_device(workers[i].net))->error);
        ck_assert_msg(workers[i].wrong == 0, "%s: worker %d: other bits than alone", what, i);
    }
}

/* Further workers have the device's weights, and buffers and a prompt of their own: side by side they give
 * the bits that each gives alone, and that the first one gives. An encoding goes from one to another. Memory
 * is counted and limited for all of them together. */
static void check_workers(rsm_device *device, resmap_model *model, rsm_storage storage)
{
    tensors *io = tensors_open("resmap_withbias.io");
    const tensor *input = tensors_get(io, "input"), *prompts = tensors_get(io, "prompt");
    size_t h = input->shape[0], w = input->shape[1];
    network_worker workers[WORKERS];
    uint64_t weights, alone, before, limit = rsm_device_limit(device);
    rsm_view *none = NULL;

    memset(workers, 0, sizeof workers);
    OK(rsm_network_create(device, model, storage, &workers[0].net));
    weights = rsm_device_bytes(device);
    OK(rsm_view_create(workers[0].net, h, w, 1, &workers[0].view));
    alone = rsm_device_bytes(device) - weights;
    for (int i = 0; i < WORKERS; i++) {
        network_worker *k = &workers[i];
        before = rsm_device_bytes(device);
        if (i > 0) {
            OK(rsm_device_share(device, &k->device));
            OK(rsm_network_share(workers[i - 1].net, k->device, &k->net));
            ck_assert_ptr_eq(rsm_network_owner(k->net), workers[0].net);
            ck_assert_uint_lt(rsm_device_bytes(device) - before, weights / 2);
            before = rsm_device_bytes(device);
            OK(rsm_view_share(workers[0].view, k->net, &k->view));
            ck_assert_uint_eq(rsm_device_bytes(device) - before, alone);
            ck_assert_uint_eq(rsm_device_bytes(k->device), rsm_device_bytes(device));
            ck_assert_uint_eq(rsm_view_band_rows(k->view), rsm_view_band_rows(workers[0].view));
        }
        k->pixels = h * w;
        k->pooled_count = rsm_network_pooled_count(k->net);
        k->slice = floats(input->values, input->count);
        for (size_t p = 0; p < k->pixels; p++) k->slice[p] += 0.25f * (float)i * (float)(p % 3);
        k->prompt = floats(prompts->values + (size_t)i % prompts->shape[0] * prompts->shape[1],
                           prompts->shape[1]);
        k->output = malloc(k->pixels * sizeof(float));
        k->expected = malloc(k->pixels * sizeof(float));
        k->pooled = malloc(k->pooled_count * sizeof(float));
        k->expected_pooled = malloc(k->pooled_count * sizeof(float));
        OK(run_worker(k, k->expected, k->expected_pooled));
    }
    ck_assert_uint_le(rsm_device_bytes(device), rsm_device_bytes_peak(device));
    /* The first one's network, which has all to itself, on another's slice. */
    for (int i = 1; i < WORKERS; i++) {
        network_worker first = workers[0];
        first.slice = workers[i].slice;
        first.prompt = workers[i].prompt;
        first.expected = workers[i].expected;
        first.expected_pooled = workers[i].expected_pooled;
        OK(run_worker(&first, first.output, first.pooled));
        ck_assert_msg(is_expected(&first), "worker %d: other bits than the first one's", i);
    }
    all_workers(workers, drive_worker, "side by side");

    for (int on_host = 0; on_host < 2; on_host++) {
        for (int i = 0; i < WORKERS; i++) {
            rsm_view *neighbour = workers[(i + 1) % WORKERS].view;
            OK(rsm_view_encode(neighbour, workers[i].slice, 1, workers[i].pooled));
            OK(rsm_view_save(neighbour, on_host, &workers[i].kept));
        }
        all_workers(workers, decode_kept, "from another's encoding");
        for (int i = 0; i < WORKERS; i++) rsm_encoding_clear(&workers[i].kept);
    }

    /* No room for another: not even with smaller bands, which would give other bits. */
    before = rsm_device_bytes(device);
    rsm_device_set_limit(device, before + alone - 1);
    ck_assert_int_eq(rsm_view_share(workers[0].view, workers[1].net, &none), RESMAP_NO_DEVICE_MEMORY);
    ck_assert_ptr_null(none);
    ck_assert_uint_eq(rsm_device_bytes(device), before);
    rsm_device_set_limit(device, before + alone);
    OK(rsm_view_share(workers[0].view, workers[1].net, &none));
    rsm_view_free(none);
    rsm_device_set_limit(device, limit);

    for (int i = WORKERS; i-- > 0;) {
        network_worker *k = &workers[i];
        rsm_view_free(k->view);
        rsm_network_free(k->net);
        rsm_device_close(k->device);
        free(k->slice);
        free(k->prompt);
        free(k->output);
        free(k->pooled);
        free(k->expected);
        free(k->expected_pooled);
    }
    ck_assert_uint_eq(rsm_device_bytes(device), 0);
    tensors_close(io);
}

START_TEST(workers)
{
    resmap_model *model = open_model("resmap_withbias");

    for (int d = 1; d < all_devices(); d++)
        for (int fp16 = 0; fp16 < 2; fp16++)
            check_workers(devices[d].device, model, fp16 ? RSM_FP16 : RSM_FP32);
    rsm_model_free(model);
}
END_TEST

/* ---- The cascade -------------------------------------------------------------------------------------------- */

static void run_cascade(rsm_network *net, const tensor *input, const resmap_options *options, struct resmap_image **output,
                        resmap_report **report)
{
    /* [slices,] H, W row-major is W fastest: axes W, H, slices. */
    size_t dims = input->dims, shape[4] = {input->shape[dims - 1], input->shape[dims - 2], dims > 2 ? input->shape[0] : 1, 1};
    float *data = floats(input->values, input->count);
    struct resmap_image *image;

    OK(rsm_image_create(&env, data, shape, NULL, &image));
    OK(rsm_image_like(&env, image, output));
    *report = calloc(1, sizeof **report);
    OK(rsm_cascade_run(&env, &net, 1, image, NULL, options, 0, *output, *report));
    resmap_image_free(image);
    free(data);
}

/* The file's configuration has a field for the volume, heard and looked for again. Heard about make_network.py's spread, by which
 * decisions change. */
static resmap_model *open_cascade(size_t order, size_t passes, int heard)
{
    resmap_model *model = open_model("cascade");

    ck_assert_uint_eq(model->config.field_order, 3);
    ck_assert_double_eq(model->config.evidence_weight, 3);
    ck_assert_double_eq(model->config.evidence_spread, 0.05);
    model->config.field_order = order;
    model->config.field_passes = passes;
    model->config.evidence_spread = 0.6;
    if (!heard) model->config.evidence_weight = 0;
    return model;
}

START_TEST(cascades)
{
    static const struct { const char *name; int steps, by_slice, scale; const char *order; } runs[] = {
        {"slice", 3, 1, 0, NULL}, {"volume", 3, 0, 0, NULL}, {"forced", -1, 0, 0, "bias,noise"},
        {"scaled_volume", 2, 0, 1, NULL}, {"scaled_slice", 3, 1, 1, NULL},
        {"fitted_forced", -1, 0, 0, "bias,noise"}, {"fitted_slice", 3, 1, 1, NULL},
        {"again_forced", -1, 0, 0, "bias,noise"}, {"again_slice", 3, 1, 1, NULL},
        {"heard_volume", 2, 0, 1, NULL}, {"heard_slice", 4, 1, 1, NULL}};
    const int again = strncmp(runs[_i].name, "again_", 6) == 0, heard = strncmp(runs[_i].name, "heard_", 6) == 0;
    const int fitted = again || heard || strncmp(runs[_i].name, "fitted_", 7) == 0;
    resmap_model *model = open_cascade(fitted ? 3 : 0, again ? 3 : 1, heard);
    tensors *io = tensors_open("cascade.io");
    double magnified = 1, error;

    for (int d = 0; d < all_devices(); d++) {
        const char *name = runs[_i].name;
        const tensor *input = tensors_get(io, "%s.input", name), *expected = tensors_get(io, "%s.output", name);
        const tensor *decisions = tensors_get(io, "%s.decisions", name), *passes = tensors_get(io, "%s.passes", name);
        size_t slices = input->shape[0];
        struct resmap_image *output;
        resmap_report *report;
        resmap_options options;
        rsm_network *net;
        resmap_options_init(&options);
        options.steps = runs[_i].steps;
        options.decide_by_slice = runs[_i].by_slice;
        options.no_scale = !runs[_i].scale;
        options.order = runs[_i].order;
        OK(rsm_network_create(devices[d].device, model, RSM_FP32, &net));
        run_cascade(net, input, &options, &output, &report);
        /* Volumes are float32 between the steps where PyTorch's stayed in float64, and random weights magnify that from step
         * to step. How much shows on the reference, whose only error it is; a device may add its single pass's bound, as
         * much magnified. */
        error = relative_error(output->data, expected->values, expected->count);
        if (d == 0) {
            ck_assert_msg(error <= 1e-4, "cascade %s on the reference: error %.3g", name, error);
            magnified = fmax(1, error / FLOAT_ROUNDING);
        } else {
            ck_assert_msg(error <= magnified * bound(d), "cascade %s on device %s: error %.3g", name, devices[d].specification,
                          error);
        }
        for (size_t s = 0; s < slices; s++) {
            const resmap_slice_report *slice = &report->volumes[0].slices[s];
            int restored = 0;
            for (size_t step = 0; step < decisions->shape[0]; step++) {
                int class_index = (int)decisions->values[step * slices + s];
                if (class_index < 0 || class_index == model->config.clean) continue;
                ck_assert_int_lt(restored, slice->step_count);
                ck_assert_int_eq(slice->steps[restored++], class_index);
            }
            ck_assert_int_eq(restored, slice->step_count);
        }
        ck_assert_int_eq(report->volumes[0].step_count, (int)decisions->shape[0]);
        for (int step = 0; step < report->volumes[0].step_count; step++)
            ck_assert_int_eq(report->volumes[0].steps[step].passes, (int)passes->values[step]);
        ck_assert_str_eq(report->plane, "axial");
        resmap_report_free(report);
        resmap_image_free(output);
        rsm_network_free(net);
        ck_assert_uint_eq(rsm_device_bytes(devices[d].device), 0);
    }
    tensors_close(io);
    rsm_model_free(model);
}
END_TEST

/* What classifying alone says of each slice; the field heard or not, whatever the prompts of steps. */
START_TEST(classified)
{
    const char *name = _i == 0 ? "scaled_volume" : "heard_volume";
    resmap_model *model = open_cascade(3, 1, _i == 1);
    tensors *io = tensors_open("cascade.io");
    const tensor *input = tensors_get(io, "%s.input", name), *expected = tensors_get(io, "%s.probabilities", name);

    for (int d = 0; d < all_devices(); d++) {
        size_t shape[4] = {input->shape[2], input->shape[1], input->shape[0], 1}, classes = expected->shape[2];
        float *data = floats(input->values, input->count);
        struct resmap_image *image;
        resmap_report *report = calloc(1, sizeof *report);
        resmap_options options;
        rsm_network *net;
        resmap_options_init(&options);
        options.prompt_sample = 1;
        OK(rsm_image_create(&env, data, shape, NULL, &image));
        OK(rsm_network_create(devices[d].device, model, RSM_FP32, &net));
        OK(rsm_cascade_run(&env, &net, 1, image, NULL, &options, 1, NULL, report));
        for (size_t s = 0; s < input->shape[0]; s++)
            for (size_t k = 0; k < classes; k++)
                ck_assert_double_eq_tol(report->volumes[0].slices[s].probabilities[k], expected->values[s * classes + k], 1e-4);
        rsm_network_free(net);
        resmap_report_free(report);
        resmap_image_free(image);
        free(data);
    }
    tensors_close(io);
    rsm_model_free(model);
}
END_TEST

/* One forced step of each class: full resolution, and the field of the shrunken slice. */
START_TEST(single_steps)
{
    resmap_model *model = open_model("resmap_views");
    tensors *io = tensors_open("resmap_views.io");

    for (int d = 0; d < all_devices(); d++) {
        rsm_network *net;
        OK(rsm_network_create(devices[d].device, model, RSM_FP32, &net));
        for (size_t k = 0; k < 3; k++) {
            const tensor *input = tensors_get(io, "input%s", suffixes[k]), *expected = tensors_get(io, "output%s", suffixes[k]);
            for (int c = 0; c < 3; c++) {
                struct resmap_image *output;
                resmap_report *report;
                resmap_options options;
                resmap_options_init(&options);
                options.no_scale = 1;
                options.order = model->config.classes[c];
                run_cascade(net, input, &options, &output, &report);
                CHECK_CLOSE(d, output->data, expected->values + (size_t)c * input->count, input->count, "step %s of input%s",
                            options.order, suffixes[k]);
                ck_assert_str_eq(report->volumes[0].stopped, "forced");
                resmap_report_free(report);
                resmap_image_free(output);
            }
        }
        rsm_network_free(net);
    }
    tensors_close(io);
    rsm_model_free(model);
}
END_TEST

/* A slice's own field is what the ratio says, however large; only a volume's is limited. */
START_TEST(own_fields)
{
    enum { SMALL = 8 * 7, WHOLE = 16 * 14 };
    static const float times[] = {20, -3, 0.01f, 1};
    float before[SMALL], after[SMALL], slice[WHOLE];

    for (size_t k = 0; k < sizeof times / sizeof times[0]; k++) {
        const double threshold = times[k] == 1 ? 5 : 1;      /* at last no pixel is foreground: whatever came out, it stays */
        for (size_t i = 0; i < SMALL; i++) {
            before[i] = 2;
            after[i] = times[k] == 1 ? 100 : 2 * times[k];
        }
        for (size_t i = 0; i < WHOLE; i++) slice[i] = 0.5f;
        OK(rsm_apply_field(&env, slice, 16, 14, before, after, 8, 7, threshold));
        for (size_t i = 0; i < WHOLE; i++) ck_assert_float_eq_tol(slice[i], 0.5f * times[k], 1e-6f);
    }
}
END_TEST

/* What overflowed must not pass for a field, fitted (and so clamped) or not. */
START_TEST(field_not_finite)
{
    resmap_model *model = open_cascade(_i == 0 ? 0 : 3, 1, 0);

    for (int d = 1; d < all_devices(); d++) {
        size_t shape[4] = {26, 24, 2, 1};
        float *data = malloc(26 * 24 * 2 * sizeof *data);
        struct resmap_image *image, *output;
        resmap_report *report = calloc(1, sizeof *report);
        resmap_options options;
        rsm_network *net;
        for (size_t i = 0; i < 26 * 24 * 2; i++) data[i] = i % 26 < 6 ? 0 : 3e38f;
        resmap_options_init(&options);
        options.no_scale = 1;
        options.order = "bias";
        OK(rsm_image_create(&env, data, shape, NULL, &image));
        OK(rsm_image_like(&env, image, &output));
        OK(rsm_network_create(devices[d].device, model, RSM_FP32, &net));
        ck_assert_int_eq(rsm_cascade_run(&env, &net, 1, image, NULL, &options, 0, output, report),
                         RESMAP_DEVICE_FAILED);
        ck_assert_ptr_nonnull(strstr(env.error, "not finite"));
        rsm_network_free(net);
        resmap_report_free(report);
        resmap_image_free(output);
        resmap_image_free(image);
        free(data);
    }
    rsm_model_free(model);
}
END_TEST

/* The weights that are installed compute what PyTorch computes with them. */
START_TEST(shipped_weights)
{
    resmap_model *model = open_model("/resmap-s");
    tensors *io = tensors_open("shipped.io");
    const tensor *input = tensors_get(io, "input");
    const tensor *probabilities = tensors_get(io, "heard");

    for (int d = 0; d < all_devices(); d++) {
        rsm_network *net;
        struct resmap_image *output;
        resmap_report *report;
        resmap_options options;
        resmap_options_init(&options);
        options.no_scale = 1;
        OK(rsm_network_create(devices[d].device, model, RSM_FP32, &net));
        check_network(d, net, io, "", "shipped");
        options.order = "bias";
        for (int shaded = 0; shaded < 2; shaded++) {
            const char *name = shaded ? "_shaded" : "";
            const tensor *field = tensors_get(io, "output_bias%s", name), *passes = tensors_get(io, "passes%s", name);
            run_cascade(net, shaded ? tensors_get(io, "shaded") : input, &options, &output, &report);
            CHECK_CLOSE(d, output->data, field->values, field->count, "shipped, bias step%s", name);
            ck_assert_int_eq(report->volumes[0].steps[0].passes, (int)passes->values[0]);
            resmap_report_free(report);
            resmap_image_free(output);
        }
        options.order = NULL;
        options.steps = 1;
        run_cascade(net, input, &options, &output, &report);
        for (size_t c = 0; c < probabilities->count; c++)
            ck_assert_double_eq_tol(report->volumes[0].steps[0].probabilities[c], probabilities->values[c], 1e-4);
        resmap_report_free(report);
        resmap_image_free(output);
        rsm_network_free(net);
    }
    tensors_close(io);
    rsm_model_free(model);
}
END_TEST

START_TEST(self_check)
{
    resmap_model *model = open_model("resmap_biasfree");

    for (int d = 0; d < all_devices(); d++) {
        rsm_network *net;
        double error = -1;
        OK(rsm_network_create(devices[d].device, model, RSM_FP32, &net));
        OK(rsm_self_check(net, &error));
        ck_assert_msg(error >= 0 && error <= bound(d), "self-check error %g", error);
        rsm_network_free(net);
        if (d == 0) continue;
        OK(rsm_network_create(devices[d].device, model, RSM_FP16, &net));
        OK(rsm_self_check(net, &error));
        ck_assert_msg(error > 0 && error <= RSM_SELF_CHECK_BOUND_FP16, "self-check error %g of fp16", error);
        rsm_network_free(net);
    }
    rsm_model_free(model);
}
END_TEST

/* With CLBlast's products, the large one of the check among them, on every device. */
START_TEST(self_check_of_clblast)
{
    resmap_model *model = open_model("resmap_biasfree");

    setenv("RESMAP_GEMM", "clblast", 1);
    for (int d = 1; d < all_devices(); d++) {
        rsm_device *device;
        rsm_network *net;
        double error = -1;
        OK(rsm_device_open(&env, devices[d].specification, &device));
        ck_assert(rsm_gemm_takes_clblast(device));
        OK(rsm_network_create(device, model, RSM_FP32, &net));
        OK(rsm_self_check(net, &error));
        ck_assert_msg(error >= 0 && error <= bound(d), "self-check error %g", error);
        rsm_network_free(net);
        rsm_device_close(device);
    }
    unsetenv("RESMAP_GEMM");
    rsm_model_free(model);
}
END_TEST

/* A slice that no buffer can hold is refused at once, not after minutes of looking for bands. */
START_TEST(endless_slice)
{
    resmap_model *model = open_model("resmap_biasfree");
    rsm_network *net;
    rsm_plan *plan = NULL;
    double started = rsm_seconds();

    all_devices();
    OK(rsm_network_create(devices[0].device, model, RSM_FP32, &net));
    ck_assert_int_eq(rsm_plan_create(net, (size_t)1 << 40, 8, 1, &plan), RESMAP_NO_DEVICE_MEMORY);
    ck_assert_ptr_null(plan);
    ck_assert_double_lt(rsm_seconds() - started, 5);
    rsm_network_free(net);
    rsm_model_free(model);
}
END_TEST

/* The network's outputs for every prompt of the vectors (one without prompts), and the bytes of device memory it took. */
static float *all_outputs(rsm_device *device, const resmap_model *model, rsm_storage storage, tensors *io, size_t *count,
                          uint64_t *bytes)
{
    const tensor *input = tensors_get(io, "input"), *prompts = NULL;
    size_t h = input->shape[0], w = input->shape[1], runs = 1;
    float *slice = floats(input->values, input->count), *outputs;
    rsm_network *net;
    rsm_view *view;

    if (model->config.arch == RSM_ARCH_RESMAP) {
        prompts = tensors_get(io, "prompt");
        runs = prompts->shape[0];
    }
    *count = runs * h * w;
    outputs = malloc(*count * sizeof *outputs);
    OK(rsm_network_create(device, model, storage, &net));
    ck_assert_str_eq(rsm_network_precision(net), storage == RSM_FP16 ? "fp16" : "fp32");
    OK(rsm_view_create(net, h, w, 1, &view));
    *bytes = rsm_device_bytes(device);
    for (size_t i = 0; i < runs; i++) {
        if (prompts != NULL) {
            float *prompt = floats(prompts->values + i * prompts->shape[1], prompts->shape[1]);
            OK(rsm_network_set_prompt(net, prompt));
            free(prompt);
        }
        OK(rsm_view_encode(view, slice, 1, NULL));
        OK(rsm_view_decode(view, outputs + i * h * w));
    }
    rsm_view_free(view);
    rsm_network_free(net);
    free(slice);
    return outputs;
}

/* fp16 storage gives another result than fp32 but near it (the contract's PSNR, here of the largest value), in less memory,
 * and the same every time. Some of the random networks magnify every rounding, so far that the self-check refuses them. */
START_TEST(fp16)
{
    static const struct { const char *name, *io; int accepted; } cases[] = {
        {"restormer_biasfree", "restormer_biasfree.io", 0}, {"restormer_withbias", "restormer_withbias.io", 0},
        {"restormer_rgb", "restormer_rgb.io", 0}, {"resmap_biasfree", "resmap_biasfree.io", 1},
        {"resmap_withbias", "resmap_withbias.io", 1}, {"resmap_views", "resmap_views.io", 0}, {"/resmap-s", "shipped.io", 1}};
    const char *name = cases[_i].name;
    resmap_model *model = open_model(name);
    tensors *io = tensors_open(cases[_i].io);

    all_devices();
    for (int d = 1; d < device_count; d++) {
        size_t count;
        uint64_t bytes32, bytes16;
        double squares = 0, range = 0, psnr, error;
        rsm_network *net;
        float *single = all_outputs(devices[d].device, model, RSM_FP32, io, &count, &bytes32);
        float *half = all_outputs(devices[d].device, model, RSM_FP16, io, &count, &bytes16);
        float *again = all_outputs(devices[d].device, model, RSM_FP16, io, &count, &bytes16);
        resmap_status checked;
        OK(rsm_network_create(devices[d].device, model, RSM_FP16, &net));
        checked = rsm_self_check(net, &error);
        rsm_network_free(net);
        for (size_t i = 0; i < count; i++) {
            squares += pow((double)half[i] - (double)single[i], 2);
            range = fmax(range, fabs((double)single[i]));
        }
        psnr = 10 * log10(range * range * (double)count / squares);
        if (checked != RESMAP_OK) ck_assert_int_eq(checked, RESMAP_SELF_CHECK_FAILED);
        ck_assert_msg(checked == RESMAP_OK || !cases[_i].accepted, "%s", env.error);
        ck_assert_msg(isfinite(psnr) && (psnr >= 60 || checked != RESMAP_OK), "%s on device %s: PSNR of fp16 %.2f", name,
                      devices[d].specification, psnr);
        ck_assert_mem_eq(half, again, count * sizeof *half);
        ck_assert_msg(bytes16 < bytes32, "fp16 takes %llu bytes, fp32 %llu", (unsigned long long)bytes16,
                      (unsigned long long)bytes32);
        free(single);
        free(half);
        free(again);
    }
    tensors_close(io);
    rsm_model_free(model);
}
END_TEST

/* Weights that fp16 cannot hold are said so before anything is computed. */
START_TEST(fp16_weights)
{
    static const float large[] = {65504, -65505, NAN};
    resmap_model *model = open_model("restormer_withbias");
    const rsm_tensor *changed = rsm_safetensors_find(&model->file, "latent.0.ffn.project_out.weight");

    ck_assert_int_eq(changed->dtype, RSM_F32);
    all_devices();
    for (int d = 1; d < device_count; d++)
        for (size_t i = 0; i < sizeof large / sizeof *large; i++) {
            rsm_network *net = NULL;
            memcpy((unsigned char *)changed->data + 8, &large[i], sizeof large[i]);
            if (i == 0) {
                OK(rsm_network_create(devices[d].device, model, RSM_FP16, &net));
                rsm_network_free(net);
            } else {
                ck_assert_int_eq(rsm_network_create(devices[d].device, model, RSM_FP16, &net), RESMAP_BAD_FILE);
                ck_assert_ptr_nonnull(strstr(env.error, "latent.0.ffn.project_out.weight"));
            }
            ck_assert_uint_eq(rsm_device_bytes(devices[d].device), 0);
        }
    rsm_model_free(model);
}
END_TEST

/* Every size from 1 x 1 up that makes bands and levels odd runs and stays finite, and equals the reference. */
START_TEST(small_slices)
{
    static const size_t sizes[][2] = {{1, 1}, {1, 9}, {9, 1}, {8, 8}, {17, 3}, {2, 33}};
    resmap_model *model = open_model("restormer_withbias");

    all_devices();
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++) {
        size_t h = sizes[k][0], w = sizes[k][1];
        float *slice = malloc(h * w * sizeof *slice), *output = malloc(h * w * sizeof *output);
        double *expected = malloc(h * w * sizeof *expected);
        for (size_t i = 0; i < h * w; i++) slice[i] = (float)sin(1.7 * (double)i) * 0.5f + 0.5f;
        for (int d = 0; d < device_count; d++) {
            rsm_network *net;
            rsm_view *view;
            OK(rsm_network_create(devices[d].device, model, RSM_FP32, &net));
            OK(rsm_view_create(net, h, w, 1, &view));
            OK(rsm_view_encode(view, slice, 1, NULL));
            OK(rsm_view_decode(view, output));
            if (d == 0)
                for (size_t i = 0; i < h * w; i++) expected[i] = (double)output[i];
            CHECK_CLOSE(d, output, expected, h * w, "%zux%zu", h, w);
            rsm_view_free(view);
            rsm_network_free(net);
        }
        free(slice);
        free(output);
        free(expected);
    }
    rsm_model_free(model);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("network");
    TCase *tests = tcase_create("vectors");
    int failed;

    tcase_set_timeout(tests, 0);
    tcase_add_test(tests, layer_norms);
    tcase_add_test(tests, attention);
    tcase_add_test(tests, feed_forward);
    tcase_add_test(tests, convolutions);
    tcase_add_loop_test(tests, networks, 0, 6);
    tcase_add_test(tests, memory_limits);
    tcase_add_test(tests, slices_together);
    tcase_add_test(tests, encodings);
    tcase_add_test(tests, workers);
    tcase_add_loop_test(tests, cascades, 0, 11);
    tcase_add_loop_test(tests, classified, 0, 2);
    tcase_add_test(tests, own_fields);
    tcase_add_loop_test(tests, field_not_finite, 0, 2);
    tcase_add_test(tests, single_steps);
    tcase_add_test(tests, shipped_weights);
    tcase_add_test(tests, self_check);
    tcase_add_test(tests, self_check_of_clblast);
    tcase_add_test(tests, endless_slice);
    tcase_add_loop_test(tests, fp16, 0, 7);
    tcase_add_test(tests, fp16_weights);
    tcase_add_test(tests, small_slices);
    suite_add_tcase(suite, tests);
    failed = run_suite(suite);
    test_devices_close();
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
