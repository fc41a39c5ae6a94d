"""Valid arguments for every function of diba._core, for tests that loop over all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diba import _core

SETTINGS = {"hold_threads_at_exit", "isa", "select_isa", "supported_isas", "tuning", "set_tuning"}
FILES = {"ChecksummedFile", "read_factors", "read_header"}
NOT_KERNELS = (
    SETTINGS
    | FILES
    | {"Packed", "PackedTensors", "QuantizedMatrix", "TiledMatrix"}
    | {"multiply_codes", "pack_binarized", "read_seconds"}
)  # for kernel_calls.call
KERNELS = sorted(
    name
    for name in dir(_core)
    if callable(getattr(_core, name)) and not name.startswith("_") and name not in NOT_KERNELS
)
OUTPUTS = {  # of the others: "out"
    "round_rows": ("steps", "words"),
    "energy": (),
    "fit_inner": ("d2",),
    "fit_magnitudes": ("outer", "inner"),
    "greedy_rows": ("correlations", "words"),
    "product_along": (),
    "product_energy": (),
    "residual_correlations": ("scale", "out"),
    "step_input_side": ("words", "outer", "inner", "state", "solution", "eigen_state"),
    "step_latents": ("values", "mean"),
    "step_sign_side": ("words", "outer", "inner", "state"),
    "tails_are_zero": (),
}
OPTIONAL = {
    ("bit_linear", "bias"),
    ("invert_shifted", "w"),
    ("quantize_shifted", "w"),
    ("step_latents", "gradient"),
}  # arguments that may be None


class Inverse(_core.QuantizedMatrix):
    """The output of invert_shifted and quantize_shifted, (k, k), with a way to see what is in it."""

    def __init__(self, k: int) -> None:
        super().__init__(k)
        self.k = k

    def tobytes(self) -> bytes:
        """Of a step that has nothing but the inverse in it: the state becomes its rows."""
        state, unit = np.zeros((self.k, self.k), np.float32), np.zeros(self.k, np.float32)
        words = packed(np.zeros((self.k, self.k), np.uint8))
        correlations = np.eye(self.k, dtype=np.float32)
        given = (words, unit.copy(), unit.copy(), state, correlations, self, unit, unit)
        _core.step_sign_side(*given, 0.0, False, 1)
        return state.tobytes()


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


def prepared_arguments(m: int = 5, k: int = 70, n: int = 9, signs: bool = False) -> dict[str, Any]:
    """Arguments of _core.Packed, random and by name."""
    rng = np.random.default_rng([m, k, n])
    b1, b2 = packed(random_bits(rng, m, k)), packed(random_bits(rng, k, n))
    d1, d2, d3 = (rng.standard_normal(size, dtype=np.float32) for size in (m, k, n))
    return {"d1": d1, "b1": b1, "d2": d2, "b2": b2, "d3": d3, "signs": signs}


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
    if name == "bit_products":
        a, b = (np.stack([packed(random_bits(rng, m, cols)) for _ in range(2)]) for m in (rows, p))
        out = np.ones((rows, p), np.int32)
        return Call(name, {"a": a, "b": b, "cols": cols, "out": out, "threads": threads})
    if name == "round_rows":
        to, steps = np.ones((2, rows, words_for(cols)), np.uint64), np.ones(rows, np.float32)
        given = {"x": floats(rows, cols), "steps": steps, "found": True, "words": to}
        return Call(name, {**given, "threads": threads})
    if name == "bit_linear":
        weight = np.stack([packed(random_bits(rng, p, cols)) for _ in range(2)])
        given = {"x": floats(rows, cols), "weight": weight, "scale": floats(p), "bias": floats(p), "bits": 2}
        return Call(name, {**given, "out": np.ones((rows, p), np.float32), "threads": threads})
    if name == "add_sparse":
        columns = np.flatnonzero(random_bits(rng, rows, cols).ravel()) % cols
        starts = np.linspace(0, columns.size, rows + 1).astype(np.uint32)
        given = {"starts": starts, "columns": columns.astype(np.uint16), "values": floats(columns.size)}
        given |= {"cols": cols, "x": floats(p, cols), "out": np.ones((p, rows), np.float32)}
        return Call(name, given | {"threads": threads})
    if name == "transpose":
        return Call(name, {"words": words, "cols": cols, "out": np.ones((cols, words_for(rows)), np.uint64)})
    if name == "pack":
        return Call(name, {"dense": floats(rows, cols), "out": np.ones_like(words), "threads": threads})
    if name == "unpack":
        values = {"zero": -1.0, "one": 1.0, "out": np.ones((rows, cols), np.float32)}
        return Call(name, {"words": words, "cols": cols, "threads": threads} | values)
    if name == "invert_shifted":
        X = floats(2 * p, cols)
        given = {"gram": X.T @ X, "shift": 0.5, "w": floats(cols), "tiles": _core.TiledMatrix(cols, cols)}
        return Call(name, given | {"out": Inverse(cols), "threads": threads})
    if name == "fit_magnitudes":
        given = {"outer": floats(rows), "inner": floats(cols), "state": floats(rows, cols)}
        return Call(name, given | {"fixed": False})
    if name == "quantize_shifted":
        given = {"x": floats(cols, cols), "shift": 0.5, "w": floats(cols), "out": Inverse(cols)}
        return Call(name, given | {"threads": threads})
    if name == "weighted_gram":
        given = {"x": floats(rows, cols), "weights": floats(rows), "out": np.ones((cols, cols), np.float32)}
        return Call(name, given | {"threads": threads})
    if name == "step_input_side":
        gram, basis = Inverse(cols), floats(rows, rows)
        system = floats(cols, 2 * p)
        _core.quantize_shifted(system @ system.T, 0.5, None, gram, 1)
        given = {"words": words, "outer": floats(rows), "inner": floats(cols), "state": floats(rows, cols)}
        for array in ("solution", "eigen_state", "correlations", "image"):
            given[array] = floats(rows, cols)
        given |= {
            "values": np.abs(floats(rows)),
            "basis": basis,
            "gram": gram,
        }
        given |= {"ratio": floats(cols), "weights": floats(cols), "penalty": 0.4, "iterations": 2}
        return Call(name, given | {"fixed": False, "threads": threads})
    if name == "step_latents":
        given = {"values": floats(rows, cols), "mean": floats(rows, cols), "outer": floats(rows)}
        given |= {"inner": floats(cols), "gradient": floats(rows, cols), "fresh": 0.1, "way": 0.5}
        return Call(name, given | {"farthest": 2.0, "edge": 1e-6, "most": rows, "threads": threads})
    if name == "product_along":
        given = {"words": words, "signs": False, "scale": floats(rows), "correlations": floats(rows, cols)}
        return Call(name, given | {"d": floats(cols)})
    if name == "product_energy":
        given = {"gram_left": floats(cols, cols), "gram_right": floats(cols, cols), "d": floats(cols)}
        return Call(name, given)
    if name == "step_sign_side":
        inverse = Inverse(cols)
        system, tiles = floats(cols, 2 * p), _core.TiledMatrix(cols, cols)
        _core.invert_shifted(system @ system.T, 0.5, None, tiles, inverse, 1)
        given = {"words": words, "outer": floats(rows), "inner": floats(cols), "state": floats(rows, cols)}
        given |= {"correlations": floats(rows, cols), "inverse": inverse, "ratio": floats(cols)}
        return Call(
            name,
            given | {"weights": floats(cols), "penalty": 0.4, "fixed": False, "threads": threads},
        )
    if name in ("greedy_rows", "residual_correlations", "fit_inner"):
        X = floats(cols, 2 * p)
        problem = {
            "gram": X @ X.T,
            "correlations": floats(rows, 2 * p) @ X.T,
            "scale": floats(rows),
            "words": words,
        }
        if name == "greedy_rows":
            return Call(name, problem | {"pairs": True} | flags)
        if name == "residual_correlations":
            more = {"inner": np.ones(cols, np.float32), "fit": True, "out": np.ones((rows, cols), np.float32)}
            return Call(name, problem | more | flags)
        problem["gram_left"], problem["gram_right"] = problem["gram"], problem.pop("gram") + 1
        return Call(name, problem | {"energy": 1e3, "d2": floats(cols)} | flags)
    arguments: dict[str, Any] = {"words": words, "cols": cols} | flags
    if name.endswith("_signs"):  # as gram and correlate, of signs only
        similar = call(name.removesuffix("_signs"), rows, cols, p, threads, seed)
        return Call(name, {key: value for key, value in similar.arguments.items() if key != "signs"})
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
