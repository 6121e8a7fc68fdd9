#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Our NBD server on the wire: every option and command, right and wrong; exports that come, go and
move."""

import errno
import struct

import liveblk_nbd_wire as nbd
from liveblk_load import Process
from liveblk_nbd_wire import Failed, Gone, Refused, Wire, enter
from liveblk_test import Qmp, QmpError, Server, main, promise, wait_until

KIB, MIB = 1 << 10, 1 << 20
MODES = (nbd.SIMPLE, nbd.STRUCTURED, nbd.EXTENDED)
ALLOCATION, DEPTH, DIRTY = "base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:"


class World:
    """A server with a disk vda, and our own NBD server in it."""

    def __init__(self, test, length=64 * MIB, kind="raw", options="", **server):
        self.test = test
        self.path = test.path(f"vda.{kind}")
        test.run("qemu-img", "create", "-q", "-f", kind, self.path, length)
        spec = f"name=vda,file={self.path},format={kind},discard=unmap{options}"
        self.server = Server(test, [spec])
        self.qmp = self.server.qmp()
        self.socket = test.path("own.nbd")
        self.start(**server)

    def start(self, id_="", path=None, **options):
        address = {"type": "unix", "data": {"path": str(path or self.socket)}}
        self.qmp.command("nbd-server-start", id=id_, addr=address, **options)

    def add(self, id_, node="vda", writable=True, **options):
        options = {"id": id_, "name": id_, **options}
        self.qmp.command("block-export-add", type="nbd", node_name=node, writable=writable, **options)

    def remove(self, name, mode="hard"):
        self.qmp.command("block-export-del", id=name, mode=mode)
        self.qmp.wait_event("BLOCK_EXPORT_DELETED", id=name)

    def enter(self, *args, **kwargs):
        return enter(self.socket, *args, **kwargs)


def refused(number, function, *arguments):
    try:
        answer = function(*arguments)
    except Refused as error:
        assert error.number == number, f"{error}, not 0x{number:x}"
        assert error.text, "an error says what is wrong"
    else:
        raise AssertionError(f"not refused: {answer}")


def fails(number, function, *arguments):
    try:
        answer = function(*arguments)
    except Failed as error:
        assert error.number == number, f"{error}, not {number}"
    else:
        raise AssertionError(f"{arguments}: no error, but {answer!r:.100}")


def hangs_up(wire):
    assert wire.is_gone(), "it should have hung up"
    wire.close()


# ---- The handshake ---------------------------------------------------------------------------


def check_plain_options(path):
    with Wire(path) as wire:
        assert wire.server_flags == nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES
        assert wire.list() == {"rw": "A disk", "ro": ""}
        refused(nbd.ERR_INVALID, wire.option, nbd.OPT_LIST, b"x")
        refused(nbd.ERR_POLICY, wire.option, nbd.OPT_STARTTLS)
        refused(nbd.ERR_UNSUP, wire.option, 99, b"data")
        refused(nbd.ERR_UNSUP, wire.option, 4)
        refused(nbd.ERR_TOO_BIG, wire.option, nbd.OPT_INFO, bytes(300 * KIB))
        assert wire.list()
        wire.option(nbd.OPT_ABORT)
        hangs_up(wire)
    with Wire(path) as wire:
        wire.send_option(nbd.OPT_LIST, length=1 << 31)
        hangs_up(wire)
    with Wire(path) as wire:
        wire.send(struct.pack(">QII", nbd.OPTION_MAGIC + 1, nbd.OPT_LIST, 0))
        hangs_up(wire)
    for flags in (0, nbd.NO_ZEROES, 7, 1 << 31):
        with Wire(path, flags=flags) as wire:
            hangs_up(wire)


def check_information(path):
    with Wire(path) as wire:
        for bad in (b"", b"\0", nbd.text("rw"), nbd.text("rw") + b"\0\1", b"\0\0\0\x09rw\0\0",
                    nbd.wants("rw") + b"x", nbd.wants(b"r\0w"), nbd.wants(b"\xff")):  # fmt: skip
            refused(nbd.ERR_INVALID, wire.option, nbd.OPT_INFO, bad)
            refused(nbd.ERR_INVALID, wire.option, nbd.OPT_GO, bad)
        refused(nbd.ERR_INVALID, wire.info, nbd.OPT_INFO, "x" * 4097)
        refused(nbd.ERR_UNKNOWN, wire.info, nbd.OPT_INFO, "none")
        refused(nbd.ERR_UNKNOWN, wire.info, nbd.OPT_GO, "")
        found = wire.info(nbd.OPT_INFO, "rw", nbd.INFO_NAME, nbd.INFO_DESCRIPTION, 3, 77, 3)
        assert found[nbd.INFO_NAME] == b"rw" and found[nbd.INFO_DESCRIPTION] == b"A disk"
        assert struct.unpack(">III", found[nbd.INFO_BLOCK_SIZE]) == (1, 4096, 32 * MIB), found
        assert set(wire.info(nbd.OPT_INFO, "ro")) == {nbd.INFO_EXPORT, nbd.INFO_BLOCK_SIZE}
        wire.go("rw")
        common = nbd.HAS_FLAGS | nbd.SEND_FLUSH | nbd.SEND_FUA | nbd.SEND_CACHE | nbd.CAN_MULTI_CONN
        writes = nbd.SEND_TRIM | nbd.SEND_WRITE_ZEROES | nbd.SEND_FAST_ZERO
        assert (wire.size, wire.flags) == (64 * MIB, common | writes), hex(wire.flags)
    with enter(path, "ro", nbd.EXTENDED, [ALLOCATION]) as wire:
        expected = common | nbd.READ_ONLY | nbd.SEND_DF | nbd.BLOCK_STATUS_PAYLOAD
        assert wire.flags == expected, hex(wire.flags)


def check_export_name(path):
    for flags, zeroes in ((nbd.FIXED_NEWSTYLE, 124), (nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES, 0)):
        with Wire(path, flags=flags) as wire:
            wire.send_option(nbd.OPT_EXPORT_NAME, b"rw")
            size, _ = struct.unpack(">QH", wire.receive(10))
            assert size == 64 * MIB and wire.receive(zeroes) == bytes(zeroes)
            assert wire.read(4096, 0) == bytes(4096)
    for name in (b"none", b"", b"rw\0", b"x" * 5000):
        with Wire(path) as wire:
            wire.send_option(nbd.OPT_EXPORT_NAME, name)
            hangs_up(wire)


def check_contexts(path):
    list_, set_ = nbd.OPT_LIST_META_CONTEXT, nbd.OPT_SET_META_CONTEXT
    with Wire(path) as wire:
        refused(nbd.ERR_INVALID, wire.contexts, list_, "rw")
        refused(nbd.ERR_INVALID, wire.contexts, set_, "rw", ALLOCATION)
        wire.agree(nbd.STRUCTURED)
        every = [ALLOCATION, DEPTH, DIRTY + "b"]
        for words, found in (
            ((), every), (("base:", "qemu:"), every), (("qemu:",), every[1:]),
            (("qemu:dirty-bitmap:",), every[2:]), ((ALLOCATION, ALLOCATION), every[:1]),
            (("qemu:dirty",), []), (("x-none:", "base:none", ""), []),
        ):  # fmt: skip
            assert list(wire.contexts(list_, "rw", *words)) == found, words
        assert list(wire.contexts(list_, "ro")) == [ALLOCATION]
        assert wire.contexts(set_, "rw") == {}
        assert wire.contexts(set_, "rw", "base:", "qemu:", "x:y") == {}
        found = wire.contexts(set_, "rw", DIRTY + "b", "x:y", ALLOCATION, ALLOCATION)
        assert len(set(found.values())) == 2 and set(found) == {ALLOCATION, DIRTY + "b"}
        for bad in (b"", nbd.text("rw"), nbd.text("rw") + b"\0\0\0\1", nbd.queries("rw") + b"x",
                    nbd.text("rw") + b"\0\0\0\1\0\0\0\5base", nbd.text("rw") + b"\xff\xff\xff\xff",
                    nbd.queries("rw", b"base:\0"), nbd.queries("rw", "x" * 4097)):  # fmt: skip
            refused(nbd.ERR_INVALID, wire.option, list_, bad)
            refused(nbd.ERR_INVALID, wire.option, set_, bad)
        refused(nbd.ERR_UNKNOWN, wire.contexts, set_, "none", ALLOCATION)
        refused(nbd.ERR_TOO_BIG, wire.contexts, list_, "rw", *(["x" * 4096] * 100))
        wire.go("rw")
        fails(errno.EINVAL, wire.status, 4096, 0)  # the last choice failed: there is none
    with Wire(path).agree(nbd.STRUCTURED) as wire:
        wire.contexts(set_, "rw", ALLOCATION)
        wire.go("ro")
        fails(errno.EINVAL, wire.status, 4096, 0)


def check_modes(path):
    structured, extended = nbd.OPT_STRUCTURED_REPLY, nbd.OPT_EXTENDED_HEADERS
    with Wire(path) as wire:
        refused(nbd.ERR_INVALID, wire.option, structured, b"x")
        wire.option(structured)
        refused(nbd.ERR_INVALID, wire.option, structured)
        wire.contexts(nbd.OPT_SET_META_CONTEXT, "rw", ALLOCATION)
        refused(nbd.ERR_INVALID, wire.option, extended, b"x")
        wire.agree(nbd.EXTENDED)
        refused(nbd.ERR_EXT_HEADER_REQD, wire.option, structured)
        refused(nbd.ERR_INVALID, wire.option, extended)
        wire.go("rw")
        assert wire.status(1 << 40, 0) if wire.size > 1 << 40 else wire.read(512, 0)
    with Wire(path) as wire:
        wire.agree(nbd.EXTENDED)
        assert wire.list() and wire.go("rw").read(512, 512) == bytes(512)


@promise("every option is answered as the protocol has it, right or wrong")
def options(test):
    world = World(test)
    world.qmp.command("block-dirty-bitmap-add", node="vda", name="b")
    world.add("rw", description="A disk", allocation_depth=True, bitmaps=["b"])
    world.add("ro", writable=False)
    check_plain_options(world.socket)
    check_information(world.socket)
    check_export_name(world.socket)
    check_contexts(world.socket)
    check_modes(world.socket)


# ---- Commands --------------------------------------------------------------------------------

ALLOWED = {
    nbd.READ: nbd.FUA, nbd.WRITE: nbd.FUA, nbd.FLUSH: nbd.FUA, nbd.TRIM: nbd.FUA,
    nbd.CACHE: nbd.FUA, nbd.WRITE_ZEROES: nbd.FUA | nbd.NO_HOLE | nbd.FAST_ZERO,
    nbd.BLOCK_STATUS: nbd.FUA | nbd.REQ_ONE,
}  # fmt: skip


def allowed(kind, mode):
    extra = nbd.DF if kind == nbd.READ and mode != nbd.SIMPLE else 0
    if mode == nbd.EXTENDED and kind in (nbd.WRITE, nbd.BLOCK_STATUS):
        extra |= nbd.PAYLOAD_LEN
    return ALLOWED[kind] | extra


def try_flag(wire, kind, flag):
    """Whether the request with this flag alone is carried out, and the next one understood."""
    length = 0 if kind == nbd.FLUSH else 16
    has_payload = kind == nbd.WRITE or (wire.mode == nbd.EXTENDED and flag == nbd.PAYLOAD_LEN)
    payload = bytes(length) if has_payload else b""
    if kind == nbd.BLOCK_STATUS and flag == nbd.PAYLOAD_LEN and has_payload:
        payload = struct.pack(">QII", 4096, *wire.ids)
    cookie = wire.send_request(kind, 0, length, flag, payload)
    try:
        wire.chunks(cookie, length if kind == nbd.READ else 0)
        return True
    except Failed as error:
        assert error.number == errno.EINVAL, error
        return False


def check_flags(world):
    for mode in MODES:
        contexts = [ALLOCATION, DIRTY + "b"] if mode != nbd.SIMPLE else []
        with world.enter("rw", mode, contexts) as wire:
            for kind in ALLOWED:
                for flag in [0] + [1 << i for i in (0, 1, 2, 3, 4, 5, 6, 15)]:
                    expected = not flag or bool(flag & allowed(kind, mode))
                    if kind == nbd.BLOCK_STATUS and mode == nbd.SIMPLE:
                        expected = False
                    if kind == nbd.WRITE_ZEROES and flag == nbd.FAST_ZERO:
                        continue  # ENOTSUP is right, too
                    assert try_flag(wire, kind, flag) == expected, (mode, kind, flag)
            for unknown in (8, 9, 0x7FFF, 0xFFFF):
                fails(errno.EINVAL, wire.command, unknown)
            assert wire.read(512, 0) == bytes(512)


def check_bounds(world):
    size = 64 * MIB
    most = bytes(range(256)) * (32 * MIB // 256)
    for mode in MODES:
        with world.enter("rw", mode) as wire:
            assert wire.read(0, 0) == b"" and wire.read(1, size - 1) == b"\0"
            wire.write(b"", 0)
            for kind in (nbd.TRIM, nbd.CACHE, nbd.WRITE_ZEROES):
                wire.command(kind, 0, 0)
            fails(errno.EINVAL, wire.read, 32 * MIB + 1, 0)
            fails(errno.EINVAL, wire.command, nbd.CACHE, 0, 32 * MIB + 1)
            fails(errno.EINVAL, wire.read, 2, size - 1)
            for length in (1, 4 * KIB, 256 * KIB):
                fails(errno.EINVAL, wire.read, length, (1 << 64) - 1)
            fails(errno.EINVAL, wire.command, nbd.CACHE, size, 1)
            fails(errno.ENOSPC, wire.write, b"xx", size - 1)
            fails(errno.ENOSPC, wire.write, b"xx", (1 << 64) - 1)
            for kind, error in ((nbd.TRIM, errno.EINVAL), (nbd.WRITE_ZEROES, errno.ENOSPC)):
                fails(error, wire.command, kind, size - 1, 2)
                fails(error, wire.command, kind, (1 << 64) - 4096, 8192)
            assert wire.read(3, size - 3) == bytes(3)
    with world.enter("rw", nbd.EXTENDED, [ALLOCATION]) as wire:
        wire.write(most, 16 * MIB)
        assert wire.read(32 * MIB, 16 * MIB) == most
        fails(errno.EINVAL, wire.write, most + b"x", 0)
        fails(errno.EINVAL, wire.status, 0, 0)
        for wide in (1 << 32, (1 << 63) + 1, (1 << 64) - 1):
            fails(errno.EINVAL, wire.status, wide, 0)
            fails(errno.EINVAL, wire.command, nbd.TRIM, 0, wide)
            fails(errno.ENOSPC, wire.command, nbd.WRITE_ZEROES, 4096, wide)
        wire.command(nbd.WRITE_ZEROES, 0, size)  # may be longer than a payload
        assert wire.read_parts(32 * MIB, 16 * MIB) == [(16 * MIB, 32 * MIB)]
        assert wire.status(size, 0)[wire.ids[0]][0][1] & 2
        wire.send_request(nbd.READ, 0, 1 << 40, nbd.PAYLOAD_LEN)
        hangs_up(wire)  # who announces that much has lost his way
    with world.enter("rw") as wire:
        wire.send(bytes(28))
        hangs_up(wire)


def check_payloads(world):
    with world.enter("rw", nbd.EXTENDED, [ALLOCATION, DIRTY + "b"]) as wire:
        first, second = wire.ids
        for ids in ([second], [second, first]):
            payload = struct.pack(f">Q{len(ids)}I", MIB, *ids)
            found = wire.status(len(payload), 4096, nbd.PAYLOAD_LEN, payload)
            assert set(found) == set(ids) and all(
                sum(length for length, _ in extents) == MIB for extents in found.values()
            ), found
        for payload in (
            b"", bytes(7), bytes(8), bytes(11), struct.pack(">QI", MIB, 99), bytes(13),
            struct.pack(">QII", MIB, first, first), struct.pack(">QI", 0, first),
            struct.pack(">QI", 1 << 63, first), struct.pack(">QIII", MIB, first, second, 99),
        ):  # fmt: skip
            fails(errno.EINVAL, wire.status, len(payload), 0, nbd.PAYLOAD_LEN, payload)
        assert set(wire.status(MIB, 0)) == set(wire.ids)


def check_read_only(world):
    with world.enter("ro", nbd.STRUCTURED) as wire:
        fails(errno.EPERM, wire.write, b"x" * 512, 0)
        for kind in (nbd.TRIM, nbd.WRITE_ZEROES):
            fails(errno.EPERM, wire.command, kind, 0, 4096)
        wire.command(nbd.FLUSH)
        assert wire.read(512, 0) == bytes(512)


@promise("every command is carried out or refused by its flags, its length and its payload")
def commands(test):
    world = World(test)
    world.qmp.command("block-dirty-bitmap-add", node="vda", name="b")
    world.add("rw", bitmaps=["b"])
    world.add("ro", writable=False)
    check_flags(world)
    check_bounds(world)
    check_payloads(world)
    check_read_only(world)


# ---- What reads and contexts say -------------------------------------------------------------


def overlap(ranges, begin, end, flag):
    return any(at < end and begin < at + size and flags & flag for at, size, flags in ranges)


def check_zeroes(model, ranges):
    """What is said to read as zeroes does."""
    for at, size, flags in ranges:
        if flags & 2:
            assert not any(model[at : at + size]), (at, size)


@promise("reads leave out holes, and contexts say what is on the disk")
def contents(test):
    length = 4 * MIB
    world = World(test, length, "qcow2")
    model = bytearray(length)
    guest = world.server.connect("vda")
    # Data below the overlay, then more above it, from where the bitmap records.
    for at, size in ((0, 64 * KIB), (MIB, 200 * KIB)):
        model[at : at + size] = test.random.randbytes(size)
        guest.pwrite(bytes(model[at : at + size]), at)
    world.qmp.command_raw(
        "blockdev-snapshot-sync",
        {"device": "vda", "snapshot-file": str(test.path("over.qcow2")), "format": "qcow2",
         "snapshot-node-name": "over"},
    )  # fmt: skip
    world.qmp.command("block-dirty-bitmap-add", node="over", name="b", granularity=64 * KIB)
    world.add("e", allocation_depth=True, bitmaps=["b"])
    written = [(128 * KIB + i * 384 * KIB, 64 * KIB) for i in range(10)]
    for at, size in written:
        model[at : at + size] = test.random.randbytes(size)
    with world.enter("e", nbd.EXTENDED, [ALLOCATION, DEPTH, DIRTY + "b"]) as wire:
        for at, size in written:
            wire.write(bytes(model[at : at + size]), at)
        dirty = [found[:2] for found in wire.all_status(wire.ids[2]) if found[2]]
        assert dirty == written, dirty
        for at, _, depth in wire.all_status(wire.ids[1]):
            is_above = any(begin <= at < begin + size for begin, size in written)
            assert depth == (1 if is_above else 2 if any(model[at : at + 512]) else 0), (at, depth)
    for mode in MODES:
        check_contents(test, world, mode, model)


def check_contents(test, world, mode, model):
    length = len(model)
    with world.enter("e", mode, [ALLOCATION, DEPTH] if mode != nbd.SIMPLE else ()) as wire:
        assert wire.read(length, 0) == bytes(model)
        if mode == nbd.SIMPLE:
            return
        parts = wire.read_parts(length, 0)
        assert sum(content for _, content in parts if isinstance(content, int)) > MIB
        assert wire.read_parts(length, 0, nbd.DF) == [(0, bytes(model))]
        for _ in range(30):
            at = test.random.randrange(length)
            size = min(test.random.randrange(1, 200 * KIB), length - at)
            assert wire.read(size, at) == model[at : at + size], (at, size)
            one = wire.status(size, at, nbd.REQ_ONE)
            assert all(len(extents) == 1 and extents[0][0] <= size for extents in one.values())
        check_zeroes(model, wire.all_status(wire.ids[0]))


# ---- Sessions --------------------------------------------------------------------------------


@promise("of a session both contexts are of one instant, as query-changes has it")
def changes(test):
    world = World(test, 8 * MIB, options=",tracking=auto")
    guest = world.server.connect("vda")
    guest.pwrite(b"\x11" * (512 * KIB), 0)
    world.qmp.command("checkpoint-begin", name="c1")
    world.qmp.command("checkpoint-commit", name="c1")
    guest.pwrite(b"\x22" * (128 * KIB), MIB)
    guest.zero(256 * KIB, 0)
    world.qmp.command("checkpoint-begin", name="c2", since="c1")
    before = guest.pread(8 * MIB, 0)
    world.add("e", "vda@c2", writable=False, changes="c1")
    with world.enter("e", nbd.EXTENDED, [ALLOCATION, DIRTY + "c1"]) as wire:
        guest.pwrite(b"\x33" * MIB, 512 * KIB)  # later: it is in neither
        found = wire.status(wire.size, 0)
        states = {"data": (1, 0), "zero": (1, 2)}
        answer = world.qmp.command("query-changes", name="c2", device="vda")
        for entry in answer["ranges"]:
            at, end = entry["offset"], entry["offset"] + entry["length"]
            is_dirty, is_zero = states[entry["state"]]
            for context, bit, expected in ((1, 1, is_dirty), (0, 2, is_zero)):
                position = 0
                for size, flags in found[wire.ids[context]]:
                    if position < end and at < position + size:
                        assert flags & bit == expected, (entry, context, position, size, flags)
                    position += size
        dirty = sum(size for size, flags in found[wire.ids[1]] if flags & 1)
        assert dirty == sum(entry["length"] for entry in answer["ranges"]) > 0
        assert wire.read(8 * MIB, 0) == before
    check_other_session(world, guest)


def check_other_session(world, guest):
    """The export ends with its session, and is of no other that comes under its name."""
    world.qmp.command("checkpoint-abandon", name="c2")
    world.qmp.wait_event("BLOCK_EXPORT_DELETED", id="e")
    assert world.qmp.command("query-block-exports") == []
    guest.pwrite(b"\x44" * (64 * KIB), 4 * MIB)
    world.qmp.command("checkpoint-begin", name="c2", since="c1")
    with Wire(world.socket).agree(nbd.STRUCTURED) as wire:
        refused(nbd.ERR_UNKNOWN, wire.info, nbd.OPT_GO, "e")
    world.add("e", "vda@c2", writable=False, changes="c1")
    with world.enter("e", nbd.STRUCTURED, [DIRTY + "c1"]) as wire:
        ranges = wire.all_status(wire.ids[0])
        assert overlap(ranges, 4 * MIB, 4 * MIB + 64 * KIB, 1), ranges
        assert wire.read(64 * KIB, 4 * MIB) == b"\x44" * (64 * KIB)


# ---- Exports that move -----------------------------------------------------------------------


@promise("an export of a device follows it; the next client sees its new length")
def moves(test):
    world = World(test, 4 * MIB)
    world.qmp.command("block-dirty-bitmap-add", node="vda", name="b")
    world.add("e", bitmaps=["b"])
    target = test.make_disk("target.raw", 4 * MIB)
    with world.enter("e", nbd.EXTENDED, [ALLOCATION, DIRTY + "b"]) as wire:
        wire.write(b"a" * 4096, 0)
        assert wire.all_status(wire.ids[1])[0] == (0, 64 * KIB, 1)
        world.qmp.command(
            "drive-mirror", job_id="m", device="vda", target=str(target), format="raw", sync="full",
            mode="existing",
        )  # fmt: skip
        world.qmp.wait_event("BLOCK_JOB_READY", device="m")
        world.qmp.command("block-job-complete", device="m")
        world.qmp.wait_event("BLOCK_JOB_COMPLETED", device="m")
        wire.write(b"b" * 4096, 4096)
        wire.command(nbd.FLUSH)
        assert wire.read(8192, 0) == b"a" * 4096 + b"b" * 4096
        assert target.read_bytes()[:8192] == b"a" * 4096 + b"b" * 4096
        assert world.path.read_bytes()[4096:8192] == bytes(4096)
        # The bitmap has stayed where it was, and does not know of this.
        wire.write(b"c" * 4096, MIB)
        fails(errno.EIO, wire.status, 4 * MIB, 0)
        world.qmp.command("block_resize", device="vda", size=6 * MIB)
        fails(errno.ENOSPC, wire.write, b"x", 4 * MIB)
        with world.enter("e", nbd.STRUCTURED) as later:
            assert later.size == 6 * MIB
            later.write(b"y", 6 * MIB - 1)
        world.qmp.command("block_resize", device="vda", size=2 * MIB)
        try:
            wire.read(4096, 3 * MIB)
            raise AssertionError("what is not there was read")
        except Failed:
            pass
        assert wire.read(4096, 4096) == b"b" * 4096


@promise("a snapshot is exported beside its disk, which has moved onto a filter and back")
def fleece(test):
    world = World(test, 4 * MIB)
    qmp = world.qmp
    (node,) = [entry["node-name"] for entry in qmp.command("query-named-block-nodes")
               if entry["drv"] == "raw"]  # fmt: skip
    qmp.command("block-dirty-bitmap-add", node=node, name="b")
    qmp.command("block-dirty-bitmap-add", node=node, name="c")
    world.add("e", bitmaps=["b"])
    test.make_disk("fleece.raw", 4 * MIB)
    qmp.command("blockdev-add", driver="raw", node_name="fleece",
                file={"driver": "file", "filename": str(test.path("fleece.raw"))})  # fmt: skip
    with world.enter("e", nbd.STRUCTURED, [DIRTY + "b"]) as wire:
        wire.write(b"1" * 4096, MIB)
        qmp.command("blockdev-add", driver="copy-before-write", node_name="cbw", file=node,
                    target="fleece")  # fmt: skip
        qmp.command("qom-set", path="vda", property="drive", value="cbw")
        qmp.command("blockdev-add", driver="snapshot-access", node_name="snap", file="cbw")
        bitmaps = [{"node": node, "name": "c"}]
        world.add("snap", "snap", writable=False, bitmaps=bitmaps)
        wire.write(b"2" * 4096, MIB)
        wire.write(b"2" * 4096, 2 * MIB)
        dirty = [(MIB, 64 * KIB, 1), (2 * MIB, 64 * KIB, 1)]
        assert [found for found in wire.all_status(wire.ids[0]) if found[2]] == dirty
        with world.enter("snap", nbd.EXTENDED, [DIRTY + "c"]) as snapshot:
            assert snapshot.flags & nbd.READ_ONLY
            assert snapshot.read(4096, MIB) == b"1" * 4096
            assert snapshot.read(4096, 2 * MIB) == bytes(4096)
            assert [found for found in snapshot.all_status(snapshot.ids[0]) if found[2]] == dirty
            fails(errno.EPERM, snapshot.write, b"x", 0)
        world.remove("snap")
        qmp.command("blockdev-del", node_name="snap")
        qmp.command("qom-set", path="vda", property="drive", value=node)
        qmp.command("blockdev-del", node_name="cbw")
        wire.write(b"3" * 4096, 3 * MIB)
        dirty.append((3 * MIB, 64 * KIB, 1))
        assert [found for found in wire.all_status(wire.ids[0]) if found[2]] == dirty
        assert wire.read(4096, MIB) == b"2" * 4096


# ---- Ends ------------------------------------------------------------------------------------


REFUSED = (
    ("Cannot find device='' nor node-name='zz'", {"node": "zz"}),
    ("Node 'zz' not found", {"bitmaps": [{"node": "zz", "name": "b"}]}),
    ("Dirty bitmap 'zz' not found", {"bitmaps": [{"node": "vda", "name": "zz"}]}),
    ("Bitmap 'zz' is not found", {"bitmaps": ["zz"]}),
    ("Block export id 'e' is already in use", {"id": "e"}),
    ("NBD server already has export named 'e'", {"name": "e"}),
)


@promise("exports and servers end as they are told, with requests under way and held")
def ends(test):
    world = World(test, 4 * MIB)
    world.add("e")
    world.add("other")
    for expected, options in REFUSED:
        try:
            world.add("x", **options)
            raise AssertionError(f"{options} was not refused")
        except QmpError as error:
            assert error.desc == expected, error
    world.qmp.command("blockdev-add", driver="null-co", node_name="n", size=MIB)
    world.add("n", "n")
    try:
        world.qmp.command("blockdev-del", node_name="n")
        raise AssertionError("a node was removed under its export")
    except QmpError as error:
        assert error.desc == "Node n is in use", error
    witness = world.enter("other", nbd.STRUCTURED)
    with world.enter("e", nbd.STRUCTURED) as wire:
        wire.read(512, 0)
        try:
            world.qmp.command("block-export-del", id="e")
            raise AssertionError("an export was removed under its client")
        except QmpError as error:
            assert "still in use" in error.desc, error
        # Requests are held: nobody will hear of them, and they are not carried out any more.
        world.qmp.command("stop")
        for at in (0, 4096):
            wire.send_request(nbd.WRITE, at, 4096, 0, b"h" * 4096)
        world.qmp.command("block-export-del", id="e", mode="hard")
        hangs_up(wire)
        world.qmp.wait_event("BLOCK_EXPORT_DELETED", id="e")
        world.qmp.command("cont")
    assert witness.read(8192, 0) == bytes(8192)
    world.add("e")
    clients = [world.enter("e", mode) for mode in MODES]
    for client in clients:
        for i in range(20):
            client.send_request(nbd.READ, i * 4096, 128 * KIB)
    world.qmp.command("nbd-server-stop")
    for client in clients:
        try:
            while True:
                client.receive(1 << 16)
        except Gone:
            client.close()
    hangs_up(witness)
    assert not world.socket.exists() and world.qmp.command("query-block-exports") == []
    stop_while_held(world)
    stop_deaf(world)
    offered_view(world)


def stop_deaf(world):
    """A client that reads no answers has asked for far more than there is time for."""
    world.start()
    world.add("e")
    wire = world.enter("e", nbd.SIMPLE)
    wire.socket.settimeout(2)
    try:
        for _ in range(100000):
            wire.send_request(nbd.READ, 0, 4 * MIB)
    except TimeoutError:
        pass
    world.qmp.command("nbd-server-stop")
    wire.close()


def offered_view(world):
    """An export that nobody is connected to does not keep its view."""
    world.start()
    world.qmp.command("view-create", name="v", devices=["vda"], scratch=str(world.test.directory))
    world.add("v", "vda@v", writable=False)
    with world.enter("v", nbd.SIMPLE):
        try:
            world.qmp.command("view-drop", name="v")
            raise AssertionError("a view was dropped under its client")
        except QmpError as error:
            assert "1 client is connected" in error.desc, error
    wait_until(lambda: world.qmp.command("query-views")[0]["devices"][0]["clients"] == 0, "it leaves")
    world.qmp.command("view-drop", name="v")
    world.qmp.wait_event("BLOCK_EXPORT_DELETED", id="v")
    world.qmp.command("nbd-server-stop")


def stop_while_held(world):
    world.start()
    world.add("e")
    wire = world.enter("e", nbd.SIMPLE)
    world.qmp.command("stop")
    wire.send_request(nbd.WRITE, 8192, 4096, 0, b"h" * 4096)
    world.qmp.command("nbd-server-stop")
    hangs_up(wire)
    world.qmp.command("cont")
    assert world.path.read_bytes()[8192:12288] == bytes(4096)


# ---- Clients that do harm --------------------------------------------------------------------


def leave_in_the_middle(world, random):
    """One client that vanishes, wherever it is."""
    option = struct.pack(">QII", nbd.OPTION_MAGIC, nbd.OPT_GO, 9) + nbd.wants("e", 3)
    request = struct.pack(">IHHQQI", 0x25609513, 0, nbd.WRITE, 1, 0, 8192) + bytes(8192)
    where = random.randrange(4)
    if where == 0:
        wire = Wire(world.socket, flags=None)
    elif where == 1:
        wire = Wire(world.socket)
        wire.send(option[: random.randrange(len(option))])
    else:
        wire = world.enter("e", nbd.STRUCTURED)
        for i in range(random.randrange(5)):
            wire.send_request(nbd.READ, 0, MIB)
        wire.send(request[: random.randrange(len(request))])
    if random.random() < 0.3:
        wire.socket.setsockopt(1, 13, struct.pack("ii", 1, 0))
    wire.close()


@promise("a client that sends all its requests before it reads an answer gets all of them")
def sends_first(test):
    world = World(test, 64 * MIB)
    world.add("e")
    for _ in range(10):
        with world.enter("e", nbd.SIMPLE) as wire:
            # The answers to these fill the socket, and the data of those has to get past them.
            reads = [wire.send_request(nbd.READ, i * MIB, MIB) for i in range(18)]
            writes = [wire.send_request(nbd.WRITE, (20 + i) * MIB, MIB, payload=bytes([i + 1]) * MIB)
                      for i in range(12)]  # fmt: skip
            missing = set(reads + writes)
            while missing:
                magic, error, cookie = struct.unpack(">IIQ", wire.receive(16))
                assert magic == 0x67446698 and error == 0, (magic, error)
                missing.remove(cookie)
                if cookie in reads:
                    assert wire.receive(MIB) == bytes(MIB)
    with world.enter("e", nbd.SIMPLE) as wire:
        for i in range(12):
            assert wire.read(MIB, (20 + i) * MIB) == bytes([i + 1]) * MIB


@promise("clients wait for their turn, idle ones leave, and none that vanishes leaves anything")
def crowds(test):
    world = World(test, 4 * MIB, max_connections=20, handshake_max_seconds=1)
    world.add("e")
    process = Process(world.server.process.pid)
    before = process.held()
    witness = world.enter("e", nbd.EXTENDED)
    witness.write(b"w" * 4096, 2 * MIB)
    idle = Wire(world.socket)
    idle.send(struct.pack(">Q", nbd.OPTION_MAGIC))
    silent = [world.enter("e", nbd.STRUCTURED) for _ in range(17)]
    hangs_up(idle)  # its time is over
    silent += [world.enter("e", nbd.STRUCTURED) for _ in range(2)]
    late = Wire(world.socket, flags=None)
    late.socket.settimeout(0.2)
    try:
        late.receive(1)
        raise AssertionError("one client too many")
    except TimeoutError:
        late.socket.settimeout(60)
    for wire in silent:  # they read nothing
        for _ in range(4):
            wire.send_request(nbd.READ, 0, 4 * MIB)
    assert witness.read(4096, 2 * MIB) == b"w" * 4096
    silent.pop().close()
    assert late.receive(8) == struct.pack(">Q", nbd.MAGIC)
    for wire in silent + [late, witness]:
        wire.close()
    churn(test, world)
    process.await_rest(before)


def churn(test, world):
    for i in range(1000):
        leave_in_the_middle(world, test.random)
        if i % 100 == 0:
            with world.enter("e", nbd.SIMPLE) as wire:
                assert wire.read(4096, 2 * MIB) == b"w" * 4096
    with Qmp(world.server.admin) as qmp:
        assert qmp.command("query-block-exports")[0]["shutting-down"] is False


main()
