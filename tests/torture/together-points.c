/* SPDX-License-Identifier: BSD-3-Clause */
/* Views and backups of disks that move meanwhile, compared with the models of their moments. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "block/align.h"
#include "block/clock.h"
#include "server/commands-backup.h"
#include "server/commands-views.h"
#include "server/transaction.h"
#include "server/views.h"
#include "tests/torture/together.h"

#define READ_MAX (300 * KIB)
#define UNIT     (4 * KIB)

_Atomic unsigned good_backups, failed_backups, retries;
_Atomic unsigned whole_views, broken_views, good_reads, bad_reads;

/* What jobs may fail with when faults, limits and cancels are about. */
static const char *const known_failures[] = {
    "Operation canceled",
    "Could not write target node",
    "Could not read source node",
    "Could not flush target node",
    "Could not save what a write overwrites",
    "scratch",
    "The memory for old data is full",
};

bool is_known_failure(const char *message)
{
    for (size_t i = 0; i < G_N_ELEMENTS(known_failures); i++) {
        if (strstr(message, known_failures[i])) {
            return true;
        }
    }
    return false;
}

enum block_error_policy choose_policy(struct test_random *random)
{
    return (enum block_error_policy)test_random_below(random, BLOCK_ERROR_POLICY_ENOSPC + 1);
}

void cause_faults(struct block_node *node, struct test_random *random, unsigned operations)
{
    if (with_faults && test_random_chance(random, 40)) {
        FAULT(node, .operations = operations, .percent = 20,
              .skip = (unsigned)test_random_below(random, 50), .count = 2,
              .error_number = test_random_chance(random, 50) ? ENOSPC : EIO);
    }
    if (with_faults && test_random_chance(random, 20)) {
        FAULT(node, .operations = FAULT_ON_ALL, .percent = 20, .count = 200, .delay_ns = NS_PER_MS);
    }
}

/* ---- Moments --------------------------------------------------------------------------------- */

/* Snapshots of the models at the moment of the transaction that this is an action of. */
struct moment {
    struct model *models[DISKS];
};

static struct moment *moment_to_take; /* by who holds the lock */
static pthread_mutex_t moment_lock = PTHREAD_MUTEX_INITIALIZER;

static void take_snapshots(struct transaction_action *action)
{
    for (size_t i = 0; i < DISKS; i++) {
        moment_to_take->models[i] = model_snapshot(disks[i].rig->model);
    }
}

static const struct transaction_action_type snapshot_action = {
    .name = "snapshot",
    .data = &qmp_type_any,
    .activate = take_snapshots,
};

static void free_moment(struct moment *moment)
{
    for (size_t i = 0; i < DISKS; i++) {
        model_free(STEAL(moment->models[i]));
    }
}

/*
 * An action and the snapshots in one transaction, again when the disk has just moved. Disks that
 * the action does not drain have writes in flight; nobody looks at their snapshots.
 */
static bool run_at_moment(const struct transaction_action_type *type, json_t *data,
                          struct moment *moment, GError **error)
{
    while (true) {
        AUTO(transaction) transaction = transaction_new(false);
        g_autoptr(GError) reason = NULL;

        transaction_add(transaction, type, data, NULL);
        transaction_add(transaction, &snapshot_action, NULL, NULL);
        pthread_mutex_lock(&moment_lock);
        moment_to_take = moment;
        int status = transaction_run(transaction, &reason);
        pthread_mutex_unlock(&moment_lock);
        if (status != -EAGAIN) {
            if (reason) {
                g_propagate_error(error, g_steal_pointer(&reason));
            }
            return status == 0;
        }
        g_assert_nonnull(strstr(reason->message, "has just got another node; try again"));
        atomic_fetch_add(&retries, 1);
    }
}

/* ---- Views ----------------------------------------------------------------------------------- */

struct sight {
    struct view_device *export;
    struct block_device *device;
    struct model *snapshot;     /* borrowed */
    uint8_t given_up[64 * KIB]; /* by unit */
};

static bool is_given_up(const struct sight *sight, uint64_t offset, uint64_t bytes)
{
    for (uint64_t unit = offset / UNIT; unit * UNIT < offset + bytes; unit++) {
        if (sight->given_up[unit]) {
            return true;
        }
    }
    return false;
}

static bool is_broken(const char *name)
{
    size_t count;
    struct view_info *info = view_info_list(name, &count);

    g_assert_cmpuint(count, ==, 1);
    bool broken = info->error != NULL;
    view_info_list_free(info, count);
    return broken;
}

