/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/commands-mirror.h"

#include <errno.h>
#include <unistd.h>

#include "block/chain.h"
#include "block/cleanup.h"
#include "block/error.h"
#include "formats/raw.h"
#include "jobs/mirror.h"
#include "server/commands-backup.h"
#include "server/guest-figures.h"
#include "server/lookup.h"
#include "server/target-file.h"
#include "server/types.h"

const struct qmp_type mirror_copy_mode_type = {
    .name = "MirrorCopyMode",
    .kind = QMP_KIND_ENUM,
    .values = mirror_copy_mode_names,
    .doc = "background: guests' writes are copied later; write-blocking: they are on the target, "
           "too, when they are answered, beside what is copied; auto (an extension of liveblk's): "
           "background, but write-blocking for as long as the mirror would not come to its end "
           "else, because guests write as fast as it is copied, and do not wait for longer than "
           "`guest-latency` allows.",
};

static const struct qmp_member common_members[] = {
    JOB_ID_MEMBER,
    {"device", &qmp_type_string,
     .doc = "What to mirror: a device, its root node, or a node without parents."},
    {"sync", &mirror_sync_mode_type,
     .doc =
         "How much of it. incremental (an extension of liveblk's, with `since` or `bitmap`): what "
         "changed since the target was a copy, which is taken to be so."},
    {"since", &qmp_type_string, .optional = true,
     .doc =
         "For sync `incremental`: the checkpoint of the device as of which the target is a copy. "
         "An extension of liveblk's."},
    {"bitmap", &qmp_type_string, .optional = true,
     .doc =
         "The same, a bitmap of the mirrored node that has recorded since then. It is left as it "
         "is. An extension of liveblk's."},
    {"replaces", &qmp_type_string, .optional = true,
     .doc = "The node whose place the target takes; only the mirrored node itself."},
    {"speed", &qmp_type_int, .optional = true, .default_text = "0",
     .doc = "Limit in bytes per second; 0: none. It does not hold for the last moment."},
    GUEST_LATENCY_MEMBER,
    {"granularity", &qmp_type_uint32, .optional = true, .default_text = "4096",
     .doc = "Bytes that are copied again when a guest writes some of them: a power of 2 from 512 "
            "to 64 MiB. The default is larger for disks of more than 2 TiB. With sync `top`, and a "
            "target that has no backing file yet, at least a cluster of that."},
    {"buf-size", &qmp_type_int, .optional = true, .default_text = "16777216",
     .doc = "Most bytes on their way at once; 0: the default."},
    {"unmap", &qmp_type_bool, .optional = true, .default_text = "true",
     .doc = "Deallocate on the target what is zero on the source; else write zeroes. With "
            "blockdev-mirror an extension of liveblk's."},
    {"copy-mode", &mirror_copy_mode_type, .optional = true, .default_text = "background",
     .doc = "When guests' writes reach the target; block-job-change changes it."},
    {"write-timeout", &qmp_type_uint32, .optional = true, .default_text = "10",
     .doc = "Seconds that a guest's write waits for the target at the most, from 1 on, where it "
            "does. Then it is answered and copied later, and that is an error of the target; with "
            "copy-mode auto the mode goes back to background instead. An extension of liveblk's."},
    {"target-retry", &qmp_type_uint32, .optional = true,
     .doc =
         "Seconds for which a target that was lost, with a connection or a server, is looked for "
         "before that is an error of the target. Meanwhile guests go on. 0: not at all. By "
         "default for ever with on-target-error `ignore`, and else not at all. An extension of "
         "liveblk's."},
    {"resume", &qmp_type_bool, .optional = true, .default_text = "false",
     .doc =
         "Go on with an earlier mirror of the device to this target that died, if it was begun "
         "with this, too, and copy all if there was none or it cannot be gone on with (query-jobs "
         "says why). The device must be tracked. A file that is there needs mode `existing`: it is "
         "not emptied. An extension of liveblk's."},
    {"checkpoint", &qmp_type_string, .optional = true,
     .doc = "The name of a checkpoint of the moment at which the disk moves to the target, or the "
            "target is kept as a copy (block-job-cancel when ready): since then the two sides "
            "differ. The device must be tracked. An extension of liveblk's."},
    {"on-source-error", &on_error_type, .optional = true, .default_text = "report",
     .doc = "What to do when reading fails."},
    {"on-target-error", &on_error_type, .optional = true, .default_text = "report",
     .doc = "What to do when writing fails. A mirror that is being finalized cannot stop: it "
            "fails, and the guest stays where it is."},
    JOB_END_MEMBERS("the job"),
    {NULL},
};
static const struct qmp_type common_type = {
    .name = "MirrorCommon",
    .kind = QMP_KIND_OBJECT,
    .members = common_members,
};

