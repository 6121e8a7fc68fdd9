/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Tracking files whose storage fails, hangs or goes while guests write; who forks; who stops: what
 * is left is not believed, and no guest fails.
 */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "block/clock.h"
#include "block/drain.h"
#include "block/tracking-file.h"
#include "formats/formats.h"
#include "tests/lib/disk.h"
#include "tests/lib/tracking-rig.h"

#define DISK    TRACKING_RIG_DISK
#define GRANULE TRACKING_RIG_GRANULE

/* ---- Faults -----------------------------------------------------------------------------------
 */

static pthread_mutex_t fault_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t fault_changed = PTHREAD_COND_INITIALIZER;
static int fault_status; /* of each durable operation */
static bool fault_hangs, fault_spares_marks;

static int fault_now(bool is_mark)
{
    SCOPE_LOCK(&fault_lock);

    if (is_mark && fault_spares_marks) {
        return 0;
    }
    while (fault_hangs) {
        pthread_cond_wait(&fault_changed, &fault_lock);
    }
    return fault_status;
}

static int faulty_write(int fd, const void *bytes, uint64_t size, uint64_t offset)
{
    int status = fault_now(offset == TRACKING_MARKS_OFFSET);

    return status < 0 ? status : tracking_rig_real_io()->write_durably(fd, bytes, size, offset);
}

static int faulty_sync(int fd, struct guarded_mapping *mapping, uint64_t offset, uint64_t size)
{
    int status = fault_now(false);

    return status < 0 ? status : tracking_rig_real_io()->sync_mapping(fd, mapping, offset, size);
}

static void set_fault(int status, bool hangs, bool spares_marks)
{
    SCOPE_LOCK(&fault_lock);

    fault_status = status;
    fault_hangs = hangs;
    fault_spares_marks = spares_marks;
    pthread_cond_broadcast(&fault_changed);
}

static struct tracking_rig *faulty_rig(void)
{
    struct tracking_rig *rig = tracking_rig_new(false);

    /* More extents than can be active. */
    tracking_rig_finish(rig);
    g_assert_cmpint(unlink(rig->path), ==, 0);
    rig->extent = GRANULE;
    tracking_rig_open(rig);
    set_fault(0, false, false);
    tracking_io.write_durably = faulty_write;
    tracking_io.sync_mapping = faulty_sync;
    tracking_io.timeout_ns = NS_PER_SECOND; /* short, but not for a busy machine */
    return rig;
}

#define GUESTS 4
struct guest {
    struct tracking_rig *rig;
    unsigned number;
    _Atomic bool *over;
    _Atomic unsigned writes;
    pthread_t thread;
};

static void *run_guest(void *data)
{
    struct guest *guest = data;
    uint64_t part = DISK / GUESTS, at = 0;

    while (!atomic_load(guest->over)) {
        g_assert_cmpint(tracking_rig_write(guest->rig, guest->number * part + at, 4096), ==, 0);
        at = (at + 36 * KIB) % (part - 4096);
        atomic_fetch_add(&guest->writes, 1);
    }
    return NULL;
}

/* Guests write, this happens, and all of them go on. */
static void write_while(struct tracking_rig *rig, void (*happens)(struct tracking_rig *rig))
{
    struct guest guests[GUESTS];
    _Atomic bool over = false;

    for (unsigned i = 0; i < GUESTS; i++) {
        guests[i] = (struct guest){.rig = rig, .number = i, .over = &over};
        g_assert_cmpint(pthread_create(&guests[i].thread, NULL, run_guest, &guests[i]), ==, 0);
    }
    for (unsigned i = 0; i < GUESTS; i++) {
        while (atomic_load(&guests[i].writes) < 20) {
            g_usleep(100);
        }
    }
    happens(rig);
    while (!tracking_rig_is_lost(rig)) {
        g_usleep(100);
    }
    for (unsigned i = 0; i < GUESTS; i++) {
        unsigned before = atomic_load(&guests[i].writes);

        while (atomic_load(&guests[i].writes) < before + 20) {
            g_usleep(100);
        }
    }
    atomic_store(&over, true);
    for (unsigned i = 0; i < GUESTS; i++) {
        pthread_join(guests[i].thread, NULL);
    }
    g_assert_cmpint(tracking_rig_loss(rig), ==, TRACKING_LOST_STORAGE);
}

/* What a kill leaves now says that the map is lost, or there is nothing that says anything. */
static void assert_not_believed(struct tracking_rig *rig)
{
    struct tracking_contents contents;
    enum tracking_loss loss;
    AUTO_CLOSE int fd = open(rig->path, O_RDONLY | O_CLOEXEC);

    if (fd >= 0) {
        g_assert_true(tracking_contents_read(fd, &contents, &loss, NULL) < 0 ||
                      contents.marked_loss != TRACKING_NOT_LOST);
        tracking_contents_clear(&contents);
    }
}

static void reopen_lost(struct tracking_rig *rig)
{
    g_autoptr(GError) error = NULL;

    tracking_rig_open(rig);
    g_assert_null(tracking_changes_since(rig->tracker, "a", &error));
    g_assert_nonnull(error);
    tracking_rig_free(rig);
}

