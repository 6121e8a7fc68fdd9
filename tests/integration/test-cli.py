#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The manners of the liveblk command: what it prints where, how it exits, what Ctrl-C does.
Usage: test-cli.py PROGRAM"""
import json
import os
import pty
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "lib")]
import tap
from fake_qmp import FakeQmp

PROGRAM = os.path.abspath(sys.argv[1])
COMMANDS = ["serve", "status", "backup", "mirror", "view", "job", "stats", "events", "qmp"]
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


def start_backup(*more, server=None):
    server = server or FakeQmp(path("admin"))
    process = spawn("backup", "vda", "--to", path("target"), "-a", server.path, *more)
    server.wait_for_command("drive-backup")
    return server, process


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


def backup_on_terminal():
    server = FakeQmp(path("admin"))
    terminal = Terminal("backup", "vda", "--to", path("target"), "-a", server.path)
    server.wait_for_command("drive-backup")
    server.progress(420, 1000)
    return server, terminal


def test_help():
    """help goes to stdout, fits 80 columns and succeeds"""
    for words in [["--help"], ["-h"], ["help"]] + [[c, "--help"] for c in COMMANDS]:
        result = run(*words)
        assert result.returncode == 0 and not result.stderr, (words, result.stderr)
        assert result.stdout.startswith("Usage: liveblk"), words
        assert max(map(len, result.stdout.splitlines())) <= 80, words


def test_version():
    """--version prints the version, with every subcommand"""
    for words in [["--version"]] + [[c, "--version"] for c in COMMANDS]:
        result = run(*words)
        assert result.returncode == 0 and result.stdout.startswith("liveblk 0."), words


def test_usage_errors():
    """a command line that makes no sense exits with 2, says why on stderr, and prints nothing"""
    for words, text in [
            ([], "No command"),
            (["--admin", "x"], "No command"),
            (["--admin"], "no value for '--admin'"),
            (["--json", "complete"], "Unknown option --json"),
            (["frobnicate"], "no command 'frobnicate'"),
            (["--frobnicate"], "no option '--frobnicate'"),
            (["status", "--frobnicate"], "Unknown option --frobnicate"),
            (["status", "extra"], "Unexpected argument 'extra'"),
            (["backup", "--to", "x"], "Too few arguments"),
            (["backup", "vda"], "--to TARGET is missing"),
            (["backup", "vda", "--to", "x", "--speed", "-5"], "--speed expects"),
            (["backup", "vda", "--to", "x", "--speed", "9999999999G"], "--speed expects"),
            (["backup", "vda", "--to", "x", "--sync", "top"], "--sync expects one of full, none"),
            (["backup", "vda", "--to", "x", "--on-target-error", "y"], "--on-target-error"),
            (["backup", "vda", "--to", "x", "--max-workers", "-1"], "--max-workers"),
            (["backup", "vda", "--to", "nbd+unix:///x?socket=y"], "absolute path"),
            (["backup", "vda", "--to", "node:x", "--existing"], "only for a target that is a file"),
            (["backup", "vda", "--to", FOLDER], "is a directory"),
            (["mirror", "vda"], "--to TARGET is missing: where shall the mirror go?"),
            (["mirror", "vda", "--to", "x", "--keep", "--pivot"], "exclude each other"),
            (["mirror", "vda", "--to", "x", "--keep", "--detach"], "nobody stays"),
            (["mirror", "vda", "--to", "x", "--sync", "top"], "--sync expects one of full, none"),
            (["mirror", "vda", "--to", "x", "--granularity", "y"], "--granularity expects"),
            (["mirror", "vda", "--to", "x", "--buf-size", "-1"], "--buf-size expects"),
            (["view"], "What to do with views?"),
            (["view", "create"], "Too few arguments"),
            (["view", "create", b"\xff"], "not valid UTF-8"),
            (["view", "drop", "x", "--timeout", "3"], "Only 'view create'"),
            (["view", "list", "--force"], "--force is only for 'view drop'"),
            (["job", "wait", "x", "--keep"], "--keep is only for 'job cancel'"),
            (["job"], "What to do with jobs?"),
            (["job", "pause"], "Too few arguments"),
            (["job", "list", "x"], "Unexpected argument"),
            (["stats", "--interval", "0"], "--interval expects"),
            (["serve"], "Too few arguments"),
            (["serve", "x", "--port", "70000"], "--port expects"),
            (["serve", "x", "--port", "1", "--socket", "y"], "exclude each other"),
            (["serve", "x", "--name", "a/b"], "--name expects")]:
        result = run(*words)
        expect(result, 2, text)
        assert not result.stdout and "Try 'liveblk" in result.stderr, words


def test_no_server():
    """without a server the complaint names what was tried and how to name another"""
    runtime = path("runtime")
    os.mkdir(runtime, 0o700)
    result = run("status", env=environment(XDG_RUNTIME_DIR=runtime))
    expect(result, 3, runtime + "/liveblk")
    assert "--admin SOCKET" in result.stderr and "LIVEBLK_ADMIN" in result.stderr
    expect(run("status", "-a", "/nonexistent/socket"), 3, "'/nonexistent/socket'")
    expect(run("status", env=environment(LIVEBLK_ADMIN="/nonexistent/other")), 3, "other")
    expect(run("status", "-a", "/" + "x" * 200), 3, "longer than")


def test_default_socket():
    """the only server in the default directory is found, a dead one is not, of two none"""
    runtime = path("runtime")
    os.makedirs(runtime + "/liveblk", 0o700)
    env = environment(XDG_RUNTIME_DIR=runtime)
    FakeQmp(runtime + "/liveblk/dead.admin.sock").die()
    FakeQmp(runtime + "/liveblk/one.admin.sock")
    expect(run("status", env=env), 0)
    FakeQmp(runtime + "/liveblk/two.admin.sock")
    expect(run("status", env=env), 3, "Several servers run")


def test_bad_peers():
    """a peer that speaks no QMP, says nothing sensible or leaves is a clear error"""
    expect(run("status", "-a", FakeQmp(path("a"), b"220 mail ESMTP\r\n").path), 3, "is not QMP")
    expect(run("status", "-a", FakeQmp(path("a"), b"{\"QMP\": \n").path), 3, "is not QMP")
    expect(run("status", "-a", FakeQmp(path("a"), b"[1, 2]\n").path), 3, "is not QMP")
    expect(run("status", "-a", FakeQmp(path("a"), b"\xff\xfe\n").path), 3, "is not QMP")
    server = FakeQmp(path("a"), b"")
    process = spawn("status", "-a", server.path)
    server.wait_for(lambda s: s.connections)
    server.die()
    status, _, err = end(process)
    assert status == 3 and "closed the connection" in err, err


def test_status():
    """status shows devices, exports and jobs, as tables and as JSON"""
    server = FakeQmp(path("admin"))
    result = run("status", "-a", server.path)
    expect(result, 0)
    for text in ["vda-node", "1.0 GiB", "/images/a.img", "DEFAULT", "No jobs."]:
        assert text in result.stdout, result.stdout
    for words in [["status", "--json", "-a", server.path], ["-a", server.path, "--json", "status"],
                  [f"--admin={server.path}", "status", "--json"]]:
        expect(run(*words), 0)
        data = json.loads(run(*words).stdout)
    assert data["devices"][0]["device"] == "vda" and data["jobs"] == []
    assert data["exports"] == [{"id": "vda", "type": "nbd", "node-name": "vda-node",
                                "default": True}]


def test_stats():
    """stats computes mean, p50 and p99 and never invents what it does not know"""
    server = FakeQmp(path("admin"))
    entries = {e["operation"]: e for e in
               json.loads(run("stats", "--json", "-a", server.path).stdout)}
    read = entries["read"]
    assert (read["operations"], read["bytes"], read["mean_ns"]) == (100, 409600, 5000)
    assert (read["p50_ns"], read["p99_ns"]) == (1000, 100000)
    assert entries["write"]["p99_ns"] is None and entries["write"]["failed"] == 2
    assert entries["flush"]["mean_ns"] is None
    assert "5.0 us" in run("stats", "-a", server.path).stdout


def test_stats_watch():
    """stats --watch prints a JSON line per interval"""
    server = FakeQmp(path("admin"))
    process = spawn("stats", "--watch", "--interval", "0.1", "--json", "-a", server.path)
    line = json.loads(process.stdout.readline())
    process.terminate()
    end(process)
    assert line["seconds"] > 0 and line["devices"][0]["operations"] == 0


def test_events():
    """events are printed as they happen, filtered, and the server's end is an error"""
    server = FakeQmp(path("admin"))
    process = spawn("events", "--json", "--filter", "BLOCK_*", "-a", server.path)
    server.wait_for_command("qmp_capabilities")
    server.event("JOB_STATUS_CHANGE", id="x", status="running")
    server.event("BLOCK_JOB_COMPLETED", device="x")
    assert json.loads(process.stdout.readline())["event"] == "BLOCK_JOB_COMPLETED"
    server.die()
    status, out, err = end(process)
    assert (status, out) == (3, "") and "closed the connection" in err


