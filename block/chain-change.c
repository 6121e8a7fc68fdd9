/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Changing a chain. Each change is made whole under one hold of the graph lock, so that nobody who
 * claims a node meanwhile can come in between and nothing has to be taken back later.
 */
#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/chain.h"
#include "block/cleanup.h"
#include "block/dirty-bitmap.h"
#include "block/error.h"
#include "block/graph.h"
#include "block/node-internal.h"

static int refuse(const struct block_node *node, const struct block_claim *claim, GError **error)
{
    return block_error(error, EBUSY, "Node '%s' is busy: %s does not let the graph change there",
                       node->name, claim->owner);
}

/* Graph lock held, as in the functions that follow. */
static int check_shared(const struct block_node *node, unsigned perms,
                        const struct block_claim *holder, GError **error)
{
    const struct block_claim *claim;

    TAILQ_FOREACH (claim, &node->claims, entry) {
        if (claim != holder && perms & ~claim->shared) {
            return refuse(node, claim, error);
        }
    }
    return 0;
}

static struct block_child *find_child(const struct block_node *node, enum block_role role)
{
    struct block_child *child;

    TAILQ_FOREACH (child, &node->children, entry) {
        if (child->role == role) {
            return child;
        }
    }
    return NULL;
}

/* The child of a parent that this claim is the link of. */
static struct block_child *child_of(const struct block_claim *claim)
{
    return (struct block_child *)((char *)claim - offsetof(struct block_child, claim));
}

/* After a change below it: what a node keeps about what is under it, and those above it. */
static void refresh_upwards(struct block_node *node)
{
    const struct block_child *child;
    const struct block_claim *claim;
    unsigned height = 1;

    TAILQ_FOREACH (child, &node->children, entry) {
        height = MAX_OF(height, child->claim.node->height + 1);
    }
    node->height = height;
    if (node->driver->is_filter && !node->driver->get_length && node->file) {
        atomic_store(&node->length, block_node_length(node->file));
    }
    TAILQ_FOREACH (claim, &node->claims, entry) {
        if (claim->parent) {
            refresh_upwards(claim->parent);
        }
    }
}

/* The link's parent sends its requests there from now on. */
static void relink(struct block_child *child)
{
    struct block_node *parent = child->claim.parent;

    if (child->role == BLOCK_ROLE_FILE) {
        parent->file = child->claim.node;
    } else if (child->role == BLOCK_ROLE_BACKING) {
        parent->backing = child->claim.node;
    }
    refresh_upwards(parent);
}

/* ---- Another backing file -------------------------------------------------------------------- */

static int move_backing(struct block_child *child, struct block_node *backing, GError **error)
{
    struct block_claim *link = &child->claim;
    int status = block_claim_move_locked(link, backing, link->perms, link->shared, error);

    if (status == 0) {
        relink(child);
    }
    return status;
}

static int add_backing(struct block_node *node, struct block_node *backing, GError **error)
{
    struct block_child *child = block_child_new(node, "backing");
    int status = block_claim_acquire_locked(&child->claim, backing, error);

    if (status < 0) {
        block_child_free(child);
        return status;
    }
    TAILQ_INSERT_TAIL(&node->children, child, entry);
    relink(child);
    return 0;
}

/* The claim stays to be released when the lock is free. */
static void take_backing(struct block_node *node, struct block_child *child)
{
    TAILQ_REMOVE(&node->children, child, entry);
    node->backing = NULL;
    child->claim.parent = NULL; /* no drain goes on from there any more */
    refresh_upwards(node);
}

