/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2: the allocator of host clusters.
 *
 * Free clusters are looked for where there are refcounts. When there are none left, the file is
 * extended behind everything: the clusters wanted, then those of the refcount blocks that describe
 * both. When the refcount table is too short for that, a longer one is built there first.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/checked.h"
#include "block/cleanup.h"
#include "formats/qcow2/internal.h"

/* The file grows by an eighth of its length, within these bounds: each time costs a system call. */
#define GROWTH_MIN MIB
#define GROWTH_MAX GIB

/* A new refcount table is half as long again as what is needed. */
#define TABLE_SLACK(entries) ((entries) + (entries) / 2)

/* A run of host clusters, by index. */
struct clusters {
    uint64_t first;
    uint64_t count;
};

static uint64_t block_of(const struct qcow2 *q, uint64_t cluster)
{
    return cluster >> q->refblock_bits;
}

static bool has_block(const struct qcow2 *q, uint64_t cluster)
{
    uint64_t index = block_of(q, cluster);

    return index < q->reftable_entries && q->reftable[index] & QCOW2_REFTABLE_MASK;
}

/* ---- The file's length ---------------------------------------------------------------------- */

int qcow2_grow_file(struct qcow2 *q, uint64_t bytes)
{
    uint64_t length = block_node_length(q->file);

    if (bytes <= length) {
        return 0;
    }
    uint64_t slack = CLAMP(length / 8, GROWTH_MIN, GROWTH_MAX);
    uint64_t wanted = align_up(MAX_OF(bytes, length + slack), MAX_OF(q->cluster_size, 4 * KIB));
    int status = wanted <= INT64_MAX ? block_node_grow(q->file, wanted) : -EFBIG;
    return status < 0 && bytes < wanted ? block_node_grow(q->file, bytes) : status;
}

/* ---- Looking for free clusters. refcount_lock held, here and below. -------------------------- */

/* Go on with a run inside one existing block; false when it has ended, or is long enough. */
static bool search_block(struct qcow2 *q, const struct qcow2_refblock *block, uint64_t *cluster,
                         uint64_t wanted, bool contiguous, struct clusters *run)
{
    uint64_t end = (block->index + 1) << q->refblock_bits;
    uint64_t mask = (UINT64_C(1) << q->refblock_bits) - 1;

    for (; *cluster < end; ++*cluster) {
        if (qcow2_refblock_get(block->data, q->refcount_order, *cluster & mask)) {
            if (run->count && !contiguous) {
                return false;
            }
            run->count = 0;
        } else {
            if (run->count++ == 0) {
                run->first = *cluster;
            }
            if (run->count == wanted) {
                return false;
            }
        }
    }
    return true;
}

/*
 * A free run among clusters that have refcounts; count is 0 if there is none. *end is where the
 * search ended.
 */
static int search_blocks(struct qcow2 *q, uint64_t wanted, bool contiguous, struct clusters *run,
                         uint64_t *end)
{
    run->count = 0;
    while (block_of(q, *end) < q->reftable_entries) {
        struct qcow2_refblock *block;
        int status = qcow2_refblock_find(q, block_of(q, *end), &block);

        if (status < 0) {
            return status;
        }
        if (block && !search_block(q, block, end, wanted, contiguous, run)) {
            return 0;
        }
        if (!block) {
            if (run->count && !contiguous) {
                return 0;
            }
            run->count = 0;
            *end = (block_of(q, *end) + 1) << q->refblock_bits;
        }
    }
    if (contiguous && run->count < wanted) {
        run->count = 0;
    }
    return 0;
}

static int search(struct qcow2 *q, uint64_t wanted, bool contiguous, struct clusters *run)
{
    uint64_t end = q->free_hint;
    int status = search_blocks(q, wanted, contiguous, run, &end);

    if (status == 0 && !contiguous) {
        q->free_hint = run->count ? run->first : end; /* all before is in use */
    }
    return status;
}

/* ---- Extending the file --------------------------------------------------------------------- */

/* Blocks that are missing for these clusters and for themselves, if they follow them. */
static uint64_t blocks_needed(const struct qcow2 *q, uint64_t first, uint64_t count)
{
    uint64_t needed = 0, before;

    do {
        before = needed;
        needed = 0;
        for (uint64_t index = block_of(q, first); index <= block_of(q, first + count + before - 1);
             index++) {
            needed += !has_block(q, index << q->refblock_bits);
        }
    } while (needed > before);
    return needed;
}

