/* What a resmap_context holds: known to resmap.c alone, and to the tests of what it keeps. */
#ifndef RSM_CONTEXT_H
#define RSM_CONTEXT_H

#include "core/env.h"
#include "device/device.h"
#include "model/network.h"

struct resmap_context {
    rsm_env env;                 /* first: a model knows its context by its env */
    rsm_device **opened;         /* NULL: none */
    size_t opened_count;
    rsm_device_list *devices;    /* of the last resmap_list_devices */
    double seconds_opening;      /* devices and models, since the last report that told them */
    int cache_sought;
    char *cache_folder;          /* NULL: none, or not sought yet */
    /* The last model's network on every device, but those that failed; kept for the next call. */
    rsm_network **networks;
    size_t network_count;
    const struct resmap_model *network_model;
    rsm_storage network_storage;
    const struct resmap_model *fp16_refused;   /* by its self-check: "auto" does not try it again */
    char *precision_reason;      /* why that storage, for people; NULL: none was chosen yet */
};

#endif
