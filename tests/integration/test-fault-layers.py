#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The fault layers, armed over the admin channel of a real server."""

import signal
import threading

import nbd
from liveblk_test import Server, error_of, main, promise, refused

KIB = 1 << 10
MIB = 1 << 20


def serve(test, layer, child="file"):
    """A disk of 1 MiB behind a fault layer that is the node 'fault'."""
    path = test.make_disk("disk.img", MIB)
    server = Server(
        test,
        [
            f"name=vda,file.driver={layer},file.node-name=fault,"
            f"file.{child}.driver=file,file.{child}.filename={path}"
        ],
    )
    return server, server.qmp(), path


@promise("errors are injected and cleared at run time, counted, and wrong rules are refused")
def errors(test):
    server, qmp, path = serve(test, "blkdebug", "image")
    handle = server.connect()
    handle.pwrite(b"a" * 4096, 0)
    rule = {"event": "none", "iotype": "write", "errno": 28, "offset": 8192, "bytes": 4096}
    qmp.command_raw("blkdebug-set", {"node-name": "fault", "inject-error": [rule]})
    assert error_of(handle.pwrite, b"b" * 4096, 0) is None
    assert error_of(handle.pwrite, b"b" * 4096, 8192) == "ENOSPC"
    info = qmp.command_raw("query-blkdebug", {"node-name": "fault"})
    assert info["inject-error"][0]["hits"] == 1, info
    for wrong, word in (
        ({"event": "none", "probability": 101}, "probability"),
        ({"event": "bang"}, "bang"),
        ({"iotype": "read"}, "event"),
        ({"event": "none", "immediately": True}, "immediately"),
    ):
        arguments = {"node-name": "fault", "inject-error": [rule, wrong]}
        refused(qmp, "blkdebug-set", arguments, word)
    refused(qmp, "blkdebug-set", {"node-name": "nobody"}, "nobody")
    refused(qmp, "lose-writes-now", {"node-name": "fault"}, "lose-writes")
    assert error_of(handle.pwrite, b"b" * 4096, 8192) == "ENOSPC"
    qmp.command_raw("blkdebug-set", {"node-name": "fault"})
    assert error_of(handle.pwrite, b"b" * 4096, 8192) is None
    handle.shutdown()
    server.stop()
    assert path.read_bytes()[:12288] == b"b" * 4096 + bytes(4096) + b"b" * 4096


def write_in_thread(server):
    handle = server.connect()
    result = []
    thread = threading.Thread(
        target=lambda: result.append(error_of(handle.pwrite, b"w" * 4096, 4096)), daemon=True
    )
    thread.start()
    return handle, thread, result


@promise("a break point holds a guest's write until it is resumed, and others go on")
def break_point(test):
    server, qmp, path = serve(test, "blkdebug", "image")
    qmp.command_raw(
        "blkdebug-break",
        {"node-name": "fault", "tag": "A", "iotype": "write", "offset": 4096, "bytes": 4096},
    )
    held, thread, result = write_in_thread(server)
    qmp.wait_event("BLKDEBUG_SUSPENDED", node_name="fault", tag="A")
    info = qmp.command_raw("query-blkdebug", {"node-name": "fault"})
    assert info["breaks"] == [{"tag": "A", "suspended": 1, "reached": 1}], info
    other = server.connect()
    other.pwrite(b"o" * 4096, 0)
    assert bytes(other.pread(4096, 4096)) == bytes(4096)
    refused(qmp, "blkdebug-resume", {"node-name": "fault", "tag": "B"}, "'B'")
    answer = qmp.command_raw("blkdebug-resume", {"node-name": "fault", "tag": "A"})
    assert answer == {"resumed": 1}, answer
    thread.join(30)
    assert result == [None], result
    assert bytes(other.pread(4096, 4096)) == b"w" * 4096
    for handle in (held, other):
        handle.shutdown()
    server.stop()


@promise("the server ends although a request stands at a break point")
def ends(test):
    server, qmp, path = serve(test, "blkdebug", "image")
    qmp.command_raw("blkdebug-break", {"node-name": "fault", "tag": "A", "iotype": "write"})
    held, thread, result = write_in_thread(server)
    qmp.wait_event("BLKDEBUG_SUSPENDED")
    server.process.terminate()
    thread.join(30)
    assert not thread.is_alive(), "the write still stands there"
    held.shutdown()
    assert server.process.wait(30) == 0


@promise("at a numbered write the process dies, and the image has lost just what was chosen")
def process_dies(test):
    server, qmp, path = serve(test, "lose-writes")
    handle = server.connect()
    handle.pwrite(b"1" * 4096, 0)  # write 1
    handle.flush()
    handle.pwrite(b"2" * 8192, 0)  # 2: lost
    handle.pwrite(b"3" * 4096, 4096)  # 3: over it, kept
    handle.pwrite(b"4" * 4096, 8192, nbd.CMD_FLAG_FUA)  # 4: durable
    info = qmp.command_raw("query-lose-writes", {"node-name": "fault"})
    assert info["writes"] == 4 and info["unflushed-count"] == 2, info
    assert [record["write"] for record in info["unflushed"]] == [2, 3], info
    refused(qmp, "lose-writes-arm", {"node-name": "fault", "at-write": 4}, "4")
    qmp.command_raw(
        "lose-writes-arm",
        {"node-name": "fault", "at-write": 5, "writes": [2, 4, 5], "end": "process"},
    )
    assert error_of(handle.pwrite, b"5" * 4096, 12288) is not None
    assert server.process.wait(30) == -signal.SIGKILL
    contents = path.read_bytes()
    assert contents[:16384] == b"1" * 4096 + b"3" * 4096 + b"4" * 4096 + bytes(4096)
    assert contents[16384:] == bytes(MIB - 16384)


@promise("lose-writes-now takes everything since the flush back, and the node has ended")
def node_ends(test):
    server, qmp, path = serve(test, "lose-writes")
    handle = server.connect()
    handle.pwrite(b"1" * 4096, 0)
    handle.flush()
    handle.pwrite(b"2" * 4096, 0)
    handle.zero(4096, 4096)
    answer = qmp.command_raw("lose-writes-now", {"node-name": "fault"})
    assert answer == {"lost": 2, "kept": 0}, answer
    qmp.wait_event("LOSE_WRITES_END", node_name="fault", lost=2)
    assert error_of(handle.pwrite, b"3" * 4096, 0) == "EIO"
    assert error_of(handle.pread, 4096, 0) == "EIO"
    refused(qmp, "lose-writes-now", {"node-name": "fault"}, "ended")
    assert path.read_bytes()[:8192] == b"1" * 4096 + bytes(4096)


main()
