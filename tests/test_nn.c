/* Every operation of nn/ on every device, with every width of vector, against the float64 reference: odd
 * shapes, offsets, padded planes, NaN around all that is read, guards around all that is written.
 * RESMAP_TEST_SMALL=1: only small shapes, for Oclgrind (whose --uninitialized goes wrong with vectors:
 * RESMAP_VECTOR=1 keeps to scalars). */
#include <check.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "nn/nn.h"
#include "tests/run.h"
#include "tests/storage.h"

static rsm_env env;
static size_t device_count;
static int small;

#define OK(call) ck_assert_msg((call) == RESMAP_OK, "%s", env.error)
#define COUNT(array) (sizeof (array) / sizeof (array)[0])

/* Numbers in [-1, 1) from a linear congruential generator, the same everywhere. */
static uint32_t state = 1;
static float number(void)
{
    state = state * 1664525u + 1013904223u;
    return (float)((double)(state >> 8) / 8388608.0 - 1.0);
}

/* ---- Maps that exist on both devices ---- */

enum { TESTED, REFERENCE };
static rsm_device *devices[2];

static const float guard = 12345.0f;

/* Where a map lies in its buffer. The buffer ends with the map's last element when trail is 0. */
typedef struct layout {
    size_t offset, pad, trail;
} layout;
static const layout layouts[] = {{0, 0, 0}, {3, 1, 2}, {64, 19, 0}};

typedef struct twin {
    rsm_buffer *buffer[2];
    size_t offset, plane, channels, count, size;
    rsm_storage storage;         /* on the device tested */
    float *values;               /* what was written into both */
} twin;

static twin make_as(rsm_storage storage, layout where, size_t channels, size_t count, float outside,
                    float (*inside)(void))
{
    twin t = {{NULL, NULL}, where.offset, count + where.pad, channels, count, 0, storage, NULL};
    t.size = t.offset + (channels - 1) * t.plane + count + where.trail;
    t.values = malloc(t.size * sizeof *t.values);
    ck_assert_ptr_nonnull(t.values);
    for (size_t i = 0; i < t.size; i++) t.values[i] = outside;
    for (size_t c = 0; c < channels; c++)
        for (size_t i = 0; i < count; i++) t.values[t.offset + c * t.plane + i] = inside ? inside() : NAN;
    t.buffer[TESTED] = storage_make(devices[TESTED], storage, t.values, t.size);
    t.buffer[REFERENCE] = storage_make(devices[REFERENCE], RSM_FP32, t.values, t.size);
    return t;
}

static twin make(layout where, size_t channels, size_t count, float outside, float (*inside)(void))
{
    return make_as(RSM_FP32, where, channels, count, outside, inside);
}

/* Inputs have NaN around them. */
static twin input_as(rsm_storage storage, layout where, size_t channels, size_t count)
{
    return make_as(storage, where, channels, count, NAN, number);
}

static twin input(layout where, size_t channels, size_t count)
{
    return input_as(RSM_FP32, where, channels, count);
}

/* Outputs hold NaN and have guards around them. */
static twin output_as(rsm_storage storage, layout where, size_t channels, size_t count)
{
    return make_as(storage, where, channels, count, guard, NULL);
}

static twin output(layout where, size_t channels, size_t count)
{
    return output_as(RSM_FP32, where, channels, count);
}

/* Writes the changed values of t, which fit its storage, again. */
static void update(twin *t)
{
    for (int d = 0; d < 2; d++) rsm_buffer_free(t->buffer[d]);
    t->buffer[TESTED] = storage_make(devices[TESTED], t->storage, t->values, t->size);
    t->buffer[REFERENCE] = storage_make(devices[REFERENCE], RSM_FP32, t->values, t->size);
}

static void drop(twin *t)
{
    for (int d = 0; d < 2; d++) rsm_buffer_free(t->buffer[d]);
    free(t->values);
}

static rsm_map map(const twin *t, int d)
{
    return (rsm_map){t->buffer[d], t->offset, t->plane, d == TESTED ? t->storage : RSM_FP32};
}

static rsm_vector vector(const twin *t, int d)
{
    return (rsm_vector){t->buffer[d], t->offset};
}

static float *contents(const twin *t, int d)
{
    float *values = malloc(t->size * sizeof *values);
    ck_assert_ptr_nonnull(values);
    storage_read(devices[d], t->buffer[d], d == TESTED ? t->storage : RSM_FP32, values, t->size);
    return values;
}

/* max |a - b| / max |b| inside, where b may be rounded to the storage, and past its range is infinite; and nothing changed
 * outside. */
static void compare(const twin *t, double bound, const char *what)
{
    float *a = contents(t, TESTED), *b = contents(t, REFERENCE);
    double difference = 0, size = 0;
    for (size_t c = 0; c < t->channels; c++) {
        for (size_t i = 0; i < t->count; i++) {
            const size_t at = t->offset + c * t->plane + i;
            if (t->storage == RSM_FP16 && fabsf(b[at]) >= 65520) a[at] = isinf(a[at]) && (a[at] > 0) == (b[at] > 0) ? b[at] : NAN;
            ck_assert_msg(isfinite(a[at]) && isfinite(b[at]),
                          "%s: channel %zu, element %zu is %g, %g in the reference", what, c, i,
                          (double)a[at], (double)b[at]);
            difference = fmax(difference, fabs((double)a[at] - b[at]) - storage_rounding(t->storage, b[at]));
            size = fmax(size, fabs((double)b[at]));
            a[at] = b[at] = t->values[at];
        }
    }
    ck_assert_msg(difference <= bound * size, "%s: differs by %g of %g", what, difference, size);
    for (size_t i = 0; i < t->size; i++) {
        ck_assert_msg(memcmp(&a[i], &t->values[i], sizeof a[i]) == 0, "%s: element %zu, outside, became %g",
                      what, i, (double)a[i]);
    }
    free(a);
    free(b);
}

