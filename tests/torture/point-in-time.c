/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Points in time of a disk that many writers write to, while readers compare them with the model
 * of their moment, parts are discarded, and scratch is slow, full, failing, drained or hanging.
 * Whatever happens, a reader gets the data of the moment or an error, and the guest goes on.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/align.h"
#include "block/clock.h"
#include "block/copy-map.h"
#include "block/drain.h"
#include "block/error.h"
#include "block/main-loop.h"
#include "block/point-in-time.h"
#include "block/zero.h"
#include "tests/lib/backup-rig.h"

#define WRITERS   10
#define ROUND_NS  (150 * NS_PER_MS)
#define BUDGET_NS (2500 * NS_PER_MS) /* of one test */
#define READ_MAX  (600 * KIB)

/* What may go wrong in a round. */
enum trouble {
    NO_TROUBLE,
    SLOW,     /* scratch answers late */
    FAILING,  /* scratch fails now and then */
    FULL,     /* the budget is small */
    HANGING,  /* scratch answers no more */
    BREAKING, /* somebody breaks it */
    TROUBLES,
};

struct round {
    struct rig *rig;
    enum trouble trouble;
    struct block_node *scratch; /* NULL: memory only */
    struct scratch_budget budget;
    struct point_in_time *point;
    struct model *snapshot;
    bool discards;
    /* By unit: a discard has begun, and has ended. */
    _Atomic uint8_t *going;
    _Atomic uint8_t *gone;
    _Atomic bool over;
};

struct actor {
    struct round *round;
    struct test_random random;
    void (*act)(struct round *round, struct test_random *random);
    pthread_t thread;
};

static unsigned rounds;
static _Atomic unsigned whole, broken, good_reads, failed_reads, discards;

/* ---- Readers -------------------------------------------------------------------------------- */

static bool any_unit(_Atomic uint8_t *flags, uint64_t offset, uint64_t bytes)
{
    for (uint64_t unit = offset / COPY_UNIT; unit * COPY_UNIT < offset + bytes; unit++) {
        if (atomic_load(&flags[unit])) {
            return true;
        }
    }
    return false;
}

/* An error must have a reason. */
static void check_error(struct round *round, int status, bool was_gone, uint64_t offset,
                        uint64_t bytes)
{
    if (status == 0) {
        g_assert_false(was_gone);
    } else if (status == -EINVAL) {
        g_assert_true(any_unit(round->going, offset, bytes));
    } else if (status == -ESHUTDOWN) {
        g_assert_cmpint(round->trouble, ==, HANGING);
    } else {
        g_assert_cmpint(status, ==, -EIO);
        g_assert_true(atomic_load(&round->over) || point_in_time_is_broken(round->point, NULL) ||
                      round->trouble == FAILING);
    }
}

/* Read and judge; true if it could be read. */
static bool read_and_judge(struct round *round, uint64_t offset, uint64_t bytes, void *buffer)
{
    struct model_read *read = model_read_begin(round->snapshot, offset, bytes);
    struct model_report report = {0};
    bool was_gone = any_unit(round->gone, offset, bytes);
    int status = point_in_time_pread(round->point, buffer, offset, bytes);

    model_read_end(round->snapshot, read, status < 0 ? NULL : buffer, &report);
    if (report.wrong) {
        g_error("a reader of 0x%" PRIx64 "+0x%" PRIx64 " got wrong data:\n%s", offset, bytes,
                report.details->str);
    }
    model_report_clear(&report);
    check_error(round, status, was_gone, offset, bytes);
    atomic_fetch_add(status < 0 ? &failed_reads : &good_reads, 1);
    return status == 0;
}

static void read_somewhere(struct round *round, struct test_random *random)
{
    g_autofree char *buffer = g_malloc(READ_MAX);
    uint64_t offset, bytes;

    test_random_range(random, model_length(round->snapshot), RIG_SECTOR,
                      test_random_chance(random, 50) ? 16 * KIB : READ_MAX, &offset, &bytes);
    read_and_judge(round, offset, bytes, buffer);
}

