/* SPDX-License-Identifier: BSD-3-Clause */
/* Which jobs there are, and which threads they left behind. */
#include <errno.h>

#include "block/error.h"
#include "block/graph.h"
#include "jobs/job-internal.h"
#include "jobs/thread.h"

/* All of these: job lock. */
static struct job_queue jobs = TAILQ_HEAD_INITIALIZER(jobs); /* newest first; references */
static unsigned live_threads;
static GArray *ended_threads; /* of pthread_t, to be joined */
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
    GPtrArray *list = g_ptr_array_new();
    struct job *job;

    job_lock();
    TAILQ_FOREACH (job, &jobs, list_entry) {
        g_ptr_array_add(list, job_ref(job));
    }
    job_unlock();
    g_ptr_array_add(list, NULL);
    return (struct job **)g_ptr_array_free(list, FALSE);
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
    pthread_t self = pthread_self();

    if (!ended_threads) {
        ended_threads = g_array_new(FALSE, FALSE, sizeof(pthread_t));
    }
    g_array_append_val(ended_threads, self);
    live_threads--;
    pthread_cond_broadcast(&thread_ended);
}

void job_reap_threads(void)
{
    job_lock();
    GArray *threads = STEAL(ended_threads);
    job_unlock();
    for (guint i = 0; threads && i < threads->len; i++) {
        pthread_join(g_array_index(threads, pthread_t, i), NULL);
    }
    if (threads) {
        g_array_unref(threads);
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
