/* SPDX-License-Identifier: BSD-3-Clause */
/* The drivers `file` and `host_device`: their I/O, and the table of all they do. */
#include "formats/file.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "block/align.h"
#include "block/node.h"
#include "formats/file-internal.h"

static int64_t file_get_length(struct block_node *node)
{
    struct file_state *state = block_node_state(node);
    int64_t length = file_length_of(state->fd, state->is_block_device);

    if (length < 0 || !state->is_direct ||
        is_aligned((uint64_t)length, node->limits.request_alignment)) {
        return length;
    }
    /* QEMU's tools leave images that do not end with a sector; all is lost if these do not open. */
    atomic_store(&state->odd_end, (uint64_t)length);
    return (int64_t)align_up((uint64_t)length, node->limits.request_alignment);
}

static int64_t file_get_allocated_size(struct block_node *node)
{
    struct file_state *state = block_node_state(node);
    struct stat st;

    if (state->is_block_device) {
        return -ENOTSUP;
    }
    return fstat(state->fd, &st) < 0 ? -errno : (int64_t)st.st_blocks * 512;
}

static bool file_is_zero_at_creation(struct block_node *node)
{
    const struct file_state *state = block_node_state(node);

    return !state->is_block_device;
}

static bool file_unmaps_zeroes(struct block_node *node)
{
    const struct file_state *state = block_node_state(node);

    return state->unmaps_zeroes;
}

static char *file_get_filename(struct block_node *node)
{
    const struct file_state *state = block_node_state(node);

    return g_strdup(state->filename);
}

static int file_get_info(struct block_node *node, struct block_info *info)
{
    const struct file_state *state = block_node_state(node);
    struct fsxattr attributes;

    if (!state->is_block_device && ioctl(state->fd, FS_IOC_FSGETXATTR, &attributes) == 0 &&
        (attributes.fsx_xflags & FS_XFLAG_EXTSIZE)) {
        info->format_specific =
            json_pack("{s:I}", "extent-size-hint", (json_int_t)attributes.fsx_extsize);
    }
    return 0;
}

/* Whether a file may end here. */
static bool is_end(struct block_node *node, uint64_t offset)
{
    const struct file_state *state = block_node_state(node);
    uint64_t odd_end = atomic_load(&state->odd_end);

    return offset >= block_node_length(node) || (odd_end && offset >= odd_end);
}

/*
 * The file ended before the request did. That is right only behind the last byte of a length
 * that is no multiple of the alignment; elsewhere somebody has cut the file off, and inventing
 * zeroes would hide it.
 */
static int read_past_end(struct block_node *node, char *buffer, uint64_t offset, size_t bytes)
{
    if (!is_end(node, offset)) {
        return -EIO;
    }
    memset(buffer, 0, bytes);
    return 0;
}

static int file_pread(struct block_node *node, void *buffer, uint64_t offset, uint64_t bytes,
                      unsigned flags)
{
    const struct file_state *state = block_node_state(node);
    char *to = buffer;

    while (bytes) {
        ssize_t got = pread(state->fd, to, bytes, (off_t)offset);
        uint64_t step;

        if (got < 0) {
            if (errno == EINTR) {
                continue;
            }
            return -errno;
        }
        if (got == 0 || ((uint64_t)got < bytes && is_end(node, offset + (uint64_t)got))) {
            return read_past_end(node, to + got, offset + (uint64_t)got, bytes - (size_t)got);
        }
        /* Direct I/O can only go on where it is aligned; what is read twice does no harm. */
        step = align_down((uint64_t)got, node->limits.request_alignment);
        if (step == 0) {
            return -EIO;
        }
        to += step;
        offset += step;
        bytes -= step;
    }
    return 0;
}

