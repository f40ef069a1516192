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

static inline void widen(const bf16 *from, float *to, int64_t n)
{
    const uint16_t *f = reinterpret_cast<const uint16_t *>(from);
    for (int64_t i = 0; i < n; i++) {
        uint32_t u = (uint32_t)f[i] << 16;
        std::memcpy(to + i, &u, 4);
    }
}

static inline void narrow(const float *from, bf16 *to, int64_t n)
{
    uint16_t *t = reinterpret_cast<uint16_t *>(to);
    for (int64_t i = 0; i < n; i++) {
        uint32_t u;
        std::memcpy(&u, from + i, 4);
        t[i] = (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
    }
}

static inline void widen(const float *from, float *to, int64_t n) { std::memcpy(to, from, n * sizeof(float)); }
static inline void narrow(const float *from, float *to, int64_t n) { std::memcpy(to, from, n * sizeof(float)); }

// A plane with a border of zeros, row length w + 2.
struct Plane {
    int64_t h, w, s;
    std::vector<float> v;
    Plane(int64_t h_, int64_t w_) : h(h_), w(w_), s(w_ + 2), v((h_ + 2) * (w_ + 2), 0.0f) {}
    float *row(int64_t y) { return v.data() + (y + 1) * s + 1; }
    template <typename T> void load(const T *p) { for (int64_t y = 0; y < h; y++) widen(p + y * w, row(y), w); }
};

static inline void conv_row(Plane &p, int64_t y, const float *k, float *__restrict o)
{
    const float *a = p.row(y - 1), *b = p.row(y), *c = p.row(y + 1);
    for (int64_t x = 0; x < p.w; x++)
        o[x] = k[0] * a[x - 1] + k[1] * a[x] + k[2] * a[x + 1] + k[3] * b[x - 1] + k[4] * b[x] + k[5] * b[x + 1] +
               k[6] * c[x - 1] + k[7] * c[x] + k[8] * c[x + 1];
}

static inline void weight_gradient(Plane &p, Plane &g, float *gw)
{
    float s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0, s8 = 0;
    for (int64_t y = 0; y < p.h; y++) {
        const float *a = p.row(y - 1), *b = p.row(y), *c = p.row(y + 1), *q = g.row(y);
        for (int64_t x = 0; x < p.w; x++) {
            float v = q[x];
            s0 += v * a[x - 1]; s1 += v * a[x]; s2 += v * a[x + 1];
            s3 += v * b[x - 1]; s4 += v * b[x]; s5 += v * b[x + 1];
            s6 += v * c[x - 1]; s7 += v * c[x]; s8 += v * c[x + 1];
        }
    }
    float s[9] = {s0, s1, s2, s3, s4, s5, s6, s7, s8};
    for (int i = 0; i < 9; i++)
        gw[i] += s[i];
}

static inline void flipped(const float *k, float *f)
{
    for (int i = 0; i < 9; i++)
        f[i] = k[8 - i];
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
        Plane p(H, W);
        std::vector<float> r(W);
        for (int64_t i = i0; i < i1; i++) {
            p.load(xp + i * N);
            for (int64_t y = 0; y < H; y++) {
                conv_row(p, y, wp + i % C * 9, r.data());
                narrow(r.data(), op + i * N + y * W, W);
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
        Plane p(H, W), q(H, W);
        std::vector<float> r(W);
        for (int64_t c = c0; c < c1; c++) {
            float f[9];
            flipped(wp + c * 9, f);
            for (int64_t b = 0; b < B; b++) {
                const int64_t i = b * C + c;
                p.load(xp + i * N);
                q.load(gp + i * N);
                for (int64_t y = 0; y < H; y++) {
                    conv_row(q, y, f, r.data());
                    narrow(r.data(), op + i * N + y * W, W);
                }
                weight_gradient(p, q, gwp + c * 9);
            }
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
        Plane p(H, W), q(H, W);
        std::vector<float> ra(W), rb(W);
        float *a = ra.data(), *b = rb.data();
        for (int64_t i = i0; i < i1; i++) {
            const int64_t n = i / C, c = i % C;
            p.load(xp + (n * 2 * C + c) * N);
            q.load(xp + (n * 2 * C + C + c) * N);
            for (int64_t y = 0; y < H; y++) {
                conv_row(p, y, wp + c * 9, a);
                conv_row(q, y, wp + (C + c) * 9, b);
                for (int64_t j = 0; j < W; j++)
                    a[j] = 0.5f * a[j] * (1.0f + erff(a[j] * 0.70710678f)) * b[j];
                narrow(a, op + i * N + y * W, W);
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
        Plane p(H, W), q(H, W), ga(H, W), gb(H, W);
        std::vector<float> ra(W), rb(W), rg(W);
        float *a = ra.data(), *b = rb.data(), *v = rg.data();
        for (int64_t c = c0; c < c1; c++) {
            float fa[9], fb[9];
            flipped(wp + c * 9, fa);
            flipped(wp + (C + c) * 9, fb);
            for (int64_t n = 0; n < B; n++) {
                const int64_t ia = n * 2 * C + c, ib = ia + C;
                p.load(xp + ia * N);
                q.load(xp + ib * N);
                for (int64_t y = 0; y < H; y++) {
                    conv_row(p, y, wp + c * 9, a);
                    conv_row(q, y, wp + (C + c) * 9, b);
                    widen(gp + (n * C + c) * N + y * W, v, W);
                    float *__restrict oa = ga.row(y), *__restrict ob = gb.row(y);
                    for (int64_t j = 0; j < W; j++) {
                        const float phi = 0.5f + 0.5f * erff(a[j] * 0.70710678f);
                        oa[j] = v[j] * b[j] * (phi + a[j] * 0.39894228f * expf(-0.5f * a[j] * a[j]));
                        ob[j] = v[j] * a[j] * phi;
                    }
                }
                for (int64_t y = 0; y < H; y++) {
                    conv_row(ga, y, fa, a);
                    narrow(a, op + ia * N + y * W, W);
                    conv_row(gb, y, fb, b);
                    narrow(b, op + ib * N + y * W, W);
                }
                weight_gradient(p, ga, gwp + c * 9);
                weight_gradient(q, gb, gwp + (C + c) * 9);
            }
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
                widen(xp + (b * C + c) * N + at, v, n);
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
                narrow(r, op + (b * C + c) * N + at, n);
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
            widen(xp + (b * C + c) * N + at, v, n);
            widen(gp + (b * C + c) * N + at, q, n);
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
            narrow(r, op + (b * C + c) * N + at, n);
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
