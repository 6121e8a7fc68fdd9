/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/copy.h"

#include <stdio.h>
#include <string.h>

#include "block/cleanup.h"
#include "cli/output.h"
#include "cli/runtime.h"
#include "cli/signals.h"
#include "cli/target-node.h"

static struct {
    char *to;
    char *format;
    char *job_id;
    char *speed;
    char *on_source_error;
    char *on_target_error;
    gboolean existing;
    gboolean detach;
    gboolean quiet;
} chosen;

static const GOptionEntry options[] = {
    /* A file name: no conversion of it may fail in a locale without its letters. */
    {"to", 't', 0, G_OPTION_ARG_FILENAME, &chosen.to, "FILE, NBD URI or node:NAME to copy to",
     "TARGET"},
    {"existing", 'e', 0, G_OPTION_ARG_NONE, &chosen.existing, "Overwrite a FILE that is there",
     NULL},
    {"format", 'f', 0, G_OPTION_ARG_STRING, &chosen.format,
     "Format of a FILE: raw (default) or qcow2", "FORMAT"},
    {"speed", 0, 0, G_OPTION_ARG_STRING, &chosen.speed, "Limit per second, such as 50M", "BYTES"},
    {"on-source-error", 0, 0, G_OPTION_ARG_STRING, &chosen.on_source_error,
     "report, ignore, stop or enospc", "POLICY"},
    {"on-target-error", 0, 0, G_OPTION_ARG_STRING, &chosen.on_target_error,
     "report, ignore, stop or enospc", "POLICY"},
    {"job-id", 'j', 0, G_OPTION_ARG_STRING, &chosen.job_id, "Name of the job (TYPE-DEVICE)", "ID"},
    {"detach", 'd', 0, G_OPTION_ARG_NONE, &chosen.detach, "Print the job's ID and leave", NULL},
    {"quiet", 'q', 0, G_OPTION_ARG_NONE, &chosen.quiet, "Show no progress", NULL},
    {NULL},
};

static const struct command_words words[] = {
    {"to", 0, "@file"},
    {"format", 0, "raw qcow2"},
    {"on-source-error", 0, "report ignore stop enospc"},
    {"on-target-error", 0, "report ignore stop enospc"},
    {NULL},
};

const struct option_group copy_option_group = {.options = options, .words = words};

bool copy_check_word(const char *option, const char *value, const char *const *allowed,
                     GError **error)
{
    if (value && !g_strv_contains(allowed, value)) {
        g_autofree char *list = g_strjoinv(", ", (char **)allowed);
        usage_error(error, "--%s expects one of %s, not '%s'", option, list, value);
        return false;
    }
    return true;
}

bool copy_check_size(const char *option, const char *value, int64_t *bytes, GError **error)
{
    if (value && !parse_size(value, bytes)) {
        usage_error(error, "--%s expects a number of bytes such as 50M, not '%s'", option, value);
        return false;
    }
    return true;
}

void copy_set_text(json_t *arguments, const char *name, const char *value)
{
    if (value) {
        json_object_set_new(arguments, name, json_string(value));
    }
}

