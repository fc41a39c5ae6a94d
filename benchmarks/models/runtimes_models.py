"""The models of the runtimes benchmark: exported by diba, and quantized by onnxruntime's own tools."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import diba.onnx
import diba.torch

from ..common import BenchmarkError
from ..common.tables import plural
from .speed_work import randomize

__all__ = ["contestants"]

BITS = (1, 2)
PIXELS = 224  # a side of an image, as the network was trained with
FIRST_BLOCKS = (r"re:_blocks\.[0-3]\..*",)  # half a percent of the weights, most positions: dense
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

About = dict[str, Any]
Export = Callable[[Any, Path, str, dict[str, Any]], list[str]]


def contestants(part: str, folder: Path, random: bool = False) -> list[About]:
    """The contestants of a part: name, folder, files, and whether fusions are on (None: a model of diba's).

    Models are made where the folder has none, with random weights if that is asked for.
    """
    found = folder / "contestants.json"
    if not found.exists():
        folder.mkdir(parents=True, exist_ok=True)
        about = list(make(part, folder, random))
        found.write_text(json.dumps(about), encoding="utf-8")
    return [
        {**facts, "folder": str(folder.resolve())} for facts in json.loads(found.read_text(encoding="utf-8"))
    ]


def make(part: str, folder: Path, random: bool) -> Iterator[About]:
    load, untrained, export, inputs, config = PARTS[part]
    load = untrained if random else load
    np.savez(folder / "inputs.npz", **inputs())
    dense = export(load(), folder, "float32", {"embeddings": None, "head": None})
    kinds = {"float32": dense, "int8, dynamic": quantized(folder, dense, "dynamic")}
    if part == "efficientnet":
        kinds["int8, static"] = quantized(folder, dense, "static")
    for name, files in kinds.items():
        yield {"contestant": name, "files": files, "fusions": True}
        yield {"contestant": f"{name}, fewer fusions", "files": files, "fusions": False}
    for bits in BITS:
        name = f"diba {plural(bits, 'bit')}"
        print(f"{part}: {name}", file=sys.stderr, flush=True)
        model = load()
        randomize(model, diba.torch.Config(bits_per_weight=bits, **config))
        files = export(model, folder, f"diba{bits}", {"embeddings": 8, "head": 8})
        yield {"contestant": name, "files": files, "fusions": None}


# ---------------------------------------------------------------- int8


def quantized(folder: Path, files: list[str], kind: str) -> list[str]:
    """The same files in int8; weights have a scale for each output."""
    from onnxruntime.quantization import quantize_dynamic, quantize_static

    logging.getLogger().setLevel(
        logging.ERROR
    )  # it advises to optimize first, which fuses what it should not
    made = []
    for name in files:
        target = f"{kind}-{name}"
        if kind == "dynamic":
            quantize_dynamic(folder / name, folder / target, per_channel=True)
        else:
            quantize_static(folder / name, folder / target, Images(), per_channel=True)
        made.append(target)
    return made


class Images:
    """Random images, for ranges of activations: time does not depend on these."""

    def __init__(self) -> None:
        rng = np.random.default_rng(1)
        self._left = [rng.standard_normal((1, 3, PIXELS, PIXELS), np.float32) for _ in range(2)]

    def get_next(self) -> dict[str, Any] | None:
        return {"images": self._left.pop()} if self._left else None


# ---------------------------------------------------------------- the models


def load_minilm() -> Any:
    from .text import load_minilm

    return load_minilm()


def untrained_minilm() -> Any:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536}
    return BertModel(BertConfig(**sizes), add_pooling_layer=False).eval()


def load_whisper() -> Any:
    from . import speech

    return speech.load()


def untrained_whisper() -> Any:
    from . import speech

    return speech.untrained()


def load_efficientnet() -> Any:
    from ..common.weights import data_file
    from . import vision

    model = untrained_efficientnet()
    model.load_state_dict(torch.load(data_file(*vision.WEIGHTS), map_location="cpu", weights_only=True))
    return model


def untrained_efficientnet() -> Any:
    from . import vision

    return vision.EfficientNetLite0().eval()


def one_file(example: Callable[[], dict[str, Any]]) -> Export:
    def export(model: Any, folder: Path, name: str, settings: dict[str, Any]) -> list[str]:
        diba.onnx.export(model, example(), folder / f"{name}.onnx", progress=False, **settings)
        return [f"{name}.onnx"]

    return export


def whisper_files(model: Any, folder: Path, name: str, settings: dict[str, Any]) -> list[str]:
    """Encoder and decoder, as examples/transcribe.py exports them."""
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))
    try:
        from whisper_parts import export
    except ImportError as error:
        raise BenchmarkError(f"{EXAMPLES} has no whisper_parts.py: {error}") from None
    made = []
    export(model, folder, progress=False, tolerance=0.1, **settings)  # random factors tell nothing of quality
    for part in ("encoder", "decoder"):
        made.append(f"{name}-{part}.onnx")
        rename(folder / f"{part}.onnx", made[-1])
    return made


def rename(path: Path, name: str) -> None:
    """Rename a model and its file of tensors, which it names."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = f"{name}.data"
    onnx.save(model, path.with_name(name))
    path.with_name(f"{path.name}.data").rename(path.with_name(f"{name}.data"))
    path.unlink()


def ids(batch: int, length: int) -> dict[str, Any]:
    tokens = np.random.default_rng(0).integers(1000, 30_000, (batch, length))
    return {"input_ids": tokens, "attention_mask": np.ones_like(tokens)}


def pictures(batch: int) -> dict[str, Any]:
    return {"images": np.random.default_rng(0).standard_normal((batch, 3, PIXELS, PIXELS), np.float32)}


def tensors(arrays: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def two(one: dict[str, Any], many: dict[str, Any]) -> dict[str, Any]:
    return {
        f"{name}.{key}": value for name, feed in (("one", one), ("many", many)) for key, value in feed.items()
    }


def sounds() -> dict[str, Any]:
    features = np.random.default_rng(0).standard_normal((1, 80, 3000), np.float32)
    return {
        "features": features,
        "past": np.zeros((4, 2, 6, 0, 64), np.float32),
        "token": np.array([[50257]]),
    }


# Loading, the same with random weights, exporting, inputs of samples, settings of diba.torch.Config.
Load = Callable[[], Any]
PARTS: dict[str, tuple[Load, Load, Export, Callable[[], dict[str, Any]], dict[str, Any]]] = {
    "minilm": (
        load_minilm,
        untrained_minilm,
        one_file(lambda: tensors(ids(2, 20))),
        lambda: two(ids(1, 18), ids(32, 39)),
        {},
    ),
    "whisper": (load_whisper, untrained_whisper, whisper_files, sounds, {"convolutions": False}),
    "efficientnet": (
        load_efficientnet,
        untrained_efficientnet,
        one_file(lambda: tensors(pictures(2))),
        lambda: two(pictures(1), pictures(8)),
        {"skip": FIRST_BLOCKS},
    ),
}
