/* NIfTI files in and out; the only file that knows nifticlib.
 *
 * nifticlib gives the header's definitions, byte swapping and the qform's matrix, but never sees a file: a
 * header that lies makes it read out of bounds, it replaces NaN by 0, and it prints. So every byte is read
 * here through zlib and the header checked here; what is written is the header that was read, with only the
 * voxels' type changed. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include <nifti2_io.h>

#include "core/file.h"
#include "core/share.h"
#include "image/image.h"

#define CHUNK ((size_t)1 << 20)  /* bytes read or written between two looks at cancelling; a multiple of 8 */
#define DEFLATE_MOST 1032        /* deflate cannot expand more than this */

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
    int fd;
    uint64_t size;
    RSM_TRY(rsm_file_open(env, path, &fd, &size));
    gzFile gz = size ? gzdopen(fd, "rb") : NULL;
    if (!gz) {
        close(fd);
        return size ? rsm_no_memory(env, CHUNK) : rsm_fail(env, RESMAP_BAD_FILE, "%s: the file is empty", path);
    }
    gzbuffer(gz, 1 << 17);
    *in = (source){env, path, gz, size};
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

static const char magic2[8] = {'n', '+', '2', 0, '\r', '\n', 032, '\n'};

/* What an image keeps of its file, to be written back. */
struct rsm_nifti {
    int version;
    any_header raw;              /* native byte order */
    unsigned char *extensions;   /* the records after the header, their two numbers in native byte order */
    size_t extension_bytes;
};

static size_t header_bytes(int version)
{
    return version == 1 ? sizeof(nifti_1_header) : sizeof(nifti_2_header);
}

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

    const char *magic = f->version == 1 ? header->n1.magic : header->n2.magic;
    if (magic[0] == 'n' && magic[1] == 'i' && magic[2] == (f->version == 1 ? '1' : '2'))
        return rsm_fail(in->env, RESMAP_BAD_FILE,
                        "%s: a pair of header and image files (.hdr/.img) is not supported, "
                        "only single files (.nii)",
                        in->path);
    if (f->version == 1 && memcmp(magic, "n+1", 4) != 0)
        return rsm_fail(in->env, RESMAP_BAD_FILE, "%s: not a NIfTI file (ANALYZE 7.5 is not supported)",
                        in->path);
    if (f->version == 2 && memcmp(magic, magic2, sizeof magic2) != 0)
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
        if (f->dim[i] <= 0)
            BAD("%s: header claims length %lld for axis %d", in->path, (long long)f->dim[i], i);
        if (f->voxels > UINT64_MAX / (uint64_t)f->dim[i])
            BAD("%s: header claims impossible dimensions", in->path);
        f->voxels *= (uint64_t)f->dim[i];
        long_axes += f->dim[i] > 1;
    }
    if (long_axes > 4) BAD("%s: more than 4 dimensions of length above 1", in->path);

    f->type = voxel_type_find(f->datatype);
    if (!f->type) BAD("%s: header claims unknown data type %d", in->path, f->datatype);
    if (f->type->bytes == 0) BAD("%s: %s data are not supported", in->path, f->type->name);
    if (f->bitpix != (int)(8 * f->type->bytes))
        BAD("%s: header claims %d bits a voxel for %s data", in->path, f->bitpix, f->type->name);

    double first = (double)header_bytes(f->version) + 4;
    /* within the file, or within what a gzip file of this size can hold; 2^62 guards the sums below */
    double most = compressed ? (double)in->file_bytes * DEFLATE_MOST + (double)CHUNK : (double)in->file_bytes;
    if (!(f->vox_offset >= first && f->vox_offset <= most) || most > 4e18)
        BAD("%s: header claims voxels at byte %g, %s", in->path, f->vox_offset,
            f->vox_offset >= 0 && f->vox_offset < first ? "within the header" : "outside the file");
    uint64_t held = (uint64_t)most - (uint64_t)f->vox_offset;
    if (f->voxels > held / f->type->bytes)
        BAD("%s: truncated, or a header that lies: %llu voxels of %u bytes do not fit in a file of %llu "
            "bytes",
            in->path, (unsigned long long)f->voxels, (unsigned)f->type->bytes,
            (unsigned long long)in->file_bytes);
    if (f->voxels > SIZE_MAX / 16) BAD("%s: too large for this machine", in->path);

    if (!all_finite(f->pixdim, (size_t)f->dim[0] + 1)) BAD("%s: voxel size (pixdim) is not finite", in->path);
    if (f->qform_code > 0 && !all_finite(f->qform, 6)) BAD("%s: orientation (qform) is not finite", in->path);
    if (f->sform_code > 0 && !all_finite(f->sform, 12))
        BAD("%s: orientation (sform) is not finite", in->path);
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
static resmap_status measure_voxel(rsm_env *env, resmap_status failure, const char *what,
                                   struct resmap_image *image)
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
    const double *m = image->voxel_to_world, *mm = image->voxel_mm;
    double volume = m[0] * (m[5] * m[10] - m[6] * m[9]) - m[1] * (m[4] * m[10] - m[6] * m[8]) + m[2] * (m[4] * m[9] - m[5] * m[8]);
    if (image->shape[0] > 1 && image->shape[1] > 1 && image->shape[2] > 1 && fabs(volume) < 1e-6 * mm[0] * mm[1] * mm[2])
        return rsm_fail(env, failure, "%s: voxel-to-world matrix is singular", what);
    return RESMAP_OK;
}

