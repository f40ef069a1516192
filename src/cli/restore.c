#include "cli.h"

#include <string.h>

static const char *const decide_words[] = {"volume", "slice", NULL};

/* centroid | sample[:SEED] */
static int parse_prompt(const char *value, void *target)
{
    resmap_options *options = target;
    uint64_t seed = 0;

    options->prompt_sample = strcmp(value, "centroid") != 0;
    if (strncmp(value, "sample:", 7) == 0 && !cli_number(value + 7, 0, UINT64_MAX, &seed)) return 0;
    if (options->prompt_sample && strcmp(value, "sample") != 0 && strncmp(value, "sample:", 7) != 0) return 0;
    options->prompt_seed = seed;
    return 1;
}

static void print_steps(const resmap_report *report, const resmap_volume_report *volume)
{
    if (volume->constant) {
        printf("constant, left as it is\n");
        return;
    }
    for (int i = 0; i < volume->step_count; i++) {
        const resmap_step *step = &volume->steps[i];

        printf("%s%s", i ? " -> " : "",
               step->class_index < 0 ? "restored" : report->classes[step->class_index]);
        if (step->has_probabilities) printf(" (%.2f)", step->probabilities[step->class_index]);
    }
    if (volume->step_count == 0) printf("no step");
    if (volume->stopped && strcmp(volume->stopped, "max-steps") == 0)
        printf(", stopped: that is the most steps");
    printf("\n");
}

static const char *named_twice(const resmap_files *files)
{
    const char *const names[] = {files->output, files->report, files->residual, files->figure};

    return cli_named_twice(names, sizeof names / sizeof names[0]);
}

static int run(const cli_command *command, int argc, char **argv)
{
    cli_common common = CLI_COMMON_INIT;
    resmap_files files = {0};
    resmap_options options;
    const cli_option table[] = {
        CLI_OPTION_MODEL(&common),
        CLI_OPTION_DEVICES(&common),
        CLI_NUMBER(0, "steps", "N", "most restoration steps, 0 to 8 (3)", CLI_INT, &options.steps, 0,
                   RESMAP_MAX_STEPS),
        CLI_TAKES(0, "order", "LIST", "force the sequence, e.g. bias,noise: nothing is classified", CLI_TEXT,
                  &options.order),
        CLI_WORDS(0, "decide", "WHAT",
                  "one decision a step for the whole volume, or one for every\n"
                  "slice: volume, slice (volume)",
                  &options.decide_by_slice, decide_words),
        CLI_PARSED(0, "prompt", "centroid|sample[:SEED]",
                   "the class's prompt: centroid of its group, or one drawn at\n"
                   "random (centroid)",
                   &options, parse_prompt),
        CLI_OPTION_PLANE(&common),
        CLI_OPTION_MASK(&common),
        CLI_OPTION_NO_SCALE(&common),
        CLI_OPTION_PRECISION(&common),
        CLI_OPTION_MEMORY(&common),
        CLI_TAKES(0, "report", "FILE.json", "write what was found and done", CLI_TEXT, &files.report),
        CLI_TAKES(0, "residual", "FILE", "write IN minus OUT (.nii, .nii.gz)", CLI_TEXT, &files.residual),
        CLI_TAKES(0, "figure", "FILE.png", "write a picture: before, after, difference", CLI_TEXT,
                  &files.figure),
        CLI_TAKES('f', "force", NULL, "overwrite files that exist", CLI_FLAG, &files.overwrite),
        CLI_OPTION_PROGRESS(&common),
        CLI_OPTION_QUIET(&common),
        CLI_OPTION_VERBOSE(&common),
    };
    resmap_context *context = NULL;
    resmap_model *model = NULL;
    resmap_report *report = NULL;
    char **operands;
    int status;

    resmap_options_init(&options);
    status = cli_parse(command, table, sizeof table / sizeof table[0], argc, argv, &operands);
    if (status >= 0) return status;
    files.input = operands[0];
    files.output = operands[1];
    files.mask = common.mask;
    if (named_twice(&files))
        return cli_usage(command->name, "'%s' is to be written twice", named_twice(&files));
    cli_fill(&common, &options);

    status = cli_open(&common, &context, &model);
    if (status == 0) {
        resmap_status done = resmap_restore_file(context, model, &files, &options, &report);

        if (done != RESMAP_OK) status = cli_failed(context, done);
    }
    cli_progress_clear();
    if (status == 0 && !common.quiet)
        for (size_t i = 0; i < report->volume_count; i++) {
            printf("%s: ", files.output);
            if (report->volume_count > 1) printf("frame %zu: ", report->volumes[i].frame);
            print_steps(report, &report->volumes[i]);
        }
    resmap_report_free(report);
    resmap_model_free(model);
    resmap_context_free(context);
    return status;
}

const cli_command cli_restore = {"restore", "IN OUT", 2, "Restores a NIfTI file.", run};