static bool check_options(const struct copy *copy, int64_t *speed, GError **error)
{
    static const char *const policies[] = {"report", "ignore", "stop", "enospc", NULL};

    if (!chosen.to) {
        usage_error(error, "--to TARGET is missing: where shall the %s go?", copy->what);
        return false;
    }
    if (chosen.detach &&
        (copy->at_ready == FOLLOW_COMPLETE_AT_READY || copy->at_ready == FOLLOW_KEEP_AT_READY)) {
        usage_error(error, "With --detach nobody stays to do what --%s asks for",
                    copy->at_ready == FOLLOW_KEEP_AT_READY ? "keep" : "pivot");
        return false;
    }
    return copy_check_size("speed", chosen.speed, speed, error) &&
           copy_check_word("on-source-error", chosen.on_source_error, policies, error) &&
           copy_check_word("on-target-error", chosen.on_target_error, policies, error);
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

/* All but the target and the job's id, which come later. NULL: error. */
static json_t *make_arguments(const struct copy *copy, const char *device,
                              const struct target *target, int64_t speed, GError **error)
{
    json_t *arguments = json_pack("{s:s, s:b, s:I}", "device", device, "auto-dismiss", 0, "speed",
                                  (json_int_t)speed);

    if (!arguments) {
        usage_error(error, "The name of the device is not valid UTF-8");
        return NULL;
    }
    copy_set_text(arguments, "on-source-error", chosen.on_source_error);
    copy_set_text(arguments, "on-target-error", chosen.on_target_error);
    if (target->kind == TARGET_FILE) {
        copy_set_text(arguments, "format", chosen.format);
        copy_set_text(arguments, "mode", chosen.existing ? "existing" : "absolute-paths");
    }
    if (!copy->add_arguments(arguments, target, error)) {
        json_decref(arguments);
        return NULL;
    }
    return arguments;
}

static bool set_names(json_t *arguments, const char *target, const char *job_id, GError **error)
{
    if (json_object_set_new(arguments, "target", json_string(target)) ||
        json_object_set_new(arguments, "job-id", json_string(job_id))) {
        usage_error(error, "The name of the job or the target is not valid UTF-8");
        return false;
    }
    return true;
}

static bool start_job(const struct copy *copy, struct client *client, const struct target *target,
                      const char *job_id, json_t *arguments, GError **error)
{
    const char *command = target->kind == TARGET_FILE ? copy->file_command : copy->node_command;
    g_autofree char *node_name = target_node_name(job_id);
    bool is_nbd = target->kind == TARGET_NBD;

    if (!set_names(arguments, is_nbd ? node_name : target->name, job_id, error) ||
        (is_nbd && !target_node_add(client, target, node_name, error))) {
        return false;
    }
    json_t *done =
        client_call(client, command, json_incref(arguments), CLIENT_WORK_TIMEOUT_MS, error);
    if (!done && is_nbd) {
        target_nodes_clean(client, job_id, NULL);
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

static enum exit_status follow(const struct copy *copy, const struct invocation *invocation,
                               struct client *client, const struct target *target,
                               const char *job_id, int signal_fd, GError **error)
{
    struct follow_options how = {
        .job_id = job_id,
        .signal_fd = signal_fd,
        .json = invocation->json,
        .quiet = chosen.quiet,
        .at_ready = copy->at_ready,
    };
    struct follow_report report = {0};
    g_auto(GStrv) before = target_nodes_of_devices(client);
    enum follow_outcome outcome = follow_job(client, &how, &report, error);

    if (outcome <= FOLLOW_CANCELLED) {
        target_nodes_clean(client, job_id, before);
    }
    g_autofree char *what = g_strdup_printf("The %s of '%s' to '%s'", copy->what,
                                            invocation->arguments[0], target->name);
    g_autofree char *warning =
        g_strdup_printf("Do not use '%s': it is not a complete copy", target->name);
    return follow_conclude(&how, outcome, &report, what, copy->never_complete ? NULL : warning,
                           error);
}

/* Programs that read JSON want to find there why nothing was started. */
static enum exit_status report_early(const struct invocation *invocation, const GError *error)
{
    if (invocation->json) {
        print_json_error(error);
    }
    return EXIT_FAILED;
}

static enum exit_status start_and_follow(const struct copy *copy,
                                         const struct invocation *invocation,
                                         const struct target *target, json_t *arguments,
                                         GError **error)
{
    AUTO_CLIENT client = connect_to_server(invocation, error);

    if (!client) {
        return report_early(invocation, *error);
    }
    /* From here on a signal must not leave a job behind that nobody knows of. */
    int signal_fd = signals_catch();
    client_set_interrupt_fd(client, signal_fd);
    g_autofree char *job_id =
        chosen.job_id ? g_strdup(chosen.job_id)
                      : free_job_id(client, copy->type, invocation->arguments[0], error);
    if (!job_id || !start_job(copy, client, target, job_id, arguments, error)) {
        return report_early(invocation, *error);
    }
    return chosen.detach ? detach(invocation, job_id)
                         : follow(copy, invocation, client, target, job_id, signal_fd, error);
}

enum exit_status copy_run(const struct copy *copy, const struct invocation *invocation,
                          GError **error)
{
    int64_t speed = 0;

    if (!check_arguments(invocation, 1, 1, "the device's name", error) ||
        !check_options(copy, &speed, error)) {
        return EXIT_USAGE;
    }
    AUTO_TARGET target = target_parse(chosen.to, chosen.existing, error);
    if (!target || !check_target(target, error)) {
        return EXIT_USAGE;
    }
    json_t *arguments = make_arguments(copy, invocation->arguments[0], target, speed, error);
    if (!arguments) {
        return EXIT_USAGE;
    }
    enum exit_status status = start_and_follow(copy, invocation, target, arguments, error);
    json_decref(arguments);
    return status;
}
