#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""The program and the chains of a real server's disks, which guests write to meanwhile."""

import contextlib
import json
import os

from liveblk_load import Writers
from liveblk_test import LIVEBLK, Server, main, promise, wait_until

MIB = 1 << 20
LENGTH = 16 * MIB


class Disks:
    """A server of some qcow2 disks, the first with writers, and the program to steer it."""

    def __init__(self, test, *names):
        self.test = test
        self.paths = {name: test.path(f"{name}.qcow2") for name in names}
        for path in self.paths.values():
            test.run("qemu-img", "create", "-q", "-f", "qcow2", path, LENGTH)
        disks = [f"name={name},file={path}" for name, path in self.paths.items()]
        self.server = Server(test, disks)
        self.writers = Writers(test, self.server.uri(), LENGTH, threads=2).start()

    def run(self, *words, status=0):
        return self.test.liveblk(*words, "-a", self.server.admin, status=status)

    def refused(self, *words, text, status=1):
        result = self.run(*words, status=status)
        assert text in result.stderr, result.stderr

    def external(self, name):
        self.run("snapshot", "--external", self.test.path(name), "vda")
        self.writers.wait_done(50)

    @contextlib.contextmanager
    def still(self, name):
        """An overlay that stays empty, or writers would overwrite all that is to be copied."""
        with self.writers.held():
            self.run("snapshot", "--external", self.test.path(name), "vda")
            yield

    def chain(self, device="vda"):
        layers = json.loads(self.run("chain", device, "--json").stdout)
        return [os.path.basename(layer["file"]) for layer in layers]

    def finish(self, *chain):
        """The chain is this one, also as QEMU sees it, and the disk holds what was written."""
        assert self.chain() == list(chain), self.chain()
        self.writers.wait_done(50)
        self.writers.stop()
        self.server.stop()
        top = self.test.path(chain[0])
        out = self.test.run("qemu-img", "info", "--backing-chain", "--output=json", top).stdout
        assert [os.path.basename(image["filename"]) for image in json.loads(out)] == list(chain)
        raw = self.test.path("raw")
        self.test.run("qemu-img", "convert", "-O", "raw", top, raw)
        self.writers.model.assert_equals_file(raw)


@promise("a chain grows, is shown, and is streamed to its base and away, by file names")
def streams(test):
    disks = Disks(test, "vda")
    for name in ("one", "two", "three"):
        disks.external(name)
    assert disks.chain() == ["three", "two", "one", "vda.qcow2"]
    layers = json.loads(disks.run("chain", "vda", "--json").stdout)
    assert [layer["read-only"] for layer in layers] == [False, True, True, True]
    assert {layer["format"] for layer in layers} == {"qcow2"}
    assert layers[0]["virtual-size"] == LENGTH and layers[0]["actual-size"] > 0
    # A node in the middle.
    disks.run("stream", layers[1]["node-name"], "--base", disks.paths["vda"])
    assert disks.chain() == ["three", "two", "vda.qcow2"]
    said = disks.run("stream", "vda", "--bottom", test.path("two"), "--json").stdout
    summary = json.loads(said.splitlines()[-1])
    assert summary["outcome"] == "success" and summary["job_id"] == "stream-vda"
    assert disks.chain() == ["three", "vda.qcow2"]
    assert "is complete" in disks.run("stream", "vda").stdout
    disks.finish("three")


@promise("images below the guest's are committed into the base, which is called as was wished")
def commits(test):
    disks = Disks(test, "vda")
    for name in ("one", "two", "three"):
        disks.external(name)
    disks.run("commit", "vda", "--top", test.path("two"), "--base", test.path("one"),
              "--backing-file", "./one")  # fmt: skip
    info = json.loads(disks.run("info", "--json", "vda").stdout)
    assert info["backing-filename"] == "./one", info
    disks.run("commit", "vda", "--top", test.path("one"))
    disks.finish("three", "vda.qcow2")


