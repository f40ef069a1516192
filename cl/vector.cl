/* Put before every program: the vector that an operation works on, VECTOR (1, 4, 8 or 16) neighbouring
 * pixels. CPUs take as many floats as a register holds and run one work-item a group; other devices take 1
 * and put neighbouring pixels on neighbouring work-items. */
#ifndef VECTOR
#define VECTOR 1
#endif

/* Calls cost registers: PoCL passes vectors and arrays through memory. */
#define vec_inline static inline __attribute__((always_inline))

#if VECTOR == 1

typedef float vec;
#define vec_load(p) (*(p))
#define vec_store(v, p) (*(p) = (v))
/* The lanes moved one up or down, zero moved in. */
#define vec_up(v) (0.0f)
#define vec_down(v) (0.0f)
#define vec_sum(v) (v)

#else

#define VEC_JOIN_(a, b) a##b
#define VEC_JOIN(a, b) VEC_JOIN_(a, b)
typedef VEC_JOIN(float, VECTOR) vec;
#define vec_load(p) VEC_JOIN(vload, VECTOR)(0, (p))
#define vec_store(v, p) VEC_JOIN(vstore, VECTOR)((v), 0, (p))

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
vec_inline vec vec_load_part(__global const float *p, int n)
{
#if VECTOR > 1
    if (n >= VECTOR) return vec_load(p);
    float lanes[VECTOR];
    for (int i = 0; i < VECTOR; i++) lanes[i] = i < n ? p[i] : 0.0f;
    return vec_load(lanes);
#else
    return n > 0 ? *p : 0.0f;
#endif
}

vec_inline void vec_store_part(vec v, __global float *p, int n)
{
#if VECTOR > 1
    if (n >= VECTOR) {
        vec_store(v, p);
        return;
    }
    float lanes[VECTOR];
    vec_store(v, lanes);
    for (int i = 0; i < n; i++) p[i] = lanes[i];
#else
    if (n > 0) *p = v;
#endif
}

/* Where the vector number i of a row of `width` >= VECTOR elements begins: the last one is moved left to
 * end with the row, so that some elements are worked on twice (harmless where no element is both read and
 * written). */
#define vec_begin(i, width) min((i) * VECTOR, (width) - VECTOR)
#define vec_number(width) (((width) + VECTOR - 1) / VECTOR)

/* Of a row of `width` elements: the vectors that begin one before and one after p; outside the row there
 * are zeros. */
vec_inline vec vec_load_before(__global const float *row, int p)
{
    if (p > 0) return vec_load(row + p - 1);
    return vec_up(vec_load(row));
}

vec_inline vec vec_load_after(__global const float *row, int p, int width)
{
    if (p + VECTOR < width) return vec_load(row + p + 1);
    return vec_down(vec_load(row + p));
}
