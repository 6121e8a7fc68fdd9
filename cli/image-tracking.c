/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk tracking: which disks are tracked, and what a tracking file says. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "block/error.h"
#include "block/tracking-inspect.h"
#include "cli/checkpoints-table.h"
#include "cli/output.h"
#include "cli/runtime.h"
#include "cli/verb.h"

static struct {
    char *file;
    char *granule;
    char *extent;
    int extents;
} chosen;

static const GOptionEntry options[] = {
    {"file", 0, 0, G_OPTION_ARG_FILENAME, &chosen.file,
     "start: the new tracking file (beside the disk's)", "FILE"},
    {"granule", 0, 0, G_OPTION_ARG_STRING, &chosen.granule,
     "start: bytes of the disk per entry (64K)", "BYTES"},
    {"extent", 0, 0, G_OPTION_ARG_STRING, &chosen.extent,
     "start: what a power loss makes count as changed (4M)", "BYTES"},
    {"extents", 0, 0, G_OPTION_ARG_INT, &chosen.extents, "start: how many of those (1024)",
     "NUMBER"},
    {NULL},
};

static const struct command_words words[] = {
    {"file", 0, "@file"},
    {NULL, 0, "list start stop show check drop"},
    {NULL, 1, "@image"},
    {NULL},
};

/* ---- Devices of a server --------------------------------------------------------------------- */

static void print_list(const json_t *all)
{
    static const char *const headings[] = {"DEVICE",  "STATE", ">CHECKPOINTS", ">RECOVERED",
                                           ">MEMORY", "FILE",  "REMARKS",      NULL};
    const json_t *entry;
    size_t i;

    if (json_array_size(all) == 0) {
        printf("No disk is tracked.\n");
        return;
    }
    struct libscols_table *table = table_new(headings);
    json_array_foreach ((json_t *)all, i, entry) {
        size_t count = json_array_size(json_object_get(entry, "checkpoints"));
        g_autofree char *checkpoints = g_strdup_printf("%zu", count);
        g_autofree char *recovered =
            format_size((uint64_t)MAX(member_integer(entry, "recovered-bytes", 0), 0));
        g_autofree char *memory = format_size((uint64_t)MAX(member_integer(entry, "memory", 0), 0));
        const char *const cells[] = {member_text(entry, "device", "?"),
                                     member_text(entry, "state", "?"),
                                     checkpoints,
                                     recovered,
                                     memory,
                                     member_text(entry, "file", "?"),
                                     member_text(entry, "message", "")};
        table_add(table, cells);
    }
    table_print(table);
}

static enum exit_status list(const struct invocation *invocation, struct client *client,
                             GError **error)
{
    return verb_show(
        invocation,
        client_call(client, "query-block-tracking", NULL, CLIENT_QUERY_TIMEOUT_MS, error),
        print_list);
}

static bool add_size(json_t *arguments, const char *key, const char *option, const char *text,
                     GError **error)
{
    int64_t bytes;

    if (!text) {
        return true;
    }
    if (!parse_size(text, &bytes)) {
        usage_error(error, "--%s expects a number of bytes such as 64K, not '%s'", option, text);
        return false;
    }
    json_object_set_new(arguments, key, json_integer(bytes));
    return true;
}

/* NULL with the error set: the options make no sense. */
static json_t *make_start_arguments(const char *device, GError **error)
{
    json_t *arguments = json_pack("{s:s}", "device", device);

    if (chosen.file) {
        g_autofree char *path = g_canonicalize_filename(chosen.file, NULL);

        json_object_set_new(arguments, "file", json_string(path));
    }
    if (chosen.extents) {
        json_object_set_new(arguments, "active-extents", json_integer(chosen.extents));
    }
    if (!add_size(arguments, "granularity", "granule", chosen.granule, error) ||
        !add_size(arguments, "extent-size", "extent", chosen.extent, error)) {
        json_decref(arguments);
        return NULL;
    }
    return arguments;
}

static enum exit_status start_or_stop(const struct invocation *invocation, struct client *client,
                                      GError **error)
{
    const char *device = invocation->arguments[1];
    bool starts = !strcmp(invocation->arguments[0], "start");
    json_t *arguments =
        starts ? make_start_arguments(device, error) : json_pack("{s:s}", "device", device);

    if (!arguments) {
        return EXIT_USAGE;
    }
    return verb_call(invocation, client, starts ? "block-tracking-start" : "block-tracking-stop",
                     arguments, "device", error);
}

static enum exit_status run_served(const struct invocation *invocation, GError **error)
{
    bool is_list = !strcmp(invocation->arguments[0], "list");
    AUTO_CLIENT client = connect_to_server(invocation, error);

    if (!client) {
        return EXIT_UNREACHABLE;
    }
    return is_list ? list(invocation, client, error) : start_or_stop(invocation, client, error);
}

/* ---- Files ----------------------------------------------------------------------------------- */

