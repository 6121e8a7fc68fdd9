#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The manners of the liveblk command: what it prints where, and how it exits.
Usage: test-cli.py PROGRAM"""
import json
import os
import stat
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "lib")]
import cli_program
from cli_program import FOLDER, PROGRAM, end, environment, expect, json_lines, path, run, spawn
from fake_qmp import FakeQmp

COMMANDS = ["serve", "status", "backup", "mirror", "verify", "view", "job", "bitmap", "tracking",
            "checkpoint", "session", "chain", "stream",
            "commit", "stats", "events", "qmp",
            "create", "info", "map", "check", "snapshot", "resize", "amend"]  # fmt: skip


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
            (["backup", "vda", "--to", "x", "--sync", "new"], "one of full, top, none"),
            (["backup", "vda", "--to", "x", "--on-target-error", "y"], "--on-target-error"),
            (["backup", "vda", "--to", "x", "--max-workers", "-1"], "--max-workers"),
            (["backup", "vda", "--to", "nbd+unix:///x?socket=y"], "absolute path"),
            (["backup", "vda", "--to", "node:x", "--existing"], "only for a target that is a file"),
            (["mirror", "vda", "--to", FOLDER], "is a directory"),
            (["backup", "--to", FOLDER], "expected the device's name"),
            (["backup", "vda", "--to", FOLDER, "--sync", "top"], "no option --sync"),
            (["backup", "vda", "--to", "x/", "--raw", "--format", "qcow2"], "exclude each other"),
            (["backup", "--multi", "vda,vda", "--to", "x/"], "named twice"),
            (["backup", "prune", FOLDER], "--keep N"),
            (["backup", "restore", FOLDER], "expected restore DIRECTORY TARGET"),
            (["mirror", "vda"], "--to TARGET is missing: where shall the mirror go?"),
            (["mirror", "vda", "--to", "x", "--keep", "--pivot"], "exclude each other"),
            (["mirror", "vda", "--to", "x", "--keep", "--detach"], "nobody stays"),
            (["mirror", "vda", "--to", "x", "--sync", "new"], "one of full, top, none"),
            (["mirror", "vda", "--to", "x", "--granularity", "y"], "--granularity expects"),
            (["mirror", "vda", "--to", "x", "--buf-size", "-1"], "--buf-size expects"),
            (["chain"], "Too few arguments: expected the disk's name"),
            (["stream", "vda", "--base", "a", "--bottom", "b"], "exclude each other"),
            (["stream", "vda", "--on-error", "y"], "--on-error expects one of report, ignore"),
            (["stream", "vda", "--speed", "y"], "--speed expects"),
            (["commit"], "Too few arguments: expected the disk's name"),
            (["commit", "vda", "--top", "x", "--no-pivot"], "not with --top"),
            (["commit", "vda", "--backing-file", b"\xff"], "not valid UTF-8"),
            (["snapshot", "--external", "x"], "Of which disk?"),
            (["snapshot", "--external", "x", "vda", "vdb"], "--external DEVICE=FILE for each"),
            (["snapshot", "-x", "vda=x", "-x", "vda=y"], "'vda' is named twice"),
            (["snapshot", "-x", "x", "--create", "y", "vda"], "at a time"),
            (["snapshot", "-x", "x", "--format", "raw", "vda"], "makes a qcow2 image"),
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
    server = FakeQmp(path("admin"))
    process = spawn("events", "-a", server.path)
    server.wait_for_command("qmp_capabilities")
    server.event("VIEW_BROKEN", name="night", device="vda", reason="No space left on device")
    line = process.stdout.readline()
    server.die()
    end(process)
    assert line.endswith('VIEW_BROKEN name="night" device="vda" '
                         'reason="No space left on device"\n'), line


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


def test_views():
    """view verbs send what was asked for, and say what the server has made"""
    server = FakeQmp(path("admin"))
    result = run("view", "create", "night", "-a", server.path)
    expect(result, 0)
    assert server.arguments_of("view-create") == {"name": "night"}
    assert "export 'vda@night' of the NBD server" in result.stdout, result.stdout
    assert "'liveblk view drop night'" in result.stdout
    folder = path("scratch")
    result = run("view", "create", "day", "--device", "vda", "--device", "vdb", "--scratch", folder,
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
    expect(run(*words, "--device", "vdb"), 0)
    assert server.arguments_of("view-create")["scratch-nodes"] == ["second"]
    expect(run(*words, "--device", "vda", "--scratch-node", "vda=first"), 2, "more --scratch-node")
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
    syncs = ["full", "top", "none", "incremental", "bitmap"]
    assert offered("backup", "--sync", "") == syncs
    assert offered("backup", "--comp") == ["--compress"]
    assert offered("backup", "--format", "") == ["raw", "qcow2"]
    assert offered("backup", "") == ["vda"]
    assert offered("backup", "vda", "") == ["@file"]
    assert offered("job", "d") == ["dismiss"]
    assert offered("chain", "") == offered("stream", "") == offered("commit", "") == ["vda"]
    assert offered("stream", "--b") == ["--base", "--bottom", "--backing-file"]
    assert offered("commit", "--on-error", "r") == ["report"]
    assert offered("snapshot", "--external", "") == ["@file"]
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
    cli_program.main(globals())
