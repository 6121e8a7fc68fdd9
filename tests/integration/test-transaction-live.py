#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Dirty bitmaps and transactions over the admin channel of a running server."""

import struct
import threading

import nbd
from liveblk_load import Writers, same_contents
from liveblk_test import QmpError, Server, main, promise, wait_until

KIB = 1 << 10
MIB = 1 << 20
BITMAP = "block-dirty-bitmap-"


def world(test, length=8 * MIB, disks=1):
    """Disks with the nodes disk0, disk1... under the devices vda, vdb..., and a QMP client."""
    paths = [test.path(f"disk{n}.img") for n in range(disks)]
    for path in paths:
        path.write_bytes(test.random.randbytes(length))
    server = Server(
        test,
        [f"name=vd{'abc'[n]},node-name=disk{n},file={path}" for n, path in enumerate(paths)],
    )
    return server, server.qmp()


def bitmap_command(qmp, verb, /, **arguments):
    qmp.command_raw(BITMAP + verb, arguments)


def refused(qmp, name, desc, /, **arguments):
    try:
        qmp.command_raw(name, arguments)
    except QmpError as error:
        assert error.desc == desc, f"{name}: {error.desc!r} instead of {desc!r}"
        assert error.kind == "GenericError", error.kind
        return
    raise AssertionError(f"{name} {arguments} was not refused")


def action(verb, /, **data):
    """An action: "add" and so on for bitmaps, else its whole name."""
    bitmap = verb in ("add", "remove", "clear", "enable", "disable", "merge")
    return {
        "type": BITMAP + verb if bitmap else verb,
        "data": {key.replace("_", "-"): value for key, value in data.items()},
    }


def backup_action(job, device, target, **options):
    return action("drive-backup", job_id=job, device=device, target=str(target), sync="full",
                  **options)  # fmt: skip


ABORT = {"type": "abort", "data": {}}


def transaction(qmp, *actions, mode=None):
    arguments = {"actions": actions}
    if mode:
        arguments["properties"] = {"completion-mode": mode}
    return qmp.command("transaction", **arguments)


def transaction_refused(qmp, desc, *actions, mode=None):
    try:
        transaction(qmp, *actions, mode=mode)
    except QmpError as error:
        assert error.desc == desc, f"{error.desc!r} instead of {desc!r}"
        return
    raise AssertionError(f"{actions} were not refused")


def bitmaps(qmp, node="disk0"):
    """What the node tells about its bitmaps, in its order."""
    for entry in qmp.command("query-named-block-nodes"):
        if entry["node-name"] == node:
            return entry.get("dirty-bitmaps", [])
    raise AssertionError(f"there is no node {node}")


def bitmap(qmp, name, node="disk0"):
    return [entry for entry in bitmaps(qmp, node) if entry["name"] == name][0]


def count(qmp, name, node="disk0"):
    return bitmap(qmp, name, node)["count"]


def job_words(qmp, *jobs):
    """The jobs' events so far, as "a.running", "a.BLOCK_JOB_COMPLETED", without drains' pauses."""
    words = []
    for event in qmp.events:
        job = event["data"].get("id") or event["data"].get("device")
        word = f"{job}.{event['data'].get('status') or event['event']}"
        if job in jobs and not word.endswith("paused") and word not in words:
            words.append(word)
    return words


def wait_gone(qmp, *jobs):
    def gone():
        qmp.command("query-version")
        return all(f"{job}.null" in job_words(qmp, *jobs) for job in jobs)

    wait_until(gone, f"{jobs} are gone")


