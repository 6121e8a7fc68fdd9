/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk check and snapshot: images that nobody serves. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "block/image.h"
#include "cli/image.h"
#include "cli/output.h"

static struct {
    char *format;
    char *repair;
    gboolean force_share;
} chosen;

static const GOptionEntry check_options[] = {
    {"format", 'f', 0, G_OPTION_ARG_STRING, &chosen.format, "The image's format", "FORMAT"},
    {"repair", 'r', 0, G_OPTION_ARG_STRING, &chosen.repair, "Mend what is found: leaks, or all",
     "WHAT"},
    {"force-share", 'U', 0, G_OPTION_ARG_NONE, &chosen.force_share, "Also if somebody has it open",
     NULL},
    {NULL},
};
static const struct command_words check_words[] = {
    {"format", 0, "qcow2 raw"},
    {"repair", 0, "leaks all"},
    {NULL, 0, "@file"},
    {NULL},
};

static bool find_repair(unsigned *repair, GError **error)
{
    *repair = 0;
    if (!chosen.repair) {
        return true;
    }
    if (strcmp(chosen.repair, "leaks") && strcmp(chosen.repair, "all")) {
        usage_error(error, "--repair is leaks or all, not '%s'", chosen.repair);
        return false;
    }
    *repair =
        BLOCK_CHECK_REPAIR_LEAKS | (strcmp(chosen.repair, "all") ? 0 : BLOCK_CHECK_REPAIR_ERRORS);
    if (chosen.force_share) {
        usage_error(error, "An image that somebody has open cannot be repaired");
        return false;
    }
    return true;
}

static void print_result_json(const struct block_check_result *result, const char *path)
{
    json_t *findings = json_array();

    for (guint i = 0; i < result->findings->len; i++) {
        json_array_append_new(findings, json_string(g_ptr_array_index(result->findings, i)));
    }
    print_json(json_pack(
        "{s:s,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:I,s:o}", "filename", path,
        "corruptions", (json_int_t)result->corruptions, "leaks", (json_int_t)result->leaks,
        "check-errors", (json_int_t)result->check_errors, "corruptions-fixed",
        (json_int_t)result->corruptions_fixed, "leaks-fixed", (json_int_t)result->leaks_fixed,
        "clusters-lost", (json_int_t)result->clusters_lost, "findings-total",
        (json_int_t)result->finding_count, "total-clusters", (json_int_t)result->total_clusters,
        "allocated-clusters", (json_int_t)result->allocated_clusters, "fragmented-clusters",
        (json_int_t)result->fragmented_clusters, "compressed-clusters",
        (json_int_t)result->compressed_clusters, "image-end-offset",
        (json_int_t)result->image_end_offset, "findings", findings));
}

static void print_result(const struct block_check_result *result)
{
    for (guint i = 0; i < result->findings->len; i++) {
        printf("%s.\n", (const char *)g_ptr_array_index(result->findings, i));
    }
    if (result->finding_count > result->findings->len) {
        printf("And %" PRIu64 " more.\n", result->finding_count - result->findings->len);
    }
    if (result->clusters_lost) {
        printf("The data of %" PRIu64
               " clusters of the disk or its snapshots could not be found and "
               "is given up.\n",
               result->clusters_lost);
    }
    if (result->corruptions_fixed || result->leaks_fixed) {
        printf("Mended: %" PRIu64 " errors, %" PRIu64 " lost clusters.\n",
               result->corruptions_fixed, result->leaks_fixed);
    }
    if (result->corruptions || result->check_errors) {
        printf("%" PRIu64 " errors are in the image. Data may be corrupt, and writing may make it "
               "worse.\n",
               result->corruptions);
    }
    if (result->leaks) {
        printf("%" PRIu64 " clusters are lost: this wastes space, but does no harm to data.\n",
               result->leaks);
    }
    if (!result->corruptions && !result->leaks && !result->check_errors) {
        printf("No errors are in the image.\n");
    }
    printf("%" PRIu64 " of %" PRIu64 " clusters are allocated, %" PRIu64 " of them compressed.\n",
           result->allocated_clusters, result->total_clusters, result->compressed_clusters);
}

static enum exit_status run_check(const struct invocation *invocation, GError **error)
{
    g_autoptr(GPtrArray) findings = g_ptr_array_new_with_free_func(g_free);
    struct block_check_result result = {.findings = findings};
    struct image_progress progress = {.what = "checking"};
    unsigned repair;

    if (!check_arguments(invocation, 1, 1, "FILE", error) || !find_repair(&repair, error)) {
        return EXIT_USAGE;
    }
    const struct image_options how = {.format = chosen.format,
                                      .writable = repair,
                                      .force_share = chosen.force_share,
                                      .for_check = true};
    AUTO(block_node) node = image_open(invocation->arguments[0], &how, error);
    if (!node) {
        return EXIT_FAILED;
    }
    int status = block_node_check(node, repair, &result, image_progress_show, &progress, error);
    image_progress_end(&progress);
    if (status < 0) {
        return EXIT_FAILED;
    }
    if (invocation->json) {
        print_result_json(&result, invocation->arguments[0]);
    } else {
        print_result(&result);
    }
    return result.corruptions || result.check_errors ? EXIT_IMAGE_CORRUPT
           : result.leaks                            ? EXIT_IMAGE_LEAKS
                                                     : EXIT_OK;
}

