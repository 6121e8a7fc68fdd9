/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2: another width of refcounts ("Host cluster management").
 *
 * A second refcount table and its blocks are written to new clusters, which the old ones count as
 * in use; nothing refers to them before the header does. In the new ones the old ones' clusters are
 * free. So at each moment the refcounts that hold are right, but for a leak if power is lost.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/error.h"
#include "formats/qcow2/amend-internal.h"
#include "formats/qcow2/header-internal.h"

/* A new block, by its index in the new table, and where it is to be. */
struct new_block {
    uint64_t index;
    uint64_t offset; /* 0: nowhere yet */
};

struct rewrite {
    struct qcow2 *q;
    unsigned order;
    unsigned block_bits; /* a new block has 1 << block_bits refcounts */
    GArray *blocks;      /* struct new_block */
    GHashTable *known;   /* indices in blocks: pointers to uint64_t */
    GHashTable *old;     /* host clusters of the old table and blocks, by number */
    uint64_t highest;    /* index of a block */
    uint64_t last;       /* no cluster behind this one is counted */
    uint64_t table_offset;
    uint64_t table_clusters;
};

static uint64_t count_max(unsigned order)
{
    return UINT64_MAX >> (64 - (1u << order));
}

/* ---- What there is -------------------------------------------------------------------------- */

/* Called with each refcount that is not 0. Returns a negative errno. */
typedef int count_visitor(void *data, uint64_t cluster, uint64_t count);

static int visit_block(struct qcow2 *q, uint64_t index, count_visitor *visit, void *data)
{
    struct qcow2_refblock *block;
    SCOPE_LOCK(&q->refcount_lock);
    int status = qcow2_refblock_find(q, index, &block);

    for (uint64_t i = 0; status == 0 && block && i < UINT64_C(1) << q->refblock_bits; i++) {
        uint64_t count = qcow2_refblock_get(block->data, q->refcount_order, i);

        if (count) {
            status = visit(data, (index << q->refblock_bits) + i, count);
        }
    }
    return status;
}

static int visit_counts(struct qcow2 *q, count_visitor *visit, void *data)
{
    int status = 0;

    for (uint64_t index = 0; status == 0 && index < q->reftable_entries; index++) {
        if (q->reftable[index] & QCOW2_REFTABLE_MASK) {
            status = visit_block(q, index, visit, data);
        }
    }
    return status;
}

struct highest_count {
    uint64_t count;
    uint64_t cluster;
};

static int find_highest(void *data, uint64_t cluster, uint64_t count)
{
    struct highest_count *highest = data;

    if (count > highest->count) {
        *highest = (struct highest_count){count, cluster};
    }
    return 0;
}

int amend_check_refcounts(struct qcow2 *q, unsigned order, GError **error)
{
    struct highest_count highest = {0};
    int status = order < q->refcount_order ? visit_counts(q, find_highest, &highest) : 0;

    if (status < 0) {
        return block_error_errno(error, -status, "Could not read the refcounts");
    }
    return highest.count > count_max(order)
               ? block_error(error, EINVAL,
                             "Cannot decrease refcount entry width to %u bits: the cluster at "
                             "offset %" PRIu64 " has a refcount of %" PRIu64,
                             1u << order, highest.cluster << q->cluster_bits, highest.count)
               : 0;
}

uint64_t amend_refcount_units(const struct qcow2 *q, unsigned order)
{
    return div_round_up(q->tail, UINT64_C(1) << (q->cluster_bits + 3 - order));
}

/* ---- New places ----------------------------------------------------------------------------- */

static void need_block(struct rewrite *rewrite, uint64_t cluster)
{
    struct new_block block = {.index = cluster >> rewrite->block_bits};

    rewrite->last = MAX_OF(rewrite->last, cluster);
    if (!g_hash_table_contains(rewrite->known, &block.index)) {
        g_hash_table_add(rewrite->known, g_memdup2(&block.index, sizeof(block.index)));
        g_array_append_val(rewrite->blocks, block);
        rewrite->highest = MAX_OF(rewrite->highest, block.index);
    }
}

static int need_for_count(void *data, uint64_t cluster, uint64_t count)
{
    struct rewrite *rewrite = data;

    if (cluster >= QCOW2_HOST_MAX >> rewrite->q->cluster_bits) {
        return -ERANGE; /* there can be no such cluster */
    }
    need_block(rewrite, cluster);
    return 0;
}

