#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Incremental backups with bitmaps, side by side with QEMU's storage daemon."""

import hashlib
import itertools
import json
import shutil
import signal

from liveblk_test import PATIENCE, Qmp, QmpError, Server, connect, main, promise, wait_until

KIB = 1 << 10
MIB = 1 << 20
GRANULE = 64 * KIB
LENGTH = 4 * MIB
BITMAP = "block-dirty-bitmap-"


class Peer:
    """A server with a disk `vda` on the node `disk0`: ours, or QEMU's storage daemon."""

    def __init__(self, test, ours, length=LENGTH, attempt=0):
        self.test = test
        self.ours = ours
        self.kind = "ours" if ours else f"qemu{attempt}"
        self.disk = test.make_disk(f"{self.kind}.img", length)
        if ours:
            server = Server(test, [f"name=vda,node-name=disk0,format=raw,file={self.disk}"])
            self.qmp = server.qmp()
            self.uri = server.uri("vda")
        else:
            self.start_qemu()
        self.guest = connect(self.uri)
        self.targets = itertools.count()
        self.jobs = itertools.count()

    def start_qemu(self):
        admin, nbd = self.test.path(f"{self.kind}.qmp"), self.test.path(f"{self.kind}.nbd")
        self.process = self.test.start(
            "qemu-storage-daemon",
            "--chardev", f"socket,id=qmp,path={admin},server=on,wait=off",
            "--monitor", "chardev=qmp",
            "--blockdev", f"driver=raw,node-name=disk0,file.driver=file,file.filename={self.disk}",
            "--nbd-server", f"addr.type=unix,addr.path={nbd}",
            "--export", "type=nbd,id=guest,node-name=disk0,name=vda,writable=on",
        )  # fmt: skip
        wait_until(lambda: admin.exists() and nbd.exists(), "qemu-storage-daemon listens")
        self.qmp = Qmp(admin)
        self.test.cleanup.callback(self.qmp.close)
        self.uri = f"nbd+unix:///vda?socket={nbd}"

    def write(self, *granules):
        for granule in granules:
            self.guest.pwrite(b"%04d" % granule * 128, granule * GRANULE)

    def try_(self, name, /, **arguments):
        """The answer or what is said instead, so that it can be compared."""
        try:
            return self.qmp.command(name, **arguments)
        except QmpError as error:
            return error.desc

    def bitmap(self, verb, name="b", node="disk0", **arguments):
        return self.try_(BITMAP + verb, node=node, name=name, **arguments)

    def bitmaps(self, node="disk0"):
        """The bitmaps, without that in which QEMU keeps what is still to be copied."""
        for entry in self.qmp.command("query-named-block-nodes"):
            if entry["node-name"] == node:
                found = entry.get("dirty-bitmaps", [])
                nameless = [i for i, bitmap in enumerate(found) if "name" not in bitmap]
                if not self.ours and nameless:
                    del found[nameless[0]]
                return found
        raise AssertionError(node)

    def target(self, **options):
        """A new raw target; its node's name."""
        name = f"target{next(self.targets)}"
        path = self.test.make_disk(f"{self.kind}-{name}", LENGTH)
        self.qmp.command_raw("blockdev-add", {
            "driver": "raw", "node-name": name, "file": {"driver": "file", "filename": str(path)},
        })  # fmt: skip
        return name

    def backup(self, target, **arguments):
        """Start one; its job's ID, or why not."""
        job = f"job{next(self.jobs)}"
        answer = self.try_("blockdev-backup", job_id=job, device="disk0", target=target,
                           **arguments)  # fmt: skip
        return answer or job

    def wait_null(self, job):
        self.qmp.wait_job(job, "null")

    def total(self, job):
        return [j["total-progress"] for j in self.qmp.command("query-jobs") if j["id"] == job]


