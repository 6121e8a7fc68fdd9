/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Mirrors that answer guests' writes when they are on both sides: that they are, in one order;
 * that no guest waits for ever, or gets the target's errors; and which mode a mirror is in.
 */
#include "jobs/write-through.h"

#include <errno.h>

#include "block/align.h"
#include "block/clock.h"
#include "block/drain.h"
#include "jobs/copy-engine-internal.h"
#include "jobs/mirror-internal.h"
#include "tests/lib/disk.h"
#include "tests/lib/mirror-rig.h"

#define WRITERS 8
#define LENGTH  (2 * MIB)
#define BLOCK   (4 * KIB)

/* A limit that is over soon, for tests in which it is; the default never is. */
#define SHORT_NS (100 * NS_PER_MS)

struct world {
    struct rig *rig;
    struct block_node *target;
    struct mirror_options options;
    struct job *job;
};

/* A full disk, and a mirror to a target with other contents that is ready: in step with it. */
static struct world start_with(enum mirror_copy_mode mode, int64_t limit_ns,
                               enum block_error_policy policy)
{
    struct world world = {.rig = rig_new(LENGTH, 1)};

    rig_fill(world.rig);
    world.target = rig_target(world.rig, "target", true);
    world.options = rig_mirror_options(world.rig, "job0", world.target);
    world.options.copy_mode = mode;
    world.options.write_limit_ns = limit_ns;
    world.options.on_target_error = policy;
    world.job = rig_ready_mirror(&world.options);
    return world;
}

static struct world start(enum mirror_copy_mode mode)
{
    return start_with(mode, 0, BLOCK_ERROR_POLICY_REPORT);
}

static struct copy_engine *engine_of(struct world *world)
{
    return ((struct mirror *)job_state(world->job))->engine;
}

/* Wait until so many ranges are in flight, or waited for. */
static void wait_ranges(struct world *world, unsigned wanted)
{
    struct copy_engine *engine = engine_of(world);
    unsigned count;

    do {
        const struct copy_run *run;

        count = 0;
        pthread_mutex_lock(&engine->lock);
        TAILQ_FOREACH (run, &engine->runs, entry) {
            count++;
        }
        pthread_mutex_unlock(&engine->lock);
        g_usleep(500);
    } while (count != wanted);
}

static void assert_equal_now(struct world *world)
{
    g_autofree char *contents = rig_contents(world->rig->source);

    rig_assert_contents(world->target, contents);
}

static bool is_synchronous(struct world *world)
{
    struct job_info info;

    job_get_info(world->job, &info);
    bool result = info.is_synchronous;
    job_info_clear(&info);
    return result;
}

static bool is_in_step(struct world *world)
{
    struct job_info info;

    job_get_info(world->job, &info);
    bool result = info.actively_synced;
    job_info_clear(&info);
    return result;
}

static void wait_in_step(struct world *world)
{
    while (!is_in_step(world)) {
        g_usleep(500);
    }
}

/* What guests have waited for the job. */
static struct guest_waits_report waits_of(struct world *world)
{
    struct job_info info;

    job_get_info(world->job, &info);
    struct guest_waits_report waits = info.guest_waits;
    job_info_clear(&info);
    return waits;
}

static void expect_reason(struct world *world, const char *part)
{
    struct job_info info;

    job_get_info(world->job, &info);
    test_assert_says(info.copy_mode_reason, part);
    job_info_clear(&info);
}

static void finish(struct world *world)
{
    rig_stop(world->rig);
    g_assert_cmpuint(atomic_load(&world->rig->failed), ==, 0);
    fault_clear(world->target);
    rig_assert_source_quiet(world->rig);
    rig_assert_unused(world->target);
    rig_free(world->rig);
}

/* The target is a copy of the last moment. */
static void end_as_copy(struct world *world)
{
    rig_stop(world->rig);
    rig_cancel_softly(world->job);
    rig_end_well(world->job);
    rig_assert_equal(world->rig->model, world->target);
    finish(world);
}

struct guest {
    struct world *world;
    uint32_t number;
    uint64_t offset, bytes;
    pthread_t thread;
    int status;
};

static void *guest_thread(void *data)
{
    struct guest *guest = data;

    guest->status = rig_pwrite(guest->world->rig, guest->number, guest->offset, guest->bytes);
    return NULL;
}

