/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A library to be preloaded: ends the process, as a kill does, at the N-th call that changes a file
 * or sends something. LIVEBLK_TEST_DIE_AT says N; with LIVEBLK_TEST_DIE_PID it is that process that
 * is killed, and this one goes on. With LIVEBLK_TEST_DIE_COUNT the number of such calls is written
 * to that file at the end. With LIVEBLK_TEST_CALLS what they are is appended to that file, a line
 * for each, its parts separated by tabs, before they are made.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long calls;
static long last = -1;
static pid_t victim;
static int list_fd = -1;

__attribute__((constructor)) static void begin(void)
{
    const char *text = getenv("LIVEBLK_TEST_DIE_AT"), *pid = getenv("LIVEBLK_TEST_DIE_PID");
    const char *path = getenv("LIVEBLK_TEST_CALLS");

    last = text ? atol(text) : -1;
    victim = pid ? atoi(pid) : 0;
    if (path) {
        list_fd = (int)syscall(SYS_openat, AT_FDCWD, path,
                               O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    }
}

__attribute__((destructor)) static void end(void)
{
    const char *path = getenv("LIVEBLK_TEST_DIE_COUNT");
    FILE *file = path ? fopen(path, "w") : NULL;

    if (file) {
        fprintf(file, "%ld\n", atomic_load(&calls));
        fclose(file);
    }
}

static void list(const char *what, const char *name, const char *other)
{
    char line[3 * PATH_MAX];
    int length = snprintf(line, sizeof(line), "%s\t%s\t%s\n", what, name, other ? other : "");

    if (syscall(SYS_write, list_fd, line, (size_t)length) != length) {
        abort();
    }
}

static void step(const char *what, const char *name, const char *other)
{
    if (list_fd >= 0) {
        list(what, name, other);
    }
    if (atomic_fetch_add(&calls, 1) + 1 != last) {
        return;
    }
    if (!victim) {
        _exit(137);
    }
    kill(victim, SIGKILL);
}

static void step_fd(const char *what, int fd)
{
    char link[32], name[PATH_MAX] = "";

    if (list_fd >= 0) {
        snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
        if (readlink(link, name, sizeof(name) - 1) < 0) {
            name[0] = 0;
        }
    }
    step(what, name, NULL);
}

#define NEXT(type, name) ((type)dlsym(RTLD_NEXT, name))

int fsync(int fd)
{
    step_fd("sync", fd);
    return NEXT(int (*)(int), "fsync")(fd);
}

int fdatasync(int fd)
{
    step_fd("sync", fd);
    return NEXT(int (*)(int), "fdatasync")(fd);
}

int rename(const char *from, const char *to)
{
    step("rename", from, to);
    return NEXT(int (*)(const char *, const char *), "rename")(from, to);
}

int unlink(const char *path)
{
    step("remove", path, NULL);
    return NEXT(int (*)(const char *), "unlink")(path);
}

int rmdir(const char *path)
{
    step("remove", path, NULL);
    return NEXT(int (*)(const char *), "rmdir")(path);
}

int mkdir(const char *path, mode_t mode)
{
    step("create", path, NULL);
    return NEXT(int (*)(const char *, mode_t), "mkdir")(path, mode);
}

int ftruncate64(int fd, off64_t length)
{
    step_fd("write", fd);
    return NEXT(int (*)(int, off64_t), "ftruncate64")(fd, length);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t bytes)
{
    step_fd("write", fd);
    return NEXT(int (*)(int, int, off64_t, off64_t), "fallocate64")(fd, mode, offset, bytes);
}

ssize_t pwrite64(int fd, const void *buffer, size_t bytes, off64_t offset)
{
    step_fd("write", fd);
    return NEXT(ssize_t(*)(int, const void *, size_t, off64_t), "pwrite64")(fd, buffer, bytes,
                                                                            offset);
}

ssize_t pwritev64v2(int fd, const struct iovec *vector, int count, off64_t offset, int flags)
{
    step_fd("write", fd);
    return NEXT(ssize_t(*)(int, const struct iovec *, int, off64_t, int),
                "pwritev64v2")(fd, vector, count, offset, flags);
}

ssize_t write(int fd, const void *buffer, size_t bytes)
{
    step_fd("write", fd);
    return NEXT(ssize_t(*)(int, const void *, size_t), "write")(fd, buffer, bytes);
}

ssize_t send(int fd, const void *buffer, size_t bytes, int flags)
{
    /* A command of the admin channel; its name is enough. */
    const char *text = memmem(buffer, bytes, "checkpoint-", strlen("checkpoint-"));
    size_t most = text ? bytes - (size_t)(text - (const char *)buffer) : 0;
    const char *end = text ? memchr(text, '"', most) : NULL;
    char name[32] = "";

    snprintf(name, sizeof(name), "%.*s", end ? (int)(end - text) : 0, end ? text : "");
    step("send", name, NULL);
    return NEXT(ssize_t(*)(int, const void *, size_t, int), "send")(fd, buffer, bytes, flags);
}

int open64(const char *path, int flags, ...)
{
    va_list arguments;

    va_start(arguments, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    if (flags & O_CREAT) {
        step(access(path, F_OK) ? "create" : flags & O_TRUNC ? "write" : "open", path, NULL);
    }
    return NEXT(int (*)(const char *, int, ...), "open64")(path, flags, mode);
}
