/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk snapshot: internal snapshots of images, and of disks of a server; external ones of the
 * latter are in snapshot-external.c. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "block/error.h"
#include "block/image-info.h"
#include "block/image.h"
#include "block/request.h"
#include "block/tracking-inspect.h"
#include "cli/image.h"
#include "cli/output.h"
#include "cli/snapshot-external.h"

static struct {
    char *format;
    char *create;
    char *apply;
    char *delete;
    char **external;
    gboolean list;
    gboolean force_share;
} chosen;

static const GOptionEntry snapshot_options[] = {
    {"list", 'l', 0, G_OPTION_ARG_NONE, &chosen.list, "Show what there is (default)", NULL},
    {"create", 'c', 0, G_OPTION_ARG_STRING, &chosen.create, "Take one", "NAME"},
    {"apply", 0, 0, G_OPTION_ARG_STRING, &chosen.apply,
     "Go back to one; what the disk holds is lost", "NAME"},
    {"delete", 'd', 0, G_OPTION_ARG_STRING, &chosen.delete, "Delete one", "NAME"},
    {"external", 'x', 0, G_OPTION_ARG_FILENAME_ARRAY, &chosen.external,
     "Let a DEVICE go on in a new file", "[DEVICE=]FILE"},
    {"format", 'f', 0, G_OPTION_ARG_STRING, &chosen.format, "The image's format", "FORMAT"},
    {"force-share", 'U', 0, G_OPTION_ARG_NONE, &chosen.force_share,
     "List also if somebody has it open", NULL},
    {NULL},
};
static const struct command_words snapshot_words[] = {
    {"external", 0, "@file"},
    {"format", 0, "qcow2"},
    {NULL, 0, "@image"},
    {NULL},
};

/* What is to be done; NULL: list. */
static const char *verb(void)
{
    return chosen.create ? "create" : chosen.apply ? "apply" : chosen.delete ? "delete" : NULL;
}

static bool check_options(GError **error)
{
    unsigned verbs =
        !!chosen.create + !!chosen.apply + !!chosen.delete + !!chosen.list + !!chosen.external;

    if (verbs > 1) {
        usage_error(error, "One of --list, --create, --apply, --delete and --external at a time");
        return false;
    }
    if (chosen.external && (chosen.format || image_has_policy())) {
        usage_error(error, "--%s is not for --external: the server makes a qcow2 image",
                    chosen.format ? "format" : "image-references");
        return false;
    }
    if ((verb() || chosen.external) && chosen.force_share) {
        usage_error(error, "--force-share is only for --list");
        return false;
    }
    if (chosen.create && !*chosen.create) {
        usage_error(error, "--create needs a name");
        return false;
    }
    return true;
}

static bool check_served_options(const char *device, GError **error)
{
    if (chosen.apply) {
        usage_error(error,
                    "There is no file '%s', and a disk of a server cannot go back to a "
                    "snapshot under its guest: stop the server, and --apply it to the file",
                    device);
        return false;
    }
    if (chosen.format || chosen.force_share) {
        usage_error(error,
                    "There is no file '%s', and --format and --force-share are not for disks "
                    "of a server",
                    device);
        return false;
    }
    return true;
}

/* The one of this name in a list of SnapshotInfo; borrowed, or NULL. */
static const json_t *find_by(const json_t *list, const char *member, const char *text)
{
    const json_t *entry;
    size_t i;

    json_array_foreach ((json_t *)list, i, entry) {
        if (!strcmp(member_text(entry, member, ""), text)) {
            return entry;
        }
    }
    return NULL;
}

/* Of this name or this ID; where that could be two, nobody knows which one was meant. */
static const json_t *find_or_error(const json_t *list, const char *text, GError **error)
{
    const json_t *named = find_by(list, "name", text), *numbered = find_by(list, "id", text);

    if (named && numbered && named != numbered) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED,
                    "'%s' is the name of one snapshot and the ID of another: say the ID '%s' or "
                    "the name '%s'",
                    text, member_text(named, "id", "?"), member_text(numbered, "name", "?"));
        return NULL;
    }
    if (!named && !numbered) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED, "There is no snapshot '%s'", text);
    }
    return named ? named : numbered;
}

/* ---- Of an image ----------------------------------------------------------------------------- */

static json_t *list_of_node(struct block_node *node, GError **error)
{
    struct block_snapshot_info *list;
    size_t count;

    if (block_node_snapshot_list(node, &list, &count, error) < 0) {
        return NULL;
    }
    json_t *array = json_array();
    for (size_t i = 0; i < count; i++) {
        json_array_append_new(array, block_snapshot_info_json(&list[i]));
    }
    block_snapshot_list_free(list, count);
    return array;
}

static int create(struct block_node *node, const json_t *list, GError **error)
{
    if (find_by(list, "name", chosen.create)) {
        return block_error(error, EEXIST, "There is a snapshot '%s' already", chosen.create);
    }
    return block_node_snapshot_create_now(node, chosen.create, error);
}

