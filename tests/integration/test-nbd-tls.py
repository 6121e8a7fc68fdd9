#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""TLS of our NBD servers: who is served, who is refused, and who sees which export."""

import json
import re
import shutil
import socket
import ssl
import struct

import nbd
from liveblk_test import DiskModel, QmpError, Server, main, promise, wait_until
from liveblk_tls import CLIENT_NAME, may_connect, pki, tls_client, use_certificates

MIB = 1 << 20


# ---- Servers and clients ------------------------------------------------------------------------


def add(qmp, kind, name, **properties):
    qmp.command("object-add", qom_type=kind, id=name, **properties)


def refused(qmp, name, arguments, *words):
    try:
        answer = qmp.command_raw(name, arguments)
    except QmpError as error:
        for word in words:
            assert word in error.desc, error.desc
        return
    raise AssertionError(f"{name} {arguments} was not refused: {answer}")


def start(test, qmp, name="s", **options):
    """Start an NBD server of ours; returns the path of its socket."""
    path = test.path(f"{name}.nbd")
    address = {"type": "unix", "data": {"path": str(path)}}
    qmp.command("nbd-server-start", addr=address, id=name, **options)
    return path


def export(qmp, device, **options):
    options = {"type": "nbd", "id": device, "node_name": device, "writable": True, **options}
    qmp.command("block-export-add", **options)


def qemu_options(path, name="vda", **more):
    words = {"driver": "nbd", "server.type": "unix", "server.path": path, "export": name,
             "tls-creds": "t", **more}  # fmt: skip
    return ",".join(f"{key}={value}" for key, value in words.items())


def x509_object(folder):
    return f"tls-creds-x509,id=t,dir={pki() / folder},endpoint=client"


# ---- Promises -----------------------------------------------------------------------------------


@promise("with certificates verified, only clients whose certificate is valid are served")
def verified(test):
    use_certificates(test)
    disk = test.make_disk("disk.img", 2 * MIB)
    server = Server(test, [disk])
    qmp = server.qmp()
    add(qmp, "tls-creds-x509", "tls", dir=str(pki() / "server"), endpoint="server")
    path = start(test, qmp, tls_creds="tls")
    export(qmp, "vda")

    def client(who):
        return may_connect(path, tls_client(who))

    assert client("alice") and client("bob")
    for who in ("nobody", "stranger", "expired", "revoked"):
        assert not client(who), who
    # No TLS: told so, and nothing of the export.
    plain = nbd.NBD()
    plain.set_export_name("vda")
    try:
        plain.connect_unix(str(path))
        raise AssertionError("a client without TLS was served")
    except nbd.Error as error:
        assert "TLS" in str(error) or "policy" in str(error), error
    # QEMU's own client, which checks the server's name, too, writes and reads back.
    model = DiskModel(2 * MIB)
    data = test.path("data.img")
    data.write_bytes(model.write(0, 2 * MIB))
    test.run("qemu-img", "convert", "-n", "-f", "raw", data, "--object", x509_object("alice"),
             "--target-image-opts",
             qemu_options(path, **{"tls-hostname": "localhost"}))  # fmt: skip
    model.assert_equals_file(disk)
    wrong = test.run("qemu-img", "info", "--object", x509_object("alice"), "--image-opts",
                     qemu_options(path, **{"tls-hostname": "elsewhere"}), status=1)  # fmt: skip
    assert "elsewhere" in wrong.stderr, wrong.stderr
    # Deleted credentials stay with who uses them; the server goes on.
    qmp.command("object-del", id="tls")
    assert client("alice") and not client("stranger")
    qmp.command("nbd-server-stop", id="s")
    server.stop()


