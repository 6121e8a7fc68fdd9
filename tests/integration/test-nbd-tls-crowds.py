#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""TLS of all our NBD servers, with clients that are not welcome, and with many that vanish."""

import os
import random
import select
import socket
import threading

import nbd
from liveblk_front_ends import Daemon, NbdProgram, nbd_server
from liveblk_load import Process, Writers
from liveblk_test import Server, main, promise, wait_until
from liveblk_tls import CLIENT_NAME, may_connect, pki, tls_client, use_certificates

KIB, MIB = 1 << 10, 1 << 20


def make_keys(test):
    """Keys of alice and bob, a file of wrong ones, and one of a user nobody knows."""
    folder = test.path("psk")
    folder.mkdir()
    for user in ("alice", "bob"):
        test.run("psktool", "-u", user, "-p", folder / "keys.psk")
    test.path("wrong.psk").write_text("alice:" + "00" * 32 + "\n")
    test.path("other.psk").write_text("mallory:" + "11" * 32 + "\n")
    return folder


def with_certificate(who):
    return lambda test: tls_client(who)


def with_key(file, user):
    return lambda test: tls_client(keys=test.path(file), user=user)


def in_the_clear(test):
    return nbd.NBD()


ALICE, BOB = with_certificate("alice"), with_certificate("bob")
KEY_OF_ALICE, KEY_OF_BOB = with_key("psk/keys.psk", "alice"), with_key("psk/keys.psk", "bob")
# Who is refused by a server that wants certificates, and by one that wants keys.
BAD_CERTIFICATES = {
    "no certificate": with_certificate("nobody"), "wrong authority": with_certificate("stranger"),
    "expired": with_certificate("expired"), "revoked": with_certificate("revoked"),
    "a key": KEY_OF_ALICE, "no TLS": in_the_clear,
}  # fmt: skip
BAD_KEYS = {
    "wrong key": with_key("wrong.psk", "alice"), "unknown user": with_key("other.psk", "mallory"),
    "another's name": with_key("wrong.psk", "bob"), "a certificate": ALICE,
    "no TLS": in_the_clear,
}  # fmt: skip


# ---- Who is refused ------------------------------------------------------------------------------


def check_clients(test, path, name, good, bad):
    """All of the good are served, before and after none of the bad were."""
    for client in good:
        assert may_connect(path, client(test), name)
    for what, client in bad.items():
        assert not may_connect(path, client(test), name), what
    for client in good:
        assert may_connect(path, client(test), name)


def program_options(folder, kind, identity=None):
    words = ["--object", f"tls-creds-{kind},id=tls,dir={folder},endpoint=server"]
    if identity:
        words += ["--object", f"authz-simple,id=authz,identity={identity.replace(',', ',,')}"]
    return words


@promise("liveblk-nbd serves those whose certificate, key and identity it was told of, and nobody else")
def on_liveblk_nbd(test):
    use_certificates(test)
    keys = make_keys(test)
    cases = (
        (program_options(pki() / "server", "x509"), (ALICE, BOB), BAD_CERTIFICATES),
        (program_options(keys, "psk"), (KEY_OF_ALICE, KEY_OF_BOB), BAD_KEYS),
        (program_options(pki() / "server", "x509", CLIENT_NAME), (ALICE,),
         {"another": BOB, **BAD_CERTIFICATES}),
        (program_options(keys, "psk", "alice"), (KEY_OF_ALICE,), {"another": KEY_OF_BOB, **BAD_KEYS}),
    )  # fmt: skip
    for number, (options, good, bad) in enumerate(cases):
        authz = ("--tls-authz", "authz") if "authz" in " ".join(options) else ()
        server = NbdProgram(test, "-t", "-x", "disk", "-f", "raw", *options, "--tls-creds", "tls",
                            *authz, test.make_disk(f"{number}.img", MIB),
                            name=f"server{number}")  # fmt: skip
        check_clients(test, server.socket, "disk", good, bad)
        server.stop()


@promise("liveblk-storage-daemon does so, too, with several servers and exports for some only")
def on_storage_daemon(test):
    use_certificates(test)
    keys = make_keys(test)
    disk = test.make_disk("disk.img", MIB)
    psk = test.path("psk.nbd")
    daemon = Daemon(
        test, "--blockdev", f"file,node-name=disk,filename={disk}",
        *program_options(pki() / "server", "x509", CLIENT_NAME),
        "--object", f"tls-creds-psk,id=keys,dir={keys},endpoint=server",
        "--object", "authz-simple,id=bob,identity=bob",
        nbd_server(test)[0], nbd_server(test)[1] + ",tls-creds=tls,tls-authz=authz",
        "--nbd-server", f"id=psk,addr.type=unix,addr.path={psk},tls-creds=keys",
        "--export", "nbd,id=all,node-name=disk,name=all",
        "--export", "nbd,id=for-bob,node-name=disk,name=for-bob,tls-authz=bob",
    )  # fmt: skip
    check_clients(test, daemon.nbd, "all", (ALICE,), {"another": BOB, **BAD_CERTIFICATES})
    check_clients(test, psk, "all", (KEY_OF_ALICE, KEY_OF_BOB), BAD_KEYS)
    check_clients(test, psk, "for-bob", (KEY_OF_BOB,), {"another": KEY_OF_ALICE, **BAD_KEYS})
    # Who is refused an export is told of none of that name, and may ask for another.
    errors = []
    for name in ("for-bob", "nothing"):
        handle = KEY_OF_ALICE(test)
        handle.set_opt_mode(True)
        handle.connect_unix(str(psk))
        for ask in (handle.opt_info, handle.opt_go):
            handle.set_export_name(name)
            try:
                ask()
                raise AssertionError(f"alice has {name}")
            except nbd.Error as error:
                errors.append(str(error).replace(name, "it"))
        handle.set_export_name("all")
        handle.opt_go()
        assert bytes(handle.pread(512, 0)) == bytes(512)
        handle.shutdown()
    assert errors[:2] == errors[2:], errors
    daemon.stop()


