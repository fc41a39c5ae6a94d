"""The options of :func:`diba.solve`: their names, defaults, checks and one-line help, declared once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from .._internal import check
from .._internal.check import Alphabet, describe

__all__ = ["EFFORTS", "METHODS", "Effort", "Method", "SolveOptions"]

Method = Literal["auto", "admm", "greedy", "dbf"]
Effort = Literal["fast", "normal", "best"]

METHODS: tuple[str, ...] = get_args(Method)
EFFORTS: tuple[str, ...] = get_args(Effort)

_MOST_ITERATIONS = 10**9
_ON_DEVICES = "auto", "admm"


@dataclass(frozen=True, kw_only=True)
class SolveOptions:
    """How a matrix is factored: the keywords of :func:`diba.solve`, which documents them in full.

    ``diba.allocate``, ``diba.curve``, ``diba.torch.Config`` and the command line take their options, defaults
    and checks from here. The metadata of each field has a line of help.

    Attributes:
        method: ``"auto"``, ``"admm"``, ``"greedy"`` or ``"dbf"``.
        alphabet: Entries of the binary factors: ``"binary"`` (0/1) or ``"sign"`` (-1/+1). Models default to
            ``"sign"``.
        effort: ``"fast"``, ``"normal"`` or ``"best"``.
        seed: Seed of the random start.
        max_iter: Outer iterations; None for the number of effort or method.
        tol: Greedy iterations stop when one lowers the objective by less than this share of it.
        time_limit: Seconds; None for no limit.
        threads: Threads of the compiled code; None for ``diba.num_threads()``.
        device: Name of a device of torch that runs ADMM, such as ``"cuda"``; None: compiled code does.

    Raises:
        TypeError: a value is of the wrong kind.
        ValueError: a value is unknown or out of range, method "dbf" is combined with alphabet "binary", or a
            device with a method that it does not run.

    Example:
        >>> from dataclasses import asdict
        >>> import diba
        >>> options = diba.SolveOptions(alphabet="sign", effort="fast")
        >>> diba.solve([[1.0, 2.0], [3.0, 4.0]], k=2, **asdict(options))
        Factorization(2x2, k=2, sign, 26.00 bits/weight)
    """

    method: Method = field(
        default="auto",
        metadata={"help": "auto: admm, and greedy where it may be better; or admm, greedy, dbf"},
    )
    alphabet: Alphabet = field(
        default="binary", metadata={"help": "entries of the binary factors: binary is 0/1, sign is -1/+1"}
    )
    effort: Effort = field(
        default="normal", metadata={"help": "fast, normal or best: more steps give better factors"}
    )
    seed: int = field(default=0, metadata={"help": "seed of the random start"})
    max_iter: int | None = field(
        default=None, metadata={"help": "outer iterations, in place of the number that effort sets"}
    )
    tol: float = field(
        default=1e-4,
        metadata={"help": "greedy stops when an iteration lowers the objective by less than this share"},
    )
    time_limit: float | None = field(
        default=None, metadata={"help": "seconds after which the best factors so far are returned"}
    )
    threads: int | None = field(
        default=None,
        metadata={"help": "threads of the compiled code (default: all processors of the process)"},
    )
    device: str | None = field(
        default=None,
        metadata={"help": "run ADMM in torch on this device, such as cuda (default: compiled code does)"},
    )

    def __post_init__(self) -> None:
        checked: dict[str, Any] = {
            "method": check.one_of(self.method, "method", METHODS),
            "alphabet": check.alphabet(self.alphabet),
            "effort": check.one_of(self.effort, "effort", EFFORTS),
            "seed": check.seed(self.seed),
            "tol": check.number(self.tol, "tol", minimum=0),
        }
        if self.method == "dbf" and self.alphabet != "sign":
            raise ValueError(
                f"alphabet is {self.alphabet!r}; it must be 'sign' for method='dbf': use alphabet='sign' or "
                "another method"
            )
        if self.max_iter is not None:
            checked["max_iter"] = check.integer(
                self.max_iter, "max_iter", minimum=0, maximum=_MOST_ITERATIONS
            )
        if self.time_limit is not None:
            checked["time_limit"] = check.number(self.time_limit, "time_limit", minimum=0)
        if self.threads is not None:
            checked["threads"] = check.thread_count(self.threads)
        if self.device is not None:
            checked["device"] = _device(self.device)
            if self.method not in _ON_DEVICES:
                raise ValueError(
                    f"device is {checked['device']!r} and method is {self.method!r}; on a device it must be "
                    f"{' or '.join(map(repr, _ON_DEVICES))}: leave one of them out"
                )
        for name, value in checked.items():  # as plain int, float and str
            object.__setattr__(self, name, value)


def _device(value: Any) -> str:
    """The name of a device; torch is not asked for it, nor imported."""
    if isinstance(value, str) and value:
        return value
    if (type(value).__module__, type(value).__name__) == ("torch", "device"):
        return str(value)
    raise TypeError(
        f"device is {describe(value)}; it must be the name of a device of torch, such as 'cuda', a "
        "torch.device, or None"
    )
