/* SPDX-License-Identifier: BSD-3-Clause */
/* How mirrors end: pivots and copies under guests' writes, and the time between the two steps. */
#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/drain.h"
#include "jobs/mirror.h"
#include "tests/lib/disk.h"
#include "tests/lib/mirror-rig.h"

#define WRITERS 8
#define LENGTH  (4 * MIB)

/* A full disk with a ready mirror of it, to be finalized by hand or not. */
static struct job *start(struct rig **rig, struct block_node **target, unsigned flags)
{
    *rig = rig_new(LENGTH, 1);
    rig_fill(*rig);
    *target = rig_target(*rig, "target", true);
    struct mirror_options options = rig_mirror_options(*rig, "job0", *target);

    options.job_flags |= flags;
    return rig_ready_mirror(&options);
}

static void wait_pending(struct job *job)
{
    g_assert_cmpint(rig_wait_status(job, JOB_STATUS_PENDING), ==, JOB_STATUS_PENDING);
}

/* The writers go on on the target, what they wrote is there, and the old root stands still. */
static void check_pivot(struct rig *rig, struct block_node *target)
{
    struct block_node *old = rig_follow(rig, target);
    g_autofree char *contents = rig_contents(old);

    rig_wait_requests(rig, 20 * WRITERS);
    rig_stop(rig);
    g_assert_cmpuint(atomic_load(&rig->failed), ==, 0);
    rig_assert_equal(rig->model, target);
    rig_assert_contents(old, contents);
    rig_assert_unused(old);
    rig_free(rig);
}

static void test_pivot(void)
{
    struct block_node *target;
    struct rig *rig;
    struct job *job = start(&rig, &target, 0);

    rig_write(rig, WRITERS);
    rig_wait_requests(rig, 20 * WRITERS);
    rig_complete(job);
    rig_end_well(job);
    check_pivot(rig, target);
}

/* A limit under which the last bytes would take days does not hold where guests stand still. */
static void test_rate_limit(void)
{
    struct block_node *target;
    struct rig *rig;
    struct job *job = start(&rig, &target, 0);

    g_assert_cmpint(job_set_speed(job, 1, NULL), ==, 0);
    g_assert_cmpint(rig_pwrite(rig, 1, MIB, MIB / 2), ==, 0);
    rig_complete(job);
    rig_end_well(job);
    rig_write(rig, WRITERS);
    check_pivot(rig, target);
}

/* ---- PENDING --------------------------------------------------------------------------------- */

/* Between PENDING and the pivot guests write, and connect: nothing is held, nothing is lost. */
static void test_pending(void)
{
    struct block_node *target;
    struct rig *rig;
    struct job *job = start(&rig, &target, JOB_MANUAL_FINALIZE);

    rig_complete(job);
    wait_pending(job);
    g_assert_cmpint(rig_pwrite(rig, 1, 0, MIB), ==, 0);
    rig_write(rig, WRITERS);
    rig_wait_requests(rig, 50 * WRITERS);
    g_assert_cmpint(job_finalize(job, NULL), ==, 0);
    rig_end_well(job);
    check_pivot(rig, target);
}

static void test_pending_soft_cancel(void)
{
    struct block_node *target;
    struct rig *rig;
    struct job *job = start(&rig, &target, JOB_MANUAL_FINALIZE);

    rig_cancel_softly(job);
    wait_pending(job);
    rig_write(rig, WRITERS);
    rig_wait_requests(rig, 50 * WRITERS);
    rig_stop(rig);
    g_assert_cmpint(job_finalize(job, NULL), ==, 0);
    rig_end_well(job);
    rig_assert_equal(rig->model, target);
    rig_assert_source_quiet(rig);
    rig_assert_unused(target);
    rig_free(rig);
}

static void test_pending_cancel(void)
{
    struct block_node *target;
    struct rig *rig;
    struct job *job = start(&rig, &target, JOB_MANUAL_FINALIZE);

    rig_complete(job);
    wait_pending(job);
    rig_write(rig, WRITERS);
    g_assert_cmpint(job_cancel(job, false, true, NULL), ==, 0);
    rig_end_badly(job, g_strerror(ECANCELED));
    rig_assert_source_quiet(rig);
    rig_assert_unused(target);
    rig_wait_requests(rig, 20 * WRITERS);
    rig_free(rig);
}

/* ---- Whose root it is ------------------------------------------------------------------------ */

/* Cancelled after it was told to complete: the disks stay where they are. */
static void test_changed_mind(void)
{
    struct block_node *target;
    struct rig *rig;
    struct job *job = start(&rig, &target, 0);

    g_assert_cmpint(job_user_pause(job, NULL), ==, 0);
    rig_complete(job);
    g_assert_cmpint(job_user_resume(job, NULL), ==, 0);
    if (job_cancel(job, false, true, NULL) == 0) {
        rig_wait_status(job, JOB_STATUS_CONCLUDED);
        g_free(rig_end(job)); /* done softly, or too late for that and by force */
        rig_assert_source_quiet(rig);
        rig_assert_unused(target);
    } else {
        rig_end_well(job);
        rig_assert_unused(rig_follow(rig, target));
    }
    rig_free(rig);
}

