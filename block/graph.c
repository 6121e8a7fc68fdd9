/* SPDX-License-Identifier: BSD-3-Clause */
/* The graph's edges: claims, and what hangs on nodes while they are drained. */
#include "block/graph.h"

#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/dirty-bitmap.h"
#include "block/error.h"

static const char *permission_name(unsigned permissions)
{
    if (permissions & BLOCK_PERM_WRITE) {
        return "writing";
    }
    if (permissions & BLOCK_PERM_RESIZE) {
        return "resizing";
    }
    if (permissions & (BLOCK_PERM_GRAPH | BLOCK_PERM_BACKING)) {
        return "changing the graph at";
    }
    if (permissions & BLOCK_PERM_VOID) {
        return "committing what is in";
    }
    if (permissions & BLOCK_PERM_WRITE_UNCHANGED) {
        return "copying to";
    }
    return "reading";
}

/* Whether one is the link of a parent that the other's job takes care of. */
static bool is_beside(const struct block_claim *a, const struct block_claim *b)
{
    return (a->parent && a->parent == b->beside) || (b->parent && b->parent == a->beside);
}

static bool is_moved_by(const struct block_claim *place, const struct block_claim *mover)
{
    return mover->moves_places && place->operations && place->operations->follows_place;
}

/*
 * Graph lock held. Whether a claim with these permissions may stand beside the others. user: who
 * wants it so, for the message.
 */
static int check_conflicts(const struct block_claim *claim, const char *user,
                           struct block_node *node, unsigned perms, unsigned shared, GError **error)
{
    struct block_claim *other;

    TAILQ_FOREACH (other, &node->claims, entry) {
        unsigned clash = (perms & ~other->shared) | (other->perms & ~shared);

        if (is_moved_by(claim, other) || is_moved_by(other, claim)) {
            clash &= ~(unsigned)BLOCK_PERM_VOID;
        }
        if (other != claim && clash && !is_beside(claim, other)) {
            return block_error(error, EBUSY,
                               "Node '%s' is busy: %s and %s exclude each other by %s it",
                               node->name ? node->name : node->driver->name, other->owner, user,
                               permission_name(clash));
        }
    }
    return 0;
}

/*
 * Whether a node is another or stands somewhere above it. Searched from below: nothing is above
 * a node that is being opened, however much is under it. Graph lock held.
 */
bool block_node_is_above(const struct block_node *node, const struct block_node *other)
{
    const struct block_claim *claim;

    if (node == other) {
        return true;
    }
    TAILQ_FOREACH (claim, &other->claims, entry) {
        if (claim->parent && block_node_is_above(node, claim->parent)) {
            return true;
        }
    }
    return false;
}

/* How many nodes there are from the node up to the highest above it. Graph lock held. */
static unsigned height_above(const struct block_node *node)
{
    const struct block_claim *claim;
    unsigned height = 0;

    TAILQ_FOREACH (claim, &node->claims, entry) {
        if (claim->parent) {
            height = MAX_OF(height, height_above(claim->parent));
        }
    }
    return height + 1;
}

/* Graph lock held. */
static int check_claim(const struct block_claim *claim, struct block_node *node, unsigned perms,
                       unsigned shared, GError **error)
{
    /* A node under itself would wait for itself for ever. */
    if (claim->parent && block_node_is_above(node, claim->parent)) {
        return block_error(error, ELOOP, "Making '%s' a child of '%s' would create a cycle",
                           node->name, claim->parent->name);
    }
    if (claim->parent && node->height + height_above(claim->parent) > BLOCK_NODE_HEIGHT_MAX) {
        return block_error(error, ELOOP, "There are too many nodes under each other (%u)",
                           node->height + height_above(claim->parent) - 1);
    }
    return check_conflicts(claim, claim->owner, node, perms, shared, error);
}

/* The link over which a filter passes requests on, or NULL if the node is none. */
static struct block_claim *filter_link(struct block_node *node)
{
    struct block_child *child;

    if (!node->driver->is_filter) {
        return NULL;
    }
    TAILQ_FOREACH (child, &node->children, entry) {
        if (child->role == BLOCK_ROLE_FILE) {
            return &child->claim;
        }
    }
    return NULL;
}

/* What a filter does below it on its own, whoever uses it. */
static unsigned own_perms(const struct block_node *filter)
{
    unsigned perms = 0, shared = BLOCK_PERM_ALL;

    if (filter->driver->child_permissions) {
        filter->driver->child_permissions(filter, BLOCK_ROLE_FILE, &perms, &shared);
    }
    return perms & BLOCK_PERM_WRITE_UNCHANGED;
}

/* Whether the node, a filter, does not mind another length of its file: nobody uses it but others
 * that do not mind, and it has no bitmaps. Graph lock held. */
