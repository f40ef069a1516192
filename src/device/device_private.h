/* What the files of device/ share. Nobody else includes this file, except tests of its parts. */
#ifndef RSM_DEVICE_PRIVATE_H
#define RSM_DEVICE_PRIVATE_H

#include <CL/cl.h>
#include <pthread.h>

#include "device/device.h"

/* Kernels index with int, and round up by less than a tile. */
#define RSM_MAX_ELEMENTS ((size_t)0x7fff0000)

/* ---- list.c ---- */

/* What is known to go wrong with some drivers; a table in list.c says where. */
enum {
    RSM_QUIRK_REFUSE = 1,        /* computes wrongly: taken only when named by index or name */
    RSM_QUIRK_NO_BINARIES = 2,   /* keeps its own program cache, and crashes on damaged binaries */
    RSM_QUIRK_OWN_GEMM = 4       /* CLBlast's GEMM is wrong here */
};

typedef struct rsm_candidate {
    cl_platform_id platform;
    cl_device_id id;
    cl_device_type type;
    char *vendor, *platform_version;
    unsigned quirks;
    unsigned sub_groups;         /* or-ed: sizes that cl_intel_subgroups offers; 0: not there */
    int host_memory;             /* its memory is the host's: CPUs, and GPUs beside one on a chip */
    unsigned slot[5];            /* 1, then its PCI domain, bus, device and function; slot[0] 0: the driver does not tell */
    int can_work;                /* 0: cannot be opened even when named */
    double score;
} rsm_candidate;

/* candidates[i] belongs to items[i]. */
struct rsm_device_list {
    size_t count;
    resmap_device *items;        /* their strings are owned */
    rsm_candidate *candidates;
    char *without;               /* name of a platform that has no device, NULL: there is none */
};

/* Index of the device that `specification` names (not "reference"), or the error of rsm_device_open. */
resmap_status rsm_device_list_select(rsm_env *env, const rsm_device_list *list, const char *specification,
                                     size_t *index);
/* Indices of the devices that "all" names (fresh memory): every usable one, but of several drivers for the
 * CPU, or for what is in one PCI slot, the best. */
resmap_status rsm_device_list_all(rsm_env *env, const rsm_device_list *list, size_t **indices, size_t *count);
/* Those that "auto" may take, every usable one, the best first. */
resmap_status rsm_device_list_ranked(rsm_env *env, const rsm_device_list *list, size_t **indices, size_t *count);
/* By which the best device is chosen: GPUs with memory of their own before those that use the host's, accelerators and CPUs, then
 * by size; only within a kind, for makers count units differently. */
double rsm_device_score(const resmap_device *item, const rsm_candidate *candidate);
/* Whether `word` is one of the words of `text`. */
int rsm_has_word(const char *text, const char *word);

/* ---- program.c ---- */

typedef struct rsm_program {
    char *file, *options;
    cl_program program;
    struct rsm_program *next;
} rsm_program;

struct rsm_kernel {
    const rsm_program *program;
    cl_kernel kernel;
    char *name;
    struct rsm_kernel *next;
};

void rsm_kernels_free(rsm_kernel *kernels);
void rsm_programs_free(rsm_program *programs);

/* ---- gemm.c, clblast.c ---- */

typedef enum rsm_gemm_kind {
    RSM_GEMM_CLBLAST,
    RSM_GEMM_VECTOR,             /* own, for CPUs: one work-item a tile of vectors */
    RSM_GEMM_GROUP,              /* own, for GPUs: one work-group a tile in local memory */
    RSM_GEMM_SUB_GROUP           /* own, for GPUs: one sub-group a tile */
} rsm_gemm_kind;

/* The kind that suits the device, or the one $RESMAP_GEMM ("clblast" or "own") asks for. */
rsm_gemm_kind rsm_gemm_choose(const rsm_device *device);
resmap_status rsm_clblast_gemm(rsm_device *device, size_t m, size_t n, size_t k, rsm_matrix a, rsm_matrix b,
                               rsm_matrix c, int accumulate);
/* Gives back the memory that products left for the next ones. */
void rsm_clblast_drop_work(rsm_device *device);
/* Gives back what CLBlast keeps once no device uses it any more. */
void rsm_clblast_close(rsm_device *device);
/* 1000000 * major + 1000 * minor + patch. */
int rsm_clblast_version(void);

/* ---- fft.c, clfft.c ---- */

typedef struct rsm_clfft rsm_clfft;
/* Whether clFFT has this length: products of 2, 3, 5, 7, 11, 13. */
int rsm_clfft_supports(size_t length);
resmap_status rsm_clfft_create(rsm_device *device, size_t length, size_t batch, rsm_clfft **plan);
void rsm_clfft_free(rsm_clfft *plan);
/* Bytes of work space for a run; 0: none. */
size_t rsm_clfft_work_bytes(const rsm_clfft *plan);
/* Transforms the rows of `from` into `to`. work: a buffer of work_bytes, or NULL when 0. */
resmap_status rsm_clfft_run(rsm_device *device, rsm_clfft *plan, rsm_buffer *from, rsm_buffer *to,
                            rsm_buffer *work);