/* Readers may know it before the view does. */
static bool breaks(const char *name)
{
    int64_t end_ns = clock_now_ns() + 20 * NS_PER_SECOND;

    while (!is_broken(name) && clock_now_ns() < end_ns) {
        g_usleep(500);
    }
    return is_broken(name);
}

static void read_view(const char *name, struct sight *sight, struct test_random *random)
{
    g_autofree char *buffer = g_malloc(READ_MAX);
    struct model_report report = {0};
    uint64_t offset, bytes;

    test_random_range(random, model_length(sight->snapshot), RIG_SECTOR,
                      test_random_chance(random, 50) ? 16 * KIB : align_down(READ_MAX, RIG_SECTOR),
                      &offset, &bytes);
    struct model_read *read = model_read_begin(sight->snapshot, offset, bytes);
    bool given_up = is_given_up(sight, offset, bytes);
    bool was_broken = is_broken(name);
    int status = block_device_pread(sight->device, buffer, offset, bytes);

    model_read_end(sight->snapshot, read, status < 0 ? NULL : buffer, &report);
    if (report.wrong) {
        g_error("view %s shows wrong data at 0x%" PRIx64 ":\n%s", name, offset,
                report.details->str);
    }
    model_report_clear(&report);
    if (status == 0) {
        g_assert_false(given_up);
        g_assert_false(was_broken);
    } else if (status == -EINVAL) {
        g_assert_true(given_up);
    } else if (status != -EIO || !(with_faults || breaks(name))) {
        g_error("view %s: %s at 0x%" PRIx64, name, g_strerror(-status), offset);
    }
    atomic_fetch_add(status < 0 ? &bad_reads : &good_reads, 1);
}

static void give_up(const char *name, size_t disk, struct sight *sight, struct test_random *random)
{
    uint64_t offset, bytes;

    test_random_range(random, model_length(sight->snapshot), RIG_SECTOR, 64 * KIB, &offset, &bytes);
    if (view_discard(name, disks[disk].name, offset, bytes, NULL) == 0) {
        uint64_t length = disks[disk].rig->length;
        uint64_t end =
            offset + bytes == length ? align_up(length, UNIT) : align_down(offset + bytes, UNIT);

        for (uint64_t at = align_up(offset, UNIT); at < end; at += UNIT) {
            sight->given_up[at / UNIT] = 1;
        }
    }
}

static json_t *view_arguments(const char *name, bool of_disk[DISKS], struct test_random *random)
{
    json_t *names = json_array();

    for (size_t i = 0; i < DISKS; i++) {
        if (of_disk[i]) {
            json_array_append_new(names, json_string(disks[i].name));
        }
    }
    json_t *arguments =
        json_pack("{s:s, s:s, s:o, s:b, s:I}", "name", name, "scratch", disks[0].rig->directory,
                  "devices", names, "discard", (int)test_random_chance(random, 50), "cbw-timeout",
                  (json_int_t)test_random_between(random, 1, 20));
    if (test_random_chance(random, 30)) {
        json_object_set_new(
            arguments, "scratch-max",
            json_integer((json_int_t)test_random_between(random, 1, 512) * (json_int_t)UNIT));
    }
    return arguments;
}

/* Long enough for the disk to move meanwhile. */
static void look_at_view(const char *name, struct sight *sights, const bool *of_disk,
                         struct test_random *random)
{
    int64_t end_ns = clock_now_ns() + (int64_t)test_random_between(random, 10, 600) * NS_PER_MS;
    unsigned reads = 0;

    do {
        size_t disk = test_random_below(random, DISKS);

        if (of_disk[disk] && test_random_chance(random, 90)) {
            read_view(name, &sights[disk], random);
        } else if (of_disk[disk]) {
            give_up(name, disk, &sights[disk], random);
        }
        reads += is_broken(name) ? 100 : 1;
    } while (!atomic_load(&over) && clock_now_ns() < end_ns && reads < 5000);
}

static void open_sights(const char *name, struct sight *sights, const bool *of_disk,
                        const struct moment *moment)
{
    for (size_t i = 0; i < DISKS; i++) {
        g_autofree char *export = g_strdup_printf("%s@%s", disks[i].name, name);

        if (of_disk[i]) {
            sights[i].export = view_export_open(export);
            g_assert_nonnull(sights[i].export);
            sights[i].device = view_export_device(sights[i].export);
            sights[i].snapshot = moment->models[i];
        }
    }
}

