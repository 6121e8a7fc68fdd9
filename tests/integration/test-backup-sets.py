#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Backup sets: made, verified, restored, pruned; killed at every step and damaged in every file.

LIVEBLK_SET_KILLS=N: so many of the steps at which a run, its server, and a prune can die (0: all of
them).
LIVEBLK_SET_FLIPS=N: so many damaged bytes in each file.
"""

import json
import os
import re
import shutil
import socket
import tempfile
import threading
import time

from liveblk_durable import Durable
from liveblk_test import (
    BUILD, LIVEBLK, ROOT, Server, connect, main, promise, wait_until,
)  # fmt: skip
from liveblk_tracking import GRANULE, KIB, MIB, choose_range, noise

LENGTH = 4 * MIB
DIE_AT = BUILD / "tests" / "lib" / "die-at.so"
KILLS = int(os.environ.get("LIVEBLK_SET_KILLS", "4"))
FLIPS = int(os.environ.get("LIVEBLK_SET_FLIPS", "1"))
PATIENCE = 60 + 5 * (KILLS or 150) + 20 * FLIPS  # seconds for a promise of so many

# All that is made safe here would keep the test waiting for a disk, if it were on one.
tempfile.tempdir = "/dev/shm"


def read(handle):
    return b"".join(bytes(handle.pread(min(MIB, handle.get_size() - at), at))
                    for at in range(0, handle.get_size(), MIB))  # fmt: skip


class World:
    """A server with tracked disks, a set, and what the disks held at each backup."""

    def __init__(self, test, *names, length=LENGTH, kind="raw", options=",tracking=auto"):
        self.test = test
        self.names = names or ("vda",)
        self.length = length
        self.kind = kind
        self.options = options
        self.paths = {name: test.path(f"{name}.img") for name in self.names}
        self.set = test.path("set")
        self.held = {}  # ID -> name -> contents
        for name in self.names:
            test.run("qemu-img", "create", "-q", "-f", kind, self.paths[name], length)
        self.start()

    def start(self):
        specs = [f"name={name},file={self.paths[name]},format={self.kind},discard=unmap{self.options}"
                 for name in self.names]  # fmt: skip
        self.server = Server(self.test, specs, name="disks")
        self.qmp = self.server.qmp()
        self.guests = {name: self.server.connect(name) for name in self.names}

    def stop(self):
        for guest in self.guests.values():
            guest.shutdown()
        self.qmp.close()
        self.server.stop()

    def kill(self):
        self.server.kill()
        self.qmp.close()

    def write(self, count=6):
        """What a guest does: data, zeroes and discards, anywhere."""
        generator = self.test.random
        for guest in self.guests.values():
            for _ in range(count):
                at, size = choose_range(generator, guest.get_size())
                action = generator.choice((guest.pwrite, guest.pwrite, guest.zero, guest.trim))
                if action == guest.pwrite:
                    guest.pwrite(noise(generator, size), at)
                else:
                    action(size, at)

    def liveblk(self, *words, **options):
        return self.test.liveblk("-a", self.server.admin, "backup", *words, **options)

    def backup(self, *words, status=0, names=None, env=None):
        """Another backup; what --json says of it. The disks stand still meanwhile."""
        names = names or self.names
        held = {name: read(self.guests[name]) for name in names}
        result = self.liveblk("--multi", ",".join(names), "--to", f"{self.set}/", "--json", *words,
                              status=status, env=env)  # fmt: skip
        last = json.loads(result.stdout.splitlines()[-1]) if result.stdout else {}
        if result.returncode == 0:
            self.held[last["id"]] = held
        last["stderr"] = result.stderr
        return last

    def modes(self, *words):
        """Of a backup that is made now: for each disk the mode, or the reason of a full one."""
        found = self.backup(*words)
        return [disk.get("reason", disk["mode"]) for disk in found["disks"]]

    def list(self):
        return json.loads(self.liveblk("list", self.set, "--json").stdout)

    def ids(self):
        return [entry["id"] for entry in self.list()["backups"]]

    def restore(self, backup, name, *words, status=0):
        target = self.test.path("restored")
        target.unlink(missing_ok=True)
        result = self.liveblk("restore", self.set, target, "--at", backup, "--disk", name, *words,
                              status=status)  # fmt: skip
        return target, result

    def assert_restored(self, backup, name):
        target, _ = self.restore(backup, name)
        contents = target.read_bytes()
        assert contents == self.held[backup][name], f"{name} of {backup}: not what it was"
        zeroes = sum(not any(contents[at : at + GRANULE]) for at in range(0, len(contents), GRANULE))
        taken = os.stat(target).st_blocks * 512
        data = len(contents) - zeroes * GRANULE
        assert taken <= data + 64 * KIB, f"{taken} bytes are taken for {data} of data"

    def assert_all_good(self):
        """Every backup that is listed is whole, and is what the disks held."""
        self.liveblk("verify", self.set)
        for entry in self.list()["backups"]:
            for disk in entry["disks"]:
                self.assert_restored(entry["id"], disk["device"])

    def checkpoints(self):
        """Names of checkpoints and open sessions, without what they have in common."""
        found = self.qmp.command("query-checkpoints")
        return [entry["name"].split("-", 2)[2] for entry in found]

    def assert_tidy(self):
        """On the server the newest backup's checkpoint, and in the set what manifests name."""
        newest = max(self.ids())
        assert self.checkpoints() == [newest], f"{self.checkpoints()}, not {newest}"
        assert not any("session" in entry for entry in self.qmp.command("query-checkpoints"))
        assert self.qmp.command("query-views") == []
        expected = {"set.json", ".lock"} | {f"{backup}.json" for backup in self.ids()}
        files = {path.name for path in self.set.iterdir() if path.is_file()} - {".readers"}
        assert files == expected, f"{files ^ expected} should (not) be there"
        for entry in self.list()["backups"]:
            for disk in entry["disks"]:
                expected.add(f"{entry['id']}.{disk['format']}")
                expected.add(f"{entry['id']}.sums")
        found = {path.name for path in self.set.rglob("*") if path.is_file()} - {".readers"}
        assert found == expected, f"{found ^ expected} should (not) be there"


