/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A tracked disk under many writers, with checkpoints, that again and again gets killed (a process
 * of its own, by SIGKILL), loses its power (unflushed writes lost or torn, and of the tracking
 * file, sector by sector, what was not durable), ends in order, or dies in the middle of opening,
 * of a checkpoint or of a resize, at a durable operation of the tracking file. Afterwards "changed
 * since C" holds, for each checkpoint C whose command was answered, every granule in which the disk
 * differs from what it was at C, and what it calls zero is zero.
 *
 * How much more than the differences it holds (what was written twice with the same, and what
 * recovery added) is printed.
 */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "block/align.h"
#include "block/device.h"
#include "block/drain.h"
#include "block/node.h"
#include "block/request.h"
#include "block/tracking-file.h"
#include "block/tracking-io.h"
#include "block/tracking.h"
#include "block/zero.h"
#include "formats/formats.h"
#include "formats/lose-writes.h"
#include "tests/lib/disk.h"
#include "tests/lib/random.h"

#define DISK_MAX    (6 * MIB)
#define SECTOR      UINT64_C(512)
#define WRITERS     8
#define CHECKPOINTS 6
#define FILES       8
#define FILE_MAX    (512 * KIB)
#define WORLDS      8
#define SESSIONS    12

enum ending { END_CLEAN, END_KILL, END_POWER, END_DYING, ENDINGS };
static const char *const ending_names[] = {"clean end", "kill -9", "power loss",
                                           "loss or kill at a durable write"};

enum record_state { ABSENT, MAYBE_ADDED, ADDED, MAYBE_REMOVED };

/* A checkpoint and the disk as it was then. */
struct record {
    enum record_state state;
    unsigned number;
    uint64_t length;
    uint8_t contents[DISK_MAX];
};

/* What is durable of a file. */
struct shadow {
    ino_t inode; /* 0: free */
    uint64_t bytes;
    uint8_t contents[FILE_MAX];
};

/* In memory that a process that gets killed shares with the one that looks afterwards. */
struct shared {
    struct record records[CHECKPOINTS];
    unsigned next_number;
    struct shadow shadows[FILES];
    unsigned next_shadow;
    ino_t named; /* which file a power loss leaves under the name */
    uint8_t before_rename[FILE_MAX];
    uint64_t before_rename_bytes;
    _Atomic uint64_t requests;
};

static struct shared *shared;
static char *tracking_path;
static uint8_t boot[16] = {1};
static struct tracking_io real_io;

/* Under the lock: what a loss leaves, once it has happened. */
static pthread_mutex_t io_lock = PTHREAD_MUTEX_INITIALIZER;
static bool has_happened, is_power_loss;
static unsigned operations_left; /* until it happens; 0: not armed */
static GByteArray *remains;
static ino_t remains_of;
static struct test_random chaos;

static uint64_t losses[ENDINGS], changed_bytes[ENDINGS], equal_bytes[ENDINGS], zero_bytes[ENDINGS];

/* ---- Storage that loses its power -------------------------------------------------------------
 */

static ino_t inode_of(int fd)
{
    struct stat information;

    g_assert_cmpint(fstat(fd, &information), ==, 0);
    return information.st_ino;
}

static ino_t inode_named(void)
{
    struct stat information;

    return stat(tracking_path, &information) == 0 ? information.st_ino : 0;
}

static struct shadow *find_shadow(ino_t inode)
{
    for (unsigned i = 0; i < FILES; i++) {
        if (shared->shadows[i].inode == inode) {
            return &shared->shadows[i];
        }
    }
    struct shadow *shadow;
    do {
        shadow = &shared->shadows[shared->next_shadow++ % FILES];
    } while (shadow->inode && shadow->inode == shared->named);
    *shadow = (struct shadow){.inode = inode};
    return shadow;
}

static void note_durable(struct shadow *shadow, const void *bytes, uint64_t size, uint64_t offset)
{
    g_assert_cmpuint(offset + size, <=, FILE_MAX);
    if (size) {
        memcpy(shadow->contents + offset, bytes, size);
    }
    shadow->bytes = MAX_OF(shadow->bytes, offset + size);
}

