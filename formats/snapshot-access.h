/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The driver "snapshot-access": a read-only node that shows a point in time, with the block status
 * of that moment. A discard gives a range up: what was kept of it is freed, and reading it fails
 * with EINVAL from then on. Reading a broken point in time fails with EIO.
 *
 * As QMP's, it stands above a copy-before-write node. Views have nodes of the same kind with a
 * point in time of their own.
 */
#ifndef LIVEBLK_FORMATS_SNAPSHOT_ACCESS_H
#define LIVEBLK_FORMATS_SNAPSHOT_ACCESS_H

#include "block/driver.h"
#include "block/node.h"
#include "block/point-in-time.h"

extern const struct block_driver snapshot_access_driver;

struct snapshot_access_options {
    struct point_in_time *point;
    const char *filename;       /* what queries show as the node's file; copied */
    void (*closed)(void *data); /* the node is closed and the point in time freed; may be NULL */
    void *data;
};

/*
 * A new anonymous node over a point in time, which it owns from now on: closing it uninstalls and
 * frees that. NULL with the error set; then nothing was taken. Any thread.
 */
struct block_node *snapshot_access_open(const struct snapshot_access_options *options,
                                        GError **error);

/* The node whose past a snapshot-access node shows, borrowed; NULL for other drivers' nodes. */
struct block_node *snapshot_access_source(struct block_node *node);

#endif
