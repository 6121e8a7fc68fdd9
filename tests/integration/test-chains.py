#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Backing chains of a served disk: external snapshots, streams and commits under connected guests."""

import json
import os
import threading
import time

from liveblk_load import Writers, assert_guest_unharmed
from liveblk_test import QmpError, Server, main, promise, wait_until

MIB = 1 << 20
LENGTH = 32 * MIB


def backing_chain(test, path):
    """What qemu-img reads of a chain from its headers alone: file names, top first."""
    out = test.run("qemu-img", "info", "-U", "--backing-chain", "--output=json", path).stdout
    return [os.path.basename(image["filename"]) for image in json.loads(out)]


def live_chain(qmp):
    """The chain as the server has it, of the first device."""
    image = qmp.command("query-block")[0]["inserted"]["image"]
    names = []
    while image:
        names.append(os.path.basename(image["filename"]))
        image = image.get("backing-image")
    return names


class Disk:
    """A served disk under writers, which gets snapshots and jobs."""

    def __init__(self, test, length=LENGTH, threads=4, base="qcow2", name="server"):
        self.test = test
        self.path = test.path("base." + base)
        self.path.unlink(missing_ok=True)
        test.run("qemu-img", "create", "-q", "-f", base, self.path, length)
        self.server = Server(test, [f"file={self.path},format={base},discard=unmap"], name=name)
        self.qmp = self.server.qmp()
        self.writers = Writers(test, self.server.uri(), length, threads=threads).start()

    def snapshot(self, name, **arguments):
        self.writers.wait_done(100)
        self.path = self.test.path(name + ".qcow2")
        self.path.unlink(missing_ok=True)  # of another disk, which is gone
        self.qmp.command("blockdev-snapshot-sync", device="vda", snapshot_file=str(self.path),
                         snapshot_node_name=name, **arguments)  # fmt: skip
        self.writers.wait_done(100)

    def run_job(self, command, **arguments):
        """Start it, and return the error it ended with, or None."""
        self.qmp.command(command, job_id="job", device="vda", **arguments)
        event = self.qmp.wait_event("BLOCK_JOB_COMPLETED", device="job")["data"]
        self.qmp.wait_job("job", "null")
        return event.get("error")

    def expect_job(self, command, **arguments):
        error = self.run_job(command, **arguments)
        assert error is None, error

    def finish(self, *chain):
        """The guest saw nothing, and the images hold it all without us."""
        assert_guest_unharmed(self.server, self.writers, 100)
        assert live_chain(self.qmp) == list(chain), live_chain(self.qmp)
        self.server.stop()
        assert backing_chain(self.test, self.path) == list(chain)
        for name in chain:
            if name.endswith("qcow2"):
                self.test.run("qemu-img", "check", "-q", self.test.path(name))
        out = self.test.path("converted")
        self.test.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.path, out)
        self.writers.model.assert_equals_file(out)


@promise("a disk goes on in its overlay, and others can read what it was")
def snapshots(test):
    disk = Disk(test)
    disk.snapshot("one")
    disk.snapshot("two")
    test.run("qemu-img", "check", "-q", test.path("one.qcow2"))  # the lock lets readers in
    disk.finish("two.qcow2", "one.qcow2", "base.qcow2")


@promise("a stream flattens a chain under writers, and the image says so itself")
def streams_all(test):
    disk = Disk(test)
    disk.snapshot("one")
    disk.snapshot("two")
    disk.expect_job("block-stream")
    disk.finish("two.qcow2")


@promise("a stream down to a base takes out what lies between")
def streams_to_base(test):
    for how in ({"base_node": None}, {"base": None}, {"bottom": "one"}):
        disk = Disk(test, name="".join(how))
        base = disk.qmp.command("query-block")[0]["inserted"]["node-name"]
        disk.snapshot("one")
        disk.snapshot("two")
        if "base_node" in how:
            how["base_node"] = base
        if "base" in how:
            how["base"] = str(test.path("base.qcow2"))
        disk.expect_job("block-stream", **how)
        disk.finish("two.qcow2", "base.qcow2")


@promise("a commit merges layers below the guest's into the base, which is read-only again")
def commits(test):
    disk = Disk(test)
    for name in ("one", "two", "three"):
        disk.snapshot(name)
    disk.expect_job("block-commit", top_node="two")
    disk.finish("three.qcow2", "base.qcow2")


@promise("a commit of the guest's own layer moves the guest to the base when it is completed")
def commits_active(test):
    disk = Disk(test)
    disk.snapshot("one")
    disk.snapshot("two")
    disk.qmp.command("block-commit", job_id="job", device="vda")
    disk.qmp.wait_event("BLOCK_JOB_READY", device="job")
    disk.writers.wait_done(100)
    disk.qmp.command("block-job-complete", device="job")
    event = disk.qmp.wait_event("BLOCK_JOB_COMPLETED", device="job")["data"]
    assert "error" not in event and event["type"] == "commit", event
    disk.qmp.wait_job("job", "null")
    disk.path = test.path("base.qcow2")
    disk.finish("base.qcow2")


