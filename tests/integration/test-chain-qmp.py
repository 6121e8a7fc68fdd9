#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Commands on chains as QMP clients see them: arguments, defaults, errors, events and fields of
block-stream, block-commit, change-backing-file, external snapshots and blockdev-reopen.
"""

import json

from liveblk_test import QmpError, Server, main, promise, wait_until

MIB = 1 << 20
LENGTH = 8 * MIB


class Chain:
    """Images n0 (lowest) to n3, each with a MiB of its own, as nodes of these names or a disk."""

    def __init__(self, test, as_disk=False):
        self.test = test
        for i in range(4):
            self.create(f"n{i}", f"n{i - 1}" if i else None)
            test.run("qemu-io", "-f", "qcow2", "-c", f"write -P {i + 1} {i}M 1M", self.file(f"n{i}"))
        for name in ("spare", "other"):
            self.create(name)
        top = [f"file={self.file('n3')},format=qcow2,node-name=n3"] if as_disk else []
        self.server = Server(test, top or [test.make_disk("disk.img", MIB)])
        self.qmp = self.server.qmp()
        for i in range(0 if as_disk else 4):
            self.add(f"n{i}", backing=f"n{i - 1}" if i else None, read_only=i < 3)
        self.add("spare")
        self.add("other")

    def file(self, name):
        return str(self.test.path(name + ".qcow2"))

    def create(self, name, backing=None):
        below = ["-b", self.file(backing), "-F", "qcow2"] if backing else []
        self.test.run("qemu-img", "create", "-q", "-f", "qcow2", *below, self.file(name), LENGTH)

    def add(self, name, backing=None, read_only=False):
        self.qmp.command("blockdev-add", driver="qcow2", node_name=name, backing=backing,
                         read_only=read_only,
                         file={"driver": "file", "filename": self.file(name)})  # fmt: skip

    def refuse(self, command, text, kind="GenericError", **arguments):
        """The error, of this class, that the arguments get."""
        self.qmp.next_id += 1
        arguments = {key.replace("_", "-"): value for key, value in arguments.items()}
        answer = self.qmp.request({"execute": command, "arguments": arguments})
        assert answer.get("error") == {"class": kind, "desc": text}, answer

    def start(self, command, **arguments):
        self.qmp.events.clear()
        self.qmp.command(command, job_id="job", **arguments)

    def follow(self, end="null"):
        """What was told of the job since the last time, until this: states, and other events."""
        told = []
        while not told or told[-1] != end:
            event = self.qmp.events.pop(0) if self.qmp.events else self.qmp.receive()
            data = event.get("data", {})
            assert "job" in (data.get("id"), data.get("device")), event
            told.append(data["status"] if event["event"] == "JOB_STATUS_CHANGE" else event["event"])
            if event["event"].startswith("BLOCK_JOB"):
                self.data = data
        return told

    def node(self, name):
        nodes = self.qmp.command("query-named-block-nodes")
        return next(node for node in nodes if node["node-name"] == name)

    def names(self, name):
        """The file names of the chain that a node begins."""
        image = self.node(name)["image"]
        names = []
        while image:
            names.append(image["filename"])
            image = image.get("backing-image")
        return [path.rsplit("/", 1)[-1].removesuffix(".qcow2") for path in names]

    def header(self, name):
        """What an image says that its backing file is, and of which format."""
        out = self.test.run("qemu-img", "info", "-U", "--output=json", self.file(name)).stdout
        info = json.loads(out)
        return info.get("backing-filename"), info.get("backing-filename-format")


DONE = ["waiting", "pending", "BLOCK_JOB_COMPLETED", "concluded", "null"]
CANCELLED = ["aborting", "BLOCK_JOB_CANCELLED", "concluded", "null"]


def job_data(kind, length, speed=0):
    return {"type": kind, "device": "job", "len": length, "offset": length, "speed": speed}


@promise("a stream, and a commit of layers below the top, tell what QEMU's do")
def ends_by_itself(test):
    chain = Chain(test)
    chain.start("block-stream", device="n3", base_node="n2")
    assert chain.follow() == ["created", "running", *DONE]
    assert chain.data == job_data("stream", 0), chain.data  # there is nothing to do
    assert chain.names("n3") == ["n3", "n2", "n1", "n0"]
    chain.start("block-stream", device="n3", base_node="n1")
    assert chain.follow() == ["created", "running", *DONE]
    assert chain.data == job_data("stream", LENGTH), chain.data  # all of the disk counts
    assert chain.names("n3") == ["n3", "n1", "n0"]
    chain.start("block-commit", device="n3", top_node="n1")
    assert chain.follow() == ["created", "running", *DONE]
    assert chain.data == job_data("commit", LENGTH), chain.data
    assert chain.names("n3") == ["n3", "n0"]
    assert chain.node("n0")["ro"] and chain.header("n3") == (chain.file("n0"), "qcow2")
    chain.start("block-stream", device="n3")
    assert chain.follow() == ["created", "running", *DONE]
    assert chain.names("n3") == ["n3"] and chain.header("n3") == (None, None)


@promise("a commit of the top is ready, and is completed, left or cancelled as a mirror is")
def waits_to_be_completed(test):
    chain = Chain(test, as_disk=True)
    ready = ["created", "running", "ready", "BLOCK_JOB_READY"]
    for command, end in [
        ("block-job-cancel", DONE),
        ("job-cancel", CANCELLED),
        ("block-job-complete", DONE),
    ]:
        chain.start("block-commit", device="vda", base=chain.file("n1"))
        assert chain.follow("BLOCK_JOB_READY") == ready
        # What n2 and n3 hold; the last pieces may be on their way still.
        assert {**chain.data, "offset": 2 * MIB} == job_data("commit", 2 * MIB), chain.data
        assert 0 < chain.data["offset"] <= 2 * MIB, chain.data
        [job] = chain.qmp.command("query-block-jobs")
        assert job["ready"] and job["status"] == "ready" and "actively-synced" not in job, job
        chain.qmp.command(command, **{"_id" if command == "job-cancel" else "device": "job"})
        assert chain.follow() == end, command
        root = chain.qmp.command("query-block")[0]["inserted"]["image"]["filename"]
        assert root == chain.file("n1" if command == "block-job-complete" else "n3"), root
    assert not chain.qmp.command("query-block")[0]["inserted"]["ro"]


@promise("a commit that is ready and paused is completed when it is resumed")
def completes_when_resumed(test):
    chain = Chain(test)
    chain.start("block-commit", device="n3")
    chain.follow("BLOCK_JOB_READY")
    chain.qmp.command("job-pause", _id="job")
    assert chain.follow("standby") == ["standby"]
    chain.qmp.command("job-complete", _id="job")
    chain.qmp.command("job-resume", _id="job")
    assert chain.follow() == ["ready", *DONE]
    assert chain.names("n3") == ["n3", "n2", "n1", "n0"]  # there is no disk to be moved


@promise("with auto-finalize and auto-dismiss false nothing changes before job-finalize")
def waits_to_be_finalized(test):
    chain = Chain(test)
    by_hand = {"auto_finalize": False, "auto_dismiss": False}
    until_pending = ["created", "running", "waiting", "pending", "BLOCK_JOB_PENDING"]
    for start in [
        ("block-stream", {"device": "n3", "base_node": "n0"}),
        ("block-commit", {"device": "n3", "top_node": "n2", "base_node": "n1"}),
    ]:
        kind = start[0].removeprefix("block-")
        chain.start(start[0], **start[1], **by_hand)
        assert chain.follow("BLOCK_JOB_PENDING") == until_pending
        assert chain.data == {"type": kind, "id": "job"}, chain.data
        assert chain.names("n3") == ["n3", "n2", "n1", "n0"]
        chain.qmp.command("job-cancel", _id="job")
        assert chain.follow("concluded") == CANCELLED[:-1]
        [job] = chain.qmp.command("query-jobs")
        assert job["error"] == "Operation canceled" and job["type"] == kind, job
        chain.qmp.command("job-dismiss", _id="job")
        assert chain.follow() == ["null"]
        assert chain.names("n3") == ["n3", "n2", "n1", "n0"]
    chain.start("block-stream", device="n3", base_node="n0", **by_hand)
    chain.follow("BLOCK_JOB_PENDING")
    chain.qmp.command("job-finalize", _id="job")
    assert chain.follow("concluded") == DONE[2:-1]
    assert chain.names("n3") == ["n3", "n0"]


@promise("a stream that goes on can be looked at, paused and cancelled, and keeps its nodes")
def is_looked_at(test):
    chain = Chain(test)
    chain.start("block-stream", device="n3", speed=1)
    assert chain.follow("running") == ["created", "running"]
    [job] = wait_until(lambda: [j for j in chain.qmp.command("query-block-jobs") if j["len"]],
                       "the job knows how much there is")  # fmt: skip
    assert type(job.pop("busy")) is bool and 0 <= job.pop("offset") < LENGTH, job
    assert set(job.pop("guest-waits")) == {"requests", "longest-ns", "p99-ns"}
    assert job == {
        "type": "stream", "device": "job", "len": LENGTH, "speed": 1, "paused": False,
        "ready": False, "status": "running", "io-status": "ok", "auto-finalize": True,
        "auto-dismiss": True,
    }, job  # fmt: skip
    chain.refuse("block-job-complete", "Job 'job' in state 'running' cannot accept command verb "
                 "'complete'", device="job")  # fmt: skip
    for name in ("n3", "n1"):
        chain.qmp.events.clear()
        chain.refuse("block-commit", f"Node '{name}' is busy: block job 'job' and block job 'late' "
                     "exclude each other by changing the graph at it", job_id="late", device="n3",
                     top_node=name)  # fmt: skip
        told = [event["data"]["status"] for event in chain.qmp.events]
        assert told == ["created", "null"], told
    chain.qmp.events.clear()
    chain.qmp.command("block-job-pause", device="job")
    assert chain.follow("paused") == ["paused"]
    chain.refuse("block-job-cancel", "The block job for device 'job' is currently paused",
                 device="job")  # fmt: skip
    chain.qmp.command("job-cancel", _id="job")
    assert chain.follow() == ["running", *CANCELLED]
    assert chain.names("n3") == ["n3", "n2", "n1", "n0"]


@promise("what a stream refuses it refuses in QEMU's words")
def refuses_streams(test):
    chain = Chain(test)
    same_time = "'{}' and '{}' cannot be specified at the same time"
    for text, arguments in [
        (same_time.format("base", "base-node"), {"base": "x", "base_node": "n0"}),
        (same_time.format("base", "bottom"), {"base": "x", "bottom": "n0"}),
        (same_time.format("bottom", "base-node"), {"bottom": "n1", "base_node": "n0"}),
        ("Node 'other' is not a backing image of 'n3'", {"base_node": "other"}),
        ("Node 'n3' is not a backing image of 'n3'", {"base_node": "n3"}),
        ("Cannot find device='' nor node-name='none'", {"base_node": "none"}),
        ("Can't find 'none' in the backing chain", {"base": "none"}),
        ("Node 'other' is not in a chain starting from 'n3'", {"bottom": "other"}),
        ("backing file specified, but streaming the entire chain", {"backing_file": "x"}),
        ("Parameter 'speed' expects a non-negative value", {"speed": -1}),
        ("Parameter 'on-error' does not accept value 'x'", {"on_error": "x"}),
        ("Parameter 'top' is unexpected", {"top": "x"}),
        ("Could not create node: Duplicate nodes with node-name='n0'", {"filter_node_name": "n0"}),
    ]:
        chain.refuse("block-stream", text, job_id="job", device="n3", **arguments)
    chain.refuse("block-stream", "Cannot find device='none' nor node-name='none'", device="none")
    chain.refuse("block-stream", "Invalid job ID 'a!'", device="n3", job_id="a!")
    chain.qmp.command("blockdev-add", driver="copy-on-read", node_name="filter", file="n3")
    chain.refuse("block-stream", "Node 'filter' is a filter, use a non-filter node as 'bottom'",
                 device="n3", bottom="filter")  # fmt: skip
    assert chain.names("n3") == ["n3", "n2", "n1", "n0"]


@promise("what a commit refuses it refuses in QEMU's words")
def refuses_commits(test):
    chain = Chain(test)
    active = "'backing-file' specified, but 'top' is the active layer"
    for text, arguments in [
        ("'top-node' and 'top' are mutually exclusive", {"top_node": "n1", "top": "x"}),
        ("'base-node' and 'base' are mutually exclusive", {"base_node": "n1", "base": "x"}),
        ("'other' is not in this backing file chain", {"top_node": "other"}),
        ("'other' is not in this backing file chain", {"base_node": "other"}),
        ("'n2' is not in this backing file chain", {"top_node": "n1", "base_node": "n2"}),
        ("Top image file none not found", {"top": "none"}),
        ("Can't find 'none' in the backing chain", {"base": "none"}),
        ("cannot commit an image into itself", {"top_node": "n1", "base_node": "n1"}),
        ("cannot commit an image into itself", {"base_node": "n3"}),
        ("cannot commit an image into itself", {"top_node": "n0"}),
        (active, {"backing_file": "x"}),
        (active, {"backing_file": "x", "top_node": "n3"}),
        ("Duplicate nodes with node-name='n0'", {"filter_node_name": "n0"}),
        ("Duplicate nodes with node-name='n0'", {"filter_node_name": "n0", "top_node": "n2"}),
        ("Parameter 'speed' expects a non-negative value", {"speed": -1}),
    ]:
        chain.refuse("block-commit", text, job_id="job", device="n3", **arguments)
    for arguments in ({}, {"top_node": "n1"}, {"top": chain.file("n1")}):
        chain.refuse("block-commit", "Need a root block node", device="n2", **arguments)
    chain.refuse("block-commit", "Device 'none' not found", kind="DeviceNotFound", device="none")
    assert chain.names("n3") == ["n3", "n2", "n1", "n0"]


@promise("images say what backing-file says, or the base's name, and its driver or raw")
def names_backing_files(test):
    chain = Chain(test)
    chain.start("block-stream", device="n3", base_node="n1", backing_file="./n1.qcow2")
    chain.follow()
    assert chain.header("n3") == ("./n1.qcow2", "qcow2")
    chain.qmp.command("change-backing-file", device="n3", image_node_name="n3", backing_file="x/y")
    assert chain.header("n3") == ("x/y", "qcow2")
    chain.refuse("change-backing-file", "not allowing backing file change on an image without a "
                 "backing file", device="n3", image_node_name="n0", backing_file="x")  # fmt: skip
    chain.refuse("change-backing-file", "'n3' and image file are not in the same chain",
                 device="n3", image_node_name="other", backing_file="x")  # fmt: skip
    chain.refuse("change-backing-file", "Cannot find device='' nor node-name='none'",
                 device="n3", image_node_name="none", backing_file="x")  # fmt: skip
    # A base that is a file without a format.
    path = str(test.make_disk("plain.img", LENGTH))
    chain.qmp.command("blockdev-add", driver="file", node_name="plain", filename=path)
    chain.qmp.command("blockdev-snapshot", node="plain", overlay="spare")
    chain.qmp.command("blockdev-snapshot", node="spare", overlay="other")
    assert chain.header("spare") == (None, None)  # as it was
    for mask, name in (({}, "file"), ({"backing_mask_protocol": True}, "raw")):
        chain.start("block-stream", device="other", base_node="plain", **mask)
        chain.follow()
        assert chain.header("other") == (path, name), (mask, chain.header("other"))
        chain.test.run("qemu-img", "info", "-U", "--backing-chain", chain.file("other"))
        chain.test.liveblk("info", "--force-share", "--backing-chain", chain.file("other"))


@promise("an overlay is put above what it fits on, and what it is put above is read-only then")
def takes_snapshots(test):
    chain = Chain(test)
    for node, overlay, text in [
        ("none", "spare", "Cannot find device='none' nor node-name='none'"),
        ("n3", "none", "Cannot find device='none' nor node-name='none'"),
        ("n3", "n2", "The overlay already has a backing image"),
        ("n2", "spare", "Node 'n2' is busy: node is used as backing hd of 'n3'"),
    ]:
        chain.refuse("blockdev-snapshot", text, node=node, overlay=overlay)
    chain.qmp.command("blockdev-add", driver="copy-on-read", node_name="filter", file="other")
    chain.refuse("blockdev-snapshot", "Filters cannot be used as overlays", node="n3",
                 overlay="filter")  # fmt: skip
    chain.qmp.command("blockdev-del", node_name="filter")
    path = str(test.make_disk("plain.img", LENGTH))
    chain.qmp.command("blockdev-add", driver="file", node_name="plain", filename=path)
    chain.refuse("blockdev-snapshot", "The overlay does not support backing images", node="n3",
                 overlay="plain")  # fmt: skip
    action = {"type": "blockdev-snapshot", "data": {"node": "n3", "overlay": "spare"}}
    abort = {"type": "abort", "data": {}}
    chain.refuse("transaction", "Transaction aborted using Abort action", actions=[action, abort])
    chain.refuse("transaction", "Action 'blockdev-snapshot' does not support transaction property "
                 "completion-mode = grouped", actions=[action],
                 properties={"completion-mode": "grouped"})  # fmt: skip
    chain.refuse("transaction", "Parameter 'type' does not accept value 'block-stream'",
                 actions=[{"type": "block-stream", "data": {"device": "n3"}}])  # fmt: skip
    assert chain.names("spare") == ["spare"] and not chain.node("n3")["ro"]
    chain.qmp.command("blockdev-snapshot", node="n3", overlay="spare")
    assert chain.names("spare") == ["spare", "n3", "n2", "n1", "n0"] and chain.node("n3")["ro"]
    assert chain.header("spare") == (None, None)
    chain.refuse("blockdev-snapshot", "Node 'n3' is busy: node is used as backing hd of 'spare'",
                 node="n3", overlay="other")  # fmt: skip


@promise("an overlay is made, and names what it lies above; one that is there is left as it is")
def makes_overlays(test):
    chain = Chain(test, as_disk=True)
    new = chain.file("new")
    for text, arguments in [
        ("New overlay node-name missing", {"node_name": "n3"}),
        ("New overlay node-name already in use", {"node_name": "n3", "snapshot_node_name": "n3"}),
        ("Cannot find device='' nor node-name='vda'",
         {"node_name": "vda", "snapshot_node_name": "new"}),
        (f"Could not open '{new}': No such file or directory", {"device": "vda", "mode": "existing"}),
        ("Parameter 'mode' does not accept value 'x'", {"device": "vda", "mode": "x"}),
    ]:  # fmt: skip
        chain.refuse("blockdev-snapshot-sync", text, snapshot_file=new, **arguments)
        assert not test.path("new.qcow2").exists()
    chain.qmp.command("blockdev-snapshot-sync", node_name="n3", snapshot_file=new,
                      snapshot_node_name="new")  # fmt: skip
    assert chain.header("new") == (chain.file("n3"), "qcow2")
    chain.create("there")
    chain.qmp.command("blockdev-snapshot-sync", device="vda", snapshot_file=chain.file("there"),
                      mode="existing")  # fmt: skip
    assert chain.header("there") == (None, None)
    inserted = chain.qmp.command("query-block")[0]["inserted"]
    assert inserted["file"] == chain.file("there") and inserted["backing_file"] == new, inserted
    assert inserted["backing_file_depth"] == 5, inserted


@promise("the schema tells the arguments, and which are optional")
def is_in_the_schema(test):
    chain = Chain(test)
    schema = {entry["name"]: entry for entry in chain.qmp.command("query-qmp-schema")}
    common = (
        "job-id? backing-file? backing-mask-protocol? speed? guest-latency? auto-finalize? "
        "auto-dismiss? "
    )
    for command, wanted in {
        "block-stream": common
        + "device base? base-node? bottom? on-error? filter-node-name?",
        "block-commit": common + "device top-node? top? base-node? base? on-error? filter-node-name?",
        "change-backing-file": "device image-node-name backing-file",
        "blockdev-snapshot": "node overlay",
        "blockdev-snapshot-sync":
            "device? node-name? snapshot-file snapshot-node-name? format? mode?",
        "blockdev-reopen": "options",
    }.items():
        members = schema[schema[command]["arg-type"]]["members"]
        names = {member["name"] + "?" * ("default" in member) for member in members}
        assert names == set(wanted.split()), (command, names)


@promise("what no file name says is not recorded as a backing file: a part of a file, a snapshot in it")
def names_what_is_shown(test):
    server = Server(test, [test.make_disk("disk.img", MIB)])
    qmp = server.qmp()
    part = test.make_disk("part.img", 4 * MIB)
    top, overlay = str(test.path("top.qcow2")), test.path("overlay.qcow2")
    test.run("qemu-img", "create", "-q", "-f", "qcow2", top, 2 * MIB)
    snapshot = str(test.path("snapshot.qcow2"))
    test.run("qemu-img", "create", "-q", "-f", "qcow2", snapshot, 2 * MIB)
    test.run("qemu-img", "snapshot", "-c", "then", snapshot)
    add = "blockdev-add"
    qmp.command(add, driver="raw", node_name="part", offset=MIB, size=2 * MIB, read_only=True,
                file={"driver": "file", "filename": str(part)})  # fmt: skip
    qmp.command(add, driver="qcow2", node_name="then", snapshot="then", read_only=True,
                file={"driver": "file", "filename": snapshot})  # fmt: skip
    for base in ("part", "then"):
        refusal = f"Node '{base}' cannot be named as a backing file: no file name says what it shows"
        try:
            qmp.command("blockdev-snapshot-sync", node_name=base, snapshot_file=str(overlay),
                        snapshot_node_name="overlay")  # fmt: skip
            raise AssertionError(f"an overlay names {base}")
        except QmpError as error:
            assert refusal in str(error), error
        assert not overlay.exists()
        # A stream whose base it is is refused, unless it is told what to say.
        qmp.command(add, driver="qcow2", node_name="top", backing=base,
                    file={"driver": "file", "filename": top})  # fmt: skip
        stream = {"job_id": "job", "device": "top", "base_node": base}
        try:
            qmp.command("block-stream", **stream)
            raise AssertionError(f"an image names {base}")
        except QmpError as error:
            assert refusal in str(error), error
        qmp.command("block-stream", backing_file="said.img", **stream)
        event = qmp.wait_event("BLOCK_JOB_COMPLETED", device="job")["data"]
        assert "error" not in event, event
        qmp.wait_job("job", "null")
        qmp.command("blockdev-del", node_name="top")


if __name__ == "__main__":
    main()
