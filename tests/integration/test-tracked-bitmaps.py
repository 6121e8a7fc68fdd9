#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Persistent dirty bitmaps of tracked disks: what they say after crashes."""


from liveblk_test import QmpError, Server, connect, main, promise

KIB = 1 << 10
MIB = 1 << 20
LENGTH = 8 * MIB
KILLS = 6


class Disk:
    """A tracked disk with a bitmap `b`, and a copy of the disk that the bitmap brings up to date."""

    def __init__(self, test, fmt, *options):
        self.test, self.format = test, fmt
        self.random = test.random
        self.path = test.path(f"disk.{fmt}")
        self.tracking = f"{self.path}.tracking"
        self.copy = test.path(f"copy.{fmt}.raw")
        self.copy.write_bytes(bytes(LENGTH))
        test.run("qemu-img", "create", "-q", "-f", fmt, *options, self.path, str(LENGTH))
        self.start()

    def start(self):
        disk = (
            f"name=vda,file={self.path},format={self.format},node-name=disk0,"
            f"tracking={self.tracking}"
        )
        log = self.test.path("tracked.log")
        self.said_before = len(log.read_text(errors="replace")) if log.exists() else 0
        self.server = Server(self.test, [disk], name="tracked")
        self.qmp = self.server.qmp()
        self.guest = connect(self.server.uri("vda"))

    def said(self):
        """What the server said since it was started last."""
        return self.server.log()[self.said_before :]

    def kill(self):
        self.server.kill()
        self.start()

    def restart(self):
        self.guest.shutdown()
        self.server.stop()
        self.start()

    def kill_where_it_is(self, path, fmt):
        """The server dies, and the next one is told where the disk went."""
        self.server.kill()
        self.path, self.format = path, fmt
        self.start()

    def bitmap(self, verb, name="b", node="disk0", **arguments):
        return self.qmp.command("block-dirty-bitmap-" + verb, node=node, name=name, **arguments)

    def bitmaps(self, name="disk0"):
        for node in self.qmp.command("query-named-block-nodes"):
            if node["node-name"] == name:
                return {bitmap["name"]: bitmap for bitmap in node.get("dirty-bitmaps", [])}
        raise AssertionError("no node")

    def granules(self, name="disk0"):
        """Of the bitmaps that can be trusted: how many of their granules are dirty."""
        found = self.bitmaps(name)
        assert not any(it.get("inconsistent") for it in found.values()), found
        return {name: it["count"] // it["granularity"] for name, it in found.items()}

    def add_node(self, name, path, fmt, **options):
        file = {"driver": "file", "filename": str(path)}
        self.qmp.command_raw(
            "blockdev-add", {"driver": fmt, "node-name": name, "file": file, **options}
        )

    def mirror(self, target, sync="full"):
        self.qmp.command("blockdev-mirror", job_id="move", device="vda", target=target, sync=sync)
        self.complete("move")

    def complete(self, job):
        self.qmp.wait_event("BLOCK_JOB_READY", device=job)
        self.qmp.command("job-complete", id=job)
        event = self.qmp.wait_event("BLOCK_JOB_COMPLETED", device=job)
        assert "error" not in event["data"], event

    def tracking_state(self):
        info = self.qmp.command("query-block-tracking")[0]
        return info["state"], info.get("reason")

    def scribble(self):
        for _ in range(self.random.randrange(1, 12)):
            offset = self.random.randrange(LENGTH // (4 * KIB) - 64) * 4 * KIB
            length = self.random.randrange(1, 64) * 4 * KIB
            kind = self.random.randrange(4)
            if kind == 0:
                self.guest.zero(length, offset)
            elif kind == 1:
                self.guest.trim(length, offset)
            else:
                self.guest.pwrite(self.random.randbytes(4 * KIB) * (length // (4 * KIB)), offset)

    def update_copy(self, **how):
        """Bring what the bitmap says to the copy, which must be the disk then."""
        self.qmp.command_raw("blockdev-add", {
            "driver": "raw", "node-name": "copy",
            "file": {"driver": "file", "filename": str(self.copy)},
        })  # fmt: skip
        self.qmp.command("blockdev-backup", job_id="update", device="disk0", target="copy",
                         bitmap="b", **(how or {"sync": "incremental"}))  # fmt: skip
        self.qmp.wait_event("BLOCK_JOB_COMPLETED", device="update")
        self.qmp.command("blockdev-del", node_name="copy")
        assert connect(self.server.uri("vda")).pread(LENGTH, 0) == self.copy.read_bytes()

    def end(self):
        self.guest.shutdown()
        self.server.stop()


def refused(disk, words, verb, **arguments):
    try:
        disk.bitmap(verb, **arguments)
    except QmpError as error:
        assert words in error.desc, error.desc
        return
    raise AssertionError(f"{verb} was not refused")


def through_crashes(test, fmt):
    disk = Disk(test, fmt)
    disk.bitmap("add", persistent=True, granularity=4 * KIB)
    disk.scribble()
    for _ in range(KILLS):
        step = disk.random.randrange(5)
        disk.scribble()
        if step == 0:
            disk.restart()
        elif step == 1:
            disk.update_copy()
            disk.scribble()
            disk.kill()
        elif step == 2:
            disk.bitmap("add", name="other")
            disk.kill()
            assert "other" not in disk.bitmaps()
        else:
            disk.kill()
        found = disk.bitmaps()["b"]
        assert found["recording"] and found["persistent"], found
        assert not found.get("inconsistent"), found
        disk.scribble()
        disk.update_copy()
    disk.end()


@promise("after kill -9 a bitmap of a raw disk has all that changed")
def test_raw(test):
    through_crashes(test, "raw")


@promise("after kill -9 a bitmap of a qcow2 image is consistent and has all that changed")
def test_qcow2(test):
    through_crashes(test, "qcow2")
    image = test.path("disk.qcow2")
    check = test.run("qemu-img", "check", "-q", "-f", "qcow2", image, status=None)
    assert check.returncode in (0, 3), check.stderr  # a kill may cost clusters, and nothing else


@promise("what commands did to bitmaps is as it was after kill -9")
def test_commands(test):
    disk = Disk(test, "raw")
    for name in "bcde":
        disk.bitmap("add", name=name, persistent=True, granularity=64 * KIB)
    disk.guest.pwrite(b"1" * 64 * KIB, 0)
    disk.bitmap("disable", name="c")
    disk.guest.pwrite(b"2" * 64 * KIB, 2 * MIB)
    disk.bitmap("clear", name="d")
    disk.bitmap("remove", name="e")
    disk.kill()
    found = disk.bitmaps()
    assert sorted(found) == ["b", "c", "d"], found
    assert [found[name]["count"] // (64 * KIB) for name in "bcd"] == [2, 1, 0], found
    assert [found[name]["recording"] for name in "bcd"] == [True, False, True], found
    disk.bitmap("enable", name="c")
    disk.qmp.command("block-dirty-bitmap-merge", node="disk0", target="d", bitmaps=["b"])
    disk.guest.pwrite(b"3" * 64 * KIB, 4 * MIB)
    disk.kill()
    found = disk.bitmaps()
    assert [found[name]["count"] // (64 * KIB) for name in "bcd"] == [3, 2, 3], found
    disk.end()


DISTRUST = "cannot be trusted"


@promise("where the map is lost bitmaps are inconsistent, are named, and can be removed")
def test_lost(test):
    for fmt in ("raw", "qcow2"):
        disk = Disk(test, fmt)
        disk.bitmap("add", persistent=True)
        disk.bitmap("add", name="c", persistent=True)
        disk.restart()
        disk.scribble()
        disk.guest.flush()
        disk.server.kill()
        tracking = test.path(f"disk.{fmt}.tracking")
        tracking.write_bytes(tracking.read_bytes()[:-4096])
        disk.start()
        log = disk.said()
        assert log.count(DISTRUST) == 1 and "'b', 'c'" in log, log
        for _ in range(2):
            found = disk.bitmaps()
            assert sorted(found) == ["b", "c"], found
            assert all(it["inconsistent"] and not it["recording"] for it in found.values()), found
            try:
                disk.bitmap("clear")
                raise AssertionError("an inconsistent bitmap was cleared")
            except QmpError as error:
                assert "inconsistent" in str(error), error
            disk.restart()  # they do not go by themselves
        disk.bitmap("remove")
        disk.bitmap("remove", name="c")
        disk.bitmap("add", persistent=True)
        disk.guest.pwrite(b"1" * 64 * KIB, 0)
        disk.kill()
        found = disk.bitmaps()
        assert list(found) == ["b"] and found["b"]["count"] == 64 * KIB, found
        disk.end()


@promise("a lost map whose names cannot be read either is reported")
def test_lost_names(test):
    disk = Disk(test, "raw")
    disk.bitmap("add", persistent=True)
    disk.server.kill()
    tracking = test.path("disk.raw.tracking")
    contents = tracking.read_bytes()
    tracking.write_bytes(contents.replace(b"b", b"x"))
    disk.start()
    assert not disk.bitmaps()
    assert "names of the checkpoints and bitmaps" in disk.said(), disk.said()
    disk.end()


@promise("what the tracking file makes good is not said to be untrustworthy")
def test_no_false_alarm(test):
    disk = Disk(test, "qcow2")
    disk.bitmap("add", persistent=True)
    disk.restart()
    disk.guest.pwrite(b"1" * 64 * KIB, 0)
    disk.bitmap("clear")
    disk.kill()
    assert "is good again" in disk.said(), disk.said()
    assert DISTRUST not in disk.said(), disk.said()
    disk.end()


@promise("after a mirror the file keeps the new node's bitmaps, and none of the old one's")
def test_mirrored(test):
    for is_kept in (False, True):
        disk = Disk(test, "raw")
        disk.bitmap("add", persistent=True)
        disk.guest.pwrite(b"1" * 64 * KIB, 0)
        other = test.make_disk(f"other{is_kept}.raw", LENGTH)
        disk.add_node("disk1", other, "raw")
        refused(disk, "Can't store persistent", "add", node="disk1", persistent=True)
        disk.mirror("disk1")
        if is_kept:
            disk.bitmap("add", node="disk1", persistent=True)  # of the old one's name
        disk.guest.pwrite(b"2" * 128 * KIB, MIB)
        disk.kill_where_it_is(other, "raw")
        assert disk.granules() == ({"b": 2} if is_kept else {}), disk.bitmaps()
        assert disk.tracking_state() == ("exact", None)
        disk.guest.pwrite(b"3" * 64 * KIB, 4 * MIB)
        disk.restart()
        assert disk.granules() == ({"b": 3} if is_kept else {}), disk.bitmaps()
        disk.end()
        test.path("disk.raw.tracking").unlink()


@promise("a raw disk's bitmaps that its snapshot leaves without a keeper are named in a warning")
def test_left_alone(test):
    disk = Disk(test, "raw")
    disk.bitmap("add", persistent=True)
    disk.qmp.command_raw("blockdev-snapshot-sync", {
        "device": "vda", "snapshot-file": str(test.path("top")), "snapshot-node-name": "top",
    })  # fmt: skip
    assert "('b') could be stored" in disk.said(), disk.said()
    disk.kill_where_it_is(test.path("top"), "qcow2")
    assert disk.granules() == {}, disk.bitmaps()
    disk.end()


def make_overlay(test, disk):
    """Above the disk, with a bitmap `b` of its own that says what no write has told it."""
    path = test.path("top.qcow2")
    test.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", disk.format, "-b", disk.path, path)
    for name in "bx":
        test.run("qemu-img", "bitmap", "--add", "-g", str(64 * KIB), path, name)
    disk.add_node("top", path, "qcow2", backing=None)
    disk.qmp.command("block-dirty-bitmap-merge", node="top", target="b",
                     bitmaps=[{"node": "disk0", "name": "other"}])  # fmt: skip
    return path


@promise("an overlay's bitmaps are kept from the snapshot on, whatever the disk's said under their names")
def test_snapshot(test):
    for fmt in ("raw", "qcow2"):
        disk = Disk(test, fmt)
        disk.bitmap("add", name="other")
        disk.guest.pwrite(b"1" * 256 * KIB, 0)
        disk.bitmap("add", persistent=True)  # it says nothing
        path = make_overlay(test, disk)
        disk.qmp.command("blockdev-snapshot", node="disk0", overlay="top")
        disk.guest.pwrite(b"2" * 64 * KIB, MIB)
        disk.bitmap("add", name="new", node="top", persistent=True)
        disk.guest.pwrite(b"3" * 64 * KIB, 2 * MIB)
        assert disk.granules("top") == {"b": 6, "x": 2, "new": 1}
        disk.kill_where_it_is(path, "qcow2")
        assert disk.granules() == {"b": 6, "x": 2, "new": 1}
        disk.end()
        path.unlink()
        test.path(f"disk.{fmt}.tracking").unlink()


@promise("a snapshot and a bitmap of its overlay in one transaction: the bitmap survives kill -9")
def test_snapshot_transaction(test):
    for order in (1, -1):
        disk = Disk(test, "raw")
        path = test.path("overlay.qcow2")
        test.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", disk.path, path)
        disk.add_node("top", path, "qcow2", backing=None)
        add = {"node": "top", "name": "b", "persistent": True}
        disk.qmp.command("transaction", actions=[
            {"type": "blockdev-snapshot", "data": {"node": "disk0", "overlay": "top"}},
            {"type": "block-dirty-bitmap-add", "data": add},
        ][::order])  # fmt: skip
        disk.guest.pwrite(b"2" * 64 * KIB, MIB)
        disk.kill_where_it_is(path, "qcow2")
        assert disk.granules() == {"b": 1}, disk.bitmaps()
        disk.end()
        path.unlink()
        test.path("disk.raw.tracking").unlink()


@promise("a disk that went to an overlay and was committed back has its bitmaps kept again")
def test_back_again(test):
    for fmt in ("raw", "qcow2"):
        disk = Disk(test, fmt)
        disk.bitmap("add", persistent=True)
        disk.guest.pwrite(b"1" * 64 * KIB, 0)
        overlay = test.path("overlay")
        disk.qmp.command_raw("blockdev-snapshot-sync", {
            "device": "vda", "snapshot-file": str(overlay), "snapshot-node-name": "top",
        })  # fmt: skip
        disk.guest.pwrite(b"2" * 64 * KIB, MIB)
        disk.qmp.command("block-commit", job_id="commit", device="vda")
        disk.complete("commit")
        assert disk.granules() == {"b": 2}
        disk.guest.pwrite(b"3" * 64 * KIB, 2 * MIB)
        disk.kill()
        assert disk.granules() == {"b": 3}, disk.bitmaps()
        disk.end()
        overlay.unlink()


@promise("on a tracked disk a bitmap of a qcow2 image of version 2 is persistent, and survives")
def test_version_2(test):
    disk = Disk(test, "qcow2", "-o", "compat=0.10")
    disk.bitmap("add", persistent=True)
    disk.guest.pwrite(b"1" * 64 * KIB, 0)
    try:
        disk.qmp.command("block-tracking-stop", device="vda")
        raise AssertionError("nobody keeps the bitmap")
    except QmpError as error:
        assert "remove 'b' first" in error.desc, error.desc
    disk.kill()
    assert disk.granules() == {"b": 1}, disk.bitmaps()
    disk.guest.pwrite(b"2" * 64 * KIB, MIB)
    disk.restart()
    assert disk.granules() == {"b": 2}, disk.bitmaps()
    disk.bitmap("remove")
    disk.kill()
    assert disk.granules() == {}, disk.bitmaps()
    disk.qmp.command("block-tracking-stop", device="vda")
    refused(disk, "in qcow2 v2 files", "add", persistent=True)
    disk.end()


def change(verb, **data):
    return {"type": "block-dirty-bitmap-" + verb, "data": {"node": "disk0", **data}}


@promise("what a transaction did to persistent bitmaps is as it was after kill -9, or not at all")
def test_transaction(test):
    disk = Disk(test, "raw")
    for name in "abc":
        disk.bitmap("add", name=name, persistent=True)
        disk.guest.pwrite(b"1" * 64 * KIB, MIB * "abc".index(name))
    assert disk.granules() == {"a": 3, "b": 2, "c": 1}
    actions = [
        change("add", name="new", persistent=True, disabled=True),
        change("merge", target="new", bitmaps=["b"]),
        change("clear", name="a"),
        change("merge", target="a", bitmaps=["c"]),
        change("merge", target="b", bitmaps=[]),  # changes nothing
        change("remove", name="c"),
    ]
    try:
        disk.qmp.command("transaction", actions=[*actions, {"type": "abort", "data": {}}])
        raise AssertionError("abort")
    except QmpError as error:
        assert "abort" in error.desc, error.desc
    disk.kill()
    assert disk.granules() == {"a": 3, "b": 2, "c": 1}
    disk.qmp.command("transaction", actions=actions)
    assert disk.granules() == {"new": 2, "a": 1, "b": 2}
    disk.guest.pwrite(b"2" * 64 * KIB, 4 * MIB)
    disk.kill()
    assert disk.granules() == {"new": 2, "a": 2, "b": 3}
    assert not disk.bitmaps()["new"]["recording"]
    disk.end()


def expect_modified(disk):
    event = disk.qmp.wait_event("BLOCK_TRACKING_LOST", device="vda")
    assert event["data"]["reason"] == "modified", event
    assert disk.tracking_state() == ("lost", "modified")
    disk.end()


@promise("a device that is given a disk of other contents is tracked no more, and says so")
def test_other_contents(test):
    disk = Disk(test, "raw")
    disk.qmp.command("block-checkpoint-add", device="vda", name="before")
    disk.add_node("disk1", test.make_disk("another.raw", LENGTH), "raw")
    disk.qmp.command("qom-set", path="vda", property="drive", value="disk1")
    expect_modified(disk)


@promise("a mirror that did not copy all ends the tracking of the disk that goes there")
def test_mirror_of_less(test):
    disk = Disk(test, "raw")
    disk.guest.pwrite(b"1" * 64 * KIB, 0)
    disk.add_node("disk1", test.make_disk("another.raw", LENGTH), "raw")
    disk.mirror("disk1", sync="none")
    expect_modified(disk)
    test.path("disk.raw.tracking").unlink()
    bases = [test.path(f"base{number}.qcow2") for number in range(2)]
    for base in bases:
        test.run("qemu-img", "create", "-q", "-f", "qcow2", base, str(LENGTH))
    test.run("qemu-io", "-f", "qcow2", "-c", "write 1M 64k", bases[1])
    disk = Disk(test, "qcow2", "-F", "qcow2", "-b", bases[0])
    top = test.path("top.qcow2")
    test.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", bases[1], top)
    disk.add_node("disk1", top, "qcow2")
    disk.mirror("disk1", sync="top")  # above something else
    expect_modified(disk)


@promise("a disk that blockdev-reopen gives other layers is tracked no more; other options are none")
def test_other_layers(test):
    bases = [test.path(f"base{number}.qcow2") for number in range(2)]
    for base in bases:
        test.run("qemu-img", "create", "-q", "-f", "qcow2", base, str(LENGTH))
    disk = Disk(test, "qcow2", "-F", "qcow2", "-b", bases[0])
    nodes = disk.qmp.command("query-named-block-nodes", flat=True)
    named = {node["file"]: node["node-name"] for node in nodes if node["drv"] == "file"}
    below = next(it["node-name"] for it in nodes
                 if it["drv"] == "qcow2" and it["file"] == str(bases[0]))  # fmt: skip
    options = {"driver": "qcow2", "node-name": "disk0", "file": named[str(disk.path)]}
    disk.add_node("base1", bases[1], "qcow2", **{"read-only": True})
    disk.qmp.command_raw("blockdev-reopen", {
        "options": [{**options, "backing": below, "detect-zeroes": "on"}],
    })  # fmt: skip
    assert disk.tracking_state() == ("exact", None)
    disk.qmp.command_raw("blockdev-reopen", {"options": [{**options, "backing": "base1"}]})
    expect_modified(disk)


@promise("an overlay that is not empty ends the tracking of its disk")
def test_full_overlay(test):
    disk = Disk(test, "raw")
    for name, written in (("empty", False), ("full", True)):
        path = test.path(name)
        test.run("qemu-img", "create", "-q", "-f", "qcow2", path, str(LENGTH))
        if written:
            test.run("qemu-io", "-f", "qcow2", "-c", "write 1M 64k", path)
        disk.qmp.command_raw("blockdev-add", {
            "driver": "qcow2", "node-name": name, "backing": None,
            "file": {"driver": "file", "filename": str(path)},
        })  # fmt: skip
        below = "disk0" if name == "empty" else "empty"
        disk.qmp.command("blockdev-snapshot", node=below, overlay=name)
        state = disk.qmp.command("query-block-tracking")[0]["state"]
        assert state == ("lost" if written else "exact"), (name, state)
    disk.end()


@promise("a disk that is tracked from now on keeps the bitmaps it has")
def test_adopted(test):
    path = test.path("later.qcow2")
    test.run("qemu-img", "create", "-q", "-f", "qcow2", path, str(LENGTH))
    words = f"name=vda,file={path},format=qcow2,node-name=disk0"
    server = Server(test, [words], name="later")
    qmp = server.qmp()
    qmp.command("block-dirty-bitmap-add", node="disk0", name="b", persistent=True)
    guest = connect(server.uri("vda"))
    guest.pwrite(b"1" * 64 * KIB, 0)
    qmp.command("block-tracking-start", device="vda")
    guest.pwrite(b"2" * 64 * KIB, MIB)
    guest.flush()
    server.kill()
    server = Server(test, [words + ",tracking=auto"], name="later")
    qmp = server.qmp()
    found = qmp.command("query-named-block-nodes")
    bitmaps = next(node for node in found if node["node-name"] == "disk0")["dirty-bitmaps"]
    assert bitmaps[0]["count"] == 128 * KIB and bitmaps[0]["recording"], bitmaps
    server.stop()


main()
