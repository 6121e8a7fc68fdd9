/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Image locks that QEMU and its tools understand.
 *
 * Openers of an image say what they do with it by shared (read) OFD locks on single bytes of the
 * file: byte 100+N "I use permission N", byte 200+N "I do not let others use permission N". All
 * such locks can be held by many at once; a conflict shows when, after placing its own, an opener
 * finds somebody else's lock on the opposite byte. Two openers that race may both fail, but never
 * both succeed. The bytes need not exist in the file and are not touched.
 */
#ifndef LIVEBLK_FORMATS_FILE_LOCK_H
#define LIVEBLK_FORMATS_FILE_LOCK_H

#include <glib.h>
#include <stdbool.h>

/* Permissions, in the numbering of the lock bytes. */
enum {
    FILE_LOCK_CONSISTENT_READ = 1 << 0,
    FILE_LOCK_WRITE = 1 << 1,
    FILE_LOCK_WRITE_UNCHANGED = 1 << 2,
    FILE_LOCK_RESIZE = 1 << 3,
};
#define FILE_LOCK_PERMISSIONS 4

struct file_lock_set {
    unsigned used;     /* FILE_LOCK_* this opener uses */
    unsigned unshared; /* FILE_LOCK_* it does not let others use */
};

/* What a writer and a reader of an image take. */
extern const struct file_lock_set file_lock_for_writing;
extern const struct file_lock_set file_lock_for_reading;

/* True if the kernel and the file's file system have OFD locks. */
bool file_lock_is_supported(int fd);

/*
 * Take what wanted has beyond held (which this very descriptor holds already), then look for
 * conflicts with all of wanted. On failure only held is held, and the error names the permission:
 * 'Failed to get "write" lock on ...'. The descriptor must be open for reading. -EAGAIN: somebody
 * else has the image.
 */
int file_lock_take(int fd, const char *filename, struct file_lock_set held,
                   struct file_lock_set wanted, GError **error);

/*
 * Only place locks and look for no conflict: for a second descriptor of somebody who holds the
 * same ones. On failure some may have been placed: close the descriptor.
 */
int file_lock_place(int fd, const char *filename, struct file_lock_set missing, GError **error);

/* Give up what held has beyond kept. */
void file_lock_reduce(int fd, struct file_lock_set held, struct file_lock_set kept);

#endif
