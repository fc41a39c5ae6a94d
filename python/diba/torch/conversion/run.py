"""A conversion under way: layers that are still dense, and reports of those that are not."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

import diba

from ...solvers.size import inner_dimension
from ..model.accounts import totals
from ..model.config import Config
from ..model.selection import Target
from ..model.swap import replace
from ..modules.kinds import dense_matrix
from .display import Display
from .report import LayerReport, Report
from .solving import factorization, objective, output_snr

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ...progress import Progress
    from ..calibration.moments import Moments
    from ..calibration.propagate import LayerTask
    from ..model.accounts import Skipped

__all__ = ["Conversion", "prepare"]

prepare: list[Callable[[nn.Module, Config], object]] = []
"""Called by :func:`diba.torch.convert` with the model and its settings, once the first layer is replaced and
at the end: ``diba.hf`` registers here what lets models of transformers be saved."""

_ROWS_FOR_THREADS = 1024  # below, in rows or columns, a second layer gains more than a second thread
_DB_PER_BIT = 5.0  # a guess, for the share of work of layers with a target SNR


class _Solved(NamedTuple):
    """Factors of one layer, and what its report needs besides."""

    f: diba.Factorization
    objective: str
    output_snr_db: float | None
    seconds: float


class Conversion:
    """Solves layers of a model and puts what comes out in their places.

    Args:
        model: Changed in place.
        targets: The layers, in the order of the report.
        moments: Of inputs, for layers whose inputs are known; the others count the error of their weights.
        config: Of the conversion; here only its threads.
        progress: As of :func:`diba.torch.convert`.
        begun: Called once, when the first layer has been replaced.

    Attributes:
        reports: By name, of the layers that have been replaced.
        display: Has to be closed in the end.
    """

    def __init__(
        self,
        model: nn.Module,
        targets: list[Target],
        moments: dict[str, Moments],
        config: Config,
        progress: bool | Callable[[LayerReport, int, int], object],
        begun: Callable[[], object] | None = None,
    ) -> None:
        self._begun = begun
        self.reports: dict[str, LayerReport] = {}
        self._began = time.perf_counter()
        self._model, self._order = model, [target.name for target in targets]
        self._before = totals(model)
        self._pending = {target.name: target for target in targets}
        self._moments = moments
        self._work = {target.name: _work(target) for target in targets}
        self._threads = config.threads or min(torch.get_num_threads(), diba.num_threads())
        self._stop = threading.Event()
        self._mapped: set[int] = set()  # storages that held replaced weights and more
        self._given: dict[str, LayerTask] = {}  # what propagation asks for, instead of the layers' own
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
        with _numpy_alone():
            for name in [name for name in self._pending if name not in small]:
                self._replace(name, self._solve(name, self._threads))
            if small:
                self._side_by_side(sorted(small, key=lambda name: -self._work[name]))

    def factor(self, layers: Sequence[LayerTask]) -> None:
        """Solve layers for these matrices and moments and replace them: ``propagate.Solve``."""
        self._given = {layer.name: layer for layer in layers}
        with _numpy_alone():
            if self._threads > 1 and len(layers) > 1:
                self._side_by_side(sorted(self._given, key=lambda name: -self._work[name]))
            else:
                for layer in layers:
                    self._replace(layer.name, self._solve(layer.name, self._threads))

    @torch.no_grad()
    def release(self) -> None:
        """Give what stays storage of its own, where one piece of memory held it and replaced weights.

        Tensors read from a safetensors file may all be views of the whole file.
        """
        copies: dict[tuple[Any, ...], torch.Tensor] = {}
        for tensor in (*self._model.parameters(), *self._model.buffers()):
            if tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() in self._mapped:
                place = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
                if place not in copies:
                    copies[place] = tensor.detach().clone()
                tensor.data = copies[place]

    def report(self, skipped: Iterable[Skipped]) -> Report:
        """What has been done; ``skipped``: layers that stay as they are."""
        after = totals(self._model)
        return Report(
            layers=tuple(self.reports[name] for name in self._order if name in self.reports),
            skipped=tuple(skipped),
            parameters_before=self._before.parameters,
            parameters_after=after.parameters,
            bytes_before=self._before.bytes,
            bytes_after=after.bytes,
            model_bytes=self._before.dense,
            seconds=time.perf_counter() - self._began,
            peak_bytes=_peak_memory(),
        )

    def _side_by_side(self, names: list[str]) -> None:
        """Solve several layers at once, the longest first, and replace each here as it comes."""
        workers = min(self._threads, len(names))
        prefix = f"diba-convert-{id(self)}"
        pool = ThreadPoolExecutor(workers, thread_name_prefix=prefix)
        each = max(1, self._threads // workers)
        futures: dict[Future[_Solved], str] = {}
        try:
            for name in names:  # an interrupt may come here, too
                futures[pool.submit(self._solve, name, each)] = name
            for future in as_completed(list(futures)):
                self._replace(futures.pop(future), future.result())
        finally:
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            for thread in threading.enumerate():  # one that an interrupt hid from the pool while it started
                if thread.name.startswith(prefix) and thread.ident is not None:  # else it finds nothing to do
                    thread.join()
            for future, name in futures.items():  # only after an exception: what is ready is not lost
                if _ready(future) and name in self._pending:
                    self._replace(name, future.result(), announce=False)
        self._stop.clear()  # layers of another input may follow

    def _solve(self, name: str, threads: int) -> _Solved:
        target = self._pending[name]
        if name in self._given:
            _, matrix, moments = self._given[name]
        else:
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
        snr = solved.f.snr_db(dense_matrix(target.module))
        new = replace(self._model, target.modules, solved.f)
        del self._pending[name]
        if self._begun is not None and not self.reports:
            self._begun()
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
        if weight.untyped_storage().nbytes() > weight.nbytes:
            self._mapped.add(weight.untyped_storage().data_ptr())
        del target, weight  # the last references to what was dense
        if announce:
            self.display.finished(layer)


@contextmanager
def _numpy_alone() -> Iterator[None]:
    """NumPy's own products on one thread, where threadpoolctl is installed.

    Its matrix library would start threads beside the solver's, which wait for work by spinning: solves under
    a covariance then take several times as long.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        yield
        return
    with threadpool_limits(1, user_api="blas"):
        yield


class _Stopped(Exception):
    """Ends a solver in a worker thread."""


def _ready(future: Future[_Solved]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _work(target: Target) -> float:
    """About what a solve costs: m n k."""
    (m, n), settings = target.shape, target.settings
    if settings.k is not None:
        return float(m * n * settings.k)
    bits = settings.bits_per_weight
    k = settings.snr_db / _DB_PER_BIT * m * n / (m + n) if settings.snr_db is not None else 1
    return float(m * n * (k if bits is None else inner_dimension(m, n, "bits_per_weight", bits)))


def _peak_memory() -> int | None:
    """Largest resident memory of the process so far, in bytes."""
    try:
        import resource
    except ImportError:  # not POSIX
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
