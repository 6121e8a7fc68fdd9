/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2 check: what is wrong with an entry of an L1 or L2 table, and what it should be ("Cluster
 * mapping", "Extended L2 Entries").
 *
 * What an entry refers to is given up only if it cannot be there: then the data is lost anyway.
 */
#include "block/checked.h"
#include "formats/qcow2/check-internal.h"

/* A table may have so many impossible entries before it is doubted. */
#define DOUBTS_MIN 8

/* An offset so many times the file's length was never one of this file. */
#define FAR_BEYOND_SHIFT 10

/* ---- L1 ------------------------------------------------------------------------------------- */

void check_judge_l1(const struct check *c, uint64_t entry, struct check_verdict *verdict)
{
    uint64_t offset = entry & QCOW2_OFFSET_MASK;

    *verdict = (struct check_verdict){.fixed.descriptor = entry};
    if (!offset) {
        if (entry) {
            verdict->problem = "has no L2 table, but bits that belong to one";
            verdict->remedy = "they are cleared";
            verdict->fixed.descriptor = 0;
        }
    } else if (!check_is_place(c, offset)) {
        verdict->lost = true;
        verdict->problem = is_aligned(offset, c->q->cluster_size)
                               ? "refers to an L2 table beyond the end of the file"
                               : "refers to an L2 table that is not aligned to a cluster";
    } else if (entry & QCOW2_L1_RESERVED) {
        verdict->problem = "has reserved bits set";
        verdict->remedy = "they are cleared";
        verdict->fixed.descriptor = entry & ~QCOW2_L1_RESERVED;
    }
    if (verdict->lost) {
        verdict->remedy = "it becomes unallocated";
        verdict->fixed.descriptor = 0;
    }
}

/* ---- L2: what is lost ----------------------------------------------------------------------- */

/* An entry whose data is lost reads as zeroes where the format can say so. */
static void lose(const struct check *c, uint64_t guest, struct qcow2_entry entry,
                 struct check_verdict *verdict, const char *problem)
{
    const struct qcow2 *q = c->q;
    uint64_t lost = entry.descriptor & QCOW2_COMPRESSED ? UINT32_MAX : (uint32_t)entry.bitmap;

    verdict->problem = problem;
    verdict->lost = true;
    if (q->data_file_is_raw) {
        /* The data file is right by itself: what it has there is the disk's data. */
        verdict->fixed.descriptor = guest | QCOW2_COPIED;
        verdict->fixed.bitmap = q->has_extended_l2 ? UINT32_MAX : 0;
        verdict->remedy = "it refers to its place in the data file now";
    } else if (q->has_extended_l2) {
        verdict->fixed.descriptor = 0;
        verdict->fixed.bitmap = ((entry.bitmap >> 32) | lost) << 32;
        verdict->remedy = "its data is lost and reads as zeroes";
    } else if (q->header.version >= 3) {
        verdict->fixed.descriptor = QCOW2_ZERO;
        verdict->remedy = "its data is lost and reads as zeroes";
    } else {
        verdict->fixed.descriptor = 0;
        verdict->remedy = "its data is lost and becomes unallocated";
    }
}

/* A problem of the entry's form, which a change of some bits mends. */
static void note(struct check_verdict *verdict, const char *problem, const char *remedy)
{
    if (!verdict->problem) {
        verdict->problem = problem;
        verdict->remedy = remedy;
    }
}

/* The kind of the first table among these clusters, or data. */
static enum check_kind kind_within(struct check *c, uint64_t offset, uint64_t bytes)
{
    uint64_t last = (offset + bytes - 1) >> c->q->cluster_bits;

    for (uint64_t cluster = offset >> c->q->cluster_bits; cluster <= last; cluster++) {
        enum check_kind kind = check_counts_kind(c->counts, cluster);

        if (kind != CHECK_KIND_DATA) {
            return kind;
        }
    }
    return CHECK_KIND_DATA;
}

static const char *clash_text(enum check_kind kind)
{
    static const char *const texts[] = {
        [CHECK_KIND_HEADER] = "refers to data where the header is",
        [CHECK_KIND_ENCRYPTION] = "refers to data where the encryption header is",
        [CHECK_KIND_L1] = "refers to data where the active L1 table is",
        [CHECK_KIND_SNAPSHOT_TABLE] = "refers to data where the snapshot table is",
        [CHECK_KIND_SNAPSHOT_L1] = "refers to data where a snapshot's L1 table is",
        [CHECK_KIND_BITMAP_DIRECTORY] = "refers to data where the bitmap directory is",
        [CHECK_KIND_BITMAP_TABLE] = "refers to data where a bitmap table is",
        [CHECK_KIND_L2] = "refers to data where an L2 table is",
    };

    return texts[kind];
}

/* ---- L2: compressed clusters ---------------------------------------------------------------- */

/* Compressed data begins inside the file, but what its last sectors say may be too much. */
static bool compressed_is_place(const struct check *c, uint64_t offset, uint64_t bytes)
{
    uint64_t length = block_node_length(c->q->file);

    return offset < length &&
           range_within(offset, bytes, MIN_OF(length + c->q->cluster_size - 1, QCOW2_HOST_MAX));
}

static void judge_compressed(struct check *c, uint64_t guest, struct qcow2_entry entry,
                             struct check_verdict *verdict)
{
    uint64_t offset, bytes;

    qcow2_compressed_range(c->q, entry.descriptor, &offset, &bytes);
    if (c->q->has_data_file) {
        lose(c, guest, entry, verdict, "is compressed, which cannot be with a data file");
        return;
    }
    if (!compressed_is_place(c, offset, bytes)) {
        lose(c, guest, entry, verdict, "refers to compressed data beyond the end of the file");
        return;
    }
    enum check_kind kind = kind_within(c, offset, bytes);
    if (kind != CHECK_KIND_DATA) {
        lose(c, guest, entry, verdict, clash_text(kind));
        return;
    }
    if (entry.descriptor & QCOW2_COPIED) {
        note(verdict, "is compressed, but marked as to be overwritten in place",
             "the mark is taken away");
        verdict->fixed.descriptor &= ~QCOW2_COPIED;
    }
    if (entry.bitmap) {
        note(verdict, "is compressed, but has a subcluster bitmap", "the bitmap is cleared");
        verdict->fixed.bitmap = 0;
    }
}

/* ---- L2: standard clusters ------------------------------------------------------------------ */

static uint64_t reserved_bits(const struct check *c)
{
    uint64_t reserved = ~(QCOW2_OFFSET_MASK | QCOW2_COPIED | QCOW2_COMPRESSED);

    return c->q->header.version >= 3 && !c->q->has_extended_l2 ? reserved & ~QCOW2_ZERO : reserved;
}

/* Whether data would be read from the host cluster. */
static bool needs_host(const struct check *c, struct qcow2_entry entry)
{
    return c->q->has_extended_l2 ? (uint32_t)entry.bitmap != 0 : !(entry.descriptor & QCOW2_ZERO);
}

static const char *host_problem(struct check *c, uint64_t guest, uint64_t host)
{
    if (c->q->has_data_file) {
        return host == guest ? NULL : "is at another place in the data file than on the disk";
    }
    if (!check_is_place(c, host)) {
        return is_aligned(host, c->q->cluster_size) ? "refers to data beyond the end of the file"
                                                    : "refers to data that is not aligned";
    }
    enum check_kind kind = kind_within(c, host, c->q->cluster_size);
    return kind == CHECK_KIND_DATA ? NULL : clash_text(kind);
}

static void judge_host(struct check *c, uint64_t guest, struct qcow2_entry entry,
                       struct check_verdict *verdict)
{
    const char *problem = host_problem(c, guest, entry.descriptor & QCOW2_OFFSET_MASK);

    if (!problem) {
        return;
    }
    if (c->q->has_data_file) {
        /* Clusters have a fixed place there. */
        verdict->problem = problem;
        verdict->remedy = "it refers to its place in the data file now";
        verdict->fixed.descriptor = (entry.descriptor & ~QCOW2_OFFSET_MASK) | guest | QCOW2_COPIED;
    } else if (needs_host(c, entry)) {
        lose(c, guest, entry, verdict, problem);
    } else {
        verdict->problem = problem;
        verdict->remedy = "the space kept for it is given up; it reads as before";
        verdict->fixed.descriptor &= ~(QCOW2_OFFSET_MASK | QCOW2_COPIED);
    }
}

static void judge_standard(struct check *c, uint64_t guest, struct qcow2_entry entry,
                           struct check_verdict *verdict)
{
    uint32_t both = (uint32_t)entry.bitmap & (uint32_t)(entry.bitmap >> 32);

    if (entry.descriptor & reserved_bits(c)) {
        note(verdict, "has reserved bits set", "they are cleared");
        entry.descriptor &= ~reserved_bits(c);
        verdict->fixed = entry;
    }
    if (both) {
        note(verdict, "has subclusters that are both allocated and zero",
             "what is allocated there is kept");
        entry.bitmap &= ~((uint64_t)both << 32);
        verdict->fixed = entry;
    }
    if (qcow2_has_host(c->q, entry.descriptor)) {
        judge_host(c, guest, entry, verdict);
    } else if ((uint32_t)entry.bitmap) {
        lose(c, guest, entry, verdict, "has allocated subclusters, but no host cluster");
    }
}

void check_judge_l2(struct check *c, uint64_t guest, struct qcow2_entry entry,
                    struct check_verdict *verdict)
{
    *verdict = (struct check_verdict){.fixed = entry};
    if (entry.descriptor & QCOW2_COMPRESSED) {
        judge_compressed(c, guest, entry, verdict);
    } else {
        judge_standard(c, guest, entry, verdict);
    }
}

/* ---- Whole tables --------------------------------------------------------------------------- */

/* An entry of a form that nobody writes; one beyond the file's end may have been cut off. */
static bool is_strange(const struct check *c, uint64_t descriptor)
{
    uint64_t length = block_node_length(c->q->file);
    uint64_t far = length >> (63 - FAR_BEYOND_SHIFT) ? QCOW2_HOST_MAX : length << FAR_BEYOND_SHIFT;
    uint64_t offset = descriptor & QCOW2_OFFSET_MASK, bytes;

    if (descriptor & QCOW2_COMPRESSED) {
        qcow2_compressed_range(c->q, descriptor, &offset, &bytes);
        return descriptor & QCOW2_COPIED || offset >= far;
    }
    return descriptor & reserved_bits(c) || !is_aligned(offset, c->q->cluster_size) ||
           (!c->q->has_data_file && offset >= far);
}

bool check_is_no_table(struct check *c, const uint64_t *words)
{
    uint64_t count = c->q->cluster_size / sizeof(*words), used = 0, strange = 0;

    for (uint64_t i = 0; i < count; i += c->q->entry_words) {
        used += words[i] != 0;
        strange += words[i] && is_strange(c, be64toh(words[i]));
    }
    return strange > DOUBTS_MIN && strange > used / 2;
}
