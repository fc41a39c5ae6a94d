"""Valid arguments for every function of diba._core, for tests that loop over all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diba import _core

NOT_KERNELS = {"isa", "select_isa", "supported_isas", "TiledMatrix"}
KERNELS = sorted(
    name
    for name in dir(_core)
    if callable(getattr(_core, name)) and not name.startswith("_") and name not in NOT_KERNELS
)
OUTPUTS = {  # of the others: "out"
    "energy": (),
    "fit_inner": ("d2",),
    "greedy_rows": ("correlations", "words"),
    "residual_correlations": ("scale", "out"),
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
    flags = {"signs": False, "threads": threads}
    if name == "energy":
        return Call(name, {"x": floats(rows, cols)})
    if name == "tails_are_zero":
        return Call(name, {"words": words, "cols": cols})
    if name == "transpose":
        return Call(name, {"words": words, "cols": cols, "out": np.ones((cols, words_for(rows)), np.uint64)})
    if name == "pack":
        return Call(name, {"dense": floats(rows, cols), "out": np.ones_like(words), "threads": threads})
    if name == "unpack":
        values = {"zero": -1.0, "one": 1.0, "out": np.ones((rows, cols), np.float32)}
        return Call(name, {"words": words, "cols": cols, "threads": threads} | values)
    if name in ("greedy_rows", "residual_correlations", "fit_inner"):
        X = floats(cols, 2 * p)
        problem = {
            "gram": X @ X.T,
            "correlations": floats(rows, 2 * p) @ X.T,
            "scale": floats(rows),
            "words": words,
        }
        if name == "greedy_rows":
            return Call(name, problem | {"cyclic": False} | flags)
        if name == "residual_correlations":
            more = {"inner": np.ones(cols, np.float32), "fit": True, "out": np.ones((rows, cols), np.float32)}
            return Call(name, problem | more | flags)
        problem["gram_left"], problem["gram_right"] = problem["gram"], problem.pop("gram") + 1
        return Call(name, problem | {"signs": False, "energy": 1e3, "d2": floats(cols)})
    arguments: dict[str, Any] = {"words": words, "cols": cols} | flags
    if name == "gram":
        return Call(name, arguments | {"weights": floats(cols), "out": np.ones((rows, rows), np.float32)})
    if name == "correlate":
        del arguments["cols"]
        more = {"x": _core.TiledMatrix(floats(cols, p)), "weights": floats(cols)}
        return Call(name, arguments | more | {"out": np.ones((p, rows), np.float32)})
    x_shape, out_shape = {
        "matvec": ((cols,), (rows,)),
        "matvec_t": ((rows,), (cols,)),
        "matmul": ((cols, p), (rows, p)),
        "matmul_t": ((rows, p), (cols, p)),
    }[name]
    return Call(name, arguments | {"x": floats(*x_shape), "out": np.ones(out_shape, np.float32)})
