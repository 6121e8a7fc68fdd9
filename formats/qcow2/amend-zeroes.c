/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * qcow2: zero clusters become clusters of zeroes, or unallocated where nothing would show, because
 * version 2 has no others ("Standard Cluster Descriptor", bit 0).
 *
 * L2 tables are changed where they are, those of snapshots too: the disk stays the same for all
 * that share them. New clusters and their refcounts are stable before entries refer to them.
 */
#include <errno.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/error.h"
#include "formats/qcow2/amend-internal.h"

/* A table that is being changed. */
struct expansion {
    struct qcow2 *q;
    uint64_t references; /* of the table; what it refers to has as many through it */
    uint64_t *words;
    GArray *taken;    /* uint64_t: new host clusters */
    GArray *given_up; /* and those that are not referred to any more */
    bool is_changed;
};

/* ---- One entry ------------------------------------------------------------------------------ */

/* A new cluster of zeroes, with as many references as the table has. */
static int new_cluster(struct expansion *expansion, uint64_t *host)
{
    struct qcow2 *q = expansion->q;
    bool is_new;
    int status = qcow2_allocate(q, 1, true, host, NULL, &is_new);

    if (status < 0) {
        return status;
    }
    if (!is_new) {
        status = block_node_write_zeroes(q->file, *host, q->cluster_size, 0);
    }
    if (status == 0 && expansion->references > 1) {
        status =
            qcow2_refcount_add(q, *host, q->cluster_size, (int64_t)(expansion->references - 1));
    }
    if (status < 0) {
        qcow2_unallocate(q, *host, 1);
    } else {
        g_array_append_val(expansion->taken, *host);
    }
    return status;
}

/* Zeroes, in a cluster that only the table refers to. The file may end in it, or before it. */
static int clear_cluster(struct qcow2 *q, uint64_t host)
{
    uint64_t length = block_node_length(q->file);

    return host < length
               ? block_node_write_zeroes(q->file, host, MIN_OF(q->cluster_size, length - host), 0)
               : 0;
}

/* Whether nobody else refers to a host cluster, so that it may be written to. */
static int is_own(struct expansion *expansion, uint64_t host, bool *own)
{
    struct qcow2 *q = expansion->q;
    uint64_t references;
    int status;

    if (!is_aligned(host, q->cluster_size) || qcow2_is_metadata(q, host, q->cluster_size)) {
        return qcow2_mark_corrupt(q, host, q->cluster_size,
                                  "A zero cluster's place in the file is not valid");
    }
    status = qcow2_refcount_get(q, host, &references);
    *own = references <= expansion->references;
    return status;
}

static int expand_entry(struct expansion *expansion, uint64_t *word)
{
    struct qcow2 *q = expansion->q;
    uint64_t old = *word & QCOW2_OFFSET_MASK, host = old;
    uint64_t flag = expansion->references == 1 ? QCOW2_COPIED : 0;
    bool own = false;
    int status = host ? is_own(expansion, host, &own) : 0;

    if (status == 0 && own) {
        status = clear_cluster(q, host);
    } else if (status == 0 && q->header.backing_file) {
        status = new_cluster(expansion, &host);
    } else {
        host = flag = 0;
    }
    if (status < 0) {
        return status;
    }
    if (old && old != host) {
        g_array_append_val(expansion->given_up, old);
    }
    *word = host | flag;
    expansion->is_changed = true;
    return 0;
}

/* ---- Tables --------------------------------------------------------------------------------- */

/* As many references less to each cluster; if it fails they leak. */
static void drop(struct expansion *expansion, const GArray *clusters)
{
    for (guint i = 0; i < clusters->len; i++) {
        qcow2_refcount_add(expansion->q, g_array_index(clusters, uint64_t, i),
                           expansion->q->cluster_size, -(int64_t)expansion->references);
    }
}

/* Everything that the new entries refer to is made stable; then they are, and what they left is
 * freed. */
