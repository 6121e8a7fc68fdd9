/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/chain-header.h"

#include <errno.h>

#include "block/chain.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "block/image.h"
#include "jobs/chain-writable.h"

/* So often somebody else may come in between and make the node read-only. */
#define TRIES_MAX 10

static int change_once(struct block_node *node, const char *name, const char *format,
                       GError **error)
{
    int was_read_only = chain_writable_begin(node, error);

    if (was_read_only < 0) {
        return was_read_only;
    }
    int status = block_node_change_backing_file(node, name, format, error);
    if (was_read_only) {
        chain_writable_end(node);
    }
    return status;
}

/* A disk that has just got an overlay becomes read-only a moment later, drained or not. */
static int change(struct block_node *node, const char *name, const char *format, GError **error)
{
    for (unsigned tries = 1;; tries++) {
        g_autoptr(GError) own_error = NULL;
        int status = change_once(node, name, format, &own_error);

        if (status == 0) {
            return 0;
        }
        if (status != -EACCES || tries == TRIES_MAX) {
            g_propagate_error(error, g_steal_pointer(&own_error));
            return status;
        }
    }
}

/* What the image says now. */
static int remember(struct chain_header *header, struct block_node *node, GError **error)
{
    struct block_info info;
    int status = block_node_get_info(node, &info);

    if (status < 0) {
        return block_error_errno(error, -status, "Could not look at the image of node '%s'",
                                 node->name);
    }
    header->backing_file = g_steal_pointer(&info.backing_file);
    header->backing_format = g_steal_pointer(&info.backing_format);
    block_info_clear(&info);
    return 0;
}

int chain_header_check(struct block_node *base, const char *name, GError **error)
{
    g_autofree char *base_name = base && !name ? block_chain_reference(NULL, base, error) : NULL;

    return base && !name && !base_name ? -ENOTSUP : 0;
}

int chain_header_change(struct chain_header *header, struct block_node *node,
                        struct block_node *base, const char *name, bool mask_protocol,
                        GError **error)
{
    const char *format = base ? block_chain_format(base, mask_protocol) : NULL;
    g_autofree char *own_name = NULL;

    if (!node->driver->change_backing_file && !base) {
        return 0;
    }
    if (base && !name) {
        name = own_name = block_chain_reference(node, base, error);
        if (!name) {
            return -ENOTSUP;
        }
    }
    int status = remember(header, node, error);
    if (status < 0 ||
        (!g_strcmp0(name, header->backing_file) && !g_strcmp0(format, header->backing_format))) {
        return status;
    }
    header->node = block_node_ref(node);
    return change(node, name, format, error);
}

void chain_header_restore(struct chain_header *header)
{
    g_autoptr(GError) error = NULL;

    if (header->node &&
        change(header->node, header->backing_file, header->backing_format, &error) < 0) {
        g_warning("The image of node '%s' may have another backing file now, with the same data as "
                  "the old one: %s",
                  header->node->name, error->message);
    }
}

void chain_header_clear(struct chain_header *header)
{
    block_node_unref(header->node);
    g_free(header->backing_file);
    g_free(header->backing_format);
    *header = (struct chain_header){0};
}

int chain_check_no_snapshots(struct block_node *node, GError **error)
{
    struct block_snapshot_info *list = NULL;
    size_t count = 0;

    if (!node->driver->snapshot_list) {
        return 0;
    }
    int status = block_node_snapshot_list(node, &list, &count, error);
    if (status < 0) {
        return status;
    }
    if (count) {
        status = block_error(error, EBUSY,
                             "Node '%s' has internal snapshots ('%s'), which see its backing file, "
                             "too, and would be worth nothing without it: delete them first",
                             node->name, list[0].name);
    }
    block_snapshot_list_free(list, count);
    return status;
}