static struct block_node *open_target(void *data, GError **error)
{
    struct rig *rig = data;

    return rig_target(rig, "named", true);
}

static bool node_exists(const char *name)
{
    AUTO(block_node) node = block_node_find(name);

    return node;
}

/*
 * A target that the job opened lives on as the device's root and ends with it; an old root that
 * nobody named ends at once.
 */
static void test_opened_target(void)
{
    struct rig *rig = rig_new(LENGTH, 1);
    struct mirror_options options = rig_mirror_options(rig, "job0", NULL);
    struct mirror_options back = rig_mirror_options(rig, "job1", rig->source);

    rig_fill(rig);
    options.open_target = open_target;
    options.open_target_data = rig;
    struct job *job = rig_ready_mirror(&options);
    rig_complete(job);
    rig_end_well(job);
    AUTO(block_node) named = block_node_find("named");
    g_assert_nonnull(named);
    struct block_node *source = rig_follow(rig, named);

    back.source = named;
    job = rig_ready_mirror(&back);
    rig_complete(job);
    rig_end_well(job);
    rig_follow(rig, source);
    block_node_unref(STEAL(named));
    g_assert_false(node_exists("named"));
    rig_free(rig);
}

/* The job's target is refused after it was opened: nobody holds it. */
static void test_opened_target_refused(void)
{
    struct rig *rig = rig_new(LENGTH, 1);
    struct mirror_options options = rig_mirror_options(rig, "job0", NULL);

    options.open_target = open_target;
    options.open_target_data = rig;
    rig->length = LENGTH / 2; /* of targets */
    rig_expect_no_mirror(&options, "have different sizes");
    g_assert_false(node_exists("named"));
    rig_free(rig);
}

static void exchange_root(struct rig *rig, struct block_node *root)
{
    struct block_drain *drain = block_drain_begin(&rig->source, 1, BLOCK_PERM_ALL);

    test_set_root(rig->device, root);
    block_drain_end(drain);
}

/* A filter was put above the source: there is no device that could switch, and that is said. */
static void test_filter_in_between(void)
{
    struct block_node *target;
    struct rig *rig;
    struct job *job = start(&rig, &target, 0);
    struct block_node *filter = test_open("driver=fault,node-name=filter,file=source");

    exchange_root(rig, filter);
    rig_write(rig, WRITERS);
    rig_complete(job);
    rig_end_badly(job, "Need a root block node");
    rig_assert_unused(target);
    rig_stop(rig);
    exchange_root(rig, rig->source);
    rig_assert_unused(filter);
    rig_free(rig);
}

/* The guest's device goes while the mirror follows it: the target becomes a copy. */
static void test_device_goes(void)
{
    struct rig *rig = rig_new(LENGTH, 1);
    struct block_node *source = rig_target(rig, "other", true);
    struct block_device *device = block_device_new("vdb", source, NULL);
    struct block_node *target = rig_target(rig, "target", false);
    struct mirror_options options = rig_mirror_options(rig, "job0", target);
    g_autofree char *data = g_strnfill(8192, 'x');

    options.source = source;
    struct job *job = rig_ready_mirror(&options);
    g_assert_cmpint(block_device_pwrite(device, data, MIB, 8192, 0), ==, 0);
    g_assert_cmpint(block_device_remove(device), ==, 0);
    rig_complete(job);
    rig_end_well(job);
    g_autofree char *contents = rig_contents(source);
    g_assert_cmpmem(contents + MIB, 8192, data, 8192);
    rig_assert_contents(target, contents);
    rig_assert_unused(source);
    rig_assert_unused(target);
    rig_free(rig);
}

/* A guest that only reads is switched, too, and still only reads. */
static void test_read_only_guest(void)
{
    struct rig *rig = rig_new(LENGTH, 1);
    g_autofree char *path = test_path(rig->directory, "locked");
    test_make_file(path, LENGTH);
    struct block_node *source =
        test_open("driver=file,node-name=locked,read-only=on,filename=%s", path);
    struct block_device *devices[] = {block_device_new("vdb", source, NULL),
                                      block_device_new("vdc", source, NULL)};
    struct block_node *target = rig_target(rig, "target", true);
    struct mirror_options options = rig_mirror_options(rig, "job0", target);
    char byte = 'x';

    options.source = source;
    struct job *job = rig_ready_mirror(&options);
    rig_complete(job);
    rig_end_well(job);
    rig_assert_unused(source);
    for (size_t i = 0; i < G_N_ELEMENTS(devices); i++) {
        AUTO(block_node) root = block_device_root(devices[i]);

        g_assert_true(root == target);
        g_assert_cmpint(block_device_pread(devices[i], &byte, 0, 1), ==, 0);
        g_assert_cmpint(byte, ==, 0);
        g_assert_cmpint(block_device_pwrite(devices[i], &byte, 0, 1, 0), ==, -EPERM);
    }
    for (size_t i = 0; i < G_N_ELEMENTS(devices); i++) {
        g_assert_cmpint(block_device_remove(devices[i]), ==, 0);
    }
    rig_assert_unused(target);
    rig_free(rig);
}

