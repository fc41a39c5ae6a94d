"""diba.allocate: share a budget of bits among matrices, or among the layers of a model."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from .._internal import check
from .._internal.check import describe
from ..progress import Steps, reporting
from ..solvers.size import no_size_warning, uniform_k
from ..solvers.solver import checked_matrix
from .curves import joined, measured
from .sizes import STEPS, check_sizes, first_and_end, first_part, grown
from .waterfill import waterfill

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from ..progress import ProgressOption
    from .curves import Curve
    from .waterfill import Allocation

__all__ = ["allocate"]


def allocate(
    source: Mapping[str, ArrayLike] | Any,
    bits_per_weight: float,
    *,
    weights: Mapping[str, float] | None = None,
    sizes: tuple[float, ...] | None = None,
    progress: ProgressOption | None = None,
    **options: Any,
) -> Allocation:
    """Choose k for each matrix: the least total noise for ``bits_per_weight`` on average.

    Each matrix is factored quickly at several sizes; water-filling then spends each bit where it removes the
    most noise. Where that gives a matrix more than 1.2 times the largest size measured, it is measured there
    as well, and bits are shared out again. A model is passed on to :func:`diba.torch.allocate`, which weights
    noise by calibration data, or measures losses.

    Args:
        source: Dict of names to matrices, or a torch module.
        bits_per_weight: Stored bits per weight on average over all matrices, diagonals included.
        weights: Dict of names to weights of ``|A - F|^2``; 1 for names that are missing.
        sizes: Sizes at which noise is measured, as shares of ``bits_per_weight``; every k chosen lies between
            the smallest and the largest of them. None: 0.5 and 1, and up to 2.25 where bits go; for a model
            what :func:`diba.torch.allocate` says.
        progress: True shows a bar on stderr, False nothing; a callable is called with a
            :class:`diba.Progress`, whose steps are matrices or layers. None: True for a model, False for
            matrices.
        **options: Options of :func:`diba.solve`, except those that set the size; for a model, options of
            :func:`diba.torch.allocate`.

    Returns:
        A :class:`diba.Allocation`; its ``k`` maps names to inner dimensions. Its curves are what was
        measured, and beyond it a straight line (noise in dB against k) up to the largest k that may be
        chosen.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: there is no matrix, a size is not positive, or a name in ``weights`` is unknown.

    Source:
        Reverse water-filling (Shannon).

    Example:
        >>> import numpy as np
        >>> import diba
        >>> random = np.random.default_rng(0)
        >>> quiet, loud = random.standard_normal((2, 64, 64)) * [[[1]], [[3]]]
        >>> matrices = {"loud": loud, "quiet": quiet}
        >>> k = diba.allocate(matrices, 1.5).k
        >>> k["loud"] > k["quiet"]
        True
    """
    sizes = None if sizes is None else check_sizes(sizes)
    model: Any = source
    if hasattr(model, "named_modules"):
        if weights is not None:
            raise TypeError("weights is given for a model; it must be None there: use calibration= instead")
        above = importlib.import_module("diba.torch")  # not at the top: without a model, torch may be missing
        found: Allocation = above.allocate(
            model, bits_per_weight, sizes=sizes, progress=progress is None or progress, **options
        )
        return found
    if not isinstance(source, Mapping):
        raise TypeError(
            f"source is {describe(source)}; it must be a dict of names to matrices, or a torch module"
        )
    if not source:
        raise ValueError("source is empty; it must hold at least one matrix")
    check.no_sizes(options, "diba.allocate", "its second argument")
    unknown = sorted(set(weights or ()) - set(source))
    if unknown:
        raise ValueError(f"weights has the key {unknown[0]!r}; its keys must be names of source")
    asked = check.number(bits_per_weight, "bits_per_weight", minimum=0, exclusive=True)
    given: dict[str, Any] = {"effort": "fast", "max_iter": STEPS} | options
    curves: dict[str, Curve] = {}
    ends: dict[str, int] = {}
    with reporting(False if progress is None else progress) as report, no_size_warning():
        steps = Steps("allocate", len(source), report)

        def curve(name: str, matrix: NDArray[Any], k: Sequence[int], done: float, end: float) -> Curve:
            found = measured(matrix, k, given, steps, name, done, end - done)
            return found.weighted((weights or {}).get(name, 1.0), f"weights[{name!r}]")

        def more(name: str, k: int, done: float, end: float) -> None:
            matrix = checked_matrix(source[name], f"source[{name!r}]")
            curves[name] = joined(curves[name], curve(name, matrix, [k], done, end))

        done, part = 0.0, first_part(sizes)
        for name, values in source.items():
            matrix = checked_matrix(values, f"source[{name!r}]")
            first, ends[name] = first_and_end(partial(uniform_k, *matrix.shape), sizes, asked)
            curves[name] = curve(name, matrix, first, done, done + part)
            done += part
        return grown(lambda: curves, more, ends, partial(waterfill, bits_per_weight=asked), steps, done)
