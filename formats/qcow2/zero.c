/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2: write-zeroes and discard, which change only what clusters are mapped to.
 *
 * What a guest has zeroed says so itself in version 3, also while there is no backing file: one may
 * be put under the image later. What was discarded need not.
 */
#include <errno.h>
#include <string.h>

#include "block/cleanup.h"
#include "formats/qcow2/populate.h"

/* So many clusters are changed at once, with others kept out meanwhile. */
#define BATCH_CLUSTERS 256

/* Zeroes that are written as data are written in pieces of this many bytes, or a cluster. */
#define ZEROES_AT_ONCE MIB

enum change {
    CHANGE_ZERO,       /* reads as zeroes, its host cluster is kept */
    CHANGE_ZERO_UNMAP, /* reads as zeroes, its host cluster is given up */
    CHANGE_DISCARD,    /* as CHANGE_ZERO_UNMAP; the user's discard */
    CHANGE_UNMAP,      /* unallocated: a backing file shows through */
};

/* ---- One cluster ---------------------------------------------------------------------------- */

/* Also one that is not opened now. */
static bool has_backing(const struct qcow2 *q)
{
    return q->node->backing || q->header.backing_file;
}

/* Whether what has no host cluster of its own becomes unallocated. Behind the disk's end that reads
 * as zeroes, and in version 2 there is nothing else. */
static bool leaves_nothing(const struct qcow2 *q, uint64_t offset, enum change change)
{
    return change == CHANGE_UNMAP || (change == CHANGE_DISCARD && !has_backing(q)) ||
           q->header.version < 3 || offset >= qcow2_disk_end(q);
}

static struct qcow2_entry zero_entry(const struct qcow2 *q, uint64_t offset, enum change change)
{
    if (leaves_nothing(q, offset, change)) {
        return (struct qcow2_entry){0};
    }
    return q->has_extended_l2 ? (struct qcow2_entry){.bitmap = (uint64_t)UINT32_MAX << 32}
                              : (struct qcow2_entry){.descriptor = QCOW2_ZERO};
}

static bool keeps_host(const struct qcow2 *q, struct qcow2_entry old, enum change change)
{
    bool is_own = !(old.descriptor & QCOW2_COMPRESSED) && old.descriptor & QCOW2_COPIED &&
                  (q->has_data_file || old.descriptor & QCOW2_OFFSET_MASK);

    return is_own && q->header.version >= 3 &&
           (change == CHANGE_ZERO ||
            (q->has_data_file && (q->data_file_is_raw || change != CHANGE_UNMAP)) ||
            (change == CHANGE_DISCARD && q->options.discard_no_unref));
}

/* What a whole cluster becomes. */
static struct qcow2_entry changed_entry(const struct qcow2 *q, uint64_t offset,
                                        struct qcow2_entry old, enum change change)
{
    if (!keeps_host(q, old, change)) {
        return zero_entry(q, offset, change);
    }
    if (q->has_extended_l2) {
        return (struct qcow2_entry){old.descriptor, (uint64_t)UINT32_MAX << 32};
    }
    return (struct qcow2_entry){.descriptor = old.descriptor | QCOW2_ZERO};
}

/*
 * Give up what an entry referred to and no longer does. A host cluster that is kept is freed in
 * the storage if that is wanted.
 */
static void let_go(struct qcow2 *q, struct qcow2_entry old, struct qcow2_entry now,
                   enum change change)
{
    bool is_discard = change != CHANGE_ZERO && q->options.discard_to_storage;
    uint64_t host = old.descriptor & QCOW2_OFFSET_MASK;

    if (!(now.descriptor & QCOW2_OFFSET_MASK) && !q->has_data_file) {
        qcow2_give_up_entry(q, old.descriptor, is_discard);
    } else if (is_discard && qcow2_has_host(q, old.descriptor) && !q->data_file_is_raw &&
               host < block_node_length(q->data)) {
        block_node_discard(q->data, host,
                           MIN_OF(q->cluster_size, block_node_length(q->data) - host));
    }
}

/* ---- Many clusters -------------------------------------------------------------------------- */

