/* A network of the paper's size with random weights, made in memory: for timing, which does not care what
 * weights say. */
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "core/philox.h"
#include "model/model.h"

static const rsm_config paper = {
    .arch = RSM_ARCH_RESMAP,
    .dim = 48,
    .num_blocks = {4, 6, 6, 8},
    .num_refinement_blocks = 4,
    .heads = {1, 2, 4, 8},
    .ffn_expansion_factor = 2.66,
    .in_channels = 1,
    .out_channels = 1,
    .text_dim = 384,
    .class_count = 4,
    .classifier_views = 1,
    .classifier_levels = 1,
    .classifier_hidden = 64,
};

enum { PROMPTS = 3 };            /* one for each class but "clean" */

/* The same as a weights file says it; NULL: no memory. */
static char *paper_config(void)
{
    const size_t *n = paper.num_blocks, *h = paper.heads;
    json_t *root =
        json_pack("{s:s, s:i, s:[i,i,i,i], s:i, s:[i,i,i,i], s:f, s:s, s:i, s:i, s:i, s:[s,s,s,s]}", "arch",
                  "resmap", "dim", (int)paper.dim, "num_blocks", (int)n[0], (int)n[1], (int)n[2], (int)n[3],
                  "num_refinement_blocks", (int)paper.num_refinement_blocks, "heads", (int)h[0], (int)h[1],
                  (int)h[2], (int)h[3], "ffn_expansion_factor", paper.ffn_expansion_factor, "layer_norm",
                  "BiasFree", "in_channels", (int)paper.in_channels, "out_channels", (int)paper.out_channels,
                  "text_dim", (int)paper.text_dim, "classes", "motion", "noise", "bias", "clean");
    char *text = root ? json_dumps(root, 0) : NULL;

    json_decref(root);
    return text;
}

/* Two walks over the tensors: the first describes them in the header, the second writes their numbers. */
typedef struct maker {
    json_t *header;
    unsigned char *data;
    size_t at;                   /* bytes so far */
    uint32_t tensor;             /* tells the random numbers of the tensors apart */
    int failed;
} maker;

static void describe_one(maker *m, const char *name, const char *dtype, size_t dims, const size_t shape[4])
{
    json_t *lengths = json_array();
    size_t bytes = 4;

    for (size_t i = 0; i < dims; i++) {
        m->failed |= json_array_append_new(lengths, json_integer((json_int_t)shape[i]));
        bytes *= shape[i];
    }
    m->failed |=
        json_object_set_new(m->header, name,
                            json_pack("{s:s, s:o, s:[I,I]}", "dtype", dtype, "shape", lengths, "data_offsets",
                                      (json_int_t)m->at, (json_int_t)(m->at + bytes)));
    m->at += bytes;
}

static resmap_status describe(void *data, const char *name, size_t dims, const size_t shape[4])
{
    describe_one(data, name, "F32", dims, shape);
    return RESMAP_OK;
}

static void put(maker *m, uint32_t bits)
{
    for (int i = 0; i < 4; i++) m->data[m->at++] = (unsigned char)(bits >> 8 * i);
}

/* Matrices uniform within 1 / sqrt(inputs), so that values neither vanish nor explode on their way; ones for
 * scales. */
static resmap_status fill(void *data, const char *name, size_t dims, const size_t shape[4])
{
    maker *m = data;
    size_t count = shape[0] * shape[1] * shape[2] * shape[3];
    const uint32_t key[2] = {m->tensor++, 0};
    float bound = 1 / sqrtf((float)(shape[1] * shape[2] * shape[3]));

    (void)name;
    for (size_t i = 0; i < count; i += 4) {
        const uint32_t counter[4] = {(uint32_t)i, 0, 0, 0};
        uint32_t random[4];

        rsm_philox(key, counter, random);
        for (size_t j = 0; j < 4 && i + j < count; j++) {
            float value = dims % 2 == 1 ? 1.0f : bound * ((float)(random[j] >> 8) / 8388608.0f - 1);
            uint32_t bits;

            memcpy(&bits, &value, sizeof bits);
            put(m, bits);
        }
    }
    return RESMAP_OK;
}

/* The file's header as text, padded to whole 8 bytes, and the bytes of the data; NULL: no memory. */
static char *make_header(size_t *data_bytes)
{
    const size_t features[4] = {PROMPTS, paper.text_dim, 1, 1}, classes[4] = {PROMPTS, 1, 1, 1};
    maker m = {.header = json_object()};
    char *config = paper_config(), *text = NULL, *padded = NULL;

    if (config) {
        m.failed |=
            json_object_set_new(m.header, "__metadata__", json_pack("{s:s}", "resmap.config", config));
        rsm_model_visit(&paper, describe, &m);
        describe_one(&m, "prompts.features", "F32", 2, features);
        describe_one(&m, "prompts.class", "I32", 1, classes);
        text = m.failed ? NULL : json_dumps(m.header, JSON_COMPACT);
    }
    if (text) padded = rsm_format("%s%*s", text, (int)((8 - strlen(text) % 8) % 8), "");
    *data_bytes = m.at;
    free(text);
    free(config);
    json_decref(m.header);
    return padded;
}

resmap_status rsm_model_paper(rsm_env *env, resmap_model **model)
{
    const size_t features[4] = {PROMPTS, paper.text_dim, 1, 1};
    size_t data_bytes, length;
    char *header = make_header(&data_bytes);
    maker m = {.failed = 0};

    if (!header) return rsm_no_memory(env, 65536);
    length = strlen(header);
    m.data = malloc(8 + length + data_bytes);
    if (!m.data) {
        free(header);
        return rsm_no_memory(env, data_bytes);
    }
    put(&m, (uint32_t)length);
    put(&m, 0);
    memcpy(m.data + 8, header, length);
    m.at += length;
    free(header);
    rsm_model_visit(&paper, fill, &m);
    fill(&m, "prompts.features", 2, features);
    for (uint32_t c = 0; c < PROMPTS; c++) put(&m, c);
    return rsm_model_create(env, "paper", m.data, m.at, model);
}
