/* SPDX-License-Identifier: BSD-3-Clause */
#include "formats/throttle.h"

#include <errno.h>
#include <pthread.h>

#include "block/cleanup.h"
#include "block/error.h"
#include "block/node.h"
#include "block/request.h"
#include "block/throttle-group.h"

struct throttle_state {
    struct throttle_group *group;
    /* What is not read by a request changes under the lock, which is before the throttle's, and
     * what is, only while the node is drained. */
    pthread_mutex_t lock;
    struct throttle_user user;
};

struct throttle_options {
    char *group;
};

static const struct block_option throttle_option_table[] = {
    {"file", BLOCK_OPTION_NODE, .required = true, .help = "What is limited."},
    {"throttle-group", BLOCK_OPTION_STRING, offsetof(struct throttle_options, group),
     .required = true, .can_change = true,
     .help = "The ID of the throttle-group object whose limits all its nodes keep together."},
    {NULL},
};

/* ---- Requests -------------------------------------------------------------------------------- */

static void wait_turn(const struct block_node *node, bool is_write, uint64_t bytes)
{
    const struct throttle_state *state = block_node_state(node);

    throttle_wait_as(&state->user, is_write, bytes);
}

static int throttle_pread(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes,
                          unsigned flags)
{
    wait_turn(node, false, bytes);
    return block_node_pread(node->file, buffer, offset, bytes, flags);
}

static int throttle_pwrite(struct block_node *node, const void *buffer, uint64_t offset,
                           uint64_t bytes, unsigned flags)
{
    wait_turn(node, true, bytes);
    return block_node_pwrite(node->file, buffer, offset, bytes, flags);
}

static int throttle_write_zeroes(struct block_node *node, uint64_t offset, uint64_t bytes,
                                 unsigned flags)
{
    wait_turn(node, true, bytes);
    return block_node_write_zeroes(node->file, offset, bytes, flags);
}

static int throttle_discard(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    wait_turn(node, true, bytes);
    return block_node_discard(node->file, offset, bytes);
}

static int throttle_populate(struct block_node *node, const void *buffer, uint64_t offset,
                             uint64_t bytes)
{
    wait_turn(node, true, bytes);
    return block_node_populate(node->file, buffer, offset, bytes);
}

/* Who has the range's place in the host's file reads it when he likes, past the limits. */
static int throttle_host_range(struct block_node *node, uint64_t offset, uint64_t *bytes, int *fd,
                               uint64_t *fd_offset)
{
    return -ENOTSUP;
}

static int throttle_pwrite_from_fd(struct block_node *node, int fd, uint64_t fd_offset,
                                   uint64_t offset, uint64_t bytes)
{
    wait_turn(node, true, bytes);
    return block_node_pwrite_from_fd(node->file, fd, fd_offset, offset, bytes);
}

/* ---- Letting them through -------------------------------------------------------------------- */

static void throttle_drain_begin(struct block_node *node)
{
    struct throttle_state *state = block_node_state(node);
    SCOPE_LOCK(&state->lock);

    throttle_suspend_user(&state->user);
}

static void throttle_drain_end(struct block_node *node)
{
    struct throttle_state *state = block_node_state(node);
    SCOPE_LOCK(&state->lock);

    throttle_resume_user(&state->user);
}

/* Those that wait now go on; the job that made them makes no more. */
static void throttle_cancel_in_flight(struct block_node *node)
{
    throttle_drain_begin(node);
    throttle_drain_end(node);
    block_node_cancel_in_flight(node->file);
}

/* ---- Life ------------------------------------------------------------------------------------ */

static struct throttle_group *find_group(const char *name, GError **error)
{
    struct throttle_group *group = throttle_group_find(name);

    if (!group) {
        block_error(error, ENOENT,
                    "Throttle group '%s' does not exist: object-add makes it, or --object", name);
    }
    return group;
}

static int throttle_open(struct block_node *node, void *values, GError **error)
{
    struct throttle_state *state = block_node_state(node);
    const struct throttle_options *options = values;

    state->group = find_group(options->group, error);
    if (!state->group) {
        return -ENOENT;
    }
    pthread_mutex_init(&state->lock, NULL);
    state->user.throttle = throttle_group_throttle(state->group);
    node->limits = node->file->limits;
    return 0;
}

static void throttle_close(struct block_node *node)
{
    struct throttle_state *state = block_node_state(node);

    throttle_group_unref(state->group);
    pthread_mutex_destroy(&state->lock);
}

/* values is NULL if only the common options change: then the group stays, too. */
static int throttle_reopen_prepare(struct block_node *node, void *values,
                                   const struct block_node_options *options, void **prepared,
                                   GError **error)
{
    const struct throttle_options *wanted = values;

    *prepared = wanted ? find_group(wanted->group, error) : NULL;
    return wanted && !*prepared ? -ENOENT : 0;
}

/* A section that began with the old group ends with the new one. */
static void throttle_reopen_commit(struct block_node *node, void *prepared)
{
    struct throttle_state *state = block_node_state(node);
    struct throttle_group *old = state->group;

    if (prepared) {
        SCOPE_LOCK(&state->lock);
        state->group = prepared;
        state->user.throttle = throttle_group_throttle(state->group);
        throttle_group_unref(old);
    }
}

static void throttle_reopen_abort(struct block_node *node, void *prepared)
{
    throttle_group_unref(prepared);
}

const struct block_driver throttle_driver = {
    .name = "throttle",
    .description = "Limits the rate of requests, for all nodes of a throttle group together",
    .is_filter = true,
    .is_length_free = true,
    .instance_size = sizeof(struct throttle_state),
    .options = throttle_option_table,
    .options_size = sizeof(struct throttle_options),
    .open = throttle_open,
    .close = throttle_close,
    .reopen_prepare = throttle_reopen_prepare,
    .reopen_commit = throttle_reopen_commit,
    .reopen_abort = throttle_reopen_abort,
    .pread = throttle_pread,
    .pwrite = throttle_pwrite,
    .handles_fua = true,
    .can_compress = true,
    .write_zeroes = throttle_write_zeroes,
    .populate = throttle_populate,
    .discard = throttle_discard,
    .host_range = throttle_host_range,
    .pwrite_from_fd = throttle_pwrite_from_fd,
    .cancel_in_flight = throttle_cancel_in_flight,
    .drain_begin = throttle_drain_begin,
    .drain_end = throttle_drain_end,
};
