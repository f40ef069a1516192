/* crop COUNT IN OUT: keeps the central COUNT axial slices of a NIfTI file, for the demonstration of
 * ./quickstart. Built with the tree, not installed. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "resmap.h"

/* Copies `count` slices of `axis` from `first` on into fresh memory. */
static float *cut(const float *data, const size_t shape[4], int axis, size_t first, size_t count)
{
    size_t inner = 1, outer = 1;
    for (int i = 0; i < axis; i++) inner *= shape[i];
    for (int i = axis + 1; i < 4; i++) outer *= shape[i];
    float *out = malloc(inner * count * outer * sizeof *out);
    if (!out) return NULL;
    for (size_t o = 0; o < outer; o++)
        memcpy(out + o * inner * count, data + (o * shape[axis] + first) * inner,
               inner * count * sizeof *out);
    return out;
}

int main(int argc, char **argv)
{
    char *end = NULL;
    long wanted = argc == 4 ? strtol(argv[1], &end, 10) : 0;
    if (wanted < 1 || *end) {
        fprintf(stderr, "usage: crop COUNT IN OUT\n");
        return 2;
    }

    int failed = 1;
    resmap_context *context = NULL;
    resmap_image *in = NULL, *out = NULL;
    float *data = NULL;
    if (resmap_context_create(&context) != RESMAP_OK || resmap_image_read(context, argv[2], &in) != RESMAP_OK)
        goto done;

    /* Axial: across the axis that runs nearest to inferior-superior. */
    const double *affine = resmap_image_voxel_to_world(in);
    int axis = 0;
    double best = -1;
    for (int i = 0; i < 3; i++) {
        double length =
            sqrt(affine[i] * affine[i] + affine[4 + i] * affine[4 + i] + affine[8 + i] * affine[8 + i]);
        double cosine = length > 0 ? fabs(affine[8 + i]) / length : 0;
        if (cosine > best) {
            best = cosine;
            axis = i;
        }
    }

    size_t shape[4];
    memcpy(shape, resmap_image_shape(in), sizeof shape);
    size_t count = (size_t)wanted < shape[axis] ? (size_t)wanted : shape[axis];
    size_t first = (shape[axis] - count) / 2;
    double moved[12];
    memcpy(moved, affine, sizeof moved);
    for (int row = 0; row < 3; row++) moved[4 * row + 3] += affine[4 * row + axis] * (double)first;
    data = cut(resmap_image_data_const(in), shape, axis, first, count);
    if (!data) {
        fprintf(stderr, "crop: out of memory\n");
        goto done;
    }
    shape[axis] = count;
    failed = resmap_image_create(context, data, shape, moved, &out) != RESMAP_OK ||
             resmap_image_write(context, out, argv[3], 1) != RESMAP_OK;

done:
    if (failed && context && *resmap_error(context)) fprintf(stderr, "crop: %s\n", resmap_error(context));
    free(data);
    resmap_image_free(out);
    resmap_image_free(in);
    resmap_context_free(context);
    return failed;
}
