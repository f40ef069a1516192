/* What a program outside this tree sees: resmap.h alone, on the library as it is installed, so that a function which is not
 * exported does not link. Every function that neither the program nor another test calls, held against its comment in
 * resmap.h, sentence by sentence; then the whole way of a scan through the library, in memory. On the reference: no driver. */
#include <check.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "resmap.h"
#include "tests/paths.h"
#include "tests/run.h"
#include "tests/scratch.h"

#define MODEL TOP_SRCDIR "/tests/vectors/cascade.safetensors"
#define RESTORMER TOP_SRCDIR "/tests/vectors/restormer_withbias.safetensors"

static char folder[256];
static resmap_context *context;

static void make_folder(void)
{
    if (!make_scratch(folder)) exit(99);
}

static void remove_folder(void)
{
    remove_scratch(folder);
}

static void set_up(void)
{
    clean_scratch(folder);
    ck_assert_int_eq(resmap_context_create(&context), RESMAP_OK);
    ck_assert_str_eq(resmap_error(context), "");
}

static void tear_down(void)
{
    resmap_context_free(context);
}

/* ---- Helpers ---- */

#define OK(call) ck_assert_msg((call) == RESMAP_OK, "%s: %s", #call, resmap_error(context))

/* The call failed with `status`, and the one line "WHAT: WHY" begins with `what`. */
#define REFUSED(call, status, what) refused((call), (status), (what), #call, __LINE__)

static void refused(resmap_status got, resmap_status wanted, const char *what, const char *call, int line)
{
    const char *text = resmap_error(context), *why = strstr(text, ": ");

    ck_assert_msg(got == wanted, "line %d: %s: \"%s\" instead of \"%s\" (%s)", line, call, resmap_status_text(got),
                  resmap_status_text(wanted), text);
    ck_assert_msg(strncmp(text, what, strlen(what)) == 0, "line %d: %s: \"%s\" is not about %s", line, call, text, what);
    ck_assert_msg(why && why[2] && !strpbrk(text, "\r\n"), "line %d: %s: \"%s\" is not one line WHAT: WHY", line, call, text);
}

/* Outputs are to be untouched by failures: what they hold before. */
#define UNTOUCHED(type) ((type *)(uintptr_t)&context)

static const char *at(const char *name)
{
    return in_scratch(folder, name);
}

/* Fresh memory. */
static unsigned char *bytes_of(const char *path, size_t *size)
{
    FILE *stream = fopen(path, "rb");
    unsigned char *bytes = malloc(1 << 20);

    ck_assert_msg(stream && bytes, "%s: cannot be read", path);
    *size = fread(bytes, 1, 1 << 20, stream);
    ck_assert_msg(*size < 1 << 20, "%s: larger than expected", path);
    fclose(stream);
    return bytes;
}

static int same_files(const char *a, const char *b)
{
    size_t m, n;
    unsigned char *x = bytes_of(a, &m), *y = bytes_of(b, &n);
    int same = m == n && memcmp(x, y, m) == 0;

    free(x);
    free(y);
    return same;
}

static size_t voxels(const resmap_image *image)
{
    const size_t *shape = resmap_image_shape(image);

    return shape[0] * shape[1] * shape[2] * shape[3];
}

/* To the bit: NaN is itself. */
static int same_voxels(const resmap_image *a, const resmap_image *b)
{
    return voxels(a) == voxels(b)
        && memcmp(resmap_image_data_const(a), resmap_image_data_const(b), voxels(a) * sizeof(float)) == 0;
}

static int same_geometry(const resmap_image *a, const resmap_image *b)
{
    return memcmp(resmap_image_shape(a), resmap_image_shape(b), 4 * sizeof(size_t)) == 0
        && memcmp(resmap_image_voxel_to_world(a), resmap_image_voxel_to_world(b), 12 * sizeof(double)) == 0;
}

static resmap_image *image_of(const float *data, size_t nx, size_t ny, size_t nz, size_t frames)
{
    const size_t shape[4] = {nx, ny, nz, frames};
    resmap_image *image = NULL;

    OK(resmap_image_create(context, data, shape, NULL, &image));
    return image;
}

/* A head of 1000, slightly textured where `texture` is 1, amid nothing. */
static resmap_image *head(size_t nx, size_t ny, size_t nz, size_t frames, int texture)
{
    float *data = calloc(nx * ny * nz * frames, sizeof *data);
    resmap_image *image;

    ck_assert_ptr_nonnull(data);
    for (size_t i = 0; i < nx * ny * nz * frames; i++) {
        size_t x = i % nx, y = i / nx % ny;

        if (x >= nx / 8 && x < nx - nx / 8 && y >= ny / 8 && y < ny - ny / 8)
            data[i] = texture ? (float)(1000 - 13 * ((x * 7 + y * 5 + i / (nx * ny)) % 11)) : 1000;
    }
    image = image_of(data, nx, ny, nz, frames);
    free(data);
    return image;
}

static void open_reference(void)
{
    OK(resmap_open_device(context, "reference"));
}

static int refuse_to_go_on(void *data, const char *what, size_t done, size_t total)
{
    (void)data;
    (void)what;
    (void)done;
    (void)total;
    return 1;
}

static void cancel_everything(int yes)
{
    resmap_set_progress(context, yes ? refuse_to_go_on : NULL, NULL);
}

/* ---- Status, errors, NULL ---- */

START_TEST(status_texts)
{
    for (int s = RESMAP_OK; s <= RESMAP_INTERNAL; s++) {
        const char *text = resmap_status_text((resmap_status)s);

        ck_assert_msg(text && text[0] && !strpbrk(text, "\r\n"), "status %d has no words", s);
        ck_assert_ptr_eq(resmap_status_text((resmap_status)s), text);           /* static */
        ck_assert_str_ne(text, resmap_status_text((resmap_status)(RESMAP_INTERNAL + 1)));
        for (int other = RESMAP_OK; other < s; other++) ck_assert_str_ne(text, resmap_status_text((resmap_status)other));
    }
    ck_assert_ptr_nonnull(resmap_status_text((resmap_status)(RESMAP_INTERNAL + 1)));   /* of a later version of the library */
}
END_TEST

START_TEST(nothing_is_freed)
{
    resmap_context_free(NULL);
    resmap_image_free(NULL);
    resmap_metrics_free(NULL);
    resmap_model_free(NULL);
    resmap_report_free(NULL);
    resmap_text_free(NULL);
    resmap_timing_free(NULL);
    resmap_tuning_free(NULL);
}
END_TEST

/* ---- Images ---- */

