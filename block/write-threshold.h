/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Write thresholds: to be told once when a node is written beyond an offset. On the file under a
 * format it says when that grows, so that who manages the storage can make room in time.
 */
#ifndef LIVEBLK_BLOCK_WRITE_THRESHOLD_H
#define LIVEBLK_BLOCK_WRITE_THRESHOLD_H

#include <stdatomic.h>
#include <stdint.h>

#include "block/node.h"

/*
 * When a write or write-zeroes of the node ends beyond this offset (bytes; 0: none) there is the
 * event BLOCK_WRITE_THRESHOLD, and the threshold is 0 again. What was written before does not
 * matter. Any thread, beside requests.
 */
void write_threshold_set(struct block_node *node, uint64_t offset);
uint64_t write_threshold_get(const struct block_node *node);

/* Emit the event if this threshold, as it was seen, is still the one. */
void write_threshold_exceeded(struct block_node *node, uint64_t threshold, uint64_t end);

/* For the request path: a change of the node, successful or not, ended at this offset. */
static inline void write_threshold_check(struct block_node *node, uint64_t end)
{
    uint64_t threshold = atomic_load_explicit(&node->write_threshold, memory_order_relaxed);

    if (G_UNLIKELY(threshold && end > threshold)) {
        write_threshold_exceeded(node, threshold, end);
    }
}

#endif
