/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk create and resize: new images, and other lengths. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "block/gate.h"
#include "cli/image.h"
#include "cli/output.h"

static struct {
    char *format;
    char *backing;
    char *backing_format;
    char **options;
} chosen;

static const GOptionEntry create_options[] = {
    {"format", 'f', 0, G_OPTION_ARG_STRING, &chosen.format, "qcow2 (default) or raw", "FORMAT"},
    {"backing", 'b', 0, G_OPTION_ARG_FILENAME, &chosen.backing,
     "What the new image starts with: a backing file", "FILE"},
    {"backing-format", 'F', 0, G_OPTION_ARG_STRING, &chosen.backing_format,
     "The backing file's format", "FORMAT"},
    {"option", 'o', 0, G_OPTION_ARG_STRING_ARRAY, &chosen.options,
     "As in blockdev-create: cluster-size=4k,...", "NAME=VALUE"},
    {NULL},
};
static const struct command_words create_words[] = {
    {"format", 0, "qcow2 raw"},
    {"backing", 0, "@file"},
    {"backing-format", 0, "qcow2 raw"},
    {NULL, 0, "@file"},
    {NULL},
};

/* NAME=VALUE,... given once or more; qemu-img's underscores are dashes here. */
static bool take_options(struct block_options *options, GError **error)
{
    for (char **text = chosen.options; text && *text; text++) {
        AUTO(block_options) parsed = block_options_parse(*text, NULL, error);
        char **keys = parsed ? block_options_keys(parsed) : NULL;

        if (!parsed) {
            return false;
        }
        for (char **key = keys; *key; key++) {
            g_autofree char *name = g_strdelimit(g_strdup(*key), "_", '-');

            block_options_set(options, name, block_options_get(parsed, *key));
        }
        g_strfreev(keys);
    }
    return true;
}

/* The length of the backing file, as it is found from the new image's directory. */
static bool backing_length(const char *path, int64_t *bytes, GError **error)
{
    AUTO(block_options) how = NULL;

    image_init();
    if (block_reference_options(path, chosen.backing, chosen.backing_format, &how, error) < 0) {
        return false;
    }
    block_options_set(how, "read-only", "on");
    AUTO(block_node) node = block_node_open(how, true, error);
    if (node) {
        *bytes = (int64_t)block_node_length(node);
    }
    return node;
}

static bool find_size(const struct invocation *invocation, int64_t *bytes, GError **error)
{
    const char *path = invocation->arguments[0], *size = invocation->arguments[1];

    if (size && !parse_size(size, bytes)) {
        usage_error(error, "'%s' is not a size", size);
        return false;
    }
    if (!size && !chosen.backing) {
        usage_error(error, "Without a backing file the new image needs a size: FILE SIZE");
        return false;
    }
    return size || backing_length(path, bytes, error);
}

static int create_file(const char *path, int64_t bytes, GError **error)
{
    AUTO(block_options) file = block_options_new();
    g_autofree char *size = g_strdup_printf("%" PRId64, bytes);

    block_options_set(file, "driver", "file");
    block_options_set(file, "filename", path);
    block_options_set(file, "size", size);
    return block_create(file, NULL, NULL, error);
}

static int create_image(const char *path, int64_t bytes, GError **error)
{
    struct image_progress progress = {.what = "creating"};
    AUTO(block_options) options = block_options_new();
    g_autofree char *size = g_strdup_printf("%" PRId64, bytes);

    block_options_set(options, "driver", chosen.format);
    block_options_set(options, "size", size);
    block_options_set(options, "file.driver", "file");
    block_options_set(options, "file.filename", path);
    if (chosen.backing) {
        block_options_set(options, "backing-file", chosen.backing);
        block_options_set(options, "backing-fmt", chosen.backing_format);
    }
    if (!take_options(options, error) || create_file(path, 0, error) < 0) {
        return -EINVAL;
    }
    int status = block_create(options, image_progress_show, &progress, error);
    image_progress_end(&progress);
    return status;
}

static enum exit_status run_create(const struct invocation *invocation, GError **error)
{
    int64_t bytes = 0;

