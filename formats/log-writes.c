/* SPDX-License-Identifier: BSD-3-Clause */
#include "formats/log-writes.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "block/align.h"
#include "block/checked.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "block/little-endian.h"
#include "block/request.h"

#define MAGIC   UINT64_C(0x6a736677736872)
#define VERSION UINT64_C(1)

/* Fields of the superblock and of an entry. */
enum { AT_MAGIC = 0, AT_VERSION = 8, AT_ENTRIES = 16, AT_SECTOR_SIZE = 24 };
enum { AT_SECTOR = 0, AT_SECTORS = 8, AT_FLAGS = 16 };

void log_writes_init(struct log_writes *log, struct block_node *node, uint32_t sector_size,
                     uint64_t interval)
{
    *log = (struct log_writes){
        .node = node,
        .sector_size = sector_size,
        .interval = interval,
        .next = sector_size,
    };
    pthread_mutex_init(&log->lock, NULL);
}

void log_writes_destroy(struct log_writes *log)
{
    pthread_mutex_destroy(&log->lock);
}

/* ---- Sectors -------------------------------------------------------------------------------- */

/* A zeroed sector, or NULL; free it with free(). */
static uint8_t *new_sector(const struct log_writes *log)
{
    uint8_t *sector = block_node_alloc_buffer(log->node, log->sector_size);

    return sector ? memset(sector, 0, log->sector_size) : NULL;
}

/* Have room up to this offset. */
static int make_room(const struct log_writes *log, uint64_t end)
{
    return end <= block_node_length(log->node) ? 0 : block_node_grow(log->node, end);
}

static int write_superblock(struct log_writes *log, uint64_t entries)
{
    AUTO_FREE uint8_t *sector = new_sector(log);

    if (!sector) {
        return -ENOMEM;
    }
    put_le64(sector + AT_MAGIC, MAGIC);
    put_le64(sector + AT_VERSION, VERSION);
    put_le64(sector + AT_ENTRIES, entries);
    put_le32(sector + AT_SECTOR_SIZE, log->sector_size);
    int status = make_room(log, log->sector_size);
    if (status == 0) {
        status = block_node_pwrite(log->node, sector, 0, log->sector_size, 0);
    }
    if (status == 0) {
        log->recorded = entries;
    }
    return status;
}

/* Lock held. What the superblock counts must be there even if the host loses its power. */
static int count_entries(struct log_writes *log)
{
    if (log->recorded == log->entries) {
        return 0;
    }
    int status = block_node_flush(log->node);

    return status == 0 ? write_superblock(log, log->entries) : status;
}

/* ---- Appending ------------------------------------------------------------------------------ */

static int write_entry(const struct log_writes *log, unsigned flags, uint64_t offset,
                       uint64_t bytes)
{
    AUTO_FREE uint8_t *sector = new_sector(log);

    if (!sector) {
        return -ENOMEM;
    }
    put_le64(sector + AT_SECTOR, offset / log->sector_size);
    put_le64(sector + AT_SECTORS, bytes / log->sector_size);
    put_le64(sector + AT_FLAGS, flags);
    return block_node_pwrite(log->node, sector, log->next, log->sector_size, 0);
}

static int write_data(const struct log_writes *log, uint64_t bytes, const void *data)
{
    uint64_t at = log->next + log->sector_size;

    return data ? block_node_pwrite(log->node, data, at, bytes, 0)
                : block_node_write_zeroes(log->node, at, bytes, BLOCK_REQUEST_MAY_UNMAP);
}

int log_writes_add(struct log_writes *log, unsigned flags, uint64_t offset, uint64_t bytes,
                   const void *data)
{
    uint64_t data_bytes = flags & LOG_WRITES_DISCARD ? 0 : bytes, end;
    SCOPE_LOCK(&log->lock);

    if (!checked_add_u64(log->next + log->sector_size, data_bytes, &end) || end > INT64_MAX) {
        return -EFBIG;
    }
    int status = make_room(log, end);
    if (status == 0) {
        status = write_entry(log, flags, offset, bytes);
    }
    if (status == 0) {
        status = write_data(log, data_bytes, data);
    }
    if (status < 0) {
        return status;
    }
    log->next = end;
    log->entries++;
    if (log->entries - log->recorded >= log->interval) {
        /* The entry is there. Whoever needs it to be counted asks for that, and hears of it. */
        count_entries(log);
    }
    return 0;
}

