/* C[M,N] = A[M,K] B[K,N] (+ C when accumulate), row-major, each with an offset and a stride (elements). Nothing
 * outside the matrices is read, so what lies between their rows may be anything. Sums run over k in ascending
 * order, in runs of DEPTH that are added up in C: the same every time. Products are added by a * b + c, which
 * compilers fuse where the device can, not by fma(), which devices without it emulate. B and C are of B_TYPE and
 * C_TYPE, float or half; with half DEPTH must be >= K, for sums are float.
 *
 *        N                gemm_vector (CPUs): a work-item computes COLUMNS vectors of WIDTH columns of C for a run
 *      +---+---+---+      of rows. It first copies its columns of B (DEPTH rows at a time) to a dense private
 *    K |   | B |   |      array, which stays in the caches next to the core: the rows of B itself lie so far
 *      +---+---+---+      apart, often by powers of two, that they would push each other out. Then ROWS (2, 4
 *  +---+---+---+---+      or 8) rows of C at a time are held in registers. NORM 1 or 2: B's columns are
 * M| A |   | C |   |      layer-normed on the way (without and with bias, K numbers each; see layer_norm.cl);
 *  +---+---+---+---+      DEPTH must be >= K.
 *
 *                         gemm_group (GPUs): a work-group of GROUP x GROUP items computes a square of 4 GROUP x
 *                         4 GROUP of C, 4 x 4 neighbours an item, with GROUP columns of A and rows of B at
 *                         a time in local memory.
 *
 * gemm_sub_group (GPUs with cl_intel_subgroups): a work-group, which is one sub-group of SUB_GROUP items,
 * computes 8 rows of 4 SUB_GROUP columns of C, 4 neighbours an item. Each item reads one column of A, and the
 * others have its numbers by broadcast, without local memory. */

#if !defined(WIDTH) && !defined(GROUP) && !defined(SUB_GROUP)   /* checkers of this file see the first two */
#define WIDTH 16
#define GROUP 16
#endif

#ifndef B_TYPE
#define B_TYPE float
#endif
#ifndef C_TYPE
#define C_TYPE float
#endif

#ifdef WIDTH

#ifndef DEPTH
#define DEPTH 512
#endif
#define COLUMNS 3
#define TILE (WIDTH * COLUMNS)

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define VEC JOIN(float, WIDTH)
#define VLOAD_float(i, p) JOIN(vload, WIDTH)((i), (p))
#define VLOAD_half(i, p) JOIN(vload_half, WIDTH)((i), (p))
#define VSTORE_float(v, i, p) JOIN(vstore, WIDTH)((v), (i), (p))
#define VSTORE_half(v, i, p) JOIN(vstore_half, WIDTH)((v), (i), (p))
#define VLOAD(type, i, p) OF_TYPE(VLOAD, type)(i, p)
#define VSTORE(type, v, i, p) OF_TYPE(VSTORE, type)(v, i, p)

#ifndef NORM
#define NORM 0
#endif
#ifndef ROWS
#define ROWS 8
#endif
#if ROWS == 8
#define EACH_ROW(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
#elif ROWS == 4
#define EACH_ROW(X) X(0) X(1) X(2) X(3)
#else
#define EACH_ROW(X) X(0) X(1)
#endif

#if NORM
/* Layer norm of the columns over their `depth` rows. Sums are of distances from row 0, which keeps what a large
 * common level would drown. */
vec_inline void normalise(VEC *columns, const int depth, __global const float *weight,
                          __global const float *bias)
{
    VEC mean[COLUMNS], squares[COLUMNS];
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) mean[j] = squares[j] = 0.0f;
    for (int p = 1; p < depth; p++) {
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) mean[j] += columns[p * COLUMNS + j] - columns[j];
    }
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) mean[j] *= 1.0f / (float)depth;
    for (int p = 0; p < depth; p++) {
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
            const VEC distance = columns[p * COLUMNS + j] - columns[j] - mean[j];
            squares[j] += distance * distance;
        }
    }
    VEC scale[COLUMNS], shift[COLUMNS];
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
        scale[j] = 1.0f / sqrt(squares[j] / (float)depth + 1e-5f);
        shift[j] = columns[j];
    }
    for (int p = 0; p < depth; p++) {
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) {
            const VEC value = columns[p * COLUMNS + j];
#if NORM == 2
            columns[p * COLUMNS + j] = (value - shift[j] - mean[j]) * scale[j] * weight[p] + bias[p];
#else
            columns[p * COLUMNS + j] = value * scale[j] * weight[p];
#endif
        }
    }
}
#endif

