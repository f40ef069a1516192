#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

static const cli_command *const commands[] = {&cli_restore, &cli_classify, &cli_synth, &cli_evaluate,
                                              &cli_bench,   &cli_tune,     &cli_devices, &cli_model,
                                              &cli_doctor};
#define COMMANDS (sizeof commands / sizeof commands[0])

static void print_help(void)
{
    printf("Usage: resmap COMMAND [options] …\n\n"
           "Restores brain MRI scans spoiled by motion, noise and bias field, on any OpenCL device.\n"
           "Research software, not a medical device.\n\nCommands:\n");
    for (size_t i = 0; i < COMMANDS; i++) printf("  %-10s %s\n", commands[i]->name, commands[i]->summary);
    printf("\nresmap COMMAND --help lists a command's options.\n");
}

static int run(int argc, char **argv)
{
    if (argc < 2) return cli_usage(NULL, "no command given");
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        print_help();
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("resmap %s\n", resmap_version());
        return 0;
    }
    for (size_t i = 0; i < COMMANDS; i++)
        if (strcmp(argv[1], commands[i]->name) == 0) return commands[i]->run(commands[i], argc - 1, argv + 1);
    return cli_usage(NULL, "unknown %s %s", argv[1][0] == '-' ? "option" : "command", argv[1]);
}

/* A standard stream that the caller closed would give its number to the next file opened, and messages would end
 * in that file. So its number is taken, by something that refuses to be used as the stream; 0, or -1. */
static int hold_standard_streams(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
        if (fcntl(fd, F_GETFD) == -1 && open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd) return -1;
    return 0;
}

int main(int argc, char **argv)
{
    int status = hold_standard_streams() == 0 ? run(argc, argv) : 1;

    cli_progress_clear();
    cli_signals_done();
    if (fflush(stdout) != 0 || ferror(stdout)) {
        if (cli_signal()) return 128 + cli_signal();   /* the reader has gone */
        fprintf(stderr, "resmap: standard output: %s\n", strerror(errno));
        return status ? status : 1;
    }
    return status;
}
