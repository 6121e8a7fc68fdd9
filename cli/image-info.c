/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk info: what an image is. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "block/image-info.h"
#include "cli/image.h"
#include "cli/output.h"

static struct {
    char *format;
    gboolean backing_chain;
    gboolean force_share;
} chosen;

static const GOptionEntry info_options[] = {
    {"format", 'f', 0, G_OPTION_ARG_STRING, &chosen.format, "The image's format", "FORMAT"},
    {"backing-chain", 0, 0, G_OPTION_ARG_NONE, &chosen.backing_chain, "Its backing files, too",
     NULL},
    {"force-share", 'U', 0, G_OPTION_ARG_NONE, &chosen.force_share, "Also if somebody has it open",
     NULL},
    {NULL},
};
static const struct command_words info_words[] = {
    {"format", 0, "qcow2 raw"},
    {NULL, 0, "@image"},
    {NULL},
};

/* ---- For people ------------------------------------------------------------------------------ */

static void print_text(const char *label, const char *text)
{
    g_autofree char *shown = printable(text);

    printf("%s: %s\n", label, shown);
}

static void print_size(const char *label, int64_t bytes)
{
    g_autofree char *size = format_size((uint64_t)bytes);

    printf("%s: %s (%" PRId64 " bytes)\n", label, size, bytes);
}

static void print_backing(const json_t *image)
{
    const char *name = member_text(image, "backing-filename", NULL);
    const char *full = member_text(image, "full-backing-filename", NULL);
    const char *format = member_text(image, "backing-filename-format", NULL);

    if (!name) {
        return;
    }
    print_text("backing file", name);
    if (full && strcmp(full, name)) {
        print_text("  which is here", full);
    }
    if (format) {
        print_text("backing file format", format);
    }
}

static void print_bitmaps(const json_t *bitmaps)
{
    const json_t *bitmap, *flag;
    size_t i, j;

    json_array_foreach ((json_t *)bitmaps, i, bitmap) {
        g_autofree char *name = printable(member_text(bitmap, "name", "?"));

        printf("    bitmap: %s, granularity %" PRId64, name,
               member_integer(bitmap, "granularity", 0));
        json_array_foreach (json_object_get(bitmap, "flags"), j, flag) {
            g_autofree char *text = printable(json_string_value(flag));

            printf(", %s", text);
        }
        printf("\n");
    }
}

/* The facts that only this format has. */
static void print_facts(const json_t *facts)
{
    const char *name;
    json_t *value;

    json_object_foreach ((json_t *)facts, name, value) {
        g_autofree char *label = g_strdup_printf("    %s", name);

        if (json_is_string(value)) {
            print_text(label, json_string_value(value));
        } else if (json_is_integer(value)) {
            printf("%s: %" JSON_INTEGER_FORMAT "\n", label, json_integer_value(value));
        } else if (json_is_boolean(value)) {
            printf("%s: %s\n", label, json_is_true(value) ? "true" : "false");
        }
    }
    print_bitmaps(json_object_get(facts, "bitmaps"));
}

static void print_image(const json_t *image)
{
    const json_t *specific = json_object_get(image, "format-specific");

    print_text("image", member_text(image, "filename", "?"));
    print_text("format", member_text(image, "format", "?"));
    print_size("virtual size", member_integer(image, "virtual-size", 0));
    if (json_object_get(image, "actual-size")) {
        print_size("disk size", member_integer(image, "actual-size", 0));
    }
    if (json_object_get(image, "cluster-size")) {
        printf("cluster size: %" PRId64 "\n", member_integer(image, "cluster-size", 0));
    }
    if (member_flag(image, "dirty-flag")) {
        printf("cleanly closed: no\n");
    }
    print_backing(image);
    if (json_object_get(image, "snapshots")) {
        printf("snapshots:\n");
        image_print_snapshots(json_object_get(image, "snapshots"));
    }
    if (specific) {
        printf("specific to the format:\n");
        print_facts(json_object_get(specific, "data"));
    }
}

/* ---- The command ----------------------------------------------------------------------------- */

static json_t *query_file(const char *path, GError **error)
{
    const struct image_options how = {
        .format = chosen.format,
        .force_share = chosen.force_share,
        .without_backing = !chosen.backing_chain,
        .can_share = true,
        .served_command = "info",
    };
    AUTO(block_node) node = image_open(path, &how, error);

    return node ? block_image_info(node, true) : NULL;
}

static json_t *query_served(const struct invocation *invocation, const char *device, GError **error)
{
    AUTO_CLIENT client = image_connect(invocation, device, error);

    return client ? image_query(client, device, error) : NULL;
}

/* What is nested becomes a list: the image, its backing file, and so on. Takes the reference. */
static json_t *list_chain(json_t *image)
{
    json_t *list = json_array();

    while (image) {
        json_t *backing = json_incref(json_object_get(image, "backing-image"));

        json_object_del(image, "backing-image");
        json_array_append_new(list, image);
        image = backing;
    }
    return list;
}

static void print_chain(const json_t *list)
{
    const json_t *image;
    size_t i;

    json_array_foreach ((json_t *)list, i, image) {
        if (i == 0 || chosen.backing_chain) {
            printf("%s", i ? "\n" : "");
            print_image(image);
        }
    }
}

static enum exit_status run_info(const struct invocation *invocation, GError **error)
{
    if (!check_arguments(invocation, 1, 1, "FILE or DEVICE", error)) {
        return EXIT_USAGE;
    }
    const char *name = invocation->arguments[0];
    bool is_served = image_is_served(invocation, name);
    if (is_served && (chosen.format || chosen.force_share)) {
        return usage_error(error,
                           "There is no file '%s', and --format and --force-share are not "
                           "for disks of a server",
                           name);
    }
    json_t *image = is_served ? query_served(invocation, name, error) : query_file(name, error);
    if (!image) {
        return EXIT_FAILED;
    }
    json_t *list = list_chain(image);
    if (invocation->json) {
        print_json(json_incref(chosen.backing_chain ? list : json_array_get(list, 0)));
    } else {
        print_chain(list);
    }
    json_decref(list);
    return EXIT_OK;
}

const struct command info_command = {
    .name = "info",
    .summary = "Show what an image, or a disk of a server, is",
    .usage = "[OPTION...] FILE|DEVICE",
    .notes = "A DEVICE is a disk of a running server, where no file has that name.\n",
    .flags = COMMAND_ADMIN | COMMAND_JSON,
    .options = info_options,
    .words = info_words,
    .shared = &image_option_group,
    .run = run_info,
};
