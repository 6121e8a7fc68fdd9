/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/disk.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "block/align.h"
#include "block/driver.h"
#include "block/error.h"
#include "block/gate.h"
#include "block/options.h"
#include "block/stored-bitmaps.h"
#include "formats/raw.h"
#include "server/device-tracking.h"
#include "server/throttle-limits.h"

enum disk_locking { DISK_LOCKING_AUTO, DISK_LOCKING_ON, DISK_LOCKING_OFF };
enum disk_cache { DISK_CACHE_WRITEBACK, DISK_CACHE_NONE, DISK_CACHE_UNSAFE };

static const char *const cache_names[] = {"writeback", "none", "unsafe", NULL};
static const char *const discard_names[] = {"unmap", "ignore", NULL};
static const char *const detect_zeroes_names[] = {"off", "on", "unmap", NULL};
static const char *const locking_names[] = {"auto", "on", "off", NULL};

struct disk_values {
    char *name;
    char *file;
    char *format;
    char *node_name;
    bool read_only;
    int cache;
    int discard;
    int detect_zeroes;
    int locking;
    int read_error;
    int write_error;
    char *tracking;
    uint64_t tracking_granule;
    uint64_t tracking_extent;
    uint64_t tracking_extents;
};

struct disk {
    struct disk_values values;
    struct throttle_limits limits;
    struct block_options *file_options;   /* "file.driver=...": instead of file=, or NULL */
    struct block_options *format_options; /* the image's driver knows what they mean */
};

static const struct block_option disk_options[] = {
    {"name", BLOCK_OPTION_STRING, offsetof(struct disk_values, name),
     .help = "The device's and export's name; vda, vdb, ... by default."},
    {"file", BLOCK_OPTION_STRING, offsetof(struct disk_values, file),
     .help = "A file, a block device or an NBD URI."},
    {"format", BLOCK_OPTION_STRING, offsetof(struct disk_values, format),
     .help = "The image's format, whose options may be given, too. That of a local file is found "
             "out if it is not given; what the "
             "guest may write to its first sectors is limited then, if it is raw. Elsewhere: raw."},
    {"node-name", BLOCK_OPTION_STRING, offsetof(struct disk_values, node_name),
     .help = "The root node's name; made up by default."},
    {"read-only", BLOCK_OPTION_BOOL, offsetof(struct disk_values, read_only), .default_text = "off",
     .help = "Open the image read-only."},
    {"cache", BLOCK_OPTION_ENUM, offsetof(struct disk_values, cache), .default_text = "writeback",
     .enum_values = cache_names,
     .help = "Use the host's page cache (writeback), bypass it (none), or ignore flushes too "
             "(unsafe)."},
    {"discard", BLOCK_OPTION_ENUM, offsetof(struct disk_values, discard), .default_text = "unmap",
     .enum_values = discard_names,
     .help = "Pass the guest's discards on to the storage, or ignore them."},
    {"detect-zeroes", BLOCK_OPTION_ENUM, offsetof(struct disk_values, detect_zeroes),
     .default_text = "off", .enum_values = detect_zeroes_names,
     .help = "Turn writes of zeroes into write-zeroes requests."},
    {"locking", BLOCK_OPTION_ENUM, offsetof(struct disk_values, locking), .default_text = "auto",
     .enum_values = locking_names, .help = "Lock the image against other programs."},
    {"rerror", BLOCK_OPTION_ENUM, offsetof(struct disk_values, read_error),
     .default_text = "report", .enum_values = block_error_policy_names,
     .help = "What to do when a guest's read fails."},
    {"werror", BLOCK_OPTION_ENUM, offsetof(struct disk_values, write_error),
     .default_text = "report", .enum_values = block_error_policy_names,
     .help = "What to do when a guest's write fails."},
    {"tracking", BLOCK_OPTION_STRING, offsetof(struct disk_values, tracking),
     .help = "Track what changes, for incremental backups: auto (in a file beside the disk's), a "
             "file's path, or off."},
    {"tracking-granule", BLOCK_OPTION_SIZE, offsetof(struct disk_values, tracking_granule),
     .help = "Bytes of the disk per entry in a new tracking file, 4k to 64M; 64k by default."},
    {"tracking-extent", BLOCK_OPTION_SIZE, offsetof(struct disk_values, tracking_extent),
     .help = "What counts as changed after a power loss, at most 4G; 4M by default."},
    {"tracking-extents", BLOCK_OPTION_UINT, offsetof(struct disk_values, tracking_extents),
     .help = "How many of those at a time, 16 to 65536; 1024 by default."},
    {.name = NULL},
};

