/* SPDX-License-Identifier: BSD-3-Clause */
/* liveblk serve: becomes nbdkit with our plugin. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "block/cleanup.h"
#include "cli/announce.h"
#include "cli/command.h"
#include "cli/output.h"
#include "cli/runtime.h"
#include "cli/serve.h"
#include "server/unix-socket.h"

/* Where a program that is started by socket activation finds its first socket. */
#define ACTIVATION_FD 3

#define PLUGIN_FILE   "nbdkit-liveblk-plugin.so"

static struct serve_options chosen = {.name = "default"};

static const GOptionEntry options[] = {
    {"name", 'n', 0, G_OPTION_ARG_STRING, &chosen.name, "Name of the server (default)", "NAME"},
    {"socket", 's', 0, G_OPTION_ARG_FILENAME, &chosen.socket, "UNIX socket to serve NBD on",
     "SOCKET"},
    {"port", 'p', 0, G_OPTION_ARG_STRING, &chosen.port, "Serve NBD on this TCP port instead",
     "PORT"},
    {"bind", 'b', 0, G_OPTION_ARG_STRING, &chosen.bind, "Address for --port (localhost)",
     "ADDRESS"},
    {"read-only", 'r', 0, G_OPTION_ARG_NONE, &chosen.read_only, "Let nobody write", NULL},
    {"pidfile", 'P', 0, G_OPTION_ARG_FILENAME, &chosen.pidfile, "Write the process ID here",
     "FILE"},
    {"image-references", 0, 0, G_OPTION_ARG_FILENAME, &chosen.image_references,
     "What images may refer to: all, none or DIR:...", "WHAT"},
    {NULL},
};

static const struct command_words words[] = {
    {"socket", 0, "@file"},
    {"pidfile", 0, "@file"},
    {"image-references", 0, "all none"},
    {NULL, -1, "@file"},
    {NULL},
};

/* Where this server listens. The strings are freed with endpoints_clear. */
struct endpoints {
    char *admin;
    char *socket; /* NULL: TCP, or sockets that were passed to us */
    bool passed;  /* by socket activation */
};

static void endpoints_clear(struct endpoints *endpoints)
{
    g_free(endpoints->admin);
    g_free(endpoints->socket);
}

static bool sockets_were_passed(void)
{
    const char *pid = g_getenv("LISTEN_PID");

    return pid && g_getenv("LISTEN_FDS") && atoi(pid) == getpid();
}

static bool check_options(const struct serve_options *serve, GError **error)
{
    uint64_t port;

    if (!*serve->name || *serve->name == '.' || strchr(serve->name, '/')) {
        usage_error(error, "--name expects a name that can be part of a file's, not '%s'",
                    serve->name);
        return false;
    }
    if (serve->port && serve->socket) {
        usage_error(error, "--port and --socket exclude each other");
        return false;
    }
    if (serve->bind && !serve->port) {
        usage_error(error, "--bind needs --port");
        return false;
    }
    if (serve->port && !g_ascii_string_to_unsigned(serve->port, 10, 1, 65535, &port, NULL)) {
        usage_error(error, "--port expects a number from 1 to 65535, not '%s'", serve->port);
        return false;
    }
    return true;
}

static bool choose_endpoints(const struct invocation *invocation, const struct serve_options *serve,
                             struct endpoints *endpoints, GError **error)
{
    const char *admin = invocation->admin ? invocation->admin : g_getenv("LIVEBLK_ADMIN");
    bool own_admin = admin && *admin;
    g_autofree char *directory = NULL;

