/* Programs and kernels: programs are built once for all workers of a device, and kept by it, and on disk
 * unless the driver does so itself; kernels are each worker's own. */
#include "device/device_private.h"

#include <stdlib.h>
#include <string.h>

#include "device/kernels.h"

#define COMMON_OPTIONS "-cl-std=CL1.2 -w "
#define BINARIES_CAP ((uint64_t)256 << 20)

void rsm_kernels_free(rsm_kernel *kernels)
{
    while (kernels) {
        rsm_kernel *kernel = kernels;
        kernels = kernel->next;
        clReleaseKernel(kernel->kernel);
        free(kernel->name);
        free(kernel);
    }
}

void rsm_programs_free(rsm_program *programs)
{
    while (programs) {
        rsm_program *program = programs;
        programs = program->next;
        if (program->program) clReleaseProgram(program->program);
        free(program->file);
        free(program->options);
        free(program);
    }
}

/* First line of the build log that says something. */
static resmap_status build_failed(rsm_device *device, cl_program program, const char *file, cl_int code)
{
    size_t size = 0;
    char *log = NULL;
    if (clGetProgramBuildInfo(program, device->id, CL_PROGRAM_BUILD_LOG, 0, NULL, &size) == CL_SUCCESS) {
        log = calloc(size + 1, 1);
    }
    if (log) {
        cl_int got = clGetProgramBuildInfo(program, device->id, CL_PROGRAM_BUILD_LOG, size, log, NULL);
        if (got != CL_SUCCESS) log[0] = '\0';
    }
    if (log) rsm_log(device->env, RESMAP_LOG_DEBUG, "build log of %s.cl: %s", file, log);
    /* The line with the error where there is one, else the first. */
    char *line = log ? strstr(log, "error:") : NULL;
    if (line) {
        while (line > log && line[-1] != '\n') line--;
    } else if (log) {
        line = log + strspn(log, " \t\r\n");
    }
    if (line) line[strcspn(line, "\r\n")] = '\0';
    resmap_status status = rsm_fail(device->env, RESMAP_BUILD_FAILED, "device %s: building %s.cl: %s",
                                    device->info.name, file,
                                    line && line[0] ? line : rsm_cl_error_name(code));
    free(log);
    return status;
}

/* The program from its binary on disk, or NULL. */
static cl_program from_disk(rsm_device *device, const char *folder, const char *key, const char *options)
{
    size_t size;
    unsigned char *payload = rsm_binaries_load(folder, key, &size);
    if (!payload) return NULL;
    const unsigned char *binaries[1] = {payload};
    cl_int code, binary_status = CL_SUCCESS;
    cl_program program = clCreateProgramWithBinary(device->context, 1, &device->id, &size, binaries,
                                                   &binary_status, &code);
    free(payload);
    if (code != CL_SUCCESS) program = NULL;
    if (program && (binary_status != CL_SUCCESS
                    || clBuildProgram(program, 1, &device->id, options, NULL, NULL) != CL_SUCCESS)) {
        clReleaseProgram(program);
        program = NULL;
    }
    rsm_log(device->env, RESMAP_LOG_DEBUG, "program cache: %s %s", key,
            program ? "used" : "not taken by the driver");
    if (!program) rsm_binaries_remove(folder, key);
    return program;
}

static void to_disk(rsm_device *device, const char *folder, const char *key, cl_program program)
{
    size_t size = 0;
    if (clGetProgramInfo(program, CL_PROGRAM_BINARY_SIZES, sizeof size, &size, NULL) != CL_SUCCESS
        || size == 0) {
        return;
    }
    unsigned char *binary = malloc(size);
    if (!binary) return;
    unsigned char *binaries[1] = {binary};
    if (clGetProgramInfo(program, CL_PROGRAM_BINARIES, sizeof binaries, binaries, NULL) == CL_SUCCESS) {
        rsm_binaries_store(folder, key, binary, size, BINARIES_CAP);
        rsm_log(device->env, RESMAP_LOG_DEBUG, "program cache: %s stored", key);
    }
    free(binary);
}

