#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Mirrors whose source, target or link dies, and that go on: by themselves, or begun again."""

import os
import signal
import socket
import threading
import time

from liveblk_test import Qmp, Server, expect_error, main, promise, wait_until
from liveblk_tracking import KIB, MIB, Load, TrackedDisk, noise

LENGTH = 16 * MIB


class Guest(Load):
    """One that leaves the machine some time for others, and writes to a part of the disk only."""

    part = LENGTH

    class Handle:
        def __init__(self, handle, part):
            self.handle, self.part = handle, part

        def get_size(self):
            return self.part

        def __getattr__(self, name):
            time.sleep(0.001)
            return getattr(self.handle, name)

    def run(self, handle, seed):
        super().run(self.Handle(handle, self.part), seed)


class Nearby(Guest):
    part = 2 * MIB


class Link:
    """A proxy before a server's socket, that can be cut and mended."""

    def __init__(self, test, server):
        self.test, self.server = test, server
        self.path = test.path("link.nbd")
        self.connections = []
        self.lock = threading.Lock()
        self.listener = None
        self.mend()
        test.cleanup.callback(self.cut)

    def mend(self):
        self.path.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen(16)
        threading.Thread(target=self.accept, args=(self.listener,), daemon=True).start()

    def accept(self, listener):
        try:
            while True:
                near, _ = listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(str(self.server.nbd))
                with self.lock:
                    self.connections += [near, far]
                for pair in ((near, far), (far, near)):
                    threading.Thread(target=self.pump, args=pair, daemon=True).start()
        except OSError:  # cut
            pass

    @staticmethod
    def pump(one, other):
        try:
            while data := one.recv(1 << 16):
                other.sendall(data)
        except OSError:
            pass
        for end in (one, other):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def cut(self):
        if self.listener:
            self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
            self.listener = None
        with self.lock:
            for end in self.connections:
                try:
                    end.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
                end.close()
            self.connections.clear()


class Far:
    """A target: a raw file served by nbdkit, on the same socket again after it was killed."""

    def __init__(self, test, length=LENGTH):
        self.test = test
        self.image = test.make_disk("far.img", length)
        self.start()

    def start(self):
        self.server = Server(self.test, plugin="file", parameters=[self.image], name="far")

    @property
    def nbd(self):
        return self.server.nbd

    def kill(self):
        self.server.kill()

    def read(self):
        return self.image.read_bytes()


class Losing(Far):
    """One that forgets at its end what it was not told to flush, as a host without power does."""

    def start(self, layer=True):
        inner = f"file.file.driver=file,file.file.filename={self.image}"
        disk = f"name=t,file.driver=lose-writes,file.node-name=power,{inner}"
        self.server = Server(self.test, [disk], name="far")

    def kill(self):
        with Qmp(self.server.admin) as qmp:
            try:
                qmp.command_raw("lose-writes-now", {"node-name": "power", "end": "process"})
            except ConnectionError:
                pass
        self.server.process.wait()


