/* SPDX-License-Identifier: BSD-3-Clause */
/* The change map: marks, the protocol of zeroes in every order of its steps, and what changed. */
#include "block/change-map.h"

#include <glib.h>
#include <string.h>

#include "block/align.h"
#include "tests/lib/random.h"

#define SHIFT   12
#define GRANULE (UINT64_C(1) << SHIFT)

static struct change_map *map_new(uint64_t length, unsigned shift)
{
    struct change_map *map = g_new0(struct change_map, 1);
    void *values = g_malloc0(change_map_bytes(length, shift));

    g_assert_cmpint(change_map_init(map, values, length, shift), ==, 0);
    g_assert_cmpuint(atomic_load(&map->epoch), ==, 0);
    atomic_store(&map->epoch, 1);
    return map;
}

static void map_free(struct change_map *map)
{
    g_free(map->values);
    change_map_destroy(map);
    g_free(map);
}

static void assert_counts(const struct change_map *map, uint16_t since, uint64_t changed,
                          uint64_t zero)
{
    uint64_t found_changed, found_zero;

    change_map_count(map, since, &found_changed, &found_zero);
    g_assert_cmpuint(found_changed, ==, changed);
    g_assert_cmpuint(found_zero, ==, zero);
}

static void test_writes(void)
{
    struct change_map *map = map_new(10 * GRANULE, SHIFT);

    assert_counts(map, 0, 0, 0);
    g_assert_true(change_map_begin_write(map, GRANULE + 1, 1));
    g_assert_false(change_map_begin_write(map, GRANULE, GRANULE));
    g_assert_false(change_map_end_write(map, GRANULE + 1, 1));
    assert_counts(map, 0, GRANULE, 0);
    g_assert_true(change_map_begin_write(map, 2 * GRANULE - 1, 2));
    assert_counts(map, 0, 2 * GRANULE, 0);
    g_assert_cmpuint(change_map_cut(map), ==, 1);
    assert_counts(map, 1, 0, 0);
    assert_counts(map, 0, 2 * GRANULE, 0);
    g_assert_true(change_map_begin_write(map, GRANULE, 1));
    assert_counts(map, 1, GRANULE, 0);
    assert_counts(map, 0, 2 * GRANULE, 0);
    map_free(map);
}

static void test_short_granule(void)
{
    struct change_map *map = map_new(3 * GRANULE + 512, SHIFT);

    change_map_begin_zero(map, 3 * GRANULE, 512);
    change_map_end_zero(map, 3 * GRANULE, 512, true);
    assert_counts(map, 0, 512, 512);
    change_map_begin_write(map, 0, map->length);
    assert_counts(map, 0, map->length, 0);
    change_map_cut(map);
    change_map_begin_zero(map, 3 * GRANULE, 511); /* not all of it */
    change_map_end_zero(map, 3 * GRANULE, 511, true);
    assert_counts(map, 1, 512, 0);
    g_assert_cmpuint(change_map_mark(map, 0, map->length), ==, 3 * GRANULE);
    map_free(map);
}

static void test_parts(void)
{
    struct change_map *map = map_new(8 * GRANULE, SHIFT);

    /* Half a granule at either end is data, what lies between is zero. */
    change_map_begin_zero(map, GRANULE / 2, 3 * GRANULE);
    assert_counts(map, 0, 4 * GRANULE, 0);
    change_map_end_zero(map, GRANULE / 2, 3 * GRANULE, true);
    assert_counts(map, 0, 4 * GRANULE, 2 * GRANULE);
    g_assert_true(change_map_is_zero(map, GRANULE, 2 * GRANULE));
    g_assert_false(change_map_is_zero(map, GRANULE - 1, 2));
    /* What reads as zeroes is not changed by zeroing it, in a later epoch either. */
    change_map_cut(map);
    g_assert_false(change_map_begin_zero(map, GRANULE, 2 * GRANULE));
    change_map_end_zero(map, GRANULE, 2 * GRANULE, true);
    g_assert_false(change_map_begin_zero(map, GRANULE + 7, 9));
    change_map_end_zero(map, GRANULE + 7, 9, true);
    assert_counts(map, 1, 0, 0);
    map_free(map);
}

