#include "tests/storage.h"

#include <check.h>
#include <math.h>

#include "nn/nn.h"

#define OK(call) ck_assert_msg((call) == RESMAP_OK, "%s", rsm_device_env(device)->error)

static void convert(rsm_device *device, rsm_buffer *from, rsm_storage from_storage, rsm_buffer *to,
                    rsm_storage to_storage, size_t count)
{
    OK(rsm_copy(device, (rsm_map){from, 0, count, from_storage}, (rsm_map){to, 0, count, to_storage}, 1,
                count));
}

rsm_buffer *storage_make(rsm_device *device, rsm_storage storage, float *values, size_t count)
{
    rsm_buffer *written, *buffer;

    OK(rsm_buffer_create(device, count, &written));
    OK(rsm_buffer_write(device, written, 0, values, count));
    if (storage == RSM_FP32) return written;
    OK(rsm_buffer_create(device, (count + 1) / 2, &buffer));
    convert(device, written, RSM_FP32, buffer, storage, count);
    rsm_buffer_free(written);
    storage_read(device, buffer, storage, values, count);
    return buffer;
}

void storage_read(rsm_device *device, rsm_buffer *buffer, rsm_storage storage, float *values, size_t count)
{
    rsm_buffer *read = buffer;

    if (storage != RSM_FP32) {
        OK(rsm_buffer_create(device, count, &read));
        convert(device, buffer, storage, read, RSM_FP32, count);
    }
    OK(rsm_buffer_read(device, read, 0, values, count));
    if (read != buffer) rsm_buffer_free(read);
}

double storage_rounding(rsm_storage storage, double value)
{
    /* 11 bits, and the smallest numbers 2^-24 apart. */
    return storage == RSM_FP32 ? 0 : fmax(ldexp(fabs(value), -11), ldexp(1, -25));
}
