"""``diba.onnx.export_genai``: from a compressed language model to a folder that onnxruntime-genai runs."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .._internal import check as arguments
from .._internal.disk import check_folder_of
from ..progress import Steps, reporting
from .exporting import describe
from .library import library_path
from .results import Exported, contents

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._internal.disk import PathLike
    from ..progress import ProgressOption
    from .tables import TableBits

__all__ = ["CONFIG", "GRAPH", "export_genai"]

CONFIG, GRAPH = "genai_config.json", "model.onnx"

_BITS = (16, 8, 4)
_NEEDED = ("torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "onnxruntime_genai")
_STEPS = ("load", "plan", "build", "pack", "write", "check")
_HEAD_BITS = 2.0  # of an output layer that is factored here
_LENGTH = 4096
"""Most tokens of a conversation by default: onnxruntime-genai takes memory for all of them at its start."""


def export_genai(
    model: Any,
    out: PathLike,
    *,
    tokenizer: Any = None,
    embeddings: TableBits = 8,
    head: TableBits | Literal["factored"] = 8,
    precision: Literal["fast", "exact"] = "fast",
    threads: int | None = None,
    check: bool = True,
    tolerance: float | None = None,
    progress: ProgressOption = True,
) -> Exported:
    """Export a compressed language model to a folder that onnxruntime-genai runs on the CPU.

    The graph is that of onnxruntime-genai's own model builder, with its attention and cache of keys and
    values; every factored layer is one node of diba's operators, whose library is copied into the folder. The
    folder also has the tokenizer, the chat template and ``genai_config.json``. ``diba chat`` talks to it, and
    so does any program that uses onnxruntime-genai, in any language: it needs nothing of diba's.

    Args:
        model: A folder that ``save_pretrained`` wrote, or a model of transformers in memory: a causal
            language model of an architecture that the builder knows, such as Llama, Mistral, Qwen, Phi or
            Gemma. It is not changed.
        out: The folder to write: a new or an empty one, or an earlier export, which is replaced.
        tokenizer: The model's tokenizer, or its folder; None: it is read from the folder of ``model``.
        embeddings: Bits of a dense embedding, 16, 8 or 4 (:class:`diba.torch.CodedLayer`).
        head: Bits of a dense output layer, likewise: 8 lose nothing that can be measured, 4 a tenth of the
            perplexity of SmolLM2-135M; ``"factored"``: it is factored at 2 bits now, without data, which
            takes a minute or more. A compressed output layer stays as it is.
        precision: ``"fast"`` products quantize the vectors they multiply (45 dB), ``"exact"`` ones do not.
        threads: Threads that the folder's configuration asks for; None: onnxruntime's choice, one for each
            core.
        check: Whether to run the exported model on some tokens, all at once and one by one, and to compare
            its scores with PyTorch's.
        tolerance: Relative error of the scores that the check allows; None: twice that of PyTorch's fast
            products, and some for float32 sums.
        progress: True shows a bar, False nothing; a callable gets a :class:`diba.Progress` after each step.

    Returns:
        Sizes, layers, and what the check found; ``path`` is the graph in the folder.

    Raises:
        ExportError: The builder does not know the architecture or leaves a compressed layer out, or the
            export computes something else; nothing is written.
        ImportError: A package is missing; ``python -m pip install 'diba[genai,hf]'`` installs all.
        OSError: The folder is not empty, is no folder or is not writable, there is no model in ``model``, or
            diba's library is missing.
        TypeError: An argument is of a wrong type.
        ValueError: An argument is out of range, the model has no tokenizer, or a layer's factors are not
            finite.

    Example:
        >>> diba.onnx.export_genai("smollm2-2bit", "smollm2-genai")  # doctest: +SKIP
    """
    began = time.perf_counter()
    target = _checked(out, embeddings, head, precision, threads)
    for name in _NEEDED:
        if importlib.util.find_spec(name) is None:
            raise ImportError(
                f"diba.onnx.export_genai needs {name}; use python -m pip install 'diba[genai,hf]'"
            )
    library = library_path()
    from . import files, genai_builder, genai_check, genai_graph, genai_source, plan, tracing

    with reporting(progress) as report:
        steps = Steps("export", len(_STEPS), report)
        source = genai_source.load(model, tokenizer)
        steps.done(1, _STEPS[0])
        with tracing.as_exported(source.model), _staged(target) as stage:
            factored = genai_source.factored_head(source.model, _HEAD_BITS) if head == "factored" else None
            with factored or contextlib.nullcontext():
                places = plan.plan(source.model, embeddings, 16 if head == "factored" else head)
                steps.done(2, _STEPS[1])
                skeleton = genai_builder.Skeleton(source.model, places)
                with tempfile.TemporaryDirectory() as described:
                    source.describe(Path(described))
                    graph = genai_builder.build(skeleton, Path(described), stage)
                steps.done(3, _STEPS[2])
                genai_graph.fill(graph, places, precision)
                describe(graph, source.model, places, {"precision": precision})
                steps.done(4, _STEPS[3])
                files.write(graph, stage / GRAPH)
                shutil.copyfile(library, stage / library.name)
                _configure(stage / CONFIG, library.name, threads)
                steps.done(5, _STEPS[4])
                found = genai_check.check(stage, source, places, tolerance) if check else []
                sizes = [path.stat().st_size for path in (stage / GRAPH, files.data_file(stage / GRAPH))]
                _publish(stage, target)
                steps.done(6, _STEPS[5])
    return Exported(
        path=target / GRAPH,
        data=files.data_file(target / GRAPH),
        model_bytes=sizes[0],
        data_bytes=sizes[1],
        **contents(places),
        seconds=time.perf_counter() - began,
        checks=found,
    )


def _checked(out: PathLike, embeddings: Any, head: Any, precision: Any, threads: Any) -> Path:
    """Check the arguments before the work, and that the folder can be written; returns its path."""
    for name, bits, more in (("embeddings", embeddings, ()), ("head", head, ("factored",))):
        if bits not in (*_BITS, *more) or isinstance(bits, bool):
            known = " or ".join(map(repr, (*_BITS, *more)))
            raise ValueError(f"{name} is {bits!r}; it must be {known}")
    arguments.one_of(precision, "precision", ("fast", "exact"))
    if threads is not None:
        arguments.positive_int(threads, "threads")
    target = Path(arguments.path(out))
    check_folder_of(target)
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "it is a file; name a folder", str(target))
    if target.exists() and any(target.iterdir()) and not (target / CONFIG).is_file():
        problem = "the folder is not empty and no earlier export; name a new one"
        raise FileExistsError(errno.EEXIST, problem, str(target))
    return target


def _configure(path: Path, library: str, threads: int | None) -> None:
    """Add to genai_config.json what diba's operators need."""
    from .runtime import SLOW

    config = json.loads(path.read_text(encoding="utf-8"))
    options = config["model"]["decoder"]["session_options"]
    options["custom_ops_library"] = library
    options["optimization.disable_specified_optimizers"] = ";".join(SLOW)
    if threads is not None:
        options["intra_op_num_threads"] = threads
    config["search"]["max_length"] = min(config["search"]["max_length"], _LENGTH)
    path.write_text(json.dumps(config, indent=4) + "\n", encoding="utf-8")


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """Context manager: a new folder beside the target, which is removed at the end."""
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as outer:
        stage = Path(outer) / "export"
        stage.mkdir()  # with the mode that the umask gives, unlike the one around it
        yield stage


def _publish(stage: Path, target: Path) -> None:
    """Move a whole folder to its place; what was there goes to the temporary folder that is removed."""
    if target.exists():
        target.rename(stage.parent / "before")
    stage.rename(target)
