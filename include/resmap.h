/* resmap.h: restore brain MRI scans spoiled by motion, noise and bias field on any OpenCL device.
 *
 * Conventions, unless a function says otherwise:
 *  - Every call returns a status; RESMAP_OK is 0. On failure outputs are untouched, and resmap_error()
 *    gives one line "WHAT: WHY". The library never prints, exits or aborts.
 *  - What a call creates is given back with the one *_free function of its type; free(NULL) is fine.
 *  - Strings are UTF-8. Pointers returned by accessors belong to the object that gave them.
 *  - Two contexts may be used from two threads at once; one context, and the models opened with it, by one
 *    thread at a time. Images and reports are plain data: any thread, one writer at a time.
 *  - Voxel arrays are float32 in NIfTI storage order: axis 0 fastest, then 1, 2, then the frames.
 *
 * The network and the cascade are those of the MICCAI paper ResMAP (Tang et al.), on a Restormer backbone.
 * This is research software, not a medical device. */
#ifndef RESMAP_H
#define RESMAP_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define RESMAP_API __attribute__((visibility("default")))
#else
#define RESMAP_API
#endif

#define RESMAP_MAX_CLASSES 16
#define RESMAP_MAX_STEPS 8

typedef enum resmap_status {
    RESMAP_OK = 0,
    RESMAP_BAD_ARGUMENT,         /* the caller's fault: a value out of range, shapes that do not fit */
    RESMAP_BAD_FILE,             /* a file that is missing, damaged, or not what it claims */
    RESMAP_IO,                   /* writing failed: full disk, no permission, file exists */
    RESMAP_NO_MEMORY,            /* host memory */
    RESMAP_NO_DEVICE,            /* no OpenCL platform, no such device */
    RESMAP_NO_DEVICE_MEMORY,     /* even the smallest tiles do not fit the device */
    RESMAP_BUILD_FAILED,         /* the driver does not compile a kernel */
    RESMAP_DEVICE_FAILED,        /* the driver reports an error */
    RESMAP_SELF_CHECK_FAILED,    /* the device computes wrongly and is refused */
    RESMAP_CANCELLED,            /* the progress callback asked to stop */
    RESMAP_INTERNAL
} resmap_status;

/* "0.1.0" */
RESMAP_API const char *resmap_version(void);
/* The status in words, static. */
RESMAP_API const char *resmap_status_text(resmap_status status);

/* ---- Context -------------------------------------------------------------------------------------------- */

typedef struct resmap_context resmap_context;

/* Makes a context without a device: images, models, reports, synthesis in plain C and evaluation work with it.
 * Fails with RESMAP_NO_MEMORY only. */
RESMAP_API resmap_status resmap_context_create(resmap_context **context);
RESMAP_API void resmap_context_free(resmap_context *context);
/* Why the last call failed: to be asked after a call that did. "" before the first; after a call that succeeded it may be any
 * text, as that of a device which others stood in for. Valid until the next call. */
RESMAP_API const char *resmap_error(const resmap_context *context);

typedef enum resmap_log_level { RESMAP_LOG_ERROR, RESMAP_LOG_WARNING, RESMAP_LOG_INFO, RESMAP_LOG_DEBUG } resmap_log_level;
typedef void (*resmap_log_fn)(void *data, resmap_log_level level, const char *text);
/* NULL (the default): silence. */
RESMAP_API void resmap_set_log(resmap_context *context, resmap_log_fn log, void *data);

/* Called often while work goes on: `what` names the stage ("restore", "self-check", …), done of total units are
 * finished (total 0: unknown). A non-zero return cancels: the running call ends with RESMAP_CANCELLED and leaves
 * no output behind. */
typedef int (*resmap_progress_fn)(void *data, const char *what, size_t done, size_t total);
RESMAP_API void resmap_set_progress(resmap_context *context, resmap_progress_fn progress, void *data);

/* ---- Devices -------------------------------------------------------------------------------------------- */