static void guest_start(struct guest *guest, struct world *world, uint32_t number, uint64_t offset,
                        uint64_t bytes)
{
    *guest = (struct guest){.world = world, .number = number, .offset = offset, .bytes = bytes};
    g_assert_cmpint(pthread_create(&guest->thread, NULL, guest_thread, guest), ==, 0);
}

static void guest_answered(struct guest *guest)
{
    pthread_join(guest->thread, NULL);
    g_assert_cmpint(guest->status, ==, 0);
}

/* ---- Both sides ------------------------------------------------------------------------------ */

/* Nothing copies afterwards what the answer did not wait for: the engine finds nothing to do. */
static void test_answered_is_on_both(void)
{
    struct world world = start(MIRROR_WRITE_BLOCKING);
    struct test_random *random = &world.rig->random;

    wait_in_step(&world);
    for (unsigned i = 0; i < 45; i++) {
        uint64_t offset, bytes;
        unsigned flags = test_random_chance(random, 50) ? BLOCK_REQUEST_MAY_UNMAP : 0;
        struct block_device *device = world.rig->device;

        test_random_range(random, LENGTH, RIG_SECTOR, 128 * KIB, &offset, &bytes);
        if (i % 3 == 0) {
            g_assert_cmpint(rig_pwrite(world.rig, 1, offset, bytes), ==, 0);
        } else {
            struct model_request *request = model_begin(
                world.rig->model, i % 3 == 1 ? MODEL_ZEROES : MODEL_TRIM, 1, offset, bytes);
            int status = i % 3 == 1 ? block_device_write_zeroes(device, offset, bytes, flags)
                                    : block_device_discard(device, offset, bytes, 0);
            model_end(world.rig->model, request, status);
            g_assert_cmpint(status, ==, 0);
        }
        assert_equal_now(&world);
        g_assert_true(is_in_step(&world));
    }
    end_as_copy(&world);
}

/* The second of two writes that overlap waits where the first one is: on one side or the other. */
static void overlap(bool is_source, uint64_t first, uint64_t second)
{
    struct world world = start(MIRROR_WRITE_BLOCKING);
    struct block_node *held = is_source ? world.rig->source : world.target;
    struct guest guests[2];

    wait_in_step(&world);
    FAULT(held, .operations = FAULT_ON(WRITE), .count = 1, .hold = true);
    guest_start(&guests[0], &world, 1, first, 4 * BLOCK);
    fault_wait_held(held, 1);
    uint64_t written = fault_bytes(is_source ? world.rig->source : world.target, FAULT_ON(WRITE));
    guest_start(&guests[1], &world, 2, second, 4 * BLOCK);
    wait_ranges(&world, 2);
    g_assert_cmpuint(fault_bytes(held, FAULT_ON(WRITE)), ==, written);
    fault_clear(held);
    guest_answered(&guests[0]);
    guest_answered(&guests[1]);
    assert_equal_now(&world);
    end_as_copy(&world);
}

static void test_overlap(void)
{
    overlap(true, MIB, MIB + 2 * BLOCK);
    overlap(true, MIB + 2 * BLOCK, MIB);
    overlap(false, MIB, MIB + 2 * BLOCK);
    overlap(false, MIB + 2 * BLOCK, MIB);
}

/* Parts of one granule do not overlap, but what is copied around one of them would the other. */
static void test_parts_of_a_granule(void)
{
    struct world world = start(MIRROR_WRITE_BLOCKING);

    world.rig->max_bytes = 2 * RIG_SECTOR;
    atomic_store(&world.rig->end, 4 * BLOCK);
    rig_write(world.rig, WRITERS);
    for (unsigned i = 0; i < 6; i++) {
        mirror_change_copy_mode(world.job, i % 2 ? MIRROR_WRITE_BLOCKING : MIRROR_BACKGROUND, NULL);
        rig_wait_requests(world.rig, 100);
    }
    rig_stop(world.rig);
    wait_in_step(&world);
    assert_equal_now(&world);
    end_as_copy(&world);
}

/* What the engine has read already is not what arrives last. */
static void test_copy_in_flight(void)
{
    struct world world = start(MIRROR_BACKGROUND);
    struct guest guest;

    FAULT(world.target, .operations = FAULT_ON(WRITE), .count = 1, .hold = true);
    g_assert_cmpint(rig_pwrite(world.rig, 1, MIB, 2 * BLOCK), ==, 0);
    fault_wait_held(world.target, 1); /* the old data */
    g_assert_cmpint(mirror_change_copy_mode(world.job, MIRROR_WRITE_BLOCKING, NULL), ==, 0);
    guest_start(&guest, &world, 2, MIB + BLOCK, BLOCK);
    wait_ranges(&world, 2);
    fault_clear(world.target);
    guest_answered(&guest);
    assert_equal_now(&world);
    end_as_copy(&world);
}