/* Blocks describe their own clusters, too, so that placing one may make another one needed. */
static int place_blocks(struct rewrite *rewrite)
{
    struct qcow2 *q = rewrite->q;

    for (guint i = 0; i < rewrite->blocks->len; i++) {
        uint64_t offset = g_array_index(rewrite->blocks, struct new_block, i).offset;
        bool is_new;
        int status = offset ? 0 : qcow2_allocate(q, 1, true, &offset, NULL, &is_new);

        if (status < 0) {
            return status;
        }
        g_array_index(rewrite->blocks, struct new_block, i).offset = offset;
        need_block(rewrite, offset >> q->cluster_bits);
    }
    return 0;
}

static void unplace_table(struct rewrite *rewrite)
{
    if (rewrite->table_clusters) {
        qcow2_unallocate(rewrite->q, rewrite->table_offset, rewrite->table_clusters);
        rewrite->table_clusters = 0;
    }
}

static int place_table(struct rewrite *rewrite)
{
    struct qcow2 *q = rewrite->q;
    uint64_t entries = rewrite->highest + 1, bytes = (entries + entries / 8) * sizeof(uint64_t);
    uint64_t clusters = qcow2_clusters(q, bytes);
    bool is_new;

    if (clusters << q->cluster_bits > QCOW2_REFTABLE_BYTES_MAX) {
        return -EFBIG;
    }
    unplace_table(rewrite);
    int status = qcow2_allocate(q, clusters, true, &rewrite->table_offset, NULL, &is_new);
    if (status < 0) {
        return status;
    }
    rewrite->table_clusters = clusters;
    for (uint64_t i = 0; i < clusters; i++) {
        need_block(rewrite, (rewrite->table_offset >> q->cluster_bits) + i);
    }
    return 0;
}

static uint64_t table_entries(const struct rewrite *rewrite)
{
    return rewrite->table_clusters << rewrite->q->cluster_bits >> 3;
}

/* Places for all that is new, which the old refcounts count. */
static int place_all(struct rewrite *rewrite)
{
    int status = visit_counts(rewrite->q, need_for_count, rewrite);
    guint placed = 0;

    while (status == 0 &&
           (placed < rewrite->blocks->len || rewrite->highest >= table_entries(rewrite))) {
        status = place_blocks(rewrite);
        placed = rewrite->blocks->len;
        if (status == 0 && rewrite->highest >= table_entries(rewrite)) {
            status = place_table(rewrite);
        }
    }
    return status;
}

static void unplace_all(struct rewrite *rewrite)
{
    for (guint i = 0; i < rewrite->blocks->len; i++) {
        uint64_t offset = g_array_index(rewrite->blocks, struct new_block, i).offset;

        if (offset) {
            qcow2_unallocate(rewrite->q, offset, 1);
        }
    }
    unplace_table(rewrite);
}

/* ---- Writing -------------------------------------------------------------------------------- */

static void find_old(struct rewrite *rewrite)
{
    struct qcow2 *q = rewrite->q;
    uint64_t table = q->header.reftable_offset >> q->cluster_bits;

    for (uint64_t i = 0; i < q->header.reftable_clusters; i++) {
        g_hash_table_add(rewrite->old, GSIZE_TO_POINTER(table + i));
    }
    for (uint64_t i = 0; i < q->reftable_entries; i++) {
        uint64_t offset = q->reftable[i] & QCOW2_REFTABLE_MASK;

        if (offset) {
            g_hash_table_add(rewrite->old, GSIZE_TO_POINTER(offset >> q->cluster_bits));
        }
    }
}

static int write_block(struct rewrite *rewrite, const struct new_block *block, uint8_t *data)
{
    struct qcow2 *q = rewrite->q;
    uint64_t first = block->index << rewrite->block_bits;
    uint64_t end = MIN_OF(UINT64_C(1) << rewrite->block_bits, rewrite->last - first + 1);

    memset(data, 0, q->cluster_size);
    for (uint64_t i = 0; i < end; i++) {
        uint64_t count;
        int status = qcow2_refcount_get(q, (first + i) << q->cluster_bits, &count);

        if (status < 0) {
            return status;
        }
        if (count && g_hash_table_contains(rewrite->old, GSIZE_TO_POINTER(first + i))) {
            count--; /* nothing refers to it afterwards */
        }
        if (count > count_max(rewrite->order)) {
            return -ERANGE;
        }
        qcow2_refblock_set(data, rewrite->order, i, count);
    }
    return qcow2_write_metadata(q, data, q->cluster_size, block->offset);
}

