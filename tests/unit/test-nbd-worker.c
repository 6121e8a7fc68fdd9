/* SPDX-License-Identifier: BSD-3-Clause */
/* Threads of NBD clients: few are made for many clients that come one after another. */
#include "server/nbd/worker.h"

#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>

#include "tests/lib/thread-count.h"

/* More than may be idle. */
#define MANY (NBD_WORKERS_IDLE_MAX + 36)

struct work {
    struct nbd_task task;
    pthread_barrier_t *together; /* NULL: it waits for nobody */
    pthread_t thread;
    atomic_uint *calls;
};

static void do_work(void *data)
{
    struct work *work = data;

    work->thread = pthread_self();
    if (work->together) {
        pthread_barrier_wait(work->together);
    }
    atomic_fetch_add(work->calls, 1);
}

static void start(struct work *work, atomic_uint *calls)
{
    work->calls = calls;
    work->task = (struct nbd_task){.function = do_work, .data = work};
    g_assert_cmpint(nbd_task_start(&work->task), ==, 0);
}

static void test_one_after_another(void)
{
    struct work first = {0}, work = {0};
    atomic_uint calls = 0;

    start(&first, &calls);
    nbd_task_join(&first.task);
    for (unsigned i = 0; i < 1000; i++) {
        start(&work, &calls);
        nbd_task_join(&work.task);
        g_assert_true(pthread_equal(work.thread, first.thread));
    }
    g_assert_cmpuint(calls, ==, 1001);
    nbd_workers_end();
}

/* All at the same time: nobody waits for a thread. */
static void run_many(struct work *works)
{
    pthread_barrier_t together;
    atomic_uint calls = 0;

    pthread_barrier_init(&together, NULL, MANY);
    for (unsigned i = 0; i < MANY; i++) {
        works[i].together = &together;
        start(&works[i], &calls);
    }
    for (unsigned i = 0; i < MANY; i++) {
        nbd_task_join(&works[i].task);
    }
    g_assert_cmpuint(calls, ==, MANY);
    pthread_barrier_destroy(&together);
}

static void test_many_at_once(void)
{
    g_autofree struct work *works = g_new0(struct work, MANY);
    unsigned before = test_count_threads();

    for (unsigned i = 0; i < 3; i++) {
        run_many(works);
        test_assert_threads(before + NBD_WORKERS_IDLE_MAX);
    }
    nbd_workers_end();
    test_assert_threads(before);
}

static void *come_and_go(void *data)
{
    struct work works[4] = {0};
    atomic_uint calls = 0;

    for (unsigned i = 0; i < 200; i++) {
        for (unsigned j = 0; j < G_N_ELEMENTS(works); j++) {
            start(&works[j], &calls);
        }
        for (unsigned j = 0; j < G_N_ELEMENTS(works); j++) {
            nbd_task_join(&works[j].task);
        }
    }
    g_assert_cmpuint(calls, ==, 200 * G_N_ELEMENTS(works));
    return NULL;
}

static void test_ended_meanwhile(void)
{
    pthread_t threads[4];
    unsigned before = test_count_threads();

    for (unsigned i = 0; i < G_N_ELEMENTS(threads); i++) {
        g_assert_cmpint(pthread_create(&threads[i], NULL, come_and_go, NULL), ==, 0);
    }
    for (unsigned i = 0; i < 200; i++) {
        nbd_workers_end();
        g_usleep(100);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(threads); i++) {
        pthread_join(threads[i], NULL);
    }
    nbd_workers_end();
    test_assert_threads(before);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/nbd-worker/clients-that-come-one-after-another-have-one-thread",
                    test_one_after_another);
    g_test_add_func("/nbd-worker/many-at-once-have-a-thread-each-and-few-stay", test_many_at_once);
    g_test_add_func("/nbd-worker/idle-threads-can-be-ended-while-others-come-and-go",
                    test_ended_meanwhile);
    return g_test_run();
}
