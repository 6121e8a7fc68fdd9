/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/nbd-image.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/driver.h"
#include "block/error.h"
#include "block/gate.h"
#include "block/image.h"
#include "block/options-json.h"
#include "block/options.h"
#include "block/tracking.h"
#include "formats/foreign.h"
#include "formats/raw.h"
#include "formats/scratch.h"
#include "server/device-tracking.h"
#include "server/option-text.h"
#include "server/types.h"

/* ---- Formats that a child knows -------------------------------------------------------------- */

static const char *find_foreign_format(const char *path)
{
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC);
    uint8_t head[FOREIGN_FORMAT_BYTES];
    ssize_t got = fd >= 0 ? pread(fd, head, sizeof(head), 0) : -1;

    return got > 0 ? foreign_format(head, (size_t)got) : NULL;
}

/* What the file looks like, raw if nothing else: that is a guess. NULL with the error set. */
static const char *probe(const char *path, bool *is_guess, GError **error)
{
    const char *format = block_probe_file(path, error);
    const char *foreign = !g_strcmp0(format, "raw") ? find_foreign_format(path) : NULL;

    *is_guess = !foreign && !g_strcmp0(format, "raw");
    return foreign ? foreign : format;
}

static void add_argument(struct block_options *options, unsigned *count, const char *format, ...)
    G_GNUC_PRINTF(3, 4);

static void add_argument(struct block_options *options, unsigned *count, const char *format, ...)
{
    g_autofree char *key = g_strdup_printf("file.command.%u", (*count)++);
    va_list arguments;

    va_start(arguments, format);
    g_autofree char *text = g_strdup_vprintf(format, arguments);
    va_end(arguments);
    block_options_set(options, key, text);
}

/* What the child is told of the image; its end is that of the connection to it. */
static void describe_child(const struct nbd_image *image, const char *format,
                           struct block_options *options)
{
    unsigned count = 0;

    block_options_set(options, "driver", "raw");
    block_options_set(options, "file.driver", "nbd");
    add_argument(options, &count, "qemu-nbd");
    if (image->is_options) {
        add_argument(options, &count, "--image-opts");
    } else {
        add_argument(options, &count, "--format=%s", format);
    }
    if (image->snapshot) {
        add_argument(options, &count, "--load-snapshot=%s", image->snapshot);
    } else if (image->read_only || image->is_temporary) {
        add_argument(options, &count, "--read-only");
    }
    if (image->cache) {
        add_argument(options, &count, "--cache=%s", image->cache);
    }
    if (image->aio) {
        add_argument(options, &count, "--aio=%s", image->aio);
    }
    if (image->discard) {
        add_argument(options, &count, "--discard=unmap");
    }
    add_argument(options, &count, "--");
    add_argument(options, &count, "%s", image->file);
}

static int check_child(const char *format, GError **error)
{
    g_autofree char *program = g_find_program_in_path("qemu-nbd");

    return program
               ? 0
               : block_error(error, ENOENT,
                             "Unknown driver '%s': liveblk has raw and qcow2; for other formats "
                             "it runs qemu-nbd, which is not installed",
                             format);
}

/* ---- Options --------------------------------------------------------------------------------- */

static bool is_json(const struct nbd_image *image)
{
    return !image->is_options && g_str_has_prefix(image->file, "json:");
}

/* The local file that the image lies in, absolute; NULL: none. The caller frees. */
static char *local_file(const struct nbd_image *image)
{
    bool is_path = !image->is_options && !is_json(image) && !block_reference_is_uri(image->file);

    return is_path ? g_canonicalize_filename(image->file, NULL) : NULL;
}

static struct block_options *read_json(const struct nbd_image *image, GError **error)
{
    const char *text = image->file + strlen("json:");
    json_t *value = option_text_read_json(text, error);
    struct block_options *options = NULL;

    if (value && qmp_check(&blockdev_options_type, value, NULL, error) == 0) {
        options = block_options_from_json(value);
    }
    json_decref(value);
    return options;
}

/* As people write them for QEMU: a file needs no driver. */
static struct block_options *read_options(const struct nbd_image *image, bool *is_guess,
                                          GError **error)
{
    AUTO(block_options) options = is_json(image)
                                      ? read_json(image, error)
                                      : block_options_parse(image->file, "driver", error);
    const char *file = options ? block_options_get(options, "file.filename") : NULL;

    if (file && !block_options_get(options, "file.driver")) {
        block_options_set(options, "file.driver", "file");
    }
    if (file && !block_options_get(options, "driver")) {
        const char *format = probe(file, is_guess, error);

        if (!format) {
            return NULL;
        }
        block_options_set(options, "driver", format);
    }
    return STEAL(options);
}

static int describe_file(const struct nbd_image *image, const char *file, const char *format,
                         struct block_options *options, GError **error)
{
    block_options_set(options, "driver", format);
    if (!file) {
        return block_reference_set_server(image->file, options, error);
    }
    block_options_set(options, "file.driver", "file");
    block_options_set(options, "file.filename", file);
    return 0;
}

