/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/extent-log.h"

#include <errno.h>
#include <glib.h>
#include <stdlib.h>
#include <string.h>

#include "block/align.h"
#include "block/clock.h"
#include "block/thread.h"
#include "block/tracking-format.h"

/* This part of the slots is made free at a time, so that a sync of the map serves for many. */
#define LAPSE_PART 8
/* Who wants more than this part of the slots gets a sync of the map instead. */
#define SECURE_PART 4

int extent_log_init(struct extent_log *log, uint64_t extents, uint32_t slot_count,
                    const struct extent_log_storage *storage)
{
    *log = (struct extent_log){
        .storage = *storage,
        .extents = extents,
        .slot_of = calloc(MAX_OF(extents, UINT64_C(1)), sizeof(*log->slot_of)),
        .slots = calloc(slot_count, sizeof(*log->slots)),
        .slot_count = slot_count,
        .batch = 1,
    };
    if (!log->slot_of || !log->slots) {
        free(log->slot_of);
        free(log->slots);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < slot_count; i++) {
        log->slots[i].extent = TRACKING_SLOT_EMPTY;
    }
    pthread_mutex_init(&log->lock, NULL);
    pthread_cond_init(&log->batch_ended, NULL);
    pthread_cond_init(&log->wanted_changed, NULL);
    return 0;
}

void extent_log_destroy(struct extent_log *log)
{
    pthread_mutex_lock(&log->lock);
    log->ends = true;
    pthread_cond_signal(&log->wanted_changed);
    bool has_thread = log->has_thread;
    pthread_mutex_unlock(&log->lock);
    if (has_thread) {
        pthread_join(log->thread, NULL);
    }
    pthread_mutex_destroy(&log->lock);
    pthread_cond_destroy(&log->batch_ended);
    pthread_cond_destroy(&log->wanted_changed);
    free(log->slot_of);
    free(log->slots);
    free(log->wanted);
}

/* ---- The log's thread; its functions are called with the lock, which they drop for I/O ---------
 */

static int sync_map(struct extent_log *log)
{
    pthread_mutex_unlock(&log->lock);
    int status = log->storage.sync_map(log->storage.data);
    pthread_mutex_lock(&log->lock);
    atomic_fetch_add(&log->syncs, 1);
    return status;
}

/* The slot that holds an extent, whether it is active or has left it, or NULL. */
static struct extent_slot *find_slot(struct extent_log *log, uint64_t extent)
{
    for (uint32_t i = 0; i < log->slot_count; i++) {
        if (log->slots[i].extent == extent) {
            return &log->slots[i];
        }
    }
    return NULL;
}

static void publish(struct extent_log *log, struct extent_slot *slot)
{
    slot->is_active = true;
    atomic_store_explicit(&slot->was_used, true, memory_order_relaxed);
    atomic_store(&log->slot_of[slot->extent], (uint32_t)(slot - log->slots) + 1);
}

static uint32_t count_free(const struct extent_log *log)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < log->slot_count; i++) {
        count += !log->slots[i].is_active;
    }
    return count;
}

/* Those that nobody used since the hand came by become inactive; at least one pass is needed. */
static void lapse(struct extent_log *log, uint32_t count)
{
    for (uint32_t seen = 0; count && seen < 2 * log->slot_count; seen++) {
        struct extent_slot *slot = &log->slots[log->hand];

        log->hand = (log->hand + 1) % log->slot_count;
        if (!slot->is_active || atomic_exchange(&slot->was_used, false)) {
            continue;
        }
        atomic_store(&log->slot_of[slot->extent], 0);
        slot->is_active = false;
        count--;
    }
}

/*
 * Some slots become free: their extents are inactive, and the map was synced since. In use all the
 * time or not, each is used for another one only then.
 */
static int make_free(struct extent_log *log, uint32_t count)
{
    lapse(log, MAX_OF(count, log->slot_count / LAPSE_PART));
    return sync_map(log);
}

/* Put extents into free slots, in one write. *done: how many. */
static int fill_slots(struct extent_log *log, const uint64_t *extents, uint32_t count,
                      uint32_t *done)
{
    uint32_t first = UINT32_MAX, last = 0, slot = 0;
    g_autofree uint32_t *taken = g_new(uint32_t, count);

    for (*done = 0; *done < count && slot < log->slot_count; slot++) {
        if (!log->slots[slot].is_active) {
            log->slots[slot].extent = extents[*done];
            taken[(*done)++] = slot;
            first = MIN_OF(first, slot);
            last = slot;
        }
    }
    uint32_t start = first - first % TRACKING_SLOTS_PER_SECTOR;
    uint32_t span = (last / TRACKING_SLOTS_PER_SECTOR + 1) * TRACKING_SLOTS_PER_SECTOR - start;
    g_autofree uint64_t *image = g_new(uint64_t, span);
    for (uint32_t i = 0; i < span; i++) {
        image[i] = start + i < log->slot_count ? log->slots[start + i].extent : TRACKING_SLOT_EMPTY;
    }
    pthread_mutex_unlock(&log->lock);
    int status = log->storage.write_slots(log->storage.data, start, image, span);
    pthread_mutex_lock(&log->lock);
    atomic_fetch_add(&log->writes, 1);
    for (uint32_t i = 0; status == 0 && i < *done; i++) {
        publish(log, &log->slots[taken[i]]);
        atomic_fetch_add(&log->activations, 1);
    }
    return status;
}

