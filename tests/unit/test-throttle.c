/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The buckets are tested with times of our own. For the order in which requests are admitted we
 * need those times too, and the queue inside a throttle, so its source is included here.
 */
#include "block/throttle.c"

#include <glib.h>
#include <sched.h>

#define NOW (1000 * NS_PER_SECOND)

/* One bucket. */

/* Pour single units until the bucket is over its brim; returns how many it took. */
static unsigned pour_all(struct leaky_bucket *bucket, int64_t now_ns)
{
    unsigned poured = 0;

    while (leaky_bucket_wait_ns(bucket, now_ns) == 0) {
        leaky_bucket_pour(bucket, 1, now_ns);
        poured++;
    }
    return poured;
}

/* Pour units as soon as the bucket lets them through; returns how many from start to end. */
static unsigned pour_until(struct leaky_bucket *bucket, double units, int64_t start_ns,
                           int64_t end_ns)
{
    unsigned poured = 0;

    for (int64_t now_ns = start_ns;;) {
        int64_t wait_ns = leaky_bucket_wait_ns(bucket, now_ns);

        now_ns += wait_ns;
        if (now_ns >= end_ns) {
            return poured;
        }
        if (wait_ns == 0) {
            leaky_bucket_pour(bucket, units, now_ns);
            poured++;
        }
    }
}

static void test_a_bucket_without_a_rate_never_fills(void)
{
    struct leaky_bucket bucket = {0};

    leaky_bucket_pour(&bucket, 1e18, NOW);
    g_assert_cmpint(leaky_bucket_wait_ns(&bucket, NOW), ==, 0);
    leaky_bucket_set_rates(&bucket, 0, 0, 0, NOW);
    leaky_bucket_pour(&bucket, 1e18, NOW);
    g_assert_cmpint(leaky_bucket_wait_ns(&bucket, NOW), ==, 0);
}

static void test_the_average_holds_in_the_long_run(void)
{
    struct leaky_bucket bucket = {0};
    unsigned poured;

    leaky_bucket_set_rates(&bucket, 100, 0, 0, NOW);
    g_assert_cmpuint(pour_all(&bucket, NOW), ==, 11); /* a tenth of a second's worth, and one */
    g_assert_cmpint(leaky_bucket_wait_ns(&bucket, NOW), <=, NS_PER_SECOND / 100 + 1);
    poured = pour_until(&bucket, 1, NOW, NOW + 60 * NS_PER_SECOND);
    g_assert_cmpuint(poured, >=, 5999);
    g_assert_cmpuint(poured, <=, 6000);
}

static void test_a_request_larger_than_the_bucket_is_paid_for_afterwards(void)
{
    struct leaky_bucket bucket = {0};
    unsigned poured;

    leaky_bucket_set_rates(&bucket, 1000, 0, 0, NOW);
    leaky_bucket_pour(&bucket, 5000, NOW);
    g_assert_cmpint(leaky_bucket_wait_ns(&bucket, NOW), >=, 4900 * NS_PER_MS);
    g_assert_cmpint(leaky_bucket_wait_ns(&bucket, NOW), <=, 4900 * NS_PER_MS + 1);
    g_assert_cmpint(leaky_bucket_wait_ns(&bucket, NOW + 4900 * NS_PER_MS + 1), ==, 0);
    poured = pour_until(&bucket, 5000, NOW, NOW + 100 * NS_PER_SECOND);
    g_assert_cmpuint(poured, >=, 19);
    g_assert_cmpuint(poured, <=, 20);
}