char *disk_default_name(unsigned index)
{
    GString *letters = g_string_new(NULL);

    do {
        g_string_prepend_c(letters, (char)('a' + index % 26));
        index /= 26;
    } while (index-- > 0);
    g_string_prepend(letters, "vd");
    return g_string_free(letters, FALSE);
}

static bool is_uri(const char *text)
{
    return g_str_has_prefix(text, "nbd://") || g_str_has_prefix(text, "nbds://") ||
           g_str_has_prefix(text, "nbd+unix://") || g_str_has_prefix(text, "nbds+unix://") ||
           g_str_has_prefix(text, "nbd+vsock://") || g_str_has_prefix(text, "nbds+vsock://");
}

/* A description with no "=" before its first comma is a path, commas and all. */
static bool is_bare_path(const char *text)
{
    const char *equals = strchr(text, '=');
    const char *slash = strchr(text, '/');

    return !equals || is_uri(text) || (slash && slash < equals);
}

static struct block_options *parse_text(const char *text, GError **error)
{
    struct block_options *options;

    if (!is_bare_path(text)) {
        return block_options_parse(text, NULL, error);
    }
    options = block_options_new();
    block_options_set(options, "file", text);
    return options;
}

/* `locking` is passed on to a local file only; where it would mean nothing it is refused. */
static int check_locking(const struct disk *disk, GError **error)
{
    if (disk->values.locking == DISK_LOCKING_AUTO) {
        return 0;
    }
    if (disk->file_options) {
        return block_error(error, EINVAL,
                           "Disk '%s': with file.driver= write file.locking= instead of locking=",
                           disk->values.name);
    }
    if (is_uri(disk->values.file)) {
        return block_error(error, EINVAL,
                           "Disk '%s': a remote disk cannot be locked; leave locking= out",
                           disk->values.name);
    }
    return 0;
}

/* There is no page cache of this host's to bypass. */
static int check_cache(const struct disk *disk, GError **error)
{
    if (disk->values.cache == DISK_CACHE_NONE && !disk->file_options && is_uri(disk->values.file)) {
        return block_error(error, EINVAL,
                           "Disk '%s': cache=none means nothing for a remote disk; leave it out",
                           disk->values.name);
    }
    return 0;
}

/*
 * The file the disk lies in, as far as the description says; NULL: in none. Absolute, as the
 * process may go to another directory; the caller frees.
 */
static char *disk_file(const struct disk *disk)
{
    const struct block_options *nested = disk->file_options;
    const char *name = disk->values.file;

    if (nested) {
        bool is_file = !g_strcmp0(block_options_get(nested, "driver"), "file");

        name = is_file ? block_options_get(nested, "filename") : NULL;
    }
    return name && !is_uri(name) ? g_canonicalize_filename(name, NULL) : NULL;
}

/* Makes of `tracking` the file's path, or NULL. */
static int check_tracking(struct disk *disk, GError **error)
{
    struct disk_values *values = &disk->values;
    struct tracking_geometry geometry = {values->tracking_granule, values->tracking_extent,
                                         (uint32_t)MIN_OF(values->tracking_extents, UINT32_MAX)};

    if (!g_strcmp0(values->tracking, "off")) {
        g_clear_pointer(&values->tracking, g_free);
    }
    if (!values->tracking) {
        return geometry.granule || geometry.extent || geometry.extents
                   ? block_error(error, EINVAL,
                                 "Disk '%s': tracking-granule, -extent and -extents mean nothing "
                                 "without tracking=",
                                 values->name)
                   : 0;
    }
    if (values->read_only) {
        return block_error(error, EINVAL,
                           "Disk '%s': nothing changes on a read-only disk; leave tracking= out",
                           values->name);
    }
    g_autofree char *file = disk_file(disk);
    char *path = device_tracking_path(values->tracking, file, error);
    if (!path || tracking_geometry_check(&geometry, error) < 0) {
        g_free(path);
        g_prefix_error(error, "Disk '%s': ", values->name);
        return -EINVAL;
    }
    g_free(values->tracking);
    values->tracking = path;
    return 0;
}

