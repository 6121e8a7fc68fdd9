/* SPDX-License-Identifier: BSD-3-Clause */
/* Commands that control and query jobs, and the jobs' events. */
#include <errno.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/clock.h"
#include "block/error.h"
#include "jobs/job.h"
#include "jobs/mirror.h"
#include "server/commands-backup.h"
#include "server/commands-mirror.h"
#include "server/commands-verify.h"
#include "server/commands.h"
#include "server/guest-figures.h"
#include "server/lookup.h"
#include "server/qmp/json-value.h"
#include "server/types.h"

/* ---- Types ---------------------------------------------------------------------------------- */

static const struct qmp_member id_members[] = {
    {"id", &qmp_type_string, .doc = "The job."},
    {NULL},
};
static const struct qmp_type id_type = {
    .name = "JobId",
    .kind = QMP_KIND_OBJECT,
    .members = id_members,
};
static const struct qmp_member device_members[] = {
    {"device", &qmp_type_string, .doc = "The job's ID."},
    {NULL},
};
static const struct qmp_type device_type = {
    .name = "BlockJobId",
    .kind = QMP_KIND_OBJECT,
    .members = device_members,
};
static const struct qmp_member cancel_members[] = {
    {"device", &qmp_type_string, .doc = "The job's ID."},
    {"force", &qmp_type_bool, .optional = true, .default_text = "false",
     .doc = "Even if it is paused; do not let it finish first."},
    {NULL},
};
static const struct qmp_type cancel_type = {
    .name = "BlockJobCancel",
    .kind = QMP_KIND_OBJECT,
    .members = cancel_members,
};
static const struct qmp_member set_speed_members[] = {
    {"device", &qmp_type_string, .doc = "The job's ID."},
    {"speed", &qmp_type_int, .doc = "Bytes per second; 0: unlimited."},
    {NULL},
};
static const struct qmp_type set_speed_type = {
    .name = "BlockJobSetSpeed",
    .kind = QMP_KIND_OBJECT,
    .members = set_speed_members,
};

static const struct qmp_member set_guest_latency_members[] = {
    {"device", &qmp_type_string, .doc = "The job's ID."},
    {"guest-latency", &qmp_type_int, .doc = "Nanoseconds; 0: none."},
    {NULL},
};
static const struct qmp_type set_guest_latency_type = {
    .name = "BlockJobSetGuestLatency",
    .kind = QMP_KIND_OBJECT,
    .members = set_guest_latency_members,
};

static const struct qmp_type job_type_type = {
    .name = "JobType",
    .kind = QMP_KIND_ENUM,
    .values = job_type_names,
};
static const struct qmp_type job_status_type = {
    .name = "JobStatus",
    .kind = QMP_KIND_ENUM,
    .values = job_status_names,
};
static const struct qmp_type job_io_status_type = {
    .name = "BlockDeviceIoStatus",
    .kind = QMP_KIND_ENUM,
    .values = block_io_status_names,
};
static const struct qmp_member change_mirror_members[] = {
    {"copy-mode", &mirror_copy_mode_type, .doc = "The mode from now on, any of them."},
    {NULL},
};
static const struct qmp_type change_mirror_type = {
    .name = "BlockJobChangeOptionsMirror",
    .kind = QMP_KIND_OBJECT,
    .members = change_mirror_members,
};
static const struct qmp_variant change_variants[] = {
    {"mirror", &change_mirror_type},
    {NULL},
};
static const struct qmp_member change_members[] = {
    {"id", &qmp_type_string, .doc = "The job."},
    {"type", &job_type_type, .doc = "The job's type."},
    {NULL},
};
static const struct qmp_type change_type = {
    .name = "BlockJobChangeOptions",
    .kind = QMP_KIND_OBJECT,
    .members = change_members,
    .discriminator = "type",
    .variants = change_variants,
};

static const struct qmp_member target_lost_members[] = {
    {"seconds", &qmp_type_int, .doc = "For how long."},
    {"retries", &qmp_type_int, .doc = "How often it was looked for in vain."},
    {"next-ms", &qmp_type_int, .doc = "Milliseconds until it is looked for again."},
    {"reason", &qmp_type_string, .doc = "What has happened, for people."},
    {NULL},
};
static const struct qmp_type target_lost_type = {
    .name = "MirrorTargetLost",
    .kind = QMP_KIND_OBJECT,
    .members = target_lost_members,
};
static const char *const resumed_names[] = {"changes", "all", NULL};
static const struct qmp_type resumed_type = {
    .name = "MirrorResumed",
    .kind = QMP_KIND_ENUM,
    .values = resumed_names,
    .doc = "changes: an earlier mirror was gone on with, and what the target lacked was to be "
           "copied; all: there was nothing to go on with.",
};

