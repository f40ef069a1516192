#include "cli.h"

#include <getopt.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define MAX_OPTIONS 48
#define LONG_OPTION 256 /* getopt_long's value for the table's first row; letters are below */

const char *const cli_planes[] = {"auto", "axial", "coronal", "sagittal", NULL}; /* in resmap_plane's order */
const char *const cli_precisions[] = {"auto", "fp32", "fp16", NULL}; /* in resmap_precision's order */
const char *const cli_progress_words[] = {"auto", "always", "never", NULL};

/* ---- Options ---- */

int cli_usage(const char *command, const char *format, ...)
{
    char text[1024];
    va_list arguments;

    fputs("resmap: ", stderr);
    if (command) fprintf(stderr, "%s: ", command);
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    for (char *p = text; *p; p++)
        if ((unsigned char)*p < ' ' || *p == 127) *p = ' ';
    fputs(text, stderr);
    fprintf(stderr, " (see: resmap %s%s--help)\n", command ? command : "", command ? " " : "");
    return 2;
}

static void print_option(char letter, const char *name, const char *argument, const char *help)
{
    int width = printf("  ");

    width += letter ? printf("-%c, ", letter) : printf("    ");
    width += printf("--%s%s%s", name, argument ? " " : "", argument ? argument : "");
    for (const char *line = help; line;) {
        const char *end = strchr(line, '\n');

        if (width > 27) width = printf("\n") - 1;
        printf("%*s%.*s", 28 - width, "", end ? (int)(end - line) : (int)strlen(line), line);
        width = 28;
        line = end ? end + 1 : NULL;
    }
    printf("\n");
}

static void print_help(const cli_command *command, const cli_option *options, size_t count)
{
    printf("Usage: resmap %s [options]%s%s\n\n%s\n\nOptions:\n", command->name,
           command->operands[0] ? " " : "", command->operands, command->summary);
    for (size_t i = 0; i < count; i++)
        print_option(options[i].letter, options[i].name, options[i].argument, options[i].help);
    print_option('h', "help", NULL, "print this and exit");
    print_option(0, "version", NULL, "print the version and exit");
}

int cli_number(const char *text, uint64_t low, uint64_t high, uint64_t *value)
{
    uint64_t number = 0;

    if (!text[0]) return 0;
    for (const char *p = text; *p; p++) {
        uint64_t digit = (uint64_t)(*p - '0');

        if (*p < '0' || *p > '9' || number > (UINT64_MAX - digit) / 10) return 0;
        number = 10 * number + digit;
    }
    if (number < low || number > high) return 0;
    *value = number;
    return 1;
}

int cli_parse_size(const char *value, void *target)
{
    cli_size *size = target;
    const char *x = strchr(value, 'x');
    char height[8];
    size_t length = x ? (size_t)(x - value) : strlen(value);
    uint64_t h, w;

    if (length >= sizeof height) return 0;
    memcpy(height, value, length);
    height[length] = '\0';
    if (!cli_number(height, 1, 16384, &h) || !cli_number(x ? x + 1 : height, 1, 16384, &w)) return 0;
    *size = (cli_size){(size_t)h, (size_t)w};
    return 1;
}

/* "a, b or c" */
static void join(const char *const *words, char *text, size_t size)
{
    size_t used = 0;

    text[0] = '\0';
    for (int i = 0; words[i] && used < size; i++)
        used += (size_t)snprintf(text + used, size - used, "%s%s", i == 0 ? "" : words[i + 1] ? ", " : " or ", words[i]);
}

/* Takes one option's argument; 0, or 2 after a message. */
static int take(const cli_command *command, const cli_option *option, const char *value)
{
    uint64_t number;
    char words[256];

    switch (option->kind) {
    case CLI_FLAG: *(int *)option->target = 1; return 0;
    case CLI_COUNT: ++*(int *)option->target; return 0;
    case CLI_TEXT:
        if (!value[0]) break;
        *(const char **)option->target = value;
        return 0;
    case CLI_INT:
    case CLI_SIZE:
        if (!cli_number(value, (uint64_t)option->low, (uint64_t)option->high, &number))
            return cli_usage(command->name, "--%s: '%s' is not a whole number from %lld to %lld",
                             option->name, value, (long long)option->low, (long long)option->high);
        if (option->kind == CLI_INT)
            *(int *)option->target = (int)number;
        else
            *(uint64_t *)option->target = number;
        return 0;
    case CLI_CHOICE:
        for (int i = 0; option->words[i]; i++)
            if (strcmp(option->words[i], value) == 0) {
                *(int *)option->target = i;
                return 0;
            }
        join(option->words, words, sizeof words);
        return cli_usage(command->name, "--%s: '%s' is not %s", option->name, value, words);
    case CLI_PARSE:
        if (option->parse(value, option->target)) return 0;
        break;
    }
    return cli_usage(command->name, "--%s: '%s' is not what it takes, %s", option->name, value,
                     option->argument);
}

