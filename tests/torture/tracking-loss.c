/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A tracked disk under many writers, with checkpoints, that again and again gets killed (a process
 * of its own, by SIGKILL), loses its power (unflushed writes lost or torn, and of the tracking
 * file, sector by sector, what was not durable), ends in order, or dies in the middle of opening,
 * of a checkpoint or of a resize, at a durable operation of the tracking file. Afterwards "changed
 * since C" holds, for each checkpoint C whose command was answered, every granule in which the disk
 * differs from what it was at C, and what it calls zero is zero (also where C is that of a session,
 * which was committed; one that was not is never there); and each persistent bitmap every
 * granule in which the disk differs from what it was when the bitmap was added or cleared.
 *
 * Every other disk is a qcow2 image, in which also what a process had not written yet of its tables
 * is lost with it. After a loss it must open and not be corrupt, and is judged by what it reads.
 *
 * How much more than the differences it holds (what was written twice with the same, and what
 * recovery added) is printed.
 */
#include "tests/torture/tracking-loss.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "block/drain.h"
#include "block/node.h"
#include "block/request.h"
#include "block/tracking-bitmaps.h"
#include "block/zero.h"
#include "formats/formats.h"
#include "formats/lose-writes.h"
#include "tests/lib/disk.h"

#define CHECKPOINTS 6
#define WORLDS      4
#define SESSIONS    12

const char *const loss_ending_names[] = {"clean end", "kill -9", "power loss",
                                         "loss or kill at a durable write"};
const char *const loss_kind_names[] = {"raw", "qcow2"};

/* A checkpoint and the disk as it was then. */
struct record {
    enum loss_state state;
    unsigned number;
    uint8_t uuid[TRACKING_UUID_BYTES]; /* of a pending one */
    uint64_t length;
    uint8_t contents[DISK_MAX];
};

/* In memory that a process that gets killed shares with the one that looks afterwards. */
struct shared {
    struct record records[CHECKPOINTS];
    unsigned next_number;
    _Atomic uint64_t requests;
};

static struct shared *shared;
static struct counts {
    uint64_t losses, changed_bytes, equal_bytes, zero_bytes;
} counts[KINDS][ENDINGS];

/* ---- A disk, and who writes to it -------------------------------------------------------------
 */

static int write_something(struct world *world, struct test_random *random, uint64_t offset,
                           uint64_t bytes)
{
    g_autofree uint64_t *buffer = g_malloc0(bytes);

    if (test_random_chance(random, 95)) {
        uint64_t first = test_random_u64(random);

        for (uint64_t i = 0; i < bytes / 8; i++) {
            buffer[i] = first + i;
        }
    }
    return block_device_pwrite(world->device, buffer, offset, bytes,
                               test_random_chance(random, 20) ? BLOCK_REQUEST_FUA : 0);
}

static int step(struct world *world, struct test_random *random)
{
    uint64_t most = test_random_chance(random, 90) ? 32 * KIB : 2 * MIB;
    uint64_t length = block_device_length(world->device), offset, bytes;
    uint64_t dice = test_random_below(random, 100);

    test_random_range(random, length, SECTOR, most, &offset, &bytes);
    if (test_random_chance(random, 30)) {
        /* Some places are busy, so that requests meet. */
        offset %= MIN_OF(length - bytes + SECTOR, 256 * KIB);
    }
    if (dice < 60) {
        return write_something(world, random, offset, MIN_OF(bytes, 64 * KIB));
    }
    if (dice < 75) {
        return block_device_write_zeroes(world->device, offset, bytes,
                                         dice & 1 ? BLOCK_REQUEST_MAY_UNMAP : 0);
    }
    if (dice < 95) {
        return block_device_discard(world->device, offset, bytes, 0);
    }
    return block_device_flush(world->device);
}

static void *run_writer(void *data)
{
    struct writer *writer = data;
    int status = 0;

    while (!atomic_load(&writer->world->stop) && status != -EIO && status != -ESHUTDOWN) {
        status = step(writer->world, &writer->random);
        atomic_fetch_add_explicit(&shared->requests, 1, memory_order_relaxed);
    }
    return NULL;
}

static void start_writers(struct world *world)
{
    atomic_store(&world->stop, false);
    for (unsigned i = 0; i < WRITERS; i++) {
        world->writers[i].world = world;
        world->writers[i].random = test_random_split(&world->random);
        g_assert_cmpint(
            pthread_create(&world->writers[i].thread, NULL, run_writer, &world->writers[i]), ==, 0);
    }
}

