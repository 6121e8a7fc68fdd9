#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""A server that is asked to end, or is killed, while guests write and backups run."""

import json
import socket
import threading

from liveblk_load import Writers
from liveblk_test import Server, check, main, promise, start_backup, wait_until

MIB = 1 << 20
SECTOR = 4096


@promise("SIGTERM in the middle of backups under load: clean end in bounded time, jobs cancelled, "
         "what was answered is in the file, no socket left")  # fmt: skip
def terminated(test):
    disk = test.make_disk("disk.img", 16 * MIB)
    server = Server(test, [disk])
    writers = Writers(test, server.uri(), 16 * MIB, threads=4).start()
    qmp = server.qmp()
    for number in range(2):
        start_backup(qmp, f"j{number}", test.path(f"{number}.img"), speed=MIB)
    start_backup(qmp, "paused", test.path("paused.img"), speed=MIB)
    qmp.command("job-pause", _id="paused")
    start_backup(qmp, "pending", test.path("pending.img"), auto_finalize=False)
    qmp.wait_event("BLOCK_JOB_PENDING", id="pending")
    writers.wait_done(100)
    server.process.terminate()
    with writers.lock:  # a request under way may or may not be answered: end all before it matters
        writers.over = True
        writers.changed.notify_all()
    for thread in writers.threads:
        thread.join(30)
        assert not thread.is_alive(), "a writer hangs"
    assert server.process.wait(30) == 0, server.log()
    for job in ("j0", "j1", "paused", "pending"):
        qmp.wait_event("BLOCK_JOB_CANCELLED", device=job)
    assert not server.admin.exists()
    assert_answered_is_there(writers, disk)
    again = Server(test, [disk], name="again")
    assert again.connect().get_size() == 16 * MIB


def assert_answered_is_there(writers, disk):
    """All sectors are right but those of requests that were under way."""
    wrong = []
    content = disk.read_bytes()
    model = writers.model
    for number in set(range(model.length // SECTOR)) - writers.busy:
        at = number * SECTOR
        sector = content[at : at + SECTOR]
        verdict = check(sector, at, model.sequences[number], model.zeroes[number])
        if verdict:
            wrong.append(f"sector at {at:#x} is {verdict}")
    assert not wrong, wrong[:10]


@promise("kill -9 under load and backups: all that was answered is in the file, and the next server "
         "starts in its place")  # fmt: skip
def killed(test):
    disk = test.make_disk("disk.img", 16 * MIB)
    for _ in range(3):
        server = Server(test, [disk])
        writers = Writers(test, server.uri(), 16 * MIB, threads=4).start()
        qmp = server.qmp()
        start_backup(qmp, "j", test.path("b.img"), speed=MIB)
        writers.wait_done(100 + test.random.randrange(100))
        server.kill()
        for thread in writers.threads:
            thread.join(30)
            assert not thread.is_alive(), "a writer hangs"
        assert_answered_is_there(writers, disk)
        qmp.close()
    server = Server(test, [disk])
    handle = server.connect()
    content = disk.read_bytes()
    assert bytes(handle.pread(MIB, 0)) == content[:MIB]
    server.qmp().command("query-status")


@promise("SIGTERM while a guest stays connected cancels jobs and fails held requests at once, and "
         "the end comes when the guest leaves")  # fmt: skip
def guest_stays(test):
    server = Server(test, [test.make_disk("disk.img", 64 * MIB)])
    guest = server.connect()
    guest.pwrite(b"x" * SECTOR, 0)
    qmp = server.qmp()
    start_backup(qmp, "j", test.path("b.img"), speed=MIB)
    server.process.terminate()
    qmp.wait_event("BLOCK_JOB_CANCELLED", device="j")
    assert server.process.poll() is None
    guest.shutdown()
    assert server.process.wait(30) == 0, server.log()
    assert not server.admin.exists()


@promise("QMP's quit under load ends all the same")
def quits(test):
    disk = test.make_disk("disk.img", 8 * MIB)
    server = Server(test, [disk])
    writers = Writers(test, server.uri(), 8 * MIB, threads=3).start()
    qmp = server.qmp()
    start_backup(qmp, "j", test.path("b.img"), speed=MIB)
    writers.wait_done(50)
    assert qmp.command("quit") == {}
    for thread in writers.threads:  # nbdkit refuses their next requests
        thread.join(30)
        assert not thread.is_alive(), "a writer hangs"
    assert server.process.wait(30) == 0
    assert_answered_is_there(writers, disk)


@promise("SIGTERM while a client waits for a slow command ends in bounded time")
def slow_command(test):
    mute = socket.socket(socket.AF_UNIX)
    mute.bind(str(test.path("mute")))
    mute.listen()
    server = Server(test, [test.make_disk("disk.img", MIB)])
    add = {"driver": "nbd", "node-name": "m", "open-timeout": 5,
           "server": {"type": "unix", "path": str(test.path("mute"))}}  # fmt: skip
    qmp = server.qmp()
    qmp.send_bytes(json.dumps({"execute": "blockdev-add", "arguments": add}).encode())
    connection, _ = mute.accept()
    threading.Timer(60, connection.close).start()
    server.process.terminate()
    wait_until(lambda: server.process.poll() is not None, "it ends", timeout=40)
    assert not server.admin.exists()


main()
