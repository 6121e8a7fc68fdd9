/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2: another length, and preallocation. The node is drained.
 *
 * What the header says changes in one sector: the L1 table it refers to is stable before, and
 * covers the new length; what it does not refer to any more is freed afterwards.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/error.h"
#include "formats/qcow2/bitmap.h"
#include "formats/qcow2/internal.h"

/* Clusters that are preallocated at once. */
#define PREALLOCATE_CLUSTERS UINT64_C(512)

/* ---- The header's fields -------------------------------------------------------------------- */

static int set_size(struct qcow2 *q, uint64_t length, GError **error)
{
    SCOPE_LOCK(&q->header_lock);
    struct qcow2_header before = q->header;

    q->header.size = length;
    int status = qcow2_header_switch(q, &before, 24, 32); /* size */
    return status < 0 ? block_error_errno(error, -status, "Could not write the new size") : 0;
}

/* ---- The L1 table --------------------------------------------------------------------------- */

/* Let the header refer to a table that is stable. */
static int switch_l1(struct qcow2 *q, uint64_t offset, uint32_t entries)
{
    SCOPE_LOCK(&q->header_lock);
    struct qcow2_header before = q->header;

    q->header.l1_offset = offset;
    q->header.l1_size = entries;
    return qcow2_header_switch(q, &before, 36, 48); /* l1_size, l1_table_offset */
}

static int replace_l1(struct qcow2 *q, const uint64_t *l1, uint32_t entries)
{
    uint64_t old_offset = q->header.l1_offset;
    uint64_t old_bytes = q->header.l1_size * sizeof(uint64_t);
    uint64_t clusters = qcow2_clusters(q, entries * sizeof(uint64_t)), offset;
    bool is_new;
    int status = qcow2_allocate(q, clusters, true, &offset, NULL, &is_new);

    if (status < 0) {
        return status;
    }
    status = qcow2_write_words(q, l1, entries, offset);
    if (status == 0) {
        status = qcow2_commit_all(q); /* its refcounts, too */
    }
    if (status == 0) {
        status = switch_l1(q, offset, entries);
    }
    if (status < 0) {
        qcow2_unallocate(q, offset, clusters);
        return status;
    }
    qcow2_refcount_add(q, old_offset, old_bytes, -1); /* if it fails it leaks */
    return qcow2_set_l1(q, l1, entries);
}

int qcow2_grow_l1(struct qcow2 *q, uint64_t entries, GError **error)
{
    if (entries <= q->l1_size) {
        return 0;
    }
    if (entries * sizeof(uint64_t) > QCOW2_L1_BYTES_MAX) {
        return block_error(error, EFBIG,
                           "The image size is too large for file format 'qcow2' (try using a "
                           "larger cluster size)");
    }
    g_autofree uint64_t *l1 = g_try_new0(uint64_t, entries);
    int status = l1 ? qcow2_commit_all(q) : -ENOMEM;
    for (uint32_t i = 0; status == 0 && i < q->l1_size; i++) {
        l1[i] = atomic_load(&q->l1[i]);
    }
    if (status == 0) {
        status = replace_l1(q, l1, (uint32_t)entries);
    }
    return status < 0 ? block_error_errno(error, -status, "Could not make the L1 table longer") : 0;
}

/* ---- Preallocation -------------------------------------------------------------------------- */

/* How entries show clusters that are allocated: as data, zeroes so far. With subclusters, a backing
 * file goes on showing through. */
static void fill_entries(const struct qcow2 *q, struct qcow2_entry *entries, uint64_t host,
                         uint64_t clusters, enum qcow2_kind before)
{
    bool shows_backing = q->header.backing_file && before == QCOW2_KIND_UNALLOCATED;

    for (uint64_t i = 0; i < clusters; i++) {
        entries[i].descriptor = (host + (i << q->cluster_bits)) | QCOW2_COPIED;
        entries[i].bitmap = q->has_extended_l2 && !shows_backing ? UINT32_MAX : 0;
    }
}

