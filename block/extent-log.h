/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The log of active extents: which parts of a disk may hold changes that a power loss would take
 * out of its change map.
 *
 * The map is a mapping, written to storage when the kernel likes to. So before a write into an
 * extent reaches the disk either the extent is in the log, on stable storage, or its part of the
 * map is. A write first marks its granules and then asks whether the extent is active; an extent
 * leaves the log in the opposite order: it becomes inactive, the map is synced, and only then its
 * slot is used for another one. Whoever saw it active has marked before that sync.
 *
 * Log and map are written by a thread of the log's, for all who wait at a time, so that a write
 * can give up waiting: storage that does not answer costs the tracking, not the guest.
 *
 * Threads. extent_log_is_active is lock-free; all functions may be called from any thread.
 */
#ifndef LIVEBLK_BLOCK_EXTENT_LOG_H
#define LIVEBLK_BLOCK_EXTENT_LOG_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/cleanup.h"

/* The storage under a log; both may block, and return 0 or a negative errno. */
struct extent_log_storage {
    /* Write these slots (whole sectors of TRACKING_SLOTS_PER_SECTOR), durably. */
    int (*write_slots)(void *data, uint32_t first_slot, const uint64_t *slots, uint32_t count);
    /* Make the map durable. */
    int (*sync_map)(void *data);
    void *data;
};

struct extent_slot {
    uint64_t extent; /* TRACKING_SLOT_EMPTY: none */
    bool is_active;  /* lock: else it has left, but nothing was put in its place yet */
    _Atomic bool was_used;
};

struct extent_log {
    struct extent_log_storage storage;
    uint64_t extents;          /* of the disk */
    _Atomic uint32_t *slot_of; /* of each extent: slot + 1 while it is active, else 0 */
    struct extent_slot *slots;
    uint32_t slot_count;

    pthread_mutex_t lock; /* guards what follows; innermost */
    pthread_cond_t wanted_changed, batch_ended;
    uint64_t *wanted; /* extents somebody waits for */
    uint32_t wanted_count, wanted_size;
    bool sync_wanted;
    uint64_t batch; /* the one that is being collected */
    uint64_t ended; /* all up to this one have ended */
    uint32_t hand;  /* where the search for extents that rest goes on */
    bool has_thread, ends, has_failed;
    pthread_t thread;

    _Atomic uint64_t activations, writes, syncs;
};

/* An empty log; the caller has written it so. -ENOMEM. */
int extent_log_init(struct extent_log *log, uint64_t extents, uint32_t slot_count,
                    const struct extent_log_storage *storage);
/* Nobody waits any more. Ends the thread, after what it is writing. */
void extent_log_destroy(struct extent_log *log);

/*
 * True if the extent is active. The caller has marked the map, which is sequentially consistent.
 */
static inline bool extent_log_is_active(struct extent_log *log, uint64_t extent)
{
    uint32_t slot = atomic_load(&log->slot_of[extent]);

    if (!slot) {
        return false;
    }
    struct extent_slot *used = &log->slots[slot - 1];
    if (!atomic_load_explicit(&used->was_used, memory_order_relaxed)) {
        atomic_store_explicit(&used->was_used, true, memory_order_relaxed);
    }
    return true;
}

/*
 * Wait until what was marked in these extents before the call outlives a power loss: they were
 * active since, or the map was synced, which is what many at a time get. -ETIMEDOUT if that takes
 * longer than timeout_ns; another negative errno if the storage failed, now or before.
 */
int extent_log_secure(struct extent_log *log, uint64_t first, uint64_t last, uint64_t timeout_ns);

/* Make the map durable, waiting as above. */
int extent_log_sync(struct extent_log *log, uint64_t timeout_ns);

#endif
