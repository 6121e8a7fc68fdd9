/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/change-map.h"

#include <errno.h>
#include <glib.h>
#include <stdlib.h>

#include "block/align.h"
#include "block/cleanup.h"

/* Granules under one number of the summary: 8 KiB of values. */
#define SUMMARY_SHIFT 12
#define SUMMARY_SIZE  (UINT64_C(1) << SUMMARY_SHIFT)

uint64_t change_map_granules(uint64_t length, unsigned shift)
{
    return div_round_up(length, UINT64_C(1) << shift);
}

uint64_t change_map_bytes(uint64_t length, unsigned shift)
{
    return change_map_granules(length, shift) * sizeof(uint16_t);
}

static uint16_t load(const struct change_map *map, uint64_t granule)
{
    return GUINT16_FROM_LE(atomic_load_explicit(&map->values[granule], memory_order_acquire));
}

static uint16_t current(const struct change_map *map)
{
    return atomic_load_explicit(&map->epoch, memory_order_relaxed);
}

/* The summary before the value: who would find the value must find it through the summary. */
static void raise_summary(struct change_map *map, uint64_t granule, uint16_t epoch)
{
    _Atomic uint16_t *highest = &map->summary[granule >> SUMMARY_SHIFT];

    if (atomic_load_explicit(highest, memory_order_relaxed) < epoch) {
        atomic_store_explicit(highest, epoch, memory_order_release);
    }
}

static void store(struct change_map *map, uint64_t granule, uint16_t value)
{
    raise_summary(map, granule, value & CHANGE_MAP_EPOCH_MAX);
    /* Sequentially consistent with what the caller looks at next: see block/extent-log.h. */
    atomic_store(&map->values[granule], GUINT16_TO_LE(value));
}

static void replace(struct change_map *map, uint64_t granule, uint16_t old_value, uint16_t value)
{
    uint16_t expected = GUINT16_TO_LE(old_value);

    atomic_compare_exchange_strong(&map->values[granule], &expected, GUINT16_TO_LE(value));
}

int change_map_init(struct change_map *map, void *values, uint64_t length, unsigned shift)
{
    uint64_t granules = change_map_granules(length, shift);
    uint64_t blocks = div_round_up(granules, SUMMARY_SIZE);
    uint16_t highest = 0;

    *map = (struct change_map){
        .values = values,
        .summary = calloc(MAX_OF(blocks, UINT64_C(1)), sizeof(uint16_t)),
        .length = length,
        .granules = granules,
        .shift = shift,
    };
    if (!map->summary) {
        return -ENOMEM;
    }
    for (uint64_t i = 0; i < granules; i++) {
        uint16_t epoch = load(map, i) & CHANGE_MAP_EPOCH_MAX;

        raise_summary(map, i, epoch);
        highest = MAX_OF(highest, epoch);
    }
    atomic_store(&map->epoch, highest);
    return 0;
}

void change_map_destroy(struct change_map *map)
{
    free(map->summary);
    map->summary = NULL;
}

uint16_t change_map_value_at(const struct change_map *map, uint64_t granule)
{
    return load(map, granule);
}

uint16_t change_map_epoch_at(const struct change_map *map, uint64_t granule)
{
    return load(map, granule) & CHANGE_MAP_EPOCH_MAX;
}

/* ---- Requests ------------------------------------------------------------------------------- */

bool change_map_begin_write(struct change_map *map, uint64_t offset, uint64_t bytes)
{
    uint64_t last = (offset + bytes - 1) >> map->shift;
    uint16_t epoch = current(map);
    bool stored = false;

    for (uint64_t granule = offset >> map->shift; granule <= last; granule++) {
        if (load(map, granule) != epoch) {
            store(map, granule, epoch);
            stored = true;
        }
    }
    return stored;
}

bool change_map_end_write(struct change_map *map, uint64_t offset, uint64_t bytes)
{
    return change_map_begin_write(map, offset, bytes);
}

/* The granules that lie wholly in a range; what a short last one lacks does not count. */
static void whole_granules(const struct change_map *map, uint64_t offset, uint64_t bytes,
                           uint64_t *first, uint64_t *end)
{
    uint64_t range_end = offset + bytes;

    *first = div_round_up(offset, UINT64_C(1) << map->shift);
    *end = range_end == map->length ? map->granules : range_end >> map->shift;
    *end = MAX_OF(*first, *end);
}

static bool begin_zero(struct change_map *map, uint64_t offset, uint64_t bytes, bool keeps_zeroes)
{
    uint64_t last = (offset + bytes - 1) >> map->shift;
    uint16_t epoch = current(map);
    uint64_t whole, whole_end;
    bool stored = false;

    whole_granules(map, offset, bytes, &whole, &whole_end);
    for (uint64_t granule = offset >> map->shift; granule <= last; granule++) {
        bool is_whole = granule >= whole && granule < whole_end;
        uint16_t value = is_whole ? epoch | CHANGE_MAP_ZEROING : epoch;
        uint16_t found = load(map, granule);

        if (found != value && !(keeps_zeroes && (found & CHANGE_MAP_ZERO))) {
            store(map, granule, value);
            stored = true;
        }
    }
    return stored;
}

bool change_map_begin_zero(struct change_map *map, uint64_t offset, uint64_t bytes)
{
    return begin_zero(map, offset, bytes, true);
}

