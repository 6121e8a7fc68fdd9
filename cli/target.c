/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/target.h"

#include <string.h>
#include <sys/stat.h>

#include "block/cleanup.h"
#include "cli/command.h"

static bool is_nbd_uri(const char *text)
{
    static const char *const schemes[] = {"nbd://",       "nbds://",      "nbd+unix://",
                                          "nbds+unix://", "nbd+vsock://", "nbds+vsock://"};

    for (unsigned i = 0; i < G_N_ELEMENTS(schemes); i++) {
        if (g_str_has_prefix(text, schemes[i])) {
            return true;
        }
    }
    return false;
}

/* The server opens the URI; here only what the server cannot know: its folder is not ours. */
static bool check_uri(const char *text, GError **error)
{
    g_autoptr(GError) problem = NULL;
    g_autoptr(GUri) uri = g_uri_parse(text, G_URI_FLAGS_NONE, &problem);

    if (!uri) {
        usage_error(error, "'%s' is no NBD URI: %s", text, problem->message);
        return false;
    }
    if (!g_str_has_suffix(g_uri_get_scheme(uri), "+unix")) {
        return true;
    }
    const char *query = g_uri_get_query(uri);
    g_autoptr(GHashTable) parameters =
        query ? g_uri_parse_params(query, -1, "&", G_URI_PARAMS_NONE, NULL) : NULL;
    const char *socket = parameters ? g_hash_table_lookup(parameters, "socket") : NULL;
    if (!socket || !g_path_is_absolute(socket)) {
        usage_error(error, "'%s' must give the absolute path of a socket: %s:///NAME?socket=/PATH",
                    text, g_uri_get_scheme(uri));
        return false;
    }
    return true;
}

static bool parse_file(struct target *target, const char *path, bool existing, GError **error)
{
    struct stat status;

    target->kind = TARGET_FILE;
    /* The server has another working directory. */
    target->name = g_canonicalize_filename(path, NULL);
    bool is_there = !stat(target->name, &status);
    if (is_there && S_ISDIR(status.st_mode)) {
        usage_error(error, "'%s' is a directory; name a file in it", target->name);
        return false;
    }
    if (is_there && !existing) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED,
                    "'%s' is there already; name another file, or have it overwritten with "
                    "--existing",
                    target->name);
        return false;
    }
    return true;
}

static bool parse(struct target *target, const char *text, bool existing, GError **error)
{
    if (g_str_has_prefix(text, "node:")) {
        target->kind = TARGET_NODE;
        target->name = g_strdup(text + strlen("node:"));
    } else if (is_nbd_uri(text)) {
        target->kind = TARGET_NBD;
        target->name = g_strdup(text);
        return check_uri(text, error);
    } else {
        return parse_file(target, g_str_has_prefix(text, "file:") ? text + strlen("file:") : text,
                          existing, error);
    }
    return true;
}

struct target *target_parse(const char *text, bool existing, GError **error)
{
    struct target *target = g_new0(struct target, 1);

    if (!parse(target, text, existing, error)) {
        target_free(target);
        return NULL;
    }
    return target;
}

void target_free(struct target *target)
{
    if (target) {
        g_free(target->name);
        g_free(target);
    }
}
