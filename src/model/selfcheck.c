#include "model/selfcheck.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "nn/nn.h"

/* Odd multiples of 8, so that no two sizes of any level are equal. Two slices, as batches have several. */
enum { HEIGHT = 24, WIDTH = 40, SLICES = 2 };

/* The next of a sequence of numbers in [0, 1), 24 bits each. */
static double next_number(uint32_t *state)
{
    *state = *state * 1664525u + 1013904223u;
    return (double)(*state >> 8) / 16777216.0;
}

/* A head-like blob with stripes, others in every slice, and hash noise: every channel gets something to do. */
static void make_pattern(float *slices)
{
    uint32_t state = 1;

    for (int s = 0; s < SLICES; s++)
        for (int y = 0; y < HEIGHT; y++)
            for (int x = 0; x < WIDTH; x++) {
                double u = (x + 0.5) / WIDTH * 2 - 1, v = (y + 0.5) / HEIGHT * 2 - 1;
                double inside = u * u + v * v < 0.8 ? 1 : 0;
                slices[(s * HEIGHT + y) * WIDTH + x] =
                    (float)(inside * (0.6 + 0.3 * sin(9 * u + (5 - 9 * s) * v)) + 0.05 * next_number(&state));
            }
}

static resmap_status run(rsm_network *net, const float *slices, const float *prompt, float *pooled, float *output)
{
    rsm_plan *plan = NULL;
    resmap_status status = rsm_plan_create(net, HEIGHT, WIDTH, SLICES, &plan);

    if (status == RESMAP_OK && prompt != NULL) status = rsm_network_set_prompt(net, prompt);
    if (status == RESMAP_OK) status = rsm_plan_encode(plan, slices, SLICES, pooled);
    if (status == RESMAP_OK) status = rsm_plan_decode(plan, output);
    rsm_plan_free(plan);
    return status;
}

/* The root mean square of the differences in parts of the largest value. */
static double mean_difference(const float *a, const float *b, size_t count)
{
    double squares = 0, scale = 0;

    for (size_t i = 0; i < count; i++) {
        squares += pow((double)a[i] - (double)b[i], 2);
        scale = fmax(scale, fabs((double)b[i]));
    }
    squares = sqrt(squares / (double)count);
    if (!isfinite(squares)) return INFINITY;
    return scale > 0 ? squares / scale : squares;
}

/* ---- CLBlast ---- */

/* A product of odd sizes and strides, so that nothing suits a kernel as it is. */
typedef struct sizes {
    size_t m, n, k;
} sizes;
/* CLBlast has one kernel for small products and another for large ones, by its tables from at most 1984^3 multiplications,
 * which a slice of the check's size does not reach. */
static const sizes products[] = {{97, 955, 51}, {1030, 4987, 1537}};

/* max |C v - A (B v)| / max |A (B v)|: a wrong element anywhere in C shows, without the host's making the product. The arrays
 * are dense but for strides 3, 5 and 4 longer than the rows. */
static double product_error(const sizes *z, const float *a, const float *b, const float *c, double *bv, const double *v)
{
    double worst = 0, scale = 0;

    for (size_t k = 0; k < z->k; k++) {
        bv[k] = 0;
        for (size_t j = 0; j < z->n; j++) bv[k] += (double)b[k * (z->n + 5) + j] * v[j];
    }
    for (size_t i = 0; i < z->m; i++) {
        double expected = 0, got = 0;
        for (size_t k = 0; k < z->k; k++) expected += (double)a[i * (z->k + 3) + k] * bv[k];
        for (size_t j = 0; j < z->n; j++) got += (double)c[i * (z->n + 4) + j] * v[j];
        if (!isfinite(got)) return INFINITY;
        worst = fmax(worst, fabs(got - expected));
        scale = fmax(scale, fabs(expected));
    }
    return worst / scale;
}

