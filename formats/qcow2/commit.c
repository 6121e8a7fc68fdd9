/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2: write-back of metadata in an order that holds when power is lost at any moment, and the
 * freeing of clusters that nothing refers to any more. See the head of internal.h.
 *
 * A commit first captures what has changed (short locks, no I/O), then writes the copies, so that
 * guests go on changing metadata meanwhile. Frees are captured before entries are: whatever gave up
 * a cluster is then among the entries captured. Refcounts are captured after entries: they have all
 * that the entries refer to.
 */
#include <errno.h>
#include <string.h>

#include "block/cleanup.h"
#include "formats/qcow2/internal.h"

/* So many clusters given up are worth a commit for their own sake. */
#define FREES_WORTH_A_COMMIT 4096

#define SECTOR_BYTES         512
#define SECTOR_WORDS         (SECTOR_BYTES / sizeof(uint64_t))

/* A piece of a table as it was captured. */
struct piece {
    uint64_t offset; /* in the file */
    uint64_t bytes;
    size_t at; /* in the data */
    enum qcow2_area area;
};

struct pieces {
    GArray *list; /* struct piece */
    GByteArray *data;
};

struct capture {
    struct pieces refblocks;
    struct pieces reftable;
    struct pieces entries; /* of the L1 table and L2 tables */
    GPtrArray *slices;     /* struct qcow2_slice: what is being written of them */
    GArray *slice_units;   /* uint64_t: which units */
    GPtrArray *blocks;     /* struct qcow2_refblock */
    GArray *block_units;   /* uint64_t */
    GArray *l1_sectors;    /* gsize */
    GArray *table_sectors; /* gsize */
    GArray *frees;         /* struct qcow2_free */
    bool barrier;          /* entries refer to what may not be stable */
};

/* ---- Pieces --------------------------------------------------------------------------------- */

static void pieces_init(struct pieces *pieces)
{
    pieces->list = g_array_new(FALSE, FALSE, sizeof(struct piece));
    pieces->data = g_byte_array_new();
}

static void pieces_destroy(struct pieces *pieces)
{
    g_array_unref(pieces->list);
    g_byte_array_unref(pieces->data);
}

/* Add bytes; what follows the last piece directly becomes a part of it. */
static void pieces_add(struct pieces *pieces, enum qcow2_area area, uint64_t offset,
                       const void *data, uint64_t bytes)
{
    struct piece piece = {offset, bytes, pieces->data->len, area};
    struct piece *last = pieces->list->len
                             ? &g_array_index(pieces->list, struct piece, pieces->list->len - 1)
                             : NULL;

    g_byte_array_append(pieces->data, data, (guint)bytes);
    if (last && last->area == area && last->offset + last->bytes == offset) {
        last->bytes += bytes;
    } else {
        g_array_append_val(pieces->list, piece);
    }
}

static int pieces_write(struct qcow2 *q, const struct pieces *pieces)
{
    for (guint i = 0; i < pieces->list->len; i++) {
        const struct piece *piece = &g_array_index(pieces->list, struct piece, i);
        int status = qcow2_check_overlap(q, piece->area, piece->offset, piece->bytes);

        if (status == 0) {
            status = qcow2_write_metadata(q, pieces->data->data + piece->at, piece->bytes,
                                          piece->offset);
        }
        if (status < 0) {
            return status;
        }
    }
    return 0;
}

/* The units of a table that a mask names. */
static void add_units(struct pieces *pieces, enum qcow2_area area, uint64_t offset,
                      const void *table, uint64_t table_bytes, unsigned unit_bits, uint64_t units)
{
    for (uint64_t at = 0; at < table_bytes; at += UINT64_C(1) << unit_bits) {
        if (units >> (at >> unit_bits) & 1) {
            pieces_add(pieces, area, offset + at, (const char *)table + at,
                       MIN_OF(UINT64_C(1) << unit_bits, table_bytes - at));
        }
    }
}

/* ---- Capturing ------------------------------------------------------------------------------ */