def test_qmp():
    """qmp sends words, JSON and lines, and exits with 1 when the server refuses"""
    server = FakeQmp(path("admin"))
    result = run("qmp", "drive-backup", "job-id=a", '{"speed": 5}', "x-perf.max-workers=4",
                 "compress=false", "format=raw", "-a", server.path)
    expect(result, 0)
    assert server.arguments_of("drive-backup") == {
        "job-id": "a", "speed": 5, "x-perf": {"max-workers": 4}, "compress": False,
        "format": "raw"}
    expect(run("qmp", "nonsense", "-a", server.path), 1, "CommandNotFound")
    expect(run("qmp", "query-jobs", "nonsense", "-a", server.path), 2, "neither KEY=VALUE")
    result = run("qmp", "-a", server.path, stdin='query-block\n\n{"execute": "no", "id": [1]}\n')
    expect_lines = json_lines(result.stdout)
    assert result.returncode == 1 and len(expect_lines) == 2
    assert expect_lines[0]["return"][0]["device"] == "vda" and expect_lines[1]["id"] == [1]


def test_job_verbs():
    """job verbs reach the server, and its refusal is exit status 1"""
    server = FakeQmp(path("admin"))
    run("qmp", "drive-backup", "job-id=j", "-a", server.path)
    for verb in ["pause", "resume", "finalize"]:
        expect(run("job", verb, "j", "-a", server.path), 0)
        assert server.arguments_of("job-" + verb) == {"id": "j"}
    expect(run("job", "speed", "j", "1.5M", "-a", server.path), 0)
    assert server.arguments_of("block-job-set-speed") == {"device": "j", "speed": 3 << 19}
    assert "5.0 MiB/s" in run("job", "list", "-a", server.path).stdout
    assert json.loads(run("job", "list", "--json", "-a", server.path).stdout)[0]["id"] == "j"
    done = json.loads(run("job", "resume", "j", "--json", "-a", server.path).stdout)
    assert done == {"message_type": "done", "verb": "resume", "job_id": "j"}
    server.refuse["job-pause"] = ("GenericError", "Job is already paused")
    expect(run("job", "pause", "j", "-a", server.path), 1, "Job is already paused")
    refused = run("job", "pause", "j", "--json", "-a", server.path)
    expect(refused, 1, "Job is already paused")
    assert json.loads(refused.stdout)["message_type"] == "error"
    expect(run("job", "wait", "other", "-a", server.path), 1, "no job 'other'")


