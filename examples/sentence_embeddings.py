"""Compress a model of sentence embeddings, export it, and embed with onnxruntime; embed.c runs the same file.

python examples/sentence_embeddings.py OUT "How is the weather?" "It rains." "I like tea."
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModel, AutoTokenizer

import diba.onnx
import diba.torch

SENTENCES = ("A cat sits outside.", "A kitten is out on the step.", "The new train is fast.")


def embed(session: Any, tokenizer: Any, sentences: list[str]) -> np.ndarray:
    """(sentences, width), each row of length 1: the mean over tokens, without padding."""
    given = dict(tokenizer(sentences, padding=True, truncation=True, max_length=256, return_tensors="np"))
    (states,) = session.run(["last_hidden_state"], {name: x.astype(np.int64) for name, x in given.items()})
    mask = given["attention_mask"][:, :, None]
    means = (states * mask).sum(1) / mask.sum(1)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = arguments.add_argument
    add("out", type=Path, help="folder for the exported model")
    add("sentences", nargs="*", default=SENTENCES)
    add("--model", default="sentence-transformers/all-MiniLM-L6-v2", help="folder or name on the Hub")
    add("--bits", type=float, default=2, help="bits per weight")
    add("--effort", default="normal", choices=("fast", "normal", "best"))
    add("--small", action="store_true", help="only the model's first layer, in seconds")
    chosen = arguments.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(chosen.model)
    model = AutoModel.from_pretrained(chosen.model, add_pooling_layer=False).eval()
    if chosen.small:
        model.encoder.layer = model.encoder.layer[:1]
    effort = "fast" if chosen.small else chosen.effort
    model = diba.torch.convert(model, bits_per_weight=chosen.bits, effort=effort)

    chosen.out.mkdir(parents=True, exist_ok=True)
    sentences = list(chosen.sentences)
    example = tokenizer(sentences, padding=True, return_tensors="pt")
    done = diba.onnx.export(model, example, chosen.out / "model.onnx")
    tokenizer.save_pretrained(chosen.out)
    model.config.save_pretrained(chosen.out)
    print(f"{done.path}: {(done.model_bytes + done.data_bytes) / 1e6:.1f} MB")

    session = diba.onnx.session(done.path)
    embed(session, tokenizer, sentences)  # the first call takes longer
    start = time.perf_counter()
    vectors = embed(session, tokenizer, sentences)
    print(f"{1000 * (time.perf_counter() - start):.1f} ms")
    for sentence, row in zip(sentences, vectors @ vectors.T, strict=True):
        print(*(f"{similarity:6.3f}" for similarity in row), sentence)


if __name__ == "__main__":
    main()
