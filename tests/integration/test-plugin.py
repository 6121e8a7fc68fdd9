#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""What nbdkit with our plugin offers its clients."""

import json
import os
import socket
import subprocess

import nbd
from liveblk_load import allocated
from liveblk_test import PLUGIN, DiskModel, Server, connect, main, promise, wait_until

MIB = 1 << 20


def info(test, uri, *options):
    return json.loads(test.run("nbdinfo", "--json", *options, uri).stdout)


def refuses_writes(handle):
    try:
        handle.pwrite(bytes(512), 0)
    except nbd.Error:
        return True
    return False


@promise("all disks are listed with descriptions, and the first is the default export")
def exports(test):
    one, two = test.make_disk("one.img", MIB), test.make_disk("two.img", 2 * MIB)
    server = Server(test, [one, f"name=data,file={two}"])
    listed = info(test, server.uri(), "--list")["exports"]
    assert [entry["export-name"] for entry in listed] == ["vda", "data"], listed
    assert [entry["export-size"] for entry in listed] == [MIB, 2 * MIB]
    assert all(entry["description"] for entry in listed), listed
    assert server.connect("").get_size() == MIB
    assert server.connect("data").get_size() == 2 * MIB


@promise("an export that does not exist is refused and said so")
def no_such_export(test):
    server = Server(test, [test.make_disk("disk.img", MIB)])
    result = test.run("nbdinfo", server.uri("nobody"), status=None)
    assert result.returncode != 0
    assert "nobody" in server.log(), server.log()


@promise("with -r, or a disk that is read-only=on, nobody can write")
def read_only(test):
    one, two = test.make_disk("one.img", MIB), test.make_disk("two.img", MIB)
    server = Server(test, [one], nbdkit=["-r"], name="all")
    handle = server.connect()
    handle.set_strict_mode(0)
    assert handle.is_read_only() and refuses_writes(handle)
    handle.shutdown()
    server.stop()
    server = Server(test, [f"name=a,file={two}", f"name=b,file={one},read-only=on"], name="some")
    assert not server.connect("a").is_read_only()
    handle = server.connect("b")
    handle.set_strict_mode(0)
    assert handle.is_read_only() and refuses_writes(handle)


@promise("flush, FUA, trim, zero, fast zero, extents, cache, several connections are offered")
def flags(test):
    server = Server(test, [test.make_disk("disk.img", MIB)])
    export = info(test, server.uri())["exports"][0]
    for flag in ("can_flush", "can_fua", "can_trim", "can_zero", "can_fast_zero", "can_cache",
                 "can_multi_conn"):  # fmt: skip
        assert export[flag] is True, (flag, export)
    assert export["is_rotational"] is False and export["is_read_only"] is False
    assert "base:allocation" in export["contexts"]
    assert export["block_size_minimum"] in (1, 512), export
    assert export["block_size_preferred"] >= 4096
    assert export["block_size_maximum"] >= MIB


@promise("each of these requests does what it should to the file")
def requests(test):
    path = test.make_disk("disk.img", MIB)
    handle = Server(test, [path]).connect()
    model = DiskModel(MIB)
    handle.pwrite(model.write(0, MIB), 0, nbd.CMD_FLAG_FUA)
    model.assert_equals_file(path)
    handle.trim(65536, 65536, nbd.CMD_FLAG_FUA)
    model.zero(65536, 65536)
    handle.zero(65536, 262144, nbd.CMD_FLAG_NO_HOLE)
    model.zero(262144, 65536)
    handle.zero(65536, 524288, nbd.CMD_FLAG_FAST_ZERO)
    model.zero(524288, 65536)
    handle.cache(MIB, 0)
    handle.flush()
    model.assert_equals_file(path)
    model.assert_equals(lambda at, length: handle.pread(length, at))
    assert allocated(path) < MIB - 65536, allocated(path)  # ext4 needs a block of its own too


@promise("a request at no sector's boundary changes just its bytes")
def unaligned(test):
    path = test.make_disk("disk.img", MIB)
    handle = Server(test, [path]).connect()
    expected = bytearray(b"x" * MIB)
    handle.pwrite(bytes(expected), 0)
    for at, length in ((1, 1), (4095, 2), (65535, 70001)):
        data = test.random.randbytes(length)
        handle.pwrite(data, at)
        expected[at : at + length] = data
    handle.zero(7777, 333333)
    expected[333333 : 333333 + 7777] = bytes(7777)
    assert bytes(handle.pread(MIB, 0)) == expected
    assert path.read_bytes() == expected


