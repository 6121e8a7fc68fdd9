/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Start-up and shutdown of everything behind a transport: drivers, disks, admin channels. What
 * the nbdkit plugin and the programs with an NBD server of our own configure and run.
 *
 * Order: server_new, server_add_disk..., server_prepare (opens disks and binds the admin socket;
 * before the fork, so that errors reach the person who started us), server_start (threads; after
 * the fork), server_stop, server_free. One at a time in a process.
 *
 * A server that has started can be given more: what commands add (server_run), and admin channels.
 */
#ifndef LIVEBLK_SERVER_SERVER_H
#define LIVEBLK_SERVER_SERVER_H

#include <glib.h>
#include <stdbool.h>

#include "server/unix-socket.h"

struct server;

struct server *server_new(void);

/*
 * Add a disk: a path, or "name=vda,file=PATH,format=raw,cache=none,..." (see
 * nbdkit-liveblk-plugin(1)). Checked for form only. Returns a negative errno.
 */
int server_add_disk(struct server *server, const char *text, GError **error);

/* The admin socket's path; relative paths are taken from the current directory now. */
int server_set_admin(struct server *server, const char *path, GError **error);

/* A name for query-name. */
void server_set_name(struct server *server, const char *name);

/* What images may refer to (block/gate.h). Before disks are opened. A negative errno on error. */
int server_set_image_references(struct server *server, const char *policy, GError **error);

/* Open all disks read-only. */
void server_set_read_only(struct server *server, bool read_only);

int server_prepare(struct server *server, GError **error);

/* quit: called on the main thread when a client asks the whole process to end. */
int server_start(struct server *server, void (*quit)(void *data), void *quit_data, GError **error);

/*
 * Run a command as if an admin client had sent it, with arguments as they stand on a command line
 * (server/option-text.h). It is one that has a thread of its own and asks nothing of its client.
 * Not the main thread; after server_start. A negative errno.
 */
int server_run(struct server *server, const char *command, const char *text,
               const char *implied_key, GError **error);

/*
 * Another admin channel: for those who connect to a socket that listens, which is taken over; or
 * for one client alone, whose stream socket is taken. Pretty: messages are indented. After
 * server_start, not the main thread.
 */
void server_add_monitor(struct server *server, const struct unix_listener *listener,
                        bool is_pretty);
void server_add_monitor_client(struct server *server, int fd, bool is_pretty);

/*
 * The process will end as soon as its clients have gone: requests held by an error policy fail,
 * jobs are cancelled, disks flushed. Clients are still served. Not the main thread; blocks.
 */
void server_begin_stop(struct server *server);

/*
 * Disconnect clients of our own NBD servers and remove their exports, cancel jobs, flush and close
 * disks, remove the admin sockets, end the threads. Requests held by an error policy fail. A client
 * whose request does not end within 5 seconds, because a job holds it up, is left until the jobs
 * are cancelled. Idempotent.
 */
void server_stop(struct server *server);
void server_free(struct server *server);

/* Facts for --dump-plugin and query-version. */
const char *server_version(void);
/* Drivers and job types as space separated words; the caller frees. */
char *server_driver_names(void);
char *server_job_types(void);

/* docs/qmp.md: an introduction and every command, event and type; the caller frees. */
char *server_qmp_document(const char *introduction);

#endif