/* An extension of liveblk's. */
static const struct qmp_member job_pace_members[] = {
    {"bytes-left", &qmp_type_int, .optional = true,
     .doc = "Mirrors, and commits that follow a guest: bytes that the target has not got yet."},
    {"dirty-rate", &qmp_type_int, .optional = true,
     .doc = "Bytes per second that guests add to that, as a mean; known from half a second on."},
    {"copy-rate", &qmp_type_int, .optional = true, .doc = "Bytes per second that are copied."},
    {"will-converge", &qmp_type_bool, .optional = true,
     .doc = "At these rates what is left gets less, or hardly anything is."},
    {"seconds-left", &qmp_type_int, .optional = true,
     .doc = "How long that takes, if it gets less."},
    {"copy-mode", &mirror_copy_mode_type, .optional = true, .doc = "Mirrors: their copy mode."},
    {"synchronous", &qmp_type_bool, .optional = true,
     .doc = "Mirrors: guests' writes are answered when they are on the target, too, just now."},
    {"copy-mode-reason", &qmp_type_string, .optional = true,
     .doc = "Mirrors: why that changed last, for people."},
    {"bytes-unflushed", &qmp_type_int, .optional = true,
     .doc = "Mirrors that go on after a loss of their target, or can be resumed: bytes that the "
            "target "
            "has got but not made durable yet, and that would be copied again."},
    {"target-lost", &target_lost_type, .optional = true,
     .doc = "Mirrors: the target is lost, and looked for."},
    {"resumed", &resumed_type, .optional = true,
     .doc = "Mirrors with `resume`: how much was to be copied."},
    {"full-copy-reason", &qmp_type_string, .optional = true,
     .doc = "Mirrors with `resume`: why that was all."},
    {NULL},
};
static const struct qmp_type job_pace_type = {
    .name = "JobPace",
    .kind = QMP_KIND_OBJECT,
    .members = job_pace_members,
};

static const struct qmp_member job_info_members[] = {
    {"id", &qmp_type_string, .doc = "The job's ID."},
    {"type", &job_type_type, .doc = "Its type."},
    {"status", &job_status_type, .doc = "Its state."},
    {"current-progress", &qmp_type_int, .doc = "Bytes of work done."},
    {"total-progress", &qmp_type_int, .doc = "Bytes of work in all; may grow."},
    {"error", &qmp_type_string, .optional = true, .doc = "Why it failed."},
    {"phase", &qmp_type_string, .doc = "What it is doing, in a word."},
    {"verify", &verify_info_type, .optional = true,
     .doc = "Of blockdev-verify only: what it has found up to now. An extension of liveblk's."},
    GUEST_FIGURES_MEMBERS,
    {NULL},
};
static const struct qmp_type job_info_type = {
    .name = "JobInfo",
    .kind = QMP_KIND_OBJECT,
    .base = &job_pace_type,
    .members = job_info_members,
};
static const struct qmp_type job_info_list_type = {
    .name = "JobInfoList",
    .kind = QMP_KIND_ARRAY,
    .element = &job_info_type,
};

static const struct qmp_member block_job_info_members[] = {
    {"type", &job_type_type, .doc = "The job's type."},
    {"device", &qmp_type_string, .doc = "Its ID."},
    {"len", &qmp_type_int, .doc = "Bytes of work in all; may grow."},
    {"offset", &qmp_type_int, .doc = "Bytes of work done."},
    {"busy", &qmp_type_bool, .doc = "It is working."},
    {"paused", &qmp_type_bool, .doc = "Somebody wants it to pause."},
    {"speed", &qmp_type_int, .doc = "Its rate limit; 0: none."},
    {"io-status", &job_io_status_type, .doc = "How its last I/O ended."},
    {"ready", &qmp_type_bool, .doc = "It may be completed."},
    {"status", &job_status_type, .doc = "Its state."},
    {"auto-finalize", &qmp_type_bool, .doc = "It finalizes by itself."},
    {"auto-dismiss", &qmp_type_bool, .doc = "It vanishes when it has ended."},
    {"actively-synced", &qmp_type_bool, .optional = true,
     .doc = "Mirrors only: both sides are the same, and guests' writes are answered when they are "
            "on both; never while the copy mode is background."},
    GUEST_FIGURES_MEMBERS,
    {"error", &qmp_type_string, .optional = true, .doc = "Why it failed."},
    {NULL},
};
static const struct qmp_type block_job_info_type = {
    .name = "BlockJobInfo",
    .kind = QMP_KIND_OBJECT,
    .base = &job_pace_type,
    .members = block_job_info_members,
};
static const struct qmp_type block_job_info_list_type = {
    .name = "BlockJobInfoList",
    .kind = QMP_KIND_ARRAY,
    .element = &block_job_info_type,
};

