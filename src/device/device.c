/* Opening and closing a device, its memory and its limits. */
#include "device/device_private.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/share.h"

const char *rsm_cl_error_name(cl_int code)
{
#define NAME(e) case e: return #e
    switch (code) {
    NAME(CL_SUCCESS);
    NAME(CL_DEVICE_NOT_FOUND);
    NAME(CL_DEVICE_NOT_AVAILABLE);
    NAME(CL_COMPILER_NOT_AVAILABLE);
    NAME(CL_MEM_OBJECT_ALLOCATION_FAILURE);
    NAME(CL_OUT_OF_RESOURCES);
    NAME(CL_OUT_OF_HOST_MEMORY);
    NAME(CL_PROFILING_INFO_NOT_AVAILABLE);
    NAME(CL_MEM_COPY_OVERLAP);
    NAME(CL_IMAGE_FORMAT_MISMATCH);
    NAME(CL_IMAGE_FORMAT_NOT_SUPPORTED);
    NAME(CL_BUILD_PROGRAM_FAILURE);
    NAME(CL_MAP_FAILURE);
    NAME(CL_MISALIGNED_SUB_BUFFER_OFFSET);
    NAME(CL_EXEC_STATUS_ERROR_FOR_EVENTS_IN_WAIT_LIST);
    NAME(CL_COMPILE_PROGRAM_FAILURE);
    NAME(CL_LINKER_NOT_AVAILABLE);
    NAME(CL_LINK_PROGRAM_FAILURE);
    NAME(CL_DEVICE_PARTITION_FAILED);
    NAME(CL_KERNEL_ARG_INFO_NOT_AVAILABLE);
    NAME(CL_INVALID_VALUE);
    NAME(CL_INVALID_DEVICE_TYPE);
    NAME(CL_INVALID_PLATFORM);
    NAME(CL_INVALID_DEVICE);
    NAME(CL_INVALID_CONTEXT);
    NAME(CL_INVALID_QUEUE_PROPERTIES);
    NAME(CL_INVALID_COMMAND_QUEUE);
    NAME(CL_INVALID_HOST_PTR);
    NAME(CL_INVALID_MEM_OBJECT);
    NAME(CL_INVALID_IMAGE_FORMAT_DESCRIPTOR);
    NAME(CL_INVALID_IMAGE_SIZE);
    NAME(CL_INVALID_SAMPLER);
    NAME(CL_INVALID_BINARY);
    NAME(CL_INVALID_BUILD_OPTIONS);
    NAME(CL_INVALID_PROGRAM);
    NAME(CL_INVALID_PROGRAM_EXECUTABLE);
    NAME(CL_INVALID_KERNEL_NAME);
    NAME(CL_INVALID_KERNEL_DEFINITION);
    NAME(CL_INVALID_KERNEL);
    NAME(CL_INVALID_ARG_INDEX);
    NAME(CL_INVALID_ARG_VALUE);
    NAME(CL_INVALID_ARG_SIZE);
    NAME(CL_INVALID_KERNEL_ARGS);
    NAME(CL_INVALID_WORK_DIMENSION);
    NAME(CL_INVALID_WORK_GROUP_SIZE);
    NAME(CL_INVALID_WORK_ITEM_SIZE);
    NAME(CL_INVALID_GLOBAL_OFFSET);
    NAME(CL_INVALID_EVENT_WAIT_LIST);
    NAME(CL_INVALID_EVENT);
    NAME(CL_INVALID_OPERATION);
    NAME(CL_INVALID_GL_OBJECT);
    NAME(CL_INVALID_BUFFER_SIZE);
    NAME(CL_INVALID_MIP_LEVEL);
    NAME(CL_INVALID_GLOBAL_WORK_SIZE);
    NAME(CL_INVALID_PROPERTY);
    NAME(CL_INVALID_IMAGE_DESCRIPTOR);
    NAME(CL_INVALID_COMPILER_OPTIONS);
    NAME(CL_INVALID_LINKER_OPTIONS);
    NAME(CL_INVALID_DEVICE_PARTITION_COUNT);
    case -1001: return "CL_PLATFORM_NOT_FOUND_KHR";
    default: return "unknown error";
    }
#undef NAME
}