static void test_a_burst_goes_at_max_until_it_is_used_up(void)
{
    struct leaky_bucket bucket = {0};
    int64_t after = NOW + 200 * NS_PER_SECOND;
    unsigned first;

    leaky_bucket_set_rates(&bucket, 100, 1000, 5, NOW);
    /* At most max per second, and a tenth of a second's worth ahead of it. */
    first = pour_until(&bucket, 1, NOW, NOW + NS_PER_SECOND);
    g_assert_cmpuint(first, >=, 1099);
    g_assert_cmpuint(first, <=, 1101);
    first += pour_until(&bucket, 1, NOW + NS_PER_SECOND, NOW + 5 * NS_PER_SECOND);
    g_assert_cmpuint(first, >=, 5000);
    /* Used up: the average, no more. */
    pour_until(&bucket, 1, NOW + 5 * NS_PER_SECOND, NOW + 10 * NS_PER_SECOND);
    first = pour_until(&bucket, 1, NOW + 10 * NS_PER_SECOND, NOW + 20 * NS_PER_SECOND);
    g_assert_cmpuint(first, >=, 999);
    g_assert_cmpuint(first, <=, 1001);
    /* After a long rest the next burst. */
    first = pour_until(&bucket, 1, after, after + NS_PER_SECOND);
    g_assert_cmpuint(first, >=, 1099);
    g_assert_cmpuint(first, <=, 1101);
}

static void test_lower_rates_do_not_make_up_for_what_was_allowed(void)
{
    struct leaky_bucket bucket = {0};

    leaky_bucket_set_rates(&bucket, 1000000, 10000000, 10, NOW);
    leaky_bucket_pour(&bucket, 100000000, NOW);
    leaky_bucket_set_rates(&bucket, 1, 0, 0, NOW);
    g_assert_cmpint(leaky_bucket_wait_ns(&bucket, NOW), ==, 0);
    leaky_bucket_pour(&bucket, 1, NOW);
    g_assert_cmpint(leaky_bucket_wait_ns(&bucket, NOW), <=, NS_PER_SECOND + 1);
}

static void test_waits_are_bounded_whatever_the_numbers(void)
{
    struct leaky_bucket bucket = {0};
    int64_t wait_ns;

    leaky_bucket_set_rates(&bucket, 1, HIGHEST_VALUE, 1, NOW);
    leaky_bucket_pour(&bucket, (double)UINT64_MAX, NOW);
    wait_ns = leaky_bucket_wait_ns(&bucket, NOW);
    g_assert_cmpint(wait_ns, >, 0);
    g_assert_cmpint(wait_ns, <=, 3600 * NS_PER_SECOND);
}

/* Limits. */

static struct throttle_limits one_limit(enum throttle_bucket_kind kind, uint64_t average)
{
    struct throttle_limits limits = {0};

    limits.buckets[kind].average = average;
    return limits;
}

static void assert_refused(const struct throttle_limits *limits, const char *message)
{
    GError *error = NULL;

    g_assert_cmpint(throttle_limits_check(limits, &error), ==, -EINVAL);
    g_assert_error(error, BLOCK_ERROR, EINVAL);
    g_assert_cmpstr(error->message, ==, message);
    g_error_free(error);
}

static void test_totals_and_directions_exclude_each_other(void)
{
    static const char message[] =
        "bps/iops/max total values and read/write values cannot be used at the same time";

    for (int direction = 1; direction <= 2; direction++) {
        struct throttle_limits bytes = one_limit(THROTTLE_BPS_TOTAL, 1);
        struct throttle_limits operations = one_limit(THROTTLE_IOPS_TOTAL, 1);
        struct throttle_limits both = one_limit(THROTTLE_BPS_TOTAL, 1);

        bytes.buckets[THROTTLE_BPS_TOTAL + direction].average = 1;
        assert_refused(&bytes, message);
        operations.buckets[THROTTLE_IOPS_TOTAL + direction].average = 1;
        assert_refused(&operations, message);
        both.buckets[THROTTLE_IOPS_TOTAL + direction].average = 1;
        g_assert_cmpint(throttle_limits_check(&both, NULL), ==, 0);
    }
}

