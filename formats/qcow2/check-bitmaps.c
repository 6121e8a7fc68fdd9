/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2 check: persistent bitmaps ("Bitmaps").
 *
 * Bitmaps are an aid to backups. If their directory cannot be used, a repair drops all of them, and
 * one whose table cannot be found is dropped alone; what one has lost of its contents counts as
 * changed.
 */
#include <inttypes.h>

#include "block/cleanup.h"
#include "formats/qcow2/check-internal.h"

/* Bitmap tables are read in pieces of this many entries. */
#define TABLE_PIECE UINT64_C(8192)

/* Bitmap table entries ("Bitmap table"). */
#define ALL_ONES UINT64_C(1)
#define RESERVED (~(QCOW2_OFFSET_MASK | ALL_ONES))

/* In the header: autoclear_features. */
#define HEADER_AT_AUTOCLEAR 88

/* ---- Where they are ------------------------------------------------------------------------- */

static void give_up(struct check *c, const char *problem)
{
    check_found(c, CHECK_CORRUPTION, "The image's bitmaps cannot be used: %s", problem);
    c->bad_bitmaps = true;
    c->lost_references = true;
}

static int claim_directory(struct check *c)
{
    const struct qcow2_header *header = &c->q->header;
    bool clashes = false;

    if (!check_is_place(c, header->bitmap_directory_offset) ||
        !check_in_file(c, header->bitmap_directory_offset, header->bitmap_directory_bytes)) {
        give_up(c, "their directory is beyond the end of the file");
        return 0;
    }
    int status = check_claim(c, header->bitmap_directory_offset, header->bitmap_directory_bytes,
                             CHECK_KIND_BITMAP_DIRECTORY, &clashes);
    if (clashes) {
        give_up(c, "their directory is where another table is");
    }
    return status;
}

/* One that is in use may be of another length than the disk. */
static bool is_of_disk_length(const struct check *c, const struct qcow2_bitmap *bitmap)
{
    uint64_t granules = div_round_up(c->q->header.size, UINT64_C(1) << bitmap->granularity_bits);
    uint64_t clusters = div_round_up(div_round_up(granules, 8), c->q->cluster_size);

    return bitmap->flags & QCOW2_BITMAP_IN_USE || bitmap->table_size == clusters;
}

/* What is wrong with a bitmap; if nothing is, its table is counted. */
static int claim_table(struct check *c, const struct qcow2_bitmap *bitmap, const char **problem)
{
    uint64_t bytes = (uint64_t)bitmap->table_size * sizeof(uint64_t);
    bool clashes = false;

    *problem = bitmap->problem;
    if (!*problem && !is_of_disk_length(c, bitmap)) {
        *problem = "it is not as long as the disk";
    }
    if (!*problem && (!check_is_place(c, bitmap->table_offset) ||
                      !check_in_file(c, bitmap->table_offset, bytes))) {
        *problem = "its table is not aligned, or beyond the end of the file";
    }
    if (*problem) {
        return 0;
    }
    int status = check_claim(c, bitmap->table_offset, bytes, CHECK_KIND_BITMAP_TABLE, &clashes);
    *problem = clashes ? "its table is where another table is" : NULL;
    return status;
}

/* Those that cannot be kept leave the array. */
static int claim_tables(struct check *c)
{
    guint i = 0;

    for (unsigned number = 1; i < c->bitmaps->len; number++) {
        const struct qcow2_bitmap *bitmap = &g_array_index(c->bitmaps, struct qcow2_bitmap, i);
        const char *problem;
        int status = claim_table(c, bitmap, &problem);

        if (status < 0) {
            return status;
        }
        if (!problem) {
            i++;
            continue;
        }
        check_report(c, CHECK_CORRUPTION, "Bitmap number %u ('%s') cannot be used: %s%s", number,
                     bitmap->name, problem, c->mends ? "; dropped" : "");
        c->bad_bitmap = true;
        c->lost_references |= !c->mends;
        g_array_remove_index(c->bitmaps, i);
    }
    return 0;
}

int check_bitmap_tables(struct check *c)
{
    g_autoptr(GError) error = NULL;

    if (!c->q->header.bitmap_count) {
        if (c->q->header.bitmaps_are_damaged) {
            give_up(c, "the header says that there are some, but not where");
        }
        return 0;
    }
    int status = claim_directory(c);
    if (status < 0 || c->bad_bitmaps) {
        return status;
    }
    c->bitmaps = qcow2_bitmaps_read_all(c->q, &error);
    if (!c->bitmaps) {
        give_up(c, error->message);
        return 0;
    }
    return claim_tables(c);
}

/* ---- What they refer to --------------------------------------------------------------------- */

/* What is wrong with an entry; *fixed is what it should be. */
static const char *judge(struct check *c, uint64_t entry, uint64_t *fixed)
{
    uint64_t offset = entry & QCOW2_OFFSET_MASK;

    *fixed = ALL_ONES;
    if (offset && !check_is_place(c, offset)) {
        return "refers to a cluster that is not aligned, or beyond the end of the file";
    }
    if (offset && check_counts_kind(c->counts, offset >> c->q->cluster_bits) != CHECK_KIND_DATA) {
        return "refers to a cluster where a table is";
    }
    *fixed = entry & ~(RESERVED | (offset ? ALL_ONES : 0));
    return *fixed != entry ? "has reserved bits set" : NULL;
}

