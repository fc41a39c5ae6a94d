"""Models of every kind of layer, for the tests of exports; and what they must return, by NumPy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import diba
from arrays import Factors, random_factors
from diba.onnx import operations
from diba.torch import DibaConv1d, DibaConv2d, DibaEmbedding, DibaLinear

EPS = 2.0**-23

CONVOLUTIONS: dict[str, tuple[Any, tuple[int, ...], dict[str, Any]]] = {
    "one": (DibaConv2d, (1, 1), {}),
    "three": (DibaConv2d, (3, 3), {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)}),
    "same": (DibaConv2d, (2, 3), {"padding": "same"}),
    "mirrored": (DibaConv2d, (3, 3), {"padding": 1, "padding_mode": "reflect", "stride": 2}),
    "wave": (DibaConv1d, (4,), {"stride": 2, "padding": 1}),
}
CHANNELS = 3


class Everything(nn.Module):
    """One layer of each kind; each output is that of one layer.

    Attributes:
        factors: The factors of each layer as plain arrays.
    """

    def __init__(self) -> None:
        super().__init__()
        self.factors = {
            "binary": random_factors(21, 13, 37, "binary", 1),
            "signs": random_factors(16, 24, 37, "sign", 2),
            "rows": random_factors(40, 20, 19, "binary", 3),
        }
        for seed, (name, (_, kernel, _)) in enumerate(CONVOLUTIONS.items(), 4):
            self.factors[name] = random_factors(6, 11, CHANNELS * int(np.prod(kernel)), "sign", seed)
        f = {name: arrays.diba for name, arrays in self.factors.items()}
        self.binary = DibaLinear.from_factorization(f["binary"], bias=torch.linspace(-2, 2, 21))
        self.signs = DibaLinear.from_factorization(f["signs"])
        self.rows = DibaEmbedding.from_factorization(f["rows"])
        self.tied = DibaLinear.from_factorization(f["rows"])  # an output layer with the factors of the rows
        self.tied.b1, self.tied.b2 = self.rows.b1, self.rows.b2
        self.tied.d1, self.tied.d2, self.tied.d3 = self.rows.d1, self.rows.d2, self.rows.d3
        for name, (kind, kernel, settings) in CONVOLUTIONS.items():
            bias = torch.linspace(-1, 1, 6) if name in ("three", "wave") else None
            setattr(self, name, kind.from_factorization(f[name], kernel, bias=bias, **settings))

    def forward(self, x: Tensor, ids: Tensor, image: Tensor, sound: Tensor) -> dict[str, Tensor]:
        looked_up = self.rows(ids)
        found = {"binary": self.binary(x), "signs": self.signs(x), "rows": looked_up}
        found["tied"] = self.tied(looked_up)
        for name, (kind, _, _) in CONVOLUTIONS.items():
            found[name] = getattr(self, name)(image if kind is DibaConv2d else sound)
        return found

    def arrays(self, name: str) -> Factors:
        """The factors of a layer."""
        return self.factors["rows" if name == "tied" else name]


def inputs(batch: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Arguments of ``Everything``."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "x": torch.randn(batch, 5, 37, generator=generator),
        "ids": torch.randint(0, 40, (batch, length), generator=generator),
        "image": torch.randn(batch, CHANNELS, 9, 8, generator=generator),
        "sound": torch.randn(batch, CHANNELS, 15, generator=generator),
    }


def vectors_of(model: Everything, name: str, given: dict[str, Tensor]) -> np.ndarray:
    """The vectors that a layer multiplies, float64, one in a row; by torch's own unfolding."""
    if name in ("binary", "signs"):
        return given["x"].double().flatten(0, 1).numpy()
    if name == "tied":
        return model.arrays("rows").dense()[given["ids"].numpy().ravel()]
    kind, kernel, settings = CONVOLUTIONS[name]
    x, kernel = (given["image"], kernel) if kind is DibaConv2d else (given["sound"][:, :, None], (1, *kernel))
    pad, stride, dilation = (settings.get(key, default) for key, default in _DEFAULTS)
    if pad == "same":
        total = [d * (k - 1) for d, k in zip((1, 1), kernel, strict=True)]
        x = functional.pad(x, (total[1] // 2, -(-total[1] // 2), total[0] // 2, -(-total[0] // 2)))
        pad = 0
    if settings.get("padding_mode") == "reflect":
        x, pad = functional.pad(x, (pad,) * 4, mode="reflect"), 0
    if kind is DibaConv1d:
        pad, stride = (0, pad), (1, stride)
    unfolded = functional.unfold(x.double(), kernel, dilation, pad, stride)
    return unfolded.movedim(1, 2).flatten(0, 1).numpy()


_DEFAULTS = (("padding", 0), ("stride", 1), ("dilation", 1))


def as_rows(name: str, y: np.ndarray) -> np.ndarray:
    """An output with one row for each vector of its layer."""
    if name in CONVOLUTIONS:
        y = np.moveaxis(y.reshape(*y.shape[:2], -1), 1, 2)
    return y.reshape(-1, y.shape[-1]).astype(np.float64)


def expected(model: Everything, name: str, given: dict[str, Tensor], quantized: bool) -> tuple[Any, Any]:
    """What a layer returns in exact arithmetic, one row for each vector, and how far off it may be.

    ``quantized``: by the bound of fast products; else by that of float32 sums.
    """
    arrays = model.arrays(name)
    if name == "rows":
        chosen = given["ids"].numpy().ravel()
        allowed = (arrays.b2.shape[0] + 8) * EPS * arrays.magnitude()[chosen]
        if quantized:  # a row is a column of the transposed matrix
            turned, units = arrays.diba.T, np.eye(len(arrays.d1), dtype=np.float32)
            allowed += np.stack([turned.error_bound(units[i]) for i in chosen])
        return arrays.dense()[chosen], allowed
    x = vectors_of(model, name, given)
    bias = getattr(model, name).bias
    shift = 0 if bias is None else bias.detach().double().numpy()
    y = x @ arrays.dense().T
    terms = sum(arrays.b2.shape) + 16
    allowed = terms * EPS * (np.abs(x) @ arrays.magnitude().T + np.abs(shift))
    if quantized:
        f = arrays.diba
        allowed += np.stack([f.error_bound(row.astype(np.float32)) for row in x])
    return y + shift, allowed


def store_wrong_matrices(monkeypatch: Any) -> None:
    """From now on exports store factors of another matrix than the layer's: a row has the wrong sign."""
    right = operations.matrix_bytes

    def wrong(f: diba.Factorization) -> Any:
        d1 = f.d1.copy()
        d1[4] *= -1
        return right(diba.Factorization(d1, f.b1, f.d2, f.b2, f.d3))

    monkeypatch.setattr(operations, "matrix_bytes", wrong)
