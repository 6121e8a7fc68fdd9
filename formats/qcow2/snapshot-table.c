/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2: the table of internal snapshots ("Snapshots"). */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "block/checked.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "formats/qcow2/big-endian.h"
#include "formats/qcow2/internal.h"

/* A table entry's fixed part, and the extra data that we know. */
#define ENTRY_BYTES QCOW2_SNAPSHOT_ENTRY_BYTES
#define EXTRA_BYTES 24

#define EXTRA_MAX   (16 * KIB)

static void clear(struct qcow2_snapshot *snapshot)
{
    g_free(snapshot->id);
    g_free(snapshot->name);
    g_free(snapshot->extra);
}

void qcow2_snapshot_list_clear(struct qcow2_snapshot *snapshots, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        clear(&snapshots[i]);
    }
    g_free(snapshots);
}

void qcow2_snapshots_free(struct qcow2 *q)
{
    qcow2_snapshot_list_clear(STEAL(q->snapshots), q->snapshot_count);
    q->snapshot_count = 0;
}

/* ---- IDs ------------------------------------------------------------------------------------ */

struct ids {
    GHashTable *taken; /* set of strings */
    uint64_t last;
};

/* Those that there are; the last is the highest number among them. */
static struct ids ids_new(const struct qcow2 *q)
{
    struct ids ids = {.taken = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL)};

    for (size_t i = 0; i < q->snapshot_count; i++) {
        g_hash_table_add(ids.taken, g_strdup(q->snapshots[i].id));
        ids.last = MAX_OF(ids.last, (uint64_t)strtoull(q->snapshots[i].id, NULL, 10));
    }
    return ids;
}

/* The next higher number; behind the highest of all, whatever is free. */
static char *ids_next(struct ids *ids)
{
    while (true) {
        g_autofree char *id = g_strdup_printf("%" PRIu64, ++ids->last);

        if (ids->last && g_hash_table_add(ids->taken, g_strdup(id))) {
            return g_steal_pointer(&id);
        }
    }
}

char *qcow2_snapshot_new_id(struct qcow2 *q)
{
    struct ids ids = ids_new(q);
    char *id = ids_next(&ids);

    g_hash_table_unref(ids.taken);
    return id;
}

/*
 * An ID stands for one snapshot. Of several that have the same in a damaged image, the first keeps
 * it; the others get new ones, which are written when the table is.
 */
static void make_unique(struct qcow2 *q)
{
    struct ids ids = ids_new(q);
    g_autoptr(GHashTable) seen = g_hash_table_new(g_str_hash, g_str_equal);

    for (size_t i = 0; i < q->snapshot_count; i++) {
        struct qcow2_snapshot *snapshot = &q->snapshots[i];

        if (g_hash_table_contains(seen, snapshot->id)) {
            g_free(snapshot->id);
            snapshot->id = ids_next(&ids);
        }
        g_hash_table_add(seen, snapshot->id);
    }
    g_hash_table_unref(ids.taken);
}

/* ---- Reading -------------------------------------------------------------------------------- */

struct reader {
    struct qcow2 *q;
    uint64_t at;
    GError **error;
};

static int read_bytes(struct reader *reader, void *buffer, uint64_t bytes)
{
    struct qcow2 *q = reader->q;

    if (!range_within(reader->at, bytes, align_up(block_node_length(q->file), q->cluster_size)) ||
        reader->at + bytes - q->header.snapshots_offset > QCOW2_SNAPSHOT_TABLE_MAX) {
        return block_error(reader->error, EINVAL,
                           "The snapshot table is damaged: it is too large, or goes on behind the "
                           "end of the file");
    }
    int status = qcow2_read_metadata(q, buffer, bytes, reader->at);
    reader->at += bytes;
    return status < 0
               ? block_error_errno(reader->error, -status, "Could not read the snapshot table")
               : 0;
}

static int read_text(struct reader *reader, char **text, uint64_t bytes)
{
    *text = g_malloc0(bytes + 1);
    return read_bytes(reader, *text, bytes);
}

