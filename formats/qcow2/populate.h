/* SPDX-License-Identifier: BSD-3-Clause */
/* qcow2: keeping in the image what it reads as, where the backing file has it. */
#ifndef LIVEBLK_FORMATS_QCOW2_POPULATE_H
#define LIVEBLK_FORMATS_QCOW2_POPULATE_H

#include "formats/qcow2/internal.h"

/* What of a cluster the image has nothing of, neither data nor zeroes: a bit for each subcluster,
 * without extended entries one for the cluster. */
uint32_t qcow2_absent(const struct qcow2 *q, struct qcow2_entry entry);

/*
 * Write the first part of [offset, end), as far as the image has nothing of its own there and one
 * batch goes; *done is how much that was, 0 if it has something at offset. In write.c. In the
 * epoch.
 */
int qcow2_write_absent(struct qcow2 *q, const void *buffer, uint64_t offset, uint64_t end,
                       uint64_t *done);

/* The driver's entry point. */
int qcow2_populate(struct block_node *node, const void *buffer, uint64_t offset, uint64_t bytes);

#endif
