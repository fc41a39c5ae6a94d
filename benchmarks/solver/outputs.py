"""diba.solve of two installations on real matrices: error of outputs on held-out inputs, and squared error.

    python benchmarks outputs --against "env PYTHONPATH=OLD/python python3" --json outputs.json

The command is whatever runs a Python that imports the other diba. Second moments come from one set of texts,
errors of outputs from two others; both installations shrink moments by their own rule. One thread each, and
seconds are those of the processor. A stopped run goes on with the same --json.
"""

from __future__ import annotations

import itertools
import json
import shlex
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diba._internal.snr import energy_and_error, output_energy_and_error, snr_db

from ..common import results
from ..common.command import at_least_one, finish, parser
from ..common.data import austen, news
from ..common.tables import markdown, measured, plural
from ..models import speech
from ..models.text import NOVEL, load_minilm, load_smollm2, minilm_inputs, smollm2_batches, spread, windows

# Runs in either installation. Arguments: folder, bits, effort, tokens of the moments, seed, kinds of solves.
WORKER = """
import json, sys, time
import numpy as np
import diba
from diba.solvers import second_moments as rules
folder, bits, effort, count, seed = sys.argv[1], float(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:6])
A, S = (np.load(f"{folder}/{name}.npy") for name in "AS")
S = S + np.diag(rules.missing_power(S))
share = getattr(rules, "factor_shrinkage", lambda n, count, bits: rules.shrinkage(n, count))
given = {"bits_per_weight": bits, "alphabet": "sign", "effort": effort, "threads": 1, "seed": seed}
diba.solve(A[:64, :64], 32, threads=1)  # libraries start
found, kinds = {}, {"outputs": {"covariance": (S, share(len(S), count, bits))}, "plain": {}}
for name, more in ((kind, kinds[kind]) for kind in sys.argv[6:]):
    began = time.process_time()
    f = diba.solve(A, **given, **more)
    found[name] = time.process_time() - began
    np.save(f"{folder}/{name}.npy", f.to_dense())
print(json.dumps(found))
"""
Batches = Sequence[Any]
Moments = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Model:
    """Where matrices and their inputs come from.

    Attributes:
        load: Makes the model.
        layers: Names of the layers.
        call: Runs the model on a batch.
        batches: For the second moments, then to be judged on; "held out" and, for texts, "other".
    """

    load: Callable[[], torch.nn.Module]
    layers: Sequence[str]
    call: Callable[[torch.nn.Module, Any], object]
    batches: Callable[[], dict[str, Batches]]


def minilm_texts() -> dict[str, Batches]:
    paragraphs = [text for text in austen()[NOVEL].split("\n\n") if len(text) > 200]
    texts = {"moments": news("lee_background")[:40], "held out": news("lee"), "other": spread(paragraphs, 60)}
    return {name: [minilm_inputs([text], 128) for text in some] for name, some in texts.items()}


def smollm2_texts() -> dict[str, Batches]:
    seen = [batch["input_ids"] for batch in smollm2_batches("full")[:12]]
    held_out = windows("\n\n".join(news("lee")), 256)[:24].split(2)
    return {"moments": seen, "held out": held_out, "other": spread(windows(austen()[NOVEL], 256), 24)}


def whisper_sounds() -> dict[str, Batches]:
    said, heard = speech.test_inputs("full")
    tokens = speech.tokenizer()
    answers = [[speech.START, speech.NO_TIMES, *tokens.encode(" " + text, add_special_tokens=False).ids]
               for text in said[:40]]  # fmt: skip
    held_out = [
        {"input_features": sound[None], "decoder_input_ids": torch.tensor([answer])}
        for sound, answer in zip(heard, answers, strict=False)
    ]
    return {"moments": speech.batches("full")[:10], "held out": held_out}


def call_whisper(model: torch.nn.Module, batch: Mapping[str, Any]) -> object:
    return model(input_features=batch["input_features"], decoder_input_ids=batch["decoder_input_ids"])


PARTS = ("attention.self.query", "attention.self.value", "attention.output.dense", "intermediate.dense")
MINILM = [f"encoder.layer.{layer}.{part}" for layer in (1, 4) for part in PARTS]
SMOLLM2 = [f"model.layers.{layer}.{part}" for layer in (1, 10, 20)
           for part in ("self_attn.q_proj", "self_attn.o_proj")]  # fmt: skip
SMOLLM2 += ["model.layers.10.mlp.gate_proj", "model.layers.10.mlp.down_proj"]
WHISPER = [f"model.encoder.layers.{layer}.self_attn.{part}" for layer in (0, 2)
           for part in ("q_proj", "out_proj")]  # fmt: skip
WHISPER += [f"model.decoder.layers.{layer}.encoder_attn.{part}" for layer in (1, 3)
            for part in ("q_proj", "out_proj")]  # fmt: skip
MODELS = {
    "minilm": Model(load_minilm, MINILM, lambda model, batch: model(**batch), minilm_texts),
    "smollm2": Model(load_smollm2, SMOLLM2, lambda model, batch: model(input_ids=torch.atleast_2d(batch)),
                     smollm2_texts),
    "whisper": Model(speech.load, WHISPER, call_whisper, whisper_sounds),
}  # fmt: skip


@torch.no_grad()
def moments(source: Model, model: torch.nn.Module, batches: Batches) -> tuple[Moments, dict[str, int]]:
    """(mean of x x' over the inputs of each layer, number of them)."""
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = defaultdict(int)

    def watch(name: str) -> Any:
        def add(_: Any, args: tuple[torch.Tensor, ...]) -> None:
            x = args[0].flatten(0, -2)
            sums.setdefault(name, torch.zeros(x.shape[1], x.shape[1])).addmm_(x.T, x)
            counts[name] += len(x)

        return model.get_submodule(name).register_forward_pre_hook(add)

    hooks = [watch(name) for name in source.layers]
    for batch in batches:
        source.call(model, batch)
    for hook in hooks:
        hook.remove()
    return {name: total.double().numpy() / counts[name] for name, total in sums.items()}, dict(counts)


