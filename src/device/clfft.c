/* The only file that knows clFFT: forward transforms of `batch` dense rows of `length` interleaved complex
 * numbers. clFFT's tables are global and not thread-safe (its assertions abort the process), so that every
 * call holds one lock. Transforms in place are not used: their kernels order global memory by barriers on
 * local memory only (Oclgrind calls it a race). */
#include "device/device_private.h"

#include <pthread.h>
#include <stdlib.h>

#include <clFFT.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static size_t plans;             /* alive in the process; the library is set up while there are any */

struct rsm_clfft {
    clfftPlanHandle handle;
    size_t work_bytes;
};

int rsm_clfft_supports(size_t length)
{
    static const size_t primes[] = {2, 3, 5, 7, 11, 13};
    if (length == 0) return 0;
    for (size_t i = 0; i < sizeof primes / sizeof primes[0]; i++) {
        while (length % primes[i] == 0) length /= primes[i];
    }
    return length == 1;
}

static clfftStatus set_up(rsm_clfft *plan, rsm_device *device, size_t length, size_t batch)
{
    clfftStatus code = clfftCreateDefaultPlan(&plan->handle, device->context, CLFFT_1D, &length);
    if (code != CLFFT_SUCCESS) return code;
    code = clfftSetPlanPrecision(plan->handle, CLFFT_SINGLE);
    if (code == CLFFT_SUCCESS) {
        code = clfftSetLayout(plan->handle, CLFFT_COMPLEX_INTERLEAVED, CLFFT_COMPLEX_INTERLEAVED);
    }
    if (code == CLFFT_SUCCESS) code = clfftSetResultLocation(plan->handle, CLFFT_OUTOFPLACE);
    if (code == CLFFT_SUCCESS) code = clfftSetPlanBatchSize(plan->handle, batch);
    if (code == CLFFT_SUCCESS) code = clfftSetPlanDistance(plan->handle, length, length);
    if (code == CLFFT_SUCCESS) code = clfftSetPlanScale(plan->handle, CLFFT_FORWARD, 1);
    if (code == CLFFT_SUCCESS) code = clfftBakePlan(plan->handle, 1, &device->queue, NULL, NULL);
    if (code == CLFFT_SUCCESS) code = clfftGetTmpBufSize(plan->handle, &plan->work_bytes);
    if (code != CLFFT_SUCCESS) clfftDestroyPlan(&plan->handle);
    return code;
}

resmap_status rsm_clfft_create(rsm_device *device, size_t length, size_t batch, rsm_clfft **result)
{
    rsm_clfft *plan = calloc(1, sizeof *plan);
    if (!plan) return rsm_no_memory(device->env, sizeof *plan);
    pthread_mutex_lock(&lock);
    clfftStatus code = CLFFT_SUCCESS;
    if (plans == 0) {
        clfftSetupData setup;
        code = clfftInitSetupData(&setup);
        if (code == CLFFT_SUCCESS) code = clfftSetup(&setup);
    }
    if (code == CLFFT_SUCCESS) {
        code = set_up(plan, device, length, batch);
        if (code == CLFFT_SUCCESS) plans++;
        else if (plans == 0) clfftTeardown();
    }
    pthread_mutex_unlock(&lock);
    if (code != CLFFT_SUCCESS) {
        free(plan);
        return rsm_fail(device->env, RESMAP_DEVICE_FAILED, "device %s: clFFT, length %zu: %s (%d)",
                        device->info.name, length, rsm_cl_error_name((cl_int)code), (int)code);
    }
    *result = plan;
    return RESMAP_OK;
}

void rsm_clfft_free(rsm_clfft *plan)
{
    if (!plan) return;
    pthread_mutex_lock(&lock);
    clfftDestroyPlan(&plan->handle);
    /* Plans destroyed after the tear-down would abort; without a tear-down clFFT prints at exit. */
    if (--plans == 0) clfftTeardown();
    pthread_mutex_unlock(&lock);
    free(plan);
}

size_t rsm_clfft_work_bytes(const rsm_clfft *plan)
{
    return plan->work_bytes;
}

resmap_status rsm_clfft_run(rsm_device *device, rsm_clfft *plan, rsm_buffer *from, rsm_buffer *to,
                            rsm_buffer *work)
{
    pthread_mutex_lock(&lock);
    clfftStatus code = clfftEnqueueTransform(plan->handle, CLFFT_FORWARD, 1, &device->queue, 0, NULL, NULL,
                                             &from->memory, &to->memory, work ? work->memory : NULL);
    pthread_mutex_unlock(&lock);
    return code == CLFFT_SUCCESS ? RESMAP_OK : rsm_cl_fail(device, "clFFT's transform", (cl_int)code);
}
