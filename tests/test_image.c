/* Images: NIfTI in and out, staged outputs, slices, intensity scaling, the figure. The files are put together here byte by
 * byte, from the NIfTI-1 and -2 documents' offsets, so that nothing of the code under test is trusted. */
#include <check.h>
#include <errno.h>
#include <math.h>
#include <png.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include "image/image.h"
#include "tests/run.h"
#include "tests/scratch.h"

static char folder[256];
static rsm_env env;

static void make_folder(void)
{
    if (!make_scratch(folder)) exit(99);
}

static void remove_folder(void)
{
    remove_scratch(folder);
}

static const char *at(const char *name)
{
    return in_scratch(folder, name);
}

static void fresh(void)
{
    memset(&env, 0, sizeof env);
    clean_scratch(folder);
}

/* ---- Files made by hand ---- */

/* Numbers in either byte order. */
static int big;

static void put(unsigned char *to, uint64_t value, int size)
{
    for (int i = 0; i < size; i++) to[big ? size - 1 - i : i] = (unsigned char)(value >> (8 * i));
}

static uint64_t get(const unsigned char *from, int size)   /* little-endian */
{
    uint64_t value = 0;
    for (int i = 0; i < size; i++) value |= (uint64_t)from[i] << (8 * i);
    return value;
}

static uint64_t float_bits(double value, int size)
{
    float narrow = (float)value;
    uint64_t bits = 0;
    uint32_t bits32;
    if (size == 8) {
        memcpy(&bits, &value, 8);
        return bits;
    }
    memcpy(&bits32, &narrow, 4);
    return bits32;
}

static void put_float(unsigned char *to, double value, int size)
{
    put(to, float_bits(value, size), size);
}

static double get_float(const unsigned char *from, int size)   /* little-endian */
{
    uint64_t bits = get(from, size);
    uint32_t bits32 = (uint32_t)bits;
    double wide;
    float narrow;
    memcpy(&wide, &bits, 8);
    memcpy(&narrow, &bits32, 4);
    return size == 8 ? wide : narrow;
}

/* Where the fields lie: NIfTI-1, NIfTI-2; sizes of their elements. */
typedef struct field {
    int at[2], size[2];
} field;

static const field DIM = {{40, 16}, {2, 8}}, DATATYPE = {{70, 12}, {2, 2}}, BITPIX = {{72, 14}, {2, 2}},
                   PIXDIM = {{76, 104}, {4, 8}}, SLOPE = {{112, 176}, {4, 8}}, INTER = {{116, 184}, {4, 8}},
                   QFORM_CODE = {{252, 344}, {2, 4}}, SFORM_CODE = {{254, 348}, {2, 4}}, QUATERN = {{256, 352}, {4, 8}},
                   SROW = {{280, 400}, {4, 8}}, INTENT_CODE = {{68, 504}, {2, 4}}, TOFFSET = {{136, 216}, {4, 8}},
                   CAL_MAX = {{124, 192}, {4, 8}};
static const int XYZT_UNITS[2] = {123, 500}, DESCRIP[2] = {148, 240}, MAGIC[2] = {344, 4};

typedef struct file {
    int version;
    unsigned char *bytes;
    size_t size, first;          /* first: where the voxels begin */
} file;

static void set(file *f, field where, int index, double value)
{
    int v = f->version - 1;
    put(f->bytes + where.at[v] + index * where.size[v], (uint64_t)(int64_t)value, where.size[v]);
}

static void set_float(file *f, field where, int index, double value)
{
    int v = f->version - 1;
    put_float(f->bytes + where.at[v] + index * where.size[v], value, where.size[v]);
}

static void set_offset(file *f, double value)
{
    if (f->version == 1) put_float(f->bytes + 108, value, 4);
    else put(f->bytes + 168, (uint64_t)(int64_t)value, 8);
}

/* A file of zero voxels in the byte order of `big`, without sform and qform; `extra` bytes between header and voxels. */
static file make_file(int version, int datatype, int bits, int dims, const int *dim, size_t extra)
{
    file f = {version, NULL, 0, (version == 1 ? 352 : 544) + extra};
    size_t count = 1;
    for (int i = 0; i < dims; i++) count *= (size_t)dim[i];
    f.size = f.first + count * (size_t)bits / 8;
    f.bytes = calloc(1, f.size + 64);
    put(f.bytes, version == 1 ? 348 : 540, 4);
    memcpy(f.bytes + MAGIC[version - 1], version == 1 ? "n+1\0" : "n+2\0\r\n\032\n", version == 1 ? 4 : 8);
    for (int i = 0; i < 8; i++) {
        set(&f, DIM, i, i == 0 ? dims : i <= dims ? dim[i - 1] : 1);
        set_float(&f, PIXDIM, i, 1);
    }
    set(&f, DATATYPE, 0, datatype);
    set(&f, BITPIX, 0, bits);
    set_offset(&f, (double)f.first);
    return f;
}

static void write_plain(const char *path, const void *bytes, size_t size)
{
    unlink(path);                /* much faster than emptying it: ext4 flushes a file written over */
    FILE *stream = fopen(path, "wb");
    ck_assert_ptr_nonnull(stream);
    ck_assert_uint_eq(fwrite(bytes, 1, size, stream), size);
    ck_assert_int_eq(fclose(stream), 0);
}

static void write_gz(const char *path, const void *bytes, size_t size)
{
    gzFile gz = gzopen(path, "wb");
    ck_assert_ptr_nonnull(gz);
    if (size) ck_assert_int_eq(gzwrite(gz, bytes, (unsigned)size), (int)size);
    ck_assert_int_eq(gzclose(gz), Z_OK);
}

/* The whole of a file, unpacked. Fresh memory. */
static unsigned char *read_whole(const char *path, size_t *size)
{
    unsigned char *bytes = malloc(1 << 22);
    gzFile gz = gzopen(path, "rb");
    ck_assert_ptr_nonnull(gz);
    int n = gzread(gz, bytes, 1 << 22);
    ck_assert_int_ge(n, 0);
    ck_assert_int_eq(gzclose(gz), Z_OK);
    *size = (size_t)n;
    return bytes;
}

static struct resmap_image *read_ok(const char *path)
{
    struct resmap_image *image = NULL;
    resmap_status status = rsm_image_read(&env, path, &image);
    ck_assert_msg(status == RESMAP_OK, "%s: status %d, %s", path, status, env.error);
    return image;
}

/* Writes the file and reads it. */
static struct resmap_image *take(const file *f)
{
    write_plain(at("in.nii"), f->bytes, f->size);
    return read_ok(at("in.nii"));
}

/* Reading must fail, naming the file and a reason that has `part`, and leave the result alone. */
static void expect_bad(const char *path, const char *part)
{
    struct resmap_image *image = NULL;
    resmap_status status = rsm_image_read(&env, path, &image);
    ck_assert_msg(status == RESMAP_BAD_FILE, "%s: status %d instead of a bad file (%s)", part, status, env.error);
    ck_assert_ptr_null(image);
    ck_assert_msg(strncmp(env.error, path, strlen(path)) == 0, "does not begin with the file: %s", env.error);
    ck_assert_msg(strstr(env.error, part) != NULL, "no \"%s\" in: %s", part, env.error);
}

static void refuse(const file *f, const char *part)
{
    write_plain(at("bad.nii"), f->bytes, f->size);
    expect_bad(at("bad.nii"), part);
    write_gz(at("bad.nii.gz"), f->bytes, f->size);
    expect_bad(at("bad.nii.gz"), part);
}

static resmap_status add_output(rsm_outputs *outputs, const char *path, FILE **stream)
{
    resmap_status status = rsm_outputs_claim(outputs, path);
    return status == RESMAP_OK ? rsm_outputs_open(outputs, path, stream) : status;
}

static void write_ok(const struct resmap_image *image, const char *path)
{
    rsm_outputs *outputs = NULL;
    FILE *stream = NULL;
    ck_assert_int_eq(rsm_outputs_create(&env, 1, &outputs), RESMAP_OK);
    ck_assert_int_eq(add_output(outputs, path, &stream), RESMAP_OK);
    resmap_status status = rsm_image_write_stream(&env, image, path, stream);
    ck_assert_msg(status == RESMAP_OK, "%s", env.error);
    ck_assert_int_eq(rsm_outputs_commit(outputs), RESMAP_OK);
    rsm_outputs_free(outputs);
}

/* ---- Reading ---- */

static const struct {
    int code, bits, is_signed, is_float;
} types[] = {{2, 8, 0, 0},   {256, 8, 1, 0},  {512, 16, 0, 0},  {4, 16, 1, 0},  {768, 32, 0, 0},
             {8, 32, 1, 0},  {1280, 64, 0, 0}, {1024, 64, 1, 0}, {16, 32, 0, 1}, {64, 64, 0, 1}};