/* What a server would make of it, as far as the file alone tells. */
static const char *state_of(const struct tracking_inspection *inspection)
{
    bool in_use = inspection->contents.header.flags & TRACKING_IN_USE;

    return inspection->contents.marked_loss  ? "lost"
           : inspection->has_user            ? "in use"
           : in_use && inspection->same_boot ? "not closed: its server died"
           : in_use                          ? "not closed: power was lost"
                                             : "closed";
}

static json_t *describe_checkpoints(const struct tracking_inspection *inspection)
{
    const GPtrArray *checkpoints = inspection->contents.directory->checkpoints;
    json_t *array = json_array();

    for (guint i = 0; i < checkpoints->len; i++) {
        const struct tracking_checkpoint *checkpoint = g_ptr_array_index(checkpoints, i);
        g_autofree char *uuid = tracking_uuid_text(checkpoint->uuid);
        uint64_t changed, zero;
        json_t *object =
            json_pack("{s:s, s:s, s:f, s:b}", "name", checkpoint->name, "uuid", uuid, "time",
                      (double)checkpoint->time_ns / 1e9, "broken", checkpoint->is_broken);

        if (!checkpoint->is_broken) {
            change_map_count(&inspection->map, (uint16_t)checkpoint->epoch, &changed, &zero);
            json_object_set_new(object, "changed-bytes", json_integer((json_int_t)changed));
            json_object_set_new(object, "zero-bytes", json_integer((json_int_t)zero));
        }
        json_array_append_new(array, object);
    }
    return array;
}

static json_t *describe_layers(const struct tracking_inspection *inspection)
{
    const GPtrArray *layers = inspection->contents.directory->layers;
    json_t *array = json_array();

    for (guint i = 0; i < layers->len; i++) {
        const struct tracking_layer *layer = g_ptr_array_index(layers, i);
        g_autofree char *path = g_utf8_make_valid(layer->path, -1);

        json_array_append_new(array, json_string(path));
    }
    return array;
}

static uint64_t count_active(const struct tracking_inspection *inspection)
{
    uint64_t count = 0;

    for (uint32_t i = 0; i < inspection->contents.header.extents; i++) {
        count += inspection->contents.slots[i] != TRACKING_SLOT_EMPTY;
    }
    return count;
}

static json_t *describe(const struct tracking_inspection *inspection, const char *path)
{
    const struct tracking_header *header = &inspection->contents.header;
    g_autofree char *uuid = tracking_uuid_text(header->uuid);
    g_autofree char *disk = g_utf8_make_valid(header->path, -1);
    g_autofree char *shown = g_utf8_make_valid(path, -1);
    json_t *object = json_pack(
        "{s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "filename", shown, "uuid",
        uuid, "state", state_of(inspection), "disk", disk, "disk-size", (json_int_t)header->length,
        "granularity", (json_int_t)1 << header->granule_shift, "extent-size",
        (json_int_t)1 << header->extent_shift, "extents", (json_int_t)header->extents,
        "active-extents", (json_int_t)count_active(inspection), "epoch",
        (json_int_t)MAX(header->epoch, (uint32_t)atomic_load(&inspection->map.epoch)),
        "recovered-bytes",
        (json_int_t)tracking_recovered_bytes(header, inspection->contents.directory), "bitmaps",
        (json_int_t)inspection->contents.directory->bitmaps->len);

    if (*header->disk.name) {
        g_autofree char *name = g_utf8_make_valid(header->disk.name, -1);

        json_object_set_new(object, "disk-identity", json_string(name));
    }
    if (header->previous_loss) {
        json_object_set_new(object, "previous-reason",
                            json_string(tracking_loss_names[header->previous_loss]));
    }
    json_object_set_new(object, "layers", describe_layers(inspection));
    json_object_set_new(object, "checkpoints", describe_checkpoints(inspection));
    return object;
}

static void print_description(const json_t *object)
{
    static const struct {
        const char *heading, *key;
        bool is_size;
    } rows[] = {
        {"State", "state", false},
        {"Disk", "disk", false},
        {"Which is", "disk-identity", false},
        {"Disk size", "disk-size", true},
        {"Granule", "granularity", true},
        {"Extent", "extent-size", true},
        {"Active extents", "active-extents", false},
        {"Added by recovery", "recovered-bytes", true},
        {"Lost before", "previous-reason", false},
        {"UUID", "uuid", false},
    };
    const json_t *layers = json_object_get(object, "layers"), *layer;
    size_t i;

    for (i = 0; i < G_N_ELEMENTS(rows); i++) {
        const json_t *value = json_object_get(object, rows[i].key);
        g_autofree char *text =
            json_is_string(value)
                ? printable(json_string_value(value))
                : (rows[i].is_size
                       ? format_size((uint64_t)json_integer_value(value))
                       : g_strdup_printf("%" JSON_INTEGER_FORMAT, json_integer_value(value)));

        if (value) {
            printf("%-18s %s\n", rows[i].heading, text);
        }
    }
    json_array_foreach (layers, i, layer) {
        g_autofree char *text = printable(json_string_value(layer));

        printf("%-18s %s\n", i ? "" : "Lies on", text);
    }
    print_checkpoints(json_object_get(object, "checkpoints"), NULL);
}

