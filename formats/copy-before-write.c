/* SPDX-License-Identifier: BSD-3-Clause */
#include "formats/copy-before-write.h"

#include <errno.h>
#include <limits.h>

#include "block/align.h"
#include "block/clock.h"
#include "block/dirty-bitmap.h"
#include "block/drain.h"
#include "block/error.h"
#include "block/main-loop.h"

/* What hangs on `target` for longer is cut off when the node is closed. */
#define STOP_GRACE_NS (5 * NS_PER_SECOND)

struct copy_before_write_state {
    struct point_in_time *point;
    char *name;          /* for what is said when it breaks */
    _Atomic bool warned; /* that has been said */
};

struct copy_before_write_options {
    int on_error;
    uint64_t timeout_s;
    uint64_t min_cluster_size;
    char *bitmap_node;
    char *bitmap_name;
};

static const struct block_option copy_before_write_option_table[] = {
    {"file", BLOCK_OPTION_NODE, .required = true, .help = "The node whose contents are kept."},
    {"target", BLOCK_OPTION_NODE, .required = true,
     .help = "Scratch: where old data goes; at least as long as `file`, and nobody else's."},
    {"on-cbw-error", BLOCK_OPTION_ENUM, offsetof(struct copy_before_write_options, on_error),
     .default_text = "break-guest-write", .enum_values = point_in_time_policy_names,
     .help = "What happens when old data cannot be kept: the write that would overwrite it fails, "
             "or the snapshot breaks and reading it fails from then on."},
    {"cbw-timeout", BLOCK_OPTION_UINT, offsetof(struct copy_before_write_options, timeout_s),
     .default_text = "0",
     .help = "Seconds a write may wait for old data to be kept, after which it counts as not kept; "
             "0: for ever."},
    {"min-cluster-size", BLOCK_OPTION_SIZE,
     offsetof(struct copy_before_write_options, min_cluster_size), .default_text = "0",
     .help = "Old data is kept in units of at least so many bytes, a power of two, which makes "
             "fewer and larger writes to `target`; 0: of 4 KiB."},
    {"bitmap.node", BLOCK_OPTION_STRING, offsetof(struct copy_before_write_options, bitmap_node),
     .help = "The node that has it. Only what is set in the bitmap now is kept and can be read."},
    {"bitmap.name", BLOCK_OPTION_STRING, offsetof(struct copy_before_write_options, bitmap_name),
     .help = "The bitmap's name."},
    {NULL},
};

/* The one claim on scratch that matters is that of the point in time. */
static void child_permissions(const struct block_node *node, enum block_role role, unsigned *perms,
                              unsigned *shared)
{
    if (role == BLOCK_ROLE_TARGET) {
        *perms = BLOCK_PERM_READ;
        *shared = BLOCK_PERM_ALL;
    }
}

static void on_change(void *data)
{
    struct copy_before_write_state *state = data;
    g_autoptr(GError) reason = NULL;

    if (point_in_time_is_broken(state->point, NULL) && !atomic_exchange(&state->warned, true)) {
        point_in_time_is_broken(state->point, &reason);
        g_warning("Node '%s': its snapshot broke: %s", state->name, reason->message);
    }
}

static int check_options(struct block_node *node, const struct copy_before_write_options *options,
                         GError **error)
{
    struct block_node *target = block_node_child(node, "target");

    if (options->timeout_s > INT_MAX) {
        return block_error(error, EINVAL, "cbw-timeout must be between 0 (none) and %d seconds",
                           INT_MAX);
    }
    if (options->min_cluster_size && !is_power_of_2(options->min_cluster_size)) {
        return block_error(error, EINVAL, "min-cluster-size needs to be a power of 2");
    }
    if (!options->bitmap_node != !options->bitmap_name) {
        return block_error(error, EINVAL, "Parameter 'bitmap.%s' is missing",
                           options->bitmap_node ? "name" : "node");
    }
    if (block_node_below_filters(target) == block_node_below_filters(node->file)) {
        return block_error(error, EINVAL, "'file' and 'target' cannot be the same");
    }
    return 0;
}

