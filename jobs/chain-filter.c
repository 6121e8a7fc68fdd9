/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/chain-filter.h"

#include <errno.h>

#include "block/chain.h"
#include "block/cleanup.h"
#include "block/drain.h"
#include "block/error.h"
#include "block/main-loop.h"

struct exchange {
    struct block_node *node; /* NULL: the filter is removed */
    struct block_node *filter;
    int status;
    GError **error;
};

static void exchange_nodes(void *data)
{
    struct exchange *exchange = data;

    exchange->status =
        exchange->node ? block_node_insert_filter(exchange->node, exchange->filter, exchange->error)
                       : block_node_remove_filter(exchange->filter, exchange->error);
}

/* All who are moved stand still: those on the one that is left. */
static int exchange_drained(struct block_node *node, struct block_node *filter, GError **error)
{
    struct block_node *left = node ? node : filter;
    struct exchange exchange = {.node = node, .filter = filter, .error = error};
    AUTO(block_drain) drain = block_drain_begin(&left, 1, BLOCK_PERM_ALL);

    main_loop_call_wait(exchange_nodes, &exchange);
    return exchange.status;
}

static struct block_node *open_filter(const struct chain_filter_options *options,
                                      struct block_node *node, GError **error)
{
    AUTO(block_options) given = block_options_new();

    block_options_set(given, "node-name", options->name);
    block_options_set(given, "file", node->name);
    /* Of requests that pass through it nothing is lost. */
    block_options_set(given, "discard", "unmap");
    if (options->driver) {
        block_options_set(given, "read-only", block_node_is_read_only(node) ? "on" : "off");
        return block_node_open_with(options->driver, NULL, given, error);
    }
    block_options_set(given, "driver", "copy-on-read");
    if (options->bottom) {
        AUTO(block_node) bottom = block_layer_of(options->bottom);

        block_options_set(given, "bottom", bottom->name);
    }
    return block_node_open(given, false, error);
}

/* Disks are moved away from what is voided before that happens, and from the filter as well. */
static void pass_voiding_on(struct chain_filter *filter, struct block_claim *voiding)
{
    SCOPE_LOCK(&block_graph_lock);

    voiding->beside = filter->node;
    chain_filter_claim(filter)->moves_places = voiding->moves_places;
}

static int hold(struct chain_filter *filter, const struct chain_filter_options *options,
                GError **error)
{
    unsigned perms = BLOCK_PERM_GRAPH | (options->voiding ? BLOCK_PERM_VOID : 0u);
    int status = chain_hold_add(&filter->hold, options->job, filter->node, perms, BLOCK_PERM_ALL,
                                NULL, error);

    if (status == 0 && options->voiding) {
        pass_voiding_on(filter, options->voiding);
    }
    return status;
}

static void put_down(struct chain_filter *filter)
{
    chain_hold_release(&filter->hold);
    block_node_dispose(STEAL(filter->node));
}

int chain_filter_check_name(const char *name, GError **error)
{
    return name ? block_node_check_new_name(name, error) : 0;
}

int chain_filter_insert(struct chain_filter *filter, const struct chain_filter_options *options,
                        struct block_node *node, GError **error)
{
    if (!options->name) {
        return 0;
    }
    filter->node = open_filter(options, node, error);
    if (!filter->node) {
        return -EINVAL;
    }
    filter->node->is_transient = true;
    int status = hold(filter, options, error);
    if (status == 0) {
        status = exchange_drained(node, filter->node, error);
    }
    if (status < 0) {
        put_down(filter);
    }
    return status;
}

void chain_filter_remove(struct chain_filter *filter)
{
    g_autoptr(GError) error = NULL;

    if (!filter->node) {
        return;
    }
    if (exchange_drained(NULL, filter->node, &error) < 0) {
        g_warning("Node '%s' stays in its place: %s", filter->node->name, error->message);
    }
    put_down(filter);
}

struct block_claim *chain_filter_claim(const struct chain_filter *filter)
{
    return filter->node ? chain_hold_find(&filter->hold, filter->node) : NULL;
}