class World:
    """A tracked disk under load, and a target."""

    def __init__(self, test, far=Far, load=Guest, kind="raw"):
        self.test = test
        self.disk = TrackedDisk(test, LENGTH, kind)
        for at in range(0, LENGTH - 2 * MIB, MIB):
            self.disk.guest.pwrite(noise(test.random, MIB), at)
        self.far = far(test) if far else None
        self.path = self.far.nbd if far else None
        self.kind = load
        self.load = load(test, self.disk.server.uri()) if load else None

    @property
    def qmp(self):
        return self.disk.qmp

    def add_target(self):
        arguments = {"driver": "nbd", "node-name": "t", "discard": "unmap",
                     "server": {"type": "unix", "path": str(self.path)}}  # fmt: skip
        self.qmp.command_raw("blockdev-add", arguments)

    def mirror(self, add=True, **options):
        if add:
            self.add_target()
        options.setdefault("sync", "full")
        self.qmp.command("blockdev-mirror", job_id="m", device="vda", target="t", **options)

    def job(self):
        jobs = [job for job in self.qmp.command("query-jobs") if job["id"] == "m"]
        assert jobs, f"the mirror has ended: {self.qmp.events[-8:]}"
        return jobs[0]

    def wait_copied(self, size):
        wait_until(lambda: self.job()["current-progress"] >= size, f"{size} bytes are copied")

    def wait_lost(self):
        self.qmp.wait_event("MIRROR_TARGET_LOST", id="m")
        return wait_until(lambda: self.job().get("target-lost"), "the target is lost")

    def wait_ready(self):
        wait_until(lambda: self.job()["status"] == "ready", "the mirror is ready")

    def wait_flushed(self):
        def is_flushed():
            job = self.job()
            return job["bytes-left"] == 0 and job["bytes-unflushed"] == 0

        wait_until(is_flushed, "all is there for good")

    def wait_safe(self):
        """Something was flushed and noted: the record is another one than before."""
        wait_until(self.disk.tracking.exists, "it is tracked")
        seen = self.disk.tracking.read_bytes()[:8192]
        wait_until(lambda: self.disk.tracking.read_bytes()[:8192] != seen, "the record is written")

    def set_speed(self, speed):
        self.qmp.command("block-job-set-speed", device="m", speed=speed)

    def end(self):
        """The mirror's end as a copy; returns its figures. Both sides must be the same."""
        if self.load:
            self.load.end()
        self.wait_ready()
        job = self.job()
        self.qmp.command("block-job-cancel", device="m")
        event = self.qmp.wait_event("BLOCK_JOB_COMPLETED", device="m")["data"]
        assert "error" not in event, event
        self.qmp.wait_job("m", "null")
        assert self.disk.read(self.disk.server.connect()) == self.far.read(), "they differ"
        assert not self.records(), "a record is left"
        return dict(job, **event)

    def records(self):
        return [entry["name"] for entry in self.disk.info()["checkpoints"]
                if entry["name"].startswith("mirror-")]  # fmt: skip

    def record_uuid(self):
        (entry,) = [e for e in self.disk.info()["checkpoints"] if e["name"].startswith("mirror-")
                    and not e["pending"]]  # fmt: skip
        return entry["uuid"]

    def restart(self, kill=True):
        """The source's process dies, and is there again, with a guest that goes on."""
        if kill:
            self.disk.kill()
        elif self.load:
            self.load.end()
        if self.load:
            self.load.end()
        if not kill:
            self.disk.stop()
        self.disk.start()
        self.load = self.kind(self.test, self.disk.server.uri()) if self.load else None


# ---- The target is lost, and comes back ---------------------------------------------------------


@promise("a target killed in the first pass and when ready is waited for, and gets what it lacks: "
         "not all again")  # fmt: skip
def target_killed(test):
    world = World(test)
    world.mirror(speed=4 * MIB, target_retry=60)
    world.wait_copied(6 * MIB)
    world.far.kill()
    lost = world.wait_lost()
    assert lost["reason"] and lost["next-ms"] >= 0, lost
    world.load.wait_done(100)  # the guest goes on
    wait_until(lambda: world.job()["target-lost"]["next-ms"] > 1000, "the looks get rarer")
    assert world.job()["target-lost"]["retries"] >= 2, world.job()
    world.far.start()
    back = world.qmp.wait_event("MIRROR_TARGET_BACK", id="m")["data"]
    assert back["marked-bytes"] <= 8 * MIB, back
    assert "target-lost" not in world.job()
    world.set_speed(0)
    world.wait_ready()
    world.load.end()
    world.wait_flushed()
    world.load = None
    before = world.job()["current-progress"]
    world.far.kill()
    world.disk.guest.pwrite(noise(test.random, 64 * KIB), 5 * MIB)
    world.wait_lost()
    world.disk.guest.pwrite(noise(test.random, 64 * KIB), 9 * MIB)
    world.far.start()
    back = world.qmp.wait_event("MIRROR_TARGET_BACK", id="m")["data"]
    assert back["marked-bytes"] <= 128 * KIB, back
    figures = world.end()
    assert figures["current-progress"] - before <= 512 * KIB, figures


