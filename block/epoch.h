/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Epochs: to know when all who were at work at some moment have left.
 *
 * Whoever looks at shared things without a lock is in the epoch meanwhile. Who takes such a thing
 * away first makes it impossible to find, then begins a new epoch, and may free or reuse it once
 * the epochs before are over: who enters later cannot have found it.
 */
#ifndef LIVEBLK_BLOCK_EPOCH_H
#define LIVEBLK_BLOCK_EPOCH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define EPOCH_SLOTS 128

struct epoch {
    _Atomic uint64_t current; /* counts from 1 */
    _Atomic uint64_t crowd;   /* how many are inside without a slot */
    struct {
        _Atomic uint64_t entered; /* the epoch in which its user entered; 0: free */
    } __attribute__((aligned(64))) slots[EPOCH_SLOTS];
};

void epoch_init(struct epoch *epoch);

/* Enter; returns what to leave with. Any thread, also one that is in already. Never blocks. */
unsigned epoch_enter(struct epoch *epoch);
void epoch_leave(struct epoch *epoch, unsigned slot);

/* Begin a new epoch; returns a tag for those that end with it. Any thread. */
uint64_t epoch_advance(struct epoch *epoch);

/* Whether all who entered before the call that returned this tag have left. Any thread. */
bool epoch_is_over(struct epoch *epoch, uint64_t tag);

#endif
