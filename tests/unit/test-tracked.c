/* SPDX-License-Identifier: BSD-3-Clause */
#include <glib.h>
#include <sched.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/tracked.h"

struct fixture {
    struct tracked_requests requests;
    _Atomic unsigned entered; /* how many actors are in, in order of entry */
};

/* A request on a thread of its own, which stays in its range until it is released. */
struct actor {
    struct fixture *fixture;
    uint64_t offset;
    uint64_t bytes;
    bool serialising;
    unsigned place; /* 1 for the first that entered; valid once in */
    _Atomic bool in;
    _Atomic bool released;
    pthread_t thread;
};

static void set_up(struct fixture *fixture, gconstpointer data)
{
    tracked_requests_init(&fixture->requests);
}

static void tear_down(struct fixture *fixture, gconstpointer data)
{
    tracked_requests_destroy(&fixture->requests);
}

static void *run_actor(void *data)
{
    struct actor *actor = data;
    struct tracked_request request;

    tracked_request_begin(&actor->fixture->requests, &request, actor->offset, actor->bytes,
                          actor->serialising);
    actor->place = atomic_fetch_add(&actor->fixture->entered, 1) + 1;
    atomic_store(&actor->in, true);
    while (!atomic_load(&actor->released)) {
        sched_yield();
    }
    tracked_request_end(&actor->fixture->requests, &request);
    return NULL;
}

static void start(struct actor *actor, struct fixture *fixture, uint64_t offset, uint64_t bytes,
                  bool serialising)
{
    *actor = (struct actor){
        .fixture = fixture,
        .offset = offset,
        .bytes = bytes,
        .serialising = serialising,
    };
    g_assert_cmpint(pthread_create(&actor->thread, NULL, run_actor, actor), ==, 0);
}

static void wait_until_in(struct actor *actor)
{
    while (!atomic_load(&actor->in)) {
        sched_yield();
    }
}

static unsigned queued(struct fixture *fixture)
{
    struct tracked_request *request;
    unsigned count = 0;

    SCOPE_LOCK(&fixture->requests.lock);
    TAILQ_FOREACH (request, &fixture->requests.queue, entry) {
        count++;
    }
    return count;
}

/* Once a request is seen in the queue with the lock free, it runs or it waits. */
static void wait_until_queued(struct fixture *fixture, unsigned count)
{
    while (queued(fixture) != count) {
        sched_yield();
    }
}

static void finish(struct actor *actor)
{
    wait_until_in(actor);
    atomic_store(&actor->released, true);
    pthread_join(actor->thread, NULL);
}

static void test_ordinary_side_by_side(struct fixture *fixture, gconstpointer data)
{
    struct tracked_request a, b;

    tracked_request_begin(&fixture->requests, &a, 0, 4 * KIB, false);
    tracked_request_begin(&fixture->requests, &b, 2 * KIB, 4 * KIB, false);
    g_assert_nonnull(a.slot);
    g_assert_nonnull(b.slot);
    g_assert_true(a.slot != b.slot);
    tracked_request_end(&fixture->requests, &a);
    tracked_request_end(&fixture->requests, &b);
}

static void test_serialising_waits(struct fixture *fixture, gconstpointer data)
{
    struct tracked_request ordinary;
    struct actor serialising;

    tracked_request_begin(&fixture->requests, &ordinary, 4 * KIB, 4 * KIB, false);
    start(&serialising, fixture, 8 * KIB - 1, 1, true);
    wait_until_queued(fixture, 1);
    g_assert_false(atomic_load(&serialising.in));
    tracked_request_end(&fixture->requests, &ordinary);
    finish(&serialising);
}

static void test_neighbours_do_not_wait(struct fixture *fixture, gconstpointer data)
{
    struct tracked_request before, after, serialising, later;

    tracked_request_begin(&fixture->requests, &before, 0, 4 * KIB, false);
    tracked_request_begin(&fixture->requests, &after, 8 * KIB, UINT64_MAX - 8 * KIB, false);
    tracked_request_begin(&fixture->requests, &serialising, 4 * KIB, 4 * KIB, true);
    tracked_request_begin(&fixture->requests, &later, 8 * KIB, 1, false);
    tracked_request_end(&fixture->requests, &serialising);
    tracked_request_end(&fixture->requests, &later);
    tracked_request_end(&fixture->requests, &before);
    tracked_request_end(&fixture->requests, &after);
}

