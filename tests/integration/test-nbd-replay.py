#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""One workload through nbdkit, our own server, and the programs on it: same bytes, same errors."""

import errno
import shutil

import liveblk_nbd_wire as nbd
from liveblk_front_ends import FRONT_ENDS
from liveblk_nbd_wire import Failed, enter
from liveblk_test import main, promise

KIB, MIB = 1 << 10, 1 << 20
LENGTH = 2 * MIB + 512  # a last cluster that is not whole
PAGE = 4 * KIB
ALLOCATION = "base:allocation"
KINDS = {
    nbd.READ: 20, nbd.WRITE: 20, nbd.WRITE_ZEROES: 10, nbd.TRIM: 10, nbd.BLOCK_STATUS: 10,
    nbd.CACHE: 5, nbd.FLUSH: 5,
    nbd.DISC + 97: 1,  # there is no such command
}  # fmt: skip
CHANGES = (nbd.WRITE, nbd.WRITE_ZEROES, nbd.TRIM)
LENGTHS = (1, 511, 512, 4 * KIB, 64 * KIB, 100000, 256 * KIB, LENGTH)
FLAGS = {
    nbd.READ: (nbd.DF, nbd.NO_HOLE), nbd.WRITE: (nbd.FUA, nbd.REQ_ONE), nbd.FLUSH: (1 << 15,),
    nbd.WRITE_ZEROES: (nbd.FUA, nbd.NO_HOLE, nbd.FUA | nbd.NO_HOLE, nbd.DF),
    nbd.TRIM: (nbd.FUA, nbd.FAST_ZERO), nbd.BLOCK_STATUS: (nbd.REQ_ONE, nbd.NO_HOLE),
}  # fmt: skip
FAR = ((1 << 63) - 1, 1 << 63, (1 << 64) - 512)  # offsets at which sums overflow


def random_request(random, read_only):
    """(kind, offset, length, flags, byte); some have a wrong flag, others are beyond the end. None
    is wrong in two ways."""
    (kind,) = random.choices(list(KINDS), KINDS.values())
    byte = random.randrange(1, 256)
    chance = random.random()
    flags = random.choice(FLAGS.get(kind, (0,))) if chance < 0.3 else 0
    if read_only and kind in CHANGES:
        chance, flags = 0.5, 0
    if kind == nbd.FLUSH:
        return kind, 0, 0, flags, byte
    length = random.choice(LENGTHS)
    if chance > 0.95:
        return kind, random.choice(FAR), length, 0, byte
    if chance > 0.8:
        return kind, random.randrange(LENGTH + 8192), length, 0, byte
    return kind, random.randrange(LENGTH - length + 1), length, flags, byte


