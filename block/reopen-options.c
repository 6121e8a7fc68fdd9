/* SPDX-License-Identifier: BSD-3-Clause */
/* Reopening nodes with options as they were opened with: what they mean for an open node. */
#include <errno.h>
#include <string.h>

#include "block/chain.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "block/graph.h"
#include "block/node-internal.h"
#include "block/reopen-internal.h"
#include "block/reopen.h"

/* Whether nodes that are read-only stay so where auto-read-only lets them. */
struct plan {
    struct reopen reopen;
    bool keeps_automatic;
};

static int add_node(struct plan *plan, struct block_node *node, struct block_options *options,
                    GError **error);

/* ---- Children ------------------------------------------------------------------------------- */

/* A new reference, or NULL. */
static struct block_node *find_child(const struct block_node *node, const char *name)
{
    SCOPE_LOCK(&block_graph_lock);
    struct block_node *child = block_node_child(node, name);

    if (child) {
        child->references++;
    }
    return child;
}

static int cannot_replace(const struct block_node *node, const struct block_node *child,
                          const char *name, GError **error)
{
    return child ? block_error(error, EINVAL,
                               "Node '%s' cannot get another '%s' while it is open: give '%s', or "
                               "an object that reopens it",
                               node->name, name, child->name)
                 : block_error(error, EINVAL, "Node '%s' cannot get a '%s' while it is open",
                               node->name, name);
}

/* What an object says of a child; as at opening it takes over what its parent has. */
static int take_inline(struct plan *plan, const struct reopen_node *entry, struct block_node *child,
                       const char *name, struct block_options *options, GError **error)
{
    AUTO(block_options) nested = block_options_take_nested(options, name);
    g_autofree char *node_name = block_options_take(nested, "node-name");

    if (!child || (node_name && strcmp(node_name, child->name))) {
        return cannot_replace(entry->node, child, name, error);
    }
    block_node_inherit_options(&entry->options, name, nested);
    return add_node(plan, child, nested, error);
}

static int take_backing(struct reopen_node *entry, const struct block_node *child,
                        const char *reference, GError **error)
{
    if (!reference) {
        return child ? block_error(error, EINVAL,
                                   "backing is missing for '%s': give '%s' to keep it, or null",
                                   entry->node->name, child->name)
                     : 0;
    }
    if (child && !strcmp(reference, child->name)) {
        return 0;
    }
    if (*reference) {
        entry->backing = block_node_find_or_error(reference, error);
        if (!entry->backing) {
            return -ENOENT;
        }
    }
    entry->changes_backing = true;
    return 0;
}

/* Another node for the same data: a filter is put above it, or taken away. */
static int take_file(struct reopen_node *entry, struct block_node *child, const char *reference,
                     GError **error)
{
    AUTO(block_node) file = block_node_find_or_error(reference, error);
    AUTO(block_node) data = file ? block_layer_of(file) : NULL;
    AUTO(block_node) old_data = block_layer_of(child);

    if (!file) {
        return -ENOENT;
    }
    if (data != old_data) {
        return cannot_replace(entry->node, child, "file", error);
    }
    entry->file = STEAL(file);
    return 0;
}

/* New references. */
static void list_replicas(struct block_node *node, GPtrArray *replicas)
{
    const struct block_child *child;
    SCOPE_LOCK(&block_graph_lock);

    TAILQ_FOREACH (child, &node->children, entry) {
        if (child->role == BLOCK_ROLE_REPLICA) {
            child->claim.node->references++;
            g_ptr_array_add(replicas, child->claim.node);
        }
    }
}

static int other_replicas(const struct block_node *node, const char *there, const char *list,
                          unsigned index, GError **error)
{
    return block_error(error, EINVAL,
                       "Node '%s' cannot get another '%s' while it is open, but by "
                       "x-blockdev-change: as number %u it has '%s'",
                       node->name, list, index, there);
}

/* Replicas are given in their order, all of them. */
static int take_replicas(struct plan *plan, struct reopen_node *entry, const char *list,
                         struct block_options *options, GError **error)
{
    g_autoptr(GPtrArray) replicas =
        g_ptr_array_new_with_free_func((GDestroyNotify)block_node_unref);
    int status = 0;

    list_replicas(entry->node, replicas);
    for (guint i = 0; status == 0 && i < replicas->len; i++) {
        struct block_node *replica = g_ptr_array_index(replicas, i);
        g_autofree char *name = g_strdup_printf("%s.%u", list, i);
        g_autofree char *reference = block_options_take(options, name);

        if (!reference && block_options_has(options, name)) {
            status = take_inline(plan, entry, replica, name, options, error);
        } else if (g_strcmp0(reference, replica->name)) {
            status = other_replicas(entry->node, replica->name, list, i, error);
        }
    }
    return status == 0 && block_options_has(options, list)
               ? other_replicas(entry->node, "nothing", list, replicas->len, error)
               : status;
}

static int take_child(struct plan *plan, struct reopen_node *entry,
                      const struct block_option *option, struct block_options *options,
                      GError **error)
{
    AUTO(block_node) child = find_child(entry->node, option->name);
    g_autofree char *reference = block_options_take(options, option->name);

    if (!reference && block_options_has(options, option->name)) {
        return take_inline(plan, entry, child, option->name, options, error);
    }
    if (!strcmp(option->name, "backing")) {
        return take_backing(entry, child, reference, error);
    }
    if (!reference) {
        return option->required
                   ? block_error(error, EINVAL, "Parameter '%s' is missing", option->name)
                   : 0;
    }
    if (child && !strcmp(reference, child->name)) {
        return 0;
    }
    return child && !strcmp(option->name, "file")
               ? take_file(entry, child, reference, error)
               : cannot_replace(entry->node, child, option->name, error);
}

