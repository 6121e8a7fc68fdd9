/* SPDX-License-Identifier: BSD-3-Clause */
#ifndef LIVEBLK_CLI_CHECKPOINTS_TABLE_H
#define LIVEBLK_CLI_CHECKPOINTS_TABLE_H

#include <jansson.h>

/* A table of BlockCheckpointInfo objects, of one device (or NULL: that is not said). */
void print_checkpoints(const json_t *checkpoints, const char *device);

#endif