resmap_status rsm_cl_fail(rsm_device *device, const char *what, cl_int code)
{
    resmap_status status = RESMAP_DEVICE_FAILED;
    if (code == CL_MEM_OBJECT_ALLOCATION_FAILURE) status = RESMAP_NO_DEVICE_MEMORY;
    else if (code == CL_INVALID_BUFFER_SIZE) status = RESMAP_NO_DEVICE_MEMORY;
    /* CL_OUT_OF_HOST_MEMORY is what some drivers call any trouble of the device (ROCm): not RESMAP_NO_MEMORY. */
    else if (code == CL_BUILD_PROGRAM_FAILURE) status = RESMAP_BUILD_FAILED;
    return rsm_fail(device->env, status, "device %s: %s: %s (%d)", device->info.name, what,
                    rsm_cl_error_name(code), code);
}

/* ---- Opening ---- */

/* Bytes of memory of this machine; 0 when the system does not tell. */
static uint64_t physical_memory(void)
{
#ifdef _SC_PHYS_PAGES
    long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    if (pages > 0 && page > 0) return (uint64_t)pages * (uint64_t)page;
#endif
    return 0;
}

static void set_memory(rsm_device *device, size_t element)
{
    /* The host's is shared with everything else that runs. */
    uint64_t memory = device->info.memory_bytes, elements = (uint64_t)RSM_MAX_ELEMENTS * element;
    if (memory == 0) memory = UINT64_MAX;
    device->default_limit = device->host_memory ? memory / 2 : memory / 5 * 4;
    device->limit = device->default_limit;
    device->sharers = 1;
    device->max_allocation = device->info.max_allocation_bytes;
    if (device->max_allocation == 0 || device->max_allocation > elements) device->max_allocation = elements;
}

static resmap_status fill_in_reference(rsm_device *device)
{
    device->reference = 1;
    device->cpu = device->host_memory = 1;
    device->vector = 1;
    device->info.index = -1;
    device->info.platform = rsm_strdup("plain C");
    device->info.name = rsm_strdup("reference");
    device->info.driver = rsm_strdup(resmap_version());
    device->info.version = rsm_strdup("float64");
    device->info.reason = rsm_strdup("asked for");
    device->info.type = "cpu";
    device->info.compute_units = 1;
    device->info.memory_bytes = physical_memory();
    device->info.fp64 = 1;
    device->info.usable = 1;
    device->identity = rsm_format("plain C; reference; resmap %s", resmap_version());
    set_memory(device, sizeof(double));
    return RESMAP_OK;
}

static resmap_status fill_in(rsm_device *device, const resmap_device *item, const rsm_candidate *candidate)
{
    device->info = *item;
    device->info.platform = rsm_strdup(item->platform);
    device->info.name = rsm_strdup(item->name);
    device->info.driver = rsm_strdup(item->driver);
    device->info.version = rsm_strdup(item->version);
    device->info.reason = rsm_strdup(item->reason);
    device->identity = rsm_format("%s; %s; %s; %s; %s; %s; %u bits; CLBlast %d; resmap %s", item->platform,
                                  candidate->vendor, candidate->platform_version, item->name, item->version,
                                  item->driver, (unsigned)(8 * sizeof(void *)), rsm_clblast_version(), resmap_version());
    device->platform = candidate->platform;
    device->id = device->whole = candidate->id;
    device->quirks = candidate->quirks;
    device->sub_groups = candidate->sub_groups;
    device->cpu = strcmp(item->type, "cpu") == 0;
    device->host_memory = candidate->host_memory;
    set_memory(device, sizeof(float));
    return RESMAP_OK;
}

static resmap_status start(rsm_device *device)
{
    cl_int code;
    const cl_context_properties properties[] = {
        CL_CONTEXT_PLATFORM, (cl_context_properties)device->platform, 0,
    };
    device->context = clCreateContext(properties, 1, &device->id, NULL, NULL, &code);
    if (code != CL_SUCCESS) return rsm_cl_fail(device, "making a context", code);
    device->queue = clCreateCommandQueue(device->context, device->id, 0, &code);
    if (code != CL_SUCCESS) return rsm_cl_fail(device, "making a queue", code);
    cl_uint width = 0;
    clGetDeviceInfo(device->id, CL_DEVICE_NATIVE_VECTOR_WIDTH_FLOAT, sizeof width, &width, NULL);
    device->vector = !device->cpu ? 1 : width >= 16 ? 16 : width >= 8 ? 8 : 4;
    device->gemm = rsm_gemm_choose(device);
    return RESMAP_OK;
}