static void test_ordinary_is_kept_out(struct fixture *fixture, gconstpointer data)
{
    struct tracked_request serialising;
    struct actor ordinary;

    tracked_request_begin(&fixture->requests, &serialising, 4 * KIB, 4 * KIB, true);
    start(&ordinary, fixture, 0, 4 * KIB + 1, false);
    wait_until_queued(fixture, 2);
    g_assert_false(atomic_load(&ordinary.in));
    tracked_request_end(&fixture->requests, &serialising);
    finish(&ordinary);
}

/* Ordinary requests that come after a waiting serialising one must not pass it for ever. */
static void test_later_do_not_pass(struct fixture *fixture, gconstpointer data)
{
    struct tracked_request first;
    struct actor serialising, later;

    tracked_request_begin(&fixture->requests, &first, 0, 4 * KIB, false);
    start(&serialising, fixture, 0, 8 * KIB, true);
    wait_until_queued(fixture, 1);
    start(&later, fixture, 4 * KIB, 4 * KIB, false);
    wait_until_queued(fixture, 2);
    g_assert_false(atomic_load(&later.in));
    tracked_request_end(&fixture->requests, &first);
    wait_until_in(&serialising);
    g_assert_false(atomic_load(&later.in));
    finish(&serialising);
    finish(&later);
    g_assert_cmpuint(serialising.place, <, later.place);
}

static void test_order_of_arrival(struct fixture *fixture, gconstpointer data)
{
    /* An ordinary one in the middle keeps its place as well. */
    static const bool serialising[] = {true, true, false, true, true};
    struct tracked_request first;
    struct actor actors[G_N_ELEMENTS(serialising)];

    tracked_request_begin(&fixture->requests, &first, 0, 64 * KIB, true);
    for (unsigned i = 0; i < G_N_ELEMENTS(actors); i++) {
        start(&actors[i], fixture, i * KIB, 32 * KIB, serialising[i]);
        wait_until_queued(fixture, i + 2);
    }
    tracked_request_end(&fixture->requests, &first);
    for (unsigned i = 0; i < G_N_ELEMENTS(actors); i++) {
        finish(&actors[i]);
        g_assert_cmpuint(actors[i].place, ==, i + 1);
    }
}

/* Ordinary requests beyond the slots count just as well. */
static void test_overflow(struct fixture *fixture, gconstpointer data)
{
    enum { COUNT = 2 * TRACKED_SLOTS };
    struct tracked_request ordinary[COUNT];
    struct actor serialising;

    for (unsigned i = 0; i < COUNT; i++) {
        tracked_request_begin(&fixture->requests, &ordinary[i], i * KIB, KIB, false);
    }
    g_assert_cmpuint(queued(fixture), ==, COUNT - TRACKED_SLOTS);
    start(&serialising, fixture, 0, COUNT * KIB, true);
    wait_until_queued(fixture, COUNT - TRACKED_SLOTS + 1);
    for (unsigned i = 0; i < COUNT; i++) {
        g_assert_false(atomic_load(&serialising.in));
        tracked_request_end(&fixture->requests, &ordinary[i]);
    }
    finish(&serialising);
}

static void test_fast_again(struct fixture *fixture, gconstpointer data)
{
    struct tracked_request request;

    tracked_request_begin(&fixture->requests, &request, 0, KIB, true);
    tracked_request_end(&fixture->requests, &request);
    tracked_request_begin(&fixture->requests, &request, 0, KIB, false);
    g_assert_nonnull(request.slot);
    tracked_request_end(&fixture->requests, &request);
}

static void add(const char *path, void (*test)(struct fixture *, gconstpointer))
{
    g_test_add(path, struct fixture, NULL, set_up, test, tear_down);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    add("/tracked/ordinary-requests-run-side-by-side", test_ordinary_side_by_side);
    add("/tracked/a-serialising-request-waits-for-an-overlap", test_serialising_waits);
    add("/tracked/neighbours-do-not-wait", test_neighbours_do_not_wait);
    add("/tracked/an-ordinary-request-is-kept-out", test_ordinary_is_kept_out);
    add("/tracked/a-waiting-serialising-request-is-not-passed", test_later_do_not_pass);
    add("/tracked/overlapping-requests-enter-in-order-of-arrival", test_order_of_arrival);
    add("/tracked/requests-beyond-the-slots-are-waited-for", test_overflow);
    add("/tracked/the-fast-path-returns", test_fast_again);
    return g_test_run();
}
