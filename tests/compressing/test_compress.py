"""``diba.compress``: what comes out, that a stopped run goes on to the same bytes, and what is refused."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import diba
import diba.compressing
from diba.checkpoints.integrity import inspect
from diba.cli import main
from few_steps import killed_when
from tiny_language import language_model, tokenizer

TEXT = " ".join(
    f"The {a} {b} {c}." for a in ("old", "new", "red") for b in ("sea", "car") for c in ("ran", "is")
)
SMALL: dict[str, Any] = {
    "tokens": 24, "rows": 2, "batches": 6, "reconstruct": 8, "retune": 6, "threads": 1, "progress": False,
}  # fmt: skip
DONE = "diba-compress.json"  # has times in it
pytestmark = pytest.mark.usefixtures("few")


class Stopped(Exception):
    """A run ended by its progress."""


@pytest.fixture(scope="module")
def dense(few: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with a tokenizer, a licence and generation settings."""
    folder = tmp_path_factory.mktemp("dense")
    language_model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\ntags: [x]\n---\n# It\n")
    (folder / "LICENSE").write_text("free")
    (folder / "part").mkdir()
    (folder / "part" / "config.json").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.BertConfig(vocab_size=259, **shape, max_position_embeddings=64)
    transformers.BertModel(config, add_pooling_layer=False).eval().save_pretrained(folder)  # it has a pooler
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 lines of JSON, of two forms."""
    path = tmp_path_factory.mktemp("texts") / "some.jsonl"
    lines = [json.dumps({"text": TEXT[i:] + TEXT[:i]} if i % 2 else TEXT[i:]) for i in range(36)]
    path.write_text("\n".join(lines) + "\n\n")
    return path


@pytest.fixture(scope="module")
def whole(dense: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The language model compressed with data, without a stop."""
    out = tmp_path_factory.mktemp("whole") / "out"
    diba.compress(dense, out, data=texts, **SMALL)
    return out


def assert_same_files(one: Path, other: Path) -> None:
    files = {path.relative_to(one) for path in one.rglob("*") if path.is_file() and path.name != DONE}
    assert files == {
        path.relative_to(other) for path in other.rglob("*") if path.is_file() and path.name != DONE
    }
    for name in files:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def stop_at(task: str, steps: int) -> Any:
    """A progress that ends a run once a task has done so many steps."""

    def progress(state: diba.Progress) -> None:
        if state.task == task and state.done >= steps:
            raise Stopped

    return progress


def stop_after(layers: int) -> Any:
    """A progress that ends a run once so many layers are finished."""
    seen: list[str | None] = []

    def progress(state: diba.Progress) -> None:
        seen.append(state.item)
        if len(set(seen) - {None}) == layers:
            raise Stopped

    return progress


def assert_one_piece_of_work(seen: list[diba.Progress]) -> None:
    """One share that is done, which rises to 1, and a time left that falls to 0, over all stages."""
    shares = [state.fraction for state in seen]
    assert all(share is not None and 0 <= share <= 1 for share in shares)
    assert shares == sorted(shares, key=lambda share: share or 0.0)
    assert (shares[-1], seen[-1].remaining) == (1.0, 0.0)
    assert all(state.remaining is not None and math.isfinite(state.remaining) for state in seen)
    times = [state.elapsed for state in seen]
    assert times == sorted(times)


# ---------------------------------------------------------------- what comes out


