/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Programs of the user that run before and after the moment of a checkpoint, so that a guest's file
 * systems are frozen at it. They have a hard limit: one that does not end is killed.
 */
#ifndef LIVEBLK_SERVER_CUT_HOOKS_H
#define LIVEBLK_SERVER_CUT_HOOKS_H

#include <glib.h>
#include <stdint.h>

/*
 * Run a program (its name, found in PATH, and arguments; NULL-terminated) with these variables
 * ("NAME=value", NULL-terminated) added to the environment, and nothing to read; what it prints
 * goes to our standard error. Waits limit_ns at most: then it is killed, with all that is in its
 * process group. 0, or a negative errno with the error set: it could not be started, was killed or
 * failed. Any thread but the main one.
 */
int cut_hook_run(const char *const *arguments, const char *const *variables, int64_t limit_ns,
                 GError **error);

#endif
