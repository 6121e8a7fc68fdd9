#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Persistent dirty bitmaps: what the commands answer, what an end, clean or not, leaves behind."""

import json

from liveblk_test import Qmp, Server, expect_error, main, promise, wait_until

MIB = 1 << 20
GRANULE = 64 << 10
NODE = "vda"


def make_qcow2(test, name="disk.qcow2", *options):
    path = test.path(name)
    test.run("qemu-img", "create", "-q", "-f", "qcow2", *options, path, 4 * MIB)
    return path


def check(test, path):
    test.run("qemu-img", "check", "-q", "-f", "qcow2", path)


def stored(test, path):
    """What QEMU says is in the image: flags by name."""
    info = json.loads(test.run("qemu-img", "info", "-U", "--output=json", path).stdout)
    bitmaps = info["format-specific"]["data"].get("bitmaps", [])
    return {bitmap["name"]: sorted(bitmap["flags"]) for bitmap in bitmaps}


def bitmaps_of(qmp):
    """Of the disk's node, by name."""
    found = {}
    for node in qmp.command("query-named-block-nodes"):
        for bitmap in node.get("dirty-bitmaps", []):
            found[bitmap["name"]] = bitmap
    return found


def write(server, offset, data=b"x" * 512):
    handle = server.connect()
    handle.pwrite(data, offset)
    handle.flush()
    handle.shutdown()


class Daemon:
    """qemu-storage-daemon with the image open for writing."""

    def __init__(self, test, image):
        path = test.path("qsd.sock")
        self.process = test.start(
            "qemu-storage-daemon", "--chardev", f"socket,path={path},server=on,wait=off,id=c",
            "--monitor", "chardev=c", "--blockdev", f"file,node-name=f,filename={image}",
            "--blockdev", "qcow2,node-name=q,file=f", log="qsd.log")  # fmt: skip
        wait_until(path.exists, "qemu-storage-daemon listens")
        self.qmp = Qmp(path)

    def stop(self):
        self.qmp.command("quit")
        assert self.process.wait(30) == 0


@promise("QEMU goes on with our bitmaps and we with QEMU's, and qemu-img check is content throughout")
def taken_over(test):
    image = make_qcow2(test)
    server = Server(test, [image])
    qmp = server.qmp()
    qmp.command("block-dirty-bitmap-add", node=NODE, name="ours", persistent=True,
                granularity=GRANULE)  # fmt: skip
    write(server, 0)
    assert stored(test, image) == {}  # until the end
    server.stop()
    check(test, image)
    assert stored(test, image) == {"ours": ["auto"]}
    test.run("qemu-io", "-f", "qcow2", "-c", "write 1M 512", image)

    daemon = Daemon(test, image)
    found = bitmaps_of(daemon.qmp)
    assert found["ours"]["count"] == 2 * GRANULE and found["ours"]["recording"], found
    daemon.qmp.command("block-dirty-bitmap-add", node="q", name="theirs", persistent=True,
                       granularity=4096)  # fmt: skip
    daemon.stop()
    check(test, image)

    server = Server(test, [image], name="again")
    write(server, 2 * MIB)
    assert bitmaps_of(server.qmp())["ours"]["count"] == 3 * GRANULE
    server.qmp().command("block-dirty-bitmap-disable", node=NODE, name="ours")
    server.process.terminate()
    assert server.process.wait(30) == 0
    check(test, image)
    assert stored(test, image) == {"ours": [], "theirs": ["auto"]}
    test.run("qemu-img", "bitmap", "--merge", "theirs", image, "ours")

    daemon = Daemon(test, image)
    found = bitmaps_of(daemon.qmp)
    assert found["theirs"]["count"] == 4096 and not found["ours"]["recording"], found
    daemon.stop()
    check(test, image)


@promise("kill -9 of a server whose guest wrote: its bitmaps are inconsistent, say so, and can be "
         "removed; of one whose guest did not: they are as they were")  # fmt: skip
def killed(test):
    image = make_qcow2(test)
    test.run("qemu-img", "bitmap", "--add", image, "b")
    test.run("qemu-img", "bitmap", "--add", "--disable", image, "still")
    server = Server(test, [image])
    server.connect().pread(512, 0)
    server.kill()
    assert stored(test, image) == {"b": ["auto"], "still": []}

    server = Server(test, [image], name="second")
    server.qmp().command("block-dirty-bitmap-add", node=NODE, name="new", persistent=True)
    write(server, 0)
    server.kill()
    assert stored(test, image) == {"b": ["auto", "in-use"], "still": []}

    server = Server(test, [image], name="third")
    qmp = server.qmp()
    log = server.log()
    assert str(image) in log and "'b'" in log and "block-dirty-bitmap-remove" in log, log
    found = bitmaps_of(qmp)
    assert sorted(found) == ["b", "still"] and not found["b"]["recording"], found
    assert found["b"]["count"] == 0
    qmp.command("block-dirty-bitmap-enable", node=NODE, name="still")
    qmp.command("block-dirty-bitmap-remove", node=NODE, name="b")
    assert stored(test, image) == {"still": ["in-use"]}
    server.stop()
    check(test, image)
    assert stored(test, image) == {"still": ["auto"]}


@promise("what was removed is out of the image when the answer comes, and what a failed transaction "
         "was to remove is still there")  # fmt: skip