def chain(test, *words):
    world = World(test, "vda", "vdb")
    world.write(12)
    assert world.modes(*words) == ["first", "first"]
    for _ in range(4):
        world.write()
        assert world.modes(*words) == ["incremental", "incremental"]
    assert len(world.ids()) == 5
    world.assert_all_good()
    world.assert_tidy()
    return world


@promise("a full backup, then what changed: of two disks at one instant, each restored exactly and thin")
def qcow2_chain(test):
    world = chain(test)
    newest = world.ids()[-1]
    # The images are a chain for other programs, too, wherever the set is.
    moved = test.path("elsewhere")
    shutil.move(world.set, moved)
    test.path("held").write_bytes(world.held[newest]["vda"])
    test.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", test.path("held"),
             moved / "vda" / f"{newest}.qcow2")  # fmt: skip
    for entry in moved.glob("vda/*.qcow2"):
        test.run("qemu-img", "check", "-q", entry)
    shutil.move(moved, world.set)
    # A qcow2 image is restored as well.
    target, _ = world.restore(newest, "vdb", "--format", "qcow2")
    test.path("held").write_bytes(world.held[newest]["vdb"])
    test.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", test.path("held"), target)
    world.stop()


@promise("the same with raw images and raw increments")
def raw_chain(test):
    world = chain(test, "--raw")
    first = world.ids()[0]
    assert (world.set / "vda" / f"{first}.raw").read_bytes() == world.held[first]["vda"]
    world.stop()


@promise("a disk that grows and shrinks between backups is restored with the length it had")
def resized(test):
    world = World(test)
    for length in (LENGTH, LENGTH + 100 * KIB, 2 * MIB + 4 * KIB, 3 * MIB, 2 * LENGTH):
        world.qmp.command("block_resize", device="vda", size=length)
        world.guests["vda"].shutdown()
        world.guests["vda"] = world.server.connect("vda")
        world.write(10)
        world.backup()
        world.write(3)
        world.backup()
    assert sorted({len(held["vda"]) for held in world.held.values()}) == sorted(
        {LENGTH, LENGTH + 100 * KIB, 2 * MIB + 4 * KIB, 3 * MIB, 2 * LENGTH}
    )
    world.assert_all_good()
    world.stop()


@promise("what guests write while a backup is made is not in it, but in the next one; a run that takes "
         "long keeps its session")  # fmt: skip
