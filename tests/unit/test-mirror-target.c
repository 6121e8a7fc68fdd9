/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Mirrors whose target gets lost: guests go on, what it may have forgotten is copied again, and
 * nobody takes another one for it. And the note of a mirror that is to be resumed.
 */
#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "jobs/copy-engine-internal.h"
#include "jobs/mirror-internal.h"
#include "tests/lib/mirror-rig.h"

#define WRITERS 4
#define LENGTH  (4 * MIB)
#define FOREVER (3600 * NS_PER_SECOND)

struct world {
    struct rig *rig;
    struct block_node *target;
    struct job *job;
};

static struct world start(int64_t retry_ns, enum mirror_copy_mode mode)
{
    struct rig *rig = rig_new(LENGTH, 1);
    struct world world = {.rig = rig, .target = rig_target(rig, "target", true)};
    struct mirror_options options = rig_mirror_options(rig, "job0", world.target);

    rig_fill(rig);
    options.target_retry_ns = retry_ns;
    options.copy_mode = mode;
    world.job = rig_ready_mirror(&options);
    return world;
}

static bool is_lost(const struct world *world)
{
    struct job_info info;

    job_get_info(world->job, &info);
    bool lost = info.is_target_lost;
    job_info_clear(&info);
    return lost;
}

static void wait_lost(const struct world *world, bool lost)
{
    while (is_lost(world) != lost) {
        g_usleep(1000);
    }
}

static void wait_in_step(const struct world *world)
{
    struct job_info info;

    do {
        g_usleep(1000);
        job_get_info(world->job, &info);
        job_info_clear(&info);
    } while (info.bytes_left > 0);
}

/* Until all that was written is safe. */
static void wait_flushed(const struct world *world)
{
    struct mirror_target *safe = &((struct mirror *)job_state(world->job))->safe;
    uint64_t unflushed;

    wait_in_step(world);
    do {
        g_usleep(1000);
        pthread_mutex_lock(&safe->lock);
        unflushed = dirty_bitmap_count(safe->fresh) + dirty_bitmap_count(safe->flushing);
        pthread_mutex_unlock(&safe->lock);
    } while (unflushed > 0);
}

static void end(struct world *world)
{
    rig_stop(world->rig);
    g_assert_cmpuint(atomic_load(&world->rig->failed), ==, 0);
    fault_clear(world->target);
    rig_assert_unused(world->target);
    rig_free(world->rig);
}

static void end_as_pivot(struct world *world)
{
    rig_complete(world->job);
    rig_end_well(world->job);
    rig_stop(world->rig);
    struct block_node *old = rig_follow(world->rig, world->target);
    g_assert_cmpuint(atomic_load(&world->rig->failed), ==, 0);
    fault_clear(old);
    block_node_unref(old);
    rig_free(world->rig);
}

static void lose(const struct world *world)
{
    FAULT(world->target, .operations = FAULT_ON_ALL, .error_number = ENOTCONN);
}

static void test_comes_back(gconstpointer mode)
{
    struct world world = start(FOREVER, (enum mirror_copy_mode)GPOINTER_TO_INT(mode));

    rig_write(world.rig, WRITERS);
    for (unsigned i = 0; i < 3; i++) {
        lose(&world);
        wait_lost(&world, true);
        rig_wait_requests(world.rig, 50); /* guests go on */
        fault_clear(world.target);
        wait_lost(&world, false);
        rig_wait_requests(world.rig, 50);
    }
    end_as_pivot(&world);
}

static void *write_first(void *data)
{
    g_assert_cmpint(rig_pwrite(data, 1, 0, 4 * KIB), ==, 0);
    return NULL;
}

