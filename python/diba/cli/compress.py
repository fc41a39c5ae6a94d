"""``diba compress``: a whole model, from a folder to a folder."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..checkpoints import integrity
from ..checkpoints.facts import Facts
from ..compressing.recipe import RECIPES
from ..progress import reporting
from . import output

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..progress import Progress, ProgressOption

__all__ = ["add_command", "add_settings", "compressing", "resumable", "settings_of", "show_result"]

_CODES = {"auto": "auto", "8": 8, "4": 4, "none": None}


def add_command(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "compress",
        help="compress a whole model",
        description="Compress the model of a folder that from_pretrained reads to the folder OUT, which "
        "from_pretrained and 'diba export' read. Without data each weight is factored by itself, on as many "
        "processes or machines as there are; with data, layers are fitted to what they get, block by block, "
        "and the whole model is retuned. A run that was stopped, however it was, goes on with the same "
        "command.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", help="folder of the dense model; or its safetensors or npz file")
    add("-o", "--output", metavar="OUT", help="folder to write, empty or not there yet")
    add("--status", metavar="OUT", help="say how far the run of a folder is, and do nothing else")
    add("--data", metavar="DATA", help="texts, images or recordings, or a script that makes batches")
    add_settings(parser)
    add("--threads", type=int, metavar="N", help="threads, of each worker (default: all there are)")
    add("--workers", type=int, metavar="N", help="without data: processes that solve weights (default: one)")
    add("--dask", metavar="ADDRESS", help="without data: solve weights on the workers of a dask scheduler")
    add("--shard", metavar="I/N", help="without data: do the I-th of N shares only; then 'diba merge OUT'")
    add("--log", metavar="FILE", help="append the progress to a file, a JSON object a line")
    add("--json", action="store_true", help="print one JSON object")
    add("--quiet", action="store_true", help="print no progress and no summary")
    output.add_html(parser)
    parser.set_defaults(run=_run)


def add_settings(parser: Any) -> None:
    """Add the options that ``plan`` has, too: all settings of a compression."""
    add = parser.add_argument
    add("--recipe", choices=tuple(RECIPES), help="settings by name: 1, 2 or 4 bits; others change them")
    add("--bits", type=float, metavar="B", help="bits a weight (default: 2)")
    add("--alphabet", choices=("sign", "binary"), help="entries -1/+1 or 0/1 (default: sign)")
    add("--effort", choices=("fast", "normal", "best"), help="of the solver (default: fast)")
    add("--embeddings", choices=_CODES, help="bits of embeddings (default: auto, which loses nothing)")
    add("--head", choices=_CODES, help="bits of the output layer; none factors it (default: auto)")
    add("--skip", action="append", metavar="NAME", help="leave a layer dense; may be given several times")
    add("--allocate", action=argparse.BooleanOptionalAction, help="bits of layers by their worth (with data)")
    add("--reconstruct", type=int, metavar="N", help="with data: steps for each block (default: 256)")
    add("--retune", type=int, metavar="N", help="with data: steps at the end (default: 96)")
    add("--tokens", type=int, metavar="N", help="with data: tokens of a text (default: 256)")
    add("--rows", type=int, metavar="N", help="with data: texts in a batch (default: 4)")
    add("--batches", type=int, metavar="N", help="with data: batches that compression sees (default: 64)")
    add("--seed", type=int, metavar="N", help="seed (default: 0)")
    add("--device", metavar="NAME", help="run ADMM in torch, such as on cuda (default: compiled code)")


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given, as keywords."""
    given = {name: getattr(options, name) for name in _SETTINGS if getattr(options, name) is not None}
    for name in ("embeddings", "head"):
        if name in given:
            given[name] = _CODES[given[name]]
    return given


_SETTINGS = (
    "bits", "alphabet", "effort", "embeddings", "head", "skip", "allocate", "reconstruct", "retune", "tokens",
    "rows", "batches", "seed", "device",
)  # fmt: skip


def compressing() -> Any:
    """``diba.compressing``, imported when it is asked for."""
    from .. import compressing as found

    return found


def _run(options: argparse.Namespace) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    whole = compressing()
    if options.status is not None:
        output.print_report(whole.status(Path(options.status)), options.json)
        return
    if options.model is None or options.output is None:
        raise ValueError("MODEL and -o OUT are needed: diba compress MODEL -o OUT")
    common = {"recipe": options.recipe, "threads": options.threads, **settings_of(options)}
    with resumable(), _shown(options) as progress, _executor(options.dask) as executor:
        if options.shard is not None:
            _do_shard(options, whole, {**common, "progress": progress})
            return
        who = {"workers": options.workers, "executor": executor, "progress": progress}
        done = whole.compress(options.model, options.output, data=options.data, **common, **who)
    show_result(options, done)


def _do_shard(options: argparse.Namespace, whole: Any, keywords: dict[str, Any]) -> None:
    """Do one share of the work, and say how many layers are missing."""
    if options.data is not None or options.workers is not None or options.dask is not None:
        raise ValueError("--shard goes with none of --data, --workers and --dask")
    number, slash, count = options.shard.partition("/")
    if not (slash and number.isascii() and number.isdigit() and count.isascii() and count.isdigit()):
        raise ValueError(f"--shard is {options.shard!r}; it must be I/N, as in 2/8")
    missing = whole.compress_shard(options.model, options.output, (int(number), int(count)), **keywords)
    if options.json:
        output.print_json({"shard": options.shard, "missing": missing})
    elif not options.quiet:
        print(f"share {options.shard} is done; {missing} layers are missing in {options.output}")


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """A context that says after Ctrl-C that the same command goes on."""
    try:
        yield
    except KeyboardInterrupt:
        print("diba: stopped; the same command goes on from here", file=sys.stderr)
        raise


@contextlib.contextmanager
def _executor(address: str | None) -> Iterator[Any]:
    """An executor on the workers of a dask scheduler; None without an address."""
    if address is None:
        yield None
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise ValueError(f"{error}; use python -m pip install distributed") from error
    with Client(address) as client:
        yield client.get_executor()


def show_result(options: argparse.Namespace, done: Any) -> None:
    """Print what came out, as the options ask."""
    if options.html is not None:
        report = integrity.inspect(done.path) if done.report is None else done.report
        output.write_html(dataclasses.replace(report, facts=Facts.of_folder(done.path)), options.html)
    if options.json:
        facts = {f.name: getattr(done, f.name) for f in dataclasses.fields(done) if f.name != "report"}
        output.print_json({**facts, "path": str(done.path)})
    elif not options.quiet:
        if done.report is not None:
            print(done.report.table(worst_first=True, limit=10))
        print(done)


@contextlib.contextmanager
def _shown(options: argparse.Namespace) -> Iterator[ProgressOption]:
    """The progress that was asked for: on the terminal, in a file, or both."""
    if options.log is None:
        yield not options.quiet
        return
    with Path(options.log).open("a") as file, reporting(not options.quiet) as show:
        log = _Log(file)

        def both(state: Progress) -> None:
            log(state)
            if show is not None:
                show(state)

        yield both


class _Log:
    """Writes every step as a JSON object on a line, and what is done between steps once a second."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._last, self._written = file, ("", -1.0), 0.0

    def __call__(self, state: Progress) -> None:
        now, step = time.time(), (state.task, state.done)
        if step == self._last and state.fraction != 1 and now - self._written < 1:
            return
        self._last, self._written = step, now
        facts = {name: value for name, value in vars(state).items() if name != "detail" and value is not None}
        print(json.dumps({"time": round(now, 3), **facts}), file=self._file, flush=True)