def test_backup_arguments():
    """backup asks for a job that cannot vanish before its error is read, with all options"""
    server, process = start_backup("--speed", "50M", "--max-workers", "3", "--sync", "none",
                                   "--on-target-error", "stop", "--on-source-error", "ignore")
    sent = server.arguments_of("drive-backup")
    assert os.path.isabs(sent.pop("target"))
    assert sent == {"device": "vda", "sync": "none", "job-id": "backup-vda", "speed": 50 << 20,
                    "auto-dismiss": False, "x-perf": {"max-workers": 3}, "format": "raw",
                    "mode": "absolute-paths", "on-target-error": "stop",
                    "on-source-error": "ignore"}
    server.finish()
    status, out, _ = end(process)
    assert status == 0 and "is complete" in out
    assert server.arguments_of("job-dismiss") == {"id": "backup-vda"} and server.job is None


def start_mirror(*more, to=None):
    server = FakeQmp(path("admin"))
    process = spawn("mirror", "vda", "--to", to or path("target"), "-a", server.path, *more)
    server.wait_for(lambda s: s.job and any("mirror" in name for name, _ in s.commands))
    return server, process


def test_mirror_arguments():
    """mirror asks for what its options say; without --pivot or --keep it ends when it is ready"""
    server, process = start_mirror("--speed", "50M", "--sync", "none", "--granularity", "64K",
                                   "--buf-size", "1M", "--on-target-error", "stop", "--no-unmap")
    sent = server.arguments_of("drive-mirror")
    assert os.path.isabs(sent.pop("target"))
    assert sent == {"device": "vda", "sync": "none", "job-id": "mirror-vda", "speed": 50 << 20,
                    "auto-dismiss": False, "format": "raw", "mode": "absolute-paths",
                    "granularity": 65536, "buf-size": 1 << 20, "unmap": False,
                    "on-target-error": "stop"}
    server.ready()
    status, out, err = end(process)
    assert status == 0 and not err and "is ready and goes on" in out, (status, out, err)
    assert "'liveblk job complete mirror-vda'" in out and "--keep mirror-vda" in out
    assert server.job["status"] == "ready"


