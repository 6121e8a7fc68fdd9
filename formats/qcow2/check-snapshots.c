/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2 check: the snapshot table ("Snapshots").
 *
 * Entries follow each other, each as long as it says; behind one whose length is impossible no
 * other can be found. A repair writes a new table with those that can, and drops the others.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "formats/qcow2/check-internal.h"

/* The fixed part of an entry, and fields in it. */
#define ENTRY_BYTES    40
#define AT_L1_OFFSET   0
#define AT_L1_SIZE     8
#define AT_ID_BYTES    12
#define AT_NAME_BYTES  14
#define AT_VM_STATE    32
#define AT_EXTRA_BYTES 36

/* Extra data: version 3 demands it up to the disk's length. */
#define EXTRA_VM_STATE   0
#define EXTRA_DISK_BYTES 8
#define EXTRA_ICOUNT     16
#define EXTRA_DEMANDED   16
#define EXTRA_KNOWN      24

/* QEMU opens no image with more extra data; with still more the entry's length is not believed. */
#define EXTRA_USUAL_MAX 1024
#define EXTRA_MAX       (16 * KIB)

/* In the header: nb_snapshots, snapshots_offset. */
#define HEADER_AT_SNAPSHOTS  60
#define HEADER_END_SNAPSHOTS 72

/* An entry as it is in the file. */
struct entry {
    uint8_t *bytes; /* whole, padded */
    uint64_t length;
    uint32_t extra;
    uint32_t text; /* ID and name */
    struct check_snapshot snapshot;
};

static uint16_t get16(const uint8_t *bytes)
{
    uint16_t value;

    memcpy(&value, bytes, sizeof(value));
    return be16toh(value);
}

static uint32_t get32(const uint8_t *bytes)
{
    uint32_t value;

    memcpy(&value, bytes, sizeof(value));
    return be32toh(value);
}

static uint64_t get64(const uint8_t *bytes)
{
    uint64_t value;

    memcpy(&value, bytes, sizeof(value));
    return be64toh(value);
}

static void put32(uint8_t *bytes, uint32_t value)
{
    value = htobe32(value);
    memcpy(bytes, &value, sizeof(value));
}

static void put64(uint8_t *bytes, uint64_t value)
{
    value = htobe64(value);
    memcpy(bytes, &value, sizeof(value));
}

/* ---- Reading -------------------------------------------------------------------------------- */

/*
 * Read the entry at an offset of the file, of which so many bytes may still belong to the table.
 * False if there is none: *problem says why, or is NULL if the file cannot be read.
 */
static bool read_entry(struct check *c, uint64_t offset, uint64_t most, struct entry *entry,
                       const char **problem)
{
    uint8_t head[ENTRY_BYTES];

    *problem = "it is not inside the file, or the table is too long";
    if (most < sizeof(head) || !check_in_file(c, offset, sizeof(head))) {
        return false;
    }
    if (!check_read(c, head, sizeof(head), offset, "the snapshot table")) {
        *problem = NULL;
        return false;
    }
    entry->extra = get32(head + AT_EXTRA_BYTES);
    entry->text = (uint32_t)get16(head + AT_ID_BYTES) + get16(head + AT_NAME_BYTES);
    entry->snapshot = (struct check_snapshot){get64(head + AT_L1_OFFSET), get32(head + AT_L1_SIZE)};
    if (entry->extra > EXTRA_MAX) {
        *problem = "it claims to have too much extra data";
        return false;
    }
    entry->length = align_up((uint64_t)ENTRY_BYTES + entry->extra + entry->text, 8);
    if (entry->length > most || !check_in_file(c, offset, entry->length)) {
        return false;
    }
    entry->bytes = g_malloc(entry->length);
    if (!check_read(c, entry->bytes, entry->length, offset, "the snapshot table")) {
        g_free(STEAL(entry->bytes));
        *problem = NULL;
        return false;
    }
    return true;
}

/* ---- Judging -------------------------------------------------------------------------------- */

