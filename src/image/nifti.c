/* NIfTI files in and out; the only file that knows nifticlib.
 *
 * nifticlib converts headers (geometry, units, versions) both ways, but never sees a file: a header that lies makes
 * it read out of bounds, and it replaces NaN by 0. So every byte is read here through zlib, the header is checked
 * here first, and only then handed over. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <nifti2_io.h>

#include "image/image.h"

#define CHUNK ((size_t)1 << 20)  /* bytes read or written between two looks at cancelling; a multiple of 8 */
#define DEFLATE_MOST 1032        /* deflate cannot expand more than this */

static pthread_once_t quiet_once = PTHREAD_ONCE_INIT;

/* nifticlib prints to stderr unless told otherwise; the switch is global. */
static void quiet(void)
{
    nifti_set_debug_level(0);
}

/* ---- Voxel types ---- */

typedef struct voxel_type {
    int code;                    /* NIFTI_TYPE_… */
    size_t bytes;                /* 0: not supported */
    const char *name;
} voxel_type;

static const voxel_type voxel_types[] = {
    {NIFTI_TYPE_UINT8, 1, "uint8"},       {NIFTI_TYPE_INT8, 1, "int8"},
    {NIFTI_TYPE_UINT16, 2, "uint16"},     {NIFTI_TYPE_INT16, 2, "int16"},
    {NIFTI_TYPE_UINT32, 4, "uint32"},     {NIFTI_TYPE_INT32, 4, "int32"},
    {NIFTI_TYPE_UINT64, 8, "uint64"},     {NIFTI_TYPE_INT64, 8, "int64"},
    {NIFTI_TYPE_FLOAT32, 4, "float32"},   {NIFTI_TYPE_FLOAT64, 8, "float64"},
    {DT_BINARY, 0, "1-bit"},              {NIFTI_TYPE_FLOAT128, 0, "float128"},
    {NIFTI_TYPE_COMPLEX64, 0, "complex"}, {NIFTI_TYPE_COMPLEX128, 0, "complex"},
    {NIFTI_TYPE_COMPLEX256, 0, "complex"},
    {NIFTI_TYPE_RGB24, 0, "RGB"},         {NIFTI_TYPE_RGBA32, 0, "RGBA"},
};

static const voxel_type *voxel_type_find(int code)
{
    for (size_t i = 0; i < sizeof voxel_types / sizeof *voxel_types; i++)
        if (voxel_types[i].code == code) return &voxel_types[i];
    return NULL;
}

static void swap_bytes(unsigned char *bytes, size_t count, size_t size)
{
    for (unsigned char *p = bytes, *end = bytes + count * size; p < end; p += size)
        for (size_t i = 0; i < size / 2; i++) {
            unsigned char t = p[i];
            p[i] = p[size - 1 - i];
            p[size - 1 - i] = t;
        }
}

#define CONVERT(type)                                                                                   \
    do {                                                                                                \
        const type *v = from;                                                                           \
        for (size_t i = 0; i < count; i++) to[i] = (float)(slope * (double)v[i] + inter);               \
    } while (0)

/* from: `count` voxels of the type in native byte order, aligned for it. */
static void convert_voxels(int code, const void *from, float *to, size_t count, double slope, double inter)
{
    switch (code) {
    case NIFTI_TYPE_UINT8: CONVERT(uint8_t); break;
    case NIFTI_TYPE_INT8: CONVERT(int8_t); break;
    case NIFTI_TYPE_UINT16: CONVERT(uint16_t); break;
    case NIFTI_TYPE_INT16: CONVERT(int16_t); break;
    case NIFTI_TYPE_UINT32: CONVERT(uint32_t); break;
    case NIFTI_TYPE_INT32: CONVERT(int32_t); break;
    case NIFTI_TYPE_UINT64: CONVERT(uint64_t); break;
    case NIFTI_TYPE_INT64: CONVERT(int64_t); break;
    case NIFTI_TYPE_FLOAT32: CONVERT(float); break;
    case NIFTI_TYPE_FLOAT64: CONVERT(double); break;
    }
}

/* ---- Bytes of a plain or compressed file ---- */