static void capture_init(struct capture *capture)
{
    *capture = (struct capture){
        .slices = g_ptr_array_new(),
        .slice_units = g_array_new(FALSE, FALSE, sizeof(uint64_t)),
        .blocks = g_ptr_array_new(),
        .block_units = g_array_new(FALSE, FALSE, sizeof(uint64_t)),
        .l1_sectors = g_array_new(FALSE, FALSE, sizeof(gsize)),
        .table_sectors = g_array_new(FALSE, FALSE, sizeof(gsize)),
    };
    pieces_init(&capture->refblocks);
    pieces_init(&capture->reftable);
    pieces_init(&capture->entries);
}

static void capture_destroy(struct capture *capture)
{
    pieces_destroy(&capture->refblocks);
    pieces_destroy(&capture->reftable);
    pieces_destroy(&capture->entries);
    g_ptr_array_unref(capture->slices);
    g_array_unref(capture->slice_units);
    g_ptr_array_unref(capture->blocks);
    g_array_unref(capture->block_units);
    g_array_unref(capture->l1_sectors);
    g_array_unref(capture->table_sectors);
    if (capture->frees) {
        g_array_unref(capture->frees);
    }
}

static void capture_frees(struct qcow2 *q, struct capture *capture)
{
    SCOPE_LOCK(&q->frees_lock);

    capture->frees = STEAL(q->frees);
    q->frees = g_array_new(FALSE, FALSE, sizeof(struct qcow2_free));
}

/* A sector of a table of words in host order, as it is to be on disk. */
static void add_sector(struct pieces *pieces, enum qcow2_area area, uint64_t table_offset,
                       uint64_t sector, const uint64_t *words, uint64_t count)
{
    uint64_t data[SECTOR_WORDS];

    for (uint64_t i = 0; i < count; i++) {
        data[i] = htobe64(words[i]);
    }
    pieces_add(pieces, area, table_offset + sector * SECTOR_BYTES, data, count * sizeof(*data));
}

/* Take the numbers out of a set of sectors, in order. */
static int compare_numbers(gconstpointer a, gconstpointer b)
{
    gsize first = *(const gsize *)a, second = *(const gsize *)b;

    return (first > second) - (first < second);
}

static void take_sectors(GHashTable *set, GArray *numbers)
{
    GHashTableIter iterator;
    gpointer key;

    g_hash_table_iter_init(&iterator, set);
    while (g_hash_table_iter_next(&iterator, &key, NULL)) {
        gsize number = GPOINTER_TO_SIZE(key);

        g_array_append_val(numbers, number);
    }
    g_hash_table_remove_all(set);
    g_array_sort(numbers, compare_numbers);
}

static void capture_l1(struct qcow2 *q, struct capture *capture)
{
    SCOPE_LOCK(&q->l1_lock);

    take_sectors(q->l1_dirty, capture->l1_sectors);
    for (guint i = 0; i < capture->l1_sectors->len; i++) {
        gsize sector = g_array_index(capture->l1_sectors, gsize, i);
        uint64_t first = sector * SECTOR_WORDS, words[SECTOR_WORDS];
        uint64_t count = MIN_OF(SECTOR_WORDS, q->l1_size - first);

        for (uint64_t word = 0; word < count; word++) {
            words[word] = atomic_load(&q->l1[first + word]);
        }
        add_sector(&capture->entries, QCOW2_AREA_L1, q->header.l1_offset, sector, words, count);
        capture->barrier = true;
    }
}

static void capture_slice(struct qcow2 *q, struct capture *capture, struct qcow2_slice *slice)
{
    SCOPE_LOCK(&slice->lock);
    uint64_t units = slice->dirty;
    uint64_t table = atomic_load(&q->l1[slice->table->l1_index]) & QCOW2_OFFSET_MASK;

    slice->queued = false;
    if (!units) {
        return;
    }
    add_units(&capture->entries, QCOW2_AREA_L2, table + slice->index * q->slice_bytes,
              (const void *)slice->entries, q->slice_bytes, q->slice_unit_bits, units);
    capture->barrier |= slice->barrier;
    slice->dirty = 0;
    slice->barrier = false;
    slice->writing = true;
    g_ptr_array_add(capture->slices, slice);
    g_array_append_val(capture->slice_units, units);
}

