/* SPDX-License-Identifier: BSD-3-Clause */
#include "formats/copy-on-read.h"

#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/chain.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "block/request.h"
#include "block/zero.h"

/* What is kept is read and written in pieces of this many bytes, or a cluster. */
#define KEPT_AT_ONCE MIB

struct copy_on_read_state {
    struct block_node *bottom; /* the lowest layer that is copied from; NULL: copy from all */
    struct block_claim claim;  /* on that, so that it stays the one that was meant */
};

struct copy_on_read_options {
    char *bottom;
};

static const struct block_option copy_on_read_option_table[] = {
    {"file", BLOCK_OPTION_NODE, .required = true,
     .help = "The chain. What is read from its backing files is kept in its top layer."},
    {"bottom", BLOCK_OPTION_STRING, offsetof(struct copy_on_read_options, bottom),
     .help = "Node name of the lowest layer that is copied from. By default data of all layers is "
             "kept."},
    {NULL},
};

static void child_permissions(const struct block_node *node, enum block_role role, unsigned *perms,
                              unsigned *shared)
{
    if (role == BLOCK_ROLE_FILE && !node->options.read_only) {
        *perms |= BLOCK_PERM_WRITE_UNCHANGED;
    }
}

/* ---- Who has it ----------------------------------------------------------------------------- */

/* Whether anything is to be kept: not while the bottom is no part of the chain any more. */
static bool copies(const struct block_node *node)
{
    const struct copy_on_read_state *state = block_node_state((struct block_node *)node);
    const struct block_node *layer = block_node_below_filters(node->file);

    while (state->bottom && layer && layer != state->bottom) {
        layer = block_layer_below(layer);
    }
    return layer && !node->options.read_only;
}

/* Whether the start of a range, *bytes of it, is to be kept: the top layer has nothing there, and
 * one of those that are copied from has data. */
static int look(const struct block_node *node, uint64_t offset, uint64_t *bytes, bool *is_below)
{
    const struct copy_on_read_state *state = block_node_state((struct block_node *)node);
    struct block_node *top = block_node_below_filters(node->file);

    *is_below = false;
    for (struct block_node *layer = top; layer; layer = block_layer_below(layer)) {
        uint64_t length = block_node_length(layer);
        struct block_extent extent;

        if (offset >= length) {
            return 0; /* zeroes */
        }
        int status =
            block_node_block_status(layer, offset, MIN_OF(*bytes, length - offset), &extent);
        if (status < 0) {
            return status;
        }
        *bytes = extent.bytes;
        if (extent.flags & (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO)) {
            *is_below = layer != top && !(extent.flags & BLOCK_STATUS_ZERO);
            return 0;
        }
        if (layer == state->bottom) {
            return 0;
        }
    }
    return 0;
}

/* The same for as much of the range as has the same answer. */
static int look_far(const struct block_node *node, uint64_t offset, uint64_t *bytes, bool *is_below)
{
    uint64_t whole = *bytes, done;
    int status = look(node, offset, bytes, is_below);

    for (done = *bytes; status == 0 && done < whole; done += *bytes) {
        bool is_next_below;

        *bytes = whole - done;
        status = look(node, offset + done, bytes, &is_next_below);
        if (status < 0 || is_next_below != *is_below) {
            break;
        }
    }
    *bytes = done;
    return status;
}

/* ---- Reading -------------------------------------------------------------------------------- */

/* Whoever reads must not suffer if there is no room, say; it is read from below again next time. */
static void keep(struct block_node *node, const void *buffer, uint64_t offset, uint64_t bytes)
{
    block_node_populate(node->file, buffer_is_zero(buffer, bytes) ? NULL : buffer, offset, bytes);
}

/* [start, end) is whole clusters that contain what is wanted. */
static int keep_around(struct block_node *node, uint64_t start, uint64_t end, char *wanted,
                       uint64_t offset, uint64_t bytes)
{
    AUTO_FREE char *buffer = block_node_alloc_buffer(node->file, end - start);
    int status = buffer ? block_node_pread(node->file, buffer, start, end - start, 0) : -ENOMEM;

    if (status < 0) { /* perhaps the fault lies in what nobody has asked for */
        return block_node_pread(node->file, wanted, offset, bytes, 0);
    }
    memcpy(wanted, buffer + (offset - start), bytes);
    keep(node, buffer, start, end - start);
    return 0;
}

