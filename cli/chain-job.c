/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/chain-job.h"

#include "cli/chain.h"
#include "cli/job-start.h"

static struct {
    char *backing_file;
    char *on_error;
} chosen;

static const GOptionEntry options[] = {
    {"backing-file", 0, 0, G_OPTION_ARG_FILENAME, &chosen.backing_file,
     "What the image above is to call the base", "NAME"},
    {"on-error", 0, 0, G_OPTION_ARG_STRING, &chosen.on_error, "report, ignore, stop or enospc",
     "POLICY"},
    JOB_START_OPTIONS,
    {NULL},
};

static const struct command_words words[] = {
    {"backing-file", 0, "@file"},
    {"on-error", 0, JOB_POLICY_WORDS},
    {NULL},
};

const struct option_group chain_job_option_group = {.options = options, .words = words};

struct chain_start {
    struct job_start how; /* first: it is cast back */
    const struct chain_job *kind;
    const char *disk;
    json_t *arguments;
};

bool chain_job_set_node(json_t *arguments, const char *name, const json_t *chain, const char *disk,
                        const char *image, GError **error)
{
    const char *node = image ? chain_find(chain, disk, image, error) : NULL;

    job_set_text(arguments, name, node);
    return node || !image;
}

static bool add_arguments(const struct chain_start *start, struct client *client, GError **error)
{
    json_t *chain = chain_query(client, start->disk, error);
    bool ok = chain && start->kind->add_arguments(start->arguments, chain, start->disk, error);

    json_decref(chain);
    return ok;
}

static bool start_job(const struct job_start *how, struct client *client, const char *job_id,
                      GError **error)
{
    const struct chain_start *start = (const struct chain_start *)how;

    if (!add_arguments(start, client, error)) {
        return false;
    }
    if (json_object_set_new(start->arguments, "job-id", json_string(job_id))) {
        usage_error(error, "The name of the job is not valid UTF-8");
        return false;
    }
    json_t *done = client_call(client, start->kind->command, json_incref(start->arguments),
                               CLIENT_WORK_TIMEOUT_MS, error);
    json_decref(done);
    return done;
}

static json_t *make_arguments(const char *disk, GError **error)
{
    if (!job_check_word("on-error", chosen.on_error, job_policies, error)) {
        return NULL;
    }
    if (chosen.backing_file && !g_utf8_validate(chosen.backing_file, -1, NULL)) {
        usage_error(error, "The name for --backing-file is not valid UTF-8");
        return NULL;
    }
    json_t *arguments = job_start_arguments(disk, error);
    if (arguments) {
        job_set_text(arguments, "on-error", chosen.on_error);
        job_set_text(arguments, "backing-file", chosen.backing_file);
    }
    return arguments;
}

enum exit_status chain_job_run(const struct chain_job *kind, const struct invocation *invocation,
                               GError **error)
{
    if (!check_arguments(invocation, 1, 1, "the disk's name", error)) {
        return EXIT_USAGE;
    }
    const char *disk = invocation->arguments[0];
    json_t *arguments = make_arguments(disk, error);
    if (!arguments) {
        return EXIT_USAGE;
    }
    g_autofree char *what = g_strdup_printf("The %s of '%s'", kind->type, disk);
    const struct chain_start start = {
        .how = {.type = kind->type,
                .at_ready = kind->at_ready,
                .what = what,
                .remains = kind->remains,
                .start = start_job},
        .kind = kind,
        .disk = disk,
        .arguments = arguments,
    };
    enum exit_status status = job_start_run(&start.how, invocation, error);
    json_decref(arguments);
    return status;
}
