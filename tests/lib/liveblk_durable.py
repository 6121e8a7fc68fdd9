# SPDX-License-Identifier: BSD-3-Clause
"""Whether a backup set is safe from a loss of power, by the calls that changed it (die-at.c)."""

import os
import re


class Durable:
    """What of a set is not safe yet: with the power it may be lost, all of it or a part."""

    def __init__(self, directory):
        self.directory = directory
        self.unsafe = set()  # files with writes that were not made safe
        self.renamed = {}  # folder -> what became of names in it since it was made safe

    def ours(self, path):
        name = os.path.basename(path)
        return path.startswith(f"{self.directory}/") and name not in (".lock", ".readers")

    def name_changes(self, path, what):
        self.renamed.setdefault(os.path.dirname(path), {})[path] = what

    def assert_safe(self, why):
        names = [path for names in self.renamed.values() for path in names]
        assert not self.unsafe and not names, f"{why} before {self.unsafe} and {names} are safe"

    def assert_no_change(self, suffix, why):
        names = [name for name in self.renamed.get(str(self.directory), ()) if name.endswith(suffix)]
        assert not names, f"{why} before what became of {names} is safe"

    def replay(self, calls):
        """Each as it is made: what counts, or counts no more, does so after all that it relies on."""
        seen = []
        for line in calls.read_text().splitlines():
            what, path, other = line.split("\t")
            if what == "send" and path == "checkpoint-commit":
                self.assert_safe("the checkpoint is committed")
                seen.append("commit")
            elif what == "sync":
                self.unsafe.discard(path)
                self.renamed.pop(path, None)
            elif not self.ours(other or path):
                continue
            elif what == "write":
                self.unsafe.add(path)
            elif what == "create":
                self.name_changes(path, what)
            elif what == "rename":
                if re.search(r"\.json(\.new)?$", other):
                    mine = self.renamed.get(os.path.dirname(path), {})
                    mine.pop(path, None)  # the name that it has until now
                    self.assert_safe(f"{other} is there")
                    seen.append("manifest")
                elif path.endswith(".new"):  # of what a new manifest names, which is to count then
                    self.assert_no_change(".json.new", f"{other} is renewed")
                assert path not in self.unsafe, f"{other} is there before it is safe"
                self.name_changes(other, what)
            elif what == "remove":
                if path.endswith((".qcow2", ".raw", ".sums")):
                    self.assert_no_change(".json", f"{path} goes")
                    seen.append("removal")
                self.unsafe.discard(path)
                self.name_changes(path, what)
        return seen