def test_mirror_ends():
    """mirror --pivot completes a ready job, --keep ends it without that; both wait for its end"""
    for option, command, arguments in [("--pivot", "job-complete", {"id": "mirror-vda"}),
                                       ("--keep", "block-job-cancel", {"device": "mirror-vda"})]:
        server, process = start_mirror(option, "--json")
        server.progress(420, 1000)
        assert command not in [name for name, _ in server.commands]
        server.ready()
        status, out, err = end(process)
        assert status == 0 and not err, (status, err)
        messages = [m for m in json_lines(out) if m["message_type"] != "status"]
        assert [m["message_type"] for m in messages] == ["ready", "summary"], messages
        assert messages[-1]["outcome"] == "success"
        assert server.arguments_of(command) == arguments and server.job is None


def test_mirror_cannot_complete():
    """a ready mirror that may not complete is left alone, with the reason; one that fails fails"""
    server, process = start_mirror("--pivot")
    server.refuse["job-complete"] = ("GenericError", "Node is locked")
    server.ready()
    status, out, err = end(process)
    assert (status, out) == (1, "") and "Node is locked" in err and "goes on" in err, err
    assert server.job["status"] == "ready"
    server, process = start_mirror("--pivot")
    server.mute.add("job-complete")
    server.do_job_complete = lambda arguments: {}
    server.ready()
    server.wait_for_command("job-complete")
    server.finish("Input/output error")
    with server.lock:
        server.send(server.connections[0], {"return": {}, "id": server.last_id["job-complete"]})
    status, out, err = end(process)
    assert (status, out) == (1, "") and "Input/output error" in err and "Do not use" in err, err


def test_mirror_to_nbd():
    """the node of an NBD target stays if the disk has moved there, and goes otherwise"""
    for option, nodes in [("--pivot", {"to-mirror-vda": "nbd"}), ("--keep", {})]:
        server, process = start_mirror(option, to="nbd://host/x")
        assert server.arguments_of("blockdev-mirror")["target"] == "to-mirror-vda"
        server.ready()
        status, _, err = end(process)
        assert status == 0 and server.nodes == nodes and not err, (server.nodes, err)


def test_mirror_cancelled():
    """a mirror that is interrupted is cancelled, even while it waits to be completed"""
    server, process = start_mirror("--pivot")
    server.do_job_complete = lambda arguments: {}
    server.ready()
    server.wait_for_command("job-complete")
    process.send_signal(signal.SIGTERM)
    status, _, err = end(process)
    assert status == 4 and "was cancelled" in err and "not a complete copy" in err, err


def test_ready_jobs():
    """job complete and job cancel --keep end a ready job and say how; others they refuse"""
    for words, command in [(["complete"], "job-complete"),
                           (["cancel", "--keep"], "block-job-cancel")]:
        server = FakeQmp(path("admin"))
        words = ["job", *words, "mirror-vda", "-a", server.path]
        run("mirror", "vda", "--to", path("t"), "--detach", "-a", server.path)
        server.refuse["job-complete"] = ("GenericError", "cannot accept command verb 'complete'")
        result = run(*words, "--json")
        expect(result, 1, "Job 'mirror-vda' is not ready" if "cancel" in words else "'complete'")
        assert [m["message_type"] for m in json_lines(result.stdout)] == ["error"]
        assert "block-job-cancel" not in [name for name, _ in server.commands]
        server.refuse.clear()
        server.ready()
        process = spawn("job", "wait", "mirror-vda", "-a", server.path)
        assert "is ready; 'liveblk job complete mirror-vda'" in process.stderr.readline()
        result = run(*words)
        expect(result, 0)
        assert "Job 'mirror-vda' is complete" in result.stdout
        assert command in [name for name, _ in server.commands] and server.job is None
        assert end(process)[0] == 0  # whoever of the two dismissed it