def test_progress_is_that_of_all_stages(
    dense: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[diba.Progress] = []
    diba.compress(dense, tmp_path / "a", data=texts, **{**SMALL, "progress": seen.append})
    assert_one_piece_of_work(seen)
    stages = ["load", "allocate", "convert", "retune", "measure", "write"]
    assert list(dict.fromkeys(state.task for state in seen)) == stages
    assert any("gradients of the loss" in (state.item or "") for state in seen)
    middle = [state.fraction or 0.0 for state in seen if state.task == "convert"]
    assert len(middle) > 100  # not of layers alone
    assert middle[-1] > middle[0]
    capsys.readouterr()
    diba.compress(dense, tmp_path / "b", data=texts, **{**SMALL, "progress": True})
    shown = capsys.readouterr().err
    assert "100 %" in shown.splitlines()[-1]
    assert "Loading weights" not in shown  # transformers has bars of its own
    plain: list[diba.Progress] = []
    diba.compress(dense, tmp_path / "c", progress=plain.append)
    assert_one_piece_of_work(plain)
    assert list(dict.fromkeys(state.task for state in plain)) == ["compress", "write"]


def test_without_data_every_layer_is_that_of_convert(dense: Path, tmp_path: Path) -> None:
    done = diba.compress(dense, tmp_path / "out", bits=1.5, embeddings=8, progress=False)
    found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = transformers.AutoModelForCausalLM.from_pretrained(dense)
    settings = {"bits_per_weight": 1.5, "effort": "fast", "embeddings": 8}
    if not expected.config.tie_word_embeddings:
        settings["head"] = "auto"
    diba.torch.convert(expected, progress=False, **settings)
    assert found.state_dict().keys() == expected.state_dict().keys()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name
    assert done.bytes == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert done.dense_bytes == (dense / "model.safetensors").stat().st_size
    assert done.report is not None
    assert len(done.report.layers) == len(diba.torch.report(found).layers)


def test_what_lies_beside_the_weights_comes_along(dense: Path, whole: Path) -> None:
    for name in ("tokenizer.json", "LICENSE", "part/config.json", "generation_config.json"):
        assert (whole / name).read_bytes() == (dense / name).read_bytes()
    card = (whole / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n")
    assert '"tokens": 24' in card
    assert "`report.html` shows every layer" in card
    page = (whole / "report.html").read_text()
    facts = json.loads((whole / DONE).read_text())
    assert len(facts["retuning"]["losses"]) == SMALL["retune"]
    for found in (dense.name, "<dt>tokens</dt><dd>24</dd>", "Reconstruction of blocks", "perplexity"):
        assert found in page
    assert f"{SMALL['retune']} steps, loss {facts['retuning']['losses'][0]:.4g} at the first" in page
    report = inspect(whole)
    assert report.facts.files == (facts["dense_bytes"], facts["bytes"])
    assert report.facts.retuning is not None
    assert report.facts.retuning.to_dict() == facts["retuning"]
    assert len(report.blocks) == 2
    assert "<span>time</span>" not in page
    assert "perplexity of" in card
    assert not (whole / ".diba").exists()
    assert (whole / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~_umask()


def test_its_figures_are_those_of_the_models(dense: Path, texts: Path, whole: Path) -> None:
    """Perplexity of the batches held back, computed by the models' own losses."""
    from diba.compressing import CompressSettings
    from diba.compressing.data.kinds import Data
    from diba.compressing.source import Source

    settings = CompressSettings(**{k: v for k, v in SMALL.items() if k not in ("threads", "progress")})
    batches = Data.at(Source.at(dense), texts, settings).batches()
    judging = batches[: max(1, len(batches) // 16)]
    figures = json.loads((whole / DONE).read_text())["figures"]
    assert figures["tokens_judged"] == sum(batch["input_ids"].numel() for batch in judging)
    for folder, name in ((dense, "perplexity_dense"), (whole, "perplexity")):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            losses = [float(model(**batch, labels=batch["input_ids"]).loss) for batch in judging]
        assert figures[name] == pytest.approx(np.exp(np.mean(losses)), rel=1e-3)


def test_fitting_to_data_pays(dense: Path, texts: Path, tmp_path: Path) -> None:
    """Nearer to the dense model's answers than factors that are only solved for its inputs.

    The weights are random, so that the perplexity of the texts says nothing.
    """
    rows = torch.tensor([tokenizer()(TEXT[i:] + TEXT[:i])["input_ids"][:24] for i in range(1, 40, 2)])

    def answers(folder: Path) -> torch.Tensor:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        with torch.no_grad():
            return torch.log_softmax(model(rows).logits, -1)

    wanted, distance = answers(dense), {}
    for name, more in (("fitted", {}), ("not", {"reconstruct": 0, "retune": 0, "batches": 4})):
        diba.compress(dense, tmp_path / name, data=texts, bits=1, **{**SMALL, "retune": 40, **more})
        distance[name] = float((wanted.exp() * (wanted - answers(tmp_path / name))).sum(-1).mean())
    assert 0 < distance["fitted"] < distance["not"]


def test_layers_are_solved_on_a_device(dense: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"device": torch.device("cpu"), "threads": 1, "progress": False}
    plain = diba.compress(dense, tmp_path / "plain", threads=1, progress=False)
    with pytest.raises(Stopped):
        diba.compress(dense, tmp_path / "a", **{**settings, "progress": stop_after(5)})
    with pytest.raises(ValueError, match=r'settings device: "cpu", now null'):
        diba.compress(dense, tmp_path / "a", threads=1, progress=False)
    done = diba.compress(dense, tmp_path / "a", **settings)
    diba.compress(dense, tmp_path / "b", **settings)
    assert_same_files(tmp_path / "a", tmp_path / "b")
    assert (done.settings["device"], done.bytes) == ("cpu", plain.bytes)
    assert done.report is not None
    assert plain.report is not None
    assert done.report.mean_snr_db == pytest.approx(plain.report.mean_snr_db, abs=0.2)
    with pytest.raises(ValueError, match="device is 'gpu', which torch"):
        diba.compress(dense, tmp_path / "c", device="gpu")


def test_an_encoder_gets_line_by_line(encoder: Path, texts: Path, tmp_path: Path) -> None:
    done = diba.compress(encoder, tmp_path / "out", data=texts, **SMALL)
    assert 0 < done.figures["relative_error"] < 1
    assert "relative error" in str(done)
    assert done.report is not None
    reasons = {left.name: left.reason for left in done.report.skipped}
    assert reasons["pooler.dense"] == "not in the checkpoint"  # it would be compressed noise


def test_names_of_settings(dense: Path, tmp_path: Path) -> None:
    small = diba.compress(dense, tmp_path / "a", recipe="small", progress=False)
    best = diba.compress(dense, tmp_path / "b", recipe="best", effort="fast", progress=False)
    assert (small.settings["bits"], best.settings["bits"], best.settings["effort"]) == (1, 4, "fast")
    tables = {(made.settings["embeddings"], made.settings["head"]) for made in (small, best)}
    assert tables == {(4, 4)}
    assert best.settings["allocate"] is False
    assert small.bytes < best.bytes
    again = diba.compress(dense, tmp_path / "c", progress=False, **small.settings)
    assert_same_files(tmp_path / "a", tmp_path / "c")
    assert again == small.__class__(**{**vars(small), "path": again.path, "seconds": again.seconds})


# ---------------------------------------------------------------- what would come out


@pytest.mark.parametrize(
    "settings", [{}, {"bits": 1, "head": None, "embeddings": None}, {"skip": ["lm_head"]}]
)
def test_a_plan_is_what_comes_out(settings: dict[str, Any], dense: Path, tmp_path: Path) -> None:
    planned = diba.compressing.plan(dense, trials=False, **settings)
    done = diba.compress(dense, tmp_path / "out", progress=False, **settings)
    assert done.report is not None
    for one, other in zip(planned.report.layers, done.report.layers, strict=True):
        assert (one.name, one.shape, one.k, one.tied) == (other.name, other.shape, other.k, other.tied)
        assert one.bits_per_weight == pytest.approx(other.bits_per_weight)
        assert one.memory_bytes == other.memory_bytes
    assert planned.report.skipped == done.report.skipped
    assert planned.report.bytes_after == done.report.bytes_after
    assert planned.dense_bytes == done.dense_bytes
    assert abs(planned.bytes - done.bytes) < 150 * (1 + len(done.report.layers))  # names in the header
    assert (planned.seconds, planned.snr_db) == (None, None)
    assert planned.settings == done.settings


def test_trials_tell_time_and_snr(dense: Path) -> None:
    planned = diba.compressing.plan(dense, bits=3, threads=1)
    assert planned.seconds is not None
    assert planned.snr_db is not None
    assert 0 < planned.seconds < 60
    assert 5 < planned.snr_db < 20  # 3 bits of random matrices: about 13 dB
    assert json.loads(json.dumps(planned.to_dict()))["report"]["layers"]
    for line in ("file: ", "time without data: about", "memory: ", "SNR: "):
        assert line in str(planned)


def test_a_plan_says_what_smaller_tables_would_save(dense: Path) -> None:
    planned, small = (
        diba.compressing.plan(dense, trials=False, embeddings=bits, head=bits) for bits in ("auto", 4)
    )
    line = next(line for line in str(planned).splitlines() if line.startswith("of it in embeddings"))
    wide = {layer.name for layer in planned.report.layers if layer.alphabet == "int8"}
    sizes = [
        sum(x.bits_per_weight * x.weights / 8 for x in each.report.layers if x.name in wide)
        for each in (planned, small)
    ]
    assert re.findall(r"[0-9.]+(?= kB)", line) == [f"{size / 1000:.3g}" for size in sizes]
    assert "of it in embeddings" not in str(small)


def test_bits_go_where_they_are_worth_most(dense: Path, texts: Path, tmp_path: Path) -> None:
    settings = {**SMALL, "reconstruct": 0, "retune": 0}
    with pytest.raises(Stopped):
        diba.compress(dense, tmp_path / "out", data=texts, **{**settings, "progress": stop_at("convert", 1)})
    allocated = json.loads((tmp_path / "out" / ".diba" / "allocation").read_text())["value"]
    done = diba.compress(dense, tmp_path / "out", data=texts, **settings)
    diba.compress(dense, tmp_path / "clean", data=texts, **settings)
    assert_same_files(tmp_path / "out", tmp_path / "clean")
    assert done.report is not None
    factored = [layer for layer in done.report.layers if layer.k]
    assert {layer.name: layer.k for layer in factored} == allocated
    assert len({layer.k for layer in factored if layer.shape == factored[0].shape}) > 1
    bits = sum(layer.bits_per_weight * layer.weights for layer in factored)
    assert bits <= settings.get("bits", 2.0) * sum(layer.weights for layer in factored)


def test_nothing_to_compress_is_an_error(dense: Path) -> None:
    with pytest.raises(ValueError, match="nothing of the model would be compressed"):
        diba.compressing.plan(dense, skip=["re:.*"], embeddings=None, head=None)


# ---------------------------------------------------------------- stopped runs


@pytest.mark.parametrize(
    ("task", "steps"), [("convert", 2), ("convert", 9), ("convert", 15), ("retune", 0), ("retune", 5)]
)
def test_a_stopped_run_goes_on_to_the_same_bytes(
    task: str,
    steps: int,
    dense: Path,
    texts: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("diba.compressing.fitted.KEPT_EVERY", 2)
    out = tmp_path / "out"
    with pytest.raises(Stopped):
        diba.compress(dense, out, data=texts, **{**SMALL, "progress": stop_at(task, steps)})
    assert (out / ".diba").is_dir()
    with pytest.raises(ValueError, match=r"was begun with other input \(settings bits: 2.0, now 1.0\)"):
        diba.compress(dense, out, data=texts, bits=1.0, **SMALL)
    seen: list[diba.Progress] = []
    diba.compress(dense, out, data=texts, **{**SMALL, "progress": seen.append})
    assert_same_files(out, whole)
    assert_one_piece_of_work(seen)
    if task == "retune":
        assert not any(state.task == "convert" for state in seen)
        assert (seen[0].fraction or 0) > 0.3  # what an earlier run did counts


def test_what_is_retuned_is_not_retuned_again(
    dense: Path, texts: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: Any) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr("diba.compressing.judge.figures", stopped)
        with pytest.raises(Stopped):
            diba.compress(dense, tmp_path / "out", data=texts, **SMALL)
    assert diba.compressing.status(tmp_path / "out")["stage"] == "measuring"
    seen: list[diba.Progress] = []
    diba.compress(dense, tmp_path / "out", data=texts, **{**SMALL, "progress": seen.append})
    assert {state.task for state in seen} == {"load", "measure", "write"}
    assert_same_files(tmp_path / "out", whole)


def test_gradients_are_not_measured_again(
    dense: Path, texts: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Stopped):
        diba.compress(dense, out, data=texts, **{**SMALL, "progress": stop_at("convert", 1)})
    file = out / ".diba" / "gradients"
    content = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("diba.torch.calibration.propagate.measure", lambda *args: pytest.fail("measured again"))
        with pytest.raises(Stopped):
            diba.compress(dense, out, data=texts, **{**SMALL, "progress": stop_at("convert", 3)})
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))  # damage is noticed
    diba.compress(dense, out, data=texts, **SMALL)
    assert_same_files(out, whole)


def test_finished_layers_are_not_solved_again(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Stopped):
        diba.compress(dense, tmp_path / "out", threads=1, progress=stop_after(5))
    kept = sorted((tmp_path / "out" / ".diba" / "layers").iterdir())
    assert len(kept) == 5
    content = bytearray(kept[0].read_bytes())
    content[-1] ^= 1  # damage is noticed, and this layer solved again
    kept[0].write_bytes(content)
    solved: list[Any] = []
    original = diba.compressing.solving.solve_to

    def solve(folder: str, weight: Any, *args: Any) -> Any:
        solved.append(weight.name)
        return original(folder, weight, *args)

    monkeypatch.setattr("diba.compressing.solving.solve_to", solve)
    diba.compress(dense, tmp_path / "out", progress=False)
    diba.compress(dense, tmp_path / "clean", progress=False)
    assert_same_files(tmp_path / "out", tmp_path / "clean")
    layers = len(set(solved))
    assert len(solved) == 2 * layers - 4


def test_a_result_that_is_there_is_only_moved(
    dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    moved: list[Path] = []
    original = Path.replace

    def replace(self: Path, target: Any) -> Any:
        if Path(target).parent == out and self.parent.name == "final":
            moved.append(self)
            if len(moved) == 2:
                raise Stopped
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(Stopped):
            diba.compress(dense, out, progress=False)
    seen: list[diba.Progress] = []
    done = diba.compress(dense, out, progress=seen.append)
    assert not seen
    diba.compress(dense, tmp_path / "clean", progress=False)
    assert_same_files(out, tmp_path / "clean")
    again = diba.compress(dense, out, progress=False)
    assert (again.bytes, again.bits_per_weight) == (done.bytes, done.bits_per_weight)


@pytest.mark.slow
def test_killed_processes_lose_nothing(dense: Path, texts: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for count in (1, 4, 9):  # files that a run leaves behind when it is killed, at least
        killed_when(out / ".diba" / "layers", count, dense, out, data=texts, **SMALL)
        assert (out / ".diba").is_dir()
    diba.compress(dense, out, data=texts, **SMALL)
    assert_same_files(out, whole)


def test_stops_more_often_than_a_block_takes(
    dense: Path, texts: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every run trains some steps further, in the middle of a block."""
    monkeypatch.setattr("diba.compressing.fitted.KEPT_SECONDS", 0.0)
    original, left = torch.optim.Adam.step, 0

    def step(self: torch.optim.Adam, *args: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise Stopped
        return original(self, *args)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    stops = 0
    for _ in range(12):
        left = 9  # of 20 to 28 in each of two blocks, and 6 at the end
        try:
            diba.compress(dense, tmp_path / "out", data=texts, **SMALL)
        except Stopped:
            stops += 1
        else:
            break
    assert 4 <= stops <= 7
    assert_same_files(tmp_path / "out", whole)


# ---------------------------------------------------------------- what is refused


def test_a_folder_is_held_by_one_process(dense: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        diba.compress(dense, tmp_path / "out", threads=1, progress=stop_after(1))
    with (tmp_path / "out" / ".diba" / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OSError, match="another process is compressing into it"):
            diba.compress(dense, tmp_path / "out", progress=False)
    diba.compress(dense, tmp_path / "out", progress=False)


def test_folders_that_hold_something_else(dense: Path, texts: Path, whole: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    for model, out, error in (
        (dense, dense, "is the model's folder"),
        (dense, tmp_path / "full", "is not empty, it has thesis.tex"),
        (whole, tmp_path / "x", "quantized already"),
        (dense, whole, r"holds the result of other input \(data some.jsonl: .*, now null"),
    ):
        with pytest.raises(ValueError, match=error):
            diba.compress(model, out, **SMALL)
    assert (tmp_path / "full" / "thesis.tex").read_text() == "x"
    with pytest.raises(ValueError, match=r"ends in .jsonl; it must be a folder, or a file that ends in"):
        diba.compress(texts, tmp_path / "x")
    with pytest.raises(FileNotFoundError, match=r"has no safetensors file"):
        diba.compress(tmp_path, tmp_path / "x")


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("a.txt", b"too short", "makes 0 batches"),
        ("a.txt", b"\xff\xfe" * 500, "is no text in UTF-8"),
        ("a.jsonl", b'"good"\n{"text": 3}\n', 'a.jsonl, line 2: has no text'),
        ("a.jsonl", b'"good"\nbad\n', "line 2: is no JSON"),
        ("a.csv", b"1,2", r"ends in .csv; for LlamaForCausalLM it must have texts"),
    ],
)  # fmt: skip
def test_data_that_are_no_texts(name: str, content: bytes, error: str, dense: Path, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=error):
        diba.compress(dense, tmp_path / "out", data=tmp_path / name, **SMALL)


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({"bits": 0}, ValueError, "bits is 0"),
        ({"effort": "high"}, ValueError, "effort"),
        ({"embeddings": 3}, ValueError, "embeddings is 3; it must be 8, 4, 'auto' or None"),
        ({"tokens": 1}, ValueError, "at least 2"),
        ({"allocate": 1}, TypeError, r"allocate is 1 \(int\); it must be True, False or None"),
        ({"allocate": True}, ValueError, "there are no data, which say what layers are worth"),
        ({"retune": -1}, ValueError, "retune"),
        ({"recipe": "tiny"}, ValueError, "recipe"),
        ({"bit": 2}, TypeError, "no setting 'bit'; known: bits"),
        ({"progress": 3}, TypeError, "progress"),
        ({"threads": 0}, ValueError, "threads"),
    ],
)
def test_bad_settings(
    settings: dict[str, Any], error: type[Exception], text: str, dense: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=text):
        diba.compress(dense, tmp_path / "out", **settings)
    assert not (tmp_path / "out" / "model.safetensors").exists()


# ---------------------------------------------------------------- afterwards


def test_a_whole_folder_is_verified(dense: Path, whole: Path) -> None:
    recorded = diba.compressing.verify(whole)
    measured = diba.compressing.verify(whole, against=dense)
    found = transformers.AutoModelForCausalLM.from_pretrained(whole)
    expected = transformers.AutoModelForCausalLM.from_pretrained(dense)
    for layer, before in zip(measured.layers, recorded.layers, strict=True):
        own = found.get_submodule(layer.name).weight.detach().double().numpy()
        exact = expected.get_submodule(layer.name).weight.detach().double().numpy()
        snr = 10 * np.log10((exact**2).sum() / ((exact - own) ** 2).sum())
        assert layer.snr_db == pytest.approx(snr, abs=1e-3)
        assert before.snr_db == {x.name: x.snr_db for x in diba.torch.report(found).layers}[layer.name]


def test_damage_is_found(dense: Path, encoder: Path, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(diba.FormatError, match=r"is not what diba\.compress wrote"):
        diba.compressing.verify(folder)
    (folder / DONE).write_text("{}")
    with pytest.raises(diba.FormatError, match=r"diba-compress\.json is damaged"):
        diba.compressing.verify(folder)
    (folder / DONE).unlink()
    tensors = load_file(whole / "model.safetensors")
    tensors["model.norm.weight"][0] = np.nan
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(diba.FormatError, match=r"model.norm.weight has entries that are not finite"):
        diba.compressing.verify(folder)
    with pytest.raises(ValueError, match="is a dense model"):
        diba.compressing.verify(dense)
    with pytest.raises(ValueError, match=r"against has no .* of that shape"):
        diba.compressing.verify(whole, against=encoder)


def test_models_are_measured_on_texts(dense: Path, encoder: Path, texts: Path, whole: Path) -> None:
    figures = diba.compressing.evaluate(whole, texts, against=dense, tokens=24, rows=2)
    alone = diba.compressing.evaluate(dense, texts, tokens=24, rows=2)
    assert alone["perplexity"] == figures["perplexity_dense"]
    assert "perplexity_dense" not in alone
    with pytest.raises(ValueError, match="give against, the folder of the dense model"):
        diba.compressing.evaluate(encoder, texts)
    same = diba.compressing.evaluate(encoder, texts, against=encoder, tokens=24)
    assert same == {"relative_error": 0}
    with pytest.raises(ValueError, match="tokens is 256, and the model takes at most 64"):
        diba.compressing.evaluate(encoder, texts, against=encoder)


# ---------------------------------------------------------------- the command


def test_the_commands(dense: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert (
        main(["compress", str(dense), "-o", out, "--bits", "1", "--head", "none", "--json", "--quiet"]) == 0
    )
    facts = json.loads(capsys.readouterr().out)
    assert facts["settings"]["bits"] == 1
    assert facts["settings"]["head"] is None
    assert facts["bytes"] == (tmp_path / "out" / "model.safetensors").stat().st_size
    assert main(["plan", str(dense), "--bits", "1", "--head", "none", "--no-trials", "--json"]) == 0
    assert abs(json.loads(capsys.readouterr().out)["bytes"] - facts["bytes"]) < 3000
    assert main(["verify", out, "--against", str(dense), "--html", str(tmp_path / "verified.html")]) == 0
    assert f"{out}: whole" in capsys.readouterr().out
    plan = ["plan", str(dense), "--no-trials", "--html", str(tmp_path / "plan.html")]
    again = ["compress", str(dense), "-o", out, "--bits", "1", "--head", "none"]
    again += ["--quiet", "--html", str(tmp_path / "again.html")]
    assert main(plan) == main(again) == 0
    assert main(["inspect", out, "--html", str(tmp_path / "inspected.html")]) == 0
    capsys.readouterr()
    for name, said in (
        ("plan", "memory, as expected"),
        ("again", "diba.compress</summary>"),
        ("verified", "SNR of each layer"),
        ("inspected", "SNR of each layer"),
    ):
        assert said in (tmp_path / f"{name}.html").read_text()
    assert f"<h1>{dense.name}, as planned</h1>" in (tmp_path / "plan.html").read_text()
    assert main(["eval", out, "--data", str(texts), "--tokens", "24", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["perplexity"] > 1
    assert main(["compress", str(dense), "-o", out, "--bits", "2"]) == 2
    assert "holds the result of other input (settings bits: 1.0, now 2.0" in capsys.readouterr().err


def test_status_and_log(dense: Path, texts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, log = tmp_path / "out", tmp_path / "log"

    def state() -> dict[str, Any]:
        assert main(["compress", "--status", str(out), "--json"]) == 0
        return dict(json.loads(capsys.readouterr().out))

    assert state() == {"state": "nothing"}
    for task, steps, expected in (
        ("convert", 4, {"state": "stopped", "layers": 4, "blocks": None, "stage": "compressing"}),
        ("convert", 12, {"state": "stopped", "layers": 12, "blocks": 1, "stage": "compressing"}),
        ("retune", 1, {"state": "stopped", "layers": 16, "blocks": 2, "stage": "retuning"}),
    ):
        with pytest.raises(Stopped):
            diba.compress(dense, out, data=texts, **{**SMALL, "progress": stop_at(task, steps)})
        assert state() == expected
    with (out / ".diba" / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert state()["state"] == "running"
    names = ("tokens", "rows", "batches", "reconstruct", "retune", "threads")
    settings = [f"--{name}={SMALL[name]}" for name in names]
    command = ["compress", str(dense), "-o", str(out), "--data", str(texts), "--quiet", "--log", str(log)]
    assert main([*command, *settings]) == 0
    assert state() == {"state": "finished"}
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["done"] for line in lines if line["task"] == "retune"] == list(range(7))
    assert all(line["time"] > 1.7e9 for line in lines)
    shares = [line["fraction"] for line in lines]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert {"load", "convert", "measure", "write"} & {line["task"] for line in lines} == {
        "load",
        "measure",
        "write",
    }
    assert main(["compress", str(dense)]) == 2
    assert "MODEL and -o OUT are needed" in capsys.readouterr().err


def _umask() -> int:
    os.umask(mask := os.umask(0))
    return mask
