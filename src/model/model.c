/* What a weights file says of its model (weights/FORMAT.md), checked in full before anything computes with
 * it. */
#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/file.h"
#include "core/philox.h"
#include "model/field.h"
#include "model/model.h"

#define SUFFIX ".safetensors"
#define MAX_FILE ((uint64_t)4 << 30)
#define MAX_CLASS_NAME 32
#define MAX_TEXT_DIM 4096

/* ---- The walk over the network's tensors ---- */

typedef struct walk {
    rsm_model_visit_fn visit;
    void *data;
} walk;

/* The tensor `prefix` + `name`. */
static resmap_status one(const walk *w, const char *prefix, const char *name, size_t dims, size_t a, size_t b,
                         size_t c, size_t d)
{
    char full[128];
    const size_t shape[4] = {a, b, c, d};

    snprintf(full, sizeof full, "%s%s", prefix, name);
    return w->visit(w->data, full, dims, shape);
}

static resmap_status norm(const walk *w, const rsm_config *config, const char *prefix, const char *name,
                          size_t channels)
{
    char body[96];

    snprintf(body, sizeof body, "%s%s.body.", prefix, name);
    RSM_TRY(one(w, body, "weight", 1, channels, 1, 1, 1));
    if (config->norm_with_bias) RSM_TRY(one(w, body, "bias", 1, channels, 1, 1, 1));
    return RESMAP_OK;
}

static resmap_status block(const walk *w, const rsm_config *config, const char *prefix, size_t channels,
                           size_t heads)
{
    size_t c = channels, hidden = rsm_config_hidden(config, channels);

    RSM_TRY(norm(w, config, prefix, "norm1", c));
    RSM_TRY(one(w, prefix, "attn.temperature", 3, heads, 1, 1, 1));
    RSM_TRY(one(w, prefix, "attn.qkv.weight", 4, 3 * c, c, 1, 1));
    RSM_TRY(one(w, prefix, "attn.qkv_dwconv.weight", 4, 3 * c, 1, 3, 3));
    RSM_TRY(one(w, prefix, "attn.project_out.weight", 4, c, c, 1, 1));
    RSM_TRY(norm(w, config, prefix, "norm2", c));
    RSM_TRY(one(w, prefix, "ffn.project_in.weight", 4, 2 * hidden, c, 1, 1));
    RSM_TRY(one(w, prefix, "ffn.dwconv.weight", 4, 2 * hidden, 1, 3, 3));
    return one(w, prefix, "ffn.project_out.weight", 4, c, hidden, 1, 1);
}

static resmap_status stage(const walk *w, const rsm_config *config, const char *name, size_t blocks,
                           size_t channels, size_t heads)
{
    for (size_t i = 0; i < blocks; i++) {
        char prefix[64];

        snprintf(prefix, sizeof prefix, "%s.%zu.", name, i);
        RSM_TRY(block(w, config, prefix, channels, heads));
    }
    return RESMAP_OK;
}

static resmap_status fusion(const walk *w, const rsm_config *config, int n, size_t channels, size_t heads)
{
    char prefix[16], inner[24];

    if (config->arch != RSM_ARCH_RESMAP) return RESMAP_OK;
    snprintf(prefix, sizeof prefix, "tpf.%d.", n);
    snprintf(inner, sizeof inner, "%sblock.", prefix);
    RSM_TRY(one(w, prefix, "text.weight", 2, channels, config->text_dim, 1, 1));
    RSM_TRY(one(w, prefix, "text.bias", 1, channels, 1, 1, 1));
    RSM_TRY(one(w, prefix, "fuse.weight", 4, channels, 2 * channels, 1, 1));
    return block(w, config, inner, channels, heads);
}

