"""The configuration of a conversion: which layers, what size, rules for single layers, and the JSON form."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from .._internal import check
from .._internal.check import Alphabet, describe
from .._internal.codes import CODE_BITS, check_group
from ..solvers.options import SolveOptions

__all__ = [
    "AUTO",
    "BIASES",
    "OBJECTIVES",
    "OVERRIDES",
    "PATTERN",
    "SIZES",
    "CodeBits",
    "Config",
    "Settings",
    "check_rule",
    "known_keys",
    "suggestion",
]

OBJECTIVES = ("auto", "plain", "importance", "covariance")
BIASES = ("correct", "add", "keep")
SIZES = ("bits_per_weight", "k", "snr_db")
PATTERN = "re:"
"""What begins a rule that is a regular expression for whole names."""

CodeBits = Literal[8, 4]
AUTO = "auto"


def suggestion(name: str, known: Iterable[str]) -> str:
    """The text `` (did you mean 'x'?)`` with known names similar to ``name``; empty if there are none."""
    close = difflib.get_close_matches(name, list(known), n=3)
    return f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""


@dataclass(frozen=True, kw_only=True)
class Settings(SolveOptions):
    """How one layer is compressed: a :class:`Config` with the layer's overrides applied.

    Exactly one of ``bits_per_weight``, ``k`` and ``snr_db`` is given, unless ``codes`` are.

    Attributes:
        bits_per_weight: Stored bits per weight.
        k: Inner dimension.
        snr_db: Signal-to-noise ratio to reach, in dB.
        alphabet: ``"binary"`` or ``"sign"``.
        objective: One of ``OBJECTIVES``.
        bias: One of ``BIASES``.
        codes: 8 or 4: the matrix is not factored, but stored in so many bits an entry; None: it is factored.
        group: Entries of a row that share a step, with 4-bit codes.
    """

    bits_per_weight: float | None = None
    k: int | None = None
    snr_db: float | None = None
    alphabet: Alphabet = "sign"
    objective: str = "auto"
    bias: str = "correct"
    codes: CodeBits | None = None
    group: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        _code_bits(self.codes, "codes")
        check_group(self.group)
        if self.codes is None or any(getattr(self, name) is not None for name in SIZES):
            _size(self.bits_per_weight, self.k, self.snr_db)
        check.one_of(self.objective, "objective", OBJECTIVES)
        check.one_of(self.bias, "bias", BIASES)

    def solve_options(self) -> dict[str, Any]:
        """Arguments for :func:`diba.solve`, all but the objective and threads."""
        others = ("objective", "bias", "codes", "group")
        return {name: getattr(self, name) for name in OVERRIDES if name not in others}


OVERRIDES = tuple(f.name for f in dataclasses.fields(Settings) if f.name != "threads")
"""The fields that a rule for single layers may set."""


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    r"""What :func:`diba.torch.convert` does to a model.

    The fields of :class:`diba.SolveOptions` say how each matrix is factored. Only the default of ``alphabet``
    differs: it is ``"sign"``, because at equal bits and equal speed signs approximate a model's weights
    better than 0/1 factors and are found sooner. :func:`diba.solve` keeps ``"binary"``, the form in which
    these factors were published.

    Layers have the names of ``model.named_modules()``. In place of a name, ``"re:..."`` is a regular
    expression that must match the whole name. Exact names take precedence over patterns, and patterns of
    ``skip`` over those of ``layers``; otherwise the first match wins. A name or pattern that matches no layer
    is an error when the model is converted.

    Args:
        bits_per_weight: Most stored bits per weight, with diagonals counted at 16 bits an entry. Give exactly
            one of ``bits_per_weight``, ``k`` and ``snr_db``.
        k: Inner dimension.
        snr_db: Signal-to-noise ratio to reach under ``objective``, in dB; each layer is solved several times.
        objective: What is minimised. ``"plain"``: the error of the weights. ``"importance"``: the error of
            the weights, weighted by the RMS of every input and, where known, of every output's gradient.
            ``"covariance"``: the error of the outputs, weighted by those gradients where known. ``"auto"``:
            covariance for layers with calibration moments, else plain.
        bias: What becomes of the bias of a layer under ``"covariance"``. ``"correct"``: it makes up for the
            error of the mean output, and the covariance is that of the inputs about their mean, which costs
            nothing; ``snr_db`` is then that of what varies in the outputs. ``"add"``: layers without a bias
            get one, too; such a checkpoint needs diba even as a dense model. ``"keep"``: it stays as it is.
            Without moments it always stays as it is.
        skip: Names of layers that stay dense.
        layers: Name -> dict of overrides (keys in ``OVERRIDES``), or None for a layer that stays dense. An
            exact name also selects an embedding or convolution that the flags below exclude.
        codes: 8 or 4: every linear layer and embedding that is compressed is stored in so many bits an entry
            instead of being factored; no size is needed then. It is mainly of use in ``layers``; for
            embeddings and output layers there are arguments of their own. With 4 bits, and moments of the
            inputs, the error of the outputs is kept small, unless ``objective`` is ``"plain"``.
        group: Entries of a row that share a step, with 4-bit codes: a power of two, at least 32. A step takes
            8 bits.
        tied: Whether layers that share their weight, embeddings included, are factored. They then share
            one factorization.
        embeddings: What becomes of ``nn.Embedding``. 8 or 4: a table of so many bits an entry. ``"auto"``: 8
            where a layer multiplies by the same weight, else 4, which loses nothing that could be measured.
            True: it is factored. False or None: it stays dense. A layer that shares the weight of a table
            shares the table.
        head: 8 or 4: so many bits an entry for the output layer of a language model
            (``get_output_embeddings()``), and for an embedding that shares its weight. ``"auto"``: 8. None:
            it is treated as any other layer.
        convolutions: Whether ``nn.Conv1d`` and ``nn.Conv2d`` are compressed.
        method: See :func:`diba.solve`, also for the following arguments.
        alphabet: Entries of the binary factors: ``"sign"`` (-1/+1) or ``"binary"`` (0/1).
        effort: ``"fast"``, ``"normal"`` or ``"best"``.
        seed: Seed of the random starts.
        max_iter: Outer iterations for each layer.
        tol: Smallest relative improvement of the objective for which greedy iterations go on.
        time_limit: Seconds for each layer.
        threads: Total number of threads; None: torch's number, at most diba's. It does not change the result.
        device: Device of torch that runs ADMM, such as ``"cuda"``, wherever the model is; None: compiled code
            does.

    Raises:
        TypeError: A value has the wrong type, or a keyword is unknown.
        ValueError: A value is out of range, not exactly one size is given, or a pattern is not a regular
            expression.

    Example:
        >>> config = Config(bits_per_weight=2, skip=["lm_head"], layers={r"re:.*\.mlp\..*": {"k": 64}})
        >>> config.settings("model.layers.0.mlp.up_proj").k
        64
    """

    skip: Sequence[str] = ()
    layers: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    tied: bool = False
    embeddings: bool | CodeBits | Literal["auto"] | None = False
    head: CodeBits | Literal["auto"] | None = None
    convolutions: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.embeddings, bool):
            _code_bits(self.embeddings, "embeddings", "True", "False", AUTO)
        _code_bits(self.head, "head", AUTO)
        for name in ("tied", "convolutions"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} is {describe(getattr(self, name))}; it must be True or False")
        object.__setattr__(self, "skip", _names(self.skip))
        object.__setattr__(self, "layers", _rules(self.layers, self._default()))
        both = [name for name in self.skip if self.layers.get(name) is not None]
        if both:
            raise ValueError(f"{both[0]!r} is in skip and has overrides in layers; leave one of them out")

    def _default(self) -> Settings:
        return Settings(**{name: getattr(self, name) for name in OVERRIDES})

    # ------------------------------------------------------------ rules

    def rule(self, name: str) -> str | None:
        """The entry of ``skip`` or ``layers`` that applies to a layer; None if there is none."""
        if name in self.skip or name in self.layers:
            return name
        return next((pattern for pattern in self.rules() if _matches(pattern, name)), None)

    def rules(self) -> list[str]:
        """All entries of ``skip``, then of ``layers``."""
        return list(dict.fromkeys([*self.skip, *self.layers]))

    def unmatched(self, names: Iterable[str]) -> list[str]:
        """Entries of ``skip`` and ``layers`` that match none of these names."""
        names = list(names)
        return [rule for rule in self.rules() if not any(_matches(rule, name) for name in names)]

    def settings(self, name: str) -> Settings | None:
        """Settings of the layer of that name; None if a rule says that it stays dense."""
        rule = self.rule(name)
        default = self._default()
        if rule is None:
            return default
        overrides = None if rule in self.skip else self.layers[rule]
        return None if overrides is None else _override(default, overrides)

    # ------------------------------------------------------------ other forms

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; :meth:`from_dict` takes them back."""
        result = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        result["skip"] = list(self.skip)
        result["layers"] = {name: rule and dict(rule) for name, rule in self.layers.items()}
        return result

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """A configuration from the values of :meth:`to_dict`; missing ones take their defaults.

        Raises:
            TypeError: ``values`` is not a mapping, or a value has the wrong type.
            ValueError: A key is unknown, or a value is out of range.
        """
        if not isinstance(values, Mapping):
            raise TypeError(
                f"values is {describe(values)}; it must be a dict, as returned by Config.to_dict()"
            )
        known_keys(values, [f.name for f in dataclasses.fields(cls)], "the configuration")
        return cls(**values)


