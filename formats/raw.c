/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A disk stored byte for byte in its `file` child: all of it, or the window of it that `offset`
 * and `size` name. Everything is passed on, shifted by the offset; there is nothing to emulate
 * and no state that a request changes.
 */
#include "formats/raw.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>

#include "block/align.h"
#include "block/checked.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "block/node.h"
#include "block/request.h"
#include "formats/foreign.h"

/* What `size` is when nobody gave one; no size that is given can be this, see parse_window. */
#define SIZE_NOT_GIVEN      UINT64_MAX
#define SIZE_NOT_GIVEN_TEXT "18446744073709551615"
#define SIZE_UNIT           512

struct raw_options {
    uint64_t offset;
    uint64_t size;
};

static const struct block_option raw_option_table[] = {
    {
        .name = "file",
        .type = BLOCK_OPTION_NODE,
        .required = true,
        .help = "Where the data is.",
    },
    {
        .name = "offset",
        .type = BLOCK_OPTION_SIZE,
        .offset = offsetof(struct raw_options, offset),
        .default_text = "0",
        .help = "Where in the file the disk starts, in bytes.",
    },
    {
        .name = "size",
        .type = BLOCK_OPTION_SIZE,
        .offset = offsetof(struct raw_options, size),
        .default_text = SIZE_NOT_GIVEN_TEXT,
        .help = "Length of the disk, a multiple of 512 bytes; to the end of the file if not given.",
    },
    {.name = NULL},
};

/* What formats are known by is in here. */
#define HEAD_BYTES UINT64_C(2048)

struct raw_state {
    uint64_t offset;
    uint64_t size; /* SIZE_NOT_GIVEN: as far as the file goes */
    bool guards_format;
    pthread_mutex_t head_lock; /* writes to the head are looked at one by one; held across I/O */
};

static int raw_probe(const uint8_t *head, size_t bytes, const char *filename)
{
    return 1; /* anything can be a raw disk; whoever knows more goes first */
}

/* Check the window against the file; the caller stores it. */
static int parse_window(struct block_node *node, const struct raw_options *options,
                        struct raw_state *window, GError **error)
{
    uint64_t length = block_node_length(node->file);
    bool has_size = options->size != SIZE_NOT_GIVEN;

    if (options->offset > length) {
        return block_error(error, EINVAL,
                           "Offset (%" PRIu64 ") cannot be greater than size of the containing "
                           "file (%" PRIu64 ")",
                           options->offset, length);
    }
    if (has_size && !is_aligned(options->size, SIZE_UNIT)) {
        return block_error(error, EINVAL, "Specified size is not multiple of %d", SIZE_UNIT);
    }
    if (has_size && !range_within(options->offset, options->size, length)) {
        return block_error(error, EINVAL,
                           "The sum of offset (%" PRIu64 ") and size (%" PRIu64
                           ") has to be smaller or equal to the  actual size of the containing "
                           "file (%" PRIu64 ")",
                           options->offset, options->size, length);
    }
    *window = (struct raw_state){.offset = options->offset, .size = options->size};
    return 0;
}

static bool raw_is_said_by_name(const struct block_node *node)
{
    const struct raw_state *state = block_node_state(node);

    return state->offset == 0 && state->size == SIZE_NOT_GIVEN;
}

static int64_t raw_get_length(struct block_node *node)
{
    const struct raw_state *state = block_node_state(node);
    uint64_t length = block_node_length(node->file);

    if (state->size != SIZE_NOT_GIVEN) {
        return (int64_t)state->size;
    }
    return length > state->offset ? (int64_t)(length - state->offset) : 0;
}

/*
 * Requests as the file wants them, where the window lies so that they stay aligned when shifted.
 * Where it does not, any are taken, and the core aligns them below.
 */
static void set_alignments(struct block_node *node)
{
    const struct raw_state *state = block_node_state(node);
    uint64_t window = state->offset | (uint64_t)raw_get_length(node);
    uint32_t alignment = node->file->limits.request_alignment;

    node->limits.request_alignment = is_aligned(window, alignment) ? alignment : 1;
    node->limits.memory_alignment = node->file->limits.memory_alignment;
}

