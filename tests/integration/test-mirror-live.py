#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Mirrors of a served disk: pivots under connected clients, remote targets that fail, refusals."""

import os
import signal

from liveblk_load import Writers, allocated, assert_guest_unharmed
from liveblk_test import QmpError, Server, main, promise, start_copy, wait_until

MIB = 1 << 20


def world(test, length=16 * MIB, threads=3):
    """A served disk under writers: (server, qmp, writers)."""
    server = Server(test, [test.make_disk("disk.img", length)])
    writers = Writers(test, server.uri(), length, threads=threads).start()
    return server, server.qmp(), writers


def add_file(test, qmp, name, length=16 * MIB):
    """A new file and a node on it, of the same name; returns the file's path."""
    path = test.make_disk(name, length)
    qmp.command_raw("blockdev-add", {"driver": "file", "node-name": name, "filename": str(path)})
    return path


def start_far(test, image, nbdkit=(), parameters=()):
    return Server(test, plugin="file", parameters=[image, *parameters], nbdkit=nbdkit, name="far")


def add_far(qmp, far, name="t"):
    qmp.command_raw("blockdev-add", {"driver": "nbd", "node-name": name,
                    "server": {"type": "unix", "path": str(far.nbd)}})  # fmt: skip


def mirror(qmp, target, **options):
    start_copy(qmp, "blockdev-mirror", "m", target, **options)


def ready_mirror(qmp, target, **options):
    mirror(qmp, target, **options)
    qmp.wait_event("BLOCK_JOB_READY", device="m")


def wait_completed(qmp):
    """Wait for the end of the mirror; returns its error or None."""
    event = qmp.wait_event("BLOCK_JOB_COMPLETED", device="m")["data"]
    qmp.wait_job("m", "null")
    return event.get("error")


def complete(qmp):
    qmp.command("block-job-complete", device="m")
    error = wait_completed(qmp)
    assert error is None, error


def root_of(qmp):
    return qmp.command("query-block")[0]["inserted"]["node-name"]


def job_status(qmp):
    jobs = qmp.command("query-block-jobs")
    return jobs[0]["status"] if jobs else None


@promise("clients go on across pivots, there and back; the old disk is not written again")
def pivots(test):
    server, qmp, writers = world(test)
    for number in range(4):
        name = f"disk{number}"
        path = add_file(test, qmp, name)
        old = root_of(qmp)
        ready_mirror(qmp, name)
        writers.wait_done(50)
        complete(qmp)
        assert root_of(qmp) == name
        before = test.path(f"disk{number - 1}" if number else "disk.img").read_bytes()
        writers.wait_done(100)
        assert test.path(f"disk{number - 1}" if number else "disk.img").read_bytes() == before
        names = [node["node-name"] for node in qmp.command("query-named-block-nodes")]
        if number == 0:
            assert old not in names, names  # nobody had named it
        else:
            qmp.command("blockdev-del", node_name=old)
    assert_guest_unharmed(server, writers)
    writers.model.assert_equals_file(path)
    server.stop()


@promise("writes between PENDING and the pivot are neither held nor lost, whoever is connected, and "
         "job-finalize does not wait for clients to go")  # fmt: skip
def pending(test):
    server, qmp, writers = world(test)
    path = add_file(test, qmp, "t")
    ready_mirror(qmp, "t", auto_finalize=False)
    writers.wait_done(20)
    qmp.command("job-complete", _id="m")
    qmp.wait_event("BLOCK_JOB_PENDING", id="m")
    writers.wait_done(100)  # those who were connected before
    writers.stop()
    late = server.connect()
    late.pwrite(writers.model.write(5 * MIB, MIB), 5 * MIB)
    late.pwrite(writers.model.write(0, 4096), 0)
    assert job_status(qmp) == "pending"
    qmp.command("job-finalize", _id="m")
    assert wait_completed(qmp) is None
    assert root_of(qmp) == "t"
    writers.model.assert_equals(lambda at, length: late.pread(length, at))
    late.pwrite(writers.model.write(9 * MIB, 8192), 9 * MIB)
    late.flush()
    writers.model.assert_equals_file(path)
    late.shutdown()
    server.stop()


