/* The safetensors container: 8 bytes of header length (little-endian), a JSON header {"name": {"dtype",
 * "shape", "data_offsets"}, …, "__metadata__": {string: string}}, then the data. Nothing in the file is
 * believed: every number is checked against the others before it is used. */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "model/model.h"

/* The tree that jansson makes of a header takes up to some 40 times its bytes; a model's header takes 100 KB.
 */
#define MAX_HEADER ((size_t)16 << 20)

static const struct {
    const char *name;
    rsm_dtype dtype;
    size_t size;
} dtypes[] = {{"F32", RSM_F32, 4}, {"F16", RSM_F16, 2}, {"BF16", RSM_BF16, 2}, {"I32", RSM_I32, 4}};

/* One entry of the header. begin and end: its bytes within the data. */
static resmap_status read_entry(rsm_env *env, const char *name, const char *key, const json_t *entry,
                                size_t data_size, rsm_tensor *tensor, size_t *begin, size_t *end)
{
    const json_t *shape = json_object_get(entry, "shape"), *offsets = json_object_get(entry, "data_offsets");
    const char *dtype = json_string_value(json_object_get(entry, "dtype"));
    size_t element = 0, dims = json_array_size(shape);

    if (!dtype || !json_is_array(shape) || !json_is_array(offsets) || json_array_size(offsets) != 2)
        return rsm_fail(env, RESMAP_BAD_FILE, "%s: tensor %.200s lacks a dtype, a shape or two data_offsets",
                        name, key);
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
        if (strcmp(dtype, dtypes[i].name) == 0) {
            tensor->dtype = dtypes[i].dtype;
            element = dtypes[i].size;
        }
    if (element == 0)
        return rsm_fail(env, RESMAP_BAD_FILE, "%s: tensor %.200s has the unknown dtype %.40s", name, key,
                        dtype);
    if (dims > 4)
        return rsm_fail(env, RESMAP_BAD_FILE, "%s: tensor %.200s has %zu dimensions, at most 4 are possible",
                        name, key, dims);

    tensor->dims = dims;
    tensor->count = 1;
    for (size_t i = 0; i < 4; i++) tensor->shape[i] = 1;
    for (size_t i = 0; i < dims; i++) {
        const json_t *length = json_array_get(shape, i);
        json_int_t value = json_integer_value(length);

        /* The product is at most the bytes of data (zero lengths apart, which end it): no overflow. */
        if (!json_is_integer(length) || value < 0)
            return rsm_fail(env, RESMAP_BAD_FILE, "%s: tensor %.200s has an impossible shape", name, key);
        tensor->shape[i] = (size_t)value;
        if (value > 0 && tensor->count > data_size / (uint64_t)value)
            return rsm_fail(env, RESMAP_BAD_FILE, "%s: tensor %.200s is larger than the file", name, key);
        tensor->count *= (size_t)value;
    }

    const json_t *first = json_array_get(offsets, 0), *last = json_array_get(offsets, 1);
    json_int_t b = json_integer_value(first), e = json_integer_value(last);
    if (!json_is_integer(first) || !json_is_integer(last) || b < 0 || e < b || (uint64_t)e > data_size)
        return rsm_fail(env, RESMAP_BAD_FILE, "%s: tensor %.200s lies outside the file", name, key);
    *begin = (size_t)b;
    *end = (size_t)e;
    if (tensor->count > data_size / element || *end - *begin != tensor->count * element)
        return rsm_fail(env, RESMAP_BAD_FILE, "%s: tensor %.200s: its shape does not fit its data", name,
                        key);
    return RESMAP_OK;
}

static resmap_status read_metadata(rsm_env *env, const char *name, const json_t *metadata,
                                   rsm_safetensors *file)
{
    const char *key;
    json_t *value;

    if (!json_is_object(metadata))
        return rsm_fail(env, RESMAP_BAD_FILE, "%s: __metadata__ is not an object", name);
    json_object_foreach((json_t *)metadata, key, value)
    {
        if (!json_is_string(value))
            return rsm_fail(env, RESMAP_BAD_FILE, "%s: __metadata__ holds something other than text", name);
        if (strcmp(key, "resmap.config") != 0) continue;
        file->config = rsm_strdup(json_string_value(value));
        if (!file->config) return rsm_no_memory(env, json_string_length(value) + 1);
    }
    return RESMAP_OK;
}

static int by_address(const void *a, const void *b)
{
    const rsm_tensor *x = a, *y = b;

    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return (x->count > 0) - (y->count > 0); /* empty tensors before the one that begins where they stand */
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const rsm_tensor *)a)->name, ((const rsm_tensor *)b)->name);
}

static size_t tensor_bytes(const rsm_tensor *tensor)
{
    return tensor->count * (tensor->dtype == RSM_F16 || tensor->dtype == RSM_BF16 ? 2 : 4);
}