def test_views():
    """view verbs send what was asked for, and say what the server has made"""
    server = FakeQmp(path("admin"))
    result = run("view", "create", "night", "-a", server.path)
    expect(result, 0)
    assert server.arguments_of("view-create") == {"name": "night"}
    assert "export 'vda@night' of the NBD server" in result.stdout, result.stdout
    assert "'liveblk view drop night'" in result.stdout
    folder = path("scratch")
    result = run("view", "create", "day", "-d", "vda", "-d", "vdb", "--scratch", folder,
                 "--scratch-max", "1G", "--timeout", "3", "--break-guest-write", "--discard",
                 "--json", "-a", server.path)
    assert server.arguments_of("view-create") == {
        "name": "day", "devices": ["vda", "vdb"], "scratch": folder, "scratch-max": 1 << 30,
        "cbw-timeout": 3, "on-cbw-error": "break-guest-write", "discard": True}
    view = json.loads(result.stdout)
    assert view["name"] == "day" and view["devices"][1]["export"] == "vdb@day"
    assert view["devices"][1]["uri"] is None
    server.views[1].update({"status": "broken", "error": "No space left on device"})
    out = run("view", "list", "-a", server.path).stdout
    for text in ["vda@day, vdb@day", "3.0 MiB", "1.0 GiB", "broken", "No space left on device"]:
        assert text in out, out
    assert len(json.loads(run("view", "list", "--json", "-a", server.path).stdout)) == 2
    assert "vda@night" in run("status", "-a", server.path).stdout
    assert len(json.loads(run("status", "--json", "-a", server.path).stdout)["views"]) == 2
    expect(run("view", "discard", "day", "vda", "1M", "64K", "-a", server.path), 0)
    assert server.arguments_of("view-discard") == {"name": "day", "device": "vda",
                                                   "offset": 1 << 20, "length": 65536}
    done = json.loads(run("view", "drop", "day", "--force", "--json", "-a", server.path).stdout)
    assert done == {"message_type": "done", "verb": "drop", "view": "day"}
    assert server.arguments_of("view-drop") == {"name": "day", "force": True}
    server.refuse["view-drop"] = ("GenericError", "View 'night' has clients")
    result = run("view", "drop", "night", "--json", "-a", server.path)
    expect(result, 1, "has clients")
    assert json.loads(result.stdout)["message_type"] == "error"


def test_view_scratch_nodes():
    """scratch nodes go to the server in its disks' order, one for each"""
    server = FakeQmp(path("admin"))
    server.devices.append(dict(server.devices[0], device="vdb"))
    words = ["view", "create", "x", "-a", server.path, "--scratch-node", "vdb=second"]
    expect(run(*words), 2, "--scratch-node vda=NODE")
    expect(run(*words, "--scratch-node", "vda=first"), 0)
    sent = server.arguments_of("view-create")
    assert sent == {"name": "x", "devices": ["vda", "vdb"], "scratch-nodes": ["first", "second"]}
    expect(run(*words, "-d", "vdb"), 0)
    assert server.arguments_of("view-create")["scratch-nodes"] == ["second"]
    expect(run(*words, "-d", "vda", "--scratch-node", "vda=first"), 2, "more --scratch-node")
    expect(run(*words, "--scratch-node", "first"), 2, "expects DEVICE=NODE")
    expect(run(*words, "--scratch", "/x"), 2, "exclude each other")


def test_view_uri():
    """the URI of a view is told if the server's NBD socket is at its usual place"""
    folder = path("runtime")
    os.mkdir(folder)
    server = FakeQmp(folder + "/default.admin.sock")
    FakeQmp(folder + "/default.nbd.sock")
    result = run("view", "create", "night", "-a", server.path)
    uri = f"nbd+unix:///vda@night?socket={folder}/default.nbd.sock"
    assert f"nbdcopy '{uri}' FILE" in result.stdout, result.stdout
    result = run("view", "create", "night", "--json", "-a", server.path)
    assert json.loads(result.stdout)["devices"][0]["uri"] == uri


