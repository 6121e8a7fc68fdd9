#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""liveblk-storage-daemon: the command line of qemu-storage-daemon, with real clients."""

import json
import os
import pathlib
import signal
import socket
import subprocess

from liveblk_front_ends import DAEMON_PROGRAM as PROGRAM
from liveblk_front_ends import NBD_PROGRAM, Daemon, listens, nbd_server
from liveblk_test import Qmp, connect, fill, main, promise, refused, wait_until

MIB = 1 << 20


def image(test, name, *words):
    path = test.path(name)
    test.run("qemu-img", "create", "-q", "-f", "qcow2", path, "4M")
    return path


@promise("nodes, exports and monitors are what options say, and a backup is driven to its end")
def backup(test):
    disk, target = image(test, "d.qcow2"), test.make_disk("t.raw", 4 * MIB)
    test.run("qemu-img", "bitmap", "--add", "-f", "qcow2", disk, "b0")
    second = test.path("second.qmp")
    daemon = Daemon(
        test, "--chardev", f"socket,id=c1,path={second},server,nowait",
        "--monitor", "chardev=c1,mode=control",
        "--blockdev", f"driver=file,filename={disk},node-name=f,cache.direct=off,discard=unmap",
        "--blockdev", '{"driver": "qcow2", "node-name": "d", "file": "f"}',
        "--blockdev", f"raw,node-name=t,size=4194304,file.driver=file,file.filename={target}",
        *nbd_server(test),
        "--export", "nbd,id=e,node-name=d,writable=on,bitmaps.0=b0,allocation-depth=on",
        "--export", "{'type': 'nbd', 'id': 'r', 'node-name': 'd', 'name': 'a,b'}",
    )  # fmt: skip
    handle = daemon.connect("d")
    data, later = fill(MIB, MIB, 1), fill(MIB, MIB, 2)
    handle.pwrite(data, MIB)
    assert daemon.connect("a,b").is_read_only()
    listed = json.loads(test.run("nbdinfo", "--json", f"nbd+unix:///d?socket={daemon.nbd}").stdout)
    contexts = listed["exports"][0]["contexts"]
    assert "qemu:dirty-bitmap:b0" in contexts and "qemu:allocation-depth" in contexts, contexts

    qmp, other = daemon.qmp(), Qmp(second)
    test.cleanup.callback(other.close)
    sockets = qmp.command("query-nbd-sockets")
    assert [entry["path"] for entry in sockets] == [str(daemon.nbd)], sockets
    qmp.command("blockdev-backup", job_id="j", device="d", target="t", sync="full",
                auto_finalize=False)  # fmt: skip
    qmp.wait_job("j", "pending")
    handle.pwrite(later, MIB)
    qmp.command("job-finalize", id="j")
    qmp.wait_job("j", "concluded")
    other.wait_event("BLOCK_JOB_COMPLETED", device="j")
    assert target.read_bytes() == bytes(MIB) + data + bytes(2 * MIB)
    handle.shutdown()
    assert qmp.command("quit") == {}
    daemon.ended()
    assert not second.exists()
    read = test.run("qemu-io", "-f", "qcow2", "-c", "read -v 1M 512", disk).stdout
    assert "4c 49 56 45 42 4c 4b 31" in read, read
    told = json.loads(test.run("qemu-img", "info", "--output=json", disk).stdout)
    bitmaps = told["format-specific"]["data"]["bitmaps"]
    assert bitmaps == [{"flags": ["auto"], "name": "b0", "granularity": 65536}], bitmaps


@promise("who connects before all options are carried out waits, and finds what they say")
def early(test):
    hold, admin, nbd = (test.path(name) for name in ("hold.sock", "early.qmp", "early.nbd"))
    process = test.start(
        PROGRAM, "--chardev", f"socket,id=m,path={admin},server=on,wait=off", "--monitor", "m",
        "--nbd-server", f"addr.type=unix,addr.path={nbd}", "--blockdev",
        "null-co,node-name=n,size=1048576,read-zeroes=on",
        "--chardev", f"socket,id=h,path={hold},server=on",  # it waits here
        "--export", "nbd,id=e,node-name=n", log="early.log",
    )  # fmt: skip
    wait_until(lambda: listens(hold), "it waits for a client")
    with socket.socket(socket.AF_UNIX) as monitor, socket.socket(socket.AF_UNIX) as client:
        monitor.connect(str(admin))
        monitor.sendall(b'{"execute": "qmp_capabilities"} {"execute": "query-block-exports"}')
        client.connect(str(nbd))
        for early in (monitor, client):
            early.settimeout(0.3)
            try:
                raise AssertionError(f"it answers already: {early.recv(4096)}")
            except TimeoutError:
                early.settimeout(30)
        with socket.socket(socket.AF_UNIX) as holder:
            holder.connect(str(hold))
            answers = monitor.makefile("rb")
            lines = [json.loads(answers.readline()) for _ in range(3)]
            assert [export["id"] for export in lines[2]["return"]] == ["e"], lines
            assert client.recv(8) == b"NBDMAGIC"
        assert connect(f"nbd+unix:///n?socket={nbd}").get_size() == MIB
        monitor.sendall(b'{"execute": "quit"}')
        assert process.wait(30) == 0


