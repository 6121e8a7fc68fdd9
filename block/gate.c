/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/gate.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "block/cleanup.h"
#include "block/driver.h"
#include "block/error.h"
#include "block/options-json.h"

/* As much of a file as drivers look at to know it. */
#define PROBE_BYTES 2048

static enum { GATE_ALL, GATE_NONE, GATE_DIRECTORIES } policy = GATE_ALL;
static char **directories; /* real paths */

/* ---- The policy ----------------------------------------------------------------------------- */

static char *real_path(const char *path)
{
    char *real = realpath(path, NULL);
    char *copy = g_strdup(real);

    free(real);
    return copy;
}

static int set_directories(const char *text, GError **error)
{
    g_auto(GStrv) given = g_strsplit(text, ":", -1);

    for (char **directory = given; *directory; directory++) {
        char *real = **directory == '/' ? real_path(*directory) : NULL;

        if (!real || !g_file_test(real, G_FILE_TEST_IS_DIR)) {
            g_free(real);
            return block_error(error, EINVAL,
                               "image-references is 'all', 'none', or absolute paths of "
                               "directories separated by colons; '%s' is none of these",
                               *directory);
        }
        g_free(*directory);
        *directory = real;
    }
    g_strfreev(directories);
    directories = g_steal_pointer(&given);
    policy = GATE_DIRECTORIES;
    return 0;
}

int block_gate_set(const char *text, GError **error)
{
    if (!strcmp(text, "all")) {
        policy = GATE_ALL;
    } else if (!strcmp(text, "none")) {
        policy = GATE_NONE;
    } else {
        return set_directories(text, error);
    }
    return 0;
}

static bool is_below(const char *path, const char *directory)
{
    size_t length = strlen(directory);

    return !strncmp(path, directory, length) && (path[length] == '/' || !strcmp(directory, "/"));
}

static int refuse(const char *image, const char *name, GError **error)
{
    return block_error(error, EACCES,
                       "The image '%s' refers to '%s', which image-references does not allow",
                       image, name);
}

/* Nothing but local files can be told apart by where they lie. */
static int admit_anything(const char *image, const char *name, GError **error)
{
    return policy == GATE_ALL ? 0 : refuse(image, name, error);
}

/* *path is replaced by the real one where that is what was looked at. */
static int admit_file(const char *image, char **path, GError **error)
{
    if (policy == GATE_ALL) {
        return 0;
    }
    g_autofree char *real = policy == GATE_DIRECTORIES ? real_path(*path) : NULL;
    for (char **directory = directories; real && *directory; directory++) {
        if (is_below(real, *directory)) {
            g_free(*path);
            *path = g_steal_pointer(&real);
            return 0;
        }
    }
    return refuse(image, *path, error);
}

/* ---- Probing -------------------------------------------------------------------------------- */

const char *block_probe_file(const char *path, GError **error)
{
    uint8_t head[PROBE_BYTES];
    struct stat st;
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

    if (fd < 0 || fstat(fd, &st) < 0) {
        block_error_errno(error, errno, "Could not open '%s'", path);
        return NULL;
    }
    if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)) {
        block_error(error, EINVAL, "'%s' is neither a regular file nor a block device", path);
        return NULL;
    }
    ssize_t bytes = pread(fd, head, sizeof(head), 0);
    if (bytes < 0) {
        block_error_errno(error, errno, "Could not read '%s'", path);
        return NULL;
    }
    return block_driver_probe(head, (size_t)bytes, path)->name;
}

/* ---- Names ---------------------------------------------------------------------------------- */

static bool is_uri(const char *name)
{
    static const char *const schemes[] = {
        "nbd:", "nbds:", "nbd+unix:", "nbds+unix:", "nbd+vsock:", "nbds+vsock:"};

    for (size_t i = 0; i < G_N_ELEMENTS(schemes); i++) {
        if (g_str_has_prefix(name, schemes[i])) {
            return true;
        }
    }
    return false;
}

static int from_json(const char *image, const char *name, struct block_options **options,
                     GError **error)
{
    json_error_t why;
    int status = admit_anything(image, name, error);

    if (status < 0) {
        return status;
    }
    json_t *object = json_loads(name + strlen("json:"), JSON_REJECT_DUPLICATES, &why);
    if (!json_is_object(object)) {
        json_decref(object);
        return block_error(error, EINVAL,
                           "The image '%s' refers to '%s', which is not a JSON object", image,
                           name);
    }
    *options = block_options_from_json(object);
    json_decref(object);
    if (!block_options_has(*options, "driver")) { /* options of what is in the file */
        const char *inner = block_options_get(*options, "file.driver");

        block_options_set(*options, "driver", inner ? "raw" : "file");
    }
    return 0;
}

static int check_format(const char *image, const char *format, GError **error)
{
    const struct block_driver *driver = block_driver_find(format);

    if (!driver || !driver->probe) {
        return block_error(error, ENOTSUP,
                           "The image '%s' refers to a file of the format '%s', which is not "
                           "supported",
                           image, format);
    }
    return 0;
}

static int from_uri(const char *image, const char *name, const char *format,
                    struct block_options **options, GError **error)
{
    int status = admit_anything(image, name, error);

    if (status == 0 && format) {
        status = check_format(image, format, error);
    }
    if (status < 0) {
        return status;
    }
    *options = block_options_new();
    block_options_set(*options, "driver", format ? format : "raw");
    block_options_set(*options, "file.driver", "nbd");
    block_options_set(*options, "file.uri", name);
    return 0;
}

static char *resolve(const char *image, const char *name)
{
    const char *slash = strrchr(image, '/');

    if (g_str_has_prefix(name, "file:")) {
        name += strlen("file:");
    }
    return g_path_is_absolute(name) || !slash
               ? g_strdup(name)
               : g_strdup_printf("%.*s%s", (int)(slash + 1 - image), image, name);
}

char *block_reference_filename(const char *image_filename, const char *name)
{
    return g_str_has_prefix(name, "json:") || is_uri(name) ? g_strdup(name)
                                                           : resolve(image_filename, name);
}

static int from_path(const char *image, const char *name, const char *format,
                     struct block_options **options, GError **error)
{
    g_autofree char *path = resolve(image, name);
    int status = admit_file(image, &path, error);

    if (status == 0 && !format) {
        format = block_probe_file(path, error);
        status = format ? 0 : -EINVAL;
    } else if (status == 0) {
        status = check_format(image, format, error);
    }
    if (status < 0) {
        return status;
    }
    *options = block_options_new();
    block_options_set(*options, "driver", format);
    block_options_set(*options, "file.driver", "file");
    block_options_set(*options, "file.filename", path);
    return 0;
}

int block_reference_options(const char *image_filename, const char *name, const char *format,
                            struct block_options **options, GError **error)
{
    *options = NULL;
    if (g_str_has_prefix(name, "json:")) {
        return from_json(image_filename, name, options, error);
    }
    return is_uri(name) ? from_uri(image_filename, name, format, options, error)
                        : from_path(image_filename, name, format, options, error);
}
