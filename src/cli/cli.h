/* The program `resmap`: one file a subcommand, nothing of the library but resmap.h. Results go to stdout,
 * progress and messages to stderr; exit status 0 done, 1 failed, 2 wrong usage, 128+N ended by signal N. */
#ifndef RESMAP_CLI_H
#define RESMAP_CLI_H

#include <stdio.h>

#include "resmap.h"

/* ---- Options: one table a command, from which it is parsed and its help printed ---- */

typedef enum cli_kind {
    CLI_FLAG,   /* int *: set to 1 */
    CLI_COUNT,  /* int *: counted */
    CLI_TEXT,   /* const char **: the argument itself, not empty */
    CLI_INT,    /* int *: a whole number of low … high */
    CLI_SIZE,   /* uint64_t *: a whole number of low … high */
    CLI_CHOICE, /* int *: the index of the argument in `words` (NULL-terminated) */
    CLI_PARSE   /* by `parse`, which gives 0 for a value that it refuses */
} cli_kind;

typedef struct cli_option {
    char letter; /* 0: none */
    const char *name;
    const char *argument; /* what the help calls it; NULL: none is taken */
    const char *help;     /* one line each, broken by \n; defaults in parentheses */
    cli_kind kind;
    void *target;
    int64_t low, high;
    const char *const *words;
    int (*parse)(const char *value, void *target);
} cli_option;

/* Rows of a table, by what their argument is. */
#define CLI_TAKES(letter, name, argument, help, kind, target) \
    {letter, name, argument, help, kind, target, 0, 0, NULL, NULL}
#define CLI_NUMBER(letter, name, argument, help, kind, target, low, high) \
    {letter, name, argument, help, kind, target, low, high, NULL, NULL}
#define CLI_WORDS(letter, name, argument, help, target, words) \
    {letter, name, argument, help, CLI_CHOICE, target, 0, 0, words, NULL}
#define CLI_PARSED(letter, name, argument, help, target, parse) \
    {letter, name, argument, help, CLI_PARSE, target, 0, 0, NULL, parse}

typedef struct cli_command {
    const char *name;
    const char *operands; /* "IN OUT" */
    int operand_count;
    const char *summary;                                                  /* one line */
    int (*run)(const struct cli_command *command, int argc, char **argv); /* gives the exit status */
} cli_command;

extern const cli_command cli_restore, cli_classify, cli_synth, cli_evaluate, cli_devices, cli_model,
    cli_doctor, cli_bench, cli_tune;

/* Parses the arguments of a command (argv[0]: its name); --help and --version are added to every table. Gives
 * -1 when the command is to go on, with its operands at *operands; else the exit status to leave with. */
int cli_parse(const cli_command *command, const cli_option *options, size_t count, int argc, char **argv,
              char ***operands);
/* Prints "resmap: WHAT: WHY" and the hint where help is to be had; gives 2. */
int cli_usage(const char *command, const char *format, ...);
/* A whole number of low … high in decimal digits; 0: refused. */
int cli_number(const char *text, uint64_t low, uint64_t high, uint64_t *value);
/* For CLI_PARSED: "N" or "HxW", each 1 … 16384, into a cli_size. */
typedef struct cli_size {
    size_t height, width;
} cli_size;
int cli_parse_size(const char *value, void *target);

/* ---- What commands that compute share ---- */

typedef struct cli_common {
    const char *model, *device, *mask;
    int plane, no_scale, precision;
    uint64_t memory_mib;
    int paper; /* a network of the paper's size with random weights instead of `model` */
    int quiet, verbose, progress;
} cli_common;

extern const char *const cli_planes[], *const cli_precisions[], *const cli_progress_words[];

#define CLI_COMMON_INIT {.model = "resmap-s", .device = "auto"}
/* Rows of the tables; c: pointer to a cli_common. */
#define CLI_OPTION_MODEL(c) \
    CLI_TAKES('m', "model", "NAME|FILE", "weights: a name looked up in $RESMAP_WEIGHTS_PATH and the\n" \
              "installed folder, or a file (resmap-s)", CLI_TEXT, &(c)->model)
