/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The in-order buffer ring: N aligned buffers, tasks submitted in order and run concurrently,
 * completions taken strictly in order, the first error latched.
 *
 * It carries sequential streams over storage that wants several requests in flight: fill a
 * buffer, submit it, and go on; or submit reads ahead and take them as they complete. One thread
 * (the owner) calls everything here but the tasks, which run on the ring's own threads.
 */
#ifndef LIVEBLK_JOBS_BUFFER_RING_H
#define LIVEBLK_JOBS_BUFFER_RING_H

#include <glib.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "block/cleanup.h"

struct buffer_ring;

struct buffer_ring_slot {
    void *buffer;    /* buffer_size bytes, aligned to 4096 */
    uint64_t offset; /* for the task's use, as are the next two */
    uint64_t bytes;
    void *data;
    int result; /* the task's return value, valid once taken */
};

/* Does the work on one slot; returns 0 or a negative errno. Runs beside other slots' tasks. */
typedef int buffer_ring_task(struct buffer_ring_slot *slot, void *ring_data);

/*
 * A ring of `buffers` buffers of buffer_size bytes. At most in_flight tasks (1 to buffers) run at
 * once, on as many threads, which are created when first needed. NULL with the error set if a
 * number is out of range, or memory or threads lack. If the system refuses a further thread later,
 * the ring goes on with those it has.
 */
struct buffer_ring *buffer_ring_new(unsigned buffers, size_t buffer_size, unsigned in_flight,
                                    buffer_ring_task *task, void *ring_data, GError **error);

/* Waits for running tasks; those not started yet are dropped. NULL is allowed. */
void buffer_ring_free(struct buffer_ring *ring);
DEFINE_AUTO(buffer_ring, buffer_ring_free)

/*
 * The next free slot to fill, or NULL if all buffers are in use: take a completion first. It
 * stays the caller's until buffer_ring_submit.
 */
struct buffer_ring_slot *buffer_ring_get(struct buffer_ring *ring);

/*
 * Submit the slot got last. Tasks start in this order. Once a task has failed no further one is
 * started; they complete with the latched error.
 */
void buffer_ring_submit(struct buffer_ring *ring, struct buffer_ring_slot *slot);

/*
 * Wait for the oldest submitted slot and return it, NULL if none is outstanding. The slot stays
 * valid until buffer_ring_release.
 */
struct buffer_ring_slot *buffer_ring_take(struct buffer_ring *ring);
void buffer_ring_release(struct buffer_ring *ring, struct buffer_ring_slot *slot);

/* True if buffer_ring_take would not wait. */
bool buffer_ring_ready(struct buffer_ring *ring);

/* Take and release everything outstanding; returns the latched error, or 0. */
int buffer_ring_flush(struct buffer_ring *ring);

/*
 * The first error of any task in order of submission, or 0 while it is not known (an earlier task
 * still runs). Stays until the ring is freed.
 */
int buffer_ring_error(struct buffer_ring *ring);

/*
 * Change how many tasks may run at once (clamped to 1 and the number of buffers). Effective at
 * once: more tasks start now, or none starts until fewer than that run.
 */
void buffer_ring_set_in_flight(struct buffer_ring *ring, unsigned in_flight);

#endif
