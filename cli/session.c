/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk session: backup sessions, which cut checkpoints and show views of several disks at once.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "block/cleanup.h"
#include "cli/follow.h"
#include "cli/output.h"
#include "cli/runtime.h"
#include "cli/session-wishes.h"
#include "cli/verb.h"

static struct {
    char **devices;
    char *since;
    struct session_wishes wishes;
} chosen = {.wishes.scratch_high_water = -1};

static const GOptionEntry options[] = {
    {"device", 0, 0, G_OPTION_ARG_STRING_ARRAY, &chosen.devices,
     "begin: this disk, since then; may repeat", "DEVICE[=CHECKPOINT]"},
    {"since", 0, 0, G_OPTION_ARG_STRING, &chosen.since, "begin: what changed since this checkpoint",
     "CHECKPOINT"},
    {"lease", 0, 0, G_OPTION_ARG_INT, &chosen.wishes.lease,
     "begin: abandon it then, unless said again", "SECONDS"},
    {"before-cut", 0, 0, G_OPTION_ARG_STRING, &chosen.wishes.before,
     "begin: the server runs it before the cut", "COMMAND"},
    {"after-cut", 0, 0, G_OPTION_ARG_STRING, &chosen.wishes.after,
     "begin: and this after it, in any case", "COMMAND"},
    {"hook-timeout", 0, 0, G_OPTION_ARG_INT, &chosen.wishes.hook_timeout,
     "begin: how long each of them may take (10000)", "MILLISECONDS"},
    {"scratch", 0, 0, G_OPTION_ARG_FILENAME, &chosen.wishes.scratch,
     "begin: keep old data here (/var/tmp)", "DIRECTORY"},
    {"scratch-max", 0, 0, G_OPTION_ARG_STRING, &chosen.wishes.scratch_max,
     "begin: the most old data to keep", "BYTES"},
    {"scratch-high", 0, 0, G_OPTION_ARG_INT, &chosen.wishes.scratch_high_water,
     "begin: tell when so much of that is used (80)", "PERCENT"},
    {NULL},
};

static const struct command_words words[] = {
    {"device", 0, "@device"},
    {"scratch", 0, "@file"},
    {NULL, 0, "begin commit abandon delete list changes"},
    {NULL, 2, "@device"},
    {NULL},
};

/* ---- begin ---------------------------------------------------------------------------------- */

static json_t *make_devices(void)
{
    json_t *devices = json_array();

    for (char **device = chosen.devices; *device; device++) {
        g_auto(GStrv) parts = g_strsplit(*device, "=", 2);
        json_t *entry = json_pack("{s:s}", "device", parts[0]);

        if (parts[1]) {
            json_object_set_new(entry, "since", json_string(parts[1]));
        }
        json_array_append_new(devices, entry);
    }
    return devices;
}

/* NULL with the error set. */
static json_t *make_arguments(const char *name, GError **error)
{
    json_t *arguments = json_pack("{s:s}", "name", name);

    if (chosen.devices) {
        json_object_set_new(arguments, "devices", make_devices());
    }
    if (chosen.since) {
        json_object_set_new(arguments, "since", json_string(chosen.since));
    }
    if (!session_add_wishes(arguments, &chosen.wishes, error)) {
        json_decref(arguments);
        return NULL;
    }
    return arguments;
}

static void add_uris(json_t *session, const char *admin)
{
    g_autofree char *socket = runtime_nbd_socket_of(admin);
    json_t *device;
    size_t i;

    json_array_foreach (json_object_get(session, "devices"), i, device) {
        g_autofree char *uri =
            socket ? nbd_unix_uri(false, socket, member_text(device, "export", "")) : NULL;
        g_autofree char *changes =
            socket ? nbd_unix_uri(false, socket, member_text(device, "changes-export", "")) : NULL;

        json_object_set_new(device, "uri", uri ? json_string(uri) : json_null());
        json_object_set_new(device, "changes-uri", changes ? json_string(changes) : json_null());
    }
}