static int raw_open(struct block_node *node, void *values, GError **error)
{
    struct raw_state *state = block_node_state(node);
    int ret = parse_window(node, values, state, error);

    if (ret == 0) {
        node->limits = node->file->limits;
        set_alignments(node);
        pthread_mutex_init(&state->head_lock, NULL);
    }
    return ret;
}

static void raw_close(struct block_node *node)
{
    struct raw_state *state = block_node_state(node);

    pthread_mutex_destroy(&state->head_lock);
}

void raw_guard_format(struct block_node *node)
{
    struct raw_state *state = block_node_state(node);

    state->guards_format = true;
}

bool raw_format_is_guarded(const struct block_node *node)
{
    const struct raw_state *state = node->driver == &raw_driver ? block_node_state(node) : NULL;

    return state && state->guards_format;
}

/* The window stays where it is: a disk that jumped to other data would not be the same disk. */
static int raw_reopen_prepare(struct block_node *node, void *values,
                              const struct block_node_options *options, void **prepared,
                              GError **error)
{
    const struct raw_state *state = block_node_state(node);
    const struct raw_options *wanted = values;

    if (wanted && wanted->offset != state->offset) {
        return block_error(error, EINVAL, "Cannot change the option 'offset'");
    }
    if (wanted && wanted->size != state->size) {
        return block_error(error, EINVAL, "Cannot change the option 'size'");
    }
    *prepared = NULL;
    return 0;
}

static void raw_reopen_commit(struct block_node *node, void *prepared)
{
    set_alignments(node); /* the file may have been reopened with another cache mode */
}

static int raw_set_length(struct block_node *node, uint64_t length,
                          enum block_preallocation preallocation, block_progress *progress,
                          void *progress_data, GError **error)
{
    const struct raw_state *state = block_node_state(node);
    uint64_t file_length;

    if (state->size != SIZE_NOT_GIVEN) {
        return block_error(error, ENOTSUP, "Cannot resize a raw disk that has a fixed size");
    }
    if (!checked_add_u64(length, state->offset, &file_length) || file_length > INT64_MAX) {
        return block_error(error, EFBIG,
                           "A raw disk of %" PRIu64 " bytes at offset %" PRIu64
                           " is more than a file can have",
                           length, state->offset);
    }
    return block_node_resize(node->file, file_length, preallocation, progress, progress_data,
                             error);
}

static int raw_grow(struct block_node *node, uint64_t length)
{
    const struct raw_state *state = block_node_state(node);
    uint64_t file_length;

    if (state->size != SIZE_NOT_GIVEN) {
        return -ENOSPC;
    }
    return checked_add_u64(length, state->offset, &file_length)
               ? block_node_grow(node->file, file_length)
               : -EFBIG;
}

static bool raw_is_zero_at_creation(struct block_node *node)
{
    return block_node_is_zero_at_creation(node->file);
}

static int raw_get_info(struct block_node *node, struct block_info *info)
{
    int status = block_node_get_info(node->file, info);

    /* What is special about the file is not about this format. */
    json_decref(STEAL(info->format_specific));
    return status;
}

static inline uint64_t shifted(const struct block_node *node, uint64_t offset)
{
    const struct raw_state *state = block_node_state(node);

    return offset + state->offset;
}

static int raw_pread(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes,
                     unsigned flags)
{
    return block_node_pread(node->file, buffer, shifted(node, offset), bytes, flags);
}

/*
 * Whether the head will still be taken for raw after a write, by us or by those who know more
 * formats; head_lock held.
 */
static int check_head(struct block_node *node, const void *buffer, uint64_t offset, uint64_t bytes)
{
    uint64_t head_bytes = MIN_OF(HEAD_BYTES, block_node_length(node->file));
    uint8_t head[HEAD_BYTES];
    int status = block_node_pread(node->file, head, 0, head_bytes, 0);

    if (status < 0) {
        return status;
    }
    bool was_foreign = foreign_format(head, head_bytes);
    memcpy(head + offset, buffer, MIN_OF(bytes, head_bytes - offset));
    bool is_foreign = foreign_format(head, head_bytes);
    return block_driver_probe(head, head_bytes, NULL) == &raw_driver && (!is_foreign || was_foreign)
               ? 0
               : -EPERM;
}

