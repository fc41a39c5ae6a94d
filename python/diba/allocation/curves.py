"""SNR against stored bits: the same matrix factored at several sizes."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._internal import check, check_arrays
from .._internal.check import describe
from .._internal.disk import check_target, replace_file
from ..progress import Steps, reporting
from ..solvers.solver import solve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike, NDArray

    from ..progress import ProgressOption

__all__ = ["Curve", "curve"]

DB_PER_BIT = 20 * math.log10(2)  # of the Gaussian rate-distortion function


@dataclass(frozen=True, eq=False)
class Curve:
    """What one matrix costs and keeps at several sizes; made by :func:`diba.curve`.

    Attributes:
        shape: (m, n) of the matrix.
        bits_per_weight: Stored bits for each entry, diagonals counted, as the factors have them; rising.
        k: Inner dimensions.
        snr_db: Signal-to-noise ratios in dB, recomputed in float64 from the factors.
        seconds: Times of the solves.
    """

    shape: tuple[int, int]
    bits_per_weight: NDArray[np.float64]
    k: NDArray[np.int64]
    snr_db: NDArray[np.float64]
    seconds: NDArray[np.float64]

    def k_for(self, snr_db: float) -> int:
        """The k at which a straight line between neighbouring points reaches ``snr_db``, rounded up.

        An estimate: ``diba.solve(A, snr_db=...)`` finds the k and its factors.

        Raises:
            TypeError: ``snr_db`` is no number.
            ValueError: it is outside the SNRs of the curve.
        """
        snr_db = check.number(snr_db, "snr_db", minimum=-math.inf)
        low, high = float(self.snr_db.min()), float(self.snr_db.max())
        if not low <= snr_db <= high:
            raise ValueError(
                f"snr_db is {snr_db:g}; the curve runs from {low:.2f} to {high:.2f} dB: "
                f"use diba.curve with {'smaller' if snr_db < low else 'larger'} bits"
            )
        at = int(np.argmax(self.snr_db >= snr_db))  # the first point that reaches it
        k, snr = self.k.tolist(), self.snr_db.tolist()
        if at == 0 or math.isinf(snr[at]):
            return int(k[at])
        part = (snr_db - snr[at - 1]) / (snr[at] - snr[at - 1])
        return math.ceil(float(k[at - 1] + part * (k[at] - k[at - 1])))

    def plot(self, target: Any = None) -> Axes:
        """Draw SNR against bits per weight, with the limit for iid Gaussian entries beside it.

        Args:
            target: A path to write a figure to (its ending names the format), matplotlib axes to draw
                into, or None for a new pyplot figure.

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
                "Curve.plot needs matplotlib; use python -m pip install 'diba[plot]', or print the curve"
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
        axes.plot([0, end], [0, DB_PER_BIT * end], "--", color="0.5", label="limit for iid Gaussian entries")
        axes.plot(self.bits_per_weight, self.snr_db, "o-", label="{} x {} matrix".format(*self.shape))
        axes.set(xlabel="stored bits per weight", ylabel="SNR in dB", xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
        return axes

    def __str__(self) -> str:
        lines = [f"{'bits/weight':>11} {'k':>6} {'SNR dB':>8} {'seconds':>8}"]
        points = zip(self.bits_per_weight, self.k, self.snr_db, self.seconds, strict=True)
        lines += [f"{bits:11.4f} {k:6d} {snr:8.2f} {seconds:8.2f}" for bits, k, snr, seconds in points]
        return "\n".join(lines)


def curve(
    A: ArrayLike,
    bits: Iterable[float] = (0.5, 1, 1.5, 2, 3),
    *,
    progress: ProgressOption = False,
    **options: Any,
) -> Curve:
    """Factor a matrix at several sizes: SNR against stored bits.

    Args:
        A: Real matrix of shape (m, n), as for :func:`diba.solve`.
        bits: Bits per weight to try, in any order; each is a whole solve.
        progress: True shows a bar on stderr; a callable gets a :class:`diba.Progress`, whose steps are sizes.
        **options: Of :func:`diba.solve`, but none that sets the size. ``time_limit`` applies to every solve
            of its own.

    Returns:
        The curve; SNRs are those of plain ``|A - F|^2`` whatever the solver was asked to minimise.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: ``bits`` is empty or too small for A, an option sets the size, or as solve says.

    Example:
        >>> import numpy as np
        >>> import diba
        >>> A = np.random.default_rng(0).standard_normal((96, 64))
        >>> diba.curve(A, bits=(1, 2), method="greedy").k
        array([20, 55])
    """
    check.no_sizes(options, "diba.curve", "bits=(1, 2)")
    matrix = check_arrays.real_matrix(A, "A")
    if isinstance(bits, (str, bytes)) or not isinstance(bits, Iterable):
        raise TypeError(f"bits is {describe(bits)}; it must be several numbers, such as (1, 2)")
    sizes = sorted({check.number(b, "an entry of bits", minimum=0, exclusive=True) for b in bits})
    if not sizes:
        raise ValueError("bits is empty; it must name at least one size, such as (1, 2)")
    rows = []
    with reporting(progress) as report:
        steps = Steps("curve", len(sizes), report)
        for at, size in enumerate(sizes):
            began = time.perf_counter()
            f = solve(matrix, bits_per_weight=size, **options, progress=steps.within(at, at + 1))
            rows.append((f.bits_per_weight, f.k, f.snr_db(matrix), time.perf_counter() - began))
            steps.done(at + 1, f"{size:g} bits", rows[-1][2])
    stored, k, snr, seconds = zip(*rows, strict=True)
    m, n = matrix.shape
    return Curve((m, n), np.array(stored), np.array(k, dtype=np.int64), np.array(snr), np.array(seconds))
