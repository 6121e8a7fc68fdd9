/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/session-wishes.h"

#include <stdint.h>

#include "cli/command.h"
#include "cli/output.h"

/* As the shell splits it. False with the error set. */
static bool add_command(json_t *arguments, const char *name, const char *text, GError **error)
{
    g_autoptr(GError) problem = NULL;
    g_auto(GStrv) parts = NULL;
    json_t *array;

    if (!text) {
        return true;
    }
    if (!g_shell_parse_argv(text, NULL, &parts, &problem)) {
        usage_error(error, "--%s expects a command: %s", name, problem->message);
        return false;
    }
    array = json_array();
    for (char **part = parts; *part; part++) {
        json_array_append_new(array, json_string(*part));
    }
    json_object_set_new(arguments, name, array);
    return true;
}

static bool add_scratch(json_t *arguments, const struct session_wishes *wishes, GError **error)
{
    int64_t bytes;

    if (wishes->scratch) {
        g_autofree char *directory = g_canonicalize_filename(wishes->scratch, NULL);

        if (!g_utf8_validate(directory, -1, NULL)) {
            usage_error(error, "The name of the directory for --scratch is not valid UTF-8");
            return false;
        }
        json_object_set_new(arguments, "scratch", json_string(directory));
    }
    if (wishes->scratch_max) {
        if (!parse_size(wishes->scratch_max, &bytes)) {
            usage_error(error, "--scratch-max expects a number of bytes such as 50M, not '%s'",
                        wishes->scratch_max);
            return false;
        }
        json_object_set_new(arguments, "scratch-max", json_integer(bytes));
    }
    if (wishes->scratch_high_water < -1) {
        usage_error(error, "--scratch-high expects a percentage, or 0 for never, not %d",
                    wishes->scratch_high_water);
        return false;
    }
    if (wishes->scratch_high_water >= 0) {
        json_object_set_new(arguments, "scratch-high-water",
                            json_integer(wishes->scratch_high_water));
    }
    return true;
}

bool session_add_wishes(json_t *arguments, const struct session_wishes *wishes, GError **error)
{
    if (wishes->lease) {
        json_object_set_new(arguments, "lease", json_integer(wishes->lease));
    }
    if (wishes->hook_timeout) {
        json_object_set_new(arguments, "hook-timeout", json_integer(wishes->hook_timeout));
    }
    return add_command(arguments, "before-cut", wishes->before, error) &&
           add_command(arguments, "after-cut", wishes->after, error) &&
           add_scratch(arguments, wishes, error);
}
