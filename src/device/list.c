/* Listing, scoring and choosing devices. */
#include "device/device_private.h"

#include <CL/cl_ext.h>
#include <ctype.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* Why a driver is treated in its own way. Texts are looked for in the platform's name, which tells drivers
 * apart better than the device's vendor (PoCL and Mesa report the maker of the hardware there). */
static const struct {
    const char *platform;        /* part of the platform's name */
    cl_device_type type;         /* 0: any */
    int clblast_below;           /* 0: any CLBlast, else older ones only */
    unsigned quirk;
    const char *reason;
} quirks[] = {
    {"Clover", 0, 0, RSM_QUIRK_REFUSE, "Mesa's Clover computes wrongly; use rusticl or the maker's driver"},
    {"Portable Computing Language", 0, 0, RSM_QUIRK_NO_BINARIES, NULL},
    {"Intel", CL_DEVICE_TYPE_GPU, 1006003, RSM_QUIRK_OWN_GEMM, NULL},   /* CLBlast issues 533, 542, 543 */
};

int rsm_has_word(const char *text, const char *word)
{
    size_t length = strlen(word);
    for (const char *at = strstr(text, word); at; at = strstr(at + 1, word)) {
        if ((at == text || at[-1] == ' ') && (at[length] == ' ' || at[length] == '\0')) return 1;
    }
    return 0;
}

/* Control characters made spaces, spaces at the ends removed. */
static void tidy(char *text)
{
    size_t length = strlen(text), start = 0;
    for (size_t i = 0; i < length; i++) {
        if (iscntrl((unsigned char)text[i])) text[i] = ' ';
    }
    while (length > 0 && text[length - 1] == ' ') length--;
    while (start < length && text[start] == ' ') start++;
    memmove(text, text + start, length - start);
    text[length - start] = '\0';
}

/* Strings of drivers in fresh memory; "" for what a driver does not tell; NULL when memory runs out. */
static char *platform_text(cl_platform_id platform, cl_platform_info what)
{
    size_t size = 0;
    if (clGetPlatformInfo(platform, what, 0, NULL, &size) != CL_SUCCESS) size = 0;
    char *text = calloc(size + 1, 1);
    if (!text) return NULL;
    if (size > 0 && clGetPlatformInfo(platform, what, size, text, NULL) != CL_SUCCESS) text[0] = '\0';
    tidy(text);
    return text;
}

static char *device_text(cl_device_id id, cl_device_info what)
{
    size_t size = 0;
    if (clGetDeviceInfo(id, what, 0, NULL, &size) != CL_SUCCESS) size = 0;
    char *text = calloc(size + 1, 1);
    if (!text) return NULL;
    if (size > 0 && clGetDeviceInfo(id, what, size, text, NULL) != CL_SUCCESS) text[0] = '\0';
    tidy(text);
    return text;
}

static uint64_t device_ulong(cl_device_id id, cl_device_info what)
{
    cl_ulong value = 0;
    return clGetDeviceInfo(id, what, sizeof value, &value, NULL) == CL_SUCCESS ? value : 0;
}

static unsigned device_uint(cl_device_id id, cl_device_info what)
{
    cl_uint value = 0;
    return clGetDeviceInfo(id, what, sizeof value, &value, NULL) == CL_SUCCESS ? value : 0;
}

static size_t device_size(cl_device_id id, cl_device_info what)
{
    size_t value = 0;
    return clGetDeviceInfo(id, what, sizeof value, &value, NULL) == CL_SUCCESS ? value : 0;
}

static int device_bool(cl_device_id id, cl_device_info what)
{
    cl_bool value = CL_FALSE;
    return clGetDeviceInfo(id, what, sizeof value, &value, NULL) == CL_SUCCESS && value != CL_FALSE;
}

/* "OpenCL 3.0 …" is 300, "OpenCL 1.2 …" 120; 0 for anything else. */
static int version_number(const char *version)
{
    if (strncmp(version, "OpenCL ", 7) != 0) return 0;
    char *end;
    long major = strtol(version + 7, &end, 10);
    if (*end != '.' || major < 1 || major > 99) return 0;
    long minor = strtol(end + 1, NULL, 10);
    return minor < 0 || minor > 9 ? 0 : (int)(major * 100 + minor * 10);
}

