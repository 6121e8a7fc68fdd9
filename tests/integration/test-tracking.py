#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Incremental backups since checkpoints: restored, they are the disk as it was at each moment.

LIVEBLK_TRACKING_KILLS is how often a server is killed (10).
"""

import json
import os
import shutil

from liveblk_load import Writers
from liveblk_test import Server, main, promise
from liveblk_tracking import (
    GRANULE, KIB, MIB, Load, TrackedDisk, action, choose_range, noise,
)  # fmt: skip

KILLS = int(os.environ.get("LIVEBLK_TRACKING_KILLS") or 10)


def assert_same(found, wanted, what):
    """Two lots of bytes are the same, or else a sentence says where they differ."""
    assert len(found) == len(wanted), f"{what} has {len(found)} bytes, not {len(wanted)}"
    for at in range(0, len(wanted), MIB):
        one, other = found[at : at + MIB], wanted[at : at + MIB]
        if one != other:
            sectors = range(0, len(one), 512)
            wrong = [at + i for i in sectors if one[i : i + 512] != other[i : i + 512]]
            raise AssertionError(f"{what} differs in {len(wrong)} sectors: {wrong[:8]}")


class FileBytes:
    """What is in a file, a part at a time."""

    def __init__(self, path):
        self.file = open(path, "rb")

    def __len__(self):
        return os.fstat(self.file.fileno()).st_size

    def __getitem__(self, part):
        return os.pread(self.file.fileno(), part.stop - part.start, part.start)


# ---- Chains --------------------------------------------------------------------------------------


class Chain:
    """A disk with a model of its contents, and a chain of images with what changed."""

    def __init__(self, test, kind, length, options=""):
        self.test = test
        self.random = test.random
        self.disk = TrackedDisk(test, length, kind, options=options)
        self.model = bytearray(length)
        self.images = []
        self.lost_power = False
        self.fill()
        self.disk.add("abandoned")
        self.back_up()

    def fill(self):
        for at in range(0, len(self.model), MIB):
            self.write(at, MIB // 2)

    # What the guest does. It is one thread, so the model is known at each moment.

    def write(self, at, size):
        data = noise(self.random, size)
        self.disk.guest.pwrite(data, at)
        self.model[at : at + size] = data

    def zero(self, at, size):
        self.disk.guest.zero(size, at)
        self.model[at : at + size] = bytes(size)

    def trim(self, at, size):
        """What it zeroes is up to the storage."""
        self.disk.guest.trim(size, at)
        old, found = self.model[at : at + size], bytes(self.disk.guest.pread(size, at))
        for i in range(0, size, 512):
            sector = found[i : i + 512]
            assert sector in (old[i : i + 512], bytes(512)), f"a trim changed {at + i}"
        self.model[at : at + size] = found

    def change_something(self):
        for _ in range(self.random.randrange(1, 12)):
            change = self.random.choice((self.write, self.write, self.zero, self.trim))
            change(*choose_range(self.random, len(self.model)))
        if self.random.random() < 0.1:
            self.trim(0, len(self.model) // 4096 * 512)

    # What happens to it.

    def restart(self):
        self.disk.restart()

    def kill(self, loses_power=False):
        load = Load(self.test, self.disk.server.uri())
        load.wait_done(self.random.randrange(1, 40))
        self.disk.kill()
        load.end()
        if loses_power:
            self.disk.lose_power()
        self.lost_power |= loses_power
        self.disk.start()
        self.check_state()
        self.model = bytearray(self.disk.read())

    def lose_power(self):
        self.kill(loses_power=True)

    def check_state(self):
        """There is a checkpoint from the beginning, which a recovery added to for good."""
        info = self.disk.info()
        assert info["state"] == ("conservative" if self.lost_power else "exact"), info
        assert (info["recovered-bytes"] > 0) == self.lost_power, info

    def grow(self):
        more = self.random.randrange(512, MIB, 512)
        self.disk.qmp.command("block_resize", device="vda", size=len(self.model) + more)
        self.disk.reconnect()
        self.model += bytes(more)
        self.write(len(self.model) - 512, 512)

    def shrink(self):
        length = len(self.model) - self.random.randrange(512, MIB, 512)
        self.disk.qmp.command("block_resize", device="vda", size=length)
        self.disk.reconnect()
        del self.model[length:]

    def abandon(self):
        """A backup that was begun, and then nobody was interested."""
        name = f"abandoned{len(self.images)}"
        self.disk.add(name)
        self.change_something()
        self.disk.remove(name)

    def fail(self):
        self.write(0, 512)  # so that there is something that can fail
        node = f"bad{len(self.images)}"
        target = self.test.make_disk(node, len(self.model))
        self.disk.qmp.command_raw("blockdev-add", {
            "driver": "blkdebug", "node-name": node,
            "image": {"driver": "file", "filename": str(target)},
            "inject-error": [{"event": "none", "iotype": "write", "errno": 28}],
        })  # fmt: skip
        self.disk.qmp.command("transaction", actions=[
            action("block-checkpoint-add", device="vda", name="failed"),
            action("blockdev-backup", job_id=node, device="vda", target=node,
                   sync="incremental", since=self.last()),
        ])  # fmt: skip
        event = self.disk.qmp.wait_event("BLOCK_JOB_COMPLETED", device=node)
        assert "No space left" in event["data"]["error"], event
        self.disk.qmp.wait_job(node, "null")
        self.disk.qmp.command("blockdev-del", node_name=node)
        self.change_something()
        self.disk.remove("failed")

    def cancel(self):
        for at in (0, len(self.model) // 2 // 512 * 512):
            self.write(at, 512)
        target = self.test.make_disk(f"cancelled{len(self.images)}", len(self.model))
        job = self.disk.begin_backup(target, since=self.last(), add="cancelled", speed=1)
        self.change_something()
        self.disk.qmp.command("job-cancel", id=job)
        self.disk.qmp.wait_job(job, "null")
        self.disk.remove("cancelled")

    # The backups.

    def last(self):
        return f"c{len(self.images) - 1}"

    def create_image(self):
        path = self.test.path(f"image{len(self.images)}.qcow2")
        backing = ("-b", self.images[-1].name, "-F", "qcow2") if self.images else ()
        self.test.run("qemu-img", "create", "-q", "-f", "qcow2", *backing, path, len(self.model))
        return path

    def back_up(self):
        """Into a new image above the last; what is read there is what the disk holds."""
        path = self.create_image()
        since = self.last() if self.images else None
        options = {"kind": "qcow2", "since": since, "add": f"c{len(self.images)}"}
        moment = self.model[:]
        job = self.disk.begin_backup(path, **options)
        self.change_something()  # of a later moment
        self.disk.end_backup(job)
        self.images.append(path)
        raw = self.test.path("restored")
        self.test.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, raw)
        assert_same(FileBytes(raw), moment, f"what {path.name} restores")
        if len(self.images) % 3 == 0 and len(self.images) > 3:
            self.disk.remove(f"c{len(self.images) - 3}")


def run_chain(test, chain, times):
    happenings = [None, "restart", "kill", "lose_power", "grow", "shrink"] * times
    happenings += ["abandon", "fail", "cancel"] * max(1, times // 2)
    test.random.shuffle(happenings)
    for happening in happenings:
        if happening:
            getattr(chain, happening)()
        chain.change_something()
        chain.back_up()
    assert_same(chain.disk.read(), bytes(chain.model), "the disk")
    chain.check_state()
    test.run("qemu-img", "check", "-q", chain.images[-1])
    test.log(f"{len(chain.images)} images")
    chain.disk.stop()


@promise("a chain of 21 increments of a raw disk, with power losses, restores each moment, whatever happens between")
def raw_chain(test):
    run_chain(test, Chain(test, "raw", 8 * MIB), 3)


@promise("a chain of increments of a qcow2 disk restores each moment, whatever happens between")
def qcow2_chain(test):
    run_chain(test, Chain(test, "qcow2", 8 * MIB), 1)


@promise("a chain in granules of 4 KiB, with a small log of extents, restores each moment")
def fine_chain(test):
    options = ",tracking-granule=4k,tracking-extent=64k,tracking-extents=16"
    run_chain(test, Chain(test, "raw", 8 * MIB, options), 1)


# ---- Kills ---------------------------------------------------------------------------------------


def granules_that_differ(one, other):
    parts = range(0, len(one), GRANULE)
    return sum(one[at : at + GRANULE] != other[at : at + GRANULE] for at in parts)


class KilledDisk:
    """A disk whose server is killed again and again, and a copy kept up to date by increments."""

    def __init__(self, test, kind):
        self.test = test
        self.disk = TrackedDisk(test, 8 * MIB, kind)
        self.copy = self.disk.full_backup("copy", "c0")
        self.since = "c0"
        self.copied = self.differed = 0

    def kill(self, number):
        """Under load, and half of the times while a backup is made that nobody sees the end of."""
        load = Load(self.test, self.disk.server.uri())
        load.wait_done(self.test.random.randrange(1, 30))
        unfinished = f"u{number}" if self.test.random.random() < 0.5 else None
        if unfinished:
            self.disk.begin_backup(self.copy, since=self.since, add=unfinished)
            if self.test.random.random() < 0.5:
                load.wait_done(1)
        self.disk.kill()
        load.end()
        return unfinished

    def check(self, number, unfinished):
        self.disk.start()
        info = self.disk.info()
        assert info["state"] == "exact" and "previous-reason" not in info, info
        names = [entry["name"] for entry in info["checkpoints"]]
        assert names == [self.since, unfinished][: 2 if unfinished else 1], names
        contents, before = self.disk.read(), self.copy.read_bytes()
        self.copied += self.disk.backup(self.copy, since=self.since, add=f"c{number}")
        self.differed += granules_that_differ(contents, before) * GRANULE
        assert_same(self.copy.read_bytes(), contents, f"after kill {number} the copy")
        for name in names:
            self.disk.remove(name)
        self.since = f"c{number}"


@promise("no change is missed by increments when the server is killed", timeout=60 + 4 * KILLS)
def kills(test):
    for kind, count in (("raw", KILLS - KILLS // 3), ("qcow2", KILLS // 3)):
        killed = KilledDisk(test, kind) if count else None
        for number in range(1, count + 1):
            killed.check(number, killed.kill(number))
        if killed:
            killed.disk.stop()
            killed.copy.unlink()
            test.log(f"{kind}: {count} kills; {killed.copied >> 10} KiB were copied, "
                     f"{killed.differed >> 10} KiB in granules differed")  # fmt: skip


# ---- Zeroes --------------------------------------------------------------------------------------


def assert_trimmed_increment(test, kind):
    disk = TrackedDisk(test, 16 * MIB, kind, name=f"{kind}-disk")
    for at in range(0, 16 * MIB, MIB):
        disk.guest.pwrite(noise(test.random, MIB), at)
    full = test.path(f"{kind}-full.qcow2")
    test.run("qemu-img", "create", "-q", "-f", "qcow2", full, 16 * MIB)
    disk.backup(full, kind="qcow2", add="full")
    disk.guest.trim(16 * MIB, 0)
    changed = disk.checkpoint("full")
    assert changed["changed-bytes"] == changed["zero-bytes"] == 16 * MIB, changed
    increment = test.path(f"{kind}-increment.qcow2")
    test.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", full.name, "-F", "qcow2", increment)
    disk.backup(increment, kind="qcow2", since="full", add="trimmed")
    parts = json.loads(test.run("qemu-img", "map", "--output=json", increment).stdout)
    assert not any(part["data"] for part in parts), parts
    assert all(part["zero"] and part["depth"] == 0 for part in parts), parts
    assert increment.stat().st_size < MIB, increment.stat()
    test.run("qemu-img", "convert", "-O", "raw", increment, test.path("restored"))
    assert_same(test.path("restored").read_bytes(), bytes(16 * MIB), "the increment")
    disk.guest.trim(16 * MIB, 0)
    disk.guest.zero(8 * MIB, 4 * MIB)
    assert disk.checkpoint("trimmed")["changed-bytes"] == 0, disk.info()
    disk.restart()
    assert disk.checkpoint("trimmed")["changed-bytes"] == 0, disk.info()
    assert disk.checkpoint("full")["zero-bytes"] == 16 * MIB, disk.info()
    disk.stop()


@promise("after a trim of the whole disk an increment moves no data; trimmed again, nothing changed")
def trimmed(test):
    for kind in ("raw", "qcow2"):
        assert_trimmed_increment(test, kind)


# ---- A disk that moves ---------------------------------------------------------------------------


class MovingDisk:
    def __init__(self, test):
        self.test = test
        self.disk = TrackedDisk(test, 8 * MIB, "qcow2")
        self.change(40)
        self.full = self.disk.full_backup("full", "start")

    def change(self, requests=10):
        for _ in range(requests):
            at, size = choose_range(self.test.random, 8 * MIB)
            if self.test.random.random() < 0.3:
                self.disk.guest.zero(size, at)
            else:
                self.disk.guest.pwrite(noise(self.test.random, size), at)

    def check(self, what):
        self.change()
        copy = self.test.path("copy")
        shutil.copy(self.full, copy)
        copied = self.disk.backup(copy, since="start")
        assert 0 < copied and self.disk.info()["state"] == "exact"
        assert_same(copy.read_bytes(), self.disk.read(), f"after {what} the increment")
        self.disk.add(f"after {what}")

    def complete(self, job):
        self.disk.qmp.wait_event("BLOCK_JOB_READY", device=job)
        self.change()
        self.disk.qmp.command("block-job-complete", device=job)
        self.disk.end_backup(job)

    def snapshot(self):
        self.disk.qmp.command("blockdev-snapshot-sync", device="vda", format="qcow2",
                              snapshot_file=str(self.test.path("overlay.qcow2")))  # fmt: skip

    def commit(self):
        self.disk.qmp.command("block-commit", job_id="commit", device="vda")
        self.change()
        self.complete("commit")

    def mirror(self):
        self.disk.qmp.command("drive-mirror", job_id="mirror", device="vda", sync="full",
                              format="qcow2", target=str(self.test.path("mirror.qcow2")))  # fmt: skip
        self.change()
        self.complete("mirror")


@promise("what changed is right across external snapshots, active commits and a mirror's switch")
def moves(test):
    moving = MovingDisk(test)
    for what in ("snapshot", "commit"):
        getattr(moving, what)()
        moving.check(what)
    test.path("overlay.qcow2").unlink()
    moving.disk.restart()  # it is where it was
    moving.check("a restart")
    for what in ("mirror", "snapshot"):
        getattr(moving, what)()
        moving.check(f"the {what} then")
    moving.disk.stop()


@promise("checkpoints go with a disk that moved to another file: to the one it left they say nothing")
def moved_away(test):
    for what in ("snapshot", "mirror"):
        for end in ("stop", "kill"):
            moving = MovingDisk(test)
            getattr(moving, what)()
            moving.change()
            full = moving.disk.full_backup("later", "later")  # of where it is now
            getattr(moving.disk, end)()
            moving.disk.start()  # where it was
            info = moving.disk.info()
            assert (info["state"], info["reason"]) == ("lost", "other-disk"), info
            moving.disk.stop()
            new = "overlay.qcow2" if what == "snapshot" else "mirror.qcow2"
            moving.disk.spec = moving.disk.spec.replace("disk.qcow2", new).replace(
                "=auto", f"={moving.disk.tracking}"
            )
            moving.disk.start()  # where it is
            assert moving.disk.info()["state"] == "exact"
            moving.change()
            moving.disk.backup(full, since="later")
            assert_same(full.read_bytes(), moving.disk.read(), f"{what}, {end}: the increment")
            moving.disk.stop()
            for name in ("full", "later", "disk.qcow2", "disk.qcow2.tracking"):
                test.path(name).unlink()
            for name in ("overlay.qcow2", "mirror.qcow2"):
                test.path(name).unlink(missing_ok=True)


@promise("a disk that went to an overlay and back is known again when it is killed right then")
def back_again(test):
    moving = MovingDisk(test)
    moving.snapshot()
    moving.check("the snapshot")  # with a checkpoint there
    moving.commit()
    moving.change()
    moving.disk.kill()
    test.path("overlay.qcow2").unlink()
    moving.disk.start()
    moving.check("the kill")
    moving.disk.stop()


# ---- A guest that does not wait ------------------------------------------------------------------


@promise("tracking starts, stops and cuts checkpoints while guests write, and increments are right")
def while_guests_write(test):
    path = test.make_disk("disk", 8 * MIB)
    server = Server(test, [f"name=vda,file={path},format=raw,discard=unmap"])
    disk = TrackedDisk.__new__(TrackedDisk)
    disk.test, disk.server, disk.qmp = test, server, server.qmp()
    disk.jobs = (f"job{number}" for number in range(1000))
    writers = Writers(test, server.uri(), 8 * MIB).start()
    for name in ("first", "second"):
        disk.qmp.command("block-tracking-start", device="vda", granularity=4 * KIB)
        assert disk.info()["state"] == "exact", disk.info()
        writers.wait_done(20)
        copy = test.make_disk(f"copy-{name}", 8 * MIB)
        disk.backup(copy, add="c0")
        for number in range(6):
            writers.wait_done(test.random.randrange(1, 40))
            disk.backup(copy, since=f"c{number}", add=f"c{number + 1}")
        with writers.held() as model:
            disk.backup(copy, since="c6")
        model.assert_equals_file(copy)
        disk.qmp.command("block-tracking-stop", device="vda")
        assert disk.qmp.command("query-block-tracking") == []
        assert not os.path.exists(f"{path}.tracking")
        writers.wait_done(20)
    writers.stop()
    server.stop()


if __name__ == "__main__":
    main()
