/* SPDX-License-Identifier: BSD-3-Clause */
/* A tracking file that another one takes the place of, and what is said of the map meanwhile. */
#include <errno.h>
#include <glib.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/drain.h"
#include "block/tracking-io.h"
#include "block/tracking-state.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"
#include "tests/lib/random.h"
#include "tests/lib/tracking-rig.h"

#define DISK    TRACKING_RIG_DISK
#define GRANULE TRACKING_RIG_GRANULE

static void resize(struct tracking_rig *rig, uint64_t length)
{
    AUTO(block_drain) drain = block_drain_begin(&rig->root, 1, BLOCK_PERM_ALL);

    g_assert_cmpint(block_node_set_length(rig->root, length, BLOCK_PREALLOCATION_OFF, NULL), ==, 0);
    tracking_resize(rig->tracker, length);
}

static void open_other_name(struct tracking_rig *rig, const char *name)
{
    g_free(rig->path);
    rig->path = g_strdup(name);
    tracking_rig_open(rig);
}

/* Also after a clean end, when the disk's time says that all is well. */
static void test_old_file(void)
{
    struct tracking_rig *rig = tracking_rig_new_closed(false);
    g_autofree char *other = g_strconcat(rig->path, ".link", NULL);
    struct stat before, after;

    g_assert_cmpint(chmod(rig->path, 0640), ==, 0);
    g_assert_cmpint(stat(rig->path, &before), ==, 0);
    g_assert_cmpint(link(rig->path, other), ==, 0);
    tracking_rig_open(rig);
    g_assert_cmpint(tracking_rig_add(rig, "c", NULL), ==, 0);
    resize(rig, DISK + MIB);
    g_assert_cmpint(stat(rig->path, &after), ==, 0);
    g_assert_cmpuint(before.st_ino, !=, after.st_ino);
    g_assert_cmpuint(after.st_mode, ==, before.st_mode);
    g_assert_cmpint(tracking_rig_write(rig, MIB, GRANULE), ==, 0);
    tracking_rig_finish(rig);

    open_other_name(rig, other);
    g_assert_cmpint(tracking_rig_loss(rig), ==, TRACKING_LOST_MODIFIED);
    g_assert_null(tracking_changes_since(rig->tracker, "c", NULL));
    tracking_rig_free(rig);
}

/* ---- Lost meanwhile ----------------------------------------------------------------------------
 */

static struct change_tracker *victim;
static unsigned syncs;

/* The map is lost before the new file has its name; and then nobody knows whether it has. */
static int lose_and_fail(int fd)
{
    if (victim && ++syncs == 1) {
        tracking_contents_changed(victim, "somebody");
        tracking_wait_until_settled(victim);
    }
    return victim && syncs > 1 ? -EIO : fsync(fd) < 0 ? -errno : 0;
}

static void test_lost_meanwhile(void)
{
    struct tracking_rig *rig = tracking_rig_new(false);
    struct tracking_io usual = tracking_io;

    g_assert_cmpint(tracking_rig_add(rig, "c", NULL), ==, 0);
    tracking_prepare(rig->tracker, DISK + MIB);
    victim = rig->tracker;
    syncs = 0;
    tracking_io.sync_file = lose_and_fail;
    resize(rig, DISK + MIB);
    victim = NULL;
    tracking_io = usual;
    g_assert_cmpuint(syncs, >, 1);
    g_assert_true(tracking_rig_is_lost(rig));
    g_assert_cmpint(tracking_rig_write(rig, MIB, GRANULE), ==, 0);
    tracking_rig_kill(rig);
    tracking_rig_open(rig);
    g_assert_cmpint(tracking_rig_loss(rig), ==, TRACKING_LOST_MODIFIED);
    g_assert_null(tracking_changes_since(rig->tracker, "c", NULL));
    tracking_rig_free(rig);
}

struct loser {
    struct change_tracker *tracker;
    unsigned delay_us;
};

static void *lose(void *data)
{
    const struct loser *loser = data;

    g_usleep(loser->delay_us);
    tracking_contents_changed(loser->tracker, "somebody");
    return NULL;
}

/* Who loses it marks the file that is there, whichever it is just then. */
static void test_lost_at_any_time(void)
{
    struct test_random random = test_random_new(test_seed());

    for (unsigned i = 0; i < 20; i++) {
        struct tracking_rig *rig = tracking_rig_new(false);
        struct loser loser = {rig->tracker, (unsigned)test_random_below(&random, 8000)};
        pthread_t thread;

        g_assert_cmpint(tracking_rig_add(rig, "c", NULL), ==, 0);
        tracking_prepare(rig->tracker, DISK + MIB);
        g_assert_cmpint(pthread_create(&thread, NULL, lose, &loser), ==, 0);
        resize(rig, DISK + MIB);
        pthread_join(thread, NULL);
        g_assert_cmpint(tracking_rig_write(rig, MIB, GRANULE), ==, 0);
        tracking_rig_kill(rig);
        tracking_rig_open(rig);
        g_assert_cmpint(tracking_rig_loss(rig), ==, TRACKING_LOST_MODIFIED);
        tracking_rig_free(rig);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_log_set_always_fatal(G_LOG_FATAL_MASK | G_LOG_LEVEL_CRITICAL);
    formats_register();
    g_test_add_func("/tracking-renewed/the-file-before-is-lost-by-any-name", test_old_file);
    g_test_add_func("/tracking-renewed/one-that-may-have-the-name-is-lost-too",
                    test_lost_meanwhile);
    g_test_add_func("/tracking-renewed/lost-at-any-time-is-lost", test_lost_at_any_time);
    return g_test_run();
}
