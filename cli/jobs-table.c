/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/jobs-table.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "cli/output.h"

/* Add the members that only block jobs have to the entry of the same id. */
static void merge_block_job(json_t *jobs, json_t *block_job)
{
    json_t *job;
    size_t i;

    json_array_foreach (jobs, i, job) {
        if (!strcmp(member_text(job, "id", ""), member_text(block_job, "device", "?"))) {
            json_object_update_missing(job, block_job);
            json_object_del(job, "device"); /* the id again */
            json_object_del(job, "len");    /* total-progress again */
            json_object_del(job, "offset"); /* current-progress again */
        }
    }
}

json_t *query_all_jobs(struct client *client, GError **error)
{
    json_t *jobs = client_call(client, "query-jobs", NULL, CLIENT_QUERY_TIMEOUT_MS, error);
    json_t *block_jobs =
        jobs ? client_call(client, "query-block-jobs", NULL, CLIENT_QUERY_TIMEOUT_MS, error) : NULL;
    json_t *block_job;
    size_t i;

    if (!block_jobs) {
        json_decref(jobs);
        return NULL;
    }
    json_array_foreach (block_jobs, i, block_job) {
        merge_block_job(jobs, block_job);
    }
    json_decref(block_jobs);
    return jobs;
}

static char *progress_text(const json_t *job)
{
    int64_t done = member_integer(job, "current-progress", 0);
    int64_t total = member_integer(job, "total-progress", 0);
    gboolean ended_well =
        !strcmp(member_text(job, "status", ""), "concluded") && !json_object_get(job, "error");

    if (ended_well) {
        return g_strdup("100 %");
    }
    /* As for a backup's own line: not 100 % before the end. */
    return total > 0 ? g_strdup_printf("%.1f %%", MIN(done * 1000.0 / total, 999) / 10)
                     : g_strdup("?");
}

/* "following, 1.5 MiB left for 2 s, guests wait for it" of a job that follows a guest. */
static char *phase_text(const json_t *job)
{
    const json_t *converges = json_object_get(job, "will-converge");
    int64_t left = member_integer(job, "bytes-left", 0);
    GString *text = g_string_new(member_text(job, "phase", ""));

    if (left > 0) {
        g_autofree char *size = format_size(left);
        g_string_append_printf(text, ", %s left", size);
    }
    if (left > 0 && json_is_true(converges)) {
        g_string_append_printf(text, " for %" PRId64 " s", member_integer(job, "seconds-left", 0));
    } else if (left > 0 && converges) {
        g_string_append(text, " and not getting less");
    }
    if (json_is_true(json_object_get(job, "synchronous"))) {
        g_string_append(text, ", guests wait for it");
    }
    return g_string_free(text, FALSE);
}

/* "target lost for 5 s, looked for again in 2 s: Connection refused"; NULL if it is not. */
static char *lost_text(const json_t *job)
{
    const json_t *lost = json_object_get(job, "target-lost");
    g_autofree char *reason = printable(member_text(lost, "reason", "?"));

    return lost ? g_strdup_printf("target lost for %" PRId64 " s, looked for again in %" PRId64
                                  " s: %s",
                                  member_integer(lost, "seconds", 0),
                                  (member_integer(lost, "next-ms", 0) + 999) / 1000, reason)
                : NULL;
}

/* Why it copies less than it could; NULL if it does not. */
static char *pace_text(const json_t *job)
{
    const char *pace = member_text(job, "guest-pace", "free");
    g_autofree char *p99 = format_latency((double)member_integer(job, "guest-p99", 0));
    g_autofree char *target = format_latency((double)member_integer(job, "guest-latency", 0));

    if (!strcmp(pace, "recovering")) {
        return g_strdup_printf("speeding up (guest p99 %s, limit %s)", p99, target);
    }
    if (!strcmp(pace, "held-back") || !strcmp(pace, "floor")) {
        return g_strdup_printf("held back%s (guest p99 %s, limit %s)",
                               strcmp(pace, "floor") ? "" : " as far as possible", p99, target);
    }
    return NULL;
}

/* What a person wants to know beside the state: the error, or why it does not move. */
static char *remark(const json_t *job)
{
    const char *io_status = member_text(job, "io-status", "ok");
    const char *error = member_text(job, "error", NULL);
    bool is_well = !error && !strcmp(io_status, "ok");
    char *lost = is_well ? lost_text(job) : NULL;
    char *pace = is_well && !lost ? pace_text(job) : NULL;

    if (lost || pace) {
        return lost ? lost : pace;
    }
    return error                     ? g_strdup(error)
           : strcmp(io_status, "ok") ? g_strdup(io_status)
                                     : phase_text(job);
}

void print_jobs(const json_t *jobs)
{
    static const char *const headings[] = {"JOB",    "TYPE",           "STATUS",  ">DONE", ">TOTAL",
                                           ">SPEED", ">WAITS P99/MAX", "REMARKS", NULL};
    struct libscols_table *table;
    const json_t *job;
    size_t i;

    if (json_array_size(jobs) == 0) {
        printf("No jobs.\n");
        return;
    }
    table = table_new(headings);
    json_array_foreach ((json_t *)jobs, i, job) {
        int64_t limit = member_integer(job, "speed", 0);
        g_autofree char *done = progress_text(job);
        g_autofree char *total = format_size(MAX(member_integer(job, "total-progress", 0), 0));
        g_autofree char *size = format_size(MAX(limit, 0));
        g_autofree char *speed = limit > 0 ? g_strconcat(size, "/s", NULL) : g_strdup("-");
        g_autofree char *waits = guest_waits_text(job);
        g_autofree char *remarks = remark(job);
        const char *const cells[] = {member_text(job, "id", "?"),
                                     member_text(job, "type", "?"),
                                     member_text(job, "status", "?"),
                                     done,
                                     total,
                                     speed,
                                     waits,
                                     remarks};
        table_add(table, cells);
    }
    table_print(table);
}
