/* SPDX-License-Identifier: BSD-3-Clause */
/* The controller that keeps a guest's latency, fed with figures; its clock is the test's. */
#include "jobs/guest-latency.h"

#include <glib.h>

#include "block/align.h"

#define WORKERS 16
#define TARGET  ((uint64_t)(10 * NS_PER_MS))
#define FAST    ((uint64_t)NS_PER_MS)
#define SLOW    ((uint64_t)(20 * NS_PER_MS))

struct world {
    struct guest_latency latency;
    struct guest_figures figures;
    int64_t now_ns;
};

static struct world *world_new(uint64_t target_ns)
{
    struct world *world = g_new0(struct world, 1);

    guest_latency_init(&world->latency, WORKERS);
    guest_latency_set_target(&world->latency, target_ns);
    world->now_ns = NS_PER_SECOND;
    return world;
}

/* A slice in which so many requests end, each after so long. The job uses all it may. */
static void pass(struct world *world, unsigned requests, uint64_t latency_ns)
{
    world->figures.latencies[statistics_bucket_of(latency_ns)] += requests;
    world->now_ns += GUEST_LATENCY_SLICE_NS;
    g_assert_true(guest_latency_is_due(&world->latency, world->now_ns));
    guest_latency_feed(&world->latency, &world->figures, guest_latency_workers(&world->latency),
                       world->now_ns);
    g_assert_cmpfloat(world->latency.allowance, >=, GUEST_LATENCY_FLOOR);
    g_assert_cmpfloat(world->latency.allowance, <=, WORKERS);
}

static void pass_seconds(struct world *world, unsigned seconds, unsigned requests,
                         uint64_t latency_ns)
{
    for (unsigned i = 0; i < seconds * GUEST_LATENCY_SLICES; i++) {
        pass(world, requests, latency_ns);
    }
}

static void test_no_target(void)
{
    g_autofree struct world *world = world_new(0);

    g_assert_false(guest_latency_is_due(&world->latency, world->now_ns));
    g_assert_cmpuint(guest_latency_workers(&world->latency), ==, WORKERS);
    g_assert_cmpint(guest_latency_rest_ns(&world->latency, NS_PER_SECOND), ==, 0);
}

static void test_fast_guest(void)
{
    g_autofree struct world *world = world_new(TARGET);

    pass_seconds(world, 5, 100, FAST);
    g_assert_cmpuint(guest_latency_workers(&world->latency), ==, WORKERS);
    g_assert_cmpint(world->latency.pace, ==, GUEST_PACE_FREE);
    g_assert_cmpuint(world->latency.p99_ns, >=, FAST);
    g_assert_cmpuint(world->latency.p99_ns, <=, FAST * 5 / 4);
}

static void test_slow_guest(void)
{
    g_autofree struct world *world = world_new(TARGET);
    double before = WORKERS;

    pass_seconds(world, 1, 100, FAST);
    for (unsigned i = 0; i < 50; i++) {
        pass(world, 100, SLOW);
        g_assert_cmpfloat(world->latency.allowance, <=, before);
        before = world->latency.allowance;
    }
    g_assert_cmpfloat(before, ==, GUEST_LATENCY_FLOOR);
    g_assert_cmpint(world->latency.pace, ==, GUEST_PACE_FLOOR);
    g_assert_cmpuint(guest_latency_workers(&world->latency), ==, 1);
}

/* However long its pieces take: it always does one more. */
static void test_floor(void)
{
    g_autofree struct world *world = world_new(TARGET);

    pass_seconds(world, 60, 100, 1000 * SLOW);
    g_assert_cmpfloat(world->latency.allowance, ==, GUEST_LATENCY_FLOOR);
    g_assert_cmpint(guest_latency_rest_ns(&world->latency, NS_PER_MS), ==, 31 * NS_PER_MS);
    g_assert_cmpint(guest_latency_rest_ns(&world->latency, 100 * NS_PER_SECOND), ==,
                    GUEST_LATENCY_REST_MAX_NS);
}