typedef struct source {
    rsm_env *env;
    const char *path;
    gzFile gz;                   /* reads plain files as they are */
    uint64_t file_bytes;         /* as stored */
} source;

static resmap_status source_open(rsm_env *env, const char *path, source *in)
{
    /* O_NONBLOCK: a pipe without a writer must give the message below, not wait. */
    int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0) return rsm_fail(env, RESMAP_BAD_FILE, "%s: %s", path, strerror(errno));
    struct stat st;
    const char *reason = NULL;
    if (fstat(fd, &st) != 0) reason = strerror(errno);
    else if (S_ISDIR(st.st_mode)) reason = "is a folder";
    else if (!S_ISREG(st.st_mode)) reason = "not a regular file";
    else if (st.st_size == 0) reason = "the file is empty";
    gzFile gz = reason ? NULL : gzdopen(fd, "rb");
    if (!gz) {
        close(fd);
        return reason ? rsm_fail(env, RESMAP_BAD_FILE, "%s: %s", path, reason) : rsm_no_memory(env, CHUNK);
    }
    gzbuffer(gz, 1 << 17);
    *in = (source){env, path, gz, (uint64_t)st.st_size};
    return RESMAP_OK;
}

/* Reads up to `size` (<= CHUNK) bytes; fewer only at the end of the file. */
static resmap_status source_read_some(source *in, void *bytes, size_t size, size_t *got)
{
    *got = 0;
    while (*got < size) {
        int n = gzread(in->gz, (char *)bytes + *got, (unsigned)(size - *got));
        if (n > 0) {
            *got += (size_t)n;
            continue;
        }
        int code = Z_OK, saved = errno;
        const char *text = gzerror(in->gz, &code);
        if (n == 0 && code != Z_BUF_ERROR) return RESMAP_OK;
        if (code == Z_ERRNO) return rsm_fail(in->env, RESMAP_BAD_FILE, "%s: %s", in->path, strerror(saved));
        if (code == Z_MEM_ERROR) return rsm_no_memory(in->env, CHUNK);
        if (code == Z_BUF_ERROR)
            return rsm_fail(in->env, RESMAP_BAD_FILE, "%s: truncated gzip stream", in->path);
        /* zlib's text is "<fd:N>: REASON" */
        const char *colon = text ? strstr(text, ": ") : NULL;
        return rsm_fail(in->env, RESMAP_BAD_FILE, "%s: damaged gzip stream (%s)", in->path,
                        colon ? colon + 2 : "data error");
    }
    return RESMAP_OK;
}

/* Reads exactly `size` (<= CHUNK) bytes of `what`. */
static resmap_status source_read(source *in, void *bytes, size_t size, const char *what)
{
    size_t got;
    RSM_TRY(source_read_some(in, bytes, size, &got));
    if (got < size) return rsm_fail(in->env, RESMAP_BAD_FILE, "%s: truncated %s", in->path, what);
    return RESMAP_OK;
}

/* ---- Checking the header ---- */

/* What the checks need of a NIfTI-1 or -2 header, in native byte order. */
typedef struct facts {
    int version;                 /* 1 or 2 */
    int swapped;
    int64_t dim[8];
    double pixdim[8];
    int datatype, bitpix;
    double vox_offset, slope, inter;
    int qform_code, sform_code;
    double qform[6];
    double sform[12];
    /* found by the checks: */
    const voxel_type *type;
    uint64_t voxels;
} facts;

typedef union any_header {
    unsigned char bytes[sizeof(nifti_2_header)];
    nifti_1_header n1;
    nifti_2_header n2;
} any_header;

