/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The admin channel: QMP over a UNIX socket, several clients at once.
 *
 * Each client is served in order: its next command starts when the one before is answered. Quick
 * commands run on the main thread, others on a worker thread, so that a slow one delays nobody
 * else. Events go to every client that has negotiated.
 */
#ifndef LIVEBLK_SERVER_QMP_MONITOR_H
#define LIVEBLK_SERVER_QMP_MONITOR_H

#include <glib.h>

#include "server/qmp/schema.h"
#include "server/unix-socket.h"

struct qmp_monitor;

/*
 * Bind the socket (mode 0600 from the first moment). A stale socket is replaced; one that
 * somebody serves is refused ("Address already in use"), and so is a path that is not a socket.
 * No thread is started.
 * The command tables (NULL-terminated lists of tables) live as long as the monitor.
 */
struct qmp_monitor *qmp_monitor_new(const char *path,
                                    const struct qmp_command *const *command_tables,
                                    const struct qmp_event_type *const *event_tables,
                                    GError **error);

/* On a socket that listens already, which is taken over; NULL: it accepts nobody by itself. */
struct qmp_monitor *qmp_monitor_new_on(const struct unix_listener *listener,
                                       const struct qmp_command *const *command_tables,
                                       const struct qmp_event_type *const *event_tables);

/* Indent what clients are sent, for people to read. Before qmp_monitor_start. */
void qmp_monitor_set_pretty(struct qmp_monitor *monitor);

/* Accept clients, on the main loop. After main_loop_start or before. */
void qmp_monitor_start(struct qmp_monitor *monitor);

/* Serve a client that is connected already; takes the socket. After qmp_monitor_start. */
void qmp_monitor_serve(struct qmp_monitor *monitor, int fd);

/*
 * Stop accepting, send what replies are ready, close the clients, remove the socket, wait for
 * commands in progress, whose replies are still sent. Not from the main thread, and before
 * main_loop_stop, since commands end on the main thread.
 */
void qmp_monitor_free(struct qmp_monitor *monitor);

/* The socket it accepts clients on, the monitor's; -1: none. */
int qmp_monitor_listener_fd(const struct qmp_monitor *monitor);

/* The monitor a request came through, for commands that need its tables (query-commands). */
struct qmp_monitor *qmp_request_monitor(struct qmp_request *request);
const struct qmp_command *const *qmp_monitor_command_tables(struct qmp_monitor *monitor);
const struct qmp_event_type *const *qmp_monitor_event_tables(struct qmp_monitor *monitor);

/*
 * Have a function run on the main thread once this request's reply was handed to the client's
 * socket: quit's.
 */
void qmp_request_after_reply(struct qmp_request *request, void (*function)(void *data), void *data);

#endif
