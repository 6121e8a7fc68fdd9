/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2: comparing refcounts and COPIED flags with the references that were found, and making them
 * agree. Refcounts are written and flushed before flags that depend on them, so that a repair that
 * is interrupted leaves no more wrong than there was.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/cleanup.h"
#include "formats/qcow2/check-internal.h"

static uint64_t refcounts_per_block(const struct qcow2 *q)
{
    return q->cluster_size * 8 >> q->header.refcount_order;
}

static uint64_t refcount_max(const struct qcow2 *q)
{
    return UINT64_MAX >> (64 - (1u << q->header.refcount_order));
}

/* ---- Refcounts ------------------------------------------------------------------------------ */

/* One cluster; true if its refcount is to be changed. */
static bool compare_one(struct check *check, uint64_t cluster, uint64_t refcount,
                        uint64_t references)
{
    uint64_t offset = cluster << check->q->cluster_bits;

    if (refcount > references) {
        check_leak(check,
                   "The cluster at offset 0x%" PRIx64 " is lost: its refcount is %" PRIu64
                   ", but it is in use %" PRIu64 " times",
                   offset, refcount, references);
        return check->repair & BLOCK_CHECK_REPAIR_LEAKS;
    }
    if (refcount < references) {
        check_corruption(check,
                         "The cluster at offset 0x%" PRIx64 " has a refcount of %" PRIu64
                         ", but is in use %" PRIu64 " times",
                         offset, refcount, references);
        return check->repair & BLOCK_CHECK_REPAIR_ERRORS && references <= refcount_max(check->q);
    }
    return false;
}

static int compare_block(struct check *check, uint64_t index, uint8_t *block)
{
    struct qcow2 *q = check->q;
    uint64_t first = index * refcounts_per_block(q);
    bool is_changed = false;
    int status = qcow2_read_metadata(q, block, q->cluster_size, check->reftable[index]);

    if (status < 0) {
        check->result->check_errors++;
        check_corruption(check, "Refcount block %" PRIu64 " cannot be read", index);
        check->needs_rebuild = true;
        return 0;
    }
    for (uint64_t i = 0; i < refcounts_per_block(q); i++) {
        uint64_t refcount = qcow2_refblock_get(block, q->header.refcount_order, i);
        uint64_t references = check_references(check, first + i);

        if (refcount != references && compare_one(check, first + i, refcount, references)) {
            qcow2_refblock_set(block, q->header.refcount_order, i, references);
            is_changed = true;
        }
    }
    return is_changed ? qcow2_write_metadata(q, block, q->cluster_size, check->reftable[index]) : 0;
}

/* A cluster that is in use, whose refcount may be nowhere. */
static void look_if_counted(struct check *check, uint64_t cluster, uint64_t references)
{
    uint64_t index = cluster / refcounts_per_block(check->q);

    if (index >= check->reftable_entries || !check->reftable[index]) {
        compare_one(check, cluster, 0, references);
        check->needs_rebuild = true;
    }
}

/* Blocks that are in use for something else as well cannot be trusted. */
static void find_shared_blocks(struct check *check)
{
    for (uint64_t i = 0; i < check->reftable_entries; i++) {
        if (check->reftable[i] &&
            check_references(check, check->reftable[i] >> check->q->cluster_bits) > 1) {
            check_corruption(check, "Refcount block %" PRIu64 " overlaps something else", i);
            check->needs_rebuild = true;
        }
    }
}

int check_compare(struct check *check)
{
    struct qcow2 *q = check->q;
    AUTO_FREE uint8_t *block = block_node_alloc_buffer(q->file, q->cluster_size);
    bool rebuilds = check->repair & BLOCK_CHECK_REPAIR_ERRORS;
    unsigned repair = check->repair;
    int status = block ? 0 : -ENOMEM;

    find_shared_blocks(check);
    if (check->needs_rebuild) {
        check->repair = 0; /* what is there is not written to any more */
    }
    for (uint64_t i = 0; status == 0 && i < check->reftable_entries; i++) {
        if (check->reftable[i]) {
            status = compare_block(check, i, block);
        }
    }
    check->repair = repair;
    check_foreach_used(check, look_if_counted);
    if (status == 0 && check->needs_rebuild && rebuilds) {
        status = check_rebuild(check);
    }
    return status == 0 && repair ? block_node_flush(q->file) : status;
}

