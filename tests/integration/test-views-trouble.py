#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Views whose scratch is full, fails or is slow: who is hurt, and how long a guest waits."""

import time

from liveblk_load import SmallDisk
from liveblk_test import Server, error_of, main, promise, wait_until

KIB = 1 << 10
MIB = 1 << 20
SECOND = 10**9

DISK = 48 * MIB  # more than a view keeps in memory
TIMEOUT = 2


def serve(test, disks=1):
    paths = [test.make_disk(f"disk{number}.img", DISK) for number in range(disks)]
    server = Server(test, paths)
    handles = [server.connect(f"vd{'ab'[number]}") for number in range(disks)]
    for handle in handles:
        for at in range(0, DISK, MIB):
            handle.pwrite(b"o" * MIB, at)
    return server, server.qmp(), handles


def add_scratch(test, qmp, name="fleece"):
    path = test.make_disk(f"{name}.img", DISK)
    qmp.command("blockdev-add", driver="blkdebug", node_name=name, discard="unmap",
                image={"driver": "file", "filename": str(path)})  # fmt: skip
    return name


def inject(qmp, node, **rule):
    rule = {key.replace("_", "-"): value for key, value in rule.items()}
    qmp.command("blkdebug-set", node_name=node, inject_error=[{"event": "none", **rule}])


def view(qmp, name="v"):
    return next(entry for entry in qmp.command("query-views") if entry["name"] == name)


def overwrite(handle):
    """Overwrite the disk; returns the longest time a write took, in seconds."""
    longest = 0
    for at in range(0, DISK, 256 * KIB):
        start = time.monotonic()
        handle.pwrite(b"n" * 256 * KIB, at)
        longest = max(longest, time.monotonic() - start)
    return longest


def assert_broken(server, qmp, device, reason, devices=("vda",)):
    """The view 'v' broke because of a device, once, and none of it can be read any more."""
    event = qmp.wait_event("VIEW_BROKEN", name="v", device=device)
    assert reason in event["data"]["reason"], event
    info = view(qmp)
    assert info["status"] == "broken" and info["error"] == event["data"]["reason"], info
    for export in devices:
        handle = server.connect(f"{export}@v")
        for at in (0, DISK - 4096):
            assert error_of(handle.pread, 4096, at) == "EIO"
        handle.shutdown()
        server.test.run("nbdinfo", "--map", server.uri(f"{export}@v"), status=1)
    wait_until(lambda: view(qmp)["scratch-bytes"] == 0, "scratch is freed")
    assert not [event for event in qmp.events if event["event"] == "VIEW_BROKEN"]


def assert_goes_on(server, qmp, guests):
    """The guest works, the broken view can be dropped, and a new one of its name be made."""
    wait_until(lambda: all(not entry["clients"] for entry in view(qmp)["devices"]), "readers gone")
    qmp.command("view-drop", name="v")
    for guest in guests:
        guest.pwrite(b"w" * MIB, 0)
        assert bytes(guest.pread(MIB, 0)) == b"w" * MIB
    scratch = server.test.path("scratch")
    scratch.mkdir()
    qmp.command("view-create", name="v", scratch=str(scratch))
    guests[0].pwrite(b"x" * MIB, 0)
    reader = server.connect("vda@v")
    assert bytes(reader.pread(MIB, 0)) == b"w" * MIB
    for handle in (reader, *guests):
        handle.shutdown()
    server.stop()


@promise("a view that would need more scratch than scratch-max breaks, and the guest goes on")
def maximum(test):
    server, qmp, guests = serve(test)
    fleece = add_scratch(test, qmp)
    qmp.command("view-create", name="v", scratch_nodes=[fleece], scratch_max=4 * MIB,
                cbw_timeout=TIMEOUT)  # fmt: skip
    guests[0].pwrite(b"n" * 2 * MIB, 0)
    wait_until(lambda: view(qmp)["scratch-bytes"] == 2 * MIB, "old data is on scratch")
    reader = server.connect("vda@v")
    assert bytes(reader.pread(2 * MIB, 0)) == b"o" * 2 * MIB
    reader.shutdown()
    longest = overwrite(guests[0])
    assert longest < TIMEOUT + 5, longest
    assert_broken(server, qmp, "vda", f"more scratch than the {4 * MIB} bytes")
    assert_goes_on(server, qmp, guests)


