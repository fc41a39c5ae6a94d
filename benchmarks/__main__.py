#!/usr/bin/env python3
"""Run a benchmark from any folder: python benchmarks NAME [options]; NAME --help lists the options.

matvec       products beside NumPy, torch, onnxruntime and OpenVINO: a quarter of an hour
op_overhead  what a call of a layer costs beside its kernel: a minute
bitgemm      products of numbers of one and two bits, beside torch: a minute
apb_matvec   signs and a few exceptions, beside onnxruntime's 2 bits and torch: a minute
heads        output layers in 8 and 4 bits, beside torch and onnxruntime: minutes
streaming    products with matrices that no cache holds: a minute
compare      two installations of diba side by side: five minutes
solve        the greedy loop in C++ beside the same in vectorised PyTorch: minutes
choices      what each choice in the solver is worth: minutes
objectives   plain, weighted and covariance objectives on held-out activations: minutes
outputs      two installations of diba: errors of outputs on held-out inputs: an hour
large        time and memory of one large matrix: minutes
faster       large solves beside those of another installation: minutes to hours
exceptions   a few exactly stored entries under factors, at equal bits: half an hour
minilm       every dense matrix of a small language model: minutes
quality      solvers and baselines on every dense matrix of three models: over an hour
models       end metrics of whole models, beside controls: hours
reconstruction  what each stage of the reconstruction of blocks is worth: half an hour
tables       embeddings and output layers in 8 and 4 bits, end metrics of whole models: minutes
apb          networks of binary weights with exceptions, beside other ways, on Fashion-MNIST: hours
apb_latency  how long these networks take, beside torch and onnxruntime in float32 and int8: a minute
curves       end metrics of whole models at equal bytes, beside llama.cpp, GPTQ, onnxruntime: hours
kills        diba compress killed at random moments: the same bytes as without: minutes to hours
scaling      whole models without data: plan and run, workers, large layers: an hour
speed        speed and memory of whole models: half an hour
decode       exported language models in onnxruntime-genai, beside llama.cpp: minutes
runtimes     exported models in onnxruntime, beside float32 and int8: minutes
executorch   a model in ExecuTorch, beside its own float32 and int8: minutes
fetch        download the data of models, speed and objectives
show         table and figure of a file of results
pages        write the tables and figures of docs/benchmarks from benchmarks/results
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all models are local files

# One package, whatever the current folder; inherited by worker processes.
sys.path[0] = str(Path(__file__).resolve().parents[1])

PLACES = {
    "matvec": "products.matvec",
    "op_overhead": "products.op_overhead",
    "bitgemm": "products.bitgemm",
    "apb_matvec": "products.apb",
    "heads": "products.heads",
    "streaming": "products.streaming",
    "compare": "products.compare",
    "solve": "solver.solve",
    "choices": "solver.choices",
    "objectives": "solver.objectives",
    "outputs": "solver.outputs",
    "large": "solver.large",
    "faster": "solver.faster",
    "exceptions": "quality.exceptions",
    "minilm": "quality.minilm",
    "quality": "quality.quality",
    "models": "models.models",
    "reconstruction": "models.reconstruction",
    "tables": "models.tables",
    "apb": "apb.apb",
    "apb_latency": "apb.latency",
    "curves": "models.curves",
    "scaling": "models.scaling",
    "kills": "models.kills",
    "speed": "models.speed",
    "decode": "models.decode",
    "runtimes": "models.runtimes",
    "executorch": "models.executorch",
    "fetch": "common.data",
    "show": "pages",
    "pages": "pages",
}


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--worker"]:
        return work(*arguments[1:])
    if not arguments or arguments[0] not in PLACES:
        print(__doc__, end="")
        return 0 if arguments[:1] in (["--help"], ["-h"]) else 2
    name, *rest = arguments
    module = importlib.import_module(f"benchmarks.{PLACES[name]}")
    from benchmarks.common import BenchmarkError

    try:
        return int(getattr(module, "show" if name == "show" else "main")(rest) or 0)
    except (BenchmarkError, ModuleNotFoundError) as error:
        print(f"benchmarks {name}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        text = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        print(f"benchmarks {name}: error: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"benchmarks {name}: interrupted", file=sys.stderr)
        return 130


def work(name: str, task: str, result: str) -> int:
    """In a process of its own (common/process.py): ``work`` of a benchmark, and what it returns as JSON."""
    found = importlib.import_module(f"benchmarks.{PLACES[name]}").work(json.loads(task))
    Path(result).write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
