/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/storage-daemon-chardev.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "block/error.h"
#include "block/options.h"
#include "cli/process.h"
#include "cli/stdio-bridge.h"
#include "server/address.h"
#include "server/listener.h"
#include "server/lookup.h"
#include "server/option-text.h"

struct chardev {
    char *id;
    bool is_taken;           /* by a monitor */
    bool is_pretty;          /* several lines for each message of that */
    bool is_served;          /* by the monitor, whose the sockets are then */
    int client_fd;           /* the only client; -1: those come who like, to: */
    struct listener sockets; /* where they come; the array is NULL if there are none */
};

static GPtrArray *chardevs; /* of struct chardev; NULL: none yet */

/* ---- What is said of them -------------------------------------------------------------------- */

static const struct qmp_member socket_members[] = {
    {"path", &qmp_type_string, .optional = true, .doc = "Of a UNIX socket."},
    {"fd", &qmp_type_string, .optional = true, .doc = "The number of a descriptor that listens."},
    {"host", &qmp_type_string, .optional = true, .doc = "Of a TCP socket; empty: all addresses."},
    {"port", &qmp_type_string, .optional = true, .doc = "Of a TCP socket."},
    {"to", &qmp_type_uint16, .optional = true, .doc = "Or the first free one up to this."},
    {"ipv4", &qmp_type_bool, .optional = true, .doc = "Whether to listen on IPv4 addresses."},
    {"ipv6", &qmp_type_bool, .optional = true, .doc = "Whether to listen on IPv6 addresses."},
    {"server", &qmp_type_bool, .optional = true, .doc = "Listen, instead of connecting."},
    {"wait", &qmp_type_bool, .optional = true, .doc = "Wait for a client; the default."},
    {"nowait", &qmp_type_bool, .optional = true, .doc = "As scripts of old have it."},
    {NULL},
};
static const struct qmp_type socket_type = {
    .name = "ChardevSocket",
    .kind = QMP_KIND_OBJECT,
    .members = socket_members,
};
static const struct qmp_member stdio_members[] = {
    {"signal", &qmp_type_bool, .optional = true, .default_text = "true",
     .doc = "Whether keys of a terminal send signals."},
    {NULL},
};
static const struct qmp_type stdio_type = {
    .name = "ChardevStdio",
    .kind = QMP_KIND_OBJECT,
    .members = stdio_members,
};
static const char *const backends[] = {"socket", "stdio", NULL};
static const struct qmp_type backend_type = {
    .name = "ChardevBackendKind",
    .kind = QMP_KIND_ENUM,
    .values = backends,
};
static const struct qmp_member chardev_members[] = {
    {"backend", &backend_type, .doc = "What it is."},
    {"id", &qmp_type_string, .doc = "For --monitor."},
    {NULL},
};
static const struct qmp_variant chardev_variants[] = {
    {"socket", &socket_type}, {"stdio", &stdio_type}, {NULL}};
static const struct qmp_type chardev_type = {
    .name = "ChardevOptions",
    .kind = QMP_KIND_OBJECT,
    .members = chardev_members,
    .discriminator = "backend",
    .variants = chardev_variants,
};

static const char *const modes[] = {"control", NULL};
static const struct qmp_type mode_type = {
    .name = "MonitorMode",
    .kind = QMP_KIND_ENUM,
    .values = modes,
};
static const struct qmp_member monitor_members[] = {
    {"chardev", &qmp_type_string, .doc = "Over which it talks."},
    {"id", &qmp_type_string, .optional = true, .doc = "Nobody refers to it."},
    {"mode", &mode_type, .optional = true, .doc = "It talks QMP."},
    {"pretty", &qmp_type_bool, .optional = true, .doc = "Several lines for a message."},
    {NULL},
};
static const struct qmp_type monitor_type = {
    .name = "MonitorOptions",
    .kind = QMP_KIND_OBJECT,
    .members = monitor_members,
};

/* ---- The list -------------------------------------------------------------------------------- */

static void free_chardev(void *data)
{
    struct chardev *chardev = data;

    if (!chardev->is_served && chardev->client_fd >= 0) {
        close(chardev->client_fd);
    } else if (!chardev->is_served && chardev->sockets.sockets) {
        listener_close(&chardev->sockets);
    }
    g_free(chardev->id);
    g_free(chardev);
}

static struct chardev *find(const char *id)
{
    for (guint i = 0; chardevs && i < chardevs->len; i++) {
        struct chardev *chardev = g_ptr_array_index(chardevs, i);

        if (!strcmp(chardev->id, id)) {
            return chardev;
        }
    }
    return NULL;
}

void chardev_close_all(void)
{
    g_clear_pointer(&chardevs, g_ptr_array_unref);
}

/* ---- Opening --------------------------------------------------------------------------------- */

/* What socket it is, as an address of QMP's; each member belongs to one kind. */
static json_t *address_of(json_t *arguments)
{
    static const char *const inet_names[] = {"host", "port", "to", "ipv4", "ipv6", NULL};
    json_t *path = json_object_get(arguments, "path"), *fd = json_object_get(arguments, "fd");

    if (path) {
        return json_pack("{s:s, s:O}", "type", "unix", "path", path);
    }
    if (fd) {
        return json_pack("{s:s, s:O}", "type", "fd", "str", fd);
    }
    json_t *address = json_pack("{s:s, s:s}", "type", "inet", "host", "");
    for (const char *const *name = inet_names; *name; name++) {
        json_t *value = json_object_get(arguments, *name);

        if (value) {
            json_object_set(address, *name, value);
        }
    }
    return address;
}

static int listen_on(json_t *arguments, struct chardev *chardev, GError **error)
{
    json_t *value = address_of(arguments);
    struct socket_address address;
    int status = address_read(value, &address, error);

    if (status == 0) {
        status = listener_open(&address, &chardev->sockets, error);
    }
    json_decref(value);
    return status;
}

