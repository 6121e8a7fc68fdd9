/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk info and map: what an image is, and where its data is. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "block/image-info.h"
#include "block/request.h"
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
static const struct command_words image_words[] = {
    {"format", 0, "qcow2 raw"},
    {NULL, 0, "@file"},
    {NULL},
};

static void print_size(const char *label, int64_t bytes)
{
    g_autofree char *size = format_size((uint64_t)bytes);

    printf("%s: %s (%" PRId64 " bytes)\n", label, size, bytes);
}

static void print_facts(const json_t *facts)
{
    const char *name;
    json_t *value;

    json_object_foreach ((json_t *)facts, name, value) {
        g_autofree char *number =
            json_is_integer(value)
                ? g_strdup_printf("%" JSON_INTEGER_FORMAT, json_integer_value(value))
                : NULL;

        printf("    %s: %s\n", name,
               number                  ? number
               : json_is_string(value) ? json_string_value(value)
               : json_is_true(value)   ? "true"
                                       : "false");
    }
}

static void print_snapshots(json_t *snapshots)
{
    static const char *const headings[] = {"ID", "NAME", ">VM STATE", "DATE", NULL};
    struct libscols_table *table;
    json_t *snapshot;
    size_t i;

    if (!json_array_size(snapshots)) {
        return;
    }
    printf("snapshots:\n");
    table = table_new(headings);
    json_array_foreach (snapshots, i, snapshot) {
        g_autofree char *state =
            format_size((uint64_t)member_integer(snapshot, "vm-state-size", 0));
        g_autofree char *date = image_date(member_integer(snapshot, "date-sec", 0));

        table_add(table, (const char *const[]){member_text(snapshot, "id", ""),
                                               member_text(snapshot, "name", ""), state, date});
    }
    table_print(table);
}

static void print_image(json_t *image)
{
    const char *backing = member_text(image, "backing-filename", NULL);
    json_t *specific = json_object_get(image, "format-specific");

    printf("image: %s\nformat: %s\n", member_text(image, "filename", ""),
           member_text(image, "format", ""));
    print_size("virtual size", member_integer(image, "virtual-size", 0));
    print_size("disk size", member_integer(image, "actual-size", 0));
    if (json_object_get(image, "cluster-size")) {
        printf("cluster size: %" PRId64 "\n", member_integer(image, "cluster-size", 0));
    }
    if (member_flag(image, "dirty-flag")) {
        printf("it was not closed cleanly\n");
    }
    if (backing) {
        printf("backing file: %s (format: %s)\n", backing,
               member_text(image, "backing-filename-format", "not said"));
    }
    print_snapshots(json_object_get(image, "snapshots"));
    if (specific) {
        printf("of the format:\n");
        print_facts(json_object_get(specific, "data"));
    }
}

static enum exit_status run_info(const struct invocation *invocation, GError **error)
{
    if (!check_arguments(invocation, 1, 1, "FILE", error)) {
        return EXIT_USAGE;
    }
    const struct image_options how = {
        .format = chosen.format,
        .force_share = chosen.force_share,
        .without_backing = !chosen.backing_chain,
    };
    AUTO(block_node) node = image_open(invocation->arguments[0], &how, error);
    json_t *list = json_array();
    for (struct block_node *layer = node; layer; layer = layer->backing) {
        json_array_append_new(list, block_image_info(layer, false));
    }
    json_t *image;
    size_t i;
    if (node && invocation->json) {
        print_json(json_incref(chosen.backing_chain ? list : json_array_get(list, 0)));
    } else {
        json_array_foreach (list, i, image) {
            printf("%s", i ? "\n" : "");
            print_image(image);
        }
    }
    json_decref(list);
    return node ? EXIT_OK : EXIT_FAILED;
}

const struct command info_command = {
    .name = "info",
    .summary = "Show what an image file is",
    .usage = "[OPTION...] FILE",
    .notes = "Of served disks 'liveblk status' tells.\n",
    .flags = COMMAND_JSON,
    .options = info_options,
    .words = image_words,
    .run = run_info,
};

