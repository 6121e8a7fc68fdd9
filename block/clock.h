/* SPDX-License-Identifier: BSD-3-Clause */
/* Monotonic time and waits on it. */
#ifndef LIVEBLK_BLOCK_CLOCK_H
#define LIVEBLK_BLOCK_CLOCK_H

#include <pthread.h>
#include <stdint.h>
#include <time.h>

#define NS_PER_SECOND INT64_C(1000000000)
#define NS_PER_MS     INT64_C(1000000)

/* Nanoseconds of CLOCK_MONOTONIC. */
static inline int64_t clock_now_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * NS_PER_SECOND + now.tv_nsec;
}

/*
 * Wait on a condition until an absolute CLOCK_MONOTONIC time in nanoseconds; a deadline of
 * INT64_MAX means for ever. Returns 0 when woken and ETIMEDOUT at the deadline, as
 * pthread_cond_timedwait does.
 */
static inline int clock_cond_wait_until(pthread_cond_t *condition, pthread_mutex_t *lock,
                                        int64_t deadline_ns)
{
    struct timespec deadline = {
        .tv_sec = deadline_ns / NS_PER_SECOND,
        .tv_nsec = deadline_ns % NS_PER_SECOND,
    };

    if (deadline_ns == INT64_MAX) {
        return pthread_cond_wait(condition, lock);
    }
    return pthread_cond_clockwait(condition, lock, CLOCK_MONOTONIC, &deadline);
}

#endif
