#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
"""docs/chains.md, docs/mirror.md and docs/clients.md do not lie: their commands print what they show."""

import re

from liveblk_test import LIVEBLK, ROOT, main, promise

MARK = "=== end of block"
BLOCK = re.compile(r"^```(sh|output)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read_blocks(text):
    """Pairs of commands and the output that is shown below them, or None."""
    blocks = []
    for kind, content in BLOCK.findall(text):
        if kind == "sh":
            blocks.append([content, None])
        else:
            blocks[-1][1] = content
    return blocks


def stable(text, directory="/vm"):
    """Without what differs from one run to another: names of nodes, space used, speed, columns."""
    text = text.replace(str(directory), "/vm")
    text = re.sub(r"#block\d+", "#block", text)
    text = re.sub(r"\d[\d.]* ([KMG]i)?B", "SIZE", text)
    text = re.sub(r" in \d+:\d\d, SIZE/s", "", text)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    # "Killed", with the command.
    return [line for line in lines if not line.startswith(("bash: ", "environment: "))]


def run(test, name):
    blocks = read_blocks((ROOT / "docs" / name).read_text())
    directory = test.path("vm")
    directory.mkdir()
    commands = "".join(f"{commands}echo '{MARK}'\n" for commands, _ in blocks)
    # Whatever happens, no server is left.
    script = f"trap 'kill -9 $(jobs -p) 2>/dev/null || true' EXIT\nexec 2>&1\n{commands}"
    result = test.run("bash", "-e", "-c", script, cwd=directory, status=None, timeout=200, env={
        "PATH": f"{LIVEBLK.parent}:/usr/sbin:/usr/bin:/sbin:/bin",
        "XDG_RUNTIME_DIR": str(test.path("vm")),
        "LIVEBLK_ADMIN": "",
    })  # fmt: skip
    printed = result.stdout.split(MARK + "\n")
    for (commands, shown), output in zip(blocks, printed):
        if shown is not None:
            assert stable(output, directory) == stable(shown), f"{commands} printed:\n{output}"
    assert result.returncode == 0, f"exit status {result.returncode}: {printed[-1]}"
    assert len(printed) == len(blocks) + 1
    return len(blocks), sum(shown is not None for _, shown in blocks)


@promise("the commands of docs/chains.md work, in order, and print what is shown", timeout=240)
def chains(test):
    blocks, shown = run(test, "chains.md")
    assert blocks > 10 and shown > 8


@promise("the commands of docs/mirror.md work, in order, and print what is shown", timeout=240)
def mirror(test):
    blocks, shown = run(test, "mirror.md")
    assert blocks > 6 and shown > 3


@promise("the commands of docs/clients.md work, in order, and print what is shown", timeout=240)
def clients(test):
    blocks, shown = run(test, "clients.md")
    assert blocks > 8 and shown > 5


if __name__ == "__main__":
    main()
