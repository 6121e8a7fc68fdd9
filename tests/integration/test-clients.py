#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The usual NBD clients, and several of them at once while backups run."""

import json

from liveblk_load import Writers, assert_guest_unharmed, same_contents
from liveblk_test import DiskModel, Server, main, promise, start_backup

MIB = 1 << 20


def write_model(handle, length, holes=True):
    model = DiskModel(length)
    step = 2 * MIB if holes else MIB
    for at in range(0, length, step):
        handle.pwrite(model.write(at, MIB), at)
    return model


@promise("nbdcopy copies a disk in and out, several connections and all, and holes stay holes")
def nbdcopy(test):
    source = test.make_disk("source.img", 32 * MIB)
    model = DiskModel(32 * MIB)
    with open(source, "r+b") as file:
        for at in range(0, 32 * MIB, 4 * MIB):
            file.seek(at)
            file.write(model.write(at, MIB))
    disk = test.make_disk("disk.img", 32 * MIB)
    server = Server(test, [disk])
    test.run("nbdcopy", "--connections=4", "--flush", source, server.uri())
    model.assert_equals_file(disk)
    out = test.path("out.img")
    test.run("nbdcopy", "--connections=4", server.uri(), out)
    model.assert_equals_file(out)
    assert out.stat().st_blocks * 512 <= 9 * MIB
    test.run("nbdcopy", "--connections=4", "--flush", "--destination-is-zero", source, server.uri())
    model.assert_equals_file(disk)


@promise("nbdcopy copies from one of our disks to another")
def nbdcopy_between(test):
    one, two = test.make_disk("one.img", 16 * MIB), test.make_disk("two.img", 16 * MIB)
    server = Server(test, [one, two])
    model = write_model(server.connect("vda"), 16 * MIB)
    test.run("nbdcopy", "--flush", server.uri("vda"), server.uri("vdb"))
    model.assert_equals_file(two)


@promise("qemu-img converts, compares and describes a disk over NBD")
def qemu_img(test):
    disk = test.make_disk("disk.img", 16 * MIB)
    server = Server(test, [disk])
    model = write_model(server.connect(), 16 * MIB)
    told = json.loads(test.run("qemu-img", "info", "--output=json", server.uri()).stdout)
    assert told["virtual-size"] == 16 * MIB
    copy = test.path("copy.qcow2")
    test.run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-m", "8", "-W", server.uri(), copy)
    test.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", server.uri(), copy)
    server.connect().pwrite(model.write(MIB, 4096), MIB)
    test.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", server.uri(), copy, status=1)
    test.run("qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", copy, server.uri())
    test.run("qemu-img", "compare", "-f", "raw", "-F", "qcow2", server.uri(), copy)
    measured = test.run("qemu-img", "map", "--output=json", "-f", "raw", server.uri()).stdout
    assert any(entry["zero"] for entry in json.loads(measured))


@promise("qemu-io writes patterns, zeroes and discards that it reads back")
def qemu_io(test):
    server = Server(test, [test.make_disk("disk.img", 8 * MIB)])
    commands = (
        "write -P 0xab 0 2M", "write -P 0xcd 1000k 300k", "write -z 512k 64k", "discard 4M 1M",
        "write -z -u 64k 64k", "write -f -P 0x11 3M 4k", "aio_write -P 0x22 5M 1M",
        "aio_write -P 0x33 6M 1M", "aio_flush", "flush", "read -P 0xab 0 64k", "read -P 0 64k 64k",
        "read -P 0xcd 1000k 300k", "read -P 0 512k 64k", "read -P 0 4M 1M", "read -P 0x11 3M 4k",
        "read -P 0x22 5M 1M", "read -P 0x33 6M 1M", "read -P 0xab 1300k 748k",
    )  # fmt: skip
    arguments = [word for command in commands for word in ("-c", command)]
    out = test.run("qemu-io", "-f", "raw", "-t", "none", *arguments, server.uri()).stdout
    assert "Pattern verification failed" not in out and out.count("read ") == 9, out


@promise("nbdsh reads what it wrote")
def nbdsh(test):
    server = Server(test, [test.make_disk("disk.img", MIB)])
    test.run("nbdsh", "-u", server.uri(), "-c", "h.pwrite(b'nbdsh' * 1000, 777)", "-c",
             "assert h.pread(5000, 777) == b'nbdsh' * 1000", "-c", "h.flush()",
             env={"PATH": "/usr/bin:/bin"})  # fmt: skip # another Python has no libnbd


@promise("fio verifies what it wrote, while backups are taken one after the other")
def fio_verifies(test):
    disk = test.make_disk("disk.img", 16 * MIB)
    server = Server(test, [disk])
    qmp = server.qmp()
    process = test.start(
        "fio", "--name=verify", "--ioengine=nbd", f"--uri={server.uri()}", "--rw=randwrite",
        "--blocksize_range=4k-64k", "--iodepth=16", "--size=16M", "--io_size=128M",
        "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=128", "--loops=1",
        cwd=test.directory, log="fio.log",
    )  # fmt: skip
    backups = 0
    while process.poll() is None or backups == 0:
        qmp.command("drive-backup", job_id="j", device="vda", sync="full",
                    target=str(test.path(f"backup{backups % 2}.img")))  # fmt: skip
        qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")
        assert qmp.wait_job("j", "null") == "null"
        backups += 1
    assert process.wait() == 0, process.log_path.read_text()
    test.log(f"{backups} backups meanwhile")


