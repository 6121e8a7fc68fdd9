/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk job: look at jobs and steer them. */
#include <stdio.h>
#include <string.h>

#include "cli/command.h"
#include "cli/follow.h"
#include "cli/jobs-table.h"
#include "cli/output.h"
#include "cli/runtime.h"
#include "cli/signals.h"
#include "cli/target-node.h"
#include "cli/verb.h"

static struct {
    gboolean keep;
    gboolean quiet;
} chosen;

static const GOptionEntry options[] = {
    {"keep", 'k', 0, G_OPTION_ARG_NONE, &chosen.keep,
     "cancel: when it is ready, with a complete copy", NULL},
    {"quiet", 'q', 0, G_OPTION_ARG_NONE, &chosen.quiet, "Show no progress", NULL},
    {NULL},
};

static const struct command_words words[] = {
    {NULL, 0, "list pause resume cancel complete speed latency mode finalize dismiss wait"},
    {NULL, 1, "@job"},
    {NULL},
};

struct job_verb {
    const char *name;
    const char *qmp_command; /* takes the job's id and nothing else; NULL: see function */
    unsigned arguments;      /* after the verb */
    const char *what;        /* they are, for errors */
    bool steers;             /* does something to one job and is done, without following it */
    enum exit_status (*function)(const struct invocation *invocation, struct client *client,
                                 GError **error);
};

/* A line for scripts, as `wait` and `backup` end with one. */
static void print_outcome(const char *verb, const char *job_id, const GError *error)
{
    print_json_line(error ? json_pack("{s:s, s:s, s:s, s:s}", "message_type", "error", "verb", verb,
                                      "job_id", job_id, "message", error->message)
                          : json_pack("{s:s, s:s, s:s}", "message_type", "done", "verb", verb,
                                      "job_id", job_id));
}

static enum exit_status simple_verb(struct client *client, const char *command, json_t *arguments,
                                    GError **error)
{
    json_t *done = client_call(client, command, arguments, CLIENT_WORK_TIMEOUT_MS, error);

    json_decref(done);
    return done ? EXIT_OK : EXIT_FAILED;
}

static enum exit_status list(const struct invocation *invocation, struct client *client,
                             GError **error)
{
    return verb_show(invocation, query_all_jobs(client, error), print_jobs);
}

static enum exit_status set_speed(const struct invocation *invocation, struct client *client,
                                  GError **error)
{
    const char *text = invocation->arguments[2];
    int64_t speed;

    if (!parse_size(text, &speed)) {
        return usage_error(error, "'%s' is no number of bytes per second such as 50M, or 0", text);
    }
    return simple_verb(
        client, "block-job-set-speed",
        json_pack("{s:s, s:I}", "device", invocation->arguments[1], "speed", (json_int_t)speed),
        error);
}

static enum exit_status set_mode(const struct invocation *invocation, struct client *client,
                                 GError **error)
{
    return simple_verb(client, "block-job-change",
                       json_pack("{s:s, s:s, s:s}", "id", invocation->arguments[1], "type",
                                 "mirror", "copy-mode", invocation->arguments[2]),
                       error);
}

static enum exit_status set_latency(const struct invocation *invocation, struct client *client,
                                    GError **error)
{
    const char *text = invocation->arguments[2];
    int64_t ns;

    if (!parse_milliseconds(text, &ns)) {
        return usage_error(error, "'%s' is no number of milliseconds such as 2.5, or 0", text);
    }
    return simple_verb(client, "block-job-set-guest-latency",
                       json_pack("{s:s, s:I}", "device", invocation->arguments[1], "guest-latency",
                                 (json_int_t)ns),
                       error);
}

static enum exit_status dismiss(const struct invocation *invocation, struct client *client,
                                GError **error)
{
    const char *id = invocation->arguments[1];
    enum exit_status status =
        simple_verb(client, "job-dismiss", json_pack("{s:s}", "id", id), error);

    if (status == EXIT_OK) {
        target_nodes_clean(client, id, NULL);
    }
    return status;
}

/* before: target_nodes_of_devices. */
static enum exit_status follow(const struct invocation *invocation, struct client *client,
                               enum follow_at_ready at_ready, int signal_fd, char *const *before,
                               GError **error)
{
    struct follow_options how = {
        .job_id = invocation->arguments[1],
        .signal_fd = signal_fd,
        .json = invocation->json,
        .quiet = chosen.quiet,
        .at_ready = at_ready,
    };
    struct follow_report report = {0};
    g_autofree char *what = g_strdup_printf("Job '%s'", how.job_id);
    enum follow_outcome outcome = follow_job(client, &how, &report, error);

    if (outcome <= FOLLOW_CANCELLED) {
        target_nodes_clean(client, how.job_id, before);
    }
    return follow_conclude(&how, outcome, &report, what, NULL, error);
}

static enum exit_status wait(const struct invocation *invocation, struct client *client,
                             GError **error)
{
    int signal_fd = signals_catch();
    g_auto(GStrv) before = target_nodes_of_devices(client);

    return follow(invocation, client, FOLLOW_GO_ON_AT_READY, signal_fd, before, error);
}

