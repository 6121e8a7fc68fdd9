/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2: writing.
 *
 * What is mapped to host clusters of its own is overwritten in place, without a lock. Everything
 * else takes a batch of consecutive guest clusters, keeps others who would change their mapping
 * out, writes data and what has to be copied around it to host clusters that nobody can see yet,
 * and lets the entries refer to these.
 */
#include <errno.h>
#include <string.h>

#include "block/cleanup.h"
#include "formats/qcow2/bitmap.h"
#include "formats/qcow2/internal.h"
#include "formats/qcow2/populate.h"

/* A batch: bounded so that others do not wait long, and neither does a buffer get large. */
#define BATCH_CLUSTERS_MAX 512
#define BATCH_BYTES_MAX    (4 * MIB)

/* Data that is copied into one buffer with what surrounds it, to be written in one request. */
#define MERGE_MAX (256 * KIB)

/* A write to consecutive guest clusters that need, or have, consecutive host clusters. */
struct batch {
    struct qcow2 *q;
    const char *buffer;
    uint64_t offset; /* of the data on the disk */
    uint64_t end;
    uint64_t start; /* of the first cluster */
    unsigned count; /* clusters */
    struct qcow2_entry *old;
    bool is_filling;        /* what the layer has of its own is left alone */
    bool is_new_allocation; /* else the entries' own host clusters are written */
    bool is_zero_on_disk;   /* the host clusters read as zeroes */
    uint64_t host;          /* of the first cluster */
    uint64_t copy_start;    /* with what is copied before the data, and behind it */
    uint64_t copy_end;
};

/* ---- What has to be done -------------------------------------------------------------------- */

static bool owns_host(const struct qcow2 *q, struct qcow2_entry entry)
{
    return !(entry.descriptor & QCOW2_COMPRESSED) && entry.descriptor & QCOW2_COPIED &&
           (q->has_data_file || entry.descriptor & QCOW2_OFFSET_MASK);
}

/* Whether all of a cluster may be overwritten in place already. */
static bool is_plain(const struct qcow2 *q, struct qcow2_entry entry)
{
    return owns_host(q, entry) && (q->has_extended_l2 ? (uint32_t)entry.bitmap == UINT32_MAX
                                                      : !(entry.descriptor & QCOW2_ZERO));
}

/* Whether a cluster goes on with what the batch does with those before it. */
static bool belongs(const struct batch *batch, struct qcow2_entry entry)
{
    const struct qcow2 *q = batch->q;
    uint64_t first = batch->old[0].descriptor & QCOW2_OFFSET_MASK;

    if (batch->is_filling && !(qcow2_absent(q, entry) & 1)) {
        return false;
    }
    if (batch->is_new_allocation) {
        return !owns_host(q, entry);
    }
    return owns_host(q, entry) && !is_plain(q, entry) &&
           (entry.descriptor & QCOW2_OFFSET_MASK) ==
               first + ((uint64_t)batch->count << q->cluster_bits);
}

/* A batch that only fills ends where its last cluster has something, behind an offset in it. */
static void bound_filling(struct batch *batch, struct qcow2_entry entry, uint64_t offset)
{
    const struct qcow2 *q = batch->q;
    uint64_t cluster = qcow2_cluster_start(q, offset);
    uint64_t absent = qcow2_absent(q, entry);
    uint64_t in_cluster = offset - cluster;

    if (!batch->is_filling) {
        return;
    }
    while (absent >> (in_cluster >> q->subcluster_bits) & 1) {
        in_cluster = align_down(in_cluster, UINT64_C(1) << q->subcluster_bits) +
                     (UINT64_C(1) << q->subcluster_bits);
    }
    if (in_cluster < q->cluster_size) {
        batch->end = MIN_OF(batch->end, cluster + in_cluster);
    }
}

/* Read the entries of the batch's clusters, as long as the same has to be done for them. */
static int collect(struct batch *batch)
{
    struct qcow2 *q = batch->q;
    int status = qcow2_entry_find(q, batch->start, &batch->old[0]);

    batch->is_new_allocation = !owns_host(q, batch->old[0]);
    batch->host = batch->old[0].descriptor & QCOW2_OFFSET_MASK;
    bound_filling(batch, batch->old[0], batch->offset);
    for (batch->count = 1; status == 0; batch->count++) {
        uint64_t at = batch->start + ((uint64_t)batch->count << q->cluster_bits);
        struct qcow2_entry entry;

        if (at >= batch->end) {
            return 0;
        }
        status = qcow2_entry_find(q, at, &entry);
        if (status == 0 && !belongs(batch, entry)) {
            batch->end = at;
            return 0;
        }
        batch->old[batch->count] = entry;
        bound_filling(batch, entry, at);
    }
    return status;
}