static int look_at_entry(struct check *c, const struct qcow2_bitmap *bitmap, uint64_t index,
                         uint64_t entry)
{
    uint64_t fixed;
    const char *problem = judge(c, entry, &fixed);
    bool lost = problem && !(fixed & QCOW2_OFFSET_MASK) && entry & QCOW2_OFFSET_MASK;
    int status = 0;

    if (problem) {
        check_report(c, CHECK_CORRUPTION,
                     "Entry %" PRIu64 " (0x%" PRIx64 ") of the table of bitmap '%s' %s%s", index,
                     entry, bitmap->name, problem,
                     !c->mends ? ""
                     : lost    ? "; all of it counts as changed"
                               : "; cleared");
        c->bad_entries = true;
        c->lost_references |= lost && !c->mends;
        if (c->mends) {
            uint64_t word = htobe64(fixed);

            status =
                check_write(c, &word, sizeof(word), bitmap->table_offset + index * sizeof(word));
        }
    }
    if (status == 0 && fixed & QCOW2_OFFSET_MASK) {
        status = check_counts_add(c->counts, fixed >> c->q->cluster_bits, 1);
    }
    return status;
}

static int walk_table(struct check *c, const struct qcow2_bitmap *bitmap)
{
    g_autofree uint64_t *words = g_new(uint64_t, TABLE_PIECE);
    int status = 0;

    for (uint64_t start = 0; status == 0 && start < bitmap->table_size; start += TABLE_PIECE) {
        uint64_t count = MIN_OF(TABLE_PIECE, bitmap->table_size - start);
        uint64_t offset = bitmap->table_offset + start * sizeof(*words);

        status = check_step(c, 0);
        if (status < 0 || check_is_hole(c, offset, count * sizeof(*words)) ||
            !check_read(c, words, count * sizeof(*words), offset, "a bitmap table")) {
            continue;
        }
        for (uint64_t i = 0; status == 0 && i < count; i++) {
            if (words[i]) {
                status = look_at_entry(c, bitmap, start + i, be64toh(words[i]));
            }
        }
    }
    return status;
}

int check_bitmap_data(struct check *c)
{
    int status = 0;

    for (guint i = 0; status == 0 && c->bitmaps && !c->bad_bitmaps && i < c->bitmaps->len; i++) {
        status = walk_table(c, &g_array_index(c->bitmaps, struct qcow2_bitmap, i));
    }
    return status;
}

/* ---- Dropping ------------------------------------------------------------------------------- */

int check_bitmaps_drop(struct check *c)
{
    struct qcow2 *q = c->q;
    SCOPE_LOCK(&q->header_lock);
    struct qcow2_header before = q->header;

    q->header.autoclear &= ~(uint64_t)QCOW2_AUTOCLEAR_BITMAPS;
    q->header.bitmap_count = 0;
    q->header.bitmaps_are_damaged = false;
    int status =
        qcow2_header_write_fields(q, HEADER_AT_AUTOCLEAR, HEADER_AT_AUTOCLEAR + sizeof(uint64_t));
    if (status < 0) {
        q->header = before;
        return status;
    }
    qcow2_area_set(q, QCOW2_AREA_BITMAPS, 0, 0);
    check_report(c, CHECK_CORRUPTION, "The image's bitmaps cannot be used; all are dropped");
    return 0;
}

int check_bitmaps_reserve(struct check *c)
{
    if (!c->bad_bitmap || !c->bitmaps->len) {
        return 0;
    }
    for (guint i = 0; i < c->bitmaps->len; i++) {
        qcow2_bitmap_encode(c->bitmap_directory,
                            &g_array_index(c->bitmaps, struct qcow2_bitmap, i));
    }
    return check_reserve(c, qcow2_clusters(c->q, c->bitmap_directory->len),
                         &c->bitmap_directory_at);
}

int check_bitmaps_replace(struct check *c)
{
    struct qcow2 *q = c->q;
    SCOPE_LOCK(&q->header_lock);
    struct qcow2_header before = q->header;
    int status = 0;

    if (!c->bad_bitmap) {
        return 0;
    }
    if (c->bitmaps->len) {
        status = check_write(c, c->bitmap_directory->data, c->bitmap_directory->len,
                             c->bitmap_directory_at);
    }
    if (status == 0) {
        status = block_node_flush(q->file);
    }
    if (status == 0) {
        q->header.bitmap_count = c->bitmaps->len;
        q->header.bitmap_directory_offset = c->bitmap_directory_at;
        q->header.bitmap_directory_bytes = c->bitmap_directory->len;
        if (!c->bitmaps->len) {
            q->header.autoclear &= ~(uint64_t)QCOW2_AUTOCLEAR_BITMAPS;
        }
        status = qcow2_header_write(q, NULL);
    }
    if (status < 0) {
        q->header = before;
    }
    return status;
}
