"""``diba generate``: the text that an exported language model makes of a prompt."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ..onnx.genai_run import TextModel
from . import output

if TYPE_CHECKING:
    import argparse

    from ..onnx.genai_run import Answer

__all__ = ["add_command", "add_sampling", "opened", "speeds"]

_TOKENS = 256


def add_command(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "generate",
        help="let an exported language model answer a prompt",
        description="Let a language model answer a prompt. The text goes to stdout as it is made.",
    )
    add_sampling(parser)
    parser.add_argument("prompt", metavar="PROMPT", help="the question; - reads it from stdin")
    parser.add_argument("--raw", action="store_true", help="go on from the prompt, without the chat template")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quiet", action="store_true", help="print no speeds")
    parser.set_defaults(run=_run)


def add_sampling(parser: Any) -> None:
    """Add the folder, and the options that ``chat`` has, too."""
    parser.add_argument(
        "folder", metavar="FOLDER", help="a folder written by 'diba export MODEL OUT --genai'"
    )
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", help=f"most tokens of an answer (default: {_TOKENS})"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="0 takes the likeliest token each time, 1 samples as the model says (default: the folder's)",
    )
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="sample from tokens of this total probability"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="sample from so many tokens")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of the sampling")
    parser.add_argument("--threads", type=int, metavar="N", help="threads (default: the folder's)")


def opened(options: argparse.Namespace, room: int | None = None) -> TextModel:
    """The model of the options, with room for so many tokens."""
    search = _sampling(options)
    try:
        return TextModel(options.folder, threads=options.threads, room=room, search=search)
    except (ImportError, RuntimeError) as error:
        raise ValueError(str(error)) from error


def _sampling(options: argparse.Namespace) -> dict[str, Any]:
    """Check the options, and give those of sampling by the names of onnxruntime-genai."""
    for name, least in (("max_tokens", 1), ("top_k", 1), ("threads", 1), ("seed", 0), ("temperature", 0)):
        value = getattr(options, name)
        if value is not None and not value >= least:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")
    if options.top_p is not None and not 0 < options.top_p <= 1:
        raise ValueError(f"--top-p is {options.top_p}; it must be above 0 and at most 1")
    if options.max_tokens is None:
        options.max_tokens = _TOKENS
    found: dict[str, Any] = {"top_p": options.top_p, "top_k": options.top_k, "random_seed": options.seed}
    found = {name: value for name, value in found.items() if value is not None}
    if options.temperature is not None:
        found["do_sample"] = options.temperature > 0
        if options.temperature > 0:
            found["temperature"] = options.temperature
    elif found:
        found["do_sample"] = True
    return found


def _run(options: argparse.Namespace) -> None:
    text = sys.stdin.read() if options.prompt == "-" else options.prompt
    model = opened(options)
    prompt = model.tokens(text) if options.raw else model.prompt([{"role": "user", "content": text}])
    answer = model.answer(prompt, options.max_tokens)
    for piece in answer:
        if not options.json:
            print(piece, end="", flush=True)
    if options.json:
        output.print_json({"folder": options.folder, **_report(answer)})
        return
    print()
    if not options.quiet:
        print(f"diba: {speeds(answer)}", file=sys.stderr)


def _report(answer: Answer) -> dict[str, Any]:
    return {
        "text": answer.text,
        "finished": answer.finished,
        "prompt_tokens": answer.prompt_tokens,
        "tokens": answer.tokens,
        "seconds_to_first_token": answer.first,
        "prompt_tokens_per_second": answer.reading_speed,
        "tokens_per_second": answer.speed,
    }


def speeds(answer: Answer) -> str:
    """How fast an answer came."""
    facts = [f"{answer.tokens} tokens", f"the first after {answer.first:.2f} s"]
    if answer.speed is not None:
        facts.append(f"then {answer.speed:.0f} a second")
    return ", ".join(facts)
