/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Tracking files that are made anew, and storage that hangs meanwhile: no guest is held longer than
 * the limit, and nothing that is left is believed, not even after a power loss.
 */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <pthread.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "block/clock.h"
#include "block/drain.h"
#include "block/tracking-file.h"
#include "block/tracking-rebuild.h"
#include "block/tracking-witness.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"
#include "tests/lib/tracking-rig.h"

#define DISK    TRACKING_RIG_DISK
#define GRANULE TRACKING_RIG_GRANULE
#define EXTENT  TRACKING_RIG_EXTENT

/* ---- Storage that hangs ------------------------------------------------------------------------
 */

enum operation { DURABLE_WRITE = 1, SYNC_MAPPING = 2, SYNC_FILE = 4, ALL = 7 };

static pthread_mutex_t hang_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t hang_changed = PTHREAD_COND_INITIALIZER;
static unsigned hanging, waiting;
static ino_t hanging_file; /* 0: all files */

static ino_t inode_of(int fd)
{
    struct stat information;

    g_assert_cmpint(fstat(fd, &information), ==, 0);
    return information.st_ino;
}

static void pass(enum operation operation, int fd)
{
    ino_t inode = inode_of(fd);
    SCOPE_LOCK(&hang_lock);

    waiting++;
    pthread_cond_broadcast(&hang_changed);
    while ((hanging & operation) && (!hanging_file || hanging_file == inode)) {
        pthread_cond_wait(&hang_changed, &hang_lock);
    }
    waiting--;
}

static void hang(unsigned operations)
{
    SCOPE_LOCK(&hang_lock);

    hanging = operations;
    hanging_file = 0;
    pthread_cond_broadcast(&hang_changed);
}

/* Of what hangs, only this file does so any longer. */
static void hang_only(const char *path)
{
    struct stat information;
    SCOPE_LOCK(&hang_lock);

    g_assert_cmpint(stat(path, &information), ==, 0);
    hanging_file = information.st_ino;
    pthread_cond_broadcast(&hang_changed);
}

static void wait_for_waiter(void)
{
    SCOPE_LOCK(&hang_lock);

    while (!waiting) {
        pthread_cond_wait(&hang_changed, &hang_lock);
    }
}

static int slow_write(int fd, const void *bytes, uint64_t size, uint64_t offset)
{
    pass(DURABLE_WRITE, fd);
    return tracking_rig_real_io()->write_durably(fd, bytes, size, offset);
}

static int slow_sync_mapping(int fd, struct guarded_mapping *mapping, uint64_t offset,
                             uint64_t size)
{
    pass(SYNC_MAPPING, fd);
    return tracking_rig_real_io()->sync_mapping(fd, mapping, offset, size);
}

static int slow_sync_file(int fd)
{
    pass(SYNC_FILE, fd);
    return tracking_rig_real_io()->sync_file(fd);
}

static int no_witness(const char *path, const uint8_t *uuid)
{
    return -EOPNOTSUPP;
}

static struct tracking_rig *slow_rig(void)
{
    struct tracking_rig *rig = tracking_rig_new(false);

    hang(0);
    tracking_io.write_durably = slow_write;
    tracking_io.sync_mapping = slow_sync_mapping;
    tracking_io.sync_file = slow_sync_file;
    tracking_io.put_witness = no_witness;
    g_assert_cmpint(tracking_rig_add(rig, "a", NULL), ==, 0);
    return rig;
}

/* ---- What is left ------------------------------------------------------------------------------
 */

static char *read_file(const char *path, gsize *bytes)
{
    char *contents = NULL;

    g_assert_true(g_file_get_contents(path, &contents, bytes, NULL));
    return contents;
}

static void assert_no_new_file(const struct tracking_rig *rig)
{
    g_autofree char *path = g_strconcat(rig->path, ".new", NULL);

    g_assert_cmpint(access(path, F_OK), !=, 0);
}

static void assert_lost_at_start(struct tracking_rig *rig)
{
    g_autoptr(GError) error = NULL;

    tracking_rig_open(rig);
    g_assert_null(tracking_changes_since(rig->tracker, "a", &error));
    g_assert_nonnull(error);
    g_assert_cmpint(tracking_rig_loss(rig), ==, TRACKING_LOST_STORAGE);
}