/* ---- New structures ------------------------------------------------------------------------- */

/*
 * Where they are, in clusters: behind everything that is in use. There are blocks only for parts of
 * the file in which something is: a file may be full of holes.
 */
struct place {
    uint64_t first;
    uint64_t table;  /* clusters */
    GArray *indices; /* uint64_t: of the blocks, ascending */
};

static int compare_indices(gconstpointer a, gconstpointer b)
{
    uint64_t first = *(const uint64_t *)a, second = *(const uint64_t *)b;

    return (first > second) - (first < second);
}

static void add_index(GArray *indices, uint64_t index)
{
    for (guint i = indices->len; i > 0; i--) {
        if (g_array_index(indices, uint64_t, i - 1) == index) {
            return;
        }
        if (g_array_index(indices, uint64_t, i - 1) < index) {
            break;
        }
    }
    g_array_append_val(indices, index);
    g_array_sort(indices, compare_indices);
}

static void note_index(struct check *check, uint64_t cluster, uint64_t references)
{
    uint64_t index = cluster / refcounts_per_block(check->q);

    g_hash_table_add(check->indices, g_memdup2(&index, sizeof(index)));
}

static void find_place(struct check *check, struct place *place)
{
    const struct qcow2 *q = check->q;
    GHashTableIter iterator;
    gpointer index;
    uint64_t before;

    check->indices = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, NULL);
    check_foreach_used(check, note_index);
    g_hash_table_iter_init(&iterator, check->indices);
    while (g_hash_table_iter_next(&iterator, &index, NULL)) {
        g_array_append_vals(place->indices, index, 1);
    }
    g_hash_table_unref(STEAL(check->indices));
    g_array_sort(place->indices, compare_indices);
    place->first = check->end;
    do {
        before = place->table + place->indices->len;
        for (uint64_t at = place->first; at <= place->first + before; at++) {
            add_index(place->indices, at / refcounts_per_block(q));
        }
        uint64_t last = g_array_index(place->indices, uint64_t, place->indices->len - 1);
        place->table = div_round_up((last + 1) * sizeof(uint64_t), q->cluster_size);
    } while (place->table + place->indices->len != before);
}

static uint64_t place_end(const struct place *place)
{
    return place->first + place->table + place->indices->len;
}

static uint64_t new_refcount(const struct check *check, const struct place *place, uint64_t cluster)
{
    return cluster >= place->first && cluster < place_end(place)
               ? 1
               : MIN_OF(check_references(check, cluster), refcount_max(check->q));
}

/* The nth block. */
static int write_block(struct check *check, const struct place *place, guint n, uint8_t *block)
{
    struct qcow2 *q = check->q;
    uint64_t first = g_array_index(place->indices, uint64_t, n) * refcounts_per_block(q);
    uint64_t offset = (place->first + place->table + n) << q->cluster_bits;

    memset(block, 0, q->cluster_size);
    for (uint64_t i = 0; i < refcounts_per_block(q); i++) {
        qcow2_refblock_set(block, q->header.refcount_order, i,
                           new_refcount(check, place, first + i));
    }
    return qcow2_write_metadata(q, block, q->cluster_size, offset);
}

/* The old ones are no longer in use. */
static void forget_old(struct check *check)
{
    struct qcow2 *q = check->q;
    uint64_t table = (uint64_t)q->header.reftable_clusters;

    for (uint64_t i = 0; i < table; i++) {
        check_unrefer(check, (q->header.reftable_offset >> q->cluster_bits) + i);
    }
    for (uint64_t i = 0; i < check->reftable_entries; i++) {
        if (check->reftable[i]) {
            check_unrefer(check, check->reftable[i] >> q->cluster_bits);
        }
    }
}

