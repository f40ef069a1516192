/* The device layer with a driver that fails: every call that creates, builds or enqueues something fails
 * once, the first, then the second, and so on. Each time an error must come out, and nothing may be left
 * behind.
 *
 * The calls are caught by defining them here: the linker prefers the program's own definitions to
 * libOpenCL's. */
#define _GNU_SOURCE 1                            /* RTLD_NEXT */
#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "device/device_private.h"
#include "tests/real.h"
#include "tests/run.h"

static rsm_env env;

static int calls, failing_call, failed_code;     /* failing_call 0: none fails */
static const char *failed_name;
static int contexts, queues, memories, programs, kernels;   /* alive */

/* Whether this call is the one to fail. */
static int fails(const char *name, cl_int code)
{
    if (++calls != failing_call) return 0;
    failed_name = name;
    failed_code = code;
    return 1;
}

/* type name(parameters): a call that makes an object, given back by `release`. */
#define CREATES(type, name, parameters, arguments, code, alive, release)         \
    type name parameters                                                         \
    {                                                                            \
        type (*function) parameters;                                             \
        *(void **)&function = real(#name);                                       \
        if (fails(#name, code)) {                                                \
            if (error) *error = code;                                            \
            return NULL;                                                         \
        }                                                                        \
        type made = function arguments;                                          \
        if (made) alive++;                                                       \
        return made;                                                             \
    }                                                                            \
    cl_int release(type object)                                                  \
    {                                                                            \
        cl_int (*function)(type);                                                \
        *(void **)&function = real(#release);                                    \
        alive--;                                                                 \
        return function(object);                                                 \
    }
#define RETURNS(name, parameters, arguments, code)                               \
    cl_int name parameters                                                       \
    {                                                                            \
        cl_int (*function) parameters;                                           \
        *(void **)&function = real(#name);                                       \
        return fails(#name, code) ? code : function arguments;                   \
    }

CREATES(cl_context, clCreateContext,
        (const cl_context_properties *properties, cl_uint count, const cl_device_id *ids,
         void(CL_CALLBACK *notify)(const char *, const void *, size_t, void *), void *data, cl_int *error),
        (properties, count, ids, notify, data, error), CL_OUT_OF_RESOURCES, contexts, clReleaseContext)
CREATES(cl_command_queue, clCreateCommandQueue,
        (cl_context context, cl_device_id id, cl_command_queue_properties properties, cl_int *error),
        (context, id, properties, error), CL_OUT_OF_HOST_MEMORY, queues, clReleaseCommandQueue)
CREATES(cl_mem, clCreateBuffer,
        (cl_context context, cl_mem_flags flags, size_t size, void *host, cl_int *error),
        (context, flags, size, host, error), CL_MEM_OBJECT_ALLOCATION_FAILURE, memories, clReleaseMemObject)
CREATES(cl_program, clCreateProgramWithSource,
        (cl_context context, cl_uint count, const char **texts, const size_t *lengths, cl_int *error),
        (context, count, texts, lengths, error), CL_OUT_OF_RESOURCES, programs, clReleaseProgram)
CREATES(cl_kernel, clCreateKernel, (cl_program program, const char *name, cl_int *error),
        (program, name, error), CL_INVALID_KERNEL_DEFINITION, kernels, clReleaseKernel)
RETURNS(clBuildProgram,
        (cl_program program, cl_uint count, const cl_device_id *ids, const char *options,
         void(CL_CALLBACK *notify)(cl_program, void *), void *data),
        (program, count, ids, options, notify, data), CL_BUILD_PROGRAM_FAILURE)
RETURNS(clSetKernelArg, (cl_kernel kernel, cl_uint index, size_t size, const void *value),
        (kernel, index, size, value), CL_INVALID_MEM_OBJECT)
RETURNS(clEnqueueNDRangeKernel, (cl_command_queue queue, cl_kernel kernel, cl_uint dims, const size_t *offset,
        const size_t *global, const size_t *local, cl_uint count, const cl_event *events, cl_event *event),
        (queue, kernel, dims, offset, global, local, count, events, event), CL_MEM_OBJECT_ALLOCATION_FAILURE)
RETURNS(clEnqueueReadBuffer,
        (cl_command_queue queue, cl_mem memory, cl_bool blocking, size_t offset, size_t size, void *host,
         cl_uint count, const cl_event *events, cl_event *event),
        (queue, memory, blocking, offset, size, host, count, events, event), CL_OUT_OF_RESOURCES)
RETURNS(clEnqueueWriteBuffer,
        (cl_command_queue queue, cl_mem memory, cl_bool blocking, size_t offset, size_t size,
         const void *host, cl_uint count, const cl_event *events, cl_event *event),
        (queue, memory, blocking, offset, size, host, count, events, event), CL_OUT_OF_RESOURCES)
RETURNS(clEnqueueCopyBuffer,
        (cl_command_queue queue, cl_mem source, cl_mem target, size_t from, size_t to, size_t size,
         cl_uint count, const cl_event *events, cl_event *event),
        (queue, source, target, from, to, size, count, events, event), CL_OUT_OF_RESOURCES)
RETURNS(clEnqueueCopyBufferRect,
        (cl_command_queue queue, cl_mem source, cl_mem target, const size_t *from, const size_t *to,
         const size_t *region, size_t source_row, size_t source_slice, size_t target_row, size_t target_slice,
         cl_uint count, const cl_event *events, cl_event *event),
        (queue, source, target, from, to, region, source_row, source_slice, target_row, target_slice, count,
         events, event),
        CL_OUT_OF_RESOURCES)
RETURNS(clFinish, (cl_command_queue queue), (queue), CL_OUT_OF_RESOURCES)

/* One of everything; `sum` is what the product left in C's first element. */
static resmap_status everything(int index, float *sum)
{
    enum { N = 20 };
    char specification[24];
    float values[N * N];
    rsm_device *device = NULL;
    rsm_buffer *a = NULL, *b = NULL, *c = NULL;
    resmap_status status;
    snprintf(specification, sizeof specification, "%d", index);
    RSM_CHECK(rsm_device_open(&env, specification, &device));
    device->gemm = device->cpu ? RSM_GEMM_VECTOR : RSM_GEMM_GROUP;
    RSM_CHECK(rsm_buffer_create(device, N * N, &a));
    RSM_CHECK(rsm_buffer_create(device, N * N, &b));
    RSM_CHECK(rsm_buffer_create(device, N * N, &c));
    for (int i = 0; i < N * N; i++) values[i] = 1;
    RSM_CHECK(rsm_buffer_write(device, a, 0, values, N * N));
    RSM_CHECK(rsm_buffer_copy(device, b, 0, N, a, 0, N, N - 1, N));
    RSM_CHECK(rsm_buffer_copy(device, b, N - 1, N, a, 0, N, 1, N));
    RSM_CHECK(rsm_buffer_copy(device, b, 0, N, b, N, N, N, 1));
    rsm_matrix ma = {a, 0, N, RSM_FP32}, mb = {b, 0, N, RSM_FP32}, mc = {c, 0, N, RSM_FP32};
    RSM_CHECK(rsm_gemm(device, N, N, N, ma, mb, mc, 0));
    RSM_CHECK(rsm_device_finish(device));
    RSM_CHECK(rsm_buffer_read(device, c, 0, values, N * N));
    *sum = values[0];
done:
    rsm_buffer_free(a);
    rsm_buffer_free(b);
    rsm_buffer_free(c);
    if (device && rsm_device_bytes(device) != 0) status = RESMAP_INTERNAL;
    rsm_device_close(device);
    return status;
}

START_TEST(every_call_fails)
{
    for (failing_call = 1;; failing_call++) {
        float sum = -1;
        calls = 0;
        failed_name = NULL;
        resmap_status status = everything(_i, &sum);
        ck_assert_msg(contexts == 0 && queues == 0 && memories == 0 && programs == 0 && kernels == 0,
                      "after %s failed: %d contexts, %d queues, %d buffers, %d programs, %d kernels are left",
                      failed_name ? failed_name : "nothing", contexts, queues, memories, programs, kernels);
        if (!failed_name) {
            ck_assert_msg(status == RESMAP_OK, "%s", env.error);
            ck_assert(sum == 20);
            break;
        }
        /* The last call is the clFinish of closing, whose failure nobody can act on. */
        if (status == RESMAP_OK) ck_assert_str_eq(failed_name, "clFinish");
        else if (failed_code == CL_MEM_OBJECT_ALLOCATION_FAILURE)
            ck_assert_int_eq(status, RESMAP_NO_DEVICE_MEMORY);
        else if (failed_code == CL_BUILD_PROGRAM_FAILURE) ck_assert_int_eq(status, RESMAP_BUILD_FAILED);
        else ck_assert_msg(status != RESMAP_INTERNAL || strcmp(failed_name, "clSetKernelArg") == 0, "%s: %s",
                           failed_name, env.error);
        if (status != RESMAP_OK) ck_assert(strstr(env.error, ": ") != NULL);
    }
    ck_assert_msg(failing_call > 30, "only %d calls were seen", failing_call - 1);
    failing_call = 0;
}
END_TEST

int main(void)
{
    rsm_device_list *list;
    size_t count, usable = 0;
    if (getenv("RESMAP_TEST_SMALL")) {
        printf("skipped: fails on purpose\n");
        return 77;
    }
    /* Programs are built every time. */
    if (setenv("RESMAP_CACHE", "off", 1) != 0 || rsm_device_list_create(&env, &list) != RESMAP_OK) {
        printf("%s\n", env.error);
        return 99;
    }
    const resmap_device *items = rsm_device_list_items(list, &count);
    Suite *suite = suite_create("device failures");
    TCase *tcase = tcase_create("devices");
    tcase_set_timeout(tcase, 0);
    for (int i = 0; i < (int)count; i++) {
        if (!items[i].usable) continue;
        usable++;
        tcase_add_loop_test(tcase, every_call_fails, i, i + 1);
    }
    rsm_device_list_free(list);
    suite_add_tcase(suite, tcase);
    if (usable == 0) {
        printf("skipped: no OpenCL device\n");
        return 77;
    }
    return run_suite(suite) ? 1 : 0;
}