resmap_status rsm_model_visit(const rsm_config *config, rsm_model_visit_fn visit, void *data)
{
    const walk walk_data = {visit, data}, *w = &walk_data;
    const size_t *n = config->num_blocks, *heads = config->heads, c = config->dim;

    RSM_TRY(one(w, "", "patch_embed.proj.weight", 4, c, config->in_channels, 3, 3));
    RSM_TRY(stage(w, config, "encoder_level1", n[0], c, heads[0]));
    RSM_TRY(one(w, "", "down1_2.body.0.weight", 4, c / 2, c, 3, 3));
    RSM_TRY(stage(w, config, "encoder_level2", n[1], 2 * c, heads[1]));
    RSM_TRY(one(w, "", "down2_3.body.0.weight", 4, c, 2 * c, 3, 3));
    RSM_TRY(stage(w, config, "encoder_level3", n[2], 4 * c, heads[2]));
    RSM_TRY(one(w, "", "down3_4.body.0.weight", 4, 2 * c, 4 * c, 3, 3));
    RSM_TRY(stage(w, config, "latent", n[3], 8 * c, heads[3]));
    if (config->arch == RSM_ARCH_RESMAP) {
        size_t h = config->classifier_hidden;

        RSM_TRY(one(w, "", "classifier.fc1.weight", 2, h, config->classifier_views * rsm_config_pooled(config), 1, 1));
        RSM_TRY(one(w, "", "classifier.fc1.bias", 1, h, 1, 1, 1));
        RSM_TRY(one(w, "", "classifier.fc2.weight", 2, config->class_count, h, 1, 1));
        RSM_TRY(one(w, "", "classifier.fc2.bias", 1, config->class_count, 1, 1, 1));
    }
    RSM_TRY(fusion(w, config, 3, 8 * c, heads[3]));
    RSM_TRY(one(w, "", "up4_3.body.0.weight", 4, 16 * c, 8 * c, 3, 3));
    RSM_TRY(one(w, "", "reduce_chan_level3.weight", 4, 4 * c, 8 * c, 1, 1));
    RSM_TRY(stage(w, config, "decoder_level3", n[2], 4 * c, heads[2]));
    RSM_TRY(fusion(w, config, 2, 4 * c, heads[2]));
    RSM_TRY(one(w, "", "up3_2.body.0.weight", 4, 8 * c, 4 * c, 3, 3));
    RSM_TRY(one(w, "", "reduce_chan_level2.weight", 4, 2 * c, 4 * c, 1, 1));
    RSM_TRY(stage(w, config, "decoder_level2", n[1], 2 * c, heads[1]));
    RSM_TRY(fusion(w, config, 1, 2 * c, heads[1]));
    RSM_TRY(one(w, "", "up2_1.body.0.weight", 4, 4 * c, 2 * c, 3, 3));
    /* Level 1 of the decoder keeps the concatenation's 2 * dim channels: Restormer has no reduction there. */
    RSM_TRY(stage(w, config, "decoder_level1", n[0], 2 * c, heads[0]));
    RSM_TRY(stage(w, config, "refinement", config->num_refinement_blocks, 2 * c, heads[0]));
    return one(w, "", "output.weight", 4, config->out_channels, 2 * c, 3, 3);
}

size_t rsm_config_hidden(const rsm_config *config, size_t channels)
{
    return (size_t)((double)channels * config->ffn_expansion_factor);
}

void rsm_config_shape(const rsm_config *config, char text[RSM_SHAPE_LENGTH])
{
    const size_t *n = config->num_blocks, *h = config->heads;

    snprintf(text, RSM_SHAPE_LENGTH, "%s-dim%zu-blocks%zu.%zu.%zu.%zu.%zu-heads%zu.%zu.%zu.%zu-hidden%zu%s",
             config->arch == RSM_ARCH_RESTORMER ? "restormer" : "resmap", config->dim, n[0], n[1], n[2], n[3],
             config->num_refinement_blocks, h[0], h[1], h[2], h[3],
             rsm_config_hidden(config, 8 * config->dim), config->norm_with_bias ? "-bias" : "");
}

size_t rsm_config_pooled(const rsm_config *config)
{
    return (config->classifier_levels == 4 ? 15 : 8) * config->dim;
}

int rsm_config_class(const rsm_config *config, const char *name)
{
    for (size_t i = 0; i < config->class_count; i++)
        if (strcmp(config->classes[i], name) == 0) return (int)i;
    return -1;
}

/* ---- The configuration ---- */

static resmap_status bad(rsm_env *env, const char *name, const char *format, ...) RSM_PRINTF(3, 4);
static resmap_status bad(rsm_env *env, const char *name, const char *format, ...)
{
    char why[512];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);
    return rsm_fail(env, RESMAP_BAD_FILE, "%s: %s", name, why);
}

