"""Whole models from folder to folder: what the plan says and what comes, workers, memory, large layers.

    python benchmarks scaling --model minilm=FOLDER --model smollm2=FOLDER --json scaling.json
    python benchmarks scaling --parts data --model smollm2=FOLDER --data texts.txt --json scaling.json

``--parts`` chooses: ``forecast`` compares plan and run for every model, each in a process of its own;
``workers`` takes turns between one and two processes and two dask workers, a thread each, with the first
model; ``layers`` times large matrices; ``billion`` compresses some layers of a model of 1B shapes with random
weights, made in a temporary folder of 2.2 GB, and says what all of them take. ``data`` is a whole run with
data for every model, with so few steps of training that memory can be seen in less time: steps cost none.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import diba
from diba._internal.tensor_files import framed, read_header

from ..common import results
from ..common.command import arguments_of, finish, parser
from ..common.process import in_process, memory
from ..solver.large import made
from .scaling_table import table

__all__ = ["main", "work"]

PARTS = ("forecast", "workers", "layers", "billion")
SHAPES = ((1024, 1024), (2048, 2048), (4096, 4096), (14336, 4096))
FEW_STEPS = {"reconstruct": 8, "retune": 8}
BILLION = {"hidden": 2048, "intermediate": 5632, "blocks": 22, "heads": 256, "vocabulary": 32000}
TURNS = 2


# ---------------------------------------------------------------- in a process of its own


def work(task: dict[str, Any]) -> dict[str, Any]:
    """Do a part of the measurement."""
    if task["part"] == "layer":
        return _layer(task)
    import diba.compressing

    if not task.get("names"):
        import torch  # noqa: F401  # what the class of a model needs, before memory is looked at
        import transformers  # noqa: F401

        import diba.hf
    settings = {"bits": task["bits"], "threads": task["threads"]}
    before, began = memory(), time.perf_counter()
    if task["part"] == "plan":
        plan = diba.compressing.plan(task["model"], **settings)
        return {"seconds": plan.seconds, "bytes": plan.bytes, "memory": plan.memory_bytes}
    who: dict[str, Any] = {"workers": task.get("workers"), "progress": _stop_after(task.get("layers"))}
    with _dask(task.get("dask")) as executor, contextlib.suppress(_Enough):
        diba.compress(task["model"], task["out"], executor=executor, **settings, **who, **task.get("fit", {}))
    seconds = time.perf_counter() - began
    out = Path(task["out"])
    solved = [_seconds(path) for path in (out / ".diba" / "layers").glob("*.layer")]
    weights = out / "model.safetensors"
    return {
        "seconds": seconds,
        "bytes": weights.stat().st_size if weights.is_file() else None,
        "memory": (memory()["peak"] or 0) - (before["resident"] or 0),
        "solved": solved,
    }


class _Enough(Exception):
    """Enough layers are finished."""


def _stop_after(layers: int | None) -> Any:
    if layers is None:
        return False
    seen: set[str] = set()

    def progress(state: diba.Progress) -> None:
        if state.item is not None:
            seen.add(state.item)
        if len(seen) >= layers:
            raise _Enough

    return progress


def _seconds(path: Path) -> float:
    """What a finished layer took, from the header of its file."""
    with path.open("rb") as file:
        recipe = json.loads(read_header(file, str(path)).metadata["recipe"])
    return float(recipe["seconds"])


@contextlib.contextmanager
def _dask(address: str | None) -> Iterator[Any]:
    if address is None:
        yield None
        return
    from distributed import Client

    with Client(address) as client:
        client.wait_for_workers(2, timeout=60)
        yield client.get_executor()


def _layer(task: dict[str, Any]) -> dict[str, Any]:
    m, n = task["shape"]
    A = np.ascontiguousarray(np.tile(made(n, 0), (-(-m // n), 1))[:m]) if m != n else made(n, 0)
    if m != n:
        A += np.random.default_rng(1).standard_normal(A.shape, dtype=np.float32)
    before, began = memory()["resident"] or 0, time.perf_counter()
    options: dict[str, Any] = {"alphabet": "sign", "effort": "fast", "threads": task["threads"]}
    f = diba.solve(A, bits_per_weight=task["bits"], **options)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "snr_db": f.snr_db(A), "memory": (memory()["peak"] or 0) - before, "k": f.k}


# ---------------------------------------------------------------- parts


def _in_process(task: dict[str, Any], threads: int) -> dict[str, Any]:
    found: dict[str, Any] = in_process("scaling", task, {"OMP_NUM_THREADS": str(threads)})
    return found


def forecast(models: dict[str, str], bits: float, threads: int, rows: list[dict[str, Any]]) -> Iterator[None]:
    """What the plan says of every model, and what a run takes."""
    for name, path in models.items():
        if any(row["model"] == name for row in rows):
            continue
        common = {"model": path, "bits": bits, "threads": threads}
        said = _in_process({"part": "plan", **common}, threads)
        with tempfile.TemporaryDirectory() as folder:
            came = _in_process({"part": "run", "out": f"{folder}/out", **common}, threads)
        rows.append({"model": name, "bits": bits, "plan": said, "run": {**came, "solved": None}})
        yield


def workers(model: str, bits: float, rows: list[dict[str, Any]]) -> Iterator[None]:
    """Seconds of one process, of two, and of two dask workers, in turns."""
    for _ in range(TURNS - len(rows)):
        row = {}
        with tempfile.TemporaryDirectory() as folder:
            common = {"part": "run", "model": model, "bits": bits, "threads": 1}
            for name, who in (("one", {"workers": 1}), ("two", {"workers": 2})):
                row[name] = _in_process({**common, "out": f"{folder}/{name}", **who}, 1)["seconds"]
            with _cluster() as address:
                row["dask"] = _in_process({**common, "out": f"{folder}/d", "dask": address}, 1)["seconds"]
            same = {(Path(folder, name) / "model.safetensors").read_bytes() for name in ("one", "two", "d")}
        rows.append({**row, "bits": bits, "equal": len(same) == 1})
        yield


@contextlib.contextmanager
def _cluster() -> Iterator[str]:
    """A dask scheduler and two workers of a thread each, on loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    address = f"tcp://127.0.0.1:{port}"
    start = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", port]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny"]
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    commands = [[*start, "--no-dashboard"], *[[*worker, "--no-dashboard"]] * 2]
    processes = [subprocess.Popen(command, env=environment, **quiet) for command in commands]
    try:
        yield address
    finally:
        for process in processes:
            process.kill()
            process.wait()