/* Whether the snapshot's L1 table can be found; if so, its clusters are counted. */
static int claim_l1(struct check *c, const struct check_snapshot *snapshot, const char **problem)
{
    uint64_t bytes = (uint64_t)snapshot->l1_size * sizeof(uint64_t);
    bool clashes = false;

    *problem = NULL;
    if (!check_is_place(c, snapshot->l1_offset)) {
        *problem = "its L1 table is not aligned, or beyond the end of the file";
    } else if (bytes > QCOW2_L1_BYTES_MAX) {
        *problem = "its L1 table is too large";
    } else if (!check_in_file(c, snapshot->l1_offset, bytes)) {
        *problem = "its L1 table reaches beyond the end of the file";
    }
    if (*problem) {
        return 0;
    }
    int status = check_claim(c, snapshot->l1_offset, bytes, CHECK_KIND_SNAPSHOT_L1, &clashes);
    *problem = clashes ? "its L1 table is where another table is" : NULL;
    return status;
}

/* How long the snapshot's disk was; what was not recorded is as it is now, or as its tables go. */
static uint64_t disk_bytes(const struct check *c, const struct entry *entry)
{
    return entry->extra >= EXTRA_DISK_BYTES + 8
               ? get64(entry->bytes + ENTRY_BYTES + EXTRA_DISK_BYTES)
               : MIN_OF(c->q->header.size, qcow2_covered(c->q, entry->snapshot.l1_size));
}

/* An entry again, with its extra data as it should be. */
static void add_mended(struct check *c, const struct entry *entry)
{
    const uint8_t *old = entry->bytes + ENTRY_BYTES;
    uint8_t head[ENTRY_BYTES], extra[EXTRA_KNOWN], padding[8] = {0};
    uint64_t covered = qcow2_covered(c->q, entry->snapshot.l1_size);
    guint before = c->snapshot_table->len;

    memcpy(head, entry->bytes, sizeof(head));
    put32(head + AT_EXTRA_BYTES, sizeof(extra));
    put64(extra + EXTRA_VM_STATE, entry->extra >= EXTRA_VM_STATE + 8 ? get64(old + EXTRA_VM_STATE)
                                                                     : get32(head + AT_VM_STATE));
    put64(extra + EXTRA_DISK_BYTES, disk_bytes(c, entry) <= covered
                                        ? disk_bytes(c, entry)
                                        : MIN_OF(c->q->header.size, covered));
    put64(extra + EXTRA_ICOUNT,
          entry->extra >= EXTRA_ICOUNT + 8 ? get64(old + EXTRA_ICOUNT) : UINT64_MAX);
    g_byte_array_append(c->snapshot_table, head, sizeof(head));
    g_byte_array_append(c->snapshot_table, extra, sizeof(extra));
    g_byte_array_append(c->snapshot_table, old + entry->extra, entry->text);
    guint added = c->snapshot_table->len - before;
    g_byte_array_append(c->snapshot_table, padding, (guint)align_up(added, 8) - added);
}

static const char *extra_problem(const struct check *c, const struct entry *entry)
{
    if (c->q->header.version >= 3 && entry->extra < EXTRA_DEMANDED) {
        return "does not say how long its disk was";
    }
    if (disk_bytes(c, entry) >
        MIN_OF(qcow2_covered(c->q, entry->snapshot.l1_size), (uint64_t)INT64_MAX)) {
        return "has an L1 table that is too small for its disk";
    }
    return entry->extra > EXTRA_USUAL_MAX ? "has too much extra data" : NULL;
}

static void keep(struct check *c, const struct entry *entry, uint32_t number)
{
    const char *problem = extra_problem(c, entry);

    g_array_append_val(c->snapshots, entry->snapshot);
    if (problem) {
        check_report(c, CHECK_CORRUPTION, "Snapshot number %" PRIu32 " %s", number, problem);
        c->bad_snapshots = true;
    }
    if (!c->mends) {
        return;
    }
    c->snapshot_count++;
    if (problem) {
        add_mended(c, entry);
    } else {
        g_byte_array_append(c->snapshot_table, entry->bytes, (guint)entry->length);
    }
}