/* `value` (the member `key`, NULL when absent) as a whole number of low … high. */
static resmap_status read_size(rsm_env *env, const char *name, const char *key, const json_t *value,
                               size_t low, size_t high, size_t *target)
{
    json_int_t number = json_integer_value(value);

    if (!json_is_integer(value) || number < 0 || (uint64_t)number < low || (uint64_t)number > high)
        return bad(env, name, "the configuration's %.60s is not a whole number from %zu to %zu", key, low,
                   high);
    *target = (size_t)number;
    return RESMAP_OK;
}

static resmap_status read_four(rsm_env *env, const char *name, const char *key, const json_t *value,
                               size_t high, size_t target[4])
{
    if (!json_is_array(value) || json_array_size(value) != 4)
        return bad(env, name, "the configuration's %s is not a list of 4 numbers", key);
    for (size_t i = 0; i < 4; i++)
        RSM_TRY(read_size(env, name, key, json_array_get(value, i), 1, high, &target[i]));
    return RESMAP_OK;
}

static resmap_status read_classes(rsm_env *env, const char *name, const json_t *list, rsm_config *config)
{
    size_t count = json_array_size(list);

    if (!json_is_array(list) || count < 1 || count > RESMAP_MAX_CLASSES)
        return bad(env, name, "the configuration's classes are not a list of 1 to %d names",
                   RESMAP_MAX_CLASSES);
    for (size_t i = 0; i < count; i++) {
        const char *class_name = json_string_value(json_array_get(list, i));

        if (!class_name || !class_name[0] || strlen(class_name) > MAX_CLASS_NAME ||
            class_name[strspn(class_name, "abcdefghijklmnopqrstuvwxyz0123456789-")])
            return bad(env, name, "class %zu has no name of 1 to %d of a-z, 0-9 and -", i, MAX_CLASS_NAME);
        if (rsm_config_class(config, class_name) >= 0)
            return bad(env, name, "class %s is listed twice", class_name);
        config->classes[i] = rsm_strdup(class_name);
        if (!config->classes[i]) return rsm_no_memory(env, strlen(class_name) + 1);
        config->class_count++;
    }
    config->clean = rsm_config_class(config, "clean");
    return RESMAP_OK;
}

static resmap_status read_views(rsm_env *env, const char *name, const json_t *root, rsm_config *config)
{
    const json_t *pixels = json_object_get(root, "class_pixels"),
                 *views = json_object_get(root, "classifier_views"), *order = json_object_get(root, "field_order"),
                 *passes = json_object_get(root, "field_passes"), *levels = json_object_get(root, "classifier_levels");
    const char *key;
    json_t *value;
    size_t shrunken = 0;

    if (pixels && !json_is_object(pixels))
        return bad(env, name, "the configuration's class_pixels is not an object");
    json_object_foreach((json_t *)pixels, key, value)
    {
        int i = rsm_config_class(config, key);

        if (i < 0) return bad(env, name, "class_pixels names %.60s, which is none of the classes", key);
        RSM_TRY(read_size(env, name, "class_pixels", value, 8, 1024, &config->class_pixels[i]));
        if (shrunken != 0 && shrunken != config->class_pixels[i])
            return bad(env, name, "class_pixels names different sizes; one shrunken view is all there is");
        shrunken = config->class_pixels[i];
    }
    config->classifier_views = 1;
    if (views) RSM_TRY(read_size(env, name, "classifier_views", views, 1, 2, &config->classifier_views));
    if (config->classifier_views == 2 && shrunken == 0)
        return bad(env, name, "two classifier_views need class_pixels");
    config->classifier_levels = 1;
    if (levels) RSM_TRY(read_size(env, name, "classifier_levels", levels, 1, 4, &config->classifier_levels));
    if (config->classifier_levels != 1 && config->classifier_levels != 4)
        return bad(env, name, "classifier_levels is neither 1 nor 4");
    if (order != NULL) RSM_TRY(read_size(env, name, "field_order", order, 1, RSM_FIELD_ORDER, &config->field_order));
    if (config->field_order > 0 && shrunken == 0) return bad(env, name, "field_order needs class_pixels");
    config->field_passes = 1;
    if (passes != NULL) RSM_TRY(read_size(env, name, "field_passes", passes, 1, 8, &config->field_passes));
    if (config->field_passes > 1 && config->field_order == 0) return bad(env, name, "field_passes need field_order");
    return RESMAP_OK;
}

