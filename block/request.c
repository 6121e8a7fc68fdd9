/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The request path. Every change of a node's data goes through run_change(), whatever its kind:
 * one order of steps (track, notify, write, record), one place where drivers' gaps are filled.
 */
#include "block/request.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/align.h"
#include "block/checked.h"
#include "block/cleanup.h"
#include "block/dirty-bitmap.h"
#include "block/write-threshold.h"
#include "block/zero.h"

/* Zeroes are written as data in pieces of this size where nothing better works. */
#define ZERO_BUFFER_SIZE MIB

/* A change on its way to the driver: aligned, inside the node. */
struct change {
    enum block_operation operation;
    const void *buffer; /* writes: the data, or NULL with copying from fd */
    int fd;             /* copy offload: where the data is */
    uint64_t fd_offset;
    uint64_t offset;
    uint64_t bytes;
    unsigned flags;
};

void *block_node_alloc_buffer(struct block_node *node, size_t bytes)
{
    size_t alignment = MAX_OF(node->limits.memory_alignment, 4096u);

    return bytes <= PTRDIFF_MAX - alignment ? aligned_alloc(alignment, align_up(bytes, alignment))
                                            : NULL;
}

static bool buffer_is_aligned(const struct block_node *node, const void *buffer)
{
    return is_aligned((uintptr_t)buffer, node->limits.memory_alignment);
}

/*
 * How large a buffer of ours is for a request of this length. Requests go through it in pieces of
 * its size, so it holds whole sectors, and whole clusters, which compressed data comes in.
 */
static uint64_t buffer_size(const struct block_node *node, uint64_t bytes)
{
    uint64_t unit = MAX_OF(node->limits.request_alignment, node->limits.cluster_size);

    return MIN_OF(bytes, MAX_OF(ZERO_BUFFER_SIZE, unit));
}

static bool range_is_aligned(const struct block_node *node, uint64_t offset, uint64_t bytes)
{
    return is_aligned(offset | bytes, node->limits.request_alignment);
}

/* ---- Drivers' operations, with what they lack filled in ------------------------------------ */

static int driver_pread(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes,
                        unsigned flags)
{
    if (!node->driver->pread) {
        return block_node_passes_on(node)
                   ? block_node_pread(node->file, buffer, offset, bytes, flags)
                   : -ENOTSUP;
    }
    while (bytes) {
        uint64_t piece = MIN_OF(bytes, node->limits.max_transfer);
        int status = node->driver->pread(node, buffer, offset, piece, flags);

        if (status < 0) {
            return status;
        }
        buffer = (char *)buffer + piece;
        offset += piece;
        bytes -= piece;
    }
    return 0;
}

static int driver_pwrite(struct block_node *node, const void *buffer, uint64_t offset,
                         uint64_t bytes, unsigned flags)
{
    if (!node->driver->pwrite) {
        return block_node_passes_on(node)
                   ? block_node_pwrite(node->file, buffer, offset, bytes, flags)
                   : -ENOTSUP;
    }
    while (bytes) {
        uint64_t piece = MIN_OF(bytes, node->limits.max_transfer);
        int status = node->driver->pwrite(node, buffer, offset, piece, flags);

        if (status < 0) {
            return status;
        }
        buffer = (const char *)buffer + piece;
        offset += piece;
        bytes -= piece;
    }
    return 0;
}

static int write_zeroes_as_data(struct block_node *node, uint64_t offset, uint64_t bytes,
                                unsigned flags)
{
    uint64_t size = buffer_size(node, bytes);
    AUTO_FREE void *zeroes = block_node_alloc_buffer(node, size);

    if (!zeroes) {
        return -ENOMEM;
    }
    memset(zeroes, 0, size);
    while (bytes) {
        uint64_t piece = MIN_OF(bytes, size);
        int status = driver_pwrite(node, zeroes, offset, piece, flags & BLOCK_REQUEST_FUA);

        if (status < 0) {
            return status;
        }
        offset += piece;
        bytes -= piece;
    }
    return 0;
}