def ask_qemu(test, sequence, *arguments):
    """QEMU 7.2 dies now and then of an assertion of its own, when two of its jobs end at once, or of
    what that was to prevent."""
    for attempt in range(10):
        peer = Peer(test, False, attempt=attempt)
        try:
            return sequence(peer, *arguments)
        except ConnectionError:
            log = peer.process.log_path.read_text()
            if peer.process.wait(PATIENCE) not in (-signal.SIGABRT, -signal.SIGSEGV):
                raise AssertionError(f"qemu-storage-daemon left, and said: {log}") from None
    raise AssertionError("qemu-storage-daemon dies each time")


def side_by_side(test, sequence, *arguments):
    """Both do the same and say the same."""
    said = [sequence(Peer(test, True), *arguments), ask_qemu(test, sequence, *arguments)]
    for mine, qemus in zip(*said):
        assert mine == qemus, f"{mine}\ninstead of\n{qemus}"
    assert len(said[0]) == len(said[1])


def ended_sequence(peer, mode, end, disabled):
    """Each state of the bitmap while a job uses it and after it."""
    said = []
    target = peer.target()
    peer.bitmap("add", "b")
    peer.bitmap("add", "c")
    peer.write(0, 1, 9)
    if disabled:
        peer.bitmap("disable")
    job = peer.backup(target, sync="bitmap", bitmap="b", bitmap_mode=mode, auto_finalize=False)
    peer.qmp.wait_job(job, "pending")
    said += [peer.total(job), peer.bitmaps()]
    peer.write(1, 20)
    said.append(peer.bitmaps())
    for verb in ("remove", "clear", "enable", "disable"):
        said.append((verb, peer.bitmap(verb)))
    said.append(peer.try_(BITMAP + "merge", node="disk0", target="c", bitmaps=["b"]))
    said.append(peer.try_(BITMAP + "merge", node="disk0", target="b", bitmaps=["c"]))
    said.append(peer.backup(target, sync="bitmap", bitmap="b", bitmap_mode=mode))
    # QEMU puts more before it.
    answer = peer.try_("blockdev-add", driver="copy-before-write", node_name="cbw", file="disk0",
                       target=peer.target(), bitmap={"node": "disk0", "name": "b"})  # fmt: skip
    said.append(answer[answer.index("Bitmap 'b' is") :])
    peer.try_("job-finalize" if end == "finalize" else "job-cancel", id=job)
    peer.wait_null(job)
    said.append(peer.bitmaps())
    said += [peer.try_("x-debug-" + BITMAP[:-1] + "-sha256", node="disk0", name=n) for n in "bc"]
    peer.write(33)
    said += [peer.bitmaps(), peer.bitmap("clear"), peer.bitmap("remove"), peer.bitmaps()]
    return said


@promise("while a job uses a bitmap and after it, queries and refusals are as QEMU's")
def ended(test):
    def sequence(peer):
        said = []
        for mode, end, disabled in itertools.product(
            ("on-success", "never", "always"), ("finalize", "cancel"), (False, True)
        ):
            said += ended_sequence(peer, mode, end, disabled)
            peer.bitmap("remove", "c")
        return said

    side_by_side(test, sequence)


@promise("a cancelled backup gives the bitmap back with all its bits, as QEMU's")
def cancelled(test):
    def sequence(peer):
        said = []
        for mode in ("on-success", "never"):
            peer.bitmap("add")
            peer.write(0, 9, 63)
            job = peer.backup(peer.target(), sync="bitmap", bitmap="b", bitmap_mode=mode, speed=1)
            said.append(peer.total(job))
            peer.write(9, 20)
            said.append(peer.bitmaps())
            said.append(peer.try_("job-cancel", id=job))
            peer.wait_null(job)
            said += [peer.bitmaps(), peer.bitmap("remove")]
        return said

    side_by_side(test, sequence)


