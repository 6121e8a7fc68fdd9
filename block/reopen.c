/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Reopening. All happens in one drained section:
 *
 *   1. claims of those that become writable on what is below them are raised
 *   2. all are prepared, parents first: who becomes read-only stores its bitmaps and writes what it
 *      keeps in memory, so what is below it must be writable still
 *   3. those that become writable are committed, children first, and write what opening for
 *      writing writes. That may fail, and then they become read-only again
 *   4. backing files, and filters above files, are exchanged, which may fail, too
 *   5. the others are committed, and claims of those that became read-only are lowered.
 */
#include "block/reopen.h"

#include <errno.h>

#include "block/chain.h"
#include "block/cleanup.h"
#include "block/drain.h"
#include "block/error.h"
#include "block/graph.h"
#include "block/main-loop.h"
#include "block/node-internal.h"
#include "block/reopen-internal.h"
#include "block/request.h"
#include "block/stored-bitmaps.h"

/* How often, and after what time, a node that somebody else reopens is tried again; guests may
 * stand still meanwhile. */
#define TRIES_MAX 50
#define TRY_US    10000

/* ---- The nodes ------------------------------------------------------------------------------ */

static void free_node(gpointer data)
{
    struct reopen_node *entry = data;
    struct block_node *node = entry->node;

    if (entry->values) {
        block_options_clear_target(node->driver->options, entry->values);
        g_free(entry->values);
    }
    block_options_free(entry->given);
    block_node_unref(entry->backing);
    block_node_unref(entry->old_backing);
    block_node_unref(entry->file);
    block_node_unref(entry->old_file);
    pthread_mutex_lock(&block_graph_lock);
    node->reopening = false;
    pthread_mutex_unlock(&block_graph_lock);
    block_node_unref(node);
    g_free(entry);
}

void reopen_init(struct reopen *reopen)
{
    reopen->nodes = g_ptr_array_new_with_free_func(free_node);
}

void reopen_destroy(struct reopen *reopen)
{
    g_ptr_array_unref(reopen->nodes);
}

static struct reopen_node *entry_at(const struct reopen *reopen, guint i)
{
    return g_ptr_array_index(reopen->nodes, i);
}

struct reopen_node *reopen_find(const struct reopen *reopen, const struct block_node *node)
{
    for (guint i = 0; i < reopen->nodes->len; i++) {
        if (entry_at(reopen, i)->node == node) {
            return entry_at(reopen, i);
        }
    }
    return NULL;
}

struct reopen_node *reopen_add(struct reopen *reopen, struct block_node *node, GError **error)
{
    if (node->reopening) {
        block_error(error, EAGAIN, "Node '%s' is busy: it is being reopened", node->name);
        return NULL;
    }
    struct reopen_node *entry = g_new0(struct reopen_node, 1);
    entry->node = node;
    entry->options = node->options;
    entry->old_options = node->options;
    node->references++;
    node->reopening = true;
    g_ptr_array_add(reopen->nodes, entry);
    return entry;
}

static bool becomes_writable(const struct reopen_node *entry)
{
    return entry->old_options.read_only && !entry->options.read_only;
}

static bool becomes_read_only(const struct reopen_node *entry)
{
    return !entry->old_options.read_only && entry->options.read_only;
}

/* Whether a parent's data is in a child, so that the one cannot be writable without the other. */
static bool keeps_data(enum block_role role)
{
    return role != BLOCK_ROLE_BACKING && role != BLOCK_ROLE_TARGET;
}

int reopen_add_children(struct reopen *reopen, const struct reopen_node *entry, GError **error)
{
    const struct block_child *child;

    if (!becomes_writable(entry) && !becomes_read_only(entry)) {
        return 0;
    }
    TAILQ_FOREACH (child, &entry->node->children, entry) {
        struct block_node *node = child->claim.node;

        if (!keeps_data(child->role) || reopen_find(reopen, node) ||
            node->options.read_only == entry->options.read_only) {
            continue;
        }
        struct reopen_node *below = reopen_add(reopen, node, error);
        if (!below) {
            return -EAGAIN;
        }
        below->options.read_only = entry->options.read_only;
        int status = reopen_add_children(reopen, below, error);
        if (status < 0) {
            return status;
        }
    }
    return 0;
}

/* Whether a node is read-only afterwards. */
static bool will_be_read_only(const struct reopen *reopen, const struct block_node *node)
{
    const struct reopen_node *entry = reopen_find(reopen, node);

    return entry ? entry->options.read_only : node->options.read_only;
}