@promise("bitmaps are added, disabled, enabled, cleared and removed, and record what they should")
def verbs(test):
    server, qmp = world(test)
    handle = server.connect()
    assert bitmaps(qmp) == []
    assert "dirty-bitmaps" not in qmp.command("query-block")[0]["inserted"]
    bitmap_command(qmp, "add", node="disk0", name="a")
    bitmap_command(qmp, "add", node="vda", name="b", granularity=512, disabled=True)
    assert bitmaps(qmp) == [
        {"name": "b", "count": 0, "granularity": 512, "recording": False, "busy": False,
         "persistent": False},
        {"name": "a", "count": 0, "granularity": 64 * KIB, "recording": True, "busy": False,
         "persistent": False},
    ]  # fmt: skip
    assert qmp.command("query-block")[0]["inserted"]["dirty-bitmaps"] == bitmaps(qmp)
    handle.pwrite(b"x" * 1024, 64 * KIB - 512)
    assert (count(qmp, "a"), count(qmp, "b")) == (128 * KIB, 0)
    bitmap_command(qmp, "enable", node="disk0", name="b")
    bitmap_command(qmp, "disable", node="disk0", name="a")
    handle.zero(1024, MIB)
    handle.trim(4096, 2 * MIB)
    assert (count(qmp, "a"), count(qmp, "b")) == (128 * KIB, 5120)
    for verb, name in (("enable", "b"), ("disable", "a")):
        bitmap_command(qmp, verb, node="disk0", name=name)
    bitmap_command(qmp, "clear", node="vda", name="a")
    assert (count(qmp, "a"), count(qmp, "b")) == (0, 5120)
    handle.pwrite(b"x" * 512, 0)
    assert (count(qmp, "a"), bitmap(qmp, "a")["recording"]) == (0, False)
    bitmap_command(qmp, "remove", node="disk0", name="a")
    assert [entry["name"] for entry in bitmaps(qmp)] == ["b"]
    assert count(qmp, "b") == 5632


@promise("every wrong bitmap command is refused with QEMU's words and changes nothing")
def refusals(test):
    server, qmp = world(test, disks=2)
    qmp.command("blockdev-add", driver="null-co", node_name="small", size=MIB)
    for node in ("disk0", "disk1", "small"):
        bitmap_command(qmp, "add", node=node, name="x")
    server.connect().pwrite(b"1" * 512, 0)
    before = [bitmaps(qmp, node) for node in ("disk0", "disk1", "small")]
    add, merge = BITMAP + "add", BITMAP + "merge"
    power = "Granularity must be power of 2 and at least 512"
    store = "Can't store persistent bitmaps to disk0: Operation not supported"
    long = "y" * 1024
    different = (
        "Bitmaps are of different sizes (destination size is 8388608, source size is 1048576) "
        "and can't be merged"
    )
    cases = (
        (add, "Parameter 'node' is missing", {}),
        (add, "Bitmap name cannot be empty", {"node": "nope", "name": ""}),
        (add, "Cannot find device='nope' nor node-name='nope'", {"node": "nope", "name": "y"}),
        (add, "Bitmap already exists: x", {"node": "disk0", "name": "x"}),
        (add, "Bitmap already exists: x", {"node": "vda", "name": "x"}),
        (add, power, {"node": "disk0", "name": "y", "granularity": 0}),
        (add, power, {"node": "disk0", "name": "y", "granularity": 256}),
        (add, power, {"node": "disk0", "name": "x", "granularity": 513}),
        (add, store, {"node": "disk0", "name": "y", "persistent": True}),
        (add, store, {"node": "vda", "name": "x", "persistent": True}),
        (add, f"Bitmap name too long: {long}", {"node": "disk0", "name": long}),
        (add, "Parameter 'granularity' expects uint32_t",
         {"node": "disk0", "name": "y", "granularity": 1 << 32}),
        (merge, "Node 'nope' not found", {"node": "nope", "target": "x", "bitmaps": []}),
        (merge, "Dirty bitmap 'y' not found", {"node": "disk0", "target": "y", "bitmaps": []}),
        (merge, "Dirty bitmap 'y' not found",
         {"node": "disk0", "target": "x", "bitmaps": ["x", "y"]}),
        (merge, "Node 'nope' not found",
         {"node": "disk0", "target": "x", "bitmaps": ["x", {"node": "nope", "name": "x"}]}),
        (merge, "Dirty bitmap 'y' not found",
         {"node": "disk0", "target": "x", "bitmaps": [{"node": "disk1", "name": "y"}]}),
        (merge, different,
         {"node": "disk0", "target": "x", "bitmaps": [{"node": "small", "name": "x"}]}),
        (merge, "Invalid parameter type for 'null', expected: BlockDirtyBitmapOrStr",
         {"node": "disk0", "target": "x", "bitmaps": ["x", 1]}),
        (merge, "Invalid parameter type for 'bitmaps[0].node', expected: string",
         {"node": "disk0", "target": "x", "bitmaps": [{"node": 1, "name": "x"}]}),
        (merge, "Parameter 'bitmaps[1].name' is missing",
         {"node": "disk0", "target": "x", "bitmaps": ["x", {"node": "disk1"}]}),
    )  # fmt: skip
    for name, desc, arguments in cases:
        refused(qmp, name, desc, **arguments)
    for verb in ("remove", "clear", "enable", "disable"):
        refused(qmp, BITMAP + verb, "Node 'nope' not found", node="nope", name="x")
        refused(qmp, BITMAP + verb, "Dirty bitmap 'y' not found", node="disk0", name="y")
        refused(qmp, BITMAP + verb, "Parameter 'name' is missing", node="disk0")
    assert [bitmaps(qmp, node) for node in ("disk0", "disk1", "small")] == before
    # The largest that are allowed.
    bitmap_command(qmp, "add", node="disk0", name="z" * 1023, granularity=1 << 31)
    assert bitmaps(qmp)[0]["granularity"] == 1 << 31


