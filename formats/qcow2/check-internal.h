/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the parts of the check share.
 *
 * A pass walks over all that refers to clusters, from the header down: tables that the header
 * names, snapshots, L1 tables, L2 tables, bitmaps; then the refcount table and its blocks. It
 * counts references and judges each pointer. Then the counts are compared with the refcounts in the
 * file, and at last the "copied" flags with those.
 *
 * A pass looks only, or mends. Who mends has looked before: a repair is a pass that looks, and then
 * rounds of one that mends and one that looks, until nothing is left or nothing gets better. Where
 * two claim a cluster, the one whose pointer comes first in the order above keeps it, and what can
 * be made anew, refcounts, goes elsewhere.
 *
 * In what order a repair writes: pointers that lead nowhere are taken away, durably; then refcounts
 * are corrected in place, or, if their structures are damaged, built in space that nothing uses and
 * switched to by one write of the header; then flags. So at no moment does anything refer to a
 * cluster that was free before. Besides, images of version 3 have the dirty bit meanwhile.
 *
 * Everything read is bounded: tables lie in the file, holes of it are not read, no table is walked
 * over twice in a pass, however many refer to it.
 */
#ifndef LIVEBLK_FORMATS_QCOW2_CHECK_INTERNAL_H
#define LIVEBLK_FORMATS_QCOW2_CHECK_INTERNAL_H

#include "formats/qcow2/bitmap.h"
#include "formats/qcow2/check-counts.h"
#include "formats/qcow2/internal.h"

/* An L2 table that is referred to. */
struct check_table {
    uint64_t offset;
    uint32_t l1_index; /* of the first that refers to it */
    bool active;       /* in the active L1 table */
};

/* A refcount block that the refcount table names. */
struct check_block {
    uint64_t index;  /* in the table */
    uint64_t offset; /* in the file */
    bool counted;    /* it is among the references that were counted */
    bool usable;     /* and it may be read, and written in place */
};

/* A snapshot that can be found. */
struct check_snapshot {
    uint64_t l1_offset;
    uint32_t l1_size;
};

enum check_severity { CHECK_LEAK, CHECK_CORRUPTION, CHECK_ERROR };

struct check {
    struct qcow2 *q;
    bool mends;                        /* else only looks */
    struct block_check_result *result; /* counts of a pass that looks; lines of both */
    uint64_t clusters_lost;            /* by mending */

    block_progress *progress; /* may be NULL */
    void *progress_data;
    uint64_t done, total; /* tables */

    uint64_t file_clusters; /* also a last one that the file ends in */
    uint64_t end_cluster;   /* behind the last that is used, or has a refcount */
    struct check_counts *counts;
    GArray *tables;          /* struct check_table, each once */
    GArray *blocks;          /* struct check_block, by index */
    uint64_t table_clusters; /* of the refcount table that were counted */
    GArray *snapshots;       /* struct check_snapshot: of those that are kept */
    GArray *bitmaps;         /* struct qcow2_bitmap; NULL: none, or they cannot be read; those that
                                are kept */
    uint8_t *buffer;         /* for one table */

    /* A part of the file of which it is known whether it is a hole. */
    uint64_t extent_start, extent_end;
    bool extent_is_hole;

    /* A new snapshot table, if one is needed: entries as in the file, and how many. */
    GByteArray *snapshot_table;
    uint32_t snapshot_count;
    uint64_t snapshot_table_at; /* where it goes; 0: not reserved */

    /* A new bitmap directory, if one is needed. */
    GByteArray *bitmap_directory;
    uint64_t bitmap_directory_at; /* where it goes; 0: not reserved */

    /* Clusters that are named as L2 tables and hold something else; shared by passes. */
    GHashTable *not_tables; /* set of offsets, uint64_t * */

    /* What was found. */
    bool lost_references; /* pointers whose targets were not counted, or unreadable tables */
    bool bad_entries;     /* what a walk that mends mends: pointers, flags beside them */
    bool bad_snapshots;
    bool bad_bitmaps;          /* all of them */
    bool bad_bitmap;           /* at least one */
    bool needs_rebuild;        /* structures of refcounts are damaged, or some are missing */
    bool refcounts_in_the_way; /* they overlap with something: rebuild before anything is written */
};

/* ---- check.c: what all use ------------------------------------------------------------------ */

/* One finding; where the pass mends, what was done about it. */
void check_report(struct check *c, enum check_severity severity, const char *format, ...)
    G_GNUC_PRINTF(3, 4);
