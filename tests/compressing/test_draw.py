"""Texts that a model writes itself."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

import diba.compressing
from diba.__main__ import main
from tiny_language import language_model, tokenizer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 259 tokens, one for each byte."""
    path = tmp_path_factory.mktemp("model")
    language_model().save_pretrained(path)
    tokenizer().save_pretrained(path)
    return path


def drawn(folder: Path, out: Path, **options: Any) -> list[str]:
    diba.compressing.draw(folder, out, progress=False, **{"texts": 40, "tokens": 24, "start": 5, **options})
    return [json.loads(line)["text"] for line in out.read_text("utf-8").splitlines()]


def test_texts_go_on_from_places_spread_over_a_file(folder: Path, tmp_path: Path) -> None:
    like = tmp_path / "like.txt"
    like.write_text("".join(f"{i:04d}" for i in range(300)))
    found = drawn(folder, tmp_path / "a.jsonl", like=like)
    letters, expected = like.read_text(), [i * (1200 - 5) // 40 for i in range(40)]
    assert [text[:5] for text in found] == [letters[place : place + 5] for place in expected]
    assert len({text[5:] for text in found}) == 40
    assert not (tmp_path / "a.jsonl.part").exists()


def test_tokens_are_those_of_the_models_own_probabilities(folder: Path, tmp_path: Path) -> None:
    """One token after one beginning, 3,000 times: by chi-square, of which 1 in 10^5 is beyond."""
    like = tmp_path / "like.txt"
    like.write_text("abc")
    count = 3000
    found = drawn(folder, tmp_path / "a.jsonl", like=like, texts=count, tokens=4, start=3)
    model, tokens = language_model(), tokenizer()
    with torch.no_grad():
        logits = model(torch.tensor([tokens("abc")["input_ids"]])).logits[0, -1].double()
    expected = count * logits.softmax(0)
    lines = (tmp_path / "a.jsonl").read_text("utf-8").splitlines()
    assert len(lines) == len(found) == count
    # Bytes from 128 on are no text by themselves, and special tokens are left out: a class of their own.
    letters = {tokens(chr(i))["input_ids"][0]: chr(i) for i in range(128)}
    kept = [(expected[i].item(), sum(text[3:] == letter for text in found)) for i, letter in letters.items()]
    rest = count - sum(e for e, _ in kept), count - sum(n for _, n in kept)
    frequent = [(e, n) for e, n in [*kept, rest] if e >= 5]
    rare = [(e, n) for e, n in kept if e < 5]
    cells = [*frequent, (sum(e for e, _ in rare), sum(n for _, n in rare))]
    statistic = sum((n - e) ** 2 / e for e, n in cells)
    assert statistic < len(cells) + 4.5 * (2 * len(cells)) ** 0.5


def test_without_a_file_texts_begin_anywhere(folder: Path, tmp_path: Path) -> None:
    found = drawn(folder, tmp_path / "a.jsonl", tokens=12)
    assert len({text[:1] for text in found}) > 12
    assert drawn(folder, tmp_path / "b.jsonl", tokens=12) == found
    assert drawn(folder, tmp_path / "b.jsonl", tokens=12, seed=1) != found


def test_a_stopped_call_goes_on_to_the_same_file(folder: Path, tmp_path: Path) -> None:
    whole = drawn(folder, tmp_path / "a.jsonl", texts=80)

    class Stop(Exception):
        pass

    def stop(state: diba.Progress) -> None:
        if state.done == 32:
            raise Stop

    call: dict[str, Any] = {"texts": 80, "tokens": 24, "start": 5}
    target = tmp_path / "b.jsonl"
    with pytest.raises(Stop):
        diba.compressing.draw(folder, target, progress=stop, **call)
    assert not target.exists()
    with pytest.raises(ValueError, match="stopped call with other arguments"):
        drawn(folder, target, texts=80, seed=1)
    seen: list[float] = []
    diba.compressing.draw(folder, target, progress=lambda state: seen.append(state.done), **call)
    assert seen == [0, 64, 80]
    assert [json.loads(line)["text"] for line in target.read_text("utf-8").splitlines()] == whole


def test_the_command_makes_data_for_compress(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "data" / "drawn.jsonl"
    out.parent.mkdir()
    call = ["draw", str(folder), "-o", str(out), "--texts", "40", "--tokens", "24", "--quiet"]
    assert main(call) == 0
    settings = ["--data", str(out.parent), "--tokens", "8", "--rows", "4", "--batches", "4", "--bits", "1"]
    few = ["--reconstruct", "0", "--retune", "0", "--quiet"]
    assert main(["compress", str(folder), "-o", str(tmp_path / "small"), *settings, *few]) == 0


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, r"out is .*a\.txt; it must end in \.jsonl", {"out": "a.txt"}),
        (FileNotFoundError, "the folder does not exist", {"out": "no/a.jsonl"}),
        (ValueError, "start is 24; it must be below tokens, 24", {"start": 24}),
        (ValueError, "tokens is 129, and the model takes at most 128", {"tokens": 129}),
        (ValueError, "texts is 0", {"texts": 0}),
        (ValueError, "has 3 tokens; it must have at least start, 5", {"like": "short.txt"}),
        (FileNotFoundError, "none.txt", {"like": "none.txt"}),
    ],
)
def test_what_is_refused(
    error: type[Exception], message: str, options: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "short.txt").write_text("abc")
    options = {key: tmp_path / value if key in ("out", "like") else value for key, value in options.items()}
    with pytest.raises(error, match=message):
        drawn(folder, options.pop("out", tmp_path / "a.jsonl"), **options)
    assert not list(tmp_path.glob("a.*"))


def test_models_that_write_no_texts_are_refused(tmp_path: Path) -> None:
    import transformers

    config = transformers.BertConfig(
        vocab_size=259, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="does not predict each token from those before"):
        drawn(tmp_path / "bert", tmp_path / "a.jsonl")
