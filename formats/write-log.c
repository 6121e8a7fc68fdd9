/* SPDX-License-Identifier: BSD-3-Clause */
#include "formats/write-log.h"

#include <string.h>

#include "block/align.h"
#include "block/zero.h"

/* What the hash table needs for a block, about. */
#define BLOCK_OVERHEAD UINT64_C(64)

struct held_block {
    uint8_t *contents; /* NULL: zeroes */
    unsigned users;    /* entries that touch it */
};

static void free_block(void *data)
{
    struct held_block *block = data;

    g_free(block->contents);
    g_free(block);
}

void write_log_init(struct write_log *log)
{
    TAILQ_INIT(&log->entries);
    log->blocks = g_hash_table_new_full(g_int64_hash, g_int64_equal, g_free, free_block);
    log->bytes = 0;
    log->done = 0;
}

static void free_entry(struct write_log_entry *entry)
{
    g_free(entry->data);
    g_free(entry);
}

void write_log_destroy(struct write_log *log)
{
    struct write_log_entry *entry, *next;

    TAILQ_FOREACH_SAFE (entry, &log->entries, entry, next) {
        free_entry(entry);
    }
    g_hash_table_unref(log->blocks);
}

static struct held_block *find_block(const struct write_log *log, uint64_t number)
{
    return g_hash_table_lookup(log->blocks, &number);
}

bool write_log_has_block(const struct write_log *log, uint64_t block)
{
    return find_block(log, block) != NULL;
}

static uint64_t first_block(uint64_t offset)
{
    return offset / WRITE_LOG_BLOCK;
}

static uint64_t end_block(uint64_t offset, uint64_t bytes)
{
    return div_round_up(offset + bytes, WRITE_LOG_BLOCK);
}

uint64_t write_log_cost(const struct write_log *log, uint64_t offset, uint64_t bytes, bool has_data)
{
    uint64_t cost = sizeof(struct write_log_entry) + (has_data ? bytes : 0);

    for (uint64_t block = first_block(offset); block < end_block(offset, bytes); block++) {
        cost += write_log_has_block(log, block) ? 0 : BLOCK_OVERHEAD;
    }
    return cost;
}

void write_log_add_block(struct write_log *log, uint64_t block, const uint8_t *contents)
{
    struct held_block *held = g_new0(struct held_block, 1);
    uint64_t *key = g_new(uint64_t, 1);

    *key = block;
    log->bytes += BLOCK_OVERHEAD;
    if (!buffer_is_zero(contents, WRITE_LOG_BLOCK)) {
        held->contents = g_memdup2(contents, WRITE_LOG_BLOCK);
        log->bytes += WRITE_LOG_BLOCK;
    }
    g_hash_table_insert(log->blocks, key, held);
}

struct write_log_entry *write_log_append(struct write_log *log, uint64_t number, uint64_t offset,
                                         uint64_t bytes, const void *data)
{
    struct write_log_entry *entry = g_new0(struct write_log_entry, 1);

    entry->number = number;
    entry->offset = offset;
    entry->bytes = bytes;
    entry->data = data ? g_memdup2(data, bytes) : NULL;
    log->bytes += sizeof(*entry) + (data ? bytes : 0);
    TAILQ_INSERT_TAIL(&log->entries, entry, entry);
    return entry;
}

void write_log_pin(struct write_log *log, uint64_t offset, uint64_t bytes)
{
    for (uint64_t block = first_block(offset); block < end_block(offset, bytes); block++) {
        find_block(log, block)->users++;
    }
}

static void drop_block_user(struct write_log *log, uint64_t number)
{
    struct held_block *block = find_block(log, number);

    if (--block->users == 0) {
        log->bytes -= BLOCK_OVERHEAD + (block->contents ? WRITE_LOG_BLOCK : 0);
        g_hash_table_remove(log->blocks, &number);
    }
}