#define COPY_FACTS(h)                                                                                   \
    do {                                                                                                \
        for (int i = 0; i < 8; i++) {                                                                   \
            f->dim[i] = (h)->dim[i];                                                                    \
            f->pixdim[i] = (h)->pixdim[i];                                                              \
        }                                                                                               \
        f->datatype = (h)->datatype;                                                                    \
        f->bitpix = (h)->bitpix;                                                                        \
        f->vox_offset = (double)(h)->vox_offset;                                                        \
        f->slope = (h)->scl_slope;                                                                      \
        f->inter = (h)->scl_inter;                                                                      \
        f->qform_code = (h)->qform_code;                                                                \
        f->sform_code = (h)->sform_code;                                                                \
        f->qform[0] = (h)->quatern_b;                                                                   \
        f->qform[1] = (h)->quatern_c;                                                                   \
        f->qform[2] = (h)->quatern_d;                                                                   \
        f->qform[3] = (h)->qoffset_x;                                                                   \
        f->qform[4] = (h)->qoffset_y;                                                                   \
        f->qform[5] = (h)->qoffset_z;                                                                   \
        for (int i = 0; i < 4; i++) {                                                                   \
            f->sform[i] = (h)->srow_x[i];                                                               \
            f->sform[4 + i] = (h)->srow_y[i];                                                           \
            f->sform[8 + i] = (h)->srow_z[i];                                                           \
        }                                                                                               \
    } while (0)

/* Reads the header, tells version and byte order, and turns it into native byte order. */
static resmap_status header_read(source *in, any_header *header, facts *f)
{
    size_t got;
    RSM_TRY(source_read_some(in, header->bytes, sizeof(nifti_1_header), &got));
    uint32_t size = 0, other = 0;
    if (got >= 4) {
        memcpy(&size, header->bytes, 4);
        other = size >> 24 | (size >> 8 & 0xff00u) | (size << 8 & 0xff0000u) | size << 24;
    }
    memset(f, 0, sizeof *f);
    f->swapped = other == sizeof(nifti_1_header) || other == sizeof(nifti_2_header);
    if (f->swapped) size = other;
    if (got >= 12 && memcmp(header->bytes, "<nifti_image", 12) == 0)
        return rsm_fail(in->env, RESMAP_BAD_FILE, "%s: NIfTI in ASCII (.nia) is not supported", in->path);
    if (size != sizeof(nifti_1_header) && size != sizeof(nifti_2_header))
        return rsm_fail(in->env, RESMAP_BAD_FILE, "%s: not a NIfTI file", in->path);
    if (got < sizeof(nifti_1_header))
        return rsm_fail(in->env, RESMAP_BAD_FILE, "%s: truncated header", in->path);
    if (size == sizeof(nifti_2_header))
        RSM_TRY(source_read(in, header->bytes + got, sizeof(nifti_2_header) - got, "header"));
    f->version = size == sizeof(nifti_1_header) ? 1 : 2;

    static const char single2[8] = {'n', '+', '2', 0, '\r', '\n', 032, '\n'};
    const char *magic = f->version == 1 ? header->n1.magic : header->n2.magic;
    if (magic[0] == 'n' && magic[1] == 'i' && magic[2] == (f->version == 1 ? '1' : '2'))
        return rsm_fail(in->env, RESMAP_BAD_FILE,
                        "%s: a pair of header and image files (.hdr/.img) is not supported, only single files (.nii)",
                        in->path);
    if (f->version == 1 && memcmp(magic, "n+1", 4) != 0)
        return rsm_fail(in->env, RESMAP_BAD_FILE, "%s: not a NIfTI file (ANALYZE 7.5 is not supported)", in->path);
    if (f->version == 2 && memcmp(magic, single2, 8) != 0)
        return rsm_fail(in->env, RESMAP_BAD_FILE, "%s: not a NIfTI file (bad magic)", in->path);

    if (f->swapped) swap_nifti_header(header->bytes, f->version);
    if (f->version == 1) COPY_FACTS(&header->n1);
    else COPY_FACTS(&header->n2);
    return RESMAP_OK;
}

static int all_finite(const double *values, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (!isfinite(values[i])) return 0;
    return 1;
}

