#include "model/network_private.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_LENGTH = 128 };

/* ---- Weights ------------------------------------------------------------------------------------------------ */

static int on_device(const char *name)
{
    return strncmp(name, "prompts.", 8) != 0 && strncmp(name, "classifier.", 11) != 0 &&
           !(strncmp(name, "tpf.", 4) == 0 && strstr(name, ".text.") != NULL);
}

/* Colour checkpoints see the slice three times and give three outputs to be averaged; both convolutions are linear, so that
 * is one input channel with the summed kernel and one output channel with the mean kernel. Returns the elements left. */
static size_t fold_colour(const rsm_network *net, const char *name, float *values, size_t count)
{
    size_t inputs = net->config->in_channels, outputs = net->config->out_channels;

    if (strcmp(name, "patch_embed.proj.weight") == 0 && inputs > 1) {
        for (size_t o = 0; o < net->config->dim; o++)
            for (size_t t = 0; t < 9; t++) {
                double sum = 0;
                for (size_t i = 0; i < inputs; i++) sum += (double)values[(o * inputs + i) * 9 + t];
                values[o * 9 + t] = (float)sum;
            }
        return net->config->dim * 9;
    }
    if (strcmp(name, "output.weight") == 0 && outputs > 1) {
        size_t size = count / outputs;
        for (size_t t = 0; t < size; t++) {
            double sum = 0;
            for (size_t o = 0; o < outputs; o++) sum += (double)values[o * size + t];
            values[t] = (float)(sum / (double)outputs);
        }
        return size;
    }
    return count;
}

/* Where each tensor that the device needs lies in the weights buffer, in the order of rsm_model_visit. */
typedef struct placement {
    const rsm_tensor *tensor;
    size_t offset;
} placement;

typedef struct loader {
    rsm_network *net;
    placement *places;
    size_t count, total;
} loader;

static resmap_status place(void *data, const char *name, size_t dims, const size_t shape[4])
{
    loader *load = data;
    const rsm_tensor *tensor;

    (void)dims;
    (void)shape;
    if (!on_device(name)) return RESMAP_OK;
    tensor = rsm_safetensors_find(&load->net->model->file, name);
    load->places[load->count++] = (placement){tensor, load->total};
    load->total += aligned(tensor->count);
    load->net->largest = maximum(load->net->largest, tensor->count);
    return RESMAP_OK;
}

/* The weights named by the format, or an empty vector when the model has none (bias of a BiasFree norm). */
static rsm_vector place_of(const loader *load, const char *format, ...) RSM_PRINTF(2, 3);
static rsm_vector place_of(const loader *load, const char *format, ...)
{
    char name[NAME_LENGTH];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    for (size_t i = 0; i < load->count; i++)
        if (strcmp(name, load->places[i].tensor->name) == 0) return (rsm_vector){load->net->weights, load->places[i].offset};
    return (rsm_vector){NULL, 0};
}

static block load_block(loader *load, const char *prefix, size_t channels, size_t heads)
{
    block b;

    b.channels = channels;
    b.heads = heads;
    b.hidden = rsm_config_hidden(load->net->config, channels);
    b.norm1_weight = place_of(load, "%s.norm1.body.weight", prefix);
    b.norm1_bias = place_of(load, "%s.norm1.body.bias", prefix);
    b.temperature = place_of(load, "%s.attn.temperature", prefix);
    b.qkv = place_of(load, "%s.attn.qkv.weight", prefix);
    b.qkv_depthwise = place_of(load, "%s.attn.qkv_dwconv.weight", prefix);
    b.attention_out = place_of(load, "%s.attn.project_out.weight", prefix);
    b.norm2_weight = place_of(load, "%s.norm2.body.weight", prefix);
    b.norm2_bias = place_of(load, "%s.norm2.body.bias", prefix);
    b.ffn_in = place_of(load, "%s.ffn.project_in.weight", prefix);
    b.ffn_depthwise = place_of(load, "%s.ffn.dwconv.weight", prefix);
    b.ffn_out = place_of(load, "%s.ffn.project_out.weight", prefix);
    b.first = b.norm1_weight.offset;
    b.count = b.ffn_out.offset + channels * b.hidden - b.first;
    load->net->largest = maximum(load->net->largest, b.count);
    return b;
}

