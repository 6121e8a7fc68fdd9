#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Tracking files that are no good, and what people and programs are told about tracking."""

import fcntl
import json
import os
import re
import shlex
import shutil
import struct
import time

from liveblk_load import SmallDisk
from liveblk_test import LIVEBLK, ROOT, QmpError, Server, connect, main, promise, wait_until
from liveblk_tracking import GRANULE, KIB, MIB, TrackedDisk, action, noise

F_OFD_SETLK = 37
LENGTH = 8 * MIB


def refused(call, *words):
    """call is answered with an error that has these words; returns its text."""
    try:
        answer = call()
    except QmpError as error:
        for word in words:
            assert word in error.desc, f"{error.desc!r} lacks {word!r}"
        return error.desc
    raise AssertionError(f"done, and not refused with {words}: {answer}")


def make_tracked(test, name="disk"):
    """A disk with data, and a checkpoint `old` with a full backup; its server has ended."""
    disk = TrackedDisk(test, LENGTH, name=name)
    for at in range(0, LENGTH, MIB):
        disk.guest.pwrite(noise(test.random, MIB), at)
    disk.full_backup(f"{name}-full", "old")
    disk.guest.pwrite(noise(test.random, KIB), MIB)
    disk.stop()
    return disk


def assert_serves(test, disk):
    """The guest reads what it writes, whatever became of tracking."""
    data = noise(test.random, 4 * KIB)
    disk.guest.pwrite(data, 3 * MIB)
    assert disk.guest.pread(4 * KIB, 3 * MIB) == data


def assert_asks_for_full(test, disk):
    target = test.make_disk(f"{disk.name}-increment", LENGTH)
    refused(lambda: disk.backup(target, since="old"), "take a full backup")
    target.unlink()


def assert_begins_anew(test, disk, reason):
    """The map is lost and a new one is begun, in which a new chain can start at once."""
    disk.start()
    info = disk.info()
    assert info["state"] == "exact" and info["previous-reason"] == reason, info
    assert all(entry["broken"] for entry in info["checkpoints"]), info
    assert_serves(test, disk)
    assert_asks_for_full(test, disk)
    for entry in info["checkpoints"]:
        disk.remove(entry["name"])
    copy = disk.full_backup(f"{disk.name}-anew", "new")
    assert_serves(test, disk)
    assert disk.checkpoint("new")["changed-bytes"] == GRANULE, disk.info()
    disk.backup(copy, since="new")
    assert copy.read_bytes() == disk.read()
    disk.stop()
    copy.unlink()


def assert_left_alone(test, disk, reason):
    """Nothing is tracked, and the file is what it was."""
    before = disk.tracking.read_bytes()
    disk.start()
    info = disk.info()
    assert info["state"] == "lost" and info["reason"] == reason and info["message"], info
    assert_serves(test, disk)
    refused(lambda: disk.add("new"), "is not tracked")
    assert_asks_for_full(test, disk)
    disk.stop()
    assert disk.tracking.read_bytes() == before, f"a {reason} file was changed"