static void capture_slices(struct qcow2 *q, struct capture *capture)
{
    struct qcow2_slice *slice;

    while (true) {
        pthread_mutex_lock(&q->cache_lock);
        slice = TAILQ_FIRST(&q->dirty_slices);
        if (slice) {
            TAILQ_REMOVE(&q->dirty_slices, slice, dirty_entry);
        }
        pthread_mutex_unlock(&q->cache_lock);
        if (!slice) {
            return;
        }
        capture_slice(q, capture, slice); /* it is dirty, so it is not evicted */
    }
}

static void capture_refcounts(struct qcow2 *q, struct capture *capture)
{
    struct qcow2_refblock *block;
    SCOPE_LOCK(&q->refcount_lock);

    TAILQ_FOREACH (block, &q->refblocks, entry) {
        if (block->dirty) {
            add_units(&capture->refblocks, QCOW2_AREA_REFBLOCK,
                      q->reftable[block->index] & QCOW2_REFTABLE_MASK, block->data, q->cluster_size,
                      q->refblock_unit_bits, block->dirty);
            g_array_append_val(capture->block_units, block->dirty);
            g_ptr_array_add(capture->blocks, block);
            block->dirty = 0;
            block->writing = true;
        }
    }
    take_sectors(q->reftable_dirty, capture->table_sectors);
    for (guint i = 0; i < capture->table_sectors->len; i++) {
        gsize sector = g_array_index(capture->table_sectors, gsize, i);
        uint64_t first = sector * SECTOR_WORDS;

        if (first < q->reftable_entries) {
            add_sector(&capture->reftable, QCOW2_AREA_REFTABLE, q->header.reftable_offset, sector,
                       q->reftable + first, MIN_OF(SECTOR_WORDS, q->reftable_entries - first));
        }
    }
}

/* ---- After writing -------------------------------------------------------------------------- */

static void settle_slices(struct qcow2 *q, struct capture *capture, bool is_written)
{
    for (guint i = 0; i < capture->slices->len; i++) {
        struct qcow2_slice *slice = g_ptr_array_index(capture->slices, i);
        SCOPE_LOCK(&slice->lock);

        slice->writing = false;
        if (!is_written) {
            slice->dirty |= g_array_index(capture->slice_units, uint64_t, i);
            slice->barrier = true;
            qcow2_slice_queue(q, slice);
        }
    }
}

static void settle_refcounts(struct qcow2 *q, struct capture *capture, bool is_written)
{
    SCOPE_LOCK(&q->refcount_lock);

    for (guint i = 0; i < capture->blocks->len; i++) {
        struct qcow2_refblock *block = g_ptr_array_index(capture->blocks, i);

        block->writing = false;
        block->dirty |= is_written ? 0 : g_array_index(capture->block_units, uint64_t, i);
    }
    for (guint i = 0; !is_written && i < capture->table_sectors->len; i++) {
        g_hash_table_add(q->reftable_dirty,
                         GSIZE_TO_POINTER(g_array_index(capture->table_sectors, gsize, i)));
    }
}

static void settle_l1(struct qcow2 *q, struct capture *capture)
{
    SCOPE_LOCK(&q->l1_lock);

    for (guint i = 0; i < capture->l1_sectors->len; i++) {
        g_hash_table_add(q->l1_dirty,
                         GSIZE_TO_POINTER(g_array_index(capture->l1_sectors, gsize, i)));
    }
}

/* Nothing that was captured counts as written. */
static void put_back(struct qcow2 *q, struct capture *capture)
{
    settle_slices(q, capture, false);
    settle_refcounts(q, capture, false);
    settle_l1(q, capture);
    atomic_store(&q->has_changes, true);
    SCOPE_LOCK(&q->frees_lock);
    g_array_append_vals(q->frees, capture->frees->data, capture->frees->len);
}

