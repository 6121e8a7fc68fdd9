/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk view: disks as they were at one instant, to be read as exports. */
#include <stdio.h>
#include <string.h>

#include "block/cleanup.h"
#include "cli/follow.h"
#include "cli/output.h"
#include "cli/runtime.h"
#include "cli/scratch-limits.h"
#include "cli/verb.h"
#include "cli/views-table.h"

static struct {
    char **devices;
    char *scratch;
    char **scratch_nodes;
    char *scratch_max;
    int scratch_high_water;
    int timeout;
    gboolean break_guest_write;
    gboolean discard;
    gboolean force;
} chosen = {.timeout = -1, .scratch_high_water = -1};

static const GOptionEntry options[] = {
    {"device", 0, 0, G_OPTION_ARG_STRING_ARRAY, &chosen.devices,
     "create: of this disk (all of them); may repeat", "DEVICE"},
    {"scratch", 0, 0, G_OPTION_ARG_FILENAME, &chosen.scratch,
     "create: keep old data here (/var/tmp)", "DIRECTORY"},
    {"scratch-node", 0, 0, G_OPTION_ARG_STRING_ARRAY, &chosen.scratch_nodes,
     "create: or in a node; one for each disk", "DEVICE=NODE"},
    {"scratch-max", 0, 0, G_OPTION_ARG_STRING, &chosen.scratch_max,
     "create: the most old data to keep", "BYTES"},
    {"scratch-high", 0, 0, G_OPTION_ARG_INT, &chosen.scratch_high_water,
     "create: tell when so much of that is used (80)", "PERCENT"},
    {"timeout", 0, 0, G_OPTION_ARG_INT, &chosen.timeout,
     "create: longest wait of a guest's write (10)", "SECONDS"},
    {"break-guest-write", 0, 0, G_OPTION_ARG_NONE, &chosen.break_guest_write,
     "create: fail guests' writes before the view", NULL},
    {"discard", 0, 0, G_OPTION_ARG_NONE, &chosen.discard,
     "create: let readers discard what they have read", NULL},
    {"force", 'f', 0, G_OPTION_ARG_NONE, &chosen.force, "drop: even if it is in use", NULL},
    {NULL},
};

static const struct command_words words[] = {
    {"device", 0, "@device"}, {"scratch", 0, "@file"}, {NULL, 0, "create drop list discard"},
    {NULL, 1, "@view"},       {NULL, 2, "@device"},    {NULL},
};

/* What goes into JSON. GLib has seen to all option values but file names. */
static bool check_text(const char *text, GError **error)
{
    if (text && !g_utf8_validate(text, -1, NULL)) {
        g_autofree char *shown = g_utf8_make_valid(text, -1);
        usage_error(error, "'%s' is not valid UTF-8", shown);
        return false;
    }
    return true;
}

/* ---- create --------------------------------------------------------------------------------- */

/* The names of all devices the server has, or NULL. */
static json_t *query_device_names(struct client *client, GError **error)
{
    json_t *devices = client_call(client, "query-block", NULL, CLIENT_QUERY_TIMEOUT_MS, error);
    json_t *names = devices ? json_array() : NULL;
    const json_t *device;
    size_t i;

    json_array_foreach (devices, i, device) {
        json_array_append_new(names, json_string(member_text(device, "device", "")));
    }
    json_decref(devices);
    return names;
}

/* The node that --scratch-node gives a device, or NULL. */
static const char *scratch_node_of(const char *device)
{
    size_t length = strlen(device);

    for (unsigned i = 0; chosen.scratch_nodes[i]; i++) {
        const char *text = chosen.scratch_nodes[i];
        if (!strncmp(text, device, length) && text[length] == '=') {
            return text + length + 1;
        }
    }
    return NULL;
}

/* One node for each device, in their order; NULL: error. */
static json_t *make_scratch_nodes(const json_t *devices, GError **error)
{
    json_t *nodes = json_array();
    const json_t *device;
    size_t i;

    json_array_foreach ((json_t *)devices, i, device) {
        const char *node = scratch_node_of(json_string_value(device));
        if (!node) {
            usage_error(error,
                        "There is no --scratch-node %s=NODE: each disk of the view needs one",
                        json_string_value(device));
            json_decref(nodes);
            return NULL;
        }
        json_array_append_new(nodes, json_string(node));
    }
    if (json_array_size(nodes) != g_strv_length(chosen.scratch_nodes)) {
        usage_error(error, "There are more --scratch-node options than disks in the view");
        json_decref(nodes);
        return NULL;
    }
    return nodes;
}

