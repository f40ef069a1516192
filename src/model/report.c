/* The report of a run as JSON (its fields are part of the public interface) and its release. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "core/json.h"
#include "model/model.h"

/* Every builder gives NULL when memory runs out; json_pack passes that on, and gives back what it was handed
 * by "o". */

static json_t *class_name(const resmap_report *report, int index)
{
    return index >= 0 && (size_t)index < report->class_count ? json_string(report->classes[index])
                                                             : json_null();
}

/* {"motion": 0.01, …} in the order of the model's classes. */
static json_t *probabilities(const resmap_report *report, const double *values)
{
    json_t *object = json_object();

    for (size_t c = 0; c < report->class_count; c++)
        if (json_object_set_new(object, report->classes[c], rsm_json_number(values[c])) != 0) {
            json_decref(object);
            return NULL;
        }
    return object;
}

static json_t *step(const resmap_report *report, const resmap_step *s)
{
    int known = s->has_probabilities && s->class_index >= 0;

    return json_pack("{s:o, s:o, s:o, s:b, s:i}", "class", class_name(report, s->class_index), "probability",
                     known ? rsm_json_number(s->probabilities[s->class_index]) : json_null(), "probabilities",
                     known ? probabilities(report, s->probabilities) : json_null(), "restored", s->restored,
                     "passes", s->passes);
}

/* Appends; 0, or -1 when memory ran out (of the value, too). */
static int append(json_t *array, json_t *value)
{
    return json_array_append_new(array, value);
}

static json_t *steps(const resmap_report *report, const resmap_volume_report *volume)
{
    json_t *array = json_array();

    for (int i = 0; i < volume->step_count; i++)
        if (append(array, step(report, &volume->steps[i])) != 0) {
            json_decref(array);
            return NULL;
        }
    return array;
}

static json_t *restored_slice(const resmap_report *report, const resmap_slice_report *slice)
{
    json_t *array = json_array();

    for (int i = 0; i < slice->step_count; i++)
        if (append(array, class_name(report, slice->steps[i])) != 0) {
            json_decref(array);
            return NULL;
        }
    return json_pack("{s:I, s:o}", "index", (json_int_t)slice->index, "steps", array);
}

static json_t *classified_slice(const resmap_report *report, const resmap_slice_report *slice)
{
    return json_pack("{s:I, s:o, s:o}", "index", (json_int_t)slice->index, "class",
                     class_name(report, slice->class_index), "probabilities",
                     slice->class_index >= 0 ? probabilities(report, slice->probabilities) : json_null());
}

