/* PSNR, SSIM and NRMSE against scikit-image (tests/vectors/make_metrics.py), and what is left out, masked or
 * refused. */
#include <check.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "resmap.h"
#include "tests/run.h"
#include "tests/tensors.h"

static resmap_context *context;

#define OK(call) ck_assert_msg((call) == RESMAP_OK, "%s", resmap_error(context))

static void start(void)
{
    ck_assert_int_eq(resmap_context_create(&context), RESMAP_OK);
}

static void stop(void)
{
    resmap_context_free(context);
}

static resmap_image *image_of(const float *data, size_t n0, size_t n1, size_t n2, size_t n3)
{
    const size_t shape[4] = {n0, n1, n2, n3};
    resmap_image *image;
    OK(resmap_image_create(context, data, shape, NULL, &image));
    return image;
}

static resmap_image *image_of_tensor(const tensor *t)
{
    float *data = malloc(t->count * sizeof *data);
    for (size_t i = 0; i < t->count; i++) data[i] = (float)t->values[i];
    resmap_image *image = image_of(data, t->shape[2], t->shape[1], t->shape[0], 1);
    free(data);
    return image;
}

START_TEST(against_skimage)
{
    static const char *const cases[] = {"volume", "blurred", "masked", "signed", "slice"};
    tensors *file = tensors_open("metrics");
    const char *name = cases[_i];
    const tensor *expected = tensors_get(file, "%s.expected", name);
    resmap_image *reference = image_of_tensor(tensors_get(file, "%s.reference", name));
    resmap_image *test = image_of_tensor(tensors_get(file, "%s.test", name));
    resmap_image *mask =
        tensors_has(file, "%s.mask", name) ? image_of_tensor(tensors_get(file, "%s.mask", name)) : NULL;
    resmap_metrics *m;
    OK(resmap_evaluate(context, reference, test, mask, RESMAP_PLANE_AXIAL, &m));
    const double got[6] = {m->psnr,         m->psnr_slices, m->ssim,
                           m->ssim_skimage, m->nrmse,       (double)m->slices_left_out};
    for (int i = 0; i < 6; i++)
        ck_assert_msg(fabs(got[i] - expected->values[i]) < 1e-5, "%s, number %d: %.7f, not %.7f", name, i,
                      got[i], expected->values[i]);
    ck_assert_str_eq(m->plane, "axial");
    resmap_metrics_free(m);
    resmap_image_free(reference);
    resmap_image_free(test);
    resmap_image_free(mask);
    tensors_close(file);
}
END_TEST

enum { N = 16, COUNT = N * N * N };

/* A ball in noise that differs from voxel to voxel. */
static void ball(float *data)
{
    for (int i = 0; i < COUNT; i++) {
        int x = i % N - N / 2, y = i / N % N - N / 2, z = i / (N * N) - N / 2;
        data[i] = (x * x + y * y + z * z < 36 ? 500.0f : 10.0f) + (float)(i * 7919 % 101);
    }
}

START_TEST(equal_images)
{
    float data[COUNT];
    ball(data);
    resmap_image *a = image_of(data, N, N, N, 1);
    resmap_metrics *m;
    char *text;
    OK(resmap_evaluate(context, a, a, NULL, RESMAP_PLANE_AUTO, &m));
    ck_assert(isinf(m->psnr) && m->psnr > 0);
    ck_assert(isinf(m->psnr_slices));
    ck_assert_double_eq_tol(m->ssim, 1.0, 1e-12);
    ck_assert_double_eq_tol(m->ssim_skimage, 1.0, 1e-12);
    ck_assert_double_eq(m->nrmse, 0.0);
    OK(resmap_metrics_json(context, m, &text));
    json_t *root = json_loads(text, 0, NULL);
    ck_assert_ptr_nonnull(root);
    ck_assert(json_is_null(json_object_get(root, "psnr")));
    ck_assert(json_is_real(json_object_get(root, "ssim")));
    ck_assert_uint_eq(json_array_size(json_object_get(root, "slices")), m->slice_count);
    ck_assert(json_is_null(json_object_get(json_array_get(json_object_get(root, "slices"), 0), "psnr")));
    ck_assert_int_eq(json_integer_value(json_object_get(root, "slices_left_out")),
                     (json_int_t)m->slices_left_out);
    ck_assert_uint_eq(m->slices_left_out + m->slice_count, N);
    json_decref(root);
    resmap_text_free(text);
    resmap_metrics_free(m);
    resmap_image_free(a);
}
END_TEST

