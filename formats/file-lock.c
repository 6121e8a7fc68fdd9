/* SPDX-License-Identifier: BSD-3-Clause */
#include "formats/file-lock.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "block/error.h"

#define USED_BASE     100
#define UNSHARED_BASE 200

const struct file_lock_set file_lock_for_writing = {
    .used = FILE_LOCK_CONSISTENT_READ | FILE_LOCK_WRITE | FILE_LOCK_RESIZE,
    .unshared = FILE_LOCK_WRITE | FILE_LOCK_RESIZE,
};

const struct file_lock_set file_lock_for_reading = {
    .used = FILE_LOCK_CONSISTENT_READ,
    .unshared = FILE_LOCK_WRITE | FILE_LOCK_RESIZE,
};

static const char *const permission_names[FILE_LOCK_PERMISSIONS] = {
    "consistent read",
    "write",
    "write unchanged",
    "resize",
};

static int lock_call(int fd, int command, struct flock *lock)
{
    int ret;

    do {
        ret = fcntl(fd, command, lock);
    } while (ret < 0 && errno == EINTR);
    return ret < 0 ? -errno : 0;
}

static int set_byte(int fd, off_t byte, short type)
{
    struct flock lock = {
        .l_type = type,
        .l_whence = SEEK_SET,
        .l_start = byte,
        .l_len = 1,
    };

    return lock_call(fd, F_OFD_SETLK, &lock);
}

/* -EAGAIN if another descriptor has any lock on the byte. */
static int test_byte(int fd, off_t byte)
{
    struct flock lock = {
        .l_type = F_WRLCK,
        .l_whence = SEEK_SET,
        .l_start = byte,
        .l_len = 1,
    };
    int ret = lock_call(fd, F_OFD_GETLK, &lock);

    if (ret < 0) {
        return ret;
    }
    return lock.l_type == F_UNLCK ? 0 : -EAGAIN;
}

bool file_lock_is_supported(int fd)
{
    int ret = test_byte(fd, USED_BASE);

    return ret == 0 || ret == -EAGAIN;
}

static int report(int ret, unsigned permission, bool shared, const char *filename, GError **error)
{
    const char *name = permission_names[permission];

    if (ret == -EAGAIN || ret == -EACCES) {
        return block_error(error, EAGAIN,
                           "Failed to get %s\"%s\" lock on '%s': is another process using the "
                           "image?",
                           shared ? "shared " : "", name, filename);
    }
    return block_error_errno(error, -ret, "Failed to get %s\"%s\" lock on '%s'",
                             shared ? "shared " : "", name, filename);
}

int file_lock_place(int fd, const char *filename, struct file_lock_set missing, GError **error)
{
    for (unsigned i = 0; i < FILE_LOCK_PERMISSIONS; i++) {
        int ret = missing.used & (1u << i) ? set_byte(fd, USED_BASE + (off_t)i, F_RDLCK) : 0;

        if (ret < 0) {
            return report(ret, i, false, filename, error);
        }
        ret = missing.unshared & (1u << i) ? set_byte(fd, UNSHARED_BASE + (off_t)i, F_RDLCK) : 0;
        if (ret < 0) {
            return report(ret, i, true, filename, error);
        }
    }
    return 0;
}

static int test_bytes(int fd, const char *filename, struct file_lock_set wanted, GError **error)
{
    for (unsigned i = 0; i < FILE_LOCK_PERMISSIONS; i++) {
        int ret = wanted.used & (1u << i) ? test_byte(fd, UNSHARED_BASE + (off_t)i) : 0;

        if (ret < 0) {
            return report(ret, i, false, filename, error);
        }
        ret = wanted.unshared & (1u << i) ? test_byte(fd, USED_BASE + (off_t)i) : 0;
        if (ret < 0) {
            return report(ret, i, true, filename, error);
        }
    }
    return 0;
}

int file_lock_take(int fd, const char *filename, struct file_lock_set held,
                   struct file_lock_set wanted, GError **error)
{
    struct file_lock_set missing = {
        .used = wanted.used & ~held.used,
        .unshared = wanted.unshared & ~held.unshared,
    };
    int ret = file_lock_place(fd, filename, missing, error);

    if (ret == 0) {
        ret = test_bytes(fd, filename, wanted, error);
    }
    if (ret < 0) {
        file_lock_reduce(fd, missing, (struct file_lock_set){0});
    }
    return ret;
}

void file_lock_reduce(int fd, struct file_lock_set held, struct file_lock_set kept)
{
    for (unsigned i = 0; i < FILE_LOCK_PERMISSIONS; i++) {
        if (held.used & ~kept.used & (1u << i)) {
            set_byte(fd, USED_BASE + (off_t)i, F_UNLCK);
        }
        if (held.unshared & ~kept.unshared & (1u << i)) {
            set_byte(fd, UNSHARED_BASE + (off_t)i, F_UNLCK);
        }
    }
}
