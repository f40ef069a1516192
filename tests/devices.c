#include "tests/devices.h"

#include <check.h>
#include <stdio.h>

enum { MOST = 16 };

static test_device opened[MOST];
static int count;

int test_devices_open(rsm_env *env, test_device **devices)
{
    rsm_device_list *list;
    const resmap_device *items;
    size_t found;

    *devices = opened;
    if (count > 0) return count;
    snprintf(opened[count++].specification, sizeof opened->specification, "reference");
    ck_assert_msg(rsm_device_list_create(env, &list) == RESMAP_OK, "%s", env->error);
    items = rsm_device_list_items(list, &found);
    for (size_t i = 0; i < found && count < MOST; i++)
        if (items[i].usable)
            snprintf(opened[count++].specification, sizeof opened->specification, "%d", items[i].index);
    rsm_device_list_free(list);
    if (count == 1) printf("no OpenCL device: the plain-C reference only\n");
    for (int i = 0; i < count; i++)
        ck_assert_msg(rsm_device_open(env, opened[i].specification, &opened[i].device) == RESMAP_OK, "%s",
                      env->error);
    return count;
}

void test_devices_close(void)
{
    for (int i = 0; i < count; i++) rsm_device_close(opened[i].device);
    count = 0;
}