def test_existing_file():
    """a file that is there is not overwritten unless --existing says so"""
    server = FakeQmp(path("admin"))
    target = path("target")
    open(target, "w").close()
    expect(run("backup", "vda", "--to", target, "-a", server.path), 1, "is there already")
    assert not server.commands
    expect(run("backup", "vda", "--to", target, "--existing", "-d", "-a", server.path), 0)
    assert server.arguments_of("drive-backup")["mode"] == "existing"


def test_backup_fails():
    """a failed backup exits with 1, its cause, and a warning not to use the target"""
    server, process = start_backup()
    server.finish("No space left on device")
    status, out, err = end(process)
    assert (status, out) == (1, "")
    assert "No space left on device" in err and "not a complete copy" in err
    assert server.job is None


def test_backup_refused():
    """a refused start exits with 1 and, with --json, says so in JSON too"""
    server = FakeQmp(path("admin"))
    server.refuse["drive-backup"] = ("GenericError", "Cannot find device='vda'")
    result = run("backup", "vda", "--to", path("t"), "--json", "-a", server.path)
    expect(result, 1, "Cannot find device")
    assert [m["message_type"] for m in json_lines(result.stdout)] == ["error"]


def test_nbd_target():
    """an NBD target is a node that is removed when the job has ended, or was refused"""
    server = FakeQmp(path("admin"))
    words = ["backup", "vda", "--to", "nbd://host/x", "-a", server.path]
    process = spawn(*words)
    server.wait_for_command("blockdev-backup")
    assert server.arguments_of("blockdev-add")["uri"] == "nbd://host/x"
    assert server.arguments_of("blockdev-backup")["target"] == "to-backup-vda"
    server.finish()
    assert end(process)[0] == 0 and not server.nodes
    server.refuse["blockdev-backup"] = ("GenericError", "no")
    expect(run(*words), 1, "no")
    assert not server.nodes


def test_detach():
    """--detach prints the job's id; job wait follows it later, dismisses it and removes its node"""
    server = FakeQmp(path("admin"))
    result = run("backup", "vda", "--to", "nbd://host/x", "-d", "-a", server.path)
    assert (result.returncode, result.stdout) == (0, "backup-vda\n")
    assert server.job and server.nodes
    server.finish("Input/output error")
    expect(run("job", "wait", "backup-vda", "-a", server.path), 1, "Input/output error")
    assert server.job is None and not server.nodes


def test_job_ids():
    """a second backup of a device gets another job id"""
    server = FakeQmp(path("admin"))
    run("backup", "vda", "--to", path("t"), "-d", "-a", server.path)
    result = run("backup", "vda", "--to", path("t"), "-d", "-a", server.path)
    assert result.stdout == "backup-vda-2\n"


def test_json_progress():
    """--json prints status lines that are never at 100 % and a summary at the end"""
    server, process = start_backup("--json")
    server.progress(1000, 1000)
    time_line = json.loads(process.stdout.readline())
    assert time_line["message_type"] == "status" and time_line["job_id"] == "backup-vda"
    line = json.loads(process.stdout.readline())
    server.finish()
    status, out, err = end(process)
    messages = [time_line, line] + json_lines(out)
    assert status == 0 and not err
    for message in messages[:-1]:
        assert message["percent_done"] is None or message["percent_done"] < 1, message
    assert messages[-1]["message_type"] == "summary" and messages[-1]["outcome"] == "success"
    assert messages[-1]["bytes_done"] == 1000


def test_signal_away_from_terminal():
    """away from a terminal SIGINT and SIGTERM cancel the job, wait for it and exit with 4"""
    for number in [signal.SIGINT, signal.SIGTERM]:
        server, process = start_backup()
        process.send_signal(number)
        status, out, err = end(process)
        assert (status, out) == (4, "") and "was cancelled" in err, (status, err)
        server.wait_for_command("job-cancel")
        assert server.job is None


def test_hangup():
    """SIGHUP leaves the job running and exits with 5"""
    server, process = start_backup()
    process.send_signal(signal.SIGHUP)
    status, _, err = end(process)
    assert status == 5 and "job wait backup-vda" in err
    assert server.job["status"] == "running"