static void fail_all(struct tracking_rig *rig)
{
    set_fault(-EIO, false, false);
}

static void fail_all_but_marks(struct tracking_rig *rig)
{
    set_fault(-EIO, false, true);
}

static void hang_all(struct tracking_rig *rig)
{
    set_fault(0, true, false);
}

static void shorten(struct tracking_rig *rig)
{
    g_assert_cmpint(truncate(rig->path, 4096), ==, 0);
}

static void test_storage(gconstpointer data)
{
    void (*const *happens)(struct tracking_rig * rig) = data;
    struct tracking_rig *rig = faulty_rig();

    g_assert_cmpint(tracking_rig_add(rig, "a", NULL), ==, 0);
    write_while(rig, *happens);
    assert_not_believed(rig);
    set_fault(0, false, false);
    tracking_rig_kill(rig);
    assert_not_believed(rig);
    reopen_lost(rig);
}

/* As nbdkit does: what was opened before a fork is the child's, and the parent ends. */
static void test_fork(void)
{
    struct tracking_rig *rig = tracking_rig_new(false);
    int status;

    g_assert_cmpint(tracking_rig_add(rig, "a", NULL), ==, 0);
    tracking_rig_kill(rig);
    tracking_rig_open(rig);
    pid_t child = fork();
    g_assert_cmpint(child, >=, 0);
    if (child == 0) {
        struct tracking_disk disk = {.length = DISK};
        enum tracking_loss loss;
        bool is_right =
            tracking_rig_write(rig, 0, 1) == 0 && tracking_rig_add(rig, "b", NULL) == 0 &&
            tracking_rig_write(rig, MIB, 1) == 0 &&
            /* The lock is the child's, too. */
            !tracking_file_open(rig->path, &disk, &loss, NULL) && loss == TRACKING_LOST_IN_USE;

        _exit(is_right ? 0 : 1);
    }
    g_assert_cmpint(waitpid(child, &status, 0), ==, child);
    g_assert_cmpint(status, ==, 0);
    tracking_rig_kill(rig);
    tracking_rig_open(rig);
    tracking_rig_assert_changed(rig, "a", 2 * GRANULE, 0);
    tracking_rig_assert_changed(rig, "b", GRANULE, 0);
    tracking_rig_free(rig);
}

/* Nobody writes; who asks is not told that nothing changed. */
static void test_shortened_at_rest(void)
{
    struct tracking_rig *rig = faulty_rig();
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(tracking_rig_add(rig, "a", NULL), ==, 0);
    g_assert_cmpint(tracking_rig_write(rig, 0, 1), ==, 0);
    shorten(rig);
    g_assert_null(tracking_changes_since(rig->tracker, "a", &error));
    g_assert_nonnull(error);
    g_assert_true(tracking_rig_is_lost(rig));
    tracking_rig_kill(rig);
    reopen_lost(rig);
}

static void test_full_directory(void)
{
    struct tracking_rig *rig = faulty_rig();
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(tracking_rig_add(rig, "a", NULL), ==, 0);
    set_fault(-ENOSPC, false, false);
    g_assert_cmpint(tracking_rig_add(rig, "b", &error), <, 0);
    g_assert_nonnull(error);
    set_fault(0, false, false);
    g_assert_null(tracking_rig_checkpoint(rig, "b").name);
    g_assert_cmpint(tracking_rig_write(rig, 0, 1), ==, 0);
    g_assert_cmpint(tracking_rig_add(rig, "b", NULL), ==, 0);
    tracking_rig_assert_changed(rig, "a", GRANULE, 0);
    tracking_rig_assert_changed(rig, "b", 0, 0);
    tracking_rig_kill(rig);
    tracking_rig_open(rig);
    tracking_rig_assert_changed(rig, "a", GRANULE, 0);
    tracking_rig_free(rig);
}

/* The disk stands still meanwhile. */
static void test_hanging_checkpoint(void)
{
    struct tracking_rig *rig = faulty_rig();
    g_autoptr(GError) error = NULL;

    g_assert_cmpint(tracking_rig_add(rig, "a", NULL), ==, 0);
    hang_all(rig);
    g_assert_cmpint(tracking_rig_add(rig, "b", &error), <, 0);
    g_assert_nonnull(error);
    g_assert_true(tracking_rig_is_lost(rig));
    g_assert_cmpint(tracking_rig_write(rig, 0, DISK), ==, 0);
    assert_not_believed(rig);
    set_fault(0, false, false);
    tracking_rig_kill(rig);
    tracking_rig_wait_unused(rig);
    set_fault(0, false, false); /* who held the lock has ended before */
    reopen_lost(rig);
}

