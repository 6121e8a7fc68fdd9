#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""qcow2 images that are served, and the program's commands for images that are not."""

import errno
import json
import os
import shutil
import time

import nbd
from liveblk_load import Writers, hang_up
from liveblk_test import PLUGIN, QmpError, Server, main, promise

MIB = 1 << 20
QCOW2_HEADER = b"QFI\xfb\x00\x00\x00\x03" + bytes(504)


def make_qcow2(test, name, length, *options):
    path = test.path(name)
    test.run("qemu-img", "create", "-q", "-f", "qcow2", *options, path, length)
    return path


def check(test, path):
    test.run("qemu-img", "check", "-q", "-f", "qcow2", path)


def compare(test, one, other, other_format="raw"):
    test.run("qemu-img", "compare", "-q", "-f", "qcow2", "-F", other_format, one, other)


def assert_image(test, image, model, *options):
    """What QEMU reads of an image, or with -l of a snapshot, is what the model says."""
    check(test, image)
    out = test.path("converted")
    test.run("qemu-img", "convert", "-f", "qcow2", *options, "-O", "raw", image, out)
    model.assert_equals_file(out)
    out.unlink()


@promise("a qcow2 image needs no format, and what clients write to it is there for QEMU")
def serves(test):
    image = make_qcow2(test, "disk.qcow2", 64 * MIB)
    data = test.path("data")
    data.write_bytes(os.urandom(20 * MIB) + bytes(24 * MIB) + os.urandom(20 * MIB))
    server = Server(test, [image])
    test.run("nbdcopy", "--flush", data, server.uri())
    assert "qcow2" in test.run("nbdinfo", server.uri()).stdout
    server.stop()
    check(test, image)
    compare(test, image, data)


@promise("a guest cannot make a raw disk look like qcow2 unless its format was said to be raw")
def stays_raw(test):
    disk = test.make_disk("disk.img", MIB)
    server = Server(test, [disk], name="guessed")
    handle = server.connect()
    for at, data in ((0, QCOW2_HEADER), (0, b"QFI\xfb\x00\x00\x00\x02")):
        try:
            handle.pwrite(data, at)
            raise AssertionError("a qcow2 header could be written")
        except nbd.Error as error:
            assert error.errnum == 1, error  # EPERM
    handle.pwrite(b"QFI\xfb", 0)  # no header yet
    try:
        handle.pwrite(b"\x00\x00\x00\x03", 4)
        raise AssertionError("a qcow2 header could be written in two steps")
    except nbd.Error:
        pass
    handle.pwrite(b"\x55\xaa", 510)
    assert bytes(handle.pread(8, 0)) == b"QFI\xfb" + bytes(4)
    handle.shutdown()
    assert "format=raw" in server.log(), server.log()
    server.stop()
    server = Server(test, [f"file={disk},format=raw"], name="said")
    handle = server.connect()
    handle.pwrite(QCOW2_HEADER, 0)
    handle.shutdown()
    server.stop()
    server = Server(test, [f"file={disk},format=raw"], name="again")
    handle = server.connect()
    assert handle.get_size() == MIB and bytes(handle.pread(512, 0)) == QCOW2_HEADER
    handle.shutdown()
    server.stop()


@promise("a guest that may not choose its disk's format may not do so after a move either")
def stays_raw_elsewhere(test):
    disk = test.make_disk("disk.img", MIB)
    server = Server(test, [disk])
    handle = server.connect()
    for words, may in (((), False), (("--format", "raw"), True)):
        target = test.path(f"moved{may}.img")
        test.liveblk("mirror", "vda", "--to", target, "--pivot", *words, "--admin", server.admin)
        try:
            handle.pwrite(QCOW2_HEADER, 0)
            assert may, "a qcow2 header could be written"
        except nbd.Error as error:
            assert not may and error.errnum == 1, error  # EPERM
    handle.shutdown()
    server.stop()


