/* SPDX-License-Identifier: BSD-3-Clause */
/* How a job gets quiet: pause points, sleeping, and drains of the nodes it claims. */
#include "block/clock.h"
#include "jobs/job-internal.h"

void job_update_pause_locked(struct job *job)
{
    atomic_store(&job->pause_wanted,
                 job->drains > 0 || (job->user_paused && !atomic_load(&job->force_cancelled)));
}

void job_pause_locked(struct job *job)
{
    enum job_status active = job->status;

    if (!atomic_load(&job->pause_wanted)) {
        return;
    }
    job->at_pause_point = true;
    job_set_status_locked(job, active == JOB_STATUS_READY ? JOB_STATUS_STANDBY : JOB_STATUS_PAUSED);
    while (atomic_load(&job->pause_wanted)) {
        job_wait_locked(&job->wakeup);
    }
    job->at_pause_point = false;
    job_set_status_locked(job, active);
}

void job_pause_point(struct job *job)
{
    if (!atomic_load(&job->pause_wanted)) {
        return;
    }
    job_lock();
    if (job->in_run) {
        job_pause_locked(job);
    }
    job_unlock();
}

bool job_should_pause(struct job *job)
{
    return atomic_load(&job->pause_wanted);
}

void job_sleep_until(struct job *job, int64_t deadline_ns)
{
    job_lock();
    job->is_idle = deadline_ns == INT64_MAX;
    while (!job->kicked && !atomic_load(&job->force_cancelled)) {
        if (job_wait_until_locked(&job->wakeup, deadline_ns) != 0) {
            break;
        }
    }
    job->kicked = false;
    job->is_idle = false;
    job_unlock();
}

void job_kick(struct job *job)
{
    job_lock();
    job->kicked = true;
    pthread_cond_broadcast(&job->wakeup);
    job_unlock();
}

static struct job *job_of(struct block_claim *claim)
{
    return ((struct job_claim *)claim)->job;
}

static void change_drains(struct job *job, int change)
{
    job_lock();
    job->drains += change;
    job_update_pause_locked(job);
    job_notify_locked(job);
    job_unlock();
}

static void drain_begin(struct block_claim *claim)
{
    change_drains(job_of(claim), 1);
}

static void drain_end(struct block_claim *claim)
{
    change_drains(job_of(claim), -1);
}

/* A job that drains its own nodes in run() knows that it is quiet. */
static void drain_wait(struct block_claim *claim)
{
    struct job *job = job_of(claim);

    job_lock();
    while (job->in_run && !job->at_pause_point && !pthread_equal(job->thread, pthread_self())) {
        job_wait_locked(&job->changed);
    }
    job_unlock();
}

static const struct block_claim_operations claim_operations = {
    .drain_begin = drain_begin,
    .drain_wait = drain_wait,
    .drain_end = drain_end,
};

int job_claim_node(struct job *job, struct block_node *node, unsigned perms, unsigned shared,
                   GError **error)
{
    struct job_claim *claim = g_new0(struct job_claim, 1);

    claim->job = job;
    claim->claim.operations = &claim_operations;
    claim->claim.owner = g_strdup_printf("block job '%s'", job->id);
    claim->claim.perms = perms;
    claim->claim.shared = shared;
    int status = block_claim_acquire(&claim->claim, node, error);
    if (status < 0) {
        g_free(claim->claim.owner);
        g_free(claim);
        return status;
    }
    job_lock();
    TAILQ_INSERT_TAIL(&job->claims, claim, entry);
    job_unlock();
    return 0;
}

static struct job_claim *take_claim(struct job *job)
{
    struct job_claim *claim;

    job_lock();
    claim = TAILQ_FIRST(&job->claims);
    if (claim) {
        TAILQ_REMOVE(&job->claims, claim, entry);
    }
    job_unlock();
    return claim;
}

void job_release_nodes(struct job *job)
{
    struct job_claim *claim;

    while ((claim = take_claim(job))) {
        block_claim_release(&claim->claim);
        g_free(claim->claim.owner);
        g_free(claim);
    }
}
