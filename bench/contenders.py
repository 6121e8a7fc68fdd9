# SPDX-License-Identifier: BSD-3-Clause
"""Who backs up a disk under a guest: our server and qemu-storage-daemon, each in two ways."""

import contextlib
import time

from measure import empty_file
from liveblk_test import PATIENCE, Qmp, Server, wait_until


def wait_job(qmp, job, limit):
    """Wait until a job completes, and cancel it at the limit. Returns when, and if it completed."""
    try:
        event = qmp.wait_event("BLOCK_JOB_COMPLETED", device=job, timeout=limit)
        over, complete = time.time(), True
        assert "error" not in event["data"], event
    except TimeoutError:
        over, complete = time.time(), False
        qmp.command("job-cancel", _id=job)
        qmp.wait_event("BLOCK_JOB_CANCELLED", device=job)
    qmp.wait_event("JOB_STATUS_CHANGE", id=job, status="null")
    return over, complete


class Liveblk:
    """Our server with a push backup of vda."""

    name = "liveblk"

    def __init__(self, test, disk, length):
        self.length = length
        self.test = test
        self.server = Server(
            test, [f"name=vda,file={disk},format=raw"], name="liveblk",
            env={"TMPDIR": str(test.directory)},  # for scratch
        )  # fmt: skip
        self.qmp = self.server.qmp()

    def uri(self):
        return self.server.uri("vda")

    def prepare(self, target):
        """Open a target: options of a node."""
        self.qmp.command_raw("blockdev-add", dict(target, **{"node-name": "target"}))

    def back_up(self, limit):
        """Returns when it was over, and if it was completed."""
        self.qmp.command(
            "blockdev-backup", job_id="backup", device="vda", target="target", sync="full"
        )
        return wait_job(self.qmp, "backup", limit)

    def end(self):
        self.server.stop()


class LiveblkPulled(Liveblk):
    """Our server with a view that nbdcopy pulls."""

    name = "liveblk, pulled"

    def prepare(self, target):
        self.target = target["filename"]

    def back_up(self, limit):
        self.qmp.command("view-create", name="backup", devices=["vda"])
        copy = self.test.start("nbdcopy", "--flush", self.server.uri("vda@backup"), self.target)
        # To the end: nbdkit 1.32 aborts when a client with requests under way is killed.
        assert copy.wait(PATIENCE) == 0, copy.log_path.read_text()
        over = time.time()
        self.qmp.command("view-drop", name="backup")
        return over, True


class Peer(Liveblk):
    """qemu-storage-daemon with a plain backup."""

    name = "plain"

    def __init__(self, test, disk, length):
        self.length = length
        self.socket, self.admin = test.path("peer.nbd"), test.path("peer.admin")
        for left_over in (self.socket, self.admin):
            left_over.unlink(missing_ok=True)
        # The layer "vda" lets a filter be put below it while the guest is connected.
        self.process = test.start(
            "qemu-storage-daemon", "--chardev", f"socket,path={self.admin},server=on,wait=off,id=c",
            "--monitor", "chardev=c", "--blockdev", f"driver=file,node-name=file,filename={disk}",
            "--blockdev", "driver=raw,node-name=vda,file=file",
            "--nbd-server", f"addr.type=unix,addr.path={self.socket}",
            "--export", "type=nbd,id=vda,node-name=vda,writable=on", log="peer.log",
        )  # fmt: skip
        wait_until(lambda: self.admin.exists() and self.socket.exists(), "the peer listens")
        self.scratch = test.path("peer.scratch")
        self.qmp = Qmp(self.admin)

    def uri(self):
        return f"nbd+unix:///vda?socket={self.socket}"

    def end(self):
        self.qmp.command("quit")
        self.qmp.close()
        self.process.wait(60)


class PeerFleecing(Peer):
    """qemu-storage-daemon with copy-before-write to scratch and a backup from there."""

    name = "fleecing"

    def prepare(self, target):
        super().prepare(target)
        empty_file(self.scratch, self.length)
        scratch = {"driver": "file", "node-name": "scratch", "filename": str(self.scratch)}
        self.qmp.command_raw("blockdev-add", scratch)

    def put_below_guest(self, node):
        layer = {"driver": "raw", "node-name": "vda", "file": node}
        self.qmp.command_raw("blockdev-reopen", {"options": [layer]})

    def back_up(self, limit):
        add, delete = ("blockdev-add", "blockdev-del")
        self.qmp.command(
            add, driver="copy-before-write", node_name="filter", file="file", target="scratch"
        )
        self.put_below_guest("filter")
        self.qmp.command(add, driver="snapshot-access", node_name="view", file="filter")
        self.qmp.command(
            "blockdev-backup", job_id="backup", device="view", target="target", sync="full"
        )
        result = wait_job(self.qmp, "backup", limit)
        self.qmp.command(delete, node_name="view")
        self.put_below_guest("file")
        self.qmp.command(delete, node_name="filter")
        return result

    def end(self):
        super().end()
        self.scratch.unlink()


@contextlib.contextmanager
def new_target(test, length, delay):
    """Options of a node for an empty target; with a delay ("20ms"), on a slow server."""
    path = empty_file(test.path("target"), length)
    far = delay and Server(
        test, plugin="file", parameters=[f"file={path}", f"wdelay={delay}"],
        nbdkit=["--filter=delay"], name="target",
    )  # fmt: skip
    if far:
        yield {"driver": "nbd", "server": {"type": "unix", "path": str(far.nbd)}}
        far.stop()
    else:
        yield {"driver": "file", "filename": str(path)}
    path.unlink()