static int write_fully(struct block_node *node, const void *buffer, uint64_t offset, uint64_t bytes,
                       int how)
{
    const struct file_state *state = block_node_state(node);
    const char *from = buffer;

    while (bytes) {
        struct iovec vector = {.iov_base = (void *)from, .iov_len = bytes};
        ssize_t put = how ? pwritev2(state->fd, &vector, 1, (off_t)offset, how)
                          : pwrite(state->fd, from, bytes, (off_t)offset);
        uint64_t step;

        if (put < 0) {
            if (errno == EINTR) {
                continue;
            }
            return -errno;
        }
        step = align_down((uint64_t)put, node->limits.request_alignment);
        if (step == 0) {
            return -EIO;
        }
        from += step;
        offset += step;
        bytes -= step;
    }
    return 0;
}

/*
 * One durable write of direct I/O. If it fails, the plain write tells which half did: if that
 * works, the data was written and could not be made durable, as in a failed flush.
 */
static int write_durably(struct block_node *node, const void *buffer, uint64_t offset,
                         uint64_t bytes)
{
    struct file_state *state = block_node_state(node);
    int durable = write_fully(node, buffer, offset, bytes, RWF_DSYNC);
    int plain;

    if (durable == 0) {
        return 0;
    }
    plain = write_fully(node, buffer, offset, bytes, 0);
    if (plain < 0) {
        return plain;
    }
    if (durable == -EOPNOTSUPP || durable == -ENOSYS || durable == -EINVAL) {
        atomic_store(&state->cannot_write_durably, true);
        return file_sync_run(&state->sync, state->fd);
    }
    return file_sync_fail(&state->sync, durable);
}

/* A write that went further has made the file longer. */
static void note_end(struct block_node *node, int status, uint64_t end)
{
    struct file_state *state = block_node_state(node);
    uint64_t odd_end = atomic_load(&state->odd_end);

    if (G_UNLIKELY(odd_end) && status == 0 && end > odd_end) {
        atomic_store(&state->odd_end, end < block_node_length(node) ? end : 0);
    }
}

/*
 * FUA through the page cache is a write and a shared fdatasync: with RWF_DSYNC many would sync
 * at once, see struct file_sync.
 */
static int file_pwrite(struct block_node *node, const void *buffer, uint64_t offset, uint64_t bytes,
                       unsigned flags)
{
    struct file_state *state = block_node_state(node);
    bool durable = flags & BLOCK_REQUEST_FUA;
    int ret;

    if (durable && state->is_direct && !atomic_load(&state->cannot_write_durably)) {
        ret = write_durably(node, buffer, offset, bytes);
        file_status_written(&state->status, offset, bytes);
        note_end(node, ret, offset + bytes);
        return ret;
    }
    ret = write_fully(node, buffer, offset, bytes, 0);
    file_status_written(&state->status, offset, bytes);
    note_end(node, ret, offset + bytes);
    return ret == 0 && durable ? file_sync_run(&state->sync, state->fd) : ret;
}

static int file_flush(struct block_node *node)
{
    struct file_state *state = block_node_state(node);

    return file_sync_run(&state->sync, state->fd);
}

static int file_block_status(struct block_node *node, uint64_t offset, uint64_t bytes,
                             struct block_extent *extent)
{
    struct file_state *state = block_node_state(node);
    uint64_t alignment = node->limits.request_alignment;
    uint64_t end = UINT64_MAX;
    bool is_hole = false;
    int ret = state->is_block_device
                  ? 0
                  : file_status_find(&state->status, state->fd, offset, &is_hole, &end);

    if (ret < 0) {
        return ret;
    }
    end = MIN_OF(end, offset + bytes);
    if (!is_aligned(end, alignment)) {
        end = is_hole ? align_down(end, alignment) : align_up(end, alignment);
    }
    if (end <= offset) {
        /* A hole smaller than what can be read at once. */
        is_hole = false;
        end = offset + alignment;
    }
    *extent = (struct block_extent){
        .bytes = MIN_OF(end - offset, bytes),
        .flags = BLOCK_STATUS_OFFSET_VALID |
                 (is_hole ? BLOCK_STATUS_ZERO : BLOCK_STATUS_DATA | BLOCK_STATUS_ALLOCATED),
        .host_offset = offset,
        .host_node = node,
    };
    return 0;
}

