#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The drivers compress, preallocate and blklogwrites in real servers, with real clients."""

import json
import os
import pathlib
import struct
import threading

from liveblk_test import QmpError, Server, connect, main, promise, wait_until

KIB = 1 << 10
MIB = 1 << 20
LENGTH = 4 * MIB
SECTOR = 512
FLUSH, FUA, DISCARD = 1, 2, 4
BUILD = pathlib.Path(os.environ["LIVEBLK_BUILD"])


def image(test, name, size=LENGTH, words=()):
    path = test.path(name)
    test.run("qemu-img", "create", "-q", "-f", "qcow2", *words, path, size)
    return path


def assert_image(test, path, content):
    """QEMU finds no fault with it, not even a lost cluster, and reads this in it."""
    raw = test.path("wanted.raw")
    raw.write_bytes(content)
    told = json.loads(test.run("qemu-img", "check", "--output=json", path).stdout)
    test.run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", path, raw)
    return told


class Client:
    """Writes, and knows what the disk holds then."""

    def __init__(self, handle, length=LENGTH):
        self.handle = handle
        self.model = bytearray(length)

    def write(self, offset, data, flags=0):
        self.handle.pwrite(data, offset, flags)
        self.model[offset : offset + len(data)] = data

    def zero(self, offset, length):
        self.handle.zero(length, offset)
        self.model[offset : offset + length] = bytes(length)

    def check(self):
        assert self.handle.pread(len(self.model), 0) == self.model


def nbd_export(test, server, qmp, node, name="export.nbd"):
    """A handle to a node of the server's."""
    path = test.path(name)
    qmp.command_raw("nbd-server-start", {"addr": {"type": "unix", "data": {"path": str(path)}}})
    qmp.command_raw(
        "block-export-add", {"type": "nbd", "id": "e", "node-name": node, "writable": True}
    )
    return connect(f"nbd+unix:///{node}?socket={path}")


def refused(qmp, word, **options):
    try:
        qmp.command_raw("blockdev-add", options)
    except QmpError as error:
        assert word in error.desc, error.desc
        return
    raise AssertionError(f"{options} was not refused")


@promise("QMP's schema has the drivers with their options")
def schema(test):
    server = Server(test, [test.make_disk("d.raw", MIB)])
    types = {entry["name"]: entry for entry in server.qmp().command("query-qmp-schema")}
    command = types[types["blockdev-add"]["arg-type"]]
    variants = {case["case"]: types[case["type"]] for case in command["variants"]}
    wanted = {
        "compress": {"file"},
        "preallocate": {"file", "prealloc-align", "prealloc-size"},
        "blklogwrites": {
            "file", "log", "log-sector-size", "log-append", "log-super-update-interval",
        },
    }  # fmt: skip
    for driver, options in wanted.items():
        found = {member["name"]: member for member in variants[driver]["members"]}
        assert set(found) == options, (driver, found)
        required = {name for name, member in found.items() if "default" not in member}
        assert required == options & {"file", "log"}, (driver, required)
    server.stop()


# ---- compress --------------------------------------------------------------------------------


def write_pieces(handle, number, count):
    """Every count-th sector of the first clusters."""
    for sector in range(number, 256, count):
        handle.pwrite(bytes([number + 1]) * SECTOR, sector * SECTOR)