static bool minds_no_length(const struct block_node *node)
{
    const struct block_claim *claim;

    TAILQ_FOREACH (claim, &node->claims, entry) {
        bool is_filter = claim->parent && claim->parent->driver->is_length_free;

        if (!is_filter || !(claim->shared & BLOCK_PERM_RESIZE)) {
            return false;
        }
    }
    return node->driver->is_length_free && !node->bitmaps;
}

/* Who comes to use such a filter finds it as long as its file. Graph lock held. */
static uint64_t update_length(struct block_node *node)
{
    if (node->driver->is_length_free && node->file) {
        atomic_store(&node->length, update_length(node->file));
    }
    return block_node_length(node);
}

/*
 * A filter does below it what its own users do, and lets others do no more than they all let: it
 * only reads while nobody uses it, unless it copies on its own. Brings its claim, and those of
 * filters below, up to date after a claim on it came, changed or went; nothing changes on error.
 * Graph lock held.
 */
static int pass_claims_on(struct block_node *node, const char *user, GError **error)
{
    struct block_claim *link = filter_link(node);
    const struct block_claim *claim;
    unsigned perms = BLOCK_PERM_READ | own_perms(node);
    unsigned shared = BLOCK_PERM_ALL & ~(minds_no_length(node) ? 0u : (unsigned)BLOCK_PERM_RESIZE);

    if (!link || !link->node) {
        return 0;
    }
    TAILQ_FOREACH (claim, &node->claims, entry) {
        perms |= claim->perms & (BLOCK_PERM_WRITE | BLOCK_PERM_WRITE_UNCHANGED);
        shared &= claim->shared | BLOCK_PERM_INVISIBLE;
    }
    if (node->driver->writes_alone && perms & BLOCK_PERM_WRITE) {
        shared &= ~(unsigned)BLOCK_PERM_WRITE;
    }
    if (perms == link->perms && shared == link->shared) {
        return 0;
    }
    int status = check_conflicts(link, user, link->node, perms, shared, error);
    if (status < 0) {
        return status;
    }
    unsigned old_perms = link->perms, old_shared = link->shared;
    link->perms = perms;
    link->shared = shared;
    status = pass_claims_on(link->node, user, error);
    if (status < 0) {
        link->perms = old_perms;
        link->shared = old_shared;
    }
    return status;
}

/* Add a claim to a node's and pass it on; nothing changes on error. Graph lock held. */
static int insert_claim(struct block_claim *claim, struct block_node *node, GError **error)
{
    int status;

    TAILQ_INSERT_TAIL(&node->claims, claim, entry);
    status = pass_claims_on(node, claim->owner, error);
    if (status < 0) {
        TAILQ_REMOVE(&node->claims, claim, entry);
    } else {
        update_length(node);
    }
    return status;
}

/* Less is used and more is shared afterwards, so this cannot fail. Graph lock held. */
static void remove_claim(struct block_claim *claim, struct block_node *node)
{
    TAILQ_REMOVE(&node->claims, claim, entry);
    pass_claims_on(node, claim->owner, NULL);
}

int block_claim_acquire_locked(struct block_claim *claim, struct block_node *node, GError **error)
{
    int status = check_claim(claim, node, claim->perms, claim->shared, error);

    if (status == 0) {
        status = insert_claim(claim, node, error);
    }
    if (status < 0) {
        return status;
    }
    claim->node = node;
    node->references++;
    block_drain_claim_changed(claim);
    return 0;
}

int block_claim_acquire(struct block_claim *claim, struct block_node *node, GError **error)
{
    SCOPE_LOCK(&block_graph_lock);

    return block_claim_acquire_locked(claim, node, error);
}

int block_claim_change(struct block_claim *claim, unsigned perms, unsigned shared, GError **error)
{
    SCOPE_LOCK(&block_graph_lock);
    unsigned old_perms = claim->perms, old_shared = claim->shared;
    int status = check_conflicts(claim, claim->owner, claim->node, perms, shared, error);

    if (status < 0) {
        return status;
    }
    claim->perms = perms;
    claim->shared = shared;
    status = pass_claims_on(claim->node, claim->owner, error);
    if (status < 0) {
        claim->perms = old_perms;
        claim->shared = old_shared;
        return status;
    }
    block_drain_claim_changed(claim);
    return 0;
}

char **block_node_users(struct block_node *node)
{
    g_autoptr(GPtrArray) users = g_ptr_array_new();
    SCOPE_LOCK(&block_graph_lock);
    const struct block_claim *claim;

    TAILQ_FOREACH (claim, &node->claims, entry) {
        g_ptr_array_add(users, g_strdup(claim->owner));
    }
    g_ptr_array_add(users, NULL);
    return (char **)g_ptr_array_free(g_steal_pointer(&users), FALSE);
}