@promise("arguments about bitmaps are refused with QEMU's words")
def refusals(test):
    def sequence(peer):
        said = []
        target = peer.target()
        syncs = ("full", "top", "none", "incremental", "bitmap")
        for has_bitmap in (False, True):
            for sync, name, mode in itertools.product(
                syncs, (None, "b", ""), (None, "on-success", "never", "always")
            ):
                arguments = {"bitmap": name, "bitmap_mode": mode}
                arguments = {key: value for key, value in arguments.items() if value is not None}
                if arguments or sync in ("incremental", "bitmap"):
                    answer = peer.backup(target, sync=sync, **arguments)
                    if answer.startswith("job"):
                        peer.wait_null(answer)
                        answer = "started"
                    said.append((sync, arguments, answer))
            if not has_bitmap:
                said.append(peer.bitmap("add"))
        for sync in ("incremental", "bitmap"):
            said.append(peer.try_("blockdev-mirror", job_id="m", device="disk0", target=target,
                                  sync=sync))  # fmt: skip
        said.append(peer.bitmaps())
        return said

    side_by_side(test, sequence)


def action(type_, **data):
    return {"type": type_, "data": {key.replace("_", "-"): data[key] for key in data}}


@promise("in a transaction a bitmap is taken with what earlier actions made of it, as with QEMU")
def transactions(test):
    def sequence(peer):
        target = peer.target()
        add, clear = (
            action(BITMAP + verb, node="disk0", name=name)
            for verb, name in (("add", "new"), ("clear", "b"))
        )
        merge = action(BITMAP + "merge", node="disk0", target="new", bitmaps=["b"])
        use = action(BITMAP + "merge", node="disk0", target="b", bitmaps=["new"])
        abort = action("abort")
        peer.bitmap("add")
        peer.write(3, 4)

        def backup(bitmap, mode="on-success", job="j"):
            return action("blockdev-backup", job_id=job, device="disk0", target=target,
                          sync="bitmap", bitmap=bitmap, bitmap_mode=mode)  # fmt: skip

        said = []
        for actions in (
            [clear, backup("b"), clear],
            [add, merge, backup("new"), use],
            [backup("b"), abort],
            [backup("b"), backup("b", job="k")],
            [backup("new"), add],
        ):
            said += [peer.try_("transaction", actions=actions), peer.bitmaps()]
        peer.qmp.events.clear()
        for actions in ([clear, backup("b")], [add, merge, backup("new", "never"), clear]):
            peer.write(5, 6)
            said.append(peer.try_("transaction", actions=actions))
            peer.wait_null("j")
            said.append(peer.bitmaps())
        peer.bitmap("remove", "new")
        both = [add, backup("b"), action("blockdev-backup", job_id="k", device="disk0",
                                         target=peer.target(), sync="full", bitmap="new",
                                         bitmap_mode="always")]  # fmt: skip
        peer.write(7)
        said.append(peer.try_("transaction", actions=both))
        assert said[-1] == {}, said[-1]
        for job in "jk":
            peer.wait_null(job)
        return said + [sorted(peer.bitmaps(), key=lambda entry: entry["name"])]

    side_by_side(test, sequence)


@promise("the digest of a bitmap is QEMU's, for all lengths and granularities")
def digests(test):
    def sequence(peer):
        said = []
        name = "x-debug-" + BITMAP[:-1] + "-sha256"
        for length, granularity in (
            (LENGTH, 512), (LENGTH, 4096), (LENGTH, GRANULE), (LENGTH, 1 << 30),
            (65 * GRANULE, GRANULE), (64 * GRANULE + 512, GRANULE), (512, 512), (1 << 40, GRANULE),
        ):  # fmt: skip
            peer.qmp.command_raw("blockdev-add", {
                "driver": "null-co", "node-name": "n", "size": length, "read-zeroes": True,
            })  # fmt: skip
            peer.bitmap("add", "d", "n", granularity=granularity)
            said.append(peer.try_(name, node="n", name="d"))
            peer.try_("blockdev-del", node_name="n")
        for granularity in (512, 4096, GRANULE, MIB):
            peer.bitmap("add", granularity=granularity)
            for at, length in ((0, 512), (LENGTH - 512, 512), (MIB - 1024, 2048), (MIB, 3 * KIB)):
                peer.guest.pwrite(b"x" * length, at)
                said.append(peer.try_(name, node="disk0", name="b"))
            peer.bitmap("remove")
        # The definition.
        peer.bitmap("add")
        peer.write(1, 63)
        words = (1 << 1 | 1 << 63).to_bytes(8, "little")
        found = peer.try_(name, node="disk0", name="b")
        assert found == {"sha256": hashlib.sha256(words).hexdigest()}, found
        peer.bitmap("remove")
        return said + [peer.try_(name, node="nope", name="b"), peer.try_(name, node="disk0",
                                                                         name="b")]  # fmt: skip

    side_by_side(test, sequence)