# ---------------------------------------------------------------- checks


def _code_bits(value: Any, name: str, *others: str) -> None:
    words = [other for other in others if other not in ("True", "False")]
    if value is None or (type(value) is int and value in CODE_BITS) or value in words:
        return
    known = ", ".join([*(repr(x) if x in words else x for x in others), "8, 4 or None"])
    raise (ValueError if type(value) in (int, str) else TypeError)(
        f"{name} is {describe(value)}; it must be {known}"
    )


def _size(bits_per_weight: Any, k: Any, snr_db: Any) -> None:
    asked = dict(zip(SIZES, (bits_per_weight, k, snr_db), strict=True))
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) != 1:
        found = " and ".join(f"{name}={value!r}" for name, value in given.items()) or "no size"
        raise ValueError(
            f"{found} {'are' if len(given) > 1 else 'is'} given; give exactly one of "
            f"{', '.join(SIZES)}, for example bits_per_weight=2"
        )
    (name, value), *_ = given.items()
    if name == "k":
        check.positive_int(value, name)
    else:
        check.number(value, name, minimum=0, exclusive=True)


def _names(value: Any) -> tuple[str, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"skip is {describe(value)}; it must be a list of names, such as ['lm_head']")
    return tuple(check_rule(name, "an entry of skip") for name in value)