/* The driver that it needs is not one of ours. */
static bool is_foreign(const char *format)
{
    return format && !block_driver_find(format);
}

static struct block_options *describe(const struct nbd_image *image, const char *file,
                                      const char *format, bool *is_guess, GError **error)
{
    bool has_options = image->is_options || is_json(image);
    AUTO(block_options) options =
        has_options ? read_options(image, is_guess, error) : block_options_new();
    const char *driver = !options      ? NULL
                         : has_options ? block_options_get(options, "driver")
                                       : format;

    if (!options) {
        return NULL;
    }
    if (is_foreign(driver)) {
        if (is_json(image)) {
            block_error(error, EINVAL, "Unknown driver '%s'", driver);
            return NULL;
        }
        if (check_child(driver, error) < 0) {
            return NULL;
        }
        g_autofree char *name = g_strdup(driver);
        block_options_free(options);
        options = block_options_new();
        describe_child(image, name, options);
    } else if (!has_options && describe_file(image, file, format, options, error) < 0) {
        return NULL;
    }
    return STEAL(options);
}

static void set_default(struct block_options *options, const char *key, const char *value)
{
    if (!block_options_get(options, key)) {
        block_options_set(options, key, value);
    }
}

/* What options of the program say of a node, where the image's own do not. */
static void set_common(const struct nbd_image *image, bool read_only, struct block_options *options)
{
    set_default(options, "read-only", read_only ? "on" : "off");
    set_default(options, "discard", image->discard ? "unmap" : "ignore");
    set_default(options, "detect-zeroes", read_only ? "off" : image->detect_zeroes);
    set_default(options, "cache.direct", image->direct ? "on" : "off");
    set_default(options, "cache.no-flush", image->no_flush ? "on" : "off");
}

/* The option of the node that keeps the image in a file of this host, which the caller frees; NULL:
 * there is none. */
static char *aio_key(const struct block_options *options)
{
    g_autoptr(GString) prefix = g_string_new(NULL);
    const char *driver;

    do {
        g_autofree char *key = g_strconcat(prefix->str, "driver", NULL);

        driver = block_options_get(options, key);
        if (driver && (!strcmp(driver, "file") || !strcmp(driver, "host_device"))) {
            return g_strconcat(prefix->str, "aio", NULL);
        }
        g_string_append(prefix, "file.");
    } while (driver);
    return NULL;
}

/* Of what is opened, not of what is put above it. */
static void set_aio(const struct nbd_image *image, struct block_options *options)
{
    g_autofree char *key = aio_key(options);

    if (key && image->aio) {
        set_default(options, key, image->aio);
    }
}

/* ---- Internal snapshots ---------------------------------------------------------------------- */

static int match_snapshot(const struct block_options *wanted, struct block_node *node, char **id,
                          GError **error)
{
    const char *wanted_id = block_options_get(wanted, "snapshot.id");
    const char *name = block_options_get(wanted, "snapshot.name");
    struct block_snapshot_info *list;
    size_t count;
    int status = block_node_snapshot_list(node, &list, &count, error);

    for (size_t i = 0; status == 0 && i < count && !*id; i++) {
        if ((!wanted_id || !strcmp(wanted_id, list[i].id)) &&
            (!name || !strcmp(name, list[i].name))) {
            *id = g_strdup(list[i].id);
        }
    }
    if (status == 0) {
        block_snapshot_list_free(list, count);
    }
    return status;
}

/* snapshot.id and snapshot.name must both be those of one: the ID of that. The caller frees. */
static char *find_snapshot(const char *text, const struct block_options *options, GError **error)
{
    AUTO(block_options) wanted = block_options_parse(text, NULL, error);
    AUTO(block_options) copy = block_options_copy(options);
    g_auto(GStrv) keys = wanted ? block_options_keys(wanted) : NULL;
    char *id = NULL;

    for (char **key = keys; key && *key; key++) {
        if (strcmp(*key, "snapshot.id") != 0 && strcmp(*key, "snapshot.name") != 0) {
            block_error(error, EINVAL, "Invalid parameter '%s' of a snapshot", *key);
            return NULL;
        }
    }
    AUTO(block_node) node = wanted ? block_node_open(copy, true, error) : NULL;
    int status = node ? match_snapshot(wanted, node, &id, error) : -EINVAL;
    if (status == 0 && !id) {
        block_error(error, ENOENT, "There is no snapshot '%s' in the image", text);
    }
    return id;
}

static int choose_snapshot(const struct nbd_image *image, struct block_options *options,
                           GError **error)
{
    if (strcmp(block_options_get(options, "driver"), "qcow2") != 0) {
        return block_error(error, ENOTSUP, "Images of the format %s have no internal snapshots",
                           block_options_get(options, "driver"));
    }
    if (!g_str_has_prefix(image->snapshot, "snapshot.")) {
        block_options_set(options, "snapshot", image->snapshot);
        return 0;
    }
    g_autofree char *id = find_snapshot(image->snapshot, options, error);
    if (!id) {
        return -ENOENT;
    }
    block_options_set(options, "snapshot", id);
    return 0;
}

