# SPDX-License-Identifier: BSD-3-Clause
"""What the benchmarks share: a place to work, options, medians, the report."""

import argparse
import contextlib
import json
import os
import pathlib
import platform
import shutil
import statistics
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tests" / "lib"))
sys.dont_write_bytecode = True

import liveblk_test  # noqa: E402  (found through the path above)

MIB = 1 << 20


def parse_options(description, rounds, **more):
    """more: name=(default, help); the type is the default's."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"default: {rounds}")
    parser.add_argument("--directory", default="/dev/shm", help="default: /dev/shm")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    for name, (default, text) in more.items():
        parser.add_argument(
            f"--{name}", type=type(default), default=default, help=f"{text} (default: {default})"
        )
    return parser.parse_args()


@contextlib.contextmanager
def workplace(directory):
    """A liveblk_test.Test in a directory that is removed at the end, with all it started."""
    path = tempfile.mkdtemp(prefix="liveblk-bench-", dir=directory)
    test = liveblk_test.Test(path, 1)
    try:
        with test.cleanup:
            yield test
    finally:
        shutil.rmtree(path, ignore_errors=True)


def fill_disk(path, length, holds=lambda mib: True):
    """A raw disk with data that does not repeat in the MiB for which holds says so."""
    block = os.urandom(MIB)
    with open(path, "xb") as disk:
        disk.truncate(length)
        for mib in range(length // MIB):
            if holds(mib):
                data = bytearray(block)
                for at in range(0, MIB, 4096):
                    data[at : at + 8] = (mib * MIB + at + 1).to_bytes(8, "little")
                disk.seek(mib * MIB)
                disk.write(data)
    return path


def empty_file(path, length):
    with open(path, "xb") as file:
        file.truncate(length)
    return path


def in_turn(number, pair):
    """The pair (or more) in the order for this round: who goes first changes."""
    return pair if number % 2 == 0 else tuple(reversed(pair))


def fio(test, uri, length, *options, timeout=120):
    """Run fio on an NBD export to its end; returns its figures of the job."""
    result = test.run(
        "fio", "--name=guest", "--ioengine=nbd", f"--uri={uri}", f"--size={length}",
        "--randseed=1", "--output-format=json", *options, timeout=timeout, cwd=test.directory,
    )  # fmt: skip
    # It may say something before its JSON.
    return json.loads(result.stdout[result.stdout.index("{") :])["jobs"][0]


def progress(text):
    print(text, file=sys.stderr, flush=True)


def machine():
    return {"cpus": os.cpu_count(), "kernel": platform.release()}


def report(as_json, title, unit, rows, more_is_better):
    """rows: (name, our samples, the peer's samples). Prints medians and how we compare."""
    table = []
    for name, ours, peer in rows:
        our_median, peer_median = statistics.median(ours), statistics.median(peer)
        ratio = our_median / peer_median if more_is_better else peer_median / our_median
        table.append(
            {
                "name": name, "unit": unit, "liveblk": our_median, "peer": peer_median,
                "ratio": ratio, "liveblk-samples": ours, "peer-samples": peer,
            }
        )  # fmt: skip
    if as_json:
        print(json.dumps({"title": title, "machine": machine(), "results": table}, indent=2))
        return
    print(f"{title}; {os.cpu_count()} CPUs, medians of {len(rows[0][1])} rounds, {unit}\n")
    print(f"{'':<28}{'liveblk':>12}{'peer':>12}{'ratio':>9}   liveblk's range")
    for row in table:
        low, high = min(row["liveblk-samples"]), max(row["liveblk-samples"])
        print(
            f"{row['name']:<28}{row['liveblk']:>12.6g}{row['peer']:>12.6g}{row['ratio']:>9.3f}"
            f"   {low:.6g} to {high:.6g}"
        )
    print("\nA ratio above 1 is in liveblk's favour.")
