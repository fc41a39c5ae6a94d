"""From a model with placeholders to a graph of onnx_ir, by ``torch.onnx.export``."""

from __future__ import annotations

import logging
import warnings
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .inputs import flat
from .places import acting
from .results import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx_ir

    from .inputs import Example
    from .places import Place

__all__ = ["as_exported", "first_cause", "names_of_outputs", "trace"]

_LOGGER = "torch.onnx._internal.exporter"
_MISSING = object()


def trace(
    model: nn.Module,
    places: Sequence[Place],
    example: Example,
    *,
    opset: int,
    input_names: Sequence[str],
    output_names: Sequence[str],
) -> onnx_ir.Model:
    """Trace a model into a graph; the layers of ``places`` leave placeholders.

    Raises:
        ExportError: torch cannot export the model.
    """
    with acting(places, "trace"), _quiet():
        try:
            program: Any = torch.onnx.export(
                model,
                (),
                kwargs=example.arguments,
                dynamo=True,
                opset_version=opset,
                input_names=list(input_names),
                output_names=list(output_names),
                dynamic_shapes=example.dynamic,
                verbose=False,
            )
        except Exception as error:
            raise ExportError(
                f"torch.onnx.export cannot trace {type(model).__name__}: {first_cause(error)}; if the model "
                "fixes a dimension, name the dynamic ones in dynamic_shapes, or use dynamic=False"
            ) from error
    traced: onnx_ir.Model = program.model
    return traced


@contextmanager
def as_exported(model: nn.Module) -> Iterator[None]:
    """Context manager: the model as it is exported: no dropout, gradients, cache of keys or fused attention.

    Attention of transformers is exported from its plain form, whose graph onnxruntime's optimizer knows;
    that of ``scaled_dot_product_attention`` has twice the nodes.
    """
    training = {module: module.training for module in model.modules()}
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for config in _configs(model):
            stack.enter_context(_with(config, "use_cache", False))
            stack.enter_context(_with(config, "_attn_implementation", "eager"))
        try:
            model.eval()
            yield
        finally:
            for module, mode in training.items():
                module.training = mode


def names_of_outputs(outputs: Any) -> list[str]:
    """Names of a model's outputs: keys of a mapping, else ``output``, or ``output_0`` and so on."""
    if isinstance(outputs, torch.Tensor):
        return ["output"]
    return [name if not name[0].isdigit() else f"output_{name}" for name, _ in flat(outputs)]


def _configs(model: nn.Module) -> list[Any]:
    """The configurations of transformers in a model, each once."""
    found: dict[int, Any] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            found.setdefault(id(config), config)
    return list(found.values())


@contextmanager
def _with(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Context manager: an attribute has another value, if it is there."""
    before = getattr(owner, name, _MISSING)
    if before is _MISSING:
        yield
        return
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Context manager: torch does not report what is missing for models that are not exported here."""
    logger = logging.getLogger(_LOGGER)
    with warnings.catch_warnings(), _with(logger, "disabled", True):
        warnings.simplefilter("ignore")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def first_cause(error: BaseException) -> str:
    """The first line of the error that others were raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
