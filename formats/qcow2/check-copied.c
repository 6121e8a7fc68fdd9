/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2 check: the flag that a cluster is used once only and may be overwritten in place (bit 63 of
 * entries that the active L1 table leads to; "Cluster mapping").
 *
 * It is right if it agrees with the refcount in the file. When a repair has made that refcount 1,
 * the flag is set with it. It is never trusted where the refcount is not known.
 */
#include <inttypes.h>

#include "formats/qcow2/check-internal.h"

/* L1 tables are read in pieces of this many entries. */
#define L1_PIECE UINT64_C(8192)

/* Whether the flag of an entry for this cluster is wrong. *caused: only because of the repair. */
static bool is_wrong(struct check *c, uint64_t entry, uint64_t cluster, bool *caused)
{
    enum check_stored stored = check_counts_stored(c->counts, cluster);
    bool is_one = stored == CHECK_STORED_ONE || stored == CHECK_STORED_ONE_NOW;

    *caused = stored == CHECK_STORED_ONE_NOW;
    return stored != CHECK_STORED_UNKNOWN && is_one != !!(entry & QCOW2_COPIED);
}

/* Correct an entry if it is to be; true if it was. */
static bool correct(struct check *c, uint64_t *entry, uint64_t cluster, bool all, const char *where,
                    uint64_t number)
{
    bool caused;

    if (!is_wrong(c, *entry, cluster, &caused)) {
        return false;
    }
    bool changes = c->mends && (all || caused);
    if (!c->mends || (changes && !caused)) {
        check_report(c, CHECK_CORRUPTION,
                     "%s %" PRIu64 " (0x%" PRIx64 ") %s%s marked as to be overwritten in place, "
                     "contrary to the refcount of its target",
                     where, number, *entry, c->mends ? "was" : "is",
                     *entry & QCOW2_COPIED ? "" : " not");
    }
    if (changes) {
        *entry ^= QCOW2_COPIED;
    }
    return changes;
}

static int correct_l1_piece(struct check *c, uint64_t *words, uint64_t start, uint64_t count,
                            bool all)
{
    uint64_t first = count, end = 0;

    for (uint64_t i = 0; i < count; i++) {
        uint64_t entry = be64toh(words[i]), offset = entry & QCOW2_OFFSET_MASK;

        if (check_is_place(c, offset) &&
            check_counts_kind(c->counts, offset >> c->q->cluster_bits) == CHECK_KIND_L2 &&
            correct(c, &entry, offset >> c->q->cluster_bits, all,
                    "Entry of the active L1 table number", start + i)) {
            words[i] = htobe64(entry);
            first = MIN_OF(first, i);
            end = i + 1;
        }
    }
    return first < end ? check_write(c, words + first, (end - first) * sizeof(*words),
                                     c->q->header.l1_offset + (start + first) * sizeof(*words))
                       : 0;
}

static int correct_l1(struct check *c, bool all)
{
    g_autofree uint64_t *words = g_new(uint64_t, L1_PIECE);
    int status = 0;

    for (uint64_t start = 0; status == 0 && start < c->q->header.l1_size; start += L1_PIECE) {
        uint64_t count = MIN_OF(L1_PIECE, c->q->header.l1_size - start);
        uint64_t offset = c->q->header.l1_offset + start * sizeof(*words);

        if (!check_is_hole(c, offset, count * sizeof(*words)) &&
            check_read(c, words, count * sizeof(*words), offset, "the active L1 table")) {
            status = correct_l1_piece(c, words, start, count, all);
        }
    }
    return status;
}

/* The host cluster whose refcount matters, if the entry has one and is valid. */
static bool has_target(struct check *c, uint64_t guest, struct qcow2_entry entry, uint64_t *host)
{
    struct check_verdict verdict;

    if (entry.descriptor & QCOW2_COMPRESSED || !qcow2_has_host(c->q, entry.descriptor)) {
        return false;
    }
    check_judge_l2(c, guest, entry, &verdict);
    *host = verdict.fixed.descriptor & QCOW2_OFFSET_MASK;
    return !verdict.lost && qcow2_has_host(c->q, verdict.fixed.descriptor);
}

/* With a data file every cluster that has a place has it for itself. */
static bool correct_data_file(struct check *c, uint64_t *entry, bool all, uint64_t guest)
{
    bool changes = c->mends && all;

    if (*entry & QCOW2_COPIED) {
        return false;
    }
    if (!c->mends || changes) {
        check_report(c, CHECK_CORRUPTION,
                     "The L2 entry of the disk's offset %" PRIu64 " (0x%" PRIx64 ") %s not marked "
                     "as to be overwritten in place, as all are with a data file",
                     guest, *entry, c->mends ? "was" : "is");
    }
    if (changes) {
        *entry |= QCOW2_COPIED;
    }
    return changes;
}

static int correct_l2(struct check *c, const struct check_table *table, bool all)
{
    uint64_t *words = (uint64_t *)c->buffer, count = c->q->cluster_size / sizeof(*words);
    uint64_t first = count, end = 0;

    for (uint64_t at = 0; at < count; at += c->q->entry_words) {
        uint64_t guest =
            check_table_guest(c, table) + (at / c->q->entry_words << c->q->cluster_bits);
        struct qcow2_entry entry = {be64toh(words[at]),
                                    c->q->has_extended_l2 ? be64toh(words[at + 1]) : 0};
        uint64_t host;

        if (!has_target(c, guest, entry, &host)) {
            continue;
        }
        if (c->q->has_data_file ? correct_data_file(c, &entry.descriptor, all, guest)
                                : correct(c, &entry.descriptor, host >> c->q->cluster_bits, all,
                                          "The L2 entry of the disk's offset", guest)) {
            words[at] = htobe64(entry.descriptor);
            first = MIN_OF(first, at);
            end = at + 1;
        }
    }
    return first < end ? check_write(c, words + first, (end - first) * sizeof(*words),
                                     table->offset + first * sizeof(*words))
                       : 0;
}

static int look_at_table(struct check *c, const struct check_table *table, bool all)
{
    int status = check_step(c, 1);

    if (status < 0 || check_is_hole(c, table->offset, c->q->cluster_size) ||
        !check_read(c, c->buffer, c->q->cluster_size, table->offset, "an L2 table")) {
        return status;
    }
    /* What is no table is not looked at more closely, and where it is looked for it is no more. */
    return g_hash_table_contains(c->not_tables, &table->offset) ? 0 : correct_l2(c, table, all);
}

int check_copied(struct check *c, bool all)
{
    int status = correct_l1(c, all);

    for (guint i = 0; status == 0 && i < c->tables->len; i++) {
        const struct check_table *table = &g_array_index(c->tables, struct check_table, i);

        if (table->active) {
            status = look_at_table(c, table, all);
        }
    }
    return status;
}
