/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/qmp/monitor.h"

#include <errno.h>
#include <glib-unix.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <unistd.h>

#include "block/cleanup.h"
#include "block/event.h"
#include "block/main-loop.h"
#include "server/qmp/client.h"
#include "server/qmp/event-gate.h"
#include "server/unix-socket.h"

/* More wait in the socket's backlog: they must not use up the process's descriptors. */
#define MAX_CLIENTS 128

/* How long to leave clients alone when the system has no descriptor or memory for them. */
#define ACCEPT_PAUSE_MS 100

/* All but the lock, what it guards and the tables belongs to the main thread. */
struct qmp_monitor {
    const struct qmp_command *const *command_tables;
    const struct qmp_event_type *const *event_tables;
    struct unix_listener listener;
    struct qmp_event_gate *gate;
    GPtrArray *clients; /* whose connections are open */
    GSource *accept_source;
    GSource *accept_pause;
    bool is_started, is_pretty;

    /* Guards client_count. A leaf. */
    pthread_mutex_t lock;
    pthread_cond_t client_gone;
    unsigned client_count; /* those that only wait for a command to end included */
};

static void resume_accepting(struct qmp_monitor *monitor);

/* Clients */

static void on_client_closed(struct qmp_client *client, void *data)
{
    struct qmp_monitor *monitor = data;

    g_ptr_array_remove(monitor->clients, client);
    resume_accepting(monitor);
}

static void on_client_gone(void *data)
{
    struct qmp_monitor *monitor = data;
    SCOPE_LOCK(&monitor->lock);

    monitor->client_count--;
    pthread_cond_broadcast(&monitor->client_gone);
}

static void add_client(struct qmp_monitor *monitor, int fd)
{
    struct qmp_client_owner owner = {
        .command_tables = monitor->command_tables,
        .is_pretty = monitor->is_pretty,
        .closed = on_client_closed,
        .gone = on_client_gone,
        .data = monitor,
    };
    struct qmp_client *client = qmp_client_new(&owner, fd);

    pthread_mutex_lock(&monitor->lock);
    monitor->client_count++;
    pthread_mutex_unlock(&monitor->lock);
    g_ptr_array_add(monitor->clients, client);
    qmp_client_start(client);
}

static gboolean on_accept_pause_end(gpointer data)
{
    struct qmp_monitor *monitor = data;

    main_loop_drop_source(&monitor->accept_pause);
    resume_accepting(monitor);
    return G_SOURCE_REMOVE;
}

static void pause_accepting(struct qmp_monitor *monitor)
{
    main_loop_drop_source(&monitor->accept_source);
    monitor->accept_pause = g_timeout_source_new(ACCEPT_PAUSE_MS);
    g_source_set_callback(monitor->accept_pause, on_accept_pause_end, monitor, NULL);
    g_source_attach(monitor->accept_pause, main_loop_context());
}

static gboolean on_connection(gint fd, GIOCondition condition, gpointer data)
{
    struct qmp_monitor *monitor = data;
    int client_fd = accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

    if (client_fd >= 0) {
        add_client(monitor, client_fd);
        if (monitor->clients->len >= MAX_CLIENTS) {
            main_loop_drop_source(&monitor->accept_source);
        }
    } else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
        pause_accepting(monitor);
    }
    return G_SOURCE_CONTINUE;
}

static void resume_accepting(struct qmp_monitor *monitor)
{
    if (!monitor->is_started || monitor->listener.fd < 0 || monitor->accept_source ||
        monitor->accept_pause || monitor->clients->len >= MAX_CLIENTS) {
        return;
    }
    monitor->accept_source = g_unix_fd_source_new(monitor->listener.fd, G_IO_IN);
    g_source_set_callback(monitor->accept_source, G_SOURCE_FUNC(on_connection), monitor, NULL);
    g_source_attach(monitor->accept_source, main_loop_context());
}

/* Events */

static void send_to_all(GBytes *line, void *data)
{
    struct qmp_monitor *monitor = data;
    guint n;

    /* From the end: one that is closed takes itself out of the list. */
    for (n = monitor->clients->len; n > 0; n--) {
        struct qmp_client *client = g_ptr_array_index(monitor->clients, n - 1);

        if (qmp_client_negotiated(client)) {
            qmp_client_send_event(client, line);
        }
    }
}

