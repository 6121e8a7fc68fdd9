/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/image-options.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/driver.h"
#include "block/error.h"
#include "block/gate.h"

/* What qemu-img calls the version. */
static const struct {
    const char *compat, *version;
} versions[] = {{"0.10", "v2"}, {"v2", "v2"}, {"1.1", "v3"}, {"v3", "v3"}};

static char *dashed(const char *name)
{
    return g_strdelimit(g_strdup(name), "_", '-');
}

/* ---- Names ---------------------------------------------------------------------------------- */

/* Whether a driver has a setting of this name; what files there are is no setting. */
static bool driver_has(const char *driver, const char *name)
{
    const struct block_option *option = block_driver_find(driver)->create_options;

    while (option->name && strcmp(option->name, name)) {
        option++;
    }
    return option->name && strcmp(name, "file") && strcmp(name, "filename");
}

static bool is_known(const char *format, const char *name)
{
    bool is_qcow2 = !strcmp(format, "qcow2");

    return driver_has(is_qcow2 ? "qcow2" : "file", name) || (is_qcow2 && !strcmp(name, "compat"));
}

static int check_name(const struct create_request *request, const char *typed, GError **error)
{
    g_autofree char *name = dashed(typed);

    if (is_known(request->format, name)) {
        return 0;
    }
    if (create_request_is_raw(request) && is_known("qcow2", name)) {
        return block_error(error, EINVAL, "Raw images have no option '%s'; qcow2 images do", typed);
    }
    return block_error(error, EINVAL, "%s images have no option '%s'",
                       create_request_is_raw(request) ? "Raw" : request->format, typed);
}

/* Replace a name in a text, but not where it is a part of another, or of a path. */
static char *replace_name(const char *text, const char *name, const char *replacement)
{
    g_autofree char *pattern = g_strdup_printf("(?<![\\w./-])%s(?![\\w./-])", name);
    g_autoptr(GRegex) regex = g_regex_new(pattern, 0, 0, NULL);

    return g_regex_replace_literal(regex, text, -1, 0, replacement, 0, NULL);
}

void create_request_explain(const struct create_request *request, GError *error)
{
    const struct block_option *option = block_driver_find("qcow2")->create_options;

    if (request->has_compat) {
        g_autofree char *text = STEAL(error->message);

        error->message = replace_name(text, "version=v3", "compat=1.1");
    }
    for (; request->has_underscores && option->name; option++) {
        g_autofree char *text = STEAL(error->message);
        g_autofree char *name = g_strdelimit(g_strdup(option->name), "-", '_');

        error->message = replace_name(text, option->name, name);
    }
}

/* ---- Settings ------------------------------------------------------------------------------- */

static int set_version(struct block_options *settings, const char *compat, GError **error)
{
    for (size_t i = 0; i < G_N_ELEMENTS(versions); i++) {
        if (!strcmp(compat, versions[i].compat)) {
            block_options_set(settings, "version", versions[i].version);
            return 0;
        }
    }
    return block_error(error, EINVAL, "compat is 0.10 (v2) or 1.1 (v3), not '%s'", compat);
}

static int set_setting(struct create_request *request, const char *name, const char *value,
                       GError **error)
{
    g_autofree char *driver_name = dashed(name);

    if (check_name(request, name, error) < 0) {
        return -EINVAL;
    }
    request->has_underscores |= strchr(name, '_') != NULL;
    if (!strcmp(name, "compat")) {
        request->has_compat = true;
        return set_version(request->settings, value, error);
    }
    block_options_set(request->settings, driver_name, value);
    return 0;
}

static int add_settings(struct create_request *request, const char *text, GError **error)
{
    AUTO(block_options) parsed = block_options_parse(text, NULL, error);
    char **keys = parsed ? block_options_keys(parsed) : NULL;
    int status = parsed ? 0 : -EINVAL;

    for (char **key = keys; status == 0 && key && *key; key++) {
        status = set_setting(request, *key, block_options_get(parsed, *key), error);
    }
    g_strfreev(keys);
    return status;
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

static int check_format(const struct create_request *request, GError **error)
{
    return strcmp(request->format, "qcow2") && !create_request_is_raw(request)
               ? block_error(error, EINVAL, "--format is qcow2 or raw, not '%s'", request->format)
               : 0;
}

static int check_request(const struct create_request *request, GError **error)
{
    bool is_raw = create_request_is_raw(request);
    const char *problem = NULL;

    if (block_options_has(request->settings, "size")) {
        problem = "The size is no setting: give it after the file";
    } else if (is_raw && request->backing) {
        problem = "A raw image has no backing file";
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
    if (check_format(request, error) < 0) {
        return NULL;
    }
    for (; settings && *settings; settings++) {
        if (add_settings(request, *settings, error) < 0) {
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

/* ---- Changing what an image is -------------------------------------------------------------- */

static bool can_be_amended(const struct block_driver *driver, const char *name)
{
    const struct block_option *option = driver->amend_options;

    while (option && option->name && strcmp(option->name, name)) {
        option++;
    }
    return option && option->name;
}

static int set_amendment(struct block_options *amendments, const struct block_driver *driver,
                         const char *typed, const char *value, GError **error)
{
    g_autofree char *name = dashed(typed);

    if (!strcmp(name, "compat") && can_be_amended(driver, "version")) {
        return set_version(amendments, value, error);
    }
    if (!can_be_amended(driver, name)) {
        return block_error(error, EINVAL, "%s images have no option '%s' that can be changed",
                           driver->name, typed);
    }
    block_options_set(amendments, name, value);
    return 0;
}

struct block_options *amendments_new(const struct block_driver *driver, const char *const *settings,
                                     GError **error)
{
    AUTO(block_options) amendments = block_options_new();

    for (; *settings; settings++) {
        AUTO(block_options) parsed = block_options_parse(*settings, NULL, error);
        g_auto(GStrv) keys = parsed ? block_options_keys(parsed) : NULL;

        for (char **key = keys; key && *key; key++) {
            const char *value = block_options_get(parsed, *key);

            if (set_amendment(amendments, driver, *key, value, error) < 0) {
                return NULL;
            }
        }
        if (!parsed) {
            return NULL;
        }
    }
    return STEAL(amendments);
}
