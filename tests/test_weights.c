/* Weights files: the container, the configuration, the tensors, the prompts; and what is said of them. Files
 * are built here, tensor by tensor, from the very walk that checks them; the counts of the walk are held
 * against Restormer's. */
#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/philox.h"
#include "model/model.h"
#include "tests/run.h"
#include "tests/scratch.h"

static rsm_env env;
static char last_log[256];

static void keep_log(void *data, resmap_log_level level, const char *text)
{
    (void)data;
    (void)level;
    snprintf(last_log, sizeof last_log, "%s", text);
}

static void setup(void)
{
    memset(&env, 0, sizeof env);
    env.log = keep_log;
    last_log[0] = '\0';
}

/* ---- Building files ---- */

typedef struct bytes {
    unsigned char *at;
    size_t size;
} bytes;

/* 8 bytes of length, the header, the data. */
static bytes container(const char *header, const void *data, size_t data_size)
{
    size_t length = strlen(header);
    bytes b = {malloc(8 + length + data_size), 8 + length + data_size};

    ck_assert_ptr_nonnull(b.at);
    for (int i = 0; i < 8; i++) b.at[i] = (unsigned char)((uint64_t)length >> 8 * i);
    memcpy(b.at + 8, header, length);
    if (data_size) memcpy(b.at + 8 + length, data, data_size);
    return b;
}

static bytes copy_of(bytes b)
{
    bytes c = {malloc(b.size ? b.size : 1), b.size};

    ck_assert_ptr_nonnull(c.at);
    memcpy(c.at, b.at, b.size);
    return c;
}

typedef struct builder {
    json_t *header;
    unsigned char *data;
    size_t used, room;
} builder;

static void add(builder *b, const char *name, const char *dtype, size_t dims, const size_t *shape,
                const void *data)
{
    size_t count = 1, size = strcmp(dtype, "F32") == 0 || strcmp(dtype, "I32") == 0 ? 4 : 2;
    json_t *lengths = json_array();

    for (size_t i = 0; i < dims; i++) {
        count *= shape[i];
        json_array_append_new(lengths, json_integer((json_int_t)shape[i]));
    }
    while (b->used + count * size > b->room) {
        b->room = 2 * b->room + 4096;
        b->data = realloc(b->data, b->room);
        ck_assert_ptr_nonnull(b->data);
    }
    if (data)
        memcpy(b->data + b->used, data, count * size);
    else
        for (size_t i = 0; i < count * size; i++) b->data[b->used + i] = (unsigned char)((b->used + i) % 60);
    json_object_set_new(b->header, name,
                        json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype, "shape", lengths, "data_offsets",
                                  (json_int_t)b->used, (json_int_t)(b->used + count * size)));
    b->used += count * size;
}

/* What the walk is to leave out, or to give another shape (an added row). */
typedef struct spoiled {
    builder *b;
    const char *missing, *longer, *integer;
} spoiled;

static resmap_status add_visited(void *data, const char *name, size_t dims, const size_t shape[4])
{
    spoiled *s = data;
    size_t copy[4];

    memcpy(copy, shape, sizeof copy);
    if (s->missing && strcmp(name, s->missing) == 0) return RESMAP_OK;
    if (s->longer && strcmp(name, s->longer) == 0) copy[0]++;
    add(s->b, name, s->integer && strcmp(name, s->integer) == 0 ? "I32" : "F16", dims, copy, NULL);
    return RESMAP_OK;
}

static const char resmap_config[] =
    "{\"arch\": \"resmap\", \"dim\": 2, \"num_blocks\": [1, 1, 1, 1], \"num_refinement_blocks\": 1, "
    "\"heads\": [1, 2, 4, 8], \"ffn_expansion_factor\": 2.66, \"layer_norm\": \"BiasFree\", "
    "\"in_channels\": 1, "
    "\"out_channels\": 1, \"text_dim\": 3, \"classes\": [\"noise\", \"bias\", \"clean\"], "
    "\"class_pixels\": {\"bias\": 64}, \"training\": {\"hours\": 3, \"data\": \"none\"}}";

static const rsm_config tiny = {.arch = RSM_ARCH_RESMAP, .dim = 2, .num_blocks = {1, 1, 1, 1},
    .num_refinement_blocks = 1, .heads = {1, 2, 4, 8}, .ffn_expansion_factor = 2.66, .in_channels = 1,
    .out_channels = 1, .text_dim = 3, .class_count = 3, .clean = 2, .classifier_views = 1,
    .classifier_hidden = 5};

/* Rows 0, 2, 3 are noise, row 1 is bias. */
static const float prompt_features[12] = {1, 2, 3, -4, -5, -6, 7, 8, 9.5f, 1, -1, 0.25f};
static const int32_t prompt_classes[4] = {0, 1, 0, 0};

static builder begin(const char *config)
{
    builder b = {json_object(), NULL, 0, 0};

    json_object_set_new(b.header, "__metadata__",
                        json_pack("{s:s, s:s}", "resmap.config", config, "format", "pt"));
    return b;
}

static bytes finish(builder *b)
{
    char *text = json_dumps(b->header, JSON_COMPACT);
    bytes file = container(text, b->data, b->used);

    free(text);
    free(b->data);
    json_decref(b->header);
    return file;
}

static void add_prompts(builder *b)
{
    add(b, "prompts.features", "F32", 2, (const size_t[]){4, 3}, prompt_features);
    add(b, "prompts.class", "I32", 1, (const size_t[]){4}, prompt_classes);
}

static bytes model_file(const char *config, const spoiled *how)
{
    builder b = begin(config);
    spoiled s = how ? *how : (spoiled){0};

    s.b = &b;
    ck_assert_int_eq(rsm_model_visit(&tiny, add_visited, &s), RESMAP_OK);
    add_prompts(&b);
    return finish(&b);
}

static void expect_bad(bytes file, const char *why)
{
    resmap_model *model = NULL;

    env.error[0] = '\0';
    ck_assert_int_eq(rsm_model_create(&env, "file", file.at, file.size, &model), RESMAP_BAD_FILE);
    ck_assert_ptr_null(model);
    ck_assert_msg(strstr(env.error, "file: ") == env.error && strstr(env.error, why),
                  "'%s' does not say '%s'", env.error, why);
}