/* Creates the kernel in `program`; NULL with *code when the driver refuses. */
static cl_kernel find_in(cl_program program, const char *name, cl_int *code)
{
    cl_kernel kernel = clCreateKernel(program, name, code);
    return *code == CL_SUCCESS ? kernel : NULL;
}

/* Builds `program` with one kernel of it, which is made before binaries are asked for: some drivers compile
 * that late, and a binary that lacks the kernel is of no use. */
static resmap_status build(rsm_device *device, rsm_program *program, const char *options, const char *name,
                           cl_kernel *kernel)
{
    size_t length[2];
    const char *text[2];
    text[0] = rsm_kernel_source("vector", &length[0]);
    text[1] = rsm_kernel_source(program->file, &length[1]);
    if (!text[0] || !text[1]) {
        return rsm_fail(device->env, RESMAP_INTERNAL, "program %s: not in the library", program->file);
    }

    char key[65];
    char *folder = device->quirks & RSM_QUIRK_NO_BINARIES ? NULL : rsm_binaries_folder(device->env);
    if (!folder) device->quirks |= RSM_QUIRK_NO_BINARIES;    /* why was told, and once is enough */
    resmap_status status = RESMAP_OK;
    cl_int code;
    if (folder) {
        const char *fields[] = {text[0], text[1], options, device->identity};
        RSM_CHECK(rsm_binaries_key(device->env, fields, sizeof fields / sizeof fields[0], key));
        program->program = from_disk(device, folder, key, options);
        if (program->program) {
            *kernel = find_in(program->program, name, &code);
            if (*kernel) goto done;
            clReleaseProgram(program->program);
            program->program = NULL;
            rsm_binaries_remove(folder, key);
        }
    }
    program->program = clCreateProgramWithSource(device->context, 2, text, length, &code);
    if (code != CL_SUCCESS) {
        program->program = NULL;
        RSM_CHECK(rsm_cl_fail(device, program->file, code));
    }
    code = clBuildProgram(program->program, 1, &device->id, options, NULL, NULL);
    if (code == CL_BUILD_PROGRAM_FAILURE || code == CL_INVALID_BUILD_OPTIONS
        || code == CL_COMPILER_NOT_AVAILABLE) {
        RSM_CHECK(build_failed(device, program->program, program->file, code));
    }
    if (code != CL_SUCCESS) RSM_CHECK(rsm_cl_fail(device, program->file, code));
    *kernel = find_in(program->program, name, &code);
    if (!*kernel) RSM_CHECK(rsm_cl_fail(device, name, code));
    if (folder) to_disk(device, folder, key, program->program);
done:
    free(folder);
    return status;
}

/* Keeps `made` under its name; on failure releases it. */
static resmap_status keep_kernel(rsm_device *device, const rsm_program *program, const char *name,
                                 cl_kernel made, rsm_kernel **kernel)
{
    rsm_kernel *kept = calloc(1, sizeof *kept);
    char *copy = rsm_strdup(name);
    if (!kept || !copy) {
        free(kept);
        free(copy);
        clReleaseKernel(made);
        return rsm_no_memory(device->env, sizeof *kept + strlen(name));
    }
    kept->program = program;
    kept->kernel = made;
    kept->name = copy;
    kept->next = device->kernels;
    device->kernels = kept;
    *kernel = kept;
    return RESMAP_OK;
}

static int is_program(const rsm_program *program, const char *file, const char *options)
{
    return strcmp(program->file, file) == 0
        && strcmp(program->options + strlen(COMMON_OPTIONS), options) == 0;
}

/* A new kernel of the device's program of that file and those options, which is built when there is none.
 * Others wait meanwhile, most often for the same one. */
static resmap_status make_kernel(rsm_device *device, const char *file, const char *name, const char *options,
                                 rsm_program **found, cl_kernel *made)
{
    rsm_device *first = device->first;
    resmap_status status = RESMAP_OK;
    cl_int code;
    for (rsm_program *program = first->programs; program; program = program->next) {
        if (!is_program(program, file, options)) continue;
        *found = program;
        *made = find_in(program->program, name, &code);
        return *made ? RESMAP_OK : rsm_cl_fail(device, name, code);
    }
    rsm_program *program = calloc(1, sizeof *program);
    if (!program) return rsm_no_memory(device->env, sizeof *program);
    program->file = rsm_strdup(file);
    program->options = rsm_format("%s%s", COMMON_OPTIONS, options);
    if (!program->file || !program->options) {
        RSM_CHECK(rsm_no_memory(device->env, strlen(file) + strlen(options) + 64));
    }
    RSM_CHECK(build(device, program, program->options, name, made));
    program->next = first->programs;
    first->programs = program;
    *found = program;
done:
    if (status != RESMAP_OK) rsm_programs_free(program);
    return status;
}

