/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * One connection to the admin channel: parses, runs its requests in order, writes its replies.
 * Everything here belongs to the main thread.
 *
 * What bounds its memory: a message is bounded by the parser; at most eight parsed requests wait
 * (one without the capability oob), and none is started while more than QMP_OUTPUT_PAUSE bytes
 * wait to be written, so that a client that does not read only stops itself; a client that lets
 * QMP_EVENT_LIMIT bytes of events pile up is dropped.
 */
#ifndef LIVEBLK_SERVER_QMP_CLIENT_H
#define LIVEBLK_SERVER_QMP_CLIENT_H

#include <glib.h>
#include <stdbool.h>

#include "server/qmp/dispatch.h"
#include "server/qmp/schema.h"

#define QMP_QUEUE_LENGTH 8
#define QMP_OUTPUT_PAUSE ((size_t)256 << 10)
#define QMP_EVENT_LIMIT  ((size_t)16 << 20)

struct qmp_client;

/* What a client needs of the monitor, and tells it. */
struct qmp_client_owner {
    const struct qmp_command *const *command_tables;
    bool is_pretty; /* what it is sent is indented */
    /* The connection was closed; the client stays while a command of it runs. */
    void (*closed)(struct qmp_client *client, void *data);
    /* The client is no more. May free the owner. */
    void (*gone)(void *data);
    void *data;
};

/* A client for a connection. Takes the descriptor. */
struct qmp_client *qmp_client_new(const struct qmp_client_owner *owner, int fd);

/* Send the greeting and serve. May close the client at once. */
void qmp_client_start(struct qmp_client *client);

bool qmp_client_negotiated(const struct qmp_client *client);

/* Write an event. May close the client. */
void qmp_client_send_event(struct qmp_client *client, GBytes *line);

/*
 * Take no more requests, forget those that wait, answer the one that runs, write what the client
 * takes at once, close. May close the client at once.
 */
void qmp_client_finish(struct qmp_client *client);

/* For the handlers of commands: the owner's data, and the session of the request's client. */
void *qmp_request_owner_data(struct qmp_request *request);
struct qmp_session *qmp_request_session(struct qmp_request *request);

#endif