static resmap_status load_stage(loader *load, const char *name, size_t count, size_t channels, size_t heads, stage *target)
{
    target->blocks = malloc(rsm_bytes(count, sizeof *target->blocks));
    if (target->blocks == NULL) return rsm_no_memory(load->net->env, count * sizeof *target->blocks);
    target->count = count;
    for (size_t i = 0; i < count; i++) {
        char prefix[NAME_LENGTH];
        snprintf(prefix, sizeof prefix, "%s.%zu", name, i);
        target->blocks[i] = load_block(load, prefix, channels, heads);
    }
    return RESMAP_OK;
}

/* A tensor of the (checked) model as floats in fresh memory. */
static resmap_status host_tensor(rsm_network *net, const char *name, float **values)
{
    const rsm_tensor *tensor = rsm_safetensors_find(&net->model->file, name);

    *values = malloc(rsm_bytes(tensor->count, sizeof **values));
    if (*values == NULL) return rsm_no_memory(net->env, tensor->count * sizeof **values);
    rsm_tensor_to_float(tensor, *values);
    return RESMAP_OK;
}

static resmap_status load_fusion(loader *load, int index, size_t channels, size_t heads, size_t *bias_offset)
{
    rsm_network *net = load->net;
    fusion *f = &net->fusion[index];
    char name[NAME_LENGTH];
    float *whole;

    f->fuse = place_of(load, "tpf.%d.fuse.weight", index + 1);
    f->bias.offset = *bias_offset;
    *bias_offset += aligned(channels);
    snprintf(name, sizeof name, "tpf.%d.block", index + 1);
    f->block = load_block(load, name, channels, heads);
    snprintf(name, sizeof name, "tpf.%d.text.weight", index + 1);
    RSM_TRY(host_tensor(net, name, &f->text_weight));
    snprintf(name, sizeof name, "tpf.%d.text.bias", index + 1);
    RSM_TRY(host_tensor(net, name, &f->text_bias));
    snprintf(name, sizeof name, "tpf.%d.fuse.weight", index + 1);
    RSM_TRY(host_tensor(net, name, &whole));
    f->fuse_text = malloc(rsm_bytes(channels * channels, sizeof *whole));
    if (f->fuse_text == NULL) {
        free(whole);
        return rsm_no_memory(net->env, channels * channels * sizeof *whole);
    }
    for (size_t o = 0; o < channels; o++)
        memcpy(f->fuse_text + o * channels, whole + o * 2 * channels + channels, channels * sizeof *whole);
    free(whole);
    return RESMAP_OK;
}

/* Writes one tensor to its place; to fp16 by way of `expanded`. */
static resmap_status upload_tensor(rsm_network *net, const placement *p, const float *values, size_t count)
{
    if (net->storage == RSM_FP32) return rsm_buffer_write(net->device, net->weights, p->offset, values, count);
    for (size_t i = 0; i < count; i++)
        if (!(fabsf(values[i]) <= 65504))
            return rsm_fail(net->env, RESMAP_BAD_FILE, "%s: %s holds %g, too much for fp16; use fp32", net->model->name,
                            p->tensor->name, (double)values[i]);
    RSM_TRY(rsm_buffer_write(net->device, net->expanded, 0, values, count));
    return rsm_copy(net->device, (rsm_map){net->expanded, 0, count, RSM_FP32},
                    (rsm_map){net->weights, p->offset, count, RSM_FP16}, 1, count);
}

static resmap_status upload(loader *load)
{
    rsm_network *net = load->net;
    float *values = malloc(rsm_bytes(net->largest, sizeof *values));
    resmap_status status = RESMAP_OK;

    if (values == NULL) return rsm_no_memory(net->env, net->largest * sizeof *values);
    if (net->storage == RSM_FP16) RSM_CHECK(rsm_buffer_create(net->device, net->largest, &net->expanded));
    for (size_t i = 0; i < load->count; i++) {
        const placement *p = &load->places[i];
        rsm_tensor_to_float(p->tensor, values);
        RSM_CHECK(upload_tensor(net, p, values, fold_colour(net, p->tensor->name, values, p->tensor->count)));
    }
done:
    free(values);
    return status;
}