resmap_status rsm_kernel_get(rsm_device *device, const char *file, const char *name, const char *options,
                             rsm_kernel **kernel)
{
    if (device->reference) {
        return rsm_fail(device->env, RESMAP_INTERNAL, "kernel %s: the reference has none", name);
    }
    for (rsm_kernel *known = device->kernels; known; known = known->next) {
        if (strcmp(known->name, name) != 0 || !is_program(known->program, file, options)) continue;
        *kernel = known;
        return RESMAP_OK;
    }
    rsm_program *program = NULL;
    cl_kernel made = NULL;
    RSM_TRY(rsm_poll(device->env));              /* a driver may take seconds for each program */
    pthread_mutex_lock(&device->first->build_lock);
    resmap_status status = make_kernel(device, file, name, options, &program, &made);
    pthread_mutex_unlock(&device->first->build_lock);
    return status == RESMAP_OK ? keep_kernel(device, program, name, made, kernel) : status;
}

size_t rsm_kernel_most_items(const rsm_device *device, const rsm_kernel *kernel)
{
    size_t most = 0;
    clGetKernelWorkGroupInfo(kernel->kernel, device->id, CL_KERNEL_WORK_GROUP_SIZE, sizeof most, &most, NULL);
    return most;
}

resmap_status rsm_kernel_run(rsm_device *device, rsm_kernel *kernel, int dims, const size_t *global,
                             const size_t *local, const rsm_argument *arguments, size_t argument_count)
{
    size_t rounded[3], group = 1;
    if (dims < 1 || dims > 3) {
        return rsm_fail(device->env, RESMAP_INTERNAL, "kernel %s: %d dimensions", kernel->name, dims);
    }
    for (int i = 0; i < dims; i++) {
        size_t step = local ? local[i] : 1;
        if (step == 0 || global[i] > RSM_MAX_ELEMENTS) {
            return rsm_fail(device->env, RESMAP_INTERNAL, "kernel %s: too many work-items", kernel->name);
        }
        if (global[i] == 0) return RESMAP_OK;
        rounded[i] = (global[i] + step - 1) / step * step;
        group *= step;
    }
    for (size_t i = 0; i < argument_count; i++) {
        const rsm_argument *argument = &arguments[i];
        cl_int code;
        if (argument->size == 0) {
            const rsm_buffer *buffer = argument->value;
            if (!buffer || buffer->device != device->first) {
                return rsm_fail(device->env, RESMAP_INTERNAL,
                                "kernel %s: argument %zu is no buffer of this device", kernel->name, i);
            }
            code = clSetKernelArg(kernel->kernel, (cl_uint)i, sizeof(cl_mem), &buffer->memory);
        } else {
            code = clSetKernelArg(kernel->kernel, (cl_uint)i, argument->size, argument->value);
        }
        if (code != CL_SUCCESS) {
            return rsm_fail(device->env, RESMAP_INTERNAL, "device %s: kernel %s: argument %zu: %s (%d)",
                            device->info.name, kernel->name, i, rsm_cl_error_name(code), code);
        }
    }
    cl_event event;
    cl_int code = clEnqueueNDRangeKernel(device->queue, kernel->kernel, (cl_uint)dims, NULL, rounded, local,
                                         0, NULL, rsm_profile_event(device, &event));
    if (code == CL_INVALID_WORK_GROUP_SIZE) {
        return rsm_fail(device->env, RESMAP_DEVICE_FAILED,
                        "device %s: kernel %s: a work-group of %zu, at most %zu fit", device->info.name,
                        kernel->name, group, rsm_kernel_most_items(device, kernel));
    }
    if (code != CL_SUCCESS) return rsm_cl_fail(device, kernel->name, code);
    return rsm_profile_took(device, event);
}
