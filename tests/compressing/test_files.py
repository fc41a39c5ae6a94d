"""``diba.compress`` without data: from files to files, by whoever solves, and of models without code."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import active_children, get_context
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

import diba
import diba.compressing
import diba.torch
from diba.cli import main
from diba.compressing.source import Source, source_at
from tiny_language import language_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WEIGHTS = "model.safetensors"


def assert_same(a: Path, b: Path) -> None:
    for name in (WEIGHTS, "config.json"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def small(kind: str) -> Any:
    """A model with random weights."""
    torch.manual_seed(1)
    if kind == "llama, bfloat16":
        return language_model().to(torch.bfloat16)
    if kind == "GPT-2":  # transposed weights, and a head that shares the embedding
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "bos_token_id": 0}
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=99, eos_token_id=0, **shape))
    sizes: dict[str, Any] = {"embedding_size": 16, "hidden_sizes": [16, 24], "depths": [1, 1]}
    return transformers.ResNetForImageClassification(transformers.ResNetConfig(**sizes))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dense")
    language_model().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clean(dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one uninterrupted run makes."""
    out = tmp_path_factory.mktemp("clean") / "out"
    diba.compress(dense, out, progress=False)
    return out


# ---------------------------------------------------------------- the same model as by from_pretrained


@pytest.mark.parametrize("kind", ["llama, bfloat16", "GPT-2", "ResNet"])
def test_files_are_those_of_a_model_in_memory(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(kind).eval().save_pretrained(tmp_path / "dense")
    plan = diba.compressing.plan(tmp_path / "dense", bits=1.5, trials=False)
    done = diba.compress(tmp_path / "dense", tmp_path / "files", bits=1.5, progress=False)
    monkeypatch.setattr(Source, "outline", lambda *args, **options: "a test asks for it")
    diba.compress(tmp_path / "dense", tmp_path / "memory", bits=1.5, progress=False)
    assert_same(tmp_path / "files", tmp_path / "memory")
    assert done.bytes == plan.bytes == (tmp_path / "files" / WEIGHTS).stat().st_size
    assert [layer.name for layer in done.report.layers] == [layer.name for layer in plan.report.layers]


def test_experts_are_compressed_in_memory(tmp_path: Path) -> None:
    """Their weights are fused in the model, and apart in the files."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.MixtralConfig(vocab_size=99, num_local_experts=2, num_key_value_heads=2, **shape)
    transformers.MixtralForCausalLM(config).eval().save_pretrained(tmp_path / "dense")
    plan = diba.compressing.plan(tmp_path / "dense", trials=False)
    assert "fused" in plan.note
    with pytest.raises(ValueError, match="workers, executor and shards cannot help: it has fused matrices"):
        diba.compress(tmp_path / "dense", tmp_path / "out", workers=2, progress=False)
    done = diba.compress(tmp_path / "dense", tmp_path / "out", progress=False)
    assert {x.name for x in done.report.layers} == {x.name for x in plan.report.layers}


# ---------------------------------------------------------------- tensors without a model's code


def tensors() -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    shapes = {
        "embed_tokens.weight": (99, 32), "a.up.weight": (48, 32), "a.up.bias": (48,),
        "a.down.weight": (32, 48), "norm.weight": (32,), "lm_head.weight": (99, 32),
        "conv.weight": (4, 4, 3, 3), "tiny.weight": (2, 2), "W": (40, 40), "steps": (7,),
    }  # fmt: skip
    made = {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return made | {"steps": np.arange(7)}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tensors as a file, as two files with an index, and as an npz."""
    folder = tmp_path_factory.mktemp("files")
    every = tensors()
    save_file(every, folder / "one.safetensors")
    np.savez(folder / "one.npz", **{name: np.asfortranarray(array) for name, array in every.items()})
    (folder / "two").mkdir()
    parts = list(every)[:4], list(every)[4:]
    for number, names in enumerate(parts):
        save_file({name: every[name] for name in names}, folder / "two" / f"part-{number}.safetensors")
    index = {name: f"part-{number}.safetensors" for number, names in enumerate(parts) for name in names}
    (folder / "two" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return folder


@pytest.mark.parametrize("source", ["one.safetensors", "one.npz", "two", "two/model.safetensors.index.json"])
def test_tensors_by_name(source: str, files: Path, tmp_path: Path) -> None:
    plan = diba.compressing.plan(files / source, trials=False)
    done = diba.compress(files / source, tmp_path / "out", progress=False)
    assert {layer.name: layer.alphabet for layer in plan.report.layers} == {
        "embed_tokens": "int8", "lm_head": "int8", "a.up": "sign", "a.down": "sign", "W": "sign",
    }  # fmt: skip
    left = {entry.name: entry.reason for entry in plan.report.skipped}
    assert left["conv"] == "has more than two dimensions"
    assert "too small" in left["tiny"]
    assert done.bytes == plan.bytes
    found, exact = load_file(tmp_path / "out" / WEIGHTS), tensors()
    for name in ("a.up.bias", "norm.weight", "conv.weight", "tiny.weight", "steps"):
        assert (found[name] == exact[name]).all()
    one = diba.compress(files / "one.safetensors", tmp_path / "one", progress=False)
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (one.path / WEIGHTS).read_bytes()
    weights = diba.compressing.weights(tmp_path / "out")
    assert set(weights) == {name.removesuffix(".weight") for name in exact} - {"norm", "conv", "tiny"} | {
        "norm.weight", "conv.weight", "tiny.weight",
    }  # fmt: skip
    assert weights["W"] == diba.solve(exact["W"], bits_per_weight=2, alphabet="sign", effort="fast")
    assert np.abs(weights["lm_head"] - exact["lm_head.weight"]).max() < 0.02
    assert (weights["a.up.bias"] == exact["a.up.bias"]).all()
    with pytest.raises(KeyError, match="has no layer or tensor 'b'"):
        weights["b"]
    report = diba.compressing.verify(tmp_path / "out", against=files / source)
    expected = diba.solve(exact["W"], bits_per_weight=2, alphabet="sign", effort="fast")
    snr = {layer.name: layer.snr_db for layer in report.layers}
    assert snr["W"] == pytest.approx(expected.snr_db(exact["W"]), abs=1e-9)


class OwnCode(torch.nn.Module):
    """A model of no library."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(99, 32)
        self.up, self.down = torch.nn.Linear(32, 48), torch.nn.Linear(48, 32, bias=False)
        self.head = torch.nn.Linear(32, 99, bias=False)
        self.head.weight = self.embed_tokens.weight
        self.norm = torch.nn.LayerNorm(32)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.down(self.up(self.embed_tokens(ids)).relu())))


def test_a_model_of_ones_own_code_loads_it(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = OwnCode()
    state = {name: x.numpy() for name, x in model.state_dict().items() if name != "head.weight"}
    save_file(state, tmp_path / "m.safetensors")
    diba.compress(tmp_path / "m.safetensors", tmp_path / "out", progress=False)
    found = diba.torch.load(OwnCode(), tmp_path / "out")
    names = {name for x in diba.torch.report(found).layers for name in (x.name, *x.tied)}
    assert names == {"embed_tokens", "head", "up", "down"}  # the head shares the embedding's weight
    for name, tensor in found.state_dict().items():
        if name in state:
            assert torch.equal(tensor, model.state_dict()[name]), name
    for name in ("up", "down"):
        exact = diba.solve(state[f"{name}.weight"], bits_per_weight=2, alphabet="sign", effort="fast")
        assert found.get_submodule(name).factorization() == exact
    error = found.head.to_dense_module().weight - model.head.weight
    assert error.norm() < 0.01 * model.head.weight.norm()
    assert found(torch.arange(99)[None]).isfinite().all()
    with pytest.raises(ValueError, match=r"has a compressed layer down, and the model has no such layer"):
        diba.torch.load(torch.nn.ModuleDict({"up": torch.nn.Linear(32, 48)}), tmp_path / "out")
    wrong = OwnCode()
    wrong.down = torch.nn.Linear(48, 16, bias=False)
    with pytest.raises(ValueError, match=r"down as a matrix of 32 x 48, and the model has one of 16 x 48"):
        diba.torch.load(wrong, tmp_path / "out")
    more = OwnCode()
    more.other = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"has no other.weight, and the model has one"):
        diba.torch.load(more, tmp_path / "out")
    assert not diba.torch.report(more).layers


def test_no_torch_is_needed(files: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from diba.cli import main\n"
        f"for command in (['plan', {str(files / 'two')!r}, '--no-trials'],\n"
        f"    ['compress', {str(files / 'two')!r}, '-o', {str(tmp_path / 'out')!r}, '--quiet'],\n"
        f"    ['verify', {str(tmp_path / 'out')!r}, '--against', {str(files / 'one.npz')!r}]):\n"
        "    assert main(command) == 0"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_files_that_cannot_be_read(files: Path, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes((files / "one.npz").read_bytes()[:-200])
    (tmp_path / "x.safetensors").write_bytes((files / "one.safetensors").read_bytes()[:-1])
    np.savez(tmp_path / "objects.npz", a=np.array(["text"]))
    np.savez(tmp_path / "vectors.npz", a=np.ones(3))
    np.savez(tmp_path / "nan.npz", a=np.full((32, 32), np.nan))
    (tmp_path / "x.pt").write_bytes(b"x")
    for name, error in (
        ("x.npz", "is damaged or not an npz file"),
        ("x.safetensors", "x.safetensors"),
        ("objects.npz", "a is of dtype <U4; it must be an array of numbers"),
        ("vectors.npz", "would be compressed: it has no matrix"),
        ("nan.npz", r"the weight of a has 1024 NaN or infinite entries in .*nan.npz; all must be finite"),
        ("x.pt", "ends in .pt; it must be a folder, or a file"),
    ):
        with pytest.raises(ValueError, match=error):
            diba.compress(tmp_path / name, tmp_path / "out-x", progress=False)
        if (tmp_path / "out-x").exists():  # another model is another run
            for path in sorted((tmp_path / "out-x").rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match="'b' in skip names no matrix; they are "):
        diba.compress(files / "one.npz", tmp_path / "out", skip=["b"], progress=False)
    with pytest.raises(ValueError, match=r"data needs the code of the model, and there is no config.json"):
        diba.compress(files / "one.npz", tmp_path / "out", data=tmp_path / "t.txt", progress=False)


def test_a_model_whose_class_is_unknown_goes_by_names(dense: Path, clean: Path, tmp_path: Path) -> None:
    folder = tmp_path / "dense"
    folder.mkdir()
    config = json.loads((dense / "config.json").read_text()) | {"model_type": "of-tomorrow"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / WEIGHTS).write_bytes((dense / WEIGHTS).read_bytes())
    plan = diba.compressing.plan(folder, trials=False)
    assert "'of-tomorrow', which transformers does not have" in plan.note
    diba.compress(folder, tmp_path / "out", progress=False)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["model_type"] == "of-tomorrow"
    a, b = load_file(tmp_path / "out" / WEIGHTS), load_file(clean / WEIGHTS)
    assert a.keys() == b.keys() - {"model.embed_tokens.steps"}  # 8 bits: it may be multiplied by
    assert all((a[name] == b[name]).all() for name in b if ".mlp." in name or "norm" in name)


# ---------------------------------------------------------------- whoever solves


def test_workers_give_the_same_bytes_also_when_one_dies(dense: Path, clean: Path, tmp_path: Path) -> None:
    killed: list[int] = []

    def progress(state: diba.Progress) -> None:
        workers = [process.pid for process in active_children()]
        if state.item is not None and not killed and workers:
            killed.append(workers[0] or 0)
            os.kill(killed[0], signal.SIGKILL)

    diba.compress(dense, tmp_path / "out", workers=2, threads=1, progress=progress)
    assert killed
    assert_same(tmp_path / "out", clean)
    assert not active_children()


def test_an_executor_of_others_gives_the_same_bytes(dense: Path, clean: Path, tmp_path: Path) -> None:
    class Forgetful(ThreadPoolExecutor):
        """It loses the first task, as one does whose worker is gone."""

        lost = False

        def submit(self, *args: Any, **options: Any) -> Future[Any]:
            future = super().submit(*args, **options)
            if not self.lost:
                future = Future()
                future.cancel()
                future.set_running_or_notify_cancel()
            self.lost = True
            return future

    with Forgetful(2) as executor:
        diba.compress(dense, tmp_path / "threads", executor=executor, threads=1, progress=False)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        diba.compress(dense, tmp_path / "processes", executor=executor, threads=1, progress=False)
    assert_same(tmp_path / "threads", clean)
    assert_same(tmp_path / "processes", clean)


def test_tasks_that_are_always_lost_end_the_run(dense: Path, clean: Path, tmp_path: Path) -> None:
    class Gone(ThreadPoolExecutor):
        def submit(self, *args: Any, **options: Any) -> Future[Any]:
            future: Future[Any] = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future

    with Gone(1) as executor, pytest.raises(OSError, match="was lost 3 times"):
        diba.compress(dense, tmp_path / "out", executor=executor, progress=False)
    diba.compress(dense, tmp_path / "out", progress=False)
    assert_same(tmp_path / "out", clean)


@pytest.fixture
def scheduler() -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A dask scheduler and two workers, each a process, on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    host, port = address.split(":")
    dask = [
        sys.executable,
        "-m",
        "distributed.cli.dask_scheduler",
        "--host",
        host,
        "--port",
        port,
        "--no-dashboard",
    ]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", f"tcp://{address}", "--nthreads", "1"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    commands = [[*dask, "--no-dashboard"], *[[*worker, "--no-nanny", "--no-dashboard"]] * 2]
    processes = [subprocess.Popen(command, **quiet) for command in commands]
    yield f"tcp://{address}", processes
    for process in processes:
        process.kill()
        process.wait()


def test_dask_gives_the_same_bytes_also_when_a_worker_dies(
    scheduler: tuple[str, list[subprocess.Popen[bytes]]], dense: Path, clean: Path, tmp_path: Path
) -> None:
    from distributed import Client

    address, (_, first, _) = scheduler
    killed: list[bool] = []

    def progress(state: diba.Progress) -> None:
        if state.item is not None and not killed:
            killed.append(True)
            first.kill()

    with Client(address, timeout=60) as client:
        client.wait_for_workers(2, timeout=60)
        executor = client.get_executor()
        diba.compress(dense, tmp_path / "out", executor=executor, threads=1, progress=progress)
    assert killed
    assert_same(tmp_path / "out", clean)


def test_shares_are_done_apart_and_merged(dense: Path, clean: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    left = diba.compressing.compress_shard(dense, here, (1, 3), progress=False)
    weights = source_at(dense).outline(diba.compressing.CompressSettings()).weights  # type: ignore[union-attr]
    assert 0 < left < len(weights)
    assert main(["compress", str(dense), "-o", str(there), "--shard", "2/3", "--quiet"]) == 0
    assert diba.compressing.status(there)["layers"] < len(weights)
    done = {path.name for folder in (here, there) for path in (folder / ".diba" / "layers").iterdir()}
    assert len(done) < len(weights)  # the third is not done; merging does it
    solved: list[str] = []

    def seen(state: diba.Progress) -> None:
        solved.extend([] if state.item is None else [state.item])

    diba.compressing.merge(here, [there], progress=seen)
    assert len(solved) == len(weights) - len(done)
    assert_same(here, clean)


def test_shares_of_other_tasks_are_not_merged(dense: Path, tmp_path: Path) -> None:
    diba.compressing.compress_shard(dense, tmp_path / "a", (1, 2), progress=False)
    diba.compressing.compress_shard(dense, tmp_path / "b", (2, 2), bits=1.0, progress=False)
    with pytest.raises(ValueError, match=r"b was begun with other input \(settings bits: 1.0, now 2.0\)"):
        diba.compressing.merge(tmp_path / "a", [tmp_path / "b"], progress=False)
    with pytest.raises(ValueError, match="has no run in it"):
        diba.compressing.merge(tmp_path / "c", progress=False)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"workers": 0}, "workers"),
        ({"workers": 2, "executor": ThreadPoolExecutor(1)}, "workers and executor are given"),
    ],
)
def test_workers_that_cannot_be(options: dict[str, Any], error: str, dense: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=error):
        diba.compress(dense, tmp_path / "out", **options)
    with pytest.raises(TypeError, match=r"executor is a int; it must be a concurrent.futures.Executor"):
        diba.compress(dense, tmp_path / "out", executor=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="shard is 3 of 2; it must be from 1 to 2"):
        diba.compressing.compress_shard(dense, tmp_path / "out", (3, 2))


def test_workers_end_with_the_run(dense: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def progress(state: diba.Progress) -> None:
        if state.item is not None:
            raise Stopped

    began = time.monotonic()
    with pytest.raises(Stopped):
        diba.compress(dense, tmp_path / "out", workers=2, threads=1, progress=progress)
    assert not active_children(), f"after {time.monotonic() - began:.0f} s"