/* One step shows in the requests begun after it only: it has time to. */
static void test_one_step_at_a_time(void)
{
    g_autofree struct world *world = world_new(TARGET);

    pass_seconds(world, 1, 100, FAST);
    for (unsigned i = 0; world->latency.allowance == WORKERS; i++) {
        g_assert_cmpuint(i, <, GUEST_LATENCY_SLICES);
        pass(world, 100, SLOW);
    }
    g_assert_cmpfloat(world->latency.allowance, ==, WORKERS / 2.0);
    g_assert_cmpint(world->latency.pace, ==, GUEST_PACE_HELD_BACK);
    pass(world, 100, SLOW); /* begun before */
    pass_seconds(world, 1, 100, FAST);
    g_assert_cmpfloat(world->latency.allowance, >=, WORKERS / 2.0);
}

static void test_far_too_slow(void)
{
    g_autofree struct world *world = world_new(TARGET);

    pass_seconds(world, 1, 100, FAST);
    while (world->latency.allowance == WORKERS) {
        pass(world, 100, 10 * TARGET);
    }
    g_assert_cmpfloat(world->latency.allowance, ==, WORKERS / 4.0);
}

static void test_recovery(void)
{
    g_autofree struct world *world = world_new(TARGET);
    double before;

    pass_seconds(world, 10, 100, SLOW);
    before = world->latency.allowance;
    pass_seconds(world, 2, 100, FAST);
    g_assert_cmpfloat(world->latency.allowance, >, before);
    g_assert_cmpint(world->latency.pace, ==, GUEST_PACE_RECOVERING);
    pass_seconds(world, 300, 100, FAST);
    g_assert_cmpuint(guest_latency_workers(&world->latency), ==, WORKERS);
    g_assert_cmpint(world->latency.pace, ==, GUEST_PACE_FREE);
}

/* A guest that asks for nothing is in nobody's way. */
static void test_idle_guest(void)
{
    g_autofree struct world *busy = world_new(TARGET), *idle = world_new(TARGET);

    pass_seconds(busy, 10, 100, SLOW);
    pass_seconds(idle, 10, 100, SLOW);
    pass_seconds(busy, 5, 100, FAST);
    pass_seconds(idle, 5, 0, 0);
    g_assert_cmpfloat(idle->latency.allowance, >, busy->latency.allowance);
    g_assert_cmpuint(idle->latency.p99_ns, ==, 0);
}

/* A guest whose latency follows from what the job does: two workers are what it stands. */
static void test_settles(void)
{
    g_autofree struct world *world = world_new(TARGET);
    unsigned slow = 0, all = 0;
    double sum = 0;

    for (unsigned i = 0; i < 3000; i++) {
        bool is_slow = world->latency.allowance > 2;

        pass(world, 100, is_slow ? SLOW : FAST);
        if (i >= 300) { /* it has found its way */
            slow += is_slow;
            sum += world->latency.allowance;
            all++;
        }
    }
    g_assert_cmpfloat((double)slow / all, <, 0.15);
    g_assert_cmpfloat(sum / all, >, 1);
}

/* Nothing the job does helps: it goes on at the floor, and not less. */
static void test_not_the_job(void)
{
    g_autofree struct world *world = world_new(TARGET);

    pass_seconds(world, 600, 10, SLOW);
    g_assert_cmpfloat(world->latency.allowance, ==, GUEST_LATENCY_FLOOR);
    /* And it is as fast again as any other when the guest is. */
    pass_seconds(world, 60, 100, FAST);
    g_assert_cmpuint(guest_latency_workers(&world->latency), ==, WORKERS);
}

/* Requests that hang have not ended, and so are in no histogram. */
static void test_hanging(void)
{
    g_autofree struct world *world = world_new(TARGET);

    pass_seconds(world, 1, 100, FAST);
    world->figures.is_busy = true;
    pass(world, 0, 0); /* since when, nobody knows */
    g_assert_cmpuint(guest_latency_workers(&world->latency), ==, WORKERS);
    pass_seconds(world, 2, 0, 0);
    g_assert_cmpuint(guest_latency_workers(&world->latency), <, WORKERS);
    g_assert_cmpuint(world->latency.p99_ns, >, TARGET);
}

