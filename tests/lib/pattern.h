/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Sectors that describe themselves, so that a wrong one says what went wrong with it.
 *
 * Each sector carries a magic, its own address on the disk, the sequence number of the write that
 * put it there, who wrote it and when, and a CRC-32 over all of it. The rest is filled with bytes
 * that follow from those. tests/lib/liveblk_test.py writes and reads the same format.
 *
 * Little-endian: 0 magic "LIVEBLK1", 8 address, 16 sequence, 24 writer (32 bits), 28 CRC-32 of
 * the other bytes, 32 time, 40 fill: one 64-bit word repeated.
 */
#ifndef LIVEBLK_TESTS_LIB_PATTERN_H
#define LIVEBLK_TESTS_LIB_PATTERN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PATTERN_SECTOR_MIN 512

struct pattern {
    uint64_t address; /* in bytes */
    uint64_t sequence;
    uint64_t time_ns; /* of CLOCK_MONOTONIC, or whatever the writer likes */
    uint32_t writer;
};

/* What a sector is, seen by itself. */
enum pattern_identity {
    PATTERN_WHOLE,   /* one write's sector, complete */
    PATTERN_TORN,    /* carries our magic but not its own CRC: a mixture of several writes */
    PATTERN_ZEROES,  /* nothing but zero bytes */
    PATTERN_FOREIGN, /* none of ours */
};

/* What a sector is, compared with what should be there. */
enum pattern_verdict {
    PATTERN_GOOD,
    PATTERN_IS_TORN,
    PATTERN_IS_STALE,     /* the right place, but older than what should be there */
    PATTERN_IS_TOO_NEW,   /* the right place, but newer than what should be there */
    PATTERN_IS_MISPLACED, /* a whole sector that belongs to another address */
    PATTERN_IS_LOST,      /* zeroes where there should be data */
    PATTERN_IS_FOREIGN,   /* none of ours */
    PATTERN_VERDICTS,
};

/* What should be there: one of several writes, or zeroes, or either. */
struct pattern_allowed {
    const uint64_t *sequences;
    size_t count;
    uint64_t zero_sequence; /* of the newest write of zeroes that may be there; 0 if unknown */
    bool zeroes;            /* zeroes are allowed */
};

/*
 * Fill bytes (a multiple of sector_size) with sectors of one write: first describes the first
 * sector, the addresses of the others follow. sector_size is a multiple of 512; buffers are
 * aligned to 8 bytes, here and below.
 */
void pattern_fill(void *buffer, size_t bytes, size_t sector_size, const struct pattern *first);

/* Say what one sector is; fills *found (may be NULL) if it is PATTERN_WHOLE or PATTERN_TORN. */
enum pattern_identity pattern_identify(const void *sector, size_t sector_size,
                                       struct pattern *found);

/* Judge one sector read from address; fills *found as pattern_identify does. */
enum pattern_verdict pattern_check(const void *sector, size_t sector_size, uint64_t address,
                                   const struct pattern_allowed *allowed, struct pattern *found);

/* One word: "good", "torn", "stale", ... */
const char *pattern_verdict_name(enum pattern_verdict verdict);

#endif