/* What a specification names: an entry of the list or the reference, whole or in parts. */
typedef struct choice {
    int reference;
    size_t index;
    unsigned parts;              /* of equal size; 1: the whole */
} choice;

enum { MOST_PARTS = 64 };

static resmap_status choose(rsm_env *env, const rsm_device_list *list, const char *specification,
                            choice *chosen)
{
    *chosen = (choice){.parts = 1};
    if (specification && strcmp(specification, "reference") == 0) {
        chosen->reference = 1;
        return RESMAP_OK;
    }
    return rsm_device_list_select(env, list, specification, &chosen->index);
}

/* Puts part number `part` of the device in its place. */
static resmap_status take_part(rsm_device *device, unsigned part, unsigned parts)
{
    cl_device_partition_property counts[MOST_PARTS + 3] = {CL_DEVICE_PARTITION_BY_COUNTS};
    cl_device_id made[MOST_PARTS];
    unsigned units = device->info.compute_units > 0 ? (unsigned)device->info.compute_units : 1;
    char *name = rsm_format("%s, part %u of %u", device->info.name, part + 1, parts);

    if (!name) return rsm_no_memory(device->env, strlen(device->info.name));
    for (unsigned i = 0; i < parts; i++) counts[1 + i] = (units + i) / parts;
    counts[1 + parts] = CL_DEVICE_PARTITION_BY_COUNTS_LIST_END;
    cl_int code = units < parts ? CL_INVALID_DEVICE_PARTITION_COUNT
                                : clCreateSubDevices(device->whole, counts, parts, made, NULL);
    if (code != CL_SUCCESS) {
        free(name);
        return rsm_fail(device->env, RESMAP_NO_DEVICE,
                        "device %s: its %u compute units cannot be divided by %u: %s (%d)", device->info.name,
                        units, parts, rsm_cl_error_name(code), code);
    }
    for (unsigned i = 0; i < parts; i++) {
        if (i != part) clReleaseDevice(made[i]);
    }
    device->id = made[part];
    device->info.compute_units = (int)((units + part) / parts);
    free((char *)device->info.name);
    device->info.name = name;
    return RESMAP_OK;
}

/* own_env: the device takes it over, and has it instead of `env`; NULL: none. */
static resmap_status open_choice(rsm_env *env, const rsm_device_list *list, const choice *chosen,
                                 unsigned part, rsm_env *own_env, rsm_device **result)
{
    resmap_status status = RESMAP_OK;
    rsm_device *device = calloc(1, sizeof *device);
    if (!device) {
        free(own_env);
        return rsm_no_memory(env, sizeof *device);
    }
    device->first = device;
    pthread_mutex_init(&device->memory_lock, NULL);
    pthread_mutex_init(&device->build_lock, NULL);
    device->env = own_env ? own_env : env;
    device->own_env = own_env;
    if (chosen->reference) {
        RSM_CHECK(fill_in_reference(device));
    } else {
        RSM_CHECK(fill_in(device, &list->items[chosen->index], &list->candidates[chosen->index]));
    }
    if (!device->info.platform || !device->info.name || !device->info.driver || !device->info.version
        || !device->info.reason || !device->identity) RSM_CHECK(rsm_no_memory(device->env, 256));
    if (chosen->parts > 1) RSM_CHECK(take_part(device, part, chosen->parts));
    if (!chosen->reference) RSM_CHECK(start(device));
    RSM_CHECK(rsm_tuning_load(device));
    if (!device->info.usable) {
        rsm_log(device->env, RESMAP_LOG_WARNING, "device %s: taken because it was named, though %s",
                device->info.name, device->info.reason);
    }
done:
    if (status == RESMAP_OK) {
        *result = device;
    } else {
        if (device->env != env) rsm_fail(env, status, "%s", device->env->error);
        rsm_device_close(device);
    }
    return status;
}