/* The mask decides what counts: outside, anything may stand, not a number included. */
START_TEST(masked_voxels)
{
    float data[COUNT], other[COUNT], inside[COUNT];
    ball(data);
    for (int i = 0; i < COUNT; i++) {
        inside[i] = i % N >= 2 && i % N < 14;
        other[i] = inside[i] > 0 ? data[i] + 3.0f : NAN;
    }
    resmap_image *a = image_of(data, N, N, N, 1), *b = image_of(other, N, N, N, 1),
                 *mask = image_of(inside, N, N, N, 1);
    resmap_metrics *m = NULL;
    ck_assert_int_eq(resmap_evaluate(context, a, b, NULL, RESMAP_PLANE_AXIAL, &m), RESMAP_BAD_FILE);
    ck_assert_ptr_null(m);
    ck_assert_str_eq(resmap_error(context), "test: a voxel is not finite in float32");
    OK(resmap_evaluate(context, a, b, mask, RESMAP_PLANE_AXIAL, &m));
    ck_assert(isfinite(m->psnr));
    double psnr = m->psnr;
    for (size_t i = 0; i < m->slice_count; i++) ck_assert_double_eq_tol(m->slices[i].psnr, psnr, 1e-6);
    resmap_metrics_free(m);
    /* the reference may hold them too */
    OK(resmap_evaluate(context, b, a, mask, RESMAP_PLANE_AXIAL, &m));
    ck_assert(isfinite(m->psnr) && isfinite(m->ssim));
    resmap_metrics_free(m);
    memset(inside, 0, sizeof inside);
    resmap_image *none = image_of(inside, N, N, N, 1);
    ck_assert_int_eq(resmap_evaluate(context, a, b, none, RESMAP_PLANE_AXIAL, &m), RESMAP_BAD_FILE);
    resmap_image_free(none);
    resmap_image_free(a);
    resmap_image_free(b);
    resmap_image_free(mask);
}
END_TEST

START_TEST(narrow_slices)
{
    float data[COUNT], other[COUNT];
    ball(data);
    for (int i = 0; i < COUNT; i++) other[i] = data[i] * 0.9f;
    resmap_image *a = image_of(data, 10, 20, 20, 1), *b = image_of(other, 10, 20, 20, 1);
    resmap_metrics *m;
    OK(resmap_evaluate(context, a, b, NULL, RESMAP_PLANE_AXIAL, &m));   /* 10 x 20 pixels */
    ck_assert(isnan(m->ssim) && isnan(m->ssim_skimage));
    ck_assert(isfinite(m->psnr_slices));
    ck_assert_uint_eq(m->slices_left_out, 20);
    resmap_metrics_free(m);
    OK(resmap_evaluate(context, a, b, NULL, RESMAP_PLANE_SAGITTAL, &m));   /* 20 x 20 */
    ck_assert(isfinite(m->ssim));
    ck_assert_uint_eq(m->slices_left_out, 0);
    resmap_metrics_free(m);
    resmap_image_free(a);
    resmap_image_free(b);
}
END_TEST

