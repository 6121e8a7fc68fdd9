/* SPDX-License-Identifier: BSD-3-Clause */
/* What the parts of checking a qcow2 image share. */
#ifndef LIVEBLK_FORMATS_QCOW2_CHECK_INTERNAL_H
#define LIVEBLK_FORMATS_QCOW2_CHECK_INTERNAL_H

#include "formats/qcow2/internal.h"

/* An L2 table, and how many L1 entries refer to it; each table is looked at once. */
struct check_table {
    uint64_t offset;
    uint64_t references;
    bool is_active; /* in the active L1 table */
    uint64_t guest; /* if so: the guest offset of its first entry */
};

struct check {
    struct qcow2 *q;
    struct block_check_result *result;
    unsigned repair;
    block_progress *progress;
    void *progress_data;
    uint64_t file_clusters; /* clusters that begin in the file */

    uint64_t *l1; /* the active one */
    bool l1_is_changed;
    GHashTable *tables; /* offset to struct check_table */

    /* How often clusters are referred to: pages of counts by page number, made when needed. */
    GHashTable *pages;
    uint64_t end; /* behind the highest cluster that is in use, in clusters */

    uint64_t *reftable;
    uint64_t reftable_entries;
    GHashTable *indices; /* set of uint64_t, while a place for new blocks is looked for */
    bool needs_rebuild;  /* refcount blocks are missing or damaged */
};

/* Say what was found, once in the counters and once in words. */
void check_corruption(struct check *check, const char *format, ...) G_GNUC_PRINTF(2, 3);
void check_leak(struct check *check, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* Count references to the clusters of a range. False, with the finding told, if it is not in the
 * file. */
bool check_refer(struct check *check, uint64_t offset, uint64_t bytes, uint64_t references,
                 const char *what);
/* Call a function for each cluster that is in use. */
void check_foreach_used(struct check *check,
                        void (*look)(struct check *check, uint64_t cluster, uint64_t references));
/* One less to a cluster. */
void check_unrefer(struct check *check, uint64_t cluster);
uint64_t check_references(const struct check *check, uint64_t cluster);

/* check-references.c: find all references. Returns a negative errno if it cannot go on. */
int check_find_references(struct check *check);
/* Read the refcount table, and count its references and the blocks'. */
int check_read_reftable(struct check *check);

/* check-repair.c */
/* Compare refcounts with the references, and make them right if that is wanted. */
int check_compare(struct check *check);
/* New refcount structures behind everything. */
int check_rebuild(struct check *check);
/* COPIED flags of the active tables against the references. */
int check_flags(struct check *check);

#endif
