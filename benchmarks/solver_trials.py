#!/usr/bin/env python3
"""What each choice inside method "admm" is worth, one changed at a time, on a few real matrices.

The figures of docs/solver.md. Needs the packages that realdata.py names. One thread; a few minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

import diba
from diba.solvers import admm, greedy, methods
from realdata import efficientnet, minilm

MATRICES = (
    "encoder.layer.0.attention.self.query.weight",
    "_blocks.6._expand_conv.weight",
    "_blocks.11._project_conv.weight",
)
STEPS = 300
Change = Callable[[], None]


def setting(module: object, name: str, value: object) -> Change:
    return lambda: setattr(module, name, value)


def without_pairs() -> None:
    start = greedy.Greedy.__init__

    def single(self: greedy.Greedy, *args: object, **options: object) -> None:
        start(self, *args, **(options | {"pairs": False}))

    greedy.Greedy.__init__ = single


def no_polish() -> None:
    methods.BUDGETS = {name: steps._replace(polish=0) for name, steps in methods.BUDGETS.items()}


TRIALS: dict[str, tuple[Change, int]] = {
    "as it is": (lambda: None, STEPS),
    "sides one after the other": (setting(admm, "_SEQUENTIAL_BITS", np.inf), STEPS),
    "sides at once": (setting(admm, "_SEQUENTIAL_BITS", 0), STEPS),
    "first penalty 0.1": (setting(admm, "_FIRST_PENALTY", 0.1), STEPS),
    "first penalty 0.3": (setting(admm, "_FIRST_PENALTY", 0.3), STEPS),
    "linear ramp from 0.1": (setting(admm, "ramp", lambda part: 0.1 + 0.9 * part), STEPS),
    "ridge 0": (setting(admm, "_RIDGE", 0.0), STEPS),
    "ridge 0.1": (setting(admm, "_RIDGE", 0.1), STEPS),
    "balance 0.01": (setting(methods, "BALANCE", 0.01), STEPS),
    "balance 0.03": (setting(methods, "BALANCE", 0.03), STEPS),
    "balance 0.3": (setting(methods, "BALANCE", 0.3), STEPS),
    "balance 1": (setting(methods, "BALANCE", 1.0), STEPS),
    "single flips only": (without_pairs, STEPS),
    "no greedy steps": (no_polish, STEPS),
    "100 steps": (lambda: None, 100),
    "600 steps": (lambda: None, 600),
    "1200 steps": (lambda: None, 1200),
}


@contextmanager
def changed(change: Change) -> Iterator[None]:
    """The change, for a while."""
    kept = [(module, dict(vars(module))) for module in (admm, methods)]
    start = greedy.Greedy.__init__
    change()
    try:
        yield
    finally:
        greedy.Greedy.__init__ = start
        for module, names in kept:
            vars(module).update(names)


def matrices() -> dict[str, NDArray[np.floating]]:
    found = {m.name: m.array for source in (minilm, efficientnet) for m in source() if m.name in MATRICES}
    return {name: np.ascontiguousarray(found[name], dtype=np.float32) for name in MATRICES}


def run(name: str) -> list[dict[str, object]]:
    change, steps = TRIALS[name]
    rows: list[dict[str, object]] = []
    for key, A in matrices().items():
        for bits in (1.0, 2.0):
            for alphabet in ("sign", "binary"):
                if name.startswith("balance") and alphabet == "sign":
                    continue
                with changed(change):
                    began = time.process_time()
                    f = diba.solve(
                        A, bits_per_weight=bits, method="admm", alphabet=alphabet, max_iter=steps, threads=1
                    )
                    seconds = time.process_time() - began
                row = {"trial": name, "matrix": key, "bits": bits, "alphabet": alphabet}
                rows.append(row | {"snr_db": round(f.snr_db(A), 4), "cpu_seconds": round(seconds, 2)})
    return rows


def markdown(report: dict[str, Any]) -> str:
    """Mean SNR of "as it is", and of the others what they differ by."""
    rows = report["runs"]
    columns = [(alphabet, bits) for alphabet in ("sign", "binary") for bits in (1.0, 2.0)]
    names = {"sign": "±1", "binary": "0/1"}
    lines = [
        f"| {report['steps']} steps | " + " | ".join(f"{names[a]}, {b:g} bits" for a, b in columns) + " |"
    ]
    lines.append("| :--- |" + " ---: |" * len(columns))
    base: dict[tuple[str, float], float] = {}
    for trial in TRIALS:
        cells = []
        for alphabet, bits in columns:
            own = [
                float(r["snr_db"])
                for r in rows
                if (r["trial"], r["alphabet"], r["bits"]) == (trial, alphabet, bits)
            ]
            mean = float(np.mean(own)) if own else np.nan
            if trial == "as it is":
                base[alphabet, bits] = mean
                cells.append(f"{mean:.3f} dB")
            else:
                cells.append(f"{mean - base[alphabet, bits]:+.3f}" if own else "")
        lines.append(f"| {trial} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, default=Path("build/solver_trials.json"))
    parser.add_argument("--trials", nargs="*", choices=list(TRIALS), default=list(TRIALS), metavar="NAME")
    options = parser.parse_args()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, object]] = []
    for name in options.trials:
        rows += run(name)
        print(f"{name} done", flush=True)
        report = {"machine": diba.info(), "steps": STEPS, "matrices": MATRICES, "runs": rows}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(markdown(report))


if __name__ == "__main__":
    main()