static resmap_status make_prompt_bias(rsm_network *net, size_t count)
{
    RSM_TRY(rsm_buffer_create(net->device, count, &net->prompt_bias));
    for (int i = 0; i < 3; i++) net->fusion[i].bias.buffer = net->prompt_bias;
    return RESMAP_OK;
}

static resmap_status load_network(loader *load)
{
    static const char *const encoder_names[LEVELS] = {"encoder_level1", "encoder_level2", "encoder_level3", "latent"};
    static const char *const decoder_names[3] = {"decoder_level1", "decoder_level2", "decoder_level3"};
    static const char *const down_names[3] = {"down1_2", "down2_3", "down3_4"};
    static const char *const up_names[3] = {"up2_1", "up3_2", "up4_3"};
    rsm_network *net = load->net;
    const rsm_config *c = net->config;
    size_t most = net->model->file.tensor_count;

    load->places = malloc(rsm_bytes(most, sizeof *load->places));
    if (load->places == NULL) return rsm_no_memory(net->env, most * sizeof *load->places);
    RSM_TRY(rsm_model_visit(c, place, load));
    RSM_TRY(rsm_buffer_create(net->device, taken(net->storage, load->total), &net->weights));
    net->patch_embed = place_of(load, "patch_embed.proj.weight");
    net->output_conv = place_of(load, "output.weight");
    for (int i = 0; i < LEVELS; i++)
        RSM_TRY(load_stage(load, encoder_names[i], c->num_blocks[i], level_channels(net, i), c->heads[i], &net->encoder[i]));
    for (int i = 0; i < 3; i++) {
        /* Level 1 of the decoder keeps the concatenated width (no reduction): 2 * dim channels. */
        size_t channels = i == 0 ? 2 * c->dim : level_channels(net, i);
        RSM_TRY(load_stage(load, decoder_names[i], c->num_blocks[i], channels, c->heads[i], &net->decoder[i]));
        net->down[i] = place_of(load, "%s.body.0.weight", down_names[i]);
        net->up[i] = place_of(load, "%s.body.0.weight", up_names[i]);
        if (i > 0) net->reduce[i] = place_of(load, "reduce_chan_level%d.weight", i + 1);
    }
    RSM_TRY(load_stage(load, "refinement", c->num_refinement_blocks, 2 * c->dim, c->heads[0], &net->refinement));
    if (c->arch == RSM_ARCH_RESMAP) {
        size_t bias_count = 0;
        for (int i = 0; i < 3; i++)
            RSM_TRY(load_fusion(load, i, level_channels(net, i + 1), c->heads[i + 1], &bias_count));
        RSM_TRY(make_prompt_bias(net, bias_count));
        RSM_TRY(host_tensor(net, "classifier.fc1.weight", &net->fc1_weight));
        RSM_TRY(host_tensor(net, "classifier.fc1.bias", &net->fc1_bias));
        RSM_TRY(host_tensor(net, "classifier.fc2.weight", &net->fc2_weight));
        RSM_TRY(host_tensor(net, "classifier.fc2.bias", &net->fc2_bias));
    }
    return upload(load);
}

resmap_status rsm_network_create(rsm_device *device, const struct resmap_model *model, rsm_storage storage,
                                 rsm_network **network)
{
    loader load = {0};
    rsm_network *net = calloc(1, sizeof *net);
    resmap_status status;

    if (net == NULL) return rsm_no_memory(rsm_device_env(device), sizeof *net);
    net->device = device;
    net->env = rsm_device_env(device);
    net->model = model;
    net->config = &model->config;
    net->storage = storage;
    load.net = net;
    status = load_network(&load);
    free(load.places);
    if (status == RESMAP_NO_DEVICE_MEMORY)
        rsm_fail(net->env, status, "model %s: its weights do not fit into device memory (%s)", model->name, net->env->error);
    if (status != RESMAP_OK) rsm_network_free(net);
    else *network = net;
    return status;
}

