/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk create: new images. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/cleanup.h"
#include "block/gate.h"
#include "cli/image-options.h"
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
     "What the image starts with: a backing file", "FILE"},
    {"backing-format", 'F', 0, G_OPTION_ARG_STRING, &chosen.backing_format,
     "The backing file's format", "FORMAT"},
    {"option", 'o', 0, G_OPTION_ARG_STRING_ARRAY, &chosen.options,
     "Settings of the format; may repeat", "NAME=VALUE,..."},
    {NULL},
};
static const struct command_words create_words[] = {
    {"format", 0, "qcow2 raw"},         {"backing", 0, "@file"}, {"backing-format", 0, "qcow2 raw"},
    {"option", 0, CREATE_OPTION_WORDS}, {NULL, 0, "@file"},      {NULL},
};

/*
 * The backing file, as it is found from the new image's directory. It stays open, and so locked,
 * until the image is made: nothing that it consists of can be written over.
 */
static struct block_node *open_backing(const char *path, const struct create_request *request,
                                       GError **error)
{
    AUTO(block_options) how = NULL;

    if (block_reference_options(path, request->backing, request->backing_format, &how, error) < 0) {
        return NULL;
    }
    block_options_set(how, "read-only", "on");
    return block_node_open(how, true, error);
}

/* One that is not there yet, or far away, can be named with the size of the new image. */
static bool is_local_file(const char *path, const char *name)
{
    g_autofree char *filename = block_reference_filename(path, name);

    return g_file_test(filename, G_FILE_TEST_EXISTS);
}

static bool is_same_file(const char *a, const char *b)
{
    struct stat first, second;

    return stat(a, &first) == 0 && stat(b, &second) == 0 && first.st_dev == second.st_dev &&
           first.st_ino == second.st_ino;
}

static bool check_backing(const char *path, const struct create_request *request, GError **error)
{
    g_autofree char *name =
        request->backing ? block_reference_filename(path, request->backing) : NULL;

    if (name && is_same_file(path, name)) {
        usage_error(error, "The new image cannot be its own backing file");
        return false;
    }
    if (name && request->data_file && is_same_file(request->data_file, name)) {
        usage_error(error, "The backing file cannot be the new image's data file");
        return false;
    }
    return true;
}

static bool find_size(const char *size, const struct create_request *request,
                      struct block_node *backing, int64_t *bytes, GError **error)
{
    if (size && !parse_size(size, bytes)) {
        usage_error(error, "'%s' is not a size", size);
        return false;
    }
    if (!size && !request->backing) {
        usage_error(error, "Without a backing file the new image needs a size: FILE SIZE");
        return false;
    }
    if (!size && backing) {
        *bytes = (int64_t)block_node_length(backing);
    }
    return size || backing;
}

/* An image that was begun and could not be made is worth nothing. */
static int create_over_new_file(struct block_options *options, const char *path,
                                struct image_progress *progress, GError **error)
{
    AUTO(block_options) file = block_options_new();

    block_options_set(file, "driver", "file");
    block_options_set(file, "filename", path);
    block_options_set(file, "size", "0");
    int status = block_create(file, NULL, NULL, error);
    if (status < 0) {
        return status;
    }
    status = block_create(options, image_progress_show, progress, error);
    if (status < 0) {
        unlink(path);
    }
    return status;
}

/* The driver makes the image in a file that is there; a raw image is the file itself. */
static int create_image(const struct create_request *request, const char *path, GError **error)
{
    struct image_progress progress = {.what = "creating"};
    AUTO(block_options) options = create_request_options(request, path);
    bool is_there = g_file_test(path, G_FILE_TEST_EXISTS | G_FILE_TEST_IS_SYMLINK);
    int status;

    image_progress_begin(&progress);
    if (create_request_is_raw(request) || is_there) {
        status = block_create(options, image_progress_show, &progress, error);
    } else {
        status = create_over_new_file(options, path, &progress, error);
    }
    image_progress_end(&progress);
    return status;
}

/* The external data file is made first, if it is not there. */
static int create_data_file(const struct create_request *request, bool *is_new, GError **error)
{
    *is_new = request->data_file && !g_file_test(request->data_file, G_FILE_TEST_EXISTS);
    if (!*is_new) {
        return 0;
    }
    AUTO(block_options) file = block_options_new();
    block_options_set(file, "driver", "file");
    block_options_set(file, "filename", request->data_file);
    block_options_set(file, "size", "0");
    return block_create(file, NULL, NULL, error);
}

static int create_all(const struct create_request *request, const char *path, GError **error)
{
    bool has_new_data_file;
    int status = create_data_file(request, &has_new_data_file, error);

    if (status == 0) {
        status = create_image(request, path, error);
        if (status < 0 && has_new_data_file) {
            unlink(request->data_file);
        }
    }
    return status;
}

static enum exit_status run_create(const struct invocation *invocation, GError **error)
{
    AUTO(create_request) request = NULL;
    g_autoptr(GError) problem = NULL;

    if (!check_arguments(invocation, 1, 2, "FILE [SIZE]", error)) {
        return EXIT_USAGE;
    }
    const char *path = invocation->arguments[0];
    if (image_init(error) < 0) {
        return EXIT_USAGE;
    }
    request = create_request_new(path, chosen.format, chosen.backing, chosen.backing_format,
                                 (const char *const *)chosen.options, &problem);
    if (!request) {
        return usage_error(error, "%s", problem->message);
    }
    if (!check_backing(path, request, error)) {
        return EXIT_USAGE;
    }
    const char *size = invocation->arguments[1];
    bool needs_backing = request->backing && (!size || is_local_file(path, request->backing));
    AUTO(block_node) backing = needs_backing ? open_backing(path, request, error) : NULL;
    if ((needs_backing && !backing) || !find_size(size, request, backing, &request->size, error)) {
        return (*error)->domain == CLI_ERROR ? EXIT_USAGE : EXIT_FAILED;
    }
    if (create_all(request, path, error) < 0) {
        create_request_explain(request, *error);
        image_explain_lock(path, &(const struct image_options){0}, error);
        return EXIT_FAILED;
    }
    if (invocation->json) {
        print_json_line(json_pack("{s:s, s:s, s:I}", "filename", path, "format", request->format,
                                  "virtual-size", (json_int_t)request->size));
    }
    return EXIT_OK;
}

const struct command create_command = {
    .name = "create",
    .summary = "Make a new image",
    .usage = "[OPTION...] FILE [SIZE]",
    .notes = "SIZE is a number of bytes, or with K, M, G, T; that of the backing file if it is\n"
             "left out. What was in FILE is lost. Settings of qcow2 are cluster_size,\n"
             "preallocation, lazy_refcounts, refcount_bits, compression_type, extended_l2,\n"
             "data_file, data_file_raw and compat; of raw, preallocation.\n",
    .flags = COMMAND_JSON,
    .options = create_options,
    .words = create_words,
    .shared = &image_option_group,
    .run = run_create,
};
