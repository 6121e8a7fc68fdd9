/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Persistent bitmaps in a tracking file whose storage fails, at each of the durable operations that
 * a command, the closing or the opening makes: no guest's request fails, and who reads a bitmap
 * afterwards finds every change since its moment, or that it is inconsistent or gone, with a
 * warning.
 */
#include <errno.h>
#include <glib.h>
#include <stdatomic.h>
#include <unistd.h>

#include "block/drain.h"
#include "block/main-loop.h"
#include "block/stored-bitmaps.h"
#include "block/tracking-bitmaps.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"
#include "tests/lib/fault-driver.h"
#include "tests/lib/tracking-rig.h"

#define GRANULE TRACKING_RIG_GRANULE

/* ---- Faults -----------------------------------------------------------------------------------
 */

static _Atomic unsigned operations;          /* durable ones so far */
static _Atomic unsigned first_bad, last_bad; /* these fail */
static _Atomic int bad_status;
static _Atomic unsigned warnings;

/* What a process that dies just before its operation of this number leaves of the file. */
static _Atomic unsigned dies_at = UINT_MAX;
static const char *dying_path;
static char *left;
static gsize left_size;

static int fault_now(void)
{
    unsigned number = atomic_fetch_add(&operations, 1);

    if (number == atomic_load(&dies_at)) {
        g_assert_true(g_file_get_contents(dying_path, &left, &left_size, NULL));
    }
    return number >= atomic_load(&first_bad) && number < atomic_load(&last_bad)
               ? atomic_load(&bad_status)
               : 0;
}

static int faulty_write(int fd, const void *bytes, uint64_t size, uint64_t offset)
{
    int status = fault_now();

    return status < 0 ? status : tracking_rig_real_io()->write_durably(fd, bytes, size, offset);
}

static int faulty_sync(int fd, struct guarded_mapping *mapping, uint64_t offset, uint64_t size)
{
    int status = fault_now();

    return status < 0 ? status : tracking_rig_real_io()->sync_mapping(fd, mapping, offset, size);
}

static int faulty_sync_file(int fd)
{
    int status = fault_now();

    return status < 0 ? status : tracking_rig_real_io()->sync_file(fd);
}

static void arm(unsigned first, unsigned count, int status)
{
    atomic_store(&operations, 0);
    atomic_store(&bad_status, status);
    atomic_store(&first_bad, first);
    atomic_store(&last_bad, first + count);
}

static void count_warning(const char *domain, GLogLevelFlags level, const char *message, void *data)
{
    atomic_fetch_add(&warnings, 1);
}

/* ---- A disk with bitmaps ----------------------------------------------------------------------
 */

static void open_disk(struct tracking_rig *rig)
{
    tracking_rig_open(rig);
    tracking_bitmaps_begin(rig->tracker, rig->device, rig->root);
}

static void close_disk(struct tracking_rig *rig)
{
    tracking_bitmaps_settle(rig->tracker);
    tracking_rig_close_disk(rig);
    tracking_bitmaps_end(rig->tracker);
    tracking_abandon(rig->tracker);
}

/* As a process dies: what closing would store is not there. */
static void kill_disk(struct tracking_rig *rig)
{
    g_autofree char *contents = NULL;
    gsize size = 0;
    bool was_there = g_file_get_contents(rig->path, &contents, &size, NULL);

    close_disk(rig);
    if (was_there) {
        g_assert_true(g_file_set_contents_full(rig->path, contents, (gssize)size,
                                               G_FILE_SET_CONTENTS_NONE, 0600, NULL));
    } else {
        unlink(rig->path);
    }
}

static void write_granule(struct tracking_rig *rig, unsigned granule)
{
    g_assert_cmpint(tracking_rig_write(rig, granule * GRANULE, 4096), ==, 0);
}

static void add(struct tracking_rig *rig, const char *name)
{
    struct dirty_bitmap *bitmap = dirty_bitmap_new(name, TRACKING_RIG_DISK, GRANULE, NULL);

    dirty_bitmap_set_persistent(bitmap, true);
    block_node_add_bitmap(rig->root, bitmap);
    block_stored_bitmaps_changed(rig->root, name);
}

static void add_another(struct tracking_rig *rig)
{
    add(rig, "c");
}

static void clear(struct tracking_rig *rig)
{
    {
        AUTO(block_drain) drain = block_drain_begin(&rig->root, 1, BLOCK_PERM_WRITE);

        dirty_bitmap_clear(block_node_find_bitmap(rig->root, "b"));
    }
    block_stored_bitmaps_changed(rig->root, "b");
}

