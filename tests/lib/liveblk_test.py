# SPDX-License-Identifier: BSD-3-Clause
"""The harness of the integration tests: servers, QMP, tools, TAP.

    #!/usr/bin/python3
    from liveblk_test import Server, main, promise

    @promise("a disk can be read back")
    def reads_back(test):
        disk = test.make_disk("disk.img", 1 << 20)
        server = Server(test, [disk])
        ...

    main()

Each promise runs in a fresh directory with a time limit; whatever it started is killed at its
end. LIVEBLK_BUILD names the build directory (meson sets it). Run a test file with words of a
promise as arguments to run only the promises that contain them.
"""

import contextlib
import ctypes
import faulthandler
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

from liveblk_pattern import DiskModel, check, fill, identify

__all__ = [
    "DiskModel", "Qmp", "QmpError", "Server", "Test", "check", "connect", "fill", "identify",
    "main", "promise", "wait_until", "BUILD", "LIVEBLK", "PLUGIN", "ROOT",
]  # fmt: skip

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("LIVEBLK_BUILD", ROOT / "build")).resolve()
PLUGIN = BUILD / "plugins" / "nbdkit-liveblk-plugin.so"
LIVEBLK = BUILD / "cli" / "liveblk"

# Nothing a test waits for takes this long on a working system, sanitizers included.
PATIENCE = 60

PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None, use_errno=True)


def sanitizer_library():
    """The sanitizer's library that nbdkit must be started with to load our plugin, or None."""
    options = json.loads((BUILD / "meson-info" / "intro-buildoptions.json").read_text())
    value = {option["name"]: option["value"] for option in options}
    if "address" in value["b_sanitize"] and "-shared-libasan" in value["c_args"]:
        question = ["clang", "-print-file-name=libclang_rt.asan-x86_64.so"]
    elif "address" in value["b_sanitize"]:
        question = ["gcc", "-print-file-name=libasan.so"]
    elif "thread" in value["b_sanitize"]:
        question = ["gcc", "-print-file-name=libtsan.so"]
    else:
        return None
    return subprocess.check_output(question, text=True).strip()


def die_with_parent():
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def wait_until(condition, what, timeout=PATIENCE):
    """Call condition until it returns something true, and return that."""
    deadline = time.monotonic() + timeout
    while True:
        result = condition()
        if result:
            return result
        assert time.monotonic() < deadline, f"waited {timeout} s in vain: {what}"
        time.sleep(0.01)


class Test:
    """What one promise has: a directory, a seeded generator, and things that end with it."""

    def __init__(self, directory, seed):
        self.directory = pathlib.Path(directory)
        self.random = random.Random(seed)
        self.cleanup = contextlib.ExitStack()

    def path(self, name):
        return self.directory / name

    def log(self, text):
        for line in str(text).splitlines():
            print(f"# {line}", flush=True)

    def make_disk(self, name, length):
        """An empty raw disk; returns its path."""
        path = self.path(name)
        with open(path, "xb") as file:
            file.truncate(length)
        return path

    def start(self, *command, log=None, env=None, **options):
        """Start a program that is killed at the end of the promise. Output goes to a log file."""
        name = log or f"{pathlib.Path(str(command[0])).name}-{time.monotonic_ns()}.log"
        with open(self.path(name), "ab") as output:
            options.setdefault("stdout", output)
            options.setdefault("stderr", output)
            options.setdefault("stdin", subprocess.DEVNULL)
            process = subprocess.Popen(
                [str(word) for word in command],
                env=dict(os.environ, **(env or {})),
                preexec_fn=die_with_parent,
                **options,
            )
        self.cleanup.callback(end_process, process)
        process.log_path = self.path(name)
        return process

    def run(self, *command, status=0, timeout=PATIENCE, env=None, **options):
        """Run a tool to its end. status: the expected exit status, or None for any.

        Without die_with_parent: it would cost several times what most tools do, as Python then
        copies itself instead of just starting a program. Whoever kills us has our group killed.
        """
        options.setdefault("stdin", subprocess.DEVNULL)
        result = subprocess.run(
            [str(word) for word in command],
            env=dict(os.environ, **(env or {})),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            timeout=timeout,
            **options,
        )
        assert status is None or result.returncode == status, (
            f"{' '.join(map(str, command))}: exit status {result.returncode}, not {status}\n"
            f"{result.stdout}{result.stderr}"
        )
        return result

    def liveblk(self, *arguments, **options):
        """Run our own command line program."""
        return self.run(LIVEBLK, *arguments, **options)


