/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/session-wishes.h"

#include <limits.h>
#include <stdint.h>

#include "cli/client.h"
#include "cli/command.h"
#include "cli/scratch-limits.h"

#define HOOK_TIMEOUT_DEFAULT_MS 10000 /* the server's */

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
    if (wishes->scratch) {
        g_autofree char *directory = g_canonicalize_filename(wishes->scratch, NULL);

        if (!g_utf8_validate(directory, -1, NULL)) {
            usage_error(error, "The name of the directory for --scratch is not valid UTF-8");
            return false;
        }
        json_object_set_new(arguments, "scratch", json_string(directory));
    }
    return scratch_limits_add(arguments, wishes->scratch_max, wishes->scratch_high_water, error);
}

int session_begin_timeout_ms(const struct session_wishes *wishes)
{
    int64_t each = wishes->hook_timeout > 0 ? wishes->hook_timeout : HOOK_TIMEOUT_DEFAULT_MS;
    int64_t hooks = (wishes->before ? each : 0) + (wishes->after ? each : 0);

    return (int)MIN(CLIENT_WORK_TIMEOUT_MS + hooks, INT_MAX);
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