resmap_status rsm_device_open(rsm_env *env, const char *specification, rsm_device **result)
{
    rsm_device_list *list = NULL;
    choice chosen;
    resmap_status status;
    if (!specification || strcmp(specification, "reference") != 0) {
        RSM_TRY(rsm_device_list_create(env, &list));
    }
    RSM_CHECK(choose(env, list, specification, &chosen));
    RSM_CHECK(open_choice(env, list, &chosen, 0, NULL, result));
done:
    rsm_device_list_free(list);
    return status;
}

/* ---- Several ---- */

/* Splits "NAME/PARTS" off the front of *text, to the next comma, into fresh memory at *name; *parts is 1
 * without a slash, 0 when what follows it is no number of parts. */
static resmap_status next_item(rsm_env *env, const char **text, char **name, unsigned *parts)
{
    size_t length = strcspn(*text, ",");
    *name = rsm_format("%.*s", (int)length, *text);
    if (!*name) return rsm_no_memory(env, length + 1);
    *text += length;
    *parts = 1;
    char *slash = strrchr(*name, '/');
    if (slash) {
        char *end;
        unsigned long number = strtoul(slash + 1, &end, 10);
        int good = slash[1] >= '1' && slash[1] <= '9' && *end == '\0' && number <= MOST_PARTS;
        *parts = good ? (unsigned)number : 0;
        *slash = '\0';
    }
    return RESMAP_OK;
}

static resmap_status add_choice(rsm_env *env, choice **choices, size_t *count, choice chosen)
{
    choice *more = realloc(*choices, (*count + 1) * sizeof *more);
    if (!more) return rsm_no_memory(env, (*count + 1) * sizeof *more);
    *choices = more;
    more[(*count)++] = chosen;
    return RESMAP_OK;
}

/* What every item of a specification names, in fresh memory (also on failure). "auto": all that may be taken, the best first. */
static resmap_status choose_all(rsm_env *env, const rsm_device_list *list, const char *specification,
                                choice **choices, size_t *count)
{
    resmap_status status = RESMAP_OK;
    choice chosen;
    const int all = strcmp(specification, "all") == 0;
    if (all || strcmp(specification, "auto") == 0) {
        size_t *indices, found;
        RSM_TRY((all ? rsm_device_list_all : rsm_device_list_ranked)(env, list, &indices, &found));
        for (size_t i = 0; i < found && status == RESMAP_OK; i++) {
            status = add_choice(env, choices, count, (choice){.index = indices[i], .parts = 1});
        }
        free(indices);
        return status;
    }
    /* A device's name may have commas and slashes. */
    if (!strpbrk(specification, ",/") || choose(env, list, specification, &chosen) == RESMAP_OK) {
        RSM_TRY(choose(env, list, specification, &chosen));
        return add_choice(env, choices, count, chosen);
    }
    for (const char *at = specification;; at++) {
        char *name;
        unsigned parts = 1;
        RSM_TRY(next_item(env, &at, &name, &parts));
        if (parts == 0) {
            status = rsm_fail(env, RESMAP_BAD_ARGUMENT,
                              "device %s: the number of parts after / is not within 1 and %d", specification,
                              MOST_PARTS);
        }
        if (status == RESMAP_OK && name[0] == '\0')
            status = rsm_fail(env, RESMAP_BAD_ARGUMENT, "device %s: an empty name", specification);
        if (status == RESMAP_OK) status = choose(env, list, name, &chosen);
        chosen.parts = parts;
        if (status == RESMAP_OK && chosen.reference && parts > 1) {
            status = rsm_fail(env, RESMAP_BAD_ARGUMENT, "device reference: has no parts");
        }
        if (status == RESMAP_OK) status = add_choice(env, choices, count, chosen);
        free(name);
        if (status != RESMAP_OK || *at == '\0') return status;
    }
}

/* Those that use the same memory take an equal share of it each: parts of one device, one opened twice, and
 * all that use the host's. */
static void divide_memory(rsm_device **devices, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t sharers = 0;
        for (size_t k = 0; k < count; k++) {
            sharers += devices[i]->host_memory ? devices[k]->host_memory != 0 : devices[k]->whole == devices[i]->whole;
        }
        devices[i]->sharers = sharers;
        devices[i]->default_limit /= sharers;
        devices[i]->limit = devices[i]->default_limit;
    }
}

