"""Whether an exported model computes what the model computes in PyTorch."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from .inputs import flat
from .places import acting
from .results import Difference, ExportError
from .runtime import session

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from .inputs import Example
    from .places import Place

__all__ = ["allowed", "check", "in_onnxruntime", "outputs_of", "refuse_wrong"]

_FLOAT32 = 1e-3
"""Allowed for the float32 sums of the other layers, in any order: some thousand roundings of 2^-24, and what
softmax and normalisations make of them."""


def outputs_of(model: nn.Module, places: Sequence[Place], how: str, example: Example) -> Any:
    """What a model returns with its layers acting as ``"run"`` or ``"exact"``."""
    with acting(places, how):
        return model(**example.arguments)


def check(
    run: Callable[[Example], Sequence[Any]],
    model: nn.Module,
    places: Sequence[Place],
    examples: Sequence[Example],
    outputs: Sequence[str],
    tolerance: float | None,
    *,
    quantized: bool = True,
) -> list[Difference]:
    """Compare an exported model with PyTorch.

    The yardstick is the model with exact products. Both PyTorch's fast products and the exported ones are
    some distance from it, and from each other, since equal rounding starts from slightly different sums. So
    the exported model may be twice as far from exact products as PyTorch's are, plus ``_FLOAT32``. Standard
    operators do not quantize: for them it is ``_FLOAT32`` alone.

    Args:
        run: Gives the outputs of the exported model for an example.
        model: The model.
        places: Its layers that became operators.
        examples: What it is compared on.
        outputs: Names of the outputs.
        tolerance: Relative error that is allowed; None: as above.
        quantized: Whether the exported layers quantize their inputs.

    Raises:
        ExportError: An output differs by more, or has another shape.
    """
    found: list[Difference] = []
    for example in examples:
        results = run(example)
        fast, exact = (
            [value for _, value in flat(outputs_of(model, places, how, example), "output")]
            for how in ("run", "exact")
        )
        for name, y, usual, wanted in zip(outputs, results, fast, exact, strict=True):
            if tuple(y.shape) != tuple(wanted.shape):
                raise ExportError(
                    f"output {name!r} of the exported model has shape {tuple(y.shape)} for "
                    f"{example.shapes()}; PyTorch's has {tuple(wanted.shape)}"
                )
            if wanted.is_floating_point():
                error, noise = _distance(y, wanted), _distance(usual, wanted)
                own = (allowed(noise) if quantized else _FLOAT32) + _rounding(wanted)
                most = own if tolerance is None else tolerance
                found.append(Difference(name, example.shapes(), error, noise, most))
    refuse_wrong(found)
    return found


def refuse_wrong(found: Sequence[Difference]) -> None:
    """Raise ExportError for the first output that differs by more than is allowed."""
    for x in found:
        if not x.error <= x.allowed:  # NaN is wrong, too
            raise ExportError(
                f"the exported model computes something else: output {x.output!r} is "
                f"{100 * x.error:.3g} % from exact products for {x.inputs}; {100 * x.allowed:.3g} % are "
                f"allowed, and PyTorch is {100 * x.pytorch:.3g} % away. If the model is known to be that "
                "sensitive, give a larger tolerance"
            )


def allowed(noise: float) -> float:
    """The error that is accepted where PyTorch's fast products have the error ``noise``."""
    return _FLOAT32 + 2 * noise


def in_onnxruntime(
    path: Path, model: nn.Module, names: dict[str, list[str]]
) -> Callable[[Example], list[NDArray[Any]]]:
    """Open an exported model; returns what runs it on an example.

    Raises:
        ExportError: onnxruntime refuses it.
    """
    try:
        return partial(_run, session(path, log_severity_level=3), names)
    except RuntimeError as error:
        told = str(error).partition("cannot load it: ")[2]
        halves = [p.dtype for p in model.parameters() if p.is_floating_point() and p.itemsize < 4]
        mend = f"; the model is {halves[0]}, and few operators know that on CPUs: use model.float()"
        raise ExportError(
            f"onnxruntime cannot load the exported model: {told}{mend if halves else ''}"
        ) from error


def _run(runner: Any, names: dict[str, list[str]], example: Example) -> list[NDArray[Any]]:
    known = {given.name for given in runner.get_inputs()}
    values = zip(names["input_names"], example.values(), strict=True)
    feed = {name: value for name, value in values if name in known}
    try:
        outputs: list[NDArray[Any]] = runner.run(names["output_names"], feed)
    except Exception as error:  # onnxruntime's own types, without a common base
        told = " ".join(str(error).split())
        raise ExportError(
            f"onnxruntime cannot run the exported model on {example.shapes()}: {told}"
        ) from error
    return outputs


def _rounding(value: Tensor) -> float:
    """Allowed for activations of 16 bits: some roundings of each."""
    return 8 * torch.finfo(value.dtype).eps if value.itemsize < 4 else 0.0


def _distance(y: Any, wanted: Tensor) -> float:
    """|y - wanted| / |wanted|; the absolute error where the wanted output is zero."""
    expected = wanted.double().cpu()
    error, norm = (torch.as_tensor(y).double().cpu() - expected).norm(), expected.norm()
    return float(error / norm if norm else error)