/* What is kept for `pencils` transforms of n numbers, `batch` at a time. */
typedef struct rsm_fft_entry {
    size_t n, pencils;
    size_t m, batch;             /* m: the length of the rows, n itself or Bluestein's */
    rsm_clfft *plan;             /* NULL: clFFT does not work here */
    rsm_buffer *chirp, *spectrum;   /* Bluestein's, m > n, else NULL */
    struct rsm_fft_entry *next;
} rsm_fft_entry;

void rsm_fft_close(rsm_device *device);

/* ---- profile.c ---- */

typedef struct rsm_profile rsm_profile;
/* Where a command's event goes: NULL unless a profile is taken. */
cl_event *rsm_profile_event(const rsm_device *device, cl_event *event);
/* Waits for the command of an event asked for so, adds its seconds, and releases it. */
resmap_status rsm_profile_took(rsm_device *device, cl_event event);
/* The same for commands without an event: waits for the device, and adds the seconds since `start` unless
 * that is negative. *start: the time now. */
resmap_status rsm_profile_lap(rsm_device *device, double *start);
void rsm_profile_close(rsm_device *device);

/* ---- tuning.c ---- */

enum { RSM_PREFERENCES = 32 };   /* networks that a device's file tells of, the latest ones */

void rsm_tuning_close(rsm_device *device);

/* ---- device.c ---- */

/* A device, or a further worker on one (rsm_device_share), which has its own queue and kernels, for two
 * threads may not set the arguments of one kernel, and finds all else in `first`. */
struct rsm_device {
    rsm_device *first;           /* whose context, texts, programs and memory these are; a device: itself */
    rsm_env *env;
    rsm_env *own_env;            /* the same, of one of several devices and of further workers; else NULL */
    resmap_device info;          /* strings owned */
    char *identity;
    int reference, cpu;
    int host_memory;             /* see rsm_candidate */
    unsigned quirks, sub_groups;   /* see rsm_candidate */
    cl_platform_id platform;
    cl_device_id id, whole;      /* whole: what id is a part of, or id itself */
    cl_context context;
    cl_command_queue queue;
    pthread_mutex_t memory_lock;   /* of `first`'s next line; never held while others are called */
    uint64_t bytes, peak, limit, default_limit;
    uint64_t sharers;            /* opened devices, this one among them, that use the same memory */
    pthread_mutex_t build_lock;  /* of `first`'s programs */
    rsm_program *programs;
    rsm_kernel *kernels;         /* its own */
    uint64_t max_allocation;
    rsm_gemm_kind gemm;
    int vector;                  /* floats that a register of a CPU holds; 1 on other devices */
    int clblast_used;
    rsm_buffer *clblast_work;    /* NULL: none was needed */
    const rsm_variant *tuned[RSM_TUNABLES];   /* NULL: by rule */
    char *tuning_path, *tuning_state;   /* NULL: no file, nothing to say */
    int tuning_missing;
    rsm_preference preferences[RSM_PREFERENCES];
    size_t preference_count;
    rsm_fft_entry *ffts;         /* plans, the one used last first */
    rsm_profile *profile;        /* NULL: none is taken */
};

struct rsm_buffer {
    rsm_device *device;
    size_t count;
    cl_mem memory;               /* NULL on the reference */
    double *host;                /* NULL on OpenCL */
};

/* "CL_OUT_OF_RESOURCES"; "unknown error" for codes that the standard does not name. */
const char *rsm_cl_error_name(cl_int code);
/* Fails with "device NAME: WHAT: CL_… (code)"; refused memory is RESMAP_NO_DEVICE_MEMORY, since drivers that
 * allocate late refuse it in any call. */
resmap_status rsm_cl_fail(rsm_device *device, const char *what, cl_int code);
/* Whether `count` elements from `offset` lie inside. */
int rsm_buffer_holds(const rsm_buffer *buffer, size_t offset, size_t count);

/* ---- binaries.c: programs on disk ---- */

/* The folder for program binaries inside the library's cache folder, made when missing; NULL when caching is
 * off, or when the folder is not ours alone. Fresh memory. */
char *rsm_binaries_folder(rsm_env *env);
/* 64 hex digits over every field, each preceded by its length. */
resmap_status rsm_binaries_key(rsm_env *env, const char *const *fields, size_t count, char key[65]);
/* The payload kept under `key` (fresh memory), or NULL: absent, damaged or another key's. Damaged files are
 * removed. */
unsigned char *rsm_binaries_load(const char *folder, const char *key, size_t *size);
/* Keeps the payload, and removes the oldest files above `cap` bytes in all; failures leave no trace. */
void rsm_binaries_store(const char *folder, const char *key, const void *payload, size_t size, uint64_t cap);
void rsm_binaries_remove(const char *folder, const char *key);

#endif
