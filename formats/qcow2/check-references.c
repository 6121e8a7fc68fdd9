/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2: finding every reference to a host cluster.
 *
 * Nothing that the image says is trusted: tables are read in pieces that the file's length bounds,
 * and each L2 table is looked at once however many L1 entries refer to it.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/checked.h"
#include "formats/qcow2/check-internal.h"

/* ---- The refcount table --------------------------------------------------------------------- */

int check_read_reftable(struct check *check)
{
    struct qcow2 *q = check->q;
    uint64_t bytes = (uint64_t)q->header.reftable_clusters << q->cluster_bits;

    check->reftable_entries = bytes / sizeof(uint64_t);
    check->reftable = g_try_malloc0(bytes);
    if (!check->reftable) {
        return -ENOMEM;
    }
    int status =
        qcow2_read_words(q, check->reftable, check->reftable_entries, q->header.reftable_offset);
    if (status < 0) {
        return status;
    }
    check_refer(check, q->header.reftable_offset, bytes, 1, "The refcount table");
    for (uint64_t i = 0; i < check->reftable_entries; i++) {
        uint64_t offset = check->reftable[i] & QCOW2_REFTABLE_MASK;

        if (check->reftable[i] & ~QCOW2_REFTABLE_MASK || !is_aligned(offset, q->cluster_size)) {
            check_corruption(check,
                             "Refcount block %" PRIu64 " is not aligned to a cluster: its "
                             "table entry is 0x%" PRIx64,
                             i, check->reftable[i]);
            check->reftable[i] = 0;
            check->needs_rebuild = true;
        } else if (offset && !check_refer(check, offset, q->cluster_size, 1, "A refcount block")) {
            check->reftable[i] = 0;
            check->needs_rebuild = true;
        }
    }
    return 0;
}

/* ---- L1 tables ------------------------------------------------------------------------------ */

static int add_table(struct check *check, uint64_t offset, bool is_active, uint64_t guest)
{
    struct check_table *table = g_hash_table_lookup(check->tables, &offset);

    if (!table) {
        table = g_new0(struct check_table, 1);
        table->offset = offset;
        g_hash_table_insert(check->tables, &table->offset, table);
    }
    if (is_active && table->is_active) {
        check_corruption(check,
                         "The L2 table at offset 0x%" PRIx64 " is in the active L1 table "
                         "twice",
                         offset);
        return -EEXIST;
    }
    table->references++;
    if (is_active) {
        table->is_active = true;
        table->guest = guest;
    }
    return 0;
}

/* One entry; 1 if it is not valid. */
static int look_at_l1_entry(struct check *check, uint64_t entry, uint32_t index, bool is_active)
{
    struct qcow2 *q = check->q;
    uint64_t offset = entry & QCOW2_OFFSET_MASK;

    if (entry & QCOW2_L1_RESERVED || !is_aligned(offset, q->cluster_size)) {
        check_corruption(check, "L1 table entry %" PRIu32 " (0x%" PRIx64 ") is not valid", index,
                         entry);
        return 1;
    }
    if (!offset) {
        return 0;
    }
    if (!check_refer(check, offset, q->cluster_size, 1, "An L2 table")) {
        return 1;
    }
    return add_table(check, offset, is_active,
                     (uint64_t)index << (q->cluster_bits + q->table_bits)) < 0;
}

static int look_at_active_l1(struct check *check)
{
    struct qcow2 *q = check->q;
    uint32_t size = q->header.l1_size;

    check->l1 = g_try_new0(uint64_t, MAX_OF(size, 1u));
    int status = check->l1 ? qcow2_read_words(q, check->l1, size, q->header.l1_offset) : -ENOMEM;
    if (status < 0) {
        return status;
    }
    check_refer(check, q->header.l1_offset, size * sizeof(uint64_t), 1, "The active L1 table");
    for (uint32_t i = 0; i < size; i++) {
        if (look_at_l1_entry(check, check->l1[i], i, true) &&
            check->repair & BLOCK_CHECK_REPAIR_ERRORS) {
            check->l1[i] = 0; /* whatever it referred to cannot be found */
            check->l1_is_changed = true;
        }
    }
    return 0;
}

static int look_at_snapshot_l1(struct check *check, const struct qcow2_snapshot *snapshot)
{
    struct qcow2 *q = check->q;
    g_autofree uint64_t *l1 = g_try_new0(uint64_t, MAX_OF(snapshot->l1_size, 1u));
    int status = l1 ? qcow2_read_words(q, l1, snapshot->l1_size, snapshot->l1_offset) : -ENOMEM;

    check_refer(check, snapshot->l1_offset, snapshot->l1_size * sizeof(uint64_t), 1,
                "A snapshot's L1 table");
    for (uint32_t i = 0; status == 0 && i < snapshot->l1_size; i++) {
        look_at_l1_entry(check, l1[i], i, false);
    }
    return status;
}

