/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Random numbers for tests: fast, good enough, and repeatable from a printed seed.
 *
 * A generator belongs to one thread. Give each thread its own with test_random_split.
 */
#ifndef LIVEBLK_TESTS_LIB_RANDOM_H
#define LIVEBLK_TESTS_LIB_RANDOM_H

#include <stdbool.h>
#include <stdint.h>

struct test_random {
    uint64_t state;
};

/*
 * The seed of this run: LIVEBLK_TEST_SEED from the environment, else a fresh one. Prints it as a
 * TAP comment, in the form in which it can be given again. The same for the whole process.
 */
uint64_t test_seed(void);

/*
 * How many random cases to try: LIVEBLK_TEST_CASES from the environment, else as many as are usual,
 * and of those one in 8 under AddressSanitizer, one in 40 under ThreadSanitizer, which finds
 * nothing in one thread.
 */
unsigned long test_cases(unsigned long usual);

struct test_random test_random_new(uint64_t seed);

/*
 * How much of what threads do at random is enough, in rounds or in time: under sanitizers, which
 * see more in each round and are slow, half of what is usual, unless LIVEBLK_TEST_CASES is set.
 */
uint64_t test_amount(uint64_t usual);

/*
 * How far to go on to the next of many cases that are alike, as where each write fails once: 1,
 * and under sanitizers, which see the same in all of them, more at random: all are tried over
 * several runs.
 */
uint64_t test_stride(struct test_random *random);

/* A generator for another thread, independent of this one and of those split off before. */
struct test_random test_random_split(struct test_random *random);

uint64_t test_random_u64(struct test_random *random);

/* A number from 0 to limit - 1; limit must not be 0. */
uint64_t test_random_below(struct test_random *random, uint64_t limit);

/* A number from minimum to maximum, both included. */
uint64_t test_random_between(struct test_random *random, uint64_t minimum, uint64_t maximum);

/* True in about percent of 100 cases. */
bool test_random_chance(struct test_random *random, unsigned percent);

/*
 * A range on a disk of length bytes: aligned to sector, from one sector to maximum bytes long.
 * length, sector and maximum are multiples of sector.
 */
void test_random_range(struct test_random *random, uint64_t length, uint64_t sector,
                       uint64_t maximum, uint64_t *offset, uint64_t *bytes);

#endif
