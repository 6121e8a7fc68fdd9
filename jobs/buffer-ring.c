/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/buffer-ring.h"

#include <errno.h>
#include <pthread.h>

#include "block/align.h"
#include "block/error.h"
#include "block/queue.h"
#include "block/thread.h"

#define BUFFER_ALIGNMENT 4096

struct entry {
    struct buffer_ring_slot slot; /* first: the owner's pointer is cast to its entry */
    bool finished;                /* run, or skipped after an error */
    bool skipped;
    TAILQ_ENTRY(entry) entry;
};

TAILQ_HEAD(entry_list, entry);

struct buffer_ring {
    buffer_ring_task *task;
    void *data;
    unsigned buffers;
    struct entry *entries;
    pthread_t *threads;

    /* Guards all that follows; no other lock is taken under it. */
    pthread_mutex_t lock;
    pthread_cond_t work;     /* for the threads: a task may start, or stopping */
    pthread_cond_t finished; /* for the owner: a task has finished */

    struct entry_list unused;
    struct entry_list outstanding; /* oldest first, until taken */
    struct entry *got;             /* handed out by get, not submitted */
    struct entry *next;            /* the oldest outstanding one that was not started */
    struct entry *unsettled;       /* the oldest one whose result is not in `error` yet */
    unsigned queued;               /* from next on */
    unsigned running;
    unsigned in_flight;
    unsigned thread_count;
    unsigned idle; /* threads that wait for work */
    bool failed;   /* some task has; its place in the order may be open */
    bool stopping;
    int error;
};

/* Results become the ring's error in order of submission only. Lock held. */
static void settle_locked(struct buffer_ring *ring)
{
    struct entry *entry;

    while ((entry = ring->unsettled) && entry->finished) {
        if (entry->skipped) {
            entry->slot.result = ring->error;
        } else if (entry->slot.result < 0 && !ring->error) {
            ring->error = entry->slot.result;
        }
        ring->unsettled = TAILQ_NEXT(entry, entry);
    }
}

/* After a failure nothing queued is run. Lock held. */
static void skip_queued_locked(struct buffer_ring *ring)
{
    for (; ring->next; ring->next = TAILQ_NEXT(ring->next, entry)) {
        ring->next->finished = true;
        ring->next->skipped = true;
    }
    ring->queued = 0;
}

static void finish_locked(struct buffer_ring *ring, struct entry *entry, int result)
{
    entry->slot.result = result;
    entry->finished = true;
    if (result < 0) {
        ring->failed = true;
        skip_queued_locked(ring);
    }
    settle_locked(ring);
    pthread_cond_broadcast(&ring->finished);
}

/* Lock held; dropped while the task runs. */
static void run_next_locked(struct buffer_ring *ring)
{
    struct entry *entry = ring->next;

    ring->next = TAILQ_NEXT(entry, entry);
    ring->queued--;
    ring->running++;
    pthread_mutex_unlock(&ring->lock);
    int result = ring->task(&entry->slot, ring->data);
    pthread_mutex_lock(&ring->lock);
    ring->running--;
    finish_locked(ring, entry, result);
}

static void *ring_thread(void *data)
{
    struct buffer_ring *ring = data;
    SCOPE_LOCK(&ring->lock);

    ring->idle--; /* counted by who created it, as the work it is for */
    while (!ring->stopping) {
        if (ring->queued > 0 && ring->running < ring->in_flight) {
            run_next_locked(ring);
        } else {
            ring->idle++;
            pthread_cond_wait(&ring->work, &ring->lock);
            ring->idle--;
        }
    }
    return NULL;
}

/* Lock held. Returns a negative errno. */
static int add_thread_locked(struct buffer_ring *ring)
{
    int error_number = thread_create(&ring->threads[ring->thread_count], ring_thread, ring);

    if (error_number == 0) {
        ring->thread_count++;
        ring->idle++;
    }
    return -error_number;
}

/* See that there are threads for the tasks that may start. Lock held. */
static void add_threads_locked(struct buffer_ring *ring)
{
    while (ring->idle < ring->queued && ring->thread_count < ring->in_flight) {
        if (add_thread_locked(ring) < 0) {
            break; /* slower, but there is always one */
        }
    }
}

static int alloc_buffers(struct buffer_ring *ring, size_t buffer_size)
{
    size_t size = align_up(buffer_size, BUFFER_ALIGNMENT);

    if (size < buffer_size) {
        return -ENOMEM;
    }
    ring->entries = calloc(ring->buffers, sizeof(*ring->entries));
    ring->threads = calloc(ring->buffers, sizeof(*ring->threads));
    if (!ring->entries || !ring->threads) {
        return -ENOMEM;
    }
    for (unsigned i = 0; i < ring->buffers; i++) {
        struct entry *entry = &ring->entries[i];

        entry->slot.buffer = aligned_alloc(BUFFER_ALIGNMENT, size);
        if (!entry->slot.buffer) {
            return -ENOMEM;
        }
        TAILQ_INSERT_TAIL(&ring->unused, entry, entry);
    }
    return 0;
}