/* What hangs on a lost target is cut off, with the guest that waits for it. */
static void test_hangs(void)
{
    struct world world = start(FOREVER, MIRROR_WRITE_BLOCKING);

    wait_in_step(&world);
    FAULT(world.target, .operations = FAULT_ON_CHANGES, .bytes = 4 * KIB, .hold = true);
    FAULT(world.target, .operations = FAULT_ON_CHANGES, .offset = MIB, .bytes = 4 * KIB,
          .error_number = ETIMEDOUT);
    GThread *guest = g_thread_new("guest", write_first, world.rig);
    fault_wait_held(world.target, 1);
    g_assert_cmpint(rig_pwrite(world.rig, 2, MIB, 4 * KIB), ==, 0);
    g_thread_join(guest);
    g_assert_cmpuint(fault_cut_off(world.target), >, 0);
    fault_clear(world.target);
    wait_lost(&world, false);
    end_as_pivot(&world);
}

/* What was written and not flushed when the target was lost is written once more, nothing else. */
static void test_marks_again(void)
{
    struct world world = start(FOREVER, MIRROR_BACKGROUND);

    wait_flushed(&world);
    FAULT(world.target, .operations = FAULT_ON(FLUSH), .error_number = ENOTCONN);
    g_assert_cmpint(rig_pwrite(world.rig, 1, MIB, 64 * KIB), ==, 0);
    wait_in_step(&world);
    uint64_t written = fault_bytes(world.target, FAULT_ON(WRITE));
    uint64_t again;
    do { /* it is lost at the flush, for a moment */
        g_usleep(1000);
        again = fault_bytes(world.target, FAULT_ON(WRITE)) - written;
    } while (again < 64 * KIB);
    g_assert_cmpuint(again, <, MIB);
    fault_clear(world.target);
    end_as_pivot(&world);
}

/* A flush that fails is told of what is lost once: it is copied again before the next one. */
static void test_flush_fails(void)
{
    struct rig *rig = rig_new(LENGTH, 1);
    struct world world = {.rig = rig, .target = rig_target(rig, "target", true)};
    struct mirror_options options = rig_mirror_options(rig, "job0", world.target);

    rig_fill(rig);
    options.on_target_error = BLOCK_ERROR_POLICY_STOP;
    FAULT(world.target, .operations = FAULT_ON(FLUSH), .count = 1, .error_number = EIO);
    world.job = rig_ready_mirror(&options);
    rig_resume_when_stopped(world.job);
    wait_in_step(&world);
    g_assert_cmpuint(fault_bytes(world.target, FAULT_ON(WRITE)), >=, 2 * LENGTH);
    end_as_pivot(&world);
}

/* Whether nothing is begun any more, because of the target. */
static bool is_held_up(const struct world *world)
{
    struct copy_engine *engine = ((struct mirror *)job_state(world->job))->engine;
    SCOPE_LOCK(&engine->lock);

    return engine->is_away || engine->is_held;
}

/* Nobody knows whether what is on its way just then was answered before it failed. */
static void test_flush_fails_beside_a_write(void)
{
    struct rig *rig = rig_new(LENGTH, 1);
    struct world world = {.rig = rig, .target = rig_target(rig, "target", true)};
    struct mirror_options options = rig_mirror_options(rig, "job0", world.target);

    rig_fill(rig);
    options.on_target_error = BLOCK_ERROR_POLICY_STOP;
    world.job = rig_ready_mirror(&options);
    wait_flushed(&world);
    FAULT(world.target, .operations = FAULT_ON(WRITE), .bytes = 4 * KIB, .count = 1, .hold = true);
    FAULT(world.target, .operations = FAULT_ON(FLUSH), .count = 1, .error_number = EIO);
    g_assert_cmpint(rig_pwrite(rig, 1, 0, 4 * KIB), ==, 0);
    fault_wait_held(world.target, 1);
    g_assert_cmpint(rig_pwrite(rig, 1, MIB, 4 * KIB), ==, 0);
    while (!is_held_up(&world)) {
        g_usleep(1000);
    }
    /* The one that is held is to be written again; the other one, too, or for the first time. */
    uint64_t written = fault_bytes(world.target, FAULT_ON(WRITE));
    fault_clear(world.target);
    rig_wait_status(world.job, JOB_STATUS_STANDBY);
    g_assert_cmpint(job_user_resume(world.job, NULL), ==, 0);
    wait_in_step(&world);
    g_assert_cmpuint(fault_bytes(world.target, FAULT_ON(WRITE)) - written, >=, 8 * KIB);
    end_as_pivot(&world);
}

