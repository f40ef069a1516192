#include "cli.h"

#include <math.h>

static void print_number(const char *name, const char *format, double value, const char *unit)
{
    printf("%-22s", name);
    if (isnan(value)) printf("none");
    else if (isinf(value)) printf("inf%s", unit);
    else {
        printf(format, value);
        printf("%s", unit);
    }
    printf("\n");
}

static void print_text(const resmap_metrics *metrics)
{
    print_number("PSNR", "%.2f", metrics->psnr, " dB");
    print_number("PSNR, mean of slices", "%.2f", metrics->psnr_slices, " dB");
    print_number("SSIM", "%.4f", metrics->ssim, "");
    print_number("SSIM (scikit-image)", "%.4f", metrics->ssim_skimage, "");
    print_number("NRMSE", "%.4f", metrics->nrmse, "");
    printf("%-22s%zu %s with content; %zu of all left out of SSIM\n", "slices", metrics->slice_count, metrics->plane,
           metrics->slices_left_out);
}

static int run(const cli_command *command, int argc, char **argv)
{
    cli_common common = {0};
    int json = 0;
    const cli_option table[] = {
        CLI_TAKES(0, "mask", "FILE", "compare inside the mask only (> 0.5, same grid)", CLI_TEXT,
                  &common.mask),
        CLI_OPTION_PLANE(&common),
        CLI_TAKES(0, "json", NULL, "print JSON, with every slice", CLI_FLAG, &json),
        CLI_OPTION_PROGRESS(&common),
        CLI_OPTION_QUIET(&common),
        CLI_OPTION_VERBOSE(&common),
    };
    resmap_context *context;
    resmap_metrics *metrics = NULL;
    char **operands, *text = NULL;
    resmap_status done;
    int status = cli_parse(command, table, sizeof table / sizeof table[0], argc, argv, &operands);

    if (status >= 0) return status;
    context = cli_start(&common);
    if (!context) return 1;
    done = resmap_evaluate_file(context, operands[0], operands[1], common.mask, (resmap_plane)common.plane,
                                &metrics);
    if (done == RESMAP_OK && json) done = resmap_metrics_json(context, metrics, &text);
    cli_progress_clear();
    status = done == RESMAP_OK ? 0 : cli_failed(context, done);
    if (status == 0 && json) cli_print(text);
    if (status == 0 && !json) print_text(metrics);
    resmap_text_free(text);
    resmap_metrics_free(metrics);
    resmap_context_free(context);
    return status;
}

const cli_command cli_evaluate = {"evaluate", "REF TEST", 2, "Compares two scans: PSNR, SSIM, NRMSE.", run};
