#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Backup sessions: checkpoints and views of several disks, begun, committed, abandoned, expired."""

import json
import os
import re
import stat
import threading
import time

import nbd

from liveblk_test import (
    LIVEBLK, ROOT, QmpError, Server, connect, expect_error, main, promise, wait_until,
)  # fmt: skip
from liveblk_tracking import GRANULE, KIB, MIB, Load, ServedDisks, noise, read

LENGTH = 8 * MIB
BASE = "base:allocation"


class Disks(ServedDisks):
    """Tracked disks of a server, and for each a copy that its sessions bring up to date."""

    def __init__(self, test, *kinds, untracked=()):
        self.test = test
        self.names = [f"vd{chr(ord('a') + i)}" for i in range(len(kinds))]
        self.kinds = dict(zip(self.names, kinds, strict=True))
        self.paths = {name: test.path(f"{name}.{kind}") for name, kind in self.kinds.items()}
        self.untracked = set(untracked)
        self.copies = {name: bytearray() for name in self.names}
        self.since = {}
        for name, kind in self.kinds.items():
            test.run("qemu-img", "create", "-q", "-f", kind, self.paths[name], LENGTH)
        self.start()

    def start(self):
        specs = [
            f"name={name},file={self.paths[name]},format={kind},discard=unmap"
            + ("" if name in self.untracked else ",tracking=auto")
            for name, kind in self.kinds.items()
        ]
        self.serve(specs, "sessions")

    def kill(self):
        super().kill()
        self.start()

    def restart(self):
        self.stop()
        self.start()

    def write(self, name, at, size=4 * KIB):
        for offset in range(at, at + size, MIB):
            part = min(MIB, at + size - offset)
            self.guests[name].pwrite(noise(self.test.random, part), offset)

    def begin(self, name, **arguments):
        return self.qmp.command("checkpoint-begin", name=name, **arguments)

    def commit(self, name):
        return self.qmp.command("checkpoint-commit", name=name)

    def abandon(self, name):
        self.qmp.command("checkpoint-abandon", name=name)

    def checkpoints(self):
        """Name -> the devices that have it and can say what changed."""
        return {
            entry["name"]: {device["device"] for device in entry["devices"]
                            if not device["broken"]}
            for entry in self.qmp.command("query-checkpoints")
        }  # fmt: skip

    def assert_no_session(self, *committed):
        assert set(self.checkpoints()) == set(committed), self.checkpoints()
        assert self.qmp.command("query-views") == []
        for entry in self.qmp.command("query-block-tracking"):
            is_lost = entry["state"] == "lost"
            assert is_lost or not any(found["pending"] for found in entry["checkpoints"]), entry
        assert all("~" not in name and "@" not in name for name in self.exports())

    def exports(self):
        handle = nbd.NBD()
        handle.set_opt_mode(True)
        handle.connect_uri(self.server.uri())
        names = []
        handle.opt_list(lambda name, description: names.append(name))
        handle.opt_abort()
        return names

    def descriptors(self):
        pid = int((self.server.pid_file).read_text())
        return len(os.listdir(f"/proc/{pid}/fd"))


def ask_changes(qmp, session, device, limit=1000):
    """(offset, length, state), by as many questions as it takes."""
    ranges, offset = [], 0
    while offset is not None:
        answer = qmp.command("query-changes", name=session, device=device, offset=offset,
                             limit=limit)  # fmt: skip
        assert len(answer["ranges"]) <= limit
        ranges += [(found["offset"], found["length"], found["state"]) for found in answer["ranges"]]
        offset = answer.get("next")
    return ranges


def ask_export(disks, entry):
    """The same, by the block status of the companion export; with the handle."""
    handle = nbd.NBD()
    handle.add_meta_context(BASE)
    handle.connect_uri(disks.server.uri(entry["changes-export"]))
    states = {0: "data", nbd.STATE_HOLE: None, nbd.STATE_ZERO: "zero"}
    ranges, at = [], 0

    def note(context, offset, entries, error):
        nonlocal at
        for size, flags in zip(entries[::2], entries[1::2], strict=True):
            ranges.append((at, min(size, LENGTH * 4), states[flags]))
            at += size

    while at < handle.get_size():
        handle.block_status(handle.get_size() - at, at, note)
    return [found for found in merged(ranges) if found[2]], handle