START_TEST(created_images)
{
    const size_t shape[4] = {5, 4, 3, 2};
    const double matrix[12] = {-2, 0, 0, 10, 0, 0.5, 1, -20, 0, -1, 0.5, 30},
                 identity[12] = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0};
    float data[120];
    resmap_image *image = NULL, *plain = NULL;

    for (int i = 0; i < 120; i++) data[i] = (float)i;
    OK(resmap_image_create(context, data, shape, matrix, &image));
    OK(resmap_image_create(context, data, shape, NULL, &plain));
    for (int i = 0; i < 120; i++) data[i] = -1;                  /* it was copied */
    ck_assert_mem_eq(resmap_image_shape(image), shape, sizeof shape);
    ck_assert_mem_eq(resmap_image_voxel_to_world(image), matrix, sizeof matrix);
    ck_assert_mem_eq(resmap_image_voxel_to_world(plain), identity, sizeof identity);
    for (int i = 0; i < 120; i++) ck_assert_float_eq(resmap_image_data_const(image)[i], (float)i);
    ck_assert_ptr_eq(resmap_image_data(image), resmap_image_data_const(image));
    resmap_image_data(image)[7] = 70;                            /* one's own voxels may be changed */
    ck_assert_float_eq(resmap_image_data_const(image)[7], 70);
    ck_assert_float_eq(resmap_image_data_const(plain)[7], 7);
    resmap_image_free(image);
    resmap_image_free(plain);
}
END_TEST

START_TEST(refused_images)
{
    static const size_t small[4] = {2, 2, 2, 1}, flat[4] = {2, 2, 1, 1};
    static const size_t impossible[][4] = {{2, 0, 2, 1}, {2, 2, 2, 0}, {SIZE_MAX, SIZE_MAX, 1, 1}, {SIZE_MAX / 8, 1, 1, 1},
                                           {(size_t)1 << 33, (size_t)1 << 31, 2, 1}};
    static const double singular[12] = {1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0}, no_axis[12] = {1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0};
    double endless[12] = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, INFINITY};
    const float data[8] = {0};
    resmap_image *image = UNTOUCHED(resmap_image);

    for (size_t i = 0; i < sizeof impossible / sizeof impossible[0]; i++)
        REFUSED(resmap_image_create(context, data, impossible[i], NULL, &image), RESMAP_BAD_ARGUMENT, "image: ");
    REFUSED(resmap_image_create(context, data, small, singular, &image), RESMAP_BAD_ARGUMENT, "image: ");
    REFUSED(resmap_image_create(context, data, small, no_axis, &image), RESMAP_BAD_ARGUMENT, "image: ");
    REFUSED(resmap_image_create(context, data, small, endless, &image), RESMAP_BAD_ARGUMENT, "image: ");
    endless[11] = NAN;
    REFUSED(resmap_image_create(context, data, small, endless, &image), RESMAP_BAD_ARGUMENT, "image: ");
    ck_assert_ptr_eq(image, UNTOUCHED(resmap_image));
    endless[11] = 0;
    OK(resmap_image_create(context, data, flat, endless, &image));
    resmap_image_free(image);
}
END_TEST

/* The first four bytes of a NIfTI file tell its version: 348, 540. */
static int header_size(const char *path)
{
    FILE *stream = fopen(path, "rb");
    int32_t size = 0;

    ck_assert_ptr_nonnull(stream);
    ck_assert_uint_eq(fread(&size, sizeof size, 1, stream), 1);
    fclose(stream);
    return size;
}

START_TEST(written_images)
{
    static const char *const names[] = {"a.nii", "a.nii.gz"};
    const size_t shape[4] = {5, 4, 3, 2};
    const double matrix[12] = {-2, 0, 0, 10, 0, 0.5, 1, -20, 0, -1, 0.5, 30};    /* exact in float32 */
    float data[120];
    resmap_image *image = NULL, *read = NULL;

    for (int i = 0; i < 120; i++) data[i] = (float)i / 7 - 8;
    data[3] = NAN;
    data[4] = INFINITY;
    OK(resmap_image_create(context, data, shape, matrix, &image));
    for (int i = 0; i < 2; i++) {
        OK(resmap_image_write(context, image, at(names[i]), 0));
        OK(resmap_image_read(context, at(names[i]), &read));
        ck_assert(same_geometry(image, read));
        ck_assert(same_voxels(image, read));
        /* With the geometry read, and all the rest of the header. */
        OK(resmap_image_write(context, read, at(i ? "b.nii.gz" : "b.nii"), 0));
        ck_assert(same_files(at(names[i]), at(i ? "b.nii.gz" : "b.nii")));
        resmap_image_free(read);
    }
    ck_assert_int_eq(header_size(at("a.nii")), 348);
    ck_assert_int_eq(header_size(at("a.nii.gz")) & 0xffff, 0x8b1f);              /* gzip's own mark */
    ck_assert_int_eq(clean_scratch(folder), 4);
    resmap_image_free(image);
}
END_TEST

/* NIfTI-1 counts to 32767; what was read as NIfTI-2 stays that. */
START_TEST(long_axes)
{
    const int64_t four = 4;
    resmap_image *short_one = NULL, *again = NULL;
    FILE *stream;

    for (int longer = 0; longer < 2; longer++) {
        size_t n = 32767 + (size_t)longer;
        float *data = calloc(n, sizeof *data);
        resmap_image *image, *read = NULL;

        ck_assert_ptr_nonnull(data);
        data[n - 1] = 5;
        image = image_of(data, 1, n, 1, 1);
        OK(resmap_image_write(context, image, at("long.nii"), 1));
        ck_assert_int_eq(header_size(at("long.nii")), longer ? 540 : 348);
        OK(resmap_image_read(context, at("long.nii"), &read));
        ck_assert(same_geometry(image, read));
        ck_assert(same_voxels(image, read));
        resmap_image_free(read);
        resmap_image_free(image);
        free(data);
    }
    stream = fopen(at("long.nii"), "r+b");
    ck_assert(stream && fseek(stream, 16 + 2 * 8, SEEK_SET) == 0);               /* dim[2] */
    ck_assert_uint_eq(fwrite(&four, sizeof four, 1, stream), 1);
    ck_assert_int_eq(fclose(stream), 0);
    OK(resmap_image_read(context, at("long.nii"), &short_one));
    ck_assert_uint_eq(voxels(short_one), 4);
    OK(resmap_image_write(context, short_one, at("short.nii"), 0));
    ck_assert_int_eq(header_size(at("short.nii")), 540);
    OK(resmap_image_read(context, at("short.nii"), &again));
    ck_assert(same_geometry(short_one, again));
    ck_assert(same_voxels(short_one, again));
    resmap_image_free(again);
    resmap_image_free(short_one);
}
END_TEST

START_TEST(unwritten_images)
{
    resmap_image *first = head(6, 5, 4, 1, 0), *second = head(6, 5, 4, 1, 1), *read = NULL;

    OK(resmap_image_write(context, first, at("a.nii"), 1));
    REFUSED(resmap_image_write(context, second, at("a.nii"), 0), RESMAP_IO, at("a.nii"));
    cancel_everything(1);
    REFUSED(resmap_image_write(context, second, at("a.nii"), 1), RESMAP_CANCELLED, "write: ");
    REFUSED(resmap_image_write(context, second, at("b.nii.gz"), 0), RESMAP_CANCELLED, "write: ");
    cancel_everything(0);
    REFUSED(resmap_image_write(context, second, at("none/b.nii"), 0), RESMAP_IO, at("none/b.nii"));
    REFUSED(resmap_image_write(context, second, at("b.img"), 0), RESMAP_IO, at("b.img"));
    REFUSED(resmap_image_write(context, second, at("b.nii\n"), 0), RESMAP_IO, at("b.nii"));
    ck_assert_int_eq(mkdir(at("folder.nii"), 0700), 0);
    REFUSED(resmap_image_write(context, second, at("folder.nii"), 1), RESMAP_IO, at("folder.nii"));

    OK(resmap_image_read(context, at("a.nii"), &read));
    ck_assert(same_voxels(read, first));                         /* whole, as it was */
    resmap_image_free(read);
    OK(resmap_image_write(context, second, at("a.nii"), 1));
    OK(resmap_image_read(context, at("a.nii"), &read));
    ck_assert(same_voxels(read, second));
    resmap_image_free(read);
    ck_assert_int_eq(clean_scratch(folder), 2);                         /* the file, the folder, nothing half-made */

    read = UNTOUCHED(resmap_image);
    REFUSED(resmap_image_read(context, at("a.nii"), &read), RESMAP_BAD_FILE, at("a.nii"));
    ck_assert_ptr_eq(read, UNTOUCHED(resmap_image));
    resmap_image_free(first);
    resmap_image_free(second);
}
END_TEST

