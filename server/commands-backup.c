/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/commands-backup.h"

#include <errno.h>
#include <string.h>

#include "block/chain.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "block/point-in-time.h"
#include "block/stored-bitmaps.h"
#include "jobs/backup.h"
#include "jobs/copy-engine.h"
#include "server/bitmap-name.h"
#include "server/device-tracking.h"
#include "server/guest-figures.h"
#include "server/lookup.h"
#include "server/target-file.h"
#include "server/types.h"

const char *const mirror_sync_mode_names[] = {"full", "top", "none", "incremental", "bitmap", NULL};
const struct qmp_type mirror_sync_mode_type = {
    .name = "MirrorSyncMode",
    .kind = QMP_KIND_ENUM,
    .values = mirror_sync_mode_names,
    .doc = "full: everything. top: what the disk's top layer holds itself, data and explicit "
           "zeroes, for a target that has the same layers below or gets them later; everything if "
           "the disk has no backing file. none: of a backup, only what the guest overwrites, until "
           "cancelled; of a mirror, only what it writes from now on. incremental and bitmap: "
           "what a bitmap says has changed, of a backup for a target that has the one before "
           "below; incremental is bitmap with bitmap-mode on-success. Mirrors have no bitmap, and "
           "with incremental a target that is the copy itself.",
};

static const struct qmp_type bitmap_mode_type = {
    .name = "BitmapSyncMode",
    .kind = QMP_KIND_ENUM,
    .values = backup_bitmap_mode_names,
    .doc = "What becomes of the bitmap when the job ends. on-success: if it succeeds, what is "
           "recorded is what was written since its moment; else the bitmap is as if there had been "
           "no backup. never: as if there had been none, in any case. always: as on-success, but "
           "after a failure, too, what is safely on the target is not recorded any more.",
};

static const struct qmp_member performance_members[] = {
    {"use-copy-range", &qmp_type_bool, .optional = true, .default_text = "false",
     .doc = "Let the kernel copy where source and target are files."},
    {"max-workers", &qmp_type_int, .optional = true, .default_text = "16",
     .doc = "Most requests in flight."},
    {"max-chunk", &qmp_type_int, .optional = true, .default_text = "0",
     .doc = "Most bytes to copy in one piece; 0: the default, 1 MiB."},
    {"min-cluster-size", &qmp_type_size, .optional = true, .default_text = "0",
     .doc = "A guest's write lets at least so many bytes of old data be kept, a power of two; 0: 4 "
            "KiB."},
    {NULL},
};
static const struct qmp_type performance_type = {
    .name = "BackupPerf",
    .kind = QMP_KIND_OBJECT,
    .members = performance_members,
};

static const struct qmp_member common_members[] = {
    JOB_ID_MEMBER,
    {"device", &qmp_type_string, .doc = "What to back up: a device or a node."},
    {"sync", &mirror_sync_mode_type, .doc = "How much of it."},
    {"bitmap", &qmp_type_string, .optional = true,
     .doc = "A bitmap of the device's node. Needed with sync incremental and bitmap, which copy "
            "what it says; with full and top it says afterwards what has changed since. It is busy "
            "until the job ends."},
    {"since", &qmp_type_string, .optional = true,
     .doc = "A checkpoint of the device, instead of a bitmap with sync incremental: what changed "
            "since then is copied. An extension of liveblk's."},
    {"bitmap-mode", &bitmap_mode_type, .optional = true,
     .doc = "What becomes of the bitmap; needed if there is one, but with sync incremental, where "
            "it is on-success. With full and top not never."},
    SPEED_MEMBER,
    GUEST_LATENCY_MEMBER,
    {"compress", &qmp_type_bool, .optional = true, .default_text = "false",
     .doc = "Compress; refused where the target's format cannot."},
    {"on-source-error", &on_error_type, .optional = true, .default_text = "report",
     .doc = "What to do when reading fails."},
    {"on-target-error", &on_error_type, .optional = true, .default_text = "report",
     .doc = "What to do when writing fails."},
    FILTER_NODE_NAME_MEMBER("copy-before-write"),
    JOB_END_MEMBERS("the job"),
    {"cbw-timeout", &qmp_type_int, .optional = true, .default_text = "10",
     .doc = "Seconds that a guest's write may wait for the job before the job is given up; 0: for "
            "ever. An extension of liveblk's."},
    {"scratch", &qmp_type_string, .optional = true,
     .doc = "Where old data goes that guests overwrite before the job gets to it: an absolute "
            "directory, or `none` (only memory: then a slow target holds guests up). $TMPDIR or "
            "/var/tmp by default. An extension of liveblk's."},
    {"scratch-node", &qmp_type_string, .optional = true,
     .doc = "The same, a node at least as long as the device. An extension of liveblk's."},
    {"scratch-max", &qmp_type_size, .optional = true, .default_text = "0",
     .doc = "Most bytes on scratch; the job is given up if that does not suffice. 0: no limit. "
            "An extension of liveblk's."},
    {"scratch-high-water", &qmp_type_int, .optional = true, .default_text = "80",
     .doc = "Percentage of scratch-max: when so much is used there is SCRATCH_HIGH_WATER. 0: "
            "never. An extension of liveblk's."},
    {"x-perf", &performance_type, .optional = true, .doc = "How to go about it."},
    {"discard-source", &qmp_type_bool, .optional = true, .default_text = "false",
     .doc = "Discard what is copied, so that a snapshot needs less and less room. Only of a "
            "`snapshot-access` node, with `discard` unmap; it can be read no more."},
    {NULL},
};
static const struct qmp_type common_type = {
    .name = "BackupCommon",
    .kind = QMP_KIND_OBJECT,
    .members = common_members,
};

