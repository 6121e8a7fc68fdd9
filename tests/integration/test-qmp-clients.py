#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Clients made with QEMU's Python package for QMP: what qmpbackup and qmp-shell send, as they send it.

Both are not to be had from Debian. The requests of qmpbackup are those that were recorded when it ran
against QEMU.
"""

from liveblk_front_ends import Daemon, nbd_server
from liveblk_load import SECTOR, Writers
from liveblk_test import Qmp, QmpError, Server, connect, main, promise

MIB = 1 << 20
LENGTH = 16 * MIB
UUID = "0b6c3a52-55b1-4d5a-8d52-3d0ad09b6f10"


class QemuQmp(Qmp):
    """As that package speaks: it wants the version, enables oob, numbers its requests in strings that
    must come back, and ends none with a newline."""

    def __init__(self, test, path):
        super().__init__(path, negotiate=False)
        test.cleanup.callback(self.close)
        assert isinstance(self.greeting["version"]["qemu"]["major"], int), self.greeting
        assert "oob" in self.greeting["capabilities"], self.greeting
        assert self.command("qmp_capabilities", enable=["oob"]) == {}

    def command_raw(self, name, arguments=None):
        self.next_id += 1
        message = {"execute": name, "arguments": arguments, "id": f"__qmp#{self.next_id:05}"}
        if not arguments:
            del message["arguments"]
        answer = self.request(message)
        assert answer["id"] == message["id"], answer
        if "error" in answer:
            raise QmpError(answer["error"], name)
        return answer["return"]


def make_image(test, name, *options):
    path = test.path(name)
    test.run("qemu-img", "create", "-q", "-f", "qcow2", *options, path, LENGTH)
    return path


def action(name, /, **data):
    return {"type": name, "data": {key.replace("_", "-"): value for key, value in data.items()}}


def node_names(qmp):
    return {entry["node-name"] for entry in qmp.command("query-named-block-nodes")}


class AreaWriters(Writers):
    """Writers that keep to an eighth of the disk, `area`."""

    area = 0

    def choose(self, generator):
        sectors = super().choose(generator)
        size = self.model.length // SECTOR // 8
        first = self.area * size + sectors[0] % (size - len(sectors) + 1)
        return range(first, first + len(sectors))


# ---- qmpbackup -----------------------------------------------------------------------------------


class QmpBackup:
    """One run of qmpbackup for a server's only disk, in the steps that were recorded."""

    def __init__(self, test, admin):
        self.test = test
        self.qmp = QemuQmp(test, admin)
        status = self.qmp.command("query-status")
        assert status["running"] is True and status["status"] == "running", status
        assert "name" not in (name := self.qmp.command("query-name")) or name["name"]
        assert self.qmp.command("query-tpm") == []
        (entry,) = [entry for entry in self.qmp.command("query-block") if "inserted" in entry]
        disk = entry["inserted"]
        self.nodes = node_names(self.qmp)
        self.qdev, self.node = entry["qdev"], disk["node-name"]
        assert entry["device"] and disk["drv"] == disk["image"]["format"] == "qcow2", entry
        assert disk["image"]["virtual-size"] == LENGTH and disk["image"]["filename"], entry
        self.bitmaps = [bitmap["name"] for bitmap in disk.get("dirty-bitmaps", [])]
        self.bitmap = f"qmpbackup-{UUID}"
        self.target, self.fleece, self.filter, self.snapshot = (
            f"qmpbackup-{self.node}{end}" for end in ("", "-fleece", "-cbw", "-snap")
        )

    def add_images(self, path):
        """The client has made the files."""
        for node, file in ((self.target, path),
                           (self.fleece, make_image(self.test, f"{path.stem}.fleece"))):  # fmt: skip
            self.qmp.command("blockdev-add", driver="qcow2", node_name=node,
                             file={"driver": "file", "filename": str(file),
                                   "aio": "threads"})  # fmt: skip

    def add_filter(self, **bitmap):
        self.qmp.command("blockdev-add", driver="copy-before-write", node_name=self.filter,
                         file=self.node, target=self.fleece, on_cbw_error="break-snapshot",
                         cbw_timeout=45, **bitmap)  # fmt: skip

    def move_device(self, node):
        self.qmp.command("qom-set", path=self.qdev, property="drive", value=node)

    def add_snapshot(self):
        self.qmp.command("blockdev-add", driver="snapshot-access", node_name=self.snapshot,
                         file=self.filter)  # fmt: skip

    def backup_action(self, job, **options):
        return action("blockdev-backup", device=self.snapshot, target=self.target, job_id=job,
                      speed=0, compress=False, **options)  # fmt: skip

    def full_actions(self, job):
        return [
            action("block-dirty-bitmap-add", node=self.node, name=self.bitmap, persistent=True),
            self.backup_action(job, sync="full"),
        ]

    def incremental_actions(self, job):
        source = {"node": self.node, "name": self.bitmap}
        return [
            action("block-dirty-bitmap-add", node=self.snapshot, name=self.bitmap),
            action("block-dirty-bitmap-merge", node=self.snapshot, target=self.bitmap,
                   bitmaps=[source]),
            self.backup_action(job, sync="incremental", bitmap=self.bitmap),
            action("block-dirty-bitmap-clear", **source),
        ]  # fmt: skip

    def wait(self, job):
        """Ask how far it is until an event says that it is over."""
        while not any(event["event"].startswith("BLOCK_JOB_") for event in self.qmp.events):
            for entry in self.qmp.command("query-block-jobs"):
                assert entry["device"] == job and entry["offset"] <= entry["len"], entry
                assert entry["status"] in ("running", "waiting", "pending", "concluded"), entry
        event = self.qmp.wait_event("BLOCK_JOB_COMPLETED", device=job)
        assert "error" not in event["data"], event
        return event["data"]["len"]

    def clean_up(self):
        self.qmp.command("blockdev-del", node_name=self.snapshot)
        self.move_device(self.node)
        for node in (self.filter, self.target, self.fleece):
            self.qmp.command("blockdev-del", node_name=node)
        assert node_names(self.qmp) == self.nodes
        self.qmp.close()

    def run(self, path, writers, incremental):
        """Returns what the disk was in that moment, and the length of the job.

        The guest's file systems are frozen from before the filter is made until the job has begun:
        of what was written meanwhile, the filter and the bitmap would not know the same.
        """
        assert (self.bitmap in self.bitmaps) == incremental, self.bitmaps
        job = f"qmpbackup.{self.node}.{path.name}"
        self.add_images(path)
        writers.wait_done(20)
        with writers.held() as moment:
            source = {"node": self.node, "name": self.bitmap}
            self.add_filter(**({"bitmap": source} if incremental else {}))
            self.move_device(self.filter)
            self.add_snapshot()
            actions = (self.incremental_actions if incremental else self.full_actions)(job)
            self.qmp.command("transaction", actions=actions)
        length = self.wait(job)
        writers.wait_done(20)
        self.clean_up()
        return moment, length