def guests_go_on(test):
    world = World(test, "vda", "vdb")
    for number in range(2):
        for guest in world.guests.values():
            guest.pwrite(noise(test.random, 2 * MIB), MIB)
        held = {name: read(world.guests[name]) for name in world.names}
        run = test.start(LIVEBLK, "-a", world.server.admin, "backup", "--multi", "vda,vdb", "--lease",
                         "8", "--speed", "512K", "--to", f"{world.set}/", log="run.log")  # fmt: skip
        wait_until(lambda most=number: len(world.checkpoints()) > most, "the run has begun")
        least = [8.0]

        def is_renewed(least=least):
            (session,) = [entry["session"] for entry in world.qmp.command("query-checkpoints")
                          if "session" in entry]  # fmt: skip
            least[0] = min(least[0], session["lease-left"])
            return session["lease-left"] > least[0]

        world.write(12)
        wait_until(is_renewed, "the lease begins anew")
        world.write(12)
        assert run.poll() is None, run.log_path.read_text()
        assert run.wait(60) == 0, run.log_path.read_text()
        world.held[world.ids()[-1]] = held
    assert world.modes() == ["incremental", "incremental"]
    modes = [disk["mode"] for entry in world.list()["backups"] for disk in entry["disks"]]
    assert modes == ["full"] * 2 + ["incremental"] * 4, modes
    world.assert_all_good()
    world.assert_tidy()
    world.stop()