/* Clusters whose entries lie in one slice, so that all of them change or none. */
struct batch {
    uint64_t start;
    unsigned count;
    struct qcow2_entry old[BATCH_CLUSTERS], now[BATCH_CLUSTERS];
};

/* Whether anything is to be done is in *changes. */
static int plan(struct qcow2 *q, struct batch *batch, enum change change, bool *changes)
{
    int status = 0;

    *changes = false;
    for (unsigned i = 0; status == 0 && i < batch->count; i++) {
        uint64_t offset = batch->start + ((uint64_t)i << q->cluster_bits);
        struct qcow2_entry *old = &batch->old[i], *now = &batch->now[i];

        status = qcow2_entry_find(q, offset, old);
        *now = changed_entry(q, offset, *old, change);
        *changes |= old->descriptor != now->descriptor || old->bitmap != now->bitmap;
    }
    return status;
}

/* The clusters are ours. */
static int change_batch(struct qcow2 *q, struct batch *batch, enum change change)
{
    bool changes;
    int status = plan(q, batch, change, &changes);

    if (status < 0 || !changes) {
        return status;
    }
    status = qcow2_entries_set(q, batch->start, batch->now, batch->count, false);
    for (unsigned i = 0; status == 0 && i < batch->count; i++) {
        if (batch->old[i].descriptor != batch->now[i].descriptor ||
            batch->old[i].bitmap != batch->now[i].bitmap) {
            let_go(q, batch->old[i], batch->now[i], change);
        }
    }
    return status;
}

/* Whether whole clusters are already what they are to become. */
static bool is_done(const struct qcow2 *q, uint64_t start, const struct qcow2_run *run,
                    enum change change)
{
    enum qcow2_kind wanted =
        leaves_nothing(q, start, change) ? QCOW2_KIND_UNALLOCATED : QCOW2_KIND_ZERO;

    return run->kind == wanted && !run->is_allocated && run->bytes >= q->cluster_size;
}

/* Whole clusters, all in the disk or all behind it. */
static int change_clusters(struct qcow2 *q, uint64_t start, uint64_t end, enum change change)
{
    uint64_t slice_bytes = q->cluster_size << q->slice_bits;
    int status = 0;

    while (status == 0 && start < end) {
        uint64_t stop = MIN_OF(end, start + ((uint64_t)BATCH_CLUSTERS << q->cluster_bits));
        struct tracked_request tracked;
        struct batch batch = {.start = start};
        struct qcow2_run run;

        status = qcow2_map(q, start, end - start, &run);
        if (status == 0 && is_done(q, start, &run, change)) {
            start += qcow2_cluster_start(q, run.bytes);
            continue;
        }
        if (status < 0) {
            return status;
        }
        stop = MIN_OF(stop, align_down(start, slice_bytes) + slice_bytes);
        batch.count = (unsigned)((stop - start) >> q->cluster_bits);
        tracked_request_begin(&q->allocations, &tracked, start, stop - start, true);
        status = change_batch(q, &batch, change);
        tracked_request_end(&q->allocations, &tracked);
        start = stop;
    }
    return status;
}

/* ---- Parts of clusters ---------------------------------------------------------------------- */

/* Mark subclusters of one cluster as zero. 1 if that cannot be done without writing data. */
static int zero_subclusters(struct qcow2 *q, uint64_t start, uint64_t end)
{
    uint64_t cluster = qcow2_cluster_start(q, start);
    unsigned first = (unsigned)((start - cluster) >> q->subcluster_bits);
    unsigned last = (unsigned)((end - 1 - cluster) >> q->subcluster_bits);
    uint32_t mask = UINT32_MAX << first & UINT32_MAX >> (31 - last);
    struct tracked_request tracked;
    struct qcow2_entry entry;

    tracked_request_begin(&q->allocations, &tracked, cluster, q->cluster_size, true);
    int status = qcow2_entry_find(q, cluster, &entry);
    if (status == 0 && entry.descriptor & QCOW2_COMPRESSED) {
        status = 1;
    } else if (status == 0) {
        entry.bitmap &= ~(uint64_t)mask;
        entry.bitmap |= (uint64_t)mask << 32;
        status = qcow2_entries_set(q, cluster, &entry, 1, false);
    }
    tracked_request_end(&q->allocations, &tracked);
    return status;
}

