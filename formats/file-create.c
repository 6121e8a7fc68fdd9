/* SPDX-License-Identifier: BSD-3-Clause */
/* The length of a file, and files that are not there yet. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "block/node.h"
#include "formats/file-internal.h"

/* Space is allocated in pieces of this size, between which progress is told. */
#define ALLOCATION_STEP (256 * MIB)
#define ZERO_STEP       MIB

/* The extent size hint a new file gets where the file system knows such a thing. */
#define DEFAULT_EXTENT_SIZE_HINT MIB

const struct block_option file_create_option_table[] = {
    {
        .name = "filename",
        .type = BLOCK_OPTION_STRING,
        .offset = offsetof(struct file_create_options, filename),
        .required = true,
        .help = "Path of the file to create; an existing regular file loses its contents.",
    },
    {
        .name = "size",
        .type = BLOCK_OPTION_SIZE,
        .offset = offsetof(struct file_create_options, size),
        .required = true,
        .help = "Length in bytes.",
    },
    {
        .name = "preallocation",
        .type = BLOCK_OPTION_ENUM,
        .offset = offsetof(struct file_create_options, preallocation),
        .default_text = "off",
        .enum_values = block_preallocation_names,
        .help = "Reserve the space (falloc), or write it full of zeroes (full).",
    },
    {
        .name = "nocow",
        .type = BLOCK_OPTION_BOOL,
        .offset = offsetof(struct file_create_options, nocow),
        .default_text = "off",
        .help = "Switch copy-on-write off for this file (btrfs).",
    },
    {
        .name = "extent-size-hint",
        .type = BLOCK_OPTION_SIZE,
        .offset = offsetof(struct file_create_options, extent_size_hint),
        .default_text = "1M",
        .help = "Ask the file system (XFS) to allocate in units of this size; 0: leave it alone.",
    },
    {.name = NULL},
};

int64_t file_length_of(int fd, bool is_block_device)
{
    struct stat st;
    uint64_t bytes;

    if (!is_block_device) {
        return fstat(fd, &st) < 0 ? -errno : (int64_t)st.st_size;
    }
    if (ioctl(fd, BLKGETSIZE64, &bytes) < 0) {
        return -errno;
    }
    return bytes > INT64_MAX ? -EFBIG : (int64_t)bytes;
}

static int truncate_to(int fd, uint64_t length)
{
    int ret;

    do {
        ret = ftruncate(fd, (off_t)length) < 0 ? -errno : 0;
    } while (ret == -EINTR);
    return ret;
}

/* A growth from one length to another, and whom to tell about it. */
struct growth {
    int fd;
    uint64_t from;
    uint64_t to;
    block_progress *progress; /* may be NULL */
    void *progress_data;
};

static bool tell_progress(const struct growth *growth, uint64_t reached)
{
    return !growth->progress || growth->progress(growth->progress_data, reached - growth->from,
                                                 growth->to - growth->from);
}

static int grow_allocated(const struct growth *growth)
{
    for (uint64_t offset = growth->from; offset < growth->to;) {
        uint64_t step = MIN_OF(growth->to - offset, ALLOCATION_STEP);

        if (fallocate(growth->fd, 0, (off_t)offset, (off_t)step) < 0) {
            if (errno == EINTR) {
                continue;
            }
            return -errno;
        }
        offset += step;
        if (!tell_progress(growth, offset)) {
            return -ECANCELED;
        }
    }
    return 0;
}

static int grow_written(const struct growth *growth)
{
    AUTO_FREE void *zeroes = aligned_alloc(ZERO_STEP, ZERO_STEP);

    if (!zeroes) {
        return -ENOMEM;
    }
    memset(zeroes, 0, ZERO_STEP);
    for (uint64_t offset = growth->from; offset < growth->to;) {
        size_t step = MIN_OF(growth->to - offset, ZERO_STEP);
        ssize_t written = pwrite(growth->fd, zeroes, step, (off_t)offset);

        if (written < 0 && errno == EINTR) {
            continue;
        }
        if (written <= 0) {
            return written < 0 ? -errno : -EIO;
        }
        offset += (uint64_t)written;
        if (!tell_progress(growth, offset)) {
            return -ECANCELED;
        }
    }
    return 0;
}