static int apply_or_delete(struct block_node *node, const json_t *list, GError **error)
{
    const json_t *entry = find_or_error(list, chosen.apply ? chosen.apply : chosen.delete, error);

    if (!entry) {
        return -ENOENT;
    }
    return chosen.apply ? block_node_snapshot_apply(node, member_text(entry, "id", ""), error)
                        : block_node_snapshot_delete(node, member_text(entry, "id", ""), error);
}

/* A new list of what there is afterwards; NULL: error. Takes the reference. */
static json_t *change_node(struct block_node *node, json_t *list, GError **error)
{
    int status = chosen.create ? create(node, list, error) : apply_or_delete(node, list, error);

    json_decref(list);
    if (status == 0) {
        status = block_node_flush(node);
        if (status < 0) {
            block_error_errno(error, -status, "Could not write the image to storage");
        }
    }
    return status == 0 ? list_of_node(node, error) : NULL;
}

static json_t *run_on_file(const char *path, GError **error)
{
    const struct image_options how = {
        .format = chosen.format,
        .writable = verb(),
        .force_share = chosen.force_share,
        .without_backing = !chosen.apply,
        .can_share = !verb(),
        .served_command = chosen.apply ? NULL : "snapshot",
    };
    AUTO(block_node) node = image_open(path, &how, error);
    json_t *list = node ? list_of_node(node, error) : NULL;

    if (list && chosen.apply && tracking_give_up_left_over(path, error) < 0) {
        json_decref(list);
        return NULL;
    }
    return list && verb() ? change_node(node, list, error) : list;
}

/* ---- Of a disk of a server ------------------------------------------------------------------- */

static json_t *list_of_device(struct client *client, const char *device, GError **error)
{
    json_t *image = image_query(client, device, error);
    json_t *list = image ? json_object_get(image, "snapshots") : NULL;

    list = list ? json_incref(list) : image ? json_array() : NULL;
    json_decref(image);
    return list;
}

static json_t *delete_arguments(const char *device, const json_t *list, GError **error)
{
    const json_t *entry = find_or_error(list, chosen.delete, error);

    return entry ? json_pack("{s:s, s:s, s:s}", "device", device, "id",
                             member_text(entry, "id", ""), "name", member_text(entry, "name", ""))
                 : NULL;
}

/* A new list of what there is afterwards; NULL: error. Takes the reference. */
static json_t *change_device(struct client *client, const char *device, json_t *list,
                             GError **error)
{
    const char *command = chosen.create ? "blockdev-snapshot-internal-sync"
                                        : "blockdev-snapshot-delete-internal-sync";
    json_t *arguments = chosen.create
                            ? json_pack("{s:s, s:s}", "device", device, "name", chosen.create)
                            : delete_arguments(device, list, error);
    json_t *done =
        arguments ? client_call(client, command, arguments, CLIENT_WORK_TIMEOUT_MS, error) : NULL;

    json_decref(list);
    if (!done) {
        return NULL;
    }
    json_decref(done);
    return list_of_device(client, device, error);
}

static json_t *run_on_device(const struct invocation *invocation, const char *device,
                             GError **error)
{
    AUTO_CLIENT client = image_connect(invocation, device, error);
    json_t *list = client ? list_of_device(client, device, error) : NULL;

    return list && verb() ? change_device(client, device, list, error) : list;
}

/* ---- The command ----------------------------------------------------------------------------- */

static enum exit_status run_snapshot(const struct invocation *invocation, GError **error)
{
    if (!check_options(error)) {
        return EXIT_USAGE;
    }
    if (chosen.external) {
        return snapshot_external(invocation, chosen.external, error);
    }
    if (!check_arguments(invocation, 1, 1, "FILE or DEVICE", error)) {
        return EXIT_USAGE;
    }
    const char *name = invocation->arguments[0];
    bool is_served = image_is_served(invocation, name);
    if (is_served && !check_served_options(name, error)) {
        return EXIT_USAGE;
    }
    json_t *list = is_served ? run_on_device(invocation, name, error) : run_on_file(name, error);
    if (!list) {
        return EXIT_FAILED;
    }
    if (invocation->json) {
        print_json(json_incref(list));
    } else if (!verb()) {
        image_print_snapshots(list);
    }
    json_decref(list);
    return EXIT_OK;
}

const struct command snapshot_command = {
    .name = "snapshot",
    .summary = "List, take, apply or delete snapshots",
    .usage = "[OPTION...] FILE|DEVICE",
    .notes = "Snapshots are internal ones, kept in the image. A DEVICE is a disk of a running\n"
             "server, where no file has that name. NAME may be an ID, too. With --json the\n"
             "snapshots that there are afterwards are printed.\n"
             "\n"
             "With --external FILE the DEVICE goes on in FILE, a new image above the one it\n"
             "has now, which stays as it is. For several disks at one instant say --external\n"
             "DEVICE=FILE for each, and nothing else.\n",
    .flags = COMMAND_ADMIN | COMMAND_JSON,
    .options = snapshot_options,
    .words = snapshot_words,
    .shared = &image_option_group,
    .run = run_snapshot,
};
