/* SPDX-License-Identifier: BSD-3-Clause */
/* Persistent bitmaps that the tracking file keeps, and what they must hold after a loss. */
#include "tests/torture/tracking-loss.h"

#include <inttypes.h>
#include <string.h>

#include "block/drain.h"
#include "block/stored-bitmaps.h"
#include "block/tracking-bitmaps.h"
#include "block/tracking-record.h"

#define BITMAPS 3

/* The disk as it was at a bitmap's moment. */
struct moment {
    uint64_t length;
    uint8_t contents[DISK_MAX];
};

struct loss_bitmap {
    enum loss_state state;
    unsigned number;
    unsigned moment;  /* which of them is the bitmap's */
    bool is_clearing; /* it may be either */
    struct moment moments[2];
};

/* Shared with children. */
static struct {
    struct loss_bitmap bitmaps[BITMAPS];
    unsigned next_number;
} * shared;

static struct counts {
    uint64_t found, dirty_bytes, equal_bytes;
} counts[KINDS][ENDINGS];

static char *name_of(const struct loss_bitmap *bitmap)
{
    return g_strdup_printf("b%u", bitmap->number);
}

static void note_moment(struct world *world, struct moment *moment)
{
    moment->length = loss_disk_read_open(world, moment->contents);
}

/* ---- Commands ---------------------------------------------------------------------------------
 */

static void add(struct world *world, struct loss_bitmap *bitmap)
{
    struct block_node *node = block_node_below_filters(world->root);
    uint64_t granularity = UINT64_C(512) << test_random_below(&world->random, 8);

    bitmap->number = ++shared->next_number;
    bitmap->moment = 0;
    bitmap->is_clearing = false;
    g_autofree char *name = name_of(bitmap);
    {
        AUTO(block_drain) drain = block_drain_begin(&world->root, 1, BLOCK_PERM_WRITE);
        struct dirty_bitmap *dirty =
            dirty_bitmap_new(name, block_node_length(node), granularity, NULL);

        g_assert_nonnull(dirty);
        dirty_bitmap_set_persistent(dirty, true);
        block_node_add_bitmap(node, dirty);
        note_moment(world, &bitmap->moments[0]);
        bitmap->state = MAYBE_ADDED;
    }
    block_stored_bitmaps_changed(node, name);
    if (!loss_has_happened()) {
        bitmap->state = ADDED;
    }
}

static void clear(struct world *world, struct loss_bitmap *bitmap)
{
    struct block_node *node = block_node_below_filters(world->root);
    g_autofree char *name = name_of(bitmap);

    g_assert_cmpint(block_stored_bitmaps_begin_change(node, name, NULL), ==, 0);
    {
        AUTO(block_drain) drain = block_drain_begin(&world->root, 1, BLOCK_PERM_WRITE);

        note_moment(world, &bitmap->moments[!bitmap->moment]);
        bitmap->is_clearing = true;
        dirty_bitmap_clear(block_node_find_bitmap(node, name));
    }
    block_stored_bitmaps_changed(node, name);
    if (!loss_has_happened()) {
        bitmap->moment = !bitmap->moment;
        bitmap->is_clearing = false;
    }
}

static void drop(struct world *world, struct loss_bitmap *bitmap)
{
    struct block_node *node = block_node_below_filters(world->root);
    g_autofree char *name = name_of(bitmap);
    AUTO(dirty_bitmap) dirty = NULL;

    bitmap->state = MAYBE_REMOVED;
    g_assert_cmpint(block_stored_bitmaps_begin_change(node, name, NULL), ==, 0);
    g_assert_cmpint(block_stored_bitmaps_remove(node, name, NULL), ==, 0);
    {
        AUTO(block_drain) drain = block_drain_begin(&world->root, 1, BLOCK_PERM_WRITE);

        dirty = block_node_find_bitmap(node, name);
        block_node_remove_bitmap(node, dirty);
    }
    g_assert_cmpint(block_stored_bitmaps_remove(node, name, NULL), ==, 0);
    block_stored_bitmaps_changed(node, name);
    if (!loss_has_happened()) {
        bitmap->state = ABSENT;
    }
}

void loss_bitmaps_administer(struct world *world)
{
    struct loss_bitmap *bitmap = &shared->bitmaps[test_random_below(&world->random, BITMAPS)];

    if (bitmap->state == ABSENT) {
        add(world, bitmap);
    } else if (bitmap->state == ADDED && !bitmap->is_clearing) {
        (test_random_chance(&world->random, 75) ? clear : drop)(world, bitmap);
    }
}

/* ---- Loading ----------------------------------------------------------------------------------
 */

/* Whether all that differs from the moment is dirty; else *missing is a place that is not. */
static bool holds(struct dirty_bitmap *dirty, const struct moment *moment, const uint8_t *disk,
                  uint64_t *equal, uint64_t *missing)
{
    uint64_t length = dirty_bitmap_length(dirty);

    *equal = 0;
    for (uint64_t at = 0; at < length; at += SECTOR) {
        uint64_t bytes = MIN_OF(SECTOR, length - at);
        bool differs =
            at + bytes > moment->length || memcmp(disk + at, moment->contents + at, bytes) != 0;

        if (differs && !dirty_bitmap_get(dirty, at)) {
            *missing = at;
            return false;
        }
        *equal += !differs && dirty_bitmap_get(dirty, at) ? bytes : 0;
    }
    return true;
}

