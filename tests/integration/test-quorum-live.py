#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Quorums behind a real server: bad children, what is told of them, and children that change."""

import threading

import nbd
from liveblk_test import Server, error_of, main, promise, refused

KIB = 1 << 10
MIB = 1 << 20


def child(test, number):
    """Options of a child that can be made to fail: the node bN above the file dN.img."""
    return {
        "driver": "blkdebug",
        "node-name": f"b{number}",
        "image": {"driver": "file", "node-name": f"d{number}", "filename": disk_path(test, number)},
    }


def disk_path(test, number):
    return str(test.path(f"d{number}.img"))


def flat(options, prefix):
    """As on a command line."""
    for key, value in options.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={value}"


def serve(test, count, **options):
    """A disk on a quorum 'q' that the command line describes."""
    words = ["name=vda", "format=raw", "file.driver=quorum", "file.node-name=q"]
    for i in range(count):
        test.make_disk(f"d{i}.img", MIB)
        words += flat(child(test, i), f"file.children.{i}.")
    words += [f"file.{key.replace('_', '-')}={value}" for key, value in options.items()]
    server = Server(test, [",".join(words)])
    return server, server.qmp()


def corrupt(test, number, offset, data):
    with open(disk_path(test, number), "r+b") as file:
        file.seek(offset)
        file.write(data)


def inject(qmp, number, kind, errno):
    rule = {"event": "none", "iotype": kind, "errno": errno}
    qmp.command("blkdebug-set", node_name=f"b{number}", inject_error=[rule])


def assert_same(test, *numbers):
    for other in numbers[1:]:
        test.run("qemu-img", "compare", "-f", "raw", "-F", "raw", disk_path(test, numbers[0]),
                 disk_path(test, other))  # fmt: skip


def children(qmp):
    nodes = qmp.command("query-named-block-nodes", flat=True)
    found = next(node for node in nodes if node["node-name"] == "q")["children"]
    return {entry["child"]: entry["node-name"] for entry in found}


@promise("a guest sees nothing of one bad child in three, and the admin channel all of it")
def one_bad(test):
    server, qmp = serve(test, 3, vote_threshold=2, rewrite_corrupted="on")
    guest = server.connect()
    guest.pwrite(b"a" * MIB, 0)
    # One that has rotted is told of, and mended.
    corrupt(test, 1, 64 * KIB, b"rotten")
    assert bytes(guest.pread(4096, 64 * KIB)) == b"a" * 4096
    data = qmp.wait_event("QUORUM_REPORT_BAD")["data"]
    assert data == {"type": "read", "node-name": "b1", "sector-num": 128, "sectors-count": 8}, data
    assert_same(test, 0, 1, 2)
    # One that fails is told of, and what it misses mended when it is read.
    inject(qmp, 0, "write", 28)
    guest.pwrite(b"b" * 4096, 0)
    assert qmp.wait_event("QUORUM_REPORT_BAD", type="write")["data"] == {
        "type": "write", "error": "No space left on device", "node-name": "b0",
        "sector-num": 0, "sectors-count": 8,
    }  # fmt: skip
    inject(qmp, 2, "flush", 5)
    guest.flush()
    data = qmp.wait_event("QUORUM_REPORT_BAD", type="flush")["data"]
    assert data["error"] == "Input/output error" and data["node-name"] == "b2", data
    for number in (0, 2):
        qmp.command("blkdebug-set", node_name=f"b{number}")
    assert bytes(guest.pread(8192, 0)) == b"b" * 4096 + b"a" * 4096
    assert_same(test, 0, 1, 2)
    guest.shutdown()
    server.stop()
    assert "QUORUM_FAILURE" not in [event["event"] for event in qmp.events]
    assert_same(test, 0, 1, 2)