static void test_bursts_need_a_rate_below_them(void)
{
    struct throttle_limits limits = {0};

    limits.buckets[THROTTLE_BPS_READ].max = 100;
    assert_refused(&limits, "bps_max/iops_max require corresponding bps/iops values");
    limits.buckets[THROTTLE_BPS_READ].average = 101;
    assert_refused(&limits, "bps_rd_max (100) must not be lower than bps_rd (101)");
    limits.buckets[THROTTLE_BPS_READ].average = 100;
    g_assert_cmpint(throttle_limits_check(&limits, NULL), ==, 0);
    limits = one_limit(THROTTLE_IOPS_WRITE, 5);
    limits.buckets[THROTTLE_IOPS_WRITE].max_length = 1;
    g_assert_cmpint(throttle_limits_check(&limits, NULL), ==, 0);
    limits.buckets[THROTTLE_IOPS_WRITE].max_length = 2;
    assert_refused(&limits, "iops_wr_max_length requires iops_wr_max");
}

static void test_limits_have_limits(void)
{
    struct throttle_limits limits = one_limit(THROTTLE_IOPS_TOTAL, UINT64_MAX);

    assert_refused(&limits, "iops and iops_max must be at most 1000000000000000");
    limits = one_limit(THROTTLE_IOPS_TOTAL, 10);
    limits.buckets[THROTTLE_IOPS_TOTAL].max = HIGHEST_VALUE;
    g_assert_cmpint(throttle_limits_check(&limits, NULL), ==, 0);
    limits.buckets[THROTTLE_IOPS_TOTAL].max_length = 2;
    assert_refused(&limits, "iops_max times iops_max_length must be at most 1000000000000000");
    limits.buckets[THROTTLE_IOPS_TOTAL].max_length = UINT64_MAX;
    assert_refused(&limits, "iops_max times iops_max_length must be at most 1000000000000000");
    limits = one_limit(THROTTLE_BPS_TOTAL, 10);
    limits.iops_size = 4096;
    assert_refused(&limits, "iops_size requires an iops, iops_rd or iops_wr value");
}

static void test_limits_read_back_as_they_were_set(void)
{
    AUTO(throttle) throttle = throttle_new();
    struct throttle_limits limits = one_limit(THROTTLE_IOPS_WRITE, 5), read;

    throttle_get_limits(throttle, &read);
    g_assert_cmpuint(read.buckets[THROTTLE_IOPS_WRITE].average, ==, 0);
    limits.iops_size = 4096;
    limits.buckets[THROTTLE_IOPS_WRITE].max = 10;
    throttle_set_limits(throttle, &limits);
    throttle_get_limits(throttle, &read);
    g_assert_cmpmem(&read, sizeof(read), &limits, sizeof(limits));
}

/* Admission, with times of our own. */

struct queue_test {
    struct throttle *throttle;
    struct waiter waiters[8];
    int64_t now_ns;
};

static void queue_test_init(struct queue_test *test, struct throttle_limits limits)
{
    *test = (struct queue_test){.throttle = throttle_new()};
    throttle_set_limits(test->throttle, &limits);
    test->now_ns = clock_now_ns() + NS_PER_SECOND;
}

static void add_waiter(struct queue_test *test, unsigned index, int direction, uint64_t bytes)
{
    test->waiters[index].bytes = bytes;
    pthread_cond_init(&test->waiters[index].changed, NULL);
    enqueue(test->throttle, direction, &test->waiters[index]);
}

/* Let time pass; returns a bit for every waiter admitted so far. */
static unsigned admitted_after(struct queue_test *test, int64_t ms)
{
    unsigned admitted = 0;

    test->now_ns += ms * NS_PER_MS;
    admit_ready(test->throttle, test->now_ns);
    for (unsigned i = 0; i < G_N_ELEMENTS(test->waiters); i++) {
        admitted |= (unsigned)test->waiters[i].is_admitted << i;
    }
    return admitted;
}