/* Writers to one place only, which was dirty before, do not keep it from being copied. */
static void test_hot_granule(void)
{
    struct world world = start(MIRROR_BACKGROUND);

    g_assert_cmpint(job_user_pause(world.job, NULL), ==, 0);
    rig_wait_status(world.job, JOB_STATUS_STANDBY);
    world.rig->max_bytes = RIG_SECTOR;
    atomic_store(&world.rig->end, 2 * BLOCK);
    rig_write(world.rig, WRITERS);
    rig_wait_requests(world.rig, 10);
    g_assert_cmpint(mirror_change_copy_mode(world.job, MIRROR_WRITE_BLOCKING, NULL), ==, 0);
    g_assert_cmpint(job_user_resume(world.job, NULL), ==, 0);
    wait_in_step(&world);
    end_as_copy(&world);
}

/* ---- Modes ----------------------------------------------------------------------------------- */

static void test_switching(void)
{
    static const enum mirror_copy_mode modes[] = {MIRROR_WRITE_BLOCKING, MIRROR_BACKGROUND,
                                                  MIRROR_AUTO};
    struct world world = start(MIRROR_BACKGROUND);

    g_assert_false(is_synchronous(&world));
    rig_write(world.rig, WRITERS);
    for (unsigned i = 0; i < 12; i++) {
        g_assert_cmpint(mirror_change_copy_mode(world.job, modes[i % 3], NULL), ==, 0);
        g_assert_cmpint(is_synchronous(&world), ==, modes[i % 3] == MIRROR_WRITE_BLOCKING);
        rig_wait_requests(world.rig, 60);
    }
    expect_reason(&world, "the copy mode was changed to auto");
    g_assert_cmpint(mirror_change_copy_mode(world.job, MIRROR_WRITE_BLOCKING, NULL), ==, 0);
    rig_wait_requests(world.rig, 60);
    end_as_copy(&world);
}

static void expect_no_change(struct job *job, const char *message)
{
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(mirror_change_copy_mode(job, MIRROR_WRITE_BLOCKING, &error), <, 0);
    g_assert_cmpstr(error->message, ==, message);
}

/* A mirror that has made its copy of one moment writes no later ones there. */
static void test_too_late(void)
{
    struct world world = start(MIRROR_WRITE_BLOCKING);
    struct job *job = job_ref(world.job);

    rig_cancel_softly(world.job);
    rig_wait_status(job, JOB_STATUS_CONCLUDED);
    g_autofree char *contents = rig_contents(world.target);
    expect_no_change(job, "Job 'job0' in state 'concluded' cannot accept command verb 'change'");
    g_assert_cmpint(rig_pwrite(world.rig, 1, 0, MIB), ==, 0);
    rig_assert_contents(world.target, contents);
    rig_end_well(world.job);
    job_unref(job);
    finish(&world);
}

/* Of a mirror that is paused nothing is on its way to the target, and nobody waits for it. */
static void test_paused(void)
{
    struct world world = start(MIRROR_WRITE_BLOCKING);

    rig_write(world.rig, WRITERS);
    rig_wait_requests(world.rig, 50);
    g_assert_cmpint(job_user_pause(world.job, NULL), ==, 0);
    rig_wait_status(world.job, JOB_STATUS_STANDBY);
    uint64_t written = fault_bytes(world.target, FAULT_ON_CHANGES);
    rig_wait_requests(world.rig, 200);
    g_assert_cmpuint(fault_bytes(world.target, FAULT_ON_CHANGES), ==, written);
    g_assert_false(is_in_step(&world));
    g_assert_cmpint(job_user_resume(world.job, NULL), ==, 0);
    rig_stop(world.rig);
    wait_in_step(&world);
    assert_equal_now(&world);
    end_as_copy(&world);
}

