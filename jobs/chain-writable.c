/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/chain-writable.h"

#include <pthread.h>

#include "block/cleanup.h"
#include "block/reopen.h"

struct entry {
    struct block_node *node; /* a reference */
    unsigned users;
    bool is_kept;      /* writable for good */
    bool is_reopening; /* somebody is at it, which may take as long as its storage does */
};

/* Guards the entries. Not held while a node is reopened: others do not wait for its storage. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static GPtrArray *entries;

static struct entry *find(const struct block_node *node)
{
    for (guint i = 0; entries && i < entries->len; i++) {
        struct entry *entry = g_ptr_array_index(entries, i);

        if (entry->node == node) {
            return entry;
        }
    }
    return NULL;
}

/* Lock held. The node's entry when nobody reopens the node; NULL: there is none. */
static struct entry *wait_for(const struct block_node *node)
{
    struct entry *entry = find(node);

    while (entry && entry->is_reopening) {
        pthread_cond_wait(&changed, &lock);
        entry = find(node);
    }
    return entry;
}

static struct entry *add(struct block_node *node)
{
    struct entry *entry = g_new0(struct entry, 1);

    entry->node = block_node_ref(node);
    if (!entries) {
        entries = g_ptr_array_new();
    }
    g_ptr_array_add(entries, entry);
    return entry;
}

/* Lock held. Returns its node: the caller drops that reference without the lock. */
static struct block_node *drop(struct entry *entry)
{
    struct block_node *node = entry->node;

    g_ptr_array_remove_fast(entries, entry);
    if (entries->len == 0) {
        g_clear_pointer(&entries, g_ptr_array_unref);
    }
    g_free(entry);
    return node;
}

/* Lock held, but not meanwhile. */
static int reopen(struct entry *entry, bool read_only, GError **error)
{
    entry->is_reopening = true;
    pthread_mutex_unlock(&lock);
    int status = block_node_set_read_only(entry->node, read_only, error);
    pthread_mutex_lock(&lock);
    entry->is_reopening = false;
    pthread_cond_broadcast(&changed);
    return status;
}

int chain_writable_begin(struct block_node *node, GError **error)
{
    struct block_node *unused = NULL;
    int status = 1;

    pthread_mutex_lock(&lock);
    struct entry *entry = wait_for(node);
    if (!entry && !block_node_is_read_only(node)) {
        pthread_mutex_unlock(&lock);
        return 0;
    }
    entry = entry ? entry : add(node);
    entry->users++;
    if (block_node_is_read_only(node)) {
        int reopened = reopen(entry, false, error);

        status = reopened < 0 ? reopened : 1;
    }
    if (status < 0 && --entry->users == 0) {
        unused = drop(entry);
    }
    pthread_mutex_unlock(&lock);
    block_node_unref(unused);
    return status;
}

/* keeps: it stays writable. */
static void leave(struct block_node *node, bool keeps)
{
    struct block_node *unused = NULL;
    g_autoptr(GError) error = NULL;

    pthread_mutex_lock(&lock);
    struct entry *entry = wait_for(node);
    entry->is_kept |= keeps;
    if (entry->users == 1 && !entry->is_kept && reopen(entry, true, &error) < 0) {
        g_warning("Node '%s' stays writable: %s", node->name, error->message);
    }
    if (--entry->users == 0) {
        unused = drop(entry);
    }
    pthread_mutex_unlock(&lock);
    block_node_unref(unused);
}

void chain_writable_end(struct block_node *node)
{
    leave(node, false);
}

void chain_writable_keep(struct block_node *node)
{
    leave(node, true);
}
