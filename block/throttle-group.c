/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/throttle-group.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "block/error.h"
#include "block/queue.h"

struct throttle_group {
    char *name;
    struct throttle *throttle;
    unsigned references; /* groups_lock; one is the list's */
    LIST_ENTRY(throttle_group) entry;
};

/* Guards the list and the references. A throttle's lock is taken under it. */
static pthread_mutex_t groups_lock = PTHREAD_MUTEX_INITIALIZER;
static LIST_HEAD(, throttle_group) groups = LIST_HEAD_INITIALIZER(groups);

static void free_group(struct throttle_group *group)
{
    throttle_free(group->throttle);
    g_free(group->name);
    g_free(group);
}

/* groups_lock held. */
static struct throttle_group *find_locked(const char *name)
{
    struct throttle_group *group;

    LIST_FOREACH (group, &groups, entry) {
        if (!strcmp(group->name, name)) {
            return group;
        }
    }
    return NULL;
}

int throttle_group_create(const char *name, const struct throttle_limits *limits, GError **error)
{
    SCOPE_LOCK(&groups_lock);

    if (find_locked(name)) {
        return block_error(error, EEXIST, "There is a throttle group '%s' already", name);
    }
    struct throttle_group *group = g_new0(struct throttle_group, 1);
    group->name = g_strdup(name);
    group->references = 1;
    group->throttle = throttle_new();
    throttle_set_limits(group->throttle, limits);
    LIST_INSERT_HEAD(&groups, group, entry);
    return 0;
}

int throttle_group_delete(const char *name)
{
    SCOPE_LOCK(&groups_lock);
    struct throttle_group *group = find_locked(name);

    if (!group) {
        return -ENOENT;
    }
    if (group->references > 1) {
        return -EBUSY;
    }
    LIST_REMOVE(group, entry);
    free_group(group);
    return 0;
}

struct throttle_group *throttle_group_find(const char *name)
{
    SCOPE_LOCK(&groups_lock);
    struct throttle_group *group = find_locked(name);

    if (group) {
        group->references++;
    }
    return group;
}

/* Never the last: the list's goes with the group. */
void throttle_group_unref(struct throttle_group *group)
{
    if (group) {
        SCOPE_LOCK(&groups_lock);
        group->references--;
    }
}

struct throttle *throttle_group_throttle(struct throttle_group *group)
{
    return group->throttle;
}

void throttle_groups_release_all(void)
{
    SCOPE_LOCK(&groups_lock);
    struct throttle_group *group;

    LIST_FOREACH (group, &groups, entry) {
        throttle_suspend(group->throttle);
    }
}
