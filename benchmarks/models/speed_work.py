"""What the speed benchmark times: three pretrained models, dense and made faster in several ways.

The work is the same for every contestant: prompts, recordings and sentences are real, the number of tokens is
fixed. What a model answers is not used, so its factors may be random: how long a product takes does not
depend on the values in it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.signal import resample_poly
from torch import nn

import diba
import diba.torch
from diba._internal.timing import activations, random_factorization
from diba.torch.model.selection import Target, targets
from diba.torch.model.swap import replace
from diba.torch.modules.kinds import dense_matrix

from ..common.data import news, prompts, vader
from . import speech
from .text import embed, load_minilm, load_smollm2, spread, windows

__all__ = ["CONTESTANTS", "JOBS", "Job", "randomize"]

Sample = dict[str, float]  # seconds by what took them
Work = Callable[[], Sample]

PROMPT = 32  # tokens


@dataclass(frozen=True)
class Job:
    """A model and what it is timed at; speed_table.JOBS says how it is shown.

    Attributes:
        load: Makes the dense float32 model.
        work: From a loaded model and whether to be quick to what one sample is taken by.
        compile: Compiles a model in place; nothing is compiled before it is first called.
        config: Settings of ``diba.torch.Config``.
    """

    load: Callable[[], nn.Module]
    work: Callable[[nn.Module, bool], Work]
    compile: Callable[[nn.Module], None]
    config: dict[str, Any]


# ---------------------------------------------------------------- contestants


def bfloat16(model: nn.Module, job: Job) -> None:
    model.to(torch.bfloat16)


def compiled(model: nn.Module, job: Job) -> None:
    job.compile(model)


def int8(model: nn.Module, job: Job) -> None:
    """All ``nn.Linear``, the output layer too; inputs are quantized anew in every call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, with nothing in torch itself to take its place
        torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8, inplace=True)


def factored(bits: float, tied: bool = False) -> Callable[[nn.Module, Job], None]:
    def make(model: nn.Module, job: Job) -> None:
        randomize(model, diba.torch.Config(bits_per_weight=bits, tied=tied, **job.config))

    return make


def also_compiled(make: Callable[[nn.Module, Job], None]) -> Callable[[nn.Module, Job], None]:
    def both(model: nn.Module, job: Job) -> None:
        make(model, job)
        job.compile(model)

    return both


CONTESTANTS: dict[str, Callable[[nn.Module, Job], None]] = {
    "float32": lambda model, job: None,
    "float32, compiled": compiled,
    "bfloat16": bfloat16,
    "int8, dynamic": int8,
    "diba 1 bit": factored(1),
    "diba 2 bits": factored(2),
    "diba 1 bit, tied": factored(1, tied=True),
    "diba 2 bits, tied": factored(2, tied=True),
    "diba 1 bit, compiled": also_compiled(factored(1)),
    "diba 1 bit, tied, compiled": also_compiled(factored(1, tied=True)),
}


def randomize(model: nn.Module, config: diba.torch.Config) -> dict[str, float]:
    """Replace the layers that ``diba.torch.convert`` would by random factors of the size it would give them.

    In place. Products are about as large as those of the dense layers.

    Returns:
        Bits per weight of each layer, by its name.

    Raises:
        ValueError: the config sizes a layer by something else than bits per weight.
    """
    found = {}
    for seed, target in enumerate(targets(model, config)):
        f = random_factors(target, seed)
        replace(model, target.modules, f)
        found[target.name] = f.bits_per_weight
    return found


def random_factors(target: Target, seed: int = 0) -> diba.Factorization:
    bits, alphabet = target.settings.bits_per_weight, target.settings.alphabet
    if bits is None:
        raise ValueError(f"the config for {target.name} must have bits_per_weight")
    f = random_factorization(*target.shape, bits, seed)
    b1, b2 = (diba.BitMatrix(b.words, b.shape[1], alphabet) for b in (f.b1, f.b2))
    f = diba.Factorization(f.d1, b1, f.d2, b2, f.d3)
    X = activations(4, target.shape[1], seed=seed)
    of_dense, of_random = np.linalg.norm(dense_matrix(target.module) @ X.T), np.linalg.norm(f @ X.T)
    return diba.Factorization(f.d1 * (of_dense / of_random), f.b1, f.d2, f.b2, f.d3).round_diagonals()


