/* SPDX-License-Identifier: BSD-3-Clause */
/* What the parts of the file driver share: its state, and each part's entry points. */
#ifndef LIVEBLK_FORMATS_FILE_INTERNAL_H
#define LIVEBLK_FORMATS_FILE_INTERNAL_H

#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "block/driver.h"
#include "formats/file-lock.h"
#include "formats/file-status.h"

/*
 * fdatasync, one at a time: who comes while one runs shares the next. The kernel reports that
 * written data was lost only once per open file; with two syncs side by side one would take the
 * report and the other would promise what is gone. After a failure the page cache may hold clean
 * pages that never reached the storage, so no later sync can be believed either.
 */
struct file_sync {
    pthread_mutex_t lock; /* guards the rest; innermost, not held during fdatasync */
    pthread_cond_t finished_one;
    uint64_t started;
    uint64_t finished;
    bool running;
    int error; /* negative errno of the first failure, for ever */
};

struct file_state {
    int fd;
    char *filename;
    bool is_block_device;
    bool is_direct;         /* fd is open with O_DIRECT */
    int aio;                /* what was asked for */
    bool takes_locks;       /* locking is on, or auto and supported */
    uint32_t logical_block; /* of a block device */
    /*
     * Of a file that direct I/O makes longer, up to a whole unit: where it ended when its length
     * was asked for. What is behind that reads as zeroes until it is written. 0: it was none.
     */
    _Atomic uint64_t odd_end;
    bool unmaps_zeroes;        /* a block device that zeroes as it discards */
    struct file_lock_set held; /* locks on fd */
    struct file_sync sync;
    struct file_status status;

    /* What the storage turned out not to support (or to support), so as not to ask each time. */
    _Atomic bool cannot_write_durably; /* RWF_DSYNC */
    _Atomic bool cannot_punch;
    _Atomic bool cannot_zero;
    _Atomic bool cannot_allocate;
    _Atomic bool can_allocate;
    _Atomic bool cannot_discard;
};

/* Options of the two drivers. */
struct file_options {
    char *filename;
    int locking;
    int aio;
    uint64_t aio_max_batch;
};
extern const struct block_option file_option_table[];

/* Options of creation. */
struct file_create_options {
    char *filename;
    uint64_t size;
    int preallocation;
    bool nocow;
    uint64_t extent_size_hint;
};
extern const struct block_option file_create_option_table[];

/* file-open.c */
int file_open(struct block_node *node, void *values, GError **error);
void file_close(struct block_node *node);
int file_reopen_prepare(struct block_node *node, void *values,
                        const struct block_node_options *options, void **prepared, GError **error);
void file_reopen_commit(struct block_node *node, void *prepared);
void file_reopen_abort(struct block_node *node, void *prepared);
/* Refuse what is neither a regular file nor a block device; a path that cannot be asked passes. */
int file_check_type(const char *filename, GError **error);

/* file-sync.c */
void file_sync_init(struct file_sync *sync);
void file_sync_destroy(struct file_sync *sync);
/* Everything written to the file before the call is on stable storage after it. */
int file_sync_run(struct file_sync *sync, int fd);
/* A durable write failed after the data was written: no later sync may succeed. Returns error. */
int file_sync_fail(struct file_sync *sync, int error);

/* file-zero.c */
int file_write_zeroes(struct block_node *node, uint64_t offset, uint64_t bytes, unsigned flags);
/* See unmaps_zeroes of struct block_driver. */
bool file_device_unmaps_zeroes(dev_t device);
int file_discard(struct block_node *node, uint64_t offset, uint64_t bytes);

/* file-create.c */
int file_create(void *values, block_progress *progress, void *progress_data, GError **error);
int file_set_length(struct block_node *node, uint64_t length,
                    enum block_preallocation preallocation, block_progress *progress,
                    void *progress_data, GError **error);
/* Length of an open file or block device in bytes, or a negative errno. */
int64_t file_length_of(int fd, bool is_block_device);

#endif
