/* SPDX-License-Identifier: BSD-3-Clause */
#include <errno.h>
#include <glib.h>
#include <glib/gstdio.h>
#include <string.h>

#include "block/align.h"
#include "tests/lib/model.h"
#include "tests/lib/random.h"

#define SECTOR 512
#define LENGTH (64 * SECTOR)

/* A model, the disk it is a model of, and what the last comparison said. */
struct fixture {
    struct model *model;
    char *disk;
    struct model_report report;
};

static void set_up(struct fixture *fixture, const void *data)
{
    fixture->model = model_new(LENGTH, SECTOR);
    fixture->disk = g_malloc0(LENGTH);
}

static void tear_down(struct fixture *fixture, const void *data)
{
    model_report_clear(&fixture->report);
    model_free(fixture->model);
    g_free(fixture->disk);
}

static int read_memory(void *data, void *buffer, uint64_t offset, uint64_t bytes)
{
    memcpy(buffer, (const char *)data + offset, bytes);
    return 0;
}

static bool compare(struct fixture *fixture, struct model *model)
{
    model_report_clear(&fixture->report);
    return model_compare(model, read_memory, fixture->disk, &fixture->report);
}

static struct model_request *begin(struct fixture *fixture, enum model_operation operation,
                                   unsigned first_sector, unsigned sectors)
{
    return model_begin(fixture->model, operation, 1, first_sector * SECTOR, sectors * SECTOR);
}

/* What the disk does with a write; sectors counted from the start of the disk. */
static void land(struct fixture *fixture, struct model_request *request, unsigned request_first,
                 unsigned request_sectors, unsigned first, unsigned sectors)
{
    g_autofree char *buffer = g_malloc(request_sectors * SECTOR);

    model_fill(fixture->model, request, buffer);
    memcpy(fixture->disk + first * SECTOR, buffer + (first - request_first) * SECTOR,
           sectors * SECTOR);
}

static void write_sectors(struct fixture *fixture, unsigned first, unsigned sectors)
{
    struct model_request *request = begin(fixture, MODEL_WRITE, first, sectors);

    land(fixture, request, first, sectors, first, sectors);
    model_end(fixture->model, request, 0);
}

static void test_what_was_written(struct fixture *fixture, const void *data)
{
    g_assert_true(compare(fixture, fixture->model));
    write_sectors(fixture, 3, 10);
    write_sectors(fixture, 8, 10);
    g_assert_true(compare(fixture, fixture->model));
    g_assert_cmpuint(fixture->report.sectors, ==, LENGTH / SECTOR);
}

static void test_lost_update(struct fixture *fixture, const void *data)
{
    write_sectors(fixture, 3, 2);
    model_end(fixture->model, begin(fixture, MODEL_WRITE, 4, 1), 0);
    g_assert_false(compare(fixture, fixture->model));
    g_assert_cmpuint(fixture->report.wrong, ==, 1);
    g_assert_cmpuint(fixture->report.verdicts[PATTERN_IS_STALE], ==, 1);
    g_assert_nonnull(strstr(fixture->report.details->str, "sector at 0x800 is stale"));
}

static void test_lost_data(struct fixture *fixture, const void *data)
{
    write_sectors(fixture, 3, 2);
    memset(fixture->disk + 3 * SECTOR, 0, SECTOR);
    g_assert_false(compare(fixture, fixture->model));
    g_assert_cmpuint(fixture->report.verdicts[PATTERN_IS_LOST], ==, 1);
}

static void test_zeroes(struct fixture *fixture, const void *data)
{
    write_sectors(fixture, 0, 4);
    model_end(fixture->model, begin(fixture, MODEL_ZEROES, 1, 2), 0);
    g_assert_false(compare(fixture, fixture->model));
    g_assert_cmpuint(fixture->report.verdicts[PATTERN_IS_STALE], ==, 2);
    memset(fixture->disk + SECTOR, 0, 2 * SECTOR);
    g_assert_true(compare(fixture, fixture->model));
}

static void test_trim(struct fixture *fixture, const void *data)
{
    write_sectors(fixture, 0, 4);
    model_end(fixture->model, begin(fixture, MODEL_TRIM, 0, 2), 0);
    memset(fixture->disk, 0, SECTOR);
    g_assert_true(compare(fixture, fixture->model));
    /* The second sector was seen with its data: it must not become zero by itself later. */
    memset(fixture->disk, 0, 2 * SECTOR);
    g_assert_false(compare(fixture, fixture->model));
    g_assert_cmpuint(fixture->report.verdicts[PATTERN_IS_LOST], ==, 1);
}