/* Calls f on both devices; expressions of `d`. */
#define BOTH(call)                      \
    for (int d = 0; d < 2; d++) OK(call)

/* Pairs of storage that two maps of an operation are tested in: all four with the device's own vectors, else both fp32
 * and both fp16. */
static size_t width_index;
static size_t pairs(void)
{
    return width_index == 0 ? 4 : 2;
}

static rsm_storage first_of(size_t pair)
{
    return pair == 1 || pair == 2 ? RSM_FP16 : RSM_FP32;
}

static rsm_storage second_of(size_t pair)
{
    return pair == 1 || pair == 3 ? RSM_FP16 : RSM_FP32;
}

static char text[200];
static const char *describe(const char *operation, size_t a, size_t b, size_t c, size_t layout_index)
{
    snprintf(text, sizeof text, "%s %zu, %zu, %zu, layout %zu, vector %s", operation, a, b, c, layout_index,
             getenv("RESMAP_VECTOR") ? getenv("RESMAP_VECTOR") : "of the device");
    return text;
}

/* ---- The operations ---- */

static void conv1x1(void)
{
    static const size_t shapes[][3] = {
        {1, 1, 1}, {5, 2, 17}, {2, 7, 35}, {48, 127, 91}, {127, 48, 64}, {300, 5, 50}}; /* in, out, count */
    for (size_t s = 0; s < (small ? 3 : COUNT(shapes)); s++) {
        for (size_t l = 0; l < COUNT(layouts); l++) {
            const size_t in = shapes[s][0], out = shapes[s][1], count = shapes[s][2];
            for (size_t variant = 0; variant < 2 * pairs(); variant++) {
                const int accumulate = variant % 2;
                const rsm_storage first = first_of(variant / 2), second = second_of(variant / 2);
                twin w = input(layouts[l], out, in), x = input_as(first, layouts[(l + 1) % 3], in, count);
                twin y = make_as(second, layouts[(l + 2) % 3], out, count, guard, accumulate ? number : NULL);
                BOTH(rsm_conv1x1(devices[d], vector(&w, d), w.plane, map(&x, d), map(&y, d), in, out, count,
                                 accumulate));
                compare(&y, 2e-6, describe("conv1x1", in, out, count, l));
                drop(&w);
                drop(&x);
                drop(&y);
            }
        }
    }
}

static float large_level(void)
{
    return 1000 + 1e-3f * number();
}

static float large(void)
{
    return 1e6f * number();
}

static float tiny(void)
{
    return 1e-6f * number();
}

static float constant(void)
{
    return -3.25f;
}

static float (*const kinds[])(void) = {number, large_level, large, tiny, constant};

static void layer_norm(void)
{
    static const size_t shapes[][2] = {{1, 1},    {5, 17},   {2, 35},
                                       {127, 91}, {48, 200}, {96, 64}}; /* channels, count */
    for (size_t s = 0; s < (small ? 3 : COUNT(shapes)); s++) {
        for (size_t k = 0; k < COUNT(kinds); k++) {
            for (int variant = 0; variant < 4; variant++) {
                const int with_bias = variant % 2;
                const rsm_storage storage = variant < 2 ? RSM_FP32 : RSM_FP16;
                const size_t channels = shapes[s][0], count = shapes[s][1], l = (s + k) % 3;
                twin w = input(layouts[l], 1, channels), b = input(layouts[l], 1, channels);
                twin x = make(layouts[l], channels, count, NAN, kinds[k]),
                     y = output_as(storage, layouts[(l + 1) % 3], channels, count);
                twin z = make(layouts[l], channels, count, guard, kinds[k]);
                const rsm_vector none = {NULL, 0};
                BOTH(rsm_layer_norm(devices[d], map(&x, d), vector(&w, d), with_bias ? vector(&b, d) : none,
                                    map(&y, d), channels, count));
                describe(with_bias ? "layer norm with bias" : "layer norm", channels, count, k, l);
                compare(&y, 2e-6, text);
                /* In place. */
                BOTH(rsm_layer_norm(devices[d], map(&z, d), vector(&w, d), with_bias ? vector(&b, d) : none,
                                    map(&z, d), channels, count));
                compare(&z, 2e-6, text);
                drop(&w);
                drop(&b);
                drop(&x);
                drop(&y);
                drop(&z);
            }
        }
    }
}

