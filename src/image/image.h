/* Scans in and out: NIfTI, slices, intensity scaling, staged output files, the figure. */
#ifndef RSM_IMAGE_H
#define RSM_IMAGE_H

#include <stdio.h>

#include "core/env.h"

/* ---- nifti.c: the only file that knows nifticlib ---- */

struct resmap_image {
    char *path;                  /* of the file read, for messages; NULL for others */
    float *data;                 /* shape[0] * … * shape[3] values in real units */
    size_t shape[4];
    int dims;                    /* axes of the file (2, 3 or 4; trailing ones kept), for writing */
    double voxel_to_world[12];
    double voxel_mm[3];          /* edges, > 0 */
    struct rsm_nifti *header;    /* of the file read, to be written back (nifti.c); NULL for created images */
};

/* Reads a single-file NIfTI-1 or -2, plain or gzip by content, either byte order; slope and intercept applied, non-finite
 * voxels kept. RESMAP_BAD_FILE "PATH: reason" for everything the contract calls bad input; memory stays within a small
 * multiple of what the file can hold. Freed with resmap_image_free. */
resmap_status rsm_image_read(rsm_env *env, const char *path, struct resmap_image **image);
/* Fresh image with `like`'s geometry and undefined data. */
resmap_status rsm_image_like(rsm_env *env, const struct resmap_image *like, struct resmap_image **image);
/* Copies `data` (shape[0] * … values); voxel_to_world NULL: identity. RESMAP_BAD_ARGUMENT for a zero length, too large a
 * product, or a matrix that is not finite or singular. Freed with resmap_image_free. */
resmap_status rsm_image_create(rsm_env *env, const float *data, const size_t shape[4], const double voxel_to_world[12],
                               struct resmap_image **image);
/* Same grid: shape of axes 0-2 and voxel_to_world within 1e-3 mm. */
int rsm_image_same_grid(const struct resmap_image *a, const struct resmap_image *b);
/* RESMAP_BAD_FILE unless the mask is one frame on the image's grid. name: the image's, for the message. */
resmap_status rsm_image_check_mask(rsm_env *env, const struct resmap_image *mask, const struct resmap_image *image, const char *name);

/* ---- output.c: files that appear whole or not at all ---- */

/* A group of files written under temporary names in their folders and renamed together. */
typedef struct rsm_outputs rsm_outputs;
resmap_status rsm_outputs_create(rsm_env *env, int overwrite, rsm_outputs **outputs);
/* No output claimed from now on may be `path`, which is read; NULL: nothing. */
resmap_status rsm_outputs_spare(rsm_outputs *outputs, const char *path);
/* Refuses an existing `path` unless overwrite (checked again at commit), and one whose folder cannot be written. Nothing lies
 * there afterwards, so that nothing is left when a driver or the system ends the process during the work. */
resmap_status rsm_outputs_claim(rsm_outputs *outputs, const char *path);
/* A stream to write a claimed path with, under a temporary name beside it. */
resmap_status rsm_outputs_open(rsm_outputs *outputs, const char *path, FILE **stream);
/* Flushes, closes and checks every stream, then renames all; on failure removes everything it made. */
resmap_status rsm_outputs_commit(rsm_outputs *outputs);
/* Removes what was not committed. */
void rsm_outputs_free(rsm_outputs *outputs);
/* RESMAP_IO unless the name ends in .nii or .nii.gz: to be asked before the work, not after it. */
resmap_status rsm_image_check_name(rsm_env *env, const char *path);
/* Writes a NIfTI file (gz by the name `path`) into `stream`; polls for cancelling. */
resmap_status rsm_image_write_stream(rsm_env *env, const struct resmap_image *image, const char *path, FILE *stream);

/* ---- slices.c: planes ---- */

/* How a volume is cut into slices (contract: --plane). Axes are array axes; slice s, row y, column x of the network is voxel
 * with index s along slice_axis, y along row_axis (H), x along column_axis (W, the lower-numbered). */
typedef struct rsm_slicing {
    int slice_axis, row_axis, column_axis;
    size_t slices, height, width;
    const char *plane;           /* "axial", "coronal", "sagittal" */
} rsm_slicing;
resmap_status rsm_slicing_choose(rsm_env *env, const struct resmap_image *image, resmap_plane plane, rsm_slicing *slicing);
/* Copies slice s of the volume `data` (3 axes of shape) to / from a dense height x width array. */
void rsm_slice_get(const rsm_slicing *slicing, const size_t shape[4], const float *data, size_t s, float *slice);
void rsm_slice_put(const rsm_slicing *slicing, const size_t shape[4], float *data, size_t s, const float *slice);
/* Reflects (NumPy "reflect", repeated; edge value for length 1) to padded_height x padded_width on the high sides. */
void rsm_slice_pad(const float *slice, size_t height, size_t width, float *padded, size_t padded_height, size_t padded_width);

/* ---- scale.c: intensities (contract §4) ---- */

typedef struct rsm_scale {
    double lo, hi;
    double mean;                 /* the foreground is what lies above it */
} rsm_scale;
/* The mean of the finite voxels (inside mask > 0.5 when given): all that has to be known of intensities that
 * are taken as they are. RESMAP_BAD_FILE with the reason when there is none, or when all are equal, which
 * *constant (NULL: nobody asks) tells apart. what: names the image in messages. */
resmap_status rsm_scale_mean(rsm_env *env, const char *what, const float *data, const float *mask,
                             size_t count, double *mean, int *constant);
/* From the finite voxels (inside mask > 0.5 when given). RESMAP_BAD_FILE with the reason when hi <= lo (constant), *constant
 * tells that case apart. what: names the image in messages. */
resmap_status rsm_scale_measure(rsm_env *env, const char *what, const float *data, const float *mask, size_t count,
                                rsm_scale *scale, int *constant);

/* The percentile (0…100, linear as NumPy's) of the values above < v < below (inside mask > 0.5 when given); infinite bounds
 * leave out the non-finite. RESMAP_BAD_FILE when there is none. */
resmap_status rsm_percentile(rsm_env *env, const float *data, const float *mask, size_t count, double above, double below,
                             double percent, double *value);

/* ---- figure.c ---- */

/* PNG of three slices (quarter, middle, three quarters of the slices with content): before, after, difference, with `caption`
 * written below, into `stream`, the file `path`. mask: of one frame, NULL for none; what it excludes (<= 0.5) is shown, but
 * neither chooses the slices nor sets the scale. */
resmap_status rsm_figure_write(rsm_env *env, const struct resmap_image *before, const struct resmap_image *after,
                               const float *mask, const rsm_slicing *slicing, const char *caption, const char *path, FILE *stream);

#endif