@promise("an internal snapshot is taken and deleted while guests write, and stays as it was")
def snapshots(test):
    image = make_qcow2(test, "disk.qcow2", 16 * MIB)
    server = Server(test, [image])
    qmp = server.qmp()
    writers = Writers(test, server.uri(), 16 * MIB).start()
    qmp.command("blockdev-snapshot-internal-sync", device="vda", name="busy")
    writers.wait_done(200)
    with writers.held() as model:
        then = model
        qmp.command("blockdev-snapshot-internal-sync", device="vda", name="quiet")
    writers.wait_done(500)
    gone = qmp.command("blockdev-snapshot-delete-internal-sync", device="vda", name="busy")
    assert gone["name"] == "busy" and gone["id"] == "1", gone
    for arguments, text in (
        ({"name": "quiet"}, "Snapshot with name 'quiet' already exists on device 'vda'"),
        ({"name": ""}, "Name is empty"),
    ):
        try:
            qmp.command("blockdev-snapshot-internal-sync", device="vda", **arguments)
            raise AssertionError(f"{arguments} was taken")
        except QmpError as error:
            assert error.desc == text, error
    try:
        qmp.command("blockdev-snapshot-delete-internal-sync", device="vda", name="busy")
        raise AssertionError("it was deleted twice")
    except QmpError as error:
        assert "does not exist on device 'vda'" in error.desc, error
    writers.stop()
    server.stop()
    assert_image(test, image, writers.model)
    assert_image(test, image, then, "-l", "quiet")


@promise("a served qcow2 image grows, and clients that come later see it")
def resizes(test):
    image = make_qcow2(test, "disk.qcow2", 4 * MIB, "-o", "cluster_size=4k")
    server = Server(test, [image])
    server.qmp().command("block_resize", device="vda", size=600 * MIB)
    handle = server.connect()
    assert handle.get_size() == 600 * MIB
    handle.pwrite(b"x" * 4096, 599 * MIB)
    handle.shutdown()
    server.stop()
    check(test, image)


@promise("damage to an image is told at once, and nothing is written to it any more")
def damage(test):
    image = make_qcow2(test, "disk.qcow2", 4 * MIB)
    test.run("qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", image)
    with open(image, "r+b") as file:
        file.seek(40)
        file.seek(int.from_bytes(file.read(8), "big"))  # the L1 table
        entries = int.from_bytes(file.read(8), "big") & (1 << 56) - 512
        file.seek(entries + 8)  # the second cluster's: where the refcount table is
        file.write((1 << 63 | 1 << 16).to_bytes(8, "big"))
    server = Server(test, [f"name=vda,file={image},format=qcow2"])
    qmp, other = server.qmp(), server.qmp()
    handle = server.connect()
    assert bytes(handle.pread(4096, 0)) == b"\7" * 4096
    inserted = qmp.command("query-block")[0]["inserted"]
    assert inserted["ro"] is False
    for access in (lambda: handle.pread(4096, 65536), lambda: handle.pwrite(b"x" * 4096, 65536),
                   lambda: handle.pwrite(b"x" * 4096, 0)):  # fmt: skip
        try:
            access()
            raise AssertionError("a damaged image was used")
        except nbd.Error as error:
            assert error.errnum == errno.EIO, error
    for client in (qmp, other):
        data = client.wait_event("BLOCK_IMAGE_CORRUPTED")["data"]
        assert data["node-name"] == inserted["node-name"] and data["device"] == "", data
        assert data["fatal"] is True and data["offset"] == 65536 and data["size"] == 65536, data
        assert "is not valid" in data["msg"], data
        assert not [event for event in client.events if event["event"] == "BLOCK_IMAGE_CORRUPTED"]
    assert bytes(handle.pread(4096, 2 * 65536)) == b"\7" * 4096
    nodes = qmp.command("query-named-block-nodes", flat=True)
    states = {node["drv"]: node["ro"] for node in nodes}
    assert states == {"qcow2": True, "file": False}, states
    inserted = qmp.command("query-block")[0]["inserted"]
    assert inserted["ro"] is True
    assert inserted["image"]["format-specific"]["data"]["corrupt"] is True
    handle.shutdown()
    server.stop()
    info = json.loads(test.run("qemu-img", "info", "--output=json", image).stdout)
    assert info["format-specific"]["data"]["corrupt"] is True, info
    result = test.run("nbdkit", "-U", "-", "--run", "true", PLUGIN, f"disk={image}",
                      env=Server.environment(), status=None)  # fmt: skip
    assert "Image is corrupt" in result.stderr, result.stderr


