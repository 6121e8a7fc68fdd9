/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk verify: whether a copy is what a disk is at this moment. */
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "block/cleanup.h"
#include "cli/command.h"
#include "cli/job-start.h"
#include "cli/target-node.h"
#include "cli/target.h"

static struct {
    char *format;
    char *since;
    int sample;
    char *seed;
    gboolean repair;
    int max_differences;
} chosen;

static const GOptionEntry options[] = {
    {"format", 'f', 0, G_OPTION_ARG_STRING, &chosen.format,
     "Format of a FILE: raw (default) or qcow2", "FORMAT"},
    {"since", 0, 0, G_OPTION_ARG_STRING, &chosen.since,
     "Only what has changed since this checkpoint", "CHECKPOINT"},
    {"sample", 's', 0, G_OPTION_ARG_INT, &chosen.sample, "Only so much, chosen at random",
     "PERCENT"},
    {"seed", 0, 0, G_OPTION_ARG_STRING, &chosen.seed, "The sample that had this number", "N"},
    {"repair", 'r', 0, G_OPTION_ARG_NONE, &chosen.repair, "Write to TARGET what differs", NULL},
    {"max-differences", 0, 0, G_OPTION_ARG_INT, &chosen.max_differences,
     "List at most N ranges (100)", "N"},
    JOB_SIDES_OPTIONS,
    JOB_START_OPTIONS,
    {NULL},
};

static const struct command_words words[] = {
    {"format", 0, "raw qcow2"}, JOB_SIDES_WORDS, {NULL, 0, "@device"}, {NULL, 1, "@file"}, {NULL},
};

/* ---- The command line ------------------------------------------------------------------------ */

static bool check_seed(int64_t *seed, GError **error)
{
    gint64 number;

    if (!chosen.seed) {
        return true;
    }
    if (!chosen.sample) {
        usage_error(error, "--seed chooses a sample: say --sample PERCENT, too");
        return false;
    }
    if (!g_ascii_string_to_signed(chosen.seed, 10, 0, G_MAXINT64, &number, NULL)) {
        usage_error(error, "--seed expects a number from 0 on, not '%s'", chosen.seed);
        return false;
    }
    *seed = number;
    return true;
}

static bool check_options(GError **error)
{
    if (chosen.sample < 0 || chosen.sample > 100) {
        usage_error(error, "--sample expects a number from 1 to 100, not %d", chosen.sample);
        return false;
    }
    if (chosen.max_differences < 0) {
        usage_error(error, "--max-differences expects a number above 0, not %d",
                    chosen.max_differences);
        return false;
    }
    return true;
}

static json_t *make_arguments(const char *device, GError **error)
{
    int64_t seed = 0;

    if (!check_options(error) || !check_seed(&seed, error)) {
        return NULL;
    }
    json_t *arguments = job_start_arguments(device, error);
    if (!arguments) {
        return NULL;
    }
    job_set_text(arguments, "since", chosen.since);
    if (chosen.sample) {
        json_object_set_new(arguments, "sample-percent", json_integer(chosen.sample));
    }
    if (chosen.seed) {
        json_object_set_new(arguments, "sample-seed", json_integer(seed));
    }
    if (chosen.max_differences) {
        json_object_set_new(arguments, "max-differences", json_integer(chosen.max_differences));
    }
    if (chosen.repair) {
        json_object_set_new(arguments, "repair", json_true());
    }
    return arguments;
}

/* An image taken for a raw file would differ everywhere, and be ruined by a repair. */
static bool is_qcow2(const char *path)
{
    char magic[4] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    bool found = fd >= 0 && pread(fd, magic, sizeof(magic), 0) == sizeof(magic) &&
                 !memcmp(magic, "QFI\xfb", sizeof(magic));

    if (fd >= 0) {
        close(fd);
    }
    return found;
}