static void test_one_direction_goes_in_order_of_arrival(void)
{
    struct queue_test test;

    queue_test_init(&test, one_limit(THROTTLE_BPS_WRITE, 1000));
    /* The small ones do not overtake the large one. */
    add_waiter(&test, 0, WRITING, 1100);
    add_waiter(&test, 1, WRITING, 2000);
    add_waiter(&test, 2, WRITING, 1);
    add_waiter(&test, 3, WRITING, 1);
    g_assert_cmphex(admitted_after(&test, 0), ==, 0x1);
    g_assert_cmphex(admitted_after(&test, 990), ==, 0x1);
    g_assert_cmphex(admitted_after(&test, 20), ==, 0x3);
    g_assert_cmphex(admitted_after(&test, 1900), ==, 0x3);
    g_assert_cmphex(admitted_after(&test, 200), ==, 0xf);
    throttle_free(test.throttle);
}

static void test_a_limited_direction_does_not_hold_up_the_other(void)
{
    struct queue_test test;

    queue_test_init(&test, one_limit(THROTTLE_IOPS_WRITE, 1));
    add_waiter(&test, 0, WRITING, 512);
    add_waiter(&test, 1, WRITING, 512);
    add_waiter(&test, 2, READING, 512);
    add_waiter(&test, 3, READING, 512);
    g_assert_cmphex(admitted_after(&test, 0), ==, 0xd);
    g_assert_cmphex(admitted_after(&test, 1000), ==, 0xf);
    throttle_free(test.throttle);
}

static void test_neither_direction_starves_the_other(void)
{
    struct queue_test test;

    queue_test_init(&test, one_limit(THROTTLE_IOPS_TOTAL, 1));
    add_waiter(&test, 0, READING, 512);
    add_waiter(&test, 1, READING, 512);
    add_waiter(&test, 2, WRITING, 512);
    add_waiter(&test, 3, READING, 512);
    add_waiter(&test, 4, WRITING, 512);
    g_assert_cmphex(admitted_after(&test, 0), ==, 0x1);
    g_assert_cmphex(admitted_after(&test, 1000), ==, 0x3);
    g_assert_cmphex(admitted_after(&test, 1000), ==, 0x7);
    g_assert_cmphex(admitted_after(&test, 1000), ==, 0xf);
    g_assert_cmphex(admitted_after(&test, 1000), ==, 0x1f);
    throttle_free(test.throttle);
}

static void test_a_large_request_counts_as_several_operations(void)
{
    struct throttle_limits limits = one_limit(THROTTLE_IOPS_READ, 10);
    struct queue_test test;

    limits.iops_size = 4096;
    queue_test_init(&test, limits);
    add_waiter(&test, 0, READING, 512);   /* 1 */
    add_waiter(&test, 1, READING, 40960); /* 10 */
    add_waiter(&test, 2, READING, 512);
    g_assert_cmphex(admitted_after(&test, 0), ==, 0x3);
    g_assert_cmphex(admitted_after(&test, 990), ==, 0x3);
    g_assert_cmphex(admitted_after(&test, 20), ==, 0x7);
    throttle_free(test.throttle);
}

static void test_bytes_and_operations_are_limited_at_once(void)
{
    struct throttle_limits limits = one_limit(THROTTLE_IOPS_TOTAL, 10);
    struct queue_test test;

    limits.buckets[THROTTLE_BPS_TOTAL].average = 1000;
    queue_test_init(&test, limits);
    add_waiter(&test, 0, READING, 0);
    add_waiter(&test, 1, WRITING, 0);
    add_waiter(&test, 2, READING, 2100);
    add_waiter(&test, 3, READING, 0);
    g_assert_cmphex(admitted_after(&test, 0), ==, 0x3); /* operations: one, and one over */
    g_assert_cmphex(admitted_after(&test, 110), ==, 0x7);
    g_assert_cmphex(admitted_after(&test, 1900), ==, 0x7); /* bytes */
    g_assert_cmphex(admitted_after(&test, 110), ==, 0xf);
    throttle_free(test.throttle);
}

