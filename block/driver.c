/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/driver.h"

#include <errno.h>
#include <string.h>

#include "block/request.h"

const char *const block_preallocation_names[] = {
    [BLOCK_PREALLOCATION_OFF] = "off",
    [BLOCK_PREALLOCATION_METADATA] = "metadata",
    [BLOCK_PREALLOCATION_FALLOC] = "falloc",
    [BLOCK_PREALLOCATION_FULL] = "full",
    NULL,
};

/*
 * The registry, NULL-terminated. Written at start-up by one thread and only read later, so it
 * needs no lock.
 */
static const struct block_driver **drivers;
static size_t driver_count;

void block_driver_register(const struct block_driver *driver)
{
    g_assert(driver->name && !block_driver_find(driver->name));
    drivers = g_renew(const struct block_driver *, drivers, driver_count + 2);
    drivers[driver_count++] = driver;
    drivers[driver_count] = NULL;
}

const struct block_driver *block_driver_find(const char *name)
{
    for (size_t i = 0; i < driver_count; i++) {
        if (strcmp(drivers[i]->name, name) == 0) {
            return drivers[i];
        }
    }
    return NULL;
}

const struct block_driver *const *block_driver_list(void)
{
    static const struct block_driver *const none[] = {NULL};

    return drivers ? drivers : none;
}

const struct block_driver *block_driver_probe(const uint8_t *head, size_t bytes,
                                              const char *filename)
{
    const struct block_driver *best = NULL;
    int best_score = 0;

    for (size_t i = 0; i < driver_count; i++) {
        int score = drivers[i]->probe ? drivers[i]->probe(head, bytes, filename) : 0;

        if (score > best_score) {
            best_score = score;
            best = drivers[i];
        }
    }
    return best ? best : block_driver_find("raw");
}

void block_info_clear(struct block_info *info)
{
    g_free(info->backing_file);
    g_free(info->backing_format);
    json_decref(info->format_specific);
    *info = (struct block_info){0};
}

void block_snapshot_list_free(struct block_snapshot_info *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        g_free(list[i].id);
        g_free(list[i].name);
    }
    g_free(list);
}

/* ---- What is told to all below a node ------------------------------------------------------- */

void block_node_cancel_in_flight(struct block_node *node)
{
    const struct block_child *child;

    if (node->driver->cancel_in_flight) {
        node->driver->cancel_in_flight(node);
        return;
    }
    TAILQ_FOREACH (child, &node->children, entry) {
        if (child->role != BLOCK_ROLE_BACKING) { /* a backing file serves others, too */
            block_node_cancel_in_flight(child->claim.node);
        }
    }
}

bool block_node_has_lost_writes(struct block_node *node)
{
    const struct block_child *child;

    if (node->driver->has_lost_writes) {
        return node->driver->has_lost_writes(node);
    }
    TAILQ_FOREACH (child, &node->children, entry) {
        if (child->role != BLOCK_ROLE_BACKING && block_node_has_lost_writes(child->claim.node)) {
            return true;
        }
    }
    return false;
}

uint64_t block_node_count_losses(struct block_node *node)
{
    const struct block_child *child;
    uint64_t losses = 0;

    if (node->driver->count_losses) {
        return node->driver->count_losses(node);
    }
    TAILQ_FOREACH (child, &node->children, entry) {
        losses +=
            child->role != BLOCK_ROLE_BACKING ? block_node_count_losses(child->claim.node) : 0;
    }
    return losses;
}

int block_node_accept_lost_writes(struct block_node *node)
{
    if (node->driver->accept_lost_writes) {
        return node->driver->accept_lost_writes(node);
    }
    if (block_node_passes_on(node) && node->file) {
        return block_node_accept_lost_writes(node->file);
    }
    return block_node_has_lost_writes(node) ? -ENOTSUP : 0;
}

void block_node_debug_event(struct block_node *node, enum block_debug_event event)
{
    if (node->driver->debug_event) {
        node->driver->debug_event(node, event);
    }
    if (node->file) {
        block_node_debug_event(node->file, event);
    }
}
