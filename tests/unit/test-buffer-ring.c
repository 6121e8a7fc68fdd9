/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <glib.h>
#include <pthread.h>
#include <string.h>

#include "jobs/buffer-ring.h"
#include "tests/lib/thread-count.h"

#define TASKS       8
#define BUFFER_SIZE 5000

/* Task i, submitted with offset i, waits for its release and returns its result. */
struct fixture {
    struct buffer_ring *ring;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t changed;
    bool started[TASKS];
    bool released[TASKS];
    int result[TASKS];
    unsigned running_at_start[TASKS];
    unsigned running;
};

static int gated_task(struct buffer_ring_slot *slot, void *data)
{
    struct fixture *fixture = data;
    unsigned i = (unsigned)slot->offset;
    SCOPE_LOCK(&fixture->lock);

    fixture->started[i] = true;
    fixture->running_at_start[i] = ++fixture->running;
    pthread_cond_broadcast(&fixture->changed);
    while (!fixture->released[i]) {
        pthread_cond_wait(&fixture->changed, &fixture->lock);
    }
    fixture->running--;
    return fixture->result[i];
}

static void set_up(struct fixture *fixture, unsigned buffers, unsigned in_flight)
{
    g_autoptr(GError) error = NULL;

    memset(fixture, 0, sizeof(*fixture));
    pthread_mutex_init(&fixture->lock, NULL);
    pthread_cond_init(&fixture->changed, NULL);
    fixture->ring = buffer_ring_new(buffers, BUFFER_SIZE, in_flight, gated_task, fixture, &error);
    g_assert_no_error(error);
}

static void release(struct fixture *fixture, unsigned i)
{
    SCOPE_LOCK(&fixture->lock);

    fixture->released[i] = true;
    pthread_cond_broadcast(&fixture->changed);
}

static void wait_started(struct fixture *fixture, unsigned i)
{
    SCOPE_LOCK(&fixture->lock);

    while (!fixture->started[i]) {
        pthread_cond_wait(&fixture->changed, &fixture->lock);
    }
}

static bool has_started(struct fixture *fixture, unsigned i)
{
    SCOPE_LOCK(&fixture->lock);

    return fixture->started[i];
}

static void tear_down(struct fixture *fixture)
{
    for (unsigned i = 0; i < TASKS; i++) {
        release(fixture, i);
    }
    buffer_ring_free(fixture->ring);
    g_assert_cmpuint(fixture->running, ==, 0);
    pthread_cond_destroy(&fixture->changed);
    pthread_mutex_destroy(&fixture->lock);
}

static void submit(struct fixture *fixture, unsigned i)
{
    struct buffer_ring_slot *slot = buffer_ring_get(fixture->ring);

    g_assert_nonnull(slot);
    slot->offset = i;
    buffer_ring_submit(fixture->ring, slot);
}

static void take(struct fixture *fixture, unsigned i, int result)
{
    struct buffer_ring_slot *slot = buffer_ring_take(fixture->ring);

    g_assert_nonnull(slot);
    g_assert_cmpuint(slot->offset, ==, i);
    g_assert_cmpint(slot->result, ==, result);
    buffer_ring_release(fixture->ring, slot);
}

static void test_order(void)
{
    struct fixture fixture;

    set_up(&fixture, 4, 4);
    for (unsigned i = 0; i < 4; i++) {
        submit(&fixture, i);
    }
    for (unsigned i = 4; i-- > 0;) {
        wait_started(&fixture, i);
        g_assert_false(buffer_ring_ready(fixture.ring));
        release(&fixture, i);
    }
    for (unsigned i = 0; i < 4; i++) {
        take(&fixture, i, 0);
    }
    g_assert_null(buffer_ring_take(fixture.ring));
    g_assert_true(buffer_ring_ready(fixture.ring));
    tear_down(&fixture);
}

static void test_buffers(void)
{
    struct buffer_ring_slot *slots[3];
    struct fixture fixture;

    set_up(&fixture, 3, 1);
    for (unsigned i = 0; i < 3; i++) {
        slots[i] = buffer_ring_get(fixture.ring);
        g_assert_true(buffer_ring_get(fixture.ring) == slots[i]); /* until it is submitted */
        g_assert_cmpuint((uintptr_t)slots[i]->buffer % 4096, ==, 0);
        memset(slots[i]->buffer, (int)i, BUFFER_SIZE);
        slots[i]->offset = i;
        release(&fixture, i);
        buffer_ring_submit(fixture.ring, slots[i]);
    }
    g_assert_null(buffer_ring_get(fixture.ring));
    struct buffer_ring_slot *taken = buffer_ring_take(fixture.ring);
    g_assert_true(taken == slots[0]);
    g_assert_null(buffer_ring_get(fixture.ring)); /* it is still the owner's */
    for (unsigned i = 0; i < 3; i++) {
        g_assert_cmpint(((uint8_t *)slots[i]->buffer)[BUFFER_SIZE - 1], ==, i);
    }
    buffer_ring_release(fixture.ring, taken);
    g_assert_true(buffer_ring_get(fixture.ring) == taken);
    tear_down(&fixture);
}

