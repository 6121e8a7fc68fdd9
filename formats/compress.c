/* SPDX-License-Identifier: BSD-3-Clause */
#include "formats/compress.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "block/node.h"
#include "block/request.h"
#include "block/zero.h"

/*
 * The core aligns nothing for us: the disk may end inside a cluster, and bitmaps above are to
 * record what was written and no more.
 */
struct compress_state {
    /* Changes of the disk. Who writes a part of a cluster serialises on all of it. */
    struct tracked_requests changes;
};

static const struct block_option compress_option_table[] = {
    {"file", BLOCK_OPTION_NODE, .required = true,
     .help = "What is written to, compressed: a qcow2 node. Who writes there and not through this "
             "filter is kept out while somebody uses it for writing."},
    {NULL},
};

static uint64_t cluster_size(const struct block_node *node)
{
    return MAX_OF(block_node_below_filters(node->file)->limits.cluster_size, 1u);
}

/* Whole clusters, of which the disk's last one may be shorter. */
static int write_clusters(struct block_node *node, const void *buffer, uint64_t offset,
                          uint64_t bytes)
{
    int status = block_node_pwrite_compressed(node->file, buffer, offset, bytes);

    /* A layer below may have changed since we were opened: better stored as it is than not. */
    return status == -ENOTSUP ? block_node_pwrite(node->file, buffer, offset, bytes, 0) : status;
}

/* Where the cluster that a range is in begins and ends. */
static uint64_t cluster_bounds(struct block_node *node, uint64_t offset, uint64_t *end)
{
    uint64_t start = align_down(offset, cluster_size(node));

    *end = MIN_OF(start + cluster_size(node), block_node_length(node->file));
    return start;
}

/* ---- Parts of clusters ---------------------------------------------------------------------- */

/* A part of one cluster, with nobody else in it. buffer NULL: zeroes. */
static int change_cluster(struct block_node *node, const void *buffer, uint64_t offset,
                          uint64_t bytes, unsigned flags)
{
    uint64_t end, start = cluster_bounds(node, offset, &end);
    AUTO_FREE char *cluster = block_node_alloc_buffer(node->file, end - start);
    int status = cluster ? block_node_pread(node->file, cluster, start, end - start, 0) : -ENOMEM;

    if (status < 0) {
        return status;
    }
    if (buffer) {
        memcpy(cluster + (offset - start), buffer, bytes);
        return write_clusters(node, cluster, start, end - start);
    }
    memset(cluster + (offset - start), 0, bytes);
    if (buffer_is_zero(cluster, end - start)) {
        status = block_node_write_zeroes(node->file, start, end - start,
                                         flags | BLOCK_REQUEST_NO_FALLBACK);
        if (status != -ENOTSUP) {
            return status;
        }
    }
    return write_clusters(node, cluster, start, end - start);
}

static int write_part(struct block_node *node, const void *buffer, uint64_t offset, uint64_t bytes,
                      unsigned flags)
{
    struct compress_state *state = block_node_state(node);
    struct tracked_request tracked;
    uint64_t end, start = cluster_bounds(node, offset, &end);

    tracked_request_begin(&state->changes, &tracked, start, end - start, true);
    int status = change_cluster(node, buffer, offset, bytes, flags);
    tracked_request_end(&state->changes, &tracked);
    return status;
}

/* The first part of a range: of one cluster, or whole clusters. Returns its length. */
static uint64_t first_part(struct block_node *node, uint64_t offset, uint64_t bytes, bool *is_whole)
{
    uint64_t end, start = cluster_bounds(node, offset, &end);

    *is_whole = start == offset && end <= offset + bytes;
    if (!*is_whole) {
        return MIN_OF(bytes, end - offset);
    }
    return offset + bytes == block_node_length(node->file) ? bytes
                                                           : align_down(bytes, cluster_size(node));
}

/* ---- Requests ------------------------------------------------------------------------------- */

static int write_whole(struct block_node *node, const void *buffer, uint64_t offset, uint64_t bytes)
{
    struct compress_state *state = block_node_state(node);
    struct tracked_request tracked;

    tracked_request_begin(&state->changes, &tracked, offset, bytes, false);
    int status = write_clusters(node, buffer, offset, bytes);
    tracked_request_end(&state->changes, &tracked);
    return status;
}

