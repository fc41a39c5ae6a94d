"""Text from a folder that onnxruntime-genai runs: prompts, streams of text, and how fast they came."""

from __future__ import annotations

import errno
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from .._internal.disk import PathLike

__all__ = ["Answer", "TextModel"]

_CONFIG = "genai_config.json"


@dataclass
class Answer:
    """One answer, while it is made: iterate over it for the pieces of its text.

    Attributes:
        prompt_tokens: Tokens of the prompt, with the conversation before it.
        new_tokens: Those of them that had to be read for this answer; the others were in the cache.
        tokens: Tokens of the answer so far.
        text: The answer so far.
        finished: ``"end"`` if the model ended it, ``"length"`` if it grew too long, else None.
        first: Seconds until the first token.
        rest: Seconds of all later ones.
    """

    pieces: Iterator[str] = field(repr=False)
    prompt_tokens: int = 0
    new_tokens: int = 0
    tokens: int = 0
    text: str = ""
    finished: Literal["end", "length"] | None = None
    first: float = 0.0
    rest: float = 0.0

    def __iter__(self) -> Iterator[str]:
        return self.pieces

    @property
    def speed(self) -> float | None:
        """Tokens a second after the first one; None if there are none."""
        return (self.tokens - 1) / self.rest if self.tokens > 1 and self.rest else None

    @property
    def reading_speed(self) -> float | None:
        """Tokens of the prompt that were read a second; None before the first token."""
        return self.new_tokens / self.first if self.first else None


class TextModel:
    """A language model in a folder, such as ``diba.onnx.export_genai`` writes, with one conversation.

    Args:
        folder: The folder, with ``genai_config.json``. Libraries that it names are loaded and run, so it must
            be one that is trusted like a program.
        threads: Threads; None: what the folder says.
        room: Most tokens of prompt and answers together, for which memory is taken at the start; None: what
            the folder says.
        search: Options of sampling by the names of onnxruntime-genai, such as ``{"top_k": 40}``.

    Raises:
        ImportError: onnxruntime-genai is missing.
        OSError: There is no such folder, or no model in it.
        RuntimeError: onnxruntime-genai cannot load the model, or refuses an option.
        ValueError: ``room`` is below 2, or more than the model can take.
    """

    def __init__(
        self,
        folder: PathLike,
        *,
        threads: int | None = None,
        room: int | None = None,
        search: Mapping[str, Any] | None = None,
    ) -> None:
        self._genai = _genai()
        self._folder = Path(str(folder))
        facts = _facts(self._folder)
        longest = int(facts["model"]["context_length"])
        self.room = min(int(facts["search"]["max_length"]), longest) if room is None else room
        if not 2 <= self.room <= longest:
            raise ValueError(f"room for {self.room} tokens is asked for; {self._folder} takes 2 to {longest}")
        overlay = {"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}
        try:
            config = self._genai.Config(str(self._folder))
            if threads is not None:
                config.overlay(json.dumps(overlay))
            self._model = self._genai.Model(config)
            self._tokenizer = self._genai.Tokenizer(self._model)
            parameters = self._genai.GeneratorParams(self._model)
            parameters.set_search_options(**dict(search or {}), max_length=self.room, batch_size=1)
            self._generator = self._genai.Generator(self._model, parameters)
        except RuntimeError as error:
            raise RuntimeError(self._reason(error)) from error

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> NDArray[Any]:
        """The tokens of a conversation, up to where the model answers.

        Args:
            messages: ``{"role": "user", "content": "Hello"}`` and so on, in the form of the chat template;
                without one, the contents are put together.
        """
        try:
            text = self._tokenizer.apply_chat_template(json.dumps(list(messages)), add_generation_prompt=True)
        except RuntimeError:
            if _has_template(self._folder):
                raise
            text = "\n".join(message["content"] for message in messages)
        return self.tokens(text)

    def tokens(self, text: str) -> NDArray[Any]:
        """The tokens of a text."""
        tokens: NDArray[Any] = self._tokenizer.encode(text)
        return tokens

    def answer(self, prompt: NDArray[Any], most: int | None = None) -> Answer:
        """Go on after a prompt. What it has in common with the last one is not read again.

        Args:
            prompt: Tokens.
            most: Most tokens of the answer; None: as many as there is room for.

        Raises:
            ValueError: There is no room for an answer, or the prompt is empty.
        """
        if not len(prompt):
            raise ValueError("the prompt is empty; it must have a token at least")
        if len(prompt) >= self.room:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens, and there is room for {self.room} with the answer"
            )
        result = Answer(iter(()), prompt_tokens=len(prompt))
        result.pieces = self._pieces(prompt, most, result)
        return result

    def _pieces(self, prompt: NDArray[Any], most: int | None, result: Answer) -> Iterator[str]:
        generator, stream = self._generator, self._tokenizer.create_stream()
        start = time.perf_counter()
        known = self._known(prompt)
        if known < generator.token_count():
            generator.rewind_to(known)
        result.new_tokens = len(prompt) - known
        generator.append_tokens(prompt[known:])
        while not generator.is_done():
            if result.tokens == most:
                result.finished = "length"
                return
            generator.generate_next_token()
            now = time.perf_counter()
            result.tokens += 1
            if result.tokens == 1:
                result.first = now - start
            result.rest = now - start - result.first
            if generator.is_done() and generator.token_count() < self.room:
                break  # the token that ends an answer is no text
            piece = stream.decode(generator.get_next_tokens()[0])
            result.text += piece
            yield piece
        result.finished = "end" if generator.token_count() < self.room else "length"

    def _known(self, prompt: NDArray[Any]) -> int:
        """How many tokens at the start of a prompt are in the cache; the last one is always read."""
        before = self._generator.get_sequence(0) if self._generator.token_count() else []
        same = 0
        for a, b in zip(before, prompt[:-1], strict=False):
            if a != b:
                break
            same += 1
        return same

    def _reason(self, error: Exception) -> str:
        version = self._genai.__version__
        told = f"{self._folder}: onnxruntime-genai {version} cannot load it: {' '.join(str(error).split())}"
        library = _facts(self._folder)["model"]["decoder"]["session_options"].get("custom_ops_library")
        if library and not (self._folder / library).is_file():
            told += f"; the library of its operators, {library}, is missing: export the model anew"
        return told


def _genai() -> Any:
    try:
        import onnxruntime_genai
    except ImportError as error:
        raise ImportError(
            f"onnxruntime-genai is missing ({error}); use python -m pip install 'diba[genai]'"
        ) from error
    quiet = getattr(onnxruntime_genai, "disable_telemetry_events", None)
    if quiet is not None:
        quiet()
    return onnxruntime_genai


def _facts(folder: Path) -> Any:
    """The configuration in a folder."""
    path = folder / _CONFIG
    if not folder.exists():
        raise FileNotFoundError(errno.ENOENT, "there is no such folder", str(folder))
    if not path.is_file():
        problem = f"it holds no {_CONFIG}; make one with 'diba export MODEL OUT --genai'"
        raise FileNotFoundError(errno.ENOENT, problem, str(folder))
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        int(facts["model"]["context_length"]), int(facts["search"]["max_length"])
        facts["model"]["decoder"]["session_options"].get("custom_ops_library")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RuntimeError(
            f"{path}: is damaged ({type(error).__name__}: {error}); export the model anew"
        ) from error
    return facts


def _has_template(folder: Path) -> bool:
    settings = folder / "tokenizer_config.json"
    named = settings.is_file() and '"chat_template"' in settings.read_text(encoding="utf-8")
    return named or (folder / "chat_template.jinja").is_file()
