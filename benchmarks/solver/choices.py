"""What each choice inside method "admm" is worth, one changed at a time, on a few real matrices.

    python benchmarks choices --json benchmarks/results/choices.json

One thread; a few minutes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

import diba
from diba.solvers import admm, greedy, methods, sign_side, stages

from ..common import results
from ..common.command import finish, parser
from ..common.tables import ALPHABETS, markdown, measured, plural
from ..common.weights import efficientnet, minilm

MATRICES = (
    "encoder.layer.0.attention.self.query.weight",
    "_blocks.6._expand_conv.weight",
    "_blocks.11._project_conv.weight",
)
STEPS = 300
Change = Callable[[], None]


def setting(module: object, name: str, value: object) -> Change:
    def change() -> None:
        getattr(module, name)  # one that is not there would change nothing
        setattr(module, name, value)

    return change


def without_pairs() -> None:
    start = greedy.Greedy.__init__

    def single(self: greedy.Greedy, *args: object, **options: object) -> None:
        start(self, *args, **(options | {"pairs": False}))

    greedy.Greedy.__init__ = single


def no_polish() -> None:
    methods.EFFORT_STEPS = {name: steps._replace(polish=0) for name, steps in methods.EFFORT_STEPS.items()}


TRIALS: dict[str, tuple[Change, int]] = {
    "as it is": (lambda: None, STEPS),
    "sides one after the other": (setting(admm, "_SEQUENTIAL_BITS", np.inf), STEPS),
    "sides at once": (setting(admm, "_SEQUENTIAL_BITS", 0), STEPS),
    "first penalty 0.1": (setting(admm, "_FIRST_PENALTY", 0.1), STEPS),
    "first penalty 0.3": (setting(admm, "_FIRST_PENALTY", 0.3), STEPS),
    "linear ramp from 0.1": (setting(admm, "ramp", lambda part, first: 0.1 + 0.9 * part), STEPS),
    "ridge 0": (setting(sign_side, "RIDGE", 0.0), STEPS),
    "ridge 0.1": (setting(sign_side, "RIDGE", 0.1), STEPS),
    "balance 0.01": (setting(methods, "BALANCE", 0.01), STEPS),
    "balance 0.03": (setting(methods, "BALANCE", 0.03), STEPS),
    "balance 0.3": (setting(methods, "BALANCE", 0.3), STEPS),
    "balance 1": (setting(methods, "BALANCE", 1.0), STEPS),
    "one stage": (setting(stages, "_MOST_PARTS", 1), STEPS),
    "single flips only": (without_pairs, STEPS),
    "no greedy steps": (no_polish, STEPS),
    "100 steps": (lambda: None, 100),
    "600 steps": (lambda: None, 600),
    "1200 steps": (lambda: None, 1200),
}


@contextmanager
def changed(change: Change) -> Iterator[None]:
    """The change, for a while."""
    kept = [(module, dict(vars(module))) for module in (admm, sign_side, methods, stages)]
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


def table(report: dict[str, Any]) -> str:
    """Mean SNR of "as it is", and of the others what they differ by."""
    found: dict[str, dict[tuple[str, float], list[float]]] = {}
    for row in report["runs"]:
        mine = found.setdefault(row["trial"], {})
        mine.setdefault((row["alphabet"], row["bits"]), []).append(row["snr_db"])
    means = {
        trial: {at: float(np.mean(levels)) for at, levels in mine.items()} for trial, mine in found.items()
    }
    columns = [(alphabet, bits) for alphabet in ("sign", "binary") for bits in (1.0, 2.0)]
    base = means.get("as it is", {})

    def cell(trial: str, at: tuple[str, float]) -> str:
        if at not in means[trial] or at not in base:
            return ""
        own = means[trial][at]
        return f"{own:.3f} dB" if trial == "as it is" else f"{own - base[at]:+.3f}"

    rows = [[trial, *(cell(trial, at) for at in columns)] for trial in means]
    head = [f"{report['steps']} steps", *(f"{ALPHABETS[a]}, {plural(b, 'bit')}" for a, b in columns)]
    note = f"Means over {len(report['matrices'])} matrices; one thread. {measured(report)}."
    return f"{markdown(head, rows)}\n\n{note}"


def main(arguments: Sequence[str]) -> None:
    made = parser("choices", __doc__)
    made.add_argument("--trials", nargs="*", choices=list(TRIALS), default=list(TRIALS), metavar="NAME")
    options = made.parse_args(arguments)
    fresh = {"machine": results.machine(), "steps": STEPS, "matrices": list(MATRICES), "runs": []}
    report = results.go_on(options.json, fresh, ("machine", "steps", "matrices"))
    there = {row["trial"] for row in report["runs"]}
    for name in options.trials:
        if name not in there:
            report["runs"] += run(name)
            results.write(options.json, report)
            print(f"{name} done", flush=True)
    finish(table(report), report, options)
