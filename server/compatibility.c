/* SPDX-License-Identifier: BSD-3-Clause */
#include "server/compatibility.h"

#define AS_IN_QEMU  "As in QEMU."
#define OWN_COMMAND "Of liveblk's own; QEMU has no such command."
#define OWN_EVENT   "Of liveblk's own; QEMU has no such event."
#define OF_EMULATOR "Of QEMU's system emulator; its storage daemon has no such command."

/* What several notes say. */
#define STANDS_FOR_DEVICE "A job without `job-id` is named after its device."
#define OWN_TABLES        "Of `driver-specific` there is only `qcow2`. "
#define BACKUP                                                                                     \
    "As in QEMU, but a guest's write does not wait until its old data is on the target: that is "  \
    "kept in memory and on `scratch` until then. (With `sync` `none` it does wait, as others may " \
    "read the target meanwhile.) `cbw-timeout` is the most seconds that the job may add to one "   \
    "write of the guest; when that has passed the job fails and the guest goes on. "               \
    "With a bitmap units of 4 KiB are copied (of whole clusters, if the target has no backing "    \
    "file yet but may get one), not of 64 KiB, and `total-progress` grows at the start where the " \
    "bitmap is finer than those. With `bitmap-mode` `always` a backup that fails clears the bits " \
    "of what was copied only if the target could be flushed after that. `discard-source` is for "  \
    "`snapshot-access` nodes only. " STANDS_FOR_DEVICE                                             \
    " Arguments marked as extensions are liveblk's. "
#define MIRROR                                                                                     \
    "As in QEMU, but there are also `sync` `incremental`, with `since` or `bitmap`, and "          \
    "`copy-mode` `auto`. With `sync` `top` a target that was opened with `backing` null gets the " \
    "disk's backing file before the disk moves to it, one that cannot have any fails the job, "    \
    "and nobody may change the disk's backing file meanwhile. Guests go on writing while the job " \
    "is `pending`; the last of it is copied in `job-finalize`. `replaces` can only name the "      \
    "mirrored node. `granularity` is 4 KiB by default, whatever the target's "                     \
    "clusters. " STANDS_FOR_DEVICE " Arguments marked as extensions are liveblk's. "
#define NO_SNAPSHOTS                                                                               \
    "an image with internal snapshots, which need the backing file, takes no part, and jobs in "   \
    "different parts of a chain run side by side. "
#define EXACTLY_ONE "Exactly one of `device` and `node-name` has to be given."
#define RECORDED                                                                                   \
    "As in QEMU, but `node` may be a device, and on a tracked disk the tracking file keeps what "  \
    "is persistent, too."
#define JOB_TYPES "As in QEMU, but there is the job type `verify`, too."