/* In a drained section of the target nothing is written to it; guests go on after it. */
static void test_drained_target(void)
{
    struct world world = start(MIRROR_WRITE_BLOCKING);
    struct guest guest;

    wait_in_step(&world);
    struct block_drain *drain = block_drain_begin(&world.target, 1, BLOCK_PERM_ALL);
    uint64_t written = fault_bytes(world.target, FAULT_ON_CHANGES);
    guest_start(&guest, &world, 1, MIB, 4 * BLOCK);
    wait_ranges(&world, 1);
    g_assert_cmpuint(fault_bytes(world.target, FAULT_ON_CHANGES), ==, written);
    block_drain_end(drain);
    guest_answered(&guest);
    assert_equal_now(&world);
    end_as_copy(&world);
}

/*
 * Guests write faster than it is copied, by far or just so: the mirror has them wait for the
 * target, says so, and is in step then.
 */
static void test_auto(void)
{
    struct rig *rig = rig_new(16 * MIB, 1);
    struct world world = {.rig = rig, .target = rig_target(rig, "target", false)};

    rig_fill(rig);
    rig->max_bytes = 64 * KIB;
    rig_write(rig, WRITERS);
    world.options = rig_mirror_options(rig, "job0", world.target);
    world.options.copy_mode = MIRROR_AUTO;
    world.options.speed = 256 * KIB; /* so that guests are faster on a busy machine, too */
    world.job = rig_mirror(&world.options);
    g_assert_false(is_synchronous(&world));
    while (!is_synchronous(&world)) {
        g_usleep(1000);
    }
    expect_reason(&world, "guests made");
    g_assert_cmpint(job_set_speed(world.job, 0, NULL), ==, 0);
    wait_in_step(&world);
    rig_wait_requests(rig, 10);
    g_assert_cmpint(rig_wait_status(world.job, JOB_STATUS_READY), ==, JOB_STATUS_READY);
    end_as_copy(&world);
}

/* A mirror in step with guests that hardly write lets them go; the test does not wait for as long.
 */
static void test_auto_calm(void)
{
    struct world world = start(MIRROR_WRITE_BLOCKING);
    struct mirror_pace *pace = &((struct mirror *)job_state(world.job))->pace;

    g_assert_cmpint(mirror_change_copy_mode(world.job, MIRROR_AUTO, NULL), ==, 0);
    g_assert_true(is_synchronous(&world));
    pthread_mutex_lock(&pace->lock);
    pace->calm_wanted_ns = NS_PER_MS;
    pthread_mutex_unlock(&pace->lock);
    while (is_synchronous(&world)) {
        g_usleep(1000);
    }
    expect_reason(&world, "guests wrote less than half of what could be copied");
    rig_write(world.rig, WRITERS);
    rig_wait_requests(world.rig, 50);
    end_as_copy(&world);
}

/*
 * Guests whose latency is to be kept do not wait for a slow target because the mirror chose so, but
 * they do because the user did.
 */
static void test_auto_latency(void)
{
    struct world world = start(MIRROR_WRITE_BLOCKING);

    wait_in_step(&world);
    g_assert_cmpint(job_set_guest_latency(world.job, 10 * NS_PER_MS, NULL), ==, 0);
    FAULT(world.target, .operations = FAULT_ON_CHANGES, .delay_ns = 50 * NS_PER_MS);
    rig_write(world.rig, WRITERS);
    while (job_guest_p99(world.job) <= 10 * NS_PER_MS) {
        g_usleep(1000);
    }
    rig_wait_requests(world.rig, 100);
    g_assert_true(is_synchronous(&world));
    g_assert_cmpint(mirror_change_copy_mode(world.job, MIRROR_AUTO, NULL), ==, 0);
    while (is_synchronous(&world)) {
        g_usleep(1000);
    }
    expect_reason(&world, "guests waited too long for the target: their p99 was ");
    expect_reason(&world, " ms, and is to be 10.00 ms at most");
    fault_clear(world.target);
    rig_wait_requests(world.rig, 100);
    end_as_copy(&world);
}

/* ---- Trouble with the target ----------------------------------------------------------------- */

static void test_error_ignored(void)
{
    struct world world = start_with(MIRROR_WRITE_BLOCKING, 0, BLOCK_ERROR_POLICY_IGNORE);

    wait_in_step(&world);
    FAULT(world.target, .operations = FAULT_ON_CHANGES, .count = 3, .error_number = EIO);
    for (unsigned i = 0; i < 3; i++) {
        g_assert_cmpint(rig_pwrite(world.rig, 1, i * BLOCK, BLOCK), ==, 0);
    }
    rig_write(world.rig, WRITERS);
    rig_wait_requests(world.rig, 100);
    rig_stop(world.rig);
    wait_in_step(&world);
    assert_equal_now(&world);
    end_as_copy(&world);
}

