"""diba.solve: its arguments, their documentation and their checks. The work is in ``run``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._internal import check, check_arrays
from ..factorization import Factorization
from ..progress import reporting
from ..runtime import resolve_threads
from .objective import objective_for
from .options import SolveOptions
from .run import Run, run_for_size
from .schedule import Deadline, Schedule
from .size import warn_if_too_large
from .stages import check_device

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from .._internal.check import Alphabet, FloatArray
    from ..progress import ProgressOption
    from .options import Effort, Method

__all__ = ["checked_matrix", "solve"]

_SMALLEST = 2.0**-150  # magnitudes up to this round to zero in float32


def solve(
    A: ArrayLike,
    k: int | None = None,
    *,
    bits_per_weight: float | None = None,
    storage_ratio: float | None = None,
    snr_db: float | None = None,
    method: Method = "auto",
    alphabet: Alphabet = "binary",
    effort: Effort = "normal",
    importance: tuple[ArrayLike | None, ArrayLike | None] | None = None,
    covariance: ArrayLike | tuple[ArrayLike, float] | None = None,
    init: Factorization | None = None,
    seed: int = 0,
    max_iter: int | None = None,
    tol: float = 1e-4,
    time_limit: float | None = None,
    threads: int | None = None,
    device: str | None = None,
    progress: ProgressOption = False,
) -> Factorization:
    """Factor ``A ~ D1 B1 D2 B2 D3`` with two binary matrices and three diagonals.

    Args:
        A: Real matrix of shape (m, n): anything NumPy can read, or a torch CPU tensor.
        k: Inner dimension. Give exactly one of ``k``, ``bits_per_weight``, ``storage_ratio`` and ``snr_db``,
            or none of them to keep the k of ``init``. If B1 and B2 take more than 4 bits per weight, which is
            k = 4 m n / (m + n), a warning says that a smaller k is enough; smaller k are then tried too, and
            the best factors are returned. Above 16 bits per weight, the factors are those for 16 bits, padded
            to k with zeros.
        bits_per_weight: Choose the largest k whose factors take at most this many bits for each entry of A,
            diagonals counted at 16 bits per entry.
        storage_ratio: The same as a share of float32: ``bits_per_weight / 32``.
        snr_db: Choose the smallest k whose factors reach this signal-to-noise ratio in dB: k reaches it, and
            k - 1 was tried and does not. Takes 5 to 10 solves.
        method: ``"auto"`` runs ``"admm"``, and also ``"greedy"`` for small A or k and other cases where it
            may do better, and returns the best. ``"admm"``: ADMM on sign factors (with a balance penalty for
            0/1 factors), followed by greedy steps that flip single bits and pairs of bits. ``"greedy"``:
            DiBA-Greedy as published, from a random start. ``"dbf"``: DBF as published (260 outer steps with
            three projections each), for alphabet "sign" only.
        alphabet: Entries of the binary factors: ``"binary"`` (0/1) or ``"sign"`` (-1/+1).
        effort: ``"fast"``, ``"normal"`` or ``"best"``: number of steps of ``"auto"`` and ``"admm"``, 140, 700
            or 2400 for alphabet "sign" and 200, 1000 or 2400 for "binary", then 3, 10 or 30 greedy
            iterations. Above 1.6 bits per weight there are two or three stages of so many steps, each with a
            part of k.
        importance: Pair ``(o, i)`` of positive weights of shapes (m,) and (n,), either may be None: minimise
            ``sum (o_i (A - F)_ij i_j)^2``. For a layer, o may be the RMS gradient of each output and i the
            RMS of each input. SNRs are then those of this objective.
        covariance: Second moments of the inputs, ``S = X'X / len(X)``, shape (n, n): minimise
            ``tr((A - F) S (A - F)')``, the error of the outputs. S is shrunk towards its diagonal by a share
            of 0.2; ``(S, share)`` sets the share: more for small samples. SNRs are then those of this
            objective.
        init: Factors of A to start from. Greedy steps improve them; if none does, they are returned
            unchanged.
        seed: Seed of the random start. The same seed gives the same factors on every processor.
        max_iter: Number of outer iterations, in place of that of effort or method: the most that greedy
            makes, or the steps of ADMM (methods admm and dbf), of which more give better factors.
        tol: Greedy iterations stop when one lowers the objective by less than this share of it.
        time_limit: Seconds after which the best factors so far are returned. ADMM runs are shortened to end
            in time, and no step begins that would end too late.
        threads: Threads of the compiled code; None uses ``diba.num_threads()``.
        device: A device of torch, such as ``"cuda"``, or its name: ADMM runs there, in plain PyTorch with
            torch's own threads, and all else in compiled code as before. The factors are as good, but not
            the same, and may differ from device to device. For methods auto and admm; not with ``init``,
            from which there is no ADMM. None: compiled code does it.
        progress: True shows a bar on stderr, False nothing. A callable is called with a
            :class:`diba.Progress` at the start, after every iteration, and at the end with the figures of the
            returned factors; an exception it raises ends the run, as Ctrl-C does.

    Returns:
        The factors, with diagonals rounded to 16 bits per entry. They are finite, and their objective is
        never worse than that of the zero matrix, for every method and limit. If all entries of A round to
        zero in float32, A counts as zero.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: A is not a finite non-empty matrix, or a number is out of range; checked before any work.
        KeyboardInterrupt: promptly on Ctrl-C; A is unchanged.

    Source:
        Ono, "DiBA", arXiv 2605.05994 (binary, greedy); Boza and Macko, arXiv 2505.11076 (signs, ADMM).

    Example:
        >>> import numpy as np
        >>> import diba
        >>> A = np.random.default_rng(0).standard_normal((64, 48))
        >>> diba.solve(A, bits_per_weight=2)
        Factorization(64x48, k=34, binary, 2.00 bits/weight)
    """
    matrix = checked_matrix(A, "A")
    options = SolveOptions(
        method=method,
        alphabet=alphabet,
        effort=effort,
        seed=seed,
        max_iter=max_iter,
        tol=tol,
        time_limit=time_limit,
        threads=threads,
        device=device,
    )
    _check_device(options.device, init)
    _check_init(init, matrix.shape, options.alphabet, snr_db)
    objective = objective_for(importance, covariance, *matrix.shape)
    deadline = Deadline(options.time_limit)
    with reporting(progress) as report:
        run = Run(
            matrix, objective, init, options, resolve_threads(options.threads), deadline, Schedule(report)
        )
        result = run_for_size(run, k, bits_per_weight, storage_ratio, snr_db)
    warn_if_too_large(result)
    return result


def checked_matrix(A: Any, name: str) -> FloatArray:
    """A as a float32 or float64 matrix; all zeros if all its entries round to zero in float32."""
    matrix = check_arrays.real_matrix(A, name)
    return matrix if max(matrix.max(), -matrix.min()) > _SMALLEST else np.zeros_like(matrix)


def _check_device(device: str | None, init: Any) -> None:
    """Require that torch can use the device, before any work is done."""
    if device is None:
        return
    if init is not None:
        raise ValueError(
            f"device is {device!r} and init is given, from which no ADMM is run; leave one of them out"
        )
    check_device(device)


def _check_init(init: Any, shape: tuple[int, int], alphabet: str, snr_db: Any) -> None:
    """Require None, or factors of this shape and alphabet."""
    if init is None:
        return
    check.instance(init, "init", Factorization, "use Factorization.from_factors for plain arrays")
    check.equal(init.shape, "the shape of init", shape, "shape of A")
    check.equal(init.alphabet, "the alphabet of init", alphabet, "alphabet asked for")
    if snr_db is not None:
        raise ValueError("snr_db and init are both given; give only one: init already sets k")
