#include "cli.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_COEFFICIENTS = 56 }; /* order 5 */

static const char *const presets[] = {"paper", "mild", "moderate", "severe", NULL};

/* What was asked for, beside the library's options. */
typedef struct request {
    resmap_synth_options options;
    int preset; /* index of presets, -1: none */
    int noise, bias, motion;
    unsigned artifacts;
    double coefficients[MAX_COEFFICIENTS];
    int seed_given;
} request;

/* Up to `most` finite numbers separated by commas; how many there are, or 0 when it is something else. */
static int numbers(const char *text, int most, double *values)
{
    for (int count = 0; count < most; count++) {
        char *end;
        size_t length = strcspn(text, ",");

        if (length == 0 || strspn(text, "+-.0123456789eE") != length) return 0;   /* no "inf", no hexadecimal */
        values[count] = strtod(text, &end);
        if (end == text || !isfinite(values[count])) return 0;
        if (!*end) return count + 1;
        if (*end != ',') return 0;
        text = end + 1;
    }
    return 0;
}

static int parse_noise(const char *value, void *target)
{
    request *r = target;
    double v[2] = {0, 0};

    if (!numbers(value, 2, v)) return 0;
    r->options.noise_sigma = v[0];
    r->options.noise_blur = v[1];
    r->noise = 1;
    return 1;
}

static int parse_bias(const char *value, void *target)
{
    request *r = target;
    double v[2];

    if (numbers(value, 2, v) != 2 || v[0] != floor(v[0]) || fabs(v[0]) > 1000) return 0;
    r->options.bias_order = (int)v[0];
    r->options.bias_bound = v[1];
    r->bias = 1;
    return 1;
}

static int parse_coefficients(const char *value, void *target)
{
    request *r = target;
    int count = numbers(value, MAX_COEFFICIENTS, r->coefficients);

    for (int order = 1; order <= 5; order++)
        if (count == (order + 1) * (order + 2) * (order + 3) / 6) {
            r->options.bias_order = order;
            r->options.bias_coefficients = r->coefficients;
            return 1;
        }
    return 0;
}

static int parse_motion(const char *value, void *target)
{
    request *r = target;
    double v[3];
    int count = numbers(value, 3, v);

    if (count < 2) return 0;
    r->options.motion_mm = v[0];
    r->options.motion_deg = v[1];
    /* A negative share means "draw it" to the library, but is a mistake here; it refuses NaN. */
    r->options.motion_percent = count < 3 ? -1 : v[2] < 0 ? NAN : v[2];
    r->motion = 1;
    return 1;
}

static int parse_artifacts(const char *value, void *target)
{
    static const struct {
        const char *name;
        unsigned bit;
    } kinds[] = {{"motion", RESMAP_MOTION}, {"bias", RESMAP_BIAS}, {"noise", RESMAP_NOISE}};
    unsigned found = 0;

    for (const char *at = value;; at++) {
        size_t length = strcspn(at, ","), i = 0;

        while (i < 3 && (strlen(kinds[i].name) != length || strncmp(kinds[i].name, at, length) != 0)) i++;
        if (i == 3 || (found & kinds[i].bit)) return 0;
        found |= kinds[i].bit;
        at += length;
        if (!*at) break;
    }
    ((request *)target)->artifacts = found;
    return 1;
}

static int parse_seed(const char *value, void *target)
{
    request *r = target;

    r->seed_given = 1;
    return cli_number(value, 0, INT64_MAX, &r->options.seed);
}

/* Refuses options that do not go together and fills in options.artifacts; 0, or 2 after a message. */
static int check(const char *command, request *r, int from)
{
    int own = r->noise || r->bias || r->motion || r->options.bias_coefficients;

    if (from) {
        if (own || r->preset >= 0 || r->artifacts || r->options.rician || r->seed_given)
            return cli_usage(command, "--from repeats a run as it was: no other artifact options go with it");
        return 0;
    }
    if (!own && r->preset < 0)
        return cli_usage(command,
                         "no artifact asked for: give --noise, --bias, --motion, --preset or --from");
    if (own && r->preset >= 0)
        return cli_usage(command,
                         "--preset sets the strengths: --noise, --bias and --motion do not go with it");
    if (r->bias && r->options.bias_coefficients)
        return cli_usage(command,
                         "--bias draws the coefficients, --bias-coef gives them: give one of the two");
    if (r->artifacts && r->preset < 0) return cli_usage(command, "--artifacts goes with --preset");
    if (r->preset >= 0) {
        r->options.preset = presets[r->preset];
        r->options.artifacts = r->artifacts ? r->artifacts : RESMAP_MOTION | RESMAP_BIAS | RESMAP_NOISE;
    } else {
        r->options.artifacts = (r->noise ? RESMAP_NOISE : 0) | (r->motion ? RESMAP_MOTION : 0) |
                               (r->bias || r->options.bias_coefficients ? RESMAP_BIAS : 0);
    }
    if (r->options.rician && !(r->options.artifacts & RESMAP_NOISE))
        return cli_usage(command, "--rician is a kind of noise, and none is asked for");
    return 0;
}

