/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Work that may hang, such as on bad storage, for a caller who cannot wait for ever: it runs on a
 * thread of its own, and is left to itself when its time is over.
 */
#ifndef LIVEBLK_BLOCK_TIMED_CALL_H
#define LIVEBLK_BLOCK_TIMED_CALL_H

#include <glib.h>
#include <stdbool.h>
#include <stdint.h>

struct timed_call;

/*
 * Run the function and wait for it until clock_now_ns() is deadline_ns, or for ever if that is
 * INT64_MAX. Returns what it returns, or a negative errno if there is no thread for it; the data
 * are the caller's again then. If the time is over, *is_left is true, -ETIMEDOUT is returned, and
 * the data are the thread's: they are freed when the work has ended. is_left is not NULL.
 */
int timed_call_run(int (*function)(struct timed_call *call, void *data), void *data,
                   GDestroyNotify free_data, int64_t deadline_ns, bool *is_left);

/* For the function: nobody waits any more; what it would still do had better not be done. */
bool timed_call_is_left(struct timed_call *call);

#endif