@promise("too few good children fail a request; of many failures the first and the last are told")
def too_few(test):
    server, qmp = serve(test, 2, vote_threshold=2)
    guest = server.connect()
    guest.pwrite(b"a" * MIB, 0)
    corrupt(test, 1, 0, b"rotten")
    places = [4096 * i for i in range(5)]
    for place in places:
        corrupt(test, 1, place, b"rotten")
        assert error_of(guest.pread, 512, place) == "EIO"
    first = qmp.wait_event("QUORUM_FAILURE")["data"]
    assert first == {"reference": "q", "sector-num": 0, "sectors-count": 1}, first
    qmp.wait_event("QUORUM_FAILURE", sector_num=places[-1] // 512)
    assert bytes(guest.pread(512, MIB - 512)) == b"a" * 512
    inject(qmp, 1, "write", 28)
    assert error_of(guest.pwrite, b"b" * 512, MIB - 512) == "ENOSPC"
    guest.shutdown()
    server.stop()


def write_until(server, stop, failures):
    guest = server.connect()
    count = 0
    while not stop.is_set():
        count = count % 250 + 1
        block = bytes([count]) * 64 * KIB
        place = count % 16 * 64 * KIB
        try:
            guest.pwrite(block, place)
            if bytes(guest.pread(64 * KIB, place)) != block:
                failures.append(f"{place} holds something else")
        except nbd.Error as error:
            failures.append(str(error))
    guest.shutdown()


@promise("children come and go while a guest writes, and one that is stale is filled by reading")
def come_and_go(test):
    server, qmp = serve(test, 2, vote_threshold=2, rewrite_corrupted="on")
    test.make_disk("d2.img", MIB)
    test.make_disk("d3.img", 2 * MIB)
    for number in (2, 3):
        qmp.command_raw("blockdev-add", child(test, number))
    change = "x-blockdev-change"
    refused(qmp, change, {"parent": "q", "child": "children.0"},
            "The number of children cannot be lower than the vote threshold 2")  # fmt: skip
    refused(qmp, change, {"parent": "q", "child": "b0"}, "Node 'q' does not have child 'b0'")
    refused(qmp, change, {"parent": "q", "node": "b0"}, "The node b0 already has a parent")
    refused(qmp, change, {"parent": "q", "node": "b3"}, "all must have the same length")
    refused(qmp, change, {"parent": "b3", "node": "b2"}, "The node b3 does not support adding a child")
    stop, failures = threading.Event(), []
    writer = threading.Thread(target=write_until, args=(server, stop, failures), daemon=True)
    writer.start()
    for _ in range(10):
        qmp.command(change, parent="q", node="b2")
        assert children(qmp) == {"children.0": "b0", "children.1": "b1", "children.2": "b2"}
        qmp.command(change, parent="q", child="children.2")
    qmp.command(change, parent="q", node="b2")
    # Before one that is good goes, the new one has to hold what nobody writes meanwhile, too.
    guest = server.connect()
    guest.pread(MIB, 0)
    qmp.command(change, parent="q", child="children.0")
    assert children(qmp) == {"children.1": "b1", "children.2": "b2"}
    # It had a name, but nobody has it any more, and so it is closed.
    refused(qmp, "blockdev-del", {"node-name": "b0"}, "b0")
    qmp.command_raw("blockdev-add", child(test, 0))
    qmp.command(change, parent="q", node="b0")
    stop.set()
    writer.join()
    assert not failures, failures
    guest.pread(MIB, 0)
    guest.shutdown()
    qmp.command("blockdev-del", node_name="b3")
    server.stop()
    assert_same(test, 0, 1, 2)


@promise("blockdev-add, blockdev-reopen and the schema know children as an array")
def described(test):
    server, qmp = serve(test, 1, vote_threshold=1)
    for number in (1, 2, 3):
        test.make_disk(f"d{number}.img", MIB)
    qmp.command_raw("blockdev-add", child(test, 1))
    quorum = {"driver": "quorum", "node-name": "x", "vote-threshold": 2}
    for wrong, text in (
        ({}, "Parameter 'children' is missing"),
        ({"children": []}, "Number of provided children must be 1 or more"),
        ({"children": "b1"}, "Invalid parameter type for 'children', expected: array"),
        ({"children": [5]}, "expected: BlockdevRef"),
        ({"children": ["b1"]}, "threshold may not exceed children count"),
        ({"children": ["b1", child(test, 2) | {"driver": "zz"}]}, "'zz'"),
        ({"children": ["b1", "zz"]}, "Cannot find device='zz' nor node-name='zz'"),
    ):
        refused(qmp, "blockdev-add", quorum | wrong, text)
    both = ["b1", child(test, 2)]
    qmp.command_raw("blockdev-add", quorum | {"children": both})
    qmp.command("blockdev-reopen", options=[quorum | {"children": both, "vote-threshold": 1}])
    refused(qmp, "blockdev-reopen", {"options": [quorum | {"children": ["b1"]}]}, "it has 'b2'")
    qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": str(test.path("nbd"))}})
    qmp.command("block-export-add", type="nbd", id="e", node_name="x", writable=True)
    test.run("qemu-io", "-f", "raw", "-c", "write -P 9 4k 64k", "-c", "discard 8k 4k",
             "-c", "read -P 9 4k 4k", f"nbd+unix:///x?socket={test.path('nbd')}")  # fmt: skip
    refused(qmp, "blockdev-del", {"node-name": "b1"}, "Block device b1 is in use")
    qmp.command("block-export-del", id="e", mode="hard")
    qmp.wait_event("BLOCK_EXPORT_DELETED", id="e")
    qmp.command("blockdev-del", node_name="x")
    qmp.command("blockdev-del", node_name="b1")
    assert_same(test, 1, 2)
    entries = {entry["name"]: entry for entry in qmp.command("query-qmp-schema")}

    def members(name):
        return {member["name"]: member for member in entries[name]["members"]}

    options = entries[entries["blockdev-add"]["arg-type"]]
    branch = next(entry["type"] for entry in options["variants"] if entry["case"] == "quorum")
    found = members(branch)
    assert set(found) >= {"children", "vote-threshold", "read-pattern", "blkverify", "rewrite-corrupted"}
    array = entries[found["children"]["type"]]
    assert array["meta-type"] == "array", array
    assert entries[array["element-type"]]["meta-type"] == "alternate"
    bad = members(entries["QUORUM_REPORT_BAD"]["arg-type"])
    assert "default" in bad["error"] and set(entries[bad["type"]["type"]]["values"]) == {
        "read", "write", "flush"
    }  # fmt: skip
    assert set(members(entries["QUORUM_FAILURE"]["arg-type"])) == {
        "reference", "sector-num", "sectors-count"
    }  # fmt: skip
    server.stop()


@promise("a backup of the disk, and a bitmap of a child, see what the guest writes")
def jobs(test):
    server, qmp = serve(test, 3, vote_threshold=2)
    guest = server.connect()
    guest.pwrite(b"a" * MIB, 0)
    path = test.make_disk("backup.img", MIB)
    qmp.command("blockdev-add", driver="file", node_name="backup", filename=str(path))
    qmp.command("block-dirty-bitmap-add", node="b1", name="changes")
    qmp.command("blockdev-backup", job_id="j", device="vda", target="backup", sync="full")
    qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")
    guest.pwrite(b"b" * 64 * KIB, 128 * KIB)
    nodes = qmp.command("query-named-block-nodes", flat=True)
    bitmap = next(node for node in nodes if node["node-name"] == "b1")["dirty-bitmaps"][0]
    assert bitmap["count"] == 64 * KIB, bitmap
    guest.shutdown()
    server.stop()
    assert path.read_bytes() == b"a" * MIB
    assert_same(test, 0, 1, 2)


main()
