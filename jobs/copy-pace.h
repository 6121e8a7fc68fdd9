/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How fast a job copies: the rate limit a user set, the share the guest leaves, and what its
 * latency allows.
 *
 * Used by one thread at a time (under the copy engine's lock).
 */
#ifndef LIVEBLK_JOBS_COPY_PACE_H
#define LIVEBLK_JOBS_COPY_PACE_H

#include <stdbool.h>
#include <stdint.h>

#include "block/device.h"
#include "jobs/guest-latency.h"

/* The rate limit's slice and the interval in which the guest is looked at. */
#define COPY_SLICE_NS (100 * NS_PER_MS)
#define COPY_TICK_NS  (20 * NS_PER_MS)

/* How much of the machine copying may take. */
enum copy_effort {
    COPY_EFFORT_NORMAL, /* all while the guest is idle, about one processor while it is busy */
    COPY_EFFORT_STEADY, /* as NORMAL, but a worker beside a busy guest does not rest */
    COPY_EFFORT_LOW,    /* while the guest is busy, a few per cent of one worker's time */
    COPY_EFFORT_HIGH,   /* somebody waits for the end: the same whatever the guest does */
};

struct copy_pace {
    enum copy_effort effort;

    /* Rate limit: bytes let go in this slice, as QEMU's jobs count them. */
    int64_t slice_start_ns;
    double slice_bytes;

    /* The guest, or NULL: requests it made until the last look, and whether it makes any. */
    struct block_device *guest;
    uint64_t guest_requests;
    int64_t last_look_ns;
    bool guest_is_busy;
    int64_t rest_until_ns; /* beside a busy guest: nothing is begun before */
    double rest_ns;        /* what is still to be rested after that */
    struct guest_latency latency;
    int64_t hold_until_ns; /* for the guest's latency: nothing is begun before */

    /* How long pieces took, and how much of that was spent on a processor or waiting for one: sums
     * that fade with each tick, as does that of the time. */
    double elapsed_ns;
    double wall_ns;
    double processor_ns;
    double queued_ns;

    unsigned processors;
    unsigned max_workers;
    unsigned workers; /* that may copy now */
};

/*
 * The device whose guest has precedence over a job that reads this node: its root, or what is
 * below its root's filters, or a view of that; else one that has it in its chain. Where there is no
 * device the first export of the node that may be written takes its place. A new reference, or
 * NULL. Any thread.
 */
struct block_device *copy_pace_find_guest(struct block_node *source);

/* guest may be NULL; it is borrowed. */
void copy_pace_init(struct copy_pace *pace, struct block_device *guest, unsigned max_workers);

/*
 * The latency its guest is to have at most; 0: any. Without a guest there is nothing to look at.
 * Effort HIGH does not care.
 */
void copy_pace_set_guest_latency(struct copy_pace *pace, uint64_t latency_ns);

/* Look at the guest, at most once per tick, and set the number of workers. */
void copy_pace_look(struct copy_pace *pace, int64_t now_ns);

/* The largest piece to copy at once: smaller when the guest is busy or the rate is low. */
uint64_t copy_pace_chunk(const struct copy_pace *pace, uint64_t max_chunk, uint64_t speed);

void copy_pace_set_effort(struct copy_pace *pace, enum copy_effort effort);

/* True if the rate limit (bytes per second, 0: none) and the effort let something go now. */
bool copy_pace_may_start(struct copy_pace *pace, uint64_t speed, int64_t now_ns);

/* Nothing is begun before this time, whatever the rate. */
int64_t copy_pace_next_start_ns(const struct copy_pace *pace);

/* Count what was let go. */
void copy_pace_account(struct copy_pace *pace, uint64_t bytes);

/* What a worker has had of processors so far: how long it ran, and how long it waited to run. */
struct copy_use {
    int64_t processor_ns;
    int64_t queued_ns;
};

/*
 * The kernel's account of the calling thread, kept open as opening it for each piece costs a good
 * part of what copying one does. To be closed, but for -1: there is none.
 */
int copy_pace_open_account(void);

/* The use of the calling thread, whose account this is. */
struct copy_use copy_pace_use(int account);

/* Take note of when a piece was begun and done, and of what its worker used of processors for it.
 */
void copy_pace_measure(struct copy_pace *pace, int64_t start_ns, int64_t end_ns,
                       struct copy_use use);

#endif