/* ---- Verbs ---------------------------------------------------------------------------------- */

/* The two families differ in the argument's name and in how they say that there is no such job. */
static struct job *find_job(json_t *arguments, GError **error)
{
    const char *id = json_string_value(json_object_get(arguments, "id"));
    struct job *job = job_find(id);

    if (!job) {
        block_error(error, ENOENT, "Job not found");
    }
    return job;
}

static struct job *find_block_job(json_t *arguments, const char *member, GError **error)
{
    const char *id = json_string_value(json_object_get(arguments, member));
    AUTO(job) job = job_find(id);

    if (!job || !job_driver_of(job)->is_block_job) {
        g_set_error(error, QMP_ERROR, QMP_ERROR_DEVICE_NOT_ACTIVE, "Block job '%s' not found", id);
        return NULL;
    }
    return STEAL(job);
}

static json_t *answer(int status)
{
    return status < 0 ? NULL : json_object();
}

/* block_member: what the block-job command calls its argument. */
#define DEFINE_VERB(verb, function, block_member)                                                  \
    static json_t *job_##verb##_command(struct qmp_request *request, json_t *arguments,            \
                                        GError **error)                                            \
    {                                                                                              \
        AUTO(job) job = find_job(arguments, error);                                                \
                                                                                                   \
        return job ? answer(function(job, error)) : NULL;                                          \
    }                                                                                              \
    static json_t *block_job_##verb##_command(struct qmp_request *request, json_t *arguments,      \
                                              GError **error)                                      \
    {                                                                                              \
        AUTO(job) job = find_block_job(arguments, block_member, error);                            \
                                                                                                   \
        return job ? answer(function(job, error)) : NULL;                                          \
    }

DEFINE_VERB(pause, job_user_pause, "device")
DEFINE_VERB(resume, job_user_resume, "device")
DEFINE_VERB(complete, job_complete, "device")
DEFINE_VERB(finalize, job_finalize, "id")
DEFINE_VERB(dismiss, job_dismiss, "id")

static json_t *job_cancel_command(struct qmp_request *request, json_t *arguments, GError **error)
{
    AUTO(job) job = find_job(arguments, error);

    return job ? answer(job_cancel(job, true, true, error)) : NULL;
}

static json_t *block_job_cancel_command(struct qmp_request *request, json_t *arguments,
                                        GError **error)
{
    AUTO(job) job = find_block_job(arguments, "device", error);
    bool force = lookup_bool(arguments, "force", false);

    return job ? answer(job_cancel(job, force, true, error)) : NULL;
}

static json_t *block_job_set_speed(struct qmp_request *request, json_t *arguments, GError **error)
{
    AUTO(job) job = find_block_job(arguments, "device", error);
    json_int_t speed = json_integer_value(json_object_get(arguments, "speed"));

    return job ? answer(job_set_speed(job, speed, error)) : NULL;
}

static json_t *block_job_set_guest_latency(struct qmp_request *request, json_t *arguments,
                                           GError **error)
{
    AUTO(job) job = find_block_job(arguments, "device", error);

    return job ? answer(job_set_guest_latency(job, lookup_integer(arguments, "guest-latency", 0),
                                              error))
               : NULL;
}

static json_t *block_job_change(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *type = json_string_value(json_object_get(arguments, "type"));
    AUTO(job) job = find_block_job(arguments, "id", error);

    if (job && strcmp(type, job_driver_of(job)->type)) {
        block_error(error, EINVAL, "Job '%s' is '%s' job, not '%s'", job_id(job),
                    job_driver_of(job)->type, type);
        return NULL;
    }
    if (job && strcmp(type, "mirror")) {
        block_error(error, ENOTSUP, "Job type does not support change");
        return NULL;
    }
    return job ? answer(mirror_change_copy_mode(
                     job,
                     (enum mirror_copy_mode)lookup_enum(json_object_get(arguments, "copy-mode"),
                                                        mirror_copy_mode_names),
                     error))
               : NULL;
}