@promise("bitmaps are merged within and across nodes, whatever their granularities")
def merges(test):
    server, qmp = world(test, disks=2)
    bitmap_command(qmp, "add", node="disk0", name="fine", granularity=512)
    bitmap_command(qmp, "add", node="disk0", name="coarse", granularity=MIB)
    bitmap_command(qmp, "add", node="disk1", name="fine", granularity=4096)
    server.connect("vda").pwrite(b"1" * 512, MIB + 512)
    server.connect("vdb").pwrite(b"1" * 512, 5 * MIB)
    for node in ("disk0", "disk1"):
        for name in ("t1", "t2", "t3"):
            bitmap_command(qmp, "add", node=node, name=name, granularity=1024, disabled=True)

    def merge(target, *sources, node="disk0"):
        bitmap_command(qmp, "merge", node=node, target=target, bitmaps=sources)
        return count(qmp, target, node)

    assert merge("t1") == 0  # QEMU crashes here
    assert merge("t1", "t1") == 0
    assert merge("t1", "fine") == 1024
    assert merge("t1", "coarse", "fine", "coarse") == MIB
    assert merge("t1", "t1", {"node": "vdb", "name": "fine"}) == MIB + 4096
    assert merge("t2", {"node": "disk1", "name": "fine"}, {"node": "vda", "name": "t2"}) == 4096
    assert merge("coarse", "fine", {"node": "disk1", "name": "fine"}) == 2 * MIB
    assert merge("t3", {"node": "disk0", "name": "coarse"}, node="disk1") == 2 * MIB
    assert (count(qmp, "fine"), count(qmp, "fine", "disk1")) == (512, 4096)
    server.connect("vda").pwrite(b"1" * 512, 7 * MIB)
    assert [entry["count"] for entry in bitmaps(qmp)][-2:] == [3 * MIB, 1024]  # still recording
    assert count(qmp, "t1") == MIB + 4096  # still not


