#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The harness of the integration tests, tried against nbdkit and qemu-storage-daemon."""

import hashlib

from liveblk_test import DiskModel, Qmp, QmpError, Server, fill, identify, main, promise, wait_until

GOLDEN = "89c15aea9e9cb81308dcc727e22efaff885d93cf706ab0f318e9660b1ef2efd4"


@promise("the sector format is that of the C tests")
def golden_sector(test):
    sector = fill(0x10000, 512, 42, writer=7, time_ns=123456789)
    assert hashlib.sha256(sector).hexdigest() == GOLDEN
    assert identify(sector) == ("whole", 0x10000, 42, 7, 123456789)


def wrong(model, disk):
    return model.wrong_sectors(lambda at, length: bytes(disk[at : at + length]))


@promise("a wrong sector is called stale, too new, torn, misplaced, lost or foreign")
def verdicts(test):
    model = DiskModel(8 * 4096)
    disk = bytearray(model.length)
    assert wrong(model, disk) == []
    disk[:] = model.write(0, model.length)
    before = model.snapshot()
    old = bytes(disk)
    disk[0:8192] = model.write(0, 8192)
    assert wrong(model, disk) == []
    assert wrong(before, disk)[0].startswith("sector at 0x0 is too new")
    for expected, change in (
        ("stale", old[:4096]),
        ("torn", old[:2048] + disk[2048:4096]),
        ("misplaced", disk[4096:8192]),
        ("lost", bytes(4096)),
        ("foreign", b"x" * 4096),
    ):
        spoilt = bytearray(disk)
        spoilt[0:4096] = change
        assert len(wrong(model, spoilt)) == 1, expected
        assert wrong(model, spoilt)[0].startswith(f"sector at 0x0 is {expected}"), expected
    model.zero(4096, 4096)
    assert wrong(model, disk)[0].startswith("sector at 0x1000 is stale")


@promise("a server of any plugin is started, written to, and killed at the end")
def server(test):
    model = DiskModel(1 << 20)
    server = Server(test, plugin="memory", parameters=["1M"])
    handle = server.connect()
    for _ in range(20):
        at = test.random.randrange(0, 250) * 4096
        handle.pwrite(bytes(model.write(at, 16384)), at)
    model.assert_equals(lambda at, length: handle.pread(length, at))
    handle.shutdown()
    server.stop()


@promise("the QMP client speaks with QEMU's own server")
def qemu_speaks(test):
    path = test.path("qmp")
    test.start(
        "qemu-storage-daemon", "--chardev", f"socket,path={path},server=on,wait=off,id=c",
        "--monitor", "chardev=c",
    )  # fmt: skip
    wait_until(path.exists, "qemu-storage-daemon listens")
    with Qmp(path) as qmp:
        assert "qemu" in qmp.greeting["version"]
        for name in ("source", "target"):
            qmp.command("blockdev-add", driver="null-co", node_name=name, size=1 << 20)
        qmp.command("blockdev-backup", job_id="j", device="source", target="target", sync="full")
        assert qmp.wait_job("j", "concluded", "aborting") == "concluded"
        qmp.wait_event("BLOCK_JOB_COMPLETED", device="j", len=1 << 20)
        try:
            qmp.command("job-pause", _id="nobody")
            raise AssertionError("there is no such job")
        except QmpError as error:
            assert error.kind == "GenericError"


main()