static void test_full_at_creation(void)
{
    struct tracking_rig *rig = tracking_rig_new(false);
    struct rlimit previous, small = {64 * KIB, RLIM_INFINITY};

    tracking_rig_finish(rig);
    unlink(rig->path);
    signal(SIGXFSZ, SIG_IGN);
    g_assert_cmpint(getrlimit(RLIMIT_FSIZE, &previous), ==, 0);
    small.rlim_max = previous.rlim_max;
    g_assert_cmpint(setrlimit(RLIMIT_FSIZE, &small), ==, 0);
    tracking_rig_open(rig);
    g_assert_cmpint(setrlimit(RLIMIT_FSIZE, &previous), ==, 0);
    g_assert_true(tracking_rig_is_lost(rig));
    g_assert_cmpint(tracking_rig_loss(rig), ==, TRACKING_LOST_STORAGE);
    g_assert_cmpint(tracking_rig_write(rig, 0, 1), ==, 0);
    g_assert_cmpint(access(rig->path, F_OK), !=, 0);
    tracking_rig_free(rig);
}

/* A map that cannot be opened, nor replaced, while its disk is written. */
static void test_condemned(void)
{
    struct tracking_rig *rig = tracking_rig_new_closed(true);

    tracking_io.write_durably = faulty_write;
    tracking_io.sync_mapping = faulty_sync;
    set_fault(-EIO, false, true);
    tracking_rig_open(rig);
    g_assert_true(tracking_rig_is_lost(rig));
    g_assert_cmpint(tracking_rig_write(rig, 2 * MIB, 1), ==, 0);
    tracking_rig_finish(rig);
    set_fault(0, false, false);
    assert_not_believed(rig);
    reopen_lost(rig);
}

/* The new name of a rebuilt map cannot be made durable. */
static int fail_sync_of_directory(int fd)
{
    struct stat information;

    return fstat(fd, &information) == 0 && S_ISDIR(information.st_mode)
               ? -EIO
               : tracking_rig_real_io()->sync_file(fd);
}

static void test_rename(void)
{
    struct tracking_rig *rig = tracking_rig_new(true);

    g_assert_cmpint(tracking_rig_add(rig, "a", NULL), ==, 0);
    tracking_io.sync_file = fail_sync_of_directory;
    struct block_drain *drain = block_drain_begin(&rig->root, 1, BLOCK_PERM_WRITE);
    tracking_resize(rig->tracker, DISK + MIB);
    block_drain_end(drain);
    g_assert_true(tracking_rig_is_lost(rig));
    g_assert_cmpint(tracking_rig_write(rig, 0, 1), ==, 0);
    tracking_rig_kill(rig);
    assert_not_believed(rig);
    tracking_io.sync_file = tracking_rig_real_io()->sync_file;
    reopen_lost(rig);
}

static void test_stop(void)
{
    struct tracking_rig *rig = tracking_rig_new(false);
    g_autofree char *copy = test_path(rig->directory, "copy");

    g_assert_cmpint(tracking_rig_add(rig, "a", NULL), ==, 0);
    /* What a power loss brings back. */
    g_assert_cmpint(link(rig->path, copy), ==, 0);
    g_assert_cmpint(tracking_stop(rig->tracker, NULL), ==, 0);
    g_assert_cmpint(access(rig->path, F_OK), !=, 0);
    g_assert_cmpint(tracking_rig_write(rig, 0, 1), ==, 0);
    g_assert_cmpint(rename(copy, rig->path), ==, 0);
    assert_not_believed(rig);
    tracking_rig_kill(rig);
    reopen_lost(rig);
}

int main(int argc, char **argv)
{
    static void (*faults[])(struct tracking_rig * rig) = {fail_all, fail_all_but_marks, hang_all,
                                                          shorten};

    g_test_init(&argc, &argv, NULL);
    g_log_set_always_fatal(G_LOG_FATAL_MASK | G_LOG_LEVEL_CRITICAL);
    formats_register();
    g_test_add_data_func("/tracking-faults/errors-cost-the-map-and-no-guest", &faults[0],
                         test_storage);
    g_test_add_data_func("/tracking-faults/errors-of-the-log-are-marked", &faults[1], test_storage);
    g_test_add_data_func("/tracking-faults/a-hang-costs-the-map-and-no-guest", &faults[2],
                         test_storage);
    g_test_add_data_func("/tracking-faults/a-shortened-file-costs-the-map-and-no-guest", &faults[3],
                         test_storage);
    g_test_add_func("/tracking-faults/a-child-goes-on-with-its-parents-map", test_fork);
    g_test_add_func("/tracking-faults/what-is-gone-is-not-called-unchanged",
                    test_shortened_at_rest);
    g_test_add_func("/tracking-faults/a-full-disk-under-the-directory-changes-nothing",
                    test_full_directory);
    g_test_add_func("/tracking-faults/a-checkpoint-that-hangs-lets-the-guest-go",
                    test_hanging_checkpoint);
    g_test_add_func("/tracking-faults/a-full-disk-at-creation-costs-the-map",
                    test_full_at_creation);
    g_test_add_func("/tracking-faults/what-cannot-be-opened-is-not-believed-later", test_condemned);
    g_test_add_func("/tracking-faults/a-rename-that-may-be-undone-costs-the-map", test_rename);
    g_test_add_func("/tracking-faults/a-stopped-map-is-not-believed-again", test_stop);
    return g_test_run();
}