/* Where products cannot norm, and on the reference, by way of `normal`. */
static void norm_conv1x1(void)
{
    static const size_t shapes[][3] = {
        {1, 1, 1}, {5, 2, 17}, {2, 7, 35}, {96, 50, 91}, {127, 9, 200}, {513, 5, 49}}; /* in, out, count */
    for (size_t s = 0; s < (small ? 3 : COUNT(shapes)); s++) {
        for (size_t k = 0; k < COUNT(kinds); k++) {
            for (int with_bias = 0; with_bias < 2; with_bias++) {
                const size_t in = shapes[s][0], out = shapes[s][1], count = shapes[s][2], l = (s + k) % 3;
                const rsm_vector none = {NULL, 0};
                twin weight = input(layouts[l], 1, in), bias = input(layouts[(l + 1) % 3], 1, in);
                twin w = input((layout){layouts[l].offset, 0, layouts[l].trail}, out, in);
                twin x = make(layouts[(l + 1) % 3], in, count, NAN, kinds[k]);
                twin normal = output(layouts[l], in, count), y = output(layouts[(l + 2) % 3], out, count);
                BOTH(rsm_norm_conv1x1(devices[d], vector(&weight, d), with_bias ? vector(&bias, d) : none,
                                      vector(&w, d), map(&x, d), map(&normal, d), map(&y, d), in, out, count));
                /* Two operations, each within 2e-6. */
                compare(&y, 4e-6, describe(with_bias ? "norm with bias, conv1x1" : "norm, conv1x1", in, out, count, k));
                drop(&weight);
                drop(&bias);
                drop(&w);
                drop(&x);
                drop(&normal);
                drop(&y);
            }
        }
    }
}

/* rows, width */
static const size_t images[][2] = {{1, 1}, {1, 9},   {11, 1}, {7, 5},   {2, 2},
                                   {5, 8}, {13, 29}, {3, 33}, {18, 16}, {37, 24}};

static size_t image_count(void)
{
    return small ? 4 : COUNT(images);
}

static float huge(void)
{
    return 1e4f * number();
}

static float zero(void)
{
    return 0;
}

/* What depthwise convolutions are given: a slice, a band that goes on on either side, or on one, a few slices. */
static const struct {
    size_t slices;
    int above, below;
} forms[] = {{1, 0, 0}, {1, 1, 1}, {1, 1, 0}, {1, 0, 1}, {3, 0, 0}};

static size_t pixels_of(rsm_rows size)
{
    return size.slices * size.rows * size.width;
}

/* x of `channels` channels, with the rows that it goes on by. */
static twin with_neighbours(rsm_storage storage, layout where, size_t channels, rsm_rows size, float (*inside)(void))
{
    return make_as(storage, where, channels, pixels_of(size) + (size_t)(size.above + size.below) * size.width, NAN, inside);
}

static rsm_map after_row_above(const twin *x, int d, rsm_rows size)
{
    rsm_map m = map(x, d);
    if (size.above) m.offset += size.width;
    return m;
}

static void depthwise(void)
{
    for (size_t s = 0; s < image_count(); s++) {
        for (size_t l = 0; l < COUNT(layouts); l++) {
            for (size_t i = 0; i < COUNT(forms) * pairs(); i++) {
                const size_t channels = small ? 2 : 5, pair = i / COUNT(forms), form = i % COUNT(forms);
                const rsm_rows size = {forms[form].slices, images[s][0], images[s][1], forms[form].above, forms[form].below};
                twin w = input(layouts[(l + 1) % 3], 1, 9 * channels);
                twin x = with_neighbours(first_of(pair), layouts[l], channels, size, number);
                twin zeros = make_as(first_of(pair), layouts[(l + 2) % 3], 1, size.width, NAN, zero);
                twin y = output_as(second_of(pair), layouts[(l + 2) % 3], channels, pixels_of(size));
                BOTH(rsm_depthwise3x3(devices[d], after_row_above(&x, d, size), vector(&w, d), map(&y, d), map(&zeros, d), channels,
                                      size));
                compare(&y, 1e-6, describe("depthwise", form, size.rows, size.width, l));
                drop(&w);
                drop(&x);
                drop(&zeros);
                drop(&y);
            }
        }
    }
}

static void gate(void)
{
    for (size_t s = 0; s < image_count(); s++) {
        for (size_t l = 0; l < COUNT(layouts); l++) {
            for (size_t i = 0; i < COUNT(forms) * pairs(); i++) {
                const size_t hidden = small ? 1 : 3, pair = i / COUNT(forms), form = i % COUNT(forms);
                const rsm_rows size = {forms[form].slices, images[s][0], images[s][1], forms[form].above, forms[form].below};
                float (*const inside)(void) = l == 2 ? huge : number;
                twin w = input(layouts[(l + 1) % 3], 1, 18 * hidden);
                twin x = with_neighbours(first_of(pair), layouts[l], 2 * hidden, size, inside);
                twin zeros = make_as(first_of(pair), layouts[(l + 2) % 3], 1, size.width, NAN, zero);
                twin y = output_as(second_of(pair), layouts[(l + 2) % 3], hidden, pixels_of(size));
                BOTH(rsm_depthwise3x3_gate(devices[d], after_row_above(&x, d, size), vector(&w, d), map(&y, d), map(&zeros, d), hidden,
                                           size));
                compare(&y, 2e-6, describe("gate", form, size.rows, size.width, l));
                drop(&w);
                drop(&x);
                drop(&zeros);
                drop(&y);
            }
        }
    }
}

/* Slices at the same places: each gives what it gives alone, which the reference, too, must know. */
static void depthwise_slices(void)
{
    const size_t rows = 5, width = 7, channels = 2, slices = 3, count = rows * width;
    const layout none = {0, 0, 0};
    twin w = input(none, 1, 9 * channels), x = input(none, channels, slices * count), y = output(none, channels, slices * count);
    twin zeros = make(none, 1, width, NAN, zero), one = output(none, channels, count);
    for (int d = 0; d < 2; d++) {
        OK(rsm_depthwise3x3(devices[d], map(&x, d), vector(&w, d), map(&y, d), map(&zeros, d), channels,
                            (rsm_rows){slices, rows, width, 0, 0}));
        float *all = contents(&y, d);
        for (size_t s = 0; s < slices; s++) {
            rsm_map from = map(&x, d);
            from.offset += s * count;
            OK(rsm_depthwise3x3(devices[d], from, vector(&w, d), map(&one, d), map(&zeros, d), channels,
                                (rsm_rows){1, rows, width, 0, 0}));
            float *alone = contents(&one, d);
            for (size_t c = 0; c < channels; c++)
                ck_assert_mem_eq(all + c * slices * count + s * count, alone + c * count, count * sizeof *all);
            free(alone);
        }
        free(all);
    }
    drop(&w);
    drop(&x);
    drop(&y);
    drop(&zeros);
    drop(&one);
}