static const struct qmp_member blockdev_members[] = {
    {"target", &qmp_type_string, .doc = "The node to write, and to pivot to."},
    FILTER_NODE_NAME_MEMBER("mirror_top"),
    {NULL},
};
const struct qmp_type blockdev_mirror_type = {
    .name = "BlockdevMirror",
    .kind = QMP_KIND_OBJECT,
    .base = &common_type,
    .members = blockdev_members,
};

static const struct qmp_member drive_members[] = {
    DRIVE_TARGET_MEMBERS,
    {"node-name", &qmp_type_string, .optional = true,
     .doc = "The target node's name; made up by default."},
    {NULL},
};
const struct qmp_type drive_mirror_type = {
    .name = "DriveMirror",
    .kind = QMP_KIND_OBJECT,
    .base = &common_type,
    .members = drive_members,
};

static int check_replaces(const char *name, const struct block_node *source, GError **error)
{
    AUTO(block_node) node = name ? block_node_find(name) : NULL;

    if (name && !node) {
        return block_error(error, ENOENT, "Failed to find node with node-name='%s'", name);
    }
    if (node && node != source) {
        return block_error(error, ENOTSUP,
                           "The target can only take the place of node '%s', which is mirrored: "
                           "leave 'replaces' out",
                           source->name);
    }
    return 0;
}

/* 0 would mean the default. */
static int check_numbers(json_t *arguments, GError **error)
{
    if (lookup_integer(arguments, "write-timeout", 1) == 0) {
        return block_error(error, EINVAL,
                           "Parameter 'write-timeout' expects a number of seconds, at least 1");
    }
    if (lookup_integer(arguments, "granularity", 1) == 0) {
        return block_error(error, EINVAL,
                           "Parameter 'granularity' expects a value in range [512B, 64MB]");
    }
    return 0;
}

static int check_sync(json_t *arguments, GError **error)
{
    int sync = lookup_enum(json_object_get(arguments, "sync"), mirror_sync_mode_names);

    if (sync > MIRROR_SYNC_INCREMENTAL) {
        return block_error(error, ENOTSUP, "Sync mode '%s' not supported",
                           mirror_sync_mode_names[sync]);
    }
    return 0;
}

static enum mirror_copy_mode lookup_copy_mode(json_t *arguments)
{
    json_t *mode = json_object_get(arguments, "copy-mode");

    return mode ? (enum mirror_copy_mode)lookup_enum(mode, mirror_copy_mode_names)
                : MIRROR_BACKGROUND;
}

static int read_options(json_t *arguments, struct block_node *source,
                        struct mirror_options *options, GError **error)
{
    const char *replaces = json_string_value(json_object_get(arguments, "replaces"));

