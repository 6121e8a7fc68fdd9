/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2: the L1 table, and slices of L2 tables in memory.
 *
 * A slice is found by two array accesses. Whoever looks at it is in the epoch, so that a slice that
 * is evicted meanwhile stays readable; what it says may be out of date then only for somebody who
 * began before, and who changes an entry finds out.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/error.h"
#include "formats/qcow2/internal.h"

/* The fewest slices kept: requests must be able to go on with one each. */
#define SLICES_MIN UINT64_C(4)

/* ---- Tables and slices ---------------------------------------------------------------------- */

static unsigned slices_per_table(const struct qcow2 *q)
{
    return 1u << (q->table_bits - q->slice_bits);
}

static uint64_t l1_index_of(const struct qcow2 *q, uint64_t offset)
{
    return offset >> (q->cluster_bits + q->table_bits);
}

static unsigned slice_number(const struct qcow2 *q, uint64_t offset)
{
    return (unsigned)(offset >> (q->cluster_bits + q->slice_bits)) & (slices_per_table(q) - 1);
}

/* The guest offset of a slice's first entry. */
static uint64_t slice_offset(const struct qcow2 *q, const struct qcow2_table *table,
                             unsigned number)
{
    return ((uint64_t)table->l1_index << (q->cluster_bits + q->table_bits)) +
           ((uint64_t)number << (q->cluster_bits + q->slice_bits));
}

static struct qcow2_table *get_table(struct qcow2 *q, uint32_t l1_index)
{
    struct qcow2_table *table = atomic_load(&q->tables[l1_index]);

    if (table) {
        return table;
    }
    SCOPE_LOCK(&q->cache_lock);
    table = atomic_load(&q->tables[l1_index]);
    if (!table) {
        table = g_malloc0(sizeof(*table) + slices_per_table(q) * sizeof(table->slices[0]));
        pthread_mutex_init(&table->lock, NULL);
        table->l1_index = l1_index;
        atomic_store(&q->tables[l1_index], table);
    }
    return table;
}

static void free_slice(struct qcow2_slice *slice)
{
    pthread_mutex_destroy(&slice->lock);
    free(slice);
}

/* ---- Eviction ------------------------------------------------------------------------------- */

/* Free what was evicted and nobody looks at any more. cache_lock held. */
static void free_retired(struct qcow2 *q)
{
    struct qcow2_slice *slice;

    while ((slice = TAILQ_FIRST(&q->retired)) && epoch_is_over(&q->epoch, slice->retired)) {
        TAILQ_REMOVE(&q->retired, slice, cache_entry);
        free_slice(slice);
    }
}

/* Take a slice out of its table, unless it is needed. cache_lock held, so its lock is only tried.
 */
static bool try_evict(struct qcow2_slice *slice)
{
    bool is_free;

    if (atomic_load_explicit(&slice->used, memory_order_relaxed)) {
        atomic_store_explicit(&slice->used, false, memory_order_relaxed);
        return false;
    }
    if (pthread_mutex_trylock(&slice->lock)) {
        return false;
    }
    is_free = !slice->dirty && !slice->queued && !slice->writing;
    if (is_free) {
        slice->evicted = true;
        atomic_store(&slice->table->slices[slice->index], NULL);
    }
    pthread_mutex_unlock(&slice->lock);
    return is_free;
}

/*
 * Bring the cache to its size, but leave the slice that somebody has just loaded, to use it. True
 * if there is too much that is not written yet for that.
 */
static bool evict(struct qcow2 *q, const struct qcow2_slice *needed)
{
    struct qcow2_slice_list victims = TAILQ_HEAD_INITIALIZER(victims);
    struct qcow2_slice *slice, *next;
    SCOPE_LOCK(&q->cache_lock);

    for (uint64_t looks = 2 * q->slice_count; looks > 0 && q->slice_count > q->slice_max; looks--) {
        slice = TAILQ_FIRST(&q->slices);
        TAILQ_REMOVE(&q->slices, slice, cache_entry);
        if (slice != needed && try_evict(slice)) {
            q->slice_count--;
            TAILQ_INSERT_TAIL(&victims, slice, cache_entry);
        } else {
            TAILQ_INSERT_TAIL(&q->slices, slice, cache_entry);
        }
    }
    uint64_t tag = TAILQ_EMPTY(&victims) ? 0 : epoch_advance(&q->epoch);
    TAILQ_FOREACH_SAFE (slice, &victims, cache_entry, next) {
        slice->retired = tag;
        TAILQ_REMOVE(&victims, slice, cache_entry);
        TAILQ_INSERT_TAIL(&q->retired, slice, cache_entry);
    }
    free_retired(q);
    return q->slice_count > q->slice_max;
}

/* ---- Loading -------------------------------------------------------------------------------- */

