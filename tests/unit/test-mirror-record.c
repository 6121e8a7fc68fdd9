/* SPDX-License-Identifier: BSD-3-Clause */
/* What a mirror keeps of itself, so that it can be gone on with, while guests write. */
#include "jobs/mirror-record.h"

#include "block/align.h"
#include "block/clock.h"
#include "tests/lib/disk.h"
#include "tests/lib/mirror-rig.h"

#define WRITERS 8
#define LENGTH  (2 * MIB)

struct world {
    struct rig *rig;
    struct change_tracker *tracker;
    struct block_node *target;
    struct job *job;
};

/* A tracked disk, and a mirror of it that is ready and can be resumed. */
static struct world start(enum mirror_copy_mode mode)
{
    struct world world = {.rig = rig_new(LENGTH, 1)};
    g_autofree char *path = test_path(world.rig->directory, "tracking");
    const struct tracking_options tracking = {
        .device = "vda",
        .path = path,
        .geometry = {.granule = 4 * KIB, .extent = 64 * KIB, .extents = 16},
    };

    world.tracker = tracking_start(&tracking, world.rig->source);
    g_assert_cmpint(tracking_check(world.tracker, NULL), ==, 0);
    block_device_set_tracker(world.rig->device, world.tracker);
    rig_fill(world.rig);
    world.target = rig_target(world.rig, "target", true);
    struct mirror_options options = rig_mirror_options(world.rig, "job0", world.target);
    options.device = world.rig->device;
    options.resume = true;
    options.copy_mode = mode;
    world.job = rig_ready_mirror(&options);
    return world;
}

static void end_as_copy(struct world *world)
{
    rig_stop(world->rig);
    g_assert_cmpuint(atomic_load(&world->rig->failed), ==, 0);
    rig_cancel_softly(world->job);
    rig_end_well(world->job);
    rig_assert_equal(world->rig->model, world->target);
    rig_assert_unused(world->target);
    g_autoptr(GArray) left = tracking_list_checkpoints(world->tracker);
    g_assert_cmpuint(left->len, ==, 0);
    block_device_set_tracker(world->rig->device, NULL);
    tracking_abandon(world->tracker);
    rig_free(world->rig);
}

/* Of the checkpoint that a mirror which is resumed begins from; the caller frees it. */
static char *record_uuid(struct world *world)
{
    g_autoptr(GArray) list = tracking_list_checkpoints(world->tracker);
    char *uuid = NULL;

    for (guint i = 0; i < list->len; i++) {
        const struct tracking_checkpoint_info *info =
            &g_array_index(list, struct tracking_checkpoint_info, i);

        if (!info->is_pending) {
            g_assert_null(uuid);
            uuid = g_strdup(info->uuid);
        }
    }
    g_assert_nonnull(uuid);
    return uuid;
}

/* Else what has to be copied after a crash would get more and more. */
static void test_rolls(gconstpointer mode)
{
    struct world world = start((enum mirror_copy_mode)GPOINTER_TO_INT(mode));
    g_autofree char *first = record_uuid(&world);
    bool has_rolled = false;

    /* So slow that there is hardly a moment at which no guest waits for it. */
    FAULT(world.target, .operations = FAULT_ON_CHANGES, .delay_ns = 20 * NS_PER_MS);
    rig_write(world.rig, WRITERS);
    while (!has_rolled) {
        g_usleep(10 * 1000);
        g_autofree char *now = record_uuid(&world);
        has_rolled = !g_str_equal(first, now);
    }
    fault_clear(world.target);
    end_as_copy(&world);
}

static void add_tests(void)
{
    g_test_add_data_func("/mirror-record/it-is-renewed-beside-guests/background",
                         GINT_TO_POINTER(MIRROR_BACKGROUND), test_rolls);
    g_test_add_data_func("/mirror-record/it-is-renewed-beside-guests/write-blocking",
                         GINT_TO_POINTER(MIRROR_WRITE_BLOCKING), test_rolls);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
