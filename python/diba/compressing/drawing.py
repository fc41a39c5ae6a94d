"""Texts that a language model writes itself, as data to compress it by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._internal import check
from .._internal.disk import file_to_write, replace_file
from ..progress import Steps, reporting
from .data.texts import check_tokens, texts_of, tokenizer_of
from .files import sha256_of
from .source import Source

if TYPE_CHECKING:
    from torch import Tensor

    from .._internal.disk import PathLike
    from ..progress import ProgressOption

__all__ = ["draw"]

_TOGETHER = 32  # texts that are written in one go, and kept


def draw(
    model: PathLike,
    out: PathLike,
    *,
    like: PathLike | None = None,
    texts: int = 1024,
    tokens: int = 256,
    start: int = 16,
    seed: int = 0,
    progress: ProgressOption = True,
) -> Path:
    """Let a language model write texts, to compress it by where there is little data or none.

    Every token is sampled from the model's own answers, as they are: at temperature 1, of all tokens. So the
    texts are as varied as the model is, and what the dense model answers to them is what compression keeps.
    A stopped call goes on after its last 32 texts. Equal calls write equal files on one machine with one
    number of threads; sums in another order may choose another token somewhere.

    Args:
        model: Folder of the dense model, of a class that predicts each token from those before.
        out: The file to write, JSON lines with a ``"text"`` each, as ``diba.compress(data=...)`` reads it;
            it ends in ``.jsonl``.
        like: A text file or JSON lines: every text goes on from ``start`` tokens of it, from places spread
            evenly over it. None: from a token that is drawn uniformly.
        texts: How many.
        tokens: Of each, those that it begins with included. The end may come after half of them.
        start: Tokens to go on from.
        seed: Of all that is drawn.
        progress: See :class:`diba.Progress`.

    Returns:
        The path of the file.

    Raises:
        OSError: A file or folder is not there, or cannot be written.
        TypeError: An argument is of a wrong kind.
        ValueError: The model is of another kind, or has no tokenizer; a number is out of range; ``like`` is
            too short; a stopped call to the same file had other arguments.
    """
    import torch

    target, source = _target(out), _language_model(model)
    for name, value in (("texts", texts), ("tokens", tokens), ("start", start)):
        check.positive_int(value, name)
    check.seed(seed)
    if start >= tokens:
        raise ValueError(f"start is {start}; it must be below tokens, {tokens}")
    check_tokens(source, tokens)
    tokenizer = tokenizer_of(source)
    beginnings = _beginnings(tokenizer, like, texts, start, seed)
    about = {"texts": texts, "tokens": tokens, "start": start, "seed": seed, "model": source.digests()}
    about["like"] = None if like is None else sha256_of(Path(check.path(like)))
    part = target.with_name(f"{target.name}.part")
    lines = _kept(part, about)
    with reporting(progress) as report, torch.inference_mode(), torch.random.fork_rng():
        steps = Steps("draw", texts, report)
        steps.begin(len(lines))
        write = _writer(source, tokenizer, tokens)
        while len(lines) < texts:
            torch.manual_seed(seed + 1 + len(lines))
            rows = write(beginnings[len(lines) : len(lines) + _TOGETHER])
            lines += [json.dumps({"text": tokenizer.decode(row, skip_special_tokens=True)}) for row in rows]
            _write(part, [json.dumps(about), *lines])
            steps.done(len(lines))
    _write(target, lines)
    part.unlink(missing_ok=True)
    return target


def _target(out: PathLike) -> Path:
    target = Path(check.path(out))
    if target.suffix != ".jsonl":
        raise ValueError(f"out is {target}; it must end in .jsonl, by which its lines are known as JSON")
    return file_to_write(target)


def _language_model(model: PathLike) -> Source:
    source = Source.at(Path(check.path(model)))
    if not source.is_causal:
        raise ValueError(
            f"{source.folder} has a {source.title}, which does not predict each token from those before; "
            "texts are written by language models only"
        )
    return source


def _beginnings(tokenizer: Any, like: PathLike | None, texts: int, start: int, seed: int) -> Tensor:
    """Tokens that texts begin with, (texts, length)."""
    import torch

    if like is None:
        generator = torch.Generator().manual_seed(seed)
        plain = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids]
        chosen = torch.tensor(plain)[torch.randint(len(plain), (texts, 1), generator=generator)]
        if tokenizer.bos_token_id is None:
            return chosen
        return torch.cat([torch.full_like(chosen, tokenizer.bos_token_id), chosen], dim=1)
    path = Path(check.path(like))
    ids = [i for text in texts_of([path]) for i in tokenizer(text, verbose=False)["input_ids"]]
    if len(ids) < start:
        raise ValueError(f"{path} has {len(ids)} tokens; it must have at least start, {start}")
    places = [i * (len(ids) - start) // texts for i in range(texts)]
    return torch.tensor([ids[place : place + start] for place in places])


def _writer(source: Source, tokenizer: Any, tokens: int) -> Any:
    """A function from beginnings to whole texts, as tokens."""
    import transformers

    from .models import one_bar

    config: Any = transformers.GenerationConfig
    with one_bar():
        model = source.dense()
    ends = getattr(model.generation_config, "eos_token_id", None)
    ends = tokenizer.eos_token_id if ends is None else ends
    first = ends[0] if isinstance(ends, list) else ends
    model.generation_config = config()  # a model's own settings would narrow the choice
    settings = config(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_length=tokens,
        min_length=tokens // 2,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id if first is None else first,
    )

    def write(beginnings: Tensor) -> Tensor:
        mask = beginnings.new_ones(beginnings.shape)
        whole: Tensor = model.generate(beginnings, attention_mask=mask, generation_config=settings)
        return whole

    return write


def _kept(part: Path, about: dict[str, Any]) -> list[str]:
    """The lines that a stopped call has written."""
    if not part.is_file():
        return []
    first, *lines = part.read_text("utf-8").splitlines()
    if json.loads(first) != about:
        raise ValueError(
            f"{part} is from a stopped call with other arguments; repeat that call, or delete the file"
        )
    return lines


def _write(path: Path, lines: list[str]) -> None:
    replace_file(path, "".join(f"{line}\n" for line in lines).encode())
