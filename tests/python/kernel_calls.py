"""Valid arguments for every function of diba._core, for tests that loop over all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diba import _core

NOT_KERNELS = {"isa", "select_isa", "supported_isas"}
KERNELS = sorted(
    name
    for name in dir(_core)
    if callable(getattr(_core, name)) and not name.startswith("_") and name not in NOT_KERNELS
)
OUTPUTS = {  # of the others: "out"
    "greedy_rows": ("correlations", "words"),
    "residual_correlations": ("scale", "correlations"),
    "tails_are_zero": (),
}


@dataclass
class Call:
    """One function and its arguments by name; arrays that it writes are among them."""

    name: str
    arguments: dict[str, Any]

    @property
    def outputs(self) -> tuple[str, ...]:
        return OUTPUTS.get(self.name, ("out",))

    def run(self, **changed: Any) -> tuple[Any, ...]:
        """The result and copies of the written arrays, on fresh copies of all arrays."""
        arguments = {
            name: value.copy() if isinstance(value, np.ndarray) else value
            for name, value in (self.arguments | changed).items()
        }
        result = getattr(_core, self.name)(**arguments)
        return result, *(arguments[name] for name in self.outputs)


def words_for(cols: int) -> int:
    return -(-cols // 64)


def packed(bits: np.ndarray) -> np.ndarray:
    """uint64 words (rows, ceil(cols / 64)) of a 0/1 matrix, made by numpy.packbits."""
    rows, cols = bits.shape
    padded = np.zeros((rows, 64 * words_for(cols)), np.uint8)
    padded[:, :cols] = bits
    return np.packbits(padded, axis=1, bitorder="little").view("<u8").astype(np.uint64)


def random_bits(rng: np.random.Generator, rows: int, cols: int) -> np.ndarray:
    return rng.integers(0, 2, (rows, cols), dtype=np.uint8)


def call(name: str, rows: int = 5, cols: int = 70, p: int = 6, threads: int = 1, seed: int = 0) -> Call:
    """A valid call of one function with random arguments."""
    rng = np.random.default_rng([seed, rows, cols, p])

    def floats(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    words = packed(random_bits(rng, rows, cols))
    if name == "tails_are_zero":
        return Call(name, {"words": words, "cols": cols})
    if name == "transpose":
        return Call(name, {"words": words, "cols": cols, "out": np.ones((cols, words_for(rows)), np.uint64)})
    if name == "pack":
        return Call(name, {"dense": floats(rows, cols), "out": np.ones_like(words), "threads": threads})
    if name == "unpack":
        out = np.ones((rows, cols), np.float32)
        return Call(
            name, {"words": words, "cols": cols, "zero": -1.0, "one": 1.0, "out": out, "threads": threads}
        )
    flags = {"signs": False, "threads": threads}
    if name in ("greedy_rows", "residual_correlations"):
        C = floats(cols, 2 * p)
        problem = {"gram": C @ C.T, "correlations": floats(rows, 2 * p) @ C.T, "scale": floats(rows)}
        mode = {"cyclic": False} if name == "greedy_rows" else {"fit": True}
        return Call(name, problem | mode | {"words": words} | flags)
    x_shape, out_shape = {
        "matvec": ((cols,), (rows,)),
        "matvec_t": ((rows,), (cols,)),
        "matmul": ((cols, p), (rows, p)),
        "matmul_t": ((rows, p), (cols, p)),
        "correlate": ((cols, p), (p, rows)),
        "gram": ((), (rows, rows)),
    }[name]
    arguments: dict[str, Any] = {"words": words, "cols": cols, "out": np.ones(out_shape, np.float32)}
    if name != "gram":
        arguments["x"] = floats(*x_shape)
    if name in ("gram", "correlate"):
        arguments["weights"] = floats(cols)
    return Call(name, arguments | flags)