/* Their tables cannot be larger together than the file they all are in. */
static int look_at_snapshots(struct check *check)
{
    struct qcow2 *q = check->q;
    uint64_t left = check->file_clusters << q->cluster_bits;
    GError *error = NULL;
    int status = 0;

    qcow2_snapshots_free(q);
    if (qcow2_snapshots_load(q, &error) < 0) {
        check_corruption(check, "%s", error->message);
        g_error_free(error);
        return 0;
    }
    check_refer(check, q->header.snapshots_offset, q->snapshot_table_bytes, 1,
                "The snapshot table");
    for (size_t i = 0; status == 0 && i < q->snapshot_count; i++) {
        uint64_t bytes = align_up(q->snapshots[i].l1_size * sizeof(uint64_t), q->cluster_size);

        if (bytes > left) {
            check_corruption(check, "The L1 tables of snapshots overlap");
            return 0;
        }
        left -= bytes;
        status = look_at_snapshot_l1(check, &q->snapshots[i]);
    }
    return status;
}

/* ---- L2 tables ------------------------------------------------------------------------------ */

/* An entry that is not valid: what can be kept of it. */
static struct qcow2_entry mended(const struct qcow2 *q, struct qcow2_entry entry, uint64_t guest)
{
    struct qcow2_entry zero = {.descriptor =
                                   q->header.version >= 3 && !q->has_extended_l2 ? QCOW2_ZERO : 0,
                               .bitmap = q->has_extended_l2 ? (uint64_t)UINT32_MAX << 32 : 0};
    uint64_t host = entry.descriptor & QCOW2_OFFSET_MASK;

    if (entry.descriptor & QCOW2_COMPRESSED || !is_aligned(host, q->cluster_size) ||
        (q->has_data_file && host != guest)) {
        return zero;
    }
    entry.descriptor &= QCOW2_OFFSET_MASK | QCOW2_COPIED |
                        (q->header.version >= 3 && !q->has_extended_l2 ? QCOW2_ZERO : 0);
    entry.bitmap &= ~(entry.bitmap >> 32 & UINT32_MAX); /* zero wins: it shows nothing foreign */
    return qcow2_has_host(q, entry.descriptor) ? entry : zero;
}

static void count_cluster(struct check *check, struct qcow2_entry entry, uint64_t *next)
{
    uint64_t host = entry.descriptor & QCOW2_OFFSET_MASK;

    if (entry.descriptor & QCOW2_COMPRESSED) {
        check->result->allocated_clusters++;
        check->result->compressed_clusters++;
        check->result->fragmented_clusters++;
    } else if (host) {
        check->result->allocated_clusters++;
        check->result->fragmented_clusters += *next && host != *next;
        *next = host + check->q->cluster_size;
    }
}

/* What an entry refers to. False if it does not lie in the file. */
static bool refer_entry(struct check *check, struct qcow2_entry entry, uint64_t references)
{
    struct qcow2 *q = check->q;
    uint64_t offset = entry.descriptor & QCOW2_OFFSET_MASK, bytes = q->cluster_size;

    if (entry.descriptor & QCOW2_COMPRESSED) {
        qcow2_compressed_range(q, entry.descriptor, &offset, &bytes);
        /* Its last sector need not be there whole. */
        uint64_t end = check->file_clusters << q->cluster_bits;
        bytes = offset < end ? MIN_OF(bytes, end - offset) : bytes;
        return check_refer(check, offset, bytes, references, "A compressed cluster");
    }
    if (q->has_data_file || !offset) {
        return true;
    }
    return check_refer(check, offset, bytes, references, "A data cluster");
}

/* True if the entry is to be written again, changed. */
static bool look_at_entry(struct check *check, const struct check_table *table,
                          struct qcow2_entry *entry, uint64_t guest, uint64_t *next)
{
    struct qcow2 *q = check->q;
    bool is_valid = qcow2_entry_is_valid(q, guest, *entry);

    if (!is_valid) {
        check_corruption(check,
                         "The L2 table entry 0x%" PRIx64 " (in the table at offset 0x%" PRIx64
                         ") is not valid",
                         entry->descriptor, table->offset);
        *entry = mended(q, *entry, guest);
    }
    if (!refer_entry(check, *entry, table->references)) {
        entry->descriptor |= QCOW2_COMPRESSED; /* so that nothing is kept of it */
        *entry = mended(q, *entry, guest);
        is_valid = false;
    } else if (table->is_active) {
        count_cluster(check, *entry, next);
    }
    return !is_valid;
}

