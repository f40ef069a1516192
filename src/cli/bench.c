#include <stdlib.h>
#include <string.h>

#include "cli.h"

typedef struct bench {
    int json;
    cli_size size;
    resmap_timing_options options;
} bench;

static void print_timing(const resmap_timing *t)
{
    char bytes[32];
    double least = t->run_seconds[0], most = least, sum = 0;

    for (size_t i = 1; i < t->run_count; i++) {
        if (t->run_seconds[i] < least) least = t->run_seconds[i];
        if (t->run_seconds[i] > most) most = t->run_seconds[i];
    }
    printf("%s, %zu x %zu, %s, on %s (%s)\n", t->model_name, t->height, t->width, t->precision,
           t->device_name, t->device_platform);
    printf("%s: %s\n", t->precision, t->precision_reason);
    printf("%.4g s a slice (median of %zu, %.4g to %.4g), %.1f GFLOP/s of %.4g GFLOP\n", t->seconds,
           t->run_count, least, most, 1e-9 * t->flop / t->seconds, 1e-9 * t->flop);
    printf("%s of device memory at most, bands of %zu rows\n", cli_bytes(t->device_bytes_peak, bytes),
           t->band_rows);
    if (t->kernel_count == 0) return;
    if (t->roof_bytes > 0)
        printf("the device's best: %.1f GFLOP/s in matrix products, %.1f GB/s in copying\n\n", 1e-9 * t->roof_flops,
               1e-9 * t->roof_bytes);
    else
        printf("the device's best is not measured: too little memory for it\n\n");
    printf("%-28s %9s %7s %6s %9s %8s %6s\n", "kernel", "seconds", "calls", "share", "GFLOP/s", "GB/s",
           "roof");
    for (size_t i = 0; i < t->kernel_count; i++) {
        const resmap_kernel_time *k = &t->kernels[i];
        double seconds = k->seconds > 0 ? k->seconds : 1e-9;
        char name[80];
        int used = snprintf(name, sizeof name, "%s", k->name);

        if (k->rows > 0) used += snprintf(name + used, sizeof name - (size_t)used, " %zu", k->rows);
        if (k->columns > 0) snprintf(name + used, sizeof name - (size_t)used, " x %zu", k->columns);
        printf("%-28s %9.4f %7llu %5.1f%% %9.1f %8.1f %5.0f%%\n", name, k->seconds,
               (unsigned long long)k->calls, 100 * k->share, 1e-9 * k->flop / seconds,
               1e-9 * k->bytes / seconds, 100 * k->roof);
        sum += k->seconds;
    }
    printf("%-28s %9.4f\n", "all", sum);
}

static int time_network(const bench *b, resmap_context *context, resmap_model *model)
{
    resmap_timing *timing = NULL;
    char *text = NULL;
    resmap_status status = resmap_time(context, model, &b->options, &timing);

    if (status == RESMAP_OK && b->json) status = resmap_timing_json(context, timing, &text);
    cli_progress_clear();
    if (status == RESMAP_OK) {
        if (b->json)
            cli_print(text);
        else
            print_timing(timing);
    }
    resmap_text_free(text);
    resmap_timing_free(timing);
    return status == RESMAP_OK ? 0 : cli_failed(context, status);
}

static int run(const cli_command *command, int argc, char **argv)
{
    cli_common common = CLI_COMMON_INIT;
    bench b;
    const cli_option table[] = {
        CLI_OPTION_MODEL(&common),
        CLI_TAKES(0, "paper", NULL, "a network of the paper's size with random weights instead", CLI_FLAG,
                  &common.paper),
        CLI_OPTION_DEVICE(&common),
        CLI_PARSED(0, "size", "N|HxW", "of the slice in pixels, rounded up to multiples of 8 (256)",
                   &b.size, cli_parse_size),
        CLI_NUMBER(0, "repeat", "N", "timed runs (5)", CLI_INT, &b.options.repeat, 1, 1000),
        CLI_TAKES(0, "shapes", NULL, "a row for every shape that a kernel works on", CLI_FLAG,
                  &b.options.by_shape),
        CLI_TAKES(0, "seconds", NULL, "only the network's time: no kernels, no roof", CLI_FLAG,
                  &b.options.only_seconds),
        CLI_OPTION_PRECISION(&common),
        CLI_OPTION_MEMORY(&common),
        CLI_TAKES(0, "json", NULL, "print JSON", CLI_FLAG, &b.json),
        CLI_OPTION_PROGRESS(&common),
        CLI_OPTION_QUIET(&common),
        CLI_OPTION_VERBOSE(&common),
    };
    resmap_context *context = NULL;
    resmap_model *model = NULL;
    char **operands;
    int status;

    memset(&b, 0, sizeof b);
    resmap_timing_options_init(&b.options);
    b.size = (cli_size){b.options.height, b.options.width};
    status = cli_parse(command, table, sizeof table / sizeof table[0], argc, argv, &operands);
    if (status >= 0) return status;
    b.options.height = b.size.height;
    b.options.width = b.size.width;
    b.options.precision = (resmap_precision)common.precision;
    b.options.memory_mib = common.memory_mib;
    status = cli_open(&common, &context, &model);
    if (status == 0) status = time_network(&b, context, model);
    resmap_model_free(model);
    resmap_context_free(context);
    return status;
}

const cli_command cli_bench = {"bench", "", 0, "Times the network and its kernels on a device.", run};
