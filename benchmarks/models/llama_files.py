"""Models in llama.cpp's formats: GGUF files, quantized by llama.cpp, and its types on any matrix."""

from __future__ import annotations

import ctypes
import functools
import math
import os
import sys
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..common import BenchmarkError
from ..common.data import data_folder

__all__ = ["NAMES", "Importance", "importances", "quantized", "rounded_to", "type_bits"]

Importance = Mapping[str, NDArray[np.float32]]  # name of a matrix -> mean square of each of its inputs

NAMES = {  # of a layer, in transformers and in the file
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
BLOCK = 256  # weights that most types pack together


def quantized(
    source: Path, name: str, *, pure: bool = False, floats: str = "F16", importance: Importance | None = None
) -> Path:
    """A GGUF file as a type of llama.cpp, kept between runs.

    Args:
        source: The file.
        name: The type.
        pure: Whether every matrix is of this type, also those that llama.cpp would give more bits.
        floats: The type by way of which a file that is quantized already goes.
        importance: Of the inputs of matrices ("imatrix").
    """
    import llama_cpp

    kinds = {key.partition("FTYPE_")[2].partition("_")[2]: key for key in dir(llama_cpp) if "_FTYPE_" in key}
    if name not in kinds:
        raise BenchmarkError(f"llama.cpp has no type {name}; it has {', '.join(sorted(kinds))}")
    stem = source.stem.removesuffix(f"-{floats}")
    marks = "-pure" * pure
    if importance:
        marks += f"-imatrix-{zlib.crc32(b''.join(map(bytes, importance.values()))):08x}"
    path = data_folder() / "gguf" / f"{stem}-{name}{marks}.gguf"
    if not path.exists():
        print(f"making {path}", file=sys.stderr, flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        if name != floats and not source.stem.endswith(f"-{floats}"):
            source = quantized(source, floats, floats=floats)
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = getattr(llama_cpp, kinds[name])
        settings.allow_requantize, settings.pure = True, pure
        kept = imatrix(importance or {})
        if importance:
            settings.imatrix = kept
        silent = llama_cpp.llama_log_callback(lambda *_: None)  # it prints a line for each tensor
        llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
        if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(part), settings):
            raise BenchmarkError(f"llama.cpp cannot make {name} of {source}")
        part.replace(path)
    return path


def imatrix(importance: Importance) -> Any:
    """The same for llama.cpp: an array whose last entry has no name. It does not own the numbers."""
    import llama_cpp

    made = (llama_cpp.llama_model_imatrix_data * (len(importance) + 1))()
    for entry, (name, values) in zip(made, importance.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return made


# ---------------------------------------------------------------- types on any matrix


@functools.cache
def ggml() -> Any:
    """The library of the types, which llama.cpp brings."""
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    found = next(folder.glob("*ggml-base.*"), None)
    if found is None:
        raise BenchmarkError(f"{folder} has no library ggml-base; install llama-cpp-python")
    library = ctypes.CDLL(str(found))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    sizes = [ctypes.c_int64] * 3
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *sizes, ctypes.c_void_p
    ]  # fmt: skip
    return library


def type_bits(name: str) -> float:
    """Bits of a weight in a type."""
    import gguf

    weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    return 8 * size / weights


def rounded_to(
    name: str, matrix: NDArray[np.float32], importance: NDArray[np.float32]
) -> tuple[NDArray[np.float32], int]:
    """A matrix as a type holds it, and the bytes that this takes.

    Blocks run on from row to row where rows are no whole number of blocks, which llama.cpp itself does not
    read: it gives such matrices another type.

    Args:
        name: The type.
        matrix: Shape (m, n).
        importance: Of its inputs, shape (n,).

    Raises:
        BenchmarkError: the whole matrix is no whole number of blocks.
    """
    import gguf

    kind = gguf.GGMLQuantizationType[name]
    m, n = matrix.shape
    together = math.lcm(n, BLOCK) // n  # rows
    if m % together:
        raise BenchmarkError(f"a matrix of {m} x {n} is no whole number of blocks of {together} rows")
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    source = np.ascontiguousarray(matrix, np.float32)
    weighed = np.tile(importance.astype(np.float32), together)
    packed = np.empty(m * n // weights * size, np.uint8)
    written = ggml().ggml_quantize_chunk(
        kind.value, source.ctypes.data, packed.ctypes.data, 0, m // together, n * together,
        weighed.ctypes.data,
    )  # fmt: skip
    assert written == packed.size, (name, written, packed.size)
    return gguf.quants.dequantize(packed, kind).reshape(m, n), packed.size


def importances(model: Any, batches: Iterable[Mapping[str, Any]]) -> dict[str, NDArray[np.float32]]:
    """The mean square of the inputs of every matrix of a Llama, by its name in the file."""
    import torch

    sums: dict[str, Any] = {}
    count = 0

    def hook(name: str, module: Any, inputs: Any) -> None:
        sums[name] = sums.get(name, 0) + inputs[0].double().flatten(0, -2).square().sum(0)

    hooks = [
        layer.get_submodule(ours).register_forward_pre_hook(
            functools.partial(hook, f"blk.{number}.{theirs}.weight")
        )
        for number, layer in enumerate(model.model.layers)
        for ours, theirs in NAMES.items()
    ]
    try:
        with torch.no_grad():
            for batch in batches:
                model.model(**batch, use_cache=False)  # without the output layer
                count += batch["input_ids"].numel()
    finally:
        for each in hooks:
            each.remove()
    return {name: (total / count).float().numpy() for name, total in sums.items()}