static const struct qmp_member blockdev_members[] = {
    {"target", &qmp_type_string, .doc = "The node to write."},
    {NULL},
};
const struct qmp_type blockdev_backup_type = {
    .name = "BlockdevBackup",
    .kind = QMP_KIND_OBJECT,
    .base = &common_type,
    .members = blockdev_members,
};

static const struct qmp_member drive_members[] = {
    DRIVE_TARGET_MEMBERS,
    {NULL},
};
const struct qmp_type drive_backup_type = {
    .name = "DriveBackup",
    .kind = QMP_KIND_OBJECT,
    .base = &common_type,
    .members = drive_members,
};

static int check_workers(json_t *performance, GError **error)
{
    if (lookup_integer(performance, "max-workers", 1) < 1) {
        return block_error(error, EINVAL, "max-workers must be between 1 and %d", COPY_MAX_WORKERS);
    }
    return 0;
}

/* scratch_node: to hold the reference. */
static int read_scratch(json_t *arguments, struct backup_options *options,
                        struct block_node **scratch_node, GError **error)
{
    const char *directory = json_string_value(json_object_get(arguments, "scratch"));
    const char *node = json_string_value(json_object_get(arguments, "scratch-node"));

    if (directory && node) {
        return block_error(error, EINVAL, "Give either 'scratch' or 'scratch-node', not both");
    }
    options->scratch_max = (uint64_t)lookup_integer(arguments, "scratch-max", 0);
    if (node) {
        options->scratch = BACKUP_SCRATCH_NODE;
        options->scratch_node = *scratch_node = lookup_device_or_node(node, error);
        return *scratch_node ? 0 : -ENOENT;
    }
    if (directory && !strcmp(directory, "none")) {
        options->scratch = BACKUP_SCRATCH_NONE;
        return 0;
    }
    if (directory && !g_path_is_absolute(directory)) {
        return block_error(error, EINVAL,
                           "Parameter 'scratch' expects an absolute path or 'none', not '%s'",
                           directory);
    }
    options->scratch_directory = directory;
    return 0;
}

static enum backup_sync sync_of(json_t *arguments)
{
    static const enum backup_sync syncs[] = {BACKUP_SYNC_FULL, BACKUP_SYNC_TOP, BACKUP_SYNC_NONE,
                                             BACKUP_SYNC_BITMAP, BACKUP_SYNC_BITMAP};

    return syncs[lookup_enum(json_object_get(arguments, "sync"), mirror_sync_mode_names)];
}

static void read_options(json_t *arguments, struct block_node *source,
                         struct backup_options *options)
{
    json_t *performance = json_object_get(arguments, "x-perf");