/* The gate as plain gelu, over a dense grid and far out. */
static void gelu_grid(void)
{
    const size_t width = small ? 96 : 4096, rows = small ? 2 : 40, count = rows * width;
    static const float far[] = {20, -20, 1e4f, -1e4f, 1e30f, -1e30f, 0, 1e-30f, -5.3740115f, 5.3740115f};
    const layout none = {0, 0, 0};
    twin w = make(none, 1, 18, NAN, tiny), x = make(none, 2, count, NAN, number), y = output(none, 1, count);
    twin zeros = make(none, 1, width, NAN, zero);
    for (size_t i = 0; i < 18; i++) w.values[i] = i % 9 == 4;
    for (size_t i = 0; i < count; i++) {
        x.values[i] = i < COUNT(far) ? far[i] : (float)(-8 + 16 * (double)i / (double)(count - 1));
        x.values[x.plane + i] = 1;
    }
    update(&w);
    update(&x);
    OK(rsm_depthwise3x3_gate(devices[TESTED], map(&x, TESTED), vector(&w, TESTED), map(&y, TESTED), map(&zeros, TESTED), 1,
                             (rsm_rows){1, rows, width, 0, 0}));
    float *values = contents(&y, TESTED);
    for (size_t i = 0; i < count; i++) {
        const double a = x.values[i], erf_a = erf(a / sqrt(2.0)), exact = 0.5 * a * (1 + erf_a);
        /* erf to 2e-7, and the rounding of the two products behind it. */
        const double bound = 0.5 * fabs(a) * 2e-7 + fabs(exact) * ldexp(1, -23);
        if (a < -6) ck_assert_msg(fabs(values[i]) <= 1e-6, "gelu(%g) is %g", a, (double)values[i]);
        ck_assert_msg(fabs(values[i] - exact) <= bound, "gelu(%.9g) is %.9g, not %.9g", a,
                      (double)values[i], exact);
    }
    free(values);
    drop(&w);
    drop(&x);
    drop(&y);
    drop(&zeros);
}

/* Bands of rows give what the whole map gives, bit for bit. */
static void bands(void)
{
    const size_t rows = small ? 5 : 23, width = small ? 6 : 29, channels = 4, count = rows * width;
    const layout none = {0, 0, 0};
    twin w = input(none, 1, 9 * channels), x = input(none, channels, count), zeros = make(none, 1, width, NAN, zero);
    for (int gated = 0; gated < 2; gated++) {
        const size_t c_out = gated ? channels / 2 : channels;
        resmap_status (*const run)(rsm_device *, rsm_map, rsm_vector, rsm_map, rsm_map, size_t, rsm_rows) =
            gated ? rsm_depthwise3x3_gate : rsm_depthwise3x3;
        twin whole = output(none, c_out, count), parts = output(none, c_out, count);
        const rsm_map from = map(&x, TESTED), part_to = map(&parts, TESTED), end = map(&zeros, TESTED);
        OK(run(devices[TESTED], from, vector(&w, TESTED), map(&whole, TESTED), end, c_out, (rsm_rows){1, rows, width, 0, 0}));
        for (size_t r = 0, n; r < rows; r += n) {
            n = r + 3 < rows ? 3 : rows - r;
            const rsm_map band = {from.buffer, from.offset + r * width, from.plane, RSM_FP32};
            const rsm_map target = {part_to.buffer, part_to.offset + r * width, part_to.plane, RSM_FP32};
            OK(run(devices[TESTED], band, vector(&w, TESTED), target, end, c_out, (rsm_rows){1, n, width, r > 0, r + n < rows}));
        }
        float *a = contents(&whole, TESTED), *b = contents(&parts, TESTED);
        ck_assert_msg(memcmp(a, b, whole.size * sizeof *a) == 0, "%s: bands differ from the whole",
                      gated ? "gate" : "depthwise");
        free(a);
        free(b);
        drop(&whole);
        drop(&parts);
    }
    drop(&w);
    drop(&x);
    drop(&zeros);
}

