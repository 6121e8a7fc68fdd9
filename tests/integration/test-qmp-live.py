#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The admin channel of a running server: every command, its effects and its refusals."""

import json
import socket
import threading
import time

from liveblk_load import Writers, same_contents
from liveblk_test import DiskModel, Qmp, QmpError, Server, main, promise, start_backup, wait_until

MIB = 1 << 20


def world(test, length=8 * MIB, disks=1, **options):
    """A server with filled disks, and a QMP client."""
    paths = [test.make_disk(f"disk{n}.img", length) for n in range(disks)]
    server = Server(test, paths, **options)
    for n in range(disks):
        handle = server.connect("vd" + "abc"[n])
        model = DiskModel(length)
        for at in range(0, length, MIB):
            handle.pwrite(model.write(at, MIB), at)
        handle.flush()
        handle.shutdown()
    return server, server.qmp()


def refused(qmp, name, desc, kind="GenericError", /, **arguments):
    """The command is refused with this text (or one that starts with it, if it ends in ...)."""
    try:
        qmp.command_raw(name, {key.replace("__", "-"): v for key, v in arguments.items()})
    except QmpError as error:
        matches = error.desc == desc or (desc.endswith("...") and error.desc.startswith(desc[:-3]))
        assert matches, f"{name}: {error.desc!r} instead of {desc!r}"
        assert error.kind == kind, (name, error.kind)
        return
    raise AssertionError(f"{name} {arguments} was not refused")


def node_names(qmp):
    return [node["node-name"] for node in qmp.command("query-named-block-nodes")]


def statuses(qmp, job):
    """The job's states so far, as events told them."""
    return [
        event["data"]["status"]
        for event in qmp.events
        if event["event"] == "JOB_STATUS_CHANGE" and event["data"]["id"] == job
    ]


def wait_null(qmp, job):
    wait_until(
        lambda: qmp.command("query-status") and "null" in statuses(qmp, job), f"{job} is gone"
    )


@promise("every command of the list answers or says what is wrong, and the server lives on")
def all_commands(test):
    server, qmp = world(test)
    names = sorted(entry["name"] for entry in qmp.command("query-commands"))
    wanted = {
        "block-job-cancel", "block-job-change", "block-job-complete", "block-job-dismiss",
        "block-job-finalize", "block-job-pause", "block-job-resume", "block-job-set-speed",
        "block_resize", "block_set_io_throttle", "blockdev-add", "blockdev-backup",
        "blockdev-create", "blockdev-del", "cont", "drive-backup", "job-cancel", "job-complete",
        "job-dismiss", "job-finalize", "job-pause", "job-resume", "qmp_capabilities",
        "query-block", "query-block-jobs", "query-blockstats", "query-commands", "query-jobs",
        "query-name", "query-named-block-nodes", "query-qmp-schema", "query-status",
        "query-version", "quit", "stop",
    }  # fmt: skip
    assert wanted <= set(names), wanted - set(names)
    in_schema = {
        entry["name"]
        for entry in qmp.command("query-qmp-schema")
        if entry["meta-type"] == "command"
    }
    assert set(names) == in_schema, set(names) ^ in_schema
    for name in names:
        if name in ("quit", "qmp_capabilities"):
            continue
        answer = qmp.request({"execute": name, "id": name})
        assert answer["id"] == name and ("return" in answer) != ("error" in answer), answer
        surplus = qmp.request({"execute": name, "arguments": {"surplus": 1}})
        assert surplus["error"]["class"] == "GenericError", (name, surplus)
        assert "'surplus' is unexpected" in surplus["error"]["desc"] or (
            "is missing" in surplus["error"]["desc"]
        ), (name, surplus)
    qmp.command("cont")
    assert qmp.command("query-status") == {"running": True, "status": "running"}
    assert len(server.connect().pread(4096, 0)) == 4096