static void resize(struct tracking_rig *rig, uint64_t length)
{
    struct block_drain *drain = block_drain_begin(&rig->root, 1, BLOCK_PERM_ALL);

    tracking_resize(rig->tracker, length);
    block_drain_end(drain);
    tracking_forget_prepared(rig->tracker);
}

/* ---- Another length ----------------------------------------------------------------------------
 */

static void hang_in(unsigned operations, bool is_prepared)
{
    struct tracking_rig *rig = slow_rig();

    tracking_io.timeout_ns = 100 * NS_PER_MS;
    if (is_prepared) {
        tracking_prepare(rig->tracker, DISK + MIB);
    }
    hang(operations);
    resize(rig, DISK + MIB);
    g_assert_true(tracking_rig_is_lost(rig));
    /* The guest goes on: this returns. */
    g_assert_cmpint(tracking_rig_write(rig, 2 * MIB, MIB), ==, 0);
    hang(0);
    tracking_rig_kill(rig);
    tracking_rig_wait_unused(rig);
    hang(0); /* who held the lock has ended before */
    tracking_rig_boot++;
    assert_lost_at_start(rig);
    assert_no_new_file(rig);
    tracking_rig_free(rig);
}

static void test_hanging_resize(void)
{
    static const unsigned operations[] = {DURABLE_WRITE, SYNC_MAPPING, SYNC_FILE, ALL};

    for (size_t i = 0; i < G_N_ELEMENTS(operations); i++) {
        hang_in(operations[i], false);
        hang_in(operations[i], true);
    }
}

static void *prepare_longer(void *data)
{
    const struct tracking_rig *rig = data;

    tracking_prepare(rig->tracker, DISK + MIB);
    return NULL;
}

static void test_prepared_resize(void)
{
    struct tracking_rig *rig = slow_rig();
    pthread_t thread;

    g_assert_cmpint(tracking_rig_write(rig, 0, 1), ==, 0);
    hang(SYNC_FILE);
    g_assert_cmpint(pthread_create(&thread, NULL, prepare_longer, rig), ==, 0);
    wait_for_waiter();
    g_assert_cmpint(tracking_rig_write(rig, 2 * GRANULE, 1), ==, 0);
    g_assert_cmpint(tracking_rig_write(rig, DISK - 1, 1), ==, 0);
    hang(0);
    pthread_join(thread, NULL);
    g_assert_cmpint(tracking_rig_add(rig, "b", NULL), ==, 0);
    g_assert_cmpint(tracking_rig_write(rig, 5 * GRANULE, 1), ==, 0);
    resize(rig, DISK + MIB);
    g_assert_false(tracking_rig_is_lost(rig));
    tracking_rig_assert_changed(rig, "a", 4 * GRANULE + MIB, 0);
    tracking_rig_assert_changed(rig, "b", GRANULE + MIB, 0);
    /* It is the new file that is gone on with. */
    g_assert_cmpint(tracking_rig_write(rig, 6 * GRANULE, 1), ==, 0);
    tracking_rig_assert_changed(rig, "b", 2 * GRANULE + MIB, 0);
    assert_no_new_file(rig);
    /* One that is not used leaves nothing. */
    tracking_prepare(rig->tracker, DISK);
    tracking_forget_prepared(rig->tracker);
    assert_no_new_file(rig);
    resize(rig, DISK);
    tracking_rig_assert_changed(rig, "b", 2 * GRANULE, 0);
    tracking_rig_kill(rig);
    tracking_rig_open(rig);
    tracking_rig_assert_changed(rig, "a", 5 * GRANULE, 0);
    tracking_rig_free(rig);
}

/* ---- Numbers ------------------------------------------------------------------------------------
 */

static uint32_t epoch_of(const struct tracking_rig *rig)
{
    struct tracking_info info;

    tracking_get_info(rig->tracker, &info);
    tracking_info_clear(&info);
    return info.epoch;
}