@promise("an image and its data file can be moved together")
def moves_data_file(test):
    old, new = test.path("old"), test.path("new")
    data = os.urandom(MIB)
    for image in (old / "disk.qcow2", "disk.qcow2"):  # from elsewhere, and from its directory
        old.mkdir()
        test.liveblk("create", "-o", "data_file=disk.raw,data_file_raw=on", image, "1M", cwd=old)
        info = json.loads(test.liveblk("info", "--json", old / "disk.qcow2").stdout)
        assert info["format-specific"]["data"]["data-file"] == "disk.raw", info
        old.rename(new)
        server = Server(test, [new / "disk.qcow2"])
        handle = server.connect()
        handle.pwrite(data, 0)
        handle.shutdown()
        server.stop()
        assert (new / "disk.raw").read_bytes() == data
        # QEMU looks for it from where it runs.
        test.run("qemu-img", "compare", "-q", "disk.qcow2", "disk.raw", cwd=new)
        shutil.rmtree(new)


@promise("query-blockstats and stats tell whether the caches of a qcow2 disk are large enough")
def caches(test):
    image = make_qcow2(test, "disk.qcow2", 4 * MIB, "-o", "cluster_size=512,preallocation=full")
    server = Server(test, [f"file.driver=qcow2,file.l2-cache-size=64k,file.file.driver=file,"
                           f"file.file.filename={image}"])
    qmp = server.qmp()
    handle = server.connect()
    for _ in range(2):
        for at in range(0, 4 * MIB, 32 << 10):  # an L2 table, of 512 bytes, each
            handle.pread(512, at)
    handle.shutdown()
    device = qmp.command("query-blockstats")[0]
    counts = device["driver-specific"]
    assert counts["driver"] == "qcow2" and counts["l2-cache-size"] == 64 << 10, counts
    assert counts["l2-cache-misses"] == 128 and counts["l2-cache-hits"] >= 128, counts
    assert counts["refcount-cache-size"] == 2 * MIB and counts["refcount-cache-hits"] >= 0, counts
    assert counts["refcount-cache-misses"] >= 0, counts
    nodes = qmp.command("query-blockstats", query_nodes=True)
    assert [node["driver-specific"] for node in nodes if "driver-specific" in node] == [counts]
    entries = json.loads(test.liveblk("stats", "--json", "-a", server.admin).stdout)
    entry = next(entry for entry in entries if entry.get("cache") == "l2")
    assert entry == {"device": "vda", "cache": "l2", "size": 64 << 10,
                     "hits": counts["l2-cache-hits"], "misses": 128}  # fmt: skip
    text = test.liveblk("stats", "-a", server.admin).stdout
    assert "MISSES" in text and "refcount" in text, text
    server.stop()


@promise("a backup into qcow2, compressed too, is what the disk was at its start")
def backups(test):
    disk = test.make_disk("disk.img", 16 * MIB)
    for compress in (False, True):
        name = f"target-{compress}"
        server = Server(test, [f"file={disk},format=raw"], name=name)
        qmp = server.qmp()
        writers = Writers(test, server.uri(), 16 * MIB, threads=2).start()
        with writers.held() as model:
            then = model
            qmp.command("drive-backup", job_id="b", device="vda", sync="full", format="qcow2",
                        target=str(test.path(name)), compress=compress)  # fmt: skip
        event = qmp.wait_event("BLOCK_JOB_COMPLETED", device="b")
        assert "error" not in event["data"], event
        writers.stop()
        server.stop()
        assert_image(test, test.path(name), then)
    try:
        server = Server(test, [f"file={disk},format=raw"], name="last")
        server.qmp().command("drive-backup", job_id="b", device="vda", sync="full",
                             target=str(test.path("raw")), compress=True)  # fmt: skip
        raise AssertionError("a raw target was compressed")
    except QmpError as error:
        assert error.desc.startswith("Compression is not supported for this drive"), error