/* Have a ready job end, with a command that takes its id under this name, and see how it ends. */
static enum exit_status end_ready_job(const struct invocation *invocation, struct client *client,
                                      const char *command, const char *member, GError **error)
{
    int signal_fd = signals_catch();

    client_set_interrupt_fd(client, signal_fd);
    g_auto(GStrv) before = target_nodes_of_devices(client);
    enum exit_status status =
        simple_verb(client, command, json_pack("{s:s}", member, invocation->arguments[1]), error);
    if (status == EXIT_OK) {
        return follow(invocation, client, FOLLOW_ENDS_AT_READY, signal_fd, before, error);
    }
    if (invocation->json) {
        print_json_error(*error);
    }
    return status;
}

static enum exit_status complete(const struct invocation *invocation, struct client *client,
                                 GError **error)
{
    return end_ready_job(invocation, client, "job-complete", "id", error);
}

/* A job that is not ready yet would be cancelled like any other, its target being of no use. */
static bool check_ready(struct client *client, const char *id, GError **error)
{
    json_t *jobs = client_call(client, "query-jobs", NULL, CLIENT_QUERY_TIMEOUT_MS, error);
    const char *status = NULL;
    json_t *job;
    size_t i;

    if (!jobs) {
        return false;
    }
    json_array_foreach (jobs, i, job) {
        if (!strcmp(member_text(job, "id", ""), id)) {
            status = member_text(job, "status", "?");
        }
    }
    bool is_ready = status && (!strcmp(status, "ready") || !strcmp(status, "standby"));
    if (!status) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED, "There is no job '%s' on the server", id);
    } else if (!is_ready) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED,
                    "Job '%s' is not ready, but %s: there is no complete copy to keep", id, status);
    }
    json_decref(jobs);
    return is_ready;
}

static enum exit_status cancel(const struct invocation *invocation, struct client *client,
                               GError **error)
{
    const char *id = invocation->arguments[1];

    if (!chosen.keep) {
        enum exit_status status =
            simple_verb(client, "job-cancel", json_pack("{s:s}", "id", id), error);

        if (invocation->json) {
            print_outcome("cancel", id, *error);
        }
        return status;
    }
    if (!check_ready(client, id, error)) {
        if (invocation->json) {
            print_json_error(*error);
        }
        return EXIT_FAILED;
    }
    return end_ready_job(invocation, client, "block-job-cancel", "device", error);
}

static const struct job_verb verbs[] = {
    {"list", NULL, 0, "nothing after 'list'", false, list},
    {"pause", "job-pause", 1, "pause ID", true, NULL},
    {"resume", "job-resume", 1, "resume ID", true, NULL},
    {"cancel", NULL, 1, "cancel ID", false, cancel},
    {"complete", NULL, 1, "complete ID", false, complete},
    {"speed", NULL, 2, "speed ID BYTES", true, set_speed},
    {"latency", NULL, 2, "latency ID MS", true, set_latency},
    {"mode", NULL, 2, "mode ID MODE", true, set_mode},
    {"finalize", "job-finalize", 1, "finalize ID", true, NULL},
    {"dismiss", NULL, 1, "dismiss ID", true, dismiss},
    {"wait", NULL, 1, "wait ID", false, wait},
};

static enum exit_status run(const struct invocation *invocation, GError **error)
{
    const struct job_verb *verb = FIND_VERB(verbs, invocation->arguments[0]);

    if (!verb) {
        return usage_error(
            error, "What to do with jobs? Say list, pause, resume, cancel, complete, speed, "
                   "latency, mode, finalize, dismiss or wait");
    }
    if (!check_arguments(invocation, 1 + verb->arguments, 1 + verb->arguments, verb->what, error)) {
        return EXIT_USAGE;
    }
    if (chosen.keep && verb->function != cancel) {
        return usage_error(error, "--keep is only for 'job cancel'");
    }
    AUTO_CLIENT client = connect_to_server(invocation, error);
    if (!client) {
        return EXIT_UNREACHABLE;
    }
    enum exit_status status =
        verb->function ? verb->function(invocation, client, error)
                       : simple_verb(client, verb->qmp_command,
                                     json_pack("{s:s}", "id", invocation->arguments[1]), error);
    if (invocation->json && verb->steers) {
        print_outcome(verb->name, invocation->arguments[1], *error);
    }
    return status;
}

const struct command job_command = {
    .name = "job",
    .summary = "List jobs and steer them",
    .usage = "[OPTION...] list | VERB ID",
    .notes = "  list            all jobs, those that have ended and were not read included\n"
             "  pause ID        stop working until resumed\n"
             "  resume ID       go on; after an error: try again\n"
             "  cancel ID       end it, without a result; with --keep one that is ready, so\n"
             "                  that its target is a complete copy\n"
             "  complete ID     let one that is ready do what it is for: a mirror moves its\n"
             "                  disk to the target, a commit to the base\n"
             "  speed ID BYTES  limit per second, such as 50M; 0: no limit\n"
             "  latency ID MS   copy less while the guest's p99 is above that; 0: no limit\n"
             "  mode ID MODE    of a mirror: have guests' writes copied in background, before\n"
             "                  they are answered (write-blocking), or as it is needed (auto)\n"
             "  finalize ID     let a job that waits for it take effect\n"
             "  dismiss ID      forget one that has ended\n"
             "  wait ID         follow it to its end as 'liveblk backup' does, and dismiss it\n",
    .flags = COMMAND_ADMIN | COMMAND_JSON,
    .options = options,
    .words = words,
    .run = run,
};
