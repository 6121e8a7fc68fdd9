/* SPDX-License-Identifier: BSD-3-Clause */
/* Comparisons of a rig's disk (tests/lib/backup-rig.h), and targets that differ. */
#ifndef LIVEBLK_TESTS_LIB_VERIFY_RIG_H
#define LIVEBLK_TESTS_LIB_VERIFY_RIG_H

#include "block/dirty-bitmap.h"
#include "jobs/verify.h"
#include "tests/lib/backup-rig.h"

/* A target as of rig_target that holds what the disk does, and has its holes. No guest writes. */
struct block_node *verify_rig_copy(struct rig *rig, const char *name);

/* Make a range other than it is: each byte; or zeroes. */
void verify_rig_scribble(struct block_node *node, uint64_t offset, uint64_t bytes);
void verify_rig_zero(struct block_node *node, uint64_t offset, uint64_t bytes);

/* Compare, in a job 'job0' that is dismissed by hand. changes: all there is to it, taken over; or
 * NULL. */
struct job *verify_rig_start(struct rig *rig, struct block_node *target,
                             const struct verify_options *options, struct dirty_bitmap *changes);

/*
 * Wait for its end: it failed with a message that has this in it, or succeeded (NULL), and found
 * exactly these ranges. The reference is dropped.
 */
void verify_rig_end(struct job *job, const char *message, const struct verify_range *wanted,
                    size_t count);

/* Both. */
void verify_rig_expect(struct rig *rig, struct block_node *target,
                       const struct verify_options *options, const char *message,
                       const struct verify_range *wanted, size_t count);

#endif