static int check_l1_entry(struct qcow2 *q, uint32_t l1_index, uint64_t entry)
{
    uint64_t offset = entry & QCOW2_OFFSET_MASK;

    if (entry & QCOW2_L1_RESERVED || !is_aligned(offset, q->cluster_size)) {
        return qcow2_mark_corrupt(q, offset, offset ? q->cluster_size : 0,
                                  "L1 table entry %" PRIu32 " (0x%" PRIx64 ") is not valid",
                                  l1_index, entry);
    }
    return 0;
}

static bool has_bad_entry(struct qcow2 *q, struct qcow2_slice *slice)
{
    uint64_t offset = slice_offset(q, slice->table, slice->index);

    for (unsigned i = 0; i < 1u << q->slice_bits; i++) {
        if (!qcow2_entry_is_valid(q, offset + ((uint64_t)i << q->cluster_bits),
                                  qcow2_entry_get(q, slice, i))) {
            return true;
        }
    }
    return false;
}

static struct qcow2_slice *new_slice(struct qcow2 *q, struct qcow2_table *table, unsigned number)
{
    struct qcow2_slice *slice = calloc(1, sizeof(*slice) + q->slice_bytes);

    if (slice) {
        slice->table = table;
        slice->index = number;
        pthread_mutex_init(&slice->lock, NULL);
        atomic_init(&slice->used, true);
    }
    return slice;
}

static void publish_slice(struct qcow2 *q, struct qcow2_slice *slice)
{
    SCOPE_LOCK(&q->cache_lock);

    TAILQ_INSERT_TAIL(&q->slices, slice, cache_entry);
    q->slice_count++;
    atomic_store(&slice->table->slices[slice->index], slice);
}

/* The table's lock held. NULL in *slice if the table is not allocated. */
static int load_slice(struct qcow2 *q, struct qcow2_table *table, unsigned number,
                      struct qcow2_slice **slice)
{
    uint64_t entry = atomic_load(&q->l1[table->l1_index]);
    uint64_t offset = entry & QCOW2_OFFSET_MASK;
    int status = check_l1_entry(q, table->l1_index, entry);

    *slice = atomic_load(&table->slices[number]);
    if (status < 0 || *slice || !offset) {
        return status;
    }
    struct qcow2_slice *loaded = new_slice(q, table, number);
    if (!loaded) {
        return -ENOMEM;
    }
    status = qcow2_read_metadata(q, (void *)loaded->entries, q->slice_bytes,
                                 offset + number * q->slice_bytes);
    if (status < 0) {
        free_slice(loaded);
        return status;
    }
    loaded->suspect = has_bad_entry(q, loaded);
    publish_slice(q, loaded);
    *slice = loaded;
    return 0;
}

int qcow2_slice_get(struct qcow2 *q, uint64_t offset, struct qcow2_slice **slice)
{
    uint64_t l1_index = l1_index_of(q, offset);
    unsigned number = slice_number(q, offset);

    *slice = NULL;
    if (l1_index >= q->l1_size || !atomic_load(&q->l1[l1_index])) {
        return 0;
    }
    struct qcow2_table *table = get_table(q, (uint32_t)l1_index);
    *slice = atomic_load(&table->slices[number]);
    if (*slice) {
        if (!atomic_load_explicit(&(*slice)->used, memory_order_relaxed)) {
            atomic_store_explicit(&(*slice)->used, true, memory_order_relaxed);
        }
        sharded_counter_add(&q->l2_hits, shard_here(), 1);
        return 0;
    }
    atomic_fetch_add_explicit(&q->l2_misses, 1, memory_order_relaxed);
    pthread_mutex_lock(&table->lock);
    int status = load_slice(q, table, number, slice);
    pthread_mutex_unlock(&table->lock);
    if (status == 0 && evict(q, *slice)) {
        qcow2_commit(q, false); /* if it fails the cache is too large for a while */
        evict(q, *slice);
    }
    return status;
}

/* ---- Writable tables ------------------------------------------------------------------------ */

static void set_l1_entry(struct qcow2 *q, uint32_t l1_index, uint64_t entry)
{
    SCOPE_LOCK(&q->l1_lock);

    atomic_store(&q->l1[l1_index], entry);
    g_hash_table_add(q->l1_dirty, GSIZE_TO_POINTER(l1_index / (512 / sizeof(uint64_t))));
    atomic_store(&q->has_changes, true);
}

/* What a new table holds at first goes to the disk now, before a commit lets the L1 refer to it. */
static int fill_table(struct qcow2 *q, uint64_t from, uint64_t to, bool is_new)
{
    AUTO_FREE void *table = block_node_alloc_buffer(q->file, q->cluster_size);
    int status = table ? 0 : -ENOMEM;

    if (!from && is_new) {
        return 0;
    }
    if (status == 0 && from) {
        status = qcow2_read_metadata(q, table, q->cluster_size, from);
    } else if (status == 0) {
        memset(table, 0, q->cluster_size);
    }
    return status == 0 ? qcow2_write_metadata(q, table, q->cluster_size, to) : status;
}

