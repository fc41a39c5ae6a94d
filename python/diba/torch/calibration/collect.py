"""Moments of the inputs of every dense layer, and gradients of its outputs, from batches of data."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..._internal import check
from ..._internal.machine import keeping_free_memory
from ...progress import ProgressOption, Steps, check_progress, reporting
from ..model.selection import targets
from ..model.swap import unfused
from ..modules.kinds import input_layout, input_size
from ..modules.vectors import Products, input_of, vectors
from ..retuning.batches import MasksOf, call, differentiable, plain_grad, repeatable, size, token_masks
from ..retuning.losses import Loss, check_loss
from .calibration import Calibration
from .moments import Moments
from .sensitivity import backward, output_gradients, row_squares

__all__ = ["calibrate", "dense_layers"]


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    config: Any = None,
    loss: Loss | None = None,
    tokens: int | None = None,
    progress: ProgressOption = True,
) -> Calibration:
    """Run the model on batches and collect means E[x] and second moments E[x x'] of its layers' inputs.

    Args:
        model: Any module. It runs in evaluation mode; its modes, gradients and hooks are restored.
        batches: A list, ``DataLoader`` or generator of inputs of the model: mappings, tuples or tensors. If a
            mapping has an ``attention_mask`` of shape (batch, tokens), padding is not counted.
        config: A ``diba.torch.Config``: only the layers that it would convert. None: every dense layer.
        loss: ``loss(model, batch)``, a scalar. If given, the RMS gradient of every output is collected, too.
            Parameters get no ``.grad``.
        tokens: Stop after the batch in which some layer reaches this many input vectors; None: read all.
        progress: True shows a bar on stderr, False nothing; a callable gets a :class:`diba.Progress` at the
            start and after each batch.

    Returns:
        Layer name -> :class:`Moments`. Layers that no batch reached and embeddings, which multiply no
        vectors, are missing. For convolutions, at most ``vectors.PATCHES`` patches per call are used.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: There is no batch or no dense layer, the loss has no gradient, or inputs are not finite;
            the message names the layer.

    Notes:
        Products are summed in float32 over blocks of 4096 vectors, and in float64 over blocks. This takes
        8 n^2 bytes for every distinct input; with a loss, also the memory of a backward pass without
        gradients of weights.
    """
    check.instance(model, "model", nn.Module, "use the torch model itself")
    if tokens is not None:
        tokens = check.positive_int(tokens, "tokens")
    check_loss(loss)
    check_progress(progress)
    data = repeatable(batches)
    with keeping_free_memory(), unfused(model):
        layers = dense_layers(model, config)
        if not layers:
            raise ValueError("model has no dense layer to calibrate; it must have a Linear or a convolution")
        # Layers that read the same tensor share a sum. If they stop doing so in a later batch, everything is
        # collected again with separate sums.
        with reporting(progress) as show:
            after_batch = Steps("calibrate", size(data), show).done
            recorder = _Recorder(layers, share=True)
            if not recorder.read(model, data, loss, tokens, after_batch):
                recorder = _Recorder(layers, share=False)
                recorder.read(model, data, loss, tokens, after_batch)
        return recorder.result()


def dense_layers(model: nn.Module, config: Any = None) -> dict[str, nn.Module]:
    """Name -> layer, for layers with input vectors: those that a config converts, or all."""
    if config is None:
        found = dict(model.named_modules())
    else:
        found = {target.name: target.module for target in targets(model, config)}
    return {name: module for name, module in found.items() if input_size(module) is not None}


class _Recorder:
    """Collects sums over the calls of all layers, through hooks."""

    def __init__(self, layers: dict[str, nn.Module], share: bool) -> None:
        self._layers = layers
        self._share = share
        self._leaders: dict[str, str] = {}  # layer -> the layer whose sums it shares
        self._started: dict[str, int] = {}  # layer -> the batch that first reached it
        self._products: dict[str, Products] = {}
        self._squares: dict[str, Tensor] = {}
        self._gradients: dict[str, int] = defaultdict(int)
        self._batch = -1
        self._masks: MasksOf = lambda layer: ()
        self._inputs: dict[object, tuple[weakref.ref[Tensor], int, str]] = {}
        self._calls: dict[str, list[int]] = {}  # inputs of this batch, numbered, in the order of the calls

    def read(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        loss: Loss | None,
        tokens: int | None,
        after_batch: Callable[[int], object],
    ) -> bool:
        """Read the batches; returns False as soon as layers that share a sum read different tensors."""
        with (
            differentiable(model, ()),
            plain_grad(loss is not None),
            token_masks(model) as masks_of,
            self._hooks(loss is not None),
        ):
            for batch in batches:
                self._start(masks_of(batch))
                if loss is None:
                    call(model, batch)
                else:
                    backward(loss, model, batch, self._batch)
                if any(
                    self._calls.get(name) != self._calls.get(lead) for name, lead in self._leaders.items()
                ):
                    return False
                after_batch(self._batch + 1)
                if (
                    tokens is not None
                    and max((p.count for p in self._products.values()), default=0) >= tokens
                ):
                    break
        return True

    def result(self) -> Calibration:
        """The moments so far, in the order of the layers."""
        known = {}
        for name, products in self._products.items():
            if products.count:
                total = products.mean()
                mean = products.means()[0].numpy()
                known[name] = ((total + total.T) / 2).numpy(), mean, products.count
        found = {}
        for name in self._layers:
            leader = self._leaders.get(name, name)
            if leader in known:
                second, mean, count = known[leader]
                rms = self._gradient_rms(name)
                found[name] = Moments(second, count, rms, self._gradients[name], mean)
        return Calibration(found)

    def _gradient_rms(self, name: str) -> Any:
        if not self._gradients[name]:
            return None
        return (self._squares[name] / self._gradients[name]).sqrt().numpy()

    @contextmanager
    def _hooks(self, gradients: bool) -> Iterator[None]:
        with ExitStack() as stack:
            for name, module in self._layers.items():
                before = module.register_forward_pre_hook(partial(self._before, name), with_kwargs=True)
                stack.callback(before.remove)
            if gradients:
                stack.enter_context(output_gradients(self._layers, self._gradient))
            yield

    def _start(self, masks: MasksOf) -> None:
        self._batch += 1
        self._masks = masks
        self._inputs.clear()
        self._calls.clear()

    def _before(self, name: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        x = input_of(args, kwargs)
        number, reader = self._numbered(name, module, x)
        self._calls.setdefault(name, []).append(number)
        if name not in self._started:
            self._started[name] = self._batch
            if self._share and reader != name and self._started[reader] == self._batch:
                self._leaders[name] = self._leaders.get(reader, reader)
        if name not in self._leaders:
            if name not in self._products:
                self._products[name] = Products(input_size(module) or 0)
            products = self._products[name]
            rows = vectors(module, x, self._masks(name))
            products.add(rows, rows)
            if not products.finite():
                raise ValueError(
                    f"the inputs of layer {name!r} are not finite in batch {self._batch} (or too large to "
                    f"square); they must be: look for broken weights or data, or run the model in float32"
                )

    def _numbered(self, name: str, module: nn.Module, x: Tensor) -> tuple[int, str]:
        """The number of this input in the batch, and the first layer that read it."""
        key = (id(x), 0 if x.is_inference() else x._version, input_layout(module))
        known = self._inputs.get(key)
        if known is None or known[0]() is not x:  # the id of a freed tensor may be used again
            known = weakref.ref(x), sum(map(len, self._calls.values())), name
            self._inputs[key] = known
        return known[1], known[2]

    def _gradient(self, name: str, number: int, gradient: Tensor) -> None:
        where = f"layer {name!r} in batch {self._batch}"
        squares = row_squares(self._layers[name], gradient, self._masks(name), where)
        self._squares[name] = self._squares.get(name, 0) + squares.sum(0).cpu()
        self._gradients[name] += len(squares)
