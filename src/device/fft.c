/* Fourier transforms: axis by axis, pencils gathered to dense rows (cl/fft.cl), the rows transformed by
 * clFFT. On the reference, and where clFFT fails or computes wrongly, in float64 on the host. */
#include "device/device_private.h"

#include <math.h>
#include <stdlib.h>

#include "device/fft_host.h"

#define PI 3.14159265358979323846

/* Complex numbers gathered at a time: 16 MiB. */
#define MOST_GATHERED ((size_t)1 << 21)
/* Plans kept; a volume needs one a length. */
#define MOST_ENTRIES 8

static void entry_free(rsm_fft_entry *entry)
{
    if (!entry) return;
    rsm_clfft_free(entry->plan);
    rsm_buffer_free(entry->chirp);
    rsm_buffer_free(entry->spectrum);
    free(entry);
}

void rsm_fft_close(rsm_device *device)
{
    while (device->ffts) {
        rsm_fft_entry *entry = device->ffts;
        device->ffts = entry->next;
        entry_free(entry);
    }
}

/* w[j] = exp(-i pi j² / n), n pairs. j² is reduced first: for large j the argument has no correct digits
 * otherwise. */
static void chirp_of(size_t n, double *w)
{
    for (size_t j = 0; j < n; j++) {
        double angle = PI * (double)((uint64_t)j * j % (2 * (uint64_t)n)) / (double)n;
        w[2 * j] = cos(angle);
        w[2 * j + 1] = -sin(angle);
    }
}

static resmap_status upload(rsm_device *device, const double *values, size_t count, rsm_buffer **buffer)
{
    float *rounded = malloc(rsm_bytes(count, sizeof *rounded));
    if (!rounded) return rsm_no_memory(device->env, count * sizeof *rounded);
    for (size_t i = 0; i < count; i++) rounded[i] = (float)values[i];
    resmap_status status = rsm_buffer_create(device, count, buffer);
    if (status == RESMAP_OK) status = rsm_buffer_write(device, *buffer, 0, rounded, count);
    free(rounded);
    return status;
}

/* The chirp and the spectrum of its conjugate, which carries the 1/m of the inverse transform; in float64. */
static resmap_status make_chirp(rsm_device *device, rsm_fft_entry *entry)
{
    size_t n = entry->n, m = entry->m;
    resmap_status status = RESMAP_OK;
    rsm_fft_plan *plan = rsm_fft_plan_create(m);
    double *w = calloc(rsm_bytes(n, 2 * sizeof *w), 1), *work = NULL;
    double *v = calloc(rsm_bytes(m, 2 * sizeof *v), 1);
    if (plan) work = malloc(rsm_bytes(rsm_fft_plan_work(plan) + 1, sizeof *work));
    if (!plan || !w || !v || !work) RSM_CHECK(rsm_no_memory(device->env, m * 4 * sizeof *v));
    chirp_of(n, w);
    for (size_t j = 0; j < n; j++) {
        size_t mirrored = j == 0 ? 0 : m - j;
        v[2 * j] = v[2 * mirrored] = w[2 * j] / (double)m;
        v[2 * j + 1] = v[2 * mirrored + 1] = -w[2 * j + 1] / (double)m;
    }
    rsm_fft_plan_run(plan, v, RSM_FORWARD, work);
    RSM_CHECK(upload(device, w, 2 * n, &entry->chirp));
    RSM_CHECK(upload(device, v, 2 * m, &entry->spectrum));
done:
    rsm_fft_plan_free(plan);
    free(w);
    free(v);
    free(work);
    return status;
}

/* Buffers of a run: gathered rows, their transforms, clFFT's work space. */
typedef struct rows {
    rsm_buffer *from, *to, *work;
} rows;