/* Refuses every header that lies (contract: bad input). compressed: the file is gzip. */
static resmap_status header_check(source *in, facts *f, int compressed)
{
#define BAD(...) return rsm_fail(in->env, RESMAP_BAD_FILE, __VA_ARGS__)
    if (f->dim[0] < 1 || f->dim[0] > 7)
        BAD("%s: header claims %lld dimensions, not 1 to 7", in->path, (long long)f->dim[0]);
    int long_axes = 0;
    f->voxels = 1;
    for (int i = 1; i <= f->dim[0]; i++) {
        if (f->dim[i] <= 0) BAD("%s: header claims length %lld for axis %d", in->path, (long long)f->dim[i], i);
        if (f->voxels > UINT64_MAX / (uint64_t)f->dim[i]) BAD("%s: header claims impossible dimensions", in->path);
        f->voxels *= (uint64_t)f->dim[i];
        long_axes += f->dim[i] > 1;
    }
    if (long_axes > 4) BAD("%s: more than 4 dimensions of length above 1", in->path);

    f->type = voxel_type_find(f->datatype);
    if (!f->type) BAD("%s: header claims unknown data type %d", in->path, f->datatype);
    if (f->type->bytes == 0) BAD("%s: %s data are not supported", in->path, f->type->name);
    if (f->bitpix != (int)(8 * f->type->bytes))
        BAD("%s: header claims %d bits a voxel for %s data", in->path, f->bitpix, f->type->name);

    double first = f->version == 1 ? sizeof(nifti_1_header) + 4 : sizeof(nifti_2_header) + 4;
    /* within the file, or within what a gzip file of this size can hold; 2^62 guards the sums below */
    double most = compressed ? (double)in->file_bytes * DEFLATE_MOST + (double)CHUNK : (double)in->file_bytes;
    if (!(f->vox_offset >= first && f->vox_offset <= most) || most > 4e18)
        BAD("%s: header claims voxels at byte %g, outside the file", in->path, f->vox_offset);
    uint64_t held = (uint64_t)most - (uint64_t)f->vox_offset;
    if (f->voxels > held / f->type->bytes)
        BAD("%s: truncated, or a header that lies: %llu voxels of %u bytes do not fit in a file of %llu bytes", in->path,
            (unsigned long long)f->voxels, (unsigned)f->type->bytes, (unsigned long long)in->file_bytes);
    if (f->voxels > SIZE_MAX / 16) BAD("%s: too large for this machine", in->path);

    if (!all_finite(f->pixdim, (size_t)f->dim[0] + 1)) BAD("%s: voxel size (pixdim) is not finite", in->path);
    if (f->qform_code > 0 && !all_finite(f->qform, 6)) BAD("%s: orientation (qform) is not finite", in->path);
    if (f->sform_code > 0 && !all_finite(f->sform, 12)) BAD("%s: orientation (sform) is not finite", in->path);
    /* NIfTI: no scaling where the slope is 0; writers also put NaN for "none" */
    if (!isfinite(f->slope) || f->slope == 0) {
        f->slope = 1;
        f->inter = 0;
    }
    if (!isfinite(f->inter)) BAD("%s: intercept (scl_inter) is not finite", in->path);
    return RESMAP_OK;
#undef BAD
}

/* ---- Geometry ---- */

/* The edges in mm from the matrix; RESMAP_BAD_FILE when an axis has no direction. */
static resmap_status measure_voxel(rsm_env *env, resmap_status failure, const char *what, struct resmap_image *image)
{
    for (int a = 0; a < 3; a++) {
        const double *m = image->voxel_to_world;
        double edge = sqrt(m[a] * m[a] + m[4 + a] * m[4 + a] + m[8 + a] * m[8 + a]);
        if (!isfinite(edge) || edge > 1e6)
            return rsm_fail(env, failure, "%s: voxel-to-world matrix has impossible values", what);
        /* 2-D files may say nothing about the third axis */
        if (edge < 1e-6 && image->shape[a] > 1)
            return rsm_fail(env, failure, "%s: voxel-to-world matrix is singular", what);
        image->voxel_mm[a] = edge < 1e-6 ? 1 : edge;
    }
    return RESMAP_OK;
}