/* ---- Locks ---------------------------------------------------------------------------------- */

static gint parents_first(gconstpointer a, gconstpointer b)
{
    const struct block_node *x = (*(struct reopen_node *const *)a)->node;
    const struct block_node *y = (*(struct reopen_node *const *)b)->node;

    if (x->height != y->height) {
        return x->height > y->height ? -1 : 1;
    }
    return x->serial < y->serial ? -1 : x->serial > y->serial;
}

/* Whether hooks of another node may change the length of this one, which takes its lock. */
static bool is_below_grower(const struct reopen *reopen, const struct block_node *node)
{
    for (guint i = 0; i < reopen->nodes->len; i++) {
        const struct block_node *other = entry_at(reopen, i)->node;

        if (other != node && other->driver->grows_file && block_node_is_above(other, node)) {
            return true;
        }
    }
    return false;
}

static void lock_nodes(struct reopen *reopen)
{
    pthread_mutex_lock(&block_graph_lock);
    g_ptr_array_sort(reopen->nodes, parents_first);
    for (guint i = 0; i < reopen->nodes->len; i++) {
        entry_at(reopen, i)->holds_lock = !is_below_grower(reopen, entry_at(reopen, i)->node);
    }
    pthread_mutex_unlock(&block_graph_lock);
    for (guint i = 0; i < reopen->nodes->len; i++) {
        if (entry_at(reopen, i)->holds_lock) {
            pthread_mutex_lock(&entry_at(reopen, i)->node->operation_lock);
        }
    }
}

static void unlock_nodes(struct reopen *reopen)
{
    for (guint i = reopen->nodes->len; i-- > 0;) {
        if (entry_at(reopen, i)->holds_lock) {
            pthread_mutex_unlock(&entry_at(reopen, i)->node->operation_lock);
        }
    }
}

static void begin_hook(const struct reopen_node *entry)
{
    if (!entry->holds_lock) {
        pthread_mutex_lock(&entry->node->operation_lock);
    }
}

static void end_hook(const struct reopen_node *entry)
{
    if (!entry->holds_lock) {
        pthread_mutex_unlock(&entry->node->operation_lock);
    }
}

/* ---- Checks --------------------------------------------------------------------------------- */

static const struct block_child *child_of(const struct block_claim *claim)
{
    return (const struct block_child *)((const char *)claim - offsetof(struct block_child, claim));
}

/* Graph lock held. Nobody who writes there may find it read-only. */
static int check_users(const struct reopen *reopen, const struct block_node *node, GError **error)
{
    const unsigned writing = BLOCK_PERM_WRITE | BLOCK_PERM_WRITE_UNCHANGED | BLOCK_PERM_RESIZE;
    const struct block_claim *claim;

    TAILQ_FOREACH (claim, &node->claims, entry) {
        const struct block_node *parent = claim->parent;

        if (parent && will_be_read_only(reopen, parent)) {
            continue;
        }
        if (claim->perms & writing) {
            return block_error(error, EBUSY,
                               "Read-only block node '%s' cannot support read-write users, and %s "
                               "writes to it",
                               node->name, claim->owner);
        }
        if (parent && keeps_data(child_of(claim)->role)) {
            return block_error(error, EBUSY,
                               "Node '%s' is busy: node '%s' above it is writable, so it cannot "
                               "become read-only",
                               node->name, parent->name);
        }
    }
    return 0;
}

/* Graph lock held. What a writer needs below it. */
static int check_children(const struct reopen *reopen, const struct block_node *node,
                          GError **error)
{
    const struct block_child *child;

    TAILQ_FOREACH (child, &node->children, entry) {
        if (child->role == BLOCK_ROLE_BACKING) {
            continue;
        }
        if (will_be_read_only(reopen, child->claim.node)) {
            return block_error(error, EACCES,
                               "Node '%s' cannot become writable: node '%s' below it is read-only",
                               node->name, child->claim.node->name);
        }
        if (block_driver_grows(node->driver, child->role) &&
            block_node_check_growable(child->claim.node, error) < 0) {
            return -EBUSY;
        }
    }
    return 0;
}

