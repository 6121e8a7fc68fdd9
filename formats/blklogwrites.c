/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A change is logged before it is made, so that the log knows of all that a crash can find on the
 * disk, and a flush after it is done, so that all that stands before it in the log had been
 * answered or was in flight. Changes that overlap are made one after the other, in the log's order.
 */
#include "formats/blklogwrites.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "block/node.h"
#include "block/request.h"
#include "formats/log-writes.h"

/* What a failed change has left is read in pieces of this size. */
#define READ_AT_ONCE MIB

struct blklogwrites_state {
    struct log_writes log;
    struct tracked_requests changes;
    bool appends;  /* to the log that is there */
    bool is_begun; /* the log is, by us */
};

struct blklogwrites_options {
    uint64_t sector_size;
    bool append;
    uint64_t interval;
};

static const struct block_option blklogwrites_option_table[] = {
    {"file", BLOCK_OPTION_NODE, .required = true,
     .help = "The disk. Who writes there and not through this filter is kept out while somebody "
             "uses it for writing."},
    {"log", BLOCK_OPTION_NODE, .required = true,
     .help = "Where the log is kept, in the format of the Linux kernel's dm-log-writes."},
    {"log-sector-size", BLOCK_OPTION_SIZE, offsetof(struct blklogwrites_options, sector_size),
     .default_text = "512",
     .help = "The unit of the log, a power of two from 512 bytes to 8 MiB. What is written to a "
             "part of one is logged with what is around it."},
    {"log-append", BLOCK_OPTION_BOOL, offsetof(struct blklogwrites_options, append),
     .default_text = "off",
     .help = "Go on with the log that is there instead of beginning a new one."},
    {"log-super-update-interval", BLOCK_OPTION_UINT,
     offsetof(struct blklogwrites_options, interval), .default_text = "4096",
     .help = "Entries are counted in the log's superblock at each flush, and after so many. What "
             "is not counted is lost for who replays the log."},
    {NULL},
};

/* ---- Changes -------------------------------------------------------------------------------- */

struct change {
    unsigned log_flags;
    const void *buffer; /* NULL: zeroes, or a discard */
    uint64_t offset;
    uint64_t bytes;
    unsigned flags;
};

static int make_change(struct block_node *node, const struct change *change)
{
    if (change->buffer) {
        return block_node_pwrite(node->file, change->buffer, change->offset, change->bytes,
                                 change->flags);
    }
    return change->log_flags & LOG_WRITES_DISCARD
               ? block_node_discard(node->file, change->offset, change->bytes)
               : block_node_write_zeroes(node->file, change->offset, change->bytes, change->flags);
}

/* What the disk holds in whole sectors of the log; behind its end there are zeroes. */
static int read_sectors(struct block_node *node, uint8_t *buffer, uint64_t offset, uint64_t bytes)
{
    uint64_t there = MIN_OF(bytes, block_node_length(node->file) - offset);

    memset(buffer + there, 0, bytes - there);
    return block_node_pread(node->file, buffer, offset, there, 0);
}

/* Whole sectors, or a part of one, of which all is logged. */
static int log_change(struct block_node *node, const struct change *change)
{
    struct blklogwrites_state *state = block_node_state(node);
    uint64_t sector = state->log.sector_size, start = align_down(change->offset, sector);

    if (is_aligned(change->offset | change->bytes, sector)) {
        return log_writes_add(&state->log, change->log_flags, change->offset, change->bytes,
                              change->buffer);
    }
    AUTO_FREE uint8_t *buffer = block_node_alloc_buffer(node->file, sector);
    int status = buffer ? read_sectors(node, buffer, start, sector) : -ENOMEM;
    if (status < 0) {
        return status;
    }
    if (change->buffer) {
        memcpy(buffer + (change->offset - start), change->buffer, change->bytes);
    } else {
        memset(buffer + (change->offset - start), 0, change->bytes);
    }
    return log_writes_add(&state->log, change->log_flags, start, sector, buffer);
}

