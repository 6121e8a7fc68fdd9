/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A filter for tests ("fault", over its `file` child) that makes requests fail, late, or hang, and
 * reads lie.
 *
 * A request is met by the first rule that fits it. Functions may be called from any thread.
 * Options: file; alignment, the request size the node asks for (default: its file's).
 */
#ifndef LIVEBLK_TESTS_LIB_FAULT_DRIVER_H
#define LIVEBLK_TESTS_LIB_FAULT_DRIVER_H

#include <stdbool.h>
#include <stdint.h>

#include "block/node.h"
#include "block/request.h"

/* Operations of a rule, as a mask. */
#define FAULT_ON(operation) (1u << BLOCK_OPERATION_##operation)
#define FAULT_ON_STATUS     (1u << BLOCK_OPERATION_COUNT) /* block status */
#define FAULT_ON_CHANGES    (FAULT_ON(WRITE) | FAULT_ON(WRITE_ZEROES) | FAULT_ON(DISCARD))
#define FAULT_ON_ALL        (FAULT_ON_CHANGES | FAULT_ON(READ) | FAULT_ON(FLUSH) | FAULT_ON_STATUS)

struct fault_rule {
    unsigned operations;
    uint64_t offset, bytes; /* requests that overlap; bytes 0: all. Flushes fit any range */
    unsigned skip;          /* let so many go first */
    unsigned count;         /* then so many are met; 0: no end */
    unsigned percent;       /* of these, at random; 0: all */
    /* What happens to those met, in this order. */
    int64_t delay_ns;
    bool hold;        /* until fault_clear(), or cut off by the driver's cancel_in_flight */
    int error_number; /* positive; 0: the request goes on to the file */
    bool lie;         /* of what is read, the first byte of the rule's range is another */
};

/* Add the driver to the registry; once. */
void fault_driver_register(void);

/* Add a rule to a node of this driver. */
void fault_add(struct block_node *node, const struct fault_rule *rule);
#define FAULT(node, ...) fault_add(node, &(const struct fault_rule){__VA_ARGS__})

/* Drop all rules; requests held go on. A node that was cut off works again. */
void fault_clear(struct block_node *node);

/* Wait until so many requests are held at once. */
void fault_wait_held(struct block_node *node, unsigned count);
unsigned fault_held(struct block_node *node);

/* How many requests were met by a rule, and how often cancel_in_flight was called. */
uint64_t fault_hits(struct block_node *node);
uint64_t fault_cut_off(struct block_node *node);

/* How many bytes were asked for by requests of these kinds, failed ones too. */
uint64_t fault_bytes(struct block_node *node, unsigned operations);

#endif