@promise("a client that sends no line ends, splits and joins its messages is understood")
def framing(test):
    server, _ = world(test)
    with Qmp(server.admin, negotiate=False) as qmp:
        answer = qmp.request({"execute": "query-status", "id": 1})
        assert answer["error"]["class"] == "CommandNotFound", answer
        text = json.dumps({"execute": "qmp_capabilities", "arguments": {"enable": ["oob"]}})
        for byte in text.encode():
            qmp.send_bytes(bytes([byte]))
        assert qmp.receive() == {"return": {}}
        qmp.send_bytes(b'{"execute":"query-name","id":[1]}{"execute":"query-version","id":2}')
        answers = [qmp.receive(), qmp.receive()]
        assert [answer["id"] for answer in answers] == [[1], 2]
        qmp.send_bytes(b'{"execute": }')
        assert qmp.receive()["error"]["desc"] == "JSON parse error, expecting value"
        assert qmp.command("query-status")["running"] is True


@promise("query-block and query-named-block-nodes tell what backup clients need")
def queries(test):
    server, qmp = world(test, disks=2, parameters=["name=guest"])
    assert qmp.command("query-name") == {"name": "guest"}
    entries = qmp.command("query-block")
    assert [entry["device"] for entry in entries] == ["vda", "vdb"]
    for number, entry in enumerate(entries):
        inserted = entry["inserted"]
        assert entry["qdev"] and inserted["node-name"] and inserted["drv"] == "raw"
        image = inserted["image"]
        assert image["filename"] == str(test.path(f"disk{number}.img")), image
        assert image["format"] == "raw" and image["virtual-size"] == 8 * MIB
        assert inserted["ro"] is False and inserted["cache"]["writeback"] is True
    nodes = qmp.command("query-named-block-nodes", flat=True)
    names = [node["node-name"] for node in nodes]
    assert {entry["inserted"]["node-name"] for entry in entries} <= set(names)
    qmp.command("blockdev-add", driver="null-co", node_name="newest", size=MIB)
    assert qmp.command("query-named-block-nodes")[0]["node-name"] == "newest"


@promise("query-blockstats counts exactly what clients did, also what failed or was invalid")
def statistics(test):
    server = Server(test, [test.make_disk("disk.img", 8 * MIB)])
    qmp = server.qmp()
    handle = server.connect()
    for number in range(5):
        handle.pwrite(b"x" * 8192, number * 65536)
    for _ in range(3):
        handle.pread(4096, 0)
    handle.zero(65536, MIB)
    handle.trim(65536, 2 * MIB)
    handle.flush()
    stats = qmp.command("query-blockstats")[0]["stats"]
    expected = {
        "wr_operations": 6, "wr_bytes": 5 * 8192 + 65536, "rd_operations": 3, "rd_bytes": 12288,
        "unmap_operations": 1, "unmap_bytes": 65536, "flush_operations": 1,
        "wr_highest_offset": MIB + 65536, "failed_wr_operations": 0, "invalid_rd_operations": 0,
    }  # fmt: skip
    found = {key: stats[key] for key in expected}
    assert found == expected, (found, expected)
    assert sum(stats["wr_latency_histogram"]["bins"]) == 6
    nodes = qmp.command("query-blockstats", query_nodes=True)
    root = qmp.command("query-block")[0]["inserted"]["node-name"]
    highest = [n["stats"]["wr_highest_offset"] for n in nodes if n["node-name"] == root]
    assert highest == [MIB + 65536], nodes


@promise("nodes of each driver are added, used and deleted")
def nodes(test):
    server, qmp = world(test)
    remote = Server(test, plugin="memory", parameters=["8M"], name="remote")
    file = test.make_disk("file.img", 16 * MIB)
    adds = (
        {"driver": "file", "node-name": "f", "filename": str(file)},
        {"driver": "raw", "node-name": "r", "file": "f", "offset": 4 * MIB, "size": 8 * MIB},
        {"driver": "null-co", "node-name": "n", "size": 8 * MIB},
        {"driver": "nbd", "node-name": "b",
         "server": {"type": "unix", "path": str(remote.nbd)}},
    )  # fmt: skip
    for options in adds:
        qmp.command_raw("blockdev-add", options)
    for target in ("r", "n", "b"):
        qmp.command("blockdev-backup", job_id=target, device="vda", target=target, sync="full")
        event = qmp.wait_event("BLOCK_JOB_COMPLETED", device=target)["data"]
        assert "error" not in event and event["len"] == event["offset"] == 8 * MIB, event
        wait_null(qmp, target)
    with open(file, "rb") as part, open(test.path("disk0.img"), "rb") as whole:
        part.seek(4 * MIB)
        assert part.read(8 * MIB) == whole.read()
    refused(qmp, "blockdev-del", "Block device f is in use", node__name="f")
    for name in ("r", "f", "n", "b"):
        qmp.command("blockdev-del", node_name=name)
    refused(qmp, "blockdev-del", "Failed to find node with node-name='f'", node__name="f")