@promise("a transaction that fails leaves every bitmap as it was, and in its place")
def roll_back(test):
    server, qmp = world(test, disks=2)
    handle = server.connect("vda")
    for name in "abc":
        bitmap_command(qmp, "add", node="disk0", name=name, disabled=name == "b")
    handle.pwrite(b"1" * 512, 0)
    bitmap_command(qmp, "merge", node="disk0", target="b", bitmaps=["a"])
    handle.pwrite(b"1" * 512, 4 * MIB)
    before = bitmaps(qmp)
    steps = [
        action("clear", node="disk0", name="a"),
        action("disable", node="disk0", name="a"),
        action("merge", node="disk0", target="a", bitmaps=["b"]),
        action("enable", node="vda", name="b"),
        action("add", node="disk0", name="d"),
        action("merge", node="disk0", target="d", bitmaps=["c", {"node": "disk0", "name": "a"}]),
        action("remove", node="disk0", name="a"),
        action("add", node="disk0", name="a", granularity=512),
        action("remove", node="disk0", name="c"),
        action("clear", node="disk0", name="d"),
        action("remove", node="disk0", name="d"),
        action("add", node="disk1", name="a"),
    ]
    bad = action("remove", node="disk1", name="nope")
    for end in range(len(steps) + 1):
        aborted = "Transaction aborted using Abort action"
        transaction_refused(qmp, aborted, *steps[:end], ABORT, *steps[end:])
        transaction_refused(qmp, "Dirty bitmap 'nope' not found", *steps[:end], bad, ABORT)
        assert bitmaps(qmp) == before and bitmaps(qmp, "disk1") == [], (end, bitmaps(qmp))
    handle.pwrite(b"1" * 512, 2 * MIB)
    grown = [dict(b, count=b["count"] + 64 * KIB * b["recording"]) for b in before]
    assert bitmaps(qmp) == grown
    transaction(qmp, *steps)
    assert [(b["name"], b["count"], b["granularity"], b["recording"]) for b in bitmaps(qmp)] == [
        ("a", 0, 512, True), ("b", 64 * KIB, 64 * KIB, True),
    ]  # fmt: skip
    assert [b["name"] for b in bitmaps(qmp, "disk1")] == ["a"]


@promise("actions see what those before them have done")
def in_order(test):
    server, qmp = world(test)
    bitmap_command(qmp, "add", node="disk0", name="b")
    server.connect().pwrite(b"1" * 512, 0)
    transaction(
        qmp,
        action("add", node="disk0", name="copy", disabled=True),
        action("merge", node="disk0", target="copy", bitmaps=["b"]),
        action("clear", node="disk0", name="b"),
    )
    assert (count(qmp, "b"), count(qmp, "copy")) == (0, 64 * KIB)
    transaction(
        qmp,
        action("remove", node="disk0", name="copy"),
        action("add", node="disk0", name="copy", granularity=4096),
        action("merge", node="disk0", target="b", bitmaps=["copy"]),
    )
    assert (count(qmp, "b"), count(qmp, "copy")) == (0, 0)
    transaction_refused(
        qmp,
        "Dirty bitmap 'b' not found",
        action("remove", node="disk0", name="b"),
        action("clear", node="disk0", name="b"),
    )
    transaction_refused(
        qmp,
        "Bitmap already exists: n",
        action("add", node="disk0", name="n"),
        action("add", node="vda", name="n"),
    )
    transaction_refused(
        qmp,
        "Bitmap already exists: b",
        action("add", node="disk0", name="b"),
        ABORT,
    )
    assert [b["name"] for b in bitmaps(qmp)] == ["copy", "b"]
    assert transaction(qmp) == {}
    assert transaction(qmp, mode="grouped") == {}


@promise("wrong transactions are refused with QEMU's words")
def transaction_refusals(test):
    server, qmp = world(test)
    target = test.path("b.img")
    cases = (
        ("Parameter 'actions' is missing", {}),
        ("Invalid parameter type for 'actions[0]', expected: object", {"actions": [1]}),
        ("Parameter 'actions[0].type' is missing", {"actions": [{"data": {}}]}),
        ("Parameter 'type' does not accept value 'nope'",
         {"actions": [{"type": "nope", "data": {}}]}),
        ("Parameter 'actions[1].data' is missing", {"actions": [ABORT, {"type": "abort"}]}),
        ("Parameter 'actions[0].data.name' is missing", {"actions": [action("add", node="a")]}),
        ("Parameter 'actions[0].data.zz' is unexpected",
         {"actions": [action("clear", node="a", name="b", zz=1)]}),
        ("Parameter 'actions[0].zz' is unexpected", {"actions": [dict(ABORT, zz=1)]}),
        ("Parameter 'completion-mode' does not accept value 'x'",
         {"actions": [], "properties": {"completion-mode": "x"}}),
    )  # fmt: skip
    for desc, arguments in cases:
        refused(qmp, "transaction", desc, **arguments)
    grouped = "Action '{}' does not support transaction property completion-mode = grouped"
    add = action("add", node="disk0", name="b")
    backup = backup_action("j", "vda", target)
    transaction_refused(qmp, "Transaction aborted using Abort action", ABORT, mode="grouped")
    transaction_refused(qmp, grouped.format(BITMAP + "add"), backup, add, mode="grouped")
    assert bitmaps(qmp) == [] and qmp.command("query-jobs") == [] and not target.exists()
    assert qmp.events == []