/* ---- One moment ------------------------------------------------------------------------------ */

#define PAIRS 4

struct pairs {
    struct rig *rig;
    uint64_t here, there; /* offsets */
    pthread_t thread;
};

/* A guest that writes each number here first, and when that was answered, there. */
static void *write_pairs(void *data)
{
    struct pairs *pairs = data;
    struct rig *rig = pairs->rig;

    for (uint64_t number = 1; !atomic_load(&rig->stop); number++) {
        g_assert_cmpint(block_device_pwrite(rig->device, &number, pairs->here, sizeof(number), 0),
                        ==, 0);
        g_assert_cmpint(block_device_pwrite(rig->device, &number, pairs->there, sizeof(number), 0),
                        ==, 0);
    }
    return NULL;
}

static void start_pairs(struct rig *rig, struct pairs *pairs)
{
    for (unsigned i = 0; i < PAIRS; i++) {
        pairs[i] = (struct pairs){
            .rig = rig,
            .here = i * 64 * KIB,
            .there = LENGTH / 2 + (PAIRS - i) * 64 * KIB,
        };
        if (i % 2) {
            uint64_t here = pairs[i].here;

            pairs[i].here = pairs[i].there;
            pairs[i].there = here;
        }
        g_assert_cmpint(pthread_create(&pairs[i].thread, NULL, write_pairs, &pairs[i]), ==, 0);
    }
}

static void check_pair(const char *contents, const struct pairs *pairs)
{
    uint64_t here, there;

    memcpy(&here, contents + pairs->here, sizeof(here));
    memcpy(&there, contents + pairs->there, sizeof(there));
    if (here != there && here != there + 1) {
        g_error("%lu was written before %lu", (unsigned long)there, (unsigned long)here);
    }
}

/* What a soft cancel leaves is the disk of one moment: no write is there without those before. */
static void test_moment(void)
{
    struct rig *rig = rig_new(LENGTH, 1);
    struct pairs pairs[PAIRS];

    start_pairs(rig, pairs);
    /* A mirror takes seconds under ThreadSanitizer, beside guests that never stop. */
    for (unsigned long round = 0; round < MAX_OF(test_cases(30), 6ul); round++) {
        struct block_node *target = rig_target(rig, "target", true);
        struct mirror_options options = rig_mirror_options(rig, "job0", target);
        struct job *job = rig_ready_mirror(&options);

        rig_cancel_softly(job);
        rig_end_well(job);
        g_autofree char *contents = rig_contents(target);
        for (unsigned i = 0; i < PAIRS; i++) {
            check_pair(contents, &pairs[i]);
        }
        rig_assert_unused(target);
    }
    atomic_store(&rig->stop, true);
    for (unsigned i = 0; i < PAIRS; i++) {
        pthread_join(pairs[i].thread, NULL);
    }
    rig_fill(rig);
    rig_free(rig);
}

static void add_tests(void)
{
    g_test_add_func("/mirror/pivot/guests-go-on-and-the-old-root-stands-still", test_pivot);
    g_test_add_func("/mirror/pivot/the-last-bytes-know-no-rate-limit", test_rate_limit);
    g_test_add_func("/mirror/pending/loses-no-write", test_pending);
    g_test_add_func("/mirror/pending/a-copy-loses-no-write", test_pending_soft_cancel);
    g_test_add_func("/mirror/pending/cancel-leaves-the-guest-alone", test_pending_cancel);
    g_test_add_func("/mirror/a-cancel-after-complete", test_changed_mind);
    g_test_add_func("/mirror/pivot/an-opened-target-lives-as-long-as-the-device-needs-it",
                    test_opened_target);
    g_test_add_func("/mirror/an-opened-target-that-is-refused-is-closed",
                    test_opened_target_refused);
    g_test_add_func("/mirror/pivot/not-past-a-filter", test_filter_in_between);
    g_test_add_func("/mirror/pivot/a-device-that-went-is-not-missed", test_device_goes);
    g_test_add_func("/mirror/pivot/read-only-guests-stay-so", test_read_only_guest);
    g_test_add_func("/mirror/soft-cancel/is-of-one-moment", test_moment);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
