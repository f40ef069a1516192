/* A device that computes: an OpenCL device with one context and one in-order queue, or the plain-C reference.
 *
 * The operations of nn/ ask rsm_device_is_reference() and then either run their plain-C path on the doubles of
 * rsm_buffer_host(), or launch a kernel. Work is enqueued in order and finished by rsm_buffer_read or
 * rsm_device_finish; buffers may be freed as soon as the last call that uses them has returned.
 *
 * Offsets, strides and counts are in elements: fp32 on OpenCL devices, float64 on the reference. On OpenCL devices
 * parts of a buffer may hold fp16 instead; these are counted in elements of their own. */
#ifndef RSM_DEVICE_H
#define RSM_DEVICE_H

#include "core/env.h"

typedef struct rsm_device rsm_device;
typedef struct rsm_buffer rsm_buffer;
typedef struct rsm_kernel rsm_kernel;

/* ---- Choosing ---- */

typedef struct rsm_device_list rsm_device_list;
/* All devices of all platforms, scored; an empty list is RESMAP_OK. */
resmap_status rsm_device_list_create(rsm_env *env, rsm_device_list **list);
void rsm_device_list_free(rsm_device_list *list);
const resmap_device *rsm_device_list_items(const rsm_device_list *list, size_t *count);

/* `specification` as resmap_open_device's, of a single device. */
resmap_status rsm_device_open(rsm_env *env, const char *specification, rsm_device **device);
void rsm_device_close(rsm_device *device);
/* Opens all that `specification` names, `*count` devices in fresh memory. One has `env`; several have envs
 * of their own, so that a thread may drive each, and they divide memory that they share. "all" does without those that cannot
 * be opened, "auto" goes on to the next best. */
resmap_status rsm_devices_open(rsm_env *env, const char *specification, rsm_device ***devices, size_t *count);
void rsm_devices_close(rsm_device **devices, size_t count);
const resmap_device *rsm_device_info(const rsm_device *device);
int rsm_device_is_reference(const rsm_device *device);
/* CPUs want wide vectors and work-groups of one; GPUs many small work-items. */
int rsm_device_is_cpu(const rsm_device *device);
/* Whether its memory is the host's, as of CPUs and of GPUs on the same chip. */
int rsm_device_uses_host_memory(const rsm_device *device);
/* Floats that a register of a CPU holds (4, 8 or 16); 1 on other devices and the reference. */
int rsm_device_vector(const rsm_device *device);
/* The context's env, for messages. */
rsm_env *rsm_device_env(const rsm_device *device);
/* Names everything that can change what the device computes (platform, device, driver, library version), for keys of
 * caches. */
const char *rsm_device_identity(const rsm_device *device);
resmap_status rsm_device_finish(rsm_device *device);

/* A further worker on an OpenCL device: a queue of its own, which a thread of its own may drive while another
 * drives the device's, and an env that follows the device's. It uses the device's programs and buffers (what
 * one worker has enqueued must be finished before another uses it), and both count as one where memory is
 * counted and limited. It takes the variants that the device takes now. Closed before the device. */
resmap_status rsm_device_share(rsm_device *device, rsm_device **worker);

/* ---- Memory ---- */

/* `count` elements, contents undefined. Counts toward the bytes in use. RESMAP_NO_DEVICE_MEMORY when the device
 * refuses, or when the limit set below would be passed. */
resmap_status rsm_buffer_create(rsm_device *device, size_t count, rsm_buffer **buffer);
void rsm_buffer_free(rsm_buffer *buffer);
size_t rsm_buffer_count(const rsm_buffer *buffer);
/* The doubles of a buffer on the reference; NULL on OpenCL. */
double *rsm_buffer_host(rsm_buffer *buffer);

/* How values are kept in memory; they are computed with in fp32 always. */
typedef enum rsm_storage { RSM_FP32, RSM_FP16 } rsm_storage;
/* Its type in kernels: "float" or "half". */
const char *rsm_storage_type(rsm_storage storage);
/* Its size in elements of fp32: 1 or 0.5. */
double rsm_storage_size(rsm_storage storage);
/* Elements of that storage that the whole buffer holds, as far as kernels can index them; no fp16 on the reference. */
size_t rsm_buffer_capacity(const rsm_buffer *buffer, rsm_storage storage);

