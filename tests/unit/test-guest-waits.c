/* SPDX-License-Identifier: BSD-3-Clause */
/* What guests wait for a job: the histogram, and whose doing a wait is. */
#include "block/guest-waits.h"

#include <glib.h>
#include <pthread.h>
#include <stdatomic.h>

#include "block/clock.h"
#include "block/device.h"
#include "block/drain.h"
#include "block/tracked.h"
#include "tests/lib/disk.h"
#include "tests/lib/memory-driver.h"

static struct guest_waits_report report_of(struct guest_waits *waits)
{
    struct guest_waits_report report;

    guest_waits_read(waits, &report);
    return report;
}

/* ---- The histogram --------------------------------------------------------------------------- */

static void test_none(void)
{
    AUTO(guest_waits) waits = guest_waits_new();
    struct guest_waits_report report = report_of(waits);

    g_assert_cmpuint(report.count, ==, 0);
    g_assert_cmpuint(report.longest_ns, ==, 0);
    g_assert_cmpuint(report.p99_ns, ==, 0);
}

static void test_longest(void)
{
    AUTO(guest_waits) waits = guest_waits_new();

    guest_waits_record(waits, 5 * NS_PER_MS);
    guest_waits_record(waits, 3 * NS_PER_SECOND + 1);
    guest_waits_record(waits, 7);
    g_assert_cmpuint(report_of(waits).longest_ns, ==, 3 * NS_PER_SECOND + 1);
    g_assert_cmpuint(report_of(waits).count, ==, 3);
    g_assert_cmpuint(report_of(waits).p99_ns, ==, 3 * NS_PER_SECOND + 1); /* never above it */
}

static void test_p99(void)
{
    AUTO(guest_waits) waits = guest_waits_new();

    for (unsigned i = 0; i < 990; i++) {
        guest_waits_record(waits, NS_PER_MS);
    }
    for (unsigned i = 0; i < 10; i++) {
        guest_waits_record(waits, NS_PER_SECOND);
    }
    g_assert_cmpuint(report_of(waits).p99_ns, >=, NS_PER_MS);
    g_assert_cmpuint(report_of(waits).p99_ns, <=, NS_PER_MS * 5 / 4);
    guest_waits_record(waits, NS_PER_SECOND); /* one more of a hundred */
    g_assert_cmpuint(report_of(waits).p99_ns, ==, NS_PER_SECOND);
}

static void test_longer(void)
{
    AUTO(guest_waits) waits = guest_waits_new();

    g_assert_cmpuint(guest_waits_longer_than(waits, 0), ==, 0);
    guest_waits_record(waits, 5 * NS_PER_MS);
    guest_waits_record(waits, 20 * NS_PER_MS);
    guest_waits_record(waits, 30 * NS_PER_MS);
    g_assert_cmpuint(guest_waits_longer_than(waits, 20 * NS_PER_MS), ==, 1);
    g_assert_cmpuint(guest_waits_longer_than(waits, 10 * NS_PER_MS), ==, 2);
    g_assert_cmpuint(guest_waits_longer_than(waits, UINT64_MAX), ==, 0);
}

#define THREADS 8
#define TIMES   20000

static void *record_many(void *data)
{
    for (int64_t i = 1; i <= TIMES; i++) {
        guest_waits_record(data, i * 1000);
    }
    return NULL;
}