    endpoints->passed = sockets_were_passed();
    bool own_socket = serve->socket || serve->port || endpoints->passed;
    if (endpoints->passed && (serve->socket || serve->port)) {
        usage_error(error, "--socket and --port make no sense with sockets that were passed by "
                           "socket activation");
        return false;
    }
    if ((!own_admin || !own_socket) && !(directory = runtime_directory_make(error))) {
        return false;
    }
    endpoints->admin = own_admin ? g_canonicalize_filename(admin, NULL)
                                 : runtime_admin_path(directory, serve->name);
    if (serve->socket) {
        endpoints->socket = g_canonicalize_filename(serve->socket, NULL);
    } else if (!own_socket) {
        endpoints->socket = runtime_nbd_path(directory, serve->name);
    }
    return true;
}

/* Says early, and in the user's terms, what listening there would fail with. */
static bool check_not_served(const char *path, GError **error)
{
    if (socket_is_served(path)) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED,
                    "A server already runs on '%s'; give this one another --name", path);
        return false;
    }
    return true;
}

/*
 * The NBD socket is made here, because nbdkit makes sockets that everybody on the machine can
 * connect to. It takes over a listening socket that it is passed by socket activation.
 */
static bool listen_for_clients(const char *path, struct unix_listener *listener, GError **error)
{
    g_autoptr(GError) cause = NULL;

    if (!check_not_served(path, error)) {
        return false;
    }
    if (unix_socket_listen(path, listener, &cause) < 0) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED, "%s", cause->message);
        return false;
    }
    return true;
}

/* Leave the socket where nbdkit looks for it after exec. */
static bool pass_socket(const struct unix_listener *listener, GError **error)
{
    g_autofree char *pid = g_strdup_printf("%d", (int)getpid());
    int result = listener->fd == ACTIVATION_FD ? fcntl(ACTIVATION_FD, F_SETFD, 0)
                                               : dup2(listener->fd, ACTIVATION_FD);

    if (result < 0) {
        g_set_error(error, CLI_ERROR, EXIT_FAILED, "Could not pass the NBD socket on: %s",
                    g_strerror(errno));
        return false;
    }
    g_setenv("LISTEN_FDS", "1", true);
    g_setenv("LISTEN_PID", pid, true);
    g_unsetenv("LISTEN_FDNAMES");
    return true;
}

/* LIVEBLK_PLUGIN, else the one built together with this program, else nbdkit's. Caller frees. */
static char *find_plugin(void)
{
    const char *named = g_getenv("LIVEBLK_PLUGIN");
    g_autofree char *program = g_file_read_link("/proc/self/exe", NULL);

    if (named && *named) {
        return g_strdup(named);
    }
    if (program) {
        g_autofree char *directory = g_path_get_dirname(program);
        g_autofree char *built = g_build_filename(directory, "..", "plugins", PLUGIN_FILE, NULL);
        if (g_file_test(built, G_FILE_TEST_IS_REGULAR)) {
            return g_steal_pointer(&built);
        }
    }
    return g_strdup("liveblk");
}

static void add(GPtrArray *argv, const char *word)
{
    g_ptr_array_add(argv, g_strdup(word));
}

/* nbdkit's command line; free with g_strfreev. */
static char **make_argv(const struct invocation *invocation, const struct serve_options *serve,
                        const struct endpoints *endpoints, char *const *disks)
{
    GPtrArray *argv = g_ptr_array_new();

    add(argv, "nbdkit");
    add(argv, "-f");
    if (serve->port) {
        add(argv, "-p");
        add(argv, serve->port);
        add(argv, "-i");
        add(argv, serve->bind ? serve->bind : "localhost");
    }
    if (serve->read_only) {
        add(argv, "-r");
    }
    if (serve->pidfile) {
        add(argv, "-P");
        add(argv, serve->pidfile);
    }
    g_ptr_array_add(argv, find_plugin());
    g_ptr_array_add(argv, g_strconcat("admin=", endpoints->admin, NULL));
    g_ptr_array_add(argv, g_strconcat("name=", serve->name, NULL));
    if (serve->read_only) {
        add(argv, "read-only=true");
    }
    if (serve->image_references) {
        g_ptr_array_add(argv, g_strconcat("image-references=", serve->image_references, NULL));
    }
    for (; *disks; disks++) {
        g_ptr_array_add(argv, g_strconcat("disk=", *disks, NULL));
    }
    /* nbdkit takes options behind the plugin too, and filters' parameters only there. */
    for (unsigned i = 0; invocation->pass_through[i]; i++) {
        add(argv, invocation->pass_through[i]);
    }
    g_ptr_array_add(argv, NULL);
    return (char **)g_ptr_array_free(argv, FALSE);
}

