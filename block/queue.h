/* SPDX-License-Identifier: BSD-3-Clause */
/* Intrusive lists: the C library's BSD queues, and the one loop glibc leaves out. */
#ifndef LIVEBLK_BLOCK_QUEUE_H
#define LIVEBLK_BLOCK_QUEUE_H

#include <sys/queue.h>

#ifndef TAILQ_FOREACH_SAFE
#define TAILQ_FOREACH_SAFE(variable, head, field, next)                                            \
    for ((variable) = TAILQ_FIRST(head); (variable) && ((next) = TAILQ_NEXT(variable, field), 1);  \
         (variable) = (next))
#endif

#endif
