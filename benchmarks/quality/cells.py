"""The cells of the quality benchmark: which matrix, which method, which size; and how one is run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common.tables import ALPHABETS
from ..common.weights import SOURCES, RealMatrix

__all__ = [
    "BITS",
    "MAIN_BITS",
    "METHODS",
    "MODULUS",
    "SELECTED",
    "Cell",
    "Method",
    "cost",
    "matrices",
    "plan",
    "run",
]

BITS = (0.5, 1.0, 1.5, 2.0, 3.0)
MAIN_BITS = (1.0, 2.0)  # on all matrices; the other sizes on SELECTED, without effort best
SMALLEST_SIDE = 64  # in a smaller matrix the diagonals alone take most of a bit per weight
# Subsets are chosen by place: a matrix's number, in the order of weights.py, modulo 22.
MODULUS = 22
SELECTED = frozenset({0})  # six matrices, for effort best and for other sizes than MAIN_BITS
REFERENCE = frozenset({0, 2, 4, 7, 11, 13, 15, 18})  # 45 matrices, for DBF

Result = dict[str, Any]


def matrices(sources: Sequence[str] = ("minilm", "whisper", "efficientnet")) -> list[RealMatrix]:
    """Every dense matrix of the models with at least SMALLEST_SIDE rows and columns."""
    found = (matrix for source in sources for matrix in SOURCES[source]())
    return [matrix for matrix in found if min(matrix.array.shape) >= SMALLEST_SIDE]


# ---- methods: each takes (A, bits per weight, threads)


def run_diba(A: NDArray[np.float32], bits: float, threads: int, **options: Any) -> Result:
    import diba

    started = time.perf_counter()
    f = diba.solve(A, bits_per_weight=bits, threads=threads, **options)
    seconds = time.perf_counter() - started
    return {"snr_db": f.snr_db(A), "bits_per_weight": f.bits_per_weight, "k": f.k, "seconds": seconds}


def run_dbf(A: NDArray[np.float32], bits: float, threads: int) -> Result:
    import torch

    import diba
    from diba.solvers.size import inner_dimension

    from . import torch_dbf

    torch.set_num_threads(threads)
    m, n = A.shape
    k = inner_dimension(m, n, "bits_per_weight", bits)
    started = time.perf_counter()
    factors = torch_dbf.solve(torch.from_numpy(A), k)
    seconds = time.perf_counter() - started
    parts = [getattr(factors, name).numpy() for name in ("d1", "S1", "d2", "S2", "d3")]
    f = diba.Factorization.from_factors(*parts, alphabet="sign").round_diagonals()
    return {"snr_db": f.snr_db(A), "bits_per_weight": f.bits_per_weight, "k": f.k, "seconds": seconds}


def run_onebit(A: NDArray[np.float32], bits: float, threads: int) -> Result:
    import diba

    started = time.perf_counter()
    f = diba.onebit(A, threads=threads)
    seconds = time.perf_counter() - started
    return {"snr_db": f.snr_db(A), "bits_per_weight": f.bits_per_weight, "seconds": seconds}


def run_baseline(name: str, A: NDArray[np.float32], bits: float, threads: int, **options: Any) -> Result:
    from . import baselines

    started = time.perf_counter()
    size = int(bits) if name == "round_to_nearest" else bits
    found = getattr(baselines, name)(A, size, **options)
    seconds = time.perf_counter() - started
    snr = baselines.decibels(A, found.dense)
    return {"snr_db": snr, "bits_per_weight": found.bits_per_weight, "note": found.note, "seconds": seconds}


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        label: Name for people.
        run: The work of a cell.
        share: Expected time as a share of DBF's, for the estimate only.
        bits: Sizes it can take.
        places: Subset of places modulo MODULUS; None for all matrices.
    """

    label: str
    run: Callable[..., Result]
    share: float
    bits: tuple[float, ...] = BITS
    places: frozenset[int] | None = None


def ours(alphabet: str, effort: str, share: float) -> Method:
    work = partial(run_diba, method="auto", alphabet=alphabet, effort=effort)
    label = f"diba {ALPHABETS[alphabet]}, {effort}"
    if effort == "best":
        return Method(label, work, share, MAIN_BITS, SELECTED)
    return Method(label, work, share)


METHODS: dict[str, Method] = {
    "dbf": Method("DBF ±1, as published", run_dbf, 1.0, places=REFERENCE),
    "sign-fast": ours("sign", "fast", 0.2),
    "sign-normal": ours("sign", "normal", 0.85),
    "sign-best": ours("sign", "best", 2.8),
    "binary-fast": ours("binary", "fast", 0.28),
    "binary-normal": ours("binary", "normal", 1.2),
    "binary-best": ours("binary", "best", 2.8),
    "greedy": Method("greedy 0/1, as published", partial(run_diba, method="greedy", alphabet="binary"), 0.06),
    "onebit": Method("OneBit", run_onebit, 0.01, (1.0,)),
    "svd16": Method("SVD, float16", partial(run_baseline, "truncated_svd"), 0.02),
    "rtn-row": Method(
        "rounding, per row", partial(run_baseline, "round_to_nearest", group=None), 0.02, (2.0, 3.0)
    ),
    "rtn-64": Method(
        "rounding, groups of 64", partial(run_baseline, "round_to_nearest", group=64), 0.02, (2.0, 3.0)
    ),
}


# ---- cells


@dataclass(frozen=True)
class Cell:
    """One run: a matrix by its key in the report, a method of METHODS, bits per weight."""

    matrix: str
    method: str
    bits: float


def plan(
    count: int, keys: Sequence[str], bits: Sequence[float], methods: Sequence[str]
) -> list[tuple[int, Cell]]:
    """(place of the matrix, cell), all of one matrix and size in a row: its times are then comparable.

    Args:
        count: Matrices in all; a place is a matrix's number among them.
        keys: Key of every matrix.
        bits: Sizes that are wanted.
        methods: Methods that are wanted.
    """
    found = []
    for place in range(count):
        remainder = place % MODULUS
        for size in bits:
            if size not in MAIN_BITS and remainder not in SELECTED:
                continue
            for name in methods:
                method = METHODS[name]
                if size in method.bits and (method.places is None or remainder in method.places):
                    found.append((place, Cell(keys[place], name, size)))
    return sorted(found, key=_turn)


def _turn(found: tuple[int, Cell]) -> int:
    """A run that is cut short has all methods on some matrices rather than some on all."""
    place, cell = found
    if cell.bits not in MAIN_BITS:
        return 1
    return 0 if place % MODULUS in REFERENCE else 2


def cost(shape: tuple[int, int], bits: float) -> float:
    """Seconds that DBF may take, from its operations: 45 GFLOP/s, and 8 ns for passes over an entry."""
    m, n = shape
    k = max(1, int((bits * m * n - 16 * (m + n)) / (m + n + 16)))
    both = 8 * k * k * (m + n) + 4 * k * m * n + 4 * k**3
    return 260 * (both / 45e9 + 3 * k * (m + n) * 8e-9) + 0.2


def run(cell: Cell, array: NDArray[np.floating], threads: int) -> Result:
    """One cell, in a worker process; all methods get the same float32 matrix."""
    A = np.ascontiguousarray(array, dtype=np.float32)
    measured = METHODS[cell.method].run(A, cell.bits, threads)
    digits = {"snr_db": 4, "bits_per_weight": 5, "seconds": 3}
    rounded = {
        name: round(value, digits[name]) if name in digits else value for name, value in measured.items()
    }
    return {**asdict(cell), **rounded}
