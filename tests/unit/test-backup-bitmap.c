/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A user's bitmap in a backup: what is copied, and what it says afterwards, however the backup
 * ended. No bit is ever lost.
 */
#include <errno.h>
#include <string.h>

#include "block/align.h"
#include "block/drain.h"
#include "block/main-loop.h"
#include "tests/lib/bitmap-rig.h"

#define GRANULE (64 * KIB)
#define LENGTH  (16 * GRANULE)

/* ---- States ---------------------------------------------------------------------------------- */

static struct dirty_bitmap *new_bitmap(void)
{
    struct dirty_bitmap *bitmap = dirty_bitmap_new("b", LENGTH, GRANULE, NULL);

    g_assert_nonnull(bitmap);
    return bitmap;
}

static void test_freeze_and_thaw(void)
{
    for (int enabled = 0; enabled < 2; enabled++) {
        AUTO(dirty_bitmap) bitmap = new_bitmap();

        dirty_bitmap_set_enabled(bitmap, enabled);
        AUTO(dirty_bitmap) successor = dirty_bitmap_freeze(bitmap, NULL);
        g_assert_true(dirty_bitmap_is_busy(bitmap));
        g_assert_false(dirty_bitmap_enabled(bitmap));
        g_assert_cmpint(dirty_bitmap_is_recording(bitmap), ==, enabled);
        g_assert_cmpint(dirty_bitmap_enabled(successor), ==, enabled);
        g_assert_true(dirty_bitmap_is_successor(successor));
        g_assert_false(dirty_bitmap_is_successor(bitmap));
        g_assert_null(dirty_bitmap_name(successor));
        dirty_bitmap_thaw(bitmap, successor);
        g_assert_false(dirty_bitmap_is_busy(bitmap));
        g_assert_cmpint(dirty_bitmap_enabled(bitmap), ==, enabled);
    }
}

static void test_succeed(void)
{
    AUTO(dirty_bitmap) bitmap = new_bitmap();

    dirty_bitmap_set_persistent(bitmap, true);
    dirty_bitmap_hold(bitmap); /* somebody else, too */
    AUTO(dirty_bitmap) successor = dirty_bitmap_freeze(bitmap, NULL);
    dirty_bitmap_let_go(bitmap);
    dirty_bitmap_succeed(bitmap, successor);
    g_assert_cmpstr(dirty_bitmap_name(successor), ==, "b");
    g_assert_null(dirty_bitmap_name(bitmap));
    g_assert_true(dirty_bitmap_is_persistent(successor));
    g_assert_true(dirty_bitmap_enabled(successor));
    g_assert_false(dirty_bitmap_is_successor(successor));
    g_assert_false(dirty_bitmap_is_busy(successor));
}

/* ---- How it can end -------------------------------------------------------------------------- */

/*
 * Granules 0, 2 and 5 are dirty at the moment; then a guest writes 7 and again 2. One worker copies
 * them in order.
 */
enum end {
    SUCCESS,
    WRITE_FAILS,   /* that of 5 */
    CANCELLED,     /* when 5 has failed and the job waits */
    FLUSH_FAILS,   /* all is copied */
    LOST,          /* as WRITE_FAILS, and then nothing of the target can be flushed */
    SIBLING_FAILS, /* another job of the transaction, when ours is done */
    NEVER_RAN,     /* cancelled before it is started */
    READ_FAILS,    /* of 0: nothing is copied */
    ROLLED_BACK,
    END_COUNT,
};

static const char *const end_names[END_COUNT] = {
    "success",       "write-fails", "cancelled",  "flush-fails", "target-lost",
    "sibling-fails", "never-ran",   "read-fails", "rolled-back",
};

#define ALL "0 2 5 7"
#define NEW "2 7"

/* What is dirty afterwards, with a bitmap that records; by mode as in enum backup_bitmap_mode. */
static const char *const expected[END_COUNT][3] = {
    [SUCCESS] = {NEW, ALL, NEW},       [WRITE_FAILS] = {ALL, ALL, "2 5 7"},
    [CANCELLED] = {ALL, ALL, "2 5 7"}, [FLUSH_FAILS] = {ALL, ALL, ALL},
    [LOST] = {ALL, ALL, ALL},          [SIBLING_FAILS] = {ALL, ALL, NEW},
    [NEVER_RAN] = {ALL, ALL, ALL},     [READ_FAILS] = {ALL, ALL, ALL},
    [ROLLED_BACK] = {ALL, ALL, ALL},
};