static int compress_pwrite(struct block_node *node, const void *buffer, uint64_t offset,
                           uint64_t bytes, unsigned flags)
{
    const char *from = buffer;
    int status = 0;

    for (uint64_t part; status == 0 && bytes; from += part, offset += part, bytes -= part) {
        bool is_whole;

        part = first_part(node, offset, bytes, &is_whole);
        status = is_whole ? write_whole(node, from, offset, part)
                          : write_part(node, from, offset, part, 0);
    }
    return status;
}

/* As the file can; -ENOTSUP if only by writing data, and then nothing has changed. */
static int write_zeroes_as_they_are(struct block_node *node, uint64_t offset, uint64_t bytes,
                                    unsigned flags)
{
    struct compress_state *state = block_node_state(node);
    struct tracked_request tracked;

    tracked_request_begin(&state->changes, &tracked, offset, bytes, false);
    int status =
        block_node_write_zeroes(node->file, offset, bytes, flags | BLOCK_REQUEST_NO_FALLBACK);
    tracked_request_end(&state->changes, &tracked);
    return status;
}

static int write_zero_clusters(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    uint64_t size = MIN_OF(cluster_size(node), bytes);
    AUTO_FREE void *zeroes = block_node_alloc_buffer(node->file, size);
    int status = zeroes ? 0 : -ENOMEM;

    if (zeroes) {
        memset(zeroes, 0, size);
    }
    for (uint64_t piece; status == 0 && bytes; offset += piece, bytes -= piece) {
        piece = MIN_OF(bytes, size);
        status = write_whole(node, zeroes, offset, piece);
    }
    return status;
}

static int compress_write_zeroes(struct block_node *node, uint64_t offset, uint64_t bytes,
                                 unsigned flags)
{
    int status = 0;

    if (flags & BLOCK_REQUEST_NO_FALLBACK) {
        return write_zeroes_as_they_are(node, offset, bytes, flags);
    }
    for (uint64_t part; status == 0 && bytes; offset += part, bytes -= part) {
        bool is_whole;

        part = first_part(node, offset, bytes, &is_whole);
        status = write_zeroes_as_they_are(node, offset, part, flags);
        if (status == -ENOTSUP) {
            status = is_whole ? write_zero_clusters(node, offset, part)
                              : write_part(node, NULL, offset, part, flags);
        }
    }
    return status;
}

static int compress_discard(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    struct compress_state *state = block_node_state(node);
    struct tracked_request tracked;

    tracked_request_begin(&state->changes, &tracked, offset, bytes, false);
    int status = block_node_discard(node->file, offset, bytes);
    tracked_request_end(&state->changes, &tracked);
    return status;
}

/* What the kernel copies does not come past us: it comes as a write instead. */
static int compress_pwrite_from_fd(struct block_node *node, int fd, uint64_t fd_offset,
                                   uint64_t offset, uint64_t bytes)
{
    return -ENOTSUP;
}

/* ---- Life ----------------------------------------------------------------------------------- */

static int compress_open(struct block_node *node, void *values, GError **error)
{
    struct compress_state *state = block_node_state(node);

    if (!block_node_can_compress(node->file)) {
        return block_error(error, ENOTSUP, "Compression is not supported for this drive %s",
                           node->file->name);
    }
    tracked_requests_init(&state->changes);
    node->limits = node->file->limits;
    return 0;
}

static void compress_close(struct block_node *node)
{
    struct compress_state *state = block_node_state(node);

    tracked_requests_destroy(&state->changes);
}

const struct block_driver compress_driver = {
    .name = "compress",
    .description = "Makes every write to a qcow2 image a compressed one",
    .is_filter = true,
    .is_length_free = true,
    .writes_alone = true,
    .instance_size = sizeof(struct compress_state),
    .options = compress_option_table,
    .open = compress_open,
    .close = compress_close,
    .pwrite = compress_pwrite,
    .can_compress = true,
    .write_zeroes = compress_write_zeroes,
    .discard = compress_discard,
    .pwrite_from_fd = compress_pwrite_from_fd,
};