/* Threads that wait. */

struct requester {
    struct throttle *throttle;
    bool is_write;
    uint64_t bytes;
    unsigned count;
    pthread_t thread;
};

static void *request(void *data)
{
    struct requester *requester = data;

    for (unsigned i = 0; i < requester->count; i++) {
        throttle_wait(requester->throttle, requester->is_write, requester->bytes);
    }
    return NULL;
}

static void start_requesters(struct throttle *throttle, struct requester *requesters, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        requesters[i] = (struct requester){
            .throttle = throttle,
            .is_write = i % 2,
            .bytes = 1000000,
            .count = 3,
        };
        pthread_create(&requesters[i].thread, NULL, request, &requesters[i]);
    }
}

static void join_requesters(struct requester *requesters, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        pthread_join(requesters[i].thread, NULL);
    }
}

static unsigned count_waiters(struct throttle *throttle)
{
    unsigned count = 0;
    struct waiter *waiter;
    SCOPE_LOCK(&throttle->lock);

    for (int direction = 0; direction < DIRECTION_COUNT; direction++) {
        TAILQ_FOREACH (waiter, &throttle->waiters[direction], entry) {
            count++;
        }
    }
    return count;
}

static void wait_until_waiting(struct throttle *throttle, unsigned count)
{
    while (count_waiters(throttle) < count) {
        sched_yield();
    }
}

#define REQUESTERS 6

/* A throttle in which REQUESTERS threads wait for what would take years. */
static struct throttle *crowded_throttle(struct requester *requesters)
{
    struct throttle *throttle = throttle_new();
    struct throttle_limits limits = one_limit(THROTTLE_BPS_TOTAL, 1);

    throttle_set_limits(throttle, &limits);
    throttle_wait(throttle, false, UINT64_C(1) << 40);
    start_requesters(throttle, requesters, REQUESTERS);
    wait_until_waiting(throttle, REQUESTERS);
    return throttle;
}

static void test_taking_the_limits_away_wakes_all_waiters(void)
{
    struct requester requesters[REQUESTERS];
    AUTO(throttle) throttle = crowded_throttle(requesters);
    struct throttle_limits none = {0};

    throttle_set_limits(throttle, &none);
    join_requesters(requesters, REQUESTERS);
}

static void test_waiters_go_by_new_limits_at_once(void)
{
    struct requester requesters[REQUESTERS];
    AUTO(throttle) throttle = crowded_throttle(requesters);
    struct throttle_limits higher = one_limit(THROTTLE_BPS_TOTAL, 1000000000);

    throttle_set_limits(throttle, &higher);
    join_requesters(requesters, REQUESTERS);
}

static void test_a_change_to_another_kind_of_limit_wakes_waiters(void)
{
    struct requester requesters[REQUESTERS];
    AUTO(throttle) throttle = crowded_throttle(requesters);
    struct throttle_limits operations = one_limit(THROTTLE_IOPS_WRITE, 100000);

    throttle_set_limits(throttle, &operations);
    join_requesters(requesters, REQUESTERS);
}

static void test_suspension_lets_all_through_uncounted(void)
{
    struct requester requesters[REQUESTERS];
    AUTO(throttle) throttle = crowded_throttle(requesters);
    double level = throttle->buckets[THROTTLE_BPS_TOTAL].level;

    throttle_suspend(throttle);
    join_requesters(requesters, REQUESTERS); /* their later requests too */
    g_assert_cmpfloat(throttle->buckets[THROTTLE_BPS_TOTAL].level, <=, level);
    throttle_suspend(throttle);
    throttle_resume(throttle);
    throttle_wait(throttle, true, 1); /* still suspended */
    throttle_resume(throttle);
    start_requesters(throttle, requesters, REQUESTERS);
    wait_until_waiting(throttle, REQUESTERS); /* limited again */
    throttle_suspend(throttle);
    join_requesters(requesters, REQUESTERS);
}

