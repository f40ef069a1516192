#include "cli.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static volatile sig_atomic_t caught, times;

/* Work ends at the next progress report, and leaves nothing behind. Who asks three times does not want to wait for that: a driver
 * may hang. A reader that has gone asks once for every line that is written to it. */
static void remember(int number)
{
    caught = number;
    if (number == SIGPIPE || ++times < 3) return;
    signal(number, SIG_DFL);
    raise(number);
}

void cli_signals_init(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE};
    struct sigaction action, before;

    memset(&action, 0, sizeof action);
    action.sa_handler = remember;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (sigaction(numbers[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN) /* nohup stays nohup */
            sigaction(numbers[i], &action, NULL);
    signal(SIGXFSZ, SIG_IGN);   /* a file that may not grow is told by the write that fails, as a full disk is */
}

void cli_signals_done(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT};
    struct sigaction now;

    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (sigaction(numbers[i], NULL, &now) == 0 && now.sa_handler == remember) signal(numbers[i], SIG_DFL);
}

void cli_print(const char *text)
{
    cli_signals_done();
    fputs(text, stdout);
}

int cli_signal(void)
{
    return (int)caught;
}
