/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk amend: change what an image is, not what the disk holds. */
#include "block/image.h"
#include "cli/image-options.h"
#include "cli/image.h"
#include "cli/output.h"

static struct {
    char *format;
    char **options;
} chosen;

static const GOptionEntry amend_options[] = {
    {"format", 'f', 0, G_OPTION_ARG_STRING, &chosen.format, "The image's format", "FORMAT"},
    {"option", 'o', 0, G_OPTION_ARG_STRING_ARRAY, &chosen.options,
     "What is to change; may be repeated", "NAME=VALUE,..."},
    {NULL},
};
static const struct command_words amend_words[] = {
    {"format", 0, "qcow2"},
    {"option", 0,
     "compat=0.10 compat=1.1 lazy_refcounts=on lazy_refcounts=off refcount_bits= backing_file= "
     "backing_fmt= data_file= data_file_raw=off"},
    {NULL, 0, "@file"},
    {NULL},
};

static enum exit_status amend(const char *path, GError **error)
{
    struct image_progress progress = {.what = "changing", .in_steps = true};
    /* A backing file that is not there can be changed for one that is. */
    const struct image_options how = {
        .format = chosen.format, .writable = true, .without_backing = true};
    AUTO(block_node) node = image_open(path, &how, error);
    g_autoptr(GError) problem = NULL;

    if (!node) {
        return EXIT_FAILED;
    }
    AUTO(block_options) amendments =
        amendments_new(node->driver, (const char *const *)chosen.options, &problem);
    if (!amendments) {
        return usage_error(error, "%s", problem->message);
    }
    image_progress_begin(&progress);
    int status = block_node_amend(node, amendments, image_progress_show, &progress, error);
    image_progress_end(&progress);
    return status < 0 ? EXIT_FAILED : EXIT_OK;
}

static enum exit_status run_amend(const struct invocation *invocation, GError **error)
{
    if (!check_arguments(invocation, 1, 1, "FILE", error)) {
        return EXIT_USAGE;
    }
    if (!chosen.options) {
        return usage_error(error, "What is to change? Name it with --option");
    }
    return amend(invocation->arguments[0], error);
}

const struct command amend_command = {
    .name = "amend",
    .summary = "Change the options of an image",
    .usage = "--option NAME=VALUE,... FILE",
    .notes = "Of qcow2 images: compat (0.10 or 1.1), lazy_refcounts, refcount_bits, data_file,\n"
             "data_file_raw=off, and backing_file and backing_fmt, which are recorded only:\n"
             "the new file has to hold what the old one did.\n",
    .options = amend_options,
    .words = amend_words,
    .shared = &image_option_group,
    .run = run_amend,
};