/* Every voxel type, version, byte order, plain and compressed, with slope and intercept. */
START_TEST(test_types)
{
    const int dim[3] = {3, 2, 2};
    int type = _i % 10, version = _i / 10 % 2 + 1, gz = _i / 40;
    big = _i / 20 % 2;
    fresh();
    file f = make_file(version, types[type].code, types[type].bits, 3, dim, 0);
    set_float(&f, SLOPE, 0, 0.1);
    set_float(&f, INTER, 0, -0.3);
    /* as the file holds them; applied in double */
    const double slope = version == 1 ? (double)0.1f : 0.1, inter = version == 1 ? (double)-0.3f : -0.3;
    double expected[12];
    int bytes = types[type].bits / 8;
    for (int i = 0; i < 12; i++) {
        unsigned char *voxel = f.bytes + f.first + i * bytes;
        if (types[type].is_float) {
            double value = i == 0 ? -1e30 : i == 1 ? 1.25e-20 : i * 1.125;
            expected[i] = bytes == 4 ? (double)(float)value : value;
            put_float(voxel, value, bytes);
        } else {
            /* the extremes of the type, then small ones */
            uint64_t ones = bytes == 8 ? UINT64_MAX : (UINT64_C(1) << (8 * bytes)) - 1;
            uint64_t value = i == 0 ? ones : i == 1 ? ones >> 1 : i == 2 ? (ones >> 1) + 1 : (uint64_t)i * 9;
            put(voxel, value, bytes);
            expected[i] = types[type].is_signed && value > ones >> 1 ? -(double)(ones - value) - 1 : (double)value;
        }
    }
    const char *path = at(gz ? "a.nii.gz" : "a.nii");
    if (gz) write_gz(path, f.bytes, f.size);
    else write_plain(path, f.bytes, f.size);
    struct resmap_image *image = read_ok(path);
    ck_assert_uint_eq(image->shape[0], 3);
    ck_assert_uint_eq(image->shape[1], 2);
    ck_assert_uint_eq(image->shape[2], 2);
    ck_assert_uint_eq(image->shape[3], 1);
    ck_assert_int_eq(image->dims, 3);
    for (int i = 0; i < 12; i++) {
        float value = (float)(slope * expected[i] + inter);
        ck_assert_msg(image->data[i] == value, "voxel %d: %.9g instead of %.9g", i, image->data[i], value);
    }
    resmap_image_free(image);
    free(f.bytes);
}
END_TEST

START_TEST(test_not_finite_kept)
{
    const int dim[2] = {2, 2};
    big = _i;
    fresh();
    file f = make_file(1, 16, 32, 2, dim, 0);
    put_float(f.bytes + 352, NAN, 4);
    put_float(f.bytes + 356, INFINITY, 4);
    put_float(f.bytes + 360, -INFINITY, 4);
    put_float(f.bytes + 364, 7, 4);
    /* "no scaling" is said by a slope of 0, or NaN, whatever the intercept */
    for (int i = 0; i < 4; i++) {
        set_float(&f, SLOPE, 0, i == 0 ? 0 : i == 1 ? NAN : i == 2 ? INFINITY : 1);
        set_float(&f, INTER, 0, i == 0 ? 5 : i == 1 ? NAN : i == 2 ? 1 : 0);
        struct resmap_image *image = take(&f);
        ck_assert(isnan(image->data[0]));
        ck_assert(isinf(image->data[1]) && image->data[1] > 0);
        ck_assert(isinf(image->data[2]) && image->data[2] < 0);
        ck_assert(image->data[3] == 7);
        resmap_image_free(image);
    }
    free(f.bytes);
}
END_TEST

START_TEST(test_shapes)
{
    static const struct {
        int dims, dim[7], image_dims;
        size_t shape[4];
    } cases[] = {
        {1, {5}, 2, {5, 1, 1, 1}},
        {2, {4, 3}, 2, {4, 3, 1, 1}},
        {3, {4, 3, 2}, 3, {4, 3, 2, 1}},
        {3, {4, 3, 1}, 3, {4, 3, 1, 1}},
        {4, {4, 3, 2, 5}, 4, {4, 3, 2, 5}},
        {4, {4, 3, 1, 5}, 4, {4, 3, 1, 5}},
        {5, {4, 3, 2, 1, 3}, 4, {4, 3, 2, 3}},
        {7, {4, 3, 1, 2, 1, 3, 1}, 4, {4, 3, 1, 6}},
        {7, {1, 1, 1, 1, 1, 1, 1}, 4, {1, 1, 1, 1}},
    };
    big = 0;
    fresh();
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++)
        for (int version = 1; version <= 2; version++) {
            file f = make_file(version, 2, 8, cases[c].dims, cases[c].dim, 0);
            /* what dim holds beyond dim[0] means nothing */
            for (int i = cases[c].dims + 1; i < 8; i++) set(&f, DIM, i, -7);
            for (size_t i = f.first; i < f.size; i++) f.bytes[i] = (unsigned char)(i - f.first);
            struct resmap_image *image = take(&f);
            ck_assert_mem_eq(image->shape, cases[c].shape, sizeof image->shape);
            ck_assert_int_eq(image->dims, cases[c].image_dims);
            for (size_t i = 0; i < f.size - f.first; i++) ck_assert(image->data[i] == (float)i);
            /* and the shape survives writing */
            write_ok(image, at("out.nii"));
            size_t size;
            unsigned char *bytes = read_whole(at("out.nii"), &size);
            ck_assert_uint_eq(size, f.first + (f.size - f.first) * 4);
            for (int i = 0; i <= cases[c].dims; i++) {
                int where = DIM.at[version - 1] + i * DIM.size[version - 1];
                ck_assert_uint_eq(get(bytes + where, DIM.size[version - 1]), get(f.bytes + where, DIM.size[version - 1]));
            }
            free(bytes);
            resmap_image_free(image);
            free(f.bytes);
        }
}
END_TEST

static void expect_matrix(const struct resmap_image *image, const double *expected, const double *mm)
{
    for (int i = 0; i < 12; i++)
        ck_assert_msg(fabs(image->voxel_to_world[i] - expected[i]) < 1e-4, "element %d: %g instead of %g", i,
                      image->voxel_to_world[i], expected[i]);
    for (int i = 0; i < 3; i++) ck_assert(fabs(image->voxel_mm[i] - mm[i]) < 1e-4);
}

/* sform before qform before pixdim; NIfTI's definitions. */
START_TEST(test_geometry)
{
    const int dim[3] = {4, 3, 2};
    const double mm[3] = {2, 3, 4}, metres[3] = {2000, 3000, 4000};
    big = _i / 2;
    fresh();
    file f = make_file(_i % 2 + 1, 2, 8, 3, dim, 0);
    for (int i = 0; i < 3; i++) set_float(&f, PIXDIM, i + 1, mm[i]);
    struct resmap_image *image = take(&f);
    expect_matrix(image, (double[]){2, 0, 0, 0, 0, 3, 0, 0, 0, 0, 4, 0}, mm);
    resmap_image_free(image);

    /* a quarter turn about z: quaternion (cos 45°, 0, 0, sin 45°); column 0 becomes +y, column 1 -x */
    set(&f, QFORM_CODE, 0, 1);
    set_float(&f, PIXDIM, 0, 1);
    set_float(&f, QUATERN, 2, sqrt(0.5));
    set_float(&f, QUATERN, 3, 10);
    set_float(&f, QUATERN, 4, -20);
    set_float(&f, QUATERN, 5, 30);
    image = take(&f);
    expect_matrix(image, (double[]){0, -3, 0, 10, 2, 0, 0, -20, 0, 0, 4, 30}, mm);
    resmap_image_free(image);
    /* qfac -1 turns the third axis round */
    set_float(&f, PIXDIM, 0, -1);
    image = take(&f);
    expect_matrix(image, (double[]){0, -3, 0, 10, 2, 0, 0, -20, 0, 0, -4, 30}, mm);
    resmap_image_free(image);
    /* an edge is a length */
    set_float(&f, PIXDIM, 2, -3);
    image = take(&f);
    expect_matrix(image, (double[]){0, -3, 0, 10, 2, 0, 0, -20, 0, 0, -4, 30}, mm);
    resmap_image_free(image);

    const double sform[12] = {0, 0, 4, 1, 2, 0, 0, 2, 0, -3, 0, 3};
    set(&f, SFORM_CODE, 0, 2);
    for (int i = 0; i < 12; i++) set_float(&f, SROW, i, sform[i]);
    image = take(&f);
    expect_matrix(image, sform, mm);
    resmap_image_free(image);
    double far[12];
    for (int i = 0; i < 12; i++) far[i] = 1000 * sform[i];
    f.bytes[XYZT_UNITS[f.version - 1] + (big && f.version == 2 ? 3 : 0)] = 1;   /* metres */
    image = take(&f);
    expect_matrix(image, far, metres);
    resmap_image_free(image);
    free(f.bytes);
}
END_TEST

/* ---- Bad input ---- */

