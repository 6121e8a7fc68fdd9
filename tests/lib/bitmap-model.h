/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Models of dirty bitmaps: what a bitmap must hold and may hold, as far as somebody can know who
 * sees requests only before they begin and after they were answered.
 *
 * A write log notes these two moments of each write of a disk. A model follows one bitmap of the
 * disk: at a drained moment it is brought up to date from the log (bitmap_model_update), and there
 * it is cleared, merged, enabled and so on, as the bitmap is. A write that is noted as begun after
 * one such moment and as ended before the next was recorded between the two: its granules must
 * be set. One that has a note between them, or none yet, may have been. If no write is in flight
 * at these moments, both are the same.
 *
 * The log is for many threads; models are for one at a time.
 */
#ifndef LIVEBLK_TESTS_LIB_BITMAP_MODEL_H
#define LIVEBLK_TESTS_LIB_BITMAP_MODEL_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

#include "block/cleanup.h"
#include "block/dirty-bitmap.h"

struct write_log;
struct bitmap_model;

struct write_log *write_log_new(uint64_t length);
void write_log_free(struct write_log *log);

/* Just before a request that changes a range; the result is for write_log_end. */
uint64_t write_log_begin(struct write_log *log, uint64_t offset, uint64_t bytes);
/* When it was answered, with an error or not. */
void write_log_end(struct write_log *log, uint64_t begun, uint64_t offset, uint64_t bytes);

/* A clear bitmap of the log's disk, from this moment on. */
struct bitmap_model *bitmap_model_new(struct write_log *log, uint64_t granularity, bool enabled);
struct bitmap_model *bitmap_model_copy(const struct bitmap_model *model);
void bitmap_model_free(struct bitmap_model *model);
DEFINE_AUTO(bitmap_model, bitmap_model_free)

/*
 * Take in what the log says; in a drained moment, before what is done to the bitmap there. At any
 * other moment it does no harm.
 */
void bitmap_model_update(struct bitmap_model *model);

/* What is done to the bitmap in the same moment. */
void bitmap_model_clear(struct bitmap_model *model);
void bitmap_model_set_enabled(struct bitmap_model *model, bool enabled);
void bitmap_model_merge(struct bitmap_model *target, const struct bitmap_model *source);

/* Fails the test unless the bitmap holds what it must and no more than it may. At rest. */
void bitmap_model_check(const struct bitmap_model *model, const struct dirty_bitmap *bitmap);

/* Granules of which it is not known whether they are set. */
uint64_t bitmap_model_doubtful(const struct bitmap_model *model);

#endif
