/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Cleanup attributes and scope locks: what a function acquires is released on every way out.
 *
 * Memory and GLib objects use GLib's g_autofree, g_autoptr(GError) and friends; this header adds
 * what GLib has not: descriptors, aligned buffers, our own objects, and pthread locks that
 * ThreadSanitizer sees.
 */
#ifndef LIVEBLK_BLOCK_CLEANUP_H
#define LIVEBLK_BLOCK_CLEANUP_H

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

#define CLEANUP(function) __attribute__((cleanup(function)))

static inline void cleanup_close(int *fd)
{
    if (*fd >= 0) {
        int saved_errno = errno;
        close(*fd);
        errno = saved_errno;
    }
}

static inline void cleanup_free(void *pointer_to_pointer)
{
    free(*(void **)pointer_to_pointer);
}

static inline void cleanup_unlock(pthread_mutex_t **lock)
{
    if (*lock) {
        pthread_mutex_unlock(*lock);
    }
}

static inline pthread_mutex_t *scope_lock_acquire(pthread_mutex_t *lock)
{
    pthread_mutex_lock(lock);
    return lock;
}

/* A descriptor closed at the end of the scope; set it to -1 to keep it. */
#define AUTO_CLOSE CLEANUP(cleanup_close)

/* A pointer from malloc or aligned_alloc freed at the end of the scope; NULL to keep it. */
#define AUTO_FREE CLEANUP(cleanup_free)

/*
 * For our own reference-counted and owned objects: after DEFINE_AUTO(block_node, block_node_unref)
 * a variable declared AUTO(block_node) node = ... is a struct block_node * that is released at the
 * end of the scope unless it is NULL then.
 */
#define DEFINE_AUTO(name, function)                                                                \
    static inline void auto_release_##name(struct name **pointer)                                  \
    {                                                                                              \
        if (*pointer) {                                                                            \
            function(*pointer);                                                                    \
        }                                                                                          \
    }
#define AUTO(name)             CLEANUP(auto_release_##name) __attribute__((unused)) struct name *

#define SCOPE_LOCK_NAME_(line) scope_lock_##line##_
#define SCOPE_LOCK_NAME(line)  SCOPE_LOCK_NAME_(line)

/* Hold the mutex from here to the end of the enclosing block. */
#define SCOPE_LOCK(lock)                                                                           \
    CLEANUP(cleanup_unlock)                                                                        \
    __attribute__((unused)) pthread_mutex_t *SCOPE_LOCK_NAME(__LINE__) = scope_lock_acquire(lock)

/* Hand the value of a variable over to the caller and forget it here. */
#define STEAL(pointer)                                                                             \
    ({                                                                                             \
        __typeof__(pointer) stolen_ = (pointer);                                                   \
        (pointer) = NULL;                                                                          \
        stolen_;                                                                                   \
    })

static inline int steal_fd(int *fd)
{
    int stolen = *fd;
    *fd = -1;
    return stolen;
}

#endif
