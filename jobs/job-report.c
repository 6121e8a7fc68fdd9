/* SPDX-License-Identifier: BSD-3-Clause */
/* What a job tells about itself: progress, errors met, and the report for queries. */
#include <errno.h>

#include "block/event.h"
#include "jobs/job-internal.h"

const char *const job_type_names[] = {"commit", "stream", "mirror", "backup",
                                      "create", "verify", NULL};

void job_progress_set_total(struct job *job, uint64_t total)
{
    atomic_store(&job->progress_total, total);
}

void job_progress_add_total(struct job *job, uint64_t bytes)
{
    atomic_fetch_add(&job->progress_total, bytes);
}

void job_progress_add(struct job *job, uint64_t bytes)
{
    atomic_fetch_add(&job->progress_current, bytes);
}

uint64_t job_speed(struct job *job)
{
    return (uint64_t)atomic_load(&job->speed);
}

struct guest_waits *job_guest_waits(struct job *job)
{
    return job->guest_waits;
}

uint64_t job_guest_latency(struct job *job)
{
    return atomic_load(&job->guest_latency_ns);
}

uint64_t job_guest_p99(struct job *job)
{
    return atomic_load(&job->guest_p99_ns);
}

void job_accept_guest_latency(struct job *job)
{
    job->has_guest = true;
}

void job_tell_guest_pace(struct job *job, enum guest_pace pace, uint64_t p99_ns)
{
    atomic_store(&job->guest_p99_ns, p99_ns);
    atomic_store(&job->guest_pace, pace);
}

void job_set_phase(struct job *job, const char *phase)
{
    atomic_store(&job->phase, phase);
}

/* As a user's pause, which the user ends; the first error counts. */
static void stop_locked(struct job *job, int error_number)
{
    if (job->io_status == BLOCK_IO_STATUS_OK) {
        bool no_space = error_number == ENOSPC || error_number == EDQUOT;

        job->io_status = no_space ? BLOCK_IO_STATUS_NOSPACE : BLOCK_IO_STATUS_FAILED;
    }
    job->user_paused = true;
    job_update_pause_locked(job);
    job->kicked = true;
    pthread_cond_broadcast(&job->wakeup);
}

enum block_error_policy job_io_error(struct job *job, enum block_error_policy policy, bool is_read,
                                     int error_number)
{
    enum block_error_policy action = block_error_policy_action(policy, error_number);

    job_lock();
    if (atomic_load(&job->force_cancelled)) {
        action = BLOCK_ERROR_POLICY_REPORT;
    } else {
        if (job->run_ended && action == BLOCK_ERROR_POLICY_STOP) {
            action = BLOCK_ERROR_POLICY_REPORT;
        }
        if (job->driver->is_block_job) {
            event_emit("BLOCK_JOB_ERROR", EVENT_STRING("device", job->id),
                       EVENT_STRING("operation", is_read ? "read" : "write"),
                       EVENT_STRING("action", block_error_policy_names[action]));
        }
        if (action == BLOCK_ERROR_POLICY_STOP) {
            stop_locked(job, error_number);
        }
    }
    job_unlock();
    return action;
}

void job_get_info(struct job *job, struct job_info *info)
{
    const char *phase = atomic_load(&job->phase);

    job_lock();
    *info = (struct job_info){
        .id = g_strdup(job->id),
        .type = job->driver->type,
        .status = job->status,
        .is_block_job = job->driver->is_block_job,
        .current_progress = atomic_load(&job->progress_current),
        .total_progress = atomic_load(&job->progress_total),
        .busy = job->in_run && !job->at_pause_point && !job->is_idle,
        .paused = job->drains > 0 || job->user_paused,
        .speed = atomic_load(&job->speed),
        .io_status = job->io_status,
        .ready = job->status == JOB_STATUS_READY || job->status == JOB_STATUS_STANDBY,
        .auto_finalize = !(job->flags & JOB_MANUAL_FINALIZE),
        .auto_dismiss = !(job->flags & JOB_MANUAL_DISMISS),
        .error = g_strdup(job->error),
        .phase = phase ? phase : job_status_names[job->status],
        .guest_latency_ns = atomic_load(&job->guest_latency_ns),
        .guest_pace = atomic_load(&job->guest_pace),
        .guest_p99_ns = atomic_load(&job->guest_p99_ns),
    };
    guest_waits_read(job->guest_waits, &info->guest_waits);
    if (job->driver->get_info) {
        job->driver->get_info(job, info);
    }
    job_unlock();
}

void job_info_clear(struct job_info *info)
{
    g_free(info->id);
    g_free(info->error);
    verify_report_clear(&info->verify);
    g_free(info->copy_mode_reason);
    g_free(info->target_lost_reason);
    g_free(info->full_copy_reason);
    *info = (struct job_info){0};
}
