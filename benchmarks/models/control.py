"""The control for retuning: binaries drawn at random in the place of those a solver finds.

Same shapes, same bits per weight, and everything a diagonal can do: they are fitted in closed form, in turn
until nothing is gained, before the same retuning. What is left between it and the solver's factors is the
binaries' work.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import nn

import diba
import diba.torch
from diba.solvers.greedy import Greedy
from diba.solvers.size import inner_dimension
from diba.torch.model.selection import Target, targets
from diba.torch.model.swap import replace
from diba.torch.modules.kinds import dense_matrix

__all__ = ["convert_random", "random_factors"]

SWEEPS, TOLERANCE = 40, 1e-5  # at most so many fits of the diagonals; stop at a smaller relative gain


def convert_random(model: nn.Module, config: diba.torch.Config, seed: int = 0) -> dict[str, float]:
    """Replace the layers that diba would, in place.

    Returns:
        Signal-to-noise ratio of each layer in dB, by its name.
    """
    report = {}
    for number, target in enumerate(targets(model, config)):
        A = dense_matrix(target.module)
        f = random_factors(A, inner(target), target.settings.alphabet, (seed, number))
        replace(model, target.modules, f)
        report[target.name] = f.snr_db(A)
    return report


def inner(target: Target) -> int:
    """k of a target whose config gives k or bits per weight.

    Raises:
        ValueError: the config asks for a signal-to-noise ratio, which random binaries do not reach.
    """
    settings = target.settings
    if settings.k is not None:
        return settings.k
    if settings.bits_per_weight is None:
        raise ValueError("the config has snr_db; the control needs bits_per_weight or k")
    return inner_dimension(*target.shape, "bits_per_weight", settings.bits_per_weight)


def random_factors(
    A: NDArray[np.float32], k: int, alphabet: str, seed: int | tuple[int, ...] = 0
) -> diba.Factorization:
    """Fair random bits with the diagonals that fit A, each the best for the other two.

    Args:
        A: Shape (m, n).
        k: Inner dimension.
        alphabet: ``"binary"`` or ``"sign"``.
        seed: Of the bits.
    """
    m, n = A.shape
    rng = np.random.default_rng(seed)
    b1, b2 = (random_bits(rng, rows, cols, alphabet) for rows, cols in ((m, k), (k, n)))
    largest = float(np.abs(A).max()) or 1.0
    fit = Greedy(np.ascontiguousarray(A / largest, np.float32), b1, b2, threads=diba.num_threads())
    for _ in range(SWEEPS):
        before = fit.objective
        for step in (fit.fit_columns, fit.fit_rows, fit.fit_inner):
            step()
        if before - fit.objective <= TOLERANCE * before:
            break
    f = fit.factors()
    return diba.Factorization(f.d1 * np.float32(largest), f.b1, f.d2, f.b2, f.d3).round_diagonals()


def random_bits(rng: np.random.Generator, rows: int, cols: int, alphabet: str) -> diba.BitMatrix:
    packed = rng.integers(0, 256, (rows, -(-cols // 8)), np.uint8)
    packed[:, -1] &= 0xFF >> (-cols % 8)
    return diba.BitMatrix.from_packed_rows(packed, cols, alphabet)