static int driver_write_zeroes(struct block_node *node, uint64_t offset, uint64_t bytes,
                               unsigned flags)
{
    const struct block_driver *driver = node->driver;

    if (!driver->write_zeroes && block_node_passes_on(node) && !driver->pwrite) {
        return block_node_write_zeroes(node->file, offset, bytes, flags);
    }
    while (bytes) {
        uint64_t piece = MIN_OF(bytes, node->limits.max_write_zeroes);
        int status =
            driver->write_zeroes ? driver->write_zeroes(node, offset, piece, flags) : -ENOTSUP;

        if (status == -ENOTSUP && !(flags & BLOCK_REQUEST_NO_FALLBACK)) {
            status = write_zeroes_as_data(node, offset, piece, flags);
        }
        if (status < 0) {
            return status;
        }
        /* A refusal means that nothing has changed: what is begun is brought to its end. */
        flags &= ~(unsigned)BLOCK_REQUEST_NO_FALLBACK;
        offset += piece;
        bytes -= piece;
    }
    return 0;
}

static int driver_discard(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    const struct block_driver *driver = node->driver;

    if (!driver->discard) {
        return block_node_passes_on(node) ? block_node_discard(node->file, offset, bytes) : 0;
    }
    while (bytes) {
        uint64_t piece = MIN_OF(bytes, node->limits.max_discard);
        int status = driver->discard(node, offset, piece);

        if (status < 0) {
            return status;
        }
        offset += piece;
        bytes -= piece;
    }
    return 0;
}

static int driver_pwrite_from_fd(struct block_node *node, const struct change *change);

static int driver_change(struct block_node *node, const struct change *change, unsigned flags)
{
    switch (change->operation) {
    case BLOCK_OPERATION_WRITE:
        return change->buffer
                   ? driver_pwrite(node, change->buffer, change->offset, change->bytes, flags)
                   : driver_pwrite_from_fd(node, change);
    case BLOCK_OPERATION_WRITE_ZEROES:
        return driver_write_zeroes(node, change->offset, change->bytes, flags);
    case BLOCK_OPERATION_DISCARD:
        return driver_discard(node, change->offset, change->bytes);
    default:
        g_assert_not_reached();
    }
}

/* ---- The path every change takes ------------------------------------------------------------ */

static int notify_before_write(struct block_node *node, const struct change *change)
{
    for (struct write_notifier **notifier = node->notifiers; notifier && *notifier; notifier++) {
        int status =
            (*notifier)->before_write(*notifier, change->operation, change->offset, change->bytes);

        if (status < 0) {
            return status;
        }
    }
    return 0;
}

static void raise_highest_written(struct block_node *node, uint64_t end)
{
    uint64_t highest = atomic_load_explicit(&node->highest_written, memory_order_relaxed);

    while (highest < end &&
           !atomic_compare_exchange_weak_explicit(&node->highest_written, &highest, end,
                                                  memory_order_relaxed, memory_order_relaxed)) {
    }
}

/*
 * After the driver, before the answer. A failed write may have changed part of the range, so
 * bitmaps record it all the same.
 */
static void record_change(struct block_node *node, const struct change *change)
{
    for (struct dirty_bitmap **bitmap = node->bitmaps; bitmap && *bitmap; bitmap++) {
        if (dirty_bitmap_enabled(*bitmap)) {
            dirty_bitmap_set(*bitmap, change->offset, change->bytes);
        }
    }
    if (change->operation != BLOCK_OPERATION_DISCARD) {
        raise_highest_written(node, change->offset + change->bytes);
        write_threshold_check(node, change->offset + change->bytes);
    }
    sharded_counter_add(&node->write_generation, shard_here(), 1);
}

/* cache.no-flush: what reaches storage itself is told of no flush and no FUA. */
static bool ignores_flushes(const struct block_node *node)
{
    return node->driver->is_protocol && node->options.cache_no_flush;
}

struct block_change_rest {
    struct block_node *node;
    const struct change *change;
    unsigned flags;
    struct write_follower **followers; /* NULL-terminated, or NULL */
};

int block_change_go_on(struct block_change_rest *rest)
{
    const struct change *change = rest->change;
    struct write_follower *next = rest->followers ? *rest->followers : NULL;

    if (G_LIKELY(!next)) {
        return driver_change(rest->node, change, rest->flags);
    }
    const struct block_change seen = {
        .operation = change->operation,
        .buffer = change->buffer,
        .offset = change->offset,
        .bytes = change->bytes,
    };
    struct block_change_rest inner = *rest;
    inner.followers++;
    return next->follow(next, &seen, &inner);
}

