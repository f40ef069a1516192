#include "tests/tensors.h"

#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/paths.h"

enum { MOST = 512 };

struct tensors {
    size_t count;
    char *names[MOST];
    tensor items[MOST];
    json_t *metadata;
};

static double element(const unsigned char *at, const char *type)
{
    float f;
    double d;
    int32_t i;
    int64_t l;

    if (strcmp(type, "F32") == 0) return memcpy(&f, at, sizeof f), (double)f;
    if (strcmp(type, "F64") == 0) return memcpy(&d, at, sizeof d), d;
    if (strcmp(type, "I64") == 0) return memcpy(&l, at, sizeof l), (double)l;
    ck_assert_str_eq(type, "I32");
    return memcpy(&i, at, sizeof i), (double)i;
}

tensors *tensors_open(const char *name)
{
    char path[512];
    tensors *file = calloc(1, sizeof *file);
    unsigned char *bytes;
    long size;
    uint64_t header = 0;
    json_t *root, *value;
    const char *key;
    FILE *in;

    snprintf(path, sizeof path, "%s/tests/vectors/%s.safetensors", TOP_SRCDIR, name);
    in = fopen(path, "rb");
    ck_assert_msg(in != NULL, "%s cannot be opened", path);
    fseek(in, 0, SEEK_END);
    size = ftell(in);
    rewind(in);
    bytes = malloc((size_t)size);
    ck_assert_uint_eq(fread(bytes, 1, (size_t)size, in), (size_t)size);
    fclose(in);
    for (int i = 7; i >= 0; i--) header = header << 8 | bytes[i];
    root = json_loadb((const char *)bytes + 8, header, 0, NULL);
    ck_assert_ptr_nonnull(root);
    json_object_foreach(root, key, value) {
        const char *type = json_string_value(json_object_get(value, "dtype"));
        json_t *shape = json_object_get(value, "shape"), *offsets = json_object_get(value, "data_offsets");
        tensor *t = &file->items[file->count];
        size_t width;
        if (strcmp(key, "__metadata__") == 0) continue;
        ck_assert_uint_lt(file->count, MOST);
        file->names[file->count++] = strdup(key);
        t->dims = json_array_size(shape);
        t->count = 1;
        for (size_t d = 0; d < t->dims; d++)
            t->count *= t->shape[d] = (size_t)json_integer_value(json_array_get(shape, d));
        t->values = malloc((t->count + 1) * sizeof *t->values);
        width = strcmp(type + 1, "64") == 0 ? 8 : 4;
        for (size_t i = 0; i < t->count; i++)
            t->values[i] = element(bytes + 8 + header +
                                       (size_t)json_integer_value(json_array_get(offsets, 0)) + i * width,
                                   type);
    }
    file->metadata = json_incref(json_object_get(root, "__metadata__"));
    json_decref(root);
    free(bytes);
    return file;
}

void tensors_close(tensors *file)
{
    for (size_t i = 0; i < file->count; i++) {
        free(file->names[i]);
        free(file->items[i].values);
    }
    json_decref(file->metadata);
    free(file);
}

static const tensor *find(tensors *file, const char *name)
{
    for (size_t i = 0; i < file->count; i++)
        if (strcmp(file->names[i], name) == 0) return &file->items[i];
    return NULL;
}

const tensor *tensors_get(tensors *file, const char *format, ...)
{
    char name[256];
    const tensor *t;
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    t = find(file, name);
    ck_assert_msg(t != NULL, "no tensor %s", name);
    return t;
}

int tensors_has(tensors *file, const char *format, ...)
{
    char name[256];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(name, sizeof name, format, arguments);
    va_end(arguments);
    return find(file, name) != NULL;
}

const char *tensors_metadata(tensors *file, const char *name)
{
    const char *text = json_string_value(json_object_get(file->metadata, name));
    ck_assert_msg(text != NULL, "no metadata %s", name);
    return text;
}

double relative_error(const float *a, const double *b, size_t count)
{
    double most = 0, scale = 0;

    for (size_t i = 0; i < count; i++) {
        double d = fabs((double)a[i] - b[i]);
        if (!isfinite(d)) return INFINITY;
        most = fmax(most, d);
        scale = fmax(scale, fabs(b[i]));
    }
    return scale > 0 ? most / scale : most;
}