@promise("the schema tells which actions there are")
def schema(test):
    server, qmp = world(test)
    entries = {entry["name"]: entry for entry in qmp.command("query-qmp-schema")}

    def members(name):
        return {member["name"]: member for member in entries[name]["members"]}

    actions = members(entries["transaction"]["arg-type"])["actions"]["type"]
    union = entries[entries[actions]["element-type"]]
    assert union["tag"] == "type"
    for variant in union["variants"]:
        data = members(variant["type"])
        assert list(data) == ["data"] and "default" not in data["data"], data
        command = entries.get(variant["case"])
        assert command is None or command["arg-type"] == data["data"]["type"]
    cases = {variant["case"] for variant in union["variants"]}
    assert cases >= {
        "abort", "blockdev-backup", "drive-backup", BITMAP + "add", BITMAP + "remove",
        BITMAP + "clear", BITMAP + "enable", BITMAP + "disable", BITMAP + "merge",
    }, cases  # fmt: skip
    assert set(entries[members(union["name"])["type"]["type"]]["values"]) == cases


@promise("a bitmap holds exactly what writers changed while it was there")
def exact(test):
    server, qmp = world(test)
    writers = Writers(test, server.uri(), 8 * MIB).start()
    writers.wait_done(50)
    with writers.held() as old:
        bitmap_command(qmp, "add", node="disk0", name="b", granularity=4096)
    bitmap_command(qmp, "add", node="disk0", name="beside", granularity=4096)
    writers.wait_done(300)
    with writers.held() as new:
        transaction(
            qmp,
            action("disable", node="disk0", name="b"),
            action("disable", node="disk0", name="beside"),
        )
    writers.wait_done(50)
    writers.stop()
    changed = [n for n in range(len(new.sequences)) if new.sequences[n] != old.sequences[n]]
    assert 0 < len(changed) < len(new.sequences)
    assert count(qmp, "b") == 4096 * len(changed)
    # The same sectors once more, into another: if both are equal, so is what both have together.
    bitmap_command(qmp, "add", node="disk0", name="again", granularity=4096)
    handle = server.connect()
    for number in changed:
        handle.zero(4096, number * 4096)
    bitmap_command(qmp, "merge", node="disk0", target="again", bitmaps=["b"])
    assert count(qmp, "again") == count(qmp, "b")
    # One that began among writes has no more.
    bitmap_command(qmp, "merge", node="disk0", target="again", bitmaps=["beside"])
    assert count(qmp, "again") == count(qmp, "b")
    assert count(qmp, "beside") <= count(qmp, "b")


@promise("bitmaps follow the disk's length: new space counts as changed, lost space does not")
def resizes(test):
    server, qmp = world(test, length=4 * MIB)
    bitmap_command(qmp, "add", node="disk0", name="on")
    bitmap_command(qmp, "add", node="disk0", name="off", disabled=True)
    server.connect().pwrite(b"1" * 512, 3 * MIB)
    qmp.command("block_resize", device="vda", size=5 * MIB)
    assert (count(qmp, "on"), count(qmp, "off")) == (MIB + 64 * KIB, 0)
    bitmap_command(qmp, "clear", node="disk0", name="on")
    server.connect().pwrite(b"1" * 512, 5 * MIB - 512)
    assert count(qmp, "on") == 64 * KIB
    qmp.command("block_resize", device="vda", size=2 * MIB)
    assert (count(qmp, "on"), count(qmp, "off")) == (0, 0)
    bitmap_command(qmp, "merge", node="disk0", target="off", bitmaps=["on"])
    bitmap_command(qmp, "add", node="disk0", name="new")
    server.connect().pwrite(b"1" * 512, 2 * MIB - 512)
    assert [count(qmp, name) for name in ("on", "off", "new")] == [64 * KIB, 0, 64 * KIB]