static resmap_model *expect_good(bytes file)
{
    resmap_model *model = NULL;

    ck_assert_msg(rsm_model_create(&env, "file", file.at, file.size, &model) == RESMAP_OK, "%s", env.error);
    return model;
}

/* ---- The walk ---- */

typedef struct totals {
    size_t tensors, parameters;
} totals;

static resmap_status count_one(void *data, const char *name, size_t dims, const size_t shape[4])
{
    totals *t = data;
    size_t count = 1;

    ck_assert(strlen(name) > 0 && dims >= 1 && dims <= 4);
    for (size_t i = 0; i < 4; i++) {
        ck_assert(shape[i] >= 1 && (i < dims || shape[i] == 1));
        count *= shape[i];
    }
    t->tensors++;
    t->parameters += count;
    return RESMAP_OK;
}

START_TEST(restormer_counts)
{
    static const struct {
        size_t channels, tensors, parameters;
        int with_bias;
    } known[] = {{1, 406, 26109076, 0}, {1, 494, 26124052, 1}, {3, 406, 26111668, 0}, {3, 494, 26126644, 1}};

    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        rsm_config config = {.arch = RSM_ARCH_RESTORMER, .dim = 48, .num_blocks = {4, 6, 6, 8},
            .num_refinement_blocks = 4, .heads = {1, 2, 4, 8}, .ffn_expansion_factor = 2.66};
        totals t = {0, 0};

        config.norm_with_bias = known[i].with_bias;
        config.in_channels = config.out_channels = known[i].channels;
        ck_assert_int_eq(rsm_model_visit(&config, count_one, &t), RESMAP_OK);
        ck_assert_uint_eq(t.tensors, known[i].tensors);
        ck_assert_uint_eq(t.parameters, known[i].parameters);
    }
}
END_TEST

START_TEST(hidden_channels)
{
    static const size_t known[4][2] = {{48, 127}, {96, 255}, {192, 510}, {384, 1021}};

    for (size_t i = 0; i < 4; i++) ck_assert_uint_eq(rsm_config_hidden(&tiny, known[i][0]), known[i][1]);
}
END_TEST

static resmap_status stop_at_third(void *data, const char *name, size_t dims, const size_t shape[4])
{
    (void)name;
    (void)dims;
    (void)shape;
    return ++*(int *)data == 3 ? RESMAP_CANCELLED : RESMAP_OK;
}

START_TEST(walk_stops)
{
    int calls = 0;

    ck_assert_int_eq(rsm_model_visit(&tiny, stop_at_third, &calls), RESMAP_CANCELLED);
    ck_assert_int_eq(calls, 3);
}
END_TEST

/* ---- Philox: the known answers that its authors publish ---- */

START_TEST(philox_answers)
{
    static const uint32_t known[3][10] = {
        {0, 0, 0, 0, 0, 0, 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8},
        {~0u, ~0u, ~0u, ~0u, ~0u, ~0u, 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
        {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0, 0xd16cfe09, 0x94fdcceb,
         0x5001e420, 0x24126ea1}};

    for (size_t i = 0; i < 3; i++) {
        uint32_t out[4];

        rsm_philox(&known[i][4], known[i], out);
        ck_assert_mem_eq(out, &known[i][6], sizeof out);
    }
}
END_TEST

/* ---- The container ---- */

START_TEST(container_values)
{
    /* a: F16 1, -2, smallest subnormal, largest subnormal, largest, -0; b: BF16 1, -3; c: I32 -7, 2^31-1; d:
     * F32, odd offset by a zero-length tensor e in front of it. */
    static const unsigned char data[] = {0x00, 0x3c, 0x00, 0xc0, 0x01, 0x00, 0xff, 0x03, 0xff, 0x7b,
                                         0x00, 0x80, 0x80, 0x3f, 0x40, 0xc0, 0xf9, 0xff, 0xff, 0xff,
                                         0xff, 0xff, 0xff, 0x7f, 0x00, 0x00, 0x20, 0xc1};
    static const char header[] =
        "{\"d\":{\"dtype\":\"F32\",\"shape\":[1,1],\"data_offsets\":[24,28]},"
        "\"a\":{\"dtype\":\"F16\",\"shape\":[2,3],\"data_offsets\":[0,12]},"
        "\"e\":{\"dtype\":\"F32\",\"shape\":[3,0],\"data_offsets\":[24,24]},"
        "\"b\":{\"dtype\":\"BF16\",\"shape\":[2],\"data_offsets\":[12,16]},"
        "\"__metadata__\":{\"resmap.config\":\"{}\",\"resmap.prompts\":\"[]\"},"
        "\"c\":{\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[16,24]}}  ";
    static const float a[] = {1, -2, 5.9604644775390625e-8f, 6.09755516052246e-5f, 65504, -0.0f};
    bytes b = container(header, data, sizeof data);
    rsm_safetensors file;
    float v[6];

    ck_assert_msg(rsm_safetensors_parse(&env, "file", b.at, b.size, &file) == RESMAP_OK, "%s", env.error);
    ck_assert_uint_eq(file.tensor_count, 5);
    ck_assert_str_eq(file.config, "{}");
    ck_assert_uint_eq(strlen(file.sha256), 64);
    ck_assert_ptr_null(rsm_safetensors_find(&file, "f"));
    ck_assert_uint_eq(rsm_safetensors_find(&file, "e")->count, 0);
    rsm_tensor_to_float(rsm_safetensors_find(&file, "a"), v);
    ck_assert_mem_eq(v, a, sizeof a);
    rsm_tensor_to_float(rsm_safetensors_find(&file, "b"), v);
    ck_assert(v[0] == 1 && v[1] == -3);
    rsm_tensor_to_float(rsm_safetensors_find(&file, "c"), v);
    ck_assert(v[0] == -7 && v[1] == 2147483648.0f);
    rsm_tensor_to_float(rsm_safetensors_find(&file, "d"), v);
    ck_assert(v[0] == -10);
    rsm_safetensors_clear(&file);
}
END_TEST

/* Every finite half against its definition. */
START_TEST(halves)
{
    for (uint32_t h = 0; h < 0x10000; h++) {
        const unsigned char data[2] = {(unsigned char)h, (unsigned char)(h >> 8)};
        const rsm_tensor tensor = {.dtype = RSM_F16, .count = 1, .data = data};
        int exponent = (int)(h >> 10 & 31);
        double mantissa = h & 1023, value;
        float got;

        if (exponent == 31) continue;
        value = exponent ? ldexp(1 + mantissa / 1024, exponent - 15) : ldexp(mantissa, -24);
        rsm_tensor_to_float(&tensor, &got);
        ck_assert(got == (h & 0x8000 ? -value : value));
    }
}
END_TEST

#define ONE(dtype, shape, offsets) \
    "{\"a\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}}"
#define TWO(first, second) \
    "{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":" first "}," \
    "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":" second "}}"

