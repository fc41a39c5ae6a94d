"""One layer: what is known of its inputs, what is minimised for it, its factors, and how good they are."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

import diba

from ..._internal import check, storage
from ..._internal.check import describe
from ..._internal.error import output_energy_and_error, snr_db
from ...checkpoints.entries import first_names
from ...solvers.objective import missing_power, shrinkage
from ..modules.kinds import input_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..calibration.moments import Moments
    from ..model.config import Settings
    from ..model.selection import Target

__all__ = [
    "factorization",
    "moments_of",
    "objective",
    "output_snr_db",
    "reads",
    "unreached",
    "warn_unreached",
    "warn_user",
]

_LARGEST_EXPONENT = 120  # that an entry to solve for may have


def objective(settings: Settings, moments: Moments | None) -> str:
    """What is minimised; inputs that are always 0 weigh nothing."""
    if not _tells(moments) or settings.objective == "plain":
        return "plain"
    return "covariance" if settings.objective == "auto" else settings.objective


def factorization(
    matrix: NDArray[Any],
    settings: Settings,
    minimised: str,
    moments: Moments | None,
    **options: Any,
) -> diba.Factorization:
    """Factors of a matrix, shape (m, n), under that objective; ``options`` are of ``diba.solve``."""
    options |= settings.solve_options()
    if moments is None or minimised == "plain":
        return diba.solve(matrix, **options)
    rows, cols = moments.importance
    if minimised == "importance":
        return diba.solve(matrix, importance=(rows, cols), **options)
    S = np.asarray(moments.second, np.float64)
    options["covariance"] = S + np.diag(missing_power(S)), shrinkage(len(S), moments.count)
    if rows is None:
        return diba.solve(matrix, **options)
    # sum_i o_i^2 (A - F)_i S (A - F)_i': the covariance objective of o A, whose factors have d1 = o d1.
    rows = rows / np.sqrt(np.mean(rows**2))
    excess = max(0, math.frexp(float(np.abs(matrix).max()) * rows.max())[1] - _LARGEST_EXPONENT)
    f = diba.solve(matrix * np.ldexp(rows, -excess)[:, None], **options)
    d1, d2, d3 = storage.spread(f.d1 / rows, f.d2, f.d3, excess)
    return diba.Factorization(d1, f.b1, d2, f.b2, d3).round_diagonals()


def output_snr_db(matrix: NDArray[Any], f: diba.Factorization, moments: Moments | None) -> float | None:
    """SNR in dB of the layer's outputs, by the moments of its inputs; None without any."""
    return None if moments is None else snr_db(*output_energy_and_error(matrix, f, moments.second))


# ---------------------------------------------------------------- what calibration knows


def moments_of(targets: Sequence[Target], calibration: Any, *, required: bool = False) -> dict[str, Moments]:
    """Moments by the name of the target, under whatever name of the layer, or of one tied to it, they came.

    Args:
        targets: Layers of a model.
        calibration: Name -> moments, or None.
        required: Whether an objective that needs moments must have them.

    Raises:
        TypeError: ``calibration`` is no mapping.
        ValueError: moments are of another size than their layer, of no layer at all, or required and missing.
    """
    if calibration is not None and not isinstance(calibration, Mapping):
        raise TypeError(
            f"calibration is {describe(calibration)}; it must be what diba.torch.calibrate(model, batches) "
            "gives"
        )
    found: dict[str, Moments] = {}
    known: Mapping[str, Moments] = {} if calibration is None else calibration
    for target in targets:
        names = (target.name, *target.aliases, *target.tied)
        moments = next((known[name] for name in names if name in known), None)
        if moments is not None:
            n = target.shape[1]
            what = f"the shape of calibration[{target.name!r}].second"
            check.equal(tuple(moments.second.shape), what, (n, n), f"inputs of the layer {target.name}")
            found[target.name] = moments
        elif required and target.settings.objective in ("importance", "covariance"):
            raise ValueError(
                f"objective is {target.settings.objective!r} for {target.name}, and there are no moments of "
                "its inputs; give batches, calibration=diba.torch.calibrate(...), or objective='auto'"
            )
    if calibration is not None and targets and not found:
        raise ValueError(
            "calibration has none of the layers that are to be compressed; use "
            "diba.torch.calibrate(model, batches) of this very model"
        )
    return found


def reads(target: Target) -> bool:
    """Whether the layer multiplies input vectors, which a calibration could have seen; embeddings do not."""
    return input_size(target.module) is not None


def unreached(targets: Sequence[Target], known: Mapping[str, Moments]) -> list[str]:
    """Names of layers whose input vectors no calibration saw, or saw as zeros alone."""
    return [target.name for target in targets if reads(target) and not _tells(known.get(target.name))]


def warn_unreached(names: Sequence[str], count: int, meaning: str) -> None:
    """One warning for all of them, for the code that called diba.

    Args:
        names: If there are none, nothing is said.
        count: Layers in all.
        meaning: What becomes of these.
    """
    if names:
        warn_user(
            f"calibration did not reach {len(names)} of {count} layers, {first_names(names)}; {meaning}"
        )


def warn_user(text: str) -> None:
    """Warn the code that called diba, however far down here."""
    frame, count = sys._getframe(1), 2
    while frame.f_back is not None and _ours(frame.f_globals.get("__name__", "")):
        frame, count = frame.f_back, count + 1
    warnings.warn(text, UserWarning, stacklevel=count)


def _ours(module: str) -> bool:
    return module.partition(".")[0] in ("diba", "diba_autoload")


def _tells(moments: Moments | None) -> bool:
    """Whether moments say anything of the inputs: some were not 0."""
    return moments is not None and bool(np.asarray(moments.second).any())
