/* SPDX-License-Identifier: BSD-3-Clause */
/* What is said about a job when following it is over. */
#include <stdio.h>

#include "block/cleanup.h"
#include "cli/comparison.h"
#include "cli/follow.h"
#include "cli/output.h"

static void print_summary(const struct follow_options *options, const char *outcome,
                          const struct follow_report *report)
{
    print_json_line(json_pack("{s:s, s:s, s:s, s:I, s:I, s:f}", "message_type", "summary", "job_id",
                              options->job_id, "outcome", outcome, "bytes_done",
                              (json_int_t)report->bytes_done, "total_bytes",
                              (json_int_t)report->bytes_total, "total_duration", report->seconds));
}

static void print_success(const struct follow_report *report, const char *what)
{
    g_autofree char *size = format_size(report->bytes_done);
    g_autofree char *time = format_duration((uint64_t)report->seconds);

    printf("%s is complete: %s", what, size);
    /* Of a job that was only met near its end the rate would be nonsense. */
    if (report->seconds >= 1 && report->bytes_seen) {
        g_autofree char *rate = format_size(report->bytes_seen / report->seconds);
        printf(" in %s, %s/s", time, rate);
    }
    printf("\n");
    fflush(stdout);
}

char *follow_ready_hint(const char *job_id, bool is_commit)
{
    if (is_commit) {
        return g_strdup_printf("'liveblk job complete %s' moves the disk to its base, "
                               "'liveblk job cancel %s' leaves it where it is",
                               job_id, job_id);
    }
    return g_strdup_printf("'liveblk job complete %s' moves the disk to the target, "
                           "'liveblk job cancel --keep %s' ends the job with a complete copy there",
                           job_id, job_id);
}

static void print_ready(const struct follow_options *options, const struct follow_report *report,
                        const char *what)
{
    g_autofree char *hint = follow_ready_hint(options->job_id, report->is_commit);

    printf("%s is ready and goes on; %s\n", what, hint);
    fflush(stdout);
}

void print_json_error(const GError *error)
{
    print_json_line(json_pack("{s:s, s:s, s:i}", "message_type", "error", "message", error->message,
                              "code", error->domain == CLI_ERROR ? error->code : EXIT_FAILED));
}

/* The error that stands for an outcome; a lost connection brings its own. */
static void outcome_error(enum follow_outcome outcome, const struct follow_report *report,
                          const char *what, const char *remains, GError **error)
{
    if (outcome == FOLLOW_FAILED) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED, "%s failed: %s", what, report->failure);
    } else if (outcome == FOLLOW_CANCELLED) {
        g_set_error(error, CLI_ERROR, EXIT_CANCELLED, "%s was cancelled", what);
    } else {
        g_prefix_error(error, "%s was not seen to its end: ", what);
    }
    if (remains && *error) {
        g_autofree char *before = STEAL((*error)->message);
        (*error)->message = g_strdup_printf("%s. %s", before, remains);
    }
}

enum exit_status follow_conclude(const struct follow_options *options, enum follow_outcome outcome,
                                 struct follow_report *report, const char *what,
                                 const char *remains, GError **error)
{
    static const char *const names[] = {"success", "failed",   "cancelled",
                                        "ready",   "detached", "unknown"};

    if (report->job) {
        print_comparison(report->job, options->json);
    }
    if (outcome == FOLLOW_SUCCEEDED && !options->json) {
        print_success(report, what);
    } else if (outcome == FOLLOW_READY && !options->json) {
        print_ready(options, report, what);
    } else if (outcome == FOLLOW_LEFT) {
        complain("Job '%s' goes on; 'liveblk job wait %s' follows it again", options->job_id,
                 options->job_id);
    } else if (outcome != FOLLOW_SUCCEEDED && outcome != FOLLOW_READY) {
        outcome_error(outcome, report, what, remains, error);
    }
    if (options->json && *error) {
        print_json_error(*error);
    }
    if (options->json) {
        print_summary(options, names[outcome], report);
    }
    g_clear_pointer(&report->failure, g_free);
    g_clear_pointer(&report->job, json_decref);
    return outcome == FOLLOW_LEFT ? EXIT_LEFT_RUNNING : EXIT_OK;
}
