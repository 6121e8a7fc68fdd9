/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The main thread: it owns the graph and the admin channel. Other threads hand it functions to
 * run. The queue is our own, on a pthread mutex, so that ThreadSanitizer sees the hand-over.
 */
#ifndef LIVEBLK_BLOCK_MAIN_LOOP_H
#define LIVEBLK_BLOCK_MAIN_LOOP_H

#include <glib.h>
#include <stdbool.h>

typedef void main_loop_function(void *data);

/*
 * Create the context and its queue. Idempotent; no thread is started, so that it may be called
 * before a fork.
 */
void main_loop_init(void);

/*
 * Start the main thread, after the last fork; again only after main_loop_stop. Returns a negative
 * errno.
 */
int main_loop_start(void);

/*
 * Run everything that is queued, then end and join the main thread. Not from the main thread.
 * After it main_loop_call_wait runs functions on the calling thread.
 */
void main_loop_stop(void);

/* The main thread's GLib context, for sources such as sockets. Valid after main_loop_init. */
GMainContext *main_loop_context(void);

/* Take a source out of its context and forget it, with its reference; NULL: there is none. */
void main_loop_drop_source(GSource **source);

/* True on the main thread, and on every thread while no main thread runs (start-up, tests). */
bool main_loop_is_current(void);

/*
 * Queue a function for the main thread and return at once. Any thread. Order is kept. While no
 * main thread runs, it waits for the next main_loop_call_wait or main_loop_start.
 */
void main_loop_call(main_loop_function *function, void *data);

/*
 * Run a function on the main thread and wait until it has returned; directly when already
 * there. Functions queued earlier run first, unless called on the main thread. Hold no lock that a
 * queued function may want. While no main thread runs, callers take its place one at a time.
 */
void main_loop_call_wait(main_loop_function *function, void *data);

#endif