    *options = (struct mirror_options){
        .job_id = lookup_job_id(arguments),
        .job_flags = lookup_job_flags(arguments),
        .source = source,
        .sync = (enum mirror_sync)lookup_enum(json_object_get(arguments, "sync"),
                                              mirror_sync_mode_names),
        .since = lookup_text(arguments, "since"),
        .bitmap = lookup_text(arguments, "bitmap"),
        .granularity = (uint64_t)lookup_integer(arguments, "granularity", 0),
        .buf_size = lookup_integer(arguments, "buf-size", 0),
        .keep_zeroes = !lookup_bool(arguments, "unmap", true),
        .speed = lookup_integer(arguments, "speed", 0),
        .guest_latency = lookup_integer(arguments, "guest-latency", 0),
        .copy_mode = lookup_copy_mode(arguments),
        .write_limit_ns = lookup_integer(arguments, "write-timeout", 0) * NS_PER_SECOND,
        .target_retry_ns = lookup_integer(arguments, "target-retry", -1) * NS_PER_SECOND,
        .resume = lookup_bool(arguments, "resume", false),
        .checkpoint = lookup_text(arguments, "checkpoint"),
        .filter_node_name = lookup_text(arguments, "filter-node-name"),
        .on_source_error = lookup_on_error(arguments, "on-source-error"),
        .on_target_error = lookup_on_error(arguments, "on-target-error"),
    };
    int status = check_sync(arguments, error);
    if (status == 0) {
        status = check_numbers(arguments, error);
    }
    return status < 0 ? status : check_replaces(replaces, source, error);
}

/* In *device, if it is one, and its root or else a node of that name: new references. */
static struct block_node *find_source(json_t *arguments, struct block_device **device,
                                      GError **error)
{
    const char *name = json_string_value(json_object_get(arguments, "device"));

    *device = block_device_find(name);
    return lookup_device_or_node(name, error);
}

json_t *blockdev_mirror(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *target_name = json_string_value(json_object_get(arguments, "target"));
    AUTO(block_device) device = NULL;
    AUTO(block_node) source = find_source(arguments, &device, error);
    AUTO(block_node) target = source ? lookup_device_or_node(target_name, error) : NULL;
    struct mirror_options options;

    if (!target || read_options(arguments, source, &options, error) < 0) {
        return NULL;
    }
    options.device = device;
    options.target = target;
    return mirror_start(&options, error) == 0 ? json_object() : NULL;
}

/* Nothing could have been copied there before. */
static int check_mode(json_t *arguments, const struct mirror_options *options, GError **error)
{
    const char *target = lookup_text(arguments, "target");
    bool creates = target_file_is_created(json_object_get(arguments, "mode"));

    if (creates && options->resume && access(target, F_OK) == 0) {
        return block_error(error, EEXIST,
                           "'%s' is there, and creating it would empty it: to go on with an "
                           "earlier mirror use mode 'existing'",
                           target);
    }
    return creates && options->sync == MIRROR_SYNC_INCREMENTAL
               ? block_error(error, EINVAL,
                             "Sync mode 'incremental' brings a target up to date that is there: "
                             "use mode 'existing'")
               : 0;
}

/* So that a name that is taken does not empty a file. */
static int check_node_name(const char *name, GError **error)
{
    AUTO(block_node) node = name ? block_node_find(name) : NULL;

    return node ? block_error(error, EEXIST, "Duplicate nodes with node-name='%s'", name) : 0;
}

/* The target is the guest's disk afterwards, so it is opened as the source was. */
json_t *drive_mirror(struct qmp_request *request, json_t *arguments, GError **error)
{
    const char *node_name = json_string_value(json_object_get(arguments, "node-name"));
    AUTO(block_device) device = NULL;
    AUTO(block_node) source = find_source(arguments, &device, error);
    struct mirror_options options;

    if (!source || read_options(arguments, source, &options, error) < 0 ||
        check_mode(arguments, &options, error) < 0 || check_node_name(node_name, error) < 0) {
        return NULL;
    }
    struct target_file file = target_file_from_arguments(arguments, block_node_length(source));
    file.node_name = node_name;
    file.beside = options.sync == MIRROR_SYNC_TOP ? source : NULL;
    /* A disk whose guest may not choose its format may not choose it by moving either. */
    AUTO(block_node) layer = block_layer_of(source);
    file.guards_format = !json_object_get(arguments, "format") && raw_format_is_guarded(layer);
    file.cache_direct = source->options.cache_direct;
    file.cache_no_flush = source->options.cache_no_flush;
    options.device = device;
    options.open_target = target_file_open;
    options.open_target_data = &file;
    options.target_is_new = file.create;
    return mirror_start(&options, error) == 0 ? json_object() : NULL;
}
