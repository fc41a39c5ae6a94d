"""``diba.executorch.export``: from a converted model to a program of ExecuTorch."""

from __future__ import annotations

import ctypes
import importlib.util
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._internal import check as arguments
from .._internal.disk import file_to_write
from ..onnx.results import Exported, ExportError, contents
from ..onnx.tables import check_bits
from ..progress import Steps, reporting

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import nn

    from .._internal.disk import PathLike
    from ..onnx.inputs import Example
    from ..onnx.tables import TableBits
    from ..progress import ProgressOption

__all__ = ["export"]

_BITS = (8, 4, None)
_BACKEND = "DibaBackend"
_STEPS = ("plan", "lower", "write", "check")


def export(
    model: nn.Module,
    example: Any,
    path: PathLike,
    *,
    library: PathLike | None = None,
    largest: Mapping[str, int] | None = None,
    embeddings: TableBits | None = 8,
    head: TableBits | None = 8,
    precision: str = "fast",
    partitioners: Sequence[Any] | None = None,
    tolerance: float | None = None,
    progress: ProgressOption = True,
) -> Exported:
    """Export a model to a program of ExecuTorch, and check that it computes the same.

    Each compressed layer becomes a delegate of the backend ``DibaBackend``, and what else the model does goes
    to ExecuTorch's own backends and operators. Constants lie in the program, one bit for each bit.

    Args:
        model: A model of any architecture that ``torch.export`` can trace, with compressed layers or without.
            It is traced in evaluation mode, without a cache of keys and values, and is left as it was; no
            other thread may use it meanwhile.
        example: Arguments of one call: a tensor, a tuple, or a mapping of keyword arguments, such as a
            tokenizer returns.
        path: The file to write; it ends in ``.pte``.
        library: The file of ``libdiba_executorch``. It is loaded into this process, and the program is run
            with it on the example and on one of other sizes, and compared with PyTorch. None: the program is
            not run.
        largest: Dimensions whose size may differ from the example's, with the largest size that they may
            have: ``"length"`` of ids and masks, ``"batch"`` of these and of other tensors. ExecuTorch takes
            memory for the largest ones. None: all sizes are those of the example.
        embeddings: Bits of dense embeddings of 64 KiB or more, 8 or 4; None: float32. Embeddings that were
            converted to 8 or 4 bits stay as they are.
        head: Bits of a language model's dense output layer, likewise.
        precision: ``"fast"`` products quantize the vectors they multiply (45 dB), ``"exact"`` ones do not.
        partitioners: Partitioners of ExecuTorch's backends for what is not compressed, in order. None:
            XNNPACK's.
        tolerance: Relative error of each output that the check allows; None: twice that of PyTorch's fast
            products, and some for float32 (see :class:`diba.onnx.Difference`).
        progress: True shows a bar, False nothing; a callable gets a :class:`diba.Progress` after each step.

    Returns:
        Sizes, layers, and what the check found.

    Raises:
        ExportError: The model cannot be exported, or the program computes something else; no file is written.
        ImportError: A package is missing: ``python -m pip install executorch``.
        OSError: The folder does not exist or is not writable, or ``library`` cannot be loaded.
        TypeError: An argument is of a wrong type.
        ValueError: An argument is out of range, or a layer's factors are not finite.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 64))
        >>> model = diba.torch.convert(model, bits_per_weight=2, progress=False)  # doctest: +SKIP
        >>> export(model, torch.zeros(1, 64), "model.pte").layers  # doctest: +SKIP
        ['0', '1']
    """
    began = time.perf_counter()
    target = _checked(path, embeddings, head, precision, largest)
    if importlib.util.find_spec("executorch") is None:
        raise ImportError("diba.executorch.export needs executorch; use python -m pip install executorch")
    run = None if library is None else _loaded(library)
    from ..onnx import checking, inputs, tracing
    from ..onnx.plan import plan
    from .lowering import lowered

    given, largest = _example(inputs.make_example(model, example, True, None), largest or {})
    part = target.with_name(f"{target.name}.part")
    found = []
    with reporting(progress) as report, tracing.as_exported(model):
        steps = Steps("export", len(_STEPS), report)
        places = plan(model, embeddings, head)
        names = tracing.names_of_outputs(checking.outputs_of(model, places, "run", given))
        steps.done(1, _STEPS[0])
        others = _xnnpack() if partitioners is None else partitioners
        program = lowered(model, places, given.traceable(), largest, precision, others)
        steps.done(2, _STEPS[1])
        try:
            with part.open("wb") as file:
                program.write_to_file(file)
            steps.done(3, _STEPS[2])
            if run is not None:
                examples = [given, *given.others(largest)]
                found = checking.check(run(part), model, places, examples, names, tolerance)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        steps.done(4, _STEPS[3])
    return Exported(
        path=target,
        data=None,
        model_bytes=target.stat().st_size,
        data_bytes=0,
        **contents(places),
        seconds=time.perf_counter() - began,
        checks=found,
    )


