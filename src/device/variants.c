/* The table of what can be tuned: operations, and the variants of each that tuning may try. */
#include "device/device_private.h"

#define COUNT(table) (sizeof(table) / sizeof(table)[0])

/* By rule CLBlast where it is right, on GPUs. {RSM_GEMM_VECTOR, WIDTH, ROWS}, {RSM_GEMM_GROUP, GROUP},
 * {RSM_GEMM_SUB_GROUP, SUB_GROUP}: see cl/gemm.cl. */
static const rsm_variant gemm[] = {
    {"group-16", RSM_ON_GPU | RSM_QUICK, {RSM_GEMM_GROUP, 16}},
    {"group-8", RSM_ON_GPU | RSM_QUICK, {RSM_GEMM_GROUP, 8}},
    {"sub-group-16", RSM_ON_GPU | RSM_SUB_GROUPS | RSM_QUICK, {RSM_GEMM_SUB_GROUP, 16}},
    {"sub-group-8", RSM_ON_GPU | RSM_SUB_GROUPS, {RSM_GEMM_SUB_GROUP, 8}},
    {"sub-group-32", RSM_ON_GPU | RSM_SUB_GROUPS, {RSM_GEMM_SUB_GROUP, 32}},
    {"vector-16x8", RSM_ON_CPU | RSM_QUICK, {RSM_GEMM_VECTOR, 16, 8}},
    {"vector-8x4", RSM_ON_CPU | RSM_QUICK, {RSM_GEMM_VECTOR, 8, 4}},
    {"vector-8x8", RSM_ON_CPU | RSM_QUICK, {RSM_GEMM_VECTOR, 8, 8}},
    {"vector-16x4", RSM_ON_CPU, {RSM_GEMM_VECTOR, 16, 4}},
    {"vector-16x2", RSM_ON_CPU, {RSM_GEMM_VECTOR, 16, 2}},
    {"vector-8x2", RSM_ON_CPU, {RSM_GEMM_VECTOR, 8, 2}},
    {"vector-4x4", RSM_ON_CPU, {RSM_GEMM_VECTOR, 4, 4}},
};

/* {vector, work-group, ROWS, rows a work-item of a CPU takes}; 0: as untuned. See cl/depthwise3x3.cl. */
static const rsm_variant depthwise[] = {
    {"rows-1", RSM_ON_CPU | RSM_ON_GPU, {0, 0, 1, 0}},
    {"rows-2", RSM_ON_CPU | RSM_ON_GPU, {0, 0, 2, 0}},
    {"rows-8", RSM_ON_GPU, {0, 0, 8, 0}},
    {"rows-4-of-32", RSM_ON_CPU, {0, 0, 4, 32}},
    {"vector-8-rows-4", RSM_ON_CPU, {8, 0, 4, 0}},
    {"group-32", RSM_ON_GPU, {0, 32, 0, 0}},
    {"group-128", RSM_ON_GPU, {0, 128, 0, 0}},
    {"group-256", RSM_ON_GPU, {0, 256, 0, 0}},
};
static const rsm_variant gate[] = {
    {"rows-2", RSM_ON_CPU | RSM_ON_GPU, {0, 0, 2, 0}},
    {"rows-4", RSM_ON_CPU, {0, 0, 4, 0}},
    {"rows-1", RSM_ON_GPU, {0, 0, 1, 0}},
    {"rows-1-of-32", RSM_ON_CPU, {0, 0, 1, 32}},
    {"vector-8-rows-1", RSM_ON_CPU, {8, 0, 1, 0}},
    {"group-32", RSM_ON_GPU, {0, 32, 0, 0}},
    {"group-128", RSM_ON_GPU, {0, 128, 0, 0}},
    {"group-256", RSM_ON_GPU, {0, 256, 0, 0}},
};

/* {vector, work-group, BLOCK}: see cl/layer_norm.cl. */
static const rsm_variant layer_norm[] = {
    {"block-2", RSM_ON_CPU | RSM_ON_GPU, {0, 0, 2}},
    {"block-4", RSM_ON_CPU, {0, 0, 4}},
    {"block-16", RSM_ON_CPU, {0, 0, 16}},
    {"vector-8-block-8", RSM_ON_CPU, {8, 0, 8}},
    {"group-32", RSM_ON_GPU, {0, 32, 0}},
    {"group-128", RSM_ON_GPU, {0, 128, 0}},
    {"group-256", RSM_ON_GPU, {0, 256, 0}},
};