/* The steps inside tracking: notifiers, driver, records, and forced unit access. */
static int apply_change(struct block_node *node, const struct change *change)
{
    bool durable = (change->flags & BLOCK_REQUEST_FUA) && !ignores_flushes(node);
    bool flush_after = durable && !node->driver->handles_fua;
    unsigned flags = change->flags & ~(unsigned)BLOCK_REQUEST_SERIALISING;
    int status = notify_before_write(node, change);

    if (status < 0) {
        return status;
    }
    if (!durable || flush_after) {
        flags &= ~(unsigned)BLOCK_REQUEST_FUA;
    }
    struct block_change_rest rest = {node, change, flags, node->followers};
    status = block_change_go_on(&rest);
    record_change(node, change);
    if (status == 0 && flush_after) {
        status = block_node_flush(node);
    }
    return status;
}

static int run_change(struct block_node *node, const struct change *change)
{
    struct tracked_request tracked;
    int status;

    tracked_request_begin(&node->tracked, &tracked, change->offset, change->bytes,
                          change->flags & BLOCK_REQUEST_SERIALISING);
    status = apply_change(node, change);
    tracked_request_end(&node->tracked, &tracked);
    return status;
}

/*
 * A write or write-zeroes that does not fit the alignment: read the aligned range around it, put
 * the new bytes in, write it back. Serialised, or a neighbour's write between the read and the
 * write would be undone. buffer NULL means zeroes. There is no aligned sector inside, so the range
 * read is two sectors at most.
 */
static int read_modify_write(struct block_node *node, const void *buffer, uint64_t offset,
                             uint64_t bytes, unsigned flags)
{
    uint64_t alignment = node->limits.request_alignment;
    uint64_t start = align_down(offset, alignment);
    uint64_t size = align_up(offset + bytes, alignment) - start;
    AUTO_FREE char *bounce = block_node_alloc_buffer(node, size);
    struct tracked_request tracked;
    struct change change = {
        .operation = BLOCK_OPERATION_WRITE,
        .buffer = bounce,
        .offset = start,
        .bytes = size,
        .flags = flags & BLOCK_REQUEST_FUA,
    };
    int status;

    if (!bounce) {
        return -ENOMEM;
    }
    tracked_request_begin(&node->tracked, &tracked, start, size, true);
    status = driver_pread(node, bounce, start, size, 0);
    if (status == 0) {
        if (buffer) {
            memcpy(bounce + (offset - start), buffer, bytes);
        } else {
            memset(bounce + (offset - start), 0, bytes);
        }
        status = apply_change(node, &change);
    }
    tracked_request_end(&node->tracked, &tracked);
    return status;
}

static int check_range(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    return range_within(offset, bytes, block_node_length(node)) ? 0 : -EINVAL;
}

static int check_change(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    if (node->options.read_only) {
        return -EPERM;
    }
    return check_range(node, offset, bytes);
}

/* A write whose buffer the driver cannot take as it is, in pieces through a buffer that it can. */
static int write_bounced(struct block_node *node, const char *buffer, uint64_t offset,
                         uint64_t bytes, unsigned flags)
{
    uint64_t size = buffer_size(node, bytes);
    AUTO_FREE void *bounce = block_node_alloc_buffer(node, size);

    if (!bounce) {
        return -ENOMEM;
    }
    while (bytes) {
        uint64_t piece = MIN_OF(bytes, size);
        struct change change = {
            .operation = BLOCK_OPERATION_WRITE,
            .buffer = bounce,
            .offset = offset,
            .bytes = piece,
            .flags = flags,
        };

        memcpy(bounce, buffer, piece);
        int status = run_change(node, &change);
        if (status < 0) {
            return status;
        }
        buffer += piece;
        offset += piece;
        bytes -= piece;
    }
    return 0;
}

static int write_aligned(struct block_node *node, const void *buffer, uint64_t offset,
                         uint64_t bytes, unsigned flags)
{
    struct change change = {
        .operation = BLOCK_OPERATION_WRITE,
        .buffer = buffer,
        .offset = offset,
        .bytes = bytes,
        .flags = flags,
    };

    return buffer_is_aligned(node, buffer) ? run_change(node, &change)
                                           : write_bounced(node, buffer, offset, bytes, flags);
}