/* Headers that lie about 8 bytes of data. */
START_TEST(container_lies)
{
    static const struct {
        const char *header, *why;
    } lies[] = {
        {"", "not JSON"},
        {"{", "not JSON"},
        {"[]", "not a JSON object"},
        {"{}", "no tensors"},
        {"{\"a\":1}", "lacks a dtype"},
        {"{\"a\":{\"shape\":[2],\"data_offsets\":[0,8]}}", "lacks a dtype"},
        {"{\"a\":{\"dtype\":3,\"shape\":[2],\"data_offsets\":[0,8]}}", "lacks a dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,8]}}", "lacks a dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", "lacks a dtype"},
        {"{\"__metadata__\":{\"x\":\"y\"}}", "no tensors"},
        {"{\"__metadata__\":[],\"a\":1}", "__metadata__"},
        {"{\"__metadata__\":{\"x\":1},\"a\":1}", "__metadata__"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}x", "not JSON"},
        {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}",
         "not JSON: duplicate"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
         "not JSON: duplicate"},
        {"{\"\xff\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", "not JSON"},
        {"{\"a\\u0000b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", "not JSON"},
        {ONE("F64", "[1]", "[0,8]"), "unknown dtype F64"},
        {ONE("", "[1]", "[0,8]"), "unknown dtype"},
        {ONE("F32", "[2,1,1,1,1]", "[0,8]"), "5 dimensions"},
        {ONE("F32", "[3]", "[0,8]"), "larger than the file|does not fit"},
        {ONE("F32", "[1]", "[0,8]"), "does not fit"},
        {ONE("F16", "[2]", "[0,8]"), "does not fit"},
        {ONE("F32", "[-2]", "[0,8]"), "impossible shape"},
        {ONE("F32", "[2.0]", "[0,8]"), "impossible shape"},
        {ONE("F32", "[\"2\"]", "[0,8]"), "impossible shape"},
        {ONE("F32", "[9223372036854775807]", "[0,8]"), "larger than the file"},
        {ONE("F32", "[4294967296,4294967296]", "[0,8]"), "larger than the file"},
        {ONE("F32", "[8,8,8,8]", "[0,8]"), "larger than the file"},
        {ONE("F32", "[0]", "[0,8]"), "does not fit"},
        {ONE("F32", "[2]", "[0,9]"), "outside the file"},
        {ONE("F32", "[2]", "[8,16]"), "outside the file"},
        {ONE("F32", "[2]", "[-8,0]"), "outside the file"},
        {ONE("F32", "[2]", "[8,0]"), "outside the file"},
        {ONE("F32", "[2]", "[0,8,8]"), "lacks a dtype"},
        {ONE("F32", "[2]", "[0.0,8]"), "outside the file"},
        {ONE("F32", "[1]", "[0,4]"), "4 bytes at the end"},
        {ONE("F32", "[1]", "[4,8]"), "follows a gap"},
        {ONE("F32", "[0]", "[0,0]"), "8 bytes at the end"},
        {TWO("[0,4]", "[0,4]"), "overlaps"},
        {TWO("[0,4]", "[2,6]"), "overlaps"},
        {TWO("[1,5]", "[4,8]"), "follows a gap"},
        {TWO("[4,8]", "[4,8]"), "follows a gap"},
    };

    for (size_t i = 0; i < sizeof lies / sizeof lies[0]; i++) {
        bytes b = container(lies[i].header, "12345678", 8);
        rsm_safetensors file;
        char first[64];
        const char *other = strchr(lies[i].why, '|');

        snprintf(first, sizeof first, "%.*s", (int)strcspn(lies[i].why, "|"), lies[i].why);
        ck_assert_msg(rsm_safetensors_parse(&env, "file", b.at, b.size, &file) == RESMAP_BAD_FILE, "%s",
                      lies[i].header);
        ck_assert_msg(strstr(env.error, first) || (other && strstr(env.error, other + 1)),
                      "%s: '%s' does not say '%s'", lies[i].header, env.error, lies[i].why);
        ck_assert_ptr_null(file.bytes);
    }
}
END_TEST

START_TEST(container_lengths)
{
    static const uint64_t lengths[] = {1, 16, 1000000, (uint64_t)1 << 63, UINT64_MAX, UINT64_MAX - 7};
    rsm_safetensors file;

    for (size_t size = 0; size < 10; size++) {
        unsigned char *b = calloc(10, 1);

        ck_assert_int_eq(rsm_safetensors_parse(&env, "file", b, size, &file), RESMAP_BAD_FILE);
    }
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        bytes b = container("{}      ", "12345678", 8);

        for (int k = 0; k < 8; k++) b.at[k] = (unsigned char)(lengths[i] >> 8 * k);
        ck_assert_int_eq(rsm_safetensors_parse(&env, "file", b.at, b.size, &file), RESMAP_BAD_FILE);
    }
    /* A header over the limit, although it is there. */
    size_t size = ((size_t)17 << 20) + 8;
    unsigned char *large = malloc(size);
    memset(large, ' ', size);
    for (int k = 0; k < 8; k++) large[k] = (unsigned char)((uint64_t)(size - 8) >> 8 * k);
    ck_assert_int_eq(rsm_safetensors_parse(&env, "file", large, size, &file), RESMAP_BAD_FILE);
    ck_assert_ptr_nonnull(strstr(env.error, "header is longer"));
}
END_TEST

/* ---- Models ---- */

/* resmap_config with its first `from`, which it has, replaced. */
static void change_config(char config[1024], const char *from, const char *to)
{
    const char *at = strstr(resmap_config, from);

    ck_assert_msg(at != NULL, "%s", from);
    snprintf(config, 1024, "%.*s%s%s", (int)(at - resmap_config), resmap_config, to, at + strlen(from));
}

