/* The synthesizer: against its NumPy reference (tests/vectors/make_artifacts.py), against theory, on the
 * plain-C path and on every OpenCL device. */
#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/philox.h"
#include "image/image.h"
#include "resmap.h"
#include "synth/synth.h"
#include "tests/devices.h"
#include "tests/run.h"
#include "tests/tensors.h"

static const double PI = 3.14159265358979323846;

static rsm_env env;
static test_device *devices;
static int device_count;

#define OK(call) ck_assert_msg((call) == RESMAP_OK, "%s", env.error)

/* On OpenCL all is float32: 1e-5 of the range, the promise across devices. The reference is float64. */
static double bound_of(int device)
{
    return device == 0 ? 1e-12 : 1e-5;
}

/* ---- Buffers of float64 volumes ---- */

static rsm_buffer *put(rsm_device *device, const double *x, size_t count)
{
    rsm_buffer *buffer;
    OK(rsm_buffer_create(device, count, &buffer));
    double *host = rsm_buffer_host(buffer);
    if (host) memcpy(host, x, count * sizeof *x);
    else {
        float *values = malloc(count * sizeof *values);
        for (size_t i = 0; i < count; i++) values[i] = (float)x[i];
        OK(rsm_buffer_write(device, buffer, 0, values, count));
        free(values);
    }
    return buffer;
}

static double *get(rsm_device *device, rsm_buffer *buffer)
{
    const size_t count = rsm_buffer_count(buffer);
    const double *host = rsm_buffer_host(buffer);
    double *x = malloc(count * sizeof *x);
    if (host) memcpy(x, host, count * sizeof *x);
    else {
        float *values = malloc(count * sizeof *values);
        OK(rsm_buffer_read(device, buffer, 0, values, count));
        for (size_t i = 0; i < count; i++) x[i] = values[i];
        free(values);
    }
    return x;
}

static double difference(const double *a, const double *b, size_t count)
{
    double most = 0.0;
    for (size_t i = 0; i < count; i++) {
        double d = fabs(a[i] - b[i]);
        if (!(d <= most)) most = d;
    }
    return most;
}

static double largest(const double *a, size_t count)
{
    double most = 0.0;
    for (size_t i = 0; i < count; i++) most = fmax(most, fabs(a[i]));
    return most;
}

static double mean_of(const double *x, size_t count)
{
    double sum = 0.0;
    for (size_t i = 0; i < count; i++) sum += x[i];
    return sum / (double)count;
}

static double *ramp_volume(size_t count)
{
    double *x = malloc(count * sizeof *x);
    for (size_t i = 0; i < count; i++) x[i] = 0.2 + 0.8 * (double)(i * 2654435761u % 1000) / 1000.0;
    return x;
}

/* ---- Against NumPy ---- */

static const char *const cases[] = {
    "noise",
    "noise_blur",
    "noise_rician",
    "noise_frame2",
    "bias_1",
    "bias_3",
    "bias_5",
    "bias_flat",
    "motion",
    "motion_even",
    "motion_translation",
    "motion_rotation",
    "motion_flat",
    "motion_zero",
    "paper",
    "mild",
    "moderate",
    "severe",
    "two",
};
enum { CASES = sizeof cases / sizeof *cases };

typedef struct test_case {
    tensors *file;
    json_t *root;
    rsm_record record;
    size_t shape[4], count, frame;
    double voxel_mm[3];
    const tensor *x, *y;
} test_case;

static void case_open(const char *name, test_case *c)
{
    memset(c, 0, sizeof *c);
    c->file = tensors_open("artifacts");
    c->root = json_loads(tensors_metadata(c->file, name), 0, NULL);
    ck_assert_ptr_nonnull(c->root);
    c->x = tensors_get(c->file, "x.%s", json_string_value(json_object_get(c->root, "volume")));
    c->y = tensors_get(c->file, "y.%s", name);
    for (int a = 0; a < 3; a++) {
        c->shape[a] = c->x->shape[2 - a];
        c->voxel_mm[a] = json_number_value(json_array_get(json_object_get(c->root, "voxel_mm"), (size_t)a));
    }
    c->count = c->x->count;
    c->shape[3] = 1;
    c->frame = (size_t)json_integer_value(json_object_get(c->root, "frame"));
    char *text = json_dumps(json_object_get(c->root, "record"), 0);
    OK(rsm_record_read(&env, name, text, strlen(text), c->shape, &c->record));
    free(text);
}

static void case_close(test_case *c)
{
    rsm_record_clear(&c->record);
    json_decref(c->root);
    tensors_close(c->file);
}

/* As synth.c does it, in scaled units. */
static double *apply(rsm_device *device, const test_case *c)
{
    rsm_buffer *volume = put(device, c->x->values, c->count);
    double *log_means = calloc(c->record.count, sizeof *log_means);
    for (size_t i = 0; i < c->record.count; i++)
        if (c->record.artifacts[i].kind == RSM_ARTIFACT_BIAS)
            OK(rsm_bias_measure(device, &c->record.artifacts[i].of.bias, c->shape, volume,
                                mean_of(c->x->values, c->count), &log_means[i]));
    for (size_t i = 0; i < c->record.count; i++) {
        const rsm_artifact *a = &c->record.artifacts[i];
        if (rsm_artifact_idle(a)) continue;
        if (a->kind == RSM_ARTIFACT_MOTION)
            OK(rsm_motion_apply(device, &a->of.motion, c->shape, c->voxel_mm, volume));
        if (a->kind == RSM_ARTIFACT_BIAS)
            OK(rsm_bias_apply(device, &a->of.bias, c->shape, log_means[i], volume));
        if (a->kind == RSM_ARTIFACT_NOISE)
            OK(rsm_noise_apply(device, &a->of.noise, c->shape, c->frame, volume));
    }
    double *y = get(device, volume);
    rsm_buffer_free(volume);
    free(log_means);
    return y;
}

