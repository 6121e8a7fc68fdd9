/* SPDX-License-Identifier: BSD-3-Clause */
/* Comparing a disk with the target of its running mirror: what is on its way is no difference. */
#include "jobs/mirror-watch.h"

#include <string.h>

#include "block/align.h"
#include "block/clock.h"
#include "tests/lib/mirror-rig.h"
#include "tests/lib/verify-rig.h"

#define WRITERS 4
#define LENGTH  (2 * MIB)
#define ROUNDS  5

struct world {
    struct rig *rig;
    struct block_node *target;
    struct job *mirror;
};

static struct world start(enum mirror_copy_mode mode)
{
    struct rig *rig = rig_new(LENGTH, 1);
    struct world world = {.rig = rig, .target = rig_target(rig, "target", true)};
    struct mirror_options options = rig_mirror_options(rig, "mirror0", world.target);

    rig_fill(rig);
    options.copy_mode = mode;
    world.mirror = rig_ready_mirror(&options);
    return world;
}

static void wait_in_step(const struct world *world)
{
    struct job_info info;

    do {
        g_usleep(1000);
        job_get_info(world->mirror, &info);
        job_info_clear(&info);
    } while (info.bytes_left > 0);
}

static void end(struct world *world)
{
    rig_complete(world->mirror);
    rig_end_well(world->mirror);
    rig_stop(world->rig);
    block_node_unref(rig_follow(world->rig, world->target));
    rig_free(world->rig);
}

/* The target is slow, so that much is on its way, and some of it late. */
static void test_under_writers(gconstpointer mode)
{
    struct world world = start((enum mirror_copy_mode)GPOINTER_TO_INT(mode));

    FAULT(world.target, .operations = FAULT_ON_CHANGES, .percent = 20, .delay_ns = 2 * NS_PER_MS);
    rig_write(world.rig, WRITERS);
    for (unsigned i = 0; i < ROUNDS; i++) {
        rig_wait_requests(world.rig, 20);
        verify_rig_expect(world.rig, world.target, &(struct verify_options){0}, NULL, NULL, 0);
    }
    rig_stop(world.rig);
    fault_clear(world.target);
    end(&world);
}

static void test_found_and_repaired(void)
{
    const struct verify_range wanted = {.offset = MIB, .bytes = 512, .kind = VERIFY_DATA};
    struct world world = start(MIRROR_BACKGROUND);

    wait_in_step(&world);
    verify_rig_scribble(world.target->file, MIB, 512);
    verify_rig_expect(world.rig, world.target, &(struct verify_options){0},
                      "differs from the source in 512 bytes", &wanted, 1);
    /* The mirror's own writing is what repairs it. */
    uint64_t written = fault_bytes(world.target, FAULT_ON(WRITE));
    verify_rig_expect(world.rig, world.target, &(struct verify_options){.repair = true}, NULL,
                      &wanted, 1);
    wait_in_step(&world);
    g_assert_cmpuint(fault_bytes(world.target, FAULT_ON(WRITE)), ==, written + 4 * KIB);
    verify_rig_expect(world.rig, world.target, &(struct verify_options){0}, NULL, NULL, 0);
    end(&world);
}

static void test_not_ready(void)
{
    struct rig *rig = rig_new(LENGTH, 1);
    struct block_node *target = rig_target(rig, "target", true);
    struct mirror_options options = rig_mirror_options(rig, "mirror0", target);
    struct backup_options verify = rig_options(rig, "job0", target);
    g_autoptr(GError) error = NULL;

    rig_fill(rig);
    FAULT(target, .operations = FAULT_ON_CHANGES, .hold = true);
    struct job *mirror = rig_mirror(&options);
    verify.verify = &(struct verify_options){0};
    g_assert_null(backup_new(&verify, &error));
    g_assert_nonnull(strstr(error->message, "is not ready"));
    fault_clear(target);
    rig_wait_status(mirror, JOB_STATUS_READY);
    struct world world = {rig, target, mirror};
    end(&world);
}

static void add_tests(void)
{
    g_test_add_data_func("/mirror-watch/what-is-on-its-way-is-no-difference/background",
                         GINT_TO_POINTER(MIRROR_BACKGROUND), test_under_writers);
    g_test_add_data_func("/mirror-watch/what-is-on-its-way-is-no-difference/write-blocking",
                         GINT_TO_POINTER(MIRROR_WRITE_BLOCKING), test_under_writers);
    g_test_add_func("/mirror-watch/what-differs-is-found-and-copied-by-the-mirror",
                    test_found_and_repaired);
    g_test_add_func("/mirror-watch/one-that-is-not-ready-is-refused", test_not_ready);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
