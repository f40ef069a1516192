#include "cli.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static volatile sig_atomic_t caught, times;

/* Those of a terminal and of batch systems, which warn of the end of a job's time; their own way ends a program at once, too. */
static const int asks[] = {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGXCPU, SIGPIPE};
enum { ASKS = sizeof asks / sizeof asks[0] };
static int taken[ASKS];

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
    struct sigaction before;

    for (int i = 0; i < ASKS; i++)
        taken[i] = sigaction(asks[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN;   /* nohup stays nohup */
    cli_signals_keep();
    signal(SIGXFSZ, SIG_IGN);   /* a file that may not grow is told by the write that fails, as a full disk is */
}

void cli_signals_keep(void)
{
    struct sigaction action, now;

    memset(&action, 0, sizeof action);
    action.sa_handler = remember;
    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    for (int i = 0; i < ASKS; i++)
        if (taken[i] && sigaction(asks[i], NULL, &now) == 0 && now.sa_handler != remember) sigaction(asks[i], &action, NULL);
}

void cli_signals_done(void)
{
    for (int i = 0; i < ASKS; i++) {
        if (!taken[i] || asks[i] == SIGPIPE) continue;
        taken[i] = 0;
        signal(asks[i], SIG_DFL);
    }
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