    if (!check_arguments(invocation, 1, 2, "FILE [SIZE]", error)) {
        return EXIT_USAGE;
    }
    const char *path = invocation->arguments[0];
    if (!chosen.format) {
        chosen.format = g_strdup("qcow2");
    }
    if (chosen.backing && !chosen.backing_format) {
        return usage_error(error, "A backing file needs its format: --backing-format raw or qcow2");
    }
    if (chosen.backing && !strcmp(chosen.format, "raw")) {
        return usage_error(error, "A raw image has no backing file");
    }
    if (!find_size(invocation, &bytes, error)) {
        return (*error)->domain == CLI_ERROR ? EXIT_USAGE : EXIT_FAILED;
    }
    image_init();
    int status = strcmp(chosen.format, "raw") ? create_image(path, bytes, error)
                                              : create_file(path, bytes, error);
    if (status == 0 && invocation->json) {
        print_json_line(json_pack("{s:s,s:s,s:I}", "filename", path, "format", chosen.format,
                                  "virtual-size", (json_int_t)bytes));
    }
    return status == 0 ? EXIT_OK : EXIT_FAILED;
}

const struct command create_command = {
    .name = "create",
    .summary = "Make a new image",
    .usage = "[OPTION...] FILE [SIZE]",
    .notes = "SIZE is a number of bytes, or with K, M, G, T; that of the backing file if it is\n"
             "left out. What is in FILE is lost.\n",
    .flags = COMMAND_JSON,
    .options = create_options,
    .words = create_words,
    .run = run_create,
};

/* ---- resize --------------------------------------------------------------------------------- */

static struct {
    char *format;
    char *preallocation;
    gboolean shrink;
} resizing;

static const GOptionEntry resize_options[] = {
    {"format", 'f', 0, G_OPTION_ARG_STRING, &resizing.format, "The image's format", "FORMAT"},
    {"preallocation", 0, 0, G_OPTION_ARG_STRING, &resizing.preallocation,
     "off, metadata, falloc or full", "MODE"},
    {"shrink", 0, 0, G_OPTION_ARG_NONE, &resizing.shrink, "Lose what is behind the new end", NULL},
    {NULL},
};
static const struct command_words resize_words[] = {
    {"format", 0, "qcow2 raw"},
    {"preallocation", 0, "off metadata falloc full"},
    {NULL, 0, "@file"},
    {NULL},
};

static bool find_mode(enum block_preallocation *mode, GError **error)
{
    *mode = BLOCK_PREALLOCATION_OFF;
    for (unsigned i = 0; resizing.preallocation && block_preallocation_names[i]; i++) {
        if (!strcmp(block_preallocation_names[i], resizing.preallocation)) {
            *mode = (enum block_preallocation)i;
            return true;
        }
    }
    if (resizing.preallocation) {
        usage_error(error, "--preallocation is off, metadata, falloc or full, not '%s'",
                    resizing.preallocation);
    }
    return !resizing.preallocation;
}

/* "10G", "+1G", "-512M". */
static bool find_length(const char *text, uint64_t now, uint64_t *length, GError **error)
{
    bool is_more = *text == '+', is_less = *text == '-';
    int64_t bytes;

    if (!parse_size(text + (is_more || is_less), &bytes) || (is_less && (uint64_t)bytes > now) ||
        (is_more && (uint64_t)bytes > INT64_MAX - now)) {
        usage_error(error, "'%s' is no size that the image could have", text);
        return false;
    }
    *length = is_more ? now + (uint64_t)bytes : is_less ? now - (uint64_t)bytes : (uint64_t)bytes;
    return true;
}

static enum exit_status run_resize(const struct invocation *invocation, GError **error)
{
    enum block_preallocation mode;
    uint64_t length;

    if (!check_arguments(invocation, 2, 2, "FILE SIZE", error) || !find_mode(&mode, error)) {
        return EXIT_USAGE;
    }
    const struct image_options how = {.format = resizing.format, .writable = true};
    AUTO(block_node) node = image_open(invocation->arguments[0], &how, error);
    if (!node) {
        return EXIT_FAILED;
    }
    uint64_t now = block_node_length(node);
    if (!find_length(invocation->arguments[1], now, &length, error)) {
        return EXIT_USAGE;
    }
    if (length < now && !resizing.shrink) {
        return usage_error(error, "The image would become shorter and lose data; --shrink says "
                                  "that this is wanted");
    }
    if (block_node_set_length(node, length, mode, error) < 0) {
        return EXIT_FAILED;
    }
    if (invocation->json) {
        print_json_line(json_pack("{s:s,s:I}", "filename", invocation->arguments[0], "virtual-size",
                                  (json_int_t)length));
    }
    return EXIT_OK;
}

const struct command resize_command = {
    .name = "resize",
    .summary = "Make an image longer or shorter",
    .usage = "[OPTION...] FILE [+|-]SIZE",
    .notes = "A served disk is resized by 'liveblk qmp block_resize device=vda size=BYTES'.\n",
    .flags = COMMAND_JSON,
    .options = resize_options,
    .words = resize_words,
    .run = run_resize,
};
