/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/epoch.h"

#include "block/sharded-counter.h"

/*
 * Everything is sequentially consistent. A user stores its slot before it looks for anything; who
 * has hidden a thing reads the slots after that. So either the slot is seen, or the thing is not
 * found. The epoch stored may be an old one if the user was delayed: then it counts as having been
 * inside for longer than it was.
 */

void epoch_init(struct epoch *epoch)
{
    atomic_init(&epoch->current, 1);
    atomic_init(&epoch->crowd, 0);
    for (unsigned i = 0; i < EPOCH_SLOTS; i++) {
        atomic_init(&epoch->slots[i].entered, 0);
    }
}

unsigned epoch_enter(struct epoch *epoch)
{
    /* A thread finds the slot free that it used last, on a cache line that it has. */
    static _Thread_local unsigned last;
    uint64_t now = atomic_load(&epoch->current);

    if (!last) {
        last = shard_here() * (EPOCH_SLOTS / SHARDS) + 1;
    }
    for (unsigned i = 0; i < EPOCH_SLOTS; i++) {
        unsigned slot = (last + i) % EPOCH_SLOTS;
        uint64_t is_free = 0;

        if (atomic_load_explicit(&epoch->slots[slot].entered, memory_order_relaxed) == 0 &&
            atomic_compare_exchange_strong(&epoch->slots[slot].entered, &is_free, now)) {
            last = slot + EPOCH_SLOTS; /* the same slot, but not 0 */
            return slot;
        }
    }
    atomic_fetch_add(&epoch->crowd, 1);
    return EPOCH_SLOTS;
}

void epoch_leave(struct epoch *epoch, unsigned slot)
{
    if (slot == EPOCH_SLOTS) {
        atomic_fetch_sub(&epoch->crowd, 1);
    } else {
        atomic_store_explicit(&epoch->slots[slot].entered, 0, memory_order_release);
    }
}

uint64_t epoch_advance(struct epoch *epoch)
{
    return atomic_fetch_add(&epoch->current, 1) + 1;
}

bool epoch_is_over(struct epoch *epoch, uint64_t tag)
{
    if (atomic_load(&epoch->crowd)) {
        return false;
    }
    for (unsigned i = 0; i < EPOCH_SLOTS; i++) {
        uint64_t entered = atomic_load(&epoch->slots[i].entered);

        if (entered && entered < tag) {
            return false;
        }
    }
    return true;
}
