/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/commands-verify.h"

#include <errno.h>

#include "block/cleanup.h"
#include "block/error.h"
#include "jobs/copy-engine.h"
#include "jobs/verify.h"
#include "server/commands-backup.h"
#include "server/device-tracking.h"
#include "server/guest-figures.h"
#include "server/lookup.h"
#include "server/types.h"

/* ---- Types ----------------------------------------------------------------------------------- */

static const struct qmp_member members[] = {
    JOB_ID_MEMBER,
    {"device", &qmp_type_string, .doc = "What to compare: a device or a node."},
    {"target", &qmp_type_string,
     .doc =
         "The node to compare it with, which nobody writes meanwhile. It may be read-only. Or the "
         "target of a mirror of the device that is ready: what that had still to copy at the "
         "moment, or guests write after it, is left out, and `repair` has the mirror copy what "
         "differs."},
    {"since", &qmp_type_string, .optional = true,
     .doc = "A checkpoint of the device: only what changed since then is compared."},
    {"sample-percent", &qmp_type_int, .optional = true,
     .doc = "Compare so much, 1 to 100 percent, of what would be compared else: pieces of 256 KiB "
            "that are chosen at random."},
    {"sample-seed", &qmp_type_int, .optional = true,
     .doc = "Choose the pieces that this number stands for; at random by default."},
    {"repair", &qmp_type_bool, .optional = true, .default_text = "false",
     .doc = "Write to the target what differs, and compare that again."},
    {"max-differences", &qmp_type_int, .optional = true, .default_text = "100",
     .doc = "Most ranges to list in query-jobs and to tell by events, up to 10000; the rest is "
            "counted."},
    {"speed", &qmp_type_int, .optional = true, .default_text = "0",
     .doc = "Limit in bytes per second, of each side; 0: none."},
    GUEST_LATENCY_MEMBER,
    {"on-source-error", &on_error_type, .optional = true, .default_text = "report",
     .doc = "What to do when reading the device fails. With ignore what cannot be read, in pieces "
            "of up to 1 MiB, is counted as unreadable and left out, and the job fails at its end."},
    {"on-target-error", &on_error_type, .optional = true, .default_text = "report",
     .doc = "The same for the target."},
    JOB_END_MEMBERS("the job, and what it found,"),
    {"cbw-timeout", &qmp_type_int, .optional = true, .default_text = "10",
     .doc = "Seconds that a guest's write may wait for the job before the job is given up; 0: for "
            "ever."},
    {"scratch", &qmp_type_string, .optional = true,
     .doc =
         "Where old data goes that guests overwrite before the job gets to it, as for a backup."},
    {"scratch-node", &qmp_type_string, .optional = true, .doc = "The same, a node."},
    {"scratch-max", &qmp_type_size, .optional = true, .default_text = "0",
     .doc = "Most bytes on scratch; the job is given up if that does not suffice. 0: no limit."},
    {"scratch-high-water", &qmp_type_int, .optional = true, .default_text = "80",
     .doc = "Percentage of scratch-max: when so much is used there is SCRATCH_HIGH_WATER. 0: "
            "never."},
    {"max-workers", &qmp_type_int, .optional = true, .default_text = "16",
     .doc = "Most pieces to compare at once."},
    {NULL},
};
const struct qmp_type blockdev_verify_type = {
    .name = "BlockdevVerify",
    .kind = QMP_KIND_OBJECT,
    .members = members,
};

static const struct qmp_type kind_type = {
    .name = "VerifyDifferenceKind",
    .kind = QMP_KIND_ENUM,
    .values = verify_kind_names,
    .doc = "data: both sides have data, which is not the same. source-zero: the device reads as "
           "zeroes there and the target does not. target-zero: the other way round. length: one "
           "side ends where the range begins. unreadable: what could not be read, as far as that "
           "was to be ignored.",
};
static const struct qmp_member difference_members[] = {
    {"offset", &qmp_type_int, .doc = "Where it begins, in bytes."},
    {"length", &qmp_type_int, .doc = "Its length, in whole sectors of 512 bytes."},
    {"kind", &kind_type, .doc = "What differs."},
    {NULL},
};
static const struct qmp_type difference_type = {
    .name = "VerifyDifference",
    .kind = QMP_KIND_OBJECT,
    .members = difference_members,
};
static const struct qmp_type differences_type = {
    .name = "VerifyDifferenceList",
    .kind = QMP_KIND_ARRAY,
    .element = &difference_type,
};

static const struct qmp_member info_members[] = {
    {"different-bytes", &qmp_type_int, .doc = "Bytes that differed when they were compared."},
    {"unreadable-bytes", &qmp_type_int,
     .doc = "Bytes that were not compared as they could not be read."},
    {"repaired-bytes", &qmp_type_int, .doc = "Bytes written to the target, in units of 4 KiB."},
    {"differences", &differences_type,
     .doc = "Ranges in the disk's order, up to max-differences of them."},
    {"omitted-bytes", &qmp_type_int, .doc = "Bytes of ranges beyond that number."},
    {"sample-percent", &qmp_type_int, .optional = true, .doc = "How much is compared, if not all."},
    {"sample-seed", &qmp_type_int, .optional = true, .doc = "What chooses the same sample again."},
    {NULL},
};
const struct qmp_type verify_info_type = {
    .name = "VerifyInfo",
    .kind = QMP_KIND_OBJECT,
    .members = info_members,
};