/* {vector, work-group, TILE}: see cl/attention.cl. */
static const rsm_variant attention[] = {
    {"tile-2", RSM_ON_CPU | RSM_ON_GPU, {0, 0, 2}},
    {"tile-3", RSM_ON_CPU | RSM_ON_GPU, {0, 0, 3}},
    {"tile-4", RSM_ON_CPU, {0, 0, 4}},
    {"tile-5", RSM_ON_CPU, {0, 0, 5}},
    {"vector-8-tile-3", RSM_ON_CPU, {8, 0, 3}},
    {"group-32", RSM_ON_GPU, {0, 32, 4}},
    {"group-128", RSM_ON_GPU, {0, 128, 4}},
};

/* {vector, work-group, CHANNELS, ROWS}: see cl/conv3x3.cl; CHANNELS 0: im2col and a product. */
static const rsm_variant conv3x3[] = {
    {"direct-4x4", RSM_ON_GPU | RSM_QUICK, {0, 0, 4, 4}},
    {"direct-8x2", RSM_ON_GPU | RSM_QUICK, {0, 0, 8, 2}},
    {"direct-8x3", RSM_ON_CPU, {0, 0, 8, 3}},
    {"direct-4x2", RSM_ON_CPU | RSM_ON_GPU, {0, 0, 4, 2}},
    {"direct-4x6", RSM_ON_CPU, {0, 0, 4, 6}},
    {"vector-8-direct-4x3", RSM_ON_CPU, {8, 0, 4, 3}},
    {"im2col", RSM_ON_CPU | RSM_ON_GPU, {0, 0, 0, 0}},
};

/* {MiB of scratch memory that an operation's band of rows may take}. */
static const rsm_variant bands[] = {
    {"16-MiB", RSM_ON_CPU | RSM_QUICK, {16}},
    {"4-MiB", RSM_ON_CPU | RSM_QUICK, {4}},
    {"32-MiB", RSM_ON_CPU, {32}},
    {"64-MiB", RSM_ON_CPU | RSM_ON_GPU, {64}},
    {"128-MiB", RSM_ON_GPU, {128}},
    {"512-MiB", RSM_ON_GPU, {512}},
};

/* {number of the set in clblast.c}. */
static const rsm_variant clblast[] = {
    {"direct-16", RSM_ON_GPU, {0}},
    {"direct-32", RSM_ON_GPU, {1}},
    {"indirect-64", RSM_ON_GPU, {2}},
    {"indirect-128", RSM_ON_GPU, {3}},
};

static const struct {
    const char *name;
    const rsm_variant *variants;
    size_t count;
} tunables[RSM_TUNABLES] = {
    [RSM_TUNE_GEMM_FEW] = {"gemm-few-rows", gemm, COUNT(gemm)},
    [RSM_TUNE_GEMM_SHALLOW] = {"gemm-shallow", gemm, COUNT(gemm)},
    [RSM_TUNE_GEMM_MIDDLE] = {"gemm-middle", gemm, COUNT(gemm)},
    [RSM_TUNE_GEMM_DEEP] = {"gemm-deep", gemm, COUNT(gemm)},
    [RSM_TUNE_DEPTHWISE] = {"depthwise3x3", depthwise, COUNT(depthwise)},
    [RSM_TUNE_GATE] = {"depthwise3x3-gate", gate, COUNT(gate)},
    [RSM_TUNE_LAYER_NORM] = {"layer-norm", layer_norm, COUNT(layer_norm)},
    [RSM_TUNE_ATTENTION] = {"attention", attention, COUNT(attention)},
    [RSM_TUNE_CONV_THIN] = {"conv3x3-thin", conv3x3, COUNT(conv3x3)},
    [RSM_TUNE_CONV] = {"conv3x3", conv3x3, COUNT(conv3x3)},
    [RSM_TUNE_BANDS] = {"bands", bands, COUNT(bands)},
    [RSM_TUNE_CLBLAST] = {"clblast", clblast, COUNT(clblast)},
};

const char *rsm_tunable_name(rsm_tunable what)
{
    return tunables[what].name;
}

const rsm_variant *rsm_variants(rsm_tunable what, size_t *count)
{
    *count = tunables[what].count;
    return tunables[what].variants;
}

int rsm_variant_suits(const rsm_device *device, const rsm_variant *variant)
{
    if (variant->flags & RSM_SUB_GROUPS && !(device->sub_groups & (unsigned)variant->values[1])) return 0;
    return (variant->flags & (device->cpu ? RSM_ON_CPU : RSM_ON_GPU)) != 0;
}

const rsm_variant *rsm_tuned(const rsm_device *device, rsm_tunable what)
{
    return device->tuned[what];
}

void rsm_tuned_set(rsm_device *device, rsm_tunable what, const rsm_variant *variant)
{
    device->tuned[what] = variant;
}
