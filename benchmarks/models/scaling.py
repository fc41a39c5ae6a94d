"""Whole models without data: what the plan says and what comes, what workers are worth, what layers take.

    python benchmarks scaling --model minilm=FOLDER --model smollm2=FOLDER --json scaling.json

``--parts`` chooses: ``forecast`` compares plan and run for every model, each in a process of its own;
``workers`` takes turns between one and two processes and two dask workers, a thread each, with the first
model; ``layers`` times large matrices; ``billion`` compresses some layers of a model of 1B shapes with random
weights, made in a temporary folder of 2.2 GB, and says what all of them take.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import diba

from ..common import results
from ..common.command import arguments_of, finish, parser
from ..common.process import in_process, memory
from ..common.tables import markdown, measured
from ..solver.large import made

__all__ = ["main", "table", "work"]

PARTS = ("forecast", "workers", "layers", "billion")
SHAPES = ((1024, 1024), (2048, 2048))
BILLION = {"hidden": 2048, "intermediate": 5632, "blocks": 22, "heads": 256, "vocabulary": 32000}
TURNS = 2
# Layers of a block, as (rows, columns, how many), and blocks; embeddings and heads cost next to nothing.
LARGE_MODELS = {
    "7B (Llama 2)": ([(4096, 4096, 4), (11008, 4096, 3)], 32),
    "8B (Llama 3)": ([(4096, 4096, 2), (1024, 4096, 2), (14336, 4096, 3)], 32),
    "70B (Llama 2 and 3)": ([(8192, 8192, 2), (1024, 8192, 2), (28672, 8192, 3)], 80),
}


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
        diba.compress(task["model"], task["out"], executor=executor, **settings, **who)
    seconds = time.perf_counter() - began
    out = Path(task["out"])
    solved = [json.loads(_recipe(path))["seconds"] for path in (out / ".diba" / "layers").glob("*.layer")]
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


def _recipe(path: Path) -> str:
    """How a finished layer was solved, from the header of its file."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return str(json.loads(content[8 : 8 + size])["__metadata__"]["recipe"])


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
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    random = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            values = random.standard_normal(shape, dtype=np.float32)
            file.write((values.view(np.uint32) >> 16).astype("<u2").tobytes())


# ---------------------------------------------------------------- tables


def table(report: dict[str, Any]) -> str:
    """All parts that there are."""
    parts = [_forecast_table, _workers_text, _layers_table, _billion_text]
    made_ones = [text for part in parts if (text := part(report))]
    return "\n\n".join([*made_ones, f"{measured(report)}."])


def _forecast_table(report: dict[str, Any]) -> str:
    rows = []
    for row in report["forecast"]:
        said, came = row["plan"], row["run"]
        pairs = [(f"{said['bytes'] / 1e6:.2f}", f"{came['bytes'] / 1e6:.2f}")]
        pairs += [(f"{said['seconds']:.0f}", f"{came['seconds']:.0f}")]
        pairs += [(f"{said['memory'] / 1e6:.0f}", f"{came['memory'] / 1e6:.0f}")]
        rows.append([row["model"], f"{row['bits']:g}", *(f"{a} / {b}" for a, b in pairs)])
    head = ["Model", "Bits", "MB, plan / run", "Seconds, plan / run", "Memory, MB, plan / run"]
    return markdown(head, rows) if rows else ""


def _workers_text(report: dict[str, Any]) -> str:
    rows = report["workers"]
    if not rows:
        return ""
    one, two, dask = (statistics.median(row[name] for row in rows) for name in ("one", "two", "dask"))
    equal = "equal bytes" if all(row["equal"] for row in rows) else "other bytes"
    return (
        f"One worker with one thread {one:.0f} s; two {two:.0f} s, {one / two:.2f} times as fast; two dask "
        f"workers {dask:.0f} s, {two / dask:.2f} of that speed; {equal}."
    )


def _layers_table(report: dict[str, Any]) -> str:
    rows = report["layers"]
    if not rows:
        return ""
    shown = []
    for row in rows:
        size = " x ".join(map(str, row["shape"]))
        taken = [f"{row['seconds']:.0f}", f"{row['memory'] / 1e6:.0f}", f"{row['snr_db']:.2f}"]
        shown.append([size, f"{row['bits']:g}", str(row["threads"]), *taken])
    text = markdown(["Matrix", "Bits", "Threads", "Seconds", "Memory, MB", "SNR, dB"], shown)
    return f"{text}\n\n{_large_models(rows)}"


def _large_models(rows: list[dict[str, Any]]) -> str:
    """Hours of large models, from the seconds of the largest matrix for m n k, which they grow with."""
    last = rows[-1]
    bits = last["bits"]
    rate = last["seconds"] / (last["shape"][0] * last["shape"][1] * last["k"])
    shown = []
    for name, (shapes, blocks) in LARGE_MODELS.items():
        seconds = blocks * sum(count * m * n * _k(m, n, bits) * rate for m, n, count in shapes)
        longest = max(m * n * _k(m, n, bits) * rate for m, n, _ in shapes)
        hours = [max(seconds / machines, longest) / 3600 for machines in (1, 16, 256)]
        shown.append([name, *(f"{each:,.1f}" for each in hours)])
    return markdown(["Hours, by machines like this one", "1", "16", "256"], shown)


def _k(m: int, n: int, bits: float) -> float:
    return bits * m * n / (m + n)


def _billion_text(report: dict[str, Any]) -> str:
    found = report.get("billion")
    if not found:
        return ""
    run, plan = found["run"], found["plan"]
    return (
        f"A model of 1B shapes ({found['file_bytes'] / 1e9:.1f} GB in bfloat16, random weights): the first "
        f"{found['layers']} of its layers, the largest first, took {run['seconds']:.0f} s and "
        f"{run['memory'] / 1e6:.0f} MB at the peak (plan: {plan['memory'] / 1e6:.0f} MB); by the plan all "
        f"of them take {plan['seconds'] / 3600:.1f} hours."
    )


def main(arguments: Sequence[str]) -> None:
    options = parser("scaling", __doc__, threads=diba.num_threads())
    options.add_argument(
        "--model", action="append", default=[], metavar="NAME=FOLDER", help="may be repeated"
    )
    options.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options.add_argument("--bits", type=float, default=2.0, metavar="B", help="per weight (2)")
    options.add_argument("--solved", type=int, default=4, metavar="N", help="layers of the 1B model (4)")
    chosen = options.parse_args(arguments)
    models = dict(each.split("=", 1) for each in chosen.model)
    fresh = {"machine": results.machine(), "arguments": {**arguments_of(chosen), "model": sorted(models)}}
    fresh |= {"forecast": [], "workers": [], "layers": [], "billion": None}
    report = results.go_on(chosen.json, fresh)
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
        for _ in steps:
            results.write(chosen.json, report)
        results.write(chosen.json, report)
    finish(table(report), report, chosen)