resmap_status rsm_devices_open(rsm_env *env, const char *specification, rsm_device ***result,
                               size_t *result_count)
{
    rsm_device_list *list = NULL;
    choice *choices = NULL;
    rsm_device **devices = NULL;
    size_t chosen = 0, total = 0, count = 0;
    resmap_status status = RESMAP_OK;
    if (!specification) specification = "auto";
    const int one = strcmp(specification, "auto") == 0, some = one || strcmp(specification, "all") == 0;
    /* The reference is to be had where OpenCL fails. */
    if (strcmp(specification, "reference") != 0) RSM_CHECK(rsm_device_list_create(env, &list));
    RSM_CHECK(choose_all(env, list, specification, &choices, &chosen));
    for (size_t i = 0; i < chosen; i++) total += choices[i].parts;
    if (one) total = 1;                          /* the others are for where the best does not open */
    devices = calloc(total, sizeof *devices);
    if (!devices) RSM_CHECK(rsm_no_memory(env, total * sizeof *devices));
    for (size_t i = 0; i < chosen && !(one && count > 0); i++) {
        for (unsigned part = 0; part < choices[i].parts; part++) {
            rsm_env *own = NULL;
            if (total > 1) {
                own = calloc(1, sizeof *own);
                if (!own) RSM_CHECK(rsm_no_memory(env, sizeof *own));
                rsm_env_follow(own, env);
            }
            status = open_choice(env, list, &choices[i], part, own, &devices[count]);
            if (status == RESMAP_OK) count++;
            /* Of devices that nobody named, those that cannot be opened (no rights, taken by others) are done without. */
            else if (some && rsm_is_device_failure(status) && (count > 0 || i + 1 < chosen)) {
                rsm_log(env, RESMAP_LOG_WARNING, "%s; done without", env->error);
                status = RESMAP_OK;
            } else goto done;
        }
    }
    if (count == 1 && devices[0]->own_env) {     /* the only one that could be opened */
        devices[0]->env = env;
        free(devices[0]->own_env);
        devices[0]->own_env = NULL;
    }
    divide_memory(devices, count);
    *result = devices;
    *result_count = count;
    devices = NULL;
done:
    rsm_devices_close(devices, count);
    rsm_device_list_free(list);
    free(choices);
    return status;
}

void rsm_devices_close(rsm_device **devices, size_t count)
{
    if (!devices) return;
    for (size_t i = 0; i < count; i++) rsm_device_close(devices[i]);
    free(devices);
}

resmap_status rsm_device_share(rsm_device *device, rsm_device **result)
{
    resmap_status status = RESMAP_OK;
    cl_int code;
    rsm_device *worker = calloc(1, sizeof *worker);
    if (!worker) return rsm_no_memory(device->env, sizeof *worker);
    worker->first = device->first;
    worker->env = worker->own_env = calloc(1, sizeof *worker->own_env);
    if (!worker->env) RSM_CHECK(rsm_no_memory(device->env, sizeof *worker->env));
    rsm_env_follow(worker->env, device->env);
    worker->info = device->info;
    worker->identity = device->identity;
    worker->cpu = device->cpu;
    worker->host_memory = device->host_memory;
    worker->quirks = device->quirks;
    worker->sub_groups = device->sub_groups;
    worker->platform = device->platform;
    worker->id = device->id;
    worker->whole = device->whole;
    worker->context = device->context;
    worker->max_allocation = device->max_allocation;
    worker->gemm = device->gemm;
    worker->vector = device->vector;
    memcpy(worker->tuned, device->tuned, sizeof worker->tuned);
    worker->queue = clCreateCommandQueue(worker->context, worker->id, 0, &code);
    if (code != CL_SUCCESS) RSM_CHECK(rsm_cl_fail(device, "making another queue", code));
    *result = worker;
    return RESMAP_OK;
done:
    rsm_device_close(worker);
    return status;
}