static void test_write_after_trim(struct fixture *fixture, const void *data)
{
    model_end(fixture->model, begin(fixture, MODEL_TRIM, 0, 2), 0);
    write_sectors(fixture, 0, 1);
    memset(fixture->disk, 0, SECTOR);
    g_assert_false(compare(fixture, fixture->model));
}

/* Two writes at once: either may be the last, but not the one before both. */
static void overlapping(struct fixture *fixture, unsigned winner, bool expected)
{
    write_sectors(fixture, 0, 1);
    struct model_request *first = begin(fixture, MODEL_WRITE, 0, 1);
    struct model_request *second = begin(fixture, MODEL_WRITE, 0, 1);

    if (winner) {
        land(fixture, winner == 1 ? first : second, 0, 1, 0, 1);
    }
    model_end(fixture->model, first, 0);
    model_end(fixture->model, second, 0);
    g_assert_true(compare(fixture, fixture->model) == expected);
}

static void test_overlapping(struct fixture *fixture, const void *data)
{
    overlapping(fixture, 1, true);
    overlapping(fixture, 2, true);
    overlapping(fixture, 0, false);
}

static void test_chain_of_overlaps(struct fixture *fixture, const void *data)
{
    struct model_request *first = begin(fixture, MODEL_WRITE, 0, 1);
    struct model_request *second = begin(fixture, MODEL_WRITE, 0, 1);

    land(fixture, first, 0, 1, 0, 1);
    model_end(fixture->model, first, 0);
    struct model_request *third = begin(fixture, MODEL_WRITE, 0, 1);
    model_end(fixture->model, second, 0);
    model_end(fixture->model, third, 0);
    /* The second or the third may be there; the first ended before the third began. */
    g_assert_false(compare(fixture, fixture->model));
    g_assert_cmpuint(fixture->report.verdicts[PATTERN_IS_STALE], ==, 1);
}

static void test_failed_write(struct fixture *fixture, const void *data)
{
    struct model_request *request;

    write_sectors(fixture, 0, 4);
    request = begin(fixture, MODEL_WRITE, 0, 4);
    land(fixture, request, 0, 4, 1, 2);
    model_end(fixture->model, request, -EIO);
    g_assert_true(compare(fixture, fixture->model));
}

static void test_read_among_writes(struct fixture *fixture, const void *data)
{
    char buffer[SECTOR] __attribute__((aligned(8)));
    struct model_report report = {0};
    struct model_read *read = model_read_begin(fixture->model, 0, SECTOR);
    struct model_read *late;

    /* Seen by the read, and overwritten before it ends. */
    write_sectors(fixture, 0, 1);
    memcpy(buffer, fixture->disk, SECTOR);
    write_sectors(fixture, 0, 1);
    late = model_read_begin(fixture->model, 0, SECTOR);
    model_read_end(fixture->model, read, buffer, &report);
    g_assert_cmpuint(report.wrong, ==, 0);
    model_read_end(fixture->model, late, buffer, &report);
    g_assert_cmpuint(report.verdicts[PATTERN_IS_STALE], ==, 1);
    model_report_clear(&report);
}

static void test_reads_agree(struct fixture *fixture, const void *data)
{
    struct model_report report = {0};

    model_end(fixture->model, begin(fixture, MODEL_WRITE, 0, 1), -EIO);
    struct model_read *one = model_read_begin(fixture->model, 0, SECTOR);
    struct model_read *other = model_read_begin(fixture->model, 0, SECTOR);
    char *zeroes = g_malloc0(SECTOR);
    char *written = g_malloc(SECTOR);

    pattern_fill(written, SECTOR, SECTOR, &(struct pattern){.sequence = 1, .writer = 1});
    model_read_end(fixture->model, one, zeroes, &report);
    g_assert_cmpuint(report.wrong, ==, 0);
    model_read_end(fixture->model, other, written, &report);
    g_assert_cmpuint(report.verdicts[PATTERN_IS_TOO_NEW], ==, 1);
    model_report_clear(&report);
    g_free(zeroes);
    g_free(written);
}

static void test_snapshot_stands_still(struct fixture *fixture, const void *data)
{
    write_sectors(fixture, 0, 4);
    AUTO(model) snapshot = model_snapshot(fixture->model);

    g_assert_true(compare(fixture, snapshot));
    write_sectors(fixture, 2, 4);
    g_assert_true(compare(fixture, fixture->model));
    g_assert_false(compare(fixture, snapshot));
    g_assert_cmpuint(fixture->report.verdicts[PATTERN_IS_TOO_NEW], ==, 4);
}