static resmap_status read_header(rsm_env *env, const char *name, const json_t *header,
                                 const unsigned char *data, size_t data_size, rsm_safetensors *file)
{
    const char *key;
    json_t *value;
    size_t members = json_object_size(header);

    if (!json_is_object(header))
        return rsm_fail(env, RESMAP_BAD_FILE, "%s: the header is not a JSON object", name);
    file->tensors = calloc(members ? members : 1, sizeof *file->tensors);
    if (!file->tensors) return rsm_no_memory(env, rsm_bytes(members, sizeof *file->tensors));

    json_object_foreach((json_t *)header, key, value)
    {
        size_t begin = 0, end = 0;
        rsm_tensor *tensor = &file->tensors[file->tensor_count];

        if (strcmp(key, "__metadata__") == 0) {
            RSM_TRY(read_metadata(env, name, value, file));
            continue;
        }
        RSM_TRY(read_entry(env, name, key, value, data_size, tensor, &begin, &end));
        tensor->data = data + begin;
        tensor->name = rsm_strdup(key);
        if (!tensor->name) return rsm_no_memory(env, strlen(key) + 1);
        file->tensor_count++;
    }
    if (file->tensor_count == 0) return rsm_fail(env, RESMAP_BAD_FILE, "%s: holds no tensors", name);

    /* In the order of their data the tensors must follow each other exactly, from the first byte to the last.
     */
    const unsigned char *expected = data;
    qsort(file->tensors, file->tensor_count, sizeof *file->tensors, by_address);
    for (size_t i = 0; i < file->tensor_count; i++) {
        const rsm_tensor *tensor = &file->tensors[i];

        if (tensor->data != expected)
            return rsm_fail(env, RESMAP_BAD_FILE, "%s: tensor %.200s %s", name, tensor->name,
                            tensor->data < expected ? "overlaps another" : "follows a gap in the data");
        expected += tensor_bytes(tensor);
    }
    if (expected != data + data_size)
        return rsm_fail(env, RESMAP_BAD_FILE, "%s: %zu bytes at the end belong to no tensor", name,
                        (size_t)(data + data_size - expected));
    qsort(file->tensors, file->tensor_count, sizeof *file->tensors, by_name);
    return RESMAP_OK;
}

resmap_status rsm_safetensors_parse(rsm_env *env, const char *name, unsigned char *bytes, size_t size,
                                    rsm_safetensors *file)
{
    resmap_status status;
    json_t *header = NULL;
    json_error_t error;
    uint64_t length = 0;

    memset(file, 0, sizeof *file);
    file->bytes = bytes;
    file->size = size;
    if (size < 8) {
        status = rsm_fail(env, RESMAP_BAD_FILE, "%s: too short for a safetensors file", name);
        goto done;
    }
    for (int i = 7; i >= 0; i--) length = length << 8 | bytes[i];
    if (length > size - 8) {
        status =
            rsm_fail(env, RESMAP_BAD_FILE,
                     "%s: not a safetensors file, or cut short (its header would be longer than it)", name);
        goto done;
    }
    if (length > MAX_HEADER) {
        status = rsm_fail(env, RESMAP_BAD_FILE, "%s: its header is longer than %zu bytes", name, MAX_HEADER);
        goto done;
    }
    header = json_loadb((const char *)bytes + 8, (size_t)length, JSON_REJECT_DUPLICATES, &error);
    if (!header) {
        status = json_error_code(&error) == json_error_out_of_memory
                     ? rsm_no_memory(env, (size_t)length)
                     : rsm_fail(env, RESMAP_BAD_FILE, "%s: the header is not JSON: %s", name, error.text);
        goto done;
    }
    RSM_CHECK(read_header(env, name, header, bytes + 8 + length, size - 8 - (size_t)length, file));
    rsm_sha256_hex(bytes, size, file->sha256);

done:
    json_decref(header);
    if (status != RESMAP_OK) rsm_safetensors_clear(file);
    return status;
}

void rsm_safetensors_clear(rsm_safetensors *file)
{
    for (size_t i = 0; i < file->tensor_count; i++) free(file->tensors[i].name);
    free(file->tensors);
    free(file->config);
    free(file->bytes);
    memset(file, 0, sizeof *file);
}

static int compare_name(const void *key, const void *tensor)
{
    return strcmp(key, ((const rsm_tensor *)tensor)->name);
}

const rsm_tensor *rsm_safetensors_find(const rsm_safetensors *file, const char *name)
{
    return bsearch(name, file->tensors, file->tensor_count, sizeof *file->tensors, compare_name);
}

/* IEEE binary16 as the binary32 of the same value. */
static uint32_t half_bits(uint32_t h)
{
    uint32_t sign = (h & 0x8000u) << 16, exponent = h >> 10 & 0x1Fu, mantissa = h & 0x3FFu;

    if (exponent == 0x1Fu) return sign | 0x7F800000u | mantissa << 13;
    if (exponent == 0) {
        if (mantissa == 0) return sign;
        for (exponent = 1; !(mantissa & 0x400u); exponent--)
            mantissa <<= 1; /* may wrap below 0: 112 is added */
        mantissa &= 0x3FFu;
    }
    return sign | (exponent + 112u) << 23 | mantissa << 13;
}

void rsm_tensor_to_float(const rsm_tensor *tensor, float *target)
{
    const unsigned char *p = tensor->data;

    for (size_t i = 0; i < tensor->count; i++) {
        uint32_t bits;

        if (tensor->dtype == RSM_F16 || tensor->dtype == RSM_BF16) {
            bits = (uint32_t)p[0] | (uint32_t)p[1] << 8;
            bits = tensor->dtype == RSM_F16 ? half_bits(bits) : bits << 16;
            p += 2;
        } else {
            bits = (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
            p += 4;
        }
        if (tensor->dtype == RSM_I32)
            target[i] = (float)(bits & 0x80000000u ? -(double)(~bits + 1u) : (double)bits);
        else
            memcpy(&target[i], &bits, sizeof bits);
    }
}
