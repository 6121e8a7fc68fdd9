/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * liveblk backup. The job is started with auto-dismiss=false, so that its error can be read for
 * as long as nobody has read it; following it to its end dismisses it.
 */
#include <stdio.h>
#include <string.h>

#include "block/cleanup.h"
#include "cli/command.h"
#include "cli/follow.h"
#include "cli/output.h"
#include "cli/runtime.h"
#include "cli/signals.h"
#include "cli/target.h"

static struct {
    char *to;
    char *format;
    char *job_id;
    char *speed;
    char *sync;
    char *on_source_error;
    char *on_target_error;
    int max_workers;
    gboolean existing;
    gboolean detach;
    gboolean quiet;
} chosen;

static const GOptionEntry options[] = {
    {"to", 't', 0, G_OPTION_ARG_STRING, &chosen.to, "FILE, NBD URI or node:NAME to copy to",
     "TARGET"},
    {"existing", 'e', 0, G_OPTION_ARG_NONE, &chosen.existing, "Overwrite a FILE that is there",
     NULL},
    {"format", 'f', 0, G_OPTION_ARG_STRING, &chosen.format, "Format of a FILE (raw)", "FORMAT"},
    {"sync", 's', 0, G_OPTION_ARG_STRING, &chosen.sync, "What to copy: full (default) or none",
     "MODE"},
    {"speed", 0, 0, G_OPTION_ARG_STRING, &chosen.speed, "Limit per second, such as 50M", "BYTES"},
    {"max-workers", 0, 0, G_OPTION_ARG_INT, &chosen.max_workers, "Copy at most N chunks at once",
     "N"},
    {"on-source-error", 0, 0, G_OPTION_ARG_STRING, &chosen.on_source_error,
     "report, ignore, stop or enospc", "POLICY"},
    {"on-target-error", 0, 0, G_OPTION_ARG_STRING, &chosen.on_target_error,
     "report, ignore, stop or enospc", "POLICY"},
    {"job-id", 'j', 0, G_OPTION_ARG_STRING, &chosen.job_id, "Name of the job (backup-DEVICE)",
     "ID"},
    {"detach", 'd', 0, G_OPTION_ARG_NONE, &chosen.detach, "Print the job's ID and leave", NULL},
    {"quiet", 'q', 0, G_OPTION_ARG_NONE, &chosen.quiet, "Show no progress", NULL},
    {NULL},
};

static const struct command_words words[] = {
    {"to", 0, "@file"},
    {"format", 0, "raw"},
    {"sync", 0, "full none"},
    {"on-source-error", 0, "report ignore stop enospc"},
    {"on-target-error", 0, "report ignore stop enospc"},
    {NULL, 0, "@device"},
    {NULL},
};

static bool check_word(const char *option, const char *value, const char *const *allowed,
                       GError **error)
{
    if (value && !g_strv_contains(allowed, value)) {
        g_autofree char *list = g_strjoinv(", ", (char **)allowed);
        usage_error(error, "--%s expects one of %s, not '%s'", option, list, value);
        return false;
    }
    return true;
}

static bool check_options(int64_t *speed, GError **error)
{
    static const char *const modes[] = {"full", "none", NULL};
    static const char *const policies[] = {"report", "ignore", "stop", "enospc", NULL};

    *speed = 0;
    if (!chosen.to) {
        usage_error(error, "--to TARGET is missing: where shall the backup go?");
        return false;
    }
    if (chosen.speed && !parse_size(chosen.speed, speed)) {
        usage_error(error, "--speed expects a number of bytes such as 50M, not '%s'", chosen.speed);
        return false;
    }
    if (chosen.max_workers < 0) {
        usage_error(error, "--max-workers expects a number above 0, not %d", chosen.max_workers);
        return false;
    }
    return check_word("sync", chosen.sync, modes, error) &&
           check_word("on-source-error", chosen.on_source_error, policies, error) &&
           check_word("on-target-error", chosen.on_target_error, policies, error);
}

