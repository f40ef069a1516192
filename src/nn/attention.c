#include "nn/map.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>

/* Pixels summed up before the chunks are (CHUNK of the kernel), the same on every device. */
#define CHUNK 1024
/* Pairs of channels held in registers are TILE x TILE: 9 sums fill the 16 registers of AVX2 and SSE, 16
 * suit AVX-512's 32 and GPUs. */
#define TILE 4
#define NARROW_CPU_TILE 3
/* Sums that a work-item of a CPU adds up over the chunks. */
#define CPU_RUN 1024

size_t rsm_attention_sums_count(size_t channels, size_t heads)
{
    const size_t c = channels / heads;
    return heads * (c * c + 2 * c);
}

size_t rsm_attention_scratch(size_t channels, size_t heads, size_t count)
{
    return (count + CHUNK - 1) / CHUNK * rsm_attention_sums_count(channels, heads);
}

/* How the kernels cut the work, and *tile. */
static rsm_cut cut_of(const rsm_device *device, size_t *tile)
{
    const rsm_variant *tuned = rsm_tuned(device, RSM_TUNE_ATTENTION);
    const rsm_cut cut = rsm_cut_tuned(device, tuned, SIZE_MAX);
    *tile = cut.vector == 4 || cut.vector == 8 ? NARROW_CPU_TILE : TILE;
    if (tuned && tuned->values[2]) *tile = (size_t)tuned->values[2];
    return cut;
}

static resmap_status get_kernel(rsm_device *device, const char *name, const rsm_cut *cut, size_t tile,
                                rsm_storage storage, rsm_kernel **kernel)
{
    char options[80];
    snprintf(options, sizeof options, "-DLANES=%d -DTILE=%d -DCHUNK=%d -DX_TYPE=%s", (int)cut->local[0],
             (int)tile, CHUNK, rsm_storage_type(storage));
    return rsm_cut_kernel(device, "attention", name, cut, options, kernel);
}

static void reference_sums(rsm_map q, rsm_map k, size_t c, size_t heads, size_t count, double *sums,
                           int accumulate)
{
    for (size_t h = 0; h < heads; h++, sums += c * c + 2 * c) {
        if (!accumulate)
            for (size_t e = 0; e < c * c + 2 * c; e++) sums[e] = 0;
        for (size_t i = 0; i < c; i++) {
            const double *a = rsm_map_host(q, h * c + i), *own = rsm_map_host(k, h * c + i);
            for (size_t j = 0; j < c; j++) {
                const double *b = rsm_map_host(k, h * c + j);
                double sum = 0;
                for (size_t p = 0; p < count; p++) sum += a[p] * b[p];
                sums[i * c + j] += sum;
            }
            for (size_t p = 0; p < count; p++) {
                sums[c * c + i] += a[p] * a[p];
                sums[c * c + c + i] += own[p] * own[p];
            }
        }
    }
}

resmap_status rsm_attention_sums(rsm_device *device, rsm_map q, rsm_map k, size_t channels, size_t heads, size_t slices,
                                 size_t count, rsm_vector sums, rsm_vector scratch, int accumulate)
{
    if (heads == 0 || channels % heads != 0 || channels == 0 || slices == 0 || count == 0 || q.storage != k.storage) {
        return rsm_fail(rsm_device_env(device), RESMAP_INTERNAL,
                        "attention: %zu channels in %zu heads, %zu elements, or two storages", channels, heads,
                        count);
    }
    const size_t c = channels / heads, number = rsm_attention_sums_count(channels, heads);
    RSM_TRY(rsm_check_map(device, "attention", q, channels, slices * count));
    RSM_TRY(rsm_check_map(device, "attention", k, channels, slices * count));
    RSM_TRY(rsm_check_vector(device, "attention", sums, slices * number));
    RSM_TRY(rsm_check_vector(device, "attention", scratch, slices * rsm_attention_scratch(channels, heads, count)));
    RSM_TRY(rsm_profile_next(device, "attention_partial", channels, heads,
                             2 * ((double)channels * (double)c + 2 * (double)channels) * (double)(slices * count),
                             2 * rsm_map_size(q, channels, slices * count)));
    if (rsm_device_is_reference(device)) {
        for (size_t s = 0; s < slices; s++, q.offset += count, k.offset += count)
            reference_sums(q, k, c, heads, count, rsm_vector_host(sums) + s * number, accumulate);
        return RESMAP_OK;
    }

    rsm_kernel *partial, *total;
    size_t tile;
    const rsm_cut cut = cut_of(device, &tile);
    const size_t chunks = (count + CHUNK - 1) / CHUNK, tiles = (c + tile - 1) / tile;
    /* A CPU goes on along a row of tiles while the channels of q are in its cache. */
    const size_t span = cut.vector > 1 ? tiles : 1;
    const size_t groups = (tiles + span - 1) / span;
    const size_t global[3] = {cut.local[0], tiles * groups, slices * chunks * heads};
    RSM_TRY(get_kernel(device, "attention_partial", &cut, tile, q.storage, &partial));
    const int at_once = chunks == 1 && !accumulate;      /* there is nothing to add up */
    RSM_TRY(RSM_RUN(device, partial, 3, global, cut.local, RSM_MAP(q), RSM_MAP(k),
                    RSM_BUFFER(at_once ? sums.buffer : scratch.buffer), RSM_INT(at_once ? sums.offset : scratch.offset),
                    RSM_INT(c), RSM_INT(heads), RSM_INT(count), RSM_INT(groups), RSM_INT(span)));
    if (at_once) return RESMAP_OK;
    RSM_TRY(get_kernel(device, "attention_total", &cut, tile, q.storage, &total));
    RSM_TRY(rsm_profile_next(device, "attention_total", channels, heads, (double)(slices * chunks) * (double)number,
                             (double)(slices * (chunks + 1)) * (double)number));
    const size_t run = cut.vector > 1 ? CPU_RUN : 1;
    const size_t runs[2] = {(number + run - 1) / run, slices};
    return RSM_RUN(device, total, 2, runs, cut.local, RSM_VECTOR(scratch), RSM_VECTOR(sums), RSM_INT(number),
                   RSM_INT(chunks), RSM_INT(accumulate != 0), RSM_INT(run));
}