static int read_disk(void *data, void *buffer, uint64_t offset, uint64_t bytes)
{
    const struct tracking_rig *rig = data;
    AUTO_CLOSE int fd = open(rig->disk_path, O_RDONLY | O_CLOEXEC);

    g_assert_cmpint(pread(fd, buffer, bytes, (off_t)offset), ==, bytes);
    return 0;
}

static void test_numbers(void)
{
    struct tracking_rig *rig = slow_rig();
    struct tracking_disk disk = {.length = DISK, .read = read_disk, .data = rig};
    enum tracking_loss loss;

    tracking_rig_finish(rig);
    tracking_identify(rig->disk_path, &disk.identity);
    struct tracking_file *file = tracking_file_open(rig->path, &disk, &loss, NULL);
    g_assert_nonnull(file);
    atomic_store(&file->map.epoch, CHANGE_MAP_EPOCH_MAX - 66);
    file->header.sample_count = 0;
    g_assert_cmpint(tracking_file_close(file, &disk.identity, NULL), ==, 0);
    tracking_rig_open(rig);
    g_assert_cmpint(tracking_rig_write(rig, 0, 1), ==, 0);

    /* With few left a cut that was not prepared goes on without; guests need not wait for it. */
    g_assert_cmpint(tracking_rig_add(rig, "b", NULL), ==, 0);
    g_assert_cmpint(tracking_rig_add(rig, "c", NULL), ==, 0);
    g_assert_cmpint(tracking_rig_add(rig, "d", NULL), ==, 0);
    g_assert_cmpuint(epoch_of(rig), >, CHANGE_MAP_EPOCH_MAX - 64);
    g_assert_cmpint(tracking_rig_write(rig, MIB, 1), ==, 0);
    tracking_prepare_checkpoint(rig->tracker);
    g_assert_cmpint(tracking_rig_write(rig, 2 * MIB, 1), ==, 0);
    g_assert_cmpint(tracking_rig_add(rig, "e", NULL), ==, 0);
    g_assert_cmpuint(epoch_of(rig), <, 10);
    tracking_rig_assert_changed(rig, "a", 3 * GRANULE, 0);
    tracking_rig_assert_changed(rig, "d", 2 * GRANULE, 0);
    tracking_rig_assert_changed(rig, "e", 0, 0);
    tracking_rig_free(rig);
}

/* ---- FILE.new ----------------------------------------------------------------------------------
 */

static void test_new_name(void)
{
    struct tracking_rig *rig = slow_rig();
    g_autofree char *path = g_strconcat(rig->path, ".new", NULL);
    g_autofree char *contents = NULL, *left = NULL;
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    gsize bytes;

    /* Somebody's file stays, and says why there is no map. */
    g_assert_true(g_file_set_contents(path, "a letter", -1, NULL));
    resize(rig, DISK + MIB);
    g_assert_true(tracking_rig_is_lost(rig));
    contents = read_file(path, &bytes);
    g_assert_cmpstr(contents, ==, "a letter");
    struct tracking_info info;
    tracking_get_info(rig->tracker, &info);
    g_assert_nonnull(strstr(info.reason, path));
    tracking_info_clear(&info);
    g_assert_cmpint(unlink(path), ==, 0);

    /* What a process that died left there goes at the next start; not what one uses. */
    tracking_rig_kill(rig);
    left = read_file(rig->path, &bytes);
    g_assert_cmpint(rename(rig->path, path), ==, 0);
    g_assert_true(g_file_set_contents(rig->path, left, (gssize)bytes, NULL));
    int fd = open(path, O_RDWR | O_CLOEXEC);
    g_assert_cmpint(fcntl(fd, F_OFD_SETLK, &whole), ==, 0);
    struct tracking_disk disk = {.length = DISK};
    enum tracking_loss loss;
    tracking_identify(rig->disk_path, &disk.identity);
    g_assert_null(tracking_file_open(rig->path, &disk, &loss, NULL));
    g_assert_cmpint(access(path, F_OK), ==, 0);
    close(fd);
    assert_lost_at_start(rig);
    assert_no_new_file(rig);

    /* Nor a copy that somebody made, which has another inode than it says. */
    g_assert_true(g_file_set_contents(path, left, (gssize)bytes, NULL));
    tracking_rig_finish(rig);
    tracking_rig_open(rig);
    g_assert_cmpint(access(path, F_OK), ==, 0);
    g_assert_cmpint(unlink(path), ==, 0);
    tracking_rig_free(rig);
}