/* The aligned middle of [offset, offset + bytes); false if there is none. */
static bool aligned_middle(const struct block_node *node, uint64_t offset, uint64_t bytes,
                           uint64_t *start, uint64_t *end)
{
    *start = align_up(offset, node->limits.request_alignment);
    *end = align_down(offset + bytes, node->limits.request_alignment);
    return *start < *end;
}

/* An unaligned write: its ends are read-modify-written, its middle is not. */
static int write_unaligned(struct block_node *node, const char *buffer, uint64_t offset,
                           uint64_t bytes, unsigned flags)
{
    uint64_t start, end;
    int status = 0;

    if (!aligned_middle(node, offset, bytes, &start, &end)) {
        return read_modify_write(node, buffer, offset, bytes, flags);
    }
    if (offset < start) {
        status = read_modify_write(node, buffer, offset, start - offset, flags);
    }
    if (status == 0) {
        status = write_aligned(node, buffer + (start - offset), start, end - start, flags);
    }
    if (status == 0 && end < offset + bytes) {
        status = read_modify_write(node, buffer + (end - offset), end, offset + bytes - end, flags);
    }
    return status;
}

/* detect-zeroes: a write of zeroes becomes the cheaper request. */
static bool detect_zeroes(const struct block_node *node, const void *buffer, uint64_t bytes,
                          unsigned *flags)
{
    if (node->options.detect_zeroes == BLOCK_DETECT_ZEROES_OFF || !buffer_is_zero(buffer, bytes)) {
        return false;
    }
    if (node->options.detect_zeroes == BLOCK_DETECT_ZEROES_UNMAP) {
        *flags |= BLOCK_REQUEST_MAY_UNMAP;
    }
    return true;
}

int block_node_pwrite(struct block_node *node, const void *buffer, uint64_t offset, uint64_t bytes,
                      unsigned flags)
{
    if (flags & BLOCK_REQUEST_COMPRESSED) { /* a filter passes it on */
        return block_node_pwrite_compressed(node, buffer, offset, bytes);
    }
    int status = check_change(node, offset, bytes);

    if (status < 0 || bytes == 0) {
        return status;
    }
    if (detect_zeroes(node, buffer, bytes, &flags)) {
        return block_node_write_zeroes(node, offset, bytes, flags);
    }
    return range_is_aligned(node, offset, bytes)
               ? write_aligned(node, buffer, offset, bytes, flags)
               : write_unaligned(node, buffer, offset, bytes, flags);
}

static int write_zeroes_aligned(struct block_node *node, uint64_t offset, uint64_t bytes,
                                unsigned flags)
{
    struct change change = {
        .operation = BLOCK_OPERATION_WRITE_ZEROES,
        .offset = offset,
        .bytes = bytes,
        .flags = flags,
    };

    return run_change(node, &change);
}

int block_node_write_zeroes(struct block_node *node, uint64_t offset, uint64_t bytes,
                            unsigned flags)
{
    uint64_t start, end;
    int status = check_change(node, offset, bytes);

    if (status < 0 || bytes == 0) {
        return status;
    }
    if (!node->options.discard_unmap) {
        flags &= ~(unsigned)BLOCK_REQUEST_MAY_UNMAP;
    }
    if (range_is_aligned(node, offset, bytes)) {
        return write_zeroes_aligned(node, offset, bytes, flags);
    }
    if (flags & BLOCK_REQUEST_NO_FALLBACK) {
        return -ENOTSUP; /* the ends could only be written as data */
    }
    if (!aligned_middle(node, offset, bytes, &start, &end)) {
        return read_modify_write(node, NULL, offset, bytes, flags);
    }
    if (offset < start) {
        status = read_modify_write(node, NULL, offset, start - offset, flags);
    }
    if (status == 0) {
        status = write_zeroes_aligned(node, start, end - start, flags);
    }
    if (status == 0 && end < offset + bytes) {
        status = read_modify_write(node, NULL, end, offset + bytes - end, flags);
    }
    return status;
}

int block_node_discard(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    int status = node->driver->discard_when_read_only ? check_range(node, offset, bytes)
                                                      : check_change(node, offset, bytes);
    uint64_t start, end;

    if (status < 0 || bytes == 0 || !node->options.discard_unmap ||
        !aligned_middle(node, offset, bytes, &start, &end)) {
        return status;
    }
    struct change change = {
        .operation = BLOCK_OPERATION_DISCARD,
        .offset = start,
        .bytes = end - start,
    };
    return run_change(node, &change);
}