static uint64_t read_all(const char *path, uint8_t *buffer, uint64_t size)
{
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t count = fd < 0 ? 0 : pread(fd, buffer, size, 0);

    g_assert_cmpint(count, >=, 0);
    return (uint64_t)count;
}

/* Lock held. The name may still be, or be again, that of the file from before a rename. */
static void happen(bool with_power)
{
    static uint8_t current[FILE_MAX];
    ino_t inode = inode_named();
    uint64_t bytes = read_all(tracking_path, current, sizeof(current));

    has_happened = true;
    if (with_power && shared->named && inode != shared->named && test_random_chance(&chaos, 50)) {
        inode = shared->named;
        bytes = shared->before_rename_bytes;
        memcpy(current, shared->before_rename, bytes);
    }
    if (with_power) {
        struct shadow *shadow = find_shadow(inode);
        unsigned percent = (unsigned)test_random_below(&chaos, 101);

        for (uint64_t at = 0; at < bytes; at += SECTOR) {
            if (test_random_chance(&chaos, percent)) {
                memcpy(current + at, shadow->contents + at, MIN_OF(SECTOR, bytes - at));
            }
        }
    }
    remains_of = inode;
    g_byte_array_set_size(remains, 0);
    g_byte_array_append(remains, current, (guint)bytes);
}

/* Lock held. One more durable operation: true if nothing counts any more. */
static bool count_operation(void)
{
    if (!has_happened && operations_left && --operations_left == 0) {
        happen(is_power_loss);
    }
    return has_happened;
}

static void dawdle(void)
{
    pthread_mutex_lock(&io_lock);
    uint64_t us = test_random_chance(&chaos, 20) ? test_random_below(&chaos, 300) : 0;
    pthread_mutex_unlock(&io_lock);
    if (us) {
        g_usleep(us);
    }
}

static int lossy_write(int fd, const void *bytes, uint64_t size, uint64_t offset)
{
    int status = real_io.write_durably(fd, bytes, size, offset);

    dawdle();
    SCOPE_LOCK(&io_lock);
    if (!has_happened) {
        struct shadow *shadow = find_shadow(inode_of(fd));
        /* Torn, and then not answered. */
        bool is_last = operations_left == 1 && test_random_chance(&chaos, 70);
        uint64_t kept = is_last ? align_down(test_random_below(&chaos, size + 1), SECTOR) : size;

        note_durable(shadow, bytes, kept, offset);
        count_operation();
    }
    return status;
}

/* What is stored after a sync began need not be in it. */
static int lossy_sync_mapping(int fd, struct guarded_mapping *mapping, uint64_t offset,
                              uint64_t size)
{
    g_autofree uint16_t *copy = g_malloc(size);
    _Atomic uint16_t *values = guarded_mapping_address(mapping);

    for (uint64_t i = 0; i < size / 2; i++) {
        copy[i] = atomic_load_explicit(&values[i], memory_order_relaxed);
    }
    dawdle();
    SCOPE_LOCK(&io_lock);
    if (!has_happened) {
        note_durable(find_shadow(inode_of(fd)), copy, size, offset);
        count_operation();
    }
    return 0;
}

static int lossy_sync_file(int fd)
{
    SCOPE_LOCK(&io_lock);
    struct stat information;

    g_assert_cmpint(fstat(fd, &information), ==, 0);
    if (has_happened || count_operation()) {
        return 0;
    }
    if (S_ISDIR(information.st_mode)) {
        shared->named = inode_named();
    } else {
        struct shadow *shadow = find_shadow(information.st_ino);

        shadow->bytes = (uint64_t)pread(fd, shadow->contents, FILE_MAX, 0);
        /* The name is moved next. */
        shared->before_rename_bytes = read_all(tracking_path, shared->before_rename, FILE_MAX);
    }
    return 0;
}

static void lossy_boot_id(uint8_t *id)
{
    memcpy(id, boot, sizeof(boot));
}

/* ---- A disk, and who writes to it -------------------------------------------------------------
 */

struct world {
    char *directory, *disk_path;
    uint64_t length;
    struct tracking_geometry geometry;
    struct test_random random;

