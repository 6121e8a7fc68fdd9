/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/write-threshold.h"

#include "block/event.h"

void write_threshold_set(struct block_node *node, uint64_t offset)
{
    atomic_store(&node->write_threshold, offset);
}

uint64_t write_threshold_get(const struct block_node *node)
{
    return atomic_load(&node->write_threshold);
}

void write_threshold_exceeded(struct block_node *node, uint64_t threshold, uint64_t end)
{
    /* Of many writes at once one tells it, and not of a threshold that was replaced meanwhile. */
    if (atomic_compare_exchange_strong(&node->write_threshold, &threshold, 0)) {
        event_emit("BLOCK_WRITE_THRESHOLD", EVENT_STRING("node-name", node->name),
                   EVENT_INT("amount-exceeded", end - threshold),
                   EVENT_INT("write-threshold", threshold));
    }
}