@promise("without verification a client needs no certificate, and is still encrypted")
def unverified(test):
    use_certificates(test)
    disk = test.make_disk("disk.img", 2 * MIB)
    server = Server(test, [disk])
    model = DiskModel(2 * MIB)
    plain = server.connect()
    plain.pwrite(model.write(0, 2 * MIB), 0)
    plain.shutdown()
    qmp = server.qmp()
    add(qmp, "tls-creds-x509", "tls", dir=str(pki() / "server"), endpoint="server",
        verify_peer=False)  # fmt: skip
    path = start(test, qmp, tls_creds="tls")
    export(qmp, "vda")
    uri = (f"nbds+unix:///vda?socket={path}&tls-certificates={pki() / 'nobody'}"
           "&tls-verify-peer=false")  # fmt: skip
    told = json.loads(test.run("nbdinfo", "--json", uri).stdout)
    assert told["TLS"] is True and told["exports"][0]["export-size"] == 2 * MIB
    test.run("nbdcopy", "--connections=2", uri, test.path("copy.img"))
    model.assert_equals_file(test.path("copy.img"))
    assert test.run("nbdinfo", f"nbd+unix:///vda?socket={path}", status=None).returncode != 0
    server.stop()


@promise("with pre-shared keys the user decides, on the server and on each export")
def shared_keys(test):
    folder = test.path("psk")
    folder.mkdir()
    keys = folder / "keys.psk"
    for user in ("alice", "bob"):
        test.run("psktool", "-u", user, "-p", keys)
    wrong = test.path("wrong.psk")
    wrong.write_text("alice:" + "00" * 32 + "\n")
    server = Server(test, [test.make_disk("a.img", MIB), test.make_disk("b.img", MIB)])
    qmp = server.qmp()
    add(qmp, "tls-creds-psk", "tls", dir=str(folder), endpoint="server")
    add(qmp, "authz-simple", "alice", identity="alice")
    path = start(test, qmp, tls_creds="tls")
    for_alice = start(test, qmp, name="alice", tls_creds="tls", tls_authz="alice")
    export(qmp, "vda")
    export(qmp, "vdb", tls_authz="alice")

    def client(where, user, name="vda", file=keys):
        return may_connect(where, tls_client(keys=file, user=user), name)

    assert client(path, "alice") and client(path, "bob")
    assert not client(path, "alice", file=wrong)
    assert client(for_alice, "alice") and not client(for_alice, "bob")
    # An export that is not for somebody is not there: neither listed nor found.
    assert client(path, "alice", "vdb") and not client(path, "bob", "vdb")
    for user, names in (("alice", {"vda", "vdb"}), ("bob", {"vda"})):
        uri = f"nbds+unix://{user}@/?socket={path}&tls-psk-file={keys}"
        listed = json.loads(test.run("nbdinfo", "--json", "--list", uri).stdout)
        assert {entry["export-name"] for entry in listed["exports"]} == names, user
    test.run("qemu-img", "info", "--image-opts", qemu_options(path),
             "--object", f"tls-creds-psk,id=t,dir={folder},username=bob,endpoint=client")  # fmt: skip
    # Where nobody says who he is, an export for some is for nobody.
    clear = start(test, qmp, name="clear")
    listed = json.loads(test.run("nbdinfo", "--json", "--list", f"nbd+unix://?socket={clear}").stdout)
    assert [entry["export-name"] for entry in listed["exports"]] == ["vda"]
    server.stop()


@promise("rules decide by the certificate's name, and a file of rules is followed as it changes")
def rules(test):
    use_certificates(test)
    server = Server(test, [test.make_disk("disk.img", MIB)])
    qmp = server.qmp()
    file = test.path("rules.json")
    allow = {"rules": [{"match": CLIENT_NAME, "policy": "allow"}]}
    file.write_text(json.dumps(allow))
    add(qmp, "tls-creds-x509", "tls", dir=str(pki() / "server"), endpoint="server")
    add(qmp, "authz-list", "list", policy="deny", rules=[
        {"match": "*,CN=bob", "policy": "deny", "format": "glob"},
        {"match": "O=Backup,*", "policy": "allow", "format": "glob"},
    ])  # fmt: skip
    add(qmp, "authz-list-file", "file", filename=str(file))
    add(qmp, "authz-list-file", "fixed", filename=str(file), refresh=False)
    by_list = start(test, qmp, name="list", tls_creds="tls", tls_authz="list")
    by_file = start(test, qmp, name="file", tls_creds="tls", tls_authz="file")
    fixed = start(test, qmp, name="fixed", tls_creds="tls", tls_authz="fixed")
    export(qmp, "vda")

    def allowed(path):
        return [who for who in ("alice", "bob") if may_connect(path, tls_client(who))]

    assert allowed(by_list) == ["alice"]
    assert allowed(by_file) == allowed(fixed) == ["alice"]
    file.write_text(json.dumps({"policy": "allow"}))
    assert allowed(by_file) == ["alice", "bob"] and allowed(fixed) == ["alice"]
    file.write_text('{"rules": 1}')
    assert allowed(by_file) == []
    file.unlink()
    assert allowed(by_file) == []
    file.write_text(json.dumps(allow))
    assert allowed(by_file) == ["alice"]
    server.stop()