static enum exit_status fail(enum tracking_loss loss, const char *path, GError **error)
{
    if (loss == TRACKING_LOST_FOREIGN) {
        g_prefix_error(error, "'%s' is no tracking file that is known here: ", path);
    } else if (loss) {
        g_prefix_error(error, "'%s' says nothing of its disk any more: ", path);
    }
    return EXIT_FAILED;
}

static enum exit_status show(const struct invocation *invocation, GError **error)
{
    const char *path = invocation->arguments[1];
    struct tracking_inspection inspection;
    enum tracking_loss loss;

    if (tracking_inspect(path, &inspection, &loss, error) < 0) {
        return fail(loss, path, error);
    }
    json_t *object = describe(&inspection, path);
    tracking_inspection_clear(&inspection);
    return verb_show(invocation, object, print_description);
}

static enum exit_status check(const struct invocation *invocation, GError **error)
{
    const char *path = invocation->arguments[1];
    struct tracking_inspection inspection;
    enum tracking_loss loss;

    if (tracking_inspect(path, &inspection, &loss, error) < 0) {
        return fail(loss, path, error);
    }
    loss = inspection.contents.marked_loss;
    if (!loss && inspection.bad_values) {
        loss = TRACKING_LOST_DAMAGED;
    }
    const char *state = state_of(&inspection);
    if (invocation->json) {
        print_json(json_pack("{s:s, s:b, s:s, s:s, s:I}", "filename", path, "usable", !loss,
                             "state", state, "reason", tracking_loss_names[loss], "bad-values",
                             (json_int_t)inspection.bad_values));
    } else if (loss) {
        printf("'%s' says nothing of its disk any more: %s.\n", path, tracking_loss_text(loss));
    } else {
        printf("No errors are in the tracking file (%s). Whether it still fits its disk is seen "
               "when that is served.\n",
               state);
    }
    tracking_inspection_clear(&inspection);
    return loss ? EXIT_FAILED : EXIT_OK;
}

static enum exit_status drop(const struct invocation *invocation, GError **error)
{
    const char *path = invocation->arguments[1];

    if (tracking_drop(path, error) < 0) {
        return EXIT_FAILED;
    }
    if (invocation->json) {
        print_json_line(
            json_pack("{s:s, s:s, s:s}", "message_type", "done", "verb", "drop", "filename", path));
    }
    return EXIT_OK;
}

/* ---- Verbs ----------------------------------------------------------------------------------- */

/* Of a server, or of a file. */
static const struct tracking_verb {
    const char *name;
    unsigned arguments;
    const char *what;
    enum exit_status (*function)(const struct invocation *invocation, GError **error);
} verbs[] = {
    {"list", 0, "nothing after 'list'", run_served},
    {"start", 1, "start DEVICE", run_served},
    {"stop", 1, "stop DEVICE", run_served},
    {"show", 1, "show FILE", show},
    {"check", 1, "check FILE", check},
    {"drop", 1, "drop FILE", drop},
};

static bool check_options(const struct tracking_verb *verb, GError **error)
{
    bool has_options = chosen.file || chosen.granule || chosen.extent || chosen.extents;

    if (has_options && strcmp(verb->name, "start")) {
        usage_error(error, "Only 'tracking start' has options of its own");
        return false;
    }
    if (chosen.extents < 0) {
        usage_error(error, "--extents expects a number from 16 to 65536");
        return false;
    }
    return true;
}

static enum exit_status run(const struct invocation *invocation, GError **error)
{
    const struct tracking_verb *verb = FIND_VERB(verbs, invocation->arguments[0]);

    if (!verb) {
        return usage_error(error,
                           "What to do about tracking? Say list, start, stop, show, check or drop");
    }
    if (!check_arguments(invocation, 1 + verb->arguments, 1 + verb->arguments, verb->what, error) ||
        !check_options(verb, error)) {
        return EXIT_USAGE;
    }
    return verb->function(invocation, error);
}

const struct command tracking_command = {
    .name = "tracking",
    .summary = "Track what changes on disks, and look at tracking files",
    .usage = "[OPTION...] list | start|stop DEVICE | VERB FILE",
    .notes = "  list            the disks of a server that are tracked\n"
             "  start DEVICE    track a disk from now on, in a new file\n"
             "  stop DEVICE     end that; the file and all checkpoints are gone\n"
             "  show FILE       what a tracking file says; no server is needed\n"
             "  check FILE      whether it holds together: 0 if it does, else 1\n"
             "  drop FILE       remove it, if it is one and nobody uses it\n"
             "\n"
             "What changed is asked for since a checkpoint: see 'liveblk checkpoint'.\n",
    .flags = COMMAND_ADMIN | COMMAND_JSON,
    .options = options,
    .words = words,
    .run = run,
};