@promise("the map says what is data and what is a hole")
def extents(test):
    server = Server(test, [test.make_disk("disk.img", 8 * MIB)])
    server.connect().pwrite(b"x" * MIB, 2 * MIB)
    extents = json.loads(test.run("nbdinfo", "--json", "--map", server.uri()).stdout)
    merged = []
    for extent in extents:
        if merged and merged[-1][2] == extent["type"]:
            merged[-1][1] += extent["length"]
        else:
            merged.append([extent["offset"], extent["length"], extent["type"]])
    assert merged == [[0, 2 * MIB, 3], [2 * MIB, MIB, 0], [3 * MIB, 5 * MIB, 3]], merged


@promise("a resize is seen by clients that connect afterwards; those before keep theirs")
def resize(test):
    path = test.make_disk("disk.img", MIB)
    server = Server(test, [path])
    before = server.connect()
    server.qmp().command("block_resize", device="vda", size=2 * MIB)
    assert path.stat().st_size == 2 * MIB
    assert before.get_size() == MIB and len(before.pread(512, MIB - 512)) == 512
    after = server.connect()
    assert after.get_size() == 2 * MIB
    after.pwrite(b"y" * 512, 2 * MIB - 512)
    server.qmp().command("block_resize", device="vda", size=MIB // 2)
    try:
        before.pread(512, MIB - 512)
        raise AssertionError("these bytes are no more")
    except nbd.Error:
        pass
    assert len(before.pread(512, 0)) == 512


@promise("--dump-plugin tells the version, the formats and the jobs")
def dump_plugin(test):
    text = test.run("nbdkit", "--dump-plugin", PLUGIN, env=Server.environment()).stdout
    lines = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    assert lines["name"] == "liveblk" and lines["liveblk_version"]
    assert {"file", "raw", "nbd", "null-co"} <= set(lines["liveblk_formats"].split()), lines
    assert {"backup", "create"} <= set(lines["liveblk_jobs"].split())
    assert lines["max_thread_model"] == "parallel"


def make_certificates(test):
    """A CA, a server's certificate for localhost, in nbdkit's file names."""
    folder = test.path("pki")
    folder.mkdir()
    (folder / "ca.info").write_text("cn = Test CA\nca\ncert_signing_key\n")
    (folder / "server.info").write_text(
        "organization = Test\ncn = localhost\ndns_name = localhost\n"
        "tls_www_server\nencryption_key\nsigning_key\n"
    )
    for who in ("ca", "server"):
        test.run("certtool", "--generate-privkey", "--key-type", "ecdsa", "--outfile",
                 folder / f"{who}-key.pem")  # fmt: skip
    test.run("certtool", "--generate-self-signed", "--load-privkey", folder / "ca-key.pem",
             "--template", folder / "ca.info", "--outfile", folder / "ca-cert.pem")  # fmt: skip
    test.run("certtool", "--generate-certificate", "--load-ca-certificate", folder / "ca-cert.pem",
             "--load-ca-privkey", folder / "ca-key.pem", "--load-privkey",
             folder / "server-key.pem", "--template", folder / "server.info", "--outfile",
             folder / "server-cert.pem")  # fmt: skip
    return folder


@promise("with certificates a client is served encrypted, and one without TLS not at all")
def certificates(test):
    folder = make_certificates(test)
    server = Server(test, [test.make_disk("disk.img", MIB)],
                    nbdkit=["--tls=require", f"--tls-certificates={folder}"])  # fmt: skip
    handle = nbd.NBD()
    handle.set_tls(nbd.TLS_REQUIRE)
    handle.set_tls_certificates(str(folder))
    handle.set_tls_hostname("localhost") if hasattr(handle, "set_tls_hostname") else None
    handle.set_tls_verify_peer(False)  # over a UNIX socket there is no name to compare
    handle.connect_unix(str(server.nbd))
    assert handle.get_tls_negotiated() is True
    handle.pwrite(b"z" * 4096, 0)
    assert bytes(handle.pread(4096, 0)) == b"z" * 4096
    assert test.run("nbdinfo", server.uri(), status=None).returncode != 0


@promise("with pre-shared keys a backup runs over TLS to another server")
def pre_shared_keys(test):
    keys = test.path("keys.psk")
    test.run("psktool", "-u", "alice", "-p", keys)
    source = Server(test, [test.make_disk("disk.img", MIB)])
    model = DiskModel(MIB)
    handle = source.connect()
    handle.pwrite(model.write(0, MIB), 0)
    target = Server(test, [test.make_disk("target.img", MIB)], name="target",
                    nbdkit=["--tls=require", f"--tls-psk={keys}"])  # fmt: skip
    qmp = source.qmp()
    qmp.command_raw("blockdev-add", {
        "driver": "nbd", "node-name": "t", "server": {"type": "unix", "path": str(target.nbd)},
        "tls": "require", "tls-psk-file": str(keys), "tls-username": "alice",
    })  # fmt: skip
    qmp.command("blockdev-backup", job_id="j", device="vda", target="t", sync="full")
    assert qmp.wait_job("j", "concluded", "aborting") == "concluded"
    model.assert_equals_file(test.path("target.img"))


@promise("nbdkit's filters work on top: log, delay, cow, blocksize, error")
def filters(test):
    path = test.make_disk("disk.img", MIB)
    log = test.path("requests.txt")
    server = Server(test, [path], parameters=[f"logfile={log}", "rdelay=1ms", "minblock=512"],
                    nbdkit=["--filter=blocksize", "--filter=log", "--filter=delay"])  # fmt: skip
    handle = server.connect()
    handle.pwrite(b"x" * 4096, 4096)
    assert bytes(handle.pread(4096, 4096)) == b"x" * 4096
    assert "Write" in log.read_text() and path.read_bytes()[4096:8192] == b"x" * 4096
    handle.shutdown()
    server.stop()
    server = Server(test, [path], nbdkit=["--filter=cow"], name="cow")
    handle = server.connect()
    handle.pwrite(b"y" * 4096, 4096)
    assert bytes(handle.pread(4096, 4096)) == b"y" * 4096
    assert path.read_bytes()[4096:8192] == b"x" * 4096
    handle.shutdown()
    server.stop()
    server = Server(test, [path], nbdkit=["--filter=error"], name="error",
                    parameters=["error-pwrite=ENOSPC", "error-pwrite-rate=100%"])  # fmt: skip
    handle = server.connect()
    assert refuses_writes(handle) and bytes(handle.pread(512, 4096)) == b"x" * 512


@promise("--run with a socket of nbdkit's own choice runs a command on the disk")
def run_option(test):
    path = test.make_disk("disk.img", MIB)
    result = test.run("nbdkit", "-U", "-", PLUGIN, f"disk={path}", "--run",
                      'nbdinfo --size "$uri"', env=Server.environment())  # fmt: skip
    assert int(result.stdout) == MIB
    path.open("r+b").close()


@promise("a socket passed by systemd's socket activation is served")
def socket_activation(test):
    path = test.make_disk("disk.img", MIB)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(test.path("activated")))
    listener.listen()

    def pass_socket():
        os.dup2(listener.fileno(), 3)
        os.set_inheritable(3, True)
        os.environ["LISTEN_PID"] = str(os.getpid())

    command = ["/bin/sh", "-c", 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"', "sh", "nbdkit", "-f",
               str(PLUGIN), f"disk={path}"]  # fmt: skip
    with open(test.path("activated.log"), "wb") as log:
        process = subprocess.Popen(command, preexec_fn=pass_socket, close_fds=False, stdout=log,
                                   stderr=log, env=dict(os.environ, **Server.environment()))  # fmt: skip
    test.cleanup.callback(lambda: (process.kill(), process.wait()))
    handle = connect(f"nbd+unix:///?socket={test.path('activated')}")
    handle.pwrite(b"q" * 4096, 0)
    handle.shutdown()
    process.terminate()
    assert process.wait(60) == 0
    assert path.read_bytes()[:4096] == b"q" * 4096


