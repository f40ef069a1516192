#include "cli.h"

#include <string.h>
#include <time.h>
#include <unistd.h>

static struct {
    int shown, terminal;
    int drawn; /* characters now on the terminal's line */
    char what[32];
    size_t last, written; /* done: said last, drawn last */
    double begin, drawn_at;
} state;

double cli_seconds(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

void cli_progress_init(int mode, int quiet)
{
    state.terminal = isatty(STDERR_FILENO);
    state.shown = mode == 1 || (mode == 0 && state.terminal && !quiet);
}

void cli_progress_clear(void)
{
    if (state.drawn > 0) fprintf(stderr, "\r%*s\r", state.drawn, "");
    state.drawn = 0;
}

/* On a terminal one line, redrawn at most ten times a second; elsewhere (--progress always) a line every
 * second. */
static void draw(const char *what, size_t done, size_t total)
{
    double now = cli_seconds();
    char line[96];
    int length;

    if (strncmp(state.what, what, sizeof state.what - 1) != 0 || done < state.last) {
        snprintf(state.what, sizeof state.what, "%s", what);
        state.begin = now;
        state.drawn_at = 0;
    }
    state.last = done;
    if (state.drawn_at > 0 && done == state.written) return; /* nothing new: it asks whether to stop */
    if (now - state.drawn_at < (state.terminal ? 0.1 : 1.0) && (total == 0 || done < total)) return;
    state.drawn_at = now;
    state.written = done;

    length = snprintf(line, sizeof line, "%s", state.what);
    if (total > 0) {
        length += snprintf(line + length, sizeof line - (size_t)length, " %zu/%zu", done, total);
        if (done > 0 && done < total && now - state.begin > 1) {
            unsigned left = (unsigned)((now - state.begin) * (double)(total - done) / (double)done + 0.5);

            snprintf(line + length, sizeof line - (size_t)length, ", %u:%02u left", left / 60, left % 60);
        }
    }
    if (state.terminal) {
        cli_progress_clear();
        state.drawn = fprintf(stderr, "%s", line);
    } else {
        fprintf(stderr, "%s\n", line);
    }
    fflush(stderr);
}

int cli_progress(void *data, const char *what, size_t done, size_t total)
{
    (void)data;
    cli_signals_keep();
    if (state.shown) draw(what, done, total);
    return cli_signal() != 0;
}
