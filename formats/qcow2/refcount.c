/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2: refcounts of host clusters, in cached refcount blocks ("Host cluster management"). */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/error.h"
#include "formats/qcow2/internal.h"

/* The fewest refcount blocks kept. */
#define REFBLOCKS_MIN UINT64_C(4)

/* ---- Entries of a block --------------------------------------------------------------------- */

uint64_t qcow2_refblock_get(const uint8_t *block, unsigned refcount_order, uint64_t i)
{
    unsigned bits = 1u << refcount_order;
    uint64_t value = 0;

    if (bits < 8) { /* the least significant bits come first */
        return block[i * bits / 8] >> (i * bits % 8) & ((1u << bits) - 1);
    }
    for (unsigned byte = 0; byte < bits / 8; byte++) {
        value = value << 8 | block[i * (bits / 8) + byte];
    }
    return value;
}

void qcow2_refblock_set(uint8_t *block, unsigned refcount_order, uint64_t i, uint64_t value)
{
    unsigned bits = 1u << refcount_order;

    if (bits < 8) {
        unsigned shift = (unsigned)(i * bits % 8);
        uint8_t mask = (uint8_t)(((1u << bits) - 1) << shift);
        uint8_t *byte = &block[i * bits / 8];

        *byte = (uint8_t)((*byte & ~mask) | (uint8_t)(value << shift));
        return;
    }
    for (unsigned byte = bits / 8; byte-- > 0; value >>= 8) {
        block[i * (bits / 8) + byte] = (uint8_t)value;
    }
}

/* ---- The cache. refcount_lock held. --------------------------------------------------------- */

static void free_block(struct qcow2 *q, struct qcow2_refblock *block)
{
    TAILQ_REMOVE(&q->refblocks, block, entry);
    g_hash_table_remove(q->refblock_map, &block->index);
    free(block->data);
    g_free(block);
}

/* Make room for one more, if one can be had: blocks that are not written yet stay. */
static void evict(struct qcow2 *q)
{
    unsigned count = g_hash_table_size(q->refblock_map);

    for (unsigned looks = 2 * count;
         looks > 0 && g_hash_table_size(q->refblock_map) >= q->refblock_max; looks--) {
        struct qcow2_refblock *block = TAILQ_FIRST(&q->refblocks);

        if (!block->used && !block->dirty && !block->writing) {
            free_block(q, block);
            continue;
        }
        block->used = false;
        TAILQ_REMOVE(&q->refblocks, block, entry);
        TAILQ_INSERT_TAIL(&q->refblocks, block, entry);
    }
}

static struct qcow2_refblock *insert_block(struct qcow2 *q, uint64_t index, uint8_t *data)
{
    struct qcow2_refblock *block = g_new0(struct qcow2_refblock, 1);

    block->index = index;
    block->data = data;
    block->used = true;
    TAILQ_INSERT_TAIL(&q->refblocks, block, entry);
    g_hash_table_insert(q->refblock_map, &block->index, block);
    return block;
}

static int load_block(struct qcow2 *q, uint64_t index, uint64_t offset,
                      struct qcow2_refblock **block)
{
    if (!is_aligned(offset, q->cluster_size)) {
        return qcow2_mark_corrupt(q, offset, q->cluster_size,
                                  "Refcount block %" PRIu64 " is not aligned to a cluster", index);
    }
    AUTO_FREE uint8_t *data = block_node_alloc_buffer(q->file, q->cluster_size);
    int status = data ? qcow2_read_metadata(q, data, q->cluster_size, offset) : -ENOMEM;
    if (status == 0) {
        *block = insert_block(q, index, STEAL(data));
    }
    return status;
}

/* No locked instruction: only who holds the lock counts. */
static void count(_Atomic uint64_t *counter)
{
    uint64_t value = atomic_load_explicit(counter, memory_order_relaxed);

    atomic_store_explicit(counter, value + 1, memory_order_relaxed);
}

