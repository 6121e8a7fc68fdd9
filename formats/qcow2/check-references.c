/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2 check: the walk over all that refers to clusters, which counts and, if told so, mends. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "formats/qcow2/check-internal.h"

/* L1 tables are read in pieces of this many entries. */
#define L1_PIECE UINT64_C(8192)

/* Whose L1 table it is: the active one's is NULL. */
struct l1_walk {
    const char *owner;
    uint64_t offset;
    uint64_t entries;
    bool active;
};

uint64_t check_table_guest(const struct check *c, const struct check_table *table)
{
    return (uint64_t)table->l1_index << (c->q->cluster_bits + c->q->table_bits);
}

/* ---- L1 tables ------------------------------------------------------------------------------ */

/*
 * What is wrong with an L1 entry, including that its target holds something else. Tables are known
 * before any data is, so a target is either free or a table.
 */
static void judge_l1(struct check *c, uint64_t entry, struct check_verdict *verdict)
{
    uint64_t offset = entry & QCOW2_OFFSET_MASK;

    check_judge_l1(c, entry, verdict);
    if (verdict->lost || !offset) {
        return;
    }
    enum check_kind kind = check_counts_kind(c->counts, offset >> c->q->cluster_bits);
    if (kind != CHECK_KIND_DATA && kind != CHECK_KIND_L2) {
        verdict->problem = "refers to an L2 table where another table is";
    } else if (kind == CHECK_KIND_L2 && c->q->has_data_file) {
        verdict->problem = "refers to an L2 table that belongs to another entry";
    } else if (c->mends && g_hash_table_contains(c->not_tables, &offset)) {
        verdict->problem = "refers to an L2 table where something else is";
    } else {
        return;
    }
    verdict->lost = true;
    verdict->remedy = "it becomes unallocated";
    verdict->fixed.descriptor = 0;
}

static int count_table(struct check *c, const struct l1_walk *walk, uint64_t index, uint64_t offset)
{
    uint64_t cluster = offset >> c->q->cluster_bits;
    bool is_new = check_counts_get(c->counts, cluster) == 0;
    int status = check_counts_add(c->counts, cluster, 1);

    if (status == 0 && is_new) {
        struct check_table table = {offset, (uint32_t)index, walk->active};

        check_counts_set_kind(c->counts, cluster, CHECK_KIND_L2);
        g_array_append_val(c->tables, table);
    }
    return status;
}

static int look_at_l1_entry(struct check *c, const struct l1_walk *walk, uint64_t index,
                            uint64_t entry)
{
    struct check_verdict verdict;
    int status = 0;

    judge_l1(c, entry, &verdict);
    if (verdict.problem) {
        check_report(c, CHECK_CORRUPTION, "Entry %" PRIu64 " of %s (0x%" PRIx64 ") %s%s%s", index,
                     walk->owner, entry, verdict.problem, c->mends ? "; " : "",
                     c->mends ? verdict.remedy : "");
        c->bad_entries = true;
        if (c->mends) {
            uint64_t word = htobe64(verdict.fixed.descriptor);

            status = check_write(c, &word, sizeof(word), walk->offset + index * sizeof(word));
        } else {
            c->lost_references |= verdict.lost;
        }
    }
    uint64_t offset = verdict.fixed.descriptor & QCOW2_OFFSET_MASK;
    if (status == 0 && offset) {
        status = count_table(c, walk, index, offset);
    }
    return status;
}

static int walk_l1(struct check *c, const struct l1_walk *walk)
{
    g_autofree uint64_t *words = g_new(uint64_t, L1_PIECE);

    for (uint64_t start = 0; start < walk->entries; start += L1_PIECE) {
        uint64_t count = MIN_OF(L1_PIECE, walk->entries - start);
        int status = check_step(c, 0);

        if (status < 0) {
            return status;
        }
        uint64_t offset = walk->offset + start * sizeof(*words);
        if (check_is_hole(c, offset, count * sizeof(*words)) ||
            !check_read(c, words, count * sizeof(*words), offset, walk->owner)) {
            continue;
        }
        for (uint64_t i = 0; status == 0 && i < count; i++) {
            if (words[i]) {
                status = look_at_l1_entry(c, walk, start + i, be64toh(words[i]));
            }
        }
        if (status < 0) {
            return status;
        }
    }
    return 0;
}

