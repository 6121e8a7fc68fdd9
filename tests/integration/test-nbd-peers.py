#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""QEMU as the other end of our NBD server: as one moves disks to the other and back."""

from liveblk_load import Writers
from liveblk_test import Qmp, Server, main, promise, wait_until

MIB = 1 << 20
LENGTH = 8 * MIB


class Qemu:
    """A storage daemon with a writable export of `disk`, and room for what is moved to it."""

    def __init__(self, test):
        self.admin, self.nbd = test.path("qemu.qmp"), test.path("qemu.nbd")
        self.disk, self.room = test.make_disk("qemu.img", LENGTH), test.path("qemu.qcow2")
        test.run("qemu-img", "create", "-q", "-f", "qcow2", self.room, LENGTH)
        test.start(
            "qemu-storage-daemon",
            "--chardev", f"socket,id=qmp,path={self.admin},server=on,wait=off",
            "--monitor", "chardev=qmp",
            "--blockdev", f"driver=raw,node-name=disk,file.driver=file,file.filename={self.disk}",
            "--blockdev", f"driver=qcow2,node-name=room,discard=unmap,file.driver=file,"
                          f"file.filename={self.room}",
            "--nbd-server", f"addr.type=unix,addr.path={self.nbd}",
            "--export", "type=nbd,id=disk,node-name=disk,writable=on",
            "--export", "type=nbd,id=room,node-name=room,writable=on",
        )  # fmt: skip
        wait_until(lambda: self.admin.exists() and self.nbd.exists(), "QEMU listens")
        self.qmp = Qmp(self.admin)
        test.cleanup.callback(self.qmp.close)

    def uri(self, export):
        return f"nbd+unix:///{export}?socket={self.nbd}"


class Ours:
    """Our server with a disk `vda` and NBD exports of it and of a node `room`."""

    def __init__(self, test):
        self.disk, self.room = test.make_disk("ours.img", LENGTH), test.path("ours.qcow2")
        test.run("qemu-img", "create", "-q", "-f", "qcow2", self.room, LENGTH)
        self.server = Server(test, [f"name=vda,file={self.disk},format=raw"])
        self.qmp = self.server.qmp()
        self.nbd = test.path("ours.nbd")
        self.qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": str(self.nbd)}})
        self.qmp.command_raw("blockdev-add", {
            "driver": "qcow2", "node-name": "room", "discard": "unmap",
            "file": {"driver": "file", "filename": str(self.room)},
        })  # fmt: skip
        for name in ("vda", "room"):
            self.qmp.command_raw("block-export-add", {"type": "nbd", "id": name, "node-name": name,
                                                      "writable": True})  # fmt: skip

    def uri(self, export):
        return f"nbd+unix:///{export}?socket={self.nbd}"


def mirror(one, device, other, mode):
    """Let `one` mirror a disk to the `room` of the other, up to where both are in step."""
    one.qmp.command_raw("blockdev-add", {
        "driver": "nbd", "node-name": "there", "export": "room",
        "server": {"type": "unix", "path": str(other.nbd)},
    })  # fmt: skip
    one.qmp.command_raw("blockdev-mirror", {"job-id": "move", "device": device, "target": "there",
                                            "sync": "full", "copy-mode": mode})  # fmt: skip


@promise("QEMU mirrors a disk that is written to our NBD export while we mirror ours to QEMU's")
def both_ways(test):
    qemu, ours = Qemu(test), Ours(test)
    theirs_load = Writers(test, qemu.uri("disk"), LENGTH, threads=2)
    ours_load = Writers(test, ours.uri("vda"), LENGTH, threads=2)
    theirs_load.start()
    ours_load.start()
    mirror(qemu, "disk", ours, "write-blocking")
    mirror(ours, "vda", qemu, "write-blocking")
    qemu.qmp.wait_event("BLOCK_JOB_READY", device="move")
    ours.qmp.wait_event("BLOCK_JOB_READY", device="move")
    for load in (theirs_load, ours_load):
        load.wait_done(100)
    ours.qmp.command("block-job-complete", device="move")
    ours.qmp.wait_event("BLOCK_JOB_COMPLETED", device="move")
    ours_load.wait_done(50)  # on our export, which shows what QEMU serves now
    theirs_load.stop()
    ours_load.stop()
    qemu.qmp.command("block-job-cancel", device="move")  # the copy is left as it is
    assert "error" not in qemu.qmp.wait_event("BLOCK_JOB_COMPLETED", device="move")["data"]
    qemu.qmp.command("quit")
    ours.server.stop()
    for load, image in ((theirs_load, ours.room), (ours_load, qemu.room)):
        flat = test.path("flat")
        test.run("qemu-img", "check", "-q", image)
        test.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, flat)
        load.model.assert_equals_file(flat)



if __name__ == "__main__":
    main()