int qcow2_refblock_find(struct qcow2 *q, uint64_t index, struct qcow2_refblock **block)
{
    *block = g_hash_table_lookup(q->refblock_map, &index);
    if (*block) {
        (*block)->used = true;
        count(&q->refcount_hits);
        return 0;
    }
    uint64_t offset = index < q->reftable_entries ? q->reftable[index] & QCOW2_REFTABLE_MASK : 0;
    if (!offset) {
        return 0;
    }
    count(&q->refcount_misses);
    evict(q);
    return load_block(q, index, offset, block);
}

struct qcow2_refblock *qcow2_refblock_new(struct qcow2 *q, uint64_t index, uint64_t offset)
{
    uint8_t *data = block_node_alloc_buffer(q->file, q->cluster_size);

    if (!data) {
        return NULL;
    }
    memset(data, 0, q->cluster_size);
    evict(q);
    struct qcow2_refblock *block = insert_block(q, index, data);
    block->dirty = UINT64_MAX;
    q->reftable[index] = offset;
    g_hash_table_add(q->reftable_dirty, GSIZE_TO_POINTER(index / (512 / sizeof(uint64_t))));
    qcow2_metadata_add(q, offset, QCOW2_AREA_REFBLOCK);
    return block;
}

void qcow2_refblock_change(struct qcow2 *q, struct qcow2_refblock *block, uint64_t cluster,
                           uint64_t value)
{
    uint64_t i = cluster & ((UINT64_C(1) << q->refblock_bits) - 1);
    uint64_t byte = (i << q->refcount_order) / 8;

    qcow2_refblock_set(block->data, q->refcount_order, i, value);
    block->dirty |= UINT64_C(1) << (byte >> q->refblock_unit_bits);
    atomic_store(&q->has_changes, true);
}

/* ---- Refcounts ------------------------------------------------------------------------------ */

/* The block of a cluster and the cluster's refcount, 0 without a block. refcount_lock held. */
static int look_up(struct qcow2 *q, uint64_t cluster, struct qcow2_refblock **block,
                   uint64_t *refcount)
{
    int status = qcow2_refblock_find(q, cluster >> q->refblock_bits, block);

    *refcount = 0;
    if (status == 0 && *block) {
        *refcount = qcow2_refblock_get((*block)->data, q->refcount_order,
                                       cluster & ((UINT64_C(1) << q->refblock_bits) - 1));
    }
    return status;
}

int qcow2_refcount_get(struct qcow2 *q, uint64_t offset, uint64_t *refcount)
{
    struct qcow2_refblock *block;
    SCOPE_LOCK(&q->refcount_lock);

    return look_up(q, offset >> q->cluster_bits, &block, refcount);
}

int qcow2_refcount_change(struct qcow2 *q, uint64_t cluster, int64_t amount)
{
    struct qcow2_refblock *block;
    uint64_t refcount, wanted;
    int status = look_up(q, cluster, &block, &refcount);

    if (status < 0) {
        return status;
    }
    wanted = refcount + (uint64_t)amount;
    if (amount < 0 && (refcount < (uint64_t)-amount || !block)) {
        return qcow2_mark_corrupt(
            q, cluster << q->cluster_bits, q->cluster_size,
            "A cluster is in use more often than its refcount (%" PRIu64 ") says", refcount);
    }
    if (amount > 0 && refcount == 0) {
        return qcow2_mark_corrupt(q, cluster << q->cluster_bits, q->cluster_size,
                                  "A cluster that is in use has %s",
                                  block ? "the refcount 0" : "no refcount block");
    }
    if (amount > 0 && (wanted < refcount || wanted > q->refcount_max)) {
        return -ERANGE;
    }
    qcow2_refblock_change(q, block, cluster, wanted);
    if (wanted == 0) {
        q->free_hint = MIN_OF(q->free_hint, cluster);
        if (q->compressed_at >> q->cluster_bits == cluster) {
            q->compressed_at = 0;
        }
    }
    return 0;
}

/* As if the refcount had not been changed; it may be 0 now. What cannot be read again leaks. */
static void take_back(struct qcow2 *q, uint64_t cluster, int64_t amount)
{
    struct qcow2_refblock *block;
    uint64_t refcount;

    if (look_up(q, cluster, &block, &refcount) == 0 && block) {
        qcow2_refblock_change(q, block, cluster, refcount - (uint64_t)amount);
    }
}