    bool loses; /* its disk can lose writes, and then have no other length */
    struct block_node *root;
    struct block_device *device;
    struct change_tracker *tracker;
    _Atomic bool stop;
    struct writer {
        struct world *world;
        struct test_random random;
        pthread_t thread;
    } writers[WRITERS];
};

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
    if (info.is_lost && !has_happened) {
        g_error("tracking is lost: %s", info.reason);
    }
    tracking_info_clear(&info);
}

static void open_disk(struct world *world)
{
    struct tracking_options options = {
        .device = "vda",
        .path = tracking_path,
        .disk_path = world->disk_path,
        .geometry = world->geometry,
    };

    tracking_identify(world->disk_path, &options.identity);
    world->root =
        world->loses
            ? test_open("driver=lose-writes,discard=unmap,file.driver=file,file.discard=unmap,"
                        "file.filename=%s",
                        world->disk_path)
            : test_open("driver=file,discard=unmap,filename=%s", world->disk_path);
    world->tracker = tracking_start(&options, world->root);
    assert_tracked(world->tracker);
    world->device = block_device_new("vda", world->root, NULL);
    g_assert_nonnull(world->device);
    block_device_set_tracker(world->device, world->tracker);
}

static void close_disk(struct world *world)
{
    struct block_device *device = block_device_ref(world->device);

    block_device_remove(world->device);
    block_device_unref(device);
    block_node_unref(world->root);
}

/* ---- What is done to it -----------------------------------------------------------------------
 */

static struct record *find_record(enum record_state state)
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
        if (!has_happened) {
            g_assert_cmpint(status, ==, 0);
            record->state = ABSENT;
        }
    }
}

/* Drained. */
static void add_one(struct world *world)
{
    struct record *record = find_record(ABSENT);
    g_autoptr(GError) error = NULL;

    if (!record) {
        return;
    }
    record->number = ++shared->next_number;
    record->length = read_all(world->disk_path, record->contents, DISK_MAX);
    record->state = MAYBE_ADDED;
    g_autofree char *name = record_name(record);
    int status = tracking_checkpoint_add(world->tracker, world->root, name, &error);
    if (!has_happened) {
        g_assert_no_error(error);
        g_assert_cmpint(status, ==, 0);
        record->state = ADDED;
    }
}

