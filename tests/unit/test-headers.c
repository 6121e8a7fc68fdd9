/* SPDX-License-Identifier: BSD-3-Clause */
/* The small generic headers of block/. */
#include <errno.h>
#include <fcntl.h>
#include <glib.h>
#include <string.h>

#include "block/align.h"
#include "block/checked.h"
#include "block/cleanup.h"
#include "block/clock.h"
#include "block/queue.h"

/* checked.h */

static void test_sums_that_do_not_fit_are_refused(void)
{
    uint64_t result;

    g_assert_true(checked_add_u64(UINT64_MAX - 1, 1, &result));
    g_assert_cmpuint(result, ==, UINT64_MAX);
    g_assert_false(checked_add_u64(UINT64_MAX, 1, &result));
    g_assert_false(checked_add_u64(UINT64_MAX, UINT64_MAX, &result));
}

static void test_products_that_do_not_fit_are_refused(void)
{
    uint64_t result;

    g_assert_true(checked_mul_u64(UINT32_MAX, UINT32_MAX, &result));
    g_assert_cmpuint(result, ==, UINT64_C(0xfffffffe00000001));
    g_assert_true(checked_mul_u64(UINT64_MAX, 0, &result));
    g_assert_cmpuint(result, ==, 0);
    g_assert_false(checked_mul_u64(UINT64_C(1) << 32, UINT64_C(1) << 32, &result));
}

static void test_a_range_that_overflows_is_outside(void)
{
    g_assert_true(range_within(0, 0, 0));
    g_assert_true(range_within(10, 0, 10));
    g_assert_true(range_within(4, 6, 10));
    g_assert_false(range_within(4, 7, 10));
    g_assert_false(range_within(11, 0, 10));
    g_assert_false(range_within(5, UINT64_MAX, 10));
    g_assert_true(range_within(1, UINT64_MAX - 1, UINT64_MAX));
    g_assert_false(range_within(2, UINT64_MAX - 1, UINT64_MAX));
}

static void test_ranges_overlap_only_if_they_share_a_byte(void)
{
    g_assert_true(ranges_overlap(0, 10, 9, 1));
    g_assert_true(ranges_overlap(3, 1, 0, 10));
    g_assert_false(ranges_overlap(0, 10, 10, 1));
    g_assert_false(ranges_overlap(10, 1, 0, 10));
    g_assert_false(ranges_overlap(5, 0, 0, 10));
    g_assert_false(ranges_overlap(0, 10, 5, 0));
}

/* align.h */

static void test_powers_of_two_are_told(void)
{
    g_assert_false(is_power_of_2(0));
    g_assert_false(is_power_of_2(3));
    g_assert_false(is_power_of_2(UINT64_MAX));
    for (unsigned i = 0; i < 64; i++) {
        g_assert_true(is_power_of_2(UINT64_C(1) << i));
        g_assert_cmpuint(log2_of(UINT64_C(1) << i), ==, i);
    }
}

static void test_alignment_rounds_both_ways(void)
{
    g_assert_true(is_aligned(0, 4096));
    g_assert_true(is_aligned(8192, 4096));
    g_assert_false(is_aligned(8193, 4096));
    g_assert_cmpuint(align_down(8191, 4096), ==, 4096);
    g_assert_cmpuint(align_up(4097, 4096), ==, 8192);
    g_assert_cmpuint(align_up(4096, 4096), ==, 4096);
    g_assert_cmpuint(align_up(7, 1), ==, 7);
    g_assert_cmpuint(align_up(UINT64_MAX, 512), ==, 0);
}

static void test_division_rounds_up_without_overflow(void)
{
    g_assert_cmpuint(div_round_up(0, 7), ==, 0);
    g_assert_cmpuint(div_round_up(7, 7), ==, 1);
    g_assert_cmpuint(div_round_up(8, 7), ==, 2);
    g_assert_cmpuint(div_round_up(UINT64_MAX, 2), ==, UINT64_C(1) << 63);
}

static void test_minimum_evaluates_its_arguments_once(void)
{
    int a = 1, b = 2;

    g_assert_cmpint(MIN_OF(a++, b++), ==, 1);
    g_assert_cmpint(MAX_OF(a++, b++), ==, 3);
    g_assert_cmpint(a, ==, 3);
    g_assert_cmpint(b, ==, 4);
}

