"""``diba chat``: a conversation with an exported language model."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .generate import add_sampling, opened, speeds

if TYPE_CHECKING:
    import argparse

    from ..onnx.genai_run import TextModel

__all__ = ["add_command"]

_HELP = "/exit ends the conversation, /new begins another one; Ctrl-C stops an answer."


def add_command(commands: Any) -> None:
    """Add the command and its options."""
    parser = commands.add_parser(
        "chat",
        help="talk to an exported language model",
        description=f"Talk to a language model. {_HELP}",
    )
    add_sampling(parser)
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before the conversation")
    parser.add_argument(
        "--context", type=int, metavar="N", help="most tokens of the conversation (default: the folder's)"
    )
    parser.add_argument("--quiet", action="store_true", help="print no speeds and no help")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    model = opened(options, options.context)
    told = [] if options.system is None else [{"role": "system", "content": options.system}]
    messages = list(told)
    if not options.quiet:
        print(f"{options.folder}, {model.room} tokens at most. {_HELP}", file=sys.stderr)
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return
        if text in ("/exit", "/quit"):
            return
        if text == "/new":
            messages = list(told)
        elif text:
            messages.append({"role": "user", "content": text})
            messages.append({"role": "assistant", "content": _answer(model, messages, len(told), options)})


def _answer(model: TextModel, messages: list[dict[str, str]], kept: int, options: argparse.Namespace) -> str:
    """Print the answer to a conversation as it is made; returns it. Without room, the oldest turns go."""
    prompt = model.prompt(messages)
    while len(prompt) + options.max_tokens > model.room and len(messages) > kept + 1:
        del messages[kept : kept + 2]
        prompt = model.prompt(messages)
    answer = model.answer(prompt, options.max_tokens)
    try:
        for piece in answer:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(" ...", end="")
    print()
    if answer.tokens and not options.quiet:
        print(f"[{speeds(answer)}]", file=sys.stderr)
    return answer.text