/* Blocking transfers. */
resmap_status rsm_buffer_write(rsm_device *device, rsm_buffer *buffer, size_t offset, const float *source, size_t count);
resmap_status rsm_buffer_read(rsm_device *device, rsm_buffer *buffer, size_t offset, float *target, size_t count);
/* Copies `rows` runs of `width` elements; run r starts at offset + r * stride on either side. The regions must not
 * overlap unless they lie in different buffers. */
resmap_status rsm_buffer_copy(rsm_device *device, rsm_buffer *target, size_t target_offset, size_t target_stride,
                              rsm_buffer *source, size_t source_offset, size_t source_stride, size_t width, size_t rows);
/* Bytes in use by buffers of all its workers, and the most since the device was opened (or
 * rsm_device_reset_peak). */
uint64_t rsm_device_bytes(const rsm_device *device);
uint64_t rsm_device_bytes_peak(const rsm_device *device);
void rsm_device_reset_peak(rsm_device *device);
/* Most bytes that buffers may take together; 0: a share of the device's memory that leaves room for others. */
void rsm_device_set_limit(rsm_device *device, uint64_t bytes);
uint64_t rsm_device_limit(const rsm_device *device);
/* Whether a limit other than that share was set. */
int rsm_device_is_limited(const rsm_device *device);
/* Largest single buffer in bytes. */
uint64_t rsm_device_max_allocation(const rsm_device *device);

/* ---- Kernels ---- */

/* The kernel `name` of the program cl/`program`.cl built with `options` ("-DX=1"; "" for none; common flags are added).
 * Programs and kernels are kept by the device: asking again is cheap, and nothing is to be freed. */
resmap_status rsm_kernel_get(rsm_device *device, const char *program, const char *name, const char *options,
                             rsm_kernel **kernel);

/* Most work-items of a work-group that the device gives this kernel, which may be fewer than it has for others. */
size_t rsm_kernel_most_items(const rsm_device *device, const rsm_kernel *kernel);

typedef struct rsm_argument {
    size_t size;                 /* 0: a buffer */
    const void *value;
} rsm_argument;
/* Valid only inside the argument list of one rsm_kernel_run call. */
#define RSM_BUFFER(b) ((rsm_argument){0, (b)})
#define RSM_INT(i) ((rsm_argument){sizeof(int32_t), &(int32_t){(int32_t)(i)}})
#define RSM_FLOAT(f) ((rsm_argument){sizeof(float), &(float){(float)(f)}})

/* Enqueues. global: `dims` numbers of work-items, rounded up here to multiples of local (the kernel guards); local may
 * be NULL. Offsets and sizes of buffers reach kernels as int: buffers stay below 2^31 elements. */
resmap_status rsm_kernel_run(rsm_device *device, rsm_kernel *kernel, int dims, const size_t *global, const size_t *local,
                             const rsm_argument *arguments, size_t argument_count);
#define RSM_RUN(device, kernel, dims, global, local, ...)                                              \
    rsm_kernel_run((device), (kernel), (dims), (global), (local), (const rsm_argument[]){__VA_ARGS__}, \
                   sizeof((const rsm_argument[]){__VA_ARGS__}) / sizeof(rsm_argument))

/* ---- Profile ---- */

/* What the calls of one kernel on one shape took together. */
typedef struct rsm_profile_row {
    char name[24];
    size_t rows, columns;        /* the shape that tells its calls apart (gemm: M, K); 0: no such number */
    uint64_t calls;
    double seconds;
    double flop, bytes;          /* arithmetic, and the device memory read and written when nothing is fetched twice */
} rsm_profile_row;

/* From here every command is waited for and timed (by the device's own clock where it has one, else by the host's), which
 * slows the host down. Ends with rsm_profile_end, or when the device is closed. */
