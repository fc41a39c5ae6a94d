"""Numbers of one and two bits: packing, rounding, and exact products."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import diba

LEVELS = {1: [-1, 1], 2: [-3, -1, 1, 3]}


def numbers(rows: int, columns: int, bits: int, seed: int) -> Any:
    return np.random.default_rng(seed).choice(LEVELS[bits], (rows, columns))


@pytest.mark.parametrize(("p", "q"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_products_are_exact(p: int, q: int, isa: str) -> None:
    for m, n, k in ((1, 1, 1), (3, 63, 5), (70, 1025, 65), (257, 2050, 66)):
        A, B = numbers(m, n, p, 1), numbers(k, n, q, 2)
        a, b = diba.Levels.from_dense(A, p), diba.Levels.from_dense(B, q)
        assert (a.to_dense() == A).all()
        for threads in (1, 3):
            found = diba.bitgemm(a, b, threads=threads)
            assert found.dtype == np.int32
            assert (found == A @ B.T).all(), isa


def test_the_largest_sums(isa: str) -> None:
    """Bytes hold the sums of lookups until they are full."""
    for sign in (-1, 1):
        A = np.full((5, 5000), 3)
        a, b = diba.Levels.from_dense(A, 2), diba.Levels.from_dense(sign * A, 2)
        assert (diba.bitgemm(a, b) == sign * 9 * 5000).all()


def test_rounding() -> None:
    x = np.array([[0.0, 0.1, -0.1, 5.0, -5.0], [1.0, -1.0, 1.0, 1.0, -1.0]])
    one, step = diba.Levels.rounded(x, 1)
    assert one.to_dense().tolist() == [[-1, 1, -1, 1, -1], [1, -1, 1, 1, -1]]
    assert step == pytest.approx(np.abs(x).mean(1))
    two, step = diba.Levels.rounded(x, 2, step=[1.0, 0.5])
    assert two.to_dense().tolist() == [[-1, 1, -1, 3, -3], [1, -3, 1, 1, -3]]  # half way: downwards
    assert step.tolist() == [1.0, 0.5]
    zeros, step = diba.Levels.rounded(np.zeros((2, 3)), 2)
    assert (step == 0).all()  # so that step times number is zero, whatever the number
    assert zeros == diba.Levels.rounded(np.zeros((2, 3)), 2, step)[0]


@pytest.mark.parametrize("bits", [1, 2])
def test_rounding_entry_by_entry(bits: int, isa: str) -> None:
    """Thresholds exactly between numbers, on every instruction set and for any number of threads."""
    rng = np.random.default_rng(3)
    for rows, columns in ((1, 1), (3, 64), (70, 333)):
        x = (rng.standard_normal((rows, columns)) * np.exp(rng.standard_normal((rows, 1)))).astype(np.float32)
        x[0, 0] = 0
        step = np.exp(rng.standard_normal(rows)).astype(np.float32)
        x[-1, : columns // 2] = rng.choice([-2, 0, 2], columns // 2) * step[-1]
        found, same = diba.Levels.rounded(x, bits, step)
        below = sum(x > t * step[:, None] for t in ((0,) if bits == 1 else (-2, 0, 2)))
        assert (found.to_dense() == 2 * below.astype(int) - (2**bits - 1)).all(), isa
        assert (same == step).all()
        whole, own = diba.Levels.rounded(x, bits)
        wide = x.astype(np.float64)
        size = np.abs(wide).mean(1) if bits == 1 else 0.4979 * np.sqrt(np.square(wide).mean(1))
        np.testing.assert_allclose(own, size, rtol=2.0**-23)
        threaded, others = diba.Levels.rounded(x, bits, threads=3)
        assert whole == threaded
        assert (own == others).all()


def test_the_step_of_two_bits_has_the_least_error() -> None:
    x = np.random.default_rng(0).standard_normal((1, 100_000))
    _, step = diba.Levels.rounded(x, 2)

    def error(factor: float) -> float:
        found, own = diba.Levels.rounded(x, 2, step=step * factor)
        return float(np.square(x - own[:, None] * found.to_dense()).mean())

    assert error(1.0) < min(error(0.97), error(1.03))
    assert error(1.0) == pytest.approx(0.1188, abs=0.002)  # the uniform quantizer of four levels (Max, 1960)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: diba.Levels.from_dense([[0, 1]], 1), ValueError, "others than -1 or 1; use Levels.rounded"),
        (lambda: diba.Levels.from_dense([[1, 2]], 2), ValueError, "others than -3, -1, 1 or 3"),
        (lambda: diba.Levels.from_dense([1, 1], 1), ValueError, "it must be a matrix"),
        (lambda: diba.Levels.from_dense([[1]], 3), ValueError, "bits is 3; it must be 1 or 2"),
        (lambda: diba.Levels.rounded([[np.nan]], 1), ValueError, "NaN"),
        (lambda: diba.Levels.rounded([[1.0]], 1, step=0.0), ValueError, "not positive"),
        (lambda: diba.Levels.rounded([[1e300]], 1), ValueError, "beyond the range"),
        (lambda: diba.bitgemm(np.ones((2, 2)), None), TypeError, "a is a ndarray; it must be diba.Levels"),
        (
            lambda: diba.bitgemm(diba.Levels.from_dense([[1]], 1), diba.Levels.from_dense([[1, 1]], 1)),
            ValueError,
            "a has 1 columns and b 2",
        ),
    ],
)
def test_bad_input(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()