/* ---- map ------------------------------------------------------------------------------------ */

static const GOptionEntry map_options[] = {
    {"format", 'f', 0, G_OPTION_ARG_STRING, &chosen.format, "The image's format", "FORMAT"},
    {"force-share", 'U', 0, G_OPTION_ARG_NONE, &chosen.force_share, "Also if somebody has it open",
     NULL},
    {NULL},
};

static bool is_alike(const struct block_extent *a, unsigned a_depth, const struct block_extent *b,
                     unsigned b_depth)
{
    return a->flags == b->flags && a_depth == b_depth &&
           (!(a->flags & BLOCK_STATUS_OFFSET_VALID) || b->host_offset == a->host_offset + a->bytes);
}

static void print_extent(const struct block_extent *extent, uint64_t offset, unsigned depth,
                         bool as_json)
{
    bool has_offset = extent->flags & BLOCK_STATUS_OFFSET_VALID && depth;
    bool is_data = extent->flags & BLOCK_STATUS_DATA;

    if (as_json) {
        json_t *object =
            json_pack("{s:I,s:I,s:I,s:b,s:b,s:b,s:b}", "start", (json_int_t)offset, "length",
                      (json_int_t)extent->bytes, "depth", (json_int_t)(depth ? depth - 1 : 0),
                      "present", depth != 0, "zero", extent->flags & BLOCK_STATUS_ZERO, "data",
                      is_data, "compressed", extent->flags & BLOCK_STATUS_COMPRESSED);

        if (has_offset) {
            json_object_set_new(object, "offset", json_integer((json_int_t)extent->host_offset));
        }
        print_json_line(object);
    } else if (is_data) {
        printf("%-18" PRIu64 " %-18" PRIu64 " %5u  ", offset, extent->bytes, depth - 1);
        if (has_offset) {
            printf("%" PRIu64 "\n", extent->host_offset);
        } else {
            printf("compressed\n");
        }
    }
}

static int print_map(struct block_node *node, bool as_json)
{
    uint64_t length = block_node_length(node), start = 0;
    struct block_extent extent = {0};
    unsigned depth = 0;

    while (start + extent.bytes < length) {
        struct block_extent next;
        unsigned next_depth;
        uint64_t at = start + extent.bytes;
        int status = block_node_block_status_chain(node, at, length - at, &next, &next_depth);

        if (status < 0) {
            return status;
        }
        if (extent.bytes && is_alike(&extent, depth, &next, next_depth)) {
            extent.bytes += next.bytes;
            continue;
        }
        if (extent.bytes) {
            print_extent(&extent, start, depth, as_json);
        }
        start = at;
        extent = next;
        depth = next_depth;
    }
    if (extent.bytes) {
        print_extent(&extent, start, depth, as_json);
    }
    return 0;
}

static enum exit_status run_map(const struct invocation *invocation, GError **error)
{
    if (!check_arguments(invocation, 1, 1, "FILE", error)) {
        return EXIT_USAGE;
    }
    const struct image_options how = {.format = chosen.format, .force_share = chosen.force_share};
    AUTO(block_node) node = image_open(invocation->arguments[0], &how, error);
    if (!node) {
        return EXIT_FAILED;
    }
    if (!invocation->json) {
        printf("%-18s %-18s %5s  %s\n", "OFFSET", "LENGTH", "DEPTH", "IN THE FILE AT");
    }
    int status = print_map(node, invocation->json);
    if (status < 0) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED, "Could not read the image's tables: %s",
                    g_strerror(-status));
        return EXIT_FAILED;
    }
    return EXIT_OK;
}

const struct command map_command = {
    .name = "map",
    .summary = "Show where an image's data is",
    .usage = "[OPTION...] FILE",
    .notes = "Lists what holds data; with --json, a line for every extent, zeroes too. DEPTH\n"
             "is 0 for the image itself, 1 for its backing file and so on.\n",
    .flags = COMMAND_JSON,
    .options = map_options,
    .words = image_words,
    .run = run_map,
};