resmap_status rsm_profile_begin(rsm_device *device);
/* The rows (fresh memory, to be freed with free), most seconds first. Profiling ends on failure too. */
resmap_status rsm_profile_end(rsm_device *device, rsm_profile_row **rows, size_t *count);
/* Names what the next commands do, before each kernel: operations (a multiply-add is two) and elements read and written
 * (those of fp16 count by rsm_storage_size). Does nothing unless a profile is taken. name: static text. */
resmap_status rsm_profile_next(rsm_device *device, const char *name, size_t rows, size_t columns, double flop,
                               double elements);
/* While `on`, all commands belong to the row named last, whatever they name themselves. */
void rsm_profile_hold(rsm_device *device, int on);

/* ---- Tuning: which variant of an operation is fastest here ---- */

/* An operation, on a class of shapes, of which several variants give the same result within rounding. */
typedef enum rsm_tunable {
    RSM_TUNE_GEMM_FEW,           /* products by the shape of A: at most 4 rows */
    RSM_TUNE_GEMM_SHALLOW,       /* at most 64 columns */
    RSM_TUNE_GEMM_MIDDLE,        /* at most 256 */
    RSM_TUNE_GEMM_DEEP,          /* more */
    RSM_TUNE_DEPTHWISE,
    RSM_TUNE_GATE,
    RSM_TUNE_LAYER_NORM,
    RSM_TUNE_ATTENTION,
    RSM_TUNE_CONV_THIN,          /* 3x3 convolutions: at most 4 channels in or out */
    RSM_TUNE_CONV,               /* more */
    RSM_TUNE_BANDS,              /* scratch memory of the network's bands of rows */
    RSM_TUNE_CLBLAST,            /* CLBlast's parameters, which are the whole process's */
    RSM_TUNABLES
} rsm_tunable;

enum {
    RSM_ON_CPU = 1, RSM_ON_GPU = 2,   /* devices that it may suit; GPU: all that are no CPUs */
    RSM_QUICK = 4,               /* a short tuning tries it, too */
    RSM_SUB_GROUPS = 8           /* needs sub-groups of values[1] work-items */
};
/* A row of the table in variants.c. A new variant of a kernel is a row there and its meaning in the operation. */
typedef struct rsm_variant {
    const char *name;            /* in tuning files; no blanks */
    unsigned flags;
    int values[4];               /* the operation knows what they mean */
} rsm_variant;

/* The variant to take, or NULL: not tuned, the operation goes by its own rule. */
const rsm_variant *rsm_tuned(const rsm_device *device, rsm_tunable what);
/* Takes this one from now on. */
void rsm_tuned_set(rsm_device *device, rsm_tunable what, const rsm_variant *variant);
const char *rsm_tunable_name(rsm_tunable what);
const rsm_variant *rsm_variants(rsm_tunable what, size_t *count);
int rsm_variant_suits(const rsm_device *device, const rsm_variant *variant);

/* Takes the variants from the device's tuning file (tuning.c says what is in it), where there is one to be believed and
 * $RESMAP_TUNING is not "off", in place of what was tuned before. Opening a device does it. Fails only for lack of
 * memory. */
resmap_status rsm_tuning_load(rsm_device *device);
/* The same, when the file may have changed: a fault that was told is not told again. */
resmap_status rsm_tuning_reload(rsm_device *device);
/* What became of the file, for people: "none yet", "PATH: how it was made", "ignored: PATH: why". */
const char *rsm_tuning_state(const rsm_device *device);
/* Where the file is or would be; NULL: nowhere. */
const char *rsm_tuning_path(const rsm_device *device);
/* Whether there is none that can be believed, and a short tuning is wanted. */
int rsm_tuning_missing(const rsm_device *device);
/* The variants taken, a line each, for keys of what depends on them; fresh memory, NULL when there is none left. */
char *rsm_tuning_choices(const rsm_device *device);

