/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk checkpoint: moments of tracked disks, since which one can ask what changed. */
#include <stdio.h>
#include <string.h>

#include "cli/checkpoints-table.h"
#include "cli/client.h"
#include "cli/command.h"
#include "cli/output.h"
#include "cli/runtime.h"

static const struct command_words words[] = {
    {NULL, 0, "add remove list"},
    {NULL, 1, "@device"},
    {NULL},
};

/* ---- The table ------------------------------------------------------------------------------- */

static char *time_text(const json_t *checkpoint)
{
    return format_time((time_t)json_number_value(json_object_get(checkpoint, "time")));
}

static char *size_text(const json_t *checkpoint, const char *key)
{
    int64_t bytes = member_integer(checkpoint, key, -1);

    return bytes < 0 ? g_strdup("?") : format_size((uint64_t)bytes);
}

void print_checkpoints(const json_t *checkpoints, const char *device)
{
    static const char *const headings[] = {"CHECKPOINT",  "CUT",     ">CHANGED SINCE",
                                           ">OF IT ZERO", "REMARKS", NULL};
    const json_t *checkpoint;
    size_t i;

    if (json_array_size(checkpoints) == 0) {
        if (device) {
            printf("Disk '%s' has no checkpoints.\n", device);
        } else {
            printf("No checkpoints.\n");
        }
        return;
    }
    struct libscols_table *table = table_new(headings);
    json_array_foreach ((json_t *)checkpoints, i, checkpoint) {
        g_autofree char *cut = time_text(checkpoint);
        g_autofree char *changed = size_text(checkpoint, "changed-bytes");
        g_autofree char *zero = size_text(checkpoint, "zero-bytes");
        const char *const cells[] = {
            member_text(checkpoint, "name", "?"), cut, changed, zero,
            member_flag(checkpoint, "broken") ? "broken: take a full backup" : ""};
        table_add(table, cells);
    }
    table_print(table);
}

/* ---- Verbs ----------------------------------------------------------------------------------- */

static enum exit_status change(const struct invocation *invocation, struct client *client,
                               GError **error)
{
    char *const *typed = invocation->arguments;
    bool adds = !strcmp(typed[0], "add");
    json_t *done = client_call(client, adds ? "block-checkpoint-add" : "block-checkpoint-remove",
                               json_pack("{s:s, s:s}", "device", typed[1], "name", typed[2]),
                               CLIENT_WORK_TIMEOUT_MS, error);

    json_decref(done);
    if (done && invocation->json) {
        print_json_line(json_pack("{s:s, s:s, s:s, s:s}", "message_type", "done", "verb", typed[0],
                                  "device", typed[1], "checkpoint", typed[2]));
    }
    return done ? EXIT_OK : EXIT_FAILED;
}

static const json_t *find_device(const json_t *all, const char *device)
{
    const json_t *entry;
    size_t i;

    json_array_foreach ((json_t *)all, i, entry) {
        if (!strcmp(member_text(entry, "device", ""), device)) {
            return entry;
        }
    }
    return NULL;
}

static enum exit_status list(const struct invocation *invocation, struct client *client,
                             GError **error)
{
    const char *device = invocation->arguments[1];
    json_t *all = client_call(client, "query-block-tracking", NULL, CLIENT_QUERY_TIMEOUT_MS, error);
    const json_t *entry = all ? find_device(all, device) : NULL;
    enum exit_status status = EXIT_OK;

    if (all && !entry) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED,
                    "Disk '%s' is not tracked: 'liveblk tracking start %s' begins it", device,
                    device);
        status = EXIT_FAILED;
    } else if (!all) {
        status = EXIT_FAILED;
    } else if (invocation->json) {
        print_json(json_incref(json_object_get(entry, "checkpoints")));
    } else {
        print_checkpoints(json_object_get(entry, "checkpoints"), device);
    }
    json_decref(all);
    return status;
}

static enum exit_status run(const struct invocation *invocation, GError **error)
{
    const char *verb = invocation->arguments[0];
    bool changes = verb && (!strcmp(verb, "add") || !strcmp(verb, "remove"));
    unsigned count = changes ? 3 : 2;

    if (!verb || (!changes && strcmp(verb, "list"))) {
        return usage_error(error, "What to do with checkpoints? Say add, remove or list");
    }
    if (!check_arguments(invocation, count, count, changes ? "VERB DEVICE NAME" : "list DEVICE",
                         error)) {
        return EXIT_USAGE;
    }
    AUTO_CLIENT client = connect_to_server(invocation, error);
    if (!client) {
        return EXIT_UNREACHABLE;
    }
    return changes ? change(invocation, client, error) : list(invocation, client, error);
}

const struct command checkpoint_command = {
    .name = "checkpoint",
    .summary = "Name moments of tracked disks, for incremental backups",
    .usage = "[OPTION...] add|remove DEVICE NAME | list DEVICE",
    .notes = "A checkpoint is a name for a moment. It costs nothing to keep one, and\n"
             "removing it changes nothing but that one can no longer ask what changed\n"
             "since.\n",
    .flags = COMMAND_ADMIN | COMMAND_JSON,
    .words = words,
    .run = run,
};
