/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/chain-writable.h"

#include <pthread.h>

#include "block/cleanup.h"
#include "block/reopen.h"

struct entry {
    struct block_node *node; /* a reference */
    unsigned users;
    bool is_kept; /* writable for good */
};

/* Guards the entries; held while a node is reopened, so taken before what that takes. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
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

int chain_writable_begin(struct block_node *node, GError **error)
{
    SCOPE_LOCK(&lock);
    struct entry *entry = find(node);
    bool is_read_only = block_node_is_read_only(node);

    if (!entry && !is_read_only) {
        return 0;
    }
    int status = is_read_only ? block_node_set_read_only(node, false, error) : 0;
    if (status < 0) {
        return status;
    }
    if (!entry) {
        entry = g_new0(struct entry, 1);
        entry->node = block_node_ref(node);
        if (!entries) {
            entries = g_ptr_array_new();
        }
        g_ptr_array_add(entries, entry);
    }
    entry->users++;
    return 1;
}

/* The node, if it is to be read-only now: a reference. */
static struct block_node *leave(struct entry *entry)
{
    struct block_node *node = entry->node;
    bool is_kept = entry->is_kept;

    if (--entry->users) {
        return NULL;
    }
    g_ptr_array_remove_fast(entries, entry);
    if (entries->len == 0) {
        g_clear_pointer(&entries, g_ptr_array_unref);
    }
    g_free(entry);
    if (is_kept) {
        block_node_unref(node);
        return NULL;
    }
    return node;
}

void chain_writable_end(struct block_node *node)
{
    g_autoptr(GError) error = NULL;
    SCOPE_LOCK(&lock);
    AUTO(block_node) last = leave(find(node));

    if (last && block_node_set_read_only(last, true, &error) < 0) {
        g_warning("Node '%s' stays writable: %s", last->name, error->message);
    }
}

void chain_writable_keep(struct block_node *node)
{
    SCOPE_LOCK(&lock);
    struct entry *entry = find(node);

    entry->is_kept = true;
    leave(entry);
}