def finish(qmp, job):
    event = qmp.wait_event("BLOCK_JOB_COMPLETED", device=job)["data"]
    assert "error" not in event, event
    qmp.wait_event("JOB_STATUS_CHANGE", id=job, status="null")


@promise("with overlapping writers on several connections each backup is the disk as it was when "
         "the backup began")  # fmt: skip
def backups_of_moments(test):
    disk = test.make_disk("disk.img", 24 * MIB)
    server = Server(test, [disk])
    writers = Writers(test, server.uri(), 24 * MIB, threads=6).start()
    qmp = server.qmp()
    for number in range(5):
        writers.wait_done(200)
        target = test.path(f"backup{number}.img")
        with writers.held() as moment:
            start_backup(qmp, "j", target)
        finish(qmp, "j")
        moment.assert_equals_file(target)
        target.unlink()
    writers.stop()
    handle = server.connect()
    writers.model.assert_equals(lambda at, length: handle.pread(length, at))
    handle.flush()
    writers.model.assert_equals_file(disk)


@promise("a slow, paused and resumed backup is still of its moment")
def slow_backup(test):
    server = Server(test, [test.make_disk("disk.img", 16 * MIB)])
    writers = Writers(test, server.uri(), 16 * MIB).start()
    qmp = server.qmp()
    target = test.path("backup.img")
    with writers.held() as moment:
        start_backup(qmp, "j", target, speed=2 * MIB)
    writers.wait_done(300)
    qmp.command("block-job-pause", device="j")
    writers.wait_done(300)
    qmp.command("block-job-resume", device="j")
    writers.wait_done(300)
    qmp.command("block-job-set-speed", device="j", speed=0)
    finish(qmp, "j")
    writers.stop()
    moment.assert_equals_file(target)


@promise("two backups of one disk at once are each of their own moment")
def two_backups(test):
    server = Server(test, [test.make_disk("disk.img", 16 * MIB)])
    writers = Writers(test, server.uri(), 16 * MIB).start()
    qmp = server.qmp()
    moments = []
    for number in (1, 2):
        with writers.held() as moment:
            moments.append(moment)
            start_backup(qmp, f"j{number}", test.path(f"{number}.img"), speed=4 * MIB)
        writers.wait_done(200)
    for number in (1, 2):
        qmp.command("block-job-set-speed", device=f"j{number}", speed=0)
    for number, moment in enumerate(moments, 1):
        finish(qmp, f"j{number}")
        moment.assert_equals_file(test.path(f"{number}.img"))
    writers.stop()


@promise("backups to an NBD target under writers are of their moments")
def nbd_targets(test):
    server = Server(test, [test.make_disk("disk.img", 16 * MIB)])
    far = test.make_disk("far.img", 16 * MIB)
    target = Server(test, plugin="file", parameters=[far], name="target")
    writers = Writers(test, server.uri(), 16 * MIB).start()
    qmp = server.qmp()
    qmp.command_raw("blockdev-add", {"driver": "nbd", "node-name": "t", "export": "",
                                     "server": {"type": "unix", "path": str(target.nbd)}})  # fmt: skip
    for _ in range(3):
        writers.wait_done(100)
        with writers.held() as moment:
            qmp.command("blockdev-backup", job_id="j", device="vda", target="t", sync="full")
        finish(qmp, "j")
        moment.assert_equals_file(far)
    writers.stop()
    qmp.command("blockdev-del", node_name="t")


@promise("a cancelled backup leaves the disk and its writers alone")
def cancelled(test):
    server = Server(test, [test.make_disk("disk.img", 16 * MIB)])
    writers = Writers(test, server.uri(), 16 * MIB).start()
    qmp = server.qmp()
    for number in range(4):
        start_backup(qmp, "j", test.path("backup.img"), speed=MIB)
        writers.wait_done(50)
        qmp.command("block-job-cancel", device="j", force=number % 2 == 0)
        qmp.wait_event("BLOCK_JOB_CANCELLED", device="j")
        qmp.wait_event("JOB_STATUS_CHANGE", id="j", status="null")
    assert_guest_unharmed(server, writers, 100)
    assert not same_contents(test.path("disk.img"), test.path("backup.img"))


@promise("many short connections come and go while others write")
def short_connections(test):
    server = Server(test, [test.make_disk("disk.img", 8 * MIB)])
    writers = Writers(test, server.uri(), 8 * MIB, threads=2).start()
    for _ in range(60):
        handle = server.connect()
        handle.pread(4096, 0)
        handle.shutdown()
    assert_guest_unharmed(server, writers)


main()