static void attention(void)
{
    static const size_t shapes[][4] = {
        /* channels, heads, count, slices */
        {1, 1, 1, 1},    {4, 2, 17, 3},    {6, 2, 35, 1},    {10, 2, 1023, 2},
        {9, 3, 1024, 1}, {48, 1, 1025, 2}, {20, 4, 3077, 1}, {96, 8, 2600, 1}, {16, 4, 1100, 3},
    };
    for (size_t s = 0; s < (small ? 3 : COUNT(shapes)); s++) {
        for (size_t l = 0; l < COUNT(layouts); l++) {
            const size_t channels = shapes[s][0], heads = shapes[s][1], count = shapes[s][2], slices = shapes[s][3],
                         c = channels / heads, all = slices * count;
            const rsm_storage storage = (s + l) % 2 ? RSM_FP16 : RSM_FP32;
            twin q = input_as(storage, layouts[l], channels, all),
                 k = input_as(storage, layouts[(l + 1) % 3], channels, all);
            /* A channel of q without signal, and one below the 1e-12 of the norm. */
            if (channels > 1) {
                for (size_t i = 0; i < all; i++) {
                    q.values[q.offset + i] = 0;
                    k.values[k.offset + k.plane + i] *= 1e-16f;
                }
                update(&q);
                update(&k);
            }
            twin sums = output(layouts[l], 1, slices * rsm_attention_sums_count(channels, heads));
            twin scratch = output(layouts[(l + 2) % 3], 1, slices * rsm_attention_scratch(channels, heads, count));
            twin temperature = input(layouts[l], 1, heads), w = input(layouts[l], 1, channels * channels);
            twin out = output(layouts[(l + 1) % 3], 1, slices * channels * channels),
                 rows = output(layouts[l], 1, slices * channels * c);
            BOTH(rsm_attention_sums(devices[d], map(&q, d), map(&k, d), channels, heads, slices, count,
                                    vector(&sums, d), vector(&scratch, d), 0));
            compare(&sums, 1e-6, describe("attention sums", channels, heads, count, l));
            BOTH(rsm_attention_matrix(devices[d], vector(&sums, d), vector(&temperature, d), vector(&w, d),
                                      vector(&out, d), vector(&rows, d), channels, heads, slices));
            compare(&out, 5e-6, describe("attention matrix", channels, heads, count, l));
            compare(&rows, 5e-6, describe("attention softmax", channels, heads, count, l));

            /* In two bands, added up. */
            const size_t band = slices == 1 ? count / 2 : 0;
            if (band > 0) {
                for (int d = 0; d < 2; d++) {
                    rsm_map a = map(&q, d), b = map(&k, d);
                    OK(rsm_attention_sums(devices[d], a, b, channels, heads, 1, band, vector(&sums, d),
                                          vector(&scratch, d), 0));
                    a.offset += band;
                    b.offset += band;
                    OK(rsm_attention_sums(devices[d], a, b, channels, heads, 1, count - band, vector(&sums, d),
                                          vector(&scratch, d), 1));
                }
                compare(&sums, 1e-6, describe("attention sums in bands", channels, heads, count, l));
                float *scratch_after = contents(&scratch, TESTED);
                for (size_t i = 0; i < scratch.offset; i++) ck_assert(scratch_after[i] == guard);
                for (size_t i = scratch.offset + scratch.count; i < scratch.size; i++)
                    ck_assert(scratch_after[i] == guard);
                free(scratch_after);
            }
            drop(&q);
            drop(&k);
            drop(&sums);
            drop(&scratch);
            drop(&temperature);
            drop(&w);
            drop(&out);
            drop(&rows);
        }
    }
}

/* By rule, by way of columns, and with other tiles than the rule's; all rows at once, or two bands, into one map. */
static void conv3x3(void)
{
    static const size_t channels[][2] = {{2, 4}, {3, 1}, {37, 9}, {1, 5}, {40, 12}};   /* in, out */
    static const rsm_variant columns = {"columns", 0, {0, 0, 0, 0}}, tiles = {"tiles", 0, {0, 0, 8, 3}},
                             low = {"low", 0, {0, 0, 4, 2}}, high = {"high", 0, {0, 0, 4, 6}};
    const rsm_variant *const variants[] = {NULL, &columns, &tiles, &low, &high};
    static const char *const names[] = {"conv3x3", "conv3x3 shuffled", "conv3x3 unshuffled"};
    const size_t count = width_index < 2 ? COUNT(variants) : 2;
    for (size_t s = 0; s < image_count(); s++) {
        for (size_t v = 0; v < count; v++) {
            for (rsm_order order = RSM_PLAIN; order <= RSM_UNSHUFFLE; order++) {
                const size_t l = (s + v) % COUNT(layouts);
                const size_t *of = channels[order == RSM_SHUFFLE ? (s + v) % 2 * 4 : (s + v) % COUNT(channels)];
                const size_t halved = order == RSM_UNSHUFFLE, in = of[0], out = of[1];
                const size_t height = images[s][0] + halved * (images[s][0] % 2), width = images[s][1] + halved * (images[s][1] % 2);
                const size_t y_channels = order == RSM_SHUFFLE ? out / 4 : halved ? 4 * out : out;
                twin w = input(layouts[(l + 1) % 3], 1, 9 * in * out), x = input(layouts[l], in, height * width);
                twin y = output(layouts[(l + 2) % 3], y_channels, out * height * width / y_channels);
                rsm_tuned_set(devices[TESTED], RSM_TUNE_CONV, variants[v]);
                rsm_tuned_set(devices[TESTED], RSM_TUNE_CONV_THIN, variants[v]);
                for (size_t first = 0, rows; first < height; first += rows) {
                    rows = l == 0 || height < 3 ? height : first == 0 ? 2 : height - 2;
                    const size_t need = rsm_conv3x3_scratch(devices[TESTED], in, out, rows * width, order);
                    const size_t own = rsm_conv3x3_scratch(devices[REFERENCE], in, out, rows * width, order);
                    twin scratch = output(layouts[l], 1, need > own ? need : own > 0 ? own : 1);
                    for (int d = 0; d < 2; d++) {
                        rsm_map band = map(&y, d);
                        band.offset += order == RSM_SHUFFLE ? 4 * first * width : halved ? first * width / 4 : first * width;
                        OK(rsm_conv3x3(devices[d], map(&x, d), vector(&w, d), band, order, vector(&scratch, d), in, out,
                                       height, width, first, rows));
                    }
                    drop(&scratch);
                }
                compare(&y, 2e-6, describe(names[order], height, width, in, out));
                drop(&y);
                drop(&w);
                drop(&x);
            }
        }
    }
}

