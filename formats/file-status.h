/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Which parts of a file are data and which are holes, remembered.
 *
 * Asking the kernel (SEEK_DATA, SEEK_HOLE) for every block status request costs two system calls
 * and, on some file systems, a walk of the extents; so the last extents found are kept.
 *
 * A remembered hole over data that a writer was told is there would make a job skip that data.
 * So whoever changes the file reports it here after the change and before the request is
 * answered, and a question enters its range in the table before it asks the kernel: either the
 * change finds the entry and cuts it, or the kernel was asked after the change and says "data".
 * A remembered "data" over a hole is only a missed saving.
 *
 * All functions may be called from many threads at once, except init, destroy.
 */
#ifndef LIVEBLK_FORMATS_FILE_STATUS_H
#define LIVEBLK_FORMATS_FILE_STATUS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define FILE_STATUS_SLOTS 16

/* Kinds of a slot, as a mask. */
enum {
    FILE_STATUS_FREE = 0,
    FILE_STATUS_ASKING = 1 << 0, /* a thread asks the kernel about what starts here */
    FILE_STATUS_HOLE = 1 << 1,
    FILE_STATUS_DATA = 1 << 2,
};

/*
 * What is known of [start, end). Changed under the lock; read without it by those who report
 * changes. An entry in use only ever shrinks, by one store to either end.
 */
struct file_status_slot {
    _Atomic uint64_t start;
    _Atomic uint64_t end;
    _Atomic unsigned kind;
};

struct file_status {
    /* How many slots a write could make wrong: those that ask and those that say "hole". */
    _Atomic unsigned sensitive;
    pthread_mutex_t lock; /* guards changes of the table; innermost, never held across I/O */
    unsigned next_victim; /* under the lock */
    struct file_status_slot slots[FILE_STATUS_SLOTS];
    _Atomic bool cannot_seek; /* the file system does not tell: all is data */
};

void file_status_init(struct file_status *status);
void file_status_destroy(struct file_status *status);

/* Forget everything. The file is not being written meanwhile. */
void file_status_clear(struct file_status *status);

/* The slow part of the two below: cut the range out of all entries of these kinds. */
void file_status_cut(struct file_status *status, uint64_t offset, uint64_t bytes, unsigned kinds);

/* The range was written, or may have been (the write failed). */
static inline void file_status_written(struct file_status *status, uint64_t offset, uint64_t bytes)
{
    if (atomic_load(&status->sensitive)) {
        file_status_cut(status, offset, bytes, FILE_STATUS_ASKING | FILE_STATUS_HOLE);
    }
}

/* The range was zeroed or discarded: it may hold holes now where it held data, or the reverse. */
static inline void file_status_reshaped(struct file_status *status, uint64_t offset, uint64_t bytes)
{
    file_status_cut(status, offset, bytes,
                    FILE_STATUS_ASKING | FILE_STATUS_HOLE | FILE_STATUS_DATA);
}

/*
 * What starts at offset: *is_hole, and in *end where it ends (past offset; may be far beyond the
 * file's end for data whose end is not known). length is the length that offset lies below.
 * Returns 0, or -EIO if the file has been cut off before offset behind our back.
 */
int file_status_find(struct file_status *status, int fd, uint64_t offset, bool *is_hole,
                     uint64_t *end);

#endif