START_TEST(test_lies)
{
    const int dim[3] = {4, 3, 2};
    int version = _i % 2 + 1;
    big = _i / 2;
    fresh();
    file good = make_file(version, 4, 16, 3, dim, 0), f = good;
    f.bytes = malloc(good.size);
#define LIE(change, part)                                                                               \
    do {                                                                                                \
        memcpy(f.bytes, good.bytes, good.size);                                                         \
        change;                                                                                         \
        refuse(&f, part);                                                                               \
    } while (0)
    LIE(set(&f, DIM, 0, 0), "0 dimensions");
    LIE(set(&f, DIM, 0, -1), "-1 dimensions");
    LIE(set(&f, DIM, 0, 8), "8 dimensions");
    LIE(set(&f, DIM, 0, 200), "200 dimensions");
    LIE(set(&f, DIM, 1, 0), "length 0 for axis 1");
    LIE(set(&f, DIM, 3, -2), "length -2 for axis 3");
    LIE(set(&f, DIM, 2, 32767), "truncated");
    LIE((set(&f, DIM, 1, 32767), set(&f, DIM, 2, 32767), set(&f, DIM, 3, 32767)), "truncated");
    LIE((set(&f, DIM, 0, 7), set(&f, DIM, 1, 2), set(&f, DIM, 2, 2), set(&f, DIM, 3, 2), set(&f, DIM, 4, 2), set(&f, DIM, 5, 2)),
        "more than 4 dimensions");
    if (version == 2) {
        LIE((set(&f, DIM, 1, 1099511627776.0), set(&f, DIM, 2, 1099511627776.0)), "impossible dimensions");
        LIE((set(&f, DIM, 1, 4294967296.0), set(&f, DIM, 2, 4294967296.0)), "impossible dimensions");
        LIE((set(&f, DIM, 1, 4294967296.0), set(&f, DIM, 2, 1073741824.0)), "truncated");
        LIE(f.bytes[MAGIC[1] + 4] = 'x', "not a NIfTI file");
    }
    LIE(set(&f, DATATYPE, 0, 0), "unknown data type 0");
    LIE(set(&f, DATATYPE, 0, 5), "unknown data type 5");
    LIE(set(&f, DATATYPE, 0, -1), "unknown data type -1");
    LIE(set(&f, DATATYPE, 0, 1), "1-bit");
    LIE(set(&f, DATATYPE, 0, 32), "complex");
    LIE(set(&f, DATATYPE, 0, 1792), "complex");
    LIE(set(&f, DATATYPE, 0, 2048), "complex");
    LIE(set(&f, DATATYPE, 0, 128), "RGB");
    LIE(set(&f, DATATYPE, 0, 2304), "RGBA");
    LIE(set(&f, DATATYPE, 0, 1536), "float128");
    LIE(set(&f, BITPIX, 0, 8), "8 bits");
    LIE(set(&f, BITPIX, 0, 0), "0 bits");
    LIE(set_offset(&f, (double)good.first - 8), "within the header");
    LIE(set_offset(&f, 0), "within the header");
    LIE(set_offset(&f, -352), "outside the file");
    LIE(set_offset(&f, 1e10), "outside the file");
    LIE(set_offset(&f, 9e18), "outside the file");
    if (version == 1) {
        LIE(set_offset(&f, NAN), "outside the file");
        LIE(set_offset(&f, INFINITY), "outside the file");
    }
    for (int i = 0; i <= 3; i++) {
        LIE(set_float(&f, PIXDIM, i, NAN), "pixdim");
        LIE(set_float(&f, PIXDIM, i, -INFINITY), "pixdim");
    }
    for (int i = 0; i < 6; i++) LIE((set(&f, QFORM_CODE, 0, 1), set_float(&f, QUATERN, i, NAN)), "qform");
    for (int i = 0; i < 12; i++) LIE((set(&f, SFORM_CODE, 0, 1), set_float(&f, SROW, i, NAN)), "sform");
    LIE(set(&f, SFORM_CODE, 0, 1), "singular");
    LIE((set_float(&f, SLOPE, 0, 2), set_float(&f, INTER, 0, NAN)), "intercept");
    LIE(memcpy(f.bytes + MAGIC[version - 1], version == 1 ? "ni1" : "ni2", 3), "pair of header and image");
    LIE(memcpy(f.bytes + MAGIC[version - 1], "xyz", 3), "not a NIfTI file");
    LIE(f.bytes[big ? 3 : 0]++, "not a NIfTI file");
#undef LIE
    /* one column too many, found before anything is read */
    memcpy(f.bytes, good.bytes, good.size);
    set(&f, DIM, 1, 5);
    write_plain(at("bad.nii"), f.bytes, f.size);
    expect_bad(at("bad.nii"), "do not fit");
    /* a NaN that nobody reads does no harm */
    set_float(&good, PIXDIM, 5, NAN);
    set_float(&good, QUATERN, 1, NAN);
    set_float(&good, SROW, 1, NAN);
    resmap_image_free(take(&good));
    free(f.bytes);
    free(good.bytes);
}
END_TEST

START_TEST(test_not_files)
{
    big = 0;
    fresh();
    expect_bad(at("none.nii"), "No such file");
    expect_bad(folder, "is a folder");
    expect_bad("/dev/zero", "not a regular file");
    ck_assert_int_eq(mkfifo(at("pipe.nii"), 0600), 0);
    expect_bad(at("pipe.nii"), "not a regular file");
    write_plain(at("empty.nii"), "", 0);
    expect_bad(at("empty.nii"), "empty");
    write_gz(at("empty.nii.gz"), "", 0);
    expect_bad(at("empty.nii.gz"), "not a NIfTI file");
    write_plain(at("text.nii"), "Hello, world", 12);
    expect_bad(at("text.nii"), "not a NIfTI file");
    write_plain(at("a.nia"), "<nifti_image\n  nifti_type = 'NIFTI-1A'\n", 40);
    expect_bad(at("a.nia"), "ASCII");
    if (geteuid() != 0) {
        write_plain(at("secret.nii"), "x", 1);
        chmod(at("secret.nii"), 0);
        expect_bad(at("secret.nii"), "Permission denied");
    }
}
END_TEST

/* Cut anywhere, a file is refused; with something behind it, it is read. */
START_TEST(test_truncated)
{
    const int dim[3] = {4, 3, 2};
    int version = _i % 2 + 1, gz = _i / 2;
    big = 0;
    fresh();
    file f = make_file(version, 4, 16, 3, dim, 16);
    f.bytes[f.first - 16 - 4] = 1;
    put(f.bytes + f.first - 16, 16, 4);
    put(f.bytes + f.first - 12, 6, 4);
    for (size_t i = f.first; i < f.size; i++) f.bytes[i] = (unsigned char)(i * 7);
    unsigned char *bytes = f.bytes;
    size_t size = f.size;
    const char *path = gz ? at("cut.nii.gz") : at("cut.nii");
    if (gz) {
        write_gz(path, f.bytes, f.size);
        bytes = malloc(1 << 16);
        FILE *stream = fopen(path, "rb");
        size = fread(bytes, 1, 1 << 16, stream);
        fclose(stream);
    }
    for (size_t n = 0; n < size; n++) {
        write_plain(path, bytes, n);
        expect_bad(path, n == 0 ? "empty" : n < 4 ? "" : gz ? "truncated gzip stream" : n < f.first - 20 ? "truncated header" : "");
    }
    bytes = realloc(bytes, size + 5);
    memcpy(bytes + size, "extra", 5);
    write_plain(path, bytes, size + 5);
    resmap_image_free(read_ok(path));
    if (gz) {
        /* the checksum, then the length, at the end of the stream */
        bytes[size - 7] ^= 1;
        write_plain(path, bytes, size);
        expect_bad(path, "damaged gzip stream (incorrect data check)");
        bytes[size - 7] ^= 1;
        bytes[size - 1] ^= 1;
        write_plain(path, bytes, size);
        expect_bad(path, "damaged gzip stream (incorrect length check)");
        free(f.bytes);
    }
    free(bytes);
}
END_TEST

/* A few bytes that claim to unpack to more than they can must not be believed. */
/* What is deflated in pieces is one whole stream, which other readers take, whatever the number of pieces. */
START_TEST(test_gzip_pieces)
{
    /* After a header of 352 bytes: less than a piece of 1 MiB, just one, a little more, just two, nearly four. */
    static const size_t shapes[][2] = {{10, 10}, {244, 1074}, {271, 967}, {200, 2621}, {1000, 1000}};
    static const char *const names[] = {"a.nii", "a.nii.gz"};
    size_t count = shapes[_i][0] * shapes[_i][1], size[2];
    unsigned char *bytes[2];
    float *data = malloc(count * sizeof *data);
    struct resmap_image *image = NULL;

    fresh();
    for (size_t i = 0; i < count; i++) data[i] = (float)((i * 7919) % 10007) * 0.37f;
    const size_t shape[4] = {shapes[_i][0], shapes[_i][1], 1, 1};
    ck_assert_int_eq(rsm_image_create(&env, data, shape, NULL, &image), RESMAP_OK);
    for (int i = 0; i < 2; i++) {
        FILE *stream = fopen(at(names[i]), "wb");
        ck_assert_ptr_nonnull(stream);
        ck_assert_int_eq(rsm_image_write_stream(&env, image, names[i], stream), RESMAP_OK);
        ck_assert_int_eq(fclose(stream), 0);
        bytes[i] = read_whole(at(names[i]), &size[i]);   /* compares checksum and length */
    }
    ck_assert_uint_eq(size[0], 352 + 4 * count);
    ck_assert_uint_eq(size[1], size[0]);
    ck_assert_mem_eq(bytes[1], bytes[0], size[0]);
    resmap_image_free(image);
    free(bytes[0]);
    free(bytes[1]);
    free(data);
}
END_TEST

START_TEST(test_gzip_claims)
{
    const int dim[3] = {1, 1, 1};
    big = 0;
    fresh();
    file f = make_file(1, 16, 32, 3, dim, 0);
    set(&f, DIM, 1, 2000);
    set(&f, DIM, 2, 2000);
    set(&f, DIM, 3, 2000);
    write_gz(at("claim.nii.gz"), f.bytes, f.size);
    expect_bad(at("claim.nii.gz"), "truncated");
    free(f.bytes);
}
END_TEST

