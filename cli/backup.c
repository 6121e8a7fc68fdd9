/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk backup: a copy of a disk as it is at one moment. */
#include <string.h>

#include "cli/command.h"
#include "cli/copy.h"

static struct {
    char *sync;
    int max_workers;
} chosen;

static const GOptionEntry options[] = {
    {"sync", 's', 0, G_OPTION_ARG_STRING, &chosen.sync, "What to copy: full (default) or none",
     "MODE"},
    {"max-workers", 0, 0, G_OPTION_ARG_INT, &chosen.max_workers, "Copy at most N chunks at once",
     "N"},
    {NULL},
};

static const struct command_words words[] = {
    {"sync", 0, "full none"},
    {NULL, 0, "@device"},
    {NULL},
};

static bool check_options(GError **error)
{
    static const char *const modes[] = {"full", "none", NULL};

    if (chosen.max_workers < 0) {
        usage_error(error, "--max-workers expects a number above 0, not %d", chosen.max_workers);
        return false;
    }
    return copy_check_word("sync", chosen.sync, modes, error);
}

static bool add_arguments(json_t *arguments, const struct target *target, GError **error)
{
    copy_set_text(arguments, "sync", chosen.sync ? chosen.sync : "full");
    if (chosen.max_workers) {
        json_object_set_new(arguments, "x-perf",
                            json_pack("{s:i}", "max-workers", chosen.max_workers));
    }
    return true;
}

static enum exit_status run(const struct invocation *invocation, GError **error)
{
    const struct copy copy = {
        .type = "backup",
        .what = "backup",
        .file_command = "drive-backup",
        .node_command = "blockdev-backup",
        /* With sync=none a cancel is the job's usual end. */
        .never_complete = !g_strcmp0(chosen.sync, "none"),
        .add_arguments = add_arguments,
    };

    return check_options(error) ? copy_run(&copy, invocation, error) : EXIT_USAGE;
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
    .shared = &copy_option_group,
    .words = words,
    .run = run,
};