/* ---- What is put above ----------------------------------------------------------------------- */

/* An empty qcow2 image as long as the base, in a file that is gone with the process. */
static int create_overlay(struct block_node *scratch, uint64_t length, GError **error)
{
    AUTO(block_options) options = block_options_new();
    g_autofree char *size = g_strdup_printf("%" PRIu64, length);

    block_options_set(options, "driver", "qcow2");
    block_options_set(options, "file", scratch->name);
    block_options_set(options, "size", size);
    return block_create(options, NULL, NULL, error);
}

static struct block_node *put_overlay(const struct nbd_image *image, struct block_node *base,
                                      GError **error)
{
    AUTO(block_node) scratch = scratch_open(NULL, 0, error);
    AUTO(block_options) options = block_options_new();

    if (!scratch || create_overlay(scratch, block_node_length(base), error) < 0) {
        g_prefix_error(error, "The temporary overlay: ");
        return NULL;
    }
    block_options_set(options, "driver", "qcow2");
    block_options_set(options, "file", scratch->name);
    block_options_set(options, "backing", base->name);
    set_common(image, image->read_only, options);
    block_options_set(options, "cache.no-flush", "on"); /* nobody sees it after a crash */
    return block_node_open(options, true, error);
}

static struct block_node *put_window(const struct nbd_image *image, struct block_node *base,
                                     GError **error)
{
    AUTO(block_options) options = block_options_new();
    g_autofree char *offset = g_strdup_printf("%" PRIu64, image->offset);

    block_options_set(options, "driver", "raw");
    block_options_set(options, "file", base->name);
    block_options_set(options, "offset", offset);
    set_common(image, image->read_only, options);
    return block_node_open(options, true, error);
}

/* ---- Opening --------------------------------------------------------------------------------- */

/* The format of the image; NULL: it is in the options, or the error is set. */
static const char *find_format(const struct nbd_image *image, const char *file, bool *is_guess,
                               GError **error)
{
    *is_guess = false;
    if (image->format || image->is_options || is_json(image)) {
        return image->format;
    }
    if (!file) {
        return "raw";
    }
    return probe(file, is_guess, error);
}

static void guard_guess(const struct nbd_image *image, struct block_node *node)
{
    g_warning(
        "No format was given, and '%s' looks like a raw disk. So that its clients cannot make "
        "it look like another format, writes to its first sectors are restricted; with "
        "--format=raw they are not.",
        image->file);
    raw_guard_format(node);
}

/* A server of ours may have tracked what changes; it is told of what it will not see. */
static void part_from_tracking(const char *file, const struct tracking_identity *identity,
                               struct block_node *node)
{
    g_autofree char *path = device_tracking_path("auto", file, NULL);
    struct tracking_options options = {
        .device = file, .path = path, .disk_path = file, .identity = *identity};

    if (path) {
        tracking_part(&options, node);
    }
}

static struct block_node *open_image(const struct nbd_image *image, bool read_only, GError **error)
{
    bool is_guess;
    struct tracking_identity identity;
    g_autofree char *file = local_file(image);

    tracking_identify(file, &identity);
    const char *format = find_format(image, file, &is_guess, error);
    if (!format && !image->is_options && !is_json(image)) {
        return NULL;
    }
    AUTO(block_options) options = describe(image, file, format, &is_guess, error);
    bool is_ours = !options || !block_options_has(options, "file.command");
    if (options) {
        set_common(image, read_only, options);
        set_aio(image, options);
    }
    if (!options || (image->snapshot && is_ours && choose_snapshot(image, options, error) < 0)) {
        return NULL;
    }
    struct block_node *node = block_node_open(options, true, error);
    if (node && !read_only && is_guess) {
        guard_guess(image, node);
    }
    if (node && !read_only && file && is_ours) {
        part_from_tracking(file, &identity, node);
    }
    return node;
}

struct block_node *nbd_image_open(const struct nbd_image *image, GError **error)
{
    bool read_only = image->read_only || image->is_temporary || image->snapshot;
    AUTO(block_node) node = open_image(image, read_only, error);

    if (!node) {
        if (!g_str_has_prefix((*error)->message, "Could not open")) {
            g_prefix_error(error, "Could not open '%s': ", image->file);
        }
        return NULL;
    }
    if (image->is_temporary) {
        AUTO(block_node) base = node;

        node = put_overlay(image, base, error);
    }
    if (node && image->offset) {
        AUTO(block_node) base = node;

        node = put_window(image, base, error);
        if (!node) {
            g_prefix_error(error, "--offset: ");
        }
    }
    return STEAL(node);
}
