/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A log of the writes since the last flush, over what the disk held before them: from the two it
 * follows what the disk holds if any subset of the writes is lost, overlapping ones included.
 *
 * The old contents are kept in whole blocks of WRITE_LOG_BLOCK bytes. The caller keeps writes
 * apart that share a block, so that the order of the log is the order of the disk, and keeps
 * other threads away.
 */
#ifndef LIVEBLK_FORMATS_WRITE_LOG_H
#define LIVEBLK_FORMATS_WRITE_LOG_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/queue.h"

#define WRITE_LOG_BLOCK UINT64_C(4096)

struct write_log_entry {
    uint64_t number;
    uint64_t offset;
    uint64_t bytes;
    uint8_t *data; /* NULL: zeroes */
    bool is_discard;
    uint64_t done;   /* when it reached the disk below, as a count of such; 0: has not yet */
    bool is_durable; /* answered by a flush after it, or by itself with forced unit access */
    TAILQ_ENTRY(write_log_entry) entry;
};

struct write_log {
    TAILQ_HEAD(, write_log_entry) entries; /* oldest first */
    GHashTable *blocks;                    /* block number to what it held before the entries */
    uint64_t bytes;                        /* of memory, in all */
    uint64_t done;                         /* entries that ever were */
};

void write_log_init(struct write_log *log);
void write_log_destroy(struct write_log *log);

/* What keeping a write costs at least: old contents that are not zeroes come to it. */
uint64_t write_log_cost(const struct write_log *log, uint64_t offset, uint64_t bytes,
                        bool has_data);

/* True if the block's old contents are held already. */
bool write_log_has_block(const struct write_log *log, uint64_t block);

/*
 * Hold a block's old contents (zero-padded at the disk's end), which are not held yet. Pin it
 * before the next call that may forget blocks.
 */
void write_log_add_block(struct write_log *log, uint64_t block, const uint8_t *contents);

/*
 * Append a write, all of whose blocks the caller has pinned; the entry takes the pins over. data
 * is copied; NULL: zeroes.
 */
struct write_log_entry *write_log_append(struct write_log *log, uint64_t number, uint64_t offset,
                                         uint64_t bytes, const void *data);

/* Take a write out that did not happen. */
void write_log_remove(struct write_log *log, struct write_log_entry *entry);

/* Replace what a write is known to have written. Takes data, of the entry's length. */
void write_log_set_data(struct write_log *log, struct write_log_entry *entry, uint8_t *data);

/* A write has reached the disk below; is_durable: and will stay. */
void write_log_set_done(struct write_log *log, struct write_log_entry *entry, bool is_durable);

/* A flush ended that began when log->done had this value. */
void write_log_set_flushed(struct write_log *log, uint64_t done);

/* Need the held blocks of a range from now on, and no more: one that nobody needs is forgotten. */
void write_log_pin(struct write_log *log, uint64_t offset, uint64_t bytes);
void write_log_unpin(struct write_log *log, uint64_t offset, uint64_t bytes);

/* Which part of a write survives: called for each piece of `granule` bytes on the disk. */
typedef bool write_log_survives(void *data, const struct write_log_entry *entry, uint64_t offset);

/*
 * Make the old contents what the disk holds if only those pieces survive; granule 0: entries
 * survive whole. The log is of no further use than write_log_foreach_block afterwards.
 */
void write_log_replay(struct write_log *log, uint64_t granule, write_log_survives *survives,
                      void *data);

/* Numbers of the blocks held, ascending; and a block's contents, NULL: zeroes. */
GArray *write_log_block_numbers(const struct write_log *log);
const uint8_t *write_log_block(const struct write_log *log, uint64_t block);

#endif