int block_node_pwrite_compressed(struct block_node *node, const void *buffer, uint64_t offset,
                                 uint64_t bytes)
{
    int status = check_change(node, offset, bytes);

    if (status < 0 || bytes == 0) {
        return status;
    }
    if (!block_node_can_compress(node) || !range_is_aligned(node, offset, bytes)) {
        return -ENOTSUP;
    }
    return write_aligned(node, buffer, offset, bytes, BLOCK_REQUEST_COMPRESSED);
}

/* ---- Reads ---------------------------------------------------------------------------------- */

static int read_bounced(struct block_node *node, char *buffer, uint64_t offset, uint64_t bytes,
                        unsigned flags)
{
    uint64_t alignment = node->limits.request_alignment;
    uint64_t size =
        MIN_OF(align_up(bytes, alignment) + alignment, MAX_OF(ZERO_BUFFER_SIZE, 2 * alignment));
    AUTO_FREE char *bounce = block_node_alloc_buffer(node, size);

    if (!bounce) {
        return -ENOMEM;
    }
    while (bytes) {
        uint64_t start = align_down(offset, alignment);
        uint64_t piece = MIN_OF(bytes, size - (offset - start));
        uint64_t span = MIN_OF(align_up(offset + piece - start, alignment), size);
        int status = driver_pread(node, bounce, start, span, flags);

        if (status < 0) {
            return status;
        }
        piece = MIN_OF(piece, span - (offset - start));
        memcpy(buffer, bounce + (offset - start), piece);
        buffer += piece;
        offset += piece;
        bytes -= piece;
    }
    return 0;
}

int block_node_pread(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes,
                     unsigned flags)
{
    int status = check_range(node, offset, bytes);

    if (status < 0 || bytes == 0) {
        return status;
    }
    if (range_is_aligned(node, offset, bytes) && buffer_is_aligned(node, buffer)) {
        return driver_pread(node, buffer, offset, bytes, flags);
    }
    return read_bounced(node, buffer, offset, bytes, flags);
}

int block_node_prefetch(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    int status = check_range(node, offset, bytes);

    if (status < 0 || bytes == 0) {
        return status;
    }
    if (node->driver->prefetch) {
        return node->driver->prefetch(node, offset, bytes);
    }
    return block_node_passes_on(node) ? block_node_prefetch(node->file, offset, bytes) : 0;
}

/* ---- Flush ---------------------------------------------------------------------------------- */

static int driver_flush(struct block_node *node)
{
    const struct block_child *child;

    if (ignores_flushes(node)) {
        return 0;
    }
    if (node->driver->flush) {
        return node->driver->flush(node);
    }
    TAILQ_FOREACH (child, &node->children, entry) {
        if (child->role != BLOCK_ROLE_BACKING && !child->claim.node->options.read_only) {
            int status = block_node_flush(child->claim.node);

            if (status < 0) {
                return status;
            }
        }
    }
    return 0;
}

int block_node_flush(struct block_node *node)
{
    uint64_t generation = sharded_counter_sum(&node->write_generation);
    uint64_t flushed = atomic_load_explicit(&node->flushed_generation, memory_order_acquire);
    int status;

    /* Nothing was written since the last flush that succeeded: nothing to do. */
    if (node->options.read_only || flushed >= generation) {
        return 0;
    }
    status = driver_flush(node);
    if (status < 0) {
        return status;
    }
    while (flushed < generation &&
           !atomic_compare_exchange_weak_explicit(&node->flushed_generation, &flushed, generation,
                                                  memory_order_release, memory_order_relaxed)) {
    }
    return 0;
}

/* ---- Block status --------------------------------------------------------------------------- */

static int driver_block_status(struct block_node *node, uint64_t offset, uint64_t bytes,
                               struct block_extent *extent)
{
    if (node->driver->block_status) {
        return node->driver->block_status(node, offset, bytes, extent);
    }
    if (block_node_passes_on(node)) {
        return block_node_block_status(node->file, offset, bytes, extent);
    }
    *extent = (struct block_extent){
        .bytes = bytes,
        .flags = BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED,
    };
    return 0;
}