/* ---- Models ---- */

/* From memory which is spoiled and given back before the model is used, as is the name. */
static resmap_model *model_from_memory(const char *name)
{
    size_t size;
    unsigned char *bytes = bytes_of(MODEL, &size);
    char own_name[64];
    resmap_model *model = NULL;

    snprintf(own_name, sizeof own_name, "%s", name);
    OK(resmap_model_from_memory(context, bytes, size, own_name, &model));
    memset(own_name, 'x', sizeof own_name - 1);
    memset(bytes, 0xff, size);
    free(bytes);
    return model;
}

START_TEST(models)
{
    static const char *const classes[] = {"motion", "noise", "bias", "clean"};
    resmap_model *file = NULL, *memory = model_from_memory("my own"), *restormer = NULL;
    char *text = NULL;

    OK(resmap_model_open(context, MODEL, &file));
    ck_assert_str_eq(resmap_model_name(file), MODEL);
    ck_assert_str_eq(resmap_model_name(memory), "my own");
    ck_assert_str_eq(resmap_model_sha256(memory), resmap_model_sha256(file));
    ck_assert_uint_eq(strlen(resmap_model_sha256(file)), 64);
    ck_assert_uint_eq(strspn(resmap_model_sha256(file), "0123456789abcdef"), 64);

    ck_assert_uint_eq(resmap_model_class_count(file), 4);
    ck_assert_uint_eq(resmap_model_class_count(memory), 4);
    for (size_t i = 0; i < 4; i++) {
        ck_assert_str_eq(resmap_model_class(file, i), classes[i]);
        ck_assert_str_eq(resmap_model_class(memory, i), classes[i]);
    }
    ck_assert_ptr_null(resmap_model_class(file, 4));
    ck_assert_ptr_null(resmap_model_class(file, SIZE_MAX));

    for (int json = 0; json < 2; json++) {
        OK(resmap_model_describe(context, memory, json, &text));
        ck_assert_ptr_nonnull(strstr(text, json ? "\"name\": \"my own\"" : "my own\n"));
        ck_assert_ptr_nonnull(strstr(text, resmap_model_sha256(file)));
        resmap_text_free(text);
    }

    OK(resmap_model_open(context, RESTORMER, &restormer));
    ck_assert_uint_eq(resmap_model_class_count(restormer), 0);
    ck_assert_ptr_null(resmap_model_class(restormer, 0));
    ck_assert_str_ne(resmap_model_sha256(restormer), resmap_model_sha256(file));
    resmap_model_free(restormer);
    resmap_model_free(memory);
    resmap_model_free(file);
}
END_TEST

/* One bit of a weight is another model, with another SHA-256. */
START_TEST(sha256_of_every_byte)
{
    size_t size;
    unsigned char *bytes = bytes_of(MODEL, &size);
    char before[65];
    resmap_model *model = NULL;

    OK(resmap_model_from_memory(context, bytes, size, "m", &model));
    strcpy(before, resmap_model_sha256(model));
    resmap_model_free(model);
    bytes[size - 1] ^= 0x80;     /* the sign of the last number */
    OK(resmap_model_from_memory(context, bytes, size, "m", &model));
    ck_assert_str_ne(resmap_model_sha256(model), before);
    resmap_model_free(model);
    free(bytes);
}
END_TEST

START_TEST(refused_models)
{
    size_t size;
    unsigned char *bytes = bytes_of(MODEL, &size), first = bytes[0];
    resmap_model *model = UNTOUCHED(resmap_model);

    REFUSED(resmap_model_from_memory(context, NULL, 0, "mine", &model), RESMAP_BAD_FILE, "mine: ");
    REFUSED(resmap_model_from_memory(context, bytes, 7, "mine", &model), RESMAP_BAD_FILE, "mine: ");
    REFUSED(resmap_model_from_memory(context, bytes, size / 2, "mine", &model), RESMAP_BAD_FILE, "mine: ");
    REFUSED(resmap_model_from_memory(context, bytes, size - 1, "mine", &model), RESMAP_BAD_FILE, "mine: ");
    bytes[0] ^= 1;               /* the header's length */
    REFUSED(resmap_model_from_memory(context, bytes, size, "mine", &model), RESMAP_BAD_FILE, "mine: ");
    bytes[0] = first;
    bytes[8] = '[';              /* no JSON object */
    REFUSED(resmap_model_from_memory(context, bytes, size, "mine", &model), RESMAP_BAD_FILE, "mine: ");
    REFUSED(resmap_model_open(context, at("none.safetensors"), &model), RESMAP_BAD_FILE, at("none.safetensors"));
    ck_assert_ptr_eq(model, UNTOUCHED(resmap_model));
    free(bytes);
}
END_TEST

/* ---- Synthesis ---- */

/* What `options` make of an image; the record, where asked for, is to be freed. */
static resmap_image *synth(const resmap_image *clean, const resmap_synth_options *options, char **record)
{
    resmap_image *image = NULL;

    OK(resmap_synth(context, clean, options, &image, record));
    ck_assert(same_geometry(clean, image));
    return image;
}

static resmap_synth_options noise_of(double sigma)
{
    resmap_synth_options options;

    resmap_synth_options_init(&options);
    options.artifacts = RESMAP_NOISE;
    options.noise_sigma = sigma;
    return options;
}

START_TEST(synth_defaults)
{
    resmap_synth_options o;
    resmap_image *clean = head(12, 10, 3, 1, 0), *image = UNTOUCHED(resmap_image);
    char *record = UNTOUCHED(char);

    memset(&o, 0x55, sizeof o);
    resmap_synth_options_init(&o);
    ck_assert_uint_eq(o.seed, 0);
    ck_assert_uint_eq(o.artifacts, 0);
    ck_assert_ptr_null(o.preset);
    ck_assert_double_eq(o.noise_blur, 0);
    ck_assert_int_eq(o.rician, 0);
    ck_assert_int_eq(o.bias_order, 3);
    ck_assert_ptr_null(o.bias_coefficients);
    ck_assert_double_eq(o.motion_percent, -1);
    /* None, by default: nothing to do is a mistake. */
    REFUSED(resmap_synth(context, clean, &o, &image, &record), RESMAP_BAD_ARGUMENT, "artifacts: ");
    ck_assert_ptr_eq(image, UNTOUCHED(resmap_image));
    ck_assert_ptr_eq(record, UNTOUCHED(char));
    resmap_image_free(clean);
}
END_TEST

