/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/unix-socket.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "block/cleanup.h"
#include "block/clock.h"
#include "block/error.h"

#define LISTEN_BACKLOG  128
#define LOCK_TIMEOUT_NS (5 * NS_PER_SECOND)
#define LOCK_RETRY_NS   (10 * NS_PER_MS)

/* A path in two parts, the first one open: it stays the same directory whatever is renamed. */
struct location {
    const char *path;
    int directory_fd;
    const char *name; /* the last component, in path */
};

static int open_location(const char *path, struct location *location, GError **error)
{
    g_autofree char *directory = g_path_get_dirname(path);
    const char *slash = strrchr(path, '/');

    location->path = path;
    location->name = slash ? slash + 1 : path;
    location->directory_fd = -1;
    if (!*location->name) {
        return block_error(error, EINVAL, "'%s' is no path for a socket", path);
    }
    location->directory_fd = open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (location->directory_fd < 0) {
        return block_error_errno(error, errno, "Could not open the directory of '%s'", path);
    }
    return 0;
}

static int fill_address(const struct location *location, struct sockaddr_un *address,
                        GError **error)
{
    int length = (int)MIN(strlen(location->path), sizeof(address->sun_path));

    memset(address, 0, sizeof(*address));
    address->sun_family = AF_UNIX;
    if ((size_t)length < sizeof(address->sun_path)) {
        memcpy(address->sun_path, location->path, (size_t)length);
        return 0;
    }
    length = snprintf(address->sun_path, sizeof(address->sun_path), "/proc/self/fd/%d/%s",
                      location->directory_fd, location->name);
    if ((size_t)length >= sizeof(address->sun_path)) {
        return block_error(error, ENAMETOOLONG, "The socket name '%s' is too long", location->name);
    }
    return 0;
}

/* Take the lock once. Returns its descriptor, -EAGAIN if another holds or has just removed it. */
static int try_lock(const struct location *location, const char *lock_name)
{
    AUTO_CLOSE int fd = openat(location->directory_fd, lock_name,
                               O_RDWR | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC, 0600);
    struct stat ours, there;

    if (fd < 0) {
        return -errno;
    }
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        return errno == EWOULDBLOCK ? -EAGAIN : -errno;
    }
    if (fstat(fd, &ours) < 0) {
        return -errno;
    }
    /* A lock on a file that its last holder has removed is worth nothing. */
    if (fstatat(location->directory_fd, lock_name, &there, AT_SYMLINK_NOFOLLOW) < 0 ||
        ours.st_dev != there.st_dev || ours.st_ino != there.st_ino) {
        return -EAGAIN;
    }
    return steal_fd(&fd);
}

static int take_lock(const struct location *location, const char *lock_name, GError **error)
{
    const struct timespec pause = {.tv_nsec = LOCK_RETRY_NS};
    int64_t deadline = clock_now_ns() + LOCK_TIMEOUT_NS;
    int fd = try_lock(location, lock_name);

    while (fd == -EAGAIN && clock_now_ns() < deadline) {
        nanosleep(&pause, NULL);
        fd = try_lock(location, lock_name);
    }
    if (fd < 0) {
        block_error_errno(error, -fd, "Could not lock '%s.lock'", location->path);
    }
    return fd;
}

static void release_lock(const struct location *location, const char *lock_name, int fd)
{
    unlinkat(location->directory_fd, lock_name, 0);
    close(fd);
}

/* 0: somebody serves the socket; -ECONNREFUSED: nobody; -ENOENT: it has gone; or another error. */
static int probe(const struct sockaddr_un *address)
{
    AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    if (fd < 0) {
        return -errno;
    }
    if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0) {
        return 0;
    }
    /* A full backlog, or a socket of another type: in both cases somebody is there. */
    return errno == EAGAIN || errno == EPROTOTYPE ? 0 : -errno;
}

/* Make sure that nothing is in the way. */
static int clear_path(const struct location *location, const struct sockaddr_un *address,
                      GError **error)
{
    struct stat there;
    int status;

    if (fstatat(location->directory_fd, location->name, &there, AT_SYMLINK_NOFOLLOW) < 0) {
        return errno == ENOENT
                   ? 0
                   : block_error_errno(error, errno, "Could not look at '%s'", location->path);
    }
    if (!S_ISSOCK(there.st_mode)) {
        return block_error(error, EADDRINUSE,
                           "Could not listen on '%s': it exists and is not a socket",
                           location->path);
    }
    status = probe(address);
    if (status == -ENOENT) {
        return 0;
    }
    if (status != -ECONNREFUSED) {
        return block_error_errno(error, status ? -status : EADDRINUSE, "Could not listen on '%s'",
                                 location->path);
    }
    if (unlinkat(location->directory_fd, location->name, 0) < 0 && errno != ENOENT) {
        return block_error_errno(error, errno, "Could not remove the stale socket '%s'",
                                 location->path);
    }
    return 0;
}

