/* SPDX-License-Identifier: BSD-3-Clause */
/* What layers of a chain hold themselves: the work of jobs that copy these layers alone. */
#ifndef LIVEBLK_JOBS_CHAIN_SCAN_H
#define LIVEBLK_JOBS_CHAIN_SCAN_H

#include <glib.h>
#include <stdint.h>

#include "block/dirty-bitmap.h"
#include "block/node.h"
#include "jobs/job.h"

/*
 * Set in bitmap, in whole granules, what the layers from top down to but without base (NULL: all)
 * have allocated in [start, start + length): data, and zeroes that are explicit. Guests write
 * meanwhile. What a layer cannot tell counts as allocated: the reading, which has an error policy,
 * finds out.
 *
 * A step in the job's run(), with nothing of the job's in flight: it pauses, and stands still while
 * the chain is drained. The job keeps the chain as it is. Returns 0; -ECANCELED when the job is
 * cancelled; or another negative errno with the error set, if top cannot be claimed for reading.
 */
int chain_scan(struct job *job, struct block_node *top, struct block_node *base, uint64_t start,
               uint64_t length, struct dirty_bitmap *bitmap, GError **error);

/* What is told of an extent: its flags have BLOCK_STATUS_ALLOCATED if one of the layers has it. */
typedef void chain_scan_function(void *data, uint64_t offset, const struct block_extent *extent);

/* The same for another use: calls function for each extent, in order. */
int chain_scan_each(struct job *job, struct block_node *top, struct block_node *base,
                    uint64_t start, uint64_t length, chain_scan_function *function, void *data,
                    GError **error);

#endif