static const struct qmp_member event_members[] = {
    {"id", &qmp_type_string, .doc = "The job."},
    {NULL},
};
static const struct qmp_type event_base_type = {
    .name = "VerifyJobId",
    .kind = QMP_KIND_OBJECT,
    .members = event_members,
};
const struct qmp_type verify_difference_event_type = {
    .name = "VerifyDifferenceEvent",
    .kind = QMP_KIND_OBJECT,
    .base = &event_base_type,
    .members = difference_members,
};

/* ---- Answers --------------------------------------------------------------------------------- */

static json_t *differences(const struct verify_report *report)
{
    json_t *list = json_array();

    for (guint i = 0; i < report->ranges->len; i++) {
        const struct verify_range *range = &g_array_index(report->ranges, struct verify_range, i);

        json_array_append_new(
            list, json_pack("{s:I, s:I, s:s}", "offset", (json_int_t)range->offset, "length",
                            (json_int_t)range->bytes, "kind", verify_kind_names[range->kind]));
    }
    return list;
}

json_t *verify_info_object(const struct verify_report *report)
{
    uint64_t different = verify_report_total(report) - report->bytes[VERIFY_UNREADABLE];
    json_t *object =
        json_pack("{s:I, s:I, s:I, s:o, s:I}", "different-bytes", (json_int_t)different,
                  "unreadable-bytes", (json_int_t)report->bytes[VERIFY_UNREADABLE],
                  "repaired-bytes", (json_int_t)report->repaired_bytes, "differences",
                  differences(report), "omitted-bytes", (json_int_t)report->omitted_bytes);

    if (report->sample_percent) {
        json_object_set_new(object, "sample-percent", json_integer(report->sample_percent));
        json_object_set_new(object, "sample-seed", json_integer((json_int_t)report->sample_seed));
    }
    return object;
}

/* ---- The action: a backup that compares ------------------------------------------------------ */

static int check_range(json_t *arguments, const char *name, int64_t most, GError **error)
{
    int64_t value = lookup_integer(arguments, name, 1);

    return value >= 1 && value <= most
               ? 0
               : block_error(error, EINVAL,
                             "Parameter '%s' expects a number from 1 to %" G_GINT64_FORMAT
                             ", not %" G_GINT64_FORMAT,
                             name, most, value);
}

static int check_numbers(json_t *arguments, GError **error)
{
    if (check_range(arguments, "sample-percent", 100, error) < 0 ||
        check_range(arguments, "max-differences", VERIFY_MAX_RANGES, error) < 0 ||
        check_range(arguments, "max-workers", COPY_MAX_WORKERS, error) < 0) {
        return -EINVAL;
    }
    if (json_object_get(arguments, "sample-seed") &&
        !json_object_get(arguments, "sample-percent")) {
        return block_error(error, EINVAL,
                           "Parameter 'sample-seed' chooses a sample: give 'sample-percent', too");
    }
    return 0;
}

/* One that can be given again, as it is told. */
static uint64_t random_seed(void)
{
    return (uint64_t)g_random_int() << 31 ^ g_random_int();
}

static struct verify_options read_verify(json_t *arguments)
{
    json_t *seed = json_object_get(arguments, "sample-seed");

    return (struct verify_options){
        .repair = lookup_bool(arguments, "repair", false),
        .sample_percent = (unsigned)lookup_integer(arguments, "sample-percent", 0),
        .sample_seed = seed ? (uint64_t)json_integer_value(seed) : random_seed(),
        .max_ranges = (unsigned)lookup_integer(arguments, "max-differences", 0),
    };
}

static int prepare(struct transaction_action *action, json_t *arguments, GError **error)
{
    struct backup_action *state = transaction_state(action);
    const char *device = json_string_value(json_object_get(arguments, "device"));
    const char *target_name = json_string_value(json_object_get(arguments, "target"));
    AUTO(block_node) source = lookup_device_or_node(device, error);
    AUTO(block_node) target = source ? lookup_device_or_node(target_name, error) : NULL;

    if (!target || check_numbers(arguments, error) < 0) {
        return -EINVAL;
    }
    const struct verify_options verify = read_verify(arguments);
    state->since = json_string_value(json_object_get(arguments, "since"));
    struct backup_options options = {
        .source = source,
        .target = target,
        .verify = &verify,
        .sync = state->since ? BACKUP_SYNC_BITMAP : BACKUP_SYNC_FULL,
        .max_workers = lookup_integer(arguments, "max-workers", 0),
    };
    return backup_action_make_job(action, arguments, &options, error);
}

/* What is known of zeroes is left aside: that the disk holds what it should is to be seen. */
static int find_changes(struct transaction_action *action, GError **error)
{
    struct backup_action *state = transaction_state(action);

    if (!state->since) {
        return 0;
    }
    struct change_tracker *tracker = device_tracking_find(state->tracked, error);
    struct dirty_bitmap *changes =
        tracker ? tracking_changes_since(tracker, state->since, error) : NULL;
    if (!changes) {
        return -ENOENT;
    }
    backup_limit_to(state->job, changes);
    return 0;
}

const struct transaction_action_type blockdev_verify_action = {
    .name = "blockdev-verify",
    .data = &blockdev_verify_type,
    .state_size = sizeof(struct backup_action),
    .supports_grouped = true,
    .prepare = prepare,
    .change = find_changes,
    BACKUP_ACTION_END,
    .doc = "See the command blockdev-verify.",
};

json_t *blockdev_verify(struct qmp_request *request, json_t *arguments, GError **error)
{
    return transaction_run_single(&blockdev_verify_action, arguments, error);
}
