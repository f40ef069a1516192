// Quicker CPU kernels for training: depthwise 3x3 convolution, the same with the GELU gate behind it, and the layer norm
// without centring; each with its gradient.  Values are bfloat16 or float32 (all of a call), sums are float32.
// Maps are [batch, channels, height, width], contiguous; convolutions are padded with zeros.
#include <torch/extension.h>
#include <ATen/Parallel.h>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

typedef at::BFloat16 bf16;

// Sixteen floats; compilers split it where registers are shorter.
typedef float V __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t VI __attribute__((vector_size(64)));
typedef uint32_t VU __attribute__((vector_size(64)));
typedef uint16_t VH __attribute__((vector_size(32), aligned(2), may_alias));
static const int64_t L = 16;

static inline V load(const float *p) { return *reinterpret_cast<const V *>(p); }
static inline void store(float *p, V v) { *reinterpret_cast<V *>(p) = v; }

static inline V load(const bf16 *p)
{
    return (V)(__builtin_convertvector(*reinterpret_cast<const VH *>(p), VU) << 16);
}

static inline void store(bf16 *p, V v)
{
    const VU u = (VU)v;
    *reinterpret_cast<VH *>(p) = __builtin_convertvector((u + 0x7fff + ((u >> 16) & 1)) >> 16, VH);
}

static inline V all(float x) { return V{} + x; }

// n values from one type to the other
template <typename A, typename B>
static inline void convert(const A *from, B *to, int64_t n)
{
    int64_t i = 0;
    for (; i + L <= n; i += L)
        store(to + i, load(from + i));
    if (i < n) {
        A a[L] = {};
        B b[L];
        std::memcpy(a, from + i, (n - i) * sizeof(A));
        store(b, load(a));
        std::memcpy(to + i, b, (n - i) * sizeof(B));
    }
}

// exp(-x^2 / 2), and the normal distribution's share below x: erf by Abramowitz and Stegun 7.1.26, to 1.5e-7
static inline void normal(V x, V &density, V &below)
{
    V e = x * x * -0.72134752f;                         // log2 of the density
    e = e > -126.0f ? e : all(-126.0f);
    const VI n = __builtin_convertvector(e - 0.5f, VI); // e <= 0: rounds to the nearest
    const V f = (e - __builtin_convertvector(n, V)) * 0.69314718f;
    V p = all(1.0f / 720);
    p = p * f + 1.0f / 120;
    p = p * f + 1.0f / 24;
    p = p * f + 1.0f / 6;
    p = p * f + 0.5f;
    p = p * f + 1.0f;
    p = p * f + 1.0f;
    density = p * (V)((n + 127) << 23);
    const V z = x < 0.0f ? -x : x;
    const V t = 1.0f / (1.0f + 0.3275911f * 0.70710678f * z);
    V q = all(1.061405429f);
    q = q * t - 1.453152027f;
    q = q * t + 1.421413741f;
    q = q * t - 0.284496736f;
    q = q * t + 0.254829592f;
    const V tail = 0.5f * q * t * density;
    below = x < 0.0f ? tail : 1.0f - tail;
}

// The last three rows of a plane, each between borders of zeros and filled up with zeros to whole vectors.
struct Rows {
    int64_t s;
    std::vector<float> v;
    explicit Rows(int64_t w) : s((w + L - 1) / L * L + 2 * L), v(3 * s) {}
    float *at(int64_t y) { return v.data() + (y + 3) % 3 * s + L; }
    void clear(int64_t y) { std::memset(at(y), 0, (s - 2 * L) * sizeof(float)); }
};

// The rows about y, and what a 3x3 kernel makes of them from x on.
struct Window {
    const float *r[3];
    Window(Rows &p, int64_t y) : r{p.at(y - 1), p.at(y), p.at(y + 1)} {}
    V at(const float *k, int64_t x) const
    {
        V sum = load(r[0] + x - 1) * k[0];
        sum += load(r[0] + x) * k[1];
        sum += load(r[0] + x + 1) * k[2];
        V more = load(r[1] + x - 1) * k[3];
        more += load(r[1] + x) * k[4];
        more += load(r[1] + x + 1) * k[5];
        sum += load(r[2] + x - 1) * k[6];
        more += load(r[2] + x) * k[7];
        sum += load(r[2] + x + 1) * k[8];
        return sum + more;
    }
};

