/* SPDX-License-Identifier: BSD-3-Clause */
/* What is in a chain. How it is changed is in chain-change.c. */
#include "block/chain.h"

#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "block/gate.h"
#include "block/request.h"

struct block_node *block_layer_below(const struct block_node *node)
{
    while (node->driver->is_filter && node->file) {
        node = node->file;
    }
    return node->backing ? block_node_below_filters(node->backing) : NULL;
}

struct block_node *block_layer_of(struct block_node *node)
{
    SCOPE_LOCK(&block_graph_lock);
    struct block_node *layer = block_node_below_filters(node);

    layer->references++;
    return layer;
}

struct block_node *block_below_transient(struct block_node *node)
{
    SCOPE_LOCK(&block_graph_lock);

    while (node->is_transient && node->file) {
        node = node->file;
    }
    node->references++;
    return node;
}

/* Graph lock held, or a request. */
static struct block_node *below(const struct block_node *node)
{
    return node->driver->is_filter ? node->file : node->backing;
}

struct block_node *block_chain_below(struct block_node *node)
{
    SCOPE_LOCK(&block_graph_lock);
    struct block_node *next = below(node);

    if (next) {
        next->references++;
    }
    return next;
}

struct block_node *block_chain_backing(struct block_node *node)
{
    SCOPE_LOCK(&block_graph_lock);
    struct block_node *backing = block_node_below_filters(node)->backing;

    if (backing) {
        backing->references++;
    }
    return backing;
}

bool block_chain_contains(struct block_node *top, const struct block_node *node)
{
    SCOPE_LOCK(&block_graph_lock);

    while (top && top != node) {
        top = below(top);
    }
    return top;
}

/* One that is just being opened or closed is nobody's yet, or any more, and cannot be kept. */
static bool is_open(const struct block_node *node)
{
    return node->published && node->references > 0;
}

void block_chain_find_overlays_locked(struct block_node *node, GPtrArray *overlays)
{
    struct block_claim *claim;

    TAILQ_FOREACH (claim, &node->claims, entry) {
        struct block_node *parent = claim->parent;

        if (parent && parent->driver->is_filter && parent->file == node) {
            block_chain_find_overlays_locked(parent, overlays);
        } else if (parent && parent->backing == node && is_open(parent)) {
            g_ptr_array_add(overlays, parent);
        }
    }
}

int block_chain_status(struct block_node *top, const struct block_node *base, uint64_t offset,
                       uint64_t bytes, struct block_extent *extent)
{
    struct block_node *layer = block_node_below_filters(top);
    const struct block_node *end =
        base ? block_node_below_filters((struct block_node *)base) : NULL;

    for (; layer && layer != end; layer = block_layer_below(layer)) {
        uint64_t length = block_node_length(layer);

        if (offset >= length) {
            *extent = (struct block_extent){
                .bytes = bytes,
                .flags = BLOCK_STATUS_ZERO | BLOCK_STATUS_ALLOCATED,
            };
            return 0;
        }
        bytes = MIN_OF(bytes, length - offset);
        int status = block_node_block_status(layer, offset, bytes, extent);
        if (status < 0) {
            return status;
        }
        if (extent->flags & (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO)) {
            extent->flags |= BLOCK_STATUS_ALLOCATED;
            return 0;
        }
        bytes = extent->bytes;
    }
    *extent = (struct block_extent){.bytes = bytes, .flags = end ? 0 : BLOCK_STATUS_ZERO};
    return 0;
}

bool block_driver_takes_backing(const struct block_driver *driver)
{
    for (const struct block_option *option = driver->options; option && option->name; option++) {
        if (option->type == BLOCK_OPTION_NODE && !strcmp(option->name, "backing")) {
            return true;
        }
    }
    return false;
}

/* ---- What an image calls its backing file ---------------------------------------------------- */

/* The path without the directory that the image is in, or NULL if it is not in that. */
static const char *strip_directory(const char *path, const char *image)
{
    const char *slash = strrchr(image, '/');
    size_t bytes = slash ? (size_t)(slash + 1 - image) : 0;

    return !strncmp(path, image, bytes) && path[bytes] && path[bytes] != '/' ? path + bytes : NULL;
}

/* What is before a colon might be taken for a protocol's name: "nbd:disk" is a file, too. */
static char *relative_reference(const char *path)
{
    return g_strdup_printf("%s%s", path[strcspn(path, "/:")] == ':' ? "./" : "", path);
}

static bool says_relative_name(struct block_node *image)
{
    struct block_info info = {0};
    bool is_relative = block_node_get_info(image, &info) == 0 && info.backing_file &&
                       block_reference_is_relative(info.backing_file);

    block_info_clear(&info);
    return is_relative;
}

/*
 * Whether a file's name, and the driver's, say all of what a node shows. Below the node's own
 * format nothing may lie that the name does not tell of, but for raw, which adds nothing.
 */
static bool is_said_by_name(const struct block_node *node)
{
    if (node->driver->is_protocol) {
        return true;
    }
    if (!node->driver->probe || !node->file ||
        (node->driver->is_said_by_name && !node->driver->is_said_by_name(node))) {
        return false;
    }
    const struct block_node *file = block_node_below_filters(node->file);
    return !block_driver_takes_backing(file->driver) && is_said_by_name(file);
}

static bool can_be_opened(const char *name)
{
    return name && *name && (block_reference_is_path(name) || block_reference_is_uri(name));
}

char *block_chain_reference(struct block_node *image, struct block_node *base, GError **error)
{
    AUTO(block_node) layer = block_layer_of(base);
    g_autofree char *name = block_node_get_filename(layer);
    g_autofree char *own_name = image ? block_node_get_filename(image) : NULL;

    if (!is_said_by_name(layer) || !can_be_opened(name)) {
        block_error(error, ENOTSUP,
                    "Node '%s' cannot be named as a backing file: no file name says what it shows",
                    layer->name);
        return NULL;
    }
    if (!block_reference_is_path(name)) {
        return g_steal_pointer(&name);
    }
    const char *stripped =
        own_name && says_relative_name(image) ? strip_directory(name, own_name) : NULL;
    /* A relative name would be taken from the image's directory, not from ours. */
    return stripped ? relative_reference(stripped) : g_canonicalize_filename(name, NULL);
}

const char *block_chain_format(struct block_node *base, bool mask_protocol)
{
    AUTO(block_node) layer = block_layer_of(base);

    return layer->driver->is_protocol && mask_protocol ? "raw" : layer->driver->name;
}
