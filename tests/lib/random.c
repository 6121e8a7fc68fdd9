/* SPDX-License-Identifier: BSD-3-Clause */
#include "tests/lib/random.h"

#include <glib.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "block/align.h"

#define GOLDEN_RATIO UINT64_C(0x9e3779b97f4a7c15)

static uint64_t process_seed;

static void choose_seed(void)
{
    const char *wish = getenv("LIVEBLK_TEST_SEED");

    if (!wish || !*wish) {
        process_seed = (uint64_t)g_random_int() << 32 | g_random_int();
    } else if (!g_ascii_string_to_unsigned(wish, 10, 0, UINT64_MAX, &process_seed, NULL)) {
        g_error("LIVEBLK_TEST_SEED is no number: '%s'", wish);
    }
    printf("# LIVEBLK_TEST_SEED=%" PRIu64 "\n", process_seed);
    fflush(stdout);
}

uint64_t test_seed(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;

    pthread_once(&once, choose_seed);
    return process_seed;
}

#if defined(__has_feature)
#define HAS_FEATURE(name) __has_feature(name)
#else
#define HAS_FEATURE(name) 0
#endif

#if defined(__SANITIZE_THREAD__) || HAS_FEATURE(thread_sanitizer)
#define ONE_CASE_IN 40
#elif defined(__SANITIZE_ADDRESS__) || HAS_FEATURE(address_sanitizer)
#define ONE_CASE_IN 8
#else
#define ONE_CASE_IN 1
#endif

unsigned long test_cases(unsigned long usual)
{
    const char *wanted = getenv("LIVEBLK_TEST_CASES");

    return wanted ? strtoul(wanted, NULL, 10) : (usual + ONE_CASE_IN - 1) / ONE_CASE_IN;
}

uint64_t test_amount(uint64_t usual)
{
    bool is_all = ONE_CASE_IN == 1 || getenv("LIVEBLK_TEST_CASES");

    return is_all ? usual : (usual + 1) / 2;
}

uint64_t test_stride(struct test_random *random)
{
    bool is_all = ONE_CASE_IN == 1 || getenv("LIVEBLK_TEST_CASES");

    return is_all ? 1 : test_random_between(random, 1, 15);
}

struct test_random test_random_new(uint64_t seed)
{
    return (struct test_random){.state = seed};
}

struct test_random test_random_split(struct test_random *random)
{
    return test_random_new(test_random_u64(random));
}

/* A Weyl sequence through a mixing function: any seed, zero too, gives a full period. */
uint64_t test_random_u64(struct test_random *random)
{
    uint64_t mixed = random->state += GOLDEN_RATIO;

    mixed = (mixed ^ (mixed >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    mixed = (mixed ^ (mixed >> 27)) * UINT64_C(0x94d049bb133111eb);
    return mixed ^ (mixed >> 31);
}

uint64_t test_random_below(struct test_random *random, uint64_t limit)
{
    g_assert_cmpuint(limit, >, 0);
    return test_random_u64(random) % limit;
}

uint64_t test_random_between(struct test_random *random, uint64_t minimum, uint64_t maximum)
{
    g_assert_cmpuint(minimum, <=, maximum);
    if (minimum == 0 && maximum == UINT64_MAX) {
        return test_random_u64(random);
    }
    return minimum + test_random_below(random, maximum - minimum + 1);
}

bool test_random_chance(struct test_random *random, unsigned percent)
{
    return test_random_below(random, 100) < percent;
}

void test_random_range(struct test_random *random, uint64_t length, uint64_t sector,
                       uint64_t maximum, uint64_t *offset, uint64_t *bytes)
{
    uint64_t sectors = test_random_between(random, 1, MIN_OF(maximum, length) / sector);

    *bytes = sectors * sector;
    *offset = test_random_below(random, (length - *bytes) / sector + 1) * sector;
}
