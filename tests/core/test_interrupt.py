"""Ctrl-C during a long solve: KeyboardInterrupt, promptly, and nothing is broken afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

PROMPT = 20.0  # seconds; the work asked for would take hours, one step of it less than a second

CODE = """
import signal
import numpy as np
import diba

def say(*words):
    print(*words, flush=True)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have switched it off
small = np.random.default_rng(1).standard_normal((50, 40))
expected = diba.solve(small, k=12, max_iter=5)
A = np.random.default_rng(0).standard_normal((1200, 1200))
before = A.copy()
for attempt in range(4):
    try:
        diba.solve(A, k=1100, max_iter=10**6, tol=0, threads=2,
                   progress=lambda report: say("iteration", report.done))
        say("ended")
    except KeyboardInterrupt:
        assert diba.solve(small, k=12, max_iter=5) == expected
        assert np.array_equal(A, before)
        say("interrupted")
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are sent the POSIX way")
def test_ctrl_c_ends_a_long_solve() -> None:
    path = [folder for folder in sys.path if folder]
    child = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.path[:] = {path}\n{CODE}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    try:
        for delay in (0.0, 0.05, 0.2, 0.5):  # into different steps
            assert child.stdout.readline() == "iteration 0\n"
            time.sleep(delay)
            child.send_signal(signal.SIGINT)
            sent = time.monotonic()
            while (line := child.stdout.readline()).startswith("iteration"):
                pass
            assert line == "interrupted\n"
            assert time.monotonic() - sent < PROMPT
        _, errors = child.communicate(timeout=60)
        assert (child.returncode, errors) == (0, "")
    finally:
        child.kill()
        child.communicate()
