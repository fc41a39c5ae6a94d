"""benchmarks/models: the parts that need no model: readers, splits, metrics, baselines."""

from __future__ import annotations

import gzip
import io
import json
import random
import re
import struct
import sys
import tarfile
import wave
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn

import diba.torch
import tiny_models

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

    Benchmark = Callable[[str], ModuleType]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data folder."""
    monkeypatch.setenv("DIBA_DATA", str(tmp_path))
    return tmp_path


# ---- readers


def character_vector(strings: list[str]) -> bytes:
    cells = b"".join(struct.pack(">ii", 0x40009, len(s.encode())) + s.encode() for s in strings)
    return b"X\n" + bytes(12) + struct.pack(">ii", 16, len(strings)) + cells


def test_novels_are_read_record_by_record_and_unwrapped(benchmark: Benchmark, folder: Path) -> None:
    novels = (
        ["EMMA", "", "One line", "and  the next.", "", "", "“Two”"],
        ["Persuasion", "", "Three"],
    )
    path = folder / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    path.parent.mkdir(parents=True)
    records = [character_vector(lines) for lines in novels]
    path.write_bytes(b"".join(struct.pack(">I", len(r)) + zlib.compress(r) for r in records))
    found = benchmark("common.data").austen()
    assert found == {
        "EMMA": "EMMA\n\nOne line and the next.\n\n“Two”",
        "PERSUASION": "Persuasion\n\nThree",
    }


def test_images_are_read_with_their_labels(benchmark: Benchmark, folder: Path) -> None:
    images = np.arange(2 * 784).reshape(2, 28, 28).astype(np.uint8)
    place = folder / "usr/share/datasets/fashion-mnist"
    place.mkdir(parents=True)
    (place / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + images.tobytes()))
    (place / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + b"\x09\x02"))
    found, labels = benchmark("common.data").fashion_mnist("t10k")
    assert np.array_equal(found, images)
    assert labels.tolist() == [9, 2]


def archive(name: str, content: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as file:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        file.addfile(info, io.BytesIO(content))
    return out.getvalue()


def test_ratings_are_read_from_the_archive_in_the_archive(benchmark: Benchmark, folder: Path) -> None:
    rows = "1_1\t-0.5\tbad\r\n12_3\t2\tgood\r\n"
    inner = archive("hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt", rows.encode())
    place = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    (folder / "vaderSentiment-3.3.2.tar.gz").write_bytes(archive(place, inner))
    assert benchmark("common.data").vader("amazonReview") == [(1, "bad", -0.5), (12, "good", 2.0)]


def test_prompts_are_those_that_are_plain_words_and_recorded(benchmark: Benchmark, folder: Path) -> None:
    text = """; A comment: of no use to us
