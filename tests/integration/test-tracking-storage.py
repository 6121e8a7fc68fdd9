#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Tracked disks on real block devices, remote disks and chains: what they are, and what is zero."""

import contextlib
import itertools
import os
import pathlib

from liveblk_test import Server, main, promise
from liveblk_tracking import GRANULE, KIB, MIB, TrackedDisk, noise

LENGTH = 16 * MIB


class StoredDisk(TrackedDisk):
    """A tracked disk that lies somewhere already; its server is started by start()."""

    def __init__(self, test, path, kind="raw", options="", name="disk"):
        self.test, self.name, self.path = test, name, path
        self.tracking = test.path(f"{name}.tracking")
        self.spec = (
            f"name=vda,file={path},format={kind},discard=unmap,tracking={self.tracking}{options}"
        )
        self.jobs = (f"backup{number}" for number in itertools.count())

    def log(self):
        return self.server.log()


@contextlib.contextmanager
def loop_device(test, path):
    """A block device that is this file."""
    device = test.run("losetup", "-f", "--show", path).stdout.strip()
    try:
        yield pathlib.Path(device)
    finally:
        test.run("losetup", "-d", device)


def bytes_read(device):
    """What the kernel has read of a block device since it was attached."""
    return int(pathlib.Path(f"/sys/block/{device.name}/stat").read_text().split()[2]) * 512


def fill(disk):
    for at in range(0, LENGTH, MIB):
        disk.guest.pwrite(noise(disk.test.random, MIB), at)


def assert_goes_on(disk):
    info = disk.info()
    assert info["state"] == "exact" and "previous-reason" not in info, info
    assert not disk.checkpoint("old")["broken"], info


# ---- Zeroes --------------------------------------------------------------------------------------


def trim_all(disk):
    for at in range(0, LENGTH, 4 * MIB):
        disk.guest.trim(4 * MIB, at)


def zero_all(disk):
    disk.guest.zero(LENGTH, 0)


@promise("after a trim or zeroing of a block device an increment reads nothing, and is zeroes")
def zeroes(test):
    image = test.make_disk("image", LENGTH)
    with loop_device(test, image) as device:
        disk = StoredDisk(test, device, options=",cache=none")
        disk.start()
        for empty in (trim_all, zero_all):
            fill(disk)
            target = disk.full_backup(empty.__name__, empty.__name__)
            assert target.read_bytes() == disk.read()
            empty(disk)
            before = bytes_read(device)
            assert disk.backup(target, since=empty.__name__) == LENGTH
            moved = bytes_read(device) - before
            assert moved == 0, f"{moved} bytes were read after {empty.__name__}"
            assert target.read_bytes() == bytes(LENGTH) == disk.read()
            # What is written there afterwards is all that is read.
            data = noise(test.random, 4 * KIB)
            disk.guest.pwrite(data, 5 * MIB)
            before = bytes_read(device)
            disk.backup(target, since=empty.__name__)
            moved = bytes_read(device) - before
            assert moved <= GRANULE, f"{moved} bytes were read for one granule"
            assert target.read_bytes() == disk.read()
        disk.stop()


def start_trimmed(test, device):
    """A disk that was full at the checkpoint `old`, of which the copy is, and trimmed since."""
    disk = StoredDisk(test, device)
    disk.start()
    fill(disk)
    target = disk.full_backup("copy", "old")
    trim_all(disk)
    return disk, target


