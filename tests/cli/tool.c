/* What the shell tests of the program need and no shell has: small scans, comparing them, looking into JSON.
 *
 *   tool make FILE NX NY NZ FRAMES KIND [EDGE_X EDGE_Y EDGE_Z]   write a float32 scan with RAS axes
 *       KIND: brain (bright blocks on dark ground), noisy (the same with noise), constant, nan (brain with a NaN amid each later row 0),
 *             dark (0, but for one negative voxel),
 *             mask (1 in the middle half of x, else 0), outside (brain, NaN where the mask is 0), last-constant (brain,
 *             the last frame constant), standardised (brain, air at -0.5 and the brightest at 1.8)
 *   tool shape FILE                    print "NX NY NZ FRAMES"
 *   tool differ A B                    print the largest |a - b|; NaN in both at once is no difference
 *   tool differ-where MASK A B         the same where MASK > 0.5, a line "inside outside"
 *   tool residual IN OUT RESIDUAL      print the largest |IN - OUT - RESIDUAL|
 *   tool json FILE PATH                print what lies at a path such as volumes.0.steps.1.class; of arrays and objects
 *                                      the number of members; nothing and exit 1 where there is none
 *   tool poke FILE OFFSET BYTE…        change bytes (decimal)
 *   tool cut FILE BYTES                make the file so long */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "resmap.h"

static resmap_context *context;

static void fail(const char *text)
{
    fprintf(stderr, "tool: %s\n", text);
    exit(99);
}

static void check(resmap_status status)
{
    if (status != RESMAP_OK) fail(resmap_error(context));
}

static resmap_image *take(const char *path)
{
    resmap_image *image = NULL;
    check(resmap_image_read(context, path, &image));
    return image;
}

static size_t voxels(const resmap_image *image)
{
    const size_t *shape = resmap_image_shape(image);
    return shape[0] * shape[1] * shape[2] * shape[3];
}

/* Whether position x of n lies in the bright part: all but an eighth at either end, never the first of few. */
static int bright(size_t x, size_t n)
{
    return n == 1 || (n < 4 ? x > 0 : x > n / 8 && x < n * 7 / 8);
}

static void make(char **argv, int argc)
{
    size_t shape[4];
    double matrix[12] = {0};
    const char *kind = argv[5];
    for (int i = 0; i < 4; i++) shape[i] = (size_t)atol(argv[1 + i]);
    for (int i = 0; i < 3; i++) {
        matrix[5 * i] = argc > 6 + i ? atof(argv[6 + i]) : 1;
        matrix[4 * i + 3] = -20 - i;
    }
    size_t count = shape[0] * shape[1] * shape[2] * shape[3];
    float *data = malloc(count * sizeof *data);
    uint32_t random = 12345;
    for (size_t i = 0; i < count; i++) {
        size_t x = i % shape[0], y = i / shape[0] % shape[1], z = i / shape[0] / shape[1] % shape[2];
        size_t t = i / shape[0] / shape[1] / shape[2];
        double value = bright(x, shape[0]) && bright(y, shape[1]) ? 600 : 0;
        if (value > 0) value += 200 * (x / 3 % 2) + 100 * (y / 4 % 2) + 10 * (double)z + 5 * (double)t;
        random = random * UINT32_C(1664525) + UINT32_C(1013904223);
        if (strcmp(kind, "noisy") == 0) value = fabs(value + 150 * ((random >> 8) / 8388608.0 - 1));
        int inside = x >= shape[0] / 4 && x < shape[0] - shape[0] / 4;
        if (strcmp(kind, "constant") == 0 || (strcmp(kind, "last-constant") == 0 && t + 1 == shape[3])) value = 7;
        if (strcmp(kind, "nan") == 0 && x == shape[0] / 2 && i > count / 2 && y == 0) value = NAN;
        if (strcmp(kind, "dark") == 0) value = i == count / 2 ? -3 : 0;
        if (strcmp(kind, "mask") == 0) value = inside;
        if (strcmp(kind, "standardised") == 0) value = value / 400 - 0.5;
        if (strcmp(kind, "outside") == 0 && !inside) value = NAN;
        data[i] = (float)value;
    }
    resmap_image *image = NULL;
    check(resmap_image_create(context, data, shape, matrix, &image));
    check(resmap_image_write(context, image, argv[0], 1));
    resmap_image_free(image);
    free(data);
}