/* What is said to be zero reads as zeroes. */
static void ask_status(struct round *round, struct test_random *random)
{
    g_autofree char *buffer = g_malloc(READ_MAX);
    struct block_extent extent;
    uint64_t offset, bytes;

    test_random_range(random, model_length(round->snapshot), RIG_SECTOR, READ_MAX, &offset, &bytes);
    bool was_gone = any_unit(round->gone, offset, 1);
    int status = point_in_time_block_status(round->point, offset, bytes, &extent);

    check_error(round, status, was_gone, offset, 1);
    if (status < 0) {
        return;
    }
    g_assert_cmpuint(extent.bytes, >, 0);
    g_assert_cmpuint(extent.bytes, <=, bytes);
    g_assert_true(extent.flags & (BLOCK_STATUS_DATA | BLOCK_STATUS_ZERO));
    g_assert_false(extent.flags & BLOCK_STATUS_OFFSET_VALID);
    if ((extent.flags & BLOCK_STATUS_ZERO) &&
        point_in_time_pread(round->point, buffer, offset, extent.bytes) == 0) {
        g_assert_true(buffer_is_zero(buffer, extent.bytes));
    }
}

/* ---- Those who discard ---------------------------------------------------------------------- */

static void set_units(_Atomic uint8_t *flags, uint64_t offset, uint64_t bytes, uint64_t length)
{
    uint64_t end = offset + bytes == length ? align_up(length, COPY_UNIT)
                                            : align_down(offset + bytes, COPY_UNIT);

    for (uint64_t unit = align_up(offset, COPY_UNIT); unit < end; unit += COPY_UNIT) {
        atomic_store(&flags[unit / COPY_UNIT], 1);
    }
}

static void discard(struct round *round, uint64_t offset, uint64_t bytes)
{
    uint64_t length = round->rig->length;

    set_units(round->going, offset, bytes, length);
    int status = point_in_time_discard(round->point, offset, bytes);
    if (status == 0) {
        set_units(round->gone, offset, bytes, length);
    } else {
        check_error(round, status, false, offset, bytes);
    }
    atomic_fetch_add(&discards, 1);
}

/* As a backup does: take what guests have saved, or else what comes next, and give it up. */
static void consume(struct round *round, struct test_random *random)
{
    g_autofree char *buffer = g_malloc(READ_MAX);
    uint64_t from = test_random_below(random, round->rig->length), offset, bytes;
    bool saved_only = test_random_chance(random, 70) || point_in_time_is_crowded(round->point);

    if (!round->discards ||
        !point_in_time_next(round->point, saved_only, from, round->rig->length,
                            test_random_between(random, 1, READ_MAX / COPY_UNIT) * COPY_UNIT,
                            &offset, &bytes)) {
        return;
    }
    g_assert_true(is_aligned(offset, COPY_UNIT));
    uint64_t in_model = MIN_OF(offset + bytes, model_length(round->snapshot));
    if (in_model <= offset || read_and_judge(round, offset, in_model - offset, buffer)) {
        discard(round, offset, bytes);
    }
    g_usleep(1000); /* or all is gone before anything has happened */
}

static void discard_somewhere(struct round *round, struct test_random *random)
{
    uint64_t offset, bytes;

    if (round->discards) {
        test_random_range(random, model_length(round->snapshot), RIG_SECTOR, 64 * KIB, &offset,
                          &bytes);
        discard(round, offset, bytes);
    }
    g_usleep(2000);
}

/* ---- Trouble -------------------------------------------------------------------------------- */

static enum point_in_time_action on_scratch_error(void *data, int error_number)
{
    static const enum point_in_time_action actions[] = {POINT_IN_TIME_TRY_LATER, POINT_IN_TIME_HOLD,
                                                        POINT_IN_TIME_GIVE_UP};
    static _Atomic unsigned turn;

    return actions[atomic_fetch_add(&turn, 1) % G_N_ELEMENTS(actions)];
}