/* The same if it does not record. */
static const char *const expected_disabled[END_COUNT][3] = {
    [SUCCESS] = {"", "0 2 5", ""},
    [WRITE_FAILS] = {"0 2 5", "0 2 5", "5"},
    [CANCELLED] = {"0 2 5", "0 2 5", "5"},
    [FLUSH_FAILS] = {"0 2 5", "0 2 5", "0 2 5"},
    [LOST] = {"0 2 5", "0 2 5", "0 2 5"},
    [SIBLING_FAILS] = {"0 2 5", "0 2 5", ""},
    [NEVER_RAN] = {"0 2 5", "0 2 5", "0 2 5"},
    [READ_FAILS] = {"0 2 5", "0 2 5", "0 2 5"},
    [ROLLED_BACK] = {"0 2 5", "0 2 5", "0 2 5"},
};

static void write_granule(struct rig *rig, unsigned number)
{
    g_assert_cmpint(rig_pwrite(rig, 1, number * GRANULE + 512, 512), ==, 0);
}

static struct rig *new_rig(uint64_t granularity)
{
    struct rig *rig = rig_new(LENGTH, 1);

    rig_fill(rig);
    rig_add_bitmap(rig, granularity);
    return rig;
}

static void make_dirty(struct rig *rig)
{
    write_granule(rig, 0);
    write_granule(rig, 2);
    write_granule(rig, 5);
}

static void expect_bits(struct dirty_bitmap *bitmap, const char *bits)
{
    g_autofree char *found = rig_dirty(bitmap, GRANULE);

    g_assert_cmpstr(found, ==, bits);
}

static struct backup_options bitmap_options(struct rig *rig, struct block_node *target)
{
    struct backup_options options = rig_options(rig, "b", target);

    options.sync = BACKUP_SYNC_BITMAP;
    options.max_workers = 1;
    options.max_chunk = GRANULE;
    return options;
}

static void arm(struct rig *rig, struct block_node *target, enum end end)
{
    if (end == WRITE_FAILS || end == CANCELLED || end == LOST) {
        FAULT(target, .operations = FAULT_ON_CHANGES, .offset = 5 * GRANULE, .bytes = GRANULE,
              .error_number = EIO);
    }
    if (end == FLUSH_FAILS || end == LOST) {
        FAULT(target, .operations = FAULT_ON(FLUSH), .error_number = EIO);
    }
    if (end == READ_FAILS) {
        FAULT(rig->source, .operations = FAULT_ON(READ), .bytes = GRANULE, .error_number = EIO);
    }
}

/* Another job that is held until it is told to fail. */
struct sibling {
    struct job *job;
    struct block_node *target;
};

static struct sibling begin_sibling(struct rig *rig, struct job_transaction *transaction)
{
    struct sibling sibling = {.target = rig_target(rig, "other", false)};
    struct backup_options options = rig_options(rig, "sibling", sibling.target);
    g_autoptr(GError) error = NULL;

    options.transaction = transaction;
    FAULT(sibling.target, .operations = FAULT_ON_CHANGES, .hold = true, .error_number = EIO);
    sibling.job = backup_new(&options, &error);
    g_assert_no_error(error);
    return sibling;
}

static void activate(void *data)
{
    backup_activate(data);
}

static void start(struct job *job)
{
    g_autoptr(GError) error = NULL;

    job_start(job, &error);
    g_assert_no_error(error);
}

static void end_sibling(struct sibling *sibling)
{
    if (sibling->job) {
        g_autofree char *message = rig_end(sibling->job);

        g_assert_nonnull(message);
        rig_assert_unused(sibling->target);
    }
}