static int open_server(json_t *arguments, struct chardev *chardev, GError **error)
{
    bool waits = lookup_bool(arguments, "wait", !lookup_bool(arguments, "nowait", false));
    int status = listen_on(arguments, chardev, error);

    if (status == 0 && waits) {
        GArray *sockets = chardev->sockets.sockets;

        return process_wait((const int *)(void *)sockets->data, sockets->len) ? 0 : -ECANCELED;
    }
    return status;
}

static int open_client(json_t *arguments, struct chardev *chardev, GError **error)
{
    const char *path = json_string_value(json_object_get(arguments, "path"));

    if (!path || json_object_get(arguments, "wait") || json_object_get(arguments, "nowait")) {
        return block_error(error, EINVAL,
                           "A socket that connects takes 'path' and nothing else, and is a UNIX "
                           "one: did you mean server=on?");
    }
    chardev->client_fd = unix_socket_connect(path, error);
    return MIN(chardev->client_fd, 0);
}

static unsigned count_members(json_t *object, const char *const *names)
{
    unsigned count = 0;

    for (const char *const *name = names; *name; name++) {
        count += json_object_get(object, *name) != NULL;
    }
    return count;
}

static int open_socket(json_t *arguments, struct chardev *chardev, GError **error)
{
    static const char *const inet_only[] = {"host", "to", "ipv4", "ipv6", NULL};
    static const char *const kinds[] = {"path", "fd", "port", NULL};

    if (count_members(arguments, kinds) != 1) {
        return block_error(error, EINVAL, "Exactly one of 'path', 'fd' and 'port' must be given");
    }
    if (!json_object_get(arguments, "port") && count_members(arguments, inet_only)) {
        return block_error(error, EINVAL, "'host', 'to', 'ipv4' and 'ipv6' go with 'port'");
    }
    return lookup_bool(arguments, "server", false) ? open_server(arguments, chardev, error)
                                                   : open_client(arguments, chardev, error);
}

static int open_stdio(json_t *arguments, struct chardev *chardev, bool is_daemon, GError **error)
{
    static bool is_used;

    if (is_daemon) {
        return block_error(error, EINVAL, "A daemon has no standard input: use a socket");
    }
    if (is_used) {
        return block_error(error, EINVAL, "Standard input has another chardev already");
    }
    chardev->client_fd = stdio_bridge_start(lookup_bool(arguments, "signal", true), error);
    is_used = true;
    return MIN(chardev->client_fd, 0);
}

static int open_chardev(json_t *arguments, bool is_daemon, GError **error)
{
    const char *id = json_string_value(json_object_get(arguments, "id"));
    bool is_stdio = !strcmp(json_string_value(json_object_get(arguments, "backend")), "stdio");

    if (find(id)) {
        return block_error(error, EEXIST, "There is a chardev '%s' already", id);
    }
    struct chardev *chardev = g_new0(struct chardev, 1);
    *chardev = (struct chardev){.id = g_strdup(id), .client_fd = -1};
    int status = is_stdio ? open_stdio(arguments, chardev, is_daemon, error)
                          : open_socket(arguments, chardev, error);
    if (status < 0) {
        free_chardev(chardev);
        return status;
    }
    if (!chardevs) {
        chardevs = g_ptr_array_new_with_free_func(free_chardev);
    }
    g_ptr_array_add(chardevs, chardev);
    return 0;
}

char *chardev_help(const char *text)
{
    return option_text_help(text, "Available chardev backend types:", &chardev_type);
}

int chardev_add(const char *text, bool is_daemon, GError **error)
{
    json_t *arguments = option_text_read(text, "backend", &chardev_type, error);
    int status = arguments ? open_chardev(arguments, is_daemon, error) : -EINVAL;

    json_decref(arguments);
    return status;
}

/* ---- Monitors -------------------------------------------------------------------------------- */

/* One for each socket: they serve alike. */
static void start_monitor(struct server *server, struct chardev *chardev)
{
    GArray *sockets = chardev->sockets.sockets;

    chardev->is_served = true;
    if (chardev->client_fd >= 0) {
        server_add_monitor_client(server, chardev->client_fd, chardev->is_pretty);
        return;
    }
    for (guint i = 0; i < sockets->len; i++) {
        struct unix_listener listener = {.fd = g_array_index(sockets, int, i), .directory_fd = -1};

        server_add_monitor(server,
                           chardev->sockets.unix_socket.fd >= 0 ? &chardev->sockets.unix_socket
                                                                : &listener,
                           chardev->is_pretty);
    }
    g_array_unref(sockets);
}

static int add_monitor(json_t *arguments, GError **error)
{
    const char *id = json_string_value(json_object_get(arguments, "chardev"));
    struct chardev *chardev = find(id);

    if (!chardev) {
        return block_error(error, ENOENT, "There is no chardev '%s': give its --chardev before",
                           id);
    }
    if (chardev->is_taken) {
        return block_error(error, EBUSY, "Chardev '%s' has a monitor already", id);
    }
    chardev->is_taken = true;
    chardev->is_pretty = lookup_bool(arguments, "pretty", false);
    return 0;
}

int chardev_add_monitor(const char *text, GError **error)
{
    json_t *arguments = option_text_read(text, "chardev", &monitor_type, error);
    int status = arguments ? add_monitor(arguments, error) : -EINVAL;

    json_decref(arguments);
    return status;
}

void chardev_start_monitors(struct server *server)
{
    for (guint i = 0; chardevs && i < chardevs->len; i++) {
        struct chardev *chardev = g_ptr_array_index(chardevs, i);

        if (chardev->is_taken) {
            start_monitor(server, chardev);
        }
    }
}
