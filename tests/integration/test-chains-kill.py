#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Servers killed while they work on backing chains: what was flushed is in the chain.

What was not flushed may be lost though the kernel lives on, as qcow2 has tables in memory. The
image to open is the one the disk was on at first, until somebody was told that the job or the
snapshot has succeeded; then the one it is on now. Where the guest moves (a snapshot, a commit of
what it writes to) it does so a little before that is told: then one of the two has all that was
flushed, and the old one at least what was flushed before the move was asked for.
"""

import itertools
import json
import os
import pathlib
import random
import shutil
import tempfile
import threading
import time

from liveblk_test import Server, connect, fill, identify, main, promise, wait_until

MIB = 1 << 20
SECTOR = 4096
LENGTH = 4 * MIB
SECTORS = LENGTH // SECTOR
THREADS = 3
SECONDS = 18  # in all


class Ledger:
    """For each sector all that was begun there, and how much of that is flushed.

    A sector belongs to one thread, which makes one request at a time. 0: zeroes.
    """

    def __init__(self):
        self.begun = [[0] for _ in range(SECTORS)]
        self.flushed = [0] * SECTORS  # an index of the last one
        self.numbers = itertools.count(1)

    def begin(self, sectors, number):
        for sector in sectors:
            self.begun[sector].append(number)

    def flush(self, sectors):
        for sector in sectors:
            self.flushed[sector] = len(self.begun[sector]) - 1

    def mark(self):
        """What is flushed by now, for wrong()."""
        return list(self.flushed)

    def wrong(self, contents, mark=None):
        """The first sector that lacks what was flushed, by the mark or in all; or None."""
        flushed = mark or self.flushed
        for sector in range(SECTORS):
            found = number_in(contents, sector)
            allowed = self.begun[sector][flushed[sector] :]
            if found not in allowed:
                return f"sector {sector} holds {found} and not one of {allowed}"
        return None


def number_in(contents, sector):
    kind, address, sequence, _, _ = identify(contents[sector * SECTOR : (sector + 1) * SECTOR])
    if kind == "zeroes":
        return 0
    # A write that was not answered may be torn, but what it leaves is named by its head.
    assert kind in ("whole", "torn") and address == sector * SECTOR, f"sector {sector} is {kind}"
    return sequence


class Guest:
    """Threads that write until the server is gone."""

    def __init__(self, test, server):
        self.ledger = Ledger()
        self.over = False
        self.done = 0
        handle = connect(server.uri())
        self.write(handle, range(SECTORS))
        handle.flush()
        self.ledger.flush(range(SECTORS))
        handle.shutdown()
        self.threads = [
            threading.Thread(
                target=self.run, args=(connect(server.uri()), part, test.random.getrandbits(60)),
                daemon=True,
            )
            for part in range(THREADS)
        ]  # fmt: skip
        for thread in self.threads:
            thread.start()

    def write(self, handle, sectors):
        number = next(self.ledger.numbers)
        self.ledger.begin(sectors, number)
        at, length = sectors[0] * SECTOR, len(sectors) * SECTOR
        handle.pwrite(fill(at, length, number, sector_size=SECTOR), at)

    def zero(self, handle, sectors):
        self.ledger.begin(sectors, 0)
        handle.zero(len(sectors) * SECTOR, sectors[0] * SECTOR)

    def run(self, handle, part, seed):
        generator = random.Random(seed)
        unflushed = set()
        first, end = part * SECTORS // THREADS, (part + 1) * SECTORS // THREADS
        try:
            while not self.over:
                length = generator.randrange(1, 9)
                start = generator.randrange(first, end - length + 1)
                request = self.zero if generator.random() < 0.15 else self.write
                request(handle, range(start, start + length))
                unflushed.update(range(start, start + length))
                if generator.random() < 0.3:
                    handle.flush()
                    self.ledger.flush(unflushed)
                    unflushed.clear()
                self.done += 1
        except Exception:  # it was killed
            pass

    def wait_done(self, more):
        goal = self.done + more
        wait_until(lambda: self.done >= goal, "the guest goes on")

    def join(self):
        self.over = True
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive(), "a request hangs though the server is gone"


class Round:
    """A served chain of four under a guest: base, one, two, three."""

    def __init__(self, test, directory, number):
        self.test = test
        self.directory = directory
        self.name = f"round{number}"
        test.run("qemu-img", "create", "-q", "-f", "qcow2", self.file("base"), LENGTH)
        self.server = Server(
            test, [f"file={self.file('base')},format=qcow2,discard=unmap"], name=self.name
        )
        self.qmp = self.server.qmp()
        self.base = self.qmp.command("query-block")[0]["inserted"]["node-name"]
        self.guest = Guest(test, self.server)
        for name in ("one", "two", "three"):
            self.snapshot(name)
            self.guest.wait_done(10)
        self.mark = None  # what was flushed when a move was asked for

    def file(self, name):
        return self.directory / f"{self.name}-{name}.qcow2"

    def snapshot(self, name):
        self.qmp.command("blockdev-snapshot-sync", device="vda",
                         snapshot_file=str(self.file(name)), snapshot_node_name=name)  # fmt: skip

    def wait_told(self):
        event = self.qmp.wait_event("BLOCK_JOB_COMPLETED", device="job")["data"]
        assert "error" not in event, event

    # What is done to it; each returns when it is told.

    def take_snapshot(self):
        self.mark = self.guest.ledger.mark()
        self.snapshot("four")

    def stream(self, **arguments):
        self.qmp.command("block-stream", job_id="job", **arguments)
        self.wait_told()

    def stream_all(self):
        self.stream(device="vda")

    def stream_to_base(self):
        self.stream(device="vda", base_node=self.base)

    def stream_middle(self):
        self.stream(device="two", base_node=self.base)

    def commit(self):
        self.qmp.command("block-commit", job_id="job", device="vda", top_node="two")
        self.wait_told()

    def commit_active(self):
        self.qmp.command("block-commit", job_id="job", device="vda")
        self.qmp.wait_event("BLOCK_JOB_READY", device="job")
        self.mark = self.guest.ledger.mark()
        self.qmp.command("block-job-complete", device="job")
        self.wait_told()

    def leave_active(self):
        self.qmp.command("block-commit", job_id="job", device="vda")
        self.qmp.wait_event("BLOCK_JOB_READY", device="job")
        self.qmp.command("block-job-cancel", device="job")
        self.wait_told()

    def act(self, action, delay):
        """Do it, and be killed after this time, or some time after it was told."""
        timer = threading.Timer(delay, self.server.process.kill)
        began = time.monotonic()
        timer.start()
        told = None
        try:
            action(self)
            told = time.monotonic() - began
        except (OSError, TimeoutError):  # the end of the connection, too
            assert self.server.process.wait(60) is not None
        timer.join()
        self.server.process.wait(60)
        self.guest.join()
        return told

    # Afterwards.

    def chain(self, name):
        out = self.test.run("qemu-img", "info", "--backing-chain", "--output=json", self.file(name))
        return [os.path.basename(image["filename"]) for image in json.loads(out.stdout)]

    def check(self, name):
        """QEMU opens the chain and finds nothing wrong with its images; what it reads."""
        for image in self.chain(name):
            status = self.test.run("qemu-img", "check", self.directory / image, status=None)
            assert status.returncode in (0, 3), f"{image}: {status.stdout}{status.stderr}"
        out = self.directory / f"{self.name}.raw"
        self.test.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", self.file(name), out)
        return out.read_bytes()

    def serve(self, name):
        """The same, read by a new server."""
        server = Server(self.test, [f"file={self.file(name)},format=qcow2"], name=self.name)
        handle = server.connect()
        contents = bytes(handle.pread(LENGTH, 0))
        handle.shutdown()
        server.stop()
        return contents

    def read(self, name):
        contents = self.check(name)
        assert contents == self.serve(name), f"QEMU and we read other things in {name}"
        return contents

    def judge(self, moves_to, told):
        """The image to open has it all; where the guest moved, see above."""
        wrong = self.guest.ledger.wrong
        if told is not None:
            problem = wrong(self.read(moves_to or "three"))
        elif not moves_to or self.mark is None:
            problem = wrong(self.read("three"))
        else:
            old = self.read("three")
            problem = wrong(old, self.mark)
            if not problem and wrong(old):
                problem = wrong(self.read(moves_to))
        assert not problem, f"{self.name}, told after {told}: {problem}"

    def remove(self):
        for path in self.directory.glob(f"{self.name}*"):
            path.unlink()


ACTIONS = [
    (Round.take_snapshot, "four"),
    (Round.stream_all, None),
    (Round.stream_to_base, None),
    (Round.stream_middle, None),
    (Round.commit, None),
    (Round.commit_active, "base"),
    (Round.leave_active, None),
]


def choose_delay(test, usual):
    """At any time, or about when it ends."""
    near = test.random.random() < 0.5
    return usual * (test.random.uniform(0.8, 1.3) if near else test.random.uniform(0, 1.1))


@promise("a server killed at any time loses nothing that was flushed, and its chains open", timeout=240)
def killed(test):
    usual = dict.fromkeys((action for action, _ in ACTIONS), 0.1)  # seconds
    directory = pathlib.Path(tempfile.mkdtemp(prefix="liveblk-test-", dir="/dev/shm"))
    test.cleanup.callback(shutil.rmtree, directory)
    end = time.monotonic() + SECONDS
    number = told_count = 0
    while number < len(ACTIONS) or time.monotonic() < end:
        action, moves_to = ACTIONS[number % len(ACTIONS)]
        delay = choose_delay(test, usual[action])
        current = Round(test, directory, number)
        told = current.act(action, delay)
        test.log(f"{current.name}: {action.__name__}, killed after {delay:.3f} s, "
                 f"{'not told' if told is None else f'told after {told:.3f} s'}")  # fmt: skip
        # How long it takes is learnt: a little longer each time it was not told of the end.
        usual[action] = usual[action] * 1.3 if told is None else told
        current.judge(moves_to, told)
        current.remove()
        told_count += told is not None
        number += 1
    test.log(f"{number} servers were killed, {told_count} of them after the end")


if __name__ == "__main__":
    main()