/*
 * The first place behind everything for a run and the blocks it needs, all together in *whole.
 * Refcounts of clusters there are 0 in an image that is whole; otherwise they are avoided.
 */
static int find_tail(struct qcow2 *q, uint64_t count, struct clusters *whole)
{
    const uint64_t limit = QCOW2_HOST_MAX >> q->cluster_bits;
    uint64_t mask = (UINT64_C(1) << q->refblock_bits) - 1;

    whole->first = q->tail;
again:
    if (!range_within(whole->first, count, limit)) {
        return -EFBIG;
    }
    whole->count = count + blocks_needed(q, whole->first, count);
    if (!range_within(whole->first, whole->count, limit)) {
        return -EFBIG;
    }
    for (uint64_t cluster = whole->first; cluster < whole->first + whole->count; cluster++) {
        struct qcow2_refblock *block;
        int status = qcow2_refblock_find(q, block_of(q, cluster), &block);

        if (status < 0) {
            return status;
        }
        if (!block) {
            cluster |= mask; /* nothing in the rest of this block's part */
        } else if (qcow2_refblock_get(block->data, q->refcount_order, cluster & mask)) {
            whole->first = cluster + 1;
            goto again;
        }
    }
    return 0;
}

/* Give clusters that are free the refcount 1. Their blocks exist. */
static int take(struct qcow2 *q, const struct clusters *run)
{
    for (uint64_t cluster = run->first; cluster < run->first + run->count; cluster++) {
        struct qcow2_refblock *block;
        int status = qcow2_refblock_find(q, block_of(q, cluster), &block);

        if (status < 0) {
            while (cluster-- > run->first) {
                if (qcow2_refblock_find(q, block_of(q, cluster), &block) == 0) {
                    qcow2_refblock_change(q, block, cluster, 0);
                }
            }
            return status;
        }
        qcow2_refblock_change(q, block, cluster, 1);
    }
    return 0;
}

/* Make the missing blocks, behind the first `count` clusters of a run, and take the whole run. */
static int occupy(struct qcow2 *q, const struct clusters *whole, uint64_t count)
{
    uint64_t place = whole->first + count;

    for (uint64_t index = block_of(q, whole->first);
         index <= block_of(q, whole->first + whole->count - 1); index++) {
        if (!has_block(q, index << q->refblock_bits)) {
            if (!qcow2_refblock_new(q, index, place++ << q->cluster_bits)) {
                return -ENOMEM; /* what was made stays: its clusters count as free */
            }
        }
    }
    q->tail = whole->first + whole->count;
    q->free_hint = MIN_OF(q->free_hint, whole->first);
    return take(q, whole);
}

/* ---- A longer refcount table ---------------------------------------------------------------- */

/* Write all blocks that are dirty; they may go to the disk at any time. */
static int write_blocks(struct qcow2 *q)
{
    struct qcow2_refblock *block;

    TAILQ_FOREACH (block, &q->refblocks, entry) {
        uint64_t offset = q->reftable[block->index] & QCOW2_REFTABLE_MASK;

        if (block->dirty) {
            int status = qcow2_write_metadata(q, block->data, q->cluster_size, offset);

            if (status < 0) {
                return status;
            }
        }
    }
    return 0;
}

/* Let the header refer to the new table: both fields lie in one sector. */
int qcow2_switch_reftable(struct qcow2 *q, uint64_t offset, uint32_t clusters)
{
    SCOPE_LOCK(&q->header_lock);
    struct qcow2_header before = q->header;

    q->header.reftable_offset = offset;
    q->header.reftable_clusters = clusters;
    return qcow2_header_switch(q, &before, 48, 60); /* ..._table_offset, ..._table_clusters */
}

static int put_table(struct qcow2 *q, uint64_t offset)
{
    int status = write_blocks(q);

    if (status == 0) {
        status = qcow2_write_words(q, q->reftable, q->reftable_entries, offset);
    }
    if (status == 0) {
        status = block_node_flush(q->file);
    }
    return status;
}

/* Take the longer array over in memory. */
static int extend_array(struct qcow2 *q, uint64_t entries)
{
    uint64_t *table = g_try_renew(uint64_t, q->reftable, entries);

    if (!table) {
        return -ENOMEM;
    }
    memset(table + q->reftable_entries, 0, (entries - q->reftable_entries) * sizeof(*table));
    q->reftable = table;
    q->reftable_entries = entries;
    return 0;
}