static resmap_status rows_create(rsm_device *device, const rsm_fft_entry *entry, rows *made)
{
    size_t bytes = rsm_clfft_work_bytes(entry->plan);
    RSM_TRY(rsm_buffer_create(device, 2 * entry->m * entry->batch, &made->from));
    RSM_TRY(rsm_buffer_create(device, 2 * entry->m * entry->batch, &made->to));
    if (bytes > 0) {
        RSM_TRY(rsm_buffer_create(device, (bytes + sizeof(float) - 1) / sizeof(float), &made->work));
    }
    return RESMAP_OK;
}

static void rows_free(rows *made)
{
    rsm_buffer_free(made->from);
    rsm_buffer_free(made->to);
    rsm_buffer_free(made->work);
}

/* clFFT is unmaintained, and has been reported to fail on several devices: transforms a shifted impulse in
 * every row of a first batch, whose spectrum is known, and looks at the first and the last row. */
static resmap_status plan_is_right(rsm_device *device, const rsm_fft_entry *entry, int *right)
{
    size_t m = entry->m, count = 2 * m * entry->batch;
    resmap_status status = RESMAP_OK;
    rows made = {NULL, NULL, NULL};
    float *values = calloc(count, sizeof *values);
    if (!values) return rsm_no_memory(device->env, count * sizeof *values);
    for (size_t row = 0; row < entry->batch; row++) values[2 * (row * m + (row + 1) % m)] = 1.0f;
    RSM_CHECK(rows_create(device, entry, &made));
    RSM_CHECK(rsm_buffer_write(device, made.from, 0, values, count));
    if (rsm_clfft_run(device, entry->plan, made.from, made.to, made.work) != RESMAP_OK) goto done;
    *right = 1;
    for (int last = 0; last < 2; last++) {
        size_t row = last ? entry->batch - 1 : 0;
        RSM_CHECK(rsm_buffer_read(device, made.to, 2 * row * m, values, 2 * m));
        for (size_t j = 0; j < m; j++) {
            double angle = -2 * PI * (double)((uint64_t)j * ((row + 1) % m) % m) / (double)m;
            if (!(fabs(values[2 * j] - cos(angle)) < 1e-4 && fabs(values[2 * j + 1] - sin(angle)) < 1e-4)) {
                *right = 0;
            }
        }
    }
done:
    rows_free(&made);
    free(values);
    return status;
}

/* A device without clFFT transforms on the host; being told to stop, and having no memory for it, is something else. */
static int ends_all(resmap_status status)
{
    return status == RESMAP_CANCELLED || status == RESMAP_NO_MEMORY;
}

/* Makes a checked plan for rows of m; entry->plan stays NULL when clFFT cannot do it. */
static resmap_status try_plan(rsm_device *device, rsm_fft_entry *entry, size_t m, size_t pencils)
{
    int right = 0;
    rsm_kernel *probe;
    resmap_status status;
    entry->m = m;
    entry->batch = pencils < MOST_GATHERED / m ? pencils : MOST_GATHERED / m;
    /* clFFT's assertions abort the process below this. */
    if (device->info.max_work_group < 64) return RESMAP_OK;
    /* clFFT prints what a compiler says about its kernels: better not to ask for them where they do not
     * compile. */
    status = rsm_kernel_get(device, "fft", "clfft_probe", "-DCLFFT_PROBE", &probe);
    if (status == RESMAP_OK && entry->batch > 0) status = rsm_clfft_create(device, m, entry->batch, &entry->plan);
    if (ends_all(status)) return status;
    if (!entry->plan) return RESMAP_OK;
    RSM_TRY(plan_is_right(device, entry, &right));
    if (right) return RESMAP_OK;
    rsm_clfft_free(entry->plan);
    entry->plan = NULL;
    return RESMAP_OK;
}

