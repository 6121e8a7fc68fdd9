#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Snapshots as QEMU's backup tools make them: copy-before-write, qom-set, snapshot-access."""

import nbd
from liveblk_load import Writers
from liveblk_test import Server, main, promise, refused, wait_until

KIB = 1 << 10
MIB = 1 << 20
QDEV = "/machine/peripheral/vda"


def serve(test, length):
    path = test.make_disk("disk.img", length)
    server = Server(test, [f"name=vda,node-name=disk,file={path}"])
    return server, server.qmp()


def add_file(test, qmp, name, length):
    path = test.make_disk(f"{name}.img", length)
    qmp.command("blockdev-add", driver="raw", node_name=name, discard="unmap",
                file={"driver": "file", "filename": str(path)})  # fmt: skip
    return path


def root_of(qmp):
    return qmp.command("query-block")[0]["inserted"]["node-name"]


@promise("a backup by way of copy-before-write and qom-set equals the disk at its moment")
def whole(test):
    server, qmp = serve(test, 16 * MIB)
    writers = Writers(test, server.uri(), 16 * MIB).start()
    names = [entry["node-name"] for entry in qmp.command("query-named-block-nodes")]
    writers.wait_done(50)
    for turn in range(2):
        # The requests of qmpbackup, in their order.
        target = add_file(test, qmp, f"backup{turn}", 16 * MIB)
        add_file(test, qmp, f"fleece{turn}", 16 * MIB)
        with writers.held() as model:
            qmp.command("blockdev-add", driver="copy-before-write", node_name="cbw", file="disk",
                        target=f"fleece{turn}", on_cbw_error="break-snapshot",
                        cbw_timeout=45)  # fmt: skip
        writers.wait_done(20)
        qmp.command("qom-set", path=QDEV, property="drive", value="cbw")
        assert root_of(qmp) == "cbw"
        assert qmp.command("qom-get", path=QDEV, property="drive") == "cbw"
        writers.wait_done(50)
        qmp.command("blockdev-add", driver="snapshot-access", node_name="snap", file="cbw")
        backup = {"device": "snap", "target": f"backup{turn}", "sync": "full", "job-id": "j",
                  "auto-dismiss": False}  # fmt: skip
        bitmap = {"node": "disk", "name": f"bitmap{turn}"}
        qmp.command("transaction", actions=[
            {"type": "block-dirty-bitmap-add", "data": bitmap},
            {"type": "blockdev-backup", "data": backup},
        ])  # fmt: skip
        qmp.wait_job("j", "concluded")
        qmp.command("job-dismiss", id="j")
        model.assert_equals_file(target)
        refused(qmp, "blockdev-del", {"node-name": "cbw"}, "Node cbw is in use")
        qmp.command("blockdev-del", node_name="snap")
        qmp.command("qom-set", path="vda", property="drive", value="disk")
        assert root_of(qmp) == "disk"
        for name in ("cbw", f"backup{turn}", f"fleece{turn}"):
            qmp.command("blockdev-del", node_name=name)
    assert [entry["node-name"] for entry in qmp.command("query-named-block-nodes")] == names
    writers.wait_done(50)
    writers.stop()
    writers.model.assert_equals_file(test.path("disk.img"))
    server.stop()


@promise("only what a bitmap says is kept, and a bitmap of the snapshot is made from it at once")
def part(test):
    server, qmp = serve(test, 4 * MIB)
    handle = server.connect()
    handle.pwrite(b"o" * 4 * MIB, 0)
    qmp.command("block-dirty-bitmap-add", node="disk", name="b")
    handle.pwrite(b"p" * 64 * KIB, MIB)
    add_file(test, qmp, "fleece", 4 * MIB)
    target = add_file(test, qmp, "target", 4 * MIB)
    qmp.command("blockdev-add", driver="copy-before-write", node_name="cbw", file="disk",
                target="fleece", bitmap={"node": "disk", "name": "b"})  # fmt: skip
    qmp.command("qom-set", path="vda", property="drive", value="cbw")
    qmp.command("blockdev-add", driver="snapshot-access", node_name="snap", file="cbw")
    qmp.command("transaction", actions=[
        {"type": "block-dirty-bitmap-add", "data": {"node": "snap", "name": "s"}},
        {"type": "block-dirty-bitmap-merge",
         "data": {"node": "snap", "target": "s", "bitmaps": [{"node": "disk", "name": "b"}]}},
        {"type": "block-dirty-bitmap-clear", "data": {"node": "disk", "name": "b"}},
    ])  # fmt: skip
    handle.pwrite(b"n" * 4 * MIB, 0)
    # All of it cannot be read any more.
    qmp.command("blockdev-backup", device="snap", target="target", sync="full", job_id="j",
                auto_dismiss=False)  # fmt: skip
    qmp.wait_job("j", "concluded")
    assert "Invalid argument" in qmp.command("query-jobs")[0]["error"]
    qmp.command("job-dismiss", id="j")
    assert b"n" * 512 not in target.read_bytes()
    handle.shutdown()
    server.stop()


