/* SPDX-License-Identifier: BSD-3-Clause */
/* Verbs of subcommands that work on a server: "liveblk view drop NAME". */
#ifndef LIVEBLK_CLI_VERB_H
#define LIVEBLK_CLI_VERB_H

#include "cli/client.h"
#include "cli/command.h"

/* An entry of such a subcommand's table, for FIND_VERB. */
struct verb {
    const char *name;
    unsigned arguments; /* after the verb */
    const char *what;   /* they are, for errors */
    enum exit_status (*function)(const struct invocation *invocation, const char *admin,
                                 struct client *client, GError **error);
};

/* Connect to the server that is meant, and do it. With --json an error is a message, too. */
enum exit_status verb_run(const struct verb *verb, const struct invocation *invocation,
                          GError **error);

/*
 * Have the server run a command whose answer says nothing; takes the reference to its arguments.
 * With --json there is a message "done", with the verb and, under this name, the word after it.
 */
enum exit_status verb_call(const struct invocation *invocation, struct client *client,
                           const char *command, json_t *arguments, const char *member,
                           GError **error);

/*
 * Show an answer, which is NULL after an error: as it is with --json, else by this function. Takes
 * the reference.
 */
enum exit_status verb_show(const struct invocation *invocation, json_t *answer,
                           void (*print)(const json_t *answer));

#endif