static bool add_scratch(json_t *arguments, struct client *client, GError **error)
{
    if (chosen.scratch) {
        g_autofree char *directory = g_canonicalize_filename(chosen.scratch, NULL);
        json_object_set_new(arguments, "scratch", json_string(directory));
    }
    if (!chosen.scratch_nodes) {
        return true;
    }
    const json_t *devices = json_object_get(arguments, "devices");
    if (!devices) {
        /* Which disk comes first is the server's to say, and may not change until it is asked. */
        json_t *all = query_device_names(client, error);
        if (!all) {
            return false;
        }
        json_object_set_new(arguments, "devices", all);
        devices = all;
    }
    json_t *nodes = make_scratch_nodes(devices, error);
    return nodes && !json_object_set_new(arguments, "scratch-nodes", nodes);
}

static bool check_create_options(GError **error)
{
    if (!check_text(chosen.scratch, error)) {
        return false;
    }
    if (chosen.scratch && chosen.scratch_nodes) {
        usage_error(error, "--scratch and --scratch-node exclude each other");
        return false;
    }
    for (unsigned i = 0; chosen.scratch_nodes && chosen.scratch_nodes[i]; i++) {
        if (!strchr(chosen.scratch_nodes[i], '=')) {
            usage_error(error, "--scratch-node expects DEVICE=NODE, not '%s'",
                        chosen.scratch_nodes[i]);
            return false;
        }
    }
    if (chosen.timeout < -1) {
        usage_error(error, "--timeout expects a number of seconds, or 0 for no limit, not %d",
                    chosen.timeout);
        return false;
    }
    return true;
}

/* NULL with the error set. */
static json_t *make_create_arguments(const char *name, GError **error)
{
    json_t *arguments = json_pack("{s:s}", "name", name);

    if (chosen.devices) {
        json_t *devices = json_array();
        for (unsigned i = 0; chosen.devices[i]; i++) {
            json_array_append_new(devices, json_string(chosen.devices[i]));
        }
        json_object_set_new(arguments, "devices", devices);
    }
    if (!scratch_limits_add(arguments, chosen.scratch_max, chosen.scratch_high_water, error)) {
        json_decref(arguments);
        return NULL;
    }
    if (chosen.timeout >= 0) {
        json_object_set_new(arguments, "cbw-timeout", json_integer(chosen.timeout));
    }
    if (chosen.break_guest_write) {
        json_object_set_new(arguments, "on-cbw-error", json_string("break-guest-write"));
    }
    if (chosen.discard) {
        json_object_set_new(arguments, "discard", json_true());
    }
    return arguments;
}

/* Give each device of the view a member "uri": where it can be read, or null. */
static void add_uris(json_t *view, const char *admin)
{
    g_autofree char *socket = runtime_nbd_socket_of(admin);
    json_t *device;
    size_t i;

    json_array_foreach (json_object_get(view, "devices"), i, device) {
        g_autofree char *uri =
            socket ? nbd_unix_uri(false, socket, member_text(device, "export", "")) : NULL;
        json_object_set_new(device, "uri", uri ? json_string(uri) : json_null());
    }
}

static void print_created(const json_t *view)
{
    const char *name = member_text(view, "name", "?");
    g_autofree char *instant = view_instant_text(view);
    json_t *device;
    size_t i;

    printf("View '%s' shows what the disks held at %s:\n", name, instant);
    json_array_foreach (json_object_get(view, "devices"), i, device) {
        const char *export = member_text(device, "export", "?");
        const char *uri = member_text(device, "uri", NULL);
        if (uri) {
            printf("  nbdcopy '%s' FILE\n", uri);
        } else {
            printf("  export '%s' of the NBD server: nbdcopy 'nbd://HOST/%s' FILE\n", export,
                   export);
        }
    }
    printf("It keeps what guests overwrite until 'liveblk view drop %s'.\n", name);
    fflush(stdout);
}

static enum exit_status create(const struct invocation *invocation, const char *admin,
                               struct client *client, GError **error)
{
    json_t *arguments =
        check_create_options(error) ? make_create_arguments(invocation->arguments[1], error) : NULL;