/* Whatever a single byte is changed to: read or refused, no crash, no leak; what is read can be written. */
START_TEST(test_mutations)
{
    const int dim[3] = {3, 2, 2};
    static const unsigned char values[] = {0, 1, 0x7f, 0x80, 0xff};
    int version = _i % 2 + 1, gz = _i / 4, read = 0, refused = 0;
    big = _i / 2 % 2;
    fresh();
    file f = make_file(version, 16, 32, 3, dim, 32);
    set(&f, QFORM_CODE, 0, 1);
    set(&f, SFORM_CODE, 0, 1);
    for (int i = 0; i < 3; i++) set_float(&f, SROW, 5 * i, 1);
    size_t ext = f.first - 32;
    f.bytes[ext - 4] = 1;
    put(f.bytes + ext, 32, 4);
    put(f.bytes + ext + 4, 6, 4);
    const char *path = at("m.nii");
    FILE *nowhere = fopen("/dev/null", "wb");
    size_t size = f.size;
    if (gz) {
        write_gz(path, f.bytes, f.size);
        FILE *stream = fopen(path, "rb");
        size = fread(f.bytes, 1, f.size, stream);
        fclose(stream);
    }
    for (size_t i = 0; i < size; i++)
        for (size_t k = 0; k < 7; k++) {
            unsigned char kept = f.bytes[i];
            f.bytes[i] = k < 5 ? values[k] : (unsigned char)(kept ^ (k == 5 ? 1 : 0x80));
            write_plain(path, f.bytes, size);
            f.bytes[i] = kept;
            struct resmap_image *image = NULL;
            resmap_status status = rsm_image_read(&env, path, &image);
            if (status == RESMAP_OK) {
                ck_assert_uint_le(image->shape[0] * image->shape[1] * image->shape[2] * image->shape[3], 48);
                for (int a = 0; a < 3; a++) ck_assert(image->voxel_mm[a] > 0 && isfinite(image->voxel_mm[a]));
                ck_assert_int_eq(rsm_image_write_stream(&env, image, "x.nii", nowhere), RESMAP_OK);
                read++;
            } else {
                ck_assert_msg(status == RESMAP_BAD_FILE, "byte %zu: status %d: %s", i, status, env.error);
                ck_assert_ptr_null(image);
                refused++;
            }
            resmap_image_free(image);
        }
    fclose(nowhere);
    ck_assert_int_gt(refused, 50);
    ck_assert_int_gt(read, 50);
    free(f.bytes);
}
END_TEST

/* ---- Writing ---- */

/* What is written is float32 without scaling, and everything else as it was read. */
START_TEST(test_round_trip)
{
    const int dim[4] = {4, 3, 2, 2};
    int version = _i % 2 + 1, gz = _i / 4, v = version - 1;
    big = _i / 2 % 2;
    fresh();
    file f = make_file(version, 4, 16, 4, dim, 48);
    const double pixdim[8] = {-1, 1.5, 2.5, 3.5, 2.2, 1, 1, 1};
    for (int i = 0; i < 8; i++) set_float(&f, PIXDIM, i, pixdim[i]);
    set(&f, QFORM_CODE, 0, 1);
    set(&f, SFORM_CODE, 0, 4);
    for (int i = 0; i < 6; i++) set_float(&f, QUATERN, i, 0.125 * (i + 1));
    for (int i = 0; i < 12; i++) set_float(&f, SROW, i, i * i + 0.5);
    set_float(&f, SLOPE, 0, 2);
    set_float(&f, INTER, 0, 1);
    set_float(&f, TOFFSET, 0, 0.25);
    set_float(&f, CAL_MAX, 0, 77);
    set(&f, INTENT_CODE, 0, 1002);
    put(f.bytes + XYZT_UNITS[v], 2 + 8, version == 1 ? 1 : 4);   /* mm and s */
    strcpy((char *)f.bytes + DESCRIP[v], "a scan");
    /* two extensions */
    size_t ext = f.first - 48;
    f.bytes[ext - 4] = 1;
    put(f.bytes + ext, 32, 4);
    put(f.bytes + ext + 4, 6, 4);
    memcpy(f.bytes + ext + 8, "first comment, 24 bytes!", 24);
    put(f.bytes + ext + 32, 16, 4);
    put(f.bytes + ext + 36, 4, 4);
    memcpy(f.bytes + ext + 40, "second!!", 8);
    for (int i = 0; i < 48; i++) put(f.bytes + f.first + 2 * i, (uint64_t)(i * 3), 2);
    struct resmap_image *image = take(&f);
    const char *path = gz ? at("out.nii.gz") : at("out.nii");
    write_ok(image, path);
    unsigned char raw[2];
    FILE *stream = fopen(path, "rb");
    ck_assert_uint_eq(fread(raw, 1, 2, stream), 2);
    fclose(stream);
    ck_assert_int_eq(raw[0] == 0x1f && raw[1] == 0x8b, gz);

    size_t size;
    unsigned char *out = read_whole(path, &size);
    ck_assert_uint_eq(size, f.first + 48 * 4);
    ck_assert_uint_eq(get(out, 4), version == 1 ? 348 : 540);
    ck_assert_mem_eq(out + MAGIC[v], f.bytes + MAGIC[v], version == 1 ? 4 : 8);
#define SAME_FLOAT(where, index, value) \
    ck_assert_msg(fabs(get_float(out + where.at[v] + (index) * where.size[v], where.size[v]) - (value)) < 1e-6, \
                  #where " %d: %g", index, get_float(out + where.at[v] + (index) * where.size[v], where.size[v]))
#define SAME(where, index, value) ck_assert_int_eq((int)get(out + where.at[v] + (index) * where.size[v], where.size[v]), value)
    for (int i = 0; i < 5; i++) {
        SAME(DIM, i, i ? dim[i - 1] : 4);
        SAME_FLOAT(PIXDIM, i, pixdim[i]);
    }
    SAME(DATATYPE, 0, 16);
    SAME(BITPIX, 0, 32);
    SAME_FLOAT(SLOPE, 0, 1);
    SAME_FLOAT(INTER, 0, 0);
    SAME(QFORM_CODE, 0, 1);
    SAME(SFORM_CODE, 0, 4);
    for (int i = 0; i < 6; i++) SAME_FLOAT(QUATERN, i, 0.125 * (i + 1));
    for (int i = 0; i < 12; i++) SAME_FLOAT(SROW, i, i * i + 0.5);
    SAME_FLOAT(TOFFSET, 0, 0.25);
    SAME_FLOAT(CAL_MAX, 0, 77);
    SAME(INTENT_CODE, 0, 0);
    ck_assert_int_eq(out[XYZT_UNITS[v]], 10);
    ck_assert_str_eq((char *)out + DESCRIP[v], "a scan");
    if (version == 1) ck_assert(get_float(out + 108, 4) == (double)f.first);
    else ck_assert_uint_eq(get(out + 168, 8), f.first);
    /* the extensions' own numbers are little-endian now */
    ck_assert_int_eq(out[ext - 4], 1);
    ck_assert_uint_eq(get(out + ext, 4), 32);
    ck_assert_uint_eq(get(out + ext + 4, 4), 6);
    ck_assert_mem_eq(out + ext + 8, "first comment, 24 bytes!", 24);
    ck_assert_uint_eq(get(out + ext + 32, 4), 16);
    ck_assert_uint_eq(get(out + ext + 36, 4), 4);
    ck_assert_mem_eq(out + ext + 40, "second!!", 8);
    for (int i = 0; i < 48; i++) ck_assert(get_float(out + f.first + 4 * i, 4) == 2 * (i * 3) + 1);
    free(out);

    /* read again: the same grid and values; a copy writes the same bytes */
    struct resmap_image *again = read_ok(path), *copy = NULL;
    ck_assert(rsm_image_same_grid(image, again));
    ck_assert_mem_eq(image->data, again->data, 48 * sizeof(float));
    ck_assert_int_eq(rsm_image_like(&env, again, &copy), RESMAP_OK);
    resmap_image_free(again);
    memcpy(copy->data, image->data, 48 * sizeof(float));
    write_ok(copy, at("copy.nii"));
    write_ok(image, at("image.nii"));
    size_t sizes[2];
    unsigned char *a = read_whole(at("copy.nii"), &sizes[0]), *b = read_whole(at("image.nii"), &sizes[1]);
    ck_assert_uint_eq(sizes[0], sizes[1]);
    ck_assert_mem_eq(a, b, sizes[0]);
    free(a);
    free(b);
    resmap_image_free(copy);
    resmap_image_free(image);
    free(f.bytes);
}
END_TEST

/* An extension that claims more than there is costs a warning, not the scan. */
START_TEST(test_bad_extension)
{
    const int dim[3] = {2, 2, 2};
    static const int sizes[] = {0, -16, 8, 17, 4096, 2147483632};
    big = 0;
    fresh();
    for (size_t c = 0; c < sizeof sizes / sizeof *sizes; c++) {
        file f = make_file(1, 2, 8, 3, dim, 32);
        f.bytes[348] = 1;
        put(f.bytes + 352, (uint64_t)(int64_t)sizes[c], 4);
        f.bytes[f.first] = 9;
        struct resmap_image *image = take(&f);
        ck_assert(image->data[0] == 9);
        write_ok(image, at("out.nii"));
        size_t size;
        unsigned char *out = read_whole(at("out.nii"), &size);
        ck_assert_uint_eq(size, 352 + 32);
        free(out);
        resmap_image_free(image);
        free(f.bytes);
    }
}
END_TEST

START_TEST(test_created)
{
    static const struct {
        size_t shape[4];
        int dims, version;
    } cases[] = {{{5, 1, 1, 1}, 2, 1}, {{4, 3, 1, 1}, 2, 1}, {{4, 3, 2, 1}, 3, 1}, {{4, 3, 2, 3}, 4, 1}, {{40000, 2, 1, 1}, 2, 2}};
    const double matrix[12] = {0, 0, 4, 1, 2, 0, 0, 2, 0, -3, 0, 3}, mm[3] = {2, 3, 4};
    fresh();
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        size_t count = cases[c].shape[0] * cases[c].shape[1] * cases[c].shape[2] * cases[c].shape[3];
        float *data = malloc(count * sizeof *data);
        for (size_t i = 0; i < count; i++) data[i] = (float)i / 4;
        struct resmap_image *image = NULL;
        ck_assert_int_eq(rsm_image_create(&env, data, cases[c].shape, matrix, &image), RESMAP_OK);
        free(data);
        ck_assert_mem_eq(resmap_image_shape(image), cases[c].shape, sizeof cases[c].shape);
        ck_assert_mem_eq(resmap_image_voxel_to_world(image), matrix, sizeof matrix);
        ck_assert(resmap_image_data(image) == resmap_image_data_const(image) && resmap_image_data(image)[1] == 0.25f);
        write_ok(image, at("made.nii"));
        size_t size;
        unsigned char *out = read_whole(at("made.nii"), &size);
        ck_assert_uint_eq(get(out, 4), cases[c].version == 1 ? 348 : 540);
        free(out);
        struct resmap_image *again = read_ok(at("made.nii"));
        ck_assert_int_eq(again->dims, cases[c].dims);
        ck_assert(rsm_image_same_grid(image, again));
        expect_matrix(again, matrix, mm);
        ck_assert_mem_eq(image->shape, again->shape, sizeof image->shape);
        ck_assert_mem_eq(image->data, again->data, count * sizeof(float));
        resmap_image_free(again);
        resmap_image_free(image);
    }
    struct resmap_image *image = NULL;
    const float one = 1;
    const double nan_matrix[12] = {1, 0, 0, NAN, 0, 1, 0, 0, 0, 0, 1, 0}, flat[12] = {0};
    ck_assert_int_eq(rsm_image_create(&env, &one, (size_t[4]){1, 0, 1, 1}, NULL, &image), RESMAP_BAD_ARGUMENT);
    ck_assert_int_eq(rsm_image_create(&env, &one, (size_t[4]){SIZE_MAX, SIZE_MAX, 1, 1}, NULL, &image), RESMAP_BAD_ARGUMENT);
    ck_assert_int_eq(rsm_image_create(&env, &one, (size_t[4]){1, 1, 1, SIZE_MAX / 4}, NULL, &image), RESMAP_BAD_ARGUMENT);
    ck_assert_int_eq(rsm_image_create(&env, &one, (size_t[4]){1, 1, 1, 1}, nan_matrix, &image), RESMAP_BAD_ARGUMENT);
    ck_assert_int_eq(rsm_image_create(&env, &one, (size_t[4]){2, 1, 1, 1}, flat, &image), RESMAP_BAD_ARGUMENT);
    ck_assert_ptr_null(image);
    ck_assert_int_eq(rsm_image_create(&env, &one, (size_t[4]){1, 1, 1, 1}, NULL, &image), RESMAP_OK);
    ck_assert(image->voxel_mm[0] == 1 && image->voxel_to_world[10] == 1);
    resmap_image_free(image);
    resmap_image_free(NULL);
}
END_TEST