static void reference_softmax(const double *sums, const double *temperature, double *out, size_t c,
                              size_t heads)
{
    for (size_t h = 0; h < heads; h++, sums += c * c + 2 * c) {
        const double *q = sums + c * c, *k = q + c;
        for (size_t i = 0; i < c; i++, out += c) {
            double most = -INFINITY, sum = 0;
            for (size_t j = 0; j < c; j++) {
                out[j] =
                    temperature[h] * sums[i * c + j] / (fmax(sqrt(q[i]), 1e-12) * fmax(sqrt(k[j]), 1e-12));
                most = fmax(most, out[j]);
            }
            for (size_t j = 0; j < c; j++) sum += out[j] = exp(out[j] - most);
            for (size_t j = 0; j < c; j++) out[j] /= sum;
        }
    }
}

static void reference_fold(const double *w, const double *softmax, double *out, size_t c, size_t heads)
{
    const size_t channels = heads * c;
    for (size_t o = 0; o < channels; o++)
        for (size_t column = 0; column < channels; column++) {
            const size_t first = column / c * c;
            double sum = 0;
            for (size_t i = first; i < first + c; i++) sum += w[o * channels + i] * softmax[i * c + column % c];
            out[o * channels + column] = sum;
        }
}

/* out: the softmax matrices of the slices' heads, one after the other. */
static resmap_status soften(rsm_device *device, rsm_vector sums, rsm_vector temperature, rsm_vector out, size_t c, size_t heads,
                            size_t slices)
{
    const size_t rows = slices * heads * c, global[1] = {rows}, number = rsm_attention_sums_count(heads * c, heads);
    rsm_kernel *kernel;
    size_t tile;
    RSM_TRY(rsm_profile_next(device, "attention_softmax", heads * c, heads, 0, 2 * (double)rows * (double)c));
    if (rsm_device_is_reference(device)) {
        for (size_t s = 0; s < slices; s++)
            reference_softmax(rsm_vector_host(sums) + s * number, rsm_vector_host(temperature),
                              rsm_vector_host(out) + s * heads * c * c, c, heads);
        return RESMAP_OK;
    }
    const rsm_cut cut = cut_of(device, &tile);
    RSM_TRY(get_kernel(device, "attention_softmax", &cut, tile, RSM_FP32, &kernel));
    return RSM_RUN(device, kernel, 1, global, cut.local, RSM_VECTOR(sums), RSM_VECTOR(temperature), RSM_VECTOR(out), RSM_INT(c),
                   RSM_INT(heads), RSM_INT(rows));
}

/* Columns h * c ... of w times the softmax matrix of head h, for each slice. */
static resmap_status fold(rsm_device *device, rsm_vector w, rsm_vector softmax, rsm_vector out, size_t c, size_t heads,
                          size_t slices)
{
    const double channels = (double)heads * (double)c;
    rsm_kernel *kernel;
    size_t tile;
    RSM_TRY(rsm_profile_next(device, "attention_fold", heads * c, heads, 2 * (double)slices * channels * channels * (double)c,
                             (channels + (double)slices * (channels + (double)c)) * channels));
    if (rsm_device_is_reference(device)) {
        for (size_t s = 0; s < slices; s++)
            reference_fold(rsm_vector_host(w), rsm_vector_host(softmax) + s * heads * c * c,
                           rsm_vector_host(out) + s * heads * c * heads * c, c, heads);
        return RESMAP_OK;
    }
    const rsm_cut cut = cut_of(device, &tile);
    const size_t global[3] = {cut.vector > 1 ? 1 : heads * c, heads * c, slices};
    RSM_TRY(get_kernel(device, "attention_fold", &cut, tile, RSM_FP32, &kernel));
    return RSM_RUN(device, kernel, 3, global, cut.local, RSM_VECTOR(w), RSM_VECTOR(softmax), RSM_VECTOR(out), RSM_INT(c),
                   RSM_INT(heads));
}

resmap_status rsm_attention_matrix(rsm_device *device, rsm_vector sums, rsm_vector temperature,
                                   rsm_vector w, rsm_vector out, rsm_vector scratch, size_t channels,
                                   size_t heads, size_t slices)
{
    if (heads == 0 || channels % heads != 0 || channels == 0) {
        return rsm_fail(rsm_device_env(device), RESMAP_INTERNAL, "attention: %zu channels in %zu heads",
                        channels, heads);
    }
    const size_t c = channels / heads;
    RSM_TRY(rsm_check_vector(device, "attention", sums, slices * rsm_attention_sums_count(channels, heads)));
    RSM_TRY(rsm_check_vector(device, "attention", temperature, heads));
    RSM_TRY(rsm_check_vector(device, "attention", w, channels * channels));
    RSM_TRY(rsm_check_vector(device, "attention", out, slices * channels * channels));
    RSM_TRY(rsm_check_vector(device, "attention", scratch, slices * channels * c));
    RSM_TRY(soften(device, sums, temperature, scratch, c, heads, slices));
    return fold(device, w, scratch, out, c, heads, slices);
}