def removed(test):
    image = make_qcow2(test)
    for name in "ab":
        test.run("qemu-img", "bitmap", "--add", image, name)
    server = Server(test, [image])
    qmp = server.qmp()
    actions = [
        {"type": "block-dirty-bitmap-remove", "data": {"node": NODE, "name": "a"}},
        {"type": "abort", "data": {}},
    ]
    expect_error("abort", qmp, "transaction", actions=actions)
    assert sorted(bitmaps_of(qmp)) == ["a", "b"]
    server.stop()
    assert stored(test, image) == {"a": ["auto"], "b": ["auto"]}
    server = Server(test, [image], name="then")
    server.qmp().command("block-dirty-bitmap-remove", node=NODE, name="b")
    server.kill()
    assert list(stored(test, image)) == ["a"]
    again = [
        {"type": "block-dirty-bitmap-remove", "data": {"node": NODE, "name": "a"}},
        {"type": "block-dirty-bitmap-add",
         "data": {"node": NODE, "name": "a", "persistent": True, "disabled": True}},
    ]  # fmt: skip
    server = Server(test, [image], name="again")
    write(server, 0)
    qmp = server.qmp()
    for name in bitmaps_of(qmp):
        assert name == "a"
    qmp.command("transaction", actions=again)
    assert stored(test, image) == {}
    server.stop()
    assert stored(test, image) == {"a": []}
    test.run("qemu-img", "check", "-q", "-f", "qcow2", "-r", "leaks", image)  # of the kill


@promise("what cannot be stored is refused when it is added, in QEMU's words")
def refused(test):
    raw = test.make_disk("disk.img", MIB)
    old = make_qcow2(test, "old.qcow2", "-o", "compat=0.10")
    server = Server(test, [raw, old])
    qmp = server.qmp()
    roots = {device["device"]: device["inserted"]["node-name"]
             for device in qmp.command("query-block")}  # fmt: skip
    add = "block-dirty-bitmap-add"
    expect_error(f"Can't store persistent bitmaps to {roots['vda']}: Operation not supported", qmp,
                 add, node="vda", name="b", persistent=True)  # fmt: skip
    expect_error(f"Can't make bitmap 'b' persistent in '{roots['vdb']}': Cannot store dirty "
                 "bitmaps in qcow2 v2 files", qmp, add, node="vdb", name="b", persistent=True)  # fmt: skip
    qmp.command(add, node="vdb", name="b")


@promise("a node that is added and deleted keeps its bitmaps, and one that becomes read-only stores "
         "them")  # fmt: skip
def nodes(test):
    image = make_qcow2(test)
    server = Server(test, [test.make_disk("disk.img", MIB)])
    qmp = server.qmp()
    options = {"driver": "qcow2", "node-name": "n",
               "file": {"driver": "file", "filename": str(image)}}  # fmt: skip
    qmp.command("blockdev-add", **options)
    qmp.command("block-dirty-bitmap-add", node="n", name="b", persistent=True)
    qmp.command("blockdev-reopen", options=[{**options, "read-only": True}])
    assert stored(test, image) == {"b": ["auto"]}
    qmp.command("blockdev-reopen", options=[options])
    qmp.command("block-dirty-bitmap-clear", node="n", name="b")
    assert stored(test, image) == {"b": ["auto", "in-use"]}
    qmp.command("blockdev-del", **{"node-name": "n"})
    assert stored(test, image) == {"b": ["auto"]}
    qmp.command("blockdev-add", **options, **{"read-only": True})
    assert "b" in bitmaps_of(qmp)
    qmp.command("blockdev-del", **{"node-name": "n"})
    check(test, image)


@promise("a bitmap stays with its node under an external snapshot, and records what is committed")
def chains(test):
    image = make_qcow2(test)
    test.run("qemu-img", "bitmap", "--add", "-g", GRANULE, image, "b")
    server = Server(test, [image])
    qmp = server.qmp()
    write(server, 0)
    qmp.command_raw("blockdev-snapshot-sync", {
        "device": "vda", "snapshot-file": str(test.path("top.qcow2")), "format": "qcow2",
        "snapshot-node-name": "top"})  # fmt: skip
    write(server, MIB)
    assert bitmaps_of(qmp)["b"]["count"] == GRANULE
    qmp.command_raw("block-commit", {"job-id": "j", "device": "vda"})
    qmp.wait_job("j", "ready")
    qmp.command("job-complete", _id="j")
    qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")
    write(server, 2 * MIB)
    assert bitmaps_of(qmp)["b"]["count"] == 3 * GRANULE
    server.stop()
    check(test, image)
    assert stored(test, image) == {"b": ["auto"]}


@promise("the program's commands on images neither lose bitmaps nor leave them in use")
def offline(test):
    image = make_qcow2(test)
    test.run("qemu-img", "bitmap", "--add", "-g", GRANULE, image, "b")
    test.run("qemu-io", "-f", "qcow2", "-c", "write 1M 512", image)
    before = image.read_bytes()
    for words in (["info", image], ["check", image], ["map", image], ["snapshot", image]):
        test.liveblk(*words)
        assert image.read_bytes() == before, words
    for words in (["resize", image, "+1M"], ["snapshot", "--create=s", image],
                  ["snapshot", "--apply=s", image], ["snapshot", "--delete=s", image],
                  ["amend", "-o", "lazy-refcounts=on", image]):  # fmt: skip
        test.liveblk(*words)
        check(test, image)
        assert stored(test, image) == {"b": ["auto"]}, words
    server = Server(test, [image])
    assert bitmaps_of(server.qmp())["b"]["count"] == 5 * MIB  # it has gone back


main()
