"""Curves of noise and SNR against stored bits: one matrix factored at several sizes."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._internal import check
from .._internal.check import describe
from .._internal.disk import check_target, replace_file
from .._internal.snr import energy_and_error, snr_db
from ..progress import Steps, reporting
from ..solvers.size import inner_dimension, stored_bits
from ..solvers.solver import checked_matrix, solve

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray

    from .._internal.check import FloatArray
    from ..progress import ProgressOption

__all__ = ["Curve", "curve"]

_DB_PER_BIT = 20 * math.log10(2)  # slope of the rate-distortion function of a Gaussian source


@dataclass(frozen=True, eq=False)
class Curve:
    """Noise of one matrix at several inner dimensions; made by :func:`diba.curve`.

    Attributes:
        shape: (m, n) of the matrix.
        k: Inner dimensions, rising; may be given in any order.
        noise: ``|A - F|^2`` at each k, times a weight (see :meth:`weighted`).
        energy: ``|A|^2``, times the same weight; None if unknown.
        seconds: Seconds of each solve; None if unknown.

    Raises:
        TypeError: a value is of the wrong kind.
        ValueError: k is empty or repeats a value, noise or energy is negative or not finite, or the lengths
            differ.
    """

    shape: tuple[int, int]
    k: NDArray[np.int64]
    noise: NDArray[np.float64]
    energy: float | None = None
    seconds: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        m, n = (check.positive_int(side, "a side of shape") for side in self.shape)
        k = np.array([check.positive_int(size, "an entry of k") for size in self.k], dtype=np.int64)
        noise = np.array([check.number(value, "an entry of noise", minimum=0) for value in self.noise])
        seconds = None if self.seconds is None else np.asarray(self.seconds, np.float64)
        if not k.size or k.shape != noise.shape or (seconds is not None and seconds.shape != k.shape):
            times = "" if seconds is None else f", seconds {seconds.size}"
            raise ValueError(
                f"k has {k.size} entries, noise {noise.size}{times}; all must have equally many, at least 1"
            )
        order = np.argsort(k)
        if (np.diff(k[order]) == 0).any():
            raise ValueError(f"k is {k.tolist()}; it must have each value once")
        if self.energy is not None:
            check.number(self.energy, "energy", minimum=0)
        for name, value in {
            "shape": (m, n),
            "k": k[order],
            "noise": noise[order],
            "seconds": None if seconds is None else seconds[order],
        }.items():
            object.__setattr__(self, name, value)

    @property
    def bits_per_weight(self) -> NDArray[np.float64]:
        """Stored bits for each entry of the matrix, diagonals counted at 16 bits per entry."""
        return np.array([stored_bits(*self.shape, k) for k in self.k.tolist()]) / math.prod(self.shape)

    @property
    def snr_db(self) -> NDArray[np.float64]:
        """Signal-to-noise ratios ``10 log10(energy / noise)`` in dB."""
        if self.energy is None:
            raise ValueError(
                "energy is None; it must be |A|^2 for SNRs: use diba.curve, or Curve(..., energy=...)"
            )
        return np.array([snr_db(self.energy, noise) for noise in self.noise.tolist()])

    def weighted(self, weight: float, name: str = "weight") -> Curve:
        """The curve with noise and energy multiplied by ``weight``, for example a measured sensitivity."""
        weight = check.number(weight, name, minimum=0)
        energy = None
        if self.energy is not None:
            energy = check.number(weight * self.energy, f"{name} |A|^2", minimum=0)
        return replace(self, noise=np.array([weight * noise for noise in self.noise.tolist()]), energy=energy)

    def k_for(self, snr_db: float) -> int:
        """Estimate the smallest k that reaches ``snr_db``, by linear interpolation.

        ``diba.solve(A, snr_db=...)`` finds the k itself, and its factors.

        Raises:
            TypeError: ``snr_db`` is not a number.
            ValueError: ``snr_db`` is outside the SNRs of the curve.
        """
        snr_db = check.number(snr_db, "snr_db", minimum=-math.inf)
        low, high = float(self.snr_db.min()), float(self.snr_db.max())
        if not low <= snr_db <= high:
            raise ValueError(
                f"snr_db is {snr_db:g}; it must be on the curve, from {low:.2f} to {high:.2f} dB: "
                f"use diba.curve with {'smaller' if snr_db < low else 'larger'} bits"
            )
        at = int(np.argmax(self.snr_db >= snr_db))  # the first point that reaches it
        k, snr = self.k.tolist(), self.snr_db.tolist()
        if at == 0 or math.isinf(snr[at]):
            return int(k[at])
        part = (snr_db - snr[at - 1]) / (snr[at] - snr[at - 1])
        return math.ceil(float(k[at - 1] + part * (k[at] - k[at - 1])))

    def plot(self, target: Any = None) -> Axes:
        """Draw SNR against bits per weight, and the limit for iid Gaussian entries.

        Args:
            target: Path of a figure to write (its suffix sets the format), matplotlib axes to draw into, or
                None for a new pyplot figure.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is not installed.
            TypeError: ``target`` is neither a path nor axes nor None.
            OSError: the folder does not exist or cannot be written.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "Curve.plot needs matplotlib, which is missing: use python -m pip install 'diba[plot]'"
            ) from error
        if hasattr(target, "plot") and hasattr(target, "set"):
            return self._draw(target)
        if target is None:
            import matplotlib.pyplot as plt

            return self._draw(plt.figure().add_subplot())
        path = check.path(target, "target")
        check_target(path)
        figure = Figure(layout="constrained")
        axes = self._draw(figure.add_subplot())
        ending = Path(path).suffix or f".{figure.canvas.get_default_filetype()}"
        image = io.BytesIO()
        figure.savefig(image, format=ending[1:])
        replace_file(path if path.endswith(ending) else path + ending, image.getvalue())
        return axes

    def _draw(self, axes: Axes) -> Axes:
        end = float(self.bits_per_weight.max())
        axes.plot([0, end], [0, _DB_PER_BIT * end], "--", color="0.5", label="limit for iid Gaussian entries")
        axes.plot(self.bits_per_weight, self.snr_db, "o-", label="{} x {} matrix".format(*self.shape))
        axes.set(xlabel="stored bits per weight", ylabel="SNR in dB", xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
        return axes

    def __str__(self) -> str:
        lines = [f"{'bits/weight':>11} {'k':>6} {'SNR dB':>8} {'seconds':>8}"]
        seconds = np.zeros(len(self.k)) if self.seconds is None else self.seconds
        points = zip(self.bits_per_weight, self.k, self.snr_db, seconds, strict=True)
        lines += [f"{bits:11.4f} {k:6d} {snr:8.2f} {seconds:8.2f}" for bits, k, snr, seconds in points]
        return "\n".join(lines)


def curve(
    A: ArrayLike,
    bits: Iterable[float] = (0.5, 1, 1.5, 2, 3),
    *,
    progress: ProgressOption = False,
    **options: Any,
) -> Curve:
    """Factor a matrix at several sizes and return its curve of SNR against stored bits.

    Args:
        A: Real matrix of shape (m, n), as for :func:`diba.solve`.
        bits: Bits per weight to try, in any order; each takes a solve.
        progress: True shows a bar on stderr, False nothing; a callable is called with a
            :class:`diba.Progress`, whose steps are sizes.
        **options: Options of :func:`diba.solve`, except those that set the size. ``time_limit`` applies to
            each solve separately.

    Returns:
        The curve. Its noise is ``|A - F|^2``, also where ``importance`` or ``covariance`` set another
        objective.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: ``bits`` is empty or too small for A, an option sets the size, or an option is wrong.

    Example:
        >>> import numpy as np
        >>> import diba
        >>> A = np.random.default_rng(0).standard_normal((96, 64))
        >>> diba.curve(A, bits=(1, 2), method="greedy").k
        array([20, 55])
    """
    check.no_sizes(options, "diba.curve", "bits=(1, 2)")
    matrix = checked_matrix(A, "A")
    if isinstance(bits, (str, bytes)) or not isinstance(bits, Iterable):
        raise TypeError(f"bits is {describe(bits)}; it must be several numbers, such as (1, 2)")
    sizes = sorted({check.number(b, "an entry of bits", minimum=0, exclusive=True) for b in bits})
    if not sizes:
        raise ValueError("bits is empty; it must name at least one size, such as (1, 2)")
    m, n = matrix.shape
    k = sorted({inner_dimension(m, n, "bits_per_weight", size) for size in sizes})
    with reporting(progress) as report:
        return measured(matrix, k, options, Steps("curve", len(k), report))


def measured(
    A: FloatArray,
    sizes: Sequence[int],
    options: Mapping[str, Any],
    steps: Steps,
    name: str | None = None,
    first: float = 0,
    part: float = 1,
) -> Curve:
    """The curve of a checked matrix at given inner dimensions.

    Args:
        A: Matrix, shape (m, n).
        sizes: Inner dimensions.
        options: Options of ``solve``.
        steps: Counts and reports progress.
        name: Name of the matrix, if all sizes together are one step; None if each is a step.
        first: Steps done before.
        part: Of a step, what all sizes together count for, with a name.
    """
    each = 1.0 if name is None else part / len(sizes)
    noise, seconds = [], []
    for at, k in enumerate(sizes):
        began, done = time.perf_counter(), first + at * each
        f = solve(A, k, **options, progress=steps.within(done, done + each))
        seconds.append(time.perf_counter() - began)
        energy, error = energy_and_error(A, f)
        noise.append(error)
        if name is None:
            steps.done(at + 1, f"k = {k}", snr_db(energy, error))
    if name is not None:
        steps.done(first + part, name, snr_db(energy, error))
    m, n = A.shape
    return Curve((m, n), np.array(sizes), np.array(noise), energy, np.array(seconds))


def joined(a: Curve, b: Curve) -> Curve:
    """The points of two curves of one matrix that have no k in common."""
    seconds = None if a.seconds is None or b.seconds is None else np.append(a.seconds, b.seconds)
    return replace(a, k=np.append(a.k, b.k), noise=np.append(a.noise, b.noise), seconds=seconds)