/* What a device has and its further workers borrow. */
static void close_first(rsm_device *device)
{
    rsm_programs_free(device->programs);
    rsm_tuning_close(device);
    if (device->context) clReleaseContext(device->context);
    if (device->id != device->whole) clReleaseDevice(device->id);
    free((char *)device->info.platform);
    free((char *)device->info.name);
    free((char *)device->info.driver);
    free((char *)device->info.version);
    free((char *)device->info.reason);
    free(device->identity);
    pthread_mutex_destroy(&device->memory_lock);
    pthread_mutex_destroy(&device->build_lock);
}

void rsm_device_close(rsm_device *device)
{
    if (!device) return;
    if (device->queue) clFinish(device->queue);
    rsm_profile_close(device);
    rsm_fft_close(device);
    rsm_clblast_close(device);
    rsm_kernels_free(device->kernels);
    if (device->queue) clReleaseCommandQueue(device->queue);
    if (device->first == device) close_first(device);
    free(device->own_env);
    free(device);
}

const resmap_device *rsm_device_info(const rsm_device *device)
{
    return &device->info;
}

int rsm_device_is_reference(const rsm_device *device)
{
    return device->reference;
}

int rsm_device_is_cpu(const rsm_device *device)
{
    return device->cpu;
}

int rsm_device_uses_host_memory(const rsm_device *device)
{
    return device->host_memory;
}

int rsm_device_vector(const rsm_device *device)
{
    return device->vector;
}

rsm_env *rsm_device_env(const rsm_device *device)
{
    return device->env;
}

const char *rsm_device_identity(const rsm_device *device)
{
    return device->identity;
}

resmap_status rsm_device_finish(rsm_device *device)
{
    if (device->reference) return RESMAP_OK;
    cl_int code = clFinish(device->queue);
    return code == CL_SUCCESS ? RESMAP_OK : rsm_cl_fail(device, "finishing", code);
}

/* ---- Memory ---- */

/* One of the numbers that the device's workers count together. */
static uint64_t counted(const rsm_device *device, const uint64_t *number)
{
    pthread_mutex_lock(&device->first->memory_lock);
    uint64_t value = *number;
    pthread_mutex_unlock(&device->first->memory_lock);
    return value;
}

uint64_t rsm_device_bytes(const rsm_device *device)
{
    return counted(device, &device->first->bytes);
}

uint64_t rsm_device_bytes_peak(const rsm_device *device)
{
    return counted(device, &device->first->peak);
}

void rsm_device_reset_peak(rsm_device *device)
{
    rsm_device *first = device->first;
    pthread_mutex_lock(&first->memory_lock);
    first->peak = first->bytes;
    pthread_mutex_unlock(&first->memory_lock);
}

/* Set while nobody works. */
void rsm_device_set_limit(rsm_device *device, uint64_t bytes)
{
    rsm_device *first = device->first;
    first->limit = bytes ? bytes / first->sharers : first->default_limit;
}

uint64_t rsm_device_limit(const rsm_device *device)
{
    return device->first->limit;
}

int rsm_device_is_limited(const rsm_device *device)
{
    return device->first->limit != device->first->default_limit;
}

uint64_t rsm_device_max_allocation(const rsm_device *device)
{
    return device->max_allocation;
}

static uint64_t buffer_bytes(const rsm_device *device, size_t count)
{
    return (uint64_t)count * (device->reference ? sizeof(double) : sizeof(float));
}

/* Counts `bytes` as in use, where the limit leaves room for them. */
static resmap_status reserve(rsm_device *device, uint64_t bytes)
{
    rsm_device *first = device->first;
    pthread_mutex_lock(&first->memory_lock);
    uint64_t used = first->bytes, limit = first->limit;
    int fits = used <= limit && bytes <= limit - used;
    if (fits) first->bytes += bytes;
    pthread_mutex_unlock(&first->memory_lock);
    if (fits) return RESMAP_OK;
    return rsm_fail(device->env, RESMAP_NO_DEVICE_MEMORY,
                    "device %s: %llu more bytes of memory are wanted, %llu of %llu are in use", device->info.name,
                    (unsigned long long)bytes, (unsigned long long)used, (unsigned long long)limit);
}

static void unreserve(rsm_device *device, uint64_t bytes)
{
    pthread_mutex_lock(&device->first->memory_lock);
    device->first->bytes -= bytes;
    pthread_mutex_unlock(&device->first->memory_lock);
}