/* Several frames: means over them, each scaled by its own numbers; constant ones are skipped. */
START_TEST(frames)
{
    float *data = malloc(3 * COUNT * sizeof *data), *other = malloc(3 * COUNT * sizeof *other);
    ball(data);
    for (int i = 0; i < COUNT; i++) {
        data[COUNT + i] = 7.0f;
        data[2 * COUNT + i] = 100.0f * data[i];
        other[i] = data[i] + 5.0f * (float)(i % 2);
        other[COUNT + i] = 0.0f;
        other[2 * COUNT + i] = 100.0f * other[i];
    }
    resmap_image *a = image_of(data, N, N, N, 1), *b = image_of(other, N, N, N, 1);
    resmap_image *a3 = image_of(data, N, N, N, 3), *b3 = image_of(other, N, N, N, 3);
    resmap_metrics *one, *three;
    OK(resmap_evaluate(context, a, b, NULL, RESMAP_PLANE_AXIAL, &one));
    OK(resmap_evaluate(context, a3, b3, NULL, RESMAP_PLANE_AXIAL, &three));
    ck_assert_double_eq_tol(one->psnr, three->psnr, 1e-5);
    ck_assert_double_eq_tol(one->ssim, three->ssim, 1e-6);
    ck_assert_uint_eq(2 * one->slice_count, three->slice_count);
    ck_assert_uint_eq(three->slices[three->slice_count - 1].frame, 2);
    /* Skipped is not unseen. */
    resmap_image_data(b3)[COUNT + 3] = NAN;
    resmap_metrics *none = NULL;
    ck_assert_int_eq(resmap_evaluate(context, a3, b3, NULL, RESMAP_PLANE_AXIAL, &none), RESMAP_BAD_FILE);
    ck_assert_ptr_null(none);
    resmap_metrics_free(one);
    resmap_metrics_free(three);
    resmap_image_free(a);
    resmap_image_free(b);
    resmap_image_free(a3);
    resmap_image_free(b3);
    free(data);
    free(other);
}
END_TEST

START_TEST(refusals)
{
    float data[COUNT], flat[COUNT];
    ball(data);
    for (int i = 0; i < COUNT; i++) flat[i] = 3.0f;
    resmap_image *a = image_of(data, N, N, N, 1), *constant = image_of(flat, N, N, N, 1),
                 *other = image_of(data, N, N / 2, N, 1);
    resmap_metrics *m = NULL;
    ck_assert_int_eq(resmap_evaluate(context, a, other, NULL, RESMAP_PLANE_AUTO, &m), RESMAP_BAD_FILE);
    ck_assert_int_eq(resmap_evaluate(context, a, a, other, RESMAP_PLANE_AUTO, &m), RESMAP_BAD_FILE);
    ck_assert_int_eq(resmap_evaluate(context, constant, a, NULL, RESMAP_PLANE_AUTO, &m), RESMAP_BAD_FILE);
    ck_assert_int_eq(
        resmap_evaluate_file(context, "/nonexistent.nii", "/nonexistent.nii", NULL, RESMAP_PLANE_AUTO, &m),
        RESMAP_BAD_FILE);
    ck_assert_ptr_null(m);
    OK(resmap_evaluate(context, a, constant, NULL, RESMAP_PLANE_AUTO, &m));   /* a constant test is fine */
    ck_assert(isfinite(m->ssim));
    resmap_metrics_free(m);
    resmap_metrics_free(NULL);
    resmap_image_free(a);
    resmap_image_free(other);
    resmap_image_free(constant);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("metrics");
    TCase *tcase = tcase_create("metrics");
    tcase_add_checked_fixture(tcase, start, stop);
    tcase_add_loop_test(tcase, against_skimage, 0, 5);
    tcase_add_test(tcase, equal_images);
    tcase_add_test(tcase, masked_voxels);
    tcase_add_test(tcase, narrow_slices);
    tcase_add_test(tcase, frames);
    tcase_add_test(tcase, refusals);
    suite_add_tcase(suite, tcase);
    return run_host_suite(suite) ? 1 : 0;
}
