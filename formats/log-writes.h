/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A log of writes in a node, in the format of the Linux kernel's dm-log-writes target, so that the
 * tools for that replay it.
 *
 * The node is an array of sectors, whose size the first one, the superblock, says; numbers are
 * little endian:
 *
 *   superblock: u64 magic 0x6a736677736872, u64 version 1, u64 number of entries, u32 sector size
 *   entry:      u64 first sector, u64 sectors, u64 flags, u64 bytes of data that follow in the
 *               entry's own sector (a mark's name)
 *
 * Entries follow each other from the second sector on. Each has a sector of its own and, unless it
 * is a discard, as many sectors of data behind it as it is long.
 *
 * Functions may be called from any thread.
 */
#ifndef LIVEBLK_FORMATS_LOG_WRITES_H
#define LIVEBLK_FORMATS_LOG_WRITES_H

#include <glib.h>
#include <pthread.h>
#include <stdint.h>

#include "block/node.h"

enum {
    LOG_WRITES_FLUSH = 1 << 0,
    LOG_WRITES_FUA = 1 << 1,
    LOG_WRITES_DISCARD = 1 << 2,
};

#define LOG_WRITES_SECTOR_MIN UINT32_C(512)
#define LOG_WRITES_SECTOR_MAX (UINT32_C(8) << 20)

struct log_writes {
    struct block_node *node; /* borrowed */
    uint32_t sector_size;
    uint64_t interval;    /* the superblock is written after so many entries */
    pthread_mutex_t lock; /* guards what follows; held across I/O to the log */
    uint64_t next;        /* where the next entry goes, in bytes */
    uint64_t entries;
    uint64_t recorded; /* of these, those that the superblock counts */
};

/* interval: at least 1. Nothing is read or written yet. */
void log_writes_init(struct log_writes *log, struct block_node *node, uint32_t sector_size,
                     uint64_t interval);
void log_writes_destroy(struct log_writes *log);

/* Begin a new log, in the place of any that is there. Returns a negative errno. */
int log_writes_begin(struct log_writes *log, GError **error);

/* Go on behind the entries of the log that is there. Returns a negative errno. */
int log_writes_resume(struct log_writes *log, GError **error);

/*
 * Append an entry, after all that were appended before. offset and bytes are on the disk and whole
 * sectors. data NULL: zeroes, or nothing for a discard. Returns a negative errno, and then the log
 * is as it was.
 */
int log_writes_add(struct log_writes *log, unsigned flags, uint64_t offset, uint64_t bytes,
                   const void *data);

/* All entries are on stable storage, and counted. Returns a negative errno. */
int log_writes_sync(struct log_writes *log);

#endif