static void meddle(struct round *round, struct test_random *random)
{
    struct block_node *nodes[] = {round->rig->source, round->scratch};
    size_t first = test_random_chance(random, 30) ? 0 : 1;
    struct point_in_time_info info;
    GError *error = NULL;

    point_in_time_get_info(round->point, &info);
    g_assert_cmpuint(info.scratch_bytes, <=, info.scratch_peak_bytes);
    g_assert_cmpuint(info.discarded_bytes, <=, round->rig->length);
    if (test_random_chance(random, 30)) {
        point_in_time_retry(round->point);
    } else if (round->trouble == BREAKING && test_random_chance(random, 2)) {
        block_error(&error, EIO, "Broken on purpose");
        point_in_time_break(round->point, error);
    } else if (round->scratch && round->trouble != HANGING && test_random_chance(random, 20)) {
        unsigned perms = test_random_chance(random, 50) ? BLOCK_PERM_ALL : BLOCK_PERM_WRITE;
        AUTO(block_drain) drain = block_drain_begin(nodes + first, 2 - first, perms);
    }
    g_usleep(500); /* leaves others time; nothing depends on it */
}

static void cause_trouble(struct round *round, struct test_random *random)
{
    if (!round->scratch) {
        return;
    }
    switch (round->trouble) {
    case SLOW:
        FAULT(round->scratch, .operations = FAULT_ON_ALL, .percent = 50, .delay_ns = 2 * NS_PER_MS);
        break;
    case FAILING:
        FAULT(round->scratch, .operations = FAULT_ON_ALL, .percent = 5, .count = 20,
              .error_number = EIO);
        break;
    case FULL:
        round->budget.max_bytes = test_random_between(random, 1, 512) * COPY_UNIT;
        break;
    case HANGING:
        FAULT(round->scratch, .operations = FAULT_ON_CHANGES | FAULT_ON(READ), .skip = 50,
              .hold = true);
        break;
    default:
        break;
    }
}

/* ---- A round -------------------------------------------------------------------------------- */

static void *actor_thread(void *data)
{
    struct actor *actor = data;

    while (!atomic_load(&actor->round->over)) {
        actor->act(actor->round, &actor->random);
    }
    return NULL;
}

static void (*const acts[])(struct round *round, struct test_random *random) = {
    read_somewhere, read_somewhere, ask_status, consume, discard_somewhere, meddle,
};

static struct point_in_time *make_point(struct round *round, struct test_random *random)
{
    g_autoptr(GError) error = NULL;
    struct point_in_time *point = point_in_time_new(
        &(struct point_in_time_options){
            .owner = "view 'torture'",
            .source = round->rig->source,
            .scratch = round->scratch,
            .policy = test_random_chance(random, 50) ? POINT_IN_TIME_BREAK_SNAPSHOT
                                                     : POINT_IN_TIME_BREAK_GUEST_WRITE,
            .guest_timeout_ns = (int64_t)test_random_between(random, 1, 500) * NS_PER_MS,
            .budget = &round->budget,
            .memory_max = test_random_between(random, 1, 4 * MIB),
            .write_through = round->scratch && test_random_chance(random, 30),
            .on_scratch_error = on_scratch_error,
        },
        &error);

    g_assert_no_error(error);
    return point;
}

static void take_moment(void *data)
{
    struct round *round = data;

    point_in_time_install(round->point);
    round->snapshot = model_snapshot(round->rig->model);
}

static void begin_round(struct round *round, struct rig *rig, enum trouble trouble)
{
    uint64_t units = div_round_up(rig->length, COPY_UNIT);

    *round = (struct round){.rig = rig, .trouble = trouble};
    round->discards = test_random_chance(&rig->random, 50);
    round->going = g_malloc0(units);
    round->gone = g_malloc0(units);
    if (test_random_chance(&rig->random, 85)) {
        round->scratch = rig_target(rig, "scratch", test_random_chance(&rig->random, 50));
    }
    cause_trouble(round, &rig->random);
    round->point = make_point(round, &rig->random);
    AUTO(block_drain) drain = block_drain_begin(&rig->source, 1, BLOCK_PERM_WRITE);
    main_loop_call_wait(take_moment, round);
}

