/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk commit: what images of a chain hold goes into the one below them, and they go. */
#include <string.h>

#include "cli/chain-job.h"
#include "cli/output.h"

static struct {
    char *top;
    char *base;
    gboolean no_pivot;
} chosen;

static const GOptionEntry options[] = {
    {"top", 't', 0, G_OPTION_ARG_FILENAME, &chosen.top,
     "The uppermost image to go; by default the disk's own", "IMAGE"},
    {"base", 'b', 0, G_OPTION_ARG_FILENAME, &chosen.base,
     "Where to; by default the lowest of the chain", "IMAGE"},
    {"no-pivot", 0, 0, G_OPTION_ARG_NONE, &chosen.no_pivot,
     "Without --top: when ready, leave the rest to 'job'", NULL},
    {NULL},
};

static const struct command_words words[] = {
    {"top", 0, "@file"},
    {"base", 0, "@file"},
    {NULL, 0, "@device"},
    {NULL},
};

static const char *node_at(const json_t *chain, size_t index)
{
    return member_text(json_array_get(chain, index), "node-name", "");
}

static bool check_distance(const json_t *arguments, const json_t *chain, GError **error)
{
    const char *top = member_text(arguments, "top-node", node_at(chain, 0));
    const char *base =
        member_text(arguments, "base-node", node_at(chain, json_array_size(chain) - 1));

    if (!strcmp(top, base)) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED,
                    chosen.base ? "Node '%s' cannot be committed into itself: name a base below it"
                                : "There is no image below node '%s' to commit it into",
                    top);
        return false;
    }
    return true;
}

static bool add_arguments(json_t *arguments, const json_t *chain, const char *disk, GError **error)
{
    return chain_job_set_node(arguments, "top-node", chain, disk, chosen.top, error) &&
           chain_job_set_node(arguments, "base-node", chain, disk, chosen.base, error) &&
           check_distance(arguments, chain, error);
}

static enum exit_status run(const struct invocation *invocation, GError **error)
{
    const struct chain_job kind = {
        .type = "commit",
        .command = "block-commit",
        /* One with --top never is: it ends by itself. */
        .at_ready = chosen.no_pivot ? FOLLOW_RETURN_AT_READY : FOLLOW_COMPLETE_AT_READY,
        .remains = "No data is lost, but until another commit has ended well do not use the images "
                   "below its top on their own",
        .add_arguments = add_arguments,
    };

    if (chosen.no_pivot && chosen.top) {
        return usage_error(error, "--no-pivot is for a commit of the disk's own image, not with "
                                  "--top: there the guest's image stays");
    }
    return chain_job_run(&kind, invocation, error);
}

const struct command commit_command = {
    .name = "commit",
    .summary = "Bring what images of a disk hold into the one below them",
    .usage = "[OPTION...] DEVICE",
    .notes = "The guest goes on meanwhile. At the end the base is in the place of the images\n"
             "from the top down to it. Without --top that is the image that the guest writes\n"
             "to: when all is copied the guest goes on with the base. With --no-pivot, or\n"
             "--detach, 'liveblk job complete' lets it do that. IMAGE is one of those that\n"
             "'liveblk chain DEVICE' shows: its file, or node:NODE.\n"
             "\n"
             "Ctrl-C and signals do what they do in 'liveblk backup'.\n",
    .flags = COMMAND_ADMIN | COMMAND_JSON,
    .options = options,
    .shared = &chain_job_option_group,
    .words = words,
    .run = run,
};
