#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Named views of a real server's disks, read by real clients while guests write."""

import json
import os
import signal
import struct
import threading

from liveblk_load import Writers, hang_up
from liveblk_test import QmpError, Server, error_of, main, promise, refused, wait_until

KIB = 1 << 10
MIB = 1 << 20


def serve(test, *lengths, prefix=""):
    """A server of disks vda, vdb, ... and a directory for scratch; (server, qmp, scratch)."""
    disks = []
    for number, length in enumerate(lengths):
        path = test.make_disk(f"{prefix}disk{number}.img", length)
        disks.append(f"name=vd{'abc'[number]},node-name=disk-{'abc'[number]},file={path}")
    scratch = test.path(f"{prefix}scratch")
    scratch.mkdir()
    server = Server(test, disks, name=f"{prefix}server")
    return server, server.qmp(), scratch


def view(qmp, name):
    return next(entry for entry in qmp.command("query-views") if entry["name"] == name)


def view_device(qmp, name, device="vda"):
    return next(entry for entry in view(qmp, name)["devices"] if entry["device"] == device)


def exports(test, server):
    told = json.loads(test.run("nbdinfo", "--json", "--list", server.uri()).stdout)
    return {entry["export-name"]: entry for entry in told["exports"]}


def copy_equals(test, server, export, model):
    out = test.path(f"{export}.out")
    test.run("nbdcopy", "--connections=4", server.uri(export), out)
    model.assert_equals_file(out)
    out.unlink()


@promise("a view copied under load equals the disk at its instant, and leaves nothing in scratch")
def equals(test):
    server, qmp, scratch = serve(test, 32 * MIB)
    writers = Writers(test, server.uri(), 32 * MIB).start()
    writers.wait_done(50)
    with writers.held() as model:
        info = qmp.command("view-create", name="now", scratch=str(scratch))
    assert info["status"] == "ok" and info["devices"][0]["export"] == "vda@now", info
    writers.wait_done(200)
    assert os.listdir(scratch) == []
    copy_equals(test, server, "vda@now", model)
    writers.wait_done(200)
    copy_equals(test, server, "vda@now", model)
    saved = wait_until(lambda: view_device(qmp, "now")["scratch-bytes"], "old data is on scratch")
    assert 0 < saved <= 32 * MIB
    qmp.command("view-drop", name="now")
    assert qmp.command("query-views") == []
    writers.wait_done(50)
    writers.stop()
    server.stop()


@promise("exports of views appear and vanish at run time, after the disks, and say what they are")
def appear(test):
    server, qmp, scratch = serve(test, MIB, 2 * MIB)
    qmp.command("view-create", name="2026-07-01T12:00", scratch=str(scratch))
    qmp.command("view-create", name="b.only", devices=["vdb"], scratch=str(scratch))
    told = exports(test, server)
    names = ["vda", "vdb", "vda@2026-07-01T12:00", "vdb@2026-07-01T12:00", "vdb@b.only"]
    assert list(told) == names, told
    assert "view 'b.only' of 20" in told["vdb@b.only"]["description"], told
    assert told["vdb@b.only"]["is_read_only"] and not told["vdb"]["is_read_only"]
    assert server.connect().get_size() == MIB  # the default export is a disk
    # Views are no guests' disks, but nodes.
    assert [entry["device"] for entry in qmp.command("query-block")] == ["vda", "vdb"]
    assert [entry["device"] for entry in qmp.command("query-blockstats")] == ["vda", "vdb"]
    node = view_device(qmp, "b.only", "vdb")["node-name"]
    nodes = {entry["node-name"]: entry for entry in qmp.command("query-named-block-nodes")}
    assert nodes[node]["drv"] == "snapshot-access" and nodes[node]["file"] == "vdb@b.only"
    qmp.command("view-drop", name="2026-07-01T12:00")
    assert list(exports(test, server)) == ["vda", "vdb", "vdb@b.only"]
    assert error_of(server.connect, "vda@2026-07-01T12:00") is not None
    qmp.command("view-drop", name="b.only")
    assert list(exports(test, server)) == ["vda", "vdb"]
    assert len(qmp.command("query-named-block-nodes")) == len(nodes) - 6
    server.stop()