@promise("backup --compress makes a compressed qcow2 image, and nothing else")
def compressed_backup(test):
    disk = test.path("disk.img")
    lines = b"".join(b"line %d of a log\n" % i for i in range(200000))
    disk.write_bytes((lines + os.urandom(MIB)).ljust(8 * MIB, b"\0"))
    server = Server(test, [f"file={disk},format=raw"])
    target, raw = test.path("target.qcow2"), test.path("target.img")
    begin = ["backup", "vda", "-a", server.admin, "--quiet"]
    test.liveblk(*begin, "--to", target, "--format", "qcow2", "--compress")
    compare(test, target, disk)
    found = json.loads(test.run("qemu-img", "check", "--output=json", target).stdout)
    assert found.get("leaks", 0) == found.get("corruptions", 0) == 0, found
    # Of the data, all but what is random.
    assert found["compressed-clusters"] >= len(lines) // 65536, found
    assert target.stat().st_size < len(lines) // 2 + 2 * MIB
    for words in ([], ["--format", "raw"]):
        result = test.liveblk(*begin, "--to", raw, "--compress", *words, status=2)
        assert "A raw file cannot be compressed" in result.stderr, result.stderr
        assert not raw.exists()
    result = test.liveblk(*begin, "--to", "nbd://localhost/x", "-c", status=2)
    assert "has none" in result.stderr, result.stderr
    test.make_disk("node.img", 8 * MIB)
    server.qmp().command("blockdev-add", driver="raw", node_name="plain",
                         file={"driver": "file", "filename": str(test.path("node.img"))})  # fmt: skip
    result = test.liveblk(*begin, "--to", "node:plain", "-c", status=1)
    assert "Compression is not supported for this drive plain" in result.stderr, result.stderr
    server.stop()


@promise("a disk moves from raw into qcow2 while its guest writes")
def moves(test):
    disk = test.make_disk("disk.img", 16 * MIB)
    target = make_qcow2(test, "target.qcow2", 16 * MIB)
    server = Server(test, [f"file={disk},format=raw"])
    qmp = server.qmp()
    writers = Writers(test, server.uri(), 16 * MIB, threads=2).start()
    qmp.command_raw("blockdev-add", {"driver": "qcow2", "node-name": "t", "discard": "unmap",
                    "file": {"driver": "file", "filename": str(target)}})  # fmt: skip
    qmp.command("blockdev-mirror", job_id="m", device="vda", target="t", sync="full")
    qmp.wait_event("BLOCK_JOB_READY", device="m")
    qmp.command("block-job-complete", device="m")
    event = qmp.wait_event("BLOCK_JOB_COMPLETED", device="m")
    assert "error" not in event["data"], event
    writers.wait_done(300)
    writers.stop()
    server.stop()
    assert_image(test, target, writers.model)


