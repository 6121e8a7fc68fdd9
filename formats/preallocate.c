/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The disk ends where its user says, and the file behind that: between the two are zeroes that
 * nobody has written to. Who is killed leaves them there, and the disk is so much longer from then
 * on.
 */
#include "formats/preallocate.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>

#include "block/align.h"
#include "block/checked.h"
#include "block/error.h"
#include "block/node.h"

#define UNIT 512

struct preallocate_options {
    uint64_t align;
    uint64_t size;
};

struct preallocate_state {
    struct preallocate_options options; /* changed while the node is drained */
    _Atomic uint64_t end;               /* of the disk; at most the file's length */
};

static const struct block_option preallocate_option_table[] = {
    {"file", BLOCK_OPTION_NODE, .required = true, .help = "What grows: a file."},
    {"prealloc-align", BLOCK_OPTION_SIZE, offsetof(struct preallocate_options, align),
     .default_text = "1M", .can_change = true,
     .help = "The file ends at a multiple of this, itself a multiple of 512 bytes."},
    {"prealloc-size", BLOCK_OPTION_SIZE, offsetof(struct preallocate_options, size),
     .default_text = "128M", .can_change = true,
     .help = "So much is allocated behind the end of what is asked for."},
    {NULL},
};

static int check_options(const struct preallocate_options *options, GError **error)
{
    if (options->align == 0 || options->align % UNIT) {
        return block_error(error, EINVAL, "prealloc-align must be a multiple of %d bytes", UNIT);
    }
    return 0;
}

/* ---- Length --------------------------------------------------------------------------------- */

static int64_t preallocate_get_length(struct block_node *node)
{
    const struct preallocate_state *state = block_node_state(node);

    return (int64_t)atomic_load(&state->end);
}

/* How long the file is to become for a disk of this length; false: longer than a file can be. */
static bool ahead_of(const struct preallocate_options *options, uint64_t length, uint64_t *ahead)
{
    return checked_add_u64(length, options->size, ahead) && *ahead <= INT64_MAX &&
           checked_mul_u64(div_round_up(*ahead, options->align), options->align, ahead) &&
           *ahead <= INT64_MAX;
}

/* The operation lock is held. */
static int preallocate_grow(struct block_node *node, uint64_t length)
{
    struct preallocate_state *state = block_node_state(node);
    uint64_t ahead;
    int status = 0;

    if (length > block_node_length(node->file)) {
        status = ahead_of(&state->options, length, &ahead)
                     ? block_node_grow_allocated(node->file, ahead)
                     : -EFBIG;
        if (status < 0) { /* no room for more than is asked for, or no way to allocate it */
            status = block_node_grow(node->file, length);
        }
    }
    if (status == 0) {
        atomic_store(&state->end, length);
    }
    return status;
}

/* What is behind the end, and has no data, goes. */
static int give_back(struct block_node *node, GError **error)
{
    const struct preallocate_state *state = block_node_state(node);
    uint64_t end = atomic_load(&state->end);

    return block_node_length(node->file) > end
               ? block_node_set_length(node->file, end, BLOCK_PREALLOCATION_OFF, error)
               : 0;
}

/* What lies between the end and that of the file is allocated, and zeroes. */
static bool is_there_already(struct block_node *node, uint64_t length,
                             enum block_preallocation preallocation)
{
    const struct preallocate_state *state = block_node_state(node);

    return length >= atomic_load(&state->end) && length <= block_node_length(node->file) &&
           preallocation != BLOCK_PREALLOCATION_METADATA &&
           preallocation != BLOCK_PREALLOCATION_FULL;
}

static int preallocate_set_length(struct block_node *node, uint64_t length,
                                  enum block_preallocation preallocation, block_progress *progress,
                                  void *progress_data, GError **error)
{
    struct preallocate_state *state = block_node_state(node);

    if (!is_there_already(node, length, preallocation)) {
        int status = give_back(node, error);

        if (status == 0) {
            status = block_node_resize(node->file, length, preallocation, progress, progress_data,
                                       error);
        }
        if (status < 0) {
            return status;
        }
    }
    atomic_store(&state->end, length);
    return 0;
}

/* ---- Life ----------------------------------------------------------------------------------- */

static int preallocate_open(struct block_node *node, void *values, GError **error)
{
    struct preallocate_state *state = block_node_state(node);
    int status = check_options(values, error);

    if (status == 0) {
        state->options = *(struct preallocate_options *)values;
        atomic_store(&state->end, block_node_length(node->file));
        node->limits = node->file->limits;
    }
    return status;
}

static void try_to_give_back(struct block_node *node)
{
    g_autoptr(GError) error = NULL;

    if (give_back(node, &error) < 0) {
        g_warning("Node '%s': what was preallocated could not be given back, so that the file is "
                  "longer than its data: %s",
                  node->name ? node->name : "", error->message);
    }
}

static void preallocate_close(struct block_node *node)
{
    if (!node->options.read_only) {
        try_to_give_back(node);
    }
}

static int preallocate_reopen_prepare(struct block_node *node, void *values,
                                      const struct block_node_options *options, void **prepared,
                                      GError **error)
{
    int status = values ? check_options(values, error) : 0;

    if (status < 0) {
        return status;
    }
    if (options->read_only && !node->options.read_only) {
        try_to_give_back(node);
    }
    *prepared = values ? g_memdup2(values, sizeof(struct preallocate_options)) : NULL;
    return 0;
}

static void preallocate_reopen_commit(struct block_node *node, void *prepared)
{
    struct preallocate_state *state = block_node_state(node);

    if (prepared) {
        state->options = *(struct preallocate_options *)prepared;
    }
    g_free(prepared);
    node->limits.request_alignment = node->file->limits.request_alignment;
    node->limits.memory_alignment = node->file->limits.memory_alignment;
}

static void preallocate_reopen_abort(struct block_node *node, void *prepared)
{
    g_free(prepared);
}

const struct block_driver preallocate_driver = {
    .name = "preallocate",
    .description = "Allocates more of a file than is asked for, ahead of writes",
    .is_part_of_file = true,
    .grows_file = true,
    .instance_size = sizeof(struct preallocate_state),
    .options = preallocate_option_table,
    .options_size = sizeof(struct preallocate_options),
    .open = preallocate_open,
    .close = preallocate_close,
    .reopen_prepare = preallocate_reopen_prepare,
    .reopen_commit = preallocate_reopen_commit,
    .reopen_abort = preallocate_reopen_abort,
    .get_length = preallocate_get_length,
    .set_length = preallocate_set_length,
    .grow = preallocate_grow,
    .handles_fua = true,
};