def merged(ranges):
    result = []
    for at, size, state in ranges:
        if result and result[-1][2] == state and result[-1][0] + result[-1][1] == at:
            result[-1] = (result[-1][0], result[-1][1] + size, state)
        else:
            result.append((at, size, state))
    return result


def move(disks, session, entry):
    """Bring the copy of a device up to date, as a backup program would."""
    name = entry["device"]
    ranges, handle = ask_export(disks, entry)
    asked = ask_changes(disks.qmp, session, name, limit=disks.test.random.choice([1, 3, 1000]))
    # Of a full one what reads as zeroes is what the storage says, which may change meanwhile.
    assert merged(asked) == ranges or entry["mode"] == "full", f"QMP: {asked}, NBD: {ranges}"
    sums = {"data": 0, "zero": 0}
    copy = disks.copies[name]
    length = handle.get_size()
    copy[length:] = b""
    copy += bytes(length - len(copy))
    for at, size, state in ranges:
        sums[state] += size
        copy[at : at + size] = handle.pread(size, at) if state == "data" else bytes(size)
    if entry["mode"] == "incremental":
        assert (sums["data"], sums["zero"]) == (entry["data-bytes"], entry["zero-bytes"]), entry
    else:  # what is zero is what the storage says, and the view's may say it otherwise later
        assert sum(sums.values()) == entry["data-bytes"] + entry["zero-bytes"] == length, entry
    view = connect(disks.server.uri(entry["export"]))
    assert copy == read(view), f"{name}: the copy is not what the disk held ({entry})"
    view.shutdown()
    handle.shutdown()
    return entry["data-bytes"]


