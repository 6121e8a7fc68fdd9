/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/progress.h"

#include <glib.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "block/clock.h"
#include "cli/output.h"

/* The time in which a change of speed shows up in the rate by about two thirds. */
#define SMOOTHING_SECONDS 5.0
/* Shorter steps than this tell more about the server's chunks than about its speed. */
#define SHORTEST_STEP_NS (200 * NS_PER_MS)

void progress_init(struct progress *progress, int64_t now_ns)
{
    *progress = (struct progress){.start_ns = now_ns, .rate = -1};
}

static void update_rate(struct progress *progress, int64_t step_ns, uint64_t done)
{
    double seconds = (double)step_ns / NS_PER_SECOND;
    /* Work that was undone says nothing about speed. */
    double now = done > progress->done ? (done - progress->done) / seconds : 0;
    double weight = seconds / (SMOOTHING_SECONDS + seconds);

    progress->rate = progress->rate < 0 ? now : progress->rate + weight * (now - progress->rate);
}

void progress_update(struct progress *progress, int64_t now_ns, uint64_t done, uint64_t total,
                     const char *phase)
{
    int64_t step_ns = now_ns - progress->sample_ns;

    progress->total = total;
    g_strlcpy(progress->phase, phase, sizeof(progress->phase));
    if (!progress->sample_ns) {
        progress->sample_ns = now_ns;
        progress->done = done;
    } else if (step_ns >= SHORTEST_STEP_NS) {
        update_rate(progress, step_ns, done);
        progress->sample_ns = now_ns;
        progress->done = done;
    }
}

double progress_fraction(const struct progress *progress)
{
    if (progress->finished) {
        return 1;
    }
    if (progress->total == 0) {
        return -1;
    }
    /* All bytes copied is not yet done: the target is flushed after that. */
    return MIN((double)progress->done / progress->total, 0.999);
}

int64_t progress_seconds_left(const struct progress *progress)
{
    if (progress->finished) {
        return 0;
    }
    if (progress->rate < 1 || progress->total == 0) {
        return -1;
    }
    uint64_t left = progress->total > progress->done ? progress->total - progress->done : 0;
    double seconds = left / progress->rate;
    /* Nobody waits a year: a rate that low is a stall. */
    return seconds < 365 * 86400.0 ? (int64_t)seconds : -1;
}

static char *percent_text(const struct progress *progress)
{
    double fraction = progress_fraction(progress);

    /* Rounded down: 99.96 % is not 100 %. */
    return fraction < 0 ? g_strdup("  ? %")
                        : g_strdup_printf("%.1f %%", (int)(fraction * 1000) / 10.0);
}

char *progress_line(const struct progress *progress, unsigned width)
{
    g_autofree char *percent = percent_text(progress);
    g_autofree char *done = format_size(progress->done);
    g_autofree char *total = format_size(progress->total);
    g_autofree char *rate = progress->rate < 0 ? g_strdup("?") : format_size(progress->rate);
    int64_t left = progress_seconds_left(progress);
    g_autofree char *time = left < 0 ? g_strdup("?") : format_duration(left);
    char *line = progress->in_steps
                     ? g_strdup_printf("%-8s %s  %s left", progress->phase, percent, time)
                     : g_strdup_printf("%-8s %s  %s of %s  %s/s  %s left", progress->phase, percent,
                                       done, total, rate, time);

    if (width && strlen(line) > width) {
        line[width] = '\0';
    }
    return line;
}

json_t *progress_json(const struct progress *progress, const char *job_id, int64_t now_ns)
{
    double fraction = progress_fraction(progress);
    int64_t left = progress_seconds_left(progress);
    json_t *message =
        json_pack("{s:s, s:s, s:s, s:I, s:I, s:I}", "message_type", "status", "job_id", job_id,
                  "phase", progress->phase, "seconds_elapsed",
                  (json_int_t)((now_ns - progress->start_ns) / NS_PER_SECOND), "bytes_done",
                  (json_int_t)progress->done, "total_bytes", (json_int_t)progress->total);

    /* What is not known is null, never a number that looks like knowledge. */
    json_object_set_new(message, "percent_done", fraction < 0 ? json_null() : json_real(fraction));
    json_object_set_new(message, "bytes_per_second",
                        progress->rate < 0 ? json_null() : json_integer(progress->rate));
    json_object_set_new(message, "seconds_remaining", left < 0 ? json_null() : json_integer(left));
    return message;
}

static unsigned terminal_width(void)
{
    struct winsize size;

    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) || size.ws_col < 20) {
        return 80;
    }
    return size.ws_col;
}

void progress_paint(struct progress_painter *painter, const struct progress *progress)
{
    /* One column stays free: a full line would make some terminals scroll. */
    g_autofree char *line = progress_line(progress, terminal_width() - 1);
    unsigned length = strlen(line);

    /* Blanks instead of an escape sequence: any terminal can do that. */
    fprintf(stderr, "\r%s%*s", line,
            painter->painted > length ? (int)(painter->painted - length) : 0, "");
    fflush(stderr);
    painter->painted = length;
}

void progress_erase(struct progress_painter *painter)
{
    if (painter->painted) {
        fprintf(stderr, "\r%*s\r", (int)MIN(painter->painted, terminal_width() - 1), "");
        fflush(stderr);
        painter->painted = 0;
    }
}
