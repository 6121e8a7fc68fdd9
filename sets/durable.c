/* SPDX-License-Identifier: BSD-3-Clause */
#include "sets/durable.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "sets/names.h"

/* One call does not move more. */
#define PIECE (UINT64_C(1) << 30)

static int fail(const char *what, const char *path, GError **error)
{
    return block_error_errno(error, errno, "Could not %s '%s'", what, path);
}

static bool write_all(int fd, const uint8_t *contents, uint64_t bytes)
{
    while (bytes) {
        ssize_t done = write(fd, contents, MIN_OF(bytes, PIECE));

        if (done < 0 && errno != EINTR) {
            return false;
        }
        contents += MAX_OF(done, (ssize_t)0);
        bytes -= (uint64_t)MAX_OF(done, (ssize_t)0);
    }
    return true;
}

int durable_create(const char *path, const void *contents, uint64_t bytes, GError **error)
{
    AUTO_CLOSE int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0) {
        return fail("create", path, error);
    }
    return write_all(fd, contents, bytes) && fsync(fd) == 0 ? 0 : fail("write", path, error);
}

int durable_replace(const char *path, const void *contents, uint64_t bytes, GError **error)
{
    g_autofree char *beside = g_strconcat(path, NAMES_NEW, NULL);
    int status = durable_create(beside, contents, bytes, error);

    return status < 0 ? status : durable_rename(beside, path, error);
}

int durable_rename(const char *from, const char *to, GError **error)
{
    g_autofree char *folder = g_path_get_dirname(to);

    if (rename(from, to) < 0) {
        return block_error_errno(error, errno, "Could not rename '%s' to '%s'", from, to);
    }
    return durable_sync_folder(folder, error);
}

int durable_remove(const char *path, GError **error)
{
    return unlink(path) == 0 || errno == ENOENT ? 0 : fail("remove", path, error);
}

static int sync_path(const char *path, int flags, GError **error)
{
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | flags);

    return fd >= 0 && fsync(fd) == 0 ? 0 : fail("make safe what was written to", path, error);
}

int durable_sync_folder(const char *path, GError **error)
{
    return sync_path(path, O_DIRECTORY, error);
}

int durable_sync_file(const char *path, GError **error)
{
    return sync_path(path, 0, error);
}

static int read_all(int fd, uint8_t *contents, uint64_t bytes)
{
    while (bytes) {
        ssize_t done = read(fd, contents, MIN_OF(bytes, PIECE));

        if (done == 0) {
            errno = EIO; /* it was cut meanwhile */
        }
        if (done <= 0 && errno != EINTR) {
            return -1;
        }
        contents += MAX_OF(done, (ssize_t)0);
        bytes -= (uint64_t)MAX_OF(done, (ssize_t)0);
    }
    return 0;
}

uint8_t *durable_read(const char *path, uint64_t bytes, GError **error)
{
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW);
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0) {
        fail("open", path, error);
        return NULL;
    }
    if (!S_ISREG(st.st_mode) || (uint64_t)st.st_size != bytes) {
        block_error(error, EBADMSG, "'%s' is damaged: it has %" PRIu64 " bytes, not %" PRIu64, path,
                    (uint64_t)st.st_size, bytes);
        return NULL;
    }
    g_autofree uint8_t *contents = g_try_malloc(MAX_OF(bytes, UINT64_C(1)));
    if (!contents) {
        block_error(error, ENOMEM, "There is no memory for '%s'", path);
        return NULL;
    }
    if (read_all(fd, contents, bytes) < 0) {
        fail("read", path, error);
        return NULL;
    }
    return g_steal_pointer(&contents);
}