typedef struct resmap_device {
    int index;                   /* what a device specification may name */
    const char *platform, *name, *driver, *version;
    const char *type;            /* "gpu", "cpu", "accelerator", "other" */
    int compute_units, clock_mhz;
    uint64_t memory_bytes, max_allocation_bytes, local_memory_bytes;
    size_t max_work_group;
    int fp16, fp64, subgroups;   /* what the driver claims */
    int usable;                  /* 0: resmap would not take it; `reason` says why */
    int chosen;                  /* 1: what "auto" takes */
    const char *reason;
} resmap_device;

/* Lists every device of every platform; none at all is RESMAP_OK with *count 0. The list belongs to the context
 * and is valid until the next resmap_list_devices or resmap_context_free. */
RESMAP_API resmap_status resmap_list_devices(resmap_context *context, const resmap_device **list, size_t *count);

/* Opens the device that later calls compute on, in place of the one opened before. `specification`: "auto" (or
 * NULL), an index, a part of the name, "gpu", "cpu", or "reference" (plain C in float64; slow, exact, never taken
 * by "auto"). RESMAP_NO_DEVICE when there is none such. Models opened earlier follow to the new device. Where what "auto"
 * would take cannot be opened (no rights, taken by others) the next best is, with a warning.
 *
 * Several may be opened, which share the slices of a volume: "all" (every usable device, but one driver for
 * each, as far as drivers tell), or a list, "0,2". "0/2" is two devices, each half of device 0; a device named twice works on two
 * slices at a time. So does one named once where its tuning found that faster. The library then starts a
 * thread for each slice in work while resmap_restore or resmap_classify works: the progress callback is
 * called in the caller's thread all the same, the log in any, never two at a time.
 * One that fails is left out with a warning, and what it had to do is done by the others; so is, of "all", one that cannot be
 * opened. */
RESMAP_API resmap_status resmap_open_device(resmap_context *context, const char *specification);
/* The opened device; of several number `index` (0: the first); NULL: there is none such. */
RESMAP_API const resmap_device *resmap_opened_device(const resmap_context *context, size_t index);
/* Bytes of device memory in buffers of this context: now, and at most since the last restoring, classifying or
 * timing began (which starts the count anew). */
RESMAP_API void resmap_device_bytes(const resmap_context *context, uint64_t *now, uint64_t *peak);

/* ---- Images --------------------------------------------------------------------------------------------- */

typedef struct resmap_image resmap_image;

/* Copies `data`. shape: lengths of the axes 0, 1, 2 and the frames (1 where there are fewer). voxel_to_world: 3 rows
 * of 4, row-major, mm, RAS+ as NIfTI's; NULL: identity. */
RESMAP_API resmap_status resmap_image_create(resmap_context *context, const float *data, const size_t shape[4],
                                             const double voxel_to_world[12], resmap_image **image);
/* Reads .nii or .nii.gz (NIfTI-1 or -2; integer and float types; slope and intercept applied). Non-finite voxels are
 * kept as they are; restoring refuses them unless masked. */
RESMAP_API resmap_status resmap_image_read(resmap_context *context, const char *path, resmap_image **image);
/* Writes float32 NIfTI with the geometry read; whole or not at all. NIfTI-1 or -2 as read, of created images NIfTI-1; always
 * NIfTI-2 where an axis is above 32767. */
RESMAP_API resmap_status resmap_image_write(resmap_context *context, const resmap_image *image, const char *path,
                                            int overwrite);
RESMAP_API void resmap_image_free(resmap_image *image);
RESMAP_API const size_t *resmap_image_shape(const resmap_image *image);          /* 4 lengths */
RESMAP_API const double *resmap_image_voxel_to_world(const resmap_image *image); /* 12 numbers */
RESMAP_API float *resmap_image_data(resmap_image *image);
RESMAP_API const float *resmap_image_data_const(const resmap_image *image);

/* ---- Models --------------------------------------------------------------------------------------------- */

typedef struct resmap_model resmap_model;

/* `name`: a file when it has a slash or ends in ".safetensors"; else a model looked up in $RESMAP_WEIGHTS_PATH
 * (colon-separated folders), then the installed data directory. Format: weights/FORMAT.md. The model must be freed
 * before the context. */
RESMAP_API resmap_status resmap_model_open(resmap_context *context, const char *name, resmap_model **model);
/* The same from a memory block, which may be freed afterwards. `name` goes into reports. */
RESMAP_API resmap_status resmap_model_from_memory(resmap_context *context, const void *bytes, size_t size,
                                                  const char *name, resmap_model **model);
