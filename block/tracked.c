/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Tracked requests.
 *
 * An ordinary request enters in three steps: (1) claim a slot and publish its range there, (2)
 * look at serialising_count, (3) run if that is 0, else give the slot back, wake the waiters, and
 * queue under the lock. A serialising request, under the lock: (a) raises serialising_count, (b)
 * scans the slots, (c) waits until none of them overlaps.
 *
 * Why neither overlooks the other: every access named above is sequentially consistent, so all of
 * them have one order. Either (a) comes before (2), and the ordinary request does not run in its
 * slot, or (2) and so (1) come before (a), and the scan finds the whole range or something newer,
 * in which case that request has ended.
 *
 * The scan reads a slot in two loads and may so mix the ranges of two requests. The newer of them
 * was published after (a): it is about to give its slot back and to let all waiters look again.
 * So a false overlap never lasts, and a true one is never missed.
 *
 * Why no wakeup is lost: one who leaves a slot frees it first and looks at serialising_count
 * then. If a scan still saw it, (a) came before, so the count is not 0, and the one who leaves
 * takes the lock, which is free only once the scanner waits. (It may count 0 with a waiter that
 * came later, but that one sees the free slot.)
 *
 * Nobody waits for ever: who runs in a slot waits for nothing, and who queues waits for older
 * entries of the queue only. Who leaves admits those that waited for it alone, one by one: waking
 * all of a crowd on a hot block, for each to go back to sleep, would cost far more.
 */
#include "block/tracked.h"

#include <assert.h>
#include <stddef.h>

#include "block/cleanup.h"

void tracked_requests_init(struct tracked_requests *requests)
{
    atomic_init(&requests->serialising_count, 0);
    pthread_mutex_init(&requests->lock, NULL);
    TAILQ_INIT(&requests->queue);
    for (size_t i = 0; i < TRACKED_SLOTS; i++) {
        atomic_init(&requests->slots[i].end, 0);
        atomic_init(&requests->slots[i].offset, 0);
    }
}

void tracked_requests_destroy(struct tracked_requests *requests)
{
    assert(TAILQ_EMPTY(&requests->queue));
    for (size_t i = 0; i < TRACKED_SLOTS; i++) {
        assert(atomic_load(&requests->slots[i].end) == 0);
    }
    pthread_mutex_destroy(&requests->lock);
}

/* Where this thread starts to look for a slot: threads that come one by one never collide. */
static unsigned first_slot_of_thread(void)
{
    static _Atomic unsigned threads;
    static _Thread_local unsigned number; /* 0: not yet numbered */

    if (number == 0) {
        number = atomic_fetch_add_explicit(&threads, 1, memory_order_relaxed) + 1;
    }
    return number % TRACKED_SLOTS;
}

static struct tracked_slot *claim_slot(struct tracked_requests *requests, uint64_t end)
{
    unsigned first = first_slot_of_thread();

    for (unsigned i = 0; i < TRACKED_SLOTS; i++) {
        struct tracked_slot *slot = &requests->slots[(first + i) % TRACKED_SLOTS];
        uint64_t free_mark = 0;

        if (atomic_load_explicit(&slot->end, memory_order_relaxed) == 0 &&
            atomic_compare_exchange_strong(&slot->end, &free_mark, end)) {
            return slot;
        }
    }
    return NULL;
}

static bool overlaps(const struct tracked_request *request, uint64_t offset, uint64_t end)
{
    return offset < request->end && request->offset < end;
}

static bool slot_overlaps(struct tracked_requests *requests, const struct tracked_request *request)
{
    for (size_t i = 0; i < TRACKED_SLOTS; i++) {
        uint64_t end = atomic_load(&requests->slots[i].end);

        if (end != 0 && overlaps(request, atomic_load(&requests->slots[i].offset), end)) {
            return true;
        }
    }
    return false;
}