START_TEST(test_same_grid)
{
    fresh();
    const float data[8] = {0};
    double matrix[12] = {1, 0, 0, 5, 0, 1, 0, 6, 0, 0, 1, 7};
    struct resmap_image *a = NULL, *b = NULL;
    ck_assert_int_eq(rsm_image_create(&env, data, (size_t[4]){2, 2, 1, 1}, matrix, &a), RESMAP_OK);
    ck_assert_int_eq(rsm_image_create(&env, data, (size_t[4]){2, 2, 1, 2}, matrix, &b), RESMAP_OK);
    ck_assert_int_eq(rsm_image_same_grid(a, b), 1);   /* frames may differ */
    b->voxel_to_world[3] += 0.0005;
    ck_assert_int_eq(rsm_image_same_grid(a, b), 1);
    b->voxel_to_world[3] += 0.001;
    ck_assert_int_eq(rsm_image_same_grid(a, b), 0);
    b->voxel_to_world[3] = 5;
    b->shape[2] = 2;
    b->shape[3] = 1;
    ck_assert_int_eq(rsm_image_same_grid(a, b), 0);
    resmap_image_free(a);
    resmap_image_free(b);
}
END_TEST

/* ---- Outputs ---- */

static int file_has(const char *path, const char *text)
{
    char bytes[100] = "";
    FILE *stream = fopen(path, "rb");
    if (!stream) return 0;
    size_t n = fread(bytes, 1, sizeof bytes - 1, stream);
    fclose(stream);
    return n == strlen(text) && strcmp(bytes, text) == 0;
}

START_TEST(test_outputs)
{
    fresh();
    rsm_outputs *outputs = NULL;
    FILE *a = NULL, *b = NULL;
    umask(027);
    ck_assert_int_eq(rsm_outputs_create(&env, 0, &outputs), RESMAP_OK);
    ck_assert_int_eq(add_output(outputs, at("a"), &a), RESMAP_OK);
    ck_assert_int_eq(add_output(outputs, at("b"), &b), RESMAP_OK);
    fputs("one", a);
    fputs("two", b);
    ck_assert_int_ne(access(at("a"), F_OK), 0);
    ck_assert_int_eq(rsm_outputs_commit(outputs), RESMAP_OK);
    ck_assert(file_has(at("a"), "one") && file_has(at("b"), "two"));
    struct stat st;
    ck_assert_int_eq(stat(at("a"), &st), 0);
    ck_assert_int_eq(st.st_mode & 0777, 0640);
    rsm_outputs_free(outputs);
    rsm_outputs_free(NULL);
    umask(022);
    ck_assert_int_eq(clean_scratch(folder), 2);

    /* not committed: nothing */
    ck_assert_int_eq(rsm_outputs_create(&env, 0, &outputs), RESMAP_OK);
    ck_assert_int_eq(add_output(outputs, at("a"), &a), RESMAP_OK);
    fputs("one", a);
    rsm_outputs_free(outputs);
    ck_assert_int_eq(clean_scratch(folder), 0);

    /* claimed: nothing lies there */
    ck_assert_int_eq(rsm_outputs_create(&env, 0, &outputs), RESMAP_OK);
    ck_assert_int_eq(rsm_outputs_claim(outputs, at("a")), RESMAP_OK);
    ck_assert_int_eq(clean_scratch(folder), 0);
    ck_assert_int_eq(rsm_outputs_open(outputs, at("b"), &b), RESMAP_INTERNAL);
    ck_assert_int_eq(rsm_outputs_commit(outputs), RESMAP_OK);
    rsm_outputs_free(outputs);
    ck_assert_int_eq(clean_scratch(folder), 0);
}
END_TEST

