/* SPDX-License-Identifier: BSD-3-Clause */
/* block-set-write-threshold and block-latency-histogram-set. */
#ifndef LIVEBLK_SERVER_COMMANDS_WATCH_H
#define LIVEBLK_SERVER_COMMANDS_WATCH_H

#include "server/qmp/schema.h"

extern const struct qmp_command watch_commands[];
extern const struct qmp_event_type watch_events[];

#endif