__kernel __attribute__((reqd_work_group_size(1, 1, 1)))
void gemm_vector(const int m, const int n, const int k, __global const float *a, const int a_offset,
                 const int a_stride, __global const B_TYPE *b, const int b_offset, const int b_stride,
                 __global C_TYPE *c, const int c_offset, const int c_stride, const int accumulate,
                 const int rows, __global const float *weight, const int weight_offset,
                 __global const float *bias, const int bias_offset)
{
    VEC columns[DEPTH * COLUMNS];
    const int column = (int)get_global_id(0) * TILE;
    const int width = min(n - column, TILE);
    const int first = (int)get_global_id(1) * rows;
    const int last = min(first + rows, m);
    a += a_offset;
    b += b_offset + column;
    c += c_offset + column;

    for (int k0 = 0; k0 < k; k0 += DEPTH) {
        const int depth = min(k - k0, DEPTH);
        const int add = accumulate || k0 > 0;
        if (width == TILE) {
            for (int p = 0; p < depth; p++) {
                __global const B_TYPE *from = b + (k0 + p) * b_stride;
                columns[p * COLUMNS] = VLOAD(B_TYPE, 0, from);
                columns[p * COLUMNS + 1] = VLOAD(B_TYPE, 1, from);
                columns[p * COLUMNS + 2] = VLOAD(B_TYPE, 2, from);
            }
        } else {
            float *to = (float *)columns;
            for (int p = 0; p < depth; p++) {
                __global const B_TYPE *from = b + (k0 + p) * b_stride;
                for (int j = 0; j < TILE; j++)
                    to[p * TILE + j] = j < width ? scalar_load(B_TYPE, from + j) : 0.0f;
            }
        }
#if NORM
        normalise(columns, depth, weight + weight_offset, bias + bias_offset);
#endif
        for (int row = first; row < last; row += ROWS) {
            /* Rows below the last are computed from the last, and not stored. */
#define DECLARE(r)                                                                                    \
            __global const float *a##r = a + min(row + r, m - 1) * a_stride + k0;                     \
            VEC c##r##0 = 0.0f, c##r##1 = 0.0f, c##r##2 = 0.0f;
            EACH_ROW(DECLARE)
            for (int p = 0; p < depth; p++) {
                const VEC b0 = columns[p * COLUMNS], b1 = columns[p * COLUMNS + 1];
                const VEC b2 = columns[p * COLUMNS + 2];
#define MULTIPLY(r)                                                                                   \
                {                                                                                     \
                    const VEC value = a##r[p];                                                        \
                    c##r##0 += value * b0;                                                            \
                    c##r##1 += value * b1;                                                            \
                    c##r##2 += value * b2;                                                            \
                }
                EACH_ROW(MULTIPLY)
            }
#define STORE(r)                                                                                      \
            if (row + r < last) {                                                                     \
                __global C_TYPE *to = c + (row + r) * c_stride;                                       \
                if (add) {                                                                            \
                    c##r##0 += VLOAD(C_TYPE, 0, to);                                                  \
                    c##r##1 += VLOAD(C_TYPE, 1, to);                                                  \
                    c##r##2 += VLOAD(C_TYPE, 2, to);                                                  \
                }                                                                                     \
                VSTORE(C_TYPE, c##r##0, 0, to);                                                       \
                VSTORE(C_TYPE, c##r##1, 1, to);                                                       \
                VSTORE(C_TYPE, c##r##2, 2, to);                                                       \
            }
#define KEEP(r)                                                                                       \
            rest[r * COLUMNS] = c##r##0;                                                              \
            rest[r * COLUMNS + 1] = c##r##1;                                                          \
            rest[r * COLUMNS + 2] = c##r##2;
            if (width == TILE) {
                EACH_ROW(STORE)
            } else {
                VEC rest[ROWS * COLUMNS];
                const float *value = (const float *)rest;
                EACH_ROW(KEEP)
                for (int r = 0; r < min(last - row, ROWS); r++) {
                    __global C_TYPE *to = c + (row + r) * c_stride;
                    for (int j = 0; j < width; j++) {
                        const float sum = value[r * TILE + j] + (add ? scalar_load(C_TYPE, to + j) : 0.0f);
                        scalar_store(C_TYPE, sum, to + j);
                    }
                }
            }
        }
    }
}

#endif

#if defined(GROUP) || defined(SUB_GROUP)

#define LOAD4_float(p) vload4(0, (p))
#define LOAD4_half(p) vload_half4(0, (p))
#define STORE4_float(v, p) vstore4((v), 0, (p))
#define STORE4_half(v, p) vstore_half4((v), 0, (p))
#define LOAD4(type, p) OF_TYPE(LOAD4, type)(p)
#define STORE4(type, v, p) OF_TYPE(STORE4, type)(v, p)

/* Four neighbours of a row of C, `left` of them inside. */
vec_inline void store_neighbours(float4 sum, __global C_TYPE *to, const int left, const int accumulate)
{
    if (left >= 4) {
        if (accumulate) sum += LOAD4(C_TYPE, to);
        STORE4(C_TYPE, sum, to);
    } else {
        const float values[4] = {sum.x, sum.y, sum.z, sum.w};
        for (int e = 0; e < left; e++) {
            const float total = accumulate ? scalar_load(C_TYPE, to + e) + values[e] : values[e];
            scalar_store(C_TYPE, total, to + e);
        }
    }
}

#endif

#ifdef GROUP

#define SIDE (4 * GROUP)

__kernel __attribute__((reqd_work_group_size(GROUP, GROUP, 1)))
void gemm_group(const int m, const int n, const int k, __global const float *a, const int a_offset,
                const int a_stride, __global const B_TYPE *b, const int b_offset, const int b_stride,
                __global C_TYPE *c, const int c_offset, const int c_stride, const int accumulate)
{
    /* A transposed. An item reads four rows and four columns at once: local memory gives fewer single
     * numbers than products want. One more spreads a column of A over the banks. */
    __local float4 a_tile[GROUP][GROUP + 1];
    __local float4 b_tile[GROUP][GROUP];
    const int x = (int)get_local_id(0), y = (int)get_local_id(1);
    const int column = (int)get_group_id(0) * SIDE, row = (int)get_group_id(1) * SIDE;
    __local float *a_column = (__local float *)a_tile[x], *b_row = (__local float *)b_tile[y];
    float4 sum[4] = {0.0f, 0.0f, 0.0f, 0.0f};

    for (int k0 = 0; k0 < k; k0 += GROUP) {
        /* Item (x, y) brings 4 elements of A, column k0 + x, and 4 of B, row k0 + y. */
        for (int i = 0; i < 4; i++) {
            const int r = row + y + i * GROUP, q = column + x + i * GROUP;
            a_column[y + i * GROUP] = r < m && k0 + x < k ? a[a_offset + r * a_stride + k0 + x] : 0.0f;
            __global const B_TYPE *from = b + b_offset + (k0 + y) * b_stride + q;
            b_row[x + i * GROUP] = q < n && k0 + y < k ? scalar_load(B_TYPE, from) : 0.0f;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
        for (int p = 0; p < GROUP; p++) {
            const float4 u = a_tile[p][y], v = b_tile[p][x];
            sum[0] += u.x * v;
            sum[1] += u.y * v;
            sum[2] += u.z * v;
            sum[3] += u.w * v;
        }
        barrier(CLK_LOCAL_MEM_FENCE);
    }

    const int q = column + 4 * x;
    for (int i = 0; i < 4; i++) {
        const int r = row + 4 * y + i;
        if (r < m && q < n) store_neighbours(sum[i], c + c_offset + r * c_stride + q, n - q, accumulate);
    }
}

#endif

#ifdef SUB_GROUP

#pragma OPENCL EXTENSION cl_intel_subgroups : enable
#pragma OPENCL EXTENSION cl_intel_required_subgroup_size : enable
#define SUB_ROWS 8

__kernel __attribute__((reqd_work_group_size(SUB_GROUP, 1, 1), intel_reqd_sub_group_size(SUB_GROUP)))
void gemm_sub_group(const int m, const int n, const int k, __global const float *a, const int a_offset,
                    const int a_stride, __global const B_TYPE *b, const int b_offset, const int b_stride,
                    __global C_TYPE *c, const int c_offset, const int c_stride, const int accumulate)
{
    const int lane = (int)get_sub_group_local_id();
    const int q = ((int)get_group_id(0) * SUB_GROUP + lane) * 4, row = (int)get_group_id(1) * SUB_ROWS;
    const int left = n - q;
    float4 sum[SUB_ROWS];
    a += a_offset;
    b += b_offset + q;
    c += c_offset + q;
#pragma unroll
    for (int i = 0; i < SUB_ROWS; i++) sum[i] = 0.0f;

    for (int k0 = 0; k0 < k; k0 += SUB_GROUP) {
        /* Rows below the last are computed from the last, and not stored. */
        float own[SUB_ROWS];
#pragma unroll
        for (int i = 0; i < SUB_ROWS; i++)
            own[i] = k0 + lane < k ? a[min(row + i, m - 1) * a_stride + k0 + lane] : 0.0f;
#pragma unroll
        for (int p = 0; p < SUB_GROUP; p++) {
            __global const B_TYPE *from = b + (k0 + p) * b_stride;
            float4 v = 0.0f;
            if (k0 + p < k && left >= 4) {
                v = LOAD4(B_TYPE, from);
            } else if (k0 + p < k) {
                if (left > 0) v.x = scalar_load(B_TYPE, from);
                if (left > 1) v.y = scalar_load(B_TYPE, from + 1);
                if (left > 2) v.z = scalar_load(B_TYPE, from + 2);
            }
#pragma unroll
            for (int i = 0; i < SUB_ROWS; i++) sum[i] += sub_group_broadcast(own[i], p) * v;
        }
    }

    for (int i = 0; i < SUB_ROWS; i++)
        if (row + i < m && left > 0) store_neighbours(sum[i], c + (row + i) * c_stride, left, accumulate);
}

#endif
