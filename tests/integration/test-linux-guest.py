#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A real Linux guest with a file system on the served disk, and live jobs under it."""

import hashlib
import time

from liveblk_guest import Guest, check_crash_copy, check_final_disk
from liveblk_test import Server, main, promise

MIB = 1 << 20
LENGTH = 192 * MIB
SLOW = 64 << 10  # bytes a second: the guest goes several rounds meanwhile


def back_up(test, qmp, guest):
    """A backup while the guest writes."""
    image = test.path("backup.img")
    synced = guest.synced
    qmp.command("drive-backup", job_id="backup", device="vda", sync="full", format="raw",
                target=str(image), speed=SLOW)  # fmt: skip
    guest.wait_rounds(6)
    assert qmp.command("query-block-jobs"), "the guest did not get to write during the backup"
    qmp.command("block-job-set-speed", device="backup", speed=0)
    event = qmp.wait_event("BLOCK_JOB_COMPLETED", device="backup")
    assert "error" not in event["data"], event
    return image, synced


def pull_view(test, server, qmp, guest):
    """A view of one instant, pulled at once and once more when the guest has gone on."""
    image, again = test.path("view.img"), test.path("view-again.img")
    synced = guest.synced
    qmp.command("view-create", name="now", devices=["vda"], scratch=str(test.directory))
    test.run("nbdcopy", server.uri("vda@now"), image)
    guest.wait_rounds(6)
    test.run("nbdcopy", server.uri("vda@now"), again)
    test.run("cmp", image, again)
    qmp.command("view-drop", name="now")
    return image, synced


def move(test, qmp, guest):
    """Mirror the disk and switch the guest over to the copy: (copy, round synced before)."""
    image = test.path("moved.img")
    qmp.command("drive-mirror", job_id="move", device="vda", sync="full", format="raw",
                target=str(image), speed=SLOW)  # fmt: skip
    guest.wait_rounds(6)
    qmp.command("block-job-set-speed", device="move", speed=0)
    qmp.wait_event("BLOCK_JOB_READY", device="move")
    guest.wait_rounds(3)
    synced = guest.synced
    qmp.command("job-complete", _id="move")
    event = qmp.wait_event("BLOCK_JOB_COMPLETED", device="move")
    assert "error" not in event["data"], event
    return image, synced


def checksum(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@promise("under a Linux guest, backup and view are the disk of one moment with a sound file system "
         "and all that was synced, and it can be moved to another disk", timeout=240)  # fmt: skip
def linux_guest(test):
    began = time.monotonic()
    disk = test.make_disk("disk.img", LENGTH)
    server = Server(test, [f"name=vda,file={disk},format=raw"])
    qmp = server.qmp()
    guest = Guest(test, server.nbd, "vda")
    guest.wait_rounds(5)
    test.log(f"{time.monotonic() - began:.1f} s: the guest writes")
    copies = [back_up(test, qmp, guest), pull_view(test, server, qmp, guest)]
    test.log(f"{time.monotonic() - began:.1f} s: backed up and pulled")
    moved, synced = move(test, qmp, guest)
    left = checksum(disk)
    copies.append((disk, synced))
    test.log(f"{time.monotonic() - began:.1f} s: moved")
    guest.wait_rounds(6)
    last = guest.end()
    server.stop()
    test.log(f"{time.monotonic() - began:.1f} s: the guest ended after {last} rounds")
    assert checksum(disk) == left, "the disk that the guest has left was written"
    check_final_disk(test, moved, guest.content, last)
    for image, synced in copies:
        check_crash_copy(test, image, guest.content, synced)
    test.log(f"{time.monotonic() - began:.1f} s: checked")


def snapshot(test, qmp, name):
    path = test.path(name + ".qcow2")
    qmp.command("blockdev-snapshot-sync", device="vda", snapshot_file=str(path))
    return path


def serve_ourselves(test, qmp):
    """The socket of our own NBD server, with the disk."""
    socket = test.path("own.nbd")
    qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": str(socket)}})
    qmp.command_raw("block-export-add", {"type": "nbd", "id": "vda", "node-name": "vda",
                                         "writable": True})  # fmt: skip
    return socket


def run_under_guest(qmp, guest, command, **arguments):
    """A job that takes as long as the guest needs for some rounds."""
    qmp.command(command, job_id="job", device="vda", speed=SLOW, **arguments)
    guest.wait_rounds(4)
    assert qmp.command("query-block-jobs"), "the guest did not get to write during the job"
    qmp.command("block-job-set-speed", device="job", speed=0)


def wait_completed(qmp):
    event = qmp.wait_event("BLOCK_JOB_COMPLETED", device="job")
    assert "error" not in event["data"], event
    qmp.wait_job("job", "null")


@promise("a Linux guest on our own NBD server goes through snapshots, a stream and the commit of its "
         "image, and each image it has left is the disk of one moment", timeout=240)  # fmt: skip
def linux_guest_on_chain(test):
    disk = test.make_disk("base.img", LENGTH)
    server = Server(test, [f"name=vda,file={disk},format=raw"])
    qmp = server.qmp()
    guest = Guest(test, serve_ourselves(test, qmp), "vda")
    guest.wait_rounds(5)

    synced = guest.synced
    snapshot(test, qmp, "one")
    left = test.path("left.img")
    test.run("cp", "--sparse=always", disk, left)
    guest.wait_rounds(4)
    two_synced = guest.synced
    snapshot(test, qmp, "two")
    two = test.path("two.img")
    test.run("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", test.path("one.qcow2"), two)
    guest.wait_rounds(2)

    run_under_guest(qmp, guest, "block-stream", base=str(disk))
    wait_completed(qmp)
    snapshot(test, qmp, "three")
    guest.wait_rounds(2)
    run_under_guest(qmp, guest, "block-commit")
    qmp.wait_event("BLOCK_JOB_READY", device="job")
    guest.wait_rounds(2)
    qmp.command("job-complete", _id="job")
    wait_completed(qmp)
    assert qmp.command("query-block")[0]["inserted"]["backing_file_depth"] == 0
    guest.wait_rounds(3)

    last = guest.end()
    server.stop()
    check_final_disk(test, disk, guest.content, last)
    check_crash_copy(test, left, guest.content, synced)
    check_crash_copy(test, two, guest.content, two_synced)
    for name in ("one", "two", "three"):
        test.run("qemu-img", "check", "-q", test.path(name + ".qcow2"))


main()