static int allocate(struct batch *batch)
{
    struct qcow2 *q = batch->q;
    uint64_t got;

    if (!batch->is_new_allocation) {
        return 0;
    }
    if (q->has_data_file) {
        batch->host = batch->start;
        return 0;
    }
    int status =
        qcow2_allocate(q, batch->count, false, &batch->host, &got, &batch->is_zero_on_disk);
    if (status == 0) {
        batch->count = (unsigned)got;
        batch->end = MIN_OF(batch->end, batch->start + (got << q->cluster_bits));
    }
    return status;
}

/* Without extended entries all of a cluster is allocated; with them, subclusters. */
static bool copies_whole(const struct batch *batch, struct qcow2_entry old)
{
    return !batch->q->has_extended_l2 ||
           (batch->is_new_allocation &&
            (old.descriptor & QCOW2_COMPRESSED || (uint32_t)old.bitmap));
}

static bool has_subcluster(const struct batch *batch, struct qcow2_entry old, uint64_t offset)
{
    const struct qcow2 *q = batch->q;

    return !batch->is_new_allocation &&
           old.bitmap >> (qcow2_in_cluster(q, offset) >> q->subcluster_bits) & 1;
}

/* Where copying around the data begins and ends. */
static void bound_copying(struct batch *batch)
{
    const struct qcow2 *q = batch->q;
    uint64_t subcluster = UINT64_C(1) << q->subcluster_bits;
    struct qcow2_entry first = batch->old[0], last = batch->old[batch->count - 1];

    batch->copy_start = batch->offset;
    if (copies_whole(batch, first)) {
        batch->copy_start = batch->start;
    } else if (!has_subcluster(batch, first, batch->offset)) {
        batch->copy_start = align_down(batch->offset, subcluster);
    }
    batch->copy_end = batch->end;
    if (copies_whole(batch, last)) {
        batch->copy_end = batch->start + ((uint64_t)batch->count << q->cluster_bits);
    } else if (!has_subcluster(batch, last, batch->end - 1)) {
        batch->copy_end = align_up(batch->end, subcluster);
    }
}

/* ---- Data ----------------------------------------------------------------------------------- */

/* Old data around the new; behind the disk's end there is none. */
static int read_old(struct batch *batch, char *buffer, uint64_t offset, uint64_t end)
{
    struct qcow2 *q = batch->q;
    uint64_t disk = q->header.size;
    uint64_t known = offset < disk || offset >= qcow2_disk_end(q) ? end : offset;

    if (offset < disk) {
        known = MIN_OF(end, disk);
    }
    block_node_debug_event(q->file, BLOCK_DEBUG_COPY_ON_WRITE_READ);
    int status = qcow2_read(q, buffer, offset, known - offset);
    memset(buffer + (known - offset), 0, end - known);
    return status;
}

/* A file may end inside its last cluster, or before clusters that were preallocated. */
static int write_in_place(struct qcow2 *q, const void *buffer, uint64_t host, uint64_t bytes)
{
    int status =
        host + bytes > block_node_length(q->data) ? block_node_grow(q->data, host + bytes) : 0;

    return status == 0 ? block_node_pwrite(q->data, buffer, host, bytes, 0) : status;
}

static int write_host(struct batch *batch, const void *buffer, uint64_t offset, uint64_t end)
{
    uint64_t host = batch->host + (offset - batch->start);

    if (batch->q->has_data_file) { /* which ends with the disk, not with its last cluster */
        end = MIN_OF(end, MAX_OF(batch->q->header.size, batch->end));
    }
    return offset < end ? write_in_place(batch->q, buffer, host, end - offset) : 0;
}

/* A part that is only copied. */
static int copy_part(struct batch *batch, uint64_t offset, uint64_t end)
{
    if (offset == end) {
        return 0;
    }
    AUTO_FREE char *buffer = block_node_alloc_buffer(batch->q->data, end - offset);
    int status = buffer ? read_old(batch, buffer, offset, end) : -ENOMEM;

    if (status == 0) {
        block_node_debug_event(batch->q->file, BLOCK_DEBUG_COPY_ON_WRITE_WRITE);
        status = write_host(batch, buffer, offset, end);
    }
    return status;
}

