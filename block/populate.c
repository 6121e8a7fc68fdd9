/* SPDX-License-Identifier: BSD-3-Clause */
/* Writes that change no data, only which layer has it. */
#include <errno.h>

#include "block/align.h"
#include "block/checked.h"
#include "block/request.h"

static int driver_populate(struct block_node *node, const void *buffer, uint64_t offset,
                           uint64_t bytes)
{
    if (!node->driver->populate) {
        return block_node_passes_on(node) ? block_node_populate(node->file, buffer, offset, bytes)
                                          : -ENOTSUP;
    }
    for (uint64_t done = 0, piece; done < bytes; done += piece) {
        piece = MIN_OF(bytes - done, node->limits.max_transfer);
        int status = node->driver->populate(node, buffer ? (const char *)buffer + done : NULL,
                                            offset + done, piece);

        if (status < 0) {
            return status;
        }
    }
    return 0;
}

int block_node_populate(struct block_node *node, const void *buffer, uint64_t offset,
                        uint64_t bytes)
{
    struct tracked_request tracked;

    if (node->options.read_only) {
        return -EPERM;
    }
    if (!range_within(offset, bytes, block_node_length(node))) {
        return -EINVAL;
    }
    if (bytes == 0) {
        return 0;
    }
    tracked_request_begin(&node->tracked, &tracked, offset, bytes, false);
    int status = driver_populate(node, buffer, offset, bytes);
    /* Nothing reads differently, but it is to be flushed all the same. */
    sharded_counter_add(&node->write_generation, shard_here(), 1);
    tracked_request_end(&node->tracked, &tracked);
    return status;
}
