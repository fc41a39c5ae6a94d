"""What the factors of one layer do to the loss of a model that is dense otherwise."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ...solvers.size import no_size_warning
from ..conversion.solving import factorization, objective
from ..modules.kinds import dense_matrix, factored_matrix
from ..retuning.batches import evaluating, plain_grad, repeatable
from ..retuning.losses import Distillation, check_loss, distillation, loss_value
from .noise import noise_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from ...progress import Steps
    from ..calibration.moments import Moments
    from ..model.selection import Target
    from ..retuning.losses import Loss
    from .noise import Noise

__all__ = ["LossMeter", "spliced"]


class LossMeter:
    """Measures how much the loss of a model rises while some of its layers are replaced by their factors.

    Args:
        model: The dense model, unfused.
        batches: A few of them; they are read once and held.
        loss: ``loss(model, batch)``; None, or a distillation whose teacher is the model itself: the distance
            from the dense model's answers, which are held as well.
        threads: Threads of the solver.

    Raises:
        TypeError, ValueError: The loss or the batches are of no use.
    """

    def __init__(self, model: nn.Module, batches: Any, loss: Loss | None, threads: int | None) -> None:
        check_loss(loss)
        self._model, self._threads = model, threads
        self._batches = list(repeatable(batches))
        self._loss = distillation(model) if loss is None else loss
        if isinstance(self._loss, Distillation) and self._loss.teacher is model:
            self._loss.remember(self._batches)
        self._before = self._losses("the dense model")

    def measure(
        self,
        targets: Sequence[Target],
        sizes: Sequence[int],
        known: Mapping[str, Moments],
        steps: Steps,
        done: int,
    ) -> tuple[dict[str, Noise], NDArray[np.float64]]:
        """Factor layers together at these k, and measure the loss with them in their places.

        Args:
            targets: The layers.
            sizes: Inner dimensions, rising.
            known: Name -> moments of the inputs.
            steps: Told of progress, in layers.
            done: Layers done before.

        Returns:
            Name -> noise; and the rise of the loss, shape (sizes, batches).
        """
        matrices = {target.name: dense_matrix(target.module) for target in targets}
        factors: dict[str, dict[int, NDArray[Any]]] = {name: {} for name in matrices}
        rises = []
        for at, k in enumerate(sizes):
            for number, target in enumerate(targets):
                part = len(targets) * at / len(sizes) + number / len(sizes)
                progress = steps.within(done + part, done + part + 1 / len(sizes))
                factors[target.name][k] = self._factored(
                    target, matrices[target.name], k, known.get(target.name), progress
                )
            with spliced({target: factors[target.name][k] for target in targets}):
                names = ", ".join(target.name for target in targets)
                rises.append(self._losses(f"the model with factors for {names} (k = {k})") - self._before)
        noise = {name: noise_of(matrix, factors[name], known.get(name)) for name, matrix in matrices.items()}
        return noise, np.array(rises)

    def _factored(
        self, target: Target, matrix: NDArray[Any], k: int, moments: Moments | None, progress: Any
    ) -> NDArray[Any]:
        """The dense form of factors as a conversion makes them with effort "fast"."""
        settings = dataclasses.replace(target.settings, k=k, bits_per_weight=None, snr_db=None, effort="fast")
        options = {"threads": self._threads, "progress": progress}
        with no_size_warning():
            f = factorization(matrix, settings, objective(settings, moments), moments, **options)
        return f.to_dense()

    def _losses(self, whose: str) -> NDArray[np.float64]:
        """The loss of each batch. Random numbers that a loss draws from torch are the same each time."""
        found = []
        with torch.random.fork_rng(devices=[]), evaluating(self._model), plain_grad(False):
            torch.manual_seed(0)
            for number, batch in enumerate(self._batches):
                value = float(loss_value(self._loss, self._model, batch))
                if not np.isfinite(value):
                    raise ValueError(
                        f"the loss of {whose} is {value} in batch {number}; it must be finite: leave out "
                        "this batch, or choose another loss"
                    )
                found.append(value)
        return np.array(found)


@contextmanager
def spliced(matrices: Mapping[Target, NDArray[Any]]) -> Iterator[None]:
    """A context in which layers, and those tied to them, have other matrices (m, n).

    Their weights are other parameters meanwhile. At the end, also after an error, the old ones are back,
    which nobody has written to.
    """
    kept = [(module, module._parameters["weight"]) for target in matrices for module in target.modules]
    try:
        for target, matrix in matrices.items():
            old: Any = target.module.weight
            weight = nn.Parameter(_contiguous(old), requires_grad=False)
            for module in target.modules:
                module._parameters["weight"] = weight
            place = factored_matrix(target.module)
            assert place is not None
            with torch.no_grad():
                place.copy_(torch.from_numpy(matrix))
        yield
    finally:
        for module, parameter in kept:
            module._parameters["weight"] = parameter


def _contiguous(weight: Tensor) -> Tensor:
    """A copy of which the matrix is a view."""
    with torch.inference_mode(False), torch.no_grad():
        return weight.detach().clone(memory_format=torch.contiguous_format)