@promise("nbdinfo --map of a view shows the allocation of its instant")
def allocation(test):
    server, qmp, scratch = serve(test, 16 * MIB)
    handle = server.connect()
    for at in range(0, 16 * MIB, 2 * MIB):
        handle.pwrite(b"d" * 300 * KIB, at + 64 * KIB)

    def map_of(export):
        return json.loads(test.run("nbdinfo", "--map", "--json", server.uri(export)).stdout)

    before = map_of("vda")
    assert any(entry["type"] == 3 for entry in before) and len(before) > 10, before
    qmp.command("view-create", name="v", scratch=str(scratch))
    assert map_of("vda@v") == before
    handle.pwrite(b"n" * 16 * MIB, 0)
    assert len(map_of("vda")) == 1
    assert map_of("vda@v") == before
    handle.trim(8 * MIB, 4 * MIB)
    handle.zero(2 * MIB, 0)
    assert map_of("vda@v") == before
    handle.shutdown()
    server.stop()


@promise("what is written to two disks in order is never in the later one's view alone")
def one_instant(test):
    server, qmp, scratch = serve(test, MIB, MIB)
    over = threading.Event()
    failures = []

    def write_pairs(number):
        try:
            one, two = server.connect("vda"), server.connect("vdb")
            count = 0
            while not over.is_set():
                count += 1
                data = struct.pack("<Q", count)
                one.pwrite(data, number * 8192)
                two.pwrite(data, number * 8192)
            one.shutdown()
            two.shutdown()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write_pairs, args=(n,), daemon=True) for n in range(4)]
    for thread in threads:
        thread.start()
    highest = 0
    for turn in range(30):
        name = f"turn{turn}"
        order = ["vda", "vdb"] if turn % 2 else ["vdb", "vda"]
        if turn % 3:
            qmp.command("view-create", name=name, devices=order, scratch=str(scratch))
        else:
            # Two views in one transaction are of one moment, too.
            data = [{"name": name + word, "devices": [word], "scratch": str(scratch)}
                    for word in order]  # fmt: skip
            actions = [{"type": "view-create", "data": entry} for entry in data]
            qmp.command("transaction", actions=actions)
        names = [name, name] if turn % 3 else [name + "vda", name + "vdb"]
        one, two = server.connect(f"vda@{names[0]}"), server.connect(f"vdb@{names[1]}")
        for number in range(4):
            a = struct.unpack("<Q", one.pread(8, number * 8192))[0]
            b = struct.unpack("<Q", two.pread(8, number * 8192))[0]
            assert b <= a <= b + 1, f"{order}: {a} on vda, {b} on vdb"
            highest = max(highest, a)
        one.shutdown()
        two.shutdown()
        for entry in set(names):
            wait_until(lambda: drop_idle(qmp, entry), "the clients have gone")
    assert highest > 10, highest
    over.set()
    for thread in threads:
        thread.join(30)
    assert not failures, failures
    server.stop()


def drop_idle(qmp, name):
    """Drop a view whose last clients are just going."""
    try:
        qmp.command("view-drop", name=name)
        return True
    except QmpError as error:
        assert " connected; " in error.desc, error.desc
        return False