static int file_host_range(struct block_node *node, uint64_t offset, uint64_t *bytes, int *fd,
                           uint64_t *fd_offset)
{
    const struct file_state *state = block_node_state(node);
    uint64_t odd_end = atomic_load(&state->odd_end);

    if (odd_end && offset + *bytes > odd_end) {
        return -ENOTSUP; /* the file may end before the range does */
    }
    *fd = state->fd;
    *fd_offset = offset;
    return 0;
}

static bool copy_is_unsupported(int error_number)
{
    return error_number == EXDEV || error_number == EOPNOTSUPP || error_number == ENOSYS ||
           error_number == EINVAL || error_number == EBADF || error_number == ETXTBSY;
}

static int copy_from(struct file_state *state, int fd, uint64_t fd_offset, uint64_t offset,
                     uint64_t bytes)
{
    uint64_t done = 0;

    while (done < bytes) {
        off_t from = (off_t)(fd_offset + done);
        off_t to = (off_t)(offset + done);
        ssize_t copied = copy_file_range(fd, &from, state->fd, &to, bytes - done, 0);

        if (copied < 0 && errno == EINTR) {
            continue;
        }
        if (copied < 0 && done == 0 && copy_is_unsupported(errno)) {
            return -ENOTSUP;
        }
        if (copied <= 0) {
            return copied < 0 && errno != ENOTSUP ? -errno : -EIO;
        }
        done += (uint64_t)copied;
    }
    return 0;
}

static int file_pwrite_from_fd(struct block_node *node, int fd, uint64_t fd_offset, uint64_t offset,
                               uint64_t bytes)
{
    struct file_state *state = block_node_state(node);
    int ret;

    if (state->is_block_device) {
        return -ENOTSUP;
    }
    ret = copy_from(state, fd, fd_offset, offset, bytes);
    file_status_written(&state->status, offset, bytes);
    return ret;
}

static int file_prefetch(struct block_node *node, uint64_t offset, uint64_t bytes)
{
    const struct file_state *state = block_node_state(node);

    if (state->is_direct) {
        return 0; /* there is no cache to read ahead into */
    }
    return -posix_fadvise(state->fd, (off_t)offset, (off_t)bytes, POSIX_FADV_WILLNEED);
}

static int file_invalidate(struct block_node *node, GError **error)
{
    struct file_state *state = block_node_state(node);

    file_status_clear(&state->status);
    return 0;
}

/* What the two names have in common. */
#define FILE_OPERATIONS                                                                            \
    .is_protocol = true, .instance_size = sizeof(struct file_state), .options = file_option_table, \
    .options_size = sizeof(struct file_options), .open = file_open, .close = file_close,           \
    .reopen_prepare = file_reopen_prepare, .reopen_commit = file_reopen_commit,                    \
    .reopen_abort = file_reopen_abort, .get_length = file_get_length,                              \
    .set_length = file_set_length, .get_allocated_size = file_get_allocated_size,                  \
    .is_zero_at_creation = file_is_zero_at_creation, .get_filename = file_get_filename,            \
    .get_info = file_get_info, .pread = file_pread, .pwrite = file_pwrite, .handles_fua = true,    \
    .write_zeroes = file_write_zeroes, .unmaps_zeroes = file_unmaps_zeroes,                        \
    .discard = file_discard, .flush = file_flush, .block_status = file_block_status,               \
    .host_range = file_host_range, .pwrite_from_fd = file_pwrite_from_fd,                          \
    .prefetch = file_prefetch, .invalidate = file_invalidate

const struct block_driver file_driver = {
    .name = "file",
    .description = "A file or a block device of this host",
    .create_options = file_create_option_table,
    .create_options_size = sizeof(struct file_create_options),
    .create = file_create,
    FILE_OPERATIONS,
};

const struct block_driver host_device_driver = {
    .name = "host_device",
    .description = "A block device (or a file) of this host",
    FILE_OPERATIONS,
};
