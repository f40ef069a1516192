/* Cutting a volume into the slices that the 2-D network sees. */
#include <math.h>
#include <string.h>

#include "image/image.h"

static const char *const plane_names[3] = {"sagittal", "coronal", "axial"};   /* across world x, y, z */

/* Two lengths or cosines from a float32 header count as equal within this. */
#define ROUNDING 1e-5

/* |cosine| between array axis a and world axis w. */
static double cosine(const struct resmap_image *image, int a, int w)
{
    const double *m = image->voxel_to_world;
    double length = sqrt(m[a] * m[a] + m[4 + a] * m[4 + a] + m[8 + a] * m[8 + a]);
    return length > 0 ? fabs(m[4 * w + a]) / length : 0;
}

/* The array axis that runs most along world axis w; the lower-numbered of equals. */
static int axis_along(const struct resmap_image *image, int w)
{
    int best = 0;
    for (int a = 1; a < 3; a++)
        if (cosine(image, a, w) > cosine(image, best, w) + ROUNDING) best = a;
    return best;
}

static int world_axis_of(const struct resmap_image *image, int a)
{
    int best = 2;                /* axial among equals */
    for (int w = 1; w >= 0; w--)
        if (cosine(image, a, w) > cosine(image, a, best) + ROUNDING) best = w;
    return best;
}

/* The array axis across which the scan was acquired, or -1 when the voxels do not tell. */
static int acquisition_axis(const struct resmap_image *image)
{
    int flat = -1, flats = 0, largest = 0, smallest = 0;
    const double *mm = image->voxel_mm;
    for (int a = 0; a < 3; a++)
        if (image->shape[a] == 1) {
            flat = a;
            flats++;
        }
    if (flats == 1) return flat; /* one slice: whatever its thickness is said to be */
    for (int a = 1; a < 3; a++) {
        if (mm[a] > mm[largest] * (1 + ROUNDING)) largest = a;
        if (mm[a] < mm[smallest]) smallest = a;
    }
    return mm[largest] >= 1.5 * mm[smallest] * (1 - ROUNDING) ? largest : -1;
}

resmap_status rsm_slicing_choose(rsm_env *env, const struct resmap_image *image, resmap_plane plane,
                                 rsm_slicing *slicing)
{
    int axis, world;
    switch (plane) {
    case RESMAP_PLANE_AUTO:
        axis = acquisition_axis(image);
        world = axis < 0 ? 2 : world_axis_of(image, axis);
        if (axis < 0) axis = axis_along(image, world);
        break;
    case RESMAP_PLANE_AXIAL: axis = axis_along(image, world = 2); break;
    case RESMAP_PLANE_CORONAL: axis = axis_along(image, world = 1); break;
    case RESMAP_PLANE_SAGITTAL: axis = axis_along(image, world = 0); break;
    default: return rsm_fail(env, RESMAP_BAD_ARGUMENT, "plane: no such plane: %d", (int)plane);
    }
    slicing->plane = plane_names[world];
    slicing->slice_axis = axis;
    slicing->column_axis = axis == 0 ? 1 : 0;
    slicing->row_axis = axis == 2 ? 1 : 2;
    slicing->slices = image->shape[slicing->slice_axis];
    slicing->height = image->shape[slicing->row_axis];
    slicing->width = image->shape[slicing->column_axis];
    return RESMAP_OK;
}

/* Distance in voxels between neighbours along each of the three axes of `slicing`. */
typedef struct strides {
    size_t slice, row, column;
} strides;

static strides find_strides(const rsm_slicing *slicing, const size_t shape[4])
{
    const size_t step[3] = {1, shape[0], shape[0] * shape[1]};
    return (strides){step[slicing->slice_axis], step[slicing->row_axis], step[slicing->column_axis]};
}

void rsm_slice_get(const rsm_slicing *slicing, const size_t shape[4], const float *data, size_t s,
                   float *slice)
{
    const strides step = find_strides(slicing, shape);
    for (size_t y = 0; y < slicing->height; y++) {
        const float *row = data + s * step.slice + y * step.row;
        for (size_t x = 0; x < slicing->width; x++) *slice++ = row[x * step.column];
    }
}

void rsm_slice_put(const rsm_slicing *slicing, const size_t shape[4], float *data, size_t s,
                   const float *slice)
{
    const strides step = find_strides(slicing, shape);
    for (size_t y = 0; y < slicing->height; y++) {
        float *row = data + s * step.slice + y * step.row;
        for (size_t x = 0; x < slicing->width; x++) row[x * step.column] = *slice++;
    }
}

/* Where index i beyond the end of an axis of `length` is taken from: 0 1 2 [1 0 1 2 1 …]. */
static size_t reflect(size_t i, size_t length)
{
    if (length == 1) return 0;
    i %= 2 * (length - 1);
    return i < length ? i : 2 * (length - 1) - i;
}

void rsm_slice_pad(const float *slice, size_t height, size_t width, float *padded, size_t padded_height,
                   size_t padded_width)
{
    for (size_t y = 0; y < padded_height; y++) {
        const float *from = slice + reflect(y, height) * width;
        float *to = padded + y * padded_width;
        memcpy(to, from, width * sizeof *to);
        for (size_t x = width; x < padded_width; x++) to[x] = from[reflect(x, width)];
    }
}
