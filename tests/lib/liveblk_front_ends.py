# SPDX-License-Identifier: BSD-3-Clause
"""The programs that serve a disk over NBD: nbdkit with our plugin, the NBD server of our own in it,
liveblk-nbd, and liveblk-storage-daemon."""

import pathlib
import signal

from liveblk_test import BUILD, Qmp, Server, connect, wait_until

NBD_PROGRAM = BUILD / "cli" / "liveblk-nbd"
DAEMON_PROGRAM = BUILD / "cli" / "liveblk-storage-daemon"


def listens(path):
    """There is a socket before one can connect to it: the kernel tells when that is."""
    lines = pathlib.Path("/proc/net/unix").read_text().splitlines()
    return any(line.endswith(f" {path}") and line.split()[3] == "00010000" for line in lines)


class NbdProgram:
    """liveblk-nbd on a UNIX socket."""

    def __init__(self, test, *words, name="server"):
        self.socket = test.path(f"{name}.sock")
        self.process = test.start(NBD_PROGRAM, "-k", self.socket, *words, log=f"{name}.log")
        wait_until(self.is_ready, f"{words} listens")

    def is_ready(self):
        assert self.process.poll() is None, f"it ended early:\n{self.log()}"
        return listens(self.socket)

    def log(self):
        return self.process.log_path.read_text()

    def uri(self, export=""):
        return f"nbd+unix:///{export}?socket={self.socket}"

    def end(self, status=0):
        """By itself, since its client has left."""
        assert self.process.wait(30) == status, self.log()
        assert not self.socket.exists()

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        self.end()


class Daemon:
    """liveblk-storage-daemon, with a monitor at .admin and maybe an NBD server at .nbd."""

    def __init__(self, test, *words, name="daemon", **options):
        self.test = test
        self.admin, self.nbd = test.path(f"{name}.qmp"), test.path(f"{name}.nbd")
        self.pid_file = test.path(f"{name}.pid")
        self.process = test.start(
            DAEMON_PROGRAM, "--chardev", f"socket,id=c0,path={self.admin},server=on,wait=off",
            "--monitor", "c0", *words, "--pidfile", self.pid_file, log=f"{name}.log", **options,
        )  # fmt: skip
        wait_until(self.is_ready, f"{words} runs")

    def is_ready(self):
        assert self.process.poll() is None, f"it ended early:\n{self.log()}"
        return self.pid_file.exists() and self.pid_file.read_text()

    def log(self):
        return self.process.log_path.read_text()

    def qmp(self):
        qmp = Qmp(self.admin)
        self.test.cleanup.callback(qmp.close)
        return qmp

    def uri(self, export):
        return f"nbd+unix:///{export}?socket={self.nbd}"

    def connect(self, export):
        return connect(self.uri(export))

    def ended(self):
        assert self.process.wait(30) == 0, self.log()
        for path in (self.admin, self.nbd, self.pid_file):
            assert not path.exists(), path

    def stop(self):
        self.process.terminate()
        self.ended()


def nbd_server(test, name="daemon", limit=4):
    return "--nbd-server", f"addr.type=unix,addr.path={test.path(name)}.nbd,max-connections={limit}"


class Served:
    """A disk that some front end serves as the export `disk`; server is that front end.

    server.process is its process; only nbdkit and the storage daemon have a server.qmp().
    """

    def __init__(self, server, path):
        self.server = server
        self.path = path

    def uri(self):
        return f"nbd+unix:///disk?socket={self.path}"

    def connect(self):
        return connect(self.uri())

    def stop(self):
        """End it, as a service manager does, and check that it ends well. Clients have left."""
        self.server.stop()


def serve_by_nbdkit(test, disk, format, name, read_only=False):
    access = ",read-only=on" if read_only else ""
    options = f"name=disk,node-name=node,file={disk},format={format},discard=unmap{access}"
    server = Server(test, [options], name=name)
    return Served(server, server.nbd)


def serve_by_own_server(test, disk, format, name, read_only=False):
    served = serve_by_nbdkit(test, disk, format, name)
    served.path = test.path(f"{name}.own")
    with Qmp(served.server.admin) as qmp:
        qmp.command("nbd-server-start", addr={"type": "unix", "data": {"path": str(served.path)}})
        qmp.command("block-export-add", type="nbd", id="disk", node_name="disk", name="disk",
                    writable=not read_only)  # fmt: skip
    return served


def serve_by_liveblk_nbd(test, disk, format, name, read_only=False):
    access = ("-r",) if read_only else ()
    server = NbdProgram(test, "-t", "-e", "0", "-x", "disk", "-f", format, "--discard=unmap",
                        *access, disk, name=name)  # fmt: skip
    return Served(server, server.socket)


def serve_by_storage_daemon(test, disk, format, name, read_only=False):
    server = Daemon(
        test, "--blockdev", f"file,node-name=file,discard=unmap,filename={disk}",
        "--blockdev", f"{format},node-name=node,discard=unmap,file=file",
        *nbd_server(test, name, 20), "--export",
        f"nbd,id=disk,node-name=node,name=disk,writable={'off' if read_only else 'on'}", name=name,
    )  # fmt: skip
    return Served(server, server.nbd)


FRONT_ENDS = {
    "nbdkit": serve_by_nbdkit,
    "own server": serve_by_own_server,
    "liveblk-nbd": serve_by_liveblk_nbd,
    "liveblk-storage-daemon": serve_by_storage_daemon,
}