const struct command check_command = {
    .name = "check",
    .summary = "Check an image for errors, and mend them",
    .usage = "[OPTION...] FILE",
    .notes = "Exits with 0 if the image is clean, 6 if it has errors, 7 if it only has lost\n"
             "clusters. An image that is being written cannot be checked.\n",
    .flags = COMMAND_JSON,
    .options = check_options,
    .words = check_words,
    .run = run_check,
};

/* ---- snapshot ------------------------------------------------------------------------------- */

static struct {
    char *format;
    char *create;
    char *apply;
    char *delete;
    gboolean list;
} snapshot;

static const GOptionEntry snapshot_options[] = {
    {"format", 'f', 0, G_OPTION_ARG_STRING, &snapshot.format, "The image's format", "FORMAT"},
    {"list", 'l', 0, G_OPTION_ARG_NONE, &snapshot.list, "Show what there is (default)", NULL},
    {"create", 'c', 0, G_OPTION_ARG_STRING, &snapshot.create, "Take one", "NAME"},
    {"apply", 'a', 0, G_OPTION_ARG_STRING, &snapshot.apply,
     "Go back to one; what the disk holds now is lost", "NAME"},
    {"delete", 'd', 0, G_OPTION_ARG_STRING, &snapshot.delete, "Delete one", "NAME"},
    {NULL},
};

static void print_list_json(const struct block_snapshot_info *list, size_t count)
{
    json_t *array = json_array();

    for (size_t i = 0; i < count; i++) {
        json_array_append_new(array, json_pack("{s:s,s:s,s:I,s:I,s:I}", "id", list[i].id, "name",
                                               list[i].name, "vm-state-size",
                                               (json_int_t)list[i].vm_state_size, "date-sec",
                                               (json_int_t)list[i].date_sec, "virtual-size",
                                               (json_int_t)list[i].length));
    }
    print_json(array);
}

static int list_snapshots(struct block_node *node, bool as_json, GError **error)
{
    static const char *const headings[] = {"ID", "NAME", ">DISK", ">VM STATE", "DATE", NULL};
    struct block_snapshot_info *list;
    size_t count;
    int status = block_node_snapshot_list(node, &list, &count, error);

    if (status < 0) {
        return status;
    }
    if (as_json) {
        print_list_json(list, count);
    } else if (count) {
        struct libscols_table *table = table_new(headings);

        for (size_t i = 0; i < count; i++) {
            g_autofree char *disk = format_size(list[i].length);
            g_autofree char *state = format_size(list[i].vm_state_size);
            g_autofree char *date = image_date(list[i].date_sec);

            table_add(table, (const char *const[]){list[i].id, list[i].name, disk, state, date});
        }
        table_print(table);
    }
    block_snapshot_list_free(list, count);
    return 0;
}

static enum exit_status run_snapshot(const struct invocation *invocation, GError **error)
{
    bool changes = snapshot.create || snapshot.apply || snapshot.delete;
    int status;

    if (!check_arguments(invocation, 1, 1, "FILE", error)) {
        return EXIT_USAGE;
    }
    if (!!snapshot.create + !!snapshot.apply + !!snapshot.delete + !!snapshot.list > 1) {
        return usage_error(error, "One of --list, --create, --apply and --delete at a time");
    }
    const struct image_options how = {
        .format = snapshot.format, .writable = changes, .without_backing = true};
    AUTO(block_node) node = image_open(invocation->arguments[0], &how, error);
    if (!node) {
        return EXIT_FAILED;
    }
    if (snapshot.create) {
        status = block_node_snapshot_create_now(node, snapshot.create, error);
    } else if (snapshot.apply) {
        status = block_node_snapshot_apply(node, snapshot.apply, error);
    } else if (snapshot.delete) {
        status = block_node_snapshot_delete(node, snapshot.delete, error);
    } else {
        status = list_snapshots(node, invocation->json, error);
    }
    return status == 0 ? EXIT_OK : EXIT_FAILED;
}

const struct command snapshot_command = {
    .name = "snapshot",
    .summary = "List, take, apply or delete internal snapshots of an image",
    .usage = "[OPTION...] FILE",
    .notes = "NAME may be an ID, too. Of a served disk, take one with 'liveblk qmp\n"
             "blockdev-snapshot-internal-sync device=vda name=NAME'.\n",
    .flags = COMMAND_JSON,
    .options = snapshot_options,
    .words = check_words,
    .run = run_snapshot,
};