static int read_extra(struct reader *reader, struct qcow2_snapshot *snapshot, uint32_t bytes)
{
    uint8_t known[EXTRA_BYTES] = {0};
    uint32_t known_bytes = MIN_OF(bytes, (uint32_t)EXTRA_BYTES);

    if (bytes > EXTRA_MAX) {
        return block_error(
            reader->error, EFBIG,
            "The snapshot table is damaged: an entry has %" PRIu32 " bytes of extra data", bytes);
    }
    int status = read_bytes(reader, known, known_bytes);
    if (known_bytes >= 8) {
        snapshot->vm_state_bytes = get_be(known, 8);
    }
    if (known_bytes >= 16) {
        snapshot->disk_bytes = get_be(known + 8, 8);
    }
    snapshot->icount = known_bytes >= 24 ? get_be(known + 16, 8) : UINT64_MAX;
    if (status == 0 && bytes > EXTRA_BYTES) {
        snapshot->extra_bytes = bytes - EXTRA_BYTES;
        snapshot->extra = g_malloc(snapshot->extra_bytes);
        status = read_bytes(reader, snapshot->extra, snapshot->extra_bytes);
    }
    return status;
}

static int check_entry(struct reader *reader, const struct qcow2_snapshot *snapshot)
{
    struct qcow2 *q = reader->q;
    uint64_t bytes = snapshot->l1_size * sizeof(uint64_t);

    if (bytes > QCOW2_L1_BYTES_MAX || !is_aligned(snapshot->l1_offset, q->cluster_size) ||
        (bytes && !snapshot->l1_offset) ||
        !range_within(snapshot->l1_offset, bytes,
                      align_up(block_node_length(q->file), q->cluster_size))) {
        return block_error(reader->error, EINVAL,
                           "The L1 table of snapshot '%s' is damaged: %" PRIu64
                           " bytes at offset %" PRIu64,
                           snapshot->name, bytes, snapshot->l1_offset);
    }
    if (snapshot->disk_bytes > INT64_MAX ||
        qcow2_l1_entries(q, snapshot->disk_bytes) > snapshot->l1_size) {
        return block_error(reader->error, EINVAL,
                           "The L1 table of snapshot '%s' is too small for its disk of %" PRIu64
                           " bytes",
                           snapshot->name, snapshot->disk_bytes);
    }
    return 0;
}

static int read_entry(struct reader *reader, struct qcow2_snapshot *snapshot)
{
    const struct qcow2 *q = reader->q;
    uint8_t fixed[ENTRY_BYTES];
    int status = read_bytes(reader, fixed, sizeof(fixed));

    if (status < 0) {
        return status;
    }
    *snapshot = (struct qcow2_snapshot){
        .l1_offset = get_be(fixed, 8),
        .l1_size = (uint32_t)get_be(fixed + 8, 4),
        .date_sec = (uint32_t)get_be(fixed + 16, 4),
        .date_nsec = (uint32_t)get_be(fixed + 20, 4),
        .vm_clock_nsec = get_be(fixed + 24, 8),
        .vm_state_bytes = get_be(fixed + 32, 4),
    };
    /* If the length of the disk is not recorded: as it is now, or as its tables go. */
    snapshot->disk_bytes = MIN_OF(q->header.size, qcow2_covered(q, snapshot->l1_size));
    status = read_extra(reader, snapshot, (uint32_t)get_be(fixed + 36, 4));
    if (status == 0) {
        status = read_text(reader, &snapshot->id, get_be(fixed + 12, 2));
    }
    if (status == 0) {
        status = read_text(reader, &snapshot->name, get_be(fixed + 14, 2));
    }
    reader->at = q->header.snapshots_offset + align_up(reader->at - q->header.snapshots_offset, 8);
    return status == 0 ? check_entry(reader, snapshot) : status;
}

int qcow2_snapshots_load(struct qcow2 *q, GError **error)
{
    struct reader reader = {.q = q, .at = q->header.snapshots_offset, .error = error};

    qcow2_snapshots_free(q);
    q->snapshots = g_new0(struct qcow2_snapshot, MAX_OF(q->header.snapshot_count, 1u));
    for (uint32_t i = 0; i < q->header.snapshot_count; i++) {
        q->snapshot_count = i + 1; /* what is read of it is to be freed */
        int status = read_entry(&reader, &q->snapshots[i]);

        if (status < 0) {
            return status;
        }
    }
    make_unique(q);
    q->snapshot_table_bytes = reader.at - q->header.snapshots_offset;
    qcow2_area_set(q, QCOW2_AREA_SNAPSHOTS, q->header.snapshots_offset, q->snapshot_table_bytes);
    return 0;
}