START_TEST(model_good)
{
    bytes file = model_file(resmap_config, NULL);
    size_t size = file.size;
    resmap_model *model = expect_good(file);
    totals t = {0, 0};

    rsm_model_visit(&tiny, count_one, &t);
    ck_assert_uint_eq(model->parameter_count, t.parameters);
    ck_assert_uint_eq(model->file.size, size);
    ck_assert_uint_eq(model->config.classifier_hidden, 5);
    ck_assert_uint_eq(model->config.class_count, 3);
    ck_assert_int_eq(model->config.clean, 2);
    ck_assert_uint_eq(model->config.class_pixels[1], 64);
    ck_assert_uint_eq(model->config.class_pixels[0], 0);
    ck_assert_int_eq(rsm_config_class(&model->config, "bias"), 1);
    ck_assert_int_eq(rsm_config_class(&model->config, "motion"), -1);
    ck_assert_ptr_nonnull(strstr(model->training, "hours"));
    ck_assert_uint_eq(model->config.field_order, 0);
    ck_assert_uint_eq(model->config.field_passes, 1);
    ck_assert_double_eq(model->config.evidence_weight, 0);
    ck_assert_str_eq(last_log, "");
    rsm_model_free(model);
    rsm_model_free(NULL);
}
END_TEST

/* What is optional, from the file to what is told of it. */
START_TEST(model_of_fields)
{
    char config[1024], *text = NULL;
    resmap_model *model;

    change_config(config, "{\"bias\": 64}", "{\"bias\": 64}, \"field_order\": 4, \"field_passes\": 2, \"field_evidence\": {\"weight\": 6, "
                  "\"spread\": 0.25}");
    model = expect_good(model_file(config, NULL));
    ck_assert_uint_eq(model->config.field_order, 4);
    ck_assert_uint_eq(model->config.field_passes, 2);
    ck_assert_double_eq(model->config.evidence_weight, 6);
    ck_assert_double_eq(model->config.evidence_spread, 0.25);
    ck_assert_int_eq(rsm_model_describe(&env, model, 1, &text), RESMAP_OK);
    ck_assert_ptr_nonnull(strstr(text, "\"weight\": 6"));
    ck_assert_ptr_nonnull(strstr(text, "\"spread\": 0.25"));
    free(text);
    ck_assert_int_eq(rsm_model_describe(&env, model, 0, &text), RESMAP_OK);
    ck_assert_ptr_nonnull(strstr(text, "with weight 6, whether the volume's field varies by more than 0.25"));
    free(text);
    rsm_model_free(model);
}
END_TEST

START_TEST(model_extra_tensors)
{
    builder b = begin(resmap_config);
    spoiled s = {.b = &b};
    resmap_model *model;

    rsm_model_visit(&tiny, add_visited, &s);
    add_prompts(&b);
    add(&b, "something.else", "F32", 1, (const size_t[]){3}, NULL);
    model = expect_good(finish(&b));
    ck_assert_ptr_nonnull(strstr(last_log, "1 tensors that the architecture does not have"));
    rsm_model_free(model);

    b = begin(resmap_config);
    rsm_model_visit(&tiny, add_visited, &s);
    add_prompts(&b);
    add(&b, "skip_conv.weight", "F32", 4, (const size_t[]){4, 2, 1, 1}, NULL);
    expect_bad(finish(&b), "dual-pixel");
}
END_TEST

/* Every tensor of the walk in turn: missing, one row longer, of integers. */
static resmap_status spoil(void *data, const char *name, size_t dims, const size_t shape[4])
{
    (void)data;
    (void)dims;
    (void)shape;
    expect_bad(model_file(resmap_config, &(spoiled){.missing = name}), name);
    if (strncmp(name, "classifier.fc1.bias", 19) != 0) { /* its length is free: others no longer fit, then */
        expect_bad(model_file(resmap_config, &(spoiled){.longer = name}), name);
        expect_bad(model_file(resmap_config, &(spoiled){.integer = name}), "I32");
    }
    return RESMAP_OK;
}

START_TEST(model_tensors)
{
    rsm_model_visit(&tiny, spoil, NULL);
    expect_bad(model_file(resmap_config, &(spoiled){.longer = "classifier.fc1.bias"}),
               "classifier.fc1.weight");
}
END_TEST

START_TEST(model_not_finite)
{
    static const float bad32[3] = {INFINITY, -INFINITY, NAN};
    static const uint16_t bad16[3] = {0x7c00, 0xfc00, 0x7e01}, bad_bf16[3] = {0x7f80, 0xff80, 0x7fc1};
    static const char *const dtypes[3] = {"F32", "F16", "BF16"};
    const void *const values[3] = {bad32, bad16, bad_bf16};

    for (size_t d = 0; d < 3; d++)
        for (size_t i = 0; i < 3; i++) {
            builder b = begin(resmap_config);
            spoiled s = {.b = &b, .missing = "classifier.fc2.bias"};
            unsigned char row[12] = {0};
            size_t size = d ? 2 : 4;

            rsm_model_visit(&tiny, add_visited, &s);
            add_prompts(&b);
            memcpy(row + 2 * size, (const unsigned char *)values[d] + i * size, size);
            add(&b, "classifier.fc2.bias", dtypes[d], 1, (const size_t[]){3}, row);
            expect_bad(finish(&b), "classifier.fc2.bias holds a number that is not finite");
        }
}
END_TEST

