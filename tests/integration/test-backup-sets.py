#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Backup sets: made, built upon each other, verified and restored, and what is refused."""

import os
import re
import shutil

from liveblk_sets import LENGTH, World, damage, damage_data
from liveblk_test import BUILD, LIVEBLK, ROOT, Server, main, promise, wait_until
from liveblk_tracking import GRANULE, KIB, MIB, noise, read


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
    lengths = (LENGTH, LENGTH + 100 * KIB, MIB + 4 * KIB, MIB + MIB // 2, 2 * LENGTH)
    for length in lengths:
        world.qmp.command("block_resize", device="vda", size=length)
        world.guests["vda"].shutdown()
        world.guests["vda"] = world.server.connect("vda")
        world.write(10)
        world.backup()
        world.write(3)
        world.backup()
    assert {len(held["vda"]) for held in world.held.values()} == set(lengths)
    world.assert_all_good()
    world.stop()


@promise("what guests write while a backup is made is not in it, but in the next one; a run that takes "
         "long keeps its session")  # fmt: skip
def guests_go_on(test):
    world = World(test, "vda", "vdb", length=4 * MIB)
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


def break_image_size(world, newest):
    with open(world.set / "vda" / f"{newest}.qcow2", "r+b") as file:
        file.truncate(1000)


def break_image_gone(world, newest):
    (world.set / "vda" / f"{newest}.qcow2").unlink()


def break_sums(world, newest):
    damage(world.set / "vda" / f"{newest}.sums", 70)


def break_manifest(world, newest):
    damage(world.set / f"{newest}.json", 100)


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
    # What would have no effect.
    for words in (["vda", "--to", world.set, "--disk", "vda"], ["list", world.set, "--keep", "3"],
                  ["restore", world.set, target, "--socket", "x"], ["verify", world.set, "--raw"],
                  ["vda", "--to", target, "--at", world.ids()[0]],
                  ["restore", "nbd://localhost/vda", target, "--at", world.ids()[0]],
                  ["prune", world.set, "--keep", "1", "--compress"]):  # fmt: skip
        result = world.liveblk(*words, status=2)
        option = next(word for word in reversed(words) if str(word).startswith("--"))
        assert f"{option} " in result.stderr, result.stderr
    world.stop()


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