def check_backups(test, paths, moments):
    """Each restored with those before it is the disk of its moment."""
    for number, (path, moment) in enumerate(zip(paths, moments)):
        if number:
            test.run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b",
                     paths[number - 1], path)  # fmt: skip
        test.run("qemu-img", "check", "-q", path)
        restored = test.path("restored.raw")
        test.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, restored)
        moment.assert_equals_file(restored)


@promise("what qmpbackup sends makes a full and two incremental backups under writers, the last after "
         "a restart, and each is the disk of its moment")  # fmt: skip
def qmpbackup(test):
    disk = make_image(test, "disk.qcow2")
    spec = f"name=vda,node-name=disk,file={disk},format=qcow2,discard=unmap"
    server = Server(test, [spec])
    paths = [make_image(test, name) for name in ("FULL-1", "INC-1", "INC-2")]
    writers = AreaWriters(test, server.uri(), LENGTH, threads=3).start()
    full, length = QmpBackup(test, server.admin).run(paths[0], writers, incremental=False)
    assert length == LENGTH
    writers.area = 3
    first, length = QmpBackup(test, server.admin).run(paths[1], writers, incremental=True)
    assert 0 < length <= LENGTH // 4, "what was written was in two eighths"
    writers.area = 6
    writers.wait_done(20)
    writers.stop()
    server.stop()
    server = Server(test, [spec], name="again")
    again = AreaWriters(test, server.uri(), LENGTH, threads=2, prefill=False)
    again.model, again.area = writers.model.snapshot(), 7
    again.start()
    second, length = QmpBackup(test, server.admin).run(paths[2], again, incremental=True)
    assert 0 < length <= 3 * LENGTH // 8, "what was written was in three eighths"
    again.stop()
    server.stop()
    check_backups(test, paths, [full, first, second])
    check_backups(test, [disk], [again.model])