int block_node_set_backing(struct block_node *node, struct block_node *backing,
                           const struct block_claim *holder, GError **error)
{
    struct block_node *old = node->backing;
    int status = 0;

    if (old == backing) {
        return 0;
    }
    if (backing && !block_driver_takes_backing(node->driver)) {
        return block_error(error, ENOTSUP,
                           "Driver '%s' of node '%s' does not support backing files",
                           node->driver->name, node->name);
    }
    pthread_mutex_lock(&block_graph_lock);
    struct block_child *child = find_child(node, BLOCK_ROLE_BACKING);
    status = check_shared(node, BLOCK_PERM_BACKING, holder, error);
    if (status == 0 && !backing) {
        take_backing(node, child);
    } else if (status == 0) {
        status = child ? move_backing(child, backing, error) : add_backing(node, backing, error);
    }
    pthread_mutex_unlock(&block_graph_lock);
    if (status == 0 && !backing) {
        block_claim_release(&child->claim);
        block_child_free(child);
    } else if (status == 0) {
        block_node_unref(old);
    }
    return status;
}

/* ---- Another node in a node's place ---------------------------------------------------------- */

static bool follows(const struct block_claim *claim, const struct block_node *replacement)
{
    if (claim->parent) {
        return !block_node_is_above(replacement, claim->parent);
    }
    return claim->operations && claim->operations->follows_place;
}

static int check_writable(const struct block_claim *claim, const struct block_node *replacement,
                          GError **error)
{
    return claim->perms & BLOCK_PERM_WRITE && block_node_is_read_only(replacement)
               ? block_error(error, EACCES, "Node '%s' is read-only, and %s writes",
                             replacement->name, claim->owner)
               : 0;
}

static int move_place(struct block_claim *claim, struct block_node *replacement, GError **error)
{
    int status = check_writable(claim, replacement, error);

    if (status == 0) {
        status = block_claim_move_locked(claim, replacement, claim->perms, claim->shared, error);
    }
    if (status == 0 && claim->parent) {
        relink(child_of(claim));
    }
    return status;
}

/* The claims on the node that are to go; those that went before one that cannot come back. */
static int move_places(GPtrArray *claims, struct block_node *node, struct block_node *replacement,
                       GError **error)
{
    for (guint i = 0; i < claims->len; i++) {
        int status = move_place(g_ptr_array_index(claims, i), replacement, error);

        while (status < 0 && i-- > 0) {
            move_place(g_ptr_array_index(claims, i), node, NULL); /* as it was under this lock */
            node->references--;
            replacement->references--;
        }
        if (status < 0) {
            return status;
        }
    }
    return 0;
}

/* ---- A filter above the file, or one less -----------------------------------------------------
 */

static bool is_in_filters(const struct block_node *node, const struct block_node *top)
{
    while (top != node && top->driver->is_filter && top->file) {
        top = top->file;
    }
    return top == node;
}

static bool follows_writes(const struct block_node *node)
{
    for (struct dirty_bitmap **bitmap = node->bitmaps; bitmap && *bitmap; bitmap++) {
        if (dirty_bitmap_enabled(*bitmap)) {
            return true;
        }
    }
    return node->notifiers != NULL || node->followers != NULL;
}

int block_chain_check_followers(struct block_node *from, struct block_node *to, const char *user,
                                GError **error)
{
    const struct block_node *data = block_node_below_filters(from);

    if (data != block_node_below_filters(to)) {
        return 0;
    }
    for (struct block_node *node = from; node != data; node = node->file) {
        if (!is_in_filters(node, to) && follows_writes(node)) {
            return block_error(error, EBUSY,
                               "Node '%s' is busy: a job or a dirty bitmap follows the writes "
                               "that pass through it, and %s would write past it",
                               node->name, user);
        }
    }
    return 0;
}

static int check_file(struct block_node *node, struct block_node *file, GError **error)
{
    if (node->file->is_transient || file->is_transient) {
        return block_error(error, EBUSY,
                           "Node '%s' is busy: a job has put a filter there for a while",
                           node->file->is_transient ? node->file->name : file->name);
    }
    if (block_node_below_filters(node->file) != block_node_below_filters(file)) {
        return block_error(error, EINVAL,
                           "Node '%s' cannot get '%s' as its file: it holds other data than '%s'",
                           node->name, file->name, node->file->name);
    }
    g_autofree char *user = g_strdup_printf("node '%s'", node->name);
    return block_chain_check_followers(node->file, file, user, error);
}

