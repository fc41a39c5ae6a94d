"""The registry of layer kinds: what each answers is what its dense layer computes; a new one is one entry."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import diba
from diba.layers.config import Config
from diba.torch import DibaLinear, calibrate, convert
from diba.torch.model.selection import select
from diba.torch.modules import dense, kinds
from diba.torch.modules.kinds import KINDS, dense_matrix, input_layout, input_size, kind_of, replaceable
from diba.torch.modules.linear import LinearKind
from diba.torch.modules.vectors import output_rows, vectors


class Conv1D(nn.Module):
    """Named and made as that of transformers."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.randn(nf))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


DENSE: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "Linear": (nn.Linear(12, 10), (3, 4, 12)),
    "Conv1D": (Conv1D(10, 12), (3, 4, 12)),
    "Conv1d": (nn.Conv1d(3, 5, 4, stride=2, padding=1, dilation=2), (2, 3, 15)),
    "Conv2d": (nn.Conv2d(3, 5, (3, 2), padding="same", padding_mode="reflect"), (2, 3, 6, 7)),
    "Embedding": (nn.Embedding(10, 12), ()),
}


def test_every_kind_is_tested_here() -> None:
    assert [kind.name for kind in KINDS] == list(DENSE)
    assert [kind_of(dense) for dense, _ in DENSE.values()] == list(KINDS)


@pytest.mark.parametrize("name", [name for name in DENSE if name != "Embedding"])
def test_the_matrix_times_the_vectors_is_what_the_dense_layer_computes(name: str) -> None:
    dense, shape = DENSE[name]
    dense, x = dense.double(), torch.randn(shape, dtype=torch.float64)
    A, X = torch.tensor(dense_matrix(dense)), vectors(dense, x)
    assert input_size(dense) == A.shape[1] == X.shape[1]
    y = X @ A.T + dense.bias
    torch.testing.assert_close(y, output_rows(dense, dense(x)), rtol=1e-12, atol=1e-12)


def test_an_embedding_looks_rows_up_and_multiplies_nothing() -> None:
    dense, _ = DENSE["Embedding"]
    assert input_size(dense) is None
    assert (dense_matrix(dense) == dense(torch.arange(10)).detach().numpy()).all()


def test_what_cannot_be_factored() -> None:
    whole = nn.Linear(4, 3)
    whole.weight = nn.Parameter(torch.ones(3, 4, dtype=torch.int8), requires_grad=False)
    nothing = nn.Linear(4, 3)
    nothing.weight = nn.Parameter(torch.ones(0, 4))
    for layer, reason in (
        (whole, r"torch.int8 of shape \(3, 4\)"),
        (nothing, r"torch.float32 of shape \(0, 4\)"),
    ):
        [left] = select(nn.Sequential(layer), Config(k=2)).skipped
        assert re.fullmatch(f"its weight is {reason}, must be floating and not empty", left.reason)
        with pytest.raises(ValueError, match="Linear is not a dense layer that can be factored"):
            dense_matrix(layer)


def test_names_that_hold_nothing_are_no_loss() -> None:
    layer = nn.Linear(4, 3)
    layer.register_parameter("scale", None)
    layer.register_buffer("seen", None)
    assert replaceable(layer) is not None


@pytest.mark.parametrize("name", DENSE)
def test_there_and_back(name: str) -> None:
    dense: Any = DENSE[name][0].float().eval()
    if name == "Conv1D":
        dense = pytest.importorskip("transformers.pytorch_utils").Conv1D(10, 12).eval()
    dense.note = "somebody's"
    kind = replaceable(dense)
    assert kind is not None
    f = diba.solve(dense_matrix(dense), k=7, max_iter=2)
    layer = kind.replacement(dense, f)
    assert (type(layer), layer.kind, layer.note, layer.training) == (kind.factored, kind, "somebody's", False)
    back = layer.to_dense_module()
    assert (type(back), back.note, back.training) == (type(dense), "somebody's", False)
    assert repr(back) == repr(dense)
    assert torch.equal(back.weight, layer.dense_weight())
    assert dense_matrix(back) == pytest.approx(f.to_dense(), rel=1e-5, abs=1e-6)
    empty = kind.empty(dense, f)
    assert all(tensor.is_meta for tensor in empty.state_dict().values())
    assert {n: t.shape for n, t in empty.state_dict().items()} == {
        n: t.shape for n, t in layer.state_dict().items()
    }


def test_equal_layouts_make_equal_vectors() -> None:
    x = torch.randn(2, 3, 8, 8)
    wide, deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 9, 3, padding=1)
    assert input_layout(wide) == input_layout(deep) != input_layout(nn.Conv2d(3, 4, 3))
    assert torch.equal(vectors(wide, x), vectors(deep, x))


# ---------------------------------------------------------------- a kind of somebody else


class Fortran(nn.Module):
    """A linear layer without a bias whose weight has shape (in, out)."""

    def __init__(self, n: int, m: int, device: Any = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n, m, device=device))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class DibaFortran(DibaLinear):
    kinds = ()


class FortranKind(LinearKind):
    computes, made = dense.Kind.computes, dense.Kind.made  # not those of nn.Linear

    def matrix(self, module: Any) -> Tensor:
        return module.weight.T

    def input_size(self, module: Any) -> int:
        return len(module.weight)

    def _built(self, module: Any, sizes: Any) -> DibaFortran:
        (m, n), facts = sizes.shape, {"alphabet": sizes.alphabet, "dtype": module.weight.dtype}
        return DibaFortran(n, m, sizes.k, bias=False, fan_in_fan_out=True, **facts, device="meta")

    def _dense(self, layer: DibaFortran) -> Fortran:
        return Fortran(layer.in_features, layer.out_features, device="meta")


def test_an_entry_is_all_that_selection_calibration_and_conversion_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind = FortranKind("Fortran", Fortran, DibaFortran, "a Fortran")
    monkeypatch.setattr(kinds, "KINDS", (*KINDS, kind))
    monkeypatch.setattr(DibaFortran, "kinds", (kind,))
    torch.manual_seed(0)
    model = nn.Sequential(Fortran(24, 32), nn.ReLU(), nn.Linear(32, 8))
    before, batches = model[0], [torch.randn(64, 24)]
    second = calibrate(model, batches, progress=False)["0"].second
    assert second == pytest.approx((batches[0].T @ batches[0] / 64).numpy(), rel=1e-4, abs=1e-5)
    expected = model[0](batches[0]).detach()
    convert(model, bits_per_weight=8, batches=batches, progress=False)
    assert type(model[0]) is DibaFortran
    error = (model[0](batches[0]) - expected).detach().square().sum() / expected.square().sum()
    assert error < 0.1
    back = model[0].to_dense_module()
    assert (type(back), back.weight.shape) == (Fortran, before.weight.shape)