@promise("an incremental backup of qmpbackup's with nothing to copy is one, too")
def nothing(test):
    disk = make_image(test, "disk.qcow2")
    server = Server(test, [f"name=vda,node-name=disk,file={disk},format=qcow2"])
    writers = Writers(test, server.uri(), LENGTH, threads=1)
    moments = []
    paths = [make_image(test, name) for name in ("FULL-1", "INC-1")]
    writers.wait_done = lambda count: None  # nobody writes
    for path in paths:
        moment, length = QmpBackup(test, server.admin).run(path, writers, incremental=bool(moments))
        moments.append(moment)
    assert length == 0
    check_backups(test, paths, moments)


# ---- qmp-shell -----------------------------------------------------------------------------------


class Shell(QemuQmp):
    """qmp-shell asks for the commands, which it completes, before it lets anybody type."""

    def __init__(self, test, admin):
        super().__init__(test, admin)
        self.names = {entry["name"] for entry in self.command("query-commands")}

    def type(self, line):
        """`COMMAND KEY=VALUE KEY.KEY=VALUE ...`"""
        name, *words = line.split()
        assert name in self.names, f"{name} could not be completed"
        return self.command_raw(name, self.parse(words))

    def parse(self, words):
        arguments = {}
        for word in words:
            key, value = word.split("=", 1)
            *path, last = key.split(".")
            place = arguments
            for part in path:
                place = place.setdefault(part, {})
            place[last] = {"true": True, "false": False}.get(value, value)
        return arguments

    def transact(self, *lines):
        """`transaction(`, lines, and `)`."""
        actions = []
        for line in lines:
            name, *words = line.split()
            actions.append({"type": name, "data": self.parse(words)})
        assert self.command_raw("transaction", {"actions": actions}) == {}

    def wait_job(self, job):
        event = self.wait_event("BLOCK_JOB_COMPLETED", device=job)
        assert "error" not in event["data"], event


def drive_backup(test, shell, guest, device):
    """A full backup and an incremental one, from the first line to the last."""
    full, more = make_image(test, "full.qcow2"), test.path("more.qcow2")
    nodes = node_names(shell)
    shell.type(f"blockdev-add driver=qcow2 node-name=t0 file.driver=file file.filename={full}")
    first = b"1" * MIB
    guest.pwrite(first, 0)
    shell.transact(
        f"block-dirty-bitmap-add node={device} name=daily",
        f"blockdev-backup device={device} target=t0 sync=full job-id=full auto-finalize=true",
    )
    guest.pwrite(b"2" * 65536, 3 * MIB)
    shell.wait_job("full")
    shell.type("blockdev-del node-name=t0")
    test.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", full, "-F", "qcow2", more)
    shell.type(f"blockdev-add driver=qcow2 node-name=t1 file.driver=file file.filename={more}")
    shell.transact(
        f"blockdev-backup device={device} target=t1 sync=incremental bitmap=daily job-id=more",
        f"block-dirty-bitmap-add node={device} name=weekly persistent=false",
    )
    guest.pwrite(b"3" * 65536, 4 * MIB)
    shell.wait_job("more")
    shell.type("blockdev-del node-name=t1")
    for name in ("daily", "weekly"):
        shell.type(f"block-dirty-bitmap-remove node={device} name={name}")
    try:
        shell.transact(f"block-dirty-bitmap-clear node={device} name=none")
        raise AssertionError("a bitmap that is not there was cleared")
    except QmpError as error:
        assert "none" in error.desc, error
    assert node_names(shell) == nodes
    for path, second in ((full, bytes(65536)), (more, b"2" * 65536)):
        test.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, test.path("flat"))
        data = first + bytes(2 * MIB) + second
        assert test.path("flat").read_bytes() == data + bytes(LENGTH - len(data)), path


@promise("what qmp-shell sends, with transactions, drives backups of a plugin's disk")
def shell_with_plugin(test):
    disk = test.make_disk("disk.img", LENGTH)
    server = Server(test, [f"name=vda,file={disk},format=raw"])
    guest = connect(server.uri())
    drive_backup(test, Shell(test, server.admin), guest, "vda")
    guest.shutdown()
    server.stop()


@promise("what qmp-shell sends, with transactions, drives backups of the storage daemon's disk")
def shell_with_daemon(test):
    disk = make_image(test, "disk.qcow2")
    daemon = Daemon(
        test, "--blockdev", f"qcow2,node-name=disk,file.driver=file,file.filename={disk}",
        *nbd_server(test), "--export", "nbd,id=e,node-name=disk,writable=on",
    )  # fmt: skip
    guest = daemon.connect("disk")
    shell = Shell(test, daemon.admin)
    drive_backup(test, shell, guest, "disk")
    guest.shutdown()
    assert shell.type("quit") == {}
    daemon.ended()


main()
