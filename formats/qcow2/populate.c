/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2: keeping in the image what it reads as, where the backing file has it.
 *
 * Whether an image has something of its own is looked at again with its clusters held, so whatever
 * a guest has written meanwhile stays. Nothing reads differently afterwards, so stored bitmaps go
 * on to be true.
 */
#include <errno.h>

#include "block/cleanup.h"
#include "formats/qcow2/populate.h"

/* So many entries become zeroes at once, with others kept out meanwhile. */
#define BATCH_CLUSTERS 512

/* Zeroes that are written as data are written in pieces of this many bytes, or a cluster. */
#define ZEROES_AT_ONCE MIB

uint32_t qcow2_absent(const struct qcow2 *q, struct qcow2_entry entry)
{
    if (entry.descriptor & QCOW2_COMPRESSED) {
        return 0;
    }
    if (q->has_extended_l2) {
        return ~((uint32_t)entry.bitmap | (uint32_t)(entry.bitmap >> 32));
    }
    return !(entry.descriptor & QCOW2_ZERO) && !qcow2_has_host(q, entry.descriptor);
}

/* ---- Data ----------------------------------------------------------------------------------- */

static int fill(struct qcow2 *q, const char *from, uint64_t offset, uint64_t end)
{
    int status = 0;

    while (status == 0 && offset < end) {
        struct qcow2_run run;
        uint64_t done = 0;

        status = qcow2_map(q, offset, end - offset, &run);
        if (status == 0 && run.kind != QCOW2_KIND_UNALLOCATED) {
            done = run.bytes;
        } else if (status == 0) {
            status = qcow2_write_absent(q, from, offset, offset + run.bytes, &done);
        }
        from += done;
        offset += done;
    }
    return status;
}

static int fill_zero_data(struct qcow2 *q, uint64_t offset, uint64_t end)
{
    uint64_t most = MAX_OF(ZEROES_AT_ONCE, q->cluster_size);
    AUTO_FREE void *zeroes = offset < end ? qcow2_zero_buffer(q, MIN_OF(end - offset, most)) : NULL;
    int status = offset < end && !zeroes ? -ENOMEM : 0;

    while (status == 0 && offset < end) {
        uint64_t stop = MIN_OF(end, qcow2_cluster_start(q, offset) + most);

        status = fill(q, zeroes, offset, stop);
        offset = stop;
    }
    return status;
}

/* ---- Zeroes --------------------------------------------------------------------------------- */

/* The subclusters of a cluster that lie in [start, end). */
static uint32_t subclusters_within(const struct qcow2 *q, uint64_t cluster, uint64_t start,
                                   uint64_t end)
{
    uint64_t from = MAX_OF(start, cluster) - cluster;
    uint64_t to = MIN_OF(end, cluster + q->cluster_size) - cluster;
    unsigned first = (unsigned)(from >> q->subcluster_bits);
    unsigned last = (unsigned)((to - 1) >> q->subcluster_bits);

    return UINT32_MAX << first & UINT32_MAX >> (31 - last);
}

/* What an entry becomes, some of whose subclusters are to be zeroes if they are nothing yet. */
static struct qcow2_entry with_zeroes(const struct qcow2 *q, struct qcow2_entry entry,
                                      uint32_t subclusters)
{
    subclusters &= qcow2_absent(q, entry);
    if (subclusters && !q->has_extended_l2) {
        entry.descriptor |= QCOW2_ZERO;
    } else {
        entry.bitmap |= (uint64_t)subclusters << 32;
    }
    return entry;
}

/* At most BATCH_CLUSTERS clusters, the first and the last perhaps in part. */
static int fill_zero_batch(struct qcow2 *q, uint64_t start, uint64_t end)
{
    struct qcow2_entry entries[BATCH_CLUSTERS];
    uint64_t first = qcow2_cluster_start(q, start);
    unsigned count = (unsigned)qcow2_clusters(q, end - first);
    struct tracked_request tracked;
    int status = 0;

    tracked_request_begin(&q->allocations, &tracked, first, (uint64_t)count << q->cluster_bits,
                          true);
    for (unsigned i = 0; status == 0 && i < count; i++) {
        uint64_t cluster = first + ((uint64_t)i << q->cluster_bits);

        status = qcow2_entry_find(q, cluster, &entries[i]);
        entries[i] = with_zeroes(q, entries[i], subclusters_within(q, cluster, start, end));
    }
    if (status == 0) {
        status = qcow2_entries_set(q, first, entries, count, false);
    }
    tracked_request_end(&q->allocations, &tracked);
    return status;
}

/* Whole subclusters. */
static int fill_zero_entries(struct qcow2 *q, uint64_t start, uint64_t end)
{
    int status = 0;

    while (status == 0 && start < end) {
        uint64_t most =
            qcow2_cluster_start(q, start) + ((uint64_t)BATCH_CLUSTERS << q->cluster_bits);
        struct qcow2_run run;

        status = qcow2_map(q, start, MIN_OF(end, most) - start, &run);
        if (status == 0 && run.kind == QCOW2_KIND_UNALLOCATED) {
            status = fill_zero_batch(q, start, start + run.bytes);
        }
        start += run.bytes;
    }
    return status;
}

static int fill_zeroes(struct qcow2 *q, uint64_t offset, uint64_t end)
{
    uint64_t unit = UINT64_C(1) << q->subcluster_bits;
    uint64_t start = align_up(offset, unit);
    uint64_t stop = end == q->header.size ? align_up(end, unit) : align_down(end, unit);

    /* Version 2 has no zero clusters; a raw data file is to hold the zeroes, too. */
    if (q->header.version < 3 || q->data_file_is_raw || start >= stop) {
        return fill_zero_data(q, offset, end);
    }
    int status = fill_zero_data(q, offset, start);
    if (status == 0) {
        status = fill_zero_entries(q, start, stop);
    }
    return status == 0 ? fill_zero_data(q, stop, end) : status;
}

/* ---- The driver's entry point --------------------------------------------------------------- */

static int populate_once(struct qcow2 *q, const void *buffer, uint64_t offset, uint64_t end)
{
    unsigned slot = epoch_enter(&q->epoch);
    int status = buffer ? fill(q, buffer, offset, end) : fill_zeroes(q, offset, end);

    epoch_leave(&q->epoch, slot);
    return status;
}

int qcow2_populate(struct block_node *node, const void *buffer, uint64_t offset, uint64_t bytes)
{
    struct qcow2 *q = qcow2_of(node);

    if (!qcow2_may_write(q)) {
        return -EIO;
    }
    int status = populate_once(q, buffer, offset, offset + bytes);
    /* As for a guest's write. */
    if (status == -ENOSPC && atomic_load(&q->pending_free_clusters) && qcow2_reclaim_all(q) == 0) {
        status = populate_once(q, buffer, offset, offset + bytes);
    }
    qcow2_commit_if_worth(q);
    return status;
}