@promise("what a target had answered and not flushed when its host died is brought there again")
def unflushed(test):
    world = World(test, far=Losing)
    world.mirror(target_retry=60, copy_mode="write-blocking")
    world.wait_ready()
    world.load.wait_done(200)
    for _ in range(2):
        world.far.kill()
        world.wait_lost()
        world.load.wait_done(50)
        world.far.start()
        # The dying host may cut connections first, answer once more, and be gone only then.
        while not world.qmp.wait_event("MIRROR_TARGET_BACK", id="m")["data"]["marked-bytes"]:
            pass
        wait_until(lambda: world.job()["bytes-left"] < MIB, "it is brought there")
        world.load.wait_done(100)
    world.end()


@promise("a link that is cut again and again costs what was on its way, and guests nothing")
def link_cut(test):
    world = World(test)
    link = Link(test, world.far.server)
    world.path = link.path
    world.mirror(speed=8 * MIB, target_retry=60)
    for number in range(3):
        world.load.wait_done(50)
        link.cut()
        world.wait_lost()
        world.load.wait_done(50)
        link.mend()
        world.qmp.wait_event("MIRROR_TARGET_BACK", id="m")
    world.set_speed(0)
    world.end()


@promise("a target that hangs keeps a guest's write for write-timeout, and is gone on with when it "
         "answers")  # fmt: skip
def hangs(test):
    world = World(test)
    world.mirror(target_retry=60, copy_mode="write-blocking", write_timeout=1)
    world.wait_ready()
    pid = world.far.server.process.pid
    for _ in range(2):
        wait_until(lambda: world.job()["synchronous"], "it is in step")
        os.kill(pid, signal.SIGSTOP)
        world.wait_lost()
        world.load.wait_done(50)
        os.kill(pid, signal.SIGCONT)
        world.qmp.wait_event("MIRROR_TARGET_BACK", id="m")
        world.load.wait_done(20)
    world.end()


@promise("while its target is lost a mirror is paused, cancelled and completed at once; after "
         "target-retry it is an error, and stop waits for its user")  # fmt: skip
def verbs(test):
    world = World(test, load=None)
    world.mirror(target_retry=3600, speed=4 * MIB)
    world.wait_copied(2 * MIB)
    world.far.kill()
    world.wait_lost()
    world.qmp.command("job-pause", _id="m")
    wait_until(lambda: world.job()["status"] == "paused", "it is paused")
    world.qmp.command("job-resume", _id="m")
    wait_until(lambda: world.job()["status"] == "running", "it goes on")
    world.qmp.command("block-job-cancel", device="m", force=True)
    world.qmp.wait_event("BLOCK_JOB_CANCELLED", device="m")
    world.qmp.wait_job("m", "null")

    world.far.start()
    world.mirror(add=False, target_retry=3600)
    world.wait_ready()
    world.disk.guest.pwrite(noise(test.random, MIB), 3 * MIB)
    world.far.kill()
    world.disk.guest.pwrite(noise(test.random, MIB), 4 * MIB)
    world.wait_lost()
    world.qmp.command("job-complete", _id="m")
    world.far.start()
    event = world.qmp.wait_event("BLOCK_JOB_COMPLETED", device="m")["data"]
    assert "error" not in event, event
    assert world.disk.read() == world.far.read()
    assert world.qmp.command("query-block")[0]["inserted"]["node-name"] == "t"


@promise("a target that does not come back in time is an error, by the policy")
def gone(test):
    world = World(test, load=None)
    world.mirror(target_retry=1, on_target_error="stop")
    world.wait_ready()
    world.far.kill()
    world.disk.guest.pwrite(noise(test.random, MIB), 3 * MIB)
    event = world.qmp.wait_event("BLOCK_JOB_ERROR", device="m")["data"]
    assert event["action"] == "stop", event
    wait_until(lambda: world.job()["status"] == "standby", "it waits for its user")
    world.far.start()
    world.qmp.command("job-resume", _id="m")
    world.qmp.wait_event("MIRROR_TARGET_BACK", id="m")
    world.end()
    world.mirror(add=False, target_retry=1)
    world.wait_ready()
    world.far.kill()
    world.disk.guest.pwrite(noise(test.random, MIB), 3 * MIB)
    error = world.qmp.wait_event("BLOCK_JOB_COMPLETED", device="m")["data"]["error"]
    assert "was lost" in error and "not back" in error, error