static const char *named_twice(const resmap_synth_files *files)
{
    const char *const names[] = {files->output, files->report, files->figure};

    return cli_named_twice(names, sizeof names / sizeof names[0]);
}

static void print_result(const resmap_synth_files *files, const resmap_synth_options *options)
{
    const char *separator = "";

    printf("%s: ", files->output);
    if (files->from) {
        printf("artifacts of %s\n", files->from);
        return;
    }
    if (options->artifacts & RESMAP_MOTION) {
        printf("motion");
        separator = ", ";
    }
    if (options->artifacts & RESMAP_BIAS) {
        printf("%sbias", separator);
        separator = ", ";
    }
    if (options->artifacts & RESMAP_NOISE) printf("%snoise", separator);
    printf(" (seed %llu)\n", (unsigned long long)options->seed);
}

static int run(const cli_command *command, int argc, char **argv)
{
    cli_common common = {.device = NULL};
    resmap_synth_files files = {0};
    request r = {.preset = -1};
    const cli_option table[] = {
        CLI_PARSED(0, "noise", "SIGMA[,BLUR]",
                   "noise of that standard deviation (1: the foreground's 99.5th\n"
                   "percentile), then blurred in the slice plane by BLUR voxels (0)",
                   &r, parse_noise),
        CLI_TAKES(0, "rician", NULL, "the noise of magnitude images instead of Gaussian noise", CLI_FLAG,
                  &r.options.rician),
        CLI_PARSED(0, "bias", "ORDER,C",
                   "a smooth field, exp of a polynomial of order 1 to 5 with\n"
                   "coefficients drawn from U(-C, C)",
                   &r, parse_bias),
        CLI_PARSED(0, "bias-coef", "LIST of 4, 10, 20, 35 or 56 numbers",
                   "the field's coefficients themselves: c_abd with a + b + d up to\n"
                   "the order, d fastest",
                   &r, parse_coefficients),
        CLI_PARSED(0, "motion", "SIGMA_MM,SIGMA_DEG[,PERCENT]",
                   "rigid moves drawn with these standard deviations during PERCENT\n"
                   "of the phase-encode lines (drawn from 15 to 20)",
                   &r, parse_motion),
        CLI_WORDS(0, "preset", "paper|mild|moderate|severe", "strengths of all three", &r.preset, presets),
        CLI_PARSED(0, "artifacts", "LIST of motion,bias,noise", "those of the preset to apply (all)", &r,
                   parse_artifacts),
        CLI_PARSED(0, "seed", "N", "what everything random follows from (0)", &r, parse_seed),
        CLI_TAKES(0, "from", "FILE.json", "repeat the run that wrote this report", CLI_TEXT, &files.from),
        CLI_TAKES(0, "report", "FILE.json", "write every number drawn", CLI_TEXT, &files.report),
        CLI_TAKES(0, "figure", "FILE.png", "write a picture: before, after, difference", CLI_TEXT,
                  &files.figure),
        CLI_TAKES('d', "device", "SPEC", "compute on an OpenCL device, as of `resmap restore`\n"
                  "(plain C on the processor)", CLI_TEXT, &common.device),
        CLI_TAKES('f', "force", NULL, "overwrite files that exist", CLI_FLAG, &files.overwrite),
        CLI_OPTION_PROGRESS(&common),
        CLI_OPTION_QUIET(&common),
        CLI_OPTION_VERBOSE(&common),
    };
    resmap_context *context;
    resmap_status done = RESMAP_OK;
    char **operands;
    int status;

    resmap_synth_options_init(&r.options);
    status = cli_parse(command, table, sizeof table / sizeof table[0], argc, argv, &operands);
    if (status >= 0) return status;
    status = check(command->name, &r, files.from != NULL);
    if (status) return status;
    files.input = operands[0];
    files.output = operands[1];
    if (named_twice(&files))
        return cli_usage(command->name, "'%s' is to be written twice", named_twice(&files));

    context = cli_start(&common);
    if (!context) return 1;
    if (common.device) done = resmap_open_device(context, common.device);
    if (done == RESMAP_OK) done = resmap_synth_file(context, &files, &r.options);
    cli_progress_clear();
    if (done != RESMAP_OK) status = cli_failed(context, done);
    else if (!common.quiet) print_result(&files, &r.options);
    resmap_context_free(context);
    return status;
}

const cli_command cli_synth = {"synth", "IN OUT", 2, "Corrupts a scan by motion, bias field and noise.", run};
