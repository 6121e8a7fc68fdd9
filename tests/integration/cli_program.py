# SPDX-License-Identifier: BSD-3-Clause
"""The program liveblk, run by tests whose first argument is its path."""
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import tap

PROGRAM = os.path.abspath(sys.argv[1])
FOLDER = tempfile.mkdtemp(prefix="liveblk-cli-")
counter = 0


def path(name):
    """A new path in the test's folder."""
    global counter
    counter += 1
    return os.path.join(FOLDER, f"{counter}-{name}")


def environment(**extra):
    clean = {k: v for k, v in os.environ.items()
             if not k.startswith("LIVEBLK") and k != "XDG_RUNTIME_DIR"}
    return dict(clean, **extra)


def run(*words, env=None, stdin=""):
    return subprocess.run([PROGRAM, *words], capture_output=True, text=True, timeout=60,
                          input=stdin, env=env or environment())


def spawn(*words):
    return subprocess.Popen([PROGRAM, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            stdin=subprocess.DEVNULL, text=True, env=environment())


def end(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def expect(result, status, text=""):
    """It exited with the status, and text is in its complaint, which is well-formed."""
    assert result.returncode == status, (result.returncode, result.stdout, result.stderr)
    assert text in result.stderr, result.stderr
    if status:
        assert result.stderr.startswith("liveblk: "), result.stderr


def json_lines(text):
    return [json.loads(line) for line in text.splitlines()]


class Terminal:
    """liveblk with a terminal of its own."""

    def __init__(self, *words):
        self.text = ""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(PROGRAM, [PROGRAM, *words], environment())

    def expect(self, text):
        """Read until text appears, and forget what came up to it."""
        deadline = time.monotonic() + 20
        while text not in self.text:
            assert time.monotonic() < deadline, self.text
            if select.select([self.fd], [], [], 1)[0]:
                try:
                    got = os.read(self.fd, 4096)
                except OSError:  # EIO: it has ended
                    got = b""
                assert got, f"ended without {text!r}: {self.text!r}"
                self.text += got.decode()
        before, _, self.text = self.text.partition(text)
        return before

    def type(self, text):
        os.write(self.fd, text.encode())

    def end(self):
        """The exit status, and what was printed until then."""
        rest = self.text
        try:
            while got := os.read(self.fd, 4096):
                rest += got.decode()
        except OSError:
            pass
        os.close(self.fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1]), rest


def main(names):
    """Run the test functions among these names, and exit."""
    # Under nohup or in a script's background they come ignored, and liveblk leaves them so.
    for number in [signal.SIGHUP, signal.SIGINT]:
        signal.signal(number, signal.SIG_DFL)
    try:
        status = tap.run([f for n, f in list(names.items()) if n.startswith("test_")])
    finally:
        shutil.rmtree(FOLDER)
    sys.exit(status)