/* Extensions follow the header up to vox_offset. One whose size lies ends the list: the voxels are unharmed. */
static resmap_status read_extensions(source *in, const facts *f, nifti_image *header, uint64_t *position)
{
    unsigned char extender[4];
    RSM_TRY(source_read(in, extender, 4, "header"));
    *position += 4;
    uint64_t end = (uint64_t)f->vox_offset;
    while (extender[0] != 0 && end - *position >= 16) {
        int32_t head[2];
        RSM_TRY(source_read(in, head, sizeof head, "header extension"));
        *position += sizeof head;
        if (f->swapped) swap_bytes((unsigned char *)head, 2, 4);
        if (head[0] < 16 || head[0] % 16 != 0 || (uint64_t)head[0] - 8 > end - *position) {
            rsm_log(in->env, RESMAP_LOG_WARNING, "%s: damaged header extension dropped", in->path);
            break;
        }
        size_t size = (size_t)head[0] - 8;
        char *data = malloc(size);
        if (!data) return rsm_no_memory(in->env, size);
        resmap_status status = RESMAP_OK;
        for (size_t at = 0; at < size && status == RESMAP_OK; at += CHUNK)
            status = source_read(in, data + at, size - at < CHUNK ? size - at : CHUNK, "header extension");
        if (status == RESMAP_OK && nifti_add_extension(header, data, (int)size, head[1]) != 0)
            status = rsm_no_memory(in->env, size);
        free(data);
        RSM_TRY(status);
        *position += size;
    }
    return RESMAP_OK;
}

/* Reads on to byte `end` of the stream. */
static resmap_status skip_to(source *in, uint64_t position, uint64_t end, unsigned char *buffer)
{
    while (position < end) {
        size_t n = end - position < CHUNK ? (size_t)(end - position) : CHUNK;
        RSM_TRY(source_read(in, buffer, n, "file: the voxels are missing"));
        RSM_TRY(rsm_progress(in->env, "read", 0, 0));
        position += n;
    }
    return RESMAP_OK;
}

static resmap_status read_voxels(source *in, const facts *f, unsigned char *buffer, float *data)
{
    size_t size = f->type->bytes, total = (size_t)f->voxels;
    for (size_t done = 0; done < total;) {
        size_t n = total - done < CHUNK / size ? total - done : CHUNK / size;
        RSM_TRY(source_read(in, buffer, n * size, "file: voxels are missing"));
        if (f->swapped) swap_bytes(buffer, n, size);
        convert_voxels(f->datatype, buffer, data + done, n, f->slope, f->inter);
        done += n;
        RSM_TRY(rsm_progress(in->env, "read", done, total));
    }
    return RESMAP_OK;
}

resmap_status rsm_image_read(rsm_env *env, const char *path, struct resmap_image **result)
{
    source in = {0};
    any_header raw;
    facts f;
    struct resmap_image *image = NULL;
    unsigned char *buffer = NULL;
    nifti_image *header;
    uint64_t position;
    resmap_status status = RESMAP_OK;

    pthread_once(&quiet_once, quiet);
    RSM_CHECK(source_open(env, path, &in));
    RSM_CHECK(header_read(&in, &raw, &f));
    int compressed = !gzdirect(in.gz);
    RSM_CHECK(header_check(&in, &f, compressed));

    image = calloc(1, sizeof *image);
    buffer = malloc(CHUNK);
    if (!image || !buffer) RSM_CHECK(rsm_no_memory(env, CHUNK));

    /* NIfTI edges are lengths; nifticlib takes a negative one for 1 mm. */
    for (int i = 1; i < 4; i++) {
        if (f.version == 1) raw.n1.pixdim[i] = fabsf(raw.n1.pixdim[i]);
        else raw.n2.pixdim[i] = fabs(raw.n2.pixdim[i]);
    }
    /* without a file name: nifticlib would refuse those without .nii */
    header = f.version == 1 ? nifti_convert_n1hdr2nim(raw.n1, NULL) : nifti_convert_n2hdr2nim(raw.n2, NULL);
    if (!header) RSM_CHECK(rsm_fail(env, RESMAP_BAD_FILE, "%s: nifticlib refuses the header", path));
    image->header = header;

    nifti_dmat44 m = header->sform_code > 0 ? header->sto_xyz : header->qto_xyz;
    double mm = header->xyz_units == NIFTI_UNITS_METER ? 1e3 : header->xyz_units == NIFTI_UNITS_MICRON ? 1e-3 : 1;
    for (int i = 0; i < 12; i++) image->voxel_to_world[i] = mm * m.m[i / 4][i % 4];
    if (!all_finite(image->voxel_to_world, 12))
        RSM_CHECK(rsm_fail(env, RESMAP_BAD_FILE, "%s: voxel-to-world matrix is not finite", path));
    for (int i = 0; i < 4; i++) image->shape[i] = i < f.dim[0] ? (size_t)f.dim[i + 1] : 1;
    for (int i = 5; i <= f.dim[0]; i++) image->shape[3] *= (size_t)f.dim[i];
    image->dims = f.dim[0] < 2 ? 2 : f.dim[0] > 4 ? 4 : (int)f.dim[0];
    RSM_CHECK(measure_voxel(env, RESMAP_BAD_FILE, path, image));

    position = f.version == 1 ? sizeof(nifti_1_header) : sizeof(nifti_2_header);
    RSM_CHECK(read_extensions(&in, &f, header, &position));
    RSM_CHECK(skip_to(&in, position, (uint64_t)f.vox_offset, buffer));
    size_t bytes = rsm_bytes((size_t)f.voxels, sizeof(float));
    if (!(image->data = malloc(bytes))) RSM_CHECK(rsm_no_memory(env, bytes));
    RSM_CHECK(read_voxels(&in, &f, buffer, image->data));
    /* The checksum of a gzip stream is compared only when its end is reached. */
    for (size_t got = 1; compressed && got > 0;) {
        RSM_CHECK(source_read_some(&in, buffer, CHUNK, &got));
        RSM_CHECK(rsm_progress(env, "read", (size_t)f.voxels, (size_t)f.voxels));
    }
    *result = image;
    image = NULL;
done:
    if (in.gz) gzclose_r(in.gz);
    free(buffer);
    resmap_image_free(image);
    return status;
}