/* ---- Queries -------------------------------------------------------------------------------- */

static void set_error(json_t *object, const struct job_info *info)
{
    if (info->error) {
        json_object_set_new(object, "error", json_value_from_text(info->error));
    }
}

static void set_pace(json_t *object, const struct job_info *info)
{
    if (info->has_pace) {
        json_object_set_new(object, "bytes-left", json_integer((json_int_t)info->bytes_left));
    }
    if (info->has_pace && info->is_measured) {
        json_object_set_new(object, "dirty-rate", json_integer((json_int_t)info->dirty_rate));
        json_object_set_new(object, "copy-rate", json_integer((json_int_t)info->copy_rate));
        json_object_set_new(object, "will-converge", json_boolean(info->will_converge));
        if (info->will_converge) {
            json_object_set_new(object, "seconds-left",
                                json_integer((json_int_t)info->seconds_left));
        }
    }
    if (info->copy_mode) {
        json_object_set_new(object, "copy-mode", json_string(info->copy_mode));
        json_object_set_new(object, "synchronous", json_boolean(info->is_synchronous));
    }
    if (info->copy_mode && info->copy_mode_reason) {
        json_object_set_new(object, "copy-mode-reason",
                            json_value_from_text(info->copy_mode_reason));
    }
}

/* A target that is lost, and what a mirror was begun with. */
static void set_target(json_t *object, const struct job_info *info)
{
    if (info->has_unflushed) {
        json_object_set_new(object, "bytes-unflushed",
                            json_integer((json_int_t)info->unflushed_bytes));
    }
    if (info->is_target_lost) {
        json_object_set_new(object, "target-lost",
                            json_pack("{s:I, s:i, s:I, s:o}", "seconds",
                                      (json_int_t)(info->target_lost_ns / NS_PER_SECOND), "retries",
                                      (int)info->target_retries, "next-ms",
                                      (json_int_t)(info->target_next_ns / NS_PER_MS), "reason",
                                      json_value_from_text(info->target_lost_reason)));
    }
    if (info->resumed) {
        json_object_set_new(object, "resumed", json_string(info->resumed));
    }
    if (info->full_copy_reason) {
        json_object_set_new(object, "full-copy-reason",
                            json_value_from_text(info->full_copy_reason));
    }
}

static json_t *job_object(const struct job_info *info)
{
    json_t *object = json_pack("{s:s, s:s, s:s, s:I, s:I, s:s}", "id", info->id, "type", info->type,
                               "status", job_status_names[info->status], "current-progress",
                               (json_int_t)info->current_progress, "total-progress",
                               (json_int_t)info->total_progress, "phase", info->phase);

    if (info->has_verify) {
        json_object_set_new(object, "verify", verify_info_object(&info->verify));
    }
    set_pace(object, info);
    set_target(object, info);
    guest_figures_add(object, info);
    set_error(object, info);
    return object;
}

static json_t *block_job_object(const struct job_info *info)
{
    json_t *object = json_pack(
        "{s:s, s:s, s:I, s:I, s:b, s:b, s:I, s:s, s:b, s:s, s:b, s:b}", "type", info->type,
        "device", info->id, "len", (json_int_t)info->total_progress, "offset",
        (json_int_t)info->current_progress, "busy", info->busy, "paused", info->paused, "speed",
        (json_int_t)info->speed, "io-status", block_io_status_names[info->io_status], "ready",
        info->ready, "status", job_status_names[info->status], "auto-finalize", info->auto_finalize,
        "auto-dismiss", info->auto_dismiss);

    if (info->has_actively_synced) {
        json_object_set_new(object, "actively-synced", json_boolean(info->actively_synced));
    }
    set_pace(object, info);
    set_target(object, info);
    guest_figures_add(object, info);
    set_error(object, info);
    return object;
}

static json_t *query(bool block_jobs_only, json_t *to_object(const struct job_info *info))
{
    struct job **jobs = job_list();
    json_t *list = json_array();

    for (struct job **job = jobs; *job; job++) {
        struct job_info info;

        job_get_info(*job, &info);
        if (info.is_block_job || !block_jobs_only) {
            json_array_append_new(list, to_object(&info));
        }
        job_info_clear(&info);
    }
    job_list_free(jobs);
    return list;
}