static void note_peak(rsm_device *device)
{
    rsm_device *first = device->first;
    pthread_mutex_lock(&first->memory_lock);
    if (first->bytes > first->peak) first->peak = first->bytes;
    pthread_mutex_unlock(&first->memory_lock);
}

resmap_status rsm_buffer_create(rsm_device *device, size_t count, rsm_buffer **result)
{
    if (count == 0) count = 1;                   /* OpenCL has no empty buffers */
    if (count > RSM_MAX_ELEMENTS || buffer_bytes(device, count) > device->max_allocation) {
        return rsm_fail(device->env, RESMAP_NO_DEVICE_MEMORY,
                        "device %s: a buffer of %zu elements: at most %llu bytes", device->info.name, count,
                        (unsigned long long)device->max_allocation);
    }
    uint64_t bytes = buffer_bytes(device, count);
    resmap_status status = reserve(device, bytes);
    if (status == RESMAP_NO_DEVICE_MEMORY && device->clblast_work) {
        rsm_clblast_drop_work(device);
        status = reserve(device, bytes);
    }
    if (status != RESMAP_OK) return status;
    rsm_buffer *buffer = calloc(1, sizeof *buffer);
    if (!buffer) RSM_CHECK(rsm_no_memory(device->env, sizeof *buffer));
    buffer->device = device->first;              /* a worker's may outlive it */
    buffer->count = count;
    if (device->reference) {
        buffer->host = malloc((size_t)bytes);
        if (!buffer->host) RSM_CHECK(rsm_no_memory(device->env, (size_t)bytes));
    } else {
        cl_int code;
        buffer->memory = clCreateBuffer(device->context, CL_MEM_READ_WRITE, (size_t)bytes, NULL, &code);
        if (code != CL_SUCCESS) {
            buffer->memory = NULL;
            /* Some drivers report a full device so. */
            if (code == CL_OUT_OF_RESOURCES || code == CL_OUT_OF_HOST_MEMORY) {
                code = CL_MEM_OBJECT_ALLOCATION_FAILURE;
            }
            RSM_CHECK(rsm_cl_fail(device, "making a buffer", code));
        }
    }
    note_peak(device);
    *result = buffer;
    return RESMAP_OK;
done:
    unreserve(device, bytes);
    free(buffer);
    return status;
}

void rsm_buffer_free(rsm_buffer *buffer)
{
    if (!buffer) return;
    if (buffer->memory) clReleaseMemObject(buffer->memory);
    free(buffer->host);
    unreserve(buffer->device, buffer_bytes(buffer->device, buffer->count));
    free(buffer);
}

size_t rsm_buffer_count(const rsm_buffer *buffer)
{
    return buffer->count;
}

double *rsm_buffer_host(rsm_buffer *buffer)
{
    return buffer->host;
}

const char *rsm_storage_type(rsm_storage storage)
{
    return storage == RSM_FP16 ? "half" : "float";
}

double rsm_storage_size(rsm_storage storage)
{
    return storage == RSM_FP16 ? 0.5 : 1;
}

size_t rsm_buffer_capacity(const rsm_buffer *buffer, rsm_storage storage)
{
    if (storage == RSM_FP32) return buffer->count;
    if (buffer->device->reference) return 0;
    return buffer->count <= RSM_MAX_ELEMENTS / 2 ? 2 * buffer->count : RSM_MAX_ELEMENTS;
}

int rsm_buffer_holds(const rsm_buffer *buffer, size_t offset, size_t count)
{
    return offset <= buffer->count && count <= buffer->count - offset;
}

/* Whether `rows` runs of `width` elements lie inside. */
static int holds_rows(const rsm_buffer *buffer, size_t offset, size_t stride, size_t width, size_t rows)
{
    if (rows == 0 || width == 0) return 1;
    if (stride > RSM_MAX_ELEMENTS || rows > RSM_MAX_ELEMENTS) return 0;
    return rsm_buffer_holds(buffer, offset, width)
        && (uint64_t)(rows - 1) * stride <= buffer->count - offset - width;
}

static resmap_status outside(rsm_device *device, const char *what)
{
    return rsm_fail(device->env, RESMAP_INTERNAL, "device %s: %s: outside the buffer", device->info.name,
                    what);
}