@promise("file names with commas, equals signs, spaces and other languages are served")
def odd_names(test):
    names = ["a,b=c.img", "with space.img", "naïve-日本.img"]
    paths = [test.make_disk(name, MIB) for name in names]
    doubled = [str(path).replace(",", ",,") for path in paths]
    server = Server(test, [f"name=d{n},file={path}" for n, path in enumerate(doubled)])
    for number, path in enumerate(paths):
        handle = server.connect(f"d{number}")
        handle.pwrite(bytes([number + 1]) * 512, 0)
        handle.flush()
        assert path.read_bytes()[:512] == bytes([number + 1]) * 512
    listed = [entry["inserted"]["file"] for entry in server.qmp().command("query-block")]
    assert listed == [str(path) for path in paths], listed
    server = Server(test, [test.make_disk("bare,path.img", MIB)], name="bare")
    assert server.connect().get_size() == MIB


@promise("cache=none serves any request's size and place on a real disk, and unsafe too")
def cache_modes(test):
    # The build folder is on a real disk, where O_DIRECT means something.
    import liveblk_test
    import tempfile

    folder = test.cleanup.enter_context(tempfile.TemporaryDirectory(dir=liveblk_test.BUILD))
    for mode in ("none", "unsafe", "writeback"):
        path = os.path.join(folder, f"{mode}.img")
        with open(path, "wb") as file:
            file.truncate(MIB)
        server = Server(test, [f"file={path},cache={mode}"], name=mode)
        handle = server.connect()
        expected = bytearray(MIB)
        for at, length in ((0, 65536), (4096, 512), (65536 + 1, 70000), (MIB - 1, 1)):
            data = test.random.randbytes(length)
            handle.pwrite(data, at)
            expected[at : at + length] = data
        handle.flush()
        assert bytes(handle.pread(MIB, 0)) == expected
        cache = server.qmp().command("query-block")[0]["inserted"]["cache"]
        assert (cache["direct"], cache["no-flush"]) == (mode == "none", mode == "unsafe")
        handle.shutdown()
        server.stop()
        with open(path, "rb") as file:
            assert file.read() == expected, mode