static int check(const struct reopen *reopen, GError **error)
{
    int status = 0;
    SCOPE_LOCK(&block_graph_lock);

    for (guint i = 0; status == 0 && i < reopen->nodes->len; i++) {
        const struct reopen_node *entry = entry_at(reopen, i);

        if (!entry->options.read_only && entry->options.force_share) {
            status = block_error(error, EINVAL,
                                 "Node '%s' cannot become writable: it shares its image with other "
                                 "programs (force-share=on)",
                                 entry->node->name);
        } else if (becomes_read_only(entry)) {
            status = check_users(reopen, entry->node, error);
        } else if (becomes_writable(entry)) {
            status = check_children(reopen, entry->node, error);
        }
    }
    return status;
}

/* ---- Claims on children --------------------------------------------------------------------- */

/* A filter claims its file as its own users do, whoever they are. */
static bool has_own_claim(const struct block_node *node, const struct block_child *child)
{
    return child->role != BLOCK_ROLE_BACKING &&
           !(node->driver->is_filter && child->role == BLOCK_ROLE_FILE);
}

/* To use less, and to share the same, is never refused. */
static int change_claims(struct block_node *node, bool read_only, GError **error)
{
    struct block_child *child;

    TAILQ_FOREACH (child, &node->children, entry) {
        unsigned perms, shared;

        if (!has_own_claim(node, child)) {
            continue;
        }
        block_child_permissions(node, child->role, read_only, &perms, &shared);
        int status = block_claim_change(&child->claim, perms, shared, error);
        if (status < 0) {
            change_claims(node, true, NULL);
            return status;
        }
    }
    return 0;
}

static int raise_claims(struct reopen *reopen, GError **error)
{
    for (guint i = reopen->nodes->len; i-- > 0;) {
        struct reopen_node *entry = entry_at(reopen, i);
        int status = becomes_writable(entry) ? change_claims(entry->node, false, error) : 0;

        if (status < 0) {
            return status;
        }
        entry->raised_claims = becomes_writable(entry);
    }
    return 0;
}

static void lower_claims(struct reopen *reopen)
{
    for (guint i = 0; i < reopen->nodes->len; i++) {
        struct reopen_node *entry = entry_at(reopen, i);

        if (entry->node->options.read_only && (entry->raised_claims || becomes_read_only(entry))) {
            change_claims(entry->node, true, NULL);
            entry->raised_claims = false;
        }
    }
}

/* ---- Hooks ---------------------------------------------------------------------------------- */

static int driver_prepare(struct reopen_node *entry, void *values,
                          const struct block_node_options *options, GError **error)
{
    struct block_node *node = entry->node;

    if (!node->driver->reopen_prepare) {
        return node->driver->is_filter
                   ? 0
                   : block_error(error, ENOTSUP,
                                 "Block format '%s' used by node '%s' does not support reopening",
                                 node->driver->name, node->name);
    }
    begin_hook(entry);
    int status = node->driver->reopen_prepare(node, values, options, &entry->prepared, error);
    end_hook(entry);
    return status;
}

/* What is stored when a node is closed is stored now: its image will not be written to. */
static int suspend_bitmaps(struct reopen_node *entry, GError **error)
{
    begin_hook(entry);
    int status = block_stored_bitmaps_suspend(entry->node, error);
    end_hook(entry);
    return status;
}

static void bitmaps_reopened(struct reopen *reopen)
{
    for (guint i = 0; i < reopen->nodes->len; i++) {
        struct reopen_node *entry = entry_at(reopen, i);

        begin_hook(entry);
        block_stored_bitmaps_reopened(entry->node, entry->old_options.read_only);
        end_hook(entry);
    }
}

static int prepare_node(struct reopen_node *entry, GError **error)
{
    struct block_node *node = entry->node;
    int status = becomes_read_only(entry) ? block_node_flush(node) : 0;

    if (status < 0) {
        return block_error_errno(error, -status, "Could not flush node '%s'", node->name);
    }
    status = becomes_read_only(entry) ? suspend_bitmaps(entry, error) : 0;
    if (status < 0) {
        return status;
    }
    status = driver_prepare(entry, entry->values, &entry->options, error);
    entry->is_prepared = status == 0;
    return status;
}

static void set_options(struct block_node *node, const struct block_node_options *options)
{
    node->options.read_only = options->read_only;
    node->options.auto_read_only = options->auto_read_only;
    node->options.force_share = options->force_share;
    node->options.discard_unmap = options->discard_unmap;
    node->options.detect_zeroes = options->detect_zeroes;
    node->options.cache_direct = options->cache_direct;
    node->options.cache_no_flush = options->cache_no_flush;
}

