/* SPDX-License-Identifier: BSD-3-Clause */
#include "jobs/copy-pace.h"

#include <glib.h>
#include <unistd.h>

#include "block/align.h"
#include "block/clock.h"
#include "block/copy-map.h"

/* Bytes let go from start to end, tried every millisecond in pieces. */
static uint64_t let_go(struct copy_pace *pace, uint64_t speed, uint64_t piece, int64_t start_ns,
                       int64_t end_ns)
{
    uint64_t sum = 0;

    for (int64_t now_ns = start_ns; now_ns < end_ns; now_ns += NS_PER_MS) {
        while (copy_pace_may_start(pace, speed, now_ns) && sum < 10 * GIB) {
            copy_pace_account(pace, piece);
            sum += piece;
        }
    }
    return sum;
}

static void test_speed(void)
{
    static const uint64_t speeds[] = {64 * KIB, MIB, 10 * MIB, 333 * MIB};

    for (size_t i = 0; i < G_N_ELEMENTS(speeds); i++) {
        struct copy_pace pace;
        int64_t seconds = 100;

        copy_pace_init(&pace, NULL, 4);
        uint64_t piece = copy_pace_chunk(&pace, MIB, speeds[i]);
        uint64_t sum = let_go(&pace, speeds[i], piece, NS_PER_SECOND,
                              NS_PER_SECOND + seconds * NS_PER_SECOND / 10);
        g_assert_cmpuint(sum, <=, speeds[i] * 10 + speeds[i] / 10 + piece);
        g_assert_cmpuint(sum + piece, >=, speeds[i] * 10 * 9 / 10);
    }
}

static void test_no_limit(void)
{
    struct copy_pace pace;

    copy_pace_init(&pace, NULL, 4);
    for (unsigned i = 0; i < 1000; i++) {
        g_assert_true(copy_pace_may_start(&pace, 0, NS_PER_SECOND));
        copy_pace_account(&pace, GIB);
    }
    /* What was copied without a limit is not held against one that is set later. */
    g_assert_true(copy_pace_may_start(&pace, 0, NS_PER_SECOND));
    g_assert_true(copy_pace_may_start(&pace, MIB, NS_PER_SECOND + COPY_SLICE_NS));
}

/* A first piece always goes, also at one byte a second; the next waits until it is paid for. */
static void test_extremes(void)
{
    struct copy_pace pace;

    copy_pace_init(&pace, NULL, 4);
    g_assert_true(copy_pace_may_start(&pace, 1, NS_PER_SECOND));
    copy_pace_account(&pace, 2);
    g_assert_false(copy_pace_may_start(&pace, 1, 2 * NS_PER_SECOND));
    g_assert_true(copy_pace_may_start(&pace, 1, 4 * NS_PER_SECOND));
    copy_pace_init(&pace, NULL, 4);
    for (unsigned i = 0; i < 1000; i++) {
        g_assert_true(copy_pace_may_start(&pace, INT64_MAX, NS_PER_SECOND));
        copy_pace_account(&pace, MIB);
    }
}

static void test_chunk(void)
{
    struct copy_pace pace;

    copy_pace_init(&pace, NULL, 4);
    g_assert_cmpuint(copy_pace_chunk(&pace, MIB, 0), ==, MIB);
    g_assert_cmpuint(copy_pace_chunk(&pace, MIB, 1), ==, COPY_CLUSTER);
    g_assert_cmpuint(copy_pace_chunk(&pace, MIB, 5 * MIB), ==, 512 * KIB);
    g_assert_cmpuint(copy_pace_chunk(&pace, MIB, INT64_MAX), ==, MIB);
    pace.guest_is_busy = true;
    g_assert_cmpuint(copy_pace_chunk(&pace, MIB, 0), <, MIB);
    g_assert_cmpuint(copy_pace_chunk(&pace, COPY_CLUSTER, 0), ==, COPY_CLUSTER);
    g_assert_cmpuint(copy_pace_chunk(&pace, MIB, 0) % COPY_CLUSTER, ==, 0);
}

/* However pieces took: there is always a worker, and never one too many. */
static void test_workers(void)
{
    struct copy_pace pace;
    int64_t now_ns = NS_PER_SECOND;

    copy_pace_init(&pace, NULL, 7);
    for (unsigned i = 0; i < 200; i++) {
        copy_pace_measure(&pace, 0, i % 3 ? 100 * NS_PER_MS : 0,
                          (struct copy_use){.processor_ns = i % 5 ? NS_PER_MS / 10 : 0,
                                            .queued_ns = i % 7 ? NS_PER_MS : 0});
        now_ns += COPY_TICK_NS;
        copy_pace_look(&pace, now_ns);
        g_assert_cmpuint(pace.workers, >=, 1);
        g_assert_cmpuint(pace.workers, <=, 7);
    }
    g_assert_cmpuint(pace.workers, ==, 7); /* they wait for storage: all are of use */
    copy_pace_init(&pace, NULL, 1);
    copy_pace_look(&pace, now_ns);
    g_assert_cmpuint(pace.workers, ==, 1);
}

/* A pace beside a busy guest on two processors, where nothing was measured yet. */
static struct copy_pace busy_pace(void)
{
    struct copy_pace pace;

    copy_pace_init(&pace, NULL, 16);
    pace.processors = 2;
    pace.workers = 1;
    pace.guest_is_busy = true;
    pace.last_look_ns = NS_PER_SECOND;
    return pace;
}