@promise("a bitmap lives and ends with its node")
def node_gone(test):
    server, qmp = world(test)
    for _ in range(3):
        qmp.command("blockdev-add", driver="null-co", node_name="n", size=MIB, read_only=True)
        assert bitmaps(qmp, "n") == []
        bitmap_command(qmp, "add", node="n", name="b")
        assert [b["name"] for b in bitmaps(qmp, "n")] == ["b"]
        qmp.command("blockdev-del", node_name="n")
    refused(qmp, BITMAP + "remove", "Node 'n' not found", node="n", name="b")
    bitmap_command(qmp, "add", node="disk0", name="left-behind")
    server.stop()


@promise("a bitmap may be on a point-in-time view, and takes over what the disk's has")
def on_a_view(test):
    server, qmp = world(test)
    bitmap_command(qmp, "add", node="disk0", name="b")
    handle = server.connect("vda")
    handle.pwrite(b"1" * 512, MIB)
    qmp.command("blockdev-add", driver="null-co", node_name="scratch", size=8 * MIB)
    qmp.command("blockdev-add", driver="copy-before-write", node_name="cbw", file="disk0",
                target="scratch")  # fmt: skip
    qmp.command("blockdev-add", driver="snapshot-access", node_name="snap", file="cbw")
    transaction(
        qmp,
        action("add", node="snap", name="b", disabled=True),
        action("merge", node="snap", target="b", bitmaps=[{"node": "disk0", "name": "b"}]),
        action("clear", node="disk0", name="b"),
    )
    handle.pwrite(b"1" * 512, 2 * MIB)
    handle.pwrite(b"1" * 512, 3 * MIB)
    assert count(qmp, "b", "snap") == 64 * KIB
    assert count(qmp, "b") == 128 * KIB
    for node in ("snap", "cbw", "scratch"):
        qmp.command("blockdev-del", node_name=node)


@promise("bitmaps and transactions do not wait for guests whose requests are held")
def held_guests(test):
    server, qmp = world(test)
    bitmap_command(qmp, "add", node="disk0", name="b")
    writers = Writers(test, server.uri(), 8 * MIB, prefill=False).start()
    writers.wait_done(10)
    qmp.command("stop")
    before = count(qmp, "b")
    transaction(qmp, action("add", node="vda", name="copy"),
                action("merge", node="vda", target="copy", bitmaps=["b"]))  # fmt: skip
    assert (count(qmp, "b"), count(qmp, "copy")) == (before, before)
    bitmap_command(qmp, "clear", node="disk0", name="b")
    assert count(qmp, "b") == 0
    qmp.command("cont")
    writers.wait_done(10)
    writers.stop()
    assert count(qmp, "b") > 0


@promise("bitmaps are right when a disk is resized beside transactions")
def resizes_beside(test):
    server, qmp = world(test, length=2 * MIB)
    bitmap_command(qmp, "add", node="disk0", name="b", granularity=512)
    resizing = server.qmp()
    over = threading.Event()

    def resize():
        size = 2 * MIB
        while not over.is_set():
            size = 5 * MIB - size
            resizing.command_raw("block_resize", {"device": "vda", "size": size})

    thread = threading.Thread(target=resize, daemon=True)
    thread.start()
    for _ in range(60):
        transaction(
            qmp,
            action("add", node="vda", name="t", granularity=1024, disabled=True),
            action("merge", node="vda", target="t", bitmaps=["b", "t"]),
            action("clear", node="vda", name="b"),
        )
        assert count(qmp, "t") in (0, MIB), bitmaps(qmp)
        bitmap_command(qmp, "remove", node="vda", name="t")
    over.set()
    thread.join(30)
    assert not thread.is_alive()
    resizing.command_raw("block_resize", {"device": "vda", "size": 4 * MIB})
    bitmap_command(qmp, "clear", node="vda", name="b")
    server.connect().pwrite(b"1" * 512, 4 * MIB - 512)
    assert count(qmp, "b") == 512


