#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Comparisons of a served disk with copies of it, side by side with qemu-img and nbdcopy."""

import json
import threading

from liveblk_test import QmpError, Server, main, promise, wait_until

KIB = 1 << 10
MIB = 1 << 20
LENGTH = 16 * MIB


class Disk:
    """A server with the device `vda`: data, a hole, data."""

    def __init__(self, test, options=""):
        self.test = test
        self.path = test.make_disk("disk.img", LENGTH)
        self.server = Server(test, [f"name=vda,node-name=disk0,format=raw,file={self.path}{options}"])
        self.guest = self.server.connect("vda")
        self.qmp = self.server.qmp()
        for offset in (0, 8 * MIB):
            self.guest.pwrite(test.random.randbytes(4 * MIB), offset)
        self.guest.flush()

    def liveblk(self, *words, status=0):
        return self.test.liveblk(*words, "--admin", self.server.admin, status=status)

    def nodes(self):
        return {node["node-name"] for node in self.qmp.command("query-named-block-nodes")}

    def is_same(self, path, format_):
        """What qemu-img says; the disk is in use by the server, who has nothing in memory."""
        self.guest.flush()
        result = self.test.run("qemu-img", "compare", "-U", "-f", "raw", "-F", format_, self.path,
                               path, status=None)  # fmt: skip
        assert result.returncode in (0, 1), result.stderr
        return result.returncode == 0

    def compare(self, target, **arguments):
        """blockdev-verify to its end; the job as query-jobs has it."""
        self.qmp.command("blockdev-verify", job_id="job0", device="vda", target=target,
                         auto_dismiss=False, **arguments)  # fmt: skip
        self.qmp.wait_job("job0", "concluded")
        (job,) = self.qmp.command("query-jobs")
        self.qmp.command("job-dismiss", id="job0")
        return job

    def refusal(self, **arguments):
        try:
            self.qmp.command("blockdev-verify", job_id="job0", device="vda", **arguments)
        except QmpError as error:
            assert self.qmp.command("query-jobs") == []
            return error.desc
        raise AssertionError(f"accepted: {arguments}")

    def add_node(self, name, path, **options):
        self.qmp.command("blockdev-add", driver="raw", node_name=name,
                         file={"driver": "file", "filename": str(path)}, **options)  # fmt: skip


def overwrite(test, path, offset, data):
    """Change a qcow2 image that nobody uses, with qemu's own writer."""
    source = test.path(f"patch-{offset}")
    source.write_bytes(data)
    test.run("qemu-io", "-f", "qcow2", "-c", f"write -q -s {source} {offset} {len(data)}", path)


@promise("a backup is equal until a byte of it changes, and is again when that is repaired")
def finds_and_repairs(test):
    disk = Disk(test)
    copy = test.path("copy.qcow2")
    disk.liveblk("backup", "vda", "--to", copy, "--format", "qcow2")
    words = ["verify", "vda", copy, "--format", "qcow2"]
    assert "is complete: 16" in disk.liveblk(*words).stdout
    assert disk.is_same(copy, "qcow2")

    overwrite(test, copy, 9 * MIB + 512, b"x" * 512)
    overwrite(test, copy, 5 * MIB, b"y" * 4 * KIB)
    found = disk.liveblk(*words, status=1)
    assert found.stdout.splitlines() == [
        f"{5 * MIB} +4096: the device has zeroes there, the target has not",
        f"{9 * MIB + 512} +512: data differs",
    ], found.stdout
    assert "differs from the source in 4608 bytes" in found.stderr, found.stderr
    assert not disk.is_same(copy, "qcow2")

    mended = disk.liveblk(*words, "--repair").stdout
    assert "8192 bytes were written to the target" in mended, mended
    assert disk.liveblk(*words).stdout.startswith("The comparison of 'vda' with ")
    assert disk.is_same(copy, "qcow2")
    assert disk.qmp.command("query-jobs") == []
    assert disk.nodes() == {"disk0"} | {name for name in disk.nodes() if name.startswith("#")}


@promise("an NBD disk that nbdcopy filled is equal to the moment, whatever the guest writes then")
def compares_over_nbd(test):
    disk = Disk(test)
    copy = test.path("copy.img")
    test.run("nbdcopy", disk.server.uri("vda"), copy)
    socket = test.path("target.nbd")
    test.start("nbdkit", "-f", "-U", socket, "file", copy)
    wait_until(socket.exists, "the target listens")
    over = threading.Event()

    def write():
        """The disk is written once the comparison runs: its moment has been by then."""
        while not over.is_set():
            if any(job["status"] == "running" for job in disk.qmp.command("query-jobs")):
                offset = test.random.randrange(LENGTH - 64 * KIB)
                disk.guest.pwrite(test.random.randbytes(64 * KIB), offset)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        result = disk.liveblk("verify", "vda", f"nbd+unix:///?socket={socket}", "--speed", "8M")
    finally:
        over.set()
        writer.join()
    assert "is complete" in result.stdout, result.stdout
    assert not disk.is_same(copy, "raw"), "the guest has written nothing"
    assert disk.liveblk("verify", "vda", f"nbd+unix:///?socket={socket}", status=1)


