/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk bitmap: look at dirty bitmaps and change them. */
#include <stdio.h>
#include <string.h>

#include "block/cleanup.h"
#include "cli/command.h"
#include "cli/output.h"
#include "cli/runtime.h"
#include "cli/verb.h"

static struct {
    char *granularity;
    gboolean persistent;
    gboolean disabled;
} chosen;

static const GOptionEntry options[] = {
    {"granularity", 'g', 0, G_OPTION_ARG_STRING, &chosen.granularity,
     "add: bytes per bit, a power of 2 such as 64K", "BYTES"},
    {"persistent", 'p', 0, G_OPTION_ARG_NONE, &chosen.persistent, "add: store it with the image",
     NULL},
    {"disabled", 0, 0, G_OPTION_ARG_NONE, &chosen.disabled, "add: do not record yet", NULL},
    {NULL},
};

static const struct command_words words[] = {
    {NULL, 0, "list add remove clear enable disable merge"},
    {NULL, 1, "@device"},
    {NULL},
};

/* ---- list ------------------------------------------------------------------------------------ */

/* The node of this name, or the one at the root of the device; NULL if there is neither. */
static const char *node_of(json_t *devices, json_t *nodes, const char *disk)
{
    json_t *entry;
    size_t i;

    json_array_foreach (devices, i, entry) {
        if (!strcmp(member_text(entry, "device", ""), disk)) {
            return member_text(json_object_get(entry, "inserted"), "node-name", NULL);
        }
    }
    json_array_foreach (nodes, i, entry) {
        if (!strcmp(member_text(entry, "node-name", ""), disk)) {
            return disk;
        }
    }
    return NULL;
}

/* All bitmaps, each with its node; of one node if there is a name. */
static json_t *collect(json_t *nodes, const char *name)
{
    json_t *list = json_array(), *node, *bitmap;
    size_t i, j;

    json_array_foreach (nodes, i, node) {
        const char *node_name = member_text(node, "node-name", "?");

        if (name && strcmp(node_name, name)) {
            continue;
        }
        json_array_foreach (json_object_get(node, "dirty-bitmaps"), j, bitmap) {
            json_t *entry = json_pack("{s:s}", "node", node_name);

            json_object_update_missing(entry, bitmap);
            json_array_append_new(list, entry);
        }
    }
    return list;
}

/* disk may be NULL: all. */
static json_t *query(struct client *client, const char *disk, GError **error)
{
    json_t *devices = client_call(client, "query-block", NULL, CLIENT_QUERY_TIMEOUT_MS, error);
    json_t *nodes = devices
                        ? client_call(client, "query-named-block-nodes",
                                      json_pack("{s:b}", "flat", 1), CLIENT_QUERY_TIMEOUT_MS, error)
                        : NULL;
    const char *name = nodes && disk ? node_of(devices, nodes, disk) : NULL;
    json_t *list = NULL;

    if (nodes && disk && !name) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED, "The server has no disk or node '%s'", disk);
    } else if (nodes) {
        list = collect(nodes, name);
    }
    json_decref(nodes);
    json_decref(devices);
    return list;
}

/* "recording, busy"; the caller frees. */
static char *state_text(const json_t *bitmap)
{
    static const char *const flags[] = {"busy", "persistent", "inconsistent"};
    GString *text = g_string_new(member_flag(bitmap, "recording") ? "recording" : "disabled");

    for (unsigned i = 0; i < G_N_ELEMENTS(flags); i++) {
        if (member_flag(bitmap, flags[i])) {
            g_string_append_printf(text, ", %s", flags[i]);
        }
    }
    return g_string_free(text, FALSE);
}

static void print_list(const json_t *bitmaps)
{
    static const char *const headings[] = {"NODE",         "BITMAP", ">CHANGED",
                                           ">GRANULARITY", "STATE",  NULL};
    json_t *bitmap;
    size_t i;

    if (json_array_size(bitmaps) == 0) {
        printf("No bitmaps.\n");
        return;
    }
    struct libscols_table *table = table_new(headings);
    json_array_foreach ((json_t *)bitmaps, i, bitmap) {
        g_autofree char *name = printable(member_text(bitmap, "name", "-"));
        g_autofree char *changed = format_size((uint64_t)member_integer(bitmap, "count", 0));
        g_autofree char *granularity =
            format_size((uint64_t)member_integer(bitmap, "granularity", 0));
        g_autofree char *state = state_text(bitmap);
        const char *const cells[] = {member_text(bitmap, "node", "?"), name, changed, granularity,
                                     state};

        table_add(table, cells);
    }
    table_print(table);
}

static enum exit_status list(const struct invocation *invocation, struct client *client,
                             GError **error)
{
    return verb_show(invocation, query(client, invocation->arguments[1], error), print_list);
}

/* ---- The others ------------------------------------------------------------------------------ */