static void drop(struct check *c, uint32_t first, uint32_t count, const char *problem)
{
    g_autofree char *which =
        count == 1
            ? g_strdup_printf("Snapshot number %" PRIu32, first)
            : g_strdup_printf("Snapshots number %" PRIu32 " to %" PRIu32, first, first + count - 1);

    check_report(c, CHECK_CORRUPTION, "%s cannot be found: %s%s", which, problem,
                 c->mends ? "; dropped from the snapshot table" : "");
    c->bad_snapshots = true;
    if (!c->mends) {
        c->lost_references = true;
    }
}

/* ---- The table ------------------------------------------------------------------------------ */

/* What is wrong with the table itself is told; then there are no snapshots. */
static int claim_table(struct check *c, uint64_t bytes, bool *is_there)
{
    bool clashes = false;
    int status =
        check_claim(c, c->q->header.snapshots_offset, bytes, CHECK_KIND_SNAPSHOT_TABLE, &clashes);

    *is_there = !clashes;
    if (clashes) {
        drop(c, 1, c->q->header.snapshot_count, "the snapshot table is where another table is");
    }
    return status;
}

/* Find where entries end that can be read. *count: so many. */
static uint64_t measure(struct check *c, uint32_t *count)
{
    uint64_t offset = c->q->header.snapshots_offset, bytes = 0;
    const char *problem = NULL;

    for (*count = 0; *count < c->q->header.snapshot_count; ++*count) {
        struct entry entry = {0};

        if (!read_entry(c, offset + bytes, QCOW2_SNAPSHOT_TABLE_MAX - bytes, &entry, &problem)) {
            break;
        }
        bytes += entry.length;
        g_free(entry.bytes);
    }
    if (*count < c->q->header.snapshot_count && problem) {
        drop(c, *count + 1, c->q->header.snapshot_count - *count, problem);
    }
    return bytes;
}

/* The entry was read once already: it is well-formed, unless somebody changes the file. */
static int look_at_entry(struct check *c, uint64_t offset, uint32_t number, uint64_t *length)
{
    struct entry entry = {0};
    const char *problem;

    if (!read_entry(c, offset, QCOW2_SNAPSHOT_TABLE_MAX, &entry, &problem)) {
        return -EIO;
    }
    int status = claim_l1(c, &entry.snapshot, &problem);
    if (status == 0 && problem) {
        drop(c, number, 1, problem);
    } else if (status == 0) {
        keep(c, &entry, number);
    }
    *length = entry.length;
    g_free(entry.bytes);
    return status;
}

int check_snapshot_table(struct check *c)
{
    uint64_t offset = c->q->header.snapshots_offset;
    uint32_t count;
    bool is_there;

    if (!c->q->header.snapshot_count) {
        return 0;
    }
    uint64_t bytes = measure(c, &count);
    int status = claim_table(c, bytes, &is_there);

    for (uint32_t i = 0; status == 0 && is_there && i < count; i++) {
        uint64_t length = 0;

        status = look_at_entry(c, offset, i + 1, &length);
        offset += length;
        if (status == 0) {
            status = check_step(c, 0);
        }
    }
    return status;
}

int check_snapshots_replace(struct check *c)
{
    struct qcow2 *q = c->q;
    SCOPE_LOCK(&q->header_lock);
    struct qcow2_header before = q->header;
    int status = 0;

    if (!c->bad_snapshots) {
        return 0;
    }
    if (c->snapshot_count) {
        status =
            check_write(c, c->snapshot_table->data, c->snapshot_table->len, c->snapshot_table_at);
    }
    if (status == 0) {
        status = block_node_flush(q->file);
    }
    if (status == 0) {
        q->header.snapshot_count = c->snapshot_count;
        q->header.snapshots_offset = c->snapshot_table_at;
        status = qcow2_header_write_fields(q, HEADER_AT_SNAPSHOTS, HEADER_END_SNAPSHOTS);
    }
    if (status < 0) {
        q->header = before;
    }
    return status;
}