@promise("a target that comes back as another one is not gone on with")
def another(test):
    come_back_as_another(test, True)


@promise("a target that was another one before it was missed is not gone on with")
def another_at_once(test):
    come_back_as_another(test, False)


def come_back_as_another(test, is_missed):
    world = World(test, load=None)
    world.mirror(target_retry=60)
    world.wait_ready()
    world.wait_flushed()  # and known by samples
    world.far.kill()
    world.far.image.unlink()
    test.make_disk("far.img", LENGTH)
    if is_missed:
        world.disk.guest.pwrite(noise(test.random, KIB), 0)
        world.wait_lost()
    world.far.start()
    world.disk.guest.pwrite(noise(test.random, KIB), KIB)
    error = world.qmp.wait_event("BLOCK_JOB_COMPLETED", device="m")["data"]["error"]
    assert "does not hold any more what it had flushed" in error, error


# ---- The source dies ----------------------------------------------------------------------------


@promise("a mirror killed in its first pass goes on where it was, also after its target died too")
def source_killed_early(test):
    world = World(test, load=Nearby)
    world.mirror(speed=4 * MIB, resume=True)
    assert world.job()["resumed"] == "all"
    world.wait_copied(9 * MIB)
    world.wait_safe()
    world.disk.kill()
    world.far.kill()
    world.load.end()
    world.far.start()
    world.disk.start()
    (entry,) = world.disk.info()["checkpoints"]
    assert entry["changed-bytes"] <= 2 * MIB, entry
    world.load = Nearby(test, world.disk.server.uri())
    world.mirror(resume=True)
    job = world.job()
    assert job["resumed"] == "changes" and "full-copy-reason" not in job, job
    assert job["total-progress"] <= LENGTH - 5 * MIB, job
    world.end()


@promise("a mirror killed when it was ready copies only what changed since it was known to be there")
def source_killed_late(test):
    world = World(test, load=Nearby)
    world.mirror(resume=True)
    world.wait_ready()
    uuid = world.record_uuid()
    wait_until(lambda: world.record_uuid() != uuid, "the checkpoint has rolled")
    world.load.end()
    world.load = None
    world.disk.guest.pwrite(noise(test.random, 64 * KIB), 3 * MIB)
    world.restart()
    (entry,) = world.disk.info()["checkpoints"]
    assert entry["changed-bytes"] < 3 * MIB, entry
    world.mirror(resume=True)
    assert world.job()["resumed"] == "changes"
    figures = world.end()
    assert figures["len"] <= entry["changed-bytes"] + 256 * KIB, figures
    assert world.disk.info()["checkpoints"] == []


# More of them by LIVEBLK_MIRROR_KILLS.
KILLS = int(os.environ.get("LIVEBLK_MIRROR_KILLS", "4"))


@promise("killed again and again under load, source and target, every byte is there at last",
         timeout=60 + 10 * KILLS)  # fmt: skip
def killed_again(test):
    world = World(test)
    for number in range(KILLS):
        world.mirror(resume=True, speed=0 if number % 2 else 12 * MIB, target_retry=30)
        assert world.job()["resumed"] == ("changes" if number else "all"), world.job()
        world.load.wait_done(test.random.randrange(20, 200))
        time.sleep(test.random.random())
        if number % 2:
            world.far.kill()
            world.load.wait_done(20)
        world.restart()
        if number % 2:
            world.far.start()
    world.mirror(resume=True)
    world.end()


@promise("after an orderly end, and after a loss of power, a mirror is gone on with, too")
def ended(test):
    world = World(test, load=None)
    world.mirror(resume=True, speed=4 * MIB)
    world.wait_copied(9 * MIB)
    world.disk.stop()
    world.disk.start()
    assert len(world.records()) == 1
    world.mirror(resume=True)
    world.wait_ready()
    job = world.job()
    assert job["resumed"] == "changes" and job["total-progress"] <= LENGTH - 7 * MIB, job
    wait_until(lambda: world.job()["bytes-left"] == 0, "it is in step")
    world.wait_safe()
    world.disk.guest.pwrite(noise(test.random, 64 * KIB), 3 * MIB)
    world.disk.kill()
    world.disk.lose_power()
    world.disk.start()
    world.mirror(resume=True)
    job = world.job()
    assert job["resumed"] == "changes", job
    assert world.end()["len"] < LENGTH


