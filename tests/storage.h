/* Buffers of either storage, filled and read by tests. Failing calls fail the running test. */
#ifndef TESTS_STORAGE_H
#define TESTS_STORAGE_H

#include "device/device.h"

/* A buffer of `count` elements of that storage; `values` become what it holds, rounded. */
rsm_buffer *storage_make(rsm_device *device, rsm_storage storage, float *values, size_t count);
void storage_read(rsm_device *device, rsm_buffer *buffer, rsm_storage storage, float *values, size_t count);
/* The most by which storing changes a value within range: half the distance of neighbours for fp16. What fp32
 * loses belongs to the bounds of what was computed. */
double storage_rounding(rsm_storage storage, double value);

#endif