static void commit_node(struct reopen_node *entry, const struct block_node_options *options)
{
    struct block_node *node = entry->node;

    if (node->driver->reopen_commit) {
        begin_hook(entry);
        node->driver->reopen_commit(node, entry->prepared);
        end_hook(entry);
    }
    entry->is_prepared = false;
    entry->prepared = NULL;
    set_options(node, options);
}

static void abort_node(struct reopen_node *entry)
{
    if (entry->is_prepared && entry->node->driver->reopen_abort) {
        begin_hook(entry);
        entry->node->driver->reopen_abort(entry->node, entry->prepared);
        end_hook(entry);
    }
    entry->is_prepared = false;
}

static int begin_writing(struct reopen_node *entry, GError **error)
{
    struct block_node *node = entry->node;
    int status = 0;

    if (node->driver->reopen_begin_writing) {
        begin_hook(entry);
        status = node->driver->reopen_begin_writing(node, error);
        end_hook(entry);
    }
    entry->begins_writing = status == 0;
    return status;
}

/* ---- The steps ------------------------------------------------------------------------------ */

static int prepare(struct reopen *reopen, GError **error)
{
    int status = 0;

    for (guint i = 0; status == 0 && i < reopen->nodes->len; i++) {
        status = prepare_node(entry_at(reopen, i), error);
    }
    return status;
}

static int make_writable(struct reopen *reopen, GError **error)
{
    int status = 0;

    for (guint i = reopen->nodes->len; status == 0 && i-- > 0;) {
        struct reopen_node *entry = entry_at(reopen, i);

        if (becomes_writable(entry)) {
            commit_node(entry, &entry->options);
            entry->is_writable = true;
            status = begin_writing(entry, error);
        }
    }
    return status;
}

/* The driver's options as they were, if they were to change. */
static void *extract_old_values(const struct reopen_node *entry)
{
    const struct block_driver *driver = entry->node->driver;
    g_autofree void *values = g_malloc0(MAX(driver->options_size, 1));

    if (!entry->values || !entry->node->given) {
        return NULL;
    }
    AUTO(block_options) given = block_options_copy(entry->node->given);
    return block_options_extract(given, driver->options, values, NULL, NULL) == 0
               ? g_steal_pointer(&values)
               : NULL;
}

static int driver_take_back(struct reopen_node *entry, GError **error)
{
    g_autofree void *values = extract_old_values(entry);
    int status = driver_prepare(entry, values, &entry->old_options, error);

    if (status == 0) {
        commit_node(entry, &entry->old_options);
    }
    if (values) {
        block_options_clear_target(entry->node->driver->options, values);
    }
    return status;
}

/*
 * Of one that has written nothing it is only said. What the others wrote for those above them need
 * not become stable: that they wrote it in vain is no worse than a crash.
 */
static int take_back_node(struct reopen_node *entry)
{
    g_autoptr(GError) error = NULL;
    int status = 0;

    if (entry->begins_writing) {
        block_node_flush(entry->node);
        status = driver_take_back(entry, &error);
    } else {
        set_options(entry->node, &entry->old_options);
    }
    if (status < 0) {
        g_warning("Node '%s' stays writable, although it was to be so only with others: %s",
                  entry->node->name, error->message);
    }
    return status;
}

/* As far as possible: what is below one that cannot go back has to stay, too. */
static void take_back(struct reopen *reopen)
{
    int status = 0;

    for (guint i = 0; i < reopen->nodes->len; i++) {
        abort_node(entry_at(reopen, i));
    }
    for (guint i = 0; status == 0 && i < reopen->nodes->len; i++) {
        struct reopen_node *entry = entry_at(reopen, i);

        if (entry->is_writable) {
            entry->options = entry->old_options;
            status = take_back_node(entry);
        }
    }
}

static void keep_given(struct reopen_node *entry)
{
    if (entry->given) {
        block_options_free(entry->node->given);
        entry->node->given = STEAL(entry->given);
    }
}

static void commit_others(struct reopen *reopen)
{
    for (guint i = 0; i < reopen->nodes->len; i++) {
        struct reopen_node *entry = entry_at(reopen, i);

        if (!entry->is_writable) {
            commit_node(entry, &entry->options);
        }
        keep_given(entry);
    }
}

/* ---- Other children -------------------------------------------------------------------------- */

struct children {
    struct reopen *reopen;
    GError **error;
    int status;
};

static int set_backing(struct reopen_node *entry, struct block_node *backing, GError **error)
{
    int status = block_node_set_backing(entry->node, backing, NULL, error);

    if (status == 0) {
        entry->node->refuses_backing = !backing;
    }
    return status;
}