static resmap_status measure_product(rsm_device *device, const sizes *z, double *error)
{
    const size_t strides[3] = {z->k + 3, z->n + 5, z->n + 4}, counts[3] = {z->m * strides[0], z->k * strides[1], z->m * strides[2]};
    const size_t all = counts[0] + counts[1] + counts[2];
    rsm_matrix matrices[3] = {{0}};
    float *values = malloc(rsm_bytes(all, sizeof *values)), *parts[3];
    double *vectors = malloc(rsm_bytes(z->k + z->n, sizeof *vectors));
    uint32_t state = 1;
    resmap_status status;

    if (values == NULL || vectors == NULL) {
        status = rsm_no_memory(rsm_device_env(device), all * sizeof *values);
        goto done;
    }
    for (size_t i = 0; i < counts[0] + counts[1]; i++) values[i] = (float)(2 * next_number(&state) - 1);
    for (size_t i = counts[0] + counts[1]; i < all; i++) values[i] = NAN;
    for (size_t j = 0; j < z->n; j++) vectors[z->k + j] = 2 * next_number(&state) - 1;
    parts[0] = values;
    parts[1] = parts[0] + counts[0];
    parts[2] = parts[1] + counts[1];
    for (int i = 0; i < 3; i++) {
        matrices[i].stride = strides[i];
        RSM_CHECK(rsm_buffer_create(device, counts[i], &matrices[i].buffer));
        RSM_CHECK(rsm_buffer_write(device, matrices[i].buffer, 0, parts[i], counts[i]));
    }
    RSM_CHECK(rsm_gemm(device, z->m, z->n, z->k, matrices[0], matrices[1], matrices[2], 0));
    RSM_CHECK(rsm_buffer_read(device, matrices[2].buffer, 0, parts[2], counts[2]));
    *error = product_error(z, parts[0], parts[1], parts[2], vectors, vectors + z->k);
done:
    for (int i = 0; i < 3; i++) rsm_buffer_free(matrices[i].buffer);
    free(values);
    free(vectors);
    return status;
}

/* An empty file in the cache folder remembers a check: named by all that can change its outcome. */
static char *memory_path(const char *cache_folder, const char *what)
{
    char hex[65];

    rsm_sha256_hex(what, strlen(what), hex);
    return rsm_format("%s/self-check/%s", cache_folder, hex);
}

/* Failing to remember only costs the next run a check. An empty file made by O_EXCL says all there is to say. */
static void remember(const char *cache_folder, const char *path)
{
    char *folder = rsm_format("%s/self-check", cache_folder);
    int file;

    if (folder != NULL) mkdir(folder, 0700);
    free(folder);
    file = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (file >= 0) close(file);
}

/* What CLBlast computes on the device depends on, and 'w' for what is known of it: it is wrong. */
static char *clblast_path(const rsm_device *device, const char *cache_folder, char known)
{
    const rsm_variant *parameters = rsm_tuned(device, RSM_TUNE_CLBLAST);
    char *what = rsm_format("CLBlast 1 %c\n%s\n%s", known, rsm_device_identity(device), parameters != NULL ? parameters->name : ""),
         *path = what != NULL ? memory_path(cache_folder, what) : NULL;

    free(what);
    return path;
}

/* Takes CLBlast off the device where its products are wrong. Not where RESMAP_GEMM asks for it: RESMAP_SELF_CHECK_FAILED.
 * cache_folder: may be NULL. */
static resmap_status check_clblast(rsm_device *device, const char *cache_folder)
{
    rsm_env *env = rsm_device_env(device);
    char *right = NULL, *wrong = NULL;
    /* under a limit it may be our own kernel that is measured, where there is no room for CLBlast's copies */
    int whole = !rsm_device_is_limited(device);
    double error = 0;
    resmap_status status = RESMAP_OK;

    if (!rsm_gemm_takes_clblast(device)) return RESMAP_OK;
    if (cache_folder != NULL) {
        right = clblast_path(device, cache_folder, 'r');
        wrong = clblast_path(device, cache_folder, 'w');
    }
    if (wrong != NULL && access(wrong, F_OK) == 0 && rsm_gemm_refuse_clblast(device)) goto done;
    if (right != NULL && access(right, F_OK) == 0) goto done;
    for (size_t i = 0; i < sizeof products / sizeof *products && error <= RSM_SELF_CHECK_BOUND; i++) {
        status = measure_product(device, &products[i], &error);
        /* where there is no room for it no product is as large */
        if (status == RESMAP_NO_DEVICE_MEMORY) {
            status = RESMAP_OK;
            whole = 0;
        }
        if (status != RESMAP_OK) goto done;
        rsm_log(env, RESMAP_LOG_DEBUG, "a product by CLBlast on %s: error %.2g", rsm_device_info(device)->name, error);
    }
    if (error <= RSM_SELF_CHECK_BOUND) {
        if (whole && right != NULL) remember(cache_folder, right);
    } else if (rsm_gemm_refuse_clblast(device)) {
        rsm_log(env, RESMAP_LOG_WARNING, "device %s: CLBlast's products are wrong here (error %.3g): done without it",
                rsm_device_info(device)->name, error);
        if (wrong != NULL) remember(cache_folder, wrong);
    } else {
        status = rsm_fail(env, RESMAP_SELF_CHECK_FAILED, "device %s: CLBlast's products are wrong (error %.3g, at most %.0e is "
                          "accepted), and RESMAP_GEMM asks for them", rsm_device_info(device)->name, error, RSM_SELF_CHECK_BOUND);
    }
done:
    free(right);
    free(wrong);
    return status;
}