static void test_error_stops(void)
{
    struct world world = start_with(MIRROR_WRITE_BLOCKING, 0, BLOCK_ERROR_POLICY_STOP);

    wait_in_step(&world);
    FAULT(world.target, .operations = FAULT_ON_CHANGES, .error_number = ENOSPC);
    rig_write(world.rig, WRITERS);
    rig_wait_status(world.job, JOB_STATUS_STANDBY);
    rig_wait_requests(world.rig, 100);
    fault_clear(world.target);
    g_assert_cmpint(job_user_resume(world.job, NULL), ==, 0);
    rig_wait_requests(world.rig, 100);
    rig_stop(world.rig);
    wait_in_step(&world);
    assert_equal_now(&world);
    end_as_copy(&world);
}

static void test_error_reported(void)
{
    struct world world = start(MIRROR_WRITE_BLOCKING);

    wait_in_step(&world);
    FAULT(world.target, .operations = FAULT_ON_CHANGES, .error_number = EIO);
    rig_write(world.rig, WRITERS);
    rig_end_badly(world.job, "Could not write target node 'target' at offset ");
    rig_wait_requests(world.rig, 100);
    finish(&world);
}

/* A guest's own write that fails is the guest's to hear of; the target gets what is there then. */
static void test_source_error(void)
{
    struct world world = start(MIRROR_WRITE_BLOCKING);

    wait_in_step(&world);
    FAULT(world.rig->source, .operations = FAULT_ON_CHANGES, .percent = 20, .error_number = EIO);
    rig_write(world.rig, WRITERS);
    rig_wait_requests(world.rig, 200);
    rig_stop(world.rig);
    g_assert_cmpuint(atomic_load(&world.rig->failed), >, 0);
    atomic_store(&world.rig->failed, 0);
    fault_clear(world.rig->source);
    wait_in_step(&world);
    assert_equal_now(&world);
    end_as_copy(&world);
}

/* The target hangs: guests wait for so long, and not with each write, and the job fails. */
static void test_hang_reported(void)
{
    struct world world = start_with(MIRROR_WRITE_BLOCKING, SHORT_NS, BLOCK_ERROR_POLICY_REPORT);

    wait_in_step(&world);
    FAULT(world.target, .operations = FAULT_ON_CHANGES, .hold = true);
    g_assert_cmpint(rig_pwrite(world.rig, 1, MIB, BLOCK), ==, 0);
    rig_end_badly(world.job, "Could not write target node 'target' at offset 1048576: Connection "
                             "timed out");
    finish(&world);
}

/* What hangs stays where it is until it ends, and nothing newer is overwritten by it. */
static void test_hang_ignored(void)
{
    struct world world = start_with(MIRROR_WRITE_BLOCKING, SHORT_NS, BLOCK_ERROR_POLICY_IGNORE);

    wait_in_step(&world);
    g_assert_cmpuint(waits_of(&world).count, ==, 0);
    FAULT(world.target, .operations = FAULT_ON_CHANGES, .count = 1, .hold = true);
    g_assert_cmpint(rig_pwrite(world.rig, 1, MIB, BLOCK), ==, 0);
    g_assert_false(is_synchronous(&world));
    for (unsigned i = 0; i < 300; i++) {
        g_assert_cmpint(rig_pwrite(world.rig, 2, MIB, BLOCK), ==, 0);
    }
    /* One has waited, as long as it may, and the job says so; the others have not. */
    g_assert_cmpuint(waits_of(&world).count, ==, 1);
    g_assert_cmpuint(waits_of(&world).longest_ns, >=, SHORT_NS / 2);
    g_assert_cmpuint(fault_held(world.target), ==, 1);
    g_assert_false(is_in_step(&world));
    fault_clear(world.target);
    wait_in_step(&world);
    assert_equal_now(&world);
    end_as_copy(&world);
}

