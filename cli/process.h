/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What liveblk-nbd and liveblk-storage-daemon are as processes: messages, going to the background,
 * signals, the file with the process ID. One thread, that of main, unless it says otherwise.
 */
#ifndef LIVEBLK_CLI_PROCESS_H
#define LIVEBLK_CLI_PROCESS_H

#include <getopt.h>
#include <glib.h>
#include <stdbool.h>

/*
 * First of all: the program's name, which goes before each message; GLib's, warnings included, come
 * that way, too. SIGTERM, SIGINT and SIGHUP end process_wait from here on, instead of the process.
 */
void process_begin(const char *name);

/* A line on standard error, "NAME: text". Any thread. */
void process_complain(const char *format, ...) G_GNUC_PRINTF(1, 2);

/*
 * As getopt_long, whose variables have what it found, but that what is wrong is said in the error,
 * and the answer '?' then.
 */
int process_next_option(int argc, char **argv, const char *short_options,
                        const struct option *long_options, int *index, GError **error);

/*
 * Go on in a child without standard input and output, while the parent passes on what the child
 * writes on standard error, and waits for process_ready, with which it exits with 0; if the child
 * ends before, with what it has ended with, or 1. Before there are threads.
 */
void process_fork(void);

/*
 * Write the process ID to a file, mode 0600, which process_end removes. No other process may live
 * that has it so. Returns a negative errno.
 */
int process_write_pid_file(const char *path, GError **error);

/*
 * All that was asked for is there. A child of process_fork is from now on in the root directory and
 * without standard error (but if keep_errors: with that of who started us), and its parent has
 * left.
 */
void process_ready(bool keep_errors);

/*
 * Wait until a signal or process_finish ends it, or one of some descriptors is readable. Returns
 * false in the first case, from then on at once.
 */
bool process_wait(const int *fds, unsigned count);

/* Any thread. */
void process_finish(void);

/* Last of all. */
void process_end(void);

#endif