/* One finding, about which a pass that mends does nothing, and then only tells of errors. */
void check_found(struct check *c, enum check_severity severity, const char *format, ...)
    G_GNUC_PRINTF(3, 4);

/* So many tables have been looked at. -ECANCELED if the user wants an end. */
int check_step(struct check *c, uint64_t tables);

/* Whether whole bytes at an offset are inside the file. */
bool check_in_file(const struct check *c, uint64_t offset, uint64_t bytes);
/* Whether a cluster can be at this offset. */
bool check_is_place(const struct check *c, uint64_t offset);

/* Read metadata. What cannot be read is reported as `what`, and false is returned. */
bool check_read(struct check *c, void *buffer, uint64_t bytes, uint64_t offset, const char *what);
bool check_is_hole(struct check *c, uint64_t offset, uint64_t bytes);

/* Write metadata. A failure ends the repair. */
int check_write(struct check *c, const void *buffer, uint64_t bytes, uint64_t offset);

/* Count a reference to each cluster of a table and say what it is. *clashes is set if one of them
 * is another table already; then nothing has been counted. */
int check_claim(struct check *c, uint64_t offset, uint64_t bytes, enum check_kind kind,
                bool *clashes);

/* Clusters behind everything that is known to be used; they count as used once. */
int check_reserve(struct check *c, uint64_t clusters, uint64_t *offset);

/* ---- check-entries.c: what is wrong with a pointer ------------------------------------------ */

struct check_verdict {
    struct qcow2_entry fixed; /* what the entry should be */
    const char *problem;      /* NULL: none */
    const char *remedy;       /* what becomes of it */
    bool lost;                /* what it referred to cannot be found */
};

/* An L1 entry; of the kind of its target nothing is said. */
void check_judge_l1(const struct check *c, uint64_t entry, struct check_verdict *verdict);
/* An entry of an L2 table, of this guest offset (that matters with a data file only). */
void check_judge_l2(struct check *c, uint64_t guest, struct qcow2_entry entry,
                    struct check_verdict *verdict);
/* Whether most of a table's entries (as in the file) can be none, so that it is something else. */
bool check_is_no_table(struct check *c, const uint64_t *words);

/* ---- check-references.c: the walk ----------------------------------------------------------- */

int check_references(struct check *c);
/* The first guest offset of an L2 table. */
uint64_t check_table_guest(const struct check *c, const struct check_table *table);

/* ---- check-snapshots.c ---------------------------------------------------------------------- */

/* Look at the snapshot table; snapshots that can be found are in c->snapshots afterwards. */
int check_snapshot_table(struct check *c);
/* Where the pass mends: the new table that is needed becomes the image's. Refcounts are right. */
int check_snapshots_replace(struct check *c);

/* ---- check-bitmaps.c ------------------------------------------------------------------------ */

/* The directory and the tables; and later, when L2 tables are known, what the tables refer to. */
int check_bitmap_tables(struct check *c);
int check_bitmap_data(struct check *c);
/* The bitmaps cannot be read: let the header say that they are not valid. */
int check_bitmaps_drop(struct check *c);
/* Where the pass mends: some cannot be kept. Have a place for a directory of the others; and later,
 * when refcounts are right, let it become the image's. */
int check_bitmaps_reserve(struct check *c);
int check_bitmaps_replace(struct check *c);

/* ---- check-refcounts.c, check-rebuild.c ----------------------------------------------------- */

/* A refcount block has 1 << this many refcounts. */
static inline unsigned check_block_bits(const struct check *c)
{
    return c->q->cluster_bits + 3 - c->q->header.refcount_order;
}

static inline uint64_t check_refcount_max(const struct check *c)
{
    return UINT64_MAX >> (64 - (1u << c->q->header.refcount_order));
}

/* Which blocks there are. */
int check_refcount_table(struct check *c);
/* Count the references of the table and to the blocks. */
int check_refcount_places(struct check *c);
/* Compare refcounts with what was counted; where the pass mends, correct them in place. */
int check_compare(struct check *c, bool raise, bool lower);
/* Build new refcounts from what was counted, and switch to them. */
int check_rebuild(struct check *c);

/* ---- check-copied.c ------------------------------------------------------------------------- */

/* Compare the flags with what is stored. Where the pass mends: all, or those that became wrong. */
int check_copied(struct check *c, bool all);

#endif