static void test_distrust(void)
{
    struct change_map *map = map_new(8 * GRANULE, SHIFT);

    change_map_begin_zero(map, 0, GRANULE);
    change_map_end_zero(map, 0, GRANULE, true);
    change_map_cut(map);
    g_assert_false(change_map_distrust_zeroes(map, 2));
    change_map_begin_zero(map, GRANULE, GRANULE);
    change_map_end_zero(map, GRANULE, GRANULE, true);
    change_map_begin_zero(map, 2 * GRANULE, GRANULE);
    assert_counts(map, 0, 3 * GRANULE, 2 * GRANULE);
    g_assert_true(change_map_distrust_zeroes(map, 2));
    assert_counts(map, 0, 3 * GRANULE, GRANULE);
    assert_counts(map, 1, 2 * GRANULE, 0);
    g_assert_cmpuint(change_map_value_at(map, 2), ==, 2); /* ZEROING is nobody's any more */
    map_free(map);
}

/* ---- Requests that overlap, in every order of their steps -------------------------------------
 */

/*
 * A granule that held data. Each request has three steps: begin, the disk, end. After the last one
 * the value must not say ZERO unless the disk is zero, and must be of the epoch if the disk was
 * changed at all. Nobody else has to be right about it before.
 */
enum kind { WRITE, ZERO, FAILED_ZERO, FAILED_WRITE, VAIN_DISCARD, KINDS };

struct machine {
    struct change_map *map;
    bool disk_is_zero, was_changed;
};

static void step(struct machine *machine, enum kind kind, unsigned number)
{
    bool writes = kind == WRITE || kind == FAILED_WRITE;

    if (number == 0 && writes) {
        change_map_begin_write(machine->map, 0, 1);
    } else if (number == 0) {
        change_map_begin_zero(machine->map, 0, GRANULE);
    } else if (number == 1 && writes) {
        machine->disk_is_zero = false; /* in part, if it fails */
        machine->was_changed = true;
    } else if (number == 1 && kind == ZERO) {
        machine->was_changed |= !machine->disk_is_zero;
        machine->disk_is_zero = true;
    } else if (number == 2 && writes) {
        change_map_end_write(machine->map, 0, 1);
    } else if (number == 2) {
        change_map_end_zero(machine->map, 0, GRANULE, kind == ZERO);
    }
}

static unsigned orders;

static void try_orders(const enum kind *kinds, const unsigned *done, unsigned count, char *order,
                       unsigned length, bool begins_zero)
{
    bool is_over = true;

    for (unsigned i = 0; i < count; i++) {
        if (done[i] < 3) {
            unsigned next[4];

            memcpy(next, done, count * sizeof(*next));
            next[i]++;
            order[length] = (char)i;
            try_orders(kinds, next, count, order, length + 1, begins_zero);
            is_over = false;
        }
    }
    if (!is_over) {
        return;
    }
    struct machine machine = {.map = map_new(GRANULE, SHIFT)};
    unsigned steps[4] = {0};
    change_map_begin_zero(machine.map, 0, GRANULE);
    change_map_end_zero(machine.map, 0, GRANULE, begins_zero);
    machine.disk_is_zero = begins_zero;
    change_map_cut(machine.map);
    for (unsigned i = 0; i < length; i++) {
        unsigned who = (unsigned)order[i];

        step(&machine, kinds[who], steps[who]++);
        /* At any time, for who looks after a crash: the change is there, if not what it is. */
        g_assert_true(!machine.was_changed || change_map_epoch_at(machine.map, 0) == 2);
    }
    if (change_map_value_at(machine.map, 0) & CHANGE_MAP_ZERO) {
        g_assert_true(machine.disk_is_zero);
    }
    map_free(machine.map);
    orders++;
}

static void test_orders(void)
{
    char order[16];
    unsigned done[3] = {0};

    for (unsigned bits = 0; bits < KINDS * KINDS * KINDS * 2; bits++) {
        enum kind kinds[] = {(enum kind)(bits % KINDS), (enum kind)(bits / KINDS % KINDS),
                             (enum kind)(bits / KINDS / KINDS % KINDS)};

        if (kinds[0] <= kinds[1] && kinds[1] <= kinds[2]) {
            try_orders(kinds, done, 3, order, 0, bits >= KINDS * KINDS * KINDS);
        }
    }
    g_test_message("%u orders", orders);
}

static void test_alone_is_zero(void)
{
    enum kind kinds[] = {ZERO};
    struct machine machine = {.map = map_new(GRANULE, SHIFT)};

    for (unsigned i = 0; i < 3; i++) {
        step(&machine, kinds[0], i);
        g_assert_cmpint((change_map_value_at(machine.map, 0) & CHANGE_MAP_ZERO) != 0, ==, i == 2);
    }
    map_free(machine.map);
}

/* ---- What changed, against a list -------------------------------------------------------------
 */

struct model {
    struct change_map *map;
    uint16_t *epochs;
    bool *zero;
    uint64_t granule;
};