@promise("compress: all data of the image is compressed, whatever pieces clients write together")
def compress(test):
    path = image(test, "d.qcow2")
    server = Server(
        test,
        [
            "name=vda,format=raw,file.driver=compress,file.node-name=pressed,file.discard=unmap,"
            f"file.file.driver=qcow2,file.file.file.driver=file,file.file.file.filename={path}"
        ],
    )
    client = Client(server.connect())
    handles = [server.connect() for _ in range(4)]
    threads = [
        threading.Thread(target=write_pieces, args=(handle, i, 4))
        for i, handle in enumerate(handles)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client.model[: 256 * SECTOR] = b"".join(bytes([i % 4 + 1]) * SECTOR for i in range(256))
    client.check()
    client.write(MIB + 1000, b"abc" * 50000)
    client.write(LENGTH - 10, b"z" * 10)
    client.zero(MIB + 3000, 100)
    client.zero(2 * MIB, MIB)
    client.check()
    nodes = server.qmp().command("query-named-block-nodes", flat=True)
    assert {node["drv"] for node in nodes if node["node-name"] == "pressed"} == {"compress"}, nodes
    for handle in [client.handle, *handles]:
        handle.shutdown()
    server.stop()
    told = assert_image(test, path, client.model)
    assert told["compressed-clusters"] == 6, told  # 2 of pieces, 3 in the middle, the last
    assert told["allocated-clusters"] == 6, told


@promise("compress: it takes the place of a node that clients use, and refuses what cannot compress")
def compress_live(test):
    path = image(test, "d.qcow2", words=("-o", "cluster_size=4k"))
    server = Server(test, [test.make_disk("other.raw", MIB)])
    qmp = server.qmp()
    qmp.command_raw(
        "blockdev-add",
        {
            "driver": "qcow2", "node-name": "q",
            "file": {"driver": "file", "filename": str(path)},
        },
    )  # fmt: skip
    qmp.command_raw("blockdev-add", {"driver": "compress", "node-name": "c", "file": "q"})
    refused(qmp, "Compression is not supported for this drive n", driver="compress",
            **{"node-name": "x"}, file={"driver": "null-co", "node-name": "n"})  # fmt: skip
    refused(qmp, "Parameter 'file' is missing", driver="compress", **{"node-name": "x"})
    client = Client(nbd_export(test, server, qmp, "c"))
    client.write(5000, b"1" * 10000)
    client.handle.flush()
    client.check()
    client.handle.shutdown()
    qmp.command_raw("block-export-del", {"id": "e", "mode": "hard"})
    qmp.wait_event("BLOCK_EXPORT_DELETED", id="e")
    qmp.command("blockdev-del", node_name="c")
    qmp.command("blockdev-del", node_name="q")
    told = assert_image(test, path, client.model)
    assert told["compressed-clusters"] == 3, told
    server.stop()


@promise("compress: liveblk-nbd --image-opts has it, too")
def compress_front_end(test):
    path, socket = image(test, "d.qcow2"), test.path("n")
    options = f"driver=compress,file.driver=qcow2,file.file.driver=file,file.file.filename={path}"
    process = test.start(BUILD / "cli" / "liveblk-nbd", "-k", socket, "--image-opts", options)
    wait_until(socket.exists, "the server listens")
    client = Client(connect(f"nbd+unix:///?socket={socket}"))
    client.write(100, b"x" * 100)
    client.check()
    client.handle.shutdown()
    assert process.wait(30) == 0
    assert assert_image(test, path, client.model)["compressed-clusters"] == 1


# ---- blklogwrites ----------------------------------------------------------------------------


def entries(path, sector=SECTOR):
    """A log in the format of dm-log-writes: (flags, offset, length, data) of each entry."""
    with open(path, "rb") as file:
        magic, version, count, size = struct.unpack("<QQQL", file.read(28))
        assert (magic, version, size) == (0x6A736677736872, 1, sector)
        at = sector
        for _ in range(count):
            file.seek(at)
            number, sectors, flags, _ = struct.unpack("<QQQQ", file.read(32))
            at += sector
            length = sectors * sector
            data = None
            if not flags & DISCARD:
                file.seek(at)
                data = file.read(length)
                assert len(data) == length, (at, length)
                at += length
            yield flags, number * sector, length, data


def replay(path, content, sector=SECTOR):
    """Bring content to each state in turn: yields the flags of the entry that led there."""
    for flags, offset, length, data in entries(path, sector):
        content[offset : offset + length] = bytes(length) if data is None else data
        yield flags


def logged_options(disk, log, **more):
    return {
        "driver": "blklogwrites", "node-name": "logged", "discard": "unmap",
        "file": {"driver": "file", "filename": str(disk)},
        "log": {"driver": "file", "filename": str(log)}, **more,
    }  # fmt: skip


@promise("blklogwrites: at each flush the log makes out of nothing just what the client had written")
def logged(test):
    disk, log = test.make_disk("d.raw", LENGTH), test.make_disk("log", 0)
    server = Server(test, [test.make_disk("other.raw", MIB)])
    qmp = server.qmp()
    qmp.command_raw("blockdev-add", logged_options(disk, log))
    client = Client(nbd_export(test, server, qmp, "logged"))
    snapshots = []
    for i in range(10):
        client.write(i * 3000, bytes([65 + i]) * 5000)
        client.zero(i * 100 * KIB, 70 * KIB)
        client.handle.flush()
        snapshots.append(bytes(client.model))
    client.write(MIB, b"f" * SECTOR, 1)  # forced unit access
    client.handle.trim(64 * KIB, 2 * MIB)
    client.write(3 * MIB, b"t" * SECTOR)
    client.handle.flush()
    snapshots.append(bytes(client.model))
    client.check()
    server.kill()  # what is flushed is in the log
    content, found = bytearray(LENGTH), []
    kinds = set()
    for flags in replay(log, content):
        kinds.add(flags)
        if flags & FLUSH:
            found.append(bytes(content))
    assert found == snapshots, [a == b for a, b in zip(found, snapshots)]
    assert kinds == {0, FLUSH, FUA, DISCARD}, kinds
    assert disk.read_bytes() == client.model


@promise("blklogwrites: a log is appended to, also with other sectors, or begun anew")
def appended(test):
    disk, log = test.make_disk("d.raw", LENGTH), test.make_disk("log", 0)
    model = bytearray(LENGTH)
    for number in range(2):
        options = logged_options(
            disk, log, **{"log-sector-size": 4096, "log-append": number > 0}
        )  # fmt: skip
        server = Server(test, [test.make_disk(f"other{number}.raw", MIB)], name=f"s{number}")
        qmp = server.qmp()
        qmp.command_raw("blockdev-add", options)
        client = Client(nbd_export(test, server, qmp, "logged", f"e{number}.nbd"))
        client.model[:] = model
        client.write(number * MIB + 100, b"n" * 10000)
        model[:] = client.model
        client.handle.shutdown()
        qmp.close()
        server.stop()
        content = bytearray(LENGTH)
        list(replay(log, content, 4096))
        assert content == model == disk.read_bytes()
    server = Server(test, [test.make_disk("other2.raw", MIB)], name="s2")
    qmp = server.qmp()
    wrong = logged_options(disk, log, **{"log-append": True})
    refused(qmp, "give log-sector-size=4096 to append to it", **wrong)
    qmp.command_raw("blockdev-add", logged_options(disk, log))
    qmp.command("blockdev-del", node_name="logged")
    assert not list(entries(log))
    server.stop()


def holds(test, path, content):
    raw = test.path("wanted.raw")
    raw.write_bytes(content)
    words = ("qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", path, raw)
    return test.run(*words, status=None).returncode == 0


@promise("blklogwrites below qcow2: the image is sound at each flush, and has what was flushed")
def image_at_each_flush(test):
    path, log = image(test, "d.qcow2"), test.make_disk("log", 0)
    before = path.read_bytes()
    server = Server(
        test,
        [
            f"name=vda,format=qcow2,file.driver=blklogwrites,file.file.driver=file,"
            f"file.file.filename={path},file.log.driver=file,file.log.filename={log}"
        ],
    )
    client = Client(server.connect())
    snapshots = []
    for i in range(6):
        client.write(i * 300 * KIB + 77, bytes([65 + i]) * (100 * KIB))
        client.zero(i * 200 * KIB, 64 * KIB)
        client.handle.flush()
        snapshots.append(bytes(client.model))
    client.handle.shutdown()
    server.stop()
    content = bytearray(before) + bytes(2 * LENGTH)
    crashed = test.path("crashed.qcow2")
    sound = 0
    for flags in replay(log, content):
        if not flags & FLUSH:
            continue
        crashed.write_bytes(content)
        result = test.run("qemu-img", "check", "-q", "-f", "qcow2", crashed, status=None)
        assert result.returncode in (0, 3), result  # clusters may be lost, and no more
        sound += 1
        if snapshots and holds(test, crashed, snapshots[0]):
            snapshots.pop(0)
    assert sound >= 6, sound
    assert not snapshots, f"{len(snapshots)} states of the disk are at no flush"


# ---- preallocate -----------------------------------------------------------------------------


@promise("preallocate below qcow2: the file is allocated ahead, and what was not used is given back")
def preallocated(test):
    path = image(test, "d.qcow2", size=16 * MIB)
    disk = (
        "name=vda,format=qcow2,file.driver=preallocate,file.node-name=ahead,"
        "file.prealloc-size=32M,file.prealloc-align=1M,"
        f"file.file.driver=file,file.file.filename={path}"
    )
    server = Server(test, [disk])
    client = Client(server.connect(), 16 * MIB)
    client.write(MIB + 5, b"a" * (2 * MIB))
    client.handle.flush()
    assert path.stat().st_size > 32 * MIB, path.stat()
    assert path.stat().st_blocks * 512 > 32 * MIB, path.stat()
    server.kill()
    longer = path.stat().st_size
    assert longer > 32 * MIB, longer
    assert_image(test, path, client.model)
    server = Server(test, [disk], name="again")
    client.handle = server.connect()
    client.check()
    client.write(8 * MIB, b"b" * MIB)
    client.handle.shutdown()
    server.stop()
    assert path.stat().st_size <= longer, path.stat()
    assert_image(test, path, client.model)
    # One that ends as it should gives back what it has allocated.
    path.unlink()
    image(test, path.name, size=16 * MIB)
    server = Server(test, [disk], name="third")
    client = Client(server.connect(), 16 * MIB)
    client.write(MIB, b"c" * MIB)
    assert path.stat().st_size > 32 * MIB, path.stat()
    client.handle.shutdown()
    server.stop()
    assert path.stat().st_size < 3 * MIB, path.stat()
    assert_image(test, path, client.model)


@promise("preallocate: a raw disk is as long as its data, and block_resize changes that")
def preallocated_raw(test):
    path = test.make_disk("d.raw", MIB)
    server = Server(
        test,
        [f"name=vda,format=raw,file.driver=preallocate,file.file.driver=file,"
         f"file.file.filename={path}"],
    )  # fmt: skip
    qmp = server.qmp()
    qmp.command("block_resize", device="vda", size=2 * MIB)
    client = Client(server.connect(), 2 * MIB)
    assert client.handle.get_size() == 2 * MIB
    client.write(2 * MIB - 10, b"e" * 10)
    client.check()
    client.handle.shutdown()
    server.stop()
    assert path.read_bytes() == client.model


main()
