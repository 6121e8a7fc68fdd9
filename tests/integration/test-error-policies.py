#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""What happens to guests and jobs when storage fails or is full, by the policies chosen."""

import threading

import nbd
from liveblk_load import SmallDisk, Writers, allocated, assert_guest_unharmed, same_contents
from liveblk_test import DiskModel, Server, main, promise, start_backup, wait_until

MIB = 1 << 20


class Write(threading.Thread):
    """A guest's write that may be held; .error is None if it succeeded."""

    def __init__(self, handle, data, offset):
        super().__init__(daemon=True)
        self.handle, self.data, self.offset = handle, data, offset
        self.error = None
        self.start()

    def run(self):
        try:
            self.handle.pwrite(self.data, self.offset)
        except nbd.Error as error:
            self.error = error

    def is_held(self):
        self.join(0.3)
        return self.is_alive()

    def end(self):
        self.join(30)
        assert not self.is_alive(), "the write is still held"
        return self.error


def full_disk(test, policy):
    """A served disk of 8 MiB on storage of 4 MiB: (server, qmp, small disk, path, model)."""
    small = SmallDisk(test, "small", "4M")
    path = small.path / "disk.img"
    with open(path, "xb") as file:
        file.truncate(8 * MIB)
    server = Server(test, [f"file={path},werror={policy}"])
    test.cleanup.callback(server.kill)
    handle = server.connect()
    model = DiskModel(8 * MIB)
    for number in range(12):
        handle.pwrite(model.write(number * 262144, 262144), number * 262144)
    handle.shutdown()
    return server, server.qmp(), small, path, model


@promise("werror=stop and enospc hold the write that found no space until cont; nothing is lost")
def held_write(test):
    for policy in ("stop", "enospc"):
        server, qmp, small, path, model = full_disk(test, policy)
        handle, reader = server.connect(), server.connect()
        write = Write(handle, model.write(4 * MIB, 2 * MIB), 4 * MIB)
        event = qmp.wait_event("BLOCK_IO_ERROR")["data"]
        assert event["device"] == "vda" and event["operation"] == "write", event
        assert event["action"] == "stop" and event["nospace"] is True and event["reason"], event
        qmp.wait_event("STOP")
        assert qmp.command("query-status") == {"running": False, "status": "io-error"}
        assert qmp.command("query-block")[0]["io-status"] == "nospace"
        assert write.is_held()
        qmp.command("cont")  # no space yet: the same again
        qmp.wait_event("BLOCK_IO_ERROR")
        qmp.wait_event("STOP")
        assert write.is_held()
        small.grow(test, "16M")
        qmp.command("cont")
        assert write.end() is None
        assert qmp.command("query-status")["status"] == "running"
        assert qmp.command("query-block")[0]["io-status"] == "ok"
        model.assert_equals(lambda at, length: reader.pread(length, at))
        model.assert_equals_file(path)
        handle.shutdown()
        reader.shutdown()
        server.stop()
        small.unmount()
        small.path.rmdir()


@promise("werror=report tells the guest ENOSPC at once, and the disk goes on")
def reported_write(test):
    server, qmp, small, path, model = full_disk(test, "report")
    handle = server.connect()
    try:
        handle.pwrite(b"x" * (2 * MIB), 5 * MIB)
        raise AssertionError("there was no space for this")
    except nbd.Error as error:
        assert error.errno == "ENOSPC", error.errno
    event = qmp.wait_event("BLOCK_IO_ERROR")["data"]
    assert event["action"] == "report", event
    assert qmp.command("query-status")["running"] is True
    handle.pwrite(model.write(0, 4096), 0)
    assert qmp.command("query-blockstats")[0]["stats"]["failed_wr_operations"] == 1
    assert bytes(handle.pread(4096, 0)) == path.read_bytes()[:4096]


@promise("nbdkit ends in bounded time although a write is held, and loses nothing flushed")
def ends_with_held_write(test):
    server, qmp, small, path, model = full_disk(test, "stop")
    handle = server.connect()
    handle.flush()
    handle.shutdown()
    write = Write(server.connect(), b"x" * (2 * MIB), 5 * MIB)
    qmp.wait_event("STOP")
    assert write.is_held()
    server.process.terminate()
    assert write.end() is not None
    write.handle.shutdown()  # nbdkit itself waits for its clients
    assert server.process.wait(30) == 0
    assert not server.admin.exists()
    content = path.read_bytes()[: 3 * MIB]
    flushed = DiskModel(3 * MIB)
    flushed.sequences, flushed.zeroes = model.sequences[:768], model.zeroes[:768]
    flushed.assert_equals(lambda at, length: content[at : at + length])


