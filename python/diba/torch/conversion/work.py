"""How much of a conversion is done, and how long the rest takes: by its parts, at the pace that they had."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

__all__ = ["Work"]

_SOLVING = "solving"
_SECONDS = (
    1.3e-8  # of a solve for each m n k of its matrix, one thread, effort "fast"; until one was measured
)
_WHOLE = {"gradients": 3.0, "inputs": 2.0}  # of a batch through the whole model, in passes through it
_BLOCK = {"dense": 1.0, "statistics": 0.7, "steps": 3.0}  # of a batch through a block, in passes through it
_PASS = 0.02  # seconds of a batch through a block, until something was measured


class Work:
    """The parts of a conversion: solves, and batches and steps of training between them.

    Each part has units that were planned and done, and the seconds of those done. Parts of which nothing was
    measured yet are estimated from others that were. May be used by several threads.

    Args:
        layers: Name of a layer -> m n k of its solve.
    """

    def __init__(self, layers: Mapping[str, float]) -> None:
        self._layers = dict(layers)
        self._begun: dict[str, float] = {}  # share that is solved of layers that are not finished
        self._ended: set[str] = set()
        self._whole, self._finished = sum(layers.values()), 0.0  # solvers tell of every iteration
        self._planned: dict[str, float] = {}
        self._done: dict[str, float] = {}
        self._measured: dict[str, tuple[float, float]] = {}  # kind -> units and seconds
        self._blocks, self._share = 1, 0.0
        self._last, self._lock = time.perf_counter(), threading.Lock()

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self._layers)

    def drop(self, name: str) -> None:
        """A layer stays dense."""
        self._whole -= self._layers.pop(name)

    def plan(self, counts: Mapping[str, int], blocks: int) -> None:
        """How often everything but solves will happen.

        Args:
            counts: ``gradients`` and ``inputs``: batches through the whole model; ``dense``, ``statistics``
                and ``steps``: batches through a block.
            blocks: Number of blocks in the model.
        """
        with self._lock:
            self._planned, self._blocks = (
                {kind: float(count) for kind, count in counts.items()},
                max(1, blocks),
            )

    def did(self, kind: str) -> None:
        """One of the things planned is done."""
        with self._lock:
            self._done[kind] = self._done.get(kind, 0.0) + 1
            self._measure(kind, 1.0)

    def spared(self, kind: str, count: int) -> None:
        """So many of the things planned will not happen."""
        with self._lock:
            self._planned[kind] = max(self._planned.get(kind, 0.0) - count, self._done.get(kind, 0.0))

    def solving(self, name: str, share: float) -> None:
        """A share of a layer is solved, from 0 to 1."""
        with self._lock:
            more = 0.0 if name in self._ended else share - self._begun.get(name, 0.0)
            self._begun[name] = share
            self._measure(_SOLVING, self._layers[name] * more)
            if share == 1.0:
                self._finish(name)

    def found(self, name: str) -> None:
        """A layer was solved by an earlier run, in no time."""
        with self._lock:
            self._finish(name)
            self._last = time.perf_counter()

    def outlook(self) -> tuple[float, float]:
        """The share of all work that is done, from 0 to 1, which never falls; and seconds of the rest."""
        with self._lock:
            begun = sum(self._layers[name] * share for name, share in self._begun.items())
            parts = [(self._rate(_SOLVING), self._finished + begun, self._whole)]
            kinds = {**self._planned, **self._done}
            for kind in kinds:
                done = self._done.get(kind, 0.0)
                parts.append((self._rate(kind), done, max(done, self._planned.get(kind, 0.0))))
            spent = sum(rate * done for rate, done, _ in parts)
            left = sum(rate * (planned - done) for rate, done, planned in parts)
            self._share = max(self._share, spent / (spent + left) if spent + left else 1.0)
            return self._share, left

    def _finish(self, name: str) -> None:
        self._begun.pop(name, None)
        if name not in self._ended:
            self._ended.add(name)
            self._finished += self._layers[name]

    def _measure(self, kind: str, units: float) -> None:
        now = time.perf_counter()
        known, seconds = self._measured.get(kind, (0.0, 0.0))
        self._measured[kind] = known + units, seconds + now - self._last
        self._last = now

    def _rate(self, kind: str) -> float:
        """Seconds of a unit."""
        units, seconds = self._measured.get(kind, (0.0, 0.0))
        if units:
            return seconds / units
        if kind == _SOLVING:
            return _SECONDS
        others = [(self._passes(x) * n, s) for x, (n, s) in self._measured.items() if x != _SOLVING and n]
        passes = sum(n for n, _ in others)
        return self._passes(kind) * (sum(s for _, s in others) / passes if passes else _PASS)

    def _passes(self, kind: str) -> float:
        """What it takes, in passes of a batch through a block."""
        return _WHOLE[kind] * self._blocks if kind in _WHOLE else _BLOCK[kind]