no: Too few words
digit: Press 1 to leave the room
key: Press the key # to leave
noise: You will hear this [tone] now
gone: This one has no recording
vm/yes: You are number four: wait.
"""
    doc = folder / "usr/share/doc/asterisk-core-sounds-en"
    voice = folder / "usr/share/asterisk/sounds/en_US_f_Allison"
    for place in (doc, voice / "vm"):
        place.mkdir(parents=True)
    (doc / "core-sounds-en.txt.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("no", "digit", "key", "noise", "vm/yes"):
        with wave.open(str(voice / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(np.array([0, 16384, -32768], "<i2").tobytes())
    (prompt,) = benchmark("common.data").prompts()
    assert (prompt.name, prompt.text) == ("vm/yes", "You are number four: wait.")
    assert prompt.sound().tolist() == [0, 0.5, -1]


def test_what_is_missing_is_named_with_what_to_run(benchmark: Benchmark, folder: Path) -> None:
    data, errors = benchmark("common.data"), benchmark("common")
    with pytest.raises(errors.BenchmarkError, match=r"no .*vaderSentiment.*python benchmarks fetch"):
        data.vader("tweets")
    with pytest.raises(errors.BenchmarkError, match=r"/usr/none of .* some-package .*benchmarks fetch"):
        data.debian_file("some-package", "usr/none")
    with pytest.raises(errors.BenchmarkError, match="surely-no-command is not on this system"):
        data.run("surely-no-command", folder=folder)


# ---- splits and metrics


def test_sentences_alike_stay_on_one_side(benchmark: Benchmark, tmp_path: Path) -> None:
    data, speech = benchmark("common.data"), benchmark("models.speech")
    words = [f"w{chr(97 + i)}{chr(97 + j)}" for i in range(26) for j in range(26)]
    texts = [" ".join(words[4 * i : 4 * i + 4]) for i in range(100)]
    again = [text.title() + "..." for text in texts] + [f"{text} or more" for text in texts]
    everything = [data.Prompt(str(i), text, tmp_path) for i, text in enumerate(texts + again)]
    train, test = speech.split(everything)
    assert len(train) + len(test) == 300
    assert 30 <= len(test) <= 120  # a quarter of 300 is expected, of groups of three
    groups = [{int(prompt.name) % 100 for prompt in side} for side in (train, test)]
    assert not groups[0] & groups[1]
    assert speech.split(everything[:100])[1] == [p for p in test if int(p.name) < 100]


def test_no_review_and_no_sentence_both_trains_and_tests(
    benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = benchmark("models.text")
    # A hundred sentences are said again, 33 reviews later: on the other side.
    rows = [(i // 3, f"sentence {i if i < 200 else i - 99}", (-1.0) ** i * (i % 7)) for i in range(300)]
    monkeypatch.setattr(text, "vader", lambda kind: rows)
    train, test = text.sentiment("movieReview", "quick")
    assert not {sentence for sentence, _ in train} & {sentence for sentence, _ in test}
    assert {label for _, label in train} == {label for _, label in test} == {0, 1}


def test_spread_takes_evenly(benchmark: Benchmark) -> None:
    spread = benchmark("models.text").spread
    assert spread(range(10), 5) == [0, 2, 4, 6, 8]
    assert spread([1, 2], 5) == [1, 2]


def test_prompts_are_joined_with_their_words_in_order(
    benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data, speech = benchmark("common.data"), benchmark("models.speech")
    seconds = {"a": 10, "b": 20, "c": 12}  # the second does not fit after the first, the third does
    levels = {"a": 1.0, "b": 2.0, "c": 3.0}
    monkeypatch.setattr(
        data.Prompt,
        "sound",
        lambda self: np.full(seconds[self.name] * speech.RECORDED, levels[self.name], np.float32),
    )
    part = [data.Prompt(name, f" Say {name}.", tmp_path) for name in "abc"]
    sound, text = speech.joined(part, random.Random(0))
    assert text == "Say a. Say c"
    changes = np.flatnonzero(np.diff(sound)) + 1
    assert sound[0] == 1
    assert sound[changes].tolist() == [0, 3]
    first, pause, second = np.diff([0, *changes, len(sound)]) / speech.RECORDED
    assert (first, second) == (10, 12)
    assert 0.1 <= pause < 1
    assert speech.joined(part[1:2], random.Random(0))[1] == "Say b"


def synthesizer(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A program flite that does what ``body`` says, the only one there."""
    program = folder / "flite"
    program.write_text(f"#!{sys.executable}\nimport sys, wave, array\n{body}", "utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_synthesized_speech_has_the_rate_and_loudness_of_recordings(
    benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spoken = benchmark("models.spoken")
    # One second of 16,000 samples for each word; a tone of 1,000 hertz, 16 samples a period.
    synthesizer(
        tmp_path,
        monkeypatch,
        """words = len(sys.argv[sys.argv.index("-t") + 1].split())
with wave.open(sys.argv[sys.argv.index("-o") + 1], "wb") as file:
    file.setnchannels(1), file.setsampwidth(2), file.setframerate(16000)
    file.writeframes(array.array("h", ([9000] * 8 + [-9000] * 8) * 1000 * words).tobytes())
""",
    )
    sound = spoken.Spoken("Two words", "slt").sound()
    assert sound.dtype == np.float32
    assert len(sound) == 2 * spoken.RECORDED
    assert np.sqrt(np.mean(sound**2)) == pytest.approx(spoken.LOUDNESS, rel=1e-5)
    spectrum = np.abs(np.fft.rfft(sound))
    assert np.argmax(spectrum) / 2 == 1000  # hertz: the tone did not change


def test_synthesized_speech_says_what_is_missing(
    benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spoken, errors = benchmark("models.spoken"), benchmark("common")
    synthesizer(tmp_path, monkeypatch, "sys.exit('no such voice')")
    with pytest.raises(errors.BenchmarkError, match="failed:\nno such voice"):
        spoken.Spoken("Two words", "nobody").sound()
    (tmp_path / "flite").unlink()
    with pytest.raises(errors.BenchmarkError, match="apt-get install flite"):
        spoken.Spoken("Two words", "slt").sound()


def test_sentences_to_speak_are_short_and_all_different(
    benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken = benchmark("models.spoken")
    monkeypatch.setattr(spoken, "vader", lambda kind: [(0, "He said so.", 1.0), (1, "Too short.", 0.0)])
    monkeypatch.setattr(spoken, "news", lambda name: ["He said so. It rained all day. " + "word " * 30])
    found = spoken.spoken(seed=3)
    assert sorted(one.text for one in found) == ["He said so", "It rained all day"]
    assert {one.voice for one in found} <= set(spoken.VOICES)
    assert [(one.text, one.voice) for one in spoken.spoken(seed=3)] == [
        (one.text, one.voice) for one in found
    ]


def naive_distance(a: str, b: str) -> int:
    if not a or not b:
        return len(a) + len(b)
    return min(
        naive_distance(a[1:], b[1:]) + (a[0] != b[0]),
        naive_distance(a[1:], b) + 1,
        naive_distance(a, b[1:]) + 1,
    )


def test_word_errors_are_the_fewest_edits(benchmark: Benchmark) -> None:
    speech = benchmark("models.speech")
    rng = np.random.default_rng(0)
    for _ in range(40):
        a, b = ("".join(rng.choice(list("xyz"), rng.integers(0, 6))) for _ in range(2))
        assert speech.distance(a, b) == naive_distance(a, b)
    said, heard = ["Press the pound key.", "Re-enter it"], ["press pound Key", "re enter, it now"]
    assert speech.word_error_rate(said, heard) == 2 / 7


def test_probe_is_where_the_loss_is_flat(benchmark: Benchmark) -> None:
    probe = benchmark("models.probe")
    rng = np.random.default_rng(0)
    x, y = rng.normal(3, [1, 10, 0.1], (60, 3)), rng.integers(0, 3, 60)
    layer = probe.fit_probe(torch.tensor(x, dtype=torch.float32), torch.tensor(y), penalty=2.0)
    logits = x @ layer.weight.numpy().T.astype(np.float64) + layer.bias.numpy()
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    scale = x.std(0, ddof=1)
    weight = layer.weight.numpy() * scale  # of scaled features
    slope = (p - np.eye(3)[y]).T @ ((x - x.mean(0)) / scale) + 2.0 * weight
    # The search ends at slopes of 1e-6 of the mean over 60 rows; weights of 24 bits move logits by 1e-5.
    assert np.abs(slope).max() < 60 * 1e-6 + 60 * 1e-5
    assert probe.accuracy(layer(torch.tensor(x).float()), torch.tensor(y)) == (logits.argmax(1) == y).mean()


# ---- baselines


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_rounding_is_within_half_a_step_and_its_bits_are_counted(benchmark: Benchmark, bits: int) -> None:
    rounding = benchmark("models.rounding")
    torch.manual_seed(0)
    dense = nn.Linear(100, 6)
    layer = rounding.Rounded(dense, bits, 64)
    assert layer.bits_per_weight == (600 * bits + 6 * 2 * 32) / 600
    assert int(layer.codes.max()) == 2**bits - 1
    with torch.no_grad():
        error = (layer.weight - dense.weight).double().square()
        plain = 0.0  # the same without a search for the range
        for first in (0, 64):
            part = dense.weight[:, first : first + 64].double()
            low = part.amin(1, keepdim=True)
            step = (part.amax(1, keepdim=True) - low) / (2**bits - 1)
            plain += float((((part - low) / step).round() * step + low - part).square().sum())
        x = torch.randn(5, 100)
        expected = torch.nn.functional.linear(x, layer.weight, dense.bias)
        assert torch.equal(layer(x), expected)
    assert 0 < float(error.sum()) <= plain * (1 + 2**-8)  # scales and offsets are rounded to 11 bits


def test_rounded_convolution_equals_one_with_its_weight(benchmark: Benchmark) -> None:
    torch.manual_seed(0)
    dense = nn.Conv2d(8, 4, 3, stride=2, padding=1)
    layer = benchmark("models.rounding").Rounded(dense, 4, 32)
    x = torch.randn(2, 8, 9, 9)
    with torch.no_grad():
        rounded = layer(x)
        dense.weight.copy_(layer.weight.view_as(dense.weight))
        assert torch.equal(rounded, dense(x))


def test_scales_train_and_codes_stay(benchmark: Benchmark) -> None:
    rounding = benchmark("models.rounding")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    x = torch.randn(64, 32)
    target = model(x).detach()
    config = diba.torch.Config(bits_per_weight=2, skip=("2",))
    assert rounding.convert_rounded(model, config, 2, 16) == 2 + 32 / 16
    assert isinstance(model[2], nn.Linear)
    codes = model[0].codes.clone()
    losses = rounding.retune_scales(
        model, [x], lambda model, batch: (model(batch) - target).square().mean(), steps=30, lr=0.01
    )
    assert losses[-1] < losses[0]
    assert torch.equal(model[0].codes, codes)


@pytest.mark.parametrize("alphabet", ["binary", "sign"])
def test_random_control_has_the_best_diagonals(benchmark: Benchmark, alphabet: str) -> None:
    control = benchmark("models.control")
    A = np.random.default_rng(0).normal(0, 30, (24, 20)).astype(np.float32)
    f = control.random_factors(A, 12, alphabet, seed=3)
    assert f.shape == (24, 20)
    assert (f.k, f.alphabet) == (12, alphabet)
    assert f == control.random_factors(A, 12, alphabet, seed=3)
    assert f.b1 != control.random_factors(A, 12, alphabet, seed=4).b1
    b1, b2 = (b.to_dense(np.float64) for b in (f.b1, f.b2))
    d1, d2, d3 = (d.astype(np.float64) for d in (f.d1, f.d2, f.d3))
    middle = b1 * d2 @ b2
    error = np.square(A - d1[:, None] * middle * d3).sum()
    rows, columns = middle * d3, d1[:, None] * middle
    best_rows = np.square(A - ((A * rows).sum(1) / np.square(rows).sum(1))[:, None] * rows).sum()
    best_columns = np.square(A - (A * columns).sum(0) / np.square(columns).sum(0) * columns).sum()
    terms = np.einsum("ik,kj->ijk", d1[:, None] * b1, b2 * d3).reshape(-1, 12)
    best_inner = np.linalg.lstsq(terms, A.reshape(-1).astype(np.float64))[1].item()
    for best in (best_rows, best_columns, best_inner):
        assert best <= error <= best * (1 + 5e-3)  # a hundred times the gain at which the fit may stop


def test_random_control_replaces_what_conversion_would(benchmark: Benchmark) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 4))
    config = diba.torch.Config(bits_per_weight=2, skip=("2",))
    report = benchmark("models.control").convert_random(model, config)
    twin = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 4))
    diba.torch.convert(twin, config, progress=False)
    assert list(report) == ["0"]
    assert report["0"] > 0  # better than nothing at all
    assert model[0].k == twin[0].k
    with pytest.raises(ValueError, match="needs bits_per_weight or k"):
        benchmark("models.control").convert_random(
            nn.Sequential(nn.Linear(8, 8)), diba.torch.Config(snr_db=3.0)
        )