/* The entry for n, made when missing, moved to the front. */
static resmap_status find_entry(rsm_device *device, size_t n, size_t pencils, rsm_fft_entry **found)
{
    size_t kept = 0;
    for (rsm_fft_entry **at = &device->ffts; *at; at = &(*at)->next) {
        rsm_fft_entry *entry = *at;
        int same = entry->n == n && entry->pencils == pencils;
        if (!same && ++kept < MOST_ENTRIES) continue;
        *at = entry->next;
        if (!same) {                             /* the last is the one used longest ago */
            entry_free(entry);
            break;
        }
        entry->next = device->ffts;
        device->ffts = entry;
        *found = entry;
        return RESMAP_OK;
    }

    resmap_status status = RESMAP_OK;
    rsm_fft_entry *entry = calloc(1, sizeof *entry);
    if (!entry) return rsm_no_memory(device->env, sizeof *entry);
    entry->n = n;
    entry->pencils = pencils;
    if (rsm_clfft_supports(n)) RSM_CHECK(try_plan(device, entry, n, pencils));
    if (!entry->plan) {
        size_t m = 1;
        while (m < 2 * n - 1) m *= 2;            /* the lengths that clFFT is best at */
        RSM_CHECK(try_plan(device, entry, m, pencils));
        if (entry->plan) RSM_CHECK(make_chirp(device, entry));
    }
    if (!entry->plan) {
        rsm_log(device->env, RESMAP_LOG_INFO,
                "device %s: clFFT fails for length %zu: transformed on the host", device->info.name, n);
    }
    entry->next = device->ffts;
    device->ffts = entry;
    *found = entry;
done:
    if (status != RESMAP_OK) entry_free(entry);
    return status;
}

/* `pencils` pencils of n numbers, `inner` of them side by side. */
static resmap_status on_device(rsm_device *device, const rsm_fft_entry *entry, rsm_buffer *buffer,
                               size_t offset, size_t inner, size_t pencils, rsm_direction direction)
{
    size_t n = entry->n, m = entry->m;
    float sign = direction == RSM_FORWARD ? 1.0f : -1.0f;
    float scale = direction == RSM_FORWARD ? 1.0f : (float)(1.0 / (double)n);
    resmap_status status = RESMAP_OK;
    rows made = {NULL, NULL, NULL};
    rsm_kernel *gather, *convolve, *scatter;
    RSM_CHECK(rsm_kernel_get(device, "fft", "fft_gather", "", &gather));
    RSM_CHECK(rsm_kernel_get(device, "fft", "fft_convolve", "", &convolve));
    RSM_CHECK(rsm_kernel_get(device, "fft", "fft_scatter", "", &scatter));
    RSM_CHECK(rows_create(device, entry, &made));
    rsm_buffer *chirp = entry->chirp ? entry->chirp : made.from, *result = entry->chirp ? made.from : made.to;
    size_t group = device->info.max_work_group < 64 ? 1 : 64;
    const size_t local[2] = {group, 1};
    for (size_t first = 0; first < pencils; first += entry->batch) {
        size_t count = pencils - first < entry->batch ? pencils - first : entry->batch;
        const size_t long_rows[2] = {m, count}, short_rows[2] = {n, count};
        RSM_CHECK(RSM_RUN(device, gather, 2, long_rows, local, RSM_BUFFER(buffer), RSM_INT(offset),
                          RSM_INT(inner), RSM_INT(n), RSM_BUFFER(made.from), RSM_INT(m), RSM_INT(first),
                          RSM_INT(count), RSM_FLOAT(sign), RSM_BUFFER(chirp)));
        RSM_CHECK(rsm_clfft_run(device, entry->plan, made.from, made.to, made.work));
        if (entry->chirp) {
            RSM_CHECK(RSM_RUN(device, convolve, 2, long_rows, local, RSM_BUFFER(made.to), RSM_INT(m),
                              RSM_INT(count), RSM_BUFFER(entry->spectrum)));
            RSM_CHECK(rsm_clfft_run(device, entry->plan, made.to, made.from, made.work));
        }
        RSM_CHECK(RSM_RUN(device, scatter, 2, short_rows, local, RSM_BUFFER(result), RSM_INT(m),
                          RSM_BUFFER(buffer), RSM_INT(offset), RSM_INT(inner), RSM_INT(n), RSM_INT(first),
                          RSM_INT(count), RSM_FLOAT(sign), RSM_FLOAT(scale), RSM_BUFFER(chirp)));
    }
done:
    rows_free(&made);
    return status;
}

