#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""liveblk-nbd: the command line of qemu-nbd on our own NBD server, with real clients."""

import contextlib
import os
import pathlib
import signal
import socket

import nbd
from liveblk_front_ends import NBD_PROGRAM as PROGRAM
from liveblk_front_ends import NbdProgram as Server
from liveblk_front_ends import listens
from liveblk_test import connect, error_of, fill, main, promise, wait_until
from liveblk_test import Server as PluginServer

MIB = 1 << 20


@contextlib.contextmanager
def serving(test, *words, export="", status=0):
    """A client's handle; the server has ended after it, as its only client has left."""
    server = Server(test, *words)
    handle = connect(server.uri(export))
    handle.set_strict_mode(0)
    yield handle
    handle.shutdown()
    server.end(status)


def make_image(test, name, *options, format="qcow2", length=4 * MIB):
    path = test.path(name)
    test.run("qemu-img", "create", "-q", "-f", format, *options, path, str(length))
    return path


def contents(test, path, format):
    """What QEMU reads there."""
    raw = test.path("contents.raw")
    test.run("qemu-img", "convert", "-U", "-f", format, "-O", "raw", path, raw)
    return raw.read_bytes()


@promise("a qcow2 image is served until the last client has left, and holds what was written")
def serves(test):
    image = make_image(test, "d.qcow2")
    test.run("qemu-img", "bitmap", "--add", "-f", "qcow2", image, "b0")
    server = Server(
        test, "-f", "qcow2", "-e0", "-x", "disk", "-D", "a disk", "-A", "-B", "b0",
        "--cache=none", "--aio=native", "--discard=unmap", "--detect-zeroes=unmap", image,
    )  # fmt: skip
    handle = nbd.NBD()
    handle.add_meta_context("qemu:dirty-bitmap:b0")
    handle.connect_uri(server.uri("disk"))
    assert handle.can_multi_conn() and not handle.is_read_only()
    data = fill(MIB, MIB, 1)
    handle.pwrite(data, MIB)
    handle.pwrite(bytes(MIB), 2 * MIB)  # which --detect-zeroes makes a hole
    extents = []
    handle.block_status(4 * MIB, 0, lambda context, offset, entries, error: extents.extend(entries))
    assert extents == [MIB, 0, 2 * MIB, 1, MIB, 0], extents

    # Who only looks is no client that it would end with.
    listed = test.run(PROGRAM, "-L", "-k", server.socket).stdout
    theirs = test.run("qemu-nbd", "-L", "-k", server.socket).stdout
    assert listed == theirs, f"{listed}\nqemu-nbd:\n{theirs}"
    for line in (" export: 'disk'", "  description: a disk", "   qemu:dirty-bitmap:b0",
                 "   qemu:allocation-depth", "  size:  4194304"):  # fmt: skip
        assert line in listed.splitlines(), listed
    assert server.process.poll() is None
    handle.shutdown()
    server.end()
    expected = bytes(MIB) + data + bytes(2 * MIB)
    assert contents(test, image, "qcow2") == expected
    mapped = test.run("qemu-img", "map", "--output=json", "-f", "qcow2", image).stdout
    assert '"start": 2097152' in mapped and mapped.count('"data": true') == 1, mapped
    test.run("qemu-img", "check", "-f", "qcow2", image)


@promise("-L lists what a server has that requires TLS, with credentials, and nothing without")
def lists_with_tls(test):
    path = test.path("tls.sock")
    test.path("keys.psk").write_text("alice:00112233445566778899aabbccddeeff\n")
    test.start(
        "nbdkit", "-f", "-U", path, "--tls=require", f"--tls-psk={test.path('keys.psk')}", "memory",
        "1M",
    )  # fmt: skip
    wait_until(lambda: listens(path), "nbdkit listens")
    tls = f"tls-creds-psk,id=t,dir={test.directory},endpoint=client,username=alice"
    words = (PROGRAM, "-L", "-k", path)
    listed = test.run(*words, "--object", tls, "--tls-creds=t")
    assert "  size:  1048576" in listed.stdout.splitlines(), listed
    for wrong in ((), ("--tls-creds=t",), ("--object", tls + ",x=y", "--tls-creds=t"),
                  ("--object", tls.replace("client", "server"), "--tls-creds=t")):  # fmt: skip
        result = test.run(*words, *wrong, status=1)
        assert not result.stdout and result.stderr.count("\n") == 1, (wrong, result)