// Sums over a plane of the gradient times each of the nine neighbours.
struct Nine {
    V s[9] = {};
    void add(const Window &p, const float *g, int64_t w)
    {
        V s0 = s[0], s1 = s[1], s2 = s[2], s3 = s[3], s4 = s[4], s5 = s[5], s6 = s[6], s7 = s[7], s8 = s[8];
        for (int64_t x = 0; x < w; x += L) {
            const V v = load(g + x);
            s0 += v * load(p.r[0] + x - 1);
            s1 += v * load(p.r[0] + x);
            s2 += v * load(p.r[0] + x + 1);
            s3 += v * load(p.r[1] + x - 1);
            s4 += v * load(p.r[1] + x);
            s5 += v * load(p.r[1] + x + 1);
            s6 += v * load(p.r[2] + x - 1);
            s7 += v * load(p.r[2] + x);
            s8 += v * load(p.r[2] + x + 1);
        }
        s[0] = s0, s[1] = s1, s[2] = s2, s[3] = s3, s[4] = s4, s[5] = s5, s[6] = s6, s[7] = s7, s[8] = s8;
    }
    void sums(float *gw) const
    {
        for (int i = 0; i < 9; i++)
            for (int j = 0; j < L; j++)
                gw[i] += s[i][j];
    }
};

static inline void flipped(const float *k, float *f)
{
    for (int i = 0; i < 9; i++)
        f[i] = k[8 - i];
}

// Brings row y of a plane of h rows in, zeros behind the last.
template <typename T>
static inline void bring(Rows &p, const T *plane, int64_t y, int64_t h, int64_t w)
{
    if (y < h)
        convert(plane + y * w, p.at(y), w);
    else
        p.clear(y);
}

// The first row, with zeros before it.
template <typename T>
static inline void begin(Rows &p, const T *plane, int64_t h, int64_t w)
{
    p.clear(-1);
    bring(p, plane, 0, h, w);
}

// Row y through a kernel; `buffer` holds a row of whole vectors.
template <typename T>
static inline void conv_row(Rows &p, int64_t y, const float *k, float *buffer, T *to, int64_t w)
{
    const Window n(p, y);
    for (int64_t x = 0; x < w; x += L)
        store(buffer + x, n.at(k, x));
    convert(buffer, to, w);
}

template <typename T>
torch::Tensor dw_forward(torch::Tensor x, torch::Tensor w)
{
    const int64_t B = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), N = H * W;
    auto o = torch::empty_like(x);
    const T *xp = x.data_ptr<T>();
    T *op = o.data_ptr<T>();
    const float *wp = w.data_ptr<float>();
    at::parallel_for(0, B * C, 1, [&](int64_t i0, int64_t i1) {
        Rows p(W);
        std::vector<float> r(W + L);
        for (int64_t i = i0; i < i1; i++) {
            begin(p, xp + i * N, H, W);
            for (int64_t y = 0; y < H; y++) {
                bring(p, xp + i * N, y + 1, H, W);
                conv_row(p, y, wp + i % C * 9, r.data(), op + i * N + y * W, W);
            }
        }
    });
    return o;
}

template <typename T>
std::vector<torch::Tensor> dw_backward(torch::Tensor g, torch::Tensor x, torch::Tensor w)
{
    const int64_t B = x.size(0), C = x.size(1), H = x.size(2), W = x.size(3), N = H * W;
    auto gx = torch::empty_like(x), gw = torch::zeros_like(w);
    const T *xp = x.data_ptr<T>(), *gp = g.data_ptr<T>();
    T *op = gx.data_ptr<T>();
    const float *wp = w.data_ptr<float>();
    float *gwp = gw.data_ptr<float>();
    at::parallel_for(0, C, 1, [&](int64_t c0, int64_t c1) {
        Rows p(W), q(W);
        std::vector<float> r(W + L);
        for (int64_t c = c0; c < c1; c++) {
            float f[9];
            Nine sums;
            flipped(wp + c * 9, f);
            for (int64_t b = 0; b < B; b++) {
                const int64_t at = (b * C + c) * N;
                begin(p, xp + at, H, W);
                begin(q, gp + at, H, W);
                for (int64_t y = 0; y < H; y++) {
                    bring(p, xp + at, y + 1, H, W);
                    bring(q, gp + at, y + 1, H, W);
                    conv_row(q, y, f, r.data(), op + at + y * W, W);
                    sums.add(Window(p, y), q.at(y), W);
                }
            }
            sums.sums(gwp + c * 9);
        }
    });
    return {gx, gw};
}