@promise("after kill -9 an image has no errors, and every byte that was flushed")
def survives_kill(test):
    for number in range(6):
        image = make_qcow2(test, f"disk{number}.qcow2", 32 * MIB, "-o", "cluster_size=4k")
        server = Server(test, [image], name=f"server{number}")
        handle = server.connect()
        kept = {}
        deadline = time.monotonic() + 0.2 + test.random.random() / 2
        while time.monotonic() < deadline:
            fresh = {}
            for _ in range(test.random.randrange(1, 40)):
                at = test.random.randrange(0, 32 * MIB // 4096) * 4096
                fresh[at] = test.random.getrandbits(64).to_bytes(8, "big") * 512
                handle.pwrite(fresh[at], at)
            handle.flush()
            kept.update(fresh)
        for at in test.random.sample(range(0, 32 * MIB, 4096), 30):
            if at not in kept:  # not flushed, and not asked for
                handle.pwrite(b"y" * 4096, at)
        server.kill()
        hang_up(handle)
        result = test.run("qemu-img", "check", "-f", "qcow2", image, status=None)
        assert result.returncode in (0, 3), result.stdout
        server = Server(test, [image], name=f"again{number}")
        handle = server.connect()
        for at, data in kept.items():
            assert bytes(handle.pread(4096, at)) == data, at
        handle.shutdown()
        server.stop()
        assert test.liveblk("check", "--repair", "leaks", image).returncode == 0
        check(test, image)


@promise("what images refer to can be forbidden, or kept in a directory")
def gate(test):
    os.mkdir(test.path("allowed"))
    base = test.path("allowed") / "base.img"
    base.write_bytes(b"b" * MIB)
    image = make_qcow2(test, "disk.qcow2", MIB, "-b", base, "-F", "raw")
    for policy, is_allowed in (("all", True), (test.path("allowed"), True), ("none", False),
                               ("/usr", False)):  # fmt: skip
        words = [f"disk={image}", f"image-references={policy}"]
        result = test.run("nbdkit", "-U", "-", "--run", "nbdinfo --size \"$uri\"",
                          PLUGIN, *words,
                          env=Server.environment(), status=None)  # fmt: skip
        if is_allowed:
            assert result.returncode == 0 and result.stdout.strip() == str(MIB), result.stderr
        else:
            assert result.returncode != 0, policy
            assert "image-references does not allow" in result.stderr, result.stderr
        # The commands that open images themselves keep to the same policy.
        result = test.liveblk("map", "--image-references", policy, image,
                              status=0 if is_allowed else 1)  # fmt: skip
        assert is_allowed or "image-references does not allow" in result.stderr, result.stderr


@promise("options of the format can be given with a disk; a snapshot is shown read-only")
def options(test):
    image = make_qcow2(test, "disk.qcow2", MIB)
    test.run("qemu-io", "-f", "qcow2", "-c", "write -P 1 0 1M", image)
    test.run("qemu-img", "snapshot", "-c", "one", image)
    test.run("qemu-io", "-f", "qcow2", "-c", "write -P 2 0 1M", image)
    for more, pattern in ((",snapshot=one,read-only=on", 1), (",l2-cache-size=1M", 2)):
        server = Server(test, [f"file={image}{more}"], name=f"server{pattern}")
        handle = server.connect()
        assert bytes(handle.pread(MIB, 0)) == bytes([pattern]) * MIB
        assert handle.is_read_only() == (pattern == 1)
        handle.shutdown()
        server.stop()
    for more, words in ((",snapshot=one", "open the node with read-only=on"),
                        (",format=raw,snapshot=one", "Parameter 'snapshot' is unexpected"),
                        (",for-check=on", "Parameter 'for-check' is unexpected"),
                        (",l2-cache-size=x", "l2-cache-size")):  # fmt: skip
        result = test.run("nbdkit", "-U", "-", "--run", "true", PLUGIN, f"disk=file={image}{more}",
                          env=Server.environment(), status=None)  # fmt: skip
        assert result.returncode != 0 and words in result.stderr, result.stderr


@promise("create, info, map, check, snapshot and resize agree with qemu-img")
def commands(test):
    base, image = test.path("base.qcow2"), test.path("disk.qcow2")
    test.liveblk("create", "--option", "cluster_size=4k", base, "8M")
    test.run("qemu-io", "-f", "qcow2", "-c", "write -P 1 1M 2M", "-c", "write -z 4M 64k", base)
    test.liveblk("create", "--backing", base, "--backing-format", "qcow2", image)
    test.run("qemu-io", "-f", "qcow2", "-c", "write -P 2 2M 512k", image)
    for path in (base, image):
        check(test, path)
        ours = json.loads(test.liveblk("info", "--json", path).stdout)
        theirs = json.loads(test.run("qemu-img", "info", "--output=json", path).stdout)
        for key in ("virtual-size", "format", "cluster-size", "actual-size", "dirty-flag",
                    "backing-filename", "backing-filename-format"):  # fmt: skip
            assert ours.get(key) == theirs.get(key), (key, ours, theirs)
        ours, theirs = ours["format-specific"]["data"], theirs["format-specific"]["data"]
        assert {key: ours.get(key) for key in theirs} == theirs, (ours, theirs)
        ours = json.loads(test.liveblk("map", "--json", path).stdout)
        theirs = json.loads(test.run("qemu-img", "map", "--output=json", path).stdout)
        for extent in ours:
            del extent["compressed"]  # which qemu-img tells since 8.2
        for extent in theirs:
            extent.pop("compressed", None)
        assert ours == theirs, (ours, theirs)
        result = json.loads(test.liveblk("check", "--json", path).stdout)
        assert result["corruptions"] == result["leaks"] == 0 and not result["findings"], result
    test.liveblk("amend", "-o", "compat=0.10", base)
    test.liveblk("amend", "-o", "compat=1.1,lazy_refcounts=on", "-o", "refcount_bits=32", base)
    amended = json.loads(test.run("qemu-img", "info", "--output=json", base).stdout)
    amended = amended["format-specific"]["data"]
    assert amended["lazy-refcounts"] and amended["refcount-bits"] == 32, amended
    check(test, base)
    assert "no option 'size'" in test.liveblk("amend", "-o", "size=1M", base, status=2).stderr
    assert test.liveblk("amend", base, status=2).stderr.find("--option") > 0
    test.liveblk("snapshot", "--create", "one", image)
    assert "one" in test.run("qemu-img", "snapshot", "-l", image).stdout
    test.run("qemu-io", "-f", "qcow2", "-c", "write -P 3 0 1M", image)
    test.liveblk("snapshot", "--apply", "one", image)
    test.run("qemu-io", "-f", "qcow2", "-c", "read -P 0 0 1M", "-c", "read -P 2 2M 512k", image)
    test.run("qemu-img", "snapshot", "-c", "two", image)
    listed = json.loads(test.liveblk("snapshot", "--json", image).stdout)
    assert [entry["name"] for entry in listed] == ["one", "two"], listed
    test.liveblk("snapshot", "--create", "2", image)  # what "two" has as its ID
    result = test.liveblk("snapshot", "--delete", "2", image, status=1)
    assert "the name of one snapshot and the ID of another" in result.stderr, result.stderr
    test.liveblk("snapshot", "--delete", "3", image)
    result = test.liveblk("create", "-b", image, "-F", "qcow2", image, "1M", status=2)
    assert "its own backing file" in result.stderr, result.stderr
    over = test.path("over.qcow2")
    test.liveblk("create", "-b", image, "-F", "qcow2", over)
    test.liveblk("create", "-b", over, "-F", "qcow2", base, status=1)  # which is below that
    words = ("--image-references", "none")
    result = test.liveblk("create", *words, "-b", over, "-F", "qcow2", base, "1M", status=1)
    assert "does not allow" in result.stderr, result.stderr
    result = test.liveblk("info", *words, "--admin", "nowhere", "vda", status=2)
    assert "is for files" in result.stderr, result.stderr
    test.liveblk("resize", image, "+1M")
    assert test.liveblk("resize", image, "1M", status=2).stderr.find("--shrink") > 0
    test.liveblk("snapshot", "--delete", "one", image)
    test.liveblk("snapshot", "--delete", "two", image)
    test.liveblk("resize", "--shrink", image, "4M")
    check(test, image)
    with open(image, "r+b") as file:  # a refcount block that says less
        file.seek(2 * 65536)
        file.write(bytes(16))
    assert test.liveblk("check", image, status=2).stdout.count("refcount") > 0
    test.liveblk("check", "--repair", "all", image)
    check(test, image)


main()
