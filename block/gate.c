/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/gate.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/driver.h"
#include "block/error.h"
#include "block/node.h"
#include "block/options-json.h"
#include "block/request.h"

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
    if (!*text) {
        return block_error(error, EINVAL,
                           "image-references is empty; write none, all or "
                           "directories");
    }
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

bool block_reference_is_uri(const char *name)
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

static bool is_one_of(const char *text, const char *const *list, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        if (!strcmp(text, list[i])) {
            return true;
        }
    }
    return false;
}

/*
 * What JSON in an image may say. Options that run programs, name nodes, certificates or file
 * descriptors, or switch locks and flushes off are for users to give, whatever the policy is.
 */
static bool may_set(const char *key, const char *value)
{
    static const char *const drivers[] = {"file", "host_device", "nbd", "raw", "qcow2"};
    static const char *const types[] = {"inet", "unix"};
    static const char *const harmless[] = {"filename", "offset", "size",   "uri", "host",
                                           "port",     "path",   "export", "aio"};
    const char *dot = strrchr(key, '.');
    const char *leaf = dot ? dot + 1 : key;

    if (!strcmp(leaf, "driver")) {
        return is_one_of(value, drivers, G_N_ELEMENTS(drivers));
    }
    if (!strcmp(leaf, "type")) {
        return is_one_of(value, types, G_N_ELEMENTS(types));
    }
    return (!strcmp(leaf, "backing") && !*value) || /* null: none */
           is_one_of(leaf, harmless, G_N_ELEMENTS(harmless));
}

static int check_json_options(const char *image, const char *name, struct block_options *options,
                              GError **error)
{
    g_auto(GStrv) keys = block_options_keys(options);

    for (char **key = keys; *key; key++) {
        const char *value = block_options_get(options, *key);

        if (!may_set(*key, value)) {
            return block_error(error, EACCES,
                               "The image '%s' refers to '%s', which sets '%s' to '%s': an image "
                               "may not do that; if it is wanted, give the node as an option",
                               image, name, *key, value);
        }
        if (g_str_equal(*key, "aio") || g_str_has_suffix(*key, ".aio")) {
            g_free(block_options_take(options, *key)); /* how QEMU talks to its kernel */
        }
    }
    return 0;
}

/*
 * The format of what `file` describes, by its first bytes; NULL with the error set. It must be
 * storage: a format in it would open its own references, once here and once when the image is
 * opened, and a chain of such images twice as often at each link.
 */
static const char *probe_file_child(const struct block_options *options, GError **error)
{
    AUTO(block_options) copy = block_options_copy(options);
    AUTO(block_options) file = block_options_take_nested(copy, "file");
    const char *driver_name = block_options_get(file, "driver");
    const struct block_driver *driver = driver_name ? block_driver_find(driver_name) : NULL;
    uint8_t head[PROBE_BYTES];

    if (!driver || !driver->is_protocol) {
        block_error(error, EINVAL,
                    "Only that of a file, a block device or an NBD server is found "
                    "out by looking at it");
        return NULL;
    }
    block_options_set(file, "read-only", "on");
    block_options_set(file, "force-share", "on");
    AUTO(block_node) node = block_node_open(file, true, error);
    if (!node) {
        return NULL;
    }
    size_t bytes = MIN_OF(block_node_length(node), sizeof(head));
    int status = block_node_pread(node, head, 0, bytes, 0);
    if (status < 0) {
        block_error_errno(error, -status, "Could not read it");
        return NULL;
    }
    return block_driver_probe(head, bytes, NULL)->name;
}

/* The recorded format goes before what the JSON says; where neither says it, the file does. */
static int set_format(const char *image, const char *name, const char *format,
                      struct block_options *options, GError **error)
{
    if (!format) {
        format = block_options_get(options, "driver");
    }
    if (!format) {
        format = probe_file_child(options, error);
        if (!format) {
            g_prefix_error(
                error, "The image '%s' refers to '%s' and does not say its format: ", image, name);
            return -EINVAL;
        }
    }
    int status = check_format(image, format, error);
    if (status == 0) {
        block_options_set(options, "driver", format);
    }
    return status;
}

