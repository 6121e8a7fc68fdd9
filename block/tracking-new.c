/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Tracking files that are made anew. One has no name until all that is in it is on stable storage;
 * where it takes the place of another, it has the name FILE.new in between. A process that is
 * killed just then leaves that behind: it is removed by who makes or opens FILE next.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/align.h"
#include "block/error.h"
#include "block/tracking-internal.h"
#include "block/tracking-io.h"

/* What a file begins with that has a name before it has a header. */
static const char first_bytes[] = "LIVEBLKT";

/* ---- Names ----------------------------------------------------------------------------------- */

static bool is_named(int fd, const char *path)
{
    struct stat by_name, by_fd;

    return lstat(path, &by_name) == 0 && fstat(fd, &by_fd) == 0 && by_name.st_dev == by_fd.st_dev &&
           by_name.st_ino == by_fd.st_ino;
}

/*
 * Of a process that died: a tracking file, or the beginning of one, that nobody uses, and no copy
 * that somebody made of one: that has another inode than it says.
 */
static bool is_left_over(int fd)
{
    struct stat information;
    uint8_t bytes[TRACKING_HEADER_BYTES];
    struct tracking_header header;

    if (fstat(fd, &information) < 0 || !S_ISREG(information.st_mode)) {
        return false;
    }
    if (tracking_read(fd, bytes, sizeof(bytes), 0) == 0 &&
        tracking_header_decode(bytes, &header, NULL) == 0) {
        return header.own_inode == information.st_ino;
    }
    return information.st_size == 0 || (pread(fd, bytes, strlen(first_bytes), 0) > 0 &&
                                        tracking_header_begins_with(bytes, strlen(first_bytes)));
}

