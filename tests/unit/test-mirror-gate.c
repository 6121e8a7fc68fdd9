/* SPDX-License-Identifier: BSD-3-Clause */
/* The gate that keeps guests from outrunning a mirror, alone. */
#include "jobs/mirror-gate.h"

#include <glib.h>

#include "block/align.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "tests/lib/random.h"

#define GRANULE  UINT64_C(4096)
#define GRANULES UINT64_C(4096)
#define LENGTH   (GRANULES * GRANULE - 512)
#define WRITERS  8

struct fixture {
    struct dirty_bitmap *bitmap;
    struct mirror_gate gate;
    _Atomic bool over;
    _Atomic uint64_t writes;
};

static struct fixture *fixture_new(void)
{
    struct fixture *fixture = g_new0(struct fixture, 1);

    fixture->bitmap = dirty_bitmap_new(NULL, LENGTH, GRANULE, NULL);
    mirror_gate_init(&fixture->gate, fixture->bitmap);
    return fixture;
}

static void fixture_free(struct fixture *fixture)
{
    mirror_gate_destroy(&fixture->gate);
    dirty_bitmap_free(fixture->bitmap);
    g_free(fixture);
}

static void pass(struct fixture *fixture, uint64_t offset, uint64_t bytes)
{
    struct write_notifier *notifier = &fixture->gate.notifier;

    g_assert_cmpint(notifier->before_write(notifier, BLOCK_OPERATION_WRITE, offset, bytes), ==, 0);
}

static int64_t credit(struct fixture *fixture)
{
    SCOPE_LOCK(&fixture->gate.lock);

    return fixture->gate.credit;
}

/* An open gate costs nothing; a shut one only what is clean, counted in whole granules. */
static void test_price(void)
{
    struct fixture *fixture = fixture_new();

    pass(fixture, 0, LENGTH);
    g_assert_cmpint(credit(fixture), ==, 0);
    mirror_gate_shut(&fixture->gate, 0);
    mirror_gate_earn(&fixture->gate, 64 * GRANULE);
    g_assert_cmpint(credit(fixture), ==, 32 * GRANULE);
    dirty_bitmap_set(fixture->bitmap, GRANULE, GRANULE);
    pass(fixture, GRANULE + 1, GRANULE - 1);
    g_assert_cmpint(credit(fixture), ==, 32 * GRANULE);
    pass(fixture, GRANULE - 1, GRANULE + 2); /* the granules beside it */
    g_assert_cmpint(credit(fixture), ==, 30 * GRANULE);
    pass(fixture, LENGTH - 1, 1); /* a short granule */
    g_assert_cmpint(credit(fixture), ==, 29 * (int64_t)GRANULE + 512);
    mirror_gate_open(&fixture->gate);
    pass(fixture, 0, LENGTH);
    g_assert_cmpint(credit(fixture), ==, 29 * (int64_t)GRANULE + 512);
    fixture_free(fixture);
}

/* Without credit a write waits, but not for ever, whether anything is copied or not. */
static void test_patience(void)
{
    struct fixture *fixture = fixture_new();

    mirror_gate_shut(&fixture->gate, 0);
    for (unsigned i = 0; i < 5; i++) {
        pass(fixture, i * GRANULE, GRANULE);
    }
    g_assert_cmpint(credit(fixture), ==, -5 * (int64_t)GRANULE);
    mirror_gate_shut(&fixture->gate, clock_now_ns() + NS_PER_SECOND);
    pass(fixture, 0, GRANULE);
    pass(fixture, 0, LENGTH);
    fixture_free(fixture);
}

/* Those who wait are counted, and those who pass are not. */
static void test_waits(void)
{
    struct fixture *fixture = fixture_new();
    AUTO(guest_waits) waits = guest_waits_new();
    struct guest_waits_report report;

    fixture->gate.waits = waits;
    pass(fixture, 0, GRANULE);
    mirror_gate_shut(&fixture->gate, 0);
    mirror_gate_earn(&fixture->gate, 4 * GRANULE);
    pass(fixture, 0, GRANULE);
    guest_waits_read(waits, &report);
    g_assert_cmpuint(report.count, ==, 0);
    mirror_gate_shut(&fixture->gate, 0);
    pass(fixture, 0, GRANULE);
    guest_waits_read(waits, &report);
    g_assert_cmpuint(report.count, ==, 1);
    g_assert_cmpuint(report.longest_ns, >=, MIRROR_GATE_PATIENCE_NS);
    fixture_free(fixture);
}

