/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/bitmap-rig.h"

#include "block/align.h"
#include "block/drain.h"
#include "block/main-loop.h"

struct change {
    struct rig *rig;
    struct dirty_bitmap *bitmap;
    struct job *job;
    struct model **snapshot;
    GError *error;
};

static void change(struct rig *rig, main_loop_function *function, struct change *change)
{
    AUTO(block_drain) drain = block_drain_begin(&rig->source, 1, BLOCK_PERM_WRITE);

    main_loop_call_wait(function, change);
}

static void add(void *data)
{
    struct change *change = data;

    block_node_add_bitmap(change->rig->source, change->bitmap);
}

void rig_add_bitmap(struct rig *rig, uint64_t granularity)
{
    struct dirty_bitmap *bitmap = dirty_bitmap_new("b", rig->length, granularity, NULL);

    g_assert_nonnull(bitmap);
    change(rig, add, &(struct change){.rig = rig, .bitmap = bitmap});
}

static void look(void *data)
{
    struct change *change = data;

    change->bitmap = block_node_find_bitmap(change->rig->source, "b");
}

struct dirty_bitmap *rig_bitmap(struct rig *rig)
{
    struct change change = {.rig = rig};

    main_loop_call_wait(look, &change);
    g_assert_nonnull(change.bitmap);
    return change.bitmap;
}

static void look_for_successor(void *data)
{
    struct change *change = data;

    change->bitmap = block_node_find_bitmap(change->rig->source, NULL);
}

struct dirty_bitmap *rig_successor(struct rig *rig)
{
    struct change change = {.rig = rig};

    main_loop_call_wait(look_for_successor, &change);
    g_assert_true(change.bitmap && dirty_bitmap_is_successor(change.bitmap));
    return change.bitmap;
}

static void take_away(void *data)
{
    struct change *change = data;

    block_node_remove_bitmap(change->rig->source, change->bitmap);
}

void rig_remove_bitmap(struct rig *rig)
{
    struct change how = {.rig = rig, .bitmap = rig_bitmap(rig)};

    g_assert_false(dirty_bitmap_is_busy(how.bitmap));
    change(rig, take_away, &how);
    dirty_bitmap_free(how.bitmap);
}

static void take_moment(void *data)
{
    struct change *change = data;

    look(change);
    backup_take_bitmap(change->job, change->bitmap, &change->error);
    backup_activate(change->job);
    if (change->snapshot) {
        *change->snapshot = model_snapshot(change->rig->model);
    }
}

struct job *rig_begin_with_bitmap(struct rig *rig, const struct backup_options *options,
                                  struct model **snapshot)
{
    struct change how = {.rig = rig, .snapshot = snapshot};
    g_autoptr(GError) error = NULL;

    how.job = backup_new(options, &error);
    g_assert_no_error(error);
    change(rig, take_moment, &how);
    g_assert_no_error(how.error);
    return how.job;
}

char *rig_dirty(struct dirty_bitmap *bitmap, uint64_t granule)
{
    GString *text = g_string_new(NULL);

    for (uint64_t offset = 0; offset < dirty_bitmap_length(bitmap); offset += granule) {
        if (dirty_bitmap_next_dirty(bitmap, offset, offset + granule) != UINT64_MAX) {
            g_string_append_printf(text, "%s%lu", text->len ? " " : "",
                                   (unsigned long)(offset / granule));
        }
    }
    return g_string_free(text, FALSE);
}