START_TEST(numpy_artifacts)
{
    test_case c;
    case_open(cases[_i], &c);
    for (int d = 0; d < device_count; d++) {
        double *y = apply(devices[d].device, &c), *again = apply(devices[d].device, &c);
        const double error = difference(y, c.y->values, c.count);
        ck_assert_msg(error <= bound_of(d) * fmax(1.0, d == 0 ? largest(c.y->values, c.count) : 1.0),
                      "%s on %s: %g", cases[_i], devices[d].specification, error);
        ck_assert_msg(memcmp(y, again, c.count * sizeof *y) == 0, "%s on %s: not the same twice", cases[_i],
                      devices[d].specification);
        free(y);
        free(again);
    }
    case_close(&c);
}
END_TEST

START_TEST(numpy_random_numbers)
{
    tensors *file = tensors_open("artifacts");
    const tensor *philox = tensors_get(file, "philox"), *n1 = tensors_get(file, "normal1"),
                 *n2 = tensors_get(file, "normal2");
    ck_assert_uint_eq(n1->count, 16);
    for (uint32_t i = 0; i < 16; i++) {
        const uint32_t key[2] = {7, 0}, counter[4] = {i, 0, 0, 0};
        uint32_t words[4];
        double pair[2];
        rsm_philox(key, counter, words);
        for (size_t k = 0; k < 4; k++) ck_assert_double_eq((double)words[k], philox->values[4 * i + k]);
        rsm_normal_pair(i, 7, 0, 0, pair);
        ck_assert_double_eq_tol(pair[0], n1->values[i], 1e-14);
        ck_assert_double_eq_tol(pair[1], n2->values[i], 1e-14);
    }
    tensors_close(file);
}
END_TEST

/* Numbers within 1e-12 (libraries' sines differ in the last digit), all else equal. */
static void same_json(const json_t *a, const json_t *b, const char *where)
{
    if (json_is_number(a) && json_is_number(b)) {
        const double x = json_number_value(a), y = json_number_value(b);
        ck_assert_msg(fabs(x - y) <= 1e-12 * fmax(1.0, fabs(y)), "%s: %.17g, not %.17g", where, x, y);
        return;
    }
    ck_assert_msg(json_typeof(a) == json_typeof(b), "%s: another type", where);
    if (json_is_array(a)) {
        ck_assert_msg(json_array_size(a) == json_array_size(b), "%s: another length", where);
        for (size_t i = 0; i < json_array_size(a); i++)
            same_json(json_array_get(a, i), json_array_get(b, i), where);
    } else if (json_is_object(a)) {
        const char *key;
        json_t *value;
        ck_assert_msg(json_object_size(a) == json_object_size(b), "%s: other entries", where);
        json_object_foreach((json_t *)b, key, value) {
            ck_assert_msg(json_object_get(a, key) != NULL, "%s: no %s", where, key);
            same_json(json_object_get(a, key), value, key);
        }
    } else ck_assert_msg(json_equal(a, b), "%s: differs", where);
}

/* The same seed draws the same record in both languages. */
START_TEST(numpy_draws)
{
    static const char *const names[] = {"paper",  "mild",        "moderate",    "severe", "two",
                                        "motion", "motion_even", "motion_flat", "bias_5", "noise_rician"};
    static const int axes[] = {2, 2, 2, 2, 1, 2, 2, 2, 2, 0};
    test_case c;
    case_open(names[_i], &c);
    resmap_synth_options options;
    resmap_synth_options_init(&options);
    options.seed = c.record.seed;
    for (size_t i = 0; i < c.record.count; i++) {
        const rsm_artifact *a = &c.record.artifacts[i];
        if (a->kind == RSM_ARTIFACT_MOTION) {
            options.artifacts |= RESMAP_MOTION;
            options.motion_mm = a->of.motion.sigma_mm;
            options.motion_deg = a->of.motion.sigma_deg;
            if (strcmp(names[_i], "motion_even") != 0) options.motion_percent = a->of.motion.percent;
        } else if (a->kind == RSM_ARTIFACT_BIAS) {
            options.artifacts |= RESMAP_BIAS;
            options.bias_order = a->of.bias.order;
            options.bias_bound = a->of.bias.bound;
        } else {
            options.artifacts |= RESMAP_NOISE;
            options.noise_sigma = a->of.noise.sigma;
            options.noise_blur = a->of.noise.blur;
            options.rician = a->of.noise.rician;
        }
    }
    if (c.record.preset[0]) options.preset = c.record.preset;
    rsm_record drawn;
    char *text;
    OK(rsm_record_draw(&env, &options, c.shape, axes[_i], &drawn));
    OK(rsm_record_write(&env, &drawn, &text));
    json_t *got = json_loads(text, 0, NULL);
    same_json(got, json_object_get(c.root, "record"), names[_i]);
    json_decref(got);
    free(text);
    rsm_record_clear(&drawn);
    case_close(&c);
}
END_TEST

/* ---- Noise against theory ---- */

