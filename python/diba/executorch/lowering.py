"""From a model with placeholders to a program of ExecuTorch, in which each layer is a delegate of its own.

A delegate is one of diba's operators. What it is, stands in a description of a few lines, which
``cpp/executorch/backend.cpp`` reads; its constants are named data of the program, stored once.
"""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import torch
from executorch.exir import to_edge_transform_and_lower
from executorch.exir._serialize._named_data_store import NamedDataStore
from executorch.exir.backend.backend_details import BackendDetails, PreprocessResult
from executorch.exir.backend.compile_spec_schema import CompileSpec
from executorch.exir.backend.partitioner import DelegationSpec, Partitioner, PartitionResult
from torch import Tensor

from ..onnx.operations import operation
from ..onnx.places import acting
from ..onnx.results import ExportError
from ..onnx.tracing import first_cause

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import nn

    from ..onnx.inputs import Example
    from ..onnx.operations import Operation
    from ..onnx.places import Place

__all__ = ["lowered"]

_ALIGNMENT = 64  # bytes, of constants in the file
_NUMBER = "place"


def lowered(
    model: nn.Module,
    places: Sequence[Place],
    example: Example,
    largest: Mapping[str, int],
    precision: str,
    partitioners: Sequence[Any],
) -> Any:
    """The program of a model, as ExecuTorch's ``ExecutorchProgramManager``.

    Args:
        model: In evaluation mode.
        places: Its layers that become delegates.
        example: The arguments that it is traced with.
        largest: Sizes of dynamic dimensions, at most.
        precision: Of products, ``"fast"`` or ``"exact"``.
        partitioners: ExecuTorch's own, for all other nodes.

    Raises:
        ExportError: torch or ExecuTorch cannot export the model.
    """
    for place in places:
        place.placeholder = _placeholder
    DibaBackend.operations = [(place, operation(place, precision)) for place in places]
    with _quiet():
        try:
            with acting(places, "trace"), _without_buffers(places):
                traced = torch.export.export(
                    model,
                    (),
                    kwargs=example.arguments,
                    dynamic_shapes=_dimensions(example, largest),
                    strict=False,
                )
            edge = to_edge_transform_and_lower(traced, partitioner=[_Layers(), *partitioners])
            return edge.to_executorch()
        except Exception as error:
            raise ExportError(
                f"ExecuTorch cannot export {type(model).__name__}: {first_cause(error)}; if the model fixes "
                "a dimension, leave it out of largest"
            ) from error
        finally:
            DibaBackend.operations = []


def _dimensions(example: Example, largest: Mapping[str, int]) -> dict[str, Any] | None:
    """Dynamic dimensions with their limits, as ``torch.export`` takes them."""
    if example.dynamic is None:
        return None
    known = {axis: torch.export.Dim(axis, min=1, max=most) for axis, most in largest.items()}
    return {
        name: None if axes is None else {dim: known[axis] for dim, axis in axes.items()}
        for name, axes in example.dynamic.items()
    }


@torch.library.custom_op(
    "diba_executorch::place",
    mutates_args=(),
    schema="(Tensor x, int number, SymInt[] shape, ScalarType dtype) -> Tensor",
)
def _placeholder_op(x: Tensor, number: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    raise NotImplementedError("a layer that is exported; it runs in ExecuTorch alone")


@_placeholder_op.register_fake
def _(x: Tensor, number: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return x.new_empty(shape, dtype=dtype)


def _placeholder(x: Tensor, number: int, shape: Sequence[Any], dtype: torch.dtype) -> Tensor:
    made: Tensor = torch.ops.diba_executorch.place(x, number, list(shape), dtype)
    return made


class _Layers(Partitioner):  # type: ignore[misc]
    """Makes a delegate of every placeholder."""

    def partition(self, exported_program: Any) -> Any:
        """See ExecuTorch's ``Partitioner``."""
        tags: dict[str, Any] = {}
        for node in exported_program.graph.nodes:
            if node.op == "call_function" and "diba_executorch.place" in str(node.target):
                tag = node.meta["delegation_tag"] = f"diba_{len(tags)}"
                number = CompileSpec(_NUMBER, str(node.args[1]).encode())
                tags[tag] = DelegationSpec(DibaBackend.__name__, [number])
        return PartitionResult(tagged_exported_program=exported_program, partition_tags=tags)


class DibaBackend(BackendDetails):  # type: ignore[misc]
    """Describes a delegate. The program knows the backend by the name of this class.

    Attributes:
        operations: The layers of the export that runs, and what they are.
    """

    operations: list[tuple[Place, Operation]] = []  # noqa: RUF012 - ExecuTorch makes no instances

    @staticmethod
    def preprocess(edge_program: Any, compile_specs: Any) -> Any:
        """See ExecuTorch's ``BackendDetails``."""
        number = next(int(spec.value) for spec in compile_specs if spec.key == _NUMBER)
        place, found = DibaBackend.operations[number]
        store = NamedDataStore()
        lines = ["diba 1", f"operator {found.name}", f"layer {place.name}"]
        for name, value in found.attributes.items():
            if isinstance(value, str):
                lines.append(f"text {name} {value}")
            else:
                numbers = [value] if isinstance(value, int) else value
                lines.append(" ".join(["integers", name, *map(str, numbers)]))
        for name, values in found.constants.items():
            array, key = np.ascontiguousarray(values()), f"diba.{quote(name)}"
            store.add_named_data(key, array.tobytes(), alignment=_ALIGNMENT)
            lines.append(" ".join(["constant", array.dtype.name, key, *map(str, array.shape)]))
        return PreprocessResult(
            processed_bytes="\n".join(lines).encode(), data_store_output=store.get_named_data_store_output()
        )


@contextmanager
def _without_buffers(places: Sequence[Place]) -> Iterator[None]:
    """Context manager: the layers have no buffers, which ExecuTorch would keep beside the delegates' data."""
    kept = {id(place.module): (place.module, dict(place.module._buffers)) for place in places}
    try:
        for module, _ in kept.values():
            module._buffers.clear()
        yield
    finally:
        for module, buffers in kept.values():
            module._buffers.update(buffers)


@contextmanager
def _quiet() -> Iterator[None]:
    """Context manager: nothing is said of the insides of ExecuTorch."""
    level = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