/*
 * Refuse what cannot fit before trying: filling the file system up to find out would take the
 * last space from everybody else on it.
 */
static int check_space(const struct growth *growth)
{
    struct statvfs facts;

    if (fstatvfs(growth->fd, &facts) < 0) {
        return -errno;
    }
    return (growth->to - growth->from) / facts.f_frsize > facts.f_bfree ? -ENOSPC : 0;
}

/* Make the file longer; after a failure it is as long as before. */
static int grow(const struct growth *growth, enum block_preallocation preallocation)
{
    int ret;

    if (preallocation == BLOCK_PREALLOCATION_OFF) {
        return truncate_to(growth->fd, growth->to);
    }
    ret = check_space(growth);
    if (ret < 0) {
        return ret;
    }
    ret =
        preallocation == BLOCK_PREALLOCATION_FALLOC ? grow_allocated(growth) : grow_written(growth);
    if (ret < 0) {
        truncate_to(growth->fd, growth->from);
    }
    return ret;
}

static int check_length(uint64_t length, enum block_preallocation preallocation, GError **error)
{
    if (length > INT64_MAX) {
        return block_error(error, EFBIG, "%" PRIu64 " bytes are more than a file can have", length);
    }
    if (preallocation == BLOCK_PREALLOCATION_METADATA) {
        return block_error(error, ENOTSUP,
                           "preallocation=metadata makes no sense for a plain file; it takes off, "
                           "falloc or full");
    }
    return 0;
}

static int set_device_length(struct file_state *state, uint64_t length, GError **error)
{
    int64_t current = file_length_of(state->fd, true);

    if (current < 0) {
        return block_error_errno(error, (int)-current, "Could not get the length of '%s'",
                                 state->filename);
    }
    if ((uint64_t)current != length) {
        return block_error(error, ENOTSUP,
                           "'%s' is a block device of %" PRId64 " bytes; its length cannot be "
                           "changed here",
                           state->filename, current);
    }
    return 0;
}

int file_set_length(struct block_node *node, uint64_t length,
                    enum block_preallocation preallocation, block_progress *progress,
                    void *progress_data, GError **error)
{
    struct file_state *state = block_node_state(node);
    int64_t current;
    int ret = check_length(length, preallocation, error);

    if (ret < 0) {
        return ret;
    }
    if (state->is_block_device) {
        return set_device_length(state, length, error);
    }
    current = file_length_of(state->fd, false);
    if (current < 0) {
        return block_error_errno(error, (int)-current, "Could not get the length of '%s'",
                                 state->filename);
    }
    if (length < (uint64_t)current && preallocation != BLOCK_PREALLOCATION_OFF) {
        return block_error(error, EINVAL, "Cannot preallocate '%s' while shrinking it",
                           state->filename);
    }
    struct growth growth = {
        .fd = state->fd,
        .from = (uint64_t)current,
        .to = length,
        .progress = progress,
        .progress_data = progress_data,
    };
    ret = length > growth.from ? grow(&growth, preallocation) : truncate_to(state->fd, length);
    file_status_clear(&state->status);
    if (ret < 0) {
        return block_error_errno(error, -ret, "Could not resize '%s' to %" PRIu64 " bytes",
                                 state->filename, length);
    }
    atomic_store(&state->odd_end, 0);
    return 0;
}

/* ---- Creation -------------------------------------------------------------------------------- */

static int set_nocow(int fd)
{
    int flags;

    if (ioctl(fd, FS_IOC_GETFLAGS, &flags) < 0) {
        return -errno;
    }
    flags |= FS_NOCOW_FL;
    return ioctl(fd, FS_IOC_SETFLAGS, &flags) < 0 ? -errno : 0;
}

static int set_extent_size_hint(int fd, uint32_t bytes)
{
    struct fsxattr attributes;

    if (ioctl(fd, FS_IOC_FSGETXATTR, &attributes) < 0) {
        return -errno;
    }
    attributes.fsx_xflags |= FS_XFLAG_EXTSIZE;
    attributes.fsx_extsize = bytes;
    return ioctl(fd, FS_IOC_FSSETXATTR, &attributes) < 0 ? -errno : 0;
}

