/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/copy.h"

#include <string.h>

#include "cli/job-start.h"
#include "cli/output.h"
#include "cli/target-node.h"

static struct {
    char *to;
    char *format;
    gboolean existing;
} chosen;

static const GOptionEntry options[] = {
    /* A file name: no conversion of it may fail in a locale without its letters. */
    {"to", 't', 0, G_OPTION_ARG_FILENAME, &chosen.to, "FILE, NBD URI or node:NAME to copy to",
     "TARGET"},
    {"existing", 'e', 0, G_OPTION_ARG_NONE, &chosen.existing, "Overwrite a FILE that is there",
     NULL},
    {"format", 'f', 0, G_OPTION_ARG_STRING, &chosen.format,
     "Format of a FILE: raw (default) or qcow2", "FORMAT"},
    JOB_SIDES_OPTIONS,
    JOB_START_OPTIONS,
    {NULL},
};

static const struct command_words words[] = {
    {"to", 0, "@file"},
    {"format", 0, "raw qcow2"},
    JOB_SIDES_WORDS,
    {NULL},
};

const struct option_group copy_option_group = {.options = options, .words = words};

const char *copy_option_to(void)
{
    return chosen.to;
}

const char *copy_option_format(void)
{
    return chosen.format;
}

bool copy_option_existing(void)
{
    return chosen.existing;
}

static bool check_options(const struct copy *copy, GError **error)
{
    if (!chosen.to) {
        usage_error(error, "--to TARGET is missing: where shall the %s go?", copy->what);
        return false;
    }
    if (job_start_options.detach &&
        (copy->at_ready == FOLLOW_COMPLETE_AT_READY || copy->at_ready == FOLLOW_KEEP_AT_READY)) {
        usage_error(error, "With --detach nobody stays to do what --%s asks for",
                    copy->at_ready == FOLLOW_KEEP_AT_READY ? "keep" : "pivot");
        return false;
    }
    return true;
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

/* Whether a file that is the target is there already, and meant to be. */
static bool is_existing(const struct copy *copy)
{
    const char *path =
        g_str_has_prefix(chosen.to, "file:") ? chosen.to + strlen("file:") : chosen.to;

    return chosen.existing || copy->updates ||
           (copy->resumes && g_file_test(path, G_FILE_TEST_EXISTS));
}

/* All but the target and the job's id, which come later. NULL: error. */
static json_t *make_arguments(const struct copy *copy, const char *device,
                              const struct target *target, GError **error)
{
    json_t *arguments = job_start_arguments(device, error);

    if (!arguments) {
        return NULL;
    }
    if (target->kind == TARGET_FILE) {
        job_set_text(arguments, "format", chosen.format);
        job_set_text(arguments, "mode", is_existing(copy) ? "existing" : "absolute-paths");
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

struct copy_start {
    struct job_start how; /* first: it is cast back */
    const struct copy *copy;
    const struct target *target;
    json_t *arguments;
};

/* How much a mirror that may go on with an earlier one has to copy. */
static void tell_resumed(struct client *client, const char *job_id)
{
    json_t *jobs = client_call_if_known(client, "query-jobs", NULL);
    json_t *job;
    size_t i;

    json_array_foreach (jobs, i, job) {
        const char *resumed = member_text(job, "resumed", "");

        if (strcmp(member_text(job, "id", ""), job_id) != 0) {
            continue;
        }
        if (!strcmp(resumed, "changes")) {
            complain("an earlier mirror is gone on with: what the target lacks is copied");
        } else if (!strcmp(resumed, "all")) {
            g_autofree char *why = printable(member_text(job, "full-copy-reason", "?"));
            complain("all is copied: %s", why);
        }
    }
    json_decref(jobs);
}

static bool start_job(const struct job_start *how, struct client *client, const char *job_id,
                      GError **error)
{
    const struct copy_start *start = (const struct copy_start *)how;
    const struct copy *copy = start->copy;
    const struct target *target = start->target;
    const char *command = target->kind == TARGET_FILE ? copy->file_command : copy->node_command;
    g_autofree char *node_name = target_node_name(job_id);
    bool is_nbd = target->kind == TARGET_NBD;

    if (!set_names(start->arguments, is_nbd ? node_name : target->name, job_id, error) ||
        (is_nbd && !target_node_add(client, target, node_name, error))) {
        return false;
    }
    json_t *done =
        client_call(client, command, json_incref(start->arguments), CLIENT_WORK_TIMEOUT_MS, error);
    if (!done && is_nbd) {
        target_nodes_clean(client, job_id, NULL);
    }
    if (done && copy->resumes && !job_start_options.quiet) {
        tell_resumed(client, job_id);
    }
    json_decref(done);
    return done;
}

enum exit_status copy_run(const struct copy *copy, const struct invocation *invocation,
                          GError **error)
{
    if (!check_arguments(invocation, 1, 1, "the device's name", error) ||
        !check_options(copy, error)) {
        return EXIT_USAGE;
    }
    AUTO_TARGET target = target_parse(chosen.to, is_existing(copy), error);
    if (!target || !check_target(target, error)) {
        return EXIT_USAGE;
    }
    const char *device = invocation->arguments[0];
    json_t *arguments = make_arguments(copy, device, target, error);
    if (!arguments) {
        return EXIT_USAGE;
    }
    g_autofree char *what =
        g_strdup_printf("The %s of '%s' to '%s'", copy->what, device, target->name);
    g_autofree char *warning =
        g_strdup_printf("Do not use '%s': it is not a complete copy", target->name);
    const struct copy_start start = {
        .how = {.type = copy->type,
                .at_ready = copy->at_ready,
                .what = what,
                .remains = copy->never_complete ? NULL : warning,
                .start = start_job},
        .copy = copy,
        .target = target,
        .arguments = arguments,
    };
    enum exit_status status = job_start_run(&start.how, invocation, error);
    json_decref(arguments);
    return status;
}
