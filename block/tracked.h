/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Tracked requests: which byte ranges of a node are being written.
 *
 * Ordinary writes of overlapping ranges may run side by side, as on a real disk. A request that
 * serialises (a read-modify-write, for one) waits for every overlapping write in flight and keeps
 * later ones out until it has ended. As long as none serialises, entering and leaving cost one
 * compare-and-swap and one store; the list is an array of slots that only a serialising request
 * scans.
 */
#ifndef LIVEBLK_BLOCK_TRACKED_H
#define LIVEBLK_BLOCK_TRACKED_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/queue.h"

#define TRACKED_SLOTS 64

struct tracked_slot {
    /* 0: free; else the request's end. offset is valid while end is not 0. */
    _Atomic uint64_t end;
    _Atomic uint64_t offset;
} __attribute__((aligned(64)));

/* A request in the list; on the stack of the thread that runs it. */
struct tracked_request {
    uint64_t offset;
    uint64_t end;
    bool serialising;
    struct tracked_slot *slot; /* NULL: in the overflow or serialising list */
    TAILQ_ENTRY(tracked_request) entry;
};

TAILQ_HEAD(tracked_request_list, tracked_request);

struct tracked_requests {
    /* Requests that serialise or wait for one; ordinary requests look at nothing else. */
    _Atomic unsigned serialising_count;
    pthread_mutex_t lock; /* guards the lists; innermost, never held across I/O */
    pthread_cond_t changed;
    struct tracked_request_list serialising; /* running or waiting, oldest first */
    struct tracked_request_list overflow;    /* ordinary ones that found no free slot */
    struct tracked_slot slots[TRACKED_SLOTS];
};

void tracked_requests_init(struct tracked_requests *requests);
void tracked_requests_destroy(struct tracked_requests *requests);

/*
 * Enter a range of at least one byte. Blocks while an overlapping request serialises; if this
 * one serialises, until no overlapping request is left. Requests that serialise are served in
 * the order of arrival. A thread must not enter an overlapping range twice.
 */
void tracked_request_begin(struct tracked_requests *requests, struct tracked_request *request,
                           uint64_t offset, uint64_t bytes, bool serialising);

/* Leave, and wake whoever waits. */
void tracked_request_end(struct tracked_requests *requests, struct tracked_request *request);

#endif
