/* Where a device's time goes: the seconds of every command, by what rsm_profile_next called it. */
#include "device/device_private.h"

#include <stdlib.h>
#include <string.h>

struct rsm_profile {
    cl_command_queue plain;      /* the queue set aside for one that times its commands */
    rsm_profile_row *rows;       /* rows[0]: commands before the first rsm_profile_next */
    size_t count, capacity, current;
    int held;                    /* on the current row */
    double since;                /* reference: when the current row's work began */
    double asked;                /* when the last command was about to be enqueued */
};

resmap_status rsm_profile_begin(rsm_device *device)
{
    rsm_profile *profile;
    if (device->profile)
        return rsm_fail(device->env, RESMAP_INTERNAL, "device %s: profiled twice", device->info.name);
    RSM_TRY(rsm_device_finish(device));
    profile = calloc(1, sizeof *profile);
    if (!profile) return rsm_no_memory(device->env, sizeof *profile);
    profile->capacity = 64;
    profile->count = 1;
    profile->rows = calloc(profile->capacity, sizeof *profile->rows);
    if (!profile->rows) {
        free(profile);
        return rsm_no_memory(device->env, 64 * sizeof *profile->rows);
    }
    strcpy(profile->rows[0].name, "other");
    if (!device->reference) {
        cl_int code;
        cl_command_queue timed =
            clCreateCommandQueue(device->context, device->id, CL_QUEUE_PROFILING_ENABLE, &code);
        if (code == CL_SUCCESS) {                /* else the host's clock has to do: some drivers have no other */
            profile->plain = device->queue;
            device->queue = timed;
        }
    }
    profile->since = rsm_seconds();
    device->profile = profile;
    return RESMAP_OK;
}

void rsm_profile_close(rsm_device *device)
{
    rsm_profile *profile = device->profile;
    if (!profile) return;
    if (profile->plain) {
        clFinish(device->queue);
        clReleaseCommandQueue(device->queue);
        device->queue = profile->plain;
    }
    free(profile->rows);
    free(profile);
    device->profile = NULL;
}

static int compare_rows(const void *a, const void *b)
{
    const rsm_profile_row *left = a, *right = b;
    if (left->seconds != right->seconds) return left->seconds < right->seconds ? 1 : -1;
    return strcmp(left->name, right->name);
}

/* On the reference what ran since the last call belongs to the current row. */
static void end_row(rsm_device *device)
{
    rsm_profile *profile = device->profile;
    double now = rsm_seconds();
    if (device->reference && profile->current > 0)
        profile->rows[profile->current].seconds += now - profile->since;
    profile->since = now;
}

resmap_status rsm_profile_end(rsm_device *device, rsm_profile_row **rows, size_t *count)
{
    rsm_profile *profile = device->profile;
    resmap_status status;
    if (!profile) return rsm_fail(device->env, RESMAP_INTERNAL, "device %s: not profiled", device->info.name);
    end_row(device);
    status = rsm_device_finish(device);
    if (status == RESMAP_OK) {
        *rows = profile->rows;
        *count = profile->count;
        profile->rows = NULL;
        if ((*rows)[0].seconds <= 0) {
            --*count;
            memmove(*rows, *rows + 1, *count * sizeof **rows);
        }
        qsort(*rows, *count, sizeof **rows, compare_rows);
    }
    rsm_profile_close(device);
    return status;
}

resmap_status rsm_profile_next(rsm_device *device, const char *name, size_t rows, size_t columns, double flop,
                               double elements)
{
    rsm_profile *profile = device->profile;
    rsm_profile_row *row;
    size_t i = 0;
    if (!profile || profile->held) return RESMAP_OK;
    end_row(device);
    while (i < profile->count && (strcmp(profile->rows[i].name, name) != 0 || profile->rows[i].rows != rows ||
                                  profile->rows[i].columns != columns))
        i++;
    if (i == profile->capacity) {
        rsm_profile_row *more = realloc(profile->rows, 2 * i * sizeof *more);
        if (!more) return rsm_no_memory(device->env, 2 * i * sizeof *more);
        profile->rows = more;
        profile->capacity = 2 * i;
    }
    row = &profile->rows[i];
    if (i == profile->count) {
        memset(row, 0, sizeof *row);
        strncpy(row->name, name, sizeof row->name - 1);
        row->rows = rows;
        row->columns = columns;
        profile->count++;
    }
    row->calls++;
    row->flop += flop;
    row->bytes += elements * (double)(device->reference ? sizeof(double) : sizeof(float));
    profile->current = i;
    return RESMAP_OK;
}

void rsm_profile_hold(rsm_device *device, int on)
{
    if (device->profile) device->profile->held = on;
}

cl_event *rsm_profile_event(const rsm_device *device, cl_event *event)
{
    *event = NULL;
    if (!device->profile) return NULL;
    device->profile->asked = rsm_seconds();
    return event;
}

resmap_status rsm_profile_took(rsm_device *device, cl_event event)
{
    if (!device->profile) return RESMAP_OK;
    cl_ulong start = 0, end = 0;
    cl_int code = clWaitForEvents(1, &event);
    double seconds = rsm_seconds() - device->profile->asked;
    if (code == CL_SUCCESS
        && clGetEventProfilingInfo(event, CL_PROFILING_COMMAND_START, sizeof start, &start, NULL) == CL_SUCCESS
        && clGetEventProfilingInfo(event, CL_PROFILING_COMMAND_END, sizeof end, &end, NULL) == CL_SUCCESS && end > 0)
        seconds = end > start ? 1e-9 * (double)(end - start) : 0;
    clReleaseEvent(event);
    if (code != CL_SUCCESS) return rsm_cl_fail(device, "timing", code);
    device->profile->rows[device->profile->current].seconds += seconds;
    return RESMAP_OK;
}

resmap_status rsm_profile_lap(rsm_device *device, double *start)
{
    if (!device->profile) return RESMAP_OK;
    RSM_TRY(rsm_device_finish(device));
    double now = rsm_seconds();
    if (*start >= 0) device->profile->rows[device->profile->current].seconds += now - *start;
    *start = now;
    return RESMAP_OK;
}