static int from_json(const char *image, const char *name, const char *format,
                     struct block_options **options, GError **error)
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
    AUTO(block_options) parsed = block_options_from_json(object);
    json_decref(object);
    status = check_json_options(image, name, parsed, error);
    if (status == 0 && block_options_has(parsed, "file.filename") &&
        !block_options_has(parsed, "file.driver")) {
        block_options_set(parsed, "file.driver", "file");
    }
    if (status == 0) {
        status = set_format(image, name, format, parsed, error);
    }
    if (status == 0) {
        *options = STEAL(parsed);
    }
    return status;
}

/* "unix:PATH" or "HOST:PORT", with ":exportname=NAME" or without. */
static int set_old_server(const char *name, const char *place, struct block_options *options,
                          GError **error)
{
    const char *tail = strstr(place, ":exportname=");
    g_autofree char *address = g_strndup(place, tail ? (gsize)(tail - place) : strlen(place));
    char *colon = strrchr(address, ':');

    if (g_str_has_prefix(address, "unix:")) {
        block_options_set(options, "file.server.type", "unix");
        block_options_set(options, "file.server.path", address + strlen("unix:"));
    } else if (colon && colon != address) {
        bool has_brackets = address[0] == '[' && colon[-1] == ']';

        *colon = '\0';
        colon[-1] = has_brackets ? '\0' : colon[-1];
        block_options_set(options, "file.server.type", "inet");
        block_options_set(options, "file.server.host", address + has_brackets);
        block_options_set(options, "file.server.port", colon + 1);
    } else {
        return block_error(error, EINVAL,
                           "'%s' names no NBD server: write nbd://HOST:PORT/EXPORT or "
                           "nbd+unix:///EXPORT?socket=PATH",
                           name);
    }
    if (tail) {
        block_options_set(options, "file.export", tail + strlen(":exportname="));
    }
    return 0;
}

int block_reference_set_server(const char *name, struct block_options *options, GError **error)
{
    block_options_set(options, "file.driver", "nbd");
    if (g_str_has_prefix(name, "nbd:") && !g_str_has_prefix(name, "nbd://")) {
        return set_old_server(name, name + strlen("nbd:"), options, error);
    }
    block_options_set(options, "file.uri", name);
    return 0;
}

static int from_uri(const char *image, const char *name, const char *format,
                    struct block_options **options, GError **error)
{
    int status = admit_anything(image, name, error);

    if (status < 0) {
        return status;
    }
    AUTO(block_options) found = block_options_new();
    status = block_reference_set_server(name, found, error);
    if (status == 0) {
        status = set_format(image, name, format, found, error);
    }
    if (status == 0) {
        *options = STEAL(found);
    }
    return status;
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
    return g_str_has_prefix(name, "json:") || block_reference_is_uri(name)
               ? g_strdup(name)
               : resolve(image_filename, name);
}

/* "http://host/image": QEMU has protocols that are not known here; no file is meant. */
static bool has_scheme(const char *name)
{
    size_t letters = strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789+-.");

    return letters > 0 && g_str_has_prefix(name + letters, "://");
}

bool block_reference_is_path(const char *name)
{
    return !g_str_has_prefix(name, "json:") && !block_reference_is_uri(name) && !has_scheme(name);
}

bool block_reference_is_relative(const char *name)
{
    return block_reference_is_path(name) && !g_path_is_absolute(name) &&
           !g_str_has_prefix(name, "file:");
}

static int from_path(const char *image, const char *name, const char *format,
                     struct block_options **options, GError **error)
{
    if (has_scheme(name)) {
        return block_error(error, ENOTSUP,
                           "The image '%s' refers to '%s', whose protocol is not supported", image,
                           name);
    }
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

/* QEMU records the name of a protocol for storage without a format, as do we if we are told to. */
static const char *without_protocol(const char *format)
{
    const struct block_driver *driver = format ? block_driver_find(format) : NULL;

    return driver && driver->is_protocol ? "raw" : format;
}

int block_reference_options(const char *image_filename, const char *name, const char *format,
                            struct block_options **options, GError **error)
{
    format = without_protocol(format);
    *options = NULL;
    if (g_str_has_prefix(name, "json:")) {
        return from_json(image_filename, name, format, options, error);
    }
    return block_reference_is_uri(name) ? from_uri(image_filename, name, format, options, error)
                                        : from_path(image_filename, name, format, options, error);
}