void *qcow2_zero_buffer(struct qcow2 *q, uint64_t bytes)
{
    void *zeroes = block_node_alloc_buffer(q->data, bytes);

    return zeroes ? memset(zeroes, 0, bytes) : NULL;
}

int qcow2_write_zero_data(struct qcow2 *q, uint64_t start, uint64_t end)
{
    uint64_t most = MAX_OF(ZEROES_AT_ONCE, q->cluster_size);
    AUTO_FREE void *zeroes = NULL;
    int status = 0;

    while (status == 0 && start < end) {
        uint64_t stop = MIN_OF(end, qcow2_cluster_start(q, start) + most);

        if (!qcow2_reads_as_zero(q, start, stop - start)) {
            zeroes = zeroes ? zeroes : qcow2_zero_buffer(q, MIN_OF(end - start, most));
            status = zeroes ? qcow2_write(q, zeroes, start, stop - start) : -ENOMEM;
        }
        start = stop;
    }
    return status;
}

/* Let all of a subcluster be zeroes, if the image has nothing of it and it reads as zeroes. */
static int zero_absent_subcluster(struct qcow2 *q, uint64_t offset)
{
    uint64_t size = UINT64_C(1) << q->subcluster_bits, start = align_down(offset, size);
    uint64_t cluster = qcow2_cluster_start(q, offset);
    unsigned number = (unsigned)((start - cluster) >> q->subcluster_bits);
    struct tracked_request tracked;
    struct qcow2_entry entry;

    tracked_request_begin(&q->allocations, &tracked, cluster, q->cluster_size, true);
    int status = qcow2_entry_find(q, cluster, &entry);
    if (status == 0 && qcow2_absent(q, entry) >> number & 1 &&
        qcow2_reads_as_zero(q, start, MIN_OF(start + size, q->header.size) - start)) {
        entry.descriptor |= q->has_extended_l2 ? 0 : QCOW2_ZERO;
        entry.bitmap |= q->has_extended_l2 ? UINT64_C(1) << (32 + number) : 0;
        status = qcow2_entries_set(q, cluster, &entry, 1, false);
    }
    tracked_request_end(&q->allocations, &tracked);
    return status;
}

/* A part of one cluster as data, but where the image itself says that it is zeroes. */
static int zero_as_data(struct qcow2 *q, uint64_t start, uint64_t end)
{
    AUTO_FREE void *zeroes = NULL;
    int status = 0;

    if (q->header.version < 3) {
        return qcow2_write_zero_data(q, start, end);
    }
    while (status == 0 && start < end) {
        struct qcow2_run run;

        status = qcow2_map(q, start, end - start, &run);
        if (status == 0 && run.kind != QCOW2_KIND_ZERO) {
            zeroes = zeroes ? zeroes : qcow2_zero_buffer(q, end - start);
            status = zeroes ? qcow2_write(q, zeroes, start, run.bytes) : -ENOMEM;
        }
        start += run.bytes;
    }
    return status;
}

/* A part of one subcluster. */
static int zero_in_subcluster(struct qcow2 *q, uint64_t start, uint64_t end)
{
    int status = 0;

    if (start < end && q->header.version >= 3 && !q->data_file_is_raw) {
        status = zero_absent_subcluster(q, start);
    }
    return status == 0 ? zero_as_data(q, start, end) : status;
}

/* A part of one cluster: as subclusters where there are some, else as data. */
static int zero_part(struct qcow2 *q, uint64_t start, uint64_t end)
{
    uint64_t subcluster = UINT64_C(1) << q->subcluster_bits;
    uint64_t from = align_up(start, subcluster), to = align_down(end, subcluster);
    int status = 0;

    if (from > to) {
        return zero_in_subcluster(q, start, end);
    }
    if (from < to) {
        status = q->has_extended_l2 && !q->data_file_is_raw ? zero_subclusters(q, from, to) : 1;
    }
    if (status == 1) {
        return zero_as_data(q, start, end);
    }
    if (status == 0) {
        status = zero_in_subcluster(q, start, from);
    }
    return status == 0 ? zero_in_subcluster(q, to, end) : status;
}