@promise("what a guest writes while an increment takes the zeroes of the moment is not in it")
def zeroes_of_the_moment(test):
    image = test.make_disk("image", LENGTH)
    with loop_device(test, image) as device:
        disk, target = start_trimmed(test, device)
        disk.guest.pwrite(b"before" * 100, MIB)
        job = disk.begin_backup(target, since="old", speed=4 * MIB)
        for at in range(0, LENGTH, MIB // 2):
            disk.guest.pwrite(b"after", at)
        disk.qmp.command("block-job-set-speed", device=job, speed=0)
        disk.end_backup(job)
        wanted = bytearray(LENGTH)
        wanted[MIB : MIB + 600] = b"before" * 100
        assert target.read_bytes() == wanted
        disk.stop()


@promise("an increment takes the zeroes that a killed server left half done from the disk itself")
def zeroes_after_a_kill(test):
    image = test.make_disk("image", LENGTH)
    with loop_device(test, image) as device:
        disk, target = start_trimmed(test, device)
        disk.guest.pwrite(noise(test.random, MIB), 3 * MIB)
        disk.kill()
        # Zeroing that was answered and not flushed may be lost; here it is as if it had been.
        with open(device, "r+b") as file:
            file.seek(7 * MIB)
            file.write(b"x" * MIB)
        disk.start()
        disk.backup(target, since="old")
        assert target.read_bytes() == disk.read()
        assert target.read_bytes()[7 * MIB : 8 * MIB] == b"x" * MIB
        disk.stop()


# ---- Which disk it is ----------------------------------------------------------------------------


def assert_left_alone(disk, *words):
    """The map is another disk's, and the message says of which."""
    before = disk.tracking.read_bytes()
    disk.start()
    info = disk.info()
    assert info["state"] == "lost" and info["reason"] == "other-disk", info
    for word in words:
        assert str(word) in info["message"], f"{info['message']!r} lacks {word}"
    disk.stop()
    assert disk.tracking.read_bytes() == before


@promise("block devices that were swapped are told apart, whatever they hold and are called")
def swapped_devices(test):
    one, two = test.make_disk("one", LENGTH), test.make_disk("two", LENGTH)
    name = test.path("volume")  # as LVM has names in /dev
    disk = StoredDisk(test, name)
    with loop_device(test, one) as first, loop_device(test, two) as second:
        name.symlink_to(first)
        disk.start()
        disk.add("old")
        disk.restart()
        assert_goes_on(disk)
        disk.stop()
        name.unlink()
        name.symlink_to(second)
        assert_left_alone(disk, one, two)
        name.unlink()
        name.symlink_to(first)
        disk.start()
        assert_goes_on(disk)
        disk.kill()
        name.unlink()
        name.symlink_to(second)
        assert_left_alone(disk, one, two)
    # The same file, attached anew, under whatever number.
    with loop_device(test, two), loop_device(test, one) as device:
        name.unlink()
        name.symlink_to(device)
        disk.start()
        assert_goes_on(disk)
        disk.stop()


@promise("a remote disk is known by its URI")
def remote_disks(test):
    servers = [
        Server(test, [test.make_disk(f"remote{i}", LENGTH)], name=f"server{i}") for i in (1, 2)
    ]
    disk = StoredDisk(test, servers[0].uri())
    disk.start()
    disk.add("old")
    disk.restart()
    assert_goes_on(disk)
    disk.stop()
    disk.spec = disk.spec.replace(servers[0].uri(), servers[1].uri())
    assert_left_alone(disk, servers[0].uri(), servers[1].uri())


# ---- Layers --------------------------------------------------------------------------------------


def assert_modified(disk, layer):
    """The map is lost, the log says for which file, and a new one is begun."""
    disk.start()
    info = disk.info()
    assert info["state"] == "exact" and info["previous-reason"] == "modified", info
    assert f"'{layer}', on which the disk lies" in disk.log(), disk.log()
    disk.remove("old")
    disk.add("old")
    disk.restart()
    assert disk.info()["state"] == "exact" and not disk.checkpoint("old")["broken"], disk.info()


def change_with_time(path, offset):
    """As another program would: with another time of modification."""
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(b"behind our back")


@promise("a backing file or data file that was written behind our back: the map is lost, by name")
def written_layers(test):
    base, middle = test.make_disk("base.raw", LENGTH), test.path("middle.qcow2")
    data, top = test.path("top.data"), test.path("top.qcow2")
    test.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", middle)
    test.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", middle, "-F", "qcow2",
             "-o", f"data_file={data}", top)  # fmt: skip
    disk = StoredDisk(test, top, "qcow2")
    disk.start()
    disk.add("old")
    disk.guest.pwrite(noise(test.random, 4 * KIB), 4 * MIB)
    disk.restart()
    assert_goes_on(disk)
    disk.stop()
    for layer, offset in ((base, 9 * MIB), (data, 12 * KIB), (middle, 60)):
        before = layer.read_bytes()
        change_with_time(layer, offset)
        layer.write_bytes(before)
        assert_modified(disk, layer)
        disk.stop()
    # Another file in its place.
    base.write_bytes(base.read_bytes())
    os.replace(test.make_disk("other.raw", LENGTH), base)
    assert_modified(disk, base)
    disk.stop()


@promise("layers that our own jobs changed, took away or put there are ours at the next start")
def own_layers(test):
    base, middle, top = (test.path(f"{name}.qcow2") for name in ("base", "middle", "top"))
    test.run("qemu-img", "create", "-q", "-f", "qcow2", base, LENGTH)
    for image, below in ((middle, base), (top, middle)):
        test.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", below, "-F", "qcow2", image)
        test.run("qemu-io", "-f", "qcow2", "-c", f"write -P 7 {MIB} 1M", image)
    disk = StoredDisk(test, top, "qcow2")
    disk.start()
    disk.add("old")
    disk.qmp.command("block-commit", job_id="commit", device="vda", top=str(middle))
    disk.qmp.wait_event("BLOCK_JOB_COMPLETED", device="commit")
    disk.qmp.wait_job("commit", "null")
    contents = disk.read()
    disk.restart()
    assert_goes_on(disk)
    disk.qmp.command("block-stream", job_id="stream", device="vda")
    disk.qmp.wait_event("BLOCK_JOB_COMPLETED", device="stream")
    disk.qmp.wait_job("stream", "null")
    disk.restart()
    assert_goes_on(disk)
    assert disk.read() == contents
    assert disk.checkpoint("old")["changed-bytes"] == 0
    disk.stop()
    change_with_time(base, 9 * MIB)  # nobody's layer any more
    disk.start()
    assert_goes_on(disk)
    disk.stop()


if __name__ == "__main__":
    main()