/* sform before qform before voxel sizes, as NIfTI has it; in mm. */
static void find_matrix(const facts *f, int xyzt_units, double matrix[12])
{
    double edge[3];
    for (int a = 0; a < 3; a++) edge[a] = f->pixdim[a + 1] != 0 ? fabs(f->pixdim[a + 1]) : 1;
    if (f->sform_code > 0) {
        memcpy(matrix, f->sform, sizeof f->sform);
    } else if (f->qform_code > 0) {
        const double *q = f->qform;
        nifti_dmat44 m = nifti_quatern_to_dmat44(q[0], q[1], q[2], q[3], q[4], q[5], edge[0], edge[1],
                                                 edge[2], f->pixdim[0] < 0 ? -1 : 1);
        for (int i = 0; i < 12; i++) matrix[i] = m.m[i / 4][i % 4];
    } else {
        for (int i = 0; i < 12; i++) matrix[i] = i % 5 == 0 ? edge[i / 4] : 0;
    }
    int units = XYZT_TO_SPACE(xyzt_units);
    double mm = units == NIFTI_UNITS_METER ? 1e3 : units == NIFTI_UNITS_MICRON ? 1e-3 : 1;
    for (int i = 0; i < 12; i++) matrix[i] *= mm;
}

/* Extensions follow the header up to vox_offset. One whose size lies ends the list, the voxels unharmed. */
static resmap_status read_extensions(source *in, const facts *f, struct rsm_nifti *header, uint64_t *position)
{
    unsigned char extender[4];
    RSM_TRY(source_read(in, extender, 4, "header"));
    *position += 4;
    uint64_t end = (uint64_t)f->vox_offset;
    while (extender[0] != 0 && end - *position >= 16) {
        int32_t head[2];         /* bytes of the record, this head included; meaning */
        RSM_TRY(source_read(in, head, sizeof head, "header extension"));
        *position += sizeof head;
        if (f->swapped) swap_bytes((unsigned char *)head, 2, 4);
        if (head[0] < 16 || head[0] % 16 != 0 || (uint64_t)head[0] - sizeof head > end - *position) {
            rsm_log(in->env, RESMAP_LOG_WARNING, "%s: damaged header extension dropped", in->path);
            break;
        }
        size_t size = (size_t)head[0];
        unsigned char *grown = realloc(header->extensions, header->extension_bytes + size);
        if (!grown) return rsm_no_memory(in->env, header->extension_bytes + size);
        header->extensions = grown;
        unsigned char *record = grown + header->extension_bytes;
        memcpy(record, head, sizeof head);
        for (size_t at = sizeof head; at < size; at += CHUNK)
            RSM_TRY(source_read(in, record + at, size - at < CHUNK ? size - at : CHUNK, "header extension"));
        header->extension_bytes += size;
        *position += size - sizeof head;
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
    facts f;
    struct resmap_image *image = NULL;
    struct rsm_nifti *header;
    unsigned char *buffer = NULL;
    resmap_status status = RESMAP_OK;

    RSM_CHECK(source_open(env, path, &in));
    image = calloc(1, sizeof *image);
    buffer = malloc(CHUNK);
    if (!image || !buffer || !(image->path = rsm_strdup(path)) ||
        !(header = image->header = calloc(1, sizeof *header))) {
        status = rsm_no_memory(env, CHUNK);
        goto done;
    }
    RSM_CHECK(header_read(&in, &header->raw, &f));
    header->version = f.version;
    int compressed = !gzdirect(in.gz);
    RSM_CHECK(header_check(&in, &f, compressed));

    for (int i = 0; i < 4; i++) image->shape[i] = i < f.dim[0] ? (size_t)f.dim[i + 1] : 1;
    for (int i = 5; i <= f.dim[0]; i++) image->shape[3] *= (size_t)f.dim[i];
    image->dims = f.dim[0] < 2 ? 2 : f.dim[0] > 4 ? 4 : (int)f.dim[0];
    find_matrix(&f, f.version == 1 ? header->raw.n1.xyzt_units : header->raw.n2.xyzt_units,
                image->voxel_to_world);
    RSM_CHECK(measure_voxel(env, RESMAP_BAD_FILE, path, image));

    uint64_t position = header_bytes(f.version);
    RSM_CHECK(read_extensions(&in, &f, header, &position));
    RSM_CHECK(skip_to(&in, position, (uint64_t)f.vox_offset, buffer));
    size_t bytes = rsm_bytes((size_t)f.voxels, sizeof(float));
    if (!(image->data = malloc(bytes))) {
        status = rsm_fail(env, RESMAP_NO_MEMORY, "%s: no memory for its %llu voxels", path,
                          (unsigned long long)f.voxels);
        goto done;
    }
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

/* Every CHUNK of the stream is deflated by itself, so that several processors can; their number does not show
 * in what is written. Level 4: float voxels hardly shrink more at higher ones. */
enum { MOST_DEFLATERS = 16, LEVEL = 4 };

typedef struct piece {
    const unsigned char *from;
    size_t size;
    int last;
    unsigned char *to;           /* room for `room` bytes */
    size_t written;
    uLong crc;
} piece;

/* Bytes to a stream, as they are or as one member of a gzip file. */
typedef struct sink {
    rsm_env *env;
    const char *path;
    FILE *stream;
    /* To deflate: a piece for every deflater, and the bytes gathered for them. NULL and 0 else. */
    size_t deflaters, filled, room;
    unsigned char *gathered;
    piece pieces[MOST_DEFLATERS];
    rsm_env envs[MOST_DEFLATERS];
    uLong crc;
    uint64_t size;
} sink;

static resmap_status sink_fail(sink *out)
{
    return rsm_fail(out->env, RESMAP_IO, "%s: cannot write: %s", out->path, strerror(errno));
}

static resmap_status sink_put(sink *out, const void *bytes, size_t size)
{
    return fwrite(bytes, 1, size, out->stream) == size ? RESMAP_OK : sink_fail(out);
}

static resmap_status deflate_piece(void *data, size_t deflater, size_t number)
{
    sink *out = data;
    piece *p = &out->pieces[number];
    z_stream z;
    memset(&z, 0, sizeof z);
    if (deflateInit2(&z, LEVEL, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY) != Z_OK)   /* no frame of zlib's */
        return rsm_no_memory(&out->envs[deflater], (size_t)1 << 18);
    z.next_in = (Bytef *)(uintptr_t)p->from;     /* zlib does not write there */
    z.avail_in = (uInt)p->size;
    z.next_out = p->to;
    z.avail_out = (uInt)out->room;
    /* Ends at a byte, for the next piece to follow. */
    int code = deflate(&z, p->last ? Z_FINISH : Z_SYNC_FLUSH), whole = z.avail_in == 0 && z.avail_out > 0;
    p->written = out->room - z.avail_out;
    p->crc = crc32(crc32(0, NULL, 0), p->from, (uInt)p->size);
    deflateEnd(&z);
    return whole && code == (p->last ? Z_STREAM_END : Z_OK)
        ? RESMAP_OK : rsm_fail(&out->envs[deflater], RESMAP_INTERNAL, "%s: deflating: %d", out->path, code);
}

/* Deflates and writes what is gathered. */
static resmap_status sink_flush(sink *out, int last)
{
    size_t count = 0;
    rsm_env leader = {0};    /* progress is for the caller to report */
    rsm_sharer sharers[MOST_DEFLATERS];
    memset(sharers, 0, sizeof sharers);
    do {                                         /* one at least, which may be empty */
        piece *p = &out->pieces[count];
        size_t left = out->filled - count * CHUNK;
        p->from = out->gathered + count * CHUNK;
        p->size = left < CHUNK ? left : CHUNK;
        p->last = last && left <= CHUNK;
        sharers[count].env = &out->envs[count];
        count++;
    } while (out->filled > count * CHUNK);
    const rsm_work work = {"write", count, 1, deflate_piece, rsm_any_piece, out};
    resmap_status status = rsm_share(&leader, &work, sharers, count);
    if (status != RESMAP_OK) return rsm_fail(out->env, status, "%s", leader.error);
    for (size_t i = 0; i < count; i++) {
        const piece *p = &out->pieces[i];
        RSM_TRY(sink_put(out, p->to, p->written));
        out->crc = crc32_combine(out->crc, p->crc, (z_off_t)p->size);
        out->size += p->size;
    }
    out->filled = 0;
    return RESMAP_OK;
}

static resmap_status sink_write(sink *out, const void *bytes, size_t size)
{
    const unsigned char *from = bytes;
    if (!out->deflaters) return sink_put(out, bytes, size);
    while (size > 0) {
        size_t most = out->deflaters * CHUNK - out->filled, n = size < most ? size : most;
        memcpy(out->gathered + out->filled, from, n);
        out->filled += n;
        from += n;
        size -= n;
        if (n == most) RSM_TRY(sink_flush(out, 0));
    }
    return RESMAP_OK;
}

static void put_little(unsigned char *at, uint64_t value)
{
    for (int i = 0; i < 4; i++) at[i] = (unsigned char)(value >> (8 * i));
}

/* Begins a gzip file, without time and name: same voxels, same bytes. total: bytes to come, or more. */
static resmap_status sink_start_gzip(sink *out, size_t total)
{
    static const unsigned char head[10] = {0x1f, 0x8b, Z_DEFLATED, 0, 0, 0, 0, 0, 0, 3};
    long processors = sysconf(_SC_NPROCESSORS_ONLN);
    size_t most = processors > MOST_DEFLATERS ? MOST_DEFLATERS : processors > 1 ? (size_t)processors : 1;
    out->deflaters = total / CHUNK + 1 < most ? total / CHUNK + 1 : most;
    out->room = compressBound(CHUNK) + 64;       /* and what a flush adds */
    out->gathered = malloc(out->deflaters * (CHUNK + out->room));
    if (!out->gathered) return rsm_no_memory(out->env, out->deflaters * (CHUNK + out->room));
    for (size_t i = 0; i < out->deflaters; i++)
        out->pieces[i].to = out->gathered + out->deflaters * CHUNK + i * out->room;
    out->crc = crc32(0, NULL, 0);
    return sink_put(out, head, sizeof head);
}

static resmap_status sink_end(sink *out)
{
    unsigned char tail[8];
    if (out->deflaters) {
        RSM_TRY(sink_flush(out, 1));
        put_little(tail, out->crc);
        put_little(tail + 4, out->size);
        RSM_TRY(sink_put(out, tail, sizeof tail));
    }
    return fflush(out->stream) == 0 ? RESMAP_OK : sink_fail(out);
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

/* The header of an image that was not read from a file; `raw` is zero. */
static int header_of_created(const struct resmap_image *image, any_header *raw)
{
    int version = 1;
    for (int i = 0; i < 4; i++)
        if (image->shape[i] > INT16_MAX) version = 2;
#define FILL(h, real, integer)                                                                          \
    do {                                                                                                \
        (h)->sizeof_hdr = (int)header_bytes(version);                                                   \
        (h)->dim[0] = (integer)image->dims;                                                             \
        for (int i = 1; i < 8; i++) (h)->dim[i] = i <= 4 ? (integer)image->shape[i - 1] : 1;            \
        (h)->pixdim[0] = 1;                                                                             \
        for (int i = 1; i < 8; i++) (h)->pixdim[i] = i <= 3 ? (real)image->voxel_mm[i - 1] : 1;         \
        (h)->xyzt_units = NIFTI_UNITS_MM;                                                               \
        (h)->sform_code = NIFTI_XFORM_ALIGNED_ANAT;                                                     \
        for (int i = 0; i < 4; i++) {                                                                   \
            (h)->srow_x[i] = (real)image->voxel_to_world[i];                                            \
            (h)->srow_y[i] = (real)image->voxel_to_world[4 + i];                                        \
            (h)->srow_z[i] = (real)image->voxel_to_world[8 + i];                                        \
        }                                                                                               \
    } while (0)
    if (version == 1) {
        memcpy(raw->n1.magic, "n+1", 4);
        FILL(&raw->n1, float, int16_t);
    } else {
        memcpy(raw->n2.magic, magic2, sizeof magic2);
        FILL(&raw->n2, double, int64_t);
    }
#undef FILL
    return version;
}

/* The header read, told that float32 in real units follows. An intent spoke of labels or statistics, except
 * in files with a fifth axis, whose meaning it is. */
#define TELL_FLOAT(h)                                                                                   \
    do {                                                                                                \
        (h)->datatype = NIFTI_TYPE_FLOAT32;                                                             \
        (h)->bitpix = 32;                                                                               \
        (h)->scl_slope = 1;                                                                             \
        (h)->scl_inter = 0;                                                                             \
        (h)->vox_offset = first;                                                                        \
        if ((h)->dim[0] > 4) break;                                                                     \
        (h)->intent_code = NIFTI_INTENT_NONE;                                                           \
        (h)->intent_p1 = (h)->intent_p2 = (h)->intent_p3 = 0;                                           \
        memset((h)->intent_name, 0, sizeof (h)->intent_name);                                           \
    } while (0)

static resmap_status write_header(sink *out, const struct resmap_image *image)
{
    const struct rsm_nifti *from = image->header;
    any_header raw;
    memset(&raw, 0, sizeof raw);
    if (from) raw = from->raw;
    int version = from ? from->version : header_of_created(image, &raw);
    size_t extensions = from ? from->extension_bytes : 0, first = header_bytes(version) + 4 + extensions;
    if (version == 1) TELL_FLOAT(&raw.n1);
    else TELL_FLOAT(&raw.n2);
    unsigned char extender[4] = {extensions > 0, 0, 0, 0};
    RSM_TRY(sink_write(out, raw.bytes, header_bytes(version)));
    RSM_TRY(sink_write(out, extender, 4));
    return extensions ? sink_write(out, from->extensions, extensions) : RESMAP_OK;
}

resmap_status rsm_image_write_stream(rsm_env *env, const struct resmap_image *image, const char *path,
                                     FILE *stream)
{
    RSM_TRY(rsm_image_check_name(env, path));
    resmap_status status = RESMAP_OK;
    sink *out = calloc(1, sizeof *out);
    if (!out) return rsm_no_memory(env, sizeof *out);
    out->env = env;
    out->path = path;
    out->stream = stream;
    size_t total = image->shape[0] * image->shape[1] * image->shape[2] * image->shape[3];
    if (ends_with(path, ".gz")) RSM_CHECK(sink_start_gzip(out, total * sizeof(float)));
    RSM_CHECK(write_header(out, image));
    for (size_t done = 0; done < total;) {
        size_t n = total - done < CHUNK / sizeof(float) ? total - done : CHUNK / sizeof(float);
        RSM_CHECK(sink_write(out, image->data + done, n * sizeof(float)));
        done += n;
        RSM_CHECK(rsm_progress(env, "write", done, total));
    }
    status = sink_end(out);
done:
    free(out->gathered);
    free(out);
    return status;
}

/* ---- Images in memory ---- */

resmap_status rsm_image_create(rsm_env *env, const float *data, const size_t shape[4],
                               const double voxel_to_world[12], struct resmap_image **result)
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
    if (status != RESMAP_OK) goto done;
    if (!(image->data = malloc(bytes))) {
        status = rsm_no_memory(env, bytes);
        goto done;
    }
    memcpy(image->data, data, bytes);
    *result = image;
    image = NULL;
done:
    resmap_image_free(image);
    return status;
}

static struct rsm_nifti *header_copy(const struct rsm_nifti *from)
{
    struct rsm_nifti *copy = malloc(sizeof *copy);
    if (!copy) return NULL;
    *copy = *from;
    if (!from->extensions) return copy;
    copy->extensions = malloc(from->extension_bytes);
    if (!copy->extensions) {
        free(copy);
        return NULL;
    }
    memcpy(copy->extensions, from->extensions, from->extension_bytes);
    return copy;
}

resmap_status rsm_image_like(rsm_env *env, const struct resmap_image *like, struct resmap_image **result)
{
    size_t bytes = like->shape[0] * like->shape[1] * like->shape[2] * like->shape[3] * sizeof(float);
    struct resmap_image *image = malloc(sizeof *image);
    if (!image) return rsm_no_memory(env, sizeof *image);
    *image = *like;
    image->path = NULL;
    image->data = malloc(bytes);
    image->header = NULL;
    if (!image->data || (like->header && !(image->header = header_copy(like->header)))) {
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

resmap_status rsm_image_check_mask(rsm_env *env, const struct resmap_image *mask, const struct resmap_image *image, const char *name)
{
    if (mask->shape[3] == 1 && rsm_image_same_grid(image, mask)) return RESMAP_OK;
    return rsm_fail(env, RESMAP_BAD_FILE, "%s: not on the grid of %s", mask->path ? mask->path : "mask", name);
}

void resmap_image_free(resmap_image *image)
{
    if (!image) return;
    free(image->path);
    free(image->data);
    if (image->header) free(image->header->extensions);
    free(image->header);
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