static const char *type_name(cl_device_type type)
{
    /* The CPU first: simulators such as Oclgrind claim every type. */
    if (type & CL_DEVICE_TYPE_CPU) return "cpu";
    if (type & CL_DEVICE_TYPE_GPU) return "gpu";
    if (type & CL_DEVICE_TYPE_ACCELERATOR) return "accelerator";
    return "other";
}

double rsm_device_score(const resmap_device *item, const rsm_candidate *candidate)
{
    double kind = strcmp(item->type, "gpu") == 0 ? (candidate->host_memory ? 3 : 4)
                : strcmp(item->type, "accelerator") == 0 ? 2 : strcmp(item->type, "cpu") == 0 ? 1 : 0;
    return kind * 1e9 + (double)item->compute_units * item->clock_mhz;
}

/* The sizes of sub-groups that kernels may ask for, or-ed: they are powers of two. */
static unsigned sub_group_sizes(cl_device_id id, const char *extensions)
{
    size_t sizes[16], size = 0;
    unsigned all = 0;
    if (!rsm_has_word(extensions, "cl_intel_subgroups")
        || !rsm_has_word(extensions, "cl_intel_required_subgroup_size")
        || clGetDeviceInfo(id, CL_DEVICE_SUB_GROUP_SIZES_INTEL, sizeof sizes, sizes, &size) != CL_SUCCESS) {
        return 0;
    }
    for (size_t i = 0; i < size / sizeof sizes[0]; i++) all |= (unsigned)sizes[i];
    return all;
}

static void find_slot(cl_device_id id, const char *extensions, unsigned slot[5])
{
    cl_device_pci_bus_info_khr at;
    if (!rsm_has_word(extensions, "cl_khr_pci_bus_info")
        || clGetDeviceInfo(id, CL_DEVICE_PCI_BUS_INFO_KHR, sizeof at, &at, NULL) != CL_SUCCESS) return;
    slot[0] = 1;
    slot[1] = at.pci_domain;
    slot[2] = at.pci_bus;
    slot[3] = at.pci_device;
    slot[4] = at.pci_function;
}

/* Fills in one entry; RESMAP_NO_MEMORY leaves it for rsm_device_list_free. */
static resmap_status describe(rsm_env *env, cl_platform_id platform, cl_device_id id, resmap_device *item,
                              rsm_candidate *candidate)
{
    cl_ulong type = 0;
    char *extensions = NULL;
    clGetDeviceInfo(id, CL_DEVICE_TYPE, sizeof type, &type, NULL);
    candidate->platform = platform;
    candidate->id = id;
    candidate->type = type;
    item->type = type_name(type);
    item->platform = platform_text(platform, CL_PLATFORM_NAME);
    item->name = device_text(id, CL_DEVICE_NAME);
    item->driver = device_text(id, CL_DRIVER_VERSION);
    item->version = device_text(id, CL_DEVICE_VERSION);
    candidate->vendor = platform_text(platform, CL_PLATFORM_VENDOR);
    candidate->platform_version = platform_text(platform, CL_PLATFORM_VERSION);
    extensions = device_text(id, CL_DEVICE_EXTENSIONS);
    if (!item->platform || !item->name || !item->driver || !item->version || !candidate->vendor
        || !candidate->platform_version || !extensions) {
        free(extensions);
        return rsm_no_memory(env, 256);
    }
    item->compute_units = (int)device_uint(id, CL_DEVICE_MAX_COMPUTE_UNITS);
    item->clock_mhz = (int)device_uint(id, CL_DEVICE_MAX_CLOCK_FREQUENCY);
    item->memory_bytes = device_ulong(id, CL_DEVICE_GLOBAL_MEM_SIZE);
    item->max_allocation_bytes = device_ulong(id, CL_DEVICE_MAX_MEM_ALLOC_SIZE);
    item->local_memory_bytes = device_ulong(id, CL_DEVICE_LOCAL_MEM_SIZE);
    item->max_work_group = device_size(id, CL_DEVICE_MAX_WORK_GROUP_SIZE);
    item->fp16 = rsm_has_word(extensions, "cl_khr_fp16");
    item->fp64 = rsm_has_word(extensions, "cl_khr_fp64");
    item->subgroups = rsm_has_word(extensions, "cl_khr_subgroups")
        || rsm_has_word(extensions, "cl_intel_subgroups");
    candidate->sub_groups = sub_group_sizes(id, extensions);
    candidate->host_memory = strcmp(item->type, "cpu") == 0 || device_bool(id, CL_DEVICE_HOST_UNIFIED_MEMORY);
    find_slot(id, extensions, candidate->slot);
    free(extensions);

    const char *reason = NULL;
    candidate->can_work = 0;
    if (!device_bool(id, CL_DEVICE_AVAILABLE)) reason = "the driver calls it unavailable";
    else if (!device_bool(id, CL_DEVICE_COMPILER_AVAILABLE)) reason = "the driver has no compiler";
    else if (version_number(item->version) < 120) reason = "older than OpenCL 1.2";
    else if (strcmp(item->type, "other") == 0) reason = "a device of fixed functions";
    else if (!device_bool(id, CL_DEVICE_ENDIAN_LITTLE)) reason = "big-endian";
    else candidate->can_work = 1;

    for (size_t i = 0; i < sizeof quirks / sizeof quirks[0]; i++) {
        if (!strstr(item->platform, quirks[i].platform)) continue;
        if (quirks[i].type && !(type & quirks[i].type)) continue;
        if (quirks[i].clblast_below && rsm_clblast_version() >= quirks[i].clblast_below) continue;
        candidate->quirks |= quirks[i].quirk;
        if (!reason && quirks[i].quirk == RSM_QUIRK_REFUSE) reason = quirks[i].reason;
    }
    item->usable = reason == NULL;
    candidate->score = rsm_device_score(item, candidate);
    if (reason) {
        item->reason = rsm_strdup(reason);
        if (!item->reason) return rsm_no_memory(env, strlen(reason) + 1);
    }
    return RESMAP_OK;
}