/* Seeds, devices, frames. */
START_TEST(synth_is_repeatable)
{
    resmap_synth_options o;
    resmap_image *clean = head(12, 10, 3, 2, 1), *first, *other;
    size_t frame = voxels(clean) / 2;
    char *record = NULL, *again = NULL;

    resmap_synth_options_init(&o);
    o.artifacts = RESMAP_MOTION | RESMAP_BIAS | RESMAP_NOISE;
    o.preset = "severe";
    o.seed = INT64_MAX;
    first = synth(clean, &o, &record);
    ck_assert_ptr_nonnull(strstr(record, "\"seed\": 9223372036854775807"));
    ck_assert_ptr_nonnull(strstr(record, "\"preset\": \"severe\""));
    /* In the physical order. */
    ck_assert_ptr_nonnull(strstr(record, "\"motion\""));
    ck_assert(strstr(record, "\"motion\"") < strstr(record, "\"bias\""));
    ck_assert(strstr(record, "\"bias\"") < strstr(record, "\"noise\""));
    /* Every frame, each in its own way: what was the same before differs. */
    ck_assert_int_ne(memcmp(resmap_image_data(first), resmap_image_data(first) + frame, frame * sizeof(float)), 0);
    for (size_t i = 0; i <= frame; i += frame)
        ck_assert_int_ne(memcmp(resmap_image_data(first) + i, resmap_image_data(clean) + i, frame * sizeof(float)), 0);

    /* No device and the reference are the same. */
    open_reference();
    other = synth(clean, &o, &again);
    ck_assert(same_voxels(first, other));
    ck_assert_str_eq(record, again);
    resmap_text_free(again);
    resmap_image_free(other);
    other = synth(clean, &o, NULL);
    ck_assert(same_voxels(first, other));
    resmap_image_free(other);
    OK(resmap_synth_repeat(context, clean, record, &other));
    ck_assert(same_voxels(first, other));
    ck_assert(same_geometry(first, other));
    resmap_image_free(other);

    o.seed--;
    other = synth(clean, &o, NULL);
    ck_assert(!same_voxels(first, other));
    resmap_image_free(other);
    resmap_image_free(first);
    resmap_image_free(clean);
    resmap_text_free(record);
}
END_TEST

START_TEST(presets)
{
    static const char *const names[] = {"paper", "mild", "moderate", "severe"};
    static const double coefficients[20] = {0, 100};
    resmap_image *clean = head(12, 10, 3, 1, 0), *one, *other;
    resmap_synth_options o, strange;

    resmap_synth_options_init(&o);
    o.artifacts = RESMAP_MOTION | RESMAP_BIAS | RESMAP_NOISE;
    for (size_t i = 0; i < 4; i++) {
        o.preset = names[i];
        strange = o;             /* all that a preset sets, out of range */
        strange.noise_sigma = strange.noise_blur = strange.bias_bound = strange.motion_mm = strange.motion_deg = -1;
        strange.bias_order = 0;
        strange.motion_percent = 1000;
        strange.bias_coefficients = coefficients;
        one = synth(clean, &o, NULL);
        other = synth(clean, &strange, NULL);
        ck_assert(same_voxels(one, other));
        resmap_image_free(other);
        strange.rician = 1;
        other = synth(clean, &strange, NULL);
        ck_assert_msg(!same_voxels(one, other), "preset %s does without rician", names[i]);
        resmap_image_free(other);
        resmap_image_free(one);
    }
    resmap_image_free(clean);
}
END_TEST

/* sigma is a share of the foreground's brightness. */
START_TEST(units_of_noise)
{
    resmap_synth_options o = noise_of(0.05);
    resmap_image *clean = head(32, 32, 4, 1, 0), *noisy = synth(clean, &o, NULL);
    double squares = 0, least = 0;

    for (size_t i = 0; i < voxels(clean); i++) {
        double d = resmap_image_data(noisy)[i] - resmap_image_data(clean)[i];

        squares += d * d;
        least = fmin(least, resmap_image_data(noisy)[i]);
    }
    ck_assert_double_eq_tol(sqrt(squares / (double)voxels(clean)), 50, 2.5);
    ck_assert_double_lt(least, -50);
    resmap_image_free(noisy);

    o.rician = 1;                /* a magnitude has no sign */
    noisy = synth(clean, &o, NULL);
    for (size_t i = 0; i < voxels(clean); i++) ck_assert_float_ge(resmap_image_data(noisy)[i], 0);
    resmap_image_free(noisy);
    resmap_image_free(clean);
}
END_TEST

/* The blur stays in the plane of the slices. */
START_TEST(units_of_blur)
{
    float data[16 * 12 * 4] = {0}, *blurred;
    const size_t plane = 16 * 12, middle = plane + 6 * 16 + 8;
    resmap_synth_options o = noise_of(0);
    resmap_image *clean, *image;
    double sum = 0;

    data[middle] = 1000;
    clean = image_of(data, 16, 12, 4, 1);
    o.noise_blur = 1;
    image = synth(clean, &o, NULL);
    blurred = resmap_image_data(image);
    for (size_t i = 0; i < 4 * plane; i++) {
        if (i / plane != 1) ck_assert_float_eq(blurred[i], 0);
        else sum += blurred[i];
    }
    ck_assert_double_eq_tol(sum, 1000, 1e-2);
    /* A Gaussian of one voxel falls by exp(-1/2) from one voxel to the next. */
    ck_assert_double_eq_tol(blurred[middle + 1] / blurred[middle], exp(-0.5), 1e-4);
    ck_assert_double_eq_tol(blurred[middle + 16] / blurred[middle], exp(-0.5), 1e-4);
    resmap_image_free(image);
    resmap_image_free(clean);
}
END_TEST

/* Coefficients c_abd of x^a y^b z^d, a outermost, d fastest: of order 1 these are 1, z, y, x. The field is the exponential of the
 * polynomial, from -1 to 1 along each axis, and its mean over the foreground is taken out. */
START_TEST(units_of_bias)
{
    static const size_t step[4] = {0, 10 * 12, 12, 1}, length[4] = {0, 4, 10, 12};
    resmap_image *clean = head(12, 10, 4, 1, 0), *image;
    resmap_synth_options o;

    resmap_synth_options_init(&o);
    o.artifacts = RESMAP_BIAS;
    o.bias_order = 1;
    for (size_t term = 0; term < 4; term++) {
        double c[4] = {0.3, 0, 0, 0};
        const float *in = resmap_image_data_const(clean), *out;
        double before = 0, after = 0;
        char *record = NULL, *given;

        c[term] += 0.5;
        o.bias_coefficients = c;
        image = synth(clean, &o, &record);
        out = resmap_image_data_const(image);
        given = strstr(record, "\"coefficients\"");
        ck_assert_ptr_nonnull(given);
        ck_assert_ptr_null(strstr(record, "\"bound\""));         /* these were not drawn */
        for (size_t i = 0; i < 4; i++) {                         /* yet they are recorded */
            given = strpbrk(given + 1, i ? ",[" : "[");
            ck_assert_double_eq(strtod(given + 1, NULL), c[i]);
        }
        for (size_t i = 0; i < voxels(clean); i++) {
            size_t next = i + step[term];

            before += in[i];
            after += out[i];
            if (term == 0) ck_assert_float_eq(out[i], in[i]);    /* a constant cancels */
            else if (next < voxels(clean) && in[i] > 0 && in[next] > 0 && i / step[term] % length[term] + 1 < length[term])
                ck_assert_double_eq_tol(out[next] / out[i], exp(0.5 * 2 / ((double)length[term] - 1)), 1e-5);
        }
        ck_assert_double_eq_tol(after, before, 1e-5 * before);
        resmap_text_free(record);
        resmap_image_free(image);
    }
    resmap_image_free(clean);
}
END_TEST

