#include "cli.h"

static void print_volume(const resmap_report *report, const resmap_volume_report *volume)
{
    const resmap_step *step = &volume->steps[0];

    if (volume->constant || volume->step_count == 0) {
        printf("constant\n");
        return;
    }
    printf("%s", report->classes[step->class_index]);
    for (size_t c = 0; c < report->class_count; c++)
        printf("%s%s %.4f", c ? ", " : " (", report->classes[c], step->probabilities[c]);
    printf(")\n");
}

static int classify(const cli_common *common, const char *path, int json, resmap_context *context,
                    resmap_model *model)
{
    resmap_image *image = NULL, *mask = NULL;
    resmap_report *report = NULL;
    resmap_options options;
    char *text = NULL;
    double started = cli_seconds(), read;
    resmap_status status;

    resmap_options_init(&options);
    cli_fill(common, &options);
    status = resmap_image_read(context, path, &image);
    if (status == RESMAP_OK && common->mask) status = resmap_image_read(context, common->mask, &mask);
    read = cli_seconds() - started;
    if (status == RESMAP_OK) status = resmap_classify(context, model, image, mask, &options, &report);
    if (status == RESMAP_OK) {
        report->seconds_read = read;
        report->seconds_total += read;
    }
    if (status == RESMAP_OK && json) status = resmap_report_json(context, report, 1, &text);
    cli_progress_clear();
    if (status == RESMAP_OK && json) cli_print(text);
    for (size_t i = 0; status == RESMAP_OK && !json && i < report->volume_count; i++) {
        printf("%s: ", path);
        if (report->volume_count > 1) printf("frame %zu: ", report->volumes[i].frame);
        print_volume(report, &report->volumes[i]);
    }
    resmap_text_free(text);
    resmap_report_free(report);
    resmap_image_free(mask);
    resmap_image_free(image);
    return status == RESMAP_OK ? 0 : cli_failed(context, status);
}

static int run(const cli_command *command, int argc, char **argv)
{
    cli_common common = CLI_COMMON_INIT;
    int json = 0;
    const cli_option table[] = {
        CLI_OPTION_MODEL(&common),
        CLI_OPTION_DEVICES(&common),
        CLI_OPTION_PLANE(&common),
        CLI_OPTION_MASK(&common),
        CLI_OPTION_NO_SCALE(&common),
        CLI_OPTION_PRECISION(&common),
        CLI_OPTION_MEMORY(&common),
        CLI_TAKES(0, "json", NULL, "print JSON, with every slice", CLI_FLAG, &json),
        CLI_OPTION_PROGRESS(&common),
        CLI_OPTION_QUIET(&common),
        CLI_OPTION_VERBOSE(&common),
    };
    resmap_context *context = NULL;
    resmap_model *model = NULL;
    char **operands;
    int status = cli_parse(command, table, sizeof table / sizeof table[0], argc, argv, &operands);

    if (status >= 0) return status;
    status = cli_open(&common, &context, &model);
    if (status == 0) status = classify(&common, operands[0], json, context, model);
    resmap_model_free(model);
    resmap_context_free(context);
    return status;
}

const cli_command cli_classify = {"classify", "IN", 1,
                                  "Prints the artifact class of a scan and the probabilities.", run};
