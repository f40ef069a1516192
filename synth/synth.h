/* Artifacts of brain MRI: motion, bias field and noise.
 *
 * Drawing and applying are separate: a record holds every number drawn, and applying it needs nothing else.
 * Volumes are buffers of shape[0] * shape[1] * shape[2] values, axis 0 fastest, scaled so that 0 is the
 * background and 1 the 99.5th percentile of the foreground. Every function works in float64 on the reference
 * device. */
#ifndef RSM_SYNTH_H
#define RSM_SYNTH_H

#include "core/env.h"
#include "device/device.h"

/* ---- record.c: what was drawn ---- */

enum { RSM_MAX_RUNS = 7, RSM_MAX_BIAS_ORDER = 5, RSM_MAX_BIAS_TERMS = 56 };

typedef enum rsm_artifact_kind {
    RSM_ARTIFACT_MOTION,
    RSM_ARTIFACT_BIAS,
    RSM_ARTIFACT_NOISE
} rsm_artifact_kind;

typedef struct rsm_noise {
    double sigma, blur;
    int rician;
    uint64_t seed;               /* of the voxels' random numbers */
    int axis;                    /* the slice axis: the blur acts along the two others */
} rsm_noise;

typedef struct rsm_bias {
    int order;
    int drawn;                   /* 1: from U(low, bound) */
    double low, bound;
    double coefficients[RSM_MAX_BIAS_TERMS];   /* c_abd with a + b + d <= order, a outermost, d fastest */
} rsm_bias;

/* Phase-encode lines start … start + count - 1 (DC at line n / 2) come from a copy of the object moved like
 * this. */
typedef struct rsm_run {
    size_t start, count;
    double translation_mm[3], rotation_deg[3];
} rsm_run;

typedef struct rsm_motion {
    double sigma_mm, sigma_deg, percent;
    int frequency_axis, phase_axis;
    int run_count;
    rsm_run runs[RSM_MAX_RUNS];  /* ascending, disjoint */
} rsm_motion;

typedef struct rsm_artifact {
    rsm_artifact_kind kind;
    int every_frame;             /* 1: `frame` is not used */
    size_t frame;
    union {
        rsm_motion motion;
        rsm_bias bias;
        rsm_noise noise;
    } of;
} rsm_artifact;

typedef struct rsm_record {
    uint64_t seed;
    char preset[16];             /* "" for none */
    size_t count;
    rsm_artifact *artifacts;     /* in the order of application within a frame */
} rsm_record;

/* RESMAP_BAD_ARGUMENT when an option is out of range. */
resmap_status rsm_synth_options_check(rsm_env *env, const resmap_synth_options *options);
/* Draws the record of `options` for an image of this shape with slices across slice_axis. */
resmap_status rsm_record_draw(rsm_env *env, const resmap_synth_options *options, const size_t shape[4],
                              int slice_axis, rsm_record *record);
/* Reads the JSON text; checks everything against the shape. what: names the text in messages.
 * RESMAP_BAD_FILE. */
resmap_status rsm_record_read(rsm_env *env, const char *what, const char *text, size_t size,
                              const size_t shape[4], rsm_record *record);
/* Fresh JSON text. */
resmap_status rsm_record_write(rsm_env *env, const rsm_record *record, char **text);
void rsm_record_clear(rsm_record *record);
size_t rsm_bias_terms(int order);
/* True when the artifact leaves every volume as it is. */
int rsm_artifact_idle(const rsm_artifact *artifact);

/* ---- noise.c ---- */

/* Two independent normal numbers of a counter (see record.c for the streams). */
void rsm_normal_pair(uint64_t index, uint64_t seed, uint32_t stream, uint32_t frame, double pair[2]);
/* Adds the noise of this frame to the volume and blurs it. */
resmap_status rsm_noise_apply(rsm_device *device, const rsm_noise *noise, const size_t shape[3], size_t frame,
                              rsm_buffer *volume);

/* ---- bias.c ---- */

/* log of the field's mean over the voxels of the clean volume above `threshold`. */
resmap_status rsm_bias_measure(rsm_device *device, const rsm_bias *bias, const size_t shape[3],
                               rsm_buffer *clean, double threshold, double *log_mean);
/* The largest value of field / exp(log_mean). */
double rsm_bias_most(const rsm_bias *bias, const size_t shape[3], double log_mean);
/* Multiplies the volume by field / exp(log_mean). */
resmap_status rsm_bias_apply(rsm_device *device, const rsm_bias *bias, const size_t shape[3], double log_mean,
                             rsm_buffer *volume);

/* ---- motion.c ---- */

/* Hybrid space: complex values, transformed along the phase axis alone, [line][b][a] with a fastest: a and b
 * the two other axes, a the lower-numbered; lines in the DFT's own order (DC first). */
typedef struct rsm_hybrid {
    size_t lines, rows, columns; /* lengths of the phase axis, of b and of a */
    int phase_axis, row_axis, column_axis;
    rsm_buffer *values;          /* 2 * lines * rows * columns elements */
} rsm_hybrid;

/* Assembles the scan's lines from the still and the moved copies of `volume`; `hybrid` is to be cleared
 * afterwards. */
resmap_status rsm_motion_assemble(rsm_device *device, const rsm_motion *motion, const size_t shape[3],
                                  const double voxel_mm[3], rsm_buffer *volume, rsm_hybrid *hybrid);
/* The magnitude image of hybrid space. */
resmap_status rsm_motion_image(rsm_device *device, const size_t shape[3], const rsm_hybrid *hybrid,
                               rsm_buffer *volume);
void rsm_hybrid_clear(rsm_hybrid *hybrid);
/* rsm_motion_assemble and rsm_motion_image in place. */
resmap_status rsm_motion_apply(rsm_device *device, const rsm_motion *motion, const size_t shape[3],
                               const double voxel_mm[3], rsm_buffer *volume);
/* The lines (DC at n / 2) that never move: the central ceil(7 %) of n. */
void rsm_motion_protected(size_t n, size_t *first, size_t *count);

/* ---- synth.c ---- */

/* As resmap_synth and resmap_synth_repeat, on a device (NULL: plain C). from: NULL, or a record's text of
 * from_size bytes (options are then not used), named from_name in messages. record: may be NULL. */
resmap_status rsm_synth(rsm_env *env, rsm_device *device, const resmap_image *clean,
                        const resmap_synth_options *options, const char *from, size_t from_size,
                        const char *from_name, resmap_image **corrupted, char **record);
/* As resmap_synth_file. */
resmap_status rsm_synth_file(rsm_env *env, rsm_device *device, const resmap_synth_files *files,
                             const resmap_synth_options *options);

#endif