START_TEST(test_outputs_refused)
{
    fresh();
    rsm_outputs *outputs = NULL;
    FILE *a = NULL;
    static const struct {
        const char *path, *reason;
    } cases[] = {{"/nonexistent-folder/x.nii", "No such file"}, {"/dev/null", "not a regular file"},
                 {"/dev/full", "not a regular file"},           {"/tmp", "is a folder"},
                 {"", ""},                                      {"/tmp/", "older"},
                 {"/dev/null/x.nii", "Not a directory"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int overwrite = 0; overwrite < 2; overwrite++) {
            ck_assert_int_eq(rsm_outputs_create(&env, overwrite, &outputs), RESMAP_OK);
            ck_assert_int_eq(add_output(outputs, cases[i].path, &a), RESMAP_IO);
            ck_assert_msg(strncmp(env.error, cases[i].path, strlen(cases[i].path)) == 0, "%s", env.error);
            ck_assert_msg(strstr(env.error, cases[i].reason) != NULL, "%s", env.error);
            rsm_outputs_free(outputs);
        }

    write_plain(at("old"), "old", 3);
    ck_assert_int_eq(rsm_outputs_create(&env, 0, &outputs), RESMAP_OK);
    ck_assert_int_eq(add_output(outputs, at("old"), &a), RESMAP_IO);
    ck_assert_ptr_nonnull(strstr(env.error, "exists already"));
    /* one that comes up meanwhile is not overwritten either; the others do not appear */
    ck_assert_int_eq(add_output(outputs, at("first"), &a), RESMAP_OK);
    ck_assert_int_eq(add_output(outputs, at("second"), &a), RESMAP_OK);
    write_plain(at("second"), "meanwhile", 9);
    ck_assert_int_eq(rsm_outputs_commit(outputs), RESMAP_IO);
    rsm_outputs_free(outputs);
    ck_assert(file_has(at("old"), "old") && file_has(at("second"), "meanwhile"));
    ck_assert_int_eq(clean_scratch(folder), 2);

    /* the same file twice, by two names */
    ck_assert_int_eq(rsm_outputs_create(&env, 1, &outputs), RESMAP_OK);
    ck_assert_int_eq(add_output(outputs, at("x"), &a), RESMAP_OK);
    ck_assert_int_eq(add_output(outputs, at("../tmp/../tmp/x"), &a), RESMAP_IO);
    char other[700];
    snprintf(other, sizeof other, "%s/./x", folder);
    ck_assert_int_eq(add_output(outputs, other, &a), RESMAP_BAD_ARGUMENT);
    ck_assert_ptr_nonnull(strstr(env.error, "same name"));
    rsm_outputs_free(outputs);
    ck_assert_int_eq(clean_scratch(folder), 0);

    /* a file that is read, by another name */
    write_plain(at("read"), "read", 4);
    ck_assert_int_eq(rsm_outputs_create(&env, 1, &outputs), RESMAP_OK);
    ck_assert_int_eq(rsm_outputs_spare(outputs, NULL), RESMAP_OK);
    ck_assert_int_eq(rsm_outputs_spare(outputs, at("none")), RESMAP_OK);
    ck_assert_int_eq(rsm_outputs_spare(outputs, at("read")), RESMAP_OK);
    snprintf(other, sizeof other, "%s/./read", folder);
    ck_assert_int_eq(add_output(outputs, other, &a), RESMAP_BAD_ARGUMENT);
    ck_assert_ptr_nonnull(strstr(env.error, "written over"));
    ck_assert_int_eq(link(at("read"), at("second")), 0);
    ck_assert_int_eq(add_output(outputs, at("second"), &a), RESMAP_BAD_ARGUMENT);
    rsm_outputs_free(outputs);
    ck_assert(file_has(at("read"), "read"));
    ck_assert_int_eq(clean_scratch(folder), 2);

    if (geteuid() != 0) {
        ck_assert_int_eq(mkdir(at("closed"), 0500), 0);
        ck_assert_int_eq(rsm_outputs_create(&env, 0, &outputs), RESMAP_OK);
        ck_assert_int_eq(add_output(outputs, at("closed/x"), &a), RESMAP_IO);
        ck_assert_ptr_nonnull(strstr(env.error, "Permission denied"));
        rsm_outputs_free(outputs);
    }
}
END_TEST

START_TEST(test_outputs_overwrite)
{
    fresh();
    rsm_outputs *outputs = NULL;
    FILE *a = NULL, *b = NULL;
    write_plain(at("real"), "old", 3);
    ck_assert_int_eq(symlink("real", at("link")), 0);
    ck_assert_int_eq(symlink("nowhere", at("dangling")), 0);
    ck_assert_int_eq(rsm_outputs_create(&env, 1, &outputs), RESMAP_OK);
    ck_assert_int_eq(add_output(outputs, at("dangling"), &a), RESMAP_IO);
    ck_assert_int_eq(add_output(outputs, at("link"), &a), RESMAP_OK);
    ck_assert_int_eq(add_output(outputs, at("more"), &b), RESMAP_OK);
    fputs("new", a);
    ck_assert_int_eq(rsm_outputs_commit(outputs), RESMAP_OK);
    rsm_outputs_free(outputs);
    /* the link is still one, and what it names is new */
    struct stat st;
    ck_assert_int_eq(lstat(at("link"), &st), 0);
    ck_assert(S_ISLNK(st.st_mode));
    ck_assert(file_has(at("real"), "new"));
    ck_assert_int_eq(clean_scratch(folder), 4);

    /* a rename that fails puts everything back: here a later file has vanished */
    write_plain(at("one"), "old", 3);
    ck_assert_int_eq(rsm_outputs_create(&env, 1, &outputs), RESMAP_OK);
    ck_assert_int_eq(add_output(outputs, at("one"), &a), RESMAP_OK);
    ck_assert_int_eq(add_output(outputs, at("new"), &b), RESMAP_OK);
    ck_assert_int_eq(add_output(outputs, at("two"), &b), RESMAP_OK);
    fputs("new", a);
    DIR *dir = opendir(folder);
    for (struct dirent *entry; (entry = readdir(dir));)
        if (strncmp(entry->d_name, ".two.resmap-", 12) == 0) unlink(at(entry->d_name));
    closedir(dir);
    ck_assert_int_eq(rsm_outputs_commit(outputs), RESMAP_IO);
    rsm_outputs_free(outputs);
    ck_assert(file_has(at("one"), "old"));
    ck_assert_int_eq(clean_scratch(folder), 1);
    /* or the second target has become a folder */
    write_plain(at("one"), "old", 3);
    ck_assert_int_eq(rsm_outputs_create(&env, 1, &outputs), RESMAP_OK);
    ck_assert_int_eq(add_output(outputs, at("one"), &a), RESMAP_OK);
    ck_assert_int_eq(add_output(outputs, at("two"), &b), RESMAP_OK);
    ck_assert_int_eq(mkdir(at("two"), 0700), 0);
    fputs("new", a);
    ck_assert_int_eq(rsm_outputs_commit(outputs), RESMAP_IO);
    rsm_outputs_free(outputs);
    ck_assert(file_has(at("one"), "old"));
    ck_assert_int_eq(clean_scratch(folder), 2);
}
END_TEST

/* A full disk is reported, by the writers and at the close, with its reason. */
START_TEST(test_full_disk)
{
    fresh();
    FILE *full = fopen("/dev/full", "wb");
    if (!full) return;
    float *data = calloc(400000, sizeof *data);
    for (int i = 0; i < 400000; i++) data[i] = (float)((i % 5000 * 7919) % 10007);
    struct resmap_image *image = NULL;
    ck_assert_int_eq(rsm_image_create(&env, data, (size_t[4]){100, 100, _i ? 40 : 1, 1}, NULL, &image), RESMAP_OK);
    ck_assert_int_eq(rsm_image_write_stream(&env, image, "x.nii", full), RESMAP_IO);
    ck_assert_str_eq(env.error, "x.nii: cannot write: No space left on device");
    fclose(full);
    full = fopen("/dev/full", "wb");
    ck_assert_int_eq(rsm_image_write_stream(&env, image, "x.nii.gz", full), RESMAP_IO);
    ck_assert_str_eq(env.error, "x.nii.gz: cannot write: No space left on device");
    fclose(full);
    full = fopen("/dev/full", "wb");
    rsm_slicing slicing;
    ck_assert_int_eq(rsm_slicing_choose(&env, image, RESMAP_PLANE_AXIAL, &slicing), RESMAP_OK);
    setvbuf(full, NULL, _IONBF, 0);
    ck_assert_int_eq(rsm_figure_write(&env, image, image, NULL, &slicing, "x", "x.png", full), RESMAP_IO);
    ck_assert_str_eq(env.error, "x.png: cannot write: No space left on device");
    fclose(full);
    ck_assert_int_eq(rsm_image_write_stream(&env, image, "x.hdr", stdout), RESMAP_IO);
    ck_assert_ptr_nonnull(strstr(env.error, ".nii"));
    resmap_image_free(image);
    free(data);
}
END_TEST

static int stop_at_once(void *data, const char *what, size_t done, size_t total)
{
    (void)done;
    (void)total;
    return strcmp(what, data) == 0;
}

START_TEST(test_cancel)
{
    const int dim[3] = {4, 3, 2};
    big = 0;
    fresh();
    file f = make_file(1, 2, 8, 3, dim, 0);
    struct resmap_image *image = take(&f), *none = NULL;
    env.progress = stop_at_once;
    env.progress_data = "read";
    ck_assert_int_eq(rsm_image_read(&env, at("in.nii"), &none), RESMAP_CANCELLED);
    ck_assert_ptr_null(none);
    env.progress_data = "write";
    rsm_outputs *outputs = NULL;
    FILE *stream = NULL;
    ck_assert_int_eq(rsm_outputs_create(&env, 0, &outputs), RESMAP_OK);
    ck_assert_int_eq(add_output(outputs, at("out.nii.gz"), &stream), RESMAP_OK);
    ck_assert_int_eq(rsm_image_write_stream(&env, image, at("out.nii.gz"), stream), RESMAP_CANCELLED);
    rsm_outputs_free(outputs);
    ck_assert_int_eq(clean_scratch(folder), 1);
    resmap_image_free(image);
    free(f.bytes);
}
END_TEST

/* ---- Slices ---- */

static struct resmap_image *with_matrix(size_t nx, size_t ny, size_t nz, const double *matrix)
{
    float *data = malloc(nx * ny * nz * sizeof *data);
    for (size_t i = 0; i < nx * ny * nz; i++) data[i] = (float)i;
    struct resmap_image *image = NULL;
    ck_assert_int_eq(rsm_image_create(&env, data, (size_t[4]){nx, ny, nz, 1}, matrix, &image), RESMAP_OK);
    free(data);
    return image;
}

START_TEST(test_planes)
{
    /* Matrices and, for auto, axial, coronal, sagittal, the axis expected. */
    static const struct {
        double matrix[12];
        int axis[4];
        const char *automatic;
    } cases[] = {
        {{1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0}, {2, 2, 1, 0}, "axial"},
        /* array axes along P, I, R: a sagittal acquisition */
        {{0, 0, 2, 0, -1, 0, 0, 0, 0, -1, 0, 0}, {2, 1, 0, 2}, "sagittal"},
        /* the same, with equal edges: axial again */
        {{0, 0, 1, 0, -1, 0, 0, 0, 0, -1, 0, 0}, {1, 1, 0, 2}, "axial"},
        /* thick along A: coronal; exactly 1.5 counts */
        {{1, 0, 0, 0, 0, 1.5, 0, 0, 0, 0, 1, 0}, {1, 2, 1, 0}, "coronal"},
        {{1, 0, 0, 0, 0, 1.49, 0, 0, 0, 0, 1, 0}, {2, 2, 1, 0}, "axial"},
        /* tilted by 30 degrees about x */
        {{1, 0, 0, 0, 0, 0.866, -0.5, 0, 0, 0.5, 0.866, 0}, {2, 2, 1, 0}, "axial"},
        {{1, 0, 0, 0, 0, 0.866, -2.5, 0, 0, 0.5, 4.33, 0}, {2, 2, 1, 0}, "axial"},
        /* tilted by 60: what is called axial lies across axis 1 */
        {{1, 0, 0, 0, 0, 0.5, -0.866, 0, 0, 0.866, 0.5, 0}, {1, 1, 2, 0}, "axial"},
    };
    static const char *const names[3] = {"axial", "coronal", "sagittal"};
    fresh();
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        struct resmap_image *image = with_matrix(4, 3, 2, cases[c].matrix);
        for (int p = 0; p < 4; p++) {
            rsm_slicing slicing;
            ck_assert_int_eq(rsm_slicing_choose(&env, image, (resmap_plane)p, &slicing), RESMAP_OK);
            ck_assert_msg(slicing.slice_axis == cases[c].axis[p], "case %zu, plane %d: axis %d", c, p, slicing.slice_axis);
            ck_assert_str_eq(slicing.plane, p == 0 ? cases[c].automatic : names[p - 1]);
            ck_assert_int_lt(slicing.column_axis, slicing.row_axis);
            ck_assert_int_eq(slicing.slice_axis + slicing.row_axis + slicing.column_axis, 3);
            ck_assert_uint_eq(slicing.slices, image->shape[slicing.slice_axis]);
            ck_assert_uint_eq(slicing.height, image->shape[slicing.row_axis]);
            ck_assert_uint_eq(slicing.width, image->shape[slicing.column_axis]);
            /* every voxel is where it should be, and comes back */
            float slice[12];
            struct resmap_image *copy = with_matrix(4, 3, 2, NULL);
            memset(copy->data, 0, 24 * sizeof(float));
            for (size_t s = 0; s < slicing.slices; s++) {
                rsm_slice_get(&slicing, image->shape, image->data, s, slice);
                for (size_t y = 0; y < slicing.height; y++)
                    for (size_t x = 0; x < slicing.width; x++) {
                        size_t index[3];
                        index[slicing.slice_axis] = s;
                        index[slicing.row_axis] = y;
                        index[slicing.column_axis] = x;
                        ck_assert(slice[y * slicing.width + x] == (float)(index[0] + 4 * index[1] + 12 * index[2]));
                    }
                rsm_slice_put(&slicing, image->shape, copy->data, s, slice);
            }
            ck_assert_mem_eq(copy->data, image->data, 24 * sizeof(float));
            resmap_image_free(copy);
        }
        resmap_image_free(image);
    }
    /* one slice is cut as one slice, whatever the thickness given */
    const double flat[12] = {3, 0, 0, 0, 0, 3, 0, 0, 0, 0, 1, 0};
    struct resmap_image *image = with_matrix(4, 3, 1, flat);
    rsm_slicing slicing;
    ck_assert_int_eq(rsm_slicing_choose(&env, image, RESMAP_PLANE_AUTO, &slicing), RESMAP_OK);
    ck_assert_int_eq(slicing.slice_axis, 2);
    ck_assert_int_eq(rsm_slicing_choose(&env, image, (resmap_plane)9, &slicing), RESMAP_BAD_ARGUMENT);
    resmap_image_free(image);
}
END_TEST