/* As a merge does it. */
static void add_granule(struct tracking_rig *rig)
{
    {
        AUTO(block_drain) drain = block_drain_begin(&rig->root, 1, BLOCK_PERM_WRITE);

        dirty_bitmap_set(block_node_find_bitmap(rig->root, "b"), 9 * GRANULE, 1);
    }
    block_stored_bitmaps_changed(rig->root, "b");
}

/* The command's steps; a failure to remove it is what it warns of. */
static void drop(struct tracking_rig *rig)
{
    AUTO(dirty_bitmap) bitmap = block_node_find_bitmap(rig->root, "b");

    block_node_remove_bitmap(rig->root, bitmap);
    if (block_stored_bitmaps_remove(rig->root, "b", NULL) < 0) {
        atomic_fetch_add(&warnings, 1);
    }
    block_stored_bitmaps_changed(rig->root, "b");
}

static void close_and_open(struct tracking_rig *rig)
{
    close_disk(rig);
    open_disk(rig);
}

static const struct operation {
    const char *name;
    void (*run)(struct tracking_rig *rig);
    uint64_t must; /* granules that "b" has to have afterwards, as a mask */
    bool removes;
} commands[] = {
    {"add", add_another, 1 << 1 | 1 << 5, false},
    {"clear", clear, 1 << 5, false},
    {"merge", add_granule, 1 << 1 | 1 << 5 | 1 << 9, false},
    {"remove", drop, 1 << 1 | 1 << 5, true},
    {"close and open", close_and_open, 1 << 1 | 1 << 5, false},
};

/* ---- Tests ------------------------------------------------------------------------------------
 */

static void judge(struct tracking_rig *rig, const struct operation *command, unsigned at)
{
    struct dirty_bitmap *bitmap = block_node_find_bitmap(rig->root, "b");

    if (!bitmap || dirty_bitmap_is_inconsistent(bitmap)) {
        if (!command->removes && atomic_load(&warnings) == 0) {
            g_error("%s, fault %u: the bitmap is lost, and nobody says so", command->name, at);
        }
        return;
    }
    for (unsigned i = 0; i < 64; i++) {
        if (command->must >> i & 1 && !dirty_bitmap_get(bitmap, i * GRANULE)) {
            g_error("%s, fault %u: granule %u is missing", command->name, at, i);
        }
    }
}

/* With a bitmap, and a write that is in it; nothing fails until it is armed. */
static struct tracking_rig *faulty_rig(void)
{
    struct tracking_rig *rig = tracking_rig_new(false);

    tracking_io.write_durably = faulty_write;
    tracking_io.sync_mapping = faulty_sync;
    tracking_io.sync_file = faulty_sync_file;
    arm(0, 0, 0);
    tracking_bitmaps_begin(rig->tracker, rig->device, rig->root);
    add(rig, "b");
    write_granule(rig, 1);
    return rig;
}

/* Returns how many durable operations the command made. */
static unsigned run_once(const struct operation *command, unsigned first, unsigned count,
                         int status, bool is_killed)
{
    struct tracking_rig *rig = faulty_rig();

    atomic_store(&warnings, 0);
    arm(first, count, status);
    command->run(rig);
    unsigned made = atomic_load(&operations);
    write_granule(rig, 5);
    if (is_killed) {
        arm(0, 0, 0);
    }
    (is_killed ? kill_disk : close_disk)(rig);
    arm(0, 0, 0);
    open_disk(rig);
    judge(rig, command, first);
    close_disk(rig);
    tracking_rig_open(rig);
    tracking_rig_free(rig);
    return made;
}

static void test_faults(void)
{
    static const int statuses[] = {-EIO, -ENOSPC};

    for (unsigned i = 0; i < G_N_ELEMENTS(commands); i++) {
        unsigned made = run_once(&commands[i], 0, 0, 0, true);

        g_assert_cmpuint(made, >, 0);
        for (unsigned how = 0; how < 8; how++) {
            for (unsigned at = 0; at < made; at++) {
                run_once(&commands[i], at, how & 1 ? 1 : UINT16_MAX, statuses[how >> 1 & 1],
                         how & 4);
            }
        }
    }
}

/* ---- A disk that moves ------------------------------------------------------------------------
 */

struct move {
    struct block_device *device;
    struct block_node *to;
};

static void set_root(void *data)
{
    const struct move *move = data;

    g_assert_cmpint(block_device_set_root(move->device, move->to, NULL), ==, 0);
}

/* A node with the disk's contents, and a bitmap "b" that says what no request has told it. */
static struct block_node *open_copy(const char *path)
{
    struct block_node *node = test_open("driver=fault,discard=unmap,file.driver=file,"
                                        "file.discard=unmap,file.filename=%s",
                                        path);
    struct dirty_bitmap *bitmap = dirty_bitmap_new("b", TRACKING_RIG_DISK, GRANULE, NULL);

