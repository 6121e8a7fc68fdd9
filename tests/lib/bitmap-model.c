/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/bitmap-model.h"

#include <stdatomic.h>

#include "block/align.h"

#define UNIT DIRTY_BITMAP_GRANULARITY_MIN

/* The notes on one unit of the disk; times are numbers from the one counter. */
struct unit {
    _Atomic unsigned in_flight;
    _Atomic uint64_t last_end;
    _Atomic uint64_t last_begin; /* the latest begin among the writes that have ended */
};

struct write_log {
    uint64_t length;
    uint64_t count;
    struct unit units[];
};

struct bitmap_model {
    struct write_log *log;
    uint64_t granularity;
    uint64_t granules;
    bool enabled;
    uint64_t since; /* the moment up to which the log was taken in */
    bool *must;
    bool *may;
};

static _Atomic uint64_t counter;

static uint64_t now(void)
{
    return atomic_fetch_add(&counter, 1) + 1;
}

struct write_log *write_log_new(uint64_t length)
{
    uint64_t count = div_round_up(length, UNIT);
    struct write_log *log = g_malloc0(sizeof(*log) + count * sizeof(struct unit));

    log->length = length;
    log->count = count;
    return log;
}

void write_log_free(struct write_log *log)
{
    g_free(log);
}

static void raise_to(_Atomic uint64_t *number, uint64_t value)
{
    uint64_t before = atomic_load(number);

    while (before < value && !atomic_compare_exchange_weak(number, &before, value)) {
    }
}

uint64_t write_log_begin(struct write_log *log, uint64_t offset, uint64_t bytes)
{
    uint64_t begun = now();

    for (uint64_t i = offset / UNIT; i <= (offset + bytes - 1) / UNIT; i++) {
        atomic_fetch_add(&log->units[i].in_flight, 1);
    }
    return begun;
}

void write_log_end(struct write_log *log, uint64_t begun, uint64_t offset, uint64_t bytes)
{
    uint64_t ended = now();

    for (uint64_t i = offset / UNIT; i <= (offset + bytes - 1) / UNIT; i++) {
        raise_to(&log->units[i].last_begin, begun);
        raise_to(&log->units[i].last_end, ended);
        atomic_fetch_sub(&log->units[i].in_flight, 1);
    }
}

struct bitmap_model *bitmap_model_new(struct write_log *log, uint64_t granularity, bool enabled)
{
    struct bitmap_model *model = g_new0(struct bitmap_model, 1);

    model->log = log;
    model->granularity = granularity;
    model->granules = div_round_up(log->length, granularity);
    model->enabled = enabled;
    model->since = now();
    model->must = g_new0(bool, model->granules);
    model->may = g_new0(bool, model->granules);
    return model;
}

struct bitmap_model *bitmap_model_copy(const struct bitmap_model *model)
{
    struct bitmap_model *copy = g_memdup2(model, sizeof(*model));

    copy->must = g_memdup2(model->must, model->granules * sizeof(bool));
    copy->may = g_memdup2(model->may, model->granules * sizeof(bool));
    return copy;
}

void bitmap_model_free(struct bitmap_model *model)
{
    if (model) {
        g_free(model->must);
        g_free(model->may);
        g_free(model);
    }
}

static void take_in(struct bitmap_model *model, uint64_t number)
{
    struct unit *unit = &model->log->units[number];
    uint64_t granule = number * UNIT / model->granularity;

    /* In this order: a write that ends just now is seen as in flight, or its end is. */
    if (atomic_load(&unit->in_flight) || atomic_load(&unit->last_end) > model->since) {
        model->may[granule] = true;
    }
    if (atomic_load(&unit->last_begin) > model->since) {
        model->must[granule] = true;
    }
}

void bitmap_model_update(struct bitmap_model *model)
{
    uint64_t moment =
        now(); /* before looking: what is noted meanwhile is taken in next time, too */

    if (model->enabled) {
        for (uint64_t i = 0; i < model->log->count; i++) {
            take_in(model, i);
        }
    }
    model->since = moment;
}

void bitmap_model_clear(struct bitmap_model *model)
{
    for (uint64_t i = 0; i < model->granules; i++) {
        model->must[i] = model->may[i] = false;
    }
}

void bitmap_model_set_enabled(struct bitmap_model *model, bool enabled)
{
    model->enabled = enabled;
}

/* Set all granules of a set that touch a granule of another. */
static void merge_granule(struct bitmap_model *target, bool *set, const struct bitmap_model *source,
                          uint64_t granule)
{
    uint64_t start = granule * source->granularity;
    uint64_t end = MIN_OF(start + source->granularity, source->log->length);

    for (uint64_t i = start / target->granularity; i <= (end - 1) / target->granularity; i++) {
        set[i] = true;
    }
}

void bitmap_model_merge(struct bitmap_model *target, const struct bitmap_model *source)
{
    for (uint64_t i = 0; i < source->granules; i++) {
        if (source->must[i]) {
            merge_granule(target, target->must, source, i);
        }
        if (source->may[i]) {
            merge_granule(target, target->may, source, i);
        }
    }
}

void bitmap_model_check(const struct bitmap_model *model, const struct dirty_bitmap *bitmap)
{
    uint64_t count = 0;

    g_assert_cmpuint(dirty_bitmap_granularity(bitmap), ==, model->granularity);
    g_assert_cmpuint(dirty_bitmap_length(bitmap), ==, model->log->length);
    g_assert_cmpint(dirty_bitmap_enabled(bitmap), ==, model->enabled);
    for (uint64_t i = 0; i < model->granules; i++) {
        uint64_t offset = i * model->granularity;
        bool set = dirty_bitmap_get(bitmap, offset);

        count += set ? MIN_OF(model->granularity, model->log->length - offset) : 0;
        if (model->must[i] && !set) {
            g_error("bitmap '%s' misses a change at %#lx", dirty_bitmap_name(bitmap),
                    (unsigned long)offset);
        }
        if (set && !model->may[i]) {
            g_error("bitmap '%s' has a change at %#lx that never was", dirty_bitmap_name(bitmap),
                    (unsigned long)offset);
        }
    }
    g_assert_cmpuint(dirty_bitmap_count(bitmap), ==, count);
}

uint64_t bitmap_model_doubtful(const struct bitmap_model *model)
{
    uint64_t count = 0;

    for (uint64_t i = 0; i < model->granules; i++) {
        count += model->must[i] != model->may[i];
    }
    return count;
}