RESMAP_API void resmap_model_free(resmap_model *model);
RESMAP_API const char *resmap_model_name(const resmap_model *model);
RESMAP_API const char *resmap_model_sha256(const resmap_model *model);            /* 64 hex digits */
RESMAP_API size_t resmap_model_class_count(const resmap_model *model);           /* 0 for arch "restormer" */
/* NULL: there is none such. */
RESMAP_API const char *resmap_model_class(const resmap_model *model, size_t index);
/* What `resmap model` prints; to be freed with resmap_text_free. json: 0 or 1. */
RESMAP_API resmap_status resmap_model_describe(resmap_context *context, const resmap_model *model, int json, char **text);
RESMAP_API void resmap_text_free(char *text);

/* ---- Restoring and classifying -------------------------------------------------------------------------- */

typedef enum resmap_plane { RESMAP_PLANE_AUTO, RESMAP_PLANE_AXIAL, RESMAP_PLANE_CORONAL, RESMAP_PLANE_SAGITTAL } resmap_plane;
typedef enum resmap_precision { RESMAP_PRECISION_AUTO, RESMAP_PRECISION_FP32, RESMAP_PRECISION_FP16 } resmap_precision;

typedef struct resmap_options {
    int steps;                   /* most restorations, 0…RESMAP_MAX_STEPS; -1 (default): 3, or the length of order */
    const char *order;           /* NULL, or a forced sequence of classes, "bias,noise": nothing is classified */
    int decide_by_slice;         /* 0: one decision a step for the volume; 1: one for every slice, as in the paper
                                  * (a model with field_evidence hears the one field of all slices in each) */
    int prompt_sample;           /* 0: the centroid of the class's prompts; 1: one drawn with prompt_seed */
    uint64_t prompt_seed;
    resmap_plane plane;
    int no_scale;                /* 1: feed voxel values as they are */
    resmap_precision precision;  /* AUTO: fp16 where the opened devices' tunings say that it is faster with such a
                                  * network, and the model passes fp16's self-check there; else fp32 */
    uint64_t memory_mib;         /* most device memory; 0: the device's own limits */
} resmap_options;

/* Fills in the defaults. */
RESMAP_API void resmap_options_init(resmap_options *options);

typedef struct resmap_step {
    int class_index;             /* into the model's classes; -1: restormer models, which have none */
    int has_probabilities;       /* 0 under a forced order */
    double probabilities[RESMAP_MAX_CLASSES];
    int restored;                /* 0 for the final "clean" */
    int passes;                  /* over the slices that changed them: 1, or as many as a field took (field_passes of a
                                    weights file, where it is strong); 0 where nothing was restored */
} resmap_step;

typedef struct resmap_slice_report {
    size_t index;
    int step_count;
    int steps[RESMAP_MAX_STEPS]; /* class indices restored */
    int class_index;             /* classify: the class and its probabilities */
    double probabilities[RESMAP_MAX_CLASSES];
} resmap_slice_report;

typedef struct resmap_volume_report {
    size_t frame;
    int constant;                /* 1: a constant frame of a 4-D file, passed through */
    int step_count;
    resmap_step steps[RESMAP_MAX_STEPS + 1];
    const char *stopped;         /* "clean" (of constant frames, too), "max-steps", "forced"; NULL: it was classified only */
    size_t slice_count;
    resmap_slice_report *slices;
} resmap_volume_report;

typedef struct resmap_device_report {
    char *name, *platform, *driver;
    const char *precision;       /* "fp32", "fp16"; "fp64" on the reference */
    size_t slices;               /* taken, in all steps: classified and then restored counts twice */
    size_t workers;              /* that worked on slices side by side; 0: it was left out before */
    double seconds;              /* in the network, transfers included: the mean over the workers */
} resmap_device_report;