/* A change that is in the log has failed: log what the disk holds instead, as far as it says. */
static void log_what_is_there(struct block_node *node, const struct change *change)
{
    struct blklogwrites_state *state = block_node_state(node);
    uint64_t sector = state->log.sector_size, most = MAX_OF(READ_AT_ONCE, sector);
    uint64_t start = align_down(change->offset, sector);
    uint64_t end = align_up(change->offset + change->bytes, sector);
    AUTO_FREE uint8_t *buffer = block_node_alloc_buffer(node->file, MIN_OF(most, end - start));

    for (uint64_t piece; buffer && start < end; start += piece) {
        piece = MIN_OF(end - start, most);
        if (read_sectors(node, buffer, start, piece) == 0) {
            log_writes_add(&state->log, 0, start, piece, buffer);
        }
    }
}

static int log_and_make(struct block_node *node, const struct change *change)
{
    struct blklogwrites_state *state = block_node_state(node);
    uint64_t start = align_down(change->offset, state->log.sector_size);
    uint64_t end = align_up(change->offset + change->bytes, state->log.sector_size);
    struct tracked_request tracked;

    tracked_request_begin(&state->changes, &tracked, start, end - start, true);
    int status = log_change(node, change);
    if (status == 0) {
        status = make_change(node, change);
        if (status < 0) {
            log_what_is_there(node, change);
        }
    }
    tracked_request_end(&state->changes, &tracked);
    return status;
}

/* Whole sectors as they are, and parts of sectors, one each. */
static int make_all(struct block_node *node, struct change all)
{
    struct blklogwrites_state *state = block_node_state(node);
    uint64_t sector = state->log.sector_size, end = all.offset + all.bytes;
    int status = 0;

    while (status == 0 && all.offset < end) {
        uint64_t whole = align_down(end, sector);

        all.bytes = is_aligned(all.offset, sector) && all.offset < whole
                        ? whole - all.offset
                        : MIN_OF(end, align_down(all.offset, sector) + sector) - all.offset;
        status = log_and_make(node, &all);
        all.buffer = all.buffer ? (const char *)all.buffer + all.bytes : NULL;
        all.offset += all.bytes;
    }
    if (status == 0 && all.flags & BLOCK_REQUEST_FUA) {
        status = log_writes_sync(&state->log);
    }
    return status;
}

static unsigned log_flags(unsigned flags)
{
    return flags & BLOCK_REQUEST_FUA ? LOG_WRITES_FUA : 0;
}

static int blklogwrites_pwrite(struct block_node *node, const void *buffer, uint64_t offset,
                               uint64_t bytes, unsigned flags)
{
    return make_all(node, (struct change){log_flags(flags), buffer, offset, bytes, flags});
}

/* The log has them as data, so they are not what a caller would call fast. */
static int blklogwrites_write_zeroes(struct block_node *node, uint64_t offset, uint64_t bytes,
                                     unsigned flags)
{
    if (flags & BLOCK_REQUEST_NO_FALLBACK) {
        return -ENOTSUP;
    }
    return make_all(node, (struct change){log_flags(flags), NULL, offset, bytes, flags});
}

/* Parts of sectors stay: the log could not say that they are gone. */
static int blklogwrites_discard(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    const struct blklogwrites_state *state = block_node_state(node);
    uint64_t start = align_up(offset, state->log.sector_size);
    uint64_t end = align_down(offset + bytes, state->log.sector_size);
    struct change change = {LOG_WRITES_DISCARD, NULL, start, end - start, 0};

    return start < end ? log_and_make(node, &change) : 0;
}

/* What the kernel copies does not come past us: it comes as a write instead. */
static int blklogwrites_pwrite_from_fd(struct block_node *node, int fd, uint64_t fd_offset,
                                       uint64_t offset, uint64_t bytes)
{
    return -ENOTSUP;
}

static int blklogwrites_flush(struct block_node *node)
{
    struct blklogwrites_state *state = block_node_state(node);
    int status = block_node_flush(node->file);

    if (status == 0) {
        status = log_writes_add(&state->log, LOG_WRITES_FLUSH, 0, 0, NULL);
    }
    return status == 0 ? log_writes_sync(&state->log) : status;
}