struct buffer_ring *buffer_ring_new(unsigned buffers, size_t buffer_size, unsigned in_flight,
                                    buffer_ring_task *task, void *ring_data, GError **error)
{
    AUTO(buffer_ring) ring = NULL;

    if (buffers == 0 || buffer_size == 0 || in_flight == 0 || in_flight > buffers) {
        block_error(error, EINVAL, "A buffer ring of %u buffers of %zu bytes with %u in flight",
                    buffers, buffer_size, in_flight);
        return NULL;
    }
    ring = g_new0(struct buffer_ring, 1);
    ring->task = task;
    ring->data = ring_data;
    ring->buffers = buffers;
    ring->in_flight = in_flight;
    pthread_mutex_init(&ring->lock, NULL);
    pthread_cond_init(&ring->work, NULL);
    pthread_cond_init(&ring->finished, NULL);
    TAILQ_INIT(&ring->unused);
    TAILQ_INIT(&ring->outstanding);

    int status = alloc_buffers(ring, buffer_size);
    if (status == 0) {
        pthread_mutex_lock(&ring->lock);
        status = add_thread_locked(ring);
        pthread_mutex_unlock(&ring->lock);
    }
    if (status < 0) {
        block_error_errno(error, -status, "Could not set up %u buffers of %zu bytes", buffers,
                          buffer_size);
        return NULL;
    }
    return STEAL(ring);
}

void buffer_ring_free(struct buffer_ring *ring)
{
    if (!ring) {
        return;
    }
    pthread_mutex_lock(&ring->lock);
    ring->stopping = true;
    pthread_cond_broadcast(&ring->work);
    pthread_mutex_unlock(&ring->lock);
    for (unsigned i = 0; i < ring->thread_count; i++) {
        pthread_join(ring->threads[i], NULL);
    }
    for (unsigned i = 0; ring->entries && i < ring->buffers; i++) {
        free(ring->entries[i].slot.buffer);
    }
    pthread_cond_destroy(&ring->work);
    pthread_cond_destroy(&ring->finished);
    pthread_mutex_destroy(&ring->lock);
    free(ring->entries);
    free(ring->threads);
    g_free(ring);
}

struct buffer_ring_slot *buffer_ring_get(struct buffer_ring *ring)
{
    SCOPE_LOCK(&ring->lock);

    if (!ring->got) {
        ring->got = TAILQ_FIRST(&ring->unused);
        if (!ring->got) {
            return NULL;
        }
        TAILQ_REMOVE(&ring->unused, ring->got, entry);
    }
    return &ring->got->slot;
}

void buffer_ring_submit(struct buffer_ring *ring, struct buffer_ring_slot *slot)
{
    SCOPE_LOCK(&ring->lock);
    struct entry *entry = STEAL(ring->got);

    g_assert(entry && slot == &entry->slot);
    entry->finished = entry->skipped = false;
    TAILQ_INSERT_TAIL(&ring->outstanding, entry, entry);
    if (!ring->unsettled) {
        ring->unsettled = entry;
    }
    if (!ring->next) {
        ring->next = entry;
    }
    ring->queued++;
    if (ring->failed) {
        skip_queued_locked(ring);
        settle_locked(ring);
    } else {
        add_threads_locked(ring);
        pthread_cond_signal(&ring->work);
    }
}

struct buffer_ring_slot *buffer_ring_take(struct buffer_ring *ring)
{
    SCOPE_LOCK(&ring->lock);
    struct entry *entry = TAILQ_FIRST(&ring->outstanding);

    if (!entry) {
        return NULL;
    }
    while (!entry->finished) {
        pthread_cond_wait(&ring->finished, &ring->lock);
    }
    TAILQ_REMOVE(&ring->outstanding, entry, entry);
    return &entry->slot;
}

void buffer_ring_release(struct buffer_ring *ring, struct buffer_ring_slot *slot)
{
    SCOPE_LOCK(&ring->lock);

    TAILQ_INSERT_TAIL(&ring->unused, (struct entry *)slot, entry);
}

bool buffer_ring_ready(struct buffer_ring *ring)
{
    SCOPE_LOCK(&ring->lock);
    const struct entry *entry = TAILQ_FIRST(&ring->outstanding);

    return !entry || entry->finished;
}

int buffer_ring_flush(struct buffer_ring *ring)
{
    struct buffer_ring_slot *slot;

    while ((slot = buffer_ring_take(ring))) {
        buffer_ring_release(ring, slot);
    }
    return buffer_ring_error(ring);
}

int buffer_ring_error(struct buffer_ring *ring)
{
    SCOPE_LOCK(&ring->lock);

    return ring->error;
}

void buffer_ring_set_in_flight(struct buffer_ring *ring, unsigned in_flight)
{
    SCOPE_LOCK(&ring->lock);

    ring->in_flight = CLAMP(in_flight, 1, ring->buffers);
    add_threads_locked(ring);
    pthread_cond_broadcast(&ring->work);
}