def complete(qmp, job):
    qmp.wait_event("BLOCK_JOB_READY", device=job)
    qmp.command("job-complete", id=job)
    assert "error" not in qmp.wait_event("BLOCK_JOB_COMPLETED", device=job)["data"]


def all_show(qmp, node):
    shown = {export["id"]: export["node-name"] for export in qmp.command("query-block-exports")}
    assert shown == {"w": node, "r": node}, (node, shown)


@promise("what a mirror or a commit moves are all exports of its node, while clients write")
def moves(test):
    paths = {name: image(test, f"{name}.qcow2") for name in ("base", "top", "target")}

    def options(name, **others):
        return {"driver": "qcow2", "node-name": name, **others,
                "file": {"driver": "file", "filename": str(paths[name])}}  # fmt: skip

    daemon = Daemon(
        test, "--blockdev", json.dumps(options("base")), *nbd_server(test),
        "--export", "nbd,id=w,node-name=base,name=w,writable=on",
        "--export", "nbd,id=r,node-name=base,name=r",
    )  # fmt: skip
    writer, reader, qmp = daemon.connect("w"), daemon.connect("r"), daemon.qmp()
    parts = [fill(i * MIB, MIB, i + 1) for i in range(4)]

    def write(number):
        writer.pwrite(parts[number], number * MIB)
        for i, part in enumerate(parts[: number + 1]):
            assert reader.pread(MIB, i * MIB) == part, (number, i)

    write(0)
    qmp.command("blockdev-add", **options("top", backing=None))
    qmp.command("blockdev-snapshot", node="base", overlay="top")
    write(1)
    qmp.command("block-commit", job_id="c", device="top")
    complete(qmp, "c")
    all_show(qmp, "base")
    qmp.command("blockdev-del", node_name="top")
    write(2)
    qmp.command("blockdev-add", **options("target"))
    qmp.command("blockdev-mirror", job_id="m", device="base", target="target", sync="full")
    complete(qmp, "m")
    all_show(qmp, "target")
    qmp.command("blockdev-del", node_name="base")
    write(3)
    writer.flush()
    for handle in (writer, reader):
        handle.shutdown()
    qmp.command("quit")
    daemon.ended()
    copy = test.path("copy.raw")
    test.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", paths["target"], copy)
    assert copy.read_bytes() == b"".join(parts)


@promise("at a signal exports end first, then jobs, then nodes; what was answered is there")
def ends(test):
    disk, target = image(test, "d.qcow2"), image(test, "t.qcow2")
    nodes = [
        word for name, path in (("d", disk), ("t", target))
        for word in ("--blockdev", f"qcow2,node-name={name},file.driver=file,file.filename={path}")
    ]  # fmt: skip
    daemon = Daemon(test, *nodes, *nbd_server(test), "--export", "nbd,id=e,node-name=d,writable=on")
    handle, qmp = daemon.connect("d"), daemon.qmp()
    handle.pwrite(fill(0, MIB, 1), 0)
    qmp.command("blockdev-mirror", job_id="m", device="d", target="t", sync="full")
    qmp.wait_event("BLOCK_JOB_READY", device="m")
    daemon.process.send_signal(signal.SIGTERM)
    qmp.wait_event("BLOCK_JOB_CANCELLED", device="m")
    assert any(event["event"] == "BLOCK_EXPORT_DELETED" for event in qmp.events), qmp.events
    daemon.ended()
    for path in (disk, target):
        read = test.run("qemu-io", "-f", "qcow2", "-c", "read -v 0 512", path).stdout
        assert "4c 49 56 45 42 4c 4b 31" in read, read
        test.run("qemu-img", "check", "-f", "qcow2", path)


