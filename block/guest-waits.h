/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How long guests' requests were held because of something: a job's copying, its gate, its drained
 * sections. A histogram with the buckets of block/statistics.h.
 *
 * Who holds guests up is told from who waits by thread: a thread that works for a job says so for
 * as long as it does (guest_waits_enter), and what it locks or drains then is that job's doing. A
 * thread that has not said so runs a guest's request.
 *
 * Each wait counts by itself: a request that had to wait twice has two.
 *
 * Any thread; recording is lock-free, and reading gives numbers that are not of one instant.
 */
#ifndef LIVEBLK_BLOCK_GUEST_WAITS_H
#define LIVEBLK_BLOCK_GUEST_WAITS_H

#include <stddef.h>
#include <stdint.h>

#include "block/cleanup.h"

struct guest_waits;

struct guest_waits *guest_waits_new(void);

/*
 * What is recorded here counts for all of these, to which it has references: for a drained section
 * that is the doing of several jobs.
 */
struct guest_waits *guest_waits_new_joint(struct guest_waits *const *members, size_t count);

/* NULL is allowed, and stays NULL. */
struct guest_waits *guest_waits_ref(struct guest_waits *waits);
void guest_waits_unref(struct guest_waits *waits);
DEFINE_AUTO(guest_waits, guest_waits_unref)

void guest_waits_record(struct guest_waits *waits, int64_t wait_ns);

struct guest_waits_report {
    uint64_t count;
    uint64_t longest_ns;
    uint64_t p99_ns; /* 99 of 100 waits were not longer; at most a quarter too high */
};
void guest_waits_read(struct guest_waits *waits, struct guest_waits_report *report);

/* How many were longer than that, by more than a quarter at the most. */
uint64_t guest_waits_longer_than(struct guest_waits *waits, uint64_t wait_ns);

/* ---- Whose work a thread does ---------------------------------------------------------------- */

/*
 * From here until guest_waits_leave this thread works for what these are the waits of; borrowed
 * until then. Returns what was there before, for guest_waits_leave.
 */
struct guest_waits *guest_waits_enter(struct guest_waits *waits);
void guest_waits_leave(struct guest_waits *before);

/* What this thread works for, borrowed; NULL: a guest. */
struct guest_waits *guest_waits_of_thread(void);

static inline void cleanup_guest_waits_leave(struct guest_waits **before)
{
    guest_waits_leave(*before);
}

/* Work for them from here to the end of the enclosing block. */
#define GUEST_WAITS_SCOPE(waits)                                                                   \
    CLEANUP(cleanup_guest_waits_leave)                                                             \
    __attribute__((unused)) struct guest_waits *SCOPE_LOCK_NAME(__LINE__) = guest_waits_enter(waits)

/* ---- A request that waits -------------------------------------------------------------------- */

/* On the stack of its thread, {0} at first. */
struct guest_wait {
    struct guest_waits *cause; /* a reference; NULL: it does not wait for anybody */
    int64_t since_ns;
};

/*
 * The request waits for cause (NULL: for nobody) from now on, or still: call it whenever that may
 * have changed. Whoever calls it sees to it that cause exists during the call. Does nothing on a
 * thread that works for a job.
 */
void guest_wait_for(struct guest_wait *wait, struct guest_waits *cause);

/* It waits no more. */
static inline void guest_wait_end(struct guest_wait *wait)
{
    if (__builtin_expect(wait->cause != NULL, 0)) {
        guest_wait_for(wait, NULL);
    }
}

#endif
