/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Comparing a disk, as it is at one moment, with a target: what a backup job that verifies
 * (struct backup_options) does with what it reads, instead of copying it.
 *
 * A difference is reported when both sides have been read twice and differed twice: the run in
 * which it was found is gone through again. It is found in sectors, so that is what ranges consist
 * of. With repair what differs is brought to the target, as a backup would, and compared once more.
 */
#ifndef LIVEBLK_JOBS_VERIFY_H
#define LIVEBLK_JOBS_VERIFY_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/cleanup.h"
#include "block/dirty-bitmap.h"
#include "jobs/copy-engine.h"
#include "jobs/job.h"
#include "jobs/mirror-watch.h"
#include "jobs/verify-report.h"

#define VERIFY_SECTOR             UINT64_C(512)
#define VERIFY_DEFAULT_MAX_RANGES 100
#define VERIFY_MAX_RANGES         10000

/* What a sample consists of; more where a bitmap that limits it is coarser. */
#define VERIFY_SAMPLE_CHUNK (UINT64_C(256) << 10)

struct verify_options {
    bool repair;
    unsigned sample_percent; /* 1 to 100; 0: no sample, but all */
    uint64_t sample_seed;    /* the same one chooses the same */
    unsigned max_ranges;     /* in the report, and events; 0: the default */
};

struct verify;

/*
 * For a job, of a source and a target of these lengths. The lengths of what repairs are the same.
 * NULL with the error set.
 */
struct verify *verify_new(struct job *job, const struct verify_options *options,
                          uint64_t source_length, uint64_t target_length, GError **error);
void verify_free(struct verify *verify);

/*
 * The target is that of a running mirror: what that has still to do is no difference, and what
 * differs is repaired by it. Takes the watch, which is ended before the verify is freed.
 */
void verify_watch(struct verify *verify, struct mirror_watch *watch);
struct mirror_watch *verify_get_watch(const struct verify *verify); /* borrowed, or NULL */

DEFINE_AUTO(verify, verify_free)

/* Whether the two sides still have the lengths that it was made for. */
bool verify_is_of(const struct verify *verify, uint64_t source_length, uint64_t target_length);

/* Whether only a sample is wanted. Then of what is set in the bitmap that much stays set. */
bool verify_is_sample(const struct verify *verify);
void verify_choose_sample(const struct verify *verify, struct dirty_bitmap *limit);

/* Where there is nothing to compare with any more: bytes, rounded up to a unit of the copy. */
uint64_t verify_end(const struct verify *verify);

/* See compare() and ignore() of struct copy_source_operations. */
int verify_compare(struct verify *verify, struct copy_engine *engine, struct block_node *target,
                   const void *data, void *spare, uint64_t offset, uint64_t bytes);
void verify_leave_out(struct verify *verify, uint64_t offset, uint64_t bytes);

/* Whether anything was written to the target, and not by its mirror. */
bool verify_has_repaired(const struct verify *verify);

/*
 * The end of it: 0 if all that was compared is equal, now if it was not before; else -EBADMSG with
 * a sentence that sums up the differences. target: its name.
 */
int verify_conclude(struct verify *verify, const char *target, GError **error);

/* The report up to now, which the caller clears. Any thread, any lock held. */
void verify_get_report(struct verify *verify, struct verify_report *report);

#endif