static void model_request(struct model *model, uint64_t offset, uint64_t bytes, bool is_zero)
{
    uint64_t length = model->map->length, end = offset + bytes;

    for (uint64_t i = offset / model->granule; i * model->granule < end; i++) {
        bool is_whole =
            offset <= i * model->granule && MIN_OF((i + 1) * model->granule, length) <= end;

        if (is_zero && model->zero[i]) {
            continue;
        }
        model->epochs[i] = atomic_load(&model->map->epoch);
        model->zero[i] = is_zero && is_whole;
    }
}

static void model_compare(const struct model *model, uint16_t since, uint64_t from, uint64_t end)
{
    uint64_t at = from, start = 0, bytes = 0;
    enum change_state state = CHANGE_DATA;
    bool found = change_map_next(model->map, since, at, end, &start, &bytes, &state);

    end = MIN_OF(end, model->map->length);
    while (at < end) {
        uint64_t i = at / model->granule, next = MIN_OF((i + 1) * model->granule, end);
        bool is_changed = model->epochs[i] > since;

        g_assert_cmpint(found && at >= start, ==, is_changed);
        if (is_changed) {
            g_assert_cmpint(state == CHANGE_ZERO, ==, model->zero[i]);
            g_assert_cmpuint(start + bytes, >=, next);
        }
        at = next;
        if (found && at >= start + bytes) {
            /* Ranges are as long as can be. */
            found = change_map_next(model->map, since, at, end, &start, &bytes, &state);
        }
    }
    g_assert_false(found);
}

static void test_model(void)
{
    struct test_random random = test_random_new(test_seed());
    unsigned long cases = test_cases(400);

    for (unsigned long c = 0; c < cases; c++) {
        unsigned shift = 12 + (unsigned)test_random_below(&random, 6);
        uint64_t granules = test_random_chance(&random, 50)
                                ? test_random_between(&random, 1, 40)
                                : test_random_between(&random, 4000, 20000);
        uint64_t length = (granules << shift) - test_random_below(&random, UINT64_C(1) << shift);
        struct model model = {
            .map = map_new(length, shift),
            .epochs = g_new0(uint16_t, granules),
            .zero = g_new0(bool, granules),
            .granule = UINT64_C(1) << shift,
        };

        for (unsigned i = 0; i < 60; i++) {
            uint64_t bytes = test_random_between(
                &random, 1,
                MIN_OF(length, test_random_chance(&random, 80) ? model.granule * 3 : length));
            uint64_t offset = test_random_below(&random, length - bytes + 1);
            bool is_zero = test_random_chance(&random, 40);

            if (test_random_chance(&random, 10)) {
                change_map_cut(model.map);
            }
            if (is_zero) {
                change_map_begin_zero(model.map, offset, bytes);
                change_map_end_zero(model.map, offset, bytes, true);
            } else {
                change_map_begin_write(model.map, offset, bytes);
                change_map_end_write(model.map, offset, bytes);
            }
            model_request(&model, offset, bytes, is_zero);
        }
        for (unsigned i = 0; i < 4; i++) {
            uint16_t epoch = atomic_load(&model.map->epoch);
            uint64_t from = test_random_below(&random, length);

            model_compare(&model, (uint16_t)test_random_below(&random, epoch + 1u), from,
                          test_random_between(&random, from, length + 1));
            model_compare(&model, (uint16_t)test_random_below(&random, epoch + 1u), 0, length);
        }
        /* Who opens the values anew finds the same. */
        struct change_map *first = model.map, second;
        g_assert_cmpint(change_map_init(&second, first->values, length, shift), ==, 0);
        model.map = &second;
        model_compare(&model, (uint16_t)test_random_below(&random, 5), 0, length);
        change_map_destroy(&second);
        map_free(first);
        g_free(model.epochs);
        g_free(model.zero);
    }
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    g_test_add_func("/change-map/writes-are-found-since-each-cut-before-them", test_writes);
    g_test_add_func("/change-map/a-short-last-granule-counts-with-its-bytes", test_short_granule);
    g_test_add_func("/change-map/only-whole-granules-are-zero-and-zeroing-them-is-no-change",
                    test_parts);
    g_test_add_func("/change-map/the-zeroes-of-one-epoch-can-be-distrusted", test_distrust);
    g_test_add_func("/change-map/a-zero-request-alone-makes-zeroes", test_alone_is_zero);
    g_test_add_func("/change-map/no-order-of-three-requests-leaves-a-false-zero", test_orders);
    g_test_add_func("/change-map/what-changed-is-what-a-list-says", test_model);
    return g_test_run();
}