/* What is in host clusters already must not show. */
static int clear_host(struct qcow2 *q, uint64_t host, uint64_t bytes,
                      enum block_preallocation preallocation)
{
    uint64_t length = block_node_length(q->data);
    unsigned flags = preallocation == BLOCK_PREALLOCATION_METADATA ? BLOCK_REQUEST_MAY_UNMAP : 0;

    return host < length
               ? block_node_write_zeroes(q->data, host, MIN_OF(bytes, length - host), flags)
               : 0;
}

/* Take host clusters for the start of a run that has none. *clusters: how many it were. */
static int preallocate_run(struct qcow2 *q, uint64_t offset, const struct qcow2_run *run,
                           uint64_t *clusters, enum block_preallocation preallocation)
{
    g_autofree struct qcow2_entry *entries = g_new0(struct qcow2_entry, *clusters);
    uint64_t host = offset;
    bool is_new = false;
    int status = 0;

    if (!q->has_data_file) {
        status = qcow2_allocate(q, *clusters, false, &host, clusters, &is_new);
    }
    if (status < 0) {
        return status;
    }
    if (!is_new) {
        status = clear_host(q, host, *clusters << q->cluster_bits, preallocation);
    }
    if (status == 0) {
        fill_entries(q, entries, host, *clusters, run->kind);
        return qcow2_entries_set(q, offset, entries, (unsigned)*clusters, true);
    }
    if (!q->has_data_file) {
        qcow2_unallocate(q, host, *clusters);
    }
    return status;
}

static int preallocate_all(struct qcow2 *q, uint64_t offset, uint64_t end,
                           enum block_preallocation preallocation, block_progress *progress,
                           void *progress_data)
{
    uint64_t start = offset;
    int status = 0;

    while (status == 0 && offset < end) {
        uint64_t clusters = MIN_OF(qcow2_clusters(q, end - offset), PREALLOCATE_CLUSTERS);
        struct qcow2_run run;
        unsigned slot = epoch_enter(&q->epoch);

        status = qcow2_map(q, offset, clusters << q->cluster_bits, &run);
        clusters = MAX_OF(status == 0 ? run.bytes >> q->cluster_bits : 0, UINT64_C(1));
        if (status == 0 && run.bytes >= q->cluster_size && !run.is_allocated &&
            (run.kind == QCOW2_KIND_UNALLOCATED || run.kind == QCOW2_KIND_ZERO)) {
            status = preallocate_run(q, offset, &run, &clusters, preallocation);
        }
        epoch_leave(&q->epoch, slot);
        offset += clusters << q->cluster_bits;
        if (status == 0 && progress &&
            !progress(progress_data, MIN_OF(offset, end) - start, end - start)) {
            status = -ECANCELED;
        }
    }
    return status;
}

/* How long the file will be when clusters for so many bytes have been taken. */
static uint64_t file_bytes_needed(const struct qcow2 *q, uint64_t bytes)
{
    uint64_t clusters = qcow2_clusters(q, bytes);
    uint64_t tables = div_round_up(clusters, UINT64_C(1) << q->table_bits);
    uint64_t blocks = div_round_up(clusters + tables, UINT64_C(1) << q->refblock_bits);

    return (q->tail + clusters + tables + blocks) << q->cluster_bits;
}

/* Reserve or write the space that the file will need, before clusters are given to the disk. */
static int preallocate_file(struct qcow2 *q, uint64_t end, uint64_t bytes,
                            enum block_preallocation preallocation, block_progress *progress,
                            void *progress_data, GError **error)
{
    struct block_node *file = q->data;
    uint64_t used = q->has_data_file ? block_node_length(file) : q->tail << q->cluster_bits;
    uint64_t wanted = q->has_data_file ? end : file_bytes_needed(q, bytes);

    if (preallocation == BLOCK_PREALLOCATION_METADATA) {
        int status = q->has_data_file ? block_node_grow(file, end) : 0;

        return status < 0 ? block_error_errno(error, -status, "Could not grow the data file") : 0;
    }
    if (block_node_length(file) > used) {
        GError *ignored = NULL; /* what it is longer than used is not reserved */

        block_node_set_length(file, used, BLOCK_PREALLOCATION_OFF, &ignored);
        g_clear_error(&ignored);
    }
    return block_node_length(file) < wanted
               ? block_node_resize(file, wanted, preallocation, progress, progress_data, error)
               : 0;
}