/* Something is always under way, but it is never the same. */
static void test_busy_is_not_hanging(void)
{
    g_autofree struct world *world = world_new(TARGET);

    world->figures.is_busy = true;
    pass_seconds(world, 10, 1, FAST);
    g_assert_cmpuint(guest_latency_workers(&world->latency), ==, WORKERS);
    world->figures.is_busy = false; /* now and then */
    pass_seconds(world, 1, 0, 0);
    world->figures.is_busy = true;
    pass(world, 0, 0);
    g_assert_cmpuint(world->latency.p99_ns, ==, 0);
}

/* One of a hundred is what it is about; less is not. */
static void test_share(void)
{
    g_autofree struct world *few = world_new(TARGET), *many = world_new(TARGET);

    for (unsigned i = 0; i < 50; i++) {
        few->figures.latencies[statistics_bucket_of(SLOW)] += 1;
        pass(few, 199, FAST);
        many->figures.latencies[statistics_bucket_of(SLOW)] += 1;
        pass(many, 49, FAST);
    }
    g_assert_cmpuint(guest_latency_workers(&few->latency), ==, WORKERS);
    g_assert_cmpuint(guest_latency_workers(&many->latency), <, WORKERS);
}

static void test_other_targets(void)
{
    g_autofree struct world *world = world_new(TARGET);

    pass_seconds(world, 10, 100, SLOW);
    g_assert_cmpfloat(world->latency.allowance, ==, GUEST_LATENCY_FLOOR);
    guest_latency_set_target(&world->latency, 2 * SLOW);
    pass_seconds(world, 60, 100, SLOW);
    g_assert_cmpuint(guest_latency_workers(&world->latency), ==, WORKERS);
    guest_latency_set_target(&world->latency, TARGET);
    pass_seconds(world, 10, 100, SLOW);
    guest_latency_set_target(&world->latency, 0);
    g_assert_cmpuint(guest_latency_workers(&world->latency), ==, WORKERS);
    g_assert_cmpint(world->latency.pace, ==, GUEST_PACE_FREE);
    g_assert_cmpint(guest_latency_rest_ns(&world->latency, NS_PER_SECOND), ==, 0);
}

/* What was before the target was set is not held against the guest. */
static void test_the_past(void)
{
    g_autofree struct world *world = world_new(0);

    world->figures.latencies[statistics_bucket_of(SLOW)] = 1000000;
    guest_latency_set_target(&world->latency, TARGET);
    pass_seconds(world, 3, 100, FAST);
    g_assert_cmpuint(guest_latency_workers(&world->latency), ==, WORKERS);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define ADD(name, function) g_test_add_func("/guest-latency/" name, function)
    ADD("without-a-target-nothing-is-held-back", test_no_target);
    ADD("a-fast-guest-costs-the-job-nothing", test_fast_guest);
    ADD("a-slow-guest-has-the-job-do-less-and-less", test_slow_guest);
    ADD("the-floor-lets-the-job-end", test_floor);
    ADD("one-step-at-a-time", test_one_step_at_a_time);
    ADD("larger-steps-for-a-guest-far-too-slow", test_far_too_slow);
    ADD("when-the-guest-is-fast-again-so-is-the-job", test_recovery);
    ADD("an-idle-guest-gives-way-sooner", test_idle_guest);
    ADD("it-settles-near-what-the-guest-stands", test_settles);
    ADD("a-guest-that-is-slow-anyway-does-not-stop-the-job", test_not_the_job);
    ADD("requests-that-hang-count", test_hanging);
    ADD("a-guest-that-is-always-busy-does-not-hang", test_busy_is_not_hanging);
    ADD("it-is-one-request-of-a-hundred", test_share);
    ADD("the-target-can-be-changed", test_other_targets);
    ADD("the-past-does-not-count", test_the_past);
    return g_test_run();
}