# ---- Crowds --------------------------------------------------------------------------------------

CLIENTS = 1000
WORKERS = 4
# The crowd writes what it has read, beyond all that the writers write: what it writes is old by then.
LENGTH, CROWDED = 4 * MIB, 4 * KIB


class CutLine:
    """A connection that carries only so many bytes in all; then it breaks, or, if it is to stall,
    nothing comes any more."""

    def __init__(self, path, budget, stalls=False):
        self.budget, self.stalls = budget, stalls
        self.carried = 0
        self.server = socket.socket(socket.AF_UNIX)
        self.server.connect(str(path))
        self.client, self.end = socket.socketpair()
        self.thread = threading.Thread(target=self.carry, daemon=True)
        self.thread.start()

    def carry(self):
        other = {self.server: self.end, self.end: self.server}
        try:
            while self.carried < self.budget:
                for ready in select.select(list(other), [], [], 60)[0]:
                    data = ready.recv(min(4096, max(1, self.budget - self.carried)))
                    if not data:
                        return
                    self.carried += len(data)
                    other[ready].sendall(data)
            if self.stalls:
                while self.server.recv(4096):
                    pass
        except OSError:
            pass  # the other end has left
        finally:
            self.end.close()
            self.server.close()


def visit(line, handle):
    """All that a client does; whether it came to its end. line.entry is what its handshake took."""
    handle.set_export_name("vda")
    try:
        handle.connect_socket(line.client.detach())
        line.entry = line.carried
        data = handle.pread(CROWDED, LENGTH)
        handle.pwrite(data, LENGTH)
        handle.flush()
        handle.shutdown()
        return True
    except nbd.Error:
        return False
    finally:
        line.thread.join(60)
        assert not line.thread.is_alive(), "the server has not hung up on a client that stalls"


class Crowd:
    """Clients that come by WORKERS threads, most of which vanish at some byte of what they do. Some
    stay, but say no more in the middle of the handshake."""

    def __init__(self, test, path, client):
        self.test, self.path, self.client = test, path, client
        line = CutLine(path, 1 << 60)
        assert visit(line, client(test))
        self.entry, self.whole = line.entry, line.carried
        self.ended = []  # for each that came, whether it came to the end
        self.errors = []

    def come(self, generator, count, some_stall):
        try:
            for number in range(count):
                stalls = some_stall and number == 10
                # One past the end is a good client.
                most = self.entry * 9 // 10 if stalls else self.whole * 21 // 20
                line = CutLine(self.path, generator.randrange(most), stalls)
                self.ended.append(visit(line, self.client(self.test)))
        except Exception as error:
            self.errors.append(error)

    def run(self, count, some_stall):
        threads = [
            threading.Thread(target=self.come, args=(
                random.Random(self.test.random.getrandbits(60)), count // WORKERS, some_stall))
            for _ in range(WORKERS)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not self.errors, self.errors


def start_servers(test, qmp):
    """One that wants certificates, and one that wants keys: (path, a good client) of both."""
    for kind, folder in (("x509", pki() / "server"), ("psk", make_keys(test))):
        qmp.command("object-add", qom_type=f"tls-creds-{kind}", id=kind, dir=str(folder),
                    endpoint="server")  # fmt: skip
        address = {"type": "unix", "data": {"path": str(test.path(f"{kind}.nbd"))}}
        qmp.command("nbd-server-start", addr=address, id=kind, tls_creds=kind,
                    handshake_max_seconds=1)  # fmt: skip
    qmp.command("block-export-add", type="nbd", id="vda", node_name="vda", writable=True)
    return (test.path("x509.nbd"), ALICE), (test.path("psk.nbd"), KEY_OF_ALICE)


@promise("of a thousand clients with certificates and keys that vanish at any byte, nothing is left, and "
         "those who stay are served", timeout=120)  # fmt: skip
def crowds(test):
    use_certificates(test)
    disk = test.make_disk("disk.img", LENGTH + CROWDED)
    server = Server(test, [f"name=vda,file={disk},format=raw"])
    qmp = server.qmp()
    servers = start_servers(test, qmp)
    process = Process(server.process.pid)
    before, memory = process.held(), []
    uri = (f"nbds+unix:///vda?socket={test.path('x509.nbd')}&tls-certificates={pki() / 'alice'}"
           "&tls-verify-peer=false")  # fmt: skip
    writers = Writers(test, uri, LENGTH, threads=2).start()
    writers.wait_done(50)
    crowd = [Crowd(test, *where) for where in servers]
    for turn in range(5):
        for part in crowd:
            part.run(CLIENTS // 10, some_stall=turn == 0)
        writers.wait_done(50)
        memory.append(process.memory() >> 10)
    ended = [(len(part.ended), sum(part.ended)) for part in crowd]
    assert all(all_of == CLIENTS // 2 and 0 < some < all_of // 4 for all_of, some in ended), ended
    test.log(f"came, came to the end: {ended}; memory: {memory} KiB")
    assert memory[-1] < memory[0] + 4096, f"memory grows: {memory} KiB"
    writers.stop()
    process.await_rest(before)
    for kind in ("x509", "psk"):
        qmp.command("nbd-server-stop", id=kind)
    wait_until(lambda: process.threads() <= before[1], "no threads that wait for clients")
    server.stop()
    assert disk.read_bytes()[LENGTH:] == bytes(CROWDED)
    os.truncate(disk, LENGTH)
    writers.model.assert_equals_file(disk)


main()
