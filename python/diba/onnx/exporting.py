"""``diba.onnx.export``: from a converted model to an ONNX file that is known to compute the same."""

from __future__ import annotations

import importlib.util
import json
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .. import _core
from .._internal import check as arguments
from .._internal.disk import file_to_write
from ..progress import Steps, reporting
from .library import library_path
from .results import Exported, contents
from .tables import check_bits

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir
    from torch import nn

    from .._internal.disk import PathLike
    from ..progress import ProgressOption
    from .places import Place
    from .tables import TableBits

__all__ = ["describe", "export"]

_BITS = (16, 8, 4, None)
_NEEDED = ("torch", "onnx", "onnxscript")
_OLDEST_OPSET = 18  # the oldest that torch writes
_STEPS = ("plan", "trace", "pack", "write", "check")


def export(
    model: nn.Module,
    example: Any,
    path: PathLike,
    *,
    embeddings: TableBits | None = 8,
    head: TableBits | None = 8,
    standard: bool = False,
    precision: Literal["fast", "exact"] = "fast",
    dynamic: bool = True,
    dynamic_shapes: dict[str, Any] | None = None,
    opset: int = 20,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    check: bool = True,
    tolerance: float | None = None,
    progress: ProgressOption = True,
) -> Exported:
    """Export a converted model to ONNX, and check it in onnxruntime before it is put in its place.

    Every factored layer becomes one node of diba's operators, named after its module, with its factors as the
    bytes of a diba file. ``diba.onnx.session`` runs the result, and so does any program with onnxruntime that
    loads ``diba.onnx.library_path()``. The tensors lie in a second file beside it, ``PATH.data``.

    Args:
        model: A model of any architecture that ``torch.onnx.export(dynamo=True)`` can trace, in float32, with
            factored layers or without. It is traced in evaluation mode, without a cache of keys and values,
            and is left as it was; no other thread may use it meanwhile.
        example: Arguments of one call: a tensor, a tuple, or a mapping of keyword arguments, such as a
            tokenizer returns.
        path: The file to write, such as ``"model.onnx"``.
        embeddings: Bits of dense embeddings of 64 KiB or more, 16, 8 or 4 (:class:`diba.torch.CodedLayer`);
            None: float32. Embeddings that were converted to 8 or 4 bits stay as they are.
        head: Bits of a language model's dense output layer (``get_output_embeddings``), likewise.
        standard: Use the operators of ONNX only, so that no library is needed. Factors still take one bit an
            entry in the file; onnxruntime unpacks them to dense float32 matrices when it opens the model,
            which is then as large and as slow as the dense one.
        precision: ``"fast"`` products quantize the vectors they multiply (45 dB), ``"exact"`` ones do not.
        dynamic: Whether the first two dimensions of ids and masks, ``batch`` and ``length``, and the first
            one of other tensors may differ from the example's.
        dynamic_shapes: The dynamic dimensions instead, ``{"input_ids": {0: "batch", 1: "length"}}``.
        opset: Version of ONNX's operators, at least 18. From 20 on GELU is one operator; onnxruntime 1.17
            knows those up to 20.
        input_names: Names of the inputs; None: those of the model's parameters.
        output_names: Names of the outputs; None: the keys of the model's result, or ``"output"``; those of
            inputs get ``_output`` appended.
        check: Whether to run the exported model in onnxruntime, on the example and on one of another batch
            and length, and to compare it with PyTorch's.
        tolerance: Relative error of each output that the check allows; None: twice that of PyTorch's fast
            products, and some for float32 (see :class:`Difference`).
        progress: True shows a bar, False nothing; a callable gets a :class:`diba.Progress` after each step.

    Returns:
        Sizes, layers, and what the check found.

    Raises:
        ExportError: The model cannot be traced, or the export computes something else; no file is written.
        ImportError: A package is missing; ``python -m pip install 'diba[onnx]'`` installs all.
        OSError: The folder does not exist or is not writable, or diba's library is missing for the check.
        TypeError: An argument is of a wrong type.
        ValueError: An argument is out of range, or a layer's factors are not finite.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 64))
        >>> model = diba.torch.convert(model, bits_per_weight=2, progress=False)  # doctest: +SKIP
        >>> export(model, torch.zeros(2, 64), "model.onnx").layers  # doctest: +SKIP
        ['0', '1']
    """
    began = time.perf_counter()
    target = _checked(path, embeddings, head, precision, opset)
    _require(check, standard)
    from . import checking, files, inputs, tracing

    given = inputs.make_example(model, example, dynamic, dynamic_shapes)
    with reporting(progress) as report, tracing.as_exported(model), files.staged(target) as stage:
        steps = Steps("export", len(_STEPS), report)
        places = _planned(model, embeddings, head)
        result = checking.outputs_of(model, places, "run", given)
        names = {"input_names": list(input_names or given.names())}
        taken, own = names["input_names"], tracing.names_of_outputs(result)
        names["output_names"] = list(
            output_names or [f"{name}_output" if name in taken else name for name in own]
        )
        steps.done(1, _STEPS[0])
        graph = tracing.trace(model, places, given.traceable(), opset=opset, **names)
        steps.done(2, _STEPS[1])
        used = _place(graph, places, standard, precision)
        describe(graph, model, used, {"standard": standard, "precision": precision})
        steps.done(3, _STEPS[2])
        files.write(graph, stage)
        steps.done(4, _STEPS[3])
        found = []
        if check:
            examples = [given, *given.others()]
            run = checking.in_onnxruntime(stage, model, names)
            found = checking.check(
                run, model, places, examples, names["output_names"], tolerance, quantized=not standard
            )
        files.publish(stage, target)
        steps.done(5, _STEPS[4])
    data = files.data_file(target)
    return Exported(
        path=target,
        data=data,
        model_bytes=target.stat().st_size,
        data_bytes=data.stat().st_size,
        **contents(used),
        seconds=time.perf_counter() - began,
        checks=found,
    )