/* cleanup.h */

struct thing {
    int *releases;
};

static void thing_release(struct thing *thing)
{
    ++*thing->releases;
}
DEFINE_AUTO(thing, thing_release)

static bool is_locked(pthread_mutex_t *lock)
{
    if (pthread_mutex_trylock(lock) == EBUSY) {
        return true;
    }
    pthread_mutex_unlock(lock);
    return false;
}

/* Returns from within the locked scope. */
static bool return_locked(pthread_mutex_t *lock)
{
    SCOPE_LOCK(lock);

    return is_locked(lock);
}

static void test_a_scope_lock_is_released_on_every_way_out(void)
{
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

    for (int i = 0; i < 3; i++) {
        SCOPE_LOCK(&lock);

        g_assert_true(is_locked(&lock));
        if (i == 1) {
            continue;
        }
    }
    g_assert_false(is_locked(&lock));
    g_assert_true(return_locked(&lock));
    g_assert_false(is_locked(&lock));
}

static void test_two_scope_locks_can_be_nested(void)
{
    pthread_mutex_t outer = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_t inner = PTHREAD_MUTEX_INITIALIZER;

    {
        SCOPE_LOCK(&outer);
        SCOPE_LOCK(&inner);

        g_assert_true(is_locked(&outer));
        g_assert_true(is_locked(&inner));
    }
    g_assert_false(is_locked(&outer));
    g_assert_false(is_locked(&inner));
}

static void *count_under_lock(void *data)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    unsigned *count = data;

    for (unsigned i = 0; i < 1000; i++) {
        SCOPE_LOCK(&lock);

        ++*count;
    }
    return NULL;
}

static void test_a_scope_lock_excludes_other_threads(void)
{
    pthread_t threads[4];
    unsigned count = 0;

    for (unsigned i = 0; i < G_N_ELEMENTS(threads); i++) {
        pthread_create(&threads[i], NULL, count_under_lock, &count);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(threads); i++) {
        pthread_join(threads[i], NULL);
    }
    g_assert_cmpuint(count, ==, 4000);
}

static void test_an_object_is_released_unless_it_was_stolen(void)
{
    int releases = 0;
    struct thing object = {.releases = &releases};
    struct thing *kept = NULL;

    {
        AUTO(thing) released = &object;
        AUTO(thing) stolen = &object;
        AUTO(thing) none = NULL;

        g_assert_nonnull(released);
        g_assert_null(none);
        kept = STEAL(stolen);
        g_assert_null(stolen);
    }
    g_assert_cmpint(releases, ==, 1);
    g_assert_true(kept == &object);
}

static void test_memory_is_freed_unless_it_was_stolen(void)
{
    char *kept;

    {
        AUTO_FREE char *freed = malloc(16); /* the leak checker sees if not */
        AUTO_FREE char *stolen = strdup("kept");

        memset(freed, 0, 16);
        kept = STEAL(stolen);
    }
    g_assert_cmpstr(kept, ==, "kept");
    free(kept);
}

static void test_a_descriptor_is_closed_and_errno_kept(void)
{
    int closed, kept;

    {
        AUTO_CLOSE int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
        AUTO_CLOSE int stolen = open("/dev/null", O_RDONLY | O_CLOEXEC);
        AUTO_CLOSE int none = -1;

        g_assert_cmpint(none, ==, -1);
        closed = fd;
        kept = steal_fd(&stolen);
        g_assert_cmpint(stolen, ==, -1);
        errno = ENOSPC;
    }
    g_assert_cmpint(errno, ==, ENOSPC);
    g_assert_cmpint(fcntl(closed, F_GETFD), ==, -1);
    g_assert_cmpint(fcntl(kept, F_GETFD), >=, 0);
    close(kept);
}

/* clock.h */

static void test_a_wait_ends_at_its_deadline_and_not_before(void)
{
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t never = PTHREAD_COND_INITIALIZER;
    int64_t deadline_ns = clock_now_ns() + 2 * NS_PER_MS;
    SCOPE_LOCK(&lock);

    while (clock_cond_wait_until(&never, &lock, deadline_ns) != ETIMEDOUT) {
    }
    g_assert_cmpint(clock_now_ns(), >=, deadline_ns);
    g_assert_cmpint(clock_cond_wait_until(&never, &lock, 0), ==, ETIMEDOUT);
}