void block_claim_release(struct block_claim *claim)
{
    pthread_mutex_lock(&block_graph_lock);
    if (claim->node) {
        block_drain_claim_removed(claim); /* may drop the lock: the claim may be moved then */
    }
    struct block_node *node = claim->node;
    if (node) {
        remove_claim(claim, node);
        claim->node = NULL;
    }
    pthread_mutex_unlock(&block_graph_lock);
    block_node_unref(node);
}

/*
 * The claim leaves its node before the new one is checked: it must not conflict with itself where
 * a filter is put above the node or taken away.
 */
int block_claim_move_locked(struct block_claim *claim, struct block_node *node, unsigned perms,
                            unsigned shared, GError **error)
{
    struct block_node *old_node = claim->node;
    unsigned old_perms = claim->perms, old_shared = claim->shared;
    int status;

    remove_claim(claim, old_node);
    status = check_claim(claim, node, perms, shared, error);
    if (status == 0) {
        claim->perms = perms;
        claim->shared = shared;
        status = insert_claim(claim, node, error);
    }
    if (status < 0) {
        claim->perms = old_perms;
        claim->shared = old_shared;
        insert_claim(claim, old_node, NULL); /* as it was under this very lock */
        return status;
    }
    node->references++;
    claim->node = node;
    block_drain_claim_changed(claim);
    return 0;
}

/* An export's may be released by any thread. Graph lock held. */
static int check_not_released(const struct block_claim *claim, GError **error)
{
    return claim->node ? 0 : block_error(error, ESHUTDOWN, "The %s has been removed", claim->owner);
}

int block_claim_move(struct block_claim *claim, struct block_node *node, unsigned perms,
                     unsigned shared, GError **error)
{
    pthread_mutex_lock(&block_graph_lock);
    struct block_node *old_node = claim->node;
    int status = check_not_released(claim, error);
    if (status == 0) {
        status = block_claim_move_locked(claim, node, perms, shared, error);
    }
    pthread_mutex_unlock(&block_graph_lock);
    if (status == 0) {
        block_node_unref(old_node);
    }
    return status;
}

int block_claim_replace(struct block_claim *claim, struct block_claim *other, unsigned perms,
                        unsigned shared, GError **error)
{
    struct block_node *node = other->node;

    pthread_mutex_lock(&block_graph_lock);
    block_drain_claim_removed(other); /* may drop the lock, so it comes first */
    remove_claim(other, node);
    struct block_node *old_node = claim->node;
    int status = check_not_released(claim, error);
    if (status == 0) {
        status = block_claim_move_locked(claim, node, perms, shared, error);
    }
    if (status < 0) {
        insert_claim(other, node, NULL); /* as it was under this very lock */
        block_drain_claim_changed(other);
    } else {
        other->node = NULL;
    }
    pthread_mutex_unlock(&block_graph_lock);
    if (status == 0) {
        block_node_unref(node);
        block_node_unref(old_node);
    }
    return status;
}

/* Graph lock held. parent: who passes the new length on, or NULL. */
static int check_resize(struct block_node *node, const struct block_node *parent, GError **error)
{
    struct block_claim *claim;

    TAILQ_FOREACH (claim, &node->claims, entry) {
        if (!(claim->shared & BLOCK_PERM_RESIZE) && !(parent && claim->parent == parent)) {
            return block_error(error, EBUSY, "Node '%s' is busy: %s does not let it be resized",
                               node->name, claim->owner);
        }
    }
    return node->driver->is_filter ? check_resize(node->file, node, error) : 0;
}

int block_node_check_resize(struct block_node *node, GError **error)
{
    SCOPE_LOCK(&block_graph_lock);

    return check_resize(node, NULL, error);
}

/* ---- Lists that end with NULL: notifiers, followers, bitmaps --------------------------------- */

static size_t list_length(void *const *list)
{
    size_t length = 0;

    while (list && list[length]) {
        length++;
    }
    return length;
}

static void *list_insert(void *old, void *entry, size_t position)
{
    size_t length = list_length(old);
    void **list = g_renew(void *, old, length + 2);

    g_assert(position <= length);
    memmove(list + position + 1, list + position, (length - position) * sizeof(*list));
    list[position] = entry;
    list[length + 1] = NULL;
    return list;
}

/* The entry's place, or the list's length. */
static size_t list_find(void *const *list, const void *entry)
{
    size_t position = 0;

    while (list && list[position] && list[position] != entry) {
        position++;
    }
    return position;
}