static void test_another(void)
{
    g_autofree char *junk = g_malloc(LENGTH);
    struct world world = start(FOREVER, MIRROR_BACKGROUND);

    wait_flushed(&world);
    memset(junk, 0x5a, LENGTH);
    lose(&world);
    g_assert_cmpint(rig_pwrite(world.rig, 1, MIB, 4 * KIB), ==, 0);
    wait_lost(&world, true);
    /* Another one of the same size takes its place. */
    g_assert_cmpint(block_node_pwrite(world.target->file, junk, 0, LENGTH, 0), ==, 0);
    fault_clear(world.target);
    rig_end_badly(world.job, "does not hold any more what it had flushed");
    end(&world);
}

static void test_gives_up(void)
{
    struct world world = start(NS_PER_MS, MIRROR_BACKGROUND);

    lose(&world);
    g_assert_cmpint(rig_pwrite(world.rig, 1, MIB, 4 * KIB), ==, 0);
    rig_end_badly(world.job, "is not back");
    end(&world);
}

static void test_not_in_the_end(void)
{
    struct rig *rig = rig_new(LENGTH, 1);
    struct world world = {.rig = rig, .target = rig_target(rig, "target", true)};
    struct mirror_options options = rig_mirror_options(rig, "job0", world.target);

    options.target_retry_ns = FOREVER;
    options.job_flags |= JOB_MANUAL_FINALIZE;
    world.job = rig_ready_mirror(&options);
    rig_complete(world.job);
    rig_wait_status(world.job, JOB_STATUS_PENDING);
    g_assert_cmpint(rig_pwrite(rig, 1, MIB, 4 * KIB), ==, 0);
    FAULT(world.target, .operations = FAULT_ON(FLUSH), .error_number = ENOTCONN);
    g_assert_cmpint(job_finalize(world.job, NULL), ==, 0);
    rig_end_badly(world.job, "Could not flush target node 'target'");
    end(&world);
}

static void test_cancelled(void)
{
    struct world world = start(FOREVER, MIRROR_WRITE_BLOCKING);
    g_autoptr(GError) error = NULL;

    rig_write(world.rig, WRITERS);
    lose(&world);
    wait_lost(&world, true);
    job_cancel(world.job, true, true, &error);
    g_assert_no_error(error);
    rig_end_badly(world.job, "Operation canceled");
    end(&world);
}

/* ---- The note -------------------------------------------------------------------------------- */

static struct mirror_note make_note(void)
{
    struct mirror_sample sample = {.offset = 64 * KIB, .hash = {1, 2, 3}, .is_valid = true};
    struct mirror_note note = {
        .target = g_strdup("nbd://host/export"),
        .inode = 7,
        .length = 10 * MIB,
        .chunk = 64 * KIB,
        .done = g_byte_array_new(),
        .samples = g_array_new(FALSE, TRUE, sizeof(struct mirror_sample)),
    };

    g_byte_array_set_size(note.done, 20);
    memset(note.done->data, 0xa5, 20);
    g_array_append_val(note.samples, sample);
    return note;
}