static int set_children(struct reopen_node *entry, GError **error)
{
    struct block_node *node = entry->node;
    int status = 0;

    if (entry->changes_backing) {
        entry->old_backing = node->backing ? block_node_ref(node->backing) : NULL;
        status = set_backing(entry, entry->backing, error);
        entry->has_new_backing = status == 0;
    }
    if (status == 0 && entry->file) {
        struct block_node *old = block_node_ref(node->file);

        status = block_node_set_file(node, entry->file, NULL, error);
        if (status == 0) {
            entry->old_file = old;
        } else {
            block_node_unref(old);
        }
    }
    return status;
}

static void put_back(struct reopen_node *entry)
{
    if (entry->old_file && block_node_set_file(entry->node, entry->old_file, NULL, NULL) < 0) {
        g_warning("Node '%s' could not get its file back", entry->node->name);
    }
    if (entry->has_new_backing && set_backing(entry, entry->old_backing, NULL) < 0) {
        g_warning("Node '%s' could not get its backing file back", entry->node->name);
    }
}

/* What was moved before one that cannot be goes back. */
static void set_all_children(void *data)
{
    struct children *children = data;
    const struct reopen *reopen = children->reopen;

    for (guint i = 0; children->status == 0 && i < reopen->nodes->len; i++) {
        children->status = set_children(entry_at(reopen, i), children->error);
    }
    for (guint i = reopen->nodes->len; children->status < 0 && i-- > 0;) {
        put_back(entry_at(reopen, i));
    }
}

static int change_children(struct reopen *reopen, GError **error)
{
    struct children children = {.reopen = reopen, .error = error};
    bool is_wanted = false;

    for (guint i = 0; i < reopen->nodes->len; i++) {
        is_wanted |= entry_at(reopen, i)->changes_backing || entry_at(reopen, i)->file;
    }
    if (is_wanted) {
        main_loop_call_wait(set_all_children, &children);
    }
    return children.status;
}

/* ---- All of it ------------------------------------------------------------------------------ */

static int run_drained(struct reopen *reopen, GError **error)
{
    int status = check(reopen, error);

    if (status == 0) {
        status = raise_claims(reopen, error);
    }
    if (status == 0) {
        status = prepare(reopen, error);
    }
    if (status == 0) {
        status = make_writable(reopen, error);
    }
    if (status == 0) {
        status = change_children(reopen, error);
    }
    if (status == 0) {
        commit_others(reopen);
    } else {
        take_back(reopen);
    }
    bitmaps_reopened(reopen);
    lower_claims(reopen);
    return status;
}

int reopen_run(struct reopen *reopen, GError **error)
{
    guint count = reopen->nodes->len;
    g_autofree struct block_node **nodes = g_new(struct block_node *, count);

    for (guint i = 0; i < count; i++) {
        nodes[i] = entry_at(reopen, i)->node;
    }
    AUTO(block_drain) drain = block_drain_begin(nodes, count, BLOCK_PERM_ALL);
    lock_nodes(reopen);
    int status = run_drained(reopen, error);
    unlock_nodes(reopen);
    return status;
}

/* ---- Read-only or not ----------------------------------------------------------------------- */

static int collect(struct reopen *reopen, struct block_node *node, bool read_only, GError **error)
{
    SCOPE_LOCK(&block_graph_lock);
    struct reopen_node *entry = reopen_add(reopen, node, error);

    if (!entry) {
        return -EAGAIN;
    }
    entry->options.read_only = read_only;
    return reopen_add_children(reopen, entry, error);
}

static int set_read_only_once(struct block_node *node, bool read_only, GError **error)
{
    struct reopen reopen;

    reopen_init(&reopen);
    int status = collect(&reopen, node, read_only, error);
    if (status == 0) {
        status = reopen_run(&reopen, error);
    }
    reopen_destroy(&reopen);
    return status;
}

/* Somebody else may just be giving the node other options, which takes a moment. */
int block_node_set_read_only(struct block_node *node, bool read_only, GError **error)
{
    for (unsigned tries = 1; node->options.read_only != read_only; tries++) {
        g_autoptr(GError) own_error = NULL;
        int status = set_read_only_once(node, read_only, &own_error);

        if (status == 0) {
            return 0;
        }
        if (status != -EAGAIN || tries == TRIES_MAX) {
            g_propagate_error(error, g_steal_pointer(&own_error));
            return status;
        }
        g_usleep(TRY_US);
    }
    return 0;
}