/* Until it is over, apart from its report. */
static void run_to_end(struct rig *rig, struct job *job, struct sibling *sibling, enum end end)
{
    if (end == NEVER_RAN) {
        g_assert_cmpint(job_cancel(job, true, false, NULL), ==, 0);
    }
    start(job);
    if (end == CANCELLED) {
        rig_wait_status(job, JOB_STATUS_PAUSED);
        g_assert_cmpint(job_cancel(job, true, true, NULL), ==, 0);
    }
    if (end == SIBLING_FAILS) {
        rig_wait_status(job, JOB_STATUS_WAITING);
        expect_bits(rig_bitmap(rig), "0 2 5");
        fault_wait_held(sibling->target, 1);
        g_assert_cmpint(job_cancel(sibling->job, true, true, NULL), ==, 0);
        fault_clear(sibling->target); /* not before: it might end well */
    }
}

static void check_frozen(struct rig *rig, bool enabled)
{
    struct dirty_bitmap *bitmap = rig_bitmap(rig);

    expect_bits(bitmap, "0 2 5");
    expect_bits(rig_successor(rig), enabled ? NEW : "");
    g_assert_true(dirty_bitmap_is_busy(bitmap));
    g_assert_cmpint(dirty_bitmap_is_recording(bitmap), ==, enabled);
}

static void end_one_way(enum end end, enum backup_bitmap_mode mode, bool enabled)
{
    struct rig *rig = new_rig(GRANULE);
    struct block_node *target = rig_target(rig, "target", true);
    struct backup_options options = bitmap_options(rig, target);
    AUTO(job_transaction) transaction = job_transaction_new(true);
    struct sibling sibling = {NULL};
    AUTO(model) snapshot = NULL;

    options.bitmap_mode = mode;
    options.transaction = transaction;
    options.on_target_error =
        end == CANCELLED ? BLOCK_ERROR_POLICY_STOP : BLOCK_ERROR_POLICY_REPORT;
    if (end == SIBLING_FAILS) {
        sibling = begin_sibling(rig, transaction);
    }
    make_dirty(rig);
    dirty_bitmap_set_enabled(rig_bitmap(rig), enabled);
    arm(rig, target, end);
    struct job *job = rig_begin_with_bitmap(rig, &options, &snapshot);
    if (sibling.job) {
        AUTO(block_drain) drain = block_drain_begin(&rig->source, 1, BLOCK_PERM_WRITE);
        main_loop_call_wait(activate, sibling.job);
    }
    write_granule(rig, 7);
    g_assert_cmpint(rig_pwrite(rig, 1, 2 * GRANULE + 8192, 512), ==, 0);
    check_frozen(rig, enabled);
    if (sibling.job) {
        start(sibling.job);
    }
    if (end == ROLLED_BACK) {
        job_roll_back(job);
        job_unref(job);
    } else {
        run_to_end(rig, job, &sibling, end);
        g_autofree char *message = rig_end(job);
        g_assert_cmpint(message == NULL, ==, end == SUCCESS);
    }
    end_sibling(&sibling);
    fault_clear(target);
    fault_clear(rig->source);

    struct dirty_bitmap *bitmap = rig_bitmap(rig);
    expect_bits(bitmap, (enabled ? expected : expected_disabled)[end][mode]);
    g_assert_false(dirty_bitmap_is_busy(bitmap));
    g_assert_false(dirty_bitmap_is_successor(bitmap));
    g_assert_cmpint(dirty_bitmap_enabled(bitmap), ==, enabled);
    g_assert_cmpint(dirty_bitmap_is_recording(bitmap), ==, enabled);
    rig_remove_bitmap(rig);
    rig_assert_unused(target);
    rig_free(rig);
}

static void test_end(gconstpointer data)
{
    enum end end = (enum end)GPOINTER_TO_INT(data);

    for (int mode = 0; backup_bitmap_mode_names[mode]; mode++) {
        end_one_way(end, (enum backup_bitmap_mode)mode, true);
        end_one_way(end, (enum backup_bitmap_mode)mode, false);
    }
}

