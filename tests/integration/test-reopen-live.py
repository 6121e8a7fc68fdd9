#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""blockdev-reopen on a running server: other options under a guest that writes on."""

import subprocess

from liveblk_load import Writers, assert_guest_unharmed
from liveblk_test import QmpError, Server, main, promise

MIB = 1 << 20


def refused(qmp, desc, *options):
    try:
        qmp.command("blockdev-reopen", options=list(options))
    except QmpError as error:
        assert desc in error.desc and error.kind == "GenericError", (error.kind, error.desc)
        return
    raise AssertionError(f"{options} was not refused")


def make_qcow2(test, name, size="8M", *options):
    path = test.path(name)
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", *options, path, size], check=True
    )
    return path


def fill(path, byte, size="8M"):
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", f"write -P {byte} 0 {size}", path],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def others_can_read(path):
    return (
        subprocess.run(
            ["qemu-img", "info", path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ).returncode
        == 0
    )


def node(qmp, name):
    nodes = qmp.command("query-named-block-nodes", flat=True)
    return next(node for node in nodes if node["node-name"] == name)


def add_image(qmp, name, path, **options):
    file = {"driver": "file", "filename": str(path), "node-name": f"{name}-file"}
    qmp.command_raw(
        "blockdev-add", {"driver": "qcow2", "node-name": name, "file": file, **options}
    )


def image(name, **options):
    return {"driver": "qcow2", "node-name": name, "file": f"{name}-file", **options}


@promise("an image becomes read-only and writable again, and others may read it meanwhile")
def read_only(test):
    path = make_qcow2(test, "q.qcow2")
    qmp = Server(test, [test.make_disk("disk.img", MIB)]).qmp()
    add_image(qmp, "q", path)
    assert node(qmp, "q")["ro"] is False and not others_can_read(path)
    qmp.command("blockdev-reopen", options=[image("q", **{"read-only": True})])
    assert node(qmp, "q")["ro"] is True and node(qmp, "q-file")["ro"] is True
    assert others_can_read(path)
    subprocess.run(["qemu-img", "check", "-q", path], check=True)
    qmp.command("blockdev-reopen", options=[image("q")])
    assert node(qmp, "q")["ro"] is False and not others_can_read(path)


def file_node(qmp, path):
    nodes = qmp.command("query-named-block-nodes", flat=True)
    return next(
        node["node-name"]
        for node in nodes
        if node["drv"] == "file" and node["image"]["filename"] == str(path)
    )


@promise("a guest's disk gets other options while it writes, and stays writable")
def under_load(test):
    length = 16 * MIB
    path = test.make_disk("disk.img", length)
    server = Server(test, [path])
    qmp = server.qmp()
    root = qmp.command("query-block")[0]["inserted"]["node-name"]
    file = {"driver": "file", "filename": str(path), "node-name": file_node(qmp, path)}
    writers = Writers(test, server.uri(), length, threads=3).start()
    for number in range(12):
        options = {
            "driver": "raw",
            "node-name": root,
            "file": {**file, "cache": {"direct": number % 2 == 1}},
            "detect-zeroes": "on" if number % 3 else "off",
        }
        try:
            qmp.command("blockdev-reopen", options=[options])
        except QmpError as error:
            assert "does not support direct I/O" in error.desc, error.desc
            options["file"] = file["node-name"]
            qmp.command("blockdev-reopen", options=[options])
        assert node(qmp, root)["detect_zeroes"] == options["detect-zeroes"]
        refused(
            qmp,
            f"Read-only block node '{root}' cannot support read-write users",
            {**options, "read-only": True},
        )
        writers.wait_done(50)
    assert_guest_unharmed(server, writers)


@promise("a backing file is exchanged, taken away and put back")
def backing(test):
    paths = {name: make_qcow2(test, f"{name}.qcow2") for name in ("one", "two", "top")}
    fill(paths["one"], 1)
    fill(paths["two"], 2)
    qmp = Server(test, [test.make_disk("disk.img", MIB)]).qmp()
    read_only = {"read-only": True}
    add_image(qmp, "one", paths["one"], **read_only)
    add_image(qmp, "two", paths["two"], **read_only)
    add_image(qmp, "top", paths["top"], backing="one")
    refused(qmp, "backing is missing for 'top'", image("top"))
    qmp.command("blockdev-reopen", options=[image("top", backing="two")])
    qmp.command("blockdev-del", node_name="one")
    refused(qmp, "cycle", image("top", backing="top"))
    qmp.command("blockdev-reopen", options=[image("top", backing=None)])
    qmp.command("blockdev-del", node_name="two")
    qmp.command("blockdev-reopen", options=[image("top", **{"overlap-check": "none"})])


@promise("what cannot be is said, and nothing has changed")
def wrong(test):
    path = make_qcow2(test, "q.qcow2")
    qmp = Server(test, [test.make_disk("disk.img", MIB)]).qmp()
    add_image(qmp, "q", path)
    before = node(qmp, "q")
    change = image("q", discard="unmap", **{"detect-zeroes": "on"})
    refused(qmp, "node-name not specified", {"driver": "null-co"})
    refused(qmp, "Failed to find node with node-name='x'", {"driver": "null-co", "node-name": "x"})
    refused(
        qmp, "Cannot change the option 'driver'", change, {"driver": "null-co", "node-name": "q-file"}
    )
    refused(qmp, "Cannot change the option 'l2-cache-size'", image("q", **{"l2-cache-size": MIB}))
    refused(qmp, "Parameter 'options[0].file' is missing", {"driver": "qcow2", "node-name": "q"})
    refused(qmp, "cannot get another 'file'", image("q", file="q"))
    assert node(qmp, "q") == before
    qmp.command("blockdev-reopen", options=[change])
    assert node(qmp, "q")["detect_zeroes"] == "on"
    qmp.command("blockdev-reopen", options=[])


main()