@promise("-t stays when clients leave; with -e 1 the next has to wait, and no one connects twice")
def stays(test):
    server = Server(test, "-t", "-f", "raw", test.make_disk("d.raw", MIB))
    first = connect(server.uri())
    assert not first.can_multi_conn()
    with socket.socket(socket.AF_UNIX) as second:
        second.connect(str(server.socket))
        second.setblocking(False)
        first.pwrite(fill(0, 4096, 1), 0)
        try:
            assert not second.recv(1), "a second client is greeted"
        except BlockingIOError:
            pass
        first.shutdown()
        second.settimeout(30)
        assert second.recv(8) == b"NBDMAGIC"
    assert connect(server.uri()).pread(4096, 0) == fill(0, 4096, 1)
    server.stop(signal.SIGINT)


@promise("--fork returns when clients can connect, says what failed, and the pid file goes")
def forks(test):
    disk, pid_file, path = test.make_disk("d.raw", MIB), test.path("pid"), test.path("s")
    words = ("--fork", "-t", "-f", "raw", "-k", path, "--pid-file", pid_file)
    result = test.run(PROGRAM, *words, disk)
    pid = int(pid_file.read_text())
    test.cleanup.callback(lambda: pid and os.kill(pid, signal.SIGKILL))
    assert not result.stdout and not result.stderr, result
    assert pid_file.stat().st_mode & 0o777 == 0o600 and os.readlink(f"/proc/{pid}/cwd") == "/"
    connect(f"nbd+unix:///?socket={path}").pwrite(fill(0, 4096, 1), 0)
    again = test.run(PROGRAM, *words[:-1], test.path("other"), disk, status=1)
    assert again.stderr.startswith("liveblk-nbd: ") and again.stderr.count("\n") == 1, again
    assert not test.path("other").exists()
    locked = test.run(PROGRAM, "--fork", "-f", "raw", "-k", test.path("other"),
                      "--pid-file", pid_file, test.make_disk("e.raw", MIB), status=1)  # fmt: skip
    assert "still runs" in locked.stderr and int(pid_file.read_text()) == pid, locked
    os.kill(pid, signal.SIGHUP)
    wait_until(lambda: not pathlib.Path(f"/proc/{pid}").exists(), "it ends")
    pid = None
    assert not pid_file.exists() and not path.exists()
    for closed in ("<&-", ">&-", "2>&-", "<&- >&- 2>&-"):
        test.run("sh", "-c", f'exec "$@" {closed}', "sh", PROGRAM, *words, disk)
        pid = int(pid_file.read_text())
        assert pathlib.Path(f"/proc/{pid}").exists(), f"it runs although it was started with {closed}"
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not pid_file.exists(), "it ends")
        pid = None
    assert disk.read_bytes()[:4096] == fill(0, 4096, 1)


@promise("a socket that was passed is listened on, and then no other may be named")
def activation(test):
    disk = test.make_disk("d.raw", MIB)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(test.path("s")))
        listener.listen()
        shell = f'exec 3<&{listener.fileno()}; export LISTEN_FDS=1 LISTEN_PID=$$; exec "$@"'
        start = ("sh", "-c", shell, "sh", PROGRAM, "-f", "raw")
        passed = (listener.fileno(),)
        result = test.run(*start, "-p", "10809", disk, status=1, pass_fds=passed)
        assert "--port" in result.stderr and result.stderr.count("\n") == 1, result
        process = test.start(*start, disk, pass_fds=passed)
        handle = connect(f"nbd+unix:///?socket={test.path('s')}")
        handle.pwrite(fill(0, 4096, 1), 0)
        handle.shutdown()
        assert process.wait(30) == 0
    assert disk.read_bytes()[:4096] == fill(0, 4096, 1)


