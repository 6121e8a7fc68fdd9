/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/timed-call.h"

#include <errno.h>
#include <pthread.h>

#include "block/cleanup.h"
#include "block/clock.h"
#include "block/thread.h"

struct timed_call {
    int (*function)(struct timed_call *call, void *data);
    void *data;
    GDestroyNotify free_data;

    pthread_mutex_t lock; /* guards what follows */
    pthread_cond_t ended;
    bool has_ended, is_left;
    int status;
};

static void free_call(struct timed_call *call)
{
    pthread_mutex_destroy(&call->lock);
    pthread_cond_destroy(&call->ended);
    g_free(call);
}

static void *run(void *data)
{
    struct timed_call *call = data;
    int status = call->function(call, call->data);

    pthread_mutex_lock(&call->lock);
    call->status = status;
    call->has_ended = true;
    bool is_left = call->is_left;
    pthread_cond_signal(&call->ended);
    pthread_mutex_unlock(&call->lock);
    if (is_left) {
        call->free_data(call->data);
        free_call(call);
    }
    return NULL;
}

/* Returns whether it has ended; the thread is joined then. */
static bool wait_for(struct timed_call *call, pthread_t thread, int64_t deadline_ns)
{
    pthread_mutex_lock(&call->lock);
    while (!call->has_ended && clock_cond_wait_until(&call->ended, &call->lock, deadline_ns) == 0) {
    }
    bool has_ended = call->has_ended;
    call->is_left = !has_ended;
    pthread_mutex_unlock(&call->lock);
    if (has_ended) {
        pthread_join(thread, NULL);
    } else {
        pthread_detach(thread);
    }
    return has_ended;
}

int timed_call_run(int (*function)(struct timed_call *call, void *data), void *data,
                   GDestroyNotify free_data, int64_t deadline_ns, bool *is_left)
{
    struct timed_call *call = g_new0(struct timed_call, 1);
    pthread_t thread;

    call->function = function;
    call->data = data;
    call->free_data = free_data;
    pthread_mutex_init(&call->lock, NULL);
    pthread_cond_init(&call->ended, NULL);
    *is_left = false;
    int status = -thread_create(&thread, run, call);
    if (status == 0 && !wait_for(call, thread, deadline_ns)) {
        *is_left = true;
        return -ETIMEDOUT;
    }
    if (status == 0) {
        status = call->status;
    }
    free_call(call);
    return status;
}

bool timed_call_is_left(struct timed_call *call)
{
    SCOPE_LOCK(&call->lock);

    return call->is_left;
}
