# SPDX-License-Identifier: BSD-3-Clause
"""A guest's load with a model beside it, and small disks that fill up."""

import os
import pathlib
import random
import subprocess
import threading
import time

from liveblk_test import DiskModel, connect, wait_until

SECTOR = 4096

# Threads of NBD clients that have left, which wait for the next ones; at most (server/nbd/worker.h).
IDLE_THREADS = 64


def hang_up(handle):
    """End a connection that may be broken already: nbdkit waits for its clients to go."""
    try:
        handle.shutdown()
    except Exception:  # it is gone, then
        pass


class Writers:
    """Threads that write to one disk, each by its own connection, with one model.

    Requests overlap in time and meet in clusters, but never in a sector: then the model knows the
    order. With held() no request is under way and none starts.
    """

    def __init__(self, test, uri, length, threads=4, longest=16 * SECTOR, prefill=True):
        self.model = DiskModel(length, SECTOR)
        self.longest = longest
        self.lock = threading.Lock()  # guards everything below
        self.changed = threading.Condition(self.lock)
        self.busy = set()  # sectors under way
        self.hold = False
        self.over = False
        self.done = 0
        self.slowest = 0.0  # seconds that a request took at most; tests may set it back
        self.errors = []
        if prefill:
            self.prefill(uri)
        self.threads = [
            threading.Thread(
                target=self.run, args=(connect(uri), test.random.getrandbits(60)), daemon=True
            )
            for _ in range(threads)
        ]
        test.cleanup.callback(self.stop, check=False)

    def prefill(self, uri):
        handle = connect(uri)
        for at in range(0, self.model.length, 1 << 20):
            length = min(1 << 20, self.model.length - at)
            handle.pwrite(self.model.write(at, length), at)
        handle.shutdown()

    def start(self):
        for thread in self.threads:
            thread.start()
        return self

    def choose(self, generator):
        length = generator.randrange(1, self.longest // SECTOR + 1)
        first = generator.randrange(0, self.model.length // SECTOR - length + 1)
        return range(first, first + length)

    def begin(self, generator):
        """Choose a request, and note it in the model: (sectors, data or None for zeroes, trim)."""
        with self.lock:
            sectors = self.choose(generator)
            while not self.over and (self.hold or not self.busy.isdisjoint(sectors)):
                self.changed.wait(0.1)
                sectors = self.choose(generator)
            if self.over:
                return None
            self.busy.update(sectors)
            at, length = sectors[0] * SECTOR, len(sectors) * SECTOR
            if generator.random() < 0.15:
                self.model.zero(at, length)
                return sectors, None
            return sectors, self.model.write(at, length)

    def run(self, handle, seed):
        generator = random.Random(seed)
        try:
            while (request := self.begin(generator)) is not None:
                sectors, data = request
                at = sectors[0] * SECTOR
                began = time.monotonic()
                if data is None:
                    handle.zero(len(sectors) * SECTOR, at)
                else:
                    handle.pwrite(data, at)
                with self.lock:
                    self.busy.difference_update(sectors)
                    self.done += 1
                    self.slowest = max(self.slowest, time.monotonic() - began)
                    self.changed.notify_all()
            handle.shutdown()
        except Exception as error:
            with self.lock:
                self.errors.append(error.with_traceback(None))  # or it would keep the handle
                self.changed.notify_all()
            hang_up(handle)

    def held(self):
        """A context in which no request is under way; gives a snapshot of the model."""
        return Held(self)

    def wait_done(self, more):
        """Wait until this many more requests were answered."""
        goal = self.done + more

        def enough():
            assert not self.errors, f"a writer failed: {self.errors}"
            return self.done >= goal

        wait_until(enough, f"{more} more requests are answered")

    def stop(self, check=True):
        with self.lock:
            self.over = True
            self.changed.notify_all()
        for thread in self.threads:
            if thread.ident and check:
                thread.join(60)
                assert not thread.is_alive(), "a writer hangs"
        assert not check or not self.errors, f"a writer failed: {self.errors}"


class Held:
    def __init__(self, writers):
        self.writers = writers

    def __enter__(self):
        writers = self.writers
        with writers.lock:
            writers.hold = True
            while writers.busy and not writers.errors:
                assert writers.changed.wait(60), "a writer's request is never answered"
            assert not writers.errors, f"a writer failed: {writers.errors}"
            return writers.model.snapshot()

    def __exit__(self, *_):
        with self.writers.lock:
            self.writers.hold = False
            self.writers.changed.notify_all()


def assert_guest_unharmed(server, writers, more=50):
    """So many more requests are answered; then the writers stop, and the disk is what they wrote."""
    writers.wait_done(more)
    writers.stop()
    handle = server.connect()
    writers.model.assert_equals(lambda at, length: handle.pread(length, at))
    handle.shutdown()


class SmallDisk:
    """A tmpfs of this many bytes, mounted at path while the test runs."""

    def __init__(self, test, name, size):
        self.path = test.path(name)
        self.path.mkdir()
        test.run("mount", "-t", "tmpfs", "-o", f"size={size}", "liveblk-test", self.path)
        test.cleanup.callback(self.unmount)

    def unmount(self):
        if self.path.is_mount():
            subprocess.run(["umount", "-l", str(self.path)], check=True, timeout=60)

    def grow(self, test, size):
        test.run("mount", "-o", f"remount,size={size}", self.path)


def same_contents(one, other):
    """Whether two files are equal, byte for byte."""
    with open(one, "rb") as a, open(other, "rb") as b:
        while True:
            left, right = a.read(1 << 20), b.read(1 << 20)
            if left != right:
                return False
            if not left:
                return True


def allocated(path):
    """Bytes a file takes on its disk."""
    return path.stat().st_blocks * 512


class Process:
    """What a server's process uses: descriptors, threads, and memory in bytes."""

    def __init__(self, pid):
        self.folder = pathlib.Path(f"/proc/{pid}")

    def descriptors(self):
        return len(os.listdir(self.folder / "fd"))

    def threads(self):
        return len(os.listdir(self.folder / "task"))

    def held(self):
        return self.descriptors(), self.threads()

    def await_rest(self, before):
        """Wait until no more is held than before, but for threads that wait for clients."""
        descriptors, threads = before
        wait_until(lambda: self.descriptors() <= descriptors and
                           self.threads() <= threads + IDLE_THREADS,
                   f"no more descriptors and threads than {before}")  # fmt: skip

    def memory(self):
        lines = (self.folder / "status").read_text().splitlines()
        (line,) = [line for line in lines if line.startswith("VmRSS:")]
        return int(line.split()[1]) << 10
