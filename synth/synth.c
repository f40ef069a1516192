#include "synth/synth.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/file.h"
#include "image/image.h"

/* Most bytes of a record that is read; thousands of frames take less. */
enum { MAX_RECORD = 64 << 20 };

/* Voxels are converted this many at a time. */
enum { CHUNK = 1 << 16 };

/* Devices round to float32, and are to agree with the reference within 1e-5 of hi. Seen on PoCL: motion is off by up to
 * 5e-7 of hi, which a field multiplies; fields and noise by 2e-7 of what they make, and noise makes some six sigmas.
 * Where the field's maximum times the brightest voxel, plus four sigmas, exceeds this, plain C takes the frame. */
static double most_on_device(const rsm_device *device)
{
    return rsm_device_is_cpu(device) ? 14.0 : 4.0;       /* others may round functions four times as far */
}

/* ---- Volumes to and from the device ---- */

static resmap_status upload(rsm_device *device, const float *frame, size_t count, const rsm_scale *scale,
                            rsm_buffer *volume)
{
    const double range = scale->hi - scale->lo;
    double *host = rsm_buffer_host(volume);
    if (host) {
        for (size_t i = 0; i < count; i++) host[i] = (frame[i] - scale->lo) / range;
        return RESMAP_OK;
    }
    resmap_status status = RESMAP_OK;
    float *chunk = malloc(CHUNK * sizeof *chunk);
    if (!chunk) return rsm_no_memory(rsm_device_env(device), CHUNK * sizeof *chunk);
    for (size_t at = 0; at < count && status == RESMAP_OK; at += CHUNK) {
        const size_t n = count - at < CHUNK ? count - at : CHUNK;
        for (size_t i = 0; i < n; i++) chunk[i] = (float)((frame[at + i] - scale->lo) / range);
        status = rsm_buffer_write(device, volume, at, chunk, n);
    }
    free(chunk);
    return status;
}

static resmap_status download(rsm_device *device, rsm_buffer *volume, size_t count, const rsm_scale *scale,
                              const char *name, float *frame)
{
    const double range = scale->hi - scale->lo;
    const double *host = rsm_buffer_host(volume);
    int finite = 1;
    if (!host) RSM_TRY(rsm_buffer_read(device, volume, 0, frame, count));
    for (size_t i = 0; i < count; i++) {
        frame[i] = (float)(scale->lo + (host ? host[i] : (double)frame[i]) * range);
        if (!isfinite(frame[i])) finite = 0;
    }
    if (!finite)
        return rsm_fail(rsm_device_env(device), RESMAP_BAD_FILE,
                        "%s: the artifacts drive voxels out of the range of float32", name);
    return RESMAP_OK;
}

/* ---- One frame ---- */

/* The artifact of this kind in this frame, or NULL when there is none or it changes nothing. */
static const rsm_artifact *find(const rsm_record *record, rsm_artifact_kind kind, size_t frame)
{
    for (size_t i = 0; i < record->count; i++) {
        const rsm_artifact *a = &record->artifacts[i];
        if (a->kind == kind && (a->every_frame || a->frame == frame)) return rsm_artifact_idle(a) ? NULL : a;
    }
    return NULL;
}

/* The largest values to expect, relative to hi. */
static double brightest(const float *frame, size_t count, const rsm_scale *scale)
{
    double most = 1.0;
    for (size_t i = 0; i < count; i++) most = fmax(most, fabs(frame[i] - scale->lo) / (scale->hi - scale->lo));
    return most;
}