    dirty_bitmap_set_persistent(bitmap, true);
    dirty_bitmap_set(bitmap, 9 * GRANULE, 1);
    block_node_add_bitmap(block_node_below_filters(node), bitmap);
    return node;
}

/* Whether the tracking file has a "b" for the disk of this path, which then says enough. */
static bool judge_place(struct tracking_rig *rig, char *path, uint64_t must, unsigned at)
{
    const struct operation move = {.name = "move", .must = must, .removes = true};
    char *usual = rig->disk_path;

    rig->disk_path = path;
    open_disk(rig);
    judge(rig, &move, at);
    bool is_there = block_node_find_bitmap(rig->root, "b");
    close_disk(rig);
    rig->disk_path = usual;
    return is_there;
}

/* A file that could not be marked as lost has been removed. */
static void put_back(const struct tracking_rig *rig)
{
    if (left) {
        g_assert_true(g_file_set_contents_full(rig->path, left, (gssize)left_size,
                                               G_FILE_SET_CONTENTS_NONE, 0600, NULL));
    } else {
        unlink(rig->path);
    }
}

/* A disk with a bitmap, that has moved to another node of the same contents. */
static struct tracking_rig *move_disk(const char *moved)
{
    struct tracking_rig *rig = faulty_rig();

    test_make_file(moved, TRACKING_RIG_DISK);
    AUTO(block_node) old = rig->root;
    rig->root = open_copy(moved);
    struct move move = {rig->device, rig->root};
    {
        AUTO(block_drain) drain = block_drain_begin(&old, 1, BLOCK_PERM_ALL);
        main_loop_call_wait(set_root, &move);
    }
    write_granule(rig, 3);
    return rig;
}

/* How many durable operations it took to follow the disk, and which place has a bitmap then. */
struct outcome {
    unsigned operations;
    bool old_has_it, new_has_it;
};

/* These operations fail; or the process dies before one of them; or the disk cannot be flushed. */
static struct outcome follow(unsigned first, unsigned count, unsigned dies, bool is_unflushed)
{
    char *directory = test_directory_new(true);
    g_autofree char *moved = test_path(directory, "moved");
    struct tracking_rig *rig = move_disk(moved);
    bool is_dead = dies != UINT_MAX;

    dying_path = rig->path;
    atomic_store(&dies_at, dies);
    arm(first, count, -EIO);
    if (is_unflushed) {
        FAULT(rig->root, .operations = FAULT_ON(FLUSH), .count = 1, .error_number = EIO);
    }
    tracking_bitmaps_follow(rig->tracker, rig->device);
    struct outcome outcome = {.operations = atomic_load(&operations)};
    atomic_store(&dies_at, UINT_MAX);
    arm(0, 0, 0);
    write_granule(rig, 5);
    if (!is_dead) {
        g_file_get_contents(rig->path, &left, &left_size, NULL);
    }
    close_disk(rig);
    put_back(rig);
    outcome.old_has_it = judge_place(rig, rig->disk_path, 1 << 1, first);
    put_back(rig);
    outcome.new_has_it =
        judge_place(rig, moved, 1 << 3 | 1 << 9 | (is_dead ? 0 : 1 << 5), is_dead ? dies : first);
    g_clear_pointer(&left, g_free);
    unlink(rig->path);
    tracking_rig_open(rig);
    tracking_rig_free(rig);
    test_directory_free(directory);
    return outcome;
}

static void test_move(void)
{
    struct outcome whole = follow(0, 0, UINT_MAX, false);
    struct outcome unflushed = follow(0, 0, UINT_MAX, true);

    g_assert_true(whole.new_has_it && !whole.old_has_it);
    g_assert_false(unflushed.old_has_it || unflushed.new_has_it);
    g_assert_cmpuint(whole.operations, >, 0);
    for (unsigned at = 0; at < whole.operations; at++) {
        follow(at, 1, UINT_MAX, false);
        follow(at, UINT16_MAX, UINT_MAX, false);
        struct outcome dead = follow(0, 0, at, false);
        g_assert_false(dead.new_has_it && dead.old_has_it);
        g_assert_true(at > 0 || dead.old_has_it);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_log_set_always_fatal(G_LOG_FATAL_MASK | G_LOG_LEVEL_CRITICAL);
    g_log_set_handler(NULL, G_LOG_LEVEL_WARNING, count_warning, NULL);
    formats_register();
    fault_driver_register();
    block_stored_bitmaps_add_keeper(&tracking_bitmap_keeper);
    tracking_rig_real_io();
    g_test_add_func("/tracking-bitmaps/no-fault-of-the-storage-makes-one-silently-short",
                    test_faults);
    g_test_add_func("/tracking-bitmaps/a-disk-that-moved-has-never-the-bitmap-of-the-place-it-left",
                    test_move);
    return g_test_run();
}
