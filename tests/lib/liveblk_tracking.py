# SPDX-License-Identifier: BSD-3-Clause
"""A tracked disk, its backups, and a guest that does not stop when the server is killed."""

import itertools
import pathlib
import random
import struct
import threading
import zlib

from liveblk_test import Server, connect, wait_until

KIB = 1 << 10
MIB = 1 << 20
GRANULE = 64 * KIB
NOISE = random.Random(1).randbytes(2 * MIB)


def action(type_, **data):
    return {"type": type_, "data": {key.replace("_", "-"): data[key] for key in data}}


def noise(generator, length):
    """Bytes that are hardly ever the same."""
    start = generator.randrange(MIB)
    return NOISE[start : start + length]


def choose_range(generator, length):
    """An offset and a number of bytes: mostly few, in whole sectors."""
    most = generator.choice((512, 4 * KIB, 4 * KIB, 96 * KIB, 512 * KIB))
    size = generator.randrange(512, most + 1, 512)
    return generator.randrange(0, length - size + 1, 512), size


def read(handle):
    """All of a disk."""
    length = handle.get_size()
    return b"".join(handle.pread(min(MIB, length - at), at) for at in range(0, length, MIB))


def drop_unsynced(path, generator, chance=1.0):
    """What a loss of power may leave of a tracking file whose server was killed.

    The values of granules of active extents are gone, each with this chance: all of those extents
    count as changed.
    """
    contents = bytearray(pathlib.Path(path).read_bytes())
    header = max((0, 4096), key=lambda at: struct.unpack_from("<Q", contents, at + 24))
    length, granule, extent, slots = struct.unpack_from("<QIII", contents, header + 48)
    (map_offset,) = struct.unpack_from("<Q", contents, header + 72)
    for slot in range(slots):
        at = 12288 + slot // 60 * 512 + 24 + slot % 60 * 8
        (active,) = struct.unpack_from("<Q", contents, at)
        first = active << extent - granule
        end = min((active + 1) << extent - granule, -(-length >> granule))
        for value in range(map_offset + 2 * first, map_offset + 2 * end, 2):
            if chance == 1.0 or generator.random() < chance:
                contents[value : value + 2] = bytes(2)
    for at in (0, 4096):
        contents[at + 112 : at + 128] = generator.randbytes(16)  # the boot
        contents[at + 12 : at + 16] = bytes(4)
        checksum = zlib.crc32(contents[at : at + 4096])
        contents[at + 12 : at + 16] = checksum.to_bytes(4, "little")
    with open(path, "r+b") as file:
        file.write(contents)


class ServedDisks:
    """Disks of a server, each with a guest, that can be ended in two ways and started again.

    names: theirs; the test is another member.
    """

    def serve(self, specs, name):
        self.server = Server(self.test, specs, name=name)
        self.qmp = self.server.qmp()
        self.guests = {disk: self.server.connect(disk) for disk in self.names}

    def stop(self):
        for guest in self.guests.values():
            guest.shutdown()
        self.qmp.close()
        self.server.stop()

    def kill(self):
        self.server.kill()
        self.qmp.close()


class TrackedDisk:
    """The disk vda of a server that can be ended in two ways and started again."""

    def __init__(self, test, length=8 * MIB, kind="raw", name="disk", options=""):
        self.test = test
        self.name = name
        self.path = test.path(f"{name}.{kind}")
        self.tracking = pathlib.Path(f"{self.path}.tracking")
        self.spec = (
            f"name=vda,file={self.path},format={kind},discard=unmap,tracking=auto{options}"
        )
        self.jobs = (f"backup{number}" for number in itertools.count())
        test.run("qemu-img", "create", "-q", "-f", kind, self.path, length)
        self.start()

    def start(self):
        self.server = Server(self.test, [self.spec], name=self.name)
        self.qmp = self.server.qmp()
        self.guest = self.server.connect()

    def reconnect(self):
        """See the length the disk has now."""
        self.guest.shutdown()
        self.guest = self.server.connect()

    def stop(self):
        self.guest.shutdown()
        self.qmp.close()
        self.server.stop()

    def kill(self):
        self.server.kill()
        self.qmp.close()

    def lose_power(self):
        """After a kill: the host was restarted, and of the map only what had to be durable is left."""
        drop_unsynced(self.tracking, self.test.random)

    def restart(self):
        self.stop()
        self.start()

    def read(self, guest=None):
        return read(guest or self.guest)

    def info(self):
        (info,) = self.qmp.command("query-block-tracking")
        return info

    def checkpoint(self, name):
        """What query-block-tracking says of it, or None."""
        found = [entry for entry in self.info()["checkpoints"] if entry["name"] == name]
        return found[0] if found else None

    def add(self, name):
        self.qmp.command("block-checkpoint-add", device="vda", name=name)

    def remove(self, name):
        self.qmp.command("block-checkpoint-remove", device="vda", name=name)

    def begin_backup(self, target, kind="raw", since=None, add=None, **options):
        """Start one, of the moment of the new checkpoint `add`; returns the job's ID."""
        job = next(self.jobs)
        if since:
            options["since"] = since
        actions = [action("block-checkpoint-add", device="vda", name=add)] if add else []
        actions.append(action(
            "drive-backup", job_id=job, device="vda", target=str(target), format=kind,
            mode="existing", sync="incremental" if since else "full", **options,
        ))  # fmt: skip
        self.qmp.command("transaction", actions=actions)
        return job

    def end_backup(self, job):
        event = self.qmp.wait_event("BLOCK_JOB_COMPLETED", device=job)
        assert "error" not in event["data"], event
        self.qmp.wait_job(job, "null")
        return event["data"]["len"]

    def backup(self, target, **options):
        """The same to its end; returns how many bytes there were to copy."""
        return self.end_backup(self.begin_backup(target, **options))

    def full_backup(self, name, add):
        """Into a new raw file."""
        target = self.test.make_disk(name, self.guest.get_size())
        self.backup(target, add=add)
        return target


class Load:
    """Threads that write, zero and trim until they are told to end, or the server is gone."""

    def __init__(self, test, uri, threads=3):
        self.over = False
        self.done = 0
        self.threads = [
            threading.Thread(
                target=self.run, args=(connect(uri), test.random.getrandbits(60)), daemon=True
            )
            for _ in range(threads)
        ]
        for thread in self.threads:
            thread.start()

    def run(self, handle, seed):
        generator = random.Random(seed)
        length = handle.get_size()
        try:
            while not self.over:
                at, size = choose_range(generator, length)
                kind = generator.random()
                if kind < 0.1:
                    handle.zero(size, at)
                elif kind < 0.2:
                    handle.trim(size, at)
                else:
                    handle.pwrite(noise(generator, size), at)
                self.done += 1
            handle.shutdown()
        except Exception:  # it was killed
            pass

    def wait_done(self, more):
        goal = self.done + more
        wait_until(lambda: self.done >= goal, "the guest goes on")

    def end(self):
        self.over = True
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive(), "a request hangs"