def end_process(process):
    if process.poll() is None:
        process.kill()
    process.wait()


class QmpError(Exception):
    """The server's error answer; kind is its class."""

    def __init__(self, error, command):
        super().__init__(f"{command}: {error['class']}: {error['desc']}")
        self.kind = error["class"]
        self.desc = error["desc"]


class Qmp:
    """A QMP client. Events are kept until somebody waits for them."""

    def __init__(self, path, timeout=PATIENCE, negotiate=True):
        self.timeout = timeout
        self.events = []
        self.buffer = b""
        self.next_id = 0
        self.socket = self.connect(str(path), timeout)
        self.greeting = self.receive()["QMP"]
        if negotiate:
            self.command("qmp_capabilities")

    @staticmethod
    def connect(path, timeout):
        """A program that has just made its socket may not listen yet."""
        deadline = time.monotonic() + 5
        while True:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(timeout)
            try:
                connection.connect(path)
                return connection
            except ConnectionRefusedError:
                connection.close()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send_bytes(self, data):
        self.socket.sendall(data)

    def receive(self, timeout=None):
        """The next message, whatever it is."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while b"\r\n" not in self.buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no message; had so far: {self.buffer!r}")
            self.socket.settimeout(left)
            data = self.socket.recv(1 << 16)
            if not data:
                raise ConnectionError("the server closed the connection")
            self.buffer += data
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        return json.loads(line)

    def request(self, message):
        """Send a message and return the answer to it, error or not."""
        self.send_bytes(json.dumps(message).encode())
        while True:
            answer = self.receive()
            if "event" not in answer:
                return answer
            self.events.append(answer)

    def command(self, name, /, **arguments):
        """Run a command. Underscores at the start of a name are cut, others become dashes.

        The names of the arguments that are spelled with underscores in QMP are given in
        command_raw instead.
        """
        return self.command_raw(
            name, {key.strip("_").replace("_", "-"): value for key, value in arguments.items()}
        )

    def command_raw(self, name, arguments=None):
        self.next_id += 1
        answer = self.request({"execute": name, "arguments": arguments or {}, "id": self.next_id})
        assert answer.get("id") == self.next_id, f"answer to another question: {answer}"
        if "error" in answer:
            raise QmpError(answer["error"], name)
        return answer["return"]

    def wait_event(self, name, /, timeout=None, **data):
        """The first event of this name whose data has these members; earlier others are kept.

        Dashes in the names of members are written as underscores.
        """
        wanted = {key.replace("_", "-"): value for key, value in data.items()}

        def matches(event):
            content = event.get("data", {})
            return event["event"] == name and all(
                content.get(key) == value for key, value in wanted.items()
            )

        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        seen = 0
        while True:
            for i in range(seen, len(self.events)):
                if matches(self.events[i]):
                    return self.events.pop(i)
            seen = len(self.events)
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"no event {name} {wanted}; had: {self.events}")
            message = self.receive(left)
            assert "event" in message, f"expected an event, not {message}"
            self.events.append(message)

    def wait_job(self, job, *states, timeout=None):
        """Wait until a job changes to one of these states; returns that state."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            left = max(0.001, deadline - time.monotonic())
            event = self.wait_event("JOB_STATUS_CHANGE", timeout=left, id=job)
            if event["data"]["status"] in states:
                return event["data"]["status"]


