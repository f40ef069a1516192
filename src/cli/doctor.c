#include "cli.h"

#include <stdlib.h>
#include <sys/utsname.h>
#include <unistd.h>

/* What changes how drivers are found and where things are kept. */
static const char *const variables[] = {
    "RESMAP_WEIGHTS_PATH", "RESMAP_CACHE",    "RESMAP_GEMM",       "RESMAP_TUNING", "RESMAP_VECTOR",
    "XDG_CACHE_HOME",      "OCL_ICD_VENDORS", "OCL_ICD_FILENAMES", "OPENCL_LAYERS", "POCL_DEVICES",
    "POCL_CACHE_DIR",      "CUDA_VISIBLE_DEVICES"};

static void print_system(resmap_context *context)
{
    const char *cache = resmap_cache_folder(context);
    struct utsname system;

    printf("resmap %s\n", resmap_version());
    if (uname(&system) == 0)
        printf("system       %s %s %s, %ld processors\n", system.sysname, system.release, system.machine,
               sysconf(_SC_NPROCESSORS_ONLN));
    printf("cache        %s\n", cache ? cache : "none");
    for (size_t i = 0; i < sizeof variables / sizeof variables[0]; i++)
        if (getenv(variables[i])) printf("environment  %s=%s\n", variables[i], getenv(variables[i]));
}

static void print_device(const resmap_device *d)
{
    char memory[32], allocation[32], local[32];

    printf("device %-4d  %s (%s)%s\n", d->index, d->name, d->type, d->chosen ? ", taken by auto" : "");
    printf("  platform   %s; %s; driver %s\n", d->platform, d->version, d->driver);
    printf("  limits     %d units at %d MHz, memory %s, buffer %s, local %s, work-group %zu%s%s%s\n",
           d->compute_units, d->clock_mhz, cli_bytes(d->memory_bytes, memory),
           cli_bytes(d->max_allocation_bytes, allocation), cli_bytes(d->local_memory_bytes, local),
           d->max_work_group, d->fp16 ? ", fp16" : "", d->fp64 ? ", fp64" : "",
           d->subgroups ? ", subgroups" : "");
    printf("  %-9s  %s\n", d->usable ? "usable" : "refused", d->reason);
}

/* Computes a small slice there and in plain C; 0: the device computes as it should. */
static int check_device(resmap_context *context, resmap_model *model, int index)
{
    char specification[16];
    resmap_precision precision;
    const char *why;
    double error = 0;
    resmap_status status;

    snprintf(specification, sizeof specification, "%d", index);
    status = resmap_open_device(context, specification);
    if (status == RESMAP_OK)
        printf("  tuning     %s\n  workers    %d\n", resmap_tuning_state(context, 0), resmap_auto_workers(context, model, 0));
    if (status == RESMAP_OK) status = resmap_self_check(context, model, RESMAP_PRECISION_FP32, &error);
    cli_progress_clear();
    if (cli_signal()) return 1;
    if (status == RESMAP_OK)
        printf("  self-check passed, largest relative error %.1e\n", error);
    else
        printf("  self-check FAILED: %s\n", resmap_error(context));
    fflush(stdout);
    if (status != RESMAP_OK || cli_signal()) return status != RESMAP_OK;
    /* A device without it is as good: it is an offer. */
    if (resmap_self_check(context, model, RESMAP_PRECISION_FP16, &error) != RESMAP_OK)
        printf("  fp16       refused: %s\n", resmap_error(context));
    else if (resmap_auto_precision(context, model, &precision, &why) == RESMAP_OK)
        printf("  fp16       passed, relative error %.1e; auto takes %s: %s\n", error, cli_precisions[precision], why);
    cli_progress_clear();
    fflush(stdout);
    return 0;
}

static int run(const cli_command *command, int argc, char **argv)
{
    cli_common common = CLI_COMMON_INIT;
    const cli_option table[] = {
        CLI_OPTION_MODEL(&common),
        CLI_OPTION_PROGRESS(&common),
        CLI_OPTION_VERBOSE(&common),
    };
    resmap_context *lister, *worker = NULL; /* the list stays valid while devices are opened in the other */
    resmap_model *model = NULL;
    const resmap_device *list = NULL;
    size_t count = 0;
    char **operands;
    int failures = 0,
        status = cli_parse(command, table, sizeof table / sizeof table[0], argc, argv, &operands);

    if (status >= 0) return status;
    lister = cli_start(&common);
    worker = lister ? cli_start(&common) : NULL;
    if (!worker) {
        resmap_context_free(lister);
        return 1;
    }
    print_system(lister);
    if (resmap_model_open(worker, common.model, &model) == RESMAP_OK) {
        printf("model        %s, sha256 %s\n", resmap_model_name(model), resmap_model_sha256(model));
    } else {
        printf("model        NOT USABLE: %s\n", resmap_error(worker));
        failures++;
    }
    if (resmap_list_devices(lister, &list, &count) != RESMAP_OK) {
        printf("devices      FAILED: %s\n", resmap_error(lister));
        failures++;
        count = 0;
    } else if (count == 0) {
        printf("devices      no OpenCL device\n");
    }
    for (size_t i = 0; i < count && !cli_signal(); i++) {
        print_device(&list[i]);
        if (list[i].usable && model) failures += check_device(worker, model, list[i].index);
    }
    cli_progress_clear();
    resmap_model_free(model);
    resmap_context_free(worker);
    resmap_context_free(lister);
    if (cli_signal()) return 128 + cli_signal();
    if (failures > 0) {
        fprintf(stderr, "resmap: doctor: %d of the checks above failed\n", failures);
        return 1;
    }
    return 0;
}

const cli_command cli_doctor = {"doctor", "", 0, "Prints what a bug report needs, and checks every device.",
                                run};