/* Lines of the phase-encode axis are moved by millimetres. Moved along that axis all but the central line make a copy that lies
 * two voxels further on, since the central line is a sum along it. */
START_TEST(units_of_motion)
{
    static const char record[] = "{\"seed\": 0, \"artifacts\": [{\"kind\": \"motion\", \"sigma_mm\": 4, \"sigma_deg\": 0, "
                                 "\"percent\": 100, \"frequency_axis\": 1, \"phase_axis\": 0, \"runs\": [{\"start\": 0, "
                                 "\"count\": 12, \"translation_mm\": [4, 0, 0], \"rotation_deg\": [0, 0, 0]}]}]}";
    const double matrix[12] = {2, 0, 0, 0, 0, 3, 0, 0, 0, 0, 3, 0};
    const size_t shape[4] = {12, 10, 3, 1};
    resmap_image *source = head(12, 10, 3, 1, 1), *clean = NULL, *image = NULL;

    OK(resmap_image_create(context, resmap_image_data(source), shape, matrix, &clean));
    OK(resmap_synth_repeat(context, clean, record, &image));
    for (size_t i = 0; i < voxels(clean); i++) {
        size_t row = i / 12 * 12, moved = row + (i - row + 2) % 12;

        ck_assert_float_eq_tol(resmap_image_data(image)[moved], resmap_image_data(clean)[i], 0.01f);
    }
    ck_assert(same_geometry(clean, image));
    resmap_image_free(image);
    resmap_image_free(clean);
    resmap_image_free(source);
}
END_TEST

/* A number of the record. */
static double recorded(const char *record, const char *key)
{
    const char *found = strstr(record, key);

    ck_assert_msg(found != NULL, "the record has no %s", key);
    return strtod(found + strlen(key) + 3, NULL);
}

START_TEST(share_of_moved_lines)
{
    resmap_image *clean = head(40, 36, 2, 1, 0);
    resmap_synth_options o;

    resmap_synth_options_init(&o);
    o.artifacts = RESMAP_MOTION;
    o.motion_mm = 2;
    for (o.seed = 0; o.seed < 3; o.seed++) {                     /* negative: drawn */
        char *record = NULL;
        resmap_image *image;

        image = synth(clean, &o, &record);
        ck_assert_double_ge(recorded(record, "percent"), 15);
        ck_assert_double_le(recorded(record, "percent"), 20);
        resmap_text_free(record);
        resmap_image_free(image);
    }
    o.motion_percent = 50;
    for (int i = 0; i < 2; i++) {
        char *record = NULL;
        resmap_image *image = synth(clean, &o, &record);
        size_t n = recorded(record, "phase_axis") == 0 ? 40 : recorded(record, "phase_axis") == 1 ? 36 : 2;
        double moved = 0;

        for (const char *run = record; (run = strstr(run, "\"count\"")); run++) moved += recorded(run, "count");
        ck_assert_double_eq(recorded(record, "percent"), i ? 0 : 50);
        ck_assert_double_eq(moved, i ? 0 : (double)n / 2);
        ck_assert_int_eq(same_voxels(image, clean), i);          /* no lines: nothing moves */
        resmap_text_free(record);
        resmap_image_free(image);
        o.motion_percent = 0;
    }
    resmap_image_free(clean);
}
END_TEST

/* Sets one of the options out of its range, by number; 0: there is no such number. `what` the error begins with. */
static int spoil(resmap_synth_options *o, int number, const char **what)
{
    static const double coefficients[20] = {[19] = 10.5};

    resmap_synth_options_init(o);
    o->artifacts = number < 4 ? RESMAP_NOISE : number < 11 ? RESMAP_BIAS : RESMAP_MOTION;
    *what = number < 4 ? "noise: " : number < 11 ? "bias: " : "motion: ";
    switch (number) {
    case 0: o->noise_sigma = -0.01; return 1;
    case 1: o->noise_sigma = 1000.5; return 1;
    case 2: o->noise_blur = 100.5; return 1;
    case 3: o->noise_sigma = NAN; return 1;
    case 4: o->bias_order = 0; return 1;
    case 5: o->bias_order = 6; return 1;
    case 6: o->bias_bound = -0.1; return 1;
    case 7: o->bias_bound = 10.5; return 1;
    case 8: o->bias_bound = NAN; return 1;
    case 9: o->bias_coefficients = coefficients; return 1;       /* the last of order 3 */
    case 10: o->bias_order = INT32_MAX; return 1;
    case 11: o->motion_mm = -1; return 1;
    case 12: o->motion_mm = 1000.5; return 1;
    case 13: o->motion_deg = 180.5; return 1;
    case 14: o->motion_deg = -1; return 1;
    case 15: o->motion_percent = 100.5; return 1;
    case 16: o->motion_percent = NAN; return 1;
    case 17: o->artifacts |= 8; *what = "artifacts: "; return 1;
    case 18: o->preset = "extreme"; *what = "preset extreme: "; return 1;
    case 19: o->seed = (uint64_t)INT64_MAX + 1; *what = "seed: "; return 1;
    }
    return 0;
}

START_TEST(refused_options)
{
    resmap_image *clean = head(12, 10, 3, 1, 0), *image = UNTOUCHED(resmap_image);
    char *record = UNTOUCHED(char);
    resmap_synth_options o;
    const char *what;

    for (int i = 0; spoil(&o, i, &what); i++)
        REFUSED(resmap_synth(context, clean, &o, &image, &record), RESMAP_BAD_ARGUMENT, what);
    /* Several devices would have to share a volume. */
    o = noise_of(0.1);
    OK(resmap_open_device(context, "reference,reference"));
    REFUSED(resmap_synth(context, clean, &o, &image, &record), RESMAP_BAD_ARGUMENT, "device: ");
    REFUSED(resmap_synth_repeat(context, clean, "", &image), RESMAP_BAD_ARGUMENT, "device: ");
    open_reference();
    cancel_everything(1);
    REFUSED(resmap_synth(context, clean, &o, &image, &record), RESMAP_CANCELLED, "synth: ");
    ck_assert_ptr_eq(image, UNTOUCHED(resmap_image));
    ck_assert_ptr_eq(record, UNTOUCHED(char));
    resmap_image_free(clean);
}
END_TEST

