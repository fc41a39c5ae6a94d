"""Language models of known shapes and random weights, for runtimes: times do not depend on the values.

diba's side is a folder for onnxruntime-genai whose factors are random bits, llama.cpp's a GGUF file of 16-bit
floats that its own quantizer reads. Nothing is downloaded and nothing solved.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diba.solvers.size import inner_dimension

from ..common.command import needs
from ..common.data import data_folder

__all__ = ["SHAPES", "Shape", "folder", "gguf_file", "step_bytes"]

HEAD_BITS = 2.0  # of the output layer
SPECIAL = ("<unk>", "<s>", "</s>")
POOL = 1 << 24  # random floats that all dense matrices are cut from
BYTE_TOKEN, CONTROL_TOKEN, NORMAL_TOKEN = 6, 3, 1  # kinds of tokens in a GGUF file


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama."""

    hidden: int
    feed: int
    layers: int
    heads: int
    key_heads: int
    vocabulary: int
    tied: bool  # whether the dense model's output layer is its embedding

    @property
    def matrices(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of the dense layers of a block, by the names in a GGUF file."""
        keys = self.hidden // self.heads * self.key_heads
        return {
            "attn_q": (self.hidden, self.hidden),
            "attn_k": (keys, self.hidden),
            "attn_v": (keys, self.hidden),
            "attn_output": (self.hidden, self.hidden),
            "ffn_gate": (self.feed, self.hidden),
            "ffn_up": (self.feed, self.hidden),
            "ffn_down": (self.hidden, self.feed),
        }

    @property
    def pure(self) -> bool:
        """Whether llama.cpp can store every matrix in one type, whose blocks are up to 256 wide."""
        return self.hidden % 256 == self.feed % 256 == 0


SHAPES = {
    "135m": Shape(576, 1536, 30, 9, 3, 49152, tied=True),  # SmolLM2-135M
    "1b": Shape(2048, 8192, 16, 32, 8, 32000, tied=False),  # Llama 3.2 1B with a smaller vocabulary
}


def step_bytes(shape: Shape, bits: float) -> int:
    """Bytes of factors that one step of diba's model reads: every layer and the output layer."""
    sizes = [(m, n, bits) for m, n in shape.matrices.values()] * shape.layers
    sizes.append((shape.vocabulary, shape.hidden, HEAD_BITS))
    return sum((m + n) * inner_dimension(m, n, "bits_per_weight", b) // 8 for m, n, b in sizes)


# ---------------------------------------------------------------- a folder for onnxruntime-genai


def folder(name: str, bits: float) -> Path:
    """The folder of a shape at so many bits a weight; it is kept between runs, with the library of today."""
    from diba.onnx import export_genai, library_path

    path = data_folder() / "shapes" / f"{name}-{bits:g}bit"
    if not path.exists():
        needs("torch", "transformers", "onnx", "onnx_ir", "onnxruntime_genai")
        print(f"making {path}", file=sys.stderr, flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = SHAPES[name]
        model, words = random_model(shape, bits), tokenizer(shape.vocabulary)
        export_genai(model, path, tokenizer=words, embeddings=4, check=False, progress=False)
    shutil.copyfile(library_path(), path / library_path().name)
    return path


def random_model(shape: Shape, bits: float) -> Any:
    """A Llama of transformers with layers of random bits, whose products are as large as dense ones."""
    import torch
    from torch import nn
    from transformers import LlamaConfig, LlamaForCausalLM

    import diba.torch

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.feed,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        vocab_size=shape.vocabulary,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):  # dense weights never take memory
        model = LlamaForCausalLM(config)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            m, n = module.out_features, module.in_features
            k = inner_dimension(m, n, "bits_per_weight", HEAD_BITS if path == "lm_head" else bits)
            model.set_submodule(path, diba.torch.DibaLinear(n, m, k, bias=False, alphabet="sign"))
        elif isinstance(module, nn.Embedding):
            model.set_submodule(path, nn.Embedding(shape.vocabulary, shape.hidden))
        elif path.endswith("norm"):
            module.weight = nn.Parameter(torch.ones(shape.hidden))
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    return model.eval()


def tokenizer(vocabulary: int) -> Any:
    """One token for each byte, and as many others as it takes, which no text has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL, *letters, *fillers(vocabulary)]
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(SPECIAL))
    names = dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=made, **names)


def fillers(vocabulary: int) -> Iterator[str]:
    return (f"<{i}>" for i in range(len(SPECIAL) + 256, vocabulary))


# ---------------------------------------------------------------- a file for llama.cpp


def gguf_file(name: str) -> Path:
    """The GGUF file of a shape, of 16-bit floats; it is kept between runs."""
    path = data_folder() / "shapes" / f"{name}-F16.gguf"
    if not path.exists():
        needs("gguf")
        print(f"making {path}", file=sys.stderr, flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        write_gguf(SHAPES[name], part)
        part.replace(path)
    return path


def write_gguf(shape: Shape, path: Path) -> None:
    import gguf

    out = gguf.GGUFWriter(path, "llama")
    out.add_context_length(2048)
    out.add_embedding_length(shape.hidden)
    out.add_block_count(shape.layers)
    out.add_feed_forward_length(shape.feed)
    out.add_head_count(shape.heads)
    out.add_head_count_kv(shape.key_heads)
    out.add_rope_dimension_count(shape.hidden // shape.heads)
    out.add_layer_norm_rms_eps(1e-6)
    out.add_vocab_size(shape.vocabulary)
    out.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    others = list(fillers(shape.vocabulary))
    out.add_tokenizer_model("llama")
    out.add_token_list([*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *others])
    out.add_token_scores([0.0] * shape.vocabulary)
    kinds = [CONTROL_TOKEN] * len(SPECIAL) + [BYTE_TOKEN] * 256
    out.add_token_types(kinds + [NORMAL_TOKEN] * len(others))
    arrays = dict(tensors(shape))
    for name, array in arrays.items():
        out.add_tensor_info(name, array.shape, array.dtype, array.nbytes)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_ti_data_to_file()
    for array in arrays.values():
        out.write_tensor_data(array)
    out.close()


def tensors(shape: Shape) -> Iterator[tuple[str, Any]]:
    """Norms of ones and dense matrices, which share their memory."""
    pool = np.random.default_rng(0).standard_normal(POOL, np.float32)
    kept: dict[tuple[int, int], Any] = {}

    def dense(m: int, n: int) -> Any:
        if (m, n) not in kept:
            kept[m, n] = np.resize(pool * np.float32(n**-0.5), (m, n)).astype(np.float16)
        return kept[m, n]

    ones = np.ones(shape.hidden, np.float32)
    yield "token_embd.weight", dense(shape.vocabulary, shape.hidden)
    yield "output_norm.weight", ones
    if not shape.tied:
        yield "output.weight", dense(shape.vocabulary, shape.hidden)
    for number in range(shape.layers):
        for norm in ("attn_norm", "ffn_norm"):
            yield f"blk.{number}.{norm}.weight", ones
        for name, size in shape.matrices.items():
            yield f"blk.{number}.{name}.weight", dense(*size)
