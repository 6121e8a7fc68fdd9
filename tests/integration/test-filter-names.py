#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""Jobs with filter-node-name: a node stands for the job above its source, as long as it runs."""

import os

from liveblk_load import Writers, assert_guest_unharmed
from liveblk_test import QmpError, Server, main, promise

MIB = 1 << 20
LENGTH = 16 * MIB
SLOW = {"speed": 65536}


class World:
    """A served disk under writers, which is the node `disk`, and is exported by its name, too."""

    def __init__(self, test, layers=1, name="server"):
        self.test = test
        self.path = test.path("0.qcow2")
        test.run("qemu-img", "create", "-q", "-f", "qcow2", self.path, LENGTH)
        for number in range(1, layers):
            below, self.path = self.path, test.path(f"{number}.qcow2")
            test.run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", below,
                     self.path)  # fmt: skip
            test.run("qemu-io", "-c", f"write -P {number} 0 8M", below)
        self.server = Server(test, [f"file={self.path},node-name=disk,discard=unmap"], name=name)
        self.qmp = self.server.qmp()
        self.command("nbd-server-start",
                     addr={"type": "unix", "data": {"path": str(test.path(name + "-x"))}})  # fmt: skip
        self.command("block-export-add", _id="x", type="nbd", node_name="disk", writable=True)
        self.writers = Writers(test, self.server.uri(), LENGTH, threads=3).start()
        self.writers.wait_done(100)

    def command(self, name, /, **arguments):
        return self.qmp.command(name, **arguments)

    def add_target(self, name):
        path = self.test.make_disk(name, LENGTH)
        self.command("blockdev-add", driver="file", node_name=name, filename=str(path))
        return path

    def drivers(self):
        """The driver of each node that has a user's name."""
        nodes = self.command("query-named-block-nodes")
        return {node["node-name"]: node["drv"] for node in nodes if node["node-name"][0] != "#"}

    def in_graph(self):
        return {node["name"] for node in self.command("x-debug-query-block-graph")["nodes"]}

    def places(self):
        """Where the guest is, as the exports and the device tell."""
        exports = self.command("query-block-exports")
        places = {export["node-name"] for export in exports if export["id"] == "x"}
        return places | {self.command("query-block")[0]["inserted"]["node-name"]}

    def expect_filter(self, name, driver):
        assert self.drivers()[name] == driver, self.drivers()
        assert name in self.in_graph(), self.in_graph()

    def expect_gone(self, *names, place="disk"):
        for name in names:
            assert name not in self.drivers(), self.drivers()
            assert name not in self.in_graph(), self.in_graph()
        assert self.places() == {place}, self.places()

    def wait_end(self, job):
        self.qmp.wait_job(job, "null")

    def faster(self, job):
        self.command("block-job-set-speed", device=job, speed=0)

    def refuse(self, name, text, /, **arguments):
        try:
            self.command(name, **arguments)
        except QmpError as error:
            assert text in error.desc, error.desc
        else:
            raise AssertionError(f"{name} {arguments} was not refused")

    def finish(self):
        """The guest saw nothing, and the image, closed, holds it all."""
        assert_guest_unharmed(self.server, self.writers, 100)
        path = self.command("query-block")[0]["inserted"]["file"]
        kind = "qcow2" if path.endswith("qcow2") else "raw"
        self.server.stop()
        out = self.test.path("converted")
        self.test.run("qemu-img", "convert", "-f", kind, "-O", "raw", path, out)
        self.writers.model.assert_equals_file(out)


@promise("a backup's filter stands above the disk while it runs, and the copy is that moment")
def backups(test):
    world = World(test)
    path = world.add_target("t")
    with world.writers.held() as moment:
        world.command("blockdev-backup", job_id="j", device="vda", target="t", sync="full",
                      filter_node_name="f", **SLOW)  # fmt: skip
    world.expect_filter("f", "copy-before-write")
    assert world.places() == {"f"}, world.places()
    world.refuse("blockdev-add", "it stands for a job only", driver="snapshot-access",
                 node_name="s", file="f")  # fmt: skip
    world.writers.wait_done(100)
    world.faster("j")
    world.wait_end("j")
    world.expect_gone("f")
    moment.assert_equals_file(path)
    copy = test.path("copy.img")
    with world.writers.held() as moment:
        world.command("drive-backup", job_id="j", device="disk", target=str(copy), sync="full",
                      format="raw", filter_node_name="f", **SLOW)  # fmt: skip
    world.expect_filter("f", "copy-before-write")
    world.writers.wait_done(100)
    world.faster("j")
    world.wait_end("j")
    world.expect_gone("f")
    moment.assert_equals_file(copy)
    world.command("blockdev-backup", job_id="j", device="vda", target="t", sync="none",
                  filter_node_name="f")  # fmt: skip
    world.expect_filter("f", "copy-before-write")
    world.writers.wait_done(100)
    world.command("block-job-cancel", device="j")
    world.wait_end("j")
    world.expect_gone("f")
    world.finish()