def _checked(path: PathLike, embeddings: Any, head: Any, precision: Any, opset: Any) -> Path:
    """Check the arguments before the work, and that the file can be written; returns its path."""
    check_bits(embeddings, "embeddings", _BITS)
    check_bits(head, "head", _BITS)
    arguments.one_of(precision, "precision", ("fast", "exact"))
    arguments.integer(opset, "opset", minimum=_OLDEST_OPSET)
    return file_to_write(arguments.path(path))


def _require(check: bool, standard: bool) -> None:
    """Require the packages, and for a check also what runs the model."""
    for name in (*_NEEDED, *(("onnxruntime",) if check else ())):
        if importlib.util.find_spec(name) is None:
            raise ImportError(f"diba.onnx.export needs {name}; use python -m pip install 'diba[onnx,torch]'")
    import torch

    if not hasattr(torch.onnx, "ops"):
        raise ImportError(f"torch is {torch.__version__}; diba.onnx.export needs 2.8 or newer")
    if check and not standard:
        library_path()


def _planned(model: nn.Module, embeddings: TableBits | None, head: TableBits | None) -> list[Place]:
    from .plan import plan

    return plan(model, embeddings, head)


def _place(graph: onnx_ir.Model, places: list[Place], standard: bool, precision: str) -> list[Place]:
    """Put the nodes of the layers in the place of their placeholders; returns the layers that are used."""
    from .folding import fold_batch_norms
    from .graph import Editor
    from .nodes import library_node
    from .places import DOMAIN
    from .standard import standard_node

    make: Any = standard_node if standard else partial(library_node, precision=precision)
    edit = Editor(graph)
    used: dict[int, Place] = {}
    for node in edit.placeholders(DOMAIN):
        number = node.attributes["number"].as_int()
        used[number] = places[number]
        edit.replace(node, make(edit, places[number], node.inputs[0], node.outputs[0].dtype))
    fold_batch_norms(graph)
    edit.finish(DOMAIN)
    return list(used.values())


def describe(graph: onnx_ir.Model, model: nn.Module, used: list[Place], facts: dict[str, Any]) -> None:
    """Say in the model what made it and how it was compressed."""
    from ..torch.conversion.report import report

    found = report(model)
    recipe = {
        "settings": found.settings,
        "bits_per_weight": found.bits_per_weight if found.layers else None,
        "tables": contents(used)["tables"],
        **facts,
    }
    layers = [
        {"name": x.name, "tied": list(x.tied), "kind": x.kind, "shape": list(x.shape), "k": x.k}
        for x in found.layers
    ]
    graph.producer_name, graph.producer_version = "diba", _core.__version__
    if graph.opset_imports[""] <= 20:
        graph.ir_version = min(graph.ir_version, 9)  # the newest that onnxruntime 1.17 reads
    graph.metadata_props["diba.version"] = _core.__version__
    graph.metadata_props["diba.recipe"] = json.dumps(recipe, default=str)
    graph.metadata_props["diba.layers"] = json.dumps(layers)