/* Largest difference over voxels that `mask` has (where: 1) or has not (0); NULL: all. */
static double differ(const resmap_image *a, const resmap_image *b, const resmap_image *mask, int where)
{
    const float *u = resmap_image_data_const(a), *v = resmap_image_data_const(b);
    double most = 0;
    if (voxels(a) != voxels(b)) fail("shapes differ");
    for (size_t i = 0; i < voxels(a); i++) {
        if (mask && (resmap_image_data_const(mask)[i % voxels(mask)] > 0.5f) != where) continue;
        if (isnan(u[i]) && isnan(v[i])) continue;
        double d = fabs((double)u[i] - v[i]);
        if (!(d <= most)) most = d;
    }
    return most;
}

static void residual(char **argv)
{
    resmap_image *in = take(argv[0]), *out = take(argv[1]), *rest = take(argv[2]);
    double most = 0;
    for (size_t i = 0; i < voxels(in); i++) {
        double d = fabs((double)resmap_image_data(in)[i] - resmap_image_data(out)[i] - resmap_image_data(rest)[i]);
        if (!(d <= most)) most = d;
    }
    printf("%g\n", most);
    resmap_image_free(in);
    resmap_image_free(out);
    resmap_image_free(rest);
}

static int json(const char *path, const char *where)
{
    json_error_t error;
    json_t *root = json_load_file(path, JSON_REJECT_DUPLICATES, &error), *at = root;
    if (!root) {
        fprintf(stderr, "%s:%d: %s\n", path, error.line, error.text);
        return 1;
    }
    char *parts = strdup(where);
    for (char *part = strtok(parts, "."); part && at; part = strtok(NULL, "."))
        at = json_is_array(at) ? json_array_get(at, (size_t)atol(part)) : json_object_get(at, part);
    free(parts);
    if (!at) printf("\n");
    else if (json_is_string(at)) printf("%s\n", json_string_value(at));
    else if (json_is_integer(at)) printf("%lld\n", (long long)json_integer_value(at));
    else if (json_is_real(at)) printf("%.17g\n", json_real_value(at));
    else if (json_is_null(at)) printf("null\n");
    else if (json_is_boolean(at)) printf("%s\n", json_is_true(at) ? "true" : "false");
    else printf("%zu\n", json_is_array(at) ? json_array_size(at) : json_object_size(at));
    int found = at != NULL;
    json_decref(root);
    return !found;
}

static void poke(char **argv, int argc)
{
    FILE *stream = fopen(argv[0], "r+b");
    if (!stream || fseek(stream, atol(argv[1]), SEEK_SET) != 0) fail("cannot open");
    for (int i = 2; i < argc; i++) fputc(atoi(argv[i]), stream);
    if (fclose(stream) != 0) fail("cannot write");
}

int main(int argc, char **argv)
{
    if (argc < 3) fail("see the head of tests/cli/tool.c");
    if (resmap_context_create(&context) != RESMAP_OK) fail("no memory");
    const char *verb = argv[1];
    int result = 0;
    argv += 2;
    argc -= 2;
    if (strcmp(verb, "make") == 0 && argc >= 6) {
        make(argv, argc);
    } else if (strcmp(verb, "shape") == 0) {
        resmap_image *image = take(argv[0]);
        const size_t *shape = resmap_image_shape(image);
        printf("%zu %zu %zu %zu\n", shape[0], shape[1], shape[2], shape[3]);
        resmap_image_free(image);
    } else if (strcmp(verb, "differ") == 0 && argc == 2) {
        resmap_image *a = take(argv[0]), *b = take(argv[1]);
        printf("%g\n", differ(a, b, NULL, 0));
        resmap_image_free(a);
        resmap_image_free(b);
    } else if (strcmp(verb, "differ-where") == 0 && argc == 3) {
        resmap_image *mask = take(argv[0]), *a = take(argv[1]), *b = take(argv[2]);
        printf("%g %g\n", differ(a, b, mask, 1), differ(a, b, mask, 0));
        resmap_image_free(mask);
        resmap_image_free(a);
        resmap_image_free(b);
    } else if (strcmp(verb, "residual") == 0 && argc == 3) {
        residual(argv);
    } else if (strcmp(verb, "json") == 0 && argc == 2) {
        result = json(argv[0], argv[1]);
    } else if (strcmp(verb, "poke") == 0 && argc >= 3) {
        poke(argv, argc);
    } else if (strcmp(verb, "cut") == 0 && argc == 2) {
        if (truncate(argv[0], atol(argv[1])) != 0) fail("cannot cut");
    } else {
        fail("see the head of tests/cli/tool.c");
    }
    resmap_context_free(context);
    return result;
}