/* ---- The witness -------------------------------------------------------------------------------
 */

static _Atomic bool is_witnessed;

static int noting_witness(const char *path, const uint8_t *uuid)
{
    int status = tracking_witness_put(path, uuid);

    atomic_store(&is_witnessed, true);
    return status;
}

static bool has_witness(const struct tracking_rig *rig)
{
    char names[4096] = "";

    g_assert_cmpint(listxattr(rig->disk_path, names, sizeof(names)), >=, 0);
    return strstr(names, "user.liveblk.tracking-lost.") != NULL;
}

/* Storage that never answers, and is as it was when the power is back. */
static void test_witness(void)
{
    struct tracking_rig *rig = slow_rig();
    g_autofree char *durable = NULL;
    gsize bytes;

    tracking_io.put_witness = noting_witness;
    tracking_io.timeout_ns = 100 * NS_PER_MS;
    atomic_store(&is_witnessed, false);
    hang(ALL);
    durable = read_file(rig->path, &bytes);
    g_assert_cmpint(tracking_rig_write(rig, 2 * MIB, MIB), ==, 0);
    g_assert_true(tracking_rig_is_lost(rig));
    g_assert_cmpint(tracking_rig_write(rig, 0, MIB), ==, 0);
    while (!atomic_load(&is_witnessed)) {
        g_usleep(1000);
    }
    g_assert_true(has_witness(rig));
    tracking_rig_close_disk(rig);
    hang_only(rig->path);

    /* Another process sees what is on storage; this one is stuck. */
    g_autofree char *path = STEAL(rig->path);
    rig->path = test_path(rig->directory, "after");
    g_assert_true(g_file_set_contents(rig->path, durable, (gssize)bytes, NULL));
    struct change_tracker *stuck = rig->tracker;
    tracking_io.timeout_ns = tracking_rig_real_io()->timeout_ns;
    assert_lost_at_start(rig);
    /* There is a new map now, of which nobody says anything. */
    g_assert_false(has_witness(rig));
    g_assert_cmpint(tracking_rig_add(rig, "b", NULL), ==, 0);
    tracking_rig_finish(rig);
    tracking_rig_open(rig);
    tracking_rig_assert_changed(rig, "b", 0, 0);
    hang(0);
    tracking_abandon(stuck);
    unlink(path);
    tracking_rig_free(rig);
}

/* A file that says so itself needs none. */
static void test_no_witness(void)
{
    struct tracking_rig *rig = slow_rig();

    tracking_io.put_witness = noting_witness;
    tracking_io.timeout_ns = 100 * NS_PER_MS;
    hang(ALL);
    g_assert_cmpint(tracking_rig_write(rig, 2 * MIB, MIB), ==, 0);
    g_assert_true(tracking_rig_is_lost(rig));
    hang(0);
    tracking_rig_kill(rig);
    g_assert_false(has_witness(rig));
    assert_lost_at_start(rig);
    tracking_rig_free(rig);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_log_set_always_fatal(G_LOG_FATAL_MASK | G_LOG_LEVEL_CRITICAL);
    formats_register();
    g_test_add_func("/tracking-storage/a-resize-that-hangs-lets-the-guest-go", test_hanging_resize);
    g_test_add_func("/tracking-storage/guests-write-while-a-resize-is-prepared",
                    test_prepared_resize);
    g_test_add_func("/tracking-storage/numbers-are-made-anew-before-the-cut", test_numbers);
    g_test_add_func("/tracking-storage/the-new-name-is-taken-from-nobody", test_new_name);
    g_test_add_func("/tracking-storage/a-hang-and-a-power-loss-are-lost", test_witness);
    g_test_add_func("/tracking-storage/a-file-that-says-it-needs-no-witness", test_no_witness);
    return g_test_run();
}
