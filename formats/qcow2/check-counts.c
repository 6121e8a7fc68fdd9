/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2: counts of references for a check. */
#include "formats/qcow2/check-counts.h"

#include <errno.h>

#include "block/align.h"

/* A cell: the count, what is stored, the kind. Counts that do not fit are in a table. */
#define COUNT_BITS   10
#define COUNT_LARGE  ((1u << COUNT_BITS) - 1)
#define STORED_SHIFT COUNT_BITS
#define STORED_MASK  (3u << STORED_SHIFT)
#define KIND_SHIFT   12
#define KIND_MASK    (15u << KIND_SHIFT)

/* What a page or a large count costs beside itself, roughly. */
#define OVERHEAD_BYTES 48

const char *const check_kind_names[] = {
    "data",
    "the header",
    "the encryption header",
    "the active L1 table",
    "the snapshot table",
    "a snapshot's L1 table",
    "the bitmap directory",
    "a bitmap table",
    "an L2 table",
};

struct large_count {
    uint64_t cluster;
    uint64_t count;
};

struct check_counts {
    GHashTable *pages; /* index to struct check_page */
    GHashTable *large; /* cluster to struct large_count */
    struct check_page *last;
    uint64_t budget;
    uint64_t end;
};

struct check_counts *check_counts_new(uint64_t budget)
{
    struct check_counts *counts = g_new0(struct check_counts, 1);

    counts->pages = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, free);
    counts->large = g_hash_table_new_full(g_int64_hash, g_int64_equal, NULL, g_free);
    counts->budget = budget;
    return counts;
}

void check_counts_free(struct check_counts *counts)
{
    g_hash_table_unref(counts->pages);
    g_hash_table_unref(counts->large);
    g_free(counts);
}

static bool spend(struct check_counts *counts, uint64_t bytes)
{
    if (counts->budget < bytes + OVERHEAD_BYTES) {
        return false;
    }
    counts->budget -= bytes + OVERHEAD_BYTES;
    return true;
}

static struct check_page *find_page(struct check_counts *counts, uint64_t cluster)
{
    uint64_t index = cluster >> CHECK_PAGE_BITS;

    if (!counts->last || counts->last->index != index) {
        struct check_page *page = g_hash_table_lookup(counts->pages, &index);

        if (!page) {
            return NULL;
        }
        counts->last = page;
    }
    return counts->last;
}

static struct check_page *make_page(struct check_counts *counts, uint64_t cluster)
{
    struct check_page *page = find_page(counts, cluster);

    if (page) {
        return page;
    }
    page = spend(counts, sizeof(*page)) ? calloc(1, sizeof(*page)) : NULL;
    if (page) {
        page->index = cluster >> CHECK_PAGE_BITS;
        g_hash_table_insert(counts->pages, &page->index, page);
        counts->last = page;
    }
    return page;
}

static uint16_t *cell_of(struct check_page *page, uint64_t cluster)
{
    return &page->cells[cluster & (CHECK_PAGE_CLUSTERS - 1)];
}

static uint64_t count_in(struct check_counts *counts, struct check_page *page, uint64_t cluster)
{
    unsigned count = *cell_of(page, cluster) & COUNT_LARGE;

    if (count < COUNT_LARGE) {
        return count;
    }
    struct large_count *large = g_hash_table_lookup(counts->large, &cluster);
    return large->count;
}

/* A count that was large once stays in the table. */
static bool store_large(struct check_counts *counts, uint64_t cluster, uint64_t count)
{
    struct large_count *large = g_hash_table_lookup(counts->large, &cluster);

    if (!large) {
        if (!spend(counts, sizeof(*large))) {
            return false;
        }
        large = g_new(struct large_count, 1);
        large->cluster = cluster;
        g_hash_table_insert(counts->large, &large->cluster, large);
    }
    large->count = count;
    return true;
}

int check_counts_add(struct check_counts *counts, uint64_t cluster, int64_t amount)
{
    struct check_page *page = make_page(counts, cluster);

    if (!page) {
        return -ENOMEM;
    }
    uint16_t *cell = cell_of(page, cluster);
    uint64_t count = count_in(counts, page, cluster) + (uint64_t)amount;
    bool is_large = (*cell & COUNT_LARGE) == COUNT_LARGE || count >= COUNT_LARGE;

    if (is_large && !store_large(counts, cluster, count)) {
        return -ENOMEM;
    }
    *cell = (uint16_t)((*cell & ~COUNT_LARGE) | (is_large ? COUNT_LARGE : count));
    counts->end = MAX_OF(counts->end, cluster + 1);
    return 0;
}

uint64_t check_counts_get(struct check_counts *counts, uint64_t cluster)
{
    struct check_page *page = find_page(counts, cluster);

    return page ? count_in(counts, page, cluster) : 0;
}

/* Bits of a cluster's cell; 0 where nothing has been counted. */
static unsigned bits_of(struct check_counts *counts, uint64_t cluster, unsigned mask)
{
    struct check_page *page = find_page(counts, cluster);

    return page ? *cell_of(page, cluster) & mask : 0;
}

static void set_bits(struct check_counts *counts, uint64_t cluster, unsigned mask, unsigned bits)
{
    struct check_page *page = find_page(counts, cluster);

    if (page) {
        uint16_t *cell = cell_of(page, cluster);

        *cell = (uint16_t)((*cell & ~mask) | bits);
    }
}

void check_counts_set_kind(struct check_counts *counts, uint64_t cluster, enum check_kind kind)
{
    set_bits(counts, cluster, KIND_MASK, (unsigned)kind << KIND_SHIFT);
}

enum check_kind check_counts_kind(struct check_counts *counts, uint64_t cluster)
{
    return (enum check_kind)(bits_of(counts, cluster, KIND_MASK) >> KIND_SHIFT);
}

void check_counts_set_stored(struct check_counts *counts, uint64_t cluster,
                             enum check_stored stored)
{
    set_bits(counts, cluster, STORED_MASK, (unsigned)stored << STORED_SHIFT);
}

enum check_stored check_counts_stored(struct check_counts *counts, uint64_t cluster)
{
    return (enum check_stored)(bits_of(counts, cluster, STORED_MASK) >> STORED_SHIFT);
}

uint64_t check_counts_end(const struct check_counts *counts)
{
    return counts->end;
}

static gint compare_pages(gconstpointer a, gconstpointer b)
{
    const struct check_page *left = *(const struct check_page *const *)a;
    const struct check_page *right = *(const struct check_page *const *)b;

    return left->index < right->index ? -1 : left->index > right->index;
}

GPtrArray *check_counts_pages(struct check_counts *counts)
{
    GPtrArray *pages = g_ptr_array_sized_new(g_hash_table_size(counts->pages));
    GHashTableIter iter;
    gpointer page;

    g_hash_table_iter_init(&iter, counts->pages);
    while (g_hash_table_iter_next(&iter, NULL, &page)) {
        g_ptr_array_add(pages, page);
    }
    g_ptr_array_sort(pages, compare_pages);
    return pages;
}