@promise("full and incremental backups, rebased onto each other, are the disk at each moment")
def chain(test):
    peer = Peer(test, True)
    images = []

    def image(name, backing):
        path = test.path(name)
        more = ("-b", backing, "-F", "qcow2") if backing else ()
        test.run("qemu-img", "create", "-q", "-f", "qcow2", *more, path, str(LENGTH))
        return path

    def write_something():
        for _ in range(12):
            length = test.random.choice((512, 4096, 100 * KIB))
            at = test.random.randrange((LENGTH - length) // 512) * 512
            if test.random.random() < 0.3:
                peer.guest.zero(length, at)
            else:
                peer.guest.pwrite(test.random.randbytes(length), at)

    def back_up(path, **options):
        answer = peer.try_("drive-backup", job_id="j", device="vda", target=str(path),
                           mode="existing", format="qcow2", **options)  # fmt: skip
        assert answer == {}, answer
        moment = test.path(f"moment{len(images)}")
        shutil.copy(peer.disk, moment)  # nobody writes
        event = peer.qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")
        assert "error" not in event["data"], event
        peer.wait_null("j")
        images.append((path, moment))

    peer.bitmap("add", "b")
    for granularity in (512, 4096, MIB):
        assert peer.bitmap("add", f"g{granularity}", granularity=granularity) == {}
    write_something()
    full = image("full", None)
    back_up(full, sync="full", bitmap="b", bitmap_mode="on-success")
    for granularity in (512, 4096, MIB):
        name = f"g{granularity}"
        peer.bitmap("clear", name)
    for number, (name, with_backing, options) in enumerate((
        ("g512", True, {"sync": "incremental"}),
        ("g4096", False, {"sync": "incremental"}),
        (f"g{MIB}", True, {"sync": "bitmap", "bitmap-mode": "always"}),
        ("b", False, {"sync": "bitmap", "bitmap-mode": "never", "compress": True}),
    )):  # fmt: skip
        write_something()
        below = images[-1][0]
        path = image(f"step{number}", below if with_backing else None)
        options = {key.replace("-", "_"): value for key, value in options.items()}
        # All bitmaps say what has changed since the full backup, and those before hide it.
        back_up(path, bitmap=name, **options)
        if not with_backing:
            test.run("qemu-img", "rebase", "-u", "-b", below, "-F", "qcow2", path)
    for path, moment in images:
        test.run("qemu-img", "compare", "-f", "qcow2", "-F", "raw", path, moment)
        test.run("qemu-img", "check", "-q", path)


@promise("an incremental backup of a snapshot, as qmpbackup makes it, holds what was written before")
def of_snapshot(test):
    peer = Peer(test, True)
    qmp = peer.qmp
    assert peer.bitmap("add") == {}
    peer.guest.pwrite(b"o" * LENGTH, 0)
    copy = peer.target()
    peer.wait_null(peer.backup(copy, sync="full", bitmap="b", bitmap_mode="on-success"))
    peer.write(3, 4, 9)
    moment = test.path("moment")
    shutil.copy(peer.disk, moment)
    fleece = peer.target()
    qmp.command("blockdev-add", driver="copy-before-write", node_name="cbw", file="disk0",
                target=fleece, bitmap={"node": "disk0", "name": "b"})  # fmt: skip
    qmp.command("qom-set", path="vda", property="drive", value="cbw")
    qmp.command("blockdev-add", driver="snapshot-access", node_name="snap", file="cbw")
    peer.guest.pwrite(b"n" * GRANULE, 3 * GRANULE)
    qmp.command("transaction", actions=[
        action(BITMAP + "add", node="snap", name="s"),
        action(BITMAP + "merge", node="snap", target="s", bitmaps=[{"node": "disk0", "name": "b"}]),
        action("blockdev-backup", job_id="j", device="snap", target=copy, sync="incremental",
               bitmap="s"),
        action(BITMAP + "clear", node="disk0", name="b"),
    ])  # fmt: skip
    peer.guest.pwrite(b"n" * MIB, 0)
    event = qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")
    assert "error" not in event["data"] and event["data"]["len"] == 3 * GRANULE, event
    peer.wait_null("j")
    test.run("qemu-img", "compare", "-f", "raw", "-F", "raw", test.path(f"ours-{copy}"), moment)
    assert peer.bitmaps()[0]["count"] == MIB and peer.bitmaps("snap")[0]["count"] == 0
    qmp.command("blockdev-del", node_name="snap")
    qmp.command("qom-set", path="vda", property="drive", value="disk0")
    qmp.command("blockdev-del", node_name="cbw")


@promise("liveblk bitmap and liveblk backup --bitmap make incremental backups on the command line")
def command_line(test):
    peer = Peer(test, True)
    admin = ("-a", str(test.path("server.admin")))

    def run(*words, **options):
        return test.liveblk(*words, *admin, **options).stdout

    assert run("bitmap", "list") == "No bitmaps.\n"
    run("bitmap", "add", "vda", "b", "--granularity", "4K")
    run("bitmap", "add", "vda", "c", "--disabled")
    peer.write(0, 5)
    assert json.loads(run("bitmap", "list", "vda", "--json")) == [
        {"node": "disk0", "name": "c", "count": 0, "granularity": GRANULE, "recording": False,
         "busy": False, "persistent": False},
        {"node": "disk0", "name": "b", "count": 8 * KIB, "granularity": 4 * KIB,
         "recording": True, "busy": False, "persistent": False},
    ]  # fmt: skip
    done = json.loads(run("bitmap", "merge", "vda", "c", "b", "--json"))
    assert done == {"message_type": "done", "verb": "merge", "node": "vda", "bitmap": "c"}
    lines = run("bitmap", "list", "disk0").splitlines()
    assert lines[0].split() == ["NODE", "BITMAP", "CHANGED", "GRANULARITY", "STATE"]
    assert lines[1].split() == ["disk0", "c", "128.0", "KiB", "64.0", "KiB", "disabled"], lines
    for verb in ("enable", "disable", "clear", "remove"):
        run("bitmap", verb, "vda", "c")
    copy = test.path("copy.img")
    run("backup", "vda", "--to", copy, "--bitmap", "b", "-q")
    assert peer.bitmaps()[0]["count"] == 0
    peer.write(7)
    said = run("backup", "vda", "--to", copy, "--existing", "--sync", "incremental", "--bitmap",
               "b", "--json").splitlines()  # fmt: skip
    assert json.loads(said[-1])["outcome"] == "success", said
    test.run("qemu-img", "compare", "-f", "raw", "-F", "raw", copy, peer.disk)
    refused = (
        (("bitmap",), 2, "What to do with bitmaps?"),
        (("bitmap", "add", "vda"), 2, "add DISK BITMAP"),
        (("bitmap", "clear", "vda", "b", "--disabled"), 2, "only for 'bitmap add'"),
        (("bitmap", "add", "vda", "d", "-g", "x"), 2, "--granularity expects"),
        (("bitmap", "add", "vda", "b"), 1, "Bitmap already exists: b"),
        (("bitmap", "list", "nope"), 1, "no disk or node 'nope'"),
        (("backup", "vda", "--to", str(copy), "-e", "--sync", "incremental"), 1,
         "must provide a valid bitmap name"),
        (("backup", "vda", "--to", str(copy), "-e", "--bitmap-mode", "x"), 2,
         "--bitmap-mode expects"),
    )  # fmt: skip
    for words, status, text in refused:
        result = test.liveblk(*words, *admin, status=status)
        assert text in result.stderr, result.stderr


main()
