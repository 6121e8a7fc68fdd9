/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The change map: for each granule of a disk the epoch in which it was last changed.
 *
 * Epochs are counted from 1; 0 means "never since tracking began". A checkpoint is a cut: it has
 * the number of the epoch that ends there, and what changed since is every granule with a higher
 * one. Nothing is ever cleared for a consumer, so there may be any number of them.
 *
 * A value is 16 bits wide, little endian: 14 bits of epoch and two that say what is known of the
 * granule's contents since: DATA (anything), ZEROING (a request that makes it zero is on its way;
 * counts as data), ZERO (it reads as zeroes).
 *
 * Order. A value is stored before the request that changes the granule is passed on, so it is
 * there whenever the process dies. ZERO is the only thing that is stored afterwards, and only
 * where no write began since ZEROING was stored; a write that was on its way longer stores its
 * DATA once more at its end (change_map_end_write). Values of an epoch in which a process died may
 * therefore say ZERO beside a write that nobody answered: change_map_distrust_zeroes.
 *
 * A summary in memory holds the highest epoch of each 4,096 granules, so that few changes on a
 * large disk are found without looking at all of it.
 *
 * Threads. Marking is lock-free, from any number of threads, and so is looking. Cutting and all
 * that changes many values happens with nothing being marked: the disk is drained, or not open.
 */
#ifndef LIVEBLK_BLOCK_CHANGE_MAP_H
#define LIVEBLK_BLOCK_CHANGE_MAP_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define CHANGE_MAP_ZERO      0x8000u
#define CHANGE_MAP_ZEROING   0x4000u
#define CHANGE_MAP_EPOCH_MAX 0x3fffu

enum change_state { CHANGE_DATA, CHANGE_ZERO };

struct change_map {
    _Atomic uint16_t *values; /* the caller's: a mapping of a tracking file */
    _Atomic uint16_t *summary;
    uint64_t length; /* of the disk, in bytes */
    uint64_t granules;
    unsigned shift; /* a granule is 1 << shift bytes */
    _Atomic uint16_t epoch;
};

/* How many granules, and bytes of values, a disk has. */
uint64_t change_map_granules(uint64_t length, unsigned shift);
uint64_t change_map_bytes(uint64_t length, unsigned shift);

/*
 * Look at a disk of this length through these values, which hold change_map_bytes() and stay the
 * caller's. The current epoch becomes the highest in the values; the caller raises it. -ENOMEM.
 */
int change_map_init(struct change_map *map, void *values, uint64_t length, unsigned shift);
void change_map_destroy(struct change_map *map);

/* What one value says. */
uint16_t change_map_epoch_at(const struct change_map *map, uint64_t granule);
uint16_t change_map_value_at(const struct change_map *map, uint64_t granule);

/*
 * The range (in bytes, not empty, inside the length) is about to be written. Returns true if a
 * value was stored, false if all said so already. Stores are sequentially consistent; after them
 * the caller makes sure that the change survives a power loss.
 */
bool change_map_begin_write(struct change_map *map, uint64_t offset, uint64_t bytes);

/* The write has ended, well or not. Returns true if a value had to be stored again. */
bool change_map_end_write(struct change_map *map, uint64_t offset, uint64_t bytes);

/*
 * The range is about to be zeroed or discarded. Granules of which only a part is touched count as
 * written; those that read as zeroes already, as their value says, are left alone.
 */
bool change_map_begin_zero(struct change_map *map, uint64_t offset, uint64_t bytes);

/*
 * The same where nobody knows what the range reads as afterwards: what read as zeroes may not do so
 * any more, so that it is marked, too.
 */
bool change_map_begin_discard(struct change_map *map, uint64_t offset, uint64_t bytes);

/* That has ended. is_zero: all of the range reads as zeroes now, unless written meanwhile. */
void change_map_end_zero(struct change_map *map, uint64_t offset, uint64_t bytes, bool is_zero);

/* True if every granule the range touches says ZERO. */
bool change_map_is_zero(const struct change_map *map, uint64_t offset, uint64_t bytes);

/* End the epoch: returns its number. The caller has seen to it that there is another one. */
uint16_t change_map_cut(struct change_map *map);

/*
 * The next range in [offset, end) that changed after the epoch, of one state, at most as long as
 * the disk. Returns false if there is none.
 */
bool change_map_next(const struct change_map *map, uint16_t since, uint64_t offset, uint64_t end,
                     uint64_t *range_offset, uint64_t *range_bytes, enum change_state *state);

/*
 * The same of the disk as it was at the end of the epoch `until`: what read as zeroes then is known
 * where nothing changed since. What changed since is in the answer, too, as data.
 */
bool change_map_next_until(const struct change_map *map, uint16_t since, uint16_t until,
                           uint64_t offset, uint64_t end, uint64_t *range_offset,
                           uint64_t *range_bytes, enum change_state *state);

/* Bytes that changed after the epoch: in all, and those of them that read as zeroes. */
void change_map_count(const struct change_map *map, uint16_t since, uint64_t *changed,
                      uint64_t *zero);

/* Values of this epoch lose their ZERO. Returns whether there were any. */
bool change_map_distrust_zeroes(struct change_map *map, uint16_t epoch);

/* As if the range had been written in the current epoch. Returns the bytes this added. */
uint64_t change_map_mark(struct change_map *map, uint64_t offset, uint64_t bytes);

#endif
