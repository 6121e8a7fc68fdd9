/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The request path: every read and write of every node.
 *
 * Functions take bytes, return 0 or a negative errno, move all bytes or fail, and may be called
 * from many threads at once. Ranges are checked against the node's length (-EINVAL beyond it).
 * Unaligned requests are read-modify-written under serialisation; what the driver lacks is
 * emulated or refused here; see block/driver.h.
 */
#ifndef LIVEBLK_BLOCK_REQUEST_H
#define LIVEBLK_BLOCK_REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "block/node.h"

enum block_operation {
    BLOCK_OPERATION_READ,
    BLOCK_OPERATION_WRITE,
    BLOCK_OPERATION_WRITE_ZEROES,
    BLOCK_OPERATION_DISCARD,
    BLOCK_OPERATION_FLUSH,
    BLOCK_OPERATION_COUNT,
};

/* Called before a write, write-zeroes or discard reaches the driver. */
struct write_notifier {
    /*
     * May block; a negative errno fails the guest's request. The range is the one the driver
     * will change, after alignment. Called from the writing thread, many at once.
     */
    int (*before_write)(struct write_notifier *notifier, enum block_operation operation,
                        uint64_t offset, uint64_t bytes);
};

/* A change as the driver gets it: after alignment. */
struct block_change {
    enum block_operation operation;
    const void *buffer; /* of a write: the data; NULL if the kernel takes them from a file */
    uint64_t offset;
    uint64_t bytes;
};

/* What is left of a change to be made: those that follow it, too, and the driver. */
struct block_change_rest;

/* Sees a change through: before the driver has made it and after that. */
struct write_follower {
    /*
     * Have the change made by block_change_go_on(), once, and return what that returns, so that
     * the guest is answered. May block. Called from the writing thread, many at once, inside
     * tracking and after the notifiers; several followers enclose each other, in their order.
     */
    int (*follow)(struct write_follower *follower, const struct block_change *change,
                  struct block_change_rest *rest);
};
int block_change_go_on(struct block_change_rest *rest);

int block_node_pread(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes,
                     unsigned flags);
int block_node_pwrite(struct block_node *node, const void *buffer, uint64_t offset, uint64_t bytes,
                      unsigned flags);
int block_node_write_zeroes(struct block_node *node, uint64_t offset, uint64_t bytes,
                            unsigned flags);

/* Advice: success says only that nothing failed. Parts that are not aligned are left alone. */
int block_node_discard(struct block_node *node, uint64_t offset, uint64_t bytes);

/* Everything answered before the call is on stable storage after it. */
int block_node_flush(struct block_node *node);

/* Advise that the range will be read soon. */
int block_node_prefetch(struct block_node *node, uint64_t offset, uint64_t bytes);

/*
 * Status of the extent that starts at offset; extent->bytes is at least 1 and at most bytes
 * (which is at least 1). Looks through this layer only: no DATA and no ZERO means "see backing".
 */
int block_node_block_status(struct block_node *node, uint64_t offset, uint64_t bytes,
                            struct block_extent *extent);

/*
 * As block_node_block_status, but through the whole chain: what a reader of the node sees. DATA
 * or ZERO is always set. *depth (may be NULL) is 1 if this layer has it, 2 the one below, and 0
 * if no layer has it.
 */
int block_node_block_status_chain(struct block_node *node, uint64_t offset, uint64_t bytes,
                                  struct block_extent *extent, unsigned *depth);

/*
 * Copy inside the kernel, without a buffer, from one node to another: the write goes through
 * the target's whole write path. -ENOTSUP (or -EXDEV, -EOPNOTSUPP folded into it) if the two
 * cannot; nothing is promised about the target range after another error.
 */
int block_node_copy_range(struct block_node *source, uint64_t source_offset,
                          struct block_node *target, uint64_t target_offset, uint64_t bytes);

/*
 * Where a range of the node lies in a host file; see host_range in block/driver.h. For drivers
 * that shift the question and pass it on to their child. -ENOTSUP if it lies in none.
 */
int block_node_host_range(struct block_node *node, uint64_t offset, uint64_t *bytes, int *fd,
                          uint64_t *fd_offset);

/*
 * One node's side of that: write a range with what a host file holds. For drivers that pass it
 * on to their child.
 */
int block_node_pwrite_from_fd(struct block_node *node, int fd, uint64_t fd_offset, uint64_t offset,
                              uint64_t bytes);

/*
 * Keep in the node's own layer what it reads as, where it has nothing of its own: see populate in
 * block/driver.h. No reader can tell, so notifiers and bitmaps are not told. Needs
 * BLOCK_PERM_WRITE_UNCHANGED.
 */
int block_node_populate(struct block_node *node, const void *buffer, uint64_t offset,
                        uint64_t bytes);

/* Write data a compressing format compresses; whole clusters. -ENOTSUP where none can. Filters pass
 * such writes on. */
int block_node_pwrite_compressed(struct block_node *node, const void *buffer, uint64_t offset,
                                 uint64_t bytes);

/*
 * Make requests in flight that hang fail soon; the node need not work afterwards. For a job's
 * target when the job is cancelled by force. Any thread.
 */
void block_node_cancel_in_flight(struct block_node *node);

/*
 * Whether what was written to the node and not flushed since may be lost, with the server that had
 * answered it; flushes fail then. Who is the only one to write there may accept it when he has
 * nothing in flight: he writes all of it anew, and flushes succeed again. -ENOTSUP: the image's
 * format has something in memory that may be lost, too, so it has to be opened again. Any thread.
 */
bool block_node_has_lost_writes(struct block_node *node);
int block_node_accept_lost_writes(struct block_node *node);

/*
 * How often a connection to where the node's data are was lost: when the number has changed, a
 * server that was made anew may answer, although no request has failed. Any thread.
 */
uint64_t block_node_count_losses(struct block_node *node);

/* A buffer fit for the node's requests: aligned to its memory alignment. Free with free(). */
void *block_node_alloc_buffer(struct block_node *node, size_t bytes);

/* Tell the layers below a format that it passes a named point. */
void block_node_debug_event(struct block_node *node, enum block_debug_event event);

#endif
