"""What calibration knows of one layer: moments of its inputs, and gradients for its outputs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..._internal import check
from ...solvers.second_moments import about_mean, input_scales

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["Moments", "check_moments", "fault_of_gradient", "fault_of_mean", "fault_of_second"]

_LARGEST = 2**63 - 1


@dataclass(frozen=True, eq=False)
class Moments:
    """Moments of one layer's inputs x; ``diba.solve(..., covariance=second)`` takes the second ones.

    Attributes:
        second: The mean of x x', float64, shape (n, n), symmetric. Layers that always read the same tensor
            share one array; copy it before changing it.
        count: Input vectors the mean was taken over: tokens, or patches of a convolution.
        gradient_rms: Root mean square of dloss/dy for every output y, float64, shape (m,); None where no loss
            was given.
        gradient_count: Output vectors that mean was taken over, all positions of a convolution; 0 stands for
            ``count``.
        mean: The mean of x over the same vectors, with the same weights, float64, shape (n,); None: unknown,
            as in files of before. Biases are corrected only where it is known.
    """

    second: Floats
    count: int
    gradient_rms: Floats | None = None
    gradient_count: int = 0
    mean: Floats | None = None

    @property
    def outputs(self) -> int:
        """Number of output vectors of the layer: ``gradient_count``, or ``count`` if that is 0."""
        return self.gradient_count or self.count

    @property
    def importance(self) -> tuple[Floats | None, Floats]:
        """``(o, i)`` for ``diba.solve(..., importance=(o, i))``: RMS gradients, RMS inputs, all positive."""
        rows = self.gradient_rms
        if rows is not None:
            rows = np.maximum(rows, 1e-3 * np.sqrt(np.mean(rows**2))) if rows.any() else None
        return rows, input_scales(self.second)

    def centred(self) -> Self:
        """The same of x - mean: ``second`` is then the covariance of the inputs.

        Moments without a mean, and those of equal vectors, which have no covariance, are returned as they
        are.
        """
        if self.mean is None:
            return self
        covariance = about_mean(self.second, self.mean)
        if not covariance.any():
            return self
        return replace(self, second=covariance, mean=np.zeros_like(self.mean))


# ---------------------------------------------------------------- what moments must be


def fault_of_second(second: Floats) -> str | None:
    """What is wrong with a matrix of second moments, allowing for rounding; None: nothing."""
    diagonal = second.diagonal()
    if not np.isfinite(second).all():
        return "has NaN or infinite entries, expected finite numbers"
    if (diagonal < 0).any():
        return "has negative entries on its diagonal, expected means of squares"
    if max(second.max(), -second.min()) / 2 > diagonal.max():
        return "has its largest entries off the diagonal, expected second moments"
    return None


def fault_of_gradient(gradient: Floats) -> str | None:
    """What is wrong with root mean squares; None: nothing."""
    if not np.isfinite(gradient).all() or (gradient < 0).any():
        return "has negative, NaN or infinite entries, expected root mean squares"
    return None


def fault_of_mean(mean: Floats, second: Floats) -> str | None:
    """What is wrong with a mean beside second moments, allowing for rounding; None: nothing."""
    if not np.isfinite(mean).all():
        return "has NaN or infinite entries, expected finite numbers"
    if (np.abs(mean) / 2 > np.sqrt(second.diagonal())).any():
        return "has entries whose squares are larger than the means of squares, expected means"
    return None


def check_moments(name: str, moments: Moments, seen: bool) -> None:
    """Refuse to write what could not be read again."""
    where = f"layer {name!r}: "
    check.integer(moments.count, f"{where}count", minimum=1, maximum=_LARGEST)
    check.integer(moments.gradient_count, f"{where}gradient_count", minimum=0, maximum=_LARGEST)
    second, gradient, mean = moments.second, moments.gradient_rms, moments.mean
    if not seen:
        square = second.ndim == 2 and second.shape == second.T.shape and second.size
        if second.dtype != np.float64 or not square:
            found = f"{second.dtype}, shape {second.shape}"
            raise ValueError(f"{where}second is of {found}; it must be a float64 array of shape (n, n)")
        fault = fault_of_second(second)
        if fault is None and not np.array_equal(second, second.T):
            fault = "is not symmetric"
        if fault is not None:
            raise ValueError(
                f"{where}second {fault}; calibrate again, on data and weights without such numbers"
            )
    if gradient is not None:
        if gradient.dtype != np.float64 or gradient.ndim != 1 or not gradient.size:
            found = f"{gradient.dtype}, shape {gradient.shape}"
            raise ValueError(f"{where}gradient_rms is of {found}; it must be a float64 array of shape (m,)")
        fault = fault_of_gradient(gradient)
        if fault is not None:
            raise ValueError(f"{where}gradient_rms {fault}; calibrate again, with a loss that is finite")
    if mean is not None:
        if mean.dtype != np.float64 or mean.shape != second.shape[:1]:
            found = f"{mean.dtype}, shape {mean.shape}"
            raise ValueError(f"{where}mean is of {found}; it must be a float64 array of shape (n,)")
        fault = fault_of_mean(mean, second)
        if fault is not None:
            raise ValueError(f"{where}mean {fault}; calibrate again")
