#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A real Linux guest with a file system on the served disk, and live jobs under it."""

import time

from liveblk_guest import Guest, check_crash_copy, check_final_disk
from liveblk_test import Server, main, promise

MIB = 1 << 20
LENGTH = 192 * MIB


def back_up(test, qmp, guest):
    """A backup while the guest writes."""
    image = test.path("backup.img")
    synced = guest.synced
    qmp.command("drive-backup", job_id="backup", device="vda", sync="full", format="raw",
                target=str(image), speed=4 * MIB)  # fmt: skip
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


@promise("under a Linux guest, backup and view are the disk of one moment: its file system is sound "
         "and has all that was synced", timeout=240)  # fmt: skip
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
    guest.wait_rounds(1)
    last = guest.end()
    server.stop()
    test.log(f"{time.monotonic() - began:.1f} s: the guest ended after {last} rounds")
    check_final_disk(test, disk, guest.content, last)
    for image, synced in copies:
        check_crash_copy(test, image, guest.content, synced)
    test.log(f"{time.monotonic() - began:.1f} s: checked")


main()