/* Whether a request in the queue has to wait. Called with the lock held. */
static bool must_wait(struct tracked_requests *requests, const struct tracked_request *request)
{
    const struct tracked_request *older;

    TAILQ_FOREACH (older, &requests->queue, entry) {
        if (older == request) {
            break;
        }
        if ((older->serialising || request->serialising) &&
            overlaps(request, older->offset, older->end)) {
            return true;
        }
    }
    return request->serialising && slot_overlaps(requests, request);
}

/* Whose work a request waits for that has to wait; NULL: a guest's. Called with the lock held. */
static struct guest_waits *find_cause(struct tracked_requests *requests,
                                      const struct tracked_request *request)
{
    const struct tracked_request *older;

    TAILQ_FOREACH (older, &requests->queue, entry) {
        if (older == request) {
            break;
        }
        if (older->cause && (older->serialising || request->serialising) &&
            overlaps(request, older->offset, older->end)) {
            return older->cause;
        }
    }
    return NULL;
}

/* Let those go that waited for something in this range alone. Called with the lock held. */
static void admit_waiters(struct tracked_requests *requests, uint64_t offset, uint64_t end)
{
    struct tracked_request *request;

    TAILQ_FOREACH (request, &requests->queue, entry) {
        if (request->admitted && overlaps(request, offset, end) && !must_wait(requests, request)) {
            pthread_cond_signal(STEAL(request->admitted));
        }
    }
}

static void leave_slot(struct tracked_requests *requests, struct tracked_slot *slot,
                       uint64_t offset, uint64_t end)
{
    atomic_store(&slot->end, 0);
    if (atomic_load(&requests->serialising_count) != 0) {
        SCOPE_LOCK(&requests->lock);
        admit_waiters(requests, offset, end);
    }
}

/* Returns false if the request has to queue. */
static bool enter_slot(struct tracked_requests *requests, struct tracked_request *request)
{
    if (atomic_load_explicit(&requests->serialising_count, memory_order_relaxed) != 0) {
        return false;
    }
    request->slot = claim_slot(requests, request->end);
    if (!request->slot) {
        return false;
    }
    atomic_store(&request->slot->offset, request->offset);
    if (atomic_load(&requests->serialising_count) == 0) {
        return true;
    }
    /* A scan may have taken us for a mixture of any extent. */
    leave_slot(requests, STEAL(request->slot), 0, UINT64_MAX);
    return false;
}

static void enter_queue(struct tracked_requests *requests, struct tracked_request *request)
{
    pthread_cond_t admitted = PTHREAD_COND_INITIALIZER;
    struct guest_wait wait = {0};

    request->cause = guest_waits_of_thread();
    {
        SCOPE_LOCK(&requests->lock);
        if (request->serialising) {
            atomic_fetch_add(&requests->serialising_count, 1);
        }
        TAILQ_INSERT_TAIL(&requests->queue, request, entry);
        if (must_wait(requests, request)) {
            request->admitted = &admitted;
            guest_wait_for(&wait, find_cause(requests, request));
        }
        while (request->admitted) {
            pthread_cond_wait(&admitted, &requests->lock);
        }
    }
    guest_wait_end(&wait);
    pthread_cond_destroy(&admitted);
}

static void leave_queue(struct tracked_requests *requests, struct tracked_request *request)
{
    SCOPE_LOCK(&requests->lock);
    TAILQ_REMOVE(&requests->queue, request, entry);
    if (request->serialising) {
        atomic_fetch_sub(&requests->serialising_count, 1);
    }
    admit_waiters(requests, request->offset, request->end);
}

void tracked_request_begin(struct tracked_requests *requests, struct tracked_request *request,
                           uint64_t offset, uint64_t bytes, bool serialising)
{
    assert(bytes > 0 && bytes <= UINT64_MAX - offset);
    request->offset = offset;
    request->end = offset + bytes;
    request->serialising = serialising;
    request->slot = NULL;
    request->admitted = NULL;
    request->cause = NULL;
    if (serialising || !enter_slot(requests, request)) {
        enter_queue(requests, request);
    }
}

void tracked_request_end(struct tracked_requests *requests, struct tracked_request *request)
{
    if (request->slot) {
        leave_slot(requests, request->slot, request->offset, request->end);
    } else {
        leave_queue(requests, request);
    }
}