static void stop_writers(struct world *world)
{
    atomic_store(&world->stop, true);
    for (unsigned i = 0; i < WRITERS; i++) {
        pthread_join(world->writers[i].thread, NULL);
    }
}

static void assert_tracked(struct change_tracker *tracker)
{
    struct tracking_info info;

    tracking_get_info(tracker, &info);
    if (info.is_lost && !loss_has_happened()) {
        g_error("tracking is lost: %s", info.reason);
    }
    tracking_info_clear(&info);
}

static void open_disk(struct world *world)
{
    struct tracking_options options = {
        .device = "vda",
        .path = loss_path,
        .disk_path = world->disk_path,
        .geometry = world->geometry,
    };

    tracking_identify(world->disk_path, &options.identity);
    world->root = loss_disk_open(world);
    world->tracker = tracking_start(&options, world->root);
    assert_tracked(world->tracker);
    world->device = block_device_new("vda", world->root, NULL);
    g_assert_nonnull(world->device);
    loss_bitmaps_open(world);
    block_device_set_tracker(world->device, world->tracker);
}

static void close_disk(struct world *world)
{
    struct block_device *device = block_device_ref(world->device);

    tracking_bitmaps_settle(world->tracker);
    block_device_remove(world->device);
    block_device_unref(device);
    block_node_unref(world->root);
}

/* ---- What is done to it -----------------------------------------------------------------------
 */

static struct record *find_record(enum loss_state state)
{
    for (unsigned i = 0; i < CHECKPOINTS; i++) {
        if (shared->records[i].state == state) {
            return &shared->records[i];
        }
    }
    return NULL;
}

static char *record_name(const struct record *record)
{
    return g_strdup_printf("c%u", record->number);
}

static void remove_one(struct world *world)
{
    struct record *record = &shared->records[test_random_below(&world->random, CHECKPOINTS)];

    if (record->state == ADDED) {
        g_autofree char *name = record_name(record);

        record->state = MAYBE_REMOVED;
        int status = tracking_checkpoint_remove(world->tracker, name, NULL);
        if (!loss_has_happened()) {
            g_assert_cmpint(status, ==, 0);
            record->state = ABSENT;
        }
    }
}

/* Unless all was over before. */
static void note_answer(struct record *record, int status, const GError *error,
                        enum loss_state state)
{
    if (!loss_has_happened()) {
        g_assert_no_error(error);
        g_assert_cmpint(status, ==, 0);
        record->state = state;
    }
}

/* The disk as it is now; NULL: there are enough. */
static struct record *new_record(struct world *world, enum loss_state state)
{
    struct record *record = find_record(ABSENT);

    if (record) {
        record->number = ++shared->next_number;
        record->length = loss_disk_read_open(world, record->contents);
        record->state = state;
    }
    return record;
}

/* Drained. */
static void add_one(struct world *world)
{
    struct record *record = new_record(world, MAYBE_ADDED);
    g_autoptr(GError) error = NULL;

    if (record) {
        g_autofree char *name = record_name(record);
        int status = tracking_checkpoint_add(world->tracker, world->root, name, &error);

        note_answer(record, status, error, ADDED);
    }
}

/* Drained. As a session does. */
static void begin_one(struct world *world)
{
    struct record *record = new_record(world, PENDING);
    g_autoptr(GError) error = NULL;

    if (record) {
        g_autofree char *name = record_name(record);
        int status =
            tracking_checkpoint_begin(world->tracker, world->root, name, record->uuid, &error);

        note_answer(record, status, error, PENDING);
    }
}

/* The end of a session, if there is one. */
static void end_one(struct world *world)
{
    struct record *record = find_record(PENDING);
    g_autofree char *name = record ? record_name(record) : NULL;
    g_autoptr(GError) error = NULL;

    if (record && test_random_chance(&world->random, 70)) {
        record->state = MAYBE_ADDED;
        int status = tracking_checkpoint_commit(world->tracker, name, record->uuid, &error);
        note_answer(record, status, error, ADDED);
    } else if (record) {
        int status = tracking_checkpoint_drop(world->tracker, name, record->uuid, &error);
        note_answer(record, status, error, ABSENT);
    }
}

