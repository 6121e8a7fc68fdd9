/* SPDX-License-Identifier: BSD-3-Clause */
/* The main thread's queue, and the events that run on it. */
#include <glib.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>

#include "block/cleanup.h"
#include "block/event.h"
#include "block/main-loop.h"

static void start(void)
{
    g_assert_cmpint(main_loop_start(), ==, 0);
}

static void do_nothing(void *data)
{
}

static void increment(void *data)
{
    ++*(unsigned *)data;
}

static void note_thread(void *data)
{
    g_assert_true(main_loop_is_current());
    *(pthread_t *)data = pthread_self();
}

/* The main loop. */

static void test_functions_run_on_one_other_thread(void)
{
    pthread_t first, second;

    start();
    g_assert_false(main_loop_is_current());
    main_loop_call_wait(note_thread, &first);
    main_loop_call_wait(note_thread, &second);
    g_assert_true(pthread_equal(first, second));
    g_assert_false(pthread_equal(first, pthread_self()));
    main_loop_stop();
    g_assert_true(main_loop_is_current());
}

static void test_without_a_main_thread_functions_run_where_they_are_called(void)
{
    pthread_t thread;
    unsigned count = 0;

    main_loop_call(increment, &count);
    g_assert_cmpuint(count, ==, 0);
    main_loop_call_wait(note_thread, &thread);
    g_assert_true(pthread_equal(thread, pthread_self()));
    g_assert_cmpuint(count, ==, 1); /* what was queued earlier ran first */
}

#define CALLERS 4
#define CALLS   2000

/* What one caller queues: its number in its own order. */
struct numbered {
    unsigned caller;
    unsigned number;
};

static unsigned next_number[CALLERS]; /* main thread only */

static void check_number(void *data)
{
    g_autofree struct numbered *numbered = data;

    g_assert_cmpuint(next_number[numbered->caller], ==, numbered->number);
    next_number[numbered->caller]++;
}

static void *queue_numbers(void *data)
{
    unsigned caller = *(unsigned *)data;

    for (unsigned i = 0; i < CALLS; i++) {
        struct numbered *numbered = g_new(struct numbered, 1);

        *numbered = (struct numbered){.caller = caller, .number = i};
        if (i % 100) {
            main_loop_call(check_number, numbered);
        } else {
            main_loop_call_wait(check_number, numbered);
        }
    }
    return NULL;
}

static void run_callers(void (*meanwhile)(void))
{
    pthread_t threads[CALLERS];
    unsigned numbers[CALLERS];

    memset(next_number, 0, sizeof(next_number));
    for (unsigned i = 0; i < CALLERS; i++) {
        numbers[i] = i;
        pthread_create(&threads[i], NULL, queue_numbers, &numbers[i]);
    }
    meanwhile();
    for (unsigned i = 0; i < CALLERS; i++) {
        pthread_join(threads[i], NULL);
    }
}

static void keep_running(void)
{
}

static void restart_often(void)
{
    for (unsigned i = 0; i < 20; i++) {
        main_loop_stop();
        start();
    }
}

static void assert_all_ran(void)
{
    for (unsigned i = 0; i < CALLERS; i++) {
        g_assert_cmpuint(next_number[i], ==, CALLS);
    }
}

static void test_each_callers_functions_run_in_its_order(void)
{
    start();
    run_callers(keep_running);
    main_loop_stop();
    assert_all_ran();
}

static void test_each_callers_functions_run_in_its_order_without_a_main_thread(void)
{
    run_callers(keep_running);
    main_loop_call_wait(do_nothing, NULL);
    assert_all_ran();
}

static void test_stop_runs_what_is_queued(void)
{
    unsigned count = 0;

    start();
    for (unsigned i = 0; i < 1000; i++) {
        main_loop_call(increment, &count);
    }
    main_loop_stop();
    g_assert_cmpuint(count, ==, 1000);
}

struct chain {
    unsigned left;
};

static void queue_next_link(void *data)
{
    struct chain *chain = data;

    if (--chain->left) {
        main_loop_call(queue_next_link, chain);
    }
}

static void test_stop_runs_what_queued_functions_queue(void)
{
    struct chain chain = {.left = 50};

    start();
    main_loop_call(queue_next_link, &chain);
    main_loop_stop();
    g_assert_cmpuint(chain.left, ==, 0);
}

static void test_calls_survive_stops_and_starts(void)
{
    start();
    run_callers(restart_often);
    main_loop_stop();
    assert_all_ran();
}

static void test_what_was_queued_before_the_start_runs(void)
{
    unsigned count = 0;

    main_loop_call(increment, &count);
    start();
    main_loop_stop();
    g_assert_cmpuint(count, ==, 1);
}

static void call_and_wait_again(void *data)
{
    main_loop_call_wait(increment, data);
    ++*(unsigned *)data;
}

static void test_a_function_may_itself_call_and_wait(void)
{
    unsigned count = 0;

    start();
    main_loop_call_wait(call_and_wait_again, &count);
    main_loop_stop();
    g_assert_cmpuint(count, ==, 2);
    main_loop_call_wait(call_and_wait_again, &count);
    g_assert_cmpuint(count, ==, 4);
}