static void pixel_shuffle(void)
{
    for (size_t s = 0; s < image_count(); s++) {
        for (size_t l = 0; l < COUNT(layouts); l++) {
            const size_t rows = images[s][0], width = images[s][1], channels = 2;
            twin x = input(layouts[l], 4 * channels, rows * width),
                 y = output(layouts[(l + 1) % 3], channels, 4 * rows * width);
            twin z = output(layouts[(l + 2) % 3], 4 * channels, rows * width);
            BOTH(rsm_pixel_shuffle(devices[d], map(&x, d), map(&y, d), channels, rows, width));
            compare(&y, 0, describe("pixel shuffle", channels, rows, width, l));
            BOTH(rsm_pixel_unshuffle(devices[d], map(&y, d), map(&z, d), channels, 2 * rows, 2 * width));
            compare(&z, 0, describe("pixel unshuffle", channels, rows, width, l));
            /* Back where it was, and in PyTorch's order. */
            float *fine = contents(&y, TESTED), *back = contents(&z, TESTED);
            for (size_t c = 0; c < 4 * channels; c++)
                for (size_t i = 0; i < rows * width; i++) {
                    const float value = x.values[x.offset + c * x.plane + i];
                    const size_t row = 2 * (i / width) + c / 2 % 2, column = 2 * (i % width) + c % 2;
                    ck_assert(back[z.offset + c * z.plane + i] == value);
                    ck_assert(fine[y.offset + c / 4 * y.plane + row * 2 * width + column] == value);
                }
            free(fine);
            free(back);
            drop(&x);
            drop(&y);
            drop(&z);
        }
    }
}

static void elementwise(void)
{
    static const size_t shapes[][2] = {
        {1, 1}, {3, 17}, {2, 35}, {5, 4097}, {127, 64}}; /* channels, count */
    for (size_t s = 0; s < (small ? 3 : COUNT(shapes)); s++) {
        for (size_t l = 0; l < COUNT(layouts); l++) {
            const size_t channels = shapes[s][0], count = shapes[s][1];
            twin x = input(layouts[l], channels, count), value = input(layouts[l], 1, channels);
            twin y = output(layouts[(l + 1) % 3], channels, count);
            twin sum = make(layouts[(l + 2) % 3], channels, count, guard, number),
                 mean = output(layouts[l], 1, channels);
            BOTH(rsm_fill_zero(devices[d], map(&y, d), channels, count));
            compare(&y, 0, describe("fill zero", channels, count, 0, l));
            float *zeros = contents(&y, TESTED);
            for (size_t c = 0; c < channels; c++)
                for (size_t i = 0; i < count; i++) ck_assert(zeros[y.offset + c * y.plane + i] == 0);
            free(zeros);
            BOTH(rsm_fill_channels(devices[d], vector(&value, d), map(&y, d), channels, count));
            compare(&y, 0, describe("fill channels", channels, count, 0, l));
            BOTH(rsm_copy(devices[d], map(&x, d), map(&y, d), channels, count));
            compare(&y, 0, describe("copy", channels, count, 0, l));
            const uint32_t before = state;
            for (size_t pair = 1; pair < 4; pair++) {
                twin from = input_as(first_of(pair), layouts[l], channels, count);
                twin to = output_as(second_of(pair), layouts[(l + 1) % 3], channels, count);
                BOTH(rsm_copy(devices[d], map(&from, d), map(&to, d), channels, count));
                compare(&to, 0, describe("copy to or from fp16", channels, count, pair, l));
                if (to.storage == RSM_FP16) {
                    BOTH(rsm_fill_zero(devices[d], map(&to, d), channels, count));
                    compare(&to, 0, describe("fill zero of fp16", channels, count, pair, l));
                }
                drop(&from);
                drop(&to);
            }
            state = before;
            BOTH(rsm_add(devices[d], map(&x, d), map(&sum, d), channels, count));
            compare(&sum, 1e-7, describe("add", channels, count, 0, l));
            BOTH(rsm_channel_mean(devices[d], map(&x, d), vector(&mean, d), channels, count));
            compare(&mean, count < 100 ? 1e-6 : 1e-5, describe("channel mean", channels, count, 0, l));
            BOTH(rsm_channel_rms(devices[d], map(&x, d), vector(&mean, d), channels, count));
            compare(&mean, 1e-6, describe("channel rms", channels, count, 0, l));
            drop(&x);
            drop(&value);
            drop(&y);
            drop(&sum);
            drop(&mean);
        }
    }
}

/* What fp16 makes of a value, to nearest, ties to even; infinite past 65504. Doubles round so when the digits that are
 * to go lie below their last. */
static float rounded(float value)
{
    const double a = fabs((double)value);
    if (isnan(value) || isinf(value)) return value;
    const int exponent = a < ldexp(1, -14) ? -14 : ilogb(a);
    const double last = ldexp(1, exponent - 10);
    const double steps = nearbyint(a / last);
    return (float)copysign(steps * last > 65504 ? INFINITY : steps * last, (double)value);
}

