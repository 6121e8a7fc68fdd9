/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Drain: make everybody who could have a request in flight on some nodes stop and be quiet.
 *
 * A drained section is begun for a set of nodes. All users above them (devices, jobs, exports)
 * are told to start nothing new, then waited for. Sections nest and may be begun by several
 * threads; what they guard is done on the main thread (main_loop_call_wait). Waiting can take as
 * long as the slowest request in flight: never wait on the main thread for a node whose storage
 * may hang; commands do it on their own thread.
 */
#ifndef LIVEBLK_BLOCK_DRAIN_H
#define LIVEBLK_BLOCK_DRAIN_H

#include <stddef.h>

#include "block/cleanup.h"
#include "block/node.h"

struct block_drain;

/*
 * Begin a drained section for those users of these nodes and of all nodes above them whose claim
 * uses one of perms, and wait until none of their requests is in flight. To add a notifier or a
 * bitmap only those who write need be quiet (BLOCK_PERM_WRITE), so that a job that reads the
 * source and hangs on its target does not hold the guest up; to replace a node, everybody
 * (BLOCK_PERM_ALL). Returns the section; end it with block_drain_end.
 */
struct block_drain *block_drain_begin(struct block_node *const *nodes, size_t count,
                                      unsigned perms);

/* End the section; users whose last section this was go on. Frees it. Must not block. */
void block_drain_end(struct block_drain *drain);
DEFINE_AUTO(block_drain, block_drain_end)

#endif