START_TEST(gaussian_moments)
{
    const size_t shape[3] = {100, 100, 100}, count = 1000000;
    const rsm_noise noise = {.sigma = 0.1, .seed = 123, .axis = 2};
    double *x = calloc(count, sizeof *x);
    for (int d = 0; d < device_count; d++) {
        rsm_buffer *volume = put(devices[d].device, x, count);
        OK(rsm_noise_apply(devices[d].device, &noise, shape, 0, volume));
        double *y = get(devices[d].device, volume), mean = mean_of(y, count), second = 0.0, fourth = 0.0;
        for (size_t i = 0; i < count; i++) {
            double s = (y[i] - mean) * (y[i] - mean);
            second += s;
            fourth += s * s;
        }
        second /= (double)count - 1.0;
        fourth /= (double)count;
        ck_assert_double_eq_tol(mean, 0.0, 0.0005);
        ck_assert_msg(fabs(sqrt(second) / 0.1 - 1.0) <= 0.005, "standard deviation %g", sqrt(second));
        ck_assert_msg(fabs(fourth / (second * second) - 3.0) <= 0.05, "kurtosis %g",
                      fourth / (second * second));
        free(y);
        rsm_buffer_free(volume);
    }
    free(x);
}
END_TEST

/* Rayleigh where there is no signal; E[M^2] = A^2 + 2 sigma^2 everywhere. */
START_TEST(rician_moments)
{
    const size_t shape[3] = {100, 100, 100}, count = 1000000, half = 500000;
    const double sigma = 0.1, amplitude = 0.15;
    const rsm_noise noise = {.sigma = sigma, .rician = 1, .seed = 77, .axis = 2};
    double *x = calloc(count, sizeof *x);
    for (size_t i = half; i < count; i++) x[i] = amplitude;
    for (int d = 0; d < device_count; d++) {
        rsm_buffer *volume = put(devices[d].device, x, count);
        OK(rsm_noise_apply(devices[d].device, &noise, shape, 0, volume));
        double *y = get(devices[d].device, volume), mean = mean_of(y, half), square = 0.0, with_signal = 0.0;
        for (size_t i = 0; i < half; i++) square += y[i] * y[i];
        for (size_t i = half; i < count; i++) with_signal += y[i] * y[i];
        square /= (double)half;
        with_signal /= (double)half;
        const double deviation = sqrt(square - mean * mean);
        ck_assert_msg(fabs(mean / (sigma * sqrt(PI / 2.0)) - 1.0) < 0.01, "mean %g", mean);
        ck_assert_msg(fabs(deviation / (sigma * sqrt(2.0 - PI / 2.0)) - 1.0) < 0.01, "deviation %g",
                      deviation);
        ck_assert_msg(fabs(square / (2.0 * sigma * sigma) - 1.0) < 0.01, "mean square %g", square);
        ck_assert_msg(fabs(with_signal / (amplitude * amplitude + 2.0 * sigma * sigma) - 1.0) < 0.01,
                      "mean square %g", with_signal);
        free(y);
        rsm_buffer_free(volume);
    }
    free(x);
}
END_TEST

/* ---- Bias: the log of the field is the polynomial ---- */

START_TEST(bias_polynomial)
{
    const size_t shape[3] = {23, 9, 14}, count = 23 * 9 * 14;
    double *x = ramp_volume(count);
    for (int order = 1; order <= RSM_MAX_BIAS_ORDER; order++) {
        rsm_bias bias = {.order = order};
        for (size_t i = 0; i < rsm_bias_terms(order); i++)
            bias.coefficients[i] = 0.9 * sin(3.0 * (double)i + order);
        for (int d = 0; d < device_count; d++) {
            rsm_buffer *volume = put(devices[d].device, x, count);
            double log_mean, threshold = mean_of(x, count), sum = 0.0;
            size_t inside = 0;
            OK(rsm_bias_measure(devices[d].device, &bias, shape, volume, threshold, &log_mean));
            OK(rsm_bias_apply(devices[d].device, &bias, shape, log_mean, volume));
            double *y = get(devices[d].device, volume);
            for (size_t v = 0; v < count; v++) {
                const double X = 2.0 * (double)(v % 23) / 22.0 - 1.0,
                             Y = 2.0 * (double)(v / 23 % 9) / 8.0 - 1.0;
                const double Z = 2.0 * (double)(v / 207) / 13.0 - 1.0;
                double polynomial = 0.0;
                size_t term = 0;
                for (int a = 0; a <= order; a++)
                    for (int b = 0; a + b <= order; b++)
                        for (int e = 0; a + b + e <= order; e++)
                            polynomial += bias.coefficients[term++] * pow(X, a) * pow(Y, b) * pow(Z, e);
                const double fitted = log(y[v] / x[v]) + log_mean;
                ck_assert_msg(fabs(fitted - polynomial) <= 1e-4, "order %d, voxel %zu: %g, not %g", order, v,
                              fitted, polynomial);
                if (x[v] > threshold) {
                    sum += y[v] / x[v];
                    inside++;
                }
            }
            /* its mean over the foreground is 1 */
            ck_assert_double_eq_tol(sum / (double)inside, 1.0, 1e-6);
            free(y);
            rsm_buffer_free(volume);
        }
    }
    free(x);
}
END_TEST

/* ---- Motion against the physics ---- */

/* The DFT by its definition along one axis of complex data; stride in complex numbers. */
static void dft(double *data, size_t n, size_t stride, size_t count, int sign)
{
    double *line = malloc(2 * n * sizeof *line);
    for (size_t l = 0; l < count / n; l++) {
        double *first = data + 2 * (l % stride + l / stride * stride * n);
        for (size_t k = 0; k < n; k++) {
            line[2 * k] = line[2 * k + 1] = 0.0;
            for (size_t j = 0; j < n; j++) {
                const double angle = sign * 2.0 * PI * (double)(j * k % n) / (double)n;
                const double *x = first + 2 * j * stride;
                line[2 * k] += x[0] * cos(angle) - x[1] * sin(angle);
                line[2 * k + 1] += x[0] * sin(angle) + x[1] * cos(angle);
            }
        }
        for (size_t k = 0; k < n; k++) memcpy(first + 2 * k * stride, line + 2 * k, 2 * sizeof *line);
    }
    free(line);
}

