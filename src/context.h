/* What a resmap_context holds. Only the files that define the public functions include this. */
#ifndef RSM_CONTEXT_H
#define RSM_CONTEXT_H

#include "core/env.h"
#include "device/device.h"
#include "model/network.h"

struct resmap_context {
    rsm_env env;                 /* first: a model knows its context by its env */
    rsm_device *device;          /* NULL: none opened */
    rsm_device_list *devices;    /* of the last resmap_list_devices */
    double seconds_opening;      /* devices and models, since the last report that told them */
    int cache_sought;
    char *cache_folder;          /* NULL: none, or not sought yet */
    /* The last model's network on the device, kept for the next call. */
    rsm_network *network;
    const struct resmap_model *network_model;
};

#endif