    if (!arguments) {
        return EXIT_USAGE;
    }
    if (!add_scratch(arguments, client, error)) {
        json_decref(arguments);
        return EXIT_FAILED;
    }
    json_t *view = client_call(client, "view-create", arguments, CLIENT_WORK_TIMEOUT_MS, error);
    if (!view) {
        return EXIT_FAILED;
    }
    add_uris(view, admin);
    if (invocation->json) {
        print_json_line(view);
    } else {
        print_created(view);
        json_decref(view);
    }
    return EXIT_OK;
}

/* ---- The other verbs ------------------------------------------------------------------------ */

static enum exit_status drop(const struct invocation *invocation, const char *admin,
                             struct client *client, GError **error)
{
    json_t *arguments = json_pack("{s:s}", "name", invocation->arguments[1]);

    if (chosen.force) {
        json_object_set_new(arguments, "force", json_true());
    }
    return verb_call(invocation, client, "view-drop", arguments, "view", error);
}

static enum exit_status list(const struct invocation *invocation, const char *admin,
                             struct client *client, GError **error)
{
    return verb_show(invocation,
                     client_call(client, "query-views", NULL, CLIENT_QUERY_TIMEOUT_MS, error),
                     print_views);
}

static enum exit_status discard(const struct invocation *invocation, const char *admin,
                                struct client *client, GError **error)
{
    char *const *words_typed = invocation->arguments;
    int64_t offset, length;

    if (!parse_size(words_typed[3], &offset) || !parse_size(words_typed[4], &length)) {
        return usage_error(error, "OFFSET and LENGTH are numbers of bytes such as 50M, not '%s %s'",
                           words_typed[3], words_typed[4]);
    }
    return verb_call(invocation, client, "view-discard",
                     json_pack("{s:s, s:s, s:I, s:I}", "name", words_typed[1], "device",
                               words_typed[2], "offset", (json_int_t)offset, "length",
                               (json_int_t)length),
                     "view", error);
}

static const struct verb verbs[] = {
    {"create", 1, "create NAME", create},
    {"drop", 1, "drop NAME", drop},
    {"list", 0, "nothing after 'list'", list},
    {"discard", 4, "discard NAME DEVICE OFFSET LENGTH", discard},
};

/* Options of other verbs would have no effect. */
static bool check_verb_options(const struct verb *verb, GError **error)
{
    bool for_create = chosen.devices || chosen.scratch || chosen.scratch_nodes ||
                      chosen.scratch_max || chosen.scratch_high_water != -1 ||
                      chosen.timeout != -1 || chosen.break_guest_write || chosen.discard;

    if (for_create && verb->function != create) {
        usage_error(error, "Only 'view create' has options beside --force");
        return false;
    }
    if (chosen.force && verb->function != drop) {
        usage_error(error, "--force is only for 'view drop'");
        return false;
    }
    return true;
}

static enum exit_status run(const struct invocation *invocation, GError **error)
{
    const struct verb *verb = FIND_VERB(verbs, invocation->arguments[0]);

    if (!verb) {
        return usage_error(error, "What to do with views? Say create, drop, list or discard");
    }
    if (!check_arguments(invocation, 1 + verb->arguments, 1 + verb->arguments, verb->what, error) ||
        !check_verb_options(verb, error)) {
        return EXIT_USAGE;
    }
    for (unsigned i = 0; invocation->arguments[i]; i++) {
        if (!check_text(invocation->arguments[i], error)) {
            return EXIT_USAGE;
        }
    }
    return verb_run(verb, invocation, error);
}

const struct command view_command = {
    .name = "view",
    .summary = "Show disks as they were at one instant, for others to read",
    .usage = "[OPTION...] list | VERB NAME",
    .notes = "  create NAME     keep what the disks hold at this instant; each is served as\n"
             "                  the export DEVICE@NAME, read-only, while guests go on\n"
             "  drop NAME       end it\n"
             "  list            all views, with what they keep on scratch\n"
             "  discard NAME DEVICE OFFSET LENGTH\n"
             "                  give up a part that has been read, which frees its scratch\n"
             "\n"
             "What guests overwrite is kept on scratch: a file without a name in a directory.\n"
             "If that is full or too slow the view breaks and its readers get errors; with\n"
             "--break-guest-write the guest does.\n",
    .flags = COMMAND_ADMIN | COMMAND_JSON,
    .options = options,
    .words = words,
    .run = run,
};