START_TEST(model_configuration)
{
    /* `from` in the good configuration becomes `to`. */
    static const struct {
        const char *from, *to, *why;
    } changes[] = {
        {"\"resmap\"", "\"unet\"", "architecture unet is unknown"},
        {"\"resmap\"", "7", "names no arch"},
        {"\"arch\"", "\"Arch\"", "names no arch"},
        {"{\"arch\"", "[{\"arch\"", "not JSON"},
        {"\"dim\": 2", "\"dim\": 0", "dim"},
        {"\"dim\": 2", "\"dim\": 3", "odd"},
        {"\"dim\": 2", "\"dim\": 1026", "dim"},
        {"\"dim\": 2", "\"dim\": 2.0", "dim"},
        {"\"dim\": 2", "\"dim\": -2", "dim"},
        {"\"dim\": 2", "\"dim\": 4", "should be"},
        {"\"dim\": 2, ", "", "dim"},
        {"\"dim\": 2", "\"dim\": 2, \"dim\": 2", "not JSON: duplicate"},
        {"[1, 1, 1, 1]", "[1, 1, 1]", "num_blocks"},
        {"[1, 1, 1, 1]", "[1, 0, 1, 1]", "num_blocks"},
        {"[1, 1, 1, 1]", "[1, 65, 1, 1]", "num_blocks"},
        {"[1, 1, 1, 1]", "[1, 2, 1, 1]", "encoder_level2.1.norm1.body.weight is missing"},
        {"[1, 1, 1, 1]", "1", "num_blocks"},
        {"refinement_blocks\": 1", "refinement_blocks\": 0", "num_refinement_blocks"},
        {"[1, 2, 4, 8]", "[1, 2, 4, 0]", "heads"},
        {"[1, 2, 4, 8]", "[1, 3, 4, 8]", "do not divide"},
        {"[1, 2, 4, 8]", "[1, 2, 4, 32]", "do not divide"},
        {"[1, 2, 4, 8]", "[1, 2, 4, 4]", "latent.0.attn.temperature"},
        {"2.66", "0", "ffn_expansion_factor"},
        {"2.66", "-1", "ffn_expansion_factor"},
        {"2.66", "0.4", "ffn_expansion_factor"},
        {"2.66", "16.5", "ffn_expansion_factor"},
        {"2.66", "1e999", "not JSON"},
        {"2.66", "\"2.66\"", "ffn_expansion_factor"},
        {"\"BiasFree\"", "\"Other\"", "layer_norm"},
        {"\"BiasFree\"", "\"WithBias\"", "norm1.body.bias is missing"},
        {"in_channels\": 1", "in_channels\": 2", "2 channels in and 1 out"},
        {"in_channels\": 1", "in_channels\": 3", "3 channels in and 1 out"},
        {"in_channels\": 1, \"out_channels\": 1", "in_channels\": 2, \"out_channels\": 2",
         "only 1 and 1, or 3 and 3"},
        {"in_channels\": 1, \"out_channels\": 1", "in_channels\": 3, \"out_channels\": 3",
         "patch_embed.proj.weight"},
        {"text_dim\": 3", "text_dim\": 0", "text_dim"},
        {"text_dim\": 3", "text_dim\": 4", "tpf.3.text.weight"},
        {"[\"noise\", \"bias\", \"clean\"]", "[]", "classes"},
        {"[\"noise\", \"bias\", \"clean\"]", "\"noise\"", "classes"},
        {"[\"noise\", \"bias\", \"clean\"]", "[\"noise\", \"bias\"]", "classifier.fc2.weight"},
        {"[\"noise\", \"bias\", \"clean\"]", "[\"noise\", \"bias\", \"bias\"]", "listed twice"},
        {"[\"noise\", \"bias\", \"clean\"]", "[\"noise\", \"bias\", \"\"]", "class 2"},
        {"[\"noise\", \"bias\", \"clean\"]", "[\"noise\", \"bias\", \"Clean\"]", "class 2"},
        {"[\"noise\", \"bias\", \"clean\"]", "[\"noise\", \"bias\", 3]", "class 2"},
        {"[\"noise\", \"bias\", \"clean\"]", "[\"noise\", \"bias\", \"ghosts\"]",
         "class ghosts has no prompt"},
        {"{\"bias\": 64}", "{\"motion\": 64}", "class_pixels names motion"},
        {"{\"bias\": 64}", "{\"bias\": 7}", "class_pixels"},
        {"{\"bias\": 64}", "{\"bias\": 1025}", "class_pixels"},
        {"{\"bias\": 64}", "64", "class_pixels"},
        {"{\"bias\": 64}", "{\"bias\": 64}, \"classifier_views\": 3", "classifier_views"},
        {"{\"bias\": 64}", "{}, \"classifier_views\": 2", "classifier_views"},
        {"{\"bias\": 64}", "{\"bias\": 64, \"noise\": 32}", "different sizes"},
        {"{\"bias\": 64}", "{}, \"field_order\": 3", "field_order needs class_pixels"},
        {"{\"bias\": 64}", "{\"bias\": 64}, \"field_order\": 7", "field_order"},
        {"{\"bias\": 64}", "{\"bias\": 64}, \"field_order\": true", "field_order"},
        {"{\"bias\": 64}", "{\"bias\": 64}, \"field_passes\": 2", "field_passes need field_order"},
        {"{\"bias\": 64}", "{\"bias\": 64}, \"field_order\": 3, \"field_passes\": 0", "field_passes"},
        {"{\"bias\": 64}", "{\"bias\": 64}, \"field_order\": 3, \"field_passes\": 9", "field_passes"},
        {"{\"bias\": 64}", "{\"bias\": 64}, \"field_evidence\": {\"weight\": 1, \"spread\": 1}", "field_evidence needs field_order"},
        {"{\"bias\": 64}", "{\"bias\": 64, \"noise\": 64}, \"field_order\": 3, \"field_evidence\": {\"weight\": 1, \"spread\": 1}",
         "field_evidence needs field_order, one class"},
        {"{\"bias\": 64}", "{\"clean\": 64}, \"field_order\": 3, \"field_evidence\": {\"weight\": 1, \"spread\": 1}",
         "another that is clean"},
        {"{\"bias\": 64}", "{\"bias\": 64}, \"field_order\": 3, \"field_evidence\": {\"weight\": 0, \"spread\": 1}", "a weight above 0"},
        {"{\"bias\": 64}", "{\"bias\": 64}, \"field_order\": 3, \"field_evidence\": {\"weight\": 1, \"spread\": 11}", "a spread above 0"},
        {"{\"bias\": 64}", "{\"bias\": 64}, \"field_order\": 3, \"field_evidence\": {\"weight\": 101, \"spread\": 1}", "up to 100"},
        {"{\"bias\": 64}", "{\"bias\": 64}, \"field_order\": 3, \"field_evidence\": 3", "field_evidence is not an object"},
        {"{\"bias\": 64}", "{\"bias\": 64}, \"classifier_views\": 2", "classifier.fc1.weight"},
        {"{\"bias\": 64}", "{\"bias\": 64}, \"classifier_levels\": 4", "classifier.fc1.weight"},
        {"{\"bias\": 64}", "{\"bias\": 64}, \"classifier_levels\": 5", "classifier_levels"},
        {"{\"bias\": 64}", "{\"bias\": 64}, \"classifier_levels\": 2", "classifier_levels is neither"},
    };

    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
        char config[1024];

        change_config(config, changes[i].from, changes[i].to);
        expect_bad(model_file(config, NULL), changes[i].why);
    }
    expect_bad(model_file("", NULL), "not JSON");
    expect_bad(model_file("[]", NULL), "not a JSON object");
}
END_TEST