@promise("a monitor on standard input and output needs no newlines, and ends with quit")
def stdio(test):
    words = b"".join(
        json.dumps({"execute": name}).encode()
        for name in ("qmp_capabilities", "query-named-block-nodes", "quit")
    )
    process = subprocess.run(
        [PROGRAM, "--blockdev", "null-co,node-name=n,size=1048576,read-zeroes=on", "--chardev",
         "stdio,id=s,signal=off", "--monitor", "s"],
        input=words, capture_output=True, timeout=30,
    )  # fmt: skip
    lines = [json.loads(line) for line in process.stdout.split(b"\r\n") if line]
    assert process.returncode == 0 and not process.stderr, process
    assert "QMP" in lines[0] and lines[1] == {"return": {}} and lines[3] == {"return": {}}, lines
    assert [node["node-name"] for node in lines[2]["return"]] == ["n"], lines


@promise("the end does not wait for somebody who does not read a monitor's output")
def unread(test):
    for way in ("quit", "signal"):
        output, written = os.pipe()
        daemon = Daemon(
            test, "--chardev", "stdio,id=s", "--monitor", "s", name=way, stdin=subprocess.PIPE,
            stdout=written,
        )  # fmt: skip
        os.close(written)
        schema = json.dumps({"execute": "query-qmp-schema"}).encode()
        daemon.process.stdin.write(b'{"execute": "qmp_capabilities"}' + 2 * schema)
        daemon.process.stdin.flush()
        assert os.read(output, 8) == b'{"QMP": '
        qmp = daemon.qmp()
        if way == "quit":
            qmp.command("quit")
        else:
            daemon.process.send_signal(signal.SIGTERM)
        daemon.ended()
        os.close(output)


@promise("--daemonize returns when all is ready; its pid file lets no second one in")
def daemonizes(test):
    test.make_disk("d.raw", MIB)
    words = (
        "--daemonize", "--pidfile", "pid", "--blockdev", "file,node-name=d,filename=d.raw",
        "--nbd-server", "addr.type=unix,addr.path=n", "--export", "nbd,id=e,node-name=d",
    )  # fmt: skip
    result = test.run(PROGRAM, *words, cwd=test.directory)
    pid_file = test.path("pid")
    pid = int(pid_file.read_text())
    test.cleanup.callback(lambda: pid and os.kill(pid, signal.SIGKILL))
    assert not result.stdout and not result.stderr, result
    assert connect(f"nbd+unix:///d?socket={test.path('n')}").get_size() == MIB
    second = test.run(PROGRAM, "--daemonize", "--pidfile", pid_file, status=1)
    assert "locked" in second.stderr and int(pid_file.read_text()) == pid, second
    os.kill(pid, signal.SIGINT)
    wait_until(lambda: not pathlib.Path(f"/proc/{pid}").exists(), "it ends")
    pid = None
    assert not pid_file.exists() and not test.path("n").exists()


@promise("options are carried out in their order: wait=on comes before what follows it")
def waits(test):
    nbd, path = test.path("n"), test.path("q")
    passed = socket.socket(socket.AF_UNIX)
    passed.bind(str(test.path("passed")))
    passed.listen()
    theirs = socket.socket(socket.AF_UNIX)
    theirs.bind(str(test.path("theirs")))
    theirs.listen()
    process = test.start(
        PROGRAM, "--chardev", f"socket,id=p,fd={passed.fileno()},server=on,wait=off",
        "--monitor", "p", "--chardev", f"socket,id=t,path={test.path('theirs')}", "--monitor", "t",
        "--chardev", f"socket,id=c,path={path},server=on", "--monitor", "c",
        "--nbd-server", f"addr.type=unix,addr.path={nbd}", pass_fds=(passed.fileno(),),
    )  # fmt: skip
    with theirs.accept()[0] as connection:
        connection.settimeout(30)
        wait_until(lambda: listens(path), "it waits for a client")
        assert not nbd.exists()  # the NBD server comes after the chardev
        with Qmp(path) as late, Qmp(test.path("passed")) as other:
            assert connection.recv(8) == b'{"QMP": '
            assert other.command("query-block-exports") == [] and nbd.exists()
            taken = {"type": "fd", "data": {"str": str(passed.fileno())}}
            refused(late, "nbd-server-start", {"id": "b", "addr": taken}, "monitor")
            late.command("quit")
    assert process.wait(30) == 0
    assert test.path("passed").exists() and not path.exists()


def layout(message):
    """Its lines, of which members may stand in any order, without those that tell the version."""
    return sorted(line.rstrip(b",") for line in message.split(b"\r\n")
                  if not any(word in line for word in (b"QMP", b'"m', b"package")))