int cli_parse(const cli_command *command, const cli_option *options, size_t count, int argc, char **argv,
              char ***operands)
{
    struct option long_options[MAX_OPTIONS + 3];
    char letters[2 * MAX_OPTIONS + 3];
    size_t used = 0;
    int found;

    if (count > MAX_OPTIONS) return cli_usage(command->name, "too many options in its table");
    memset(long_options, 0, sizeof long_options);
    letters[used++] = ':';
    letters[used++] = 'h';
    for (size_t i = 0; i < count; i++) {
        long_options[i].name = options[i].name;
        long_options[i].has_arg = options[i].argument ? required_argument : no_argument;
        long_options[i].val = LONG_OPTION + (int)i;
        if (options[i].letter) letters[used++] = options[i].letter;
        if (options[i].letter && options[i].argument) letters[used++] = ':';
    }
    letters[used] = '\0';
    long_options[count].name = "help";
    long_options[count].val = LONG_OPTION + (int)count;
    long_options[count + 1].name = "version";
    long_options[count + 1].val = LONG_OPTION + (int)count + 1;

    opterr = 0;
    while ((found = getopt_long(argc, argv, letters, long_options, NULL)) != -1) {
        size_t i = 0;
        int status;

        if (found == ':') return cli_usage(command->name, "%s needs an argument", argv[optind - 1]);
        if (found == '?') {
            if (optopt > 0 && optopt < LONG_OPTION)
                return cli_usage(command->name, "unknown option -%c", optopt);
            return cli_usage(command->name, optopt ? "%s: the option takes no argument" : "unknown option %s",
                             argv[optind - 1]);
        }
        if (found >= LONG_OPTION)
            i = (size_t)(found - LONG_OPTION);
        else if (found == 'h')
            i = count;
        else
            while (options[i].letter != found) i++;
        if (i == count) {
            print_help(command, options, count);
            return 0;
        }
        if (i == count + 1) {
            printf("resmap %s\n", resmap_version());
            return 0;
        }
        status = take(command, &options[i], optarg);
        if (status) return status;
    }
    if (argc - optind < command->operand_count) {
        int given = argc - optind;
        const char *lacking = command->operands;
        for (int i = 0; i < given; i++) lacking = strchr(lacking, ' ') + 1;
        return cli_usage(command->name, "%s %s missing", lacking, command->operand_count - given > 1 ? "are" : "is");
    }
    if (argc - optind > command->operand_count)
        return cli_usage(command->name, "one argument too many: '%s'", argv[optind + command->operand_count]);
    *operands = argv + optind;
    return -1;
}

const char *cli_named_twice(const char *const *names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        for (size_t j = i + 1; j < count; j++)
            if (names[i] && names[j] && strcmp(names[i], names[j]) == 0) return names[i];
    return NULL;
}

/* ---- Contexts and failures ---- */

static void print_log(void *data, resmap_log_level level, const char *text)
{
    static const char *const words[] = {"error: ", "warning: ", "", ""};
    const cli_common *common = data;

    if ((int)level > RESMAP_LOG_WARNING + common->verbose) return;
    cli_progress_clear();
    fprintf(stderr, "resmap: %s%s\n", words[level], text);
}

resmap_context *cli_start(const cli_common *common)
{
    resmap_context *context = NULL;

    cli_signals_init();
    cli_progress_init(common->progress, common->quiet);
    if (resmap_context_create(&context) != RESMAP_OK) {
        fprintf(stderr, "resmap: memory: not enough to begin\n");
        return NULL;
    }
    resmap_set_log(context, print_log, (void *)common);
    resmap_set_progress(context, cli_progress, NULL);
    return context;
}

int cli_failed(const resmap_context *context, resmap_status status)
{
    cli_progress_clear();
    if (cli_signal()) return 128 + cli_signal();
    fprintf(stderr, "resmap: %s\n", resmap_error(context));
    return status == RESMAP_BAD_ARGUMENT ? 2 : 1;
}

int cli_open(const cli_common *common, resmap_context **context, resmap_model **model)
{
    resmap_status status;

    *context = cli_start(common);
    if (!*context) return 1;
    status = common->paper ? resmap_model_paper(*context, model)
                           : resmap_model_open(*context, common->model, model);
    if (status == RESMAP_OK) status = resmap_open_device(*context, common->device);
    return status == RESMAP_OK ? 0 : cli_failed(*context, status);
}

void cli_fill(const cli_common *common, resmap_options *options)
{
    options->plane = (resmap_plane)common->plane;
    options->no_scale = common->no_scale;
    options->precision = (resmap_precision)common->precision;
    options->memory_mib = common->memory_mib;
}

/* ---- Text ---- */

const char *cli_bytes(uint64_t bytes, char text[32])
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB"};
    double value = (double)bytes;
    int unit = 0;

    while (value >= 1024 && unit < 4) {
        value /= 1024;
        unit++;
    }
    snprintf(text, 32, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return text;
}
