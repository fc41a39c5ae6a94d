"""The settings of ``diba.compress``, and the named ones."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from .._internal import check
from .._internal.check import describe
from ..solvers.options import SolveOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..layers.config import CodeBits

__all__ = ["RECIPES", "CompressSettings"]

_CODES = ("auto", 8, 4, None)

# At equal bytes of the file, a table of 4 bits and more bits elsewhere are far better than a table of 8.
# Above 4 bits a weight plain integers lose less, so that "best" has no more to give to any layer.
_SMALL_TABLES: Mapping[str, Any] = {"embeddings": 4, "head": 4}
RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "small": {"bits": 1.0, **_SMALL_TABLES},
        "balanced": {"bits": 2.0, **_SMALL_TABLES},
        "best": {"bits": 4.0, "effort": "normal", "allocate": False, **_SMALL_TABLES},
    }
)
"""Settings by name, in the order of the sizes that come out; all others are the defaults."""


@dataclass(frozen=True, kw_only=True)
class CompressSettings:
    """What :func:`diba.compressing.compress` does, all of it: written into the output, it repeats the run.

    Attributes:
        bits: Stored bits per weight of the factored layers.
        alphabet: ``"sign"`` or ``"binary"``.
        effort: Of the solver: ``"fast"``, ``"normal"`` or ``"best"``.
        embeddings: Bits of the entries of embeddings, and of an output layer that shares their weight: 8, 4
            or ``"auto"``, see :class:`diba.torch.Config`. None: they stay dense.
        head: Bits of the entries of an output layer that shares nothing: 8, 4 or ``"auto"``. None: it is
            factored as other layers are. Without such a layer it says nothing.
        skip: Names of layers that stay dense, as in :class:`diba.torch.Config`.
        allocate: Whether factored layers get bits by what they are worth, as many as ``bits`` says over all
            of them; see :func:`diba.torch.allocate`. Each is factored at two sizes or more first. None: if
            there are data, which say what layers are worth.
        reconstruct: With data: steps in which each block is fitted to the dense one, bits included. 0: layers
            are fitted one by one only.
        retune: With data: steps of training diagonals, biases and normalisation of the whole model at the
            end. 0: none.
        tokens: With data: tokens of a text that is cut, and most tokens of one that is not.
        rows: With data: texts in a batch.
        batches: With data: batches that compression sees; retuning begins with the others, if there are any.
        seed: Of everything that is drawn.
        device: Device of torch that runs ADMM for each layer, such as ``"cuda"``; None: compiled code does.

    Raises:
        TypeError: A value is of the wrong kind.
        ValueError: A value is out of range.
    """

    bits: float = 2.0
    alphabet: str = "sign"
    effort: str = "fast"
    embeddings: CodeBits | Literal["auto"] | None = "auto"
    head: CodeBits | Literal["auto"] | None = "auto"
    skip: tuple[str, ...] = ()
    allocate: bool | None = None
    reconstruct: int = 256
    retune: int = 96
    tokens: int = 256
    rows: int = 4
    batches: int = 64
    seed: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        check.number(self.bits, "bits", minimum=0, exclusive=True)
        options = SolveOptions(alphabet=self.alphabet, effort=self.effort, device=self.device)  # type: ignore[arg-type]
        object.__setattr__(self, "device", options.device)
        for name in ("embeddings", "head"):
            if getattr(self, name) not in _CODES:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be 8, 4, 'auto' or None")
        if not (self.allocate is None or isinstance(self.allocate, bool)):
            raise TypeError(f"allocate is {describe(self.allocate)}; it must be True, False or None")
        for name in ("reconstruct", "retune"):
            check.integer(getattr(self, name), name, minimum=0, maximum=2**31)
        for name in ("tokens", "rows", "batches"):
            check.positive_int(getattr(self, name), name)
        if self.tokens < 2:
            raise ValueError("tokens is 1; it must be at least 2, as a token is predicted from those before")
        check.seed(self.seed)
        object.__setattr__(self, "skip", tuple(self.skip))

    @property
    def shares_bits(self) -> bool:
        """With data: whether layers get bits by what they are worth."""
        return self.allocate is not False

    @classmethod
    def of(cls, recipe: str | None, changes: Mapping[str, Any]) -> CompressSettings:
        """The settings of a name, with changes; None: the defaults.

        Raises:
            TypeError, ValueError: The name or a setting is unknown, or a value is not possible.
        """
        if recipe is not None:
            check.one_of(recipe, "recipe", tuple(RECIPES))
        known = [field.name for field in dataclasses.fields(cls)]
        for name in changes:
            if name not in known:
                raise TypeError(f"compress has no setting {name!r}; known: {', '.join(known)}")
        return cls(**{**RECIPES.get(recipe or "", {}), **changes})

    def config(self, output_layer: bool) -> dict[str, Any]:
        """The fields of :class:`diba.torch.Config` that stand for them.

        Args:
            output_layer: Whether the model has one with a weight of its own.
        """
        values: dict[str, Any] = {
            "bits_per_weight": self.bits,
            "alphabet": self.alphabet,
            "effort": self.effort,
            "seed": self.seed,
            "skip": list(self.skip),
        }
        if self.device is not None:
            values["device"] = self.device
        if self.embeddings is not None:
            values["embeddings"] = self.embeddings
        if self.head is not None and output_layer:
            values["head"] = self.head
        return values

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self) | {"skip": list(self.skip)}
