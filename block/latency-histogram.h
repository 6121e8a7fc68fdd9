/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Histograms of a device's latencies between boundaries that somebody chose, beside those that
 * block/statistics.h always keeps. As long as nobody has chosen any a request pays one load.
 */
#ifndef LIVEBLK_BLOCK_LATENCY_HISTOGRAM_H
#define LIVEBLK_BLOCK_LATENCY_HISTOGRAM_H

#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "block/request.h"

enum latency_histogram_kind {
    LATENCY_HISTOGRAM_READ,
    LATENCY_HISTOGRAM_WRITE, /* write-zeroes, too */
    LATENCY_HISTOGRAM_FLUSH,
    LATENCY_HISTOGRAM_KINDS,
};

struct latency_histogram;

struct latency_histograms {
    /* Guards what the pointers point to, and their change. Nothing is locked inside. */
    pthread_mutex_t lock;
    struct latency_histogram *_Atomic of_kind[LATENCY_HISTOGRAM_KINDS]; /* NULL: not wanted */
};

void latency_histograms_init(struct latency_histograms *histograms);
void latency_histograms_destroy(struct latency_histograms *histograms);

/* True if the boundaries (nanoseconds) are above 0 and ascend. None at all are fine. */
bool latency_boundaries_are_valid(const uint64_t *boundaries, size_t count);

/*
 * Count requests of a kind between valid boundaries, which are copied, anew from here on; or no
 * more. Any thread, beside requests.
 */
void latency_histogram_remove(struct latency_histograms *histograms,
                              enum latency_histogram_kind kind);
void latency_histogram_set(struct latency_histograms *histograms, enum latency_histogram_kind kind,
                           const uint64_t *boundaries, size_t count);

/*
 * Append the boundaries and the counts of a kind, one more than boundaries, to arrays of uint64_t:
 * interval i is [boundary i - 1, boundary i). False, and nothing, if nobody wants them.
 */
bool latency_histogram_read(struct latency_histograms *histograms, enum latency_histogram_kind kind,
                            GArray *boundaries, GArray *counts);

/* A request ended, well or not, after that time. Discards are in none. Many threads. */
void latency_histograms_record(struct latency_histograms *histograms,
                               enum block_operation operation, int64_t latency_ns);

#endif