void make_view(struct test_random *random)
{
    static _Atomic unsigned number;
    g_autofree char *name = g_strdup_printf("v%u", atomic_fetch_add(&number, 1));
    bool first = test_random_chance(random, 70);
    bool of_disk[DISKS] = {first, !first || test_random_chance(random, 60)};
    struct sight *sights = g_new0(struct sight, DISKS);
    json_t *arguments = view_arguments(name, of_disk, random);
    struct moment moment = {0};
    g_autoptr(GError) error = NULL;

    run_at_moment(&view_create_action, arguments, &moment, &error);
    g_assert_no_error(error);
    open_sights(name, sights, of_disk, &moment);
    look_at_view(name, sights, of_disk, random);
    atomic_fetch_add(is_broken(name) ? &broken_views : &whole_views, 1);
    if (test_random_chance(random, 50)) {
        g_assert_cmpint(view_drop(name, false, NULL), <, 0); /* clients are connected */
        g_assert_cmpint(view_drop(name, true, NULL), ==, 0);
    }
    for (size_t i = 0; i < DISKS; i++) {
        if (sights[i].export) {
            view_export_close(sights[i].export);
        }
    }
    view_drop(name, true, NULL);
    g_free(sights);
    free_moment(&moment);
    json_decref(arguments);
}

/* ---- Backups --------------------------------------------------------------------------------- */

struct backup_try {
    struct disk *disk;
    struct block_node *target;
    struct block_node *scratch; /* or NULL */
    json_t *arguments;
};

static void add_scratch(struct backup_try *try, const char *id, struct test_random *random)
{
    g_autofree char *name = g_strdup_printf("scratch-%s", id);

    switch (test_random_below(random, 3)) {
    case 0:
        json_object_set_new(try->arguments, "scratch", json_string("none"));
        break;
    case 1:
        json_object_set_new(try->arguments, "scratch", json_string(try->disk->rig->directory));
        break;
    default:
        try->scratch = rig_target(try->disk->rig, name, true);
        cause_faults(try->scratch, random, FAULT_ON_CHANGES | FAULT_ON(READ));
        json_object_set_new(try->arguments, "scratch-node", json_string(name));
    }
    if (test_random_chance(random, 20)) {
        json_object_set_new(
            try->arguments, "scratch-max",
            json_integer((json_int_t)test_random_between(random, 1, 256) * (json_int_t)UNIT));
    }
}

static struct backup_try choose_backup(const char *id, bool is_full, struct test_random *random)
{
    struct disk *disk = &disks[test_random_below(random, DISKS)];
    g_autofree char *name = g_strdup_printf("target-%s", id);
    struct backup_try try = {.disk = disk, .target = rig_target(disk->rig, name, true)};

    try.arguments = json_pack(
        "{s:s, s:s, s:s, s:s, s:b, s:s, s:s, s:I}", "device", disk->name, "target", name, "sync",
        is_full ? "full" : "none", "job-id", id, "auto-dismiss", 0, "on-target-error",
        block_error_policy_names[choose_policy(random)], "on-source-error",
        block_error_policy_names[choose_policy(random)], "speed",
        (json_int_t)(test_random_chance(random, 50) ? test_random_between(random, 8, 64) * MIB
                                                    : 0));
    cause_faults(try.target, random, FAULT_ON_CHANGES | FAULT_ON_STATUS | FAULT_ON(FLUSH));
    if (is_full) {
        add_scratch(&try, id, random);
    }
    return try;
}

static void check_backup(const struct backup_try *try, struct job *job, struct model *snapshot)
{
    g_autofree char *message = rig_end(job);

    fault_clear(try->target);
    if (!message) {
        rig_assert_equal(snapshot, try->target);
        atomic_fetch_add(&good_backups, 1);
        return;
    }
    if (!is_known_failure(message)) {
        g_error("a backup failed: %s", message);
    }
    atomic_fetch_add(&failed_backups, 1);
}

void make_backup(struct test_random *random)
{
    static _Atomic unsigned number;
    g_autofree char *id = g_strdup_printf("backup-%u", atomic_fetch_add(&number, 1));
    bool is_full = test_random_chance(random, 85);
    struct backup_try try = choose_backup(id, is_full, random);
    struct moment moment = {0};
    g_autoptr(GError) error = NULL;

    run_at_moment(&blockdev_backup_action, try.arguments, &moment, &error);
    g_assert_no_error(error);
    struct job *job = job_find(id);
    if (!is_full || test_random_chance(random, 10)) {
        rig_wait_requests(try.disk->rig, test_random_below(random, 200));
        job_cancel(job, true, test_random_chance(random, 50), NULL);
    }
    check_backup(&try, job, moment.models[try.disk - disks]);
    rig_assert_unused(try.target);
    if (try.scratch) {
        fault_clear(try.scratch);
        rig_assert_unused(try.scratch);
    }
    json_decref(try.arguments);
    free_moment(&moment);
}
