#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""object-add, object-del, qom-* and throttle groups."""

import threading

from liveblk_test import DiskModel, Server, connect, main, promise, refused, wait_until

MIB = 1 << 20
LIMITS = [
    name + more
    for name in ("iops-total", "iops-read", "iops-write", "bps-total", "bps-read", "bps-write")
    for more in ("", "-max", "-max-length")
] + ["iops-size"]


def disk_of(test, name="vda"):
    path = test.make_disk(f"{name}.img", MIB)
    return f"name={name},file={path},format=raw,node-name={name}-top,file.node-name={name}-file"


@promise("objects are added and deleted, with QEMU's answers to what is wrong")
def objects(test):
    server = Server(test, [test.make_disk("disk.img", MIB)])
    qmp = server.qmp()

    def no(text, **properties):
        arguments = {key.replace("_", "-"): value for key, value in properties.items()}
        refused(qmp, "object-add", arguments, text)

    no("Parameter 'qom-type' is missing", id="a")
    no("Parameter 'id' is missing", qom_type="secret")
    no("Parameter 'qom-type' does not accept value 'zz'", qom_type="zz", id="a")
    no("Parameter 'id' expects an identifier", qom_type="iothread", id="1a")
    no("Parameter 'limits' is unexpected", qom_type="iothread", id="a", limits={})
    no("Parameter 'identity' is missing", qom_type="authz-simple", id="a")
    no("exactly one of 'data' and 'file'", qom_type="secret", id="a")
    no("'keyid'", qom_type="secret", id="a", data="x", keyid="k")
    no("not valid base64", qom_type="secret", id="a", data="!", format="base64")
    no("Could not read the secret 'a'", qom_type="secret", id="a", file=str(test.path("none")))
    no("rules", qom_type="authz-list-file", id="a", filename=str(test.path("none")))
    no("does not accept value 'x'", qom_type="authz-list", id="a",
       rules=[{"match": "a", "policy": "x"}])  # fmt: skip
    both = {"bps-total": 1, "bps-read": 1}
    no("total values and read/write values cannot be used at the same time",
       qom_type="throttle-group", id="a", limits=both)  # fmt: skip
    no("require corresponding bps/iops values", qom_type="throttle-group", id="a",
       limits={"bps-total-max": 1})  # fmt: skip
    refused(qmp, "object-del", {"id": "a"}, "object 'a' not found")
    qmp.command("object-add", qom_type="iothread", id="a", **{"poll-max-ns": 5})
    for kind in ("iothread", "throttle-group"):
        no("attempt to add duplicate property 'a' to object (type 'container')", qom_type=kind,
           id="a")  # fmt: skip
    assert qmp.command("qom-get", path="/objects/a", property="poll-max-ns") == 5
    qmp.command("qom-set", path="a", property="poll-max-ns", value=6)
    assert qmp.command("qom-get", path="objects/a", property="poll-max-ns") == 6
    # Tools that keep a thread for each export find it.
    address = {"type": "unix", "data": {"path": str(test.path("s.nbd"))}}
    qmp.command("nbd-server-start", addr=address)
    export = {"type": "nbd", "id": "e", "node-name": "vda", "iothread": "b"}
    refused(qmp, "block-export-add", export, 'iothread "b" not found')
    qmp.command_raw("block-export-add", {**export, "iothread": "a"})
    qmp.command("object-del", id="a")
    qmp.command("object-add", qom_type="secret", id="a", data="x")
    server.stop()


