/* SPDX-License-Identifier: BSD-3-Clause */
/* A request of a client, from the parser to its reply. */
#ifndef LIVEBLK_SERVER_QMP_REQUEST_H
#define LIVEBLK_SERVER_QMP_REQUEST_H

#include <glib.h>
#include <jansson.h>
#include <pthread.h>

#include "server/qmp/schema.h"

struct qmp_client;

struct qmp_request {
    struct qmp_client *client;
    json_t *message;   /* or NULL: */
    char *parse_error; /* the text of what could not be parsed */

    /* While it runs: */
    const struct qmp_command *command;
    json_t *arguments;
    void (*done)(struct qmp_request *request);
    pthread_t thread;

    GBytes *reply;
    void (*after_reply)(void *data); /* or NULL */
    void *after_reply_data;
};

/* Takes the reference to the message. */
struct qmp_request *qmp_request_new(struct qmp_client *client, json_t *message,
                                    const char *parse_error);
void qmp_request_free(struct qmp_request *request);

/* Answer a request with an error instead of running it. */
void qmp_request_fail(struct qmp_request *request, const GError *error);

/* Run the command on this thread. reply is set when it returns. */
void qmp_request_run(struct qmp_request *request);

/*
 * Run the command on a thread of its own; done is called on the main thread once reply is set.
 * Returns a negative errno if there is no thread to be had.
 */
int qmp_request_run_on_thread(struct qmp_request *request,
                              void (*done)(struct qmp_request *request));

#endif