@promise("a mirror that is PENDING can be cancelled: the disk stays where it is")
def pending_cancelled(test):
    server, qmp, writers = world(test)
    add_file(test, qmp, "t")
    ready_mirror(qmp, "t", auto_finalize=False)
    old = root_of(qmp)
    qmp.command("job-complete", _id="m")
    qmp.wait_event("BLOCK_JOB_PENDING", id="m")
    qmp.command("job-cancel", _id="m")
    qmp.wait_event("BLOCK_JOB_CANCELLED", device="m")
    assert root_of(qmp) == old
    qmp.command("blockdev-del", node_name="t")
    assert_guest_unharmed(server, writers)


@promise("a soft cancel leaves a copy of that moment and the disk where it is")
def soft_cancel(test):
    server, qmp, writers = world(test)
    path = add_file(test, qmp, "t")
    ready_mirror(qmp, "t")
    with writers.held() as moment:
        qmp.command("block-job-cancel", device="m")
        assert wait_completed(qmp) is None
    writers.wait_done(50)
    assert root_of(qmp) != "t"
    qmp.command("blockdev-del", node_name="t")
    moment.assert_equals_file(path)
    assert_guest_unharmed(server, writers)


@promise("drive-mirror makes its target, names its node, and the disk lives on it")
def drive_mirrors(test):
    server, qmp, writers = world(test)
    target = test.path("target.img")
    arguments = {"job-id": "m", "device": "vda", "target": str(target), "sync": "full"}
    qmp.command_raw("drive-mirror", arguments | {"node-name": "moved"})
    qmp.wait_event("BLOCK_JOB_READY", device="m")
    complete(qmp)
    assert root_of(qmp) == "moved"
    back = test.path("back.img")
    back.write_bytes(b"old" * (16 * MIB // 3) + b"o")
    inode = back.stat().st_ino
    qmp.command_raw("drive-mirror", arguments | {"target": str(back), "mode": "existing"})
    qmp.wait_event("BLOCK_JOB_READY", device="m")
    complete(qmp)
    names = [node["node-name"] for node in qmp.command("query-named-block-nodes")]
    assert "moved" not in names, names
    assert_guest_unharmed(server, writers)
    assert back.stat().st_ino == inode
    writers.model.assert_equals_file(back)
    server.stop()


@promise("holes stay holes on the target unless unmap is false")
def unmaps(test):
    server = Server(test, [test.make_disk("disk.img", 16 * MIB)])
    qmp = server.qmp()
    for name, unmap in (("thin", True), ("thick", False)):
        path = add_file(test, qmp, name)
        ready_mirror(qmp, name, unmap=unmap)
        qmp.command("block-job-cancel", device="m")
        assert wait_completed(qmp) is None
        assert (allocated(path) == 0) == unmap, allocated(path)


@promise("the mirror's state is told: ready, progress, actively-synced, whose nodes are in use")
def queries(test):
    server, qmp, writers = world(test)
    writers.stop()
    add_file(test, qmp, "t")
    ready_mirror(qmp, "t", speed=100 * MIB)
    job = qmp.command("query-block-jobs")[0]
    assert job["type"] == "mirror" and job["device"] == "m", job
    assert job["ready"] is True and job["status"] == "ready", job
    assert job["len"] == job["offset"] == 16 * MIB, job
    assert job["actively-synced"] is False and job["speed"] == 100 * MIB, job
    assert "phase" in qmp.command("query-jobs")[0]
    refuse(qmp, "blockdev-del", "Node 't' is busy", node_name="t")
    refuse(qmp, "block-job-change", "", id="m", type="mirror")
    qmp.command("block-job-pause", device="m")
    qmp.wait_job("m", "standby")
    qmp.command("block-job-resume", device="m")
    qmp.wait_job("m", "ready")
    qmp.command("block-job-cancel", device="m", force=True)
    qmp.wait_event("BLOCK_JOB_CANCELLED", device="m")
    refuse(qmp, "block-job-complete", "Block job 'm' not found", device="m")


def refuse(qmp, command, text, **arguments):
    try:
        qmp.command(command, **arguments)
    except QmpError as error:
        assert error.desc.startswith(text), error.desc
    else:
        raise AssertionError(f"{command} was not refused: {arguments}")


@promise("what a mirror cannot do it refuses at once, in words, and changes nothing")
def refusals(test):
    server = Server(test, [test.make_disk("disk.img", 16 * MIB)])
    qmp = server.qmp()
    add_file(test, qmp, "t")
    add_file(test, qmp, "short", 8 * MIB)
    nodes = qmp.command("query-named-block-nodes")
    good = {"job_id": "m", "device": "vda", "target": "t", "sync": "full"}
    root = root_of(qmp)
    for text, wrong in (
        ("Sync mode 'incremental' not supported", {"sync": "incremental"}),
        ("Cannot find device='zz' nor node-name='zz'", {"device": "zz"}),
        ("Cannot find device='zz' nor node-name='zz'", {"target": "zz"}),
        ("Can't mirror node into itself", {"target": root}),
        ("Can't mirror node into itself", {"target": "vda"}),
        ("Source and target image have different sizes", {"target": "short"}),
        ("Parameter 'copy-mode' does not accept value 'eager'", {"copy_mode": "eager"}),
        ("Parameter 'write-timeout' expects a number of seconds", {"write_timeout": 0}),
        ("Failed to find node with node-name='zz'", {"replaces": "zz"}),
        (f"The target can only take the place of node '{root}'", {"replaces": "t"}),
        ("Parameter 'granularity' expects a value in range [512B, 64MB]", {"granularity": 0}),
        ("Parameter 'granularity' expects a value in range [512B, 64MB]", {"granularity": 256}),
        ("Parameter 'granularity' expects a power of 2", {"granularity": 1000}),
        ("Parameter 'granularity' expects uint32_t", {"granularity": 1 << 32}),
        ("Invalid parameter 'buf-size'", {"buf_size": -1}),
        ("Parameter 'speed' expects a non-negative value", {"speed": -1}),
        ("Duplicate nodes with node-name='t'", {"filter_node_name": "t"}),
        ("Invalid node-name: '1'", {"filter_node_name": "1"}),
        ("Invalid job ID '1'", {"job_id": "1"}),
    ):
        refuse(qmp, "blockdev-mirror", text, **(good | wrong))
    assert qmp.command("query-named-block-nodes") == nodes
    assert qmp.command("query-jobs") == []
    precious = test.path("precious.img")
    precious.write_bytes(b"precious" * 1000)
    good["target"] = str(precious)
    refuse(qmp, "drive-mirror", "Duplicate nodes with node-name='t'", node_name="t", **good)
    refuse(qmp, "drive-mirror", "Parameter 'speed'", **(good | {"speed": -1}))
    assert precious.read_bytes() == b"precious" * 1000
    mirror(qmp, "t", replaces=root)
    qmp.wait_event("BLOCK_JOB_READY", device="m")
    qmp.command("job-cancel", _id="m")


def mirror_info(qmp):
    """What both queries say of the mirror; what they have in common they say alike."""
    before = qmp.command("query-jobs")[0]
    info = qmp.command("query-block-jobs")[0]
    after = qmp.command("query-jobs")[0]
    for name in ("copy-mode", "status"):
        # It may change between the queries, but not to anything else.
        assert info.get(name) in (before.get(name), after.get(name)), (before, info, after)
    return info


def change_mode(qmp, mode):
    qmp.command("block-job-change", _id="m", type="mirror", copy_mode=mode)


@promise("with copy-mode write-blocking what a client was answered is on the target")
def write_blocking(test):
    server, qmp, writers = world(test)
    path = add_file(test, qmp, "t")
    ready_mirror(qmp, "t", copy_mode="write-blocking")
    assert mirror_info(qmp)["synchronous"] is True
    writers.wait_done(100)
    with writers.held() as moment:
        wait_until(lambda: mirror_info(qmp)["actively-synced"], "both sides are the same")
        moment.assert_equals_file(path)
    writers.wait_done(100)
    with writers.held() as moment:  # at once: nothing is copied afterwards
        moment.assert_equals_file(path)
        assert mirror_info(qmp)["bytes-left"] == 0
        change_mode(qmp, "background")
        assert mirror_info(qmp)["actively-synced"] is False
    writers.wait_done(100)
    change_mode(qmp, "write-blocking")
    writers.wait_done(100)
    wait_until(lambda: mirror_info(qmp)["actively-synced"], "they are again")
    complete(qmp)
    assert_guest_unharmed(server, writers)
    writers.model.assert_equals_file(path)
    server.stop()


@promise("with copy-mode auto a mirror gets in step with a guest that writes faster than it is "
         "copied, and says why it had it wait")  # fmt: skip
def outrun(test):
    server, qmp, writers = world(test, length=32 * MIB)
    image = test.make_disk("far.img", 32 * MIB)
    far = start_far(test, image, nbdkit=["--filter=delay"], parameters=["wdelay=40ms"])
    add_far(qmp, far)
    mirror(qmp, "t", copy_mode="auto", buf_size=256 * 1024)
    info = mirror_info(qmp)
    assert info["copy-mode"] == "auto" and info["synchronous"] is False, info
    wait_until(lambda: mirror_info(qmp)["synchronous"], "guests wait for the target", 60)
    info = mirror_info(qmp)
    assert "copied" in info["copy-mode-reason"], info
    wait_until(lambda: mirror_info(qmp)["actively-synced"], "the mirror is in step", 60)
    info = mirror_info(qmp)
    assert info["will-converge"] is True and info["seconds-left"] == 0, info
    qmp.wait_event("BLOCK_JOB_READY", device="m")
    complete(qmp)
    assert_guest_unharmed(server, writers)
    writers.model.assert_equals_file(image)
    server.stop()
    far.stop()


@promise("a mirror says how much is left, at which rates that gets more and less, whether it will be in "
         "step, and when")  # fmt: skip
def outlook(test):
    server, qmp, writers = world(test, length=32 * MIB)
    path = add_file(test, qmp, "t", 32 * MIB)
    mirror(qmp, "t", copy_mode="background", speed=4 * MIB)

    def shown():
        return test.liveblk("job", "--admin", server.admin, "list").stdout

    def find(converges):
        info = mirror_info(qmp)
        found = "dirty-rate" in info and info["will-converge"] is converges
        return info if found and info["bytes-left"] > 8 * MIB else None

    info = wait_until(lambda: find(False), "it does not keep up with the guest")
    assert info["dirty-rate"] >= info["copy-rate"] > 0, info
    assert "seconds-left" not in info, info
    wait_until(lambda: "left and not getting less" in shown(), "people are told")
    writers.stop()
    info = wait_until(lambda: find(True), "it does when the guest does nothing")
    wait_until(lambda: mirror_info(qmp)["dirty-rate"] < 64 * 1024, "nothing becomes dirty")
    info = mirror_info(qmp)
    expected = info["bytes-left"] / (info["copy-rate"] - info["dirty-rate"])
    assert abs(info["seconds-left"] - expected) <= 2, (info, expected)
    wait_until(lambda: " left for " in shown(), "people are told")
    qmp.command("block-job-set-speed", device="m", speed=0)
    qmp.wait_event("BLOCK_JOB_READY", device="m")
    wait_until(lambda: mirror_info(qmp)["bytes-left"] == 0, "nothing is left")
    qmp.command("block-job-cancel", device="m")
    assert wait_completed(qmp) is None
    writers.model.assert_equals_file(path)
    server.stop()


@promise("a client waits for a target that hangs no longer than write-timeout: the job fails then")
def write_timeout(test):
    server, qmp, writers = world(test)
    image = test.make_disk("far.img", 16 * MIB)
    far = start_far(test, image)
    add_far(qmp, far)
    ready_mirror(qmp, "t", copy_mode="write-blocking", write_timeout=1)
    writers.wait_done(50)
    os.kill(far.process.pid, signal.SIGSTOP)
    error = wait_completed(qmp)
    os.kill(far.process.pid, signal.SIGCONT)
    assert error and "timed out" in error, error
    assert_guest_unharmed(server, writers)


@promise("block-job-change is for mirrors, and says so")
def change_refusals(test):
    server = Server(test, [test.make_disk("disk.img", 16 * MIB)])
    qmp = server.qmp()
    add_file(test, qmp, "t")
    ready_mirror(qmp, "t")
    for text, arguments in (
        ("Parameter 'copy-mode' is missing", {"type": "mirror"}),
        ("Parameter 'copy-mode' does not accept value 'eager'",
         {"type": "mirror", "copy-mode": "eager"}),
        ("Job 'm' is 'mirror' job, not 'backup'", {"type": "backup"}),
        ("Parameter 'type' does not accept value 'x'", {"type": "x"}),
        ("Block job 'n' not found", {"id": "n", "type": "mirror", "copy-mode": "auto"}),
    ):
        try:
            qmp.command_raw("block-job-change", {"id": "m"} | arguments)
        except QmpError as error:
            assert text in str(error), error
        else:
            raise AssertionError(f"{arguments} was accepted")
    assert mirror_info(qmp)["copy-mode"] == "background"


@promise("nbdkit ends well, and soon, while a mirror follows the guest")
def shutdown(test):
    server, qmp, writers = world(test)
    add_file(test, qmp, "t")
    ready_mirror(qmp, "t")
    writers.wait_done(50)
    writers.stop()
    qmp.close()
    server.stop()
    writers.model.assert_equals_file(test.path("disk.img"))


# ---- Remote targets ----------------------------------------------------------------------------


@promise("with policy stop a remote target that refuses writes makes the mirror wait; resumed, it "
         "loses nothing, and the disk moves there")  # fmt: skip
def refuses(test):
    server, qmp, writers = world(test)
    image, trigger = test.make_disk("far.img", 16 * MIB), test.path("failing")
    far = start_far(test, image, nbdkit=["--filter=error"],
                    parameters=["error-pwrite=EIO", "error-pwrite-rate=100%",
                                f"error-file={trigger}"])  # fmt: skip
    add_far(qmp, far)
    ready_mirror(qmp, "t", on_target_error="stop")
    trigger.touch()
    assert qmp.wait_event("BLOCK_JOB_ERROR", device="m")["data"]["action"] == "stop"
    wait_until(lambda: job_status(qmp) == "standby", "it stands by")
    writers.wait_done(100)
    trigger.unlink()
    qmp.command("job-resume", _id="m")
    complete(qmp)
    assert root_of(qmp) == "t"
    assert_guest_unharmed(server, writers)
    server.stop()
    writers.model.assert_equals_file(image)


@promise("with policy stop a mirror outlives its target's restart, and what the target may have lost is "
         "copied once more")  # fmt: skip
def killed(test):
    server, qmp, writers = world(test)
    image = test.make_disk("far.img", 16 * MIB)
    far = start_far(test, image)
    add_far(qmp, far)
    ready_mirror(qmp, "t", on_target_error="stop")
    far.kill()
    assert qmp.wait_event("BLOCK_JOB_ERROR", device="m")["data"]["action"] == "stop"
    wait_until(lambda: job_status(qmp) == "standby", "it stands by")
    writers.wait_done(100)
    start_far(test, image)

    def follows():
        # A job that was resumed is in standby for a moment still, but no longer paused.
        if any(job["paused"] for job in qmp.command("query-block-jobs")):
            qmp.command("job-resume", _id="m")
        return job_status(qmp) == "ready"

    def ended():
        follows()  # what was in flight may fail after the first resume
        return [event for event in qmp.events if event["event"] == "BLOCK_JOB_COMPLETED"]

    wait_until(follows, "the mirror follows again")
    writers.wait_done(50)
    qmp.command("job-complete", _id="m")
    assert "error" not in wait_until(ended, "the mirror ends")[0]["data"]
    assert root_of(qmp) == "t"
    assert_guest_unharmed(server, writers)
    writers.model.assert_equals_file(image)


@promise("a remote target that stalls keeps neither the guest from writing nor the mirror from "
         "being cancelled; one that goes on gets a true copy")  # fmt: skip
def stalls(test):
    server, qmp, writers = world(test)
    image = test.make_disk("far.img", 16 * MIB)
    far = start_far(test, image)
    add_far(qmp, far)
    ready_mirror(qmp, "t")
    os.kill(far.process.pid, signal.SIGSTOP)
    writers.wait_done(200)
    os.kill(far.process.pid, signal.SIGCONT)
    with writers.held() as moment:
        qmp.command("block-job-cancel", device="m")
        assert wait_completed(qmp) is None
    moment.assert_equals_file(image)
    ready_mirror(qmp, "t")
    os.kill(far.process.pid, signal.SIGSTOP)
    qmp.command("job-complete", _id="m")
    writers.wait_done(50)
    qmp.command("job-cancel", _id="m")
    assert not qmp.command("query-jobs")
    assert_guest_unharmed(server, writers)


@promise("a target that answers late delays no guest until it is to take over, and gets all")
def late(test):
    server, qmp, writers = world(test)
    image = test.make_disk("far.img", 16 * MIB)
    far = start_far(test, image, nbdkit=["--filter=delay"],
                    parameters=["wdelay=20ms", "delay-zero=20ms"])  # fmt: skip
    add_far(qmp, far)
    ready_mirror(qmp, "t")
    complete(qmp)
    assert_guest_unharmed(server, writers)
    server.stop()
    writers.model.assert_equals_file(image)


main()