/* Appends the devices of one platform. */
static resmap_status add_platform(rsm_env *env, rsm_device_list *list, cl_platform_id platform)
{
    cl_uint count = 0;
    cl_int code = clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, 0, NULL, &count);
    if (code != CL_SUCCESS || count == 0) {
        if (code != CL_SUCCESS && code != CL_DEVICE_NOT_FOUND) {
            rsm_log(env, RESMAP_LOG_INFO, "a platform does not list its devices: %s (%d)",
                    rsm_cl_error_name(code), code);
        }
        if (!list->without) list->without = platform_text(platform, CL_PLATFORM_NAME);
        return RESMAP_OK;
    }
    size_t total = list->count + count;
    cl_device_id *ids = calloc(count, sizeof *ids);
    resmap_device *items = realloc(list->items, rsm_bytes(total, sizeof *items));
    if (items) list->items = items;
    rsm_candidate *candidates = realloc(list->candidates, rsm_bytes(total, sizeof *candidates));
    if (candidates) list->candidates = candidates;
    if (!ids || !items || !candidates) {
        free(ids);
        return rsm_no_memory(env, total * (sizeof *items + sizeof *candidates));
    }
    code = clGetDeviceIDs(platform, CL_DEVICE_TYPE_ALL, count, ids, NULL);
    resmap_status status = RESMAP_OK;
    for (cl_uint i = 0; code == CL_SUCCESS && i < count && status == RESMAP_OK; i++) {
        size_t at = list->count++;
        memset(&list->items[at], 0, sizeof list->items[at]);
        memset(&list->candidates[at], 0, sizeof list->candidates[at]);
        list->items[at].index = (int)at;
        status = describe(env, platform, ids[i], &list->items[at], &list->candidates[at]);
    }
    free(ids);
    return status;
}

/* The best usable device of a type ("": any), or list->count. The first wins ties. */
static size_t best(const rsm_device_list *list, const char *type)
{
    size_t found = list->count;
    for (size_t i = 0; i < list->count; i++) {
        if (!list->items[i].usable || (type[0] && strcmp(list->items[i].type, type) != 0)) continue;
        if (found == list->count || list->candidates[i].score > list->candidates[found].score) found = i;
    }
    return found;
}

