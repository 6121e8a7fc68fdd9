/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The copy map: which bytes a copy has still to save.
 *
 * Coarse and fine at once: one bit per 64 KiB cluster says that something in it is still to be
 * saved, and one bit per 4 KiB unit, touched only where a guest's write went ahead of the job,
 * says that this part of it has been saved. So a small write saves a small unit, and the memory
 * for a disk nobody writes to stays that of the clusters (2 MiB for 1 TiB).
 *
 * Threads: marking and searching are called under a lock of the user's; copy_map_is_saved and
 * copy_map_saved_units may be called without it.
 */
#ifndef LIVEBLK_BLOCK_COPY_MAP_H
#define LIVEBLK_BLOCK_COPY_MAP_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/cleanup.h"

#define COPY_CLUSTER (UINT64_C(64) << 10)
#define COPY_UNIT    (UINT64_C(4) << 10)

/* As many units as a word has bits. */
#define COPY_REGION (64 * COPY_UNIT)

struct copy_map;

/* A map for length bytes in which everything is to be saved. */
struct copy_map *copy_map_new(uint64_t length, GError **error);
void copy_map_free(struct copy_map *map);
DEFINE_AUTO(copy_map, copy_map_free)

/*
 * The first run of unsaved units in [offset, end), at most max_bytes long (a multiple of the
 * unit); offset is a multiple of the unit. False if there is none. The end of the disk may cut
 * the last unit short.
 */
bool copy_map_next_unsaved(struct copy_map *map, uint64_t offset, uint64_t end, uint64_t max_bytes,
                           uint64_t *run_offset, uint64_t *run_bytes);

/* Whole units (but for the last one of the disk) are now safe. */
void copy_map_mark_saved(struct copy_map *map, uint64_t offset, uint64_t bytes);

/* True if no byte of the range is unsaved. */
bool copy_map_is_saved(struct copy_map *map, uint64_t offset, uint64_t bytes);

/*
 * Which units of the region at offset, a multiple of COPY_REGION, are saved: bit 0 is the first.
 * Bits beyond the end of the disk mean nothing.
 */
uint64_t copy_map_saved_units(struct copy_map *map, uint64_t offset);

#endif