/* Hybrid space back in storage order, taken to k-space along the two axes that are not yet. */
static double *kspace_of(rsm_device *device, const rsm_hybrid *h, const size_t shape[3])
{
    const size_t count = shape[0] * shape[1] * shape[2], strides[3] = {1, shape[0], shape[0] * shape[1]};
    double *values = get(device, h->values), *k = malloc(2 * count * sizeof *k);
    for (size_t p = 0; p < h->lines; p++)
        for (size_t b = 0; b < h->rows; b++)
            for (size_t a = 0; a < h->columns; a++)
                memcpy(k
                           + 2
                                 * (p * strides[h->phase_axis] + b * strides[h->row_axis]
                                    + a * strides[h->column_axis]),
                       values + 2 * ((p * h->rows + b) * h->columns + a), 2 * sizeof *k);
    dft(k, h->columns, strides[h->column_axis], count, -1);
    dft(k, h->rows, strides[h->row_axis], count, -1);
    free(values);
    return k;
}

static double *kspace_of_volume(const double *x, const size_t shape[3])
{
    const size_t count = shape[0] * shape[1] * shape[2];
    double *k = calloc(2 * count, sizeof *k);
    size_t stride = 1;
    for (size_t i = 0; i < count; i++) k[2 * i] = x[i];
    for (int a = 0; a < 3; a++) {
        dft(k, shape[a], stride, count, -1);
        stride *= shape[a];
    }
    return k;
}

/* All lines moved by one translation, with each axis as the phase axis: outside the protected band k-space is
 * that of the still object times the analytic phase ramp, inside it is untouched. */
START_TEST(translation_ramp)
{
    const size_t shape[3] = {8, 11, 9}, count = 8 * 11 * 9;
    const double voxel_mm[3] = {0.9, 1.3, 2.0}, t[3] = {1.7, -2.4, 3.1};
    double *x = ramp_volume(count), *still = kspace_of_volume(x, shape);
    const double size = largest(still, 2 * count);
    for (int phase = 0; phase < 3; phase++) {
        const size_t n = shape[phase];
        rsm_motion motion = {.frequency_axis = (phase + 1) % 3, .phase_axis = phase, .run_count = 1};
        motion.runs[0] = (rsm_run){.start = 0, .count = n, .translation_mm = {t[0], t[1], t[2]}};
        size_t first, kept, moved_lines = 0;
        rsm_motion_protected(n, &first, &kept);
        ck_assert_uint_ge(kept, 1);
        for (int d = 0; d < device_count; d++) {
            rsm_buffer *volume = put(devices[d].device, x, count);
            rsm_hybrid hybrid;
            OK(rsm_motion_assemble(devices[d].device, &motion, shape, voxel_mm, volume, &hybrid));
            double *k = kspace_of(devices[d].device, &hybrid, shape), worst_moved = 0.0, worst_kept = 0.0;
            for (size_t i = 0; i < count; i++) {
                const size_t index[3] = {i % 8, i / 8 % 11, i / 88};
                double angle = 0.0;
                for (int a = 0; a < 3; a++) {
                    const double signed_index = index[a] <= (shape[a] - 1) / 2
                                                    ? (double)index[a]
                                                    : (double)index[a] - (double)shape[a];
                    angle -= 2.0 * PI * signed_index / ((double)shape[a] * voxel_mm[a]) * t[a];
                }
                const size_t line = (index[phase] + n / 2) % n;
                const int protected_line = line >= first && line < first + kept;
                if (protected_line) angle = 0.0;
                const double re = still[2 * i] * cos(angle) - still[2 * i + 1] * sin(angle);
                const double im = still[2 * i] * sin(angle) + still[2 * i + 1] * cos(angle);
                const double error = hypot(k[2 * i] - re, k[2 * i + 1] - im);
                if (protected_line) worst_kept = fmax(worst_kept, error);
                else worst_moved = fmax(worst_moved, error), moved_lines++;
            }
            ck_assert_msg(worst_moved <= 1e-5 * size, "axis %d on %s: %g of %g", phase,
                          devices[d].specification, worst_moved, size);
            ck_assert_msg(worst_kept <= 1e-5 * size, "axis %d on %s, kept: %g of %g", phase,
                          devices[d].specification, worst_kept, size);
            free(k);
            rsm_hybrid_clear(&hybrid);
            rsm_buffer_free(volume);
        }
        ck_assert_uint_gt(moved_lines, 0);
    }
    free(x);
    free(still);
}
END_TEST

/* A copy turned by 90 degrees about an axis lands on voxels: the lines are those of the volume with its axes
 * swapped, on voxels of unequal edges whose lengths match in mm. */