@promise("-r refuses writes, -s forgets them, -l shows a snapshot, -o and --image-opts a part")
def variants(test):
    old, new, more = fill(0, MIB, 1), fill(0, MIB, 2), fill(0, MIB, 3)
    image = make_image(test, "d.qcow2")
    with serving(test, "-f", "qcow2", "--cache=writethrough", image) as handle:
        handle.pwrite(old, 0)
    test.run("qemu-img", "snapshot", "-c", "snap", image)
    with serving(test, "-f", "qcow2", "--cache=directsync", image) as handle:
        handle.pwrite(new, 0)
    with serving(test, "-f", "qcow2", "-r", image) as handle:
        assert handle.is_read_only() and error_of(handle.pwrite, more, 0)
        assert handle.pread(MIB, 0) == new
    with serving(test, "-s", "--cache=unsafe", image) as handle:
        handle.pwrite(more, 512)
        assert handle.pread(MIB + 512, 0) == new[:512] + more
    for wanted in ("snap", "1", "snapshot.id=1,snapshot.name=snap"):
        with serving(test, "-f", "qcow2", "-l", wanted, image) as handle:
            assert handle.is_read_only() and handle.pread(MIB, 0) == old
    with serving(test, "-f", "qcow2", "-o", "64k", image) as handle:
        assert handle.get_size() == 4 * MIB - 65536
        handle.pwrite(more[:4096], 0)
    expected = new[:65536] + more[:4096] + new[65536 + 4096 :]
    assert contents(test, image, "qcow2")[:MIB] == expected
    options = (
        "driver=raw,offset=64k,size=4096,file.driver=qcow2,"
        f"file.file.driver=file,file.file.filename={image}"
    )
    with serving(test, "--image-opts", options) as handle:
        assert handle.pread(4096, 0) == more[:4096] and handle.get_size() == 4096
    for words in (("--image-opts", f"file.filename={image}"), ("-p", "1", f"file:{image}")):
        with serving(test, *words) as handle:
            assert handle.pread(4096, 65536) == more[:4096]
    with serving(test, "-n", "--aio=native", "--image-opts", options) as handle:
        assert handle.pread(4096, 0) == more[:4096]
    odd = test.make_disk("odd.img", MIB)
    os.truncate(odd, MIB - 1)
    with serving(test, "-f", "raw", "-n", "--aio=native", odd) as handle:
        assert handle.pread(512, 0) == bytes(512)  # not past the page cache
    with serving(test, "--aio=io_uring", "--image-opts", f"file.filename={image}") as handle:
        assert handle.pread(4096, 65536) == more[:4096]
    below = Server(test, "-t", "-x", "disk", "-f", "qcow2", image, name="below")
    with serving(test, "-f", "raw", f"nbd:unix:{below.socket}:exportname=disk") as handle:
        handle.pwrite(old[:4096], 65536)
    below.stop()
    assert contents(test, image, "qcow2")[65536 : 65536 + 4096] == old[:4096]


@promise("a raw disk that was guessed keeps its clients from making it another format's, and says so")
def guesses(test):
    disk = test.make_disk("d.raw", MIB)
    header = make_image(test, "h.qcow2").read_bytes()[:512]
    server = Server(test, disk)
    assert server.log().startswith("liveblk-nbd: warning: "), server.log()
    handle = connect(server.uri())
    assert error_of(handle.pwrite, header, 0) == "EPERM"
    handle.pwrite(b"KD", 0)
    assert error_of(handle.pwrite, b"MV", 2) == "EPERM", "it would be a vmdk image next time"
    handle.pwrite(fill(0, 4096, 1), 0)
    handle.shutdown()
    server.end()
    assert disk.read_bytes()[:4096] == fill(0, 4096, 1)
    with serving(test, "--image-opts", f"file.filename={disk}") as handle:
        assert error_of(handle.pwrite, header, 0) == "EPERM"
    with serving(test, "-f", "raw", disk) as handle:
        handle.pwrite(header, 0)
    assert disk.read_bytes()[:512] == header


