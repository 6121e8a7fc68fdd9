/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A remote export as a node, over libnbd.
 *
 * The server is trusted with the data it keeps and with nothing else: whatever it says of sizes,
 * extents and limits is checked, and it may die, come back or talk nonsense at any time. One that
 * stays silent makes requests wait for ever, unless request-timeout is set: only the user can say
 * how long is too long.
 */
#include <errno.h>
#include <libnbd.h>
#include <string.h>
#include <unistd.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/driver.h"
#include "block/error.h"
#include "block/node.h"
#include "formats/nbd-client.h"
#include "formats/nbd-extents.h"
#include "formats/nbd-options.h"
#include "formats/nbd.h"

/* Lengths on the wire have 32 bits; stay well below. */
#define LENGTH_MAX (2 * GIB)

/* How far a block status request looks, so that a walk need not ask for each extent. */
#define EXTENTS_WINDOW (64 * MIB)

/*
 * How long an answer about extents may be used: long enough for a walk, and too short for the
 * writes of another client of the server to be missed by a later walk.
 */
#define EXTENTS_AGE_NS NS_PER_SECOND

struct nbd_state {
    struct nbd_options options;
    struct nbd_client client;

    /* Guards the rest; nothing else is taken in it. */
    pthread_mutex_t extents_lock;
    struct nbd_extents extents;
    uint64_t extents_changes; /* client.changes when they were asked for */
    int64_t extents_ns;       /* when they were asked for */
};

static int check_read_only(struct block_node *node, GError **error)
{
    const struct nbd_state *state = block_node_state(node);

    if (!state->client.capabilities.read_only || node->options.read_only) {
        return 0;
    }
    if (!node->options.auto_read_only) {
        return block_error(error, EACCES,
                           "The export '%s' is read-only: the node must be read-only, too",
                           state->client.description);
    }
    node->options.read_only = true;
    return 0;
}

static void set_limits(struct block_node *node, const struct nbd_capabilities *capabilities)
{
    uint32_t alignment = capabilities->minimum_block;

    node->limits.request_alignment = alignment;
    node->limits.memory_alignment = 1;
    node->limits.preferred_size = capabilities->preferred_block;
    node->limits.max_transfer = capabilities->maximum_block;
    node->limits.max_write_zeroes = LENGTH_MAX - alignment;
    node->limits.max_discard = LENGTH_MAX - alignment;
    node->limits.write_zeroes_alignment = capabilities->preferred_block;
    node->limits.discard_alignment = capabilities->preferred_block;
}

static void nbd_node_close(struct block_node *node)
{
    struct nbd_state *state = block_node_state(node);

    nbd_client_close(&state->client);
    pthread_mutex_destroy(&state->extents_lock);
    block_options_clear_target(nbd_option_table, &state->options);
}

static int nbd_node_open(struct block_node *node, void *values, GError **error)
{
    struct nbd_state *state = block_node_state(node);
    int ret = nbd_options_check(values, error);

    if (ret) {
        return ret;
    }
    /* All of the options stay in use: a lost connection is made again with them. */
    state->options = *(struct nbd_options *)values;
    memset(values, 0, sizeof(state->options));
    ret = nbd_options_find_credentials(&state->options, error);
    if (!ret) {
        ret = nbd_client_open(&state->client, &state->options, error);
    }
    if (ret) {
        block_options_clear_target(nbd_option_table, &state->options);
        return ret;
    }
    pthread_mutex_init(&state->extents_lock, NULL);
    ret = check_read_only(node, error);
    if (ret) {
        nbd_node_close(node);
        return ret;
    }
    set_limits(node, &state->client.capabilities);
    return 0;
}

/* All else is the server's: there is only the flag. */
static int nbd_node_reopen_prepare(struct block_node *node, void *values,
                                   const struct block_node_options *options, void **prepared,
                                   GError **error)
{
    const struct nbd_state *state = block_node_state(node);

    if (state->client.capabilities.read_only && !options->read_only) {
        return block_error(error, EACCES,
                           "Node '%s' cannot become writable: the export '%s' is read-only",
                           node->name, state->client.description);
    }
    return 0;
}

static int64_t nbd_node_get_length(struct block_node *node)
{
    const struct nbd_state *state = block_node_state(node);

    return state->client.capabilities.size;
}

