"""Pairs of flips: the compiled search against a twin in NumPy, the solver's steps against enumeration."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import diba
from diba import _core, reference
from diba.solvers.greedy import Greedy
from kernel_calls import packed, random_bits

EPS = 2.0**-23  # float32


def sides(H: np.ndarray) -> np.ndarray | None:
    """Signs e with e_j e_l H_jl >= 0, or None."""
    e = np.where(H[H.diagonal().argmax()] < 0, -1, 1)
    return e if (np.outer(e, e) * H >= 0).all() else None


def best_pair(H: np.ndarray, gains: np.ndarray, s: np.ndarray, d: float) -> tuple[float, int, int]:
    """The first of the best two flips; with sides, the bit of the positive side comes first."""
    gain = gains[:, None] + gains - 2 * d**2 * np.outer(s, s) * H
    np.fill_diagonal(gain, -np.inf)
    e = sides(H)
    if e is not None:
        gain[(s * e > 0)] = -np.inf
        gain[:, s * e < 0] = -np.inf
    j, m = np.unravel_index(gain.argmax(), gain.shape)
    return gain[j, m], int(j), int(m)


def pair_flips(H: np.ndarray, G: np.ndarray, d: np.ndarray, B: np.ndarray, step: int) -> tuple:
    """As reference.best_flips, and the best pair where no single flip helps."""
    B, G, flips, decrease = B.copy(), G.copy(), 0, 0.0
    for i in range(len(B)):
        threshold = reference.FLIP_THRESHOLD * (step * d[i]) ** 2 * H.diagonal().max()
        row = slice(i, i + 1)
        while True:
            B[row], G[row], singles, gained = reference.best_flips(H, G[row], d[row], B[row], step)
            flips, decrease = flips + singles, decrease + gained
            s = np.where(B[i] > 0, -step, step)
            gains = 2 * s * d[i] * G[i] - (s * d[i]) ** 2 * H.diagonal()
            gain, *pair = best_pair(H, gains, s, d[i])
            if not gain > threshold:
                break
            for j in pair:
                B[i, j] += s[j]
                G[i] -= s[j] * d[i] * H[j]
            flips, decrease = flips + 2, decrease + gain
    return B, G, flips, decrease


def greedy_rows(H: np.ndarray, G: np.ndarray, d: np.ndarray, B: np.ndarray, step: int, pairs: bool) -> tuple:
    """The same signature around diba._core.greedy_rows."""
    words, G = packed(B > 0), G.astype(np.float32)
    single = H.astype(np.float32), G, d.astype(np.float32), words
    flips, decrease = _core.greedy_rows(*single, step == 2, 1, pairs)
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little", count=len(H)).astype(np.float64)
    return step * bits - (step - 1), G.astype(np.float64), flips, decrease


def whole_problem(k: int, step: int, sided: bool) -> tuple:
    """H, G, d, B of whole numbers so small that float32 arithmetic on them is exact; ties abound."""
    rng = np.random.default_rng([k, step, sided])
    if sided:  # C = diag(d2) B2 with 0/1 entries
        C = rng.choice([-2.0, -1.0, 1.0, 2.0], (k, 1)) * random_bits(rng, k, 12)
        C[:, 0] = C[np.arange(k), rng.integers(1, 12, k)]
    else:
        C = np.rint(2 * rng.standard_normal((k, 12)))
    d = rng.choice([-2.0, -1.0, 1.0, 2.0], 6)
    B = step * random_bits(rng, 6, k).astype(np.float64) - (step - 1)
    A = np.rint(3 * np.sqrt(k) * rng.standard_normal((6, 12)))
    return C @ C.T, (A - d[:, None] * (B @ C)) @ C.T, d, B


@pytest.mark.parametrize("sided", [True, False], ids=["sided", "any"])
@pytest.mark.parametrize("step", [1, 2], ids=["binary", "sign"])
def test_pairs_of_whole_numbers_are_those_of_the_twin(isa: str, step: int, sided: bool) -> None:
    """Exact arithmetic on both sides: bits, correlations, counts and decreases are equal, ties included."""
    more = 0
    for k in (1, 2, 3, 5, 8, 15, 16, 17, 31, 63, 64, 65, 127, 129):
        problem = whole_problem(k, step, sided)
        expected, found = pair_flips(*problem, step), greedy_rows(*problem, step, True)
        assert np.array_equal(found[0], expected[0])
        assert np.array_equal(found[1], expected[1])
        assert found[2:] == expected[2:]
        more += found[2] - greedy_rows(*problem, step, False)[2]
    assert more > 20


def run_with_pairs(A: np.ndarray, k: int, alphabet: str, seed: int) -> Greedy:
    """A run from random bits."""
    rng = np.random.default_rng([k, seed])
    low = 0 if alphabet == "binary" else -1
    shapes = (len(A), k), (k, A.shape[1])
    b1, b2 = (np.where(random_bits(rng, *shape), 1, low) for shape in shapes)
    bits = (diba.BitMatrix.from_dense(b, alphabet) for b in (b1, b2))
    return Greedy(A, *bits, threads=1, pairs=True)


def row_objectives(run: Greedy, A: np.ndarray, rows: bool) -> np.ndarray:
    """Objective of each row of the left (right) side for every flip of up to two bits: (flips, rows)."""
    side, other = (run.left, run.right) if rows else (run.right, run.left)
    low, step = (-1, 2) if side.signs else (0, 1)
    bits = [
        np.unpackbits(s.words.view(np.uint8), axis=1, bitorder="little", count=s.k) for s in (side, other)
    ]
    B, X = (low + step * b.astype(np.float64) for b in bits)
    C = (run.d2[:, None] * (other.scale[:, None] * X).T).astype(np.float64)
    flips = [(), *itertools.combinations(range(side.k), 1), *itertools.combinations(range(side.k), 2)]
    objectives = []
    for flip in flips:
        flipped = B.copy()
        flipped[:, flip] = 2 * low + step - B[:, flip]
        residual = (A if rows else A.T) - side.scale[:, None].astype(np.float64) * (flipped @ C)
        objectives.append(np.square(residual).sum(axis=1))
    return np.array(objectives)


@pytest.mark.parametrize("alphabet", ["binary", "sign"])
def test_steps_never_raise_the_objective_and_end_pair_optimal(alphabet: str) -> None:
    """By enumeration of all one and two flips of every row and column.

    Rounding: gains and correlations are float32 sums of at most 2 k + 17 terms, each of at most `size`, which
    also covers the threshold of the search.
    """
    for seed, k in enumerate((1, 2, 3, 7, 12)):
        A = np.random.default_rng(seed).standard_normal((17, 13)).astype(np.float32) / np.float32(4)
        run = run_with_pairs(A, k, alphabet, seed)
        for _ in range(3):
            for step in run.steps():
                before = run.objective
                step()
                rounding = (2 * k + 17) * EPS * run.energy
                assert run.objective <= before + rounding
                if step not in (run.flip_rows, run.flip_columns):
                    continue
                objectives = row_objectives(run, A.astype(np.float64), step == run.flip_rows)
                size = np.square(A, dtype=np.float64).sum() + objectives.max()
                rounding = (2 * k + 17) * EPS * size
                assert (objectives[0] - objectives.min(axis=0)).max() <= rounding
                assert abs(objectives[0].sum() - run.objective) <= rounding
