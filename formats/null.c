/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Reads always give zeroes, so that no leftover memory of this process reaches a client;
 * read-zeroes=on also says so in block status.
 */
#include "formats/null.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <time.h>

#include "block/clock.h"
#include "block/error.h"
#include "block/node.h"

struct null_options {
    uint64_t size;
    uint64_t latency_ns;
    bool read_zeroes;
};

static const struct block_option null_option_table[] = {
    {
        .name = "size",
        .type = BLOCK_OPTION_SIZE,
        .offset = offsetof(struct null_options, size),
        .default_text = "1G",
        .help = "Length in bytes.",
    },
    {
        .name = "latency-ns",
        .type = BLOCK_OPTION_UINT,
        .offset = offsetof(struct null_options, latency_ns),
        .default_text = "0",
        .can_change = true,
        .help = "How long every request takes, in nanoseconds.",
    },
    {
        .name = "read-zeroes",
        .type = BLOCK_OPTION_BOOL,
        .offset = offsetof(struct null_options, read_zeroes),
        .default_text = "off",
        .can_change = true,
        .help = "Report the disk as reading as zeroes in block status.",
    },
    {.name = NULL},
};

struct null_state {
    int64_t length;
    struct timespec latency;
    bool reads_zeroes;
};

static void take_options(struct null_state *state, const struct null_options *options)
{
    state->latency = (struct timespec){
        .tv_sec = (time_t)(options->latency_ns / (uint64_t)NS_PER_SECOND),
        .tv_nsec = (long)(options->latency_ns % (uint64_t)NS_PER_SECOND),
    };
    state->reads_zeroes = options->read_zeroes;
}

static int null_open(struct block_node *node, void *values, GError **error)
{
    struct null_state *state = block_node_state(node);
    const struct null_options *options = values;

    if (options->size > INT64_MAX) {
        return block_error(error, EFBIG, "A null disk of %" PRIu64 " bytes is too large",
                           options->size);
    }
    state->length = (int64_t)options->size;
    take_options(state, options);
    return 0;
}

/* Only the length has to stay. */
static int null_reopen_prepare(struct block_node *node, void *values,
                               const struct block_node_options *options, void **prepared,
                               GError **error)
{
    const struct null_state *state = block_node_state(node);
    const struct null_options *wanted = values;

    if (wanted && wanted->size != (uint64_t)state->length) {
        return block_error(error, EINVAL, "Cannot change the option 'size'");
    }
    *prepared = wanted ? g_memdup2(wanted, sizeof(*wanted)) : NULL;
    return 0;
}

static void null_reopen_commit(struct block_node *node, void *prepared)
{
    g_autofree struct null_options *wanted = prepared;

    if (wanted) {
        take_options(block_node_state(node), wanted);
    }
}

static void null_reopen_abort(struct block_node *node, void *prepared)
{
    g_free(prepared);
}

static void take_time(struct block_node *node)
{
    const struct null_state *state = block_node_state(node);
    struct timespec left = state->latency;

    if (left.tv_sec || left.tv_nsec) {
        while (clock_nanosleep(CLOCK_MONOTONIC, 0, &left, &left) == EINTR) {
        }
    }
}

static int64_t null_get_length(struct block_node *node)
{
    const struct null_state *state = block_node_state(node);

    return state->length;
}

static int64_t null_get_allocated_size(struct block_node *node)
{
    return 0;
}

static int null_pread(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes,
                      unsigned flags)
{
    memset(buffer, 0, bytes);
    take_time(node);
    return 0;
}

static int null_pwrite(struct block_node *node, const void *buffer, uint64_t offset, uint64_t bytes,
                       unsigned flags)
{
    take_time(node);
    return 0;
}

static int null_write_zeroes(struct block_node *node, uint64_t offset, uint64_t bytes,
                             unsigned flags)
{
    take_time(node);
    return 0;
}

static int null_discard(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    take_time(node);
    return 0;
}

static int null_flush(struct block_node *node)
{
    take_time(node);
    return 0;
}

static int null_block_status(struct block_node *node, uint64_t offset, uint64_t bytes,
                             struct block_extent *extent)
{
    const struct null_state *state = block_node_state(node);

    *extent = (struct block_extent){
        .bytes = bytes,
        .flags =
            BLOCK_STATUS_OFFSET_VALID |
            (state->reads_zeroes ? BLOCK_STATUS_ZERO : BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED),
        .host_offset = offset,
        .host_node = node,
    };
    return 0;
}

#define NULL_OPERATIONS                                                                            \
    .description = "Nothing: forgets all writes, reads as zeroes", .is_protocol = true,            \
    .instance_size = sizeof(struct null_state), .options = null_option_table,                      \
    .options_size = sizeof(struct null_options), .open = null_open,                                \
    .reopen_prepare = null_reopen_prepare, .reopen_commit = null_reopen_commit,                    \
    .reopen_abort = null_reopen_abort, .get_length = null_get_length,                              \
    .get_allocated_size = null_get_allocated_size, .pread = null_pread, .pwrite = null_pwrite,     \
    .handles_fua = true, .write_zeroes = null_write_zeroes, .discard = null_discard,               \
    .flush = null_flush, .block_status = null_block_status

const struct block_driver null_co_driver = {.name = "null-co", NULL_OPERATIONS};
const struct block_driver null_aio_driver = {.name = "null-aio", NULL_OPERATIONS};
