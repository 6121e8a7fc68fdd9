/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Tracked requests: which byte ranges of a node are being written.
 *
 * Ordinary writes of overlapping ranges may run side by side, as on a real disk. A request that
 * serialises (a read-modify-write, for one) waits for every overlapping write in flight and keeps
 * later ones out until it has ended. As long as none serialises, entering and leaving cost one
 * compare-and-swap and two stores; the list is an array of slots that only a serialising request
 * scans.
 *
 * What a guest waits for a request that a job makes is recorded as that job's doing.
 */
#ifndef LIVEBLK_BLOCK_TRACKED_H
#define LIVEBLK_BLOCK_TRACKED_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/guest-waits.h"
#include "block/queue.h"

#define TRACKED_SLOTS 64

struct tracked_slot {
    /* 0: free; else the end of the range of the ordinary request that runs in it. */
    _Atomic uint64_t end;
    _Atomic uint64_t offset;
} __attribute__((aligned(64)));

/* A request in the list; on the stack of the thread that runs it. */
struct tracked_request {
    uint64_t offset;
    uint64_t end;
    bool serialising;
    struct tracked_slot *slot; /* NULL: in the queue */
    pthread_cond_t *admitted;  /* NULL: runs; else it waits in the queue, on this */
    struct guest_waits *cause; /* whose work it is, borrowed; NULL: a guest's. In the queue only. */
    TAILQ_ENTRY(tracked_request) entry;
};

TAILQ_HEAD(tracked_request_list, tracked_request);

struct tracked_requests {
    /* Serialising requests in the queue; ordinary requests look at nothing else. */
    _Atomic unsigned serialising_count;
    pthread_mutex_t lock; /* guards the queue; innermost, never held across I/O */
    /*
     * Serialising requests, and ordinary ones that met one or found no free slot; running or
     * waiting, oldest first. Each waits for older ones only.
     */
    struct tracked_request_list queue;
    struct tracked_slot slots[TRACKED_SLOTS];
};

void tracked_requests_init(struct tracked_requests *requests);
void tracked_requests_destroy(struct tracked_requests *requests);

/*
 * Enter a range of at least one byte, whose end fits 64 bits. Blocks while an overlapping request
 * serialises; if this one serialises, until no overlapping request is left. Overlapping requests
 * of which one serialises are served in the order of arrival, so none starves. A thread may be
 * in requests of several nodes, but in one of each only: a second could wait for somebody who
 * waits for the first.
 */
void tracked_request_begin(struct tracked_requests *requests, struct tracked_request *request,
                           uint64_t offset, uint64_t bytes, bool serialising);

/* Leave, and wake whoever waits. All that the request did is seen by whom it kept waiting. */
void tracked_request_end(struct tracked_requests *requests, struct tracked_request *request);

#endif
