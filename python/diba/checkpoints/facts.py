"""What is known of a compressed model beside its layers: files, measurements, the course of its retuning."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..errors import FormatError

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Protocol

    class _Trained(Protocol):
        """A ``diba.torch.RetuneReport``."""

        @property
        def losses(self) -> Any: ...
        @property
        def loss_before(self) -> float: ...
        @property
        def loss_after(self) -> float: ...
        @property
        def restored(self) -> bool: ...


__all__ = ["DONE", "Facts", "Retuning"]

DONE = "diba-compress.json"
"""The file beside the weights in which ``diba.compress`` says what it did."""


@dataclass(frozen=True, kw_only=True)
class Retuning:
    """The course of a retuning.

    Attributes:
        losses: The loss of every step before it was taken; None where the step was skipped.
        loss_before: Mean loss of a few batches before the first step; None: not finite.
        loss_after: That of the same batches after the last step.
        restored: Whether the loss rose, so that everything was put back.
    """

    losses: tuple[float | None, ...]
    loss_before: float | None = None
    loss_after: float | None = None
    restored: bool = False

    @classmethod
    def of(cls, found: _Trained) -> Retuning:
        """The course that a ``diba.torch.RetuneReport`` tells."""
        before, after = _finite(found.loss_before), _finite(found.loss_after)
        losses = tuple(_finite(float(loss)) for loss in found.losses)
        return cls(losses=losses, loss_before=before, loss_after=after, restored=bool(found.restored))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self) | {"losses": list(self.losses)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Retuning:
        """The reverse of :meth:`to_dict`."""
        return cls(**{**values, "losses": tuple(values["losses"])})


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a compressed model beside its layers; nothing, unless somebody says it.

    Attributes:
        name: Of the model.
        settings: Of the ``diba.compress`` that made it.
        files: Bytes of the files of weights, dense and compressed.
        figures: What was measured on data, by name: ``perplexity``, ``perplexity_dense``, ``tokens_judged``,
            ``relative_error``, or others.
        forecast: What a plan expects, by name: ``seconds``, ``memory_bytes``, ``snr_db``.
        retuning: The course of its retuning.
    """

    name: str | None = None
    settings: Mapping[str, Any] | None = None
    files: tuple[int, int] | None = None
    figures: Mapping[str, float] = field(default_factory=dict)
    forecast: Mapping[str, float] = field(default_factory=dict)
    retuning: Retuning | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; numbers that are not finite become None."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        for name in ("figures", "forecast"):
            plain[name] = {key: _finite(value) for key, value in plain[name].items()}
        plain["files"] = None if self.files is None else list(self.files)
        plain["settings"] = None if self.settings is None else dict(self.settings)
        plain["retuning"] = None if self.retuning is None else self.retuning.to_dict()
        return plain

    @classmethod
    def of_folder(cls, folder: Path) -> Facts:
        """Its name, and what ``diba.compress`` wrote into it, if it made it.

        Raises:
            FormatError: The file is damaged.
        """
        path, name = folder / DONE, folder.resolve().name
        try:
            found = json.loads(path.read_text("utf-8"))
        except FileNotFoundError:
            return cls(name=name)
        except (OSError, ValueError) as error:
            raise FormatError(f"{path} is damaged ({error})") from error
        try:
            course = found.get("retuning")
            return cls(
                name=name,
                settings=found["run"]["settings"],
                files=(int(found["dense_bytes"]), int(found["bytes"])),
                figures={str(name): float(value) for name, value in found["figures"].items()},
                retuning=None if course is None else Retuning.from_dict(course),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FormatError(f"{path} is damaged ({error!r})") from error


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
