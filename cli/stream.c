/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk stream: what the backing files hold comes into the image above, and they go. */
#include "cli/chain-job.h"
#include "cli/job-start.h"

static struct {
    char *base;
    char *bottom;
    char *filter;
} chosen;

static const GOptionEntry options[] = {
    {"base", 'b', 0, G_OPTION_ARG_FILENAME, &chosen.base,
     "The backing file that stays; by default none does", "IMAGE"},
    {"bottom", 0, 0, G_OPTION_ARG_FILENAME, &chosen.bottom, "Or the last one that goes, above it",
     "IMAGE"},
    {"filter-node-name", 0, 0, G_OPTION_ARG_STRING, &chosen.filter,
     "Bring in what guests read, too, by such a node", "NODE"},
    {NULL},
};

static const struct command_words words[] = {
    {"base", 0, "@file"},
    {"bottom", 0, "@file"},
    {NULL, 0, "@device"},
    {NULL},
};

static bool add_arguments(json_t *arguments, const json_t *chain, const char *disk, GError **error)
{
    if (json_object_get(arguments, "backing-file") && !chosen.base && !chosen.bottom) {
        usage_error(error, "--backing-file is what the disk's image is to call its base: say "
                           "--base, too");
        return false;
    }
    job_set_text(arguments, "filter-node-name", chosen.filter);
    return chain_job_set_node(arguments, "base-node", chain, disk, chosen.base, error) &&
           chain_job_set_node(arguments, "bottom", chain, disk, chosen.bottom, error);
}

static enum exit_status run(const struct invocation *invocation, GError **error)
{
    static const struct chain_job kind = {
        .type = "stream",
        .command = "block-stream",
        .remains = "No data is lost, and another stream goes on where this one ended",
        .add_arguments = add_arguments,
    };

    if (chosen.base && chosen.bottom) {
        return usage_error(error, "--base and --bottom exclude each other: both say what stays");
    }
    return chain_job_run(&kind, invocation, error);
}

const struct command stream_command = {
    .name = "stream",
    .summary = "Bring what a disk's backing files hold into its own image",
    .usage = "[OPTION...] DEVICE",
    .notes = "The guest goes on meanwhile. At the end the backing files down to the base are\n"
             "no part of the disk any more. IMAGE is one of those that 'liveblk chain DEVICE'\n"
             "shows: its file, or node:NODE. DEVICE may be a node, too: an image in the\n"
             "middle of a chain.\n"
             "\n"
             "Ctrl-C and signals do what they do in 'liveblk backup'.\n",
    .flags = COMMAND_ADMIN | COMMAND_JSON,
    .options = options,
    .shared = &chain_job_option_group,
    .words = words,
    .run = run,
};
