/* SPDX-License-Identifier: BSD-3-Clause */
/* Disks of running servers, where the subcommands for images meet them. */
#include <string.h>
#include <sys/stat.h>

#include "block/cleanup.h"
#include "cli/image.h"
#include "cli/output.h"
#include "cli/runtime.h"

/* Who is only asked whether it has a file should not keep anybody waiting. */
#define LOOK_TIMEOUT_MS 3000

bool image_is_served(const struct invocation *invocation, const char *name)
{
    return invocation->admin ||
           (!strchr(name, '/') && !g_file_test(name, G_FILE_TEST_EXISTS | G_FILE_TEST_IS_SYMLINK));
}

struct client *image_connect(const struct invocation *invocation, const char *name, GError **error)
{
    if (image_has_policy()) {
        usage_error(error, "--image-references is for files: what the images of a server may refer "
                           "to was said when it was started");
        return NULL;
    }
    struct client *client = connect_to_server(invocation, error);

    if (!client && !invocation->admin) {
        g_prefix_error(error, "There is no file '%s', and no disk of that name: ", name);
    }
    return client;
}

json_t *image_query(struct client *client, const char *device, GError **error)
{
    json_t *devices = client_call(client, "query-block", NULL, CLIENT_QUERY_TIMEOUT_MS, error);
    json_t *entry, *image = NULL;
    size_t i;

    if (!devices) {
        return NULL;
    }
    json_array_foreach (devices, i, entry) {
        if (!strcmp(member_text(entry, "device", ""), device)) {
            image = json_incref(json_object_get(json_object_get(entry, "inserted"), "image"));
        }
    }
    json_decref(devices);
    if (!image) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED, "The server has no disk '%s'", device);
    }
    return image;
}

/* ---- Who serves a file ----------------------------------------------------------------------- */

static bool is_same_file(const char *path, const struct stat *wanted)
{
    struct stat st;

    return stat(path, &st) == 0 && st.st_dev == wanted->st_dev && st.st_ino == wanted->st_ino;
}

/* The file is this image or one of its backing files. */
static bool uses_file(const json_t *image, const struct stat *wanted)
{
    for (; image; image = json_object_get(image, "backing-image")) {
        if (is_same_file(member_text(image, "filename", ""), wanted)) {
            return true;
        }
    }
    return false;
}

/* The device of a server that has the file, or NULL; the caller frees. */
static char *find_device(const char *admin, const struct stat *wanted)
{
    AUTO_CLIENT client = client_connect(admin, NULL);
    json_t *devices =
        client ? client_call(client, "query-block", NULL, LOOK_TIMEOUT_MS, NULL) : NULL;
    char *found = NULL;
    json_t *entry;
    size_t i;

    json_array_foreach (devices, i, entry) {
        const json_t *image = json_object_get(json_object_get(entry, "inserted"), "image");

        if (!found && uses_file(image, wanted)) {
            found = g_strdup(member_text(entry, "device", ""));
        }
    }
    json_decref(devices);
    return found;
}

static char *sentence(const char *device, const char *admin, const char *served_command)
{
    return served_command
               ? g_strdup_printf("The server at '%s' has it as its disk '%s': there 'liveblk %s "
                                 "--admin %s %s' works on it",
                                 admin, device, served_command, admin, device)
               : g_strdup_printf("The server at '%s' has it as its disk '%s': stop that first",
                                 admin, device);
}

char *image_find_server(const char *path, const char *served_command)
{
    g_auto(GStrv) sockets = runtime_admin_sockets();
    const char *named = g_getenv("LIVEBLK_ADMIN");
    struct stat wanted;
    char *found = NULL;

    if (stat(path, &wanted) < 0) {
        return NULL;
    }
    g_autofree char *device = named && *named ? find_device(named, &wanted) : NULL;
    if (device) {
        return sentence(device, named, served_command);
    }
    for (unsigned i = 0; sockets[i] && !found; i++) {
        g_autofree char *user = find_device(sockets[i], &wanted);

        found = user ? sentence(user, sockets[i], served_command) : NULL;
    }
    return found;
}