static void print_session(const json_t *session)
{
    static const char *const headings[] = {"DEVICE", "MODE",   ">DATA", ">ZERO",
                                           "SINCE",  "EXPORT", NULL};
    const char *broken = member_text(session, "broken", NULL);
    const char *hook_error = member_text(session, "hook-error", NULL);
    struct libscols_table *table = table_new(headings);
    const json_t *device;
    size_t i;

    printf("Session '%s': guests were held for %.1f ms", member_text(session, "name", "?"),
           (double)member_integer(session, "held-ns", 0) / 1e6);
    if (member_integer(json_object_get(session, "guest-waits"), "requests", 0)) {
        g_autofree char *waits = guest_waits_text(session);

        printf(", and for old data to be kept %s (99 of 100/longest)", waits);
    }
    printf(".\n");
    json_array_foreach (json_object_get(session, "devices"), i, device) {
        const char *reason = member_text(device, "reason", NULL);
        g_autofree char *mode = reason ? g_strdup_printf("full (%s)", reason)
                                       : g_strdup(member_text(device, "mode", "?"));
        g_autofree char *data =
            format_size((uint64_t)MAX(member_integer(device, "data-bytes", 0), 0));
        g_autofree char *zero =
            format_size((uint64_t)MAX(member_integer(device, "zero-bytes", 0), 0));

        table_add(table, (const char *const[]){member_text(device, "device", "?"), mode, data, zero,
                                               member_text(device, "since", ""),
                                               member_text(device, "export", "?")});
    }
    table_print(table);
    if (json_object_get(session, "lease-left")) {
        double left = json_number_value(json_object_get(session, "lease-left"));

        printf("Its lease ends in %.0f s, unless 'session begin' is said again.\n", ceil(left));
    }
    if (hook_error) {
        printf("The command after the cut failed, and a guest may still be frozen: %s\n",
               hook_error);
    }
    if (broken) {
        printf("It is of no use any more: %s\n", broken);
    }
}

static enum exit_status begin(const struct invocation *invocation, const char *admin,
                              struct client *client, GError **error)
{
    json_t *arguments = make_arguments(invocation->arguments[1], error);
    json_t *session;

    if (!arguments) {
        return EXIT_USAGE;
    }
    session = client_call(client, "checkpoint-begin", arguments,
                          session_begin_timeout_ms(&chosen.wishes), error);
    if (!session) {
        return EXIT_FAILED;
    }
    add_uris(session, admin);
    if (invocation->json) {
        print_json_line(session);
    } else {
        print_session(session);
        if (member_flag(session, "was-open")) {
            printf("It was open already: nothing was cut now.\n");
        }
        printf("It lasts until 'liveblk session commit %s' or 'abandon'.\n",
               invocation->arguments[1]);
        json_decref(session);
    }
    return EXIT_OK;
}

/* ---- The other verbs ------------------------------------------------------------------------ */

static enum exit_status commit(const struct invocation *invocation, const char *admin,
                               struct client *client, GError **error)
{
    json_t *results = client_call(client, "checkpoint-commit",
                                  json_pack("{s:s}", "name", invocation->arguments[1]),
                                  CLIENT_WORK_TIMEOUT_MS, error);
    const json_t *result;
    size_t i;

    if (!results) {
        return EXIT_FAILED;
    }
    if (invocation->json) {
        print_json_line(results);
        return EXIT_OK;
    }
    json_array_foreach (results, i, result) {
        if (!member_flag(result, "committed")) {
            printf("%s is a full one next time: %s\n", member_text(result, "device", "?"),
                   member_text(result, "message", "?"));
        }
    }
    json_decref(results);
    return EXIT_OK;
}

static enum exit_status call(const struct invocation *invocation, struct client *client,
                             const char *command, GError **error)
{
    return verb_call(invocation, client, command,
                     json_pack("{s:s}", "name", invocation->arguments[1]), "session", error);
}

static enum exit_status abandon(const struct invocation *invocation, const char *admin,
                                struct client *client, GError **error)
{
    return call(invocation, client, "checkpoint-abandon", error);
}

static enum exit_status delete (const struct invocation *invocation, const char *admin,
                                struct client *client, GError **error) {
    return call(invocation, client, "checkpoint-delete", error);
}

static char *names_of_devices(const json_t *entry)
{
    g_autoptr(GString) text = g_string_new(NULL);
    const json_t *device;
    size_t i;

    json_array_foreach (json_object_get(entry, "devices"), i, device) {
        g_string_append_printf(text, "%s%s%s", i ? ", " : "", member_text(device, "device", "?"),
                               member_flag(device, "broken") ? " (broken)" : "");
    }
    return g_strdup(text->str);
}