/* ---- Writing ---- */

/* Bytes to a stream, deflated or not. */
typedef struct sink {
    rsm_env *env;
    const char *path;
    FILE *stream;
    int compress;
    z_stream z;
    unsigned char out[1 << 16];
} sink;

static resmap_status sink_fail(sink *out)
{
    return rsm_fail(out->env, RESMAP_IO, "%s: cannot write: %s", out->path, strerror(errno));
}

/* flush: Z_NO_FLUSH, or Z_FINISH to end the gzip stream. */
static resmap_status sink_write(sink *out, const void *bytes, size_t size, int flush)
{
    if (!out->compress) return fwrite(bytes, 1, size, out->stream) == size ? RESMAP_OK : sink_fail(out);
    out->z.next_in = (Bytef *)(uintptr_t)bytes;   /* zlib does not write there */
    out->z.avail_in = (uInt)size;
    do {
        out->z.next_out = out->out;
        out->z.avail_out = sizeof out->out;
        deflate(&out->z, flush);
        size_t n = sizeof out->out - out->z.avail_out;
        if (fwrite(out->out, 1, n, out->stream) != n) return sink_fail(out);
    } while (out->z.avail_out == 0);
    return RESMAP_OK;
}

static int ends_with(const char *text, const char *end)
{
    size_t a = strlen(text), b = strlen(end);
    return a > b && strcmp(text + a - b, end) == 0;
}

resmap_status rsm_image_check_name(rsm_env *env, const char *path)
{
    if (ends_with(path, ".nii") || ends_with(path, ".nii.gz")) return RESMAP_OK;
    return rsm_fail(env, RESMAP_IO, "%s: the name of an image written must end in .nii or .nii.gz", path);
}

