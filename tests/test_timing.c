/* resmap_time: its count of the arithmetic against the network's layer table, and the profile's bookkeeping.
 * On the reference; tests/cli/bench runs every device. */
#include <check.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "context.h"
#include "tests/run.h"

/* Multiply-adds of the network in Restormer's layer table, attention times v on its own, and of the parts
 * that the fusion blocks add. */
typedef struct counts {
    double backbone, fusions;
    double folded;               /* of both: what multiplying the attention into its projection saves */
} counts;

static double block_macs(double c, double heads, double pixels, double *folded)
{
    double hidden = floor(c * 2.66);

    *folded += c * c / heads * (pixels - c);
    return (3 * c * c + 27 * c + 2 * c * c / heads + c * c + 2 * hidden * c + 18 * hidden + hidden * c) *
           pixels;
}

static counts paper_macs(double pixels)
{
    static const double blocks[4] = {4, 6, 6, 8}, heads[4] = {1, 2, 4, 8};
    counts n = {0, 0, 0};
    double saved = 0;

    n.backbone += 48 * 9 * pixels + 96 * 9 * pixels;
    for (int i = 0; i < 4; i++) {
        double c = 48 << i, p = pixels / (1 << 2 * i);

        saved = 0;
        n.backbone += blocks[i] * block_macs(c, heads[i], p, &saved);
        n.folded += blocks[i] * saved;
        if (i == 3) continue;
        n.backbone += c * c / 2 * 9 * p;                         /* down */
        n.backbone += 2 * c * 4 * c * 9 * p / 4;                 /* up */
        if (i > 0) n.backbone += 2 * c * c * p;                  /* reduce */
        saved = 0;
        if (i > 0)
            n.backbone += blocks[i] * block_macs(c, heads[i], p, &saved);
        else
            n.backbone +=
                (blocks[0] + 4) * block_macs(2 * c, heads[0], p, &saved); /* decoder level 1, refinement */
        n.folded += (i > 0 ? blocks[i] : 8) * saved;
        n.fusions += block_macs(2 * c, heads[i + 1], p / 4, &n.folded) + 4 * c * c * p / 4;
    }
    return n;
}

static resmap_context *context;

static void set_up(void)
{
    ck_assert_int_eq(resmap_context_create(&context), RESMAP_OK);
    ck_assert_int_eq(resmap_open_device(context, "reference"), RESMAP_OK);
}

static void tear_down(void)
{
    resmap_context_free(context);
}

START_TEST(layer_table)
{
    counts n = paper_macs(65536);

    /* 154.712 GMAC: counted by others from the same layers. */
    ck_assert_double_eq_tol(1e-9 * n.backbone, 154.712, 5e-4);
}
END_TEST

START_TEST(arithmetic)
{
    static const char *const counted[] = {"gemm", "conv3x3", "depthwise3x3", "depthwise3x3_gate",
                                          "attention_partial", "attention_fold"};
    resmap_timing_options options;
    resmap_timing *timing = NULL;
    resmap_model *model = NULL;
    double flop = 0, all = 0, norms = 0;
    counts n = paper_macs(8 * 16);

    ck_assert_int_eq(resmap_model_paper(context, &model), RESMAP_OK);
    resmap_timing_options_init(&options);
    options.height = 8;
    options.width = 16;
    options.repeat = 1;
    options.by_shape = 1;
    ck_assert_msg(resmap_time(context, model, &options, &timing) == RESMAP_OK, "%s", resmap_error(context));
    for (size_t i = 0; i < timing->kernel_count; i++) {
        const resmap_kernel_time *k = &timing->kernels[i];

        for (size_t j = 0; j < sizeof counted / sizeof counted[0]; j++)
            if (strcmp(k->name, counted[j]) == 0) flop += k->flop;
        /* Of a head's c² + 2 c sums the layer table leaves out the last, |q|² and |k|². */
        if (strcmp(k->name, "attention_partial") == 0)
            norms += k->flop * 2 / ((double)k->rows / (double)k->columns + 2);
        all += k->flop;
    }
    ck_assert_double_eq_tol(all, timing->flop, 1e-9 * all);
    ck_assert_double_eq_tol(flop - norms, 2 * (n.backbone + n.fusions - n.folded), 1e-9 * flop);
    /* The rest (norms, gates' products, sums) is little. */
    ck_assert_double_le(all, 1.02 * flop);
    ck_assert_double_gt(timing->roof_bytes, 0);

    /* Too little memory to measure the roof: the network's times stand. */
    options.memory_mib = (timing->device_bytes_peak >> 20) + 1;
    resmap_timing_free(timing);
    ck_assert_msg(resmap_time(context, model, &options, &timing) == RESMAP_OK, "%s", resmap_error(context));
    ck_assert_double_gt(timing->seconds, 0);
    ck_assert_double_eq(timing->roof_bytes, 0);
    ck_assert_double_eq(timing->roof_flops, 0);
    resmap_timing_free(timing);
    resmap_model_free(model);
}
END_TEST