# ---- the plan and the table


def test_cells_of_a_conversion_stay_together(benchmark: Benchmark) -> None:
    plans = benchmark("models.plan")
    plan = plans.Plan(
        "mlp", 1, 1, pairs=((2.0, "sign"), (1.0, "binary")), seeds=(2.0,), shared=((2.0, "sign"),)
    )
    chosen = list(plans.cells(plan, quick=False))
    assert len({cell.key for cell in chosen}) == len(chosen)
    groups = list(plans.units(chosen))
    assert [cell for group in groups for cell in group] == chosen
    places = [{cell.place for cell in group} for group in groups]
    assert all(len(place) == 1 for place in places)
    assert len(set().union(*places)) == len(groups)  # none comes twice
    arms = [cell.arm for cell in groups[1]]
    assert arms.index("calibrated") < arms.index("dibard")
    assert {cell.seed for cell in chosen if cell.bits == 2 and cell.alphabet == "sign"} == {0, 1, 2}
    assert {cell.seed for cell in plans.cells(plan, quick=True)} == {0}


def test_converted_models_are_taken_up_by_the_next_run(benchmark: Benchmark, tmp_path: Path) -> None:
    shared, cell = benchmark("models.shared"), benchmark("models.plan").Cell("mlp", "dibard", 2.0, "sign")
    made: list[nn.Module] = []

    def make() -> tuple[nn.Module, dict[str, Any]]:
        made.append(nn.Linear(3, 2))
        return made[-1], {"convert_seconds": 5.0}

    shared.keep_converted(tmp_path / "kept")
    try:
        for earlier in ({}, {"earlier_seconds": 5.0}):
            model, facts = shared.once(cell, "calibrated", make)
            assert torch.equal(model.weight, made[0].weight)
            assert facts == {"convert_seconds": 5.0} | earlier
            shared._converted.clear()  # as at the start of a process
        assert len(made) == 1
        shared.once(cell, "scored", make)
        assert len(made) == 2
    finally:
        shared.keep_converted(None)
        shared._converted.clear()


