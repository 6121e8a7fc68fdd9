/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What a comparison has found: ranges that differ, and how. A bounded number of them is listed, the
 * rest is counted. Its owner has a lock for it.
 *
 * Workers find the parts of a range in any order, so more is kept than is to be listed: what is
 * listed are the first ranges of the disk, each whole.
 */
#ifndef LIVEBLK_JOBS_VERIFY_REPORT_H
#define LIVEBLK_JOBS_VERIFY_REPORT_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

enum verify_kind {
    VERIFY_DATA,        /* both sides have data, not the same */
    VERIFY_SOURCE_ZERO, /* the source reads as zeroes, the target does not */
    VERIFY_TARGET_ZERO, /* the other way round */
    VERIFY_LENGTH,      /* one side ends where this begins */
    VERIFY_UNREADABLE,  /* one side could not be read, and that was to be ignored */
    VERIFY_KINDS,
};
extern const char *const verify_kind_names[]; /* "data", "source-zero", ...; NULL-terminated */

struct verify_range {
    uint64_t offset, bytes;
    enum verify_kind kind;
};

struct verify_report {
    GArray *ranges;      /* struct verify_range, by offset; neighbours of one kind are one */
    unsigned max_ranges; /* of a copy */
    uint64_t bytes[VERIFY_KINDS]; /* in all */
    uint64_t omitted_bytes;       /* of these, in no range of the list */
    uint64_t repaired_bytes;      /* brought to the target, in units of the copy */
    unsigned sample_percent;      /* 0: all was to be compared */
    uint64_t sample_seed;
};

void verify_report_init(struct verify_report *report, unsigned max_ranges);
void verify_report_clear(struct verify_report *report);
/* What is to be told, into one that is not initialised, which the caller clears. */
void verify_report_copy(struct verify_report *copy, const struct verify_report *report);

/* A range that overlaps none that was added. */
void verify_report_add(struct verify_report *report, enum verify_kind kind, uint64_t offset,
                       uint64_t bytes);

/* All of what the two sides do not have in common, or what nobody knows. Bytes. */
uint64_t verify_report_total(const struct verify_report *report);

#endif
