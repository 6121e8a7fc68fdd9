/* SPDX-License-Identifier: BSD-3-Clause */
/* Mirrors of a rig's disk (tests/lib/backup-rig.h), and what becomes of the rig by a pivot. */
#ifndef LIVEBLK_TESTS_LIB_MIRROR_RIG_H
#define LIVEBLK_TESTS_LIB_MIRROR_RIG_H

#include "jobs/mirror.h"
#include "tests/lib/backup-rig.h"

/* The default options of a full mirror, with policy report, to be dismissed by rig_end. */
struct mirror_options rig_mirror_options(struct rig *rig, const char *id,
                                         struct block_node *target);

/* Start a mirror, which must work. The caller owns the reference. */
struct job *rig_mirror(const struct mirror_options *options);

/* The same, and wait until it is ready. */
struct job *rig_ready_mirror(const struct mirror_options *options);

/* Start a mirror that must be refused with a message that has this part; nothing is left of it. */
void rig_expect_no_mirror(const struct mirror_options *options, const char *part);

void rig_complete(struct job *job);
void rig_cancel_softly(struct job *job);

/*
 * The device has moved to the target: so does the rig. Nobody uses the old source any more.
 * Returns it; the reference is the caller's, as the target's was.
 */
struct block_node *rig_follow(struct rig *rig, struct block_node *target);

#endif
