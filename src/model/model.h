/* A model: the weights file checked in full, its configuration and its prompts. */
#ifndef RSM_MODEL_H
#define RSM_MODEL_H

#include "core/env.h"

/* ---- safetensors.c: the container ---- */

typedef enum rsm_dtype { RSM_F32, RSM_F16, RSM_BF16, RSM_I32 } rsm_dtype;

typedef struct rsm_tensor {
    char *name;
    rsm_dtype dtype;
    size_t dims, shape[4], count;
    const unsigned char *data;   /* little-endian, may be unaligned */
} rsm_tensor;

typedef struct rsm_safetensors {
    unsigned char *bytes;        /* the whole file, owned */
    size_t size;
    size_t tensor_count;
    rsm_tensor *tensors;         /* sorted by name */
    char *config;                /* __metadata__["resmap.config"], or NULL */
    char sha256[65];
} rsm_safetensors;

/* Takes over `bytes` (malloc'ed), also on failure. `name` is for messages. Refuses headers that lie: lengths, offsets that
 * overlap or leave the file or gaps, unknown dtypes, more than 4 dimensions, products that overflow, duplicate names. */
resmap_status rsm_safetensors_parse(rsm_env *env, const char *name, unsigned char *bytes, size_t size, rsm_safetensors *file);
void rsm_safetensors_clear(rsm_safetensors *file);
const rsm_tensor *rsm_safetensors_find(const rsm_safetensors *file, const char *name);
/* Converts to float32 (I32 too); target holds tensor->count floats. */
void rsm_tensor_to_float(const rsm_tensor *tensor, float *target);

/* ---- model.c: configuration and prompts ---- */

typedef enum rsm_arch { RSM_ARCH_RESMAP, RSM_ARCH_RESTORMER } rsm_arch;

typedef struct rsm_config {
    rsm_arch arch;
    size_t dim, num_blocks[4], num_refinement_blocks, heads[4];
    double ffn_expansion_factor; /* hidden = (size_t)(C * factor) */
    int norm_with_bias;
    size_t in_channels, out_channels;   /* 1 and 1, or 3 and 3 */
    size_t text_dim;
    size_t class_count;
    char *classes[RESMAP_MAX_CLASSES];
    int clean;                   /* the index of "clean", or -1 */
    size_t class_pixels[RESMAP_MAX_CLASSES];   /* 0: full resolution */
    size_t classifier_views;     /* 1 or 2 */
    size_t classifier_levels;    /* 1: the latent; 4: levels 1 to 3 too */
    size_t field_passes;         /* that such a step makes at most, 1… */
    size_t field_order;          /* of the polynomial that a step's fields are fitted by over the volume; 0: none is */
    double evidence_weight;      /* of that field in telling its class from "clean", 0: none; and the spread within slices */
    double evidence_spread;      /* that speaks for neither */
    size_t classifier_hidden;
} rsm_config;

struct resmap_model {
    rsm_env *env;
    char *name;
    char *path;                  /* of its file; NULL: made from memory */
    rsm_config config;
    rsm_safetensors file;
    size_t parameter_count;      /* of the network, prompts apart */
    char *training;              /* resmap.config's "training" as JSON text, or NULL */
};

/* Finds the file of `name` as resmap_model_open's: fresh text in *path. RESMAP_BAD_FILE when there is none such. */
resmap_status rsm_model_find(rsm_env *env, const char *name, char **path);
/* Finds, reads (a regular file, at most 4 GB) and checks. */
resmap_status rsm_model_open(rsm_env *env, const char *name, resmap_model **model);
/* Every tensor that the configuration asks for is there with its shape, and nothing is missing, when this returns
 * RESMAP_OK; so later look-ups cannot fail. Takes over bytes. */
resmap_status rsm_model_create(rsm_env *env, const char *name, unsigned char *bytes, size_t size, resmap_model **model);
void rsm_model_free(resmap_model *model);
/* random.c: the network of the paper's size, with the same random weights every time. */
resmap_status rsm_model_paper(rsm_env *env, resmap_model **model);
/* Names every weight tensor of the network that `config` describes (prompts apart), in the order of the forward pass:
 * patch_embed, encoder_level1, down1_2 … latent, classifier, tpf.3, up4_3 … refinement, output. Checking, counting and
 * uploading share this walk. shape: `dims` lengths, 1 beyond. A status other than RESMAP_OK from `visit` ends the walk
 * and is returned. */
typedef resmap_status (*rsm_model_visit_fn)(void *data, const char *name, size_t dims, const size_t shape[4]);
resmap_status rsm_model_visit(const rsm_config *config, rsm_model_visit_fn visit, void *data);
/* hidden = int(channels * factor), as Restormer's. */
size_t rsm_config_hidden(const rsm_config *config, size_t channels);
/* The shape of its tensors as one word, "resmap-dim48-blocks4.6.6.8.4-heads1.2.4.8-hidden1021": networks of one shape are
 * equally fast. */
enum { RSM_SHAPE_LENGTH = 128 };
void rsm_config_shape(const rsm_config *config, char text[RSM_SHAPE_LENGTH]);
/* Prompts of a class; 0 for "clean" where it has none, and for the restormer architecture. */
size_t rsm_model_prompt_count(const resmap_model *model, int class_index);
/* The prompt feature of a class, text_dim floats: the mean of its group, or the one drawn by a counter-based generator
 * from (seed, draw). */
void rsm_model_prompt(const resmap_model *model, int class_index, int sample, uint64_t seed, uint64_t draw, float *feature);
/* The mean prompt feature of the first class but "clean", for checks and timings, to which any would do. */
void rsm_model_some_prompt(const resmap_model *model, float *feature);
/* Index of a class by name, or -1. */
int rsm_config_class(const rsm_config *config, const char *name);
/* How many numbers the classifier sees of a view. */
size_t rsm_config_pooled(const rsm_config *config);

/* ---- describe.c, report.c: what resmap_model_describe and resmap_report_json give ---- */

resmap_status rsm_model_describe(rsm_env *env, const resmap_model *model, int json, char **text);
resmap_status rsm_report_json(rsm_env *env, const resmap_report *report, int classify, char **text);

#endif