START_TEST(rotation_quarter)
{
    const size_t shape[3] = {9, 9, 5}, count = 9 * 9 * 5;
    const double voxel_mm[3] = {1.5, 1.5, 2.0};
    double *x = ramp_volume(count), *turned = malloc(count * sizeof *turned);
    /* R = Rz(90): (X, Y) goes to (-Y, X) */
    for (size_t i = 0; i < count; i++) {
        const size_t X = i % 9, Y = i / 9 % 9, Z = i / 81;
        turned[(8 - Y) + 9 * X + 81 * Z] = x[i];
    }
    double *expected = kspace_of_volume(turned, shape);
    const double size = largest(expected, 2 * count);
    rsm_motion motion = {.frequency_axis = 0, .phase_axis = 1, .run_count = 1};
    motion.runs[0] = (rsm_run){.start = 0, .count = 9, .rotation_deg = {0.0, 0.0, 90.0}};
    size_t first, kept;
    rsm_motion_protected(9, &first, &kept);
    for (int d = 0; d < device_count; d++) {
        rsm_buffer *volume = put(devices[d].device, x, count);
        rsm_hybrid hybrid;
        OK(rsm_motion_assemble(devices[d].device, &motion, shape, voxel_mm, volume, &hybrid));
        double *k = kspace_of(devices[d].device, &hybrid, shape);
        for (size_t i = 0; i < count; i++) {
            const size_t line = (i / 9 % 9 + 4) % 9;
            if (line >= first && line < first + kept) continue;
            ck_assert_msg(hypot(k[2 * i] - expected[2 * i], k[2 * i + 1] - expected[2 * i + 1])
                              <= 1e-5 * size,
                          "number %zu on %s", i, devices[d].specification);
        }
        free(k);
        rsm_hybrid_clear(&hybrid);
        rsm_buffer_free(volume);
    }
    free(x);
    free(turned);
    free(expected);
}
END_TEST

/* Sizes that neither clFFT nor a radix knows, protected bands: the device equals the plain C. */
START_TEST(motion_sizes)
{
    static const size_t shapes[][3] = {{17, 8, 23}, {8, 218, 3}, {19, 211, 1}, {311, 5, 8}, {26, 31, 26}};
    const size_t *shape = shapes[_i], count = shape[0] * shape[1] * shape[2];
    const double voxel_mm[3] = {0.7, 0.7, 1.9};
    const size_t shape4[4] = {shape[0], shape[1], shape[2], 1};
    double *x = ramp_volume(count), *plain = NULL;
    resmap_synth_options options;
    rsm_record record;
    resmap_synth_options_init(&options);
    options.artifacts = RESMAP_MOTION;
    options.motion_mm = 6.0;
    options.motion_deg = 6.0;
    options.motion_percent = 60.0;
    options.seed = (uint64_t)_i;
    OK(rsm_record_draw(&env, &options, shape4, 2, &record));
    ck_assert(!rsm_artifact_idle(&record.artifacts[0]));
    for (int d = 0; d < device_count; d++) {
        rsm_buffer *volume = put(devices[d].device, x, count);
        OK(rsm_motion_apply(devices[d].device, &record.artifacts[0].of.motion, shape, voxel_mm, volume));
        double *y = get(devices[d].device, volume);
        if (d == 0) {
            plain = y;
            ck_assert(difference(x, y, count) > 0.01);
        } else {
            ck_assert_msg(difference(plain, y, count) <= 1e-5, "%s: %g", devices[d].specification,
                          difference(plain, y, count));
            free(y);
        }
        rsm_buffer_free(volume);
    }
    rsm_record_clear(&record);
    free(plain);
    free(x);
}
END_TEST

/* ---- The whole: images, records ---- */

static resmap_image *head_image(const size_t shape[4])
{
    const size_t count = shape[0] * shape[1] * shape[2] * shape[3];
    const double matrix[12] = {0.9, 0, 0, -5, 0, 1.1, 0, -6, 0, 0, 2.4, -7};
    float *data = malloc(count * sizeof *data);
    resmap_image *image;
    for (size_t i = 0; i < count; i++) {
        double d = 0.0;
        size_t rest = i;
        for (int a = 0; a < 3; a++) {
            double at = shape[a] > 1 ? 2.0 * (double)(rest % shape[a]) / (double)(shape[a] - 1) - 1.0 : 0.0;
            d += at * at;
            rest /= shape[a];
        }
        data[i] = d < 0.8 ? (float)(300.0 + 200.0 * (double)(i * 2654435761u % 1000) / 1000.0) : 3.0f;
    }
    OK(rsm_image_create(&env, data, shape, matrix, &image));
    free(data);
    return image;
}

static size_t voxels(const resmap_image *image)
{
    return image->shape[0] * image->shape[1] * image->shape[2] * image->shape[3];
}

/* Corrupting again, and from the record, gives the same bytes on each device; devices agree within 1e-5 of
 * hi. */
START_TEST(repeats)
{
    static const size_t shapes[][4] = {{13, 10, 9, 1}, {20, 17, 1, 1}, {12, 9, 7, 3}};
    const size_t *shape = shapes[_i / 2];
    resmap_image *clean = head_image(shape), *plain = NULL;
    resmap_synth_options options;
    resmap_synth_options_init(&options);
    options.seed = 41;
    options.preset = _i % 2 ? "paper" : "moderate";      /* the fields of `paper` magnify the rounding of float32 */
    options.artifacts = RESMAP_MOTION | RESMAP_BIAS | (_i % 2 ? 0 : RESMAP_NOISE);
    for (int d = 0; d < device_count; d++) {
        resmap_image *one, *two, *three;
        char *record, *record_again;
        OK(rsm_synth(&env, devices[d].device, clean, &options, NULL, 0, NULL, &one, &record));
        OK(rsm_synth(&env, devices[d].device, clean, &options, NULL, 0, NULL, &two, NULL));
        OK(rsm_synth(&env, devices[d].device, clean, NULL, record, strlen(record), "record", &three,
                     &record_again));
        ck_assert_int_eq(memcmp(one->data, two->data, voxels(clean) * sizeof *one->data), 0);
        ck_assert_int_eq(memcmp(one->data, three->data, voxels(clean) * sizeof *one->data), 0);
        ck_assert_str_eq(record, record_again);
        free(record);
        free(record_again);
        resmap_image_free(two);
        resmap_image_free(three);
        if (d > 0) {
            for (size_t f = 0; f < shape[3]; f++) {
                const size_t count = voxels(clean) / shape[3];
                rsm_scale scale;
                int constant;
                OK(rsm_scale_measure(&env, "clean", clean->data + f * count, NULL, count, &scale, &constant));
                for (size_t i = f * count; i < (f + 1) * count; i++)
                    ck_assert_msg(fabs((double)one->data[i] - plain->data[i]) <= 1e-5 * scale.hi,
                                  "%s, voxel %zu: %g, not %g", devices[d].specification, i,
                                  (double)one->data[i], (double)plain->data[i]);
            }
            resmap_image_free(one);
        } else plain = one;
    }
    resmap_image_free(plain);
    resmap_image_free(clean);
}
END_TEST

