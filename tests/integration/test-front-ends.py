#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Each front end with each client that moves whole disks: not a byte is lost or made up."""

from liveblk_front_ends import FRONT_ENDS
from liveblk_test import DiskModel, main, promise

MIB = 1 << 20
LENGTH = 8 * MIB
CONNECTIONS = ("--connections=4", "--requests=16", "--request-size=65536")


def make_source(test):
    """A raw file with data, holes and zeroes that are no holes, and the model of it."""
    path = test.path("source")
    model = DiskModel(LENGTH)
    with open(path, "w+b") as file:
        file.truncate(LENGTH)
        for _ in range(60):
            length = 4096 * test.random.randrange(1, 64)
            offset = 4096 * test.random.randrange((LENGTH - length) // 4096 + 1)
            if test.random.random() < 0.2:
                data = bytes(length)
                model.zero(offset, length)
            else:
                data = model.write(offset, length)
            file.seek(offset)
            file.write(data)
    return path, model


def make_full(test, name, format):
    """An image full of what must be gone when something was copied over it."""
    raw, path = test.path("full.raw"), test.path(name)
    raw.write_bytes(b"stale!!!" * (LENGTH // 8))
    test.run("qemu-img", "convert", "-f", "raw", "-O", format, raw, path)
    return path


def qemu_img(test, served):
    """Convert into the export and out of it, and compare."""
    source, model = make_source(test)
    copy, uri = test.path("copy"), served.uri()
    test.run("qemu-img", "convert", "-n", "-m", "8", "-W", "-f", "raw", "-O", "raw", source, uri)
    test.run("qemu-img", "convert", "-m", "8", "-W", "-f", "raw", "-O", "raw", uri, copy)
    model.assert_equals_file(copy)
    compare = ("qemu-img", "compare", "-f", "raw", "-F", "raw", source, uri)
    assert test.run(*compare).stdout == "Images are identical.\n"
    # One bit that differs is found.
    at = 4096 * test.random.randrange(LENGTH // 4096)
    handle = served.connect()
    data = bytearray(handle.pread(4096, at))
    data[100] ^= 16
    handle.pwrite(data, at)
    handle.shutdown()
    assert f"mismatch at offset {at}!" in test.run(*compare, status=1).stdout


def nbdcopy(test, uri, other):
    """Copy into the export, from there to another of the front end, and out of both."""
    source, model = make_source(test)
    test.run("nbdcopy", *CONNECTIONS, source, uri)
    test.run("nbdcopy", *CONNECTIONS, uri, other)
    copy = test.path("copy")
    for place in (uri, other):
        copy.write_bytes(b"stale!!!" * (LENGTH // 8))
        test.run("nbdcopy", *CONNECTIONS, place, copy)
        model.assert_equals_file(copy)
        test.run("qemu-img", "compare", "-f", "raw", "-F", "raw", source, place)
    test.run("bash", "-c", 'set -o pipefail; nbdcopy "$0" - | cat > "$1"', uri, copy)
    model.assert_equals_file(copy)
    return model


def fio(test, *options, **places):
    """A fio that writes each block of the second half of places once, telling its place, and reads
    them; with --verify_only it does the latter alone."""
    words = ["fio", "--rw=randwrite", "--bs=4k", "--iodepth=16", "--verify=crc32c", "--minimal",
             "--verify_fatal=1", f"--offset={LENGTH // 2}", f"--size={LENGTH // 2}",
             *options]  # fmt: skip
    for name, place in places.items():
        words += [f"--name={name}", place]
    test.run(*words, cwd=test.directory)


def check_images(test, images, model):
    """Without any of us: QEMU reads the first half as it was copied, fio the other as it wrote it."""
    half = DiskModel(LENGTH // 2)
    count = len(half.sequences)
    half.sequences, half.zeroes = model.sequences[:count], model.zeroes[:count]
    places = {}
    for format, image in images.items():
        test.run("qemu-img", "convert", "-f", format, "-O", "raw", image, test.path(f"{format}.flat"))
        places[format] = f"--filename={test.path(format)}.flat"
        with open(test.path(f"{format}.flat"), "rb") as file:
            test.path("half").write_bytes(file.read(LENGTH // 2))
        half.assert_equals_file(test.path("half"))
    test.run("qemu-img", "check", "-q", images["qcow2"])
    fio(test, "--ioengine=psync", "--verify_only", **places)


def go_round(test, front_end):
    images = {format: make_full(test, f"disk.{format}", format) for format in ("raw", "qcow2")}
    served = {format: FRONT_ENDS[front_end](test, image, format, format)
              for format, image in images.items()}  # fmt: skip
    for disk in served.values():
        qemu_img(test, disk)
    model = nbdcopy(test, served["raw"].uri(), served["qcow2"].uri())
    fio(test, "--ioengine=nbd", "--verify_backlog=64",
        **{format: f"--uri={disk.uri()}" for format, disk in served.items()})  # fmt: skip
    for disk in served.values():
        disk.stop()
    check_images(test, images, model)


def register(front_end):
    @promise(f"through {front_end}, qemu-img, nbdcopy and fio find on raw and qcow2 disks just the "
             "bytes that they wrote")  # fmt: skip
    def go(test):
        go_round(test, front_end)


for each in FRONT_ENDS:
    register(each)
main()