@promise("where there is nothing to go on with all is copied, and why is said")
def reasons(test):
    world = World(test, load=None)

    def start():
        world.mirror(resume=True)
        world.wait_ready()
        job = world.job()
        assert job["resumed"] == "all" and job["total-progress"] >= LENGTH, job
        return job["full-copy-reason"]

    def die():
        world.wait_flushed()
        world.disk.kill()

    assert "no mirror to this target" in start()
    die()
    world.far.kill()
    world.far.image.write_bytes(bytes(LENGTH))
    world.far.start()
    world.disk.start()
    assert "does not hold" in start()
    die()
    with open(world.disk.path, "r+b") as file:
        file.truncate(LENGTH + MIB)
    with open(world.far.image, "r+b") as file:
        file.truncate(LENGTH + MIB)
    world.far.kill()
    world.far.start()
    world.disk.start()
    why = start()
    assert "bytes then" in why or "not known" in why, why
    die()
    os.truncate(world.disk.tracking, 4096)
    world.disk.start()
    assert "what changed since is not known" in start()
    world.end()


@promise("a target is not emptied by what is to go on with it; one made anew gets all")
def made_anew(test):
    disk = TrackedDisk(test, LENGTH)
    disk.guest.pwrite(noise(test.random, 64 * KIB), 5 * MIB)  # hardly a place to take a sample of
    target = test.path("target.img")

    def start(**options):
        disk.qmp.command("drive-mirror", job_id="m", device="vda", sync="full", target=str(target),
                         format="raw", resume=True, **options)  # fmt: skip
        wait_until(lambda: job()["status"] == "ready", "the mirror is ready")
        wait_until(lambda: job()["bytes-unflushed"] == 0, "all is there for good")
        return job()["resumed"]

    def job():
        (found,) = disk.qmp.command("query-jobs")
        return found

    def die():
        disk.stop()
        disk.start()

    assert start() == "all"
    die()
    expect_error("use mode 'existing'", disk.qmp, "drive-mirror", job_id="m", device="vda",
                 sync="full", target=str(target), format="raw", resume=True)  # fmt: skip
    assert start(mode="existing") == "changes"
    assert target.read_bytes() == disk.read()
    die()
    number = target.stat().st_ino
    target.unlink()
    assert start() == "all"
    test.log(f"the inode was {number} and is {target.stat().st_ino}")
    why = job()["full-copy-reason"]
    assert "just created" in why or "does not hold" in why or "another file" in why, why
    assert target.read_bytes() == disk.read()
    disk.qmp.command("block-job-cancel", device="m")


@promise("cancelled by force or completed a mirror leaves no record; failed it does, until it is "
         "begun again or the checkpoint is removed")  # fmt: skip
def leaves_nothing(test):
    world = World(test, load=None)
    world.mirror(resume=True, speed=MIB)
    assert len(world.records()) == 1
    world.qmp.command("block-job-cancel", device="m", force=True)
    world.qmp.wait_job("m", "null")
    assert world.disk.info()["checkpoints"] == []
    world.mirror(add=False, resume=True, speed=4 * MIB)
    world.wait_copied(4 * MIB)
    world.far.kill()
    assert world.qmp.wait_event("BLOCK_JOB_COMPLETED", device="m")["data"]["error"]
    world.qmp.wait_job("m", "null")
    (name,) = world.records()
    world.far.start()
    world.mirror(add=False, resume=True, target_retry=60)
    assert world.job()["resumed"] == "changes"
    world.wait_ready()
    world.qmp.command("job-complete", _id="m")
    assert "error" not in world.qmp.wait_event("BLOCK_JOB_COMPLETED", device="m")["data"]
    world.qmp.wait_job("m", "null")
    assert world.disk.info()["checkpoints"] == []
    assert world.disk.read() == world.far.read()


