/* What `resmap model` says of a weights file. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/json.h"
#include "model/model.h"

static json_t *four(const size_t values[4])
{
    return json_pack("[I, I, I, I]", (json_int_t)values[0], (json_int_t)values[1], (json_int_t)values[2],
                     (json_int_t)values[3]);
}

static json_t *evidence(const rsm_config *config)
{
    if (!(config->evidence_weight > 0)) return json_null();
    return json_pack("{s:o, s:o}", "weight", rsm_json_number(config->evidence_weight), "spread", rsm_json_number(config->evidence_spread));
}

/* What only the whole architecture has; 0, or -1 when memory ran out. */
static int add_classes(const resmap_model *model, json_t *root)
{
    const rsm_config *config = &model->config;
    json_t *classes = json_array(), *prompts = json_object(), *pixels = json_object();
    int failed = 0;

    for (size_t c = 0; c < config->class_count; c++) {
        failed |= json_array_append_new(classes, json_string(config->classes[c]));
        failed |= json_object_set_new(prompts, config->classes[c],
                                      json_integer((json_int_t)rsm_model_prompt_count(model, (int)c)));
        if (config->class_pixels[c])
            failed |= json_object_set_new(pixels, config->classes[c],
                                          json_integer((json_int_t)config->class_pixels[c]));
    }
    failed |= json_object_set_new(root, "text_dim", json_integer((json_int_t)config->text_dim));
    failed |= json_object_set_new(root, "classes", classes);
    failed |= json_object_set_new(root, "prompts", prompts);
    failed |= json_object_set_new(root, "class_pixels", pixels);
    failed |= json_object_set_new(root, "field_order", json_integer((json_int_t)config->field_order));
    failed |= json_object_set_new(root, "field_passes", json_integer((json_int_t)config->field_passes));
    failed |= json_object_set_new(root, "field_evidence", evidence(config));
    failed |=
        json_object_set_new(root, "classifier_views", json_integer((json_int_t)config->classifier_views));
    failed |=
        json_object_set_new(root, "classifier_levels", json_integer((json_int_t)config->classifier_levels));
    failed |=
        json_object_set_new(root, "classifier_hidden", json_integer((json_int_t)config->classifier_hidden));
    return failed;
}

static json_t *describe(const resmap_model *model)
{
    const rsm_config *config = &model->config;
    json_t *root =
        json_pack("{s:o, s:o, s:s, s:I, s:o, s:I, s:o, s:o, s:s, s:I, s:I, s:I, s:I}", "name",
                  rsm_json_string(model->name), "sha256", rsm_json_string(model->file.sha256), "arch",
                  config->arch == RSM_ARCH_RESMAP ? "resmap" : "restormer", "dim", (json_int_t)config->dim,
                  "num_blocks", four(config->num_blocks), "num_refinement_blocks",
                  (json_int_t)config->num_refinement_blocks, "heads", four(config->heads),
                  "ffn_expansion_factor", rsm_json_number(config->ffn_expansion_factor), "layer_norm",
                  config->norm_with_bias ? "WithBias" : "BiasFree", "in_channels",
                  (json_int_t)config->in_channels, "out_channels", (json_int_t)config->out_channels,
                  "parameters", (json_int_t)model->parameter_count, "bytes", (json_int_t)model->file.size);
    int failed = !root;

    if (!failed && config->arch == RSM_ARCH_RESMAP) failed = add_classes(model, root);
    if (!failed) /* already checked to be JSON when the file was opened */
        failed = json_object_set_new(root, "training",
                                     model->training ? json_loads(model->training, JSON_DECODE_ANY, NULL)
                                                     : json_null());
    if (!failed) return root;
    json_decref(root);
    return NULL;
}

/* 26,109,076 */
static const char *grouped(size_t value, char text[32])
{
    char digits[24];
    size_t used = 0, length = (size_t)snprintf(digits, sizeof digits, "%zu", value);

    for (size_t i = 0; i < length; i++) {
        if (i > 0 && (length - i) % 3 == 0) text[used++] = ',';
        text[used++] = digits[i];
    }
    text[used] = '\0';
    return text;
}

