/* SPDX-License-Identifier: BSD-3-Clause */
/* Signals as something to poll for, for subcommands that must not just die of them. */
#ifndef LIVEBLK_CLI_SIGNALS_H
#define LIVEBLK_CLI_SIGNALS_H

/*
 * From now on SIGINT, SIGTERM, SIGHUP and SIGUSR1 are read from the returned descriptor (never
 * closed) and SIGPIPE is ignored. Ends the program if the system refuses.
 */
int signals_catch(void);

/* The next signal's number, or 0 if none is waiting. */
int signals_take(int fd);

#endif