static int write_merged(struct batch *batch)
{
    uint64_t bytes = batch->copy_end - batch->copy_start;
    AUTO_FREE char *buffer = block_node_alloc_buffer(batch->q->data, bytes);
    char *data = buffer + (batch->offset - batch->copy_start);

    if (!buffer) {
        return -ENOMEM;
    }
    int status = 0;
    if (batch->copy_start < batch->offset) {
        status = read_old(batch, buffer, batch->copy_start, batch->offset);
    }
    memcpy(data, batch->buffer, batch->end - batch->offset);
    if (status == 0 && batch->end < batch->copy_end) {
        status = read_old(batch, data + (batch->end - batch->offset), batch->end, batch->copy_end);
    }
    block_node_debug_event(batch->q->file, BLOCK_DEBUG_COPY_ON_WRITE_WRITE);
    return status == 0 ? write_host(batch, buffer, batch->copy_start, batch->copy_end) : status;
}

static int write_data(struct batch *batch)
{
    /* Zeroes on zeroes need not be written. */
    bool writes_before =
        batch->copy_start < batch->offset &&
        !(batch->is_zero_on_disk &&
          qcow2_reads_as_zero(batch->q, batch->copy_start, batch->offset - batch->copy_start));
    bool writes_behind = batch->end < batch->copy_end &&
                         !(batch->is_zero_on_disk &&
                           qcow2_reads_as_zero(batch->q, batch->end, batch->copy_end - batch->end));

    if ((writes_before || writes_behind) && batch->copy_end - batch->copy_start <= MERGE_MAX) {
        return write_merged(batch);
    }
    int status = writes_before ? copy_part(batch, batch->copy_start, batch->offset) : 0;
    if (status == 0 && writes_behind) {
        status = copy_part(batch, batch->end, batch->copy_end);
    }
    return status == 0 ? write_host(batch, batch->buffer, batch->offset, batch->end) : status;
}

/* ---- Entries -------------------------------------------------------------------------------- */

/* Subclusters of a cluster that the batch has written. */
static uint32_t written_subclusters(const struct batch *batch, uint64_t cluster)
{
    const struct qcow2 *q = batch->q;
    uint64_t start = MAX_OF(batch->copy_start, cluster) - cluster;
    uint64_t end = MIN_OF(batch->copy_end, cluster + q->cluster_size) - cluster;
    unsigned first = (unsigned)(start >> q->subcluster_bits);
    unsigned last = (unsigned)((end - 1) >> q->subcluster_bits);

    return UINT32_MAX << first & UINT32_MAX >> (31 - last);
}

static struct qcow2_entry new_entry(const struct batch *batch, unsigned i)
{
    const struct qcow2 *q = batch->q;
    uint64_t shift = (uint64_t)i << q->cluster_bits;
    struct qcow2_entry entry = {.descriptor = (batch->host + shift) | QCOW2_COPIED};

    if (q->has_extended_l2) {
        uint32_t written = written_subclusters(batch, batch->start + shift);
        uint64_t old = batch->old[i].descriptor & QCOW2_COMPRESSED ? 0 : batch->old[i].bitmap;
        uint32_t allocated = batch->is_new_allocation ? 0 : (uint32_t)old;

        entry.bitmap = (uint64_t)((uint32_t)(old >> 32) & ~written) << 32 | allocated | written;
    }
    return entry;
}

static int publish(struct batch *batch)
{
    g_autofree struct qcow2_entry *entries = g_new(struct qcow2_entry, batch->count);

    for (unsigned i = 0; i < batch->count; i++) {
        entries[i] = new_entry(batch, i);
    }
    int status = qcow2_entries_set(batch->q, batch->start, entries, batch->count, true);
    for (unsigned i = 0; status == 0 && batch->is_new_allocation && i < batch->count; i++) {
        qcow2_give_up_entry(batch->q, batch->old[i].descriptor, batch->q->options.discard_other);
    }
    return status;
}

/* ---- Batches -------------------------------------------------------------------------------- */

/* The clusters are ours. */
static int run_batch(struct batch *batch)
{
    struct qcow2 *q = batch->q;
    struct qcow2_slice *slice;
    int status = qcow2_slice_get_writable(q, batch->start, &slice);

    if (status == 0) {
        block_node_debug_event(q->file, BLOCK_DEBUG_CLUSTER_ALLOCATE);
        status = allocate(batch);
    }
    if (status < 0) {
        return status;
    }
    bound_copying(batch);
    status = write_data(batch);
    if (status < 0) {
        if (batch->is_new_allocation && !q->has_data_file) {
            qcow2_unallocate(q, batch->host, batch->count);
        }
        return status;
    }
    return publish(batch);
}

