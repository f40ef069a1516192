#include "cli.h"

#include <signal.h>
#include <string.h>

static volatile sig_atomic_t caught;

static void remember(int number)
{
    caught = number;
}

void cli_signals_init(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    struct sigaction action, before;

    memset(&action, 0, sizeof action);
    action.sa_handler = remember;
    action.sa_flags = (int)(SA_RESETHAND | SA_RESTART); /* the second one ends the program */
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        if (sigaction(numbers[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN) /* nohup stays nohup */
            sigaction(numbers[i], &action, NULL);
}

int cli_signal(void)
{
    return (int)caught;
}
