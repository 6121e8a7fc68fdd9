# SPDX-License-Identifier: BSD-3-Clause
"""Run a script's test functions and report them as TAP."""
import sys
import traceback


def run(functions):
    """Run each function; its docstring is the test's name. Returns the exit status."""
    failures = 0
    print(f"1..{len(functions)}", flush=True)
    for number, function in enumerate(functions, 1):
        try:
            function()
            verdict = "ok"
        except Exception:  # an error in the test itself is a failure too
            for line in traceback.format_exc().splitlines():
                print("#", line)
            verdict = "not ok"
            failures += 1
        print(f"{verdict} {number} - {function.__doc__}", flush=True)
    return 1 if failures else 0


def main(functions):
    sys.exit(run(functions))