def fitted(models: dict[str, str], data: str, bits: float, threads: int, rows: list[Any]) -> Iterator[None]:
    """Memory and seconds of runs with data, of few steps."""
    for name, path in models.items():
        if any(row["model"] == name for row in rows):
            continue
        with tempfile.TemporaryDirectory() as folder:
            task = {"part": "run", "model": path, "out": f"{folder}/out", "bits": bits, "threads": threads}
            came = _in_process({**task, "fit": {"data": data, **FEW_STEPS}}, threads)
        facts = {"model": name, "bits": bits, "threads": threads, "machine": results.machine()["isa"]}
        rows.append({**facts, **came, "solved": None, **FEW_STEPS})
        yield


def layers(bits: float, threads: int, rows: list[dict[str, Any]]) -> Iterator[None]:
    """Seconds and memory of large matrices, with one thread and with all."""
    for shape in SHAPES:
        if not any(row["shape"] == list(shape) for row in rows):
            task = {"part": "layer", "shape": shape, "bits": bits, "threads": threads}
            rows.append(
                {"shape": list(shape), "bits": bits, "threads": threads, **_in_process(task, threads)}
            )
            yield


def billion(bits: float, threads: int, solved: int) -> dict[str, Any]:
    """Some layers of a model of 1B shapes, and from them what all of them take."""
    sizes = BILLION
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        _write_billion(path)
        common = {"model": str(path), "bits": bits, "threads": threads, "names": True}
        said = _in_process({"part": "plan", **common}, threads)
        task = {"part": "run", "out": f"{folder}/out", "layers": solved, **common}
        came = _in_process(task, threads)
        size = path.stat().st_size
    return {"sizes": sizes, "file_bytes": size, "layers": solved, "plan": said, "run": came}


def _write_billion(path: Path) -> None:
    """A safetensors file of random bfloat16 weights, one tensor in memory at a time."""
    hidden, inner, rows = BILLION["hidden"], BILLION["intermediate"], BILLION["vocabulary"]
    shapes = {"model.embed_tokens.weight": (rows, hidden), "lm_head.weight": (rows, hidden)}
    for block in range(BILLION["blocks"]):
        own = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (BILLION["heads"], hidden)}
        own |= {"self_attn.v_proj": (BILLION["heads"], hidden), "self_attn.o_proj": (hidden, hidden)}
        own |= {
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        shapes |= {f"model.layers.{block}.{name}.weight": shape for name, shape in own.items()}
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        offsets = [end, end := end + 2 * shape[0] * shape[1]]
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": offsets}
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(framed(json.dumps(header).encode()))
        for shape in shapes.values():
            values = random.standard_normal(shape, dtype=np.float32)
            file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())


def main(arguments: Sequence[str]) -> None:
    options = parser("scaling", __doc__, threads=diba.num_threads())
    options.add_argument(
        "--model", action="append", default=[], metavar="NAME=FOLDER", help="may be repeated"
    )
    options.add_argument("--parts", nargs="+", choices=[*PARTS, "data"], default=PARTS)
    options.add_argument("--data", metavar="DATA", help="see 'diba compress'")
    options.add_argument("--bits", type=float, default=2.0, metavar="B", help="per weight (2)")
    options.add_argument("--solved", type=int, default=4, metavar="N", help="layers of the 1B model (4)")
    chosen = options.parse_args(arguments)
    models = dict(each.split("=", 1) for each in chosen.model)
    fresh = {"machine": results.machine(), "arguments": {**arguments_of(chosen), "model": sorted(models)}}
    fresh |= {"forecast": [], "workers": [], "layers": [], "billion": None}
    report = results.go_on(chosen.json, fresh)
    report.setdefault("data", [])
    for part in chosen.parts:
        if part == "billion" and not report["billion"]:
            report["billion"] = billion(chosen.bits, chosen.threads, chosen.solved)
        steps: Iterator[None] = iter(())
        if part == "forecast":
            steps = forecast(models, chosen.bits, chosen.threads, report["forecast"])
        elif part == "workers" and models:
            steps = workers(next(iter(models.values())), chosen.bits, report["workers"])
        elif part == "layers":
            steps = layers(chosen.bits, chosen.threads, report["layers"])
        elif part == "data":
            steps = fitted(models, chosen.data, chosen.bits, chosen.threads, report["data"])
        for _ in steps:
            results.write(chosen.json, report)
        results.write(chosen.json, report)
    finish(table(report), report, chosen)