@promise("discard=ignore keeps the space, discard=unmap gives it back")
def discards(test):
    for mode, unmaps in (("ignore", False), ("unmap", True)):
        path = test.make_disk(f"{mode}.img", MIB)
        handle = Server(test, [f"file={path},discard={mode}"], name=mode).connect()
        handle.pwrite(b"x" * MIB, 0)
        handle.trim(MIB, 0)
        assert (allocated(path) < 65536) == unmaps, (mode, allocated(path))


@promise("detect-zeroes=unmap turns written zeroes into holes, off does not")
def detects_zeroes(test):
    for mode, unmaps in (("unmap", True), ("off", False)):
        path = test.make_disk(f"{mode}.img", MIB)
        handle = Server(test, [f"file={path},detect-zeroes={mode}"], name=mode).connect()
        handle.pwrite(b"x" * MIB, 0)
        handle.pwrite(bytes(MIB), 0)
        assert bytes(handle.pread(MIB, 0)) == bytes(MIB)
        assert (allocated(path) < 65536) == unmaps, (mode, allocated(path))


def start_and_fail(test, *words):
    """Start nbdkit with parameters it must refuse; returns what it said."""
    left_before = set(test.directory.iterdir())
    result = test.run("nbdkit", "-f", "-U", test.path("refused.nbd"), PLUGIN, *words,
                      status=None, timeout=30, env=Server.environment())  # fmt: skip
    assert result.returncode not in (0, None) and result.returncode > 0, result
    assert set(test.directory.iterdir()) == left_before, "something was left behind"
    return result.stderr


@promise("an image in use is refused to a second server and to qemu-img, until the first ends")
def locks(test):
    path = test.make_disk("disk.img", MIB)
    server = Server(test, [path])
    text = start_and_fail(test, f"disk={path}")
    assert "lock" in text and str(path) in text, text
    result = test.run("qemu-img", "resize", "-f", "raw", path, "+1M", status=None)
    assert result.returncode != 0 and "lock" in result.stderr, result.stderr
    result = test.run("qemu-io", "-f", "raw", "-c", "write 0 512", path, status=None)
    assert result.returncode != 0 and path.stat().st_size == MIB
    Server(test, [f"file={path},locking=off"], name="forced")
    server.kill()


@promise("a forgotten disk= is not taken for the server's name, and options that mean nothing for a "
         "remote disk are refused")  # fmt: skip