/* Some ticks in which each worker has so much of a processor and waits the rest of the time. */
static void pass_ticks(struct copy_pace *pace, unsigned ticks, int64_t percent)
{
    for (unsigned i = 0; i < ticks; i++) {
        int64_t start_ns = pace->last_look_ns, end_ns = start_ns + COPY_TICK_NS;
        struct copy_use use = {.processor_ns = COPY_TICK_NS * percent / 100,
                               .queued_ns = COPY_TICK_NS * (100 - percent) / 100};

        for (unsigned worker = pace->workers; worker; worker--) {
            copy_pace_measure(pace, start_ns, end_ns, use);
        }
        copy_pace_look(pace, end_ns);
    }
}

static void test_no_starving(void)
{
    struct copy_pace pace = busy_pace();

    pass_ticks(&pace, 50, 25);
    g_assert_cmpuint(pace.workers, >, 1);
    g_assert_cmpuint(pace.workers, <=, 8);
    g_assert_true(copy_pace_may_start(&pace, 0, pace.last_look_ns)); /* and no rest */
    copy_pace_set_effort(&pace, COPY_EFFORT_LOW);
    pass_ticks(&pace, 50, 25);
    g_assert_cmpuint(pace.workers, ==, 1);
}

/* Eight workers on two processors have a quarter of one each, without any guest. */
static void test_workers_among_themselves(void)
{
    struct copy_pace pace = busy_pace();

    pace.workers = 8;
    for (unsigned i = 0; i < 50; i++) {
        pass_ticks(&pace, 1, pace.workers > 2 ? 200 / (int64_t)pace.workers : 100);
    }
    g_assert_cmpuint(pace.workers, ==, 1);
}

/* One piece that had to wait is no crowd. */
static void test_one_delay(void)
{
    struct copy_pace pace = busy_pace();

    pass_ticks(&pace, 5, 100);
    copy_pace_measure(
        &pace, 0, 4 * NS_PER_MS,
        (struct copy_use){.processor_ns = NS_PER_MS / 10, .queued_ns = 4 * NS_PER_MS});
    pass_ticks(&pace, 1, 100);
    g_assert_cmpuint(pace.workers, ==, 1);
}

/* A target so slow that workers do little but wait for it, and a little for a processor. */
static void test_slow_target(void)
{
    struct copy_pace pace = busy_pace();

    for (unsigned i = 0; i < 50; i++) {
        copy_pace_measure(
            &pace, pace.last_look_ns, pace.last_look_ns + COPY_TICK_NS,
            (struct copy_use){.processor_ns = NS_PER_MS / 10, .queued_ns = 2 * NS_PER_MS});
        copy_pace_look(&pace, pace.last_look_ns + COPY_TICK_NS);
        g_assert_cmpuint(pace.workers, ==, 1);
    }
}

static void test_rest(void)
{
    struct copy_pace pace = busy_pace();
    struct copy_use use = {.processor_ns = NS_PER_MS};
    int64_t now_ns = NS_PER_SECOND + NS_PER_MS;

    copy_pace_measure(&pace, NS_PER_SECOND, now_ns, use);
    g_assert_false(copy_pace_may_start(&pace, 0, now_ns));
    g_assert_true(copy_pace_may_start(&pace, 0, now_ns + 10 * NS_PER_MS));
    copy_pace_set_effort(&pace, COPY_EFFORT_HIGH);
    copy_pace_measure(&pace, NS_PER_SECOND, now_ns, use);
    g_assert_true(copy_pace_may_start(&pace, 0, now_ns));
    copy_pace_init(&pace, NULL, 4); /* no guest */
    copy_pace_measure(&pace, NS_PER_SECOND, now_ns, use);
    g_assert_true(copy_pace_may_start(&pace, 0, now_ns));
}

static void test_use(void)
{
    int account = copy_pace_open_account();
    struct copy_use before = copy_pace_use(account), use;

    do {
        use = copy_pace_use(account);
    } while (use.processor_ns == before.processor_ns);
    g_assert_cmpint(use.processor_ns, >, before.processor_ns);
    g_assert_cmpint(use.queued_ns, >=, before.queued_ns);
    if (account >= 0) {
        close(account);
    }
    g_assert_cmpint(copy_pace_use(-1).processor_ns, >, 0); /* without /proc */
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/copy-pace/the-rate-is-kept", test_speed);
    g_test_add_func("/copy-pace/no-limit-is-none", test_no_limit);
    g_test_add_func("/copy-pace/the-smallest-and-the-largest-rate", test_extremes);
    g_test_add_func("/copy-pace/pieces-fit-the-rate-and-the-guest", test_chunk);
    g_test_add_func("/copy-pace/workers-stay-in-bounds", test_workers);
    g_test_add_func("/copy-pace/a-guest-at-full-speed-does-not-starve-the-job", test_no_starving);
    g_test_add_func("/copy-pace/workers-are-no-guest-to-each-other", test_workers_among_themselves);
    g_test_add_func("/copy-pace/one-piece-that-waited-is-no-crowd", test_one_delay);
    g_test_add_func("/copy-pace/who-waits-for-storage-is-not-crowded", test_slow_target);
    g_test_add_func("/copy-pace/a-worker-rests-beside-a-guest-that-leaves-room", test_rest);
    g_test_add_func("/copy-pace/the-use-of-a-thread-grows", test_use);
    return g_test_run();
}