static void on_event(const struct event *event, void *data)
{
    struct qmp_monitor *monitor = data;

    qmp_event_gate_put(monitor->gate, event);
}

/* The monitor's life */

struct qmp_monitor *qmp_monitor_new(const char *path,
                                    const struct qmp_command *const *command_tables,
                                    const struct qmp_event_type *const *event_tables,
                                    GError **error)
{
    struct unix_listener listener;

    if (unix_socket_listen(path, &listener, error) < 0) {
        return NULL;
    }
    return qmp_monitor_new_on(&listener, command_tables, event_tables);
}

struct qmp_monitor *qmp_monitor_new_on(const struct unix_listener *listener,
                                       const struct qmp_command *const *command_tables,
                                       const struct qmp_event_type *const *event_tables)
{
    const struct unix_listener none = {.fd = -1, .directory_fd = -1};
    struct qmp_monitor *monitor = g_new0(struct qmp_monitor, 1);

    monitor->command_tables = command_tables;
    monitor->event_tables = event_tables;
    monitor->listener = listener ? *listener : none;
    monitor->gate = qmp_event_gate_new(send_to_all, monitor);
    monitor->clients = g_ptr_array_new();
    pthread_mutex_init(&monitor->lock, NULL);
    pthread_cond_init(&monitor->client_gone, NULL);
    return monitor;
}

void qmp_monitor_set_pretty(struct qmp_monitor *monitor)
{
    monitor->is_pretty = true;
}

static void start_on_main_thread(void *data)
{
    struct qmp_monitor *monitor = data;

    main_loop_init();
    monitor->is_started = true;
    event_add_listener(on_event, monitor);
    resume_accepting(monitor);
}

void qmp_monitor_start(struct qmp_monitor *monitor)
{
    main_loop_call_wait(start_on_main_thread, monitor);
}

struct connection {
    struct qmp_monitor *monitor;
    int fd;
};

static void serve_on_main_thread(void *data)
{
    struct connection *connection = data;

    add_client(connection->monitor, connection->fd);
}

void qmp_monitor_serve(struct qmp_monitor *monitor, int fd)
{
    struct connection connection = {monitor, fd};

    main_loop_call_wait(serve_on_main_thread, &connection);
}

static void stop_on_main_thread(void *data)
{
    struct qmp_monitor *monitor = data;
    guint n;

    main_loop_drop_source(&monitor->accept_source);
    main_loop_drop_source(&monitor->accept_pause);
    if (monitor->is_started) {
        monitor->is_started = false;
        event_remove_listener(on_event, monitor);
    }
    if (monitor->listener.fd >= 0) {
        unix_socket_unlisten(&monitor->listener);
    }
    for (n = monitor->clients->len; n > 0; n--) {
        qmp_client_finish(g_ptr_array_index(monitor->clients, n - 1));
    }
}

static void free_on_main_thread(void *data)
{
    struct qmp_monitor *monitor = data;

    qmp_event_gate_free(monitor->gate);
    g_ptr_array_unref(monitor->clients);
}

void qmp_monitor_free(struct qmp_monitor *monitor)
{
    if (!monitor) {
        return;
    }
    main_loop_call_wait(stop_on_main_thread, monitor);
    pthread_mutex_lock(&monitor->lock);
    while (monitor->client_count > 0) {
        pthread_cond_wait(&monitor->client_gone, &monitor->lock);
    }
    pthread_mutex_unlock(&monitor->lock);
    main_loop_call_wait(free_on_main_thread, monitor);
    pthread_cond_destroy(&monitor->client_gone);
    pthread_mutex_destroy(&monitor->lock);
    g_free(monitor);
}

int qmp_monitor_listener_fd(const struct qmp_monitor *monitor)
{
    return monitor->listener.fd;
}

struct qmp_monitor *qmp_request_monitor(struct qmp_request *request)
{
    return qmp_request_owner_data(request);
}

const struct qmp_command *const *qmp_monitor_command_tables(struct qmp_monitor *monitor)
{
    return monitor->command_tables;
}

const struct qmp_event_type *const *qmp_monitor_event_tables(struct qmp_monitor *monitor)
{
    return monitor->event_tables;
}