/* numpy.pad(..., mode="reflect"), by NumPy 2.4; for one row or column "edge", which is what it does there. */
START_TEST(test_padding)
{
    const float a[6] = {1, 2, 3, 4, 5, 6}, b[3] = {1, 2, 3}, c[2] = {5, 6}, one = 7;
    const float row1[8] = {1, 2, 3, 2, 1, 2, 3, 2}, row2[8] = {4, 5, 6, 5, 4, 5, 6, 5};
    float padded[64];
    rsm_slice_pad(a, 2, 3, padded, 8, 8);
    for (int y = 0; y < 8; y++) ck_assert_mem_eq(padded + 8 * y, y % 2 ? row2 : row1, sizeof row1);
    rsm_slice_pad(b, 1, 3, padded, 8, 8);
    for (int y = 0; y < 8; y++) ck_assert_mem_eq(padded + 8 * y, row1, sizeof row1);
    rsm_slice_pad(c, 2, 1, padded, 8, 8);
    for (int i = 0; i < 64; i++) ck_assert(padded[i] == (i / 8 % 2 ? 6 : 5));
    rsm_slice_pad(&one, 1, 1, padded, 8, 8);
    for (int i = 0; i < 64; i++) ck_assert(padded[i] == 7);
    rsm_slice_pad(a, 2, 3, padded, 2, 3);
    ck_assert_mem_eq(padded, a, sizeof a);
}
END_TEST

/* ---- Intensities ---- */

/* v = ((i*i*31 + i*17) % 100003) / 128 for i = 0…4999, float32. */
static float *test_values(void)
{
    float *v = malloc(5000 * sizeof *v);
    for (long i = 0; i < 5000; i++) v[i] = (float)((i * i * 31 + i * 17) % 100003) / 128;
    return v;
}

/* The figures are NumPy 2.4's on the same values as float64: numpy.percentile(v, p), and for the scale
 * m = v.mean(); top = percentile(v[v > m], 99.5); lo = 0 if percentile(v, 0.1) >= -top / 2 else median(v[v < m]). */
START_TEST(test_percentiles)
{
    static const double expected[][2] = {{0, 0}, {0.1, 0.4296640625}, {1, 7.083984375}, {33.3, 260.55471875},
        {50, 398.6171875}, {75, 589.66796875}, {99.5, 776.869921875}, {99.99, 781.26171953125}, {100, 781.265625}};
    fresh();
    float *v = test_values();
    double value;
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        ck_assert_int_eq(rsm_percentile(&env, v, NULL, 5000, -INFINITY, INFINITY, expected[i][0], &value), RESMAP_OK);
        ck_assert_msg(fabs(value - expected[i][1]) < 1e-12 * 800, "%g: %.17g", expected[i][0], value);
    }
    /* negative values are ordered the other way by their bits */
    for (int i = 0; i < 5000; i++) v[i] = -v[i];
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        ck_assert_int_eq(rsm_percentile(&env, v, NULL, 5000, -INFINITY, INFINITY, 100 - expected[i][0], &value), RESMAP_OK);
        ck_assert_msg(fabs(value + expected[i][1]) < 1e-10, "%g: %.17g", expected[i][0], value);
    }
    /* few values, and bounds that leave some out */
    const float few[5] = {3, NAN, -1, INFINITY, 2};
    ck_assert_int_eq(rsm_percentile(&env, few, NULL, 5, -INFINITY, INFINITY, 50, &value), RESMAP_OK);
    ck_assert(value == 2);
    ck_assert_int_eq(rsm_percentile(&env, few, NULL, 5, -INFINITY, 3, 50, &value), RESMAP_OK);
    ck_assert(value == 0.5);
    ck_assert_int_eq(rsm_percentile(&env, few, NULL, 1, -INFINITY, INFINITY, 99, &value), RESMAP_OK);
    ck_assert(value == 3);
    ck_assert_int_eq(rsm_percentile(&env, few, NULL, 5, 3, INFINITY, 50, &value), RESMAP_BAD_FILE);
    free(v);
}
END_TEST

static void expect_scale(const float *v, const float *mask, double mean, double hi, double lo)
{
    rsm_scale scale;
    int constant = -1;
    ck_assert_int_eq(rsm_scale_measure(&env, "v", v, mask, 5000, &scale, &constant), RESMAP_OK);
    ck_assert_int_eq(constant, 0);
    ck_assert_msg(fabs(scale.mean - mean) < 1e-10, "mean %.17g", scale.mean);
    ck_assert_msg(fabs(scale.hi - hi) < 1e-10, "hi %.17g", scale.hi);
    ck_assert_msg(fabs(scale.lo - lo) < 1e-10, "lo %.17g", scale.lo);
}