def test_usr1():
    """away from a terminal nothing is painted; SIGUSR1 prints one line"""
    server, process = start_backup()
    server.progress(420, 1000)
    process.send_signal(signal.SIGUSR1)
    line = process.stderr.readline()
    assert "42.0 %" in line and "copying" in line and "\r" not in line, line
    server.finish()
    status, _, err = end(process)
    assert (status, err) == (0, "")


def test_server_dies():
    """a server that dies in mid-backup means exit status 3 and a warning about the target"""
    server, process = start_backup("--json")
    server.die()
    status, out, err = end(process)
    assert status == 3, (status, err)
    assert "closed the connection" in err or "connection to the server was lost" in err
    assert "not a complete copy" in err
    assert json_lines(out)[-1]["outcome"] == "unknown"


def test_silent_server():
    """a server that stops answering does not keep Ctrl-C from being heard"""
    server, process = start_backup()
    server.mute.add("query-jobs")
    server.wait_for_command("query-jobs")
    process.send_signal(signal.SIGINT)
    server.wait_for_command("job-cancel")
    server.mute.clear()
    server.die()
    assert end(process)[0] == 3


def test_vanished_job():
    """a job that somebody else dismissed is judged by its events"""
    server, process = start_backup()
    server.event("BLOCK_JOB_COMPLETED", device="backup-vda", error="Broken disk")
    server.do_job_dismiss({})
    status, _, err = end(process)
    assert status == 1 and "Broken disk" in err
    server, process = start_backup()
    server.progress(1, 2)
    server.do_job_dismiss({})
    status, _, err = end(process)
    assert status == 1 and "vanished" in err


def test_paused_by_error():
    """a job that an error has paused is reported with the way to go on"""
    server, process = start_backup()
    server.event("BLOCK_JOB_ERROR", device="backup-vda", operation="write", action="stop")
    assert "job resume backup-vda" in process.stderr.readline()
    server.finish()
    assert end(process)[0] == 0


def test_progress_line():
    """on a terminal one line is painted over, and the end is a line of its own"""
    server, terminal = backup_on_terminal()
    terminal.expect("42.0 %")
    server.progress(1000, 1000)
    terminal.expect("99.9 %")
    server.finish()
    status, text = terminal.end()
    assert status == 0 and "is complete" in text and "100.0 %" not in text, text


def test_question_go_on():
    """Ctrl-C on a terminal asks, and g goes on"""
    server, terminal = backup_on_terminal()
    terminal.expect("42.0 %")
    terminal.type("\x03")
    terminal.expect("[g]o on?")
    terminal.type("g\n")
    terminal.expect("42.0 %")
    server.finish()
    assert terminal.end()[0] == 0


def test_question_cancel():
    """c cancels"""
    server, terminal = backup_on_terminal()
    terminal.type("\x03")
    terminal.expect("[g]o on?")
    terminal.type("x\n")
    terminal.expect("[g]o on?")
    terminal.type("c\n")
    status, text = terminal.end()
    assert status == 4 and "was cancelled" in text


def test_question_detach():
    """d detaches: the job goes on and the exit status is 5"""
    server, terminal = backup_on_terminal()
    terminal.type("\x03")
    terminal.expect("[g]o on?")
    terminal.type("d\n")
    status, text = terminal.end()
    assert status == 5 and "goes on" in text and server.job["status"] == "running"


def test_question_overtaken():
    """a job that ends while the question is open needs no answer; a second Ctrl-C cancels"""
    server, terminal = backup_on_terminal()
    terminal.type("\x03")
    terminal.expect("[g]o on?")
    server.finish()
    status, text = terminal.end()
    assert status == 0 and "is complete" in text
    server, terminal = backup_on_terminal()
    terminal.type("\x03")
    terminal.expect("[g]o on?")
    terminal.type("\x03")
    assert terminal.end()[0] == 4