/* fp16 near its limits: the largest, the smallest, ties, infinities and NaN. */
static void limits(void)
{
    float values[4096] = {0,        -0.0f,     65504,    65519.99f, 65520,   -65520,  1e5f,     -1e30f,  INFINITY,
                          -INFINITY, 0x1p-14f, 0x1p-24f, 0x1p-25f,  0x1.8p-24f, 0x1.000002p-25f, -0x1p-25f, 1e-30f,
                          0x1.ffcp-15f, 0x1.ffep-15f, 2049, 2051, 0x1.002p0f, 0x1.006p0f};
    const size_t given = 23, count = COUNT(values);
    float stored[COUNT(values)];
    for (size_t i = given; i < count; i++) values[i] = ldexpf(number(), (int)(i % 48) - 28);
    memcpy(stored, values, sizeof values);
    rsm_buffer *half = storage_make(devices[TESTED], RSM_FP16, stored, count);
    rsm_buffer_free(half);
    for (size_t i = 0; i < count; i++) {
        const float expected = rounded(values[i]);
        ck_assert_msg(memcmp(&stored[i], &expected, sizeof expected) == 0, "%a (%zu) is stored as %a, not %a",
                      (double)values[i], i, (double)stored[i], (double)expected);
    }
    stored[0] = NAN;
    rsm_buffer_free(storage_make(devices[TESTED], RSM_FP16, stored, 1));
    ck_assert(isnan(stored[0]));

    /* Products whose sums pass the limit on their way, and come back. */
    const layout none = {0, 0, 0};
    const size_t in = 700, out = 3, pixels = 50;
    twin w = input(none, out, in), x = input_as(RSM_FP16, none, in, pixels), y = output_as(RSM_FP16, none, out, pixels);
    for (size_t c = 0; c < in; c++)
        for (size_t i = 0; i < pixels; i++) x.values[c * pixels + i] = c < in / 2 ? 60000 : -60000;
    for (size_t i = 0; i < out * in; i++) w.values[i] = 1;
    update(&w);
    update(&x);
    BOTH(rsm_conv1x1(devices[d], vector(&w, d), in, map(&x, d), map(&y, d), in, out, pixels, 0));
    compare(&y, 0, "sums past 65504");
    drop(&w);
    drop(&x);
    drop(&y);
}

/* Sums in parallel come out the same, bit for bit. */
static void the_same_every_time(void)
{
    const size_t channels = 24, heads = 2, count = small ? 40 : 5000;
    const layout none = {0, 0, 0};
    twin q = input(none, channels, count), k = input(none, channels, count), mean = output(none, 1, channels);
    twin sums = output(none, 1, rsm_attention_sums_count(channels, heads));
    twin scratch = output(none, 1, rsm_attention_scratch(channels, heads, count));
    float *first[2] = {NULL, NULL};
    for (int run = 0; run < 3; run++) {
        const int d = TESTED;
        OK(rsm_attention_sums(devices[d], map(&q, d), map(&k, d), channels, heads, 1, count, vector(&sums, d),
                              vector(&scratch, d), 0));
        OK(rsm_channel_mean(devices[d], map(&q, d), vector(&mean, d), channels, count));
        float *now[2] = {contents(&sums, d), contents(&mean, d)};
        for (int i = 0; i < 2; i++) {
            const twin *t = i == 0 ? &sums : &mean;
            if (run > 0) ck_assert_mem_eq(first[i], now[i], t->size * sizeof *now[i]);
            free(first[i]);
            first[i] = now[i];
        }
    }
    free(first[0]);
    free(first[1]);
    drop(&q);
    drop(&k);
    drop(&mean);
    drop(&sums);
    drop(&scratch);
}