@promise("with a bitmap the connected clients go on, whoever adds and removes it beside them")
def beside_clients(test):
    server, qmp = world(test)
    writers = Writers(test, server.uri(), 8 * MIB).start()
    for number in range(30):
        bitmap_command(qmp, "add", node="disk0", name="b", granularity=4096)
        writers.wait_done(10)
        with writers.held():
            first = count(qmp, "b")
            transaction(qmp, action("clear", node="vda", name="b"))
        assert first > 0
        transaction(qmp, action("remove", node="vda", name="b"))
    writers.stop()
    handle = server.connect()
    writers.model.assert_equals(lambda at, length: handle.pread(length, at))


# ---- Backups ---------------------------------------------------------------------------------


class Pairs:
    """Writers of ordered pairs: a number to disk A and, when that is answered, to disk B."""

    def __init__(self, test, server, threads):
        self.over = False
        self.numbers = [0] * threads
        self.errors = []
        self.threads = [
            threading.Thread(target=self.run, args=(server, n), daemon=True)
            for n in range(threads)
        ]
        test.cleanup.callback(setattr, self, "over", True)
        for thread in self.threads:
            thread.start()

    def run(self, server, slot):
        try:
            handles = [server.connect("vda"), server.connect("vdb")]
            while not self.over:
                self.numbers[slot] += 1
                for handle in handles:
                    handle.pwrite(struct.pack("<Q", self.numbers[slot]) * 64, slot * 64 * KIB)
            for handle in handles:
                handle.shutdown()
        except nbd.Error as error:
            self.errors.append(error)

    def wait(self, more=3):
        goals = [number + more for number in self.numbers]
        wait_until(
            lambda: self.errors or all(n >= g for n, g in zip(self.numbers, goals)), "pairs"
        )
        assert not self.errors, self.errors

    def stop(self):
        self.over = True
        for thread in self.threads:
            thread.join(60)
            assert not thread.is_alive()
        assert not self.errors, self.errors

    def are_of_one_instant(self, image_a, image_b):
        """Whether in no slot B has a number that A has not, or lags by more than one."""
        for slot in range(len(self.numbers)):
            a, b = (read_number(image, slot) for image in (image_a, image_b))
            if not b <= a <= b + 1:
                return False
        return True


def read_number(path, slot):
    with open(path, "rb") as file:
        file.seek(slot * 64 * KIB)
        return struct.unpack("<Q", file.read(8))[0]


@promise("the backups of one transaction are of one instant, on several disks")
def one_instant(test):
    server, qmp = world(test, length=MIB, disks=2)
    pairs = Pairs(test, server, threads=4)
    a, b = test.path("a.img"), test.path("b.img")
    for number in range(15):
        pairs.wait()
        actions = [backup_action("a", "vda", a), backup_action("b", "vdb", b)]
        if number % 2:
            actions.reverse()
        qmp.events.clear()
        transaction(qmp, *actions, mode="grouped" if number % 3 else None)
        wait_gone(qmp, "a", "b")
        assert pairs.are_of_one_instant(a, b), f"round {number}"
    # Would the check notice?
    qmp.events.clear()
    transaction(qmp, backup_action("a", "vda", a))
    pairs.wait()
    transaction(qmp, backup_action("b", "vdb", b))
    wait_gone(qmp, "a", "b")
    assert not pairs.are_of_one_instant(a, b)
    pairs.stop()


@promise("a backup that is rolled back is seen to come and go, and leaves nothing")
def backup_rolled_back(test):
    server, qmp = world(test, disks=2)
    qmp.command("blockdev-add", driver="null-co", node_name="target", size=8 * MIB)
    bitmap_command(qmp, "add", node="disk0", name="b")
    transaction_refused(
        qmp,
        "Transaction aborted using Abort action",
        action("blockdev-backup", job_id="j", device="vda", target="target", sync="full"),
        action("clear", node="disk0", name="b"),
        ABORT,
    )
    assert qmp.command("query-jobs") == []
    assert job_words(qmp, "j") == ["j.created", "j.aborting", "j.concluded", "j.null"]
    qmp.events.clear()
    transaction_refused(
        qmp,
        "Job ID 'j' already in use",
        action("blockdev-backup", job_id="j", device="vda", target="target", sync="none"),
        backup_action("j", "vdb", test.path("x.img")),
    )
    assert not test.path("x.img").exists()
    transaction_refused(
        qmp,
        "Dirty bitmap 'nope' not found",
        action("remove", node="disk0", name="nope"),
        backup_action("j", "vdb", test.path("x.img")),
    )
    assert not test.path("x.img").exists()
    handle = server.connect()
    handle.pwrite(b"1" * 512, 0)
    assert count(qmp, "b") == 64 * KIB
    qmp.command("blockdev-del", node_name="target")  # nobody uses it


