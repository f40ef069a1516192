/* Runs a test on the plain-C reference and on every OpenCL device present. */
#ifndef TESTS_DEVICES_H
#define TESTS_DEVICES_H

#include "device/device.h"

typedef struct test_device {
    char specification[32];
    rsm_device *device;
} test_device;

/* Opens all of them once; their errors go to *env. Returns how many; the reference is number 0. */
int test_devices_open(rsm_env *env, test_device **devices);
void test_devices_close(void);

#endif