/*
 * Where a table with room for `count` clusters at the tail, and for itself, is to be. The array has
 * the new length already.
 */
static int place_table(struct qcow2 *q, uint64_t clusters, struct clusters *whole)
{
    int status = find_tail(q, clusters, whole);

    if (status == 0 && block_of(q, whole->first + whole->count - 1) >= q->reftable_entries) {
        return -EFBIG;
    }
    if (status == 0) {
        status = qcow2_check_overlap(q, QCOW2_AREA_NONE, whole->first << q->cluster_bits,
                                     whole->count << q->cluster_bits);
    }
    return status == 0 ? qcow2_grow_file(q, (whole->first + whole->count) << q->cluster_bits)
                       : status;
}

/* Undo what a failed growth made in memory: nothing on disk refers to it. */
static void forget_growth(struct qcow2 *q, const struct clusters *whole, uint64_t old_entries)
{
    struct qcow2_refblock *block, *next;

    TAILQ_FOREACH_SAFE (block, &q->refblocks, entry, next) {
        uint64_t place = (q->reftable[block->index] & QCOW2_REFTABLE_MASK) >> q->cluster_bits;

        if (place >= whole->first && place < whole->first + whole->count) {
            qcow2_metadata_remove(q, place << q->cluster_bits, QCOW2_AREA_REFBLOCK);
            q->reftable[block->index] = 0;
            TAILQ_REMOVE(&q->refblocks, block, entry);
            g_hash_table_remove(q->refblock_map, &block->index);
            free(block->data);
            g_free(block);
        }
    }
    for (uint64_t cluster = whole->first; cluster < whole->first + whole->count; cluster++) {
        if (has_block(q, cluster) && qcow2_refblock_find(q, block_of(q, cluster), &block) == 0) {
            qcow2_refblock_change(q, block, cluster, 0);
        }
    }
    q->reftable_entries = old_entries;
}

/* Have room in the table for `count` clusters at the tail. */
static int grow_table(struct qcow2 *q, uint64_t count)
{
    uint64_t old_entries = q->reftable_entries;
    uint64_t old_offset = q->header.reftable_offset;
    uint64_t old_bytes = (uint64_t)q->header.reftable_clusters << q->cluster_bits;
    uint64_t per_cluster = q->cluster_size / sizeof(uint64_t);
    uint64_t entries = block_of(q, q->tail + count) + 1;
    struct clusters whole = {0};

    /* Room for the table itself: it takes a tiny part of what it describes. */
    entries = align_up(TABLE_SLACK(entries) + 8, per_cluster);
    if (entries > QCOW2_REFTABLE_BYTES_MAX / sizeof(uint64_t)) {
        return -EFBIG;
    }
    int status = extend_array(q, entries);
    if (status == 0) {
        status = place_table(q, entries / per_cluster, &whole);
    }
    if (status < 0) {
        q->reftable_entries = old_entries;
        return status;
    }
    uint64_t offset = whole.first << q->cluster_bits;
    status = occupy(q, &whole, entries / per_cluster);
    if (status == 0) {
        status = put_table(q, offset);
    }
    if (status == 0) {
        status = qcow2_switch_reftable(q, offset, (uint32_t)(entries / per_cluster));
    }
    if (status < 0) {
        forget_growth(q, &whole, old_entries);
        return status;
    }
    g_hash_table_remove_all(q->reftable_dirty); /* all of it has just been written */
    qcow2_area_set(q, QCOW2_AREA_REFTABLE, offset, entries * sizeof(uint64_t));
    /* A commit that is under way may still write to the old one: nobody else may get it before. */
    qcow2_give_up(q, old_offset, old_bytes, false);
    return 0;
}

/* ---- Allocation ----------------------------------------------------------------------------- */

