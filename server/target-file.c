/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/target-file.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/chain.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "block/options.h"
#include "formats/raw.h"
#include "server/lookup.h"

static const char *const mode_names[] = {"absolute-paths", "existing", NULL};
const struct qmp_type new_image_mode_type = {
    .name = "NewImageMode",
    .kind = QMP_KIND_ENUM,
    .values = mode_names,
    .doc = "absolute-paths: create the target; existing: write an image that is there.",
};

bool target_file_is_created(json_t *mode)
{
    return !mode || lookup_enum(mode, mode_names) == 0;
}

struct target_file target_file_from_arguments(json_t *arguments, uint64_t length)
{
    const char *format = json_string_value(json_object_get(arguments, "format"));

    return (struct target_file){
        .filename = json_string_value(json_object_get(arguments, "target")),
        .format = format ? format : "raw",
        .length = length,
        .create = target_file_is_created(json_object_get(arguments, "mode")),
    };
}

static int create_file(const struct target_file *file, uint64_t length, GError **error)
{
    AUTO(block_options) options = block_options_new();
    g_autofree char *size = g_strdup_printf("%" PRIu64, length);

    block_options_set(options, "driver", "file");
    block_options_set(options, "filename", file->filename);
    block_options_set(options, "size", size);
    int status = block_create(options, NULL, NULL, error);
    if (file->is_made) {
        *file->is_made = status == 0;
    }
    return status;
}

/* What the new image says that its backing file is, as mode `absolute-paths` has it. */
static int name_backing(struct block_node *backing, struct block_options *options, GError **error)
{
    g_autofree char *name = block_chain_reference(NULL, backing, error);

    if (!name) {
        return -ENOTSUP;
    }
    block_options_set(options, "backing-file", name);
    block_options_set(options, "backing-fmt", block_chain_format(backing, true));
    return 0;
}

static int check_takes_backing(const struct target_file *file, GError **error)
{
    const struct block_driver *driver = block_driver_find(file->format);

    return driver && !block_driver_takes_backing(driver)
               ? block_error(error, ENOTSUP,
                             "An image of format '%s' cannot have the disk's backing file, without "
                             "which what 'top' copies is no disk: use the format 'qcow2'",
                             file->format)
               : 0;
}

/* A raw target is the file itself; another format is made in an empty one. backing: or NULL. */
static int create(const struct target_file *file, struct block_node *backing, GError **error)
{
    const struct block_driver *driver = block_driver_find(file->format);
    bool is_raw = !strcmp(file->format, "raw");

    if (!is_raw && (!driver || !driver->create || driver->is_protocol)) {
        return block_error(error, ENOTSUP, "Images of format '%s' cannot be created", file->format);
    }
    AUTO(block_options) options = block_options_new();
    int status = backing ? check_takes_backing(file, error) : 0;
    if (status == 0 && backing) {
        status = name_backing(backing, options, error);
    }
    if (status == 0) {
        status = create_file(file, is_raw ? file->length : 0, error);
    }
    if (status < 0 || is_raw) {
        return status;
    }
    g_autofree char *size = g_strdup_printf("%" PRIu64, file->length);
    block_options_set(options, "driver", file->format);
    block_options_set(options, "size", size);
    block_options_set(options, "file.driver", "file");
    block_options_set(options, "file.filename", file->filename);
    return block_create(options, NULL, NULL, error);
}

struct block_node *target_file_open(void *data, GError **error)
{
    static const char *const detect_zeroes[] = {"off", "on", "unmap"};
    const struct target_file *file = data;
    AUTO(block_options) options = block_options_new();
    AUTO(block_node) backing = file->create && file->beside
                                   ? block_chain_below(block_node_below_filters(file->beside))
                                   : NULL;

    if (file->create && create(file, file->overlaid ? file->overlaid : backing, error) < 0) {
        return NULL;
    }
    if (file->overlaid || backing) {
        block_options_set(options, "backing", file->overlaid ? "" : backing->name);
    }
    block_options_set(options, "driver", file->format);
    if (file->node_name) {
        block_options_set(options, "node-name", file->node_name);
    }
    block_options_set(options, "discard", file->drops_discards ? "ignore" : "unmap");
    block_options_set(options, "detect-zeroes", detect_zeroes[file->detect_zeroes]);
    block_options_set(options, "cache.direct", file->cache_direct ? "on" : "off");
    block_options_set(options, "cache.no-flush", file->cache_no_flush ? "on" : "off");
    block_options_set(options, "file.driver", "file");
    block_options_set(options, "file.filename", file->filename);
    struct block_node *node = block_node_open(options, true, error);
    if (node && file->guards_format) {
        raw_guard_format(node);
    }
    return node;
}