static void *write_once(void *data)
{
    struct fixture *fixture = data;

    pass(fixture, 0, GRANULE);
    return NULL;
}

/* Those who wait go on when there is credit, and when the gate is opened. */
static void test_release(void)
{
    for (unsigned opened = 0; opened < 2; opened++) {
        struct fixture *fixture = fixture_new();
        pthread_t threads[WRITERS];

        mirror_gate_shut(&fixture->gate, INT64_MAX);
        for (unsigned i = 0; i < 10; i++) {
            mirror_gate_insist(&fixture->gate); /* longer than this test may take */
        }
        for (unsigned i = 0; i < WRITERS; i++) {
            pthread_create(&threads[i], NULL, write_once, fixture);
        }
        if (opened) {
            mirror_gate_open(&fixture->gate);
        } else {
            mirror_gate_earn(&fixture->gate, 2 * WRITERS * GRANULE);
        }
        for (unsigned i = 0; i < WRITERS; i++) {
            pthread_join(threads[i], NULL);
        }
        if (!opened) {
            g_assert_cmpint(credit(fixture), ==, 0);
        }
        fixture_free(fixture);
    }
}

/* ---- Convergence ----------------------------------------------------------------------------- */

static void *write_much(void *data)
{
    struct fixture *fixture = data;
    struct test_random random =
        test_random_new(test_seed() + atomic_fetch_add(&fixture->writes, 1));

    while (!atomic_load(&fixture->over)) {
        uint64_t offset = test_random_below(&random, GRANULES - 1) * GRANULE;

        pass(fixture, offset, GRANULE);
        dirty_bitmap_set(fixture->bitmap, offset, GRANULE);
        atomic_fetch_add(&fixture->writes, 1);
    }
    return NULL;
}

/* Copies two granules in the time in which the writers, if free, would dirty hundreds. */
static void copy_some(struct fixture *fixture)
{
    uint64_t offset, bytes;

    if (dirty_bitmap_next_range(fixture->bitmap, 0, LENGTH, 2 * GRANULE, &offset, &bytes)) {
        dirty_bitmap_reset(fixture->bitmap, offset, bytes);
        g_usleep(100);
        mirror_gate_earn(&fixture->gate, bytes);
    }
}

/* What is dirty shrinks to a hundredth although writers would dirty it all again at once. */
static void test_convergence(void)
{
    struct fixture *fixture = fixture_new();
    pthread_t threads[WRITERS];

    dirty_bitmap_set(fixture->bitmap, 0, LENGTH);
    mirror_gate_shut(&fixture->gate, 0);
    for (unsigned i = 0; i < WRITERS; i++) {
        pthread_create(&threads[i], NULL, write_much, fixture);
    }
    while (dirty_bitmap_count(fixture->bitmap) > LENGTH / 100) {
        copy_some(fixture);
    }
    atomic_store(&fixture->over, true);
    mirror_gate_open(&fixture->gate);
    for (unsigned i = 0; i < WRITERS; i++) {
        pthread_join(threads[i], NULL);
    }
    g_test_message("%lu writes", (unsigned long)atomic_load(&fixture->writes));
    fixture_free(fixture);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/mirror-gate/only-what-gets-dirty-has-a-price", test_price);
    g_test_add_func("/mirror-gate/nobody-waits-for-ever", test_patience);
    g_test_add_func("/mirror-gate/those-who-wait-are-counted", test_waits);
    g_test_add_func("/mirror-gate/those-who-wait-are-let-go", test_release);
    g_test_add_func("/mirror-gate/guests-do-not-outrun-the-copy", test_convergence);
    return g_test_run();
}
