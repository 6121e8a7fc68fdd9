/* SPDX-License-Identifier: BSD-3-Clause */
/* The driver `backup-set`: a disk as a backup in a set holds it, read-only. */
#ifndef LIVEBLK_SETS_BACKUP_NODE_H
#define LIVEBLK_SETS_BACKUP_NODE_H

#include "block/driver.h"
#include "sets/backup-chain.h"

extern const struct block_driver backup_set_driver;

/* Make the driver known; after formats_register(). */
void sets_register(void);

/* An anonymous node on a set that is open, and stays so as long as the node. NULL with the error
 * set. */
struct block_node *backup_node_open(const struct set *set, const char *id, const char *disk,
                                    GError **error);

/* The chain behind a node of that driver; borrowed. */
const struct backup_chain *backup_node_chain(struct block_node *node);

#endif
