/* SPDX-License-Identifier: BSD-3-Clause */
#include "cli/storage-daemon-chardev.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "block/error.h"
#include "block/options.h"
#include "cli/process.h"
#include "cli/stdio-bridge.h"
#include "server/lookup.h"
#include "server/option-text.h"
#include "server/unix-socket.h"

struct chardev {
    char *id;
    bool is_taken;                 /* by a monitor, whose the sockets are then */
    int client_fd;                 /* the only client; -1: those come who like, to: */
    struct unix_listener listener; /* where they come */
};

static GPtrArray *chardevs; /* of struct chardev; NULL: none yet */

/* ---- What is said of them -------------------------------------------------------------------- */

static const struct qmp_member socket_members[] = {
    {"path", &qmp_type_string, .optional = true, .doc = "Of a UNIX socket."},
    {"fd", &qmp_type_string, .optional = true, .doc = "The number of a descriptor that listens."},
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
    {"socket", &socket_type}, {"stdio", NULL}, {NULL}};
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

    if (!chardev->is_taken && chardev->client_fd >= 0) {
        close(chardev->client_fd);
    } else if (!chardev->is_taken && chardev->listener.fd >= 0) {
        unix_socket_unlisten(&chardev->listener);
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

static int listen_on(json_t *arguments, struct chardev *chardev, GError **error)
{
    const char *fd = json_string_value(json_object_get(arguments, "fd"));
    const char *path = json_string_value(json_object_get(arguments, "path"));
    guint64 number;

    if (!fd) {
        return unix_socket_listen(path, &chardev->listener, error);
    }
    if (!g_ascii_string_to_unsigned(fd, 10, 0, INT32_MAX, &number, NULL)) {
        return block_error(error, EINVAL, "Parameter 'fd' expects a descriptor's number, not '%s'",
                           fd);
    }
    return unix_socket_adopt((int)number, &chardev->listener, error);
}

static int open_server(json_t *arguments, struct chardev *chardev, GError **error)
{
    bool waits = lookup_bool(arguments, "wait", !lookup_bool(arguments, "nowait", false));
    int status = listen_on(arguments, chardev, error);

    if (status == 0 && waits && !process_wait(chardev->listener.fd)) {
        return -ECANCELED;
    }
    return status;
}

static int open_client(json_t *arguments, struct chardev *chardev, GError **error)
{
    const char *path = json_string_value(json_object_get(arguments, "path"));

    if (!path || json_object_get(arguments, "wait") || json_object_get(arguments, "nowait")) {
        return block_error(error, EINVAL,
                           "A socket that connects takes 'path' and nothing else: did you mean "
                           "server=on?");
    }
    chardev->client_fd = unix_socket_connect(path, error);
    return MIN(chardev->client_fd, 0);
}

static int open_socket(json_t *arguments, struct chardev *chardev, GError **error)
{
    if (!json_object_get(arguments, "path") == !json_object_get(arguments, "fd")) {
        return block_error(error, EINVAL, "Exactly one of 'path' and 'fd' must be given");
    }
    return lookup_bool(arguments, "server", false) ? open_server(arguments, chardev, error)
                                                   : open_client(arguments, chardev, error);
}

static int open_stdio(struct chardev *chardev, bool is_daemon, GError **error)
{
    static bool is_used;

    if (is_daemon) {
        return block_error(error, EINVAL, "A daemon has no standard input: use a socket");
    }
    if (is_used) {
        return block_error(error, EINVAL, "Standard input has another chardev already");
    }
    chardev->client_fd = stdio_bridge_start(error);
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
    *chardev = (struct chardev){.id = g_strdup(id), .client_fd = -1, .listener.fd = -1};
    int status =
        is_stdio ? open_stdio(chardev, is_daemon, error) : open_socket(arguments, chardev, error);
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

int chardev_add(const char *text, bool is_daemon, GError **error)
{
    json_t *arguments = option_text_read(text, "backend", &chardev_type, error);
    int status = arguments ? open_chardev(arguments, is_daemon, error) : -EINVAL;

    json_decref(arguments);
    return status;
}

/* ---- Monitors -------------------------------------------------------------------------------- */

static int add_monitor(struct server *server, json_t *arguments, GError **error)
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
    if (lookup_bool(arguments, "pretty", false)) {
        return block_error(error, ENOTSUP, "pretty=on is not supported: each message is a line");
    }
    chardev->is_taken = true;
    if (chardev->client_fd >= 0) {
        server_add_monitor_client(server, chardev->client_fd);
    } else {
        server_add_monitor(server, &chardev->listener);
    }
    return 0;
}

int chardev_add_monitor(struct server *server, const char *text, GError **error)
{
    json_t *arguments = option_text_read(text, "chardev", &monitor_type, error);
    int status = arguments ? add_monitor(server, arguments, error) : -EINVAL;

    json_decref(arguments);
    return status;
}