template <typename T>
torch::Tensor gate_forward(torch::Tensor x, torch::Tensor w)
{
    const int64_t B = x.size(0), C = x.size(1) / 2, H = x.size(2), W = x.size(3), N = H * W;
    auto o = torch::empty({B, C, H, W}, x.options());
    const T *xp = x.data_ptr<T>();
    T *op = o.data_ptr<T>();
    const float *wp = w.data_ptr<float>();
    at::parallel_for(0, B * C, 1, [&](int64_t i0, int64_t i1) {
        Rows p(W), q(W);
        std::vector<float> r(W + L);
        for (int64_t i = i0; i < i1; i++) {
            const int64_t n = i / C, c = i % C;
            const T *a = xp + (n * 2 * C + c) * N, *b = a + C * N;
            begin(p, a, H, W);
            begin(q, b, H, W);
            for (int64_t y = 0; y < H; y++) {
                bring(p, a, y + 1, H, W);
                bring(q, b, y + 1, H, W);
                const Window pa(p, y), qb(q, y);
                for (int64_t j = 0; j < W; j += L) {
                    const V u = pa.at(wp + c * 9, j);
                    V density, below;
                    normal(u, density, below);
                    store(r.data() + j, u * below * qb.at(wp + (C + c) * 9, j));
                }
                convert(r.data(), op + i * N + y * W, W);
            }
        }
    });
    return o;
}

template <typename T>
std::vector<torch::Tensor> gate_backward(torch::Tensor g, torch::Tensor x, torch::Tensor w)
{
    const int64_t B = x.size(0), C = x.size(1) / 2, H = x.size(2), W = x.size(3), N = H * W;
    auto gx = torch::empty_like(x), gw = torch::zeros_like(w);
    const T *xp = x.data_ptr<T>(), *gp = g.data_ptr<T>();
    T *op = gx.data_ptr<T>();
    const float *wp = w.data_ptr<float>();
    float *gwp = gw.data_ptr<float>();
    at::parallel_for(0, C, 1, [&](int64_t c0, int64_t c1) {
        Rows p(W), q(W), ga(W), gb(W);
        std::vector<float> r(W + L), v(W + L);          // what lies behind v's row stays 0, and so it does for ga and gb
        for (int64_t c = c0; c < c1; c++) {
            const float *ka = wp + c * 9, *kb = ka + C * 9;
            float fa[9], fb[9];
            Nine sa, sb;
            flipped(ka, fa);
            flipped(kb, fb);
            for (int64_t n = 0; n < B; n++) {
                const int64_t ia = (n * 2 * C + c) * N, ib = ia + C * N;
                begin(p, xp + ia, H, W);
                begin(q, xp + ib, H, W);
                ga.clear(-1);
                gb.clear(-1);
                for (int64_t y = 0; y <= H; y++) {
                    if (y < H) {
                        bring(p, xp + ia, y + 1, H, W);
                        bring(q, xp + ib, y + 1, H, W);
                        convert(gp + (n * C + c) * N + y * W, v.data(), W);
                        const Window pa(p, y), qb(q, y);
                        float *oa = ga.at(y), *ob = gb.at(y);
                        for (int64_t j = 0; j < W; j += L) {
                            const V a = pa.at(ka, j), b = qb.at(kb, j), u = load(v.data() + j);
                            V density, below;
                            normal(a, density, below);
                            store(oa + j, u * b * (below + a * 0.39894228f * density));
                            store(ob + j, u * a * below);
                        }
                        sa.add(pa, oa, W);
                        sb.add(qb, ob, W);
                    } else {
                        ga.clear(y);
                        gb.clear(y);
                    }
                    if (y > 0) {                        // the rows about y - 1 are complete
                        conv_row(ga, y - 1, fa, r.data(), op + ia + (y - 1) * W, W);
                        conv_row(gb, y - 1, fb, r.data(), op + ib + (y - 1) * W, W);
                    }
                }
            }
            sa.sums(gwp + c * 9);
            sb.sums(gwp + (C + c) * 9);
        }
    });
    return {gx, gw};
}

static const int64_t CHUNK = 128;                       // pixels at a time