@promise("what is sent in the clear after STARTTLS is not taken for the client's")
def injected(test):
    use_certificates(test)
    server = Server(test, [test.make_disk("disk.img", MIB)])
    qmp = server.qmp()
    add(qmp, "tls-creds-x509", "tls", dir=str(pki() / "server"), endpoint="server",
        verify_peer=False)  # fmt: skip
    path = start(test, qmp, tls_creds="tls")
    export(qmp, "vda")
    magic = b"IHAVEOPT"

    def option(number, data=b""):
        return magic + struct.pack(">II", number, len(data)) + data

    def begin(after=b""):
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(30)
        client.connect(str(path))
        greeting = client.recv(18, socket.MSG_WAITALL)
        assert greeting[:16] == b"NBDMAGIC" + magic, greeting
        client.sendall(struct.pack(">I", 3) + option(5) + after)
        answer = client.recv(20, socket.MSG_WAITALL)
        assert struct.unpack(">QIII", answer) == (0x3E889045565A9, 5, 1, 0), answer
        return client

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    # As it should be: what was said in TLS is answered in TLS.
    with context.wrap_socket(begin()) as client:
        client.sendall(option(3))
        answer = client.recv(20)
        assert struct.unpack(">QII", answer[:16]) == (0x3E889045565A9, 3, 2), answer
    # A list that was asked for before the handshake is never given.
    client = begin(after=option(3))
    try:
        context.wrap_socket(client)
        raise AssertionError("a handshake succeeded behind bytes that are no part of it")
    except OSError:
        pass
    assert wait_until(lambda: qmp.command("query-block-exports"), "the server answers")
    server.stop()


@promise("a node of the driver nbd connects with the credentials of an object")
def node(test):
    use_certificates(test)
    folder = test.path("psk")
    folder.mkdir()
    test.run("psktool", "-u", "qemu", "-p", folder / "keys.psk")
    server = Server(test, [test.make_disk("a.img", MIB), test.make_disk("b.img", MIB)])
    qmp = server.qmp()
    add(qmp, "tls-creds-psk", "server", dir=str(folder), endpoint="server")
    add(qmp, "tls-creds-psk", "client", dir=str(folder), endpoint="client")
    add(qmp, "tls-creds-anon", "anonymous", endpoint="client")
    add(qmp, "tls-creds-x509", "x509", dir=str(pki() / "alice"), endpoint="client")
    add(qmp, "tls-creds-x509", "certificate", dir=str(pki() / "server"), endpoint="server")
    path = start(test, qmp, tls_creds="server")
    export(qmp, "vdb")
    remote = {"driver": "nbd", "node-name": "remote", "export": "vdb",
              "server": {"type": "unix", "path": str(path)}}  # fmt: skip
    for wrong, word in (
        ({}, "TLS"),
        ({"tls-creds": "none"}, "No TLS credentials with id 'none'"),
        ({"tls-creds": "server"}, "Expected TLS credentials for a client endpoint"),
        ({"tls-creds": "anonymous"}, "anonymous"),
        ({"tls-creds": "client", "tls": "on"}, "cannot be given with 'tls'"),
        ({"tls-creds": "x509"}, "Could not connect"),
    ):
        refused(qmp, "blockdev-add", {**remote, **wrong}, word)
    refused(qmp, "nbd-server-start", {
        "addr": {"type": "unix", "data": {"path": str(test.path("x"))}}, "id": "x",
        "tls-creds": "client"}, "Expected TLS credentials for a server endpoint")  # fmt: skip
    qmp.command_raw("blockdev-add", {**remote, "tls-creds": "client"})
    model = DiskModel(MIB)
    handle = server.connect("vda")
    handle.pwrite(model.write(0, MIB), 0)
    handle.shutdown()
    qmp.command("blockdev-backup", job_id="j", device="vda", target="remote", sync="full")
    assert qmp.wait_job("j", "concluded", "aborting") == "concluded"
    model.assert_equals_file(test.path("b.img"))
    qmp.command("blockdev-del", node_name="remote")
    # By certificates, over TCP, where the server's name is looked for.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    qmp.command("nbd-server-start", id="tcp", tls_creds="certificate",
                addr={"type": "inet", "data": {"host": "127.0.0.1", "port": port}})  # fmt: skip
    inet = {**remote, "tls-creds": "x509"}
    refused(qmp, "blockdev-add", {**inet, "server": {"type": "inet", "host": "127.0.0.1", "port": port}},
            "Could not connect")  # fmt: skip
    inet["server"] = {"type": "inet", "host": "localhost", "port": port}
    qmp.command_raw("blockdev-add", inet)
    qmp.command("blockdev-del", node_name="remote")
    server.stop()


