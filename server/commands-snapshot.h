/* SPDX-License-Identifier: BSD-3-Clause */
/* blockdev-snapshot-internal-sync, which is an action too, and its counterpart. */
#ifndef LIVEBLK_SERVER_COMMANDS_SNAPSHOT_H
#define LIVEBLK_SERVER_COMMANDS_SNAPSHOT_H

#include "server/qmp/schema.h"
#include "server/transaction.h"

/* Ended by an entry without name. */
extern const struct qmp_command snapshot_commands[];

extern const struct transaction_action_type snapshot_create_action;

#endif
