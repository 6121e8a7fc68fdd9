/* SPDX-License-Identifier: BSD-3-Clause */
/* How far work on a backup set is: on a terminal, as lines in a log, or as JSON. */
#include <stdio.h>
#include <unistd.h>

#include "block/clock.h"
#include "cli/output.h"
#include "cli/set.h"

#define JSON_NS (1 * NS_PER_SECOND)
#define LOG_NS  (10 * NS_PER_SECOND)

void set_progress_begin(struct set_progress *progress, const struct set_call *call,
                        const char *what)
{
    *progress = (struct set_progress){
        .image = {.what = what},
        .json = call->invocation->json,
        .quiet = call->quiet,
        .told_ns = clock_now_ns(),
    };
    image_progress_begin(&progress->image);
}

static void tell(struct set_progress *progress)
{
    int64_t now_ns = clock_now_ns();

    if (progress->json && now_ns - progress->told_ns >= JSON_NS) {
        print_json_line(progress_json(&progress->image.progress, progress->image.what, now_ns));
        progress->told_ns = now_ns;
    } else if (!progress->json && !isatty(STDERR_FILENO) && now_ns - progress->told_ns >= LOG_NS) {
        g_autofree char *line = progress_line(&progress->image.progress, 0);

        fprintf(stderr, "%s\n", line);
        progress->told_ns = now_ns;
    }
}

bool set_progress_show(void *data, uint64_t done, uint64_t total)
{
    struct set_progress *progress = data;
    bool goes_on;

    progress->done = progress->base + done;
    progress->total = progress->base + total + progress->rest;
    goes_on = image_progress_show(&progress->image, progress->done, progress->total);
    if (progress->quiet) {
        progress_erase(&progress->image.painter);
    } else {
        tell(progress);
    }
    return goes_on && (!progress->step || progress->step(progress->step_data));
}

void set_progress_end(struct set_progress *progress)
{
    image_progress_end(&progress->image);
}