static resmap_status read_evidence(rsm_env *env, const char *name, const json_t *root, rsm_config *config)
{
    const json_t *evidence = json_object_get(root, "field_evidence");
    size_t fields = 0;

    if (evidence == NULL) return RESMAP_OK;
    for (size_t c = 0; c < config->class_count; c++) fields += config->class_pixels[c] > 0;
    if (fields != 1 || config->field_order == 0 || config->clean < 0 || config->class_pixels[config->clean] > 0)
        return bad(env, name, "field_evidence needs field_order, one class with class_pixels, and another that is clean");
    config->evidence_weight = json_number_value(json_object_get(evidence, "weight"));
    config->evidence_spread = json_number_value(json_object_get(evidence, "spread"));
    if (!(config->evidence_weight > 0 && config->evidence_weight <= 100 && config->evidence_spread > 0 && config->evidence_spread <= 10))
        return bad(env, name, "field_evidence is not an object of a weight above 0, up to 100, and a spread above 0, up to 10");
    return RESMAP_OK;
}

static resmap_status read_config(rsm_env *env, const char *name, const json_t *root, rsm_config *config)
{
    const char *arch = json_string_value(json_object_get(root, "arch"));
    const char *layer_norm = json_string_value(json_object_get(root, "layer_norm"));
    const json_t *factor = json_object_get(root, "ffn_expansion_factor");
    size_t in = 0, out = 0;

    config->clean = -1;
    if (!json_is_object(root)) return bad(env, name, "the configuration is not a JSON object");
    if (!arch) return bad(env, name, "the configuration names no arch");
    if (strcmp(arch, "resmap") == 0)
        config->arch = RSM_ARCH_RESMAP;
    else if (strcmp(arch, "restormer") == 0)
        config->arch = RSM_ARCH_RESTORMER;
    else
        return bad(env, name, "the architecture %.60s is unknown", arch);

    RSM_TRY(read_size(env, name, "dim", json_object_get(root, "dim"), 2, 1024, &config->dim));
    if (config->dim % 2 != 0) return bad(env, name, "the configuration's dim is odd");
    RSM_TRY(read_four(env, name, "num_blocks", json_object_get(root, "num_blocks"), 64, config->num_blocks));
    RSM_TRY(read_size(env, name, "num_refinement_blocks", json_object_get(root, "num_refinement_blocks"), 1,
                      64, &config->num_refinement_blocks));
    RSM_TRY(read_four(env, name, "heads", json_object_get(root, "heads"), 8192, config->heads));
    for (size_t i = 0; i < 4; i++)
        if ((config->dim << i) % config->heads[i] != 0)
            return bad(env, name, "the %zu channels of level %zu do not divide into %zu heads",
                       config->dim << i, i + 1, config->heads[i]);

    config->ffn_expansion_factor = json_number_value(factor);
    if (!json_is_number(factor) ||
        !(config->ffn_expansion_factor > 0 && config->ffn_expansion_factor <= 16) ||
        rsm_config_hidden(config, config->dim) < 1)
        return bad(env, name,
                   "the configuration's ffn_expansion_factor is not a number above 0 and up to 16 that gives "
                   "at least one hidden channel");
    if (!layer_norm || (strcmp(layer_norm, "BiasFree") != 0 && strcmp(layer_norm, "WithBias") != 0))
        return bad(env, name, "the configuration's layer_norm is neither BiasFree nor WithBias");
    config->norm_with_bias = strcmp(layer_norm, "WithBias") == 0;

    RSM_TRY(read_size(env, name, "in_channels", json_object_get(root, "in_channels"), 1, 1024, &in));
    RSM_TRY(read_size(env, name, "out_channels", json_object_get(root, "out_channels"), 1, 1024, &out));
    if (in != out || (in != 1 && in != 3))
        return bad(env, name,
                   "%zu channels in and %zu out cannot be fed with a scan: only 1 and 1, or 3 and 3", in,
                   out);
    config->in_channels = in;
    config->out_channels = out;

    if (config->arch == RSM_ARCH_RESTORMER) return RESMAP_OK;
    RSM_TRY(read_size(env, name, "text_dim", json_object_get(root, "text_dim"), 1, MAX_TEXT_DIM,
                      &config->text_dim));
    RSM_TRY(read_classes(env, name, json_object_get(root, "classes"), config));
    RSM_TRY(read_views(env, name, root, config));
    return read_evidence(env, name, root, config);
}