/* ---- Life ----------------------------------------------------------------------------------- */

static int check_options(struct block_node *node, const struct blklogwrites_options *options,
                         GError **error)
{
    struct block_node *log = block_node_child(node, "log");

    if (!is_power_of_2(options->sector_size) || options->sector_size < LOG_WRITES_SECTOR_MIN ||
        options->sector_size > LOG_WRITES_SECTOR_MAX) {
        return block_error(error, EINVAL,
                           "log-sector-size must be a power of 2 from %" PRIu32 " to %" PRIu32
                           " bytes",
                           LOG_WRITES_SECTOR_MIN, LOG_WRITES_SECTOR_MAX);
    }
    if (options->interval == 0) {
        return block_error(error, EINVAL, "log-super-update-interval must be at least 1");
    }
    if (block_node_below_filters(log) == block_node_below_filters(node->file)) {
        return block_error(error, EINVAL, "'file' and 'log' cannot be the same");
    }
    return 0;
}

/* Who only reads needs no log. */
static int begin_log(struct block_node *node, GError **error)
{
    struct blklogwrites_state *state = block_node_state(node);

    if (node->options.read_only || state->is_begun) {
        return 0;
    }
    int status = state->appends ? log_writes_resume(&state->log, error)
                                : log_writes_begin(&state->log, error);
    state->is_begun = status == 0;
    return status;
}

static void release(struct blklogwrites_state *state)
{
    tracked_requests_destroy(&state->changes);
    log_writes_destroy(&state->log);
}

static int blklogwrites_open(struct block_node *node, void *values, GError **error)
{
    struct blklogwrites_state *state = block_node_state(node);
    const struct blklogwrites_options *options = values;
    int status = check_options(node, options, error);

    if (status < 0) {
        return status;
    }
    log_writes_init(&state->log, block_node_child(node, "log"), (uint32_t)options->sector_size,
                    options->interval);
    tracked_requests_init(&state->changes);
    state->appends = options->append;
    node->limits = node->file->limits;
    status = begin_log(node, error);
    if (status < 0) {
        release(state);
    }
    return status;
}

static void blklogwrites_close(struct block_node *node)
{
    struct blklogwrites_state *state = block_node_state(node);
    int status = state->is_begun && !node->options.read_only ? log_writes_sync(&state->log) : 0;

    if (status < 0) {
        g_warning("Node '%s': the log of writes could not be brought to its end: %s",
                  node->name ? node->name : "", block_strerror(-status));
    }
    release(state);
}

static int blklogwrites_reopen_prepare(struct block_node *node, void *values,
                                       const struct block_node_options *options, void **prepared,
                                       GError **error)
{
    struct blklogwrites_state *state = block_node_state(node);
    int status = options->read_only && !node->options.read_only ? log_writes_sync(&state->log) : 0;

    return status < 0 ? block_error_errno(error, -status,
                                          "The log of writes of node '%s' could not be brought to "
                                          "its end",
                                          node->name)
                      : 0;
}

const struct block_driver blklogwrites_driver = {
    .name = "blklogwrites",
    .description = "Logs all writes, in the format of the kernel's dm-log-writes",
    .is_filter = true,
    .writes_alone = true,
    .grows_target = true,
    .instance_size = sizeof(struct blklogwrites_state),
    .options = blklogwrites_option_table,
    .options_size = sizeof(struct blklogwrites_options),
    .open = blklogwrites_open,
    .close = blklogwrites_close,
    .reopen_prepare = blklogwrites_reopen_prepare,
    .reopen_begin_writing = begin_log,
    .pwrite = blklogwrites_pwrite,
    .handles_fua = true,
    .write_zeroes = blklogwrites_write_zeroes,
    .discard = blklogwrites_discard,
    .pwrite_from_fd = blklogwrites_pwrite_from_fd,
    .flush = blklogwrites_flush,
};
