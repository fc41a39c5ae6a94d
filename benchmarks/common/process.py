"""Work in processes of its own, and what it takes of memory."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from . import BenchmarkError

__all__ = ["BENCHMARKS", "command", "forget_peak", "in_process", "memory"]

BENCHMARKS = Path(__file__).resolve().parents[1]


def command(name: str, task: dict[str, Any], result: str = os.devnull) -> list[str]:
    """The command that runs ``work(task)`` of a benchmark."""
    return [sys.executable, str(BENCHMARKS), "--worker", name, json.dumps(task), result]


def in_process(name: str, task: dict[str, Any], environment: dict[str, str]) -> Any:
    """What ``work(task)`` of a benchmark returns in a fresh process.

    Args:
        name: The benchmark.
        task: What it takes, for JSON.
        environment: What is added to the environment: the numbers of threads that libraries read when loaded.

    Raises:
        BenchmarkError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        done = subprocess.run(
            command(name, task, str(result)),
            env=os.environ | environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise BenchmarkError(f"{task} failed:\n{done.stderr}")
        return json.loads(result.read_text(encoding="utf-8"))


def memory() -> dict[str, int | None]:
    """Bytes of this process: resident now, and at most so far; None where the system does not say."""
    found: dict[str, int | None] = {"resident": None, "peak": None}
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name in ("VmRSS", "VmHWM"):
                found["resident" if name == "VmRSS" else "peak"] = 1024 * int(value.split()[0])
    return found


def forget_peak() -> None:
    """From now on the peak is that of what comes."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