@promise("the maximum is for all disks of a view together, and all of them break")
def shared_maximum(test):
    server, qmp, guests = serve(test, disks=2)
    scratch = test.path("two")
    scratch.mkdir()
    qmp.command("view-create", name="v", scratch=str(scratch), scratch_max=4 * MIB,
                cbw_timeout=TIMEOUT)  # fmt: skip
    for guest in guests:
        guest.pwrite(b"n" * 2 * MIB, 0)
    wait_until(lambda: view(qmp)["scratch-bytes"] == 4 * MIB, "old data is on scratch")
    assert view(qmp)["status"] == "ok"
    overwrite(guests[1])
    assert_broken(server, qmp, "vdb", f"{4 * MIB} bytes", devices=("vda", "vdb"))
    assert_goes_on(server, qmp, guests)


@promise("a full file system breaks the view, not the guest")
def full(test):
    server, qmp, guests = serve(test)
    small = SmallDisk(test, "small", "4m")
    qmp.command("view-create", name="v", scratch=str(small.path), cbw_timeout=TIMEOUT)
    overwrite(guests[0])
    assert_broken(server, qmp, "vda", "No space left on device")
    assert_goes_on(server, qmp, guests)


@promise("scratch that fails breaks the whole view once, and the guests go on")
def failing(test):
    server, qmp, guests = serve(test, disks=2)
    nodes = [add_scratch(test, qmp, name) for name in ("one", "two")]
    qmp.command("view-create", name="v", scratch_nodes=nodes, cbw_timeout=TIMEOUT)
    inject(qmp, "two", iotype="write", errno=5)
    guests[0].pwrite(b"n" * MIB, 0)
    guests[1].pwrite(b"n" * MIB, 0)
    assert_broken(server, qmp, "vdb", "Input/output error", devices=("vda", "vdb"))
    assert_goes_on(server, qmp, guests)


@promise("scratch that is slow breaks the view, and no write of the guest waits beyond its time")
def slow(test):
    server, qmp, guests = serve(test)
    fleece = add_scratch(test, qmp)
    inject(qmp, fleece, iotype="write", errno=0, delay_ns=6 * SECOND)
    qmp.command("view-create", name="v", scratch_nodes=[fleece], cbw_timeout=TIMEOUT)
    longest = overwrite(guests[0])
    # Room for a busy machine: without the timeout it would be a multiple of the delay.
    assert TIMEOUT <= longest < TIMEOUT + 3, longest
    qmp.command("blkdebug-set", node_name=fleece)
    assert_broken(server, qmp, "vda", "2 s")
    assert_goes_on(server, qmp, guests)


@promise("with break-guest-write the guest's write fails, and the view stays what it was")
def break_guest_write(test):
    server, qmp, guests = serve(test)
    guest = guests[0]
    fleece = add_scratch(test, qmp)
    inject(qmp, fleece, iotype="write", errno=28)
    qmp.command("view-create", name="v", scratch_nodes=[fleece], cbw_timeout=TIMEOUT,
                on_cbw_error="break-guest-write")  # fmt: skip
    assert error_of(guest.pwrite, b"n" * MIB, 0) == "EIO"
    assert error_of(guest.zero, MIB, MIB) == "EIO"
    assert bytes(guest.pread(2 * MIB, 0)) == b"o" * 2 * MIB
    reader = server.connect("vda@v")
    assert bytes(reader.pread(2 * MIB, 0)) == b"o" * 2 * MIB
    # Late counts as failed.
    inject(qmp, fleece, iotype="write", errno=0, delay_ns=6 * SECOND)
    start = time.monotonic()
    assert error_of(guest.pwrite, b"n" * 4096, 4 * MIB) == "EIO"
    assert TIMEOUT <= time.monotonic() - start < TIMEOUT + 3
    qmp.command("blkdebug-set", node_name=fleece)
    guest.pwrite(b"n" * 8 * MIB, 0)
    assert bytes(guest.pread(8 * MIB, 0)) == b"n" * 8 * MIB
    for at in range(0, DISK, MIB):
        assert bytes(reader.pread(MIB, at)) == b"o" * MIB
    assert view(qmp)["status"] == "ok"
    reader.shutdown()
    guest.shutdown()
    server.stop()


@promise("a view whose scratch hangs can be dropped once the scratch answers, by quit as well")
def hanging(test):
    server, qmp, guests = serve(test)
    fleece = add_scratch(test, qmp)
    qmp.command("blkdebug-break", node_name=fleece, tag="A", iotype="write")
    qmp.command("view-create", name="v", scratch_nodes=[fleece], cbw_timeout=TIMEOUT)
    guests[0].pwrite(b"n" * MIB, 0)
    qmp.wait_event("BLKDEBUG_SUSPENDED", node_name=fleece)
    reader = server.connect("vda@v")
    assert bytes(reader.pread(MIB, 0)) == b"o" * MIB  # it still is in memory
    reader.shutdown()
    for guest in guests:
        guest.shutdown()
    qmp.command("quit")
    assert server.process.wait(60) == 0, server.log()


main()
