/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/nbd/worker.h"

#include <glib.h>
#include <pthread.h>

#include "block/cleanup.h"
#include "block/queue.h"
#include "block/thread.h"

struct worker {
    pthread_t thread;
    pthread_cond_t called;
    struct nbd_task *task; /* NULL: it waits for one */
    bool is_over;          /* it is to end, and is joined by who says so */
    TAILQ_ENTRY(worker) entry;
};

/* Guards all of this, workers and tasks. */
static pthread_mutex_t workers_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t task_done = PTHREAD_COND_INITIALIZER;
static TAILQ_HEAD(, worker) idle_workers = TAILQ_HEAD_INITIALIZER(idle_workers);
static unsigned idle_count;
/* The last one that ended because there were enough: it joined the one before. */
static struct worker *last_ended;

static void join(struct worker *worker)
{
    pthread_join(worker->thread, NULL);
    pthread_cond_destroy(&worker->called);
    g_free(worker);
}

/* Lock held. Out of those that wait; NULL: nobody does. */
static struct worker *take_idle_locked(void)
{
    struct worker *worker = TAILQ_FIRST(&idle_workers);

    if (worker) {
        TAILQ_REMOVE(&idle_workers, worker, entry);
        idle_count--;
    }
    return worker;
}

/* Lock held. Wait for a task; false: it is to end. Who had one last is the first to get one. */
static bool await_task_locked(struct worker *worker)
{
    if (idle_count == NBD_WORKERS_IDLE_MAX) {
        return false;
    }
    TAILQ_INSERT_HEAD(&idle_workers, worker, entry);
    idle_count++;
    while (!worker->task && !worker->is_over) {
        pthread_cond_wait(&worker->called, &workers_lock);
    }
    return worker->task;
}

/* Lock held. */
static void carry_out_locked(struct worker *worker)
{
    struct nbd_task *task = worker->task;

    pthread_mutex_unlock(&workers_lock);
    task->function(task->data);
    pthread_mutex_lock(&workers_lock);
    worker->task = NULL;
    task->is_done = true;
    pthread_cond_broadcast(&task_done);
}

static void *worker_thread(void *data)
{
    struct worker *worker = data, *before = NULL;

    pthread_mutex_lock(&workers_lock);
    do {
        carry_out_locked(worker);
    } while (await_task_locked(worker));
    if (!worker->is_over) {
        before = last_ended;
        last_ended = worker;
    }
    pthread_mutex_unlock(&workers_lock);
    if (before) {
        join(before);
    }
    return NULL;
}

int nbd_task_start(struct nbd_task *task)
{
    SCOPE_LOCK(&workers_lock);
    struct worker *worker = take_idle_locked();

    task->is_done = false;
    if (worker) {
        worker->task = task;
        pthread_cond_signal(&worker->called);
        return 0;
    }
    worker = g_new0(struct worker, 1);
    worker->task = task;
    pthread_cond_init(&worker->called, NULL);
    /* Whoever joins it has had the lock after this, and finds its thread's name. */
    int error_number = thread_create(&worker->thread, worker_thread, worker);
    if (error_number) {
        pthread_cond_destroy(&worker->called);
        g_free(worker);
    }
    return error_number;
}

void nbd_task_join(struct nbd_task *task)
{
    SCOPE_LOCK(&workers_lock);

    while (!task->is_done) {
        pthread_cond_wait(&task_done, &workers_lock);
    }
}

void nbd_workers_end(void)
{
    struct worker *worker;

    pthread_mutex_lock(&workers_lock);
    while ((worker = take_idle_locked())) {
        worker->is_over = true;
        pthread_cond_signal(&worker->called);
        pthread_mutex_unlock(&workers_lock);
        join(worker);
        pthread_mutex_lock(&workers_lock);
    }
    worker = last_ended;
    last_ended = NULL;
    pthread_mutex_unlock(&workers_lock);
    if (worker) {
        join(worker);
    }
}
