#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Backups and mirrors of a served disk's top layer alone, whose backing file stays where it is."""

import json

from liveblk_load import Writers
from liveblk_test import QmpError, Server, main, promise

MIB = 1 << 20
LENGTH = 16 * MIB


def make_qcow2(test, name, *options):
    path = test.path(name)
    test.run("qemu-img", "create", "-q", "-f", "qcow2", *options, path, LENGTH)
    return path


def world(test, threads=0):
    """A disk over a backing file that is full of data, and writers: (server, qmp, writers)."""
    base = make_qcow2(test, "base.qcow2")
    server = Server(test, [base], name="before")
    before = Writers(test, server.uri(), LENGTH, threads=1).start()
    before.wait_done(20)
    before.stop()
    server.stop()
    disk = make_qcow2(test, "disk.qcow2", "-b", base.name, "-F", "qcow2")
    server = Server(test, [disk])
    writers = Writers(test, server.uri(), LENGTH, threads=threads, prefill=False)
    writers.model = before.model
    return server, server.qmp(), writers


def write_some(server, writers):
    """Data in a few places, so that most of the disk is in the backing file alone."""
    handle = server.connect()
    for at in range(0, LENGTH, 4 * MIB):
        handle.pwrite(writers.model.write(at, 65536), at)
        handle.zero(65536, at + MIB)
        writers.model.zero(at + MIB, 65536)
    handle.shutdown()


def image_info(test, path):
    out = test.run("qemu-img", "info", "-U", "--output=json", path).stdout
    return json.loads(out)


def data_bytes(test, path):
    """How much of an image's top layer is there, data or zeroes."""
    extents = json.loads(test.run("qemu-img", "map", "-U", "--output=json", path).stdout)
    return sum(extent["length"] for extent in extents if extent["depth"] == 0)


def assert_image(test, path, model):
    test.run("qemu-img", "check", "-q", "-U", path)
    out = test.path("converted")
    test.run("qemu-img", "convert", "-U", "-O", "raw", path, out)
    model.assert_equals_file(out)
    out.unlink()


def assert_disk(server, model):
    handle = server.connect()
    model.assert_equals(lambda at, length: handle.pread(length, at))
    handle.shutdown()


def end_of(qmp, job):
    event = qmp.wait_event("BLOCK_JOB_COMPLETED", device=job)["data"]
    qmp.wait_job(job, "null")
    return event.get("error")


def refused(function, *arguments, **options):
    try:
        function(*arguments, **options)
    except QmpError as error:
        return str(error)
    raise AssertionError("it was not refused")


@promise("a backup of the top layer holds that, on the disk's backing file")
def quiet_backup(test):
    server, qmp, writers = world(test)
    write_some(server, writers)
    test.path("elsewhere").mkdir()
    target = test.path("elsewhere/target.qcow2")
    qmp.command("drive-backup", device="vda", target=str(target), format="qcow2", sync="top")
    event = qmp.wait_event("BLOCK_JOB_COMPLETED", device="vda")["data"]
    assert "error" not in event and event["len"] == event["offset"] == 8 * 65536, event
    qmp.wait_job("vda", "null")
    info = image_info(test, target)
    assert info["backing-filename"] == str(test.path("base.qcow2")), info
    assert info["backing-filename-format"] == "qcow2", info
    assert data_bytes(test, target) == 8 * 65536
    assert_image(test, target, writers.model)
    server.stop()


@promise("beside writers it is the moment it was started")
def busy_backup(test):
    server, qmp, writers = world(test, threads=3)
    target = test.path("target.qcow2")
    write_some(server, writers)
    writers.start()
    writers.wait_done(30)
    with writers.held():
        moment = writers.model.snapshot()
        qmp.command("drive-backup", **{"job-id": "b"}, device="vda", target=str(target),
                    format="qcow2", sync="top", compress=True)  # fmt: skip
    writers.wait_done(50)
    assert end_of(qmp, "b") is None
    writers.stop()
    assert_image(test, target, moment)
    server.stop()


@promise("a disk moves to a mirror of its top layer, made by the server or on no backing file")
def pivots(test):
    server, qmp, writers = world(test, threads=3)
    write_some(server, writers)
    writers.start()
    target = test.path("target.qcow2")
    qmp.command("drive-mirror", **{"job-id": "m", "node-name": "second"}, device="vda",
                target=str(target), format="qcow2", sync="top")  # fmt: skip
    qmp.wait_event("BLOCK_JOB_READY", device="m")
    writers.wait_done(30)
    qmp.command("block-job-complete", device="m")
    assert end_of(qmp, "m") is None
    writers.wait_done(30)
    third = make_qcow2(test, "third.qcow2", "-b", test.path("base.qcow2"), "-F", "qcow2")
    qmp.command_raw("blockdev-add", {"driver": "qcow2", "node-name": "third", "backing": None,
                    "file": {"driver": "file", "filename": str(third)}})  # fmt: skip
    qmp.command("blockdev-mirror", **{"job-id": "m"}, device="vda", target="third", sync="top")
    qmp.wait_event("BLOCK_JOB_READY", device="m")
    qmp.command("block-job-complete", device="m")
    assert end_of(qmp, "m") is None
    assert qmp.command("query-block")[0]["inserted"]["node-name"] == "third"
    writers.wait_done(30)
    writers.stop()
    assert_disk(server, writers.model)
    server.stop()
    assert_image(test, third, writers.model)
    server = Server(test, [third], name="again")
    assert_disk(server, writers.model)
    server.stop()


@promise("a disk does not move to where its backing file would be lost")
def no_pivot(test):
    server, qmp, writers = world(test)
    raw = test.make_disk("raw.img", LENGTH)
    qmp.command_raw("blockdev-add", {"driver": "file", "node-name": "raw", "filename": str(raw)})
    qmp.command("blockdev-mirror", **{"job-id": "m"}, device="vda", target="raw", sync="top")
    qmp.wait_event("BLOCK_JOB_READY", device="m")
    qmp.command("block-job-complete", device="m")
    error = end_of(qmp, "m")
    assert "no backing file for the rest" in error, error
    for command in ("drive-mirror", "drive-backup"):
        path = test.path("new.img")
        said = refused(qmp.command, command, device="vda", target=str(path), sync="top")
        assert "use the format 'qcow2'" in said, said
        assert not path.exists()
    assert_disk(server, writers.model)
    server.stop()


@promise("the program copies the top layer, too, and everything of a disk that has no other")
def program(test):
    server, _, writers = world(test)
    write_some(server, writers)
    words = ("--sync", "top", "--format", "qcow2", "--admin", server.admin)
    backup, moved = test.path("backup.qcow2"), test.path("moved.qcow2")
    test.liveblk("backup", "vda", "--to", backup, *words)
    assert_image(test, backup, writers.model)
    assert data_bytes(test, backup) == 8 * 65536
    test.liveblk("mirror", "vda", "--to", moved, "--pivot", *words)
    write_some(server, writers)
    assert_disk(server, writers.model)
    result = test.liveblk("backup", "vda", "--to", test.path("x.img"), "--sync", "top", "--admin",
                          server.admin, status=None)  # fmt: skip
    assert result.returncode and "use the format 'qcow2'" in result.stderr, result
    server.stop()
    assert_image(test, moved, writers.model)
    server = Server(test, [test.path("base.qcow2")], name="single")
    whole = test.path("whole.img")
    test.liveblk("backup", "vda", "--to", whole, "--sync", "top", "--admin", server.admin)
    test.run("qemu-img", "compare", "-q", "-U", "-F", "raw", test.path("base.qcow2"), whole)
    server.stop()


if __name__ == "__main__":
    main()
