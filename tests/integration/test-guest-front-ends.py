#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A real Linux guest on the front ends that need no nbdkit, with a qcow2 image."""

import time

from liveblk_front_ends import FRONT_ENDS
from liveblk_guest import Guest, check_crash_copy, check_final_disk
from liveblk_test import main, promise

MIB = 1 << 20
LENGTH = 192 * MIB
SLOW = 64 << 10  # bytes a second: the guest goes several rounds meanwhile


class Machine:
    """A guest that has begun to write to an image that a front end serves."""

    def __init__(self, test, front_end):
        self.test = test
        self.began = time.monotonic()
        self.image = make_image(test, "disk.qcow2")
        self.served = FRONT_ENDS[front_end](test, self.image, "qcow2", "server")
        self.guest = Guest(test, self.served.path, "disk")
        self.guest.wait_rounds(5)
        self.log("the guest writes")

    def log(self, text):
        self.test.log(f"{time.monotonic() - self.began:.1f} s: {text}")

    def end(self):
        """The guest unmounts and ends, the server ends; what is left is checked."""
        last = self.guest.end()
        self.served.stop()
        self.log(f"the guest ended after {last} rounds")
        check_final_disk(self.test, flatten(self.test, self.image), self.guest.content, last)
        self.log("checked")


def make_image(test, name):
    path = test.path(name)
    test.run("qemu-img", "create", "-q", "-f", "qcow2", path, LENGTH)
    return path


def flatten(test, image):
    """QEMU's own view of an image that is sound."""
    flat = test.path(f"{image.stem}.raw")
    test.run("qemu-img", "check", "-q", image)
    test.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, flat)
    return flat


@promise("a Linux guest on liveblk-nbd leaves a sound file system, with all it wrote, in a sound image",
         timeout=240)  # fmt: skip
def on_liveblk_nbd(test):
    machine = Machine(test, "liveblk-nbd")
    machine.guest.wait_rounds(8)
    machine.end()


def back_up(test, machine, qmp, **options):
    """A backup while the guest writes: (image, round that was synced before)."""
    image = make_image(test, "backup.qcow2")
    qmp.command("blockdev-add", driver="qcow2", node_name="target", discard="unmap",
                file={"driver": "file", "filename": str(image)})  # fmt: skip
    synced = machine.guest.synced
    qmp.command("blockdev-backup", job_id="backup", device="node", target="target", sync="full",
                speed=SLOW, **options)  # fmt: skip
    machine.guest.wait_rounds(6)
    assert qmp.command("query-block-jobs"), "the guest did not get to write during the backup"
    qmp.command("block-job-set-speed", device="backup", speed=0)
    event = qmp.wait_event("BLOCK_JOB_COMPLETED", device="backup")
    assert "error" not in event["data"], event
    qmp.command("blockdev-del", node_name="target")
    return image, synced


@promise("a Linux guest on liveblk-storage-daemon is backed up over QMP as it was at one moment, and "
         "leaves all it wrote", timeout=240)  # fmt: skip
def on_storage_daemon(test):
    machine = Machine(test, "liveblk-storage-daemon")
    qmp = machine.served.server.qmp()
    copy, synced = back_up(test, machine, qmp)
    machine.log("backed up")
    machine.guest.wait_rounds(3)
    qmp.close()
    machine.end()
    check_crash_copy(test, flatten(test, copy), machine.guest.content, synced)


main()