    *options = (struct backup_options){
        .source = source,
        .sync = sync_of(arguments),
        .use_copy_range = lookup_bool(performance, "use-copy-range", false),
        .max_workers = lookup_integer(performance, "max-workers", 0),
        .max_chunk = lookup_integer(performance, "max-chunk", 0),
        .min_cluster_size = (uint64_t)lookup_integer(performance, "min-cluster-size", 0),
        .filter_node_name = lookup_text(arguments, "filter-node-name"),
        .discard_source = lookup_bool(arguments, "discard-source", false),
    };
}

/* ---- The bitmap ------------------------------------------------------------------------------ */

static int bitmap_not_found(const struct bitmap_name *bitmap, GError **error)
{
    return block_error(error, ENOENT, "Bitmap '%s' could not be found", bitmap->name);
}

/* What the arguments say of a bitmap makes sense, whatever bitmap it is. */
static int check_bitmap_words(const char *sync, const char *bitmap, const char *mode,
                              const char *since, GError **error)
{
    bool is_incremental = !strcmp(sync, "incremental");

    if (since && (!is_incremental || bitmap)) {
        return block_error(error, EINVAL,
                           "Parameter 'since' is for sync mode 'incremental', without a bitmap");
    }
    if (!bitmap && !since && (is_incremental || !strcmp(sync, "bitmap"))) {
        return block_error(error, EINVAL, "must provide a valid bitmap name for '%s' sync mode",
                           sync);
    }
    if (is_incremental && mode && strcmp(mode, "on-success")) {
        return block_error(error, EINVAL,
                           "Bitmap sync mode must be 'on-success' when using sync mode '%s'", sync);
    }
    if (!bitmap && mode) {
        return block_error(error, EINVAL, "Cannot specify bitmap sync mode without a bitmap");
    }
    return 0;
}

/* The bitmap is there: what is to be done with it makes sense. */
static int check_bitmap_use(const char *sync, const char *mode, GError **error)
{
    if (!mode && strcmp(sync, "incremental")) {
        return block_error(error, EINVAL, "Bitmap sync mode must be given when providing a bitmap");
    }
    if (!strcmp(sync, "none")) {
        return block_error(error, EINVAL,
                           "sync mode 'none' does not produce meaningful bitmap outputs");
    }
    if (mode && !strcmp(mode, "never") && strcmp(sync, "bitmap")) {
        return block_error(error, EINVAL,
                           "Bitmap sync mode 'never' has no meaningful effect when combined with "
                           "sync mode '%s'",
                           sync);
    }
    return 0;
}

/* In prepare: fill in state->bitmap and the options' mode. The device's node is a reference. */
static int prepare_bitmap(struct transaction_action *action, json_t *arguments,
                          struct backup_options *options, GError **error)
{
    struct backup_action *state = transaction_state(action);
    struct bitmap_name *bitmap = &state->bitmap;
    const char *sync = json_string_value(json_object_get(arguments, "sync"));
    const char *mode = json_string_value(json_object_get(arguments, "bitmap-mode"));

    bitmap->node_name = json_string_value(json_object_get(arguments, "device"));
    bitmap->name = json_string_value(json_object_get(arguments, "bitmap"));
    bitmap->node = block_node_ref(options->source);
    state->since = json_string_value(json_object_get(arguments, "since"));
    options->bitmap_mode =
        mode ? (enum backup_bitmap_mode)lookup_enum(json_object_get(arguments, "bitmap-mode"),
                                                    backup_bitmap_mode_names)
             : BACKUP_BITMAP_ON_SUCCESS;
    /* One that is kept as it is may also be read-only. */
    bitmap->refused = options->bitmap_mode == BACKUP_BITMAP_NEVER
                          ? DIRTY_BITMAP_REFUSE_BUSY | DIRTY_BITMAP_REFUSE_INCONSISTENT
                          : DIRTY_BITMAP_REFUSE_ALL;
    int status = check_bitmap_words(sync, bitmap->name, mode, state->since, error);
    if (status < 0 || !bitmap->name) {
        return status;
    }
    g_autoptr(GError) problem = NULL;
    int found = bitmap_name_expect(action, bitmap, &problem);
    status =
        found == -ENOENT ? bitmap_not_found(bitmap, error) : check_bitmap_use(sync, mode, error);
    if (status == 0 && found < 0) {
        g_propagate_error(error, STEAL(problem));
        status = found;
    }
    /* What its end does to the bitmap is not what is kept of it. */
    if (status == 0 && options->bitmap_mode != BACKUP_BITMAP_NEVER) {
        status = block_stored_bitmaps_begin_change(bitmap->node, bitmap->name, error);
    }
    if (status == 0) {
        bitmap_name_plan_use(action, bitmap);
    }
    return status;
}

