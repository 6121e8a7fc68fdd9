/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A library to be preloaded: ends the process, as a kill does, at the N-th call that changes a file
 * or sends something. LIVEBLK_TEST_DIE_AT says N; with LIVEBLK_TEST_DIE_COUNT the number of such
 * calls is written to that file at the end.
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static atomic_long calls;
static long last = -1;

__attribute__((constructor)) static void begin(void)
{
    const char *text = getenv("LIVEBLK_TEST_DIE_AT");

    last = text ? atol(text) : -1;
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

static void step(void)
{
    if (atomic_fetch_add(&calls, 1) + 1 == last) {
        _exit(137);
    }
}

#define NEXT(type, name) ((type)dlsym(RTLD_NEXT, name))

int fsync(int fd)
{
    step();
    return NEXT(int (*)(int), "fsync")(fd);
}

int fdatasync(int fd)
{
    step();
    return NEXT(int (*)(int), "fdatasync")(fd);
}

int rename(const char *from, const char *to)
{
    step();
    return NEXT(int (*)(const char *, const char *), "rename")(from, to);
}

int unlink(const char *path)
{
    step();
    return NEXT(int (*)(const char *), "unlink")(path);
}

int rmdir(const char *path)
{
    step();
    return NEXT(int (*)(const char *), "rmdir")(path);
}

int mkdir(const char *path, mode_t mode)
{
    step();
    return NEXT(int (*)(const char *, mode_t), "mkdir")(path, mode);
}

int ftruncate64(int fd, off64_t length)
{
    step();
    return NEXT(int (*)(int, off64_t), "ftruncate64")(fd, length);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t bytes)
{
    step();
    return NEXT(int (*)(int, int, off64_t, off64_t), "fallocate64")(fd, mode, offset, bytes);
}

ssize_t pwrite64(int fd, const void *buffer, size_t bytes, off64_t offset)
{
    step();
    return NEXT(ssize_t(*)(int, const void *, size_t, off64_t), "pwrite64")(fd, buffer, bytes,
                                                                            offset);
}

ssize_t write(int fd, const void *buffer, size_t bytes)
{
    step();
    return NEXT(ssize_t(*)(int, const void *, size_t), "write")(fd, buffer, bytes);
}

ssize_t send(int fd, const void *buffer, size_t bytes, int flags)
{
    step();
    return NEXT(ssize_t(*)(int, const void *, size_t, int), "send")(fd, buffer, bytes, flags);
}

int open64(const char *path, int flags, ...)
{
    va_list arguments;

    va_start(arguments, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(arguments, mode_t) : 0;
    va_end(arguments);
    if (flags & O_CREAT) {
        step();
    }
    return NEXT(int (*)(const char *, int, ...), "open64")(path, flags, mode);
}