bool change_map_begin_discard(struct change_map *map, uint64_t offset, uint64_t bytes)
{
    return begin_zero(map, offset, bytes, false);
}

void change_map_end_zero(struct change_map *map, uint64_t offset, uint64_t bytes, bool is_zero)
{
    uint16_t epoch = current(map);
    uint64_t granule, end;

    whole_granules(map, offset, bytes, &granule, &end);
    for (; granule < end; granule++) {
        if (is_zero) {
            replace(map, granule, epoch | CHANGE_MAP_ZEROING, epoch | CHANGE_MAP_ZERO);
        } else if (change_map_epoch_at(map, granule) == epoch) {
            /* Whatever others say: they may have counted on this request. */
            store(map, granule, epoch);
        }
    }
}

bool change_map_is_zero(const struct change_map *map, uint64_t offset, uint64_t bytes)
{
    uint64_t last = (offset + bytes - 1) >> map->shift;

    for (uint64_t granule = offset >> map->shift; granule <= last; granule++) {
        if (!(load(map, granule) & CHANGE_MAP_ZERO)) {
            return false;
        }
    }
    return true;
}

/* ---- All of it ------------------------------------------------------------------------------ */

uint16_t change_map_cut(struct change_map *map)
{
    uint16_t ended = atomic_fetch_add(&map->epoch, 1);

    g_assert(ended < CHANGE_MAP_EPOCH_MAX);
    return ended;
}

/* The first granule from `granule` on, below end, that changed after the epoch; end: none. */
static uint64_t find_changed(const struct change_map *map, uint16_t since, uint64_t granule,
                             uint64_t end)
{
    while (granule < end) {
        uint64_t block_end = MIN_OF(align_down(granule, SUMMARY_SIZE) + SUMMARY_SIZE, end);

        if (atomic_load_explicit(&map->summary[granule >> SUMMARY_SHIFT], memory_order_acquire) >
            since) {
            for (; granule < block_end; granule++) {
                if (change_map_epoch_at(map, granule) > since) {
                    return granule;
                }
            }
        }
        granule = block_end;
    }
    return end;
}

static enum change_state state_of(uint16_t value, uint16_t until)
{
    return value & CHANGE_MAP_ZERO && (value & CHANGE_MAP_EPOCH_MAX) <= until ? CHANGE_ZERO
                                                                              : CHANGE_DATA;
}

bool change_map_next(const struct change_map *map, uint16_t since, uint64_t offset, uint64_t end,
                     uint64_t *range_offset, uint64_t *range_bytes, enum change_state *state)
{
    return change_map_next_until(map, since, CHANGE_MAP_EPOCH_MAX, offset, end, range_offset,
                                 range_bytes, state);
}

bool change_map_next_until(const struct change_map *map, uint16_t since, uint16_t until,
                           uint64_t offset, uint64_t end, uint64_t *range_offset,
                           uint64_t *range_bytes, enum change_state *state)
{
    uint64_t limit = MIN_OF(end, map->length);

    if (offset >= limit) {
        return false;
    }
    uint64_t granules_end = div_round_up(limit, UINT64_C(1) << map->shift);
    uint64_t first = find_changed(map, since, offset >> map->shift, granules_end);
    if (first == granules_end) {
        return false;
    }
    *state = state_of(load(map, first), until);
    uint64_t next = first + 1;
    while (next < granules_end) {
        uint16_t value = load(map, next);

        if ((value & CHANGE_MAP_EPOCH_MAX) <= since || state_of(value, until) != *state) {
            break;
        }
        next++;
    }
    *range_offset = MAX_OF(first << map->shift, offset);
    *range_bytes = MIN_OF(next << map->shift, limit) - *range_offset;
    return true;
}

void change_map_count(const struct change_map *map, uint16_t since, uint64_t *changed,
                      uint64_t *zero)
{
    uint64_t offset = 0, start, bytes;
    enum change_state state;

    *changed = *zero = 0;
    while (change_map_next(map, since, offset, map->length, &start, &bytes, &state)) {
        *changed += bytes;
        *zero += state == CHANGE_ZERO ? bytes : 0;
        offset = start + bytes;
    }
}

bool change_map_distrust_zeroes(struct change_map *map, uint16_t epoch)
{
    bool found = false;

    for (uint64_t i = find_changed(map, (uint16_t)(epoch - 1), 0, map->granules); i < map->granules;
         i = find_changed(map, (uint16_t)(epoch - 1), i + 1, map->granules)) {
        if (load(map, i) & ~CHANGE_MAP_EPOCH_MAX) {
            store(map, i, load(map, i) & CHANGE_MAP_EPOCH_MAX);
            found = true;
        }
    }
    return found;
}

uint64_t change_map_mark(struct change_map *map, uint64_t offset, uint64_t bytes)
{
    uint16_t epoch = current(map);
    uint64_t added = 0;

    for (uint64_t end = offset + bytes; offset < end;) {
        uint64_t granule = offset >> map->shift;
        uint64_t next = MIN_OF((granule + 1) << map->shift, end);

        if (change_map_epoch_at(map, granule) != epoch) {
            added += next - offset;
        }
        store(map, granule, epoch);
        offset = next;
    }
    return added;
}