@promise("a commit of the guest's own layer can be left, and the guest stays where it was")
def leaves_active(test):
    disk = Disk(test, base="raw")
    disk.snapshot("one")
    disk.qmp.command("block-commit", job_id="job", device="vda")
    disk.qmp.wait_event("BLOCK_JOB_READY", device="job")
    disk.qmp.command("block-job-cancel", device="job")
    event = disk.qmp.wait_event("BLOCK_JOB_COMPLETED", device="job")["data"]
    assert "error" not in event, event
    disk.qmp.wait_job("job", "null")
    disk.finish("one.qcow2", "base.raw")


@promise("an image in the middle of the chain can be filled, too")
def streams_intermediate(test):
    disk = Disk(test)
    for name in ("one", "two", "three"):
        disk.snapshot(name)
    disk.qmp.command("block-stream", job_id="job", device="two")
    event = disk.qmp.wait_event("BLOCK_JOB_COMPLETED", device="job")["data"]
    assert "error" not in event, event
    disk.qmp.wait_job("job", "null")
    disk.finish("three.qcow2", "two.qcow2")


def refusal(qmp, command, **arguments):
    try:
        qmp.command(command, **arguments)
    except QmpError as error:
        return str(error)
    raise AssertionError(f"{command} was not refused")


@promise("an internal snapshot does not lose its backing file to a stream or a commit")
def keeps_internal_snapshots(test):
    disk = Disk(test)
    disk.snapshot("one")
    disk.snapshot("two")
    disk.qmp.command("blockdev-snapshot-internal-sync", device="vda", name="inside")
    for command in ("block-stream", "block-commit"):
        text = refusal(disk.qmp, command, job_id="job", device="vda")
        assert "inside" in text and "delete them first" in text, text
    disk.qmp.command("blockdev-snapshot-delete-internal-sync", device="vda", name="inside")
    disk.qmp.command("block-stream", job_id="job", device="vda", speed=1)
    text = refusal(
        disk.qmp, "blockdev-snapshot-internal-sync", device="vda", name="inside"
    )
    assert "block job 'job'" in text, text
    text = refusal(disk.qmp, "blockdev-snapshot-sync", device="vda",
                   snapshot_file=str(test.path("three.qcow2")))  # fmt: skip
    assert "block job 'job'" in text, text
    assert not test.path("three.qcow2").exists()
    disk.qmp.command("job-cancel", _id="job")
    disk.finish("two.qcow2", "one.qcow2", "base.qcow2")


@promise("snapshots of several disks are of one instant, or there are none")
def snapshots_together(test):
    disk = Disk(test)
    actions = [
        {"type": "blockdev-snapshot-sync",
         "data": {"device": "vda", "snapshot-file": str(test.path("one.qcow2"))}},
        {"type": "abort", "data": {}},
    ]  # fmt: skip
    refusal(disk.qmp, "transaction", actions=actions)
    assert not test.path("one.qcow2").exists()
    disk.qmp.command("transaction", actions=actions[:1])
    disk.path = test.path("one.qcow2")
    disk.finish("one.qcow2", "base.qcow2")


@promise("a snapshot that is refused removes nothing that somebody else made")
def removes_own_file_only(test):
    disk = Disk(test)
    test.path("link").symlink_to("nothing")
    refusal(disk.qmp, "blockdev-snapshot-sync", device="vda",
            snapshot_file=str(test.path("link")))  # fmt: skip
    assert test.path("link").is_symlink()
    disk.finish("base.qcow2")


@promise("an overlay is no file that holds something, be it the disk's own without a lock")
def spares_files(test):
    base, other = test.path("base.qcow2"), test.path("other")
    test.run("qemu-img", "create", "-q", "-f", "qcow2", base, MIB)
    other.write_bytes(b"precious")
    server = Server(test, [f"file={base},locking=off"])
    qmp = server.qmp()
    for path in (base, other):
        before = path.read_bytes()
        text = refusal(qmp, "blockdev-snapshot-sync", device="vda", snapshot_file=str(path))
        assert "is there already" in text, text
        assert path.read_bytes() == before
    test.path("empty").touch()
    qmp.command("blockdev-snapshot-sync", device="vda", snapshot_file=str(test.path("empty")))
    server.stop()
    assert backing_chain(test, test.path("empty")) == ["empty", "base.qcow2"]


@promise("who looks at the nodes meanwhile does not keep a snapshot from being taken")
def snapshots_beside_queries(test):
    path = test.path("base.qcow2")
    test.run("qemu-img", "create", "-q", "-f", "qcow2", path, MIB)
    server = Server(test, [f"file={path}"])
    qmp, other = server.qmp(), server.qmp()
    stop = threading.Event()

    def look():
        while not stop.is_set():
            other.command("query-named-block-nodes")

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    for number in range(60):
        overlay = str(test.path(f"{number}.qcow2"))
        qmp.command("blockdev-snapshot-sync", device="vda", snapshot_file=overlay)
    stop.set()
    looking.join()
    server.stop()


