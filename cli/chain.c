/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk chain, and what else is to be known of chains. */
#include "cli/chain.h"

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "block/cleanup.h"
#include "cli/command.h"
#include "cli/output.h"
#include "cli/runtime.h"
#include "cli/verb.h"

/* ---- Asking for it --------------------------------------------------------------------------- */

static const json_t *find_by(const json_t *list, const char *member, const char *text)
{
    const json_t *entry;
    size_t i;

    json_array_foreach ((json_t *)list, i, entry) {
        if (text && !strcmp(member_text(entry, member, ""), text)) {
            return entry;
        }
    }
    return NULL;
}

/* The node that a parent has as its child of this name, or NULL. */
static const json_t *find_child(const json_t *nodes, const json_t *parent, const char *name)
{
    const json_t *child = find_by(json_object_get(parent, "children"), "child", name);

    return child ? find_by(nodes, "node-name", member_text(child, "node-name", NULL)) : NULL;
}

/* Where an image ends and its storage begins; all else that has a file is a filter. */
static bool is_format(const json_t *node)
{
    const char *driver = member_text(node, "drv", "");

    return !strcmp(driver, "qcow2") || !strcmp(driver, "raw");
}

static json_t *make_layer(const json_t *node)
{
    const json_t *image = json_object_get(node, "image");
    json_t *layer =
        json_pack("{s:s, s:s, s:s, s:I, s:b}", "node-name", member_text(node, "node-name", "?"),
                  "format", member_text(node, "drv", "?"), "file", member_text(node, "file", "?"),
                  "virtual-size", (json_int_t)member_integer(image, "virtual-size", 0), "read-only",
                  (int)member_flag(node, "ro"));

    if (json_object_get(image, "actual-size")) {
        json_object_set_new(layer, "actual-size",
                            json_integer(member_integer(image, "actual-size", 0)));
    }
    return layer;
}

/* The server is not trusted to have no circles: a chain has no more images than there are nodes. */
static json_t *list_layers(const json_t *nodes, const json_t *node)
{
    json_t *chain = json_array();

    for (size_t left = json_array_size(nodes); node && left; left--) {
        const json_t *file = find_child(nodes, node, "file");

        if (is_format(node) || !file) {
            json_array_append_new(chain, make_layer(node));
            node = find_child(nodes, node, "backing");
        } else {
            node = file;
        }
    }
    return chain;
}

static void unknown_disk(const json_t *devices, const char *disk, GError **error)
{
    g_autoptr(GString) names = g_string_new("");
    const json_t *device;
    size_t i;

    json_array_foreach ((json_t *)devices, i, device) {
        g_string_append_printf(names, "%s'%s'", i ? ", " : "", member_text(device, "device", "?"));
    }
    g_set_error(error, CLI_ERROR, EXIT_FAILED, "The server has no disk '%s'; it has %s", disk,
                names->len ? names->str : "none at all");
}

static json_t *chain_of(const json_t *devices, const json_t *nodes, const char *disk,
                        GError **error)
{
    const json_t *device = find_by(devices, "device", disk);
    const json_t *inserted = json_object_get(device, "inserted");
    const json_t *root =
        find_by(nodes, "node-name", device ? member_text(inserted, "node-name", NULL) : disk);

    if (!root) {
        unknown_disk(devices, disk, error);
        return NULL;
    }
    return list_layers(nodes, root);
}

json_t *chain_query(struct client *client, const char *disk, GError **error)
{
    json_t *devices = client_call(client, "query-block", NULL, CLIENT_QUERY_TIMEOUT_MS, error);
    json_t *nodes = devices
                        ? client_call(client, "query-named-block-nodes",
                                      json_pack("{s:b}", "flat", 1), CLIENT_QUERY_TIMEOUT_MS, error)
                        : NULL;
    json_t *chain = nodes ? chain_of(devices, nodes, disk, error) : NULL;

    json_decref(devices);
    json_decref(nodes);
    return chain;
}

/* ---- Finding an image in it ------------------------------------------------------------------ */