@promise("qom-get, -set and -list show what objects there are and what they have")
def qom(test):
    server = Server(test, [test.make_disk("disk.img", MIB)])
    qmp = server.qmp()
    qmp.command("object-add", qom_type="throttle-group", id="g", limits={"bps-total": 1000})
    qmp.command("object-add", qom_type="secret", id="s", data="x")

    def listed(command, **arguments):
        return {entry["name"]: entry for entry in qmp.command(command, **arguments)}

    limits = qmp.command("qom-get", path="/objects/g", property="limits")
    expected = dict.fromkeys(LIMITS, 0) | {name: 1 for name in LIMITS if name.endswith("length")}
    assert len(LIMITS) == 19 and limits == expected | {"bps-total": 1000}, limits
    change = {"path": "g", "property": "limits", "value": {"iops-read": 7, "iops-size": 512}}
    qmp.command_raw("qom-set", change)
    expected |= {"bps-total": 1000, "iops-read": 7, "iops-size": 512}
    assert qmp.command("qom-get", path="g", property="limits") == expected
    for value, text in (
        ({"bps-read": 1}, "cannot be used at the same time"),
        ({"bps-read": -1}, "Parameter 'bps-read' expects"),
        ({"bps": 1}, "Parameter 'limits.bps' is unexpected"),
        (1, "Invalid parameter type for 'limits', expected: object"),
    ):
        refused(qmp, "qom-set", {**change, "value": value}, text)
    assert qmp.command("qom-get", path="g", property="limits") == expected
    refused(qmp, "qom-get", {"path": "g", "property": "x"},
            "Property 'throttle-group.x' not found")  # fmt: skip
    refused(qmp, "qom-set", {"path": "s", "property": "data", "value": "y"}, "is not writable")
    for path in ("x", "/objects/x", "/x/g", "objects/vda"):
        refused(qmp, "qom-get", {"path": path, "property": "limits"},
                f"Device '{path}' not found", "DeviceNotFound")  # fmt: skip
        refused(qmp, "qom-list", {"path": path}, "not found", "DeviceNotFound")
    assert listed("qom-list", path="/objects") == {
        "type": {"name": "type", "type": "string"},
        "g": {"name": "g", "type": "child<throttle-group>"},
        "s": {"name": "s", "type": "child<secret>"},
    }
    assert listed("qom-list", path="/")["objects"]["type"] == "child<container>"
    assert set(listed("qom-list", path="g")) == {"type", "limits"}
    assert set(listed("qom-list", path="vda")) == {"drive"}
    assert qmp.command("qom-get", path="/objects", property="type") == "container"
    assert listed("qom-list-types", implements="tls-creds", abstract=True) == {
        "tls-creds": {"name": "tls-creds", "abstract": True},
    } | {
        name: {"name": name, "parent": "tls-creds"}
        for name in ("tls-creds-anon", "tls-creds-psk", "tls-creds-x509")
    }
    assert len(qmp.command("qom-list-types")) == 9
    assert listed("qom-list-properties", typename="tls-creds-psk")["username"]["type"] == "string"
    refused(qmp, "qom-list-properties", {"typename": "x"}, "Class 'x' not found", "DeviceNotFound")
    # A device of the same name: which is meant?
    qmp.command("object-add", qom_type="throttle-group", id="vda")
    refused(qmp, "qom-get", {"path": "vda", "property": "drive"}, "uniquely")
    assert qmp.command("qom-get", path="/objects/vda", property="type") == "throttle-group"
    server.stop()


def top_options(name, file):
    return {"driver": "raw", "node-name": f"{name}-top", "file": file}


def throttle(name, group, file):
    return {"driver": "throttle", "node-name": name, "throttle-group": group, "file": file}


class Writer(threading.Thread):
    """One write, which may be held."""

    def __init__(self, uri, data, offset):
        super().__init__(daemon=True)
        self.handle, self.data, self.offset, self.error = connect(uri), data, offset, None
        self.start()

    def run(self):
        try:
            self.handle.pwrite(self.data, self.offset)
        except Exception as error:  # the server may go while we wait
            self.error = error


