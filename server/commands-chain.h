/* SPDX-License-Identifier: BSD-3-Clause */
/* Jobs on backing chains, and external snapshots, which are actions too. */
#ifndef LIVEBLK_SERVER_COMMANDS_CHAIN_H
#define LIVEBLK_SERVER_COMMANDS_CHAIN_H

#include "server/qmp/schema.h"
#include "server/transaction.h"

/* Each ended by an entry without name. */
extern const struct qmp_command chain_commands[];   /* commands-chain.c */
extern const struct qmp_command overlay_commands[]; /* commands-overlay.c */

extern const struct transaction_action_type overlay_action;
extern const struct transaction_action_type overlay_file_action;

#endif