resmap_status rsm_buffer_write(rsm_device *device, rsm_buffer *buffer, size_t offset, const float *source,
                               size_t count)
{
    if (!rsm_buffer_holds(buffer, offset, count)) return outside(device, "writing");
    if (count == 0) return RESMAP_OK;
    RSM_TRY(rsm_profile_next(device, "write", 0, 0, 0, (double)count));
    if (device->reference) {
        for (size_t i = 0; i < count; i++) buffer->host[offset + i] = source[i];
        return RESMAP_OK;
    }
    cl_event event;
    cl_int code = clEnqueueWriteBuffer(device->queue, buffer->memory, CL_TRUE, offset * sizeof(float),
                                       count * sizeof(float), source, 0, NULL,
                                       rsm_profile_event(device, &event));
    return code == CL_SUCCESS ? rsm_profile_took(device, event) : rsm_cl_fail(device, "writing", code);
}

resmap_status rsm_buffer_read(rsm_device *device, rsm_buffer *buffer, size_t offset, float *target,
                              size_t count)
{
    if (!rsm_buffer_holds(buffer, offset, count)) return outside(device, "reading");
    if (count == 0) return RESMAP_OK;
    RSM_TRY(rsm_profile_next(device, "read", 0, 0, 0, (double)count));
    if (device->reference) {
        for (size_t i = 0; i < count; i++) target[i] = (float)buffer->host[offset + i];
        return RESMAP_OK;
    }
    cl_event event;
    cl_int code = clEnqueueReadBuffer(device->queue, buffer->memory, CL_TRUE, offset * sizeof(float),
                                      count * sizeof(float), target, 0, NULL,
                                      rsm_profile_event(device, &event));
    return code == CL_SUCCESS ? rsm_profile_took(device, event) : rsm_cl_fail(device, "reading", code);
}

resmap_status rsm_buffer_copy(rsm_device *device, rsm_buffer *target, size_t target_offset,
                              size_t target_stride, rsm_buffer *source, size_t source_offset,
                              size_t source_stride, size_t width, size_t rows)
{
    if (!holds_rows(target, target_offset, target_stride, width, rows)
        || !holds_rows(source, source_offset, source_stride, width, rows)) return outside(device, "copying");
    if (width == 0 || rows == 0) return RESMAP_OK;
    if (target_stride == width && source_stride == width) {
        width *= rows;
        rows = 1;
    }
    RSM_TRY(rsm_profile_next(device, "copy", 0, 0, 0, 2 * (double)width * (double)rows));
    if (device->reference) {
        for (size_t r = 0; r < rows; r++) {
            memcpy(target->host + target_offset + r * target_stride,
                   source->host + source_offset + r * source_stride, width * sizeof(double));
        }
        return RESMAP_OK;
    }
    cl_int code = CL_SUCCESS;
    cl_event event;
    if (rows > 1 && target != source && target_stride >= width && source_stride >= width) {
        const size_t from[3] = {source_offset * sizeof(float), 0, 0};
        const size_t to[3] = {target_offset * sizeof(float), 0, 0};
        const size_t region[3] = {width * sizeof(float), rows, 1};
        code = clEnqueueCopyBufferRect(device->queue, source->memory, target->memory, from, to, region,
                                       source_stride * sizeof(float), 0, target_stride * sizeof(float), 0, 0,
                                       NULL, rsm_profile_event(device, &event));
        if (code == CL_SUCCESS) RSM_TRY(rsm_profile_took(device, event));
    } else {
        /* Within one buffer drivers may take interleaved regions for overlapping ones. */
        for (size_t r = 0; r < rows && code == CL_SUCCESS; r++) {
            code = clEnqueueCopyBuffer(device->queue, source->memory, target->memory,
                                       (source_offset + r * source_stride) * sizeof(float),
                                       (target_offset + r * target_stride) * sizeof(float),
                                       width * sizeof(float), 0, NULL, rsm_profile_event(device, &event));
            if (code == CL_SUCCESS) RSM_TRY(rsm_profile_took(device, event));
        }
    }
    return code == CL_SUCCESS ? RESMAP_OK : rsm_cl_fail(device, "copying", code);
}
