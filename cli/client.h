/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A QMP client on a UNIX socket. One thread; nothing here blocks without a limit.
 *
 * Errors are of CLI_ERROR: EXIT_UNREACHABLE when the connection is of no more use (nothing else
 * will work on it then), EXIT_FAILED when the server refused a command.
 */
#ifndef LIVEBLK_CLI_CLIENT_H
#define LIVEBLK_CLI_CLIENT_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

#include "block/cleanup.h"

struct client;

/* Limits for an answer, in milliseconds: for a question, and for a command that does work. */
#define CLIENT_QUERY_TIMEOUT_MS 30000
#define CLIENT_WORK_TIMEOUT_MS  120000

/* Connect and negotiate. */
struct client *client_connect(const char *path, GError **error);
void client_free(struct client *client);

static inline void client_cleanup(struct client **client)
{
    client_free(*client);
}
/* One that is freed at the end of the scope. */
#define AUTO_CLIENT CLEANUP(client_cleanup) struct client *

/*
 * While a call waits, this descriptor turning readable (a signal) shortens the wait to a few
 * seconds: an interrupted command is not given up while its answer may be near. -1: none.
 */
void client_set_interrupt_fd(struct client *client, int fd);

/*
 * Run a command and wait for its answer. Takes the reference to the arguments (NULL: none).
 * Returns a new reference to what it returned, or NULL.
 */
json_t *client_call(struct client *client, const char *command, json_t *arguments, int timeout_ms,
                    GError **error);

/* client_call for a command that other servers may not have: NULL without an error then. */
json_t *client_call_if_known(struct client *client, const char *command, GError **error);

/*
 * Send any message (borrowed) and wait for the answer, which is returned as it came, errors
 * included, with the message's own id. There is no limit to the wait.
 */
json_t *client_exchange(struct client *client, json_t *message, GError **error);

/*
 * Send a command without waiting; *ticket is what client_take_reply asks for later. Takes the
 * reference to the arguments.
 */
bool client_post(struct client *client, const char *command, json_t *arguments, int *ticket,
                 GError **error);

/* Read what has arrived, without waiting. False when the connection is of no more use. */
bool client_receive(struct client *client, GError **error);

/* The answer to a post if it has been received: the whole message, a new reference; else NULL. */
json_t *client_take_reply(struct client *client, int ticket);

/* The oldest event received and not taken yet: a new reference; NULL: none. */
json_t *client_take_event(struct client *client);

/* To poll for reading; then client_receive. */
int client_fd(const struct client *client);

/* The text of an answer's error, or NULL if it is none. Borrowed. */
const char *reply_error(const json_t *reply);

#endif