def serve_with_fake_nbdkit(*words):
    """What serve runs: its arguments, what it is told of sockets; the folder and the result."""
    folder = path("bin")
    os.mkdir(folder)
    with open(folder + "/nbdkit", "w") as script:
        script.write('#!/bin/sh\nfor word; do echo "$word"; done > "$0.args"\n'
                     'echo "$LISTEN_FDS" $((LISTEN_PID == $$)) $(readlink /proc/$$/fd/3)'
                     ' > "$0.sockets"\n')
    os.chmod(folder + "/nbdkit", 0o755)
    runtime = path("runtime")
    os.mkdir(runtime, 0o700)
    result = run("serve", *words, env=environment(
        PATH=folder + ":" + os.environ["PATH"], XDG_RUNTIME_DIR=runtime, LIVEBLK_PLUGIN="PLUGIN"))
    with open(folder + "/nbdkit.args") as args, open(folder + "/nbdkit.sockets") as sockets:
        return args.read().splitlines(), sockets.read().strip(), runtime + "/liveblk", result


def test_serve_arguments():
    """serve runs nbdkit with private sockets and passes on what follows --"""
    args, sockets, folder, result = serve_with_fake_nbdkit(
        "a.img", "name=b,file=c", "--name", "vm1", "--read-only", "--", "--filter=cow")
    expect(result, 0)
    assert args == ["-f", "-r", "PLUGIN", f"admin={folder}/vm1.admin.sock", "name=vm1",
                    "read-only=true", "disk=a.img", "disk=name=b,file=c", "--filter=cow"], args
    assert sockets.startswith("1 1 socket:"), sockets
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    args, sockets = serve_with_fake_nbdkit("a.img", "--port", "10810", "--pidfile", "/x")[:2]
    assert not sockets.startswith("1"), sockets
    assert args[:7] == ["-f", "-p", "10810", "-i", "localhost", "-P", "/x"], args


def test_serve_occupied():
    """serve refuses a path that somebody serves, or that is no socket"""
    server = FakeQmp(path("admin"))
    expect(run("serve", "x", "-a", server.path, "--socket", path("nbd")), 1, "already runs")
    plain = path("plain")
    open(plain, "w").close()
    expect(run("serve", "x", "-a", path("admin"), "--socket", plain), 1, "is not a socket")
    assert os.path.exists(plain)


def test_completion():
    """completion offers commands, options, their values, and what the server has"""
    server = FakeQmp(path("admin"))
    env = environment(LIVEBLK_ADMIN=server.path)

    def offered(*words):
        return run("complete", "--", *words, env=env).stdout.split()

    assert offered("sta") == ["status", "stats"]
    assert offered("") == COMMANDS + ["--admin", "--json", "--help", "--version"]
    assert offered("backup", "--on-t") == ["--on-target-error"]
    assert offered("backup", "--sync", "") == ["full", "none"]
    assert offered("backup", "") == ["vda"]
    assert offered("backup", "vda", "") == []
    assert offered("job", "d") == ["dismiss"]
    run("qmp", "drive-backup", "job-id=j1", env=env)
    assert offered("job", "pause", "") == ["j1"]
    assert offered("mirror", "vda", "--to", "x", "--on-source-error", "s") == ["stop"]
    assert offered("mirror", "--k") == ["--keep"] and offered("mirror", "--det") == ["--detach"]
    run("view", "create", "night", env=env)
    assert offered("view", "drop", "") == ["night"]
    env = environment(LIVEBLK_ADMIN="/nonexistent/socket")
    assert offered("job", "pause", "") == [] and offered("-a") == []
    assert offered("-a", server.path, "sta") == ["status", "stats"]
    assert offered("-a", server.path, "job", "pause", "") == ["j1"]
    assert offered("job", "--admin", server.path, "pause", "") == ["j1"]
    assert "@file" in offered("--json", "-a", "")
    assert offered("backup", "vda", "-t", "x") == ["@file"]


def test_full_stdout():
    """output that cannot be written is an error"""
    server = FakeQmp(path("admin"))
    with open("/dev/full", "w") as full:
        result = subprocess.run([PROGRAM, "status", "-a", server.path], stdout=full,
                                stderr=subprocess.PIPE, text=True, env=environment())
    assert result.returncode == 1 and "Could not write" in result.stderr


if __name__ == "__main__":
    # Under nohup or in a script's background they come ignored, and liveblk leaves them so.
    for number in [signal.SIGHUP, signal.SIGINT]:
        signal.signal(number, signal.SIG_DFL)
    try:
        status = tap.run([f for n, f in list(globals().items()) if n.startswith("test_")])
    finally:
        shutil.rmtree(FOLDER)
    sys.exit(status)
