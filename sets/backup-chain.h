/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a backup holds of one disk, put together from its image and those it is an increment of,
 * each granule with its checksum looked at. Images are opened without their backing files: which
 * of them has a granule, the checksums say.
 */
#ifndef LIVEBLK_SETS_BACKUP_CHAIN_H
#define LIVEBLK_SETS_BACKUP_CHAIN_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/cleanup.h"
#include "block/node.h"
#include "sets/set.h"

/* So many increments of each other at most. */
#define CHAIN_LAYERS_MAX 1000

struct backup_layer {
    char *id;
    char *image; /* its path */
    struct sums *sums;
    struct block_node *node;
};

struct backup_chain {
    struct backup_layer *layers; /* the backup's own first */
    size_t count;
    uint64_t length; /* of the disk, bytes */
};

/*
 * Open a chain. All of it is there, of the right sizes, and the checksums are whole, or it fails:
 * NULL with the error set, which names what is damaged. The set may be freed afterwards, but for
 * its lock.
 */
struct backup_chain *backup_chain_open(const struct set *set, const char *id, const char *disk,
                                       GError **error);
void backup_chain_free(struct backup_chain *chain);
DEFINE_AUTO(backup_chain, backup_chain_free)

/*
 * Who has the granule that holds offset: NULL if it is zeroes. *end: up to where, at most `end`,
 * the answer is the same (also for zeroes).
 */
const struct backup_layer *backup_chain_find(const struct backup_chain *chain, uint64_t offset,
                                             uint64_t *end);

/*
 * Read, and compare with the checksums. Any thread. A negative errno with the error set, -EBADMSG
 * if what was read is not what was backed up. error may be NULL.
 */
int backup_chain_read(const struct backup_chain *chain, void *buffer, uint64_t offset,
                      uint64_t bytes, GError **error);

/*
 * Read a layer's granules that are all data, whole (but for the end of its disk), into buffer, and
 * compare. *bad: the first that is not what it was; as backup_chain_read.
 */
int backup_chain_read_layer(const struct backup_layer *layer, void *buffer, uint64_t offset,
                            uint64_t bytes, uint64_t *bad, GError **error);

#endif
