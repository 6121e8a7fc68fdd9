/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk map: where an image's data is. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "block/request.h"
#include "cli/image.h"
#include "cli/output.h"

static struct {
    char *format;
    gboolean force_share;
} chosen;

static const GOptionEntry map_options[] = {
    {"format", 'f', 0, G_OPTION_ARG_STRING, &chosen.format, "The image's format", "FORMAT"},
    {"force-share", 'U', 0, G_OPTION_ARG_NONE, &chosen.force_share, "Also if somebody has it open",
     NULL},
    {NULL},
};
static const struct command_words map_words[] = {
    {"format", 0, "qcow2 raw"},
    {NULL, 0, "@file"},
    {NULL},
};

/* Consecutive bytes of the disk of which the same is true. */
struct run {
    uint64_t start;
    struct block_extent extent;
    struct block_node *layer; /* that has it, or the last one that was asked */
    unsigned depth;           /* of the layer; 0: the image itself */
    bool is_present;          /* the layer does have it */
};

/* Where such an image has nothing, another may. */
static bool takes_backing(const struct block_node *node)
{
    for (const struct block_option *option = node->driver->options; option && option->name;
         option++) {
        if (!strcmp(option->name, "backing")) {
            return true;
        }
    }
    return false;
}

/* The layer that a depth means; or where no layer has the byte, the last that reaches it. */
static void find_layer(struct run *run, struct block_node *node, unsigned depth)
{
    run->depth = 0;
    run->layer = block_node_below_filters(node);
    for (struct block_node *next = run->layer->backing;
         next && (depth ? run->depth + 1 < depth : block_node_length(next) > run->start);
         next = run->layer->backing) {
        run->layer = block_node_below_filters(next);
        run->depth++;
    }
    run->is_present = depth || !takes_backing(run->layer);
}

static int find_run(struct block_node *node, uint64_t start, struct run *run)
{
    unsigned depth;

    run->start = start;
    int status = block_node_block_status_chain(node, start, block_node_length(node) - start,
                                               &run->extent, &depth);
    if (status == 0) {
        find_layer(run, node, depth);
    }
    return status;
}

static bool has_offset(const struct run *run)
{
    return run->extent.flags & BLOCK_STATUS_OFFSET_VALID && run->is_present;
}

static bool goes_on(const struct run *run, const struct run *next)
{
    return run->extent.flags == next->extent.flags && run->layer == next->layer &&
           run->is_present == next->is_present &&
           (!has_offset(run) ||
            next->extent.host_offset == run->extent.host_offset + run->extent.bytes);
}

/* ---- Printing -------------------------------------------------------------------------------- */

static void print_run_json(const struct run *run, bool is_first)
{
    unsigned flags = run->extent.flags;
    json_t *object =
        json_pack("{s:I, s:I, s:I, s:b, s:b, s:b, s:b}", "start", (json_int_t)run->start, "length",
                  (json_int_t)run->extent.bytes, "depth", (json_int_t)run->depth, "present",
                  run->is_present, "zero", flags & BLOCK_STATUS_ZERO, "data",
                  flags & BLOCK_STATUS_DATA, "compressed", flags & BLOCK_STATUS_COMPRESSED);

    if (has_offset(run)) {
        json_object_set_new(object, "offset", json_integer((json_int_t)run->extent.host_offset));
    }
    char *text = json_dumps(object, 0);
    printf("%s%s", is_first ? "[" : ",\n", text);
    free(text);
    json_decref(object);
}

/* Only what holds data. */
static void print_run_text(const struct run *run)
{
    struct block_node *host = has_offset(run) ? run->extent.host_node : run->layer;
    g_autofree char *filename = block_node_get_filename(host);
    g_autofree char *shown = printable(filename);
    g_autofree char *place = has_offset(run)
                                 ? g_strdup_printf("0x%" PRIx64, run->extent.host_offset)
                                 : g_strdup("compressed");

    if (run->extent.flags & BLOCK_STATUS_DATA) {
        printf("0x%-16" PRIx64 " 0x%-16" PRIx64 " %-18s %s\n", run->start, run->extent.bytes, place,
               shown);
    }
}

static void print_run(const struct run *run, bool as_json)
{
    if (as_json) {
        print_run_json(run, run->start == 0);
    } else {
        print_run_text(run);
    }
}

static int print_runs(struct block_node *node, bool as_json)
{
    uint64_t length = block_node_length(node);
    struct run run = {0}, next;
    int status = length ? find_run(node, 0, &run) : 0;

    while (status == 0 && run.start + run.extent.bytes < length) {
        status = find_run(node, run.start + run.extent.bytes, &next);
        if (status == 0 && goes_on(&run, &next)) {
            run.extent.bytes += next.extent.bytes;
        } else if (status == 0) {
            print_run(&run, as_json);
            run = next;
        }
    }
    if (status == 0 && length) {
        print_run(&run, as_json);
    }
    return status;
}

/* ---- The command ----------------------------------------------------------------------------- */

static int print_map(struct block_node *node, bool as_json)
{
    if (!as_json) {
        printf("%-18s %-18s %-18s %s\n", "OFFSET", "LENGTH", "MAPPED TO", "FILE");
        return print_runs(node, false);
    }
    int status = print_runs(node, true);
    /* What was printed before an error is no JSON, so that nobody takes it for the whole. */
    if (status == 0) {
        printf("%s]\n", block_node_length(node) ? "" : "[");
    }
    return status;
}

static enum exit_status run_map(const struct invocation *invocation, GError **error)
{
    if (!check_arguments(invocation, 1, 1, "FILE", error)) {
        return EXIT_USAGE;
    }
    const struct image_options how = {
        .format = chosen.format, .force_share = chosen.force_share, .can_share = true};
    AUTO(block_node) node = image_open(invocation->arguments[0], &how, error);
    int status = node ? print_map(node, invocation->json) : -EINVAL;
    if (node && status < 0) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED,
                    "Could not find out where the data of '%s' is: "
                    "%s",
                    invocation->arguments[0], g_strerror(-status));
    }
    return status < 0 ? EXIT_FAILED : EXIT_OK;
}

const struct command map_command = {
    .name = "map",
    .summary = "Show where an image's data is",
    .usage = "[OPTION...] FILE",
    .notes = "Lists what holds data, in the image or its backing files; with --json all of the\n"
             "disk, as qemu-img map does. Of one that is served, 'nbdinfo --map URI' tells.\n",
    .flags = COMMAND_JSON,
    .options = map_options,
    .words = map_words,
    .shared = &image_option_group,
    .run = run_map,
};