typedef struct resmap_report {
    char *input, *output;        /* paths, NULL when from memory */
    char *model_name, *model_sha256;
    char *precision_reason;      /* why the devices' precision was taken */
    size_t device_count;
    resmap_device_report *devices;
    const char *plane;           /* "axial", "coronal", "sagittal" */
    const char *decide;          /* "volume", "slice" */
    char *prompt;                /* "centroid", "sample:7" */
    const char *encodings;       /* where encoder results waited: "device", "host", "recomputed", "reused"; NULL: none had to,
                                  * for nothing was to be restored (resmap_classify, 0 steps) */
    int tiled;                   /* 1: independent tiles were needed, which changes the result */
    size_t band_rows;            /* rows a band at full resolution */
    size_t class_count;
    char *classes[RESMAP_MAX_CLASSES];
    size_t volume_count;
    resmap_volume_report *volumes;
    double seconds_setup, seconds_read, seconds_compute, seconds_write, seconds_total;
    double seconds_network;      /* of seconds_compute, those in the network: the mean over all workers */
    uint64_t device_bytes_peak;  /* of all devices together */
} resmap_report;

RESMAP_API void resmap_report_free(resmap_report *report);
/* The report as JSON text (restore: contract of `--report`; classify: of `classify --json`). */
RESMAP_API resmap_status resmap_report_json(resmap_context *context, const resmap_report *report, int classify, char **text);

/* Restores every frame of `input` by the cascade (paper §2.3). mask: NULL, or an image of the same grid (one frame),
 * > 0.5 is inside; outside voxels come out as they were. `output` has input's geometry. report may be NULL. Needs an
 * opened device. On a device's first use with this model a self-check runs first and refuses a device that computes
 * wrongly. */
RESMAP_API resmap_status resmap_restore(resmap_context *context, resmap_model *model, const resmap_image *input,
                                        const resmap_image *mask, const resmap_options *options,
                                        resmap_image **output, resmap_report **report);
/* The classes and their probabilities, without restoring. They are in the report, so `report` must not be NULL. */
RESMAP_API resmap_status resmap_classify(resmap_context *context, resmap_model *model, const resmap_image *input,
                                         const resmap_image *mask, const resmap_options *options, resmap_report **report);

/* Files of one restoration; all but input and output may be NULL. */
typedef struct resmap_files {
    const char *input, *output, *mask;
    const char *report, *residual, *figure;
    int overwrite;
} resmap_files;

/* Reads, restores and writes: either every file named appears whole, or none. */
RESMAP_API resmap_status resmap_restore_file(resmap_context *context, resmap_model *model, const resmap_files *files,
                                             const resmap_options *options, resmap_report **report);

/* Compares the opened device with the plain-C reference on a small slice through the whole model, whatever was
 * remembered; *error: max |a-b| / max |b|, with fp16 rms(a-b) / max |b|. RESMAP_SELF_CHECK_FAILED when above the bound
 * (1e-4, with fp16 5e-4). */
RESMAP_API resmap_status resmap_self_check(resmap_context *context, resmap_model *model, resmap_precision precision,
                                           double *error);
/* What RESMAP_PRECISION_AUTO takes with this model on the opened devices, as far as their tunings tell (fp16 remains to be
 * checked), and why, for people: valid until the next call. RESMAP_NO_DEVICE when none is opened. */
RESMAP_API resmap_status resmap_auto_precision(resmap_context *context, const resmap_model *model,
                                               resmap_precision *precision, const char **why);
/* How many workers (queues) opened device number `index` (as in resmap_opened_device) shares a volume's slices among with this
 * model, as far as its tuning tells; a worker for which memory lacks is done without. 0 past the last device. */
RESMAP_API int resmap_auto_workers(const resmap_context *context, const resmap_model *model, size_t index);
/* The folder for caches, which the context owns; NULL: caching is off, or no folder can be used (the log says why). */
RESMAP_API const char *resmap_cache_folder(resmap_context *context);

/* ---- Timing ----------------------------------------------------------------------------------------------- */

/* A network of the paper's size (29 million weights, the same random ones every time), named "paper": good for timing
 * only. Freed as any model. */
RESMAP_API resmap_status resmap_model_paper(resmap_context *context, resmap_model **model);

typedef struct resmap_timing_options {
    size_t height, width;        /* of the slice, 1…16384, rounded up to multiples of 8 (256 x 256) */
    int repeat;                  /* timed runs, 1…1000 (5) */
    int only_seconds;            /* 1: no kernels, no roof: no further run and no measuring of the device (0) */
    int by_shape;                /* 1: a kernel has a row for every shape of its operands (0) */
    resmap_precision precision;
    uint64_t memory_mib;         /* most device memory; 0: the device's own limits */
} resmap_timing_options;