/* A header for an image that was not read from a file. */
static void header_of_created(const struct resmap_image *image, nifti_image *header)
{
    header->ndim = header->dim[0] = image->dims;
    for (int i = 1; i < 8; i++) {
        header->dim[i] = i <= 4 ? (int64_t)image->shape[i - 1] : 1;
        header->pixdim[i] = i <= 3 ? image->voxel_mm[i - 1] : 1;
    }
    header->nx = header->dim[1];
    header->ny = header->dim[2];
    header->nz = header->dim[3];
    header->nt = header->dim[4];
    header->nu = header->nv = header->nw = 1;
    header->dx = header->pixdim[1];
    header->dy = header->pixdim[2];
    header->dz = header->pixdim[3];
    header->dt = header->du = header->dv = header->dw = 1;
    header->xyz_units = NIFTI_UNITS_MM;
    header->sform_code = NIFTI_XFORM_ALIGNED_ANAT;
    for (int i = 0; i < 16; i++) header->sto_xyz.m[i / 4][i % 4] = i < 12 ? image->voxel_to_world[i] : i == 15;
    header->nifti_type = NIFTI_FTYPE_NIFTI1_1;
    for (int i = 0; i < 4; i++)
        if (image->shape[i] > INT16_MAX) header->nifti_type = NIFTI_FTYPE_NIFTI2_1;
}

/* The header to be written: the one read, told that its voxels are float32 in real units. */
static resmap_status header_to_write(rsm_env *env, const struct resmap_image *image, nifti_image **result)
{
    nifti_image *header = image->header ? nifti_copy_nim_info(image->header) : nifti_simple_init_nim();
    if (!header) return rsm_no_memory(env, sizeof *header);
    if (!image->header) header_of_created(image, header);
    header->datatype = NIFTI_TYPE_FLOAT32;
    header->nbyper = 4;
    header->swapsize = 4;
    header->nvox = 1;
    for (int i = 1; i <= header->dim[0]; i++) header->nvox *= header->dim[i];
    header->scl_slope = 1;
    header->scl_inter = 0;
    if (header->dim[0] <= 4) {   /* what a fifth axis means is said there; else it told of labels or statistics */
        header->intent_code = NIFTI_INTENT_NONE;
        header->intent_p1 = header->intent_p2 = header->intent_p3 = 0;
        memset(header->intent_name, 0, sizeof header->intent_name);
    }
    *result = header;
    return RESMAP_OK;
}

static resmap_status write_header(sink *out, nifti_image *header)
{
    any_header raw;
    int version = header->nifti_type == NIFTI_FTYPE_NIFTI2_1 ? 2 : 1;
    nifti_set_iname_offset(header, version);
    int bad = version == 1 ? nifti_convert_nim2n1hdr(header, &raw.n1) : nifti_convert_nim2n2hdr(header, &raw.n2);
    if (bad) return rsm_fail(out->env, RESMAP_INTERNAL, "%s: nifticlib refuses the header to write", out->path);
    RSM_TRY(sink_write(out, raw.bytes, version == 1 ? sizeof raw.n1 : sizeof raw.n2, Z_NO_FLUSH));
    unsigned char extender[4] = {header->num_ext > 0, 0, 0, 0};
    RSM_TRY(sink_write(out, extender, 4, Z_NO_FLUSH));
    for (int i = 0; i < header->num_ext; i++) {
        const nifti1_extension *e = &header->ext_list[i];
        int32_t head[2] = {e->esize, e->ecode};
        RSM_TRY(sink_write(out, head, sizeof head, Z_NO_FLUSH));
        RSM_TRY(sink_write(out, e->edata, (size_t)e->esize - 8, Z_NO_FLUSH));
    }
    return RESMAP_OK;
}

resmap_status rsm_image_write_stream(rsm_env *env, const struct resmap_image *image, const char *path, FILE *stream)
{
    pthread_once(&quiet_once, quiet);
    RSM_TRY(rsm_image_check_name(env, path));
    resmap_status status = RESMAP_OK;
    nifti_image *header = NULL;
    sink *out = calloc(1, sizeof *out);
    if (!out) return rsm_no_memory(env, sizeof *out);
    out->env = env;
    out->path = path;
    out->stream = stream;
    /* 15 + 16: gzip framing, which zlib writes without time and name: same voxels, same bytes */
    if (ends_with(path, ".gz")) {
        if (deflateInit2(&out->z, 4, Z_DEFLATED, 15 + 16, 8, Z_DEFAULT_STRATEGY) != Z_OK)
            RSM_CHECK(rsm_no_memory(env, (size_t)1 << 18));
        out->compress = 1;
    }
    RSM_CHECK(header_to_write(env, image, &header));
    RSM_CHECK(write_header(out, header));
    size_t total = image->shape[0] * image->shape[1] * image->shape[2] * image->shape[3];
    for (size_t done = 0; done < total;) {
        size_t n = total - done < CHUNK / sizeof(float) ? total - done : CHUNK / sizeof(float);
        RSM_CHECK(sink_write(out, image->data + done, n * sizeof(float), Z_NO_FLUSH));
        done += n;
        RSM_CHECK(rsm_progress(env, "write", done, total));
    }
    if (out->compress) RSM_CHECK(sink_write(out, NULL, 0, Z_FINISH));
    if (fflush(stream) != 0) status = sink_fail(out);
done:
    if (out->compress) deflateEnd(&out->z);
    nifti_image_free(header);
    free(out);
    return status;
}