static void test_snapshot_of_a_request_in_flight(struct fixture *fixture, const void *data)
{
    g_autofree char *before = NULL;

    write_sectors(fixture, 0, 8);
    struct model_request *request = begin(fixture, MODEL_WRITE, 2, 4);
    AUTO(model) out = model_snapshot(fixture->model);
    AUTO(model) in = model_snapshot(fixture->model);

    before = g_memdup2(fixture->disk, LENGTH);
    g_assert_true(compare(fixture, out));
    land(fixture, request, 2, 4, 2, 4);
    model_end(fixture->model, request, 0);
    g_assert_true(compare(fixture, in));
    /* Each said where the request is; neither may change its mind. */
    g_assert_false(compare(fixture, out));
    memcpy(fixture->disk, before, LENGTH);
    g_assert_false(compare(fixture, in));
    g_assert_cmpuint(fixture->report.verdicts[PATTERN_IS_STALE], ==, 4);
}

static void test_split_request(struct fixture *fixture, const void *data)
{
    write_sectors(fixture, 0, 8);
    struct model_request *request = begin(fixture, MODEL_WRITE, 2, 4);
    AUTO(model) snapshot = model_snapshot(fixture->model);

    land(fixture, request, 2, 4, 2, 1);
    model_end(fixture->model, request, 0);
    g_assert_false(compare(fixture, snapshot));
    g_assert_cmpuint(fixture->report.split, ==, 1);
    g_assert_nonnull(strstr(fixture->report.details->str, "partly in the snapshot"));
}

/* One overlapping another in flight may hide part of it: that is no proof of a split. */
static void test_hidden_is_not_split(struct fixture *fixture, const void *data)
{
    write_sectors(fixture, 0, 8);
    struct model_request *first = begin(fixture, MODEL_WRITE, 0, 4);
    struct model_request *second = begin(fixture, MODEL_WRITE, 2, 4);
    AUTO(model) snapshot = model_snapshot(fixture->model);

    land(fixture, first, 0, 4, 0, 4);
    land(fixture, second, 2, 4, 2, 4);
    model_end(fixture->model, first, 0);
    model_end(fixture->model, second, 0);
    g_assert_true(compare(fixture, snapshot));
}

static int fail_to_read(void *data, void *buffer, uint64_t offset, uint64_t bytes)
{
    return -EIO;
}

static void test_unreadable(struct fixture *fixture, const void *data)
{
    g_assert_false(model_compare(fixture->model, fail_to_read, NULL, &fixture->report));
    g_assert_cmpuint(fixture->report.sectors, ==, 0);
}

static void test_file(struct fixture *fixture, const void *data)
{
    g_autofree char *path = NULL;
    int fd = g_file_open_tmp("liveblk-model-XXXXXX", &path, NULL);

    g_assert_cmpint(fd, >=, 0);
    close(fd);
    write_sectors(fixture, 5, 9);
    g_assert_true(g_file_set_contents(path, fixture->disk, LENGTH, NULL));
    g_assert_true(model_compare_file(fixture->model, path, &fixture->report));
    g_assert_true(g_file_set_contents(path, fixture->disk, LENGTH - SECTOR, NULL));
    model_report_clear(&fixture->report);
    g_assert_false(model_compare_file(fixture->model, path, &fixture->report));
    g_unlink(path);
    model_report_clear(&fixture->report);
    g_assert_false(model_compare_file(fixture->model, path, &fixture->report));
}

/* A disk whose sectors are changed one by one under a lock, and its writers. */
struct shared_disk {
    struct fixture *fixture;
    pthread_mutex_t lock;
};

struct disk_writer {
    struct shared_disk *shared;
    struct test_random random;
    uint32_t number;
    pthread_t thread;
};

static void apply(struct shared_disk *shared, uint64_t offset, const char *buffer, uint64_t bytes)
{
    for (uint64_t done = 0; done < bytes; done += SECTOR) {
        SCOPE_LOCK(&shared->lock);
        if (buffer) {
            memcpy(shared->fixture->disk + offset + done, buffer + done, SECTOR);
        } else {
            memset(shared->fixture->disk + offset + done, 0, SECTOR);
        }
    }
}

static int read_shared(void *data, void *buffer, uint64_t offset, uint64_t bytes)
{
    struct shared_disk *shared = data;

    SCOPE_LOCK(&shared->lock);
    memcpy(buffer, shared->fixture->disk + offset, bytes);
    return 0;
}