/* A bitmap that was loaded, from wherever: which moment is its own was found when it was judged. */
static void judge_loaded(const struct world *world, struct dirty_bitmap *dirty,
                         const struct loss_bitmap *bitmap, const uint8_t *disk)
{
    uint64_t equal, missing;

    g_assert_false(dirty_bitmap_is_inconsistent(dirty));
    if (!holds(dirty, &bitmap->moments[bitmap->moment], disk, &equal, &missing)) {
        g_error("%s: bitmap %s lacks a change at %" PRIu64 " when it is loaded",
                loss_kind_names[world->is_qcow2], dirty_bitmap_name(dirty), missing);
    }
}

void loss_bitmaps_open(struct world *world)
{
    static uint8_t disk[DISK_MAX];
    struct block_node *node = block_node_below_filters(world->root);

    tracking_bitmaps_begin(world->tracker, world->device, world->root);
    loss_disk_read_open(world, disk);
    for (unsigned i = 0; i < BITMAPS; i++) {
        g_autofree char *name = name_of(&shared->bitmaps[i]);
        struct dirty_bitmap *dirty = block_node_find_bitmap(node, name);

        g_assert_true(!dirty == (shared->bitmaps[i].state == ABSENT));
        if (dirty) {
            judge_loaded(world, dirty, &shared->bitmaps[i], disk);
        }
    }
}

/* ---- Judging ----------------------------------------------------------------------------------
 */

/* As the record and the map have it. */
static struct dirty_bitmap *load(const struct tracking_file *file,
                                 const struct tracking_bitmap *record)
{
    uint64_t left = UINT64_MAX, offset = 0, start, bytes;
    enum change_state state;
    struct dirty_bitmap *dirty = tracking_record_load(record, file->map.length, &left, NULL);

    g_assert_nonnull(dirty);
    while (change_map_next(&file->map, (uint16_t)record->epoch, offset, file->map.length, &start,
                           &bytes, &state)) {
        dirty_bitmap_set(dirty, start, bytes);
        offset = start + bytes;
    }
    return dirty;
}

static void judge(const struct world *world, const struct tracking_file *file,
                  const struct tracking_bitmap *record, struct loss_bitmap *bitmap,
                  const uint8_t *disk)
{
    AUTO(dirty_bitmap) dirty = load(file, record);
    uint64_t equal, missing;

    g_assert_false(record->is_broken);
    g_assert_true(record->is_enabled);
    if (!holds(dirty, &bitmap->moments[bitmap->moment], disk, &equal, &missing)) {
        bitmap->moment ^= bitmap->is_clearing;
        if (!bitmap->is_clearing ||
            !holds(dirty, &bitmap->moments[bitmap->moment], disk, &equal, &missing)) {
            g_error("%s, %s: bitmap %s lacks a change at %" PRIu64,
                    loss_kind_names[world->is_qcow2], loss_ending_names[world->ending],
                    record->name, missing);
        }
    }
    bitmap->is_clearing = false;
    bitmap->state = ADDED;
    struct counts *sum = &counts[world->is_qcow2][world->ending];
    sum->found++;
    sum->dirty_bytes += dirty_bitmap_count(dirty);
    sum->equal_bytes += equal;
}

void loss_bitmaps_judge(const struct world *world, const struct tracking_file *file,
                        const uint8_t *disk)
{
    for (unsigned i = 0; i < BITMAPS; i++) {
        struct loss_bitmap *bitmap = &shared->bitmaps[i];
        g_autofree char *name = name_of(bitmap);
        const struct tracking_bitmap *record =
            bitmap->state == ABSENT ? NULL : tracking_directory_find_bitmap(file->directory, name);

        if (record) {
            judge(world, file, record, bitmap, disk);
        } else if (bitmap->state == ADDED) {
            g_error("%s, %s: bitmap %s is gone", loss_kind_names[world->is_qcow2],
                    loss_ending_names[world->ending], name);
        } else {
            bitmap->state = ABSENT;
        }
    }
}

void loss_bitmaps_report(void)
{
    for (unsigned i = 0; i < KINDS * ENDINGS; i++) {
        const struct counts *sum = &counts[i / ENDINGS][i % ENDINGS];

        g_test_message("%s, %s: %" PRIu64 " bitmaps; dirty %" PRIu64 " KiB, of them %" PRIu64
                       " KiB equal to their moments",
                       loss_kind_names[i / ENDINGS], loss_ending_names[i % ENDINGS], sum->found,
                       sum->dirty_bytes / KIB, sum->equal_bytes / KIB);
    }
}

void loss_bitmaps_begin_world(void)
{
    memset(shared, 0, sizeof(*shared));
}

void loss_bitmaps_begin(void)
{
    shared = loss_share(sizeof(*shared));
    block_stored_bitmaps_add_keeper(&tracking_bitmap_keeper);
}
