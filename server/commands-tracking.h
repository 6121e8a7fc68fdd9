/* SPDX-License-Identifier: BSD-3-Clause */
/* Change tracking and checkpoints, which QEMU has nothing like. */
#ifndef LIVEBLK_SERVER_COMMANDS_TRACKING_H
#define LIVEBLK_SERVER_COMMANDS_TRACKING_H

#include "server/qmp/schema.h"
#include "server/transaction.h"

extern const struct qmp_command tracking_commands[];
extern const struct qmp_event_type tracking_events[];
extern const struct transaction_action_type checkpoint_add_action;

#endif