static int write_structures(struct check *check, const struct place *place)
{
    struct qcow2 *q = check->q;
    uint64_t entries = place->table * q->cluster_size / sizeof(uint64_t);
    AUTO_FREE uint8_t *block = block_node_alloc_buffer(q->file, q->cluster_size);
    g_autofree uint64_t *table = g_try_new0(uint64_t, entries);
    int status = block && table ? 0 : -ENOMEM;

    for (guint n = 0; status == 0 && n < place->indices->len; n++) {
        table[g_array_index(place->indices, uint64_t, n)] = (place->first + place->table + n)
                                                            << q->cluster_bits;
        status = write_block(check, place, n, block);
    }
    if (status == 0) {
        status = qcow2_write_words(q, table, entries, place->first << q->cluster_bits);
    }
    return status == 0 ? block_node_flush(q->file) : status;
}

int check_rebuild(struct check *check)
{
    struct qcow2 *q = check->q;
    struct place place = {.indices = g_array_new(FALSE, FALSE, sizeof(uint64_t))};
    int status;

    forget_old(check);
    find_place(check, &place);
    status = place.table << q->cluster_bits <= QCOW2_REFTABLE_BYTES_MAX + q->cluster_size
                 ? qcow2_grow_file(q, place_end(&place) << q->cluster_bits)
                 : -EFBIG; /* of no use with so small clusters */
    if (status == 0) {
        status = write_structures(check, &place);
    }
    if (status == 0) {
        status = qcow2_switch_reftable(q, place.first << q->cluster_bits, (uint32_t)place.table);
    }
    g_array_unref(place.indices);
    return status;
}

/* ---- COPIED flags --------------------------------------------------------------------------- */

static bool flag_is_wrong(struct check *check, uint64_t entry)
{
    uint64_t offset = entry & QCOW2_OFFSET_MASK;
    uint64_t references = check_references(check, offset >> check->q->cluster_bits);

    if (!offset || (references == 1) == !!(entry & QCOW2_COPIED)) {
        return false;
    }
    check_corruption(check,
                     "The cluster at offset 0x%" PRIx64 " is in use %" PRIu64 " times, but "
                     "is %smarked as used once",
                     offset, references, entry & QCOW2_COPIED ? "" : "not ");
    return true;
}

static int check_table_flags(struct check *check, const struct check_table *table, uint64_t *words)
{
    struct qcow2 *q = check->q;
    uint64_t count = q->cluster_size / sizeof(*words);
    bool is_changed = false;
    int status = qcow2_read_words(q, words, count, table->offset);

    for (uint64_t i = 0; status == 0 && i < count; i += q->entry_words) {
        if (!(words[i] & QCOW2_COMPRESSED) && !q->has_data_file && flag_is_wrong(check, words[i])) {
            words[i] ^= QCOW2_COPIED;
            is_changed = true;
        }
    }
    return status == 0 && is_changed && check->repair & BLOCK_CHECK_REPAIR_ERRORS
               ? qcow2_write_words(q, words, count, table->offset)
               : 0; /* that it cannot be read has been said */
}

int check_flags(struct check *check)
{
    struct qcow2 *q = check->q;
    g_autofree uint64_t *words = g_malloc(q->cluster_size);
    GHashTableIter iterator;
    gpointer table;
    int status = 0;

    for (uint32_t i = 0; i < q->header.l1_size; i++) {
        if (!(check->l1[i] & QCOW2_L1_RESERVED) && flag_is_wrong(check, check->l1[i])) {
            check->l1[i] ^= QCOW2_COPIED;
            check->l1_is_changed = true;
        }
    }
    g_hash_table_iter_init(&iterator, check->tables);
    while (status == 0 && g_hash_table_iter_next(&iterator, NULL, &table)) {
        if (((struct check_table *)table)->is_active) {
            status = check_table_flags(check, table, words);
        }
    }
    if (status == 0 && check->l1_is_changed && check->repair & BLOCK_CHECK_REPAIR_ERRORS) {
        status = qcow2_write_words(q, check->l1, q->header.l1_size, q->header.l1_offset);
    }
    return status == 0 && check->repair ? block_node_flush(q->file) : status;
}
