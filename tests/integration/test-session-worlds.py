#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Worlds of two disks, one raw and one qcow2, whose backup sessions go every way there is.

Sessions of one or both disks are begun while the guest writes, several at once, since any checkpoint
there is. Each ends by being committed, abandoned, expired, or broken (scratch full, tracking file
lost), or by the death of the server: killed, or with the power (writes of the disks that were not
flushed are lost or torn, and of the tracking files' maps what was not durable). In between the disks
are resized, and the server is ended and started.

The guest's changes have one order over both disks. So what a session shows of them must be what one
number of changes made of both, or its instants were not the same. All backups are pulled over NBD as
chains of what changed, and each chain, put together again, must be the disk at its instant. At the
end nothing is left: it is counted.

LIVEBLK_TEST_CASES=N runs N worlds, LIVEBLK_TEST_CASE_SEED=N the one of that seed.
"""

import collections
import contextlib
import os
import pathlib
import random
import shutil
import tempfile
import threading
import time

import nbd

from liveblk_load import hang_up
from liveblk_test import QmpError, Server, main, promise, wait_until
from liveblk_tracking import KIB, MIB, drop_unsynced, noise, read

WORLDS = int(os.environ.get("LIVEBLK_TEST_CASES", 3))
ONE_SEED = os.environ.get("LIVEBLK_TEST_CASE_SEED")
STEPS = 12
SECTOR = 512
BASE = "base:allocation"
STATES = {0: "data", nbd.STATE_HOLE: None, nbd.STATE_ZERO: "zero"}

counts = collections.Counter()


class Disk:
    """A guest's disk: its description for a server, and what it holds now."""

    def __init__(self, world, name, kind):
        self.name, self.world = name, world
        self.path = world.directory / f"{name}.{kind}"
        self.tracking = world.directory / f"{name}.tracking"
        self.contents = bytearray(world.random.randrange(2 * MIB, 4 * MIB, 64 * KIB))
        self.is_lost = False  # the map, since the server was started; with these checkpoints:
        self.lost_names = set()
        world.test.run("qemu-img", "create", "-q", "-f", kind, self.path, len(self.contents))
        file = f"file={self.path}"
        if world.loses:
            file = (f"file.driver=lose-writes,file.node-name=lossy-{name},file.discard=unmap,"
                    f"file.file.driver=file,file.file.discard=unmap,"
                    f"file.file.filename={self.path}")  # fmt: skip
        granule = world.random.choice(("4k", "16k", "64k"))
        self.spec = (f"name={name},format={kind},{file},discard=unmap,tracking={self.tracking},"
                     f"tracking-granule={granule},tracking-extent=128k,"
                     f"tracking-extents=16")  # fmt: skip

    def length(self):
        return len(self.contents)

    def change(self, generator):
        """One request; returns what it made of a range."""
        most = generator.choice((SECTOR, 4 * KIB, 4 * KIB, 64 * KIB, 300 * KIB))
        size = generator.randrange(SECTOR, most + 1, SECTOR)
        at = generator.randrange(0, self.length() - size + 1, SECTOR)
        dice = generator.random()
        if dice < 0.7:
            data = noise(generator, size)
            self.guest.pwrite(data, at, nbd.CMD_FLAG_FUA if dice < 0.05 else 0)
        elif dice < 0.85:
            data = bytes(size)
            self.guest.zero(size, at, nbd.CMD_FLAG_NO_HOLE if dice < 0.75 else 0)
        else:
            self.guest.trim(size, at)  # which may do nothing to some of it
            data = bytes(self.guest.pread(size, at))
        self.contents[at : at + size] = data
        return at, data

    def connect(self):
        self.guest = self.world.server.connect(self.name)
        assert self.guest.get_size() == self.length(), f"{self.name} has another length"


class Backup:
    """What was moved for a disk in one session, on top of what was for its parent; and the disk."""

    def __init__(self, parent, pieces, contents):
        self.parent, self.pieces, self.contents = parent, pieces, contents

    def restore(self):
        copy = self.parent.restore() if self.parent else bytearray()
        copy[len(self.contents) :] = b""
        copy += bytes(len(self.contents) - len(copy))
        for at, data in self.pieces:
            copy[at : at + len(data)] = data
        return copy


class Session:
    """An open one, and what its disks held at its instant."""

    def __init__(self, answer, contents, parents):
        self.name = answer["name"]
        self.parents = parents  # device -> Backup: they may be deleted before it is pulled
        self.entries = {entry["device"]: entry for entry in answer["devices"]}
        self.contents = contents
        self.backups = {}
        self.broken = set()  # disks whose maps were lost while it was open
        self.is_readable = True


class World:
    def __init__(self, test, seed):
        self.test = test
        self.random = random.Random(seed)
        memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
        self.directory = pathlib.Path(tempfile.mkdtemp(prefix="liveblk-world-", dir=memory))
        test.cleanup.callback(shutil.rmtree, self.directory, ignore_errors=True)
        self.loses = self.random.random() < 0.6
        self.disks = [Disk(self, "vda", "raw"), Disk(self, "vdb", "qcow2")]
        self.by_name = {disk.name: disk for disk in self.disks}
        self.sessions = []
        self.backups = {}  # (disk, checkpoint) -> Backup: those that are committed
        self.number = 0
        self.start()

    # ---- The server -----------------------------------------------------------------------------

    def start(self):
        specs = [disk.spec for disk in self.disks]
        # With one thread for each connection it can be said how many there are.
        self.server = Server(self.test, specs, nbdkit=("-t", "1"),
                             name=self.directory / "server",
                             env={"TMPDIR": str(self.directory)})  # fmt: skip
        self.qmp = self.server.qmp()
        for disk in self.disks:
            disk.is_lost = False
            disk.connect()
        nodes = self.measure()["nodes"]
        # What is made once and stays: threads, say.
        self.qmp.command("checkpoint-begin", name="warm", lease=1000)
        for disk in self.disks:
            disk.guest.pwrite(disk.guest.pread(SECTOR, 0), 0)
            hang_up(self.server.connect(f"{disk.name}@warm~changes"))
        self.qmp.command("checkpoint-abandon", name="warm")
        # Those that looked just now may not be gone yet.
        wait_until(lambda: self.measure()["nodes"] == nodes, "the first session's nodes are gone")
        self.baseline, before = self.measure(), None
        while self.baseline != before:
            before, self.baseline = self.baseline, self.measure()

    def measure(self):
        """How much there is of everything that sessions use."""
        pid = int(self.server.pid_file.read_text())
        handle, exports = nbd.NBD(), []
        handle.set_opt_mode(True)
        handle.connect_uri(self.server.uri())
        handle.opt_list(lambda name, _: exports.append(name))
        handle.opt_abort()
        del handle
        found = {
            "exports": sorted(exports),
            "views": len(self.qmp.command("query-views")),
            "jobs": len(self.qmp.command("query-jobs")),
            "nodes": len(self.qmp.command("query-named-block-nodes")),
            "bitmaps": sum(len(node.get("dirty-bitmaps", []))
                           for node in self.qmp.command("query-named-block-nodes")),
            "sessions": sum(entry["state"] == "open"
                            for entry in self.qmp.command("query-checkpoints")),
            "pending": sum(found["pending"] for entry in self.qmp.command("query-block-tracking")
                           for found in entry.get("checkpoints", []) if entry["state"] != "lost"),
            "files": len(list(self.directory.iterdir())),
        }  # fmt: skip
        # The client of this look itself goes at its own pace.
        for kind, wanted in (("fd", "descriptors"), ("task", "threads")):
            found[wanted] = len(os.listdir(f"/proc/{pid}/{kind}"))
        return found

    def assert_nothing_left(self):
        assert not self.sessions
        seen = {}

        def is_as_before():
            nonlocal seen
            seen = self.measure()
            return all(seen[key] <= value if key in ("descriptors", "threads") else
                       seen[key] == value for key, value in self.baseline.items())  # fmt: skip

        try:
            wait_until(is_as_before, "nothing is left behind", timeout=20)
        except AssertionError:
            raise AssertionError(f"left behind: {seen}, in the beginning: {self.baseline}") from None

    def stop(self):
        if not self.sessions:
            self.assert_nothing_left()
        for disk in self.disks:
            disk.guest.shutdown()
        self.qmp.close()
        self.server.stop()

    def after_death(self):
        """Start again, and see what there is of disks and checkpoints."""
        for disk in self.disks:
            hang_up(disk.guest)
        self.qmp.close()
        self.server.process.wait()
        self.sessions.clear()
        if self.has_lost_power:
            for disk in [disk for disk in self.disks if not disk.is_lost]:
                drop_unsynced(disk.tracking, self.random, self.random.choice((0.5, 1.0)))
        self.start()
        for disk in self.disks:
            disk.contents[:] = read(disk.guest)

    def die(self):
        """By SIGKILL, or with the power."""
        self.has_lost_power = self.loses and self.random.random() < 0.6
        if not self.has_lost_power:
            counts["kills"] += 1
            self.server.kill()
            return
        counts["power losses"] += 1
        with contextlib.suppress(ConnectionError, OSError), self.server.qmp() as qmp:
            for disk, end in zip(self.disks, ("node", "process"), strict=True):
                qmp.command_raw("lose-writes-now", {
                    "node-name": f"lossy-{disk.name}", "probability": self.random.randrange(101),
                    "tear": self.random.choice((0, SECTOR)), "end": end,
                    "seed": self.random.getrandbits(31)})  # fmt: skip
        self.server.process.wait()

    # ---- The guest ------------------------------------------------------------------------------

    def change(self, number):
        for _ in range(number):
            disk = self.random.choice(self.disks)
            disk.change(self.random)
            if self.random.random() < 0.1:
                disk.guest.flush()
        counts["changes"] += number

    @contextlib.contextmanager
    def changing(self):
        """Changes go on, in an order, which is what this gives: (disk, offset, data)."""
        order, over = [], threading.Event()
        generator = random.Random(self.random.getrandbits(60))

        def run():
            with contextlib.suppress(nbd.Error):  # the server was killed
                while not over.is_set():
                    disk = generator.choice(self.disks)
                    order.append((disk.name, *disk.change(generator)))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            yield order
        finally:
            over.set()
            thread.join(60)
            assert not thread.is_alive(), "a request hangs"

    def find_instant(self, before, order, views):
        """What some number of the changes made of the disks is what the views show: returns it."""
        state = {name: bytearray(before[name]) for name in views}
        relevant = [entry for entry in order if entry[0] in views]
        for done in range(len(relevant) + 1):
            if all(state[name] == views[name] for name in views):
                return state
            if done < len(relevant):
                name, at, data = relevant[done]
                state[name][at : at + len(data)] = data
        raise AssertionError(f"the views are of no instant, among {len(relevant)} changes")

    # ---- Sessions -------------------------------------------------------------------------------

    def committed(self):
        """The names of the checkpoints that are kept."""
        return sorted({name for _, name in self.backups})

    def arguments(self):
        """For checkpoint-begin: (the arguments, device -> since)."""
        self.number += 1
        disks = self.disks if self.random.random() < 0.7 else [self.random.choice(self.disks)]
        parents = [*self.committed()[-3:], *self.committed()[-1:], *self.committed()[-1:], None]
        since = {disk.name: self.random.choice(parents) for disk in disks}
        words = {"name": f"s{self.number:03}"}
        if len(set(since.values())) == 1 and self.random.random() < 0.5:
            (default,) = set(since.values())
            words |= {"since": default} if default else {}
            words |= {"devices": [{"device": disk.name} for disk in disks]}
        else:
            words["devices"] = [{"device": name} | ({"since": parent} if parent else {})
                                for name, parent in since.items()]  # fmt: skip
        if self.random.random() < 0.2:
            words |= {"before_cut": ["true"], "after_cut": ["true"]}
        return words, since

    def begin(self, is_quiet=False, **more):
        words, since = self.arguments()
        before = {disk.name: bytes(disk.contents) for disk in self.disks}
        with contextlib.nullcontext([]) if is_quiet else self.changing() as order:
            answer = self.qmp.command("checkpoint-begin", **words, **more)
        assert not answer["was-open"] and "broken" not in answer, answer
        views = {name: self.pull_all(f"{name}@{words['name']}") for name in since}
        parents = {name: self.backups.get((name, parent)) for name, parent in since.items()}
        session = Session(answer, self.find_instant(before, order, views), parents)
        for name, parent in since.items():
            self.check_mode(session.entries[name], parent)
        self.sessions.append(session)
        counts["sessions"] += 1
        return session

    def pull_all(self, export):
        handle = self.server.connect(export)
        contents = read(handle)
        handle.shutdown()
        return contents

    def check_mode(self, entry, parent):
        """Neither a change is missed, nor everything taken without need."""
        disk = self.by_name[entry["device"]]
        is_known = not disk.is_lost and (disk.name, parent) in self.backups
        assert entry["mode"] == ("incremental" if is_known else "full"), (entry, parent)
        assert entry["checkpoint"] == (not disk.is_lost), entry
        if disk.is_lost:
            assert entry["reason"] in ("tracking-lost", "no-parent"), entry
        counts[entry["mode"]] += 1

    def ranges_of(self, session, name, handle):
        """What is to be moved, as (offset, length, state), by QMP or by NBD."""
        found, at = [], 0
        if self.random.random() < 0.5:
            while at is not None:
                answer = self.qmp.command("query-changes", name=session.name, device=name,
                                          offset=at, limit=self.random.choice((1, 7, 10000)))  # fmt: skip
                found += [(entry["offset"], entry["length"], entry["state"])
                          for entry in answer["ranges"]]  # fmt: skip
                at = answer.get("next")
            return found

        def note(context, offset, entries, error):
            nonlocal at
            for size, flags in zip(entries[::2], entries[1::2], strict=True):
                found.append((at, size, STATES[flags]))
                at += size

        while at < handle.get_size():
            handle.block_status(handle.get_size() - at, at, note)
        return [entry for entry in found if entry[2]]

    def pull(self, session, name):
        entry = session.entries[name]
        handle = nbd.NBD()
        handle.add_meta_context(BASE)
        handle.connect_uri(self.server.uri(entry["changes-export"]))
        pieces = [(at, bytes(handle.pread(size, at)) if state == "data" else bytes(size))
                  for at, size, state in self.ranges_of(session, name, handle)]  # fmt: skip
        handle.shutdown()
        parent = session.parents[name] if entry["mode"] == "incremental" else None
        backup = Backup(parent, pieces, bytes(session.contents[name]))
        self.check_backup(backup, f"{name} of {session.name} since {entry.get('since')}")
        session.backups[name] = backup
        counts["moved"] += sum(len(data) for _, data in pieces)
        counts["held"] += len(backup.contents)

    @staticmethod
    def check_backup(backup, what):
        restored = backup.restore()
        if restored != backup.contents:
            at = next(i for i in range(0, len(restored), SECTOR)
                      if restored[i : i + SECTOR] != backup.contents[i : i + SECTOR])  # fmt: skip
            raise AssertionError(f"{what}: the sector at {at} is not what it was at the instant")

    def pull_some(self, session):
        for name in session.entries:
            if session.is_readable and name not in session.backups:
                self.pull(session, name)
                self.change(3)

    def open_one(self, **more):
        """Any that is open, or a new one."""
        usable = [session for session in self.sessions if session.is_readable]
        if usable and self.random.random() < 0.7 and not more:
            return self.random.choice(usable)
        return self.begin(**more)

    def keep(self, session, devices):
        for name in devices:
            self.backups[name, session.name] = session.backups[name]

    def close(self, session):
        self.sessions.remove(session)

    def end_some(self):
        """Views stand in the way of resizing."""
        while self.sessions:
            self.qmp.command("checkpoint-abandon", name=self.sessions.pop().name)
            counts["abandoned"] += 1

    # ---- Steps ----------------------------------------------------------------------------------

    def begin_one(self):
        session = self.begin()
        again = self.qmp.command("checkpoint-begin", name=session.name)
        assert again["was-open"] and len(again["devices"]) == len(session.entries), again

    def commit(self):
        session = self.open_one()
        self.pull_some(session)
        expected = {name for name, entry in session.entries.items()
                    if entry["checkpoint"] and name not in session.broken}  # fmt: skip
        cut = {name for name, entry in session.entries.items() if entry["checkpoint"]}
        if cut and not expected:
            self.refuse("cannot be committed", "checkpoint-commit", name=session.name)
            self.abandon(session)
            return
        for _ in range(2):
            results = self.qmp.command("checkpoint-commit", name=session.name)
            kept = {result["device"] for result in results if result["committed"]}
            assert kept == expected, (results, session.broken)
            if not expected:
                break  # nothing is there to be committed again
        self.keep(session, expected)
        self.close(session)
        counts["committed"] += 1

    def refuse(self, text, command, **arguments):
        try:
            self.qmp.command(command, **arguments)
        except QmpError as error:
            assert text in str(error), error
        else:
            raise AssertionError(f"{command} {arguments} succeeded")

    def abandon(self, session=None):
        session = session or self.open_one()
        for _ in range(2):
            self.qmp.command("checkpoint-abandon", name=session.name)
        self.close(session)
        counts["abandoned"] += 1

    def expire(self):
        words, _ = self.arguments()  # on a busy machine it has ended before it could be pulled
        with self.changing():
            self.qmp.command("checkpoint-begin", **words, lease=1)
        self.qmp.wait_event("CHECKPOINT_EXPIRED", name=words["name"])
        wait_until(lambda: words["name"] not in str(self.qmp.command("query-checkpoints")),
                   "it is abandoned")  # fmt: skip
        counts["expired"] += 1

    def fill_scratch(self):
        session = self.begin(is_quiet=True, scratch_max=64 * KIB)
        for name in session.entries:
            disk = self.by_name[name]
            for at in range(0, disk.length(), 256 * KIB):
                data = noise(self.random, min(256 * KIB, disk.length() - at))
                disk.guest.pwrite(data, at)
                disk.contents[at : at + len(data)] = data
        event = self.qmp.wait_event("CHECKPOINT_BROKEN", name=session.name)
        assert event["data"]["reason"] == "view-broken", event
        session.is_readable = False
        name = self.random.choice(list(session.entries))
        with contextlib.suppress(nbd.Error):
            self.pull_all(f"{name}@{session.name}")
            raise AssertionError("the view is broken and is read")
        self.abandon(session)
        counts["broken scratch"] += 1

    def lose_map(self):
        disk = self.random.choice(self.disks)
        if disk.is_lost:
            return
        os.truncate(disk.tracking, 0)
        while not any(event["event"] == "BLOCK_TRACKING_LOST" for event in self.qmp.events):
            disk.change(self.random)
            self.qmp.command("query-checkpoints")
        self.qmp.wait_event("BLOCK_TRACKING_LOST", device=disk.name)
        disk.is_lost = True
        disk.lost_names = {name for owner, name in self.backups if owner == disk.name}
        for session in self.sessions:
            if session.entries.get(disk.name, {}).get("checkpoint"):
                if not session.broken:
                    self.qmp.wait_event("CHECKPOINT_BROKEN", name=session.name, device=disk.name)
                session.broken.add(disk.name)
        self.forget(disk)
        counts["lost maps"] += 1

    def forget(self, disk):
        """Its checkpoints are of no use; the copies are."""
        self.backups = {key: value for key, value in self.backups.items() if key[0] != disk.name}

    def resize(self):
        self.end_some()
        disk = self.random.choice(self.disks)
        least = disk.length() if self.loses else MIB
        length = self.random.randrange(least, least + 2 * MIB, SECTOR)
        self.qmp.command("block_resize", device=disk.name, size=length)
        disk.contents[length:] = b""
        disk.contents += bytes(length - disk.length())
        disk.guest.shutdown()
        disk.connect()
        counts["resized"] += 1

    def delete(self):
        if self.committed():
            name = self.random.choice(self.committed())
            for _ in range(2):
                if any(disk.is_lost and name in disk.lost_names for disk in self.disks):
                    self.refuse("stays where it was", "checkpoint-delete", name=name)
                else:
                    self.qmp.command("checkpoint-delete", name=name)
            self.backups = {key: backup for key, backup in self.backups.items() if key[1] != name}
            counts["deleted"] += 1

    def restart(self):
        self.stop()
        self.sessions.clear()
        self.start()
        counts["restarts"] += 1

    def die_idle(self):
        self.change(10)
        self.die()
        self.after_death()
        self.check_committed()

    def attempt(self, qmp, command, arguments):
        """A command whose answer may never come."""
        try:
            return qmp.command(command, **arguments)
        except (ConnectionError, OSError, QmpError, TimeoutError):
            return None

    def die_during(self, command, **arguments):
        """While the command is carried out, and the guest writes; returns its answer, if any."""
        answers = []
        qmp = self.server.qmp()
        thread = threading.Thread(
            target=lambda: answers.append(self.attempt(qmp, command, arguments)), daemon=True
        )
        with self.changing():
            thread.start()
            time.sleep(self.random.random() ** 2 * 0.02)
            self.die()
            thread.join(60)
        qmp.close()
        self.after_death()
        return answers[0]

    def die_beginning(self):
        words, _ = self.arguments()
        self.die_during("checkpoint-begin", **words)
        self.check_committed()
        counts["died while beginning"] += 1

    def die_committing(self):
        session = self.begin()
        self.pull_some(session)
        results = self.die_during("checkpoint-commit", name=session.name)
        answered = {result["device"] for result in results or () if result["committed"]}
        found = {device["device"] for entry in self.qmp.command("query-checkpoints")
                 if entry["name"] == session.name for device in entry["devices"]}  # fmt: skip
        assert answered <= found, f"{answered} were committed, and {found} are there"
        self.keep(session, found)
        if found:
            again = self.qmp.command("checkpoint-commit", name=session.name)
            assert {result["device"] for result in again} == found, again
        else:
            self.refuse("There is no session", "checkpoint-commit", name=session.name)
        self.check_committed()
        counts["died while committing"] += 1

    def check_committed(self):
        """After any end: what was committed is there and is usable, and nothing else."""
        found = {(device["device"], entry["name"])
                 for entry in self.qmp.command("query-checkpoints")
                 for device in entry["devices"] if not device["broken"]}  # fmt: skip
        assert found == set(self.backups), f"there is {found}, and not {set(self.backups)}"

    def step(self):
        steps = (
            (14, self.commit), (5, self.begin_one), (3, self.abandon), (1, self.expire),
            (2, self.fill_scratch), (1, self.lose_map), (3, self.resize), (3, self.delete),
            (2, self.restart), (3, self.die_idle), (3, self.die_beginning),
            (4, self.die_committing),
        )  # fmt: skip
        weights, functions = zip(*steps, strict=True)
        (function,) = self.random.choices(functions, weights)
        self.trace.append(function.__name__)
        function()
        self.change(self.random.randrange(8))

    def run(self):
        self.trace = []
        self.change(20)
        for _ in range(STEPS):
            self.step()
        self.end_some()
        if any(disk.is_lost for disk in self.disks):
            self.restart()  # there is a new map then, and what was lost can be forgotten
        self.check_committed()
        for name in {entry["name"] for entry in self.qmp.command("query-checkpoints")}:
            self.qmp.command("checkpoint-delete", name=name)
        assert self.qmp.command("query-checkpoints") == []
        self.assert_nothing_left()
        for (name, checkpoint), backup in self.backups.items():
            self.check_backup(backup, f"{name} of {checkpoint}, in the end")
        for disk in self.disks:
            held = read(disk.guest)
            assert held == disk.contents, f"{disk.name} itself is wrong"
        self.stop()
        left = {path.name for path in self.directory.iterdir()}
        logs = {"server.log", "server.nbd", "server.admin", "server.pid"}
        own = {path.name for disk in self.disks for path in (disk.path, disk.tracking)}
        assert left <= own | logs, f"files are left: {left - own - logs}"
        counts["worlds"] += 1


def run_world(test, seed):
    world = World(test, seed)
    try:
        world.run()
    except BaseException:
        test.log(f"LIVEBLK_TEST_CASE_SEED={seed}; steps: {' '.join(world.trace)}")
        test.log((world.directory / "server.log").read_text(errors="replace")[-3000:])
        raise
    shutil.rmtree(world.directory)


@promise("whatever becomes of sessions, each backup is the disks at one instant, and nothing is left",
         timeout=200 + 60 * WORLDS)  # fmt: skip
def worlds(test):
    seeds = [test.random.getrandbits(32) for _ in range(WORLDS)]
    try:
        for seed in [int(ONE_SEED)] if ONE_SEED else seeds:
            run_world(test, seed)
    finally:
        test.log(", ".join(f"{what}: {number}" for what, number in sorted(counts.items())))


main()