def overwrite(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def damage_headers(disk):
    for copy in (0, 4096):
        overwrite(disk.tracking, copy + 200, b"damage")


def truncate(disk, length):
    os.truncate(disk.tracking, length)


def damage_directory(disk):
    data = disk.tracking.read_bytes()
    header = max((data[:4096], data[4096:8192]), key=lambda h: struct.unpack_from("<Q", h, 24))
    (offset,) = struct.unpack_from("<Q", header, 88)
    overwrite(disk.tracking, offset + 24, b"\xff")


def write_behind(disk):
    """A real change, with the time as it was: in a place that is sampled, as the first is."""
    times = os.stat(disk.path)
    overwrite(disk.path, 100, b"behind our back")
    os.utime(disk.path, ns=(times.st_atime_ns, times.st_mtime_ns))


@promise("a disk that was served without its tracking file after a kill is lost if it was written")
def served_without(test):
    for is_written in (False, True):
        disk = make_tracked(test, f"without-{is_written}")
        disk.start()
        disk.guest.pwrite(noise(test.random, 4 * KIB), 5 * MIB)
        disk.kill()
        spec = disk.spec
        disk.spec = spec.replace(",tracking=auto", "")
        disk.start()
        if is_written:
            disk.guest.pwrite(noise(test.random, 4 * KIB), 6 * MIB)
        disk.stop()
        disk.spec = spec
        if is_written:
            assert_begins_anew(test, disk, "modified")
        else:
            disk.start()
            assert disk.info()["state"] == "exact" and "previous-reason" not in disk.info()
            assert disk.checkpoint("old")["changed-bytes"] == 2 * GRANULE, disk.info()
            disk.stop()


def make_layered(test, name, base_length, length):
    """A tracked qcow2 disk of this length above a base of another one."""
    base = test.path(f"{name}-base.qcow2")
    test.run("qemu-img", "create", "-q", "-f", "qcow2", base, base_length)
    disk = TrackedDisk(test, length, "qcow2", name=name)
    disk.stop()
    disk.tracking.unlink()
    test.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", disk.path,
             length)  # fmt: skip
    disk.start()
    return disk


@promise("a disk in a directory that is a link is not taken for one without its tracking file")
def linked_directory(test):
    test.path("real").mkdir()
    test.path("link").symlink_to("real")
    disk = TrackedDisk(test, LENGTH, name="link/disk")
    disk.add("old")
    disk.restart()
    assert disk.info()["state"] == "exact" and disk.checkpoint("old"), disk.info()
    assert "without its tracking file" not in disk.server.log(), disk.server.log()
    disk.stop()


@promise("a layered disk that was served without its tracking file, and not written, goes on exactly")
def without_and_layered(test):
    disk = make_layered(test, "layered", LENGTH, LENGTH)
    disk.add("old")
    disk.guest.pwrite(noise(test.random, 4 * KIB), MIB)
    disk.kill()
    spec = disk.spec
    disk.spec = spec.replace(",tracking=auto", "")
    disk.start()
    disk.stop()
    disk.spec = spec
    disk.start()
    assert disk.info()["state"] == "exact", disk.info()
    assert disk.checkpoint("old")["changed-bytes"] == GRANULE, disk.info()
    disk.stop()