static bool is_same_file(const char *a, const char *b)
{
    struct stat first, second;

    return stat(a, &first) == 0 && stat(b, &second) == 0 && first.st_dev == second.st_dev &&
           first.st_ino == second.st_ino;
}

/* By any of the names that it has. */
static bool has_file(const json_t *layer, const char *word)
{
    const char *file = member_text(layer, "file", "");
    g_autofree char *path = g_canonicalize_filename(word, NULL);

    return !strcmp(file, word) || !strcmp(file, path) || is_same_file(file, word);
}

static void unknown_image(const json_t *chain, const char *disk, const char *image, GError **error)
{
    g_autoptr(GString) names = g_string_new("");
    const json_t *layer;
    size_t i;

    json_array_foreach ((json_t *)chain, i, layer) {
        g_string_append_printf(names, "%s'%s' (node:%s)", i ? ", " : "",
                               member_text(layer, "file", "?"),
                               member_text(layer, "node-name", "?"));
    }
    g_set_error(error, CLI_ERROR, EXIT_FAILED,
                "There is no image '%s' in the chain of '%s', which is, from the top: %s", image,
                disk, names->str);
}

const char *chain_find(const json_t *chain, const char *disk, const char *image, GError **error)
{
    bool is_node = g_str_has_prefix(image, "node:");
    const json_t *found = find_by(chain, "node-name", is_node ? image + strlen("node:") : image);
    const json_t *layer;
    size_t i;

    json_array_foreach ((json_t *)chain, i, layer) {
        if (is_node || !has_file(layer, image) || layer == found) {
            continue;
        }
        if (found) {
            g_set_error(error, CLI_ERROR, EXIT_FAILED,
                        "'%s' means more than one image in the chain of '%s': say 'node:%s' or "
                        "'node:%s'",
                        image, disk, member_text(found, "node-name", "?"),
                        member_text(layer, "node-name", "?"));
            return NULL;
        }
        found = layer;
    }
    if (!found) {
        unknown_image(chain, disk, image, error);
        return NULL;
    }
    return member_text(found, "node-name", "");
}

const char *chain_top_file(const json_t *chain)
{
    return member_text(json_array_get(chain, 0), "file", "?");
}

/* ---- The command ----------------------------------------------------------------------------- */

static void print_chain(const json_t *chain)
{
    static const char *const headings[] = {"NODE",   "FORMAT", ">SIZE", ">USED",
                                           "ACCESS", "FILE",   NULL};
    struct libscols_table *table = table_new(headings);
    const json_t *layer;
    size_t i;

    json_array_foreach ((json_t *)chain, i, layer) {
        int64_t allocated = member_integer(layer, "actual-size", -1);
        g_autofree char *size = format_size(MAX(member_integer(layer, "virtual-size", 0), 0));
        g_autofree char *used = allocated < 0 ? g_strdup("?") : format_size(allocated);
        const char *const cells[] = {member_text(layer, "node-name", "?"),
                                     member_text(layer, "format", "?"),
                                     size,
                                     used,
                                     member_flag(layer, "read-only") ? "ro" : "rw",
                                     member_text(layer, "file", "?")};
        table_add(table, cells);
    }
    table_print(table);
}

static enum exit_status run(const struct invocation *invocation, GError **error)
{
    if (!check_arguments(invocation, 1, 1, "the disk's name", error)) {
        return EXIT_USAGE;
    }
    AUTO_CLIENT client = connect_to_server(invocation, error);
    json_t *chain = client ? chain_query(client, invocation->arguments[0], error) : NULL;
    return verb_show(invocation, chain, print_chain);
}

static const struct command_words words[] = {
    {NULL, 0, "@device"},
    {NULL},
};

const struct command chain_command = {
    .name = "chain",
    .summary = "Show a disk's image and its backing files",
    .usage = "[OPTION...] DEVICE",
    .notes = "The image that the guest writes to comes first, and its backing file next. Other\n"
             "commands take an image's FILE or its node, as node:NODE.\n",
    .flags = COMMAND_ADMIN | COMMAND_JSON,
    .words = words,
    .run = run,
};