static void print_classes(FILE *out, const resmap_model *model)
{
    const rsm_config *config = &model->config;

    fprintf(out, "  classifier    %zu hidden units, %s%s\n", config->classifier_hidden,
            config->classifier_views == 2 ? "sees the full and the shrunken slice" : "sees the full slice",
            config->classifier_levels == 4 ? ", at all four levels" : "");
    if (config->evidence_weight > 0)
        fprintf(out, "                and hears, with weight %g, whether the volume's field varies by more than %g\n", config->evidence_weight,
                config->evidence_spread);
    fprintf(out, "  prompts       features of %zu numbers\n", config->text_dim);
    for (size_t c = 0; c < config->class_count; c++) {
        fprintf(out, "  class %zu       %s: %zu prompts", c, config->classes[c],
                rsm_model_prompt_count(model, (int)c));
        if (config->class_pixels[c])
            fprintf(out, ", restored as a field at %zu pixels", config->class_pixels[c]);
        if (config->class_pixels[c] && config->field_order)
            fprintf(out, ", of order %zu over the volume, in %zu %s", config->field_order, config->field_passes,
                    config->field_passes == 1 ? "pass" : "passes at most");
        fprintf(out, "\n");
    }
}

/* The training record: one line for each of its members. */
static void print_training(FILE *out, json_t *training)
{
    const char *key;
    json_t *value;

    if (!training) {
        fprintf(out, "  training      not recorded\n");
        return;
    }
    fprintf(out, "  training record\n");
    json_object_foreach(training, key, value)
    {
        char *text = json_is_string(value) ? NULL : json_dumps(value, JSON_ENCODE_ANY);

        fprintf(out, "    %s: %s\n", key,
                json_is_string(value) ? json_string_value(value)
                : text                ? text
                                      : "");
        free(text);
    }
    if (!json_is_object(training)) {
        char *text = json_dumps(training, JSON_ENCODE_ANY);

        fprintf(out, "    %s\n", text ? text : "");
        free(text);
    }
}

static void print_model(FILE *out, const resmap_model *model, json_t *training)
{
    const rsm_config *config = &model->config;
    const size_t *n = config->num_blocks, *h = config->heads;
    char bytes[32], parameters[32];

    fprintf(out, "%s\n", model->name);
    fprintf(out, "  file          %s bytes, sha256 %s\n", grouped(model->file.size, bytes),
            model->file.sha256);
    fprintf(out, "  architecture  %s\n",
            config->arch == RSM_ARCH_RESMAP ? "resmap: Restormer with classifier and textual prompt fusion"
                                            : "restormer: one pass, no classifier, no prompts");
    fprintf(out, "  parameters    %s\n", grouped(model->parameter_count, parameters));
    fprintf(out, "  channels      %zu in and out, %zu at full resolution\n", config->in_channels,
            config->dim);
    fprintf(out, "  blocks        %zu, %zu, %zu, %zu and %zu of refinement\n", n[0], n[1], n[2], n[3],
            config->num_refinement_blocks);
    fprintf(out, "  heads         %zu, %zu, %zu, %zu\n", h[0], h[1], h[2], h[3]);
    fprintf(out, "  feed-forward  %g times the channels\n", config->ffn_expansion_factor);
    fprintf(out, "  layer norm    %s\n", config->norm_with_bias ? "WithBias" : "BiasFree");
    if (config->arch == RSM_ARCH_RESMAP) print_classes(out, model);
    print_training(out, training);
}

resmap_status rsm_model_describe(rsm_env *env, const resmap_model *model, int json, char **text)
{
    json_t *training;
    FILE *out;
    char *block = NULL;
    size_t size = 0;
    int failed;

    if (json) return rsm_json_text(env, describe(model), text);

    out = open_memstream(&block, &size);
    if (!out) return rsm_fail(env, RESMAP_NO_MEMORY, "memory: not enough to describe a model");
    training = model->training ? json_loads(model->training, JSON_DECODE_ANY, NULL) : NULL;
    print_model(out, model, training);
    json_decref(training);
    failed = ferror(out);
    if (fclose(out) != 0 || failed) {
        free(block);
        return rsm_fail(env, RESMAP_NO_MEMORY, "memory: not enough to describe a model");
    }
    *text = block;
    return RESMAP_OK;
}