def check_rule(value: Any, what: str) -> str:
    """Require the name of a layer, or ``PATTERN`` and a regular expression."""
    if not isinstance(value, str) or not value:
        raise TypeError(
            f"{what} is {describe(value)}; it must be the name of a layer, or 're:' and a pattern"
        )
    if value.startswith(PATTERN):
        try:
            re.compile(value[len(PATTERN) :])
        except re.error as error:
            raise ValueError(f"{what} is {value!r}, which is not a regular expression: {error}") from None
    return value


def _rules(value: Any, default: Settings) -> dict[str, dict[str, Any] | None]:
    if not isinstance(value, Mapping):
        raise TypeError(
            f"layers is {describe(value)}; it must be a dict by layer name, such as {{'lm_head': None}} or "
            "{'re:.*mlp.*': {'bits_per_weight': 1}}"
        )
    result: dict[str, dict[str, Any] | None] = {}
    for name, overrides in value.items():
        check_rule(name, "a key of layers")
        if overrides is not None and not isinstance(overrides, Mapping):
            raise TypeError(
                f"layers[{name!r}] is {describe(overrides)}; it must be a dict of overrides, or None to skip"
            )
        if overrides is not None:
            known_keys(overrides, OVERRIDES, f"layers[{name!r}]")
            try:
                _override(default, overrides)
            except (TypeError, ValueError) as error:
                raise type(error)(f"layers[{name!r}]: {error}") from None
        result[name] = None if overrides is None else dict(overrides)
    return result


def _override(default: Settings, overrides: Mapping[str, Any]) -> Settings:
    """The default with overrides applied; an override of the size replaces size and codes."""
    own = any(overrides.get(name) is not None for name in SIZES)
    before = dict.fromkeys((*SIZES, "codes")) if own else {}
    return dataclasses.replace(default, **{**before, **overrides})


def known_keys(values: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    """Refuse keys that are not known; ``what`` holds them, for the message."""
    for key in values:
        if key not in known:
            raise ValueError(
                f"{what} has the unknown key {key!r}{suggestion(str(key), known)}; known: {', '.join(known)}"
            )


def _matches(rule: str, name: str) -> bool:
    if rule.startswith(PATTERN):
        return re.fullmatch(rule[len(PATTERN) :], name) is not None
    return rule == name