/* Allocate a table, or copy one that a snapshot shares. The table's lock held. */
static int own_table(struct qcow2 *q, uint32_t l1_index)
{
    uint64_t entry = atomic_load(&q->l1[l1_index]);
    uint64_t old = entry & QCOW2_OFFSET_MASK, offset;
    bool is_new;

    if (entry & QCOW2_COPIED) {
        return 0;
    }
    int status = check_l1_entry(q, l1_index, entry);
    if (status == 0) {
        status = qcow2_allocate(q, 1, true, &offset, NULL, &is_new);
    }
    if (status < 0) {
        return status;
    }
    status = fill_table(q, old, offset, is_new);
    if (status < 0) {
        qcow2_unallocate(q, offset, 1);
        return status;
    }
    qcow2_metadata_add(q, offset, QCOW2_AREA_L2);
    set_l1_entry(q, l1_index, offset | QCOW2_COPIED);
    if (old) {
        qcow2_metadata_remove(q, old, QCOW2_AREA_L2);
        qcow2_give_up(q, old, q->cluster_size, false);
    }
    return 0;
}

int qcow2_slice_get_writable(struct qcow2 *q, uint64_t offset, struct qcow2_slice **slice)
{
    uint64_t l1_index = l1_index_of(q, offset);

    *slice = NULL;
    if (l1_index >= q->l1_size) {
        return -EINVAL;
    }
    if (!(atomic_load(&q->l1[l1_index]) & QCOW2_COPIED)) {
        struct qcow2_table *table = get_table(q, (uint32_t)l1_index);
        SCOPE_LOCK(&table->lock);
        int status = own_table(q, (uint32_t)l1_index);

        if (status < 0) {
            return status;
        }
    }
    return qcow2_slice_get(q, offset, slice);
}

/* ---- Entries -------------------------------------------------------------------------------- */

struct qcow2_entry qcow2_entry_get(const struct qcow2 *q, struct qcow2_slice *slice, unsigned index)
{
    if (!q->has_extended_l2) {
        return (struct qcow2_entry){.descriptor = be64toh(atomic_load(&slice->entries[index]))};
    }
    SCOPE_LOCK(&slice->lock);
    return (struct qcow2_entry){
        .descriptor = be64toh(atomic_load(&slice->entries[2 * index])),
        .bitmap = be64toh(atomic_load(&slice->entries[2 * index + 1])),
    };
}

void qcow2_slice_queue(struct qcow2 *q, struct qcow2_slice *slice)
{
    if (!slice->queued) {
        SCOPE_LOCK(&q->cache_lock);
        slice->queued = true;
        TAILQ_INSERT_TAIL(&q->dirty_slices, slice, dirty_entry);
    }
}

/* The slice's lock held. */
static void set_entry(struct qcow2 *q, struct qcow2_slice *slice, unsigned index,
                      struct qcow2_entry entry)
{
    unsigned word = index * q->entry_words;

    atomic_store(&slice->entries[word], htobe64(entry.descriptor));
    if (q->has_extended_l2) {
        atomic_store(&slice->entries[word + 1], htobe64(entry.bitmap));
    }
    slice->dirty |= UINT64_C(1) << (word * sizeof(uint64_t) >> q->slice_unit_bits);
}

/* As many of the entries as lie in one slice; how many, or a negative errno. */
static int set_some(struct qcow2 *q, uint64_t offset, const struct qcow2_entry *entries,
                    unsigned count, bool barrier)
{
    unsigned index = qcow2_slice_index(q, offset);
    unsigned some = MIN_OF(count, (1u << q->slice_bits) - index);

    while (true) {
        struct qcow2_slice *slice;
        int status = qcow2_slice_get_writable(q, offset, &slice);

        if (status < 0 || !slice) {
            return status < 0 ? status : -EIO;
        }
        SCOPE_LOCK(&slice->lock);
        if (!slice->evicted) {
            for (unsigned i = 0; i < some; i++) {
                set_entry(q, slice, index + i, entries[i]);
            }
            slice->barrier |= barrier;
            qcow2_slice_queue(q, slice);
            atomic_store(&q->has_changes, true);
            return (int)some;
        }
    }
}

int qcow2_entries_set(struct qcow2 *q, uint64_t offset, const struct qcow2_entry *entries,
                      unsigned count, bool barrier)
{
    while (count) {
        int some = set_some(q, offset, entries, count, barrier);

        if (some < 0) {
            return some;
        }
        entries += some;
        count -= (unsigned)some;
        offset += (uint64_t)some << q->cluster_bits;
    }
    return 0;
}

