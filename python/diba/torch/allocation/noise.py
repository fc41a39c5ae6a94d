"""The noise of layers at several k: of their weights, and of their outputs as calibration knows it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

import diba

from ...allocation.curves import Curve
from ...allocation.sizes import STEPS
from ...solvers.size import no_size_warning
from ..modules.kinds import dense_matrix

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from ..calibration.moments import Moments
    from ..model.selection import Target

__all__ = ["Noise", "in_one_unit", "measured", "noise_of"]


class Noise(NamedTuple):
    """The noise of a layer at several k: relative to its weights, and as calibration measures it."""

    shape: tuple[int, int]
    k: list[int]
    relative: list[float]  # m n |A - F|^2 / |A|^2
    known: list[float]  # empty without moments

    def joined(self, other: Noise) -> Noise:
        """With the noise at other k, all larger."""
        return Noise(self.shape, self.k + other.k, self.relative + other.relative, self.known + other.known)

    def curve(self, noise: Sequence[float] | NDArray[np.float64]) -> Curve:
        """The curve of another noise at the same k."""
        return Curve(self.shape, np.array(self.k), np.array(noise))


def measured(target: Target, moments: Moments | None, sizes: Sequence[int], threads: int | None) -> Noise:
    """Factor a layer quickly at these k."""
    matrix = dense_matrix(target.module)
    chosen = {name: getattr(target.settings, name) for name in ("alphabet", "method", "seed")}
    options: dict[str, Any] = {**chosen, "effort": "fast", "max_iter": STEPS, "threads": threads}
    if moments is not None:
        options["importance"] = moments.importance
    with no_size_warning():
        dense = (diba.solve(matrix, k, **options).to_dense() for k in sizes)
        return noise_of(matrix, dict(zip(sizes, dense, strict=True)), moments)


def noise_of(
    matrix: NDArray[Any], approximations: Mapping[int, NDArray[Any]], moments: Moments | None
) -> Noise:
    """The noise of a matrix (m, n) by its approximations for each k."""
    energy = float(np.vdot(matrix.astype(np.float64), matrix)) or 1.0
    relative, known = [], []
    for dense in approximations.values():
        error = matrix.astype(np.float64) - dense
        relative.append(float(np.vdot(error, error)) / energy * math.prod(matrix.shape))
        if moments is not None:
            known.append(_of_outputs(error, moments))
    m, n = matrix.shape
    return Noise((m, n), list(approximations), relative, known)


def _of_outputs(error: NDArray[np.float64], moments: Moments) -> float:
    """The noise of the outputs due to an error of the matrix, weighted by gradients if they are known."""
    rows, _ = moments.importance
    if rows is not None:
        error = error * (rows * math.sqrt(moments.outputs))[:, None]
    elif moments.gradient_rms is not None:  # all gradients were 0: no output changes the loss
        return 0.0
    return max(0.0, float(np.vdot(error @ np.asarray(moments.second), error)))


def in_one_unit(
    layers: Mapping[str, Noise], known: Mapping[str, Moments], idle: Sequence[str]
) -> dict[str, Curve]:
    """Noise curves of all layers in the unit of those that calibration measured.

    Args:
        layers: Name -> noise.
        known: Name -> moments; without any, noise is relative to the weights.
        idle: Names of layers that calibration did not reach, which have no noise.
    """
    weighed = any(moments.gradient_rms is not None for moments in known.values())
    usable = {
        name: found
        for name, found in layers.items()
        if name in known and (known[name].gradient_rms is not None or not weighed)
    }
    costs = [
        sum(found.known) / sum(found.relative)
        for found in usable.values()
        if sum(found.known) > 0 and sum(found.relative) > 0
    ]
    typical = float(np.median(costs)) if costs else 1.0
    curves = {}
    for name, found in layers.items():
        if name in idle:
            noise = [0.0] * len(found.k)
        elif name in usable:
            noise = found.known
        else:
            noise = [typical * value for value in found.relative]
        curves[name] = found.curve(noise)
    return curves
