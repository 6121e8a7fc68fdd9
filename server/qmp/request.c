/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/qmp/request.h"

#include <errno.h>

#include "block/error.h"
#include "block/main-loop.h"
#include "server/qmp/dispatch.h"

struct qmp_request *qmp_request_new(struct qmp_client *client, json_t *message,
                                    const char *parse_error)
{
    struct qmp_request *request = g_new0(struct qmp_request, 1);

    request->client = client;
    request->message = message;
    request->parse_error = g_strdup(parse_error);
    return request;
}

void qmp_request_free(struct qmp_request *request)
{
    json_decref(request->message);
    json_decref(request->arguments);
    g_free(request->parse_error);
    g_clear_pointer(&request->reply, g_bytes_unref);
    g_free(request);
}

void qmp_request_fail(struct qmp_request *request, const GError *error)
{
    request->reply = qmp_reply(request->message, NULL, error);
}

void qmp_request_run(struct qmp_request *request)
{
    g_autoptr(GError) error = NULL;
    json_t *result = request->command->handler(request, request->arguments, &error);

    if (!result && !error) {
        block_error(&error, EIO, "The command %s gave no answer", request->command->name);
    }
    request->reply = qmp_reply(request->message, result, error);
}

/* Joined before anything else happens: no thread outlives its request, so none the program. */
static void join_and_tell(void *data)
{
    struct qmp_request *request = data;

    pthread_join(request->thread, NULL);
    request->done(request);
}

static void *run_thread(void *data)
{
    struct qmp_request *request = data;

    qmp_request_run(request);
    main_loop_call(join_and_tell, request);
    return NULL;
}

int qmp_request_run_on_thread(struct qmp_request *request,
                              void (*done)(struct qmp_request *request))
{
    request->done = done;
    /* The main thread blocks all signals, and so do those it starts. */
    return -pthread_create(&request->thread, NULL, run_thread, request);
}