resmap_status rsm_network_share(rsm_network *network, rsm_device *worker, rsm_network **shared)
{
    rsm_network *net = malloc(sizeof *net);
    resmap_status status = RESMAP_OK;

    if (net == NULL) return rsm_no_memory(rsm_device_env(worker), sizeof *net);
    *net = *network;
    if (net->owner == NULL) net->owner = network;
    net->device = worker;
    net->env = rsm_device_env(worker);
    net->prompt_bias = net->expanded = NULL;
    net->has_prompt = 0;
    if (network->prompt_bias != NULL)
        RSM_CHECK(make_prompt_bias(net, rsm_buffer_count(network->prompt_bias)));
    if (net->storage == RSM_FP16) RSM_CHECK(rsm_buffer_create(worker, net->largest, &net->expanded));
    /* The weights may still be on their way. */
    RSM_CHECK(rsm_device_finish(network->device));
    *shared = net;
    return RESMAP_OK;
done:
    rsm_network_free(net);
    return status;
}

static void free_owned(rsm_network *net)
{
    for (int i = 0; i < LEVELS; i++) free(net->encoder[i].blocks);
    for (int i = 0; i < 3; i++) {
        free(net->decoder[i].blocks);
        free(net->fusion[i].text_weight);
        free(net->fusion[i].text_bias);
        free(net->fusion[i].fuse_text);
    }
    free(net->refinement.blocks);
    free(net->fc1_weight);
    free(net->fc1_bias);
    free(net->fc2_weight);
    free(net->fc2_bias);
    rsm_buffer_free(net->weights);
}

void rsm_network_free(rsm_network *net)
{
    if (net == NULL) return;
    if (net->owner == NULL) free_owned(net);
    rsm_buffer_free(net->prompt_bias);
    rsm_buffer_free(net->expanded);
    free(net);
}

rsm_network *rsm_network_owner(const rsm_network *net)
{
    return net->owner;
}

rsm_device *rsm_network_device(const rsm_network *net)
{
    return net->device;
}

const struct resmap_model *rsm_network_model(const rsm_network *net)
{
    return net->model;
}

rsm_storage rsm_network_storage(const rsm_network *net)
{
    return net->storage;
}

const char *rsm_network_precision(const rsm_network *net)
{
    if (rsm_device_is_reference(net->device)) return "fp64";
    return net->storage == RSM_FP16 ? "fp16" : "fp32";
}

/* ---- The prompt and the classifier -------------------------------------------------------------------------- */

size_t rsm_network_pooled_count(const rsm_network *net)
{
    return rsm_config_pooled(net->config);
}

resmap_status rsm_network_set_prompt(rsm_network *net, const float *prompt)
{
    size_t text_dim = net->config->text_dim;

    for (int i = 0; i < 3; i++) {
        const fusion *t = &net->fusion[i];
        size_t c = t->block.channels;
        double *text = malloc(rsm_bytes(c, sizeof *text));
        float *bias = malloc(rsm_bytes(c, sizeof *bias));
        resmap_status status;
        if (text == NULL || bias == NULL) {
            free(text);
            free(bias);
            return rsm_no_memory(net->env, c * sizeof *text);
        }
        for (size_t o = 0; o < c; o++) {
            text[o] = (double)t->text_bias[o];
            for (size_t k = 0; k < text_dim; k++) text[o] += (double)t->text_weight[o * text_dim + k] * (double)prompt[k];
        }
        for (size_t o = 0; o < c; o++) {
            double sum = 0;
            for (size_t k = 0; k < c; k++) sum += (double)t->fuse_text[o * c + k] * text[k];
            bias[o] = (float)sum;
        }
        status = rsm_buffer_write(net->device, t->bias.buffer, t->bias.offset, bias, c);
        free(text);
        free(bias);
        if (status != RESMAP_OK) return status;
    }
    net->has_prompt = 1;
    return RESMAP_OK;
}

void rsm_network_classify(const rsm_network *net, const float *pooled, double *logits)
{
    const rsm_config *c = net->config;
    size_t inputs = c->classifier_views * rsm_network_pooled_count(net);

    for (size_t o = 0; o < c->class_count; o++) logits[o] = (double)net->fc2_bias[o];
    for (size_t h = 0; h < c->classifier_hidden; h++) {
        double sum = (double)net->fc1_bias[h];
        for (size_t i = 0; i < inputs; i++) sum += (double)net->fc1_weight[h * inputs + i] * (double)pooled[i];
        sum *= 0.5 * (1 + erf(sum * 0.70710678118654752440));   /* GELU */
        for (size_t o = 0; o < c->class_count; o++) logits[o] += (double)net->fc2_weight[o * c->classifier_hidden + h] * sum;
    }
}