@promise("images of other formats are served through qemu-nbd, whether named or found out")
def formats(test):
    data = fill(0, MIB, 1)
    vmdk, vdi = make_image(test, "d.vmdk", format="vmdk"), make_image(test, "d.vdi", format="vdi")
    with serving(test, "-f", "vmdk", vmdk) as handle:
        handle.pwrite(data, MIB)
    assert contents(test, vmdk, "vmdk") == bytes(MIB) + data + bytes(2 * MIB)
    with serving(test, "-s", vdi) as handle:
        handle.pwrite(data, 0)
        assert handle.pread(MIB, 0) == data
    assert contents(test, vdi, "vdi") == bytes(4 * MIB)
    # The child of a server in the background holds nothing that who started that reads to its end.
    words = ("--fork", "-t", "-k", test.path("s"), "--pid-file", test.path("pid"))
    assert not test.run(PROGRAM, *words, vdi).stderr
    os.kill(int(test.path("pid").read_text()), signal.SIGTERM)
    wait_until(lambda: not test.path("pid").exists(), "it ends")
    result = test.run(PROGRAM, *words, "-f", "vdi", vmdk, status=1)
    assert result.stderr.startswith("qemu-nbd: ") and "\nliveblk-nbd: " in result.stderr, result
    nowhere = test.path("bin")
    nowhere.mkdir()
    result = test.run(PROGRAM, "-f", "vmdk", vmdk, status=1, env={"PATH": str(nowhere)})
    assert "qemu-nbd, which is not installed" in result.stderr, result


@promise("a disk that a killed server tracked, and that was written here, is known to have changed")
def tracked(test):
    disk = test.make_disk("d.raw", MIB)
    tracking = f"name=vda,file={disk},format=raw,tracking=auto"
    plugin = PluginServer(test, [tracking])
    plugin.connect("vda").pwrite(fill(0, 4096, 1), 0)
    plugin.kill()
    with serving(test, "-f", "raw", disk) as handle:
        handle.pwrite(fill(65536, 4096, 2), 65536)
    plugin = PluginServer(test, [tracking], name="again")
    assert "the next backup has to be a full one" in plugin.log(), plugin.log()
    plugin.stop()


@promise("what is wrong with the command line is said in one line, with status 1")
def refusals(test):
    image, where = make_image(test, "d.qcow2"), ("-k", test.path("s"))
    wrong = [
        ("a", "b"), ("--bogus",), ("-k",), ("-k", "relative", image), ("-e", "x", image),
        ("-p", "none", image), ("-x", "n" * 4097, image), ("--cache=slow", image),
        ("-n", "--cache=none", image), ("--aio=fast", image), ("--discard=maybe", image),
        ("--detect-zeroes=unmap", image), ("-o", "1x", image), ("-c", "/no/where", image),
        ("-f", "raw", "--image-opts", "driver=raw"), ("-d", "/no/where"), ("-T", image),
        ("-L", image), ("-L", "-f", "raw"), ("-L", "-rste2", *where), ("-L", "--fork", *where),
        ("--aio=threads", "--aio=threads", image), ("--discard=on", "--discard=on", image),
        (*where, "nbd:none"), (*where, "-p", "x", test.path("nothing")), ("--tls-authz=a", image),
        ("-f", "qcow2", "--aio=native", *where, image),
        ("-f", "qcow2", "--aio=native", "--cache=writethrough", *where, image),
        ("--tls-hostname=h", image), ("--tls-creds=none", *where, image),
        ("--object", "bogus,id=b", *where, image), ("-k", "/no/where", image),
        ("-f", "qcow2", *where, test.path("nothing")), ("-f", "qcow2", *where, "/dev/null"),
        ("-B", "nothing", *where, image), ("-l", "nothing", *where, image),
        ("-l", "snapshot.name=nothing", *where, image), ("-f", "raw", "-l", "1", *where, image),
        ("-o", "1T", *where, image), ("--image-opts", *where, "driver=raw,x=1"),
        (*where, "json:{"), ("--pid-file=/no/where", *where, image),
    ]  # fmt: skip
    for words in wrong:
        result = test.run(PROGRAM, *words, status=1)
        assert not result.stdout and result.stderr.count("\n") == 1, (words, result)
        assert result.stderr.startswith("liveblk-nbd: "), (words, result)
        assert not test.path("s").exists(), words
    for word in ("--help", "--version"):
        assert "liveblk-nbd" in test.run(PROGRAM, word).stdout


main()