static void refusals(void)
{
    const layout none = {0, 0, 0};
    twin x = input(none, 4, 36), y = output(none, 4, 36);
    for (int d = 0; d < 2; d++) {
        rsm_map late = map(&y, d), narrow = map(&y, d);
        late.offset = 1;
        narrow.plane = 35;
        ck_assert_int_eq(rsm_copy(devices[d], map(&x, d), late, 4, 36), RESMAP_INTERNAL);
        ck_assert_int_eq(rsm_add(devices[d], map(&x, d), narrow, 4, 36), RESMAP_INTERNAL);
        ck_assert_int_eq(rsm_fill_zero(devices[d], map(&y, d), 5, 36), RESMAP_INTERNAL);
        const rsm_map x_map = map(&x, d), y_map = map(&y, d);
        const rsm_vector w = vector(&x, d);
        rsm_map later = x_map, short_zeros = {x_map.buffer, 140, 6, RSM_FP32};
        later.offset = 6;
        /* A row below the last, one above the first, slices that go on, zeros that do not fill a row. */
        ck_assert_int_eq(rsm_depthwise3x3(devices[d], x_map, w, y_map, x_map, 4, (rsm_rows){1, 6, 6, 0, 1}), RESMAP_INTERNAL);
        ck_assert_int_eq(rsm_depthwise3x3(devices[d], x_map, w, y_map, x_map, 4, (rsm_rows){1, 5, 6, 1, 0}), RESMAP_INTERNAL);
        ck_assert_int_eq(rsm_depthwise3x3(devices[d], later, w, y_map, x_map, 4, (rsm_rows){2, 2, 6, 1, 0}), RESMAP_INTERNAL);
        ck_assert_int_eq(rsm_depthwise3x3(devices[d], x_map, w, y_map, short_zeros, 4, (rsm_rows){1, 6, 6, 0, 0}), RESMAP_INTERNAL);
        ck_assert_int_eq(rsm_pixel_unshuffle(devices[d], map(&x, d), map(&y, d), 1, 3, 12), RESMAP_INTERNAL);
        /* Rows below the last; channels that are not in fours, odd rows. */
        ck_assert_int_eq(rsm_conv3x3(devices[d], x_map, w, y_map, RSM_PLAIN, w, 1, 1, 6, 6, 5, 2), RESMAP_INTERNAL);
        ck_assert_int_eq(rsm_conv3x3(devices[d], x_map, w, y_map, RSM_SHUFFLE, w, 1, 2, 2, 2, 0, 2), RESMAP_INTERNAL);
        ck_assert_int_eq(rsm_conv3x3(devices[d], x_map, w, y_map, RSM_UNSHUFFLE, w, 1, 1, 6, 6, 0, 3), RESMAP_INTERNAL);
        ck_assert_int_eq(rsm_attention_sums(devices[d], map(&x, d), map(&x, d), 4, 3, 1, 36, vector(&y, d),
                                            vector(&y, d), 0),
                         RESMAP_INTERNAL);
        OK(rsm_fill_zero(devices[d], map(&y, d), 0, 36));
        OK(rsm_fill_zero(devices[d], map(&y, d), 4, 0));
    }
    /* fp16 where there is none, or where it was not asked for. */
    twin h = input_as(RSM_FP16, none, 4, 36);
    const rsm_map half = map(&h, TESTED);
    rsm_map wide = half, on_reference = map(&y, REFERENCE);
    wide.plane = 37;
    on_reference.storage = RSM_FP16;
    ck_assert_int_eq(rsm_fill_zero(devices[TESTED], wide, 4, 36), RESMAP_INTERNAL);
    ck_assert_int_eq(rsm_fill_zero(devices[REFERENCE], on_reference, 4, 36), RESMAP_INTERNAL);
    ck_assert_int_eq(rsm_add(devices[TESTED], half, map(&y, TESTED), 4, 36), RESMAP_INTERNAL);
    ck_assert_int_eq(rsm_pixel_shuffle(devices[TESTED], half, map(&y, TESTED), 1, 6, 6), RESMAP_INTERNAL);
    ck_assert_int_eq(rsm_attention_sums(devices[TESTED], half, map(&x, TESTED), 4, 2, 1, 36, vector(&y, TESTED),
                                        vector(&y, TESTED), 0),
                     RESMAP_INTERNAL);
    drop(&h);
    compare(&x, 0, "input of refused calls");
    float *after = contents(&y, TESTED);
    for (size_t i = 0; i < y.size; i++) ck_assert_msg(isnan(after[i]), "a refused call wrote");
    free(after);
    drop(&x);
    drop(&y);
}

/* ---- Running them ---- */

/* Widths of vector: the device's own, then others ("1": as on devices that are no CPUs). Only the first
 * when the caller has set one. */
static const char *widths[] = {NULL, "1", "4", "8", "16"};
static size_t width_count = COUNT(widths);

static void everywhere(void (*test)(void), int index)
{
    char specification[24];
    snprintf(specification, sizeof specification, "%d", index);
    for (size_t i = 0; i < width_count; i++) {
        width_index = i;
        if (widths[i]) setenv("RESMAP_VECTOR", widths[i], 1);
        OK(rsm_device_open(&env, specification, &devices[TESTED]));
        OK(rsm_device_open(&env, "reference", &devices[REFERENCE]));
        state = 1;
        test();
        rsm_device_close(devices[TESTED]);
        rsm_device_close(devices[REFERENCE]);
    }
    if (width_count > 1) unsetenv("RESMAP_VECTOR");
}

static const struct {
    const char *name;            /* for CK_RUN_CASE */
    void (*run)(void);
} tests[] = {
    {"conv1x1", conv1x1},
    {"layer_norm", layer_norm},
    {"depthwise", depthwise},
    {"depthwise of slices", depthwise_slices},
    {"norm_conv1x1", norm_conv1x1},
    {"gate", gate},
    {"gelu", gelu_grid},
    {"bands", bands},
    {"attention", attention},
    {"conv3x3", conv3x3},
    {"pixel_shuffle", pixel_shuffle},
    {"elementwise", elementwise},
    {"limits", limits},
    {"same", the_same_every_time},
    {"refusals", refusals},
};

/* One loop test an operation and device. */
START_TEST(operation)
{
    everywhere(tests[(size_t)_i / device_count].run, (int)((size_t)_i % device_count));
}
END_TEST

int main(void)
{
    small = getenv("RESMAP_TEST_SMALL") != NULL;
    widths[0] = getenv("RESMAP_VECTOR");
    if (widths[0] || small) width_count = widths[0] ? 1 : 2;
    rsm_device_list *list;
    if (rsm_device_list_create(&env, &list) != RESMAP_OK) {
        printf("%s\n", env.error);
        return 99;
    }
    const resmap_device *items = rsm_device_list_items(list, &device_count);
    if (device_count == 0) {
        printf("skipped: no OpenCL device\n");
        return 77;
    }
    for (size_t i = 0; i < device_count; i++) printf("# device %zu: %s\n", i, items[i].name);
    rsm_device_list_free(list);

    Suite *suite = suite_create("nn");
    for (size_t i = 0; i < COUNT(tests); i++) {
        TCase *tcase = tcase_create(tests[i].name);
        tcase_set_timeout(tcase, 0);
        tcase_add_loop_test(tcase, operation, (int)(i * device_count), (int)((i + 1) * device_count));
        suite_add_tcase(suite, tcase);
    }
    return run_suite(suite) == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