@promise("a throttle group is put under disks while guests use them, holds them, and is taken away")
def throttled(test):
    server = Server(test, [disk_of(test, "vda"), disk_of(test, "vdb")])
    qmp = server.qmp()
    refused(qmp, "blockdev-add", throttle("t", "g", "vda-file"), "Throttle group 'g' does not exist")
    qmp.command("object-add", qom_type="throttle-group", id="g", limits={"bps-write": 1})
    qmp.command("object-add", qom_type="throttle-group", id="free")
    models = {name: DiskModel(MIB) for name in ("vda", "vdb")}
    for name in models:
        qmp.command_raw("blockdev-add", throttle(f"{name}-t", "g", f"{name}-file"))
        qmp.command("blockdev-reopen", options=[top_options(name, f"{name}-t")])
    refused(qmp, "object-del", {"id": "g"}, "object 'g' is in use, can not be deleted")
    refused(qmp, "blockdev-del", {"node-name": "vda-t"}, "vda-t")

    def write(name, offset):
        return Writer(server.uri(name), models[name].write(offset, 4096), offset)

    # The first fills the bucket of both disks: for over an hour nobody else would write.
    write("vda", 0).join()
    held = [write("vda", 4096), write("vdb", 0)]
    handle = server.connect("vdb")
    assert bytes(handle.pread(512, 0)) == bytes(512)  # only writes are limited
    assert all(writer.is_alive() for writer in held)
    # Whoever drains one disk does not wait for its rate, and the other's is still held.
    qmp.command("blockdev-reopen", options=[throttle("vda-t", "g", "vda-file") | {"read-only": False}])
    held[0].join()
    assert held[1].is_alive()
    # More for all, at once.
    qmp.command("qom-set", path="g", property="limits", value={"bps-write": 0})
    held[1].join()
    # Another group, and its limits.
    qmp.command("qom-set", path="free", property="limits", value={"iops-write": 1})
    qmp.command("blockdev-reopen", options=[throttle("vdb-t", "free", "vdb-file")])
    refused(qmp, "blockdev-reopen", {"options": [throttle("vdb-t", "none", "vdb-file")]},
            "Throttle group 'none' does not exist")  # fmt: skip
    for name in models:
        qmp.command("blockdev-reopen", options=[top_options(name, f"{name}-file")])
        qmp.command("blockdev-del", node_name=f"{name}-t")
    for name in ("g", "free"):
        qmp.command("object-del", id=name)
    write("vda", 8192).join()
    handle.shutdown()
    del held, handle
    server.stop()
    for name, model in models.items():
        model.assert_equals_file(test.path(f"{name}.img"))


@promise("what a throttle group holds does not hold up a job's end, nor the server's")
def ends(test):
    server = Server(test, [disk_of(test)])
    qmp = server.qmp()
    model = DiskModel(MIB)
    handle = server.connect()
    handle.pwrite(model.write(0, MIB), 0)
    handle.shutdown()
    target = test.make_disk("target.img", MIB)
    qmp.command("object-add", qom_type="throttle-group", id="g", limits={"bps-write": 1})
    qmp.command("blockdev-add", driver="file", filename=str(target), node_name="target")
    qmp.command_raw("blockdev-add", throttle("slow", "g", "target"))
    qmp.command("blockdev-backup", job_id="j", device="vda", target="slow", sync="full")
    qmp.command("block-job-cancel", device="j", force=True)
    assert qmp.wait_job("j", "concluded") == "concluded"
    qmp.command_raw("blockdev-add", throttle("t", "g", "vda-file"))
    qmp.command("blockdev-reopen", options=[top_options("vda", "t")])
    export = {"type": "nbd", "id": "e", "node-name": "vda", "writable": True}
    address = {"type": "unix", "data": {"path": str(test.path("s.nbd"))}}
    qmp.command("nbd-server-start", addr=address)
    qmp.command_raw("block-export-add", export)
    uri = f"nbd+unix:///vda?socket={test.path('s.nbd')}"
    qmp.command("blockdev-backup", job_id="k", device="vda", target="slow", sync="full")
    Writer(uri, model.write(0, 4096), 0)
    Writer(uri, model.write(4096, 4096), 4096)
    wait_until(lambda: qmp.command("query-block-jobs"), "the job runs")
    server.stop()


main()