def tiny_task(benchmark: Benchmark) -> Any:
    """Two layers of noise, judged by their distance from the dense model's answers."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(48, 64), nn.Linear(64, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.second(torch.relu(self.first(x)))

    def load() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return Net().eval()

    batches = [{"x": torch.randn(16, 48, generator=torch.Generator().manual_seed(i))} for i in range(24)]

    def distance(model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            return {"distance": float((model(**batches[0]) - load()(**batches[0])).square().mean())}

    return benchmark("models.task").Task(
        "mlp", "Net", load, lambda: batches, distance, "distance", False, loss="logits"
    )


def test_every_kind_of_cell_can_be_made(benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    arms, shared, Cell = benchmark("models.arms"), benchmark("models.shared"), benchmark("models.plan").Cell
    monkeypatch.setitem(shared.TASKS, "mlp", lambda size: tiny_task(benchmark))
    found = {}
    try:
        for arm in arms.MAKERS:
            at = ("",) if arm == "dense" or arm.startswith("rounded") else ("sign",)
            found[arm] = arms.run(Cell("mlp", arm, 32.0 if arm == "dense" else 2.0, *at), quick=True)
    finally:
        shared._tasks.clear()
        shared._converted.clear()
    assert set(found) == set(benchmark("models.table").ARMS)
    assert found["dense"]["metrics"] == {"distance": 0}
    assert found["dense"]["layer_bits"] is None
    assert all(cell["metrics"]["distance"] > 0 for arm, cell in found.items() if arm != "dense")
    assert all(
        cell["layer_bits"] <= 2.0 for arm, cell in found.items() if arm != "dense" and "round" not in arm
    )
    assert found["calibrated"]["metrics"]["distance"] < found["random"]["metrics"]["distance"]
    json.dumps(found)


def report_of(values: dict[tuple[str, float], list[float]]) -> dict[str, Any]:
    """Accuracies of (arm, bits), one for each seed, as models.py keeps them."""
    cells = {}
    for (arm, bits), accuracies in values.items():
        alphabet = "" if arm == "dense" or arm.startswith("rounded") else "sign"
        for seed, accuracy in enumerate(accuracies):
            cells[f"{arm} {bits} {seed}"] = {
                "task": "mlp", "arm": arm, "bits": bits, "alphabet": alphabet, "seed": seed,
                "metrics": {"accuracy": accuracy}, "primary": "accuracy", "higher_is_better": True,
                "title": "Net", "bytes": 1e6, "layer_bits": bits, "total_seconds": 40.0,
            }  # fmt: skip
    machine = {"cpu": "A  processor", "isa": "scalar", "torch": "2"}
    return {"cells": cells, "machine": machine}


def test_several_seeds_give_a_mean_and_half_the_range(benchmark: Benchmark) -> None:
    values = {("dense", 32.0): [0.9], ("dibard", 2.0): [0.82, 0.86], ("random", 2.0): [0.3, 0.4]}
    text = benchmark("models.table").table(report_of(values))
    assert "| + DiBARD | ±1 | 2.00 | 1.00 | 84.0 ± 2.0 |" in text
    assert "5 cells, 3 minutes of one core" in text  # of 40 s each
    assert "torch 2 on A processor (scalar)" in text


def test_reconstruction_converts_the_first_blocks(benchmark: Callable[[str], Any]) -> None:
    found, results = benchmark("models.reconstruction"), benchmark("common.results")
    pattern = found.outside("smollm2", 2).removeprefix("re:")
    names = [f"model.layers.{number}.mlp.up_proj" for number in (0, 1, 2, 10, 11)] + ["lm_head"]
    assert [name for name in names if not re.fullmatch(pattern, name)] == names[:2]
    rows = {
        f"minilm | {stage}": {"metrics": {"lee_pearson": 0.5, "x_nats": 1.0}, "seconds": 2.0}
        for stage in ("dense", *found.STAGES)
    }
    facts = {"blocks": 2, "bits": 1.0, "batches": 8, "threads": 2}
    text = found.table({"machine": results.machine(), "commit": "0", "arguments": facts, "rows": rows})
    assert "| all-MiniLM-L6-v2, first 2 blocks | lee pearson | last block's loss | s |" in text
    assert text.count("| 0.5 |") == 6


def test_tables_are_all_that_is_converted(benchmark: Callable[[str], Any]) -> None:
    found, results = benchmark("models.tables"), benchmark("common.results")
    model, _ = tiny_models.build("llama")
    model.lm_head.weight = model.model.embed_tokens.weight
    names = found.tables_of(model)
    assert names == ["model.embed_tokens", "lm_head"]
    pattern = found.but(names).removeprefix("re:")
    others = ["model.layers.0.mlp.up_proj", "lm_head.more", "embed_tokens"]
    assert [name for name in (*names, *others) if re.fullmatch(pattern, name)] == others
    facts = {"title": "A model", "bits": 4.3125, "metrics": {"accuracy": 0.5, "x_nats": 1.0}, "seconds": 1.0}
    text = found.table({"machine": results.machine(), "commit": "0", "rows": {"minilm | 4 bits": facts}})
    assert "| A model | bits an entry | accuracy |" in text
    assert "| 4 bits | 4.31 | 0.5 |" in text