/* What was given up is stable: free it when nobody uses it any more. */
static void retire_frees(struct qcow2 *q, struct capture *capture)
{
    if (capture->frees->len == 0) {
        return;
    }
    struct qcow2_free_batch *batch = g_new0(struct qcow2_free_batch, 1);
    batch->frees = STEAL(capture->frees);
    batch->tag = epoch_advance(&q->epoch);
    SCOPE_LOCK(&q->frees_lock);
    TAILQ_INSERT_TAIL(&q->waiting, batch, entry);
}

/* ---- Writing -------------------------------------------------------------------------------- */

static int flush_data(struct qcow2 *q)
{
    int status = q->has_data_file ? block_node_flush(q->data) : 0;

    return status == 0 ? block_node_flush(q->file) : status;
}

static int write_capture(struct qcow2 *q, struct capture *capture, bool durable)
{
    bool has_entries = capture->entries.list->len;
    int status = pieces_write(q, &capture->refblocks);

    if (status == 0 && capture->reftable.list->len) {
        status = block_node_flush(q->file); /* blocks before what points to them */
        if (status == 0) {
            status = pieces_write(q, &capture->reftable);
        }
    }
    if (status == 0 && has_entries && capture->barrier) {
        status = flush_data(q);
    }
    if (status == 0) {
        status = pieces_write(q, &capture->entries);
    }
    if (status == 0 && (durable || capture->frees->len)) {
        status = flush_data(q);
    }
    return status;
}

/* Refcounts may stay behind if the image says so: then they are made anew after a crash. */
static int mark_dirty(struct qcow2 *q)
{
    int status = 0;

    if (!atomic_load(&q->is_marked_dirty)) {
        status = qcow2_set_incompatible(q, QCOW2_INCOMPATIBLE_DIRTY, 0, NULL);
        if (status == 0) {
            atomic_store(&q->is_marked_dirty, true);
        }
    }
    return status;
}

static int commit_changes(struct qcow2 *q, bool durable, bool with_refcounts)
{
    struct capture capture;
    int status = with_refcounts ? 0 : mark_dirty(q);

    if (status < 0) {
        return status;
    }
    capture_init(&capture);
    atomic_store(&q->has_changes, !with_refcounts);
    capture_frees(q, &capture);
    capture_slices(q, &capture);
    capture_l1(q, &capture);
    if (with_refcounts) {
        capture_refcounts(q, &capture);
    }
    status = write_capture(q, &capture, durable);
    if (status < 0) {
        put_back(q, &capture);
    } else {
        settle_slices(q, &capture, true);
        settle_refcounts(q, &capture, true);
        retire_frees(q, &capture);
    }
    capture_destroy(&capture);
    return status;
}

int qcow2_commit(struct qcow2 *q, bool durable)
{
    int status = 0;

    {
        SCOPE_LOCK(&q->commit_lock);
        if (atomic_load(&q->has_changes)) {
            status =
                qcow2_is_stopped(q) ? -EIO : commit_changes(q, durable, !q->options.lazy_refcounts);
        } else if (durable) {
            status = flush_data(q);
        }
    }
    if (atomic_load(&q->pending_free_clusters)) {
        qcow2_reclaim(q);
    }
    return status;
}

int qcow2_commit_all(struct qcow2 *q)
{
    SCOPE_LOCK(&q->commit_lock);

    return qcow2_is_stopped(q) ? -EIO : commit_changes(q, true, true);
}

/* ---- Giving up and freeing ------------------------------------------------------------------ */