static int take_children(struct plan *plan, struct reopen_node *entry,
                         struct block_options *options, GError **error)
{
    int status = 0;

    for (const struct block_option *option = entry->node->driver->options;
         status == 0 && option && option->name; option++) {
        if (option->type == BLOCK_OPTION_NODE) {
            status = take_child(plan, entry, option, options, error);
        } else if (option->type == BLOCK_OPTION_NODES) {
            status = take_replicas(plan, entry, option->name, options, error);
        }
    }
    return status;
}

/* ---- Nodes ---------------------------------------------------------------------------------- */

/* Most of a driver's options are for ever. */
static int check_change(const struct reopen_node *entry, GError **error)
{
    const struct block_option *table = entry->node->driver->options;
    AUTO(block_options) given = block_options_copy(entry->node->given);
    g_autofree void *values = g_malloc0(MAX(entry->node->driver->options_size, 1));
    int status = block_options_extract(given, table, values, NULL, error);

    if (status < 0) {
        return status;
    }
    const struct block_option *option = block_options_find_change(table, values, entry->values);
    block_options_clear_target(table, values);
    return option ? block_error(error, EINVAL, "Cannot change the option '%s'", option->name) : 0;
}

static int take_values(struct reopen_node *entry, struct block_options *options, GError **error)
{
    const struct block_driver *driver = entry->node->driver;
    int status = 0;

    if (driver->options) {
        g_autofree void *values = g_malloc0(MAX(driver->options_size, 1));

        entry->given = block_options_copy(options);
        status = block_options_extract(options, driver->options, values, NULL, error);
        if (status < 0) {
            return status;
        }
        entry->values = g_steal_pointer(&values);
        status = entry->node->given ? check_change(entry, error) : 0;
    }
    return status == 0 ? block_options_expect_empty(options, NULL, error) : status;
}

static int check_driver(const struct block_node *node, struct block_options *options,
                        GError **error)
{
    g_autofree char *driver = block_options_take(options, "driver");

    if (!driver) {
        return block_error(error, EINVAL, "Parameter 'driver' is missing");
    }
    return strcmp(driver, node->driver->name)
               ? block_error(error, EINVAL, "Cannot change the option 'driver'")
               : 0;
}

static struct reopen_node *new_entry(struct plan *plan, struct block_node *node, GError **error)
{
    SCOPE_LOCK(&block_graph_lock);

    if (reopen_find(&plan->reopen, node)) {
        block_error(error, EINVAL, "Node '%s' is given twice", node->name);
        return NULL;
    }
    return reopen_add(&plan->reopen, node, error);
}

static int take_common(const struct plan *plan, struct reopen_node *entry,
                       struct block_options *options, GError **error)
{
    int status = block_node_extract_common(options, &entry->options, error);

    if (status == 0 && plan->keeps_automatic && entry->options.auto_read_only &&
        entry->old_options.read_only) {
        entry->options.read_only = true;
    }
    return status;
}

static int add_node(struct plan *plan, struct block_node *node, struct block_options *options,
                    GError **error)
{
    int status = check_driver(node, options, error);
    struct reopen_node *entry = status == 0 ? new_entry(plan, node, error) : NULL;

    if (!entry) {
        return -EINVAL;
    }
    status = take_common(plan, entry, options, error);
    if (status == 0) {
        status = take_children(plan, entry, options, error);
    }
    return status == 0 ? take_values(entry, options, error) : status;
}

static int add_named(struct plan *plan, const struct block_options *given, GError **error)
{
    AUTO(block_options) options = block_options_copy(given);
    g_autofree char *name = block_options_take(options, "node-name");

    if (!name) {
        return block_error(error, EINVAL, "node-name not specified");
    }
    AUTO(block_node) node = block_node_find(name);
    if (!node) {
        return block_error(error, ENOENT, "Failed to find node with node-name='%s'", name);
    }
    return add_node(plan, node, options, error);
}

/* ---- All of them ---------------------------------------------------------------------------- */

static int add_followers(struct plan *plan, GError **error)
{
    guint given = plan->reopen.nodes->len;
    int status = 0;
    SCOPE_LOCK(&block_graph_lock);

    for (guint i = 0; status == 0 && i < given; i++) {
        status =
            reopen_add_children(&plan->reopen, g_ptr_array_index(plan->reopen.nodes, i), error);
    }
    return status;
}

static int run(struct plan *plan, struct block_options *const *options, size_t count,
               GError **error)
{
    int status = 0;

    for (size_t i = 0; status == 0 && i < count; i++) {
        status = add_named(plan, options[i], error);
    }
    if (status == 0) {
        status = add_followers(plan, error);
    }
    return status == 0 && count ? reopen_run(&plan->reopen, error) : status;
}

static bool is_forbidden(int status)
{
    return status == -EACCES || status == -EPERM || status == -EROFS;
}

int block_nodes_reopen(struct block_options *const *options, size_t count, GError **error)
{
    g_autoptr(GError) first = NULL;
    int status = -EACCES;

    for (unsigned keeps = 0; keeps < 2 && is_forbidden(status); keeps++) {
        struct plan plan = {.keeps_automatic = keeps};

        reopen_init(&plan.reopen);
        status = run(&plan, options, count, first ? NULL : &first);
        reopen_destroy(&plan.reopen);
    }
    if (status < 0) {
        g_propagate_error(error, g_steal_pointer(&first));
    }
    return status;
}