static gboolean count_idle(gpointer data)
{
    atomic_fetch_add((atomic_uint *)data, 1);
    return G_SOURCE_REMOVE;
}

/* Queues itself until the idle source below it has had its turn. */
static void queue_until_idle_ran(void *data)
{
    if (atomic_load((atomic_uint *)data) == 0) {
        main_loop_call(queue_until_idle_ran, data);
    }
}

static void test_a_busy_queue_does_not_starve_other_sources(void)
{
    atomic_uint idle_runs = 0;
    GSource *source = g_timeout_source_new(0);

    start();
    g_source_set_callback(source, count_idle, &idle_runs, NULL);
    main_loop_call(queue_until_idle_ran, &idle_runs);
    g_source_attach(source, main_loop_context());
    main_loop_stop(); /* ends when the queue does */
    g_source_unref(source);
    g_assert_cmpuint(atomic_load(&idle_runs), ==, 1);
}

static void note_signal_mask(void *data)
{
    pthread_sigmask(SIG_SETMASK, NULL, data);
}

static void test_signals_are_left_to_the_program(void)
{
    sigset_t mask, before, after;

    pthread_sigmask(SIG_SETMASK, NULL, &before);
    start();
    pthread_sigmask(SIG_SETMASK, NULL, &after);
    main_loop_call_wait(note_signal_mask, &mask);
    main_loop_stop();
    g_assert_true(sigismember(&mask, SIGTERM));
    g_assert_true(sigismember(&mask, SIGINT));
    g_assert_cmpint(sigismember(&before, SIGTERM), ==, sigismember(&after, SIGTERM));
}

/* Events. */

/* What a listener heard, as text, in order. Main thread only. */
struct heard {
    GString *text;
    struct heard *other; /* removed, or added, at an event of that name */
};

static void append_field(GString *text, const struct event_field *field)
{
    switch (field->type) {
    case EVENT_FIELD_STRING:
        g_string_append_printf(text, " %s='%s'", field->key, field->string);
        break;
    case EVENT_FIELD_INT:
        g_string_append_printf(text, " %s=%" G_GINT64_FORMAT, field->key, field->number);
        break;
    case EVENT_FIELD_BOOL:
        g_string_append_printf(text, " %s=%s", field->key, field->number ? "true" : "false");
        break;
    }
}

static void hear(const struct event *event, void *data)
{
    struct heard *heard = data;

    g_assert_true(main_loop_is_current());
    g_assert_cmpint(event->timestamp_us, >, 0);
    g_string_append(heard->text, event->name);
    for (const struct event_field *field = event->fields; field->key; field++) {
        append_field(heard->text, field);
    }
    g_string_append_c(heard->text, '\n');
    if (strcmp(event->name, "REMOVE") == 0) {
        event_remove_listener(hear, heard->other ? heard->other : heard);
    } else if (strcmp(event->name, "ADD") == 0) {
        event_add_listener(hear, heard->other);
    }
}

static void add_listener(void *heard)
{
    event_add_listener(hear, heard);
}

static void remove_listener(void *heard)
{
    event_remove_listener(hear, heard);
}

static void free_text(struct heard *heard)
{
    g_string_free(heard->text, TRUE);
}

static void test_an_event_carries_its_fields(void)
{
    struct heard heard = {.text = g_string_new(NULL)};
    char name[] = "vda";

    start();
    main_loop_call_wait(add_listener, &heard);
    event_emit("PLAIN");
    event_emit("FULL", EVENT_STRING("id", name), EVENT_STRING("error", NULL),
               EVENT_INT("len", INT64_MAX), EVENT_BOOL("busy", true), EVENT_BOOL("idle", false));
    memset(name, 'x', 3); /* it was copied */
    main_loop_call_wait(remove_listener, &heard);
    event_emit("AFTERWARDS");
    main_loop_stop();
    g_assert_cmpstr(heard.text->str, ==,
                    "PLAIN\nFULL id='vda' len=9223372036854775807 busy=true idle=false\n");
    free_text(&heard);
}

static int64_t last_number[CALLERS];

static void check_event_order(const struct event *event, void *data)
{
    int64_t emitter = event->fields[0].number;

    g_assert_cmpint(event->fields[1].number, ==, last_number[emitter] + 1);
    last_number[emitter]++;
}

static void add_order_check(void *data)
{
    event_add_listener(check_event_order, data);
}

static void remove_order_check(void *data)
{
    event_remove_listener(check_event_order, data);
}

/* Emits with a lock held that the main thread may not need. */
static void *emit_numbers(void *data)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    unsigned emitter = *(unsigned *)data;

    for (unsigned i = 1; i <= CALLS; i++) {
        SCOPE_LOCK(&lock);

        event_emit("NUMBER", EVENT_INT("emitter", emitter), EVENT_INT("number", i));
    }
    return NULL;
}