void qcow2_give_up(struct qcow2 *q, uint64_t offset, uint64_t bytes, bool discard)
{
    struct qcow2_free given = {
        .offset = qcow2_cluster_start(q, offset),
        .clusters = qcow2_clusters(q, qcow2_in_cluster(q, offset) + bytes),
        .discard = discard,
    };

    atomic_fetch_add(&q->pending_free_clusters, given.clusters);
    atomic_store(&q->has_changes, true);
    SCOPE_LOCK(&q->frees_lock);
    struct qcow2_free *last =
        q->frees->len ? &g_array_index(q->frees, struct qcow2_free, q->frees->len - 1) : NULL;
    if (last && last->discard == discard &&
        last->offset + (last->clusters << q->cluster_bits) == given.offset) {
        last->clusters += given.clusters;
    } else {
        g_array_append_val(q->frees, given);
    }
}

void qcow2_give_up_entry(struct qcow2 *q, uint64_t entry, bool discard)
{
    uint64_t offset, bytes;

    if (entry & QCOW2_COMPRESSED) {
        qcow2_compressed_range(q, entry, &offset, &bytes);
        qcow2_give_up(q, offset, bytes, false);
    } else if (!q->has_data_file && entry & QCOW2_OFFSET_MASK) {
        qcow2_give_up(q, entry & QCOW2_OFFSET_MASK, q->cluster_size, discard);
    }
}

/* Tell the storage of those whose last reference goes, while nobody else can get them. */
static void discard_last(struct qcow2 *q, const struct qcow2_free *given)
{
    for (uint64_t i = 0, run; i < given->clusters; i += MAX_OF(run, UINT64_C(1))) {
        uint64_t at = given->offset + (i << q->cluster_bits), refcount;

        for (run = 0;
             i + run < given->clusters &&
             qcow2_refcount_get(q, at + (run << q->cluster_bits), &refcount) == 0 && refcount == 1;
             run++) {
        }
        uint64_t bytes = run << q->cluster_bits, length = block_node_length(q->file);
        if (run && at < length) {
            block_node_discard(q->file, at, MIN_OF(bytes, length - at)); /* advice */
        }
    }
}

static void free_batch(struct qcow2 *q, struct qcow2_free_batch *batch)
{
    for (guint i = 0; i < batch->frees->len; i++) {
        const struct qcow2_free *given = &g_array_index(batch->frees, struct qcow2_free, i);
        uint64_t bytes = given->clusters << q->cluster_bits;

        qcow2_decompressed_forget(q, given->offset, bytes);
        if (given->discard) {
            discard_last(q, given);
        }
        qcow2_refcount_add(q, given->offset, bytes, -1); /* if it fails they leak */
        atomic_fetch_sub(&q->pending_free_clusters, given->clusters);
    }
    g_array_unref(batch->frees);
    g_free(batch);
}

void qcow2_reclaim(struct qcow2 *q)
{
    while (true) {
        pthread_mutex_lock(&q->frees_lock);
        struct qcow2_free_batch *batch = TAILQ_FIRST(&q->waiting);
        if (batch && epoch_is_over(&q->epoch, batch->tag)) {
            TAILQ_REMOVE(&q->waiting, batch, entry);
        } else {
            batch = NULL;
        }
        pthread_mutex_unlock(&q->frees_lock);
        if (!batch) {
            return;
        }
        free_batch(q, batch);
    }
}

int qcow2_reclaim_all(struct qcow2 *q)
{
    int status = qcow2_commit(q, true);

    while (status == 0 && atomic_load(&q->pending_free_clusters)) {
        qcow2_reclaim(q);
        pthread_mutex_lock(&q->frees_lock);
        bool is_empty = TAILQ_EMPTY(&q->waiting);
        pthread_mutex_unlock(&q->frees_lock);
        if (is_empty) {
            break; /* what is left was given up after the commit */
        }
        g_usleep(100); /* requests that may still use them end soon */
    }
    return status;
}

void qcow2_commit_if_worth(struct qcow2 *q)
{
    if (atomic_load(&q->pending_free_clusters) >= FREES_WORTH_A_COMMIT) {
        qcow2_commit(q, true); /* if it fails, so will the guest's flush */
    }
}
