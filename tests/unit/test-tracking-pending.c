/* SPDX-License-Identifier: BSD-3-Clause */
/* Checkpoints of sessions: pending until they are committed, and what changed up to them. */
#include <errno.h>
#include <glib.h>
#include <string.h>

#include "block/drain.h"
#include "block/error.h"
#include "formats/formats.h"
#include "tests/lib/tracking-rig.h"

#define GRANULE TRACKING_RIG_GRANULE

static uint8_t uuid[TRACKING_UUID_BYTES]; /* of the one that was begun last */

static int begin(struct tracking_rig *rig, const char *name, GError **error)
{
    AUTO(block_drain) drain = block_drain_begin(&rig->root, 1, BLOCK_PERM_WRITE);

    return tracking_checkpoint_begin(rig->tracker, rig->root, name, uuid, error);
}

static bool exists(struct tracking_rig *rig, const char *name)
{
    return tracking_rig_checkpoint(rig, name).name != NULL;
}

static enum tracking_parent judge(struct tracking_rig *rig, const char *name)
{
    enum tracking_loss loss;

    return tracking_judge_parent(rig->tracker, name, &loss);
}

static void write_at(struct tracking_rig *rig, uint64_t granule)
{
    g_assert_cmpint(tracking_rig_write(rig, granule * GRANULE, 1), ==, 0);
}

/* Whoever opens the file next does not find it, however it was left. */
static void test_open_at_the_end(void)
{
    void (*const ends[])(struct tracking_rig *) = {tracking_rig_kill, tracking_rig_finish};

    for (unsigned i = 0; i < G_N_ELEMENTS(ends); i++) {
        struct tracking_rig *rig = tracking_rig_new(false);

        g_assert_cmpint(tracking_rig_add(rig, "a", NULL), ==, 0);
        write_at(rig, 1);
        g_assert_cmpint(begin(rig, "b", NULL), ==, 0);
        write_at(rig, 2);
        g_assert_true(exists(rig, "b"));
        ends[i](rig);
        tracking_rig_open(rig);
        g_assert_false(exists(rig, "b"));
        tracking_rig_assert_changed(rig, "a", 2 * GRANULE, 0);
        /* The name is free, and nothing brings the old one back. */
        g_assert_cmpint(begin(rig, "b", NULL), ==, 0);
        g_assert_cmpint(tracking_checkpoint_commit(rig->tracker, "b", uuid, NULL), ==, 0);
        tracking_rig_kill(rig);
        tracking_rig_open(rig);
        tracking_rig_assert_changed(rig, "b", 0, 0);
        tracking_rig_free(rig);
    }
}

static void test_commit(void)
{
    struct tracking_rig *rig = tracking_rig_new(false);
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(judge(rig, "a"), ==, TRACKING_PARENT_NONE_AT_ALL);
    g_assert_cmpint(begin(rig, "a", NULL), ==, 0);
    g_assert_cmpint(judge(rig, "a"), ==, TRACKING_PARENT_NONE_AT_ALL);
    g_assert_null(tracking_changes_since(rig->tracker, "a", &error));
    g_assert_nonnull(strstr(error->message, "has not been committed"));
    g_clear_error(&error);
    g_assert_cmpint(begin(rig, "a", &error), <, 0);
    g_clear_error(&error);
    write_at(rig, 3);
    g_assert_cmpint(tracking_checkpoint_commit(rig->tracker, "a", uuid, NULL), ==, 0);
    g_assert_cmpint(tracking_checkpoint_commit(rig->tracker, "a", uuid, NULL), ==, 0);
    g_assert_cmpint(tracking_checkpoint_commit(rig->tracker, "b", uuid, &error), ==, -ENOENT);
    g_assert_cmpint(judge(rig, "a"), ==, TRACKING_PARENT_USABLE);
    g_assert_cmpint(judge(rig, "b"), ==, TRACKING_PARENT_UNKNOWN);
    tracking_rig_kill(rig);
    tracking_rig_open(rig);
    tracking_rig_assert_changed(rig, "a", GRANULE, 0);
    tracking_contents_changed(rig->tracker, "somebody");
    g_assert_cmpint(judge(rig, "a"), ==, TRACKING_PARENT_LOST);
    tracking_rig_free(rig);
}