@promise("while a stream runs what guests read is kept, too, if a filter is asked for")
def streams_with_filter(test):
    disk = Disk(test)
    disk.snapshot("one")
    disk.qmp.command("block-stream", job_id="job", device="vda", speed=65536,
                     filter_node_name="reading")  # fmt: skip
    nodes = {node["node-name"]: node["drv"] for node in disk.qmp.command("query-named-block-nodes")}
    assert nodes["reading"] == "copy-on-read", nodes
    handle = disk.server.connect()
    handle.pread(LENGTH // 2, 0)
    handle.shutdown()
    disk.qmp.command("block-job-set-speed", device="job", speed=0)
    event = disk.qmp.wait_event("BLOCK_JOB_COMPLETED", device="job")["data"]
    assert "error" not in event, event
    disk.qmp.wait_job("job", "null")
    nodes = [node["node-name"] for node in disk.qmp.command("query-named-block-nodes")]
    assert "reading" not in nodes, nodes
    disk.finish("one.qcow2")


@promise("a file whose name looks like a protocol's is found again by its relative name")
def keeps_odd_names(test):
    for number, name in enumerate(("nbd:x", "json:x", "file:x")):
        directory = test.path(str(number))
        directory.mkdir()
        base, middle, top = directory / name, directory / "middle", directory / "top"
        base.touch()
        test.run("qemu-img", "create", "-q", "-f", "qcow2", directory / "new", MIB)
        (directory / "new").rename(base)
        for image, below in ((middle, base), (top, "middle")):
            test.run("qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2",
                     "-b", below, image, MIB)  # fmt: skip
        server = Server(test, [f"file={top}"], name=f"server{number}")
        qmp = server.qmp()
        qmp.command("block-stream", job_id="job", device="vda", base=str(base))
        qmp.wait_job("job", "null")
        server.stop()
        assert backing_chain(test, top) == ["top", name]
        server = Server(test, [f"file={top}"], name=f"again{number}")
        assert live_chain(server.qmp()) == ["top", name]
        server.stop()


@promise("a file that got another name is found again, by what the image above says of it")
def changes_name(test):
    disk = Disk(test)
    disk.snapshot("one")
    disk.snapshot("two")
    disk.server.kill()
    disk.writers.stop(check=False)
    disk.server = Server(test, [f"file={disk.path},format=qcow2"], name="again")
    qmp = disk.server.qmp()
    test.path("base.qcow2").rename(test.path("root.qcow2"))
    image = qmp.command("query-block")[0]["inserted"]["image"]["backing-image"]
    nodes = qmp.command("query-named-block-nodes")
    name = next(n["node-name"] for n in nodes if n["image"]["filename"] == image["filename"]
                and n["drv"] == "qcow2")  # fmt: skip
    qmp.command("change-backing-file", device="vda", image_node_name=name,
                backing_file="root.qcow2")  # fmt: skip
    disk.server.stop()
    assert backing_chain(test, disk.path) == ["two.qcow2", "one.qcow2", "root.qcow2"]


@promise("who only reads a disk that is moved gets right answers, those under way too")
def moves_readers(test):
    for command in ("block-commit", "drive-mirror"):
        base = test.path(command + ".base")
        base.write_bytes(b"\7" * MIB)
        socket = test.path(command + ".slow")
        test.start("nbdkit", "-f", "-U", socket, "--filter=delay", "file", base, "rdelay=300ms")
        wait_until(socket.exists, "the slow base is there")
        top, other = test.path(command + ".top"), test.path(command + ".other")
        test.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw",
                 "-b", f"nbd+unix:///?socket={socket}", top, MIB)  # fmt: skip
        test.run("qemu-io", "-c", "write -P 7 64k 64k", "-c", "write -P 7 192k 64k", top)
        test.run("qemu-img", "create", "-q", "-f", "qcow2", other, MIB)
        server = Server(test, [f"file={top}", f"name=ro,file={other},read-only=on"], name=command)
        qmp = server.qmp()
        root = qmp.command("qom-get", path="vda", property="drive")
        qmp.command("qom-set", path="ro", property="drive", value=root)
        target = {} if command == "block-commit" else {
            "target": str(test.path("target")), "format": "raw", "sync": "full"}  # fmt: skip
        qmp.command(command, device="vda", job_id="job", **target)
        qmp.wait_event("BLOCK_JOB_READY", device="job")
        handle = server.connect("ro")
        answers = []
        reader = threading.Thread(target=lambda: answers.append(handle.pread(MIB // 2, 0)))
        reader.start()
        time.sleep(0.1)
        qmp.command("block-job-complete", device="job")
        event = qmp.wait_event("BLOCK_JOB_COMPLETED", device="job")["data"]
        assert "error" not in event, event
        reader.join()
        assert answers == [b"\7" * (MIB // 2)]
        handle.shutdown()
        server.stop()


if __name__ == "__main__":
    main()