@promise("compressed images are what the disk held; disks need not be backed up together")
def compressed(test):
    world = World(test, "vda", "vdb")
    world.guests["vda"].pwrite(b"squeeze me " * (MIB // 11), 0)
    world.backup("--compress", names=["vda"])
    world.write()
    world.backup("--compress", names=["vdb"])
    world.write()
    assert world.backup("--compress", names=["vda"])["disks"][0]["mode"] == "incremental"
    image = world.set / "vda" / f"{world.ids()[0]}.qcow2"
    assert image.stat().st_size < 800 * KIB
    world.assert_all_good()
    # Each disk's newest checkpoint is kept, and no other.
    assert sorted(world.checkpoints()) == world.ids()[1:]
    world.stop()


def damage(path, offset=None, generator=None):
    data = bytearray(path.read_bytes())
    at = generator.randrange(len(data)) if offset is None else offset
    data[at] ^= 1 << (generator.randrange(8) if generator else 3)
    path.write_bytes(data)


def break_image_size(world, newest):
    with open(world.set / "vda" / f"{newest}.qcow2", "r+b") as file:
        file.truncate(1000)


def break_image_gone(world, newest):
    (world.set / "vda" / f"{newest}.qcow2").unlink()


def break_sums(world, newest):
    damage(world.set / "vda" / f"{newest}.sums", 70)


def break_manifest(world, newest):
    damage(world.set / f"{newest}.json", 100)


def damage_data(world, newest):
    """A byte that only a checksum can tell to be wrong."""
    path = world.set / "vda" / f"{newest}.qcow2"
    found = world.test.run("qemu-img", "map", "--output=json", path).stdout
    at = next(piece["offset"] for piece in json.loads(found) if piece["data"] and not piece["depth"])
    damage(path, at + 100)
    return path


def break_image_verified(world, newest):
    """Found by a verification: a look at sizes would not do."""
    path = damage_data(world, newest)
    result = world.liveblk("verify", world.set, status=1)
    assert newest in result.stdout and str(path) in result.stdout, result.stdout


def break_image_checked(world, newest):
    damage_data(world, newest)


def lose_checkpoint(world, newest):
    name = world.qmp.command("query-checkpoints")[0]["name"]
    world.qmp.command("checkpoint-delete", name=name)


def other_checkpoint(world, newest):
    """Somebody else's stays, and ours is deleted."""
    ours = world.qmp.command("query-checkpoints")[0]["name"]
    world.qmp.command("checkpoint-begin", name="x-y-other")
    world.qmp.command("checkpoint-commit", name="x-y-other")
    world.qmp.command("checkpoint-delete", name=ours)


def lose_map(world, newest):
    world.stop()
    os.unlink(f"{world.paths['vda']}.tracking")
    world.start()


def assert_reasons(test, cases):
    world = World(test, length=MIB)
    world.write()
    assert world.modes() == ["first"]
    for expected, break_it, words in cases:
        world.guests["vda"].pwrite(noise(test.random, GRANULE), 5 * GRANULE)
        raw = [word for word in words if word == "--raw"]
        if break_it:
            break_it(world, world.ids()[-1])
        found = world.backup(*words)["disks"][0]
        assert found.get("reason") == expected, f"{break_it}, {words}: {found}"
        assert expected != "parent-damaged" or found["message"], found
        newest = max(world.held)
        world.guests["vda"].pwrite(noise(test.random, GRANULE), 3 * GRANULE)
        again = world.backup(*raw)["disks"][0]
        assert again["mode"] == "incremental" and again["parent"] == newest, again
        for backup in sorted(world.held)[-2:]:
            world.assert_restored(backup, "vda")
    world.stop()


@promise("what was asked for, or cannot be built upon, is a full backup, which says why")
def reasons(test):
    assert_reasons(test, [
        ("asked", None, ["--full"]),
        ("format-changed", None, ["--raw"]),
        ("format-changed", None, []),
        ("new-device", lose_checkpoint, []),
        ("new-device", lose_map, []),
        ("no-parent", other_checkpoint, []),
    ])  # fmt: skip


@promise("nothing is built upon what is damaged: the next backup is a full one")
def damaged_parents(test):
    assert_reasons(test, [
        ("parent-damaged", break_image_size, []),
        ("parent-damaged", break_image_gone, []),
        ("parent-damaged", break_sums, []),
        ("parent-damaged", break_manifest, []),
        ("parent-damaged", break_image_verified, []),
        ("parent-damaged", break_image_checked, ["--check-parent"]),
    ])  # fmt: skip


@promise("a disk that is not tracked is a full backup each time")
def untracked(test):
    world = World(test, options="")
    world.write()
    assert world.modes() == ["first"]
    assert world.modes() == ["no-checkpoint"]
    world.assert_all_good()
    world.stop()


@promise("two sets of one disk do not disturb each other")
def two_sets(test):
    world = World(test)
    # Both may have a backup of one ID, of one second.
    sets = {test.path("first"): {}, test.path("second"): {}}
    for number in range(3):
        world.write()
        for world.set, world.held in sets.items():
            assert world.modes() == ["incremental" if number else "first"]
    for world.set, world.held in sets.items():
        world.assert_all_good()
    assert len(world.checkpoints()) == 2
    world.stop()


@promise("a set that is in use, a directory that is none and a target that is there are refused")
def refusals(test):
    world = World(test)
    other = test.path("other")
    other.mkdir()
    (other / "diary.txt").write_text("dear")
    result = world.liveblk("vda", "--to", other, status=1)
    assert "no backup set" in result.stderr, result.stderr
    assert os.listdir(other) == ["diary.txt"]
    result = world.liveblk("list", other, status=1)
    assert "There is no backup set" in result.stderr
    world.write()
    world.backup()
    slow = test.start(LIVEBLK, "-a", world.server.admin, "backup", "vda", "--full", "--speed", "64K",
                      "--to", world.set)  # fmt: skip
    wait_until(lambda: len(world.checkpoints()) == 2, "the run has begun")
    result = world.liveblk("vda", "--to", world.set, status=1)
    assert "in use" in result.stderr, result.stderr
    slow.terminate()
    assert slow.wait(60) == 4
    world.assert_tidy()
    target, _ = world.restore(world.ids()[0], "vda")
    result = world.liveblk("restore", world.set, target, status=1)
    assert "--existing" in result.stderr, result.stderr
    result = world.liveblk("restore", world.set, target, "--at", "20200101T000000Z", "--existing",
                           status=1)  # fmt: skip
    assert "There is no backup 20200101T000000Z" in result.stderr, result.stderr
    for words in (("--disk", "vdx"), ("--disk", "vdx", "--at", world.ids()[0])):
        result = world.liveblk("verify", world.set, *words, status=1)
        assert "of disk 'vdx'" in result.stderr, result
    world.liveblk("prune", world.set, status=2)
    world.liveblk("vda", "--to", world.set, "--sync", "top", status=2)
    world.stop()


@promise("a damaged byte in any file of a set is found, or makes no difference; the next run copes",
         timeout=PATIENCE)  # fmt: skip
def damaged(test):
    generator = test.random
    world = World(test, length=MIB)
    for _ in range(3):
        world.write()
        world.backup()
    good = test.path("good")
    shutil.copytree(world.set, good)
    files = sorted(path.relative_to(good) for path in good.rglob("*")
                   if path.is_file() and not path.name.startswith("."))  # fmt: skip
    assert len(files) == 3 * 3 + 1
    found = 0
    for name in [name for name in files for _ in range(FLIPS)]:
        shutil.rmtree(world.set)
        shutil.copytree(good, world.set)
        damage(world.set / name, generator=generator)
        result = world.liveblk("verify", world.set, status=None)
        assert result.returncode in (0, 1), result.stderr
        found += result.returncode
        for backup, held in world.held.items():
            target, restored = world.restore(backup, "vda", status=None)
            if restored.returncode == 0:
                assert target.read_bytes() == held["vda"], f"{name}: {backup} restored wrongly"
            else:
                assert result.returncode == 1, f"{name}: verify found nothing, {restored.stderr}"
                assert not target.exists() and not list(test.directory.glob("restored*"))
    assert found >= len(files) * FLIPS // 2, found
    # After the last one, of set.json or another, the next run copes.
    for name in (files[0], files[3], files[-1]):
        shutil.rmtree(world.set)
        shutil.copytree(good, world.set)
        damage(world.set / name, generator=generator)
        world.liveblk("verify", world.set, status=None)
        world.write()
        disk = world.backup()["disks"][0]
        assert disk["mode"] == "incremental" or disk["reason"] in ("parent-damaged", "no-parent")
        world.assert_restored(max(world.held), "vda")
    world.stop()


def steps(test, count):
    """At which of so many steps to die: some of each part, or all of them."""
    if not KILLS or KILLS >= count:
        return list(range(1, count + 1))
    return sorted(test.random.sample(range(1, count + 1), KILLS))


def preload(**variables):
    return {"LD_PRELOAD": str(DIE_AT), "ASAN_OPTIONS": "verify_asan_link_order=0:detect_leaks=0",
            **variables}  # fmt: skip


@promise("a run that is killed at any step leaves a good set, and the next one repairs what is left",
         timeout=PATIENCE)  # fmt: skip
def killed(test):
    world = World(test, length=MIB)
    world.write()
    world.backup()
    counted = test.path("count")
    world.write()
    world.backup(env=preload(LIVEBLK_TEST_DIE_COUNT=str(counted)))
    count = int(counted.read_text()) + 2  # it is not the same each time
    test.log(f"a run has about {count} steps")
    for step in steps(test, count):
        world.write(3)
        held = {"vda": read(world.guests["vda"])}
        found = world.backup(status=None, env=preload(LIVEBLK_TEST_DIE_AT=str(step)))
        for backup in world.ids():  # one whose manifest was written just before the end
            world.held.setdefault(backup, held)
        assert set(world.ids()) == set(world.held), f"step {step}: {found}"
        world.liveblk("verify", world.set)
        world.write(2)
        disk = world.backup()["disks"][0]
        assert disk["mode"] == "incremental", f"step {step}: {disk}"
        world.assert_restored(max(world.held), "vda")
        world.assert_tidy()
        if len(world.held) > 8:  # a chain need not be long
            world.liveblk("prune", world.set, "--keep", "1")
            world.held = {backup: world.held[backup] for backup in world.ids()}
    world.assert_all_good()
    world.stop()


@promise("whenever the power is lost, what a manifest names is safe, and so is what its checkpoint is "
         "committed for")  # fmt: skip
def power_lost(test):
    world = World(test, length=MIB)
    calls = test.path("calls")

    def seen():
        found = Durable(world.set).replay(calls)
        calls.unlink()
        return found

    listed = preload(LIVEBLK_TEST_CALLS=str(calls))
    for words in ([], [], ["--raw"], ["--raw"], []):
        world.write()
        world.backup(*words, env=listed)
        assert [what for what in seen() if what != "removal"][-2:] == ["manifest", "commit"]
    world.write()
    world.backup(env=listed)
    seen()
    world.liveblk("prune", world.set, "--keep", "1", env=listed)
    found = seen()
    assert found.count("manifest") == 2 and "removal" in found, found
    world.held = {backup: world.held[backup] for backup in world.ids()}
    world.assert_all_good()
    world.stop()


@promise("a server that is killed at any step of a run costs that run at most, and the next one copes",
         timeout=PATIENCE)  # fmt: skip
def server_killed_at_any_step(test):
    world = World(test, length=MIB)
    world.write()
    world.backup()
    counted = test.path("count")
    world.write()
    world.backup(env=preload(LIVEBLK_TEST_DIE_COUNT=str(counted)))
    count = int(counted.read_text())
    for step in steps(test, count):
        world.write(3)
        held = {"vda": read(world.guests["vda"])}
        world.guests["vda"].flush()
        victim = str(world.server.process.pid)
        found = world.backup(status=None, env=preload(LIVEBLK_TEST_DIE_AT=str(step),
                                                      LIVEBLK_TEST_DIE_PID=victim))  # fmt: skip
        world.kill()
        for backup in world.ids():
            world.held.setdefault(backup, held)
        assert set(world.ids()) == set(world.held), f"step {step}: {found}"
        world.liveblk("verify", world.set)
        world.start()
        world.write(2)
        disk = world.backup()["disks"][0]
        # The manifest may be there and its checkpoint be gone with the server: then all is copied.
        kept = disk["mode"] == "incremental" or disk["reason"] == "no-parent"
        assert kept, f"step {step}: {disk}"
        world.assert_restored(max(world.held), "vda")
        world.assert_tidy()
        if len(world.held) > 8:
            world.liveblk("prune", world.set, "--keep", "1")
            world.held = {backup: world.held[backup] for backup in world.ids()}
    world.assert_all_good()
    world.stop()


@promise("a server that is killed during a run costs that run; the next is incremental")
def server_killed(test):
    world = World(test)
    world.write(12)
    world.backup()
    world.write(12)
    run = test.start(LIVEBLK, "-a", world.server.admin, "backup", "vda", "--speed", "128K", "--to",
                     world.set, log="run.log")  # fmt: skip
    wait_until(lambda: len(list(world.set.glob("vda/*.qcow2"))) == 2, "the run copies")
    world.kill()
    assert run.wait(60) in (1, 3), run.log_path.read_text()  # the copy, or what it asked, failed
    world.start()
    world.write()
    assert world.modes() == ["incremental"]
    world.assert_all_good()
    world.assert_tidy()
    world.stop()


@promise("a restore replaces no disk that somebody uses, and two to one place do not spoil each other")
def restored_over(test):
    world = World(test)
    world.write(20)
    world.backup()
    (backup,) = world.ids()
    disk = ("--at", backup, "--disk", "vda", "--existing")
    result = world.liveblk("restore", world.set, world.paths["vda"], *disk, status=1)
    assert "lock" in result.stderr or "use" in result.stderr, result.stderr
    world.write()
    assert world.paths["vda"].read_bytes() == read(world.guests["vda"]), "it is not that file"
    world.liveblk("restore", world.set, world.set / "vda" / f"{backup}.qcow2", *disk, status=1)
    target = test.path("slow.img")
    partial = test.path("slow.img.partial")
    partial.write_bytes(b"of one that died")
    slow = test.start(LIVEBLK, "backup", "restore", world.set, target, "--speed", "1M")
    wait_until(lambda: partial.stat().st_size == LENGTH and partial.stat().st_blocks, "it copies")
    world.liveblk("restore", world.set, target, status=1)
    assert slow.wait(60) == 0, slow.log_path.read_text()
    assert target.read_bytes() == world.held[backup]["vda"], "it is not what was backed up"
    world.liveblk("restore", world.set, target, *disk)
    assert not partial.exists()
    world.assert_all_good()
    world.stop()


@promise("damaged backups do not count for prune: the newest good one stays")
def prune_damaged(test):
    world = World(test, length=MIB)
    for words in ([], ["--full"], [], ["--full"]):
        world.write()
        world.backup(*words)
    ids = world.ids()
    (world.set / "vda" / f"{ids[3]}.qcow2").unlink()
    damage_data(world, ids[1])
    world.liveblk("verify", world.set, status=1)
    assert not any(entry["damaged"] for entry in world.list()["backups"][:1])
    world.liveblk("prune", world.set, "--keep", "1")
    assert ids[0] in world.ids(), "the only good backup is gone"
    world.assert_restored(ids[0], "vda")
    assert world.modes() == ["parent-damaged"]
    world.liveblk("prune", world.set, "--keep", "1")
    assert world.ids() == [max(world.held)]
    world.assert_all_good()
    world.stop()


@promise("a set that is put back to an older state goes on, whatever its newer backups were called")
def put_back(test):
    world = World(test, length=MIB)
    world.write()
    world.backup()
    good = test.path("good")
    shutil.copytree(world.set, good)
    world.backup()
    ahead = "20990101T000000Z"  # the clock was wrong
    name = world.qmp.command("query-checkpoints")[0]["name"]
    other = "-".join(name.split("-")[:2] + [ahead])
    world.qmp.command("checkpoint-begin", name=other)
    world.qmp.command("checkpoint-commit", name=other)
    shutil.rmtree(world.set)
    shutil.copytree(good, world.set)
    world.write()
    assert world.modes() == ["no-parent"]
    assert max(world.ids()) == f"{ahead}-001", "a name that the server knows is given again"
    world.write()
    assert world.modes() == ["incremental"]
    world.assert_all_good()
    world.assert_tidy()
    world.stop()


class Meddler(threading.Thread):
    """Between a run and the server's admin socket: calls `before` with each command's name."""

    def __init__(self, test, admin, before):
        super().__init__(daemon=True)
        self.path = test.path("meddler.sock")
        self.admin = admin
        self.before = before
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen(1)
        test.cleanup.callback(self.listener.close)
        self.start()

    def run(self):
        client, _ = self.listener.accept()
        server = socket.socket(socket.AF_UNIX)
        server.connect(str(self.admin))
        threading.Thread(target=self.answer, args=(server, client), daemon=True).start()
        for line in client.makefile("rb"):
            self.before(json.loads(line)["execute"])
            server.sendall(line)
        server.shutdown(socket.SHUT_WR)

    def answer(self, server, client):
        while data := server.recv(64 * KIB):
            client.sendall(data)


@promise("a run whose session ended meanwhile fails: nothing is ever since an instant it has not copied")
def lease_lost(test):
    world = World(test)
    world.write()
    world.backup()
    world.write()
    begun = 0

    def before(command):
        nonlocal begun
        if command == "query-changes":
            time.sleep(0.6)  # so that the lease of 2 seconds is to be renewed when all is copied
        begun += command == "checkpoint-begin"
        if command == "checkpoint-begin" and begun == 2:
            name = world.qmp.command("query-checkpoints")[-1]["name"]
            world.qmp.command("checkpoint-abandon", name=name)
            world.write()

    meddler = Meddler(test, world.server.admin, before)
    result = test.liveblk("-a", meddler.path, "backup", "vda", "--to", f"{world.set}/", "--lease",
                          "2", status=1)  # fmt: skip
    assert begun == 2 and "The session had ended on the server" in result.stderr, result.stderr
    world.assert_tidy()
    world.write(2)
    assert world.modes() == ["incremental"]
    world.assert_all_good()
    world.stop()


@promise("what prune keeps can be restored, though what it was built upon goes; killed at any step, too",
         timeout=PATIENCE)  # fmt: skip
def prune(test):
    world = World(test, length=MIB)
    for words in ([], [], [], ["--full"]):
        world.write()
        world.backup(*words)
    ids = world.ids()
    good = test.path("good")
    shutil.copytree(world.set, good)
    said = world.liveblk("prune", world.set, "--keep", "2", "--dry-run").stdout
    assert said.split()[0] == ids[2] and world.ids() == ids, said
    counted = test.path("count")
    world.liveblk("prune", world.set, "--keep", "2",
                  env=preload(LIVEBLK_TEST_DIE_COUNT=str(counted)))  # fmt: skip
    assert [entry["disks"][0]["mode"] for entry in world.list()["backups"]] == ["full", "full"]
    world.assert_all_good()
    count = int(counted.read_text())
    test.log(f"a prune has {count} steps")
    for step in steps(test, count):
        shutil.rmtree(world.set)
        shutil.copytree(good, world.set)
        result = world.liveblk("prune", world.set, "--keep", "2", status=None,
                               env=preload(LIVEBLK_TEST_DIE_AT=str(step)))  # fmt: skip
        assert set(ids[2:]) <= set(world.ids()) <= set(ids), f"step {step}: {result.stderr}"
        world.liveblk("verify", world.set)
        world.assert_restored(ids[2], "vda")
        world.liveblk("prune", world.set, "--keep", "2")
        world.assert_restored(ids[2], "vda")
        world.assert_tidy()
    world.liveblk("prune", world.set, "--keep-days", "1")
    assert world.ids() == ids[2:], "all of them are from today"
    world.write()
    assert world.modes() == ["incremental"]
    world.assert_all_good()
    world.stop()


class Live:
    """A disk that is served while it is restored."""

    def __init__(self, test, source, *words, name="live"):
        self.test = test
        self.target = test.path(f"{name}.qcow2")
        self.socket, self.admin = test.path(f"{name}.nbd"), test.path(f"{name}.admin")
        self.process = test.start(
            LIVEBLK, "-a", self.admin, "backup", "restore", source, self.target, "--serve",
            "--socket", self.socket, *words, log=f"{name}.log",
            env=dict(Server.environment(), LIVEBLK_PLUGIN=str(BUILD / "plugins/nbdkit-liveblk-plugin.so")),
        )  # fmt: skip
        wait_until(self.is_ready, "the restored disk is served")

    def is_ready(self):
        log = self.process.log_path.read_text()
        assert self.process.poll() is None, log
        return "admin:" in log.splitlines()[-1:][0] if log else False

    def connect(self):
        return connect(f"nbd+unix:///vda?socket={self.socket}")

    def wait_complete(self):
        wait_until(lambda: "is complete" in self.process.log_path.read_text(), "it is complete")

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.process.log_path.write_text("")

    def stop(self):
        self.process.terminate()
        self.process.wait()


def assert_plain(test, target, held):
    """The image holds all, and names nothing below it."""
    assert "backing file" not in test.run("qemu-img", "info", target).stdout
    test.path("held").write_bytes(held)
    test.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", test.path("held"), target)


@promise("a restore that is served at once goes on where it was killed, and ends in a plain image")
def live_local(test):
    world = World(test)
    world.write(12)
    world.backup("--raw")
    world.write(12)
    world.backup("--raw")
    newest = world.ids()[-1]
    live = Live(test, world.set, "--speed", "256K")
    guest = live.connect()
    assert read(guest) == world.held[newest]["vda"]
    guest.pwrite(b"new data" * 512, MIB)
    guest.flush()
    held = bytearray(world.held[newest]["vda"])
    held[MIB : MIB + 4096] = b"new data" * 512
    live.kill()
    result = world.liveblk("prune", world.set, "--keep", "1")
    world.held = {newest: world.held[newest]}
    live = Live(test, world.set)
    result = world.liveblk("prune", world.set, "--keep", "1", status=None)
    live.wait_complete()
    guest = live.connect()
    assert read(guest) == bytes(held)
    guest.shutdown()
    live.stop()
    assert_plain(test, live.target, bytes(held))
    result = world.liveblk("restore", world.set, live.target, "--serve", status=1)
    assert "no unfinished restore" in result.stderr, result.stderr
    world.stop()


class BackupServer:
    """'liveblk backup serve', which can be killed and comes back."""

    def __init__(self, test, directory):
        self.test = test
        self.socket = test.path("backup.nbd")
        self.command = [LIVEBLK, "-a", test.path("backup.admin"), "backup", "serve", directory,
                        "--socket", self.socket]  # fmt: skip
        self.start()

    def start(self):
        plugin = str(BUILD / "plugins/nbdkit-liveblk-plugin.so")
        self.process = self.test.start(*self.command, log=f"serve-{time.monotonic_ns()}.log",
                                       env=dict(Server.environment(), LIVEBLK_PLUGIN=plugin))
        log = self.process.log_path
        wait_until(lambda: "admin:" in log.read_text(), "the backup is served")

    def uri(self):
        return f"nbd+unix:///vda?socket={self.socket}"

    def kill(self):
        self.process.kill()
        self.process.wait()


@promise("a live restore from a server of the backup goes on when that was killed and comes back")
def live_remote(test):
    world = World(test)
    world.write(20)
    world.backup()
    world.write(5)
    world.backup()
    held = world.held[world.ids()[-1]]["vda"]
    backup = BackupServer(test, world.set)
    # Flat, from the server.
    target = test.path("flat")
    world.liveblk("restore", backup.uri(), target)
    assert target.read_bytes() == held
    live = Live(test, backup.uri(), "--speed", "1M")
    backup.kill()
    with live_qmp(test, live) as qmp:
        before = progress_of(qmp)
        backup.start()
        wait_until(lambda: progress_of(qmp) is None or progress_of(qmp) > before, "it goes on")
    backup.kill()
    live.kill()
    backup.start()
    live = Live(test, backup.uri())
    live.wait_complete()
    backup.kill()
    guest = live.connect()
    assert read(guest) == held
    guest.shutdown()
    live.stop()
    assert_plain(test, live.target, held)
    world.stop()


def live_qmp(test, live):
    from liveblk_test import Qmp

    return Qmp(live.admin)


def progress_of(qmp):
    """Bytes; None: the job has ended."""
    jobs = [job for job in qmp.command("query-jobs") if job["id"] == "restore"]
    assert all(job["status"] in ("running", "paused", "concluded") for job in jobs), jobs
    assert all("error" not in job for job in jobs), jobs
    running = [job["current-progress"] for job in jobs if job["status"] != "concluded"]
    return running[0] if running else None


@promise("where NBD clients are accepted the server says itself")
def sockets(test):
    world = World(test)
    found = world.qmp.command("query-nbd-sockets")
    assert found == [{"type": "unix", "path": str(world.server.nbd)}], found
    world.write()
    world.backup("--nbd", str(world.server.nbd))
    world.backup("--nbd", f"nbd+unix:///?socket={world.server.nbd}")
    result = world.backup("--nbd", str(test.path("nowhere")), status=1)
    assert "nowhere" in result["stderr"], result
    world.assert_tidy()
    world.stop()


@promise("the commands of docs/backup-sets.md work in order")
def documentation(test):
    text = (ROOT / "docs" / "backup-sets.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 5, blocks
    world = World(test, "vda", "vdb")
    environment = {
        "PATH": f"{LIVEBLK.parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        "LIVEBLK_ADMIN": "",
        "XDG_RUNTIME_DIR": str(test.directory),
        **Server.environment(),
        "LIVEBLK_PLUGIN": str(BUILD / "plugins/nbdkit-liveblk-plugin.so"),
    }
    for block in blocks:
        world.write()
        # Whatever happens, no server is left.
        script = f"trap 'kill -9 $(jobs -p) 2>/dev/null || true' EXIT\n{block}"
        test.run("bash", "-e", "-o", "pipefail", "-c", script, cwd=test.directory, env=environment)
    world.stop()


main()