/* Sigmas of zero return the input to the bit; frames of a 4-D file are drawn apart. */
START_TEST(zero_and_frames)
{
    const size_t shape[4] = {12, 11, 8, 2};
    resmap_image *clean = head_image(shape), *out;
    resmap_synth_options options;
    char *text;
    resmap_synth_options_init(&options);
    options.artifacts = RESMAP_MOTION | RESMAP_BIAS | RESMAP_NOISE;
    for (int d = 0; d < device_count; d++) {
        OK(rsm_synth(&env, devices[d].device, clean, &options, NULL, 0, NULL, &out, NULL));
        ck_assert_int_eq(memcmp(out->data, clean->data, voxels(clean) * sizeof *out->data), 0);
        resmap_image_free(out);
    }
    options.noise_sigma = 0.1;
    options.motion_mm = options.motion_deg = 3.0;
    OK(rsm_synth(&env, NULL, clean, &options, NULL, 0, NULL, &out, &text));
    json_t *root = json_loads(text, 0, NULL), *list = json_object_get(root, "artifacts");
    ck_assert_uint_eq(json_array_size(list), 6);
    for (size_t i = 0; i < 6; i++)
        ck_assert_int_eq(json_integer_value(json_object_get(json_array_get(list, i), "frame")),
                         (json_int_t)(i / 3));
    ck_assert(!json_equal(json_object_get(json_array_get(list, 0), "runs"),
                          json_object_get(json_array_get(list, 3), "runs")));
    json_decref(root);
    free(text);
    resmap_image_free(out);

    /* a constant frame passes; a file of nothing else is refused */
    const size_t count = voxels(clean) / 2;
    for (size_t i = 0; i < count; i++) clean->data[i] = 5.0f;
    OK(rsm_synth(&env, NULL, clean, &options, NULL, 0, NULL, &out, &text));
    ck_assert_ptr_null(strstr(text, "\"frame\": 0"));       /* nothing was applied to it */
    ck_assert_ptr_nonnull(strstr(text, "\"frame\": 1"));
    free(text);
    ck_assert_int_eq(memcmp(out->data, clean->data, count * sizeof *out->data), 0);
    ck_assert_int_ne(memcmp(out->data + count, clean->data + count, count * sizeof *out->data), 0);
    resmap_image_free(out);
    for (size_t i = 0; i < count; i++) clean->data[count + i] = 6.0f;
    ck_assert_int_eq(rsm_synth(&env, NULL, clean, &options, NULL, 0, NULL, &out, NULL), RESMAP_BAD_FILE);
    clean->data[3] = NAN;
    ck_assert_int_eq(rsm_synth(&env, NULL, clean, &options, NULL, 0, NULL, &out, NULL), RESMAP_BAD_FILE);
    ck_assert_str_eq(env.error, "image: a voxel is not finite in float32");
    resmap_image_free(clean);
}
END_TEST

static int stop_at_once(void *data, const char *what, size_t done, size_t total)
{
    (void)data;
    (void)what;
    (void)total;
    return done >= 1;
}

START_TEST(cancelling)
{
    const size_t shape[4] = {12, 11, 8, 1};
    resmap_image *clean = head_image(shape), *out = NULL;
    resmap_synth_options options;
    resmap_synth_options_init(&options);
    options.artifacts = RESMAP_MOTION;
    options.preset = "severe";
    env.progress = stop_at_once;
    for (int d = 0; d < device_count; d++) {
        uint64_t bytes[2];       /* plans of transforms are kept, volumes are not */
        for (int i = 0; i < 2; i++) {
            ck_assert_int_eq(rsm_synth(&env, devices[d].device, clean, &options, NULL, 0, NULL, &out, NULL),
                             RESMAP_CANCELLED);
            ck_assert_ptr_null(out);
            bytes[i] = rsm_device_bytes(devices[d].device);
        }
        ck_assert_uint_eq(bytes[0], bytes[1]);
    }
    env.progress = NULL;
    resmap_image_free(clean);
}
END_TEST

static int calls_left;

static int stop_once(void *data, const char *what, size_t done, size_t total)
{
    (void)data;
    (void)what;
    (void)done;
    (void)total;
    return --calls_left == 0;
}

/* A callback that asks once is heard wherever that is: in the making of transforms, too. */
START_TEST(cancelling_once)
{
    const size_t shape[4] = {12, 11, 8, 1};
    resmap_image *clean = head_image(shape);
    resmap_synth_options options;
    resmap_synth_options_init(&options);
    options.artifacts = RESMAP_MOTION;
    options.preset = "severe";
    env.progress = stop_once;
    for (int d = 0; d < device_count; d++) {
        int heard = 1;
        for (int call = 1; heard; call++) {
            rsm_device *device;              /* one that has made nothing yet */
            resmap_image *out = NULL;
            OK(rsm_device_open(&env, devices[d].specification, &device));
            calls_left = call;
            resmap_status status = rsm_synth(&env, device, clean, &options, NULL, 0, NULL, &out, NULL);
            heard = calls_left <= 0;
            ck_assert_msg(status == (heard ? RESMAP_CANCELLED : RESMAP_OK), "%s, call %d: status %d",
                          devices[d].specification, call, (int)status);
            resmap_image_free(out);
            rsm_device_close(device);
        }
    }
    env.progress = NULL;
    resmap_image_free(clean);
}
END_TEST

