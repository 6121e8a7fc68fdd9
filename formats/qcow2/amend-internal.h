/* SPDX-License-Identifier: BSD-3-Clause */
/* What the parts of amending a qcow2 image share. The node is drained in all of them. */
#ifndef LIVEBLK_FORMATS_QCOW2_AMEND_INTERNAL_H
#define LIVEBLK_FORMATS_QCOW2_AMEND_INTERNAL_H

#include "formats/qcow2/internal.h"

/* How far all steps together are. */
struct amend_progress {
    block_progress *report; /* NULL: nobody asks */
    void *data;
    uint64_t done;
    uint64_t total;
};

/* So much more is done. -ECANCELED if that was enough. */
int amend_advance(struct amend_progress *progress, uint64_t units);

/*
 * Another width of refcounts, 1 << order bits, in an image of version 3: all refcounts are written
 * anew, and the header switches to them at one instant. amend_refcount_units is how far
 * amend_refcount_order gets in amend_advance's units. amend_check_refcounts refuses a width that
 * would be too small. Return a negative errno with the error set.
 */
int amend_check_refcounts(struct qcow2 *q, unsigned order, GError **error);
uint64_t amend_refcount_units(const struct qcow2 *q, unsigned order);
int amend_refcount_order(struct qcow2 *q, unsigned order, struct amend_progress *progress,
                         GError **error);

/*
 * Have no zero clusters in any table, which version 2 does not know. What fails or stops on the way
 * leaves an image that is whole.
 */
uint64_t amend_zero_units(const struct qcow2 *q);
int amend_expand_zeroes(struct qcow2 *q, struct amend_progress *progress, GError **error);

#endif