@promise("jobs of an individual transaction end each by itself")
def individual(test):
    server, qmp = world(test, disks=2)
    transaction(
        qmp,
        backup_action("slow", "vda", test.path("a.img"), speed=64 * KIB),
        backup_action("fast", "vdb", test.path("b.img")),
    )
    wait_gone(qmp, "fast")
    assert "fast.BLOCK_JOB_COMPLETED" in job_words(qmp, "fast")
    assert [job["id"] for job in qmp.command("query-jobs")] == ["slow"]
    qmp.command("job-cancel", id="slow")
    assert same_contents(test.path("disk1.img"), test.path("b.img"))


@promise("jobs of a grouped transaction succeed together")
def grouped_success(test):
    server, qmp = world(test, disks=2)
    transaction(
        qmp,
        backup_action("a", "vda", test.path("a.img"), speed=16 * MIB),
        backup_action("b", "vdb", test.path("b.img")),
        mode="grouped",
    )
    wait_gone(qmp, "a", "b")
    words = job_words(qmp, "a", "b")
    assert words.index("b.waiting") < words.index("a.waiting") < words.index("b.pending")
    assert words.index("a.pending") < words.index("b.BLOCK_JOB_COMPLETED")
    assert words.index("b.pending") < words.index("a.BLOCK_JOB_COMPLETED")


@promise("the failure of one job of a grouped transaction cancels the others")
def grouped_failure(test):
    server, qmp = world(test, disks=2)
    # The disk is full at 1 MiB.
    qmp.command("blockdev-add", driver="blkdebug", node_name="bad",
                image={"driver": "null-co", "size": 8 * MIB},
                inject_error=[{"event": "none", "iotype": "write", "errno": 28,
                               "offset": MIB, "bytes": 7 * MIB}])  # fmt: skip
    transaction(
        qmp,
        backup_action("good", "vda", test.path("a.img"), speed=64 * KIB),
        action("blockdev-backup", job_id="bad", device="vdb", target="bad", sync="full"),
        mode="grouped",
    )
    wait_gone(qmp, "good", "bad")
    words = job_words(qmp, "good", "bad")
    assert words.index("good.BLOCK_JOB_CANCELLED") < words.index("bad.BLOCK_JOB_COMPLETED"), words
    assert "good.BLOCK_JOB_COMPLETED" not in words
    event = qmp.wait_event("BLOCK_JOB_COMPLETED", device="bad")
    assert event["data"]["error"].endswith("No space left on device"), event


@promise("in a grouped transaction one job-finalize ends all, and one job-cancel cancels all")
def grouped_manual(test):
    server, qmp = world(test, disks=2)
    for verb, end in (("finalize", "BLOCK_JOB_COMPLETED"), ("cancel", "BLOCK_JOB_CANCELLED")):
        qmp.events.clear()
        transaction(
            qmp,
            backup_action("a", "vda", test.path("a.img"), auto_finalize=False),
            backup_action("b", "vdb", test.path("b.img")),
            mode="grouped",
        )

        def all_pending():
            jobs = qmp.command("query-jobs")
            return len(jobs) == 2 and all(job["status"] == "pending" for job in jobs)

        wait_until(all_pending, "both are pending")
        def pending():
            qmp.command("query-jobs")  # events come before the answer
            return [e["data"]["id"] for e in qmp.events if e["event"] == "BLOCK_JOB_PENDING"]

        assert wait_until(pending, "the event says so") == ["a"], pending()
        qmp.command(f"job-{verb}", id="a")
        wait_gone(qmp, "a", "b")
        words = job_words(qmp, "a", "b")
        assert f"a.{end}" in words and f"b.{end}" in words, words


main()
