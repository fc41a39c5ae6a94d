"""Whisper as two models for onnxruntime: one hears, the other writes a token at a time. For transcribe.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import gelu

import diba.onnx

MOST = 128  # tokens of an answer


class Encoder(nn.Module):
    """Log-mel features (1, mels, frames) -> what each decoder layer attends to: keys, then values."""

    def __init__(self, whisper: Any) -> None:
        super().__init__()
        self.whisper = whisper.model

    def forward(self, features: torch.Tensor) -> list[torch.Tensor]:
        """Keys (heads, size, frames / 2) and values (heads, frames / 2, size), layer by layer."""
        heard = self.whisper.encoder(features).last_hidden_state
        made = []
        for attention in (layer.encoder_attn for layer in self.whisper.decoder.layers):
            made.append(by_head(attention.k_proj(heard), attention).transpose(1, 2))
            made.append(by_head(attention.v_proj(heard), attention))
        return made


class Decoder(nn.Module):
    """One token (1, 1) and all before it -> scores of the next one."""

    def __init__(self, whisper: Any) -> None:
        super().__init__()
        self.whisper = whisper

    def get_output_embeddings(self) -> nn.Module:
        """The layer that ``diba.onnx.export`` stores as ``head`` says."""
        return self.whisper.proj_out

    def forward(
        self, token: torch.Tensor, position: torch.Tensor, past: torch.Tensor, heard: list[torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores, and ``past`` (layers, 2, heads, tokens, size) with the keys and values of this token."""
        decoder = self.whisper.model.decoder
        x = decoder.embed_tokens(token) + decoder.embed_positions.weight[position]
        grown = []
        for number, layer in enumerate(decoder.layers):
            y, attention = layer.self_attn_layer_norm(x), layer.self_attn
            new = torch.stack([by_head(make(y), attention) for make in (attention.k_proj, attention.v_proj)])
            grown.append(torch.cat([past[number], new], 2))
            x = x + attend(attention, y, grown[-1][0].transpose(1, 2), grown[-1][1])
            y = layer.encoder_attn_layer_norm(x)
            x = x + attend(layer.encoder_attn, y, heard[2 * number], heard[2 * number + 1])
            x = x + layer.fc2(gelu(layer.fc1(layer.final_layer_norm(x))))
        return self.whisper.proj_out(decoder.layer_norm(x))[0, 0], torch.stack(grown)


def by_head(x: torch.Tensor, attention: Any) -> torch.Tensor:
    """(1, tokens, width) -> (heads, tokens, size)."""
    return x[0].unflatten(1, (attention.num_heads, attention.head_dim)).transpose(0, 1)


def attend(attention: Any, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """What one token gets from those it attends to."""
    queries = by_head(attention.q_proj(x), attention) * attention.head_dim**-0.5
    found = torch.softmax(queries @ keys, -1) @ values
    return attention.out_proj(found.transpose(0, 1).flatten(1)[None])


def export(whisper: Any, out: Path, **options: Any) -> list[diba.onnx.Exported]:
    """Write encoder.onnx and decoder.onnx; ``options`` are those of ``diba.onnx.export``."""
    shape = whisper.config
    size = shape.d_model // shape.decoder_attention_heads
    features = torch.randn(1, shape.num_mel_bins, 2 * shape.max_source_positions)
    names = [f"heard.{number}" for number in range(2 * shape.decoder_layers)]
    encoder = diba.onnx.export(
        Encoder(whisper), features, out / "encoder.onnx", dynamic=False, output_names=names, **options
    )
    token, position = torch.tensor([[shape.decoder_start_token_id]]), torch.tensor([[4]])
    with torch.no_grad():
        heard, decode = Encoder(whisper)(features), Decoder(whisper)
        past = torch.zeros(shape.decoder_layers, 2, shape.decoder_attention_heads, 0, size)
        for place in range(4):
            past = decode(token, torch.tensor([[place]]), past, heard)[1]
    decoder = diba.onnx.export(
        decode,
        {"token": token, "position": position, "past": past, "heard": heard},
        out / "decoder.onnx",
        dynamic_shapes={"past": {3: "length"}, "heard": [{}] * len(heard)},
        input_names=["token", "position", "past", *names],
        output_names=["scores", "grown"],
        **options,
    )
    return [encoder, decoder]


class Transcriber:
    """The exported models in onnxruntime.

    Args:
        out: The folder.
        begin: Tokens that come before each answer.
        end: The token that ends it.
    """

    def __init__(self, out: Path, begin: list[int], end: int, **options: Any) -> None:
        self.encoder = diba.onnx.session(out / "encoder.onnx", **options)
        self.decoder = diba.onnx.session(out / "decoder.onnx", **options)
        self.begin, self.end = begin, end

    def __call__(self, features: np.ndarray) -> list[int]:
        """The likeliest token each time, for features (1, mels, frames)."""
        heard = self.encoder.run(None, {"features": features})
        fixed = {f"heard.{number}": value for number, value in enumerate(heard)}
        shape = next(x.shape for x in self.decoder.get_inputs() if x.name == "past")
        past = np.zeros([size if isinstance(size, int) else 0 for size in shape], np.float32)
        tokens = list(self.begin)
        for place in range(MOST):
            given = {"token": np.array([[tokens[place]]]), "position": np.array([[place]]), "past": past}
            scores, past = self.decoder.run(None, given | fixed)
            if place + 1 == len(tokens):
                tokens.append(int(scores.argmax()))
            if tokens[-1] == self.end:
                break
        return [token for token in tokens[len(self.begin) :] if token != self.end]