START_TEST(model_without_configuration)
{
    bytes b = container("{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", "12345678", 8);

    expect_bad(b, "no resmap.config");
}
END_TEST

START_TEST(model_prompts)
{
    static const int32_t outside[2][4] = {{0, 1, 0, 3}, {0, 1, -1, 0}}, lacking[4] = {0, 0, 0, 2};
    static const float infinite[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, INFINITY};
    const struct {
        const char *features_dtype, *classes_dtype;
        size_t features[2], classes;
        const void *features_data, *classes_data;
        const char *why;
    } cases[] = {
        {"F32", "I32", {4, 3}, 4, NULL, outside[0], "names class 3"},
        {"F32", "I32", {4, 3}, 4, NULL, outside[1], "names class -1"},
        {"F32", "I32", {4, 3}, 4, NULL, lacking, "class bias has no prompt"},
        {"F32", "I32", {4, 2}, 4, NULL, prompt_classes, "3 wide"},
        {"I32", "I32", {4, 3}, 4, NULL, prompt_classes, "matrix of numbers"},
        {"F32", "F32", {4, 3}, 4, NULL, prompt_classes, "one I32 for each row"},
        {"F32", "I32", {3, 3}, 4, NULL, prompt_classes, "one I32 for each row"},
        {"F32", "I32", {4, 3}, 4, infinite, prompt_classes,
         "prompts.features holds a number that is not finite"},
        {"F32", "I32", {0, 3}, 0, NULL, prompt_classes, "has no prompt"},
        {NULL, "I32", {4, 3}, 4, NULL, prompt_classes, "prompts.features is missing"},
        {"F32", NULL, {4, 3}, 4, NULL, prompt_classes, "prompts.class is missing"},
    };

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        builder b = begin(resmap_config);
        spoiled s = {.b = &b};

        rsm_model_visit(&tiny, add_visited, &s);
        if (cases[i].features_dtype)
            add(&b, "prompts.features", cases[i].features_dtype, 2, cases[i].features,
                cases[i].features_data);
        if (cases[i].classes_dtype)
            add(&b, "prompts.class", cases[i].classes_dtype, 1, &cases[i].classes, cases[i].classes_data);
        expect_bad(finish(&b), cases[i].why);
    }
}
END_TEST

START_TEST(prompt_features_chosen)
{
    resmap_model *model = expect_good(model_file(resmap_config, NULL));
    float feature[3], again[3];
    int seen[4] = {0};

    ck_assert_uint_eq(rsm_model_prompt_count(model, 0), 3);
    ck_assert_uint_eq(rsm_model_prompt_count(model, 1), 1);
    ck_assert_uint_eq(rsm_model_prompt_count(model, 2), 0);
    rsm_model_prompt(model, 0, 0, 0, 0, feature);
    ck_assert(feature[0] == 3 && feature[1] == 3 && feature[2] == 4.25f);
    rsm_model_prompt(model, 1, 1, 9, 9, feature);
    ck_assert_mem_eq(feature, prompt_features + 3, sizeof feature);

    for (uint64_t draw = 0; draw < 60; draw++) {
        int member = -1;

        rsm_model_prompt(model, 0, 1, 5, draw, feature);
        rsm_model_prompt(model, 0, 1, 5, draw, again);
        ck_assert_mem_eq(feature, again, sizeof feature);
        for (int i = 0; i < 4; i++)
            if (memcmp(feature, prompt_features + 3 * i, sizeof feature) == 0) member = i;
        ck_assert_int_ge(member, 0);
        seen[member]++;
    }
    ck_assert(seen[1] == 0 && seen[0] > 8 && seen[2] > 8 && seen[3] > 8);
    rsm_model_free(model);
}
END_TEST

START_TEST(restormer_model)
{
    static const char config[] =
        "{\"arch\": \"restormer\", \"dim\": 2, \"num_blocks\": [1, 1, 1, 1], "
        "\"num_refinement_blocks\": 1, \"heads\": "
        "[1, 2, 4, 8], \"ffn_expansion_factor\": 2.66, \"layer_norm\": \"WithBias\", \"in_channels\": 3, "
        "\"out_channels\": 3}";
    rsm_config shape = tiny;
    builder b = begin(config);
    spoiled s = {.b = &b};
    resmap_model *model;

    shape.arch = RSM_ARCH_RESTORMER;
    shape.norm_with_bias = 1;
    shape.in_channels = shape.out_channels = 3;
    rsm_model_visit(&shape, add_visited, &s);
    model = expect_good(finish(&b));
    ck_assert_uint_eq(model->config.class_count, 0);
    ck_assert_int_eq(model->config.clean, -1);
    ck_assert_uint_eq(rsm_model_prompt_count(model, 0), 0);
    ck_assert_ptr_null(model->training);
    rsm_model_free(model);
}
END_TEST

/* ---- Damage: whatever the bytes, either a model or a reason, never a crash ---- */

static const char syntax[] = "0123456789[]{},:\"-.e";

static void try_bytes(bytes file)
{
    resmap_model *model = NULL;
    resmap_status status;

    env.error[0] = '\0';
    status = rsm_model_create(&env, "file", file.at, file.size, &model);
    if (status == RESMAP_OK) {
        float feature[4096];

        if (model->config.arch == RSM_ARCH_RESMAP) rsm_model_prompt(model, 0, 0, 0, 0, feature);
        rsm_model_free(model);
    } else {
        ck_assert_int_eq(status, RESMAP_BAD_FILE);
        ck_assert_ptr_null(model);
        ck_assert(strstr(env.error, "file: ") == env.error && strlen(env.error) > 8);
    }
}

