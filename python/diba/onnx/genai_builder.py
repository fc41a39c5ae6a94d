"""The graph of a language model from onnxruntime-genai's own model builder, without its dense weights.

The builder walks over a model of transformers and writes nodes for attention, cache and norms. Here it gets a
skeleton: the same modules and tensors, but weights on the meta device for the layers that become nodes of
their own. Where it would multiply by such a weight it leaves a placeholder with the number of the layer and
the rows that it asked for, since it cuts stacked projections apart.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import importlib.util
import io
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .places import DOMAIN, EmbeddingPlace, TableRows
from .results import ExportError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import ModuleType

    import onnx_ir

    from .places import Place

__all__ = ["Skeleton", "build"]

_MODULES = (
    "builder_config",
    "builders",
    "kv_cache_variant",
    "loaders",
    "quantization",
    "split_cpu_embedding",
)
"""Top-level names under which the builder imports its own parts."""

_OPTIONS = {
    "fuse_qkv": False,  # every factored layer has factors of its own
    "prune_lm_head": True,  # scores of the last token alone: all that sampling needs
    "shared_embeddings": False,  # tables of equal bytes are stored once anyway
}

_kept: dict[str, ModuleType] = {}  # parts of the builder, between two uses


class Skeleton:
    """A model whose planned layers are dense again, with weights that have a shape but no values.

    All other tensors are those of the model itself.

    Args:
        model: A model of transformers.
        places: Its layers that become nodes of their own.
    """

    def __init__(self, model: nn.Module, places: Sequence[Place]) -> None:
        memo: dict[int, Any] = {id(x): x for x in (*model.parameters(), *model.buffers())}
        self._numbers: dict[int, int] = {}
        for place in places:
            stand_in = memo[id(place.module)] = _stand_in(place)
            self._numbers[_storage(stand_in.weight)] = place.number
        self.model = copy.deepcopy(model, memo)

    def number(self, weight: torch.Tensor) -> int | None:
        """The place whose weight this is, or is a part of; None: it has values of its own."""
        return self._numbers.get(_storage(weight)) if weight.is_meta else None


def _stand_in(place: Place) -> Any:
    # Biases belong to the nodes of the layers.
    if isinstance(place, (EmbeddingPlace, TableRows)):
        sizes = place.module.num_embeddings, place.module.embedding_dim
        return nn.Embedding(*sizes, device="meta").requires_grad_(False)
    sizes = place.module.in_features, place.module.out_features
    return nn.Linear(*sizes, bias=False, device="meta").requires_grad_(False)


def _storage(weight: torch.Tensor) -> int:
    return int(weight.untyped_storage()._cdata)


def build(skeleton: Skeleton, source: Path, out: Path) -> onnx_ir.Model:
    """Let the builder make the graph of a skeleton, and in ``out`` the files beside it.

    Args:
        skeleton: The model.
        source: Folder with its configuration and tokenizer.
        out: The folder to write to: ``genai_config.json`` and the tokenizer's files.

    Returns:
        The graph, with placeholders for the layers of the skeleton that have no values.

    Raises:
        ExportError: The builder does not know the architecture.
    """
    made: list[onnx_ir.Model] = []
    said = io.StringIO()
    with _importable(), contextlib.redirect_stdout(said), _intercepted(skeleton, made) as builder:
        options = builder.parse_extra_options(
            None, str(source), str(out), "fp32", "cpu", str(out), [f"{k}={v}" for k, v in _OPTIONS.items()]
        )
        try:
            builder.create_model(None, str(source), str(out), "fp32", "cpu", str(out), **options)
        except NotImplementedError as error:
            raise ExportError(_refused(skeleton.model, None)) from error
        except Exception as error:  # whatever the code for one architecture does not expect
            raise ExportError(_refused(skeleton.model, error)) from error
    if len(made) != 1:
        raise ExportError(_refused(skeleton.model, None))
    return made[0]


def _refused(model: nn.Module, error: Exception | None) -> str:
    import onnxruntime_genai

    told = f": {type(error).__name__}: {' '.join(str(error).split())}" if error else ""
    return (
        f"the model builder of onnxruntime-genai {onnxruntime_genai.__version__} cannot make a graph of "
        f"{type(model).__name__}{told}; diba.onnx.export exports models of any architecture, without a cache"
    )


@contextlib.contextmanager
def _intercepted(skeleton: Skeleton, made: list[onnx_ir.Model]) -> Iterator[Any]:
    """Context manager: gives the builder; it reads the skeleton, and keeps graphs in ``made``."""
    builder: Any = importlib.import_module("onnxruntime_genai.models.builder")
    original = builder.Model.make_model

    def make_model(self: Any, source: str) -> None:
        hooks = _Hooks(self, skeleton)
        self.load_weights = lambda _: skeleton.model
        self.make_matmul, self.make_embedding_lookup = hooks.make_matmul, hooks.make_embedding_lookup
        self.save_model = lambda _: made.append(self.model)
        original(self, source)

    builder.Model.make_model = make_model
    try:
        yield builder
    finally:
        builder.Model.make_model = original


class _Hooks:
    """What one model of the builder does in place of its own methods of the same names."""

    def __init__(self, model: Any, skeleton: Skeleton) -> None:
        self._model, self._skeleton = model, skeleton
        self._own = model.make_matmul, model.make_embedding_lookup

    def make_matmul(self, matmul: Any, name: str, root_input: str, **facts: Any) -> Any:
        """Multiply ``root_input`` by a weight; returns the name of the node."""
        number = self._skeleton.number(matmul.weight)
        if number is None:
            return self._own[0](matmul, name, root_input, **facts)
        rows, columns = matmul.weight.shape
        model = self._model
        y = "logits" if facts.get("logits") else f"{name}/output_0"
        about = {"number": number, "first": matmul.weight.storage_offset() // columns, "rows": rows}
        model.make_node("Place", [root_input], [y], name=name, domain=DOMAIN, **about)
        shape = model.make_hidden_state_shape(seq_dim=facts.get("seq_dim", "sequence_length"), last_dim=rows)
        model.make_value(y, model.io_dtype, shape=shape)
        return name

    def make_embedding_lookup(self, weight: Any, name: str, head: Any) -> Any:
        """Look up rows of a weight; returns the name of the result."""
        number = self._skeleton.number(weight)
        if number is None:
            return self._own[1](weight, name, head)
        model, y = self._model, f"{name}/rows"
        ids = model.input_names["input_ids"]
        model.make_node("Place", [ids], [y], name=name, domain=DOMAIN, number=number)
        return y


@contextlib.contextmanager
def _importable() -> Iterator[None]:
    """Context manager: the builder's parts can be imported by the names it uses, and nothing stays of them.

    They are plain names such as ``builders``, which other modules of a program may have, too.
    """
    found = importlib.util.find_spec("onnxruntime_genai")
    assert found is not None
    assert found.origin is not None
    folder = str(Path(found.origin).parent / "models")
    path, others = list(sys.path), _named(_MODULES)
    for name in others:
        del sys.modules[name]
    sys.modules.update(_kept)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        _kept.update(_named(_MODULES))
        for name in _kept:
            sys.modules.pop(name, None)
        sys.modules.update(others)
        sys.path[:] = path


def _named(tops: Sequence[str]) -> dict[str, ModuleType]:
    """Modules that are imported already, by name."""
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in tops}