@promise("nbdkit ends in bounded time although the guest was stopped with writes waiting")
def ends_while_stopped(test):
    server = Server(test, [test.make_disk("disk.img", MIB)])
    qmp = server.qmp()
    qmp.command("stop")
    writes = [Write(server.connect(), b"x" * 4096, at * 4096) for at in range(4)]
    assert all(write.is_held() for write in writes)
    server.process.terminate()
    for write in writes:
        assert write.end() is not None
        write.handle.shutdown()
    assert server.process.wait(30) == 0


def failing_source(test, rate="100%"):
    """A served disk whose reads fail while a file exists: (server, qmp, trigger, disk image)."""
    image = test.make_disk("far.img", 8 * MIB)
    trigger = test.path("failing")
    far = Server(test, plugin="file", parameters=[image, "error-pread=EIO",
                 f"error-pread-rate={rate}", f"error-file={trigger}"],
                 nbdkit=["--filter=error"], name="far")  # fmt: skip
    return image, trigger, far


def serve_far(test, far, options=""):
    server = Server(test, ["name=vda,file.driver=nbd,file.server.type=unix,"
                           f"file.server.path={far.nbd}{options}"])  # fmt: skip
    handle = server.connect()
    model = DiskModel(8 * MIB)
    for at in range(0, 8 * MIB, MIB):
        handle.pwrite(model.write(at, MIB), at)
    handle.flush()
    return server, server.qmp(), handle, model


@promise("rerror: a guest's read error is reported, or held until the storage works again")
def read_errors(test):
    image, trigger, far = failing_source(test)
    server, qmp, handle, model = serve_far(test, far)
    trigger.touch()
    try:
        handle.pread(4096, 0)
        raise AssertionError("the storage fails")
    except nbd.Error as error:
        assert error.errno == "EIO", error.errno
    assert qmp.wait_event("BLOCK_IO_ERROR")["data"]["operation"] == "read"
    trigger.unlink()
    assert bytes(handle.pread(4096, 0)) == image.read_bytes()[:4096]
    handle.shutdown()
    server.stop()
    server, qmp, handle, model = serve_far(test, far, ",rerror=stop")
    trigger.touch()
    read = []
    reader = threading.Thread(target=lambda: read.append(bytes(handle.pread(4096, 0))), daemon=True)
    reader.start()
    qmp.wait_event("STOP")
    trigger.unlink()
    qmp.command("cont")
    reader.join(30)
    assert read == [image.read_bytes()[:4096]]


@promise("on-source-error=report fails the backup with a clear error; the guest goes on")
def source_report(test):
    image, trigger, far = failing_source(test)
    server, qmp, handle, model = serve_far(test, far)
    trigger.touch()
    start_backup(qmp, "j", test.path("b.img"))
    event = qmp.wait_event("BLOCK_JOB_ERROR", device="j")["data"]
    assert (event["operation"], event["action"]) == ("read", "report"), event
    event = qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")["data"]
    assert "Input/output error" in event["error"], event
    handle.pwrite(model.write(0, 4096), 0)
    model.assert_equals_file(image)
    assert qmp.command("query-status")["running"] is True


@promise("on-source-error=stop pauses the backup; resumed, it is a true copy")
def source_stop(test):
    image, trigger, far = failing_source(test)
    server, qmp, handle, model = serve_far(test, far)
    trigger.touch()
    start_backup(qmp, "j", test.path("b.img"), on_source_error="stop")
    assert qmp.wait_event("BLOCK_JOB_ERROR", device="j")["data"]["action"] == "stop"
    wait_until(lambda: qmp.command("query-jobs")[0]["status"] == "paused", "it is paused")
    job = qmp.command("query-block-jobs")[0]
    assert job["paused"] is True and job["io-status"] == "failed", job
    trigger.unlink()
    moment = model.snapshot()
    handle.pwrite(model.write(MIB, 65536), MIB)
    qmp.command("job-resume", _id="j")
    assert "error" not in qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")["data"]
    moment.assert_equals_file(test.path("b.img"))


@promise("a guest's write whose old data cannot be read succeeds, and breaks the backup")
def source_fails_before_write(test):
    image, trigger, far = failing_source(test)
    server, qmp, handle, model = serve_far(test, far)
    start_backup(qmp, "j", test.path("b.img"), speed=65536)
    trigger.touch()
    handle.pwrite(model.write(7 * MIB, 65536), 7 * MIB)
    event = qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")["data"]
    assert event["error"], event
    trigger.unlink()
    model.assert_equals_file(image)