/* plain: the reference, opened here when it is first needed. */
static resmap_status corrupt(rsm_device *device, rsm_device **plain, const rsm_record *record,
                             const resmap_image *clean, const char *name, size_t frame, const rsm_scale *scale, float *out)
{
    const size_t *shape = clean->shape, count = shape[0] * shape[1] * shape[2];
    const float *in = clean->data + frame * count;
    const rsm_artifact *motion = find(record, RSM_ARTIFACT_MOTION, frame);
    const rsm_artifact *bias = find(record, RSM_ARTIFACT_BIAS, frame);
    const rsm_artifact *noise = find(record, RSM_ARTIFACT_NOISE, frame);
    if (!motion && !bias && !noise) {
        memcpy(out, in, count * sizeof *out);
        return RESMAP_OK;
    }
    rsm_buffer *volume = NULL;
    double log_mean = 0.0;
    resmap_status status;
    RSM_CHECK(rsm_buffer_create(device, count, &volume));
    RSM_CHECK(upload(device, in, count, scale, volume));
    /* The field's mean is over the clean foreground, so it is taken while that is there. */
    if (bias)
        RSM_CHECK(rsm_bias_measure(device, &bias->of.bias, shape, volume,
                                   (scale->mean - scale->lo) / (scale->hi - scale->lo), &log_mean));
    if (!rsm_buffer_host(volume)) {
        const double field = bias ? rsm_bias_most(&bias->of.bias, shape, log_mean) : 1.0;
        const double sigma = noise ? noise->of.noise.sigma : 0.0;
        if (field * brightest(in, count, scale) + 4.0 * sigma > most_on_device(device)) {
            rsm_log(rsm_device_env(device), RESMAP_LOG_INFO,
                    "%s: artifacts too strong for float32 are computed in plain C", name);
            if (!*plain) RSM_CHECK(rsm_device_open(rsm_device_env(device), "reference", plain));
            status = corrupt(*plain, plain, record, clean, name, frame, scale, out);
            goto done;
        }
    }
    if (motion) RSM_CHECK(rsm_motion_apply(device, &motion->of.motion, shape, clean->voxel_mm, volume));
    if (bias) RSM_CHECK(rsm_bias_apply(device, &bias->of.bias, shape, log_mean, volume));
    if (noise) RSM_CHECK(rsm_noise_apply(device, &noise->of.noise, shape, frame, volume));
    RSM_CHECK(download(device, volume, count, scale, name, out));
done:
    rsm_buffer_free(volume);
    return status;
}

/* ---- The whole ---- */

/* Takes what was not applied out of the record: the artifacts of this one frame. */
static void drop_frame(rsm_record *record, size_t frame)
{
    size_t kept = 0;
    for (size_t i = 0; i < record->count; i++)
        if (record->artifacts[i].every_frame || record->artifacts[i].frame != frame)
            record->artifacts[kept++] = record->artifacts[i];
    record->count = kept;
}

static resmap_status corrupt_frames(rsm_env *env, rsm_device *device, rsm_device **plain, rsm_record *record,
                                    const resmap_image *clean, resmap_image *corrupted)
{
    const char *name = clean->path ? clean->path : "image";
    const size_t count = clean->shape[0] * clean->shape[1] * clean->shape[2], frames = clean->shape[3];
    size_t constant_frames = 0;
    for (size_t frame = 0; frame < frames; frame++) {
        const float *in = clean->data + frame * count;
        rsm_scale scale;
        int constant = 0;
        RSM_TRY(rsm_progress(env, "synth", frame, frames));
        for (size_t i = 0; i < count; i++)
            if (!isfinite(in[i])) return rsm_fail(env, RESMAP_BAD_FILE, "%s: a voxel is not finite in float32", name);
        resmap_status status = rsm_scale_measure(env, name, in, NULL, count, &scale, &constant);
        if (status != RESMAP_OK && constant && ++constant_frames < frames) {
            memcpy(corrupted->data + frame * count, in, count * sizeof *in);
            drop_frame(record, frame);
            continue;
        }
        RSM_TRY(status);
        RSM_TRY(corrupt(device, plain, record, clean, name, frame, &scale, corrupted->data + frame * count));
    }
    if (constant_frames > 0)
        rsm_log(env, RESMAP_LOG_WARNING, "%s: constant frames pass unchanged: %zu of %zu", name, constant_frames, frames);
    return RESMAP_OK;
}

resmap_status rsm_synth(rsm_env *env, rsm_device *device, const resmap_image *clean,
                        const resmap_synth_options *options, const char *from, size_t from_size,
                        const char *from_name, resmap_image **corrupted, char **record_text)
{
    rsm_device *plain = NULL;
    rsm_record record = {0};
    resmap_image *image = NULL;
    char *text = NULL;
    resmap_status status;

    if (from) RSM_CHECK(rsm_record_read(env, from_name, from, from_size, clean->shape, &record));
    else {
        rsm_slicing slicing;
        RSM_CHECK(rsm_slicing_choose(env, clean, RESMAP_PLANE_AUTO, &slicing));
        status = rsm_record_draw(env, options, clean->shape, slicing.slice_axis, &record);
        if (status == RESMAP_BAD_FILE) rsm_fail(env, status, "%s: %s", clean->path ? clean->path : "image", env->error);
        if (status != RESMAP_OK) goto done;
    }
    if (!device) {
        RSM_CHECK(rsm_device_open(env, "reference", &plain));
        device = plain;
    }
    RSM_CHECK(rsm_image_like(env, clean, &image));
    RSM_CHECK(corrupt_frames(env, device, &plain, &record, clean, image));
    if (record_text) RSM_CHECK(rsm_record_write(env, &record, &text));
    *corrupted = image;
    image = NULL;
    if (record_text) *record_text = text;
    text = NULL;
done:
    resmap_image_free(image);
    free(text);
    rsm_record_clear(&record);
    rsm_device_close(plain);
    return status;
}