/* A target that never answers keeps a cancelled job from knowing what is there: all bits stay. */
static void test_hanging_target(void)
{
    struct rig *rig = new_rig(GRANULE);
    struct block_node *target = rig_target(rig, "target", true);
    struct backup_options options = bitmap_options(rig, target);

    options.bitmap_mode = BACKUP_BITMAP_ALWAYS;
    make_dirty(rig);
    FAULT(target, .operations = FAULT_ON_CHANGES, .offset = 5 * GRANULE, .bytes = GRANULE,
          .hold = true);
    struct job *job = rig_begin_with_bitmap(rig, &options, NULL);
    write_granule(rig, 7);
    start(job);
    fault_wait_held(target, 1);
    g_assert_cmpint(job_cancel(job, true, true, NULL), ==, 0);
    g_autofree char *message = rig_end(job);
    g_assert_cmpstr(message, ==, g_strerror(ECANCELED));
    expect_bits(rig_bitmap(rig), "0 2 5 7");
    fault_clear(target);
    rig_remove_bitmap(rig);
    rig_assert_unused(target);
    rig_free(rig);
}

/* ---- Sync full ------------------------------------------------------------------------------- */

/* What the bitmap said before does not matter: everything is to be copied. */
static void test_full(void)
{
    static const char *const bits[] = {
        [SUCCESS] = NEW, [WRITE_FAILS] = "2 5 6 7 8 9 10 11 12 13 14 15"};

    for (enum end end = SUCCESS; end <= WRITE_FAILS; end++) {
        struct rig *rig = new_rig(GRANULE);
        struct block_node *target = rig_target(rig, "target", true);
        struct backup_options options = bitmap_options(rig, target);
        AUTO(model) snapshot = NULL;

        options.sync = BACKUP_SYNC_FULL;
        options.bitmap_mode = BACKUP_BITMAP_ALWAYS;
        make_dirty(rig);
        arm(rig, target, end);
        struct job *job = rig_begin_with_bitmap(rig, &options, &snapshot);
        write_granule(rig, 7);
        write_granule(rig, 2);
        start(job);
        g_autofree char *message = rig_end(job);
        fault_clear(target);
        if (end == SUCCESS) {
            g_assert_cmpstr(message, ==, NULL);
            rig_assert_equal(snapshot, target);
        }
        expect_bits(rig_bitmap(rig), bits[end]);
        rig_remove_bitmap(rig);
        rig_assert_unused(target);
        rig_free(rig);
    }
}

/* ---- What is copied -------------------------------------------------------------------------- */

/* The target is the disk of before; the bitmap's granules are smaller and larger than pages. */
static void test_only_changes_are_copied(gconstpointer data)
{
    uint64_t granularity = GPOINTER_TO_SIZE(data);
    struct rig *rig = new_rig(granularity);
    struct block_node *target = rig_target(rig, "target", false);
    struct backup_options options = bitmap_options(rig, target);
    uint64_t unit = MAX_OF(granularity, 4 * KIB);
    g_autofree char *before = rig_contents(rig->source);
    AUTO(model) snapshot = NULL;
    struct job_info info;

    g_assert_cmpint(block_node_pwrite(target, before, 0, LENGTH, 0), ==, 0);
    make_dirty(rig);
    struct job *job = rig_begin_with_bitmap(rig, &options, &snapshot);
    job_get_info(job, &info);
    g_assert_cmpuint(info.total_progress, ==, 3 * granularity);
    job_info_clear(&info);
    uint64_t written = fault_bytes(target, FAULT_ON_CHANGES);
    start(job);
    rig_wait_status(job, JOB_STATUS_CONCLUDED);
    job_get_info(job, &info);
    g_assert_cmpuint(info.total_progress, ==, 3 * unit);
    job_info_clear(&info);
    g_autofree char *message = rig_end(job);
    g_assert_cmpstr(message, ==, NULL);
    g_assert_cmpuint(fault_bytes(target, FAULT_ON_CHANGES) - written, ==, 3 * unit);
    rig_assert_equal(snapshot, target);
    rig_remove_bitmap(rig);
    rig_assert_unused(target);
    rig_free(rig);
}