/* Where the first batch of a write ends at most: inside one L2 slice. */
static uint64_t batch_end(const struct qcow2 *q, uint64_t offset, uint64_t end)
{
    uint64_t slice_bytes = q->cluster_size << q->slice_bits;
    uint64_t most = MIN_OF((uint64_t)BATCH_CLUSTERS_MAX << q->cluster_bits,
                           MAX_OF(BATCH_BYTES_MAX, q->cluster_size));

    end = MIN_OF(end, qcow2_cluster_start(q, offset) + most);
    return MIN_OF(end, align_down(offset, slice_bytes) + slice_bytes);
}

/* Whether anything is to be done for the first cluster; somebody else may have done it while we
 * waited for the cluster. */
static bool needs_batch(const struct batch *batch)
{
    return batch->is_filling ? batch->end > batch->offset : !is_plain(batch->q, batch->old[0]);
}

/* Write the first part of [offset, end) that one batch can write; *done is how much that was. */
static int write_first(struct qcow2 *q, const void *buffer, uint64_t offset, uint64_t end,
                       bool is_filling, uint64_t *done)
{
    struct batch batch = {
        .q = q,
        .buffer = buffer,
        .offset = offset,
        .end = batch_end(q, offset, end),
        .start = qcow2_cluster_start(q, offset),
        .is_filling = is_filling,
    };
    struct tracked_request tracked;
    uint64_t clusters = qcow2_clusters(q, batch.end - batch.start);
    g_autofree struct qcow2_entry *old = g_new(struct qcow2_entry, clusters);

    batch.old = old;
    tracked_request_begin(&q->allocations, &tracked, batch.start, clusters << q->cluster_bits,
                          true);
    int status = collect(&batch);
    *done = 0;
    if (status == 0 && needs_batch(&batch)) {
        status = run_batch(&batch);
        *done = status == 0 ? batch.end - offset : 0;
    }
    tracked_request_end(&q->allocations, &tracked);
    return status;
}

int qcow2_write_absent(struct qcow2 *q, const void *buffer, uint64_t offset, uint64_t end,
                       uint64_t *done)
{
    return write_first(q, buffer, offset, end, true, done);
}

int qcow2_write(struct qcow2 *q, const void *buffer, uint64_t offset, uint64_t bytes)
{
    const char *from = buffer;
    uint64_t end = offset + bytes;
    int status = 0;

    while (status == 0 && offset < end) {
        struct qcow2_run run;
        uint64_t done = 0;

        status = qcow2_map(q, offset, end - offset, &run);
        if (status == 0 && run.kind == QCOW2_KIND_DATA && run.writable) {
            done = run.bytes;
            status = write_in_place(q, from, run.host, done);
        } else if (status == 0) {
            status = write_first(q, from, offset, end, false, &done);
        }
        from += done;
        offset += done;
    }
    return status;
}

/* ---- The driver's entry points -------------------------------------------------------------- */

int qcow2_begin_change(struct qcow2 *q)
{
    if (!qcow2_may_write(q)) {
        return -EIO;
    }
    if (atomic_load(&q->has_recording_bitmaps) && qcow2_bitmaps_outdate(q, false) < 0) {
        return -EIO; /* they would say that nothing has changed */
    }
    return 0;
}

static int write_once(struct qcow2 *q, const void *buffer, uint64_t offset, uint64_t bytes,
                      unsigned flags)
{
    unsigned slot = epoch_enter(&q->epoch);
    int status = flags & BLOCK_REQUEST_COMPRESSED ? qcow2_write_compressed(q, buffer, offset, bytes)
                                                  : qcow2_write(q, buffer, offset, bytes);

    epoch_leave(&q->epoch, slot);
    return status;
}

int qcow2_pwrite(struct block_node *node, const void *buffer, uint64_t offset, uint64_t bytes,
                 unsigned flags)
{
    struct qcow2 *q = qcow2_of(node);

    if (qcow2_begin_change(q) < 0) {
        return -EIO;
    }
    int status = write_once(q, buffer, offset, bytes, flags);
    /* Perhaps there is room that was given up and not freed yet. */
    if (status == -ENOSPC && atomic_load(&q->pending_free_clusters) && qcow2_reclaim_all(q) == 0) {
        status = write_once(q, buffer, offset, bytes, flags);
    }
    qcow2_commit_if_worth(q);
    return status;
}

int qcow2_flush(struct block_node *node)
{
    return qcow2_commit(qcow2_of(node), true);
}