static char *nbd_node_get_filename(struct block_node *node)
{
    const struct nbd_state *state = block_node_state(node);

    return g_strdup(state->client.description);
}

/* Nothing is known of how the server stores the data. */
static int nbd_node_get_info(struct block_node *node, struct block_info *info)
{
    return 0;
}

static int64_t nbd_node_get_allocated_size(struct block_node *node)
{
    return -ENOTSUP;
}

static int nbd_node_pread(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes,
                          unsigned flags)
{
    struct nbd_state *state = block_node_state(node);
    struct nbd_request request = {
        .operation = NBD_OPERATION_READ,
        .buffer = buffer,
        .offset = offset,
        .bytes = bytes,
    };

    return nbd_client_run(&state->client, &request);
}

/*
 * Carry out a request that changes data. A server without FUA is told to flush instead, here and
 * not by the core, as it is the server that decides, node by node.
 */
static int change(struct nbd_state *state, struct nbd_request *request, unsigned flags)
{
    bool fua = flags & BLOCK_REQUEST_FUA;
    bool server_fua = fua && state->client.capabilities.can_fua;
    int ret;

    if (server_fua) {
        request->flags |= LIBNBD_CMD_FLAG_FUA;
    }
    request->needs_flush = request->operation != NBD_OPERATION_TRIM && !server_fua;
    ret = nbd_client_run(&state->client, request);
    /* Whatever became of it: what was known of extents before is out of date. */
    atomic_fetch_add(&state->client.changes, 1);
    if (!ret && fua && !server_fua) {
        ret = nbd_client_flush(&state->client);
    }
    return ret;
}

static int nbd_node_pwrite(struct block_node *node, const void *buffer, uint64_t offset,
                           uint64_t bytes, unsigned flags)
{
    struct nbd_request request = {
        .operation = NBD_OPERATION_WRITE,
        .buffer = (void *)buffer, /* only read from */
        .offset = offset,
        .bytes = bytes,
    };

    return change(block_node_state(node), &request, flags);
}

static int nbd_node_write_zeroes(struct block_node *node, uint64_t offset, uint64_t bytes,
                                 unsigned flags)
{
    struct nbd_state *state = block_node_state(node);
    const struct nbd_capabilities *capabilities = &state->client.capabilities;
    bool fast = flags & BLOCK_REQUEST_NO_FALLBACK;
    struct nbd_request request = {
        .operation = NBD_OPERATION_ZERO,
        .offset = offset,
        .bytes = bytes,
        .flags = (flags & BLOCK_REQUEST_MAY_UNMAP ? 0 : LIBNBD_CMD_FLAG_NO_HOLE) |
                 (fast ? LIBNBD_CMD_FLAG_FAST_ZERO : 0),
    };

    if (!capabilities->can_zero || (fast && !capabilities->can_fast_zero)) {
        return -ENOTSUP;
    }
    return change(state, &request, flags);
}

static int nbd_node_discard(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    struct nbd_state *state = block_node_state(node);
    struct nbd_request request = {
        .operation = NBD_OPERATION_TRIM,
        .offset = offset,
        .bytes = bytes,
    };

    return state->client.capabilities.can_trim ? change(state, &request, 0) : 0;
}

static int nbd_node_flush(struct block_node *node)
{
    struct nbd_state *state = block_node_state(node);

    return nbd_client_flush(&state->client);
}

static int nbd_node_prefetch(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    struct nbd_state *state = block_node_state(node);
    struct nbd_request request = {
        .operation = NBD_OPERATION_CACHE,
        .offset = offset,
        .bytes = MIN_OF(bytes, node->limits.max_transfer),
    };

    return state->client.capabilities.can_cache ? nbd_client_run(&state->client, &request) : 0;
}

static bool find_known_extent(struct nbd_state *state, uint64_t offset, uint64_t max,
                              uint64_t *bytes, unsigned *flags)
{
    SCOPE_LOCK(&state->extents_lock);

    return state->extents_changes == atomic_load(&state->client.changes) &&
           clock_now_ns() - state->extents_ns < EXTENTS_AGE_NS &&
           nbd_extents_find(&state->extents, offset, max, bytes, flags);
}