static void test_threads(void)
{
    AUTO(guest_waits) one = guest_waits_new();
    AUTO(guest_waits) other = guest_waits_new();
    struct guest_waits *members[] = {one, other};
    AUTO(guest_waits) joint = guest_waits_new_joint(members, 2);
    pthread_t threads[THREADS];

    for (unsigned i = 0; i < THREADS; i++) {
        g_assert_cmpint(pthread_create(&threads[i], NULL, record_many, i % 2 ? joint : one), ==, 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    g_assert_cmpuint(report_of(one).count, ==, THREADS * TIMES);
    g_assert_cmpuint(report_of(other).count, ==, THREADS / 2 * TIMES);
    g_assert_cmpuint(report_of(other).longest_ns, ==, TIMES * 1000);
}

/* ---- Whose doing ------------------------------------------------------------------------------
 */

static void test_scope(void)
{
    AUTO(guest_waits) outer = guest_waits_new();
    AUTO(guest_waits) inner = guest_waits_new();
    struct guest_wait wait = {0};

    g_assert_null(guest_waits_of_thread());
    {
        GUEST_WAITS_SCOPE(outer);
        g_assert_true(guest_waits_of_thread() == outer);
        {
            GUEST_WAITS_SCOPE(inner);
            g_assert_true(guest_waits_of_thread() == inner);
        }
        g_assert_true(guest_waits_of_thread() == outer);
        guest_wait_for(&wait, inner); /* a job that waits is no guest */
        guest_wait_end(&wait);
    }
    g_assert_null(guest_waits_of_thread());
    g_assert_cmpuint(report_of(inner).count, ==, 0);
}

/* The causes of one wait may follow each other; what is waited for nobody is nobody's. */
static void test_change_of_cause(void)
{
    AUTO(guest_waits) first = guest_waits_new();
    AUTO(guest_waits) second = guest_waits_new();
    struct guest_wait wait = {0};

    guest_wait_for(&wait, NULL);
    guest_wait_for(&wait, first);
    guest_wait_for(&wait, first);
    g_assert_cmpuint(report_of(first).count, ==, 0); /* it still waits */
    guest_wait_for(&wait, second);
    g_assert_cmpuint(report_of(first).count, ==, 1);
    guest_wait_for(&wait, NULL);
    guest_wait_end(&wait);
    g_assert_cmpuint(report_of(first).count, ==, 1);
    g_assert_cmpuint(report_of(second).count, ==, 1);
}

struct guest {
    struct block_device *device;
    struct tracked_requests *tracked;
    _Atomic bool has_begun;
    pthread_t thread;
};

static void *write_device(void *data)
{
    struct guest *guest = data;

    atomic_store(&guest->has_begun, true);
    g_assert_cmpint(block_device_pwrite(guest->device, "x", 0, 1, 0), ==, 0);
    return NULL;
}

static void *enter_range(void *data)
{
    struct guest *guest = data;
    struct tracked_request request;

    atomic_store(&guest->has_begun, true);
    tracked_request_begin(guest->tracked, &request, 0, 4096, false);
    tracked_request_end(guest->tracked, &request);
    return NULL;
}

/*
 * Time for a guest that was started to come to where it is held. It may be late, and then does not
 * wait: so tests that want it to try again until it did.
 */
#define HELD_US 1000

static void start_guest(struct guest *guest, void *(*function)(void *))
{
    g_assert_cmpint(pthread_create(&guest->thread, NULL, function, guest), ==, 0);
    while (!atomic_load(&guest->has_begun)) {
        g_usleep(100);
    }
    g_usleep(HELD_US);
}

static struct block_device *new_device(struct block_node *node)
{
    struct block_device *device = block_device_new("vda", node, NULL);

    g_assert_nonnull(device);
    return device;
}

static void hold_by_drain(struct block_node *node, struct block_device *device,
                          struct guest_waits *waits)
{
    struct guest guest = {.device = device};
    GUEST_WAITS_SCOPE(waits);
    struct block_drain *drain = block_drain_begin(&node, 1, BLOCK_PERM_WRITE);

    start_guest(&guest, write_device);
    block_drain_end(drain);
    pthread_join(guest.thread, NULL);
}

/* A guest's request that finds the gate shut waits for the job that drains, and for no other. */
static void test_drains(void)
{
    AUTO(block_node) node = test_open("driver=memory");
    AUTO(guest_waits) first = guest_waits_new();
    AUTO(guest_waits) second = guest_waits_new();
    struct block_device *device = new_device(node);

    do {
        hold_by_drain(node, device, first);
    } while (report_of(first).count == 0);
    g_assert_cmpuint(report_of(first).count, ==, 1);
    g_assert_cmpuint(report_of(first).longest_ns, >, 0);
    hold_by_drain(node, device, NULL); /* nobody's */
    do {
        hold_by_drain(node, device, second);
    } while (report_of(second).count == 0);
    g_assert_cmpuint(report_of(first).count, ==, 1);
    g_assert_cmpuint(report_of(second).count, ==, 1);
    g_assert_cmpint(block_device_pwrite(device, "y", 0, 1, 0), ==, 0); /* which does not wait */
    g_assert_cmpuint(report_of(second).count, ==, 1);
    block_device_remove(device);
}

static void test_drain_of_several(void)
{
    AUTO(block_node) node = test_open("driver=memory");
    AUTO(guest_waits) first = guest_waits_new();
    AUTO(guest_waits) second = guest_waits_new();
    struct guest_waits *members[] = {first, second};
    AUTO(guest_waits) joint = guest_waits_new_joint(members, 2);
    struct block_device *device = new_device(node);

    do {
        hold_by_drain(node, device, joint);
    } while (report_of(joint).count == 0);
    g_assert_cmpuint(report_of(first).count, ==, 1);
    g_assert_cmpuint(report_of(second).count, ==, 1);
    block_device_remove(device);
}

static void hold_by_range(struct guest_waits *waits)
{
    struct tracked_requests tracked;
    struct tracked_request request;
    struct guest guest = {.tracked = &tracked};

    tracked_requests_init(&tracked);
    struct guest_waits *before = guest_waits_enter(waits);
    tracked_request_begin(&tracked, &request, 0, 4096, true);
    guest_waits_leave(before);
    start_guest(&guest, enter_range);
    tracked_request_end(&tracked, &request);
    pthread_join(guest.thread, NULL);
    tracked_requests_destroy(&tracked);
}

static void test_ranges(void)
{
    AUTO(guest_waits) waits = guest_waits_new();

    do {
        hold_by_range(waits);
    } while (report_of(waits).count == 0);
    g_assert_cmpuint(report_of(waits).count, ==, 1);
    hold_by_range(NULL); /* another guest's */
    g_assert_cmpuint(report_of(waits).count, ==, 1);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    memory_drivers_register();
#define ADD(name, function) g_test_add_func("/guest-waits/" name, function)
    ADD("none-is-nothing", test_none);
    ADD("the-longest-is-exact", test_longest);
    ADD("the-p99-is-a-quarter-off-at-most", test_p99);
    ADD("those-that-are-longer-are-counted", test_longer);
    ADD("no-wait-of-any-thread-is-lost", test_threads);
    ADD("a-thread-works-for-one-at-a-time", test_scope);
    ADD("causes-follow-each-other", test_change_of_cause);
    ADD("a-drain-is-the-doing-of-who-drains", test_drains);
    ADD("a-drain-for-several-is-the-doing-of-all", test_drain_of_several);
    ADD("a-range-is-the-doing-of-who-holds-it", test_ranges);
    return g_test_run();
}