@promise("blockdev-add's refusals have QEMU's words and leave no node")
def node_refusals(test):
    server, qmp = world(test)
    qmp.command("blockdev-add", driver="null-co", node_name="taken", size=MIB)
    before = node_names(qmp)
    file = test.make_disk("other.img", MIB)
    disk = str(test.path("disk0.img"))
    root = qmp.command("query-block")[0]["inserted"]["node-name"]
    null = {"driver": "null-co"}
    for desc, options in (
        ("'node-name' must be specified for the root node", null),
        ("Invalid node-name: '9x'", dict(null, node__name="9x")),
        ("Node name too long...", dict(null, node__name="n" * 32)),
        (f"Invalid node-name: '{root}'", dict(null, node__name=root)),
        ("Duplicate nodes with node-name='taken'", dict(null, node__name="taken")),
        ("Parameter 'driver' is missing", {"node__name": "a"}),
        ("Parameter 'driver' does not accept value 'bogus'", {"driver": "bogus"}),
        ("Parameter 'colour' is unexpected", dict(null, node__name="a", colour=1)),
        ("Invalid parameter type for 'size', expected: integer",
         dict(null, node__name="a", size="x")),
        ("Invalid parameter type for 'read-only', expected: boolean",
         dict(null, node__name="a", read__only=1)),
        ("Parameter 'filename' is missing", {"driver": "file", "node__name": "a"}),
        ("Could not open '/nonexistent': No such file or directory",
         {"driver": "file", "node__name": "a", "filename": "/nonexistent"}),
        ("Cannot find device='nobody' nor node-name='nobody'",
         {"driver": "raw", "node__name": "a", "file": "nobody"}),
        ('Failed to get "write" lock...',
         {"driver": "file", "node__name": "a", "filename": disk}),
        ("Specified size is not multiple of 512",
         {"driver": "raw", "node__name": "a", "size": 100,
          "file": {"driver": "file", "filename": str(file)}}),
        ("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap",
         dict(null, node__name="a", detect__zeroes="unmap")),
    ):  # fmt: skip
        refused(qmp, "blockdev-add", desc, **options)
    assert node_names(qmp) == before
    refused(qmp, "blockdev-del", "Failed to find node with node-name='zz'", node__name="zz")
    refused(qmp, "blockdev-del", f"Node {root} is...", node__name=root)


@promise("blockdev-create makes a file as a job; what it refuses it says in query-jobs")
def creates(test):
    server, qmp = world(test)
    path = test.path("created.img")
    options = {"driver": "file", "filename": str(path), "size": 3 * MIB}
    qmp.command_raw("blockdev-create", {"job-id": "c", "options": options})
    assert qmp.wait_job("c", "concluded") == "concluded"
    assert path.stat().st_size == 3 * MIB
    job = qmp.command("query-jobs")[0]
    assert (job["type"], job["status"], job["current-progress"]) == ("create", "concluded", 1), job
    assert qmp.command("query-block-jobs") == []
    refused(qmp, "block-job-dismiss", "Block job 'c' not found", "DeviceNotActive", id="c")
    refused(qmp, "blockdev-create", "Job ID 'c' already in use", job__id="c",
            options=dict(options, filename=str(test.path("no.img"))))  # fmt: skip
    assert not test.path("no.img").exists()
    qmp.command("job-dismiss", _id="c")
    bad = dict(options, filename="/nonexistent/x")
    qmp.command_raw("blockdev-create", {"job-id": "c", "options": bad})
    assert qmp.wait_job("c", "concluded") == "concluded"
    assert "/nonexistent/x" in qmp.command("query-jobs")[0]["error"]
    qmp.command("job-dismiss", _id="c")