START_TEST(bad_options)
{
    resmap_timing_options options;
    resmap_timing *timing = NULL;
    resmap_model *model = NULL;

    ck_assert_int_eq(resmap_model_paper(context, &model), RESMAP_OK);
    ck_assert_str_eq(resmap_model_name(model), "paper");
    resmap_timing_options_init(&options);
    options.repeat = 0;
    ck_assert_int_eq(resmap_time(context, model, &options, &timing), RESMAP_BAD_ARGUMENT);
    options.repeat = 1;
    options.width = 16385;
    ck_assert_int_eq(resmap_time(context, model, &options, &timing), RESMAP_BAD_ARGUMENT);
    options.width = 0;
    ck_assert_int_eq(resmap_time(context, model, &options, &timing), RESMAP_BAD_ARGUMENT);
    ck_assert_ptr_null(timing);
    resmap_timing_free(NULL);
    resmap_model_free(model);
}
END_TEST

START_TEST(profile)
{
    rsm_device *device = context->opened[0];
    rsm_buffer *buffer = NULL;
    rsm_profile_row *rows = NULL;
    size_t count = 0;
    const float values[8] = {0};

    /* Without a profile nothing is kept. */
    ck_assert_int_eq(rsm_profile_next(device, "nothing", 0, 0, 1, 1), RESMAP_OK);
    ck_assert_int_eq(rsm_profile_end(device, &rows, &count), RESMAP_INTERNAL);
    ck_assert_int_eq(rsm_profile_begin(device), RESMAP_OK);
    ck_assert_int_eq(rsm_profile_begin(device), RESMAP_INTERNAL);
    ck_assert_int_eq(rsm_buffer_create(device, 8, &buffer), RESMAP_OK);
    ck_assert_int_eq(rsm_buffer_write(device, buffer, 0, values, 8), RESMAP_OK);
    ck_assert_int_eq(rsm_buffer_write(device, buffer, 4, values, 4), RESMAP_OK);
    for (size_t i = 1; i <= 200; i++)
        ck_assert_int_eq(rsm_profile_next(device, "shape", i, i % 2, 10, 1), RESMAP_OK);
    ck_assert_int_eq(rsm_profile_next(device, "shape", 7, 1, 10, 1), RESMAP_OK);
    rsm_profile_hold(device, 1);
    ck_assert_int_eq(rsm_profile_next(device, "part of it", 7, 1, 10, 1), RESMAP_OK);
    rsm_profile_hold(device, 0);
    ck_assert_int_eq(rsm_profile_end(device, &rows, &count), RESMAP_OK);
    ck_assert_uint_eq(count, 201);
    for (size_t i = 0; i < count; i++) {
        if (i > 0) ck_assert_double_le(rows[i].seconds, rows[i - 1].seconds);
        if (strcmp(rows[i].name, "write") == 0) {
            ck_assert_uint_eq(rows[i].calls, 2);
            ck_assert_double_eq(rows[i].bytes, 12 * sizeof(double));
        } else {
            ck_assert_str_eq(rows[i].name, "shape");
            ck_assert_uint_eq(rows[i].calls, rows[i].rows == 7 ? 2 : 1);
            ck_assert_double_eq(rows[i].flop, rows[i].rows == 7 ? 20 : 10);
        }
    }
    free(rows);
    /* Closing a device that is being profiled. */
    ck_assert_int_eq(rsm_profile_begin(device), RESMAP_OK);
    rsm_buffer_free(buffer);
}
END_TEST

int main(void)
{
    Suite *suite = suite_create("timing");
    TCase *tests = tcase_create("timing");

    tcase_add_checked_fixture(tests, set_up, tear_down);
    tcase_add_test(tests, layer_table);
    tcase_add_test(tests, arithmetic);
    tcase_add_test(tests, bad_options);
    tcase_add_test(tests, profile);
    tcase_set_timeout(tests, 900);
    suite_add_tcase(suite, tests);
    return run_host_suite(suite) == 0 ? 0 : 1;
}