static void test_bound(void)
{
    struct fixture fixture;

    set_up(&fixture, TASKS, 2);
    for (unsigned i = 0; i < TASKS; i++) {
        release(&fixture, i);
        submit(&fixture, i);
    }
    g_assert_cmpint(buffer_ring_flush(fixture.ring), ==, 0);
    for (unsigned i = 0; i < TASKS; i++) {
        g_assert_cmpuint(fixture.running_at_start[i], <=, 2);
        g_assert_cmpuint(fixture.running_at_start[i], >, 0);
    }
    tear_down(&fixture);
}

/* The later of two failures comes first; the ring tells the earlier one. */
static void test_first_error(void)
{
    struct fixture fixture;

    set_up(&fixture, TASKS, 3);
    fixture.result[1] = -ENOSPC;
    fixture.result[2] = -EIO;
    for (unsigned i = 0; i < 5; i++) {
        submit(&fixture, i);
    }
    wait_started(&fixture, 2);
    release(&fixture, 2);
    release(&fixture, 0);
    take(&fixture, 0, 0);
    g_assert_cmpint(buffer_ring_error(fixture.ring), ==, 0); /* task 1 may succeed yet */
    release(&fixture, 1);
    take(&fixture, 1, -ENOSPC);
    g_assert_cmpint(buffer_ring_error(fixture.ring), ==, -ENOSPC);
    take(&fixture, 2, -EIO);
    tear_down(&fixture);
}

static void test_error_stops_tasks(void)
{
    struct fixture fixture;

    set_up(&fixture, TASKS, 1);
    fixture.result[1] = -EIO;
    for (unsigned i = 0; i < 4; i++) {
        submit(&fixture, i);
    }
    release(&fixture, 0);
    release(&fixture, 1);
    take(&fixture, 0, 0);
    take(&fixture, 1, -EIO);
    submit(&fixture, 4);
    take(&fixture, 2, -EIO);
    take(&fixture, 3, -EIO);
    take(&fixture, 4, -EIO);
    submit(&fixture, 5);
    g_assert_true(buffer_ring_ready(fixture.ring));
    g_assert_cmpint(buffer_ring_flush(fixture.ring), ==, -EIO);
    g_assert_cmpint(buffer_ring_error(fixture.ring), ==, -EIO);
    for (unsigned i = 2; i < TASKS; i++) {
        g_assert_false(has_started(&fixture, i));
    }
    tear_down(&fixture);
}

static void test_raise_in_flight(void)
{
    struct fixture fixture;

    set_up(&fixture, TASKS, 1);
    for (unsigned i = 0; i < 4; i++) {
        submit(&fixture, i);
    }
    wait_started(&fixture, 0);
    g_assert_false(has_started(&fixture, 1));
    buffer_ring_set_in_flight(fixture.ring, 3);
    wait_started(&fixture, 1);
    wait_started(&fixture, 2);
    g_assert_false(has_started(&fixture, 3));
    buffer_ring_set_in_flight(fixture.ring, UINT_MAX);
    wait_started(&fixture, 3);
    tear_down(&fixture);
}

static void test_lower_in_flight(void)
{
    struct fixture fixture;

    set_up(&fixture, TASKS, 3);
    for (unsigned i = 0; i < 3; i++) {
        submit(&fixture, i);
        wait_started(&fixture, i);
    }
    buffer_ring_set_in_flight(fixture.ring, 0); /* as 1 */
    for (unsigned i = 3; i < TASKS; i++) {
        submit(&fixture, i);
        release(&fixture, i);
    }
    release(&fixture, 1);
    release(&fixture, 0);
    take(&fixture, 0, 0);
    take(&fixture, 1, 0);
    release(&fixture, 2);
    g_assert_cmpint(buffer_ring_flush(fixture.ring), ==, 0);
    for (unsigned i = 3; i < TASKS; i++) {
        g_assert_cmpuint(fixture.running_at_start[i], ==, 1);
    }
    tear_down(&fixture);
}