@promise("a mirror to a qcow2 file is gone on with by the same command of liveblk, whole or in part")
def command_line(test):
    world = World(test, far=None, load=None)
    target = test.path("target.qcow2")

    def mirror(*words):
        return test.liveblk("mirror", "vda", "--admin", world.disk.server.admin, "--to", target,
                            "--format", "qcow2", "--resume", *words)  # fmt: skip

    assert "all is copied: there was no mirror" in mirror("--detach", "--speed", "4M").stderr
    world.qmp.command("query-jobs")
    wait_until(lambda: world.qmp.command("query-jobs")[0]["current-progress"] >= 9 * MIB, "9 MiB")
    world.wait_safe()
    world.restart()
    assert "an earlier mirror is gone on with" in mirror("--keep").stderr
    test.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", world.disk.path, target, "-U")
    assert world.disk.info()["checkpoints"] == []


# ---- What changed since -------------------------------------------------------------------------


@promise("an incremental mirror copies what changed since a checkpoint or in a bitmap, zeroes as "
         "zeroes, and refuses nonsense")  # fmt: skip
def incremental(test):
    world = World(test, load=None)
    qmp, disk = world.qmp, world.disk
    qmp.command("block-dirty-bitmap-add", node="vda", name="b")
    disk.add("sunday")
    world.mirror()
    world.end()
    before = os.stat(world.far.image).st_blocks
    disk.guest.pwrite(noise(test.random, 128 * KIB), 2 * MIB)
    disk.guest.zero(2 * MIB, 4 * MIB)
    for option in ({"since": "sunday"}, {"bitmap": "b"}):
        world.mirror(add=False, sync="incremental", **option)
        figures = world.end()
        assert 2 * MIB < figures["len"] <= 2 * MIB + 192 * KIB, figures
    assert os.stat(world.far.image).st_blocks < before, "zeroes were written as data"

    def refuse(text, **options):
        options.setdefault("sync", "incremental")
        expect_error(text, qmp, "blockdev-mirror", job_id="m", device="vda", target="t", **options)

    refuse("Sync mode 'incremental' not supported")
    refuse("exclude each other", since="sunday", bitmap="b")
    refuse("for sync mode 'incremental'", since="sunday", sync="full")
    refuse("not found", since="monday")
    refuse("could not be found", bitmap="c")
    qmp.command("block-dirty-bitmap-disable", node="vda", name="b")
    refuse("is disabled", bitmap="b")
    refuse("not supported", sync="bitmap", bitmap="b")
    refuse("'resume' is for", sync="none", resume=True)
    refuse("'checkpoint' is for", sync="top", checkpoint="x")
    refuse("Checkpoint already exists", sync="full", checkpoint="sunday")
    expect_error("mode 'existing'", qmp, "drive-mirror", job_id="m", device="vda", since="sunday",
                 target=str(test.path("new.img")), sync="incremental")  # fmt: skip
    assert not test.path("new.img").exists()
    qmp.command("block-tracking-stop", device="vda")
    refuse("is not tracked", since="sunday")
    refuse("is not tracked", sync="full", resume=True)
    refuse("is not tracked", sync="full", checkpoint="x")
    assert qmp.command("query-jobs") == []


@promise("roles are swapped: the old disk, and a copy that was kept, are brought up to date by what "
         "changed since")  # fmt: skip