/* What comes later counts as changed, and its zeroes are not those of the moment. */
static void test_until(void)
{
    struct tracking_rig *rig = tracking_rig_new(false);
    struct dirty_bitmap *zeroes = NULL;

    g_assert_cmpint(tracking_rig_write(rig, 0, 8 * GRANULE), ==, 0);
    g_assert_cmpint(tracking_rig_add(rig, "a", NULL), ==, 0);
    write_at(rig, 1);
    g_assert_cmpint(block_device_write_zeroes(rig->device, 2 * GRANULE, 2 * GRANULE, 0), ==, 0);
    g_assert_cmpint(begin(rig, "b", NULL), ==, 0);
    write_at(rig, 3);
    write_at(rig, 5);
    g_assert_cmpint(block_device_write_zeroes(rig->device, 6 * GRANULE, GRANULE, 0), ==, 0);
    AUTO(dirty_bitmap) changed = tracking_changes_until(rig->tracker, "a", "b", &zeroes, NULL);
    g_assert_nonnull(changed);
    for (unsigned i = 0; i < 8; i++) {
        g_assert_cmpint(dirty_bitmap_get(changed, i * GRANULE), ==,
                        i == 1 || i == 2 || i == 3 || i == 5 || i == 6);
        g_assert_cmpint(dirty_bitmap_get(zeroes, i * GRANULE), ==, i == 2);
    }
    dirty_bitmap_free(zeroes);
    tracking_rig_free(rig);
}

/* Or a backup would be said to be of a later moment than it is, and changes between be missed. */
static void test_another(void)
{
    struct tracking_rig *rig = tracking_rig_new(false);
    uint8_t other[TRACKING_UUID_BYTES];
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(begin(rig, "a", NULL), ==, 0);
    memcpy(other, uuid, sizeof(other));
    g_assert_cmpint(tracking_checkpoint_remove(rig->tracker, "a", &error), ==, -EBUSY);
    g_assert_nonnull(strstr(error->message, "that of an open session"));
    g_clear_error(&error);
    g_assert_cmpint(tracking_checkpoint_drop(rig->tracker, "a", uuid, NULL), ==, 0);
    g_assert_cmpint(tracking_checkpoint_drop(rig->tracker, "a", uuid, NULL), ==, 0);
    g_assert_false(exists(rig, "a"));
    write_at(rig, 1);
    g_assert_cmpint(begin(rig, "a", NULL), ==, 0);
    g_assert_cmpint(tracking_checkpoint_commit(rig->tracker, "a", other, &error), ==, -ESTALE);
    g_assert_nonnull(strstr(error->message, "is another one"));
    g_assert_cmpint(judge(rig, "a"), !=, TRACKING_PARENT_USABLE);
    g_assert_cmpint(tracking_checkpoint_drop(rig->tracker, "a", other, NULL), ==, 0);
    g_assert_true(exists(rig, "a"));
    g_assert_cmpint(tracking_checkpoint_commit(rig->tracker, "a", uuid, NULL), ==, 0);
    /* What stays is nobody's to drop. */
    g_assert_cmpint(tracking_checkpoint_drop(rig->tracker, "a", uuid, NULL), ==, 0);
    g_assert_cmpint(tracking_checkpoint_drop(rig->tracker, "a", NULL, NULL), ==, 0);
    g_assert_cmpint(judge(rig, "a"), ==, TRACKING_PARENT_USABLE);
    g_assert_cmpint(begin(rig, "b", NULL), ==, 0);
    g_assert_cmpint(tracking_checkpoint_drop(rig->tracker, "b", NULL, NULL), ==, 0);
    g_assert_false(exists(rig, "b"));
    tracking_rig_free(rig);
}

/* It says which of them it has, so that who deletes one everywhere need not fail for this disk. */
static void test_lost(void)
{
    struct tracking_rig *rig = tracking_rig_new(false);

    g_assert_cmpint(tracking_rig_add(rig, "a", NULL), ==, 0);
    g_assert_cmpint(begin(rig, "b", NULL), ==, 0);
    tracking_contents_changed(rig->tracker, "somebody");
    g_assert_cmpint(tracking_checkpoint_remove(rig->tracker, "c", NULL), ==, -ENOENT);
    g_assert_cmpint(tracking_checkpoint_remove(rig->tracker, "a", NULL), ==, -EIO);
    g_assert_cmpint(tracking_checkpoint_drop(rig->tracker, "b", uuid, NULL), ==, 0);
    g_assert_false(exists(rig, "b"));
    g_assert_cmpint(tracking_checkpoint_drop(rig->tracker, "c", uuid, NULL), ==, 0);
    tracking_rig_free(rig);
}

/* ---- Notes ----------------------------------------------------------------------------------- */

/* The UUID is in `uuid` then. */
static void add(struct tracking_rig *rig, const char *name)
{
    g_assert_cmpint(begin(rig, name, NULL), ==, 0);
    g_assert_cmpint(tracking_checkpoint_commit(rig->tracker, name, uuid, NULL), ==, 0);
}

static void put_note(struct tracking_rig *rig, const char *name, const char *text)
{
    g_autoptr(GBytes) note = g_bytes_new(text, strlen(text));
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(tracking_checkpoint_note(rig->tracker, name, uuid, note, &error), ==, 0);
    g_assert_no_error(error);
}

