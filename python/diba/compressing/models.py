"""What ``diba.compress`` needs of diba.torch beyond its public functions."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import transformers

import diba.hf  # noqa: F401  # models of transformers with compressed layers can be saved and read
from diba.torch.conversion.convert import when_converted
from diba.torch.conversion.kept import kept_in
from diba.torch.conversion.report import forget_times, recipe_of
from diba.torch.conversion.run import shown_to

from ..progress import reporting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..progress import ProgressOption

__all__ = ["forget_times", "kept_in", "recipe_of", "shown_while_read", "when_converted"]


@contextlib.contextmanager
def shown_while_read(progress: ProgressOption) -> Iterator[None]:
    """A context in which the compression of models that are read is shown."""
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # there is one of ours
    with reporting(progress) as show:
        token = shown_to.set(show)
        try:
            yield
        finally:
            shown_to.reset(token)
