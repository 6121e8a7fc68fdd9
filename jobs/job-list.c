/* SPDX-License-Identifier: BSD-3-Clause */
/* Which jobs there are, and which threads they left behind. */
#include <errno.h>

#include "block/error.h"
#include "block/graph.h"
#include "block/thread.h"
#include "jobs/job-internal.h"

/* All of these: job lock. */
static struct job_queue jobs = TAILQ_HEAD_INITIALIZER(jobs); /* newest first; references */
static size_t job_count;
static unsigned live_threads;

struct ended_thread {
    pthread_t thread;
    SLIST_ENTRY(ended_thread) entry;
};
SLIST_HEAD(ended_thread_list, ended_thread);
static struct ended_thread_list ended_threads = SLIST_HEAD_INITIALIZER(ended_threads);
static pthread_cond_t thread_ended = PTHREAD_COND_INITIALIZER;

static struct job *find_locked(const char *id)
{
    struct job *job;

    TAILQ_FOREACH (job, &jobs, list_entry) {
        if (g_str_equal(job->id, id)) {
            return job;
        }
    }
    return NULL;
}

static int list_locked(struct job *job, GError **error)
{
    if (find_locked(job->id)) {
        return block_error(error, EEXIST, "Job ID '%s' already in use", job->id);
    }
    int status = job_transaction_join_locked(job, error);
    if (status < 0) {
        return status;
    }
    job_ref(job);
    TAILQ_INSERT_HEAD(&jobs, job, list_entry);
    job_count++;
    job_set_status_locked(job, JOB_STATUS_CREATED);
    return 0;
}

/* Free a job that never was: its driver has not seen it. */
static void discard(struct job *job)
{
    static const struct job_driver no_driver;

    job->driver = &no_driver;
    job_unref(job);
}

struct job *job_new(const struct job_driver *driver, const char *id, unsigned flags,
                    struct job_transaction *transaction, GError **error)
{
    struct job *job;

    if (!id || !block_identifier_is_valid(id)) {
        block_error(error, EINVAL, "Invalid job ID '%s'", id ? id : "");
        return NULL;
    }
    job = job_alloc(driver, id, flags, transaction);
    job_lock();
    int status = list_locked(job, error);
    job_unlock();
    if (status < 0) {
        discard(job);
        return NULL;
    }
    return job;
}

void job_dismiss_locked(struct job *job)
{
    TAILQ_REMOVE(&jobs, job, list_entry);
    job_count--;
    job_set_status_locked(job, JOB_STATUS_NULL);
}

struct job *job_find(const char *id)
{
    job_lock();
    struct job *job = find_locked(id);
    if (job) {
        job_ref(job);
    }
    job_unlock();
    return job;
}

struct job **job_list(void)
{
    size_t count = 0;
    struct job *job;

    job_lock();
    struct job **list = g_new0(struct job *, job_count + 1);
    TAILQ_FOREACH (job, &jobs, list_entry) {
        list[count++] = job_ref(job);
    }
    job_unlock();
    return list;
}

void job_list_free(struct job **list)
{
    for (size_t i = 0; list && list[i]; i++) {
        job_unref(list[i]);
    }
    g_free(list);
}

int job_thread_create_locked(pthread_t *thread, void *(*function)(void *), void *data)
{
    int error_number = thread_create(thread, function, data);

    if (error_number == 0) {
        live_threads++;
    }
    return -error_number;
}

void job_thread_ended_locked(void)
{
    struct ended_thread *ended = g_new(struct ended_thread, 1);

    ended->thread = pthread_self();
    SLIST_INSERT_HEAD(&ended_threads, ended, entry);
    live_threads--;
    pthread_cond_broadcast(&thread_ended);
}

void job_reap_threads(void)
{
    struct ended_thread *ended;

    job_lock();
    struct ended_thread_list threads = ended_threads;
    SLIST_INIT(&ended_threads);
    job_unlock();
    while ((ended = SLIST_FIRST(&threads))) {
        SLIST_REMOVE_HEAD(&threads, entry);
        pthread_join(ended->thread, NULL);
        g_free(ended);
    }
}

void job_join_threads(void)
{
    job_lock();
    while (live_threads > 0) {
        job_wait_locked(&thread_ended);
    }
    job_unlock();
    job_reap_threads();
}