/* ---- Life ----------------------------------------------------------------------------------- */

static void note_tables(struct qcow2 *q)
{
    qcow2_area_set(q, QCOW2_AREA_L1, q->header.l1_offset, q->l1_size * sizeof(uint64_t));
    for (uint32_t i = 0; !block_node_is_read_only(q->node) && i < q->l1_size; i++) {
        uint64_t offset = atomic_load(&q->l1[i]) & QCOW2_OFFSET_MASK;

        if (offset) {
            qcow2_metadata_add(q, offset, QCOW2_AREA_L2);
        }
    }
}

static void forget_tables(struct qcow2 *q)
{
    for (uint32_t i = 0; q->tables && i < q->l1_size; i++) {
        struct qcow2_table *table = atomic_load(&q->tables[i]);

        if (table) {
            pthread_mutex_destroy(&table->lock);
            g_free(table);
            atomic_store(&q->tables[i], NULL);
        }
    }
}

void qcow2_l2_forget(struct qcow2 *q)
{
    struct qcow2_slice *slice, *next;

    TAILQ_FOREACH_SAFE (slice, &q->slices, cache_entry, next) {
        free_slice(slice);
    }
    TAILQ_FOREACH_SAFE (slice, &q->retired, cache_entry, next) {
        free_slice(slice);
    }
    TAILQ_INIT(&q->slices);
    TAILQ_INIT(&q->retired);
    TAILQ_INIT(&q->dirty_slices);
    q->slice_count = 0;
    forget_tables(q);
}

static void free_l1(struct qcow2 *q)
{
    g_free((void *)STEAL(q->l1));
    g_free((void *)STEAL(q->tables));
    q->l1_size = 0;
}

int qcow2_set_l1(struct qcow2 *q, const uint64_t *l1, uint32_t l1_size)
{
    _Atomic uint64_t *new_l1 = (void *)g_try_new0(uint64_t, MAX_OF(l1_size, 1u));
    _Atomic(struct qcow2_table *) *tables =
        (void *)g_try_new0(struct qcow2_table *, MAX_OF(l1_size, 1u));

    if (!new_l1 || !tables) {
        g_free((void *)new_l1);
        g_free((void *)tables);
        return -ENOMEM;
    }
    for (uint32_t i = 0; i < q->l1_size; i++) {
        uint64_t offset = atomic_load(&q->l1[i]) & QCOW2_OFFSET_MASK;

        if (offset) {
            qcow2_metadata_remove(q, offset, QCOW2_AREA_L2);
        }
    }
    qcow2_l2_forget(q);
    free_l1(q);
    for (uint32_t i = 0; i < l1_size; i++) {
        atomic_init(&new_l1[i], l1[i]);
    }
    q->l1 = new_l1;
    q->tables = tables;
    q->l1_size = l1_size;
    g_hash_table_remove_all(q->l1_dirty);
    note_tables(q);
    return 0;
}

int qcow2_l1_load(struct qcow2 *q, GError **error)
{
    g_autofree uint64_t *l1 = g_try_new(uint64_t, MAX_OF(q->header.l1_size, 1u));
    int status = l1 ? qcow2_read_words(q, l1, q->header.l1_size, q->header.l1_offset) : -ENOMEM;

    if (status == 0) {
        status = qcow2_set_l1(q, l1, q->header.l1_size);
    }
    return status < 0 ? block_error_errno(error, -status, "Could not read the L1 table") : 0;
}

int qcow2_l2_init(struct qcow2 *q, uint64_t cache_bytes, uint64_t entry_bytes, GError **error)
{
    pthread_mutex_init(&q->cache_lock, NULL);
    pthread_mutex_init(&q->l1_lock, NULL);
    TAILQ_INIT(&q->slices);
    TAILQ_INIT(&q->retired);
    TAILQ_INIT(&q->dirty_slices);
    q->l1_dirty = g_hash_table_new(NULL, NULL);
    q->slice_bytes = MIN_OF(entry_bytes, q->cluster_size);
    q->slice_bits = log2_of(q->slice_bytes / (q->entry_words * sizeof(uint64_t)));
    q->slice_unit_bits = qcow2_unit_bits(q->slice_bytes);
    q->slice_max = MAX_OF(cache_bytes / q->slice_bytes, SLICES_MIN);
    return qcow2_l1_load(q, error);
}

void qcow2_l2_destroy(struct qcow2 *q)
{
    if (!q->l1_dirty) {
        return;
    }
    qcow2_l2_forget(q);
    free_l1(q);
    g_hash_table_unref(STEAL(q->l1_dirty));
    pthread_mutex_destroy(&q->cache_lock);
    pthread_mutex_destroy(&q->l1_lock);
}