static int write_table(struct expansion *expansion, uint64_t offset)
{
    struct qcow2 *q = expansion->q;
    int status = qcow2_check_overlap(q, QCOW2_AREA_L2, offset, q->cluster_size);

    if (status == 0) {
        status = qcow2_commit_all(q);
    }
    if (status == 0) {
        status = qcow2_write_words(q, expansion->words, q->cluster_size / 8, offset);
    }
    if (status == 0) {
        status = block_node_flush(q->file);
    }
    if (status == 0) {
        drop(expansion, expansion->given_up);
    }
    return status;
}

static int read_table(struct expansion *expansion, uint64_t offset)
{
    struct qcow2 *q = expansion->q;
    int status;

    if (!is_aligned(offset, q->cluster_size)) {
        return qcow2_mark_corrupt(q, offset, q->cluster_size, "An L2 table is not aligned");
    }
    status = qcow2_refcount_get(q, offset, &expansion->references);
    expansion->references = MAX_OF(expansion->references, UINT64_C(1));
    expansion->is_changed = false;
    g_array_set_size(expansion->taken, 0);
    g_array_set_size(expansion->given_up, 0);
    return status == 0 ? qcow2_read_words(q, expansion->words, q->cluster_size / 8, offset)
                       : status;
}

static int expand_table(struct expansion *expansion, uint64_t offset)
{
    struct qcow2 *q = expansion->q;
    int status = read_table(expansion, offset);

    for (uint64_t i = 0; status == 0 && i < q->cluster_size / 8; i++) {
        if (!(expansion->words[i] & QCOW2_COMPRESSED) && expansion->words[i] & QCOW2_ZERO) {
            status = expand_entry(expansion, &expansion->words[i]);
        }
    }
    if (status < 0) {
        drop(expansion, expansion->taken);
        return status;
    }
    return expansion->is_changed ? write_table(expansion, offset) : 0;
}

/* All tables below an L1 table. */
static int expand_below(struct expansion *expansion, uint64_t l1_offset, uint32_t l1_size,
                        struct amend_progress *progress)
{
    g_autofree uint64_t *l1 = g_try_new(uint64_t, MAX_OF(l1_size, 1u));
    int status = l1 ? qcow2_read_words(expansion->q, l1, l1_size, l1_offset) : -ENOMEM;

    for (uint32_t i = 0; status == 0 && i < l1_size; i++) {
        if (l1[i] & QCOW2_OFFSET_MASK) {
            status = expand_table(expansion, l1[i] & QCOW2_OFFSET_MASK);
        }
        if (status == 0) {
            status = amend_advance(progress, 1);
        }
    }
    return status;
}

uint64_t amend_zero_units(const struct qcow2 *q)
{
    uint64_t units = q->l1_size;

    for (size_t i = 0; i < q->snapshot_count; i++) {
        units += q->snapshots[i].l1_size;
    }
    return units;
}

int amend_expand_zeroes(struct qcow2 *q, struct amend_progress *progress, GError **error)
{
    g_autofree uint64_t *words = g_malloc(q->cluster_size);
    g_autoptr(GArray) taken = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    g_autoptr(GArray) given_up = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    struct expansion expansion = {.q = q, .words = words, .taken = taken, .given_up = given_up};
    int status = qcow2_reclaim_all(q);

    if (status == 0) {
        status = qcow2_commit_all(q);
    }
    if (status == 0) {
        qcow2_l2_forget(q);
        status = expand_below(&expansion, q->header.l1_offset, q->l1_size, progress);
    }
    for (size_t i = 0; status == 0 && i < q->snapshot_count; i++) {
        status =
            expand_below(&expansion, q->snapshots[i].l1_offset, q->snapshots[i].l1_size, progress);
    }
    if (status == 0) {
        status = qcow2_commit_all(q);
    }
    return status < 0 ? block_error_errno(error, -status, "Could not write zeroes for version 2")
                      : 0;
}
