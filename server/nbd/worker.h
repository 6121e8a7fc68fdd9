/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Threads for clients. They come and go with every connection, and what libraries keep for each
 * thread that there ever was (GnuTLS does) would add up: some threads that have ended their task
 * wait for the next one.
 *
 * Functions may be called by any thread.
 */
#ifndef LIVEBLK_SERVER_NBD_WORKER_H
#define LIVEBLK_SERVER_NBD_WORKER_H

#include <stdbool.h>

/* Threads that may wait for a task. More of them end with their tasks. */
#define NBD_WORKERS_IDLE_MAX 64

/* What a thread is to do; its maker's, from nbd_task_start() until nbd_task_join(). */
struct nbd_task {
    void (*function)(void *data);
    void *data;
    bool is_done; /* the workers' */
};

/* Have a thread call the function. Returns a positive errno if there is none. */
int nbd_task_start(struct nbd_task *task);

/* Wait until the function has returned. Not on its own thread. */
void nbd_task_join(struct nbd_task *task);

/* Threads that wait for a task, and all that have ended, are gone when this returns. */
void nbd_workers_end(void);

#endif