def _checked(path: PathLike, embeddings: Any, head: Any, precision: Any, largest: Any) -> Path:
    """Check the arguments before the work, and that the file can be written; returns its path."""
    check_bits(embeddings, "embeddings", _BITS)
    check_bits(head, "head", _BITS)
    arguments.one_of(precision, "precision", ("fast", "exact"))
    for name, size in (largest or {}).items():
        arguments.positive_int(size, f"largest[{name!r}]")
    target = Path(arguments.path(path))
    if target.suffix != ".pte":
        raise ValueError(f"path is {target}; it must end in .pte, as programs of ExecuTorch do")
    return file_to_write(target)


def _example(example: Example, largest: Mapping[str, int]) -> tuple[Example, dict[str, int]]:
    """The example with those dynamic dimensions alone that have a largest size."""
    sizes = example.sizes()
    for name, most in largest.items():
        if name not in sizes:
            raise ValueError(f"largest names {name!r}; the example has {', '.join(sizes) or 'no such'}")
        if sizes[name] > most:
            raise ValueError(f"largest[{name!r}] is {most}; the example has {sizes[name]}")
        if most < 2:
            raise ValueError(f"largest[{name!r}] is {most}; it must be at least 2, or be left out")
    dynamic = {
        name: {dim: axis for dim, axis in axes.items() if axis in largest} or None
        if isinstance(axes, dict)
        else None
        for name, axes in (example.dynamic or {}).items()
    }
    return type(example)(example.arguments, dynamic if largest else None), dict(largest)


def _xnnpack() -> list[Any]:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    return [XnnpackPartitioner()]


def _loaded(library: PathLike) -> Callable[[Path], Callable[[Example], list[Any]]]:
    """Load the backend; returns what opens a program, which returns what runs it on an example."""
    from executorch.runtime import Runtime

    from ..onnx.inputs import flat

    path = Path(arguments.path(library)).resolve()
    runtime = Runtime.get()
    names = runtime.backend_registry.registered_backend_names
    if _BACKEND not in names:
        ctypes.CDLL(str(path))
        names = runtime.backend_registry.registered_backend_names
    if _BACKEND not in names:
        raise ValueError(
            f"library is {path}, which has no {_BACKEND}; it must be libdiba_executorch, built with the "
            "executorch that is installed here: see docs/deploy.md"
        )

    def opened(program: Path) -> Callable[[Example], list[Any]]:
        try:
            method = runtime.load_program(program).load_method("forward")
        except RuntimeError as error:
            raise ExportError(f"ExecuTorch cannot load the program: {error}; its log says more") from error

        def run(example: Example) -> list[Any]:
            try:
                return list(method.execute([value for _, value in flat(example.arguments)]))
            except RuntimeError as error:
                raise ExportError(
                    f"ExecuTorch cannot run the program on {example.shapes()}: {error}; its log says more"
                ) from error

        return run

    return opened