/* When it is known what is to be copied, guests need not read before they write elsewhere. */
static void test_guests_save_only_that(void)
{
    struct rig *rig = new_rig(GRANULE);
    struct block_node *target = rig_target(rig, "target", false);
    struct backup_options options = bitmap_options(rig, target);

    make_dirty(rig);
    FAULT(target, .operations = FAULT_ON_CHANGES, .hold = true);
    struct job *job = rig_begin_with_bitmap(rig, &options, NULL);
    start(job);
    fault_wait_held(target, 1);
    uint64_t read = fault_bytes(rig->source, FAULT_ON(READ));
    write_granule(rig, 7);
    g_assert_cmpuint(fault_bytes(rig->source, FAULT_ON(READ)), ==, read);
    write_granule(rig, 5);
    g_assert_cmpuint(fault_bytes(rig->source, FAULT_ON(READ)), >, read);
    fault_clear(target);
    g_autofree char *message = rig_end(job);
    g_assert_cmpstr(message, ==, NULL);
    expect_bits(rig_bitmap(rig), "5 7");
    rig_remove_bitmap(rig);
    rig_assert_unused(target);
    rig_free(rig);
}

static void test_nothing_to_copy(void)
{
    struct rig *rig = new_rig(GRANULE);
    struct block_node *target = rig_target(rig, "target", false);
    struct backup_options options = bitmap_options(rig, target);

    dirty_bitmap_clear(rig_bitmap(rig));
    struct job *job = rig_begin_with_bitmap(rig, &options, NULL);
    start(job);
    g_autofree char *message = rig_end(job);
    g_assert_cmpstr(message, ==, NULL);
    g_assert_cmpuint(fault_bytes(target, FAULT_ON_CHANGES), ==, 0);
    rig_remove_bitmap(rig);
    rig_assert_unused(target);
    rig_free(rig);
}

static void give_back(void *data)
{
    backup_give_back_bitmap(data);
}

/* A transaction takes it back in the same drained section. */
static void test_given_back(void)
{
    struct rig *rig = new_rig(GRANULE);
    struct block_node *target = rig_target(rig, "target", false);
    struct backup_options options = bitmap_options(rig, target);

    dirty_bitmap_clear(rig_bitmap(rig));
    make_dirty(rig);
    struct job *job = rig_begin_with_bitmap(rig, &options, NULL);
    {
        AUTO(block_drain) drain = block_drain_begin(&rig->source, 1, BLOCK_PERM_WRITE);
        main_loop_call_wait(give_back, job);
    }
    g_assert_false(dirty_bitmap_is_busy(rig_bitmap(rig)));
    job_roll_back(job);
    job_unref(job);
    write_granule(rig, 7);
    expect_bits(rig_bitmap(rig), "0 2 5 7");
    rig_remove_bitmap(rig);
    rig_assert_unused(target);
    rig_free(rig);
}

static void add_tests(void)
{
    g_test_add_func("/backup-bitmap/frozen-it-is-busy-and-thawed-as-before", test_freeze_and_thaw);
    g_test_add_func("/backup-bitmap/its-successor-takes-name-and-persistence", test_succeed);
    for (int end = 0; end < END_COUNT; end++) {
        g_autofree char *name = g_strconcat("/backup-bitmap/no-bit-is-lost/", end_names[end], NULL);
        g_test_add_data_func(name, GINT_TO_POINTER(end), test_end);
    }
    g_test_add_func("/backup-bitmap/no-bit-is-lost/target-hangs", test_hanging_target);
    g_test_add_func("/backup-bitmap/after-a-full-backup-it-says-what-changed-since", test_full);
    g_test_add_data_func("/backup-bitmap/only-changes-are-copied/512", GSIZE_TO_POINTER(512),
                         test_only_changes_are_copied);
    g_test_add_data_func("/backup-bitmap/only-changes-are-copied/64K", GSIZE_TO_POINTER(64 * KIB),
                         test_only_changes_are_copied);
    g_test_add_func("/backup-bitmap/guests-save-only-what-is-copied", test_guests_save_only_that);
    g_test_add_func("/backup-bitmap/nothing-changed-nothing-copied", test_nothing_to_copy);
    g_test_add_func("/backup-bitmap/what-is-given-back-is-as-before", test_given_back);
}

int main(int argc, char **argv)
{
    return rig_main(argc, argv, add_tests);
}
