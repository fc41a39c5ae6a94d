"""Response curves from losses that were measured on few batches: what counts as measured, what does not."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from diba.allocation.response import Response, falling, fitted, smoothed

NOISE = np.array([8.0, 2.0, 0.5])


def response(means: list[float], scatter: float, noise: np.ndarray = NOISE, batches: int = 4) -> Response:
    """Rises with these means, and with standard errors of exactly ``scatter`` for 4 batches."""
    signs = np.resize([1.0, -1.0], batches) * scatter * np.sqrt(batches - 1)
    return Response(np.array(means)[:, None] + signs, noise)


def test_standard_errors_are_those_of_the_mean() -> None:
    found = response([1.0, 2.0, 3.0], 0.25)
    np.testing.assert_allclose(found.mean, [1, 2, 3])
    np.testing.assert_allclose(found.error, 0.25)
    rng = np.random.default_rng(0)
    many = Response(rng.standard_normal((1, 6)), np.ones(1))
    resampled = rng.choice(many.rises[0] - many.mean[0], (200_000, 6)).mean(1).std()  # of a population
    assert abs(many.error[0] / resampled - np.sqrt(6 / 5)) < 0.02
    assert Response(np.ones((2, 1)), np.ones(2)).error.tolist() == [0, 0]


def test_what_stands_out_counts_as_measured() -> None:
    (found,) = fitted([response([4.0, 1.5, 0.2], 0.05)])
    np.testing.assert_allclose(found, [4.0, 1.5, 0.2], rtol=1e-14)


def test_what_does_not_follows_the_noise_of_the_same_matrix() -> None:
    # At the largest size 0.1 is within 2 x 0.15. The others have 0.5 for each unit of noise.
    (found,) = fitted([response([4.0, 1.0, 0.1], 0.15)])
    np.testing.assert_allclose(found, [4.0, 1.0, 0.25], rtol=1e-14)
    # By its noise it would be 0.5; the scatter allows at most 0.1 + 2 x 0.15.
    (found,) = fitted([response([4.0, 1.0, 0.1], 0.15, np.array([8.0, 2.0, 1.0]))])
    np.testing.assert_allclose(found, [4.0, 1.0, 0.4], rtol=1e-14)


def test_a_matrix_without_effect_costs_what_the_middle_one_of_the_others_does() -> None:
    loud = [response([8.0 * cost, 2.0 * cost, 0.5 * cost], 1e-4) for cost in (0.01, 0.02, 0.3)]
    hidden = response([0.0, -0.01, 0.001], 1.0)
    *_, found = fitted([*loud, hidden])
    np.testing.assert_allclose(found, 0.02 * NOISE, rtol=1e-12)
    nearly_none = response([0.0, -1e-3, 0.0], 1e-3)  # at most 2e-3, far below 0.02 times the noise
    *_, found = fitted([*loud, nearly_none])
    np.testing.assert_allclose(found, 2e-3, rtol=1e-12)
    *_, found = fitted([*loud, Response(np.zeros((3, 4)), NOISE)])
    assert found.tolist() == [0, 0, 0]


def test_a_single_batch_has_no_scatter() -> None:
    one = Response(np.array([[0.8], [-0.1], [0.05]]), NOISE)
    (found,) = fitted([one])  # 0.1 for each unit of noise at both sizes that count
    np.testing.assert_allclose(found, [0.8, 0.2, 0.05], rtol=1e-14)


def test_noise_decides_where_nothing_stands_out() -> None:
    found = fitted([response([0.1, -0.1, 0.0], 1.0), response([0.1, 0.1, 0.0], 1.0, 3 * NOISE)])
    np.testing.assert_array_equal(found, [NOISE, 3 * NOISE])


def test_a_rise_without_noise_to_compare_stays() -> None:
    (found,) = fitted([response([4.0, 1.0, 0.1], 0.15, np.zeros(3))])
    assert found.tolist() == [4.0, 1.0, 0.0]


def test_larger_sizes_never_count_as_worse() -> None:
    (found,) = fitted([response([4.0, 1.0, 2.0], 0.01)])
    np.testing.assert_allclose(found, [4.0, 2**0.5, 2**0.5], rtol=1e-14)


@pytest.mark.parametrize("values", list(itertools.product([1.0, 2.0, 4.0, 16.0], repeat=4))[::5])
def test_sequences_that_fall_are_the_nearest_in_logarithms(values: tuple[float, ...]) -> None:
    """Isotonic regression by its closed form: max over starts of min over ends of means of logarithms."""
    logs = -np.log2(values)
    expected = [
        max(min(logs[a:b].mean() for b in range(i + 1, 5)) for a in range(i + 1)) for i in range(len(logs))
    ]
    found = falling(np.array(values))
    np.testing.assert_allclose(np.log2(found), -np.array(expected), atol=1e-12)


def test_zeros_are_pooled_too() -> None:
    assert falling(np.array([0.0, 2.0, 0.0])).tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "rises", [[9.0, 2.0, 0.1], [4.0, 3.9, 3.9, 0.2, 0.1], [5.0, 4.0, 0.5], [3.0, 3.0, 1.0]]
)
def test_curves_are_smooth_between_what_was_measured(rises: list[float]) -> None:
    interpolate = pytest.importorskip("scipy.interpolate")
    k = [10, 41, 100, 130, 230][: len(rises)]
    dense, values = smoothed(k, np.array(rises))
    expected = np.exp(interpolate.PchipInterpolator(k, np.log(rises))(dense))
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    assert (np.diff(values) <= 1e-12 * values[1:]).all()
    assert [values[dense == size].item() for size in k] == rises
    assert (np.diff(dense) <= np.ceil(np.repeat(np.diff(k), 8) / 8)).all()


def test_what_is_not_smoothed() -> None:
    for k, rises in (([3, 9], [2.0, 1.0]), ([3, 9, 12], [2.0, 0.0, 0.0])):
        dense, values = smoothed(k, np.array(rises))
        assert (dense.tolist(), values.tolist()) == (k, rises)
    dense, values = smoothed([1, 2, 4], np.array([4.0, 2.0, 1.0]))
    assert dense.tolist() == [1, 2, 3, 4]
