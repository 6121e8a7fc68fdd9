/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/image-options.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/error.h"
#include "block/gate.h"

/* Names that are not just the driver's with underscores. */
static const struct {
    const char *name, *value; /* value NULL: any */
    const char *driver_name, *driver_value;
} translations[] = {
    {"compat", "0.10", "version", "v2"},
    {"compat", "v2", "version", "v2"},
    {"compat", "1.1", "version", "v3"},
    {"compat", "v3", "version", "v3"},
};

static void set_setting(struct block_options *settings, const char *name, const char *value)
{
    g_autofree char *dashed = g_strdelimit(g_strdup(name), "_", '-');

    for (size_t i = 0; i < G_N_ELEMENTS(translations); i++) {
        if (!strcmp(name, translations[i].name) && !strcmp(value, translations[i].value)) {
            block_options_set(settings, translations[i].driver_name, translations[i].driver_value);
            return;
        }
    }
    block_options_set(settings, dashed, value);
}

static int add_settings(struct block_options *settings, const char *text, GError **error)
{
    AUTO(block_options) parsed = block_options_parse(text, NULL, error);
    char **keys = parsed ? block_options_keys(parsed) : NULL;

    for (char **key = keys; key && *key; key++) {
        set_setting(settings, *key, block_options_get(parsed, *key));
    }
    g_strfreev(keys);
    return parsed ? 0 : -EINVAL;
}

/* What an option of its own says, or else the setting of that name, which is taken out. */
static char *either(const char *given, struct block_options *settings, const char *name)
{
    char *setting = block_options_take(settings, name);

    if (!given) {
        return setting;
    }
    g_free(setting);
    return g_strdup(given);
}

static int check_request(const struct create_request *request, GError **error)
{
    bool is_raw = create_request_is_raw(request);
    const char *problem = NULL;

    if (strcmp(request->format, "qcow2") && !is_raw) {
        return block_error(error, EINVAL, "--format is qcow2 or raw, not '%s'", request->format);
    }
    if (block_options_has(request->settings, "size")) {
        problem = "The size is no setting: give it after the file";
    } else if (is_raw && request->backing) {
        problem = "A raw image has no backing file";
    } else if (is_raw && request->data_file) {
        problem = "A raw image has no data file";
    } else if (request->backing && !request->backing_format) {
        problem = "A backing file needs its format: --backing-format raw or qcow2";
    } else if (!request->backing && request->backing_format) {
        problem = "--backing-format makes no sense without --backing";
    }
    return problem ? block_error(error, EINVAL, "%s", problem) : 0;
}

struct create_request *create_request_new(const char *path, const char *format, const char *backing,
                                          const char *backing_format, const char *const *settings,
                                          GError **error)
{
    AUTO(create_request) request = g_new0(struct create_request, 1);

    request->format = g_strdup(format ? format : "qcow2");
    request->settings = block_options_new();
    for (; settings && *settings; settings++) {
        if (add_settings(request->settings, *settings, error) < 0) {
            g_prefix_error(error, "--option: ");
            return NULL;
        }
    }
    request->backing = either(backing, request->settings, "backing-file");
    request->backing_format = either(backing_format, request->settings, "backing-fmt");
    request->data_file_name = block_options_take(request->settings, "data-file");
    if (request->data_file_name) {
        request->data_file = block_reference_filename(path, request->data_file_name);
    }
    return check_request(request, error) == 0 ? STEAL(request) : NULL;
}

void create_request_free(struct create_request *request)
{
    if (request) {
        g_free(request->format);
        g_free(request->backing);
        g_free(request->backing_format);
        g_free(request->data_file);
        g_free(request->data_file_name);
        block_options_free(request->settings);
        g_free(request);
    }
}

bool create_request_is_raw(const struct create_request *request)
{
    return !strcmp(request->format, "raw");
}

static void set_file(struct block_options *options, const char *child, const char *path)
{
    g_autofree char *driver = g_strconcat(child, ".driver", NULL);
    g_autofree char *filename = g_strconcat(child, ".filename", NULL);
    bool is_block_device =
        g_file_test(path, G_FILE_TEST_EXISTS) && !g_file_test(path, G_FILE_TEST_IS_REGULAR);

    block_options_set(options, driver, is_block_device ? "host_device" : "file");
    block_options_set(options, filename, path);
}

struct block_options *create_request_options(const struct create_request *request, const char *path)
{
    struct block_options *options = block_options_copy(request->settings);
    g_autofree char *size = g_strdup_printf("%" PRId64, request->size);

    block_options_set(options, "size", size);
    if (create_request_is_raw(request)) {
        block_options_set(options, "driver", "file");
        block_options_set(options, "filename", path);
        return options;
    }
    block_options_set(options, "driver", request->format);
    set_file(options, "file", path);
    if (request->data_file) {
        set_file(options, "data-file", request->data_file);
        block_options_set(options, "data-file-name", request->data_file_name);
    }
    if (request->backing) {
        block_options_set(options, "backing-file", request->backing);
        block_options_set(options, "backing-fmt", request->backing_format);
    }
    return options;
}
