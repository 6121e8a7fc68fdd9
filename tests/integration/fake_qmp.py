# SPDX-License-Identifier: BSD-3-Clause
"""A QMP server whose one job does what the test says, for what a real server cannot do on
demand: stand still at 42 %, die in mid-job, send rubbish, say nothing."""
import copy
import json
import socket
import threading

GREETING = {"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 0}, "package": ""},
                    "capabilities": []}}


def histogram(bins):
    return {"boundaries": [1000, 10000, 100000], "bins": bins}


STATISTICS = [{"device": "vda", "node-name": "vda", "stats": {
    "rd_operations": 100, "rd_bytes": 409600, "rd_total_time_ns": 500000,
    "wr_operations": 10, "wr_bytes": 40960, "wr_total_time_ns": 90000,
    "failed_wr_operations": 2, "rd_latency_histogram": histogram([50, 48, 2, 0])}}]

DEVICES = [{"device": "vda", "io-status": "ok", "inserted": {
    "node-name": "vda-node", "drv": "raw", "ro": False, "file": "/images/a.img",
    "image": {"virtual-size": 1 << 30, "actual-size": 1 << 20}}}]


class FakeQmp:
    """greeting: what is sent first, as bytes (None: the usual one; b"": nothing)."""

    def __init__(self, path, greeting=None):
        self.path = path
        self.greeting = greeting
        self.lock = threading.Condition()
        self.connections = []
        self.commands = []  # (name, arguments), in order
        self.refuse = {}  # command: (class, text)
        self.mute = set()  # commands that get no answer
        self.ends_at_once = True  # a job that is told to end; else the test ends it
        self.last_id = {}  # command: the id it was last sent with
        self.nodes = {}
        self.chain = []  # (node, file) of vda, the uppermost first
        self.views = []
        self.devices = copy.deepcopy(DEVICES)
        self.job = None
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(8)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                connection = self.listener.accept()[0]
            except OSError:
                return
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection):
        with self.lock:
            self.connections.append(connection)
            self.lock.notify_all()
        first = json.dumps(GREETING).encode() + b"\r\n" if self.greeting is None else self.greeting
        try:
            connection.sendall(first)
            for line in connection.makefile("rb"):
                self.answer(connection, json.loads(line))
        except OSError:
            pass

    def answer(self, connection, request):
        name, arguments = request["execute"], request.get("arguments", {})
        with self.lock:
            self.commands.append((name, arguments))
            self.last_id[name] = request["id"]
            refuse = dict(self.refuse)
            if name == "job-dismiss" and not self.job:
                refuse[name] = ("GenericError", "Job not found")
            if name in refuse:
                class_name, text = refuse[name]
                reply = {"error": {"class": class_name, "desc": text}}
            else:
                method = getattr(self, "do_" + name.replace("-", "_"), None)
                reply = ({"return": method(arguments)} if method else
                         {"error": {"class": "CommandNotFound",
                                    "desc": f"The command {name} has not been found"}})
            self.lock.notify_all()
            if name not in self.mute:
                self.send(connection, dict(reply, id=request["id"]))

    @staticmethod
    def send(connection, message):
        try:
            connection.sendall(json.dumps(message).encode() + b"\r\n")
        except OSError:
            pass  # the client has left

    def event(self, name, /, **data):
        with self.lock:
            for connection in self.connections:
                self.send(connection, {"event": name, "data": data,
                                       "timestamp": {"seconds": 1, "microseconds": 2}})

    def wait_for(self, what, seconds=20):
        """Wait until what(self) is true."""
        with self.lock:
            assert self.lock.wait_for(lambda: what(self), seconds), f"never: {self.commands}"

    def wait_for_command(self, name, times=1):
        self.wait_for(lambda s: sum(n == name for n, _ in s.commands) >= times)

    def arguments_of(self, name):
        with self.lock:
            return [a for n, a in self.commands if n == name][-1]

    def die(self):
        with self.lock:
            for connection in self.connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        self.listener.shutdown(socket.SHUT_RDWR)  # close() alone would wait for accept()
        self.listener.close()

    # What the test does with the job.

    def progress(self, done, total):
        """And wait until a client has asked afterwards."""
        with self.lock:
            self.job.update({"current-progress": done, "total-progress": total})
            asked = sum(n == "query-jobs" for n, _ in self.commands)
        self.wait_for_command("query-jobs", asked + 2)

    def status(self, status):
        with self.lock:
            self.job["status"] = status
        self.event("JOB_STATUS_CHANGE", id=self.job["id"], status=status)

    def finish(self, error=None):
        with self.lock:
            job = self.job
            job["error"] = error
            if error is None:
                del job["error"]
                job["current-progress"] = job["total-progress"]
            failure = {"error": error} if error else {}
            self.event("BLOCK_JOB_COMPLETED", device=job["id"], type=job["type"], len=1, offset=1,
                       speed=0, **failure)
            self.status("concluded")

    def ready(self):
        with self.lock:
            self.event("BLOCK_JOB_READY", device=self.job["id"], type="mirror", len=1, offset=1,
                       speed=0)
            self.status("ready")

    # The commands.

    def do_qmp_capabilities(self, arguments):
        return {}

    def do_query_commands(self, arguments):
        return [{"name": "query-jobs"}, {"name": "query-block"}]

    def do_query_block(self, arguments):
        return self.devices

    def do_query_blockstats(self, arguments):
        return STATISTICS

    def do_query_named_block_nodes(self, arguments):
        nodes = [{"node-name": name, "drv": driver} for name, driver in self.nodes.items()]
        names = [name for name, _ in self.chain]
        for (name, file), backing in zip(self.chain, names[1:] + [None]):
            children = [{"child": "backing", "node-name": backing}] if backing else []
            nodes.append({"node-name": name, "drv": "qcow2", "file": file, "ro": True,
                          "image": {"virtual-size": 1 << 30}, "children": children})
        return nodes

    def do_query_jobs(self, arguments):
        return [self.job] if self.job else []

    def do_query_block_jobs(self, arguments):
        return [dict(device=self.job["id"], speed=5 << 20)] if self.job else []

    def do_blockdev_add(self, arguments):
        self.nodes[arguments["node-name"]] = arguments["driver"]
        return {}

    def do_blockdev_del(self, arguments):
        del self.nodes[arguments["node-name"]]
        return {}

    def start(self, kind, arguments):
        self.job = {"id": arguments["job-id"], "type": kind, "status": "running",
                    "current-progress": 0, "total-progress": 0, "phase": "copying"}
        self.id, self.target = arguments["job-id"], arguments.get("target")
        self.status("running")
        return {}

    def do_drive_backup(self, arguments):
        return self.start("backup", arguments)

    do_blockdev_backup = do_drive_backup

    def do_drive_mirror(self, arguments):
        return self.start("mirror", arguments)

    do_blockdev_mirror = do_drive_mirror

    def do_block_stream(self, arguments):
        return self.start("stream", arguments)

    def do_block_commit(self, arguments):
        return self.start("commit", arguments)

    def do_transaction(self, arguments):
        return {}

    def do_job_complete(self, arguments):
        self.devices[0]["inserted"].update(
            {"node-name": self.target, "drv": self.nodes.get(self.target, "raw")})
        return self.do_block_job_cancel(arguments)

    def do_block_job_cancel(self, arguments):
        if self.ends_at_once:
            self.finish()
        return {}

    def do_view_create(self, arguments):
        name = arguments["name"]
        devices = arguments.get("devices", [d["device"] for d in self.devices])
        view = {"name": name, "status": "ok", "created": {"seconds": 1000000000, "nanoseconds": 5},
                "scratch-bytes": 3 << 20, "scratch-max": arguments.get("scratch-max", 0),
                "devices": [{"device": d, "export": f"{d}@{name}", "length": 1 << 30, "clients": 2}
                            for d in devices]}
        self.views.append(view)
        return view

    def do_query_views(self, arguments):
        return self.views

    def do_view_drop(self, arguments):
        self.views = [v for v in self.views if v["name"] != arguments["name"]]
        return {}

    def do_view_discard(self, arguments):
        return {}

    def do_job_cancel(self, arguments):
        self.job["error"] = "Operation canceled"
        self.event("BLOCK_JOB_CANCELLED", device=self.job["id"], type=self.job["type"], len=1,
                   offset=1, speed=0)
        self.status("concluded")
        return {}

    def do_job_dismiss(self, arguments):
        self.status("null")
        self.job = None
        return {}

    def do_job_pause(self, arguments):
        return {}

    do_job_resume = do_job_finalize = do_block_job_set_speed = do_job_pause
    do_block_job_change = do_job_pause
