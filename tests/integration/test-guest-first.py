#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The guest comes first: what jobs cost a guest is told, its latency is kept, and bounds that are
hit break the job and not the guest. Storage is made slow by seconds with a delay layer, and bounds
are generous beside that: nothing here is about how fast the machine is."""

import json
import time

from liveblk_load import Writers
from liveblk_test import QmpError, Server, main, promise, wait_until

MIB = 1 << 20
MS = 1000000
SECOND = 1000 * MS


def delay(iotype, ns):
    return {"event": "none", "iotype": iotype, "errno": 0, "delay-ns": ns}


def slow_node(name, image):
    """A description of a node whose requests can be made late."""
    return {"driver": "blkdebug", "node-name": name,
            "image": {"driver": "file", "filename": str(image)}}  # fmt: skip


def world(test, length=16 * MIB):
    """A served disk, late on demand, and a target that is, too: (server, qmp, target's file)."""
    disk, target = test.make_disk("disk.img", length), test.make_disk("target.img", length)
    server = Server(test, [f"name=vda,file.driver=blkdebug,file.node-name=disk,"
                           f"file.image.driver=file,file.image.filename={disk}"])  # fmt: skip
    qmp = server.qmp()
    qmp.command_raw("blockdev-add", slow_node("t", target))
    return server, qmp, target


def writers_on(test, server, length=16 * MIB):
    return Writers(test, server.uri(), length, threads=2).start()


def make_late(qmp, node, *rules):
    qmp.command_raw("blkdebug-set", {"node-name": node, "inject-error": list(rules)})


def backup(qmp, writers, target="t", **options):
    """Start a backup in a moment; returns the model of the moment."""
    arguments = {"job-id": "j", "device": "vda", "target": target, "sync": "full"}
    arguments.update({key.replace("_", "-"): value for key, value in options.items()})
    with writers.held() as moment:
        qmp.command_raw("blockdev-backup", arguments)
    return moment


def job(qmp, command="query-jobs"):
    jobs = qmp.command(command)
    assert len(jobs) == 1, jobs
    return jobs[0]


def wait_pace(qmp, *paces):
    """Until the job does that; returns its report."""

    def look():
        report = job(qmp)
        return report if report["guest-pace"] in paces else None

    return wait_until(look, f"the job is {' or '.join(paces)}")


def guest_goes_on(server, writers, count=50):
    writers.wait_done(count)
    writers.stop()
    handle = server.connect()
    writers.model.assert_equals(lambda at, length: handle.pread(length, at))
    handle.shutdown()


@promise("a target that takes seconds for each write is not on the guest's path, and the job says "
         "what guests have waited for it")  # fmt: skip
def slow_target(test):
    server, qmp, target = world(test)
    writers = writers_on(test, server)
    make_late(qmp, "t", delay("write", 3 * SECOND))
    backup(qmp, writers, guest_latency=100 * MS)
    with writers.lock:
        writers.slowest = 0.0
    writers.wait_done(300)
    time.sleep(3)  # as long as the target takes for one
    writers.wait_done(50)
    assert writers.slowest < 2, writers.slowest
    report = job(qmp)
    waits = report["guest-waits"]
    assert waits["requests"] > 0, report
    assert 0 < waits["p99-ns"] <= waits["longest-ns"] < 2 * SECOND, report
    assert report["guest-latency"] == 100 * MS
    assert report["guest-pace"] in ("free", "held-back", "floor", "recovering"), report
    assert job(qmp, "query-block-jobs")["guest-waits"]["requests"] >= waits["requests"]
    qmp.command("job-cancel", _id="j")
    guest_goes_on(server, writers)


@promise("a job holds itself back while the guest's latency is above guest-latency, says so, and "
         "is as fast as ever when it is not")  # fmt: skip
def holds_back(test):
    server, qmp, target = world(test)
    writers = writers_on(test, server)
    make_late(qmp, "disk", delay("write", 200 * MS))
    moment = backup(qmp, writers, guest_latency=20 * MS, speed=MIB)
    report = wait_pace(qmp, "held-back", "floor")
    assert report["guest-p99"] > 20 * MS, report
    wait_pace(qmp, "floor")
    shown = test.liveblk("job", "--admin", server.admin, "list").stdout
    assert "held back as far as possible (guest p99 " in shown and "limit 20.00 ms" in shown, shown
    shown = test.liveblk("status", "--admin", server.admin, "--json").stdout
    assert json.loads(shown)["jobs"][0]["guest-pace"] == "floor", shown
    make_late(qmp, "disk")
    wait_pace(qmp, "recovering", "free")
    test.liveblk("job", "--admin", server.admin, "latency", "j", "5000.5")
    assert job(qmp)["guest-latency"] == 5000500000
    test.liveblk("job", "--admin", server.admin, "latency", "j", "0")
    assert "guest-latency" not in job(qmp)
    qmp.command("block-job-set-speed", device="j", speed=0)
    assert "error" not in qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")["data"]
    moment.assert_equals_file(target)
    guest_goes_on(server, writers)


@promise("however slow the guest, a job with guest-latency comes to its end, with a true copy")
def ends_anyway(test):
    length = 2 * MIB
    disk, target = test.make_disk("disk.img", length), test.path("copy.img")
    server = Server(test, [f"name=vda,file.driver=blkdebug,file.node-name=disk,"
                           f"file.image.driver=file,file.image.filename={disk}"])  # fmt: skip
    writers = writers_on(test, server, length)
    make_late(server.qmp(), "disk", delay("write", 100 * MS))
    test.liveblk("backup", "--admin", server.admin, "vda", "--to", target, "--guest-latency",
                 "0.001")  # fmt: skip
    guest_goes_on(server, writers, 5)
    assert target.stat().st_size == length


@promise("streams, commits and mirrors keep a guest's latency, too")
def other_jobs(test):
    base, top = test.make_disk("base.img", 4 * MIB), test.path("top.qcow2")
    test.run("qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top)
    server = Server(test, [f"name=vda,file={top}"])
    qmp = server.qmp()
    handle = server.connect()
    handle.pwrite(b"x" * MIB, MIB)
    common = ["--admin", server.admin, "--guest-latency", "1000"]
    test.liveblk("mirror", *common, "vda", "--to", test.path("m.img"), "--pivot")
    test.liveblk("mirror", *common, "vda", "--to", test.path("n.qcow2"), "-f", "qcow2", "--pivot")
    admin = ["--admin", server.admin]
    test.liveblk("snapshot", *admin, "--external", test.path("s.qcow2"), "vda")
    handle.pwrite(b"y" * MIB, 2 * MIB)
    test.liveblk("stream", *common, "vda")
    test.liveblk("snapshot", *admin, "--external", test.path("u.qcow2"), "vda")
    handle.pwrite(b"z" * MIB, 3 * MIB)
    test.liveblk("commit", *common, "vda")
    assert handle.pread(3 * MIB, MIB) == b"x" * MIB + b"y" * MIB + b"z" * MIB
    assert qmp.command("query-jobs") == []
    handle.shutdown()


@promise("a guest held while its disk moves to a target that flushes slowly is counted as waiting "
         "for the mirror")  # fmt: skip
def mirror_waits(test):
    server, qmp, target = world(test)
    writers = writers_on(test, server)
    make_late(qmp, "t", delay("flush", 300 * MS))
    qmp.command("blockdev-mirror", job_id="j", device="vda", target="t", sync="full",
                auto_dismiss=False)  # fmt: skip
    qmp.wait_event("BLOCK_JOB_READY", device="j")
    qmp.command("job-complete", _id="j")
    qmp.wait_job("j", "concluded")
    report = job(qmp)
    assert "error" not in report, report
    assert report["guest-waits"]["longest-ns"] >= 200 * MS, report
    assert report["guest-waits"]["requests"] >= 1, report
    guest_goes_on(server, writers)


def bound_is_hit(test, prepare, words, **options):
    """A backup to a target that stands still, whose bound is hit: it fails, and the guest goes on."""
    server, qmp, _ = world(test)
    writers = writers_on(test, server)
    make_late(qmp, "t", delay("write", 5 * SECOND))
    options = prepare(test, qmp) | options
    backup(qmp, writers, **options)
    event = qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")
    assert words in event["data"]["error"], event
    guest_goes_on(server, writers, 200)
    assert writers.slowest < 4, writers.slowest
    return qmp


@promise("when memory is full for longer than cbw-timeout, the backup breaks and not the guest")
def bound_memory(test):
    bound_is_hit(test, lambda *_: {"scratch": "none"}, "The memory for old data is full",
                 cbw_timeout=1)  # fmt: skip


@promise("when scratch is slower than cbw-timeout, the backup breaks and not the guest")
def bound_timeout(test):
    def slow_scratch(test, qmp):
        qmp.command_raw("blockdev-add", slow_node("s", test.make_disk("s.img", 16 * MIB)))
        make_late(qmp, "s", delay("write", 5 * SECOND))
        return {"scratch-node": "s"}

    bound_is_hit(test, slow_scratch, "Node 's' is too slow", cbw_timeout=1)


@promise("when scratch-max is used up, the backup breaks and not the guest; SCRATCH_HIGH_WATER said "
         "so before")  # fmt: skip
def bound_scratch(test):
    qmp = bound_is_hit(test, lambda *_: {}, "needs more scratch than", scratch_max=2 * MIB,
                       scratch_high_water=25)  # fmt: skip
    event = qmp.wait_event("SCRATCH_HIGH_WATER", timeout=0.001)["data"]
    assert event["kind"] == "job" and event["name"] == "j" and event["max"] == 2 * MIB, event
    assert MIB // 2 <= event["used"] <= 2 * MIB, event
    assert not [e for e in qmp.events if e["event"] == "SCRATCH_HIGH_WATER"]


@promise("a view's scratch-max breaks the view and not the guest; SCRATCH_HIGH_WATER said so before")
def bound_view(test):
    server, qmp, _ = world(test)
    writers = writers_on(test, server)
    test.liveblk("view", "--admin", server.admin, "create", "night", "--scratch-max", "2M",
                 "--scratch-high", "50")  # fmt: skip
    event = qmp.wait_event("SCRATCH_HIGH_WATER")["data"]
    assert event["kind"] == "view" and event["name"] == "night" and event["max"] == 2 * MIB, event
    assert MIB <= event["used"] <= 2 * MIB, event
    assert "scratch" in qmp.wait_event("VIEW_BROKEN", name="night")["data"]["reason"]
    guest_goes_on(server, writers)
    qmp.command("view-drop", name="night")


def refusal(qmp, command, **arguments):
    try:
        qmp.command(command, **arguments)
    except QmpError as error:
        assert qmp.command("query-jobs") == [] or command.startswith("block-job"), command
        return error.desc
    raise AssertionError(f"{command} {arguments} was not refused")


@promise("what makes no sense is refused, and says why")
def refused(test):
    _, qmp, _ = world(test)
    how = {"job_id": "j", "device": "vda", "target": "t", "sync": "full"}
    negative = "Parameter 'guest-latency' expects a non-negative value"
    assert refusal(qmp, "blockdev-backup", **how, guest_latency=-1) == negative
    assert refusal(qmp, "blockdev-mirror", **how, guest_latency=-1) == negative
    assert "sync 'none'" in refusal(qmp, "blockdev-backup", **dict(how, sync="none"),
                                    guest_latency=1)  # fmt: skip
    assert "from 0 (none) to 100, not 101" in refusal(
        qmp, "blockdev-backup", **how, scratch_max=MIB, scratch_high_water=101)  # fmt: skip
    assert "from 0 (none) to 100, not -1" in refusal(
        qmp, "view-create", name="v", scratch_high_water=-1)  # fmt: skip
    qmp.command_raw("blockdev-add", {"driver": "null-co", "node-name": "n", "size": 16 * MIB})
    assert "no device is on node 'n'" in refusal(
        qmp, "blockdev-backup", **dict(how, device="n"), guest_latency=1)  # fmt: skip
    qmp.command("blockdev-backup", **dict(how, device="n", speed=1 * MIB))
    assert "does not copy beside a guest" in refusal(
        qmp, "block-job-set-guest-latency", device="j", guest_latency=1)  # fmt: skip
    qmp.command("job-cancel", _id="j")


main()