def run(command: Sequence[str], folder: str, *arguments: object) -> dict[str, float]:
    given = [*command, "-c", WORKER, folder, *map(str, arguments)]
    done = subprocess.run(given, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows_of(
    name: str,
    source: Model,
    commands: Mapping[str, Sequence[str]],
    options: Any,
    done: Container[tuple[str, str, float, int, str]] = (),
) -> Iterator[Any]:
    """A row for each matrix, size, seed and installation that is not done."""
    model = source.load()
    batches = source.batches()
    seen, counts = moments(source, model, batches.pop("moments"))
    judges = {kind: moments(source, model, some)[0] for kind, some in batches.items()}
    for layer in source.layers:
        A = model.get_submodule(layer).weight.detach().numpy()
        with tempfile.TemporaryDirectory() as folder:
            np.save(f"{folder}/A.npy", A)
            np.save(f"{folder}/S.npy", seen[layer])
            cases = itertools.product(options.bits, range(options.seeds), commands.items())
            for bits, seed, (which, command) in cases:
                if (name, layer, bits, seed, which) in done:
                    continue
                seconds = run(command, folder, bits, options.effort, counts[layer], seed, *options.kinds)
                row = {"model": name, "matrix": layer, "shape": list(A.shape)}
                row |= {"bits": bits, "seed": seed, "diba": which}
                dense = {kind: np.load(f"{folder}/{kind}.npy") for kind in options.kinds}
                for judge, S in judges.items() if "outputs" in dense else ():
                    row[judge] = round(snr_db(*output_energy_and_error(A, dense["outputs"], S[layer])), 3)
                if "plain" in dense:
                    row["plain"] = round(snr_db(*energy_and_error(A, dense["plain"])), 3)
                yield row | {f"{kind}_seconds": round(value, 2) for kind, value in seconds.items()}


def table(report: dict[str, Any]) -> str:
    """Means of both, and what the matrix and seed gained that gained least."""
    cells: dict[tuple[float, str], list[dict[str, Any]]] = defaultdict(list)
    for row in report["rows"]:
        cells[row["bits"], row["diba"]].append(row)
    rows = []
    for bits in sorted({bits for bits, _ in cells}):
        old, new = (cells[bits, which] for which in ("other", "this"))
        for kind, seconds in (("held out", "outputs"), ("other", "outputs"), ("plain", "plain")):
            both = [(a, b) for a, b in zip(old, new, strict=False) if kind in a]
            if not both:
                continue
            pairs = [(a[kind], b[kind]) for a, b in both]
            gains = [b - a for a, b in pairs]
            times = (
                float(np.sum([row[f"{seconds}_seconds"] for row in some])) for some in zip(*both, strict=True)
            )
            means = (float(np.mean(some)) for some in zip(*pairs, strict=True))
            rows.append([f"{bits:g}", kind, *(f"{x:.2f}" for x in means), f"{np.mean(gains):+.2f}",
                         f"{min(gains):+.2f}", *(f"{x:.0f}" for x in times)])  # fmt: skip
    head = ["Bits", "SNR in dB", "Other", "This", "Gain", "Least", "Other, s", "This, s"]
    count = len({(row["model"], row["matrix"]) for row in report["rows"]})
    seeds = plural(len({row["seed"] for row in report["rows"]}), "seed")
    effort = report["arguments"]["effort"]
    note = (
        f"{count} matrices, {seeds}, signs, effort {effort}, one thread. Least: of all matrices and seeds. "
        f"{measured(report)}."
    )
    return f"{markdown(head, rows)}\n\n{note}"


def main(arguments: Sequence[str]) -> None:
    made = parser("outputs", __doc__)
    made.add_argument("--against", required=True, metavar="COMMAND", help="runs Python with the other diba")
    made.add_argument("--bits", type=float, nargs="+", default=[1.0, 2.0, 3.0], metavar="B")
    made.add_argument("--effort", choices=("fast", "normal", "best"), default="fast")
    made.add_argument("--seeds", type=at_least_one, default=1, metavar="N", help="of every solve (1)")
    made.add_argument(
        "--kinds",
        nargs="+",
        choices=("outputs", "plain"),
        default=["outputs", "plain"],
        help="what is minimised (both)",
    )
    made.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS), metavar="NAME")
    made.add_argument(
        "--limit", type=at_least_one, metavar="N", help="the first N matrices of each model only"
    )
    options = made.parse_args(arguments)
    torch.set_num_threads(1)
    commands = {"other": shlex.split(options.against), "this": [sys.executable]}
    kept = {name: getattr(options, name) for name in ("bits", "effort", "seeds", "kinds", "models", "limit")}
    fresh: dict[str, Any] = {"machine": results.machine(), "arguments": kept, "rows": []}
    report = results.go_on(options.json, fresh, same=("machine", "arguments"))
    done = {tuple(row[key] for key in ("model", "matrix", "bits", "seed", "diba")) for row in report["rows"]}
    for name in options.models:
        source = MODELS[name]
        some = Model(source.load, source.layers[: options.limit], source.call, source.batches)
        for row in rows_of(name, some, commands, options, done):
            report["rows"].append(row)
            results.write(options.json, report)
            print(row, file=sys.stderr, flush=True)
    finish(table(report), report, options)