/* ---- Images in memory ---- */

resmap_status rsm_image_create(rsm_env *env, const float *data, const size_t shape[4], const double voxel_to_world[12],
                               struct resmap_image **result)
{
    static const double identity[12] = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0};
    size_t count = 1;
    for (int i = 0; i < 4; i++) {
        if (shape[i] == 0) return rsm_fail(env, RESMAP_BAD_ARGUMENT, "image: axis %d has length 0", i);
        count = rsm_bytes(count, shape[i]);
    }
    size_t bytes = count > SIZE_MAX / 16 ? 0 : rsm_bytes(count, sizeof(float));
    if (bytes == 0) return rsm_fail(env, RESMAP_BAD_ARGUMENT, "image: too large for this machine");
    const double *matrix = voxel_to_world ? voxel_to_world : identity;
    if (!all_finite(matrix, 12))
        return rsm_fail(env, RESMAP_BAD_ARGUMENT, "image: voxel-to-world matrix is not finite");
    struct resmap_image *image = calloc(1, sizeof *image);
    if (!image) return rsm_no_memory(env, sizeof *image);
    memcpy(image->shape, shape, sizeof image->shape);
    memcpy(image->voxel_to_world, matrix, sizeof image->voxel_to_world);
    image->dims = shape[3] > 1 ? 4 : shape[2] > 1 ? 3 : 2;
    resmap_status status = measure_voxel(env, RESMAP_BAD_ARGUMENT, "image", image);
    if (status == RESMAP_OK && !(image->data = malloc(bytes))) status = rsm_no_memory(env, bytes);
    if (status != RESMAP_OK) {
        resmap_image_free(image);
        return status;
    }
    memcpy(image->data, data, bytes);
    *result = image;
    return RESMAP_OK;
}

resmap_status rsm_image_like(rsm_env *env, const struct resmap_image *like, struct resmap_image **result)
{
    size_t bytes = like->shape[0] * like->shape[1] * like->shape[2] * like->shape[3] * sizeof(float);
    struct resmap_image *image = malloc(sizeof *image);
    if (!image) return rsm_no_memory(env, sizeof *image);
    *image = *like;
    image->data = malloc(bytes);
    image->header = like->header ? nifti_copy_nim_info(like->header) : NULL;
    if (!image->data || (like->header && !image->header)) {
        resmap_image_free(image);
        return rsm_no_memory(env, bytes);
    }
    *result = image;
    return RESMAP_OK;
}

int rsm_image_same_grid(const struct resmap_image *a, const struct resmap_image *b)
{
    for (int i = 0; i < 3; i++)
        if (a->shape[i] != b->shape[i]) return 0;
    for (int i = 0; i < 12; i++)
        if (!(fabs(a->voxel_to_world[i] - b->voxel_to_world[i]) <= 1e-3)) return 0;
    return 1;
}

void resmap_image_free(resmap_image *image)
{
    if (!image) return;
    free(image->data);
    nifti_image_free(image->header);
    free(image);
}

const size_t *resmap_image_shape(const resmap_image *image)
{
    return image->shape;
}

const double *resmap_image_voxel_to_world(const resmap_image *image)
{
    return image->voxel_to_world;
}

float *resmap_image_data(resmap_image *image)
{
    return image->data;
}

const float *resmap_image_data_const(const resmap_image *image)
{
    return image->data;
}