START_TEST(damaged_container)
{
    static const char header[] =
        "{\"__metadata__\":{\"resmap.config\":\"{}\"},\"a\":{\"dtype\":\"F32\",\"shape\":[1,2],"
        "\"data_offsets\":[0,8]},\"b\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[8,12]}}";
    bytes good = container(header, "123456789abc", 12);

    for (size_t i = 0; i < good.size; i++)   /* every bit flipped, then every byte another of JSON's */
        for (unsigned k = 0; k < 8 + strlen(syntax); k++) {
            bytes b = copy_of(good);
            rsm_safetensors file;

            b.at[i] = k < 8 ? (unsigned char)(b.at[i] ^ 1u << k) : (unsigned char)syntax[k - 8];
            if (rsm_safetensors_parse(&env, "file", b.at, b.size, &file) == RESMAP_OK) {
                float v[16];

                for (size_t t = 0; t < file.tensor_count; t++) {
                    ck_assert_uint_le(file.tensors[t].count, 6);
                    rsm_tensor_to_float(&file.tensors[t], v);
                }
                rsm_safetensors_clear(&file);
            }
        }
    for (size_t size = 0; size < good.size; size++) {
        bytes b = copy_of(good);
        rsm_safetensors file;

        b.at = realloc(b.at, size ? size : 1);   /* so that a checker sees reads past the end */
        ck_assert_int_eq(rsm_safetensors_parse(&env, "file", b.at, size, &file), RESMAP_BAD_FILE);
    }
    free(good.at);
}
END_TEST

START_TEST(damaged_model)
{
    bytes good = model_file(resmap_config, NULL);
    size_t header = 8 + ((size_t)good.at[0] | (size_t)good.at[1] << 8);
    uint32_t counter[4] = {0}, random[4];

    for (size_t i = 0; i < header; i++) {
        bytes b = copy_of(good);

        counter[0] = (uint32_t)i;
        rsm_philox((const uint32_t[]){1, 2}, counter, random);
        if (random[0] & 1)
            b.at[i] ^= (unsigned char)(1u << random[1] % 8);
        else
            b.at[i] = (unsigned char)syntax[random[1] % strlen(syntax)];
        try_bytes(b);
    }
    for (size_t size = 0; size < good.size; size += size < header ? 3 : 101) {
        bytes b = copy_of(good);

        b.at = realloc(b.at, size ? size : 1);
        b.size = size;
        try_bytes(b);
        ck_assert_str_ne(env.error, "");
    }
    free(good.at);
}
END_TEST

/* ---- Files ---- */

START_TEST(finding)
{
    char folder[256], path[300], second[300], search[300], *found = NULL;
    bytes file = model_file(resmap_config, NULL);
    resmap_model *model = NULL;
    FILE *stream;

    ck_assert(make_scratch(folder));
    snprintf(path, sizeof path, "%s/one.safetensors", folder);
    stream = fopen(path, "wb");
    ck_assert_uint_eq(fwrite(file.at, 1, file.size, stream), file.size);
    ck_assert_int_eq(fclose(stream), 0);
    free(file.at);

    snprintf(search, sizeof search, ":/nonexistent::%s:", folder);
    setenv("RESMAP_WEIGHTS_PATH", search, 1);
    ck_assert_int_eq(rsm_model_find(&env, "one", &found), RESMAP_OK);
    ck_assert_str_eq(found, path);
    free(found);
    ck_assert_int_eq(rsm_model_find(&env, "x.safetensors", &found),
                     RESMAP_OK); /* a file, whether there or not */
    ck_assert_str_eq(found, "x.safetensors");
    free(found);
    ck_assert_int_eq(rsm_model_find(&env, "two", &found), RESMAP_BAD_FILE);
    ck_assert_ptr_nonnull(strstr(env.error, "model two: not found"));

    ck_assert_int_eq(rsm_model_open(&env, "one", &model), RESMAP_OK);
    ck_assert_str_eq(model->name, "one");
    rsm_model_free(model);
    ck_assert_int_eq(rsm_model_open(&env, path, &model), RESMAP_OK);
    ck_assert_str_eq(model->name, path);
    rsm_model_free(model);

    model = NULL;
    snprintf(second, sizeof second, "%s/fifo.safetensors", folder);
    ck_assert_int_eq(mkfifo(second, 0600), 0);
    ck_assert_int_eq(rsm_model_open(&env, second, &model),
                     RESMAP_BAD_FILE); /* and does not wait for a writer */
    ck_assert_ptr_nonnull(strstr(env.error, "not a regular file"));
    ck_assert_int_eq(rsm_model_open(&env, "/", &model), RESMAP_BAD_FILE);
    ck_assert_int_eq(rsm_model_open(&env, "/nonexistent/x", &model), RESMAP_BAD_FILE);
    ck_assert_ptr_nonnull(strstr(env.error, "/nonexistent/x: "));
    ck_assert_int_eq(truncate(path, 0), 0);
    ck_assert_int_eq(rsm_model_open(&env, path, &model), RESMAP_BAD_FILE);
    ck_assert_ptr_null(model);
    unlink(second);
    unlink(path);
    rmdir(folder);
    unsetenv("RESMAP_WEIGHTS_PATH");
}
END_TEST

/* ---- Descriptions and reports ---- */

START_TEST(described)
{
    resmap_model *model = expect_good(model_file(resmap_config, NULL));
    char *text = NULL;
    json_t *root;
    int noise, bias, clean, hours, pixels;
    json_int_t parameters, size;
    const char *sha;

    ck_assert_int_eq(rsm_model_describe(&env, model, 0, &text), RESMAP_OK);
    ck_assert_ptr_nonnull(strstr(text, "noise: 3 prompts"));
    ck_assert_ptr_nonnull(strstr(text, "bias: 1 prompts, restored as a field at 64 pixels"));
    ck_assert_ptr_nonnull(strstr(text, "hours: 3"));
    free(text);

    ck_assert_int_eq(rsm_model_describe(&env, model, 1, &text), RESMAP_OK);
    root = json_loads(text, 0, NULL);
    ck_assert_ptr_nonnull(root);
    ck_assert_int_eq(json_unpack(root, "{s:s, s:I, s:I, s:{s:i, s:i, s:i}, s:{s:i}, s:{s:i}}", "sha256", &sha,
                                 "parameters", &parameters, "bytes", &size, "prompts", "noise", &noise,
                                 "bias", &bias, "clean", &clean, "class_pixels", "bias", &pixels, "training",
                                 "hours", &hours),
                     0);
    ck_assert_str_eq(sha, model->file.sha256);
    ck_assert_int_eq(parameters, (json_int_t)model->parameter_count);
    ck_assert_int_eq(size, (json_int_t)model->file.size);
    ck_assert(noise == 3 && bias == 1 && clean == 0 && hours == 3 && pixels == 64);
    json_decref(root);
    free(text);
    rsm_model_free(model);
}
END_TEST