class Server:
    """nbdkit with our plugin, its NBD socket at .nbd and its admin socket at .admin.

    disks: paths, or "name=vda,file=..." strings. nbdkit: more options for it, filters say.
    plugin, parameters: another plugin and its parameters instead.
    """

    def __init__(self, test, disks=(), nbdkit=(), plugin=None, parameters=(), name="server",
                 env=None):  # fmt: skip
        self.test = test
        self.nbd = test.path(f"{name}.nbd")
        self.admin = test.path(f"{name}.admin")
        self.pid_file = test.path(f"{name}.pid")
        for left_over in (self.pid_file, self.nbd):  # by a server of this name that ended
            left_over.unlink(missing_ok=True)
        ours = plugin is None
        words = [f"disk={disk}" for disk in disks] + ([f"admin={self.admin}"] if ours else [])
        self.process = test.start(
            "nbdkit", "-f", "-U", self.nbd, "-P", self.pid_file, *nbdkit,
            PLUGIN if ours else plugin, *words, *parameters,
            log=f"{name}.log", env=dict(self.environment() if ours else {}, **(env or {})),
        )  # fmt: skip
        self.log_path = self.process.log_path
        wait_until(self.is_ready, f"{name} listens")

    @staticmethod
    def environment():
        library = sanitizer_library()
        # nbdkit itself, which is not instrumented, would be blamed for its own small leaks.
        return {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0"} if library else {}

    def is_ready(self):
        assert self.process.poll() is None, f"nbdkit ended early:\n{self.log()}"
        return self.pid_file.exists() and self.nbd.exists()

    def log(self):
        return self.log_path.read_text(errors="replace")

    def uri(self, export=""):
        return f"nbd+unix:///{export}?socket={self.nbd}"

    def connect(self, export=""):
        """A libnbd handle to an export."""
        return connect(self.uri(export))

    def qmp(self, **options):
        qmp = Qmp(self.admin, **options)
        self.test.cleanup.callback(qmp.close)
        return qmp

    def stop(self, timeout=PATIENCE):
        """Ask it to end, as a service manager does, and check that it ends well.

        nbdkit waits for its clients: disconnect them before (handle.shutdown()).
        """
        self.process.terminate()
        status = self.process.wait(timeout)
        assert status == 0, f"nbdkit ended with status {status}:\n{self.log()}"

    def kill(self):
        self.process.kill()
        self.process.wait()


def error_of(function, *arguments):
    """The name of the errno that a call of libnbd fails with; None: it does not."""
    import nbd

    try:
        function(*arguments)
    except nbd.Error as error:
        return error.errno
    return None


def refused(qmp, name, arguments, word, kind="GenericError"):
    """A command is refused with an error of this class that has a word in it; returns the error."""
    try:
        qmp.command_raw(name, arguments)
    except QmpError as error:
        assert word in error.desc and error.kind == kind, error
        return error
    raise AssertionError(f"{name} {arguments} was not refused")


def expect_error(text, qmp, command, **arguments):
    """The same for arguments as Qmp.command takes them; any class, the text may be a part of it."""
    try:
        qmp.command(command, **arguments)
    except QmpError as error:
        assert text in str(error), f"{text!r} is not in {error}"
    else:
        raise AssertionError(f"{command} succeeded")


def start_copy(qmp, command, job, target, **options):
    """Start a job that copies all of vda; options as for Qmp.command."""
    arguments = {"job_id": job, "device": "vda", "target": str(target), "sync": "full"}
    qmp.command(command, **{**arguments, **options})


def start_backup(qmp, job, target, **options):
    """The same: a backup to a file."""
    start_copy(qmp, "drive-backup", job, target, **options)


def connect(uri):
    """A libnbd handle. It closes when it is no longer referred to."""
    import nbd  # only Debian's own python3 has it

    handle = nbd.NBD()
    handle.set_uri_allow_local_file(True)  # certificates
    handle.connect_uri(str(uri))
    return handle


promises = []


def promise(text, timeout=PATIENCE):
    """Decorate a test: text says what the user may rely on."""

    def register(function):
        promises.append((text, timeout, function))
        return function

    return register


def give_up(*_):
    faulthandler.dump_traceback(all_threads=True)
    raise TimeoutError("the promise took too long")


def show_logs(test):
    for path in sorted(test.directory.glob("*.log")):
        text = path.read_text(errors="replace")[-4000:]
        if text:
            test.log(f"--- {path.name}\n{text}")


def keep_promise(function, timeout, seed):
    """Run one test; True if it held."""
    directory = tempfile.mkdtemp(prefix="liveblk-test-")
    test = Test(directory, seed)
    signal.alarm(timeout)
    try:
        with test.cleanup:
            function(test)
        return True
    except Exception:
        signal.alarm(0)
        test.log(traceback.format_exc())
        show_logs(test)
        return False
    finally:
        signal.alarm(0)
        shutil.rmtree(directory, ignore_errors=True)


def main():
    """Run all promises, or those that contain a word of the command line; never returns."""
    words = sys.argv[1:]
    chosen = [entry for entry in promises if not words or any(w in entry[0] for w in words)]
    seed = int(os.environ.get("LIVEBLK_TEST_SEED") or random.SystemRandom().getrandbits(63))
    signal.signal(signal.SIGALRM, give_up)
    print(f"1..{len(chosen)}\n# LIVEBLK_TEST_SEED={seed}", flush=True)
    kept = 0
    for number, (text, timeout, function) in enumerate(chosen, 1):
        held = keep_promise(function, timeout, seed)
        kept += held
        print(f"{'ok' if held else 'not ok'} {number} - {text}", flush=True)
    sys.stdout.flush()
    os._exit(0 if kept == len(chosen) else 1)