@promise("views of one disk at several instants are all right, in whatever order they are dropped")
def several(test):
    server, qmp, scratch = serve(test, 16 * MIB)
    writers = Writers(test, server.uri(), 16 * MIB).start()
    models = {}
    for number in range(3):
        writers.wait_done(100)
        with writers.held() as models[f"v{number}"]:
            qmp.command("view-create", name=f"v{number}", scratch=str(scratch))
    writers.wait_done(100)
    for name, model in models.items():
        copy_equals(test, server, f"vda@{name}", model)
    wait_until(lambda: drop_idle(qmp, "v1"), "the clients have gone")
    writers.wait_done(100)
    copy_equals(test, server, "vda@v0", models["v0"])
    wait_until(lambda: drop_idle(qmp, "v0"), "the clients have gone")
    writers.wait_done(100)
    copy_equals(test, server, "vda@v2", models["v2"])
    writers.stop()
    server.stop()


@promise("a view with clients is dropped by force only, and they get errors from then on")
def clients(test):
    server, qmp, scratch = serve(test, MIB)
    guest = server.connect()
    guest.pwrite(b"o" * 4096, 0)
    qmp.command("view-create", name="v", scratch=str(scratch))
    reader, other = server.connect("vda@v"), server.connect("vda@v")
    assert view_device(qmp, "v")["clients"] == 2
    guest.pwrite(b"n" * 4096, 0)
    refused(qmp, "view-drop", {"name": "v"}, "2 clients")
    assert bytes(reader.pread(4096, 0)) == b"o" * 4096
    other.shutdown()
    wait_until(lambda: view_device(qmp, "v")["clients"] == 1, "one client has gone")
    qmp.command("view-drop", name="v", force=True)
    assert error_of(reader.pread, 4096, 0) is not None
    assert list(exports(test, server)) == ["vda"]
    # The name is free again; the old client has nothing to do with the new view.
    qmp.command("view-create", name="v", scratch=str(scratch))
    assert view_device(qmp, "v")["clients"] == 0
    assert error_of(reader.pread, 4096, 0) is not None
    fresh = server.connect("vda@v")
    assert bytes(fresh.pread(4096, 0)) == b"n" * 4096
    for handle in (guest, reader, fresh):
        handle.shutdown()
    wait_until(lambda: drop_idle(qmp, "v"), "the clients have gone")
    server.stop()


@promise("a client's trim gives up what it covers, on scratch too; writes are refused")
def trim(test):
    server, qmp, scratch = serve(test, 8 * MIB)
    node = test.make_disk("fleece.img", 8 * MIB)
    qmp.command("blockdev-add", driver="file", node_name="fleece", filename=str(node),
                discard="unmap")  # fmt: skip
    guest = server.connect()
    guest.pwrite(b"o" * 8 * MIB, 0)
    qmp.command("view-create", name="v", scratch_nodes=["fleece"], discard=True)
    guest.pwrite(b"n" * 8 * MIB, 0)
    wait_until(lambda: view(qmp, "v")["scratch-bytes"] == 8 * MIB, "old data is on scratch")
    blocks = node.stat().st_blocks
    reader = server.connect("vda@v")
    assert not reader.is_read_only() and reader.can_trim()
    assert bytes(reader.pread(4 * MIB, 0)) == b"o" * 4 * MIB
    reader.trim(4 * MIB, 0)
    assert view(qmp, "v")["scratch-bytes"] == 4 * MIB
    assert view_device(qmp, "v")["discarded-bytes"] == 4 * MIB
    assert node.stat().st_blocks <= blocks - 4 * MIB // 512
    assert error_of(reader.pread, 4096, 0) == "EINVAL"
    assert bytes(reader.pread(4 * MIB, 4 * MIB)) == b"o" * 4 * MIB
    assert error_of(reader.pwrite, b"x", 5 * MIB) == "EPERM"
    assert error_of(reader.zero, 4096, 5 * MIB) == "EPERM"
    # The same by command; parts of units stay.
    qmp.command("view-discard", name="v", device="vda", offset=4 * MIB + 1, length=MIB)
    assert view_device(qmp, "v")["discarded-bytes"] == 5 * MIB - 4096
    assert bytes(reader.pread(1, 4 * MIB)) == b"o"
    for device, offset, word in (("vda", 8 * MIB, "not inside"), ("vdb", 0, "'vdb'")):
        wrong = {"name": "v", "device": device, "offset": offset, "length": 1}
        refused(qmp, "view-discard", wrong, word)
    reader.shutdown()
    wait_until(lambda: drop_idle(qmp, "v"), "the client has gone")
    assert node.stat().st_blocks == 0
    qmp.command("blockdev-del", node_name="fleece")
    # Without the option the export is read-only.
    qmp.command("view-create", name="v", scratch=str(scratch))
    reader = server.connect("vda@v")
    assert reader.is_read_only()
    reader.set_strict_mode(0)
    assert error_of(reader.trim, 4096, 0) == "EPERM"
    reader.shutdown()
    guest.shutdown()
    server.stop()


