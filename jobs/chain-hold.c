/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/chain-hold.h"

#include <errno.h>

#include "block/chain.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "jobs/chain-writable.h"

static void free_claim(gpointer data)
{
    struct block_claim *claim = data;

    block_claim_release(claim);
    g_free(claim->owner);
    g_free(claim);
}

int chain_hold_add(struct chain_hold *hold, struct job *job, struct block_node *node,
                   unsigned perms, unsigned shared, const struct block_node *beside, GError **error)
{
    struct block_claim *claim = g_new0(struct block_claim, 1);

    if (!hold->claims) {
        hold->claims = g_ptr_array_new_with_free_func(free_claim);
    }
    claim->owner = g_strdup_printf("block job '%s'", job_id(job));
    claim->perms = perms;
    claim->shared = shared;
    claim->beside = beside;
    int status = block_claim_acquire(claim, node, error);
    if (status < 0) {
        free_claim(claim);
        return status;
    }
    g_ptr_array_add(hold->claims, claim);
    return 0;
}

struct block_claim *chain_hold_find(const struct chain_hold *hold, const struct block_node *node)
{
    for (guint i = 0; hold->claims && i < hold->claims->len; i++) {
        struct block_claim *claim = g_ptr_array_index(hold->claims, i);

        if (claim->node == node) {
            return claim;
        }
    }
    return NULL;
}

int chain_hold_make_writable(struct chain_hold *hold, struct block_node *node, GError **error)
{
    int status = chain_writable_begin(node, error);

    if (status > 0) {
        hold->writable = block_node_ref(node);
    }
    return status < 0 ? status : 0;
}

void chain_hold_keep_writable(struct chain_hold *hold)
{
    AUTO(block_node) node = STEAL(hold->writable);

    if (node) {
        chain_writable_keep(node);
    }
}

void chain_hold_release(struct chain_hold *hold)
{
    AUTO(block_node) node = STEAL(hold->writable);

    g_clear_pointer(&hold->claims, g_ptr_array_unref);
    if (node) {
        chain_writable_end(node);
    }
}

GPtrArray *chain_nodes(struct block_node *top, struct block_node *base, GError **error)
{
    g_autoptr(GPtrArray) nodes = g_ptr_array_new_with_free_func((GDestroyNotify)block_node_unref);
    struct block_node *node = block_node_ref(top);

    while (node && node != base) {
        g_ptr_array_add(nodes, node);
        node = block_chain_below(node);
    }
    if (node != base) {
        block_error(error, EINVAL, "Node '%s' is not a backing image of '%s'", base->name,
                    top->name);
        return NULL;
    }
    block_node_unref(node);
    return g_steal_pointer(&nodes);
}

bool chain_nodes_are_same(const GPtrArray *a, const GPtrArray *b)
{
    bool is_same = a && b && a->len == b->len;

    for (guint i = 0; is_same && i < a->len; i++) {
        is_same = a->pdata[i] == b->pdata[i];
    }
    return is_same;
}