START_TEST(test_scale)
{
    fresh();
    float *v = test_values(), *mask = malloc(5000 * sizeof *mask), *w = malloc(5000 * sizeof *w);
    expect_scale(v, NULL, 392.365540625, 779.5062109375, 0);
    for (int i = 0; i < 5000; i++) mask[i] = i % 3 != 0 ? 1 : i % 2 ? 0.5f : NAN;
    expect_scale(v, mask, 389.90706336258626, 779.345390625, 0);
    for (int i = 0; i < 5000; i++) w[i] = v[i] - 500;
    expect_scale(w, NULL, -107.634459375, 279.5062109375, -307.1484375);
    for (int i = 0; i < 5000; i++) w[i] = v[i] - 200;
    expect_scale(w, NULL, 192.365540625, 579.5062109375, 0);
    /* both sides of -top / 2, and few voxels far below */
    for (int i = 0; i < 5000; i++) w[i] = v[i] - 240;
    expect_scale(w, NULL, 152.365540625, 539.5062109375, 0);
    for (int i = 0; i < 5000; i++) w[i] = v[i] - 265;
    expect_scale(w, NULL, 127.365540625, 514.5062109375, -72.1484375);
    memcpy(w, v, 5000 * sizeof *w);
    for (int i = 0; i < 5000; i += 200) w[i] = -1000;
    expect_scale(w, NULL, 385.2753296875, 779.492890625, 187.15625);
    memcpy(w, v, 5000 * sizeof *w);
    for (int i = 0; i < 5000; i += 7) w[i] = NAN;
    for (int i = 3; i < 5000; i += 11) w[i] = INFINITY;
    expect_scale(w, NULL, 392.2126002888318, 779.6515625, 0);

    rsm_scale scale = {1, 2, 3};
    int constant = -1;
    for (int i = 0; i < 5000; i++) w[i] = 0.1f;   /* its sum is no multiple of it in double */
    ck_assert_int_eq(rsm_scale_measure(&env, "scan.nii", w, NULL, 5000, &scale, &constant), RESMAP_BAD_FILE);
    ck_assert_int_eq(constant, 1);
    ck_assert_ptr_nonnull(strstr(env.error, "scan.nii: constant"));
    for (int i = 0; i < 5000; i++) w[i] = NAN;
    ck_assert_int_eq(rsm_scale_measure(&env, "scan.nii", w, NULL, 5000, &scale, &constant), RESMAP_BAD_FILE);
    ck_assert_int_eq(constant, 0);
    memset(mask, 0, 5000 * sizeof *mask);
    ck_assert_int_eq(rsm_scale_measure(&env, "scan.nii", v, mask, 5000, &scale, &constant), RESMAP_BAD_FILE);
    ck_assert(scale.lo == 1 && scale.hi == 2 && scale.mean == 3);
    /* two values are enough */
    const float two[2] = {0, 1};
    ck_assert_int_eq(rsm_scale_measure(&env, "two", two, NULL, 2, &scale, &constant), RESMAP_OK);
    ck_assert(scale.lo == 0 && scale.hi == 1 && scale.mean == 0.5);
    free(v);
    free(w);
    free(mask);
}
END_TEST

/* ---- The figure ---- */

/* Draws and decodes; `pixels` is fresh memory. */
static unsigned char *draw(const struct resmap_image *before, const struct resmap_image *after, resmap_plane plane,
                           const char *name, unsigned *width, unsigned *height)
{
    rsm_slicing slicing;
    ck_assert_int_eq(rsm_slicing_choose(&env, before, plane, &slicing), RESMAP_OK);
    FILE *stream = fopen(at(name), "wb");
    resmap_status status = rsm_figure_write(&env, before, after, NULL, &slicing, "noise 0.98\nbias \xc3\xa9 0.5", "x.png", stream);
    ck_assert_msg(status == RESMAP_OK, "%s", env.error);
    fclose(stream);
    png_image png = {0};
    png.version = PNG_IMAGE_VERSION;
    ck_assert_int_ne(png_image_begin_read_from_file(&png, at(name)), 0);
    ck_assert_uint_eq(png.format, PNG_FORMAT_GRAY);
    unsigned char *pixels = malloc(PNG_IMAGE_SIZE(png));
    ck_assert_int_ne(png_image_finish_read(&png, NULL, pixels, 0, NULL), 0);
    *width = png.width;
    *height = png.height;
    return pixels;
}

/* A bright block at the right, front and top end of the scan must show on the left and above, whatever the storage order. */
START_TEST(test_figure)
{
    static const double matrices[][12] = {
        {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0},      /* axes R A S */
        {-1, 0, 0, 0, 0, -1, 0, 0, 0, 0, -1, 0},   /* L P I */
        {0, 0, 1, 0, -1, 0, 0, 0, 0, -1, 0, 0},    /* P I R */
        {0, 1, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0},      /* S R A */
    };
    fresh();
    for (size_t m = 0; m < 4; m++) {
        struct resmap_image *before = with_matrix(16, 16, 16, matrices[m]), *after = NULL;
        ck_assert_int_eq(rsm_image_like(&env, before, &after), RESMAP_OK);
        for (int i = 0; i < 4096; i++) {
            int index[3] = {i % 16, i / 16 % 16, i / 256}, inside = 1, hit = 1;
            for (int w = 0; w < 3; w++) {
                double at_world = 0;
                for (int a = 0; a < 3; a++) at_world += matrices[m][4 * w + a] * (index[a] - 7.5);
                hit = hit && at_world > 1;
                inside = inside && fabs(at_world) < 7;
            }
            before->data[i] = hit ? 100 : inside ? 60 : 0;
            after->data[i] = hit ? 60 : before->data[i];
        }
        for (int plane = 1; plane <= 3; plane++) {
            unsigned width, height, again_width, again_height;
            unsigned char *p = draw(before, after, (resmap_plane)plane, "f.png", &width, &height);
            unsigned char *q = draw(before, after, (resmap_plane)plane, "g.png", &again_width, &again_height);
            ck_assert_uint_eq(width, again_width);
            ck_assert_mem_eq(p, q, width * height);
            free(q);
            /* The row of panels through the block, the last or the first by the storage order: 288 x 288 at (8, 28 + row *
             * 296); the columns a third of the width apart. */
            static const int across[3] = {2, 1, 0}, rows[2] = {0, 2};
            rsm_slicing slicing;
            ck_assert_int_eq(rsm_slicing_choose(&env, before, (resmap_plane)plane, &slicing), RESMAP_OK);
            int last = matrices[m][4 * across[plane - 1] + slicing.slice_axis] > 0;
            unsigned pitch = (width - 8) / 3, top = 28 + (unsigned)rows[last] * 296;
            ck_assert_uint_gt(height, 28 + 3 * 296);
            int brighter = 0;
            for (unsigned y = 0; y < 288; y++)
                for (unsigned x = 0; x < 288; x++) {
                    unsigned char *pixel = p + (top + y) * width + 8 + x;
                    int expected = x > 20 && x < 120 && y > 30 && y < 120 && x % 20 == 10 && y % 20 == 10;
                    if (expected) ck_assert_msg(*pixel > 240, "matrix %zu plane %d: %d at %u %u", m, plane, *pixel, x, y);
                    brighter += *pixel > 240;
                    if (expected) ck_assert_int_eq(pixel[pitch], 153);
                    /* the difference: white where it shrank, mid grey elsewhere */
                    if (expected) ck_assert_int_eq(pixel[2 * pitch], 255);
                    if (x > 200 && y > 200) ck_assert(pixel[2 * pitch] == 127 || pixel[2 * pitch] == 128);
                }
            ck_assert_int_gt(brighter, 288 * 288 / 8);
            ck_assert_int_lt(brighter, 288 * 288 / 3);
            free(p);
        }
        resmap_image_free(before);
        resmap_image_free(after);
    }
    /* small, flat and thin ones */
    static const size_t shapes[][3] = {{1, 2, 1}, {2, 1, 1}, {40, 1, 3}, {300, 2, 1}, {3, 3, 2}};
    for (size_t s = 0; s < 5; s++) {
        struct resmap_image *image = with_matrix(shapes[s][0], shapes[s][1], shapes[s][2], NULL);
        unsigned width, height;
        free(draw(image, image, RESMAP_PLANE_AUTO, "small.png", &width, &height));
        ck_assert_uint_gt(width, 500);
        resmap_image_free(image);
    }
    /* a constant image has no picture, and says so */
    struct resmap_image *flat = with_matrix(2, 2, 2, NULL);
    for (int i = 0; i < 8; i++) flat->data[i] = 3;
    rsm_slicing slicing;
    ck_assert_int_eq(rsm_slicing_choose(&env, flat, RESMAP_PLANE_AXIAL, &slicing), RESMAP_OK);
    FILE *stream = fopen(at("none.png"), "wb");
    ck_assert_int_eq(rsm_figure_write(&env, flat, flat, NULL, &slicing, "", "x.png", stream), RESMAP_BAD_FILE);
    fclose(stream);
    resmap_image_free(flat);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("image");
    TCase *nifti = tcase_create("nifti"), *rest = tcase_create("rest");
    tcase_set_timeout(nifti, 120);
    tcase_add_loop_test(nifti, test_types, 0, 80);
    tcase_add_loop_test(nifti, test_not_finite_kept, 0, 2);
    tcase_add_test(nifti, test_shapes);
    tcase_add_loop_test(nifti, test_geometry, 0, 4);
    tcase_add_loop_test(nifti, test_lies, 0, 4);
    tcase_add_test(nifti, test_not_files);
    tcase_add_loop_test(nifti, test_truncated, 0, 4);
    tcase_add_loop_test(nifti, test_gzip_pieces, 0, 5);
    tcase_add_test(nifti, test_gzip_claims);
    tcase_add_loop_test(nifti, test_mutations, 0, 8);
    tcase_add_loop_test(nifti, test_round_trip, 0, 8);
    tcase_add_test(nifti, test_bad_extension);
    tcase_add_test(nifti, test_created);
    tcase_add_test(nifti, test_same_grid);
    tcase_add_loop_test(nifti, test_full_disk, 0, 2);
    tcase_add_test(nifti, test_cancel);
    suite_add_tcase(suite, nifti);
    tcase_set_timeout(rest, 120);
    tcase_add_test(rest, test_outputs);
    tcase_add_test(rest, test_outputs_refused);
    tcase_add_test(rest, test_outputs_overwrite);
    tcase_add_test(rest, test_planes);
    tcase_add_test(rest, test_padding);
    tcase_add_test(rest, test_percentiles);
    tcase_add_test(rest, test_scale);
    tcase_add_test(rest, test_figure);
    suite_add_tcase(suite, rest);
    make_folder();
    int failed = run_host_suite(suite);
    remove_folder();
    return failed ? 1 : 0;
}