# ---------------------------------------------------------------- SmolLM2: one token after the other


def decode(model: nn.Module, quick: bool) -> Work:
    """Greedy, batch 1, by calls of the model itself: ``generate`` would take its time from everyone."""
    from transformers import DynamicCache

    prompt, count = windows(news("lee")[0], PROMPT)[:1], 8 if quick else 64

    @torch.no_grad()
    def work() -> Sample:
        cache = DynamicCache(config=model.config)
        start = time.perf_counter()
        token = likeliest(model(input_ids=prompt, past_key_values=cache, logits_to_keep=1).logits)
        first = time.perf_counter()
        for _ in range(count):
            token = likeliest(model(input_ids=token, past_key_values=cache, logits_to_keep=1).logits)
        return {"prompt": first - start, "token": (time.perf_counter() - first) / count}

    return work


def likeliest(logits: torch.Tensor) -> torch.Tensor:
    """The token to go on with, from logits of shape (batch, ..., tokens): shape (batch, 1)."""
    return logits[:, -1].argmax(-1, keepdim=True)


# ---------------------------------------------------------------- Whisper: from samples to tokens


def transcribe(model: nn.Module, quick: bool) -> Work:
    """Recordings one by one, features to tokens; as many tokens as the words that are said have.

    The decoder is fed these tokens, and looks for the likeliest next one all the same.
    """
    from transformers import WhisperFeatureExtractor

    extract = WhisperFeatureExtractor(feature_size=80)
    chosen = spread(speech.split(prompts())[1], 1 if quick else 4)
    sounds = [resample_poly(prompt.sound(), speech.RATE // speech.RECORDED, 1) for prompt in chosen]
    audio = sum(map(len, sounds)) / speech.RATE
    said = [speech.tokenizer().encode(" " + p.text, add_special_tokens=False).ids for p in chosen]

    @torch.no_grad()
    def work() -> Sample:
        spent = np.zeros(3)
        for sound, answer in zip(sounds, said, strict=True):
            times = [time.perf_counter()]
            made = extract(sound, sampling_rate=speech.RATE, return_tensors="pt")
            heard = made["input_features"].to(model.dtype)
            times.append(time.perf_counter())
            encoded = model.model.encoder(heard).last_hidden_state
            times.append(time.perf_counter())
            step, cache = torch.tensor([[speech.START, speech.NO_TIMES]]), None
            for token in (*answer, speech.END):
                out = model(encoder_outputs=(encoded,), decoder_input_ids=step, past_key_values=cache)
                assert 0 <= int(likeliest(out.logits)) < out.logits.shape[-1]
                step, cache = torch.tensor([[token]]), out.past_key_values
            times.append(time.perf_counter())
            spent += np.diff(times)
        parts = dict(zip(("features", "encoder", "decoder"), (spent / audio).tolist(), strict=True))
        return {"audio": sum(parts.values()), **parts}

    return work


def compile_whisper(model: Any) -> None:
    model.model.encoder.compile()
    model.model.decoder.compile(dynamic=True)


# ---------------------------------------------------------------- MiniLM: sentences


def embed_sentences(model: nn.Module, quick: bool) -> Work:
    """Texts to embeddings, the tokenizer too; sentences of about one length make a batch."""
    sentences = spread([text for _, text, _ in vader("movieReview")], 32 if quick else 128)

    def work() -> Sample:
        return {f"batch {size}": seconds_of_one(model, sentences, size) for size in (1, 32)}

    return work


@torch.no_grad()
def seconds_of_one(model: nn.Module, sentences: list[str], size: int) -> float:
    start = time.perf_counter()
    embed(model, sentences, batch=size)
    return (time.perf_counter() - start) / len(sentences)


JOBS = {
    "smollm2": Job(load_smollm2, decode, lambda model: model.compile(dynamic=True), {}),
    "whisper": Job(speech.load, transcribe, compile_whisper, {"convolutions": False}),
    "minilm": Job(load_minilm, embed_sentences, lambda model: model.compile(dynamic=True), {}),
}