/* ---- Requests ------------------------------------------------------------------------------- */

/* The whole clusters in a range; the disk's last one counts as whole if the range goes that far. */
static void whole_clusters(const struct qcow2 *q, uint64_t offset, uint64_t end, uint64_t *start,
                           uint64_t *stop)
{
    *start = align_up(offset, q->cluster_size);
    *stop = end == q->header.size ? qcow2_disk_end(q) : align_down(end, q->cluster_size);
    *stop = MAX_OF(*start, *stop);
}

static int zero_range(struct qcow2 *q, uint64_t offset, uint64_t end, unsigned flags)
{
    enum change change = flags & BLOCK_REQUEST_MAY_UNMAP ? CHANGE_ZERO_UNMAP : CHANGE_ZERO;
    uint64_t start, stop;

    whole_clusters(q, offset, end, &start, &stop);
    if (start >= stop || start >= end) { /* all in one cluster, or around the border of two */
        uint64_t border = MIN_OF(align_up(offset + 1, q->cluster_size), end);
        int status = zero_part(q, offset, border);

        return status == 0 && border < end ? zero_part(q, border, end) : status;
    }
    int status = offset < start ? zero_part(q, offset, start) : 0;
    if (status == 0) {
        status = change_clusters(q, start, stop, change);
    }
    return status == 0 && stop < end ? zero_part(q, stop, end) : status;
}

/* Version 2 has no zero clusters; only without a backing file is unallocated the same. */
static bool can_zero(struct qcow2 *q, uint64_t offset, uint64_t bytes, unsigned flags)
{
    uint64_t start, stop;

    if (q->header.version < 3 && (!(flags & BLOCK_REQUEST_MAY_UNMAP) || has_backing(q))) {
        return false;
    }
    if (!(flags & BLOCK_REQUEST_NO_FALLBACK)) {
        return true;
    }
    whole_clusters(q, offset, offset + bytes, &start, &stop);
    return !q->data_file_is_raw && start == offset && stop >= offset + bytes;
}

int qcow2_write_zeroes(struct block_node *node, uint64_t offset, uint64_t bytes, unsigned flags)
{
    struct qcow2 *q = qcow2_of(node);
    int status = 0;

    if (qcow2_begin_change(q) < 0) {
        return -EIO;
    }
    if (!can_zero(q, offset, bytes, flags)) {
        return -ENOTSUP;
    }
    if (q->data_file_is_raw) { /* who reads it without us is to see zeroes, too */
        status = block_node_grow(q->data, offset + bytes);
        if (status == 0) {
            status = block_node_write_zeroes(q->data, offset, bytes, flags);
        }
    }
    unsigned slot = epoch_enter(&q->epoch);
    if (status == 0) {
        status = zero_range(q, offset, offset + bytes, flags);
    }
    epoch_leave(&q->epoch, slot);
    qcow2_commit_if_worth(q);
    return status;
}

int qcow2_zero_clusters(struct qcow2 *q, uint64_t start, uint64_t end)
{
    return start < end ? change_clusters(q, start, end, CHANGE_ZERO_UNMAP) : 0;
}

int qcow2_discard_clusters(struct qcow2 *q, uint64_t offset, uint64_t bytes, bool full)
{
    uint64_t start = align_up(offset, q->cluster_size);
    uint64_t stop = align_down(offset + bytes, q->cluster_size);

    return start < stop ? change_clusters(q, start, stop, full ? CHANGE_UNMAP : CHANGE_DISCARD) : 0;
}

int qcow2_discard(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    struct qcow2 *q = qcow2_of(node);
    uint64_t start, stop;

    if (qcow2_begin_change(q) < 0) {
        return -EIO;
    }
    if (q->header.version < 3 && has_backing(q)) {
        return 0; /* there is no way to hide the backing file */
    }
    if (q->data_file_is_raw) {
        return 0; /* both files would have to say the same afterwards */
    }
    whole_clusters(q, offset, offset + bytes, &start, &stop);
    unsigned slot = epoch_enter(&q->epoch);
    int status = qcow2_discard_clusters(q, start, stop - start, false);
    epoch_leave(&q->epoch, slot);
    qcow2_commit_if_worth(q);
    return status;
}
