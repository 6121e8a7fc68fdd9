/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2 check: the refcount table, its blocks, and refcounts against what was counted ("Host
 * cluster management").
 */
#include <inttypes.h>

#include "block/zero.h"
#include "formats/qcow2/check-internal.h"

/* The refcount table is read in pieces of this many entries. */
#define TABLE_PIECE UINT64_C(8192)

/* ---- The table ------------------------------------------------------------------------------ */

static void look_at_table_entry(struct check *c, uint64_t index, uint64_t entry)
{
    struct check_block block = {.index = index, .offset = entry & QCOW2_REFTABLE_MASK};
    const char *problem = NULL;

    if (!check_is_place(c, block.offset)) {
        problem = !block.offset ? "has reserved bits set"
                  : is_aligned(block.offset, c->q->cluster_size)
                      ? "refers to a block beyond the end of the file"
                      : "refers to a block that is not aligned to a cluster";
    } else {
        block.counted = block.usable = true;
        problem = entry != block.offset ? "has reserved bits set" : NULL;
    }
    if (problem) {
        check_found(c, CHECK_CORRUPTION,
                    "Entry %" PRIu64 " of the refcount table (0x%" PRIx64 ") %s", index, entry,
                    problem);
        c->needs_rebuild = true;
    }
    if (block.offset) {
        g_array_append_val(c->blocks, block);
    }
}

/* How much of the refcount table is inside the file. */
static uint64_t table_bytes(const struct check *c)
{
    uint64_t bytes = (uint64_t)c->q->header.reftable_clusters << c->q->cluster_bits;
    uint64_t end = c->file_clusters << c->q->cluster_bits;
    uint64_t offset = c->q->header.reftable_offset;

    return offset < end ? MIN_OF(bytes, end - offset) : 0;
}

int check_refcount_table(struct check *c)
{
    g_autofree uint64_t *words = g_new(uint64_t, TABLE_PIECE);
    uint64_t entries = table_bytes(c) / sizeof(*words);

    if (table_bytes(c) >> c->q->cluster_bits < c->q->header.reftable_clusters) {
        check_found(c, CHECK_CORRUPTION, "The refcount table is not inside the file");
        c->needs_rebuild = true;
    }
    for (uint64_t start = 0; start < entries; start += TABLE_PIECE) {
        uint64_t count = MIN_OF(TABLE_PIECE, entries - start);

        if (!check_read(c, words, count * sizeof(*words),
                        c->q->header.reftable_offset + start * sizeof(*words),
                        "the refcount table")) {
            continue;
        }
        for (uint64_t i = 0; i < count; i++) {
            if (words[i]) {
                look_at_table_entry(c, start + i, be64toh(words[i]));
            }
        }
    }
    c->total += c->blocks->len;
    return 0;
}

/* ---- Where they are ------------------------------------------------------------------------- */

static void report_clash(struct check *c, const char *what, uint64_t offset)
{
    check_found(c, CHECK_CORRUPTION,
                "At offset %" PRIu64 " of the file there should be %s, but "
                "%s is there, too",
                offset, what,
                check_kind_names[check_counts_kind(c->counts, offset >> c->q->cluster_bits)]);
    c->needs_rebuild = true;
    c->refcounts_in_the_way = true;
}

int check_refcount_places(struct check *c)
{
    uint64_t first = c->q->header.reftable_offset >> c->q->cluster_bits;
    uint64_t end = first + (table_bytes(c) >> c->q->cluster_bits);
    int status = 0;

    for (uint64_t cluster = first; status == 0 && cluster < end; cluster++) {
        if (check_counts_get(c->counts, cluster)) {
            report_clash(c, "the refcount table", cluster << c->q->cluster_bits);
        }
        status = check_counts_add(c->counts, cluster, 1);
        c->table_clusters++;
    }
    for (guint i = 0; status == 0 && i < c->blocks->len; i++) {
        struct check_block *block = &g_array_index(c->blocks, struct check_block, i);
        uint64_t cluster = block->offset >> c->q->cluster_bits;

        if (!block->counted) {
            continue;
        }
        if (check_counts_get(c->counts, cluster)) {
            report_clash(c, "a refcount block", block->offset);
            block->usable = false;
        }
        status = check_counts_add(c->counts, cluster, 1);
    }
    return status;
}

/* ---- Comparing ------------------------------------------------------------------------------ */

struct compare {
    struct check *c;
    bool raise, lower;
    GPtrArray *pages; /* of the counts, in order */
    guint next_page;
    uint64_t first_changed, end_changed; /* refcounts of the block at hand, by index in it */
};

/* What becomes of a refcount. */
static uint64_t corrected(const struct compare *compare, uint64_t stored, uint64_t counted)
{
    bool changes = stored < counted ? compare->raise : compare->lower;

    return changes ? MIN_OF(counted, check_refcount_max(compare->c)) : stored;
}

static void report_difference(struct check *c, uint64_t cluster, uint64_t stored, uint64_t counted,
                              uint64_t now)
{
    enum check_severity severity = stored < counted ? CHECK_CORRUPTION : CHECK_LEAK;
    uint64_t offset = cluster << c->q->cluster_bits;

    if (!c->mends || now != stored) {
        check_report(c, severity,
                     "The cluster at offset %" PRIu64 " is used %" PRIu64 " times, but its "
                     "refcount %s %" PRIu64 "%s",
                     offset, counted, c->mends ? "was" : "is", stored,
                     stored < counted && counted > check_refcount_max(c)
                         ? ", and refcounts of this image cannot be larger"
                         : "");
    }
}

static void compare_cluster(struct compare *compare, uint8_t *block, uint64_t in_block,
                            uint64_t cluster)
{
    struct check *c = compare->c;
    uint64_t stored = qcow2_refblock_get(block, c->q->header.refcount_order, in_block);
    uint64_t counted = check_counts_get(c->counts, cluster);
    uint64_t now = stored;

    if (stored != counted) {
        now = corrected(compare, stored, counted);
        report_difference(c, cluster, stored, counted, now);
    }
    if (now != stored) {
        qcow2_refblock_set(block, c->q->header.refcount_order, in_block, now);
        compare->first_changed = MIN_OF(compare->first_changed, in_block);
        compare->end_changed = in_block + 1;
    }
    check_counts_set_stored(c->counts, cluster,
                            now != 1      ? CHECK_STORED_OTHER
                            : stored != 1 ? CHECK_STORED_ONE_NOW
                                          : CHECK_STORED_ONE);
    if ((now || counted) && cluster < c->file_clusters) {
        c->end_cluster = MAX_OF(c->end_cluster, cluster + 1);
    }
}

/* Whether something has been counted from the next page on, before this one. */
static bool is_counted_before(const struct compare *compare, uint64_t end_page)
{
    const struct check_page *page = compare->next_page < compare->pages->len
                                        ? g_ptr_array_index(compare->pages, compare->next_page)
                                        : NULL;

    return page && page->index < end_page;
}

/* The next page if it is this one. */
static bool take_page(struct compare *compare, uint64_t index)
{
    if (compare->next_page >= compare->pages->len) {
        return false;
    }
    const struct check_page *page = g_ptr_array_index(compare->pages, compare->next_page);
    compare->next_page += page->index == index;
    return page->index == index;
}

static void compare_block(struct compare *compare, uint64_t index, uint8_t *block)
{
    const struct check *c = compare->c;
    unsigned order = c->q->header.refcount_order;
    uint64_t refcounts = UINT64_C(1) << check_block_bits(c);
    size_t page_bytes = (CHECK_PAGE_CLUSTERS << order) / 8;

    for (uint64_t at = 0; at < refcounts; at += CHECK_PAGE_CLUSTERS) {
        uint64_t cluster = (index << check_block_bits(c)) + at;
        bool is_counted = take_page(compare, cluster >> CHECK_PAGE_BITS);

        if (!is_counted &&
            buffer_is_zero(block + at / CHECK_PAGE_CLUSTERS * page_bytes, page_bytes)) {
            continue;
        }
        for (uint64_t i = 0; i < CHECK_PAGE_CLUSTERS; i++) {
            compare_cluster(compare, block, at + i, cluster + i);
        }
    }
}

/* A counted cluster without a refcount block. */
static void without_block(struct check *c, uint64_t cluster)
{
    uint64_t counted = check_counts_get(c->counts, cluster);

    if (counted) {
        check_found(c, CHECK_CORRUPTION,
                    "The cluster at offset %" PRIu64 " is used %" PRIu64
                    " times, but has no refcount",
                    cluster << c->q->cluster_bits, counted);
        c->needs_rebuild = true;
        c->end_cluster = MAX_OF(c->end_cluster, cluster + 1);
    }
}

/* The refcounts of its block are not known: nothing can be said about the cluster. */
static void with_unknown_block(struct check *c, uint64_t cluster)
{
    check_counts_set_stored(c->counts, cluster, CHECK_STORED_UNKNOWN);
    if (check_counts_get(c->counts, cluster)) {
        c->end_cluster = MAX_OF(c->end_cluster, cluster + 1);
    }
}

/* Take the pages before one in which something has been counted, and look at their clusters. */
static void take_pages_before(struct compare *compare, uint64_t end_page,
                              void (*look_at)(struct check *c, uint64_t cluster))
{
    for (; compare->next_page < compare->pages->len; compare->next_page++) {
        const struct check_page *page = g_ptr_array_index(compare->pages, compare->next_page);

        if (page->index >= end_page) {
            return;
        }
        for (uint64_t i = 0; i < CHECK_PAGE_CLUSTERS; i++) {
            look_at(compare->c, (page->index << CHECK_PAGE_BITS) + i);
        }
    }
}

static int write_changes(struct compare *compare, const struct check_block *block)
{
    struct check *c = compare->c;
    unsigned order = c->q->header.refcount_order;

    if (compare->first_changed >= compare->end_changed) {
        return 0;
    }
    uint64_t first = (compare->first_changed << order) / 8;
    uint64_t end = div_round_up(compare->end_changed << order, 8);
    return check_write(c, c->buffer + first, end - first, block->offset + first);
}

static int look_at_block(struct compare *compare, const struct check_block *block)
{
    struct check *c = compare->c;
    uint64_t page = block->index << check_block_bits(c) >> CHECK_PAGE_BITS;
    uint64_t end_page = (block->index + 1) << check_block_bits(c) >> CHECK_PAGE_BITS;
    int status = check_step(c, 1);

    if (status < 0) {
        return status;
    }
    take_pages_before(compare, page, without_block);
    if (block->usable && !is_counted_before(compare, end_page) &&
        check_is_hole(c, block->offset, c->q->cluster_size)) {
        return 0; /* a hostile image may have very many */
    }
    if (!block->usable ||
        !check_read(c, c->buffer, c->q->cluster_size, block->offset, "a refcount block")) {
        take_pages_before(compare, end_page, with_unknown_block);
        return 0;
    }
    compare->first_changed = UINT64_MAX;
    compare->end_changed = 0;
    compare_block(compare, block->index, c->buffer);
    return write_changes(compare, block);
}

int check_compare(struct check *c, bool raise, bool lower)
{
    g_autoptr(GPtrArray) pages = check_counts_pages(c->counts);
    struct compare compare = {.c = c, .raise = raise, .lower = lower, .pages = pages};
    int status = 0;

    for (guint i = 0; status == 0 && i < c->blocks->len; i++) {
        status = look_at_block(&compare, &g_array_index(c->blocks, struct check_block, i));
    }
    if (status == 0) {
        take_pages_before(&compare, UINT64_MAX, without_block);
    }
    return status;
}
