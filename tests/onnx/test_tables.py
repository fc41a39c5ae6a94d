"""Tables of 16, 8 and 4 bits: what they hold, how far it is off, and language models that use them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
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


def decoded(codes: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """The numbers of a table by the definition, in plain loops over bytes."""
    if bits == 4:
        codes = np.stack([codes % 16, codes // 16], axis=2).reshape(len(codes), -1)
    width = codes.shape[1] // scales.shape[1]
    return (codes.astype(np.float64) - 2 ** (bits - 1)) * np.repeat(scales.astype(np.float64), width, axis=1)


@pytest.mark.parametrize(("bits", "block"), [(8, COLUMNS), (8, 16), (4, 32), (4, 16)])
def test_codes_follow_the_definition_and_are_as_near_as_they_can_be(bits: int, block: int) -> None:
    w = matrix()
    table = rounded(w, bits, block)
    assert table.codes.shape == (ROWS, COLUMNS * bits // 8)
    assert table.scales is not None
    assert table.scales.shape == (ROWS, COLUMNS // block)
    found = decoded(table.codes, table.scales, bits)
    np.testing.assert_allclose(table.rows(), found, rtol=1e-6)
    np.testing.assert_array_equal(table.rows(np.array([[4, 5]])), table.rows()[None, 4:6])
    blocks = w.reshape(ROWS, -1, block)
    steps = np.abs(blocks).max(-1) / (2 ** (bits - 1) - 1)  # of plain rounding to the largest entry
    plain = np.rint(blocks / np.where(steps == 0, 1, steps)[..., None]) * steps[..., None]
    assert np.square(found - w).sum() < np.square(plain - blocks).sum()
    assert not found[3].any()


def test_floats_of_16_bits_stay_finite() -> None:
    w = np.array([[1e6, -1e6, 0.1]], np.float32)
    table = rounded(w, 16, 3)
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
    table = rounded(matrix(), bits, {16: COLUMNS, 8: 64, 4: 32}[bits])
    wanted = table.rows()[IDS.numpy()]
    np.testing.assert_allclose(rows, wanted, rtol=1e-6)
    x, w = np.tanh(wanted.astype(np.float64)), table.rows().astype(np.float64)
    allowed = 128 * 2.0**-23 * np.abs(x) @ np.abs(w).T
    if not standard and bits < 16:  # inputs are rounded to 8 bits, in the blocks of the table
        block = table.block
        steps = np.abs(x).reshape(*x.shape[:-1], -1, block).max(-1) / 127
        allowed = 1.01 * allowed + 0.51 * steps @ np.abs(w).reshape(ROWS, -1, block).sum(-1).T
    assert np.all(np.abs(scores - x @ w.T) <= allowed)


def test_different_bits_and_a_bias(tmp_path: Path) -> None:
    model = Tokens(bias=True)
    done = diba.onnx.export(model, IDS, tmp_path / "m.onnx", embeddings=4, head=None, progress=False)
    assert done.tables == {"embed": 4, "head": 32}
    scores = diba.onnx.session(done.path).run(["scores"], {"ids": IDS.numpy()})[0]
    x = np.tanh(rounded(matrix(), 4, 32).rows()[IDS.numpy()].astype(np.float64))
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
    table = rounded(w, 8, COLUMNS).rows()[IDS.numpy()]
    np.testing.assert_allclose(rows, 8 * table, rtol=1e-6)
    assert np.abs(rows - 8 * w[IDS.numpy()]).max() <= 8 * np.abs(w).max() / 127


def test_rows_that_cannot_be_cut_into_blocks(tmp_path: Path) -> None:
    """30 columns have no blocks for a product, but rows of 8 bits; 31 have no codes of 4 bits."""
    done = diba.onnx.export(Tokens(30, tied=False), IDS, tmp_path / "a.onnx", progress=False)
    assert done.tables == {"embed": 8, "head": 16}
    odd = Tokens(31, tied=False)
    done = diba.onnx.export(odd, IDS, tmp_path / "b.onnx", embeddings=4, check=False, progress=False)
    assert done.tables == {"embed": 16, "head": 16}
    kinds = {t.data_type for t in onnx.load(done.path, load_external_data=False).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in kinds