static void test_events_arrive_in_the_order_of_the_calls(void)
{
    pthread_t threads[CALLERS];
    unsigned numbers[CALLERS];

    memset(last_number, 0, sizeof(last_number));
    start();
    main_loop_call_wait(add_order_check, NULL);
    for (unsigned i = 0; i < CALLERS; i++) {
        numbers[i] = i;
        pthread_create(&threads[i], NULL, emit_numbers, &numbers[i]);
    }
    for (unsigned i = 0; i < CALLERS; i++) {
        pthread_join(threads[i], NULL);
    }
    main_loop_call_wait(remove_order_check, NULL);
    main_loop_stop();
    for (unsigned i = 0; i < CALLERS; i++) {
        g_assert_cmpint(last_number[i], ==, CALLS);
    }
}

static void test_events_and_queued_functions_keep_their_order(void)
{
    struct heard heard = {.text = g_string_new(NULL)};

    /* Without a main thread: the events are delivered at the wait. */
    event_add_listener(hear, &heard);
    event_emit("FIRST");
    main_loop_call(remove_listener, &heard);
    event_emit("SECOND");
    g_assert_cmpstr(heard.text->str, ==, "");
    main_loop_call_wait(do_nothing, NULL);
    g_assert_cmpstr(heard.text->str, ==, "FIRST\n");
    free_text(&heard);
}

static void test_a_listener_may_remove_itself_and_others(void)
{
    struct heard third = {.text = g_string_new(NULL)};
    struct heard second = {.text = g_string_new(NULL)};
    struct heard first = {.text = g_string_new(NULL), .other = &second};

    event_add_listener(hear, &first);
    event_add_listener(hear, &second);
    event_add_listener(hear, &third);
    event_emit("REMOVE"); /* the first removes the second, the third itself */
    event_emit("LATER");
    main_loop_call_wait(do_nothing, NULL);
    event_remove_listener(hear, &first);
    g_assert_cmpstr(first.text->str, ==, "REMOVE\nLATER\n");
    g_assert_cmpstr(second.text->str, ==, "");
    g_assert_cmpstr(third.text->str, ==, "REMOVE\n");
    free_text(&first);
    free_text(&second);
    free_text(&third);
}

static void test_a_listener_added_by_another_hears_of_the_next_event(void)
{
    struct heard added = {.text = g_string_new(NULL)};
    struct heard first = {.text = g_string_new(NULL), .other = &added};

    event_add_listener(hear, &first);
    event_emit("ADD");
    event_emit("LATER");
    main_loop_call_wait(do_nothing, NULL);
    event_remove_listener(hear, &first);
    event_remove_listener(hear, &added);
    g_assert_cmpstr(first.text->str, ==, "ADD\nLATER\n");
    g_assert_cmpstr(added.text->str, ==, "LATER\n");
    free_text(&first);
    free_text(&added);
}

static void add_event_tests(void)
{
    g_test_add_func("/event/an-event-carries-its-fields", test_an_event_carries_its_fields);
    g_test_add_func("/event/events-arrive-in-the-order-of-the-calls",
                    test_events_arrive_in_the_order_of_the_calls);
    g_test_add_func("/event/events-and-queued-functions-keep-their-order",
                    test_events_and_queued_functions_keep_their_order);
    g_test_add_func("/event/a-listener-may-remove-itself-and-others",
                    test_a_listener_may_remove_itself_and_others);
    g_test_add_func("/event/a-listener-added-by-another-hears-of-the-next-event",
                    test_a_listener_added_by_another_hears_of_the_next_event);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    main_loop_init();
    g_test_add_func("/main-loop/functions-run-on-one-other-thread",
                    test_functions_run_on_one_other_thread);
    g_test_add_func("/main-loop/without-a-main-thread-functions-run-where-they-are-called",
                    test_without_a_main_thread_functions_run_where_they_are_called);
    g_test_add_func("/main-loop/each-callers-functions-run-in-its-order",
                    test_each_callers_functions_run_in_its_order);
    g_test_add_func("/main-loop/each-callers-functions-run-in-its-order-without-a-main-thread",
                    test_each_callers_functions_run_in_its_order_without_a_main_thread);
    g_test_add_func("/main-loop/stop-runs-what-is-queued", test_stop_runs_what_is_queued);
    g_test_add_func("/main-loop/stop-runs-what-queued-functions-queue",
                    test_stop_runs_what_queued_functions_queue);
    g_test_add_func("/main-loop/calls-survive-stops-and-starts",
                    test_calls_survive_stops_and_starts);
    g_test_add_func("/main-loop/what-was-queued-before-the-start-runs",
                    test_what_was_queued_before_the_start_runs);
    g_test_add_func("/main-loop/a-function-may-itself-call-and-wait",
                    test_a_function_may_itself_call_and_wait);
    g_test_add_func("/main-loop/a-busy-queue-does-not-starve-other-sources",
                    test_a_busy_queue_does_not_starve_other_sources);
    g_test_add_func("/main-loop/signals-are-left-to-the-program",
                    test_signals_are_left_to_the_program);
    add_event_tests();
    return g_test_run();
}
