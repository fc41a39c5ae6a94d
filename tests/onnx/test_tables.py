"""Tables of 16, 8 and 4 bits: what they hold, how far it is off, and language models that use them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import diba.onnx
from diba.onnx.tables import rounded

if TYPE_CHECKING:
    from pathlib import Path

ROWS, COLUMNS = 600, 64


def matrix(seed: int = 0) -> np.ndarray:
    """Rows of different sizes, with a zero row and an outlier."""
    w = np.random.default_rng(seed).standard_normal((ROWS, COLUMNS))
    w *= np.exp(np.arange(ROWS) % 5)[:, None]
    w[3], w[5, 7] = 0, 80
    return w.astype(np.float32)


@pytest.mark.parametrize(("bits", "columns"), [(8, 64), (8, 30), (4, 64), (4, 36), (4, 31)])
def test_tables_hold_codes_as_operators_take_them(bits: int, columns: int) -> None:
    w = matrix()[:, :columns]
    table = rounded(w, bits)
    assert (table.bits, table.shape, table.columns) == (bits, (ROWS, columns), columns)
    codes, scales = table.source.codes, table.block_scales()  # type: ignore[union-attr]
    assert columns % table.block == 0
    assert scales.shape == (ROWS, columns // table.block)
    if bits == 4:
        codes = np.stack([codes % 16, codes // 16], axis=2).reshape(ROWS, -1)[:, :columns]
    found = (codes.astype(np.float64) - 2 ** (bits - 1)) * np.repeat(
        scales.astype(np.float64), table.block, 1
    )
    np.testing.assert_allclose(table.rows(), found, rtol=1e-6)
    np.testing.assert_array_equal(table.rows(np.array([[4, 5]])), table.rows()[None, 4:6])
    assert table.packed().shape[1] == (columns if bits == 8 else -(-columns // 2) + -(-columns // 32))
    assert table.packed().dtype == np.uint8


def test_very_long_rows_are_floats() -> None:
    assert rounded(np.ones((2, 2**16 + 1)), 8).bits == 16


def test_floats_of_16_bits_stay_finite() -> None:
    w = np.array([[1e6, -1e6, 0.1]], np.float32)
    table = rounded(w, 16)
    np.testing.assert_array_equal(table.rows(), [[65504, -65504, np.float16(0.1)]])


class Tokens(nn.Module):
    """A language model of an embedding and the output layer that shares its weight."""

    def __init__(self, columns: int = COLUMNS, bias: bool = False, tied: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(ROWS, columns)
        self.head = nn.Linear(columns, ROWS, bias=bias)
        if columns == COLUMNS:
            with torch.no_grad():
                self.embed.weight.copy_(torch.from_numpy(matrix()))
        if tied:
            self.head.weight = self.embed.weight

    def get_output_embeddings(self) -> nn.Linear:
        return self.head

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        rows = self.embed(ids)
        return {"rows": rows, "scores": self.head(torch.tanh(rows))}


IDS = torch.tensor([[0, 3, 5, 599], [1, 2, 4, 8]])


@pytest.mark.parametrize("standard", [False, True])
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_tied_tables_are_stored_once_and_used_by_both(bits: Any, standard: bool, tmp_path: Path) -> None:
    model = Tokens()
    done = diba.onnx.export(
        model, IDS, tmp_path / "m.onnx", embeddings=bits, head=bits, standard=standard, progress=False
    )
    assert done.tables == {"embed": bits, "head": bits}
    assert done.data_bytes <= ROWS * COLUMNS * bits / 8 + ROWS * (COLUMNS / 32) * 4 + 4096
    rows, scores = diba.onnx.session(done.path).run(None, {"ids": IDS.numpy()})
    table = rounded(matrix(), bits)
    wanted = table.rows()[IDS.numpy()]
    np.testing.assert_allclose(rows, wanted, rtol=1e-6)
    x, w = np.tanh(wanted.astype(np.float64)), table.rows().astype(np.float64)
    allowed = 128 * 2.0**-23 * np.abs(x) @ np.abs(w).T
    if not standard and bits < 16:  # inputs are rounded to 32512 steps
        allowed = 1.01 * allowed + 0.51 * np.abs(x).max(-1, keepdims=True) / 32512 * np.abs(w).sum(1)
    assert np.all(np.abs(scores - x @ w.T) <= allowed)


def test_different_bits_and_a_bias(tmp_path: Path) -> None:
    model = Tokens(bias=True)
    done = diba.onnx.export(model, IDS, tmp_path / "m.onnx", embeddings=4, head=None, progress=False)
    assert done.tables == {"embed": 4, "head": 32}
    scores = diba.onnx.session(done.path).run(["scores"], {"ids": IDS.numpy()})[0]
    x = np.tanh(rounded(matrix(), 4).rows()[IDS.numpy()].astype(np.float64))
    w = matrix().astype(np.float64)
    wanted = x @ w.T + model.head.bias.detach().double().numpy()
    assert np.all(np.abs(scores - wanted) <= 128 * 2.0**-23 * (np.abs(x) @ np.abs(w).T + 1))


class Scaled(nn.Embedding):
    """As some models have it."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * 8