/* The limits themselves are within. */
START_TEST(accepted_options)
{
    static const double coefficients[4] = {10, 0.1, -0.1, 0};
    resmap_image *clean = head(12, 10, 3, 1, 0), *image;
    resmap_synth_options o = noise_of(1000);

    o.noise_blur = 100;
    resmap_image_free(synth(clean, &o, NULL));
    o.artifacts = RESMAP_BIAS;
    o.bias_order = 5;
    o.bias_bound = 10;
    resmap_image_free(synth(clean, &o, NULL));
    o.bias_order = 1;
    o.bias_coefficients = coefficients;
    o.bias_bound = -1;           /* is not looked at */
    resmap_image_free(synth(clean, &o, NULL));
    o.artifacts = RESMAP_MOTION;
    o.motion_mm = 1000;
    o.motion_deg = 180;
    o.motion_percent = 100;
    image = synth(clean, &o, NULL);
    ck_assert(!same_voxels(image, clean));
    resmap_image_free(image);
    resmap_image_free(clean);
}
END_TEST

START_TEST(refused_volumes)
{
    resmap_synth_options o = noise_of(0.1);
    resmap_image *clean = head(12, 10, 2, 2, 0), *image = UNTOUCHED(resmap_image), *line;
    float *data = resmap_image_data(clean), few[5] = {0, 1, 2, 3, 4};
    char *record = UNTOUCHED(char);

    data[17] = NAN;
    REFUSED(resmap_synth(context, clean, &o, &image, &record), RESMAP_BAD_FILE, "image: a voxel is not finite in float32");
    data[17] = -INFINITY;
    REFUSED(resmap_synth(context, clean, &o, &image, &record), RESMAP_BAD_FILE, "image: a voxel is not finite in float32");
    for (size_t i = 0; i < voxels(clean); i++) data[i] = 7;
    REFUSED(resmap_synth(context, clean, &o, &image, &record), RESMAP_BAD_FILE, "image: ");     /* all frames are constant */
    line = image_of(few, 5, 1, 1, 1);
    o.artifacts = RESMAP_MOTION;
    REFUSED(resmap_synth(context, line, &o, &image, &record), RESMAP_BAD_FILE, "image: motion: ");
    ck_assert_ptr_eq(image, UNTOUCHED(resmap_image));
    ck_assert_ptr_eq(record, UNTOUCHED(char));
    o.artifacts = RESMAP_NOISE;  /* has room */
    resmap_image_free(synth(line, &o, NULL));
    resmap_image_free(line);
    resmap_image_free(clean);
}
END_TEST

/* A constant frame of several passes, and nothing of it is recorded. */
START_TEST(constant_frame)
{
    resmap_synth_options o = noise_of(0.1);
    resmap_image *clean = head(12, 10, 2, 2, 0), *image, *again = NULL;
    size_t frame = voxels(clean) / 2;
    float *data = resmap_image_data(clean);
    char *record = NULL;

    for (size_t i = 0; i < frame; i++) data[i] = 7;
    image = synth(clean, &o, &record);
    ck_assert_mem_eq(resmap_image_data(image), data, frame * sizeof(float));
    ck_assert_int_ne(memcmp(resmap_image_data(image) + frame, data + frame, frame * sizeof(float)), 0);
    ck_assert_ptr_null(strstr(record, "\"frame\": 0"));
    ck_assert_ptr_nonnull(strstr(record, "\"frame\": 1"));
    OK(resmap_synth_repeat(context, clean, record, &again));
    ck_assert(same_voxels(image, again));
    resmap_text_free(record);
    resmap_image_free(again);
    resmap_image_free(image);
    resmap_image_free(clean);
}
END_TEST

/* The record with `old` made `new`, which must be there; fresh memory. */
static char *altered(const char *record, const char *old, const char *new)
{
    const char *found = strstr(record, old);
    char *text = malloc(strlen(record) + strlen(new) + 1);

    ck_assert_msg(found && text, "the record has no %s", old);
    sprintf(text, "%.*s%s%s", (int)(found - record), record, new, found + strlen(old));
    return text;
}

START_TEST(damaged_records)
{
    static const char *const changes[][2] = {
        {"\"noise\"", "\"ghost\""}, {"\"sigma\": ", "\"sigma\": -"}, {"\"blur\": 0.", "\"blur\": 900."},
        {"\"axis\": 2", "\"axis\": 3"}, {"\"rician\": false", "\"rician\": 0"}, {"\"order\": 3", "\"order\": 2"},
        {"\"order\": 3", "\"order\": 9"}, {"\"count\": ", "\"count\": 9"}, {"\"start\": ", "\"start\": -"},
        {"\"seed\": 5", "\"seed\": -5"}, {"\"seed\": 5", "\"sneed\": 5"}, {"\"phase_axis\": ", "\"phase_axis\": 4"},
        {"\"preset\": \"severe\"", "\"preset\": \"extreme\""},
        {"\"kind\": \"noise\"", "\"frame\": 1, \"kind\": \"noise\""}, {"\"seed\": 5", "\"seed\": 5, \"seed\": 5"}};
    static const char *const texts[] = {"", "{", "[]", "{}", "null", "{\"seed\": 1, \"artifacts\": []}", "{\"seed\": 1}", "\xff"};
    resmap_image *clean = head(12, 10, 3, 1, 0), *smaller = head(5, 1, 1, 1, 0), *image = UNTOUCHED(resmap_image), *made;
    resmap_synth_options o;
    char *record = NULL, *text;

    resmap_synth_options_init(&o);
    o.artifacts = RESMAP_MOTION | RESMAP_BIAS | RESMAP_NOISE;
    o.preset = "severe";
    o.seed = 5;
    made = synth(clean, &o, &record);
    for (size_t i = 0; i < sizeof changes / sizeof changes[0]; i++) {
        text = altered(record, changes[i][0], changes[i][1]);
        REFUSED(resmap_synth_repeat(context, clean, text, &image), RESMAP_BAD_FILE, "record: ");
        free(text);
    }
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        REFUSED(resmap_synth_repeat(context, clean, texts[i], &image), RESMAP_BAD_FILE, "record: ");
    text = altered(record, "}\n", "");                           /* of the first run, and so of all that follows */
    REFUSED(resmap_synth_repeat(context, clean, text, &image), RESMAP_BAD_FILE, "record: ");
    free(text);
    REFUSED(resmap_synth_repeat(context, smaller, record, &image), RESMAP_BAD_FILE, "record: ");  /* does not fit the image */
    for (size_t i = 0; i < voxels(clean); i++) resmap_image_data(clean)[i] = 1;
    REFUSED(resmap_synth_repeat(context, clean, record, &image), RESMAP_BAD_FILE, "image: ");     /* nor this its image */
    ck_assert_ptr_eq(image, UNTOUCHED(resmap_image));
    resmap_text_free(record);
    resmap_image_free(made);
    resmap_image_free(smaller);
    resmap_image_free(clean);
}
END_TEST

/* ---- Restoring, and the memory that it takes ---- */

/* Noise and bias are restored whatever the random weights see. */
static resmap_options forced(void)
{
    resmap_options options;

    resmap_options_init(&options);
    options.order = "noise,bias";
    return options;
}

