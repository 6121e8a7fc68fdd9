/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/overlay.h"

#include <errno.h>
#include <inttypes.h>

#include "block/chain.h"
#include "block/cleanup.h"
#include "block/error.h"

static int check_unused(struct block_node *overlay, GError **error)
{
    g_auto(GStrv) users = block_node_users(overlay);

    return users[0] ? block_error(error, EBUSY, "The overlay is already in use") : 0;
}

/* The image of a layer above would go on to name the node, past the overlay. */
static int check_is_top(struct block_node *node, GError **error)
{
    g_autoptr(GPtrArray) above = g_ptr_array_new();
    SCOPE_LOCK(&block_graph_lock);

    block_chain_find_overlays_locked(node, above);
    return above->len
               ? block_error(error, EBUSY, "Node '%s' is busy: node is used as backing hd of '%s'",
                             node->name, ((struct block_node *)above->pdata[0])->name)
               : 0;
}

int block_overlay_check(struct block_node *node, struct block_node *overlay, GError **error)
{
    AUTO(block_node) backing = block_chain_below(overlay);

    if (check_is_top(node, error) < 0) {
        return -EBUSY;
    }
    if (overlay->driver->is_filter) {
        return block_error(error, EINVAL, "Filters cannot be used as overlays");
    }
    if (!block_driver_takes_backing(overlay->driver)) {
        return block_error(error, ENOTSUP, "The overlay does not support backing images");
    }
    if (backing) {
        return block_error(error, EINVAL, "The overlay already has a backing image");
    }
    if (block_node_is_read_only(overlay) && !block_node_is_read_only(node)) {
        return block_error(error, EACCES, "The overlay '%s' is read-only", overlay->name);
    }
    if (block_node_length(overlay) != block_node_length(node)) {
        return block_error(error, EINVAL,
                           "The overlay '%s' has %" PRIu64 " bytes and node '%s' has %" PRIu64
                           ": they must be equally long",
                           overlay->name, block_node_length(overlay), node->name,
                           block_node_length(node));
    }
    return check_unused(overlay, error);
}

int block_overlay_install(struct block_node *node, struct block_node *overlay, GError **error)
{
    int status = block_overlay_check(node, overlay, error);

    if (status == 0) {
        status = block_node_replace(node, overlay, NULL, error);
    }
    if (status < 0) {
        return status;
    }
    status = block_node_set_backing(overlay, node, NULL, error);
    if (status < 0) {
        block_overlay_remove(node, overlay);
    }
    return status;
}

void block_overlay_remove(struct block_node *node, struct block_node *overlay)
{
    g_autoptr(GError) error = NULL;

    if (block_node_set_backing(overlay, NULL, NULL, &error) < 0 ||
        block_node_replace(overlay, node, NULL, &error) < 0) {
        g_critical("Node '%s' stays above node '%s': %s", overlay->name, node->name,
                   error->message);
    }
}
