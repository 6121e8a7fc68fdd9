/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Who compares a disk, as it is at one moment, with the target of its running mirror: what the
 * target need not hold of that moment. That is what the mirror had still to copy then, and what
 * guests have written since, from before they do so; all else must be equal, whenever one looks.
 */
#ifndef LIVEBLK_JOBS_MIRROR_WATCH_H
#define LIVEBLK_JOBS_MIRROR_WATCH_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/cleanup.h"
#include "block/node.h"

struct mirror_watch;

/*
 * A watch of the mirror of this source to this target, NULL with *is_mirrored false if there is
 * none, or with the error set: it is not ready, or copies only a part. Any thread.
 */
struct mirror_watch *mirror_watch_new(struct block_node *source, struct block_node *target,
                                      bool *is_mirrored, GError **error);
void mirror_watch_free(struct mirror_watch *watch);
DEFINE_AUTO(mirror_watch, mirror_watch_free)

/* The moment. Main thread, the source's writers drained. */
void mirror_watch_begin(struct mirror_watch *watch);

/* The end, if there was that. Drains the source's writers; not the main thread. */
void mirror_watch_end(struct mirror_watch *watch);

/*
 * What was read of the target, and may be another than the source's, is made that; a multiple of
 * COPY_UNIT but at the end of the disk. -ECANCELED: the mirror has ended, and nothing is known any
 * more. Any thread.
 */
int mirror_watch_settle(struct mirror_watch *watch, const void *source, void *target,
                        uint64_t offset, uint64_t bytes);

/* Have the mirror copy a range once more; from here it may be another. As mirror_watch_settle. */
int mirror_watch_copy_again(struct mirror_watch *watch, uint64_t offset, uint64_t bytes);

#endif
