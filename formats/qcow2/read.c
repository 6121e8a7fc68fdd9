/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2: reading, and block status. */
#include <errno.h>
#include <string.h>

#include "formats/qcow2/internal.h"

/* How many runs one extent of block status is made of at most: bounds the time of an answer. */
#define STATUS_RUNS_MAX 4096

/* From the backing file, as far as that goes; zeroes behind it. */
static int read_backing(struct qcow2 *q, void *buffer, uint64_t offset, uint64_t bytes)
{
    struct block_node *backing = q->node->backing;

    if (!backing || offset >= qcow2_disk_end(q)) { /* VM state has no backing file */
        memset(buffer, 0, bytes);
        return 0;
    }
    return qcow2_read_padded(backing, buffer, offset, bytes);
}

static int read_run(struct qcow2 *q, const struct qcow2_run *run, void *buffer, uint64_t offset,
                    uint64_t bytes)
{
    switch (run->kind) {
    case QCOW2_KIND_UNALLOCATED:
        return read_backing(q, buffer, offset, bytes);
    case QCOW2_KIND_ZERO:
        memset(buffer, 0, bytes);
        return 0;
    case QCOW2_KIND_DATA:
        return qcow2_read_padded(q->data, buffer, run->host, bytes);
    case QCOW2_KIND_COMPRESSED:
        return qcow2_read_compressed(q, run->descriptor, qcow2_in_cluster(q, offset), buffer,
                                     bytes);
    }
    g_assert_not_reached();
}

int qcow2_read(struct qcow2 *q, void *buffer, uint64_t offset, uint64_t bytes)
{
    while (bytes) {
        struct qcow2_run run;
        int status = qcow2_map(q, offset, bytes, &run);

        if (status == 0) {
            status = read_run(q, &run, buffer, offset, run.bytes);
        }
        if (status < 0) {
            return status;
        }
        buffer = (char *)buffer + run.bytes;
        offset += run.bytes;
        bytes -= run.bytes;
    }
    return 0;
}

int qcow2_pread(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes,
                unsigned flags)
{
    struct qcow2 *q = qcow2_of(node);

    if (q->options.for_check) {
        return -EIO;
    }
    unsigned slot = epoch_enter(&q->epoch);
    int status = qcow2_read(q, buffer, offset, bytes);

    epoch_leave(&q->epoch, slot);
    return status;
}

bool qcow2_reads_as_zero(struct qcow2 *q, uint64_t offset, uint64_t bytes)
{
    while (bytes) {
        struct qcow2_run run;
        struct block_extent extent = {.flags = BLOCK_STATUS_ZERO};
        struct block_node *backing = q->node->backing;

        if (qcow2_map(q, offset, bytes, &run) < 0 || run.kind == QCOW2_KIND_DATA ||
            run.kind == QCOW2_KIND_COMPRESSED) {
            return false;
        }
        if (run.kind == QCOW2_KIND_UNALLOCATED && backing && offset < qcow2_disk_end(q) &&
            offset < block_node_length(backing)) {
            run.bytes = MIN_OF(run.bytes, block_node_length(backing) - offset);
            if (block_node_block_status_chain(backing, offset, run.bytes, &extent, NULL) < 0) {
                return false;
            }
            run.bytes = extent.bytes;
        }
        if (!(extent.flags & BLOCK_STATUS_ZERO)) {
            return false;
        }
        offset += run.bytes;
        bytes -= run.bytes;
    }
    return true;
}

/* ---- Block status --------------------------------------------------------------------------- */

static void describe(struct qcow2 *q, const struct qcow2_run *run, struct block_extent *extent)
{
    *extent = (struct block_extent){.bytes = run->bytes};
    switch (run->kind) {
    case QCOW2_KIND_UNALLOCATED:
        break;
    case QCOW2_KIND_ZERO:
        extent->flags = BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED;
        break;
    case QCOW2_KIND_DATA:
        extent->flags = BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED | BLOCK_STATUS_OFFSET_VALID;
        extent->host_offset = run->host;
        extent->host_node = q->data;
        break;
    case QCOW2_KIND_COMPRESSED:
        extent->flags = BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED | BLOCK_STATUS_COMPRESSED;
        break;
    }
}

static int find_extent(struct qcow2 *q, uint64_t offset, uint64_t bytes,
                       struct block_extent *extent)
{
    struct qcow2_run run;
    int status = qcow2_map(q, offset, bytes, &run);

    if (status < 0) {
        return status;
    }
    describe(q, &run, extent);
    for (unsigned i = 1; i < STATUS_RUNS_MAX && extent->bytes < bytes; i++) {
        struct block_extent next;

        if (qcow2_map(q, offset + extent->bytes, bytes - extent->bytes, &run) < 0) {
            break;
        }
        describe(q, &run, &next);
        if (next.flags != extent->flags ||
            (next.flags & BLOCK_STATUS_OFFSET_VALID &&
             next.host_offset != extent->host_offset + extent->bytes)) {
            break;
        }
        extent->bytes += next.bytes;
    }
    return 0;
}

int qcow2_block_status(struct block_node *node, uint64_t offset, uint64_t bytes,
                       struct block_extent *extent)
{
    struct qcow2 *q = qcow2_of(node);

    if (q->options.for_check) {
        return -EIO;
    }
    unsigned slot = epoch_enter(&q->epoch);
    int status = find_extent(q, offset, bytes, extent);

    epoch_leave(&q->epoch, slot);
    return status;
}