/* With auto it is no error, but another mode. */
static void test_hang_auto(void)
{
    struct world world = start_with(MIRROR_WRITE_BLOCKING, SHORT_NS, BLOCK_ERROR_POLICY_REPORT);

    wait_in_step(&world);
    g_assert_cmpint(mirror_change_copy_mode(world.job, MIRROR_AUTO, NULL), ==, 0);
    g_assert_true(is_synchronous(&world));
    FAULT(world.target, .operations = FAULT_ON_CHANGES, .count = 1, .hold = true);
    g_assert_cmpint(rig_pwrite(world.rig, 1, MIB, BLOCK), ==, 0);
    g_assert_false(is_synchronous(&world));
    expect_reason(&world, "the target was too slow: a guest's write waited 0.1 s for it");
    fault_clear(world.target);
    rig_write(world.rig, WRITERS);
    rig_wait_requests(world.rig, 100);
    end_as_copy(&world);
}

/* A guest's write waits no longer than that for what is being copied, either. */
static void test_hanging_copy(void)
{
    struct world world = start_with(MIRROR_BACKGROUND, SHORT_NS, BLOCK_ERROR_POLICY_IGNORE);

    FAULT(world.target, .operations = FAULT_ON(WRITE), .count = 1, .hold = true);
    g_assert_cmpint(rig_pwrite(world.rig, 1, MIB, BLOCK), ==, 0);
    fault_wait_held(world.target, 1);
    g_assert_cmpint(mirror_change_copy_mode(world.job, MIRROR_WRITE_BLOCKING, NULL), ==, 0);
    g_assert_cmpuint(waits_of(&world).count, ==, 0);
    g_assert_cmpint(rig_pwrite(world.rig, 2, MIB, BLOCK), ==, 0);
    g_assert_cmpuint(fault_held(world.target), ==, 1);
    g_assert_cmpuint(waits_of(&world).count, ==, 1);
    g_assert_cmpuint(waits_of(&world).longest_ns, >=, SHORT_NS / 2);
    fault_clear(world.target);
    wait_in_step(&world);
    assert_equal_now(&world);
    end_as_copy(&world);
}

/* The default limit is far away: it is the cancel that lets the guest go. */
static void test_cancel_hanging(void)
{
    struct world world = start(MIRROR_WRITE_BLOCKING);
    struct guest guest;

    wait_in_step(&world);
    FAULT(world.target, .operations = FAULT_ON_CHANGES, .hold = true);
    guest_start(&guest, &world, 1, MIB, BLOCK);
    fault_wait_held(world.target, 1);
    g_assert_cmpint(job_cancel(world.job, true, true, NULL), ==, 0);
    guest_answered(&guest);
    rig_end_badly(world.job, g_strerror(ECANCELED));
    finish(&world);
}

static void add_tests(void)
{
    g_test_add_func("/write-through/what-is-answered-is-on-both-sides", test_answered_is_on_both);
    g_test_add_func("/write-through/overlapping-writes-have-one-order", test_overlap);
    g_test_add_func("/write-through/parts-of-a-granule-are-not-lost", test_parts_of_a_granule);
    g_test_add_func("/write-through/copying-does-not-undo-a-write", test_copy_in_flight);
    g_test_add_func("/write-through/a-hot-granule-gets-clean", test_hot_granule);
    g_test_add_func("/write-through/mode/can-change-at-any-time", test_switching);
    g_test_add_func("/write-through/mode/a-copy-of-a-moment-stays-one", test_too_late);
    g_test_add_func("/write-through/mode/a-paused-mirror-keeps-nobody", test_paused);
    g_test_add_func("/write-through/mode/a-drained-target-is-left-alone", test_drained_target);
    g_test_add_func("/write-through/mode/auto-gets-in-step-with-any-guest", test_auto);
    g_test_add_func("/write-through/mode/auto-lets-quiet-guests-go", test_auto_calm);
    g_test_add_func("/write-through/mode/auto-keeps-a-guest-s-latency", test_auto_latency);
    g_test_add_func("/write-through/error/ignored-is-copied-later", test_error_ignored);
    g_test_add_func("/write-through/error/stop-lets-guests-go-on", test_error_stops);
    g_test_add_func("/write-through/error/report-leaves-the-guest", test_error_reported);
    g_test_add_func("/write-through/error/of-the-source-is-the-guests", test_source_error);
    g_test_add_func("/write-through/hang/fails-the-job-not-the-guest", test_hang_reported);
    g_test_add_func("/write-through/hang/what-hangs-undoes-nothing", test_hang_ignored);
    g_test_add_func("/write-through/hang/auto-goes-on-in-background", test_hang_auto);
    g_test_add_func("/write-through/hang/of-copying-is-bounded-too", test_hanging_copy);
    g_test_add_func("/write-through/hang/a-cancel-lets-guests-go", test_cancel_hanging);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