def test_a_class_that_scales_its_rows(tmp_path: Path) -> None:
    model = nn.Sequential(Scaled(ROWS, COLUMNS, padding_idx=0))
    done = diba.onnx.export(model, (IDS,), tmp_path / "m.onnx", progress=False)
    assert done.tables == {"0": 8}
    [rows] = diba.onnx.session(done.path).run(None, {"input": IDS.numpy()})
    w = model[0].weight.detach().numpy()
    table = rounded(w, 8).rows()[IDS.numpy()]
    np.testing.assert_allclose(rows, 8 * table, rtol=1e-6)
    assert np.abs(rows - 8 * w[IDS.numpy()]).max() <= 8 * np.abs(w).max() / 127


@pytest.mark.parametrize("standard", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
def test_rows_of_odd_sizes(bits: Any, standard: bool, tmp_path: Path) -> None:
    model = Tokens(31, bias=True, tied=False)
    settings = {"embeddings": bits, "head": bits, "standard": standard, "progress": False}
    done = diba.onnx.export(model, IDS, tmp_path / "m.onnx", **settings)  # type: ignore[arg-type]
    assert done.tables == {"embed": bits, "head": bits}
    assert done.checks[0].error <= 1e-3


@pytest.mark.parametrize("standard", [False, True])
@pytest.mark.parametrize(("bits", "tied", "columns"), [(8, True, 64), (4, True, 36), (4, False, 31)])
def test_tables_of_a_converted_model_stay_as_they_are(
    bits: Any, tied: bool, columns: int, standard: bool, tmp_path: Path
) -> None:
    model = diba.torch.convert(Tokens(columns, tied=tied), codes=bits, embeddings=bits, progress=False)
    assert isinstance(model.head, diba.torch.CodedLayer)
    done = diba.onnx.export(model, IDS, tmp_path / "m.onnx", standard=standard, progress=False)
    assert done.tables == {"embed": bits, "head": bits}
    per_row = columns * bits / 8 + (columns if standard else columns / 32 + 1) * 4 * (bits == 4) + 4
    assert done.data_bytes <= (1 if tied else 2) * ROWS * (per_row + 1) + 4096
    rows, scores = diba.onnx.session(done.path).run(None, {"ids": IDS.numpy()})
    with torch.no_grad():
        wanted = model(IDS)
    if standard:
        np.testing.assert_allclose(rows, wanted["rows"], rtol=1e-6)
        np.testing.assert_allclose(
            scores, wanted["scores"], rtol=1e-3, atol=1e-3 * float(np.abs(scores).max())
        )
    else:  # the same kernels; tanh may differ in the last bit
        np.testing.assert_array_equal(rows, wanted["rows"])
        np.testing.assert_allclose(
            scores, wanted["scores"], rtol=1e-4, atol=1e-4 * float(np.abs(scores).max())
        )