static int write_table(struct rewrite *rewrite)
{
    struct qcow2 *q = rewrite->q;
    g_autofree uint64_t *table = g_try_new0(uint64_t, table_entries(rewrite));
    int status = table ? 0 : -ENOMEM;

    for (guint i = 0; status == 0 && i < rewrite->blocks->len; i++) {
        const struct new_block *block = &g_array_index(rewrite->blocks, struct new_block, i);

        table[block->index] = block->offset;
    }
    if (status == 0) {
        status = qcow2_write_words(q, table, table_entries(rewrite), rewrite->table_offset);
    }
    return status == 0 ? block_node_flush(q->file) : status;
}

static int write_all(struct rewrite *rewrite, struct amend_progress *progress)
{
    struct qcow2 *q = rewrite->q;
    AUTO_FREE uint8_t *data = block_node_alloc_buffer(q->file, q->cluster_size);
    int status = data ? qcow2_commit_all(q) : -ENOMEM;

    find_old(rewrite);
    for (guint i = 0; status == 0 && i < rewrite->blocks->len; i++) {
        status = write_block(rewrite, &g_array_index(rewrite->blocks, struct new_block, i), data);
        if (status == 0) {
            status = amend_advance(progress, 1);
        }
    }
    return status == 0 ? write_table(rewrite) : status;
}

/* ---- Switching ------------------------------------------------------------------------------ */

/* All that changes lies in one sector of the header. */
static int switch_header(struct rewrite *rewrite)
{
    struct qcow2 *q = rewrite->q;
    SCOPE_LOCK(&q->header_lock);
    const struct qcow2_header before = q->header;

    q->header.reftable_offset = rewrite->table_offset;
    q->header.reftable_clusters = (uint32_t)rewrite->table_clusters;
    q->header.refcount_order = rewrite->order;
    return qcow2_header_switch(q, &before, AT_REFTABLE_OFFSET, AT_HEADER_LENGTH);
}

/* Take the new refcounts over in memory. */
static int reload(struct rewrite *rewrite, GError **error)
{
    struct qcow2 *q = rewrite->q;
    uint64_t cache_bytes = q->refblock_max << q->cluster_bits;
    GHashTableIter iterator;
    gpointer cluster;

    g_hash_table_iter_init(&iterator, rewrite->old);
    while (g_hash_table_iter_next(&iterator, &cluster, NULL)) {
        qcow2_metadata_remove(q, GPOINTER_TO_SIZE(cluster) << q->cluster_bits, QCOW2_AREA_REFBLOCK);
    }
    qcow2_refcount_destroy(q);
    q->free_hint = 0;
    q->compressed_at = 0;
    return qcow2_refcount_init(q, cache_bytes, error);
}

static int switch_over(struct rewrite *rewrite, GError **error)
{
    int status = switch_header(rewrite);

    if (status < 0) {
        if (!qcow2_is_stopped(rewrite->q)) {
            unplace_all(rewrite);
        }
        return block_error_errno(error, -status, "Could not write the header");
    }
    status = reload(rewrite, error);
    if (status < 0) {
        qcow2_stop(rewrite->q, "its refcounts could not be read again");
    }
    return status;
}

int amend_refcount_order(struct qcow2 *q, unsigned order, struct amend_progress *progress,
                         GError **error)
{
    g_autoptr(GArray) blocks = g_array_new(FALSE, FALSE, sizeof(struct new_block));
    g_autoptr(GHashTable) known = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    g_autoptr(GHashTable) old = g_hash_table_new(NULL, NULL);
    struct rewrite rewrite = {
        .q = q,
        .order = order,
        .block_bits = q->cluster_bits + 3 - order,
        .blocks = blocks,
        .known = known,
        .old = old,
    };
    int status = qcow2_reclaim_all(q);

    if (status == 0) {
        status = amend_check_refcounts(q, order, error);
        if (status < 0) {
            return status;
        }
        status = place_all(&rewrite);
    }
    if (status == 0) {
        status = write_all(&rewrite, progress);
    }
    if (status < 0) {
        unplace_all(&rewrite);
        return block_error_errno(error, -status, "Could not write refcounts of another width");
    }
    return switch_over(&rewrite, error);
}
