#!/usr/bin/env python3
# SPDX-License-Identifier: BSD-3-Clause
"""The liveblk command with a real server, from serve to the end.
Usage: test-cli-live.py PROGRAM (the plugin lies beside it in the build tree)"""
import filecmp
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
import tap

PROGRAM = os.path.abspath(sys.argv[1])
FOLDER = tempfile.mkdtemp(prefix="liveblk-live-")
DISK = os.path.join(FOLDER, "disk.img")
ENVIRONMENT = dict({k: v for k, v in os.environ.items() if not k.startswith("LIVEBLK")},
                   XDG_RUNTIME_DIR=FOLDER)
SIZE = 32 << 20


def inside(name):
    return os.path.join(FOLDER, name)


def mode_of(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def run(*words):
    return subprocess.run([PROGRAM, *words], capture_output=True, text=True, timeout=120,
                          stdin=subprocess.DEVNULL, env=ENVIRONMENT)


def output_of(*words):
    result = run(*words)
    assert result.returncode == 0, result.stderr
    return result.stdout


def serve():
    process = subprocess.Popen([PROGRAM, "serve", f"name=vda,file={DISK}", "--json"], text=True,
                               stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=ENVIRONMENT)
    return process, json.loads(process.stdout.readline())


def spawn_slow_backup(target):
    """A backup that takes minutes unless something happens to it; it has started."""
    process = subprocess.Popen([PROGRAM, "backup", "vda", "--to", target, "--speed", "64K",
                                "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               stdin=subprocess.DEVNULL, text=True, env=ENVIRONMENT)
    assert json.loads(process.stdout.readline())["message_type"] == "status"
    return process


def test_serve():
    """when serve has told the URI, clients can use it, and nobody else can use the sockets"""
    uri = announced["exports"][0]["uri"]
    size = subprocess.run(["nbdinfo", "--size", uri], capture_output=True, text=True, check=True)
    assert int(size.stdout) == SIZE and announced["pid"] == server.pid
    for path in [announced["admin"], announced["admin"].replace("admin.sock", "nbd.sock")]:
        assert mode_of(path) == 0o600, path


def test_failed_start():
    """a server that cannot start leaves no socket behind"""
    result = run("serve", "--name", "failing", inside("missing.img"))
    assert result.returncode == 1 and "No such file" in result.stderr, result.stderr
    # A process of its own removes it.
    socket = announced["admin"].replace("default.admin.sock", "failing.nbd.sock")
    deadline = time.monotonic() + 60
    while os.path.exists(socket) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.exists(socket)


def test_occupied_socket():
    """a file that is in the socket's place is left alone"""
    with open(inside("precious"), "w") as file:
        file.write("data")
    result = run("serve", "--name", "other", "--socket", inside("precious"), DISK)
    assert result.returncode == 1 and "is not a socket" in result.stderr, result.stderr
    with open(inside("precious")) as file:
        assert file.read() == "data"


def test_second_server():
    """a second server of the same name is refused and does the first no harm"""
    result = run("serve", DISK)
    assert result.returncode == 1 and "already runs" in result.stderr, result.stderr
    output_of("status")


def test_status():
    """status shows the device and its export"""
    status = json.loads(output_of("status", "--json"))
    assert [d["device"] for d in status["devices"]] == ["vda"]
    assert [e["id"] for e in status["exports"]] == ["vda"]
    assert status["devices"][0]["inserted"]["image"]["virtual-size"] == SIZE


def test_backup():
    """a backup that is said to be complete equals the disk, is private, and leaves no job"""
    assert "is complete" in output_of("backup", "vda", "--to", inside("copy.img"), "--scratch",
                                      FOLDER, "--scratch-max", "1G")
    assert filecmp.cmp(DISK, inside("copy.img"), shallow=False)
    assert mode_of(inside("copy.img")) == 0o600
    assert json.loads(output_of("job", "list", "--json")) == []


def test_nbd_backup():
    """a backup to an NBD URI leaves no node behind"""
    with open(inside("remote.img"), "wb") as image:
        image.truncate(SIZE)
    before = output_of("qmp", "query-named-block-nodes", "flat=true")
    socket = inside("remote.sock")
    subprocess.run(
        ["nbdkit", "-U", socket, "file", inside("remote.img"), "--run",
         f"{PROGRAM} backup vda --to 'nbd+unix:///?socket={socket}'"],
        check=True, env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    assert filecmp.cmp(DISK, inside("remote.img"), shallow=False)
    assert output_of("qmp", "query-named-block-nodes", "flat=true") == before


def test_cancel():
    """SIGTERM cancels a running backup, which exits with 4"""
    process = spawn_slow_backup(inside("cancelled.img"))
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 4 and "was cancelled" in err, err
    assert json.loads(out.splitlines()[-1])["outcome"] == "cancelled"
    assert json.loads(output_of("job", "list", "--json")) == []


def test_detached():
    """a detached backup can be paused, sped up, and waited for"""
    job = output_of("backup", "vda", "--to", inside("detached.img"), "-d", "--speed", "64K",
                    "--job-id", "night").strip()
    assert job == "night"
    for verb in [["pause", job], ["resume", job], ["speed", job, "0"], ["wait", job]]:
        output_of("job", *verb)
    assert filecmp.cmp(DISK, inside("detached.img"), shallow=False)


def overwrite_disk(seed, disk=DISK):
    """As a guest that writes all of it; returns the path of what the disk then holds."""
    path = inside(f"contents-{seed}")
    with open(path, "wb") as image:
        image.write(random.Random(seed).randbytes(SIZE))
    subprocess.run(["nbdcopy", "--flush", path, announced["exports"][0]["uri"]], check=True)
    assert filecmp.cmp(disk, path, shallow=False)
    return path


def test_view():
    """a view is read where create says, holds what the disk held, and is gone when dropped"""
    before = overwrite_disk(2)
    view = json.loads(output_of("view", "create", "night", "--scratch", FOLDER, "--json"))
    uri = view["devices"][0]["uri"]
    overwrite_disk(3)
    subprocess.run(["nbdcopy", uri, inside("pulled.img")], check=True)
    assert filecmp.cmp(before, inside("pulled.img"), shallow=False)
    listed = json.loads(output_of("view", "list", "--json"))
    assert [v["name"] for v in listed] == ["night"] and listed[0]["scratch-bytes"] > 0
    assert "vda@night" in output_of("view", "list") and "vda@night" in output_of("status")
    output_of("view", "discard", "night", "vda", "0", "1M")
    output_of("view", "drop", "night")
    assert json.loads(output_of("view", "list", "--json")) == []
    assert subprocess.run(["nbdinfo", uri], capture_output=True).returncode


def test_broken_view():
    """a view with too little scratch breaks, which its list tells; the guest goes on"""
    output_of("view", "create", "small", "--scratch", FOLDER, "--scratch-max", "64K")
    overwrite_disk(4)
    wait_for(lambda: json.loads(output_of("view", "list", "--json"))[0]["status"] == "broken")
    result = run("view", "create", "small")
    assert result.returncode == 1 and "small" in result.stderr, result.stderr
    output_of("view", "drop", "small")


def test_mirror_keep():
    """mirror --keep makes a complete copy, and the disk stays where it is"""
    before = overwrite_disk(5)
    assert "is complete" in output_of("mirror", "vda", "--to", inside("kept.img"), "--keep")
    overwrite_disk(6)
    assert filecmp.cmp(inside("kept.img"), before, shallow=False)
    assert json.loads(output_of("job", "list", "--json")) == []


def test_mirror_pivot():
    """mirror --pivot moves the disk, whose old image is not written any more, and back again"""
    before = overwrite_disk(7)
    assert "is complete" in output_of("mirror", "vda", "--to", inside("moved.img"), "--pivot")
    after = overwrite_disk(8, inside("moved.img"))
    assert filecmp.cmp(DISK, before, shallow=False)
    output_of("mirror", "vda", "--to", DISK, "--existing", "--pivot")
    assert filecmp.cmp(DISK, after, shallow=False)
    overwrite_disk(9)
    assert filecmp.cmp(inside("moved.img"), after, shallow=False)


def test_mirror_by_hand():
    """a mirror that is ready goes on, and job complete and job cancel --keep end it"""
    said = output_of("mirror", "vda", "--to", inside("other.img"), "--job-id", "m")
    assert "is ready" in said and "'liveblk job complete m'" in said, said
    assert json.loads(output_of("job", "list", "--json"))[0]["status"] == "ready"
    before = overwrite_disk(10)
    assert "is complete" in output_of("job", "cancel", "m", "--keep")
    assert filecmp.cmp(inside("other.img"), before, shallow=False)
    output_of("mirror", "vda", "--to", inside("moved-2.img"), "--job-id", "m")
    assert "is complete" in output_of("job", "complete", "m")
    overwrite_disk(11, inside("moved-2.img"))
    assert filecmp.cmp(DISK, before, shallow=False)
    output_of("mirror", "vda", "--to", DISK, "--existing", "--pivot")
    assert json.loads(output_of("job", "list", "--json")) == []


def test_mirror_to_nbd():
    """a disk moves to a server and back again, after which the server's node is gone"""
    with open(inside("far.img"), "wb") as image:
        image.truncate(SIZE)
    before = overwrite_disk(12)
    nodes = len(json.loads(output_of("qmp", "query-named-block-nodes", "flat=true", "--json")))
    socket = inside("far.sock")
    far = subprocess.Popen(["nbdkit", "-f", "-U", socket, "file", inside("far.img")],
                           stdin=subprocess.DEVNULL)
    try:
        wait_for(lambda: os.path.exists(socket))
        output_of("mirror", "vda", "--to", f"nbd+unix:///?socket={socket}", "--pivot")
        assert filecmp.cmp(inside("far.img"), before, shallow=False)
        overwrite_disk(13, inside("far.img"))
        output_of("mirror", "vda", "--to", DISK, "--existing", "--pivot")
        left = json.loads(output_of("qmp", "query-named-block-nodes", "flat=true", "--json"))
        assert len(left) == nodes, left
    finally:
        far.terminate()
        assert far.wait(60) == 0
    overwrite_disk(14)


def wait_for(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_stats():
    """stats counts a client's requests"""
    subprocess.run(["nbdcopy", announced["exports"][0]["uri"], "null:"], check=True)
    entries = json.loads(output_of("stats", "--json"))
    read = [e for e in entries if e["operation"] == "read"][0]
    assert read["bytes"] > 0 and read["mean_ns"] > 0 and read["p99_ns"] >= read["p50_ns"] > 0


def test_death():
    """a backup whose server is killed exits with 3, and the next server starts in its place"""
    process = spawn_slow_backup(inside("lost.img"))
    server.kill()
    server.wait()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 3 and "not a complete copy" in err, err
    successor, _ = serve()
    output_of("status")
    successor.terminate()
    assert successor.wait(timeout=60) == 0


if __name__ == "__main__":
    with open(DISK, "wb") as image:
        image.write(random.Random(1).randbytes(SIZE // 2))
        image.truncate(SIZE)
    server, announced = serve()
    try:
        status = tap.run([f for n, f in list(globals().items()) if n.startswith("test_")])
    finally:
        server.kill()
        shutil.rmtree(FOLDER)
    sys.exit(status)