static int walk_l1_tables(struct check *c)
{
    struct l1_walk active = {
        .owner = "the active L1 table",
        .offset = c->q->header.l1_offset,
        .entries = c->q->header.l1_size,
        .active = true,
    };
    int status = walk_l1(c, &active);

    for (guint i = 0; status == 0 && i < c->snapshots->len; i++) {
        const struct check_snapshot *snapshot =
            &g_array_index(c->snapshots, struct check_snapshot, i);
        g_autofree char *owner = g_strdup_printf("the L1 table of snapshot number %u", i + 1);
        struct l1_walk walk = {owner, snapshot->l1_offset, snapshot->l1_size, false};

        status = walk_l1(c, &walk);
    }
    return status;
}

/* ---- L2 tables ------------------------------------------------------------------------------ */

/* What a walk over a table carries along. */
struct l2_walk {
    const struct check_table *table;
    uint64_t weight; /* L1 entries that refer to the table: as often each of its targets is used */
    uint64_t next_host;  /* where a disk that is not fragmented goes on; 0: anywhere */
    uint64_t first, end; /* words that were changed */
};

/* Clusters that hold data of the disk, for the statistics; of the current state only. */
static void count_use(struct check *c, struct l2_walk *walk, struct qcow2_entry entry)
{
    uint64_t host = entry.descriptor & QCOW2_OFFSET_MASK;

    if (c->mends || !walk->table->active) {
        return;
    }
    c->result->allocated_clusters++;
    if (entry.descriptor & QCOW2_COMPRESSED) {
        c->result->compressed_clusters++;
        c->result->fragmented_clusters++;
        return;
    }
    if (walk->next_host && walk->next_host != host) {
        c->result->fragmented_clusters++;
    }
    walk->next_host = host + c->q->cluster_size;
}

static int count_targets(struct check *c, const struct l2_walk *walk, struct qcow2_entry entry)
{
    uint64_t offset = entry.descriptor & QCOW2_OFFSET_MASK, bytes = c->q->cluster_size;
    int status = 0;

    if (c->q->has_data_file) {
        return 0; /* clusters in the data file have no refcounts */
    }
    if (entry.descriptor & QCOW2_COMPRESSED) {
        qcow2_compressed_range(c->q, entry.descriptor, &offset, &bytes);
    }
    uint64_t last = (offset + bytes - 1) >> c->q->cluster_bits;
    for (uint64_t cluster = offset >> c->q->cluster_bits; status == 0 && cluster <= last;
         cluster++) {
        status = check_counts_add(c->counts, cluster, (int64_t)walk->weight);
    }
    return status;
}

static void report_l2_entry(struct check *c, uint64_t guest, struct qcow2_entry entry,
                            const struct l2_walk *walk, const struct check_verdict *verdict)
{
    g_autofree char *where = walk->table->active
                                 ? g_strdup_printf("of the disk's offset %" PRIu64, guest)
                                 : g_strdup_printf("of a snapshot, offset %" PRIu64, guest);

    check_report(c, CHECK_CORRUPTION, "The L2 entry 0x%" PRIx64 " %s %s%s%s", entry.descriptor,
                 where, verdict->problem, c->mends ? "; " : "", c->mends ? verdict->remedy : "");
    c->bad_entries = true;
    if (!c->mends) {
        c->lost_references |= verdict->lost;
    } else if (verdict->lost && !c->q->data_file_is_raw) {
        c->clusters_lost++;
    }
}

/* Entry at a word of the table in c->buffer. */
static int look_at_l2_entry(struct check *c, struct l2_walk *walk, uint64_t at)
{
    uint64_t *words = (uint64_t *)c->buffer + at;
    bool is_extended = c->q->has_extended_l2;
    struct qcow2_entry entry = {be64toh(words[0]), is_extended ? be64toh(words[1]) : 0};
    uint64_t guest =
        check_table_guest(c, walk->table) + (at / c->q->entry_words << c->q->cluster_bits);
    struct check_verdict verdict;

    check_judge_l2(c, guest, entry, &verdict);
    if (verdict.problem) {
        report_l2_entry(c, guest, entry, walk, &verdict);
        if (c->mends) {
            words[0] = htobe64(verdict.fixed.descriptor);
            if (is_extended) {
                words[1] = htobe64(verdict.fixed.bitmap);
            }
            walk->first = MIN_OF(walk->first, at);
            walk->end = at + c->q->entry_words;
        }
    }
    if (!(verdict.fixed.descriptor & QCOW2_COMPRESSED) &&
        !qcow2_has_host(c->q, verdict.fixed.descriptor)) {
        return 0;
    }
    count_use(c, walk, verdict.fixed);
    return count_targets(c, walk, verdict.fixed);
}