static int look_at_table(struct check *check, const struct check_table *table, uint64_t *words)
{
    struct qcow2 *q = check->q;
    uint64_t count = q->cluster_size / sizeof(*words), next = 0;
    bool is_changed = false;
    int status = qcow2_read_words(q, words, count, table->offset);

    for (uint64_t i = 0; status == 0 && i < count; i += q->entry_words) {
        struct qcow2_entry entry = {words[i], q->has_extended_l2 ? words[i + 1] : 0};
        uint64_t guest = table->guest + (i / q->entry_words << q->cluster_bits);

        if (!entry.descriptor && !entry.bitmap) {
            continue;
        }
        if (look_at_entry(check, table, &entry, guest, &next)) {
            words[i] = entry.descriptor;
            if (q->has_extended_l2) {
                words[i + 1] = entry.bitmap;
            }
            is_changed = true;
        }
    }
    if (status < 0) {
        check->result->check_errors++;
        check_corruption(check, "The L2 table at offset 0x%" PRIx64 " cannot be read",
                         table->offset);
        return 0;
    }
    return is_changed && check->repair & BLOCK_CHECK_REPAIR_ERRORS
               ? qcow2_write_words(q, words, count, table->offset)
               : 0;
}

static int look_at_tables(struct check *check)
{
    g_autofree uint64_t *words = g_malloc(check->q->cluster_size);
    uint64_t done = 0, total = g_hash_table_size(check->tables);
    GHashTableIter iterator;
    gpointer table;

    g_hash_table_iter_init(&iterator, check->tables);
    while (g_hash_table_iter_next(&iterator, NULL, &table)) {
        int status = look_at_table(check, table, words);

        if (status < 0) {
            return status;
        }
        if (check->progress && !check->progress(check->progress_data, ++done, total)) {
            return -ECANCELED;
        }
    }
    return 0;
}

/* ---- Bitmaps -------------------------------------------------------------------------------- */

static int look_at_bitmap(struct check *check, const struct qcow2_bitmap *bitmap)
{
    struct qcow2 *q = check->q;
    uint64_t bytes = bitmap->table_size * sizeof(uint64_t);

    if (!check_refer(check, bitmap->table_offset, bytes, 1, "A bitmap's table")) {
        return 0;
    }
    g_autofree uint64_t *table = g_try_malloc(MAX_OF(bytes, (uint64_t)sizeof(*table)));
    int status =
        table ? qcow2_read_words(q, table, bitmap->table_size, bitmap->table_offset) : -ENOMEM;
    for (uint32_t i = 0; status == 0 && i < bitmap->table_size; i++) {
        uint64_t offset = table[i] & QCOW2_OFFSET_MASK;

        if (table[i] & ~(QCOW2_OFFSET_MASK | 1) || (offset && table[i] & 1) ||
            !is_aligned(offset, q->cluster_size)) {
            check_corruption(check, "An entry (0x%" PRIx64 ") of bitmap '%s' is not valid",
                             table[i], bitmap->name);
        } else if (offset) {
            check_refer(check, offset, q->cluster_size, 1, "A bitmap's data");
        }
    }
    return status;
}

static int look_at_bitmaps(struct check *check)
{
    struct qcow2 *q = check->q;
    GError *error = NULL;
    int status = 0;

    if (!q->header.bitmap_count) {
        return 0;
    }
    check_refer(check, q->header.bitmap_directory_offset, q->header.bitmap_directory_bytes, 1,
                "The bitmap directory");
    g_autoptr(GArray) bitmaps = qcow2_bitmaps_read(q, &error);
    if (!bitmaps) {
        check_corruption(check, "%s", error->message);
        g_error_free(error);
        return 0;
    }
    for (guint i = 0; status == 0 && i < bitmaps->len; i++) {
        status = look_at_bitmap(check, &g_array_index(bitmaps, struct qcow2_bitmap, i));
    }
    return status;
}

int check_find_references(struct check *check)
{
    struct qcow2 *q = check->q;

    check_refer(check, 0, q->cluster_size, 1, "The header");
    int status = look_at_active_l1(check);
    if (status == 0) {
        status = look_at_snapshots(check);
    }
    if (status == 0) {
        status = look_at_tables(check);
    }
    return status == 0 ? look_at_bitmaps(check) : status;
}