/* ---- Files ---- */

/* What the figure says: "motion, noise (preset severe, seed 7)". */
static char *caption_of(const resmap_synth_files *files, const resmap_synth_options *options)
{
    if (files->from) return rsm_format("artifacts of %s", files->from);
    const unsigned a = options->artifacts;
    return rsm_format("%s%s%s%s%s (%s%s, seed %llu)", a & RESMAP_MOTION ? "motion" : "",
                      a & RESMAP_MOTION && a & (RESMAP_BIAS | RESMAP_NOISE) ? ", " : "",
                      a & RESMAP_BIAS ? "bias" : "", a & RESMAP_BIAS && a & RESMAP_NOISE ? ", " : "",
                      a & RESMAP_NOISE ? "noise" : "", options->preset ? "preset " : "own strength",
                      options->preset ? options->preset : "", (unsigned long long)options->seed);
}

static resmap_status write_figure(rsm_env *env, const resmap_synth_files *files, const resmap_synth_options *options,
                                  const resmap_image *clean, const resmap_image *corrupted, FILE *stream)
{
    rsm_slicing slicing;
    RSM_TRY(rsm_slicing_choose(env, clean, RESMAP_PLANE_AUTO, &slicing));
    char *caption = caption_of(files, options);
    if (!caption) return rsm_no_memory(env, 256);
    resmap_status status = rsm_figure_write(env, clean, corrupted, NULL, &slicing, caption, files->figure, stream);
    free(caption);
    return status;
}

resmap_status rsm_synth_file(rsm_env *env, rsm_device *device, const resmap_synth_files *files,
                             const resmap_synth_options *options)
{
    resmap_image *clean = NULL, *corrupted = NULL;
    rsm_outputs *outputs = NULL;
    unsigned char *from = NULL;
    char *record = NULL;
    size_t from_size = 0;
    FILE *stream;
    resmap_status status;

    if (!files->from) RSM_CHECK(rsm_synth_options_check(env, options));
    RSM_CHECK(rsm_image_check_name(env, files->output));
    if (files->from) RSM_CHECK(rsm_file_read(env, files->from, MAX_RECORD, &from, &from_size));
    RSM_CHECK(rsm_image_read(env, files->input, &clean));
    /* Claiming the names first: an output that cannot be written should not cost the work. */
    RSM_CHECK(rsm_outputs_create(env, files->overwrite, &outputs));
    RSM_CHECK(rsm_outputs_spare(outputs, files->from));
    RSM_CHECK(rsm_outputs_claim(outputs, files->output));
    RSM_CHECK(rsm_outputs_spare(outputs, files->input));
    if (files->report) RSM_CHECK(rsm_outputs_claim(outputs, files->report));
    if (files->figure) RSM_CHECK(rsm_outputs_claim(outputs, files->figure));
    RSM_CHECK(rsm_synth(env, device, clean, options, (const char *)from, from_size, files->from,
                      &corrupted, &record));
    RSM_CHECK(rsm_outputs_open(outputs, files->output, &stream));
    RSM_CHECK(rsm_image_write_stream(env, corrupted, files->output, stream));
    if (files->report) {
        RSM_CHECK(rsm_outputs_open(outputs, files->report, &stream));
        if (fputs(record, stream) < 0) {
            status = rsm_fail(env, RESMAP_IO, "%s: cannot be written", files->report);
            goto done;
        }
    }
    if (files->figure) {
        RSM_CHECK(rsm_outputs_open(outputs, files->figure, &stream));
        RSM_CHECK(write_figure(env, files, options, clean, corrupted, stream));
    }
    RSM_CHECK(rsm_outputs_commit(outputs));
done:
    rsm_outputs_free(outputs);
    resmap_image_free(corrupted);
    resmap_image_free(clean);
    free(record);
    free(from);
    return status;
}

void resmap_synth_options_init(resmap_synth_options *options)
{
    *options = (resmap_synth_options){.bias_order = 3, .motion_percent = -1.0};
}