@promise("only what has changed since a checkpoint is compared, and only checkpoints there are")
def compares_changes(test):
    disk = Disk(test, ",tracking=auto,tracking-granule=64k")
    copy = test.path("copy.img")
    disk.liveblk("backup", "vda", "--to", copy)
    disk.qmp.command("block-checkpoint-add", device="vda", name="then")
    disk.guest.pwrite(b"n" * 64 * KIB, MIB)
    with open(copy, "r+b") as file:
        file.seek(8 * MIB)
        file.write(b"o" * 4 * KIB)  # no change of the disk's: not looked at
    found = disk.liveblk("verify", "vda", copy, "--since", "then", "--json", status=1)
    lines = map(json.loads, found.stdout.splitlines())
    messages = {message["message_type"]: message for message in lines}
    assert messages["comparison"]["differences"] == [
        {"offset": MIB, "length": 64 * KIB, "kind": "data"}
    ], messages
    assert messages["summary"]["outcome"] == "failed", messages
    assert messages["summary"]["total_bytes"] == 64 * KIB, messages
    disk.liveblk("verify", "vda", copy, "--since", "then", "--repair")
    disk.liveblk("verify", "vda", copy, "--since", "then")
    refused = disk.liveblk("verify", "vda", copy, "--since", "never", status=1)
    assert "Checkpoint 'never' of disk 'vda' not found" in refused.stderr, refused.stderr


@promise("a job tells each difference by an event, lists as many as it may, and samples by its seed")
def answers(test):
    disk = Disk(test)
    copy = test.make_disk("copy.img", LENGTH - MIB)
    disk.add_node("copy", copy, read_only=True)
    job = disk.compare("copy", max_differences=2)
    assert job["type"] == "verify" and job["status"] == "concluded", job
    assert job["verify"] == {
        "different-bytes": 9 * MIB,
        "unreadable-bytes": 0,
        "repaired-bytes": 0,
        "differences": [
            {"offset": 0, "length": 4 * MIB, "kind": "target-zero"},
            {"offset": 8 * MIB, "length": 4 * MIB, "kind": "target-zero"},
        ],
        "omitted-bytes": MIB,
    }, job
    assert job["error"] == (
        f"Target node 'copy' differs from the source in {8 * MIB} bytes; "
        f"Target node 'copy' is {LENGTH - MIB} bytes long and the source {LENGTH}"
    ), job
    data = disk.qmp.wait_event("VERIFY_DIFFERENCE", id="job0")["data"]
    assert data["kind"] == "target-zero" and data["length"] > 0, data

    sample = disk.compare("copy", sample_percent=25)["verify"]
    assert sample["sample-percent"] == 25, sample
    seed = sample["sample-seed"]
    again = disk.compare("copy", sample_percent=25, sample_seed=seed)["verify"]
    assert sample == again, (sample, again)


@promise("a comparison that makes no sense is refused, and a target in use is not touched")
def refusals(test):
    disk = Disk(test)
    copy = test.make_disk("copy.img", LENGTH)
    disk.add_node("copy", copy)
    for arguments, text in (
        ({"target": "copy", "sample_percent": 0},
         "Parameter 'sample-percent' expects a number from 1 to 100, not 0"),
        ({"target": "copy", "sample_seed": 1},
         "Parameter 'sample-seed' chooses a sample: give 'sample-percent', too"),
        ({"target": "copy", "max_differences": 10001},
         "Parameter 'max-differences' expects a number from 1 to 10000, not 10001"),
        ({"target": "disk0"}, "Source and target cannot be the same"),
        ({"target": "nowhere"}, "Cannot find device='nowhere' nor node-name='nowhere'"),
    ):  # fmt: skip
        assert disk.refusal(**arguments) == text, disk.refusal(**arguments)
    disk.qmp.command("blockdev-mirror", job_id="mirror0", device="vda", target="copy", sync="full")
    disk.qmp.wait_job("mirror0", "ready")
    disk.add_node("other", test.make_disk("other.img", LENGTH))
    disk.qmp.command("blockdev-backup", job_id="b", device="vda", target="other", sync="none")
    try:
        disk.qmp.command("blockdev-verify", job_id="job0", device="vda", target="other")
        raise AssertionError("accepted a target that a backup writes")
    except QmpError as error:
        assert "Node 'other' is busy: block job 'b' and block job 'job0'" in error.desc, error
    disk.qmp.command("block-job-cancel", device="b", force=True)
    disk.qmp.wait_job("b", "null")
    disk.qmp.command("block-job-cancel", device="mirror0")
    disk.qmp.wait_job("mirror0", "null")
    assert "error" not in disk.compare("copy")
    image = test.path("image.qcow2")
    test.run("qemu-img", "create", "-q", "-f", "qcow2", image, LENGTH)
    assert "looks like a qcow2 image" in disk.liveblk("verify", "vda", image, status=2).stderr


main()