static int read_and_keep(struct block_node *node, char *buffer, uint64_t offset, uint64_t bytes)
{
    const struct block_node *top = block_node_below_filters(node->file);
    uint64_t cluster = MAX_OF(top->limits.cluster_size, 1u);
    uint64_t most = MAX_OF(KEPT_AT_ONCE, cluster);
    int status = 0;

    for (uint64_t end = offset + bytes, piece; status == 0 && offset < end; offset += piece) {
        piece = MIN_OF(end, align_down(offset, most) + most) - offset;
        uint64_t start = align_down(offset, cluster);
        uint64_t stop = MIN_OF(align_up(offset + piece, cluster), block_node_length(node->file));

        if (start == offset && stop == offset + piece) {
            status = block_node_pread(node->file, buffer, offset, piece, 0);
            if (status == 0) {
                keep(node, buffer, offset, piece);
            }
        } else {
            status = keep_around(node, start, stop, buffer, offset, piece);
        }
        buffer += piece;
    }
    return status;
}

static int copy_on_read_pread(struct block_node *node, void *buffer, uint64_t offset,
                              uint64_t bytes, unsigned flags)
{
    char *to = buffer;
    int status = 0;

    if (!copies(node)) {
        return block_node_pread(node->file, buffer, offset, bytes, flags);
    }
    for (uint64_t piece = bytes; status == 0 && bytes; bytes -= piece, piece = bytes) {
        bool is_below;

        if (look_far(node, offset, &piece, &is_below) < 0) {
            return block_node_pread(node->file, to, offset, bytes, flags);
        }
        status = is_below ? read_and_keep(node, to, offset, piece)
                          : block_node_pread(node->file, to, offset, piece, flags);
        to += piece;
        offset += piece;
    }
    return status;
}

/* ---- Life ----------------------------------------------------------------------------------- */

static int set_bottom(struct block_node *node, const char *name, GError **error)
{
    struct copy_on_read_state *state = block_node_state(node);
    AUTO(block_node) bottom = block_node_find(name);

    if (!bottom) {
        return block_error(error, ENOENT, "Bottom node '%s' not found", name);
    }
    if (bottom->driver->is_filter) {
        return block_error(error, EINVAL, "Bottom node '%s' is a filter", name);
    }
    if (!block_chain_contains(node->file, bottom)) {
        return block_error(error, EINVAL, "Bottom node '%s' is not in the chain below '%s'", name,
                           node->file->name);
    }
    state->claim = (struct block_claim){
        .owner = g_strdup_printf("node '%s'", node->name ? node->name : "(new)"),
        .shared = BLOCK_PERM_ALL,
    };
    int status = block_claim_acquire(&state->claim, bottom, error);
    if (status < 0) {
        g_free(state->claim.owner);
        return status;
    }
    state->bottom = bottom;
    return 0;
}

static int copy_on_read_open(struct block_node *node, void *values, GError **error)
{
    const struct copy_on_read_options *options = values;

    node->limits = node->file->limits;
    return options->bottom ? set_bottom(node, options->bottom, error) : 0;
}

static void copy_on_read_close(struct block_node *node)
{
    struct copy_on_read_state *state = block_node_state(node);

    if (state->bottom) {
        block_claim_release(&state->claim);
        g_free(state->claim.owner);
    }
}

const struct block_driver copy_on_read_driver = {
    .name = "copy-on-read",
    .description = "Keeps in the top layer what is read from the backing files below it",
    .is_filter = true,
    .instance_size = sizeof(struct copy_on_read_state),
    .options = copy_on_read_option_table,
    .options_size = sizeof(struct copy_on_read_options),
    .child_permissions = child_permissions,
    .open = copy_on_read_open,
    .close = copy_on_read_close,
    .pread = copy_on_read_pread,
};