void write_log_unpin(struct write_log *log, uint64_t offset, uint64_t bytes)
{
    for (uint64_t block = first_block(offset); block < end_block(offset, bytes); block++) {
        drop_block_user(log, block);
    }
}

void write_log_remove(struct write_log *log, struct write_log_entry *entry)
{
    write_log_unpin(log, entry->offset, entry->bytes);
    TAILQ_REMOVE(&log->entries, entry, entry);
    log->bytes -= sizeof(*entry) + (entry->data ? entry->bytes : 0);
    free_entry(entry);
}

void write_log_set_data(struct write_log *log, struct write_log_entry *entry, uint8_t *data)
{
    log->bytes += entry->data ? 0 : entry->bytes;
    g_free(entry->data);
    entry->data = data;
}

/* Bytes [start, end) of the disk, inside one block and one entry. */
static void apply_to_block(struct write_log *log, const struct write_log_entry *entry,
                           uint64_t start, uint64_t end)
{
    struct held_block *block = find_block(log, start / WRITE_LOG_BLOCK);
    uint64_t at = start % WRITE_LOG_BLOCK;

    if (!block->contents) {
        if (!entry->data) {
            return;
        }
        block->contents = g_malloc0(WRITE_LOG_BLOCK);
        log->bytes += WRITE_LOG_BLOCK;
    }
    if (entry->data) {
        memcpy(block->contents + at, entry->data + (start - entry->offset), end - start);
    } else {
        memset(block->contents + at, 0, end - start);
    }
}

static void apply(struct write_log *log, const struct write_log_entry *entry, uint64_t start,
                  uint64_t end)
{
    while (start < end) {
        uint64_t next = MIN_OF(align_down(start, WRITE_LOG_BLOCK) + WRITE_LOG_BLOCK, end);

        apply_to_block(log, entry, start, next);
        start = next;
    }
}

/* The oldest entries, as far as they are durable, become old contents. */
static void fold(struct write_log *log)
{
    struct write_log_entry *entry;

    while ((entry = TAILQ_FIRST(&log->entries)) && entry->is_durable) {
        apply(log, entry, entry->offset, entry->offset + entry->bytes);
        write_log_remove(log, entry);
    }
}

void write_log_set_done(struct write_log *log, struct write_log_entry *entry, bool is_durable)
{
    entry->done = ++log->done;
    entry->is_durable = is_durable;
    fold(log);
}

void write_log_set_flushed(struct write_log *log, uint64_t done)
{
    struct write_log_entry *entry;

    TAILQ_FOREACH (entry, &log->entries, entry) {
        if (entry->done && entry->done <= done) {
            entry->is_durable = true;
        }
    }
    fold(log);
}

void write_log_replay(struct write_log *log, uint64_t granule, write_log_survives *survives,
                      void *data)
{
    struct write_log_entry *entry;

    TAILQ_FOREACH (entry, &log->entries, entry) {
        uint64_t end = entry->offset + entry->bytes;

        for (uint64_t start = entry->offset, next; start < end; start = next) {
            next = granule ? MIN_OF(align_down(start, granule) + granule, end) : end;
            if (entry->is_durable || survives(data, entry, start)) {
                apply(log, entry, start, next);
            }
        }
    }
}

static int compare_numbers(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return x < y ? -1 : x > y;
}

GArray *write_log_block_numbers(const struct write_log *log)
{
    GArray *numbers = g_array_new(FALSE, FALSE, sizeof(uint64_t));
    GHashTableIter iter;
    void *key;

    g_hash_table_iter_init(&iter, log->blocks);
    while (g_hash_table_iter_next(&iter, &key, NULL)) {
        g_array_append_vals(numbers, key, 1);
    }
    g_array_sort(numbers, compare_numbers);
    return numbers;
}

const uint8_t *write_log_block(const struct write_log *log, uint64_t block)
{
    return find_block(log, block)->contents;
}
