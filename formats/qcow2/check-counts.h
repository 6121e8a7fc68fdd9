/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How often each host cluster of an image is referred to, as a check finds it: two bytes for each
 * cluster, in pages that exist only where something is. So memory is in proportion to what tables
 * refer to, not to the length of a sparse file.
 */
#ifndef LIVEBLK_FORMATS_QCOW2_CHECK_COUNTS_H
#define LIVEBLK_FORMATS_QCOW2_CHECK_COUNTS_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/cleanup.h"

/* Clusters of a page: no more than a refcount block has, so that a page lies in one. */
#define CHECK_PAGE_BITS     6
#define CHECK_PAGE_CLUSTERS (UINT64_C(1) << CHECK_PAGE_BITS)

/* What a cluster holds. Refcount tables and blocks, which can be made anew, count as data. */
enum check_kind {
    CHECK_KIND_DATA,
    CHECK_KIND_HEADER,
    CHECK_KIND_ENCRYPTION,
    CHECK_KIND_L1,
    CHECK_KIND_SNAPSHOT_TABLE,
    CHECK_KIND_SNAPSHOT_L1,
    CHECK_KIND_BITMAP_DIRECTORY,
    CHECK_KIND_BITMAP_TABLE,
    CHECK_KIND_L2,
};
extern const char *const check_kind_names[];

/* What is known of a cluster's refcount in the file, after repairs. */
enum check_stored {
    CHECK_STORED_OTHER, /* not 1 */
    CHECK_STORED_ONE,
    CHECK_STORED_ONE_NOW, /* a repair made it so */
    CHECK_STORED_UNKNOWN,
};

struct check_page {
    uint64_t index;
    uint16_t cells[CHECK_PAGE_CLUSTERS];
};

struct check_counts;

/* budget: so many bytes at most; a hostile image may ask for more. */
struct check_counts *check_counts_new(uint64_t budget);
void check_counts_free(struct check_counts *counts);
DEFINE_AUTO(check_counts, check_counts_free)

/* Count references, or take them back. -ENOMEM if that needs more than the budget. */
int check_counts_add(struct check_counts *counts, uint64_t cluster, int64_t amount);
uint64_t check_counts_get(struct check_counts *counts, uint64_t cluster);

/* For clusters that have been counted. */
void check_counts_set_kind(struct check_counts *counts, uint64_t cluster, enum check_kind kind);
enum check_kind check_counts_kind(struct check_counts *counts, uint64_t cluster);
void check_counts_set_stored(struct check_counts *counts, uint64_t cluster,
                             enum check_stored stored);
enum check_stored check_counts_stored(struct check_counts *counts, uint64_t cluster);

/* Behind the last cluster that was ever counted. */
uint64_t check_counts_end(const struct check_counts *counts);

/* All pages in order, borrowed: an array of struct check_page *. */
GPtrArray *check_counts_pages(struct check_counts *counts);

#endif
