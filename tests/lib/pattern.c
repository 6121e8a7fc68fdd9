/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/pattern.h"

#include <glib.h>
#include <stdbool.h>
#include <string.h>
#include <zlib.h>

#include "block/align.h"

/* The sector as it lies on the disk; all fields are little-endian. */
struct disk_sector {
    char magic[8];
    uint64_t address;
    uint64_t sequence;
    uint32_t writer;
    uint32_t crc;
    uint64_t time_ns;
    uint64_t fill[];
};

G_STATIC_ASSERT(sizeof(struct disk_sector) == 40);

static const char pattern_magic[8] = "LIVEBLK1";

/* Any two writes of a place, and any two places of a write, differ in every word. */
static uint64_t fill_word(const struct pattern *pattern)
{
    return pattern->address * UINT64_C(0x9e3779b97f4a7c15) +
           pattern->sequence * UINT64_C(0xd1342543de82ef95) + pattern->writer + 1;
}

static uint32_t sector_crc(const struct disk_sector *sector, size_t sector_size)
{
    const size_t after_crc = offsetof(struct disk_sector, time_ns);
    uLong crc = crc32(0, (const Bytef *)sector, offsetof(struct disk_sector, crc));

    return crc32(crc, (const Bytef *)sector + after_crc, sector_size - after_crc);
}

static void check_sector_size(size_t sector_size)
{
    g_assert_cmpuint(sector_size, >=, PATTERN_SECTOR_MIN);
    g_assert_cmpuint(sector_size % PATTERN_SECTOR_MIN, ==, 0);
}

static void fill_sector(struct disk_sector *sector, size_t sector_size,
                        const struct pattern *pattern)
{
    const size_t words = (sector_size - sizeof(*sector)) / sizeof(uint64_t);
    const uint64_t word = GUINT64_TO_LE(fill_word(pattern));

    memcpy(sector->magic, pattern_magic, sizeof(pattern_magic));
    sector->address = GUINT64_TO_LE(pattern->address);
    sector->sequence = GUINT64_TO_LE(pattern->sequence);
    sector->writer = GUINT32_TO_LE(pattern->writer);
    sector->time_ns = GUINT64_TO_LE(pattern->time_ns);
    for (size_t i = 0; i < words; i++) {
        sector->fill[i] = word;
    }
    sector->crc = GUINT32_TO_LE(sector_crc(sector, sector_size));
}

void pattern_fill(void *buffer, size_t bytes, size_t sector_size, const struct pattern *first)
{
    struct pattern pattern = *first;

    check_sector_size(sector_size);
    g_assert_cmpuint(bytes % sector_size, ==, 0);
    for (size_t done = 0; done < bytes; done += sector_size) {
        fill_sector((struct disk_sector *)((char *)buffer + done), sector_size, &pattern);
        pattern.address += sector_size;
    }
}

static bool all_zero(const char *bytes, size_t count)
{
    return bytes[0] == 0 && !memcmp(bytes, bytes + 1, count - 1);
}

enum pattern_identity pattern_identify(const void *sector, size_t sector_size,
                                       struct pattern *found)
{
    const struct disk_sector *disk = sector;

    check_sector_size(sector_size);
    if (memcmp(disk->magic, pattern_magic, sizeof(pattern_magic))) {
        return all_zero(sector, sector_size) ? PATTERN_ZEROES : PATTERN_FOREIGN;
    }
    if (found) {
        *found = (struct pattern){
            .address = GUINT64_FROM_LE(disk->address),
            .sequence = GUINT64_FROM_LE(disk->sequence),
            .time_ns = GUINT64_FROM_LE(disk->time_ns),
            .writer = GUINT32_FROM_LE(disk->writer),
        };
    }
    bool intact = GUINT32_FROM_LE(disk->crc) == sector_crc(disk, sector_size);
    return intact ? PATTERN_WHOLE : PATTERN_TORN;
}

/* A whole sector in its own place: is it one of those that may be there, older or newer? */
static enum pattern_verdict check_sequence(uint64_t sequence, const struct pattern_allowed *allowed)
{
    uint64_t newest = allowed->zeroes ? allowed->zero_sequence : 0;

    for (size_t i = 0; i < allowed->count; i++) {
        if (allowed->sequences[i] == sequence) {
            return PATTERN_GOOD;
        }
        newest = MAX_OF(newest, allowed->sequences[i]);
    }
    return sequence > newest ? PATTERN_IS_TOO_NEW : PATTERN_IS_STALE;
}

enum pattern_verdict pattern_check(const void *sector, size_t sector_size, uint64_t address,
                                   const struct pattern_allowed *allowed, struct pattern *found)
{
    struct pattern seen = {0};
    enum pattern_identity identity = pattern_identify(sector, sector_size, &seen);

    if (found) {
        *found = seen;
    }
    switch (identity) {
    case PATTERN_ZEROES:
        return allowed->zeroes ? PATTERN_GOOD : PATTERN_IS_LOST;
    case PATTERN_TORN:
        return PATTERN_IS_TORN;
    case PATTERN_FOREIGN:
        return PATTERN_IS_FOREIGN;
    case PATTERN_WHOLE:
        break;
    }
    return seen.address == address ? check_sequence(seen.sequence, allowed) : PATTERN_IS_MISPLACED;
}

const char *pattern_verdict_name(enum pattern_verdict verdict)
{
    static const char *const names[PATTERN_VERDICTS] = {
        [PATTERN_GOOD] = "good",
        [PATTERN_IS_TORN] = "torn",
        [PATTERN_IS_STALE] = "stale",
        [PATTERN_IS_TOO_NEW] = "too new",
        [PATTERN_IS_MISPLACED] = "misplaced",
        [PATTERN_IS_LOST] = "lost",
        [PATTERN_IS_FOREIGN] = "foreign",
    };

    return verdict < PATTERN_VERDICTS ? names[verdict] : "unknown";
}