/* Of the extents wanted those that no slot holds; the others are active again at once. */
static uint32_t choose_new(struct extent_log *log, uint64_t *extents, uint32_t count)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < count; i++) {
        struct extent_slot *slot =
            atomic_load(&log->slot_of[extents[i]]) ? NULL : find_slot(log, extents[i]);

        if (slot) {
            publish(log, slot);
        } else if (!atomic_load(&log->slot_of[extents[i]])) {
            bool is_double = false;

            for (uint32_t j = 0; j < kept && !is_double; j++) {
                is_double = extents[j] == extents[i];
            }
            if (!is_double) {
                extents[kept++] = extents[i];
            }
        }
    }
    return kept;
}

/*
 * Slots that were free before are so for good: no sync is needed for what left them earlier. A
 * batch that is larger than the log goes through it piece by piece.
 */
static int activate(struct extent_log *log, uint64_t *extents, uint32_t count)
{
    count = choose_new(log, extents, count);
    while (count) {
        uint32_t available = count_free(log);
        uint32_t done = 0;

        if (!available) {
            int status = make_free(log, MIN_OF(count, log->slot_count));

            if (status < 0) {
                return status;
            }
        }
        int status = fill_slots(log, extents, count, &done);
        if (status < 0) {
            return status;
        }
        extents += done;
        count -= done;
    }
    return 0;
}

static void run_batch(struct extent_log *log)
{
    g_autofree uint64_t *extents = g_steal_pointer(&log->wanted);
    uint32_t count = log->wanted_count;
    bool sync = log->sync_wanted;
    uint64_t batch = log->batch++;
    int status;

    log->wanted_count = log->wanted_size = 0;
    log->sync_wanted = false;
    /* After a failure the log stays as it is: what left it may not be in the map on storage. */
    status = log->has_failed ? -EIO : sync ? sync_map(log) : 0;
    if (status == 0 && count) {
        status = activate(log, extents, count);
    }
    if (status < 0) {
        log->has_failed = true;
    }
    log->ended = batch;
    pthread_cond_broadcast(&log->batch_ended);
}

static void *run_log(void *data)
{
    struct extent_log *log = data;

    pthread_mutex_lock(&log->lock);
    while (!log->ends) {
        if (log->wanted_count || log->sync_wanted) {
            run_batch(log);
        } else {
            pthread_cond_wait(&log->wanted_changed, &log->lock);
        }
    }
    pthread_mutex_unlock(&log->lock);
    return NULL;
}

/* ---- Those who wait ---------------------------------------------------------------------------
 */

/* Lock held. Not before there is something to do: a process that forks has no threads yet. */
static int start_thread(struct extent_log *log)
{
    if (!log->has_thread) {
        int error_number = thread_create(&log->thread, run_log, log);

        if (error_number) {
            return -error_number;
        }
        log->has_thread = true;
    }
    pthread_cond_signal(&log->wanted_changed);
    return 0;
}

/* Lock held. For the batch that is being collected now. */
static int wait_for_batch(struct extent_log *log, uint64_t timeout_ns)
{
    uint64_t batch = log->batch;
    int64_t deadline = clock_now_ns() + (int64_t)timeout_ns;
    int status = start_thread(log);

    while (status == 0 && log->ended < batch) {
        status = -clock_cond_wait_until(&log->batch_ended, &log->lock, deadline);
    }
    if (status == 0 && log->has_failed) {
        status = -EIO;
    }
    return status;
}

static void want(struct extent_log *log, uint64_t extent)
{
    if (log->wanted_count == log->wanted_size) {
        log->wanted_size = MAX_OF(2 * log->wanted_size, 64u);
        log->wanted = g_renew(uint64_t, log->wanted, log->wanted_size);
    }
    log->wanted[log->wanted_count++] = extent;
}

int extent_log_sync(struct extent_log *log, uint64_t timeout_ns)
{
    SCOPE_LOCK(&log->lock);

    if (log->has_failed) {
        return -EIO;
    }
    log->sync_wanted = true;
    return wait_for_batch(log, timeout_ns);
}

int extent_log_secure(struct extent_log *log, uint64_t first, uint64_t last, uint64_t timeout_ns)
{
    bool is_waiting = false;

    if (last - first >= MAX_OF(log->slot_count / SECURE_PART, 1u)) {
        return extent_log_sync(log, timeout_ns);
    }
    SCOPE_LOCK(&log->lock);
    if (log->has_failed) {
        return -EIO;
    }
    for (uint64_t extent = first; extent <= last; extent++) {
        if (!extent_log_is_active(log, extent)) {
            want(log, extent);
            is_waiting = true;
        }
    }
    return is_waiting ? wait_for_batch(log, timeout_ns) : 0;
}
