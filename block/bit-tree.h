/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A large sparse set of bits: level 0 has one bit per member, each level above one bit per word
 * of the level below that may be non-zero, up to a level of one word. What dirty bitmaps are
 * made of.
 *
 * Threads. Functions said to be lock-free may run beside everything but init, destroy and
 * resize. All others exclude one another by a lock of the owner. A bit whose setting had
 * returned before such a call began is seen by it; one set meanwhile may or may not be.
 */
#ifndef LIVEBLK_BLOCK_BIT_TREE_H
#define LIVEBLK_BLOCK_BIT_TREE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BIT_TREE_NONE       UINT64_MAX
#define BIT_TREE_LEVELS_MAX 11 /* 64^11 is more than 2^64 */

struct bit_tree {
    uint64_t bits;
    unsigned level_count;
    uint64_t words[BIT_TREE_LEVELS_MAX]; /* how many words each level has */
    _Atomic uint64_t *levels[BIT_TREE_LEVELS_MAX];
    void *mapping;
    size_t mapping_bytes;
    size_t level_0_bytes; /* whole pages at the start of the mapping */
    /*
     * Bits set. Negative for a moment if a bit is cleared before the thread that set it has
     * counted it. Away from the rest, which all only read.
     */
    _Atomic int64_t count __attribute__((aligned(64)));
};

/*
 * A set of that many bits, all clear; memory is used only for what gets set. Returns -ENOMEM if
 * the address space does not suffice.
 */
int bit_tree_init(struct bit_tree *tree, uint64_t bits);
void bit_tree_destroy(struct bit_tree *tree);

/* Lock-free: set the bits first to last, both included. */
void bit_tree_set(struct bit_tree *tree, uint64_t first, uint64_t last);

/* Lock-free. */
bool bit_tree_get(const struct bit_tree *tree, uint64_t bit);

/* Lock-free: the 64 bits from bit on, which is a multiple of 64. */
uint64_t bit_tree_get_word(const struct bit_tree *tree, uint64_t bit);

/* Lock-free: how many bits are set. Exact when no other thread sets or clears. */
uint64_t bit_tree_count(const struct bit_tree *tree);

/* The first set bit at or after from, or BIT_TREE_NONE. */
uint64_t bit_tree_next_set(struct bit_tree *tree, uint64_t from);

/* The first clear bit at or after from and before end, or BIT_TREE_NONE. end is at most bits. */
uint64_t bit_tree_next_clear(const struct bit_tree *tree, uint64_t from, uint64_t end);

/* Clear the bits first to last, both included. */
void bit_tree_reset(struct bit_tree *tree, uint64_t first, uint64_t last);

/* Clear all bits and give the memory of level 0 back. */
void bit_tree_clear(struct bit_tree *tree);

/* Set in target all bits of source, which has as many. Counts as lock-free for target. */
void bit_tree_merge(struct bit_tree *target, struct bit_tree *source);

/*
 * Keep the bits below the new number; further ones are clear. Returns -ENOMEM without change if
 * the address space does not suffice, which only happens when the set gets larger than ever.
 */
int bit_tree_resize(struct bit_tree *tree, uint64_t bits);

#endif
