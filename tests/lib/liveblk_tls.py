# SPDX-License-Identifier: BSD-3-Clause
"""Certificates, good ones and bad ones, and NBD clients that have them, or keys."""

import shutil
import subprocess

import nbd

CLIENT_NAME = "O=Backup,CN=alice"


class Authorities:
    """Folders as QEMU has them: server, and one for each client, with the CA they trust."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        for name in ("ca", "other-ca", "end"):
            self.certtool("--generate-privkey", "--key-type=ecdsa", "--outfile", self.file(name, "key"))
        for name in ("ca", "other-ca"):
            self.sign(name, f"cn = {name}\nca\ncert_signing_key\n", None)
        self.member("server", "cn = localhost\ndns_name = localhost\ntls_www_server\n")
        for name in ("alice", "bob", "revoked", "expired"):
            late = 'expiration_date = "2020-01-01 00:00:00"\nactivation_date = "2019-01-01 00:00:00"\n'
            self.member(name, f"cn = {name}\norganization = Backup\ntls_www_client\n"
                        + (late if name == "expired" else ""), side="client")  # fmt: skip
        self.member("stranger", "cn = alice\norganization = Backup\ntls_www_client\n",
                    side="client", authority="other-ca")  # fmt: skip
        self.folder.joinpath("nobody").mkdir()
        shutil.copy(self.file("ca", "cert"), self.folder / "nobody" / "ca-cert.pem")
        self.sign("late-server", "cn = localhost\ntls_www_server\n"
                  'expiration_date = "2020-01-01 00:00:00"\n'
                  'activation_date = "2019-01-01 00:00:00"\n', "ca")  # fmt: skip
        self.revoke("revoked")

    def file(self, name, what):
        return self.folder / f"{name}-{what}.pem"

    @staticmethod
    def certtool(*words):
        subprocess.run(["certtool", *map(str, words)], check=True, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL)  # fmt: skip

    def sign(self, name, text, authority):
        template = self.folder / "template"
        template.write_text(text if "expiration" in text else text + "expiration_days = 2\n")
        key = name if authority is None else "end"
        words = ["--load-privkey", self.file(key, "key"), "--template", template, "--outfile",
                 self.file(name, "cert")]  # fmt: skip
        if authority is None:
            self.certtool("--generate-self-signed", *words)
        else:
            self.certtool("--generate-certificate", "--load-ca-certificate",
                          self.file(authority, "cert"), "--load-ca-privkey",
                          self.file(authority, "key"), *words)  # fmt: skip

    def member(self, name, text, side="server", authority="ca"):
        folder = self.folder / name
        folder.mkdir()
        self.sign(name, text + "signing_key\n", authority)
        shutil.copy(self.file(name, "cert"), folder / f"{side}-cert.pem")
        shutil.copy(self.file("end", "key"), folder / f"{side}-key.pem")
        shutil.copy(self.file("ca", "cert"), folder / "ca-cert.pem")

    def revoke(self, name):
        template = self.folder / "template"
        template.write_text("crl_next_update = 10\ncrl_number = 1\n")
        self.certtool("--generate-crl", "--load-ca-certificate", self.file("ca", "cert"),
                      "--load-ca-privkey", self.file("ca", "key"), "--load-certificate",
                      self.file(name, "cert"), "--template", template, "--outfile",
                      self.folder / "server" / "ca-crl.pem")  # fmt: skip


made = {}  # the files, by their names in the folder
folder_now = None


def use_certificates(test):
    """Put them into the promise's own directory, which goes with it."""
    global folder_now
    folder_now = test.path("pki")
    if not made:
        Authorities(folder_now)
        for path in folder_now.rglob("*.pem"):
            made[path.relative_to(folder_now)] = path.read_bytes()
        return
    for name, data in made.items():
        path = folder_now / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def pki():
    return folder_now


def tls_client(folder=None, keys=None, user=None):
    handle = nbd.NBD()
    handle.set_tls(nbd.TLS_REQUIRE)
    handle.set_tls_verify_peer(False)  # over a UNIX socket there is no name to compare
    if folder:
        handle.set_tls_certificates(str(pki() / folder))
    else:
        handle.set_tls_psk_file(str(keys))
        handle.set_tls_username(user)
    return handle


def may_connect(path, handle, name="vda"):
    """Whether a client is served; what it reads is then from the export."""
    handle.set_export_name(name)
    try:
        handle.connect_unix(str(path))
        # With TLS 1.3 a client may learn only now that it was refused.
        read = bytes(handle.pread(512, 0))
    except nbd.Error:
        return False
    assert len(read) == 512
    handle.shutdown()
    return True
