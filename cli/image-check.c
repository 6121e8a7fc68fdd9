/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk check: whether an image agrees with itself, and mending it. */
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

static void print_result_json(const struct block_check_result *result, const char *path,
                              const char *format)
{
    json_t *findings = json_array();

    for (guint i = 0; i < result->findings->len; i++) {
        g_autofree char *text = g_utf8_make_valid(g_ptr_array_index(result->findings, i), -1);

        json_array_append_new(findings, json_string(text));
    }
    print_json(json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o}", "filename",
        path, "format", format, "corruptions", (json_int_t)result->corruptions, "leaks",
        (json_int_t)result->leaks, "check-errors", (json_int_t)result->check_errors,
        "corruptions-fixed", (json_int_t)result->corruptions_fixed, "leaks-fixed",
        (json_int_t)result->leaks_fixed, "clusters-lost", (json_int_t)result->clusters_lost,
        "findings-total", (json_int_t)result->finding_count, "total-clusters",
        (json_int_t)result->total_clusters, "allocated-clusters",
        (json_int_t)result->allocated_clusters, "fragmented-clusters",
        (json_int_t)result->fragmented_clusters, "compressed-clusters",
        (json_int_t)result->compressed_clusters, "image-end-offset",
        (json_int_t)result->image_end_offset, "findings", findings));
}

static const char *plural(uint64_t count, const char *one, const char *many)
{
    return count == 1 ? one : many;
}

static void print_verdict(const struct block_check_result *result)
{
    if (result->corruptions) {
        printf("%" PRIu64 " %s in the image. Data may be corrupt, and writing may make it worse.\n",
               result->corruptions, plural(result->corruptions, "error is", "errors are"));
    }
    if (result->leaks) {
        printf("%" PRIu64 " %s lost: this wastes space, but does no harm to data.\n", result->leaks,
               plural(result->leaks, "cluster is", "clusters are"));
    }
    if (result->check_errors) {
        printf("Not all of the image could be checked.\n");
    } else if (!result->corruptions && !result->leaks) {
        printf("No errors are in the image.\n");
    }
}

static double percent(uint64_t part, uint64_t whole)
{
    return whole ? 100.0 * (double)part / (double)whole : 0;
}

static void print_result(const struct block_check_result *result)
{
    for (guint i = 0; i < result->findings->len; i++) {
        g_autofree char *text = printable(g_ptr_array_index(result->findings, i));

        printf("%s.\n", text);
    }
    if (result->finding_count > result->findings->len) {
        printf("And %" PRIu64 " more.\n", result->finding_count - result->findings->len);
    }
    if (result->clusters_lost) {
        printf("The data of %" PRIu64
               " %s of the disk or its snapshots could not be found and is given up.\n",
               result->clusters_lost, plural(result->clusters_lost, "cluster", "clusters"));
    }
    if (result->corruptions_fixed || result->leaks_fixed) {
        printf("Mended: %" PRIu64 " %s, %" PRIu64 " lost %s.\n", result->corruptions_fixed,
               plural(result->corruptions_fixed, "error", "errors"), result->leaks_fixed,
               plural(result->leaks_fixed, "cluster", "clusters"));
    }
    print_verdict(result);
    printf("Of %" PRIu64 " clusters %" PRIu64 " are allocated (%.2f %%), of these %" PRIu64
           " fragmented and %" PRIu64 " compressed.\n"
           "The image ends at byte %" PRIu64 " of its file.\n",
           result->total_clusters, result->allocated_clusters,
           percent(result->allocated_clusters, result->total_clusters), result->fragmented_clusters,
           result->compressed_clusters, result->image_end_offset);
}

static enum exit_status verdict(const struct block_check_result *result)
{
    return result->check_errors  ? EXIT_FAILED
           : result->corruptions ? EXIT_CHECK_CORRUPT
           : result->leaks       ? EXIT_CHECK_LEAKS
                                 : EXIT_OK;
}

static enum exit_status check_node(struct block_node *node, const char *path, unsigned repair,
                                   bool as_json, GError **error)
{
    g_autoptr(GPtrArray) findings = g_ptr_array_new_with_free_func(g_free);
    struct block_check_result result = {.findings = findings};
    struct image_progress progress = {.what = "checking", .in_steps = true};

    image_progress_begin(&progress);
    int status = block_node_check(node, repair, &result, image_progress_show, &progress, error);
    image_progress_end(&progress);
    if (status < 0) {
        return EXIT_FAILED;
    }
    if (as_json) {
        print_result_json(&result, path, node->driver->name);
    } else {
        print_result(&result);
    }
    return verdict(&result);
}

static enum exit_status run_check(const struct invocation *invocation, GError **error)
{
    unsigned repair;

    if (!check_arguments(invocation, 1, 1, "FILE", error) || !find_repair(&repair, error)) {
        return EXIT_USAGE;
    }
    const char *path = invocation->arguments[0];
    const struct image_options how = {
        .format = chosen.format,
        .writable = repair,
        .force_share = chosen.force_share,
        .for_check = true,
        .can_share = !repair,
    };
    AUTO(block_node) node = image_open(path, &how, error);
    return node ? check_node(node, path, repair, invocation->json, error) : EXIT_FAILED;
}

const struct command check_command = {
    .name = "check",
    .summary = "Check an image for errors, and mend them",
    .usage = "[OPTION...] FILE",
    .notes = "Exits with 0 if nothing is wrong, 2 if the image has errors, 3 if it only has\n"
             "lost clusters, 1 if it could not be checked. With --repair, what is left counts.\n"
             "An image that somebody writes cannot be checked.\n",
    .flags = COMMAND_JSON | COMMAND_CHECKS,
    .options = check_options,
    .words = check_words,
    .shared = &image_option_group,
    .run = run_check,
};
