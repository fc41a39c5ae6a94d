"""A running conversion: it solves the layers of a model and replaces them, alone or side by side."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

import diba

from ...checkpoints.blocks import BlockRecipe
from ...checkpoints.description import Recipe
from ...checkpoints.layers import LayerRecipe
from ...progress import Progress, check_progress, hears_details, reporting
from ...solvers.stages import check_device
from ..calibration.reconstruct import Reconstructing
from ..calibration.targets import LayerTask, bias_values
from ..model.layers import layers_of
from ..model.selection import require, select
from ..model.sizes import CONVERTED
from ..model.swap import replace
from ..modules.kinds import dense_matrix
from ..modules.state import compressed_layers
from . import report
from .biases import free_biases
from .kept import kept_layers
from .solving import solve_layer
from .work import Work

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Self

    from torch import nn

    from ...layers.config import Config
    from ...progress import ProgressOption
    from ..calibration.moments import Moments
    from ..model.selection import Target
    from ..reconstruction.settings import Reconstruction
    from .solving import Solved

__all__ = ["Conversion", "shown_to"]

shown_to: ContextVar[Callable[[Progress], object] | None] = ContextVar("shown_to", default=None)
"""Who hears of the layers of conversions that nobody enters as a context: those while a model is read."""

_ROWS_FOR_THREADS = 1024  # layers with fewer rows or columns are solved side by side, not with more threads
_DB_PER_BIT = 5.0  # rough estimate, to guess the work of layers with a target SNR


class Conversion:
    """Solves the layers of a model and replaces them by factored ones; a context manager.

    When the context ends, also with an exception, the recipe is stored on the model and ``hooks`` are called.

    Args:
        model: Changed in place. It must be ``unfused``, with every matrix in a layer.
        config: Which layers are compressed, and how.
        progress: See :func:`convert`.
        hooks: Called with the model when its first layer was replaced, and at the end.

    Attributes:
        pending: Name -> target that is still dense, in module order.
        moments: Name -> moments of the inputs. Layers without moments get the plain objective.
        free_biases: Names of the layers whose bias is corrected, or added, where there are moments.
        left_dense: Name -> why a layer stays dense.
        done: Name -> recipe of a layer that was replaced.
        blocks: Name -> recipe of a block that was reconstructed.

    Raises:
        TypeError, ValueError: See :func:`convert`; nothing is changed.
    """

    def __init__(
        self,
        model: nn.Module,
        config: Config,
        *,
        progress: ProgressOption = False,
        hooks: Iterable[Callable[[nn.Module], object]] = (),
    ) -> None:
        selection = select(model, config)
        require(selection.targets, selection.skipped)
        self.pending = {target.name: target for target in selection.targets}
        self.moments: dict[str, Moments] = {}
        self.free_biases = free_biases(model, selection.targets)
        layers = {layer.names[0] for layer in layers_of(model)}
        self.left_dense = {
            left.name: left.reason
            for left in selection.skipped
            if left.name in layers and left.reason != CONVERTED
        }
        self.done: dict[str, LayerRecipe] = {}
        self.blocks: dict[str, BlockRecipe] = {}
        self._reconstruction: Reconstruction | None = None
        self._model, self._config, self._hooks = model, config, tuple(hooks)
        self._before = report.recipe_of(model)
        self._began = time.perf_counter()
        self._threads = config.threads or min(torch.get_num_threads(), diba.num_threads())
        self._given: dict[
            str, LayerTask
        ] = {}  # matrices and moments from propagation, used instead of the layers' own
        self._stop, self._kept = threading.Event(), kept_layers.get()
        self._mapped: set[int] = set()  # addresses of storages that held a replaced weight and other tensors
        check_progress(progress)
        if config.device is not None:
            check_device(config.device)
        self._progress, self._resources = progress, ExitStack()
        self._tell: Callable[[Progress], object] | None = shown_to.get()
        self._detailed = progress is True or hears_details(progress) or hears_details(self._tell)
        self._work = Work({target.name: _work(target) for target in selection.targets})
        self._sizes = {target.name: _work(target) for target in selection.targets}
        self._lock = threading.Lock()  # several layers may be solved at once

    def __enter__(self) -> Self:
        self._tell = self._resources.enter_context(reporting(self._progress))
        return self

    def __exit__(self, *error: object) -> None:
        self._resources.close()
        self._release()
        self._remember()

    def independently(self) -> None:
        """Compress all pending layers, each for its own dense weight."""
        share = sum(self._sizes.values()) / self._threads
        small = [
            name
            for name, target in self.pending.items()
            if min(target.shape) < _ROWS_FOR_THREADS and self._sizes[name] <= share
        ]
        if self._threads == 1 or len(small) < 2:
            small = []
        with _numpy_alone():
            for name in [name for name in self.pending if name not in small]:
                self._replace(name, self._solve(name, self._threads))
            if small:
                self._side_by_side(small)

    def factor(self, layers: Sequence[LayerTask]) -> None:
        """Compress layers for the given target matrices and moments; this is a ``propagate.Solve``."""
        self._given = {layer.name: layer for layer in layers}
        with _numpy_alone():
            if self._threads > 1 and len(layers) > 1:
                self._side_by_side(list(self._given))
            else:
                for layer in layers:
                    self._replace(layer.name, self._solve(layer.name, self._threads))

    def reconstructing(self, how: Reconstruction) -> Reconstructing:
        """That blocks are reconstructed by these settings, and reported here."""
        self._reconstruction, steps = how, 0

        def on_step(name: str) -> None:
            nonlocal steps
            steps += 1
            self.busy(name, "steps")

        def on_block(name: str, recipe: BlockRecipe) -> None:
            nonlocal steps
            self.blocks[name] = recipe
            self._work.spared("steps", how.steps + recipe.groups * how.tune_steps - steps)
            steps = 0
            self._remember()
            self.tell(block=(name, recipe))

        return Reconstructing(how, on_step, on_block, self._before.blocks)

    def plan(self, counts: Mapping[str, int], blocks: int) -> None:
        """How often everything between layers is expected."""
        self._work.plan(counts, blocks)

    def busy(self, what: str, kind: str) -> None:
        """Count and show what is done between two layers; most callables hear of layers only."""
        self._work.did(kind)
        if self._detailed:
            self.tell(item=what)

    def leave(self, name: str, reason: str) -> None:
        """Decide that a pending layer stays dense."""
        del self.pending[name], self._sizes[name]
        self._work.drop(name)
        self.left_dense[name] = reason

    def _side_by_side(self, names: list[str]) -> None:
        """Solve layers in several threads, the longest first; replace each in this thread when ready."""
        workers = min(self._threads, len(names))
        prefix = f"diba-convert-{id(self)}"
        pool = ThreadPoolExecutor(workers, thread_name_prefix=prefix)
        each = max(1, self._threads // workers)
        futures: dict[Future[Solved], str] = {}
        try:
            for name in sorted(names, key=lambda name: -self._sizes[name]):  # an interrupt may arrive here
                futures[pool.submit(self._solve, name, each)] = name
            for future in as_completed(list(futures)):
                self._replace(futures.pop(future), future.result())
        finally:
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            # An interrupt may come while a thread starts, which the pool then does not know.
            for thread in threading.enumerate():
                if thread.name.startswith(prefix) and thread.ident is not None:
                    thread.join()
            for future, name in futures.items():  # after an exception: keep what is ready
                if _ready(future) and name in self.pending:
                    self._replace(name, future.result(), announce=False)
        self._stop.clear()  # propagation may call again, with other layers

    def _solve(self, name: str, threads: int) -> Solved:
        target = self.pending[name]
        task = self._given.get(name) or self._own_task(target)
        found = None if self._kept is None else self._kept.get(task, target.settings)
        if found is not None:
            self._work.found(name)
            return found
        solved = solve_layer(task, target, threads=threads, progress=self.watch(name))
        if self._kept is not None:
            self._kept.put(task, target.settings, solved)
        return solved

    def _own_task(self, target: Target) -> LayerTask:
        """To compute what the dense layer does, for the same inputs."""
        bias = bias_values(target.module) if target.name in self.free_biases else None
        return LayerTask(target.name, dense_matrix(target.module), self.moments.get(target.name), bias)

    def _replace(self, name: str, solved: Solved, announce: bool = True) -> None:
        target = self.pending[name]
        weight: Any = target.module.weight
        new = replace(self._model, target.modules, solved.f, solved.bias)
        for layer in (new, *map(self._model.get_submodule, target.tied)):
            report.remember_layer(layer, solved.recipe)
        del self.pending[name]
        self.done[name] = solved.recipe
        if len(self.done) == 1:
            self._remember()
        if weight.untyped_storage().nbytes() > weight.nbytes:
            self._mapped.add(weight.untyped_storage().data_ptr())
        tied = tuple(target.tied)
        del target, weight  # the last references to the dense layer
        if announce:
            self._work.solving(name, 1.0)
            self.tell(report.report_of_layer(name, new, tied))

    # ------------------------------------------------------------ progress and recipe

    def watch(self, name: str) -> Callable[[Progress], None]:
        """A progress callback for the solver of one layer; it stops the solver when the conversion ends."""

        def show(state: Progress) -> None:
            if self._stop.is_set():
                raise _Stopped
            if self._detailed and state.total:
                with self._lock:
                    self._work.solving(name, min(state.done / state.total, 0.99))  # measuring still follows
                    self.tell()

        return show

    def tell(
        self,
        layer: report.LayerReport | None = None,
        block: tuple[str, BlockRecipe] | None = None,
        item: str | None = None,
    ) -> None:
        """Report the progress; ``layer`` was just replaced, ``block`` reconstructed, ``item`` under way."""
        if self._tell is None:
            return
        elapsed, (share, remaining) = time.perf_counter() - self._began, self._work.outlook()
        total, facts = self._work.layers, dict[str, Any]()
        if layer is not None:
            facts = {"item": layer.name, "snr_db": layer.snr_db, "detail": layer}
        elif block is not None:
            facts = {"item": block[0], "detail": block[1]}
        elif item is not None:
            facts = {"item": item}
        done = share * total if self._progress is True else len(self.done)
        facts["remaining"] = remaining if share else None
        facts["fraction"] = share if hears_details(self._tell) else None
        self._tell(Progress("convert", done, total, elapsed, **facts))

    def _remember(self) -> None:
        """Store the recipe so far on the model, and call the hooks."""
        seconds = time.perf_counter() - self._began
        if self.done:
            before = self._before
            left = {**before.left_dense, **self.left_dense}
            left = {name: reason for name, reason in left.items() if name not in self._sizes}
            seconds += before.seconds or 0.0
            how = self._reconstruction
            recipe = Recipe(
                settings=self._config.to_dict(),
                left_dense=left,
                seconds=seconds,
                reconstruction=before.reconstruction if how is None else how.to_dict(),
                blocks={**before.blocks, **self.blocks},
            )
            report.remember(self._model, recipe, peak_bytes=report.peak_memory())
        if compressed_layers(self._model):
            for hook in self._hooks:
                hook(self._model)

    @torch.no_grad()
    def _release(self) -> None:
        """Copy remaining tensors that share a storage with replaced weights, so that the storage is freed.

        Tensors read from a safetensors file may all be views of one storage.
        """
        copies: dict[tuple[Any, ...], torch.Tensor] = {}
        for tensor in (*self._model.parameters(), *self._model.buffers()):
            if tensor.device.type == "cpu" and tensor.untyped_storage().data_ptr() in self._mapped:
                place = tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
                if place not in copies:
                    copies[place] = tensor.detach().clone()
                tensor.data = copies[place]


@contextmanager
def _numpy_alone() -> Iterator[None]:
    """Limit NumPy's products to one thread, if threadpoolctl is installed.

    The threads of NumPy's BLAS library spin while they wait for work. Beside the solver's threads they would
    make solves with a covariance take several times as long.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        yield
        return
    with threadpool_limits(1, user_api="blas"):
        yield


class _Stopped(Exception):
    """Stops a solver in a worker thread."""


def _ready(future: Future[Solved]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _work(target: Target) -> float:
    """Estimated work of a solve: m n k."""
    (m, n), settings, k = target.shape, target.settings, target.k
    if settings.codes is not None:
        return float(m * n)
    if k is not None:
        return float(m * n * k)
    return m * n * (1.0 if settings.snr_db is None else settings.snr_db / _DB_PER_BIT * m * n / (m + n))
