/* SPDX-License-Identifier: BSD-3-Clause */
/* Calls that may take too long: who waits gets an answer or goes on; nothing is leaked or freed. */
#include <errno.h>
#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>

#include "block/cleanup.h"
#include "block/clock.h"
#include "block/timed-call.h"

struct work {
    pthread_mutex_t *lock;
    pthread_cond_t *changed;
    bool *may_end, *is_freed;
    bool was_left;
};

static void free_work(void *data)
{
    struct work *work = data;
    SCOPE_LOCK(work->lock);

    g_assert_true(work->was_left);
    *work->is_freed = true;
    pthread_cond_broadcast(work->changed);
    g_free(work);
}

static int run_work(struct timed_call *call, void *data)
{
    struct work *work = data;
    SCOPE_LOCK(work->lock);

    while (!*work->may_end) {
        pthread_cond_wait(work->changed, work->lock);
    }
    work->was_left = timed_call_is_left(call);
    return -ENOSPC;
}

static void test_call(void)
{
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
    bool may_end = true, is_freed = false, is_left = true;
    struct work *work = g_new0(struct work, 1);

    *work = (struct work){&lock, &changed, &may_end, &is_freed, false};
    g_assert_cmpint(timed_call_run(run_work, work, free_work, INT64_MAX, &is_left), ==, -ENOSPC);
    g_assert_false(is_left);
    g_assert_false(work->was_left);

    /* The data are still ours; now they are not. */
    may_end = false;
    g_assert_cmpint(timed_call_run(run_work, work, free_work, clock_now_ns() + NS_PER_MS, &is_left),
                    ==, -ETIMEDOUT);
    g_assert_true(is_left);
    pthread_mutex_lock(&lock);
    g_assert_false(is_freed);
    may_end = true;
    pthread_cond_broadcast(&changed);
    while (!is_freed) {
        pthread_cond_wait(&changed, &lock);
    }
    pthread_mutex_unlock(&lock);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/timed-call/an-answer-or-the-time-is-over", test_call);
    return g_test_run();
}