@promise("a mirror's filter goes whichever way the mirror ends, and a pivot moves the disk from it")
def mirrors(test):
    world = World(test)
    path = world.add_target("t")
    mirror = {"job_id": "j", "device": "vda", "target": "t", "sync": "full",
              "filter_node_name": "f"}  # fmt: skip
    world.command("blockdev-mirror", **mirror, **SLOW)
    world.expect_filter("f", "mirror_top")
    assert world.places() == {"f"}, world.places()
    world.writers.wait_done(50)
    world.command("block-job-cancel", device="j", force=True)
    world.wait_end("j")
    world.expect_gone("f")
    world.command("blockdev-mirror", **mirror)
    world.qmp.wait_event("BLOCK_JOB_READY", device="j")
    with world.writers.held() as moment:
        world.command("block-job-cancel", device="j")
        world.wait_end("j")
    moment.assert_equals_file(path)
    world.expect_gone("f")
    world.command("blockdev-mirror", **mirror, replaces="disk")
    world.qmp.wait_event("BLOCK_JOB_READY", device="j")
    world.writers.wait_done(100)
    world.expect_filter("f", "mirror_top")
    world.command("block-job-complete", device="j")
    world.wait_end("j")
    world.expect_gone("f", place="t")
    world.finish()


@promise("commits have a filter above the uppermost layer that goes, the guest's or another")
def commits(test):
    world = World(test, layers=4)
    below = world.command("query-block")[0]["inserted"]["image"]["backing-image"]["filename"]
    world.command("block-commit", job_id="j", device="vda", top=below, filter_node_name="f",
                  **SLOW)  # fmt: skip
    world.expect_filter("f", "commit_top")
    assert world.places() == {"disk"}, world.places()
    world.writers.wait_done(50)
    world.faster("j")
    world.wait_end("j")
    world.expect_gone("f")
    world.command("block-commit", job_id="j", device="vda", filter_node_name="f")
    world.expect_filter("f", "mirror_top")
    assert world.places() == {"f"}, world.places()
    world.qmp.wait_event("BLOCK_JOB_READY", device="j")
    world.writers.wait_done(50)
    world.command("block-job-cancel", device="j")
    world.wait_end("j")
    world.expect_gone("f")
    world.command("block-commit", job_id="j", device="disk", filter_node_name="f")
    world.qmp.wait_event("BLOCK_JOB_READY", device="j")
    world.writers.wait_done(50)
    world.command("block-job-complete", device="j")
    event = world.qmp.wait_event("BLOCK_JOB_COMPLETED", device="j")["data"]
    assert "error" not in event, event
    world.wait_end("j")
    assert "f" not in world.drivers() and "f" not in world.in_graph()
    assert os.path.basename(world.command("query-block")[0]["inserted"]["file"]) == "0.qcow2"
    world.finish()


@promise("names that cannot be given are refused in QEMU's words, and nothing has happened")
def refusals(test):
    world = World(test, layers=2)
    world.add_target("t")
    nodes = world.drivers()
    precious = test.path("precious.img")
    precious.write_bytes(b"precious" * 1000)
    for name, why in (
        ("disk", "Duplicate nodes with node-name='disk'"),
        ("1", "Invalid node-name: '1'"),
        ("", "Invalid node-name: ''"),
        ("x" * 32, "Node name too long"),
    ):
        common = {"job_id": "j", "device": "vda", "filter_node_name": name}
        world.refuse("blockdev-backup", "Could not create node: " + why, target="t", sync="full",
                     **common)  # fmt: skip
        world.refuse("drive-backup", "Could not create node: " + why, target=str(precious),
                     sync="full", **common)  # fmt: skip
        world.refuse("blockdev-mirror", why, target="t", sync="full", **common)
        world.refuse("block-commit", why, **common)
    world.refuse("drive-mirror", "Parameter 'filter-node-name' is unexpected", device="vda",
                 target=str(precious), sync="full", filter_node_name="f")  # fmt: skip
    assert precious.read_bytes() == b"precious" * 1000
    for driver in ("mirror_top", "commit_top"):
        world.refuse("blockdev-add", f"Parameter 'driver' does not accept value '{driver}'",
                     driver=driver, node_name="f", file="disk")  # fmt: skip
    world.refuse("blockdev-mirror", "Parameter 'speed'", job_id="j", device="vda", target="t",
                 sync="full", speed=-1, filter_node_name="f")  # fmt: skip
    assert world.drivers() == nodes
    assert world.command("query-jobs") == []
    world.expect_gone("f")
    world.finish()


def backup_action(job, target, name):
    return {"type": "blockdev-backup",
            "data": {"job-id": job, "device": "vda", "target": target, "sync": "full",
                     "filter-node-name": name}}  # fmt: skip


