/* The only file that knows CLBlast. Only plain Gemm is used: GemmStridedBatched of 1.5.3 … 1.7.0 gives wrong
 * numbers, and calls success, for matrices with offsets, padded or zero strides. Calls are serialised: 1.5.x
 * races in its cache of programs, which the whole process shares. */
#include "device/device_private.h"

#include <pthread.h>
#include <string.h>

#include <clblast_c.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int users;                /* devices with clblast_used */

/* Parameters that tuning may put in the place of CLBlast's own for a device: whether products go straight to the
 * kernel XgemmDirect, or by way of copies to Xgemm, and the kernel's. Each set is complete, so that it does not
 * matter which ones were there before; there is no way back to CLBlast's own. */
typedef struct parameters {
    const char *kernel;
    size_t count;
    const char *names[16];
    size_t values[16];
} parameters;

#define DIRECT                                                                                                  \
    10, {"KWID", "MDIMAD", "MDIMCD", "NDIMBD", "NDIMCD", "PADA", "PADB", "VWMD", "VWND", "WGD"}
#define INDIRECT                                                                                                \
    16, {"GEMMK", "KREG", "KWG", "KWI", "MDIMA", "MDIMC", "MWG", "NDIMB", "NDIMC", "NWG", "SA", "SB", "STRM",   \
         "STRN", "VWM", "VWN"}
static const parameters sets[] = {
    {"XgemmDirect", DIRECT, {2, 8, 8, 8, 8, 1, 1, 2, 2, 16}},
    {"XgemmDirect", DIRECT, {2, 16, 16, 16, 16, 1, 1, 2, 2, 32}},
    {"Xgemm", INDIRECT, {0, 1, 16, 2, 8, 8, 64, 8, 8, 64, 1, 1, 0, 0, 4, 4}},
    {"Xgemm", INDIRECT, {0, 1, 16, 2, 16, 16, 128, 16, 16, 128, 1, 1, 0, 0, 4, 4}},
};
/* What was applied to which device; one more than there is room for has to apply its own anew every time. */
enum { MOST_DEVICES = 16 };
static struct {
    cl_device_id device;
    const rsm_variant *variant;
} applied[MOST_DEVICES];

static size_t place_of(cl_device_id device)
{
    size_t i = 0;
    while (i < MOST_DEVICES - 1 && applied[i].device && applied[i].device != device) i++;
    if (applied[i].device != device) {
        applied[i].device = device;
        applied[i].variant = NULL;
    }
    return i;
}

static CLBlastStatusCode apply(rsm_device *device)
{
    static const char *threshold_name = "XGEMM_MIN_INDIRECT_SIZE";
    const rsm_variant *wanted = rsm_tuned(device, RSM_TUNE_CLBLAST);
    if (!wanted) return CLBlastSuccess;
    const size_t place = place_of(device->id);
    if (applied[place].variant == wanted) return CLBlastSuccess;
    const parameters *set = &sets[wanted->values[0]];
    /* Products of fewer multiplications than its third power are direct. */
    const size_t threshold = strcmp(set->kernel, "Xgemm") == 0 ? 1 : 1000000;
    const char *names[16];
    for (size_t i = 0; i < set->count; i++) names[i] = set->names[i];
    CLBlastStatusCode code = CLBlastOverrideParameters(device->id, "GemmRoutine", CLBlastPrecisionSingle, 1,
                                                       &threshold_name, &threshold);
    if (code == CLBlastSuccess) {
        code = CLBlastOverrideParameters(device->id, set->kernel, CLBlastPrecisionSingle, set->count, names,
                                         set->values);
    }
    applied[place].variant = code == CLBlastSuccess ? wanted : NULL;
    return code;
}

int rsm_clblast_version(void)
{
    return 1000000 * CLBLAST_VERSION_MAJOR + 1000 * CLBLAST_VERSION_MINOR + CLBLAST_VERSION_PATCH;
}

/* Codes below -1000 are CLBlast's own. */
static resmap_status failed(rsm_device *device, CLBlastStatusCode code)
{
    if (code > -1000) return rsm_cl_fail(device, "CLBlast's product", (cl_int)code);
    return rsm_fail(device->env, RESMAP_DEVICE_FAILED, "device %s: CLBlast's product: error %d",
                    device->info.name, (int)code);
}

void rsm_clblast_drop_work(rsm_device *device)
{
    if (!device->clblast_work) return;
    clFinish(device->queue);         /* until then it is in use, and in the device's memory */
    rsm_buffer_free(device->clblast_work);
    device->clblast_work = NULL;
}

/* Room for CLBlast's copies of matrices that do not suit its kernel: one buffer a worker, which its queue uses for one
 * product after the other, so that what is counted is what is there. */
static resmap_status work_space(rsm_device *device, size_t bytes)
{
    size_t count = (bytes + sizeof(float) - 1) / sizeof(float);
    if (device->clblast_work && rsm_buffer_count(device->clblast_work) >= count) return RESMAP_OK;
    rsm_clblast_drop_work(device);
    return rsm_buffer_create(device, count, &device->clblast_work);
}

resmap_status rsm_clblast_gemm(rsm_device *device, size_t m, size_t n, size_t k, rsm_matrix a, rsm_matrix b,
                               rsm_matrix c, int accumulate)
{
    resmap_status status = RESMAP_OK;
    size_t bytes = 0;
    /* Its event is that of the last of several kernels. */
    double start = -1;
    RSM_TRY(rsm_profile_lap(device, &start));
    pthread_mutex_lock(&lock);
    if (!device->clblast_used) {
        device->clblast_used = 1;
        users++;
    }
    CLBlastStatusCode code = apply(device);
    if (code == CLBlastSuccess) {
        code = CLBlastSGemmTempBufferSize(CLBlastLayoutRowMajor, CLBlastTransposeNo, CLBlastTransposeNo, m, n, k,
                                          a.offset, a.stride, b.offset, b.stride, c.offset, c.stride,
                                          &device->queue, &bytes);
    }
    if (code == CLBlastSuccess && bytes > 0) RSM_CHECK(work_space(device, bytes));
    if (code == CLBlastSuccess) {
        code = CLBlastSgemmWithTempBuffer(CLBlastLayoutRowMajor, CLBlastTransposeNo, CLBlastTransposeNo, m, n,
                                          k, 1.0f, a.buffer->memory, a.offset, a.stride, b.buffer->memory,
                                          b.offset, b.stride, accumulate ? 1.0f : 0.0f, c.buffer->memory,
                                          c.offset, c.stride, &device->queue, NULL,
                                          bytes > 0 ? device->clblast_work->memory : NULL);
    }
    if (code != CLBlastSuccess) RSM_CHECK(failed(device, code));
    RSM_CHECK(rsm_profile_lap(device, &start));
done:
    pthread_mutex_unlock(&lock);
    return status;
}

void rsm_clblast_close(rsm_device *device)
{
    if (!device->clblast_used) return;
    rsm_clblast_drop_work(device);
    pthread_mutex_lock(&lock);
    /* Programs kept by CLBlast hold their contexts; drivers that unload before static destructors run crash
     * over them. */
    if (--users == 0) CLBlastClearCache();
    pthread_mutex_unlock(&lock);
}
