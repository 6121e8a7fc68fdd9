/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How far a job is: a smoothed rate, the time left, and the ways to show it (a line that is
 * painted over on a terminal, lines in a log, JSON). No clock inside: times are arguments,
 * CLOCK_MONOTONIC in nanoseconds.
 */
#ifndef LIVEBLK_CLI_PROGRESS_H
#define LIVEBLK_CLI_PROGRESS_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct progress {
    int64_t start_ns;
    int64_t sample_ns; /* when done was last told; 0: never */
    uint64_t done;
    uint64_t total;
    double rate;   /* bytes per second, smoothed; < 0: not known yet */
    bool finished; /* concluded with success: only now it may say 100 % */
    bool in_steps; /* done and total are no bytes: only their share is shown */
    char phase[32];
};

void progress_init(struct progress *progress, int64_t now_ns);

/* A new reading. done may exceed total, both may shrink: they come from outside. */
void progress_update(struct progress *progress, int64_t now_ns, uint64_t done, uint64_t total,
                     const char *phase);

/* 0 to 1; less than 1 unless finished. Negative: not known. */
double progress_fraction(const struct progress *progress);

/* Seconds until the end at the present rate; negative: not known. */
int64_t progress_seconds_left(const struct progress *progress);

/*
 * "copying  42.3 %  1.7 GiB of 4.0 GiB  210.0 MiB/s  0:11 left", cut to the width (0: not
 * limited). The caller frees.
 */
char *progress_line(const struct progress *progress, unsigned width);

/* A "status" message of the --json output: a new reference. */
json_t *progress_json(const struct progress *progress, const char *job_id, int64_t now_ns);

/* The line on the terminal at stderr, painted over the one before. */
struct progress_painter {
    unsigned painted; /* columns in use; 0: nothing is there */
};
void progress_paint(struct progress_painter *painter, const struct progress *progress);
/* Remove the line, so that other text can be printed. */
void progress_erase(struct progress_painter *painter);

#endif
