#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""liveblk and the jobs it starts and follows: what it asks the server for, what it says about
progress and the end, and what Ctrl-C does. Usage: test-cli-jobs.py PROGRAM"""
import json
import os
import signal
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "lib")]
import cli_program
from cli_program import Terminal, end, environment, expect, json_lines, path, run, spawn
from fake_qmp import FakeQmp


def start_backup(*more, server=None):
    server = server or FakeQmp(path("admin"))
    process = spawn("backup", "vda", "--to", path("target"), "-a", server.path, *more)
    server.wait_for_command("drive-backup")
    return server, process


def backup_on_terminal():
    server = FakeQmp(path("admin"))
    terminal = Terminal("backup", "vda", "--to", path("target"), "-a", server.path)
    server.wait_for_command("drive-backup")
    server.progress(420, 1000)
    return server, terminal


def chain_server():
    """vda-node is a chain of three: /c above /b above /a."""
    server = FakeQmp(path("admin"))
    server.chain = [("vda-node", "/c"), ("middle", "/b"), ("lowest", "/a")]
    return server


def test_stream_arguments():
    """stream names nodes to the server, whatever names of images it was given"""
    server = chain_server()
    words = ["stream", "vda", "-a", server.path, "--speed", "50M", "--on-error", "stop",
             "--backing-file", "a", "--filter-node-name", "f"]
    sent = {"device": "vda", "job-id": "stream-vda", "speed": 50 << 20, "auto-dismiss": False,
            "on-error": "stop", "backing-file": "a", "filter-node-name": "f"}
    for option, image, member, node in [("--base", "/a", "base-node", "lowest"),
                                        ("--base", "node:lowest", "base-node", "lowest"),
                                        ("--base", "lowest", "base-node", "lowest"),
                                        ("--bottom", "/x/../b", "bottom", "middle")]:
        server.job = None
        process = spawn(*words, option, image)
        server.wait_for(lambda s: s.job)
        assert server.arguments_of("block-stream") == dict(sent, **{member: node})
        server.finish()
        status, out, err = end(process)
        assert status == 0 and "The stream of 'vda' is complete" in out and not err, (out, err)


def test_chain_job_errors():
    """an image that is not in the chain, or could be two, is never guessed: the chain is shown"""
    server = chain_server()
    server.chain[1] = ("/a", "/b")  # a node with a file's name
    for command, option in [("stream", "--base"), ("commit", "--top")]:
        expect(run(command, "vda", option, "/a", "-a", server.path), 1, "more than one image")
        for unknown in ["/x", "node:/x", "node:vda"]:
            expect(run(command, "vda", option, unknown, "-a", server.path), 1,
                   f"There is no image '{unknown}' in the chain of 'vda', which is, from the top: "
                   "'/c' (node:vda-node), '/b' (node:/a), '/a' (node:lowest)")
        expect(run(command, "vdx", "-a", server.path), 1, "has no disk 'vdx'; it has 'vda'")
    expect(run("stream", "vda", "--backing-file", "x", "-a", server.path), 2, "say --base")
    expect(run("commit", "vda", "--base", "vda-node", "-a", server.path), 1, "into itself")
    expect(run("commit", "vda", "--top", "lowest", "-a", server.path), 1, "no image below")
    assert not [n for n, _ in server.commands if n.startswith("block-")]
    server.refuse["block-stream"] = ("GenericError", "Node 'x' is in use")
    result = run("stream", "vda", "--json", "-a", server.path)
    expect(result, 1, "Node 'x' is in use")
    assert json.loads(result.stdout)["message_type"] == "error"
    process = spawn("commit", "vda", "--top", "/b", "-a", server.path)
    server.wait_for(lambda s: s.job)
    server.finish("Input/output error")
    status, out, err = end(process)
    assert (status, out) == (1, "") and "commit of 'vda' failed: Input/output" in err, err
    assert "No data is lost" in err, err


def test_commit():
    """commit of the disk's own image completes when ready; --no-pivot, --detach leave that to us"""
    for options in [[], ["--no-pivot"], ["--detach"]]:
        server = chain_server()
        process = spawn("commit", "vda", "-a", server.path, "--base", "/b", *options)
        server.wait_for(lambda s: s.job)
        assert server.arguments_of("block-commit") == {
            "device": "vda", "job-id": "commit-vda", "base-node": "middle", "speed": 0,
            "auto-dismiss": False}
        if options == ["--detach"]:
            assert end(process) == (0, "commit-vda\n", "")
            process = spawn("job", "wait", "commit-vda", "-a", server.path)
            server.wait_for_command("query-jobs", 2)
        server.ready()
        if options == ["--detach"]:
            line = process.stderr.readline()
            assert "'liveblk job complete commit-vda' moves the disk to its base" in line, line
            server.finish()
        status, out, err = end(process)
        assert status == 0 and not err, (status, err)
        if options == ["--no-pivot"]:
            assert "is ready and goes on; 'liveblk job complete commit-vda' moves" in out, out
        else:
            assert "is complete" in out and server.job is None, out
        completed = "job-complete" in [name for name, _ in server.commands]
        assert completed == (options == []), options


