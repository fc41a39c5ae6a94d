"""What an export gives back, and what it raises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

__all__ = ["Difference", "ExportError", "Exported", "contents"]


class ExportError(RuntimeError):
    """A model could not be exported, or its export computes something else; no file was written."""


@dataclass(frozen=True)
class Difference:
    """How one output of an exported model compares with PyTorch. Errors are relative Frobenius norms.

    The yardstick of both errors is the same model with every factored layer multiplied exactly, in float32.

    Attributes:
        output: Name of the output.
        inputs: The shapes of the inputs.
        error: Error of the exported model in its runtime.
        pytorch: Error of the model in PyTorch, whose fast products quantize the vectors they multiply.
        allowed: The largest ``error`` that is accepted.
    """

    output: str
    inputs: str
    error: float
    pytorch: float
    allowed: float


@dataclass(frozen=True)
class Exported:
    """An exported model.

    Attributes:
        path: The file of the model.
        data: The file of its tensors, beside it; None: they are in the first one.
        model_bytes: Size of the first file.
        data_bytes: Size of the file of tensors, 0 without one.
        layers: Names of the factored layers in the graph.
        tables: Bits of the embeddings and output layers by name.
        seconds: Time of the export, with the check.
        checks: What the check found; empty without one.
    """

    path: Path
    data: Path | None
    model_bytes: int
    data_bytes: int
    layers: Sequence[str]
    tables: dict[str, int]
    seconds: float
    checks: Sequence[Difference]

    def __str__(self) -> str:
        size = (self.model_bytes + self.data_bytes) / 1e6
        lines = [f"{self.path}: {size:.1f} MB, {len(self.layers)} factored layers, {self.seconds:.1f} s"]
        lines += [f"{name} at {bits} bits" for name, bits in self.tables.items()]
        lines += [
            f"{x.output}, {x.inputs}: {100 * x.error:.3g} % from exact products "
            f"(PyTorch {100 * x.pytorch:.3g} %, allowed {100 * x.allowed:.3g} %)"
            for x in self.checks
        ]
        return "\n".join(lines)


def contents(places: Iterable[Any]) -> dict[str, Any]:
    """``layers`` and ``tables`` of an :class:`Exported` with the layers of these places."""
    tables = {place.name: place.table.bits for place in places if hasattr(place, "table")}
    return {"layers": [place.name for place in places if place.name not in tables], "tables": tables}
