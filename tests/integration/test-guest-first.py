#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The guest comes first: what jobs cost a guest is told, its latency is kept, and bounds that are
hit break the job and not the guest. Storage is made slow by seconds with a delay layer, and bounds
are generous beside that: nothing here is about how fast the machine is."""

import json
import threading
import time

from liveblk_front_ends import Daemon, nbd_server
from liveblk_load import Writers, assert_guest_unharmed
from liveblk_test import QmpError, Server, main, promise, start_copy, wait_until

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
    with writers.held() as moment:
        start_copy(qmp, "blockdev-backup", "j", target, **options)
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
    assert_guest_unharmed(server, writers)


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
    assert_guest_unharmed(server, writers)


@promise("who writes by an export of a node is a guest as well: a job holds itself back for it")
def export_of_node(test):
    disk, target = test.make_disk("disk.img", 4 * MIB), test.make_disk("target.img", 4 * MIB)
    daemon = Daemon(
        test, *nbd_server(test), "--blockdev", json.dumps(slow_node("disk", disk)),
        "--blockdev", f"file,node-name=t,filename={target}",
        "--export", "nbd,id=r,node-name=disk,name=r",
        "--export", "nbd,id=w,node-name=disk,name=w,writable=on",
    )  # fmt: skip
    qmp = daemon.qmp()
    writers = Writers(test, daemon.uri("w"), 4 * MIB).start()
    make_late(qmp, "disk", delay("write", 200 * MS))
    with writers.held() as moment:
        qmp.command("blockdev-backup", job_id="j", device="disk", target="t", sync="full",
                    guest_latency=20 * MS, speed=MIB)  # fmt: skip
    wait_pace(qmp, "floor")
    make_late(qmp, "disk")
    wait_pace(qmp, "recovering", "free")
    qmp.command("block-job-set-speed", device="j", speed=0)
    assert "error" not in qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")["data"]
    moment.assert_equals_file(target)
    writers.stop()
    daemon.stop()
    writers.model.assert_equals_file(disk)


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
    assert_guest_unharmed(server, writers, 5)
    assert target.stat().st_size == length


@promise("comparisons, streams, commits and mirrors keep a guest's latency, too")
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
    test.liveblk("backup", *common, "vda", "--to", test.path("b.img"))
    test.liveblk("verify", *common, "vda", test.path("b.img"))
    assert handle.pread(3 * MIB, MIB) == b"x" * MIB + b"y" * MIB + b"z" * MIB
    assert qmp.command("query-jobs") == []
    handle.shutdown()


@promise("a guest that is held while a backup or a comparison begins is counted as waiting for it")
def beginning_waits(test):
    server, qmp, _ = world(test)
    admin = server.qmp()
    for command, how in (("blockdev-backup", {"sync": "full"}), ("blockdev-verify", {})):
        first, second = server.connect(), server.connect()
        qmp.command_raw("blkdebug-break", {"node-name": "disk", "tag": "hang", "iotype": "write",
                                           "offset": 0, "bytes": 4096})  # fmt: skip
        first.aio_pwrite(b"x" * 4096, 0)
        qmp.wait_event("BLKDEBUG_SUSPENDED", tag="hang")
        how |= {"job-id": "j", "device": "vda", "target": "t", "auto-dismiss": False}
        begin = threading.Thread(target=admin.command_raw, args=(command, how))
        begin.start()

        def is_held(handle=second):
            request, began = handle.aio_pwrite(b"y" * 4096, MIB), time.monotonic_ns()
            while time.monotonic_ns() - began < 200 * MS:
                handle.poll(10)
                if handle.aio_command_completed(request):
                    return False
            return True

        wait_until(is_held, "the job that begins waits for the one request, and the other for it")
        qmp.command_raw("blkdebug-resume", {"node-name": "disk", "tag": "hang"})
        begin.join(60)
        waits = job(qmp)["guest-waits"]
        assert waits["requests"] > 0 and waits["longest-ns"] >= 100 * MS, f"{command}: {waits}"
        qmp.wait_job("j", "concluded")
        qmp.command("job-dismiss", _id="j")
        first.shutdown()
        second.shutdown()


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
    assert_guest_unharmed(server, writers)


@promise("a target that hangs keeps no guest of a mirror in background waiting, and in write-blocking "
         "one request for write-timeout, which guest-waits says")  # fmt: skip
def mirror_hangs(test):
    server, qmp, target = world(test, 2 * MIB)
    writers = writers_on(test, server, 2 * MIB)
    qmp.command_raw("blockdev-mirror", {
        "job-id": "j", "device": "vda", "target": "t", "sync": "full", "write-timeout": 1,
        "copy-mode": "background", "on-target-error": "ignore", "guest-latency": SECOND})  # fmt: skip
    qmp.wait_event("BLOCK_JOB_READY", device="j")
    before = job(qmp)["guest-waits"]["requests"]
    qmp.command_raw("blkdebug-break", {"node-name": "t", "tag": "hang", "iotype": "write"})
    qmp.wait_event("BLKDEBUG_SUSPENDED", tag="hang")
    writers.wait_done(300)
    assert job(qmp)["guest-waits"]["requests"] == before, job(qmp)
    with writers.held():
        make_late(qmp, "t")
        qmp.command_raw("blkdebug-resume", {"node-name": "t", "tag": "hang"})

        def is_in_step():
            return job(qmp)["bytes-left"] == 0

        wait_until(is_in_step, "the mirror has caught up")
        test.liveblk("job", "--admin", server.admin, "mode", "j", "write-blocking")
        wait_until(lambda: job(qmp).get("synchronous"), "guests wait for the target")
        qmp.command_raw("blkdebug-break", {"node-name": "t", "tag": "hang", "iotype": "write"})
    writers.wait_done(300)
    waits = job(qmp)["guest-waits"]
    # Those that were on their way to the target when it stopped; there are two writers.
    assert before < waits["requests"] <= before + 4, (before, waits)
    assert waits["longest-ns"] >= SECOND // 2, waits
    shown = test.liveblk("job", "--admin", server.admin, "list").stdout
    assert "WAITS P99/MAX" in shown, shown
    qmp.command_raw("blkdebug-resume", {"node-name": "t", "tag": "hang"})
    with writers.held() as moment:
        wait_until(is_in_step, "the mirror has caught up again")
        qmp.command("block-job-cancel", device="j")  # a ready mirror ends with a copy
        qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")
        moment.assert_equals_file(target)
    assert_guest_unharmed(server, writers)


def bound_is_hit(test, prepare, words, **options):
    """A backup to a target that stands still, whose bound is hit: it fails, and the guest goes on."""
    server, qmp, _ = world(test)
    writers = writers_on(test, server)
    make_late(qmp, "t", delay("write", 5 * SECOND))
    options = prepare(test, qmp) | options
    backup(qmp, writers, **options)
    event = qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")
    assert words in event["data"]["error"], event
    assert_guest_unharmed(server, writers, 200)
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


@promise("a comparison holds itself back for the guest, and when its bound is hit it breaks, not the "
         "guest; what guests waited for it is told")  # fmt: skip
def bound_verify(test):
    server, qmp, _ = world(test)
    writers = writers_on(test, server)
    make_late(qmp, "disk", delay("write", 200 * MS))
    how = {"job-id": "j", "device": "vda", "target": "t", "scratch-max": 2 * MIB,
           "scratch-high-water": 25, "guest-latency": 20 * MS, "speed": MIB,
           "auto-dismiss": False}  # fmt: skip
    qmp.command_raw("blockdev-verify", how)
    wait_pace(qmp, "floor")
    assert job(qmp)["guest-latency"] == 20 * MS
    make_late(qmp, "disk")
    event = qmp.wait_event("SCRATCH_HIGH_WATER")["data"]
    assert event["kind"] == "job" and event["name"] == "j" and event["max"] == 2 * MIB, event
    event = qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")
    waits = job(qmp)["guest-waits"]
    assert waits["requests"] > 0 and 0 < waits["p99-ns"] <= waits["longest-ns"], waits
    assert "needs more scratch than" in event["data"]["error"], event
    assert_guest_unharmed(server, writers, 200)


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
    assert_guest_unharmed(server, writers)
    qmp.command("view-drop", name="night")


@promise("a session's scratch-max breaks the session and not the guest; SCRATCH_HIGH_WATER said so "
         "before, and what guests waited for it is told")  # fmt: skip
def bound_session(test):
    server, qmp, _ = world(test)
    writers = writers_on(test, server)
    test.liveblk("session", "--admin", server.admin, "begin", "night", "--scratch-max", "2M",
                 "--scratch-high", "50")  # fmt: skip
    event = qmp.wait_event("SCRATCH_HIGH_WATER")["data"]
    assert event["kind"] == "view" and event["name"] == "night" and event["max"] == 2 * MIB, event
    event = qmp.wait_event("CHECKPOINT_BROKEN", name="night")["data"]
    assert event["reason"] == "view-broken" and event["device"] == "vda", event
    (entry,) = qmp.command("query-checkpoints")
    assert "scratch" in entry["session"]["broken"], entry
    waits = entry["session"]["guest-waits"]
    assert waits["requests"] > 0 and 0 < waits["p99-ns"] <= waits["longest-ns"], waits
    (view,) = qmp.command("query-views")
    assert view["guest-waits"] == waits, view
    assert_guest_unharmed(server, writers, 200)
    (view,) = qmp.command("query-views")
    assert view["guest-waits"]["requests"] == waits["requests"], "what is broken costs nothing more"
    for words in (("session", "list"), ("view", "list"), ("status",)):
        shown = test.liveblk(*words, "--admin", server.admin).stdout
        assert "WAITS P99/MAX" in shown or "for old data to be kept" in shown, shown
    qmp.command("checkpoint-abandon", name="night")
    assert qmp.command("query-views") == qmp.command("query-checkpoints") == []


@promise("scratch that is slower than cbw-timeout breaks the session and not the guest, which waits "
         "for it no longer")  # fmt: skip
def bound_session_timeout(test):
    length = 24 * MIB  # more than fits into memory
    server, qmp, _ = world(test, length)
    qmp.command_raw("blockdev-add", slow_node("s", test.make_disk("s.img", length)))
    qmp.command_raw("blkdebug-break", {"node-name": "s", "tag": "hang", "iotype": "write"})
    handle = server.connect()
    for at in range(0, length, MIB):
        handle.pwrite(b"x" * MIB, at)
    qmp.command("checkpoint-begin", name="night", scratch_nodes=["s"], cbw_timeout=1)
    for at in range(0, length, MIB):
        handle.pwrite(b"y" * MIB, at)
    event = qmp.wait_event("CHECKPOINT_BROKEN", name="night")["data"]
    assert "'s' is too slow" in event["message"], event
    (entry,) = qmp.command("query-checkpoints")
    assert 0 < entry["session"]["guest-waits"]["requests"] < 24, entry
    qmp.command_raw("blkdebug-resume", {"node-name": "s", "tag": "hang"})
    qmp.command("checkpoint-abandon", name="night")
    assert handle.pread(length, 0) == b"y" * length
    handle.shutdown()


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
