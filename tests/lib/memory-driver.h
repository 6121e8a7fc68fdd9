/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Disks in memory that look closely: every request is checked against the limits the disk claims
 * to have, can be logged, counted, made to fail, and held until the test lets it go.
 *
 * Drivers (all take size, request-alignment, memory-alignment, max-transfer, max-write-zeroes,
 * max-discard):
 *   memory        everything but forced unit access
 *   memory-fua    with it
 *   memory-plain  reads, writes and flushes only
 *   memory-device cannot say what it holds, as block devices cannot
 *   memory-unmaps the same, and zeroes as it discards
 *   memory-filter a filter on `file` that adds nothing
 *   memory-layer  a format of 4 KiB clusters on `file` with an optional `backing`
 */
#ifndef LIVEBLK_TESTS_LIB_MEMORY_DRIVER_H
#define LIVEBLK_TESTS_LIB_MEMORY_DRIVER_H

#include <stdint.h>

#include "block/node.h"
#include "block/request.h"

void memory_drivers_register(void);

/* The contents, to look at while no request is in flight. */
uint8_t *memory_disk_data(struct block_node *node);

/* Fail the next count requests of a kind with a negative errno after the first `after`. */
void memory_disk_fail(struct block_node *node, enum block_operation operation, int status,
                      unsigned after, unsigned count);

/* How many requests of this kind have reached the disk, failed ones too. */
unsigned memory_disk_count(struct block_node *node, enum block_operation operation);

/*
 * Log requests from now on. Take the log: "write 0+512" and so on, joined by "; ", with " fua"
 * and " unmap" for flags. The caller frees it.
 */
void memory_disk_log(struct block_node *node);
char *memory_disk_take_log(struct block_node *node);

/* Hold requests of a kind at the disk's entry, wait until count of them stand there, let go. */
void memory_disk_hold(struct block_node *node, enum block_operation operation);
void memory_disk_wait_held(struct block_node *node, unsigned count);
void memory_disk_release(struct block_node *node);

/* Fail changes of the length with this, or work again with 0. */
void memory_disk_fail_resize(struct block_node *node, int status);

/* How many memory disks are open: a failed open must leave none. */
unsigned memory_disks_open(void);

#endif