@promise("a view is the source of a backup, which force alone takes away from it")
def backup(test):
    server, qmp, scratch = serve(test, 16 * MIB)
    writers = Writers(test, server.uri(), 16 * MIB).start()
    with writers.held() as model:
        node = qmp.command("view-create", name="v", scratch=str(scratch))["devices"][0]["node-name"]
    writers.wait_done(100)
    target = test.make_disk("target.img", 16 * MIB)
    qmp.command("blockdev-add", driver="file", node_name="target", filename=str(target))
    qmp.command("blockdev-backup", job_id="j", device=node, target="target", sync="full",
                speed=MIB, auto_dismiss=False)  # fmt: skip
    refused(qmp, "view-drop", {"name": "v"}, "block job 'j'")
    qmp.command("block-job-set-speed", device="j", speed=0)
    qmp.wait_job("j", "concluded")
    qmp.command("job-dismiss", id="j")
    model.assert_equals_file(target)
    qmp.command("blockdev-backup", job_id="j", device=node, target="target", sync="full",
                speed=MIB, auto_dismiss=False)  # fmt: skip
    qmp.command("view-drop", name="v", force=True)
    qmp.wait_job("j", "concluded")
    assert "Input/output error" in qmp.command("query-jobs")[0]["error"]
    qmp.command("job-dismiss", id="j")
    writers.stop()
    server.stop()


@promise("a view of a disk that a mirror moves away stays what it was")
def moved(test):
    server, qmp, scratch = serve(test, 16 * MIB)
    writers = Writers(test, server.uri(), 16 * MIB).start()
    with writers.held() as model:
        qmp.command("view-create", name="before", scratch=str(scratch))
    target = test.make_disk("target.img", 16 * MIB)
    qmp.command("blockdev-add", driver="raw", node_name="target", discard="unmap",
                file={"driver": "file", "filename": str(target)})  # fmt: skip
    writers.wait_done(50)
    qmp.command("blockdev-mirror", job_id="m", device="vda", target="target", sync="full")
    qmp.wait_event("BLOCK_JOB_READY", device="m")
    writers.wait_done(50)
    qmp.command("block-job-complete", device="m")
    qmp.wait_job("m", "null")
    assert qmp.command("qom-get", path="vda", property="drive") == "target"
    writers.wait_done(50)
    with writers.held() as now:
        qmp.command("view-create", name="after", scratch=str(scratch))
    writers.wait_done(50)
    copy_equals(test, server, "vda@before", model)
    copy_equals(test, server, "vda@after", now)
    old = test.path("disk0.img").read_bytes()
    writers.wait_done(50)
    assert test.path("disk0.img").read_bytes() == old
    wait_until(lambda: drop_idle(qmp, "before"), "the clients have gone")
    copy_equals(test, server, "vda@after", now)
    writers.stop()
    server.stop()


@promise("the length of a disk stays while it has a view")
def resize(test):
    server, qmp, scratch = serve(test, MIB)
    qmp.command("view-create", name="v", scratch=str(scratch))
    for size in (2 * MIB, 512 * KIB):
        refused(qmp, "block_resize", {"device": "vda", "size": size}, "view 'v'")
    qmp.command("view-drop", name="v")
    qmp.command("block_resize", device="vda", size=2 * MIB)
    server.stop()