int block_node_set_file(struct block_node *node, struct block_node *file,
                        const struct block_claim *holder, GError **error)
{
    struct block_node *old = node->file;
    int status = 0;

    if (old == file) {
        return 0;
    }
    pthread_mutex_lock(&block_graph_lock);
    status = check_file(node, file, error);
    if (status == 0) {
        status = check_shared(node, BLOCK_PERM_BACKING, holder, error);
    }
    if (status == 0) {
        status = check_shared(old, BLOCK_PERM_GRAPH, holder, error);
    }
    if (status == 0) {
        status = move_place(&find_child(node, BLOCK_ROLE_FILE)->claim, file, error);
    }
    pthread_mutex_unlock(&block_graph_lock);
    if (status == 0) {
        block_node_unref(old);
    }
    return status;
}

/* ---- Replicas that come and go ---------------------------------------------------------------
 */

/* One above the highest there is. */
static char *new_replica_name(const struct block_node *parent)
{
    static const size_t skip = sizeof("children.") - 1;
    const struct block_child *child;
    uint64_t next = 0;

    TAILQ_FOREACH (child, &parent->children, entry) {
        if (child->role == BLOCK_ROLE_REPLICA) {
            next = MAX_OF(next, g_ascii_strtoull(child->name + skip, NULL, 10) + 1);
        }
    }
    return g_strdup_printf("children.%" G_GUINT64_FORMAT, next);
}

/* Who gives nodes other options goes by the children they have. */
static int check_not_reopening(const struct block_node *node, GError **error)
{
    return node->reopening
               ? block_error(error, EBUSY, "Node '%s' is busy: it is being reopened", node->name)
               : 0;
}

static int check_new_replica(const struct block_node *parent, const struct block_node *node,
                             GError **error)
{
    const struct block_claim *claim;

    TAILQ_FOREACH (claim, &node->claims, entry) {
        if (claim->parent) {
            return block_error(error, EBUSY, "The node %s already has a parent", node->name);
        }
    }
    if (node->options.read_only && !parent->options.read_only) {
        return block_error(error, EACCES,
                           "Block node '%s' is read-only, and node '%s' writes to all its children",
                           node->name, parent->name);
    }
    int status = check_not_reopening(parent, error);
    return status == 0 ? check_not_reopening(node, error) : status;
}

/* What a claim brings with it (a filter's length) is there when the driver looks. */
static int link_replica(struct block_node *parent, struct block_child *child,
                        struct block_node *node, GError **error)
{
    int status = check_new_replica(parent, node, error);

    if (status == 0) {
        status = block_claim_acquire_locked(&child->claim, node, error);
    }
    if (status == 0) {
        status = parent->driver->check_replicas(parent, node, error);
    }
    if (status == 0) {
        TAILQ_INSERT_TAIL(&parent->children, child, entry);
        refresh_upwards(parent);
    }
    return status;
}

static bool has_bitmaps(const struct block_node *node)
{
    SCOPE_LOCK(&block_graph_lock);

    return block_node_check_growable(node, NULL) < 0;
}

int block_node_add_replica(struct block_node *parent, struct block_node *node, GError **error)
{
    if (!parent->driver->check_replicas) {
        return block_error(error, ENOTSUP, "The node %s does not support adding a child",
                           parent->name);
    }
    /* A format above lets its storage grow, and bitmaps would not grow with it. */
    if (has_bitmaps(node) && block_node_check_steady(parent, error) < 0) {
        return -EBUSY;
    }
    pthread_mutex_lock(&block_graph_lock);
    g_autofree char *name = new_replica_name(parent);
    struct block_child *child = block_child_new(parent, name);
    int status = link_replica(parent, child, node, error);
    pthread_mutex_unlock(&block_graph_lock);
    if (status < 0) {
        block_claim_release(&child->claim); /* if it was acquired */
        block_child_free(child);
    }
    return status;
}