/* If it stands, all of it that was not given up can be read. */
static void check_whole(struct round *round)
{
    g_autofree char *buffer = g_malloc(READ_MAX);
    uint64_t length = model_length(round->snapshot), offset = 0, bytes = 0;

    if (round->scratch) {
        fault_clear(round->scratch);
    }
    while (point_in_time_next(round->point, false, offset + bytes, length,
                              align_down(READ_MAX, COPY_UNIT), &offset, &bytes)) {
        bool readable = read_and_judge(round, offset, bytes, buffer);

        g_assert_true(readable || any_unit(round->going, offset, bytes) ||
                      point_in_time_is_broken(round->point, NULL));
    }
}

static void end_round(struct round *round)
{
    bool is_broken = point_in_time_is_broken(round->point, NULL);

    atomic_fetch_add(is_broken ? &broken : &whole, 1);
    atomic_store(&round->over, true);
    point_in_time_uninstall(round->point);
    point_in_time_cancel_in_flight(round->point);
    g_assert_cmpint(point_in_time_pread(round->point, &(char){0}, 0, 1), ==, -EIO);
}

static void free_round(struct round *round)
{
    point_in_time_free(round->point);
    g_assert_cmpuint(atomic_load(&round->budget.used_bytes), ==, 0);
    if (round->scratch) {
        fault_clear(round->scratch);
        rig_assert_unused(round->scratch);
    }
    model_free(round->snapshot);
    g_free(round->going);
    g_free(round->gone);
}

static void one_round(struct rig *rig, enum trouble trouble)
{
    struct actor actors[G_N_ELEMENTS(acts)];
    struct round round;

    begin_round(&round, rig, trouble);
    for (size_t i = 0; i < G_N_ELEMENTS(acts); i++) {
        actors[i] = (struct actor){
            .round = &round, .random = test_random_split(&rig->random), .act = acts[i]};
        g_assert_cmpint(pthread_create(&actors[i].thread, NULL, actor_thread, &actors[i]), ==, 0);
    }
    int64_t end_ns = clock_now_ns() + ROUND_NS;
    while (clock_now_ns() < end_ns && !point_in_time_is_broken(round.point, NULL)) {
        g_usleep(5000);
    }
    if (trouble != HANGING) {
        check_whole(&round);
    }
    end_round(&round);
    for (size_t i = 0; i < G_N_ELEMENTS(acts); i++) {
        pthread_join(actors[i].thread, NULL);
    }
    free_round(&round);
}

static void torture(uint64_t length, uint64_t alignment)
{
    int64_t end_ns = clock_now_ns() + (int64_t)test_amount(BUDGET_NS);
    struct rig *rig = rig_new(length, alignment);

    rounds = 0;
    whole = 0;
    broken = 0;
    good_reads = 0;
    failed_reads = 0;
    discards = 0;
    rig_fill(rig);
    rig_write(rig, WRITERS);
    do {
        one_round(rig, (enum trouble)(rounds % TROUBLES));
    } while (++rounds < TROUBLES || clock_now_ns() < end_ns);
    g_test_message("%u rounds: %u whole, %u broken; %u good and %u failed reads; %u discards; "
                   "%" PRIu64 " requests, %" PRIu64 " failed",
                   rounds, whole, broken, good_reads, failed_reads, discards,
                   atomic_load(&rig->requests), atomic_load(&rig->failed));
    rig_free(rig);
}

static void test_any(void)
{
    torture(6 * MIB, 1);
}

static void test_odd_length(void)
{
    torture(4 * MIB + 5 * 512, 1);
}

static void test_unaligned(void)
{
    torture(3 * MIB + 20 * KIB, 4096);
}

static void add_tests(void)
{
    g_test_add_func("/point-in-time/readers-get-the-moment-or-an-error", test_any);
    g_test_add_func("/point-in-time/on-a-disk-of-odd-length", test_odd_length);
    g_test_add_func("/point-in-time/with-unaligned-writes", test_unaligned);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