START_TEST(restored_to_nowhere)
{
    resmap_options o = forced();
    resmap_image *scan = head(16, 12, 3, 1, 1), *image = UNTOUCHED(resmap_image);
    resmap_report *report = UNTOUCHED(resmap_report);
    resmap_model *model = model_from_memory("my own");

    REFUSED(resmap_restore(context, model, scan, NULL, &o, &image, &report), RESMAP_NO_DEVICE, "device: ");
    open_reference();
    REFUSED(resmap_restore(context, model, scan, NULL, &o, NULL, &report), RESMAP_BAD_ARGUMENT, "output: ");
    REFUSED(resmap_restore(context, model, scan, NULL, &o, NULL, NULL), RESMAP_BAD_ARGUMENT, "output: ");
    o.steps = RESMAP_MAX_STEPS + 1;
    REFUSED(resmap_restore(context, model, scan, NULL, &o, &image, &report), RESMAP_BAD_ARGUMENT, "steps: ");
    o = forced();
    cancel_everything(1);
    ck_assert_int_eq(resmap_restore(context, model, scan, NULL, &o, &image, &report), RESMAP_CANCELLED);
    cancel_everything(0);
    ck_assert_ptr_eq(image, UNTOUCHED(resmap_image));
    ck_assert_ptr_eq(report, UNTOUCHED(resmap_report));
    /* The context is none the worse, and the report is no duty. */
    OK(resmap_restore(context, model, scan, NULL, &o, &image, NULL));
    resmap_image_free(image);
    resmap_model_free(model);
    resmap_image_free(scan);
}
END_TEST

/* Restores, and gives the most memory that took. */
static uint64_t restore(resmap_model *model, const resmap_image *scan, resmap_image **restored)
{
    resmap_options o = forced();
    resmap_image *image = NULL;
    resmap_report *report = NULL;
    uint64_t now = 0, peak = 0;

    OK(resmap_restore(context, model, scan, NULL, &o, &image, &report));
    resmap_device_bytes(context, &now, &peak);
    ck_assert_uint_gt(now, 0);   /* the network stays for the next scan */
    ck_assert_uint_gt(peak, now);
    ck_assert_uint_eq(report->device_bytes_peak, peak);
    resmap_report_free(report);
    if (restored) *restored = image;
    else resmap_image_free(image);
    return peak;
}

/* The peak alone; what is in use now is never above it. */
static uint64_t peak_bytes(void)
{
    uint64_t now = 0, peak = 0;

    resmap_device_bytes(context, &now, &peak);
    ck_assert_uint_le(now, peak);
    return peak;
}

START_TEST(device_memory)
{
    resmap_model *model = model_from_memory("my own");
    resmap_image *small = head(16, 12, 3, 1, 1), *large = head(40, 32, 3, 1, 1), *image;
    resmap_synth_options noise = noise_of(0.1);
    resmap_timing_options timing_options;
    resmap_timing *timing = NULL;
    resmap_report *report = NULL;
    resmap_options o;
    uint64_t now = 7, peak = 7, few, many;

    resmap_device_bytes(context, &now, &peak);   /* no device, no bytes */
    ck_assert_uint_eq(now, 0);
    ck_assert_uint_eq(peak, 0);
    resmap_image_free(synth(small, &noise, NULL));
    ck_assert_uint_eq(peak_bytes(), 0);          /* on the host only */
    open_reference();
    ck_assert_uint_eq(peak_bytes(), 0);
    few = restore(model, small, NULL);
    many = restore(model, large, NULL);
    ck_assert_uint_gt(many, few);
    image = synth(small, &noise, NULL);          /* does not start the count anew */
    resmap_image_free(image);
    ck_assert_uint_eq(peak_bytes(), many);
    ck_assert_uint_lt(restore(model, small, NULL), many);

    resmap_options_init(&o);
    restore(model, large, NULL);
    OK(resmap_classify(context, model, small, NULL, &o, &report));
    ck_assert_uint_lt(peak_bytes(), many);
    ck_assert_uint_eq(report->device_bytes_peak, peak_bytes());
    resmap_report_free(report);

    resmap_timing_options_init(&timing_options);
    timing_options.height = timing_options.width = 16;
    timing_options.repeat = timing_options.only_seconds = 1;
    restore(model, large, NULL);
    OK(resmap_time(context, model, &timing_options, &timing));
    ck_assert_uint_lt(peak_bytes(), many);
    ck_assert_str_eq(timing->model_name, "my own");
    resmap_timing_free(timing);

    resmap_model_free(model);                    /* its network goes with it */
    resmap_device_bytes(context, &now, &peak);
    ck_assert_uint_eq(now, 0);
    ck_assert_uint_gt(peak, 0);
    resmap_image_free(large);
    resmap_image_free(small);
}
END_TEST

START_TEST(memory_against_file)
{
    resmap_model *file = NULL, *memory = model_from_memory("my own");
    resmap_image *scan = head(24, 20, 3, 1, 1), *a, *b, *c;

    open_reference();
    OK(resmap_model_open(context, MODEL, &file));
    restore(file, scan, &a);
    restore(memory, scan, &b);
    resmap_model_free(file);
    open_reference();                            /* models follow */
    restore(memory, scan, &c);
    ck_assert(same_voxels(a, b));
    ck_assert(same_voxels(a, c));
    ck_assert(!same_voxels(a, scan));
    resmap_model_free(memory);
    resmap_image_free(a);
    resmap_image_free(b);
    resmap_image_free(c);
    resmap_image_free(scan);
}
END_TEST

/* Opening is told by the next report, from memory as from a file: many times here, so that nothing else takes as long. */
START_TEST(seconds_of_opening)
{
    resmap_image *scan = head(8, 8, 1, 1, 1), *image = NULL;
    resmap_options o = forced();
    resmap_report *report = NULL;
    resmap_model *model = NULL;
    struct timespec before, after;
    size_t size;
    unsigned char *bytes = bytes_of(MODEL, &size);

    open_reference();
    clock_gettime(CLOCK_MONOTONIC, &before);
    for (int i = 0; i < 100; i++) {
        resmap_model_free(model);
        OK(resmap_model_from_memory(context, bytes, size, "m", &model));
    }
    clock_gettime(CLOCK_MONOTONIC, &after);
    free(bytes);
    OK(resmap_restore(context, model, scan, NULL, &o, &image, &report));
    ck_assert_double_gt(report->seconds_setup,
                        0.5 * ((double)(after.tv_sec - before.tv_sec) + 1e-9 * (double)(after.tv_nsec - before.tv_nsec)));
    ck_assert_double_eq(report->seconds_read, 0);
    ck_assert_double_eq(report->seconds_write, 0);
    ck_assert_double_eq_tol(report->seconds_total, report->seconds_setup + report->seconds_compute, 1e-9);
    resmap_report_free(report);
    resmap_image_free(image);
    resmap_model_free(model);
    resmap_image_free(scan);
}
END_TEST

/* ---- The whole way ---- */

static void holds(const char *text, const char *part)
{
    ck_assert_msg(strstr(text, part) != NULL, "no %s in\n%s", part, text);
}

static double psnr_of(const resmap_image *reference, const resmap_image *test)
{
    resmap_metrics *metrics = NULL;
    double psnr;

    OK(resmap_evaluate(context, reference, test, NULL, RESMAP_PLANE_AUTO, &metrics));
    ck_assert_str_eq(metrics->plane, "axial");
    psnr = metrics->psnr;
    resmap_metrics_free(metrics);
    return psnr;
}