static resmap_report *make_report(void)
{
    resmap_report *r = calloc(1, sizeof *r);
    resmap_volume_report *v = calloc(2, sizeof *v);

    r->input = rsm_strdup("in \"\xff\".nii");
    r->output = rsm_strdup("out.nii");
    r->model_name = rsm_strdup("resmap-s");
    r->model_sha256 = rsm_strdup("00");
    r->device_count = 3;
    r->devices = calloc(3, sizeof *r->devices);
    for (int i = 0; i < 3; i++)
        r->devices[i] = (resmap_device_report){rsm_strdup(i == 1 ? "e" : "d"), rsm_strdup("p"),
                                               rsm_strdup("v"), "fp32", 10, 1, 1.5};
    r->prompt = rsm_strdup("sample:7");
    r->plane = "axial";
    r->decide = "volume";
    r->class_count = 2;
    r->classes[0] = rsm_strdup("noise");
    r->classes[1] = rsm_strdup("clean");
    r->volumes = v;
    r->volume_count = 2;
    r->seconds_total = INFINITY;
    r->device_bytes_peak = 123456;
    v[0].step_count = 2;
    v[0].stopped = "clean";
    v[0].steps[0] = (resmap_step){
        .class_index = 0, .has_probabilities = 1, .probabilities = {0.75, 0.25}, .restored = 1};
    v[0].steps[1] = (resmap_step){.class_index = 1, .has_probabilities = 1, .probabilities = {0.1, 0.9}};
    v[0].slice_count = 1;
    v[0].slices = calloc(1, sizeof *v[0].slices);
    v[0].slices[0] = (resmap_slice_report){
        .index = 4, .step_count = 1, .class_index = 1, .probabilities = {0.5, 0.5}};
    v[1].frame = 1;
    v[1].step_count = 1;
    v[1].stopped = "forced";
    v[1].steps[0] = (resmap_step){.class_index = 0, .restored = 1};
    return r;
}

START_TEST(reported)
{
    resmap_report *report = make_report();
    char *text = NULL;
    const char *input, *class_name, *stopped, *slice_step, *prompt;
    json_t *root, *forced, *total;
    double p0, p1;
    int restored0, restored1, index, peak;

    ck_assert_int_eq(rsm_report_json(&env, report, 0, &text), RESMAP_OK);
    root = json_loads(text, 0, NULL);
    ck_assert_ptr_nonnull(root);
    ck_assert_int_eq(json_unpack(root,
                                 "{s:s, s:s, s:[{s:[{s:s, s:f, s:{s:f}, s:b}, {s:b}], s:s, s:[{s:i, s:[s]}]},"
                                 "{s:[o]}], s:{s:o}, s:i}",
                                 "input", &input, "prompt", &prompt, "volumes", "steps", "class", &class_name,
                                 "probability", &p0, "probabilities", "clean", &p1, "restored", &restored0,
                                 "restored", &restored1, "stopped", &stopped, "slices", "index", &index,
                                 "steps", &slice_step, "steps", &forced, "seconds", "total", &total,
                                 "device_bytes_peak", &peak),
                     0);
    ck_assert_str_eq(input, "in \"?\".nii");
    ck_assert_str_eq(prompt, "sample:7");
    ck_assert_str_eq(class_name, "noise");
    ck_assert_str_eq(stopped, "clean");
    ck_assert_str_eq(slice_step, "noise");
    ck_assert(p0 == 0.75 && p1 == 0.25 && restored0 == 1 && restored1 == 0 && index == 4 && peak == 123456);
    ck_assert(json_is_null(json_object_get(forced, "probability")));
    ck_assert(json_is_null(json_object_get(forced, "probabilities")));
    ck_assert(json_is_null(total));
    json_decref(root);
    free(text);

    ck_assert_int_eq(rsm_report_json(&env, report, 1, &text), RESMAP_OK);
    root = json_loads(text, 0, NULL);
    ck_assert_int_eq(json_unpack(root, "{s:[{s:i, s:s, s:{s:f, s:f}, s:[{s:i, s:s, s:{s:f}}]}, {}]}",
                                 "volumes", "frame", &index, "class", &class_name, "probabilities", "noise",
                                 &p0, "clean", &p1, "slices", "index", &peak, "class", &slice_step,
                                 "probabilities", "clean", &p1),
                     0);
    ck_assert(index == 0 && p0 == 0.75 && p1 == 0.5 && peak == 4);
    ck_assert_str_eq(class_name, "noise");
    ck_assert_str_eq(slice_step, "clean");
    json_decref(root);
    free(text);
    resmap_report_free(report);
    resmap_report_free(NULL);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("weights");
    TCase *walk = tcase_create("walk"), *parse = tcase_create("container"), *models = tcase_create("models");
    TCase *damage = tcase_create("damage"), *text = tcase_create("text");
    TCase *const cases[] = {walk, parse, models, damage, text};
    int failed;

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        tcase_add_checked_fixture(cases[i], setup, NULL);
        tcase_set_timeout(cases[i], 900);   /* slow under valgrind */
        suite_add_tcase(suite, cases[i]);
    }
    tcase_add_test(walk, restormer_counts);
    tcase_add_test(walk, hidden_channels);
    tcase_add_test(walk, walk_stops);
    tcase_add_test(walk, philox_answers);
    tcase_add_test(parse, container_values);
    tcase_add_test(parse, halves);
    tcase_add_test(parse, container_lies);
    tcase_add_test(parse, container_lengths);
    tcase_add_test(models, model_good);
    tcase_add_test(models, model_of_fields);
    tcase_add_test(models, model_extra_tensors);
    tcase_add_test(models, model_tensors);
    tcase_add_test(models, model_not_finite);
    tcase_add_test(models, model_configuration);
    tcase_add_test(models, model_without_configuration);
    tcase_add_test(models, model_prompts);
    tcase_add_test(models, prompt_features_chosen);
    tcase_add_test(models, restormer_model);
    tcase_add_test(damage, damaged_container);
    tcase_add_test(damage, damaged_model);
    tcase_add_test(text, finding);
    tcase_add_test(text, described);
    tcase_add_test(text, reported);

    failed = run_host_suite(suite);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