@promise("what is refused, and a transaction that is aborted, leave nothing behind")
def refusals(test):
    server, qmp, scratch = serve(test, MIB, 2 * MIB)
    for name, length in (("one", MIB), ("two", 2 * MIB)):
        path = test.make_disk(f"{name}.img", length)
        qmp.command("blockdev-add", driver="file", node_name=name, filename=str(path))
    nodes = qmp.command("query-named-block-nodes")
    good = {"name": "v", "scratch": str(scratch)}
    for change, word in (
        ({"name": "a@b"}, "Invalid view name 'a@b'"),
        ({"name": "a/b"}, "Invalid view name"),
        ({"name": ""}, "Invalid view name ''"),
        ({"name": "x" * 64}, "at most 63 bytes"),
        ({"devices": []}, "at least one device"),
        ({"devices": ["vda", "vdc"]}, "Device 'vdc' not found"),
        ({"devices": ["vda", "vda"]}, "'vda' is named twice"),
        ({"scratch": "here"}, "absolute path"),
        ({"scratch": "/nowhere"}, "Could not make a scratch file in '/nowhere'"),
        ({"scratch-nodes": ["one", "two"]}, "either 'scratch' or 'scratch-nodes'"),
        ({"cbw-timeout": -1}, "cbw-timeout"),
        ({"on-cbw-error": "panic"}, "panic"),
    ):
        refused(qmp, "view-create", {**good, **change}, word)
    for scratch_nodes, word in (
        (["one"], "1 nodes for 2 devices"),
        (["two", "one"], "shorter"),
        (["one", "none"], "node-name='none'"),
        (["one", "one"], "View 'v', device 'vdb'"),
        (["one", "disk-a"], "disk-a"),
    ):
        refused(qmp, "view-create", {"name": "v", "scratch-nodes": scratch_nodes}, word)
    actions = [{"type": "view-create", "data": good}, {"type": "abort", "data": {}}]
    refused(qmp, "transaction", {"actions": actions}, "aborted")
    actions = [{"type": "view-create", "data": good}] * 2
    refused(qmp, "transaction", {"actions": actions}, "View 'v' exists already")
    refused(qmp, "view-drop", {"name": "v"}, "no view named 'v'")
    assert qmp.command("query-views") == []
    assert qmp.command("query-named-block-nodes") == nodes
    qmp.command("view-create", name="v", scratch_nodes=["one", "two"])
    refused(qmp, "view-create", good, "View 'v' exists already")
    refused(qmp, "blockdev-del", {"node-name": "one"}, "view 'v'")
    # Nobody gets at scratch beside the view.
    target = {"device": "vda", "target": "one", "sync": "full", "job-id": "j"}
    refused(qmp, "blockdev-backup", target, "view 'v'")
    server.stop()


@promise("the server ends with views alive, and a killed one leaves no scratch")
def ends(test):
    server, qmp, scratch = serve(test, 8 * MIB)
    writers = Writers(test, server.uri(), 8 * MIB).start()
    qmp.command("view-create", name="v", scratch=str(scratch))
    reader = server.connect("vda@v")
    writers.wait_done(50)
    server.process.terminate()
    hang_up(reader)
    writers.stop(check=False)
    assert server.process.wait(60) == 0, server.log()
    server, qmp, scratch = serve(test, 8 * MIB, prefix="second-")
    handle = server.connect()
    handle.pwrite(b"o" * 8 * MIB, 0)
    qmp.command("view-create", name="v", scratch=str(scratch))
    handle.pwrite(b"n" * 8 * MIB, 0)
    wait_until(lambda: view(qmp, "v")["scratch-bytes"] == 8 * MIB, "old data is on scratch")
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    assert os.listdir(scratch) == []


main()