def roles(test):
    world = World(test)
    qmp = world.qmp
    other = test.make_disk("other.img", LENGTH)
    qmp.command_raw("blockdev-add", {"driver": "file", "node-name": "other",
                                     "filename": str(other)})  # fmt: skip
    old = qmp.command("query-block")[0]["inserted"]["node-name"]
    old_path = world.disk.path
    arguments = {"job-id": "m", "device": "vda"}

    def start(target, **options):
        qmp.command_raw("blockdev-mirror", {**arguments, "target": target, **options})
        wait_until(lambda: world.job()["status"] == "ready", "it is ready")

    def finish(command, **options):
        qmp.command(command, **options)
        assert "error" not in qmp.wait_event("BLOCK_JOB_COMPLETED", device="m")["data"]
        qmp.wait_job("m", "null")

    start("other", sync="full", checkpoint="moved")
    finish("job-complete", _id="m")
    assert qmp.command("query-block")[0]["inserted"]["node-name"] == "other"
    world.load.wait_done(20)
    world.load.end()
    world.disk.guest.pwrite(noise(test.random, 64 * KIB), MIB)
    changed = world.disk.checkpoint("moved")["changed-bytes"]
    assert 0 < changed < LENGTH
    names = [node["node-name"] for node in qmp.command("query-named-block-nodes")]
    if old not in names:
        qmp.command_raw("blockdev-add", {"driver": "raw", "node-name": "back", "discard": "unmap",
                                         "file": {"driver": "file", "filename": str(old_path)}})  # fmt: skip
        old = "back"
    start(old, sync="incremental", since="moved", checkpoint="again")
    assert world.job()["total-progress"] <= changed, world.job()
    finish("block-job-cancel", device="m")  # the copy of that moment is kept
    with open(old_path, "rb") as file:
        assert file.read() == world.disk.read()
    world.disk.guest.pwrite(noise(test.random, 64 * KIB), 7 * MIB)
    start(old, sync="incremental", since="again")
    assert world.job()["total-progress"] <= 128 * KIB, world.job()
    finish("job-complete", _id="m")
    assert qmp.command("query-block")[0]["inserted"]["node-name"] == old
    with open(old_path, "rb") as file:
        assert file.read() == world.disk.read()
    assert {entry["name"] for entry in world.disk.info()["checkpoints"]} == {"moved", "again"}
    assert world.disk.info()["state"] != "lost"


@promise("a mirror's target is compared while it runs and guests write: only what differs is found, "
         "and the mirror repairs it")  # fmt: skip
def compared(test):
    world = World(test)
    qmp = world.qmp
    world.add_target()

    def compare(**options):
        qmp.command("blockdev-verify", job_id="v", device="vda", target="t", auto_dismiss=False,
                    **options)  # fmt: skip
        qmp.wait_job("v", "concluded")
        (job,) = [entry for entry in qmp.command("query-jobs") if entry["id"] == "v"]
        qmp.command("job-dismiss", _id="v")
        return job

    world.mirror(add=False, speed=4 * MIB)
    expect_error("is not ready", qmp, "blockdev-verify", job_id="v", device="vda", target="t")
    world.set_speed(0)
    world.wait_ready()
    for mode in ("background", "write-blocking"):
        qmp.command("block-job-change", _id="m", _type="mirror", copy_mode=mode)
        if mode != "background":  # it has been that
            event = qmp.wait_event("MIRROR_COPY_MODE_CHANGE", id="m")["data"]
            assert event["synchronous"] and "was changed" in event["reason"], event
        for _ in range(3):
            world.load.wait_done(20)
            job = compare()
            assert "error" not in job and job["verify"]["different-bytes"] == 0, job
    world.load.end()
    wait_until(lambda: world.job()["bytes-left"] == 0, "it is in step")
    with open(world.far.image, "r+b") as file:  # behind everybody's back
        file.seek(5 * MIB)
        file.write(b"\xaa" * 4096)
    job = compare()
    (found,) = job["verify"]["differences"]
    assert found["offset"] == 5 * MIB and found["length"] <= 4096, job
    assert "differs from the source" in job["error"], job
    job = compare(repair=True)
    assert "error" not in job and job["verify"]["repaired-bytes"] == 4096, job
    wait_until(lambda: world.job()["bytes-left"] == 0, "it is copied again")
    job = compare()
    assert "error" not in job and job["verify"]["different-bytes"] == 0, job
    # When the mirror ends nothing is known any more; what did differ is no reason to say so.
    qmp.command("blockdev-verify", job_id="w", device="vda", target="t", speed=MIB)
    world.disk.guest.pwrite(noise(test.random, MIB), 0)
    qmp.command("job-complete", _id="m")
    assert "error" not in qmp.wait_event("BLOCK_JOB_COMPLETED", device="m")["data"]
    world.disk.guest.pwrite(noise(test.random, MIB), 12 * MIB)
    error = qmp.wait_event("BLOCK_JOB_COMPLETED", device="w")["data"]["error"]
    assert "has ended before all of it was compared" in error, error
    assert world.disk.read() == world.far.read()


main()