@promise("with break-guest-write a full target fails the guest, and the snapshot stays whole")
def guest_write(test):
    server, qmp = serve(test, 4 * MIB)
    handle = server.connect()
    handle.pwrite(b"o" * 4 * MIB, 0)
    path = test.make_disk("fleece.img", 4 * MIB)
    rule = {"event": "none", "iotype": "write", "errno": 28}
    qmp.command("blockdev-add", driver="blkdebug", node_name="fleece", inject_error=[rule],
                image={"driver": "file", "filename": str(path)})  # fmt: skip
    qmp.command("blockdev-add", driver="copy-before-write", node_name="cbw", file="disk",
                target="fleece")  # fmt: skip
    qmp.command("qom-set", path="vda", property="drive", value="cbw")
    qmp.command("blockdev-add", driver="snapshot-access", node_name="snap", file="cbw")
    try:
        handle.pwrite(b"n" * MIB, 0)
        raise AssertionError("the write succeeded")
    except nbd.Error as error:
        assert error.errno == "EIO", error
    qmp.command("blkdebug-set", node_name="fleece")
    handle.pwrite(b"n" * 4 * MIB, 0)
    target = add_file(test, qmp, "target", 4 * MIB)
    qmp.command("blockdev-backup", device="snap", target="target", sync="full", job_id="j",
                auto_dismiss=False)  # fmt: skip
    qmp.wait_job("j", "concluded")
    assert target.read_bytes() == b"o" * 4 * MIB
    handle.shutdown()
    server.stop()


@promise("a disk can be served through the filter from the start, and its snapshot beside it")
def from_the_start(test):
    disk, fleece = test.make_disk("disk.img", MIB), test.make_disk("fleece.img", MIB)
    disk.write_bytes(b"o" * MIB)
    through = (
        "name=vda,file.driver=copy-before-write,file.node-name=cbw,"
        f"file.file.driver=file,file.file.filename={disk},"
        f"file.target.driver=file,file.target.filename={fleece}"
    )
    server = Server(test, [through, "name=snap,file.driver=snapshot-access,file.file=cbw"])
    guest, reader = server.connect("vda"), server.connect("snap")
    guest.pwrite(b"n" * MIB, 0)
    assert bytes(reader.pread(MIB, 0)) == b"o" * MIB and reader.is_read_only()
    assert bytes(guest.pread(MIB, 0)) == b"n" * MIB
    guest.shutdown()
    reader.shutdown()
    server.stop()
    assert disk.read_bytes() == b"n" * MIB


@promise("qom-set changes nothing but the drive of a device to a node that fits, and says why not")
def qom(test):
    server, qmp = serve(test, MIB)
    add_file(test, qmp, "short", MIB - 512)
    same = add_file(test, qmp, "same", MIB)
    qmp.command("blockdev-add", driver="file", node_name="ro", filename=str(same), read_only=True,
                locking="off")  # fmt: skip
    good = {"path": QDEV, "property": "drive"}
    assert qmp.command_raw("qom-get", good) == "disk"
    assert qmp.command_raw("qom-get", {**good, "path": "vda"}) == "disk"
    for path in ("vdb", "/machine/peripheral/vdb", "/machine/peripheral/", "/objects/vda", "disk"):
        wrong = {**good, "path": path}
        refused(qmp, "qom-get", wrong, f"Device '{path}' not found", "DeviceNotFound")
        wrong["value"] = "same"
        refused(qmp, "qom-set", wrong, f"Device '{path}' not found", "DeviceNotFound")
    refused(qmp, "qom-get", {**good, "property": "x"}, "Property 'vda.x' not found")
    refused(qmp, "qom-set", {**good, "property": "x", "value": 1}, "Property 'vda.x' not found")
    for value, word in (
        (1, "expected: string"),
        (None, "expected: string"),
        ("none", "node-name='none'"),
        ("short", f"'short' has {MIB - 512} bytes and device 'vda' has {MIB}"),
        ("ro", "'ro' is read-only"),
    ):
        refused(qmp, "qom-set", {**good, "value": value}, word)
    assert root_of(qmp) == "disk"
    # A node that another uses for itself.
    qmp.command("blockdev-backup", job_id="j", device="vda", target="same", sync="none")
    refused(qmp, "qom-set", {**good, "value": "same"}, "block job 'j'")
    qmp.command("block-job-cancel", device="j")
    wait_until(lambda: qmp.command("query-jobs") == [], "the job has ended")
    # What follows the writes through a filter would miss those that go past it.
    add_file(test, qmp, "fleece", MIB)
    qmp.command("blockdev-add", driver="copy-before-write", node_name="cbw", file="disk",
                target="fleece")  # fmt: skip
    qmp.command_raw("qom-set", {**good, "value": "cbw"})
    qmp.command("block-dirty-bitmap-add", node="cbw", name="b")
    refused(qmp, "qom-set", {**good, "value": "disk"}, "'cbw' is busy")
    qmp.command("block-dirty-bitmap-disable", node="cbw", name="b")
    qmp.command_raw("qom-set", {**good, "value": "disk"})
    qmp.command("blockdev-del", node_name="cbw")
    # A guest that is connected goes on, on the other node; what nobody owns is closed.
    path = add_file(test, qmp, "other", MIB)
    handle = server.connect()
    handle.pwrite(b"1" * 512, 0)
    qmp.command_raw("qom-set", {**good, "value": "same"})
    refused(qmp, "qom-set", {**good, "value": "disk"}, "node-name='disk'")
    handle.pwrite(b"2" * 512, 512)
    qmp.command_raw("qom-set", {**good, "value": "same"})
    qmp.command_raw("qom-set", {**good, "value": "other"})
    handle.pwrite(b"3" * 512, 1024)
    qmp.command_raw("qom-set", {**good, "value": "same"})
    assert bytes(handle.pread(1536, 0)) == bytes(512) + b"2" * 512 + bytes(512)
    handle.shutdown()
    server.stop()
    assert test.path("disk.img").read_bytes()[:1536] == b"1" * 512 + bytes(1024)
    assert path.read_bytes()[:1536] == bytes(1024) + b"3" * 512


main()