static bool add_options(json_t *arguments, GError **error)
{
    int64_t bytes;

    if (chosen.granularity && !parse_size(chosen.granularity, &bytes)) {
        usage_error(error, "--granularity expects a number of bytes such as 64K, not '%s'",
                    chosen.granularity);
        return false;
    }
    if (chosen.granularity) {
        json_object_set_new(arguments, "granularity", json_integer(bytes));
    }
    if (chosen.persistent) {
        json_object_set_new(arguments, "persistent", json_true());
    }
    if (chosen.disabled) {
        json_object_set_new(arguments, "disabled", json_true());
    }
    return true;
}

static json_t *arguments_of(const char *verb, char *const *names, GError **error)
{
    bool is_merge = !strcmp(verb, "merge");
    json_t *arguments =
        json_pack("{s:s, s:s}", "node", names[0], is_merge ? "target" : "name", names[1]);
    json_t *sources = json_array();

    for (size_t i = 2; arguments && names[i]; i++) {
        json_array_append_new(sources, json_string(names[i]));
    }
    if (!arguments || json_array_size(sources) != g_strv_length((char **)names) - 2) {
        usage_error(error, "The name of a disk or a bitmap is not valid UTF-8");
        json_decref(STEAL(arguments));
    } else if (is_merge) {
        json_object_set(arguments, "bitmaps", sources);
    } else if (!strcmp(verb, "add") && !add_options(arguments, error)) {
        json_decref(STEAL(arguments));
    }
    json_decref(sources);
    return arguments;
}

static enum exit_status change(const struct invocation *invocation, struct client *client,
                               GError **error)
{
    const char *verb = invocation->arguments[0], *name = invocation->arguments[2];
    g_autofree char *command = g_strconcat("block-dirty-bitmap-", verb, NULL);
    json_t *arguments = arguments_of(verb, invocation->arguments + 1, error);

    if (!arguments) {
        return EXIT_USAGE;
    }
    json_t *done = client_call(client, command, arguments, CLIENT_WORK_TIMEOUT_MS, error);
    if (invocation->json && done) {
        print_json_line(json_pack("{s:s, s:s, s:s, s:s}", "message_type", "done", "verb", verb,
                                  "node", invocation->arguments[1], "bitmap", name));
    } else if (invocation->json) {
        print_json_line(json_pack("{s:s, s:s, s:s}", "message_type", "error", "verb", verb,
                                  "message", error && *error ? (*error)->message : ""));
    }
    json_decref(done);
    return done ? EXIT_OK : EXIT_FAILED;
}

struct bitmap_verb {
    const char *name;
    unsigned minimum, maximum; /* arguments after the verb */
    const char *what;          /* they are, for errors */
};

static const struct bitmap_verb verbs[] = {
    {"list", 0, 1, "list [DISK]"},
    {"add", 2, 2, "add DISK BITMAP"},
    {"remove", 2, 2, "remove DISK BITMAP"},
    {"clear", 2, 2, "clear DISK BITMAP"},
    {"enable", 2, 2, "enable DISK BITMAP"},
    {"disable", 2, 2, "disable DISK BITMAP"},
    {"merge", 3, 1024, "merge DISK BITMAP SOURCE..."},
};

static enum exit_status run(const struct invocation *invocation, GError **error)
{
    const struct bitmap_verb *verb = FIND_VERB(verbs, invocation->arguments[0]);

    if (!verb) {
        return usage_error(error, "What to do with bitmaps? Say list, add, remove, clear, enable, "
                                  "disable or merge");
    }
    if (!check_arguments(invocation, 1 + verb->minimum, 1 + verb->maximum, verb->what, error)) {
        return EXIT_USAGE;
    }
    if ((chosen.granularity || chosen.persistent || chosen.disabled) && strcmp(verb->name, "add")) {
        return usage_error(error, "--granularity, --persistent and --disabled are only for "
                                  "'bitmap add'");
    }
    AUTO_CLIENT client = connect_to_server(invocation, error);
    if (!client) {
        return EXIT_UNREACHABLE;
    }
    return strcmp(verb->name, "list") ? change(invocation, client, error)
                                      : list(invocation, client, error);
}

const struct command bitmap_command = {
    .name = "bitmap",
    .summary = "Record which parts of a disk are written to, for incremental backups",
    .usage = "[OPTION...] list [DISK] | VERB DISK BITMAP",
    .notes = "DISK is a device or a node.\n"
             "\n"
             "  list [DISK]                  all bitmaps, or those of one disk\n"
             "  add DISK BITMAP              record from now on what is written\n"
             "  remove DISK BITMAP           forget it\n"
             "  clear DISK BITMAP            forget what it has recorded\n"
             "  enable DISK BITMAP           record again\n"
             "  disable DISK BITMAP          stop recording, and keep what was recorded\n"
             "  merge DISK BITMAP SOURCE...  add to it what other bitmaps of the disk hold\n"
             "\n"
             "A bitmap that a backup uses is busy; one without a name records in its place.\n",
    .flags = COMMAND_ADMIN | COMMAND_JSON,
    .options = options,
    .words = words,
    .run = run,
};
