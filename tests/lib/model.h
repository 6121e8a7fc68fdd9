/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A model of a disk: what each sector may hold, given the requests that were made.
 *
 * Requests may overlap and run at the same time. Their order is then undefined, and the model
 * allows every outcome that some order explains and no other: a request that has not ended may
 * have happened or not; one that ended overwrote everything that had ended before it began.
 *
 * A snapshot is a model of its own that stands still: what a backup or a view of that instant may
 * hold. A request in flight at the instant may be in it or not, but wholly, and the same at every
 * look: a comparison that finds one of several possible contents rules the others out.
 *
 * All functions may be called from many threads at once. Sequence numbers count from 1; 0 is the
 * disk as it was made, all zeroes. All ranges are in bytes, aligned to the sector size.
 */
#ifndef LIVEBLK_TESTS_LIB_MODEL_H
#define LIVEBLK_TESTS_LIB_MODEL_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/cleanup.h"
#include "tests/lib/pattern.h"

struct model;
struct model_request;
struct model_read;

enum model_operation {
    MODEL_WRITE,  /* sectors of tests/lib/pattern.h */
    MODEL_ZEROES, /* zeroes afterwards: write-zeroes, or a trim that is known to zero */
    MODEL_TRIM,   /* each sector reads as zeroes or as before afterwards */
};

/* Sectors by what was wrong with them. */
struct model_report {
    uint64_t sectors; /* looked at */
    uint64_t wrong;
    uint64_t verdicts[PATTERN_VERDICTS];
    uint64_t split;   /* requests found partly in a snapshot and partly not */
    GString *details; /* a line for each of the first few; never NULL after a comparison */
};

/* Read bytes at offset of the disk compared; 0 or a negative errno. */
typedef int (*model_reader)(void *data, void *buffer, uint64_t offset, uint64_t bytes);

/* A disk of zeroes. sector_size is a multiple of 512, length one of sector_size. */
struct model *model_new(uint64_t length, size_t sector_size);
void model_free(struct model *model);
DEFINE_AUTO(model, model_free)

uint64_t model_length(const struct model *model);
size_t model_sector_size(const struct model *model);

/*
 * Announce a request just before it is made. Every request announced must be ended; the pointer
 * is invalid after that.
 */
struct model_request *model_begin(struct model *model, enum model_operation operation,
                                  uint32_t writer, uint64_t offset, uint64_t bytes);

/* Fill a write's buffer (of the request's length, aligned to 8 bytes) with its sectors. */
void model_fill(const struct model *model, const struct model_request *request, void *buffer);

/*
 * The request was answered; error is 0 or a negative errno. After an error each sector may hold
 * the new content or what it held before.
 */
void model_end(struct model *model, struct model_request *request, int error);

/*
 * Announce a read just before it is made, and judge what it returned. Right in the middle of
 * writes. The judging frees the read; bytes that are not to be judged (the read failed): give
 * NULL for buffer. Adds to *report.
 */
struct model_read *model_read_begin(struct model *model, uint64_t offset, uint64_t bytes);
void model_read_end(struct model *model, struct model_read *read, const void *buffer,
                    struct model_report *report);

/*
 * The disk at this instant. Take it at a moment at which the backup is known to take its own:
 * with requests in flight that may or may not be in both.
 */
struct model *model_snapshot(struct model *model);

/*
 * Compare a whole disk with the model. Returns true if it was read without error and every
 * sector is right; *report then counts only. Free the report with model_report_clear.
 */
bool model_compare(struct model *model, model_reader reader, void *data,
                   struct model_report *report);

/* As model_compare, with a file that must have exactly the model's length. */
bool model_compare_file(struct model *model, const char *path, struct model_report *report);

void model_report_clear(struct model_report *report);

#endif