static json_t *query_jobs(struct qmp_request *request, json_t *arguments, GError **error)
{
    return query(false, job_object);
}

static json_t *query_block_jobs(struct qmp_request *request, json_t *arguments, GError **error)
{
    return query(true, block_job_object);
}

const struct qmp_command job_commands[] = {
    {"blockdev-backup", &blockdev_backup_type, NULL, blockdev_backup, 0,
     "Back a device or node up to a node, as it is now."},
    {"drive-backup", &drive_backup_type, NULL, drive_backup, 0,
     "Back a device or node up to a file, as it is now."},
    {"blockdev-mirror", &blockdev_mirror_type, NULL, blockdev_mirror, 0,
     "Copy a device or node to a node and follow its writes, to move it or to keep the copy."},
    {"drive-mirror", &drive_mirror_type, NULL, drive_mirror, 0,
     "Copy a device or node to a file and follow its writes, to move it or to keep the copy."},
    {"blockdev-verify", &blockdev_verify_type, NULL, blockdev_verify, 0,
     "Compare a device or node, as it is now, with a node. An extension of liveblk's."},
    {"job-pause", &id_type, NULL, job_pause_command, QMP_COMMAND_QUICK, "Pause a job."},
    {"job-resume", &id_type, NULL, job_resume_command, QMP_COMMAND_QUICK, "Let it go on."},
    {"job-cancel", &id_type, NULL, job_cancel_command, 0,
     "Cancel a job by force; answers when it has ended."},
    {"job-complete", &id_type, NULL, job_complete_command, QMP_COMMAND_QUICK,
     "Complete a job that is ready."},
    {"job-finalize", &id_type, NULL, job_finalize_command, 0,
     "Finalize a pending job, and with it its transaction."},
    {"job-dismiss", &id_type, NULL, job_dismiss_command, QMP_COMMAND_QUICK,
     "Forget a concluded job."},
    {"block-job-pause", &device_type, NULL, block_job_pause_command, QMP_COMMAND_QUICK,
     "As job-pause."},
    {"block-job-resume", &device_type, NULL, block_job_resume_command, QMP_COMMAND_QUICK,
     "As job-resume."},
    {"block-job-cancel", &cancel_type, NULL, block_job_cancel_command, 0,
     "Cancel a job; answers when it has ended."},
    {"block-job-complete", &device_type, NULL, block_job_complete_command, QMP_COMMAND_QUICK,
     "As job-complete."},
    {"block-job-finalize", &id_type, NULL, block_job_finalize_command, 0, "As job-finalize."},
    {"block-job-dismiss", &id_type, NULL, block_job_dismiss_command, QMP_COMMAND_QUICK,
     "As job-dismiss."},
    {"block-job-set-speed", &set_speed_type, NULL, block_job_set_speed, QMP_COMMAND_QUICK,
     "Limit a job's rate; takes effect at once."},
    {"block-job-set-guest-latency", &set_guest_latency_type, NULL, block_job_set_guest_latency,
     QMP_COMMAND_QUICK,
     "Change the guest-latency a job was started with; takes effect at once. An extension of "
     "liveblk's."},
    {"block-job-change", &change_type, NULL, block_job_change, QMP_COMMAND_QUICK,
     "Change a running job: a mirror's copy mode, to any of them."},
    {"query-jobs", NULL, &job_info_list_type, query_jobs, QMP_COMMAND_QUICK,
     "All jobs, newest first."},
    {"query-block-jobs", NULL, &block_job_info_list_type, query_block_jobs, QMP_COMMAND_QUICK,
     "The jobs on nodes, newest first."},
    {NULL},
};

/* ---- Events --------------------------------------------------------------------------------- */