int qcow2_refcount_add(struct qcow2 *q, uint64_t offset, uint64_t bytes, int64_t amount)
{
    uint64_t first = offset >> q->cluster_bits;
    uint64_t end = bytes ? ((offset + bytes - 1) >> q->cluster_bits) + 1 : first;
    int status = 0;
    SCOPE_LOCK(&q->refcount_lock);

    for (uint64_t cluster = first; cluster < end; cluster++) {
        status = qcow2_refcount_change(q, cluster, amount);
        if (status < 0) {
            while (cluster-- > first) {
                take_back(q, cluster, amount);
            }
            break;
        }
    }
    return status;
}

/* ---- Life ----------------------------------------------------------------------------------- */

static int read_table(struct qcow2 *q, GError **error)
{
    uint64_t entries = ((uint64_t)q->header.reftable_clusters << q->cluster_bits) / 8;
    g_autofree uint64_t *table = g_try_new(uint64_t, MAX_OF(entries, UINT64_C(1)));

    if (!table) {
        return block_error(error, ENOMEM, "Not enough memory for the refcount table");
    }
    int status = qcow2_read_words(q, table, entries, q->header.reftable_offset);
    if (status < 0) {
        return block_error_errno(error, -status, "Could not read the refcount table");
    }
    g_free(q->reftable);
    q->reftable = g_steal_pointer(&table);
    q->reftable_entries = entries;
    return 0;
}

/* For overlap checks, which only writing needs. */
static void note_places(struct qcow2 *q)
{
    qcow2_area_set(q, QCOW2_AREA_REFTABLE, q->header.reftable_offset, q->reftable_entries * 8);
    for (uint64_t i = 0; !block_node_is_read_only(q->node) && i < q->reftable_entries; i++) {
        uint64_t offset = q->reftable[i] & QCOW2_REFTABLE_MASK;

        if (offset) {
            qcow2_metadata_add(q, offset, QCOW2_AREA_REFBLOCK);
        }
    }
}

static int load(struct qcow2 *q, GError **error)
{
    int status = read_table(q, error);

    if (status == 0) {
        q->tail = qcow2_clusters(q, block_node_length(q->file));
        q->tail_is_zero = block_node_is_zero_at_creation(q->file);
        note_places(q);
    }
    return status;
}

int qcow2_refcount_init(struct qcow2 *q, uint64_t cache_bytes, GError **error)
{
    pthread_mutex_init(&q->refcount_lock, NULL);
    TAILQ_INIT(&q->refblocks);
    q->refblock_map = g_hash_table_new(g_int64_hash, g_int64_equal);
    q->reftable_dirty = g_hash_table_new(NULL, NULL);
    q->refcount_order = q->header.refcount_order;
    q->refcount_max = UINT64_MAX >> (64 - (1u << q->refcount_order));
    q->refblock_bits = q->cluster_bits + 3 - q->refcount_order;
    q->refblock_unit_bits = qcow2_unit_bits(q->cluster_size);
    q->refblock_max = MAX_OF(cache_bytes >> q->cluster_bits, REFBLOCKS_MIN);
    return load(q, error);
}

static void forget_blocks(struct qcow2 *q)
{
    struct qcow2_refblock *block, *next;

    TAILQ_FOREACH_SAFE (block, &q->refblocks, entry, next) {
        free_block(q, block);
    }
}

int qcow2_refcount_reload(struct qcow2 *q, GError **error)
{
    SCOPE_LOCK(&q->refcount_lock);
    int status = load(q, error);

    if (status == 0) {
        forget_blocks(q);
        g_hash_table_remove_all(q->reftable_dirty);
        q->free_hint = 0;
        q->compressed_at = 0;
    }
    return status;
}

void qcow2_refcount_destroy(struct qcow2 *q)
{
    if (!q->refblock_map) {
        return;
    }
    forget_blocks(q);
    g_hash_table_unref(STEAL(q->refblock_map));
    g_hash_table_unref(STEAL(q->reftable_dirty));
    g_free(STEAL(q->reftable));
    pthread_mutex_destroy(&q->refcount_lock);
}