/* In apply. It may have been changed, or made, by an action before this one. */
static int take_bitmap(struct backup_action *state, GError **error)
{
    struct dirty_bitmap *bitmap = bitmap_name_find(&state->bitmap, error);
    int status = bitmap ? backup_take_bitmap(state->job, bitmap, error) : -EBUSY;

    state->has_bitmap = status == 0;
    return status;
}

/* ---- The checkpoint -------------------------------------------------------------------------- */

/* In prepare: the device is tracked. What its checkpoint is worth is seen at the moment. */
static int prepare_since(struct backup_action *state, GError **error)
{
    struct dirty_bitmap *changes;
    struct change_tracker *tracker;

    if (!state->since) {
        return 0;
    }
    state->tracked = block_device_find(state->device);
    if (!state->tracked) {
        return block_error(error, ENOENT,
                           "Only devices have checkpoints, and '%s' is none: give the device",
                           state->device);
    }
    tracker = device_tracking_find(state->tracked, error);
    changes = tracker ? tracking_changes_since(tracker, state->since, error) : NULL;
    if (!changes) {
        return -ENOENT;
    }
    dirty_bitmap_free(changes);
    return 0;
}

/* Drained: what changed up to this moment. */
static int find_changes(struct transaction_action *action, GError **error)
{
    struct backup_action *state = transaction_state(action);
    struct change_tracker *tracker;
    struct dirty_bitmap *changes, *zeroes;

    if (!state->since) {
        return 0;
    }
    tracker = device_tracking_find(state->tracked, error);
    changes = tracker ? tracking_changes_with_zeroes(tracker, state->since, &zeroes, error) : NULL;
    if (!changes) {
        return -ENOENT;
    }
    backup_limit_to(state->job, changes);
    backup_know_zeroes(state->job, zeroes);
    return 0;
}

/* ---- Making the job -------------------------------------------------------------------------- */

/* Fill in what all such actions have in common, but scratch. */
static void read_common_options(json_t *arguments, struct backup_options *options)
{
    options->job_id = lookup_job_id(arguments);
    options->job_flags = lookup_job_flags(arguments);
    options->speed = lookup_integer(arguments, "speed", 0);
    options->guest_latency = lookup_integer(arguments, "guest-latency", 0);
    options->scratch_high_percent =
        lookup_integer(arguments, "scratch-high-water", SCRATCH_HIGH_PERCENT_DEFAULT);
    options->on_source_error = lookup_on_error(arguments, "on-source-error");
    options->on_target_error = lookup_on_error(arguments, "on-target-error");
    options->guest_timeout_s =
        lookup_integer(arguments, "cbw-timeout", BACKUP_DEFAULT_GUEST_TIMEOUT_S);
}

int backup_action_make_job(struct transaction_action *action, json_t *arguments,
                           struct backup_options *options, GError **error)
{
    struct backup_action *state = transaction_state(action);
    AUTO(block_node) scratch_node = NULL;

    state->device = json_string_value(json_object_get(arguments, "device"));
    state->source = block_node_ref(options->source);
    read_common_options(arguments, options);
    if (read_scratch(arguments, options, &scratch_node, error) < 0 ||
        prepare_since(state, error) < 0) {
        return -EINVAL;
    }
    options->transaction = transaction_jobs(action);
    state->job = backup_new(options, error);
    if (!state->job) {
        return -EINVAL;
    }
    transaction_drain(action, options->source);
    transaction_drain_for(action, state->job);
    return 0;
}

/* target: the target's name, for messages; can_compress: what its format says. */
static int create_job(struct transaction_action *action, json_t *arguments,
                      struct backup_options *options, const char *target, bool can_compress,
                      GError **error)
{
    if (prepare_bitmap(action, arguments, options, error) < 0) {
        return -EINVAL;
    }
    if (check_workers(json_object_get(arguments, "x-perf"), error) < 0) {
        return -EINVAL;
    }
    options->compress = lookup_bool(arguments, "compress", false);
    if (options->compress && !can_compress) {
        return block_error(error, ENOTSUP, "Compression is not supported for this drive %s",
                           target);
    }
    return backup_action_make_job(action, arguments, options, error);
}