/* The same on doubles. */
static resmap_status on_host(rsm_env *env, double *values, size_t n, size_t inner, size_t pencils,
                             rsm_direction direction)
{
    resmap_status status = RESMAP_OK;
    rsm_fft_plan *plan = rsm_fft_plan_create(n);
    double *pencil = malloc(rsm_bytes(n, 2 * sizeof *pencil)), *work = NULL;
    if (plan) work = malloc(rsm_bytes(rsm_fft_plan_work(plan) + 1, sizeof *work));
    if (!plan || !pencil || !work) RSM_CHECK(rsm_no_memory(env, n * 4 * sizeof *pencil));
    for (size_t q = 0; q < pencils; q++) {
        double *first = values + 2 * (q % inner + q / inner * inner * n);
        for (size_t j = 0; j < n; j++) {
            pencil[2 * j] = first[2 * j * inner];
            pencil[2 * j + 1] = first[2 * j * inner + 1];
        }
        rsm_fft_plan_run(plan, pencil, direction, work);
        for (size_t j = 0; j < n; j++) {
            first[2 * j * inner] = pencil[2 * j];
            first[2 * j * inner + 1] = pencil[2 * j + 1];
        }
    }
done:
    rsm_fft_plan_free(plan);
    free(pencil);
    free(work);
    return status;
}

/* A device's buffer through the host. */
static resmap_status by_host(rsm_device *device, rsm_buffer *buffer, size_t offset, size_t n, size_t inner,
                             size_t pencils, rsm_direction direction)
{
    size_t count = 2 * n * pencils;
    resmap_status status = RESMAP_OK;
    float *values = malloc(rsm_bytes(count, sizeof *values));
    double *exact = malloc(rsm_bytes(count, sizeof *exact));
    if (!values || !exact) RSM_CHECK(rsm_no_memory(device->env, count * (sizeof *values + sizeof *exact)));
    RSM_CHECK(rsm_buffer_read(device, buffer, offset, values, count));
    for (size_t i = 0; i < count; i++) exact[i] = values[i];
    RSM_CHECK(on_host(device->env, exact, n, inner, pencils, direction));
    for (size_t i = 0; i < count; i++) values[i] = (float)exact[i];
    RSM_CHECK(rsm_buffer_write(device, buffer, offset, values, count));
done:
    free(values);
    free(exact);
    return status;
}

resmap_status rsm_fft(rsm_device *device, rsm_buffer *buffer, size_t offset, const size_t shape[3],
                      unsigned axes, rsm_direction direction)
{
    size_t total = 1;
    for (int i = 0; i < 3; i++) {
        if (shape[i] == 0 || shape[i] > RSM_MAX_ELEMENTS / 2 / total) {
            return rsm_fail(device->env, RESMAP_BAD_ARGUMENT, "Fourier transform: %zu x %zu x %zu", shape[0],
                            shape[1], shape[2]);
        }
        total *= shape[i];
    }
    if (axes > 7 || !rsm_buffer_holds(buffer, offset, 2 * total)) {
        return rsm_fail(device->env, RESMAP_INTERNAL, "device %s: Fourier transform: outside the buffer",
                        device->info.name);
    }
    size_t inner = 1;
    for (int axis = 0; axis < 3; inner *= shape[axis++]) {
        size_t n = shape[axis], pencils = total / n;
        if (!(axes >> axis & 1) || n == 1) continue;
        if (device->reference) {
            RSM_TRY(on_host(device->env, buffer->host + offset, n, inner, pencils, direction));
            continue;
        }
        rsm_fft_entry *entry = NULL;
        RSM_TRY(find_entry(device, n, pencils, &entry));
        if (entry->plan) RSM_TRY(on_device(device, entry, buffer, offset, inner, pencils, direction));
        else RSM_TRY(by_host(device, buffer, offset, n, inner, pencils, direction));
    }
    return RESMAP_OK;
}
