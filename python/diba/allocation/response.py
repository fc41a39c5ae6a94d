"""Response curves: how much a loss rises with the error of one matrix, from noisy measurements.

Each matrix is replaced by factors of several sizes, and the loss of a few batches measured: differences to
the dense model, batch by batch, so that what batches have in common cancels. What stands out of their scatter
is taken as it is; of what does not, the noise of the outputs knows the shape, and the scatter a bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["Response", "falling", "fitted", "smoothed"]

_STANDARD_ERRORS = 2.0
"""A mean stands out if it is larger than this many of its standard errors: one in 40 does so by chance."""

_POINTS = 8  # of a smooth curve for each measured one


class Response(NamedTuple):
    """Measurements of one matrix, or of several that are replaced together.

    Attributes:
        rises: Loss with the factors minus loss without, shape (sizes, batches); sizes rise.
        noise: Noise of the outputs at each size, shape (sizes,), in a unit that all matrices share; 0 where
            it is unknown.
    """

    rises: Floats
    noise: Floats

    @property
    def mean(self) -> Floats:
        """Mean over the batches, at each size."""
        mean: Floats = self.rises.mean(1)
        return mean

    @property
    def error(self) -> Floats:
        """Standard error of the mean at each size; 0 for a single batch, whose scatter is unknown."""
        count = self.rises.shape[1]
        if count == 1:
            return np.zeros(len(self.rises))
        error: Floats = self.rises.std(1, ddof=1) / np.sqrt(count)
        return error

    @property
    def seen(self) -> NDArray[np.bool_]:
        """Whether the rise stands out of the scatter over batches, at each size."""
        return self.mean > _STANDARD_ERRORS * self.error

    @property
    def scale(self) -> float | None:
        """Rise for each unit of noise, the geometric mean over the sizes that stand out; None without any."""
        known = self.seen & (self.noise > 0)
        if not known.any():
            return None
        return float(np.exp(np.log(self.mean[known] / self.noise[known]).mean()))


def fitted(responses: Sequence[Response]) -> list[Floats]:
    """Curves of the rise of the loss at the measured sizes, none of them rising with the size.

    - A rise that stands out of the scatter over batches counts as measured.
    - Another one is estimated from the noise of the outputs: by the rise for each unit of noise at the other
      sizes of the matrix, or, if nothing of it stands out, by the median of that over the other matrices. It
      is at most what the scatter allows: the mean, or 0, plus two standard errors.
    - Where a larger size then has a larger rise, neighbouring sizes get their (geometric) mean.

    Args:
        responses: The measurements of each matrix.

    Returns:
        Rises of each matrix, shape (sizes,), none negative. They are the noise where no rise of any matrix
        stands out.
    """
    scales = [scale for response in responses if (scale := response.scale) is not None]
    if not scales and not any(response.seen.any() for response in responses):
        return [falling(response.noise) for response in responses]
    typical = float(np.median(scales)) if scales else 0.0
    return [falling(_estimated(response, typical)) for response in responses]


def _estimated(response: Response, typical: float) -> Floats:
    mean, scale = response.mean, response.scale
    guess = response.noise * (typical if scale is None else scale)
    if response.rises.shape[1] > 1:
        guess = np.minimum(guess, np.maximum(mean, 0) + _STANDARD_ERRORS * response.error)
    return np.where(response.seen, mean, guess)


def falling(values: Floats) -> Floats:
    """The nearest sequence that does not rise, in logarithms: runs that do get their mean.

    Source:
        Pool adjacent violators: Ayer, Brunk, Ewing, Reid and Silverman, Annals of Mathematical Statistics 26,
        1955.
    """
    runs: list[tuple[float, int]] = []
    for value in values.tolist():
        runs.append((value, 1))
        while len(runs) > 1 and runs[-2][0] < runs[-1][0]:
            (a, count), (b, more) = runs[-2:]
            runs[-2:] = [(_mean(a, count, b, more), count + more)]
    return np.array([mean for mean, count in runs for _ in range(count)])


def smoothed(k: Sequence[int], rises: Floats) -> tuple[NDArray[np.int64], Floats]:
    """More points of a curve, between those given: cubic in the logarithm, and nowhere rising.

    A curve of straight pieces has corners at the measured sizes, where water-filling would leave most
    matrices.

    Args:
        k: Inner dimensions, rising.
        rises: What they bring, not rising.

    Returns:
        Inner dimensions with at most seven more between two, and their rises; as they are with a rise of 0.

    Source:
        Fritsch and Butland, SIAM Journal on Scientific and Statistical Computing 5, 1984.
    """
    given = np.asarray(k, np.int64)
    if len(given) < 3 or not (rises > 0).all():
        return given, rises
    x, y = given.astype(np.float64), np.log(rises)
    slopes, places = _slopes(np.diff(x), np.diff(y) / np.diff(x)), np.arange(_POINTS) / _POINTS
    dense = np.unique(np.concatenate([*(x[:-1, None] + np.diff(x)[:, None] * places), x[-1:]]).round())
    at = np.clip(np.searchsorted(x, dense, side="right") - 1, 0, len(x) - 2)
    h, t = np.diff(x)[at], (dense - x[at]) / np.diff(x)[at]
    curve = (1 + 2 * t) * (1 - t) ** 2 * y[at] + t**2 * (3 - 2 * t) * y[at + 1]
    curve += h * t * (1 - t) * ((1 - t) * slopes[at] - t * slopes[at + 1])
    values = np.exp(curve)
    values[np.searchsorted(dense, x)] = rises  # as measured, not rounded
    return dense.astype(np.int64), values


def _slopes(h: Floats, secants: Floats) -> Floats:
    """Slopes at three points or more for a cubic that rises and falls where the points do."""
    before, after = secants[:-1], secants[1:]
    weights = 2 * h[1:] + h[:-1], h[1:] + 2 * h[:-1]
    with np.errstate(divide="ignore"):
        inner = sum(weights) / (weights[0] / before + weights[1] / after)
    inner = np.where(before * after > 0, inner, 0.0)
    ends = []
    for a, b, first, second in ((h[0], h[1], *secants[:2]), (h[-1], h[-2], *secants[:-3:-1])):
        end = ((2 * a + b) * first - a * second) / (a + b)
        ends.append(0.0 if end * first <= 0 else end)
    return np.concatenate([ends[:1], inner, ends[1:]])


def _mean(a: float, weight_a: int, b: float, weight_b: int) -> float:
    """The geometric mean; the arithmetic one if a value is 0."""
    total = weight_a + weight_b
    if a > 0 and b > 0:
        return float(np.exp((weight_a * np.log(a) + weight_b * np.log(b)) / total))
    return (weight_a * a + weight_b * b) / total