static void print_list(const json_t *all)
{
    static const char *const headings[] = {"CHECKPOINT", "STATE", "DEVICES", NULL};
    struct libscols_table *table;
    const json_t *entry, *session;
    size_t i;

    if (json_array_size(all) == 0) {
        printf("No disk has checkpoints, and no session is open.\n");
        return;
    }
    table = table_new(headings);
    json_array_foreach ((json_t *)all, i, entry) {
        g_autofree char *devices = names_of_devices(entry);

        table_add(table, (const char *const[]){member_text(entry, "name", "?"),
                                               member_text(entry, "state", "?"), devices});
    }
    table_print(table);
    json_array_foreach ((json_t *)all, i, entry) {
        session = json_object_get(entry, "session");
        if (session) {
            printf("\n");
            print_session(session);
        }
    }
}

static enum exit_status list(const struct invocation *invocation, const char *admin,
                             struct client *client, GError **error)
{
    return verb_show(invocation,
                     client_call(client, "query-checkpoints", NULL, CLIENT_QUERY_TIMEOUT_MS, error),
                     print_list);
}

static void print_ranges(const struct invocation *invocation, const json_t *answer)
{
    json_t *range;
    size_t i;

    json_array_foreach (json_object_get(answer, "ranges"), i, range) {
        if (invocation->json) {
            print_json_line(json_incref(range));
        } else {
            printf("%" PRId64 "\t%" PRId64 "\t%s\n", member_integer(range, "offset", 0),
                   member_integer(range, "length", 0), member_text(range, "state", "?"));
        }
    }
}

static enum exit_status changes(const struct invocation *invocation, const char *admin,
                                struct client *client, GError **error)
{
    int64_t offset = 0;

    while (offset >= 0) {
        json_t *answer =
            client_call(client, "query-changes",
                        json_pack("{s:s, s:s, s:I}", "name", invocation->arguments[1], "device",
                                  invocation->arguments[2], "offset", (json_int_t)offset),
                        CLIENT_WORK_TIMEOUT_MS, error);

        if (!answer) {
            return EXIT_FAILED;
        }
        print_ranges(invocation, answer);
        offset = member_integer(answer, "next", -1);
        json_decref(answer);
    }
    return EXIT_OK;
}

static const struct verb verbs[] = {
    {"begin", 1, "begin NAME", begin},         {"commit", 1, "commit NAME", commit},
    {"abandon", 1, "abandon NAME", abandon},   {"delete", 1, "delete NAME", delete},
    {"list", 0, "nothing after 'list'", list}, {"changes", 2, "changes NAME DEVICE", changes},
};

static bool check(const struct invocation *invocation, const struct verb *verb, GError **error)
{
    bool for_begin = chosen.devices || chosen.since || chosen.wishes.lease ||
                     chosen.wishes.before || chosen.wishes.after || chosen.wishes.hook_timeout ||
                     chosen.wishes.scratch || chosen.wishes.scratch_max ||
                     chosen.wishes.scratch_high_water != -1;

    if (for_begin && verb->function != begin) {
        usage_error(error, "Only 'session begin' has these options");
        return false;
    }
    for (unsigned i = 0; invocation->arguments[i]; i++) {
        if (!g_utf8_validate(invocation->arguments[i], -1, NULL)) {
            usage_error(error, "Names must be valid UTF-8");
            return false;
        }
    }
    return true;
}

static enum exit_status run(const struct invocation *invocation, GError **error)
{
    const struct verb *verb = FIND_VERB(verbs, invocation->arguments[0]);

    if (!verb) {
        return usage_error(error, "What to do with sessions? Say begin, commit, abandon, delete, "
                                  "list or changes");
    }
    if (!check_arguments(invocation, 1 + verb->arguments, 1 + verb->arguments, verb->what, error) ||
        !check(invocation, verb, error)) {
        return EXIT_USAGE;
    }
    return verb_run(verb, invocation, error);
}

const struct command session_command = {
    .name = "session",
    .summary = "Cut checkpoints of disks at one instant, for backups of what changed",
    .usage = "[OPTION...] list | VERB NAME",
    .notes = "  begin NAME      at one instant cut a checkpoint of each tracked disk, and keep\n"
             "                  what the disks hold, as the exports DEVICE@NAME\n"
             "  commit NAME     the backup is safe: keep the checkpoints, end the session\n"
             "  abandon NAME    end it as if it had not been\n"
             "  delete NAME     forget the checkpoints of that name\n"
             "  list            all checkpoints, and the sessions that are open\n"
             "  changes NAME DEVICE\n"
             "                  offset, length and state (data or zero) of what is to be moved\n",
    .flags = COMMAND_ADMIN | COMMAND_JSON,
    .options = options,
    .words = words,
    .run = run,
};
