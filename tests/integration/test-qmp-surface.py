#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The admin channel against what QEMU's storage daemon does: what other tests do not look at.

Each row of a table names the section of the reference (wire protocol 1, commands 2, jobs 3,
semantics 4, crashes of QEMU's daemon 6) that it is about.
"""

import json
import pathlib
import socket
import tempfile

from liveblk_test import Qmp, QmpError, Server, connect, main, promise, wait_until

KIB = 1 << 10
MIB = 1 << 20
LENGTH = MIB

# Commands of QEMU 10's storage daemon that are left out, and why docs/qmp.md says so.
LEFT_OUT = {
    "chardev-add", "chardev-change", "chardev-remove", "chardev-send-break", "query-chardev",
    "query-chardev-backends", "ringbuf-read", "ringbuf-write", "x-blockdev-amend",
}  # fmt: skip
STORAGE_DAEMON = LEFT_OUT | {
    "object-add", "object-del", "qom-list", "qom-list-properties", "qom-list-types",
    "block-commit", "block-dirty-bitmap-add", "block-dirty-bitmap-clear",
    "block-dirty-bitmap-disable", "block-dirty-bitmap-enable", "block-dirty-bitmap-merge",
    "block-dirty-bitmap-remove", "block-export-add", "block-export-del", "block-job-cancel",
    "block-job-change", "block-job-complete", "block-job-dismiss", "block-job-finalize",
    "block-job-pause", "block-job-resume", "block-job-set-speed", "block-set-write-threshold",
    "block-stream", "block_resize", "blockdev-add", "blockdev-backup", "blockdev-create",
    "blockdev-del", "blockdev-mirror", "blockdev-reopen", "blockdev-set-active",
    "blockdev-snapshot", "blockdev-snapshot-delete-internal-sync",
    "blockdev-snapshot-internal-sync", "blockdev-snapshot-sync", "change-backing-file",
    "drive-backup", "drive-mirror", "job-cancel", "job-complete", "job-dismiss", "job-finalize",
    "job-pause", "job-resume", "nbd-server-add", "nbd-server-remove", "nbd-server-start",
    "nbd-server-stop", "qmp_capabilities", "qom-get", "qom-set", "query-block",
    "query-block-exports", "query-block-jobs", "query-blockstats", "query-commands", "query-jobs",
    "query-named-block-nodes", "query-qmp-schema", "query-version", "quit", "transaction",
    "x-blockdev-change", "x-blockdev-set-iothread", "x-debug-block-dirty-bitmap-sha256",
    "x-debug-query-block-graph",
}  # fmt: skip


class World:
    """A server with a disk and all kinds of nodes, in memory; no command waits for storage."""

    def __init__(self, test):
        self.test = test
        self.folder = pathlib.Path(tempfile.mkdtemp(dir="/dev/shm", prefix="surface."))
        test.cleanup.callback(self.clean)
        for name in ("vda", "file", "noise"):
            with open(self.folder / name, "wb") as file:
                file.truncate(LENGTH)
        (self.folder / "noise").write_bytes(b"x" * LENGTH)
        disk = self.folder / "vda"
        self.server = Server(test, [f"name=vda,node-name=disk,format=raw,file={disk}"])
        self.qmp = self.server.qmp()
        self.add_nodes()

    def clean(self):
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()

    def image(self, name, **options):
        """A new qcow2 image as a node of this name, its file as NAME-file."""
        file = {"driver": "file", "node-name": f"{name}-file", "filename": f"{self.folder}/{name}"}
        self.test.run(
            "qemu-img", "create", "-q", "-f", "qcow2", *options.pop("words", ()), file["filename"], "1M"
        )
        self.add({"driver": "qcow2", "node-name": name, "file": file, **options})

    def add(self, options):
        self.qmp.command_raw("blockdev-add", options)

    def add_nodes(self):
        for name, size in (("n", LENGTH), ("n2", LENGTH), ("small", LENGTH // 2)):
            self.add({"driver": "null-co", "node-name": name, "size": size, "read-zeroes": True})
        self.add({"driver": "file", "node-name": "f", "filename": f"{self.folder}/file"})
        self.add({"driver": "raw", "node-name": "r", "file": "f"})
        voter = {"driver": "null-co", "node-name": "voter", "size": LENGTH}
        self.add({"driver": "quorum", "node-name": "votes", "children": [voter], "vote-threshold": 1})
        self.image("q")
        self.image("q2", words=("-o", "compat=0.10"))
        self.image("under")
        self.image("over", backing="under")
        self.image("q3", backing=None)
        self.add({"driver": "raw", "node-name": "above", "file": "q3"})
        self.image("ro", **{"read-only": True})
        self.qmp.command("block-dirty-bitmap-add", node="n", name="b0")
        self.qmp.command("block-dirty-bitmap-add", node="small", name="bs")

    def state(self):
        """What a refused command must not change."""
        nodes = self.qmp.command("query-named-block-nodes", flat=True)
        return nodes, self.qmp.command("query-jobs"), sorted(self.folder.iterdir())


def as_expected(error, expected):
    """expected: the text, GenericError, its beginning if it ends in "...", or class and text."""
    kind, desc = expected if isinstance(expected, tuple) else ("GenericError", expected)
    matches = error.desc.startswith(desc[:-3]) if desc.endswith("...") else error.desc == desc
    return matches and error.kind == kind


def add(driver, **options):
    options = {key.replace("_", "-"): value for key, value in options.items()}
    return {"driver": driver, "node-name": "x", **options}


def cbw(**options):
    return add("copy-before-write", file="n", **{"target": "n2", **options})


def quorum(*children, threshold=2, **options):
    return add("quorum", children=list(children), vote_threshold=threshold, **options)


def job(**options):
    options = {key.replace("_", "-"): value for key, value in options.items()}
    return {"job-id": "b", "device": "n", "target": "n2", "sync": "full", **options}


def bitmap(**options):
    return {"node": "n", "name": "b", **options}


def snapshot(**options):
    return {"device": "q", **options}


def actions(*pairs, mode=None):
    data = {"actions": [{"type": kind, "data": data} for kind, data in pairs]}
    return {**data, "properties": {"completion-mode": mode}} if mode else data


NO_NODE = "Cannot find device='{0}' nor node-name='{0}'"
NO_DISK = "Cannot find device='{0}' nor node-name=''"
NUMBER = "Parameter '{}' expects uint64"

# Section, what is answered, the command and its arguments.
REFUSED = (
    ("1.4", "Invalid parameter type for 'file', expected: BlockdevRef",
     "blockdev-add", add("raw", file=5)),
    ("1.4", "Invalid parameter type for 'file', expected: BlockdevRef",
     "blockdev-add", add("raw", file=None)),
    ("1.4", "Invalid parameter type for 'backing', expected: BlockdevRefOrNull",
     "blockdev-add", add("qcow2", file="n", backing=5)),
    ("1.4", "Parameter 'file.filename' is missing", "blockdev-add", add("raw", file={"driver": "file"})),
    ("1.4", "Invalid parameter type for 'file.cache.direct', expected: boolean", "blockdev-add",
     add("raw", file={"driver": "file", "filename": "/x", "cache": {"direct": 1}})),
    ("1.4", "Invalid parameter type for 'cache', expected: object",
     "blockdev-add", add("raw", file="n", cache=5)),
    ("1.4", "Invalid parameter type for 'offset', expected: integer",
     "blockdev-add", add("raw", file="n", offset=1.5)),
    ("1.4", "Invalid parameter type for 'offset', expected: integer",
     "blockdev-add", add("raw", file="n", offset="1")),
    ("1.4", NUMBER.format("write-threshold"),
     "block-set-write-threshold", {"node-name": "n", "write-threshold": 1.5}),
    ("1.4", NUMBER.format("write-threshold"),
     "block-set-write-threshold", {"node-name": "n", "write-threshold": None}),
    ("1.4", NUMBER.format("granularity"), "block-dirty-bitmap-add", bitmap(granularity="1")),
    ("1.4", "Parameter 'granularity' expects uint32_t",
     "block-dirty-bitmap-add", bitmap(granularity=1 << 32)),
    ("1.4", "Parameter 'actions[0].data.zz' is unexpected",
     "transaction", actions(("block-dirty-bitmap-add", bitmap(zz=1)))),
    ("2.1", ("CommandNotFound", "The command chardev-add has not been found"), "chardev-add", {}),
    ("2.2", "'node-name' must be specified for the root node", "blockdev-add", {"driver": "null-co"}),
    ("2.2", "Invalid node-name: ''", "blockdev-add", {"driver": "null-co", "node-name": ""}),
    ("2.2", "Node name too long", "blockdev-add", {"driver": "null-co", "node-name": "x" * 32}),
    ("2.2", NO_NODE.format("zz"), "blockdev-add", add("raw", file="zz")),
    ("2.2", "Image is not in qcow2 format",
     "blockdev-add", add("qcow2", file={"driver": "file", "filename": "{folder}/noise"})),
    ("2.2", "Failed to get \"write\" lock...",
     "blockdev-add", add("file", filename="{folder}/vda", locking="on")),
    ("2.2", "setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
     "blockdev-add", add("file", filename="{folder}/noise", detect_zeroes="unmap")),
    ("2.2", "force-share=on can only be used with read-only images",
     "blockdev-add", add("file", filename="{folder}/noise", force_share=True)),
    ("2.2", "Failed to find node with node-name='zz'", "blockdev-set-active",
     {"node-name": "zz", "active": True}),
    ("2.2", "Failed to inactivate node: Operation not permitted...",
     "blockdev-set-active", {"active": False}),
    ("2.2", "Failed to inactivate node: Operation not permitted...",
     "blockdev-set-active", {"node-name": "n", "active": False}),
    ("2.2", "Block device f is in use", "blockdev-del", {"node-name": "f"}),
    ("2.2", "Node 'under' is busy: node is used as backing hd of 'over'",
     "blockdev-del", {"node-name": "under"}),
    ("2.2", "The overlay is already in use", "blockdev-snapshot", {"node": "n", "overlay": "q3"}),
    ("2.2", NO_DISK.format("zz"), "blockdev-snapshot-sync",
     {"device": "zz", "snapshot-file": "{folder}/new"}),
    ("2.2", NO_DISK.format("zz"), "block_resize", {"device": "zz", "size": MIB}),
    ("2.2", NO_NODE.format("zz"), "blockdev-snapshot", {"node": "zz", "overlay": "q"}),
    ("2.11", "the burst length cannot be 0", "object-add",
     {"qom-type": "throttle-group", "id": "g",
      "limits": {"bps-total": 5, "bps-total-max": 9, "bps-total-max-length": 0}}),
    ("2.2", "Invalid job ID '1'", "blockdev-create",
     {"job-id": "1", "options": {"driver": "file", "filename": "{folder}/new", "size": MIB}}),
    ("2.2", "Device '' not found", "block-set-write-threshold",
     {"node-name": "", "write-threshold": 1}),
    ("2.2", "Device 'vda' not found", "block-set-write-threshold",  # a device is no node
     {"node-name": "vda", "write-threshold": 1}),
    ("2.2", "Failed to find node with node-name='zz'",
     "x-blockdev-set-iothread", {"node-name": "zz", "iothread": None}),
    ("2.2", "Cannot find iothread t", "x-blockdev-set-iothread", {"node-name": "n", "iothread": "t"}),
    ("2.2", "Invalid parameter type for 'iothread', expected: StrOrNull",
     "x-blockdev-set-iothread", {"node-name": "n", "iothread": 5}),
    ("2.2", NO_NODE.format("zz"), "x-blockdev-change", {"parent": "zz"}),
    ("2.2", "Either child or node must be specified", "x-blockdev-change", {"parent": "r"}),
    ("2.2", "The node r does not support adding a child",
     "x-blockdev-change", {"parent": "r", "node": "n"}),
    ("2.2", "Node 'zz' not found", "x-blockdev-change", {"parent": "r", "node": "zz"}),
    ("2.2", "The node r does not support removing a child...",
     "x-blockdev-change", {"parent": "r", "child": "file"}),
    ("2.2", "Node 'r' does not have child 'zz'", "x-blockdev-change", {"parent": "r", "child": "zz"}),
    ("2.2", "The parameters child and node are in conflict",
     "x-blockdev-change", {"parent": "r", "child": "file", "node": "n"}),
    ("2.2", "The number of children cannot be lower than the vote threshold 1",
     "x-blockdev-change", {"parent": "votes", "child": "children.0"}),
    ("2.2", "Node 'votes' does not have child 'null'",
     "x-blockdev-change", {"parent": "votes", "child": "null"}),
    ("2.2", "Node 'zz' not found", "x-blockdev-change", {"parent": "votes", "node": "zz"}),
    ("2.2", "The node voter already has a parent",
     "x-blockdev-change", {"parent": "votes", "node": "voter"}),
    ("2.2", "Node 'small' is 524288 bytes long and the other children of 'votes' are 1048576...",
     "x-blockdev-change", {"parent": "votes", "node": "small"}),
    ("2.2", NO_NODE.format("zz"), "blockdev-snapshot-internal-sync", snapshot(device="zz", name="s")),
    ("2.2", "Name is empty", "blockdev-snapshot-internal-sync", snapshot(name="")),
    ("2.2", "Snapshot with name 's0' already exists on device 'q'",
     "blockdev-snapshot-internal-sync", snapshot(name="s0")),
    ("2.2", "Device 'ro' is read only", "blockdev-snapshot-internal-sync",
     snapshot(device="ro", name="s")),
    ("2.2", "Block format 'null-co' used by device 'n' does not support internal snapshots",
     "blockdev-snapshot-internal-sync", snapshot(device="n", name="s")),
    ("2.2", "Name or id must be provided", "blockdev-snapshot-delete-internal-sync", snapshot()),
    ("2.2", "Snapshot with id 'null' and name 'zz' does not exist on device 'q'",
     "blockdev-snapshot-delete-internal-sync", snapshot(name="zz")),
    ("2.2", "Snapshot with id '7' and name 'null' does not exist on device 'q'",
     "blockdev-snapshot-delete-internal-sync", snapshot(id="7")),
    ("2.2", "not allowing backing file change on an image without a backing file",
     "change-backing-file", {"device": "q", "image-node-name": "q", "backing-file": "x"}),
    ("2.2", "'q' and image file are not in the same chain",
     "change-backing-file", {"device": "q", "image-node-name": "n", "backing-file": "x"}),
    ("2.2", "Parameter 'size' expects a >0 size", "block_resize", {"node-name": "f", "size": -1}),
    ("2.2", "The new size must be a multiple of 512", "block_resize", {"node-name": "f", "size": 1000}),
    ("2.2", "Image is read-only", "block_resize", {"node-name": "ro", "size": 2 * MIB}),
    ("2.3", "Invalid parameter type for 'server.port', expected: string",
     "blockdev-add", add("nbd", server={"type": "inet", "host": "localhost", "port": 5})),
    ("2.3", "Parameter 'addr.data' is missing",
     "nbd-server-start", {"addr": {"type": "unix", "path": "/x"}}),
    ("2.4", "Value '-512' is out of range for parameter 'offset'",
     "blockdev-add", add("raw", file="n", offset=-512)),
    ("2.4", "The sum of offset (512) and size (1048576) has to be smaller or equal to the  actual size "
     "of the containing file (1048576)", "blockdev-add", add("raw", file="n", offset=512, size=MIB)),
    ("2.4", "min-cluster-size needs to be a power of 2", "blockdev-add", cbw(min_cluster_size=1000)),
    ("2.4", "Parameter 'on-cbw-error' does not accept value 'zz'",
     "blockdev-add", cbw(on_cbw_error="zz")),
    ("2.4", "Value '-1' is out of range for parameter 'cbw-timeout'",
     "blockdev-add", cbw(cbw_timeout=-1)),
    ("2.4", "Parameter 'target' is missing", "blockdev-add", add("copy-before-write", file="n")),
    ("2.4", NO_NODE.format("zz"), "blockdev-add", cbw(target="zz")),
    ("2.4", "Node 'zz' not found", "blockdev-add", cbw(bitmap={"node": "zz", "name": "b"})),
    ("2.4", "Dirty bitmap 'zz' not found", "blockdev-add", cbw(bitmap={"node": "n", "name": "zz"})),
    ("2.4", "Parameter 'bitmap.name' is missing", "blockdev-add", cbw(bitmap={"node": "n"})),
    ("2.4", "Parameter 'children' is missing", "blockdev-add", add("quorum", vote_threshold=1)),
    ("2.4", "Parameter 'vote-threshold' is missing", "blockdev-add", add("quorum", children=["n"])),
    ("2.4", "Invalid parameter type for 'children', expected: array",
     "blockdev-add", add("quorum", children="n", vote_threshold=1)),
    ("2.4", "Number of provided children must be 1 or more", "blockdev-add", quorum()),
    ("2.4", NO_NODE.format("zz"), "blockdev-add", quorum("n", "zz")),
    ("2.4", "Parameter 'vote-threshold' expects a value >= 1",
     "blockdev-add", quorum("n", "n2", threshold=0)),
    ("2.4", "threshold may not exceed children count",
     "blockdev-add", quorum("n", "n2", threshold=3)),
    ("2.4", "blkverify=on can only be set if there are exactly two files and vote-threshold is 2",
     "blockdev-add", quorum("n", "n2", threshold=1, blkverify=True)),
    ("2.4", "rewrite-corrupted=on cannot be used with blkverify=on",
     "blockdev-add", quorum("n", "n2", blkverify=True, rewrite_corrupted=True)),
    ("2.4", "Bottom node 'zz' not found", "blockdev-add", add("copy-on-read", file="q", bottom="zz")),
    ("2.4", "Parameter 'file' is missing", "blockdev-add", add("compress")),
    ("2.4", "Compression is not supported for this drive n", "blockdev-add", add("compress", file="n")),
    ("2.4", NO_NODE.format("zz"), "blockdev-add", add("preallocate", file="zz")),
    ("2.4", "prealloc-align must be a multiple of 512 bytes",
     "blockdev-add", add("preallocate", file="n2", prealloc_align=1000)),
    ("2.4", "Invalid parameter type for 'prealloc-size', expected: integer",
     "blockdev-add", add("preallocate", file="n2", prealloc_size="1M")),
    ("2.4", "Parameter 'log' is missing", "blockdev-add", add("blklogwrites", file="n")),
    ("2.4", "log-sector-size must be a power of 2 from 512 to 8388608 bytes",
     "blockdev-add", add("blklogwrites", file="n", log="n2", log_sector_size=1000)),
    ("2.4", "log-super-update-interval must be at least 1",
     "blockdev-add", add("blklogwrites", file="n", log="n2", log_super_update_interval=0)),
    ("2.4", "There is no log of writes in node 'n2' to append to...",
     "blockdev-add", add("blklogwrites", file="n", log="n2", log_append=True)),
    ("2.5", "Source and target image have different sizes", "blockdev-backup", job(target="small")),
    ("2.5", "Parameter 'speed' expects a non-negative value", "blockdev-backup", job(speed=-1)),
    ("2.5", "Compression is not supported for this drive n2", "blockdev-backup", job(compress=True)),
    ("2.5", "min-cluster-size needs to be a power of 2",
     "blockdev-backup", job(x_perf={"min-cluster-size": 1000})),
    ("2.5", "discard-source is for a snapshot: node 'n' has the driver 'null-co'...",
     "blockdev-backup", job(discard_source=True)),
    ("2.5", "discard-source has no meaning with sync mode 'none'",
     "blockdev-backup", job(sync="none", discard_source=True)),
    ("4.2", "must provide a valid bitmap name for 'incremental' sync mode",
     "blockdev-backup", job(sync="incremental")),
    ("4.2", "must provide a valid bitmap name for 'bitmap' sync mode",
     "blockdev-backup", job(sync="bitmap")),
    ("4.2", "Bitmap 'zz' could not be found", "blockdev-backup", job(sync="incremental", bitmap="zz")),
    ("4.2", "Bitmap sync mode must be given when providing a bitmap",
     "blockdev-backup", job(sync="bitmap", bitmap="b0")),
    ("4.2", "Bitmap sync mode must be given when providing a bitmap",
     "blockdev-backup", job(bitmap="b0")),
    ("4.2", "Bitmap sync mode must be 'on-success' when using sync mode 'incremental'",
     "blockdev-backup", job(sync="incremental", bitmap="b0", bitmap_mode="never")),
    ("4.2", "Cannot specify bitmap sync mode without a bitmap",
     "blockdev-backup", job(bitmap_mode="always")),
    ("4.2", "Bitmap sync mode 'never' has no meaningful effect when combined with sync mode 'full'",
     "blockdev-backup", job(bitmap="b0", bitmap_mode="never")),
    ("4.2", "sync mode 'none' does not produce meaningful bitmap outputs",
     "blockdev-backup", job(sync="none", bitmap="b0", bitmap_mode="never")),
    ("2.5", "Parameter 'granularity' expects a value in range [512B, 64MB]",
     "blockdev-mirror", job(granularity=100)),
    ("2.5", "Parameter 'granularity' expects a power of 2", "blockdev-mirror", job(granularity=1000)),
    ("2.5", NO_NODE.format("zz"), "block-stream", {"job-id": "b", "device": "zz"}),
    ("2.5", "'base' and 'base-node' cannot be specified at the same time", "block-stream",
     {"job-id": "b", "device": "q", "base": "x", "base-node": "n"}),
    ("2.7", NO_NODE.format("zz"), "block-dirty-bitmap-add", bitmap(node="zz")),
    ("2.7", "Can't make bitmap 'b' persistent in 'q2': Cannot store dirty bitmaps in qcow2 v2 files",
     "block-dirty-bitmap-add", bitmap(node="q2", persistent=True)),
    ("2.7", "Can't store persistent bitmaps to n...", "block-dirty-bitmap-add", bitmap(persistent=True)),
    ("2.8", "Transaction aborted using Abort action", "transaction", actions(("abort", {}))),
    ("2.8", "Transaction aborted using Abort action",
     "transaction", actions(("block-dirty-bitmap-add", bitmap()), ("abort", {}))),
    ("2.8", "Transaction aborted using Abort action",
     "transaction", actions(("abort", {}), mode="grouped")),
    ("2.8", "Parameter 'actions[0].data' is missing", "transaction", {"actions": [{"type": "abort"}]}),
    ("2.8", "Parameter 'type' does not accept value 'blockdev-mirror'",
     "transaction", actions(("blockdev-mirror", {}))),
    ("2.8", "Parameter 'completion-mode' does not accept value 'zz'",
     "transaction", actions(mode="zz")),
    ("2.11", ("DeviceNotFound", "Device 'zz' not found"), "block-latency-histogram-set", {"id": "zz"}),
    ("2.11", "Device 'vda' set read boundaries fail...",
     "block-latency-histogram-set", {"id": "vda", "boundaries": [5, 4]}),
    ("2.11", "Device 'vda' set flush boundaries fail...",
     "block-latency-histogram-set", {"id": "vda", "boundaries": [1], "boundaries-flush": [0]}),
    ("6.5", "Value '-1' is out of range for parameter 'size'",
     "blockdev-add", {"driver": "null-co", "node-name": "x", "size": -1}),
    ("6", "Bottom node 'n' is not in the chain below 'q'",
     "blockdev-add", add("copy-on-read", file="q", bottom="n")),
)  # fmt: skip


def with_folder(value, folder):
    return json.loads(json.dumps(value).replace("{folder}", str(folder)))


@promise("what QEMU's daemon refuses is refused in its words, and nothing has changed")
def refusals(test):
    world = World(test)
    world.qmp.command_raw("blockdev-snapshot-internal-sync", snapshot(name="s0"))
    before = world.state()
    wrong = []
    for section, expected, command, arguments in REFUSED:
        try:
            world.qmp.command_raw(command, with_folder(arguments, world.folder))
            wrong.append((section, command, arguments, "was not refused"))
        except QmpError as error:
            if not as_expected(error, expected):
                wrong.append((section, command, arguments, error.kind, error.desc))
        if wrong and "not refused" in wrong[-1][-1]:
            break
    assert not wrong, "\n".join(map(str, wrong))
    assert world.state() == before


# ---- Commands that answer ---------------------------------------------------------------------

ANSWERED = (
    ("2.1", "query-tpm", {}, []),
    ("2.1", "query-uuid", {}, {"UUID": "00000000-0000-0000-0000-000000000000"}),
    ("2.1", "query-iothreads", {}, []),
    ("2.2", "blockdev-set-active", {"active": True}, {}),
    ("2.2", "blockdev-set-active", {"node-name": "n", "active": True}, {}),
    ("2.2", "x-blockdev-set-iothread", {"node-name": "n", "iothread": None, "force": True}, {}),
    ("2.2", "block-set-write-threshold", {"node-name": "n", "write-threshold": 0}, {}),
    ("2.8", "transaction", {"actions": []}, {}),
    ("2.8", "transaction", actions(mode="grouped"), {}),
    ("6.4", "block-dirty-bitmap-merge", {"node": "n", "target": "b0", "bitmaps": []}, {}),
    ("6.4", "transaction", actions(("block-dirty-bitmap-merge",
                                    {"node": "n", "target": "b0", "bitmaps": []})), {}),
    ("6", "blockdev-reopen", {"options": []}, {}),
    ("2.7", "x-debug-block-dirty-bitmap-sha256", {"node": "n", "name": "b0"},
     {"sha256": "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc"}),
)  # fmt: skip


def graph_of(qmp):
    """Edges as (parent's name, name, child's name), with what is done and shared."""
    graph = qmp.command("x-debug-query-block-graph")
    entries = {entry["id"]: entry for entry in graph["nodes"]}
    assert len(entries) == len(graph["nodes"])
    return entries, {
        (entries[edge["parent"]]["name"], edge["name"], entries[edge["child"]]["name"]):
            (set(edge["perm"]), set(edge["shared-perm"]))
        for edge in graph["edges"]
    }  # fmt: skip


@promise("commands that other tests do not call answer as QEMU's do")
def answers(test):
    world = World(test)
    qmp = world.qmp
    for section, command, arguments, expected in ANSWERED:
        answer = qmp.command_raw(command, arguments)
        assert answer == expected, (section, command, answer)
    # 2.2: the threshold is shown as it was given, though the schema calls it an int.
    for threshold, shown in ((4096, 4096), (-1, -1), ((1 << 64) - 1, -1)):
        qmp.command("block-set-write-threshold", node_name="n", write_threshold=threshold)
        nodes = qmp.command("query-named-block-nodes")
        assert {"n": shown}.items() <= {
            node["node-name"]: node["write_threshold"] for node in nodes
        }.items()
    # 2.2: flat leaves out nested images, nothing else.
    world.image("top", backing="n")
    nested, flat = (
        {node["node-name"]: node for node in qmp.command("query-named-block-nodes", flat=flat)}
        for flat in (False, True)
    )
    assert nested["top"]["image"].pop("backing-image")["virtual-size"] == LENGTH
    assert nested["top"] == flat["top"] and flat["top"]["backing_file_depth"] == 1
    # 2.2: who uses what.
    qmp.command_raw("blockdev-backup", job(device="q", target="n2", sync="none"))
    entries, edges = graph_of(qmp)
    kinds = {(entry["type"], entry["name"]) for entry in entries.values()}
    assert {("block-backend", "vda"), ("block-job", "b"), ("block-driver", "q")} <= kinds, kinds
    assert "consistent-read" in edges["vda", "root", "disk"][0]
    assert "write" in edges["vda", "root", "disk"][0]
    assert "write" not in edges["vda", "root", "disk"][1]
    assert edges["top", "backing", "n"] and edges["r", "file", "f"]
    assert ("b", "root", "q") in edges and "write" in edges["b", "root", "n2"][0], edges.keys()
    assert edges["q", "file", "q-file"][0] >= {"consistent-read", "write", "resize"}
    qmp.command("job-cancel", id="b")
    qmp.wait_job("b", "null")


@promise("the schema names all commands that QEMU's daemon has and we know, and what is special")
def schema(test):
    world = World(test)
    entries = world.qmp.command("query-qmp-schema")
    by_name = {entry["name"]: entry for entry in entries}
    assert len(by_name) == len(entries)
    commands = {entry["name"] for entry in world.qmp.command("query-commands")}
    assert not STORAGE_DAEMON - LEFT_OUT - commands, STORAGE_DAEMON - LEFT_OUT - commands
    for entry in entries:
        if entry["meta-type"] == "command":
            unstable = entry["name"].startswith("x-")
            assert ("unstable" in entry.get("features", [])) == unstable, entry
            arguments = by_name[entry["arg-type"]]
            assert arguments["meta-type"] == "object" and entry["ret-type"] in by_name, entry
        for member in entry.get("members", []) if entry["meta-type"] == "object" else []:
            assert member["type"] in by_name and member.get("default") is None, (entry, member)
    for name in ("nbd-server-add", "nbd-server-remove"):
        assert by_name[name]["features"] == ["deprecated"]
    commit = by_name[by_name["block-commit"]["arg-type"]]["members"]
    assert {m["name"] for m in commit if "deprecated" in m.get("features", [])} == {"top", "base"}
    stats = world.qmp.command("query-blockstats")[0]["stats"]
    assert stats["timed_stats"] == [] and stats["zone_append_operations"] == 0


# ---- The wire protocol ------------------------------------------------------------------------

PARSE = "JSON parse error, "
# What is sent after the negotiation, and the answers: texts of errors, or what is returned.
WIRE = (
    ("1.2", b"5 ", ["QMP input must be a JSON object"]),
    ("1.2", b"[]", ["QMP input must be a JSON object"]),
    ("1.2", b'{"execute":5}', ["QMP input member 'execute' must be a string"]),
    ("1.2", b"{}", ["QMP input lacks member 'execute'"]),
    ("1.2", b'{"execute":"query-name","arguments":null}',
     ["QMP input member 'arguments' must be an object"]),
    ("1.2", b'{"execute":"query-name","zz":1}', ["QMP input member 'zz' is unexpected"]),
    ("1.2", b'{"execute":"query-name","exec-oob":"stop"}',
     ["QMP input member 'exec-oob' is unexpected"]),
    ("1.2", b'{"execute":"qmp_capabilities"}',
     ["Capabilities negotiation is already complete, command ignored"]),
    ("1.2", b'{"execute":"zz"}', ["The command zz has not been found"]),
    ("1.2", b'{"execute":"query-name","id":{"a":[1.5,null]}}', [{"id": {"a": [1.5, None]}}]),
    ("1.2", b'{"execute":"query-name","id":null}', [{"id": None}]),
    ("1.2", b'{"execute":"query-name","id":18446744073709551615}', [{"id": (1 << 64) - 1}]),
    ("1.5", b'{"execute":"query-name",}', [PARSE + "expecting value"]),
    ("1.5", b'{"execute":"\xff"}', [PARSE + "stray '\"\ufffd'", PARSE + "expecting value"]),
    ("1.5", b'@#{"execute":"query-name"}', [PARSE + "stray '@'", {}]),
    ("1.5", b"{'execute':'query-name','id':'it\\'s'}", [{"id": "it's"}]),
    ("1.5", b'{"a":1,"a":2}', [PARSE + "duplicate key"]),
    ("1.5", b'{"execute":"query-name","id":"\\ud800"}', [PARSE + "\\ud800..."]),
    ("1.5", b'{"execute":"x"\n\x01{"execute":"query-name"}', [PARSE + "stray '\x01'", {}]),
)  # fmt: skip


def receive_answer(qmp):
    while True:
        message = qmp.receive()
        if "event" not in message:
            return message


@promise("bytes are understood as QEMU does, good ones and bad ones, and no client sees another's")
def wire(test):
    world = World(test)
    monitors = [world.server.qmp() for _ in range(3)]
    wrong = []
    for section, sent, expected in WIRE:
        for byte in sent:  # one at a time, and another client's whole in between
            monitors[0].send_bytes(bytes([byte]))
        monitors[1].send_bytes(sent)
        for qmp in monitors[:2]:
            for answer in expected:
                found = receive_answer(qmp)
                if isinstance(answer, str):
                    desc = found.get("error", {}).get("desc", "")
                    fits = desc.startswith(answer[:-3]) if answer.endswith("...") else desc == answer
                else:
                    fits = {"return": {}, **answer} == found
                if not fits:
                    wrong.append((section, sent, answer, found))
    assert not wrong, "\n".join(map(str, wrong))
    assert monitors[2].command("query-name") == {}


@promise("each client negotiates for itself, and what one left half sent is forgotten")
def negotiation(test):
    world = World(test)
    with Qmp(world.server.admin, negotiate=False) as raw:
        assert raw.greeting["capabilities"] == ["oob"]
        assert isinstance(raw.greeting["version"]["package"], str)
        enable = {"execute": "qmp_capabilities", "arguments": {"enable": ["bogus"]}}
        answer = raw.request(enable)["error"]
        assert answer["desc"] == "Parameter 'null' does not accept value 'bogus'", answer
        answer = raw.request({"execute": "no-such-command"})["error"]
        assert answer["class"] == "CommandNotFound" and "capabilities negotiation" in answer["desc"]
        world.qmp.command("stop")  # whose event is not for who has not negotiated
        world.qmp.command("cont")
        enable["arguments"] = {"enable": ["oob", "oob"]}  # again, with duplicates
        assert raw.request(enable) == {"return": {}} and not raw.events
        answer = raw.request({"exec-oob": "query-name"})["error"]
        assert answer["desc"] == "The command query-name does not support OOB"
        raw.send_bytes(b"".join(b'{"execute":"query-name","id":%d}' % n for n in range(30)))
        assert [raw.receive()["id"] for _ in range(30)] == list(range(30))
        raw.send_bytes(b'{"execute":"stop"')
    assert world.server.qmp().command("query-status")["running"] is True


# ---- Events -----------------------------------------------------------------------------------


def words(qmp, name):
    """A job's events so far: states as they are, others by their names; drains' pauses left out."""
    found = []
    for event in qmp.events:
        data = event.get("data", {})
        if name in (data.get("id"), data.get("device")):
            word = data["status"] if event["event"] == "JOB_STATUS_CHANGE" else event["event"]
            found.append(word)
    text = " ".join(found)
    while "running paused running" in text:
        text = text.replace("running paused running", "running")
    return text


SEQUENCES = (
    ("backup, cancelled softly", "blockdev-backup", job(speed=1), "block-job-cancel", {"device": "b"},
     "created running aborting BLOCK_JOB_CANCELLED concluded null"),
    ("backup, cancelled", "blockdev-backup", job(speed=1), "job-cancel", {"id": "b"},
     "created running aborting BLOCK_JOB_CANCELLED concluded null"),
    ("mirror, cancelled when ready", "blockdev-mirror", job(), "job-cancel", {"id": "b"},
     "created running ready BLOCK_JOB_READY aborting BLOCK_JOB_CANCELLED concluded null"),
    ("mirror, cancelled softly when ready", "blockdev-mirror", job(), "block-job-cancel",
     {"device": "b"},
     "created running ready BLOCK_JOB_READY waiting pending BLOCK_JOB_COMPLETED concluded null"),
    ("a new image", "blockdev-create",
     {"job-id": "b", "options": {"driver": "file", "filename": "{folder}/new", "size": MIB}},
     "job-dismiss", {"id": "b"}, "created running waiting pending concluded null"),
    ("a new image, failing", "blockdev-create",
     {"job-id": "b", "options": {"driver": "file", "filename": "/nonexistent/x", "size": MIB}},
     "job-dismiss", {"id": "b"}, "created running aborting concluded null"),
)  # fmt: skip


@promise("jobs' events come in QEMU's order")
def event_orders(test):
    world = World(test)
    qmp = world.qmp
    world.add({"driver": "null-co", "node-name": "large", "size": 64 * MIB})
    for name, start, arguments, end, end_arguments, expected in SEQUENCES:
        qmp.events.clear()
        qmp.command_raw(start, with_folder(arguments, world.folder))
        if start == "blockdev-mirror":
            ready = qmp.wait_event("BLOCK_JOB_READY", device="b")
            at = words(qmp, "b").split(" ").index("ready")
            qmp.events.insert(at + 1, ready)
        if start == "blockdev-create":
            wait_until(lambda: qmp.command("query-jobs")[0]["status"] == "concluded", name)
        qmp.command_raw(end, end_arguments)
        wait_until(lambda: qmp.command("query-name") == {} and "null" in words(qmp, "b"), name)
        assert words(qmp, "b") == expected, (name, words(qmp, "b"))


@promise("a file that grows beyond its threshold is told of once, to all clients")
def threshold(test):
    world = World(test)
    other = world.server.qmp()
    world.image("thin")
    world.qmp.command("block-set-write-threshold", node_name="thin-file", write_threshold=LENGTH)
    world.qmp.command("qom-set", path="vda", property="drive", value="thin")
    guest = world.server.connect()
    guest.pwrite(b"a" * 64 * KIB, 0)
    world.qmp.command("query-name")
    assert not world.qmp.events, world.qmp.events
    guest.pwrite(b"b" * (LENGTH - 64 * KIB), 64 * KIB)
    for qmp in (world.qmp, other):
        data = qmp.wait_event("BLOCK_WRITE_THRESHOLD")["data"]
        assert data["node-name"] == "thin-file" and data["write-threshold"] == LENGTH, data
        assert 0 < data["amount-exceeded"] <= LENGTH, data
    guest.pwrite(b"c" * LENGTH, 0)
    assert world.qmp.command("query-name") == {} and not world.qmp.events
    shown = {n["node-name"]: n["write_threshold"] for n in world.qmp.command("query-named-block-nodes")}
    assert shown["thin-file"] == 0
    guest.shutdown()


@promise("latencies are counted between boundaries of one's own until one wants no more")
def histograms(test):
    world = World(test)
    qmp = world.qmp
    guest = world.server.connect()

    def found():
        stats = qmp.command("query-blockstats")[0]["stats"]
        return {key[:-18]: stats[key] for key in stats if key.endswith("_latency_histogram")}

    guest.pwrite(b"x" * 512, 0)
    standard = found()["wr"]["boundaries"]
    hour = 3600 * 10**9
    qmp.command("block-latency-histogram-set", id="vda", boundaries=[1, hour], boundaries_flush=[])
    empty = {"boundaries": [1, hour], "bins": [0, 0, 0]}
    assert found() == {"rd": empty, "wr": empty, "flush": {"boundaries": [], "bins": [0]}}
    for _ in range(3):
        guest.pwrite(b"x" * 512, 0)
    guest.zero(4096, 0)
    guest.pread(512, 0)
    guest.flush()
    now = found()
    assert [now[kind]["bins"] for kind in ("wr", "rd", "flush")] == [[0, 4, 0], [0, 1, 0], [1]], now
    # One kind again, from zero; by the path that query-block shows.
    qdev = qmp.command("query-block")[0]["qdev"]
    qmp.command("block-latency-histogram-set", id=qdev, boundaries_read=[7])
    assert found()["rd"] == {"boundaries": [7], "bins": [0, 0]}
    assert found()["wr"]["bins"] == [0, 4, 0]
    qmp.command("block-latency-histogram-set", id="vda")
    assert found()["wr"]["boundaries"] == standard
    assert sum(found()["wr"]["bins"]) == 5  # which have gone on all the time
    guest.shutdown()


@promise("a backup of a snapshot gives back what it has copied, if it is told to")
def discard_source(test):
    world = World(test)
    qmp = world.qmp
    guest = world.server.connect()
    guest.pwrite(b"o" * LENGTH, 0)
    for name in ("scratch", "copy"):
        with open(world.folder / name, "wb") as file:
            file.truncate(LENGTH)
        world.add({"driver": "file", "node-name": name, "filename": f"{world.folder}/{name}",
                   "discard": "unmap"})  # fmt: skip
    world.add(add("copy-before-write", file="disk", target="scratch", min_cluster_size=256 * KIB,
                  discard="unmap"))  # fmt: skip
    world.add({"driver": "snapshot-access", "node-name": "snap", "file": "x", "discard": "unmap"})
    guest.pwrite(b"n", 300 * KIB)  # saves all from 256 KiB on to 512 KiB

    def used():
        return (world.folder / "scratch").stat().st_blocks * 512

    wait_until(lambda: used() == 256 * KIB, "a whole unit is kept")
    assert (world.folder / "scratch").read_bytes()[256 * KIB : 512 * KIB] == b"o" * 256 * KIB
    qmp.command_raw("blockdev-backup", job(device="snap", target="copy", discard_source=True,
                                           x_perf={"min-cluster-size": 65536}))  # fmt: skip
    qmp.wait_job("b", "null")
    assert "error" not in qmp.wait_event("BLOCK_JOB_COMPLETED", device="b")["data"]
    assert (world.folder / "copy").read_bytes() == b"o" * LENGTH
    wait_until(lambda: used() == 0, "nothing is kept any more")
    guest.pwrite(b"n" * LENGTH, 0)  # and nothing is kept again
    guest.flush()
    assert used() == 0
    guest.shutdown()


# ---- What QEMU's daemon hangs of --------------------------------------------------------------


@promise("a node that is a client of our own NBD server holds up nobody")
def own_client(test):
    world = World(test)
    qmp = world.qmp
    address = {"type": "unix", "path": str(world.folder / "nbd")}
    uri = f"nbd+unix:///{{}}?socket={address['path']}"
    qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": address["path"]}})
    qmp.command("block-export-add", type="nbd", id="e", node_name="vda", name="disk", writable=True)
    loop = {"driver": "nbd", "node-name": "loop", "server": address, "export": "disk"}
    try:
        world.add(dict(loop, export="none"))
        raise AssertionError("an export that is not there was opened")
    except QmpError as error:
        assert error.kind == "GenericError", error
    world.add(loop)
    qmp.command("block-export-add", type="nbd", id="again", node_name="loop", writable=True)
    guest = world.server.connect()
    guest.pwrite(b"g" * LENGTH, 0)
    # While another client's blockdev-add hangs on a server that says nothing, all others go on.
    mute = socket.socket(socket.AF_UNIX)
    mute.bind(str(world.folder / "mute"))
    mute.listen()
    stuck = world.server.qmp()
    silent = {"driver": "nbd", "node-name": "m", "server": {"type": "unix",
                                                           "path": str(world.folder / "mute")}}  # fmt: skip
    stuck.send_bytes(json.dumps({"execute": "blockdev-add", "arguments": silent}).encode())
    held, _ = mute.accept()
    client = connect(uri.format("loop"))
    assert bytes(client.pread(LENGTH, 0)) == b"g" * LENGTH
    client.pwrite(b"h" * 4096, 8192)
    assert bytes(guest.pread(4096, 8192)) == b"h" * 4096
    qmp.command_raw("blockdev-backup", job(device="vda", target="n2"))
    qmp.wait_job("b", "null")
    # A job and a drained section across it.
    world.add({"driver": "file", "node-name": "t", "filename": str(world.folder / "noise")})
    qmp.command_raw("blockdev-backup", job(device="loop", target="t"))
    qmp.wait_job("b", "null")
    assert (world.folder / "noise").read_bytes() == (world.folder / "vda").read_bytes()
    qmp.command_raw("transaction", actions(
        ("block-dirty-bitmap-add", {"node": "loop", "name": "l"}),
        ("block-dirty-bitmap-add", {"node": "disk", "name": "d"}),
    ))  # fmt: skip
    client.pwrite(b"i" * 512, 0)
    counts = {
        entry["node-name"]: entry["dirty-bitmaps"][0]["count"]
        for entry in qmp.command("query-named-block-nodes")
        if entry["node-name"] in ("loop", "disk")
    }
    assert counts == {"loop": 64 * KIB, "disk": 64 * KIB}, counts
    held.close()
    assert "error" in receive_answer(stuck)
    client.shutdown()
    guest.shutdown()
    # It ends although one of its nodes is the client of its server, and says what ends.
    qmp.command_raw("blockdev-backup", job(device="vda", target="n2", speed=1))
    assert qmp.command("quit") == {}
    qmp.wait_event("BLOCK_JOB_CANCELLED", device="b")
    for export in ("e", "again"):
        qmp.wait_event("BLOCK_EXPORT_DELETED", id=export)
    assert world.server.process.wait(30) == 0


main()