template <typename T>
torch::Tensor norm_forward(torch::Tensor x, torch::Tensor w)
{
    const int64_t B = x.size(0), C = x.size(1), N = x.size(2) * x.size(3), blocks = (N + CHUNK - 1) / CHUNK;
    auto o = torch::empty_like(x);
    const T *xp = x.data_ptr<T>();
    T *op = o.data_ptr<T>();
    const float *wp = w.data_ptr<float>();
    at::parallel_for(0, B * blocks, 8, [&](int64_t i0, int64_t i1) {
        std::vector<float> buf(C * CHUNK);
        float m[CHUNK], s[CHUNK], r[CHUNK];
        for (int64_t i = i0; i < i1; i++) {
            const int64_t b = i / blocks, at = i % blocks * CHUNK, n = std::min(CHUNK, N - at);
            for (int64_t j = 0; j < CHUNK; j++)
                m[j] = s[j] = 0;
            for (int64_t c = 0; c < C; c++) {
                float *v = buf.data() + c * CHUNK;
                convert(xp + (b * C + c) * N + at, v, n);
                for (int64_t j = 0; j < n; j++)
                    m[j] += v[j];
            }
            for (int64_t j = 0; j < n; j++)
                m[j] /= C;
            for (int64_t c = 0; c < C; c++) {
                const float *v = buf.data() + c * CHUNK;
                for (int64_t j = 0; j < n; j++)
                    s[j] += (v[j] - m[j]) * (v[j] - m[j]);
            }
            for (int64_t j = 0; j < n; j++)
                s[j] = 1.0f / sqrtf(s[j] / C + 1e-5f);
            for (int64_t c = 0; c < C; c++) {
                const float *v = buf.data() + c * CHUNK;
                for (int64_t j = 0; j < n; j++)
                    r[j] = v[j] * s[j] * wp[c];
                convert(r, op + (b * C + c) * N + at, n);
            }
        }
    });
    return o;
}

// y_c = x_c s w_c, s = (var + eps)^-1/2:  dx_c = g_c w_c s - s^3 / C (x_c - mean) sum_k g_k w_k x_k
template <typename T>
std::vector<torch::Tensor> norm_backward(torch::Tensor g, torch::Tensor x, torch::Tensor w)
{
    const int64_t B = x.size(0), C = x.size(1), N = x.size(2) * x.size(3), blocks = (N + CHUNK - 1) / CHUNK;
    auto gx = torch::empty_like(x), gw = torch::zeros_like(w);
    const T *xp = x.data_ptr<T>(), *gp = g.data_ptr<T>();
    T *op = gx.data_ptr<T>();
    const float *wp = w.data_ptr<float>();
    float *gwp = gw.data_ptr<float>();
    std::vector<float> xb(C * CHUNK), gb(C * CHUNK);
    float m[CHUNK], s[CHUNK], d[CHUNK], r[CHUNK];
    for (int64_t i = 0; i < B * blocks; i++) {
        const int64_t b = i / blocks, at = i % blocks * CHUNK, n = std::min(CHUNK, N - at);
        for (int64_t j = 0; j < CHUNK; j++)
            m[j] = s[j] = d[j] = 0;
        for (int64_t c = 0; c < C; c++) {
            float *v = xb.data() + c * CHUNK, *q = gb.data() + c * CHUNK;
            convert(xp + (b * C + c) * N + at, v, n);
            convert(gp + (b * C + c) * N + at, q, n);
            for (int64_t j = 0; j < n; j++) {
                m[j] += v[j];
                d[j] += q[j] * v[j] * wp[c];
            }
        }
        for (int64_t j = 0; j < n; j++)
            m[j] /= C;
        for (int64_t c = 0; c < C; c++) {
            const float *v = xb.data() + c * CHUNK;
            for (int64_t j = 0; j < n; j++)
                s[j] += (v[j] - m[j]) * (v[j] - m[j]);
        }
        for (int64_t j = 0; j < n; j++) {
            s[j] = 1.0f / sqrtf(s[j] / C + 1e-5f);
            d[j] *= s[j] * s[j] * s[j] / C;
        }
        for (int64_t c = 0; c < C; c++) {
            const float *v = xb.data() + c * CHUNK, *q = gb.data() + c * CHUNK;
            float sum = 0;
            for (int64_t j = 0; j < n; j++) {
                r[j] = q[j] * wp[c] * s[j] - d[j] * (v[j] - m[j]);
                sum += q[j] * v[j] * s[j];
            }
            gwp[c] += sum;
            convert(r, op + (b * C + c) * N + at, n);
        }
    }
    return {gx, gw};
}

template <typename T>
static void define(py::module &m)
{
    m.def("dw_forward", &dw_forward<T>);
    m.def("dw_backward", &dw_backward<T>);
    m.def("gate_forward", &gate_forward<T>);
    m.def("gate_backward", &gate_backward<T>);
    m.def("norm_forward", &norm_forward<T>);
    m.def("norm_backward", &norm_backward<T>);
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m)
{
    auto narrow = m.def_submodule("bfloat16"), wide = m.def_submodule("float32");
    define<bf16>(narrow);
    define<float>(wide);
}