static void test_flush_empty(void)
{
    struct fixture fixture;

    set_up(&fixture, 1, 1);
    g_assert_cmpint(buffer_ring_flush(fixture.ring), ==, 0);
    tear_down(&fixture);
}

static void *release_all(void *data)
{
    for (unsigned i = 0; i < TASKS; i++) {
        release(data, i);
    }
    return NULL;
}

static void test_free(void)
{
    struct fixture fixture;
    pthread_t thread;

    set_up(&fixture, TASKS, 2);
    for (unsigned i = 0; i < TASKS - 1; i++) {
        submit(&fixture, i);
    }
    g_assert_nonnull(buffer_ring_get(fixture.ring));
    wait_started(&fixture, 1);
    pthread_create(&thread, NULL, release_all, &fixture);
    buffer_ring_free(STEAL(fixture.ring));
    g_assert_cmpuint(fixture.running, ==, 0);
    pthread_join(thread, NULL);
    tear_down(&fixture);
    buffer_ring_free(NULL);
}

static void test_threads_on_demand(void)
{
    unsigned before = test_count_threads();
    struct fixture fixture;

    set_up(&fixture, TASKS, TASKS);
    g_assert_cmpuint(test_count_threads(), ==, before + 1);
    for (unsigned i = 0; i < 3; i++) {
        submit(&fixture, i);
    }
    g_assert_cmpuint(test_count_threads(), ==, before + 3);
    for (unsigned i = 0; i < 3; i++) {
        release(&fixture, i);
    }
    buffer_ring_flush(fixture.ring);
    tear_down(&fixture);
}

static void test_bad_arguments(void)
{
    const struct {
        unsigned buffers;
        size_t buffer_size;
        unsigned in_flight;
    } bad[] = {
        {0, 4096, 1}, {1, 0, 1}, {4, 4096, 0}, {4, 4096, 5}, {2, SIZE_MAX, 1},
    };

    for (unsigned i = 0; i < G_N_ELEMENTS(bad); i++) {
        g_autoptr(GError) error = NULL;

        g_assert_null(buffer_ring_new(bad[i].buffers, bad[i].buffer_size, bad[i].in_flight,
                                      gated_task, NULL, &error));
        g_assert_nonnull(error);
    }
}

/* A stream through the ring, its limit changing all the time, comes out as it went in. */
static int square(struct buffer_ring_slot *slot, void *data)
{
    *(uint64_t *)slot->buffer = slot->offset * slot->offset;
    return 0;
}

static void test_stream(void)
{
    AUTO(buffer_ring) ring = buffer_ring_new(5, 4096, 2, square, NULL, NULL);
    struct buffer_ring_slot *slot;
    uint64_t taken = 0;

    for (uint64_t submitted = 0; taken < 20000;) {
        while (submitted < 20000 && (slot = buffer_ring_get(ring))) {
            slot->offset = submitted++;
            buffer_ring_submit(ring, slot);
        }
        slot = buffer_ring_take(ring);
        g_assert_cmpuint(slot->offset, ==, taken);
        g_assert_cmpuint(*(uint64_t *)slot->buffer, ==, taken * taken);
        buffer_ring_release(ring, slot);
        buffer_ring_set_in_flight(ring, taken++ % 5 + 1);
    }
    g_assert_cmpint(buffer_ring_flush(ring), ==, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/buffer-ring/completions-come-in-order", test_order);
    g_test_add_func("/buffer-ring/buffers-are-aligned-and-bounded", test_buffers);
    g_test_add_func("/buffer-ring/no-more-tasks-than-in-flight", test_bound);
    g_test_add_func("/buffer-ring/first-error-in-order-of-submission", test_first_error);
    g_test_add_func("/buffer-ring/no-task-runs-after-an-error", test_error_stops_tasks);
    g_test_add_func("/buffer-ring/raising-in-flight-starts-tasks", test_raise_in_flight);
    g_test_add_func("/buffer-ring/lowering-in-flight-holds-tasks", test_lower_in_flight);
    g_test_add_func("/buffer-ring/flush-of-nothing", test_flush_empty);
    g_test_add_func("/buffer-ring/free-waits-for-running-tasks", test_free);
    g_test_add_func("/buffer-ring/threads-on-demand", test_threads_on_demand);
    g_test_add_func("/buffer-ring/bad-arguments", test_bad_arguments);
    g_test_add_func("/buffer-ring/stream-keeps-its-order", test_stream);
    return g_test_run();
}