static void assert_note(struct tracking_rig *rig, const char *name, const char *text)
{
    uint64_t length = 0;
    uint8_t found[TRACKING_UUID_BYTES];
    g_autoptr(GBytes) note = tracking_checkpoint_get_note(rig->tracker, name, found, &length, NULL);

    if (!text) {
        g_assert_null(note);
        return;
    }
    g_assert_nonnull(note);
    g_assert_cmpmem(g_bytes_get_data(note, NULL), g_bytes_get_size(note), text, strlen(text));
    g_assert_cmpuint(length, ==, TRACKING_RIG_DISK);
}

/* Durable when it answers, and gone with its checkpoint and with the map. */
static void test_note(void)
{
    struct tracking_rig *rig = tracking_rig_new(false);

    g_assert_cmpint(tracking_rig_add(rig, "b", NULL), ==, 0);
    add(rig, "a");
    assert_note(rig, "a", NULL);
    put_note(rig, "a", "one");
    put_note(rig, "a", "another");
    tracking_rig_kill(rig);
    tracking_rig_open(rig);
    assert_note(rig, "a", "another");
    assert_note(rig, "b", NULL);
    tracking_rig_finish(rig);
    tracking_rig_open(rig);
    assert_note(rig, "a", "another");
    g_assert_cmpint(tracking_checkpoint_remove(rig->tracker, "a", NULL), ==, 0);
    /* Another one of that name has no note, and gets none from who means the first. */
    uint8_t old[TRACKING_UUID_BYTES];
    g_autoptr(GBytes) note = g_bytes_new_static("old", 3);
    memcpy(old, uuid, sizeof(old));
    add(rig, "a");
    g_assert_cmpint(tracking_checkpoint_note(rig->tracker, "a", old, note, NULL), ==, -ESTALE);
    assert_note(rig, "a", NULL);
    put_note(rig, "a", "lost");
    tracking_contents_changed(rig->tracker, "somebody");
    assert_note(rig, "a", NULL);
    tracking_rig_kill(rig);
    tracking_rig_open(rig);
    assert_note(rig, "a", NULL);
    tracking_rig_free(rig);
}

/* Whoever opens the file next finds either one of the two, with its own note. */
static void test_replace(void)
{
    struct tracking_rig *rig = tracking_rig_new(false);
    g_autoptr(GBytes) note = g_bytes_new_static("next", 4);
    uint8_t first[TRACKING_UUID_BYTES];

    add(rig, "a");
    memcpy(first, uuid, sizeof(first));
    put_note(rig, "a", "first");
    write_at(rig, 1);
    g_assert_cmpint(begin(rig, "b", NULL), ==, 0);
    write_at(rig, 2);
    tracking_rig_kill(rig);
    tracking_rig_open(rig);
    g_assert_false(exists(rig, "b"));
    assert_note(rig, "a", "first");
    tracking_rig_assert_changed(rig, "a", 2 * GRANULE, 0);
    g_assert_cmpint(tracking_checkpoint_replace(rig->tracker, "a", first, "b", uuid, note, NULL), <,
                    0);
    assert_note(rig, "a", "first");
    g_assert_cmpint(begin(rig, "b", NULL), ==, 0);
    /* Neither is anybody else's. */
    g_assert_cmpint(tracking_checkpoint_replace(rig->tracker, "a", uuid, "b", uuid, note, NULL), ==,
                    -ESTALE);
    g_assert_cmpint(tracking_checkpoint_replace(rig->tracker, "a", first, "b", first, note, NULL),
                    ==, -ESTALE);
    assert_note(rig, "a", "first");
    write_at(rig, 3);
    g_assert_cmpint(tracking_checkpoint_replace(rig->tracker, "a", first, "b", uuid, note, NULL),
                    ==, 0);
    tracking_rig_kill(rig);
    tracking_rig_open(rig);
    g_assert_false(exists(rig, "b"));
    assert_note(rig, "a", "next");
    tracking_rig_assert_changed(rig, "a", GRANULE, 0);
    g_assert_cmpint(judge(rig, "a"), ==, TRACKING_PARENT_USABLE);
    tracking_rig_free(rig);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_log_set_always_fatal(G_LOG_FATAL_MASK | G_LOG_LEVEL_CRITICAL);
    formats_register();
    g_test_add_func("/tracking-pending/what-is-not-committed-is-gone", test_open_at_the_end);
    g_test_add_func("/tracking-pending/what-is-committed-stays", test_commit);
    g_test_add_func("/tracking-pending/zeroes-are-those-of-the-moment", test_until);
    g_test_add_func("/tracking-pending/no-other-moment-is-taken-for-it", test_another);
    g_test_add_func("/tracking-pending/a-lost-map-says-what-it-cannot-forget", test_lost);
    g_test_add_func("/tracking-pending/a-note-stays-with-its-checkpoint", test_note);
    g_test_add_func("/tracking-pending/one-takes-the-place-of-another-at-once", test_replace);
    return g_test_run();
}