/* Drained, and as commands do it. Nothing of the disk's is lost by it. */
static void resize(struct world *world)
{
    uint64_t length = align_up(DISK_MAX - test_random_below(&world->random, DISK_MAX / 2), SECTOR);

    tracking_resize(world->tracker, MAX_OF(length, world->length));
    if (!has_happened) {
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

    if (dice < 30) {
        remove_one(world);
        return;
    }
    AUTO(block_drain) drain = block_drain_begin(&world->root, 1, BLOCK_PERM_WRITE);
    if (dice < 85 || world->loses) {
        add_one(world);
    } else {
        resize(world);
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

static void lose_disk(struct world *world)
{
    struct lose_writes_plan plan = {
        .probability = test_random_below(&world->random, 101),
        .tear = test_random_chance(&world->random, 50) ? SECTOR : 0,
        .seed = test_random_u64(&world->random),
        .end = LOSE_WRITES_END_NODE,
    };
    struct lose_writes_result result;

    if (!world->loses) {
        return; /* it was all written back just in time */
    }
    g_assert_cmpint(lose_writes_now(world->root, &plan, &result, NULL), ==, 0);
}

static void put_remains(void)
{
    AUTO_CLOSE int fd = open(tracking_path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

    g_assert_cmpint(fd, >=, 0);
    g_assert_cmpint(ftruncate(fd, 0), ==, 0);
    g_assert_cmpint(pwrite(fd, remains->data, remains->len, 0), ==, (gssize)remains->len);
    struct shadow *shadow = find_shadow(inode_of(fd));
    if (!is_power_loss && inode_of(fd) != remains_of) {
        ino_t inode = shadow->inode;

        *shadow = *find_shadow(remains_of);
        shadow->inode = inode;
        shared->named = shared->named == remains_of ? inode : shared->named;
    }
    if (is_power_loss) {
        /* What is there now is what is durable. */
        memcpy(shadow->contents, remains->data, remains->len);
        shadow->bytes = remains->len;
        shared->named = inode_of(fd);
        boot[1]++;
        boot[2] += boot[1] == 0;
    }
    has_happened = false;
    operations_left = 0;
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
    tracking_finish(world->tracker);
}

static void end_with_power_loss(struct world *world)
{
    open_disk(world);
    start_writers(world);
    run_for_a_while(world);
    assert_tracked(world->tracker);
    lose_disk(world);
    pthread_mutex_lock(&io_lock);
    is_power_loss = true;
    happen(true);
    pthread_mutex_unlock(&io_lock);
    stop_writers(world);
    close_disk(world);
    tracking_abandon(world->tracker);
    put_remains();
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
    struct stat information;
    g_assert_cmpint(stat(world->disk_path, &information), ==, 0);
    world->length = (uint64_t)information.st_size;
    (void)test_random_u64(&world->random);
}

static void arm(struct world *world)
{
    pthread_mutex_lock(&io_lock);
    is_power_loss = test_random_chance(&world->random, 60);
    operations_left = (unsigned)test_random_between(&world->random, 1, 8);
    pthread_mutex_unlock(&io_lock);
}

/* At a durable operation while it is opened, or while the disk stands still for a command. */
static void end_dying(struct world *world)
{
    bool at_open = test_random_chance(&world->random, 40);

    if (at_open) {
        arm(world);
    }
    open_disk(world);
    if (!at_open) {
        start_writers(world);
        run_for_a_while(world);
        /* Nobody waits to write when it has happened: the disk is to stay as it is then. */
        stop_writers(world);
        arm(world);
        if (test_random_chance(&world->random, 50) || world->loses) {
            add_one(world);
        } else {
            resize(world);
        }
    }
    pthread_mutex_lock(&io_lock);
    if (!has_happened) {
        happen(is_power_loss);
    }
    pthread_mutex_unlock(&io_lock);
    if (is_power_loss) {
        lose_disk(world);
    }
    block_device_set_tracker(world->device, NULL);
    close_disk(world);
    tracking_abandon(world->tracker);
    put_remains();
}

/* ---- Judging ----------------------------------------------------------------------------------
 */

static int read_file(void *data, void *buffer, uint64_t offset, uint64_t bytes)
{
    const struct world *world = data;
    AUTO_CLOSE int fd = open(world->disk_path, O_RDONLY | O_CLOEXEC);

    return fd >= 0 && pread(fd, buffer, bytes, (off_t)offset) == (ssize_t)bytes ? 0 : -EIO;
}

/* One granule; returns false if it differs from the checkpoint and is not called changed. */
static void judge_granule(const struct tracking_file *file, const struct record *record,
                          uint32_t epoch, const uint8_t *disk, uint64_t granule, enum ending ending)
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
        g_error("%s: checkpoint c%u (epoch %u of %u): the granule at %" PRIu64
                " differs and has not changed: value %x",
                ending_names[ending], record->number, epoch, file->header.epoch, offset,
                change_map_value_at(&file->map, granule));
    }
    if (is_changed && state == CHANGE_ZERO && !buffer_is_zero(disk + offset, bytes)) {
        g_error("%s: checkpoint c%u (epoch %u of %u): the granule at %" PRIu64
                " is no zeroes: value %x",
                ending_names[ending], record->number, epoch, file->header.epoch, offset,
                change_map_value_at(&file->map, granule));
    }
    changed_bytes[ending] += is_changed ? bytes : 0;
    equal_bytes[ending] += is_changed && !differs ? bytes : 0;
    zero_bytes[ending] += is_changed && state == CHANGE_ZERO ? bytes : 0;
}

static void judge_record(const struct tracking_file *file, struct record *record,
                         const uint8_t *disk, enum ending ending)
{
    g_autofree char *name = record_name(record);
    struct tracking_checkpoint *checkpoint = tracking_directory_find(file->directory, name);

    if (!checkpoint) {
        if (record->state == ADDED) {
            g_error("%s: checkpoint %s is gone", ending_names[ending], name);
        }
        record->state = ABSENT;
        return;
    }
    g_assert_false(checkpoint->is_broken);
    record->state = ADDED;
    for (uint64_t i = 0; i < file->map.granules; i++) {
        judge_granule(file, record, checkpoint->epoch, disk, i, ending);
    }
}

static void judge(struct world *world, enum ending ending)
{
    static uint8_t contents[DISK_MAX];
    struct tracking_disk disk = {
        .path = world->disk_path,
        .length = read_all(world->disk_path, contents, DISK_MAX),
        .read = read_file,
        .data = world,
    };
    enum tracking_loss loss;
    GError *error = NULL;

    tracking_identify(world->disk_path, &disk.identity);
    struct tracking_file *file = tracking_file_open(tracking_path, &disk, &loss, &error);
    if (!file) {
        g_error("%s: lost: %s", ending_names[ending], error->message);
    }
    g_assert_cmpuint(file->map.length, ==, world->length);
    for (unsigned i = 0; i < CHECKPOINTS; i++) {
        if (shared->records[i].state != ABSENT) {
            judge_record(file, &shared->records[i], contents, ending);
        }
    }
    losses[ending]++;
    tracking_file_abandon(file);
}

/* ---- Worlds -----------------------------------------------------------------------------------
 */

static void run_world(struct test_random *random)
{
    static void (*const ends[])(struct world * world) = {end_cleanly, end_by_kill,
                                                         end_with_power_loss, end_dying};
    struct world world = {
        .directory = test_directory_new(true),
        .length = DISK_MAX - test_random_below(random, 8) * SECTOR,
        .random = test_random_split(random),
    };
    unsigned granule_shift = 12 + 2 * (unsigned)test_random_below(random, 3);

    chaos = test_random_split(random);
    memset(shared, 0, offsetof(struct shared, requests));
    world.geometry = (struct tracking_geometry){
        .granule = UINT64_C(1) << granule_shift,
        .extent = test_random_chance(random, 70) ? 256 * KIB : 64 * KIB,
        .extents = 16,
    };
    world.disk_path = test_path(world.directory, "disk");
    tracking_path = test_path(world.directory, "disk.tracking");
    test_make_file(world.disk_path, world.length);
    end_cleanly(&world);
    for (unsigned i = 0; i < SESSIONS; i++) {
        enum ending ending = (enum ending)(test_random_chance(random, 10)
                                               ? END_CLEAN
                                               : test_random_between(random, END_KILL, END_DYING));

        world.loses = ending == END_POWER || test_random_chance(random, 50);
        ends[ending](&world);
        judge(&world, ending);
    }
    g_free(world.disk_path);
    g_free(tracking_path);
    test_directory_free(world.directory);
}

static void test_worlds(void)
{
    struct test_random random = test_random_new(test_seed());
    unsigned long worlds = test_cases(WORLDS);

    for (unsigned long i = 0; i < worlds; i++) {
        run_world(&random);
    }
    for (unsigned i = 0; i < ENDINGS; i++) {
        g_test_message("%s: %" PRIu64 " times; changed %" PRIu64 " KiB, of them %" PRIu64
                       " KiB zero and %" PRIu64 " KiB (%.1f %%) equal to the checkpoint",
                       ending_names[i], losses[i], changed_bytes[i] / KIB, zero_bytes[i] / KIB,
                       equal_bytes[i] / KIB,
                       changed_bytes[i] ? 100.0 * (double)equal_bytes[i] / (double)changed_bytes[i]
                                        : 0.0);
    }
    g_test_message("%" PRIu64 " requests", (uint64_t)atomic_load(&shared->requests));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_log_set_always_fatal(G_LOG_FATAL_MASK | G_LOG_LEVEL_CRITICAL);
    formats_register();
    shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    g_assert_true(shared != MAP_FAILED);
    remains = g_byte_array_new();
    real_io = tracking_io;
    tracking_io.write_durably = lossy_write;
    tracking_io.sync_mapping = lossy_sync_mapping;
    tracking_io.sync_file = lossy_sync_file;
    tracking_io.boot_id = lossy_boot_id;
    tracking_io.timeout_ns = UINT64_C(600) * 1000000000;
    g_test_add_func("/tracking-loss/no-change-is-missed-by-kills-and-power-losses", test_worlds);
    return g_test_run();
}