static void *request_as_user(void *data)
{
    throttle_wait_as(data, true, 1);
    return NULL;
}

static void test_one_user_is_let_through_without_the_others(void)
{
    AUTO(throttle) throttle = throttle_new();
    struct throttle_user users[2] = {{throttle, 0}, {throttle, 0}};
    struct throttle_limits limits = one_limit(THROTTLE_BPS_TOTAL, 1);
    pthread_t threads[2];

    throttle_set_limits(throttle, &limits);
    throttle_wait(throttle, false, UINT64_C(1) << 40);
    for (int i = 0; i < 2; i++) {
        pthread_create(&threads[i], NULL, request_as_user, &users[i]);
        wait_until_waiting(throttle, (unsigned)i + 1);
    }
    throttle_suspend_user(&users[1]); /* the second in the queue */
    pthread_join(threads[1], NULL);
    throttle_wait_as(&users[1], true, 1); /* and whatever comes from it */
    g_assert_cmpuint(count_waiters(throttle), ==, 1);
    throttle_resume_user(&users[1]);
    pthread_create(&threads[1], NULL, request_as_user, &users[1]);
    wait_until_waiting(throttle, 2);
    for (int i = 0; i < 2; i++) {
        throttle_suspend_user(&users[i]);
        pthread_join(threads[i], NULL);
        throttle_resume_user(&users[i]);
    }
}

static void test_limits_set_while_suspended_hold_afterwards(void)
{
    struct requester requesters[REQUESTERS];
    AUTO(throttle) throttle = throttle_new();
    struct throttle_limits limits = one_limit(THROTTLE_BPS_TOTAL, 1), none = {0};

    throttle_suspend(throttle);
    throttle_set_limits(throttle, &limits);
    throttle_wait(throttle, true, UINT64_C(1) << 40);
    throttle_resume(throttle);
    throttle_wait(throttle, true, UINT64_C(1) << 40); /* the first one fills the bucket */
    start_requesters(throttle, requesters, REQUESTERS);
    wait_until_waiting(throttle, REQUESTERS);
    throttle_set_limits(throttle, &none);
    join_requesters(requesters, REQUESTERS);
}

/* Requests, limits and suspensions in a whirl: every request must come through. */
static void test_no_waiter_is_forgotten_in_a_whirl_of_changes(void)
{
    struct requester requesters[REQUESTERS];
    AUTO(throttle) throttle = throttle_new();
    struct throttle_limits none = {0};

    for (unsigned i = 0; i < REQUESTERS; i++) {
        requesters[i] = (struct requester){throttle, i % 2, 4096, 3000, 0};
        pthread_create(&requesters[i].thread, NULL, request, &requesters[i]);
    }
    for (unsigned i = 0; i < 300; i++) {
        enum throttle_bucket_kind kind = (unsigned)g_test_rand_int_range(0, THROTTLE_BUCKET_COUNT);
        struct throttle_limits limits =
            one_limit(kind, (uint64_t)g_test_rand_int_range(1, is_iops(kind) ? 50000 : 200000000));

        throttle_set_limits(throttle, &limits);
        sched_yield();
        if (i % 10 == 0) {
            throttle_suspend(throttle);
            sched_yield();
            throttle_resume(throttle);
        }
    }
    throttle_set_limits(throttle, &none);
    join_requesters(requesters, REQUESTERS);
    g_assert_cmpuint(count_waiters(throttle), ==, 0);
}