@promise("blockdev-create does not destroy a disk that is served")
def create_spares_disks(test):
    server, qmp = world(test)
    disk = test.path("disk0.img")
    before = disk.read_bytes()
    options = {"driver": "file", "filename": str(disk), "size": MIB}
    qmp.command_raw("blockdev-create", {"job-id": "c", "options": options})
    qmp.wait_job("c", "concluded")
    assert "lock" in qmp.command("query-jobs")[0]["error"]
    assert disk.read_bytes() == before


@promise("block_resize grows and shrinks, and refuses what makes no sense")
def resizes(test):
    server, qmp = world(test)
    disk = test.path("disk0.img")
    before = disk.read_bytes()
    root = qmp.command("query-block")[0]["inserted"]["node-name"]
    qmp.command_raw("block_resize", {"device": "vda", "size": 9 * MIB})
    assert server.connect().get_size() == 9 * MIB
    assert disk.read_bytes() == before + bytes(MIB)
    qmp.command_raw("block_resize", {"node-name": root, "size": 8 * MIB})
    assert disk.stat().st_size == 8 * MIB
    refused(qmp, "block_resize", "Parameter 'size' expects a >0 size", device="vda", size=-512)
    refused(qmp, "block_resize", "The new size must be a multiple of 512", device="vda", size=1000)
    refused(qmp, "block_resize", "Parameter 'size' is missing", device="vda")
    refused(qmp, "block_resize", "Cannot find device='zz' nor node-name=''", device="zz", size=512)
    start_backup(qmp, "j", test.path("b.img"), speed=MIB)
    refused(qmp, "block_resize", "...", device="vda", size=MIB)
    qmp.command("job-cancel", _id="j")
    assert disk.read_bytes() == before


