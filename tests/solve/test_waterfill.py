"""Water-filling: against brute force, against the bound of duality, and what it refuses."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

import diba
from diba._internal import storage
from diba.allocation.waterfill import shared_k, waterfill
from diba.solvers.size import stored_bits


def curve_of(shape: tuple[int, int], k: list[int], noise: list[float]) -> diba.Curve:
    return diba.Curve(shape, np.array(k), np.array(noise))


def exponential(shape: tuple[int, int], sizes: list[int], energy: float, rate: float) -> diba.Curve:
    """Noise that falls by ``rate`` dB for each k: linear in dB, so that any sampling says the same."""
    return curve_of(shape, sizes, [energy * 10 ** (-rate * k / 10) for k in sizes])


def test_stored_bits_are_those_of_storage() -> None:
    for m, n, k in ((3, 5, 1), (64, 48, 30)):
        assert stored_bits(m, n, k) == round(storage.bits_per_weight(m, n, k, 16) * m * n)


@pytest.mark.parametrize("total", [2300, 2500, 3000, 3333, 4000])
def test_equal_shapes_are_solved_exactly(total: int) -> None:
    shape, sizes = (12, 20), list(range(1, 13))
    spec = {"a": (9.0, 0.5), "b": (1.0, 1.0), "c": (4.0, 0.2)}
    curves = {name: exponential(shape, [1, 5, 12], energy, rate) for name, (energy, rate) in spec.items()}

    def value(ks: tuple[int, ...]) -> float:
        return sum(e * 10 ** (-r * k / 10) for (e, r), k in zip(spec.values(), ks, strict=True))

    fitting = [
        ks for ks in itertools.product(sizes, repeat=3) if sum(stored_bits(*shape, k) for k in ks) <= total
    ]
    best = min(map(value, fitting))
    found = waterfill(curves, total_bits=total)
    assert found.total_bits <= total
    assert found.total_bits == sum(stored_bits(*shape, k) for k in found.k.values())
    assert found.noise == pytest.approx(value(tuple(found.k.values())), rel=1e-12)
    assert found.noise == pytest.approx(best, rel=1e-12)
    assert found.uniform_noise is None


def test_different_shapes_stay_within_one_step_of_the_best() -> None:
    spec = {"a": ((8, 10), 6.0, 0.8), "b": ((20, 9), 3.0, 0.3), "c": ((5, 30), 8.0, 0.4)}
    sizes = list(range(2, 15))
    curves = {name: exponential(shape, sizes, e, r) for name, (shape, e, r) in spec.items()}
    steps = {name: stored_bits(*shape, 1) - stored_bits(*shape, 0) for name, (shape, _, _) in spec.items()}
    for total in range(1700, 3200, 150):
        found = waterfill(curves, total_bits=total)
        best = math.inf
        for ks in itertools.product(sizes, repeat=3):
            if sum(stored_bits(*s, k) for (s, _, _), k in zip(spec.values(), ks, strict=True)) <= total:
                best = min(
                    best, sum(e * 10 ** (-r * k / 10) for (_, e, r), k in zip(spec.values(), ks, strict=True))
                )
        # Greedy is optimal but for the bits that no step could use: their worth at the steepest slope left.
        left = total - found.total_bits
        slope = max(
            (curves[name].noise[k - 2] - curves[name].noise[k - 1]) / steps[name]
            for name, k in found.k.items()
            if k < sizes[-1]
        )
        assert best <= found.noise * (1 + 1e-12)
        assert found.noise <= best + left * slope + 1e-12
        assert left < max(steps.values())


def test_a_curve_that_is_not_convex_is_followed_along_its_hull() -> None:
    shape = (16, 16)
    bent = curve_of(shape, [1, 2, 3, 4], [10.0, 9.9, 9.8, 1.0])  # the third bit pays, the first two do not
    straight = curve_of(shape, [1, 2, 3, 4], [10.0, 8.0, 6.0, 4.0])
    # The hull of `bent` falls by 3 a step, that of `straight` by 2: all three steps go to `bent`.
    assert waterfill(
        {"bent": bent, "straight": straight}, total_bits=stored_bits(*shape, 4) + stored_bits(*shape, 1)
    ).k == {
        "bent": 4,
        "straight": 1,
    }


def test_noise_that_rises_is_never_paid_for() -> None:
    shape = (16, 16)
    found = waterfill({"a": curve_of(shape, [1, 2, 3], [3.0, 1.0, 2.0])}, total_bits=10**6)
    assert found.k == {"a": 2}
    assert found.noise == 1.0


def test_between_points_noise_is_linear_in_decibels() -> None:
    curve = curve_of((16, 16), [11, 1], [0.01, 1.0])  # any order; 2 dB a step
    found = waterfill({"a": curve}, total_bits=stored_bits(16, 16, 4))
    assert found.k == {"a": 4}
    assert found.noise == pytest.approx(10**-0.6, rel=1e-12)


def test_exact_factors_end_a_curve() -> None:
    curve = curve_of((16, 16), [1, 3], [2.0, 0.0])
    assert waterfill({"a": curve}, total_bits=stored_bits(16, 16, 2)).noise == pytest.approx(1.0)


def test_the_uniform_budget() -> None:
    shapes = {"a": (40, 60), "b": (30, 30), "tiny": (2, 8)}
    curves = {name: exponential(shape, [1, 40], 1 + len(name), 0.3) for name, shape in shapes.items()}
    found = waterfill(curves, bits_per_weight=2)
    uniform = {"a": 27, "b": 11, "tiny": 1}  # (2 m n - 16 (m + n)) / (m + n + 16) rounded down, at least 1
    budget = sum(stored_bits(*shapes[name], k) for name, k in uniform.items())
    assert found.total_bits <= budget
    assert budget - found.total_bits < 40 + 60 + 16
    expected = sum((1 + len(name)) * 10 ** (-0.03 * k) for name, k in uniform.items())
    assert found.uniform_noise == pytest.approx(expected, rel=1e-9)
    assert found.noise <= found.uniform_noise
    assert found.bits_per_weight == found.total_bits / (40 * 60 + 30 * 30 + 2 * 8)
    short = {name: exponential(shape, [1, 20], 1 + len(name), 0.3) for name, shape in shapes.items()}
    assert waterfill(short, bits_per_weight=2).uniform_noise is None  # nobody measured k = 27


def test_sensitivity_draws_bits() -> None:
    A = np.random.default_rng(0).standard_normal((40, 30))
    curve = diba.curve(A, bits=(2, 3, 4), method="greedy", max_iter=2)
    plain, heavy = curve, curve.weighted(5.0)
    f = diba.solve(A, bits_per_weight=3, method="greedy", max_iter=2)
    error = float(np.square(A - f.to_dense()).sum())
    assert plain.noise[1] == pytest.approx(error, rel=1e-5)  # to_dense is float32
    assert plain.energy == pytest.approx(float(np.square(A).sum()), rel=1e-12)
    assert heavy.noise == pytest.approx([5 * value for value in plain.noise])
    assert heavy.snr_db == pytest.approx(plain.snr_db)
    assert waterfill({"a": plain, "b": plain}, bits_per_weight=3).uniform_noise == pytest.approx(
        2 * plain.noise[1]
    )
    found = waterfill({"plain": plain, "heavy": heavy}, bits_per_weight=3)
    assert found.k["heavy"] > curve.k[1] > found.k["plain"]


# ---------------------------------------------------------------- groups that share k


def test_the_shared_size_is_the_largest_that_fits_all_together() -> None:
    shapes = [(24, 16), (8, 16), (8, 16)]
    entries = sum(m * n for m, n in shapes)
    for bits in (3.0, 4.5, 5.0, 6.25):
        k = shared_k(shapes, bits)
        assert sum(stored_bits(*shape, k) for shape in shapes) <= bits * entries
        assert sum(stored_bits(*shape, k + 1) for shape in shapes) > bits * entries
    assert shared_k(shapes, 0.1) == 1
    assert shared_k([(40, 60)], 2) == 27  # as in the uniform budget


def test_groups_are_solved_as_one_matrix() -> None:
    shapes = {"a": (8, 10), "b": (20, 10), "c": (12, 20), "d": (6, 10)}
    spec = {"a": (6.0, 0.8), "b": (3.0, 0.3), "c": (8.0, 0.4), "d": (2.0, 0.6)}
    sizes = list(range(2, 15))
    curves = {name: exponential(shapes[name], sizes, *spec[name]) for name in spec}
    steps = [8 + 20 + 6 + 3 * (10 + 16), 12 + 20 + 16]  # bits of one more k: m + n + 16 for each matrix

    def value(name: str, k: int) -> float:
        energy, rate = spec[name]
        return energy * 10 ** (-rate * k / 10)

    for total in range(2600, 5000, 200):
        found = waterfill(curves, total_bits=total, groups=[["b", "d", "a"]])
        assert list(found.k) == list(curves)
        assert found.k["a"] == found.k["b"] == found.k["d"]
        assert found.total_bits == sum(stored_bits(*shapes[name], k) for name, k in found.k.items()) <= total
        fitting = [
            (value("a", k) + value("b", k) + value("d", k) + value("c", c))
            for k, c in itertools.product(sizes, repeat=2)
            if sum(stored_bits(*shapes[x], c if x == "c" else k) for x in shapes) <= total
        ]
        left = total - found.total_bits
        slopes = [
            sum(curves[x].noise[found.k[x] - 2] - curves[x].noise[found.k[x] - 1] for x in names) / step
            for names, step in zip(("abd", "c"), steps, strict=True)
            if found.k[names[0]] < sizes[-1]
        ]
        assert min(fitting) <= found.noise * (1 + 1e-12)
        assert found.noise <= min(fitting) + left * max(slopes, default=0) + 1e-12


def test_a_group_stays_within_all_of_its_curves() -> None:
    shape = (16, 16)
    curves = {"a": exponential(shape, [2, 9], 1.0, 0.1), "b": exponential(shape, [4, 12], 1.0, 0.1)}
    few = waterfill(curves, total_bits=2 * stored_bits(*shape, 4), groups=[("a", "b")])
    many = waterfill(curves, total_bits=2 * stored_bits(*shape, 30), groups=[("a", "b")])
    assert (few.k, many.k) == ({"a": 4, "b": 4}, {"a": 9, "b": 9})


def test_other_budgets_need_no_other_curves() -> None:
    curves = {name: exponential((16, 24), [1, 12], 1.0 + len(name), 0.2) for name in ("a", "bb", "ccc")}
    found = waterfill(curves, bits_per_weight=2, groups=[["a", "ccc"]])
    assert found.at(2) == found
    smaller = found.at(1.5)
    assert smaller == waterfill(curves, bits_per_weight=1.5, groups=[["a", "ccc"]])
    assert smaller.total_bits < found.total_bits
    assert smaller.k["a"] == smaller.k["ccc"]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([["a", "z"]], "'z'; it must be one of curves"),
        ([["a", "b"], ["b", "c"]], "'b' twice"),
        ([["a", "c"]], "a, c have no k in common"),
    ],
)
def test_bad_groups(groups: list[list[str]], message: str) -> None:
    sizes = {"a": [1, 2], "b": [1, 3], "c": [4, 5]}
    curves = {name: exponential((16, 16), k, 1.0, 0.1) for name, k in sizes.items()}
    with pytest.raises(ValueError, match=message):
        waterfill(curves, total_bits=10**5, groups=groups)


ONE = {"a": curve_of((4, 4), [1], [1.0])}


@pytest.mark.parametrize(
    ("curves", "budget", "kind", "message"),
    [
        ([], {"total_bits": 100}, TypeError, "curves is"),
        ({}, {"total_bits": 100}, ValueError, "curves is empty"),
        ({"a": 3}, {"total_bits": 100}, TypeError, r"curves\['a'\] is 3"),
        ({"a": ((4, 4), [1], [1.0])}, {"total_bits": 100}, TypeError, r"curves\['a'\] is .* must be a Curve"),
        (ONE, {}, ValueError, "exactly one"),
        (ONE, {"total_bits": 9, "bits_per_weight": 1}, ValueError, "exactly one"),
        (ONE, {"total_bits": 9}, ValueError, "must be at least .* smallest k"),
        (ONE, {"bits_per_weight": -1}, ValueError, "bits_per_weight is -1"),
    ],
)
def test_bad_arguments(curves: Any, budget: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        waterfill(curves, **budget)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (((4, 4), [1, 2], [1.0]), "k has 2 entries, noise 1"),
        (((4, 4), [], []), "at least 1"),
        (((4, 4), [2, 2], [1.0, 1.0]), r"k is \[2, 2\]; .* once"),
        (((4, 4), [0], [1.0]), "an entry of k"),
        (((4, 4), [1], [math.nan]), "noise is nan"),
        (((4, 0), [1], [1.0]), "a side of shape"),
        (((4, 4), [1], [1.0], -1.0), "energy is -1"),
        (((4, 4), [1], [1.0], 1.0, [1.0, 2.0]), "equally many"),
    ],
)
def test_bad_curves(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        diba.Curve(*given)


def test_a_curve_without_energy_has_no_snr() -> None:
    with pytest.raises(ValueError, match="energy is None"):
        _ = ONE["a"].snr_db
    with pytest.raises(ValueError, match="weight is -1"):
        ONE["a"].weighted(-1)