static resmap_status give_reasons(rsm_env *env, rsm_device_list *list)
{
    size_t chosen = best(list, "");
    for (size_t i = 0; i < list->count; i++) {
        resmap_device *item = &list->items[i];
        if (!item->usable) continue;
        item->chosen = i == chosen;
        if (item->chosen) {
            item->reason = list->count == 1
                ? rsm_strdup("the only device")
                : rsm_format("the best: %s, %d compute units at %d MHz", item->type, item->compute_units,
                             item->clock_mhz);
        } else {
            const resmap_device *first = &list->items[chosen];
            item->reason = strcmp(item->type, first->type) != 0
                ? rsm_format("usable, but %s %d is preferred to %s", first->type, first->index, item->type)
                : list->candidates[i].host_memory && !list->candidates[chosen].host_memory
                ? rsm_format("usable, but device %d has memory of its own", first->index)
                : rsm_format("usable, but device %d is at least as large", first->index);
        }
        if (!item->reason) return rsm_no_memory(env, 80);
    }
    return RESMAP_OK;
}

static resmap_status list_devices(rsm_env *env, rsm_device_list **result)
{
    cl_uint count = 0;
    cl_int code = clGetPlatformIDs(0, NULL, &count);
    if (code == -1001) count = 0;    /* CL_PLATFORM_NOT_FOUND_KHR: no driver installed, a normal state */
    else if (code != CL_SUCCESS) {
        return rsm_fail(env, RESMAP_DEVICE_FAILED, "OpenCL: listing the platforms: %s (%d)",
                        rsm_cl_error_name(code), code);
    }
    rsm_device_list *list = calloc(1, sizeof *list);
    cl_platform_id *platforms = calloc((size_t)count + 1, sizeof *platforms);
    resmap_status status = RESMAP_OK;
    if (!list || !platforms) {
        RSM_CHECK(rsm_no_memory(env, sizeof *list + ((size_t)count + 1) * sizeof *platforms));
    }
    if (count > 0) {
        code = clGetPlatformIDs(count, platforms, NULL);
        if (code != CL_SUCCESS) {
            RSM_CHECK(rsm_fail(env, RESMAP_DEVICE_FAILED, "OpenCL: listing the platforms: %s (%d)",
                               rsm_cl_error_name(code), code));
        }
    }
    for (cl_uint i = 0; i < count; i++) RSM_CHECK(add_platform(env, list, platforms[i]));
    RSM_CHECK(give_reasons(env, list));
done:
    free(platforms);
    if (status == RESMAP_OK) *result = list;
    else rsm_device_list_free(list);
    return status;
}

resmap_status rsm_device_list_create(rsm_env *env, rsm_device_list **result)
{
    /* The first listing makes drivers set themselves up, and PoCL shows a second thread devices that are half made. */
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

    pthread_mutex_lock(&lock);
    resmap_status status = list_devices(env, result);
    pthread_mutex_unlock(&lock);
    return status;
}

void rsm_device_list_free(rsm_device_list *list)
{
    if (!list) return;
    free(list->without);
    for (size_t i = 0; i < list->count; i++) {
        free((char *)list->items[i].platform);
        free((char *)list->items[i].name);
        free((char *)list->items[i].driver);
        free((char *)list->items[i].version);
        free((char *)list->items[i].reason);
        free(list->candidates[i].vendor);
        free(list->candidates[i].platform_version);
    }
    free(list->items);
    free(list->candidates);
    free(list);
}

const resmap_device *rsm_device_list_items(const rsm_device_list *list, size_t *count)
{
    *count = list->count;
    return list->items;
}

/* ASCII's; a program that uses the library may have set a locale with another idea of I. */
static int lower(char c)
{
    return c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c;
}

/* strstr without regard to case. */
static int contains(const char *text, const char *part)
{
    size_t length = strlen(part);
    for (; *text; text++) {
        size_t i = 0;
        while (i < length && text[i] && lower(text[i]) == lower(part[i])) {
            i++;
        }
        if (i == length) return 1;
    }
    return 0;
}

/* asked: what was named, "auto" (or NULL) apart. */
static resmap_status no_usable(rsm_env *env, const rsm_device_list *list, const char *asked)
{
    const int named = asked && strcmp(asked, "auto") != 0;
    const char *begin = named ? "device " : "", *name = named ? asked : "", *colon = named ? ": " : "";
    if (list->count == 0 && list->without)
        return rsm_fail(env, RESMAP_NO_DEVICE, "%s%s%sOpenCL: %s offers no device%s", begin, name, colon, list->without,
                        strcmp(list->without, "Portable Computing Language") == 0
                        ? " (it does so where it cannot write its cache; POCL_CACHE_DIR names another folder)" : "");
    return rsm_fail(env, RESMAP_NO_DEVICE, "%s%s%sOpenCL: %s", begin, name, colon, list->count == 0
                    ? "no device; install a driver (pocl-opencl-icd serves any CPU)"
                    : "no usable device; `resmap devices` says why");
}