static void note_no_table(struct check *c, const struct check_table *table)
{
    uint64_t *offset = g_new(uint64_t, 1);

    *offset = table->offset;
    g_hash_table_add(c->not_tables, offset);
    check_report(c, CHECK_CORRUPTION,
                 "At offset %" PRIu64 " there should be an L2 table, but most of what is there is "
                 "no entry of one; it belongs to the offset %" PRIu64 " of the disk%s",
                 table->offset, check_table_guest(c, table), table->active ? "" : " in a snapshot");
    c->bad_entries = true;
    c->lost_references = true;
}

static int walk_l2(struct check *c, const struct check_table *table)
{
    uint64_t words = c->q->cluster_size / sizeof(uint64_t);
    struct l2_walk walk = {
        .table = table,
        .weight = check_counts_get(c->counts, table->offset >> c->q->cluster_bits),
        .first = words,
    };
    int status = 0;

    if (check_is_hole(c, table->offset, c->q->cluster_size) ||
        !check_read(c, c->buffer, c->q->cluster_size, table->offset, "an L2 table")) {
        return 0;
    }
    if (!c->mends && check_is_no_table(c, (const uint64_t *)c->buffer)) {
        note_no_table(c, table);
        return 0;
    }
    for (uint64_t at = 0; status == 0 && at < words; at += c->q->entry_words) {
        if (((const uint64_t *)c->buffer)[at] || c->q->has_extended_l2) {
            status = look_at_l2_entry(c, &walk, at);
        }
    }
    if (status == 0 && walk.first < walk.end) {
        status = check_write(c, (uint64_t *)c->buffer + walk.first,
                             (walk.end - walk.first) * sizeof(uint64_t),
                             table->offset + walk.first * sizeof(uint64_t));
    }
    return status;
}

static int walk_l2_tables(struct check *c)
{
    int status = 0;

    for (guint i = 0; status == 0 && i < c->tables->len; i++) {
        status = check_step(c, 1);
        if (status == 0) {
            status = walk_l2(c, &g_array_index(c->tables, struct check_table, i));
        }
    }
    return status;
}

/* ---- What the header names ------------------------------------------------------------------ */

static int claim_header(struct check *c)
{
    bool clashes;

    return check_claim(c, 0, c->q->cluster_size, CHECK_KIND_HEADER, &clashes);
}

/* ("Full disk encryption header pointer") */
static int claim_encryption_header(struct check *c)
{
    const GArray *unknown = c->q->header.unknown;
    bool clashes;

    for (guint i = 0; i < unknown->len; i++) {
        const struct qcow2_extension *extension =
            &g_array_index(unknown, struct qcow2_extension, i);
        uint64_t place[2];

        if (extension->type != QCOW2_EXTENSION_ENCRYPTION || extension->bytes != sizeof(place)) {
            continue;
        }
        memcpy(place, extension->data, sizeof(place));
        uint64_t offset = be64toh(place[0]), bytes = be64toh(place[1]);
        if (!check_is_place(c, offset) || !check_in_file(c, offset, bytes)) {
            check_found(c, CHECK_CORRUPTION, "The encryption header is not inside the file");
            continue;
        }
        return check_claim(c, offset, bytes, CHECK_KIND_ENCRYPTION, &clashes);
    }
    return 0;
}

static int claim_active_l1(struct check *c)
{
    uint64_t offset = c->q->header.l1_offset;
    uint64_t bytes = (uint64_t)c->q->header.l1_size * sizeof(uint64_t);
    bool clashes = false;

    if (!bytes) {
        return 0;
    }
    if (!check_in_file(c, offset, bytes)) {
        check_found(c, CHECK_ERROR,
                    "The active L1 table (offset %" PRIu64 ") is not inside the "
                    "file, which seems to have been cut off",
                    offset);
        c->lost_references = true;
        return -ENODATA;
    }
    int status = check_claim(c, offset, bytes, CHECK_KIND_L1, &clashes);
    if (status == 0 && clashes) {
        check_found(c, CHECK_ERROR, "The active L1 table is where another table is");
        c->lost_references = true;
        status = -ENODATA;
    }
    return status;
}

int check_references(struct check *c)
{
    int status = claim_header(c);

    if (status == 0) {
        status = claim_encryption_header(c);
    }
    if (status == 0) {
        status = claim_active_l1(c);
    }
    if (status == 0) {
        status = check_snapshot_table(c);
    }
    if (status == 0) {
        status = check_bitmap_tables(c);
    }
    if (status == 0) {
        status = check_refcount_table(c);
    }
    if (status == 0) {
        status = walk_l1_tables(c);
    }
    if (status == 0) {
        c->total += c->tables->len;
        status = check_bitmap_data(c);
    }
    if (status == 0) {
        status = walk_l2_tables(c);
    }
    return status;
}