static void test_note(void)
{
    struct mirror_note note = make_note(), read;
    g_autoptr(GBytes) bytes = mirror_note_encode(&note);
    gsize size;
    const char *text = g_bytes_get_data(bytes, &size);

    g_assert_true(mirror_note_decode(bytes, &read));
    g_assert_cmpstr(read.target, ==, note.target);
    g_assert_cmpuint(read.length, ==, note.length);
    g_assert_cmpuint(read.inode, ==, 7);
    g_assert_cmpmem(read.done->data, read.done->len, note.done->data, 20);
    g_assert_cmpuint(read.samples->len, ==, 1);
    g_assert_cmpuint(g_array_index(read.samples, struct mirror_sample, 0).offset, ==, 64 * KIB);
    mirror_note_clear(&read);
    for (gsize length = 0; length < size; length++) { /* cut short it is none */
        g_autoptr(GBytes) cut = g_bytes_new(text, length);

        g_assert_false(mirror_note_decode(cut, &read));
        g_assert_null(read.target);
    }
    mirror_note_clear(&note);
}

/* Each of these is refused: it would have bits, or samples, where there is no disk. */
static void test_note_nonsense(void)
{
    static const char *const texts[] = {
        "",
        "[]",
        "{}",
        "null",
        "{\"version\":1}",
        "{\"version\":2,\"target\":\"t\",\"inode\":0,\"length\":65536,"
        "\"chunk\":65536,\"done\":\"AA==\",\"samples\":[]}",
        "{\"version\":1,\"target\":\"t\",\"inode\":0,\"length\":65536,"
        "\"chunk\":0,\"done\":\"AA==\",\"samples\":[]}",
        "{\"version\":1,\"target\":\"t\",\"inode\":0,\"length\":65536,"
        "\"chunk\":65536,\"done\":\"\",\"samples\":[]}",
        "{\"version\":1,\"target\":\"t\",\"inode\":0,\"length\":-1,"
        "\"chunk\":65536,\"done\":\"AA==\",\"samples\":[]}",
        "{\"version\":1,\"target\":\"t\",\"inode\":0,\"length\":65536,"
        "\"chunk\":65536,\"done\":\"AA==\",\"samples\":[{\"offset\":65000,\"hash\":\"AA==\"}]}",
        "{\"version\":1,\"target\":\"t\",\"inode\":0,\"length\":65536,"
        "\"chunk\":65536,\"done\":\"AA==\",\"samples\":[{\"offset\":0,\"hash\":\"AA==\"}]}",
    };
    struct mirror_note read;

    for (unsigned i = 0; i < G_N_ELEMENTS(texts); i++) {
        g_autoptr(GBytes) bytes = g_bytes_new(texts[i], strlen(texts[i]));

        g_assert_false(mirror_note_decode(bytes, &read));
    }
}

static void add_tests(void)
{
    g_test_add_data_func("/mirror-target/guests-go-on-and-all-is-there-when-it-is-back/background",
                         GINT_TO_POINTER(MIRROR_BACKGROUND), test_comes_back);
    g_test_add_data_func(
        "/mirror-target/guests-go-on-and-all-is-there-when-it-is-back/write-blocking",
        GINT_TO_POINTER(MIRROR_WRITE_BLOCKING), test_comes_back);
    g_test_add_func("/mirror-target/one-that-hangs-is-cut-off", test_hangs);
    g_test_add_func("/mirror-target/what-was-not-flushed-is-copied-again", test_marks_again);
    g_test_add_func("/mirror-target/what-a-failed-flush-lost-is-copied-again", test_flush_fails);
    g_test_add_func("/mirror-target/what-was-on-its-way-at-a-failed-flush-is-copied-again",
                    test_flush_fails_beside_a_write);
    g_test_add_func("/mirror-target/another-one-is-not-taken-for-it", test_another);
    g_test_add_func("/mirror-target/after-its-time-it-is-an-error", test_gives_up);
    g_test_add_func("/mirror-target/the-finalization-does-not-wait-for-it", test_not_in_the_end);
    g_test_add_func("/mirror-target/a-lost-one-does-not-keep-the-job", test_cancelled);
    g_test_add_func("/mirror-target/note/what-is-written-is-read", test_note);
    g_test_add_func("/mirror-target/note/nonsense-is-refused", test_note_nonsense);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