static bool check_target(const struct target *target, GError **error)
{
    if (target->kind != TARGET_FILE && chosen.format) {
        usage_error(error, "--format is only for a target that is a file, not for '%s'",
                    target->name);
        return false;
    }
    if (target->kind == TARGET_FILE && !chosen.format && is_qcow2(target->name)) {
        usage_error(error, "'%s' looks like a qcow2 image: say --format qcow2, or --format raw",
                    target->name);
        return false;
    }
    return true;
}

/* ---- Starting it ------------------------------------------------------------------------------
 */

struct verify_start {
    struct job_start how; /* first: it is cast back */
    const struct target *target;
    json_t *arguments;
};

/* NULL: the name is no text. */
static json_t *node_options(const struct target *target, const char *node_name)
{
    bool is_nbd = target->kind == TARGET_NBD;
    json_t *node =
        json_pack("{s:s, s:s, s:b, s:s}", "driver",
                  is_nbd          ? "nbd"
                  : chosen.format ? chosen.format
                                  : "raw",
                  "node-name", node_name, "read-only", !chosen.repair, "discard", "unmap");
    json_t *file = is_nbd ? json_string(target->name)
                          : json_pack("{s:s, s:s}", "driver", "file", "filename", target->name);

    if (!node || json_object_set_new(node, is_nbd ? "uri" : "file", file)) {
        json_decref(node);
        return NULL;
    }
    return node;
}

static bool open_target(struct client *client, const struct target *target, const char *node_name,
                        GError **error)
{
    json_t *node = node_options(target, node_name);

    if (!node) {
        usage_error(error, "The name of the target is not valid UTF-8");
        return false;
    }
    return target_open_node(client, target->name, node, error);
}

static bool start_job(const struct job_start *how, struct client *client, const char *job_id,
                      GError **error)
{
    const struct verify_start *start = (const struct verify_start *)how;
    const struct target *target = start->target;
    g_autofree char *node_name = compared_node_name(job_id);
    bool is_node = target->kind == TARGET_NODE;

    if (json_object_set_new(start->arguments, "job-id", json_string(job_id)) ||
        json_object_set_new(start->arguments, "target",
                            json_string(is_node ? target->name : node_name))) {
        usage_error(error, "The name of the job or the target is not valid UTF-8");
        return false;
    }
    if (!is_node && !open_target(client, target, node_name, error)) {
        return false;
    }
    json_t *done = client_call(client, "blockdev-verify", json_incref(start->arguments),
                               CLIENT_WORK_TIMEOUT_MS, error);
    if (!done && !is_node) {
        target_nodes_clean(client, job_id, NULL);
    }
    json_decref(done);
    return done;
}

/* ---- The command ------------------------------------------------------------------------------
 */

static enum exit_status run(const struct invocation *invocation, GError **error)
{
    if (!check_arguments(invocation, 2, 2, "the device's name, and what to compare it with",
                         error)) {
        return EXIT_USAGE;
    }
    const char *device = invocation->arguments[0];
    AUTO_TARGET target = target_parse(invocation->arguments[1], true, error);
    if (!target || !check_target(target, error)) {
        return EXIT_USAGE;
    }
    json_t *arguments = make_arguments(device, error);
    if (!arguments) {
        return EXIT_USAGE;
    }
    g_autofree char *what =
        g_strdup_printf("The comparison of '%s' with '%s'", device, target->name);
    const struct verify_start start = {
        .how = {.type = "verify", .what = what, .start = start_job},
        .target = target,
        .arguments = arguments,
    };
    enum exit_status status = job_start_run(&start.how, invocation, error);
    json_decref(arguments);
    return status;
}

const struct command verify_command = {
    .name = "verify",
    .summary = "Compare a disk, as it is at this moment, with a copy of it",
    .usage = "[OPTION...] DEVICE TARGET",
    .notes = "TARGET is a path, an NBD URI (nbd://HOST/NAME, nbd+unix:///NAME?socket=PATH)\n"
             "or node:NAME for a node the server has. Exits with 0 if the two are equal,\n"
             "with 1 if they differ. What differs is read twice before that is said.\n",
    .flags = COMMAND_ADMIN | COMMAND_JSON,
    .options = options,
    .words = words,
    .run = run,
};