@promise("a commit into a longer base is a disk with a changed tail")
def longer_base(test):
    disk = make_layered(test, "longer", LENGTH, LENGTH // 2)
    disk.add("old")
    disk.qmp.command("block-commit", device="vda", job_id="commit")
    disk.qmp.wait_event("BLOCK_JOB_READY")
    disk.qmp.command("block-job-complete", device="commit")
    disk.qmp.wait_event("BLOCK_JOB_COMPLETED")
    disk.reconnect()
    disk.guest.pwrite(noise(test.random, 4 * KIB), LENGTH - MIB)
    assert disk.info()["state"] == "exact", disk.info()
    assert disk.checkpoint("old")["changed-bytes"] == LENGTH // 2, disk.info()
    disk.stop()


@promise("a bitmap of an image whose name is no text is left to the image")
def strange_name(test):
    disk = TrackedDisk(test, LENGTH, "qcow2", name="strange")
    disk.stop()
    disk.tracking.unlink()
    test.run("qemu-img", "bitmap", "--add", disk.path, os.fsdecode(b"bad\xff"))
    disk.start()
    for name in ("one", "two"):
        disk.add(name)
        disk.guest.pwrite(noise(test.random, 4 * KIB), MIB)
    disk.restart()
    disk.add("three")
    assert disk.info()["state"] == "exact", disk.info()
    assert disk.checkpoint("one")["changed-bytes"] == GRANULE, disk.info()
    disk.stop()


@promise("a map that is damaged, cut off or of a disk that was changed is lost, and begun anew")
def begun_anew(test):
    cases = [
        ("damaged", damage_headers),
        ("damaged", damage_directory),
        ("damaged", lambda disk: overwrite(disk.tracking, 12288 + 30, b"\1\2")),
        ("damaged", lambda disk: overwrite(disk.tracking, 8192, b"\xff\xff")),
        ("damaged", lambda disk: truncate(disk, 0)),
        ("damaged", lambda disk: truncate(disk, 5)),
        ("damaged", lambda disk: truncate(disk, 8192)),
        ("damaged", lambda disk: truncate(disk, disk.tracking.stat().st_size - 65536)),
        ("modified", lambda disk: os.utime(disk.path)),
        ("modified", write_behind),
        ("modified", lambda disk: os.truncate(disk.path, LENGTH + MIB)),
        ("resized", lambda disk: os.truncate(disk.path, LENGTH - MIB)),
    ]
    disk = make_tracked(test)
    original = disk.path.read_bytes()
    for reason, spoil in cases:
        spoil(disk)
        assert_begins_anew(test, disk, reason)
        os.truncate(disk.path, LENGTH)
        overwrite(disk.path, 0, original)
        disk.tracking.unlink()
        disk.start()
        disk.add("old")
        disk.stop()


@promise("a disk that 'liveblk resize' made longer while nobody served it is a changed tail")
def resized_offline(test):
    for kind in ("raw", "qcow2"):
        disk = TrackedDisk(test, LENGTH, kind, kind)
        disk.guest.pwrite(b"1" * 64 * KIB, 0)
        disk.add("old")
        disk.guest.pwrite(b"2" * 64 * KIB, MIB)
        disk.stop()
        test.liveblk("resize", "--format", kind, str(disk.path), str(LENGTH + MIB))
        disk.start()
        assert disk.info()["state"] == "exact", disk.info()
        changed = disk.checkpoint("old")["changed-bytes"]
        assert changed == MIB + 64 * KIB, changed
        disk.stop()


@promise("what 'liveblk snapshot --apply' and a shorter disk change after a crash is not missed")
def changed_offline(test):
    changes = {
        "apply": lambda path: test.liveblk("snapshot", "--apply", "before", path),
        "shorten": lambda path: test.liveblk("resize", "--shrink", path, str(LENGTH - MIB)),
    }
    for name, change in changes.items():
        disk = TrackedDisk(test, LENGTH, "qcow2", name)
        disk.qmp.command("blockdev-snapshot-internal-sync", device="vda", name="before")
        disk.guest.pwrite(b"1" * 64 * KIB, 0)
        disk.add("old")
        disk.kill()
        change(str(disk.path))
        assert_begins_anew(test, disk, "modified")


@promise("a tracking file that is another's is left alone, to the byte, and its disk is served")
def left_alone(test):
    disk, other = make_tracked(test), make_tracked(test, "other")
    spare = test.path("spare")
    os.rename(disk.tracking, spare)
    os.rename(other.tracking, disk.tracking)
    os.rename(spare, other.tracking)
    for each in (disk, other):
        assert_left_alone(test, each, "other-disk")
    os.replace(other.tracking, disk.tracking)
    shutil.copyfile(disk.path, test.path("copied"))  # a disk that was restored, say
    os.replace(test.path("copied"), disk.path)
    assert_left_alone(test, disk, "other-disk")
    for contents in (b"my diary\n", bytes(1 << 20), b"#!/bin/sh\n" * 10000, b"LIVEBLK"[:4] * 9999):
        disk.tracking.write_bytes(contents)
        assert_left_alone(test, disk, "foreign")


@promise("a tracking file that another process uses is left alone, and is of use after that")
def in_use(test):
    disk = make_tracked(test)
    with open(disk.tracking, "r+b") as file:
        lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        fcntl.fcntl(file, F_OFD_SETLK, lock)
        assert_left_alone(test, disk, "in-use")
    # What was written meanwhile is in no map.
    assert_begins_anew(test, disk, "modified")


@promise("a tracking file that cannot be stored: tracking is lost, and neither guest nor server is")
def storage(test):
    small = SmallDisk(test, "small", 256 * KIB)
    path = test.make_disk("disk", LENGTH)
    (small.path / "ballast").write_bytes(bytes(200 * KIB))
    disk = TrackedDisk.__new__(TrackedDisk)
    disk.test, disk.name = test, "disk"
    disk.path, disk.tracking = path, small.path / "tracking"
    disk.spec = f"name=vda,file={path},format=raw,tracking={disk.tracking}"
    disk.jobs = (f"backup{number}" for number in range(100))
    disk.start()
    info = disk.info()
    assert info["state"] == "lost" and info["reason"] == "storage", info
    assert "No space left" in info["message"], info
    assert_serves(test, disk)
    assert_asks_for_full(test, disk)
    refused(lambda: disk.add("new"), "No space left")
    disk.stop()
    assert not disk.tracking.exists()
    os.unlink(small.path / "ballast")
    small.grow(test, MIB)
    disk.start()  # now there is room
    assert disk.info()["state"] == "exact", disk.info()
    disk.add("old")
    (small.path / "ballast").write_bytes(bytes(MIB - disk.tracking.stat().st_size - 8 * KIB))
    # The map of a longer disk is a new file.
    disk.qmp.command("block_resize", device="vda", size=LENGTH + MIB)
    event = disk.qmp.wait_event("BLOCK_TRACKING_LOST", device="vda")
    assert event["data"]["reason"] == "storage", event
    disk.reconnect()
    assert disk.guest.get_size() == LENGTH + MIB
    assert_serves(test, disk)
    assert_asks_for_full(test, disk)
    disk.stop()
    os.unlink(small.path / "ballast")
    assert_begins_anew(test, disk, "storage")


@promise("a tracking file that is cut off under a running server: an event, and the guest goes on")
def cut_off_running(test):
    for length in (0, 8192):
        disk = make_tracked(test)
        disk.start()
        truncate(disk, length)
        assert_serves(test, disk)
        event = disk.qmp.wait_event("BLOCK_TRACKING_LOST", device="vda")
        assert event["data"]["reason"] == "storage" and event["data"]["message"], event
        info = disk.info()
        assert info["state"] == "lost" and info["reason"] == "storage", info
        assert_asks_for_full(test, disk)
        for at in range(0, LENGTH, MIB):
            disk.guest.pwrite(noise(test.random, MIB), at)
        disk.stop()
        disk.start()
        info = disk.info()
        assert info["state"] == "exact" and "previous-reason" in info, info
        assert_asks_for_full(test, disk)
        disk.stop()
        for name in ("disk.raw", "disk.raw.tracking", "disk-full"):
            test.path(name).unlink()


# ---- QMP -----------------------------------------------------------------------------------------


@promise("checkpoints are refused with sentences that say why")
def refusals(test):
    disk = TrackedDisk(test, LENGTH)
    disk.qmp.command_raw("blockdev-add", {"driver": "null-co", "node-name": "n", "size": MIB})
    disk.add("a")
    disk.add("ü" * 511 + "x")
    too_long = "ü" * 512

    def since(checkpoint, device="vda", **options):
        options = {"sync": "incremental", "since": checkpoint, **options}
        return lambda: disk.qmp.command("drive-backup", job_id="j", device=device, format="raw",
                                        target=str(test.path("t")), **options)  # fmt: skip

    for call, text in (
        (lambda: disk.add(""), "Checkpoint name cannot be empty"),
        (lambda: disk.add(too_long), f"Checkpoint name too long: {too_long}"),
        (lambda: disk.add("a"), "Checkpoint already exists: a"),
        (lambda: disk.remove("b"), "Checkpoint 'b' of disk 'vda' not found"),
        (since("b"), "Checkpoint 'b' of disk 'vda' not found"),
        (since("a", "n"), "Only devices have checkpoints, and 'n' is none: give the device"),
        (since("a", sync="full"),
         "Parameter 'since' is for sync mode 'incremental', without a bitmap"),
        (since("a", bitmap="x"),
         "Parameter 'since' is for sync mode 'incremental', without a bitmap"),
        (lambda: disk.qmp.command("block-tracking-start", device="vda"),
         "Device 'vda' is tracked already"),
        (lambda: disk.qmp.command("block-checkpoint-add", device="x", name="a"),
         "Device 'x' not found"),
    ):  # fmt: skip
        said = refused(call)
        assert said == text, said
    disk.qmp.command("block-tracking-stop", device="vda")
    untracked = "Device 'vda' is not tracked: use disk=...,tracking=auto or block-tracking-start"
    for call in (
        lambda: disk.add("a"),
        lambda: disk.remove("a"),
        since("a"),
        lambda: disk.qmp.command("block-tracking-stop", device="vda"),
    ):
        assert refused(call) == untracked
    there = test.path("there")
    there.write_text("mine")
    for options, word in (
        ({"file": "relative"}, "expects an absolute path or 'auto'"),
        ({"file": str(there)}, f"There is a file '{there}' already"),
        ({"file": str(test.path("no") / "such")}, "No such file or directory"),
        ({"granularity": 3000}, "granul"),
        ({"active-extents": 3}, "extents"),
    ):
        refused(lambda: disk.qmp.command_raw("block-tracking-start", {"device": "vda", **options}),
                word)  # fmt: skip
    assert there.read_text() == "mine" and disk.qmp.command("query-block-tracking") == []
    disk.stop()


@promise("a transaction that fails leaves no checkpoint behind, one that succeeds all of them")
def transactions(test):
    disk = TrackedDisk(test, LENGTH)

    def add(name, device="vda"):
        return action("block-checkpoint-add", device=device, name=name)

    def run(*actions):
        return lambda: disk.qmp.command("transaction", actions=list(actions))

    def names():
        return [entry["name"] for entry in disk.info()["checkpoints"]]

    disk.add("kept")
    bitmap = action("block-dirty-bitmap-add", node="nope", name="b")
    refused(run(add("a"), action("abort")))
    refused(run(add("a"), add("b"), bitmap), "nope")
    refused(run(add("a"), add("a")), "Checkpoint already exists: a")
    refused(run(add("a"), add("kept")), "Checkpoint already exists: kept")
    refused(run(add("a"), add("b", "nope")), "Device 'nope' not found")
    refused(run(add("a"), action("drive-backup", job_id="j", device="vda", sync="full",
                                 format="raw", target=str(test.path("no") / "such"))))  # fmt: skip
    assert names() == ["kept"], names()
    run(add("a"), add("b"))()
    disk.kill()
    disk.start()
    assert names() == ["kept", "a", "b"], names()
    disk.stop()


def check_shape(value, name, entries, where="answer"):
    """value is what query-qmp-schema says of the type."""
    entry = entries[name]
    kind = entry["meta-type"]
    if kind == "builtin":
        wanted = {"string": str, "int": int, "number": (int, float), "boolean": bool}
        json_type = entry["json-type"]
        assert isinstance(value, wanted[json_type]), f"{where}: {value!r} is no {json_type}"
    elif kind == "enum":
        assert value in entry["values"], f"{where}: {value!r}"
    elif kind == "array":
        for i, item in enumerate(value):
            check_shape(item, entry["element-type"], entries, f"{where}[{i}]")
    else:
        members = {member["name"]: member for member in entry["members"]}
        needed = {key for key in members if "default" not in members[key]}
        assert needed <= set(value) <= set(members), f"{where}: {set(value)}, not {set(members)}"
        for key, item in value.items():
            check_shape(item, members[key]["type"], entries, f"{where}.{key}")


@promise("query-block-tracking answers as query-qmp-schema says, whatever became of the map")
def schema(test):
    disk = make_tracked(test)
    for spoil in (None, lambda: os.utime(disk.path), lambda: disk.tracking.write_text("mine")):
        if spoil:
            spoil()
        disk.start()
        entries = {entry["name"]: entry for entry in disk.qmp.command("query-qmp-schema")}
        answer = disk.qmp.command("query-block-tracking")
        check_shape(answer, entries["query-block-tracking"]["ret-type"], entries)
        for name in ("block-tracking-start", "block-tracking-stop", "block-checkpoint-add",
                     "block-checkpoint-remove"):  # fmt: skip
            assert entries[name]["meta-type"] == "command"
        assert entries["BLOCK_TRACKING_LOST"]["meta-type"] == "event"
        disk.stop()


# ---- The command line ----------------------------------------------------------------------------


@promise("liveblk tracking and checkpoint say what is, as text and as JSON, and exit accordingly")
def command_line(test):
    path = test.make_disk("disk.img", LENGTH)
    server = Server(test, [f"name=vda,file={path},format=raw"])
    guest = server.connect()
    tracking = f"{path}.tracking"
    admin = ("-a", server.admin)

    def run(*words, **options):
        return test.liveblk(*words, *admin, **options).stdout

    def done(**members):
        return {"message_type": "done", **members}

    assert run("tracking", "list") == "No disk is tracked.\n"
    assert json.loads(run("tracking", "list", "--json")) == []
    said = json.loads(run("tracking", "start", "vda", "--granule", "4K", "--json"))
    assert said == done(verb="start", device="vda")
    assert run("checkpoint", "list", "vda") == "Disk 'vda' has no checkpoints.\n"
    assert run("checkpoint", "add", "vda", "one") == ""
    guest.pwrite(b"x" * 4 * KIB, 0)
    guest.zero(4 * KIB, 4 * KIB)  # what reads as zeroes already
    said = json.loads(run("checkpoint", "add", "vda", "two", "--json"))
    assert said == done(verb="add", device="vda", checkpoint="two")
    guest.zero(4 * KIB, 0)
    listed = json.loads(run("checkpoint", "list", "vda", "--json"))
    assert [(e["name"], e["changed-bytes"], e["zero-bytes"], e["broken"]) for e in listed] == [
        ("one", 4 * KIB, 4 * KIB, False), ("two", 4 * KIB, 4 * KIB, False),
    ], listed  # fmt: skip
    assert all(abs(entry["time"] - time.time()) < 3600 for entry in listed), listed
    lines = run("checkpoint", "list", "vda").splitlines()
    headings = ["CHECKPOINT", "CUT", "CHANGED", "SINCE", "OF", "IT", "ZERO"]
    assert lines[0].split()[:7] == headings and len(lines) == 3, lines
    assert re.fullmatch(r"two +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +4.0 KiB +4.0 KiB *", lines[2]), lines
    lines = run("tracking", "list").splitlines()
    assert lines[0].split()[:2] == ["DEVICE", "STATE"], lines
    assert lines[1].split()[:3] == ["vda", "exact", "2"] and tracking in lines[1], lines
    (info,) = json.loads(run("tracking", "list", "--json"))
    assert info["state"] == "exact" and info["granularity"] == 4 * KIB, info

    shown = json.loads(test.liveblk("tracking", "show", tracking, "--json").stdout)
    assert shown["state"] == "in use" and shown["disk"] == str(path), shown
    assert [entry["uuid"] for entry in shown["checkpoints"]] == [e["uuid"] for e in listed]
    assert "No errors are in the tracking file (in use)" in (
        test.liveblk("tracking", "check", tracking).stdout
    )
    checked = json.loads(test.liveblk("tracking", "check", tracking, "--json").stdout)
    assert checked["usable"] and checked["reason"] == "none", checked
    foreign = test.path("diary")
    foreign.write_text("my diary\n")
    for words, status, text in (
        (("tracking",), 2, "What to do about tracking?"),
        (("tracking", "nonsense"), 2, "What to do about tracking?"),
        (("tracking", "start"), 2, "start DEVICE"),
        (("tracking", "start", "vda", "--granule", "x"), 2, "--granule expects a number"),
        (("tracking", "start", "vda", "--extents", "-1"), 2, "--extents expects"),
        (("tracking", "stop", "vda", "--granule", "4K"), 2, "Only 'tracking start' has options"),
        (("tracking", "start", "vda"), 1, "is tracked already"),
        (("tracking", "start", "nope"), 1, "Device 'nope' not found"),
        (("tracking", "stop", "nope"), 1, "Device 'nope' not found"),
        (("tracking", "show", test.path("nope")), 1, "No such file"),
        (("tracking", "show", foreign), 1, "is no"),
        (("tracking", "check", foreign), 1, "is no"),
        (("tracking", "drop", foreign), 1, "was not removed"),
        (("tracking", "drop", tracking), 1, "is in use"),
        (("checkpoint",), 2, "What to do with checkpoints?"),
        (("checkpoint", "add", "vda"), 2, "VERB DEVICE NAME"),
        (("checkpoint", "add", "vda", "one"), 1, "Checkpoint already exists: one"),
        (("checkpoint", "remove", "vda", "x"), 1, "'x' of disk 'vda' not found"),
        (("checkpoint", "list", "nope"), 1, "'liveblk tracking start nope' begins it"),
        (("backup", "vda", "--to", test.path("t"), "--since", "x"), 1, "not found"),
    ):
        result = test.liveblk(*words, *admin, status=status)
        assert text in result.stderr and result.stderr.startswith("liveblk: "), result.stderr
    assert foreign.read_text() == "my diary\n" and os.path.exists(tracking)
    said = json.loads(run("checkpoint", "remove", "vda", "one", "--json"))
    assert said == done(verb="remove", device="vda", checkpoint="one")
    guest.shutdown()
    server.stop()

    assert "closed" in test.liveblk("tracking", "show", tracking).stdout
    gone = test.liveblk("tracking", "list", "-a", server.admin, status=None)
    assert gone.returncode not in (0, 1, 2) and gone.stderr, gone
    overwrite(tracking, 100, b"x")
    overwrite(tracking, 4196, b"x")
    for verb in ("show", "check"):
        result = test.liveblk("tracking", verb, tracking, status=1)
        assert "says nothing of its disk any more" in result.stderr, result
    said = json.loads(test.liveblk("tracking", "drop", tracking, "--json").stdout)
    assert said == done(verb="drop", filename=tracking) and not os.path.exists(tracking)


@promise("the commands of docs/tracking.md work in order, and restore the disk")
def documentation(test):
    text = (ROOT / "docs" / "tracking.md").read_text()
    block = re.search(r"## Using it\n\n((?:    .*\n)+)", text).group(1)
    serve, *commands = (shlex.split(line, comments=True) for line in block.splitlines())
    assert serve[:2] == ["liveblk", "serve"] and len(commands) > 8, (serve, commands)
    disk = test.make_disk("disk.img", LENGTH)
    disk.write_bytes(noise(test.random, MIB) + bytes(LENGTH - MIB))
    where = {
        "cwd": test.directory,
        "env": {
            "PATH": f"{LIVEBLK.parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            "XDG_RUNTIME_DIR": str(test.directory),
            "LIVEBLK_ADMIN": "",
        },
    }
    server = test.start(LIVEBLK, *serve[1:], log="serve.log", **where)
    wait_until(
        lambda: "admin: " in test.path("serve.log").read_text(), "the server says where it is"
    )
    uri = re.search("^vda: (.*)", test.path("serve.log").read_text(), re.MULTILINE).group(1)
    guest = connect(uri)
    for number, words in enumerate(commands):
        guest.pwrite(noise(test.random, 4 * KIB), number % 5 * MIB)
        moment = disk.read_bytes()
        test.run(*words, **where)
        if words[:2] == ["liveblk", "backup"]:
            saved = moment
        if words[0] == "qemu-img":
            test.run("qemu-img", "convert", "-O", "raw", words[-1], "restored.img", **where)
            assert test.path("restored.img").read_bytes() == saved
            test.path("restored.img").unlink()
            saved = None
    assert saved is None, "no increment was restored"
    guest.shutdown()
    server.terminate()
    assert server.wait(60) == 0
    test.run("liveblk", "tracking", "drop", "disk.img.tracking", **where)


if __name__ == "__main__":
    main()