def mistakes(test):
    path = test.make_disk("disk.img", MIB)
    assert "disk=name=b" in start_and_fail(test, f"name=b,file={path}")
    text = start_and_fail(test, "disk=name=b,file=nbd://127.0.0.1,cache=none")
    assert "cache=none" in text, text


@promise("two servers with different disks live side by side")
def two_servers(test):
    one = Server(test, [test.make_disk("one.img", MIB)], name="one")
    two = Server(test, [test.make_disk("two.img", MIB)], name="two")
    one.connect().pwrite(b"1" * 512, 0)
    two.connect().pwrite(b"2" * 512, 0)
    assert bytes(one.connect().pread(512, 0)) == b"1" * 512
    assert bytes(two.connect().pread(512, 0)) == b"2" * 512


@promise("a bad parameter is refused with a sentence that names it, and leaves nothing behind")
def bad_parameters(test):
    path = test.make_disk("disk.img", MIB)
    admin = f"admin={test.path('refused.admin')}"
    for words, expected in (
        ([], "disk"),
        (["disk="], "file"),
        (["disk=/nonexistent/x.img", admin], "/nonexistent/x.img"),
        ([f"disk=file={path},cache=sometimes", admin], "sometimes"),
        ([f"disk=file={path},colour=red", admin], "colour"),
        ([f"disk=name=9bad,file={path}", admin], "9bad"),
        ([f"disk=file={path},format=qcow9", admin], "qcow9"),
        ([f"disk=file={path},detect-zeroes=maybe", admin], "maybe"),
        ([f"disk=file={path},werror=panic", admin], "panic"),
        ([f"disk=file={path},read-only=perhaps", admin], "perhaps"),
        ([f"disk=name=a,file={path}", f"disk=name=a,file={path}", admin], "'a'"),
        ([f"disk={path}", "admin=/nonexistent/folder/sock"], "/nonexistent/folder/sock"),
        ([f"disk={path}", "admin="], "admin"),
        ([f"disk={path}", "nonsense=1", admin], "nonsense"),
        ([f"disk=name=a,file={test.directory}", admin], str(test.directory)),
        ([f"disk=file={path},iops=-1", admin], "iops"),
        ([f"disk=file={path},iops=1,iops_rd=1", admin], "iops"),
        (["disk=nbd+unix:///?socket=/nonexistent/sock", admin], "/nonexistent/sock"),
    ):
        text = start_and_fail(test, *words)
        assert expected in text, (words, text)
        assert len([line for line in text.splitlines() if "error" in line]) >= 1, text
    Server(test, [path])


@promise("an admin socket that a live server has is not taken from it; a stale one is replaced")
def admin_socket(test):
    server = Server(test, [test.make_disk("one.img", MIB)])
    two = test.make_disk("two.img", MIB)
    assert "refused" not in start_and_fail(test, f"disk={two}", f"admin={server.admin}")
    server.qmp().command("query-status")
    assert server.admin.stat().st_mode & 0o777 == 0o600
    server.kill()
    assert server.admin.exists()
    again = Server(test, [two])
    again.qmp().command("query-status")


@promise("nbdkit in the background serves, answers QMP, and ends on SIGTERM")
def daemon(test):
    path = test.make_disk("disk.img", MIB)
    pid_file, sock, admin = test.path("d.pid"), test.path("d.nbd"), test.path("d.admin")
    test.run("nbdkit", "-U", sock, "-P", pid_file, PLUGIN, f"disk={path}", f"admin={admin}",
             env=Server.environment())  # fmt: skip
    wait_until(pid_file.exists, "the daemon is ready")  # nbdkit's parent does not wait for it
    pid = int(pid_file.read_text())
    try:
        connect(f"nbd+unix:///?socket={sock}").pwrite(b"d" * 512, 0)
        from liveblk_test import Qmp

        with Qmp(admin) as qmp:
            assert qmp.command("query-status")["running"] is True
        os.kill(pid, 15)
        wait_until(lambda: not os.path.exists(f"/proc/{pid}"), "the daemon ends")
        assert not admin.exists()
    finally:
        if os.path.exists(f"/proc/{pid}"):
            os.kill(pid, 9)
    assert path.read_bytes()[:512] == b"d" * 512


main()