/* ---- What is refused ---- */

START_TEST(bad_options)
{
    const size_t shape[4] = {12, 11, 8, 1}, line[4] = {40, 1, 1, 1};
    resmap_synth_options good, bad;
    rsm_record record;
    double coefficients[56] = {0};
    resmap_synth_options_init(&good);
    good.artifacts = RESMAP_MOTION | RESMAP_BIAS | RESMAP_NOISE;
    OK(rsm_record_draw(&env, &good, shape, 2, &record));
    rsm_record_clear(&record);
    for (int i = 0;; i++) {
        bad = good;
        switch (i) {
        case 0: bad.noise_sigma = -1.0; break;
        case 1: bad.noise_sigma = NAN; break;
        case 2: bad.noise_blur = -0.1; break;
        case 3: bad.noise_blur = 1e9; break;
        case 4: bad.bias_order = 0; break;
        case 5: bad.bias_order = 9; break;
        case 6: bad.bias_bound = -1.0; break;
        case 7: bad.bias_bound = INFINITY; break;
        case 8: bad.motion_mm = -1.0; break;
        case 9: bad.motion_deg = 1e6; break;
        case 10: bad.motion_percent = 150.0; break;
        case 11: bad.motion_percent = NAN; break;
        case 12: bad.preset = "awful"; break;
        case 13: bad.artifacts = 0; break;
        case 14: bad.artifacts = 8; break;
        case 15: bad.seed = UINT64_MAX; break;
        case 16: coefficients[3] = NAN; bad.bias_coefficients = coefficients; break;
        default: goto done;
        }
        ck_assert_msg(rsm_record_draw(&env, &bad, shape, 2, &record) == RESMAP_BAD_ARGUMENT, "number %d", i);
        ck_assert_ptr_null(strchr(env.error, '\n'));
    }
done:
    /* a line has no phase axis */
    ck_assert_int_eq(rsm_record_draw(&env, &good, line, 2, &record), RESMAP_BAD_FILE);
}
END_TEST

#define NOISE "{\"kind\":\"noise\",\"sigma\":0.1,\"blur\":0,\"rician\":false,\"seed\":1,\"axis\":2}"
#define BIAS "{\"kind\":\"bias\",\"order\":1,\"coefficients\":[0,1,2,3]}"
#define MOTION(axes, runs)                                                                                   \
    "{\"kind\":\"motion\",\"sigma_mm\":1,\"sigma_deg\":1,\"percent\":20," axes ",\"runs\":[" runs "]}"
#define AXES "\"frequency_axis\":0,\"phase_axis\":1"
#define RUN(start, count)                                                                                    \
    "{\"start\":" start ",\"count\":" count ",\"translation_mm\":[1,0,0],\"rotation_deg\":[0,0,5]}"
#define RECORD(list) "{\"seed\":1,\"preset\":null,\"artifacts\":[" list "]}"