/* The link, taken out of the list; NULL with the error set if there is none or it must stay. */
static struct block_child *unlink_replica(struct block_node *parent, const char *name,
                                          GError **error)
{
    struct block_child *child;

    TAILQ_FOREACH (child, &parent->children, entry) {
        if (!strcmp(child->name, name)) {
            break;
        }
    }
    if (!child) {
        block_error(error, ENOENT, "Node '%s' does not have child '%s'", parent->name, name);
        return NULL;
    }
    if (!parent->driver->check_replicas) {
        block_error(error, ENOTSUP,
                    "The node %s does not support removing a child: blockdev-reopen gives it "
                    "another one",
                    parent->name);
        return NULL;
    }
    if (check_not_reopening(parent, error) < 0 ||
        parent->driver->check_replicas(parent, NULL, error) < 0) {
        return NULL;
    }
    TAILQ_REMOVE(&parent->children, child, entry);
    child->claim.parent = NULL; /* no drain goes on from there any more */
    refresh_upwards(parent);
    return child;
}

int block_node_remove_replica(struct block_node *parent, const char *name,
                              struct block_node **removed, GError **error)
{
    pthread_mutex_lock(&block_graph_lock);
    struct block_child *child = unlink_replica(parent, name, error);

    if (child) {
        *removed = child->claim.node;
        (*removed)->references++;
    }
    pthread_mutex_unlock(&block_graph_lock);
    if (!child) {
        return -EINVAL;
    }
    block_claim_release(&child->claim);
    block_child_free(child);
    return 0;
}

/* ---- All who use a node ---------------------------------------------------------------------- */

/* Graph lock held. *moved: how many claims keep a reference to the node, for drop_references. */
static int move_followers(struct block_node *node, struct block_node *replacement, guint *moved,
                          GError **error)
{
    g_autoptr(GPtrArray) claims = g_ptr_array_new();
    struct block_claim *claim;

    TAILQ_FOREACH (claim, &node->claims, entry) {
        if (follows(claim, replacement)) {
            g_ptr_array_add(claims, claim);
        }
    }
    int status = move_places(claims, node, replacement, error);
    *moved = status == 0 ? claims->len : 0;
    return status;
}

/* Graph lock free. */
static void drop_references(struct block_node *node, guint count)
{
    while (count-- > 0) {
        block_node_unref(node);
    }
}

int block_node_replace(struct block_node *node, struct block_node *replacement,
                       const struct block_claim *holder, GError **error)
{
    guint moved = 0;

    pthread_mutex_lock(&block_graph_lock);
    int status = check_shared(node, BLOCK_PERM_GRAPH, holder, error);
    if (status == 0) {
        status = move_followers(node, replacement, &moved, error);
    }
    pthread_mutex_unlock(&block_graph_lock);
    drop_references(node, moved);
    return status;
}

/* Graph lock held. Of those who would be moved. */
static int check_movable(const struct block_node *node, const struct block_node *replacement,
                         GError **error)
{
    const struct block_claim *claim;

    TAILQ_FOREACH (claim, &node->claims, entry) {
        if (follows(claim, replacement) && !(claim->shared & BLOCK_PERM_GRAPH)) {
            return refuse(node, claim, error);
        }
    }
    return 0;
}

/* to: NULL: what from, a filter, is above. */
static int exchange(struct block_node *from, struct block_node *to, GError **error)
{
    guint moved = 0;

    pthread_mutex_lock(&block_graph_lock);
    to = to ? to : from->file;
    int status = check_movable(from, to, error);
    if (status == 0) {
        status = move_followers(from, to, &moved, error);
    }
    pthread_mutex_unlock(&block_graph_lock);
    drop_references(from, moved);
    return status;
}

int block_node_insert_filter(struct block_node *node, struct block_node *filter, GError **error)
{
    return exchange(node, filter, error);
}

int block_node_remove_filter(struct block_node *filter, GError **error)
{
    return exchange(filter, NULL, error);
}