static int check_storage(struct disk *disk, GError **error)
{
    bool has_nested = disk->file_options != NULL;
    bool has_file = disk->values.file && *disk->values.file;

    if (has_file && has_nested) {
        return block_error(error, EINVAL, "Disk '%s': give either file= or file.driver=, not both",
                           disk->values.name);
    }
    if (!has_file && !has_nested) {
        return block_error(error, EINVAL,
                           "Disk '%s': file= is missing; write disk=PATH or "
                           "disk=name=NAME,file=PATH",
                           disk->values.name);
    }
    if (check_locking(disk, error) < 0 || check_cache(disk, error) < 0) {
        return -EINVAL;
    }
    if (has_file && !is_uri(disk->values.file)) {
        char *absolute = g_canonicalize_filename(disk->values.file, NULL);

        g_free(disk->values.file);
        disk->values.file = absolute;
    }
    return check_tracking(disk, error);
}

/* Whether a format has the option, or the node it names: "backing", "backing.driver". */
static bool has_option(const struct block_driver *driver, const char *key)
{
    for (const struct block_option *option = driver->options; option && option->name; option++) {
        size_t length = strlen(option->name);

        if (!strncmp(option->name, key, length) &&
            (!key[length] || (key[length] == '.' && (option->type == BLOCK_OPTION_NODE ||
                                                     option->type == BLOCK_OPTION_NODES)))) {
            return true;
        }
    }
    return false;
}

/* A format that is found out later may be any. */
static bool is_format_option(const char *format, const char *key)
{
    const struct block_driver *const *list = block_driver_list();

    for (; *list; list++) {
        if (format ? !strcmp((*list)->name, format) : (*list)->probe != NULL) {
            if (has_option(*list, key)) {
                return true;
            }
        }
    }
    return false;
}

/* What is left belongs to the format, or to nobody. */
static int take_format_options(struct disk *disk, struct block_options *options, GError **error)
{
    g_auto(GStrv) keys = block_options_keys(options);

    disk->format_options = block_options_new();
    for (char **key = keys; *key; key++) {
        /* An image that is opened to be checked serves nobody. */
        if (strcmp(*key, "for-check") && is_format_option(disk->values.format, *key)) {
            g_autofree char *value = block_options_take(options, *key);

            block_options_set(disk->format_options, *key, value);
        }
    }
    return block_options_expect_empty(options, NULL, error);
}

struct disk *disk_parse(const char *text, unsigned index, GError **error)
{
    AUTO(block_options) options = parse_text(text, error);
    AUTO(disk) disk = g_new0(struct disk, 1);

    if (!options) {
        return NULL;
    }
    if (!block_options_get(options, "file") && block_options_has(options, "file")) {
        disk->file_options = block_options_take_nested(options, "file");
    }
    if (block_options_extract(options, disk_options, &disk->values, NULL, error) < 0 ||
        limits_take_options(options, &disk->limits, error) < 0 ||
        take_format_options(disk, options, error) < 0) {
        g_prefix_error(error, "disk=%s: ", text);
        return NULL;
    }
    if (!disk->values.name) {
        disk->values.name = disk_default_name(index);
    }
    if (check_storage(disk, error) < 0) {
        return NULL;
    }
    return STEAL(disk);
}

void disk_free(struct disk *disk)
{
    block_options_clear_target(disk_options, &disk->values);
    if (disk->file_options) {
        block_options_free(disk->file_options);
    }
    if (disk->format_options) {
        block_options_free(disk->format_options);
    }
    g_free(disk);
}

const char *disk_name(const struct disk *disk)
{
    return disk->values.name;
}

static void add_options(struct block_options *options, const char *prefix,
                        const struct block_options *more)
{
    g_auto(GStrv) keys = block_options_keys(more);

    for (char **key = keys; *key; key++) {
        g_autofree char *full = g_strconcat(prefix, *key, NULL);

        block_options_set(options, full, block_options_get(more, *key));
    }
}