int block_node_block_status(struct block_node *node, uint64_t offset, uint64_t bytes,
                            struct block_extent *extent)
{
    uint64_t start = align_down(offset, node->limits.request_alignment);
    uint64_t head = offset - start;
    int status = bytes ? check_range(node, offset, bytes) : -EINVAL;

    if (status < 0) {
        return status;
    }
    status = driver_block_status(node, start,
                                 align_up(head + bytes, node->limits.request_alignment), extent);
    if (status < 0) {
        return status;
    }
    if (extent->bytes <= head) {
        return -EIO; /* the driver broke its promise; do not loop on it */
    }
    extent->bytes = MIN_OF(extent->bytes - head, bytes);
    extent->host_offset += head;
    return 0;
}

int block_node_block_status_chain(struct block_node *node, uint64_t offset, uint64_t bytes,
                                  struct block_extent *extent, unsigned *depth)
{
    unsigned layer = 1;

    while (true) {
        int status = block_node_block_status(node, offset, bytes, extent);

        if (status < 0) {
            return status;
        }
        if (extent->flags & (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO)) {
            break;
        }
        bytes = extent->bytes;
        /* The layer a reader sees where this one has nothing; filters are no layers. */
        node = block_node_below_filters(node)->backing;
        if (!node || block_node_length(node) <= offset) {
            /* Nothing below, or below its end: zeroes that no layer holds. */
            *extent = (struct block_extent){.bytes = bytes, .flags = BLOCK_STATUS_ZERO};
            break;
        }
        bytes = MIN_OF(bytes, block_node_length(node) - offset);
        layer++;
    }
    if (depth) {
        *depth = extent->flags & BLOCK_STATUS_ALLOCATED ? layer : 0;
    }
    return 0;
}

/* ---- Copy offload --------------------------------------------------------------------------- */

int block_node_host_range(struct block_node *node, uint64_t offset, uint64_t *bytes, int *fd,
                          uint64_t *fd_offset)
{
    if (node->driver->host_range) {
        return node->driver->host_range(node, offset, bytes, fd, fd_offset);
    }
    return block_node_passes_on(node)
               ? block_node_host_range(node->file, offset, bytes, fd, fd_offset)
               : -ENOTSUP;
}

static int driver_pwrite_from_fd(struct block_node *node, const struct change *change)
{
    if (!node->driver->pwrite_from_fd) {
        return block_node_passes_on(node)
                   ? block_node_pwrite_from_fd(node->file, change->fd, change->fd_offset,
                                               change->offset, change->bytes)
                   : -ENOTSUP;
    }
    for (uint64_t done = 0, piece; done < change->bytes; done += piece) {
        piece = MIN_OF(change->bytes - done, node->limits.max_transfer);
        int status = node->driver->pwrite_from_fd(node, change->fd, change->fd_offset + done,
                                                  change->offset + done, piece);

        if (status < 0) {
            return status;
        }
    }
    return 0;
}

int block_node_pwrite_from_fd(struct block_node *node, int fd, uint64_t fd_offset, uint64_t offset,
                              uint64_t bytes)
{
    struct change change = {
        .operation = BLOCK_OPERATION_WRITE,
        .fd = fd,
        .fd_offset = fd_offset,
        .offset = offset,
        .bytes = bytes,
    };
    int status = check_change(node, offset, bytes);

    if (status < 0 || bytes == 0) {
        return status;
    }
    return range_is_aligned(node, offset, bytes) ? run_change(node, &change) : -ENOTSUP;
}

int block_node_copy_range(struct block_node *source, uint64_t source_offset,
                          struct block_node *target, uint64_t target_offset, uint64_t bytes)
{
    int status = check_range(source, source_offset, bytes);

    if (status == 0) {
        status = check_change(target, target_offset, bytes);
    }
    while (status == 0 && bytes) {
        uint64_t piece = bytes;
        uint64_t fd_offset;
        int fd;

        status = block_node_host_range(source, source_offset, &piece, &fd, &fd_offset);
        if (status == 0 && piece == 0) {
            status = -EIO; /* the driver broke its promise; do not loop on it */
        }
        if (status == 0) {
            piece = MIN_OF(piece, bytes);
            status = block_node_pwrite_from_fd(target, fd, fd_offset, target_offset, piece);
        }
        source_offset += piece;
        target_offset += piece;
        bytes -= piece;
    }
    return status == -EXDEV || status == -EOPNOTSUPP ? -ENOTSUP : status;
}