int qcow2_preallocate(struct qcow2 *q, uint64_t offset, uint64_t bytes,
                      enum block_preallocation preallocation, block_progress *progress,
                      void *progress_data, GError **error)
{
    uint64_t start = align_up(offset, q->cluster_size);
    int status;

    if (offset + bytes <= start) {
        return 0;
    }
    bytes = offset + bytes - start;
    status =
        preallocate_file(q, start + bytes, bytes, preallocation, progress, progress_data, error);
    if (status < 0) {
        return status;
    }
    status = preallocate_all(q, start, start + bytes, preallocation, progress, progress_data);
    return status < 0 ? block_error_errno(error, -status, "Could not preallocate") : 0;
}

/* ---- Growing -------------------------------------------------------------------------------- */

/*
 * What is mapped behind the disk's end (VM state, or what was left when the image got shorter)
 * is not to be seen when the end moves.
 */
static int clear_new_clusters(struct qcow2 *q, uint64_t length, GError **error)
{
    uint64_t end = qcow2_disk_end(q), new_end = align_up(length, q->cluster_size);
    int status = 0;

    if (end < new_end) {
        unsigned slot = epoch_enter(&q->epoch);

        status = qcow2_discard_clusters(q, end, new_end - end, true);
        epoch_leave(&q->epoch, slot);
    }
    return status < 0
               ? block_error_errno(error, -status, "Could not clear what is behind the disk's end")
               : 0;
}

/* The same for what the last cluster holds behind the disk's end. */
static int clear_last_cluster(struct qcow2 *q, uint64_t length, GError **error)
{
    uint64_t end = MIN_OF(qcow2_disk_end(q), length);
    uint64_t old = q->header.size;
    int status = 0;

    if (end > old) {
        unsigned slot = epoch_enter(&q->epoch);

        status = qcow2_write_zero_data(q, old, end);
        epoch_leave(&q->epoch, slot);
    }
    return status < 0 ? block_error_errno(error, -status, "Could not clear the end of the disk")
                      : 0;
}

/* A raw data file that is longer than the disk holds what the disk does not show yet. */
static int grow_raw_data(struct qcow2 *q, uint64_t length, GError **error)
{
    uint64_t there = block_node_length(q->data);
    int status = 0;

    if (!q->data_file_is_raw) {
        return 0;
    }
    if (there > q->header.size) {
        status =
            block_node_write_zeroes(q->data, q->header.size, MIN_OF(there, length) - q->header.size,
                                    BLOCK_REQUEST_MAY_UNMAP);
    }
    if (status == 0) {
        status = block_node_grow(q->data, length);
    }
    return status < 0 ? block_error_errno(error, -status, "Could not grow the data file") : 0;
}

/* How far a backing file goes; one that the user has told us to leave alone may be of any length.
 */
static uint64_t backing_end(const struct qcow2 *q)
{
    return q->node->backing         ? block_node_length(q->node->backing)
           : q->header.backing_file ? INT64_MAX
                                    : 0;
}

/* A backing file that is longer than the disk was must not show in what is new. The header has the
 * new size in memory. */
static int hide_backing(struct qcow2 *q, uint64_t start, uint64_t end, GError **error)
{
    uint64_t hidden = MIN_OF(end, backing_end(q));
    int status;

    if (hidden <= start) {
        return 0;
    }
    if (q->header.version < 3 && !q->node->backing) {
        return block_error(error, ENOTSUP,
                           "An image of version 2 with a backing file can only grow with the "
                           "backing file opened, too");
    }
    unsigned slot = epoch_enter(&q->epoch);
    status = q->header.version < 3
                 ? qcow2_write_zero_data(q, start, hidden)
                 : qcow2_zero_clusters(q, start, align_up(hidden, q->cluster_size));
    epoch_leave(&q->epoch, slot);
    return status < 0 ? block_error_errno(error, -status, "Could not hide the backing file") : 0;
}