@promise("a transaction that fails leaves no filter, and one that is grouped ends without any")
def transactions(test):
    world = World(test)
    paths = [world.add_target("t"), world.add_target("u")]
    both = [backup_action("j", "t", "f"), backup_action("k", "u", "g")]
    for actions, made, why in (
        ([*both, {"type": "abort", "data": {}}], "jk", "Transaction aborted using Abort action"),
        ([both[0], backup_action("k", "u", "f")], "j", "Duplicate nodes with node-name='f'"),
    ):
        world.refuse("transaction", why, actions=actions,
                     properties={"completion-mode": "grouped"})  # fmt: skip
        for job in made:
            world.wait_end(job)
        world.expect_gone("f", "g")
        assert world.command("query-jobs") == []
    with world.writers.held() as moment:
        world.command("transaction", actions=both, properties={"completion-mode": "grouped"})
    for job in ("j", "k"):
        world.wait_end(job)
    world.expect_gone("f", "g")
    for path in paths:
        moment.assert_equals_file(path)
    overlay = test.path("overlay.qcow2")
    snapshot = {"type": "blockdev-snapshot-sync",
                "data": {"device": "vda", "snapshot-file": str(overlay),
                         "snapshot-node-name": "overlay"}}  # fmt: skip
    with world.writers.held() as moment:
        world.command("transaction", actions=[both[0], snapshot])
    world.wait_end("j")
    world.expect_gone("f", place="overlay")
    moment.assert_equals_file(paths[0])
    world.finish()


@promise("filters of several jobs stand on each other, and go in any order")
def together(test):
    for order in (("j", "k", "m"), ("m", "k", "j"), ("k", "j", "m")):
        world = World(test, name="-".join(order))
        files = {name: world.add_target(name) for name in ("t", "u", "v")}
        world.command("block-dirty-bitmap-add", node="disk", name="b")
        with world.writers.held() as first:
            world.command("blockdev-backup", job_id="j", device="vda", target="t", sync="full",
                          filter_node_name="f", **SLOW)  # fmt: skip
        world.command("blockdev-mirror", job_id="m", device="vda", target="v", sync="full",
                      filter_node_name="g")  # fmt: skip
        with world.writers.held() as second:
            world.command("blockdev-backup", job_id="k", device="vda", target="u", sync="full",
                          filter_node_name="h", **SLOW)  # fmt: skip
        for name in ("f", "g", "h"):
            assert name in world.drivers(), world.drivers()
        world.refuse("blockdev-del", "not owned by the monitor", node_name="g")
        world.refuse("block_resize", "busy", device="vda", size=2 * LENGTH)
        world.qmp.wait_event("BLOCK_JOB_READY", device="m")
        for job in order:
            world.writers.wait_done(50)
            if job == "m":
                with world.writers.held() as third:
                    world.command("block-job-cancel", device="m")
                    world.wait_end("m")
            else:
                world.faster(job)
                world.wait_end(job)
        world.expect_gone("f", "g", "h")
        first.assert_equals_file(files["t"])
        second.assert_equals_file(files["u"])
        third.assert_equals_file(files["v"])
        node = [n for n in world.command("query-named-block-nodes") if n["node-name"] == "disk"][0]
        bitmap = node["dirty-bitmaps"][0]
        assert bitmap["name"] == "b" and bitmap["recording"] and bitmap["count"] > 0, bitmap
        world.finish()
        for path in [*files.values(), world.path]:
            path.unlink()


@promise("a disk moves away from under other jobs' filters when a mirror is completed")
def pivots_beside(test):
    world = World(test)
    copy = world.add_target("t")
    world.add_target("u")
    with world.writers.held() as moment:
        world.command("blockdev-backup", job_id="j", device="vda", target="t", sync="full",
                      filter_node_name="f", **SLOW)  # fmt: skip
    world.command("blockdev-mirror", job_id="m", device="vda", target="u", sync="full",
                  filter_node_name="g")  # fmt: skip
    world.qmp.wait_event("BLOCK_JOB_READY", device="m")
    world.writers.wait_done(50)
    world.command("block-job-complete", device="m")
    world.wait_end("m")
    world.expect_gone("g", place="u")
    world.faster("j")
    world.wait_end("j")
    world.expect_gone("f", "g", place="u")
    moment.assert_equals_file(copy)
    world.finish()


@promise("a server that stops while a job has a filter has lost nothing")
def stops(test):
    world = World(test, layers=2)
    world.add_target("t")
    world.command("blockdev-mirror", job_id="j", device="vda", target="t", sync="full",
                  filter_node_name="f", **SLOW)  # fmt: skip
    world.writers.wait_done(50)
    world.writers.stop()
    world.server.stop()
    out = test.path("out.img")
    test.run("qemu-img", "convert", "-f", "qcow2", "-O", "raw", world.path, out)
    world.writers.model.assert_equals_file(out)
    again = Server(test, [f"file={world.path},node-name=disk"], name="again")
    names = {node["node-name"] for node in again.qmp().command("query-named-block-nodes")}
    assert "f" not in names, names


main()