int log_writes_sync(struct log_writes *log)
{
    pthread_mutex_lock(&log->lock);
    int status = count_entries(log);
    pthread_mutex_unlock(&log->lock);
    return status == 0 ? block_node_flush(log->node) : status;
}

/* ---- Beginning ------------------------------------------------------------------------------ */

int log_writes_begin(struct log_writes *log, GError **error)
{
    log->next = log->sector_size;
    log->entries = 0;
    int status = write_superblock(log, 0);

    return status < 0 ? block_error_errno(error, -status, "Could not begin the log in node '%s'",
                                          log->node->name)
                      : 0;
}

static int read_sector(struct log_writes *log, uint64_t offset, uint8_t *sector, GError **error)
{
    if (!range_within(offset, log->sector_size, block_node_length(log->node))) {
        return block_error(error, EINVAL,
                           "The log in node '%s' is damaged: it ends at offset %" PRIu64
                           ", where it should go on",
                           log->node->name, block_node_length(log->node));
    }
    int status = block_node_pread(log->node, sector, offset, log->sector_size, 0);
    return status < 0 ? block_error_errno(error, -status, "Could not read the log in node '%s'",
                                          log->node->name)
                      : 0;
}

static int check_superblock(const struct log_writes *log, const uint8_t *sector, GError **error)
{
    if (get_le64(sector + AT_MAGIC) != MAGIC) {
        return block_error(error, EINVAL,
                           "There is no log of writes in node '%s' to append to; without "
                           "log-append a new one is begun",
                           log->node->name);
    }
    if (get_le64(sector + AT_VERSION) != VERSION) {
        return block_error(error, EINVAL,
                           "The log in node '%s' is of version %" PRIu64
                           ", and only version 1 is known",
                           log->node->name, get_le64(sector + AT_VERSION));
    }
    if (get_le32(sector + AT_SECTOR_SIZE) != log->sector_size) {
        return block_error(error, EINVAL,
                           "The log in node '%s' has sectors of %" PRIu32 " bytes: give "
                           "log-sector-size=%" PRIu32 " to append to it",
                           log->node->name, get_le32(sector + AT_SECTOR_SIZE),
                           get_le32(sector + AT_SECTOR_SIZE));
    }
    return 0;
}

/* The next entry's place behind one that is there. False if that is nowhere. */
static bool skip_entry(const struct log_writes *log, const uint8_t *entry, uint64_t *next)
{
    uint64_t sectors = get_le64(entry + AT_SECTORS), data;

    if (get_le64(entry + AT_FLAGS) & LOG_WRITES_DISCARD) {
        sectors = 0;
    }
    return checked_mul_u64(sectors, log->sector_size, &data) &&
           checked_add_u64(*next + log->sector_size, data, next) && *next <= INT64_MAX;
}

int log_writes_resume(struct log_writes *log, GError **error)
{
    AUTO_FREE uint8_t *sector = new_sector(log);
    uint64_t next = log->sector_size;
    int status = sector ? 0 : block_error(error, ENOMEM, "Not enough memory for the log");

    if (status == 0 && block_node_length(log->node)) {
        status = read_sector(log, 0, sector, error);
    }
    if (status == 0) {
        status = check_superblock(log, sector, error);
    }
    uint64_t entries = status == 0 ? get_le64(sector + AT_ENTRIES) : 0;
    for (uint64_t i = 0; status == 0 && i < entries; i++) {
        status = read_sector(log, next, sector, error);
        if (status == 0 && !skip_entry(log, sector, &next)) {
            status = block_error(error, EINVAL,
                                 "The log in node '%s' is damaged: entry %" PRIu64
                                 " goes beyond what a file can have",
                                 log->node->name, i);
        }
    }
    if (status == 0) {
        log->next = next;
        log->entries = entries;
        log->recorded = entries;
    }
    return status;
}