static void change_checkpoints(struct world *world)
{
    switch (test_random_below(&world->random, 3)) {
    case 0:
        add_one(world);
        break;
    case 1:
        begin_one(world);
        break;
    default:
        end_one(world);
    }
}

static uint64_t new_length(struct world *world)
{
    uint64_t length = align_up(DISK_MAX - test_random_below(&world->random, DISK_MAX / 2), SECTOR);

    if (test_random_chance(&world->random, 50)) {
        tracking_prepare(world->tracker, length);
    }
    return length;
}

/* Drained, and as commands do it. Nothing of the disk's is lost by it. */
static void resize(struct world *world, uint64_t length)
{
    tracking_resize(world->tracker, MAX_OF(length, world->length));
    if (!loss_has_happened()) {
        g_assert_cmpint(block_node_flush(world->root), ==, 0);
        g_assert_cmpint(block_node_set_length(world->root, length, BLOCK_PREALLOCATION_OFF, NULL),
                        ==, 0);
        world->length = length;
        tracking_resize(world->tracker, length);
    }
}

static void administer(struct world *world)
{
    uint64_t dice = test_random_below(&world->random, 100);

    if (dice < 20) {
        remove_one(world);
        return;
    }
    if (dice < 45) {
        loss_bitmaps_administer(world);
        return;
    }
    if (dice < 55) {
        end_one(world);
        return;
    }
    /* Also where a checkpoint comes in between. */
    uint64_t length = new_length(world);
    AUTO(block_drain) drain = block_drain_begin(&world->root, 1, BLOCK_PERM_WRITE);
    if (dice < 70) {
        begin_one(world);
    } else if (dice < 88 || world->loses) {
        add_one(world);
    } else {
        resize(world, length);
    }
}

static void run_for_a_while(struct world *world)
{
    unsigned steps = (unsigned)test_random_below(&world->random, 6);

    for (unsigned i = 0; i < steps; i++) {
        g_usleep(test_random_below(&world->random, 4000));
        administer(world);
    }
    g_usleep(test_random_below(&world->random, 4000));
}

/* ---- Ends -------------------------------------------------------------------------------------
 */

/* Without the power nothing that has reached the storage is lost, and nothing more reaches it. */
static void lose_disk(struct world *world, bool with_power)
{
    struct lose_writes_plan plan = {
        .probability = with_power ? test_random_below(&world->random, 101) : 0,
        .tear = test_random_chance(&world->random, 50) ? SECTOR : 0,
        .seed = test_random_u64(&world->random),
        .end = LOSE_WRITES_END_NODE,
    };
    struct lose_writes_result result;

    if (!world->loses) {
        return; /* it was all written back just in time */
    }
    AUTO(block_node) lossy = block_node_find("lossy");
    g_assert_cmpint(lose_writes_now(lossy, &plan, &result, NULL), ==, 0);
}

static void end_cleanly(struct world *world)
{
    open_disk(world);
    start_writers(world);
    run_for_a_while(world);
    stop_writers(world);
    assert_tracked(world->tracker);
    tracking_take_samples(world->tracker, world->root);
    close_disk(world);
    tracking_bitmaps_end(world->tracker);
    tracking_finish(world->tracker);
}

static void end_with_power_loss(struct world *world)
{
    open_disk(world);
    start_writers(world);
    run_for_a_while(world);
    assert_tracked(world->tracker);
    lose_disk(world, true);
    loss_happen(true);
    stop_writers(world);
    close_disk(world);
    tracking_bitmaps_end(world->tracker);
    tracking_abandon(world->tracker);
    loss_put_remains();
}

/* In another process, which is killed. */
static void end_by_kill(struct world *world)
{
    uint64_t us = test_random_below(&world->random, 15000);
    uint64_t requests = atomic_load(&shared->requests);
    pid_t child = fork();

    g_assert_cmpint(child, >=, 0);
    if (child == 0) {
        open_disk(world);
        start_writers(world);
        while (true) {
            run_for_a_while(world);
        }
    }
    while (atomic_load(&shared->requests) == requests) {
        int status;

        g_assert_cmpint(waitpid(child, &status, WNOHANG), ==, 0);
        g_usleep(200);
    }
    g_usleep(us);
    kill(child, SIGKILL);
    int status;
    g_assert_cmpint(waitpid(child, &status, 0), ==, child);
    g_assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    (void)test_random_u64(&world->random);
}