int tracking_file_remove_left_over(const char *path, GError **error)
{
    g_autofree char *new_path = g_strconcat(path, ".new", NULL);
    AUTO_CLOSE int fd = open(new_path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

    if (fd < 0 && errno == ENOENT) {
        return 0;
    }
    if (fd < 0 || !is_left_over(fd)) {
        return block_error(error, EEXIST,
                           "Tracking file '%s' is made as '%s' first, but there is something else "
                           "of that name: move it away",
                           path, new_path);
    }
    /* Whoever has it locked may give it another name; nobody else may, once it is locked here. */
    if (tracking_file_lock(fd, new_path, error) < 0) {
        return -EAGAIN;
    }
    if (is_named(fd, new_path) && unlink(new_path) < 0) {
        return block_error_errno(error, errno, "Could not remove '%s'", new_path);
    }
    return 0;
}

/* Where files cannot be made without a name it has one at once, and says at once what it is. */
static int open_named(const char *path, char **new_path, GError **error)
{
    g_autofree char *name = g_strconcat(path, ".new", NULL);
    AUTO_CLOSE int fd = -1;

    if (tracking_file_remove_left_over(path, error) < 0) {
        return -EEXIST;
    }
    fd = open(name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) {
        return block_error_errno(error, errno, "Could not create tracking file '%s'", name);
    }
    if (tracking_file_lock(fd, name, error) < 0) {
        return -EAGAIN;
    }
    if (pwrite(fd, first_bytes, sizeof(first_bytes) - 1, 0) < 0) {
        int status = block_error_errno(error, errno, "Could not write tracking file '%s'", name);

        unlink(name);
        return status;
    }
    *new_path = STEAL(name);
    return steal_fd(&fd);
}

/* An empty file, locked. *new_path: the name it has; NULL: none. */
static int open_new(const char *path, char **new_path, GError **error)
{
    g_autofree char *directory = g_path_get_dirname(path);
    AUTO_CLOSE int fd = access("/proc/self/fd", F_OK) == 0
                            ? open(directory, O_RDWR | O_TMPFILE | O_CLOEXEC, 0600)
                            : -1;

    *new_path = NULL;
    if (fd < 0) {
        return open_named(path, new_path, error);
    }
    int status = tracking_file_lock(fd, path, error);
    return status < 0 ? status : steal_fd(&fd);
}

struct tracking_file *tracking_file_new(const char *path, GError **error)
{
    char *new_path;
    int fd = open_new(path, &new_path, error);

    if (fd < 0) {
        return NULL;
    }
    struct tracking_file *file = tracking_file_new_open(path, fd);
    file->new_path = new_path;
    return file;
}

static int give_new_name(struct tracking_file *file, GError **error)
{
    char source[32];
    char *name;

    if (file->new_path) {
        return 0;
    }
    if (tracking_file_remove_left_over(file->path, error) < 0) {
        return -EEXIST;
    }
    snprintf(source, sizeof(source), "/proc/self/fd/%d", file->fd);
    name = g_strconcat(file->path, ".new", NULL);
    if (linkat(AT_FDCWD, source, AT_FDCWD, name, AT_SYMLINK_FOLLOW) < 0) {
        int status = block_error_errno(error, errno, "Could not create '%s'", name);

        g_free(name);
        return status;
    }
    file->new_path = name;
    return 0;
}

int tracking_file_install(struct tracking_file *file, GError **error)
{
    int status = 0;

    if (give_new_name(file, error) < 0) {
        return -EIO;
    }
    if (rename(file->new_path, file->path) < 0) {
        status = -errno;
    } else {
        g_clear_pointer(&file->new_path, g_free);
        status = tracking_file_sync_name(file->path);
        file->is_given_up = status < 0;
    }
    return status < 0 ? block_error_errno(error, -status, "Could not create tracking file '%s'",
                                          file->path)
                      : 0;
}

/* ---- Contents -------------------------------------------------------------------------------- */

/* All but its first bytes is written, so that no later write to it needs space. */
static int fill_with_zeroes(int fd, uint64_t bytes)
{
    static const char zeroes[MIB];

    for (uint64_t offset = sizeof(first_bytes) - 1; offset < bytes;) {
        ssize_t done = pwrite(fd, zeroes, MIN_OF(bytes - offset, sizeof(zeroes)), (off_t)offset);

        if (done < 0 && errno != EINTR) {
            return -errno;
        }
        offset += done > 0 ? (uint64_t)done : 0;
    }
    return 0;
}

static void note_own_file(int fd, struct tracking_header *header)
{
    struct stat information;

    if (fstat(fd, &information) == 0) {
        header->own_device = information.st_dev;
        header->own_inode = information.st_ino;
    }
}

int tracking_file_allocate(struct tracking_file *file, GError **error)
{
    uint64_t end = tracking_directory_start(&file->header) + 2 * TRACKING_DIRECTORY_BYTES;
    int status = fill_with_zeroes(file->fd, end);

    if (status < 0) {
        return block_error_errno(error, -status,
                                 "Could not allocate %" PRIu64 " bytes for tracking file '%s'", end,
                                 file->path);
    }
    note_own_file(file->fd, &file->header);
    tracking_file_note_layout(file);
    return tracking_file_write_empty_log(file, error);
}

static int sync_all(struct tracking_file *file, GError **error)
{
    int status = tracking_io.sync_file(file->fd);

    return status < 0
               ? block_error_errno(error, -status, "Could not write tracking file '%s'", file->path)
               : 0;
}

int tracking_file_write_heads(struct tracking_file *file, GError **error)
{
    int status = tracking_file_store_directory(file, file->directory, error);

    if (status == 0) {
        status = tracking_file_write_header(file, &file->header, error);
    }
    return status < 0 ? status : sync_all(file, error);
}

static int set_up(struct tracking_file *file, uint64_t length,
                  const struct tracking_geometry *geometry, const char *disk_path,
                  const struct tracking_identity *disk, GError **error)
{
    struct tracking_header *header = &file->header;

    *header = (struct tracking_header){
        .flags = TRACKING_IN_USE,
        .length = length,
        .granule_shift = log2_of(geometry->granule),
        .extent_shift = log2_of(geometry->extent),
        .extents = geometry->extents,
        .epoch = 1,
        .disk = *disk,
    };
    tracking_uuid_generate(header->uuid);
    tracking_io.boot_id(header->boot_id);
    g_strlcpy(header->path, disk_path ? disk_path : "", sizeof(header->path));
    if (tracking_header_lay_out(header, error) < 0) {
        return -EFBIG;
    }
    file->directory = tracking_directory_new();
    if (tracking_file_allocate(file, error) < 0 || tracking_file_write_heads(file, error) < 0 ||
        tracking_file_map(file, error) < 0) {
        return -EIO;
    }
    atomic_store(&file->map.epoch, 1);
    return tracking_file_install(file, error);
}

struct tracking_file *tracking_file_create(const char *path, uint64_t length,
                                           const struct tracking_geometry *geometry,
                                           const char *disk_path,
                                           const struct tracking_identity *disk, GError **error)
{
    struct tracking_file *file = tracking_file_new(path, error);

    if (file && set_up(file, length, geometry, disk_path, disk, error) < 0) {
        tracking_file_unref(STEAL(file));
    }
    return file;
}