struct signalled {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool has_come;
};

static void *signal_once(void *data)
{
    struct signalled *signalled = data;
    SCOPE_LOCK(&signalled->lock);

    signalled->has_come = true;
    pthread_cond_signal(&signalled->changed);
    return NULL;
}

static void test_a_wait_without_deadline_ends_when_signalled(void)
{
    struct signalled signalled = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false};
    pthread_t thread;

    pthread_create(&thread, NULL, signal_once, &signalled);
    pthread_mutex_lock(&signalled.lock);
    while (!signalled.has_come) {
        g_assert_cmpint(clock_cond_wait_until(&signalled.changed, &signalled.lock, INT64_MAX), ==,
                        0);
    }
    pthread_mutex_unlock(&signalled.lock);
    pthread_join(thread, NULL);
}

/* queue.h */

struct element {
    TAILQ_ENTRY(element) entry;
};
TAILQ_HEAD(element_list, element);

static void test_the_safe_loop_may_remove_and_free_what_it_visits(void)
{
    struct element_list list = TAILQ_HEAD_INITIALIZER(list);
    struct element *element, *next;
    unsigned visited = 0;

    for (unsigned i = 0; i < 5; i++) {
        element = g_new0(struct element, 1);
        TAILQ_INSERT_TAIL(&list, element, entry);
    }
    TAILQ_FOREACH_SAFE (element, &list, entry, next) {
        TAILQ_REMOVE(&list, element, entry);
        g_free(element);
        visited++;
    }
    g_assert_cmpuint(visited, ==, 5);
    g_assert_true(TAILQ_EMPTY(&list));
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/checked/sums-that-do-not-fit-are-refused",
                    test_sums_that_do_not_fit_are_refused);
    g_test_add_func("/checked/products-that-do-not-fit-are-refused",
                    test_products_that_do_not_fit_are_refused);
    g_test_add_func("/checked/a-range-that-overflows-is-outside",
                    test_a_range_that_overflows_is_outside);
    g_test_add_func("/checked/ranges-overlap-only-if-they-share-a-byte",
                    test_ranges_overlap_only_if_they_share_a_byte);
    g_test_add_func("/align/powers-of-two-are-told", test_powers_of_two_are_told);
    g_test_add_func("/align/alignment-rounds-both-ways", test_alignment_rounds_both_ways);
    g_test_add_func("/align/division-rounds-up-without-overflow",
                    test_division_rounds_up_without_overflow);
    g_test_add_func("/align/minimum-evaluates-its-arguments-once",
                    test_minimum_evaluates_its_arguments_once);
    g_test_add_func("/cleanup/a-scope-lock-is-released-on-every-way-out",
                    test_a_scope_lock_is_released_on_every_way_out);
    g_test_add_func("/cleanup/two-scope-locks-can-be-nested", test_two_scope_locks_can_be_nested);
    g_test_add_func("/cleanup/a-scope-lock-excludes-other-threads",
                    test_a_scope_lock_excludes_other_threads);
    g_test_add_func("/cleanup/an-object-is-released-unless-it-was-stolen",
                    test_an_object_is_released_unless_it_was_stolen);
    g_test_add_func("/cleanup/memory-is-freed-unless-it-was-stolen",
                    test_memory_is_freed_unless_it_was_stolen);
    g_test_add_func("/cleanup/a-descriptor-is-closed-and-errno-kept",
                    test_a_descriptor_is_closed_and_errno_kept);
    g_test_add_func("/clock/a-wait-ends-at-its-deadline-and-not-before",
                    test_a_wait_ends_at_its_deadline_and_not_before);
    g_test_add_func("/clock/a-wait-without-deadline-ends-when-signalled",
                    test_a_wait_without_deadline_ends_when_signalled);
    g_test_add_func("/queue/the-safe-loop-may-remove-and-free-what-it-visits",
                    test_the_safe_loop_may_remove_and_free_what_it_visits);
    return g_test_run();
}