/* The moment, and what it needs. */
struct moment {
    struct block_node *nodes[2]; /* to drain: the source, and the bitmap's node or NULL */
    const char *bitmap;          /* its name, or NULL */
    struct point_in_time_options options;
    struct copy_before_write_state *state; /* gets the point in time, unless that fails */
    GError **error;
};

/*
 * Main thread, drained. A bitmap is read at the moment, not before: what is written in between is
 * in the bitmap that its user looks at, so it must be in the point in time, too.
 */
static void take_moment(void *data)
{
    struct moment *moment = data;

    if (moment->bitmap) {
        moment->options.bitmap = block_node_find_bitmap(moment->nodes[1], moment->bitmap);
        if (!moment->options.bitmap) {
            block_error(moment->error, ENOENT, "Dirty bitmap '%s' not found", moment->bitmap);
            return;
        }
        /* One that a job uses does not say what was written since that began. */
        if (dirty_bitmap_check_state(moment->options.bitmap,
                                     DIRTY_BITMAP_REFUSE_BUSY | DIRTY_BITMAP_REFUSE_INCONSISTENT,
                                     moment->error) < 0) {
            return;
        }
        moment->state->point = point_in_time_new(&moment->options, moment->error);
    }
    if (moment->state->point) {
        point_in_time_install(moment->state->point);
    }
}

static void run_moment(struct moment *moment)
{
    if (!moment->bitmap) { /* what fails now does not hold the guest up */
        moment->state->point = point_in_time_new(&moment->options, moment->error);
        if (!moment->state->point) {
            return;
        }
    }
    AUTO(block_drain)
    drain = block_drain_begin(moment->nodes, moment->bitmap ? 2 : 1, BLOCK_PERM_WRITE);
    main_loop_call_wait(take_moment, moment);
}

static int copy_before_write_open(struct block_node *node, void *values, GError **error)
{
    struct copy_before_write_state *state = block_node_state(node);
    const struct copy_before_write_options *options = values;
    g_autofree char *owner = g_strdup_printf("node '%s'", node->name ? node->name : "(new)");
    AUTO(block_node) bitmap_node = NULL;

    if (check_options(node, options, error) < 0) {
        return -EINVAL;
    }
    if (options->bitmap_node) {
        bitmap_node = block_node_find(options->bitmap_node);
        if (!bitmap_node) {
            return block_error(error, ENOENT, "Node '%s' not found", options->bitmap_node);
        }
    }
    struct moment moment = {
        .nodes = {block_node_below_filters(node->file), bitmap_node},
        .bitmap = options->bitmap_name,
        .options =
            {
                .owner = owner,
                .source = block_node_below_filters(node->file),
                .scratch = block_node_child(node, "target"),
                .policy = (enum point_in_time_policy)options->on_error,
                .guest_timeout_ns = (int64_t)options->timeout_s * NS_PER_SECOND,
                .guest_unit = options->min_cluster_size,
                .callback_data = state,
                .on_change = on_change,
            },
        .state = state,
        .error = error,
    };
    state->name = g_strdup(node->name ? node->name : node->driver->name);
    run_moment(&moment);
    if (!state->point) {
        g_free(state->name);
        return -EINVAL;
    }
    node->limits = node->file->limits;
    return 0;
}

static void copy_before_write_close(struct block_node *node)
{
    struct copy_before_write_state *state = block_node_state(node);

    point_in_time_uninstall(state->point);
    point_in_time_stop(state->point, STOP_GRACE_NS);
    point_in_time_free(state->point);
    g_free(state->name);
}

struct point_in_time *copy_before_write_point(struct block_node *node)
{
    const struct copy_before_write_state *state = block_node_state(node);

    return node->driver == &copy_before_write_driver ? state->point : NULL;
}

const struct block_driver copy_before_write_driver = {
    .name = "copy-before-write",
    .description = "Keeps the contents of the moment it is opened, for snapshot-access",
    .is_filter = true,
    .instance_size = sizeof(struct copy_before_write_state),
    .options = copy_before_write_option_table,
    .options_size = sizeof(struct copy_before_write_options),
    .child_permissions = child_permissions,
    .open = copy_before_write_open,
    .close = copy_before_write_close,
};
