/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The command and event tables of the admin channel, and what commands ask of the server.
 */
#ifndef LIVEBLK_SERVER_COMMANDS_H
#define LIVEBLK_SERVER_COMMANDS_H

#include "server/qmp/commands.h"
#include "server/qmp/schema.h"

/* Tables, each ended by an entry without name; qmp_commands_control is in server/qmp/. */
extern const struct qmp_command server_commands[]; /* query-status, query-name, quit, ... */
extern const struct qmp_command block_commands[];  /* nodes and devices */
extern const struct qmp_command qom_commands[];    /* which node a device shows */
extern const struct qmp_command job_commands[];    /* jobs */
extern const struct qmp_event_type block_events[];
extern const struct qmp_event_type job_events[];

/* The name given at start-up, or NULL. */
const char *server_name(void);

/* Whether admin clients are accepted there. Any thread. */
bool server_is_monitor_socket(int fd);

/* Ask the transport to end the process. Main thread. */
void server_quit(void);

#endif