@promise("the guest's own image is committed, and the guest goes on with the base; or it stays")
def commits_active(test):
    disks = Disks(test, "vda")
    disks.external("one")
    disks.external("two")
    said = disks.run("commit", "vda", "--base", test.path("one"), "--json").stdout
    kinds = [json.loads(line)["message_type"] for line in said.splitlines()]
    assert kinds[-2:] == ["ready", "summary"], kinds
    assert disks.chain() == ["one", "vda.qcow2"]
    said = disks.run("commit", "vda", "--no-pivot").stdout
    assert "is ready and goes on" in said and "'liveblk job cancel commit-vda' leaves" in said, said
    disks.writers.wait_done(50)
    disks.run("job", "cancel", "commit-vda")
    disks.refused("job", "wait", "commit-vda", text="was cancelled", status=4)
    assert disks.chain() == ["one", "vda.qcow2"]
    disks.run("commit", "vda", "--no-pivot")
    disks.writers.wait_done(50)
    disks.run("job", "complete", "commit-vda")
    disks.finish("vda.qcow2")


@promise("snapshots of several disks are taken at once or not at all")
def several(test):
    disks = Disks(test, "vda", "vdb")
    a, b = test.path("a"), test.path("b")
    disks.refused("snapshot", "-x", f"vda={a}", "-x", f"vdb={test.path('none')}/b",
                  text="No such file or directory")  # fmt: skip
    assert not a.exists() and disks.chain() == ["vda.qcow2"]
    said = disks.run("snapshot", "-x", f"vda={a}", "-x", f"vdb={b}").stdout
    assert f"'vda' goes on in '{a}'; '{disks.paths['vda']}' stays" in said, said
    assert disks.chain("vdb") == ["b", "vdb.qcow2"]
    disks.finish("a", "vda.qcow2")


@promise("what is refused is said in a way that helps, and changes nothing")
def refusals(test):
    disks = Disks(test, "vda")
    disks.external("one")
    disks.external("two")
    two = test.path("two")
    chain = disks.chain()
    for words, text in [
        (["stream", "vdx"], "The server has no disk 'vdx'; it has 'vda'"),
        (["chain", "vdx"], "The server has no disk 'vdx'; it has 'vda'"),
        (["stream", "vda", "--base", "other"], "no image 'other' in the chain of 'vda', which is"),
        (["stream", "vda", "--base", two], "is not a backing image of"),
        (["commit", "vda", "--top", two, "--base", two], "into itself"),
        (["snapshot", "-x", two, "vda"], "is there already"),
    ]:
        disks.refused(*words, text=text)
    disks.finish(*chain)


@promise("a job that is in the way of another is named, and both can be had one after the other")
def conflicts(test):
    disks = Disks(test, "vda")
    disks.external("one")
    base, one = disks.paths["vda"], test.path("one")
    with disks.still("two"):
        node = json.loads(disks.run("chain", "vda", "--json").stdout)[0]["node-name"]
        disks.run("stream", "vda", "--speed", "64K", "--detach")
        for words in [["stream", "vda"], ["commit", "vda", "--top", one],
                      ["stream", "vda", "--base", base],
                      ["snapshot", "--external", test.path("three"), "vda"],
                      ["qmp", "change-backing-file", "device=vda", f"image-node-name={node}",
                       "backing-file=x"]]:  # fmt: skip
            disks.refused(*words, text="block job 'stream-vda'")
        disks.run("job", "cancel", "stream-vda")
        disks.refused("job", "wait", "stream-vda", text="was cancelled", status=4)
    assert not test.path("three").exists()
    disks.run("commit", "vda", "--top", one)
    disks.finish("two", "vda.qcow2")


@promise("a job that is cancelled leaves the chain as it was, and another one finishes the work")
def cancelled(test):
    disks = Disks(test, "vda")
    disks.external("one")
    with disks.still("two"):
        for words in (["stream", "vda"], ["commit", "vda", "--top", test.path("one")]):
            process = test.start(LIVEBLK, *words, "-a", disks.server.admin, "--speed", "64K",
                                 "--json", log="job.log")  # fmt: skip
            wait_until(lambda: "copying" in process.log_path.read_text(), "the job copies")
            process.terminate()
            assert process.wait(60) == 4
            said = process.log_path.read_text()
            assert "was cancelled. No data is lost" in said, said
            process.log_path.unlink()
            assert disks.chain() == ["two", "one", "vda.qcow2"]
    disks.run("commit", "vda", "--top", test.path("one"))
    disks.run("stream", "vda")
    disks.finish("two")


if __name__ == "__main__":
    main()