static json_t *slices(const resmap_report *report, const resmap_volume_report *volume, int classify)
{
    json_t *array = json_array();

    for (size_t i = 0; i < volume->slice_count; i++) {
        const resmap_slice_report *slice = &volume->slices[i];

        if (append(array, classify ? classified_slice(report, slice) : restored_slice(report, slice)) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static json_t *volume_of_restore(const resmap_report *report, const resmap_volume_report *volume)
{
    return json_pack("{s:I, s:b, s:o, s:o, s:o}", "frame", (json_int_t)volume->frame, "constant",
                     volume->constant, "steps", steps(report, volume), "stopped",
                     rsm_json_string(volume->stopped), "slices", slices(report, volume, 0));
}

/* The classification of the volume is its first step; a constant frame has none. */
static json_t *volume_of_classify(const resmap_report *report, const resmap_volume_report *volume)
{
    const resmap_step *s = volume->step_count > 0 ? &volume->steps[0] : NULL;

    return json_pack("{s:I, s:o, s:o, s:o}", "frame", (json_int_t)volume->frame, "class",
                     s ? class_name(report, s->class_index) : json_null(), "probabilities",
                     s ? probabilities(report, s->probabilities) : json_null(), "slices",
                     slices(report, volume, 1));
}

static json_t *volumes(const resmap_report *report, int classify)
{
    json_t *array = json_array();

    for (size_t i = 0; i < report->volume_count; i++) {
        const resmap_volume_report *volume = &report->volumes[i];

        if (append(array,
                   classify ? volume_of_classify(report, volume) : volume_of_restore(report, volume)) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

/* The devices' texts that `text` picks, each once, joined by " + ". */
static json_t *of_devices(const resmap_report *report, const char *(*text)(const resmap_device_report *))
{
    char *joined = NULL;
    json_t *string;

    for (size_t i = 0; i < report->device_count; i++) {
        const char *one = text(&report->devices[i]);
        char *longer;
        size_t before = 0;

        while (before < i && strcmp(text(&report->devices[before]), one) != 0) before++;
        if (before < i) continue;
        longer = joined ? rsm_format("%s + %s", joined, one) : rsm_strdup(one);
        free(joined);
        if (!longer) return NULL;
        joined = longer;
    }
    string = rsm_json_string(joined);
    free(joined);
    return string;
}

static const char *name_of(const resmap_device_report *d) { return d->name; }
static const char *platform_of(const resmap_device_report *d) { return d->platform; }
static const char *driver_of(const resmap_device_report *d) { return d->driver; }
static const char *precision_of(const resmap_device_report *d) { return d->precision; }

static json_t *device(const resmap_report *report)
{
    return json_pack("{s:o, s:o, s:o, s:o, s:o}", "name", of_devices(report, name_of), "platform",
                     of_devices(report, platform_of), "driver", of_devices(report, driver_of), "precision",
                     of_devices(report, precision_of), "precision_reason",
                     rsm_json_string(report->precision_reason));
}

static json_t *devices(const resmap_report *report)
{
    json_t *array = json_array();

    for (size_t i = 0; i < report->device_count; i++) {
        const resmap_device_report *d = &report->devices[i];

        if (append(array,
                   json_pack("{s:o, s:o, s:o, s:o, s:I, s:I, s:o}", "name", rsm_json_string(d->name),
                             "platform", rsm_json_string(d->platform), "driver",
                             rsm_json_string(d->driver), "precision", rsm_json_string(d->precision),
                             "slices", (json_int_t)d->slices, "workers", (json_int_t)d->workers, "seconds",
                             rsm_json_number(d->seconds))) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static json_t *seconds(const resmap_report *report)
{
    return json_pack("{s:o, s:o, s:o, s:o, s:o, s:o}", "setup", rsm_json_number(report->seconds_setup),
                     "read", rsm_json_number(report->seconds_read), "compute",
                     rsm_json_number(report->seconds_compute), "network",
                     rsm_json_number(report->seconds_network), "write",
                     rsm_json_number(report->seconds_write), "total", rsm_json_number(report->seconds_total));
}

resmap_status rsm_report_json(rsm_env *env, const resmap_report *report, int classify, char **text)
{
    json_t *model = json_pack("{s:o, s:o}", "name", rsm_json_string(report->model_name), "sha256",
                              rsm_json_string(report->model_sha256));
    json_t *root;

    if (classify)
        root = json_pack("{s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:I}", "resmap", resmap_version(), "model",
                         model, "device", device(report), "devices", devices(report), "plane",
                         rsm_json_string(report->plane), "volumes", volumes(report, 1), "seconds",
                         seconds(report), "device_bytes_peak",
                         (json_int_t)report->device_bytes_peak);
    else
        root = json_pack("{s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:b, s:I, s:o, s:o, s:I}",
                         "resmap", resmap_version(), "input", rsm_json_string(report->input), "output",
                         rsm_json_string(report->output), "model", model, "device", device(report),
                         "devices", devices(report), "plane",
                         rsm_json_string(report->plane), "decide", rsm_json_string(report->decide), "prompt",
                         rsm_json_string(report->prompt), "encodings", rsm_json_string(report->encodings),
                         "tiled", report->tiled, "band_rows", (json_int_t)report->band_rows, "volumes",
                         volumes(report, 0), "seconds", seconds(report), "device_bytes_peak",
                         (json_int_t)report->device_bytes_peak);
    return rsm_json_text(env, root, text);
}

void resmap_report_free(resmap_report *report)
{
    if (!report) return;
    for (size_t i = 0; report->volumes && i < report->volume_count; i++) free(report->volumes[i].slices);
    free(report->volumes);
    for (size_t i = 0; i < report->class_count; i++) free(report->classes[i]);
    free(report->input);
    free(report->output);
    free(report->model_name);
    free(report->model_sha256);
    free(report->precision_reason);
    for (size_t i = 0; report->devices && i < report->device_count; i++) {
        free(report->devices[i].name);
        free(report->devices[i].platform);
        free(report->devices[i].driver);
    }
    free(report->devices);
    free(report->prompt);
    free(report);
}
