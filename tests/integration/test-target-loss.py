#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Backups to NBD targets that die, come back, stall, are slow or refuse."""

import os
import signal
import time

from liveblk_load import Writers, assert_guest_unharmed
from liveblk_test import Server, main, promise, start_copy, wait_until

MIB = 1 << 20


def world(test, length=16 * MIB, far=True, **filters):
    """A served disk under writers and an NBD target: (server, qmp, writers, target's file)."""
    server = Server(test, [test.make_disk("disk.img", length)])
    writers = Writers(test, server.uri(), length, threads=3).start()
    return server, server.qmp(), writers, test.make_disk("far.img", length)


def start_far(test, image, nbdkit=(), parameters=()):
    return Server(test, plugin="file", parameters=[image, *parameters], nbdkit=nbdkit, name="far")


def add_far(qmp, far, **options):
    arguments = {"driver": "nbd", "node-name": "t",
                 "server": {"type": "unix", "path": str(far.nbd)}}  # fmt: skip
    arguments.update({key.replace("_", "-"): value for key, value in options.items()})
    qmp.command_raw("blockdev-add", arguments)


def start(qmp, writers, **options):
    """Start a backup to the target in a moment; returns the model of the moment."""
    with writers.held() as moment:
        start_copy(qmp, "blockdev-backup", "j", "t", **options)
    return moment


def wait_progress(qmp, bytes_done):
    def enough():
        jobs = qmp.command("query-block-jobs")
        assert jobs, "the job has ended"
        return jobs[0]["offset"] >= bytes_done

    wait_until(enough, "some of the backup is done")


def wait_failed(qmp):
    event = qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")["data"]
    assert event["error"], event
    wait_until(lambda: not qmp.command("query-jobs"), "the job is gone")
    qmp.command("blockdev-del", node_name="t")
    return event["error"]


@promise("a target killed in the middle fails the backup with a clear error; the guest goes on")
def killed(test):
    server, qmp, writers, image = world(test)
    far = start_far(test, image)
    add_far(qmp, far)
    start(qmp, writers, speed=4 * MIB)
    wait_progress(qmp, 2 * MIB)
    far.kill()
    test.log(wait_failed(qmp))
    assert_guest_unharmed(server, writers)


# A killed server may have lost what it had not flushed, so the flush at the end fails: the copy is
# whole here, but only because the server's kernel lived on, which nobody can know from afar.
NOT_SURE = "Could not flush target node 't'"


@promise("with reconnect-delay a backup outlives its target's restart, but what the target may have "
         "lost is not called a success")  # fmt: skip
def restarted(test):
    server, qmp, writers, image = world(test)
    far = start_far(test, image)
    add_far(qmp, far, reconnect_delay=30)
    moment = start(qmp, writers, speed=4 * MIB, cbw_timeout=0)
    wait_progress(qmp, 2 * MIB)
    far.kill()
    qmp.command("query-block")
    start_far(test, image)
    qmp.command("block-job-set-speed", device="j", speed=0)
    assert NOT_SURE in wait_failed(qmp)
    moment.assert_equals_file(image)
    assert_guest_unharmed(server, writers)


@promise("with reconnect-delay a target that stays away fails the backup when the delay is over")
def stays_away(test):
    server, qmp, writers, image = world(test)
    far = start_far(test, image)
    add_far(qmp, far, reconnect_delay=1)
    start(qmp, writers, speed=4 * MIB)
    wait_progress(qmp, 2 * MIB)
    far.kill()
    test.log(wait_failed(qmp))
    assert_guest_unharmed(server, writers)


@promise("with on-target-error=stop a lost target pauses the backup, which can be resumed when the "
         "target is back")  # fmt: skip
def stops_and_resumes(test):
    server, qmp, writers, image = world(test)
    far = start_far(test, image)
    add_far(qmp, far)
    moment = start(qmp, writers, speed=4 * MIB, on_target_error="stop", cbw_timeout=0)
    wait_progress(qmp, 2 * MIB)
    far.kill()
    assert qmp.wait_event("BLOCK_JOB_ERROR", device="j")["data"]["action"] == "stop"
    wait_until(lambda: qmp.command("query-jobs")[0]["status"] == "paused", "it is paused")
    start_far(test, image)
    qmp.command("block-job-set-speed", device="j", speed=0)

    def ended():
        qmp.command("query-status")
        for event in qmp.events:
            if event["event"] == "BLOCK_JOB_COMPLETED":
                return event
        jobs = qmp.command("query-block-jobs")
        if jobs and jobs[0]["status"] == "paused":
            qmp.command("block-job-resume", device="j")
        return None

    event = wait_until(ended, "the backup ends")
    assert NOT_SURE in event["data"]["error"], event
    moment.assert_equals_file(image)
    assert_guest_unharmed(server, writers)


