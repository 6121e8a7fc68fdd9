/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>

#include "block/chain.h"
#include "block/drain.h"
#include "block/error.h"
#include "jobs/chain-header.h"
#include "jobs/commit-internal.h"

static struct block_node *last_node(const struct commit_chain *chain)
{
    return g_ptr_array_index(chain->nodes, chain->nodes->len - 1);
}

/*
 * Top keeps its chain, and the job alone puts another node in its place. If guests write to it, it
 * is worth nothing when they have been moved to base; else it reads the same all the time, and
 * others may read it. Base is written; who reads it by itself sees it change, but the node above
 * takes no notice.
 */
struct copy_claims commit_claims(const struct commit_chain *chain, bool is_active)
{
    return (struct copy_claims){
        .source_perms = BLOCK_PERM_READ | BLOCK_PERM_BACKING | BLOCK_PERM_GRAPH |
                        (is_active ? BLOCK_PERM_VOID : 0u),
        .source_shared =
            BLOCK_PERM_READ | BLOCK_PERM_WRITE_UNCHANGED | (is_active ? BLOCK_PERM_WRITE : 0u),
        .source_moves_places = is_active,
        .target_perms = BLOCK_PERM_READ | BLOCK_PERM_WRITE | BLOCK_PERM_RESIZE,
        .target_shared = BLOCK_PERM_READ,
        .target_beside = last_node(chain),
    };
}

int commit_chain_find(struct commit_chain *chain, struct block_node *top, struct block_node *base,
                      GError **error)
{
    chain->nodes = chain_nodes(top, base, error);
    if (!chain->nodes) {
        return -EINVAL;
    }
    if (!chain->nodes->len) {
        return block_error(error, EINVAL, "cannot commit an image into itself");
    }
    chain->base = block_node_ref(base);
    return 0;
}

/* What is between top and base reads differently soon: nobody else may. */
static int hold_between(struct commit_chain *chain, struct job *job, GError **error)
{
    int status = 0;

    for (guint i = 1; status == 0 && i < chain->nodes->len; i++) {
        status = chain_hold_add(&chain->hold, job, chain->nodes->pdata[i],
                                BLOCK_PERM_VOID | BLOCK_PERM_BACKING | BLOCK_PERM_GRAPH,
                                BLOCK_PERM_READ, chain->nodes->pdata[i - 1], error);
    }
    return status;
}

/* What is new reads as zeroes, as did what was behind its end. */
static int make_as_long(struct block_node *base, uint64_t length, GError **error)
{
    if (block_node_length(base) >= length) {
        return 0;
    }
    AUTO(block_drain) drain = block_drain_begin(&base, 1, BLOCK_PERM_ALL);
    int status = block_node_set_length(base, length, BLOCK_PREALLOCATION_OFF, error);
    if (status < 0) {
        g_prefix_error(error, "Node '%s' is shorter than what is committed into it: ", base->name);
    }
    return status;
}

int commit_chain_hold(struct commit_chain *chain, struct job *job, GError **error)
{
    struct block_node *top = chain->nodes->pdata[0];
    int status = hold_between(chain, job, error);

    if (status < 0) {
        return status;
    }
    g_autoptr(GPtrArray) now = chain_nodes(top, chain->base, NULL);
    if (!chain_nodes_are_same(chain->nodes, now)) {
        return block_error(error, EAGAIN, "The chain of node '%s' was just changed; try again",
                           top->name);
    }
    for (guint i = 0; status == 0 && i < chain->nodes->len; i++) {
        status = chain_check_no_snapshots(chain->nodes->pdata[i], error);
    }
    if (status == 0) {
        status = chain_hold_make_writable(&chain->hold, chain->base, error);
    }
    return status == 0 ? make_as_long(chain->base, block_node_length(top), error) : status;
}

void commit_chain_cut(const struct commit_chain *chain, struct copy_engine *engine)
{
    g_autoptr(GError) error = NULL;
    guint last = chain->nodes->len - 1;

    while (last > 0 && ((struct block_node *)chain->nodes->pdata[last])->driver->is_filter) {
        last--;
    }
    struct block_node *layer = chain->nodes->pdata[last];
    const struct block_claim *claim =
        last == 0 ? copy_engine_source_claim(engine) : chain_hold_find(&chain->hold, layer);
    if (block_node_set_backing(layer, NULL, claim, &error) < 0) {
        g_critical("Node '%s' keeps its backing file: %s", layer->name, error->message);
    }
}

void commit_chain_release(struct commit_chain *chain, bool keeps_writable)
{
    if (keeps_writable) {
        chain_hold_keep_writable(&chain->hold);
    }
    chain_hold_release(&chain->hold);
    g_clear_pointer(&chain->nodes, g_ptr_array_unref);
    block_node_unref(STEAL(chain->base));
}