static int prepare_blockdev_backup(struct transaction_action *action, json_t *arguments,
                                   GError **error)
{
    const char *device = json_string_value(json_object_get(arguments, "device"));
    const char *target_name = json_string_value(json_object_get(arguments, "target"));
    AUTO(block_node) source = lookup_device_or_node(device, error);
    AUTO(block_node) target = source ? lookup_device_or_node(target_name, error) : NULL;
    struct backup_options options;

    if (!target) {
        return -ENOENT;
    }
    read_options(arguments, source, &options);
    options.target = target;
    return create_job(action, arguments, &options, target->name, block_node_can_compress(target),
                      error);
}

/* ---- drive-backup: the target is a file, opened for the job and closed after it ------------- */

static int prepare_drive_backup(struct transaction_action *action, json_t *arguments,
                                GError **error)
{
    const char *device = json_string_value(json_object_get(arguments, "device"));
    AUTO(block_node) source = lookup_device_or_node(device, error);
    struct backup_options options;

    if (!source) {
        return -ENOENT;
    }
    struct target_file file = target_file_from_arguments(arguments, block_node_length(source));
    read_options(arguments, source, &options);
    file.beside = options.sync == BACKUP_SYNC_TOP ? source : NULL;
    options.open_target = target_file_open;
    options.open_target_data = &file;
    const struct block_driver *format = block_driver_find(file.format);
    return create_job(action, arguments, &options, file.filename, format && format->can_compress,
                      error);
}

/* ---- After the job is there, both are the same ----------------------------------------------- */

/* The moment of a disk that has moved away is over. */
int backup_action_apply(struct transaction_action *action, GError **error)
{
    struct backup_action *state = transaction_state(action);
    int status = lookup_check_same(state->device, state->source, error);

    return status == 0 && state->bitmap.name ? take_bitmap(state, error) : status;
}

void backup_action_undo(struct transaction_action *action)
{
    struct backup_action *state = transaction_state(action);

    if (state->has_bitmap) {
        backup_give_back_bitmap(state->job);
    }
}

void backup_action_activate(struct transaction_action *action)
{
    struct backup_action *state = transaction_state(action);

    backup_activate(state->job);
}

void backup_action_commit(struct transaction_action *action)
{
    struct backup_action *state = transaction_state(action);

    /* One that is left as it is need not be marked. */
    if (state->bitmap.name && state->bitmap.refused == DIRTY_BITMAP_REFUSE_ALL) {
        bitmap_name_mark_again(&state->bitmap);
    }
    job_start_or_fail(state->job);
}

void backup_action_abort(struct transaction_action *action)
{
    struct backup_action *state = transaction_state(action);

    job_roll_back(state->job);
}

void backup_action_clean(struct transaction_action *action)
{
    struct backup_action *state = transaction_state(action);

    job_unref(state->job);
    block_device_unref(state->tracked);
    block_node_unref(state->bitmap.node);
    block_node_unref(state->source);
}

const struct transaction_action_type blockdev_backup_action = {
    .name = "blockdev-backup",
    .data = &blockdev_backup_type,
    .state_size = sizeof(struct backup_action),
    .supports_grouped = true,
    .prepare = prepare_blockdev_backup,
    .change = find_changes,
    BACKUP_ACTION_END,
    .doc = "See the command blockdev-backup.",
};

const struct transaction_action_type drive_backup_action = {
    .name = "drive-backup",
    .data = &drive_backup_type,
    .state_size = sizeof(struct backup_action),
    .supports_grouped = true,
    .prepare = prepare_drive_backup,
    .change = find_changes,
    BACKUP_ACTION_END,
    .doc = "See the command drive-backup.",
};

json_t *blockdev_backup(struct qmp_request *request, json_t *arguments, GError **error)
{
    return transaction_run_single(&blockdev_backup_action, arguments, error);
}

json_t *drive_backup(struct qmp_request *request, json_t *arguments, GError **error)
{
    return transaction_run_single(&drive_backup_action, arguments, error);
}