static void set_storage_options(const struct disk *disk, struct block_options *options)
{
    const struct disk_values *values = &disk->values;

    add_options(options, "", disk->format_options);
    if (disk->file_options) {
        add_options(options, "file.", disk->file_options);
    } else if (is_uri(values->file)) {
        block_options_set(options, "file.driver", "nbd");
        block_options_set(options, "file.uri", values->file);
    } else {
        block_options_set(options, "file.driver", "file");
        block_options_set(options, "file.filename", values->file);
        block_options_set(options, "file.locking", locking_names[values->locking]);
    }
}

/* The format nobody named: a local file's by its first bytes. NULL with the error set. */
static const char *find_format(const struct disk *disk, bool *is_guess, GError **error)
{
    const char *format;

    *is_guess = false;
    if (disk->values.format) {
        return disk->values.format;
    }
    if (disk->file_options || is_uri(disk->values.file)) {
        return "raw";
    }
    format = block_probe_file(disk->values.file, error);
    *is_guess = format && !strcmp(format, "raw");
    return format;
}

/* What a guest writes must not decide what is opened next time. */
static void guard_guess(const struct disk *disk, struct block_node *root)
{
    g_warning("Disk '%s': no format was given, and '%s' looks like a raw disk. So that its guest "
              "cannot make it look like another format, writes to its first sectors are "
              "restricted; with format=raw they are not.",
              disk->values.name, disk->values.file);
    raw_guard_format(root);
}

static struct block_options *root_options(const struct disk *disk, const char *format,
                                          bool read_only)
{
    const struct disk_values *values = &disk->values;
    struct block_options *options = block_options_new();

    block_options_set(options, "driver", format);
    if (values->node_name) {
        block_options_set(options, "node-name", values->node_name);
    }
    if (values->read_only || read_only) {
        block_options_set(options, "read-only", "on");
    } else {
        block_options_set(options, "auto-read-only", "on");
    }
    block_options_set(options, "discard", discard_names[values->discard]);
    block_options_set(options, "detect-zeroes", detect_zeroes_names[values->detect_zeroes]);
    block_options_set(options, "cache.direct", values->cache == DISK_CACHE_NONE ? "on" : "off");
    block_options_set(options, "cache.no-flush", values->cache == DISK_CACHE_UNSAFE ? "on" : "off");
    set_storage_options(disk, options);
    return options;
}

/* identity: the disk's file before it was opened. */
static void begin_tracking(const struct disk *disk, struct block_device *device, const char *file,
                           const struct tracking_identity *identity)
{
    const struct disk_values *values = &disk->values;
    /* Named in the same way, with links followed, so that a name can be compared. */
    g_autofree char *usual = file ? device_tracking_path("auto", file, NULL) : NULL;
    struct tracking_options options = {
        .device = values->name,
        .path = values->tracking ? values->tracking : usual,
        .disk_path = file,
        .identity = *identity,
        .geometry = {values->tracking_granule, values->tracking_extent,
                     (uint32_t)values->tracking_extents},
    };

    if (block_device_is_read_only(device)) {
        return;
    }
    if (values->tracking) {
        device_tracking_begin(device, &options);
    }
    /* Also where another file is used: this one then knows as little of what comes. */
    if (usual && g_strcmp0(values->tracking, usual)) {
        AUTO(block_node) root = block_device_root(device);

        options.path = usual;
        tracking_part(&options, root);
    }
}

int disk_open(struct disk *disk, bool read_only, GError **error)
{
    bool is_guess;
    struct tracking_identity identity;
    g_autofree char *file = disk_file(disk);

    tracking_identify(file, &identity);
    const char *format = find_format(disk, &is_guess, error);
    AUTO(block_options) options = format ? root_options(disk, format, read_only) : NULL;
    block_stored_bitmaps_expect_late(disk->values.tracking && !read_only);
    AUTO(block_node) root = options ? block_node_open(options, true, error) : NULL;
    block_stored_bitmaps_expect_late(false);

    if (root && is_guess && !block_node_is_read_only(root)) {
        guard_guess(disk, root);
    }
    struct block_device *device = root ? block_device_new(disk->values.name, root, error) : NULL;

    if (!device) {
        g_prefix_error(error, "Disk '%s': ", disk->values.name);
        return -EINVAL;
    }
    block_device_set_error_policies(device, disk->values.read_error, disk->values.write_error);
    throttle_set_limits(block_device_throttle(device), &disk->limits);
    begin_tracking(disk, device, file, &identity);
    return 0;
}
