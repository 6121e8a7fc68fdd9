/* SPDX-License-Identifier: BSD-3-Clause */
#include "formats/snapshot-access.h"

#include <errno.h>

#include "block/error.h"
#include "formats/copy-before-write.h"

struct snapshot_access_state {
    struct point_in_time *point; /* that of the copy-before-write child, or our own */
    /* Of a node with its own: */
    char *filename;
    void (*closed)(void *data);
    void *data;
};

static const struct block_option snapshot_access_option_table[] = {
    {"file", BLOCK_OPTION_NODE, .required = true,
     .help = "A copy-before-write node, whose snapshot is shown. The node is always read-only; "
             "with discard=unmap, discards free what `target` holds."},
    {NULL},
};

/* It reads past the child what the child keeps; the child's users go on with it as they like. */
static void child_permissions(const struct block_node *node, enum block_role role, unsigned *perms,
                              unsigned *shared)
{
    *perms = BLOCK_PERM_READ;
    *shared = BLOCK_PERM_ALL;
}

static int open_above_filter(struct block_node *node, void *values, GError **error)
{
    struct snapshot_access_state *state = block_node_state(node);

    state->point = copy_before_write_point(node->file);
    if (!state->point && node->file->is_transient) {
        return block_error(error, EINVAL,
                           "Node '%s' keeps no snapshot to access: it stands for a job only",
                           node->file->name);
    }
    if (!state->point) {
        return block_error(error, EINVAL,
                           "Node '%s' keeps no snapshot to access: its driver is '%s', and 'file' "
                           "must name a 'copy-before-write' node",
                           node->file->name, node->file->driver->name);
    }
    node->options.read_only = true;
    return 0;
}

static int open_own(struct block_node *node, void *values, GError **error)
{
    struct snapshot_access_state *state = block_node_state(node);
    const struct snapshot_access_options *options = values;

    *state = (struct snapshot_access_state){
        .point = options->point,
        .filename = g_strdup(options->filename),
        .closed = options->closed,
        .data = options->data,
    };
    return 0;
}

static void close_own(struct block_node *node)
{
    struct snapshot_access_state *state = block_node_state(node);

    point_in_time_uninstall(state->point);
    point_in_time_free(state->point);
    g_free(state->filename);
    if (state->closed) {
        state->closed(state->data);
    }
}

static int64_t get_length(struct block_node *node)
{
    const struct snapshot_access_state *state = block_node_state(node);

    return (int64_t)point_in_time_length(state->point);
}

static char *get_filename(struct block_node *node)
{
    const struct snapshot_access_state *state = block_node_state(node);

    return state->filename ? g_strdup(state->filename) : block_node_get_filename(node->file);
}

static int read_point(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes,
                      unsigned flags)
{
    const struct snapshot_access_state *state = block_node_state(node);

    return point_in_time_pread(state->point, buffer, offset, bytes);
}

static int give_up(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    const struct snapshot_access_state *state = block_node_state(node);

    return point_in_time_discard(state->point, offset, bytes);
}

static int block_status(struct block_node *node, uint64_t offset, uint64_t bytes,
                        struct block_extent *extent)
{
    const struct snapshot_access_state *state = block_node_state(node);

    return point_in_time_block_status(state->point, offset, bytes, extent);
}

#define SNAPSHOT_ACCESS                                                                            \
    .name = "snapshot-access", .description = "Reads what a copy-before-write node keeps",         \
    .discard_when_read_only = true, .instance_size = sizeof(struct snapshot_access_state),         \
    .get_length = get_length, .get_filename = get_filename, .pread = read_point,                   \
    .discard = give_up, .block_status = block_status

const struct block_driver snapshot_access_driver = {
    SNAPSHOT_ACCESS,
    .options = snapshot_access_option_table,
    .child_permissions = child_permissions,
    .open = open_above_filter,
};

/* Not registered: nobody can name a point in time. */
static const struct block_driver own_point_driver = {
    SNAPSHOT_ACCESS,
    .open = open_own,
    .close = close_own,
};

struct block_node *snapshot_access_open(const struct snapshot_access_options *options,
                                        GError **error)
{
    AUTO(block_options) node_options = block_options_new();

    block_options_set(node_options, "read-only", "on");
    block_options_set(node_options, "discard", "unmap");
    return block_node_open_with(&own_point_driver, (void *)(uintptr_t)options, node_options, error);
}

struct block_node *snapshot_access_source(struct block_node *node)
{
    const struct snapshot_access_state *state = block_node_state(node);

    return node->driver == &snapshot_access_driver || node->driver == &own_point_driver
               ? point_in_time_source(state->point)
               : NULL;
}