/* ---- The network ---- */

static resmap_status check_network(rsm_network *net, double *error)
{
    rsm_device *device = rsm_network_device(net), *reference = NULL;
    rsm_env *env = rsm_device_env(device);
    const struct resmap_model *model = rsm_network_model(net);
    size_t pooled_count = SLICES * rsm_network_pooled_count(net), pixels = SLICES * HEIGHT * WIDTH;
    rsm_network *reference_net = NULL;
    float *memory = malloc(rsm_bytes(3 * pixels + 2 * pooled_count + model->config.text_dim, sizeof *memory));
    float *slices = memory, *output, *expected, *pooled, *expected_pooled, *prompt;
    const int fp16 = rsm_network_storage(net) == RSM_FP16;
    double bound;
    resmap_status status;

    if (memory == NULL) return rsm_no_memory(env, 3 * pixels * sizeof *memory);
    output = slices + pixels;
    expected = output + pixels;
    pooled = expected + pixels;
    expected_pooled = pooled + pooled_count;
    prompt = model->config.class_count > 0 ? expected_pooled + pooled_count : NULL;
    make_pattern(slices);
    if (prompt != NULL) rsm_model_some_prompt(model, prompt);

    RSM_CHECK(rsm_progress(env, "self-check", 0, 0));
    RSM_CHECK(run(net, slices, prompt, pooled, output));
    RSM_CHECK(rsm_device_open(env, "reference", &reference));
    RSM_CHECK(rsm_network_create(reference, model, RSM_FP32, &reference_net));
    RSM_CHECK(run(reference_net, slices, prompt, expected_pooled, expected));
    *error = fp16 ? fmax(mean_difference(output, expected, pixels),
                         mean_difference(pooled, expected_pooled, pooled_count))
                  : fmax(rsm_difference(output, expected, pixels), rsm_difference(pooled, expected_pooled, pooled_count));
    bound = fp16 ? RSM_SELF_CHECK_BOUND_FP16 : RSM_SELF_CHECK_BOUND;
    if (!(*error <= bound))
        status = rsm_fail(env, RESMAP_SELF_CHECK_FAILED,
                          "device %s: %s (self-check error %.3g, at most %.0e is accepted); %s",
                          rsm_device_info(device)->name,
                          fp16 ? "fp16 storage computes wrongly or does not suit the model" : "computes wrongly", *error,
                          bound, fp16 ? "use fp32" : "update its OpenCL driver or choose another device");
done:
    rsm_network_free(reference_net);
    rsm_device_close(reference);
    free(memory);
    return status;
}

resmap_status rsm_self_check(rsm_network *net, double *error)
{
    RSM_TRY(check_clblast(rsm_network_device(net), NULL));
    return check_network(net, error);
}

static char *network_path(const rsm_network *net, const char *cache_folder)
{
    const rsm_device *device = rsm_network_device(net);
    char *choices = rsm_tuning_choices(device), *path;
    char *what = choices == NULL ? NULL
                                 : rsm_format("self-check 4\n%s\n%s\n%s\n%s\n%d\n%s", resmap_version(),
                                              rsm_device_identity(device), rsm_network_model(net)->file.sha256,
                                              rsm_network_precision(net), rsm_gemm_takes_clblast(device), choices);

    path = what != NULL ? memory_path(cache_folder, what) : NULL;
    free(what);
    free(choices);
    return path;
}

resmap_status rsm_self_check_once(rsm_network *net, const char *cache_folder)
{
    rsm_device *device = rsm_network_device(net);
    char *path;
    double error = 0;
    resmap_status status = RESMAP_OK;

    RSM_TRY(check_clblast(device, cache_folder));
    path = cache_folder == NULL ? NULL : network_path(net, cache_folder);
    if (path == NULL || access(path, F_OK) != 0) {
        status = check_network(net, &error);
        if (status == RESMAP_OK)
            rsm_log(rsm_device_env(device), RESMAP_LOG_INFO, "self-check of %s passed: error %.2g", rsm_device_info(device)->name,
                    error);
        if (status == RESMAP_OK && path != NULL) remember(cache_folder, path);
    }
    free(path);
    return status;
}
