/* SPDX-License-Identifier: BSD-3-Clause */
#include "block/main-loop.h"
#include "block/error.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/eventfd.h>
#include <sys/queue.h>

#include "block/cleanup.h"

struct call {
    main_loop_function *function;
    void *data;
    STAILQ_ENTRY(call) entry;
};
STAILQ_HEAD(call_list, call);

/* A call somebody waits for; lives on the waiter's stack. */
struct waited_call {
    main_loop_function *function;
    void *data;
    pthread_cond_t ended;
    bool has_ended; /* under queue_lock */
};

/*
 * Guards the queue, the waited calls' flags, stop_requested and changes of is_running. A leaf:
 * no other lock is taken under it.
 */
static pthread_mutex_t queue_lock = PTHREAD_MUTEX_INITIALIZER;
static struct call_list queue = STAILQ_HEAD_INITIALIZER(queue);
static bool stop_requested;

/* While true, everything queued will be run by the main thread. Set under both locks. */
static atomic_bool is_running;

/*
 * While no main thread runs, the threads that call main_loop_call_wait take its place one at a
 * time by holding this lock, the outermost of all; the main thread starts when none does. In the
 * thread that holds it, and in the main thread, acts_as_main is true.
 */
static pthread_mutex_t stand_in_lock = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local bool acts_as_main;

static GMainContext *context;
static int wake_fd = -1;
static pthread_t main_thread;

/* Run what is in the queue now, not what that adds: other sources of the loop have their turn. */
static void run_queued(void)
{
    struct call_list calls = STAILQ_HEAD_INITIALIZER(calls);

    pthread_mutex_lock(&queue_lock);
    STAILQ_CONCAT(&calls, &queue);
    pthread_mutex_unlock(&queue_lock);
    while (!STAILQ_EMPTY(&calls)) {
        g_autofree struct call *call = STAILQ_FIRST(&calls);

        STAILQ_REMOVE_HEAD(&calls, entry);
        call->function(call->data);
    }
}

static gboolean dispatch_queue(GSource *source, GSourceFunc callback, gpointer data)
{
    eventfd_t count;

    /* Before the queue is looked at, so that a call added after the look wakes us again. */
    eventfd_read(wake_fd, &count);
    run_queued();
    return G_SOURCE_CONTINUE;
}

/* Without prepare and check functions GLib looks at the descriptor alone. */
static GSourceFuncs queue_source_functions = {.dispatch = dispatch_queue};

void main_loop_init(void)
{
    GSource *source;

    if (context) {
        return;
    }
    /* It starts signalled: calls may have been queued before. */
    wake_fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wake_fd < 0) {
        g_error("Could not create an eventfd for the main loop: %s", block_strerror(errno));
    }
    context = g_main_context_new();
    source = g_source_new(&queue_source_functions, sizeof(GSource));
    g_source_add_unix_fd(source, wake_fd, G_IO_IN);
    g_source_attach(source, context);
    g_source_unref(source);
}

/* Nothing can be queued between the last look at the queue and the end of is_running. */
static bool end_if_requested(void)
{
    SCOPE_LOCK(&queue_lock);

    if (!stop_requested || !STAILQ_EMPTY(&queue)) {
        return false;
    }
    atomic_store(&is_running, false);
    return true;
}

static void *run_main_thread(void *data)
{
    acts_as_main = true;
    g_main_context_push_thread_default(context);
    while (!end_if_requested()) {
        g_main_context_iteration(context, TRUE);
    }
    g_main_context_pop_thread_default(context);
    return NULL;
}

/* Signals are for the threads of the program around us. */
static int create_main_thread(void)
{
    sigset_t all, previous;
    int status;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &previous);
    status = pthread_create(&main_thread, NULL, run_main_thread, NULL);
    pthread_sigmask(SIG_SETMASK, &previous, NULL);
    if (status == 0) {
        pthread_setname_np(main_thread, "liveblk-main");
    }
    return -status;
}

int main_loop_start(void)
{
    int status;

    g_assert(!acts_as_main);
    main_loop_init();
    SCOPE_LOCK(&stand_in_lock);
    SCOPE_LOCK(&queue_lock); /* nobody queues a call for a thread that fails to start */
    g_assert(!atomic_load(&is_running));
    stop_requested = false;
    status = create_main_thread();
    atomic_store(&is_running, status == 0);
    return status;
}

static void wake(void)
{
    if (wake_fd >= 0) {
        eventfd_write(wake_fd, 1);
    }
}

void main_loop_stop(void)
{
    g_assert(atomic_load(&is_running) && !acts_as_main);
    pthread_mutex_lock(&queue_lock);
    stop_requested = true;
    pthread_mutex_unlock(&queue_lock);
    wake();
    pthread_join(main_thread, NULL);
}

GMainContext *main_loop_context(void)
{
    return context;
}

void main_loop_drop_source(GSource **source)
{
    if (*source) {
        g_source_destroy(*source);
        g_source_unref(*source);
        *source = NULL;
    }
}

bool main_loop_is_current(void)
{
    return acts_as_main || !atomic_load(&is_running);
}

static void enqueue_locked(main_loop_function *function, void *data)
{
    struct call *call = g_new(struct call, 1);
    bool was_empty = STAILQ_EMPTY(&queue);

    *call = (struct call){.function = function, .data = data};
    STAILQ_INSERT_TAIL(&queue, call, entry);
    if (was_empty) {
        wake();
    }
}

void main_loop_call(main_loop_function *function, void *data)
{
    SCOPE_LOCK(&queue_lock);

    enqueue_locked(function, data);
}

static void run_waited_call(void *data)
{
    struct waited_call *call = data;

    call->function(call->data);
    SCOPE_LOCK(&queue_lock);
    call->has_ended = true;
    pthread_cond_signal(&call->ended);
}

/* Returns false if there is no main thread to run it. */
static bool call_wait_on_main_thread(main_loop_function *function, void *data)
{
    struct waited_call call = {.function = function, .data = data};
    SCOPE_LOCK(&queue_lock);

    if (!atomic_load(&is_running)) {
        return false;
    }
    pthread_cond_init(&call.ended, NULL);
    enqueue_locked(run_waited_call, &call);
    while (!call.has_ended) {
        pthread_cond_wait(&call.ended, &queue_lock);
    }
    pthread_cond_destroy(&call.ended);
    return true;
}

/* Returns false if a main thread was started meanwhile. */
static bool call_in_its_place(main_loop_function *function, void *data)
{
    SCOPE_LOCK(&stand_in_lock);

    if (atomic_load(&is_running)) {
        return false;
    }
    acts_as_main = true;
    run_queued();
    function(data);
    acts_as_main = false;
    return true;
}

void main_loop_call_wait(main_loop_function *function, void *data)
{
    bool has_run = acts_as_main;

    if (has_run) {
        function(data);
    }
    while (!has_run) {
        has_run = call_wait_on_main_thread(function, data) || call_in_its_place(function, data);
    }
}
