#include "cli.h"

static int run(const cli_command *command, int argc, char **argv)
{
    cli_common common = CLI_COMMON_INIT;
    int json = 0;
    const cli_option table[] = {
        CLI_TAKES(0, "json", NULL, "print JSON", CLI_FLAG, &json),
        CLI_OPTION_VERBOSE(&common),
    };
    resmap_context *context;
    resmap_model *model = NULL;
    char **operands, *text = NULL;
    resmap_status done;
    int status = cli_parse(command, table, sizeof table / sizeof table[0], argc, argv, &operands);

    if (status >= 0) return status;
    context = cli_start(&common);
    if (!context) return 1;
    done = resmap_model_open(context, operands[0], &model);
    if (done == RESMAP_OK) done = resmap_model_describe(context, model, json, &text);
    status = done == RESMAP_OK ? 0 : cli_failed(context, done);
    if (status == 0) cli_print(text);
    resmap_text_free(text);
    resmap_model_free(model);
    resmap_context_free(context);
    return status;
}

const cli_command cli_model = {"model", "NAME|FILE", 1, "Says what a weights file holds.", run};