@promise("drive-backup creates its target, or with mode existing writes what is there")
def drive_backups(test):
    server, qmp = world(test)
    disk, target = test.path("disk0.img"), test.path("target.img")
    refused(qmp, "drive-backup", f"Could not open '{target}': No such file or directory",
            job__id="j", device="vda", target=str(target), sync="full", mode="existing")  # fmt: skip
    assert not target.exists()
    assert statuses(qmp, "j") in ([], ["created", "null"])
    qmp.events.clear()
    start_backup(qmp, "j", target)
    wait_null(qmp, "j")
    assert same_contents(disk, target)
    target.write_bytes(b"old" * (8 * MIB // 3) + b"ol")
    inode = target.stat().st_ino
    qmp.events.clear()
    start_backup(qmp, "j", target, mode="existing")
    wait_null(qmp, "j")
    assert same_contents(disk, target) and target.stat().st_ino == inode
    target.write_bytes(b"short")
    refused(qmp, "drive-backup", "Source and target image have different sizes...", job__id="j",
            device="vda", target=str(target), sync="full", mode="existing")  # fmt: skip
    assert target.read_bytes() == b"short"


@promise("a refused backup leaves the target as it was, and no job, node or file behind")
def refused_backups(test):
    server, qmp = world(test)
    disk = test.path("disk0.img")
    content = disk.read_bytes()
    precious = test.path("precious.img")
    precious.write_bytes(b"precious" * 1000)
    qmp.command("blockdev-add", driver="null-co", node_name="n", size=8 * MIB)
    qmp.command("blockdev-add", driver="null-co", node_name="small", size=MIB)
    qmp.command("blockdev-add", driver="null-co", node_name="ro", size=8 * MIB, read_only=True)
    start_backup(qmp, "busy", test.path("slow.img"), speed=65536)
    nodes = node_names(qmp)
    files = set(test.directory.iterdir())
    good = {"job__id": "j", "device": "vda", "sync": "full"}
    both = (
        ("Job ID 'busy' already in use", dict(good, job__id="busy")),
        ("Invalid job ID '9x'", dict(good, job__id="9x")),
        ("Invalid job ID ''", dict(good, job__id="")),
        ("Parameter 'speed' expects a non-negative value", dict(good, speed=-1)),
        ("Cannot find device='zz' nor node-name='zz'", dict(good, device="zz")),
        ("Parameter 'sync' is missing", {"device": "vda"}),
        ("Parameter 'sync' does not accept value 'sideways'", dict(good, sync="sideways")),
        ("Parameter 'on-target-error' does not accept value 'x'", dict(good, on__target__error="x")),
        ("Compression is not supported for this drive ...", dict(good, compress=True)),
        ("max-workers must be between 1 and...", dict(good, x__perf={"max-workers": 0})),
        ("max-workers must be between 1 and...", dict(good, x__perf={"max-workers": 1 << 40})),
        ("max-chunk must be between...", dict(good, x__perf={"max-chunk": -1})),
        ("Required max-chunk (1024) is less than backup cluster size...",
         dict(good, x__perf={"max-chunk": 1024})),
        ("cbw-timeout must be between...", dict(good, cbw__timeout=-1)),
        ("Parameter 'pace' is unexpected", dict(good, pace=1)),
    )  # fmt: skip
    for desc, arguments in both:
        refused(qmp, "drive-backup", desc, target=str(precious), **arguments)
        refused(qmp, "drive-backup", desc, target=str(test.path("new.img")), **arguments)
        refused(qmp, "blockdev-backup", desc, target="n", **arguments)
    fresh = dict(good, target=str(test.path("new.img")))
    for command, desc, arguments in (
        ("blockdev-backup", "Source and target image have different sizes...",
         dict(good, target="small")),
        ("blockdev-backup", "Source and target cannot be the same", dict(good, target="vda")),
        ("blockdev-backup", "Target node 'ro' is read-only...", dict(good, target="ro")),
        ("blockdev-backup", "Cannot find device='nn' nor node-name='nn'", dict(good, target="nn")),
        ("drive-backup", "...", dict(good, target="/nonexistent/folder/x.img")),
        ("drive-backup", "...", dict(good, target=str(disk))),
        ("drive-backup", "...", dict(good, target=str(disk), mode="existing")),
        ("drive-backup", "...", dict(good, target=str(precious), format="bogus")),
        ("drive-backup", "...", dict(fresh, format="bogus")),
        ("drive-backup", "...", dict(good, target=str(test.directory))),
    ):  # fmt: skip
        refused(qmp, command, desc, **arguments)
    assert precious.read_bytes() == b"precious" * 1000
    assert disk.read_bytes() == content
    assert set(test.directory.iterdir()) == files
    assert node_names(qmp) == nodes
    assert [job["id"] for job in qmp.command("query-jobs")] == ["busy"]
    qmp.command("job-cancel", _id="busy")


@promise("the device's name is the job's where none is given")
def default_job_name(test):
    server, qmp = world(test)
    qmp.command_raw("drive-backup",
                    {"device": "vda", "target": str(test.path("b.img")), "sync": "full"})  # fmt: skip
    qmp.wait_event("BLOCK_JOB_COMPLETED", device="vda")


@promise("a backup's events come in QEMU's order")
def event_order(test):
    server, qmp = world(test)
    start_backup(qmp, "j", test.path("b.img"))
    wait_null(qmp, "j")
    seen = [s for s in statuses(qmp, "j") if s != "paused"]
    while ["running", "running"] in [seen[i : i + 2] for i in range(len(seen))]:
        seen.remove("running")  # a drain's pause
    assert seen == ["created", "running", "waiting", "pending", "concluded", "null"], seen
    names = [
        event["data"]["status"] if event["event"] == "JOB_STATUS_CHANGE" else event["event"]
        for event in qmp.events
    ]
    assert names.index("pending") < names.index("BLOCK_JOB_COMPLETED") < names.index("concluded")


@promise("every verb works where it is legal and is refused with QEMU's words where it is not")
def verbs(test):
    server, qmp = world(test)
    start_backup(qmp, "j", test.path("b.img"), speed=MIB, auto_finalize=False, auto_dismiss=False)
    wrong = "Job 'j' in state '{}' cannot accept command verb '{}'"

    def illegal(state, *commands):
        for verb in commands:
            refused(qmp, f"job-{verb}", wrong.format(state, verb), id="j")
            argument = "id" if verb in ("finalize", "dismiss") else "device"
            refused(qmp, f"block-job-{verb}", wrong.format(state, verb), **{argument: "j"})

    illegal("running", "complete", "finalize", "dismiss")
    refused(qmp, "job-resume", "Can't resume a job that was not paused", id="j")
    refused(qmp, "block-job-change", "Job type does not support change", id="j", type="backup")
    qmp.command("block-job-pause", device="j")
    wait_until(lambda: qmp.command("query-jobs")[0]["status"] == "paused", "it is paused")
    refused(qmp, "job-pause", "Job is already paused", id="j")
    refused(qmp, "block-job-cancel",
            "The block job for device 'j' is currently paused...", device="j")  # fmt: skip
    illegal("paused", "complete", "finalize", "dismiss")
    info = qmp.command("query-block-jobs")[0]
    assert info["paused"] is True and info["busy"] is False and info["speed"] == MIB, info
    offset = info["offset"]
    refused(qmp, "block-job-set-speed", "Parameter 'speed' expects a non-negative value",
            device="j", speed=-1)  # fmt: skip
    qmp.command("block-job-set-speed", device="j", speed=0)
    assert qmp.command("query-block-jobs")[0]["offset"] == offset
    qmp.command("job-resume", _id="j")
    qmp.wait_event("BLOCK_JOB_PENDING", id="j")
    illegal("pending", "pause", "resume", "complete", "dismiss")
    qmp.command("block-job-finalize", _id="j")
    qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")
    assert qmp.command("query-jobs")[0]["status"] == "concluded"
    illegal("concluded", "pause", "resume", "complete", "finalize", "cancel")
    qmp.command("block-job-dismiss", _id="j")
    assert qmp.command("query-jobs") == []
    for verb in ("pause", "resume", "cancel", "complete", "finalize", "dismiss"):
        refused(qmp, f"job-{verb}", "Job not found", id="j")
        argument = "id" if verb in ("finalize", "dismiss") else "device"
        refused(qmp, f"block-job-{verb}", "Block job 'j' not found", "DeviceNotActive",
                **{argument: "j"})  # fmt: skip
    assert same_contents(test.path("disk0.img"), test.path("b.img"))


@promise("a cancelled job that is not dismissed says so; pending ones can be cancelled as well")
def cancels(test):
    server, qmp = world(test)
    for state in ("running", "paused", "pending"):
        qmp.events.clear()
        speed = 0 if state == "pending" else MIB
        start_backup(qmp, "j", test.path("b.img"), speed=speed, auto_finalize=False, auto_dismiss=False)
        if state == "paused":
            qmp.command("job-pause", _id="j")
        if state == "pending":
            qmp.wait_event("BLOCK_JOB_PENDING", id="j")
        qmp.command("job-cancel", _id="j")
        qmp.wait_event("BLOCK_JOB_CANCELLED", device="j")
        job = qmp.command("query-jobs")[0]
        assert (job["status"], job["error"]) == ("concluded", "Operation canceled"), (state, job)
        qmp.command("job-dismiss", _id="j")


@promise("sync=none saves only what is overwritten, and ends by being cancelled")
def sync_none(test):
    server, qmp = world(test)
    target = test.make_disk("target.img", 8 * MIB)
    before = test.path("disk0.img").read_bytes()
    start_backup(qmp, "j", target, sync="none", mode="existing")
    handle = server.connect()
    for at in (0, 3 * MIB, 5 * MIB + 8192):
        handle.pwrite(b"new!" * 4096, at)
    wait_until(lambda: target.read_bytes().count(bytes(4096)) <= 2048 - 12, "old data is saved")
    assert qmp.command("query-jobs")[0]["status"] == "running"
    wait_until(lambda: not qmp.command("query-block-jobs")[0]["busy"], "it waits for guests")
    state = qmp.command("query-block-jobs")[0]
    assert (state["offset"], state["len"]) == (0, 8 * MIB), state
    refused(qmp, "job-complete",
            "Job 'j' in state 'running' cannot accept command verb 'complete'", id="j")  # fmt: skip
    qmp.command("job-cancel", _id="j")
    qmp.wait_event("BLOCK_JOB_CANCELLED", device="j")
    saved = target.read_bytes()
    for at in (0, 3 * MIB, 5 * MIB + 8192):
        assert saved[at : at + 16384] == before[at : at + 16384], hex(at)
    assert saved[MIB : 2 * MIB] == bytes(MIB)


@promise("a job's speed is kept roughly, and a new one takes effect at once")
def speeds(test):
    server, qmp = world(test, length=32 * MIB)
    start_backup(qmp, "j", test.path("b.img"), speed=4 * MIB, x_perf={"max-chunk": 65536})
    start = time.monotonic()
    time.sleep(2)
    offset = qmp.command("query-block-jobs")[0]["offset"]
    took = time.monotonic() - start
    assert MIB <= offset <= (took + 0.5) * 4 * MIB + 3 * MIB, (offset, took)
    qmp.command("block-job-set-speed", device="j", speed=0)
    qmp.wait_event("BLOCK_JOB_COMPLETED", device="j", timeout=20)


def bytes_written_in(seconds, handle):
    data, count, end = b"t" * 65536, 0, time.monotonic() + seconds
    while time.monotonic() < end:
        handle.pwrite(data, count % (8 * MIB))
        count += len(data)
    return count


@promise("block_set_io_throttle really limits writers, and lets them go when it is lifted")
def throttles(test):
    server, qmp = world(test)
    handle = server.connect()
    zero = dict.fromkeys(("bps", "bps_rd", "bps_wr", "iops", "iops_rd", "iops_wr"), 0)
    limited = dict(zero, id="vda", bps_wr=2 * MIB)
    qmp.command_raw("block_set_io_throttle", limited)
    inserted = qmp.command("query-block")[0]["inserted"]
    assert inserted["bps_wr"] == 2 * MIB and inserted["bps"] == 0
    count = bytes_written_in(3, handle)
    assert MIB <= count <= 12 * MIB, count  # 6 MiB; unlimited it would be hundreds
    done = []
    slow = threading.Thread(target=lambda: done.append(bytes_written_in(0.1, handle)))
    qmp.command_raw("block_set_io_throttle", dict(limited, bps_wr=0, iops_wr=1))
    slow.start()
    time.sleep(0.5)
    qdev = qmp.command("query-block")[0]["qdev"]
    qmp.command_raw("block_set_io_throttle", dict(zero, id=qdev))
    slow.join(5)  # a request that waited for its second was woken
    assert done, "the lifted limit still holds a request"
    throttle = "block_set_io_throttle"
    refused(qmp, throttle, "Device 'zz' not found", "DeviceNotFound", **dict(limited, id="zz"))
    refused(qmp, throttle, "Parameter 'bps' is missing", id="vda")
    refused(qmp, throttle,
            "bps/iops/max total values and read/write values cannot be used at the same time",
            **dict(limited, bps=1))  # fmt: skip
    refused(qmp, throttle, "bps_max/iops_max require corresponding bps/iops values",
            **dict(zero, id="vda", bps_max=5))  # fmt: skip
    refused(qmp, throttle, "...", **dict(zero, id="vda", bps=-5))
    assert qmp.command("query-block")[0]["inserted"]["bps_wr"] == 0


@promise("stop holds requests, backups go on, and cont lets all of them finish")
def stop_and_cont(test):
    server, qmp = world(test)
    qmp.command("stop")
    qmp.wait_event("STOP")
    assert qmp.command("query-status") == {"running": False, "status": "paused"}
    done = []
    handle = server.connect()
    writer = threading.Thread(target=lambda: done.append(handle.pwrite(b"s" * 4096, 0)))
    writer.start()
    before = test.path("disk0.img").read_bytes()
    start_backup(qmp, "j", test.path("b.img"))
    wait_null(qmp, "j")
    assert test.path("b.img").read_bytes() == before
    writer.join(0.3)
    assert writer.is_alive() and test.path("disk0.img").read_bytes() == before
    qmp.command("cont")
    qmp.wait_event("RESUME")
    writer.join(20)
    assert not writer.is_alive() and bytes(handle.pread(4096, 0)) == b"s" * 4096
    assert qmp.command("query-status")["status"] == "running"


@promise("several clients at once get their own answers, and each gets all events")
def many_clients(test):
    server, qmp = world(test)
    clients = [server.qmp() for _ in range(8)]
    silent = Qmp(server.admin, negotiate=False)
    for number, client in enumerate(clients):
        start_backup(client, f"j{number}", test.path(f"b{number}.img"))
    for client in clients:
        for number in range(len(clients)):
            client.wait_event("BLOCK_JOB_COMPLETED", device=f"j{number}")
    for number in range(len(clients)):
        assert same_contents(test.path("disk0.img"), test.path(f"b{number}.img"))
    answer = silent.request({"execute": "query-status"})
    assert not silent.events and answer["error"]["class"] == "CommandNotFound"
    silent.close()


@promise("a client that goes away, or never reads, harms nobody")
def rude_clients(test):
    server, qmp = world(test)
    for text in (b'{"execute":', b"", b'{"execute":"qmp_capabilities"}{"execute":"query-qmp-schema"}'):
        with socket.socket(socket.AF_UNIX) as rude:
            rude.connect(str(server.admin))
            rude.sendall(text)
    deaf = socket.socket(socket.AF_UNIX)
    deaf.settimeout(2)
    deaf.connect(str(server.admin))
    try:
        deaf.sendall(b'{"execute":"qmp_capabilities"}' + b'{"execute":"query-qmp-schema"}' * 2000)
    except TimeoutError:
        pass
    start_backup(qmp, "j", test.path("b.img"))
    wait_null(qmp, "j")
    assert server.qmp().command("query-status")["running"] is True
    deaf.close()


@promise("an NBD server that never answers stalls neither other clients nor the guest")
def unresponsive_server(test):
    server, qmp = world(test)
    mute = socket.socket(socket.AF_UNIX)
    mute.bind(str(test.path("mute")))
    mute.listen()
    writers = Writers(test, server.uri(), 8 * MIB, threads=2).start()
    stuck = server.qmp()
    add = {"driver": "nbd", "node-name": "m", "server": {"type": "unix",
                                                        "path": str(test.path("mute"))}}  # fmt: skip
    stuck.send_bytes(json.dumps({"execute": "blockdev-add", "arguments": add}).encode())
    connection, _ = mute.accept()
    started = time.monotonic()
    for number in range(3):
        writers.wait_done(50)
        qmp.command("query-block")
        qmp.command("query-named-block-nodes")
        qmp.command("blockdev-add", driver="null-co", node_name=f"n{number}", size=MIB)
        qmp.command("blockdev-del", node_name=f"n{number}")
        start_backup(qmp, f"j{number}", test.path("b.img"))
        wait_null(qmp, f"j{number}")
    assert time.monotonic() - started < 30
    connection.close()
    answer = stuck.receive()
    while "event" in answer:
        answer = stuck.receive()
    assert answer["error"]["class"] == "GenericError", answer
    writers.stop()
    refused(qmp, "blockdev-del", "Failed to find node with node-name='m'", node__name="m")


@promise("quit answers, ends with status 0, and takes its socket away, jobs or no jobs")
def quits(test):
    for job in (False, True):
        server, qmp = world(test, name=f"server{job}") if not job else (
            Server(test, [test.path("disk0.img")], name="again"), None)  # fmt: skip
        qmp = qmp or server.qmp()
        if job:
            start_backup(qmp, "j", test.path("b.img"), speed=65536)
        assert qmp.command("quit") == {}
        if job:
            qmp.wait_event("BLOCK_JOB_CANCELLED", device="j")
        try:
            while True:
                qmp.receive(30)
        except ConnectionError:
            pass
        assert server.process.wait(30) == 0
        assert not server.admin.exists()


main()