resmap_status rsm_device_list_select(rsm_env *env, const rsm_device_list *list, const char *specification,
                                     size_t *index)
{
    size_t found;
    if (list->count == 0) return no_usable(env, list, specification);
    if (!specification || strcmp(specification, "auto") == 0) {
        found = best(list, "");
        if (found == list->count) return no_usable(env, list, NULL);
    } else if (strcmp(specification, "gpu") == 0 || strcmp(specification, "cpu") == 0) {
        found = best(list, specification);
        if (found == list->count) {
            return rsm_fail(env, RESMAP_NO_DEVICE, "device %s: no usable one", specification);
        }
    } else if (specification[0] && specification[strspn(specification, "0123456789")] == '\0') {
        char *end;
        unsigned long number = strtoul(specification, &end, 10);
        if (number >= list->count) {
            return rsm_fail(env, RESMAP_NO_DEVICE, "device %s: there are %zu", specification, list->count);
        }
        found = number;
    } else {
        /* Part of a name (or of its platform's): usable devices before those that have to be named. */
        found = list->count;
        for (size_t i = 0; i < list->count && specification[0]; i++) {
            const resmap_device *item = &list->items[i];
            if (!contains(item->name, specification) && !contains(item->platform, specification)) continue;
            if (found == list->count || item->usable > list->items[found].usable
                || (item->usable == list->items[found].usable
                    && list->candidates[i].score > list->candidates[found].score)) found = i;
        }
        if (found == list->count) {
            return rsm_fail(env, RESMAP_NO_DEVICE, "device \"%s\": no name contains it", specification);
        }
    }
    if (!list->candidates[found].can_work) {
        return rsm_fail(env, RESMAP_NO_DEVICE, "device %s: %s", list->items[found].name,
                        list->items[found].reason);
    }
    *index = found;
    return RESMAP_OK;
}

/* Gives what was found, unless it is nothing. */
static resmap_status give_usable(rsm_env *env, const rsm_device_list *list, size_t *found, size_t count, size_t **indices)
{
    if (count == 0) {
        free(found);
        return no_usable(env, list, NULL);
    }
    *indices = found;
    return RESMAP_OK;
}

resmap_status rsm_device_list_ranked(rsm_env *env, const rsm_device_list *list, size_t **indices, size_t *count)
{
    size_t *found = calloc(list->count + 1, sizeof *found);
    if (!found) return rsm_no_memory(env, (list->count + 1) * sizeof *found);
    *count = 0;
    for (size_t i = 0; i < list->count; i++) {
        size_t at = *count;
        if (!list->items[i].usable) continue;
        for (; at > 0 && list->candidates[found[at - 1]].score < list->candidates[i].score; at--) found[at] = found[at - 1];
        found[at] = i;
        ++*count;
    }
    return give_usable(env, list, found, *count, indices);
}

/* Whether a usable device that is listed first, or better, is the same hardware by another driver. */
static int has_better_driver(const rsm_device_list *list, size_t i)
{
    const rsm_candidate *mine = &list->candidates[i];
    for (size_t k = 0; k < list->count; k++) {
        const rsm_candidate *other = &list->candidates[k];
        int same = strcmp(list->items[i].type, "cpu") == 0
            ? strcmp(list->items[k].type, "cpu") == 0
            : mine->slot[0] && other->platform != mine->platform && memcmp(mine->slot, other->slot, sizeof mine->slot) == 0;
        if (k == i || !same || !list->items[k].usable) continue;
        if (other->score > mine->score || (other->score == mine->score && k < i)) return 1;
    }
    return 0;
}

resmap_status rsm_device_list_all(rsm_env *env, const rsm_device_list *list, size_t **indices, size_t *count)
{
    size_t *found = calloc(list->count + 1, sizeof *found);
    if (!found) return rsm_no_memory(env, (list->count + 1) * sizeof *found);
    *count = 0;
    for (size_t i = 0; i < list->count; i++)
        if (list->items[i].usable && !has_better_driver(list, i)) found[(*count)++] = i;
    return give_usable(env, list, found, *count, indices);
}
