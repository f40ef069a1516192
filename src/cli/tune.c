#include <stdlib.h>
#include <string.h>

#include "cli.h"

static void print_tuning(const resmap_tuning *t)
{
    printf("%s, %zu x %zu, on %s (%s)\n\n", t->model_name, t->height, t->width, t->device_name,
           t->device_platform);
    printf("%-18s   %-16s %9s %8s %9s\n", "operation", "variant", "seconds", "speed-up", "error");
    for (size_t i = 0; i < t->trial_count; i++) {
        const resmap_trial *x = &t->trials[i];
        const int first = i == 0 || strcmp(x->operation, x[-1].operation) != 0;

        printf("%-18s %c %-16s", first ? x->operation : "", x->chosen ? '*' : ' ', x->variant);
        if (x->problem) {
            printf(" %s\n", x->problem);
            continue;
        }
        if (x->seconds > 0) printf(" %9.5f %8.3f", x->seconds, x->speedup);
        else printf(" %9s %8s", "-", "-");
        if (x->error >= 0) printf(" %9.1e", x->error);
        printf("\n");
    }
    printf("\n%.4g s a slice by rule, %.4g s tuned: %.3f times as fast\n", t->seconds_default,
           t->seconds_tuned, t->speedup);
    printf("kept in %s\n", t->path);
}

static int tune(const resmap_tune_options *options, int json, resmap_context *context, resmap_model *model)
{
    resmap_tuning *tuning = NULL;
    char *text = NULL;
    resmap_status status = resmap_tune(context, model, options, &tuning);

    if (status == RESMAP_OK && json) status = resmap_tuning_json(context, tuning, &text);
    cli_progress_clear();
    if (status == RESMAP_OK) {
        if (json)
            cli_print(text);
        else
            print_tuning(tuning);
    }
    resmap_text_free(text);
    resmap_tuning_free(tuning);
    return status == RESMAP_OK ? 0 : cli_failed(context, status);
}

static int run(const cli_command *command, int argc, char **argv)
{
    cli_common common = CLI_COMMON_INIT;
    resmap_tune_options options;
    cli_size size = {256, 256};
    int json = 0;
    const cli_option table[] = {
        CLI_OPTION_MODEL(&common),
        CLI_TAKES(0, "paper", NULL, "for a network of the paper's size with random weights instead", CLI_FLAG,
                  &common.paper),
        CLI_OPTION_DEVICE(&common),
        CLI_PARSED(0, "size", "N|HxW", "of the slices to be fast on, rounded up to multiples of 8 (256)",
                   &size, cli_parse_size),
        CLI_TAKES(0, "quick", NULL, "a few seconds: only what matters most", CLI_FLAG, &options.quick),
        CLI_TAKES(0, "json", NULL, "print JSON", CLI_FLAG, &json),
        CLI_OPTION_PROGRESS(&common),
        CLI_OPTION_QUIET(&common),
        CLI_OPTION_VERBOSE(&common),
    };
    resmap_context *context = NULL;
    resmap_model *model = NULL;
    char **operands;
    int status;

    resmap_tune_options_init(&options);
    status = cli_parse(command, table, sizeof table / sizeof table[0], argc, argv, &operands);
    if (status >= 0) return status;
    options.height = size.height;
    options.width = size.width;
    status = cli_open(&common, &context, &model);
    if (status == 0) status = tune(&options, json, context, model);
    resmap_model_free(model);
    resmap_context_free(context);
    return status;
}

const cli_command cli_tune = {"tune", "", 0, "Finds what is fastest on a device, and remembers it.", run};
