/* SPDX-License-Identifier: BSD-3-Clause */
#include <signal.h>
#include <unistd.h>

#include "block/clock.h"
#include "cli/image.h"

/* How often the line on the terminal changes at most. */
#define PAINT_NS (100 * NS_PER_MS)

static volatile sig_atomic_t is_interrupted;

static void interrupt(int number)
{
    is_interrupted = 1;
}

/* The second time it does what it does to any program. What the parent ignores stays ignored. */
static void catch_once(int number)
{
    struct sigaction action = {.sa_handler = interrupt, .sa_flags = (int)SA_RESETHAND | SA_RESTART};
    struct sigaction before;

    if (sigaction(number, NULL, &before) == 0 && before.sa_handler != SIG_IGN) {
        sigaction(number, &action, NULL);
    }
}

void image_progress_begin(struct image_progress *progress)
{
    catch_once(SIGINT);
    catch_once(SIGTERM);
    progress_init(&progress->progress, clock_now_ns());
    progress->progress.in_steps = progress->in_steps;
}

bool image_progress_show(void *data, uint64_t done, uint64_t total)
{
    struct image_progress *progress = data;
    int64_t now_ns = clock_now_ns();

    progress_update(&progress->progress, now_ns, done, total, progress->what);
    if (now_ns - progress->painted_ns >= PAINT_NS && isatty(STDERR_FILENO)) {
        progress_paint(&progress->painter, &progress->progress);
        progress->painted_ns = now_ns;
    }
    return !is_interrupted;
}

void image_progress_end(struct image_progress *progress)
{
    progress_erase(&progress->painter);
}