/* Fills in the defaults. */
RESMAP_API void resmap_timing_options_init(resmap_timing_options *options);

typedef struct resmap_kernel_time {
    char name[24];
    size_t rows, columns;        /* by_shape: gemm's M and K, attention's channels and heads, others' channels; else 0 */
    uint64_t calls;
    double seconds;              /* of all calls, by the device's clock, where it has none by the host's */
    double flop, bytes;          /* arithmetic, a multiply-add being two; memory traffic when nothing is fetched twice */
    double share;                /* of all kernels' seconds */
    double roof;                 /* the seconds that the device's roof allows, as a share of the seconds taken */
} resmap_kernel_time;

typedef struct resmap_timing {
    char *model_name, *device_name, *device_platform, *device_driver;
    const char *precision;       /* "fp32", "fp16"; "fp64" on the reference */
    char *precision_reason;      /* why it was taken */
    size_t height, width;        /* as computed */
    size_t band_rows;            /* rows a band at full resolution */
    size_t run_count;
    double *run_seconds;         /* of every timed run: slice in, encoder, decoder with a prompt, slice out */
    double seconds;              /* their median */
    double flop;                 /* of one run, as the kernels do it (some of the network's arithmetic is folded away) */
    uint64_t device_bytes_peak;  /* of the timed runs, weights included */
    double roof_flops;           /* the device's best matrix product, flop a second; 0: not measured */
    double roof_bytes;           /* and its best copy, bytes read and written a second */
    size_t kernel_count;
    resmap_kernel_time *kernels; /* most seconds first; from a further run in which every command is waited for */
} resmap_timing;

/* Times the whole network on the opened device, after a run to warm up. Needs an opened device.
 * RESMAP_NO_DEVICE_MEMORY where not even bands of two rows fit. */
RESMAP_API resmap_status resmap_time(resmap_context *context, resmap_model *model, const resmap_timing_options *options,
                                     resmap_timing **timing);
RESMAP_API void resmap_timing_free(resmap_timing *timing);
/* The timing as JSON text (contract of `bench --json`), to be freed with resmap_text_free. */
RESMAP_API resmap_status resmap_timing_json(resmap_context *context, const resmap_timing *timing, char **text);

/* ---- Tuning ------------------------------------------------------------------------------------------------ */

/* Several variants of an operation give the same result within rounding; which one is fastest depends on the device and
 * its driver. A tuning measures them and is kept as a text file in the cache folder, for this device and driver; from
 * then on the winners are taken whenever the device is opened. With one tuning file the same input and options give
 * the same bytes; another tuning may change the last digits.
 *
 * Without a file for the device the first resmap_restore, resmap_classify or resmap_time makes a quick tuning before its
 * work (stage "tuning" of the progress callback). It does not under a limit of memory, with RESMAP_PRECISION_FP16 (it measures
 * in fp32), where the result could not be kept, where another process is tuning at the moment, on the reference, and where the
 * environment variable RESMAP_TUNING is "off": then files are not read either, and everything is taken by rule. */
typedef struct resmap_tune_options {
    size_t height, width;        /* of the slices to be fast on, 1…16384, rounded up to multiples of 8 (256 x 256) */
    int quick;                   /* 1: what takes most of the time and may be much faster, in a few seconds (0) */
} resmap_tune_options;

/* Fills in the defaults. */
RESMAP_API void resmap_tune_options_init(resmap_tune_options *options);

/* One variant of one operation. The last operations are the whole network: "precision", "fp32" or "fp16", and
 * "workers", how many slices of a volume are worked on side by side. */
typedef struct resmap_trial {
    const char *operation, *variant;   /* static; variant "default": what is taken without a tuning */
    double error;                /* of a small task, against plain C: max |a-b| / max |b|; NaN: not run, or failed */
    double seconds;              /* all that the operation takes in one run of the network, at least; 0: not measured */
    double speedup;              /* over the default, measured in turns with it: the median; 0: not measured */
    int chosen;
    char *problem;               /* why it cannot win: it failed, or its error is above 1e-5, or its self-check failed;
                                  * NULL: nothing is wrong */
} resmap_trial;