@promise("credentials that cannot work are refused when they are made")
def refused_credentials(test):
    use_certificates(test)
    server = Server(test, [test.make_disk("disk.img", MIB)])
    qmp = server.qmp()

    def no(kind, *words, **properties):
        arguments = {key.replace("_", "-"): value for key, value in properties.items()}
        refused(qmp, "object-add", {"qom-type": kind, "id": "o", **arguments}, *words)
        refused(qmp, "object-del", {"id": "o"}, "object 'o' not found")

    late = test.path("late")
    shutil.copytree(pki() / "server", late)
    shutil.copy(pki() / "late-server-cert.pem", late / "server-cert.pem")
    no("tls-creds-x509", "directory", endpoint="server")
    no("tls-creds-x509", "ca-cert.pem", dir=str(test.path("none")), endpoint="server")
    no("tls-creds-x509", "server-cert.pem", dir=str(pki() / "alice"), endpoint="server")
    no("tls-creds-x509", "expired", dir=str(late), endpoint="server")
    no("tls-creds-x509", "authority", dir=str(pki() / "stranger"), endpoint="client")
    no("tls-creds-x509", "priority", dir=str(pki() / "server"), endpoint="server", priority="WRONG")
    no("tls-creds-x509", "No secret with id 'none'", dir=str(pki() / "server"), passwordid="none")
    no("tls-creds-psk", "keys.psk", dir=str(late), endpoint="server")
    no("tls-creds-psk", "keys.psk", dir=str(late))
    qmp.command("object-add", qom_type="tls-creds-x509", id="late", dir=str(late),
                endpoint="server", sanity_check=False)  # fmt: skip
    add(qmp, "tls-creds-x509", "nobody", dir=str(pki() / "nobody"))  # clients need none
    # A key with a password, in a secret.
    locked = test.path("locked")
    shutil.copytree(pki() / "server", locked)
    test.run("certtool", "--to-p8", "--load-privkey", locked / "server-key.pem", "--password",
             "open sesame", "--pkcs-cipher=aes-256", "--outfile", locked / "key")  # fmt: skip
    shutil.move(locked / "key", locked / "server-key.pem")
    test.path("password").write_text("b3BlbiBzZXNhbWU=")
    add(qmp, "secret", "wrong", data="close sesame")
    add(qmp, "secret", "right", file=str(test.path("password")), format="base64")
    no("tls-creds-x509", "key", dir=str(locked), endpoint="server", passwordid="wrong")
    add(qmp, "tls-creds-x509", "locked", dir=str(locked), endpoint="server", passwordid="right")
    assert re.search("'secret.data' is not readable", read_error(qmp, "/objects/right", "data"))
    server.stop()


def read_error(qmp, path, name):
    try:
        return str(qmp.command("qom-get", path=path, property=name))
    except QmpError as error:
        return error.desc


main()