START_TEST(from_scan_to_figures)
{
    const double matrix[12] = {-1, 0, 0, 10, 0, 1, 0, -20, 0, 0, 2, 30};
    const size_t shape[4] = {24, 20, 3, 1};
    resmap_image *source = head(24, 20, 3, 1, 1), *clean = NULL, *spoiled, *repeated = NULL, *restored = NULL;
    resmap_model *model = model_from_memory("my \"own\" model");
    resmap_synth_options artifacts;
    resmap_options o = forced();
    resmap_report *report = NULL;
    resmap_metrics *metrics = NULL;
    char *record = NULL, *text = NULL, sha256[96];
    float *kept = malloc(24 * 20 * 3 * sizeof *kept);

    OK(resmap_image_create(context, resmap_image_data(source), shape, matrix, &clean));
    resmap_image_free(source);
    open_reference();
    resmap_synth_options_init(&artifacts);
    artifacts.artifacts = RESMAP_MOTION | RESMAP_BIAS | RESMAP_NOISE;
    artifacts.preset = "moderate";
    artifacts.seed = 3;
    spoiled = synth(clean, &artifacts, &record);
    OK(resmap_synth_repeat(context, clean, record, &repeated));
    ck_assert(same_voxels(spoiled, repeated));
    resmap_image_free(repeated);
    resmap_text_free(record);

    ck_assert_ptr_nonnull(kept);
    memcpy(kept, resmap_image_data(spoiled), 24 * 20 * 3 * sizeof *kept);
    OK(resmap_restore(context, model, spoiled, NULL, &o, &restored, &report));
    ck_assert_mem_eq(resmap_image_data(spoiled), kept, 24 * 20 * 3 * sizeof *kept);
    ck_assert(same_geometry(restored, clean));
    ck_assert(!same_voxels(restored, spoiled));
    free(kept);

    /* The report, which needs neither model nor images any more. */
    snprintf(sha256, sizeof sha256, "\"sha256\": \"%s\"", resmap_model_sha256(model));
    resmap_model_free(model);
    ck_assert_str_eq(report->model_name, "my \"own\" model");
    ck_assert_ptr_null(report->input);
    ck_assert_ptr_null(report->output);
    ck_assert_uint_eq(report->device_count, 1);
    ck_assert_str_eq(report->devices[0].name, "reference");
    ck_assert_str_eq(report->devices[0].precision, "fp64");
    ck_assert_str_eq(report->plane, "axial");
    ck_assert_str_eq(report->decide, "volume");
    ck_assert_str_eq(report->prompt, "centroid");
    ck_assert_uint_eq(report->class_count, 4);
    ck_assert_uint_eq(report->volume_count, 1);
    ck_assert_uint_eq(report->volumes[0].slice_count, 3);
    ck_assert_int_eq(report->volumes[0].step_count, 2);
    ck_assert_str_eq(report->volumes[0].stopped, "forced");
    for (int i = 0; i < 2; i++) {
        const resmap_step *step = &report->volumes[0].steps[i];

        ck_assert_str_eq(report->classes[step->class_index], i ? "bias" : "noise");
        ck_assert_int_eq(step->has_probabilities, 0);
        ck_assert_int_eq(step->restored, 1);
        ck_assert_int_eq(step->passes, i ? 3 : 1);       /* a strong field is looked for again */
    }
    OK(resmap_report_json(context, report, 0, &text));
    holds(text, "\"name\": \"my \\\"own\\\" model\"");
    holds(text, sha256);
    holds(text, "\"input\": null");
    holds(text, "\"class\": \"noise\"");
    holds(text, "\"stopped\": \"forced\"");
    ck_assert_int_eq(text[0], '{');
    ck_assert_int_eq(text[strlen(text) - 1], '\n');
    resmap_text_free(text);
    resmap_report_free(report);

    /* The same is infinitely like itself; a hundredth of the range is 40 dB. */
    ck_assert(isinf(psnr_of(clean, clean)));
    ck_assert_double_lt(psnr_of(clean, spoiled), 40);
    ck_assert(isfinite(psnr_of(clean, restored)));
    for (size_t i = 0; i < voxels(restored); i++) resmap_image_data(restored)[i] = resmap_image_data(clean)[i] + 10;
    ck_assert_double_eq_tol(psnr_of(clean, restored), 40, 0.01);
    OK(resmap_evaluate(context, clean, clean, NULL, RESMAP_PLANE_CORONAL, &metrics));
    ck_assert_double_eq(metrics->nrmse, 0);
    OK(resmap_metrics_json(context, metrics, &text));
    holds(text, "\"psnr\": null");
    holds(text, "\"plane\": \"coronal\"");
    resmap_text_free(text);
    resmap_metrics_free(metrics);
    resmap_image_free(restored);
    resmap_image_free(spoiled);
    resmap_image_free(clean);
}
END_TEST

/* Two contexts have nothing in common, not even a model. */
START_TEST(another_context)
{
    resmap_options o = forced();
    resmap_image *scan = head(8, 8, 1, 1, 1), *image = UNTOUCHED(resmap_image);
    resmap_report *report = UNTOUCHED(resmap_report);
    resmap_context *other = NULL;
    resmap_model *model = NULL;

    open_reference();
    ck_assert_int_eq(resmap_context_create(&other), RESMAP_OK);
    ck_assert_int_eq(resmap_model_open(other, MODEL, &model), RESMAP_OK);
    REFUSED(resmap_restore(context, model, scan, NULL, &o, &image, &report), RESMAP_BAD_ARGUMENT, MODEL ": ");
    ck_assert_str_eq(resmap_error(other), "");
    ck_assert_ptr_eq(image, UNTOUCHED(resmap_image));
    ck_assert_ptr_eq(report, UNTOUCHED(resmap_report));
    resmap_model_free(model);
    resmap_context_free(other);
    resmap_image_free(scan);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("public");
    TCase *tests = tcase_create("public");

    tcase_add_unchecked_fixture(tests, make_folder, remove_folder);
    tcase_add_checked_fixture(tests, set_up, tear_down);
    tcase_add_test(tests, status_texts);
    tcase_add_test(tests, nothing_is_freed);
    tcase_add_test(tests, created_images);
    tcase_add_test(tests, refused_images);
    tcase_add_test(tests, written_images);
    tcase_add_test(tests, long_axes);
    tcase_add_test(tests, unwritten_images);
    tcase_add_test(tests, models);
    tcase_add_test(tests, sha256_of_every_byte);
    tcase_add_test(tests, refused_models);
    tcase_add_test(tests, synth_defaults);
    tcase_add_test(tests, synth_is_repeatable);
    tcase_add_test(tests, presets);
    tcase_add_test(tests, units_of_noise);
    tcase_add_test(tests, units_of_blur);
    tcase_add_test(tests, units_of_bias);
    tcase_add_test(tests, units_of_motion);
    tcase_add_test(tests, share_of_moved_lines);
    tcase_add_test(tests, refused_options);
    tcase_add_test(tests, accepted_options);
    tcase_add_test(tests, refused_volumes);
    tcase_add_test(tests, constant_frame);
    tcase_add_test(tests, damaged_records);
    tcase_add_test(tests, restored_to_nowhere);
    tcase_add_test(tests, device_memory);
    tcase_add_test(tests, memory_against_file);
    tcase_add_test(tests, seconds_of_opening);
    tcase_add_test(tests, from_scan_to_figures);
    tcase_add_test(tests, another_context);
    suite_add_tcase(suite, tests);
    return run_host_suite(suite) == 0 ? 0 : 1;
}