static void one_request(struct disk_writer *writer)
{
    struct model *model = writer->shared->fixture->model;
    bool zeroes = test_random_chance(&writer->random, 20);
    g_autofree char *buffer = NULL;
    uint64_t offset, bytes;

    test_random_range(&writer->random, LENGTH, SECTOR, 16 * SECTOR, &offset, &bytes);
    struct model_request *request =
        model_begin(model, zeroes ? MODEL_ZEROES : MODEL_WRITE, writer->number, offset, bytes);
    if (!zeroes) {
        buffer = g_malloc(bytes);
        model_fill(model, request, buffer);
    }
    apply(writer->shared, offset, buffer, bytes);
    model_end(model, request, 0);
}

static void *write_for_a_while(void *data)
{
    for (unsigned i = 0; i < 500; i++) {
        one_request(data);
    }
    return NULL;
}

static void test_many_writers(struct fixture *fixture, const void *data)
{
    struct shared_disk shared = {fixture, PTHREAD_MUTEX_INITIALIZER};
    struct test_random random = test_random_new(test_seed());
    struct disk_writer writers[4];
    bool good = true;

    for (unsigned i = 0; i < G_N_ELEMENTS(writers); i++) {
        writers[i] = (struct disk_writer){&shared, test_random_split(&random), i, 0};
        pthread_create(&writers[i].thread, NULL, write_for_a_while, &writers[i]);
    }
    for (unsigned i = 0; good && i < 20; i++) {
        model_report_clear(&fixture->report);
        good = model_compare(fixture->model, read_shared, &shared, &fixture->report);
    }
    for (unsigned i = 0; i < G_N_ELEMENTS(writers); i++) {
        pthread_join(writers[i].thread, NULL);
    }
    g_assert_cmpstr(fixture->report.details->str, ==, "");
    g_assert_true(compare(fixture, fixture->model));
}

static void test_seed_repeats(struct fixture *fixture, const void *data)
{
    struct test_random one = test_random_new(5), other = test_random_new(5);
    struct test_random child = test_random_split(&one);

    g_assert_cmpuint(test_random_u64(&child), !=, test_random_u64(&one));
    test_random_u64(&other);
    test_random_u64(&other);
    g_assert_cmpuint(test_random_u64(&one), ==, test_random_u64(&other));
    for (unsigned i = 0; i < 1000; i++) {
        uint64_t offset, bytes;

        test_random_range(&one, LENGTH, SECTOR, 2 * (uint64_t)LENGTH, &offset, &bytes);
        g_assert_cmpuint(bytes, >=, SECTOR);
        g_assert_cmpuint(offset + bytes, <=, LENGTH);
        g_assert_true(is_aligned(offset | bytes, SECTOR));
    }
}

static void add(const char *path, void (*test)(struct fixture *fixture, const void *data))
{
    g_test_add_vtable(path, sizeof(struct fixture), NULL, (GTestFixtureFunc)set_up,
                      (GTestFixtureFunc)test, (GTestFixtureFunc)tear_down);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
    add("/model/a-disk-holds-what-was-written-last", test_what_was_written);
    add("/model/an-update-that-never-landed-is-stale", test_lost_update);
    add("/model/data-that-became-zeroes-is-lost", test_lost_data);
    add("/model/zeroes-replace-data", test_zeroes);
    add("/model/a-trimmed-sector-reads-as-zeroes-or-as-before-and-stays-so", test_trim);
    add("/model/a-write-ends-the-doubt-a-trim-left", test_write_after_trim);
    add("/model/of-overlapping-writes-either-may-win-but-nothing-older", test_overlapping);
    add("/model/a-write-that-began-later-beats-one-that-had-ended", test_chain_of_overlaps);
    add("/model/a-failed-write-may-have-landed-in-part", test_failed_write);
    add("/model/a-read-may-show-what-was-there-at-any-moment-of-it", test_read_among_writes);
    add("/model/two-reads-of-a-quiet-sector-must-agree", test_reads_agree);
    add("/model/a-snapshot-does-not-follow-the-disk", test_snapshot_stands_still);
    add("/model/a-request-in-flight-is-in-a-snapshot-or-out-of-it-for-good",
        test_snapshot_of_a_request_in_flight);
    add("/model/a-request-partly-in-a-snapshot-is-reported", test_split_request);
    add("/model/a-request-hidden-by-another-in-flight-is-not-called-split",
        test_hidden_is_not_split);
    add("/model/a-disk-that-cannot-be-read-is-not-equal", test_unreadable);
    add("/model/a-file-is-compared-with-its-length", test_file);
    add("/model/many-writers-of-one-honest-disk-are-never-accused", test_many_writers);
    add("/random/a-seed-repeats-its-numbers", test_seed_repeats);
    return g_test_run();
}