/* Bind and listen on a new socket; returns it. */
static int bind_and_listen(const struct location *location, const struct sockaddr_un *address,
                           struct stat *bound, GError **error)
{
    AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

    /* On Linux the socket's own mode, less the umask, becomes that of the file bind makes. */
    if (fd < 0 || fchmod(fd, 0600) < 0 ||
        bind(fd, (const struct sockaddr *)address, sizeof(*address)) < 0) {
        return block_error_errno(error, errno, "Could not listen on '%s'", location->path);
    }
    if (listen(fd, LISTEN_BACKLOG) < 0 ||
        fstatat(location->directory_fd, location->name, bound, AT_SYMLINK_NOFOLLOW) < 0) {
        int status = errno;

        unlinkat(location->directory_fd, location->name, 0);
        return block_error_errno(error, status, "Could not listen on '%s'", location->path);
    }
    return steal_fd(&fd);
}

static int listen_locked(const struct location *location, struct stat *bound, GError **error)
{
    struct sockaddr_un address;
    int status = fill_address(location, &address, error);

    if (status == 0) {
        status = clear_path(location, &address, error);
    }
    return status < 0 ? status : bind_and_listen(location, &address, bound, error);
}

int unix_socket_listen(const char *path, struct unix_listener *listener, GError **error)
{
    g_autofree char *lock_name = NULL;
    AUTO_CLOSE int directory_fd = -1;
    struct location location;
    struct stat bound;
    int status = open_location(path, &location, error);
    int lock_fd, fd;

    directory_fd = location.directory_fd;
    if (status < 0) {
        return status;
    }
    lock_name = g_strconcat(location.name, ".lock", NULL);
    lock_fd = take_lock(&location, lock_name, error);
    if (lock_fd < 0) {
        return lock_fd;
    }
    fd = listen_locked(&location, &bound, error);
    release_lock(&location, lock_name, lock_fd);
    if (fd < 0) {
        return fd;
    }
    *listener = (struct unix_listener){
        .fd = fd,
        .directory_fd = steal_fd(&directory_fd),
        .name = g_strdup(location.name),
        .device = bound.st_dev,
        .inode = bound.st_ino,
    };
    return 0;
}

int unix_socket_adopt(int fd, struct unix_listener *listener, GError **error)
{
    int is_listening = 0;
    socklen_t bytes = sizeof(is_listening);

    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &is_listening, &bytes) < 0 || !is_listening) {
        return block_error(error, EINVAL, "Descriptor %d is no socket that listens", fd);
    }
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    fcntl(fd, F_SETFL, O_NONBLOCK);
    *listener = (struct unix_listener){.fd = fd, .directory_fd = -1};
    return 0;
}

void unix_socket_unlisten(struct unix_listener *listener)
{
    struct stat there;

    /*
     * While we still listen nobody takes our socket for a stale one, and its inode's number is
     * not given to another: what has it is ours.
     */
    if (listener->name &&
        fstatat(listener->directory_fd, listener->name, &there, AT_SYMLINK_NOFOLLOW) == 0 &&
        there.st_dev == listener->device && there.st_ino == listener->inode) {
        unlinkat(listener->directory_fd, listener->name, 0);
    }
    close(listener->fd);
    if (listener->directory_fd >= 0) {
        close(listener->directory_fd);
    }
    g_free(listener->name);
    *listener = (struct unix_listener){.fd = -1, .directory_fd = -1};
}

int unix_socket_connect(const char *path, GError **error)
{
    AUTO_CLOSE int directory_fd = -1;
    AUTO_CLOSE int fd = -1;
    struct sockaddr_un address;
    struct location location;
    int status = open_location(path, &location, error);

    directory_fd = location.directory_fd;
    if (status == 0) {
        status = fill_address(&location, &address, error);
    }
    if (status < 0) {
        return status;
    }
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0) {
        return block_error_errno(error, errno, "Could not connect to '%s'", path);
    }
    return steal_fd(&fd);
}
