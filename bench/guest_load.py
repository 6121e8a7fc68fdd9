# SPDX-License-Identifier: BSD-3-Clause
"""A guest made of fio: 4 KiB random writes, of which each is logged, to look at any time of it."""

import bisect
import collections
import signal
import time

# writes per second; the latency in ms that 99 % keep below, and the longest; number of writes
Figures = collections.namedtuple("Figures", "iops p99 longest writes")

LEAD = 2.0  # seconds that a guest writes before anything is asked of it


class GuestLoad:
    """fio as the only guest of an NBD export. Wait LEAD seconds before you look at it."""

    def __init__(self, test, uri, length, depth, rate=0):
        self.prefix = test.path(f"guest-{time.monotonic_ns()}")
        self.process = test.start(
            "fio", "--name=guest", "--ioengine=nbd", f"--uri={uri}", "--rw=randwrite", "--bs=4k",
            f"--iodepth={depth}", f"--size={length}", "--time_based=1", "--runtime=1h",
            "--randrepeat=0", "--norandommap=1", f"--write_lat_log={self.prefix}",
            "--disable_slat=1", "--disable_clat=1", "--log_unix_epoch=1",
            *([f"--rate_iops={rate}"] if rate else []), cwd=test.directory,
        )  # fmt: skip
        self.began = time.time()
        self.ends = []  # of writes, in ms since 1970
        self.latencies = []  # of the same writes, in ns

    def stop(self):
        """End the load and read its log."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        log = self.prefix.with_name(self.prefix.name + "_lat.1.log")
        with open(log, encoding="ascii") as lines:
            writes = sorted(tuple(map(int, line.split(",", 2)[:2])) for line in lines)
        log.unlink()
        self.ends = [end for end, _ in writes]
        self.latencies = [latency for _, latency in writes]

    def figures(self, start, end):
        """What the guest got between two times (of time.time()); stop it before."""
        first = bisect.bisect_left(self.ends, start * 1000)
        last = bisect.bisect_left(self.ends, end * 1000)
        latencies = sorted(self.latencies[first:last])
        if not latencies:  # not one write was answered
            return Figures(0.0, (end - start) * 1000, (end - start) * 1000, 0)
        p99 = latencies[len(latencies) * 99 // 100]
        return Figures(
            len(latencies) / (end - start), p99 / 1e6, latencies[-1] / 1e6, len(latencies)
        )
