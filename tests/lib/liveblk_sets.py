# SPDX-License-Identifier: BSD-3-Clause
"""What the tests of backup sets share: disks, a set of theirs, and what was in them."""

import json
import os
import tempfile

from liveblk_tracking import GRANULE, KIB, MIB, ServedDisks, choose_range, noise, read

LENGTH = 2 * MIB

# All that is made safe here would keep the test waiting for a disk, if it were on one.
tempfile.tempdir = "/dev/shm"


class World(ServedDisks):
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
        self.serve(specs, "disks")

    def write(self, count=6):
        """What a guest does: data, zeroes and discards, anywhere; data at last."""
        generator = self.test.random
        for guest in self.guests.values():
            for left in reversed(range(count)):
                at, size = choose_range(generator, guest.get_size())
                action = generator.choice((guest.pwrite, guest.pwrite, guest.zero, guest.trim))
                if action == guest.pwrite or not left:
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

    def prune(self, *words, env=None):
        self.liveblk("prune", self.set, *words, env=env)
        self.held = {backup: self.held[backup] for backup in self.ids()}

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
        granules = [contents[at : at + GRANULE] for at in range(0, len(contents), GRANULE)]
        data = sum(len(granule) for granule in granules if granule.count(0) < len(granule))
        taken = os.stat(target).st_blocks * 512
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
        backups = self.list()["backups"]
        ids = [entry["id"] for entry in backups]
        newest = max(ids)
        assert self.checkpoints() == [newest], f"{self.checkpoints()}, not {newest}"
        assert not any("session" in entry for entry in self.qmp.command("query-checkpoints"))
        assert self.qmp.command("query-views") == []
        expected = {"set.json", ".lock"} | {f"{backup}.json" for backup in ids}
        files = {path.name for path in self.set.iterdir() if path.is_file()} - {".readers"}
        assert files == expected, f"{files ^ expected} should (not) be there"
        for entry in backups:
            for disk in entry["disks"]:
                expected.add(f"{entry['id']}.{disk['format']}")
                expected.add(f"{entry['id']}.sums")
        found = {path.name for path in self.set.rglob("*") if path.is_file()} - {".readers"}
        assert found == expected, f"{found ^ expected} should (not) be there"


def damage(path, offset=None, generator=None):
    data = bytearray(path.read_bytes())
    at = generator.randrange(len(data)) if offset is None else offset
    data[at] ^= 1 << (generator.randrange(8) if generator else 3)
    path.write_bytes(data)


def damage_data(world, newest):
    """A byte that only a checksum can tell to be wrong."""
    path = world.set / "vda" / f"{newest}.qcow2"
    found = world.test.run("qemu-img", "map", "--output=json", path).stdout
    at = next(piece["offset"] for piece in json.loads(found) if piece["data"] and not piece["depth"])
    damage(path, at + 100)
    return path