def described(extents, offset, length):
    """Where it begins -> state, of the pages that are wholly within a request.

    The kernel knows of whole pages only. Who has asked it before a part of a page was written may
    know more: then the page has what is common to its parts.
    """
    states, at = {}, offset
    for size, flags in extents:
        for page in range(at // PAGE, (at + size - 1) // PAGE + 1):
            states[page * PAGE] = states.get(page * PAGE, 3) & flags
        at += size
    assert at >= offset + length, "it ends before the request does"
    return {page: state for page, state in states.items()
            if offset <= page and page + PAGE <= offset + length}  # fmt: skip


def outcome(wire, request):
    """What was read, or said of the blocks, or the error's number."""
    kind, offset, length, flags, byte = request
    try:
        if kind == nbd.READ:
            return wire.read(length, offset, flags)
        if kind == nbd.BLOCK_STATUS:
            extents = wire.status(length, offset, flags)[wire.ids[0]]
            if flags & nbd.REQ_ONE:  # how long it is, a server may choose
                ((size, state),) = extents
                assert 0 < size <= length, (request, size)
                assert not state & 2 or wire.read(size, offset) == bytes(size), (request, size)
                return {}
            return described(extents, offset, length)
        payload = bytes([byte]) * length if kind == nbd.WRITE else b""
        wire.chunks(wire.send_request(kind, offset, length, flags, payload))
        return None
    except Failed as error:
        return error.number


def compare(request, answers, wire):
    """All answers are nbdkit's. Of zeroes some may say that they are there, others that they are not:
    that is up to the kernel, which forgets where it has only written them."""
    expected = answers["nbdkit"]
    for name, answer in answers.items():
        if isinstance(answer, dict) and isinstance(expected, dict):
            assert answer.keys() == expected.keys(), (request, name)
            for page, state in answer.items():
                assert state == expected[page] or wire.read(PAGE, page) == bytes(PAGE), (
                    f"{request[:4]}: at {page} {name} has state {state}, nbdkit {expected[page]}"
                )
        else:
            assert answer == expected, (
                f"{request[:4]}: {name} answers {answer!r:.60}, nbdkit {expected!r:.60}"
            )


def replay(test, wires, read_only, count):
    """Returns the numbers of the errors that there were."""
    errors = set()
    for _ in range(count):
        request = random_request(test.random, read_only)
        answers = {name: outcome(wire, request) for name, wire in wires.items()}
        compare(request, answers, wires["nbdkit"])
        if isinstance(answers["nbdkit"], int):
            errors.add(answers["nbdkit"])
    return errors


def make_image(test, format):
    """An image with data, zeroes and nothing in it, and one below it if the format has that."""
    image, base = test.path(f"start.{format}"), test.path("base.raw")
    base.write_bytes(test.random.randbytes(256 * KIB) + bytes(LENGTH - 256 * KIB))
    if format == "raw":
        shutil.copy(base, image)
        return image
    test.run("qemu-img", "create", "-q", "-f", format, "-b", base, "-F", "raw", image)
    test.run("qemu-io", "-f", format, "-c", "write -P 5 64k 64k", "-c", "write -z 128k 64k", "-c",
             "write -P 6 1M 100k", image)  # fmt: skip
    return image


def serve_copies(test, format, read_only):
    """A copy of the same image by each front end: name -> (image, what serves it)."""
    start = make_image(test, format)
    all_served = {}
    for number, (name, serve) in enumerate(FRONT_ENDS.items()):
        image = test.path(f"disk{number}.{format}")
        shutil.copy(start, image)
        all_served[name] = image, serve(test, image, format, f"server{number}", read_only)
    return all_served


def check_flags(flags):
    """All offer the same, but for what nbdkit knows nothing of, or thinks has no use."""
    hidden = nbd.BLOCK_STATUS_PAYLOAD | nbd.SEND_DF
    if flags["nbdkit"] & nbd.READ_ONLY:
        hidden |= nbd.SEND_FUA
    assert len({word & ~hidden for word in flags.values()}) == 1, f"other flags: {flags}"


def enter_all(all_served, mode):
    """nbdkit has no extended headers: there structured replies must say the same."""
    wires = {}
    for name, (_, served) in all_served.items():
        its_mode = nbd.STRUCTURED if name == "nbdkit" and mode == nbd.EXTENDED else mode
        contexts = [ALLOCATION] if its_mode != nbd.SIMPLE else []
        wires[name] = enter(served.path, "disk", its_mode, contexts)
    check_flags({name: wire.flags for name, wire in wires.items()})
    assert {wire.size for wire in wires.values()} == {LENGTH}
    return wires


def compare_images(test, all_served, format):
    for image, served in all_served.values():
        served.stop()
    (first, _), *others = all_served.values()
    for image, _ in others:
        test.run("qemu-img", "compare", "-f", format, "-F", format, first, image)
    if format == "qcow2":
        for image, _ in all_served.values():
            test.run("qemu-img", "check", "-q", image)


def go(test, format, read_only, expected_errors, count=120):
    all_served = serve_copies(test, format, read_only)
    errors = set()
    for mode in (nbd.SIMPLE, nbd.STRUCTURED, nbd.EXTENDED):
        wires = enter_all(all_served, mode)
        errors |= replay(test, wires, read_only, count)
        contents = {wire.read(LENGTH, 0) for wire in wires.values()}
        assert len(contents) == 1, "the disks are not equal"
        for wire in wires.values():
            wire.close()
    assert errors == expected_errors, f"errors: {errors}"
    compare_images(test, all_served, format)


@promise("a workload on a raw disk has the same bytes and errors through nbdkit and all else")
def raw(test):
    go(test, "raw", False, {errno.EINVAL, errno.ENOSPC})


@promise("a workload on a qcow2 image has the same bytes and errors through nbdkit and all else")
def qcow2(test):
    go(test, "qcow2", False, {errno.EINVAL, errno.ENOSPC})


@promise("where nobody may write, all say so in the same way, and the rest is as ever")
def read_only(test):
    for format in ("raw", "qcow2"):
        go(test, format, True, {errno.EINVAL, errno.EPERM}, count=60)
        for path in test.directory.iterdir():
            path.unlink()


main()
