/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Extents as one answer of a server gives them: checked, and kept so that a walk through the
 * disk does not ask again for each.
 */
#ifndef LIVEBLK_FORMATS_NBD_EXTENTS_H
#define LIVEBLK_FORMATS_NBD_EXTENTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Extents kept of one answer; those beyond are asked for again. */
#define NBD_EXTENTS_MAX 1024

struct nbd_extents {
    uint64_t offset; /* where the first begins */
    uint64_t limit;  /* where the export ends: nothing beyond is believed */
    size_t count;
    struct {
        uint64_t end;   /* where it ends; the next begins there */
        unsigned flags; /* BLOCK_STATUS_* */
    } extents[NBD_EXTENTS_MAX];
};

/* Empty, for an answer about what begins at offset, on an export of limit bytes. */
void nbd_extents_begin(struct nbd_extents *extents, uint64_t offset, uint64_t limit);

/*
 * Take in one block status chunk: pairs of length and flags, count numbers in all. What is wrong
 * is never believed: extents end where the answer stops making sense, and an answer without one
 * good extent is -EPROTO. A context other than base:allocation is ignored.
 */
int nbd_extents_collect(struct nbd_extents *extents, const char *context, uint64_t offset,
                        const uint32_t *entries, size_t count);

/*
 * The extent at offset: its BLOCK_STATUS_* flags and its bytes from there, at least 1 and at
 * most max. Returns false if the extents do not reach there.
 */
bool nbd_extents_find(const struct nbd_extents *extents, uint64_t offset, uint64_t max,
                      uint64_t *bytes, unsigned *flags);

#endif