/* Extend the file by a run; refcount blocks come along. */
static int allocate_tail(struct qcow2 *q, uint64_t count, struct clusters *run)
{
    struct clusters whole;
    int status = find_tail(q, count, &whole);

    if (status == 0 && block_of(q, whole.first + whole.count - 1) >= q->reftable_entries) {
        status = grow_table(q, whole.first - q->tail + whole.count);
        if (status == 0) {
            status = find_tail(q, count, &whole);
        }
    }
    if (status == 0) {
        status = qcow2_check_overlap(q, QCOW2_AREA_NONE, whole.first << q->cluster_bits,
                                     whole.count << q->cluster_bits);
    }
    if (status == 0) {
        status = qcow2_grow_file(q, (whole.first + whole.count) << q->cluster_bits);
    }
    if (status == 0) {
        status = occupy(q, &whole, count);
    }
    *run = (struct clusters){.first = whole.first, .count = count};
    return status;
}

static int allocate_found(struct qcow2 *q, struct clusters *run, bool contiguous)
{
    uint64_t end = (run->first + run->count) << q->cluster_bits;
    int status = qcow2_check_overlap(q, QCOW2_AREA_NONE, run->first << q->cluster_bits,
                                     run->count << q->cluster_bits);

    if (status == 0) {
        status = qcow2_grow_file(q, end);
    }
    /* A file of fixed length may have room for a part of it. */
    uint64_t there = block_node_length(q->file) >> q->cluster_bits;
    if (status < 0 && status != -EIO && !contiguous && run->first < there) {
        run->count = there - run->first;
        status = 0;
    }
    return status == 0 ? take(q, run) : status;
}

int qcow2_allocate(struct qcow2 *q, uint64_t clusters, bool contiguous, uint64_t *offset,
                   uint64_t *got, bool *is_new)
{
    struct clusters run;
    SCOPE_LOCK(&q->refcount_lock);
    uint64_t tail = q->tail;
    int status = search(q, clusters, contiguous && clusters > 1, &run);

    if (status < 0) {
        return status;
    }
    status = run.count ? allocate_found(q, &run, contiguous) : allocate_tail(q, clusters, &run);
    if (status < 0) {
        return status;
    }
    if (run.first == q->free_hint) {
        q->free_hint = run.first + run.count;
    }
    *offset = run.first << q->cluster_bits;
    *is_new = q->tail_is_zero && run.first >= tail;
    q->tail = MAX_OF(q->tail, run.first + run.count);
    if (got) {
        *got = run.count;
    }
    return 0;
}

void qcow2_unallocate(struct qcow2 *q, uint64_t offset, uint64_t clusters)
{
    qcow2_refcount_add(q, offset, clusters << q->cluster_bits, -1);
}

/* ---- Places for compressed data ------------------------------------------------------------- */

/* Take one particular cluster that directly follows one in use, if it is free. */
static bool take_next(struct qcow2 *q, uint64_t cluster)
{
    struct qcow2_refblock *block;
    struct clusters run = {cluster, 1};

    if (qcow2_refblock_find(q, block_of(q, cluster), &block) < 0 || !block ||
        qcow2_refblock_get(block->data, q->refcount_order,
                           cluster & ((UINT64_C(1) << q->refblock_bits) - 1)) ||
        allocate_found(q, &run, true) < 0) {
        return false;
    }
    if (cluster == q->free_hint) {
        q->free_hint++;
    }
    q->tail = MAX_OF(q->tail, cluster + 1);
    return true;
}

/* Go on behind the last data, into the next cluster if need be and possible. */
static bool append_bytes(struct qcow2 *q, uint64_t bytes)
{
    uint64_t at = q->compressed_at;
    uint64_t cluster = at >> q->cluster_bits, last = (at + bytes - 1) >> q->cluster_bits;

    if (!at || qcow2_refcount_change(q, cluster, 1) < 0) {
        return false;
    }
    if (last != cluster && !take_next(q, last)) {
        qcow2_refcount_change(q, cluster, -1);
        return false;
    }
    q->compressed_at = qcow2_in_cluster(q, at + bytes) ? at + bytes : 0;
    return true;
}

int qcow2_allocate_bytes(struct qcow2 *q, uint64_t bytes, uint64_t *offset)
{
    bool is_new;

    pthread_mutex_lock(&q->refcount_lock);
    *offset = q->compressed_at;
    bool is_appended = append_bytes(q, bytes);
    pthread_mutex_unlock(&q->refcount_lock);
    if (is_appended) {
        return 0;
    }
    int status = qcow2_allocate(q, 1, true, offset, NULL, &is_new);
    if (status == 0) {
        SCOPE_LOCK(&q->refcount_lock);
        q->compressed_at = qcow2_in_cluster(q, bytes) ? *offset + bytes : 0;
    }
    return status;
}
