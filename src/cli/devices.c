#include "cli.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

/* What is taken on each device: by --precision auto, "" where that cannot be said, and why; and how many workers, 0 likewise. */
typedef struct choice {
    char precision[8], why[256];
    int workers;
} choice;

/* jansson takes nothing that is not UTF-8, which drivers need not know: "?" then stands for all that is not ASCII, as it does
 * in the library's reports. NULL: no memory. */
static json_t *string(const char *text)
{
    json_t *value = json_string(text);
    char *copy;

    if (value) return value;
    copy = strdup(text);
    for (char *p = copy; p && *p; p++)
        if ((unsigned char)*p >= 0x80) *p = '?';
    value = copy ? json_string(copy) : NULL;
    free(copy);
    return value;
}

/* jansson's numbers are signed; a driver may claim more. */
static json_int_t number(uint64_t value)
{
    return value > INT64_MAX ? INT64_MAX : (json_int_t)value;
}

static json_t *device_json(const resmap_device *d, const choice *c)
{
    return json_pack("{s:i, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:i, s:i, s:I, s:I, s:I, s:I, s:i, s:b, s:b, s:b, s:b, s:b}",
                     "index", d->index, "platform", string(d->platform), "name", string(d->name), "type", string(d->type),
                     "driver", string(d->driver), "version", string(d->version), "reason", string(d->reason),
                     "precision", string(c->precision), "precision_reason", string(c->why),
                     "compute_units", d->compute_units, "clock_mhz", d->clock_mhz, "memory_bytes", number(d->memory_bytes),
                     "max_allocation_bytes", number(d->max_allocation_bytes),
                     "local_memory_bytes", number(d->local_memory_bytes), "max_work_group", number(d->max_work_group),
                     "workers", c->workers, "fp16", d->fp16, "fp64", d->fp64, "subgroups", d->subgroups, "usable", d->usable,
                     "chosen", d->chosen);
}

/* Fresh text; NULL: no memory. */
static char *json_text(const resmap_device *list, const choice *choices, size_t count)
{
    json_t *devices = json_array(), *root;
    char *text;

    for (size_t i = 0; i < count; i++)
        if (json_array_append_new(devices, device_json(&list[i], &choices[i])) != 0) {
            json_decref(devices);
            return NULL;
        }
    root = json_pack("{s:o}", "devices", devices);
    text = root ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    return text;
}

static void print_table(const resmap_device *list, const choice *choices, size_t count)
{
    if (count == 0) {
        printf("no OpenCL device (-d reference computes in plain C, slowly)\n");
        return;
    }
    printf("   #  type         units    memory  fp16  name\n");
    for (size_t i = 0; i < count; i++) {
        const resmap_device *d = &list[i];
        char memory[32];

        printf("%s %2d  %-11s %6d %9s  %-4s  %s\n", d->chosen ? "*" : " ", d->index, d->type,
               d->compute_units, cli_bytes(d->memory_bytes, memory), d->fp16 ? "yes" : "no", d->name);
        printf("                                            %s; %s, driver %s\n", d->platform, d->version,
               d->driver);
        printf("                                            %s: %s\n",
               d->chosen   ? "taken by auto"
               : d->usable ? "usable"
                           : "not usable",
               d->reason);
        if (choices[i].precision[0])
            printf("                                            %s: %s; %d worker%s\n", choices[i].precision, choices[i].why,
                   choices[i].workers, choices[i].workers == 1 ? "" : "s");
        else if (d->usable)
            printf("                                            not prepared: %s\n", choices[i].why);
    }
}

/* Opens the device in `opener`, for its tuning. */
static void choose(resmap_context *opener, const resmap_model *model, const resmap_device *device, choice *chosen)
{
    char specification[16];
    resmap_precision precision;
    const char *why = NULL;
    resmap_status status;

    snprintf(specification, sizeof specification, "%d", device->index);
    status = resmap_open_device(opener, specification);
    if (status == RESMAP_OK) status = resmap_auto_precision(opener, model, &precision, &why);
    if (status == RESMAP_OK) chosen->workers = resmap_auto_workers(opener, model, 0);
    if (status == RESMAP_OK) snprintf(chosen->precision, sizeof chosen->precision, "%s", cli_precisions[precision]);
    snprintf(chosen->why, sizeof chosen->why, "%s", status == RESMAP_OK ? why : resmap_error(opener));
}

/* For every device that is usable; nothing is said without the model. */
static choice *choose_all(const cli_common *common, const resmap_device *list, size_t count)
{
    choice *choices = calloc(count + 1, sizeof *choices);
    resmap_context *opener = count > 0 && choices ? cli_start(common) : NULL;   /* the list is the other's */
    resmap_model *model = NULL;

    if (opener) resmap_model_open(opener, common->model, &model);
    for (size_t i = 0; opener && i < count; i++) {
        if (!list[i].usable) continue;
        if (model) choose(opener, model, &list[i], &choices[i]);
        else snprintf(choices[i].why, sizeof choices[i].why, "%s", resmap_error(opener));
    }
    resmap_model_free(model);
    resmap_context_free(opener);
    return choices;
}

static int run(const cli_command *command, int argc, char **argv)
{
    cli_common common = CLI_COMMON_INIT;
    int json = 0;
    const cli_option table[] = {
        CLI_OPTION_MODEL(&common),
        CLI_TAKES(0, "json", NULL, "print JSON", CLI_FLAG, &json),
        CLI_OPTION_VERBOSE(&common),
    };
    resmap_context *context;
    const resmap_device *list = NULL;
    choice *choices = NULL;
    size_t count = 0;
    char **operands, *text = NULL;
    resmap_status done;
    int status = cli_parse(command, table, sizeof table / sizeof table[0], argc, argv, &operands);

    if (status >= 0) return status;
    context = cli_start(&common);
    if (!context) return 1;
    done = resmap_list_devices(context, &list, &count);
    status = done == RESMAP_OK ? 0 : cli_failed(context, done);
    if (status == 0) choices = choose_all(&common, list, count);
    if (status == 0 && choices && json) text = json_text(list, choices, count);
    if (status == 0 && (json ? !text : !choices)) {
        fprintf(stderr, "resmap: memory: not enough for a list\n");
        status = 1;
    }
    if (status == 0 && cli_signal()) status = 128 + cli_signal();
    if (status == 0) cli_signals_done();
    if (status == 0 && json) printf("%s\n", text);
    if (status == 0 && !json) print_table(list, choices, count);
    free(text);
    free(choices);
    resmap_context_free(context);
    return status;
}

const cli_command cli_devices = {"devices", "", 0,
                                 "Lists the OpenCL devices and says which one is taken, and why.", run};