/* The new clusters, before the header has the new size. */
static int prepare_new_clusters(struct qcow2 *q, uint64_t length,
                                enum block_preallocation preallocation, block_progress *progress,
                                void *progress_data, GError **error)
{
    uint64_t before = q->header.size, start = qcow2_disk_end(q);

    if (length <= start) {
        return 0;
    }
    q->header.size = length; /* hiding and preallocation are within the new disk */
    int status = hide_backing(q, start, length, error);
    if (status == 0 && preallocation != BLOCK_PREALLOCATION_OFF) {
        status = qcow2_preallocate(q, start, length - start, preallocation, progress, progress_data,
                                   error);
    }
    q->header.size = before;
    if (status < 0) {
        clear_new_clusters(q, length, NULL); /* if it fails it is done when the disk grows */
    }
    return status;
}

static int grow(struct qcow2 *q, uint64_t length, enum block_preallocation preallocation,
                block_progress *progress, void *progress_data, GError **error)
{
    int status = qcow2_grow_l1(q, qcow2_l1_entries(q, length), error);

    if (status == 0) {
        status = clear_new_clusters(q, length, error);
    }
    if (status == 0) {
        status = clear_last_cluster(q, length, error);
    }
    if (status == 0) {
        status = grow_raw_data(q, length, error);
    }
    if (status == 0) {
        status = prepare_new_clusters(q, length, preallocation, progress, progress_data, error);
    }
    if (status < 0) {
        return status;
    }
    status = qcow2_commit_all(q);
    return status < 0 ? block_error_errno(error, -status, "Could not write metadata")
                      : set_size(q, length, error);
}

/* ---- Shrinking ------------------------------------------------------------------------------ */

static int shrink(struct qcow2 *q, uint64_t length, GError **error)
{
    uint64_t old_end = qcow2_disk_end(q);
    int status = set_size(q, length, error);

    if (status < 0) {
        return status;
    }
    /* From here on the disk is shorter; what fails now only leaks. */
    unsigned slot = epoch_enter(&q->epoch);
    qcow2_discard_clusters(q, qcow2_disk_end(q), old_end - qcow2_disk_end(q), true);
    epoch_leave(&q->epoch, slot);
    qcow2_reclaim_all(q);
    return q->data_file_is_raw
               ? block_node_set_length(q->data, length, BLOCK_PREALLOCATION_OFF, error)
               : 0;
}

int qcow2_set_length(struct block_node *node, uint64_t length,
                     enum block_preallocation preallocation, block_progress *progress,
                     void *progress_data, GError **error)
{
    struct qcow2 *q = qcow2_of(node);
    bool is_shorter = length < q->header.size;

    if (!qcow2_may_write(q)) {
        return qcow2_refuse_change(q, error);
    }
    if (!is_aligned(length, 512)) {
        return block_error(error, EINVAL, "The new size must be a multiple of 512");
    }
    if (length == q->header.size) {
        return 0;
    }
    if (is_shorter && preallocation != BLOCK_PREALLOCATION_OFF) {
        return block_error(error, EINVAL, "Preallocation can only be used for growing images");
    }
    if (q->snapshot_count && q->header.version < 3) {
        return block_error(error, ENOTSUP, "Can't resize a version 2 image which has snapshots");
    }
    /* Those in use may be of another length than the disk. */
    int status = qcow2_bitmaps_outdate(q, true);
    if (status < 0) {
        return block_error_errno(error, -status,
                                 "Could not mark the bitmaps of the image as in "
                                 "use");
    }
    return is_shorter ? shrink(q, length, error)
                      : grow(q, length, preallocation, progress, progress_data, error);
}
