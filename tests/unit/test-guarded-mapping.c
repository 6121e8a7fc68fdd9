/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A mapping whose storage is gone costs its contents and never the process, whichever threads meet
 * the loss; and any other SIGBUS does what it always did. A file made shorter stands for storage
 * that fails: the kernel answers both in the same way.
 */
#include "block/guarded-mapping.h"

#include <glib.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "block/cleanup.h"

#define BYTES   65536
#define THREADS 3
#define ROUNDS  100

static int open_file(void)
{
    g_autofree char *name = NULL;
    int fd = g_file_open_tmp("liveblk-test-XXXXXX", &name, NULL);

    g_assert_cmpint(fd, >=, 0);
    unlink(name);
    g_assert_cmpint(ftruncate(fd, BYTES), ==, 0);
    return fd;
}

struct meeting {
    pthread_barrier_t start;
    _Atomic uint16_t *place;
};

static void *touch(void *data)
{
    struct meeting *meeting = data;

    pthread_barrier_wait(&meeting->start);
    atomic_fetch_add(meeting->place, 1);
    return NULL;
}

/* Not ThreadSanitizer either may take what the handler does for a race with the other threads. */
static void meet_at_lost_page(void)
{
    AUTO_CLOSE int fd = open_file();
    struct guarded_mapping *mapping = guarded_mapping_new(fd, 0, BYTES);
    struct meeting meeting;
    pthread_t threads[THREADS];

    g_assert_nonnull(mapping);
    meeting.place = guarded_mapping_address(mapping);
    pthread_barrier_init(&meeting.start, NULL, THREADS);
    g_assert_false(guarded_mapping_is_broken(mapping));
    g_assert_cmpint(ftruncate(fd, 0), ==, 0);
    for (int i = 0; i < THREADS; i++) {
        g_assert_cmpint(pthread_create(&threads[i], NULL, touch, &meeting), ==, 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    g_assert_true(guarded_mapping_is_broken(mapping));
    g_assert_cmpint(guarded_mapping_sync(mapping), <, 0);
    pthread_barrier_destroy(&meeting.start);
    guarded_mapping_free(mapping);
}

static void test_threads(void)
{
    for (int i = 0; i < ROUNDS; i++) {
        meet_at_lost_page();
    }
}

static void test_empty(void)
{
    AUTO_CLOSE int fd = open_file();
    struct guarded_mapping *mapping = guarded_mapping_new(fd, 0, BYTES);
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    uint8_t *bytes = guarded_mapping_address(mapping);

    memset(bytes, 0xa5, BYTES);
    g_assert_cmpint(guarded_mapping_sync(mapping), ==, 0);
    g_assert_cmpint(ftruncate(fd, (off_t)(BYTES - page)), ==, 0);
    g_assert_cmpint(bytes[BYTES - 1], ==, 0);
    g_assert_true(guarded_mapping_is_broken(mapping));
    bytes[BYTES - 1] = 7;
    g_assert_cmpint(bytes[BYTES - 1], ==, 7);
    g_assert_cmpint(bytes[BYTES - page - 1], ==, 0xa5);
    guarded_mapping_free(mapping);
}

/* What a program does whose own mapping is lost, beside a guarded one; does not return. */
static void touch_other(void)
{
    const struct rlimit no_core = {0, 0};
    int fd = open_file(), other = open_file();

    setrlimit(RLIMIT_CORE, &no_core);
    if (guarded_mapping_new(fd, 0, BYTES)) {
        volatile char *bytes = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, other, 0);

        if (bytes != MAP_FAILED && ftruncate(other, 0) == 0) {
            bytes[0] = 1;
        }
    }
    _exit(0);
}

static void test_other(void)
{
    int status;
    pid_t child = fork();

    if (child == 0) {
        touch_other();
    }
    g_assert_cmpint(child, >, 0);
    g_assert_cmpint(waitpid(child, &status, 0), ==, child);
    g_assert_true(WIFSIGNALED(status));
    g_assert_cmpint(WTERMSIG(status), ==, SIGBUS);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    signal(SIGBUS, SIG_DFL); /* a sanitizer has its own answer */
    g_test_add_func("/guarded-mapping/threads that meet the same lost page go on", test_threads);
    g_test_add_func("/guarded-mapping/a lost page is empty, and the others are as they were",
                    test_empty);
    g_test_add_func("/guarded-mapping/another SIGBUS kills as it always did", test_other);
    return g_test_run();
}
