/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Drained sections. A section remembers the nodes it covers and an entry per user it made quiet.
 * All sections are in one list under the graph lock, so that users who come or go meanwhile can
 * join and leave.
 */
#include "block/drain.h"

#include <pthread.h>

#include "block/cleanup.h"
#include "block/graph.h"

struct drained_claim {
    struct block_claim *claim;
    bool begun;   /* drain_begin was called */
    bool waiting; /* a thread is in the claim's drain_wait; it must not go away */
    TAILQ_ENTRY(drained_claim) entry;
};

struct block_drain {
    /* From each struct block_node * it covers, which is no reference and never followed, to the
     * BLOCK_PERM_* of those users above that it is for. */
    GHashTable *nodes;
    GHashTable *below;    /* set of those its users' requests pass through; the same holds */
    GPtrArray *releasing; /* of these, those whose driver was told; none is freed while in it */
    enum block_drain_turn turn; /* whose turn it is to be quiet; of those before it, too */
    TAILQ_HEAD(, drained_claim) claims;
    TAILQ_ENTRY(block_drain) entry;
};

/* Graph lock. */
static TAILQ_HEAD(, block_drain) sections = TAILQ_HEAD_INITIALIZER(sections);
static pthread_cond_t waiting_ended = PTHREAD_COND_INITIALIZER;

static void begin(struct drained_claim *drained)
{
    drained->begun = true;
    drained->claim->operations->drain_begin(drained->claim);
}

/* Graph lock held: no driver holds requests back that come from here. */
static void release_below(struct block_drain *drain, struct block_node *node)
{
    const struct block_child *child;

    if (!g_hash_table_add(drain->below, node)) {
        return;
    }
    if (node->driver->drain_begin) {
        g_ptr_array_add(drain->releasing, node);
        node->driver->drain_begin(node);
    }
    TAILQ_FOREACH (child, &node->children, entry) {
        release_below(drain, child->claim.node);
    }
}

static bool has_joined(const struct block_drain *drain, const struct block_claim *claim)
{
    const struct drained_claim *drained;

    TAILQ_FOREACH (drained, &drain->claims, entry) {
        if (drained->claim == claim) {
            return true;
        }
    }
    return false;
}

/* The permissions that a node is covered for; 0: not at all. */
static unsigned perms_at(const struct block_drain *drain, const struct block_node *node)
{
    return GPOINTER_TO_UINT(g_hash_table_lookup(drain->nodes, node));
}

/* Graph lock held. */
static void join(struct block_drain *drain, struct block_claim *claim, unsigned perms)
{
    struct drained_claim *drained;

    if (!claim->operations || !claim->operations->drain_begin || !(claim->perms & perms) ||
        has_joined(drain, claim)) {
        return;
    }
    release_below(drain, claim->node);
    drained = g_new0(struct drained_claim, 1);
    drained->claim = claim;
    TAILQ_INSERT_TAIL(&drain->claims, drained, entry);
    if (claim->operations->drain_turn <= drain->turn) {
        begin(drained);
    }
}

static void cover(struct block_drain *drain, struct block_node *node, unsigned perms);

/* Graph lock held: the user of a node, or all above it if that is a node. Who reads a node that
 * writes below it to answer that writes there, too. */
static void cover_user(struct block_drain *drain, struct block_claim *claim, unsigned perms)
{
    const struct block_node *parent = claim->parent;

    if (!parent) {
        join(drain, claim, perms);
        return;
    }
    if (perms & BLOCK_PERM_WRITE && parent->driver->writes_when_read &&
        parent->driver->writes_when_read(parent)) {
        perms |= BLOCK_PERM_READ;
    }
    cover(drain, claim->parent, perms);
}

/* Graph lock held: cover a node and everything above it. */
static void cover(struct block_drain *drain, struct block_node *node, unsigned perms)
{
    unsigned covered = perms_at(drain, node);
    struct block_claim *claim;

    if ((covered | perms) == covered) {
        return;
    }
    g_hash_table_insert(drain->nodes, node, GUINT_TO_POINTER(covered | perms));
    TAILQ_FOREACH (claim, &node->claims, entry) {
        cover_user(drain, claim, covered | perms);
    }
}

/*
 * Wait for each user that was told to stop. The lock is held, but dropped while waiting; the entry
 * stays because a claim that is waited for cannot leave.
 */
