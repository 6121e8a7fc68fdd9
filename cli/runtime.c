/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/runtime.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "block/cleanup.h"

#define SYSTEM_DIRECTORY "/run/liveblk"
#define ADMIN_SUFFIX     ".admin.sock"
#define NBD_SUFFIX       ".nbd.sock"

/*
 * The user's own directory, or NULL. One that belongs to somebody else (su and sudo may leave
 * the variable set) is not the place for our sockets.
 */
static char *user_directory(void)
{
    const char *parent = g_getenv("XDG_RUNTIME_DIR");
    struct stat status;

    if (!parent || !g_path_is_absolute(parent) || stat(parent, &status) ||
        status.st_uid != geteuid()) {
        return NULL;
    }
    return g_build_filename(parent, "liveblk", NULL);
}

/* A directory that others could write to would let them put sockets of their own there. */
static bool directory_is_ours(const char *path, GError **error)
{
    struct stat status;

    if (lstat(path, &status)) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED, "Could not use the directory '%s': %s", path,
                    g_strerror(errno));
        return false;
    }
    if (!S_ISDIR(status.st_mode) || status.st_uid != geteuid() || (status.st_mode & 022)) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED,
                    "'%s' is no directory that only you can write to; make it one, or name the "
                    "sockets with --admin and --socket",
                    path);
        return false;
    }
    return true;
}

char *runtime_directory_make(GError **error)
{
    g_autofree char *path = user_directory();

    if (!path && geteuid() == 0) {
        path = g_strdup(SYSTEM_DIRECTORY);
    }
    if (!path) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED,
                    "There is no default directory for sockets because XDG_RUNTIME_DIR is not "
                    "set; name them with --admin SOCKET and --socket SOCKET");
        return NULL;
    }
    if (mkdir(path, 0700) && errno != EEXIST) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED, "Could not create the directory '%s': %s", path,
                    g_strerror(errno));
        return NULL;
    }
    return directory_is_ours(path, error) ? STEAL(path) : NULL;
}

char *runtime_admin_path(const char *directory, const char *name)
{
    return g_strdup_printf("%s/%s" ADMIN_SUFFIX, directory, name);
}

char *runtime_nbd_path(const char *directory, const char *name)
{
    return g_strdup_printf("%s/%s" NBD_SUFFIX, directory, name);
}

char *runtime_nbd_socket_of(const char *admin)
{
    g_autofree char *absolute = g_canonicalize_filename(admin, NULL);

    if (!g_str_has_suffix(absolute, ADMIN_SUFFIX)) {
        return NULL;
    }
    absolute[strlen(absolute) - strlen(ADMIN_SUFFIX)] = '\0';
    g_autofree char *socket = g_strconcat(absolute, NBD_SUFFIX, NULL);
    return socket_is_served(socket) ? STEAL(socket) : NULL;
}

char *nbd_unix_uri(bool tls, const char *socket, const char *export)
{
    g_autofree char *name = g_uri_escape_string(export, "@", FALSE);
    g_autofree char *path = g_uri_escape_string(socket, "/", FALSE);

    return g_strdup_printf("%s+unix:///%s?socket=%s", tls ? "nbds" : "nbd", name, path);
}

bool socket_is_served(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    AUTO_CLOSE int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0 || strlen(path) >= sizeof(address.sun_path)) {
        return false;
    }
    strcpy(address.sun_path, path);
    /* EAGAIN: it has a queue of clients, so somebody serves it. */
    return !connect(fd, (struct sockaddr *)&address, sizeof(address)) || errno == EAGAIN;
}

static void find_in_directory(const char *directory, GPtrArray *found)
{
    g_autoptr(GDir) listing = directory ? g_dir_open(directory, 0, NULL) : NULL;
    const char *name;

    while (listing && (name = g_dir_read_name(listing))) {
        g_autofree char *path = g_build_filename(directory, name, NULL);
        if (g_str_has_suffix(name, ADMIN_SUFFIX) && socket_is_served(path)) {
            g_ptr_array_add(found, STEAL(path));
        }
    }
}

char **runtime_admin_sockets(void)
{
    g_autoptr(GPtrArray) found = g_ptr_array_new();
    g_autofree char *directory = user_directory();

    find_in_directory(directory, found);
    if (geteuid() == 0) {
        find_in_directory(SYSTEM_DIRECTORY, found);
    }
    g_ptr_array_add(found, NULL);
    return (char **)g_ptr_array_free(STEAL(found), FALSE);
}

/* The default socket; the caller frees. */
static char *find_server(GError **error)
{
    g_auto(GStrv) found = runtime_admin_sockets();
    g_autofree char *directory = user_directory();

    if (g_strv_length(found) == 1) {
        return g_strdup(found[0]);
    }
    if (found[0]) {
        g_autofree char *list = g_strjoinv(", ", found);
        g_set_error(error, CLI_ERROR, EXIT_UNREACHABLE,
                    "Several servers run: %s; name one with --admin SOCKET or LIVEBLK_ADMIN", list);
    } else {
        g_set_error(error, CLI_ERROR, EXIT_UNREACHABLE,
                    "No server found: nobody listens on a NAME" ADMIN_SUFFIX " in %s%s%s; start "
                    "one with 'liveblk serve', or name its socket with --admin SOCKET or "
                    "LIVEBLK_ADMIN",
                    directory ? directory : "", directory && geteuid() == 0 ? " or " : "",
                    geteuid() == 0 ? SYSTEM_DIRECTORY
                    : directory    ? ""
                                   : "XDG_RUNTIME_DIR (which is not set)");
    }
    return NULL;
}

char *runtime_find_admin(const struct invocation *invocation, GError **error)
{
    const char *named = invocation->admin ? invocation->admin : g_getenv("LIVEBLK_ADMIN");

    return named && *named ? g_strdup(named) : find_server(error);
}

struct client *connect_to_server(const struct invocation *invocation, GError **error)
{
    g_autofree char *path = runtime_find_admin(invocation, error);

    return path ? client_connect(path, error) : NULL;
}
