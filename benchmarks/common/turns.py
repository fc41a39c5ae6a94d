"""Contestants that take turns, each in a process of its own, so that noise meets all alike."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from diba import _core
from diba._internal.timing import blas_threads

from .process import command, memory

__all__ = ["READ", "Answer", "Reader", "Runner", "serve", "settle", "take_turns"]

READ = 256 << 20  # bytes of memory that are read, far more than caches hold
REST = 0.05  # seconds before a sample: idle threads wait for work by spinning, for a while

Answer = Callable[[dict[str, Any]], None]


# ---------------------------------------------------------------- in the process of a contestant


def serve(prepare: Callable[[Answer], Callable[[], Any]]) -> None:
    """Get ready, say so, then take a sample for every line that comes; answers are lines of JSON.

    Args:
        prepare: Gets the function that answers, answers ``{"ready": ..., "memory": ...}``, and returns the
            function that takes a sample.
    """
    with os.fdopen(os.dup(1), "w", buffering=1) as out:
        os.dup2(2, 1)  # whatever else is printed goes with the errors

        def answer(what: dict[str, Any]) -> None:
            out.write(json.dumps(what) + "\n")

        try:
            sample = prepare(answer)
            for _ in sys.stdin:
                answer({"sample": sample(), "memory": memory()})
        except Exception as error:  # of any type, by the library: noted in the table
            traceback.print_exc()
            answer({"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]})


def settle() -> None:
    """Give what was freed back to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


# ---------------------------------------------------------------- beside them


class Runner:
    """A contestant's process, seen from here.

    Args:
        name: The benchmark, whose ``work`` serves there.
        task: What it takes; ``threads`` is how many the libraries get.

    Attributes:
        samples: What it answered so far.
        facts: Its times and memory.
        error: Why it answers no more.
    """

    def __init__(self, name: str, task: dict[str, Any]) -> None:
        self.samples: list[dict[str, float]] = []
        self.facts: dict[str, Any] = {}
        self.error: str | None = None
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # closed by close()
        self._cache = tempfile.TemporaryDirectory()  # what is compiled is compiled anew, and counted
        environment = os.environ | blas_threads(task["threads"])
        self._process = subprocess.Popen(
            command(name, task),
            env=environment | {"TORCHINDUCTOR_CACHE_DIR": self._cache.name},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip
        self._take()

    def sample(self) -> None:
        if self.error is None:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write("go\n")
                self._process.stdin.flush()
            self._take()

    def _take(self) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        found = json.loads(line) if line else {"error": self._last_words()}
        self.error = found.get("error")
        if "ready" in found:
            self.facts = {"seconds": found["ready"], "memory": found["memory"]}
        elif "sample" in found:
            self.samples.append(found["sample"])
            self.facts["memory"] |= {"working": found["memory"]["resident"], "peak": found["memory"]["peak"]}

    def _last_words(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        return f"ended with {code}: {' '.join(self._errors.read().split())[-300:]}"

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()
        self._cache.cleanup()


class Reader:
    """One core that reads memory and does nothing else with it.

    Attributes:
        samples: Bytes a second.
    """

    def __init__(self) -> None:
        self._memory = np.ones(READ // 8, np.uint64)
        self.samples: list[float] = []

    def sample(self) -> None:
        self.samples.append(READ / _core.read_seconds(self._memory))


def take_turns(runners: Iterable[Runner | Reader], rounds: int) -> None:
    """A sample of each, so many times."""
    runners = list(runners)
    for _ in range(rounds):
        for runner in runners:
            time.sleep(REST)
            runner.sample()
