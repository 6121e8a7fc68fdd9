/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Throttle groups: limits that several nodes share, by a name. A group exists from its creation to
 * its deletion, which is refused while a node is in it.
 *
 * Functions may be called by any thread.
 */
#ifndef LIVEBLK_BLOCK_THROTTLE_GROUP_H
#define LIVEBLK_BLOCK_THROTTLE_GROUP_H

#include <glib.h>

#include "block/cleanup.h"
#include "block/throttle.h"

struct throttle_group;

/* Create a group with checked limits. -EEXIST if there is one of that name. */
int throttle_group_create(const char *name, const struct throttle_limits *limits, GError **error);

/* -EBUSY if the group is used, -ENOENT if there is none; both without an error text. */
int throttle_group_delete(const char *name);

/* Use a group: a new reference, or NULL. */
struct throttle_group *throttle_group_find(const char *name);
void throttle_group_unref(struct throttle_group *group);
DEFINE_AUTO(throttle_group, throttle_group_unref)

/* What the group's requests wait in; borrowed. */
struct throttle *throttle_group_throttle(struct throttle_group *group);

/*
 * At shutdown: let all requests through that wait, and all that come. To be called again for
 * groups that were created meanwhile.
 */
void throttle_groups_release_all(void);

#endif
