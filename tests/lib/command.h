/* SPDX-License-Identifier: BSD-3-Clause */
/* Programs that a test runs, QEMU's tools above all. */
#ifndef LIVEBLK_TESTS_LIB_COMMAND_H
#define LIVEBLK_TESTS_LIB_COMMAND_H

#include <glib.h>

/*
 * Run a command line, without a shell; returns the exit status. What it printed, errors behind the
 * rest, is in *said (may be NULL), which the caller frees.
 */
int test_command(char **said, const char *format, ...) G_GNUC_PRINTF(2, 3);

/* Run one that must succeed; returns what it printed, which the caller frees. */
char *test_command_output(const char *format, ...) G_GNUC_PRINTF(1, 2);

/* Run one that must succeed. */
void test_command_succeeds(const char *format, ...) G_GNUC_PRINTF(1, 2);

#endif
