/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/job-start.h"

#include <stdio.h>
#include <string.h>

#include "block/cleanup.h"
#include "cli/output.h"
#include "cli/runtime.h"
#include "cli/signals.h"
#include "cli/target-node.h"

struct job_start_options job_start_options;

const char *const job_policies[] = {"report", "ignore", "stop", "enospc", NULL};

bool job_check_word(const char *option, const char *value, const char *const *allowed,
                    GError **error)
{
    if (value && !g_strv_contains(allowed, value)) {
        g_autofree char *list = g_strjoinv(", ", (char **)allowed);
        usage_error(error, "--%s expects one of %s, not '%s'", option, list, value);
        return false;
    }
    return true;
}

bool job_check_size(const char *option, const char *value, int64_t *bytes, GError **error)
{
    if (value && !parse_size(value, bytes)) {
        usage_error(error, "--%s expects a number of bytes such as 50M, not '%s'", option, value);
        return false;
    }
    return true;
}

void job_set_text(json_t *arguments, const char *name, const char *value)
{
    if (value) {
        json_object_set_new(arguments, name, json_string(value));
    }
}

static bool check_latency(const char *text, int64_t *ns, GError **error)
{
    if (text && !parse_milliseconds(text, ns)) {
        usage_error(error, "--guest-latency expects a number of milliseconds such as 2.5, not '%s'",
                    text);
        return false;
    }
    return true;
}

json_t *job_start_arguments(const char *device, GError **error)
{
    const struct job_start_options *typed = &job_start_options;
    int64_t speed = 0, latency_ns = 0;

    if (!job_check_size("speed", typed->speed, &speed, error) ||
        !check_latency(typed->guest_latency, &latency_ns, error) ||
        !job_check_word("on-source-error", typed->on_source_error, job_policies, error) ||
        !job_check_word("on-target-error", typed->on_target_error, job_policies, error)) {
        return NULL;
    }
    json_t *arguments = json_pack("{s:s, s:b, s:I}", "device", device, "auto-dismiss", 0, "speed",
                                  (json_int_t)speed);
    if (!arguments) {
        usage_error(error, "The name of the device is not valid UTF-8");
        return NULL;
    }
    if (latency_ns) {
        json_object_set_new(arguments, "guest-latency", json_integer(latency_ns));
    }
    job_set_text(arguments, "on-source-error", typed->on_source_error);
    job_set_text(arguments, "on-target-error", typed->on_target_error);
    return arguments;
}

static bool is_node_of(char *const *nodes, const char *job_id)
{
    g_autofree char *name = target_node_name(job_id);

    return g_strv_contains((const char *const *)nodes, name);
}

static bool job_exists(json_t *jobs, const char *id)
{
    json_t *job;
    size_t i;

    json_array_foreach (jobs, i, job) {
        if (!strcmp(member_text(job, "id", ""), id)) {
            return true;
        }
    }
    return false;
}

/*
 * "backup-DEVICE", with a number after it if that is taken, or if the device has moved to the
 * target of an earlier job of this name. The caller frees; NULL: error.
 */
static char *free_job_id(struct client *client, const char *type, const char *device,
                         GError **error)
{
    g_autofree char *base = g_strconcat(type, "-", device, NULL);
    json_t *jobs = client_call(client, "query-jobs", NULL, CLIENT_QUERY_TIMEOUT_MS, error);

    if (!jobs) {
        return NULL;
    }
    g_strcanon(base, G_CSET_A_2_Z G_CSET_a_2_z G_CSET_DIGITS "._-", '-');
    g_auto(GStrv) nodes = target_nodes_of_devices(client);
    char *id = g_strdup(base);
    for (unsigned i = 2; job_exists(jobs, id) || is_node_of(nodes, id); i++) {
        g_free(id);
        id = g_strdup_printf("%s-%u", base, i);
    }
    json_decref(jobs);
    return id;
}

static enum exit_status detach(const struct invocation *invocation, const char *job_id)
{
    if (invocation->json) {
        print_json_line(json_pack("{s:s, s:s}", "message_type", "started", "job_id", job_id));
    } else {
        printf("%s\n", job_id);
    }
    return EXIT_OK;
}

static enum exit_status follow(const struct job_start *how, const struct invocation *invocation,
                               struct client *client, const char *job_id, int signal_fd,
                               GError **error)
{
    struct follow_options options = {
        .job_id = job_id,
        .signal_fd = signal_fd,
        .json = invocation->json,
        .quiet = job_start_options.quiet,
        .at_ready = how->at_ready,
    };
    struct follow_report report = {0};
    g_auto(GStrv) before = target_nodes_of_devices(client);
    enum follow_outcome outcome = follow_job(client, &options, &report, error);

    if (outcome <= FOLLOW_CANCELLED) {
        target_nodes_clean(client, job_id, before);
    }
    return follow_conclude(&options, outcome, &report, how->what, how->remains, error);
}

/* Programs that read JSON want to find there why nothing was started. */
static enum exit_status report_early(const struct invocation *invocation, const GError *error)
{
    if (invocation->json) {
        print_json_error(error);
    }
    return EXIT_FAILED;
}

enum exit_status job_start_run(const struct job_start *how, const struct invocation *invocation,
                               GError **error)
{
    AUTO_CLIENT client = connect_to_server(invocation, error);

    if (!client) {
        return report_early(invocation, *error);
    }
    /* From here on a signal must not leave a job behind that nobody knows of. */
    int signal_fd = signals_catch();
    client_set_interrupt_fd(client, signal_fd);
    g_autofree char *job_id = job_start_options.job_id
                                  ? g_strdup(job_start_options.job_id)
                                  : free_job_id(client, how->type, invocation->arguments[0], error);
    if (!job_id || !how->start(how, client, job_id, error)) {
        return report_early(invocation, *error);
    }
    return job_start_options.detach ? detach(invocation, job_id)
                                    : follow(how, invocation, client, job_id, signal_fd, error);
}