struct qcow2_snapshot *qcow2_snapshot_find(struct qcow2 *q, const char *id_or_name)
{
    for (size_t i = 0; i < q->snapshot_count; i++) {
        if (!strcmp(q->snapshots[i].id, id_or_name)) {
            return &q->snapshots[i];
        }
    }
    for (size_t i = 0; i < q->snapshot_count; i++) {
        if (!strcmp(q->snapshots[i].name, id_or_name)) {
            return &q->snapshots[i];
        }
    }
    return NULL;
}

/* ---- Writing -------------------------------------------------------------------------------- */

static void encode(GByteArray *table, const struct qcow2_snapshot *snapshot)
{
    bool fits = snapshot->vm_state_bytes <= UINT32_MAX;

    append_be(table, snapshot->l1_offset, 8);
    append_be(table, snapshot->l1_size, 4);
    append_be(table, strlen(snapshot->id), 2);
    append_be(table, strlen(snapshot->name), 2);
    append_be(table, snapshot->date_sec, 4);
    append_be(table, snapshot->date_nsec, 4);
    append_be(table, snapshot->vm_clock_nsec, 8);
    append_be(table, fits ? snapshot->vm_state_bytes : 0, 4);
    append_be(table, EXTRA_BYTES + snapshot->extra_bytes, 4);
    append_be(table, snapshot->vm_state_bytes, 8);
    append_be(table, snapshot->disk_bytes, 8);
    append_be(table, snapshot->icount, 8);
    if (snapshot->extra_bytes) {
        g_byte_array_append(table, snapshot->extra, snapshot->extra_bytes);
    }
    g_byte_array_append(table, (const uint8_t *)snapshot->id, (guint)strlen(snapshot->id));
    g_byte_array_append(table, (const uint8_t *)snapshot->name, (guint)strlen(snapshot->name));
    while (table->len % 8) {
        append_be(table, 0, 1);
    }
}

/* Let the header refer to a table: both fields are in one sector. */
static int switch_table(struct qcow2 *q, uint64_t offset, uint32_t count)
{
    SCOPE_LOCK(&q->header_lock);
    struct qcow2_header before = q->header;

    q->header.snapshot_count = count;
    q->header.snapshots_offset = offset;
    return qcow2_header_switch(q, &before, 60, 72); /* nb_snapshots, snapshots_offset */
}

/* Write the table to new clusters and make it and all that it refers to stable. */
static int put_table(struct qcow2 *q, const GByteArray *table, uint64_t *offset)
{
    uint64_t clusters = qcow2_clusters(q, table->len);
    bool is_new;
    int status = 0;

    *offset = 0;
    if (clusters) {
        status = qcow2_allocate(q, clusters, true, offset, NULL, &is_new);
    }
    if (status == 0 && clusters) {
        status = qcow2_write_metadata(q, table->data, table->len, *offset);
    }
    if (status == 0) {
        status = qcow2_commit_all(q);
    }
    if (status < 0 && *offset) {
        qcow2_unallocate(q, *offset, clusters);
    }
    return status;
}

int qcow2_snapshots_store(struct qcow2 *q, const struct qcow2_snapshot *snapshots, size_t count,
                          GError **error)
{
    g_autoptr(GByteArray) table = g_byte_array_new();
    uint64_t old_offset = q->header.snapshots_offset, offset;

    for (size_t i = 0; i < count; i++) {
        encode(table, &snapshots[i]);
    }
    if (table->len > QCOW2_SNAPSHOT_TABLE_MAX) {
        return block_error(error, EFBIG, "The snapshot table would get too large");
    }
    int status = put_table(q, table, &offset);
    if (status < 0) {
        return block_error_errno(error, -status, "Could not write the snapshot table");
    }
    status = switch_table(q, offset, (uint32_t)count);
    if (status < 0) {
        if (table->len) {
            qcow2_unallocate(q, offset, qcow2_clusters(q, table->len));
        }
        return block_error_errno(error, -status, "Could not write the header");
    }
    if (qcow2_refcount_add(q, old_offset, q->snapshot_table_bytes, -1) < 0) {
        q->needs_repair = true; /* it leaks until then */
    }
    q->snapshot_table_bytes = table->len;
    qcow2_area_set(q, QCOW2_AREA_SNAPSHOTS, offset, table->len);
    return 0;
}