@promise("a target that stalls does not keep a backup from being cancelled, nor the guest from "
         "writing past cbw-timeout")  # fmt: skip
def stalled(test):
    server, qmp, writers, image = world(test)
    far = start_far(test, image)
    add_far(qmp, far)
    start(qmp, writers, speed=4 * MIB, cbw_timeout=2)
    wait_progress(qmp, MIB)
    os.kill(far.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    writers.wait_done(100)  # saving old data meets its limit, and then the job is given up
    assert time.monotonic() - began < 30
    qmp.command("query-block")
    if qmp.command("query-jobs"):
        qmp.send_bytes(b'{"execute": "job-cancel", "arguments": {"id": "j"}, "id": "c"}')
    other = server.qmp()
    writers.wait_done(100)
    wait_until(lambda: not other.command("query-jobs"), "the job has ended", timeout=20)
    assert_guest_unharmed(server, writers)


@promise("a stalled target that goes on gets a true copy")
def stalls_and_goes_on(test):
    server, qmp, writers, image = world(test)
    far = start_far(test, image)
    add_far(qmp, far)
    moment = start(qmp, writers, speed=4 * MIB, cbw_timeout=0)
    wait_progress(qmp, MIB)
    os.kill(far.process.pid, signal.SIGSTOP)
    qmp.command("block-job-set-speed", device="j", speed=0)
    time.sleep(0.5)
    os.kill(far.process.pid, signal.SIGCONT)
    assert "error" not in qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")["data"]
    moment.assert_equals_file(image)
    assert_guest_unharmed(server, writers)


@promise("a target that refuses some writes: report fails the backup, stop lets it be resumed")
def refuses(test):
    server, qmp, writers, image = world(test)
    trigger = test.path("failing")
    trigger.touch()
    far = start_far(test, image, nbdkit=["--filter=error"],
                    parameters=["error-pwrite=EIO", "error-pwrite-rate=30%",
                                f"error-file={trigger}"])  # fmt: skip
    add_far(qmp, far)
    start(qmp, writers)
    event = qmp.wait_event("BLOCK_JOB_ERROR", device="j")["data"]
    assert (event["operation"], event["action"]) == ("write", "report"), event
    assert "Input/output error" in wait_failed(qmp)
    add_far(qmp, far)
    moment = start(qmp, writers, on_target_error="stop", cbw_timeout=0)
    wait_until(lambda: qmp.command("query-jobs")[0]["status"] == "paused", "it is paused")
    trigger.unlink()
    qmp.command("job-resume", _id="j")
    assert "error" not in qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")["data"]
    moment.assert_equals_file(image)
    assert_guest_unharmed(server, writers)


@promise("a target that answers late slows the backup, not its truth")
def late(test):
    server, qmp, writers, image = world(test)
    far = start_far(test, image, nbdkit=["--filter=delay"],
                    parameters=["wdelay=30ms", "delay-zero=30ms"])  # fmt: skip
    add_far(qmp, far)
    moment = start(qmp, writers)
    assert "error" not in qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")["data"]
    moment.assert_equals_file(image)
    assert_guest_unharmed(server, writers)


@promise("a target whose flush fails never makes a backup a success")
def flush_fails(test):
    server, qmp, writers, image = world(test)
    script = test.path("target.sh")
    script.write_text(
        "#!/bin/sh\ncase \"$1\" in\n"
        f"get_size) stat -L -c %s {image} ;;\n"
        f"pread) dd iflag=skip_bytes,count_bytes skip=$4 count=$3 if={image} status=none ;;\n"
        f"pwrite) dd oflag=seek_bytes conv=notrunc seek=$4 of={image} status=none ;;\n"
        "can_write|can_flush) exit 0 ;;\n"
        "flush) echo EIO the disk is broken >&2; exit 1 ;;\n"
        "*) exit 2 ;;\nesac\n"
    )
    script.chmod(0o755)
    far = Server(test, plugin="sh", parameters=[script], name="far")
    add_far(qmp, far)
    start(qmp, writers)
    error = wait_failed(qmp)
    assert "flush" in error, error
    assert_guest_unharmed(server, writers)
    far.stop()  # if it is killed this plugin leaves a directory in /tmp


main()