typedef struct resmap_tuning {
    char *model_name, *device_name, *device_platform, *device_driver;
    char *path;                  /* of the file */
    size_t height, width;        /* as computed */
    int quick;
    double seconds;              /* that the tuning took */
    double seconds_default, seconds_tuned;   /* of the network by rule and with the winners, at least */
    double speedup;              /* of the network, measured in turns: the median; 1: nothing was a gain */
    size_t trial_count;
    resmap_trial *trials;        /* by operation, its default first; operations of little weight are left out */
} resmap_tuning;

/* Tunes the opened device for this model's operations, keeps the file (in place of an older one), and
 * takes the winners at once. Whether fp16, and working on several slices of a volume side by side, make this
 * network at least 5 % faster is measured too, and what was found for networks of other shapes is kept;
 * the tuning of the first use measures fp16 on GPUs only, and a quick one several slices only where that
 * takes seconds. Every variant is compared with plain C before it is measured, and the whole network with
 * the winners afterwards; slices side by side must come out as they do one by one, to the bit. Winners
 * that do not make the network faster are not taken. On failure and when cancelled everything stays as it
 * was. RESMAP_BAD_ARGUMENT when several devices are opened; RESMAP_NO_DEVICE when none is, or the
 * reference; RESMAP_IO when the file cannot be kept (no cache folder, not writable, RESMAP_TUNING is
 * "off", RESMAP_GEMM forces kernels) or another process is tuning; RESMAP_SELF_CHECK_FAILED when the
 * network computes wrongly in the end. tuning may be NULL.
 * A full tuning of a device that CLBlast suits tries other parameters of CLBlast, and the process cannot
 * go back to CLBlast's own: where those won, restorations by this process may differ from later ones in
 * the last digits. */
RESMAP_API resmap_status resmap_tune(resmap_context *context, resmap_model *model, const resmap_tune_options *options,
                                     resmap_tuning **tuning);
RESMAP_API void resmap_tuning_free(resmap_tuning *tuning);
/* The tuning as JSON text (`tune --json`), to be freed with resmap_text_free. */
RESMAP_API resmap_status resmap_tuning_json(resmap_context *context, const resmap_tuning *tuning, char **text);
/* What became of the tuning file of opened device number `index` (as in resmap_opened_device), for people: "none yet",
 * "PATH: how it was made", "ignored: PATH: why", "off: why"; NULL past the last. Valid until the device is tuned, or others
 * are opened. */
RESMAP_API const char *resmap_tuning_state(const resmap_context *context, size_t index);

/* ---- Synthesizing artifacts ------------------------------------------------------------------------------- */

#define RESMAP_MOTION 1u
#define RESMAP_BIAS 2u
#define RESMAP_NOISE 4u

/* Which artifacts, and how strong. Intensities are in units of the clean volume's foreground (0: background, 1: its
 * 99.5th percentile). Several are applied in the physical order motion, bias field, noise. */
typedef struct resmap_synth_options {
    uint64_t seed;               /* everything random follows from it, 0…2^63-1 (0) */
    unsigned artifacts;          /* RESMAP_MOTION | RESMAP_BIAS | RESMAP_NOISE (none) */
    const char *preset;          /* "paper", "mild", "moderate", "severe": sets all below but rician (NULL) */
    double noise_sigma;          /* standard deviation, 0…1000 */
    double noise_blur;           /* Gaussian blur in the slice plane after the noise, voxels, 0…100 (0) */
    int rician;                  /* 1: noise of a magnitude image (0) */
    int bias_order;              /* of the polynomial, 1…5 (3) */
    double bias_bound;           /* its coefficients are drawn from U(-bound, bound), 0…10 */
    const double *bias_coefficients;   /* or given, each within ±10: (order+1)(order+2)(order+3)/6 numbers c_abd with
                                  * a + b + d <= order, a outermost, d fastest (NULL) */
    double motion_mm, motion_deg;      /* standard deviations of the moves, 0…1000 mm and 0…180 degrees */
    double motion_percent;       /* of the phase-encode lines, 0…100; negative: drawn from U(15, 20) (-1) */
} resmap_synth_options;