const struct qmp_note compatibility_notes[] = {
    /* Of the server. */
    {"qmp_capabilities", AS_IN_QEMU},
    {"query-version", "As in QEMU: `qemu` is the version whose protocol is spoken, and `package` "
                      "says that it is liveblk, and which."},
    {"query-commands", AS_IN_QEMU},
    {"query-qmp-schema", "As in QEMU, but extensions of liveblk's are listed like anything else."},
    {"query-status", OF_EMULATOR},
    {"query-nbd-sockets", OWN_COMMAND},
    {"query-name", OF_EMULATOR},
    {"query-uuid", OF_EMULATOR},
    {"query-tpm", OF_EMULATOR},
    {"query-iothreads", OF_EMULATOR " It is empty here even if there are objects of that kind."},
    {"stop", OF_EMULATOR " There is no guest to stop here; its requests are held instead."},
    {"cont", OF_EMULATOR},
    {"quit", AS_IN_QEMU},

    /* Nodes. */
    {"blockdev-add",
     "As in QEMU, for the drivers listed, of which `lose-writes` and `backup-set` are liveblk's "
     "own. Of all nodes `active` is left out. Of `file`: `drop-cache`, `pr-manager` and "
     "`x-check-cache-dropped`. Of `blkdebug`: `config`, `take-child-perms`, "
     "`unshare-child-perms` and in its rules `immediately`; `seed`, `probability`, `skip` and "
     "`count` are liveblk's. What is different of `nbd` and `qcow2` is told above. A file whose "
     "length is no multiple of 512 has that length, which QEMU rounds, but with cache.direct=on. "
     "`snapshot-access` stands on "
     "a `copy-before-write` node only, and that keeps units of 4 KiB. A `throttle` node's requests "
     "wait in order of arrival, whichever node of the group they come through, and those that a "
     "drained section waits for are let through."},
    {"blockdev-del", AS_IN_QEMU},
    {"blockdev-reopen",
     "As in QEMU, but another `file` can be given only if it holds the same data: a filter above "
     "it, or what is below such a filter. `offset` and `size` of `raw` cannot change, and of "
     "drivers' other options those that say so can. A node does not become read-only while an "
     "operation holds a persistent bitmap of it."},
    {"blockdev-create",
     "As in QEMU, for the drivers listed; `data-file-name` of `qcow2` is liveblk's. New files get "
     "mode 0600, not 0644."},
    {"blockdev-set-active", "As in QEMU, but nodes are active as long as they are open: `active` "
                            "false is refused."},
    {"x-blockdev-set-iothread", "As in QEMU, but it has no effect: no node is bound to a thread."},
    {"x-blockdev-change",
     "As in QEMU, but a child of another length, and the same child twice, are "
     "refused."},
    {"x-debug-query-block-graph", "As in QEMU, but ids, names and permissions are the server's."},
    {"query-block", "As in QEMU's system emulator, with the names of devices in `device`; the "
                    "storage daemons, QEMU's and this one's, have no devices."},
    {"query-named-block-nodes", "As in QEMU, but `active` is always true. Of the nameless bitmaps "
                                "only those are shown that record in the place of one that a job "
                                "uses."},
    {"query-blockstats",
     "As in QEMU's system emulator, for NBD clients of devices, too; its "
     "storage daemon does not count these. There are histograms of latencies "
     "in any case, with boundaries of the server's. " OWN_TABLES "`timed_stats` is empty."},
    {"block_resize", "As in QEMU, but an exported node can be resized, too; clients see it when "
                     "they connect anew. " EXACTLY_ONE},
    {"block-set-write-threshold", AS_IN_QEMU},
    {"block_set_io_throttle", OF_EMULATOR " `id` is a device's name or path, and `group` is "
                                          "refused."},
    {"block-latency-histogram-set", OF_EMULATOR " There is no `boundaries-zap`. With `id` alone "
                                                "the server's own boundaries return."},

    /* Objects. */
    {"object-add",
     "As in QEMU, for the kinds listed. An `iothread` keeps its properties and has no effect. A "
     "`secret` is not encrypted by another one: `keyid` and `iv` are refused. A file of an "
     "`authz-list-file` that cannot be read any more allows nobody. `throttle-group` has "
     "`limits`, not the old names with `x-`."},
    {"object-del", AS_IN_QEMU},
    {"qom-get", "As in QEMU, but a `secret` does not show its `data`. A device is a path, too, "
                "with the one property `drive`, as with QEMU's system emulator."},
    {"qom-set",
     "As in QEMU, but of objects only `limits` of a `throttle-group` can change. `drive` "
     "of a device's path is set as with QEMU's system emulator, while clients stay "
     "connected."},
    {"qom-list", "As in QEMU, but the root has only `type`, `objects` and the devices."},
    {"qom-list-types", "As in QEMU, but only what object-add makes, and what these are kinds of."},
    {"qom-list-properties", "As in QEMU, of the types that qom-list-types lists."},

    /* Backups, mirrors, chains. */
    {"blockdev-backup", BACKUP "With `sync` `top`, of a disk without a backing file, everything is "
                               "copied, so that nothing stale is left in the target."},
    {"drive-backup", BACKUP "An image that is made with `sync` `top` stands on the disk's own "
                            "node of the backing file; a format without backing files is refused. "
                            "New files get mode 0600, not 0644."},
    {"blockdev-mirror",
     MIRROR "A target of another size is refused at once. `unmap` is liveblk's."},
    {"drive-mirror", MIRROR "An image that is made with `sync` `top` stands on the disk's own "
                            "node of the backing file; a format without backing files is refused. "
                            "New files get mode 0600, not 0644."},
    {"blockdev-verify", OWN_COMMAND},
    {"block-stream", "As in QEMU, but " NO_SNAPSHOTS "An intermediate image that was filled is "
                     "read-only again. A copy-on-read node is put above the image only if "
                     "`filter-node-name` is given. " STANDS_FOR_DEVICE},
    {"block-commit", "As in QEMU, but " NO_SNAPSHOTS "A base that no disk moved to is read-only "
                     "again. When a disk moves, its base is cut off from the images above, which "
                     "are worth nothing any more. " STANDS_FOR_DEVICE},
    {"change-backing-file", AS_IN_QEMU},
    {"blockdev-snapshot", "As in QEMU, but the overlay must be as long as the disk."},
    {"blockdev-snapshot-sync", "As in QEMU, but an overlay that is there must be as long as the "
                               "disk. " EXACTLY_ONE " New files get mode 0600, not 0644."},
    {"blockdev-snapshot-internal-sync",
     "As in QEMU, but also of a node that others use, where QEMU wants a root node; and not while "
     "a job works on the disk's chain."},
    {"blockdev-snapshot-delete-internal-sync",
     "As in QEMU, but also of a node that others use, where QEMU wants a root node; and not while "
     "a job works on the disk's chain."},

    /* Jobs. */
    {"job-pause", AS_IN_QEMU},
    {"job-resume", AS_IN_QEMU},
    {"job-cancel", AS_IN_QEMU},
    {"job-complete", AS_IN_QEMU},
    {"job-finalize",
     "As in QEMU, but what guests wrote while a mirror was pending is copied then."},
    {"job-dismiss", AS_IN_QEMU},
    {"block-job-pause", AS_IN_QEMU},
    {"block-job-resume", AS_IN_QEMU},
    {"block-job-cancel", AS_IN_QEMU},
    {"block-job-complete", AS_IN_QEMU},
    {"block-job-finalize", "As in QEMU, but for what job-finalize does for mirrors."},
    {"block-job-dismiss", AS_IN_QEMU},
    {"block-job-set-speed", AS_IN_QEMU},
    {"block-job-set-guest-latency", OWN_COMMAND},
    {"block-job-change", "As in QEMU, but a mirror changes from any copy mode to any, not only "
                         "from `background` to `write-blocking`."},
    {"query-jobs",
     "As in QEMU, with more members: `phase` says in a word for people what a job is doing; "
     "`guest-waits`, and with the option `guest-latency` also `guest-latency`, `guest-p99` and "
     "`guest-pace`; of mirrors their rates, `target-lost`, `resumed` and `full-copy-reason`; of "
     "blockdev-verify what it found."},
    {"query-block-jobs", "As in QEMU, with more members: those of query-jobs, but for `phase`."},

    /* Bitmaps and transactions. */
    {"block-dirty-bitmap-add", RECORDED
     " Where QEMU cannot store a persistent bitmap, that file of a tracked disk does. "
     "In an image persistent bitmaps are marked as in use before the first change, of the disk or "
     "of the bitmap, and not when the image is opened: a server that is killed while nobody "
     "writes leaves them as they were. Applying an internal snapshot makes all of a recording "
     "bitmap dirty."},
    {"block-dirty-bitmap-remove", RECORDED},
    {"block-dirty-bitmap-clear", RECORDED},
    {"block-dirty-bitmap-enable", RECORDED},
    {"block-dirty-bitmap-disable", RECORDED},
    {"block-dirty-bitmap-merge", RECORDED " With no bitmaps it does nothing; QEMU's ends."},
    {"x-debug-block-dirty-bitmap-sha256", AS_IN_QEMU},
    {"transaction",
     "As in QEMU, but each action sees what those before it do: a bitmap may be removed and added "
     "again, for example. What `drive-backup` has created stays when a later action fails. "
     "`view-create`, `block-checkpoint-add` and `blockdev-verify` are liveblk's."},

    /* liveblk's own: views, faults, tracking, sessions. */
    {"view-create", OWN_COMMAND},
    {"view-drop", OWN_COMMAND},
    {"view-discard", OWN_COMMAND},
    {"query-views", OWN_COMMAND},
    {"blkdebug-set", OWN_COMMAND},
    {"blkdebug-break", OWN_COMMAND},
    {"blkdebug-resume", OWN_COMMAND},
    {"query-blkdebug", OWN_COMMAND},
    {"lose-writes-now", OWN_COMMAND},
    {"lose-writes-arm", OWN_COMMAND},
    {"query-lose-writes", OWN_COMMAND},
    {"query-block-tracking", OWN_COMMAND},
    {"block-tracking-start", OWN_COMMAND},
    {"block-tracking-stop", OWN_COMMAND},
    {"block-checkpoint-add", OWN_COMMAND},
    {"block-checkpoint-remove", OWN_COMMAND},
    {"checkpoint-begin", OWN_COMMAND},
    {"checkpoint-commit", OWN_COMMAND},
    {"checkpoint-abandon", OWN_COMMAND},
    {"checkpoint-delete", OWN_COMMAND},
    {"query-checkpoints", OWN_COMMAND},
    {"query-changes", OWN_COMMAND},

    /* Exports. */
    {"nbd-server-start", "As in QEMU, but there can be several servers, of which all but one have "
                         "an `id`. The object of `tls-authz` has to be there at the start, and "
                         "needs `tls-creds`; QEMU looks for it when a client comes."},
    {"nbd-server-stop", "As in QEMU; of several servers, `id` says which, and exports go with the "
                        "last one."},
    {"nbd-server-add", "As in QEMU, and deprecated there, too."},
    {"nbd-server-remove", "As in QEMU, and deprecated there, too."},
    {"block-export-add",
     "As in QEMU, but only `nbd`: there are no types `fuse`, `vhost-user-blk` and `vduse-blk`. "
     "`node-name` may be a device or a view; `changes` and `tls-authz` are liveblk's; iothreads "
     "have no effect. An export is as long, to the byte, as its node is when a client connects; "
     "in QEMU it is a multiple of 512 and does not change. Of a `qcow2` node the preferred block "
     "size is a cluster, in QEMU always 4096. Requests that are refused get the errors of the "
     "protocol's specification, as from nbdkit: EPERM where an export is read-only, ENOSPC for "
     "writes (of zeroes, too) beyond its end, else EINVAL; from QEMU EINVAL in any case."},
    {"block-export-del", AS_IN_QEMU},
    {"query-block-exports", "As in QEMU; of a device's export `node-name` is the node that the "
                            "device has at the moment."},

    /* Events. */
    {"BLOCK_IO_ERROR", "As in QEMU's system emulator, whose storage daemon never emits it. "
                       "`qom-path` is the path of a device, which query-block shows as `qdev`."},
    {"BLOCK_IMAGE_CORRUPTED", AS_IN_QEMU},
    {"STOP", "Of QEMU's system emulator; its storage daemon has no such event."},
    {"RESUME", "Of QEMU's system emulator; its storage daemon has no such event."},
    {"JOB_STATUS_CHANGE", AS_IN_QEMU},
    {"BLOCK_JOB_COMPLETED", JOB_TYPES},
    {"BLOCK_JOB_CANCELLED", JOB_TYPES},
    {"BLOCK_JOB_READY", AS_IN_QEMU},
    {"BLOCK_JOB_PENDING", JOB_TYPES},
    {"BLOCK_JOB_ERROR", AS_IN_QEMU},
    {"QUORUM_FAILURE", AS_IN_QEMU},
    {"QUORUM_REPORT_BAD", AS_IN_QEMU},
    {"MIRROR_COPY_MODE_CHANGE", OWN_EVENT},
    {"MIRROR_TARGET_LOST", OWN_EVENT},
    {"MIRROR_TARGET_BACK", OWN_EVENT},
    {"VERIFY_DIFFERENCE", OWN_EVENT},
    {"SCRATCH_HIGH_WATER", OWN_EVENT},
    {"VIEW_BROKEN", OWN_EVENT},
    {"BLKDEBUG_SUSPENDED", OWN_EVENT},
    {"LOSE_WRITES_END", OWN_EVENT},
    {"BLOCK_TRACKING_LOST", OWN_EVENT},
    {"CHECKPOINT_BROKEN", OWN_EVENT},
    {"CHECKPOINT_EXPIRED", OWN_EVENT},
    {"BLOCK_EXPORT_DELETED", AS_IN_QEMU},
    {"BLOCK_WRITE_THRESHOLD", "As in QEMU, but also for a write that failed."},
    {NULL},
};
