/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A tracking file that is made anew: for another length of its disk, or with epochs numbered anew.
 *
 * The new file takes the old one's place while nothing is being marked: guests are held. So that
 * they are not held for long, it is prepared before, with what the map holds then; what changed in
 * it since is all that has to be written at the end. And as storage may hang, that end has a limit.
 */
#ifndef LIVEBLK_BLOCK_TRACKING_REBUILD_H
#define LIVEBLK_BLOCK_TRACKING_REBUILD_H

#include "block/tracking-file.h"

struct tracking_rebuild;

/*
 * Plan it; nothing is done yet, and nothing waits. As with other changes of a file, no other thread
 * changes its directory meanwhile. NULL with the error set: the length is too large, or there are
 * too many checkpoints.
 */
struct tracking_rebuild *tracking_rebuild_new(struct tracking_file *file, uint64_t length,
                                              GError **error);
/* Also one that was prepared: what is there of its file goes. */
void tracking_rebuild_free(struct tracking_rebuild *rebuild);

uint64_t tracking_rebuild_length(const struct tracking_rebuild *rebuild);

/*
 * Make the new file and write the map, while guests go on with the old one. May block. On error it
 * is to be freed.
 */
int tracking_rebuild_prepare(struct tracking_rebuild *rebuild, GError **error);

/*
 * Put it into the place of this file, which need not be the one it was planned from; prepared or
 * not. Nothing is being marked. Returns the new file; the old one is the caller's no more then.
 * NULL with the error set: nothing has changed; but if file->is_given_up, the new file may have the
 * name, or take it yet, and is *successor, a reference: what is said of the file goes for it, too.
 * That is so at the latest when clock_now_ns() is deadline_ns (INT64_MAX: never). Frees the
 * rebuild, now or later.
 */
struct tracking_file *tracking_rebuild_finish(struct tracking_rebuild *rebuild,
                                              struct tracking_file *file, int64_t deadline_ns,
                                              struct tracking_file **successor, GError **error);

/* All in one, for as long as it takes. */
struct tracking_file *tracking_file_rebuild(struct tracking_file *file, uint64_t length,
                                            GError **error);

/* True if so few epochs are left that the file should be rebuilt when there is an occasion. */
bool tracking_file_needs_rebuild(const struct tracking_file *file);
/* True while a cut need not wait for that. */
bool tracking_file_can_cut(const struct tracking_file *file);

#endif