def backup_to_full_target(test, policy):
    """A backup of 8 MiB to storage of 4 MiB, with writers: (server, qmp, writers, target...)."""
    server = Server(test, [test.make_disk("disk.img", 8 * MIB)])
    writers = Writers(test, server.uri(), 8 * MIB, threads=2).start()
    qmp = server.qmp()
    small = SmallDisk(test, "small", "4M")
    target = small.path / "target.img"
    test.cleanup.callback(server.kill)
    with writers.held() as moment:
        start_backup(qmp, "j", target, on_target_error=policy, cbw_timeout=0)
    return server, qmp, writers, small, target, moment


@promise("a full target fails the backup by default, says so, and the guest never notices")
def target_report(test):
    server, qmp, writers, small, target, moment = backup_to_full_target(test, "report")
    event = qmp.wait_event("BLOCK_JOB_ERROR", device="j")["data"]
    assert (event["operation"], event["action"]) == ("write", "report"), event
    event = qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")["data"]
    assert "No space left on device" in event["error"], event
    assert_guest_unharmed(server, writers, 100)
    target.unlink()


@promise("with stop or enospc a full target pauses the backup; given space it ends as a true copy")
def target_stop(test):
    for policy in ("stop", "enospc"):
        server, qmp, writers, small, target, moment = backup_to_full_target(test, policy)
        event = qmp.wait_event("BLOCK_JOB_ERROR", device="j")["data"]
        assert event["action"] == "stop", event
        wait_until(lambda: qmp.command("query-jobs")[0]["status"] == "paused", "it is paused")
        job = qmp.command("query-block-jobs")[0]
        assert job["paused"] is True and job["io-status"] == "nospace", job
        small.grow(test, "32M")
        qmp.command("block-job-resume", device="j")
        assert "error" not in qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")["data"]
        writers.stop()
        moment.assert_equals_file(target)
        small.unmount()
        small.path.rmdir()
        server.kill()
        test.path("disk.img").unlink()


@promise("with ignore a backup tries again for as long as the target is full, and then is true")
def target_ignore(test):
    server, qmp, writers, small, target, moment = backup_to_full_target(test, "ignore")
    for _ in range(2):
        assert qmp.wait_event("BLOCK_JOB_ERROR", device="j")["data"]["action"] == "ignore"
    small.grow(test, "32M")
    assert "error" not in qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")["data"]
    writers.stop()
    moment.assert_equals_file(target)


@promise("a half-empty disk's backup takes half the space, in a file and on an NBD server")
def thin(test):
    disk = test.make_disk("disk.img", 64 * MIB)
    far = test.make_disk("far.img", 64 * MIB)
    server = Server(test, [disk])
    remote = Server(test, plugin="file", parameters=[far], name="far")
    handle = server.connect()
    model = DiskModel(64 * MIB)
    for at in range(0, 64 * MIB, 4 * MIB):
        handle.pwrite(model.write(at, 2 * MIB), at)
    handle.pwrite(bytes(MIB), 3 * MIB)  # allocated, but zeroes: a copy need not hold them
    qmp = server.qmp()
    start_backup(qmp, "j", test.path("b.img"))
    assert "error" not in qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")["data"]
    qmp.command_raw("blockdev-add", {"driver": "nbd", "node-name": "t", "discard": "unmap",
                                     "server": {"type": "unix", "path": str(remote.nbd)}})  # fmt: skip
    qmp.command("blockdev-backup", job_id="k", device="vda", target="t", sync="full")
    event = qmp.wait_event("BLOCK_JOB_COMPLETED", device="k")["data"]
    assert "error" not in event and event["offset"] == event["len"] == 64 * MIB, event
    for copy in (test.path("b.img"), far):
        model.assert_equals_file(copy)
        assert 32 * MIB <= allocated(copy) <= 34 * MIB, (copy, allocated(copy))
    assert same_contents(disk, far)


@promise("a backup to a target full of old data leaves none of it")
def old_target(test):
    disk = test.make_disk("disk.img", 8 * MIB)
    target = test.path("old.img")
    target.write_bytes(b"old data" * MIB)
    server = Server(test, [disk])
    server.connect().pwrite(b"new" * 10000, MIB)
    qmp = server.qmp()
    start_backup(qmp, "j", target, mode="existing")
    assert "error" not in qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")["data"]
    assert same_contents(disk, target)


main()