static void test_waiters_are_woken_by_the_clock_alone(void)
{
    AUTO(throttle) throttle = throttle_new();
    struct throttle_limits limits = one_limit(THROTTLE_IOPS_TOTAL, 200);
    struct requester requesters[REQUESTERS];
    int64_t start_ns;

    throttle_set_limits(throttle, &limits);
    start_ns = clock_now_ns();
    start_requesters(throttle, requesters, REQUESTERS);
    for (unsigned i = 0; i < 20; i++) {
        throttle_wait(throttle, i % 2, 0);
    }
    join_requesters(requesters, REQUESTERS);
    /* 38 requests, of which 21 may come at once; waiting longer is no fault. */
    g_assert_cmpint(clock_now_ns() - start_ns, >=, 17 * NS_PER_SECOND / 200);
}

static void add_thread_tests(void)
{
    g_test_add_func("/throttle/taking-the-limits-away-wakes-all-waiters",
                    test_taking_the_limits_away_wakes_all_waiters);
    g_test_add_func("/throttle/waiters-go-by-new-limits-at-once",
                    test_waiters_go_by_new_limits_at_once);
    g_test_add_func("/throttle/a-change-to-another-kind-of-limit-wakes-waiters",
                    test_a_change_to_another_kind_of_limit_wakes_waiters);
    g_test_add_func("/throttle/suspension-lets-all-through-uncounted",
                    test_suspension_lets_all_through_uncounted);
    g_test_add_func("/throttle/one-user-is-let-through-without-the-others",
                    test_one_user_is_let_through_without_the_others);
    g_test_add_func("/throttle/limits-set-while-suspended-hold-afterwards",
                    test_limits_set_while_suspended_hold_afterwards);
    g_test_add_func("/throttle/no-waiter-is-forgotten-in-a-whirl-of-changes",
                    test_no_waiter_is_forgotten_in_a_whirl_of_changes);
    g_test_add_func("/throttle/waiters-are-woken-by-the-clock-alone",
                    test_waiters_are_woken_by_the_clock_alone);
}

static void add_bucket_tests(void)
{
    g_test_add_func("/throttle/a-bucket-without-a-rate-never-fills",
                    test_a_bucket_without_a_rate_never_fills);
    g_test_add_func("/throttle/the-average-holds-in-the-long-run",
                    test_the_average_holds_in_the_long_run);
    g_test_add_func("/throttle/a-request-larger-than-the-bucket-is-paid-for-afterwards",
                    test_a_request_larger_than_the_bucket_is_paid_for_afterwards);
    g_test_add_func("/throttle/a-burst-goes-at-max-until-it-is-used-up",
                    test_a_burst_goes_at_max_until_it_is_used_up);
    g_test_add_func("/throttle/lower-rates-do-not-make-up-for-what-was-allowed",
                    test_lower_rates_do_not_make_up_for_what_was_allowed);
    g_test_add_func("/throttle/waits-are-bounded-whatever-the-numbers",
                    test_waits_are_bounded_whatever_the_numbers);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    add_bucket_tests();
    g_test_add_func("/throttle/totals-and-directions-exclude-each-other",
                    test_totals_and_directions_exclude_each_other);
    g_test_add_func("/throttle/bursts-need-a-rate-below-them", test_bursts_need_a_rate_below_them);
    g_test_add_func("/throttle/limits-have-limits", test_limits_have_limits);
    g_test_add_func("/throttle/limits-read-back-as-they-were-set",
                    test_limits_read_back_as_they_were_set);
    g_test_add_func("/throttle/one-direction-goes-in-order-of-arrival",
                    test_one_direction_goes_in_order_of_arrival);
    g_test_add_func("/throttle/a-limited-direction-does-not-hold-up-the-other",
                    test_a_limited_direction_does_not_hold_up_the_other);
    g_test_add_func("/throttle/neither-direction-starves-the-other",
                    test_neither_direction_starves_the_other);
    g_test_add_func("/throttle/a-large-request-counts-as-several-operations",
                    test_a_large_request_counts_as_several_operations);
    g_test_add_func("/throttle/bytes-and-operations-are-limited-at-once",
                    test_bytes_and_operations_are_limited_at_once);
    add_thread_tests();
    return g_test_run();
}