#define CLI_OPTION_DEVICE(c) \
    CLI_TAKES('d', "device", "SPEC", "auto, an index of `resmap devices`, a part of a name, gpu,\n" \
              "cpu, or reference (plain C, slow) (auto)", CLI_TEXT, &(c)->device)
/* The same where several devices may share the slices. */
#define CLI_OPTION_DEVICES(c) \
    CLI_TAKES('d', "device", "SPEC", "auto, an index of `resmap devices`, a part of a name, gpu,\n" \
              "cpu, or reference (plain C, slow); several share the slices:\n" \
              "all, a list (0,2), parts of one (0/2) (auto)", CLI_TEXT, &(c)->device)
#define CLI_OPTION_PLANE(c) \
    CLI_WORDS(0, "plane", "PLANE", "planes to cut the volume into: auto (that of acquisition),\n" \
              "axial, coronal, sagittal (auto)", &(c)->plane, cli_planes)
#define CLI_OPTION_MASK(c) \
    CLI_TAKES(0, "mask", "FILE", "work inside the mask only (> 0.5, same grid)", CLI_TEXT, &(c)->mask)
#define CLI_OPTION_NO_SCALE(c) \
    CLI_TAKES(0, "no-scale", NULL, "feed the voxel values as they are", CLI_FLAG, &(c)->no_scale)
#define CLI_OPTION_PRECISION(c) \
    CLI_WORDS(0, "precision", "WHICH", "storage on the device: auto, fp32, fp16 (auto)", &(c)->precision, \
              cli_precisions)
#define CLI_OPTION_MEMORY(c) \
    CLI_NUMBER(0, "memory", "MIB", "most device memory to use; 0: the device's limits (0)", CLI_SIZE, \
               &(c)->memory_mib, 0, (int64_t)1 << 40)
#define CLI_OPTION_PROGRESS(c) \
    CLI_WORDS(0, "progress", "WHEN", "show progress: auto (on a terminal), always, never (auto)", \
              &(c)->progress, cli_progress_words)
#define CLI_OPTION_QUIET(c) \
    CLI_TAKES('q', "quiet", NULL, "no progress, no result line (what is asked for is printed)", CLI_FLAG, \
              &(c)->quiet)
#define CLI_OPTION_VERBOSE(c) \
    CLI_TAKES('v', "verbose", NULL, "say more; twice: still more", CLI_COUNT, &(c)->verbose)

/* The first of some outputs' names (NULL: none) that stands there twice, or NULL: they would overwrite each other. */
const char *cli_named_twice(const char *const *names, size_t count);

/* A context that logs and shows progress as asked for, and stops at signals; NULL (with a message) when there
 * is no memory for one. */
resmap_context *cli_start(const cli_common *common);
/* The same, with the device and the model opened; 0, or the exit status after a message. */
int cli_open(const cli_common *common, resmap_context **context, resmap_model **model);
/* Puts the shared options where the library takes them. */
void cli_fill(const cli_common *common, resmap_options *options);
/* Says why a call failed and gives the exit status. */
int cli_failed(const resmap_context *context, resmap_status status);
/* "7.8 GiB" */
const char *cli_bytes(uint64_t bytes, char text[32]);

/* ---- progress.c ---- */

/* mode: an index of cli_progress_words. */
void cli_progress_init(int mode, int quiet);
/* Now, of a clock that runs evenly. */
double cli_seconds(void);
int cli_progress(void *data, const char *what, size_t done, size_t total);
/* Takes the line off the terminal, before other text. */
void cli_progress_clear(void);

/* ---- signals.c ---- */

/* From now on the first SIGINT, SIGTERM or SIGHUP is remembered (the progress callback stops the work), the
 * third ends the program. */
void cli_signals_init(void);
/* Takes them again, should a library have taken them meanwhile: LLVM, in PoCL, does when it first compiles, and forgets a first
 * SIGQUIT and every SIGUSR1. */
void cli_signals_keep(void);
/* The work is done and nothing is left to tidy up: signals end the program again, which may wait for a reader of its output. */
void cli_signals_done(void);
/* Prints a result, the work being done. */
void cli_print(const char *text);
/* The signal that came, or 0. */
int cli_signal(void);

#endif
