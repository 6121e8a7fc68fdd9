#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Backup sets in trouble: killed at every step, damaged in every file, out of power, and pruned.

LIVEBLK_SET_KILLS=N: so many of the steps at which a run, its server, and a prune can die (0: all of
them).
LIVEBLK_SET_FLIPS=N: so many damaged bytes in each file.
"""

import json
import os
import shutil
import socket
import threading
import time

from liveblk_durable import Durable
from liveblk_sets import LENGTH, World, damage, damage_data, read
from liveblk_test import BUILD, LIVEBLK, Qmp, Server, connect, main, promise, wait_until
from liveblk_tracking import KIB, MIB

DIE_AT = BUILD / "tests" / "lib" / "die-at.so"
KILLS = int(os.environ.get("LIVEBLK_SET_KILLS", "3"))
FLIPS = int(os.environ.get("LIVEBLK_SET_FLIPS", "1"))
PATIENCE = 60 + 5 * (KILLS or 150) + 20 * FLIPS  # seconds for a promise of so many


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


def count_steps(test, run):
    """How many of them what run(env) calls has; about, as it is not the same each time."""
    counted = test.path("count")
    run(preload(LIVEBLK_TEST_DIE_COUNT=str(counted)))
    count = int(counted.read_text())
    test.log(f"{count} steps")
    return count


def runs_that_die(test, with_server):
    """Runs that are killed, or whose server is, at a step each, and the runs after them."""
    world = World(test, length=MIB)
    world.write()
    world.backup()
    world.write()
    count = count_steps(test, lambda env: world.backup(env=env)) + 2
    for step in steps(test, count):
        world.write(3)
        held = {"vda": read(world.guests["vda"])}
        world.guests["vda"].flush()
        victim = {"LIVEBLK_TEST_DIE_PID": str(world.server.process.pid)} if with_server else {}
        found = world.backup(status=None, env=preload(LIVEBLK_TEST_DIE_AT=str(step), **victim))
        if with_server:
            world.kill()
        ids = world.ids()
        for backup in ids:  # one whose manifest was written just before the end
            world.held.setdefault(backup, held)
        assert set(ids) == set(world.held), f"step {step}: {found}"
        world.liveblk("verify", world.set)
        if with_server:
            world.start()
        world.write(2)
        disk = world.backup()["disks"][0]
        # The manifest may be there and its checkpoint be gone with the server: then all is copied.
        kept = disk["mode"] == "incremental" or with_server and disk["reason"] == "no-parent"
        assert kept, f"step {step}: {disk}"
        world.assert_restored(max(world.held), "vda")
        world.assert_tidy()
        if len(world.held) > 8:  # a chain need not be long
            world.prune("--keep", "1")
    world.assert_all_good()
    world.stop()


@promise("a run that is killed at any step leaves a good set, and the next one repairs what is left",
         timeout=PATIENCE)  # fmt: skip
def killed(test):
    runs_that_die(test, with_server=False)


@promise("a server that is killed at any step of a run costs that run at most, and the next one copes",
         timeout=PATIENCE)  # fmt: skip
def server_killed_at_any_step(test):
    runs_that_die(test, with_server=True)


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
    world.prune("--keep", "1", env=listed)
    found = seen()
    assert found.count("manifest") == 2 and "removal" in found, found
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
    count = count_steps(test, lambda env: world.prune("--keep", "2", env=env))
    assert [entry["disks"][0]["mode"] for entry in world.list()["backups"]] == ["full", "full"]
    world.assert_all_good()
    for step in steps(test, count):
        shutil.rmtree(world.set)
        shutil.copytree(good, world.set)
        result = world.liveblk("prune", world.set, "--keep", "2", status=None,
                               env=preload(LIVEBLK_TEST_DIE_AT=str(step)))  # fmt: skip
        left = set(world.ids())
        assert set(ids[2:]) <= left <= set(ids), f"step {step}: {result.stderr}"
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
    live = Live(test, world.set, "--speed", "64K")
    guest = live.connect()
    assert read(guest) == world.held[newest]["vda"]
    guest.pwrite(b"new data" * 512, MIB)
    guest.flush()
    held = bytearray(world.held[newest]["vda"])
    held[MIB : MIB + 4096] = b"new data" * 512
    result = world.liveblk("prune", world.set, "--keep", "1", status=1)
    assert "in use" in result.stderr, result.stderr
    result = world.liveblk("restore", world.set, test.path("other"), "--serve", "--socket",
                           live.socket, status=1)  # fmt: skip
    assert "A server already runs" in result.stderr, result.stderr
    live.kill()
    world.prune("--keep", "1")
    assert list(world.held) == [newest]
    live = Live(test, world.set)
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
    live = Live(test, backup.uri(), "--speed", "256K")
    backup.kill()
    with Qmp(live.admin) as qmp:
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


def progress_of(qmp):
    """Bytes; None: the job has ended."""
    jobs = [job for job in qmp.command("query-jobs") if job["id"] == "restore"]
    assert all(job["status"] in ("running", "paused", "concluded") for job in jobs), jobs
    assert all("error" not in job for job in jobs), jobs
    running = [job["current-progress"] for job in jobs if job["status"] != "concluded"]
    return running[0] if running else None


main()
