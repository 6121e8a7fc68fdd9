/* SPDX-License-Identifier: BSD-3-Clause */
/* Threads of our own. */
#ifndef LIVEBLK_BLOCK_THREAD_H
#define LIVEBLK_BLOCK_THREAD_H

#include <pthread.h>
#include <signal.h>

/*
 * As pthread_create, with all signals blocked in the new thread: they are for the threads of the
 * program around us. But for SIGBUS, which a thread gets for what it does itself
 * (block/guarded-mapping.h). Returns a positive errno.
 */
static inline int thread_create(pthread_t *thread, void *(*function)(void *), void *data)
{
    sigset_t all, previous;

    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    pthread_sigmask(SIG_SETMASK, &all, &previous);
    int error_number = pthread_create(thread, NULL, function, data);
    pthread_sigmask(SIG_SETMASK, &previous, NULL);
    return error_number;
}

#endif