@promise("full, then what changed: sessions of two disks make copies equal the disks at their instants")
def chains(test):
    disks = Disks(test, "raw", "qcow2")
    for name in disks.names:
        disks.write(name, MIB, MIB)
    for number in range(6):
        session = disks.begin(f"s{number}", **({"since": f"s{number - 1}"} if number else {}))
        assert [entry["device"] for entry in session["devices"]] == disks.names
        for entry in session["devices"]:
            assert entry["mode"] == ("incremental" if number else "full"), entry
            assert entry.get("reason") == (None if number else "no-parent"), entry
            held = read(disks.guests[entry["device"]])
            # What guests do after the instant makes no difference.
            disks.write(entry["device"], test.random.randrange(LENGTH // GRANULE) * GRANULE)
            moved = move(disks, f"s{number}", entry)
            assert disks.copies[entry["device"]] == held
            assert not number or moved < 2 * MIB, entry
        assert session["held-ns"] > 0
        results = disks.commit(f"s{number}")
        assert all(result["committed"] for result in results) and len(results) == 2, results
        for name in disks.names:
            at = test.random.randrange(LENGTH // MIB) * MIB
            disks.write(name, at + 3 * GRANULE, 2 * GRANULE)
            disks.guests[name].trim(MIB, test.random.randrange(LENGTH // MIB) * MIB)
            disks.guests[name].zero(GRANULE, test.random.randrange(LENGTH // GRANULE) * GRANULE)
    disks.assert_no_session(*(f"s{number}" for number in range(6)))
    for number in range(6):
        disks.qmp.command("checkpoint-delete", name=f"s{number}")
        disks.qmp.command("checkpoint-delete", name=f"s{number}")
    disks.assert_no_session()
    disks.stop()


@promise("the whole disk trimmed: the next session moves no data, and the copy is zeroes")
def trimmed(test):
    disks = Disks(test, "raw", "qcow2")
    for name in disks.names:
        disks.write(name, 0, LENGTH)
    for entry in disks.begin("one")["devices"]:
        move(disks, "one", entry)
    disks.commit("one")
    for name in disks.names:
        disks.guests[name].trim(LENGTH, 0)
    for entry in disks.begin("two", since="one")["devices"]:
        assert entry["data-bytes"] == 0 and entry["zero-bytes"] == LENGTH, entry
        move(disks, "two", entry)
        assert disks.copies[entry["device"]] == bytes(LENGTH)
    disks.commit("two")
    disks.stop()


@promise("the name of an open session is answered with it; ends said twice are no errors")
def idempotent(test):
    disks = Disks(test, "raw")
    before = disks.descriptors()
    disks.abandon("never")
    expect_error("There is no session 'never'", disks.qmp, "checkpoint-commit", name="never")
    session = disks.begin("one")
    assert not session["was-open"]
    again = disks.begin("one", since="nothing")
    assert again.pop("was-open") and again == {k: v for k, v in session.items() if k != "was-open"}
    expect_error("open session", disks.qmp, "checkpoint-delete", name="one")
    disks.abandon("one")
    disks.abandon("one")
    disks.assert_no_session()
    disks.begin("one")
    assert disks.commit("one") == disks.commit("one") == [{"device": "vda", "committed": True}]
    expect_error("was committed", disks.qmp, "checkpoint-abandon", name="one")
    expect_error("has a checkpoint 'one' already", disks.qmp, "checkpoint-begin", name="one")
    disks.assert_no_session("one")
    for _ in range(5):
        disks.begin("two", since="one")
        disks.abandon("two")
    wait_until(lambda: disks.descriptors() <= before, "descriptors are closed")
    disks.stop()


@promise("a session that was open when its server was killed or ended leaves nothing, a committed one stays")
def ends(test):
    disks = Disks(test, "raw", "qcow2")
    disks.begin("kept")
    for entry in disks.begin("kept")["devices"]:
        move(disks, "kept", entry)
    disks.commit("kept")
    for end in (disks.kill, disks.restart):
        disks.write("vda", 2 * MIB)
        disks.begin("open", since="kept")
        disks.write("vdb", 3 * MIB)
        end()
        disks.assert_no_session("kept")
        assert len(disks.commit("kept")) == 2
        expect_error("There is no session 'open'", disks.qmp, "checkpoint-commit", name="open")
        session = disks.begin("next", since="kept")
        for entry in session["devices"]:
            assert entry["mode"] == "incremental" and entry["data-bytes"] <= 2 * GRANULE, entry
            copy = disks.copies[entry["device"]]
            before = bytes(copy)
            move(disks, "next", entry)
            copy[:] = before  # it is abandoned, and the one before is what counts
        disks.abandon("next")
    disks.stop()


@promise("a session whose lease ends is abandoned, and said again it begins anew")
def leases(test):
    disks = Disks(test, "raw")
    session = disks.begin("short", lease=1)
    assert 0 < session["lease-left"] <= 1
    event = disks.qmp.wait_event("CHECKPOINT_EXPIRED")
    assert event["data"] == {"name": "short"}
    wait_until(lambda: not disks.checkpoints(), "it is abandoned")
    disks.assert_no_session()
    disks.begin("long", lease=1000)
    time.sleep(0.01)
    assert disks.begin("long")["lease-left"] > 999.99
    disks.abandon("long")
    for lease in (-1, 1 << 40):
        expect_error("'lease' expects", disks.qmp, "checkpoint-begin", name="x", lease=lease)
    disks.stop()


@promise("a device that cannot say what changed is a full one, with the reason; the others are not")
def reasons(test):
    disks = Disks(test, "raw", "raw", "raw", untracked=["vdc"])

    def modes(name, **arguments):
        session = disks.begin(name, **arguments)
        return [entry.get("reason") for entry in session["devices"]]

    assert modes("none", devices=[{"device": "vdc"}]) == ["not-tracked"]
    assert disks.commit("none") == []
    expect_error("There is no session 'none'", disks.qmp, "checkpoint-commit", name="none")
    assert modes("a") == ["no-parent", "no-parent", "not-tracked"]
    assert [result["device"] for result in disks.commit("a")] == ["vda", "vdb"]
    assert modes("b", since="a") == [None, None, "not-tracked"]
    disks.abandon("b")
    assert modes("b", since="unknown") == ["no-parent", "no-parent", "not-tracked"]
    disks.abandon("b")
    devices = [{"device": "vdb", "since": "a"}, {"device": "vda"}]
    assert modes("b", devices=devices) == [None, "no-parent"]
    disks.abandon("b")

    disks.qmp.command("block-tracking-stop", device="vdb")
    disks.qmp.command("block-tracking-start", device="vdb")
    assert modes("b", since="a") == [None, "new-device", "not-tracked"]
    disks.commit("b")
    disks.qmp.command("checkpoint-delete", name="b")

    disks.stop()
    with open(disks.paths["vda"], "r+b") as file:
        file.write(b"somebody else")
    os.truncate(disks.paths["vdb"], LENGTH - MIB)
    disks.start()
    assert modes("c", since="a") == ["identity-changed", "resized", "not-tracked"]
    disks.abandon("c")

    disks.begin("d")
    disks.commit("d")
    os.truncate(f"{disks.paths['vda']}.tracking", 0)
    disks.write("vda", MIB)
    event = disks.qmp.wait_event("BLOCK_TRACKING_LOST")
    assert event["data"]["device"] == "vda", event
    assert modes("e", since="d") == ["tracking-lost", None, "not-tracked"]
    results = {result["device"]: result["committed"] for result in disks.commit("e")}
    assert results == {"vdb": True}, results
    disks.stop()


@promise("a session that breaks says so, and what can be kept of it is")
def broken(test):
    disks = Disks(test, "raw", "raw")
    for name in disks.names:
        disks.write(name, 0, LENGTH)
    disks.begin("one")
    os.truncate(f"{disks.paths['vdb']}.tracking", 0)
    disks.write("vdb", MIB)
    event = disks.qmp.wait_event("CHECKPOINT_BROKEN")
    assert (event["data"]["name"], event["data"]["device"]) == ("one", "vdb"), event
    (entry,) = (entry for entry in disks.qmp.command("query-checkpoints")
                if entry["name"] == "one")  # fmt: skip
    assert entry["state"] == "open" and "vdb" in entry["session"]["broken"], entry
    results = {result["device"]: result["committed"] for result in disks.commit("one")}
    assert results == {"vda": True, "vdb": False}, results
    disks.begin("two", scratch_max=64 * KIB, devices=[{"device": "vda"}])
    disks.write("vda", 0, LENGTH)
    event = disks.qmp.wait_event("CHECKPOINT_BROKEN")
    assert event["data"]["reason"] == "view-broken", event
    disks.abandon("two")
    disks.assert_no_session("one")
    disks.stop()


def make_program(test, name, text):
    path = test.path(name)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@promise("hooks run around the cut, in any case the one after it, and none for longer than it may")
def hooks(test):
    disks = Disks(test, "raw", "raw")
    said = test.path("said")
    note = f'echo "$1 $LIVEBLK_CUT $LIVEBLK_CHECKPOINT $LIVEBLK_DEVICES" >> {said}'
    good = make_program(test, "good", note)
    bad = make_program(test, "bad", note + "; exit 7")
    slow = make_program(test, "slow", note + "; sleep 1000 & sleep 1000")

    def spoken():
        lines = said.read_text().splitlines() if said.exists() else []
        said.unlink(missing_ok=True)
        return lines

    session = disks.begin("one", before_cut=[good, "freeze"], after_cut=[good, "thaw"])
    assert spoken() == ["freeze before one vda,vdb", "thaw after one vda,vdb"]
    assert "hook-error" not in session
    disks.abandon("one")

    expect_error("exit status 7", disks.qmp, "checkpoint-begin", name="one",
                 before_cut=[bad, "freeze"], after_cut=[good, "thaw"])  # fmt: skip
    assert spoken() == ["freeze before one vda,vdb", "thaw after one vda,vdb"]
    expect_error("did not end within 200 ms", disks.qmp, "checkpoint-begin", name="one",
                 before_cut=[slow, "freeze"], after_cut=[good, "thaw"], hook_timeout=200)  # fmt: skip
    assert spoken() == ["freeze before one vda,vdb", "thaw after one vda,vdb"]
    expect_error("could not be started", disks.qmp, "checkpoint-begin", name="one",
                 before_cut=["/nonexistent/program"], after_cut=[good, "thaw"])  # fmt: skip
    assert spoken() == ["thaw after one vda,vdb"]
    disks.assert_no_session()

    session = disks.begin("one", before_cut=[good, "freeze"], after_cut=[slow, "thaw"],
                          hook_timeout=200)  # fmt: skip
    assert "did not end within 200 ms" in session["hook-error"], session
    assert spoken() == ["freeze before one vda,vdb", "thaw after one vda,vdb"]
    disks.abandon("one")

    # What can be refused before is, and nobody is frozen for it.
    expect_error("scratch", disks.qmp, "checkpoint-begin", name="one", scratch="/nonexistent",
                 before_cut=[good, "freeze"], after_cut=[good, "thaw"])  # fmt: skip
    assert spoken() == []
    for name, value in (("before-cut", []), ("after-cut", []), ("hook-timeout", 0)):
        expect_error(f"'{name}' expects", disks.qmp, "checkpoint-begin", name="one", **{name: value})
    disks.assert_no_session()
    disks.stop()


def in_thread(test, server, command, **arguments):
    """Say it by another connection: (thread, the list that gets the answer or error)."""
    qmp, answers = server.qmp(), []

    def run():
        try:
            answers.append(qmp.command(command, **arguments))
        except QmpError as error:
            answers.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, answers


@promise("of those who begin one name at the same time one does, and the others find it or try again; "
         "nobody else gets at its checkpoint or view")  # fmt: skip
def same_name(test):
    disks = Disks(test, "raw", "raw")
    gate = test.path("gate")
    os.mkfifo(gate)
    wait = ["cat", str(gate)]  # until somebody has written there
    first, begun = in_thread(test, disks.server, "checkpoint-begin", name="one",
                             after_cut=wait, hook_timeout=60000)  # fmt: skip
    with open(gate, "w") as file:  # the cut was made, and the session is not open yet
        assert disks.checkpoints() == {"one": {"vda", "vdb"}}
        states = [entry["state"] for entry in disks.qmp.command("query-checkpoints")]
        assert states == ["open"], states
        for command in ("checkpoint-begin", "checkpoint-commit", "checkpoint-abandon"):
            expect_error("try again", disks.qmp, command, name="one")
        expect_error("open session", disks.qmp, "checkpoint-delete", name="one")
        expect_error("open session", disks.qmp, "block-checkpoint-remove", device="vda", name="one")
        expect_error("already exists", disks.qmp, "block-checkpoint-add", device="vda", name="one")
        file.write("on\n")
    first.join(60)
    assert not begun[0]["was-open"], begun
    several = [in_thread(test, disks.server, "checkpoint-begin", name="two") for _ in range(6)]
    for thread, _ in several:
        thread.join(60)
    answers = [answers[0] for _, answers in several]
    sessions = [answer for answer in answers if isinstance(answer, dict)]
    assert sum(not session["was-open"] for session in sessions) == 1, answers
    assert all("try again" in str(answer) for answer in answers if isinstance(answer, QmpError))
    for name in ("one", "two"):
        expect_error("open session", disks.qmp, "view-drop", name=name, force=True)
        expect_error("exists already", disks.qmp, "view-create", name=name)
        expect_error("open session", disks.qmp, "block-checkpoint-remove", device="vda", name=name)
    ends = [in_thread(test, disks.server, f"checkpoint-{end}", name=name)
            for name in ("one", "two") for end in ("commit", "abandon", "commit")]  # fmt: skip
    for thread, _ in ends:
        thread.join(60)
    for name in ("one", "two"):
        is_kept = name in disks.checkpoints()
        results = [answers[0] for _, answers in ends[:3] if name == "one"] or [
            answers[0] for _, answers in ends[3:]
        ]
        for result in (results[0], results[2]):
            assert is_kept or not isinstance(result, list), f"{name} was committed and is not kept"
        if is_kept:
            assert len(disks.commit(name)) == 2
            disks.qmp.command("checkpoint-delete", name=name)
    disks.assert_no_session()
    disks.stop()


@promise("a map or view that is lost while a session is just being begun is told when it is open")
def broken_early(test):
    disks = Disks(test, "raw", "raw")
    for name in disks.names:
        disks.write(name, 0, LENGTH)
    gate = test.path("gate")
    os.mkfifo(gate)
    wait = ["cat", str(gate)]  # until somebody has written there
    for reason, device in (("view-broken", "vda"), ("tracking-lost", "vdb")):
        first, begun = in_thread(test, disks.server, "checkpoint-begin", name="one",
                                 after_cut=wait, scratch_max=64 * KIB, hook_timeout=60000)  # fmt: skip
        with open(gate, "w") as file:
            if reason == "view-broken":
                disks.write(device, 0, LENGTH)
                disks.qmp.wait_event("VIEW_BROKEN")
            else:
                os.truncate(f"{disks.paths[device]}.tracking", 0)
                disks.write(device, MIB)
                disks.qmp.wait_event("BLOCK_TRACKING_LOST")
            file.write("on\n")
        first.join(60)
        assert f"Device '{device}'" in begun[0]["broken"], begun
        event = disks.qmp.wait_event("CHECKPOINT_BROKEN", name="one")
        assert (event["data"]["reason"], event["data"]["device"]) == (reason, device), event
        disks.abandon("one")
        disks.qmp.events.clear()
    disks.assert_no_session()
    disks.stop()


@promise("what is done to a disk of an open session keeps its promises: resized it cannot be, moved, "
         "untracked and tracked anew it may, and what is not known any more is not said")  # fmt: skip
def disturbed(test):
    disks = Disks(test, "raw", "raw")
    disks.write("vda", MIB, MIB)
    for entry in disks.begin("zero")["devices"]:
        move(disks, "zero", entry)
    disks.commit("zero")
    disks.write("vda", 2 * MIB)
    session = disks.begin("one", since="zero")
    expect_error("view", disks.qmp, "block_resize", device="vda", size=2 * LENGTH)
    overlay = test.path("overlay.qcow2")
    disks.qmp.command("blockdev-snapshot-sync", device="vda", snapshot_file=str(overlay),
                      format="qcow2")  # fmt: skip
    disks.write("vda", 5 * MIB)
    for entry in session["devices"]:
        move(disks, "one", entry)
    disks.commit("one")
    session = disks.begin("two", since="one")
    assert session["devices"][0]["mode"] == "incremental", session
    target = test.make_disk("target.img", LENGTH)
    disks.qmp.command("drive-mirror", job_id="m", device="vda", target=str(target), format="raw",
                      sync="full", mode="existing")  # fmt: skip
    disks.qmp.wait_event("BLOCK_JOB_READY", device="m")
    disks.qmp.command("job-complete", _id="m")
    disks.qmp.wait_event("BLOCK_JOB_COMPLETED", device="m")
    disks.write("vda", 6 * MIB)
    for entry in session["devices"]:
        move(disks, "two", entry)
    disks.commit("two")
    session = disks.begin("three", since="two")
    for entry in session["devices"]:
        assert entry["mode"] == "incremental" and entry["data-bytes"] <= GRANULE, entry
        move(disks, "three", entry)
    disks.qmp.command("block-tracking-stop", device="vdb")
    disks.qmp.command("block-tracking-start", device="vdb")
    disks.qmp.command("block-checkpoint-add", device="vdb", name="three")
    disks.write("vdb", 3 * MIB)
    (entry,) = (entry for entry in disks.qmp.command("query-checkpoints")
                if entry["name"] == "three")  # fmt: skip
    assert "vdb" in entry["session"]["broken"], entry
    results = {result["device"]: result["committed"] for result in disks.commit("three")}
    assert results == {"vda": True, "vdb": False}, results
    disks.qmp.command("checkpoint-delete", name="three")
    for name in ("zero", "one", "two"):
        disks.qmp.command("checkpoint-delete", name=name)
    disks.assert_no_session()
    disks.stop()


@promise("a commit that fails for all disks leaves the session as it was, with its lease")
def lease_after_refusal(test):
    disks = Disks(test, "raw")
    disks.begin("one", lease=3)
    os.truncate(f"{disks.paths['vda']}.tracking", 0)
    disks.write("vda", MIB)
    disks.qmp.wait_event("BLOCK_TRACKING_LOST")
    text = "ession 'one'"  # it cannot be; on a busy machine: there is none any more
    expect_error(text, disks.qmp, "checkpoint-commit", name="one")
    disks.qmp.wait_event("CHECKPOINT_EXPIRED", name="one")
    wait_until(lambda: disks.qmp.command("query-views") == [], "it is abandoned")
    disks.stop()


@promise("a checkpoint is forgotten by all disks that can, also if one has lost its map")
def deletes(test):
    disks = Disks(test, "raw", "raw", "raw")
    disks.begin("one", devices=[{"device": "vda"}, {"device": "vdc"}])
    disks.commit("one")
    disks.begin("two")
    disks.commit("two")
    for name in ("vdb", "vda"):
        os.truncate(f"{disks.paths[name]}.tracking", 0)
        disks.write(name, MIB)
        disks.qmp.wait_event("BLOCK_TRACKING_LOST", device=name)
        if name == "vdb":
            disks.qmp.command("checkpoint-delete", name="three")
            disks.begin("four", devices=[{"device": "vda"}])
            disks.commit("four")
            disks.qmp.command("checkpoint-delete", name="four")
    expect_error("Checkpoint 'two' stays where it was", disks.qmp, "checkpoint-delete", name="two")
    assert disks.checkpoints()["two"] == set(), "the third disk could forget it"
    (entry,) = (entry for entry in disks.qmp.command("query-checkpoints") if entry["name"] == "two")
    assert {found["device"] for found in entry["devices"]} == {"vda", "vdb"}, entry
    disks.stop()


@promise("what makes no sense is refused by a sentence, and nothing is left behind")
def refused(test):
    disks = Disks(test, "raw")
    for text, arguments in (
        ("Device 'vdx' not found", {"devices": [{"device": "vdx"}]}),
        ("named twice", {"devices": [{"device": "vda"}, {"device": "vda"}]}),
        ("at least one device", {"devices": []}),
        ("Invalid view name", {"name": "a b"}),
        ("Invalid view name", {"name": "a~changes"}),
    ):
        expect_error(text, disks.qmp, "checkpoint-begin", **dict({"name": "one"}, **arguments))
    disks.qmp.command("view-create", name="taken")
    expect_error("exists already", disks.qmp, "checkpoint-begin", name="taken")
    disks.qmp.command("view-drop", name="taken")
    disks.assert_no_session()
    disks.begin("one")
    for text, arguments in (
        ("no open session 'two'", {"name": "two"}),
        ("has no device 'vdx'", {"device": "vdx"}),
        ("'limit' expects", {"limit": 0}),
        ("'limit' expects", {"limit": 10001}),
    ):
        expect_error(text, disks.qmp, "query-changes",
                     **dict({"name": "one", "device": "vda"}, **arguments))  # fmt: skip
    assert disks.qmp.command("query-changes", name="one", device="vda", offset=LENGTH) == {
        "ranges": []
    }
    disks.abandon("one")
    try:
        connect(disks.server.uri("vda@one~changes"))
    except nbd.Error:
        pass
    else:
        raise AssertionError("a session that was abandoned is served")
    disks.stop()


@promise("sessions of two disks under load, committed, abandoned, expired, killed and resized: always "
         "the disks at their instants, and nothing left behind", timeout=300)  # fmt: skip
def long_chain(test):
    disks = Disks(test, "raw", "qcow2")
    since, number = None, 0
    loads = {name: Load(test, disks.server.uri(name), threads=2) for name in disks.names}
    for step in range(6):
        number += 1
        name = f"s{number}"
        for load in loads.values():
            load.wait_done(10)
        end = test.random.choice(["commit", "commit", "commit", "abandon", "kill", "expire"])
        lease = {"lease": 1} if end == "expire" else {}
        session = disks.begin(name, **({"since": since} if since else {}), **lease)
        if end == "commit":
            for entry in session["devices"]:
                assert entry["mode"] == ("incremental" if since else "full"), entry
                move(disks, name, entry)
            disks.commit(name)
            if since:
                disks.qmp.command("checkpoint-delete", name=since)
            since = name
        elif end == "abandon":
            disks.abandon(name)
        elif end == "expire":
            disks.qmp.wait_event("CHECKPOINT_EXPIRED")
            wait_until(lambda gone=name: gone not in disks.checkpoints(), "it is abandoned")
        if end == "kill" or step % 3 == 2:
            for load in loads.values():
                load.over = True
            disks.kill()
            if step % 2:
                length = disks.guests["vda"].get_size() + MIB
                disks.qmp.command("block_resize", device="vda", size=length)
            loads = {device: Load(test, disks.server.uri(device), threads=2)
                     for device in disks.names}  # fmt: skip
        disks.assert_no_session(*([since] if since else []))
    for load in loads.values():
        load.end()
    disks.stop()


@promise("the commands of docs/backup.md work in order, and make copies of the disks at their instants")
def documentation(test):
    text = (ROOT / "docs" / "backup.md").read_text()
    blocks = re.findall(r"^```(sh|python|text)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert blocks[0][0] == "text" and len(blocks) > 5, blocks
    specs = [word.removeprefix("disk=") for word in blocks[0][1].split() if "disk=" in word]
    paths = [test.make_disk(name, LENGTH) for name in ("vda.img", "vdb.img")]
    server = Server(test, [spec.replace("file=", f"file={test.directory}/") for spec in specs],
                    name="disks")  # fmt: skip
    guests = [server.connect(name) for name in ("vda", "vdb")]
    environment = {"PATH": f"{LIVEBLK.parent}:/usr/sbin:/usr/bin:/sbin:/bin", "LIVEBLK_ADMIN": ""}
    for guest in guests:
        guest.pwrite(noise(test.random, MIB), MIB)
    held = None
    for kind, block in blocks[1:]:
        if "session begin" in block:
            held = read(guests[0])
        program = ["bash", "-e", "-c"] if kind == "sh" else ["/usr/bin/python3", "-c"]
        test.run(*program, block, cwd=test.directory, env=environment)
        guests[0].pwrite(noise(test.random, 4 * KIB), test.random.randrange(8) * GRANULE)
        if "nbdcopy" in block:
            assert test.path("vda-monday.img").read_bytes() == held
            guests[0].trim(MIB, 2 * MIB)
        if kind == "python":
            assert test.path("vda-tuesday.img").read_bytes() == held
    assert held and len(paths) == 2
    for guest in guests:
        guest.shutdown()
    server.stop()


@promise("liveblk session says what is, as text and as JSON, and exits accordingly")
def command_line(test):
    disks = Disks(test, "raw", "raw", untracked=["vdb"])
    admin = ("--admin", disks.server.admin)

    def run(*words, status=0):
        return test.liveblk("session", *words, *admin, status=status)

    assert "no session is open" in run("list").stdout
    assert json.loads(run("list", "--json").stdout) == []
    disks.write("vda", MIB)
    session = json.loads(run("begin", "one", "--json").stdout)
    assert [entry["device"] for entry in session["devices"]] == ["vda", "vdb"]
    (open_one,) = disks.qmp.command("query-checkpoints")
    moment = open_one["session"]["time"]
    assert abs(session["time"] - moment) < 0.001, f"{session['time']} is told for {moment}"
    for entry in session["devices"]:
        assert entry["uri"] is None, entry  # its socket is not where 'liveblk serve' has it
    lines = run("begin", "one").stdout.splitlines()
    assert lines[0].startswith("Session 'one': guests were held for "), lines
    assert "full (no-parent)" in lines[2] and "full (not-tracked)" in lines[3], lines
    assert lines[4] == "It was open already: nothing was cut now.", lines
    found = [json.loads(line) for line in run("changes", "one", "vda", "--json").stdout.splitlines()]
    assert sum(entry["length"] for entry in found) == LENGTH, found
    assert len(run("changes", "one", "vda").stdout.splitlines()) == len(found)
    assert "open" in run("list").stdout
    assert json.loads(run("commit", "one", "--json").stdout) == [
        {"device": "vda", "committed": True}
    ]
    run("commit", "one")
    run("abandon", "two")
    listed = json.loads(run("list", "--json").stdout)
    assert [(entry["name"], entry["state"]) for entry in listed] == [("one", "committed")]
    begun = run("begin", "two", "--device", "vda=one", "--lease", "1000", "--scratch",
                test.directory, "--scratch-max", "1M", "--before-cut", "true 'a b'", "--after-cut",
                "true", "--hook-timeout", "5000").stdout  # fmt: skip
    for shown in (begun, run("list").stdout):
        assert re.search("Its lease ends in (1000|9..) s", shown), shown
    assert "already" not in begun, begun
    run("abandon", "two")
    run("delete", "one")
    disks.assert_no_session()
    for words, status, text in (
        ((), 2, "What to do with sessions?"),
        (("begin",), 2, "begin NAME"),
        (("changes", "one"), 2, "changes NAME DEVICE"),
        (("commit", "one", "--lease", "1"), 2, "Only 'session begin' has these options"),
        (("begin", "x", "--scratch-max", "y"), 2, "--scratch-max expects"),
        (("begin", "x", "--scratch-high", "-5"), 2, "--scratch-high expects"),
        (("commit", "x", "--scratch-high", "5"), 2, "Only 'session begin' has these options"),
        (("begin", "x", "--before-cut", "'"), 2, "--before-cut expects a command"),
        (("begin", "x", "--device", "nope"), 1, "Device 'nope' not found"),
        (("begin", "x", "--before-cut", "false"), 1, "exit status 1"),
        (("commit", "x"), 1, "There is no session 'x'"),
        (("changes", "x", "vda"), 1, "no open session 'x'"),
    ):
        result = run(*words, status=status)
        assert text in result.stderr and result.stderr.startswith("liveblk: "), result.stderr
    disks.assert_no_session()
    disks.stop()


main()