/* Fills in the defaults. */
RESMAP_API void resmap_synth_options_init(resmap_synth_options *options);

/* Corrupts every frame of `clean`. Computes on the opened device, or in plain C (float64) when none is opened or it is
 * "reference". The same seed gives the same bytes on one device and values within 1e-5 of the clean volume's range on any
 * other; frames whose artifacts are too strong for that in float32 (the fields of preset `paper` reach thousands in the
 * corners of a scan) are computed in plain C whatever is opened. `record`, if not NULL, gets every number drawn as JSON
 * text, to be freed with resmap_text_free.
 * RESMAP_BAD_ARGUMENT for options out of range, and when several devices are opened; RESMAP_BAD_FILE for non-finite voxels, a
 * constant volume (a constant frame of several passes unchanged), or a shape without room for the artifact. */
RESMAP_API resmap_status resmap_synth(resmap_context *context, const resmap_image *clean,
                                      const resmap_synth_options *options, resmap_image **corrupted, char **record);
/* Repeats a run from its record. RESMAP_BAD_FILE when the record is damaged or does not fit the image. */
RESMAP_API resmap_status resmap_synth_repeat(resmap_context *context, const resmap_image *clean, const char *record,
                                             resmap_image **corrupted);

/* Files of one synthesis; all but input and output may be NULL. */
typedef struct resmap_synth_files {
    const char *input, *output;
    const char *from;            /* a record to repeat; options are then not looked at and may be NULL */
    const char *report;          /* where the record goes */
    const char *figure;          /* PNG of before, after and difference */
    int overwrite;
} resmap_synth_files;

/* Reads, corrupts and writes: either every file named appears whole, or none. */
RESMAP_API resmap_status resmap_synth_file(resmap_context *context, const resmap_synth_files *files,
                                           const resmap_synth_options *options);

/* ---- Evaluating -------------------------------------------------------------------------------------------- */

typedef struct resmap_slice_metrics {
    size_t frame, index;
    double psnr, ssim;           /* ssim is NaN where the slice is left out of the mean SSIM */
} resmap_slice_metrics;

/* Intensities are scaled by the reference's numbers, so the range is 1. NaN: nothing to average. */
typedef struct resmap_metrics {
    double psnr;                 /* of the volume (or mask), dB; infinite when equal. Several frames: means over frames */
    double psnr_slices;          /* mean over the slices listed below, infinite ones left out */
    double ssim;                 /* Wang 2004: 11x11 Gaussian window, sigma 1.5, valid region; mean over slices */
    double ssim_skimage;         /* scikit-image's default: 7x7 uniform window, sample covariance; the same slices */
    double nrmse;                /* |test - reference| / |reference| */
    const char *plane;           /* in which slices were cut: "axial", "coronal", "sagittal" */
    size_t slice_count;          /* slices with a voxel above the reference's mean, and one, perhaps another, inside the mask */
    resmap_slice_metrics *slices;
    size_t slices_left_out;      /* of the mean SSIM: without such voxels, or narrower than 11 pixels */
} resmap_metrics;

/* Compares `test` with `reference` in float64 on the host. Both have one shape; mask: NULL, or an image of that grid (one
 * frame), > 0.5 is inside. Constant frames of a reference with several are skipped. RESMAP_BAD_FILE for shapes that
 * differ, non-finite voxels inside the mask, a constant reference. */
RESMAP_API resmap_status resmap_evaluate(resmap_context *context, const resmap_image *reference,
                                         const resmap_image *test, const resmap_image *mask, resmap_plane plane,
                                         resmap_metrics **metrics);
/* The same for files; mask may be NULL. */
RESMAP_API resmap_status resmap_evaluate_file(resmap_context *context, const char *reference, const char *test,
                                              const char *mask, resmap_plane plane, resmap_metrics **metrics);
RESMAP_API void resmap_metrics_free(resmap_metrics *metrics);
/* The metrics as JSON text (contract of `evaluate --json`), to be freed with resmap_text_free. */
RESMAP_API resmap_status resmap_metrics_json(resmap_context *context, const resmap_metrics *metrics, char **text);

#ifdef __cplusplus
}
#endif
#endif