static void wait_for_claims(struct block_drain *drain)
{
    struct drained_claim *drained, *next;

    for (drained = TAILQ_FIRST(&drain->claims); drained; drained = next) {
        const struct block_claim_operations *operations = drained->claim->operations;

        if (operations->drain_wait && drained->begun) {
            drained->waiting = true;
            pthread_mutex_unlock(&block_graph_lock);
            operations->drain_wait(drained->claim);
            pthread_mutex_lock(&block_graph_lock);
            drained->waiting = false;
            pthread_cond_broadcast(&waiting_ended);
        }
        next = TAILQ_NEXT(drained, entry);
    }
}

/* Graph lock held. Those who came before their turn have begun already. */
static void begin_turn(struct block_drain *drain, enum block_drain_turn turn)
{
    struct drained_claim *drained;

    drain->turn = turn;
    TAILQ_FOREACH (drained, &drain->claims, entry) {
        if (!drained->begun && drained->claim->operations->drain_turn <= turn) {
            begin(drained);
        }
    }
}

struct block_drain *block_drain_begin(struct block_node *const *nodes, size_t count, unsigned perms)
{
    struct block_drain *drain = g_new0(struct block_drain, 1);

    drain->nodes = g_hash_table_new(NULL, NULL);
    drain->below = g_hash_table_new(NULL, NULL);
    drain->releasing = g_ptr_array_new();
    TAILQ_INIT(&drain->claims);
    pthread_mutex_lock(&block_graph_lock);
    TAILQ_INSERT_TAIL(&sections, drain, entry);
    for (size_t i = 0; i < count; i++) {
        cover(drain, nodes[i], perms);
    }
    wait_for_claims(drain);
    for (unsigned turn = BLOCK_DRAIN_USERS + 1; turn < BLOCK_DRAIN_TURNS; turn++) {
        begin_turn(drain, turn);
        wait_for_claims(drain);
    }
    pthread_mutex_unlock(&block_graph_lock);
    return drain;
}

static void end_releasing(struct block_drain *drain)
{
    for (guint i = 0; i < drain->releasing->len; i++) {
        struct block_node *node = g_ptr_array_index(drain->releasing, i);

        node->driver->drain_end(node);
    }
}

void block_drain_node_gone(struct block_node *node)
{
    struct block_drain *drain;

    TAILQ_FOREACH (drain, &sections, entry) {
        g_ptr_array_remove(drain->releasing, node);
        g_hash_table_remove(drain->below, node);
        g_hash_table_remove(drain->nodes, node);
    }
}

void block_drain_end(struct block_drain *drain)
{
    struct drained_claim *drained, *next;

    if (!drain) {
        return;
    }
    pthread_mutex_lock(&block_graph_lock);
    TAILQ_REMOVE(&sections, drain, entry);
    TAILQ_FOREACH_SAFE (drained, &drain->claims, entry, next) {
        if (drained->begun) {
            drained->claim->operations->drain_end(drained->claim);
        }
        g_free(drained);
    }
    end_releasing(drain);
    pthread_mutex_unlock(&block_graph_lock);
    g_ptr_array_unref(drain->releasing);
    g_hash_table_unref(drain->below);
    g_hash_table_unref(drain->nodes);
    g_free(drain);
}

void block_drain_claim_changed(struct block_claim *claim)
{
    struct block_drain *drain;

    TAILQ_FOREACH (drain, &sections, entry) {
        unsigned perms = perms_at(drain, claim->node);

        if (perms) {
            cover_user(drain, claim, perms);
        }
    }
}

/* The entry of a claim that somebody waits for, if any. Graph lock held. */
static bool is_waited_for(const struct block_claim *claim)
{
    struct block_drain *drain;
    struct drained_claim *drained;

    TAILQ_FOREACH (drain, &sections, entry) {
        TAILQ_FOREACH (drained, &drain->claims, entry) {
            if (drained->claim == claim && drained->waiting) {
                return true;
            }
        }
    }
    return false;
}

void block_drain_claim_removed(struct block_claim *claim)
{
    struct block_drain *drain;
    struct drained_claim *drained, *next;

    while (is_waited_for(claim)) {
        pthread_cond_wait(&waiting_ended, &block_graph_lock);
    }
    TAILQ_FOREACH (drain, &sections, entry) {
        TAILQ_FOREACH_SAFE (drained, &drain->claims, entry, next) {
            if (drained->claim == claim) {
                TAILQ_REMOVE(&drain->claims, drained, entry);
                if (drained->begun) {
                    claim->operations->drain_end(claim);
                }
                g_free(drained);
            }
        }
    }
}