/* Without the entry at this place, if there is one. */
static void *list_remove(void *old, size_t position)
{
    size_t length = list_length(old);
    void **list = old;

    if (position >= length) {
        return list;
    }
    if (length == 1) {
        g_free(list);
        return NULL;
    }
    memmove(list + position, list + position + 1, (length - position) * sizeof(*list));
    return list;
}

void block_node_add_notifier(struct block_node *node, struct write_notifier *notifier)
{
    node->notifiers = list_insert(node->notifiers, notifier, list_length((void **)node->notifiers));
}

void block_node_remove_notifier(struct block_node *node, struct write_notifier *notifier)
{
    node->notifiers = list_remove(node->notifiers, list_find((void **)node->notifiers, notifier));
}

void block_node_add_follower(struct block_node *node, struct write_follower *follower)
{
    node->followers = list_insert(node->followers, follower, list_length((void **)node->followers));
}

void block_node_remove_follower(struct block_node *node, struct write_follower *follower)
{
    node->followers = list_remove(node->followers, list_find((void **)node->followers, follower));
}

void block_node_insert_bitmap(struct block_node *node, struct dirty_bitmap *bitmap, size_t position)
{
    node->bitmaps = list_insert(node->bitmaps, bitmap, position);
}

void block_node_add_bitmap(struct block_node *node, struct dirty_bitmap *bitmap)
{
    block_node_insert_bitmap(node, bitmap, list_length((void **)node->bitmaps));
}

size_t block_node_remove_bitmap(struct block_node *node, struct dirty_bitmap *bitmap)
{
    size_t position = list_find((void **)node->bitmaps, bitmap);

    node->bitmaps = list_remove(node->bitmaps, position);
    return position;
}

void block_node_replace_bitmap(struct block_node *node, struct dirty_bitmap *old_bitmap,
                               struct dirty_bitmap *new_bitmap)
{
    node->bitmaps[list_find((void **)node->bitmaps, old_bitmap)] = new_bitmap;
}

struct dirty_bitmap *block_node_find_bitmap(const struct block_node *node, const char *name)
{
    for (struct dirty_bitmap **bitmap = node->bitmaps; bitmap && *bitmap; bitmap++) {
        if (!g_strcmp0(dirty_bitmap_name(*bitmap), name)) {
            return *bitmap;
        }
    }
    return NULL;
}

uint64_t block_node_default_granularity(struct block_node *node)
{
    struct block_info info;
    uint64_t cluster_size = 0;

    if (block_node_get_info(node, &info) == 0) {
        cluster_size = info.cluster_size;
        block_info_clear(&info);
    }
    return cluster_size ? CLAMP(cluster_size, 4 * KIB, DIRTY_BITMAP_GRANULARITY_DEFAULT)
                        : DIRTY_BITMAP_GRANULARITY_DEFAULT;
}

/* Somebody above, directly or through nodes that hand growth on, who lets the node grow. Graph lock
 * held. */
static const struct block_node *find_grower(const struct block_node *node)
{
    const struct block_claim *claim;

    TAILQ_FOREACH (claim, &node->claims, entry) {
        const struct block_node *parent = claim->parent;
        const struct block_node *grower = NULL;

        if (parent && (parent->driver->grows_file || parent->driver->grows_target) &&
            claim->perms & BLOCK_PERM_RESIZE) {
            return parent;
        }
        if (parent && (parent->driver->is_filter || parent->driver->grow)) {
            grower = find_grower(parent);
        }
        if (grower) {
            return grower;
        }
    }
    return NULL;
}

int block_node_check_steady(struct block_node *node, GError **error)
{
    SCOPE_LOCK(&block_graph_lock);

    if (minds_no_length(node)) {
        return block_error(error, EBUSY,
                           "Node '%s' is a filter that nobody uses, so that what is below it may "
                           "get another length: use it first",
                           node->name);
    }
    const struct block_node *grower = find_grower(node);

    return grower
               ? block_error(error, EBUSY,
                             "Node '%s' grows while node '%s' is in use, and a bitmap would not: "
                             "use that node instead",
                             node->name, grower->name)
               : 0;
}

int block_node_check_sees_writes(struct block_node *node, GError **error)
{
    SCOPE_LOCK(&block_graph_lock);

    for (struct block_node *above = node; above->driver->is_filter && above->file;
         above = above->file) {
        struct block_claim *claim;

        TAILQ_FOREACH (claim, &above->file->claims, entry) {
            if (claim->parent != above && claim->perms & BLOCK_PERM_WRITE) {
                return block_error(error, EBUSY,
                                   "Node '%s' is a filter, and %s writes to node '%s' below it, "
                                   "which would not be noticed: use that node instead",
                                   node->name, claim->owner, above->file->name);
            }
        }
    }
    return 0;
}