/* ---- The tensors against the configuration ---- */

static resmap_status check_finite(rsm_env *env, const char *name, const rsm_tensor *tensor)
{
    size_t size = tensor->dtype == RSM_F32 ? 4 : 2;
    unsigned mask = tensor->dtype == RSM_F16 ? 0x7C00 : 0x7F80; /* the exponent, in the two high bytes */

    for (size_t i = 0; i < tensor->count; i++) {
        const unsigned char *high = tensor->data + (i + 1) * size - 2;

        if (((unsigned)high[0] & (mask & 0xFF)) == (mask & 0xFF) &&
            ((unsigned)high[1] & mask >> 8) == mask >> 8)
            return bad(env, name, "tensor %.200s holds a number that is not finite", tensor->name);
    }
    return RESMAP_OK;
}

static void format_shape(size_t dims, const size_t shape[4], char text[128])
{
    size_t used = 1;

    strcpy(text, "[");
    for (size_t i = 0; i < dims; i++)
        used += (size_t)snprintf(text + used, 128 - used, "%s%zu", i ? ", " : "", shape[i]);
    snprintf(text + used, 128 - used, "]");
}

static resmap_status check_tensor(void *data, const char *tensor_name, size_t dims, const size_t shape[4])
{
    resmap_model *model = data;
    const rsm_tensor *tensor = rsm_safetensors_find(&model->file, tensor_name);

    if (!tensor) return bad(model->env, model->name, "tensor %s is missing", tensor_name);
    if (tensor->dims != dims || memcmp(tensor->shape, shape, 4 * sizeof *shape) != 0) {
        char is[128], wanted[128];

        format_shape(tensor->dims, tensor->shape, is);
        format_shape(dims, shape, wanted);
        return bad(model->env, model->name, "tensor %s is %s and should be %s", tensor_name, is, wanted);
    }
    if (tensor->dtype == RSM_I32)
        return bad(model->env, model->name, "tensor %s has dtype I32, which weights cannot have",
                   tensor_name);
    RSM_TRY(check_finite(model->env, model->name, tensor));
    model->parameter_count += tensor->count;
    return RESMAP_OK;
}