/* At a durable operation while it is opened, or while the disk stands still for a command. */
static void end_dying(struct world *world)
{
    bool at_open = test_random_chance(&world->random, 40);
    bool with_power = test_random_chance(&world->random, 60);
    unsigned operations = (unsigned)test_random_between(&world->random, 1, 8);

    if (at_open) {
        loss_arm(with_power, operations);
    }
    open_disk(world);
    if (!at_open) {
        start_writers(world);
        run_for_a_while(world);
        /* Nobody waits to write when it has happened: the disk is to stay as it is then. */
        stop_writers(world);
        loss_arm(with_power, operations);
        if (test_random_chance(&world->random, 40)) {
            loss_bitmaps_administer(world);
        } else if (test_random_chance(&world->random, 60) || world->loses) {
            change_checkpoints(world);
        } else {
            resize(world, new_length(world));
        }
    }
    loss_happen(with_power);
    lose_disk(world, with_power);
    block_device_set_tracker(world->device, NULL);
    close_disk(world);
    tracking_bitmaps_end(world->tracker);
    tracking_abandon(world->tracker);
    loss_put_remains();
}

/* ---- Judging ----------------------------------------------------------------------------------
 */

static int read_contents(void *data, void *buffer, uint64_t offset, uint64_t bytes)
{
    memcpy(buffer, (const uint8_t *)data + offset, bytes);
    return 0;
}

/* One granule, of the disk and of what is said to have changed since the checkpoint. */
static void judge_granule(const struct world *world, const struct tracking_file *file,
                          const struct record *record, uint32_t epoch, const uint8_t *disk,
                          uint64_t granule)
{
    uint64_t offset = granule << file->map.shift;
    uint64_t bytes = MIN_OF(UINT64_C(1) << file->map.shift, file->map.length - offset);
    uint64_t start, count;
    enum change_state state = CHANGE_DATA;
    bool is_changed = change_map_next(&file->map, (uint16_t)epoch, offset, offset + bytes, &start,
                                      &count, &state);
    bool differs = offset + bytes > record->length ||
                   memcmp(disk + offset, record->contents + offset, bytes) != 0;

    if (differs && !is_changed) {
        g_error("%s, %s: checkpoint c%u (epoch %u of %u): the granule at %" PRIu64
                " differs and has not changed: value %x",
                loss_kind_names[world->is_qcow2], loss_ending_names[world->ending], record->number,
                epoch, file->header.epoch, offset, change_map_value_at(&file->map, granule));
    }
    if (is_changed && state == CHANGE_ZERO && !buffer_is_zero(disk + offset, bytes)) {
        g_error("%s, %s: checkpoint c%u (epoch %u of %u): the granule at %" PRIu64
                " is no zeroes: value %x",
                loss_kind_names[world->is_qcow2], loss_ending_names[world->ending], record->number,
                epoch, file->header.epoch, offset, change_map_value_at(&file->map, granule));
    }
    struct counts *sum = &counts[world->is_qcow2][world->ending];
    sum->changed_bytes += is_changed ? bytes : 0;
    sum->equal_bytes += is_changed && !differs ? bytes : 0;
    sum->zero_bytes += is_changed && state == CHANGE_ZERO ? bytes : 0;
}

static void judge_record(const struct world *world, const struct tracking_file *file,
                         struct record *record, const uint8_t *disk)
{
    g_autofree char *name = record_name(record);
    struct tracking_checkpoint *checkpoint = tracking_directory_find(file->directory, name);

    if (checkpoint && record->state == PENDING) {
        g_error("%s, %s: checkpoint %s was never committed, and is there",
                loss_kind_names[world->is_qcow2], loss_ending_names[world->ending], name);
    }
    if (!checkpoint) {
        if (record->state == ADDED) {
            g_error("%s, %s: checkpoint %s is gone", loss_kind_names[world->is_qcow2],
                    loss_ending_names[world->ending], name);
        }
        record->state = ABSENT;
        return;
    }
    g_assert_false(checkpoint->is_broken);
    record->state = ADDED;
    for (uint64_t i = 0; i < file->map.granules; i++) {
        judge_granule(world, file, record, checkpoint->epoch, disk, i);
    }
}