static bool check_target(const struct target *target, GError **error)
{
    if (target->kind != TARGET_FILE && (chosen.format || chosen.existing)) {
        usage_error(error, "--%s is only for a target that is a file, not for '%s'",
                    chosen.format ? "format" : "existing", target->name);
        return false;
    }
    return true;
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

/* "backup-DEVICE", with a number after it if that is taken. The caller frees; NULL: error. */
static char *free_job_id(struct client *client, const char *device, GError **error)
{
    g_autofree char *base = g_strconcat("backup-", device, NULL);
    json_t *jobs = client_call(client, "query-jobs", NULL, CLIENT_QUERY_TIMEOUT_MS, error);

    if (!jobs) {
        return NULL;
    }
    g_strcanon(base, G_CSET_A_2_Z G_CSET_a_2_z G_CSET_DIGITS "._-", '-');
    char *id = g_strdup(base);
    for (unsigned i = 2; job_exists(jobs, id); i++) {
        g_free(id);
        id = g_strdup_printf("%s-%u", base, i);
    }
    json_decref(jobs);
    return id;
}

static void set_text(json_t *arguments, const char *name, const char *value)
{
    if (value) {
        json_object_set_new(arguments, name, json_string(value));
    }
}

static json_t *make_arguments(const char *device, const struct target *target,
                              const char *target_text, const char *job_id, int64_t speed)
{
    json_t *arguments = json_pack("{s:s, s:s, s:s, s:s, s:b, s:I}", "device", device, "target",
                                  target_text, "sync", chosen.sync ? chosen.sync : "full", "job-id",
                                  job_id, "auto-dismiss", 0, "speed", (json_int_t)speed);

    set_text(arguments, "on-source-error", chosen.on_source_error);
    set_text(arguments, "on-target-error", chosen.on_target_error);
    if (chosen.max_workers) {
        json_object_set_new(arguments, "x-perf",
                            json_pack("{s:i}", "max-workers", chosen.max_workers));
    }
    if (target->kind == TARGET_FILE) {
        set_text(arguments, "format", chosen.format ? chosen.format : "raw");
        set_text(arguments, "mode", chosen.existing ? "existing" : "absolute-paths");
    }
    return arguments;
}

static bool start_job(struct client *client, const char *device, const struct target *target,
                      const char *job_id, int64_t speed, GError **error)
{
    const char *command = target->kind == TARGET_FILE ? "drive-backup" : "blockdev-backup";
    g_autofree char *node_name = target_node_name(job_id);
    bool is_nbd = target->kind == TARGET_NBD;

    if (is_nbd && !target_add_node(client, target, node_name, error)) {
        return false;
    }
    json_t *arguments =
        make_arguments(device, target, is_nbd ? node_name : target->name, job_id, speed);
    if (!arguments) {
        usage_error(error, "The name of the device, the job or the target is not valid UTF-8");
        return false;
    }
    json_t *done = client_call(client, command, arguments, CLIENT_WORK_TIMEOUT_MS, error);
    if (!done && is_nbd) {
        target_remove_node(client, job_id);
    }
    json_decref(done);
    return done;
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

static enum exit_status follow_backup(const struct invocation *invocation, struct client *client,
                                      const struct target *target, const char *job_id,
                                      int signal_fd, GError **error)
{
    struct follow_options how = {
        .job_id = job_id,
        .signal_fd = signal_fd,
        .json = invocation->json,
        .quiet = chosen.quiet,
    };
    struct follow_report report = {0};
    enum follow_outcome outcome = follow_job(client, &how, &report, error);

    if (target->kind == TARGET_NBD && outcome <= FOLLOW_CANCELLED) {
        target_remove_node(client, job_id);
    }
    g_autofree char *what =
        g_strdup_printf("The backup of '%s' to '%s'", invocation->arguments[0], target->name);
    g_autofree char *warning =
        g_strdup_printf("Do not use '%s': it is not a complete copy", target->name);
    /* With sync=none the copy never is complete, and a cancel is its usual end. */
    const char *remains = g_strcmp0(chosen.sync, "none") ? warning : NULL;
    return follow_conclude(&how, outcome, &report, what, remains, error);
}

/* Programs that read JSON want to find there why nothing was started. */
static enum exit_status report_early(const struct invocation *invocation, const GError *error)
{
    if (invocation->json) {
        print_json_error(error);
    }
    return EXIT_FAILED;
}

static enum exit_status backup(const struct invocation *invocation, const struct target *target,
                               int64_t speed, GError **error)
{
    const char *device = invocation->arguments[0];
    AUTO_CLIENT client = connect_to_server(invocation, error);

    if (!client) {
        return report_early(invocation, *error);
    }
    /* From here on a signal must not leave a job behind that nobody knows of. */
    int signal_fd = signals_catch();
    client_set_interrupt_fd(client, signal_fd);
    g_autofree char *job_id =
        chosen.job_id ? g_strdup(chosen.job_id) : free_job_id(client, device, error);
    if (!job_id || !start_job(client, device, target, job_id, speed, error)) {
        return report_early(invocation, *error);
    }
    return chosen.detach ? detach(invocation, job_id)
                         : follow_backup(invocation, client, target, job_id, signal_fd, error);
}

static enum exit_status run(const struct invocation *invocation, GError **error)
{
    int64_t speed;

    if (!check_arguments(invocation, 1, 1, "the device's name", error) ||
        !check_options(&speed, error)) {
        return EXIT_USAGE;
    }
    AUTO_TARGET target = target_parse(chosen.to, chosen.existing, error);
    if (!target || !check_target(target, error)) {
        return EXIT_USAGE;
    }
    return backup(invocation, target, speed, error);
}

const struct command backup_command = {
    .name = "backup",
    .summary = "Copy a disk as it is at this moment, while the guest goes on",
    .usage = "[OPTION...] DEVICE --to TARGET",
    .notes = "TARGET is a path, an NBD URI (nbd://HOST/NAME, nbd+unix:///NAME?socket=PATH)\n"
             "or node:NAME for a node the server has. A file gets the disk's full size but\n"
             "takes space only for its data.\n"
             "\n"
             "Ctrl-C asks whether to cancel the backup, detach from it or go on. Away from\n"
             "a terminal SIGINT and SIGTERM cancel it; SIGUSR1 prints where it is.\n",
    .flags = COMMAND_ADMIN | COMMAND_JSON,
    .options = options,
    .words = words,
    .run = run,
};
