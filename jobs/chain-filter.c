/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/chain-filter.h"

#include <errno.h>

#include "block/chain.h"
#include "block/cleanup.h"
#include "block/drain.h"
#include "block/error.h"
#include "block/main-loop.h"

struct exchange {
    struct block_node *from;
    struct block_node *to;
    const struct block_claim *holder;
    int status;
    GError **error;
};

static void exchange_nodes(void *data)
{
    struct exchange *exchange = data;

    exchange->status =
        block_node_replace(exchange->from, exchange->to, exchange->holder, exchange->error);
}

static int exchange_drained(struct block_node *from, struct block_node *to,
                            const struct block_claim *holder, GError **error)
{
    struct block_node *const nodes[] = {from, to};
    struct exchange exchange = {.from = from, .to = to, .holder = holder, .error = error};
    AUTO(block_drain) drain = block_drain_begin(nodes, G_N_ELEMENTS(nodes), BLOCK_PERM_ALL);

    main_loop_call_wait(exchange_nodes, &exchange);
    return exchange.status;
}

static struct block_node *open_filter(const char *name, const struct block_node *node,
                                      const struct block_node *bottom, GError **error)
{
    AUTO(block_options) options = block_options_new();

    block_options_set(options, "driver", "copy-on-read");
    block_options_set(options, "node-name", name);
    block_options_set(options, "file", node->name);
    if (bottom) {
        block_options_set(options, "bottom", bottom->name);
    }
    /* Of requests that pass through it nothing is lost. */
    block_options_set(options, "discard", "unmap");
    return block_node_open(options, false, error);
}

struct block_node *chain_filter_insert(const char *name, struct block_node *node,
                                       struct block_node *bottom, const struct block_claim *holder,
                                       struct job *job, struct chain_hold *hold, GError **error)
{
    AUTO(block_node) filter =
        open_filter(name, node, bottom ? block_node_below_filters(bottom) : NULL, error);

    if (!filter) {
        g_prefix_error(error, "Could not create node: ");
        return NULL;
    }
    filter->is_transient = true;
    int status = chain_hold_add(hold, job, filter, BLOCK_PERM_GRAPH, BLOCK_PERM_ALL, NULL, error);
    if (status == 0) {
        status = exchange_drained(node, filter, holder, error);
    }
    if (status < 0) {
        chain_hold_release(hold);
        return NULL;
    }
    return STEAL(filter);
}

void chain_filter_remove(struct block_node *filter, struct block_node *node,
                         struct chain_hold *hold)
{
    g_autoptr(GError) error = NULL;

    if (exchange_drained(filter, node, chain_hold_find(hold, filter), &error) < 0) {
        g_warning("Node '%s' stays above node '%s': %s", filter->name, node->name, error->message);
    }
    chain_hold_release(hold);
    block_node_dispose(filter);
}