def test_external_snapshots():
    """external snapshots of several disks are one transaction"""
    server = chain_server()
    server.devices.append({"device": "vdb", "inserted": {"node-name": "middle"}})
    folder = path("overlays")
    words = ["snapshot", "-a", server.path, "--external"]
    result = run(*words, f"vda={folder}/a=1", "-x", f"vdb={folder}/b", "--json")
    expect(result, 0)
    disks = [("vda", f"{folder}/a=1", "/c"), ("vdb", f"{folder}/b", "/b")]
    assert server.arguments_of("transaction") == {"actions": [
        {"type": "blockdev-snapshot-sync", "data": {"device": d, "snapshot-file": f}}
        for d, f, _ in disks]}
    assert json.loads(result.stdout) == {
        "message_type": "done", "verb": "external",
        "disks": [{"device": d, "file": f, "backing-file": b} for d, f, b in disks]}
    result = run(*words, "new", "vda")
    assert f"'vda' goes on in '{os.getcwd()}/new'; '/c' stays as it is now" in result.stdout
    expect(run(*words, "new", "vdx"), 1, "The server has no disk 'vdx'")
    expect(run(*words, __file__, "vda"), 1, "is there already")
    server.refuse["transaction"] = ("GenericError", "No space left on device")
    result = run(*words, "new", "vda", "--json")
    expect(result, 1, "No space left on device")
    assert json.loads(result.stdout)["message_type"] == "error"


def test_job_verbs():
    """job verbs reach the server, and its refusal is exit status 1"""
    server = FakeQmp(path("admin"))
    run("qmp", "drive-backup", "job-id=j", "-a", server.path)
    for verb in ["pause", "resume", "finalize"]:
        expect(run("job", verb, "j", "-a", server.path), 0)
        assert server.arguments_of("job-" + verb) == {"id": "j"}
    expect(run("job", "speed", "j", "1.5M", "-a", server.path), 0)
    assert server.arguments_of("block-job-set-speed") == {"device": "j", "speed": 3 << 19}
    expect(run("job", "mode", "j", "write-blocking", "-a", server.path), 0)
    assert server.arguments_of("block-job-change") == {
        "id": "j", "type": "mirror", "copy-mode": "write-blocking"}  # fmt: skip
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
                    "auto-dismiss": False, "x-perf": {"max-workers": 3},
                    "mode": "absolute-paths", "on-target-error": "stop",
                    "on-source-error": "ignore"}
    server.finish()
    status, out, _ = end(process)
    assert status == 0 and "is complete" in out
    assert server.arguments_of("job-dismiss") == {"id": "backup-vda"} and server.job is None


def test_scratch():
    """backup's scratch is a directory, as an absolute path, a node, or none"""
    server = FakeQmp(path("admin"))
    for value, sent in [(".", {"scratch": os.getcwd()}), ("node:n", {"scratch-node": "n"}),
                        ("none", {"scratch": "none"})]:
        run("backup", "vda", "--to", path("t"), "-d", "--scratch", value, "--scratch-max", "1G",
            "-a", server.path)
        arguments = server.arguments_of("drive-backup")
        assert {k: v for k, v in arguments.items() if k.startswith("scratch")} == dict(
            sent, **{"scratch-max": 1 << 30}), arguments
    expect(run("backup", "vda", "--to", "t", "--scratch-max", "x", "-a", server.path), 2,
           "--scratch-max expects")


def start_mirror(*more, to=None):
    server = FakeQmp(path("admin"))
    process = spawn("mirror", "vda", "--to", to or path("target"), "-a", server.path, *more)
    server.wait_for(lambda s: s.job and any("mirror" in name for name, _ in s.commands))
    return server, process


def test_mirror_arguments():
    """mirror asks for what its options say; without --pivot or --keep it ends when it is ready"""
    server, process = start_mirror("--speed", "50M", "--sync", "none", "--granularity", "64K",
                                   "--buf-size", "1M", "--on-target-error", "stop", "--no-unmap",
                                   "--copy-mode", "auto", "--write-timeout", "5")
    sent = server.arguments_of("drive-mirror")
    assert os.path.isabs(sent.pop("target"))
    assert sent == {"device": "vda", "sync": "none", "job-id": "mirror-vda", "speed": 50 << 20,
                    "auto-dismiss": False, "mode": "absolute-paths",
                    "granularity": 65536, "buf-size": 1 << 20, "unmap": False,
                    "on-target-error": "stop", "copy-mode": "auto", "write-timeout": 5}
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
        # And when the disk moves on.
        words = ["mirror", "vda", "-a", server.path, "--pivot", "--to"]
        for to in ["nbd://host/y", path("z")]:
            process = spawn(*words, to)
            server.wait_for(lambda s: s.job)
            server.ready()
            assert end(process)[0] == 0
            nodes = {f"to-{server.id}": "nbd"} if to.startswith("nbd") else {}
            assert server.nodes == nodes, server.nodes


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


def test_ready_jobs_end_slowly():
    """while a job that was told to end is still ready, nobody is told how to end it"""
    for words, command in [(["complete"], "job-complete"),
                           (["cancel", "--keep"], "block-job-cancel")]:
        server = FakeQmp(path("admin"))
        run("mirror", "vda", "--to", path("t"), "--detach", "-a", server.path)
        server.ends_at_once = False
        server.ready()
        process = spawn("job", *words, "mirror-vda", "-a", server.path)
        server.wait_for_command(command)
        server.progress(1000, 1000)
        server.finish()
        status, out, err = end(process)
        assert status == 0 and "Job 'mirror-vda' is complete" in out and not err, (out, err)


def test_target_names():
    """a target's name may have letters that the locale does not know; it has to be UTF-8"""
    server = FakeQmp(path("admin"))
    run("backup", "vda", "--to", path("ä.img"), "-d", "-a", server.path,
        env=environment(LC_ALL="C"))
    assert server.arguments_of("drive-backup")["target"].endswith("ä.img")
    expect(run("backup", "vda", "--to", b"/tmp/\xff", "-d", "-a", server.path), 2, "UTF-8")


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


if __name__ == "__main__":
    cli_program.main(globals())
