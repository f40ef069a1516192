/* What network.c, which has the weights, and plan.c, which runs them, share. Nobody else includes this file. */
#ifndef RSM_NETWORK_PRIVATE_H
#define RSM_NETWORK_PRIVATE_H

#include "model/network.h"
#include "nn/nn.h"

enum { LEVELS = 4 };

/* Weights of one transformer block; offsets into the weights buffer, in which they lie together. */
typedef struct block {
    size_t channels, heads, hidden;
    size_t first, count;         /* where they all lie */
    rsm_vector norm1_weight, norm1_bias, temperature, qkv, qkv_depthwise, attention_out;
    rsm_vector norm2_weight, norm2_bias, ffn_in, ffn_depthwise, ffn_out;
} block;

typedef struct stage {
    size_t count;
    block *blocks;
} stage;

/* A Textual Prompt Fusion. The text half of its 1x1 convolution sees a spatially constant input, so it is a bias for each
 * channel, computed once a prompt on the host. */
typedef struct fusion {
    rsm_vector fuse;             /* [C, 2C], the image half first */
    rsm_vector bias;             /* C values inside `prompt_bias` */
    float *text_weight, *text_bias, *fuse_text;   /* [C, text_dim], [C], [C, C]: host copies */
    block block;
} fusion;

struct rsm_network {
    rsm_network *owner;          /* whose weights, blocks and host copies these are; NULL: its own */
    rsm_device *device;
    rsm_env *env;
    const struct resmap_model *model;
    const rsm_config *config;
    rsm_storage storage;         /* of weights, and of what lies between the levels' maps */

    rsm_buffer *weights;
    size_t largest;              /* run of weights that are used together */
    rsm_buffer *expanded;        /* fp16 weights in use, in fp32: a block's at a time */
    rsm_vector patch_embed, down[3], up[3], reduce[3], output_conv;
    stage encoder[LEVELS], decoder[3], refinement;
    fusion fusion[3];            /* [i]: before the upsampling into level i (0: full resolution) */
    rsm_buffer *prompt_bias;
    int has_prompt;
    float *fc1_weight, *fc1_bias, *fc2_weight, *fc2_bias;
};

static inline size_t level_channels(const rsm_network *net, int level)
{
    return net->config->dim << level;
}

/* Rounds up so that every tensor starts at a multiple of 64 bytes. */
static inline size_t aligned(size_t count)
{
    return (count + 15) / 16 * 16;
}

static inline size_t maximum(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Elements of fp32 that `count` elements of that storage take. */
static inline size_t taken(rsm_storage storage, size_t count)
{
    return storage == RSM_FP16 ? (count + 1) / 2 : count;
}

#endif