/* What a network is run with, where that changes its result or its memory more than a variant does. */
typedef struct rsm_preference {
    char network[128];           /* its shape in a word: speed does not depend on weights */
    rsm_storage storage;         /* what "auto" takes */
    int fp16_percent;            /* speed with fp16, of that with fp32; 0: not measured, nor chosen */
    int workers;                 /* that volumes are given to, 1…RSM_MOST_WORKERS */
    int workers_percent;         /* speed with that many (with two where it is 1), of that with one; 0: not
                                  * measured, nor chosen */
} rsm_preference;
enum { RSM_MOST_WORKERS = 8 };
/* What was measured for such networks; NULL: nothing. */
const rsm_preference *rsm_preferred(const rsm_device *device, const char *network);
/* How many workers a volume is given to with such networks. */
int rsm_preferred_workers(const rsm_device *device, const char *network);

/* A file to be made. Begun before the measuring: what could not be kept need not be measured. RESMAP_IO also when
 * another process is tuning. */
typedef struct rsm_tuning_file rsm_tuning_file;
typedef struct rsm_tuning_failure {
    rsm_tunable what;
    const rsm_variant *variant;  /* NULL: that of the rule */
    const char *why;
} rsm_tuning_failure;
resmap_status rsm_tuning_begin(rsm_device *device, rsm_tuning_file **file);
/* Writes the variants that the device takes now, and its preferences with what was measured of `preference`
 * (NULL: none is new) among them, whole or not at all. made: how, for people. */
resmap_status rsm_tuning_keep(rsm_tuning_file *file, const char *made, const rsm_preference *preference,
                              const rsm_tuning_failure *failures, size_t failure_count);
void rsm_tuning_end(rsm_tuning_file *file);
/* Removes what was kept: the next use tunes anew. */
void rsm_tuning_forget(rsm_tuning_file *file);

/* ---- GEMM ---- */

/* Which tunable a product with an M x K matrix A is. */
rsm_tunable rsm_gemm_tunable(size_t m, size_t k);
/* Whether the variant of a product is what the rule takes. */
int rsm_gemm_is_rule(const rsm_device *device, rsm_tunable what, const rsm_variant *variant);
/* Whether any products of fp32 are CLBlast's now. */
int rsm_gemm_takes_clblast(const rsm_device *device);

/* From now on no products on the device are CLBlast's. 0: none were, or RESMAP_GEMM asks for it. */
int rsm_gemm_refuse_clblast(rsm_device *device);

/* A row-major matrix inside a buffer: element (r, c) at offset + r * stride + c. */
typedef struct rsm_matrix {
    rsm_buffer *buffer;
    size_t offset, stride;
    rsm_storage storage;
} rsm_matrix;

/* C[M,N] = A[M,K] B[K,N], plus what C held when `accumulate`. fp32 sums (float64 on the reference). A is fp32, B and C
 * of either storage. C may not overlap A or B. Safe for any offset and stride >= the row's length. CLBlast or our own kernel, whichever suits the device. */
resmap_status rsm_gemm(rsm_device *device, size_t m, size_t n, size_t k, rsm_matrix a, rsm_matrix b, rsm_matrix c,
                       int accumulate);

/* Layer norm of every column of B over its K rows: K weights, and K biases unless `bias` is NULL. */
typedef struct rsm_column_norm {
    rsm_buffer *weight, *bias;
    size_t weight_offset, bias_offset;
} rsm_column_norm;
/* C = A norm(B), where the device's product can do it on the way. */
int rsm_gemm_can_norm(const rsm_device *device, size_t m, size_t k);
resmap_status rsm_gemm_norm(rsm_device *device, size_t m, size_t n, size_t k, rsm_matrix a, rsm_matrix b, rsm_matrix c,
                            const rsm_column_norm *norm);

/* ---- FFT ---- */

typedef enum rsm_direction { RSM_FORWARD = -1, RSM_BACKWARD = 1 } rsm_direction;
/* In-place complex transform (interleaved re, im) of a dense array of up to 3 axes, axis 0 fastest, all axes listed by
 * `axes` (bit i: axis i); backward scales by 1/N. Any length: clFFT where it supports it, else Bluestein on clFFT; float64
 * on the reference. `offset` counts elements (two a complex number). */
resmap_status rsm_fft(rsm_device *device, rsm_buffer *buffer, size_t offset, const size_t shape[3], unsigned axes,
                      rsm_direction direction);

#endif