START_TEST(bad_records)
{
    static const char *const good[] = {
        RECORD(NOISE),
        RECORD(BIAS "," NOISE),
        RECORD(MOTION(AXES, RUN("0", "3") "," RUN("3", "8")) "," BIAS "," NOISE),
        RECORD(MOTION(AXES, "")),
        "{\"seed\":1,\"artifacts\":[" NOISE "],\"more\":[1]}",
    };
    static const char *const bad[] = {
        "",
        "{",
        "[]",
        "nonsense",
        "{\"seed\":1}",
        "{\"seed\":-1,\"artifacts\":[" NOISE "]}",
        "{\"seed\":1.5,\"artifacts\":[" NOISE "]}",
        "{\"seed\":99999999999999999999,\"artifacts\":[" NOISE "]}",
        "{\"seed\":1,\"seed\":2,\"artifacts\":[" NOISE "]}",
        "{\"seed\":1,\"preset\":7,\"artifacts\":[" NOISE "]}",
        "{\"seed\":1,\"preset\":\"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\",\"artifacts\":[" NOISE
        "]}",
        RECORD(""),
        RECORD("7"),
        RECORD("{}"),
        RECORD("{\"kind\":\"ghosting\"}"),
        RECORD(NOISE "," NOISE),
        RECORD(NOISE "," BIAS),
        RECORD(BIAS "," MOTION(AXES, "")),
        RECORD(NOISE "," NOISE "," NOISE "," NOISE),
        RECORD("{\"kind\":\"noise\",\"sigma\":-0.1,\"blur\":0,\"seed\":1,\"axis\":2}"),
        RECORD("{\"kind\":\"noise\",\"sigma\":1e300,\"blur\":0,\"seed\":1,\"axis\":2}"),
        RECORD("{\"kind\":\"noise\",\"sigma\":\"0.1\",\"blur\":0,\"seed\":1,\"axis\":2}"),
        RECORD("{\"kind\":\"noise\",\"sigma\":0.1,\"blur\":1e9,\"seed\":1,\"axis\":2}"),
        RECORD("{\"kind\":\"noise\",\"sigma\":0.1,\"blur\":0,\"seed\":1,\"axis\":3}"),
        RECORD("{\"kind\":\"noise\",\"sigma\":0.1,\"blur\":0,\"rician\":1,\"seed\":1,\"axis\":2}"),
        RECORD("{\"kind\":\"noise\",\"sigma\":0.1,\"blur\":0,\"seed\":1,\"axis\":2,\"frame\":1}"),
        RECORD("{\"kind\":\"noise\",\"sigma\":0.1,\"blur\":0,\"seed\":1,\"axis\":2,\"frame\":-1}"),
        RECORD("{\"kind\":\"bias\",\"order\":9,\"coefficients\":[0,1,2,3]}"),
        RECORD("{\"kind\":\"bias\",\"order\":1,\"coefficients\":[0,1,2]}"),
        RECORD("{\"kind\":\"bias\",\"order\":1,\"coefficients\":[0,1,2,\"3\"]}"),
        RECORD("{\"kind\":\"bias\",\"order\":1,\"coefficients\":[0,1,2,1e6]}"),
        RECORD("{\"kind\":\"bias\",\"order\":1,\"coefficients\":3}"),
        RECORD(MOTION("\"frequency_axis\":0,\"phase_axis\":0", "")),
        RECORD(MOTION("\"frequency_axis\":0,\"phase_axis\":7", "")),
        RECORD(MOTION("\"frequency_axis\":-1,\"phase_axis\":1", "")),
        RECORD(MOTION(AXES, RUN("0", "12"))),
        RECORD(MOTION(AXES, RUN("-1", "3"))),
        RECORD(MOTION(AXES, RUN("0", "0"))),
        RECORD(MOTION(AXES, RUN("11", "1"))),
        RECORD(MOTION(AXES, RUN("0", "5") "," RUN("4", "2"))),
        RECORD(MOTION(AXES, RUN("9223372036854775807", "1"))),
        RECORD(MOTION(AXES, RUN("1", "9223372036854775807"))),
        RECORD(MOTION(AXES, "5")),
        RECORD(MOTION(AXES, "{\"start\":0,\"count\":1,\"translation_mm\":[1,0],\"rotation_deg\":[0,0,0]}")),
        RECORD(
            MOTION(AXES, "{\"start\":0,\"count\":1,\"translation_mm\":[1e30,0,0],\"rotation_deg\":[0,0,0]}")),
        RECORD("{\"kind\":\"motion\",\"sigma_mm\":1,\"sigma_deg\":1,\"percent\":150," AXES ",\"runs\":[]}"),
        RECORD("{\"kind\":\"motion\",\"sigma_mm\":1,\"sigma_deg\":1,\"percent\":20," AXES ",\"runs\":{}}"),
    };
    const size_t shape[4] = {12, 11, 8, 1}, flat[4] = {12, 11, 1, 1};
    rsm_record record;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        OK(rsm_record_read(&env, "record", good[i], strlen(good[i]), shape, &record));
        rsm_record_clear(&record);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        ck_assert_msg(rsm_record_read(&env, "record", bad[i], strlen(bad[i]), shape, &record)
                          == RESMAP_BAD_FILE,
                      "%s", bad[i]);
        ck_assert_msg(strncmp(env.error, "record: ", 8) == 0 && !strchr(env.error, '\n'), "%s: %s", bad[i],
                      env.error);
    }
    /* a 2-D image stays in its plane */
    static const char *const out_of_plane[] = {
        RECORD(MOTION(AXES, "{\"start\":0,\"count\":1,\"translation_mm\":[0,0,1],\"rotation_deg\":[0,0,0]}")),
        RECORD(MOTION(AXES, "{\"start\":0,\"count\":1,\"translation_mm\":[0,0,0],\"rotation_deg\":[1,0,0]}")),
        RECORD(MOTION("\"frequency_axis\":0,\"phase_axis\":2", "")),
    };
    for (size_t i = 0; i < 3; i++)
        ck_assert_int_eq(
            rsm_record_read(&env, "record", out_of_plane[i], strlen(out_of_plane[i]), flat, &record),
            RESMAP_BAD_FILE);
    /* every truncation of a good record is refused */
    for (size_t n = 0; n < strlen(good[2]); n++)
        ck_assert_int_eq(rsm_record_read(&env, "record", good[2], n, shape, &record), RESMAP_BAD_FILE);
}
END_TEST

static void start(void)
{
    device_count = test_devices_open(&env, &devices);
}

int main(void)
{
    Suite *suite = suite_create("synth");
    TCase *tcase = tcase_create("synth");
    tcase_set_timeout(tcase, 0);
    tcase_add_checked_fixture(tcase, start, NULL);
    tcase_add_test(tcase, numpy_random_numbers);
    tcase_add_loop_test(tcase, numpy_draws, 0, 10);
    tcase_add_loop_test(tcase, numpy_artifacts, 0, CASES);
    tcase_add_test(tcase, bias_polynomial);
    tcase_add_test(tcase, translation_ramp);
    tcase_add_test(tcase, rotation_quarter);
    tcase_add_loop_test(tcase, repeats, 0, 6);
    tcase_add_test(tcase, zero_and_frames);
    tcase_add_test(tcase, cancelling);
    tcase_add_test(tcase, cancelling_once);
    tcase_add_test(tcase, bad_options);
    tcase_add_test(tcase, bad_records);
    if (!getenv("RESMAP_TEST_SMALL")) {
        tcase_add_test(tcase, gaussian_moments);
        tcase_add_test(tcase, rician_moments);
        tcase_add_loop_test(tcase, motion_sizes, 0, 5);
    }
    suite_add_tcase(suite, tcase);
    int failed = run_suite(suite);
    test_devices_close();
    return failed ? 1 : 0;
}