static int32_t prompt_class(const rsm_tensor *classes, size_t i)
{
    const unsigned char *p = classes->data + 4 * i;
    uint32_t bits = (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
    int32_t value;

    memcpy(&value, &bits, sizeof value);
    return value;
}

static resmap_status check_prompts(resmap_model *model)
{
    const rsm_config *config = &model->config;
    const rsm_tensor *features = rsm_safetensors_find(&model->file, "prompts.features");
    const rsm_tensor *classes = rsm_safetensors_find(&model->file, "prompts.class");
    size_t group[RESMAP_MAX_CLASSES] = {0};

    if (!features || !classes)
        return bad(model->env, model->name, "tensor prompts.%s is missing", features ? "class" : "features");
    if (features->dims != 2 || features->shape[1] != config->text_dim || features->dtype == RSM_I32)
        return bad(model->env, model->name, "prompts.features is not a matrix of numbers %zu wide",
                   config->text_dim);
    if (classes->dims != 1 || classes->dtype != RSM_I32 || classes->count != features->shape[0])
        return bad(model->env, model->name, "prompts.class is not one I32 for each row of prompts.features");
    RSM_TRY(check_finite(model->env, model->name, features));
    for (size_t i = 0; i < classes->count; i++) {
        int32_t c = prompt_class(classes, i);

        if (c < 0 || (size_t)c >= config->class_count)
            return bad(model->env, model->name, "prompts.class names class %ld, which does not exist",
                       (long)c);
        group[c]++;
    }
    for (size_t c = 0; c < config->class_count; c++)
        if (group[c] == 0 && (int)c != config->clean)
            return bad(model->env, model->name, "class %s has no prompt", config->classes[c]);
    return RESMAP_OK;
}

static resmap_status count_tensor(void *data, const char *tensor_name, size_t dims, const size_t shape[4])
{
    size_t *known = data;

    (void)tensor_name;
    (void)dims;
    (void)shape;
    ++*known;
    return RESMAP_OK;
}

/* What the architecture does not have is left alone, but for the branch of Restormer's that would change its
 * output. */
static resmap_status check_extra(resmap_model *model)
{
    size_t known = 0;

    if (rsm_safetensors_find(&model->file, "skip_conv.weight"))
        return bad(model->env, model->name,
                   "a dual-pixel Restormer (skip_conv.weight), which takes two images, cannot be used");
    RSM_TRY(rsm_model_visit(&model->config, count_tensor, &known));
    known += model->config.arch == RSM_ARCH_RESMAP ? 2 : 0;
    if (model->file.tensor_count > known)
        rsm_log(model->env, RESMAP_LOG_WARNING,
                "%s: %zu tensors that the architecture does not have are ignored", model->name,
                model->file.tensor_count - known);
    return RESMAP_OK;
}

static resmap_status check_model(resmap_model *model)
{
    rsm_env *env = model->env;
    rsm_config *config = &model->config;
    resmap_status status = RESMAP_OK;
    json_error_t error;
    json_t *root = NULL, *training;

    if (!model->file.config)
        return bad(env, model->name,
                   "holds no resmap.config (weights/convert.py makes a file of a PyTorch checkpoint)");
    root = json_loads(model->file.config, JSON_REJECT_DUPLICATES, &error);
    if (!root) {
        status = json_error_code(&error) == json_error_out_of_memory
                     ? rsm_no_memory(env, strlen(model->file.config))
                     : bad(env, model->name, "resmap.config is not JSON: %s", error.text);
        goto done;
    }
    RSM_CHECK(read_config(env, model->name, root, config));
    training = json_object_get(root, "training");
    if (training) {
        model->training = json_dumps(training, JSON_ENCODE_ANY);
        if (!model->training) {
            status = rsm_no_memory(env, strlen(model->file.config));
            goto done;
        }
    }

    if (config->arch == RSM_ARCH_RESMAP) {
        const rsm_tensor *hidden = rsm_safetensors_find(&model->file, "classifier.fc1.bias");

        if (!hidden) {
            status = bad(env, model->name, "tensor classifier.fc1.bias is missing");
            goto done;
        }
        config->classifier_hidden = hidden->count;
        if (hidden->count < 1 || hidden->count > 65536) {
            status = bad(env, model->name, "tensor classifier.fc1.bias is not of 1 to 65536 numbers");
            goto done;
        }
    }
    RSM_CHECK(rsm_model_visit(config, check_tensor, model));
    if (config->arch == RSM_ARCH_RESMAP) RSM_CHECK(check_prompts(model));
    RSM_CHECK(check_extra(model));

done:
    json_decref(root);
    return status;
}

resmap_status rsm_model_create(rsm_env *env, const char *name, unsigned char *bytes, size_t size,
                               resmap_model **model)
{
    resmap_status status = RESMAP_OK;
    resmap_model *m = calloc(1, sizeof *m);

    if (m) m->name = rsm_strdup(name);
    if (!m || !m->name) {
        free(bytes);
        free(m);
        return rsm_no_memory(env, sizeof *m);
    }
    m->env = env;
    RSM_CHECK(rsm_safetensors_parse(env, name, bytes, size, &m->file));
    RSM_CHECK(check_model(m));
    *model = m;
    return RESMAP_OK;

done:
    rsm_model_free(m);
    return status;
}

void rsm_model_free(resmap_model *model)
{
    if (!model) return;
    for (size_t i = 0; i < model->config.class_count; i++) free(model->config.classes[i]);
    rsm_safetensors_clear(&model->file);
    free(model->training);
    free(model->name);
    free(model->path);
    free(model);
}

/* ---- Files ---- */

static int is_file_name(const char *name)
{
    size_t length = strlen(name), suffix = sizeof SUFFIX - 1;

    return strchr(name, '/') || (length >= suffix && strcmp(name + length - suffix, SUFFIX) == 0);
}

resmap_status rsm_model_find(rsm_env *env, const char *name, char **path)
{
    const char *folders = getenv("RESMAP_WEIGHTS_PATH");
    char *found;

    if (is_file_name(name)) {
        found = rsm_strdup(name);
        if (!found) return rsm_no_memory(env, strlen(name) + 1);
        *path = found;
        return RESMAP_OK;
    }
    if (!folders) folders = "";
    for (int last = 0; !last;) {
        size_t length = strcspn(folders, ":");
        const char *folder = folders;

        if (folders[0] == '\0') { /* after the variable's folders, the installed one */
            folder = RESMAP_WEIGHTS_DIR;
            length = strlen(folder);
            last = 1;
        }
        if (length > 0) {
            struct stat info;

            if (length > 65536)
                return rsm_fail(env, RESMAP_BAD_FILE, "RESMAP_WEIGHTS_PATH: a folder's name is too long");
            found = rsm_format("%.*s/%s" SUFFIX, (int)length, folder, name);
            if (!found) return rsm_no_memory(env, length + strlen(name));
            if (stat(found, &info) == 0) {
                *path = found;
                return RESMAP_OK;
            }
            free(found);
        }
        if (!last) folders += length + (folders[length] == ':');
    }
    return rsm_fail(env, RESMAP_BAD_FILE,
                    "model %s: not found in $RESMAP_WEIGHTS_PATH or %s (a file's name has a slash or "
                    "ends in " SUFFIX ")",
                    name, RESMAP_WEIGHTS_DIR);
}

resmap_status rsm_model_open(rsm_env *env, const char *name, resmap_model **model)
{
    resmap_status status;
    resmap_model *m;
    char *path = NULL, *asked = NULL;
    unsigned char *bytes = NULL;
    size_t size = 0;

    RSM_TRY(rsm_model_find(env, name, &path));
    asked = rsm_strdup(name);
    if (!asked) RSM_CHECK(rsm_no_memory(env, strlen(name) + 1));
    RSM_CHECK(rsm_file_read(env, path, MAX_FILE, &bytes, &size));
    RSM_CHECK(rsm_model_create(env, path, bytes, size, &m));
    free(m->name);               /* messages so far name the file, reports what was asked for */
    m->name = asked;
    m->path = path;
    asked = path = NULL;
    *model = m;

done:
    free(asked);
    free(path);
    return status;
}

/* ---- Prompts ---- */

size_t rsm_model_prompt_count(const resmap_model *model, int class_index)
{
    const rsm_tensor *classes = rsm_safetensors_find(&model->file, "prompts.class");
    size_t group = 0;

    for (size_t i = 0; classes && i < classes->count; i++) group += prompt_class(classes, i) == class_index;
    return group;
}

void rsm_model_prompt(const resmap_model *model, int class_index, int sample, uint64_t seed, uint64_t draw,
                      float *feature)
{
    const rsm_tensor *features = rsm_safetensors_find(&model->file, "prompts.features");
    const rsm_tensor *classes = rsm_safetensors_find(&model->file, "prompts.class");
    size_t width = model->config.text_dim, group = rsm_model_prompt_count(model, class_index), index = 0,
           used = 0;
    size_t member = 0, size = features->dtype == RSM_F32 ? 4 : 2;
    double sum[MAX_TEXT_DIM] = {0};
    float row[MAX_TEXT_DIM];

    if (sample && group > 0) {
        const uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
        const uint32_t counter[4] = {(uint32_t)draw, (uint32_t)(draw >> 32), (uint32_t)class_index, 0};
        uint32_t random[4];

        rsm_philox(key, counter, random);
        member = random[0] % group;
    }
    for (size_t i = 0; i < classes->count; i++) {
        const rsm_tensor line = {
            .dtype = features->dtype, .count = width, .data = features->data + i * width * size};

        if (prompt_class(classes, i) != class_index) continue;
        if (sample && index++ != member) continue;
        rsm_tensor_to_float(&line, row);
        for (size_t j = 0; j < width; j++) sum[j] += row[j];
        used++;
    }
    for (size_t j = 0; j < width; j++) feature[j] = used > 0 ? (float)(sum[j] / (double)used) : 0.0f;
}

void rsm_model_some_prompt(const resmap_model *model, float *feature)
{
    rsm_model_prompt(model, model->config.clean == 0 ? 1 : 0, 0, 0, 0, feature);
}