static void judge(struct world *world)
{
    static uint8_t contents[DISK_MAX];
    struct tracking_disk disk = {
        .path = world->disk_path,
        .length = loss_disk_read_closed(world, contents),
        .read = read_contents,
        .data = contents,
    };
    enum tracking_loss loss;
    GError *error = NULL;

    tracking_identify(world->disk_path, &disk.identity);
    struct tracking_file *file = tracking_file_open(loss_path, &disk, &loss, &error);
    if (!file) {
        g_error("%s, %s: lost: %s", loss_kind_names[world->is_qcow2],
                loss_ending_names[world->ending], error->message);
    }
    if (world->ending == END_KILL) {
        world->length = disk.length; /* whatever the process made it */
    }
    g_assert_cmpuint(file->map.length, ==, world->length);
    for (unsigned i = 0; i < CHECKPOINTS; i++) {
        if (shared->records[i].state != ABSENT) {
            judge_record(world, file, &shared->records[i], contents);
        }
    }
    loss_bitmaps_judge(world, file, contents);
    counts[world->is_qcow2][world->ending].losses++;
    tracking_file_unref(file);
}

/* ---- Worlds -----------------------------------------------------------------------------------
 */

static void run_world(struct test_random *random, bool is_qcow2)
{
    static void (*const ends[])(struct world * world) = {end_cleanly, end_by_kill,
                                                         end_with_power_loss, end_dying};
    struct world world = {
        .directory = test_directory_new(true),
        .is_qcow2 = is_qcow2,
        .length = DISK_MAX - test_random_below(random, 8) * SECTOR,
        .random = test_random_split(random),
    };
    unsigned granule_shift = 12 + 2 * (unsigned)test_random_below(random, 3);

    loss_begin_world(test_random_split(random));
    memset(shared, 0, offsetof(struct shared, requests));
    loss_bitmaps_begin_world();
    world.geometry = (struct tracking_geometry){
        .granule = UINT64_C(1) << granule_shift,
        .extent = test_random_chance(random, 70) ? 256 * KIB : 64 * KIB,
        .extents = 16,
    };
    world.disk_path = test_path(world.directory, "disk");
    loss_path = test_path(world.directory, "disk.tracking");
    loss_disk_make(&world);
    end_cleanly(&world);
    judge(&world); /* a session's checkpoint that it began is not there in the next */
    for (unsigned i = 0; i < SESSIONS; i++) {
        world.ending = (enum ending)(test_random_chance(random, 10)
                                         ? END_CLEAN
                                         : test_random_between(random, END_KILL, END_DYING));

        /* An image that is closed afterwards, in this process, says more than one of a dead one. */
        world.loses = world.ending == END_POWER || (is_qcow2 && world.ending == END_DYING) ||
                      test_random_chance(random, 50);
        ends[world.ending](&world);
        judge(&world);
    }
    g_free(world.disk_path);
    g_free(loss_path);
    test_directory_free(world.directory);
}

static void report(unsigned kind, enum ending ending)
{
    const struct counts *sum = &counts[kind][ending];

    g_test_message(
        "%s, %s: %" PRIu64 " times; changed %" PRIu64 " KiB, of them %" PRIu64
        " KiB zero and %" PRIu64 " KiB (%.1f %%) equal to the checkpoint",
        loss_kind_names[kind], loss_ending_names[ending], sum->losses, sum->changed_bytes / KIB,
        sum->zero_bytes / KIB, sum->equal_bytes / KIB,
        sum->changed_bytes ? 100.0 * (double)sum->equal_bytes / (double)sum->changed_bytes : 0.0);
}

static void test_worlds(void)
{
    struct test_random random = test_random_new(test_seed());
    unsigned long worlds = test_cases(WORLDS);
    unsigned first = (unsigned)test_random_below(&random, KINDS); /* there may be but one world */

    for (unsigned long i = 0; i < worlds; i++) {
        run_world(&random, (first + i) % KINDS);
    }
    for (unsigned i = 0; i < KINDS * ENDINGS; i++) {
        report(i / ENDINGS, i % ENDINGS);
    }
    loss_bitmaps_report();
    g_test_message("%" PRIu64 " requests", (uint64_t)atomic_load(&shared->requests));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_log_set_always_fatal(G_LOG_FATAL_MASK | G_LOG_LEVEL_CRITICAL);
    formats_register();
    loss_begin();
    loss_bitmaps_begin();
    shared = loss_share(sizeof(*shared));
    g_test_add_func("/tracking-loss/no-change-is-missed-by-kills-and-power-losses", test_worlds);
    return g_test_run();
}
