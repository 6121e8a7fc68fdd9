/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Comparisons beside many writers, while jobs are paused and throttled and nodes are drained, and
 * reads are slow and lie now and then. Each finds what was made to differ and nothing else, and one
 * that repairs leaves the disk as it was at the moment.
 */
#include <string.h>

#include "block/align.h"
#include "block/clock.h"
#include "block/copy-map.h"
#include "block/drain.h"
#include "tests/lib/backup-rig.h"
#include "tests/lib/meddlers.h"
#include "tests/lib/verify-rig.h"

#define LENGTH    (8 * MIB)
#define SECTOR    VERIFY_SECTOR
#define SECTORS   (LENGTH / SECTOR)
#define WRITERS   6
#define LIE       (3 * MIB) /* where a read tells something else once */
#define BUDGET_NS (5 * NS_PER_SECOND)

static void drain(struct rig *rig, struct test_random *random)
{
    AUTO(block_node) target = block_node_find("target");
    struct block_node *nodes[] = {rig->source, target};
    unsigned perms = test_random_chance(random, 50) ? BLOCK_PERM_ALL : BLOCK_PERM_WRITE;
    size_t first = test_random_below(random, 2);
    size_t count = first == 0 ? test_random_between(random, 1, 2) : 1;

    block_drain_end(block_drain_begin(nodes + first, count, perms));
}

static void meddle(struct rig *rig, struct test_random *random)
{
    AUTO(job) job = job_find("job0");

    switch (test_random_below(random, 6)) {
    case 0:
        if (job) {
            job_user_pause(job, NULL);
        }
        break;
    case 1:
        drain(rig, random);
        break;
    case 2:
        if (job) {
            job_set_speed(job, test_random_chance(random, 30) ? (int64_t)(64 * MIB) : 0, NULL);
        }
        break;
    default:
        if (job) {
            job_user_resume(job, NULL);
        }
    }
}

/* Make some sectors differ; what a comparison has to find. */
static GArray *scribble(struct rig *rig, struct block_node *target, const char *source)
{
    GArray *wanted = g_array_new(FALSE, FALSE, sizeof(struct verify_range));
    uint64_t at = 0;

    while ((at += SECTOR * test_random_between(&rig->random, 2, 600)) < LENGTH - 64 * SECTOR) {
        struct verify_range range = {
            .offset = at,
            .bytes = SECTOR * test_random_between(&rig->random, 1, 40),
            .kind = VERIFY_DATA,
        };

        if (range.offset < LIE + COPY_UNIT && range.offset + range.bytes > LIE) {
            continue; /* what differs anyway is looked at twice, and the lie may be the second time
                       */
        }
        verify_rig_scribble(target, range.offset, range.bytes);
        /* Where the disk is zero in part the kinds alternate: leave such places out. */
        for (uint64_t i = 0; i < range.bytes; i += SECTOR) {
            static const char zeroes[SECTOR];
            bool is_zero = !memcmp(source + at + i, zeroes, SECTOR);
            enum verify_kind kind = is_zero ? VERIFY_SOURCE_ZERO : VERIFY_DATA;

            if (i == 0) {
                range.kind = kind;
            } else if (kind != range.kind) {
                verify_rig_scribble(target, at + i, range.bytes - i); /* as it was */
                range.bytes = i;
            }
        }
        g_array_append_val(wanted, range);
        at += range.bytes;
    }
    return wanted;
}

static void slow_down_and_lie(struct rig *rig, struct block_node *target)
{
    FAULT(target, .operations = FAULT_ON(READ), .skip = 1, .percent = 20, .delay_ns = NS_PER_MS);
    FAULT(target, .operations = FAULT_ON(READ), .offset = LIE, .bytes = 1, .count = 1, .lie = true);
    FAULT(rig->source, .operations = FAULT_ON(READ), .percent = 5, .delay_ns = NS_PER_MS);
}

/* The writers stand still while the target is made what the disk is, but for some sectors. */
static void compare_once(struct rig *rig, bool repair)
{
    struct block_node *target = verify_rig_copy(rig, "target");
    g_autofree char *contents = rig_contents(rig->source);
    GArray *wanted = scribble(rig, target, contents);
    static meddle_function *const functions[] = {meddle, NULL};
    const struct verify_options options = {.repair = repair, .max_ranges = SECTORS};

    slow_down_and_lie(rig, target);
    struct job *job = verify_rig_start(rig, target, &options, NULL);
    rig_write(rig, WRITERS);
    struct meddlers *meddlers = meddlers_start(rig, &rig->random, functions);
    rig_wait_status(job, JOB_STATUS_CONCLUDED);
    meddlers_stop(meddlers);
    rig_stop(rig);
    fault_clear(rig->source);
    fault_clear(target);
    verify_rig_end(job, repair || !wanted->len ? NULL : "differs from the source",
                   (const struct verify_range *)(void *)wanted->data, wanted->len);
    if (repair) {
        rig_assert_contents(target, contents);
    }
    rig_assert_source_quiet(rig);
    rig_assert_unused(target);
    g_array_unref(wanted);
}

static void test_beside_writers(void)
{
    struct rig *rig = rig_new(LENGTH, 1);
    int64_t end_ns = clock_now_ns() + (int64_t)test_amount(BUDGET_NS);
    unsigned rounds = 0;

    rig_fill(rig);
    do {
        compare_once(rig, rounds++ % 2);
    } while (clock_now_ns() < end_ns);
    g_test_message("%u comparisons", rounds);
    rig_free(rig);
}

static void add_tests(void)
{
    g_test_add_func("/verify/beside-writers-just-what-differs-is-found", test_beside_writers);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