static const struct qmp_member status_change_members[] = {
    {"id", &qmp_type_string, .doc = "The job."},
    {"status", &job_status_type, .doc = "Its new state."},
    {NULL},
};
static const struct qmp_type status_change_type = {
    .name = "JobStatusChangeEvent",
    .kind = QMP_KIND_OBJECT,
    .members = status_change_members,
};
static const struct qmp_member progress_members[] = {
    {"type", &job_type_type, .doc = "The job's type."},
    {"device", &qmp_type_string, .doc = "Its ID."},
    {"len", &qmp_type_int, .doc = "Bytes of work in all."},
    {"offset", &qmp_type_int, .doc = "Bytes of work done."},
    {"speed", &qmp_type_int, .doc = "Its rate limit."},
    {NULL},
};
static const struct qmp_type progress_type = {
    .name = "BlockJobEvent",
    .kind = QMP_KIND_OBJECT,
    .members = progress_members,
};
static const struct qmp_member completed_members[] = {
    {"error", &qmp_type_string, .optional = true, .doc = "Why it failed; absent if it did not."},
    {NULL},
};
static const struct qmp_type completed_type = {
    .name = "BlockJobCompletedEvent",
    .kind = QMP_KIND_OBJECT,
    .base = &progress_type,
    .members = completed_members,
};
static const struct qmp_member pending_members[] = {
    {"type", &job_type_type, .doc = "The job's type."},
    {"id", &qmp_type_string, .doc = "Its ID."},
    {NULL},
};
static const struct qmp_type pending_type = {
    .name = "BlockJobPendingEvent",
    .kind = QMP_KIND_OBJECT,
    .members = pending_members,
};
static const struct qmp_member error_members[] = {
    {"device", &qmp_type_string, .doc = "The job's ID."},
    {"operation", &qmp_type_string,
     .doc = "read or write: of the job's source, or of its target, which blockdev-verify only "
            "reads."},
    {"action", &qmp_type_string, .doc = "ignore, report or stop."},
    {NULL},
};
static const struct qmp_type error_type = {
    .name = "BlockJobErrorEvent",
    .kind = QMP_KIND_OBJECT,
    .members = error_members,
};

static const struct qmp_member copy_mode_change_members[] = {
    {"id", &qmp_type_string, .doc = "The job."},
    {"copy-mode", &mirror_copy_mode_type, .doc = "Its copy mode, as it was asked for."},
    {"synchronous", &qmp_type_bool,
     .doc = "Whether guests' writes are written through to the target from now on."},
    {"reason", &qmp_type_string, .doc = "Why, for people."},
    {NULL},
};
static const struct qmp_type copy_mode_change_type = {
    .name = "MirrorCopyModeChangeEvent",
    .kind = QMP_KIND_OBJECT,
    .members = copy_mode_change_members,
};

static const struct qmp_member target_lost_event_members[] = {
    {"id", &qmp_type_string, .doc = "The job."},
    {"target", &qmp_type_string, .doc = "The target's node."},
    {"reason", &qmp_type_string, .doc = "What has happened, for people."},
    {NULL},
};
static const struct qmp_type target_lost_event_type = {
    .name = "MirrorTargetLostEvent",
    .kind = QMP_KIND_OBJECT,
    .members = target_lost_event_members,
};
static const struct qmp_member target_back_members[] = {
    {"id", &qmp_type_string, .doc = "The job."},
    {"target", &qmp_type_string, .doc = "The target's node."},
    {"retries", &qmp_type_int, .doc = "How often it was looked for in vain."},
    {"marked-bytes", &qmp_type_int,
     .doc = "Bytes that it had not flushed before it was lost, and that are copied again."},
    {NULL},
};
static const struct qmp_type target_back_type = {
    .name = "MirrorTargetBackEvent",
    .kind = QMP_KIND_OBJECT,
    .members = target_back_members,
};

const struct qmp_event_type job_events[] = {
    {"JOB_STATUS_CHANGE", &status_change_type, "A job changed its state."},
    {"BLOCK_JOB_COMPLETED", &completed_type, "A job ended, well or with an error."},
    {"BLOCK_JOB_CANCELLED", &progress_type, "A job was cancelled."},
    {"BLOCK_JOB_READY", &progress_type, "A job may be completed."},
    {"BLOCK_JOB_PENDING", &pending_type, "A job waits for job-finalize."},
    {"BLOCK_JOB_ERROR", &error_type, "An I/O of a job failed."},
    {"MIRROR_COPY_MODE_CHANGE", &copy_mode_change_type,
     "A mirror with copy-mode auto began or ceased to write through, or somebody changed the mode. "
     "An extension of liveblk's."},
    {"MIRROR_TARGET_LOST", &target_lost_event_type,
     "A mirror's target was lost, and is looked for. An extension of liveblk's."},
    {"MIRROR_TARGET_BACK", &target_back_type,
     "It is back, and what it lacks is copied. An extension of liveblk's."},
    {"VERIFY_DIFFERENCE", &verify_difference_event_type,
     "blockdev-verify has found a difference. An extension of liveblk's."},
    {NULL},
};
