/* SPDX-License-Identifier: BSD-3-Clause */
/* What users are told when a map is lost, and what becomes of a file that is not used. */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <unistd.h>

#include "block/drain.h"
#include "block/guarded-mapping.h"
#include "block/tracking-file.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"
#include "tests/lib/tracking-rig.h"

#define DISK    TRACKING_RIG_DISK
#define GRANULE TRACKING_RIG_GRANULE

static void assert_reason(struct tracking_rig *rig, enum tracking_loss loss, const char *text)
{
    struct tracking_info info;

    tracking_get_info(rig->tracker, &info);
    g_assert_true(info.is_lost);
    g_assert_cmpint(info.loss, ==, loss);
    test_assert_says(info.reason, text);
    tracking_info_clear(&info);
}

/* By something that did not tell the map. */
static void test_grown_in_use(void)
{
    struct tracking_rig *rig = tracking_rig_new(false);
    struct block_drain *drain = block_drain_begin(&rig->root, 1, BLOCK_PERM_ALL);

    g_assert_cmpint(block_node_set_length(rig->root, DISK + MIB, BLOCK_PREALLOCATION_OFF, NULL), ==,
                    0);
    block_drain_end(drain);
    g_assert_cmpint(tracking_rig_write(rig, DISK, 1), ==, 0);
    assert_reason(rig, TRACKING_LOST_RESIZED, "another length than its tracking file knows");
    tracking_rig_free(rig);
}

static void test_too_many(void)
{
    struct tracking_rig *rig = tracking_rig_new(false);
    static struct guarded_mapping *mappings[GUARDED_MAPPINGS_MAX + 1];
    g_autofree char *path = test_path(rig->directory, "page");
    unsigned count = 0;

    tracking_rig_finish(rig);
    test_make_file(path, 64 * KIB);
    AUTO_CLOSE int fd = open(path, O_RDWR | O_CLOEXEC);
    while ((mappings[count] = guarded_mapping_new(fd, 0, 4096))) {
        count++;
    }
    g_assert_cmpint(errno, ==, EUSERS);
    g_assert_cmpuint(count, ==, GUARDED_MAPPINGS_MAX);
    g_assert_cmpint(unlink(rig->path), ==, 0);
    tracking_rig_open(rig);
    assert_reason(rig, TRACKING_LOST_STORAGE, "one too many: a process can track about 4096 disks");
    tracking_rig_finish(rig);
    while (count) {
        guarded_mapping_free(mappings[--count]);
    }
    tracking_rig_open(rig);
    g_assert_false(tracking_rig_is_lost(rig));
    tracking_rig_free(rig);
}

/* ---- Served without ---------------------------------------------------------------------------
 */

static void part(struct tracking_rig *rig)
{
    struct tracking_options options = {
        .device = "vda", .path = rig->path, .disk_path = rig->disk_path};
    AUTO(block_node) root = NULL;

    tracking_identify(rig->disk_path, &options.identity);
    root = test_open("driver=file,filename=%s", rig->disk_path);
    tracking_part(&options, root);
}

static struct tracking_rig *killed_rig(void)
{
    struct tracking_rig *rig = tracking_rig_new_closed(false);

    tracking_rig_open(rig);
    g_assert_cmpint(tracking_rig_write(rig, 0, 1), ==, 0);
    tracking_rig_kill(rig);
    return rig;
}

static void test_not_written(void)
{
    struct tracking_rig *rig = killed_rig();

    part(rig);
    tracking_rig_open(rig);
    g_assert_cmpint(tracking_rig_loss(rig), ==, TRACKING_NOT_LOST);
    tracking_rig_assert_changed(rig, "a", 2 * GRANULE, 0);
    tracking_rig_free(rig);
}

/* A power loss is recovered from as if it had been opened by its server. */
static void test_power_loss(void)
{
    struct tracking_rig *rig = killed_rig();

    tracking_rig_boot++;
    part(rig);
    tracking_rig_open(rig);
    tracking_rig_assert_changed(rig, "a", TRACKING_RIG_EXTENT + GRANULE, 0);
    tracking_rig_free(rig);
}

static void test_written(void)
{
    struct tracking_rig *rig = killed_rig();

    g_usleep(20000); /* the clock of times of modification has ticked */
    part(rig);
    AUTO_CLOSE int fd = open(rig->disk_path, O_WRONLY | O_CLOEXEC);
    g_assert_cmpint(pwrite(fd, "x", 1, 3 * MIB + 512), ==, 1);
    tracking_rig_open(rig);
    g_assert_cmpint(tracking_rig_loss(rig), ==, TRACKING_LOST_MODIFIED);
    tracking_rig_free(rig);
}

/* Neither a clean file nor one of another disk is touched. */
static void test_others(void)
{
    struct tracking_rig *rig = tracking_rig_new_closed(false);

    for (unsigned i = 0; i < 2; i++) {
        g_autofree char *before = NULL, *after = NULL;
        gsize bytes_before, bytes_after;

        g_assert_true(g_file_get_contents(rig->path, &before, &bytes_before, NULL));
        part(rig);
        g_assert_true(g_file_get_contents(rig->path, &after, &bytes_after, NULL));
        g_assert_cmpmem(before, bytes_before, after, bytes_after);
        tracking_rig_open(rig);
        tracking_rig_kill(rig);
        g_free(rig->disk_path);
        rig->disk_path = test_path(rig->directory, "other");
        test_make_file(rig->disk_path, DISK);
    }
    tracking_rig_open(rig);
    g_assert_cmpint(tracking_rig_loss(rig), ==, TRACKING_LOST_OTHER_DISK);
    tracking_rig_free(rig);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_log_set_always_fatal(G_LOG_FATAL_MASK | G_LOG_LEVEL_CRITICAL);
    formats_register();
    g_test_add_func("/tracking-reasons/a-disk-that-grew-in-use-says-so", test_grown_in_use);
    g_test_add_func("/tracking-reasons/one-disk-too-many-is-told-so", test_too_many);
    g_test_add_func("/tracking-reasons/used-without-and-not-written-it-goes-on", test_not_written);
    g_test_add_func("/tracking-reasons/a-power-loss-before-is-not-forgotten", test_power_loss);
    g_test_add_func("/tracking-reasons/used-without-and-written-it-is-lost", test_written);
    g_test_add_func("/tracking-reasons/what-is-none-of-its-business-is-left-alone", test_others);
    return g_test_run();
}