def pretty_session(test, program):
    """What a monitor with pretty=on answers, up to the end."""
    process = test.start(
        program, "--chardev", "stdio,id=c", "--monitor", "c,pretty=on",
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    process.stdin.write(
        b'{"execute": "qmp_capabilities", "id": "a, {\\"} [b]"}{"execute": "query-block-jobs"}'
        b'{"execute": "query-commands"}{"execute": "no"}{"execute": "quit"}'
    )
    process.stdin.close()
    answers = process.stdout.read().split(b"\r\n{\r\n")
    assert process.wait(30) == 0
    return answers


@promise("pretty=on breaks lines where QEMU's daemon breaks them")
def pretty(test):
    ours, theirs = (pretty_session(test, program) for program in (PROGRAM, "qemu-storage-daemon"))
    assert len(ours) == len(theirs) == 6, (ours, theirs)
    assert ours[2] == theirs[2] and ours[5] == theirs[5], (ours, theirs)
    for mine, peers in zip(ours, theirs):
        if b"query-commands" not in mine:  # they know others
            assert layout(mine) == layout(peers), (mine, peers)
    assert ours[3].count(b'\r\n            "name": ') > 50, ours[3]
    for text in ours[1:]:
        json.loads(b"{" + text)


@promise("a monitor listens on TCP, on all addresses of a name, and waits for a client if told to")
def tcp_monitor(test):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    nbd = test.path("after")
    process = test.start(
        PROGRAM, "--chardev", f"socket,id=c,host=localhost,port={port},to={port + 50},server=on",
        "--monitor", "c,pretty=on", "--nbd-server", f"addr.type=unix,addr.path={nbd}",
    )  # fmt: skip
    connection = None

    def connected():
        nonlocal connection
        assert process.poll() is None and not nbd.exists()
        try:
            connection = socket.create_connection(("localhost", port), 30)
        except ConnectionRefusedError:
            return False
        return True

    wait_until(connected, "it listens")
    wait_until(nbd.exists, "it goes on")
    connection.sendall(b'{"execute": "qmp_capabilities"}{"execute": "quit"}')
    answer = b""
    while part := connection.recv(4096):
        answer += part
    assert answer.startswith(b'{\r\n    "QMP": {\r\n') and answer.endswith(b"\r\n}\r\n"), answer
    assert process.wait(30) == 0


@promise("what is wrong with an option is said in one line, with status 1, and leaves nothing")
def refusals(test):
    path = test.path("s")
    listening = ("--chardev", f"socket,id=c,path={path},server=on,wait=off")
    wrong = [
        ("--bogus",), ("word",), ("--pidfile",), ("-T", "x"), ("--monitor", "none"),
        ("--blockdev", "driver=file"), ("--blockdev", "{"), ("--blockdev", "{}{}"),
        ("--blockdev", "null-co,size=1048576"), ("--blockdev", "null-co,node-name=n,size=much"),
        ("--blockdev", "null-co,node-name=n,no=1"), ("--blockdev", "raw,file=a,file.driver=file"),
        (*listening, "--chardev", "stdio,id=c"), (*listening, "--monitor", "c,mode=readline"),
        (*listening, "--monitor", "c", "--monitor", "c"), ("--chardev", "null,id=n"),
        ("--chardev", "socket,id=c,host=localhost,server=on"), ("--chardev", "socket,id=c"),
        ("--chardev", f"socket,id=c,path={path},port=1,server=on"),
        ("--chardev", "socket,id=c,port=1"), ("--chardev", f"socket,id=c,path={path},to=2"),
        ("--chardev", f"socket,id=c,path={path}"), ("--chardev", "socket,id=c,fd=0,server=on"),
        ("--daemonize", "--chardev", "stdio,id=s"), ("--object", "bogus,id=b"),
        ("--export", "nbd,id=e,node-name=n"), ("--export", "fuse,id=e,node-name=n"),
        ("--nbd-server", "addr.type=unix"), ("--nbd-server", "addr.type=fd,addr.str=0"),
        (*listening, "--pidfile", "/no/where"),
    ]  # fmt: skip
    for words in wrong:
        result = test.run(PROGRAM, *words, status=1)
        assert not result.stdout and result.stderr.count("\n") == 1, (words, result)
        assert result.stderr.startswith("liveblk-storage-daemon: "), (words, result)
        assert not path.exists(), words
    for word in ("--help", "--version"):
        assert "liveblk-storage-daemon" in test.run(PROGRAM, word).stdout
    for program in (PROGRAM, NBD_PROGRAM, "qemu-storage-daemon"):
        lines = test.run(program, "--object", "help").stdout.splitlines()
        assert lines[0] == "List of user creatable objects:", lines
        assert {"  secret", "  throttle-group", "  tls-creds-psk"} <= set(lines), lines
    assert "  limits=<" in test.run(PROGRAM, "--object", "throttle-group,help").stdout
    assert "  stdio\n" in test.run(PROGRAM, "--chardev", "help").stdout


main()
