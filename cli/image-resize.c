/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk resize: images, and disks of a server, of another length. */
#include <stdio.h>
#include <string.h>

#include "block/tracking-inspect.h"
#include "cli/image.h"
#include "cli/output.h"

static struct {
    char *format;
    char *preallocation;
    gboolean shrink;
} chosen;

static const GOptionEntry resize_options[] = {
    {"format", 'f', 0, G_OPTION_ARG_STRING, &chosen.format, "The image's format", "FORMAT"},
    {"preallocation", 0, 0, G_OPTION_ARG_STRING, &chosen.preallocation,
     "Of what is new: off, metadata, falloc or full", "MODE"},
    {"shrink", 0, 0, G_OPTION_ARG_NONE, &chosen.shrink, "Lose what is behind the new end", NULL},
    {NULL},
};
static const struct command_words resize_words[] = {
    {"format", 0, "qcow2 raw"},
    {"preallocation", 0, "off metadata falloc full"},
    {NULL, 0, "@image"},
    {NULL},
};

static bool find_mode(enum block_preallocation *mode, GError **error)
{
    *mode = BLOCK_PREALLOCATION_OFF;
    for (unsigned i = 0; chosen.preallocation && block_preallocation_names[i]; i++) {
        if (!strcmp(block_preallocation_names[i], chosen.preallocation)) {
            *mode = (enum block_preallocation)i;
            return true;
        }
    }
    if (chosen.preallocation) {
        usage_error(error, "--preallocation is off, metadata, falloc or full, not '%s'",
                    chosen.preallocation);
    }
    return !chosen.preallocation;
}

/* "10G", "+1G", "-512M", for what has this length now. */
static bool find_length(const char *text, uint64_t now, uint64_t *length, GError **error)
{
    if (!parse_length(text, now, length)) {
        usage_error(error, "'%s' is no size that a disk of %" G_GUINT64_FORMAT " bytes could get",
                    text, now);
        return false;
    }
    if (*length < now && !chosen.shrink) {
        usage_error(error, "The disk would become shorter and lose data; --shrink says that this "
                           "is wanted");
        return false;
    }
    return true;
}

/* So that the tracking file beside the image does not take it for written by a stranger. */
static bool follow_resize(const char *path, const struct tracking_identity *before, GError **error)
{
    g_autofree char *tracking = g_strconcat(path, ".tracking", NULL);
    struct tracking_identity after;

    tracking_identify(path, &after);
    return tracking_follow_resize(tracking, before, &after, error) >= 0;
}

static enum exit_status resize_file(const char *path, const char *size,
                                    enum block_preallocation mode, uint64_t *length, GError **error)
{
    struct image_progress progress = {.what = "resizing"};
    const struct image_options how = {
        .format = chosen.format, .writable = true, .served_command = "resize"};
    struct tracking_identity before;
    bool is_grown;

    tracking_identify(path, &before);
    AUTO(block_node) node = image_open(path, &how, error);

    if (!node) {
        return EXIT_FAILED;
    }
    if (!find_length(size, block_node_length(node), length, error)) {
        return EXIT_USAGE;
    }
    is_grown = *length >= block_node_length(node);
    if (!is_grown && tracking_give_up_left_over(path, error) < 0) {
        return EXIT_FAILED;
    }
    image_progress_begin(&progress);
    int status = block_node_resize(node, *length, mode, image_progress_show, &progress, error);
    image_progress_end(&progress);
    block_node_unref(STEAL(node)); /* closed, it is not written any more */
    /* What was cut off and comes back later would be taken for unchanged. */
    if (status == 0 && is_grown && !follow_resize(path, &before, error)) {
        return EXIT_FAILED;
    }
    return status < 0 ? EXIT_FAILED : EXIT_OK;
}

static enum exit_status resize_served(const struct invocation *invocation, const char *device,
                                      uint64_t *length, GError **error)
{
    AUTO_CLIENT client = image_connect(invocation, device, error);
    json_t *image = client ? image_query(client, device, error) : NULL;

    if (!image) {
        return EXIT_FAILED;
    }
    uint64_t now = (uint64_t)MAX(member_integer(image, "virtual-size", 0), 0);
    json_decref(image);
    if (!find_length(invocation->arguments[1], now, length, error)) {
        return EXIT_USAGE;
    }
    json_t *done =
        client_call(client, "block_resize",
                    json_pack("{s:s, s:I}", "device", device, "size", (json_int_t)*length),
                    CLIENT_WORK_TIMEOUT_MS, error);
    json_decref(done);
    return done ? EXIT_OK : EXIT_FAILED;
}

static enum exit_status run_resize(const struct invocation *invocation, GError **error)
{
    enum block_preallocation mode;
    enum exit_status status;
    uint64_t length;

    if (!check_arguments(invocation, 2, 2, "FILE SIZE, or DEVICE SIZE", error) ||
        !find_mode(&mode, error)) {
        return EXIT_USAGE;
    }
    const char *name = invocation->arguments[0];
    if (!image_is_served(invocation, name)) {
        status = resize_file(name, invocation->arguments[1], mode, &length, error);
    } else if (chosen.preallocation || chosen.format) {
        return usage_error(error,
                           "There is no file '%s', and a disk of a server is resized "
                           "without --preallocation and --format",
                           name);
    } else {
        status = resize_served(invocation, name, &length, error);
    }
    if (status == EXIT_OK && invocation->json) {
        print_json_line(json_pack("{s:s, s:I}", "image", name, "virtual-size", (json_int_t)length));
    }
    return status;
}

const struct command resize_command = {
    .name = "resize",
    .summary = "Make an image, or a disk of a server, longer or shorter",
    .usage = "[OPTION...] FILE|DEVICE [+|-]SIZE",
    .notes = "A DEVICE is a disk of a running server, where no file has that name. Guests that\n"
             "are connected to it see the new size when they connect again.\n",
    .flags = COMMAND_ADMIN | COMMAND_JSON | COMMAND_NEGATIVE,
    .options = resize_options,
    .words = resize_words,
    .shared = &image_option_group,
    .run = run_resize,
};