static int write_head(struct block_node *node, const void *buffer, uint64_t offset, uint64_t bytes,
                      unsigned flags)
{
    struct raw_state *state = block_node_state(node);
    SCOPE_LOCK(&state->head_lock);
    int status = check_head(node, buffer, offset, bytes);

    return status == 0 ? block_node_pwrite(node->file, buffer, offset, bytes, flags) : status;
}

static bool is_guarded(struct block_node *node, uint64_t offset)
{
    const struct raw_state *state = block_node_state(node);

    return state->guards_format && offset < HEAD_BYTES;
}

static int raw_pwrite(struct block_node *node, const void *buffer, uint64_t offset, uint64_t bytes,
                      unsigned flags)
{
    offset = shifted(node, offset);
    return is_guarded(node, offset) ? write_head(node, buffer, offset, bytes, flags)
                                    : block_node_pwrite(node->file, buffer, offset, bytes, flags);
}

static int raw_write_zeroes(struct block_node *node, uint64_t offset, uint64_t bytes,
                            unsigned flags)
{
    return block_node_write_zeroes(node->file, shifted(node, offset), bytes, flags);
}

static int raw_discard(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    return block_node_discard(node->file, shifted(node, offset), bytes);
}

static int raw_block_status(struct block_node *node, uint64_t offset, uint64_t bytes,
                            struct block_extent *extent)
{
    return block_node_block_status(node->file, shifted(node, offset), bytes, extent);
}

static bool raw_unmaps_zeroes(struct block_node *node)
{
    return block_node_unmaps_zeroes(node->file);
}

static int raw_host_range(struct block_node *node, uint64_t offset, uint64_t *bytes, int *fd,
                          uint64_t *fd_offset)
{
    return block_node_host_range(node->file, shifted(node, offset), bytes, fd, fd_offset);
}

static int raw_pwrite_from_fd(struct block_node *node, int fd, uint64_t fd_offset, uint64_t offset,
                              uint64_t bytes)
{
    if (is_guarded(node, shifted(node, offset))) {
        return -ENOTSUP; /* so that it comes as a write */
    }
    return block_node_pwrite_from_fd(node->file, fd, fd_offset, shifted(node, offset), bytes);
}

static int raw_prefetch(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    return block_node_prefetch(node->file, shifted(node, offset), bytes);
}

static bool raw_has_lost_writes(struct block_node *node)
{
    return block_node_has_lost_writes(node->file);
}

/* Nothing of it is in memory. */
static int raw_accept_lost_writes(struct block_node *node)
{
    return block_node_accept_lost_writes(node->file);
}

const struct block_driver raw_driver = {
    .name = "raw",
    .description = "A disk stored byte for byte",
    .instance_size = sizeof(struct raw_state),
    .options = raw_option_table,
    .options_size = sizeof(struct raw_options),
    .probe = raw_probe,
    .open = raw_open,
    .close = raw_close,
    .reopen_prepare = raw_reopen_prepare,
    .reopen_commit = raw_reopen_commit,
    .is_said_by_name = raw_is_said_by_name,
    .get_length = raw_get_length,
    .set_length = raw_set_length,
    .grow = raw_grow,
    .is_zero_at_creation = raw_is_zero_at_creation,
    .get_info = raw_get_info,
    .pread = raw_pread,
    .pwrite = raw_pwrite,
    .handles_fua = true,
    .write_zeroes = raw_write_zeroes,
    .unmaps_zeroes = raw_unmaps_zeroes,
    .discard = raw_discard,
    .block_status = raw_block_status,
    .host_range = raw_host_range,
    .pwrite_from_fd = raw_pwrite_from_fd,
    .prefetch = raw_prefetch,
    .has_lost_writes = raw_has_lost_writes,
    .accept_lost_writes = raw_accept_lost_writes,
};
