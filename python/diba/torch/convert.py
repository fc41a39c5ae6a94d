"""Compress a model in place: solve every selected layer, put the factors where the dense weight was."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

import diba

from .. import _check
from .._check_arrays import describe
from ..solvers.budget import inner_dimension
from .config import Config
from .display import Display
from .moments import Calibration
from .report import LayerReport, Report
from .select import Selection, Target, check, select
from .solving import dense_matrix, factorization, objective, output_snr
from .swap import replace

if TYPE_CHECKING:
    from ..progress import Progress
    from .moments import Moments

__all__ = ["convert"]

_ROWS_FOR_THREADS = 1024  # below, in rows or columns, a second layer gains more than a second thread
_DB_PER_BIT = 5.0  # a guess, for the share of work of layers with a target SNR


def convert(
    model: nn.Module,
    config: Config | Mapping[str, Any] | None = None,
    *,
    calibration: Mapping[str, Moments] | None = None,
    batches: Iterable[Any] | None = None,
    progress: bool | Callable[[LayerReport, int, int], object] = True,
    **settings: Any,
) -> Report:
    """Replace the dense layers of a model by layers with binary factors, in place.

    Each layer is replaced as soon as its factors are ready, and its dense weight is then free. After an
    exception or Ctrl-C the model works, with the layers done so far replaced; converting it again goes on
    with the others. Everything that can be checked is checked before the first layer is touched.

    Args:
        model: Any module on the CPU with ``nn.Linear``, ``nn.Conv1d``, ``nn.Conv2d``, ``nn.Embedding`` or
            transformers' ``Conv1D`` in it.
        config: What to do; a dict is read by ``Config.from_dict``. Or give the settings as keywords.
        calibration: Layer name -> moments of its inputs, from :func:`diba.torch.calibrate`.
        batches: What the model is called with, repeatable. Layers are then compressed in the order in which
            they run, each for the inputs that the compressed layers before it leave; ``calibration`` then
            gives only gradients of outputs. One layer at a time.
        progress: True shows a bar (with tqdm), False nothing; a callable takes ``(LayerReport, layers done,
            layers in all)`` after every layer, and what it raises ends the run.
        **settings: Arguments of :class:`diba.torch.Config`, instead of ``config``.

    Returns:
        The report: layers with their size, SNR and time, layers left as they were and why, totals.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: a setting is unknown or out of range, names no layer of the model, needs moments that are
            not there; or a weight is not finite, not on the CPU, or has no values.
        KeyboardInterrupt: promptly on Ctrl-C.

    Notes:
        Several layers are solved side by side where that is faster. Their number and the threads change no
        factor; with moments as far as NumPy's own products do not depend on threads.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
        >>> report = convert(model, bits_per_weight=2, progress=False)
        >>> [layer.k for layer in report.layers], [layer.name for layer in report.skipped]
        ([42], ['2'])
    """
    began = time.perf_counter()
    chosen = _config(config, settings)
    selection = select(model, chosen)
    check(selection.targets)
    moments = _moments(selection.targets, calibration, batches is not None)
    before = _totals(model)
    run = _Run(model, selection.targets, moments, chosen, progress)
    # The run keeps the dense layers; a second list of them would keep them alive.
    order = [target.name for target in selection.targets]
    selection = Selection([], selection.skipped)
    try:
        if batches is None:
            run.independently()
        else:
            from . import propagate  # only now: it runs models

            known = Calibration(moments)  # by the names of the targets, whatever names it came with
            propagate.run(model, order, batches, run.factor, calibration=known)
    except BaseException as error:
        error.add_note(
            f"diba.torch.convert has replaced {len(run.reports)} of {len(order)} layers; the model works "
            "with them, and a second call goes on with the others"
        )
        raise
    finally:
        run.display.close()
    after = _totals(model)
    return Report(
        layers=tuple(run.reports[name] for name in order if name in run.reports),
        skipped=tuple(selection.skipped),
        parameters_before=before[0],
        parameters_after=after[0],
        bytes_before=before[1],
        bytes_after=after[1],
        seconds=time.perf_counter() - began,
        peak_bytes=_peak_memory(),
    )


# ---------------------------------------------------------------- the run


class _Solved(NamedTuple):
    """Factors of one layer, and what its report needs besides."""

    f: diba.Factorization
    objective: str
    output_snr_db: float | None
    seconds: float


class _Run:
    """Layers that are still dense, and reports of those that are not."""

    def __init__(
        self,
        model: nn.Module,
        targets: list[Target],
        moments: dict[str, Moments],
        config: Config,
        progress: bool | Callable[[LayerReport, int, int], object],
    ) -> None:
        self.reports: dict[str, LayerReport] = {}
        self._model = model
        self._pending = {target.name: target for target in targets}
        self._moments = moments
        self._work = {target.name: _work(target) for target in targets}
        self._threads = config.threads or min(torch.get_num_threads(), diba.num_threads())
        self._stop = threading.Event()
        self.display = Display(progress, self._work)

    def independently(self) -> None:
        """All layers, each from its own dense weight."""
        share = sum(self._work.values()) / self._threads
        small = [
            name
            for name, target in self._pending.items()
            if min(target.shape) < _ROWS_FOR_THREADS and self._work[name] <= share
        ]
        if self._threads == 1 or len(small) < 2:
            small = []
        for name in [name for name in self._pending if name not in small]:
            self._replace(name, self._solve(name, self._threads))
        if small:
            self._side_by_side(sorted(small, key=lambda name: -self._work[name]))

    def factor(self, name: str, matrix: np.ndarray[Any, Any], moments: Moments | None) -> None:
        """Solve a layer for this matrix, shape (m, n), and moments, and replace it: ``propagate.Factor``."""
        self._replace(name, self._solve(name, self._threads, matrix, moments))

    def _side_by_side(self, names: list[str]) -> None:
        """Solve several layers at once, the longest first, and replace each here as it comes."""
        workers = min(self._threads, len(names))
        pool = ThreadPoolExecutor(workers, thread_name_prefix="diba-convert")
        each = max(1, self._threads // workers)
        futures = {pool.submit(self._solve, name, each): name for name in names}
        try:
            for future in as_completed(list(futures)):
                self._replace(futures.pop(future), future.result())
        finally:
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            for future, name in futures.items():  # only after an exception: what is ready is not lost
                if _ready(future) and name in self._pending:
                    self._replace(name, future.result(), announce=False)

    def _solve(
        self,
        name: str,
        threads: int,
        matrix: np.ndarray[Any, Any] | None = None,
        moments: Moments | None = None,
    ) -> _Solved:
        target = self._pending[name]
        if matrix is None:
            matrix, moments = dense_matrix(target.module), self._moments.get(name)
        began = time.perf_counter()
        show = self.display.watch(name)

        def report(progress: Progress) -> None:
            if self._stop.is_set():
                raise _Stopped
            show(progress)

        minimised = objective(target.settings, moments)
        f = factorization(matrix, target.settings, minimised, moments, threads=threads, progress=report)
        seconds = time.perf_counter() - began
        output = None if moments is None else output_snr(matrix, f, moments.second)
        return _Solved(f, minimised, output, seconds)

    def _replace(self, name: str, solved: _Solved, announce: bool = True) -> None:
        target = self._pending[name]
        weight: Any = target.module.weight
        snr = solved.f.snr(dense_matrix(target.module))
        new = replace(self._model, target, solved.f)
        del self._pending[name]
        self.reports[name] = layer = LayerReport(
            name=name,
            kind=target.kind,
            shape=target.shape,
            k=solved.f.k,
            alphabet=solved.f.alphabet,
            objective=solved.objective,
            bits_per_weight=solved.f.bits_per_weight,
            snr_db=snr,
            output_snr_db=solved.output_snr_db,
            seconds=solved.seconds,
            dense_bytes=weight.nbytes,
            memory_bytes=new.nbytes,
            tied=tuple(target.tied),
        )
        del target, weight  # the last references to what was dense
        if announce:
            self.display.finished(layer)


class _Stopped(Exception):
    """Ends a solver in a worker thread."""


def _ready(future: Future[_Solved]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


# ---------------------------------------------------------------- before and after


def _config(config: Any, settings: dict[str, Any]) -> Config:
    if config is not None and settings:
        raise ValueError(
            f"config and the keyword {next(iter(settings))!r} are both given; give one, or use "
            "dataclasses.replace(config, ...)"
        )
    if config is None or isinstance(config, Mapping):
        return Config.from_dict(settings if config is None else config)
    _check.instance(config, "config", Config, "use diba.torch.Config(bits_per_weight=2)")
    return config  # type: ignore[no-any-return]


def _moments(targets: list[Target], calibration: Any, runs: bool) -> dict[str, Moments]:
    """Moments by the name of the target, checked; ``runs``: those of the inputs will be measured."""
    if calibration is not None and not isinstance(calibration, Mapping):
        raise TypeError(
            f"calibration is {describe(calibration)}; it must be what diba.torch.calibrate(model, batches) "
            "gives"
        )
    found = {}
    for target in targets:
        names = (target.name, *target.aliases, *target.tied)
        moments = (
            next((calibration[name] for name in names if name in calibration), None) if calibration else None
        )
        n = target.shape[1]
        if moments is not None:
            _check.equal(
                tuple(moments.second.shape),
                f"the shape of calibration[{target.name!r}].second",
                (n, n),
                f"inputs of the layer {target.name}",
            )
            found[target.name] = moments
        elif not runs and target.settings.objective in ("importance", "covariance"):
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


def _work(target: Target) -> float:
    """About what a solve costs: m n k."""
    (m, n), settings = target.shape, target.settings
    if settings.k is not None:
        return float(m * n * settings.k)
    bits = settings.bits_per_weight
    k = settings.snr_db / _DB_PER_BIT * m * n / (m + n) if settings.snr_db is not None else 1
    return float(m * n * (k if bits is None else inner_dimension(m, n, "bits_per_weight", bits)))


def _totals(model: nn.Module) -> tuple[int, int]:
    """(Entries of all parameters, bytes of all parameters and buffers), shared ones counted once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(t.nbytes for t in (*parameters, *model.buffers()))


def _peak_memory() -> int | None:
    """Largest resident memory of the process so far, in bytes."""
    try:
        import resource
    except ImportError:  # not POSIX
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