static void keep_extents(struct nbd_state *state, const struct nbd_extents *extents,
                         uint64_t changes, int64_t asked_ns)
{
    SCOPE_LOCK(&state->extents_lock);

    state->extents.offset = extents->offset;
    state->extents.limit = extents->limit;
    state->extents.count = extents->count;
    memcpy(state->extents.extents, extents->extents, extents->count * sizeof(extents->extents[0]));
    state->extents_changes = changes;
    state->extents_ns = asked_ns;
}

/* Ask the server about offset and what follows it, and keep the answer. */
static int ask_extents(struct nbd_state *state, uint64_t offset, uint64_t max, uint64_t *bytes,
                       unsigned *flags)
{
    const struct nbd_capabilities *capabilities = &state->client.capabilities;
    uint32_t alignment = capabilities->minimum_block;
    uint64_t start = align_down(offset, alignment);
    uint64_t window = max < EXTENTS_WINDOW ? EXTENTS_WINDOW : MIN_OF(max, LENGTH_MAX / 2);
    uint64_t end = MIN_OF(offset + window, capabilities->size);
    /* Counted before asking: a write that is answered meanwhile makes the answer out of date. */
    uint64_t changes = atomic_load(&state->client.changes);
    int64_t asked_ns = clock_now_ns();
    g_autofree struct nbd_extents *extents = g_malloc(sizeof(*extents));
    struct nbd_request request = {
        .operation = NBD_OPERATION_EXTENTS,
        .offset = start,
        .bytes = align_up(end - start, alignment),
        .extents = extents,
    };
    int ret;

    nbd_extents_begin(extents, start, capabilities->size);
    ret = nbd_client_run(&state->client, &request);
    if (ret) {
        return ret;
    }
    if (!nbd_extents_find(extents, offset, max, bytes, flags)) {
        return -EPROTO;
    }
    keep_extents(state, extents, changes, asked_ns);
    return 0;
}

static int nbd_node_block_status(struct block_node *node, uint64_t offset, uint64_t bytes,
                                 struct block_extent *extent)
{
    struct nbd_state *state = block_node_state(node);

    extent->bytes = bytes;
    extent->flags = BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED;
    if (state->client.capabilities.has_extents &&
        !find_known_extent(state, offset, bytes, &extent->bytes, &extent->flags)) {
        int ret = ask_extents(state, offset, bytes, &extent->bytes, &extent->flags);

        if (ret) {
            return ret;
        }
    }
    extent->flags |= BLOCK_STATUS_OFFSET_VALID;
    extent->host_offset = offset;
    extent->host_node = node;
    return 0;
}

static void nbd_node_cancel_in_flight(struct block_node *node)
{
    struct nbd_state *state = block_node_state(node);

    nbd_client_cancel(&state->client);
}

static bool nbd_node_has_lost_writes(struct block_node *node)
{
    struct nbd_state *state = block_node_state(node);

    return atomic_load(&state->client.writes_lost);
}

static uint64_t nbd_node_count_losses(struct block_node *node)
{
    struct nbd_state *state = block_node_state(node);

    return atomic_load(&state->client.losses);
}

static int nbd_node_accept_lost_writes(struct block_node *node)
{
    struct nbd_state *state = block_node_state(node);

    nbd_client_accept_loss(&state->client);
    return 0;
}

const struct block_driver nbd_driver = {
    .name = "nbd",
    .description = "An export of an NBD server",
    .is_protocol = true,
    .instance_size = sizeof(struct nbd_state),
    .options = nbd_option_table,
    .options_size = sizeof(struct nbd_options),
    .open = nbd_node_open,
    .close = nbd_node_close,
    .reopen_prepare = nbd_node_reopen_prepare,
    .get_length = nbd_node_get_length,
    .get_allocated_size = nbd_node_get_allocated_size,
    .get_filename = nbd_node_get_filename,
    .get_info = nbd_node_get_info,
    .pread = nbd_node_pread,
    .pwrite = nbd_node_pwrite,
    .handles_fua = true,
    .write_zeroes = nbd_node_write_zeroes,
    .discard = nbd_node_discard,
    .flush = nbd_node_flush,
    .block_status = nbd_node_block_status,
    .prefetch = nbd_node_prefetch,
    .cancel_in_flight = nbd_node_cancel_in_flight,
    .has_lost_writes = nbd_node_has_lost_writes,
    .count_losses = nbd_node_count_losses,
    .accept_lost_writes = nbd_node_accept_lost_writes,
};