/* Both can only be set while the file is empty. */
static int set_attributes(int fd, const struct file_create_options *options, GError **error)
{
    uint64_t hint = options->extent_size_hint;
    int ret = options->nocow ? set_nocow(fd) : 0;

    if (ret < 0) {
        return block_error_errno(error, -ret, "Could not switch copy-on-write off for '%s'",
                                 options->filename);
    }
    ret = hint ? set_extent_size_hint(fd, (uint32_t)hint) : 0;
    if (ret < 0 && !(hint == DEFAULT_EXTENT_SIZE_HINT && (ret == -ENOTTY || ret == -EOPNOTSUPP))) {
        return block_error_errno(error, -ret,
                                 "Could not set the extent size hint of '%s' to %" PRIu64 " bytes",
                                 options->filename, hint);
    }
    return 0;
}

/* A guest's disk is nobody else's business: a new file is for its owner alone. */
static int open_for_creation(const char *filename, bool *is_new, GError **error)
{
    struct stat st;
    AUTO_CLOSE int fd = open(filename, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int ret;

    *is_new = fd >= 0;
    if (fd < 0 && errno == EEXIST) {
        ret = file_check_type(filename, error);
        if (ret < 0) {
            return ret;
        }
        fd = open(filename, O_RDWR | O_CLOEXEC);
    }
    if (fd < 0 || fstat(fd, &st) < 0) {
        return block_error_errno(error, errno, "Could not create '%s'", filename);
    }
    if (!S_ISREG(st.st_mode)) {
        return block_error(error, EINVAL, "Could not create '%s': it is not a regular file",
                           filename);
    }
    return steal_fd(&fd);
}

/* The name of a new file must survive a power loss as its contents do. */
static int sync_directory_of(const char *filename)
{
    g_autofree char *directory = g_path_get_dirname(filename);
    AUTO_CLOSE int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

    if (fd < 0 || fsync(fd) < 0) {
        /* A directory we may not read, or a file system without such a thing: no more to do. */
        return errno == EACCES || errno == EINVAL ? 0 : -errno;
    }
    return 0;
}

static int lock_new_file(int fd, const char *filename, GError **error)
{
    if (!file_lock_is_supported(fd)) {
        return 0;
    }
    return file_lock_take(fd, filename, (struct file_lock_set){0}, file_lock_for_writing, error);
}

/* Everything after the open and the lock. */
static int fill_new_file(int fd, const struct file_create_options *options,
                         block_progress *progress, void *progress_data, GError **error)
{
    struct growth growth = {
        .fd = fd,
        .to = options->size,
        .progress = progress,
        .progress_data = progress_data,
    };
    int ret = truncate_to(fd, 0);

    if (ret < 0) {
        return block_error_errno(error, -ret, "Could not empty '%s'", options->filename);
    }
    ret = set_attributes(fd, options, error);
    if (ret < 0) {
        return ret;
    }
    ret = grow(&growth, (enum block_preallocation)options->preallocation);
    if (ret == 0 && fsync(fd) < 0) {
        ret = -errno;
    }
    if (ret == 0) {
        ret = sync_directory_of(options->filename);
    }
    if (ret < 0) {
        return block_error_errno(error, -ret, "Could not give '%s' %" PRIu64 " bytes",
                                 options->filename, options->size);
    }
    return 0;
}

int file_create(void *values, block_progress *progress, void *progress_data, GError **error)
{
    const struct file_create_options *options = values;
    bool is_new;
    int ret = check_length(options->size, (enum block_preallocation)options->preallocation, error);

    if (ret < 0) {
        return ret;
    }
    if (options->extent_size_hint > UINT32_MAX) {
        return block_error(error, EINVAL, "extent-size-hint must be below 4 GiB");
    }
    AUTO_CLOSE int fd = open_for_creation(options->filename, &is_new, error);
    if (fd < 0) {
        return fd;
    }
    ret = lock_new_file(fd, options->filename, error);
    if (ret < 0) {
        return ret; /* somebody uses the file, even if we made it: leave it to them */
    }
    ret = fill_new_file(fd, options, progress, progress_data, error);
    if (ret < 0 && is_new) {
        unlink(options->filename);
    }
    return ret;
}
