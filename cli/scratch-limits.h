/* SPDX-License-Identifier: BSD-3-Clause */
/* --scratch-max and --scratch-high, of whatever keeps what guests overwrite. */
#ifndef LIVEBLK_CLI_SCRATCH_LIMITS_H
#define LIVEBLK_CLI_SCRATCH_LIMITS_H

#include <glib.h>
#include <jansson.h>
#include <stdbool.h>

/*
 * Add them to a command's arguments. max: as it was typed, or NULL; high_water: percent, or -1: not
 * given. False with a usage error set.
 */
bool scratch_limits_add(json_t *arguments, const char *max, int high_water, GError **error);

#endif