/* Clients must use TLS: the URIs have to say so. */
static bool requires_tls(char *const *arguments)
{
    for (; *arguments; arguments++) {
        if (!strcmp(*arguments, "--tls=require") ||
            (!strcmp(*arguments, "--tls") && !g_strcmp0(arguments[1], "require"))) {
            return true;
        }
    }
    return false;
}

/* Listen, and have a process of its own tell the user when the server answers. */
static bool prepare(const struct invocation *invocation, const struct serve_options *serve,
                    const struct endpoints *endpoints, GError **error)
{
    struct unix_listener listener = {.fd = -1, .directory_fd = -1};
    struct announcement announcement = {
        .name = serve->name,
        .admin = endpoints->admin,
        .socket = endpoints->socket,
        .listener = endpoints->socket ? &listener : NULL,
        .host = serve->port ? (serve->bind ? serve->bind : "localhost") : NULL,
        .port = serve->port,
        .tls = requires_tls(invocation->pass_through),
        .json = invocation->json,
        .then = serve->then,
        .then_data = serve->then_data,
    };

    if (!check_not_served(endpoints->admin, error) ||
        (endpoints->socket && !listen_for_clients(endpoints->socket, &listener, error))) {
        return false;
    }
    if (!announce_when_ready(&announcement, error)) {
        if (endpoints->socket) {
            unix_socket_unlisten(&listener);
        }
        return false;
    }
    return !endpoints->socket || pass_socket(&listener, error);
}

enum exit_status serve_disks(const struct invocation *invocation, const struct serve_options *serve,
                             char *const *disks, GError **error)
{
    CLEANUP(endpoints_clear) struct endpoints endpoints = {0};

    if (!check_options(serve, error)) {
        return EXIT_USAGE;
    }
    if (!choose_endpoints(invocation, serve, &endpoints, error) ||
        !prepare(invocation, serve, &endpoints, error)) {
        return EXIT_FAILED;
    }
    g_auto(GStrv) argv = make_argv(invocation, serve, &endpoints, disks);
    execvp(argv[0], argv);
    g_set_error(error, CLI_ERROR, EXIT_FAILED, "Could not run nbdkit: %s%s", g_strerror(errno),
                errno == ENOENT ? "; is it installed?" : "");
    return EXIT_FAILED;
}

static enum exit_status run(const struct invocation *invocation, GError **error)
{
    return check_arguments(invocation, 1, 1000, "one or more disks", error)
               ? serve_disks(invocation, &chosen, invocation->arguments, error)
               : EXIT_USAGE;
}

const struct command serve_command = {
    .name = "serve",
    .summary = "Serve disks over NBD, in the foreground",
    .usage = "[OPTION...] DISK... [-- NBDKIT-ARGUMENT...]",
    .notes = "DISK is a path, or name=vda,file=PATH,format=raw,cache=none,... as described in\n"
             "nbdkit-liveblk-plugin(1). When the disks can be reached, the URI of each and the\n"
             "admin socket are printed. Arguments after -- go to nbdkit: filters, TLS, ...\n"
             "\n"
             "Without --socket, --port and --admin the sockets are NAME.nbd.sock and\n"
             "NAME.admin.sock in $XDG_RUNTIME_DIR/liveblk, or /run/liveblk for root.\n",
    .flags = COMMAND_ADMIN | COMMAND_JSON | COMMAND_PASS_THROUGH,
    .options = options,
    .words = words,
    .run = run,
};
