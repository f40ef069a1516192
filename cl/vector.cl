/* Put before every program: the vector that an operation works on, VECTOR (1, 4, 8 or 16) neighbouring
 * pixels, and how maps are loaded and stored. CPUs take as many floats as a register holds and run one
 * work-item a group; other devices take 1 and put neighbouring pixels on neighbouring work-items. */
#ifndef VECTOR
#define VECTOR 1
#endif

/* Storage: the elements of the maps x and y are of X_TYPE and Y_TYPE, float or half; everything is computed
 * in float. Half needs no extension for that: vload_half and vstore_half are core OpenCL. */
#ifndef X_TYPE
#define X_TYPE float
#endif
#ifndef Y_TYPE
#define Y_TYPE float
#endif

/* Calls cost registers: PoCL passes vectors and arrays through memory. */
#define vec_inline static inline __attribute__((always_inline))

#define OF_TYPE_(name, type) name##_##type
#define OF_TYPE(name, type) OF_TYPE_(name, type)
#define VEC_WIDE_(name, width) name##width
#define VEC_WIDE(name, width) VEC_WIDE_(name, width)

/* One element, as float. */
#define scalar_load(type, p) OF_TYPE(scalar_load, type)(p)
#define scalar_store(type, v, p) OF_TYPE(scalar_store, type)(v, p)
#define scalar_load_float(p) (*(p))
#define scalar_load_half(p) vload_half(0, (p))
#define scalar_store_float(v, p) (*(p) = (v))
#define scalar_store_half(v, p) vstore_half((v), 0, (p))

/* VECTOR of them. */
#define vec_load(type, p) OF_TYPE(vec_load, type)(p)
#define vec_store(type, v, p) OF_TYPE(vec_store, type)(v, p)

#if VECTOR == 1

typedef float vec;
#define vec_load_float(p) scalar_load_float(p)
#define vec_load_half(p) scalar_load_half(p)
#define vec_store_float(v, p) scalar_store_float(v, p)
#define vec_store_half(v, p) scalar_store_half(v, p)
/* The lanes moved one up or down, zero moved in. */
#define vec_up(v) (0.0f)
#define vec_down(v) (0.0f)
#define vec_sum(v) (v)

#else

typedef VEC_WIDE(float, VECTOR) vec;
#define vec_load_float(p) VEC_WIDE(vload, VECTOR)(0, (p))
#define vec_load_half(p) VEC_WIDE(vload_half, VECTOR)(0, (p))
#define vec_store_float(v, p) VEC_WIDE(vstore, VECTOR)((v), 0, (p))
#define vec_store_half(v, p) VEC_WIDE(vstore_half, VECTOR)((v), 0, (p))

#if VECTOR == 16
#define vec_up(v) (vec)(0.0f, (v).s01234567, (v).s89ab, (v).scd, (v).se)
#define vec_down(v) (vec)((v).s12345678, (v).s9abc, (v).sde, (v).sf, 0.0f)
#elif VECTOR == 8
#define vec_up(v) (vec)(0.0f, (v).s0123, (v).s45, (v).s6)
#define vec_down(v) (vec)((v).s1234, (v).s56, (v).s7, 0.0f)
#else
#define vec_up(v) (vec)(0.0f, (v).s01, (v).s2)
#define vec_down(v) (vec)((v).s12, (v).s3, 0.0f)
#endif

/* The sum of the lanes, halves first. */
vec_inline float vec_sum(vec v)
{
#if VECTOR == 16
    const float8 a = v.lo + v.hi;
    const float4 b = a.lo + a.hi;
#elif VECTOR == 8
    const float4 b = v.lo + v.hi;
#else
    const float4 b = v;
#endif
    const float2 c = b.lo + b.hi;
    return c.x + c.y;
}

#endif

/* The first n lanes (all when n >= VECTOR, none when n <= 0); the others are zero, and their memory is not
 * touched. */
#define vec_load_part(type, p, n) OF_TYPE(vec_load_part, type)((p), (n))
#define vec_store_part(type, v, p, n) OF_TYPE(vec_store_part, type)((v), (p), (n))

#define VEC_PART(type)                                                                              \
    vec_inline vec vec_load_part_##type(__global const type *p, int n)                              \
    {                                                                                               \
        if (n >= VECTOR) return vec_load(type, p);                                                  \
        float lanes[VECTOR];                                                                        \
        for (int i = 0; i < VECTOR; i++) lanes[i] = i < n ? scalar_load(type, p + i) : 0.0f;        \
        return vec_load_float(lanes);                                                               \
    }                                                                                               \
    vec_inline void vec_store_part_##type(vec v, __global type *p, int n)                           \
    {                                                                                               \
        if (n >= VECTOR) {                                                                          \
            vec_store(type, v, p);                                                                  \
            return;                                                                                 \
        }                                                                                           \
        float lanes[VECTOR];                                                                        \
        vec_store_float(v, lanes);                                                                  \
        for (int i = 0; i < n; i++) scalar_store(type, lanes[i], p + i);                            \
    }
VEC_PART(float)
VEC_PART(half)

/* Where the vector number i of a row of `width` >= VECTOR elements begins: the last one is moved left to
 * end with the row, so that some elements are worked on twice (harmless where no element is both read and
 * written). */
#define vec_begin(i, width) min((i) * VECTOR, (width) - VECTOR)
#define vec_number(width) (((width) + VECTOR - 1) / VECTOR)

/* Of a row of `width` elements: the vectors that begin one before and one after p; outside the row there
 * are zeros. */
#define vec_load_before(type, row, p)                                                               \
    ((p) > 0 ? vec_load(type, (row) + (p) - 1) : vec_up(vec_load(type, row)))
#define vec_load_after(type, row, p, width)                                                         \
    ((p) + VECTOR < (width) ? vec_load(type, (row) + (p) + 1) : vec_down(vec_load(type, (row) + (p))))

/* Stores even[0], odd[0], even[1], ... and loads them so. */
vec_inline void vec_store_pairs(vec even, vec odd, __global float *p)
{
#if VECTOR == 1
    p[0] = even;
    p[1] = odd;
#elif VECTOR == 16
    float16 pairs;
    pairs.even = even.lo;
    pairs.odd = odd.lo;
    vstore16(pairs, 0, p);
    pairs.even = even.hi;
    pairs.odd = odd.hi;
    vstore16(pairs, 1, p);
#elif VECTOR == 8
    float16 pairs;
    pairs.even = even;
    pairs.odd = odd;
    vstore16(pairs, 0, p);
#else
    float8 pairs;
    pairs.even = even;
    pairs.odd = odd;
    vstore8(pairs, 0, p);
#endif
}

vec_inline void vec_load_pairs(vec *even, vec *odd, __global const float *p)
{
#if VECTOR == 1
    *even = p[0];
    *odd = p[1];
#elif VECTOR == 16
    const float16 low = vload16(0, p), high = vload16(1, p);
    *even = (vec)(low.even, high.even);
    *odd = (vec)(low.odd, high.odd);
#elif VECTOR == 8
    const float16 pairs = vload16(0, p);
    *even = pairs.even;
    *odd = pairs.odd;
#else
    const float8 pairs = vload8(0, p);
    *even = pairs.even;
    *odd = pairs.odd;
#endif
}
